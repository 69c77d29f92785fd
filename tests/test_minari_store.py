"""Minari datasets: read, written so that Minari takes them, and fetched over bad lines."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.minari_store import (
    dataset_folder,
    download_minari,
    local_minari,
    minari_store,
    read_minari,
    split_dataset_id,
    write_minari,
)
from offrl_wb.data.spec import ImageFile, ScoreReference, Spec

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
FORMATS = ["hdf5", "arrow", "parquet"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "MINARI_REMOTE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def random_log(seed: int = 0, lengths: tuple[int, ...] = (3, 1, 4), kind: str = "box") -> Dataset:
    """A log with every kind of column, in one of several spaces."""
    generator, size = np.random.default_rng(seed), sum(lengths)
    both = size + len(lengths)
    box = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
    observation, action = {
        "box": (box, spaces.Box(-1, 1, (2,), dtype=np.float64)),
        "table": (spaces.Discrete(9), spaces.Discrete(4)),
        "many": (spaces.MultiDiscrete([5, 7]), spaces.MultiDiscrete([2, 3])),
        "bits": (spaces.MultiBinary(4), spaces.MultiBinary(2)),
        "dictionary": (
            spaces.Dict({"a": spaces.Dict({"x": box}), "n": spaces.Discrete(3)}),
            spaces.Discrete(2),
        ),
        "tuple": (spaces.Tuple([spaces.Box(0, 1, (2, 2), dtype=np.float32), box]), box),
    }[kind]

    def draw(space: Any, count: int) -> Any:
        name = type(space).__name__
        if name == "Dict":
            return {key: draw(part, count) for key, part in space.spaces.items()}
        if name == "Tuple":
            return tuple(draw(part, count) for part in space.spaces)
        if name == "Box":
            return generator.random((count, *space.shape)).astype(space.dtype)
        top = {"Discrete": lambda: space.n, "MultiDiscrete": lambda: space.nvec}
        shape = (count, *space.shape)
        return generator.integers(top.get(name, lambda: 2)(), size=shape)

    def rows(tree: Any, keep: np.ndarray) -> Any:
        if isinstance(tree, dict):
            return {key: rows(value, keep) for key, value in tree.items()}
        return tuple(rows(v, keep) for v in tree) if isinstance(tree, tuple) else tree[keep]

    last = np.cumsum(np.array(lengths) + 1) - 1
    among = np.setdiff1d(np.arange(both), last)
    seen = draw(observation, both)
    ends = np.cumsum(lengths) - 1
    over = np.isin(np.arange(size), ends[::2])
    return Dataset.from_arrays(
        rows(seen, among),
        draw(action, size),
        generator.normal(size=size).astype(np.float32),
        over,
        np.isin(np.arange(size), ends) & ~over,
        episode=np.repeat(np.arange(len(lengths)), lengths),
        final_observations=rows(seen, last),
        spec=Spec(observation, action, 0.9, ScoreReference(-1, 3, "a test"), None, "toy"),
        columns={
            "behaviour_prob": generator.random(size),
            "label": generator.integers(3, size=size),
            "note": [f"{n % 3} é" for n in range(size)],
            "spoiled": generator.random(size) < 0.5,
            "vector": generator.random((size, 2)).astype(np.float32),
        },
        episode_columns={
            "task": ["reach", "push", "reach"][: len(lengths)],
            "success": [True, None, False][: len(lengths)],
            "goal": [[0.5, 1.0], [0.0, 1.0], [2.0, 2.0]][: len(lengths)],
            "id": ["a", "b", "c"][: len(lengths)],
        },
        source="somebody",
    )


def assert_same(first: Dataset, second: Dataset) -> None:
    assert second.transitions.schema == first.transitions.schema
    assert second.episodes.schema == first.episodes.schema
    assert second.content_hash == first.content_hash
    assert second.spec == first.spec


# Round trips


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("kind", ["box", "table", "many", "bits", "dictionary", "tuple"])
def test_what_is_written_is_read_again_and_minari_agrees(data_format: str, kind: str) -> None:
    log = random_log(kind=kind)
    write_minari(log, "toy/log-v0", data_format=data_format)
    assert_same(log, read_minari("toy/log-v0"))

    theirs = minari.load_dataset("toy/log-v0")
    assert theirs.spec.dataset_id == "toy/log-v0"
    assert theirs.observation_space == log.spec.observation_space
    assert theirs.action_space == log.spec.action_space
    assert (theirs.total_episodes, theirs.total_steps) == (3, 8)
    rewards = log.arrays().rewards
    for start, length, episode in zip(log.starts, log.lengths, theirs, strict=True):
        assert len(episode) == length
        assert np.array_equal(episode.rewards, rewards[start : start + length])
        assert theirs.action_space.contains(first_of(episode.actions))
        assert theirs.observation_space.contains(first_of(episode.observations))
    assert list(minari.list_local_datasets()) == ["toy/log-v0"]
    assert np.isclose(minari.get_normalized_score(theirs, np.array(1.0)), 0.5)


def first_of(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: first_of(value) for key, value in tree.items()}
    return tuple(first_of(v) for v in tree) if isinstance(tree, tuple) else tree[0]


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(FORMATS),
    st.sampled_from(["box", "table", "dictionary"]),
)
def test_any_log_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lengths: list, form: str, kind: str
) -> None:
    log = random_log(seed, tuple(lengths), kind)
    root = tmp_path_factory.mktemp("minari")
    write_minari(log, "log-v3", root=root, data_format=form)
    assert_same(log, read_minari("log-v3", root=root))


@pytest.mark.parametrize("data_format", FORMATS)
def test_unknown_final_observations_and_nulls_come_back_as_they_were(data_format: str) -> None:
    log = Dataset.from_arrays(
        np.arange(6.0)[:, None],
        np.zeros(6, int),
        np.zeros(6),
        [0, 0, 1, 0, 0, 1],
        final_observations=np.ma.masked_array([[3.0], [9.0]], [[True], [False]]),
        columns={"label": [0.5, None, 1.0, None, 0.0, 2.0]},
        episode_columns={"seed": [None, 4], "when": [{"day": 1}, {"day": 2}]},
    )
    write_minari(log, "log-v0", data_format=data_format)
    again = read_minari("log-v0")
    assert again.episodes["final_obs"].to_list() == [None, [9.0]]
    assert again.transitions.equals(log.transitions)
    assert again.episodes["seed"].to_list() == [None, 4]
    assert again.episodes["when"].to_list() == ['{"day": 1}', '{"day": 2}']
    (first, _) = minari.load_dataset("log-v0")
    assert first.observations[-1] == first.observations[-2]


def test_steps_that_do_not_count_from_nought_are_kept() -> None:
    log = Dataset.from_arrays(
        np.zeros((4, 1)), np.zeros(4, int), np.zeros(4), [0, 1, 0, 1], step=[5, 6, 0, 1]
    )
    write_minari(log, "log-v0")
    assert read_minari("log-v0").transitions["step"].to_list() == [5, 6, 0, 1]


def test_doubles_in_a_box_of_singles_are_not_rounded() -> None:
    narrow = spaces.Box(-1, 1, (1,), dtype=np.float32)
    log = Dataset.from_arrays(
        np.full((2, 1), 0.1), np.full((2, 1), 0.5), np.zeros(2), [0, 1], spec=Spec(narrow, narrow)
    )
    write_minari(log, "log-v0")
    theirs = minari.load_dataset("log-v0")
    assert theirs.observation_space.dtype == np.float64
    assert theirs.action_space.dtype == np.float32
    assert theirs[0].observations[0] == 0.1


@pytest.mark.parametrize("data_format", FORMATS)
def test_images_are_unpacked_and_written_without_loss(tmp_path: Path, data_format: str) -> None:
    frames = np.random.default_rng(0).integers(256, size=(7, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    screen = spaces.Box(0, 255, (32, 32, 3), dtype=np.uint8)
    log = Dataset.from_arrays(
        [0, 1, 3, 4, 5],
        np.zeros(5, int),
        np.zeros(5),
        [0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0],
        final_observations=np.array([2, 6]),
        spec=Spec(screen, spaces.Discrete(2), images=ImageFile(str(tmp_path / "frames.npy"))),
    )
    write_minari(log, "screens-v0", data_format=data_format)
    with pytest.raises(InputError, match="pass images="):
        read_minari("screens-v0")
    again = read_minari("screens-v0", images=tmp_path / "unpacked.npy")
    assert again.transitions["obs"].to_list() == [0, 1, 3, 4, 5]
    assert again.episodes["final_obs"].to_list() == [2, 6]
    assert np.array_equal(np.load(tmp_path / "unpacked.npy"), frames)
    assert np.array_equal(again.observations([2]), frames[[3]])
    with pytest.raises(InputError, match="cannot be written"):
        read_minari("screens-v0", images=tmp_path / "nowhere" / "frames.npy")


@pytest.mark.parametrize("data_format", FORMATS)
def test_jpegs_that_minari_made_are_read_as_minari_reads_them(
    tmp_path: Path, data_format: str
) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None, None], (3, 32, 32, 3)).copy()
    buffer = minari.data_collector.episode_buffer.EpisodeBuffer(
        observations=frames,
        actions=np.zeros(2, int),
        rewards=np.zeros(2),
        terminations=np.array([False, True]),
        truncations=np.zeros(2, bool),
    )
    screen = spaces.Box(0, 255, (32, 32, 3), dtype=np.uint8)
    made = make_theirs("jpeg-v0", [buffer], screen, spaces.Discrete(2), data_format)
    read_minari("jpeg-v0", images=tmp_path / "frames.npy")
    assert np.array_equal(np.load(tmp_path / "frames.npy"), made[0].observations)


# What Minari wrote


def make_theirs(
    name: str, buffers: list, observation: Any, action: Any, form: str, **more: Any
) -> Any:
    with pytest.warns(UserWarning, match="set to None"):
        return minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=observation,
            action_space=action,
            data_format=form,
            **more,
        )


def theirs(name: str, data_format: str, mission: tuple = ("go", "go", "go")) -> Any:
    """A dataset with text, nested infos and metadata, made by Minari's own functions."""
    space = spaces.Dict({"mission": spaces.Text(9), "view": spaces.Box(0, 9, (2,), dtype=np.int64)})

    def buffer(seed: int) -> Any:
        return minari.data_collector.episode_buffer.EpisodeBuffer(
            seed=seed,
            options={"level": seed, "door": {"open": True}},
            observations={"mission": list(mission), "view": np.full((3, 2), seed)},
            actions=np.zeros(2, int),
            rewards=[1.0, 2.0],
            terminations=[False, True],
            truncations=[False, False],
            infos={"success": [False, False, True], "deep": {"er": np.ones((3, 2))}},
        )

    made = make_theirs(
        name,
        [buffer(3), buffer(4)],
        space,
        spaces.Discrete(2),
        data_format,
        author="A",
        author_email="a@b",
        ref_min_score=1.0,
    )
    made.storage.update_episode_metadata([{"quality": "good"}, {"quality": "bad"}])
    made.storage.update_metadata({"ref_min_score": 0.0, "ref_max_score": 6.0})
    return made


