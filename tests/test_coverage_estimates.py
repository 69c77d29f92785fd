"""Estimated coverage against exact values, its invariants, and what it refuses."""

import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy
from offrl_wb.data.coverage_estimates import (
    CLASSIFIERS,
    boosted_trees,
    counted_bounds,
    design_effect,
    draw_samples,
    effective_sample_size,
    episode_groups,
    estimate_coverage,
    estimate_density_ratio,
    estimate_distance,
    group_mean,
    held_out_scores,
    how_far_out,
    importance_sample_size,
    log_importance_weights,
    nearest_elsewhere,
    neighbour_index,
    percentile_among,
    ratio_numbers,
    reliability,
    rollout_profile,
    squares_and_products,
    stacked,
)
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ImageFile, Spec
from offrl_wb.worlds.linear_gaussian import (
    LinearGaussianWorld,
    LinearPolicy,
    log_density_ratio,
    occupancy_mixture,
    simulate,
)
from tests.shared_data import neorl2_file

WORLD = LinearGaussianWorld(
    dynamics=[[1, 0.2], [0, 1]],
    control=[[0], [0.2]],
    noise=np.diag([0.002, 0.01]),
    start_mean=[1, 0],
    start_covariance=np.diag([0.1, 0.05]),
    state_cost=np.eye(2),
    action_cost=[[0.1]],
    horizon=20,
)
LOGGED = LinearPolicy([[-1.0, -1.5]], [[1.0]])
TARGET = LinearPolicy([[-1.0, -1.5]], [[0.5]], [0.4])
FAR = LinearPolicy([[-1.0, -1.5]], [[0.01]], [8.0])


def rollouts(policy: LinearPolicy, episodes: int, seed: int) -> Dataset:
    runs = simulate(WORLD, policy, episodes, np.random.default_rng(seed))
    size = runs.rewards.size
    return Dataset.from_arrays(
        runs.observations[:, :-1].reshape(size, 2),
        runs.actions.reshape(size, 1),
        runs.rewards.reshape(size),
        np.zeros(size, bool),
        np.arange(size) % 20 == 19,
        final_observations=runs.observations[:, -1],
    )


def counted(states, actions, length: int = 5, **columns) -> Dataset:
    """Whole numbers in episodes of `length`."""
    states, actions = np.asarray(states), np.asarray(actions)
    ends = np.arange(len(states)) % length == length - 1
    final = np.zeros((int(ends.sum()), *states.shape[1:]), dtype=states.dtype)
    zeros = np.zeros(len(states))
    return Dataset.from_arrays(
        states, actions, zeros, zeros > 0, ends, final_observations=final, columns=columns
    )


def pairs(dataset: Dataset) -> np.ndarray:
    arrays = dataset.arrays()
    return np.hstack([arrays.observations, arrays.actions])


def exact_log_ratio(points: np.ndarray) -> np.ndarray:
    return log_density_ratio(*(occupancy_mixture(WORLD, p) for p in (TARGET, LOGGED)), points)


@pytest.fixture(scope="module")
def log() -> Dataset:
    return rollouts(LOGGED, 150, 0)


@pytest.fixture(scope="module")
def target() -> Dataset:
    return rollouts(TARGET, 150, 1)


@pytest.fixture(scope="module")
def found(log, target):
    return estimate_density_ratio(log, target, repeats=3, seed=0)


# Rows and groups


def test_rows_are_encoded_alike_and_whole_numbers_get_a_column_a_level():
    first, second = counted([0, 1, 2, 1, 0], [0, 1, 0, 1, 0]), counted([3] * 5, [1] * 5)
    samples = draw_samples([first, second], 100, 0)
    assert samples[0].states.tolist() == np.eye(4)[[0, 1, 2, 1, 0]].tolist()
    assert samples[1].states.tolist() == np.eye(4)[[3] * 5].tolist()
    assert samples[0].actions[:, 0].tolist() == [0, 1, 0, 1, 0]
    many = draw_samples([counted([0, 100, 7, 7, 7], [0] * 5)], 100, 0)[0]
    assert many.states[:, 0].tolist() == [0, 100, 7, 7, 7]


def test_multi_discrete_columns_are_encoded_one_by_one():
    sample = draw_samples([counted([[0, 2], [1, 0], [1, 1], [0, 0], [0, 0]], [0] * 5)], 10, 0)[0]
    assert sample.states[0].tolist() == [0, 0, 0, 1]


