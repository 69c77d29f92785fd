"""RIQL: its losses, its limit case, its promises, and what is looked at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

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
from offrl_wb.data.corruption import corrupt
from offrl_wb.data.world_logs import mass_spring_log
from offrl_wb.nets.losses import expectile, huber, huber_delta
from offrl_wb.train.acting import saved_policy_of
from offrl_wb.train.agent import AgentSpec, agent_spec, make_agent
from offrl_wb.train.loop import noise_for
from offrl_wb.train.replay import Batch, Transitions
from tests.agent_checks import (
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


def test_without_its_additions_an_update_is_that_of_iql():
    bare = replace(SMALL, critics=2, quantile=0.0, huber_delta=1e9)
    ours = made(replace(bare, target_low=-1e30, target_high=1e30, normalise=False))
    settings = dict(hidden=(8, 8), schedule_steps=30, normalise=False, **RATES)
    plain = make_agent(
        "iql", agent_spec(LOG), iql.Config(policy="deterministic", **settings), (0,), "cpu",
        torch.float64,
    )  # fmt: skip
    for name in ("actor", "critic", "critic_target", "value"):
        getattr(ours, name).flat.data.copy_(getattr(plain, name).flat)
    batch = a_batch(ours, 64)
    advantage = value_loss(ours, batch)[1]
    theirs = iql.value_loss(plain, batch)[1]
    pairs = {
        "critic": (2e9 * critic_loss(ours, batch), iql.critic_loss(plain, batch)),
        "value": (value_loss(ours, batch)[0], iql.value_loss(plain, batch)[0]),
        "actor": (actor_loss(ours, batch, advantage), iql.actor_loss(plain, batch, theirs, {})),
    }
    for name, losses in pairs.items():
        steps = []
        for agent, loss in zip((ours, plain), losses, strict=True):
            flat = getattr(agent, name).flat
            (slope,) = torch.autograd.grad(loss.sum(), flat)
            steps.append(flat.detach() - 0.1 * slope)  # one SGD step
        assert slope.abs().max() > 1e-4
        assert torch.allclose(*steps, rtol=1e-5, atol=1e-12), name


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
    check_alone("riql", SMALL, LOG, long=300)
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
