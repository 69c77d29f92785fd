"""Cal-QL: what the bound does, its fixed point, a plain version, and what it is good for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.agents import cal_ql, cql, sac
from offrl_wb.agents.cal_ql import Config, make, prepare
from offrl_wb.core.errors import InputError
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.views import add_monte_carlo_returns
from offrl_wb.nets.losses import cal_ql_bound, cal_ql_discrete, cql_regulariser
from offrl_wb.train.agent import AgentSpec, copy_state, make_agent
from offrl_wb.train.loop import rehearse
from offrl_wb.train.replay import OnlineBuffer, Transitions
from offrl_wb.train.settings import settings_of
from tests.cql_reference import (
    CORRIDOR,
    DISCOUNT,
    ReferenceCQL,
    corridor_log,
    distance,
    largest_difference,
    learn,
    random_batch,
    study,
)

BOX = AgentSpec(3, 2, low=(-1.0, -1.0), high=(1.0, 1.0))
SMALL = Config(
    actor_hidden=(8, 7), critic_hidden=(9, 8), samples=3, backup_actions=2, log_std="head"
)
ENSEMBLE = replace(
    SMALL, critics=4, subset=2, actor_layer_norm=True, critic_layer_norm=True, updates=2,
    parametrisation="softplus", lagrange=True, weight=1.0, gap=0.8, last_scale=0.0,
)  # fmt: skip
VARIANTS = {"paper": SMALL, "wsrl": ENSEMBLE, "joined": replace(SMALL, importance=False)}


# Reductions


def learned(agent, returns):
    """The state after five updates whose batches have `returns` everywhere, None: none."""
    from offrl_wb.train.noise import NoiseAhead

    noise = NoiseAhead(agent.noise(8), agent.seeds, 8, agent.dtype)
    for number in range(5):
        batch = random_batch(agent, 8, number, agent.dtype)
        told = None if returns is None else torch.full_like(batch.reward, returns)
        agent.update(batch._replace(mc_return=told), noise.next(), torch.tensor(number))
    return agent.state()


def test_returns_of_minus_infinity_make_it_cql():
    plain = cql.Config(**{r.name: getattr(SMALL, r.name) for r in settings_of(cql.Config)})
    ours = learned(make(BOX, SMALL, [3], torch.float64), -torch.inf)
    theirs = learned(cql.make(BOX, plain, [3], torch.float64), None)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_high_returns_make_a_difference():
    one, other = (learned(make(BOX, SMALL, [3], torch.float64), r) for r in (-torch.inf, 5.0))
    assert not torch.equal(one["critic/weights"], other["critic/weights"])


@given(st.floats(-3, 3), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_bounded_samples_get_no_gradient_and_uniform_ones_always_do(reference, seed):
    agent = make(BOX, SMALL, [0], torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 2, 5, 9, generator=generator, dtype=torch.float64).requires_grad_()
    returns = torch.full((1, 5), reference, dtype=torch.float64)
    batch = random_batch(agent, 5, 0)._replace(mc_return=returns)
    bounded = agent.calibrated(q, batch)
    assert torch.equal(bounded[..., :3], q[..., :3])
    assert (bounded[..., 3:] >= reference).all()
    density = torch.zeros(1, 5, 9, dtype=torch.float64)
    term = cql_regulariser(bounded, density, torch.zeros(1, 2, 5, dtype=torch.float64))
    (slope,) = torch.autograd.grad(term.sum(), q)
    below = q[..., 3:] < reference
    assert (slope[..., 3:][below] == 0).all()
    assert (slope[..., 3:][~below] > 0).all()
    assert (slope[..., :3] > 0).all()


def test_the_bound_comes_before_densities_are_divided_out():
    q = torch.tensor([[[[-5.0]]]])
    bounded = cal_ql_bound(q, torch.tensor([[1.0]]), torch.tensor([True]))
    term = cql_regulariser(bounded, torch.tensor([[[-2.0]]]), torch.tensor([[[0.0]]]))
    assert term.item() == pytest.approx(1.0 + 2.0)


# The fixed point


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=5),
    st.floats(-2, 2),
    st.floats(0, 8),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_the_minimiser_of_one_state_is_the_formula(targets, reference, weight, seed):
    """(Q - y)^2 / 2 and the expectation form: max(V, y - w pi) where y >= V, y itself elsewhere."""
    y = torch.tensor(targets, dtype=torch.float64)
    policy = torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(len(targets))))
    formula = torch.where(y < reference, y, (y - weight * policy).clamp(min=reference))
    formula[0] = minimum_on_a_line(y[0], policy[0], reference, weight)
    best = objective(formula, y, policy, reference, weight)
    for action in range(len(y)):
        for change in (-0.3, -1e-3, 1e-3, 0.3):
            moved = formula.clone()
            moved[action] += change
            assert objective(moved, y, policy, reference, weight) >= best - 1e-12
    assert (formula[1:] >= y[1:].clamp(max=reference) - 1e-12).all()


def minimum_on_a_line(target, share, reference, weight):
    """The logged action's value: pulled up by `weight`, pushed while above the reference."""
    candidates = torch.stack(
        [target + weight, target + weight * (1 - share), torch.tensor(reference).double()]
    )
    cost = 0.5 * (candidates - target) ** 2
    cost = cost + weight * (share * candidates.clamp(min=reference) - candidates)
    return candidates[cost.argmin()]


