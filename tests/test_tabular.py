"""Tabular worlds: closed forms, Bellman residuals, occupancies, counts, hard instances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.worlds import tabular
from offrl_wb.worlds.tabular import (
    FiniteHorizonMDP,
    TabularMDP,
    action_values,
    ambiguous_mdp,
    ambiguous_mdp_lower_bound,
    evaluate,
    evaluate_horizon,
    fork_mdp,
    missing_mass_mdp,
    missing_mass_mdp_loss,
    occupancy,
    occupancy_horizon,
    plan_horizon,
    sample_counts,
    sample_counts_horizon,
    value_iteration,
)


def random_world(seed: int, states: int = 5, actions: int = 3, discount: float = 0.9) -> TabularMDP:
    """A random world in which about half of the transitions are impossible."""
    generator = np.random.default_rng(seed)
    shape = (states, actions, states)
    transition = generator.random(shape) * (generator.random(shape) < 0.5)
    transition[..., 0] += 0.1
    transition /= transition.sum(axis=-1, keepdims=True)
    initial = generator.dirichlet(np.ones(states))
    return TabularMDP.from_dense(initial, transition, generator.random(shape), discount)


def random_policies(world: TabularMDP, seed: int, count: int = 4) -> np.ndarray:
    shape = (count, world.states)
    return np.random.default_rng(seed).dirichlet(np.ones(world.actions_count), size=shape)


worlds = st.builds(
    random_world,
    seed=st.integers(0, 10**6),
    states=st.integers(1, 7),
    actions=st.integers(1, 4),
    discount=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
)


def test_a_state_that_pays_one_for_ever_is_worth_one_over_one_minus_discount():
    world = TabularMDP.from_dense([1.0], np.ones((1, 1, 1)), np.ones((1, 1)), 0.95)
    assert value_iteration(world, 1e-9).values == pytest.approx([20], abs=1e-9)
    assert evaluate(world, np.array([0])) == pytest.approx([20])


@settings(max_examples=40, deadline=None)
@given(world=worlds)
def test_value_iteration_meets_its_stated_tolerance(world):
    plan = value_iteration(world, 1e-6)
    exact = value_iteration(world, 1e-10).values
    residual = action_values(world, exact).max(axis=-1) - exact
    assert np.abs(residual).max() <= 1e-10
    assert np.abs(plan.values - exact).max() <= 0.5e-6 + 1e-10
    assert (evaluate(world, plan.actions) >= exact - 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(world=worlds, seed=st.integers(0, 10**6))
def test_evaluation_solves_the_bellman_equation_of_the_policy(world, seed):
    policies = random_policies(world, seed)
    values = evaluate(world, policies)
    backup = (policies * action_values(world, values)).sum(axis=-1)
    assert np.abs(backup - values).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(world=worlds, seed=st.integers(0, 10**6))
def test_occupancy_sums_to_one_and_gives_the_return(world, seed):
    policies = random_policies(world, seed)
    visits = occupancy(world, policies)
    assert np.allclose(visits.sum(axis=(-1, -2)), 1)
    returns = (visits * world.reward).sum(axis=(-1, -2)) / (1 - world.discount)
    assert np.allclose(returns, evaluate(world, policies) @ world.initial)


@settings(max_examples=20, deadline=None)
@given(world=worlds, seed=st.integers(0, 10**6))
def test_occupancy_equals_its_power_series(world, seed):
    policies = random_policies(world, seed)
    step, series = np.broadcast_to(world.initial, (4, world.states)), 0.0
    steps = 1 + int(np.ceil(np.log(1e-10) / np.log(max(world.discount, 0.1))))
    for time in range(steps):
        series = series + (1 - world.discount) * world.discount**time * step
        step = np.einsum("us,usa,sat->ut", step, policies, world.transition_matrix)
    assert np.abs(occupancy(world, policies).sum(axis=-1) - series).max() < 1e-8


def test_states_that_cannot_be_reached_have_an_occupancy_of_exactly_zero():
    mdp, _ = ambiguous_mdp(4, 1.05, 0.3, 0.9)
    visits = occupancy(mdp, np.zeros(mdp.states, dtype=int))
    assert (visits[:, 1] == 0).all()
    one_way = fork_mdp(np.array([1.0, 0.0]), np.array([[1.0, 0.0], [0.5, 0.5]]), 0.9)
    certain = occupancy(one_way, np.zeros(4, dtype=int)).sum(axis=-1)
    assert certain[1] == 0
    assert certain[3] == 0
    assert certain[0] == pytest.approx(0.1)


def test_the_sparse_and_the_dense_route_agree(monkeypatch):
    world = random_world(3, states=9)
    policies = random_policies(world, 4, count=6)
    dense = evaluate(world, policies), occupancy(world, policies)
    monkeypatch.setattr(tabular, "DENSE_STATES", 0)
    assert np.allclose(evaluate(world, policies), dense[0], atol=1e-12)
    assert np.allclose(occupancy(world, policies), dense[1], atol=1e-12)


def test_dense_systems_are_solved_in_batches_with_the_same_result(monkeypatch):
    world = random_world(5)
    policies = random_policies(world, 6, count=50)
    whole = evaluate(world, policies)
    monkeypatch.setattr(tabular, "DENSE_ENTRIES", 3 * world.states**2)
    assert np.allclose(evaluate(world, policies), whole, atol=1e-13)


def test_each_distinct_policy_is_solved_once(monkeypatch):
    world, solved = random_world(7), []
    solve = tabular.solve_policies

    def counted(mdp, tables, *rest, **options):
        solved.append(len(tables))
        return solve(mdp, tables, *rest, **options)

    monkeypatch.setattr(tabular, "solve_policies", counted)
    actions = np.random.default_rng(0).integers(2, size=(30, 40, 5))
    values = evaluate(world, actions)
    assert values.shape == (30, 40, 5)
    assert solved == [32]
    assert np.allclose(values[11, 7], evaluate(world, actions[11, 7]))


def test_actions_and_their_probability_table_have_the_same_value():
    world = random_world(8)
    actions = np.array([0, 2, 1, 1, 0])
    table = np.eye(3)[actions]
    assert np.array_equal(evaluate(world, actions), evaluate(world, table))
    assert evaluate(world, actions).shape == (5,)
    assert occupancy(world, actions).shape == (5, 3)


@settings(max_examples=30, deadline=None)
@given(world=worlds)
def test_dense_and_sparse_forms_are_the_same_world(world):
    reward = np.random.default_rng(0).random((world.states, world.actions_count))
    again = TabularMDP.from_dense(world.initial, world.transition_matrix, reward, world.discount)
    assert np.allclose(again.transition_matrix, world.transition_matrix)
    assert np.allclose(again.reward, reward)
    assert again.successors.shape[2] <= world.states


def test_a_world_is_read_only_and_keeps_its_own_copy():
    initial = np.array([1.0])
    world = TabularMDP.from_dense(initial, np.ones((1, 1, 1)), np.ones((1, 1)), 0.5)
    initial[0] = 7
    assert world.initial[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        world.rewards[0, 0, 0] = 2


GOOD = dict(
    initial=np.array([0.5, 0.5]),
    successors=np.array([[[0, 1]], [[1, 0]]]),
    probabilities=np.array([[[0.5, 0.5]], [[1.0, 0.0]]]),
    rewards=np.ones((2, 1, 2)),
    discount=0.9,
)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("initial", [0.5, 0.4], "the initial distribution must be non-negative and sum to 1"),
        ("initial", [1.0], "initial must have shape"),
        ("successors", [[[0, 1]], [[1, 2]]], "successors of state 1, action 0 hold 2"),
        ("successors", [[[0, -1]], [[1, 0]]], "successors of state 0, action 0 hold -1"),
        (
            "probabilities",
            [[[0.5, 0.5]], [[0.9, 0.0]]],
            "of state 1, action 0 must be non-negative",
        ),
        (
            "probabilities",
            [[[1.5, -0.5]], [[1.0, 0.0]]],
            "of state 0, action 0 must be non-negative",
        ),
        (
            "probabilities",
            [[[0.5, np.nan]], [[1.0, 0.0]]],
            "state 0, action 0, slot 1 is not finite",
        ),
        (
            "rewards",
            [[[1, 1]], [[np.inf, 1]]],
            "rewards of state 1, action 0, slot 0 is not finite",
        ),
        ("rewards", np.ones((2, 1, 3)), "rewards has shape"),
        ("discount", 1.0, "the discount is 1.0"),
        ("discount", -0.1, "the discount is -0.1"),
        ("discount", float("nan"), "the discount is nan"),
    ],
)
def test_a_bad_row_is_named(field, value, message):
    TabularMDP(**GOOD)
    with pytest.raises(InputError, match="(?s)" + message) as problem:
        TabularMDP(**GOOD | {field: np.asarray(value) if field != "discount" else value})
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 3)])
def test_dense_tables_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(InputError, match="transition must have shape"):
        TabularMDP.from_dense([1, 0], np.eye(2)[:, None], np.zeros(shape), 0.5)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.array([0, 1, 2, 3, 0]), "outside 0 to 2"),
        (np.array([0, -1, 2, 1, 0]), "outside 0 to 2"),
        (np.zeros(4, dtype=int), "a policy is integer actions"),
        (np.full((5, 2), 0.5), "a policy is integer actions"),
        (np.full((5, 3), 0.5), "probabilities of policy 0, state 0"),
    ],
)
def test_what_is_no_policy_is_refused(policy, message):
    with pytest.raises(InputError, match=message):
        evaluate(random_world(9), policy)


@pytest.mark.parametrize("tolerance", [0, -1.0, 1e-16, float("nan")])
def test_a_tolerance_beyond_float64_is_refused(tolerance):
    with pytest.raises(InputError, match="tolerance"):
        value_iteration(random_world(9), tolerance)


# Data sets


def test_counts_have_multinomial_means_and_variances():
    world = random_world(10)
    behaviour = np.random.default_rng(0).dirichlet(np.ones(15)).reshape(5, 3)
    counts = sample_counts(world, behaviour, 1000, 5000, np.random.default_rng(1))
    assert (counts.sum(axis=(1, 2, 3)) == 1000).all()
    share = behaviour[..., None] * world.probabilities
    spread = np.sqrt(1000 * share * (1 - share))
    assert (np.abs(counts.mean(axis=0) - 1000 * share) <= 5 * spread / np.sqrt(5000)).all()
    assert np.allclose(counts.std(axis=0), spread, rtol=0.1, atol=0.05)


def test_an_impossible_slot_is_never_drawn():
    mdp, behaviour = ambiguous_mdp(5, 1.05, 1.0, 0.9)
    counts = sample_counts(mdp, behaviour, 10**12, 20, np.random.default_rng(0))
    impossible = (behaviour[..., None] * mdp.probabilities) == 0
    assert impossible.any()
    assert counts[:, impossible].sum() == 0
    assert (counts.sum(axis=(1, 2, 3)) == 10**12).all()


@pytest.mark.parametrize(
    ("behaviour", "size", "datasets", "message"),
    [
        (np.full((5, 2), 0.1), 10, 1, "behaviour has shape"),
        (np.full((5, 3), 0.1), 10, 1, "the behaviour distribution"),
        (np.full((5, 3), 1 / 15), -1, 1, "size -1"),
        (np.full((5, 3), 1 / 15), 10, 0, "0 data sets"),
        (np.full((5, 3), 1 / 15), 1.5, 1, "size 1.5"),
    ],
)
def test_data_sets_that_cannot_be_drawn_are_refused(behaviour, size, datasets, message):
    with pytest.raises(InputError, match=message):
        sample_counts(random_world(11), behaviour, size, datasets, np.random.default_rng(0))


# Finite horizons


def layered_world(seed: int = 0, horizon: int = 3) -> FiniteHorizonMDP:
    generator = np.random.default_rng(seed)
    return FiniteHorizonMDP(
        generator.dirichlet(np.ones(3)),
        generator.dirichlet(np.ones(3), size=(horizon, 3, 2)),
        generator.random((horizon, 3, 2)),
    )


def test_backward_induction_beats_every_policy_and_is_attained():
    world = layered_world()
    every = np.indices((2,) * 9).reshape(9, -1).T.reshape(-1, 3, 3)
    returns = evaluate_horizon(world, every)[:, 0] @ world.initial
    plan = plan_horizon(world)
    assert plan.values[0] @ world.initial == pytest.approx(returns.max())
    assert evaluate_horizon(world, plan.actions) == pytest.approx(plan.values)


def test_occupancies_of_layers_sum_to_one_and_give_the_return():
    world = layered_world(1, horizon=6)
    policy = np.random.default_rng(2).dirichlet(np.ones(2), size=(5, 6, 3))
    visits = occupancy_horizon(world, policy)
    assert np.allclose(visits.sum(axis=(-1, -2)), 1)
    returns = (visits * world.reward).sum(axis=(-1, -2, -3))
    assert np.allclose(returns, evaluate_horizon(world, policy)[:, 0] @ world.initial)


def test_a_discounted_world_is_a_finite_one_with_a_long_horizon():
    world = random_world(12, discount=0.5)
    horizon = 40
    scale = 0.5 ** np.arange(horizon)[:, None, None]
    finite = FiniteHorizonMDP(
        world.initial,
        np.broadcast_to(world.transition_matrix, (horizon, 5, 3, 5)),
        scale * world.reward,
    )
    exact = value_iteration(world, 1e-10).values
    assert plan_horizon(finite).values[0] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": np.array([0.5, 0.4, 0.0])}, "initial distribution"),
        ({"reward": np.zeros((3, 3, 3))}, "reward must be finite"),
        ({"reward": np.full((3, 3, 2), np.nan)}, "reward must be finite"),
        ({"transition": np.zeros((3, 3, 2, 3))}, "of layer 0, state 0, action 0"),
        ({"transition": np.zeros((3, 3, 2))}, "transition must have shape"),
    ],
)
def test_a_bad_layer_is_named(change, message):
    good = layered_world()
    fields = {name: getattr(good, name) for name in ("initial", "transition", "reward")}
    with pytest.raises(InputError, match=message):
        FiniteHorizonMDP(**fields | change)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.full((3, 3), 2), "outside 0 to 1"),
        (np.zeros(3, dtype=int), "a policy is integer actions"),
        (np.full((3, 3, 2), 0.4), "policy 0, layer 0, state 0"),
    ],
)
def test_what_is_no_layered_policy_is_refused(policy, message):
    with pytest.raises(InputError, match=message):
        evaluate_horizon(layered_world(), policy)


def test_counts_of_layers_have_multinomial_means_and_layers_are_independent():
    world = layered_world(3)
    behaviour = np.random.default_rng(0).dirichlet(np.ones(6), size=3).reshape(3, 3, 2)
    counts = sample_counts_horizon(world, behaviour, 500, 5000, np.random.default_rng(1))
    assert counts.shape == (5000, 3, 3, 2, 3)
    assert (counts.sum(axis=(2, 3, 4)) == 500).all()
    share = behaviour[..., None] * world.transition
    spread = np.sqrt(500 * share * (1 - share))
    assert (np.abs(counts.mean(axis=0) - 500 * share) <= 5 * spread / np.sqrt(5000)).all()
    assert np.allclose(counts.std(axis=0), spread, rtol=0.1, atol=0.05)
    between = np.corrcoef(counts[:, :, 0, 0, 0].T)
    assert np.abs(between - np.eye(3)).max() < 5 / np.sqrt(5000)


def test_an_impossible_transition_of_a_layer_is_never_drawn():
    transition = np.zeros((2, 2, 1, 2))
    transition[:, :, 0, 1] = 1
    world = FiniteHorizonMDP(np.array([1.0, 0.0]), transition, np.zeros((2, 2, 1)))
    flow = occupancy_horizon(world, np.zeros((2, 2), dtype=int))
    counts = sample_counts_horizon(world, flow, 10**12, 7, np.random.default_rng(0))
    assert (counts[:, 0, 0, 0, 1] == 10**12).all()
    assert (counts[:, 1, 1, 0, 1] == 10**12).all()
    assert counts.sum() == 2 * 7 * 10**12


@pytest.mark.parametrize(
    ("behaviour", "size", "datasets", "message"),
    [
        (np.full((3, 2), 1 / 6), 10, 1, "behaviour has shape"),
        (np.full((3, 3, 2), 1 / 18), 10, 1, "the behaviour of layer 0"),
        (np.full((3, 3, 2), 1 / 6), -1, 1, "size -1"),
        (np.full((3, 3, 2), 1 / 6), 10, 0, "0 data sets"),
        (np.full((3, 3, 2), 1 / 6), 1.5, 1, "size 1.5"),
    ],
)
def test_layered_data_sets_that_cannot_be_drawn_are_refused(behaviour, size, datasets, message):
    with pytest.raises(InputError, match=message):
        sample_counts_horizon(layered_world(), behaviour, size, datasets, np.random.default_rng(0))


# Hard instances


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0, 7.0])
def test_the_ambiguous_world_has_the_concentrability_asked_for(discount, share):
    asked = 1 + share * (1 - discount)
    signs = np.array([1, -1, -1, 1])
    mdp, behaviour = ambiguous_mdp(4, asked, 0.3, discount, signs)
    assert behaviour.sum() == pytest.approx(1)
    best = value_iteration(mdp).actions
    assert best[1:5].tolist() == [0, 1, 1, 0]
    expert = occupancy(mdp, best)
    assert (behaviour[expert > 0] > 0).all()
    ratio = (expert[expert > 0] / behaviour[expert > 0]).max()
    assert ratio == pytest.approx(asked, rel=1e-12)


def test_expert_data_of_the_ambiguous_world_are_its_occupancy():
    mdp, behaviour = ambiguous_mdp(3, 1.0, 0.3, 0.9)
    assert np.allclose(behaviour, occupancy(mdp, np.zeros(6, dtype=int)))


def test_the_gap_in_value_is_gap_times_discount_over_one_minus_discount():
    mdp, _ = ambiguous_mdp(3, 1.02, 0.25, 0.9)
    table = value_iteration(mdp).action_values
    assert table[1:4, 0] - table[1:4, 1] == pytest.approx(np.full(3, 0.25 * 9))


def test_missing_mass_has_pure_expert_data():
    good = np.array([1, 0, 1, 1, 0])
    mdp, behaviour = missing_mass_mdp(5, 1000, 0.9, good)
    best = value_iteration(mdp).actions
    assert best[:5].tolist() == good.tolist()
    assert np.array_equal(behaviour, occupancy(mdp, best))
    assert mdp.initial[1:5] == pytest.approx(np.full(4, 1 / 101))


def test_missing_mass_loses_its_closed_form():
    assert missing_mass_mdp_loss(5, 1000, 0.9) == pytest.approx(0.0662, abs=5e-5)
    approximation = 5 * 0.9 / (2 * np.e * 0.01 * 10**6)  # S gamma / (2 e (1-gamma)^2 N)
    assert missing_mass_mdp_loss(6, 10**6, 0.9) == pytest.approx(approximation, rel=1e-3)


@pytest.mark.parametrize(
    ("reward", "noise", "message"),
    [
        (0.5, "gaussian", "pass 'none' or 'bernoulli'"),
        (1.5, "bernoulli", "layer 0, state 0, action 0"),
    ],
)
def test_a_noise_that_cannot_be_is_refused(reward, noise, message):
    with pytest.raises(InputError, match=message):
        FiniteHorizonMDP(np.ones(1), np.ones((1, 1, 1, 1)), np.full((1, 1, 1), reward), noise=noise)


def test_the_ambiguous_bound_has_its_rate_at_the_hardest_gap():
    sizes = np.array([10**4, 10**5, 10**6])
    gap = np.sqrt(5 * 1.05 / (8 * sizes * 0.05))
    bound = ambiguous_mdp_lower_bound(5, 1.05, gap, 0.9, sizes)
    rate = 0.9 / 0.01 * np.sqrt(5 * 1.05 * 0.05 / sizes)
    assert (bound >= 0.05 * rate).all()
    assert (bound <= 0.09 * rate).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.05, 0.3, 0.9), "1 decision state or more"),
        ((3, 0.9, 0.3, 0.9), "concentrability of 1 or more"),
        ((3, np.nan, 0.3, 0.9), "concentrability of 1 or more"),
        ((3, 1.05, 1.3, 0.9), "gap in"),
        ((3, 1.05, 0.3, 1.0), "discount"),
        ((3, 1.05, 0.3, 0.9, np.array([1, 1])), "signs must be 3 numbers"),
        ((3, 1.05, 0.3, 0.9, np.array([1, 1, 0])), "signs must be 3 numbers"),
    ],
)
def test_an_impossible_ambiguous_world_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ambiguous_mdp(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 10, 0.9), "do not fit"),
        ((0, 10, 0.9), "do not fit"),
        ((3, 100, 0.9, np.array([0, 1])), "good_actions must be 3"),
        ((3, 100, 0.9, np.array([0, 1, 2])), "good_actions must be 3"),
        ((3, 100, 1.5), "discount"),
    ],
)
def test_an_impossible_missing_mass_world_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        missing_mass_mdp(*arguments)
