"""Mixtures, samples, bands, sources and thinned logs: what was asked for is what comes out."""

import time
from contextlib import suppress
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy
from offrl_wb.data.composition import (
    apportion,
    by_quality,
    by_source,
    drawing_order,
    empirical_concentrability,
    interpolate,
    mix,
    mix_qualities,
    mix_sources,
    mixture_report,
    pair_counts,
    return_band,
    sample,
    target_occupancy,
    target_probabilities,
    thin,
    thin_by_propensity,
    thinning_rates,
)
from offrl_wb.data.dataset import Dataset, concatenate
from offrl_wb.data.provenance import Provenance
from offrl_wb.data.spec import Spec
from offrl_wb.worlds.tabular import TabularMDP, ambiguous_mdp, occupancy, value_iteration
from offrl_wb.worlds.toy_text import toy_text
from tests.shared_data import neorl2_file


def log(seed=0, episodes=40, longest=30, source=None, shift=0.0, name="") -> Dataset:
    """A log whose observations tell it apart: `obs[0]` is the row, `obs[1]` the seed."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, size=episodes)
    size = int(lengths.sum())
    last = np.zeros(size, bool)
    last[np.cumsum(lengths) - 1] = True
    rows = np.stack([np.arange(size), np.full(size, seed)], axis=1).astype(np.float32)
    box = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    return Dataset.from_arrays(
        rows,
        generator.integers(3, size=size),
        generator.normal(size=size) + shift,
        np.zeros(size, bool),
        last,
        next_observations=rows + np.array([1, 0], np.float32),
        spec=Spec(box, spaces.Discrete(3), name=name),
        source=source,
    )


def rerun(dataset: Dataset, **given: Dataset) -> Dataset:
    """The dataset made again by the Python that its provenance tells."""
    script = dataset.provenance.as_python({d.provenance.hash: n for n, d in given.items()})
    names = dict(given)
    exec(script, names)
    return names["dataset"]


def same_rows_in_chains(dataset: Dataset) -> bool:
    """Whether every next observation is the row after, as in the logs that were mixed."""
    arrays = dataset.arrays()
    ahead = arrays.next_observations - arrays.observations
    return bool((ahead == np.array([1, 0])).all()) and "next_obs" not in dataset.transitions.columns


# Shares


PARTS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(sizes=PARTS, data=st.data())
def test_apportioned_shares_and_sizes_are_exact_to_one_episode(sizes, data):
    drawn = data.draw(st.lists(st.floats(0, 1), min_size=6, max_size=6))
    weights = np.array(drawn)[: len(sizes)].round(6)
    weights = weights / weights.sum() if weights.sum() > 0 else np.eye(len(sizes))[0]
    totals = [np.cumsum(s) for s in sizes]
    most = min(t[-1] / w for t, w in zip(totals, weights, strict=True) if w > 0)
    targets = weights * most * data.draw(st.floats(0.01, 1))
    counts = apportion(totals, targets)
    taken = np.array([np.append(0, t)[c] for t, c in zip(totals, counts, strict=True)])
    longest = max(max(s) for s in sizes)
    assert np.abs(taken - targets / targets.sum() * taken.sum()).max() <= longest + 1e-4
    assert abs(taken.sum() - targets.sum()) <= longest + 1e-4


@given(seats=st.integers(1, 200), weights=st.lists(st.integers(1, 50), min_size=1, max_size=7))
def test_apportioned_episodes_are_the_method_of_largest_remainders(seats, weights):
    targets = seats * np.array(weights) / sum(weights)
    counts = apportion([np.arange(1, 202)] * len(weights), targets)
    assert counts.sum() == seats
    assert (np.abs(counts - targets) < 1).all()


THREE = [log(k, episodes=400, longest=20, source=f"s{k}") for k in range(3)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shares=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    of=st.sampled_from(["transitions", "episodes"]),
    replace=st.booleans(),
    size=st.none() | st.integers(40, 300),
)
def test_the_shares_of_a_mixture_are_exact_to_one_episode(seed, shares, of, replace, size):
    parts = THREE
    mixed = mix(parts, shares, of=of, size=size, replace=replace, seed=seed)
    told = mixed.provenance.outcome["parts"]
    found = np.array([part[of] for part in told])
    asked = np.array(shares) / sum(shares)
    slack = 1 if of == "episodes" else max(part.lengths.max() for part in parts)
    assert np.abs(found - asked * found.sum()).max() <= slack + 1e-6
    if size is not None:
        assert abs(found.sum() - size) <= slack
        assert of == "transitions" or found.sum() == size
    assert found.sum() == (len(mixed) if of == "transitions" else mixed.episode_count)
    assert [part["realised_share"] for part in told] == pytest.approx(found / found.sum())


def test_without_a_size_a_mixture_is_as_large_as_its_scarcest_part_allows():
    small, large = log(0, episodes=10), log(1, episodes=500)
    mixed = mix([small, large], [0.5, 0.5])
    assert mixed.provenance.outcome["parts"][0]["episodes"] == 10
    assert abs(len(mixed) - 2 * len(small)) <= 30
    doubled = mix([small, large], [0.5, 0.5], replace=True)
    assert abs(len(doubled) - len(small) - len(large)) <= 30


def test_without_replacement_no_row_comes_twice_and_with_it_some_do():
    part = log(3, episodes=50)
    rows = mix([part], [1], size=len(part) // 2).arrays().observations[:, 0]
    assert len(np.unique(rows)) == len(rows)
    rows = mix([part], [1], size=len(part), replace=True).arrays().observations[:, 0]
    assert len(np.unique(rows)) < len(rows)


def test_a_mixture_keeps_whole_episodes_in_their_order_and_unbroken_chains():
    mixed = mix([log(0), log(1)], [0.3, 0.7], size=200)
    assert same_rows_in_chains(mixed)
    assert mixed.episodes["part"].to_list() == sorted(mixed.episodes["part"])
    for seed in (0, 1):
        own = mixed.arrays().observations
        own = own[own[:, 1] == seed, 0]
        assert (np.diff(own) > 0).all()


def test_a_mixture_of_one_part_in_full_is_that_part():
    part = log(0)
    mixed = mix([part], [1])
    assert mixed.transitions.equals(part.transitions)


def test_a_part_of_share_zero_gives_nothing_but_stays_in_the_record():
    mixed = mix({"a": log(0), "b": log(1)}, {"b": 0.0, "a": 2.0})
    assert mixed.episodes["part"].unique().to_list() == ["a"]
    assert mixture_report(mixed)["transitions"].to_list()[1] == 0


def test_a_larger_share_keeps_what_a_smaller_one_had():
    parts = [log(0, episodes=100), log(1, episodes=100)]

    def own(share: float) -> set:
        seen = interpolate(*parts, share, of="episodes").arrays().observations
        return set(seen[seen[:, 1] == 0, 0].tolist())

    assert own(0.2) < own(0.5) < own(0.9)


def test_mixing_is_seeded():
    parts = [log(0), log(1)]
    one, two, three = (mix(parts, [1, 1], size=300, seed=s).content_hash for s in (5, 5, 6))
    assert one == two != three


def test_a_mixture_of_clean_and_corrupted_data_knows_what_was_corrupted():
    clean = log(0)
    dirty = log(1).with_columns(corrupted_reward=pl.lit(True))
    mixed = mix([clean, dirty], [0.5, 0.5])
    flagged = mixed.transitions["corrupted_reward"]
    assert flagged.null_count() == 0
    assert (flagged.to_numpy() == (mixed.arrays().observations[:, 1] == 1)).all()


def test_the_parts_spec_bounds_and_columns_are_united():
    left, right = log(0, name="left"), log(1, name="right").with_columns(label=pl.lit(1.0))
    mixed = mix([left, right], [1, 1])
    assert mixed.spec.name == ""
    assert mixed.transitions["label"].null_count() == (mixed.arrays().observations[:, 1] == 0).sum()


# Names


def test_parts_are_called_by_their_source_else_their_task_else_a_number():
    mixed = mix(
        [log(0, source="pid"), log(1, name="hopper"), log(2), log(3, source="pid")], [1] * 4
    )
    assert mixture_report(mixed)["part"].to_list() == ["pid (0)", "hopper", "part 2", "pid (3)"]
    assert mixed.episodes["source"].unique(maintain_order=True).to_list() == [
        "pid",
        "hopper",
        "part 2",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: mix([], []), "no parts"),
        (lambda d: mix([d, d], [1]), "2 parts need as many shares"),
        (lambda d: mix([d, d], [1, -1]), "of 0 or more"),
        (lambda d: mix([d, d], [0, 0]), "of 0 or more"),
        (lambda d: mix([d, d], [1, np.nan]), "of 0 or more"),
        (lambda d: mix([d, d], [1, 1], names=["a", "a"]), "2 parts need as many different names"),
        (lambda d: mix([d, d], [1, 1], names=["a"]), "2 parts need as many different names"),
        (lambda d: mix({"a": d}, {"b": 1.0}), "differ in a, b"),
        (lambda d: mix([d], [1], of="rows"), "of is 'rows'"),
        (lambda d: mix([d], [1], size=0), "the size is 0"),
        (lambda d: mix([d, d], [1, 3], size=10**6), "take a size of"),
        (lambda d: mix([d, log(0).select([0]), d], [1, 1, 1], size=900), "'part 1' has"),
        (lambda d: sample(d, 10**6), "'the dataset' has"),
        (lambda d: interpolate(d, d, 1.5), "the expert's share is 1.5"),
        (lambda d: return_band(d, 0.6, 0.4), "0 <= low < high <= 1"),
        (lambda d: return_band(d, 0.5, 0.500001), "holds none: widen it"),
        (lambda d: by_quality(d, "splendid"), "there is no level 'splendid'"),
        (lambda d: by_source(d, "pid"), "no column 'source'"),
        (lambda d: by_source(d.label("nn"), ["nn", "pid"]), "no episode has the source 'pid'"),
        (lambda d: thin(d, 2.0, np.full((2, 2), 0.25)), "obs holds vectors"),
        (lambda d: thin(d, 2.0, np.zeros((2, 2))), "sums to 1"),
        (lambda d: thin_by_propensity(d, 2.0, "target"), "no column behaviour_prob"),
    ],
)
def test_what_cannot_be_composed_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as problem:
        call(log(0, episodes=20))
    assert "\n" not in str(problem.value)


def test_parts_of_different_shapes_are_refused():
    flat = Dataset.from_arrays([0, 1], [0, 0], [0.0, 0.0], [False, True])
    with pytest.raises(InputError, match="obs has shapes"):
        mix([flat, log(0)], [1, 1])


def test_a_return_that_is_not_a_number_is_named():
    broken = log(0).with_columns(reward=pl.when(pl.col("episode") == 4).then(np.nan).otherwise(1.0))
    with pytest.raises(InputError, match="episode 4 has no finite return"):
        by_quality(broken, "expert")


# Nesting


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), inner=st.floats(0.1, 0.9), outer=st.floats(0.1, 0.9))
def test_a_nested_mixture_keeps_the_shares_of_its_ingredients(seed, inner, outer):
    a, b, c = (log(k, episodes=400, longest=20) for k in range(3))
    team = mix({"a": a, "b": b}, [inner, 1 - inner], seed=seed)
    crowd = mix({"team": team, "c": c}, [outer, 1 - outer], size=len(team) // 2, seed=seed)
    table = mixture_report(crowd)
    assert table["part"].to_list() == ["team", "team > a", "team > b", "c"]
    assert table["depth"].to_list() == [0, 1, 1, 0]
    whole = np.array([len(crowd), table["transitions"][0], table["transitions"][0], len(crowd)])
    off = np.abs(table["share"] - table["asked_share"]).to_numpy() * whole
    assert off.max() <= 2 * 20  # two episodes
    assert table.filter(depth=0)["transitions"].sum() == len(crowd)
    assert table.filter(depth=1)["transitions"].sum() == table["transitions"][0]


def test_three_levels_rerun_from_their_record_to_the_same_data():
    a, b, c, d = (log(k, episodes=60) for k in range(4))
    deep = mix([mix([mix([a, b], [1, 2], seed=1), c], [0.5, 0.5], seed=2), d], [3, 1], seed=3)
    assert rerun(deep, a=a, b=b, c=c, d=d).content_hash == deep.content_hash
    assert mixture_report(deep)["depth"].to_list() == [0, 1, 2, 2, 1, 0]
    back = Provenance.from_json(deep.provenance.to_json())
    assert back.hash == deep.provenance.hash


def test_with_replacement_a_nested_mixture_keeps_its_shares_too():
    a, b = log(0, episodes=300, longest=10), log(1, episodes=300, longest=10)
    team = mix({"a": a, "b": b}, [0.25, 0.75])
    grown = sample(team, 20_000, replace=True)
    assert abs(len(grown) - 20_000) <= 10
    assert mixture_report(grown)["share"][0] == pytest.approx(0.25, abs=0.002)


def test_an_order_of_drawing_has_every_episode_once_and_is_fair_within_a_stratum():
    sizes, strata = np.ones(60, int), np.repeat([0, 1, 2], 20)
    first = [
        drawing_order(sizes, strata, None, np.random.default_rng(s)).episodes for s in range(300)
    ]
    assert all(sorted(order) == list(range(60)) for order in first)
    early = np.bincount(np.concatenate([order[:30] for order in first]), minlength=60) / 300
    assert np.abs(early - 0.5).max() < 0.15


def test_the_report_follows_the_data_through_later_steps():
    mixed = mix({"a": log(0), "b": log(1)}, [1, 1])
    left = mixed.filter_episodes(pl.col("part") == "a").label("x")
    table = mixture_report(left)
    assert table["asked_share"].to_list() == [0.5, 0.5]
    assert table["share"].to_list() == [1.0, 0.0]
    assert table["transitions"].to_list() == [len(left), 0]
    assert table["mixed_transitions"].sum() == len(mixed)


def test_the_report_does_not_claim_shares_that_a_choice_undid():
    team = mix({"a": log(0, source="a"), "b": log(1, source="b")}, [1, 1])
    again = mix({"chosen": by_source(team, "a"), "c": log(2)}, [1, 1])
    assert mixture_report(again)["part"].to_list() == ["chosen", "c"]


def test_the_report_of_a_dataset_without_a_mixture_has_no_rows():
    assert len(mixture_report(log(0))) == 0
    both = concatenate([mix([log(0)], [1]), log(1)])
    assert len(mixture_report(both)) == 0
    stripped = mix([log(0)], [1])
    stripped = stripped.derive("x", {}, episodes=stripped.episodes.drop("part"))
    assert mixture_report(stripped)["transitions"].to_list() == [0]


# Size


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 100), replace=st.booleans())
def test_a_sample_has_its_size_to_half_an_episode(share, seed, replace):
    whole = log(0, episodes=60)
    size = max(16.0, share * len(whole))
    part = sample(whole, size, replace=replace, seed=seed)
    assert abs(len(part) - size) <= 15
    assert same_rows_in_chains(part)


def test_a_sample_of_episodes_is_exact_and_all_of_them_is_the_log():
    whole = log(0)
    assert sample(whole, 7, of="episodes").episode_count == 7
    assert sample(whole, 40, of="episodes").transitions.equals(whole.transitions)
    assert sample(whole, 100, of="episodes", replace=True).episode_count == 100


def test_a_sample_smaller_than_half_of_any_episode_is_refused_rather_than_empty():
    long = log(5, episodes=1, longest=1000)
    with pytest.raises(InputError, match="1 transitions are less than half an episode"):
        sample(long, 1)


def test_a_sample_reruns_from_its_record():
    whole = log(0)
    part = sample(whole, 100, seed=9)
    assert rerun(part, whole=whole).content_hash == part.content_hash


# Quality


@settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3, unique=True),
    of=st.sampled_from(["episodes", "transitions"]),
)
def test_bands_that_share_edges_part_the_log_in_the_order_of_its_returns(edges, of):
    whole = log(0, episodes=150)
    edges = [0.0, *sorted(edges), 1.0]
    bands = []
    for low, high in pairwise(edges):
        with suppress(InputError):  # a band so narrow that it holds none
            bands.append(return_band(whole, low, high, of=of))
    assert sum(band.episode_count for band in bands) == whole.episode_count
    for worse, better in pairwise(bands):
        assert worse.returns().max() <= better.returns().min()
    assert all(same_rows_in_chains(band) for band in bands)


def test_a_band_is_exact_to_one_episode_also_when_it_counts_transitions():
    whole = log(0, episodes=200)
    top = return_band(whole, 0.75, of="transitions")
    assert abs(len(top) - len(whole) / 4) <= 30
    assert abs(return_band(whole, 0.75).episode_count - 50) == 0


def test_equal_returns_are_parted_in_the_order_of_the_log():
    same = Dataset.from_arrays(
        np.arange(10),
        np.zeros(10, int),
        np.ones(10),
        np.ones(10),
        final_observations=np.zeros(10, int),
    )
    assert return_band(same, 0, 0.3).arrays().observations.tolist() == [0, 1, 2]
    assert return_band(same, 0.3, 1).arrays().observations.tolist() == list(range(3, 10))


def test_expert_medium_and_replay_are_what_they_say():
    whole = log(0, episodes=100)
    ranked = np.sort(whole.returns())
    expert, medium, replay = (by_quality(whole, level) for level in ("expert", "medium", "replay"))
    assert np.sort(expert.returns()) == pytest.approx(ranked[90:])
    assert np.sort(medium.returns()) == pytest.approx(ranked[40:60])
    assert np.sort(replay.returns()) == pytest.approx(ranked[:60])
    assert expert.provenance.outcome["lowest_return"] == pytest.approx(ranked[90])
    wide = by_quality(whole, "medium", medium=(0.1, 0.9))
    assert wide.episode_count == 80
    assert rerun(wide, whole=whole).content_hash == wide.content_hash


def test_levels_of_one_log_mix_in_shares():
    whole = log(0, episodes=300, longest=10)
    mixed = mix_qualities(whole, {"expert": 0.2, "replay": 0.8}, seed=4)
    assert mixture_report(mixed)["share"][0] == pytest.approx(0.2, abs=0.03)
    assert rerun(mixed, whole=whole).content_hash == mixed.content_hash


def test_a_discount_ranks_by_discounted_returns():
    rewards = np.array([0.0, 3.0, 2.0, 0.0])  # 3 late, or 2 at once
    late = Dataset.from_arrays(
        np.arange(4), np.zeros(4, int), rewards, [0, 1, 0, 1], final_observations=np.zeros(2, int)
    )
    best = [return_band(late, 0.5, discount=d).arrays().rewards.sum() for d in (1.0, 0.5)]
    assert best == [3.0, 2.0]


# Source


def test_sources_are_taken_and_mixed_by_name():
    whole = concatenate([log(0, source="pid"), log(1, source="nn"), log(2, source="random")])
    two = by_source(whole, ["random", "pid"])
    assert set(two.arrays().observations[:, 1]) == {0, 2}
    mixed = mix_sources(whole, {"nn": 1, "random": 3}, of="episodes")
    assert mixed.episodes["source"].value_counts().sort("source")["count"].to_list() == [13, 40]
    assert rerun(mixed, whole=whole).content_hash == mixed.content_hash


def test_sources_may_be_any_column_of_the_episodes():
    whole = log(0).with_episode_columns(task=pl.col("episode") % 2)
    assert by_source(whole, [1], column="task").episode_count == 20


# From expert to uniform


def test_the_line_from_expert_to_uniform_has_one_size_and_exact_shares():
    expert, uniform = log(0, episodes=80), log(1, episodes=200)
    for share in (0, 0.25, 0.5, 1):
        point = interpolate(expert, uniform, share)
        assert abs(len(point) - len(expert)) <= 30
        found = (point.arrays().observations[:, 1] == 0).sum()
        assert abs(found - share * len(point)) <= 30
        assert mixture_report(point)["asked_share"][0] == share
    again = rerun(point, expert=expert, uniform=uniform)
    assert again.content_hash == point.content_hash


# Concentrability


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), asked=st.floats(1, 50))
def test_thinning_rates_reach_the_concentrability_exactly(seed, asked):
    generator = np.random.default_rng(seed)
    behaviour = generator.dirichlet(np.ones(6))
    target = np.where(generator.random(6) < 0.6, generator.dirichlet(np.ones(6)), 0)
    target[0] += 0.1
    target /= target.sum()
    ratios = target / behaviour
    rates = thinning_rates(ratios, asked)
    assert rates.max() == pytest.approx(1)
    assert (rates >= 0).all()
    thinned = behaviour * rates / (behaviour @ rates)
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = np.where(target > 0, target / thinned, 0).max()
    assert reached == pytest.approx(asked, rel=1e-6)
    if asked < ratios.max():  # no larger subset could do it
        assert behaviour @ rates == pytest.approx(asked / ratios.max())


@pytest.mark.parametrize(
    ("ratios", "asked", "message"),
    [
        ([2.0, 0.5], 0.9, "1 or more"),
        ([2.0, 0.5], np.nan, "1 or more"),
        ([2.0, 0.5], np.inf, "1 or more"),
        ([np.inf, 0.5], 2.0, "infinite however thinned"),
        ([1.0, 1.0], 2.0, "the target's own data"),
    ],
)
def test_a_concentrability_that_cannot_be_is_refused(ratios, asked, message):
    with pytest.raises(InputError, match=message):
        thinning_rates(np.array(ratios), asked)


def test_the_targets_own_data_have_concentrability_one_and_stay_whole():
    assert thinning_rates(np.ones(4), 1.0).tolist() == [1] * 4


def tabular_log(world: TabularMDP, behaviour: np.ndarray, size: int, seed: int = 0) -> Dataset:
    """Independent transitions of a world, drawn from a distribution of pairs."""
    generator = np.random.default_rng(seed)
    pairs = generator.choice(behaviour.size, size=size, p=behaviour.reshape(-1))
    states, actions = np.divmod(pairs, behaviour.shape[1])
    below = world.probabilities[states, actions].cumsum(-1)
    slots = np.minimum((generator.random(size)[:, None] > below).sum(-1), below.shape[1] - 1)
    return Dataset.from_arrays(
        states,
        actions,
        world.rewards[states, actions, slots],
        np.zeros(size),
        np.ones(size),
        next_observations=world.successors[states, actions, slots],
    )


@pytest.fixture(scope="module")
def hard() -> tuple[TabularMDP, Dataset]:
    world, behaviour = ambiguous_mdp(4, 1.05, 0.4, 0.9)
    return world, tabular_log(world, 0.6 * behaviour + 0.4 / behaviour.size, 30_000)


@pytest.mark.parametrize("asked", [1.0, 1.2, 2.0, 5.0])
def test_a_tabular_log_is_thinned_to_the_concentrability_asked_for(hard, asked):
    world, whole = hard
    less = thin(whole, asked, world)
    outcome = less.provenance.outcome
    assert outcome["asked"] == asked
    assert outcome["before"] == pytest.approx(empirical_concentrability(whole, world))
    assert outcome["realised"] == pytest.approx(asked, rel=0.02)
    assert outcome["realised"] == pytest.approx(empirical_concentrability(less, world))
    assert outcome["transitions"] == len(less) < len(whole)
    assert (pair_counts(less, 7, 2) <= pair_counts(whole, 7, 2)).all()
    again = rerun(less, whole=whole)
    assert again.content_hash == less.content_hash


def test_a_log_that_has_the_concentrability_already_stays_whole(hard):
    world, whole = hard
    same = thin(whole, empirical_concentrability(whole, world), world)
    assert len(same) == len(whole)


def test_thinning_draws_rows_at_random_and_is_seeded(hard):
    world, whole = hard
    one, two, three = (thin(whole, 3.0, world, seed=s) for s in (1, 1, 2))
    assert one.content_hash == two.content_hash != three.content_hash
    assert len(one) == len(three)


def test_thinning_keeps_the_next_observations_of_the_rows_that_stay():
    lake = toy_text("FrozenLake-v1", 0.95)
    generator = np.random.default_rng(0)
    state, rows, step = 0, [], 0
    while len(rows) < 20_000:
        action = int(generator.integers(4))
        slot = generator.choice(lake.probabilities.shape[2], p=lake.probabilities[state, action])
        after = int(lake.successors[state, action, slot])
        over = after == lake.states - 1
        step += 1
        rows.append((state, action, lake.rewards[state, action, slot], over, step == 50, after))
        state, step = (0, 0) if over or step == 50 else (after, step)
    states, actions, rewards, over, cut, after = map(np.array, zip(*rows, strict=True))
    whole = Dataset.from_arrays(
        states, actions, rewards, over, cut & ~over, next_observations=after
    )
    assert "next_obs" not in whole.transitions.columns
    # the end of an episode is a state of the world that no log holds: it needs no covering
    assert target_occupancy(whole, lake)[-1].sum() == 0
    assert occupancy(lake, value_iteration(lake).actions)[-1].sum() > 0.1
    before = empirical_concentrability(whole, lake)
    less = thin(whole, before / 2, lake)
    assert empirical_concentrability(less, lake) == pytest.approx(before / 2, rel=0.05)
    keys = {(s, a, n) for s, a, n in zip(states, actions, after, strict=True)}
    arrays = less.arrays()
    left = zip(arrays.observations, arrays.actions, arrays.next_observations, strict=True)
    assert all((int(s), int(a), int(n)) in keys for s, a, n in left)


def test_a_pair_of_the_target_that_the_log_lacks_is_named(hard):
    world, _ = hard
    narrow = tabular_log(world, np.eye(14)[2].reshape(7, 2), 10)
    with pytest.raises(InputError, match="the target is in state 0 with action 0, which the log"):
        thin(narrow, 2.0, world)
    assert empirical_concentrability(narrow, world) == np.inf


def test_a_state_that_the_world_does_not_have_is_named():
    odd = Dataset.from_arrays([0, 7], [0, 0], [0.0, 0.0], [0, 1])
    with pytest.raises(InputError, match="obs is 7 at row 1: pass 0 to 2"):
        pair_counts(odd, 3, 2)


def test_spaces_that_do_not_start_at_zero_are_counted_from_their_start():
    shifted = Spec(spaces.Discrete(2, start=5), spaces.Discrete(2, start=1))
    whole = Dataset.from_arrays([5, 6, 6], [1, 2, 2], np.zeros(3), [0, 0, 1], spec=shifted)
    assert pair_counts(whole, 2, 2).tolist() == [[1, 0], [0, 2]]
    assert target_probabilities(whole, np.array([[0.3, 0.7], [0.4, 0.6]])).tolist() == [
        0.3,
        0.6,
        0.6,
    ]
    kept = thin(whole, 1.0, np.array([[0.5, 0.0], [0.0, 0.5]]))
    assert pair_counts(kept, 2, 2).tolist() == [[1, 0], [0, 1]]


# Propensities


def bandit_log(size=40_000, seed=0) -> tuple[Dataset, np.ndarray]:
    """A contextual bandit's log with propensities, and a target policy `(S, A)`."""
    generator = np.random.default_rng(seed)
    behaviour = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    target = np.array([[0.1, 0.1, 0.8], [0.5, 0.4, 0.1]])
    contexts = generator.integers(2, size=size)
    draws = generator.random(size)[:, None] > behaviour[contexts].cumsum(axis=1)
    arms = draws.sum(axis=1)
    whole = Dataset.from_arrays(
        contexts,
        arms,
        np.zeros(size),
        np.ones(size),
        final_observations=contexts,
        columns={
            "behaviour_prob": behaviour[contexts, arms],
            "target_prob": target[contexts, arms],
        },
    )
    return whole, target