def test_a_subsample_is_seeded_sorted_and_within_the_data(log):
    first, again, other = (draw_samples([log], 300, seed)[0] for seed in (1, 1, 2))
    assert (first.rows == again.rows).all()
    assert (first.rows != other.rows).any()
    assert (np.diff(first.rows) > 0).all()
    assert (first.states == log.arrays().observations[first.rows]).all()
    assert (first.groups == first.rows // 20).all()


def test_few_episodes_are_cut_into_blocks_in_their_order(log):
    groups = episode_groups(log.select(np.arange(3)))
    assert len(np.unique(groups)) == 9
    assert (np.diff(groups) >= 0).all()
    assert (episode_groups(log) == np.arange(3000) // 20).all()


def test_data_that_do_not_fit_together_are_refused(log):
    whole = counted([0, 1] * 50, [0, 1] * 50)
    with pytest.raises(InputError, match="obs of the two datasets do not fit"):
        estimate_density_ratio(log, whole)
    wide = Dataset.from_arrays(
        np.zeros((40, 3)), np.zeros((40, 1)), np.zeros(40), np.ones(40, bool)
    )
    with pytest.raises(InputError, match="do not fit together"):
        estimate_density_ratio(log, wide)


def test_values_that_are_not_finite_and_images_are_refused(log):
    bad = np.zeros((40, 2))
    bad[7] = np.nan
    broken = Dataset.from_arrays(bad, np.zeros((40, 1)), np.zeros(40), np.ones(40, bool))
    with pytest.raises(InputError, match="obs is not finite in 1 rows"):
        draw_samples([broken], 100, 0)
    data = counted([0, 1] * 20, [0, 1] * 20)
    spec = Spec(data.spec.observation_space, data.spec.action_space, images=ImageFile("x.npy"))
    pictures = Dataset(data.transitions, data.episodes, spec, data.origin)
    with pytest.raises(InputError, match="images have no useful distances"):
        draw_samples([pictures], 100, 0)


# The density ratio


def test_the_estimate_holds_the_exact_values_in_its_intervals(found):
    truth = occupancy_mixture(WORLD, TARGET).sample(100_000, np.random.default_rng(2))
    exact = np.exp(ratio_numbers(exact_log_ratio(truth), 0.99, 1000.0))
    names = ("quantile", "largest", "clipped_concentrability", "effective_share")
    for name, value in zip(names, exact, strict=True):
        interval = getattr(found, name)
        assert interval.low <= interval.estimate <= interval.high
        assert interval.low <= value <= interval.high, name
    assert 1 < found.counted <= exact[1]


def test_the_estimated_ratio_follows_the_exact_one_row_by_row(found, log, target):
    for ratio, rows, dataset in (
        (found.target_ratio, found.target_rows, target),
        (found.data_ratio, found.data_rows, log),
    ):
        exact = exact_log_ratio(pairs(dataset)[rows])
        assert np.corrcoef(np.log(ratio), exact)[0, 1] > 0.85
    assert found.mean_ratio == pytest.approx(1, abs=0.15)


def test_the_same_seed_gives_the_same_estimate_and_another_nearly(found, log, target):
    again = estimate_density_ratio(log, target, repeats=3, seed=0)
    assert (again.target_ratio == found.target_ratio).all()
    assert again.table().equals(found.table())
    other = estimate_density_ratio(log, target, repeats=3, seed=1)
    assert (other.target_ratio != found.target_ratio).any()
    assert other.effective_share.estimate == pytest.approx(
        float(found.effective_share.estimate), rel=0.25
    )


def test_reliability_lies_on_the_diagonal_within_its_intervals(found):
    curve = found.reliability
    assert curve.height == 10
    assert curve["rows"].sum() == 6000
    inside = curve.filter(pl.col("predicted").is_between("low", "high")).height
    assert inside >= 7
    assert (curve["predicted"] - curve["observed"]).abs().max() < 0.12


def test_two_logs_of_one_policy_are_alike(log):
    same = estimate_density_ratio(log, rollouts(LOGGED, 150, 9), repeats=2)
    assert same.effective_share.high > 0.93
    assert same.quantile.estimate < 1.6
    assert abs(same.separation - 0.5) < 0.06
    assert same.counted < 1.15
    assert not same.notes


def test_disjoint_supports_are_reported_as_such_and_not_as_a_number(log):
    apart = estimate_density_ratio(log, rollouts(FAR, 60, 3), repeats=2)
    assert apart.separation > 0.999
    assert apart.clipped_share > 0.9
    assert apart.largest.high == np.inf
    assert apart.quantile.high == np.inf
    assert apart.quantile.low <= apart.counted < 1000
    assert apart.effective_share.low == 0
    text = " ".join(apart.notes)
    for words in ("told apart", "beyond the clip", "the mean ratio over the log is"):
        assert words in text


def test_states_alone_can_be_compared(log):
    shaken = log.arrays().observations, np.random.default_rng(0).normal(9, 1, (3000, 1))
    ends = np.arange(3000) % 20 == 19
    other = Dataset.from_arrays(
        *shaken, np.zeros(3000), np.zeros(3000, bool), ends, final_observations=np.zeros((150, 2))
    )
    by_state = estimate_density_ratio(log, other, of="states", repeats=2, rows=1000)
    by_pair = estimate_density_ratio(log, other, repeats=2, rows=1000)
    assert by_state.separation < 0.6
    assert by_pair.separation > 0.99
    assert by_state.settings["rows"] == [1000, 1000]


def test_the_ratio_of_a_table_is_the_ratio_of_its_shares():
    generator = np.random.default_rng(5)
    shares = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.2, 0.4]])
    states = [generator.choice(4, size=3000, p=share) for share in shares]
    data, other = (counted(each, np.zeros(3000, int)) for each in states)
    found = estimate_density_ratio(data, other, repeats=2)
    for state, exact in enumerate(shares[1] / shares[0]):
        here = found.target_ratio[states[1][found.target_rows] == state]
        assert here.mean() == pytest.approx(exact, rel=0.2)
    assert found.largest.low <= 4 <= found.largest.high


