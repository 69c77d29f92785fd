"""Tables: any mapping of columns, any format, there and back, and every bad one refused."""

import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ScoreReference, Spec
from offrl_wb.data.table_rows import table_kind
from offrl_wb.data.tables import (
    Mapping,
    parse_mapping,
    plan_columns,
    read_mapping,
    read_table,
    write_mapping,
    write_table,
)
from tests.shared_data import neorl2_file

FORMATS = ("csv", "tsv", "ndjson", "parquet")
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def log(rows: int = 60, length: int = 6, seed: int = 0, **more: Any) -> Dataset:
    """A chain of `rows` transitions in episodes of `length`; every other episode terminates."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(rows, 3)).astype(np.float32)
    last = np.arange(1, rows + 1) % length == 0
    odd = (np.arange(rows) // length) % 2 == 1
    ahead = np.roll(seen, -1, axis=0)
    ahead[last] = rng.normal(size=(last.sum(), 3))
    return Dataset.from_arrays(
        seen,
        rng.integers(0, 4, rows),
        rng.normal(size=rows).astype(np.float32),
        last & odd,
        last & ~odd,
        next_observations=ahead,
        **more,
    )


def wide(dataset: Dataset) -> pl.DataFrame:
    """The table that somebody else would have written: wide columns, all next observations."""
    return dataset.to_frame(wide=True).drop("step")


def assert_same(first: Dataset, second: Dataset) -> None:
    assert first.transitions.schema == second.transitions.schema
    assert first.transitions.equals(second.transitions)
    assert first.episodes.schema == second.episodes.schema
    assert first.episodes.equals(second.episodes)
    assert first.spec == second.spec
    assert first.content_hash == second.content_hash


# There and back


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
EXTRAS: dict[str, tuple[Any, st.SearchStrategy]] = {
    "flag": (pl.Boolean, st.booleans()),
    "small": (pl.Int8, st.integers(-128, 127)),
    "big": (pl.UInt64, st.integers(0, 2**64 - 1)),
    "half": (pl.Float32, st.floats(width=32, allow_nan=False) | st.just(float("nan"))),
    "full": (pl.Float64, st.floats(allow_nan=False) | st.just(float("nan"))),
    "note": (pl.String, TEXTS),
    "kind": (pl.Categorical, st.sampled_from(["a", "b,", '"c"'])),
    "level": (pl.Enum(["low", "mid", "high"]), st.sampled_from(["low", "high"])),
    "day": (pl.Date, st.dates(datetime.date(1970, 1, 1), datetime.date(2100, 1, 1))),
    "at": (
        pl.Datetime("us"),
        st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1)),
    ),
    "pair": (pl.Array(pl.Float64, 2), st.lists(st.floats(-9, 9), min_size=2, max_size=2)),
}


@st.composite
def vectors(draw: st.DrawFn, rows: int, rng: np.random.Generator) -> np.ndarray:
    kind = draw(st.sampled_from(["float32", "float64", "number", "numbers"]))
    width = draw(st.integers(1, 12))
    if kind == "number":
        return rng.integers(0, 5, rows)
    if kind == "numbers":
        return rng.integers(0, 5, (rows, width))
    return (rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-6, 6)).astype(kind)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    rows, episodes = sum(lengths), len(lengths)
    ids = np.repeat(np.arange(episodes), lengths)
    seen = draw(vectors(rows, rng))
    last = np.append(ids[1:] != ids[:-1], True)
    names = draw(st.lists(st.sampled_from(sorted(EXTRAS)), max_size=3, unique=True))
    split = draw(st.integers(0, len(names)))

    def column(name: str, size: int) -> pl.Series:
        dtype, values = EXTRAS[name]
        found = draw(st.lists(st.none() | values, min_size=size, max_size=size))
        return pl.Series(name, found, dtype=dtype)

    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["next_observations"] = rng.permutation(seen)
    else:
        unknown = rng.random(episodes) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        mask = unknown.reshape(-1, *[1] * (seen.ndim - 1)) & np.ones_like(seen[last], bool)
        more["final_observations"] = np.ma.array(rng.permutation(seen)[:episodes], mask=mask)
    return Dataset.from_arrays(
        seen,
        draw(vectors(rows, rng)),
        rng.normal(size=rows).astype(draw(st.sampled_from(["float32", "float64", "int64"]))),
        last & (rng.random(rows) < 0.5),
        last & (rng.random(rows) < 0.3),
        episode=ids,
        step=ids * 0 + np.arange(rows) * draw(st.integers(1, 3)),
        columns={n: column(n, rows) for n in names[:split]},
        episode_columns={n: column(n, episodes) for n in names[split:]},
        **more,
    )


@quick
@given(dataset=datasets(), suffix=st.sampled_from(FORMATS))
def test_a_table_written_and_read_is_the_same_dataset(
    dataset: Dataset, suffix: str, tmp_path: Path
) -> None:
    assert_same(read_table(write_table(dataset, tmp_path / f"log.{suffix}")), dataset)


@pytest.mark.parametrize("suffix", FORMATS)
def test_spec_and_columns_of_the_same_name_survive(suffix: str, tmp_path: Path) -> None:
    low, high = np.float32([-9, -np.inf, 0]), np.float32([9, np.inf, 99])
    box = spaces.Box(low, high)
    spec = Spec(box, spaces.Discrete(7), 0.99, ScoreReference(1.0, 9.0, "a paper"), name="toy")
    dataset = log(
        spec=spec,
        columns={"source": pl.Series([f"s{j}" for j in range(60)])},
        episode_columns={"source": list(range(10)), "reward": [0.5] * 10},
    )
    again = read_table(write_table(dataset, tmp_path / f"log.{suffix}"))
    assert_same(again, dataset)
    assert again.spec.score == spec.score


@pytest.mark.parametrize("suffix", FORMATS)
def test_next_observations_that_are_no_chain_survive(suffix: str, tmp_path: Path) -> None:
    holed = log().filter(pl.col("action") > 0)
    assert "next_obs" in holed.transitions.columns
    again = read_table(write_table(holed, tmp_path / f"log.{suffix}"))
    assert_same(again, holed)


def test_a_text_table_says_what_it_cannot_hold(tmp_path: Path) -> None:
    lists = log().with_columns(seen=pl.Series([[1, 2]] * 60))
    assert_same(read_table(write_table(lists, tmp_path / "log.parquet")), lists)
    assert "seen" in refused(lambda: write_table(lists, tmp_path / "log.csv"))
    twice = log().with_columns(obs_0=pl.lit(1))
    assert "obs_0" in refused(lambda: write_table(twice, tmp_path / "log.parquet"))
    final = log().with_columns(final_obs_0=pl.lit(1))
    assert "final_obs_0" in refused(lambda: write_table(final, tmp_path / "log.csv"))
    assert ".xlsx" in refused(lambda: write_table(log(), tmp_path / "log.xlsx"))
    assert "nowhere" in refused(lambda: write_table(log(), tmp_path / "nowhere" / "log.csv"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.parquet"]


def test_a_writer_that_dies_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(log(seed=1), tmp_path / "log.parquet")

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_table(log(seed=2), path)
    assert_same(read_table(path), log(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["log.parquet"]


# Any way to say which column is what


def test_the_same_mapping_in_python_as_pairs_and_in_a_file(tmp_path: Path) -> None:
    frame = wide(log()).rename({"action": "act", "episode": "trip", "terminated": "over"})
    pairs = ["obs=obs_*", "action=act", "episode=trip", "terminated=over", "next_obs=next_obs_*"]
    said = Mapping(
        obs="obs_*", action="act", episode="trip", terminated="over", next_obs="next_obs_*"
    )
    assert parse_mapping(pairs) == said
    path = tmp_path / "how.yaml"
    write_mapping(said, path)
    (tmp_path / "how.json").write_text(json.dumps(said.to_json()))
    for mapping in (said, said.to_json(), pairs, path, str(path), tmp_path / "how.json"):
        assert_same(read_table(frame, mapping), log())


def test_a_mapping_beside_the_file_is_found_and_one_that_is_passed_replaces_it(
    tmp_path: Path,
) -> None:
    frame = wide(log()).rename({"reward": "gain"})
    frame.write_csv(tmp_path / "log.csv")
    assert "reward" in refused(lambda: read_table(tmp_path / "log.csv"))
    write_mapping(
        Mapping(reward="gain", types={"obs": "float32", "reward": "float32"}),
        tmp_path / "log.csv.yaml",
    )
    assert_same(read_table(tmp_path / "log.csv"), log())
    assert "reward" in refused(lambda: read_table(tmp_path / "log.csv", Mapping()))
    (tmp_path / "parts").mkdir()
    frame.write_parquet(tmp_path / "parts" / "a.parquet")
    (tmp_path / "parts" / "mapping.yaml").write_text("reward: gain")
    assert_same(read_table(tmp_path / "parts"), log())


@quick
@given(order=st.permutations(range(11)))
def test_wide_columns_come_in_the_order_of_their_numbers(order: list[int]) -> None:
    values = np.arange(22.0).reshape(2, 11)
    frame = pl.DataFrame({f"obs_{j}": values[:, j] for j in order})
    frame = frame.with_columns(a=pl.Series([0, 1]), r=pl.lit(0.0), done=pl.Series([False, True]))
    for mapping in (None, ["obs=obs_*"]):
        assert np.array_equal(read_table(frame, mapping).arrays().observations, values)


def test_a_name_with_a_star_that_exists_is_that_column() -> None:
    plan = plan_columns(Mapping(obs="v*"), ["v*", "v1", "a", "r", "done"], "log")
    assert plan.vectors["obs"] == "v*"


@pytest.mark.parametrize(
    ("names", "obs"),
    [
        (["Observation", "action", "reward", "done"], "Observation"),
        (["state_0", "state_1", "action", "reward", "done"], ("state_0", "state_1")),
        (["s", "a", "r", "done"], "s"),
        (["obs_x", "obs_speed", "a", "r", "episode"], ("obs_x", "obs_speed")),
        (["observation.state", "action", "next.reward", "next.done"], "observation.state"),
        (["obs[0]", "obs[1]", "u1", "u2", "rew", "timeout"], ("obs[0]", "obs[1]")),
    ],
)
def test_common_names_need_no_mapping(names: list[str], obs: Any) -> None:
    assert plan_columns(Mapping(), names, "log").vectors["obs"] == obs


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["state", "obs_0", "obs_1", "a", "r", "done"], "state or obs_0 … obs_1"),
        (["obs_1", "obs_01", "a", "r", "done"], "the same number"),
        (["obs_0", "obs_1", "obs_3", "a", "r", "done"], "no obs_2"),
        (["x", "y"], "obs, action, reward, episode"),
    ],
)
def test_names_that_do_not_tell_are_refused(names: list[str], told: str) -> None:
    assert told in refused(lambda: plan_columns(Mapping(), names, "log"))
    with pytest.raises(InputError, match="pass a Spec"):
        Mapping(spec=cast(Any, 3))


def test_three_flags_are_not_all_needed() -> None:
    names = ["s", "a", "r", "terminated", "truncated", "done"]
    plan = plan_columns(Mapping(), names, "log")
    assert "done" not in plan.scalars
    assert plan.columns == {"done": "done"}


def test_what_travels_along_goes_where_it_is_sent() -> None:
    frame = wide(log()).with_columns(
        cost_1=pl.lit(1.0), cost_0=pl.lit(0.0), driver=pl.col("episode") // 2, source=pl.lit("x")
    )
    free = read_table(frame)
    assert {"cost_0", "cost_1", "driver"} <= set(free.transitions.columns)
    assert free.episodes["source"].to_list() == ["x"] * 10
    sent = read_table(frame, Mapping(columns={"cost": "cost_*"}, episode_columns=["driver"]))
    assert sent.transitions["cost"].to_list() == [[0.0, 1.0]] * 60
    assert "source" not in sent.transitions.columns
    assert sent.episodes["driver"].to_list() == [j // 2 for j in range(10)]
    none = read_table(frame, ["columns=", "episode_columns="])
    assert none.transitions.columns == log().transitions.columns
    moving = frame.with_columns(source=pl.Series([str(j) for j in range(60)]))
    assert "source" in read_table(moving).transitions.columns
    assert "row 1" in refused(lambda: read_table(moving, Mapping(episode_columns=["source"])))
    assert "cannot be called obs" in refused(
        lambda: read_table(frame, Mapping(columns={"obs": "driver"}))
    )


def test_a_column_with_a_taken_name_travels_under_another() -> None:
    frame = wide(log()).with_columns(gain=pl.col("reward") * 2)
    read = read_table(frame, Mapping(reward="gain"))
    assert np.allclose(read.transitions["table_reward"] * 2, read.transitions["reward"])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"observ": "x"}, "did you mean obs"),
        ({"zzz": "x"}, "there are obs"),
        ({"obs": 3}, "obs is 3"),
        ({"obs": []}, "obs is []"),
        ({"obs": {"a": "b"}}, "obs is"),
        ({"reward": ["a"]}, "reward is"),
        ({"columns": 3}, "columns is 3"),
        ({"types": {"obs": "float16"}}, "float16"),
        ({"types": ["obs"]}, "types is"),
        ({"types": {"nothing": "float32"}}, "nothing"),
        ({"spec": 3}, "spec"),
        ({"obs": "obs_*", "columns": "n_*"}, "no column n_*"),
        ({"obs": "obs_7"}, "no column obs_7"),
        ({"obs": "observed_*"}, "no column observed_*"),
        ({"action": "reward", "reward": "reward"}, "both"),
        (["obs"], "no pair"),
        (["obs=a", "obs=b"], "twice"),
        (["spec=x"], "YAML"),
        ([3], "pair"),
        ("obs", "cannot be read"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(said: Any, told: str) -> None:
    assert told in refused(lambda: read_table(wide(log()), said))


@pytest.mark.parametrize(
    "text", ["obs: [a", "3", "- a", "obs: !!python/name:os.system", "done: yes", "\x00", "a: b: c"]
)
def test_bad_yaml_is_refused_with_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "how.yaml").write_text(text)
    assert "how.yaml" in refused(lambda: read_mapping(tmp_path / "how.yaml"))


def test_yaml_numbers_are_column_names_and_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "how.yaml").write_text("obs: [0, 1]\nreward: 2")
    assert read_mapping(tmp_path / "how.yaml") == Mapping(obs=("0", "1"), reward="2")


# Sources


def test_every_source_gives_the_same_dataset(tmp_path: Path) -> None:
    frame, exact = wide(log()), {"obs": "float32", "reward": "float32"}
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.txt", separator=";")
    frame.write_csv(tmp_path / "a.csv.gz", compression="gzip")
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.write_parquet(tmp_path / "a.pq")
    (tmp_path / "[x]").mkdir()
    frame.write_ndjson(tmp_path / "[x]" / "a*.ndjson")
    (tmp_path / "plain").write_bytes((tmp_path / "a.csv").read_bytes())
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(12):
        frame[part * 5 : part * 5 + 5].write_parquet(folder / f"part-{part}.parquet")
    (folder / "_SUCCESS").touch()
    files = [p for p in tmp_path.rglob("*") if p.is_file() and folder not in p.parents]
    assert len(files) == 7
    for source in (frame, frame.lazy(), folder, str(folder), *files):
        assert_same(read_table(source, Mapping(types=exact)), log())
    assert_same(read_table([folder / f"part-{p}.parquet" for p in range(12)]), log())


def test_a_hive_folder_gives_its_keys_as_columns(tmp_path: Path) -> None:
    frame = wide(log())
    for number in (0, 1):
        part = tmp_path / f"driver={number}"
        part.mkdir()
        frame[number * 30 : number * 30 + 30].write_parquet(part / "a.parquet")
    read = read_table(tmp_path, Mapping(episode_columns=["driver"]))
    assert read.episodes["driver"].to_list() == [0] * 5 + [1] * 5


def test_a_kind_is_told_by_name_or_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": 1}\n')
    (tmp_path / "b").write_text("x,y\n1,2\n")
    (tmp_path / "c").write_bytes(b"\x89HDF\r\n\x1a\n\0\0")
    (tmp_path / "d").mkdir()
    wide(log()).write_parquet(tmp_path / "f")
    kinds = [table_kind(tmp_path / name) for name in "abcdef"]
    assert kinds == ["ndjson", "csv", None, None, None, "parquet"]
    assert "no CSV" in refused(lambda: read_table(tmp_path / "c"))
    assert "no Parquet" in refused(lambda: read_table(tmp_path / "d"))
    assert "no file" in refused(lambda: read_table(tmp_path / "e.csv"))
    assert "no table" in refused(lambda: read_table(3))
    assert "one kind" in refused(lambda: read_table([tmp_path / "a", tmp_path / "b"]))


@pytest.mark.parametrize("spelt", ["[{}, {}, {}]", "[{} {} {}]", "({},{},{})"])
def test_lists_that_a_csv_writer_spelt_out_are_read(spelt: str, tmp_path: Path) -> None:
    seen = log().arrays().observations.tolist()
    frame = wide(log()).drop("obs_0", "obs_1", "obs_2", "next_obs_0", "next_obs_1", "next_obs_2")
    frame = frame.with_columns(obs=pl.Series([spelt.format(*row) for row in seen]))
    frame.write_csv(tmp_path / "log.csv")
    read = read_table(tmp_path / "log.csv", Mapping(types={"obs": "float32"}))
    assert np.array_equal(read.arrays().observations[0], seen[0])
    assert read.transitions["obs"].dtype == pl.Array(pl.Float32, 3)


@pytest.mark.parametrize("inner", [pl.List(pl.Float32), pl.Array(pl.Float32, 3)])
def test_list_and_array_columns_are_vectors(inner: Any, tmp_path: Path) -> None:
    frame = log().to_frame().drop("step").with_columns(pl.col("obs", "next_obs").cast(inner))
    assert_same(read_table(frame), log())
    frame.write_parquet(tmp_path / "log.parquet")
    assert_same(read_table(tmp_path / "log.parquet"), log())


def test_arrays_of_more_dimensions_are_flattened_and_bare_lists_of_flags_are_numbers() -> None:
    grid = np.arange(24.0).reshape(4, 2, 3)
    frame = pl.DataFrame(
        {"obs": grid, "a": [[True, False]] * 4, "r": [0.0] * 4, "done": [0, 0, 0, 1]}
    )
    read = read_table(frame)
    assert np.array_equal(read.arrays().observations, grid.reshape(4, 6))
    assert read.spec.action_space == spaces.MultiDiscrete([2, 1])


def test_types_that_change_after_many_rows_are_still_found(tmp_path: Path) -> None:
    rows = 12_000
    late = np.arange(rows) >= 11_000
    frame = pl.DataFrame(
        {
            "obs_0": np.where(late, 0.5, 1.0),
            "obs_1": pl.Series(np.where(late, 2.5, np.nan)).fill_nan(None),
            "action": np.arange(rows) % 2,
            "reward": 1.0,
            "done": np.arange(1, rows + 1) % 100 == 0,
        }
    )
    text = frame.select(pl.col("obs_0").cast(pl.String).str.strip_suffix(".0"), pl.exclude("obs_0"))
    text.write_csv(tmp_path / "log.csv")
    read = read_table(tmp_path / "log.csv", Mapping(), missing="keep")
    assert read.arrays().observations[-1].tolist() == [0.5, 2.5]
    frame.write_ndjson(tmp_path / "log.ndjson")
    read = read_table(tmp_path / "log.ndjson", Mapping(), missing="keep")
    assert np.array_equal(
        read.arrays().observations, frame[["obs_0", "obs_1"]].to_numpy(), equal_nan=True
    )


# Text, and numbers of several kinds


def test_text_becomes_codes_and_the_labels_are_kept() -> None:
    names = np.array(["stay", "go", "turn", "wait"])
    frame = wide(log()).with_columns(action=pl.Series(names[log().arrays().actions]))
    read = read_table(frame)
    labels = sorted(set(frame["action"]))
    assert read.provenance.outcome["labels"] == {"action": {"action": labels}}
    assert read.spec.action_space == spaces.Discrete(len(labels))
    assert [labels[j] for j in read.arrays().actions] == frame["action"].to_list()
    for asked in (names.tolist(), None):
        typed = frame.with_columns(pl.col("action").cast(pl.Enum(names)))
        mapping = Mapping(types={"action": asked} if asked else {})
        fixed = read_table(frame if asked else typed, mapping)
        assert np.array_equal(fixed.arrays().actions, log().arrays().actions)
    assert "'wait'" in refused(
        lambda: read_table(frame, Mapping(types={"action": list(names[:3])}))
    )


def test_text_observations_share_their_labels_with_next_ones() -> None:
    frame = pl.DataFrame(
        {
            "room": ["hall", "attic", "hall"],
            "next_room": ["attic", "yard", None],
            "a": ["x", "y", "x"],
            "b": ["u", "u", "v"],
            "r": [0.0] * 3,
            "done": [False, True, True],
        }
    )
    read = read_table(frame, Mapping(obs="room", next_obs="next_room", action=["a", "b"]))
    assert read.provenance.outcome["labels"]["obs"] == {"room": ["attic", "hall", "yard"]}
    assert read.arrays().observations.tolist() == [1, 0, 1]
    assert read.arrays().next_observations.tolist() == [0, 2, 1]
    assert read.arrays().actions.tolist() == [[0, 0], [1, 0], [0, 1]]
    gone = frame.with_columns(a=pl.Series(["x", None, "x"]))
    how = Mapping(obs="room", next_obs="next_room", action=["a", "b"])
    assert "column a is empty at row 1" in refused(lambda: read_table(gone, how))
    assert len(read_table(gone, how, missing="drop_episodes")) == 1
    mixed = frame.with_columns(next_room=pl.Series([1, 2, 3]))
    assert "another kind" in refused(lambda: read_table(mixed, how))


def test_text_observations_may_come_with_final_ones() -> None:
    frame = pl.DataFrame({"obs": ["b", "a", "b"], "final_obs": [None, None, "c"], "a": [0] * 3})
    read = read_table(frame.with_columns(r=pl.lit(0.0), done=pl.lit(0), episode=pl.lit(1)))
    assert len(read) == 3
    assert read.arrays().next_observations.tolist() == [0, 1, 2]


def test_too_many_labels_are_no_actions() -> None:
    frame = pl.DataFrame({"s": np.arange(1500.0), "a": [f"x{j}" for j in range(1500)]})
    frame = frame.with_columns(r=pl.lit(0.0), done=pl.lit(True))
    assert "1500 different values" in refused(lambda: read_table(frame))


@pytest.mark.parametrize(
    ("space", "values", "shape"),
    [
        (spaces.Box(-9, 9, (1,)), [1, 2, 3], (3, 1)),
        (spaces.Discrete(4), [1.0, 2.0, 3.0], (3,)),
        (spaces.Discrete(4, start=-1), [-1, 2, 0], (3,)),
        (spaces.MultiDiscrete([4]), [1, 2, 3], (3, 1)),
        (None, [1, 2, 3], (3,)),
        (None, [1.0, 2.0, 3.0], (3, 1)),
        (None, [True, False, True], (3,)),
    ],
)
def test_one_column_has_the_shape_of_its_space(space: Any, values: list, shape: tuple) -> None:
    frame = pl.DataFrame({"s": [0.0, 1, 2], "a": values, "r": [0.0] * 3, "done": [0, 0, 1]})
    spec = Spec(spaces.Box(-9, 9, (1,), dtype=np.float64), space) if space else None
    actions = read_table(frame, Mapping(spec=spec)).arrays().actions
    assert actions.shape == shape
    assert np.array_equal(actions.ravel(), values)


def test_numbers_that_do_not_fit_the_space_are_refused() -> None:
    frame = pl.DataFrame({"s": [0.0, 1, 2], "a": [0.0, 1.5, 1], "r": [0.0] * 3, "done": [0, 0, 1]})
    unit = spaces.Box(-9, 9, (1,))
    assert "row 1" in refused(
        lambda: read_table(frame, Mapping(spec=Spec(unit, spaces.Discrete(2))))
    )
    two = spaces.Box(-9, 9, (2,))
    assert "2" in refused(lambda: read_table(frame, Mapping(spec=Spec(two, unit))))


# Episodes


def test_flags_in_any_spelling_end_an_episode() -> None:
    frame = pl.DataFrame({"s": [0.0, 1, 2, 3], "a": [0] * 4, "r": [0.0] * 4})
    for done in (
        [0, 1, 0, 1],
        [0.0, 1.0, 0.0, 1.0],
        ["False", "TRUE", "0", "1"],
        [False, True] * 2,
    ):
        read = read_table(frame.with_columns(done=pl.Series(done)))
        assert read.lengths.tolist() == [2, 2]
        assert read.episode_table()["terminated"].to_list() == [True, True]


@pytest.mark.parametrize(
    ("flags", "terminated", "truncated"),
    [
        ({"done": [0, 1, 0, 1]}, [1, 1], [0, 0]),
        ({"done": [0, 1, 0, 1], "timeout": [0, 0, 0, 1]}, [1, 0], [0, 1]),
        ({"done": [0, 1, 0, 1], "terminal": [0, 1, 0, 0]}, [1, 0], [0, 1]),
        ({"terminal": [0, 1, 0, 0], "timeout": [0, 0, 0, 1]}, [1, 0], [0, 1]),
        ({"terminal": [0, 1, 0, 0]}, [1, 0], [0, 1]),
        ({"timeout": [0, 1, 0, 1]}, [0, 0], [1, 1]),
        ({"episode": ["x", "x", "y", "y"]}, [0, 0], [1, 1]),
    ],
)
def test_what_the_flags_leave_open_is_worked_out(
    flags: dict, terminated: list, truncated: list
) -> None:
    frame = pl.DataFrame({"s": [0.0, 1, 2, 3], "a": [0] * 4, "r": [0.0] * 4, **flags})
    table = read_table(frame).episode_table()
    assert table["terminated"].to_list() == terminated
    assert table["truncated"].to_list() == truncated


def test_an_end_that_nothing_explains_is_a_time_out_unless_a_column_denies_it() -> None:
    frame = wide(log()).drop("truncated")
    assert_same(read_table(frame), log())
    denied = frame.with_columns(truncated=pl.lit(False))
    assert not read_table(denied).transitions["truncated"].any()


def test_the_outcome_tells_what_was_guessed_and_what_every_column_is() -> None:
    outcome = read_table(wide(log()), ["obs=obs_*"]).provenance.outcome
    assert outcome["mapping"]["obs"] == ["obs_0", "obs_1", "obs_2"]
    assert outcome["mapping"]["reward"] == "reward"
    assert "reward" in outcome["mapping"]["guessed"]
    assert "obs" not in outcome["mapping"]["guessed"]


def test_a_column_without_a_name_is_somebodys_row_number(tmp_path: Path) -> None:
    frame = wide(log())
    (tmp_path / "log.csv").write_text("," + frame.write_csv().replace("\n", "\n7,").rstrip("7,"))
    types = {"obs": "float32", "reward": "float32"}
    assert_same(read_table(tmp_path / "log.csv", Mapping(types=types)), log())


def test_contradicting_flags_are_refused() -> None:
    frame = pl.DataFrame({"s": [0.0, 1], "a": [0] * 2, "r": [0.0] * 2, "done": [0, 1]})
    frame = frame.with_columns(terminated=pl.Series([1, 0]), truncated=pl.Series([0, 1]))
    assert "row 0" in refused(lambda: read_table(frame, Mapping(done="done")))
    for bad in ([0, 2], [None, 1], ["x", "1"], [[1], [0]]):
        wrong = frame.with_columns(terminated=pl.Series(bad))
        assert "terminated" in refused(lambda wrong=wrong: read_table(wrong))


@quick
@given(seed=st.integers(0, 999), steps=st.sampled_from(["number", "time", "fraction"]))
def test_rows_in_any_order_are_sorted_by_episode_and_step(seed: int, steps: str) -> None:
    dataset = log(30, 5)
    frame = dataset.to_frame(wide=True)
    step = {
        "number": pl.col("step"),
        "time": pl.lit(datetime.datetime(2024, 1, 1)) + pl.duration(hours=pl.col("step")),
        "fraction": pl.col("step") / 7,
    }
    order = np.random.default_rng(seed).permutation(30)
    mixed = frame.with_columns(step=step[steps])[order]
    read = read_table(mixed, Mapping(columns=(), step="step"))
    assert "pass step=step" in refused(lambda: read_table(mixed, ["columns="]))
    first = mixed["episode"].unique(maintain_order=True).to_list()
    expected = dataset.select(first)
    assert np.array_equal(read.arrays().observations, expected.arrays().observations)
    assert np.array_equal(read.arrays().next_observations, expected.arrays().next_observations)
    assert read.transitions["step"].equals(expected.transitions["step"])
    assert read.provenance.outcome["sorted"]
    assert read.episodes["id"].to_list() == first or first == sorted(first)


def test_final_observations_follow_their_rows_when_these_are_sorted(tmp_path: Path) -> None:
    dataset = log(30, 5)
    lazy = pl.scan_parquet(write_table(dataset, tmp_path / "log.parquet"))
    mixed = lazy.collect()[np.r_[29:14:-1, 0:15]]
    read = read_table(mixed, ["step=step"])
    order = [5, 4, 3, 0, 1, 2]
    ids = pl.Series(order, dtype=pl.UInt32)
    assert_same(read, dataset.select(order).with_episode_columns(id=ids))


def test_episodes_that_cannot_be_put_together_are_refused() -> None:
    frame = log().to_frame(wide=True)
    mixed = frame[[0, 6, 1, 7]]
    assert "episode 0 starts again at row 2" in refused(lambda: read_table(mixed.drop("step")))
    twice = pl.concat([frame[:3], frame[:1]])
    assert "step 0 twice" in refused(lambda: read_table(twice, ["step=step"]))
    hidden = frame.with_columns(truncated=False).drop("episode")
    assert "row 6" in refused(lambda: read_table(hidden))
    for key in ("episode", "step"):
        empty = frame.with_columns(
            pl.when(pl.col("reward") == frame["reward"][4]).then(None).otherwise(key).alias(key)
        )
        assert "empty at row 4" in refused(lambda empty=empty: read_table(empty))
    assert "no number, no time" in refused(lambda: read_table(frame.with_columns(step=pl.lit("x"))))


def test_ids_are_kept_where_they_say_more_than_the_order() -> None:
    frame = wide(log())
    assert "id" not in read_table(frame).episodes.columns
    named = read_table(frame.with_columns(episode=pl.format("trip-{}", "episode")))
    assert named.episodes["id"].to_list() == [f"trip-{j}" for j in range(10)]


def test_steps_too_large_for_a_step_only_give_the_order() -> None:
    frame = log().to_frame(wide=True).with_columns(step=pl.col("step") + 2**40)
    assert_same(read_table(frame), log())


# Next observations


def test_a_chain_keeps_only_its_final_observations() -> None:
    read = read_table(wide(log()))
    assert "next_obs" not in read.transitions.columns
    assert_same(read, log())


def test_next_observations_may_be_empty_where_they_are_known_anyway() -> None:
    frame = wide(log())
    columns = ["next_obs_0", "next_obs_1", "next_obs_2"]
    last = log().ends.tolist()
    blank = pl.int_range(pl.len()).is_in(last).not_()
    sparse = frame.with_columns(pl.when(~blank).then(pl.col(columns)))
    assert_same(read_table(sparse), log())
    shifted = frame.with_columns(pl.when(blank).then(pl.col(columns)).otherwise(float("nan")))
    bare = frame.drop(columns)
    assert_same(read_table(shifted), read_table(bare))
    half = frame.with_columns(next_obs_1=pl.when(blank).then("next_obs_1"))
    assert "next_obs_1" in refused(lambda: read_table(half))


def test_without_next_observations_a_cut_episode_gives_up_its_last_row() -> None:
    frame = wide(log()).drop("next_obs_0", "next_obs_1", "next_obs_2")
    read = read_table(frame)
    plain = Dataset.from_arrays(
        *(log().arrays()[j] for j in (0, 1, 2, 4, 5)), episode=log().transitions["episode"]
    )
    assert_same(read, plain)
    assert read.provenance.outcome["rows_given_up"] == 5
    lonely = frame.with_columns(pl.lit(False).alias("terminated")).with_columns(
        episode=pl.int_range(60)
    )
    assert "one row long" in refused(lambda: read_table(lonely))
    some = frame.with_columns(
        episode=pl.Series([*range(5), *[9] * 55]), terminated=False, truncated=False
    )
    assert read_table(some).episodes["id"].to_list() == [9]


def test_whole_next_states_that_became_floats_are_whole_again() -> None:
    frame = pl.DataFrame({"s": [1, 2, 5], "next_s": [2.0, 3.0, None], "a": [0] * 3})
    frame = frame.with_columns(r=pl.lit(0.0), done=pl.Series([False, True, True]))
    read = read_table(frame, Mapping(next_obs="next_s"))
    assert read.arrays().next_observations.tolist() == [2, 3, 5]
    wrong = frame.with_columns(next_s=pl.Series([2.5, 3, 4]))
    told = refused(lambda: read_table(wrong, Mapping(next_obs="next_s")))
    assert "next_s is no whole number at row 0" in told


def test_next_observations_of_another_width_are_refused() -> None:
    frame, how = wide(log()).drop("next_obs_2"), Mapping(next_obs="next_obs_*")
    assert "next_obs has 2 numbers, obs has 3" in refused(lambda: read_table(frame, how))


def test_a_final_observation_inside_an_episode_is_refused(tmp_path: Path) -> None:
    table = pl.read_parquet(write_table(log(), tmp_path / "log.parquet"))
    columns = [f"final_obs_{j}" for j in range(3)]
    filled = table.with_columns(pl.lit(1.0, pl.Float32).alias(c) for c in columns)
    assert "row 0" in refused(lambda: read_table(filled))


# What is missing


@pytest.mark.parametrize("what", [None, float("nan")])
@pytest.mark.parametrize("column", ["obs_1", "action_0", "reward"])
def test_a_missing_number_is_refused_kept_or_its_episode_left_out(what: Any, column: str) -> None:
    frame = (
        wide(log()).rename({"action": "action_0"}).with_columns(pl.col("action_0").cast(pl.Float32))
    )
    cells = frame[column].to_list()
    cells[13] = what
    holed = frame.with_columns(pl.Series(column, cells, dtype=pl.Float32)).drop(
        "next_obs_0", "next_obs_1", "next_obs_2"
    )
    word = "empty" if what is None else "NaN"
    assert f"column {column} is {word} at row 13" in refused(lambda: read_table(holed))
    kept = read_table(holed, missing="keep")
    assert np.isnan(np.column_stack([np.c_[a] for a in kept.arrays()[:3]])).sum() == 1
    fewer = read_table(holed, missing="drop_episodes")
    assert fewer.provenance.outcome["episodes_left_out"] == 1
    assert fewer.episode_count == 9
    assert np.isfinite(fewer.arrays().observations).all()
    every = frame.with_columns(pl.lit(what, pl.Float32).alias(column))
    assert "every episode" in refused(lambda: read_table(every, missing="drop_episodes"))
    assert "missing is" in refused(lambda: read_table(holed, missing="zero"))


def test_empty_whole_numbers_cannot_be_kept() -> None:
    frame = wide(log()).with_columns(action=pl.Series([1, None] * 30))
    assert "row 1" in refused(lambda: read_table(frame, missing="keep"))


def test_ragged_or_empty_lists_are_refused_with_their_row() -> None:
    rest = {"a": [0] * 4, "r": [0.0] * 4, "done": [0, 0, 0, 1]}
    for lists, row in (
        ([[1.0, 2], [1], [1, 2], [1, 2]], 1),
        ([[1.0], [1], [1], [1, 2]], 3),
        ([[], [], [], []], 0),
    ):
        frame = pl.DataFrame({"obs": pl.Series(lists, dtype=pl.List(pl.Float64)), **rest})
        assert f"row {row}" in refused(lambda frame=frame: read_table(frame))
    frame = pl.DataFrame({"obs": [[1.0], None, [1.0], [None]], **rest})
    assert "column obs is empty or NaN at row 1" in refused(lambda: read_table(frame))
    assert read_table(frame, missing="keep").arrays().observations.shape == (4, 1)
    nothing = pl.DataFrame({"obs": pl.Series([None] * 4, dtype=pl.List(pl.Float64)), **rest})
    refused(lambda: read_table(nothing))


def test_a_list_column_that_begins_empty_finds_its_width() -> None:
    frame = log().to_frame().drop("step")
    cells = [None if j < 20 else row for j, row in enumerate(frame["next_obs"].to_list())]
    lists = frame.with_columns(next_obs=pl.Series(cells, dtype=pl.List(pl.Float32)))
    parts = pl.concat([lists[:6].lazy(), lists[6:].lazy()])
    read = read_table(parts)
    inner = np.setdiff1d(np.arange(60), log().ends[:3])
    assert read.episode_count == 10
    assert len(read) == 60 - 2
    assert inner.size == 57


# Choosing rows


CONDITIONS = [
    "obs_0 > 0.5",
    "action = 2",
    "reward > 0 AND obs_1 < 0.3",
    pl.col("reward") > pl.col("reward").mean(),
    pl.col("obs_2").is_between(-1, 1),
]


@pytest.mark.parametrize("where", CONDITIONS)
@pytest.mark.parametrize("told", ["id", "ends", "id, no next", "ends, no next"])
def test_reading_some_rows_is_reading_all_and_filtering(where: Any, told: str) -> None:
    frame = wide(log(200, 8))
    frame = frame.drop("episode") if told.startswith("ends") else frame
    frame = frame.drop(pl.selectors.starts_with("next_obs")) if "no next" in told else frame
    whole = read_table(
        frame.with_columns(mark=pl.sql_expr(where) if isinstance(where, str) else where)
    )
    expected = whole.filter(pl.col("mark"))
    found = read_table(frame, where=where)
    for one, other in zip(found.arrays(), expected.arrays(), strict=True):
        assert np.array_equal(one, other)
    assert found.transitions.drop("obs").equals(expected.transitions.drop("obs", "mark"))
    assert found.episodes["final_obs"].equals(expected.episodes["final_obs"])


@pytest.mark.parametrize("by", ["id", "ends"])
def test_reading_some_episodes_is_reading_all_and_filtering(by: str, tmp_path: Path) -> None:
    dataset = log(3000, 8)
    frame = wide(dataset) if by == "id" else wide(dataset).drop("episode")
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=100)
    expected = dataset.filter_episodes(pl.col("return") > 1)
    every = pl.struct(pl.all()).struct.field("reward").sum() > 1
    for condition in ("SUM(reward) > 1", pl.col("reward").sum() > 1, every):
        found = read_table(tmp_path / "log.parquet", episodes_where=condition)
        assert found.transitions.equals(expected.transitions)
        assert found.episodes.drop("id", strict=False).equals(expected.episodes)
    both = read_table(tmp_path / "log.parquet", where="obs_0 > 0", episodes_where="SUM(reward) > 1")
    narrower = expected.filter(pl.col("obs").arr.get(0) > 0)
    assert np.array_equal(both.arrays().next_observations, narrower.arrays().next_observations)


def test_conditions_that_choose_nothing_or_say_nothing_are_refused() -> None:
    frame = wide(log())
    assert "no row is left of 10" in refused(lambda: read_table(frame, where="reward > 99"))
    assert "not true or false" in refused(lambda: read_table(frame, where="reward + 1"))
    assert "not true or false" in refused(lambda: read_table(frame, episodes_where="SUM(reward)"))
    assert "no condition" in refused(lambda: read_table(frame, where="reward >"))
    assert "no condition" in refused(lambda: read_table(frame, where=3))
    assert "speed" in refused(lambda: read_table(frame, where="speed > 3"))
    assert "no rows" in refused(lambda: read_table(frame.clear(), where="reward > 0"))
    gone = frame.with_columns(pl.when(pl.col("episode") > 2).then("episode").alias("episode"))
    assert "empty" in refused(lambda: read_table(gone, where="reward > 0"))
    mixed = log().to_frame(wide=True)[np.argsort(np.tile(np.arange(6), 10), kind="stable")]
    assert "alternate" in refused(lambda: read_table(mixed, where="reward > 0"))
    found = read_table(mixed, ["step=step"], episodes_where="SUM(reward) > 0")
    assert found.provenance.outcome["sorted"]
    back = log().to_frame(wide=True)[[1, 0, 2, 3, 4, 5]]
    assert "not in order" in refused(lambda: read_table(back, ["step=step"], where="reward < 0"))


def test_the_first_bad_row_is_counted_in_the_file_not_in_what_was_chosen() -> None:
    cells = log().transitions["reward"].to_list()
    cells[40] = None
    frame = wide(log()).with_columns(pl.Series("reward", cells, dtype=pl.Float32))
    assert "row 40" in refused(lambda: read_table(frame, where="episode > 3"))
    assert "row 40" in refused(lambda: read_table(frame.drop("episode"), where="obs_0 < 9"))
    cells = frame["obs_1"].to_list()
    cells[41] = None
    frame = wide(log()).with_columns(pl.Series("obs_1", cells, dtype=pl.Float32))
    assert "row 41" in refused(lambda: read_table(frame, where="episode > 3"))


MEMORY = """
import sys
import polars as pl
from offrl_wb.data.tables import read_table

