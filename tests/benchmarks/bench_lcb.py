"""Timings of the LCB chapter: `python tests/benchmarks/bench_lcb.py`, on a quiet machine.

E2 is the contextual phase transition at its full size (14 gaps, 8 values of N, 6 of C*, 400 data
sets each), on one core; the learner is held against a per-data-set loop that gives the same
answers; imports are whole processes.
"""

import os
import subprocess
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.core.random import stream
from offrl_wb.theory import lcb_bandit, lcb_contextual, lcb_scale
from offrl_wb.worlds.bandits import ambiguous_contexts
from tests.benchmarks.timing import row, seconds
from tests.test_lcb_bandits import loop_lcb


def phase_transition() -> None:
    for label in ("1", "1+1/N", "1.05", "1.2", "1.5", "2"):
        for size in 100 * 2 ** np.arange(8):
            concentrability = 1 + 1 / size if label == "1+1/N" else float(label)
            generator = stream(0, "bench", label, int(size))
            lcb_contextual.family_losses(10, concentrability, int(size), 400, generator)


def main() -> None:
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    row("E2, contextual phase transition, 400 data sets", seconds(phase_transition, 3), "< 5")
    counts, sums = ambiguous_contexts(10, 1.2, 0.25).sample(1000, 4000, stream(0, "bench"))
    fast = seconds(lambda: lcb_contextual.lcb_contextual(counts, sums))
    slow = seconds(lambda: loop_lcb(counts, sums, 0.5, "paper"), 3)
    assert (
        lcb_contextual.lcb_contextual(counts, sums) == loop_lcb(counts, sums, 0.5, "paper")
    ).all()
    row("learner, 4000 data sets of 11 contexts and 2 actions", fast)
    row("the same, per-data-set loop", slow)
    print(f"{'ratio of medians':<62} {slow[1] / fast[2]:>29.0f}  > 10")
    row("error_curve (explorer)", seconds(lambda: lcb_contextual.error_curve(0.1), 20), "< 0.03")
    row("winner_map (explorer)", seconds(lambda: lcb_bandit.winner_map(0.3), 20), "< 0.03")
    row(
        "arms_picture (explorer)",
        seconds(lambda: lcb_bandit.arms_picture(500, 2, 0.2), 20),
        "< 0.03",
    )
    large = dict(contexts=1000, excess=0.1, sizes=np.array([10**8]), datasets=1000)
    row(
        "one point at N = 1e8, S = 1000",
        seconds(lambda: lcb_scale.contextual_losses(generator=stream(0, "b"), **large)),
    )
    for module in ("offrl_wb.theory.lcb_bandit", "offrl_wb.theory.lcb_mdp", "numpy"):
        command = [sys.executable, "-c", f"import {module}"]
        row(
            f"python -c 'import {module}'",
            seconds(lambda c=command: subprocess.run(c, check=True)),
            "" if module == "numpy" else "well under 0.5",
        )


if __name__ == "__main__":
    main()
