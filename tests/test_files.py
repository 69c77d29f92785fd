"""Files of other libraries: what they mean, what is refused, and that what is written is read."""

import io
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data import array_files, files
from offrl_wb.data.array_files import open_arrays, save_hdf5, save_npz
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.episode_files import (
    read_episodes,
    read_ogbench,
    write_episodes,
    write_ogbench,
)
from offrl_wb.data.files import (
    NEORL2_MD5,
    NEORL2_SCORES,
    neorl2_identity,
    read,
    read_d4rl,
    read_neorl2,
    recognise,
    write_d4rl,
    write_neorl2,
)
from offrl_wb.data.spec import ImageFile, ScoreReference, Spec

from .shared_data import neorl2_file

h5py = pytest.importorskip("h5py")


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block is refused in one line that holds all these words."""
    with pytest.raises(InputError) as caught:
        yield
    for word in words:
        assert str(word) in str(caught.value), f"{word!r} is not in {caught.value}"


def outcome(reader: Callable[[Path], Dataset], path: Path) -> Dataset | str:
    """What a reader makes of a file: a dataset, or the one line with which it refuses it."""
    try:
        return reader(path)
    except InputError as error:
        return str(error)


def d4rl_arrays(rows: int = 12, **changed: Any) -> dict[str, np.ndarray]:
    """A D4RL log in memory: a terminal at row 4, a time-out at 8, the rest open."""
    place = np.arange(rows, dtype=np.float32)
    held = {
        "observations": np.stack([place, -place], axis=1),
        "actions": place[:, None] / 10,
        "rewards": place,
        "terminals": place == 4,
        "timeouts": place == 8,
        "next_observations": np.stack([place, -place], axis=1) + [1, -1],
    }
    held["next_observations"] = held["next_observations"].astype(np.float32)
    held |= {key: np.asarray(value) for key, value in changed.items()}
    return {key: value for key, value in held.items() if value.dtype != object}


NONE = np.array(None)  # leaves a key out of `d4rl_arrays`


def stored(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    (save_npz if path.suffix == ".npz" else save_hdf5)(path, arrays)
    return path


# What a D4RL file means


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz"])
def test_d4rl_with_next_observations_keeps_every_row(tmp_path: Path, name: str):
    dataset = read_d4rl(stored(tmp_path / name, d4rl_arrays()))
    assert dataset.lengths.tolist() == [5, 4, 3]
    assert np.array_equal(dataset.arrays().next_observations, d4rl_arrays()["next_observations"])
    assert dataset.arrays().terminated.nonzero()[0].tolist() == [4]
    assert dataset.arrays().truncated.nonzero()[0].tolist() == [8]
    assert "next_obs" not in dataset.transitions.columns
    assert dataset.transitions["obs"].dtype == pl.Array(pl.Float32, 2)


def test_d4rl_without_next_observations_drops_the_last_row_of_cut_episodes(tmp_path: Path):
    dataset = read_d4rl(stored(tmp_path / "log.hdf5", d4rl_arrays(next_observations=None)))
    assert dataset.lengths.tolist() == [5, 3, 2]
    assert dataset.episodes["final_obs"].to_list() == [None, [8, -8], [11, -11]]
    assert dataset.arrays().rewards.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert dataset.provenance.outcome["rows_given_up"] == 2


def test_a_time_out_is_never_a_terminal(tmp_path: Path):
    flags = np.arange(12) % 3 == 2
    held = d4rl_arrays(terminals=np.zeros(12, bool), timeouts=flags)
    for arrays in (
        held,
        d4rl_arrays(terminals=np.zeros(12), timeouts=flags, next_observations=None),
    ):
        dataset = read_d4rl(stored(tmp_path / "log.npz", arrays))
        assert not dataset.arrays().terminated.any()
        assert dataset.arrays().truncated[dataset.ends].all()


def test_d4rl_without_time_outs_ends_at_terminals_only(tmp_path: Path):
    path = stored(tmp_path / "log.hdf5", d4rl_arrays(timeouts=None))
    dataset = read_d4rl(path)
    assert dataset.lengths.tolist() == [5, 7]
    assert not dataset.arrays().truncated.any()
    assert dataset.provenance.outcome["time_outs"] == "none"


def test_a_horizon_cuts_as_d4rl_counts(tmp_path: Path):
    path = stored(tmp_path / "log.hdf5", d4rl_arrays(timeouts=None, next_observations=None))
    dataset = read_d4rl(path, horizon=3)
    # Rows 2, 7 and 10 are the third of their episode; the terminal at row 4 starts the count anew.
    assert dataset.arrays().rewards.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert dataset.lengths.tolist() == [2, 2, 2, 2]
    assert dataset.provenance.outcome["time_outs"] == "every 3 steps"


def test_broken_chains_can_end_episodes(tmp_path: Path):
    arrays = d4rl_arrays(timeouts=None)
    arrays["next_observations"][6] = 99
    path = stored(tmp_path / "log.npz", arrays)
    assert "next_obs" in read_d4rl(path).transitions.columns
    split = read_d4rl(path, at_breaks=True)
    assert split.lengths.tolist() == [5, 2, 5]
    assert split.arrays().truncated.nonzero()[0].tolist() == [6]


def test_horizons_are_refused_where_they_mean_nothing(tmp_path: Path):
    complete = stored(tmp_path / "a.npz", d4rl_arrays())
    bare = stored(tmp_path / "b.npz", d4rl_arrays(timeouts=None, next_observations=None))
    with refused("a.npz", "timeouts"):
        read_d4rl(complete, horizon=3)
    with refused("horizon", "0"):
        read_d4rl(bare, horizon=0)
    with refused("b.npz", "next_observations"):
        read_d4rl(bare, at_breaks=True)


def test_infos_become_columns_and_metadata_the_outcome(tmp_path: Path):
    more = {
        "infos/qpos": np.arange(24.0).reshape(12, 2),
        "infos/reward": np.ones(12),
        "infos/policy/mean": np.zeros((12, 3, 2)),
        "success": np.arange(12) > 3,
        "metadata/algorithm": np.array("SAC"),
        "metadata/iteration": np.array([3]),
        "metadata/policy/weight": np.zeros((4, 4)),
        "version": np.array(2),
    }
    path = stored(tmp_path / "log.hdf5", d4rl_arrays() | more)
    dataset = read_d4rl(path)
    frame = dataset.transitions
    assert frame["qpos"].to_list()[3] == [6, 7]
    assert frame["info_reward"].to_list() == [1] * 12
    assert frame["policy/mean"].dtype == pl.Array(pl.Float64, 6)
    assert frame["success"].sum() == 8
    outcome = dataset.provenance.outcome
    assert outcome["metadata"] == {
        "algorithm": "SAC",
        "iteration": 3,
        "policy/weight": "array (4, 4)",
    }
    assert outcome["ignored"] == ["version"]
    few = read_d4rl(path, infos=["qpos"])
    assert set(few.transitions.columns) - set(read_d4rl(path, infos=False).transitions.columns) == {
        "qpos"
    }
    with refused("log.hdf5", "infos/height"):
        read_d4rl(path, infos=["height"])


def test_named_parts_are_flattened_by_name(tmp_path: Path):
    parts = {
        f"{group}/{name}": np.full((12, width), number, dtype=np.float32)
        for group in ("observations", "next_observations")
        for name, width, number in (("pose", 3, 1), ("goal/place", 2, 2))
    }
    arrays = d4rl_arrays(observations=None, next_observations=None) | parts
    dataset = read_d4rl(stored(tmp_path / "log.hdf5", arrays))
    assert dataset.arrays().observations[0].tolist() == [2, 2, 1, 1, 1]
    assert list(dataset.spec.observation_space["goal"].spaces) == ["place"]
    assert dataset.observations([0])["pose"].tolist() == [[1, 1, 1]]
    again = read_d4rl(path := tmp_path / "log.hdf5", spec=dataset.spec)
    assert again.content_hash == dataset.content_hash
    assert recognise(path) == "d4rl"


def test_a_nested_spec_orders_named_parts(tmp_path: Path):
    names = {"observations/goal/x": 1, "observations/goal/y": 2, "observations/pose": 3}
    parts = {key: np.full((12, 1), value, dtype=np.float32) for key, value in names.items()}
    arrays = d4rl_arrays(observations=None, next_observations=None) | parts
    one = spaces.Box(-9, 9, (1,), dtype=np.float32)
    goal = spaces.Dict({"y": one, "x": one})
    spec = Spec(spaces.Dict({"pose": one, "goal": goal}), one)
    dataset = read_d4rl(stored(tmp_path / "log.npz", arrays), spec=spec)
    seen = dataset.observations([0])
    assert (seen["pose"].item(), seen["goal"]["x"].item(), seen["goal"]["y"].item()) == (3, 1, 2)


def test_discrete_columns_of_width_one_are_discrete(tmp_path: Path):
    arrays = d4rl_arrays(actions=np.arange(12)[:, None] % 3, observations=np.arange(12) % 5 > 2)
    dataset = read_d4rl(
        stored(tmp_path / "log.npz", arrays | {"next_observations": np.zeros(12, bool)})
    )
    assert dataset.spec.action_space == spaces.Discrete(3)
    assert dataset.spec.observation_space == spaces.Discrete(2)


@pytest.mark.parametrize("kind", [">f8", "<f2", ">i4", "u1", "g"])
def test_any_kind_of_number_is_read(tmp_path: Path, kind: str):
    values = np.arange(24).reshape(12, 2).astype(kind)
    arrays = d4rl_arrays(observations=values, next_observations=None)
    dataset = read_d4rl(stored(tmp_path / "log.npz", arrays))
    assert dataset.arrays().observations[3].tolist() == [6, 7]


def test_columns_in_fortran_order_are_read(tmp_path: Path):
    arrays = d4rl_arrays()
    arrays["observations"] = np.asfortranarray(arrays["observations"])
    dataset = read_d4rl(stored(tmp_path / "log.npz", arrays))
    assert dataset.content_hash == read_d4rl(stored(tmp_path / "b.npz", d4rl_arrays())).content_hash


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_images_are_unpacked_and_referred_to(tmp_path: Path, suffix: str):
    frames = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    arrays = d4rl_arrays(observations=frames, next_observations=frames)
    path = stored(tmp_path / f"log{suffix}", arrays)
    with refused("log", "'observations'", "images="):
        read_d4rl(path)
    dataset = read_d4rl(path, images=tmp_path / "frames.npy")
    assert dataset.spec.images == ImageFile(str(tmp_path / "frames.npy"))
    assert dataset.lengths.tolist() == [5, 3, 2]
    assert np.array_equal(
        dataset.observations(np.arange(10)), frames[dataset.arrays().observations]
    )
    assert dataset.episodes["final_obs"].to_list() == [None, 8, 11]
    write_d4rl(dataset, tmp_path / "again.hdf5")
    again = read_d4rl(tmp_path / "again.hdf5", images=tmp_path / "more.npy")
    assert np.array_equal(again.observations(np.arange(10)), dataset.observations(np.arange(10)))
    last = again.spec.images.open()[again.episodes["final_obs"].drop_nulls().to_list()]
    assert np.array_equal(last, frames[[8, 11]])
    with refused("images"):
        write_neorl2(dataset, tmp_path / "no.npz")


# What is refused


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rewards": None}, ["rewards", "observations"]),
        ({"observations": None}, ["observations"]),
        ({"rewards": np.zeros(11)}, ["'rewards', row 11", "11 rows"]),
        ({"actions": np.zeros((13, 1))}, ["'actions', row 12", "13 rows"]),
        ({"rewards": np.zeros((12, 2))}, ["'rewards'", "(12, 2)"]),
        ({"rewards": 1.5}, ["'rewards'", "single"]),
        ({"rewards": ["a"] * 12}, ["'rewards'", "numbers"]),
        ({"actions": np.zeros((12, 1), complex)}, ["'actions'", "numbers"]),
        ({"terminals": np.where(np.arange(12) == 7, np.nan, 0)}, ["'terminals', row 7", "nan"]),
        ({"timeouts": np.where(np.arange(12) == 3, 0.5, 0)}, ["'timeouts', row 3", "0.5"]),
        ({"terminals": np.zeros((12, 2))}, ["'terminals'", "(12, 2)"]),
        ({"actions": np.where(np.arange(12) == 5, -1, 0)}, ["'actions', row 5", "-1"]),
        ({"next_observations": np.zeros((12, 3))}, ["'next_observations'", "(12, 3)"]),
        ({"infos/qpos": np.zeros(7)}, ["'infos/qpos', row 7"]),
    ],
)
def test_bad_keys_are_named_with_their_first_bad_row(tmp_path, suffix, changed, words):
    path = stored(tmp_path / f"log{suffix}", d4rl_arrays(**changed))
    with refused(path.name, *words):
        read_d4rl(path)


def test_an_empty_log_is_refused(tmp_path: Path):
    path = stored(tmp_path / "log.npz", {k: v[:0] for k, v in d4rl_arrays().items()})
    with refused("log.npz", "at least one"):
        read_d4rl(path)


class Hostile:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("reader", [read_d4rl, read_neorl2, read_ogbench, read_episodes, read])
@pytest.mark.parametrize("needed", [True, False])
def test_a_hostile_pickle_is_never_opened(tmp_path: Path, reader, needed: bool):
    target, bomb = tmp_path / "pwned", np.empty(12, dtype=object)
    bomb[:] = [Hostile(target)] * 12
    arrays = d4rl_arrays() | {"obs": np.zeros((12, 2)), "action": np.zeros((12, 2))}
    arrays |= {"rewards" if needed else "notes": bomb}
    np.savez(tmp_path / "log.npz", **arrays)
    with refused("log.npz", "pickled Python objects"):
        reader(tmp_path / "log.npz")
    np.save(tmp_path / "log.npy", bomb, allow_pickle=True)
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(Hostile(target)))
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(Hostile(target), protocol=0))
    (tmp_path / "disguised.npz").write_bytes(pickle.dumps(Hostile(target), protocol=4))
    for name in ("log.npy", "log.pkl", "old.pkl", "disguised.npz"):
        with refused(name):
            reader(tmp_path / name)
    assert not target.exists()
    np.load(tmp_path / "log.npy", allow_pickle=True)
    assert target.exists()  # the bomb was armed


def test_a_pytorch_file_is_no_npz(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with refused("model.npz", "data.pkl"):
        open_arrays(tmp_path / "model.npz")


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros((4, 2)))
    raw = buffer.getvalue().replace(b"(4, 2), ", b"(9**9,),")
    raw = raw.replace(b"(9**9,),", b"(99999,),"[:8])
    for body in (buffer.getvalue()[:-8], buffer.getvalue().replace(b"(4, 2)", b"(9, 9)")):
        with zipfile.ZipFile(tmp_path / "log.npz", "w") as archive:
            archive.writestr("observations.npy", body)
        with refused("log.npz", "'observations'", "bytes"):
            open_arrays(tmp_path / "log.npz")
    with zipfile.ZipFile(tmp_path / "log.npz", "w") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x03\x00" + raw[8:])
    with refused("log.npz", "'observations'", "version"):
        open_arrays(tmp_path / "log.npz")


def hdf5(path: Path, change: Callable[[Any], None]) -> Path:
    save_hdf5(path, d4rl_arrays())
    with h5py.File(path, "a") as file:
        change(file)
    return path


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((12,), "f4")
    layout[:] = h5py.VirtualSource(file["rewards"])
    file.create_virtual_dataset("view", layout)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.__setitem__("more", h5py.ExternalLink("/etc/x", "/y")), ["'more'", "another"]),
        (virtual, ["'view'", "outside"]),
        (
            lambda f: f.create_dataset("out", (3,), "u1", external=[("/etc/hostname", 0, 3)]),
            ["'out'", "outside"],
        ),
        (
            lambda f: f.create_dataset("refs", data=[f.ref], dtype=h5py.ref_dtype),
            ["'refs'", "plain numbers"],
        ),
        (
            lambda f: f.create_dataset("lists", (2,), dtype=h5py.vlen_dtype(np.int32)),
            ["'lists'", "plain numbers"],
        ),
        (
            lambda f: f.create_dataset("huge", (2**40, 17), "f4", chunks=(1024, 17)),
            ["'huge'", "claims"],
        ),
    ],
)
def test_hdf5_that_points_elsewhere_is_refused(tmp_path: Path, change, words):
    with refused("log.hdf5", *words):
        read_d4rl(hdf5(tmp_path / "log.hdf5", change))


def test_groups_that_hold_each_other_and_links_inside_the_file_are_walked_once(tmp_path: Path):
    def loop(file: Any) -> None:
        inner = file.create_group("infos")
        inner["again"] = file["infos"]
        inner["qpos"] = np.zeros(12)
        inner["soft"] = h5py.SoftLink("/infos/qpos")
        inner["nowhere"] = h5py.SoftLink("/infos/gone")
        file["nothing"] = h5py.Empty("f4")
        file.create_dataset("note", data="hello")

    dataset = read_d4rl(hdf5(tmp_path / "log.hdf5", loop))
    assert {"qpos", "soft"} <= set(dataset.transitions.columns)


def test_hdf5_after_a_user_block_is_recognised(tmp_path: Path):
    with h5py.File(tmp_path / "log.hdf5", "w", userblock_size=1024) as file:
        for key, values in d4rl_arrays().items():
            file[key] = values
    assert len(read(tmp_path / "log.hdf5")) == 12


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, suffix: str):
    path = stored(tmp_path / f"log{suffix}", d4rl_arrays())
    raw = path.read_bytes()
    for share in np.linspace(0, 0.99, 40):
        path.write_bytes(raw[: int(len(raw) * share)])
        with refused(path.name):
            read_d4rl(path)


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_npz_is_refused_or_read_and_never_anything_else(data: st.DataObject):
    chain = made(data.draw(st.integers(0, 9)))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log.npz"
        write, reader = data.draw(
            st.sampled_from(
                [
                    (write_d4rl, read_d4rl),
                    (write_neorl2, read_neorl2),
                    (write_ogbench, read_ogbench),
                    (write_episodes, read_episodes),
                ]
            )
        )
        write(chain, path)
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        told = outcome(data.draw(st.sampled_from([reader, read])), path)
        assert str(path) in told if isinstance(told, str) else len(told) > 0


@settings(max_examples=40)
@given(st.data())
def test_keys_of_any_shape_and_type_are_refused_or_read(data: st.DataObject):
    keys = ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"]
    keys += ["valids", "masks", "is_last", "episode", "infos/x", "episodes/y", "metadata/z"]
    kinds = ["f4", "f8", "i8", "u1", "?", "U3", "c8", "M8[s]", "i2"]
    arrays = d4rl_arrays()
    for _ in range(data.draw(st.integers(1, 4))):
        shape = data.draw(
            st.sampled_from([(), (0,), (12,), (11,), (12, 1), (12, 2), (12, 2, 2), (1,)])
        )
        kind = data.draw(st.sampled_from(kinds))
        fill = data.draw(st.integers(-1, 2)) if kind != "U3" else "abc"
        arrays[data.draw(st.sampled_from(keys))] = np.full(shape, fill).astype(kind)
    reader = data.draw(st.sampled_from([read_d4rl, read_ogbench, read_episodes, read]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log.npz"
        save_npz(path, arrays)
        told = outcome(reader, path)
        assert str(path) in told if isinstance(told, str) else 0 < len(told) <= 12


def test_a_damaged_chunk_of_hdf5_is_named(tmp_path: Path):
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in d4rl_arrays().items():
            file.create_dataset(key, data=values, compression="gzip", fletcher32=True)
        start = file["rewards"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[start + 2] ^= 255
    path.write_bytes(raw)
    with refused("log.hdf5", "'rewards'", "damaged"):
        read_d4rl(path)


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch):
    path = stored(tmp_path / "log.hdf5", d4rl_arrays())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused('pip install "offrl_wb[data]"'):
        read_d4rl(path)
    assert len(read_d4rl(stored(tmp_path / "log.npz", d4rl_arrays()))) == 12


# What is written is read again


SPACES = {
    "box": (spaces.Box(-9, 9, (3,), dtype=np.float32), spaces.Box(-1, 1, (2,), dtype=np.float64)),
    "discrete": (spaces.Discrete(40), spaces.Discrete(4)),
    "multi": (spaces.MultiDiscrete([40, 40, 40]), spaces.MultiDiscrete([4, 4])),
    "dict": (
        spaces.Dict(
            {
                "goal": spaces.Box(-9, 9, (2,), dtype=np.float64),
                "pose": spaces.Box(-9, 9, (1,), dtype=np.float64),
            }
        ),
        spaces.Discrete(4),
    ),
}


def values_in(generator: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    if kind == "box":
        return generator.uniform(-1, 1, (rows, 3)).astype(np.float32)
    if kind == "dict":
        return generator.uniform(-1, 1, (rows, 3))
    return generator.integers(0, 40, rows if kind == "discrete" else (rows, 3))


def actions_in(generator: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    if kind == "box":
        return generator.uniform(-1, 1, (rows, 2))
    return generator.integers(0, 4, (rows, 2) if kind == "multi" else rows)


def made(seed: int, kind: str = "box", extra: bool = True, closed: bool = True) -> Dataset:
    """A random log with every kind of column: some episodes terminate, some are cut."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 6, 4)
    size, ends = int(lengths.sum()), np.cumsum(lengths) - 1
    over, cut = np.zeros(size, bool), np.zeros(size, bool)
    over[ends[:2]], cut[ends[2:]] = True, True
    if not closed:
        cut[ends[3]], cut[ends[0]] = False, True  # one is left open, one is both
    final = np.ma.array(values_in(generator, kind, 4), mask=False)
    final[1] = np.ma.masked
    columns = {
        "behaviour_prob": generator.random(size),
        "label": pl.Series([None if n % 3 == 1 else f"row {n} ✓" for n in range(size)]),
        "level": pl.Series(np.arange(size), dtype=pl.UInt8),
        "flagged": pl.Series([None if n % 4 == 2 else n % 2 == 0 for n in range(size)]),
        "qpos": generator.random((size, 2)).astype(np.float32),
        "info_reward": np.arange(size, dtype=np.float32),
    }
    about = {
        "task": ["push", "reach", "push", ""],
        "success": pl.Series([True, None, False, None]),
        "goal": np.arange(8.0).reshape(4, 2),
        "length": [7, 7, 7, 7],
    }
    return Dataset.from_arrays(
        values_in(generator, kind, size),
        actions_in(generator, kind, size),
        generator.normal(size=size).astype(np.float32 if kind == "box" else np.float64),
        over,
        cut,
        episode=np.repeat(np.arange(4), lengths),
        step=None if closed else np.arange(size) + 5,
        final_observations=final,
        spec=Spec(*SPACES[kind], discount=0.9, score=ScoreReference(0, 5, "us"), name="toy"),
        columns=columns if extra else None,
        episode_columns=about if extra else None,
    )


