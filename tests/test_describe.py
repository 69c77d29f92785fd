"""A description says what a log holds: in few words, fast, on a page that needs nothing else."""

import json
import re
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from offrl_wb.app import describe
from offrl_wb.app.describe import (
    BINS,
    WIDTH,
    chosen_episodes,
    describe_html,
    describe_text,
    dimensions,
    edges_of,
    number,
    percent,
    project,
    size,
    space_text,
    spread,
    summarise,
    text_table,
    value_table,
)
from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ImageFile, ScoreReference, Spec

MOST_POINTS = 20_000
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


def log(
    transitions: int = 400, length: int = 50, wide: int = 3, seed: int = 0, **changed: object
) -> Dataset:
    """A log of vectors with two sources and a score reference."""
    generator = np.random.default_rng(seed)
    rows = np.arange(transitions)
    seen = generator.normal(size=(transitions, wide)).astype(np.float32)
    spec = Spec(
        Box(-np.inf, np.inf, (wide,)),
        Box(-1, 1, (2,)),
        0.9,
        ScoreReference(-1.0, 1.0, "ours"),
        name="walk",
    )
    given: dict = {
        "observations": seen,
        "actions": np.clip(generator.normal(size=(transitions, 2)), -1, 1).astype(np.float32),
        "rewards": generator.normal(size=transitions).astype(np.float32),
        "terminated": rows % (2 * length) == 2 * length - 1,
        "truncated": rows % (2 * length) == length - 1,
        "next_observations": np.roll(seen, -1, axis=0),
        "spec": spec,
        "columns": {"behaviour_prob": generator.random(transitions)},
        "episode_columns": {"source": ["a", "b"] * (transitions // length // 2), "task": 7},
    }
    return Dataset.from_arrays(**(given | changed))


def grid_log(count: int = 120) -> Dataset:
    """A log of integers."""
    rows = np.arange(count)
    return Dataset.from_arrays(
        rows % 6, rows % 4, (rows % 6 == 5) * 1.0, rows % 6 == 5, next_observations=(rows + 1) % 6
    )


def points(page: str) -> int:
    """How many points a page's figures hold: the longest list of each trace, matrices whole."""

    def length(value: object) -> int:
        if isinstance(value, dict) and "bdata" in value:
            width = int(re.sub(r"\D", "", value["dtype"]))
            return len(value["bdata"]) * 3 // 4 // width
        if isinstance(value, list):
            return sum(len(v) if isinstance(v, list) else 1 for v in value)
        return 0

    found = re.findall(r'class="plot-data">(.*?)</script>', page, re.DOTALL)
    assert found
    traces = [trace for text in found for trace in json.loads(text)["data"]]
    return sum(max(length(trace.get(key)) for key in ("x", "y", "z")) for trace in traces)


# Numbers and words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1_234_567, "1 234 567"),
        (999_999.6, "1 000 000"),
        (1234.567, "1 235"),
        (0.000123456, "0.000123"),
        (1e12, "1e+12"),
        (-2.5, "-2.5"),
        (np.inf, "∞"),
        (None, "–"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_number_reads_as_itself_to_three_digits(value: float) -> None:
    assert float(number(value).replace(" ", "")) == pytest.approx(value, rel=5.01e-3)


@given(st.floats(0, 1))
def test_a_share_never_reads_as_none_or_all_unless_it_is(share: float) -> None:
    assert (percent(share) == "0 %") is (share == 0)
    assert (percent(share) == "100 %") is (share == 1)


def test_sizes_have_units() -> None:
    assert [size(n) for n in (0, 999, 1000, 10**9, 10**16)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1 GB",
        "10 000 TB",
    ]


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (Box(-1, 1, (1,)), "1 number in [-1, 1]"),
        (Box(0, 255, (4, 5, 3), np.uint8), "4 × 5 × 3 numbers in [0, 255]"),
        (
            Box(np.array([-1, -2]), np.array([1, 2]), dtype=float),
            "2 numbers, bounds differ by dimension",
        ),
        (Box(-np.inf, np.inf, (2,)), "2 numbers, unbounded"),
        (Discrete(3, start=1), "one of 3 integers, 1 to 3"),
        (MultiDiscrete([2] * 9), "9 integers with 2, 2, 2, 2, 2, 2 and 3 more values"),
        (MultiBinary(4), "4 bits"),
        (Dict(a=Discrete(2), b=Box(0, 1, (2, 2))), "5 numbers in 2 parts: a 1, b 2×2"),
        (Tuple([Discrete(2), Discrete(3)]), "2 numbers in 2 parts: 0 1, 1 1"),
    ],
)
def test_spaces_are_told_in_words(space: object, text: str) -> None:
    assert space_text(space) == text


# Statistics


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=NUMBERS))
def test_statistics_of_dimensions_are_those_of_their_finite_values(values: np.ndarray) -> None:
    found = dimensions(values, [f"d{j}" for j in range(values.shape[1])])
    for j, row in enumerate(found.table.iter_rows(named=True)):
        kept = values[np.isfinite(values[:, j]), j].astype(float)
        assert row["not_finite"] == len(values) - len(kept)
        assert found.histogram[j].sum() == len(kept)
        if not len(kept):
            assert np.isnan(row["minimum"])
            assert np.isnan(row["maximum"])
            continue
        assert row["minimum"] == kept.min()
        assert row["maximum"] == kept.max()
        assert row["mean"] == pytest.approx(kept.mean(), rel=1e-9, abs=1e-9)
        assert row["standard_deviation"] == pytest.approx(kept.std(), rel=1e-6, abs=1e-9)
        if kept.min() < kept.max():
            near = 1e-6 * (kept.max() - kept.min())
            assert row["at_low"] == pytest.approx((kept <= kept.min() + near).mean())
            assert row["at_high"] == pytest.approx((kept >= kept.max() - near).mean())
        else:
            assert np.isnan(row["at_low"])


