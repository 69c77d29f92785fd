"""Off-policy value estimates: closed forms, unbiasedness, invariances, and a loop that agrees."""

import importlib.util

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy
from offrl_wb.core.random import stream
from offrl_wb.core.records import SCHEMA
from offrl_wb.data.bandit_logs import LOG_SCHEMA, BanditLog, log_counts, read_bandit_log, split
from offrl_wb.protocols.bandit_ope import (
    ESTIMATORS,
    action_effects,
    assignment_test,
    cell_means,
    composition_curve,
    cross_fitted_models,
    doubly_robust,
    doubly_robust_difference,
    effective_sample_size,
    equal_rates_p_value,
    every_estimate,
    importance_weights,
    inverse_propensity,
    logged_policy,
    mean_reward,
    policy_table,
    resampled_cell_means,
    resampled_frequencies,
    reward_model,
    self_normalised,
    two_log_study,
)

RHO = np.array([0.5, 0.3, 0.2])
TRUTH = np.array([[0.2, 0.7, 0.4], [0.6, 0.5, 0.1], [0.1, 0.9, 0.8]])
LOGGING = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]])
TARGET = np.array([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.0, 0.5, 0.5]])
VALUE = float((RHO[:, None] * TARGET * TRUTH).sum())


def world(size: int, generator: np.random.Generator, played=LOGGING, recorded=None) -> BanditLog:
    """Logged rows of a world with known truth; `recorded`: propensities other than the right."""
    context = generator.choice(3, size=size, p=RHO)
    uniform = generator.random(size)
    action = (uniform[:, None] > played[context].cumsum(axis=1)).sum(axis=1).clip(max=2)
    reward = (generator.random(size) < TRUTH[context, action]).astype(float)
    propensity = (played if recorded is None else recorded)[context, action]
    rows = dict(context=context, action=action, reward=reward, propensity=propensity)
    frame = pl.DataFrame(rows, schema=LOG_SCHEMA)
    return BanditLog(frame, ("a", "b", "c"), ("x", "y", "z"), "design", {"source": "world"})


@st.composite
def logs_and_policies(draw):
    generator = np.random.default_rng(draw(st.integers(0, 100_000)))
    contexts, actions = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    size = draw(st.integers(5, 60))
    rows = {
        "context": generator.integers(contexts, size=size),
        "action": generator.integers(actions, size=size),
        "reward": generator.random(size).round(draw(st.integers(0, 3))),
        "propensity": generator.uniform(0.05, 1, size=size).round(2),
    }
    frame = pl.DataFrame(rows, schema=LOG_SCHEMA)
    labels = tuple(map(str, range(contexts))), tuple(map(str, range(actions)))
    table = generator.dirichlet(np.ones(actions), size=contexts)
    return BanditLog(frame, *labels, "design", {}), table


def with_clusters(log: BanditLog, cluster: np.ndarray) -> BanditLog:
    rows = log.rows.with_columns(cluster=pl.Series(cluster.astype(np.int64)))
    return BanditLog(rows, log.context_labels, log.action_labels, "design", {})


def clustered_world(clusters: int, size: int, seed: int, confounded: bool = False) -> BanditLog:
    """Action 1 is worth 0.2; clusters differ in level and, if confounded, draw it unequally."""
    generator = stream(seed, "clustered world")
    cluster = np.repeat(np.arange(clusters), size)
    level = generator.uniform(0, 0.8, size=clusters)[cluster]
    action = generator.random(len(cluster)) < (0.1 + level if confounded else 0.5)
    reward = generator.random(len(cluster)) < level + 0.2 * action
    rows = {
        "context": generator.integers(2, size=len(cluster)),
        "action": action.astype(int),
        "reward": reward.astype(float),
        "propensity": np.full(len(cluster), 0.5),
    }
    frame = pl.DataFrame(rows, schema=LOG_SCHEMA)
    return with_clusters(BanditLog(frame, ("a", "b"), ("0", "1"), "design", {}), cluster)


def without_clusters(log: BanditLog) -> BanditLog:
    return BanditLog(log.rows.drop("cluster"), log.context_labels, log.action_labels, "design", {})


