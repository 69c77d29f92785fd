"""RIQL: its losses, its limit case, its promises, and what is looked at."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis
from torch import nn

from offrl_wb.agents import iql, riql
from offrl_wb.agents.riql import (
    Config,
    Trained,
    actor_loss,
    clipped_target,
    critic_loss,
    excess_kurtosis,
    make_cases,
    prepare,
    task_config,
    train_cases,
    value_loss,
)
from offrl_wb.core.errors import InputError
from offrl_wb.core.records import committed_records
from offrl_wb.data.corruption import corrupt
from offrl_wb.data.views import normalise
from offrl_wb.data.world_logs import mass_spring_log
from offrl_wb.nets.losses import expectile, huber, huber_delta
from offrl_wb.train.acting import EnvironmentPolicy, saved_policy_of
from offrl_wb.train.agent import AgentSpec, agent_spec, make_agent
from offrl_wb.train.evaluation import evaluate
from offrl_wb.train.loop import noise_for
from offrl_wb.train.replay import Batch, Transitions
from tests.agent_checks import (
    assert_modules,
    check_alone,
    check_captured,
    check_resumed,
    check_vectors,
    dense,
    modules_of,
    random_log,
)

RATES = dict(actor_learning_rate=1e-3, critic_learning_rate=1e-3, value_learning_rate=1e-3)
SMALL = Config(hidden=(8, 8), schedule_steps=30, **RATES)
LOG = random_log()


def made(config=SMALL, seeds=(0,), dtype=torch.float64):
    return make_agent("riql", agent_spec(LOG), config, seeds, dtype=dtype)


def a_batch(agent, size=6):
    return Transitions(LOG, agent.dtype).sample(noise_for(agent, size).next()["rows"])


def test_the_losses_are_those_of_numpy():
    agent = made(replace(SMALL, huber_delta=0.3, quantile=0.1, target_low=-0.4, target_high=0.5))
    batch = a_batch(agent, 40)
    seen, done = batch.observation[0].numpy(), batch.action[0].numpy()
    pairs = np.concatenate([seen, done], 1)
    (value,) = modules_of(agent.value)
    here, there = (
        dense(value, x[0].numpy())[:, 0] for x in (batch.observation, batch.next_observation)
    )
    slow = [dense(critic, pairs)[:, 0] for critic in modules_of(agent.critic_target)]
    advantage = np.quantile(slow, 0.1, axis=0) - here
    loss, found = value_loss(agent, batch)
    assert np.allclose(found[0].numpy(), advantage, rtol=1e-10)
    by_hand = (np.where(advantage > 0, 0.7, 0.3) * advantage**2).mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)
    target = batch.reward[0].numpy() + 0.99 * (1 - batch.terminated[0].numpy()) * there
    assert target.max() > 0.5
    assert target.min() < -0.4
    target = target.clip(-0.4, 0.5)
    assert np.allclose(clipped_target(agent, batch)[0].numpy(), target)
    error = np.abs(target - np.stack([dense(c, pairs)[:, 0] for c in modules_of(agent.critic)]))
    by_hand = np.where(error < 0.3, error**2 / 0.6, error - 0.15).mean()
    assert critic_loss(agent, batch).item() == pytest.approx(by_hand, rel=1e-10)
    chosen = np.tanh(dense(modules_of(agent.actor)[0], seen))
    by_hand = (np.minimum(np.exp(3 * advantage), 100) * ((chosen - done) ** 2).sum(1)).mean()
    assert actor_loss(agent, batch, found).item() == pytest.approx(by_hand, rel=1e-10)


def test_the_defaults_are_those_of_the_public_code():
    config = Config()
    assert (config.huber_delta, config.quantile, config.critics) == (1.0, 0.25, 5)
    assert (config.target_low, config.target_high) == (-100, 1000)
    assert (config.expectile, config.temperature, config.weight_cap) == (0.7, 3.0, 100)
    assert (config.discount, config.polyak, config.schedule_steps) == (0.99, 0.005, 3_000_000)
    parts = ("actor", "critic", "value")
    assert [getattr(config, f"{part}_learning_rate") for part in parts] == [3e-4] * 3
    assert (config.hidden, config.normalise) == ((256, 256), True)
    assert (config.critic_initialisation, config.initialisation) == ("edac", "torch")


class Reference:
    """One replica by modules and torch.optim, the steps one after another."""

    def __init__(self, agent, delta, low, high, total):
        self.delta, self.low, self.high = delta, low, high
        self.critics, self.slow = modules_of(agent.critic), modules_of(agent.critic_target)
        (self.value,), (self.actor,) = (
            modules_of(agent.value), modules_of(agent.actor, last=[nn.Tanh()])
        )  # fmt: skip
        numbers = (p for critic in self.critics for p in critic.parameters())
        self.critic_adam = torch.optim.Adam(numbers, lr=1e-3)
        self.value_adam = torch.optim.Adam(self.value.parameters(), lr=1e-3)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-3)
        self.falling = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, total)

    def update(self, batch):
        seen, done, reward, after, over = (part[0] for part in batch[:5])
        pairs = torch.cat([seen, done], 1)
        with torch.no_grad():
            target = reward + 0.99 * (1 - over) * self.value(after)[:, 0]
            target = target.clamp(self.low, self.high)
            slow = torch.cat([each(pairs) for each in self.slow], 1)
        advantage = torch.quantile(slow, 0.25, dim=1) - self.value(seen)[:, 0]
        value_loss = (torch.where(advantage < 0, 0.3, 0.7) * advantage**2).mean()
        self.step(self.value_adam, value_loss)
        losses = [
            nn.functional.huber_loss(critic(pairs)[:, 0], target, delta=self.delta) / self.delta
            for critic in self.critics
        ]
        self.step(self.critic_adam, sum(losses) / len(losses))
        with torch.no_grad():
            for old, new in zip(self.slow, self.critics, strict=True):
                for left, right in zip(old.parameters(), new.parameters(), strict=True):
                    left.lerp_(right, 0.02)
        weight = (3 * advantage.detach()).exp().clamp(max=100)
        self.step(self.actor_adam, (weight * ((self.actor(seen) - done) ** 2).sum(1)).mean())
        self.falling.step()

    @staticmethod
    def step(adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()


def test_twenty_updates_are_those_of_a_straightforward_implementation():
    bounds = dict(target_low=-0.6, target_high=0.5)
    config = replace(SMALL, huber_delta=0.3, polyak=0.02, critic_initialisation="torch", **bounds)
    agent = made(config)
    reference = Reference(agent, 0.3, -0.6, 0.5, total=SMALL.schedule_steps)
    before = deepcopy(reference.slow)
    source, noise = Transitions(LOG, agent.dtype), noise_for(agent, 6)
    step = torch.zeros((), dtype=torch.int64)
    for _ in range(20):
        drawn = noise.next()
        batch = source.sample(drawn["rows"])
        agent.update(batch, drawn, step)
        reference.update(batch)
    assert_modules(agent.value, [reference.value], 1e-8)
    assert_modules(agent.critic, reference.critics, 1e-8)
    assert_modules(agent.critic_target, reference.slow, 1e-8)
    assert_modules(agent.actor, [reference.actor], 1e-8)
    with pytest.raises(AssertionError):
        assert_modules(agent.critic_target, before, 1e-6)


def test_without_its_additions_an_update_is_that_of_iql():
    """Whole updates, with plain gradient descent in Adam's place."""
    bare = replace(SMALL, critics=2, quantile=0.0, huber_delta=1e9, polyak=0.02)
    ours = made(replace(bare, target_low=-1e30, target_high=1e30, normalise=False))
    settings = dict(hidden=(8, 8), schedule_steps=30, normalise=False, polyak=0.02, **RATES)
    plain = make_agent(
        "iql", agent_spec(LOG), iql.Config(policy="deterministic", **settings), (0,), "cpu",
        torch.float64,
    )  # fmt: skip
    for name in ("actor", "critic", "critic_target", "value"):
        getattr(ours, name).flat.data.copy_(getattr(plain, name).flat)

    class Descent:
        def __init__(self, weights, scale=1.0):
            self.weights, self.scale = weights, scale

        def step(self, gradient):
            self.gradient = self.scale * gradient
            self.weights.flat.data.sub_(0.1 * self.gradient)

    steps = {}
    for agent, scale in ((ours, 2e9), (plain, 1.0)):
        scales = {"critic": scale, "value": 1.0, "actor": 1.0}
        steps[agent] = {n: Descent(getattr(agent, n), k) for n, k in scales.items()}
        agent.adams = tuple(steps[agent][n] for n in ("value", "critic", "actor"))
    batch, step = a_batch(ours, 64), torch.zeros((), dtype=torch.int64)
    before = ours.critic_target.flat.clone()
    for agent in (ours, plain):
        agent.update(batch, {}, step)
    for name in ("critic", "value", "actor"):
        left, right = steps[ours][name].gradient, steps[plain][name].gradient
        assert right.abs().max() > 1e-4
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-12), name
    for name in ("actor", "critic", "critic_target", "value"):
        left, right = (getattr(agent, name).flat for agent in (ours, plain))
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-12), name
    assert (ours.critic_target.flat - before).abs().max() > 1e-6