def peak():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith("VmHWM"))

part, copies = sys.argv[1], int(sys.argv[2])
read_table(part, where="day = 3")
before = peak()
read_table([part] * copies, where="day = 3", episodes_where="COUNT(*) = 100")
read_table([part] * copies, where="obs_0 > 3.5")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_a_table_larger_than_the_memory_it_may_take_is_filtered(tmp_path: Path) -> None:
    rows, wide_columns, copies = 100_000, 40, 40
    rng = np.random.default_rng(0)
    columns = {f"obs_{j}": rng.standard_normal(rows, dtype=np.float32) for j in range(wide_columns)}
    place = np.arange(rows)
    frame = pl.DataFrame(columns).with_columns(
        action=pl.lit(1), reward=pl.lit(0.5), day=place // 1000, done=place % 100 == 99
    )
    frame.write_parquet(tmp_path / "part.parquet", compression="lz4", row_group_size=10_000)
    whole = rows * wide_columns * 4 * copies
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "part.parquet"), str(copies)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.5 * whole


# Where it came from


def test_the_recipe_reads_the_table_again(tmp_path: Path) -> None:
    wide(log()).with_columns(gear=pl.lit("low")).write_csv(tmp_path / "log.csv")
    for options in (
        {"mapping": ["action=gear", "columns="]},
        {"mapping": Mapping(reward="obs_0", obs=["obs_1", "obs_2"]), "missing": "keep"},
        {"where": pl.col("obs_1") > 0, "episodes_where": "COUNT(*) > 1"},
    ):
        read = read_table(tmp_path / "log.csv", **options)
        names: dict[str, Any] = {}
        exec(read.provenance.as_python(), names)
        assert names["dataset"].content_hash == read.content_hash
        assert names["dataset"].provenance.hash == read.provenance.hash
    frame = read_table(wide(log()))
    assert "given_0" in frame.provenance.as_python()


