"""The dataset explorer without a browser: what it counts, draws, selects, mixes and spoils."""

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offrl_wb.app import dataset_pictures as pictures
from offrl_wb.app import explorer as explorer_module
from offrl_wb.app.dataset_figures import (
    columns_figure,
    damage_figure,
    draw_columns,
    draw_damage,
    mixture_figure,
)
from offrl_wb.app.dataset_pictures import (
    CELLS,
    Damage,
    Log,
    Recipe,
    Selection,
    bands,
    bin_edges,
    bin_numbers,
    box,
    histogram,
    make_bins,
    make_plane,
    mix_log,
    next_observations,
    pendulum_log,
    pick,
    play_back,
    preview,
    principal_components,
    raster,
    recipe_code,
    skeleton,
    spoil,
    thin,
)
from offrl_wb.app.explore_dataset import (
    PAGE_LIMIT,
    TABS,
    BrushFigure,
    DatasetExplorer,
    EpisodeViewer,
    Look,
    explore,
    outline,
    ranges_of,
)
from offrl_wb.app.explorer import LiveFigure
from offrl_wb.core.errors import InputError
from offrl_wb.core.figures import alternative_text
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ImageFile, Spec

from .large_log import large_log

LOG = pendulum_log(episodes=60, steps=50)
COUNTED = Log(LOG)
SQUARE = ((0.0, 1.0), (0.0, 1.0))


def still() -> DatasetExplorer:
    return explore(LOG, live=False)