def test_huber_is_continuous_with_a_bounded_slope_and_has_its_limits():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    for delta in (0.05, 0.7, 2.0):
        near = torch.tensor([[delta - 1e-9], [delta + 1e-9]], dtype=torch.float64)
        assert torch.allclose(huber(near, delta), torch.full((2,), delta / 2).double())
        (slope,) = torch.autograd.grad(huber(x[:, None], delta).sum(), x)
        assert torch.allclose(slope, (x / delta).clamp(-1, 1))
    assert torch.allclose(huber(x[:, None], 1e-9), x.abs(), atol=1e-8)
    assert torch.allclose(1e9 * huber(x[:, None], 1e9), x.square() / 2)


def test_sigma_of_the_public_code_is_turned_into_delta():
    assert huber_delta(3) == pytest.approx(1 / 9)
    config = task_config("walker2d", "random", "rewards", hidden=(8,))
    assert (config.huber_delta, config.quantile, config.critics) == (1 / 9, 0.1, 5)
    assert config.hidden == (8,)
    for wrong in (("ant", "random", "rewards"), ("hopper", "random", "states")):
        with pytest.raises(InputError, match="robots are halfcheetah"):
            task_config(*wrong)


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9])
def test_a_number_that_minimises_the_expectile_loss_on_0_and_1_is_the_level(level):
    points = torch.linspace(0, 1, 1001, dtype=torch.float64)
    losses = expectile(torch.tensor([0.0, 1.0]).double() - points[:, None], level)
    assert points[losses.argmin()].item() == pytest.approx(level, abs=1e-3)


