"""Timings of VI-LCB: `python tests/benchmarks/bench_lcb_mdp.py`, on a quiet machine.

E3 is the hard-MDP experiment at the card's size (S = 5, discount 0.9, ten N from 1e3 to 1e6, five
C*, 60 data sets a point, all four rules), on one core; the learner is held against the
per-data-set loop of the tests, which gives the same answers.
"""

import os
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.core.random import stream
from offrl_wb.theory.lcb_mdp import iteration_count, value_staircase, vi_lcb, worst_case_losses
from offrl_wb.worlds.tabular import ambiguous_mdp, sample_counts
from tests.benchmarks.timing import row, seconds
from tests.test_lcb_mdp import loop_vi_lcb

CONCENTRABILITIES = (1.0, 1.001, 1.01, 1.05, 1.1)
SIZES = np.geomspace(1e3, 1e6, 10).round().astype(int)
GAPS = np.geomspace(1, 0.0017, 18)


def rates() -> None:
    for concentrability in CONCENTRABILITIES:
        worst_case_losses(concentrability, SIZES, GAPS)


def main() -> None:
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    row("E3, rates of VI-LCB on the hard MDPs, 60 data sets", seconds(rates, 3), "< 60")
    mdp, behaviour = ambiguous_mdp(5, 1.05, 0.25, 0.9)
    counts = sample_counts(mdp, behaviour, 10_000, 200, stream(0, "bench"))
    world = (mdp.successors, mdp.rewards, 0.9, 0.05)
    sweeps = iteration_count(10_000, 0.9)

    def looped() -> list[tuple[np.ndarray, np.ndarray]]:
        return [loop_vi_lcb([data, data], *world, sweeps, 1 / 10_000) for data in counts]

    fast, slow = seconds(lambda: vi_lcb(counts, *world, "none")), seconds(looped, 3)
    plan = vi_lcb(counts, *world, "none")
    values, actions = (np.stack(part) for part in zip(*looped(), strict=True))
    assert np.allclose(plan.values, values, rtol=0, atol=1e-9)
    assert (plan.actions == actions).all()
    row("vi_lcb, 200 data sets of 8 states and 2 actions", fast)
    row("the same, per-data-set loop, same answers", slow)
    ratio = slow[len(slow) // 2] / fast[len(fast) // 2]
    print(f"{'ratio of medians':<62} {ratio:>29.0f}  > 10")
    for split in ("none", "paper"):
        times = seconds(lambda s=split: value_staircase(10**6, 0.04, 0.05, 0.4, 0.95, s, 4), 10)
        row(f"value_staircase (explorer), split {split}", times, "< 0.3")


if __name__ == "__main__":
    main()
