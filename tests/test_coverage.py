"""Concentrability and coverability."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.coverage import (
    all_policy_concentrability,
    coverability,
    feature_coverage,
    largest_occupancy,
    leverage,
    logged_concentrability,
    moment_coverage,
    occupancy_ratio,
    pair_cells,
    policies_coverability,
    reaching_probability,
    second_moment,
    single_policy_concentrability,
    smallest_eigenvalue,
)
from offrl_wb.data.dataset import Dataset
from offrl_wb.worlds import tabular
from offrl_wb.worlds.tabular import (
    FiniteHorizonMDP,
    TabularMDP,
    ambiguous_mdp,
    missing_mass_mdp,
    occupancy,
    occupancy_horizon,
    value_iteration,
)
from offrl_wb.worlds.toy_text import toy_text


def random_world(seed: int, discount: float = 0.8) -> TabularMDP:
    generator = np.random.default_rng(seed)
    transition = generator.dirichlet(np.full(4, 0.3), size=(4, 2))
    return TabularMDP.from_dense(
        generator.dirichlet(np.ones(4)), transition, generator.random((4, 2)), discount
    )


def layered(seed: int, states: int = 3, horizon: int = 3) -> FiniteHorizonMDP:
    generator = np.random.default_rng(seed)
    return FiniteHorizonMDP(
        generator.dirichlet(np.ones(states)),
        generator.dirichlet(np.full(states, 0.3), size=(horizon, states, 2)),
        np.zeros((horizon, states, 2)),
    )


EVERY = np.indices((2,) * 4).reshape(4, -1).T
EVERY_LAYERED = np.indices((2,) * 9).reshape(9, -1).T.reshape(-1, 3, 3)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.9])
def test_a_bandits_concentrability_is_one_over_the_share_of_its_best_arm(share):
    behaviour = np.array([[1 - share, share]])
    assert single_policy_concentrability([[0, 1]], behaviour) == pytest.approx(1 / share)


def test_a_contextual_bandits_concentrability_is_its_worst_context():
    contexts = np.array([0.2, 0.3, 0.5])
    behaviour = np.array([[0.1, 0.2], [0.3, 0.1], [0.15, 0.15]])
    occupancies = np.stack([np.zeros(3), contexts], axis=1)
    assert single_policy_concentrability(occupancies, behaviour) == pytest.approx(0.5 / 0.15)


@pytest.mark.parametrize("asked", [1, 1.001, 1.01, 1.05, 1.1, 1.7])
def test_the_hard_worlds_return_exactly_the_concentrability_asked_for(asked):
    mdp, behaviour = ambiguous_mdp(5, asked, 0.3, 0.9, np.array([1, -1, 1, -1, 1]))
    expert = occupancy(mdp, value_iteration(mdp).actions)
    assert single_policy_concentrability(expert, behaviour) == pytest.approx(asked, rel=1e-12)


def test_expert_data_have_concentrability_one():
    _, behaviour = missing_mass_mdp(5, 1000, 0.9)
    assert single_policy_concentrability(behaviour, behaviour) == 1


def test_uncovered_is_infinite_and_unvisited_does_not_count():
    assert single_policy_concentrability([[0.5, 0.5]], [[1.0, 0.0]]) == np.inf
    assert single_policy_concentrability([[1.0, 0.0]], [[1.0, 0.0]]) == 1
    assert occupancy_ratio([0, 0, 0.5], [0, 1, 0]).tolist() == [0, 0, np.inf]


def test_leading_axes_are_kept():
    occupancies = np.random.default_rng(0).dirichlet(np.ones(6), size=(4, 5)).reshape(4, 5, 3, 2)
    ratio = single_policy_concentrability(occupancies, np.full((3, 2), 1 / 6))
    assert ratio.shape == (4, 5)
    assert ratio == pytest.approx(6 * occupancies.max(axis=(-1, -2)))


@pytest.mark.parametrize(
    ("occupancies", "behaviours", "message"),
    [
        ([0.5, 0.5], [1, 0, 0], "do not fit"),
        ([-0.1], [1], "occupancy holds -0.1"),
        ([0.5], [np.nan], "behaviour holds nan"),
    ],
)
def test_nonsense_is_refused(occupancies, behaviours, message):
    with pytest.raises(InputError, match=message):
        occupancy_ratio(occupancies, behaviours)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), discount=st.sampled_from([0.0, 0.5, 0.9, 0.9999]))
def test_the_largest_occupancy_is_that_of_the_best_deterministic_policy(seed, discount):
    world = random_world(seed, discount)
    enumerated = occupancy(world, EVERY).max(axis=0)
    assert largest_occupancy(world) == pytest.approx(enumerated, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("discount", [0.9, 0.999, 0.9999, 0.999999])
def test_the_largest_occupancy_is_as_quick_for_a_discount_near_one(discount):
    lake = toy_text("FrozenLake-v1", discount)
    started = time.process_time()
    largest = largest_occupancy(lake)
    assert time.process_time() - started < 2  # about 0.01 s on a quiet machine
    for seed in range(20):
        policy = np.random.default_rng(seed).integers(4, size=(50, lake.states))
        assert (occupancy(lake, policy) <= largest + 1e-9).all()
    goal = TabularMDP(
        lake.initial, lake.successors, lake.probabilities, lake.rewards, lake.discount
    )
    visits = occupancy(goal, value_iteration(goal, 1e-2).actions)
    assert (visits <= largest + 1e-9).all()


def test_where_no_policy_ever_comes_the_largest_occupancy_is_exactly_zero():
    mdp, _ = ambiguous_mdp(4, 1.0, 0.3, 0.9)
    assert (largest_occupancy(mdp)[1:5] == 0).all()


def test_the_large_and_the_small_route_of_the_largest_occupancy_agree(monkeypatch):
    world = random_world(11)
    small = largest_occupancy(world)
    monkeypatch.setattr(tabular, "DENSE_STATES", 0)
    assert largest_occupancy(world) == pytest.approx(small, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_all_policy_concentrability_is_the_maximum_over_policies(seed):
    world = random_world(seed)
    behaviour = np.random.default_rng(seed + 1).dirichlet(np.ones(8)).reshape(4, 2)
    enumerated = single_policy_concentrability(occupancy(world, EVERY), behaviour).max()
    assert all_policy_concentrability(world, behaviour) == pytest.approx(enumerated, rel=1e-6)


def test_expert_data_do_not_cover_every_policy_but_states_nobody_reaches_do_not_matter():
    mdp, behaviour = ambiguous_mdp(3, 1.05, 0.3, 0.9)
    assert all_policy_concentrability(mdp, behaviour) == np.inf
    unreachable = TabularMDP.from_dense([1.0, 0.0], np.eye(2)[:, None], np.zeros((2, 1)), 0.9)
    assert all_policy_concentrability(unreachable, np.array([[1.0], [0.0]])) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_coverability_is_the_sum_of_the_largest_occupancies_and_is_attained(seed):
    world = layered(seed)
    flows = occupancy_horizon(world, EVERY_LAYERED)
    exact = coverability(world)
    assert exact.layers == pytest.approx(flows.max(axis=0).sum(axis=(-1, -2)))
    assert exact.value == exact.layers.max()
    assert exact.behaviour.sum(axis=(-1, -2)) == pytest.approx(np.ones(3))
    attained = occupancy_ratio(flows, exact.behaviour).max(axis=(0, 2, 3))
    assert attained == pytest.approx(exact.layers)


def test_no_other_data_cover_better():
    world = layered(3)
    largest, exact = occupancy_horizon(world, EVERY_LAYERED).max(axis=0), coverability(world)
    others = np.random.default_rng(0).dirichlet(np.ones(6), size=(5000, 3)).reshape(-1, 3, 3, 2)
    covering = occupancy_ratio(largest, others).max(axis=(-1, -2))
    assert (covering >= exact.layers - 1e-12).all()


def test_a_contextual_bandit_has_coverability_of_its_number_of_actions():
    bandit = FiniteHorizonMDP(
        np.array([0.7, 0.1, 0.2]), np.full((1, 3, 5, 3), 1 / 3), np.zeros((1, 3, 5))
    )
    assert coverability(bandit).value == pytest.approx(5)


def test_a_single_policy_has_coverability_one():
    flows = occupancy_horizon(layered(4), EVERY_LAYERED[100:101])
    assert policies_coverability(flows).value == pytest.approx(1)
    visits = occupancy(random_world(4), EVERY[3:4])
    assert policies_coverability(visits).value == pytest.approx(1)


def test_coverability_of_listed_policies_grows_to_that_of_all():
    world = layered(5)
    flows = occupancy_horizon(world, EVERY_LAYERED)
    values = [policies_coverability(flows[:count]).value for count in (1, 8, 64, 512)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(coverability(world).value)


def test_coverability_never_exceeds_the_number_of_pairs():
    for seed in range(20):
        assert 1 <= coverability(layered(seed)).value <= 6 + 1e-9


def test_discounted_coverability_is_attained_by_its_behaviour():
    world = random_world(6)
    exact = coverability(world)
    assert exact.value == pytest.approx(occupancy(world, EVERY).max(axis=0).sum())
    attained = all_policy_concentrability(world, exact.behaviour[0])
    assert attained == pytest.approx(exact.value)


def test_reaching_probability_is_one_where_the_way_is_certain():
    corridor = np.zeros((4, 3, 2, 3))
    corridor[:, np.arange(3), 0, np.arange(3)] = 1  # stay
    corridor[:, [0, 1, 2], 1, [1, 2, 2]] = 1  # go on
    world = FiniteHorizonMDP(np.array([1.0, 0, 0]), corridor, np.zeros((4, 3, 2)))
    assert reaching_probability(world).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 2), (1, 1, 1, 1, 1)])
def test_a_list_of_no_policies_is_refused(shape):
    with pytest.raises(InputError, match="pass occupancies"):
        policies_coverability(np.zeros(shape))


def pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A behaviour and a policy's occupancy on four states and two actions."""
    generator = np.random.default_rng(seed)
    world = random_world(seed)
    return generator.dirichlet(np.full(8, 0.5)).reshape(4, 2), occupancy(world, EVERY[seed % 16])


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8))
def test_concentrability_bounds_every_measure_of_feature_coverage(seed, size):
    behaviour, visited = pairs(seed)
    features = np.random.default_rng(seed + 1).standard_normal((4, 2, size))
    star = single_policy_concentrability(visited, behaviour)
    found = feature_coverage(features, behaviour, visited)
    assert found.dimension <= min(size, 4)
    assert found.relative_condition <= star * (1 + 1e-6)
    assert found.average_leverage <= found.relative_condition * found.dimension * (1 + 1e-6)
    assert found.average_leverage <= found.largest_leverage * (1 + 1e-6)
    least = smallest_eigenvalue(second_moment(features, visited))
    assert found.smallest_eigenvalue >= least / star * (1 - 1e-6) - 1e-9


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_with_one_feature_for_each_pair_feature_coverage_is_concentrability(seed):
    behaviour, visited = pairs(seed)
    found = feature_coverage(np.eye(8).reshape(4, 2, 8), behaviour, visited)
    ratio = occupancy_ratio(visited, behaviour)
    assert found.relative_condition == pytest.approx(ratio.max())
    assert found.average_leverage == pytest.approx(ratio.sum())
    assert found.largest_leverage == pytest.approx(1 / behaviour[visited > 0].min())
    assert found.smallest_eigenvalue == pytest.approx(behaviour.min(), abs=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_leverage_does_not_depend_on_the_units_of_the_features(seed):
    behaviour, visited = pairs(seed)
    generator = np.random.default_rng(seed + 1)
    features = generator.standard_normal((4, 2, 3))
    mixed = features @ (np.eye(3) + 0.2 * generator.standard_normal((3, 3)))
    plain, turned = (feature_coverage(each, behaviour, visited) for each in (features, mixed))
    assert turned.average_leverage == pytest.approx(plain.average_leverage, rel=1e-5)
    assert turned.relative_condition == pytest.approx(plain.relative_condition, rel=1e-5)


def test_leverage_of_the_data_themselves_averages_to_their_dimension():
    rows = np.random.default_rng(0).standard_normal((500, 4)) @ np.diag([1, 2, 3, 0])
    moment = second_moment(rows)
    assert leverage(rows, moment).mean() == pytest.approx(3)
    assert smallest_eigenvalue(moment) == 0


def test_a_direction_that_the_data_lack_is_infinite_only_for_those_who_go_there():
    features = np.eye(3)[:, None]
    behaviour = np.array([[0.5], [0.5], [0.0]])
    for visited, finite in (([[1.0], [0], [0]], True), ([[0.5], [0], [0.5]], False)):
        found = feature_coverage(features, behaviour, np.array(visited))
        assert found.smallest_eigenvalue == 0
        assert np.isfinite([found.average_leverage, found.relative_condition]).all() == finite
        assert np.isfinite(found.largest_leverage) == finite


def test_moments_suffice_but_for_the_largest_leverage():
    behaviour, visited = pairs(3)
    features = np.random.default_rng(4).standard_normal((4, 2, 3))
    whole = feature_coverage(features, behaviour, visited)
    half = moment_coverage(second_moment(features, visited), second_moment(features, behaviour))
    assert half.average_leverage == whole.average_leverage
    assert np.isnan(half.largest_leverage)
    nothing = moment_coverage(np.eye(2), np.zeros((2, 2)))
    assert nothing.average_leverage == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: second_moment(np.zeros(3)), "features have shape"),
        (lambda: second_moment(np.zeros((2, 3)), np.zeros(3)), "weights have shape"),
        (lambda: second_moment(np.zeros((1, 3)), np.array([-1.0])), "weights hold -1.0"),
        (lambda: smallest_eigenvalue(np.zeros((2, 3))), "second moment is a finite"),
        (lambda: smallest_eigenvalue(np.full((2, 2), np.nan)), "second moment is a finite"),
        (lambda: moment_coverage(np.eye(2), np.eye(3)), "2 features of the target, 3"),
    ],
)
def test_moments_that_are_none_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def counted(states, actions, length: int = 2) -> Dataset:
    """A log of these states and actions in episodes of `length`."""
    ends = np.arange(len(states)) % length == length - 1
    final = np.zeros(int(ends.sum()), dtype=int)
    return Dataset.from_arrays(
        np.array(states),
        np.array(actions),
        np.zeros(len(states)),
        np.zeros(len(states), bool),
        ends,
        final_observations=final,
    )