def test_statistics_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 2))
    whole = dimensions(values, ["a", "b"])
    monkeypatch.setattr(describe, "_BLOCK", 7)
    pieces = dimensions(values, ["a", "b"])
    assert np.array_equal(whole.histogram, pieces.histogram)
    for name in ("mean", "standard_deviation", "at_low"):
        assert np.allclose(whole.table[name], pieces.table[name])
    assert np.array_equal(whole.histogram[0], np.histogram(values[:, 0], BINS)[0])


@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e9, 1e9)))
def test_a_histogram_counts_every_value_once(values: np.ndarray) -> None:
    counts, edges = edges_of(values)
    assert counts.sum() == len(values)
    assert len(edges) == len(counts) + 1
    assert len(counts) <= 50


def test_whole_numbers_of_a_small_range_have_a_bar_each() -> None:
    counts, edges = edges_of(np.array([3.0, 5.0, 5.0]))
    assert counts.tolist() == [1, 0, 2]
    assert edges.tolist() == [2.5, 3.5, 4.5, 5.5]


def test_integers_are_counted_most_frequent_first() -> None:
    table = value_table(np.array([5, 5, 2, 9, 9, 9]))
    assert table["value"].to_list() == [9, 5, 2]
    assert table["share"].sum() == pytest.approx(1)


def test_quantiles_are_over_finite_values() -> None:
    assert spread("x", np.array([1, 2, 3, np.inf, np.nan]))["mean"] == 2


def test_projection_finds_the_plane_that_points_lie_in() -> None:
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(300, 2)) @ generator.normal(size=(2, 6))
    plane[3] = np.nan
    found = project(plane, most=100)
    assert found is not None
    assert found.explained == pytest.approx(1)
    assert len(found.points) == 100
    assert 3 not in found.rows
    assert project(plane * [1, 0, 0, 0, 0, 0]) is None
    assert project(np.full((10, 2), np.nan)) is None
    assert project(np.arange(10)) is None


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=40))
def test_chosen_episodes_are_in_the_order_of_their_returns(values: list[float]) -> None:
    returns = np.array(values)
    chosen = chosen_episodes(returns)
    picked = list(chosen.values())
    assert len(set(picked)) == len(picked) <= 5
    known = returns[np.isfinite(returns)]
    if len(known):
        assert returns[chosen["worst"]] == known.min()
        assert returns[picked[-1]] == known.max()
        assert (np.diff(returns[picked]) >= 0).all()


# Text


def test_text_says_what_is_in_the_log() -> None:
    dataset = log()
    text = describe_text(dataset)
    returns = dataset.returns()
    for expected in (
        "walk: 400 transitions in 8 episodes",
        "3 numbers, unbounded",
        "2 numbers in [-1, 1]",
        "discount     0.9",
        f"mean {100 * (returns.mean() + 1) / 2:.2f}, where 0 is -1, 100 is 1 (ours)",
        "terminated         4  50.0 %",
        "truncated          4  50.0 %",
        "behaviour_prob",
        "episodes.task",
        "checks: ",
        f"from_arrays()  {dataset.provenance.hash}",
    ):
        assert expected in text, expected
    assert re.search(r"^a +4 +200 +50.0 % ", text, re.MULTILINE), "a line for each source"
    assert re.search(r"^action_1 +-1 .*% +\d", text, re.MULTILINE), "a line for each dimension"
    assert max(map(len, text.splitlines())) <= WIDTH


