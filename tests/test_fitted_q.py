"""Fitted-Q evaluation against exact values, with the coverage its intervals claim."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy, as_policy
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.world_logs import lava_grid_log, maze_log
from offrl_wb.protocols.fitted_q import (
    Block,
    FourierFeatures,
    QuadraticFeatures,
    TableStatistics,
    bellman_spread,
    counted_statistics,
    empirical_world,
    fitted_q,
    fitted_value,
    fourier_features,
    linear_fitted_q,
    linear_policy_value,
    policy_features,
    ranking,
    table_statistics,
    value_difference,
)
from offrl_wb.worlds.lava_grid import LavaGrid, to_tabular
from offrl_wb.worlds.linear_gaussian import LinearGaussianWorld, LinearPolicy, simulate, visits
from offrl_wb.worlds.tabular import TabularMDP, evaluate, sample_counts, value_iteration


def random_world(seed, states=6, actions=2, discount=0.8):
    generator = np.random.default_rng(seed)
    mdp = TabularMDP.from_dense(
        generator.dirichlet(np.ones(states)),
        generator.dirichlet(np.full(states, 0.4), size=(states, actions)),
        generator.normal(size=(states, actions, states)),
        discount,
    )
    policy = generator.dirichlet(np.ones(actions), size=states)
    behaviour = generator.dirichlet(np.full(states * actions, 8.0)).reshape(states, actions)
    return mdp, policy, behaviour, generator


def one_by_one(rows, states, actions):
    """The sums of a log, plainly."""
    sums = [np.zeros((states, actions, states + 1)) for _ in range(3)]
    for s, a, r, t, over in zip(*rows[:5], strict=True):
        for power, table in enumerate(sums):
            table[s, a, states if over else t] += r**power
    return TableStatistics(*sums)


def episodes_log(seed=0, count=40, states=5, actions=3):
    generator = np.random.default_rng(seed)
    size = count * 6
    return Dataset.from_arrays(
        generator.integers(states, size=size),
        generator.integers(actions, size=size),
        generator.normal(size=size),
        np.tile(np.arange(6) == 5, count) & np.repeat(generator.random(count) < 0.5, 6),
        np.tile(np.arange(6) == 5, count),
        next_observations=generator.integers(states, size=size),
        episode=np.repeat(np.arange(count), 6),
    )


def test_sums_of_a_log_are_those_of_its_rows():
    log = episodes_log()
    rows = log.arrays()
    plain = one_by_one(
        (rows.observations, rows.actions, rows.rewards, rows.next_observations, rows.terminated),
        5,
        3,
    )
    found = table_statistics(log, 5, 3)
    for mine, theirs in zip(found, plain, strict=True):
        assert mine == pytest.approx(theirs)
    assert found.rows[..., 5].sum() == rows.terminated.sum()


def test_sums_of_counts_are_those_of_the_rows_they_count():
    mdp, _, behaviour, generator = random_world(1)
    counts = sample_counts(mdp, behaviour, 300, 2, generator)
    found = counted_statistics(mdp, counts)
    assert found.rows.shape == (2, 6, 2, 7)
    for number in range(2):
        s, a, k = (
            np.repeat(i, counts[number].ravel()) for i in np.indices((6, 2, 6)).reshape(3, -1)
        )
        over = np.zeros(len(s), dtype=bool)
        plain = one_by_one((s, a, mdp.rewards[s, a, k], mdp.successors[s, a, k], over), 6, 2)
        for mine, theirs in zip(found, plain, strict=True):
            assert mine[number] == pytest.approx(theirs)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.97))
def test_with_the_true_probabilities_the_fixed_point_is_the_truth(seed, discount):
    mdp, policy, _, _ = random_world(seed, discount=discount)
    found = fitted_q(counted_statistics(mdp, mdp.probabilities), policy, discount)
    assert (policy * found).sum(axis=1) == pytest.approx(evaluate(mdp, policy), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 400))
def test_rounds_of_regression_lead_to_the_fixed_point(seed, size):
    mdp, policy, behaviour, generator = random_world(seed)
    log = counted_statistics(mdp, sample_counts(mdp, behaviour, size, 1, generator)[0])
    fixed = fitted_q(log, policy, 0.8)
    far = np.abs(fitted_q(log, policy, 0.8, iterations=10) - fixed).max()
    near = np.abs(fitted_q(log, policy, 0.8, iterations=40) - fixed).max()
    assert near <= 0.8**30 * far + 1e-9
    assert (fitted_q(log, policy, 0.8, iterations=0) == 0).all()
    batch = TableStatistics(*(np.stack([part, part]) for part in log))
    assert fitted_q(batch, policy, 0.8)[1] == pytest.approx(fixed)


def test_a_terminated_row_is_worth_its_reward():
    log = Dataset.from_arrays([0, 1], [0, 0], [2.0, 3.0], [0, 1], next_observations=[1, 0])
    found = fitted_q(table_statistics(log, 2, 1), np.array([0, 0]), 0.5)
    assert found[:, 0].tolist() == [2 + 0.5 * 3, 3]


def test_an_unlogged_pair_is_worth_what_the_user_says_and_is_counted():
    mdp, _, behaviour, generator = random_world(2)
    behaviour = behaviour.copy()
    behaviour[3] = [behaviour[3].sum(), 0]
    log = counted_statistics(mdp, sample_counts(mdp, behaviour, 5000, 1, generator)[0])
    assert not empirical_world(log).seen[3, 1]
    assert fitted_q(log, np.ones(6, int), 0.8, unseen=-7.0)[3, 1] == -7
    covered = fitted_value(log, np.zeros(6, int), 0.8, mdp.initial)
    lost = fitted_value(log, np.ones(6, int), 0.8, mdp.initial)
    assert covered.uncovered == 0
    assert 0.01 < lost.uncovered < 0.5
    low = fitted_value(log, np.ones(6, int), 0.8, mdp.initial, unseen=-7.0)
    assert low.value < lost.value


def test_the_spread_is_the_variance_of_what_the_rows_say():
    log = episodes_log(seed=3, count=200)
    rows, sums = log.arrays(), table_statistics(log, 5, 3)
    policy = np.full((5, 3), 1 / 3)
    found = fitted_q(sums, policy, 0.9)
    values = (policy * found).sum(axis=1)
    spread = bellman_spread(sums, found, values, 0.9)
    after = np.where(rows.terminated, 0, values[rows.next_observations])
    targets = rows.rewards + 0.9 * after
    for state in range(5):
        for action in range(3):
            own = targets[(rows.observations == state) & (rows.actions == action)]
            assert found[state, action] == pytest.approx(own.mean())
            assert spread[state, action] == pytest.approx(own.var(ddof=1))


def test_a_pair_of_one_row_gets_the_others_spread():
    seen, rewards = [0, 0, 0, 1], [0.0, 1.0, 2.0, 5.0]
    log = Dataset.from_arrays(seen, [0] * 4, rewards, [1] * 4, next_observations=[0] * 4)
    sums = table_statistics(log, 2, 1)
    found = fitted_q(sums, np.zeros(2, int), 0.5)
    spread = bellman_spread(sums, found, found[:, 0], 0.5)
    assert spread[:, 0] == pytest.approx([1, 1])
    value = fitted_value(sums, np.zeros(2, int), 0.5, np.array([0.5, 0.5]))
    assert float(value.error) == pytest.approx(np.sqrt(0.25 * 1 / 3 + 0.25 * 1))


@pytest.mark.parametrize("seed", [0, 5])
def test_intervals_cover_the_exact_value_as_often_as_they_say(seed):
    mdp, policy, behaviour, generator = random_world(seed)
    logs = counted_statistics(mdp, sample_counts(mdp, behaviour, 2000, 800, generator))
    found = fitted_value(logs, policy, 0.8, mdp.initial)
    truth = float(evaluate(mdp, policy) @ mdp.initial)
    for level in (0.5, 0.95):
        low, high = found.interval(level)[1:]
        covered = ((low < truth) & (truth < high)).mean()
        assert abs(covered - level) < 5 * (level * (1 - level) / 800) ** 0.5 + 0.01
    assert found.value.mean() == pytest.approx(truth, abs=5 * found.value.std() / 800**0.5 + 2e-3)
    assert found.value.std() == pytest.approx(found.error.mean(), rel=0.1)


def indicators(log, policy, states, actions):
    """The log as one block of indicator features, and its starts'."""
    rows = log.arrays()
    own = np.eye(states * actions)[rows.observations * actions + rows.actions]
    ahead = np.zeros((len(log), states, actions))
    ahead[np.arange(len(log)), rows.next_observations] = policy[rows.next_observations]
    ahead[rows.terminated] = 0
    numbers = np.repeat(np.arange(log.episode_count), log.lengths)
    starts = np.zeros((log.episode_count, states, actions))
    first = rows.observations[log.starts]
    starts[np.arange(len(first)), first] = policy[first]
    block = Block(own, ahead.reshape(len(log), -1), rows.rewards, numbers)
    return block, starts.reshape(len(first), -1)