def test_datasets_without_any_variation_have_ratio_one():
    same = counted(np.zeros(100, int), np.zeros(100, int))
    found = estimate_density_ratio(same, same, repeats=2)
    assert found.target_ratio == pytest.approx(np.ones(100))
    assert found.notes == ("only 100 rows: the classifiers see little",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifiers": ["oracle"]}, "oracle"),
        ({"classifiers": []}, "classifiers"),
        ({"of": "actions"}, "of='actions'"),
        ({"repeats": 1}, "repeats start at 2"),
        ({"clip": 1.0}, "clip above 1"),
        ({"quantile": 1.0}, "shares lie inside"),
        ({"rows": 3}, "rows at 20"),
    ],
)
def test_settings_without_sense_are_refused(log, target, change, message):
    with pytest.raises(InputError, match=message):
        estimate_density_ratio(log, target, **change)


def test_tiny_datasets_are_refused(log):
    with pytest.raises(InputError, match="10 and 3000 rows"):
        estimate_density_ratio(counted([0] * 10, [0] * 10), log)


def test_without_scikit_learn_the_way_to_it_is_told(log, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"offrl_wb\[data\]"):
        estimate_density_ratio(log, target)


# Held out, calibrated


def test_no_row_is_judged_by_classifiers_that_saw_its_episode(monkeypatch):
    seen = []

    class Spy:
        def fit(self, features, label):
            self.rows = set(features[:, 0].astype(int))
            return self

        def decision_function(self, features):
            seen.append((self.rows, set(features[:, 0].astype(int))))
            return np.zeros(len(features))

    monkeypatch.setitem(CLASSIFIERS, "spy", lambda features: Spy())
    groups = np.arange(60) // 6
    features = np.stack([np.arange(60), np.arange(60)], axis=1).astype(float)
    scores = held_out_scores(features, features + 60, (groups, groups), ["spy"], repeats=3, seed=0)
    assert len(seen) == 6
    for trained, judged in seen:
        assert len(trained) == len(judged) == 60
        assert not {row // 6 for row in trained} & {row // 6 for row in judged}
    assert scores.values.shape == (3, 120, 1)
    assert (scores.halves[0] != scores.halves[1]).any()


def test_leakage_would_flatter_and_does_not_happen():
    points = [np.random.default_rng(s).standard_normal((100, 3)).repeat(10, axis=0) for s in (0, 1)]
    label, groups = np.repeat([0, 1], 1000), np.arange(100).repeat(10)
    seen = (
        boosted_trees(3)
        .fit(np.concatenate(points), label)
        .decision_function(np.concatenate(points))
    )
    fair = held_out_scores(*points, (groups, groups), ["boosted"], 1, 0).values[0, :, 0]
    accuracy = [((scores > 0) == label).mean() for scores in (seen, fair)]
    assert accuracy[0] > 0.9
    assert abs(accuracy[1] - 0.5) < 0.1


def test_stacking_undoes_overconfidence_and_unequal_numbers():
    generator = np.random.default_rng(0)
    label = np.repeat([0, 1], [3000, 1000])
    honest = generator.standard_normal(4000) + label  # its log density ratio is x - 1/2
    everybody = np.ones(4000, bool)
    found = stacked(5 * honest[:, None] + 3, label, everybody, everybody)
    assert found == pytest.approx(honest - 0.5, abs=0.35)


def test_many_features_do_without_their_products():
    assert squares_and_products(40).steps[1][1].degree == 1
    assert squares_and_products(5).steps[1][1].degree == 2


def test_reliability_merges_bins_where_predictions_are_equal():
    label = np.array([0, 1] * 50)
    curve = reliability(np.zeros(100), label, np.arange(100))
    assert curve.height == 1
    assert curve["predicted"][0] == curve["observed"][0] == 0.5


# Counts


def test_the_counted_bound_holds_at_its_level_and_rises_with_the_data():
    generator, above, medians = np.random.default_rng(0), 0, []
    for size in (300, 3000):
        bounds = []
        for _ in range(200):
            cells = np.append(generator.random(size) < 0.1, generator.random(size) < 0.4)
            which = np.repeat([0, 1], size)
            found = counted_bounds(cells * np.log(4), which, np.arange(2 * size), 0.95)
            bounds.append(found.concentrability)
            exact_share = 1 / (0.4**2 / 0.1 + 0.6**2 / 0.9)
            above += found.effective_share < exact_share
        assert np.mean(np.array(bounds) > 4) <= 0.05
        medians.append(np.median(bounds))
    assert above <= 20
    assert 1.5 < medians[0] < medians[1] < 4


def test_rows_of_one_episode_count_less():
    inside = np.repeat([1.0, 0.0], [100, 900])
    episodes = np.arange(1000) // 20
    assert design_effect(inside, np.arange(1000)) == pytest.approx(1, abs=0.01)
    assert design_effect(inside, episodes) == pytest.approx(20, rel=0.05)
    assert design_effect(np.zeros(9), np.arange(9)) == 1


def test_identical_data_in_episodes_support_nothing():
    above = 0
    for seed in range(30):
        generator = np.random.default_rng(seed)
        which, groups = np.repeat([0, 1], 2000), np.arange(4000) // 50
        ratio = generator.standard_normal(80)[groups] + 0.1 * generator.standard_normal(4000)
        above += counted_bounds(ratio, which, groups, 0.95).concentrability > 1.0
    assert above <= 3


def test_a_bootstrap_over_groups_is_as_wide_as_their_number_asks():
    values = np.random.default_rng(0).standard_normal(100).repeat(20)
    found = group_mean(values, np.arange(100).repeat(20), 0.95, np.random.default_rng(0))
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.2)