def test_text_of_a_log_of_integers_counts_them() -> None:
    text = describe_text(grid_log())
    assert "observations: 6 distinct" in text
    assert "one of 4 integers, 0 to 3" in text
    assert "no reference" in text


def test_many_values_and_dimensions_are_cut_short_in_text() -> None:
    rows = np.arange(90)
    many = Dataset.from_arrays(
        rows, rows, rows * 1.0, rows == 89, next_observations=np.append(rows[1:], 0)
    )
    assert "… and 70 more" in describe_text(many)
    assert "… and 20 more" in describe_text(log(wide=60))


def test_missing_numbers_are_counted_and_do_not_spoil_the_rest() -> None:
    dataset = log()
    rewards = dataset.arrays().rewards.copy()
    rewards[3] = np.nan
    seen = dataset.arrays().observations.copy()
    seen[5, 1] = np.inf
    text = describe_text(
        log(rewards=rewards, observations=seen, next_observations=np.roll(seen, -1, 0))
    )
    assert "not finite" in text
    assert "checks: " in text
    assert "error" in text
    nothing = log(rewards=np.full(400, np.nan))
    assert "mean –, where" in describe_text(nothing)
    assert "Single episodes" in describe_html(nothing)


def test_named_parts_and_vectors_of_integers_have_dimensions() -> None:
    space = Dict(goal=Box(0, 1, (1,)), place=Box(-1, 1, (2,)))
    parts = {"goal": np.ones((10, 1)), "place": np.zeros((10, 2))}
    spec = Spec(space, MultiDiscrete([2, 3]))
    done = np.arange(10) == 9
    dataset = Dataset.from_arrays(
        parts, np.zeros((10, 2), int), np.ones(10), done, next_observations=parts, spec=spec
    )
    text = describe_text(dataset)
    for name in ("goal_0", "place_1", "action_1"):
        assert re.search(rf"^{name} ", text, re.MULTILINE), name


def test_images_are_named_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.zeros((11, 4, 5, 3), np.uint8))
    spec = Spec(
        Box(0, 255, (4, 5, 3), np.uint8),
        Discrete(2),
        images=ImageFile(str(tmp_path / "frames.npy")),
    )
    rows = np.arange(10)
    dataset = Dataset.from_arrays(
        rows, rows % 2, rows * 1.0, rows == 9, next_observations=rows + 1, spec=spec
    )
    assert "images of 4 × 5 × 3 in" in describe_text(dataset)
    assert "images of 4 × 5 × 3 in" in describe_html(dataset)


@given(st.lists(st.lists(st.text(max_size=120), min_size=3, max_size=3), min_size=1, max_size=5))
def test_tables_keep_their_width(rows: list[list[str]]) -> None:
    short = [[row[0], row[1][:20], row[2][:20]] for row in rows]
    lines = text_table(["name", "x", "y"], short)
    assert max(map(len, lines)) <= WIDTH


def test_columns_that_travel_along_are_told_by_their_type() -> None:
    more = {"label": ["a", "b"] * 200, "ok": [True] * 400, "place": [[1.0, 2.0]] * 400}
    text = describe_text(log(columns=more))
    assert re.search(r"label +String; 0 missing; 2 distinct: a, b", text)
    assert re.search(r"ok +Boolean; 0 missing; true in 100 %", text)
    assert re.search(r"place +List", text)


# From a file, and back


def test_what_a_reader_did_not_expect_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError()

    monkeypatch.setattr("offrl_wb.data.files.recognise", fail)
    with pytest.raises(InputError, match="log cannot be read: OSError"):
        describe.open_log("log")


def test_a_log_is_called_by_its_spec_else_by_its_file(tmp_path: Path) -> None:
    bare = Dataset.from_arrays(np.zeros((4, 1)), np.zeros((4, 1)), np.arange(4.0), np.ones(4, bool))
    bare.transitions.select("reward", "terminated", obs_0=pl.lit(0.5), action_0="reward").write_csv(
        tmp_path / "plant.csv"
    )
    read = describe.open_log(str(tmp_path / "plant.csv"))
    assert [describe.title_of(d) for d in (log(), bare, read)] == ["walk", "from_arrays", "plant"]
    assert describe.title_of(read.select([0])) == "plant", "the file is known further on"
    assert describe.title_of(bare, "logs/today") == "today"
    assert summarise(log(), file="other.csv").title == "walk"


def test_nothing_is_written_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    place = tmp_path / "new" / "log.csv"
    for write in (
        lambda: describe.write_log(log(), str(place)),
        lambda: describe.page_place(place.with_suffix(".html")),
    ):
        with pytest.raises(InputError, match="there is no folder"):
            write()
    assert not place.parent.exists()