def test_the_actor_goes_to_the_weighted_mean_of_actions_and_weights_are_capped():
    spec = AgentSpec(1, 1, low=(-1.0,), high=(1.0,))
    settings = dict(temperature=1.0, weight_cap=4.0, schedule_steps=0)
    agent = make_agent("riql", spec, replace(SMALL, **settings), (0,))
    one, action = torch.ones(1, 2, 1), torch.tensor([[[-0.5], [0.5]]])
    batch = Batch(one, action, one[..., 0], one, one[..., 0])
    advantage = torch.tensor([[0.0, 9.0]])  # weights 1 and, capped, 4
    for _ in range(800):
        (slope,) = torch.autograd.grad(actor_loss(agent, batch, advantage).sum(), agent.actor.flat)
        agent.actor_adam.step(slope)
    assert agent.act(one[:, :1]).item() == pytest.approx((-0.5 + 4 * 0.5) / 5, abs=0.01)


def test_it_keeps_the_promises_of_every_agent():
    check_alone("riql", replace(SMALL, schedule_steps=1000), LOG, long=1000)
    check_vectors("riql", SMALL, LOG, 60, huber_delta=(0.1, 1.0), quantile=(0.0, 0.25))
    check_captured("riql", SMALL, LOG)
    check_resumed("riql", SMALL, LOG)


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(InputError, match="agent iql"):
        make_agent("riql", agent_spec(random_log(discrete=True, actions=3)), SMALL)
    with pytest.raises(InputError, match="below target_high"):
        made(replace(SMALL, target_low=1.0, target_high=(2.0, 0.5)), (0, 1))