def width(interval) -> float:
    return float(np.squeeze(interval.high - interval.low))


def by_loop(log: BanditLog, table: np.ndarray, model: np.ndarray) -> dict[str, float]:
    """The three estimates as the papers write them, one row at a time."""
    weighted = weights = robust = 0.0
    for context, action, reward, propensity in log.rows.iter_rows():
        weight = table[context, action] / propensity
        weighted += weight * reward
        weights += weight
        direct = sum(table[context, a] * model[context, a] for a in range(log.shape[1]))
        robust += direct + weight * (reward - model[context, action])
    size = len(log)
    return {
        "inverse_propensity": weighted / size,
        "self_normalised": weighted / weights,
        "doubly_robust": robust / size,
    }


# --- against an independent implementation -------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(case=logs_and_policies(), seed=st.integers(0, 100))
def test_every_estimator_agrees_with_a_loop_over_the_rows(case, seed):
    log, table = case
    model = np.random.default_rng(seed).random(log.shape)
    expected = by_loop(log, table, model)
    for name, estimator in ESTIMATORS.items():
        extra = {"model": model} if name == "doubly_robust" else {}
        estimate = estimator(log, table, resamples=2, **extra)
        assert np.isclose(estimate.value.estimate, expected[name])


@settings(max_examples=25, deadline=None)
@given(case=logs_and_policies())
def test_cross_fitted_doubly_robust_agrees_with_a_loop_over_the_folds(case):
    log, table = case
    fold, models = cross_fitted_models(log, 3, stream(0, "folds"))
    total = 0.0
    for (context, action, reward, propensity), k in zip(log.rows.iter_rows(), fold, strict=True):
        weight = table[context, action] / propensity
        total += table[context] @ models[k, context] + weight * (
            reward - models[k, context, action]
        )
    estimate = doubly_robust(log, table, folds=3, resamples=2)
    assert np.isclose(estimate.value.estimate, total / len(log))


def test_the_interval_agrees_with_a_plain_bootstrap_of_rows():
    log = world(400, stream(0, "log"))
    terms = importance_weights(log, TARGET) * log.column("reward")
    generator = np.random.default_rng(1)
    means = terms[generator.integers(400, size=(20_000, 400))].mean(axis=1)
    value = inverse_propensity(log, TARGET, resamples=20_000).value
    assert np.allclose([value.low, value.high], np.quantile(means, [0.025, 0.975]), atol=0.003)


def test_the_self_normalised_interval_agrees_with_a_plain_bootstrap_of_rows():
    log = world(400, stream(0, "log"))
    weights = importance_weights(log, TARGET)
    rows = np.random.default_rng(1).integers(400, size=(20_000, 400))
    ratios = (weights * log.column("reward"))[rows].sum(axis=1) / weights[rows].sum(axis=1)
    value = self_normalised(log, TARGET, resamples=20_000).value
    assert np.allclose([value.low, value.high], np.quantile(ratios, [0.025, 0.975]), atol=0.003)


@settings(max_examples=25, deadline=None)
@given(case=logs_and_policies())
def test_resampled_tables_have_the_right_mean_and_keep_the_number_of_rows(case):
    log, _ = case
    draws = resampled_cell_means(log, 3000, stream(0, "draws"))
    cells = cell_means(log)
    assert np.allclose(draws.context.sum(axis=(1, 2)), 1)
    for name in ("context", "weight", "reward"):
        resampled, original = getattr(draws, name), getattr(cells, name)
        error = resampled.std(axis=0) / np.sqrt(3000)
        assert (np.abs(resampled.mean(axis=0) - original) <= 6 * error + 1e-12).all()


def test_both_ways_of_resampling_have_one_law():
    frequencies = np.array([40, 60])
    few = resampled_frequencies(np.array([400, 600]), 4000, stream(0, "few")) / 10
    many = resampled_frequencies(frequencies, 4000, stream(0, "many"))
    single = resampled_frequencies(np.ones(100, dtype=int), 4000, stream(0, "single"))
    assert abs(many[:, 0].std() - np.sqrt(24)) < 0.3
    assert abs(few[:, 0].std() - np.sqrt(2.4)) < 0.1
    assert abs(single[:, :40].sum(axis=1).std() - np.sqrt(24)) < 0.3


