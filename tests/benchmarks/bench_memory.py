"""Memory of training from a large log: `python tests/benchmarks/bench_memory.py [ROWS]`.

A million transitions of 17 + 6 numbers by default. The log is written to a folder, loaded by a
fresh process as any run loads it, and trained from; what is resident then, beyond what the process
had with a log of 1 000 rows, is held against the raw numbers (23 floats a row) and the parameters.
The peak is told beside it: reading a file takes more for a moment.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

SEEN, DONE, EPISODE = 17, 6, 1000


def write_log(folder: Path, rows: int) -> None:
    """A log of `rows` transitions in episodes of 1000 that end by a time-out."""
    from gymnasium.spaces import Box

    from offrl_wb.data.dataset import Dataset

    generator = np.random.default_rng(0)
    cut = np.arange(rows) % EPISODE == EPISODE - 1
    cut[-1] = True
    log = Dataset.from_arrays(
        generator.standard_normal((rows, SEEN), dtype=np.float32),
        generator.random((rows, DONE), dtype=np.float32) * 2 - 1,
        generator.standard_normal(rows, dtype=np.float32),
        np.zeros(rows, dtype=bool),
        cut,
        final_observations=generator.standard_normal((int(cut.sum()), SEEN), dtype=np.float32),
    )
    space = Box(-1, 1, (DONE,), np.float32)
    log.derive("benchmark", {}, spec=replace(log.spec, action_space=space)).save(folder)


def status(name: str) -> int:
    """A line of this process's status in bytes: VmRSS (resident now), VmHWM (at most)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def released(seconds: float = 2.5) -> None:
    """Give back what has been freed; Polars' allocator does so after one and a half seconds."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    time.sleep(seconds)


def train(folder: Path, keep_log: bool, updates: int) -> dict[str, int]:
    """Load the log and train from it; memory then, in bytes."""
    import torch

    from offrl_wb.data.dataset import Dataset
    from offrl_wb.train.agent import agent_spec
    from offrl_wb.train.loop import Loop
    from offrl_wb.train.replay import Transitions
    from tests.tiny_agent import Config, make

    log = Dataset.load(folder)
    agent = make(agent_spec(log), Config(hidden=(256, 256), members=2), [0], torch.float32)
    loop = Loop(agent, Transitions(log), batch_size=256)
    if not keep_log:
        del log
    loop.advance(updates)
    released()
    state = sum(t.numel() * t.element_size() for t in agent.state().values())
    return {"resident": status("VmRSS"), "peak": status("VmHWM"), "parameters": state}


def measured(rows: int, keep_log: bool = True, updates: int = 70) -> dict[str, float]:
    """What training from `rows` transitions takes in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("small", 1000), ("large", rows)):
            write_log(Path(folder) / name, size)
        command = [sys.executable, __file__, "--inside", folder, str(int(keep_log)), str(updates)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(found.stdout)
    raw = rows * (SEEN + DONE) * 4
    more = told["large"]["resident"] - told["small"]["resident"]
    peak = told["large"]["peak"] - told["small"]["resident"]
    return {
        "raw": raw,
        "parameters": told["large"]["parameters"],
        "more": more,
        "share": more / raw,
        "peak_share": peak / raw,
    }


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for keep_log in (True, False):
        found = measured(rows, keep_log)
        megabytes = {n: found[n] / 1e6 for n in ("raw", "more", "parameters")}
        print(
            f"{rows:,} transitions, log {'kept' if keep_log else 'dropped'}:"
            f" raw {megabytes['raw']:.1f} MB, resident beyond a small one"
            f" {megabytes['more']:.1f} MB ({found['share']:.2f} of raw, at most 1.5 wanted;"
            f" while reading {found['peak_share']:.2f});"
            f" state of the agent {megabytes['parameters']:.1f} MB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        place, keep, count = Path(sys.argv[2]), bool(int(sys.argv[3])), int(sys.argv[4])
        print(json.dumps({n: train(place / n, keep, count) for n in ("small", "large")}))
    else:
        main()
