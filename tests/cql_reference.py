"""Conservative agents written out for one replica, with modules and optimisers of torch.nn.

Nothing is shared with the library but numbers: initial weights are copied, noise is handed over.
"""

import copy
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from offrl_wb.train.agent import AgentSpec, select_state
from offrl_wb.train.loop import noise_specs
from offrl_wb.train.noise import NoiseAhead
from offrl_wb.train.replay import Batch, pick


def perceptron(inputs, hidden, outputs, layer_norm=False):
    """A plain multi-layer perceptron in float64."""
    layers, width = [], inputs
    for size in hidden:
        layers.append(nn.Linear(width, size))
        if layer_norm:
            layers.append(nn.LayerNorm(size, eps=1e-6))
        layers.append(nn.ReLU())
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs)).double()


def fill(module, blocks):
    """Copy blocks `(in, out)`, by name, into the layers of a perceptron."""
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    norms = [layer for layer in module if isinstance(layer, nn.LayerNorm)]
    with torch.no_grad():
        for number, layer in enumerate(linear):
            layer.weight.copy_(blocks[f"weight_{number}"].T)
            layer.bias.copy_(blocks[f"bias_{number}"])
        for number, layer in enumerate(norms):
            layer.weight.copy_(blocks[f"scale_{number}"])
            layer.bias.copy_(blocks[f"shift_{number}"])
    return module


def numbers(module):
    """The reverse of `fill`: blocks by name."""
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    norms = [layer for layer in module if isinstance(layer, nn.LayerNorm)]
    found = {f"weight_{n}": layer.weight.T for n, layer in enumerate(linear)}
    found |= {f"bias_{n}": layer.bias for n, layer in enumerate(linear)}
    found |= {f"scale_{n}": layer.weight for n, layer in enumerate(norms)}
    return found | {f"shift_{n}": layer.bias for n, layer in enumerate(norms)}


def picked(blocks, *index):
    """Blocks of one replica (and member)."""
    return {name: block[index] for name, block in blocks.items()}


