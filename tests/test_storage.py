"""Native save and load: nothing is lost, nothing is half written, nothing hostile is run."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ScoreReference, Spec
from offrl_wb.data.storage import load, read_wide, save
from tests.made_logs import log

SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=15, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_a_saved_dataset_comes_back_whole(
    tmp_path: Path, lengths: list[int], discrete: bool, terminal: bool
) -> None:
    made = log(lengths, discrete=discrete, terminal=terminal)
    spec = Spec(
        made.spec.observation_space, made.spec.action_space, 0.97, ScoreReference(1.5, 9), None, "x"
    )
    made = Dataset(made.transitions, made.episodes, spec, made.origin).label("again")
    again = load(save(made, tmp_path / "log"), verify=True)
    assert again.transitions.equals(made.transitions)
    assert again.episodes.equals(made.episodes)
    assert again.spec == made.spec
    assert again.provenance.to_json() == made.provenance.to_json()
    assert len(list((tmp_path / "log").iterdir())) == 3


def test_unknown_final_observations_and_broken_chains_come_back(tmp_path: Path) -> None:
    seen = np.arange(8.0).reshape(4, 2)
    unknown = Dataset.from_arrays(seen, np.zeros(4, int), np.zeros(4), [0, 1, 0, 1])
    broken = Dataset.from_arrays(
        seen, np.zeros(4, int), np.zeros(4), [0, 1, 0, 1], next_observations=seen + 5
    )
    for made in (unknown, broken, unknown.select([0, 0, 1])):
        again = Dataset.load(made.save(tmp_path / "log"))
        assert again.content_hash == made.content_hash
        assert again.episodes["final_obs"].null_count() == made.episodes["final_obs"].null_count()


def test_other_tools_read_one_number_a_column(tmp_path: Path) -> None:
    folder = save(log([3, 2]), tmp_path / "log")
    columns = pl.read_parquet(next(folder.glob("transitions-*"))).columns
    assert columns[:8] == [
        "episode",
        "step",
        "obs_0",
        "obs_1",
        "obs_2",
        "action_0",
        "action_1",
        "reward",
    ]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
from offrl_wb.data.dataset import Dataset
from offrl_wb.data import storage
rng = np.random.default_rng(1)
big = Dataset.from_arrays(rng.normal(size=(400_000, 6)), rng.normal(size=(400_000, 2)),
                          np.zeros(400_000), np.arange(1, 400_001) % 1000 == 0)
big.content_hash
print("ready", flush=True)
while True:
    storage.save(big, {path!r})
    print("saved", flush=True)
"""


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.12, 0.3])
def test_a_writer_killed_at_any_moment_leaves_a_whole_dataset(tmp_path: Path, delay: float) -> None:
    first = log([3, 2])
    where = save(first, tmp_path / "log")
    code = WRITER.format(tests=str(Path(__file__).parent), path=str(where))
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "ready"
        time.sleep(delay)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.communicate()[0]
    found = load(where, verify=True)
    if "saved" not in rest:
        assert len(found) in (len(first), 400_000)
    else:
        assert len(found) == 400_000
    assert load(save(first, where), verify=True).content_hash == first.content_hash
    assert len(list(where.iterdir())) == 3


def damaged(folder: Path, **changes: object) -> None:
    """Change entries of the index."""
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "other"}, "is no index of a dataset"),
        ({"spec": {}}, "spec cannot be read"),
        ({"spec": None}, "spec cannot be read"),
        ({"provenance": []}, "provenance of the dataset cannot be read"),
        ({"files": {}}, "is damaged"),
        ({"rows": {"transitions": 4, "episodes": 2}}, "has 5 rows, and the index says 4"),
        ({"files": {"transitions": "../x.parquet", "episodes": "y"}}, "outside its folder"),
        ({"content": "00"}, "its content is not what was saved"),
        ({"vectors": {"transitions": {"obs": 9}, "episodes": {}}}, "there is no column obs_3"),
    ],
)
def test_a_damaged_index_is_told(tmp_path: Path, changes: dict, message: str) -> None:
    where = save(log([3, 2]), tmp_path / "log")
    damaged(where, **changes)
    with pytest.raises(InputError, match=message):
        load(where, verify=True)