def test_indicators_make_the_linear_method_the_tables():
    log = episodes_log(seed=4, count=100)
    policy = np.random.default_rng(1).dirichlet(np.ones(3), size=5)
    block, starts = indicators(log, policy, 5, 3)
    linear = linear_fitted_q(lambda: [block], starts, 0.9, ridge=0.0)
    table = fitted_q(table_statistics(log, 5, 3), policy, 0.9)
    assert linear.weights.reshape(5, 3) == pytest.approx(table)
    first = log.arrays().observations[log.starts]
    assert linear.value == pytest.approx((policy * table).sum(axis=1)[first].mean())
    assert linear.contraction <= 0.9 + 1e-9
    assert linear.influence.sum() == pytest.approx(0, abs=1e-10)


def test_a_dataset_and_a_policy_give_the_same_as_their_features():
    log = episodes_log(seed=4, count=100)
    policy = TabularPolicy(np.random.default_rng(1).dirichlet(np.ones(3), size=5))
    block, starts = indicators(log, policy.table, 5, 3)
    wanted = linear_fitted_q(lambda: [block], starts, 0.9)

    def features(observations, actions):
        return np.eye(15)[np.asarray(observations) * 3 + actions]

    for rows in (7, 10_000):  # in pieces or at once
        found = linear_policy_value(log, policy, features, 0.9, rows=rows)
        assert found.value == pytest.approx(wanted.value)
        assert found.influence == pytest.approx(wanted.influence)