def test_cells_number_the_pairs_of_a_log_row_by_row():
    log = counted([0, 1, 2, 1], [0, 1, 0, 0])
    assert pair_cells(log, 3, 2).tolist() == [0, 3, 4, 2]


def test_what_cannot_be_counted_is_refused():
    log = counted([0, 1, 2, 1], [0, 1, 0, 0])
    with pytest.raises(InputError, match="obs is 2 at row 2: pass 0 to 1"):
        pair_cells(log, 2, 2)
    with pytest.raises(InputError, match="action is 1 at row 1"):
        pair_cells(log, 3, 1)
    floats = Dataset.from_arrays(
        np.zeros((2, 3)), np.array([0, 1]), np.zeros(2), np.array([False, True])
    )
    with pytest.raises(InputError, match="obs holds vectors"):
        pair_cells(floats, 3, 2)
    with pytest.raises(InputError, match="sums to 1"):
        logged_concentrability(log, np.ones((3, 2)))


def test_a_counted_concentrability_is_the_plug_in_of_the_shares():
    log = counted([0, 0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0])
    target = np.array([[0.5, 0.0], [0.25, 0.25]])
    found = logged_concentrability(log, target)
    assert found.estimate == pytest.approx(0.25 / (1 / 8))
    assert found.low <= found.estimate <= found.high
    assert found.high == np.inf  # the rare pair is missing from many a resample
    assert found == logged_concentrability(log, target, seed=0)


def test_a_pair_that_was_never_logged_makes_the_counted_concentrability_infinite():
    log = counted([0, 0, 1, 0], [0, 0, 0, 0])
    assert logged_concentrability(log, np.array([[0.5, 0.5], [0, 0]])).estimate == np.inf


def test_a_log_covers_itself_and_a_part_covers_the_whole_less():
    generator = np.random.default_rng(0)
    log = counted(generator.integers(5, size=2000), generator.integers(3, size=2000))
    assert logged_concentrability(log, log).estimate == 1
    part = log.select(np.arange(20))
    back, there = logged_concentrability(part, log), logged_concentrability(log, part)
    assert back.estimate > there.estimate > 1


def test_the_interval_of_a_counted_concentrability_shrinks_with_the_log():
    widths = []
    for size in (400, 6400):
        generator = np.random.default_rng(1)
        log = counted(generator.integers(3, size=size), generator.integers(2, size=size))
        found = logged_concentrability(log, np.full((3, 2), 1 / 6))
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
