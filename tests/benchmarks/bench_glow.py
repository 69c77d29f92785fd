"""Timings of GLOW and HyGLOW: `python tests/benchmarks/bench_glow.py`, on a quiet machine.

One core. A round of GLOW is held against the matrix product that it cannot do without; runs against
the loops over transitions of the tests, which give the same runs; explorers against the house's
limits on what a move of a slider may cost.
"""

import os
import resource
import sys
import time
import tracemalloc
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.core.random import stream
from offrl_wb.theory.density_ratios import (
    Problem,
    Statistics,
    add,
    empty_statistics,
    episode_statistics,
    make_problem,
)
from offrl_wb.theory.glow import GLOW, GOLF, Run, one_moment, round_uniforms, run_online
from offrl_wb.theory.hyglow import FQI, MABO, h2o_reduction, hy_q, offline_tuples
from offrl_wb.worlds.layered import completeness_trap, decoy_chains, draw_episodes
from offrl_wb.worlds.tabular import FiniteHorizonMDP
from tests import glow_reference as reference
from tests.benchmarks.timing import row, seconds

STATES, ACTIONS, LAYERS, POLICIES, FUNCTIONS = 200, 5, 2, 1000, 10_000


def large_problem() -> tuple[Problem, Statistics]:
    """10^4 functions with 10^3 greedy policies on 10^3 pairs, and data of 500 rounds before."""
    generator = stream(0, "large")
    pairs = (LAYERS, STATES, ACTIONS)
    transition = generator.dirichlet(np.full(STATES, 0.1), size=pairs)
    mdp = FiniteHorizonMDP(np.full(STATES, 1 / STATES), transition, np.full(pairs, 1 / LAYERS))
    tables = np.repeat(generator.random((POLICIES, *pairs)), FUNCTIONS // POLICIES, axis=0)
    tables *= generator.uniform(0.5, 1, size=(FUNCTIONS, 1, 1, 1))  # the greedy policy stays
    problem = make_problem(mdp, tables)
    assert len(problem.policies) == POLICIES
    assert len(problem.cells) == STATES * ACTIONS
    data = empty_statistics(problem)
    for policy in range(20):
        uniforms = generator.random((25, 1 + 3 * LAYERS))
        episodes = draw_episodes(mdp, problem.policies[policy], uniforms)
        density = problem.occupancies[policy]
        data = add(data, episode_statistics(problem, episodes, density, policy))
    return problem, data


def one_round() -> None:
    """A round against its matrix product, and what it needs of memory."""
    problem, data = large_problem()
    judge = GLOW(0.01).start(problem, 1000)
    given, rounds = one_moment(data), np.array([501])
    generator = stream(0, "product")
    weights = generator.random((POLICIES, STATES * ACTIONS))
    residuals = generator.random((STATES * ACTIONS, FUNCTIONS))
    product = seconds(lambda: weights @ residuals)
    whole = seconds(lambda: judge(given, rounds))
    row("the product (10^3 x 10^3) (10^3 x 10^4)", product)
    row(f"a GLOW round, |F| 10^4, |W| 10^3, 10^3 pairs, {LAYERS} layers", whole)
    ratio = whole[0] / LAYERS / product[0]  # least times: another's load does not decide it
    print(f"{'a layer of a round, in products (least times)':<62} {ratio:>29.2f}  < 3")
    tracemalloc.start()
    judge(given, rounds)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    held = sum(part.nbytes for part in (problem.tables, problem.next_values, problem.occupancies))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{'MiB: tables, values, occupancies that the problem holds':<62} {held / 2**20:>29.0f}")
    print(f"{'MiB: what a round allocates on top, at its peak':<62} {peak:>29.0f}")
    print(f"{'MiB: the process at its largest, building the class included':<62} {resident:>29.0f}")


def slow_run(run: Run, settings: reference.GlowSettings) -> reference.OnlineRun:
    """The same run by loops over transitions, weights and functions."""
    mdp = run.problem.mdp
    lists = reference.as_lists(run.problem.functions.tables)
    uniforms = round_uniforms(run.seed, 0, run.rounds, 2 + 3 * mdp.horizon)[:, None, 1:]

    def judge(slow: reference.OnlineRun, round_: int) -> list[float]:
        weights = reference.glow_weights(mdp, lists, slow.played)
        return reference.glow_excess(slow.data, lists, weights, settings, round_)

    return reference.run_online(mdp, lists, judge, uniforms)


def online_runs(rounds: int = 150) -> None:
    """Rounds a second on the decoy chains (E1: 5 chains, 3 layers)."""
    chains = decoy_chains(5, 3)
    problem, learner = make_problem(chains.mdp, chains.tables), GLOW(0.01, c_beta=0.05)
    settings = reference.GlowSettings(0.01, rounds, 5, 0.1, 0.25, 0.05)
    run = run_online(problem, learner, rounds, 0, ties="first")
    slow = slow_run(run, settings)
    assert slow.chosen == run.chosen.tolist()
    assert [[value <= 1e-9 for value in row_] for row_ in slow.excess] == run.alive.tolist()
    looped = seconds(lambda: slow_run(run, settings), 3)
    fast = seconds(lambda: run_online(problem, learner, rounds, 0, ties="first"))
    row(f"GLOW on 5 decoy chains, {rounds} rounds, loops", looped)
    row("the same run, run_online", fast)
    ratio = looped[len(looped) // 2] / fast[len(fast) // 2]
    print(f"{'ratio of medians; the loops slow down as data grow':<62} {ratio:>29.0f}  > 10")
    learners = {
        "GLOW": GLOW(0.01),
        "GLOW, one round at a time": GLOW(0.01),
        "GLOW without clip and penalty": GLOW(0.01, clip=False, penalty=False),
        "GOLF": GOLF(),
    }
    for name, each in learners.items():
        block = 1 if "one round" in name else 512
        times = seconds(lambda e=each, b=block: run_online(problem, e, 3000, 0, block=b), 3)
        rate(f"{name}, 3000 rounds", times, 3000)
    times = seconds(lambda: run_online(problem, GLOW(0.01), 10**7, 0, growth=0.01), 3)
    row("GLOW, 10^7 rounds, set recomputed every 1 %", times)


def rate(label: str, times: list[float], rounds: int) -> None:
    """Print seconds of a run, and rounds a second in the median."""
    row(label, times)
    middle = times[len(times) // 2]
    print(f"{'    rounds a second':<62} {rounds / middle:>29,.0f}")


def hybrid_runs(rounds: int = 400) -> None:
    """Rounds a second in the completeness trap (E2: 20 functions)."""
    trap = completeness_trap()
    problem = make_problem(trap.mdp, trap.tables, trap.behaviour)
    offline = offline_tuples(problem, rounds, 0)
    runs = {
        "HyGLOW": lambda: h2o_reduction(problem, MABO(0.05, 0.25), offline, rounds),
        "HyGLOW with the box": lambda: h2o_reduction(
            problem, MABO(0.05, 0.25, weights="box"), offline, rounds
        ),
        "H2O with FQI": lambda: h2o_reduction(problem, FQI(), offline, rounds),
        "Hy-Q written out over tuples": lambda: hy_q(problem, offline, rounds),
    }
    for name, each in runs.items():
        rate(f"{name} in the trap, {rounds} rounds", seconds(each, 3), rounds)
    slow_mabo(problem, 30)


def slow_mabo(problem: Problem, rounds: int) -> None:
    """The last of `rounds` rounds of HyGLOW by loops, against the library's."""
    offline = offline_tuples(problem, rounds, 0)
    run = h2o_reduction(problem, MABO(0.05, 0.25), offline, rounds)
    data, mdp = run.data(rounds + 1), problem.mdp
    lists = reference.as_lists(problem.functions.tables)
    steps = [
        [
            reference.Transition(*(column[index, layer].item() for column in part))
            for part in (data.offline, data.online)
            for index in range(rounds)
        ]
        for layer in range(mdp.horizon)
    ]
    played = [reference.occupancy(mdp, run.policies[number]) for number in run.chosen]
    behaviour = np.zeros((mdp.horizon, mdp.reward[0].size))
    behaviour[:, problem.cells] = problem.behaviour
    behaviour = behaviour.reshape(mdp.reward.shape)
    limit = 0.05 * (rounds + 1)

    def looped() -> list[float]:
        ratios = reference.hybrid_weights(mdp, lists, played, behaviour)
        weights = reference.augmented(ratios)
        return reference.mabo_objectives(steps, lists, weights, limit, 0.25 / limit)

    started = time.perf_counter()
    expected = looped()
    slow = time.perf_counter() - started
    learner = MABO(0.05, 0.25)
    assert np.allclose(learner.objective(data), expected, rtol=1e-10, atol=1e-10)
    row(f"one objective of HyGLOW on {2 * rounds} tuples a layer, loops", [slow])
    row("the same, MABO.objective", seconds(lambda: learner.objective(data)))


def explorers(sampled: int = 50) -> None:
    """The computations of the chapter's explorers, as bench_explorers.py takes them (which also
    times them in a browser)."""
    from tests.benchmarks.bench_explorers import EXPLORERS, RUNS, compute_times
    from tests.benchmarks.bench_explorers import row as line

    print("\nexplorers, ms of compute (target: max below 30; where it is a run, p95 below 250)")
    print(f"{'':13} {'n':>5} {'p50':>8} {'p95':>8} {'max':>8}")
    for name, (make, module, _) in EXPLORERS.items():
        if module in ("explore_glow", "explore_hyglow"):
            times = compute_times(make(live=False), sampled)
            run = name in RUNS
            target, worst = (250, np.percentile(times, 95)) if run else (30, times.max())
            print(line(name, times, target, worst), flush=True)


def main() -> None:
    print(f"{'seconds':<62} {'min':>9} {'median':>9} {'max':>9}")
    one_round()
    online_runs()
    hybrid_runs()
    explorers()


if __name__ == "__main__":
    main()