def test_a_log_with_a_different_propensity_in_every_row_is_resampled_in_batches():
    generator = np.random.default_rng(0)
    log = world(3000, generator)
    rows = log.rows.with_columns(propensity=pl.Series(generator.uniform(0.2, 0.9, 3000)))
    log = BanditLog(rows, log.context_labels, log.action_labels, "design", {})
    draws = resampled_cell_means(log, 2000, stream(0, "batches"))
    assert np.allclose(draws.context.sum(axis=(1, 2)), 1)
    terms = importance_weights(log, TARGET) * log.column("reward")
    value = inverse_propensity(log, TARGET, resamples=2000).value
    assert value.high - value.low == pytest.approx(3.92 * terms.std() / np.sqrt(3000), rel=0.1)


# --- closed forms --------------------------------------------------------------------------------


def test_a_log_by_hand_gives_the_values_by_hand():
    rows = dict(context=[0, 0, 1], action=[0, 1, 1], reward=[1.0, 0.5, 0.0])
    rows["propensity"] = [0.5, 0.25, 1.0]
    frame = pl.DataFrame(rows, schema=LOG_SCHEMA)
    log = BanditLog(frame, ("0", "1"), ("0", "1"), "design", {})
    policy = np.array([1, 1])  # weights 0, 4, 1
    assert inverse_propensity(log, policy).value.estimate == pytest.approx((4 * 0.5) / 3)
    assert self_normalised(log, policy).value.estimate == pytest.approx(2 / 5)
    model = np.array([[0.3, 0.4], [0.2, 0.1]])
    direct, correction = 0.4 + 0.4 + 0.1, 4 * (0.5 - 0.4) + 1 * (0 - 0.1)
    robust = doubly_robust(log, policy, model=model)
    assert robust.value.estimate == pytest.approx((direct + correction) / 3)
    assert robust.effective_size == pytest.approx(25 / 17)
    assert robust.largest_weight == 4
    assert robust.successes == 1


def test_on_policy_all_estimators_are_the_mean_reward():
    log = world(500, stream(0, "log"))
    mean = log.column("reward").mean()
    assert inverse_propensity(log, LOGGING).value.estimate == pytest.approx(mean)
    assert self_normalised(log, LOGGING).value.estimate == pytest.approx(mean)
    assert inverse_propensity(log, LOGGING).effective_size == pytest.approx(500)
    assert doubly_robust(log, LOGGING).value.estimate == pytest.approx(mean, abs=0.02)
    mine = mean_reward(log)
    assert mine.estimate == mean
    theirs = inverse_propensity(log, LOGGING).value
    assert np.allclose([mine.low, mine.high], [theirs.low, theirs.high], atol=0.01)