# Distances


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), size=st.integers(1, 6))
def test_the_nearest_of_other_groups_are_those_that_a_search_through_all_finds(seed, count, size):
    generator = np.random.default_rng(seed)
    points, groups = generator.standard_normal((60, 2)), np.arange(60) // size
    near, rows = nearest_elsewhere(cKDTree(points), groups, points, groups, count)
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    apart[groups[:, None] == groups] = np.inf
    assert near == pytest.approx(np.sort(apart, axis=1)[:, :count])
    assert (groups[rows] != groups[:, None]).all()


def test_too_few_rows_of_other_groups_are_refused():
    points = np.arange(6.0)[:, None]
    with pytest.raises(InputError, match="fewer than 3 rows lie in other episodes"):
        nearest_elsewhere(cKDTree(points), np.array([0, 0, 0, 0, 1, 1]), points, np.zeros(6), 3)
    with pytest.raises(InputError, match="rows start at 2"):
        neighbour_index(counted([0] * 10, [0] * 10), rows=1)


def test_percentiles_count_ties_half():
    own = np.array([0.0, 1.0, 1.0, 2.0])
    assert percentile_among(own, np.array([-1, 1, 1.5, 9])).tolist() == [0, 0.5, 0.75, 1]


def test_new_episodes_of_the_same_policy_are_no_farther_than_the_logs_own(log):
    found = estimate_distance(log, rollouts(LOGGED, 150, 11))
    for name in ("state", "action", "pair"):
        assert found.average[name].estimate == pytest.approx(0.5, abs=0.05)
        assert found.beyond_95[name].estimate == pytest.approx(0.05, abs=0.03)
        assert found.beyond_99[name].estimate < 0.03
    assert found.settings["total"] == 3000
    assert found.table().height == 9