def test_log_and_world_share_one_scale_made_after_corruption():
    log = mass_spring_log(3, "train", 0.3, 0)
    spoiled = corrupt(log, "observations", scale=3.0).dataset
    ready = prepare(Config(), spoiled)
    rows = spoiled.arrays()
    both = np.concatenate([rows.observations, rows.next_observations]).astype(float)
    assert np.allclose(ready.statistics.observation_mean, both.mean(0), atol=1e-5)
    assert np.allclose(ready.statistics.observation_scale, both.std(0) + 1e-3, rtol=1e-5)
    clean = prepare(Config(), log).statistics
    assert not np.allclose(clean.observation_scale, ready.statistics.observation_scale, rtol=0.01)
    agent = make_agent("riql", agent_spec(ready.dataset), SMALL)
    policy = saved_policy_of(agent, 0, ready.statistics)
    inside = torch.as_tensor(ready.dataset.arrays().observations[:20])[None]
    wanted = agent.spec.to_environment(agent.act(inside).numpy())[0]
    assert np.allclose(policy.act(rows.observations[:20]), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def trained() -> Trained:
    log = mass_spring_log(4, "train", 0.3, 0)
    cases = make_cases(log, [None, "dynamics"], [0, 1], rate=0.3, scale=1.0)
    return train_cases(cases, "riql", replace(SMALL, schedule_steps=0), 20, 16)


def test_each_case_is_a_replica_with_its_own_log(trained):
    assert [case.element for case in trained.cases] == [None, None, "dynamics", "dynamics"]
    assert [int(case.spoiled.sum()) > 0 for case in trained.cases] == [False, False, True, True]
    assert trained.agent.seeds == (0, 1, 0, 1)
    assert trained.returns("DMSD-v0", 2).shape == (4,)


def test_a_case_is_judged_on_the_scale_of_its_own_log():
    log = mass_spring_log(4, "train", 0.3, 0)
    cases = make_cases(log, [None, "observations"], [0], rate=0.5, scale=20.0)
    both = train_cases(cases, "riql", replace(SMALL, schedule_steps=0), 3, 16)
    for case, found in zip(cases, both.statistics, strict=True):
        wanted = normalise(case.log).statistics
        assert np.array_equal(found.observation_scale, wanted.observation_scale)
    narrow, wide = (np.array(found.observation_scale) for found in both.statistics)
    assert (wide > 2 * narrow).all()
    returns = both.returns("DMSD-v0", 3)
    agent, observation = both.agent, log.arrays().observations[:20]
    for replica, found in enumerate(both.statistics):
        alone = EnvironmentPolicy(saved_policy_of(agent, replica, found), agent.spec)
        judged = evaluate([alone], "DMSD-v0", [0], 3).returns.mean()
        assert returns[replica] == pytest.approx(judged, rel=1e-6)
        inside = torch.as_tensor(found.apply_observations(observation))[None].expand(2, -1, -1)
        chosen = agent.spec.to_environment(agent.act(inside.float())[replica].numpy())
        policy = saved_policy_of(agent, replica, found)
        assert np.allclose(policy.act(observation), chosen, atol=1e-5)
    other = EnvironmentPolicy(saved_policy_of(agent, 1, both.statistics[0]), agent.spec)
    assert abs(evaluate([other], "DMSD-v0", [0], 3).returns.mean() - returns[1]) > 1e-3


def test_an_arm_s_records_and_the_committed_ones():
    task = riql.arm_tasks()[4] | {"updates": 3, "seeds": 2}
    frame = riql.run_arm(task, 0, episodes=3)
    assert frame.height == 2 * 2 * 3
    assert set(frame["metric"]) == {"return", "mean value", "capped"}
    found = committed_records("riql_networks")
    assert found.height == len(riql.arm_tasks()) * 10 * 2 * 3
    assert set(found["system"]) == set(riql.ARMS)


def test_rows_at_the_cap_are_counted():
    agent = made()
    batch = a_batch(agent, 40)
    _, advantage = value_loss(agent, batch)
    assert riql.capped_share(agent, batch).item() == 0
    agent.weight_cap = (3 * advantage.quantile(0.8, dim=1)).exp()
    assert riql.capped_share(agent, batch).item() == pytest.approx(0.2)


def test_a_reading_is_what_critics_and_value_say(trained):
    rows = np.arange(50)
    found = trained.read(rows)
    batch = trained.source.batch(torch.as_tensor(rows).expand(4, -1))
    agent = trained.agent
    every = agent.critic_net(agent.critic, batch.observation, batch.action)
    assert torch.allclose(found.spread, every.std(1))
    following = agent.value_net(agent.value, batch.next_observation)
    assert torch.allclose(found.target, batch.reward + 0.99 * following, atol=1e-5)
    assert torch.allclose(found.target - found.error, every.sort(1).values[:, 1], atol=1e-5)
    tails = excess_kurtosis(found.error)
    assert np.allclose(tails.numpy(), kurtosis(found.error.detach().numpy(), axis=1), rtol=1e-4)
    assert riql.read(agent, batch).target.requires_grad is False