@pytest.mark.parametrize("data_format", FORMATS)
def test_all_metadata_of_minaris_own_datasets_is_carried(data_format: str) -> None:
    theirs("grid/go-v1", data_format)
    log = read_minari("grid/go-v1", infos=True)
    assert log.transitions["obs"].to_list() == [[3, 3], [3, 3], [4, 4], [4, 4]]
    assert log.arrays().next_observations[:, 0].tolist() == [3, 3, 4, 4]
    assert log.transitions["info.success"].to_list() == [False, True, False, True]
    assert log.transitions["info.deep.er"].to_list() == [[1.0, 1.0]] * 4
    table = log.episodes.drop("final_obs").rows(named=True)
    expected = {
        "episode": 1,
        "source": "grid/go-v1",
        "mission": "go",
        "seed": 4,
        "options.level": 4,
        "options.door.open": True,
        "quality": "bad",
        "reset_info.success": False,
        "reset_info.deep.er": [1.0, 1.0],
    }
    assert table[1] == expected
    assert log.spec.score == ScoreReference(0.0, 6.0, "Minari, grid/go-v1")
    assert log.spec.observation_space == spaces.Dict({"view": spaces.Box(0, 9, (2,), np.int64)})
    noted = log.provenance.to_json()[-1]
    assert noted["parameters"] == {"dataset": "grid/go-v1", "infos": True}
    assert noted["outcome"]["metadata"]["author"] == ["A"]


