"""Updates a second of our agents beside their peers: `python tests/benchmarks/bench_agents.py`.

Batch 256, 17 + 6 dimensions, layers of 256 as the peer has them, two threads; an update includes
drawing its batch. Contestants take turns, round after round, and a ratio is the median over rounds
of "ours divided by the peer's" in the same round. Two tables: as PyTorch comes, and with the matmul
switch (`torch.set_float32_matmul_precision("medium")`) on both sides. Run it on a quiet machine:

    OFFRL_WB_CORL=/path/to/CORL OFFRL_WB_D3RLPY=/path/to/env/bin/python \\
    OFFRL_WB_JAX=/path/to/jaxenv/bin/python OFFRL_WB_JAX_CORL=/path/to/JAX-CORL \\
    python tests/benchmarks/bench_agents.py [ROW ...] [--peer corl] [--switch off]

Rows: agents (iql, td3_bc, cql, sac_n; bc and cal_ql on demand), `replicas` (eight small networks at
once against eight runs in turn), `precision` (what the switch does to a product), `profile` (where
the time of our IQL goes). What is not given is left out and named. d3rlpy runs in the first table
only, unless it is asked for by `--peer`; the memory benchmark is `bench_memory.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from offrl_wb.train.agent import agent_module, agent_spec, make_agent
from offrl_wb.train.loop import Loop
from offrl_wb.train.replay import Transitions
from tests.benchmarks import peer_corl

Updates = Callable[[int], None]
Seconds = Callable[[int], float]
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
    ("corl", "td3_bc"): 1.5,
    ("corl", "iql"): 1.5,
    ("corl", "cql"): 1.2,
    ("corl", "sac_n"): 1.2,
}
AGENTS = ("td3_bc", "iql", "cql", "sac_n")
PEERS = ("corl", "d3rlpy", "jax_corl")
JAX = ("iql",)


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
    **settings: Any,
) -> Updates:
    """Our updates, as a run does them: batches drawn, diverged replicas watched for."""
    log = made_log(data, returns=name == "cal_ql")
    config = replace(agent_module(name).Config(), **settings)
    agent = make_agent(name, agent_spec(log), config, range(replicas))
    loop = Loop(agent, Transitions(log), batch_size)

    def updates(count: int) -> None:
        loop.advance(count)

    updates(8)
    return updates


class Worker:
    """A peer in an environment of its own: see `peer_worker.py`."""

    def __init__(self, peer: str, python: str, agent: str, precision: str, file: str) -> None:
        words = [python, str(Path(__file__).with_name("peer_worker.py")), peer, agent, "256"]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*words, THREADS, precision, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        if self._answer() != "ready":
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"does not start: {said[-1]}")

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
        self.errors.close()


def stopwatch(updates: Updates) -> Seconds:
    """Seconds of so many updates."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        updates(count)
        return time.perf_counter() - started

    return seconds