def same(first: Dataset, second: Dataset) -> None:
    """Equal frames and specs, columns in any order."""
    for name in ("transitions", "episodes"):
        left, right = getattr(first, name), getattr(second, name)
        assert sorted(left.columns) == sorted(right.columns)
        for column in left.columns:
            assert left[column].dtype == right[column].dtype, column
            assert left[column].equals(right[column], null_equal=True), column
    assert first.spec == second.spec


ROUND_TRIPS: dict[str, tuple[str, Callable[..., Path], Callable[..., Dataset]]] = {
    "d4rl": ("log.hdf5", write_d4rl, read_d4rl),
    "d4rl in npz": ("log.npz", write_d4rl, read_d4rl),
    "neorl2": ("log.npz", write_neorl2, read_neorl2),
    "ogbench": ("log.npz", write_ogbench, read_ogbench),
    "episodes in one file": ("log.npz", write_episodes, read_episodes),
    "episodes in a folder": ("log", write_episodes, read_episodes),
}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_written_is_read_again(tmp_path: Path, name: str, kind: str):
    file, write, reader = ROUND_TRIPS[name]
    dataset = made(3, kind)
    assert write(dataset, tmp_path / file) == tmp_path / file
    again = reader(tmp_path / file)
    same(dataset, again)
    same(dataset, read(tmp_path / file))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(set(ROUND_TRIPS) - {"episodes in a folder"})),
    extra=st.booleans(),
    kind=st.sampled_from(sorted(SPACES)),
)
def test_any_log_survives_any_format(seed: int, name: str, extra: bool, kind: str):
    file, write, reader = ROUND_TRIPS[name]
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(seed, kind, extra)
        write(dataset, Path(folder) / file)
        same(dataset, reader(Path(folder) / file))


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_steps_and_double_flags_survive_and_open_episodes_come_back_as_cut(tmp_path, name):
    file, write, reader = ROUND_TRIPS[name]
    dataset = made(5, closed=False)
    write(dataset, tmp_path / file)
    marked = dataset.transitions["truncated"].to_numpy().copy()
    marked[-1] = True
    frame = dataset.transitions.with_columns(truncated=marked)
    same(replace(dataset, transitions=frame), reader(tmp_path / file))


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_d4rl_without_next_observations_survives(tmp_path: Path, suffix: str):
    path, dataset = tmp_path / f"log{suffix}", made(2)
    write_d4rl(dataset, path, next_observations=False)
    assert "next_observations" not in open_arrays(path).headers
    over = dataset.arrays().terminated[dataset.ends]
    final = pl.when(pl.Series(~over)).then("final_obs").alias("final_obs")
    same(replace(dataset, episodes=dataset.episodes.with_columns(final)), read_d4rl(path))