def objective(q, y, policy, reference, weight):
    """The loss of one state; the first action is the logged one."""
    wide = dict(probabilities=policy.view(1, 1, -1), returns=torch.tensor([[reference]]).double())
    term = cal_ql_discrete(q.view(1, 1, 1, -1), action=torch.tensor([[0]]), **wide)
    return (0.5 * (q - y).square().sum() + weight * term.sum()).item()


# Against a plain version, and replicas


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_updates_are_those_of_a_plain_version(name):
    config = VARIANTS[name]
    agent = make(BOX, config, [4, 5], torch.float64)
    references = [
        ReferenceCQL(agent, r, config.actor_layer_norm, calibrated=True) for r in range(2)
    ]
    learn(agent, 20, 12, references=references)
    for replica, reference in enumerate(references):
        assert largest_difference(agent, reference, replica) < 1e-10


def test_a_replica_in_a_batch_of_sixteen_is_the_same_seed_alone():
    config = Config(actor_hidden=(4,), critic_hidden=(4,), samples=1, backup_actions=2, updates=4)
    for dtype, count, bound in ((torch.float64, 250, 1e-9), (torch.float32, 25, 1e-5)):
        many, alone = (make(BOX, config, seeds, dtype) for seeds in (range(16), [7]))
        learn(many, count, 4)
        learn(alone, count, 4, first=7)
        assert distance(many, alone, 7) < bound


# What it is good for


def test_its_values_do_not_fall_below_what_the_log_earned():
    """One log, four seeds: CQL's values of its own actions lie below the log's returns."""
    sizes = dict(
        actor_hidden=(32, 32), critic_hidden=(32, 32), samples=3, discount=DISCOUNT, weight=5.0,
        backup_actions=1, actor_learning_rate=1e-3, critic_learning_rate=3e-3, polyak=0.02,
    )  # fmt: skip
    log, found = corridor_log(), {}
    for kind in (cql, cal_ql):
        agent = kind.make(CORRIDOR, kind.Config(**sizes), range(4))
        study(agent, log, 400, rows=32)
        seen = log.observation.expand(4, -1, -1)
        with torch.no_grad():
            values = agent.critic_net(agent.critic_fixed, seen, agent.act(seen)).mean(1)
        short = (values - log.mc_return).mean(1).numpy()
        found[kind] = bootstrap_interval(short, generator=np.random.default_rng(0))
        print(kind.__name__, found[kind])
    assert found[cql].high < found[cal_ql].low
    assert found[cql].high < -1


# Returns


