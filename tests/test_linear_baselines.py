"""PEVI, LSVI-UCB cold and warm, uniform exploration: against closed forms and against planning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.theory.linear_baselines import (
    greedy_loss,
    lsvi_ucb,
    mixture_loss,
    paper_bonus,
    pevi,
    shifted_values,
    uniform_exploration,
)
from offrl_wb.theory.policy_sets import greedy_policies, uniform_policy
from offrl_wb.worlds.layered import draw_counts
from offrl_wb.worlds.linear import (
    LinearMDP,
    Moments,
    bandit_world,
    draw_log,
    empty_moments,
    moments_from_counts,
    optimal_value,
    policy_values,
    random_world,
    simplex_world,
    two_room,
    two_room_visits,
)
from offrl_wb.worlds.tabular import plan_horizon


def uniform_log(world: LinearMDP, episodes: int, seed: int = 0) -> Moments:
    """Moments of random episodes."""
    log = draw_counts(world.tabular, uniform_policy(world), episodes, stream(seed, "test log"))
    return moments_from_counts(world, *log)


def room_log(epsilon: float, seed: int = 0) -> Moments:
    """A log of L in the two rooms."""
    world = two_room(epsilon)
    visits = two_room_visits(world, round(120 / epsilon**2))
    return moments_from_counts(world, *draw_log(world, visits, stream(seed, "test rooms")))


@given(st.integers(0, 1000), st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_without_a_shift_it_is_the_plug_in_planner(seed: int, episodes: int) -> None:
    world = simplex_world(states=6, actions=2, dimension=4, horizon=3, seed=seed % 20)
    log = uniform_log(world, episodes, seed)
    plan = shifted_values(world.phi, log, 0.0, 1e-6)
    assert np.array_equal(plan.actions, greedy_policies(world, log, 1e-6))


@given(st.integers(0, 1000), st.integers(0, 200), st.floats(0.01, 3))
@settings(max_examples=25, deadline=None)
def test_values_rise_with_the_shift_and_stay_possible(
    seed: int, episodes: int, shift: float
) -> None:
    world = random_world(states=4, actions=2, horizon=3, seed=seed % 20)
    log = uniform_log(world, episodes, seed)
    low, middle, high = (shifted_values(world.phi, log, x).values for x in (-shift, 0.0, shift))
    assert (low <= middle + 1e-12).all()
    assert (middle <= high + 1e-12).all()
    assert (low >= 0).all()
    assert (high <= 3 - np.arange(3)[:, None]).all()


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_on_true_means_it_plans(shift: float) -> None:
    world = simplex_world(seed=4)
    visits = np.full(world.reward.shape, 1e9)
    means = moments_from_counts(world, visits[..., None] * world.transition, visits * world.reward)
    plan = shifted_values(world.phi, means, shift)
    truth = plan_horizon(world.tabular).values
    assert plan.values == pytest.approx(truth, abs=1e-3)
    table = np.einsum("sad,hd->hsa", world.phi, plan.weights)
    assert table.max(axis=-1) == pytest.approx(truth, abs=1e-3)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=6), st.floats(0, 2), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_for_one_state_pessimism_is_lcb(counts: list[int], bonus: float, seed: int) -> None:
    pulls = np.array(counts)
    sums = stream(seed, "sums").binomial(pulls, 0.5).astype(float)
    world = bandit_world(np.full(len(pulls), 0.5))
    log = moments_from_counts(world, pulls.reshape(1, 1, -1, 1), sums.reshape(1, 1, -1))
    plan = pevi(world.phi, log, bonus)
    bounds = np.maximum(sums / (pulls + 1) - bonus / np.sqrt(pulls + 1), 0)
    assert plan.values.item() == pytest.approx(bounds.max(), abs=1e-9)
    assert bounds[plan.actions.item()] == pytest.approx(bounds.max(), abs=1e-9)


def test_a_pessimistic_promise_is_kept_and_the_theorems_promises_nothing() -> None:
    broken = {0.0: 0, 1.0: 0}
    for seed in range(100):
        world = random_world(states=5, actions=2, horizon=2, seed=seed)
        log = uniform_log(world, 100, seed)
        for bonus in broken:
            plan = pevi(world.phi, log, bonus)
            earned = policy_values(world, plan.actions[None])[0]
            broken[bonus] += plan.values[0] @ world.initial > earned
        assert pevi(world.phi, log, paper_bonus(10, 2, 100)).values.max() == 0
    assert broken[1.0] == 0
    assert broken[0.0] > 10


def test_the_log_alone_is_not_enough_in_the_two_rooms() -> None:
    for epsilon in (0.1, 0.05, 0.025):
        world = two_room(epsilon)
        lost = optimal_value(world) - policy_values(
            world, pevi(world.phi, room_log(epsilon)).actions[None]
        )
        assert lost[0] == pytest.approx(2 * epsilon)


def test_an_empty_log_changes_nothing_and_a_full_one_makes_it_optimal_at_once() -> None:
    world = random_world(states=5, actions=2, horizon=2, seed=3)
    cold = lsvi_ucb(world, 200, seed=2)
    again = lsvi_ucb(world, 200, log=empty_moments(world), seed=2)
    assert np.array_equal(cold.played, again.played)
    assert np.array_equal(cold.greedy, again.greedy)
    visits = np.full(world.reward.shape, 100_000)
    full = moments_from_counts(world, *draw_log(world, visits, stream(0, "full")))
    assert mixture_loss(world, lsvi_ucb(world, 50, log=full))[-1] == pytest.approx(0, abs=1e-12)
    assert greedy_loss(world, uniform_exploration(world, 50, full), np.array([0, 50])).max() < 1e-12


def test_blocks_add_up_and_every_episode_can_have_its_own_policy() -> None:
    world = random_world(seed=1)
    for run in (lsvi_ucb(world, 333), uniform_exploration(world, 333)):
        assert run.lengths.sum() == run.data.counts[0] == 333
        assert len(run.greedy) == len(run.lengths) + 1 == len(run.played) + 1
    assert (lsvi_ucb(world, 40, growth=0.0).lengths == 1).all()


def test_optimism_gets_to_the_best_and_learns_faster_with_a_log() -> None:
    world, log = two_room(0.05), room_log(0.05)
    grid = np.array([0, 50, 2000, 20_000])
    cold, warm, chance = (
        np.mean([greedy_loss(world, run(seed), grid) for seed in range(6)], axis=0)
        for run in (
            lambda s: lsvi_ucb(world, 20_000, seed=s),
            lambda s: lsvi_ucb(world, 20_000, log=log, seed=s),
            lambda s: uniform_exploration(world, 20_000, log=log, seed=s),
        )
    )
    assert warm[2] == warm[3] == chance[3] == 0
    assert cold[1] > warm[1]
    assert cold[3] < 0.05
    simplex = simplex_world(states=8, actions=3, dimension=4, horizon=3, seed=1)
    run = lsvi_ucb(simplex, 20_000, seed=1)
    assert greedy_loss(simplex, run, np.array([20_000]))[0] < 0.01
    lost = mixture_loss(simplex, run)
    assert lost[-1] < 0.2 * lost[10]


@pytest.mark.parametrize(
    "change", [dict(bonus=-1.0), dict(bonus=np.nan), dict(ridge=0.0), dict(episodes=0)]
)
def test_senseless_numbers_are_refused(change: dict) -> None:
    given = dict(world=random_world(), episodes=10) | change
    with pytest.raises(InputError):
        lsvi_ucb(**given)
    if "bonus" in change:
        with pytest.raises(InputError, match="bonus"):
            pevi(random_world().phi, empty_moments(random_world()), change["bonus"])
    with pytest.raises(InputError, match="make them for this world"):
        uniform_exploration(random_world(), 10, empty_moments(two_room(0.1)))