@pytest.mark.parametrize("data_format", FORMATS)
def test_infos_are_read_on_request_and_written_back(data_format: str) -> None:
    theirs("grid/go-v1", data_format)
    assert not any("info" in c for c in read_minari("grid/go-v1").transitions.columns)
    log = read_minari("grid/go-v1", infos=["deep.er", "success"], source="me")
    assert log.episodes["source"].to_list() == ["me", "me"]
    write_minari(log, "grid/again-v0", data_format=data_format)
    again = read_minari("grid/again-v0")
    assert again.content_hash == log.content_hash
    first = minari.load_dataset("grid/again-v0")[0]
    assert [bool(v) for v in first.infos["success"]] == [False, False, True]
    with pytest.raises(InputError, match=r"episode 0: infos 'velocity' has not one entry"):
        read_minari("grid/go-v1", infos=["velocity"])


def test_text_that_changes_within_an_episode_is_refused() -> None:
    theirs("grid/go-v1", "hdf5", mission=("go", "go", "stop"))
    with pytest.raises(InputError, match=r"episode_0: the text 'mission' changes"):
        read_minari("grid/go-v1")


def test_the_environment_can_be_recovered() -> None:
    log = random_log(kind="table")
    write_minari(
        log,
        "lake/random-v0",
        environment="FrozenLake-v1",
        metadata={"author": "A", "algorithm_name": "random", "requirements": ["gymnasium>=1.0"]},
    )
    dataset = minari.load_dataset("lake/random-v0")
    assert dataset.recover_environment().spec.id == "FrozenLake-v1"
    assert dataset.storage.metadata["author"] == {"A"}
    with pytest.raises(InputError, match="gymnasium knows no 'Nowhere-v1'"):
        write_minari(log, "lake/other-v0", environment="Nowhere-v1")
    assert local_minari() == ["lake/random-v0"]


# By id and by path


def test_a_dataset_is_found_by_id_by_folder_and_by_its_data(store: Path, tmp_path: Path) -> None:
    path = write_minari(random_log(), "a/b/log-v0")
    assert path == store / "a" / "b" / "log-v0"
    found = {read_minari(where).content_hash for where in ("a/b/log-v0", path, path / "data")}
    assert len(found) == 1
    assert read_minari(str(path)).content_hash in found
    assert (store / "a" / "b" / "namespace_metadata.json").read_text() == "{}"
    assert minari.namespace.list_local_namespaces() == ["a", "a/b"]


def test_without_the_variable_the_store_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    assert minari_store() == Path.home() / ".minari" / "datasets"


def test_the_provenance_reads_the_same_dataset_again() -> None:
    write_minari(random_log(), "a/log-v0")
    log = read_minari("a/log-v0", source="somewhere")
    made: dict[str, Any] = {}
    exec(log.provenance.as_python(), made)
    assert made["dataset"].content_hash == log.content_hash
    assert made["dataset"].provenance.hash == log.provenance.hash


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert local_minari(tmp_path / "nowhere") == []
    with pytest.raises(InputError, match="it holds nothing"):
        read_minari("a-v0", root=tmp_path / "nowhere")


def test_what_is_not_there_is_named_with_what_is(store: Path, tmp_path: Path) -> None:
    write_minari(random_log(), "a/log-v0")
    with pytest.raises(InputError, match=r"it holds a/log-v0.*download_minari\('a/log-v1'\)"):
        read_minari("a/log-v1")
    for path in (tmp_path / "a-v0", str(tmp_path / "a-v0"), "./a-v0"):
        with pytest.raises(InputError, match="no Minari dataset"):
            dataset_folder(path)
    with pytest.raises(InputError, match="no Minari id"):
        read_minari("not an id")


@given(st.text(max_size=12))
def test_an_id_never_leads_out_of_the_store(text: str) -> None:
    try:
        namespace, name, version = split_dataset_id(text)
    except InputError:
        return
    path = Path("/store", namespace, f"{name}-v{version}")
    assert Path(os.path.normpath(path)) == path
    assert path.is_relative_to("/store")


# Broken files


def broken(store: Path, data_format: str = "hdf5") -> Path:
    return write_minari(random_log(), "log-v0", data_format=data_format) / "data"


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_episodes": None}, "a key is missing or wrong: KeyError"),
        ({"total_steps": "many"}, "a key is missing or wrong"),
        ({"data_format": "pickle"}, "data_format is 'pickle': expected"),
        ({"total_steps": 9}, "total_steps is 9 in metadata.json, found 8"),
        ({"total_episodes": 2}, "total_steps is 8 in metadata.json, found 4"),
        ({"total_episodes": 4}, "has no 'episode_3'"),
        ({"total_episodes": 0}, "total_episodes is 0"),
        ({"action_space": '{"type": "Box"}'}, "action_space describes no space"),
        ({"action_space": '{"type": "Nothing"}'}, "action_space describes no space"),
        ({"action_space": "{"}, "action_space describes no space"),
        (
            {"observation_space": '{"type": "Dict", "subspaces": {"x": {"type": "Discrete", '
             '"n": 3, "start": 0}}}'},
            "observations does not fit the space",
        ),
        (
            {"action_space": '{"type": "Box", "dtype": "float32", "shape": [5], '
             '"low": [0, 0, 0, 0, 0], "high": [1, 1, 1, 1, 1]}'},
            r"episode_0: actions: the array has rows of shape \(2,\), not \(5,\)",
        ),
    ],
)  # fmt: skip
def test_wrong_metadata_is_named(store: Path, changes: dict, message: str) -> None:
    folder = broken(store)
    rewrite(folder, offrl_wb=None, **changes)
    with pytest.raises(InputError, match=message):
        read_minari("log-v0")