def discrete_log(sources: int = 3, episodes: int = 40) -> Dataset:
    """Whole-number states and actions, episodes of 1 to 9 steps that terminate."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 10, size=episodes)
    number = np.repeat(np.arange(episodes), lengths)
    last = np.append(number[1:] != number[:-1], True)
    return Dataset.from_arrays(
        generator.integers(5, size=len(number)),
        generator.integers(3, size=len(number)),
        (generator.random(len(number)) < 0.2).astype(np.float32),
        last,
        final_observations=generator.integers(5, size=episodes),
        spec=Spec(Discrete(5), Discrete(3)),
        episode_columns={"source": [f"policy {k % sources}" for k in range(episodes)]},
    )


def points(explorer: DatasetExplorer) -> int:
    """Points of every trace of every figure of the page."""
    lengths = []
    for figure in explorer.figures:
        for trace in figure.data:
            sizes = [len(trace[name]) for name in ("x", "y") if trace[name] is not None]
            lengths.append(max(sizes, default=0))
    return sum(lengths)


# Counting


@given(
    st.lists(
        st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(float("nan")),
        min_size=1,
        max_size=200,
    ),
    st.booleans(),
)
@example([0.0, 5.912913709979586e-308], False)
@example([0.0, 1e-40], False)
def test_bins_count_every_number_once(values: list[float], whole: bool) -> None:
    column = np.array(values)
    column = np.round(column) if whole else column
    bins = make_bins(column, whole)
    assert bins.counts.sum() == np.isfinite(column).sum()
    assert len(bins.counts) == len(bins.edges) - 1 <= pictures.BINS
    rows = np.arange(0, len(column), 2)
    assert bins.tally(rows).sum() == np.isfinite(column[rows]).sum()
    assert bins.tally(None) is bins.counts


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=100), st.floats(0.01, 100))
def test_a_value_lies_in_its_bin(values: list[int], scale: float) -> None:
    column = np.array(values) * scale
    edges = bin_edges(column)
    number = bin_numbers(column, edges)
    slack = 1e-9 * (edges[-1] - edges[0]) + 1e-12
    assert np.all(edges[number] <= column + slack)
    assert np.all(column <= edges[number + 1] + slack)


def test_a_few_outliers_do_not_squeeze_the_rest_into_one_bin() -> None:
    values = np.append(np.random.default_rng(0).normal(size=9_999), 1e7)
    bins = make_bins(values)
    assert (bins.counts > 0).sum() > 20
    assert bins.counts.sum() == 10_000, "the outlier is counted at the end"


def test_a_sample_of_a_larger_log_is_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "POOL", 500)
    log = Log(LOG)
    assert 400 < len(log.sample) < 800
    assert len(np.unique(log.sample)) == len(log.sample)
    one = np.zeros(60, dtype=bool)
    one[7] = True
    colours = pictures.colouring(log, "source")
    cloud = pictures.make_cloud(log, log.plane("obs_0", "obs_1"), colours, Selection(), one)
    drawn = np.concatenate(cloud.rows)
    assert len(drawn) <= 50
    assert set(log.episode[drawn]) == {7}


def test_infinities_are_counted_at_the_ends() -> None:
    numbers = bin_numbers(np.array([-np.inf, 0.0, np.inf, np.nan]), np.linspace(-1, 1, 5))
    assert numbers.tolist() == [0, 2, 3, 4]


def test_a_column_that_is_never_finite_has_an_empty_histogram() -> None:
    assert make_bins(np.full(7, np.nan)).counts.sum() == 0


def test_discrete_values_get_a_bin_each_until_there_are_too_many() -> None:
    assert np.diff(bin_edges(np.arange(12), discrete=True)).tolist() == [1.0] * 12
    assert len(bin_edges(np.arange(1000), discrete=True)) - 1 <= pictures.BINS


def test_columns_are_named_by_their_parts() -> None:
    space = Dict({"goal": Box(0, 1, ()), "arm": Box(0, 1, (2,))})
    dataset = Dataset.from_arrays(
        {"goal": np.zeros(4), "arm": np.zeros((4, 2))},
        np.zeros((4, 1)),
        np.zeros(4),
        [0, 0, 0, 1],
        final_observations={"goal": np.zeros(1), "arm": np.zeros((1, 2))},
        spec=Spec(space, Box(-1, 1, (1,))),
    )
    names = list(pictures.columns_of(dataset))
    assert names == ["arm_0", "arm_1", "goal", "action_0", "reward", "step"]


def test_wide_observations_show_their_first_columns_only() -> None:
    wide = large_log(10, 5, observations=150)
    log = Log(wide)
    assert sum(c.kind == "observation" for c in log.columns.values()) == pictures.WIDEST
    assert log._bins == {}, "nothing is counted before it is asked for"
    assert len(log.pages()) == 1 + pictures.WIDEST // pictures.PANELS + 1


def test_images_by_reference_are_no_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.zeros((6, 4, 4, 3), np.uint8))
    spec = Spec(
        Box(0, 255, (4, 4, 3), np.uint8),
        Box(-1, 1, (2,)),
        images=ImageFile(str(tmp_path / "frames.npy")),
    )
    generator = np.random.default_rng(0)
    dataset = Dataset.from_arrays(
        np.arange(5),
        generator.uniform(-1, 1, (5, 2)),
        np.ones(5),
        [0, 0, 0, 0, 1],
        final_observations=np.array([5]),
        spec=spec,
    )
    explorer = explore(dataset, live=False)
    assert list(explorer.log.axes) == ["action_0", "action_1", "reward", "step"]
    assert explorer.look.error == ""


# The plane and the brush


def inside(x: float, y: float, corners: pictures.Polygon) -> bool:
    """Even-odd rule, one point at a time."""
    found = False
    xs, ys = corners
    for k in range(len(xs)):
        (a, b), (c, d) = (xs[k - 1], ys[k - 1]), (xs[k], ys[k])
        if (b <= y) != (d <= y) and x < a + (y - b) / (d - b) * (c - a):
            found = not found
    return found


@given(st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)), min_size=3, max_size=12))
@settings(max_examples=40)
def test_a_lasso_of_any_shape_holds_the_cells_inside_it(corners: list) -> None:
    lasso = tuple(x for x, _ in corners), tuple(y for _, y in corners)
    cells = raster(lasso, SQUARE)[:-1].reshape(CELLS, CELLS)
    generator = np.random.default_rng(0)
    wrong = 0
    for row, column in generator.integers(CELLS, size=(60, 2)):
        wrong += cells[row, column] != inside((column + 0.5) / CELLS, (row + 0.5) / CELLS, lasso)
    assert wrong <= 1, "only a cell through whose middle a side runs can differ"


def test_what_has_no_place_is_in_no_region() -> None:
    x = pictures.Column("x", "observation", np.array([0.0, 1.0, np.nan]))
    y = pictures.Column("y", "observation", np.array([0.0, 1.0, 0.5]))
    plane = make_plane(x, y)
    assert plane.cell[2] == CELLS * CELLS
    everywhere = raster(box((-9, 9), (-9, 9)), plane.ranges)
    assert everywhere[plane.cell].tolist() == [True, True, False]


def test_components_follow_the_direction_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=2000)
    noise = generator.normal(size=(2000, 3)) * 0.1
    values = np.stack([first, first, -first], axis=1) + noise
    one, two = principal_components(values, np.arange(2000))
    assert abs(np.corrcoef(one.values, first)[0, 1]) > 0.99
    assert np.var(one.values) > 20 * np.var(two.values)
    assert principal_components(values[:, :1].repeat(2, 1) * 0, np.arange(2000)) == []


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from(["", *COUNTED.sources]),
    st.floats(0, 1),
)
@settings(max_examples=60)
def test_a_selection_is_the_rows_that_pass_all_its_parts(
    across: tuple, up: tuple, source: str, quantile: float
) -> None:
    plane = COUNTED.plane("obs_0", "obs_2")
    (left, right), (bottom, top) = plane.ranges
    corners = [left + (right - left) * v for v in across], [bottom + (top - bottom) * v for v in up]
    region = box(*corners)
    least = float(np.quantile(COUNTED.returns, quantile))
    selection = Selection((region,), ((least, np.inf),), (), source)
    expected = raster(region, plane.ranges)[plane.cell]
    expected &= COUNTED.returns[COUNTED.episode] >= least
    if source:
        expected &= np.array(COUNTED.sources)[COUNTED.source][COUNTED.episode] == source
    if not expected.any():
        with pytest.raises(InputError, match="no transition lies in this selection"):
            pick(COUNTED, plane, selection)
        return
    picked = pick(COUNTED, plane, selection)
    assert np.array_equal(picked.rows, np.flatnonzero(expected))
    assert picked.count == expected.sum()
    assert np.array_equal(np.flatnonzero(picked.touched), np.unique(COUNTED.episode[expected]))


def test_several_regions_and_ranges_count_together() -> None:
    plane = COUNTED.plane("obs_0", "obs_1")
    both = (box((-1.1, -0.5), (-2, 2)), box((0.5, 1.1), (-2, 2)))
    counts = [pick(COUNTED, plane, Selection(part)).count for part in (both[:1], both[1:], both)]
    assert counts[2] == counts[0] + counts[1]
    ranges = ((-1e9, np.median(COUNTED.returns)), (np.median(COUNTED.returns), 1e9))
    assert pick(COUNTED, plane, Selection(returns=ranges)).count == len(LOG)


def test_a_very_large_selection_is_counted_exactly_and_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "EXACT", 100)
    plane = COUNTED.plane("obs_0", "obs_1")
    picked = pick(COUNTED, plane, Selection(returns=((np.median(COUNTED.returns), np.inf),)))
    assert picked.count == len(LOG) / 2
    assert set(picked.rows) <= set(range(len(LOG)))


def test_a_rare_source_is_among_the_points() -> None:
    generator = np.random.default_rng(0)
    dataset = Dataset.from_arrays(
        generator.normal(size=(30_000, 2)),
        generator.normal(size=(30_000, 1)),
        np.zeros(30_000),
        np.zeros(30_000),
        np.arange(1, 30_001) % 100 == 0,
        final_observations=np.zeros((300, 2)),
        episode_columns={"source": ["common"] * 299 + ["rare"]},
    )
    log = Log(dataset)
    shown = log.source[log.episode[log.sample[: pictures.POINTS]]]
    assert (shown == log.sources.index("rare")).sum() >= 40
    assert len(np.unique(log.sample)) == len(log.sample)


def test_bands_hold_about_equally_many_and_few_values_are_kept_apart() -> None:
    values = np.random.default_rng(0).normal(size=600)
    inner, labels = bands(values)
    assert np.bincount(np.searchsorted(inner, values)).tolist() == pytest.approx([100] * 6, abs=2)
    assert len(labels) == 6
    assert bands(np.array([2.0, 2.0]))[1] == ["2"]
    assert bands(np.array([np.nan]))[1] == ["unknown"]


def test_more_sources_than_colours_are_gathered_as_others() -> None:
    log = Log(discrete_log(sources=12))
    colouring = pictures.colouring(log, "source")
    assert colouring.labels[-1] == "6 other sources"
    assert colouring.of(np.arange(log.size)).max() == pictures.GROUPS - 1


def test_the_picture_of_the_density_is_a_valid_image() -> None:
    plane = COUNTED.plane("obs_0", "obs_1")
    data = base64.b64decode(pictures.grey_picture(pictures.density(plane)).split(",")[1])
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">2I", data[16:24])
    size = struct.unpack(">I", data[33:37])[0]
    pixels = zlib.decompress(data[41 : 41 + size])
    assert len(pixels) == height * (1 + 2 * width)


# One episode


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_thinning_keeps_the_extremes(size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size)
    places = thin(values, 100)
    assert len(places) <= max(100, min(size, 100))
    assert np.all(np.diff(places) > 0)
    assert {values.argmin(), values.argmax()} <= set(places)


def test_an_episode_is_played_back_as_it_was_logged() -> None:
    episode = play_back(COUNTED, 7, ["obs_1", "reward", "action_0"])
    rows = slice(LOG.starts[7], LOG.starts[7] + LOG.lengths[7])
    names = [name for name, *_ in episode.traces]
    assert names == ["reward", "return so far", "obs_1", "action_0"], "the reward comes once"
    assert np.array_equal(episode.traces[2][2], LOG.arrays().observations[rows, 1])
    assert "cut by a time-out" in episode.about
    ended = Log(discrete_log())
    assert "terminated" in play_back(ended, 0, []).about
    frame = LOG.transitions.with_columns(truncated=pl.lit(False))
    opened = Log(Dataset.from_frames(frame, LOG.episodes, LOG.spec))
    assert "open at its end" in play_back(opened, 0, []).about


def test_the_viewer_steps_in_order_and_stays_inside_the_selection() -> None:
    viewer = EpisodeViewer(COUNTED, live=False)
    viewer.set(order="return", place=0)
    seen = []
    for _ in range(5):
        seen.append(COUNTED.returns[viewer.values["number"]])
        viewer.press("Next")
    assert seen == sorted(seen) == sorted(COUNTED.returns)[:5]
    chosen = COUNTED.source == 1
    viewer.choose(chosen)
    assert chosen[viewer.values["number"]]
    viewer.set(place=100)
    viewer.press("Next")
    assert viewer.values["number"] == np.flatnonzero(chosen)[COUNTED.returns[chosen].argmax()]
    viewer.set(number=int(np.flatnonzero(~chosen)[0]))
    assert "not among the selected ones" in viewer.readout
    viewer.press("Previous")
    assert chosen[viewer.values["number"]], "a step leads back into the selection"
    with pytest.raises(InputError, match="is not on this control"):
        viewer.set(number=60)
    assert viewer.controls["number"].text(7) == "7"


# Mixing and corrupting: previews against the real thing


@given(
    st.sampled_from(["source", "quality"]),
    st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any),
    st.sampled_from(["transitions", "episodes"]),
    st.integers(0, 5),
)
@settings(max_examples=20)
def test_a_mixture_in_the_preview_is_the_real_mixture(
    by: str, weights: list[int], of: str, seed: int
) -> None:
    names = COUNTED.sources if by == "source" else pictures.LEVELS
    recipe = Recipe(by, tuple(zip(names, weights, strict=True)), of, None, seed)
    mixed = mix_log(COUNTED, BARE, recipe)
    real = recipe.apply(LOG)
    assert mixed.size == len(real)
    assert mixed.origin.hash == real.provenance.hash
    assert np.array_equal(LOG.arrays().observations[mixed.rows], real.arrays().observations)
    assert np.array_equal(COUNTED.returns[mixed.episodes], real.returns())
    assert mixed.realised == pytest.approx(np.array(weights) / sum(weights), abs=0.1)


BARE = skeleton(COUNTED)


def test_next_observations_of_some_rows_are_those_of_the_dataset() -> None:
    unknown = discrete_log().with_episode_columns()
    episodes = unknown.episodes.with_columns(
        final_obs=pl.when(pl.col("episode") % 2 == 0).then("final_obs")
    )
    unknown = Dataset.from_frames(unknown.transitions, episodes, unknown.spec)
    holed = LOG.filter(pl.col("step") % 3 != 1)
    assert "next_obs" in holed.transitions.columns
    for dataset in (LOG, unknown, holed):
        rows = np.random.default_rng(0).permutation(len(dataset))
        expected = dataset.arrays().next_observations[rows]
        assert np.array_equal(next_observations(dataset, rows), expected)


@pytest.mark.parametrize("element", ["observations", "actions", "rewards", "dynamics"])
@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_a_preview_spoils_only_the_masked_rows(element: str, mode: str) -> None:
    explorer = still()
    explorer.corrupter.set(element=element, mode=mode, rate=0.3, scale=0.5, entry=0)
    spoiled = explorer.corrupter.result
    assert explorer.corrupter.error == ""
    moved = spoiled.spoiled != spoiled.clean
    assert not moved[~spoiled.mask].any()
    assert moved[spoiled.mask].mean() > 0.9
    assert abs(spoiled.mask.mean() - 0.3) < 4 * np.sqrt(0.21 / len(spoiled.mask))
    if element != "rewards":
        reach = np.abs(spoiled.spoiled - spoiled.clean).max() / spoiled.clean.std()
        assert reach <= 0.5001


def test_the_corruption_falls_on_the_mixture() -> None:
    explorer = still()
    explorer.mixer.set(by="source", share_0=0, share_1=0, share_2=100)
    explorer.corrupter.set(element="observations", rate=0.6, scale=2.0)
    only = COUNTED.sources[2]
    values = LOG.arrays().observations[np.repeat(COUNTED.source == 2, LOG.lengths), 0]
    assert set(explorer.corrupter.result.clean) <= set(values), f"all rows are of {only}"
    operations = [step.operation.rpartition(".")[2] for step in made(explorer).values()]
    assert operations == ["from_arrays", "by_source", "by_source", "by_source", "mix", "corrupt"]


def made(explorer: DatasetExplorer) -> dict[str, Any]:
    return explorer.corrupter.result.origin.steps()


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"by": "source", "share_0": 100, "share_1": 5}, {}),
    ({"by": "quality", "of": "episodes", "seed": 3}, {"element": "rewards", "rate": 0.1}),
    ({}, {"element": "dynamics", "scale": 0.4, "seed": 9}),
    (
        {"by": "source", "size": 1_000},
        {"element": "actions", "mode": "adversarial", "rate": 0.05},
    ),
]


@pytest.mark.parametrize(("mixing", "damage"), CHANGES)
def test_the_code_makes_what_the_sliders_describe(mixing: dict, damage: dict) -> None:
    explorer = still()
    explorer.mixer.set(**mixing)
    explorer.corrupter.set(**damage)
    assert (explorer.mixer.error, explorer.corrupter.error) == ("", "")
    names: dict[str, Any] = {"explored": LOG}
    exec(explorer.code, names)
    built = explorer.build()
    assert names["dataset"].content_hash == built.content_hash
    assert names["dataset"].provenance.hash == built.provenance.hash
    assert recipe_code(built.provenance, LOG.provenance) == explorer.code


def test_the_code_of_a_file_starts_from_the_file(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "episode": [0, 0, 0, 1, 1, 1],
            "obs_0": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "action_0": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            "reward": [1.0, 0.0, 0.0, 2.0, 0.0, 0.0],
            "terminated": [False, False, True, False, False, True],
        }
    )
    path = tmp_path / "log.parquet"
    frame.write_parquet(path)
    explorer = explore(path, live=False)
    explorer.corrupter.set(element="rewards", rate=0.5)
    assert "explored" not in explorer.code
    assert str(path) in explorer.code
    names: dict[str, Any] = {}
    exec(explorer.code, names)
    assert names["dataset"].content_hash == explorer.build().content_hash


def test_an_attacker_of_ones_own_is_used_and_named() -> None:
    calls = []

    def attack(observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(actions))
        return actions.sum(axis=1), np.ones_like(actions)

    explorer = explore(LOG, attacker=attack, live=False)
    explorer.corrupter.set(element="actions", mode="adversarial", rate=0.6)
    assert calls
    names: dict[str, Any] = {"explored": LOG, "attacker": attack}
    exec(explorer.code, names)
    assert names["dataset"].content_hash == explorer.build().content_hash


def test_what_cannot_be_done_is_one_line() -> None:
    explorer = explore(discrete_log(), live=False)
    explorer.corrupter.set(element="observations", mode="adversarial")
    assert "attack" in explorer.corrupter.error or "critic" in explorer.corrupter.error
    assert not explorer.corrupter.error.startswith("unexpected")
    assert explorer.code == f"# Nothing can be made: {explorer.corrupter.error}"
    explorer.mixer.set(by="quality", share_0=0, share_1=0, share_2=0)
    assert explorer.mixer.error == "every share is 0: move one of the sliders up"
    assert explorer.mixer.error in explorer.code
    with pytest.raises(InputError, match="every share is 0"):
        explorer.build()
    explorer.look.set(low=50, high=50)
    assert explorer.look.error == "no return lies from 50 % to 50 %: move “returns to” up"
    explorer.look.press()
    assert explorer.look.error == ""


# The first tab


def test_brushing_the_returns_filters_points_and_columns() -> None:
    explorer = still()
    look = explorer.look
    before = [sum(len(trace.x) for trace in look.states.data), list(look.columns.data[1].y)]
    best = float(np.quantile(COUNTED.returns, 0.9))
    look.brush(returns=((best, np.inf),))
    shown = np.concatenate([np.asarray(trace.customdata) for trace in look.states.data])
    assert np.all(COUNTED.returns[shown] >= best)
    assert list(look.columns.data[1].y) != before[1]
    assert sum(look.episodes.data[1].y) == (COUNTED.returns >= best).sum()
    assert explorer.viewer.chosen.sum() == (COUNTED.returns >= best).sum()
    look.press()
    assert sum(len(trace.x) for trace in look.states.data) == before[0]
    assert explorer.viewer.chosen.all()


def test_brushing_the_states_filters_episodes_and_columns() -> None:
    look = Look(COUNTED, live=False)
    look.set(x="obs_0", y="obs_1")
    look.brush(regions=(box((0.9, 1.1), (-0.3, 0.3)),))
    column = histogram(COUNTED, "obs_0", look.seen.picked.rows)
    assert np.flatnonzero(column.chosen).min() >= 0.9 * len(column.chosen)
    assert sum(look.episodes.data[1].y) < sum(look.episodes.data[0].y)
    faint = [trace.selectedpoints for trace in look.states.data if len(trace.x)]
    assert all(len(chosen) < len(t.x) for chosen, t in zip(faint, look.states.data, strict=False))
    look.set(y="obs_2")
    assert look.selection.regions == (), "a region means nothing on other axes"
    assert "All 3,000 transitions" in look.readout


def test_sliders_take_the_place_of_a_brush_on_the_returns() -> None:
    look = Look(COUNTED, live=False)
    look.brush(returns=((-1e9, 1e9),), lengths=((0, 99),))
    look.set(low=50)
    assert look.brushed.returns == ()
    assert look.seen.picked.touched.sum() == 30


def test_every_menu_of_the_first_tab_draws() -> None:
    look = Look(COUNTED, live=False)
    for name, control in look.controls.items():
        for setting in control.settings:
            if (name, setting) in {("low", 100), ("high", 0)}:
                continue
            look.set(**{name: setting})
            assert look.error == "", (name, setting)
        look.press()
    with pytest.raises(InputError, match="no control is named 'speed'"):
        look.set(speed=1)


def test_columns_are_drawn_over_their_own_bins() -> None:
    figure = columns_figure()
    pages = list(Log(large_log(20, 10)).pages().values())
    log = Log(large_log(20, 10))
    for page in (pages[0], pages[-1], pages[1]):
        shown = [histogram(log, name, np.arange(30)) for name in page]
        draw_columns(figure, shown)
        for k, each in enumerate(shown):
            whole, chosen = figure.data[2 * k : 2 * k + 2]
            assert np.array_equal(whole.x, chosen.x)
            assert (whole.x[0], whole.x[-1]) == (each.edges[0], each.edges[-1])
            assert sum(whole.y) == pytest.approx(1)
            assert sum(chosen.y) == pytest.approx(1)
            assert figure.layout.annotations[k].text.startswith(f"<b>{each.name}</b>")
            lines = figure.layout.shapes[2 * k : 2 * k + 2]
            assert all(line.visible is bool(each.bounds) for line in lines)


def test_saturated_actions_are_marked_for_the_selection() -> None:
    shown = histogram(COUNTED, "action_0", None)
    actions = LOG.arrays().actions[:, 0]
    assert shown.bounds == (-2.0, 2.0)
    assert shown.saturated[0] == pytest.approx(np.mean(actions <= -1.996), abs=1e-6)
    rows = np.flatnonzero(np.abs(actions) < 1)
    assert histogram(COUNTED, "action_0", rows).saturated == (0.0, 0.0, 0.0)
    figure = columns_figure()
    draw_columns(figure, [shown])
    assert "at low" in figure.layout.annotations[0].text
    beyond = pictures.Histogram("a", shown.edges, shown.everything, shown.chosen, (0, 1), (0, 0, 1))
    draw_columns(figure, [beyond])
    assert "beyond 100.0%" in figure.layout.annotations[0].text


# What the browser reports


def test_a_box_and_a_lasso_are_polygons() -> None:
    rect = {"type": "rect", "xref": "x", "x0": 2, "x1": 1, "y0": 0, "y1": 3}
    assert outline(rect) == box((2, 1), (0, 3))
    assert outline({"type": "path", "path": "M0,1L2,3L4,5Z"}) == ((0, 2, 4), (1, 3, 5))
    assert ranges_of([rect, {**rect, "xref": "x2"}], "x") == ((1.0, 2.0),)


def reported(figure: Any, outlines: list[dict[str, Any]]) -> None:
    """What Plotly sends when outlines are drawn."""
    figure._js2py_relayout = {"relayout_data": {"selections": outlines}, "source_view_id": "v"}


def point_event(figure: Any, kind: str, **points: list[int]) -> None:
    data = {"trace_indexes": [], "point_indexes": [], "xs": [], "ys": []} | points
    figure._js2py_pointsCallback = {"event_type": kind, "points": data, "selector": None}


@pytest.fixture(scope="module")
def live() -> DatasetExplorer:
    return explore(LOG, live=True)


def test_a_brush_in_the_browser_selects_and_a_double_click_clears(live: DatasetExplorer) -> None:
    look = live.look
    look.set(x="obs_0", y="obs_1")
    rect = {"type": "rect", "xref": "x", "yref": "y", "x0": 0.5, "x1": 2, "y0": -2, "y1": 2}
    reported(look.states, [rect])
    expected = (LOG.arrays().observations[:, 0] > 0.5).sum()
    assert look.seen.picked.count == pytest.approx(expected, rel=0.02)
    assert look.panel.readout.text.startswith("Selected:")
    point_event(look.states, "plotly_deselect")
    assert look.seen.picked.rows is None


def test_ranges_in_the_browser_move_the_sliders(live: DatasetExplorer) -> None:
    look = live.look
    middle, top = np.quantile(COUNTED.returns, [0.5, 1.0])
    rect = {"type": "rect", "xref": "x", "yref": "y", "x0": middle, "x1": top, "y0": 0, "y1": 9}
    reported(look.episodes, [rect, {**rect, "xref": "x2", "x0": 0, "x1": 99}])
    assert look.seen.picked.touched.sum() == 30
    assert look.panel.controls["low"].value == 50
    assert look.panel.controls["high"].value == 100
    look.press()
    assert look.panel.controls["low"].value == 0


def test_a_new_brush_does_not_flash_everything_in_between(live: DatasetExplorer) -> None:
    look, seen = live.look, []

    async def brush() -> None:
        rect = {"type": "rect", "xref": "x", "yref": "y", "x0": 0.5, "x1": 2, "y0": -2, "y1": 2}
        reported(look.states, [rect])
        seen.append(look.seen.picked.count)
        reported(look.states, [])
        await asyncio.sleep(0.05)
        seen.append(look.seen.picked.count)
        reported(look.states, [{**rect, "x0": 0.7}])
        seen.append(look.seen.picked.count)
        await asyncio.sleep(0.6)
        seen.append(look.seen.picked.count)

    asyncio.run(brush())
    assert seen[0] == seen[1] > seen[2] == seen[3]
    look.press()


def test_a_click_opens_the_episode(live: DatasetExplorer) -> None:
    number, trace = next((k, t) for k, t in enumerate(live.look.states.data) if len(t.x) > 2)
    point_event(live.look.states, "plotly_click", trace_indexes=[number], point_indexes=[2])
    assert live.viewer.values["number"] == trace.customdata[2]
    assert TABS[live.tabs.selected_index] == "Episodes"
    live.tabs.selected_index = 0
    point_event(live.look.episodes, "plotly_click", trace_indexes=[0], point_indexes=[1])
    assert live.tabs.selected_index == 0, "a bar is no episode"


def test_hovering_and_a_click_beside_the_points_change_nothing(live: DatasetExplorer) -> None:
    before = live.look.selection
    point_event(live.look.states, "plotly_hover", trace_indexes=[0], point_indexes=[0])
    reported(live.look.states, [])
    assert live.look.selection == before


def messages(figures: list[Any], act: Callable[[], None]) -> list[int]:
    """How many messages each figure sends to the page while `act` runs."""
    counts = [0] * len(figures)

    def hear(k: int) -> Callable[[Any], None]:
        def heard(change: Any) -> None:
            counts[k] += change["new"] is not None

        return heard

    hearers = [hear(k) for k in range(len(figures))]
    for figure, heard in zip(figures, hearers, strict=True):
        names = [name for name in figure.trait_names() if name.startswith("_py2js_")]
        figure.observe(heard, names)
    act()
    for figure, heard in zip(figures, hearers, strict=True):
        names = [name for name in figure.trait_names() if name.startswith("_py2js_")]
        figure.unobserve(heard, names)
    return counts


def test_a_move_is_one_message_for_each_figure_that_changes(live: DatasetExplorer) -> None:
    live.tabs.selected_index = 0
    moves = {
        "page": (lambda: live.look.set(page="actions"), [0, 0, 1, 0, 0, 0]),
        "returns": (lambda: live.look.set(low=30), [1, 1, 1, 0, 0, 0]),
        "mix": (lambda: live.mixer.set(by="source"), [0, 0, 0, 0, 1, 0]),
    }
    for name, (move, expected) in moves.items():
        assert messages(live.figures, move) == expected, name
    live.look.set(low=0, page="overview")


def test_hidden_tabs_are_drawn_when_they_are_opened(live: DatasetExplorer) -> None:
    live.tabs.selected_index = 0
    live.mixer.set(by="quality", share_0=100, share_1=0, share_2=0)
    stale = live.corrupter.result.clean
    live.tabs.selected_index = TABS.index("Corrupt")
    assert not np.array_equal(live.corrupter.result.clean, stale)
    live.tabs.selected_index = TABS.index("Code")
    assert "shares=[100, 0, 0]" in live.code_view.text
    live.mixer.reset()
    assert "mix(" not in live.code_view.text, "the open tab follows"
    live.tabs.selected_index = 0


def test_widgets_move_what_they_say(live: DatasetExplorer) -> None:
    live.tabs.selected_index = 0
    live.look.press()
    live.look.panel.controls["low"].value = 50
    assert live.look.values["low"] == 50
    assert live.look.seen.picked.touched.sum() == 30
    live.look.panel.buttons["Clear selection"].click()
    assert live.look.seen.picked.rows is None
    reported(live.look.episodes, [])
    assert live.look.seen.picked.rows is None, "there was nothing to clear"
    controls = live.viewer.panel.controls
    controls["place"].value = 0
    assert controls["number"].value == COUNTED.returns.argmin()
    controls["number"].value = int(COUNTED.returns.argmax())
    assert controls["place"].value == 100
    controls["order"].value = "log"
    assert controls["number"].value == 59


def test_sliders_of_the_mixture_are_named_after_its_parts(live: DatasetExplorer) -> None:
    controls = live.mixer.panel.controls
    live.mixer.set(by="quality")
    names = [controls[f"share_{k}"].description for k in range(3)]
    assert names == ["expert", "medium", "replay"]
    live.mixer.set(by="source")
    assert controls["share_0"].description == COUNTED.sources[0]
    live.mixer.reset()
    assert controls["share_0"].layout.display == "none"
    assert controls["size"].layout.display == "none"
    assert controls["by"].layout.display is None


# The page as a whole


@pytest.mark.parametrize(
    "dataset",
    [LOG, discrete_log(), large_log(30, 700), large_log(3000, 1, 2, 1), LOG.select([4])],
    ids=["pendulum", "discrete", "large", "one step each", "one episode"],
)
def test_no_page_receives_more_than_its_limit(dataset: Dataset) -> None:
    explorer = explore(dataset, live=False)
    most = points(explorer)
    returns = float(np.quantile(explorer.log.returns, 0.7))
    explorer.look.brush(returns=((returns, np.inf),))
    explorer.look.set(page=list(explorer.log.pages())[-1])
    explorer.viewer.set(page=list(explorer.log.pages())[-1])
    explorer.mixer.set(by="quality")
    explorer.corrupter.set(element="rewards", rate=0.6)
    most = max(most, points(explorer))
    problems = [explorer.look.error, *(each.error for each in explorer.changing)]
    assert not any(each.startswith("unexpected") for each in problems), problems
    assert most < PAGE_LIMIT / 2
    assert all(
        len(trace.x) <= 2_500 for f in explorer.figures for trace in f.data if trace.x is not None
    )


def test_every_figure_says_what_is_to_be_seen() -> None:
    for figure in still().figures:
        assert len(alternative_text(figure)) >= 80


def test_the_static_picture_is_small_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    explorer = explore(LOG)
    bundle = explorer._repr_mimebundle_()
    assert explorer.tabs is None
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain"}
    assert len(json.dumps(bundle)) < 150_000
    assert "All 3,000 transitions in 60 episodes of 50 steps" in bundle["text/plain"]
    drawn = bundle["application/vnd.plotly.v1+json"]
    axes = {trace.get("xaxis", "x") for trace in drawn["data"]}
    assert len(axes) == 3 + pictures.PANELS
    assert sum(trace.get("showlegend", True) for trace in drawn["data"]) == 3


def test_live_display_is_a_widget(live: DatasetExplorer) -> None:
    bundle = live._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("Dataset(")
    assert live.tabs.titles == TABS
    assert all(isinstance(figure, LiveFigure) for figure in live.figures)
    assert isinstance(live.look.states, BrushFigure)


def test_plotly_is_sent_to_the_page_once(live: DatasetExplorer) -> None:
    assert all(len(figure._esm) < 2_000 for figure in live.figures)
    assert len(explorer_module._sent) == 1
    code = explorer_module._sent[0].code.decode()
    assert "FigureView" in code
    silent = re.findall(r'"(\w+)"', explorer_module.LIBRARY_SCRIPT.split("];")[0])
    assert "handle_plotly_hover" in silent
    for report in silent:
        assert f"{report}(" in code, "this version of Plotly calls it otherwise"


def test_missing_numbers_are_left_out_and_counted_out() -> None:
    observations = LOG.arrays().observations.copy()
    observations[::7, 1] = np.nan
    dataset = Dataset.from_arrays(
        observations,
        LOG.arrays().actions,
        LOG.arrays().rewards,
        LOG.arrays().terminated,
        LOG.arrays().truncated,
        final_observations=np.zeros((60, 3)),
        spec=LOG.spec,
    )
    explorer = explore(dataset, live=False)
    assert explorer.log.bins("obs_1").counts.sum() == np.isfinite(observations[:, 1]).sum()
    assert explorer.look.error == ""
    explorer.corrupter.set(element="observations", entry=1)
    assert "mend it first" in explorer.corrupter.error


def test_one_transition_can_be_explored() -> None:
    tiny = Dataset.from_arrays(
        np.zeros((1, 2)), np.zeros((1, 1)), [1.0], [True], final_observations=np.ones((1, 2))
    )
    explorer = explore(tiny, live=False)
    assert explorer.look.readout.startswith("All 1 transitions in 1 episodes of 1 steps")
    assert "source" not in explorer.look.controls
    assert list(explorer.mixer.controls["by"].settings) == ["", "quality"]


def test_the_first_pictures_are_the_same_every_time() -> None:
    first, second = (still() for _ in range(2))
    for one, other in zip(first.figures, second.figures, strict=True):
        assert one.to_json() == other.to_json()


def test_a_log_without_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        explore(tmp_path / "nothing.parquet", live=False)


def test_figures_start_empty_and_described() -> None:
    assert len(mixture_figure().data) == 6
    figure = damage_figure()
    clean = preview(discrete_log(), np.arange(50), discrete_log().provenance)
    draw_damage(figure, spoil(clean, Damage("rewards", rate=0.5), 0, None))
    assert len(figure.data[1].x) > 10