class Reference:
    """What the agents share: actor, critics, their copies, temperature; one replica at a time."""

    def __init__(self, agent, replica=0, layer_norm=False):
        config, spec = agent.config, agent.spec
        actor = agent.actor.frozen().tensors()
        critic = agent.critic.frozen().tensors()
        self.config, self.action = config, spec.action
        self.actor = fill(
            perceptron(spec.observation, config.actor_hidden, 2 * spec.action, layer_norm),
            picked(actor, replica),
        )
        width = spec.observation + spec.action
        self.critics = [
            fill(
                perceptron(width, config.critic_hidden, 1, layer_norm),
                picked(critic, replica, member) if config.critics > 1 else picked(critic, replica),
            )
            for member in range(config.critics)
        ]
        self.targets = copy.deepcopy(self.critics)
        self.raw_temperature = agent.temperature.raw().detach()[[replica]].clone().requires_grad_()
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), config.actor_learning_rate)
        several = [p for critic in self.critics for p in critic.parameters()]
        self.critic_adam = torch.optim.Adam(several, config.critic_learning_rate)
        self.temperature_adam = torch.optim.Adam(
            [self.raw_temperature], config.temperature_learning_rate
        )

    def temperature(self):
        if getattr(self.config, "parametrisation", "exp") == "softplus":
            return nn.functional.softplus(self.raw_temperature)
        return self.raw_temperature.exp()

    def sample(self, observation, noise):
        """Action and log density for `(B, ds)` and noise `(B, da)`."""
        mean, log_std = self.actor(observation).chunk(2, dim=-1)
        normal = Normal(
            mean, log_std.clamp(self.config.log_std_low, self.config.log_std_high).exp()
        )
        before = normal.mean + normal.stddev * noise
        action = before.tanh()
        # log(1 - tanh^2) = -2 log cosh, which stays exact where tanh is 1
        size = before.abs()
        log_cosh = size + torch.log1p(torch.exp(-2 * size)) - torch.log(torch.tensor(2.0).double())
        return action, (normal.log_prob(before) + 2 * log_cosh).sum(-1)

    def q(self, critics, observation, action):
        """Values `(E, B)`."""
        pairs = torch.cat([observation, action], dim=-1)
        return torch.stack([critic(pairs).squeeze(-1) for critic in critics])

    def follow(self):
        rate = self.config.polyak
        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                    slow.copy_((1 - rate) * slow + rate * fast)

    def descend(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()


class ReferenceCQL(Reference):
    """CQL and Cal-QL, sample by sample."""

    def __init__(self, agent, replica=0, layer_norm=False, calibrated=False):
        super().__init__(agent, replica, layer_norm)
        self.calibrated = calibrated
        if self.config.lagrange:
            self.raw_multiplier = (
                agent.multiplier.raw().detach()[[replica]].clone().requires_grad_()
            )
            rate = self.config.multiplier_learning_rate
            self.multiplier_adam = torch.optim.Adam([self.raw_multiplier], rate)

    def target(self, batch, noise, members):
        """`(B,)`."""
        best = None
        for k in range(self.config.backup_actions):
            action, log_prob = self.sample(batch["next_observation"], noise["next_action"][:, k])
            chosen = [self.targets[m] for m in members]
            value = self.q(chosen, batch["next_observation"], action).min(0).values
            if self.config.backup_entropy:
                value = value - self.temperature() * log_prob
            best = value if best is None else torch.maximum(best, value)
        alive = 1 - batch["terminated"]
        return (batch["reward"] + self.config.discount * alive * best).detach()

    def difference(self, batch, noise, members):
        """The conservative term, a number."""
        scores = []
        with torch.no_grad():
            draws = []
            for k in range(self.config.samples):
                uniform = 2 * noise["random_actions"][:, k] - 1
                density = torch.full((len(uniform),), 0.5).double().log() * self.action
                draws.append((uniform, density, False))
            for name, place in (
                ("policy_actions", "observation"),
                ("next_policy_actions", "next_observation"),
            ):
                for k in range(self.config.samples):
                    draws.append((*self.sample(batch[place], noise[name][:, k]), True))
        logged = self.q([self.critics[m] for m in members], batch["observation"], batch["action"])
        for action, density, policy in draws:
            values = self.q([self.critics[m] for m in members], batch["observation"], action)
            if self.calibrated and policy:
                values = torch.maximum(values, batch["mc_return"])
            scores.append(values - density if self.config.importance else values)
        if not self.config.importance:
            scores.append(logged)
        top = torch.logsumexp(torch.stack(scores), dim=0)
        if not self.config.importance:
            top = top - torch.log(torch.tensor(float(len(scores)), dtype=torch.float64))
        return (top - logged).mean()

    def update(self, batch, noise, step):
        """One update; `batch` and `noise` are dictionaries of this replica's tensors."""
        config, count = self.config, self.config.updates
        size = len(batch["reward"]) // count
        with torch.no_grad():
            old = copy.deepcopy(self.actor)
        differences = []
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            part = {name: value[rows] for name, value in batch.items()}
            several = {n: v for n, v in noise.items() if "members" not in n}
            drawn = {name: value[rows] for name, value in several.items()}
            every = range(config.critics)
            members = noise["members"][number].tolist() if config.subset else every
            chosen = noise["conservative_members"][number].tolist() if config.subset else every
            q = self.q(self.critics, part["observation"], part["action"])
            loss = (q - self.target(part, drawn, members)).square().mean()
            difference = self.difference(part, drawn, chosen)
            if config.lagrange:
                multiplier = nn.functional.softplus(self.raw_multiplier).detach()
                loss = loss + (multiplier * (config.weight * difference - config.gap)).sum()
            else:
                loss = loss + config.weight * difference
            self.descend(self.critic_adam, loss)
            self.follow()
            differences.append(difference.detach())
        now = self.actor.parameters()
        assert all(map(torch.equal, old.parameters(), now))
        self.actor_and_rest(batch, noise, step, torch.stack(differences).mean())

    def actor_and_rest(self, batch, noise, step, difference):
        config = self.config
        action, log_prob = self.sample(batch["observation"], noise["action"])
        measured = log_prob.detach()
        if config.entropy_at == "next_observation":
            with torch.no_grad():
                several = [
                    self.sample(batch["next_observation"], noise["next_action"][:, k])[1]
                    for k in range(config.backup_actions)
                ]
            measured = torch.stack(several)
        value = self.q(self.critics, batch["observation"], action).min(0).values
        if step < config.imitation_steps:
            mean, log_std = self.actor(batch["observation"]).chunk(2, dim=-1)
            log_std = log_std.clamp(config.log_std_low, config.log_std_high)
            before = torch.atanh(batch["action"])
            density = Normal(mean, log_std.exp()).log_prob(before)
            value = (density - torch.log(1 - batch["action"].square())).sum(-1)
        alpha = self.temperature().detach()
        self.descend(self.actor_adam, (alpha * log_prob - value).mean())
        softplus = config.parametrisation == "softplus"
        factor = self.temperature() if softplus else self.raw_temperature
        goal = -float(self.action) if config.target_entropy is None else config.target_entropy
        self.descend(self.temperature_adam, (factor * (-measured.mean() - goal)).sum())
        if config.lagrange:
            multiplier = nn.functional.softplus(self.raw_multiplier)
            excess = config.weight * difference - config.gap
            self.descend(self.multiplier_adam, (-multiplier * excess).sum())


def largest_difference(agent, reference, replica=0):
    """Largest distance between the numbers of one replica of `agent` and of its `reference`."""
    several = agent.config.critics > 1
    actor = picked(agent.actor.frozen().tensors(), replica)
    pairs = [(actor[name], block) for name, block in numbers(reference.actor).items()]
    for found, modules in (
        (agent.critic.frozen().tensors(), reference.critics),
        (agent.critic_target.tensors(), reference.targets),
    ):
        for member, module in enumerate(modules):
            index = (replica, member) if several else (replica,)
            pairs += [(found[name][index], block) for name, block in numbers(module).items()]
    pairs.append((agent.temperature.raw()[[replica]], reference.raw_temperature))
    if getattr(agent.config, "lagrange", False):
        pairs.append((agent.multiplier.raw()[[replica]], reference.raw_multiplier))
    return max((one - other).abs().max().item() for one, other in pairs)


@cache
def rows_of(spec, rows, seed, replica, dtype):
    """Random transitions of one replica, with returns."""
    generator = torch.Generator().manual_seed(1000 * seed + replica)

    def normal(*more):
        return torch.randn(rows, *more, generator=generator, dtype=torch.float64)

    seen, ahead = normal(spec.observation), normal(spec.observation)
    action = normal(max(spec.action, 1)).tanh().to(dtype)
    if spec.discrete:
        action = torch.randint(spec.action, (rows,), generator=generator)
    floats = [f.to(dtype) for f in (normal(), ahead, (normal() > 1).double(), normal())]
    return Batch(seen.to(dtype), action, *floats)


@cache
def random_batch_of(spec, rows, seed, replicas, dtype):
    parts = [rows_of(spec, rows, seed, replica, dtype) for replica in replicas]
    fields = zip(*(part[:6] for part in parts), strict=True)
    return Batch(*(torch.stack(field) for field in fields))


def random_batch(agent, rows, seed, dtype=torch.float64, first=0):
    """Random transitions; a replica's own, however many replicas; some again and again."""
    replicas = range(first, first + agent.replicas)
    return random_batch_of(agent.spec, rows, seed % 16, replicas, dtype)


def learn(agent, count, rows, first=0, references=()):
    """`count` updates on random batches, of the agent and of a reference for each replica."""
    noise = NoiseAhead(agent.noise(rows), agent.seeds, 16, agent.dtype)
    found = {}
    for number in range(count):
        batch = random_batch(agent, rows, number, agent.dtype, first)
        drawn = noise.next()
        found = agent.update(batch, drawn, torch.tensor(number))
        for replica, reference in enumerate(references):
            single = {n: f[replica] for n, f in batch._asdict().items() if f is not None}
            reference.update(single, {n: d[replica] for n, d in drawn.items()}, number)
    return found


def distance(agent, alone, replica):
    """Largest distance between one replica's state and that of an agent of its own."""
    one, other = select_state(agent, [replica]), alone.state()
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# A corridor from -1 to 1 with the best place at 0.5, and a log by someone who walks there slowly.

CORRIDOR = AgentSpec(1, 1, low=(-1.0,), high=(1.0,))
DISCOUNT, LENGTH = 0.95, 20


def walk(place, action):
    """The next place, and the reward for it."""
    place = np.clip(place + 0.3 * action, -1, 1)
    return place, 1 - 2 * np.abs(place - 0.5)


def corridor_log(episodes=50, gain=0.5, spread=0.1, seed=0):
    """Episodes that end by time-out, with narrow actions: `(1, N, …)` float32."""
    generator = np.random.default_rng(seed)
    place, steps = generator.uniform(-1, 1, episodes), []
    for _ in range(LENGTH):
        action = gain * (0.5 - place) + spread * generator.standard_normal(episodes)
        after, reward = walk(place, np.clip(action, -1, 1))
        steps.append((place, np.clip(action, -1, 1), reward, after))
        place = after
    seen, action, reward, ahead = (np.stack(part, axis=1) for part in zip(*steps, strict=True))
    returns, total = np.empty_like(reward), reward[:, -1] / (1 - DISCOUNT)
    for step in reversed(range(LENGTH)):
        total = reward[:, step] + DISCOUNT * total if step < LENGTH - 1 else total
        returns[:, step] = total

    def tensor(values, *more):
        return torch.tensor(values.reshape(1, -1, *more), dtype=torch.float32)

    over = torch.zeros(1, reward.size)
    rest = (tensor(reward), tensor(ahead, 1), over, tensor(returns))
    return Batch(tensor(seen, 1), tensor(action, 1), *rest)


def study(agent, log, count, rows=64):
    """`count` updates on rows of a log that all replicas share."""
    noise = NoiseAhead(noise_specs(agent, rows), agent.seeds, 64)
    found = {}
    for number in range(count):
        drawn = noise.next()
        chosen = pick(drawn["rows"], log.reward.shape[1])
        batch = Batch(*(None if f is None else f[0][chosen] for f in log))
        found = agent.update(batch, drawn, torch.tensor(number))
    return found


def corridor_return(agent):
    """Undiscounted return of each replica's mode, `(R,)`, from 21 places."""
    place = np.tile(np.linspace(-1, 1, 21), (agent.replicas, 1))
    total = np.zeros_like(place)
    for _ in range(LENGTH):
        action = agent.act(torch.tensor(place[..., None], dtype=torch.float32))
        place, reward = walk(place, action[..., 0].numpy())
        total += reward
    return total.mean(axis=1)
