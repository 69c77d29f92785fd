"""How quick is the dataset explorer?  Run: python tests/benchmarks/bench_explore_dataset.py [moves]

At 1 M transitions with 17 + 6 dimensions, two tables: milliseconds of what the kernel does for each
kind of move, and milliseconds from a key, click or the end of a brush until the last figure that
changes is painted, in a real JupyterLab in headless Chromium. Targets for a quiet two-core machine:
the kernel below 60 ms (an attack, 1 000 gradient steps, 100), the page below 300 ms, each for 95 %
of the moves of every kind.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from offrl_wb.app.dataset_pictures import box
from offrl_wb.app.explore_dataset import DatasetExplorer, explore
from tests.browser import chromium, lab_driver
from tests.browser.dataset_driver import ShownDataset
from tests.large_log import large_log

EPISODES, STEPS = 1_000, 1_000
SOURCE = f"""
from tests.large_log import large_log
from offrl_wb.app.explore_dataset import explore
explorer = explore(large_log({EPISODES}, {STEPS}))
explorer
"""
TIMER = """() => {
  window.started = null; window.finished = null;
  const start = () => { window.started = performance.now(); window.finished = null; };
  for (const event of ["keydown", "mouseup", "change"])
    document.addEventListener(event, start, true);
  for (const plot of document.querySelectorAll(".offrl-dataset .js-plotly-plot"))
    plot.on("plotly_afterplot", () => {
      requestAnimationFrame(() => { window.finished = performance.now(); });
    });
}"""
DONE = "() => window.finished !== null && performance.now() - window.finished > 350"


def kernel_moves(explorer: DatasetExplorer) -> dict[str, Callable[[int], object]]:
    """What the kernel does for each kind of move, by name; the argument counts the moves."""
    look, mixer, corrupter = explorer.look, explorer.mixer, explorer.corrupter
    (left, right), (bottom, top) = explorer.log.plane(*list(explorer.log.axes)[:2]).ranges
    low, high = explorer.log.returns.min(), explorer.log.returns.max()
    axes, columns = list(explorer.log.axes), list(explorer.log.pages())
    rates = corrupter.controls["rate"].settings

    def lower(k: int) -> tuple:
        return ((low, high - (high - low) * 0.1 * (k % 5)),)

    def corner(k: int) -> tuple:
        x = left + (right - left) * (0.4 + 0.05 * (k % 5))
        return (box((left, x), (bottom, (bottom + top) / 2)),)

    return {
        "brush the states": lambda k: look.brush(regions=corner(k)),
        "brush the returns": lambda k: look.brush(returns=lower(k)),
        "slide the returns": lambda k: look.set(low=5 + 5 * (k % 8)),
        "colour": lambda k: look.set(colour=["source", "return", "reward"][k % 3]),
        "axis": lambda k: look.set(x=axes[k % 6]),
        "columns": lambda k: look.set(page=columns[k % len(columns)]),
        "next episode": lambda k: explorer.viewer.press("Next" if k % 8 < 4 else "Previous"),
        "mix": lambda k: mixer.set(by="source", share_0=5 * (k % 20 + 1)),
        "corrupt": lambda k: corrupter.set(element="observations", rate=rates[k % 10 + 1]),
        "attack": lambda k: corrupter.set(mode="adversarial", rate=rates[k % 10 + 1]),
    }


def page_moves(shown: ShownDataset) -> dict[str, tuple[str, Callable[[int], None]]]:
    """What a user does, by name: the tab it is done in, and one move."""

    def slider(label: str, there: str = "Right", back: str = "Left") -> Callable[[int], None]:
        def press(k: int) -> None:
            shown.row(label).locator(".noUi-handle").first.focus()
            shown.page.keyboard.press(f"Arrow{there if k % 8 < 4 else back}")

        return press

    def menu(label: str) -> Callable[[int], None]:
        def choose(k: int) -> None:
            shown.row(label).locator("select").select_option(index=(k + 1) % 3)

        return choose

    def brush(name: str, subplot: int = 0) -> Callable[[int], None]:
        def drag(k: int) -> None:
            end = (0.55 + 0.05 * (k % 5), 0.75)
            shown.brush(name, (0.25, 0.25), end, subplot, act=lambda release: release())

        return drag

    def click(name: str) -> Callable[[int], None]:
        button = shown.page.get_by_role("button", name=name, exact=True)
        return lambda k: button.click()

    return {
        "brush the states": ("Look", brush("states")),
        "brush the returns": ("Look", brush("episodes")),
        "slide the returns": ("Look", slider("returns from")),
        "colour": ("Look", menu("colour by")),
        "axis": ("Look", menu("across")),
        "columns": ("Look", menu("columns")),
        "next episode": ("Episodes", click("Previous")),
        "place of episode": ("Episodes", slider("place", "Left", "Right")),
        "mix": ("Mix", slider("expert")),
        "corrupt": ("Corrupt", slider("rate")),
        "entry shown": ("Corrupt", slider("entry shown")),
    }


def latencies(shown: ShownDataset, move: Callable[[int], None], moves: int) -> np.ndarray:
    """Milliseconds from each of `moves` until the last figure it changes is painted."""
    times = []
    for k in range(moves):
        shown.page.evaluate("window.finished = null")
        move(k)
        shown.page.wait_for_function(DONE)
        times.append(shown.page.evaluate("window.finished - window.started"))
    return np.array(times)


def row(name: str, times: np.ndarray, target: float) -> str:
    p50, p95 = np.percentile(times, [50, 95])
    verdict = "ok" if p95 < target else "TOO SLOW"
    return f"{name:20} {len(times):5} {p50:8.1f} {p95:8.1f} {times.max():8.1f}   {verdict}"


def kernel_table(moves: int) -> None:
    log = large_log(EPISODES, STEPS)
    start = time.perf_counter()
    explorer = explore(log, live=False)
    print(f"\nexplore() itself: {time.perf_counter() - start:.2f} s")
    for name, move in kernel_moves(explorer).items():
        times = []
        for k in range(moves + 2):
            start = time.perf_counter()
            move(k)
            times.append(1000 * (time.perf_counter() - start))
        explorer.look.press()
        target = 100 if name == "attack" else 60
        print(row(name, np.array(times[2:]), target), flush=True)


def page_table(moves: int, path: str) -> None:
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as folder,
        lab_driver.jupyterlab(Path(folder)) as lab,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=path, args=lab_driver.CHROMIUM_ARGUMENTS
        )
        shown = ShownDataset(browser.new_page(viewport={"width": 1200, "height": 1400}))
        shown.open(lab.notebook("explore", SOURCE))
        shown.page.evaluate(TIMER)
        opened = ""
        for name, (tab, move) in page_moves(shown).items():
            if tab != opened:
                shown.tab(tab)
                opened = tab
                if tab == "Mix":
                    shown.select("mix by", "source")
                if tab == "Corrupt":
                    shown.select("spoil", "observations")
            print(row(name, latencies(shown, move, moves), 300), flush=True)
            if name == "brush the returns":
                shown.page.get_by_role("button", name="Clear selection").click()
                shown.settle()
        print(f"points on the page: {shown.points():,} (limit 20 000); problems: {shown.problems}")
        shown.close()
        browser.close()


def main(moves: int = 40) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{platform.machine()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}"
    )
    header = f"{'':20} {'n':>5} {'p50':>8} {'p95':>8} {'max':>8}"
    print(f"{EPISODES * STEPS:,} transitions, 17 + 6 dimensions")
    print(f"\nin the kernel, ms (target: p95 below 60, attack 100)\n{header}")
    kernel_table(moves)
    path = chromium.find()
    if path is None:
        sys.exit("no Chromium or Chrome on this machine: the second table is left out")
    print(f"\nuntil it is painted, ms (target: p95 below 300)\n{header}")
    page_table(moves, path)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
