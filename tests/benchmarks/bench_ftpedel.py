"""Timings of the FTPedel chapter: `python tests/benchmarks/bench_ftpedel.py`, on a quiet machine.

On one core. The evaluation of a set of policies is held against a NumPy loop over policies that
gives the same answers, in one run; peaks are of memory beyond the world and the set.
"""

import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.app import explore_ftpedel
from offrl_wb.app.explorer import Explorer
from offrl_wb.core.random import stream
from offrl_wb.theory.ftpedel import ftpedel
from offrl_wb.theory.policy_sets import all_deterministic, softmax_class
from offrl_wb.worlds.linear import (
    LinearMDP,
    draw_log,
    feature_visitations,
    moments_from_counts,
    simplex_world,
    two_room,
    two_room_visits,
    visitation_values,
)
from tests.benchmarks.timing import row, seconds


def peak(function: Callable[[], object]) -> float:
    """Megabytes that a call of `function` has in use at most."""
    tracemalloc.start()
    function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


def batched(world: LinearMDP, policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visitations and values, as the library makes them."""
    visitations = feature_visitations(world, policies)
    return visitations, visitation_values(world, visitations)


def looped(world: LinearMDP, policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visitations and values, one policy at a time."""
    flat = world.phi.reshape(-1, world.dimension)
    visitations = np.empty((len(policies), world.horizon, world.dimension))
    values = np.empty(len(policies))
    for index, policy in enumerate(policies):
        arriving, value = world.initial, 0.0
        for layer in range(world.horizon):
            met = (policy[layer] * arriving[:, None]).reshape(-1) @ flat
            value += met @ world.theta[layer]
            arriving = met @ world.mu[layer]
            visitations[index, layer] = met
        values[index] = value
    return visitations, values


def policy_evaluation() -> None:
    world = simplex_world(50, 4, 20, 5, seed=0)
    policies = stream(0, "bench").dirichlet(np.ones(4), size=(10_000, 5, 50))
    slow = seconds(lambda: looped(world, policies), 5)
    fast = seconds(lambda: batched(world, policies), 9)
    for one, other in zip(batched(world, policies), looped(world, policies), strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-12)
    row("values and visitations, 10^4 policies, S 50, A 4, d 20, H 5", fast, "< 0.2")
    row("the same, NumPy loop over policies, same answers", slow)
    ratio = slow[len(slow) // 2] / fast[len(fast) // 2]
    print(f"{'ratio of medians':<62} {ratio:>29.1f}  > 3")
    actions = stream(0, "bench").integers(4, size=(10_000, 5, 50))
    row("the same size, integer actions", seconds(lambda: batched(world, actions), 9))
    for name, function in (("batched", batched), ("loop", looped)):
        most = peak(lambda f=function: f(world, policies))
        print(f"{'peak memory, ' + name:<62} {most:>27.1f} MB")


def explorers(moves: int = 100) -> None:
    """Compute and redraw after a jump to a random setting, with nothing kept from before; then
    steps of one slider, as a reader takes them, with what was kept."""
    print(f"\n{'explorers, seconds':<62} {'median':>9} {'95 %':>9} {'max':>9}")
    kept = (explore_ftpedel.kinds_of, explore_ftpedel.left_to_play, explore_ftpedel.run_of)
    for name in ("filling", "coefficient", "epochs", "design"):
        explorer = getattr(explore_ftpedel, f"explore_{name}")(live=False)
        draw = stream(0, "bench explorers", name)
        jumps, steps = [], []
        for _ in range(moves):
            values = {
                key: control.settings[draw.integers(len(control.settings))]
                for key, control in explorer.controls.items()
            }
            for each in kept:
                each.cache_clear()
            jumps.append(moved(explorer, values))
            pulls = explorer.controls["pulls"].settings
            at = pulls.index(values["pulls"])
            steps.append(moved(explorer, {"pulls": pulls[at + 1 if at == 0 else at - 1]}))
        for what, times in (("any setting", jumps), ("one step of the log", steps)):
            middle, high, top = np.percentile(times, [50, 95, 100])
            label = f"{name}: {what}, compute and draw"
            print(f"{label:<62} {middle:>9.4f} {high:>9.4f} {top:>9.4f}  95 % < 0.3")


def moved(explorer: Explorer, values: dict[str, object]) -> float:
    """Seconds that `explorer` takes to show `values`."""
    started = time.perf_counter()
    explorer.set(**values)
    took = time.perf_counter() - started
    assert explorer.error == "", explorer.error
    return took


def certificates() -> None:
    """Whole runs: two rooms at epsilon 0.025, and ten thousand policies."""
    rooms = two_room(0.025)
    every = all_deterministic(rooms)
    visits = two_room_visits(rooms, round(120 / 0.025**2))
    log = moments_from_counts(rooms, *draw_log(rooms, visits, stream(0, "bench, log")))
    for name, held in (("no log", None), ("with the log", log)):
        times = seconds(lambda h=held: ftpedel(rooms, every, h, 0.025), 9)
        row(f"FTPedel, two rooms, epsilon 0.025, {name}", times, "< 1")
    world = simplex_world(15, 3, 20, 5, seed=0)
    crowd = softmax_class(world, 10_000, seed=0)
    row("FTPedel, 10^4 policies, d 20, H 5", seconds(lambda: ftpedel(world, crowd, None, 0.1), 3))


def main() -> None:
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    policy_evaluation()
    certificates()
    explorers()


if __name__ == "__main__":
    main()