@pytest.mark.parametrize("asked", [1.0, 2.0, 8.0, 30.0])
def test_known_propensities_are_thinned_to_the_ratio_asked_for_and_told_anew(asked):
    whole, target = bandit_log()
    less = thin_by_propensity(whole, asked, target)
    outcome = less.provenance.outcome
    assert outcome["before"] == pytest.approx(8)
    assert outcome["realised"] == pytest.approx(asked)
    assert outcome["mean_ratio"] == pytest.approx(1, abs=0.1)
    counts = pair_counts(less, 2, 3)
    contexts = counts.sum(axis=1) / counts.sum()
    assert contexts == pytest.approx([0.5, 0.5], abs=0.02)  # the states' distribution stays
    told = less.transitions.group_by("obs", "action").agg(pl.col("behaviour_prob").first())
    for state, action, probability in told.iter_rows():
        assert counts[state, action] / counts[state].sum() == pytest.approx(probability, abs=0.02)


def test_a_target_is_a_column_a_table_or_a_policy():
    whole, target = bandit_log(500)
    by_column = target_probabilities(whole, "target_prob")
    assert (by_column == target_probabilities(whole, target)).all()
    assert (by_column == target_probabilities(whole, TabularPolicy(target))).all()
    tables = [thin_by_propensity(whole, 2.0, t) for t in ("target_prob", TabularPolicy(target))]
    assert tables[0].content_hash == tables[1].content_hash
    for table in tables:
        assert rerun(table, whole=whole).content_hash == table.content_hash