def test_frequencies_as_propensities_give_the_stratified_mean():
    log = world(800, stream(0, "log"))
    table = logged_policy(log)
    rows = log.rows.with_columns(
        propensity=pl.Series(table[log.column("context"), log.column("action")])
    )
    log = BanditLog(rows, log.context_labels, log.action_labels, "estimated", {})
    number, sums = log_counts(log)
    rho = number.sum(axis=1) / len(log)
    stratified = (rho[:, None] * TARGET * sums / number).sum()
    any_model = np.random.default_rng(0).random((3, 3))
    for estimator in (inverse_propensity, self_normalised):
        assert estimator(log, TARGET).value.estimate == pytest.approx(stratified)
    robust = doubly_robust(log, TARGET, model=any_model).value.estimate
    assert robust == pytest.approx(stratified)
    assert doubly_robust(log, TARGET).value.estimate == pytest.approx(stratified, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(case=logs_and_policies(), constant=st.floats(0, 1))
def test_a_constant_model_moves_the_estimate_by_the_excess_of_the_weights(case, constant):
    log, table = case
    weights = importance_weights(log, table)
    model = np.full(log.shape, constant)
    robust = doubly_robust(log, table, model=model, resamples=2).value.estimate
    plain = inverse_propensity(log, table, resamples=2).value.estimate
    assert np.isclose(robust, plain + constant * (1 - weights.mean()))


@settings(max_examples=40, deadline=None)
@given(case=logs_and_policies(), factor=st.floats(0.1, 1))
def test_self_normalising_cancels_a_factor_on_all_propensities(case, factor):
    log, table = case
    rows = log.rows.with_columns(pl.col("propensity") * factor)
    scaled = BanditLog(rows, log.context_labels, log.action_labels, "design", {})
    for estimator, cancels in ((self_normalised, 1), (inverse_propensity, 1 / factor)):
        before = estimator(log, table, resamples=2).value.estimate
        after = estimator(scaled, table, resamples=2).value.estimate
        assert np.isclose(after, before * cancels)


@settings(max_examples=40, deadline=None)
@given(case=logs_and_policies())
def test_self_normalised_values_stay_inside_the_range_of_the_rewards(case):
    log, table = case
    estimate = self_normalised(log, table, resamples=50).value
    rewards = log.column("reward")
    assert rewards.min() - 1e-9 <= estimate.low <= estimate.high <= rewards.max() + 1e-9


@settings(max_examples=30, deadline=None)
@given(case=logs_and_policies(), shift=st.floats(-0.3, 0.3))
def test_doubly_robust_moves_with_rewards_and_model_together(case, shift):
    log, table = case
    rewards = (log.column("reward") * 0.4 + 0.3, log.column("reward") * 0.4 + 0.3 + shift)
    model = np.random.default_rng(0).random(log.shape)
    values = []
    for reward, offset in zip(rewards, (0, shift), strict=True):
        rows = log.rows.with_columns(reward=pl.Series(reward))
        shifted = BanditLog(rows, log.context_labels, log.action_labels, "design", {})
        estimate = doubly_robust(shifted, table, model=model + offset, resamples=2)
        values.append(estimate.value.estimate)
    assert np.isclose(values[1] - values[0], shift)


# --- unbiasedness --------------------------------------------------------------------------------


def means_over_logs(estimate, logs: int = 200, size: int = 60) -> tuple[float, float]:
    values = [float(estimate(world(size, stream(7, "log", i)))) for i in range(logs)]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(logs))


def test_inverse_propensity_is_unbiased():
    mean, error = means_over_logs(
        lambda log: inverse_propensity(log, TARGET, resamples=1).value.estimate
    )
    assert abs(mean - VALUE) < 4 * error
    assert error < 0.025


def test_doubly_robust_is_unbiased_with_a_wrong_model_and_with_cross_fitting():
    wrong = np.full((3, 3), 0.9)
    for model in (wrong, None):
        mean, error = means_over_logs(
            lambda log, model=model: (
                doubly_robust(log, TARGET, model=model, resamples=1).value.estimate
            )
        )
        assert abs(mean - VALUE) < 4 * error


def test_doubly_robust_is_unbiased_with_wrong_propensities_and_the_true_model():
    wrong = np.full((3, 3), 1 / 3)
    plain, robust = [], []
    for i in range(200):
        log = world(60, stream(8, "log", i), recorded=wrong)
        plain.append(inverse_propensity(log, TARGET, resamples=1).value.estimate)
        robust.append(doubly_robust(log, TARGET, model=TRUTH, resamples=1).value.estimate)
    assert abs(np.mean(robust) - VALUE) < 4 * np.std(robust) / np.sqrt(200)
    assert abs(np.mean(plain) - VALUE) > 8 * np.std(plain) / np.sqrt(200)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    for estimator in ESTIMATORS.values():
        inside = 0
        for i in range(200):
            value = estimator(world(300, stream(9, "log", i)), TARGET, resamples=200).value
            inside += value.low <= VALUE <= value.high
        assert inside >= 176  # 95 % would be 190


def test_a_good_model_narrows_the_interval():
    log = world(2000, stream(0, "log"))
    widths = [
        estimate.value.high - estimate.value.low
        for estimate in (doubly_robust(log, TARGET), inverse_propensity(log, TARGET))
    ]
    assert widths[0] < 0.9 * widths[1]


# --- policies, weights, models -------------------------------------------------------------------