# Fuzzed


def either(action: Callable[[], Dataset]) -> None:
    """A dataset or one line: nothing else may come out."""
    with contextlib.suppress(InputError):
        assert len(action()) > 0


@quick
@given(cut=st.floats(0, 1), suffix=st.sampled_from(["csv", "ndjson", "parquet"]))
def test_a_truncated_file_is_read_or_refused(cut: float, suffix: str, tmp_path: Path) -> None:
    path = write_table(log(), tmp_path / f"whole.{suffix}")
    data = path.read_bytes()
    short = tmp_path / f"short.{suffix}"
    short.write_bytes(data[: int(cut * (len(data) - 1))])
    mapping = read_mapping(f"{path}.yaml") if suffix != "parquet" else None
    if suffix == "parquet":
        assert "short.parquet" in refused(lambda: read_table(short))
    either(lambda: read_table(short, mapping))
    either(lambda: read_table(short))


@quick
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    suffix = data.draw(st.sampled_from(["csv", "ndjson"]))
    path = write_table(log(), tmp_path / f"log.{suffix}")
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged))
    either(lambda: read_table(path))
    either(lambda: read_table(path, Mapping()))


STRANGE: list[Any] = [
    None, "x", "", 1, -1, 2**62, 0.5, float("nan"), float("inf"), True, [1.0], [], ["a"], {"a": 1},
    b"x", datetime.date(2024, 1, 1), datetime.timedelta(1),
]  # fmt: skip


