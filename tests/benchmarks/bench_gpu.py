"""IQL on a CUDA GPU beside its peers: `python tests/benchmarks/bench_gpu.py`.

The captured loop (64 updates in one graph, data and sampling on the device) with one replica and
with many, against CORL's updates on the same card and, where its environment has a JAX that sees
the card, JAX-CORL's. Batch 256, layers of 256, 17 + 6 dimensions. Two tables: TF32 off and on, on
all sides. Then floating-point operations against the measured peak, and where the rest goes.

    OFFRL_WB_CORL=/path/to/CORL [OFFRL_WB_JAX=/path/to/jaxenv/bin/python \\
    OFFRL_WB_JAX_CORL=/path/to/JAX-CORL] python tests/benchmarks/bench_gpu.py

Without a GPU it says so in one line; `--device cpu` rehearses the same code there, on the same
static memory, for seconds instead of numbers.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor

from offrl_wb.train.agent import agent_module, agent_spec, make_agent
from offrl_wb.train.loop import Loop
from offrl_wb.train.replay import Transitions
from tests.benchmarks import bench_agents, peer_corl

TARGETS = {("corl", 1): 15.0, ("corl", 64): 200.0, ("jax_corl", 1): 1.0}
AHEAD = 64  # updates in one graph


def settled(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def made_loop(data: dict[str, np.ndarray], replicas: int, device: str, static: bool = True) -> Loop:
    """Our IQL in its loop, on `device`, with static memory unless told otherwise."""
    log = bench_agents.made_log(data, returns=False)
    config = agent_module("iql").Config()
    agent = make_agent("iql", agent_spec(log), config, range(replicas), device)
    return Loop(agent, Transitions(log, device=device), 256, ahead=AHEAD, static=static)


def ours(data: dict[str, np.ndarray], replicas: int, device: str) -> bench_agents.Seconds:
    """A stopwatch of our updates, after an ordinary block and a captured one."""
    loop = made_loop(data, replicas, device)

    def updates(count: int) -> None:
        loop.advance(count)
        settled(device)

    updates(2 * AHEAD)
    return bench_agents.stopwatch(updates)


def corl(data: dict[str, np.ndarray], device: str) -> bench_agents.Seconds:
    """A stopwatch of CORL's updates, as its own loop makes them."""
    run = peer_corl.make("iql", data, 256, device)

    def updates(count: int) -> None:
        run(count)
        settled(device)

    updates(AHEAD)
    return bench_agents.stopwatch(updates)


def captured_is_eager(data: dict[str, np.ndarray], device: str) -> None:
    """The captured loop against the plain one: the largest difference after four blocks."""
    loops = [made_loop(data, 2, device, static) for static in (True, False)]
    for loop in loops:
        loop.advance(4 * AHEAD)
        settled(device)
    states: list[dict[str, Tensor]] = [loop.agent.state() for loop in loops]
    apart = max(
        float((states[0][n].double() - states[1][n].double()).abs().max()) for n in states[0]
    )
    print(f"captured against plain loop, {4 * AHEAD} updates: largest difference {apart:.1e}")


def peak(device: str, seconds: float = 0.5) -> float:
    """GFLOP/s of a large float32 product (4096; 512 on a CPU) at the precision set now."""
    size = 4096 if device != "cpu" else 512
    one, two, out = (torch.randn(size, size, device=device) for _ in range(3))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(8):
            torch.mm(one, two, out=out)
        settled(device)
        count += 8
    return 2 * size**3 * count / (time.perf_counter() - started) / 1e9


def peers(
    data: dict[str, np.ndarray], precision: str, device: str, file: str
) -> tuple[dict[str, bench_agents.Seconds], list[bench_agents.Worker]]:
    """The peers that can be had on this device; what is missing is said."""
    found: dict[str, bench_agents.Seconds] = {}
    workers: list[bench_agents.Worker] = []
    try:
        found["corl"] = corl(data, device)
    except (FileNotFoundError, KeyError) as problem:
        print(f"    left out: corl: {problem}")
    python = os.environ.get("OFFRL_WB_JAX")
    os.environ["OFFRL_WB_JAX_DEVICE"] = "gpu" if device != "cpu" else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        if not python:
            raise FileNotFoundError("OFFRL_WB_JAX names no Python: unmeasured")
        workers.append(bench_agents.Worker("jax_corl", python, "iql", precision, file))
        found["jax_corl"] = workers[-1].seconds
    except (RuntimeError, OSError) as problem:
        print(f"    left out: jax_corl: {problem}")
    return found, workers


