"""Density ratios on finite classes: against a loop over transitions, and the paper's lemmas."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.coverage import coverability, occupancy_ratio, single_policy_concentrability
from offrl_wb.theory import density_ratios
from offrl_wb.theory.density_ratios import (
    FunctionClass,
    Problem,
    Statistics,
    add,
    bellman_residuals,
    box_errors,
    cell_numbers,
    clipped_concentrability,
    data_weights,
    empty_statistics,
    episode_statistics,
    make_problem,
    mixture_of_ratios,
    mixture_weights,
    model_occupancies,
    model_weights,
    on_cells,
    on_pairs,
    population_statistics,
    potential_terms,
    residual_sums,
    signed_clip,
    take,
    worst_errors,
)
from offrl_wb.worlds.layered import (
    Episodes,
    contextual_bandit,
    decoy_chains,
    draw_episodes,
    draw_tuples,
)
from offrl_wb.worlds.tabular import (
    FiniteHorizonMDP,
    occupancy_horizon,
    plan_horizon,
)
from tests import glow_reference as reference
from tests.glow_reference import INFINITY, as_lists, random_tables, random_world, sparse_rows


class Small:
    """A random world with a class, and a data set in both forms: arrays, and lists of steps."""

    def __init__(self, seed, horizon, states, actions, functions, size, noise, policies=3):
        self.generator = np.random.default_rng([seed, 3])
        self.mdp = random_world(seed, horizon, states, actions, noise)
        self.problem = make_problem(self.mdp, random_tables(self.mdp, functions, seed))
        self.tables = self.problem.functions.tables  # 0 where no episode can be
        self.lists = as_lists(self.tables)
        self.data: list = [[] for _ in range(horizon)]
        self.played: list = []
        self.statistics = empty_statistics(self.problem)
        for _ in range(policies if size else 0):
            f = int(self.generator.integers(functions))
            rows = self.generator.random((size, 1 + 3 * horizon))
            number = int(self.problem.policy_of[f])
            episodes = draw_episodes(self.mdp, self.problem.policies[number], rows)
            density = self.problem.occupancies[number]
            part = episode_statistics(self.problem, episodes, density, number)
            self.statistics = add(self.statistics, part)
            policy = reference.greedy(self.lists[f])
            for row in rows:
                for layer, step in enumerate(reference.play(self.mdp, policy, row)):
                    self.data[layer].append(step)
                self.played.append(reference.occupancy(self.mdp, policy))

    def weights(self, count: int, infinite: bool = True) -> np.ndarray:
        """Random weights `(W, H, S, A)`, some 0, some infinite, half of the classes signed."""
        shape = (count, *self.mdp.reward.shape)
        weights = self.generator.exponential(2.0, size=shape) * (self.generator.random(shape) > 0.3)
        if infinite:
            weights[self.generator.random(shape) > 0.8] = np.inf
        return weights * self.generator.choice([-1.0, 1.0], size=shape)


def smalls(least: int = 0, noise=("none", "bernoulli")) -> st.SearchStrategy[Small]:
    return st.builds(
        Small,
        seed=st.integers(0, 10**6),
        horizon=st.integers(1, 3),
        states=st.integers(1, 3),
        actions=st.integers(1, 3),
        functions=st.integers(1, 4),
        size=st.integers(least, 4),
        noise=st.sampled_from(noise),
    )


seeds = st.integers(0, 10**6)
many = settings(max_examples=40, deadline=None)


def dense(problem: Problem, array: np.ndarray) -> np.ndarray:
    """`(..., Z)` on the cells as `(..., S, A)`, 0 elsewhere."""
    states, actions = problem.mdp.reward.shape[1:]
    full = np.zeros((*array.shape[:-1], states * actions))
    full[..., problem.cells] = array
    return full.reshape(*array.shape[:-1], states, actions)


# The class and the problem, against loops


@many
@given(small=smalls())
def test_policies_values_occupancies_and_returns_are_those_of_a_loop(small):
    problem, functions = small.problem, small.problem.functions
    for f, table in enumerate(small.lists):
        policy = reference.greedy(table)
        assert functions.policies[f].tolist() == policy
        assert problem.policies[problem.policy_of[f]].tolist() == policy
        visits = reference.occupancy(small.mdp, policy)
        found = dense(problem, problem.occupancies[problem.policy_of[f]])
        assert np.allclose(found, visits, rtol=0, atol=1e-14)
        assert problem.returns[f] == pytest.approx(
            reference.expected_return(small.mdp, policy), abs=1e-12
        )
        for layer in range(small.mdp.horizon + 1):
            for state in range(small.mdp.initial.size):
                value = reference.largest(table, layer, state)
                assert functions.values[f, layer, state] == value
    assert len({policy.tobytes() for policy in problem.policies}) == len(problem.policies)


@many
@given(small=smalls())
def test_a_layer_has_each_of_its_functions_once(small):
    for layer in range(small.mdp.horizon):
        tables, which = small.problem.functions.layer(layer)
        assert np.array_equal(tables[which], small.tables[:, layer])
        assert sorted(as_lists(tables)) == sorted(reference.layer_class(small.lists, layer))


@many
@given(small=smalls())
def test_the_cells_are_the_pairs_that_some_policy_reaches(small):
    reached = set()
    for table in small.lists:
        for visits in reference.occupancy(small.mdp, reference.greedy(table)):
            for state, row in enumerate(visits):
                for action, chance in enumerate(row):
                    if chance > 0:
                        reached.add(state * small.mdp.reward.shape[2] + action)
    assert small.problem.cells.tolist() == sorted(reached)
    assert small.problem.position[small.problem.cells].tolist() == list(range(len(reached)))
    assert (small.problem.position >= 0).sum() == len(reached)


@many
@given(small=smalls(), place=st.integers(0, 3))
def test_the_optimal_function_is_found_wherever_it_stands(small, place):
    assert small.problem.optimal == 0
    assert small.problem.returns[0] == pytest.approx(small.problem.optimum, abs=1e-12)
    best = max(small.problem.returns)
    assert best <= small.problem.optimum + 1e-12
    star, others = small.tables[:1], (small.tables[:1] + 2) / 4
    moved = np.concatenate([np.repeat(others, place, axis=0), star, star])
    assert make_problem(small.mdp, moved).optimal == place
    assert make_problem(small.mdp, others).optimal is None or np.allclose(others, star)


def test_ties_up_to_rounding_go_to_the_first_action():
    tables = np.array([[[[0.1 + 0.2, 0.3, 0.3], [0.3, 0.1 + 0.2, 0.2]]]])
    assert FunctionClass(tables).policies.tolist() == [[[0, 0]]]
    assert FunctionClass(np.array([[[[0.3, 0.3 + 1e-9]]]])).policies.tolist() == [[[1]]]


def test_a_class_cannot_be_changed_under_the_algorithms():
    tables = np.full((1, 1, 1, 2), 0.5)
    functions = FunctionClass(tables)
    tables[:] = 0
    assert (functions.tables == 0.5).all()
    with pytest.raises(ValueError, match="read-only"):
        functions.tables[0] = 1


# Statistics, against loops


def assert_counts(problem: Problem, statistics: Statistics, data: list) -> None:
    """Every part of `statistics` is what counting the transitions of `data` gives."""
    assert statistics.size == len(data[0])
    starts = Counter(step.state for step in data[0])
    for layer, steps in enumerate(data):
        for z, cell in enumerate(problem.cells):
            here = [s for s in steps if s.state * problem.mdp.reward.shape[2] + s.action == cell]
            assert statistics.visits[layer, z] == len(here)
            paid = sum(step.reward for step in here)
            assert statistics.rewards[layer, z] == pytest.approx(paid, abs=1e-12)
            following = Counter(step.following for step in here)
            for state in range(problem.mdp.initial.size):
                assert statistics.moves[layer, z, state] == following[state]
    assert statistics.starts.tolist() == [starts[s] for s in range(problem.mdp.initial.size)]


@many
@given(small=smalls())
def test_statistics_are_counts_of_transitions(small):
    assert_counts(small.problem, small.statistics, small.data)
    played = (
        reference.mean_occupancy(small.played, [1.0] * len(small.played)) if small.played else 0
    )
    found = dense(small.problem, small.statistics.density)
    assert np.allclose(found, played, rtol=0, atol=1e-12)
    assert small.statistics.played.sum() == len(small.played)
    if small.played:
        weighted = np.einsum("p,phz->hz", small.statistics.played, small.problem.occupancies)
        assert np.allclose(weighted, small.statistics.density, rtol=0, atol=1e-12)


@many
@given(small=smalls(), size=st.integers(0, 6))
def test_running_statistics_are_those_of_every_prefix(small, size):
    problem, number = small.problem, int(small.problem.policy_of[-1])
    rows = small.generator.random((size, 1 + 3 * small.mdp.horizon))
    episodes = draw_episodes(small.mdp, problem.policies[number], rows)
    density = problem.occupancies[number]
    running = episode_statistics(problem, episodes, density, number, running=True)
    for count in range(1, size + 1):
        prefix = Episodes(*(part[:count] for part in episodes))
        alone = episode_statistics(problem, prefix, density, number)
        for part, whole in zip(take(running, count - 1), alone, strict=True):
            assert np.allclose(part, whole, rtol=0, atol=1e-12)
    assert all(len(part) == size for part in running)


def test_no_episodes_are_no_data():
    chains = decoy_chains(3, 2)
    problem = make_problem(chains.mdp, chains.tables)
    nothing = draw_episodes(chains.mdp, problem.policies[0], np.zeros((0, 7)))
    none = episode_statistics(problem, nothing, problem.occupancies[0], 0)
    for part, empty in zip(none, empty_statistics(problem), strict=True):
        assert np.array_equal(part, empty)
    assert (worst_errors(none, residual_sums(problem, none), np.ones((2, 2, 5)), 1.0) == 0).all()
    assert (box_errors(none, residual_sums(problem, none), 1.0, 3.0) == 0).all()


def test_offline_tuples_enter_with_the_distribution_that_they_came_from():
    small = Small(5, 2, 3, 2, 3, 0, "bernoulli")
    behaviour = sparse_rows(small.generator, (2, 6)).reshape(2, 3, 2)
    problem = make_problem(small.mdp, small.tables, behaviour)
    assert set(problem.cells) >= set(np.flatnonzero(behaviour.max(axis=0)))
    tuples = draw_tuples(small.mdp, behaviour, small.generator.random((50, 2, 4)))
    statistics = episode_statistics(problem, tuples, problem.behaviour)
    assert np.allclose(dense(problem, statistics.density), 50 * behaviour)
    assert statistics.played.tolist() == [0] * len(problem.policies)
    assert statistics.visits.sum() == 100


@many
@given(small=smalls())
def test_the_mean_of_data_is_the_population(small):
    problem = small.problem
    density = problem.occupancies[int(problem.policy_of[-1])]
    statistics = population_statistics(problem, density)
    assert statistics.visits.sum(axis=-1) == pytest.approx(1)
    assert np.allclose(statistics.moves.sum(axis=-1), statistics.visits)
    sums = residual_sums(problem, statistics)
    for f, table in enumerate(small.lists):
        for layer in range(small.mdp.horizon):
            for z, cell in enumerate(problem.cells):
                state, action = divmod(int(cell), small.mdp.reward.shape[2])
                exact = reference.bellman_residual(small.mdp, table, layer, state, action)
                assert sums[layer, z, f] == pytest.approx(density[layer, z] * exact, abs=1e-12)


# Residuals and suprema, against loops over transitions and weights


@many
@given(small=smalls())
def test_residual_sums_are_sums_over_transitions(small):
    sums = residual_sums(small.problem, small.statistics)
    for layer, steps in enumerate(small.data):
        for f, table in enumerate(small.lists):
            total = np.zeros(small.mdp.reward[0].size)
            for step in steps:
                cell = step.state * small.mdp.reward.shape[2] + step.action
                total[cell] += reference.sampled_residual(table, layer, step)
            assert np.allclose(sums[layer, :, f], total[small.problem.cells], rtol=0, atol=1e-12)


@many
@given(
    small=smalls(least=1),
    count=st.integers(1, 5),
    limit=st.sampled_from([0.01, 0.5, 3.0, 1e4]),
    alpha=st.sampled_from([0.0, 0.02, 1.0, 800.0]),
)
def test_worst_errors_are_the_supremum_over_weights_of_means_over_transitions(
    small, count, limit, alpha
):
    weights = small.weights(count)
    on = signed_clip(on_cells(weights, small.problem.cells), limit)
    sums = residual_sums(small.problem, small.statistics)
    found = worst_errors(small.statistics, sums, on, alpha)
    listed = as_lists(weights)
    expected = reference.glow_errors(small.data, small.lists, listed, limit, alpha)
    scale = 1 + limit + alpha * limit**2
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12 * scale)


@many
@given(small=smalls(least=1), block=st.sampled_from([1, 7, 40]))
def test_neither_leading_axes_nor_blocks_change_the_suprema(small, block):
    first, other = small.statistics, add(small.statistics, small.statistics)
    problem = small.problem
    stacked = Statistics(*(np.stack([a, b, a]) for a, b in zip(first, other, strict=True)))
    weights = np.stack([on_cells(small.weights(4, False), problem.cells) for _ in range(3)])
    alpha = np.array([0.0, 0.3, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density_ratios, "BLOCK", block)
        together = worst_errors(stacked, residual_sums(problem, stacked), weights, alpha)
    for row in range(3):
        one = take(stacked, row)
        alone = worst_errors(one, residual_sums(problem, one), weights[row], alpha[row])
        assert np.allclose(together[row], alone, rtol=1e-12, atol=1e-13)
    limits = np.array([0.1, 1.0, 9.0])
    boxes = box_errors(stacked, residual_sums(problem, stacked), alpha, limits)
    for row in range(3):
        one = take(stacked, row)
        alone = box_errors(one, residual_sums(problem, one), alpha[row], limits[row])
        assert np.allclose(boxes[row], alone, rtol=1e-12, atol=1e-13)


@many
@given(small=smalls(least=1))
def test_a_class_of_the_zero_weight_constrains_nothing(small):
    zero = np.zeros((1, small.mdp.horizon, len(small.problem.cells)))
    sums = residual_sums(small.problem, small.statistics)
    assert (worst_errors(small.statistics, sums, zero, 5.0) == 0).all()


@many
@given(small=smalls(), alpha=st.sampled_from([0.0, 0.25, 8.0]), limit=st.sampled_from([0.1, 4.0]))
def test_the_optimal_function_has_no_error_on_infinitely_much_data(small, alpha, limit):
    problem = small.problem
    density = problem.occupancies.mean(axis=0)
    statistics = population_statistics(problem, density)
    weights = signed_clip(on_cells(small.weights(5), problem.cells), limit)
    errors = worst_errors(statistics, residual_sums(problem, statistics), weights, alpha)
    assert (errors[:, 0] <= 1e-12 * (1 + limit)).all()


@many
@given(small=smalls())
def test_exact_ratios_without_clip_and_penalty_give_on_policy_residuals(small):
    problem = small.problem
    density = problem.occupancies.mean(axis=0)
    statistics = population_statistics(problem, density)
    weights = data_weights(problem.occupancies, density)
    assert np.isfinite(weights).all()  # every policy is part of the mean
    found = worst_errors(statistics, residual_sums(problem, statistics), weights)
    for f, table in enumerate(small.lists):
        for layer in range(small.mdp.horizon):
            means = []
            for other in small.lists:
                visits = reference.occupancy(small.mdp, reference.greedy(other))[layer]
                mean = 0.0
                for state, row in enumerate(visits):
                    for action, chance in enumerate(row):
                        mean += chance * reference.bellman_residual(
                            small.mdp, table, layer, state, action
                        )
                means.append(mean)
            assert found[layer, f] == pytest.approx(max(means), abs=1e-12)


# The box


@many
@given(
    small=smalls(least=1),
    limit=st.sampled_from([0.05, 1.0, 20.0]),
    alpha=st.sampled_from([0.0, 0.01, 0.3, 5.0]),
    signed=st.booleans(),
)
def test_the_box_is_what_trying_every_weight_of_a_grid_gives(small, limit, alpha, signed):
    sums, statistics = residual_sums(small.problem, small.statistics), small.statistics
    found = box_errors(statistics, sums, alpha, limit, signed)
    grid = np.linspace(-limit if signed else 0, limit, 401)
    size, step = len(small.data[0]), grid[1] - grid[0]
    for layer, steps in enumerate(small.data):
        for f, table in enumerate(small.lists):
            best: dict = {}
            for pair in {(s.state, s.action) for s in steps}:
                here = [s for s in steps if (s.state, s.action) == pair]
                residuals = [reference.sampled_residual(table, layer, s) for s in here]
                tried = [sum(w * r - alpha * w * w for r in residuals) for w in grid]
                best[pair] = max(tried) / size
            total = sum(best.values())
            assert found[layer, f] >= total - 1e-10
            assert found[layer, f] <= total + alpha * (step / 2) ** 2 + 1e-10


@many
@given(small=smalls(least=1), gamma=st.sampled_from([0.003, 0.05, 1.0, 1.7]))
def test_with_the_literal_penalty_the_box_is_the_mean_squared_cell_residual(small, gamma):
    count = len(small.data[0])
    limit = gamma * count
    sums = residual_sums(small.problem, small.statistics)
    found = box_errors(small.statistics, sums, 8 / limit, limit)
    for layer, steps in enumerate(small.data):
        for f, table in enumerate(small.lists):
            total = 0.0
            for pair in {(s.state, s.action) for s in steps}:
                here = [s for s in steps if (s.state, s.action) == pair]
                mean = sum(reference.sampled_residual(table, layer, s) for s in here) / len(here)
                total += len(here) / count * mean**2
            assert found[layer, f] == pytest.approx(limit / 32 * total, rel=1e-12, abs=1e-12)


@many
@given(small=smalls(least=1), cell=seeds)
def test_empirical_dynamic_programming_minimises_the_box_over_all_tables(small, cell):
    horizon, states, actions = small.mdp.reward.shape
    table = small.generator.random((horizon, states, actions)).tolist()
    for layer in reversed(range(horizon)):
        for pair in {(s.state, s.action) for s in small.data[layer]}:
            here = [s for s in small.data[layer] if (s.state, s.action) == pair]
            aims = [s.reward + reference.largest(table, layer + 1, s.following) for s in here]
            table[layer][pair[0]][pair[1]] = sum(aims) / len(here)
    planned = np.array(table)
    assume(planned.max() <= 1)  # unseen pairs are rated at random: values may pass 1
    layer, other = cell % horizon, planned.copy()
    state, action = small.data[layer][0].state, small.data[layer][0].action
    other[layer, state, action] += 0.01 if other[layer, state, action] < 0.5 else -0.01
    everywhere = np.full(planned.shape, 1 / planned[0].size)
    tables = np.concatenate([[planned, other], small.tables])
    problem = make_problem(small.mdp, tables, everywhere)
    statistics = episode_statistics(problem, as_episodes(small.data), problem.behaviour)
    errors = box_errors(statistics, residual_sums(problem, statistics), 0.1, 5.0).sum(axis=0)
    assert errors[0] == pytest.approx(0, abs=1e-12)
    assert errors[1] > 1e-8
    assert (errors >= -1e-12).all()


def as_episodes(data: list) -> Episodes:
    """Lists of transitions, one a layer, as arrays `(N, H)`."""
    return Episodes(
        *(np.array([[step[k] for step in steps] for steps in data]).T for k in range(4))
    )


@many
@given(small=smalls(least=1), limit=st.sampled_from([0.5, 7.0]))
def test_a_box_without_penalty_takes_its_ends(small, limit):
    sums = residual_sums(small.problem, small.statistics)
    size = small.statistics.size
    both = box_errors(small.statistics, sums, 0.0, limit)
    above = box_errors(small.statistics, sums, 0.0, limit, signed=False)
    assert np.allclose(both, limit * np.abs(sums).sum(axis=1) / size)
    assert np.allclose(above, limit * np.maximum(sums, 0).sum(axis=1) / size)


@many
@given(small=smalls(least=1), alpha=st.sampled_from([0.1, 3.0]))
def test_no_listed_class_inside_the_box_beats_it(small, alpha):
    sums = residual_sums(small.problem, small.statistics)
    weights = signed_clip(on_cells(small.weights(6), small.problem.cells), 2.5)
    listed = worst_errors(small.statistics, sums, weights, alpha)
    assert (listed <= box_errors(small.statistics, sums, alpha, 2.5) + 1e-12).all()
    positive = worst_errors(small.statistics, sums, np.abs(weights), alpha)
    closed = box_errors(small.statistics, sums, alpha, 2.5, signed=False)
    assert (positive <= closed + 1e-12).all()
    assert (closed <= box_errors(small.statistics, sums, alpha, 2.5) + 1e-12).all()
    assert (closed >= -1e-15).all()  # the zero weight is in the box


# Weights


@many
@given(small=smalls())
def test_ratios_against_the_past_and_oneself_are_those_of_a_loop(small):
    problem, rounds = small.problem, len(small.played) + 1
    weights = mixture_weights(problem.occupancies, small.statistics.density, rounds)
    listed = reference.glow_weights(small.mdp, small.lists, small.played)
    for f in range(len(small.lists)):
        found = dense(problem, weights[problem.policy_of[f]])
        assert np.allclose(found, listed[f], rtol=1e-12, atol=1e-12)
    assert (weights <= rounds * (1 + 1e-12)).all()
    assert (weights >= 0).all()
    if rounds == 1:
        assert set(np.unique(weights)) <= {0.0, 1.0}


@many
@given(small=smalls(least=1))
def test_ratios_against_hybrid_data_are_those_of_a_loop_and_may_be_infinite(small):
    behaviour = sparse_rows(small.generator, (small.mdp.horizon, small.mdp.reward[0].size))
    behaviour = behaviour.reshape(small.mdp.reward.shape)
    problem = make_problem(small.mdp, small.tables, behaviour)
    online = on_cells(np.array(reference.mean_occupancy(small.played)), problem.cells)
    weights = data_weights(problem.occupancies, (problem.behaviour + online) / 2)
    listed = reference.hybrid_weights(small.mdp, small.lists, small.played, as_lists(behaviour))
    for f in range(len(small.lists)):
        found = dense(problem, weights[problem.policy_of[f]])
        assert np.allclose(found, listed[f], rtol=1e-12, atol=0)
    assert not np.isnan(weights).any()


def test_uncovered_pairs_have_infinite_weight_and_unused_pairs_none():
    visits, density = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[0.25, 0.0, 0.75, 0.0]])
    assert data_weights(visits, density).tolist() == [[[2.0, INFINITY, 0.0, 0.0]]]
    clipped = signed_clip(data_weights(visits, density), 3.0)
    assert clipped.tolist() == [[[2.0, 3.0, 0.0, 0.0]]]


@many
@given(small=smalls(), others=st.integers(1, 3))
def test_weights_of_a_model_class_are_the_ratios_inside_each_model(small, others):
    shape = small.mdp.reward.shape
    models = [small.mdp] + [random_world(k, *shape, small.mdp.noise) for k in range(others)]
    occupancies = model_occupancies(tuple(models), small.problem)
    rounds = len(small.played) + 1
    played = np.stack([small.statistics.played, 0 * small.statistics.played])
    weights = model_weights(occupancies, played, np.array([rounds, 1.0]))
    policies = len(small.problem.policies)
    for number, model in enumerate(models):
        visits = [reference.occupancy(model, policy) for policy in small.problem.policies]
        times = small.statistics.played.astype(int)
        past = [v for v, count in zip(visits, times, strict=True) for _ in range(count)]
        for p in range(policies):
            mean = reference.mean_occupancy([*past, visits[p]])
            slow = on_cells(np.array(reference.divide(visits[p], mean)), small.problem.cells)
            found = weights[0, number * policies + p]
            assert np.allclose(found, slow, rtol=1e-12, atol=1e-12)
    fresh = weights[1]
    assert set(np.unique(fresh)) <= {0.0, 1.0}
    own = mixture_weights(small.problem.occupancies, small.statistics.density, rounds)
    assert np.allclose(weights[0, :policies], own, rtol=1e-12, atol=1e-12)


weight_values = st.floats(allow_nan=False, allow_infinity=True)


@given(
    weights=st.lists(weight_values, min_size=1, max_size=5),
    limit=st.floats(0, 1e300, allow_nan=False),
)
def test_clipping_acts_on_the_size_and_keeps_the_sign(weights, limit):
    values = np.array(weights)
    clipped = signed_clip(values, limit)
    assert np.isfinite(clipped).all()
    assert (np.abs(clipped) <= limit).all()
    assert (np.sign(clipped) * np.sign(values) >= 0).all()
    inside = np.abs(values) <= limit
    assert (clipped[inside] == values[inside]).all()
    assert (np.abs(clipped[~inside]) == limit).all()
    assert np.array_equal(signed_clip(-values, limit), -clipped)
    assert [reference.clipped(w, limit) for w in weights] == clipped.tolist()


def test_the_plain_minimum_would_let_minus_infinity_through():
    assert np.minimum(-np.inf, 5.0) == -np.inf
    assert signed_clip(np.array([-np.inf, np.inf]), 5.0).tolist() == [-5, 5]
    assert signed_clip(np.array([-np.inf, np.inf]), np.inf).tolist() == [-np.inf, np.inf]
    assert signed_clip(np.array([[-9.0], [9.0]]), np.array([1.0, 2.0])).tolist() == [
        [-1, -2],
        [1, 2],
    ]


@many
@given(seed=seeds, cells=st.integers(1, 6), rounds=st.integers(1, 8))
def test_the_mixture_of_ratios_is_the_ratio_to_the_mixture(seed, cells, rounds):
    sequence = sparse_rows(np.random.default_rng(seed), (rounds, cells))
    last, mean = sequence[-1], sequence.mean(axis=0)
    mixed = mixture_of_ratios(occupancy_ratio(sequence, last))
    visited = mean > 0
    assert np.allclose(mixed[visited], last[visited] / mean[visited], rtol=1e-12, atol=0)
    assert np.isinf(mixed[~visited]).all()  # where nobody ever goes the mean of ratios is 0
    past = sequence[:-1].sum(axis=0)[None]
    direct = mixture_weights(last[None, None], past, rounds)[0, 0]
    assert np.allclose(mixed[visited], direct[visited], rtol=1e-12, atol=1e-14)
    slow = reference.mixture(occupancy_ratio(sequence, last).tolist())
    assert np.allclose(mixed, slow, rtol=1e-12, atol=0)


# The lemmas


@many
@given(small=smalls())
def test_bellman_residuals_are_those_of_a_loop(small):
    residuals = bellman_residuals(small.mdp, small.problem.functions)
    for place in np.ndindex(residuals.shape):
        slow = reference.bellman_residual(small.mdp, small.lists[place[0]], *place[1:])
        assert residuals[place] == pytest.approx(slow, abs=1e-12)
    assert np.abs(residuals[0]).max() < 1e-12  # Q* has none


def on_policy(mdp: FiniteHorizonMDP, functions: FunctionClass) -> tuple[np.ndarray, np.ndarray]:
    """Occupancies `(F, H, S, A)` of the greedy policies, and the exact residuals."""
    return occupancy_horizon(mdp, functions.policies), bellman_residuals(mdp, functions)


@many
@given(small=smalls())
def test_what_a_function_promises_too_much_is_its_residual_along_its_own_way(small):
    """Lemma D.4: an identity, for every f."""
    functions = small.problem.functions
    visits, residuals = on_policy(small.mdp, functions)
    promised = functions.values[:, 0] @ small.mdp.initial
    met = (visits * residuals).sum(axis=(1, 2, 3))
    assert np.abs(promised - small.problem.returns - met).max() < 1e-12


@many
@given(small=smalls())
def test_the_loss_is_at_most_the_residuals_along_both_ways(small):
    """Lemma F.2."""
    visits, residuals = on_policy(small.mdp, small.problem.functions)
    best = occupancy_horizon(small.mdp, plan_horizon(small.mdp).actions)
    bound = ((visits - best) * residuals).sum(axis=(1, 2, 3))
    assert (small.problem.optimum - small.problem.returns <= bound + 1e-12).all()


@many
@given(
    small=smalls(),
    seed=seeds,
    gamma=st.one_of(st.floats(1e-3, 1e3), st.sampled_from([0.0, 1.0])),
)
def test_clipping_a_residual_costs_at_most_what_is_clipped(small, seed, gamma):
    """Lemma F.3, both of its inequalities, for real residuals and mu that is zero somewhere.

    E_d[D] <= E_mu[D clip(d/mu)] + 2 P[d/mu > gamma], and the same for -D. Its proof says |D| <= 1;
    residuals reach -2 (f_h = 0, r = 1, f_{h+1} = 1), but what is lost is (d - gamma mu)+ |D| on the
    clipped pairs only: so factor 1 will do for D <= 1, and 2 is needed for -D <= 2.
    """
    visits, residuals = on_policy(small.mdp, small.problem.functions)
    flat = (len(visits), small.mdp.horizon, -1)
    d, delta = visits.reshape(flat), residuals.reshape(flat)
    mu = sparse_rows(np.random.default_rng(seed), d.shape)
    assert delta.max() <= 1 + 1e-12
    assert delta.min() >= -2 - 1e-12
    ratio = occupancy_ratio(d, mu)
    weight = signed_clip(ratio, gamma)
    weighed = np.where(mu > 0, mu * np.where(mu > 0, weight, 0) * delta, 0).sum(axis=-1)
    outside = (d * (ratio > gamma)).sum(axis=-1)
    met = (d * delta).sum(axis=-1)
    assert (met <= weighed + outside + 1e-12).all()  # half of what the lemma allows
    assert (-met <= -weighed + 2 * outside + 1e-12).all()


def test_the_factor_two_of_the_clip_lemma_is_reached():
    mdp = FiniteHorizonMDP(np.ones(1), np.ones((2, 1, 1, 1)), np.array([[[1.0]], [[0.0]]]))
    functions = FunctionClass(np.array([[[[0.0]], [[1.0]]]]))
    residual = bellman_residuals(mdp, functions)[0, 0, 0, 0]
    assert residual == -2
    weight = signed_clip(occupancy_ratio(np.ones(1), np.zeros(1)), 7.0)
    outside = 1.0  # the pair is always met and never in the data
    assert -residual == 0 * weight[0] * -residual + 2 * outside


@given(
    seed=seeds,
    cells=st.integers(1, 8),
    gamma=st.one_of(st.floats(1e-3, 1e3), st.sampled_from([1.0, 1e6])),
)
def test_clipping_is_seldom_felt_and_its_second_moment_is_small(seed, cells, gamma):
    """Lemmas F.4 and F.5; both hold without their factor 2."""
    generator = np.random.default_rng(seed)
    d, mu = sparse_rows(generator, (20, cells)), sparse_rows(generator, (20, cells))
    ratio = occupancy_ratio(d, mu)
    clipped = signed_clip(ratio, gamma)
    cc = clipped_concentrability(d, mu, gamma)
    outside = (d * (ratio > gamma)).sum(axis=-1)
    assert (gamma * outside <= cc * (1 + 1e-12)).all()
    assert ((mu * clipped**2).sum(axis=-1) <= cc * (1 + 1e-12)).all()
    assert (cc <= np.minimum(gamma, ratio.max(axis=-1)) * (1 + 1e-12)).all()
    slow = [
        sum(x * min(reference.ratio(x, y), gamma) for x, y in zip(*pair, strict=True))
        for pair in zip(d.tolist(), mu.tolist(), strict=True)
    ]
    assert cc == pytest.approx(slow, rel=1e-12)


def test_concentrability_of_a_policy_in_its_own_data_is_one():
    d = np.array([0.5, 0.25, 0.25, 0.0])
    assert clipped_concentrability(d, d, 3.0) == pytest.approx(1)
    assert clipped_concentrability(d, d, 0.2) == pytest.approx(0.2)
    assert clipped_concentrability(d, np.array([0.0, 0, 0, 1]), 3.0) == pytest.approx(3)


@many
@given(small=smalls())
def test_coverability_is_the_sum_of_largest_occupancies_and_nothing_covers_better(small):
    problem, found = small.problem, small.problem.coverability
    largest = [[0.0] * small.mdp.reward[0].size for _ in range(small.mdp.horizon)]
    for table in small.lists:
        for layer, visits in enumerate(reference.occupancy(small.mdp, reference.greedy(table))):
            flat = [chance for row in visits for chance in row]
            largest[layer] = [max(pair) for pair in zip(largest[layer], flat, strict=True)]
    layers = [sum(row) for row in largest]
    assert found.layers == pytest.approx(layers, abs=1e-12)
    assert found.value == pytest.approx(max(layers), abs=1e-12)
    mu = found.behaviour[..., 0]
    assert mu.sum(axis=-1) == pytest.approx(1)
    ratios = occupancy_ratio(problem.occupancies, mu).max(axis=(0, 2))
    assert ratios == pytest.approx(layers, abs=1e-12)  # attained in every layer
    others = small.generator.dirichlet(np.ones(mu.shape[1]), size=(20, small.mdp.horizon))
    worst = occupancy_ratio(problem.occupancies[:, None], others).max(axis=(0, 3))
    assert (worst >= found.layers - 1e-9).all()
    assert 1 - 1e-12 <= found.value <= min(len(problem.policies), len(problem.cells)) + 1e-12
    assert found.value <= coverability(small.mdp).value + 1e-12


@many
@given(seed=seeds, contexts=st.integers(1, 3), actions=st.integers(1, 3))
def test_a_contextual_bandit_with_all_policies_has_coverability_its_number_of_actions(
    seed, contexts, actions
):
    generator = np.random.default_rng(seed)
    bandit = contextual_bandit(
        generator.dirichlet(np.ones(contexts)), generator.random((contexts, actions))
    )
    choices = np.indices((actions,) * contexts).reshape(contexts, -1).T
    tables = np.eye(actions)[choices][:, None]
    assert make_problem(bandit, tables).coverability.value == pytest.approx(actions)
    single = make_problem(bandit, tables[:1]).coverability.value
    assert single == pytest.approx(1)


@many
@given(small=smalls())
def test_one_policy_is_its_own_cover(small):
    alone = make_problem(small.mdp, np.repeat(small.tables[:1], 3, axis=0))
    assert len(alone.policies) == 1
    assert alone.coverability.layers == pytest.approx(1)
    visits = dense(alone, alone.occupancies[0])
    cover = alone.coverability.behaviour[..., 0]
    assert np.allclose(single_policy_concentrability(visits, dense(alone, cover)), 1)


@pytest.mark.parametrize("actions", [2, 5, 9])
def test_decoy_chains_have_coverability_their_number_of_actions(actions):
    chains = decoy_chains(actions, 4)
    found = make_problem(chains.mdp, chains.tables)
    assert found.coverability.layers == pytest.approx(actions)
    assert len(found.cells) == 2 * actions - 1  # the root's actions, and one pair a later chain


@given(
    seed=seeds,
    rounds=st.integers(2, 40),
    cells=st.integers(1, 6),
    repeats=st.sampled_from([1, 3]),
)
@example(seed=0, rounds=2, cells=2, repeats=1)
def test_the_potential_of_any_sequence_stays_below_its_bound(seed, rounds, cells, repeats):
    """Lemma E.3, with the least C that any mu allows: the sum of the largest."""
    generator = np.random.default_rng(seed)
    sequence = np.repeat(sparse_rows(generator, (rounds, cells)), repeats, axis=0)
    terms = potential_terms(sequence)
    assert ((terms >= -1e-15) & (terms <= 1 + 1e-12)).all()
    assert terms[0] == pytest.approx(1)
    assert terms.sum() <= 5 * sequence.max(axis=0).sum() * np.log(len(sequence)) + 1e-12
    total, slow = [0.0] * cells, []
    for row in sequence.tolist():
        total = [a + b for a, b in zip(total, row, strict=True)]
        pairs = zip(row, total, strict=True)
        slow.append(sum(x * reference.ratio(x, y) for x, y in pairs))
    assert terms == pytest.approx(slow, abs=1e-12)


def test_the_potential_at_its_extremes():
    fresh = potential_terms(np.eye(6))  # always somewhere new
    assert fresh.tolist() == [1] * 6
    stay = potential_terms(np.ones((50, 1)))  # always the same: the harmonic numbers
    assert stay == pytest.approx(1 / np.arange(1, 51))
    layered = potential_terms(np.stack([np.eye(3), np.ones((3, 3)) / 3], axis=1))
    assert layered.shape == (3, 2)


# Shapes at their least, and bad input


def test_a_world_of_one_pair_and_one_function():
    mdp = FiniteHorizonMDP(np.ones(1), np.ones((1, 1, 1, 1)), np.full((1, 1, 1), 0.5))
    problem = make_problem(mdp, np.full((1, 1, 1, 1), 0.75))
    assert (problem.optimum, problem.optimal) == (0.5, None)
    assert problem.coverability.value == 1
    episodes = draw_episodes(mdp, problem.policies[0], np.full((4, 4), 0.5))
    statistics = episode_statistics(problem, episodes, problem.occupancies[0], 0)
    sums = residual_sums(problem, statistics)
    assert sums.tolist() == [[[1.0]]]  # four times .75 - .5
    weights = mixture_weights(problem.occupancies, statistics.density, 5)
    assert weights.tolist() == [[[1.0]]]
    assert worst_errors(statistics, sums, weights, 0.1) == pytest.approx(np.array([[0.15]]))
    assert box_errors(statistics, sums, 0.25, 9.0) == pytest.approx(np.array([[0.0625]]))
    assert problem.functions.layer(0)[1].tolist() == [0]


@many
@given(
    small=smalls(),
    limit=st.sampled_from([1e-9, 1.0, 1e12]),
    alpha=st.sampled_from([0.0, 1e-12, 1e6]),
)
def test_no_infinity_and_no_nan_comes_out(small, limit, alpha):
    problem = small.problem
    sums = residual_sums(problem, small.statistics)
    raw = on_cells(small.weights(4), problem.cells)
    extreme = np.stack([np.full_like(raw[0], np.inf), np.full_like(raw[0], -np.inf)])
    weights = signed_clip(np.concatenate([raw, extreme]), limit)
    assert np.isfinite(worst_errors(small.statistics, sums, weights, alpha)).all()
    for signed in (True, False):
        assert np.isfinite(box_errors(small.statistics, sums, alpha, limit, signed)).all()
    own = data_weights(problem.occupancies, small.statistics.density)
    assert not np.isnan(own).any()
    assert np.isfinite(potential_terms(problem.occupancies)).all()


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (np.zeros((2, 2, 2)), ["(F, H, S, A)", "(2, 2, 2)"]),
        (np.zeros((0, 1, 2, 2)), ["(0, 1, 2, 2)"]),
        (np.array([[[[0.5, 1.5]]]]), ["function 0, layer 0, state 0, action 1", "1.5"]),
        (np.array([[[[0.5, 0.5]]], [[[-0.1, 0]]]]), ["function 1", "action 0", "-0.1"]),
        (np.array([[[[np.nan, 0.5]]]]), ["action 0", "nan"]),
        (np.array([[[[0.5, np.inf]]]]), ["action 1", "inf"]),
    ],
)
def test_a_class_with_a_bad_value_or_shape_is_refused(tables, words):
    with pytest.raises(InputError) as refusal:
        FunctionClass(tables)
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)


def test_values_may_miss_the_unit_interval_by_rounding_only():
    FunctionClass(np.array([[[[1 + 1e-12, -1e-12]]]]))
    with pytest.raises(InputError, match="1"):
        FunctionClass(np.array([[[[1 + 1e-6]]]]))


def test_a_class_or_behaviour_for_another_world_is_refused():
    chains = decoy_chains(3, 2)
    with pytest.raises(InputError, match=r"functions have shape \(2, 3, 2\).*\(2, 3, 3\)"):
        make_problem(chains.mdp, chains.tables[..., :2])
    with pytest.raises(InputError, match=r"behaviour has shape \(3, 3\): pass \(2, 3, 3\)"):
        make_problem(chains.mdp, chains.tables, np.ones((3, 3)) / 9)


def absorbing_goal() -> FiniteHorizonMDP:
    """State 0, then 1, then the goal 2, which pays 1 in every layer that one is in it."""
    transition = np.zeros((3, 3, 2, 3))
    transition[:, [0, 1, 2], :, [1, 2, 2]] = 1
    reward = np.zeros((3, 3, 2))
    reward[:, 2] = 1
    return FiniteHorizonMDP(np.array([1.0, 0, 0]), transition, reward, "goal")


def test_values_count_only_where_an_episode_or_the_offline_data_can_be():
    mdp = absorbing_goal()
    best = plan_horizon(mdp).action_values
    assert best.max() == 3  # from a start in the goal, which no episode has
    nonsense = best.copy()
    nonsense[0, 1:], nonsense[1, 2] = -7, 5
    problem = make_problem(mdp, np.stack([best / 2, nonsense, best]))
    assert problem.optimal == 1
    assert np.array_equal(problem.met, np.eye(3))
    assert np.array_equal(problem.functions.tables[1][problem.met], best[problem.met])
    assert np.array_equal(problem.functions.tables[2], np.minimum(best, 1))
    offline = np.zeros_like(best)
    offline[[0, 1, 2], [0, 1, 1], 0] = 1  # in the last layer, of a state that no policy meets there
    covered = make_problem(mdp, best[None], offline)
    assert (covered.met != problem.met).sum() == 1
    assert covered.met[2, 1]
    offline[1] = 0
    offline[1, 2, 0] = 1  # of the goal in layer 1, which is worth 2 there
    with pytest.raises(InputError, match="layer 1, state 2, action 0 has the value 2"):
        make_problem(mdp, best[None], offline)


@many
@given(small=smalls())
def test_values_on_cells_go_back_to_their_pairs(small):
    problem, extra = small.problem, np.arange(3.0)
    for p, policy in enumerate(problem.policies):
        filled = on_pairs(problem, problem.occupancies[p][..., None] * extra)
        assert np.array_equal(filled, occupancy_horizon(problem.mdp, policy)[..., None] * extra)


@pytest.mark.parametrize("models", [(), (absorbing_goal(), decoy_chains(3, 3).mdp)])
def test_models_of_another_world_are_refused(models):
    problem = make_problem(absorbing_goal(), np.zeros((1, 3, 3, 2)))
    with pytest.raises(InputError, match=r"needs one at least|model 1 has layers"):
        model_occupancies(models, problem)


@pytest.mark.parametrize("entry", [np.nan, -0.1, 0.7])
def test_a_behaviour_that_is_no_distribution_is_refused(entry):
    chains = decoy_chains(3, 2)
    behaviour = np.full((2, 3, 3), 1 / 9)
    behaviour[1, 0, 0] = entry
    with pytest.raises(InputError, match="behaviour of layer 1 must be non-negative and sum to 1"):
        make_problem(chains.mdp, chains.tables, behaviour)


def test_a_box_without_limit_is_not_pulled_where_nobody_went():
    problem = make_problem(decoy_chains(3, 2).mdp, decoy_chains(3, 2).tables)
    seen = population_statistics(problem, problem.occupancies[0])
    errors = box_errors(seen, residual_sums(problem, seen), 0.5, np.inf)
    assert np.isfinite(errors).all()
    assert np.allclose(errors, box_errors(seen, residual_sums(problem, seen), 0.5, 1e6))


def test_an_episode_that_no_policy_of_the_class_plays_is_refused_with_its_place():
    chains = decoy_chains(3, 2)
    problem = make_problem(chains.mdp, chains.tables[:2])
    stray = draw_episodes(chains.mdp, np.array([[2, 0, 0], [0, 0, 0]]), np.full((2, 7), 0.5))
    with pytest.raises(InputError) as refusal:
        cell_numbers(problem, stray)
    message = str(refusal.value)
    assert "episode 0" in message
    assert "state 0, action 2 in layer 0" in message
    assert "behaviour" in message
    covered = make_problem(chains.mdp, chains.tables[:2], np.full((2, 3, 3), 1 / 9))
    assert cell_numbers(covered, stray).tolist() == [[2, 6], [2, 6]]


def test_importing_it_needs_neither_torch_nor_plots_nor_frames():
    code = (
        "import sys, offrl_wb.theory.density_ratios;"
        "bad = {'torch', 'plotly', 'polars', 'gymnasium', 'pandas'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
