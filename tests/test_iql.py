"""Implicit Q-learning: its losses, its updates, its promises, and that it improves on its log."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offrl_wb.agents import bc
from offrl_wb.agents.iql import Config, actor_loss, critic_loss, prepare, value_loss
from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.data.collector import collect
from offrl_wb.nets.losses import expectile
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import Agent, agent_spec, make_agent
from offrl_wb.train.loop import noise_for
from offrl_wb.train.replay import Transitions
from offrl_wb.worlds.tabular import TabularMDP, evaluate, value_iteration
from tests.agent_checks import (
    assert_modules,
    cart_log,
    cart_scores,
    check_alone,
    check_captured,
    check_resumed,
    check_vectors,
    dense,
    modules_of,
    random_log,
    run,
)

RATES = dict(actor_learning_rate=1e-3, critic_learning_rate=1e-3, value_learning_rate=1e-3)
SMALL = Config(hidden=(8, 8), schedule_steps=30, **RATES)
KINDS = {
    "gaussian": SMALL,
    "unsquashed": replace(SMALL, squash_mean=False),
    "deterministic": replace(SMALL, policy="deterministic"),
    "dropout": replace(SMALL, dropout=0.2),
    "categorical": SMALL,
}
PLAIN = [kind for kind in KINDS if kind != "dropout"]


def log_for(kind):
    return random_log(discrete=kind == "categorical", actions=3 if kind == "categorical" else 2)


def made(kind, seeds=(0,), dtype=torch.float64):
    return make_agent("iql", agent_spec(log_for(kind)), KINDS[kind], seeds, dtype=dtype)


def draws(kind, agent, batch_size=6):
    source, noise = Transitions(log_for(kind), agent.dtype), noise_for(agent, batch_size)

    def draw():
        drawn = noise.next()
        return drawn, source.sample(drawn["rows"])

    return draw


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_obeys_the_protocol(kind):
    assert isinstance(made(kind), Agent)


def taken_by_hand(kind, weights, batch):
    """`Q_k(s, a)` `(E, B)` of the first replica, by NumPy."""
    seen, done = batch.observation[0].numpy(), batch.action[0].numpy()
    if kind == "categorical":
        return np.stack([dense(c, seen)[np.arange(len(done)), done] for c in modules_of(weights)])
    pairs = np.concatenate([seen, done], 1)
    return np.stack([dense(c, pairs)[:, 0] for c in modules_of(weights)])


def error_by_hand(kind, agent, batch):
    """How far the actor is from each action, `(B,)`, by NumPy."""
    done = batch.action[0].numpy()
    out = dense(modules_of(agent.actor)[0], batch.observation[0].numpy())
    if kind == "categorical":
        shares = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
        return -np.log(shares[np.arange(len(done)), done])
    mean = out if kind == "unsquashed" else np.tanh(out)
    if kind == "deterministic":
        return ((mean - done) ** 2).sum(-1)
    log_std = agent.actor.tensors()["log_std"][0].detach().numpy()
    density = -0.5 * ((done - mean) / np.exp(log_std)) ** 2 - log_std
    return -(density - 0.5 * np.log(2 * np.pi)).sum(-1)


@pytest.mark.parametrize("kind", PLAIN)
def test_the_losses_are_those_of_numpy(kind):
    agent = made(kind)
    noise, batch = draws(kind, agent)()
    (value,) = modules_of(agent.value)
    here, there = (
        dense(value, x[0].numpy())[:, 0] for x in (batch.observation, batch.next_observation)
    )
    difference = taken_by_hand(kind, agent.critic_target, batch).min(0) - here
    by_hand = (np.where(difference > 0, 0.7, 0.3) * difference**2).mean()
    loss, advantage = value_loss(agent, batch)
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    assert np.allclose(advantage[0].numpy(), difference, rtol=1e-12)
    target = batch.reward[0].numpy() + 0.99 * (1 - batch.terminated[0].numpy()) * there
    by_hand = ((taken_by_hand(kind, agent.critic, batch) - target) ** 2).mean()
    assert critic_loss(agent, batch).item() == pytest.approx(by_hand, rel=1e-12)
    weights = np.minimum(np.exp(3 * difference), 100)
    by_hand = (weights * error_by_hand(kind, agent, batch)).mean()
    assert actor_loss(agent, batch, advantage, noise).item() == pytest.approx(by_hand, rel=1e-12)


def test_weights_are_capped():
    agent = make_agent("iql", agent_spec(random_log()), replace(SMALL, weight_cap=2.0), (0,))
    noise, batch = draws("gaussian", agent)()
    huge, error = torch.full((1, 6), 50.0), actor_loss(agent, batch, torch.zeros(1, 6), noise)
    assert torch.allclose(actor_loss(agent, batch, huge, noise), 2 * error)


class Reference:
    """One replica by modules and torch.optim, the steps one after another as commonly written."""

    def __init__(self, kind, agent, total):
        self.kind = kind
        last = [nn.Tanh()] if kind in ("gaussian", "deterministic") else []
        (self.actor,), (self.value,) = modules_of(agent.actor, last=last), modules_of(agent.value)
        self.critics = modules_of(agent.critic)
        self.slow = deepcopy(self.critics)
        self.log_std = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        gaussian = kind in ("gaussian", "unsquashed")
        numbers = [*self.actor.parameters(), *([self.log_std] if gaussian else [])]
        self.actor_adam = torch.optim.Adam(numbers, lr=1e-3)
        self.value_adam = torch.optim.Adam(self.value.parameters(), lr=1e-3)
        parts = [p for critic in self.critics for p in critic.parameters()]
        self.critic_adam = torch.optim.Adam(parts, lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, total)

    def taken(self, critics, seen, done):
        if self.kind == "categorical":
            return [c(seen).gather(1, done[:, None])[:, 0] for c in critics]
        return [c(torch.cat([seen, done], 1))[:, 0] for c in critics]

    def imitation(self, seen, done):
        out = self.actor(seen)
        if self.kind == "categorical":
            return nn.functional.cross_entropy(out, done, reduction="none")
        if self.kind == "deterministic":
            return ((out - done) ** 2).sum(1)
        normal = torch.distributions.Normal(out, self.log_std.clamp(-5, 2).exp())
        return -normal.log_prob(done).sum(1)

    def update(self, batch):
        seen, done, reward, after, over = (part[0] for part in batch[:5])
        with torch.no_grad():
            following = self.value(after)[:, 0]
            q = torch.minimum(*self.taken(self.slow, seen, done))
        advantage = q - self.value(seen)[:, 0]
        weight = torch.abs(0.7 - (advantage < 0).double())
        value_loss = (weight * advantage**2).mean()
        self.step(self.value_adam, value_loss)
        target = reward + (1 - over) * 0.99 * following
        found = self.taken(self.critics, seen, done)
        critic_loss = sum(nn.functional.mse_loss(each, target) for each in found) / 2
        self.step(self.critic_adam, critic_loss)
        with torch.no_grad():
            for slow, fast in zip(self.slow, self.critics, strict=True):
                for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    old.copy_(0.995 * old + 0.005 * new)
        weights = (3 * advantage.detach()).exp().clamp(max=100)
        actor_loss = (weights * self.imitation(seen, done)).mean()
        self.step(self.actor_adam, actor_loss)
        self.schedule.step()
        return {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}

    @staticmethod
    def step(adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()


@pytest.mark.parametrize("kind", PLAIN)
def test_twenty_updates_are_those_of_a_straightforward_implementation(kind):
    agent = made(kind)
    reference = Reference(kind, agent, total=30)
    step, draw = torch.zeros((), dtype=torch.int64), draws(kind, agent)
    for _ in range(20):
        noise, batch = draw()
        told = agent.update(batch, noise, step)
        for name, loss in reference.update(batch).items():
            assert told[name].item() == pytest.approx(loss.item(), rel=1e-9)
    assert_modules(agent.value, [reference.value], 1e-10)
    assert_modules(agent.critic, reference.critics, 1e-10)
    assert_modules(agent.critic_target, reference.slow, 1e-10)
    assert_modules(agent.actor, [reference.actor], 1e-10)
    if kind in ("gaussian", "unsquashed"):
        found = agent.actor.tensors()["log_std"][0]
        assert torch.allclose(found, reference.log_std, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_of_sixteen_is_the_same_seed_alone(kind):
    config = replace(KINDS[kind], schedule_steps=1000)
    check_alone("iql", config, log_for(kind), 1000 if kind == "gaussian" else 100)


def test_five_expectiles_at_once_are_each_alone():
    check_vectors("iql", SMALL, random_log(), count=100, expectile=(0.5, 0.6, 0.7, 0.8, 0.9))


def test_other_settings_may_differ_between_replicas():
    spread = dict(
        temperature=(0.0, 3.0),
        weight_cap=(1.0, 100.0),
        discount=(0.9, 0.99),
        polyak=(0.005, 0.1),
        value_learning_rate=(1e-3, 3e-3),
        actor_learning_rate=(1e-3, 1e-4),
    )
    check_vectors("iql", SMALL, random_log(), count=40, **spread)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_can_be_captured(kind):
    check_captured("iql", KINDS[kind], log_for(kind))


@pytest.mark.parametrize("kind", ["gaussian", "dropout"])
def test_the_state_holds_everything(kind):
    check_resumed("iql", KINDS[kind], log_for(kind))


def test_a_time_out_bootstraps_and_a_terminal_does_not():
    log = random_log(60, seed=1)
    rows = torch.tensor(log.ends)[None]
    batch = Transitions(log, torch.float64).batch(rows)
    agent, over = made("gaussian"), batch.terminated.bool()
    final = agent.value_net(agent.value, batch.next_observation).detach()
    q = taken_by_hand("gaussian", agent.critic, batch)
    for part, bootstrap in ((over[0], 0.0), (~over[0], 1.0)):
        some = batch._replace(**{n: getattr(batch, n)[:, part] for n in batch._fields[:5]})
        target = (some.reward + bootstrap * 0.99 * final[:, part])[0].numpy()
        by_hand = ((q[:, part.numpy()] - target) ** 2).mean()
        assert critic_loss(agent, some).item() == pytest.approx(by_hand, rel=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_an_expectile_minimises_its_loss_and_grows_with_its_level(values, level):
    points = torch.tensor(values, dtype=torch.float64)

    def minimiser(at):
        grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)
        return grid[expectile(points - grid[:, None], at).argmin()].item()

    best = minimiser(level)
    above, below = (points - best).clamp(min=0).sum(), (best - points).clamp(min=0).sum()
    tolerance = 0.0026 * len(values)  # half a step of the grid on either side
    assert abs(level * above - (1 - level) * below) <= tolerance
    assert minimiser(min(0.99, level + 0.2)) >= best
    assert minimiser(0.5) == pytest.approx(points.mean().item(), abs=0.0026)


def chain(states=5):
    """Left pays a little at once and leads away; only the far right end pays well."""
    transition, reward = np.zeros((states, 2, states)), np.zeros((states, 2))
    for state in range(states):
        transition[state, 0, max(state - 1, 0)] = 1
        transition[state, 1, min(state + 1, states - 1)] = 1
    reward[:, 0] = 0.1
    reward[states - 1, 1] = 1
    return TabularMDP.from_dense(np.eye(states)[0], transition, reward, 0.9, "chain")


def test_on_a_covered_chain_the_greedy_policy_is_that_of_value_iteration():
    mdp = chain()
    uniform = TabularPolicy(np.full((5, 2), 0.5))
    log = collect(uniform, mdp, episodes=100, longest=20, seed=0)
    assert len(np.unique(np.c_[log.arrays().observations, log.arrays().actions], axis=0)) == 10
    rates = dict.fromkeys(RATES, 3e-3)
    config = Config(
        expectile=0.99,
        discount=0.9,
        hidden=(32,),
        polyak=0.05,
        temperature=10.0,
        schedule_steps=0,
        normalise=False,
        **rates,
    )
    agent = make_agent("iql", agent_spec(log), config, range(3))
    run(agent, log, 1500, batch_size=64)
    best = value_iteration(mdp)
    assert best.actions.tolist() == [1] * 5
    seen = torch.eye(5).expand(3, -1, -1)
    q = agent.critic_net(agent.critic, seen).amin(1).detach().numpy()
    assert (q.argmax(-1) == best.actions).all()
    assert np.abs(q / best.action_values - 1).max() < 0.1
    assert (agent.act(seen).numpy() == best.actions).all()


def test_the_behaviours_own_value_is_the_expectile_one_half():
    mdp = chain()
    uniform = TabularPolicy(np.full((5, 2), 0.5))
    log = collect(uniform, mdp, episodes=200, longest=20, seed=0)
    rates = dict.fromkeys(RATES, 3e-3)
    config = replace(SMALL, expectile=0.5, discount=0.9, hidden=(32,), polyak=0.05, **rates)
    agent = make_agent("iql", agent_spec(log), config, range(3))
    run(agent, log, 1000, batch_size=64)
    value = agent.value_net(agent.value, torch.eye(5).expand(3, -1, -1)).detach().numpy()
    assert np.abs(value / evaluate(mdp, uniform.table) - 1).max() < 0.15


@pytest.mark.parametrize("policy", ["gaussian", "deterministic"])
def test_it_improves_on_a_mixed_log_and_on_imitation(policy):
    mixed = cart_log((0.02, 0.05, 0.2, 1.0), 40)
    log, statistics = prepare(Config(), mixed)
    config = Config(
        policy=policy,
        hidden=(32, 32),
        discount=0.95,
        expectile=0.8,
        polyak=0.05,
        schedule_steps=0,
        **dict.fromkeys(RATES, 3e-3),
    )
    agent = make_agent("iql", agent_spec(log), config, range(5))
    run(agent, log, 1000, batch_size=64)
    scores = cart_scores(agent, statistics)
    clone_config = bc.Config(policy=policy, hidden=(32, 32), learning_rate=3e-3)
    clone = make_agent("bc", agent_spec(log), clone_config, range(5))
    run(clone, log, 600, batch_size=64)
    assert bootstrap_interval(scores).low > mixed.returns().mean()
    assert bootstrap_interval(scores - cart_scores(clone, statistics)).low > 0


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(InputError, match="below log_std_high"):
        make_agent("iql", agent_spec(random_log()), replace(SMALL, log_std_low=3.0))


def test_settings_out_of_range_are_refused_by_name():
    for name, value in (("expectile", 1.0), ("temperature", -1.0), ("policy", "normal")):
        with pytest.raises(InputError, match=name):
            make_agent("iql", agent_spec(random_log()), replace(SMALL, **{name: value}))


def test_observations_are_normalised_unless_it_is_switched_off():
    assert len(prepare(Config(), random_log()).statistics.observation_mean) == 3
    assert prepare(Config(normalise=False), random_log()).statistics.observation_mean is None


@pytest.mark.parametrize("kind", PLAIN)
def test_a_saved_policy_acts_as_the_agent_does(kind, tmp_path):
    agent = made(kind, seeds=(0, 1))
    seen = torch.randn(2, 7, 3, dtype=torch.float64)
    save_policy(tmp_path, agent.policy(1))
    policy = load_policy(tmp_path)
    assert np.allclose(policy.act(seen[1].numpy()), agent.act(seen)[1].numpy())


def test_a_deterministic_actor_takes_no_notice_of_noise():
    agent, seen = made("deterministic"), torch.randn(1, 9, 3, dtype=torch.float64)
    assert torch.equal(agent.act(seen, torch.randn(1, 9, 2).double()), agent.act(seen))
    sampling = made("gaussian")
    assert (sampling.act(seen, torch.randn(1, 9, 2).double()) != sampling.act(seen)).any()