def table(
    data: dict[str, np.ndarray], precision: str, options: argparse.Namespace, file: str
) -> dict[int, float]:
    """Updates a second beside the peers; our aggregate rates by number of replicas."""
    tf32 = "on" if precision == "high" else "off"
    print(f"\nTF32 {tf32} on every row; a large product at {peak(options.device):.0f} GFLOP/s")
    mine = {f"ours x {n}": ours(data, n, options.device) for n in options.replicas}
    others, workers = peers(data, precision, options.device, file)
    try:
        rates = bench_agents.in_turn(mine | others, options.rounds, options.seconds, 2 * AHEAD)
    finally:
        for worker in workers:
            worker.close()
    for peer in others:
        bench_agents.told(f"{peer} (TF32 {tf32})", rates[peer])
    found = {}
    for number in options.replicas:
        whole = number * rates[f"ours x {number}"]
        found[number] = float(np.median(whole))
        bench_agents.told(f"ours, {number} replicas, in aggregate (TF32 {tf32})", whole)
        for peer in others:
            target = TARGETS.get((peer, number))
            bench_agents.told(f"    the same / {peer}", whole, rates[peer], target)
    return found


def roofline(flops: float, found: dict[str, dict[int, float]], device: str) -> None:
    """Which share of the measured peak the updates reach."""
    print(f"\nproducts of one update of one replica: {flops / 1e6:.0f} MFLOP")
    print(f"{'':<28} {'updates/s':>12} {'GFLOP/s':>10} {'share of peak':>14}")
    for precision, rates in found.items():
        torch.set_float32_matmul_precision(precision)
        top, tf32 = peak(device), "on" if precision == "high" else "off"
        for number, rate in rates.items():
            done = flops * rate / 1e9
            label = f"{number} replicas, TF32 {tf32}"
            print(f"{label:<28} {rate:>12.0f} {done:>10.0f} {done / top:>14.1%}")


def kernels(data: dict[str, np.ndarray], replicas: int, device: str) -> None:
    """Where the time of a replayed block goes: kernels, and the gaps between them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    loop = made_loop(data, replicas, device)
    loop.advance(4 * AHEAD)
    settled(device)
    started = time.perf_counter()
    loop.advance(4 * AHEAD)
    settled(device)
    wall = (time.perf_counter() - started) / (4 * AHEAD) * 1e6
    kind = ProfilerActivity.CUDA if device != "cpu" else ProfilerActivity.CPU
    with profiled(activities=[kind]) as seen:
        loop.advance(4 * AHEAD)
        settled(device)
    name = "self_device_time_total" if device != "cpu" else "self_cpu_time_total"
    events: list[Any] = [e for e in seen.key_averages() if getattr(e, name) > 0]
    events.sort(key=lambda event: -getattr(event, name))
    busy = sum(getattr(e, name) for e in events) / (4 * AHEAD)
    count = sum(e.count for e in events) / (4 * AHEAD)
    print(f"\n{replicas} replicas: {wall:.1f} us an update, of which {busy:.1f} us in", end=" ")
    print(f"{count:.0f} kernels and copies; between them {max(0.0, wall - busy):.1f} us")
    for event in events[:10]:
        spent = getattr(event, name) / (4 * AHEAD)
        print(f"    {event.key[:60]:<60} {spent:>7.2f} us  {event.count / (4 * AHEAD):>5.1f} calls")


def report(options: argparse.Namespace, precisions: Sequence[str] = ("highest", "high")) -> None:
    """All tables."""
    data = bench_agents.made_data()
    captured_is_eager(data, options.device)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", **data)  # type: ignore[arg-type]
        for precision in precisions:
            torch.set_float32_matmul_precision(precision)
            found[precision] = table(data, precision, options, f"{folder}/data.npz")
    flops = bench_agents.operations(bench_agents.ours("iql", data))
    roofline(flops, found, options.device)
    torch.set_float32_matmul_precision("highest")
    for replicas in options.replicas:
        kernels(data, replicas, options.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a turn, about")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: GPU speed is unmeasured (--device cpu rehearses the code)")
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu (a rehearsal)"
    print(f"torch {torch.__version__}, {name}")
    report(options)


if __name__ == "__main__":
    main()