def test_other_tools_read_the_same_transitions_without_next_observations(tmp_path: Path):
    dataset = made(4)
    write_d4rl(dataset, tmp_path / "log.hdf5", next_observations=False)
    with h5py.File(tmp_path / "log.hdf5") as file:
        raw = {key: file[key][:] for key in ("observations", "rewards", "terminals", "timeouts")}
    # qlearning_dataset skips a row with a time-out, and takes the next row for what came next.
    kept = [n for n in range(len(raw["rewards"])) if not raw["timeouts"][n]]
    mine = dataset.arrays()
    assert np.array_equal(raw["rewards"][kept], mine.rewards)
    assert np.array_equal(raw["terminals"][kept], mine.terminated)
    going = ~mine.terminated
    following = raw["observations"][np.array(kept)[going] + 1]
    assert np.array_equal(following, mine.next_observations[going])


def test_broken_chains_survive_where_a_format_holds_next_observations(tmp_path: Path):
    arrays = d4rl_arrays()
    arrays["next_observations"][[1, 4]] = 50
    dataset = read_d4rl(stored(tmp_path / "log.npz", arrays))
    assert "next_obs" in dataset.transitions.columns
    for name in ("d4rl", "d4rl in npz", "neorl2"):
        file, write, reader = ROUND_TRIPS[name]
        write(dataset, tmp_path / file)
        again = reader(tmp_path / file)
        assert again.transitions["next_obs"].equals(dataset.transitions["next_obs"])
    for write in (write_ogbench, write_episodes):
        with refused("once"):
            write(dataset, tmp_path / "no.npz")
    with refused("next_observations"):
        write_d4rl(dataset, tmp_path / "no.hdf5", next_observations=False)
    assert not (tmp_path / "no.npz").exists()