def test_a_log_without_returns_gets_them_and_one_with_them_keeps_them():
    flags = np.array([0, 0, 1, 0, 0, 1], bool)
    log = Dataset.from_arrays(
        np.zeros((6, 1)), np.zeros((6, 1)), [-5.0, -5, 0, -5, -5, -5], flags & False, flags,
        final_observations=np.zeros((2, 1)),
    )  # fmt: skip
    plain = prepare(Config(), log).dataset.transitions["mc_return"].to_numpy()
    assert np.allclose(plain[3:], [-5 * (1 + 0.99 + 0.99**2), -5 * 1.99, -5])
    sparse = prepare(Config(failure_reward=-5.0), log).dataset.transitions["mc_return"]
    assert np.allclose(sparse.to_numpy()[3:], -500)
    assert np.allclose(sparse.to_numpy()[:3], [-5 - 4.95, -5, 0])
    own = add_monte_carlo_returns(log, 0.5)
    kept = prepare(Config(), own).dataset.transitions["mc_return"]
    assert kept.equals(own.transitions["mc_return"])
    with pytest.raises(InputError, match="the log's returns have one discount"):
        prepare(Config(discount=(0.9, 0.99)), log)
    assert prepare(Config(discount=(0.9, 0.9)), log).dataset.transitions["mc_return"][4] == -9.5


def test_the_online_buffer_brings_returns_of_ended_episodes():
    agent = make(BOX, SMALL, [0, 1])
    buffer = OnlineBuffer(2, 3, 2, discount=0.99, failure_reward=-5.0)
    for step in range(5):
        seen, done = np.zeros((2, 3)), np.zeros((2, 2))
        ended = np.full(2, step == 4)
        buffer.add(seen, done, np.full(2, -5.0), seen, ended & False, ended)
    batch = buffer.sample(torch.rand(2, 6, dtype=torch.float64))
    assert torch.allclose(batch.mc_return, torch.tensor(-500.0))
    from offrl_wb.train.noise import NoiseAhead

    noise = NoiseAhead(agent.noise(6), agent.seeds, 2).next()
    assert torch.isfinite(agent.update(batch, noise, torch.tensor(0))["critic_loss"]).all()


def test_without_returns_it_says_what_to_do():
    agent = make(BOX, SMALL, [0])
    log = Dataset.from_arrays(
        np.zeros((4, 3)), np.zeros((4, 2)), np.zeros(4), np.arange(4) == 3,
        final_observations=np.zeros((1, 3)),
    )  # fmt: skip
    space = type(log.spec.action_space)(-1, 1, (2,))
    log = log.derive("example", {}, spec=replace(log.spec, action_space=space))
    batch = Transitions(log).batch(torch.arange(4)[None])
    from offrl_wb.train.noise import NoiseAhead

    with pytest.raises(InputError, match="give the dataset a column mc_return"):
        agent.update(batch, NoiseAhead(agent.noise(4), [0]).next(), torch.tensor(0))


# As an agent among others


def test_it_hands_over_everything_but_the_multiplier():
    ours = make(BOX, ENSEMBLE, [0, 1])
    shared = dict(critics=4, subset=2, actor_layer_norm=True, critic_layer_norm=True)
    heir = sac.make(BOX, sac.Config(actor_hidden=(8, 7), critic_hidden=(9, 8), **shared), [0, 1])
    learn(ours, 3, 6)
    handed = copy_state(ours, heir)
    assert {name.split("/")[0] for name in handed.left} == {"multiplier"}
    assert handed.fresh == ()
    for name in ("critic_target/weights", "temperature/weights", "actor/adam/square"):
        assert torch.equal(heir.state()[name], ours.state()[name])
        assert heir.state()[name].abs().sum() > 0


def test_it_is_found_by_name_and_is_for_boxes():
    agent = make_agent("cal_ql", BOX, SMALL, [0, 1])
    assert agent.policy(1).about["agent"] == "cal_ql"
    with pytest.raises(InputError, match="use cql"):
        make_agent("cal_ql", AgentSpec(3, 4, discrete=True))
    names = [rule.name for rule in settings_of(Config)]
    assert len(set(names)) == len(names)
    assert set(names) == {rule.name for rule in settings_of(cql.Config)} | {"failure_reward"}


def test_nothing_is_asked_of_the_host():
    for config in VARIANTS.values():
        rehearse(lambda device, c=config: make(BOX, c, [0, 1], torch.float32, device), 12)