def test_a_policy_may_be_actions_a_table_or_an_object():
    log = world(50, stream(0, "log"))
    actions = np.array([0, 2, 1])
    table = np.eye(3)[actions]
    for policy in (actions, table, TabularPolicy(table), TabularPolicy.greedy(actions, 3)):
        assert (policy_table(policy, log) == table).all()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (np.array([0, 1]), "shape"),
        (np.array([0, 1, 3]), "0..2"),
        (np.array([0, -1, 1]), "0..2"),
        (np.full((3, 2), 0.5), "shape"),
        (np.full((3, 3), 0.5), "not a distribution"),
        (np.array([0.1, 0.2, 0.7]), "shape"),
    ],
)
def test_what_is_no_policy_on_this_log_is_refused(policy, said):
    with pytest.raises(InputError, match=said):
        inverse_propensity(world(50, stream(0, "log")), policy)


def test_a_rule_that_never_agrees_with_the_log_cannot_be_judged():
    rows = dict(context=[0] * 8, action=[0] * 8, reward=[0.0, 1.0] * 4, propensity=[0.5] * 8)
    log = BanditLog(pl.DataFrame(rows, schema=LOG_SCHEMA), ("0",), ("0", "1"), "design", {})
    for estimator in ESTIMATORS.values():
        with pytest.raises(InputError, match="cannot be judged"):
            estimator(log, np.array([1]))


def test_models_of_another_shape_and_impossible_folds_are_refused():
    log = world(50, stream(0, "log"))
    with pytest.raises(InputError, match="the model has shape"):
        doubly_robust(log, TARGET, model=np.zeros((2, 2)))
    for folds in (1, 51):
        with pytest.raises(InputError, match="folds"):
            doubly_robust(log, TARGET, folds=folds)


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_the_effective_sample_size_lies_between_zero_and_the_rows(weights):
    size = effective_sample_size(np.array(weights))
    assert 0 <= size <= len(weights) * (1 + 1e-9)
    assert size >= 1 - 1e-9 or max(weights) < 1e-100


@settings(max_examples=40, deadline=None)
@given(case=logs_and_policies(), prior=st.floats(0.01, 100))
def test_the_reward_model_lies_between_the_extremes_and_tends_to_the_cell_means(case, prior):
    log, _ = case
    model = reward_model(log, prior)
    rewards = log.column("reward")
    assert (model >= rewards.min() - 1e-9).all()
    assert (model <= rewards.max() + 1e-9).all()
    number, sums = log_counts(log)
    seen = number > 0
    assert np.allclose(reward_model(log, 1e-9)[seen], (sums / np.maximum(number, 1))[seen])


def test_models_are_fitted_on_the_other_folds_only():
    log = world(60, stream(0, "log"))
    fold, models = cross_fitted_models(log, 4, stream(1, "folds"))
    for k in range(4):
        rows = log.rows.filter(pl.Series(fold != k))
        others = BanditLog(rows, log.context_labels, log.action_labels, "design", {})
        assert (models[k] == reward_model(others)).all()


def test_the_difference_of_two_rules_is_judged_on_the_same_rows():
    log = world(1000, stream(0, "log"))
    first, second = np.array([1, 0, 1]), np.array([1, 0, 2])  # differ in the rarest context
    gap = doubly_robust_difference(log, first, second)
    one, two = (doubly_robust(log, rule).value for rule in (first, second))
    assert gap.estimate == pytest.approx(one.estimate - two.estimate)
    assert gap.high - gap.low < one.high - one.low
    truth = RHO[2] * (TRUTH[2, 1] - TRUTH[2, 2])
    assert gap.low <= truth <= gap.high


def test_the_same_seed_gives_the_same_interval():
    log = world(300, stream(0, "log"))
    for estimator in ESTIMATORS.values():
        assert estimator(log, TARGET) == estimator(log, TARGET)


def test_another_seed_draws_other_resamples_and_folds_for_the_same_estimate():
    log = world(300, stream(0, "log"))
    for estimator in (inverse_propensity, self_normalised, doubly_robust):
        first, second = (estimator(log, TARGET, seed=seed).value for seed in (0, 1))
        assert first.low != second.low
        assert first.estimate == pytest.approx(second.estimate, abs=0.01)
    assert mean_reward(log, seed=0).low != mean_reward(log, seed=1).low
    assert every_estimate(log, TARGET, seed=3)["doubly_robust"] == doubly_robust(
        log, TARGET, seed=3
    )