def test_what_no_array_can_hold_is_refused_by_name(tmp_path: Path):
    dataset = made(1, extra=False)
    lists = dataset.with_columns(notes=pl.Series([[1, 2]] * len(dataset), dtype=pl.List(pl.Int64)))
    dates = dataset.with_episode_columns(day=pl.lit("2024-01-01").str.to_date())
    for bad, name in ((lists, "notes"), (dates, "day")):
        for file, write, _ in ROUND_TRIPS.values():
            with refused(name, "drop"):
                write(bad, tmp_path / file)
    kinds = dataset.with_columns(kind=pl.Series(["a"] * len(dataset), dtype=pl.Categorical))
    write_d4rl(kinds, tmp_path / "log.hdf5")
    assert read_d4rl(tmp_path / "log.hdf5").transitions["kind"].to_list() == ["a"] * len(dataset)


def test_an_episode_that_goes_on_unseen_is_refused(tmp_path: Path):
    frame = made(1, extra=False).transitions
    for file, write, _ in ROUND_TRIPS.values():
        with refused("episode 2", "filter"):
            write(Dataset.from_frames(frame), tmp_path / file)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, name: str, monkeypatch):
    file, write, reader = ROUND_TRIPS[name]
    write(made(1), tmp_path / file)
    before = reader(tmp_path / file)
    monkeypatch.setattr(os, "replace", None)
    monkeypatch.setattr(np.lib.format, "write_array", None)
    with pytest.raises((TypeError, InputError)):
        write(made(2), tmp_path / file)
    monkeypatch.undo()
    same(before, reader(tmp_path / file))
    assert [child.name for child in tmp_path.iterdir()] == [file]


def test_writers_want_a_folder_that_is_there(tmp_path: Path):
    for file, write, _ in ROUND_TRIPS.values():
        with refused("no folder"):
            write(made(1), tmp_path / "missing" / file)
    with refused("is a folder"):
        write_neorl2(made(1), tmp_path)


def test_marks_that_do_not_fit_are_refused(tmp_path: Path):
    write_d4rl(made(1), tmp_path / "log.npz")
    arrays = dict(np.load(tmp_path / "log.npz"))
    for key, value in (
        ("metadata/episode_lengths", np.array([1, 2])),
        ("metadata/episode_lengths", np.array([0.5])),
        ("metadata/final_obs_known", np.array([True])),
        ("metadata/offrl_wb", np.array(["{}"])),
        ("metadata/offrl_wb", np.array(['{"spec": {"name": 1}}'])),
        ("metadata/offrl_wb", np.array(["[" * 9000])),
    ):
        save_npz(tmp_path / "bad.npz", arrays | {key: value})
        with refused("bad.npz", key):
            read_d4rl(tmp_path / "bad.npz")
    for write, reader in ((write_ogbench, read_ogbench), (write_episodes, read_episodes)):
        write(made(1), tmp_path / "log.npz")
        arrays = dict(np.load(tmp_path / "log.npz"))
        for key in ("metadata/final_obs_known", "episodes/task"):
            save_npz(tmp_path / "bad.npz", arrays | {key: arrays[key][:3]})
            with refused("bad.npz", key, "row 3"):
                reader(tmp_path / "bad.npz")


# NeoRL-2


@pytest.mark.parametrize(
    ("name", "score", "transitions", "episodes"),
    [
        ("DMSD-train", 56.64, 100_000, 1000),
        ("DMSD-val", 55.03, 20_000, 200),
        ("Simglucose-train", 73.87, 100_257, 280),
        ("SafetyHalfCheetah-train", 73.56, 18_000, 18),
    ],
)
def test_the_published_neorl2_files_have_their_published_scores(name, score, transitions, episodes):
    path = neorl2_file(f"{name}.npz")
    dataset = read_neorl2(path, verify=True)
    low, high = dataset.spec.score.low, dataset.spec.score.high
    assert round(100 * (dataset.returns().mean() - low) / (high - low), 2) == score
    assert (len(dataset), dataset.episode_count) == (transitions, episodes)
    assert dataset.spec.name == name.partition("-")[0]
    assert "next_obs" not in dataset.transitions.columns
    assert dataset.provenance.outcome["checksum"] == f"that of the published {name}.npz"
    assert read(path).content_hash == dataset.content_hash