def test_a_log_is_not_written_over_another(tmp_path: Path) -> None:
    place = str(tmp_path / "log.parquet")
    assert describe.write_log(log(), place) == Path(place)
    with pytest.raises(InputError, match="is there already"):
        describe.write_log(log(), place)
    assert describe.write_log(log(seed=1), place, replace=True) == Path(place)
    again = describe.open_log(place)
    assert np.array_equal(again.arrays().rewards, log(seed=1).arrays().rewards)


def test_a_page_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "log.html"
    place.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(describe.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        describe.write_page("new", place)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


# The page


def test_a_figure_in_a_notebook_has_a_menu_of_its_own() -> None:
    dataset = log()
    figure = describe.with_menu(describe.states_figure(dataset, summarise(dataset)))
    assert figure is not None
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["return", "reward", "source"]
    for button in figure.layout.updatemenus[0].buttons:
        shown = [t.meta for t, seen in zip(figure.data, button.args[1], strict=True) if seen]
        assert set(shown) == {button.label}
    assert describe.with_menu(describe.states_figure(grid_log(), summarise(grid_log()))) is None


def test_the_page_has_a_figure_for_each_question_and_no_network() -> None:
    page = describe_html(log())
    for heading in (
        "Checks",
        "Returns and lengths",
        "Rewards",
        "Observations",
        "Actions",
        "States in the plane",
        "Sources",
        "Further columns",
        "Single episodes",
        "Provenance",
    ):
        assert f">{heading}</h2>" in page, heading
    ours = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!#)""", ours)
    assert page.count("<script>/**") == 1, "plotly.js is there once"
    alternatives = re.findall(r'<figure [^>]*aria-label="([^"]+)"', page)
    assert len(alternatives) == 7
    assert min(map(len, alternatives)) >= 30
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_page_escapes_what_came_from_outside() -> None:
    dataset = log(episode_columns={"source": ["<script>alert(1)</script>"] * 8})
    page = describe_html(dataset.with_columns(**{"</pre><b>": pl.lit(1)}))
    assert "<script>alert(1)" not in page
    assert "</pre><b>" not in page


def test_menus_name_the_traces_that_they_show() -> None:
    page = describe_html(log())
    (states,) = re.findall(r'<select [^>]*data-figure="states">(.*?)</select>', page)
    assert re.findall(r"<option>(.*?)</option>", states) == ["return", "reward", "source"]
    (chosen,) = re.findall(r'<select [^>]*data-figure="episodes">(.*?)</select>', page)
    assert re.findall(r"<option>(.*?)</option>", chosen)[0] == "worst"


def test_a_page_never_holds_more_points_than_a_screen_shows() -> None:
    dataset = log(200_000, 1000, wide=60)
    sources = [f"source {j % 30}" for j in range(dataset.episode_count)]
    page = describe_html(dataset.with_episode_columns(source=pl.Series(sources)))
    assert 1_000 < points(page) <= MOST_POINTS


def test_many_short_episodes_are_drawn_as_a_band() -> None:
    page = describe_html(log(6000, 2))
    assert points(page) <= MOST_POINTS
    assert "5 %" in page


def test_a_log_of_one_row_and_one_of_integers_have_a_page() -> None:
    one = Dataset.from_arrays([[1.0]], [[0.5]], [2.0], [True], next_observations=[[1.0]])
    assert "1 transitions in 1 episodes" in describe_html(one)
    page = describe_html(grid_log())
    assert "States in the plane" not in page
    assert "values; the first" in page


def test_a_reward_that_is_rare_is_seen_on_a_logarithmic_scale() -> None:
    rewards = np.zeros(400)
    rewards[7] = -15
    page = describe_html(log(rewards=rewards))
    assert "logarithmic" in page


def test_a_million_transitions_are_summarised_in_seconds() -> None:
    count = 1_000_000
    generator = np.random.default_rng(0)
    seen = generator.random((count, 17), dtype=np.float32)
    rows = np.arange(count)
    dataset = Dataset.from_arrays(
        seen,
        generator.random((count, 6), dtype=np.float32),
        seen[:, 0],
        np.zeros(count, bool),
        rows % 1000 == 999,
        final_observations=seen[999::1000],
        copy=False,
    )
    nothing = summarise(grid_log()).checks.clear()
    began = time.perf_counter()
    found = summarise(dataset, nothing)
    assert time.perf_counter() - began < 10, "about a second on a quiet machine"
    assert found.observations.table["mean"].to_numpy() == pytest.approx(0.5, abs=0.01)
