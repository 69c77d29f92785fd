"""Timings of the data room against its peers: `python tests/benchmarks/bench_data.py`.

Everything is a ratio in one run. d3rlpy pins another Gymnasium than we do, so it is found on the
path where it was put with `pip install --no-deps --target PEERS d3rlpy structlog colorama
dataclasses-json marshmallow typing-inspect gym`, and `PYTHONPATH=PEERS`. CORL and D4RL are no
packages: give the two files that hold their loading code, `--corl iql.py --d4rl __init__.py`.
A peer that is absent is named as not measured. 10 million transitions need 6 GB of memory.
"""

import argparse
import ast
import contextlib
import gc
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.timing import row, seconds

OBS, ACTION, LENGTH = 17, 6, 1000


def columns(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Wide float32 columns of a made-up log with episodes of 1000 steps."""
    rng = np.random.default_rng(seed)
    made = {f"obs_{j}": rng.standard_normal(rows, dtype=np.float32) for j in range(OBS)}
    made |= {f"action_{j}": rng.random(rows, dtype=np.float32) for j in range(ACTION)}
    made["reward"] = rng.standard_normal(rows, dtype=np.float32)
    made["terminated"] = np.zeros(rows, dtype=bool)
    made["truncated"] = np.arange(1, rows + 1) % LENGTH == 0
    made["episode"] = np.arange(rows) // LENGTH
    return made


def highest_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def child(what: str, path: str) -> None:
    """Read `path` in one way and print seconds and the memory it added at most."""
    if what == "pyarrow":
        import pyarrow.parquet as parquet

        def read() -> object:
            return parquet.read_table(path)
    elif what == "table":
        from offrl_wb.data.tables import read_table

        def read() -> object:
            return read_table(path)
    else:
        from offrl_wb.data.storage import load

        def read() -> object:
            return load(path)

    import gymnasium  # noqa: F401  (an import is not part of reading)

    before = highest_memory()
    started = time.perf_counter()
    read()
    taken = time.perf_counter() - started
    print(json.dumps([taken, highest_memory() - before]))


def in_child(what: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", what, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, memory = json.loads(done.stdout.splitlines()[-1])
    return taken, memory


def loading(rows: int, folder: Path) -> None:
    """Parquet to a ready dataset, against PyArrow alone."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    made = columns(rows)
    size = sum(c.nbytes for c in made.values())
    parquet.write_table(pa.table(made), folder / "wide.parquet")
    from offrl_wb.data.storage import save
    from offrl_wb.data.tables import read_table

    save(read_table(folder / "wide.parquet"), folder / "native")
    del made
    gc.collect()
    native = next((folder / "native").glob("transitions-*"))
    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(4):
        for name, what, path in (
            ("PyArrow, Parquet written by PyArrow", "pyarrow", folder / "wide.parquet"),
            ("ours, the same file", "table", folder / "wide.parquet"),
            ("PyArrow, our own file", "pyarrow", native),
            ("ours, our own folder", "load", folder / "native"),
        ):
            runs.setdefault(name, []).append(in_child(what, path))
    medians = {}
    for name, pairs in runs.items():
        row(name, sorted(t for t, _ in pairs[1:]))
        medians[name] = float(np.median([t for t, _ in pairs[1:]]))
        peak = max(m for _, m in pairs[1:]) / size
        print(f"{'    peak memory / bytes of the columns read':<62} {peak:>29.2f}  ours < 1.5")
    times = list(medians.values())
    print(f"{'ratio of medians, Parquet':<62} {times[1] / times[0]:>29.2f}  < 1.5")
    print(f"{'ratio of medians, native':<62} {times[3] / times[2]:>29.2f}  < 1.5")


def dataset(rows: int, seed: int) -> Any:
    """A made-up dataset whose episodes differ in return."""
    from offrl_wb.data.dataset import Dataset

    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((rows + 1, OBS), dtype=np.float32)
    ends = np.arange(1, rows + 1) % LENGTH == 0
    return Dataset.from_arrays(
        seen[:-1],
        rng.random((rows, ACTION), dtype=np.float32),
        rng.standard_normal(rows, dtype=np.float32),
        np.zeros(rows, dtype=bool),
        ends,
        final_observations=seen[1:][ends],
    )


SHARES = (0.5, 0.3, 0.2)


def mixing(rows: int, folder: Path) -> None:
    """The better half of three sources by return, mixed to shares."""
    from offrl_wb.data.composition import mix

    parts = [dataset(rows // 3 // LENGTH * LENGTH, seed) for seed in range(3)]
    size = int(0.3 * rows)

    def ours() -> Any:
        better = [p.filter_episodes(pl.col("return") >= pl.col("return").median()) for p in parts]
        return mix(better, SHARES, size=size, seed=0)

    def ours_fresh() -> Any:
        for part in parts:
            for kept in ("content_hash", "provenance", "starts", "lengths"):
                part.__dict__.pop(kept, None)
        return ours()

    mine = seconds(ours_fresh, 3)
    row("ours, nothing known beforehand", mine)
    row("ours, content hashes known", seconds(ours, 3))
    peers = {"d3rlpy": mixing_d3rlpy, "Minari": mixing_minari}
    for name, peer in peers.items():
        try:
            theirs = peer(parts, size, folder)
        except ImportError as error:
            print(f"{name}: not measured ({error})")
            continue
        row(f"{name}'s own way", theirs)
        print(f"{'ratio of medians, ' + name:<62} {theirs[0] / mine[1]:>29.1f}  > 5")


def mixing_d3rlpy(parts: list[Any], size: int, folder: Path) -> list[float]:
    """Episodes chosen by `compute_return`, then one replay buffer of them."""
    logging.disable(logging.CRITICAL)
    from d3rlpy.constants import ActionSpace
    from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer

    sources = []
    for part in parts:
        arrays = part.arrays()
        sources.append(
            [
                Episode(
                    arrays.observations[a : b + 1],
                    arrays.actions[a : b + 1],
                    arrays.rewards[a : b + 1, None],
                    False,
                )
                for a, b in zip(part.starts, part.ends, strict=True)
            ]
        )

    def run() -> object:
        chosen = []
        rng = np.random.default_rng(0)
        for source, share in zip(sources, SHARES, strict=True):
            returns = np.array([episode.compute_return() for episode in source])
            better = np.flatnonzero(returns >= np.median(returns))
            wanted = rng.choice(better, int(share * size / LENGTH), replace=True)
            chosen += [source[n] for n in wanted]
        return ReplayBuffer(
            InfiniteBuffer(),
            episodes=chosen,
            action_space=ActionSpace.CONTINUOUS,
            action_size=ACTION,
        )

    return seconds(run, 2)


def mixing_minari(parts: list[Any], size: int, folder: Path) -> list[float]:
    """`filter_episodes` of three stored datasets; the mixing itself is left out, to its favour."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    import minari

    from offrl_wb.data.minari_store import write_minari

    names = [f"bench/source{n}-v0" for n in range(3)]
    for name, part in zip(names, parts, strict=True):
        write_minari(part, name)
    stored = [minari.load_dataset(name) for name in names]
    medians = [np.median(p.returns()) for p in parts]

    def run() -> object:
        return [
            source.filter_episodes(lambda episode, m=middle: episode.rewards.sum() >= m)
            for source, middle in zip(stored, medians, strict=True)
        ]

    started = time.perf_counter()
    run()
    return [time.perf_counter() - started]


def defined(path: str, names: set[str], space: dict[str, Any]) -> dict[str, Any]:
    """The functions and classes called `names` of a Python file, without running the rest of it."""
    tree = ast.parse(Path(path).read_text())
    tree.body = [n for n in tree.body if getattr(n, "name", None) in names]
    exec(compile(tree, path, "exec"), space)
    return space


def tensors_from_hdf5(folder: Path, corl: str | None, d4rl: str | None) -> None:
    """A D4RL file of 1 million transitions to tensors, against CORL's own path."""
    import h5py
    import torch

    from offrl_wb.data.files import read_d4rl

    made = columns(1_000_000)
    path = folder / "log.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.stack([made[f"obs_{j}"] for j in range(OBS)], axis=1)
        file["actions"] = np.stack([made[f"action_{j}"] for j in range(ACTION)], axis=1)
        file["rewards"], file["terminals"] = made["reward"], made["terminated"]
        file["timeouts"] = made["truncated"]
    row("ours: HDF5 to tensors", mine := seconds(lambda: read_d4rl(path).tensors(), 3))
    if not (corl and d4rl):
        print("CORL: not measured (give --corl and --d4rl)")
        return
    space = {"np": np, "torch": torch, "Dict": dict, "List": list, "TensorBatch": list}
    space = defined(corl, {"ReplayBuffer"}, defined(d4rl, {"qlearning_dataset"}, space))

    def theirs(loop: bool) -> object:
        with h5py.File(path) as file:
            raw = {key: file[key][:] for key in file}
        if loop:
            raw = space["qlearning_dataset"](None, dataset=raw)
        else:
            raw["next_observations"] = raw["observations"]
        buffer = space["ReplayBuffer"](OBS, ACTION, 2_000_000)
        buffer.load_d4rl_dataset(raw)
        return buffer

    with contextlib.redirect_stdout(io.StringIO()):
        slow, fast = seconds(lambda: theirs(True), 1), seconds(lambda: theirs(False), 3)
    row("CORL: HDF5, qlearning_dataset, ReplayBuffer", slow)
    row("CORL's ReplayBuffer alone, without the Python loop", fast)
    print(f"{'ratio of medians':<62} {slow[0] / mine[1]:>29.1f}  > 1")
    print(f"{'ratio of medians, without its loop':<62} {fast[1] / mine[1]:>29.1f}")


def gathers() -> None:
    """Uniform minibatches of our tensors and of plain contiguous ones."""
    import torch

    ours = dataset(1_000_000, 0).tensors()
    plain = [torch.from_numpy(t.numpy().copy()) for t in ours]
    rows = [torch.randint(0, 1_000_000, (256,)) for _ in range(500)]

    def gather(parts: Any) -> None:
        for chosen in rows:
            for part in parts:
                part[chosen]

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(15):
        for name, parts in (("ours", ours), ("plain", plain)):
            started = time.perf_counter()
            gather(parts)
            times[name].append((time.perf_counter() - started) / len(rows))
    row("minibatch of 256 from our tensors", sorted(times["ours"]))
    row("minibatch of 256 from plain tensors", sorted(times["plain"]))
    ratio = np.median(times["ours"]) / np.median(times["plain"])
    print(f"{'ratio of medians':<62} {ratio:>29.3f}  < 1.05")


def checking() -> None:
    """All checks on 1 million transitions."""
    from offrl_wb.data.checks import check

    made = dataset(1_000_000, 0)
    row("check of 1 million transitions", seconds(lambda: check(made), 3), "< 3")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--corl")
    parser.add_argument("--d4rl")
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as home:
        checking()
        gathers()
        tensors_from_hdf5(Path(home), asked.corl, asked.d4rl)
        loading(asked.rows, Path(home))
        mixing(asked.rows, Path(home))


if __name__ == "__main__":
    main()