def test_the_published_terminals_are_not_time_outs():
    dataset = read_neorl2(neorl2_file("Simglucose-train.npz"))
    assert dataset.arrays().terminated.sum() == 111
    assert dataset.arrays().truncated.sum() == 169
    assert dataset.spec.action_space == spaces.Box(-1, 1, (1,), dtype=np.float32)


def test_a_published_file_survives_each_format(tmp_path: Path):
    dataset = read_neorl2(neorl2_file("SafetyHalfCheetah-train.npz")).select(range(2))
    for file, write, reader in ROUND_TRIPS.values():
        write(dataset, tmp_path / file)
        same(dataset, reader(tmp_path / file))


def test_a_published_file_is_not_called_another_task():
    with refused("DMSD-train", "Pipeline"):
        read_neorl2(neorl2_file("DMSD-train.npz"), task="Pipeline")


def neorl2(path: Path, episodes: int = 3) -> Path:
    rows = 2 * episodes
    obs = np.arange(rows, dtype=np.float32)[:, None]
    ends = np.arange(rows) % 2 == 1
    own = {"obs": obs, "action": obs / rows, "next_obs": obs + 1, "reward": obs[:, 0]}
    save_npz(path, own | {"done": np.zeros(rows), "truncated": ends.astype(np.float32)})
    return path


def test_tasks_are_known_by_name_and_other_checksums_are_told(tmp_path: Path):
    named = read_neorl2(neorl2(tmp_path / "Pipeline-val.npz"))
    assert named.spec.score == NEORL2_SCORES["Pipeline"]
    assert named.provenance.outcome["checksum"].startswith("not that of the published Pipeline-val")
    assert NEORL2_MD5["Pipeline-val"] in named.provenance.outcome["checksum"]
    loose = read_neorl2(neorl2(tmp_path / "DMSD.npz"))
    assert loose.spec.score == NEORL2_SCORES["DMSD"]
    assert loose.provenance.outcome["checksum"] == "of no published file"
    unknown = read_neorl2(neorl2(tmp_path / "mine.npz"))
    assert unknown.spec.score is None
    assert unknown.spec.name == ""
    told = read_neorl2(tmp_path / "mine.npz", task="Fusion")
    assert told.spec.score == NEORL2_SCORES["Fusion"]
    with refused("Chess", "Pipeline"):
        read_neorl2(tmp_path / "mine.npz", task="Chess")
    for name in ("Pipeline-val.npz", "mine.npz"):
        with refused(name, "published"):
            read_neorl2(tmp_path / name, verify=True)


def test_a_known_task_with_discrete_actions_has_its_score_too(tmp_path: Path):
    arrays = dict(np.load(neorl2(tmp_path / "log.npz")))
    save_npz(tmp_path / "log.npz", arrays | {"action": np.arange(6) % 3})
    dataset = read_neorl2(tmp_path / "log.npz", task="DMSD")
    assert dataset.spec.action_space == spaces.Discrete(3)
    assert dataset.spec.score == NEORL2_SCORES["DMSD"]


def test_a_given_spec_is_kept_and_gains_only_what_it_lacks(tmp_path: Path):
    space = spaces.Box(-99, 99, (1,), dtype=np.float32)
    spec = Spec(space, space, discount=0.5, score=ScoreReference(0, 1))
    dataset = read_neorl2(neorl2(tmp_path / "DMSD-train.npz"), spec=spec)
    assert dataset.spec == replace(spec, name="DMSD")


@pytest.mark.parametrize("missing", ["obs", "action", "next_obs", "reward", "done", "truncated"])
def test_neorl2_needs_all_its_keys(tmp_path: Path, missing: str):
    arrays = dict(np.load(neorl2(tmp_path / "log.npz")))
    del arrays[missing]
    save_npz(tmp_path / "log.npz", arrays)
    with refused("log.npz", f"no key '{missing}'"):
        read_neorl2(tmp_path / "log.npz")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Fusion-train.npz", 20),
        ("Fusion-val.npz", 5),
        ("RocketRecovery-train.npz", 100),
        ("RocketRecovery-val.npz", 25),
        ("DMSD-train.npz", 110),
    ],
)
def test_the_benchmarks_own_cut_is_an_option(tmp_path: Path, name: str, kept: int):
    path = neorl2(tmp_path / name, episodes=110)
    assert read_neorl2(path).episode_count == 110
    cut = read_neorl2(path, benchmark_cut=True)
    assert (cut.episode_count, len(cut)) == (kept, 2 * kept)
    with refused("Fusion.npz", "train"):
        read_neorl2(neorl2(tmp_path / "Fusion.npz"), benchmark_cut=True)


def test_a_cut_longer_than_the_file_keeps_it_whole(tmp_path: Path):
    path = neorl2(tmp_path / "Fusion-train.npz", episodes=3)
    assert read_neorl2(path, benchmark_cut=True).episode_count == 3


def test_what_write_neorl2_writes_can_be_sliced_as_the_benchmark_slices(tmp_path: Path):
    write_neorl2(made(1), tmp_path / "log.npz")
    with np.load(tmp_path / "log.npz") as file:
        arrays = dict(file)
    assert arrays["done"].dtype == arrays["truncated"].dtype == np.float32
    assert all(len(values[:3]) <= 3 for values in arrays.values())


def test_checksums_decide_before_names(tmp_path: Path):
    source = neorl2_file("DMSD-val.npz")
    copy = tmp_path / "Pipeline-train.npz"
    copy.write_bytes(source.read_bytes())
    found = neorl2_identity(copy)
    assert (found.task, found.part, found.published) == ("DMSD", "val", True)


# OGBench


def ogbench(**changed: Any) -> dict[str, np.ndarray]:
    """Trajectories of 3, 1 and 2 steps; the second has no transition."""
    place = np.arange(6, dtype=np.float32)[:, None]
    held = {"observations": place, "actions": place * 2, "terminals": [0, 0, 1, 1, 0, 1]}
    held |= changed
    return {key: np.asarray(value) for key, value in held.items()}


def test_ogbench_terminals_mark_last_observations_and_no_terminals(tmp_path: Path):
    dataset = read_ogbench(stored(tmp_path / "log.npz", ogbench()))
    arrays = dataset.arrays()
    assert arrays.observations[:, 0].tolist() == [0, 1, 4]
    assert arrays.next_observations[:, 0].tolist() == [1, 2, 5]
    assert arrays.actions[:, 0].tolist() == [0, 2, 8]
    assert not arrays.terminated.any()
    assert arrays.truncated.tolist() == [False, True, True]
    assert arrays.rewards.tolist() == [0, 0, 0]
    assert dataset.provenance.outcome["rewards"] == "none: all are 0"
    assert recognise(tmp_path / "log.npz") == "ogbench"


def test_ogbench_compact_and_complete_forms_mean_the_same(tmp_path: Path):
    plain = read_ogbench(stored(tmp_path / "a.npz", ogbench()))
    compact = ogbench(terminals=[0, 1, 1, 1, 1, 1], valids=[1, 1, 0, 0, 1, 0])
    full = {key: values[[0, 1, 4]] for key, values in ogbench().items()}
    full |= {"terminals": np.array([0, 1, 1]), "next_observations": np.array([[1], [2], [5]])}
    full["next_observations"] = full["next_observations"].astype(np.float32)
    for arrays in (compact, full):
        again = read_ogbench(stored(tmp_path / "b.npz", arrays))
        assert again.content_hash == plain.content_hash


def test_ogbench_single_tasks_have_rewards_and_masks(tmp_path: Path):
    arrays = ogbench(rewards=[-1, 0, 5, 5, -1, 5], masks=[1, 0, 1, 1, 1, 1])
    dataset = read_ogbench(stored(tmp_path / "log.npz", arrays))
    assert dataset.arrays().rewards.tolist() == [-1, 0, -1]
    assert dataset.arrays().terminated.tolist() == [False, True, False]
    assert dataset.arrays().truncated.tolist() == [False, False, True]
    assert recognise(tmp_path / "log.npz") == "ogbench"


