"""Soft actor-critic: against a plain torch.nn version, exact soft values, and itself."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from offrl_wb.agents.sac import Config, make, minibatches, next_value, some_members
from offrl_wb.core.errors import InputError
from offrl_wb.nets.critics import Critic
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import AgentSpec, Guard, copy_state, make_agent
from offrl_wb.train.evaluation import EnvironmentMaker
from offrl_wb.train.loop import Block, noise_for, rehearse, updates, watched
from offrl_wb.train.noise import NoiseAhead, generators
from offrl_wb.train.replay import Batch
from offrl_wb.train.run import Phase, train

BOX = AgentSpec(3, 2, low=(-1.0, -2.0), high=(1.0, 2.0))
FINITE = AgentSpec(3, 4, discrete=True)
SMALL = Config(actor_hidden=(8,), critic_hidden=(8,))
TINY = dict(actor_hidden=(4,), critic_hidden=(4,))
ENSEMBLE = replace(
    SMALL,
    critics=5,
    subset=2,
    replacement=True,
    critic_layer_norm=True,
    actor_layer_norm=True,
    initialisation="orthogonal",
    backup_entropy=False,
    backup_actions=3,
    updates=4,
    entropy_at="next_observation",
    parametrisation="softplus",
)
MEAN = replace(
    SMALL,
    critics=4,
    subset=2,
    critic_layer_norm=True,
    initialisation="xavier",
    updates=2,
    actor_value="mean",
    actor_rows="last minibatch",
    target_entropy=-1.0,
    log_std="free",
)
VARIANTS = {"paper": SMALL, "ensemble": ENSEMBLE, "mean": MEAN}


@cache
def batch_of(spec, replicas, rows, seed, dtype=torch.float64, first=0):
    """Random transitions, the same for a replica whatever the number of replicas."""
    parts = []
    for replica in range(first, first + replicas):
        generator = torch.Generator().manual_seed(1000 * seed + replica)

        def normal(*more, generator=generator):
            return torch.randn(rows, *more, generator=generator, dtype=torch.float64)

        seen, ahead = normal(spec.observation), normal(spec.observation)
        if spec.discrete:
            action = torch.randint(spec.action, (rows,), generator=generator)
        else:
            action = normal(spec.action).tanh().to(dtype)
        reward, over = normal(), (normal() > 1).to(dtype)
        parts.append((seen.to(dtype), action, reward.to(dtype), ahead.to(dtype), over))
    return Batch(*(torch.stack(field) for field in zip(*parts, strict=True)))


def learn(agent, count, rows, dtype=torch.float64, first=0):
    """`count` updates of an agent on random batches, sixteen of them in turn."""
    noise = NoiseAhead(agent.noise(rows), agent.seeds, 16, dtype)
    step, found = torch.tensor(0), {}
    for number in range(count):
        batch = batch_of(agent.spec, agent.replicas, rows, number % 16, dtype, first)
        found = agent.update(batch, noise.next(), step)
        step += 1
    return found


# ---------------------------------------------------------------- a plain version


def network(sizes, layer_norm):
    """Linear, LayerNorm and ReLU layers in torch.nn."""
    layers = []
    for place, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after, dtype=torch.float64))
        if place < len(sizes) - 2:
            if layer_norm:
                layers.append(nn.LayerNorm(after, eps=1e-6, dtype=torch.float64))
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@torch.no_grad()
def fill(module, blocks, layers):
    """Put named blocks of one network into `module`."""
    place = 0
    for layer in module:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(blocks[f"weight_{place}"].T)
            layer.bias.copy_(blocks[f"bias_{place}"])
        elif isinstance(layer, nn.LayerNorm):
            layer.weight.copy_(blocks[f"scale_{place}"])
            layer.bias.copy_(blocks[f"shift_{place}"])
            place += 1
        if isinstance(layer, nn.ReLU) and f"scale_{place - 1}" not in blocks:
            place += 1
    assert place == layers


class Plain:
    """Soft actor-critic of one replica, in torch.nn and torch.optim, critics in a list."""

    def __init__(self, agent):
        config, spec = agent.config, agent.spec
        self.config, self.entropy = config, agent.target_entropy
        outputs = spec.action * (2 if config.log_std == "head" else 1)
        self.actor = network(
            [spec.observation, *config.actor_hidden, outputs], config.actor_layer_norm
        )
        blocks = {n: b[0] for n, b in agent.actor.tensors().items()}
        fill(self.actor, blocks, len(config.actor_hidden))
        self.free = (
            nn.Parameter(blocks["log_std"].detach().clone()) if config.log_std == "free" else None
        )
        sizes = [spec.observation + spec.action, *config.critic_hidden, 1]
        self.critics = nn.ModuleList(
            network(sizes, config.critic_layer_norm) for _ in range(config.critics)
        )
        self.targets = nn.ModuleList(
            network(sizes, config.critic_layer_norm) for _ in range(config.critics)
        )
        for member, (critic, target) in enumerate(zip(self.critics, self.targets, strict=True)):
            blocks = {n: b[0, member] for n, b in agent.critic.tensors().items()}
            for one in (critic, target):
                fill(one, blocks, len(config.critic_hidden))
        self.raw = nn.Parameter(agent.temperature.raw().detach().clone())
        actor = [*self.actor.parameters()] + ([] if self.free is None else [self.free])
        self.actor_adam = torch.optim.Adam(actor, config.actor_learning_rate)
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), config.critic_learning_rate)
        self.raw_adam = torch.optim.Adam([self.raw], config.temperature_learning_rate)

    def alpha(self):
        return (
            self.raw.exp()
            if self.config.parametrisation == "exp"
            else nn.functional.softplus(self.raw)
        )

    def sample(self, observation, noise):
        out = self.actor(observation)
        if self.free is None:
            mean, log_std = out.chunk(2, dim=-1)
        else:
            mean, log_std = out, self.free.expand_as(out)
        std = log_std.clamp(self.config.log_std_low, self.config.log_std_high).exp()
        if noise.ndim == 3:
            mean, std = mean[:, None], std[:, None]
        before = mean + std * noise
        policy = TransformedDistribution(Normal(mean, std), [TanhTransform(cache_size=1)])
        action = policy.transforms[0](before)
        return action, policy.log_prob(action).sum(-1)

    def value(self, critics, observation, action):
        if action.ndim == 3:
            observation = observation[:, None].expand(-1, action.shape[1], -1)
        pairs = torch.cat([observation, action], -1)
        return torch.stack([critic(pairs).squeeze(-1) for critic in critics])

    def update(self, s, a, r, after, over, noise):
        config, rows = self.config, len(r)
        size = rows // config.updates
        for u in range(config.updates):
            part = slice(u * size, (u + 1) * size)
            with torch.no_grad():
                ahead, logs = self.sample(after[part], noise["next_action"][0, part])
                members = (
                    noise["members"][0, u].tolist() if config.subset else range(config.critics)
                )
                q = self.value([self.targets[m] for m in members], after[part], ahead).min(0).values
                if config.backup_entropy:
                    q = q - self.alpha() * logs
                target = r[part] + config.discount * (1 - over[part]) * q.max(-1).values
            q = self.value(self.critics, s[part], a[part])
            loss = ((q - target) ** 2).mean()
            self.critic_adam.zero_grad()
            loss.backward()
            self.critic_adam.step()
            with torch.no_grad():
                for slow, fast in zip(
                    self.targets.parameters(), self.critics.parameters(), strict=True
                ):
                    slow.mul_(1 - config.polyak).add_(config.polyak * fast)
        seen = s if config.actor_rows == "all" else s[-size:]
        alpha = self.alpha().detach()
        action, log_prob = self.sample(seen, noise["action"][0])
        q = self.value(self.critics, seen, action)
        q = q.min(0).values if config.actor_value == "smallest" else q.mean(0)
        with torch.no_grad():
            measured = (
                log_prob.detach()
                if config.entropy_at == "observation"
                else self.sample(after, noise["next_action"][0])[1]
            )
        self.actor_adam.zero_grad()
        (alpha * log_prob - q).mean().backward()
        self.actor_adam.step()
        self.raw_adam.zero_grad()
        (self.alpha() * (-measured.mean() - self.entropy)).sum().backward()
        self.raw_adam.step()


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_updates_are_those_of_a_plain_torch_version(name):
    agent = make(BOX, VARIANTS[name], [3], torch.float64)
    plain = Plain(agent)
    noise = NoiseAhead(agent.noise(24), agent.seeds, 8, torch.float64)
    for number in range(20):
        batch, drawn = batch_of(BOX, 1, 24, number), noise.next()
        agent.update(batch, drawn, torch.tensor(number))
        plain.update(*(field[0] for field in batch[:5]), drawn)
    probe = torch.randn(1, 50, 3, dtype=torch.float64)
    action = torch.rand(1, 50, 2, dtype=torch.float64) * 2 - 1
    for weights, modules in (
        (agent.critic_fixed, plain.critics),
        (agent.critic_target, plain.targets),
    ):
        ours = agent.critic_net(weights, probe, action)[0]
        theirs = plain.value(modules, probe[0], action[0])
        assert (ours - theirs).abs().max() < 1e-10
    noise = torch.randn(1, 50, 2, dtype=torch.float64)
    ours = agent.actor_net.sample(agent.actor_net(agent.actor_fixed, probe), noise)
    theirs = plain.sample(probe[0], noise[0])
    assert (ours[0][0] - theirs[0]).abs().max() < 1e-10
    assert (ours[1][0] - theirs[1]).abs().max() < 1e-8  # the plain density cancels near the edge
    assert (agent.temperature.raw() - plain.raw).abs().max() < 1e-10


# ---------------------------------------------------------------- exact soft values


def test_discrete_actions_come_to_exact_soft_values():
    generator = np.random.default_rng(1)
    states, actions, discount, alpha = 5, 3, 0.7, 0.4
    successor = generator.integers(states, size=(states, actions))
    reward = generator.normal(size=(states, actions))
    over = generator.random((states, actions)) < 0.3
    exact = np.zeros((states, actions))
    for _ in range(200):
        soft = alpha * np.log(np.exp(exact / alpha).sum(1))
        exact = reward + discount * np.where(over, 0, soft[successor])
    soft = alpha * np.log(np.exp(exact / alpha).sum(1, keepdims=True))
    s, a = (torch.tensor(p) for p in np.divmod(np.arange(states * actions), actions))
    eye = torch.eye(states, dtype=torch.float64)
    batch = Batch(
        eye[s][None],
        a[None],
        torch.tensor(reward)[s, a][None],
        eye[torch.tensor(successor)[s, a]][None],
        torch.tensor(over)[s, a].double()[None],
    )
    config = Config(
        (),
        (),
        critics=3,
        discount=discount,
        polyak=0.1,
        initial_temperature=alpha,
        temperature_learning_rate=0.0,
        actor_learning_rate=0.03,
        critic_learning_rate=0.03,
    )
    agent = make(AgentSpec(states, actions, discrete=True), config, [0], torch.float64)
    for _ in range(1500):
        found = agent.update(batch, {}, torch.tensor(0))
    q = agent.critic_net(agent.critic_fixed, eye[None])[0]
    policy = agent.actor_net(agent.actor_fixed, eye[None]).softmax(-1)[0]
    assert np.abs(q.numpy() - exact).max() < 1e-4
    assert np.abs(policy.numpy() - np.exp((exact - soft) / alpha)).max() < 1e-3
    assert found["temperature"].item() == pytest.approx(alpha)


def test_a_target_on_a_table_is_the_bellman_backup():
    config = Config((), (), critics=2, discount=0.9, initial_temperature=0.5)
    agent = make(AgentSpec(2, 3, discrete=True), config, [0], torch.float64)
    q = torch.tensor(
        [[[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], [[2.0, 1.0, 4.0], [1.0, 4.0, 2.0]]]
    ).double()
    logits = torch.tensor([[0.3, -0.2, 1.0], [0.0, 0.5, 0.5]]).double()
    with torch.no_grad():
        agent.critic_target.tensors()["weight_0"].copy_(q)  # (E, states, actions)
        agent.critic_target.tensors()["bias_0"].zero_()
        agent.actor.tensors()["weight_0"].copy_(logits)
        agent.actor.tensors()["bias_0"].zero_()
    eye = torch.eye(2, dtype=torch.float64)[None]
    reward, over = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    batch = Batch(eye, torch.zeros(1, 2, dtype=torch.long), reward, eye, over)
    found = agent.target(batch, agent.follow(batch, {}), None, agent.temperature.value().detach())
    logs = logits[0].log_softmax(-1)
    value = (logs.exp() * (torch.minimum(q[0, 0], q[1, 0]) - 0.5 * logs)).sum()
    assert found[0].tolist() == pytest.approx([1 + 0.9 * value.item(), 1.0])


# ---------------------------------------------------------------- replicas


CASES = [
    (BOX, VARIANTS["paper"]),
    (BOX, VARIANTS["ensemble"]),
    (FINITE, replace(SMALL, critics=4, subset=2, updates=4)),
]


@pytest.mark.parametrize(("spec", "config"), CASES, ids=["box", "ensemble", "finite"])
def test_a_replica_among_sixteen_is_the_same_seed_alone(spec, config):
    for dtype, steps, tolerance in ((torch.float64, 1000, 1e-9), (torch.float32, 100, 1e-5)):
        count = steps // config.updates
        many = make(spec, replace(config, **TINY), range(16), dtype)
        alone = make(spec, replace(config, **TINY), [11], dtype)
        learn(many, count, 4, dtype)
        learn(alone, count, 4, dtype, first=11)
        for name in ("actor", "critic", "critic_target"):
            ours = getattr(many, name).select([11]).flat
            assert (ours - getattr(alone, name).flat).abs().max() < tolerance, (name, dtype)
        assert (many.temperature.raw()[11] - alone.temperature.raw()[0]).abs() < tolerance


def test_a_vector_setting_gives_each_replica_its_own():
    names = (
        "discount",
        "polyak",
        "actor_learning_rate",
        "critic_learning_rate",
        "temperature_learning_rate",
        "initial_temperature",
        "target_entropy",
    )
    first = dict(zip(names, (0.9, 0.1, 1e-3, 2e-3, 3e-3, 0.5, -1.0), strict=True))
    second = dict(zip(names, (0.5, 0.2, 3e-3, 1e-3, 1e-3, 0.1, -3.0), strict=True))
    both = replace(SMALL, **{n: (first[n], second[n]) for n in names})
    agent = make(BOX, both, [0, 1], torch.float64)
    learn(agent, 20, 8)
    for replica, settings in enumerate((first, second)):
        alone = make(BOX, replace(SMALL, **settings), [replica], torch.float64)
        learn(alone, 20, 8, first=replica)
        assert (agent.critic.select([replica]).flat - alone.critic.flat).abs().max() < 1e-10
        assert (agent.actor.select([replica]).flat - alone.actor.flat).abs().max() < 1e-10


def test_a_diverged_replica_is_frozen_and_the_others_go_on():
    agent, spoiled = make(BOX, SMALL, range(3)), make(BOX, SMALL, range(3))
    guard = Guard(spoiled, every=1)
    step = torch.tensor(0)
    for number in range(3):
        batch = batch_of(BOX, 3, 8, number, torch.float32)
        noise = NoiseAhead(agent.noise(8), agent.seeds, 1).next()
        agent.update(batch, noise, step)
        reward = batch.reward.clone()
        if number == 1:
            reward[1] = math.nan
        metrics = spoiled.update(batch._replace(reward=reward), noise, step)
        guard.watch({n: v[None] for n, v in metrics.items()}, step)
        guard.renew(step)
    assert guard.alive.tolist() == [True, False, True]
    assert "critic_loss" in str(guard.report()[0])
    good = agent.critic.select([0, 2]).flat
    assert torch.allclose(spoiled.critic.select([0, 2]).flat, good)
    assert all(torch.isfinite(t).all() for t in spoiled.state().values())


# ---------------------------------------------------------------- captured, handed over, saved


@pytest.mark.parametrize(("spec", "config"), CASES, ids=["box", "ensemble", "finite"])
def test_an_update_can_be_captured(spec, config):
    def fresh(device="cpu"):
        return make(spec, config, range(2), torch.float32, device)

    class Same:
        """A source that gives one batch."""

        def sample(self, uniform):
            return batch_of(spec, 2, uniform.shape[1], 0, torch.float32)

    fixed = batch_of(spec, 2, 8, 0, torch.float32)
    Same.sample = lambda self, uniform: fixed
    seen = watched(fresh(), Same(), 8)
    assert seen.objections == ()
    assert seen.constant
    rehearse(fresh, 8)
    plain, static = fresh(), fresh()
    step = torch.zeros((), dtype=torch.int64)
    updates(plain, Same(), noise_for(plain, 8, 4), 8, step)
    block = Block(static, Same(), noise_for(static, 8, 4), 4, torch.zeros((), dtype=torch.int64))
    block.run()
    block.run()
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state().values(), static.state().values(), strict=True)
    )


def test_state_holds_all_that_training_changes():
    first, second = make(BOX, ENSEMBLE, [0, 1]), make(BOX, ENSEMBLE, [5, 6])
    learn(first, 5, 8, torch.float32)
    before = {n: t.clone() for n, t in first.state().items()}
    told = copy_state(first, second)
    assert set(told.copied) == set(before)
    assert not told.left
    assert not told.fresh
    noise = NoiseAhead(first.noise(8), [0, 1], 1).next()
    batch = batch_of(BOX, 2, 8, 99, torch.float32)
    for agent in (first, second):
        agent.update(batch, noise, torch.tensor(5))
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name])
        assert not torch.equal(tensor, before[name]), name


def test_a_saved_policy_acts_on_the_environments_scale(tmp_path):
    agent = make(BOX, SMALL, [0, 1])
    seen = np.random.default_rng(0).normal(size=(7, 3))
    save_policy(tmp_path, agent.policy(1))
    found = load_policy(tmp_path).act(seen)
    inside = agent.act(torch.as_tensor(seen).float().expand(2, -1, -1))[1].numpy()
    assert np.allclose(found, inside * np.array([1.0, 2.0]), atol=1e-6)
    finite = make(FINITE, SMALL, [0])
    assert finite.policy(0).act(seen).shape == (7,)
    drawn = finite.act(torch.zeros(1, 4000, 3), torch.rand(1, 4000))
    share = torch.bincount(drawn[0], minlength=4) / 4000
    assert (
        share - finite.actor_net(finite.actor_fixed, torch.zeros(1, 1, 3)).softmax(-1)[0, 0]
    ).abs().max() < 0.04


# ---------------------------------------------------------------- accounting


def test_one_update_is_so_many_critic_steps_and_one_of_the_actor():
    agent = make(BOX, replace(ENSEMBLE, updates=4), [0])
    learn(agent, 3, 16, torch.float32)
    assert [
        int(a.count) for a in (agent.critic_adam, agent.actor_adam, agent.temperature_adam)
    ] == [12, 3, 3]
    with pytest.raises(InputError, match="10 rows cannot be cut into 4"):
        minibatches(batch_of(BOX, 1, 10, 0), 4)


def test_critics_are_not_moved_by_the_actors_step():
    agent = make(BOX, replace(SMALL, critic_learning_rate=0.0, polyak=0.0), [0])
    before = {n: t.clone() for n, t in agent.state().items()}
    learn(agent, 3, 8, torch.float32)
    for name in ("critic/weights", "critic_target/weights"):
        assert torch.equal(agent.state()[name], before[name])
    assert not torch.equal(agent.state()["actor/weights"], before["actor/weights"])
    still = make(BOX, replace(SMALL, actor_learning_rate=0.0), [0])
    before = still.actor.flat.clone()
    learn(still, 3, 8, torch.float32)
    assert torch.equal(still.actor.flat, before)


def test_the_temperature_rises_where_entropy_is_below_its_target():
    for target, sign in ((-20.0, -1), (20.0, 1)):
        for spec in (BOX, FINITE):
            agent = make(spec, replace(SMALL, target_entropy=target), [0])
            learn(agent, 1, 8, torch.float32)
            assert sign * (agent.temperature.value().item() - 1) > 0


def test_a_time_out_bootstraps_and_a_terminal_does_not():
    agent = make(BOX, SMALL, [0], torch.float64)
    batch = batch_of(BOX, 1, 8, 0)
    noise = NoiseAhead(agent.noise(8), [0], 1, torch.float64).next()
    temperature = agent.temperature.value().detach()
    for over in (0.0, 1.0):
        given = batch._replace(terminated=torch.full_like(batch.reward, over))
        target = agent.target(given, agent.follow(given, noise), None, temperature)
        same = torch.equal(target, batch.reward)
        assert same == bool(over)


def test_gathered_critics_are_the_chosen_ones():
    net = Critic(3, 2, (6,), members=5, layer_norm=True)
    weights = net.initialise(generators([0, 1, 2]), torch.float64)
    members = torch.tensor([[4, 1], [0, 0], [2, 3]])
    s, a = torch.randn(3, 7, 3).double(), torch.randn(3, 7, 4, 2).double()
    few = replace(net, members=2)(some_members(weights, members), s, a)
    every = net(weights, s, a)
    assert torch.allclose(few, torch.stack([every[r, members[r]] for r in range(3)]))


def test_the_best_of_several_next_actions_makes_the_target():
    q = torch.tensor([[[[1.0, 4.0, 0.0]], [[3.0, 2.0, 9.0]]]])
    log = torch.tensor([[[-1.0, 1.0, 2.0]]])
    assert next_value(q, log, None).item() == 2
    assert next_value(q, log, torch.tensor([2.0])).item() == 3


def test_target_entropies_are_those_of_the_papers():
    assert make(BOX, SMALL, [0]).target_entropy == -2
    assert make(FINITE, SMALL, [0]).target_entropy == pytest.approx(0.98 * math.log(4))
    assert make(BOX, replace(SMALL, target_entropy=0.5), [0]).target_entropy == 0.5


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"subset": 3}, "subset is 3 and there are 2 critics"),
        ({"log_std_low": 3.0}, "log_std_low must lie below"),
        ({"discount": 1.0}, "discount"),
        ({"actor_value": "median"}, "one of smallest, mean"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        make_agent("sac", BOX, replace(Config(), **wrong))


# ---------------------------------------------------------------- it learns


def test_it_learns_the_maze_from_everywhere():
    config = Config(
        (32, 32),
        (32, 32),
        critic_layer_norm=True,
        updates=2,
        discount=0.95,
        polyak=0.02,
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-3,
        temperature_learning_rate=1e-3,
        initial_temperature=0.2,
    )
    agent = make(AgentSpec(2, 2, low=(-1.0, -1.0), high=(1.0, 1.0)), config, range(3))
    phases = [Phase("random", 300, act="random", learn=False)]
    phases.append(Phase("online", 700, act="policy", batch_size=128))
    maze = EnvironmentMaker("UMaze2D-v0", {"start": "uniform"})
    run = train(agent, None, maze, phases, episodes=0, log_every=100)
    success = run.records.filter(metric="online/success")
    late = success.filter(success["step"] > 800)["value"].mean()
    early = success.filter(success["step"] <= 300)["value"].mean()
    print(f"success while random {early:.2f}, at the end {late:.2f}")
    assert late > early + 0.2