@quick
@given(
    column=st.sampled_from(
        ["episode", "obs_0", "obs_2", "action", "reward", "terminated", "next_obs_1"]
    ),
    value=st.sampled_from(STRANGE),
    rows=st.sampled_from([60, 1]),
    missing=st.sampled_from(["refuse", "keep", "drop_episodes"]),
)
def test_a_column_of_a_wrong_type_is_read_or_refused(
    column: str, value: Any, rows: int, missing: str
) -> None:
    frame = wide(log())
    strange = pl.Series(column, [value] * 60, strict=False)
    if rows == 1 and strange.dtype != pl.Null:
        with contextlib.suppress(pl.exceptions.PolarsError):
            cells = frame[column].cast(pl.String)
            strange = pl.Series(column, [str(value), *cells[1:].to_list()])
    frame = frame.with_columns(strange)
    either(lambda: read_table(frame, missing=missing))
    either(lambda: read_table(frame, where="obs_1 > 0", missing=missing))


@quick
@given(order=st.permutations(range(10)), drop=st.integers(0, 3))
def test_columns_reordered_or_dropped_give_the_same_or_a_refusal(
    order: list[int], drop: int
) -> None:
    frame = wide(log())
    names = [frame.columns[j] for j in order] + frame.columns[10:]
    if drop == 0:
        assert_same(read_table(frame.select(names)), log())
    else:
        either(lambda: read_table(frame.select(names[drop:])))


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a,b\n", b"{}", b"{\n", b"PAR1", b"\xff\xfe\x00", b"[1]\n"]
)
def test_a_file_with_nothing_in_it_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(content)
    assert f"log.{suffix}" in refused(lambda: read_table(path))