@settings(max_examples=20, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(st.floats(0, 0.999), st.booleans())
def test_a_cut_or_garbled_file_is_told(tmp_path: Path, share: float, cut: bool) -> None:
    where = save(log([30, 20]), tmp_path / "log")
    path = next(where.glob("transitions-*"))
    content = bytearray(path.read_bytes())
    place = int(share * len(content))
    if cut:
        content = content[:place]
    else:
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    try:
        load(where, verify=True)
    except InputError:
        return
    assert not cut, "half a file was taken for a dataset"
    assert load(where).content_hash == log([30, 20]).content_hash  # an unused byte


def test_what_is_no_dataset_is_neither_read_nor_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path, message in ((tmp_path / "notes", "not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=message):
            save(log([2]), path)
    for path in (tmp_path / "notes", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no dataset"):
            load(path)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_a_hostile_pickle_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    where = save(log([3, 2]), tmp_path / "log")
    next(where.glob("transitions-*")).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="cannot be read"):
        load(where)
    assert not (tmp_path / "exploded").exists()


def test_columns_that_cannot_be_kept_are_told(tmp_path: Path) -> None:
    made = log([2, 3])
    with pytest.raises(InputError, match="name of a vector's part"):
        save(made.with_columns(obs_1=pl.lit(1)), tmp_path / "log")
    objects = made.transitions.with_columns(thing=pl.Series([object()] * 5, dtype=pl.Object))
    with pytest.raises(InputError, match="Python objects"):
        save(Dataset(objects, made.episodes, made.spec, made.origin), tmp_path / "log")


def test_batches_fill_vectors_in_order(tmp_path: Path) -> None:
    rows = 300_000
    frame = pl.DataFrame({"b": np.arange(rows) * 2.0, "a": np.arange(rows), "t": np.arange(rows)})
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=10_000)
    source = pl.scan_parquet(tmp_path / "x.parquet")
    found = read_wide(source, {"obs": ["a", "b"]})
    assert np.array_equal(found["obs"].to_numpy(), frame.select("a", "b").to_numpy())
    few = read_wide(source.filter(pl.col("t") % 1000 == 7), {"obs": ["a", "b"]})
    assert few["t"].to_list() == list(range(7, rows, 1000))
    whole = read_wide(source, {"obs": ["a", "t"]})
    assert whole["obs"].dtype == pl.Array(pl.Int64, 2)
    with pytest.raises(InputError, match="there is no column c"):
        read_wide(source, {"obs": ["a", "c"]})
    with pytest.raises(InputError, match="empty at row 250000"):
        read_wide(
            frame.with_columns(a=pl.when(pl.col("t") == 250_000).then(None).otherwise("a")).lazy(),
            {"obs": ["a"]},
        )


@pytest.mark.parametrize("kind", ["bytes", "flags", "holes", "texts", "grids"])
def test_further_vector_columns_come_back_in_their_type(tmp_path: Path, kind: str) -> None:
    made = log([3, 2])
    column = {
        "bytes": pl.Series(np.arange(10).reshape(5, 2)).cast(pl.Array(pl.UInt8, 2)),
        "flags": pl.Series(np.arange(10).reshape(5, 2) > 3),
        "holes": pl.Series([[1.0, 2.0], None, [None, 4.0], None, [5.0, 6.0]]).cast(
            pl.Array(pl.Float32, 2)
        ),
        "texts": pl.Series([["a", "b"]] * 5, dtype=pl.Array(pl.String, 2)),
        "grids": pl.Series(np.arange(20.0).reshape(5, 2, 2)),
    }[kind]
    wide = made.with_columns(x=column)
    again = load(save(wide, tmp_path / "log"), verify=True)
    assert again.transitions.equals(wide.transitions)
    assert again.transitions["x"].dtype == column.dtype


def test_a_file_of_the_users_own_stays(tmp_path: Path) -> None:
    folder = save(log([2]), tmp_path / "log")
    own = folder / "transitions-notes.txt"
    own.write_text("mine")
    save(log([3]), folder)
    assert own.read_text() == "mine"
    assert len(list(folder.iterdir())) == 4


def test_an_index_that_claims_endless_vectors_is_refused(tmp_path: Path) -> None:
    folder = save(log([2]), tmp_path / "log")
    index = json.loads((folder / "dataset.json").read_text())
    index["vectors"]["transitions"]["obs"] = 10**12
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="it is damaged"):
        load(folder)
