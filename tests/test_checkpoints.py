"""Checkpoints: whole whenever the process is killed, and refused when they are not ours."""

import json
import os
from pathlib import Path

import polars as pl
import pytest
import torch

from offrl_wb.core.errors import InputError
from offrl_wb.core.records import SCHEMA
from offrl_wb.train import checkpoints
from offrl_wb.train.checkpoints import INDEX, Store, saved_state

ABOUT = {"agent": "iql", "config": {"expectile": 0.7, "hidden": [8]}, "seeds": [0, 1]}
EMPTY = pl.DataFrame(schema=SCHEMA)


def saved(folder: Path, **more: object) -> Store:
    """A store with one checkpoint of one chunk."""
    store = Store(folder, ABOUT)
    store.append({"reward": torch.arange(3.0)})
    store.save({"step": 1} | more, {"agent/w": torch.ones(2), "count": torch.tensor(7)}, EMPTY)
    return store


def test_what_was_saved_is_read_back_in_every_type(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(2, 3, dtype=torch.float64),
        "view": torch.arange(6).reshape(2, 3).T,
        "flag": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "number": torch.tensor(3),
        "nothing": torch.zeros(0),
    }
    Store(tmp_path, ABOUT).save({"step": 4, "lives": None}, tensors, EMPTY)
    found = Store(tmp_path, ABOUT).load()
    assert found is not None
    assert found.place == {"step": 4, "lives": None}
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert found.records.schema == EMPTY.schema


def test_a_later_checkpoint_replaces_the_earlier_one_and_keeps_the_chunks(tmp_path: Path) -> None:
    store = saved(tmp_path)
    store.append({"reward": torch.tensor([3.0])})
    store.save({"step": 2}, {"agent/w": torch.zeros(2)}, EMPTY)
    again = Store(tmp_path, ABOUT)
    found = again.load()
    assert found is not None
    assert found.place["step"] == 2
    assert [chunk["reward"].tolist() for chunk in again.contents()] == [[0, 1, 2], [3]]
    assert len(list(tmp_path.iterdir())) == 5  # index, state, records, two chunks


def test_a_kept_folder_stays_as_long_as_checkpoints_name_it(tmp_path: Path) -> None:
    store = saved(tmp_path)
    kept, forgotten = store.place_for("policies"), store.place_for("policies")
    (kept / "file").write_text("here")
    store.save({"step": 2}, {}, EMPTY, [kept.name])
    assert kept.is_dir()
    assert not forgotten.exists()
    Store(tmp_path, ABOUT).load()
    assert (kept / "file").read_text() == "here"
    store.save({"step": 3}, {}, EMPTY)
    assert not kept.exists()


class Killed(BaseException):
    """In place of kill -9."""


@pytest.mark.parametrize("moment", range(1, 40))
def test_whatever_moment_it_is_killed_the_checkpoint_is_the_old_or_the_new_one(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = saved(tmp_path), 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return function(*arguments, **options)

        return call

    for module, name in (
        (os, "fsync"),
        (os, "replace"),
        (checkpoints, "_told"),
        (checkpoints, "save_records"),
        (Path, "write_text"),
        (Path, "unlink"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    try:
        store.append({"reward": torch.tensor([3.0])})
        store.save({"step": 2}, {"agent/w": torch.zeros(2)}, EMPTY)
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    again = Store(tmp_path, ABOUT)
    found = again.load()
    assert found is not None
    chunks = [chunk["reward"].tolist() for chunk in again.contents()]
    if finished:
        assert found.place["step"] == 2
    if found.place["step"] == 1:
        assert chunks == [[0, 1, 2]]
        assert found.tensors["agent/w"].tolist() == [1, 1]
    else:
        assert chunks == [[0, 1, 2], [3]]
        assert found.tensors["agent/w"].tolist() == [0, 0]
    assert len(list(tmp_path.iterdir())) == 3 + len(chunks)


def test_nothing_saved_is_no_checkpoint_and_leftovers_go(tmp_path: Path) -> None:
    assert Store(tmp_path / "new", ABOUT).load() is None
    store = Store(tmp_path, ABOUT)
    store.append({"reward": torch.zeros(1)})
    (tmp_path / "mine.txt").write_text("not ours")
    assert Store(tmp_path, ABOUT).load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"agent": "cql"}, 'is of agent "iql", and this run is of agent "cql"'),
        ({"config": {"expectile": 0.9, "hidden": [8]}}, "is of expectile 0.7"),
        ({"seeds": [0, 1, 2]}, r"seeds \[0, 1\], and this run is of seeds \[0, 1, 2\]"),
        ({"more": "x" * 99}, "is of more null, and this run is of more .*…"),
    ],
)
def test_a_checkpoint_of_another_run_is_one_line(change: dict, told: str, tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        Store(tmp_path, ABOUT | change).load()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    for change in ({"version": "9.9"}, {"format": 99}):
        (tmp_path / INDEX).write_text(json.dumps(index | change))
        with pytest.raises(InputError, match=r"written by version .* and this is version"):
            Store(tmp_path, ABOUT).load()


@pytest.mark.parametrize("kind", ["state-*", "chunk-*", "records-*"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = next(tmp_path.glob(kind))
    raw = path.read_bytes()

    def told() -> str:
        def read() -> None:
            store = Store(tmp_path, ABOUT)
            store.load()
            list(store.contents())

        with pytest.raises(InputError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "start the run again" in str(caught.value)
        return str(caught.value)

    path.write_bytes(raw[:-3])
    assert "cut short" in told()
    path.write_bytes(raw + b"x")
    assert "too long" in told()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "changed or damaged" in told()
    path.unlink()
    assert "is missing" in told()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "x"}', '{"kind": "offrl_wb.checkpoint"}']
)
def test_an_index_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(InputError, match="no whole index of a checkpoint"):
        Store(tmp_path, ABOUT).load()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": None}, "written by version"),
        ({"about": None}, "about is amiss"),
        ({"place": []}, "place is amiss"),
        ({"chunks": None}, "chunks is amiss"),
        ({"chunks": [{"name": "chunk"}]}, "chunks is amiss"),
        ({"kept": [3]}, "kept is amiss"),
        ({"tensors": {"name": "../state", "size": 3, "sha256": "0"}}, "tensors is amiss"),
        ({"records": {"name": "records", "size": "3", "sha256": "0"}}, "records is amiss"),
    ],
)
def test_a_foreign_index_is_one_line(change: dict, told: str, tmp_path: Path) -> None:
    index = saved(tmp_path).folder / INDEX
    found = json.loads(index.read_text())
    index.write_text(json.dumps(found | change))
    with pytest.raises(InputError, match=told) as problem:
        Store(tmp_path, ABOUT).load()
    assert str(tmp_path) in str(problem.value)
    assert "start the run again" in str(problem.value)
    for name in change:
        index.write_text(json.dumps({n: v for n, v in found.items() if n != name}))
        with pytest.raises(InputError, match="is no whole index of a checkpoint"):
            saved_state(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        saved(tmp_path / "file" / "run")


def test_the_agents_state_is_found_in_the_folder_of_a_run(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint")
    for place in (tmp_path, tmp_path / "checkpoint"):
        assert {n: t.tolist() for n, t in saved_state(place).items()} == {"w": [1, 1]}
    with pytest.raises(InputError, match="there is no checkpoint in"):
        saved_state(tmp_path / "elsewhere")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"pip install 'offrl_wb\[deep\]'"):
        saved(tmp_path)