def test_distances_do_not_depend_on_the_units(log):
    arrays, ends = log.arrays(), np.arange(3000) % 20 == 19
    stretched = Dataset.from_arrays(
        arrays.observations * [1000.0, 0.01],
        arrays.actions * 7,
        arrays.rewards,
        np.zeros(3000, bool),
        ends,
        final_observations=np.zeros((150, 2)),
    )
    probe = np.random.default_rng(0).standard_normal((50, 2)), np.zeros((50, 1))
    plain = how_far_out(neighbour_index(log), *probe)
    scaled = how_far_out(neighbour_index(stretched), probe[0] * [1000.0, 0.01], probe[1] * 7)
    assert scaled.to_numpy() == pytest.approx(plain.to_numpy(), abs=1e-9)


def test_bolder_actions_are_farther_out_in_the_same_state(log):
    index = neighbour_index(log)
    bold = np.array([[-0.5], [2.0], [4.0], [40.0]])
    judged = how_far_out(index, np.tile([0.6, -0.1], (4, 1)), bold)
    assert judged["action_percentile"].is_sorted()
    assert judged["action_percentile"][0] < 0.8
    assert judged["action_percentile"][3] == 1
    assert judged["state_percentile"].n_unique() == 1
    assert judged["pair_distance"].is_sorted()


def test_action_percentiles_follow_the_exact_ones(log):
    probe = rollouts(LinearPolicy([[-1.0, -1.5]], [[1.0]], [1.0]), 40, 12).arrays()
    judged = how_far_out(neighbour_index(log), probe.observations, probe.actions)
    exact = np.abs(probe.actions - LOGGED.mode(probe.observations))[:, 0]
    ranks = [np.argsort(np.argsort(each)) for each in (exact, judged["action_percentile"])]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


def test_discrete_actions_are_as_unusual_as_few_neighbours_take_them():
    generator = np.random.default_rng(0)
    states = generator.integers(3, size=3000)
    actions = np.where(generator.random(3000) < 0.9, states, (states + 1) % 3)
    index = neighbour_index(counted(states, actions), neighbours=64)
    judged = how_far_out(index, np.array([0, 0, 0]), np.array([0, 1, 2]))
    usual, rare, never = judged["action_distance"].to_list()
    assert usual < 0.3
    assert 0.7 < rare < 1
    assert never == 1
    assert judged["state_distance"].to_list() == [0, 0, 0]


def test_a_rollout_profile_keeps_episode_and_step(log):
    profile = rollout_profile(neighbour_index(log, rows=500), rollouts(TARGET, 3, 4), most=45)
    assert profile["episode"].to_list() == [0] * 20 + [1] * 20 + [2] * 5
    assert profile["step"].to_list()[:3] == [0, 1, 2]
    assert profile["pair_percentile"].is_between(0, 1).all()


def test_the_index_says_what_it_was_made_of(log):
    index = neighbour_index(log, rows=400, own=100, seed=3)
    assert index.settings == {"rows": 400, "total": 3000, "own": 100, "seed": 3}
    assert len(index.own["state"]) == 100
    again = neighbour_index(log, rows=400, own=100, seed=3)
    assert (again.own["pair"] == index.own["pair"]).all()


def test_observations_of_another_shape_are_refused(log):
    index = neighbour_index(log, rows=300)
    with pytest.raises(InputError, match=r"obs have shape \(2, 3\)"):
        how_far_out(index, np.zeros((2, 3)), np.zeros((2, 1)))
    with pytest.raises(InputError, match="2 observations and 3 actions"):
        how_far_out(index, np.zeros((2, 2)), np.zeros((3, 1)))
    whole = neighbour_index(counted([0, 1] * 100, [0, 1] * 100), neighbours=4)
    with pytest.raises(InputError, match="action have shape"):
        how_far_out(whole, np.zeros(2, int), np.zeros(2))


# Effective sample sizes


@settings(max_examples=50)
@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=20), scale=st.floats(0.01, 100))
def test_the_effective_sample_size_lies_between_one_and_n_whatever_the_scale(weights, scale):
    size = float(effective_sample_size(weights))
    used = sum(weight > 0 for weight in weights)
    assert (used > 0) * (1 - 1e-9) <= size <= used * (1 + 1e-9)
    if used and min(weight for weight in weights if weight > 0) > 1e-100:
        assert size == pytest.approx(float(effective_sample_size(np.array(weights) * scale)))