def in_turn(
    contestants: dict[str, Seconds], rounds: int, pause: float, least: int = 8
) -> dict[str, np.ndarray]:
    """Updates a second of each contestant in each round; a turn takes about `pause` seconds.

    A turn is of a multiple of `least` updates, or of half of it where that takes longer.
    """
    counts = {}
    for name, seconds in contestants.items():
        seconds(least)
        counts[name] = max(least // 2, int(pause / seconds(least)) * least)
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
        if target:
            line += f"  target {target:g}: {'met' if np.median(ratio) >= target else 'missed'}"
    print(line, flush=True)


def peers_of(
    name: str, data: dict[str, np.ndarray], wanted: Sequence[str], precision: str, file: str
) -> tuple[dict[str, Seconds], list[Worker], list[str]]:
    """The peers that can be had: stopwatches, processes to end, and why others are missing."""
    found: dict[str, Seconds] = {}
    workers, missing = [], []
    for peer in wanted:
        if peer == "jax_corl" and name not in JAX:
            continue
        try:
            if peer == "corl":
                found[peer] = stopwatch(peer_corl.make(name, data, 256, "cpu"))
                continue
            variable = {"d3rlpy": "OFFRL_WB_D3RLPY", "jax_corl": "OFFRL_WB_JAX"}[peer]
            if not os.environ.get(variable):
                raise FileNotFoundError(f"{variable} names no Python")
            workers.append(Worker(peer, os.environ[variable], name, precision, file))
            found[peer] = workers[-1].seconds
        except (RuntimeError, OSError, KeyError) as problem:
            missing.append(f"{peer}: {problem}")
    return found, workers, missing


def beside_peers(
    name: str, data: dict[str, np.ndarray], precision: str, options: argparse.Namespace, file: str
) -> None:
    """The rows of one agent."""
    wanted = options.peer or [p for p in PEERS if p != "d3rlpy" or precision == "highest"]
    updates = ours(name, data, **OURS[name])
    mine = {"ours": stopwatch(updates)}
    if name == "iql":
        mine["ours, 4 replicas"] = stopwatch(ours(name, data, replicas=4, **OURS[name]))
    peers, workers, missing = peers_of(name, data, wanted, precision, file)
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
    if "ours, 4 replicas" in rates:
        told(f"{name}: ours, 4 replicas, in aggregate", 4 * rates["ours, 4 replicas"])
        for peer in peers:
            target = 1.0 if peer == "jax_corl" else None
            told(f"    4 replicas / {peer}", 4 * rates["ours, 4 replicas"], rates[peer], target)
    flops = operations(updates)
    most = product_rate() * 1e9 / flops
    line = f"    {flops / 1e6:.0f} MFLOP; its products alone, at full speed: {most:.1f}"
    line += "".join(f", {most / np.median(rates[peer]):.2f} x {peer}" for peer in peers)
    print(line + "".join(f"\n    left out: {reason}" for reason in missing), flush=True)


def replica_row(data: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Eight replicas of small networks against eight runs one after another."""
    small: dict[str, Any] = dict(batch_size=64, hidden=(64, 64))
    alone = stopwatch(ours("iql", data, **small))
    eight = stopwatch(ours("iql", data, replicas=8, **small))
    rates = in_turn({"one": alone, "eight": eight}, options.rounds, options.seconds)
    told("iql, 64 x 64, batch 64: one replica", rates["one"])
    told("    eight replicas, in aggregate", 8 * rates["eight"])
    told("    the same / eight runs in turn", 8 * rates["eight"], rates["one"], 3.5)


def product_rate(seconds: float = 0.5) -> float:
    """GFLOP/s of the product of two 256 x 256 matrices: the best of many short turns."""
    one, two, out = (torch.randn(256, 256) for _ in range(3))
    best, started = 1e9, time.perf_counter()
    while (turn := time.perf_counter()) - started < seconds:
        for _ in range(8):
            torch.mm(one, two, out=out)
        best = min(best, (time.perf_counter() - turn) / 8)
    return 2 * 256**3 / best / 1e9


def operations(updates: Updates) -> float:
    """Floating-point operations of the products of one update, counted over two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        updates(2)
    return counter.get_total_flops() / 2


def precision_rows() -> None:
    """The relative error of the products in use, against float64, without and with the switch."""
    shapes = {
        "first layer, forward": ((256, 23), (23, 256)),
        "hidden layer, forward": ((256, 256), (256, 256)),
        "two critics at once": ((2, 256, 256), (2, 256, 256)),
        "first layer, its gradient": ((23, 256), (256, 256)),
        "last layer, forward": ((256, 256), (256, 12)),
    }
    print(f"\n{'relative error of a product':<44} {'off':>9} {'on':>9}")
    for label, (left, right) in shapes.items():
        one, two = torch.randn(left), torch.randn(right)
        exact, errors = one.double() @ two.double(), []
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            apart = (one @ two).double() - exact
            errors.append(float(apart.norm() / exact.norm()))
        print(f"{label:<44} {errors[0]:>9.1e} {errors[1]:>9.1e}")
    torch.set_float32_matmul_precision("highest")


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def profile_rows(data: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Where the time of one update of our IQL goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    updates = ours("iql", data, **OURS["iql"])
    flops = operations(updates)
    rates = in_turn({"ours": stopwatch(updates)}, options.rounds, options.seconds)["ours"]
    whole, peak = 1e3 / float(np.median(rates)), product_rate()
    with profiled(activities=[ProfilerActivity.CPU]) as seen:
        updates(64)
    events = [e for e in seen.key_averages() if e.key.startswith("aten::")]
    spent = {e.key: e.self_cpu_time_total / 64e3 for e in events}
    products = sum(spent.get(name, 0.0) for name in PRODUCTS)
    count, others = sum(e.count for e in events) / 64, sum(spent.values()) - products
    print(f"\niql, one replica: {flops / 1e6:.0f} MFLOP in {whole:.2f} ms an update;", end="")
    print(f" the largest speed of a 256 x 256 product is {peak:.0f} GFLOP/s")
    for label, time_of in (
        ("all products at that speed", flops / peak / 1e6),
        ("the products, profiled", products),
        (f"{count:.0f} other operations, profiled", others),
        ("Python and autograd between them", max(0.0, whole - products - others)),
    ):
        print(f"    {label:<40} {time_of:>7.2f} ms")
    for name in sorted(spent, key=lambda name: -spent[name])[:12]:
        calls = next(e.count for e in events if e.key == name) / 64
        print(f"        {name:<34} {spent[name]:>7.3f} ms {calls:>6.1f} calls")


def main() -> None:
    known = (*OURS, "replicas", "precision", "profile")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)}")
    parser.add_argument("--peer", action="append", choices=PEERS, help="only this one; repeatable")
    parser.add_argument("--switch", default="both", choices=("off", "on", "both"))
    parser.add_argument("--threads", type=int, default=2, help="of every contestant")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a turn, about")
    options = parser.parse_args()
    rows = options.rows or [*AGENTS, "replicas", "precision", "profile"]
    if unknown := [row for row in rows if row not in known]:
        parser.error(f"there is no row {unknown[0]}: the rows are {', '.join(known)}")
    torch.set_num_threads(options.threads)
    data = made_data()
    about = dict(torch=torch.__version__, threads=options.threads)
    print(json.dumps(about | {"capability": torch.backends.cpu.get_cpu_capability()}))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", **data)  # type: ignore[arg-type]
        for precision in ("highest", "medium"):
            if options.switch == ("off" if precision == "medium" else "on"):
                continue
            torch.set_float32_matmul_precision(precision)
            table(rows, data, precision, options, f"{folder}/data.npz")
    torch.set_float32_matmul_precision("highest")
    if "precision" in rows:
        precision_rows()
    if "profile" in rows:
        profile_rows(data, options)


def table(
    rows: Sequence[str],
    data: dict[str, np.ndarray],
    precision: str,
    options: argparse.Namespace,
    file: str,
) -> None:
    """The rows of one setting of the switch."""
    chosen = [row for row in rows if row in OURS or row == "replicas"]
    if not chosen:
        return
    switch = "on, on both sides" if precision == "medium" else "off"
    print(f"\nmatmul switch {switch}: a 256 x 256 product at {product_rate():.0f} GFLOP/s")
    print(f"{'':<44} {'updates/s':>9}   ratio  [range over {options.rounds} rounds]", flush=True)
    for row in chosen:
        if row == "replicas":
            replica_row(data, options)
        else:
            beside_peers(row, data, precision, options, file)


if __name__ == "__main__":
    main()