def test_a_trajectory_solved_before_its_end_stays_whole(tmp_path: Path):
    dataset = read_ogbench(stored(tmp_path / "log.npz", ogbench(masks=[0, 1, 1, 1, 1, 1])))
    assert dataset.lengths.tolist() == [2, 1]
    assert dataset.arrays().terminated.tolist() == [True, False, False]
    write_ogbench(dataset, tmp_path / "again.npz")
    same(dataset, read_ogbench(tmp_path / "again.npz"))
    write_d4rl(dataset, tmp_path / "again.hdf5")
    same(dataset, read_d4rl(tmp_path / "again.hdf5"))
    with refused("episode 0", "terminates before"):
        write_episodes(dataset, tmp_path / "no.npz")


def test_ogbench_images_are_unpacked(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    path = stored(tmp_path / "log.npz", ogbench(observations=frames))
    dataset = read(path, images=tmp_path / "frames.npy")
    assert np.array_equal(dataset.observations([0, 1, 2]), frames[[0, 1, 4]])
    assert dataset.arrays().next_observations.tolist() == [1, 2, 5]
    for write, reader in ((write_ogbench, read_ogbench), (write_episodes, read_episodes)):
        write(dataset, tmp_path / "again.npz")
        again = reader(tmp_path / "again.npz", images=tmp_path / "more.npy")
        assert np.array_equal(again.observations([0, 1, 2]), frames[[0, 1, 4]])
        final = again.spec.images.open()[again.episodes["final_obs"].to_list()]
        assert np.array_equal(final, frames[[2, 5]])
        with refused("again.npz", "images="):
            reader(tmp_path / "again.npz")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"terminals": np.ones(5)}, ["'terminals', row 5"]),
        ({"masks": [1, 1, 2, 1, 1, 1]}, ["'masks', row 2"]),
        ({"valids": np.full(6, np.nan)}, ["'valids', row 0"]),
        ({"rewards": np.zeros((6, 2))}, ["'rewards'", "(6, 2)"]),
        ({"terminals": np.ones(6)}, ["at least one"]),
    ],
)
def test_bad_ogbench_files_are_refused(tmp_path: Path, changed, words):
    with refused("log.npz", *words):
        read_ogbench(stored(tmp_path / "log.npz", ogbench(**changed)))
    with refused("d4rl.npz", "no key 'observations'"):
        read_ogbench(stored(tmp_path / "d4rl.npz", {"terminals": np.zeros(3)}))


# Episodes


def rlds(**changed: Any) -> dict[str, np.ndarray]:
    """Two episodes of 2 and 1 transitions; the first terminates."""
    place = np.arange(5, dtype=np.float32)
    held: dict[str, Any] = {"observation": place[:, None], "action": place[:, None] + 1}
    held |= {"reward": place * 10, "is_first": [1, 0, 0, 1, 0], "is_last": [0, 0, 1, 0, 1]}
    held |= {"is_terminal": [0, 0, 1, 0, 0]}
    held |= changed
    return {key: np.asarray(value) for key, value in held.items() if value is not None}


def is_the_log(dataset: Dataset) -> None:
    arrays = dataset.arrays()
    assert arrays.observations[:, 0].tolist() == [0, 1, 3]
    assert arrays.next_observations[:, 0].tolist() == [1, 2, 4]
    assert arrays.actions[:, 0].tolist() == [1, 2, 4]
    assert arrays.rewards.tolist() == [0, 10, 30]
    assert arrays.terminated.tolist() == [False, True, False]
    assert arrays.truncated.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("changed", "layout"),
    [
        ({}, None),
        ({"is_last": None}, None),
        ({"is_first": None}, None),
        ({"is_last": [0, 0, 1, 0, 0], "is_first": None}, None),
        ({"is_last": None, "is_first": None, "episode_ends": [3, 5]}, "rlds"),
        ({"is_last": None, "is_first": None, "episode": [4, 4, 4, 2, 2]}, "rlds"),
        ({"is_terminal": None, "discount": [1, 0, 9, 1, 9]}, None),
        ({"is_terminal": None, "terminals": [0, 0, 1, 0, 0]}, None),
    ],
)
def test_rlds_says_the_same_in_many_ways(tmp_path: Path, changed, layout):
    path = stored(tmp_path / "log.npz", rlds(**changed))
    dataset = read_episodes(path, layout=layout)
    is_the_log(dataset)
    assert dataset.provenance.outcome["layout"] == "rlds"
    assert recognise(path) == "episodes"


def shifted(**changed: Any) -> dict[str, np.ndarray]:
    """The same log with each action in the row that it led to."""
    led: dict[str, Any] = {"action": np.array([[0], [1], [2], [0], [4.0]], dtype=np.float32)}
    led |= {"reward": np.array([0, 0, 10, 0, 30], dtype=np.float32)}
    return rlds(**led | changed)


def test_logs_of_dm_env_are_shifted_and_asked_about(tmp_path: Path):
    path = stored(tmp_path / "log.npz", shifted())
    with refused("log.npz", "layout='dm_env'"):
        read_episodes(path)
    is_the_log(read_episodes(path, layout="dm_env"))
    bare = shifted(is_terminal=None, discount=[1, 1, 0, 1, 1])
    is_the_log(read_episodes(stored(tmp_path / "bare.npz", bare), layout="dm_env"))
    is_the_log(read(tmp_path / "bare.npz", layout="dm_env"))
    with refused("sideways", "dm_env"):
        read_episodes(path, layout="sideways")


def episode_parts() -> list[dict[str, np.ndarray]]:
    """The log of `rlds` as one dictionary an episode, actions one fewer than observations."""
    parts = []
    for rows in (slice(0, 3), slice(3, 5)):
        whole = {key: values[rows] for key, values in rlds().items()}
        part = {"observations": whole["observation"], "actions": whole["action"][:-1]}
        part |= {"rewards": whole["reward"][:-1], "terminals": whole["is_terminal"][1:]}
        parts.append(part)
    return parts


def test_a_folder_of_episodes_is_read_in_the_order_of_its_numbers(tmp_path: Path):
    for name, part in zip(("ep_9.npz", "ep_10.npz"), episode_parts(), strict=True):
        save_npz(tmp_path / name, part | {"infos/height": part["rewards"] + 1})
    dataset = read_episodes(tmp_path)
    is_the_log(dataset)
    assert dataset.transitions["height"].to_list() == [1, 11, 31]
    assert recognise(tmp_path) == "episodes"
    is_the_log(read(tmp_path))


def test_episodes_may_be_groups_of_one_file(tmp_path: Path):
    arrays = {f"ep_{n + 9}/{k}": v for n, p in enumerate(episode_parts()) for k, v in p.items()}
    path = stored(tmp_path / "log.npz", arrays)
    is_the_log(read_episodes(path))
    assert recognise(path) == "episodes"
    arrays["ep_10/actions"] = np.zeros((5, 1))
    with refused("log.npz/ep_10", "'actions', row 2"):
        read_episodes(stored(path, arrays))


def test_a_flag_may_be_given_once_for_an_episode(tmp_path: Path):
    for n, part in enumerate(episode_parts()):
        save_npz(tmp_path / f"{n}.npz", part | {"terminals": np.array(n == 0)})
    is_the_log(read_episodes(tmp_path))