def test_a_target_with_a_density_works_for_continuous_actions():
    generator = np.random.default_rng(0)
    actions = generator.normal(size=(20_000, 1))

    class Narrow:
        def log_prob(self, observations, actions):
            return -0.5 * (actions[:, 0] / 0.8) ** 2 - np.log(0.8 * np.sqrt(2 * np.pi))

    logged = np.exp(-0.5 * actions[:, 0] ** 2) / np.sqrt(2 * np.pi)
    whole = Dataset.from_arrays(
        np.zeros((20_000, 1)),
        actions,
        np.zeros(20_000),
        np.ones(20_000),
        final_observations=np.zeros((20_000, 1)),
        columns={"behaviour_prob": logged},
    )
    less = thin_by_propensity(whole, 1.0, Narrow())
    assert less.arrays().actions.std() == pytest.approx(0.8, abs=0.02)
    assert len(less) / 20_000 == pytest.approx(0.8, abs=0.02)  # C / W


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({"behaviour_prob": 0.0}, "target_prob", "behaviour_prob is 0.0 at row 3"),
        ({"target_prob": np.nan}, "target_prob", "the target's probability is nan at row 3"),
        ({}, "nothing", "no column 'nothing'"),
        ({}, np.zeros(3), "a column's name, a table"),
        ({}, print, "a column's name, a table"),
        ({}, np.full((1, 3), 1 / 3), "pass 0 to 0"),
    ],
)
def test_bad_propensities_and_targets_are_refused(change, target, message):
    whole, _ = bandit_log(50)
    row = pl.int_range(pl.len()) == 3
    whole = whole.with_columns(
        **{n: pl.when(row).then(v).otherwise(pl.col(n)) for n, v in change.items()}
    )
    with pytest.raises(InputError, match=message):
        thin_by_propensity(whole, 2.0, target)