def test_rows_of_one_episode_count_as_one():
    log = episodes_log(seed=5, count=150)
    policy = TabularPolicy(np.full((5, 3), 1 / 3))

    def features(observations, actions):
        return np.eye(15)[np.asarray(observations) * 3 + actions]

    single = linear_policy_value(log, policy, features, 0.9)
    twice = linear_policy_value(log.select(np.repeat(np.arange(150), 2)), policy, features, 0.9)
    assert twice.value == pytest.approx(single.value)
    assert twice.error == pytest.approx(single.error / 2**0.5, rel=0.01)
    frame = log.transitions.with_columns(episode=pl.col("episode") // 5)
    joined = Dataset.from_frames(frame.with_columns(next_obs=log.arrays().next_observations))
    clustered = linear_policy_value(joined, policy, features, 0.9)
    assert len(clustered.influence) == 30


def lq_plant():
    return LinearGaussianWorld(
        dynamics=np.array([[1.0, 0.1], [0.0, 0.95]]),
        control=np.array([[0.0], [0.1]]),
        noise=0.001 * np.eye(2),
        start_mean=np.array([1.0, 0.0]),
        start_covariance=0.05 * np.eye(2),
        state_cost=np.eye(2),
        action_cost=np.array([[0.1]]),
        horizon=30,
    )


def lq_log(seed, episodes=300):
    logger = LinearPolicy(np.array([[-1.0, -1.0]]), np.array([[0.5]]))
    runs = simulate(lq_plant(), logger, episodes, np.random.default_rng(seed))
    return Dataset.from_arrays(
        runs.observations[:, :-1].reshape(-1, 2),
        runs.actions.reshape(-1, 1),
        runs.rewards.reshape(-1),
        np.zeros(30 * episodes, bool),
        np.tile(np.arange(30) == 29, episodes),
        final_observations=runs.observations[:, -1],
    )


def exact_lq(policy, discount=0.9):
    moments = visits(replace(lq_plant(), horizon=500), policy)
    second = moments.covariances + moments.means[:, :, None] * moments.means[:, None, :]
    costs = (second * lq_plant().pair_cost).sum(axis=(1, 2))
    return -(discount ** np.arange(500) * costs).sum()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_quadratic_features_are_exact_on_a_linear_quadratic_system(noise):
    judged = LinearPolicy(np.array([[-2.0, -1.5]]), np.array([[noise]]))
    truth, held, errors = exact_lq(judged), [], []
    for seed in range(40):
        found = linear_policy_value(
            lq_log(seed, 100), judged, QuadraticFeatures(), 0.9, samples=8 * (noise > 0), seed=seed
        )
        low, high = found.interval()[1:]
        held.append(low < truth < high)
        errors.append(found.value - truth)
    assert np.mean(held) > 0.8
    assert abs(np.mean(errors)) < 5 * np.std(errors) / 40**0.5 + 0.03 * abs(truth)


def test_what_two_policies_share_cancels_in_their_difference():
    log = lq_log(0)
    near = [LinearPolicy(np.array([[gain, -1.0]]), np.zeros((1, 1))) for gain in (-1.5, -1.6)]
    first, second = (linear_policy_value(log, p, QuadraticFeatures(), 0.9) for p in near)
    gap = value_difference(first, second)
    assert gap.estimate == pytest.approx(first.value - second.value)
    assert gap.high - gap.low < 0.3 * (first.interval().high - first.interval().low)
    assert gap.low < exact_lq(near[0]) - exact_lq(near[1]) < gap.high
    with pytest.raises(InputError, match="not from the same log"):
        value_difference(
            first, linear_policy_value(lq_log(1, 50), near[0], QuadraticFeatures(), 0.9)
        )


def test_an_iteration_that_diverges_is_told():
    # Two states of which one feature sees twice the other: the classical divergence of
    # Tsitsiklis and Van Roy 1996, where only the first state is logged
    block = Block(np.ones((10, 1)), 2 * np.ones((10, 1)), np.ones(10), np.arange(10))
    found = linear_fitted_q(lambda: [block], np.ones((10, 1)), 0.9, ridge=0.0)
    assert found.contraction == pytest.approx(1.8)
    assert found.value == pytest.approx(1 / (1 - 1.8))  # a fixed point all the same, and nonsense
    assert not found.trusted
    assert linear_fitted_q(lambda: [block], np.ones((10, 1)), 0.4, ridge=0.0).trusted  # 0.8
    just = linear_fitted_q(lambda: [block], np.ones((10, 1)), 0.49999, ridge=0.0)
    assert just.trusted
    assert not replace(just, contraction=1.0).trusted
    assert not replace(just, contraction=float("nan")).trusted
    zero = block._replace(features=np.zeros((10, 2)), following=np.zeros((10, 2)))
    with pytest.raises(InputError, match="linearly dependent"):
        linear_fitted_q(lambda: [zero], np.ones((10, 2)), 0.9, ridge=0.0)


def test_policies_are_averaged_exactly_or_drawn():
    seen = np.arange(4)

    def features(observations, actions):
        return np.stack([np.ravel(observations), np.ravel(actions)], 1).astype(float)

    table = TabularPolicy(np.array([[0.5, 0.5], [1, 0], [0, 1], [0.25, 0.75]]))
    exact = policy_features(features, table, seen)
    assert exact == pytest.approx(np.array([[0, 0.5], [1, 0], [2, 1], [3, 0.75]]))
    mode = policy_features(features, as_policy(lambda o: np.asarray(o) + 1.0), seen)
    assert mode[:, 1].tolist() == [1, 2, 3, 4]
    noisy = LinearPolicy(np.zeros((1, 1)), np.eye(1), np.array([2.0]))
    drawn = policy_features(features, noisy, np.zeros((3, 1)), 4000, np.random.default_rng(0))
    assert drawn[:, 1] == pytest.approx([2, 2, 2], abs=5 / 4000**0.5)


def test_features_of_continuous_pairs():
    pairs = QuadraticFeatures()(np.array([[2.0, 3.0]]), np.array([[5.0]]))
    assert pairs.tolist() == [[1, 2, 3, 5, 4, 6, 10, 9, 15, 25]]
    log = maze_log(1000, seed=1)
    fourier = fourier_features(log, 4000, 0.5, seed=2)
    assert isinstance(fourier, FourierFeatures)
    rows = log.arrays()
    found = fourier(rows.observations[:30], rows.actions[:30])
    assert found.shape == (30, 1 + 4 + 4000)
    scaled, waves = found[:, 1:5], found[:, 5:]
    distance = ((scaled[:, None] - scaled) ** 2).sum(axis=2)
    kernel = np.exp(-distance / (2 * 0.5**2 * 4))
    assert np.abs(waves @ waves.T - kernel).max() < 5 / 4000**0.5
    assert fourier_features(log, 5)(rows.observations[:3], rows.actions[:3]).shape == (3, 10)
    for count, bandwidth in ((0, 1.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(InputError, match="pass 1 feature or more"):
            fourier_features(log, count, bandwidth)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=9))
def test_correlations_are_spearmans(pairs):
    guess, true = np.array(pairs, dtype=float).T
    found = ranking(guess, true)
    if np.ptp(guess) == 0 or np.ptp(true) == 0:
        assert np.isnan(found.correlation)
    else:
        assert found.correlation == pytest.approx(spearmanr(guess, true).statistic)
    assert 0 <= found.regret <= 1
    assert ranking(guess, true, k=len(pairs)).regret == 0
    assert found.error == pytest.approx(np.abs(guess - true).mean())


def test_on_a_clean_covered_deterministic_log_selection_is_perfect():
    grid, generator = to_tabular(LavaGrid()), np.random.default_rng(0)
    best = value_iteration(grid).action_values
    policies = [
        0.9 * np.eye(4)[(best + generator.normal(scale=0.3, size=best.shape)).argmax(axis=1)]
        + 0.025
        for _ in range(12)
    ]
    truth = [float(evaluate(grid, policy) @ grid.initial) for policy in policies]
    sums = table_statistics(lava_grid_log(), 121, 4)
    found = [fitted_value(sums, policy, 0.99, grid.initial) for policy in policies]
    assert [float(value.value) for value in found] == pytest.approx(truth)
    assert max(float(value.error) for value in found) < 1e-4
    spoiled = table_statistics(lava_grid_log("dynamics", 0.3), 121, 4)
    wrong = [fitted_value(spoiled, policy, 0.99, grid.initial) for policy in policies]
    errors = np.array([float(value.value) for value in wrong]) - truth
    assert (errors > 0.5).all()  # lifts over the lava make every policy look better


def test_noisy_logs_still_choose_well_where_policies_differ():
    mdp, _, behaviour, generator = random_world(3, states=8, actions=3)
    policies = generator.dirichlet(np.full(3, 0.3), size=(15, 8))
    truth = [float(evaluate(mdp, policy) @ mdp.initial) for policy in policies]
    logs = counted_statistics(mdp, sample_counts(mdp, behaviour, 3000, 20, generator))
    values = np.array([fitted_value(logs, policy, 0.8, mdp.initial).value for policy in policies])
    found = [ranking(one, truth) for one in values.T]
    assert np.mean([one.correlation for one in found]) > 0.9
    assert np.mean([one.regret for one in found]) < 0.1


def test_what_cannot_be_judged_is_refused():
    log, sums = episodes_log(), table_statistics(episodes_log(), 5, 3)
    floats = Dataset.from_arrays(np.zeros((3, 2)), [0, 1, 0], np.ones(3), [0, 0, 1])
    for message, function, values in (
        ("each observation must be one whole number", table_statistics, (floats, 5, 3)),
        ("observation 4 at row .*: there are 4", table_statistics, (log, 4, 3)),
        ("action 2 at row .*: there are 2", table_statistics, (log, 5, 2)),
        ("a policy is actions .5,. or probabilities", fitted_q, (sums, np.ones((5, 3)), 0.9)),
        ("a policy is actions", fitted_q, (sums, np.full((4, 3), 1 / 3), 0.9)),
        ("the discount is 1.0", fitted_q, (sums, np.zeros(5, int), 1.0)),
        ("no discount is known", linear_policy_value, (log, lambda o: o, QuadraticFeatures())),
        (r"\(2,\) estimates, \(3,\) true values, k = 1", ranking, ([1, 2], [1, 2, 3])),
        ("k = 3", ranking, ([1, 2], [1, 2], 3)),
    ):
        with pytest.raises(InputError, match=message):
            function(*values)
