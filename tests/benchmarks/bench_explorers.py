"""How quick are the explorers?  Run: python tests/benchmarks/bench_explorers.py [moves]

Two tables: milliseconds of `compute` over reachable settings, and milliseconds from a key press on
a slider to the redrawn, painted plot, in a real JupyterLab in headless Chromium. Targets for a
quiet two-core machine: compute below 30 ms at every setting, 95 % of the moves below 250 ms. The
explorers of GLOW and HyGLOW run thousands of rounds of a learner for a new setting: 95 % of their
computations below 250 ms, and 95 % of the moves of the round player below 250 ms.
"""

import contextlib
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.app.explore_glow import (
    explore_decomposition,
    explore_gamma,
    explore_life_bars,
    explore_ratios,
    played_run,
)
from offrl_wb.app.explore_hyglow import explore_round, hybrid_run
from offrl_wb.app.explore_lcb_bandit import explore_arms, explore_winner_map
from offrl_wb.app.explore_lcb_contextual import explore_error_curve
from offrl_wb.app.explore_lcb_mdp import explore_staircase
from offrl_wb.app.explorer import Explorer
from offrl_wb.core.errors import InputError
from tests.browser import chromium, lab_driver

EXPLORERS = {  # name: how it is made, the module it lives in, the slider that is moved
    "arms": (explore_arms, "explore_lcb_bandit", "samples N"),
    "winner map": (explore_winner_map, "explore_lcb_bandit", "penalty of LCB"),
    "error curve": (explore_error_curve, "explore_lcb_contextual", "C* − 1"),
    "staircase": (explore_staircase, "explore_lcb_mdp", "samples N"),
    "clip scale": (explore_gamma, "explore_glow", "clip scale γ"),
    "life bars": (explore_life_bars, "explore_glow", "round t"),
    "ratios": (explore_ratios, "explore_glow", "round t"),
    "decomposition": (explore_decomposition, "explore_glow", "clip scale γ"),
    "one round": (explore_round, "explore_hyglow", "round t"),
}
RUNS = {"life bars", "ratios", "decomposition", "one round"}  # a setting is a run of a learner
SAMPLED_SETTINGS = 400
TIMER = """() => {
  window.latencies = []; window.pressed = null;
  document.addEventListener("keydown", () => { window.pressed = performance.now(); }, true);
  document.querySelector(".js-plotly-plot").on("plotly_afterplot", () => {
    const start = window.pressed;
    if (start === null) return;
    window.pressed = null;
    requestAnimationFrame(() => window.latencies.push(performance.now() - start));
  });
}"""


def compute_times(explorer: Explorer, sampled: int) -> np.ndarray:
    """Milliseconds of compute, best of three, at the ends of every control and at random.

    Runs that explorers keep are forgotten before each computation; a setting that an explorer
    refuses in one line counts like any other.
    """
    generator = np.random.default_rng(0)
    draws = []
    for name, control in explorer.controls.items():
        draws += [
            explorer.initial | {name: end} for end in (control.settings[0], control.settings[-1])
        ]
    for _ in range(sampled):
        draws.append(
            {
                name: control.settings[generator.integers(len(control.settings))]
                for name, control in explorer.controls.items()
            }
        )
    times = []
    for values in draws:
        best = float("inf")
        for _ in range(3):
            for kept in (played_run, hybrid_run):
                kept.cache_clear()
            start = time.perf_counter()
            with contextlib.suppress(InputError):
                explorer.compute(**values)
            best = min(best, time.perf_counter() - start)
        times.append(1000 * best)
    return np.array(times)


def latencies(shown: lab_driver.Shown, slider: str, moves: int) -> np.ndarray:
    """Milliseconds from each of `moves` key presses to the painted plot."""
    shown.page.evaluate(TIMER)
    shown.handle(slider).focus()
    for move in range(moves):
        shown.page.keyboard.press("ArrowRight" if move % 8 < 4 else "ArrowLeft")
        shown.page.wait_for_function("count => window.latencies.length > count", arg=move)
        shown.page.wait_for_timeout(50)
    return np.array(shown.page.evaluate("window.latencies"))


def row(name: str, times: np.ndarray, target: float, worst: float) -> str:
    p50, p95 = np.percentile(times, [50, 95])
    verdict = "ok" if worst < target else "TOO SLOW"
    return f"{name:13} {len(times):5} {p50:8.1f} {p95:8.1f} {times.max():8.1f}   {verdict}"


def main(moves: int = 40) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{platform.machine()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}"
    )
    header = f"{'':13} {'n':>5} {'p50':>8} {'p95':>8} {'max':>8}"
    print(f"\ncompute, ms (target: max below 30; where it is a run, p95 below 250)\n{header}")
    for name, (make, _, _) in EXPLORERS.items():
        times = compute_times(make(live=False), SAMPLED_SETTINGS // (8 if name in RUNS else 1))
        if name in RUNS:
            print(row(name, times, 250, np.percentile(times, 95)), flush=True)
        else:
            print(row(name, times, 30, times.max()), flush=True)
    path = chromium.find()
    if path is None:
        sys.exit("no Chromium or Chrome on this machine: the second table is left out")
    from playwright.sync_api import sync_playwright

    print(f"\nkey press to painted plot, ms (target: p95 below 250)\n{header}")
    with (
        tempfile.TemporaryDirectory() as folder,
        lab_driver.jupyterlab(Path(folder)) as lab,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=path, args=lab_driver.CHROMIUM_ARGUMENTS
        )
        for name, (make, module, slider) in EXPLORERS.items():
            function = make.__name__
            source = f"from offrl_wb.app.{module} import {function}\n{function}()"
            shown = lab_driver.Shown(browser.new_page(viewport={"width": 1200, "height": 1000}))
            shown.open(lab.notebook(function, source))
            times = latencies(shown, slider, moves)
            shown.close()
            print(row(name, times, 250, np.percentile(times, 95)), flush=True)
        browser.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