# --- clusters ------------------------------------------------------------------------------------


def test_clusters_of_one_row_give_the_bootstrap_of_rows():
    log = world(400, stream(0, "log"))
    alone = with_clusters(log, np.arange(400))
    for estimator in (inverse_propensity, self_normalised, doubly_robust):
        rows, clusters = (estimator(each, TARGET, resamples=6000).value for each in (log, alone))
        assert clusters.estimate == pytest.approx(rows.estimate, abs=1e-12)
        assert width(clusters) == pytest.approx(width(rows), rel=0.06)
    assert width(mean_reward(alone, 6000)) == pytest.approx(width(mean_reward(log, 6000)), rel=0.06)


def test_a_resample_of_clusters_is_a_log_of_the_clusters_drawn():
    log = clustered_world(12, 7, 0)
    uneven = log.rows.filter(pl.Series(np.arange(84) % 5 != log.column("cluster") % 5))
    log = BanditLog(uneven, log.context_labels, log.action_labels, "design", {})
    again = resampled_cell_means(log, 20, stream(0, "draw"))
    drawn = resampled_frequencies(np.ones(12, dtype=np.int64), 20, stream(0, "draw"))
    frames = [log.rows.filter(cluster=number) for number in range(12)]
    for number, often in enumerate(drawn):
        rows = pl.concat([frame for frame, k in zip(frames, often, strict=True) for _ in range(k)])
        cells = cell_means(BanditLog(rows, log.context_labels, log.action_labels, "design", {}))
        for name in ("context", "weight", "reward"):
            assert np.allclose(getattr(again, name)[number], getattr(cells, name))


def test_strong_clusters_widen_every_interval():
    log = clustered_world(40, 50, 0)
    plain, always, never = without_clusters(log), np.array([1, 1]), np.array([0, 0])
    for estimator in ESTIMATORS.values():
        wide, narrow = (width(estimator(each, always).value) for each in (log, plain))
        assert wide > 1.5 * narrow
    assert width(mean_reward(log)) > 2 * width(mean_reward(plain))
    rules = {"always": lambda *_: always, "never": lambda *_: never}
    wide, narrow = (
        composition_curve(log, each, always, rules, [0.5], replicates=2) for each in (log, plain)
    )
    assert width(wide.best) > 1.5 * width(narrow.best)
    assert width(wide.values["always"]) > 1.5 * width(narrow.values["always"])


def test_what_clusters_share_cancels_in_a_difference():
    log = clustered_world(40, 50, 0)
    gap = doubly_robust_difference(log, np.array([1, 1]), np.array([0, 0]))
    assert gap.low < 0.2 < gap.high
    assert width(gap) < 1.6 * width(
        doubly_robust_difference(without_clusters(log), np.array([1, 1]), np.array([0, 0]))
    )


def test_intervals_over_clusters_cover_the_truth_where_those_over_rows_do_not():
    inside = np.zeros(2)
    for seed in range(100):
        log = clustered_world(30, 20, seed)
        for k, each in enumerate((log, without_clusters(log))):
            interval = mean_reward(each, 200)
            inside[k] += interval.low <= 0.5 <= interval.high
    assert inside[0] >= 86
    assert inside[1] < 75


def test_a_log_in_a_single_cluster_gets_no_interval():
    log = with_clusters(world(60, stream(0, "log")), np.zeros(60))
    with pytest.raises(InputError, match="one cluster"):
        mean_reward(log)
    with pytest.raises(InputError, match="as many clusters"):
        doubly_robust(log, TARGET)


def test_an_assignment_that_ignores_the_cluster_is_rejected_no_more_often_than_the_level():
    p_values = []
    for seed in range(150):
        log = clustered_world(15, 12, seed)
        p_values.append(assignment_test(log, 199, seed).p_value)
    assert np.mean(np.array(p_values) <= 0.05) < 0.12
    assert 0.4 < np.mean(p_values) < 0.6


