"""Updates a second of every agent beside its peers: `python tests/benchmarks/bench_agents.py`.

Batch 256, 17 + 6 dimensions, layers of 256 as the peer has them; an update includes drawing its
batch. Contestants take turns, round after round, and a ratio is the median over rounds of "ours
divided by the peer's" in the same round. Two tables: as PyTorch comes, and with the matmul switch
(`torch.set_float32_matmul_precision("medium")`) on both sides. Run it on a quiet machine:

    OFFRL_WB_CORL=/path/to/CORL OFFRL_WB_D3RLPY=/path/to/env/bin/python \\
    OFFRL_WB_JAX=/path/to/jaxenv/bin/python OFFRL_WB_JAX_CORL=/path/to/JAX-CORL \\
    python tests/benchmarks/bench_agents.py [--agents iql,td3_bc] [--device cuda] [--profile]

What is not given is left out and named. On a GPU, TF32 is off in the first table and on in the
second. `--profile` says where the time of our own update goes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

THREADS = next(
    (sys.argv[i + 1] for i, word in enumerate(sys.argv[:-1]) if word == "--threads"), "2"
)
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = THREADS

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.data.dataset import Dataset
from offrl_wb.train.agent import agent_module, agent_names, agent_spec, make_agent
from offrl_wb.train.loop import Loop
from offrl_wb.train.replay import Transitions
from tests.benchmarks import peer_corl

Updates = Callable[[int], None]
SIZE, SEEN, DONE = 100_000, 17, 6
DEEP = (256, 256, 256)  # CORL's files of these agents have three hidden layers
OURS: dict[str, dict[str, Any]] = {
    "bc": {},
    "td3_bc": {},
    "iql": {},
    "cql": {"actor_hidden": DEEP, "critic_hidden": DEEP, "initialisation": "orthogonal"},
    "cal_ql": {"actor_hidden": DEEP, "critic_hidden": DEEP, "backup_actions": 1},
    "sac_n": {"actor_hidden": DEEP, "critic_hidden": DEEP, "critics": 10},
}
TARGETS = {
    ("CORL", "td3_bc"): 1.5,
    ("CORL", "iql"): 1.5,
    ("CORL", "cql"): 1.2,
    ("CORL", "sac_n"): 1.2,
}
JAX = ("iql", "td3_bc")


def made_data() -> dict[str, np.ndarray]:
    """Noise in D4RL's form: what peers read."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal
    return {
        "observations": normal((SIZE, SEEN), dtype=np.float32),
        "actions": generator.uniform(-1, 1, (SIZE, DONE)).astype(np.float32) * 0.999,
        "rewards": normal(SIZE, dtype=np.float32),
        "next_observations": normal((SIZE, SEEN), dtype=np.float32),
        "terminals": (generator.random(SIZE) < 0.01).astype(np.float32),
        "mc_returns": normal(SIZE, dtype=np.float32),
    }


def made_log(data: dict[str, np.ndarray], returns: bool) -> Dataset:
    """The same numbers as a log of ours, in episodes of at most a thousand steps."""
    from gymnasium.spaces import Box

    over = data["terminals"].astype(bool)
    cut = (np.arange(SIZE) % 1000 == 999) & ~over
    ends = over | cut
    log = Dataset.from_arrays(
        data["observations"],
        data["actions"],
        data["rewards"],
        over,
        cut,
        final_observations=data["next_observations"][ends],
    )
    log = log.derive("noise", {}, spec=replace(log.spec, action_space=Box(-1, 1, (DONE,))))
    return log.with_columns(mc_return=data["mc_returns"]) if returns else log


def ours(
    name: str,
    data: dict[str, np.ndarray],
    batch_size: int = 256,
    replicas: int = 1,
    device: str = "cpu",
    **settings: Any,
) -> Updates:
    """Our updates, as a run does them: batches drawn, diverged replicas watched for."""
    log = made_log(data, returns=name == "cal_ql")
    config = replace(agent_module(name).Config(), **settings)
    agent = make_agent(name, agent_spec(log), config, range(replicas), device)
    loop = Loop(agent, Transitions(log, device=device), batch_size)

    def updates(count: int) -> None:
        loop.advance(count)
        if device != "cpu":
            torch.cuda.synchronize()

    updates(128 if device != "cpu" else 8)
    return updates