def test_a_folder_whose_files_differ_is_refused(tmp_path: Path) -> None:
    frame = wide(log())
    frame.write_parquet(tmp_path / "a.parquet")
    frame.drop("obs_1").write_parquet(tmp_path / "b.parquet")
    refused(lambda: read_table(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 half")
    refused(lambda: read_table(tmp_path))


def test_a_hostile_mapping_inside_parquet_is_refused(tmp_path: Path) -> None:
    frame, path = wide(log()), tmp_path / "log.parquet"
    for text in ("{", "[]", '{"obs": 3}', '{"spec": {"kind": "x"}}', '{"unknown": 1}'):
        frame.write_parquet(path, metadata={"offrl_wb.mapping": text})
        assert "log.parquet" in refused(lambda: read_table(path))


def test_a_stray_word_among_numbers_is_named(tmp_path: Path) -> None:
    for rows in (60, 20_000):
        frame = wide(log(rows)).drop(pl.selectors.starts_with("next_obs"))
        cells = frame["obs_1"].cast(pl.String).to_list()
        cells[rows - 7] = "n/a"
        frame.with_columns(obs_1=pl.Series(cells)).write_csv(tmp_path / "log.csv")
        told = refused(lambda: read_table(tmp_path / "log.csv"))
        assert f"column obs_1 is 'n/a' at row {rows - 7}" in told


# A published log


def test_a_published_log_survives_the_way_through_a_table(tmp_path: Path) -> None:
    from offrl_wb.data.files import read_neorl2

    dataset = read_neorl2(neorl2_file("DMSD-val.npz"))
    for suffix in ("csv", "parquet"):
        again = read_table(write_table(dataset, tmp_path / f"log.{suffix}"))
        assert_same(again, dataset)
    best = read_table(tmp_path / "log.csv", episodes_where="SUM(reward) > 500")
    expected = dataset.filter_episodes(pl.col("return") > 500)
    assert np.array_equal(best.arrays().next_observations, expected.arrays().next_observations)