def test_a_dataset_that_would_have_minari_run_code_is_refused(store: Path, tmp_path: Path) -> None:
    folder = broken(store)
    victim = tmp_path / "touched"
    spec = {"id": "x-v0", "entry_point": "os:system", "kwargs": {"command": f"touch {victim}"}}
    rewrite(folder, observation_space=None, env_spec=json.dumps(spec))
    with pytest.raises(InputError, match="has no observation_space"):
        read_minari("log-v0")
    assert not victim.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_metadata_that_is_no_json_object_is_named(store: Path, text: str) -> None:
    folder = broken(store)
    (folder / "metadata.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"metadata\.json"):
        read_minari("log-v0")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewards", None, "/episode_1 has no 'rewards'"),
        ("observations", None, "/episode_1 has no 'observations'"),
        ("rewards", [b"one"], "/episode_1/rewards holds .*, not numbers"),
        ("rewards", [1.0, 2.0], "episode_1: terminated has another length than rewards, 2"),
        ("actions", np.zeros((3, 2)), "episode_1: actions has 3 entries, not 1"),
        ("observations", np.zeros((1, 3)), "episode_1: observations has 1 entries, not 2"),
        ("truncations", {"a": [1]}, "/episode_1/truncations does not fit"),
    ],
)
def test_a_bad_entry_is_named_with_file_episode_and_key(
    store: Path, key: str, value: Any, message: str
) -> None:
    path = broken(store) / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        del file["episode_1"][key]
        if isinstance(value, dict):
            file["episode_1"].create_group(key)
        elif value is not None:
            file["episode_1"][key] = value
    with pytest.raises(InputError, match=rf"main_data\.hdf5: .*{message.lstrip('/')}"):
        read_minari("log-v0")


def test_a_wrong_count_in_an_episode_is_named(store: Path) -> None:
    path = broken(store) / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        file["episode_2"].attrs["total_steps"] = 7
    with pytest.raises(InputError, match="episode_2: total_steps is 7, and there are 4 rewards"):
        read_minari("log-v0")


@settings(max_examples=18)
@given(st.floats(0, 0.999), st.sampled_from(FORMATS))
def test_a_truncated_file_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, share: float, data_format: str
) -> None:
    root = tmp_path_factory.mktemp("minari")
    folder = write_minari(random_log(), "log-v0", root=root, data_format=data_format) / "data"
    victim = min(folder.rglob("*.hdf5" if data_format == "hdf5" else "part-*"))
    victim.write_bytes(victim.read_bytes()[: int(share * victim.stat().st_size)])
    with pytest.raises(InputError, match=str(folder)):
        read_minari("log-v0", root=root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["rewards"]), "has no 'rewards'"),
        (lambda t: t.set_column(0, "observations", [[1.0] * len(t)]), "not lists of one length"),
        (lambda t: t.set_column(2, "rewards", [["a"] * len(t)]), "rewards holds .*, not numbers"),
    ],
)
def test_a_bad_arrow_table_is_named(store: Path, change: Any, message: str) -> None:
    import pyarrow.parquet as parquet

    folder = broken(store, "parquet")
    (path,) = (folder / "1").glob("part-*")
    table = parquet.read_table(path)
    order = ["observations", "actions", "rewards", "terminations", "truncations"]
    parquet.write_table(change(table.select(order)), path)
    with pytest.raises(InputError, match=message):
        read_minari("log-v0")


def test_a_lost_part_of_a_dictionary_is_named(store: Path) -> None:
    folder = write_minari(random_log(kind="dictionary"), "log-v0", data_format="arrow") / "data"
    metadata = json.loads((folder / "metadata.json").read_text())
    space = json.loads(metadata["observation_space"])
    space["subspaces"]["lost"] = space["subspaces"]["n"]
    rewrite(folder, observation_space=json.dumps(space))
    with pytest.raises(InputError, match="observations has no 'lost'"):
        read_minari("log-v0")


def test_metadata_of_episodes_that_mix_types_becomes_text(store: Path) -> None:
    folder = broken(store)
    rewrite(folder, offrl_wb=None)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_0"].attrs["level"] = 3
        file["episode_1"].attrs["level"] = "three"
        file["episode_2"].attrs["level"] = np.bytes_("iii")
    assert read_minari("log-v0").episodes["level"].to_list() == ["3", '"three"', '"iii"']


# Refused writes


def test_a_dataset_is_overwritten_only_when_told_so() -> None:
    first, second = random_log(0), random_log(1)
    write_minari(first, "log-v0")
    with pytest.raises(InputError, match="pass overwrite=True"):
        write_minari(second, "log-v0")
    assert_same(first, read_minari("log-v0"))
    write_minari(second, "log-v0", overwrite=True, data_format="arrow")
    assert_same(second, read_minari("log-v0"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series("x", [1, None, 2]), "column 'x' .*null at row 1"),
        (pl.Series("x", [1.0, None, float("nan")]), "column 'x' .*null at row 1"),
        (pl.Series("x", [[1], [2], [3]]), r"column 'x' \(List\(Int64\)\)"),
        (pl.Series("x", ["a", None, "b"]), "column 'x'"),
    ],
)
def test_what_minari_cannot_hold_is_refused_and_nothing_is_left(
    store: Path, column: pl.Series, message: str
) -> None:
    log = Dataset.from_arrays(
        np.zeros((3, 1)), np.zeros(3, int), np.zeros(3), [0, 0, 1], columns={"x": column}
    )
    with pytest.raises(InputError, match=message):
        write_minari(log, "log-v0")
    assert list(store.iterdir()) == []


def test_broken_chains_and_unknown_formats_are_refused() -> None:
    log = Dataset.from_arrays(
        np.arange(3.0)[:, None],
        np.zeros(3, int),
        np.zeros(3),
        [0, 0, 1],
        next_observations=np.arange(3.0)[:, None] + 10,
    )
    with pytest.raises(InputError, match="next observations of its own"):
        write_minari(log, "log-v0")
    with pytest.raises(InputError, match="data_format is 'csv'"):
        write_minari(log, "log-v0", data_format="csv")
    with pytest.raises(InputError, match="no Minari id"):
        write_minari(log, "log")