def test_on_policy_data_stay_whole_at_one():
    whole, _ = bandit_log(100)
    same = thin_by_propensity(whole, 1.0, "behaviour_prob")
    assert len(same) == 100
    assert same.transitions["behaviour_prob"].equals(whole.transitions["behaviour_prob"])


# Real data, and speed


def test_real_data_are_mixed_by_level_and_rerun():
    with np.load(neorl2_file("DMSD-train.npz")) as found:
        whole = Dataset.from_arrays(
            found["obs"],
            found["action"],
            found["reward"],
            found["done"].reshape(-1) > 0,
            found["truncated"].reshape(-1) > 0,
            next_observations=found["next_obs"],
            source="DMSD",
        )
    mixed = mix_qualities(whole, {"expert": 0.3, "medium": 0.3, "replay": 0.4}, size=20_000)
    table = mixture_report(mixed)
    longest = whole.lengths.max()
    off = (table["share"] - table["asked_share"]).abs().to_numpy() * len(mixed)
    assert off.max() <= longest
    assert abs(len(mixed) - 20_000) <= longest
    assert rerun(mixed, whole=whole).content_hash == mixed.content_hash


def test_a_million_transitions_mix_in_a_moment():
    def part(seed):
        ends = np.arange(1, 333_001) % 333 == 0
        return Dataset.from_arrays(
            np.zeros((333_000, 17), np.float32),
            np.zeros((333_000, 6), np.float32),
            np.ones(333_000, np.float32),
            np.zeros(333_000, bool),
            ends,
            final_observations=np.zeros((1000, 17), np.float32),
            copy=False,
        )

    parts = [part(seed) for seed in range(3)]
    for each in parts:
        assert each.provenance.content
    started = time.process_time()
    mixed = mix(parts, [0.4, 0.3, 0.3], size=700_000)
    assert time.process_time() - started < 1  # about 0.05 s on a quiet machine
    assert abs(len(mixed) - 700_000) <= 333


def test_sources_may_be_numbers():
    made = log(1).with_episode_columns(task=pl.int_range(40) % 3)
    assert by_source(made, 2, "task").episode_count == 13
    assert by_source(made, np.array([0, 1]), "task").episode_count == 27
    even = mix_sources(made, {0: 1, 1: 1}, "task", of="episodes")
    assert even.episodes["task"].value_counts()["count"].n_unique() == 1


def test_shares_and_parts_of_other_kinds_are_refused():
    for call, message in (
        (lambda: mix([log(1), log(2)], ["a", "b"]), "are no numbers"),
        (lambda: mix(log(1), [1]), "there are no parts"),
    ):
        with pytest.raises(InputError, match=message):
            call()