def test_equal_weights_count_fully_and_nonsense_is_refused():
    assert effective_sample_size(np.full((3, 4), 1e-200)).tolist() == [4, 4, 4]
    assert effective_sample_size(np.eye(3), axis=0).tolist() == [1, 1, 1]
    for bad in ([-1.0], [np.nan], [np.inf]):
        with pytest.raises(InputError, match="finite and not negative"):
            effective_sample_size(bad)


def recorded(dataset: Dataset) -> Dataset:
    arrays = dataset.arrays()
    return dataset.with_columns(
        behaviour_prob=np.exp(LOGGED.log_prob(arrays.observations, arrays.actions))
    )


def test_the_share_after_many_steps_is_the_power_of_the_share_of_one(log):
    narrower = LinearPolicy([[-1.0, -1.5]], [[0.7]])
    sizes = importance_sample_size(recorded(rollouts(LOGGED, 3000, 5)), narrower)
    factor = np.sqrt(0.7 * (2 - 0.7))  # 1 / E[w^2] for variances 0.7 and 1
    exact = factor ** sizes["steps"].to_numpy()
    assert sizes["share"].to_numpy() == pytest.approx(exact, rel=0.1)
    inside = (sizes["low"].to_numpy() <= exact) & (exact <= sizes["high"].to_numpy())
    assert inside.sum() >= 15
    assert sizes["episodes"].to_list() == [3000] * 20


def test_the_behaviours_own_weights_are_one(log):
    assert log_importance_weights(recorded(log), LOGGED) == pytest.approx(np.zeros(3000), abs=1e-9)
    assert importance_sample_size(recorded(log), LOGGED)["share"].to_numpy() == pytest.approx(1)


def test_tabular_policies_have_exact_weights():
    policy = TabularPolicy([[0.2, 0.8], [1.0, 0.0]])
    data = counted([0, 0, 1, 1, 0], [0, 1, 0, 1, 1], 1, behaviour_prob=np.full(5, 0.5))
    weights = np.exp(log_importance_weights(data, policy))
    assert weights == pytest.approx([0.4, 1.6, 2.0, 0.0, 1.6])
    sizes = importance_sample_size(data, policy)
    assert sizes["effective"][0] == pytest.approx(float(effective_sample_size(weights)))
    never = TabularPolicy([[0.0, 1.0], [0.0, 1.0]])
    nothing = counted([0] * 4, [0] * 4, 2, behaviour_prob=np.full(4, 0.5))
    assert importance_sample_size(nothing, never)["share"].to_list() == [0, 0]


def test_shorter_episodes_drop_out_of_later_steps():
    ends = np.array([False, True, True])
    data = Dataset.from_arrays(
        np.zeros(3, int),
        np.zeros(3, int),
        np.zeros(3),
        ends,
        columns={"behaviour_prob": np.full(3, 0.5)},
    )
    sizes = importance_sample_size(data, TabularPolicy([[1.0]]))
    assert sizes["episodes"].to_list() == [2, 1]


def test_weights_without_propensities_or_probabilities_are_refused(log):
    with pytest.raises(InputError, match="need the column behaviour_prob"):
        log_importance_weights(log, LOGGED)
    with pytest.raises(InputError, match=r"behaviour_prob is 0\.0 at row 0"):
        log_importance_weights(log.with_columns(behaviour_prob=np.zeros(3000)), LOGGED)
    with pytest.raises(InputError, match="neither probabilities nor log_prob"):
        log_importance_weights(recorded(log), print)


# All of it


def test_everything_at_once_says_that_it_estimates_and_from_what(log, target):
    whole = estimate_coverage(log.select(np.arange(5)), target, rows=500, repeats=2, seed=4)
    assert whole.table().columns == ["quantity", "estimate", "low", "high"]
    assert whole.table().height == 14
    text = whole.text()
    assert text.startswith("Estimated coverage (95% intervals over episodes; 100 of 100 rows")
    assert "seed 4" in text
    assert "of the target, 500 of 3,000 rows were used (seed 4)" in " ".join(text.split())
    assert "the log has 5 episodes: they were cut into blocks" in " ".join(text.split())
    assert "only 100 rows" in text


def test_real_data_split_in_two_cover_each_other():
    from offrl_wb.data.files import read_neorl2

    log, other = read_neorl2(neorl2_file("DMSD-train.npz")).split([0.5, 0.5], seed=0)
    whole = estimate_coverage(log, other, rows=4000, repeats=2)
    assert whole.ratio.effective_share.high > 0.9
    assert whole.ratio.counted < 1.1
    assert abs(whole.distance.average["pair"].estimate - 0.5) < 0.06
