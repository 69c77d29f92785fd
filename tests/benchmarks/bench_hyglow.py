"""Timings of the hybrid reduction: `python tests/benchmarks/bench_hyglow.py`, on a quiet machine.

The inner maximum of MABO.CR over |F| = 10^4 functions, |W| = 10^3 weights and 10^3 state-actions is
held against the bare matrix product; the driver against 0.3 ms a round on the completeness trap.
"""

import os
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.theory.density_ratios import Statistics, make_problem
from offrl_wb.theory.hyglow import FQI, MABO, h2o_reduction, hy_q, joint_objective, offline_tuples
from offrl_wb.worlds.layered import completeness_trap
from tests.benchmarks.timing import row, seconds

FUNCTIONS, WEIGHTS, CELLS, ROUNDS = 10_000, 1000, 1000, 400


def main() -> None:
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    generator = np.random.default_rng(0)
    residuals = generator.standard_normal((1, CELLS, FUNCTIONS))
    weights = generator.random((WEIGHTS, 1, CELLS))
    nothing = np.zeros(())
    visits = generator.integers(0, 3, (1, CELLS)).astype(float)
    statistics = Statistics(np.float64(500), visits, *(nothing,) * 5)
    out = np.empty((1, WEIGHTS, FUNCTIONS))
    product = seconds(lambda: np.matmul(weights.swapaxes(0, 1), residuals, out=out))
    everything = seconds(lambda: joint_objective(statistics, residuals, weights, 0.1))
    row("matrix product, 10^4 functions, 10^3 weights, 10^3 cells", product)
    row("joint_objective of the same", everything)
    ratio = everything[2] / product[2]
    print(f"{'ratio of medians':<62} {ratio:>29.2f}  < 3")
    trap = completeness_trap()
    problem = make_problem(trap.mdp, trap.tables, trap.behaviour)
    old = offline_tuples(problem, ROUNDS)
    for name, learner in (("MABO.CR (HyGLOW)", MABO()), ("FQI (Hy-Q)", FQI())):
        times = seconds(lambda one=learner: h2o_reduction(problem, one, old, ROUNDS))
        row(f"h2o_reduction, a round, {name}", [t / ROUNDS for t in times], "< 0.0003")
    row("hy_q, a round", [t / ROUNDS for t in seconds(lambda: hy_q(problem, old, ROUNDS))])


if __name__ == "__main__":
    main()