def test_an_assignment_by_cluster_is_found_but_one_by_context_is_not():
    assert assignment_test(clustered_world(40, 50, 0, confounded=True), 199).p_value == 0.005
    log = world(2000, stream(0, "log"))  # actions depend on the context, clusters are the contexts
    by_context = with_clusters(log, log.column("context"))
    found = assignment_test(by_context, 199)
    assert found.statistic == pytest.approx(0, abs=1e-9)
    assert found.p_value == 1


def test_effects_within_clusters_are_those_of_a_regression_with_an_intercept_each():
    generator = stream(0, "regression")
    log = world(400, generator)
    log = with_clusters(log, generator.integers(20, size=400))
    effects = action_effects(log, 50)
    one_hot = np.eye(3)[log.column("action")]
    design = np.hstack([one_hot[:, 1:], np.eye(20)[log.column("cluster")]])
    slopes = np.linalg.lstsq(design, log.column("reward"), rcond=None)[0][:2]
    assert np.allclose(effects.within.estimate, [0, *slopes])
    means = one_hot.T @ log.column("reward") / one_hot.sum(axis=0)
    assert np.allclose(effects.raw.estimate, means - means[0])
    assert np.allclose(effects.shift.estimate, effects.raw.estimate - effects.within.estimate)


def test_effects_within_clusters_are_free_of_the_clusters():
    effects = action_effects(clustered_world(60, 40, 1, confounded=True))
    assert effects.within.low[1] < 0.2 < effects.within.high[1]
    assert effects.raw.low[1] > 0.25
    assert effects.shift.low[1] > 0


# --- compositions --------------------------------------------------------------------------------


def imitate(number, sums, generator):
    return number.argmax(axis=1)


def believe(number, sums, generator):
    return np.where(number > 0, sums / np.maximum(number, 1), -1).argmax(axis=1)


def test_imitation_improves_with_the_share_and_reaches_the_best_actions():
    learn, judge = world(4000, stream(0, "learn")), world(4000, stream(0, "judge"))
    best = TRUTH.argmax(axis=1)
    rules = {"imitation": imitate, "believe": believe}
    curve = composition_curve(learn, judge, best, rules, [0.1, 0.5, 0.95], replicates=4)
    assert curve.agreement["imitation"].tolist() == pytest.approx([0, 1, 1], abs=0.5)
    assert curve.agreement["imitation"][2] == pytest.approx(1)
    assert curve.values["imitation"].estimate[2] == pytest.approx(curve.best.estimate)
    assert curve.values["imitation"].estimate[0] < curve.best.low
    assert np.allclose(curve.advantage["imitation"].estimate, 0)
    lead = curve.values["imitation"].estimate - curve.values["believe"].estimate
    assert np.allclose(curve.advantage["believe"].estimate, lead)
    assert np.allclose(curve.concentrability.estimate, [10, 2, 1 / 0.95], rtol=0.15)
    for interval in (*curve.values.values(), *curve.advantage.values(), curve.concentrability):
        assert (interval.low <= interval.estimate + 1e-12).all()
        assert (interval.estimate <= interval.high + 1e-12).all()


def test_the_value_on_the_curve_is_the_doubly_robust_value_of_what_was_learned():
    learn, judge = world(1500, stream(0, "learn")), world(1500, stream(0, "judge"))
    best, fixed = TRUTH.argmax(axis=1), np.array([2, 1, 0])
    rules = {"fixed": lambda number, sums, generator: fixed}
    curve = composition_curve(learn, judge, best, rules, [0.5], replicates=3)
    expected = doubly_robust(judge, fixed).value
    assert curve.values["fixed"].estimate[0] == pytest.approx(expected.estimate)
    width = curve.values["fixed"].high[0] - curve.values["fixed"].low[0]
    assert width == pytest.approx(expected.high - expected.low, rel=0.15)


def test_every_share_is_learned_from_equally_many_rows():
    seen = []

    def spy(number, sums, generator):
        seen.append(int(number.sum()))
        return number.argmax(axis=1)

    learn, judge = world(1000, stream(0, "learn")), world(500, stream(0, "judge"))
    best = TRUTH.argmax(axis=1)
    curve = composition_curve(learn, judge, best, {"spy": spy}, [0.3, 0.6, 0.9], replicates=2)
    assert set(seen) == {curve.size}
    assert len(seen) == 6