class Worker:
    """A peer in an environment of its own: see `peer_worker.py`."""

    def __init__(self, peer: str, python: str, agent: str, precision: str, file: str) -> None:
        words = [python, str(Path(__file__).with_name("peer_worker.py")), peer, agent, "256"]
        self.process = subprocess.Popen(
            [*words, THREADS, precision, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            told = self.process.stderr.read() if self.process.stderr else ""
            raise RuntimeError(f"{peer} does not start: {told.strip().splitlines()[-1:]}")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, count: int) -> float:
        """How long so many updates took over there."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the peer's process."""
        self.process.kill()
        self.process.wait()


def stopwatch(updates: Updates) -> Callable[[int], float]:
    """Seconds of so many updates."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        updates(count)
        return time.perf_counter() - started

    return seconds


def in_turn(
    contestants: dict[str, Callable[[int], float]], rounds: int, pause: float
) -> dict[str, np.ndarray]:
    """Updates a second of each contestant in each round; a turn takes about `pause` seconds."""
    counts = {}
    for name, seconds in contestants.items():
        seconds(8)
        counts[name] = max(8, int(pause / seconds(16) * 16) // 8 * 8)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)[:: 1 if number % 2 else -1]
        for name in names:
            rates[name].append(counts[name] / contestants[name](counts[name]))
    return {name: np.array(values) for name, values in rates.items()}


def told(
    label: str, rates: np.ndarray, base: np.ndarray | None = None, target: float | None = None
) -> None:
    """A row: updates a second, and the ratio to `base` with its range over rounds."""
    line = f"{label:<44} {np.median(rates):>9.1f}"
    if base is not None:
        ratio = rates / base
        line += f"   {np.median(ratio):5.2f}  [{ratio.min():.2f}, {ratio.max():.2f}]"
    print(line + (f"  target {target:g}" if target else ""), flush=True)


def peers_of(
    name: str, data: dict[str, np.ndarray], precision: str, device: str, file: str
) -> tuple[dict[str, Callable[[int], float]], list[Worker], list[str]]:
    """The peers that can be had: stopwatches, processes to end, and why others are missing."""
    found: dict[str, Callable[[int], float]] = {}
    workers, missing = [], []
    try:
        updates = peer_corl.make(name, data, 256, device)

        def corl(count: int) -> None:
            updates(count)
            if device != "cpu":
                torch.cuda.synchronize()

        found["CORL"] = stopwatch(corl)
    except (FileNotFoundError, KeyError) as problem:
        missing.append(f"CORL: {problem}")
    for peer, variable in (("d3rlpy", "OFFRL_WB_D3RLPY"), ("jax_corl", "OFFRL_WB_JAX")):
        python = os.environ.get(variable)
        if not python or (peer == "jax_corl" and name not in JAX):
            missing.append(f"{peer}: {variable} is not set" if not python else f"{peer}: not timed")
            continue
        try:
            workers.append(Worker(peer, python, name, precision, file))
            found[peer] = workers[-1].seconds
        except (RuntimeError, OSError) as problem:
            missing.append(f"{peer}: {problem}")
    return found, workers, missing


def beside_peers(
    name: str,
    data: dict[str, np.ndarray],
    precision: str,
    options: argparse.Namespace,
    file: str,
) -> None:
    """The rows of one agent."""
    mine = {"ours": stopwatch(ours(name, data, device=options.device, **OURS[name]))}
    if name == "iql":
        many = 4 if options.device == "cpu" else 64
        mine[f"ours, {many} replicas"] = stopwatch(
            ours(name, data, replicas=many, device=options.device, **OURS[name])
        )
    peers, workers, missing = peers_of(name, data, precision, options.device, file)
    try:
        rates = in_turn(mine | peers, options.rounds, options.seconds)
    finally:
        for worker in workers:
            worker.close()
    told(f"{name}: ours", rates["ours"])
    for peer in peers:
        told(f"{name}: {peer}", rates[peer])
        target = TARGETS.get((peer, name), 2.0 if peer == "d3rlpy" else None)
        told(f"    ours / {peer}", rates["ours"], rates[peer], target)
    for label in [label for label in mine if "replicas" in label]:
        many = int(label.split()[1])
        told(f"{name}: {label}, in aggregate", many * rates[label])
        for peer in peers:
            told(f"    {label} / {peer}", many * rates[label], rates[peer])
    for reason in missing:
        print(f"    left out: {reason}")


def replica_row(data: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Eight replicas of small networks against eight runs one after another."""
    small = dict(hidden=(64, 64))
    given = dict(batch_size=64, device=options.device)
    alone = stopwatch(ours("iql", data, **given, **small))
    eight = stopwatch(ours("iql", data, replicas=8, **given, **small))
    rates = in_turn({"one": alone, "eight": eight}, options.rounds, options.seconds)
    told("iql, 64 x 64, batch 64: one replica", rates["one"])
    told("    eight replicas, in aggregate", 8 * rates["eight"])
    told("    the same / eight runs in turn", 8 * rates["eight"], rates["one"], 3.5)


def matmul_rate(device: str, seconds: float = 1.0) -> float:
    """GFLOP/s of the product of two 256 x 256 matrices (four of 4096 on a GPU)."""
    size = 256 if device == "cpu" else 4096
    one, two = (torch.randn(size, size, device=device) for _ in range(2))
    out, count, started = torch.empty_like(one), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(20):
            torch.mm(one, two, out=out)
        if device != "cpu":
            torch.cuda.synchronize()
        count += 20
    return 2 * size**3 * count / (time.perf_counter() - started) / 1e9


def profile(name: str, data: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Floating-point operations, share of the measured peak, and where the rest goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled
    from torch.utils.flop_counter import FlopCounterMode

    updates = ours(name, data, device=options.device, **OURS[name])
    with FlopCounterMode(display=False) as counter:
        ours(name, data, device="cpu", **OURS[name])
    flops = counter.get_total_flops() / 8  # `ours` warms up by eight updates on a CPU
    rate = float(np.median(in_turn({"ours": stopwatch(updates)}, 5, options.seconds)["ours"]))
    peak = matmul_rate(options.device)
    share = flops * rate / 1e9 / peak
    print(f"\n{name}: {flops / 1e6:.0f} MFLOP an update, {rate:.0f} updates/s;", end=" ")
    print(f"measured peak {peak:.0f} GFLOP/s, of which {share:.0%} is used")
    activities = [ProfilerActivity.CPU]
    if options.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with profiled(activities=activities) as seen:
        updates(64)
    events = seen.key_averages()
    kernels = sum(e.count for e in events if e.key.startswith("aten::")) / 64
    print(f"operations an update: {kernels:.0f}")
    order = "self_cpu_time_total" if options.device == "cpu" else "self_device_time_total"
    print(events.table(sort_by=order, row_limit=16, max_name_column_width=44))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", default=",".join(OURS), help="names, separated by commas")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="of every contestant")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, about")
    parser.add_argument("--profile", action="store_true", help="where our own time goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, names = made_data(), options.agents.split(",")
    about = dict(torch=torch.__version__, threads=options.threads, device=options.device)
    about |= {"capability": torch.backends.cpu.get_cpu_capability()}
    if options.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
    print(json.dumps(about))
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/data.npz"
        np.savez(file, **data)
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            switch = "on both sides" if precision == "medium" else "off"
            print(f"\nmatmul switch {switch}", end="")
            print(f", peak {matmul_rate(options.device):.0f} GFLOP/s")
            print(f"{'':<44} {'updates/s':>9}   ratio  [range over {options.rounds} rounds]")
            for name in [n for n in names if n in OURS]:
                if name not in agent_names():
                    print(f"{name}: there is no such agent here")
                    continue
                beside_peers(name, data, precision, options, file)
            replica_row(data, options)
            if options.profile:
                for name in names:
                    profile(name, data, options)


if __name__ == "__main__":
    main()