def test_rows_that_are_transitions_are_read_as_such(tmp_path: Path):
    kept = [0, 1, 3]
    arrays = {k: v[kept] for k, v in rlds(is_first=None, is_last=None, is_terminal=None).items()}
    arrays |= {"terminated": np.array([0, 1, 0]), "episode_ends": np.array([2, 3])}
    ahead = arrays | {"next_observation": np.array([[1], [2], [4]], dtype=np.float32)}
    is_the_log(read_episodes(stored(tmp_path / "log.npz", ahead)))
    without = read_episodes(stored(tmp_path / "log.npz", arrays))  # the cut episode had one row
    assert without.arrays().rewards.tolist() == [0, 10]
    assert without.provenance.outcome["layout"] == "transitions"
    discount = {k: v for k, v in ahead.items() if k != "terminated"} | {
        "discount": np.array([1, 0, 1])
    }
    is_the_log(read_episodes(stored(tmp_path / "log.npz", discount)))
    once = {k: v[:2] for k, v in ahead.items() if k != "episode_ends"} | {
        "terminated": np.array(True)
    }
    assert read_episodes(stored(tmp_path / "log.npz", once)).arrays().terminated.tolist() == [0, 1]


def test_one_step_is_no_episode(tmp_path: Path):
    arrays = {key: np.concatenate([values, values[-1:]]) for key, values in rlds().items()}
    arrays["is_first"], arrays["is_last"] = np.eye(6)[0] + np.eye(6)[3] + np.eye(6)[5], np.zeros(6)
    arrays["is_last"][[2, 4, 5]] = 1
    dataset = read_episodes(stored(tmp_path / "log.npz", arrays))
    is_the_log(dataset)
    assert dataset.provenance.outcome["episodes_without_transition"] == 1


def test_logs_without_rewards_say_so(tmp_path: Path):
    dataset = read_episodes(stored(tmp_path / "log.npz", rlds(reward=None)))
    assert dataset.arrays().rewards.tolist() == [0, 0, 0]
    assert dataset.provenance.outcome["rewards"] == "none: all are 0"


def test_columns_that_only_some_files_have_are_listed(tmp_path: Path):
    first, second = episode_parts()
    save_npz(tmp_path / "0.npz", first | {"height": first["rewards"]})
    save_npz(tmp_path / "1.npz", second)
    dataset = read_episodes(tmp_path)
    assert "height" not in dataset.transitions.columns
    assert dataset.provenance.outcome["ignored"] == ["height"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"observation": None}, ["no key 'observation'"]),
        ({"action": None}, ["no key 'action'"]),
        ({"action": np.zeros((4, 1))}, ["'action', row 4"]),
        ({"reward": np.zeros(6)}, ["'reward', row 5"]),
        ({"is_last": np.zeros(4)}, ["'is_last', row 4"]),
        ({"is_last": [0, 0, 3, 0, 1]}, ["'is_last', row 2", "3"]),
        ({"is_first": [1, 0, 1, 0, 0]}, ["'is_first', row 1", "is_last"]),
        ({"is_terminal": [0, 1, 0, 0, 0]}, ["'is_terminal', row 1"]),
        ({"is_terminal": np.zeros(3)}, ["'is_terminal', row 3"]),
        ({"episode_ends": [3, 4]}, ["'episode_ends', row 1", "5"]),
        ({"episode_ends": [3, 3, 5]}, ["'episode_ends', row 1"]),
        ({"episode_ends": [2.0, 5.0]}, ["'episode_ends'", "whole"]),
        ({"episode": [1, 1, 2, 1, 1]}, ["'episode', row 3", "sort"]),
        ({"reward": np.zeros((5, 2))}, ["'reward'", "(5, 2)"]),
    ],
)
def test_bad_episodes_are_refused(tmp_path: Path, changed, words):
    path = stored(tmp_path / "log.npz", rlds(**changed) | {"x": np.zeros(5)})
    with refused("log.npz", *words):
        read_episodes(path)


def test_a_bad_file_in_a_folder_is_the_one_that_is_named(tmp_path: Path):
    first, second = episode_parts()
    save_npz(tmp_path / "0.npz", first)
    for bad, words in (
        ({k: v for k, v in second.items() if k != "rewards"}, ["rewards"]),
        (second | {"observations": np.zeros((2, 4))}, ["'observations'", "(4,)"]),
        (second | {"rewards": np.zeros(7)}, ["'rewards', row 1"]),
    ):
        save_npz(tmp_path / "1.npz", bad)
        with refused("1.npz", *words):
            read_episodes(tmp_path)
    (tmp_path / "empty").mkdir()
    with refused("no npz"):
        read_episodes(tmp_path / "empty")


def test_every_file_of_a_folder_has_the_columns_of_its_episode(tmp_path: Path):
    first, second = episode_parts()
    skill = {"episodes/skill": np.array(["walk"])}
    save_npz(tmp_path / "0.npz", first | skill)
    save_npz(tmp_path / "1.npz", second | skill)
    assert read_episodes(tmp_path).episodes["skill"].to_list() == ["walk", "walk"]
    save_npz(tmp_path / "1.npz", second)
    with refused("1.npz", "episodes/skill"):
        read_episodes(tmp_path)


def test_an_old_folder_is_not_written_over(tmp_path: Path):
    write_episodes(made(1), tmp_path / "log")
    with refused("log", "new folder"):
        write_episodes(made(1), tmp_path / "log")


# Whatever it is


def test_native_folders_tables_and_minari_are_recognised(tmp_path: Path):
    dataset = made(1, extra=False)
    dataset.save(tmp_path / "native")
    assert recognise(tmp_path / "native") == "native"
    same(dataset, read(tmp_path / "native"))
    frame = pl.DataFrame({"episode": [0, 0], "obs_0": [0.5, 1.0], "reward": [1.0, 2.0]})
    frame.write_csv(tmp_path / "log.csv")
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_ndjson(tmp_path / "log.ndjson")
    (tmp_path / "parts").mkdir()
    frame.write_parquet(tmp_path / "parts" / "0.parquet")
    for name in ("log.csv", "log.parquet", "log.ndjson", "parts"):
        assert recognise(tmp_path / name) == "table"
    (tmp_path / "pen" / "data").mkdir(parents=True)
    (tmp_path / "pen" / "data" / "metadata.json").write_text("{}")
    assert recognise(tmp_path / "pen") == "minari"
    with h5py.File(tmp_path / "pen" / "data" / "main_data.hdf5", "w") as file:
        file["episode_0/rewards"] = np.zeros(3)
    assert recognise(tmp_path / "pen" / "data" / "main_data.hdf5") == "minari"