def test_metadata_that_hdf5_cannot_hold_is_an_input_error(store: Path) -> None:
    log = random_log().with_episode_columns(map=pl.Series([[0.5] * 10_000] * 3))
    with pytest.raises(InputError, match="cannot be written"):
        write_minari(log, "log-v0")
    assert list(store.iterdir()) == []


def test_a_writer_that_is_killed_leaves_the_old_dataset(store: Path) -> None:
    log = random_log()
    write_minari(log, "log-v0")
    code = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from tests.test_minari_store import random_log
from minari.dataset._storages.hdf5_storage import HDF5Storage
from offrl_wb.data.minari_store import write_minari
whole = HDF5Storage.update_episode_metadata
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
HDF5Storage.update_episode_metadata = killed
write_minari(random_log(1), "log-v0", overwrite=True)
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert_same(log, read_minari("log-v0"))
    assert list(minari.list_local_datasets()) == ["log-v0"]
    assert local_minari() == ["log-v0"]


def test_a_dataset_set_aside_for_one_that_never_came_is_put_back(store: Path) -> None:
    log = random_log()
    write_minari(log, "a/log-v0")
    (store / "a" / "log-v0").rename(store / ".replaced-a~log-v0")
    assert_same(log, read_minari("a/log-v0"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write_minari(random_log(), "log-v0")
    monkeypatch.setitem(sys.modules, "minari.serialization", None)
    with pytest.raises(InputError, match=r'pip install "offrl_wb\[data\]"'):
        read_minari("log-v0")


# The hub


class StandIn(ThreadingHTTPServer):
    """The hub's file API over a folder `owner/repository/…`, with as bad a line as is asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.asked: list[tuple[str, str, str]] = []  # path, range, token
        self.piece = 10**9  # bytes after which the line breaks
        self.limit = 10**9  # requests for large files that are answered at all
        self.page = 3  # entries a page
        self.stuck = False  # gives the same page again and again
        self.silent_range = False  # sends everything, whatever range is asked
        self.errors: list[tuple[int, dict]] = []  # answered first, one each
        self.lies: dict[str, dict] = {}  # changes to entries of the list
        self.spoiled: dict[str, bytes] = {}  # other content than listed
        self.elsewhere: str | None = None  # large files are redirected to this address
        self.more: list[dict] = []  # further entries

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def entry(self, repository: Path, path: Path) -> dict:
        inside, data = path.relative_to(repository).as_posix(), path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found = {"type": "file", "path": inside, "size": len(data), "oid": blob}
        if path.suffix == ".hdf5":
            large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found |= {"lfs": large, "size": len(data)}
        return found | self.lies.get(inside, {})


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        found = urlsplit(self.path)
        path = unquote(found.path)
        token = self.headers.get("Authorization", "")
        self.server.asked.append((path, self.headers.get("Range", ""), token))
        if self.server.errors:
            code, headers = self.server.errors.pop(0)
            return self.answer(b"<html>", code, headers)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            return self.api(path, parts[2:], parse_qs(found.query))
        if parts[0] == "datasets":
            parts = parts[1:]
        return self.file(parts[0], parts[1], "/".join(parts[4:]))

    def api(self, path: str, parts: list[str], query: dict) -> None:
        repository = self.server.root / parts[0] / parts[1]
        if parts[2] == "revision":
            exists = repository.is_dir() and parts[3] == "main"
            return self.json({"sha": "c0ffee"}) if exists else self.answer(b"", 404)
        inside = repository / "/".join(parts[4:])
        if not inside.is_dir():
            return self.answer(b"", 404)
        if "recursive" not in query:
            folders = [p for p in sorted(inside.iterdir()) if p.is_dir()]
            rows = [p.relative_to(repository).as_posix() for p in folders]
            return self.json([{"type": "directory", "path": p} for p in rows])
        files = [p for p in sorted(inside.rglob("*")) if p.is_file()]
        rows = [self.server.entry(repository, p) for p in files] + self.server.more
        first = int(query.get("cursor", ["0"])[0])
        following = first + self.server.page * (not self.server.stuck)
        link = f"<{self.server.address}{path}?recursive=true&cursor={following}>"
        more = {"Link": f'{link}; rel="next"'} if first + self.server.page < len(rows) else {}
        return self.json(rows[first : first + self.server.page], more)

    def file(self, owner: str, repository: str, inside: str) -> None:
        path = self.server.root / owner / repository / inside
        if not path.is_file():
            return self.answer(b"", 404)
        if self.server.elsewhere and path.suffix == ".hdf5":
            place = f"{self.server.elsewhere}/{owner}/{repository}/resolve/c0ffee/{inside}"
            return self.answer(b"", 302, {"Location": place})
        if sum(name.endswith(".hdf5") for name, _, _ in self.server.asked) > self.server.limit:
            return None  # hangs up
        data = self.server.spoiled.get(inside, path.read_bytes())
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if self.server.silent_range or not first:
            return self.answer(data, 200)
        if first >= len(data):
            return self.answer(b"", 416)
        told = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        return self.answer(data[first:], 206, told)

    def json(self, value: Any, headers: dict | None = None) -> None:
        self.answer(json.dumps(value).encode(), 200, headers)

    def answer(self, body: bytes, code: int, headers: dict | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: self.server.piece] if len(body) > 2000 else body)

    def log_message(self, *arguments: object) -> None:
        pass


def serve(root: Path) -> Iterator[StandIn]:
    server = StandIn(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for server in serve(tmp_path / "hub"):
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def log(hub: StandIn) -> Dataset:
    made = random_log(lengths=(3, 2000, 4))
    write_minari(made, "D4RL/door/human-v2", root=hub.root / "farama-minari")
    return made


def fetch(dataset_id: str = "D4RL/door/human-v2", **options: Any) -> Path:
    return download_minari(dataset_id, pause=0.0, **options)


def no_leftovers(store: Path) -> bool:
    return not [path for path in store.rglob("*") if path.name.startswith(".")]


def test_a_dataset_is_fetched_by_name_and_minari_loads_it(
    hub: StandIn, log: Dataset, store: Path
) -> None:
    above = hub.root / "farama-minari" / "D4RL"
    (above / "door" / "namespace_metadata.json").write_text('{"description": "doors"}')
    (above / "door" / "human-v2" / "README.md").write_text("not part of it")
    assert fetch() == store / "D4RL" / "door" / "human-v2"
    assert_same(log, read_minari("D4RL/door/human-v2"))
    assert minari.load_dataset("D4RL/door/human-v2").total_steps == len(log)
    assert no_leftovers(store)
    assert not (store / "D4RL" / "door" / "human-v2" / "README.md").exists()
    described = (store / "D4RL" / "door" / "namespace_metadata.json").read_text()
    assert json.loads(described) == {"description": "doors"}
    before = len(hub.asked)
    fetch()
    assert len(hub.asked) == before, "what is there is not asked for again"


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_other_formats_and_long_lists_are_fetched(
    hub: StandIn, store: Path, data_format: str
) -> None:
    made = random_log()
    write_minari(made, "small-v0", root=hub.root / "farama-minari", data_format=data_format)
    hub.page = 1
    fetch("small-v0")
    assert_same(made, read_minari("small-v0"))


def test_a_line_that_keeps_breaking_is_taken_up_where_it_broke(hub: StandIn, log: Dataset) -> None:
    hub.piece = 20_000
    fetch(attempts=1)
    assert_same(log, read_minari("D4RL/door/human-v2"))
    ranges = [r for path, r, _ in hub.asked if path.endswith("main_data.hdf5")]
    assert len(ranges) > 3
    assert ranges == ["", *(f"bytes={20_000 * n}-" for n in range(1, len(ranges)))]


def test_a_fetch_that_was_given_up_goes_on_later(hub: StandIn, log: Dataset, store: Path) -> None:
    hub.piece = 20_000
    hub.limit = 3
    with pytest.raises(InputError, match=r"60,000 of [\d,]+ bytes are kept; ask again to go on"):
        fetch(attempts=2)
    assert not (store / "D4RL").exists()
    assert local_minari() == []
    hub.piece, hub.limit, hub.asked[:] = 10**9, 10**9, []
    fetch()
    assert [r for p, r, _ in hub.asked if p.endswith("main_data.hdf5")] == ["bytes=60000-"]
    assert_same(log, read_minari("D4RL/door/human-v2"))
    assert no_leftovers(store)


def test_a_server_that_knows_no_ranges_is_taken_from_the_start(hub: StandIn, log: Dataset) -> None:
    hub.piece, hub.silent_range = 20_000, True
    with pytest.raises(InputError, match="the connection ended early"):
        fetch(attempts=3)
    hub.piece = 10**9
    fetch()
    assert_same(log, read_minari("D4RL/door/human-v2"))


def spoil(hub: StandIn, keep: float = 1.0) -> str:
    inside = "door/human-v2/data/main_data.hdf5"
    data = bytearray((hub.root / "farama-minari" / "D4RL" / inside).read_bytes())
    data[-1] ^= 1
    hub.spoiled[inside] = bytes(data[: int(keep * len(data))])
    return inside


def test_other_content_than_listed_is_thrown_away(hub: StandIn, log: Dataset, store: Path) -> None:
    spoil(hub)
    with pytest.raises(InputError, match=r"main_data\.hdf5 is not what the hub lists"):
        fetch()
    assert not (store / "D4RL").exists()
    assert not list(store.rglob("*.part"))
    hub.spoiled.clear()
    fetch()
    assert_same(log, read_minari("D4RL/door/human-v2"))


def test_a_small_file_with_another_hash_is_thrown_away(hub: StandIn, log: Dataset) -> None:
    inside = "door/human-v2/data/metadata.json"
    text = (hub.root / "farama-minari" / "D4RL" / inside).read_bytes()
    hub.spoiled[inside] = text.replace(b"human-v2", b"human-v3")
    with pytest.raises(InputError, match=r"metadata\.json is not what the hub lists"):
        fetch()


@pytest.mark.parametrize("size", [100, 10**7])
def test_another_size_than_listed_is_refused(hub: StandIn, log: Dataset, size: int) -> None:
    large = {"oid": "0" * 64, "size": size}
    hub.lies["door/human-v2/data/main_data.hdf5"] = {"lfs": large}
    message = "not what the hub lists" if size == 100 else "has less of data/main_data.hdf5 than"
    with pytest.raises(InputError, match=message):
        fetch(attempts=2)


def test_a_spoiled_beginning_is_fetched_anew(hub: StandIn, log: Dataset, store: Path) -> None:
    inside = spoil(hub)
    hub.piece = 50_000
    whole = (hub.root / "farama-minari" / "D4RL" / inside).read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    part = store / ".downloading-D4RL~door~human-v2" / "data" / f"main_data.hdf5.{digest[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    hub.spoiled.clear()
    fetch()
    assert_same(log, read_minari("D4RL/door/human-v2"))


def test_files_that_were_fetched_whole_are_not_asked_for_again(
    hub: StandIn, log: Dataset, store: Path
) -> None:
    aside = store / ".downloading-D4RL~door~human-v2" / "data"
    aside.mkdir(parents=True)
    inside = hub.root / "farama-minari" / "D4RL" / "door" / "human-v2" / "data"
    shutil.copy(inside / "main_data.hdf5", aside)
    fetch()
    assert not [path for path, _, _ in hub.asked if path.endswith(".hdf5")]
    assert_same(log, read_minari("D4RL/door/human-v2"))


def test_a_hub_without_descriptions_of_namespaces_will_do(
    hub: StandIn, log: Dataset, store: Path
) -> None:
    for path in hub.root.rglob("namespace_metadata.json"):
        path.unlink()
    fetch()
    assert minari.namespace.list_local_namespaces() == ["D4RL", "D4RL/door"]


def test_leftovers_of_another_revision_do_not_get_in(
    hub: StandIn, log: Dataset, store: Path
) -> None:
    aside = store / ".downloading-D4RL~door~human-v2" / "data"
    aside.mkdir(parents=True)
    (aside / "old.hdf5").write_text("old")
    (aside / "main_data.hdf5").write_text("of another commit")
    folder = fetch()
    found = sorted(path.name for path in (folder / "data").iterdir())
    assert found == ["main_data.hdf5", "metadata.json"]
    assert_same(log, read_minari(folder))


def test_overwrite_fetches_again_and_replaces(hub: StandIn, log: Dataset, store: Path) -> None:
    write_minari(random_log(5), "D4RL/door/human-v2")
    fetch()
    assert len(read_minari("D4RL/door/human-v2")) == 8
    fetch(overwrite=True)
    assert_same(log, read_minari("D4RL/door/human-v2"))
    assert no_leftovers(store)


def test_an_overloaded_hub_is_asked_again_after_the_time_it_names(
    hub: StandIn, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    hub.errors = [(503, {}), (429, {"Retry-After": "7"}), (200, {})]
    download_minari("D4RL/door/human-v2", pause=0.5)
    assert slept == [0.5, 7.0, 2.0]
    assert_same(log, read_minari("D4RL/door/human-v2"))


@pytest.mark.parametrize(
    ("code", "message"),
    [(401, r"refuses .*\(401\).*HF_TOKEN"), (403, "set HF_TOKEN"), (418, "answers 418")],
)
def test_a_refusal_is_not_asked_again(hub: StandIn, log: Dataset, code: int, message: str) -> None:
    hub.errors = [(code, {})]
    with pytest.raises(InputError, match=message):
        fetch()
    assert len(hub.asked) == 1


def test_a_dataset_that_is_not_there_is_named_with_its_other_versions(
    hub: StandIn, log: Dataset, store: Path
) -> None:
    with pytest.raises(
        InputError, match=r"no Minari dataset D4RL/door/human-v9 .*D4RL/door/human-v2"
    ):
        fetch("D4RL/door/human-v9")
    with pytest.raises(InputError, match="no Minari dataset atari/pong-v0"):
        fetch("atari/pong-v0")
    with pytest.raises(InputError, match="no Minari dataset D4RL/door/human-v2"):
        fetch(revision="other")
    assert not store.exists()


def test_no_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=r"cannot be reached \(3 attempts\)"):
        fetch(endpoint=address, attempts=3)
    with pytest.raises(InputError, match=r"https://hub\.invalid cannot be reached:"):
        download_minari("a-v0", endpoint="https://hub.invalid", pause=60.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        fetch()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MINARI_REMOTE", "gcp://minari-datasets", "only hf://OWNER"),
        ("MINARI_REMOTE", "hf://../x", "only hf://OWNER"),
        ("HF_ENDPOINT", "file:///etc", "must begin with https"),
    ],
)
def test_odd_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        fetch()


def test_another_owner_is_asked_where_minari_is_told_so(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_minari(random_log(), "log-v0", root=hub.root / "my-lab")
    monkeypatch.setenv("MINARI_REMOTE", "hf://my-lab")
    assert len(read_minari(fetch("log-v0"))) == 8


def test_the_token_is_sent_to_the_hub_but_not_to_where_it_redirects(
    hub: StandIn, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    for store in serve(hub.root):
        hub.elsewhere, store.piece = store.address, 50_000
        fetch()
        large = [(r, token) for path, r, token in store.asked]
        assert len(large) > 1
        assert all(token == "" for _, token in large)
        assert large[1][0] == "bytes=50000-", "a redirect keeps the range"
    assert {token for _, _, token in hub.asked} == {"Bearer secret"}
    assert_same(log, read_minari("D4RL/door/human-v2"))


def test_a_redirect_within_the_hub_keeps_the_token(
    hub: StandIn, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.errors = [(302, {"Location": "/api/datasets/farama-minari/D4RL/revision/main"})]
    fetch()
    assert {token for _, _, token in hub.asked} == {"Bearer secret"}


@pytest.mark.parametrize("path", ["data/../../evil", "data//evil", r"data/a\b", "data/c:evil"])
def test_a_path_that_leads_out_of_the_folder_is_refused(
    hub: StandIn, log: Dataset, path: str
) -> None:
    hub.more = [{"type": "file", "path": f"door/human-v2/{path}", "size": 1, "oid": "0"}]
    with pytest.raises(InputError, match="leads out of the folder"):
        fetch()


def test_files_beside_the_data_are_left_alone(hub: StandIn, log: Dataset) -> None:
    names = ("../../evil", "door/human-v2/../evil", "door/human-v2/README.md", "/etc/evil")
    hub.more = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
    assert sorted(p.name for p in fetch().rglob("*.*")) == ["main_data.hdf5", "metadata.json"]


@pytest.mark.parametrize(
    "more", [{"type": "file"}, {"type": "file", "path": "door/human-v2/data/x", "size": 1}, 3]
)
def test_an_answer_that_is_not_understood_is_an_input_error(
    hub: StandIn, log: Dataset, more: Any
) -> None:
    hub.more = [more]
    with pytest.raises(InputError, match="in a way not understood"):
        fetch()


def test_a_list_that_never_ends_is_given_up(hub: StandIn, log: Dataset) -> None:
    hub.stuck, hub.page = True, 1
    with pytest.raises(InputError, match="the same page again"):
        fetch()


def test_a_dataset_under_a_wrong_name_is_refused(hub: StandIn, log: Dataset, store: Path) -> None:
    owner = hub.root / "farama-minari"
    shutil.copytree(owner / "D4RL" / "door" / "human-v2", owner / "D4RL" / "door" / "cloned-v1")
    with pytest.raises(InputError, match=r"something else.*dataset_id is D4RL/door/human-v2"):
        fetch("D4RL/door/cloned-v1")
    assert no_leftovers(store)


def test_what_a_dataset_is_combined_of_is_fetched_too(hub: StandIn, log: Dataset) -> None:
    both = write_minari(random_log(), "both-v0", root=hub.root / "farama-minari") / "data"
    rewrite(both, combined_datasets=["D4RL/door/human-v2", "both-v0"])
    fetch("both-v0")
    assert local_minari() == ["D4RL/door/human-v2", "both-v0"]


def test_a_full_disk_is_said_before_anything_is_fetched(
    hub: StandIn, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="no room"):
        fetch()
    assert not [path for path, _, _ in hub.asked if "resolve" in path]


def test_a_folder_that_cannot_be_written_is_said(
    hub: StandIn, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *rest: Any) -> Any:
        if self.suffix == ".part" and "b" in mode and mode != "rb":
            return real(Path("/dev/full"), mode, buffering=0)
        return real(self, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"\.part cannot be written: .*No space"):
        fetch()


# Found in review


@pytest.mark.parametrize(
    "changes",
    [
        {"total_episodes": "3"},
        {"total_episodes": 3.0},
        {"dataset_id": 5},
        {"observation_space": "[" * 5000},
        {"offrl_wb": 5},
        {"offrl_wb": {"columns": {"x": {"key": "x"}}, "episode_columns": {}}},
    ],
)
def test_odd_metadata_is_an_input_error(store: Path, changes: dict) -> None:
    rewrite(broken(store), **changes)
    with pytest.raises(InputError, match=str(store / "log-v0")):
        read_minari("log-v0")


def external(group: Any, other: Path) -> None:
    stored = [(str(other), 0, 24)]
    group.create_dataset("observations", (2, 3), np.float32, external=stored)


def linked(group: Any, other: Path) -> None:
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros((2, 3), np.float32)
    group["observations"] = h5py.ExternalLink(str(other), "x")


def virtual(group: Any, other: Path) -> None:
    layout = h5py.VirtualLayout((2, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "x", (2, 3))
    group.create_virtual_dataset("observations", layout)


@pytest.mark.parametrize("point", [external, linked, virtual])
def test_data_outside_the_file_are_not_followed(store: Path, tmp_path: Path, point: Any) -> None:
    path, other = broken(store) / "main_data.hdf5", tmp_path / "other"
    other.write_bytes(b"secret" * 10)
    with h5py.File(path, "a") as file:
        del file["episode_1/observations"]
        point(file["episode_1"], other)
    with pytest.raises(InputError, match="'observations' points outside the file"):
        read_minari("log-v0")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewards", 1.0, r"episode_1: rewards has shape \(\)"),
        ("rewards", np.ones((1, 2)), r"episode_1: rewards has shape \(1, 2\)"),
        ("terminations", [0.5], "log-v0: the dataset: terminated is 0.5 at row 3"),
        ("infos", 1.0, "log-v0: the dataset cannot be read"),
        ("infos/prob", np.ones((2, 2)), "infos 'prob' differ in shape"),
        ("infos/again", h5py.SoftLink("/episode_1/infos"), "RecursionError"),
    ],
)
def test_a_misshapen_entry_is_an_input_error(
    store: Path, key: str, value: Any, message: str
) -> None:
    noted = random_log().with_columns(prob=pl.lit(0.5))
    folder = write_minari(noted, "log-v0") / "data"
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        if key in file["episode_1"]:
            del file["episode_1"][key]
        file["episode_1"][key] = value
    with pytest.raises(InputError, match=message):
        read_minari("log-v0")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rewards", [None], "rewards is null at row 0"),
        ("observations", [[1.0, 2.0, 3.0], None], "observations is null at row 1"),
        ("observations", [[1.0, 2.0, 3.0], [1.0, None, 2.0]], "observations is null at row 1"),
        ("observations", [[1.0, 2.0]] * 2, "does not fit the space"),
    ],
)
def test_gaps_in_an_arrow_table_are_named(
    store: Path, column: str, value: list, message: str
) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder = broken(store, "parquet")
    (path,) = (folder / "1").glob("part-*")
    table = parquet.read_table(path)
    kind = arrow.float64() if column == "rewards" else arrow.list_(arrow.float32(), len(value[0]))
    filled = arrow.array((value * 2)[: len(table)], kind)
    parquet.write_table(table.set_column(table.column_names.index(column), column, filled), path)
    with pytest.raises(InputError, match=message):
        read_minari("log-v0")


def test_metadata_under_our_own_names_is_kept_apart(store: Path) -> None:
    folder = broken(store)
    rewrite(folder, offrl_wb=None)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for number in range(3):
            file[f"episode_{number}"].attrs["episode"] = number + 5
    table = read_minari("log-v0").episodes
    assert table["metadata.episode"].to_list() == [5, 6, 7]


def test_a_single_info_may_be_named_alone() -> None:
    write_minari(random_log().with_columns(prob=pl.lit(0.5)), "log-v0")
    rewrite(dataset_folder("log-v0") / "data", offrl_wb=None)
    assert "info.prob" in read_minari("log-v0", infos="prob").transitions.columns


def test_pictures_are_opened_as_jpeg_only() -> None:
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    from offrl_wb.data.minari_store import _pictures

    held = {}
    for form in ("JPEG", "PNG"):
        Image.new("RGB", (32, 32)).save(buffer := BytesIO(), form)
        held[form] = buffer.getvalue()
    assert _pictures([held["JPEG"]]).shape == (1, 32, 32, 3)
    with pytest.raises(UnidentifiedImageError):
        _pictures([held["PNG"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": {"total_steps": 3}}, "'total_steps' is written by Minari itself"),
        ({"environment": 5}, "cannot be written"),
    ],
)
def test_what_minari_would_stumble_over_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_minari(random_log(), "log-v0", **options)


@pytest.mark.parametrize("oid", ["../../../evil", "A" * 40, ""])
def test_a_hash_that_is_none_is_refused(hub: StandIn, log: Dataset, oid: str) -> None:
    hub.more = [{"type": "file", "path": "door/human-v2/data/x", "size": 1, "oid": oid}]
    with pytest.raises(InputError, match="in a way not understood"):
        fetch()


def test_the_token_does_not_leave_the_encrypted_line() -> None:
    from urllib.request import Request

    from offrl_wb.data.minari_store import _TokenStaysHome

    def follow(target: str) -> bool:
        asked = Request("https://hub.test/a", headers={"Authorization": "Bearer secret"})
        found = _TokenStaysHome().redirect_request(asked, None, 302, "", {}, target)
        return found.has_header("Authorization")

    assert follow("https://hub.test/b")
    assert not follow("http://hub.test/b")
    assert not follow("https://other.test/b")
