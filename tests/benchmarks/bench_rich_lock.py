"""Steps per second of the rich-observation lock: `python tests/benchmarks/bench_rich_lock.py`.

H = 100, ten actions, 128 numbers an observation, one core, random actions, whole episodes with
their resets, processor time. The plain loop is the environment of the tests, written with
Gymnasium's interface and NumPy, stepped copy by copy: bare, and by Gymnasium's SyncVectorEnv. Each
round measures all of them, so that a busy machine slows them alike; the best rounds count.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from gymnasium.vector import SyncVectorEnv

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.worlds.rich_lock import make_rich_lock, make_rich_lock_vector
from tests.test_rich_lock import PlainLock

HORIZON, ROUNDS = 100, 9


def bare(copies: int) -> Callable[[], None]:
    """An episode of every copy, in a Python loop over the copies."""
    environments = [PlainLock(HORIZON) for _ in range(copies)]
    actions = np.random.default_rng(0).integers(10, size=(HORIZON, copies))

    def episode() -> None:
        np.stack([environment.reset()[0] for environment in environments])
        for row in actions:
            found = [e.step(a) for e, a in zip(environments, row, strict=True)]
            np.stack([step[0] for step in found])
            np.array([step[1] for step in found])

    return episode


def vector(environment: object) -> Callable[[], None]:
    """An episode of every copy of a vector environment."""
    actions = np.random.default_rng(0).integers(10, size=(HORIZON, environment.num_envs))

    def episode() -> None:
        environment.reset()
        for row in actions:
            environment.step(row)

    return episode


def microseconds(episode: Callable[[], None], copies: int, repeats: int) -> float:
    """Processor time of one step of one copy."""
    started = time.process_time()
    for _ in range(repeats):
        episode()
    return (time.process_time() - started) / (repeats * copies * HORIZON) * 1e6


def main() -> None:
    runs = {
        "plain loop, 50 copies": (bare(50), 50, 1),
        "plain loop by SyncVectorEnv, 50 copies": (
            vector(SyncVectorEnv([lambda: PlainLock(HORIZON)] * 50)),
            50,
            1,
        ),
        "our single environment": (vector(SyncVectorEnv([make_rich_lock])), 1, 20),
    }
    for copies in (50, 256, 1000, 4000):
        environment = make_rich_lock_vector(copies)
        runs[f"vectorised, {copies} copies"] = (vector(environment), copies, max(1, 1000 // copies))
    for episode, _, _ in runs.values():
        episode()
    rounds = [{name: microseconds(*run) for name, run in runs.items()} for _ in range(ROUNDS)]
    best = {name: min(found[name] for found in rounds) for name in runs}
    loop, sync = list(best)[:2]
    print(f"{'':<40} {'µs a step':>10} {'steps/s':>11} {'x loop':>7} {'x Sync':>7}")
    for name, cost in best.items():
        ratios = f"{best[loop] / cost:>7.1f} {best[sync] / cost:>7.1f}"
        print(f"{name:<40} {cost:>10.2f} {1e6 / cost:>11,.0f} {ratios}")
    print("target: 20 times the loop, with many copies")


if __name__ == "__main__":
    main()