def test_tables_and_minari_go_to_their_readers(tmp_path: Path, monkeypatch):
    from offrl_wb.data import minari_store, tables

    def table(source, mapping=None):
        return source, mapping

    def minari(dataset, *, infos=()):
        return dataset, infos

    monkeypatch.setattr(tables, "read_table", table)
    monkeypatch.setattr(minari_store, "read_minari", minari)
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    assert read(tmp_path / "log.csv", mapping={"obs": "a"}) == (tmp_path / "log.csv", {"obs": "a"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "main_data.hdf5").write_text("")
    file = tmp_path / "data" / "main_data.hdf5"
    assert read(file, format="minari", infos=True) == (tmp_path, True)
    assert read("D4RL/door/human-v2") == ("D4RL/door/human-v2", ())


def test_options_are_the_readers_own(tmp_path: Path):
    path = stored(tmp_path / "log.hdf5", d4rl_arrays(timeouts=None))
    assert read(path, horizon=3).lengths.tolist() == [3, 2, 3, 3, 1]
    with refused("log.hdf5", "'layout'", "horizon"):
        read(path, layout="rlds")
    with refused("log.hdf5", "'mapping'", "D4RL"):
        read(path, mapping={"obs": "x"})
    with refused("parchment", "d4rl"):
        read(path, format="parchment")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("log.bin", b"\x00\x01\x02\xff" * 9, "unknown"),
        ("log.npz", b"", "empty"),
        ("log.arrow", b"ARROW1\x00\x00", "Arrow"),
        ("log.csv.gz", b"\x1f\x8b\x08\x00", "gzip"),
        ("log.npy", b"\x93NUMPY\x01\x00", "npy"),
        ("log.sqlite", b"SQLite format 3\x00", "SQLite"),
    ],
)
def test_other_files_say_what_was_found_and_what_can_be_read(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with refused(name, found, "D4RL", "NeoRL-2", "OGBench", "CSV", "Minari"):
        read(tmp_path / name)
    with refused(name, found):
        read_d4rl(tmp_path / name)


def test_other_keys_and_folders_say_what_was_found(tmp_path: Path):
    with refused("weights.npz", "kernel", "What can be read"):
        read(stored(tmp_path / "weights.npz", {"kernel": np.zeros(3)}))
    with refused("demo.hdf5", "data/demo_0/actions"):
        read(stored(tmp_path / "demo.hdf5", {"data/demo_0/actions": np.zeros(3)}))
    (tmp_path / "empty").mkdir()
    with refused("empty", "a folder with nothing"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    with refused("readme.txt"):
        read(tmp_path / "empty")
    with refused("nowhere", "No such file"):
        read(tmp_path / "nowhere")


# Provenance, speed


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_the_provenance_reads_the_file_again(tmp_path: Path, name: str):
    file, write, reader = ROUND_TRIPS[name]
    write(made(6), tmp_path / file)
    dataset = reader(tmp_path / file)
    space: dict[str, Any] = {}
    exec(dataset.provenance.as_python(), space)
    assert space["dataset"].content_hash == dataset.content_hash
    assert dataset.provenance.content == dataset.content_hash


def test_options_are_in_the_provenance(tmp_path: Path):
    path = stored(tmp_path / "log.hdf5", d4rl_arrays(timeouts=None) | {"infos/a": np.zeros(12)})
    for options in ({"horizon": 3, "infos": False}, {"infos": ["a"]}, {"at_breaks": True}):
        dataset = read_d4rl(path, **options)
        space: dict[str, Any] = {}
        exec(dataset.provenance.as_python(), space)
        assert space["dataset"].content_hash == dataset.content_hash
        assert set(options) <= set(dataset.provenance.parameters)


def test_each_key_is_read_once_and_no_row_is_looped_over(tmp_path: Path, monkeypatch):
    path = stored(tmp_path / "log.npz", d4rl_arrays(1000) | {"infos/x": np.zeros(1000)})
    read_keys: list[str] = []
    original = array_files.ArrayFile.read

    def counted(self: Any, keys: Any) -> Any:
        wanted = list(keys)
        read_keys.extend(wanted)
        return original(self, wanted)

    monkeypatch.setattr(array_files.ArrayFile, "read", counted)
    read_d4rl(path)
    assert len(read_keys) == len(set(read_keys)) == 7


@pytest.mark.parametrize("following", [True, False])
def test_the_work_done_in_python_does_not_grow_with_the_rows(tmp_path: Path, following: bool):
    def calls(rows: int) -> int:
        place = np.arange(rows)
        ends = {"terminals": place == 4, "timeouts": place == 8}
        arrays = d4rl_arrays(rows, **ends, **({} if following else {"next_observations": None}))
        path, made_calls = stored(tmp_path / f"{rows}.hdf5", arrays), 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal made_calls
            made_calls += 1

        sys.setprofile(count)
        try:
            read_d4rl(path)
        finally:
            sys.setprofile(None)
        return made_calls

    calls(100)  # imports and caches
    assert calls(20_000) < 1.2 * calls(1000)


def test_every_format_has_a_reader():
    for kind in files.FORMATS:
        assert callable(files.reader_of(kind))


# Found in review


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({"timeouts": None}, {"horizon": 2.5}, ["horizon is 2.5", "whole number"]),
        ({"timeouts": None}, {"horizon": 3, "at_breaks": True}, ["one of the two"]),
        ({"infos/x": np.ones(12), "x": np.zeros(12)}, {}, ["log.npz", "second column 'x'"]),
        ({"infos/x": np.ones(12), "infos/x.missing": np.ones((12, 2), bool)}, {}, ["x.missing"]),
        ({"actions": np.full(12, 2**63, np.uint64)}, {}, ["actions", "is no index"]),
        ({"metadata/episode_lengths": [[12]]}, {}, ["episode_lengths", "one an episode"]),
        ({"metadata/episode_lengths": np.array([2**63, 2**63 + 12], np.uint64)}, {}, ["add up"]),
    ],
)
def test_odd_keys_and_options_are_named(tmp_path: Path, changed: dict, options: dict, words: list):
    path = stored(tmp_path / "log.npz", d4rl_arrays(**changed))
    with refused(*words):
        read_d4rl(path, **options)


def test_one_info_may_be_named_alone(tmp_path: Path):
    path = stored(tmp_path / "log.npz", d4rl_arrays(**{"infos/qpos": np.ones(12)}))
    assert "qpos" in read_d4rl(path, infos="qpos").transitions.columns


@pytest.mark.parametrize("value", [None, {"b": 1}, [1, [2, 3]]])
def test_metadata_that_is_no_number_or_text_is_refused(tmp_path: Path, value: Any):
    with refused("metadata 'a'", "only numbers and text"):
        write_d4rl(made(0), tmp_path / "log.hdf5", metadata={"a": value})


def test_metadata_does_not_replace_the_spec(tmp_path: Path):
    with refused("metadata 'offrl_wb'", "rename"):
        write_d4rl(made(0), tmp_path / "log.hdf5", metadata={"offrl_wb": "x"})


@pytest.mark.parametrize("name", ["", ".", "/q", "a//b", "q.missing", "episodes/q"])
def test_columns_whose_names_would_change_are_refused(tmp_path: Path, name: str):
    dataset = made(0).with_columns(**{name: pl.lit(1)})
    with refused(f"column {name!r}", "rename"):
        write_d4rl(dataset, tmp_path / "log.npz")


def test_a_column_that_is_a_group_of_another_is_refused_in_hdf5(tmp_path: Path):
    dataset = made(0).with_columns(**{"q": pl.lit(1), "q/a": pl.lit(1)})
    with refused("log.hdf5", "q/a", "cannot be written"):
        write_d4rl(dataset, tmp_path / "log.hdf5")
    write_d4rl(dataset, tmp_path / "log.npz")
    assert {"q", "q/a"} < set(read_d4rl(tmp_path / "log.npz").transitions.columns)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: Any):
    def full(*paths: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with refused(tmp_path / "log.npz", "cannot be written: no space left"):
        save_npz(tmp_path / "log.npz", d4rl_arrays())
    assert not list(tmp_path.iterdir())


def test_marks_of_episodes_that_contradict_each_other_are_refused(tmp_path: Path):
    steps = {"observation": np.arange(6.0)[:, None], "action": np.ones((6, 1))}
    last = {"is_last": np.array([0, 0, 1, 0, 0, 1])}
    for marks in ({"episode_ends": [2, 6]}, {"episode": [1, 1, 2, 2, 2, 2]}):
        path = stored(tmp_path / "log.npz", steps | last | marks)
        with refused("log.npz", *marks, "row 1", "does not end episodes where 'is_last' does"):
            read_episodes(path)
    path = stored(tmp_path / "log.npz", steps | last | {"episode_ends": np.array([3, 6])})
    assert read_episodes(path).lengths.tolist() == [2, 2]


def test_next_images_are_listed_as_ignored(tmp_path: Path):
    frames = np.zeros((6, 4, 4, 3), np.uint8)
    steps = {"action": np.ones((6, 1)), "reward": np.ones(6), "terminal": np.arange(6) == 5}
    names = {"observation": frames, "next_observation": frames}
    path = stored(tmp_path / "episode.npz", steps | names)
    dataset = read_episodes(path, images=tmp_path / "frames.npy")
    assert dataset.provenance.outcome["ignored"] == ["next_observation"]
    held = d4rl_arrays(12, observations=np.zeros((12, 4, 4, 3), np.uint8))
    held["next_observations"] = held["observations"]
    path = stored(tmp_path / "log.npz", held)
    read_back = read_d4rl(path, images=tmp_path / "frames.npy")
    assert read_back.provenance.outcome["ignored"] == ["next_observations"]
    held.pop("timeouts")
    dataset = read_ogbench(stored(path, held), images=tmp_path / "frames.npy")
    assert dataset.provenance.outcome["ignored"] == ["next_observations"]