# --- two logs ------------------------------------------------------------------------------------


def test_equal_rates_are_rejected_no_more_often_than_the_level():
    p_values = []
    for i in range(200):
        generator = stream(11, "null", i)
        rows = dict(
            context=np.zeros(200, dtype=int),
            action=generator.integers(5, size=200),
            reward=(generator.random(200) < 0.1).astype(float),
            propensity=np.full(200, 0.2),
        )
        frame = pl.DataFrame(rows, schema=LOG_SCHEMA)
        log = BanditLog(frame, ("0",), tuple("abcde"), "design", {})
        p_values.append(equal_rates_p_value(log, 199, generator))
    rejected = np.mean(np.array(p_values) <= 0.05)
    assert rejected < 0.11
    assert 0.4 < np.mean(p_values) < 0.65


def test_unequal_rates_are_found_and_no_reward_at_all_is_no_evidence():
    log = world(2000, stream(0, "log"), played=np.full((3, 3), 1 / 3))
    assert equal_rates_p_value(log, 999, stream(0, "x")) == 0.001
    nothing = log.rows.with_columns(reward=pl.lit(0.0))
    empty = BanditLog(nothing, log.context_labels, log.action_labels, "design", {})
    assert equal_rates_p_value(empty, 99, stream(0, "x")) == 1


def test_two_logs_of_one_world_predict_each_other():
    uniform = np.full((3, 3), 1 / 3)
    first, second = world(3000, stream(0, "u"), played=uniform), world(3000, stream(0, "s"))
    study = two_log_study(first, second, {"imitation": imitate}, "w", ("uniform", "skewed"), 300)
    assert dict(study.schema) == SCHEMA
    for policy, judge in (("uniform", "skewed"), ("skewed", "uniform")):
        own = study.filter(system=f"{policy} policy", dataset=policy, metric="value")[
            "value"
        ].item()
        seen = study.filter(system=f"{policy} policy", dataset=judge)
        low = seen.filter(metric="value_low")["value"].to_numpy()
        high = seen.filter(metric="value_high")["value"].to_numpy()
        assert len(low) == 3
        assert (low - 0.03 < own).all()
        assert (own < high + 0.03).all()
    items = study.filter(system="always_action", metric="value").sort("step")["value"].to_numpy()
    assert np.allclose(items, RHO @ TRUTH, atol=0.06)


def test_a_logged_policy_is_uniform_where_nothing_was_logged():
    rows = dict(context=[0, 0], action=[0, 1], reward=[0.0, 1.0], propensity=[0.5, 0.5])
    log = BanditLog(pl.DataFrame(rows, schema=LOG_SCHEMA), ("0", "1"), ("0", "1"), "design", {})
    assert logged_policy(log).tolist() == [[0.5, 0.5], [0.5, 0.5]]


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("causaldata") is None, reason="causaldata is not installed"
)
def test_on_the_field_experiment_a_larger_voucher_is_worth_more():
    log = read_bandit_log("thornton_hiv")
    learn, judge = split(log, (0.5, 0.5), stream(0, "halves"))
    model = reward_model(learn)
    none, most = np.zeros(9, dtype=int), np.full(9, 3)
    for extra in ({"model": model}, {}):
        gap = doubly_robust_difference(judge, most, none, **extra)
        assert 0.4 < gap.low < gap.high < 0.65
    values = [estimator(judge, most).value.estimate for estimator in ESTIMATORS.values()]
    assert np.ptp(values) < 0.03


@pytest.mark.skipif(
    importlib.util.find_spec("causaldata") is None, reason="causaldata is not installed"
)
def test_the_field_experiment_was_not_drawn_alike_in_every_village():
    log = read_bandit_log("thornton_hiv")
    test = assignment_test(log, 199)
    assert test.statistic > 1.3 * test.under_chance.max()
    effects = action_effects(log)
    assert effects.shift.low[1] > 0
    assert (np.diff(effects.within.estimate) > 0).all()
    assert width(mean_reward(log)) > 1.3 * width(mean_reward(without_clusters(log)))
