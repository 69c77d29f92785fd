"""The dataset explorer in a real JupyterLab: brushes, sliders and tabs change what they should."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offrl_wb.app.dataset_pictures import POINTS, pendulum_log
from offrl_wb.app.explore_dataset import PAGE_LIMIT, TABS

from .dataset_driver import ROOT, ShownDataset
from .lab_driver import DARK, LIGHT, Lab
from .test_explorers import contrast

SOURCE = """
from offrl_wb.app.dataset_pictures import POINTS, pendulum_log
from offrl_wb.app.explore_dataset import explore

log = pendulum_log()
explorer = explore(log)
explorer
"""
SHOT = Callable[..., ShownDataset]


@pytest.fixture(scope="module")
def show_dataset(lab: Lab, chromium: Any) -> Iterator[Callable[..., ShownDataset]]:
    """Open the explorer; each width and theme once, put back to its first picture in between."""
    opened: dict[tuple[int, str], ShownDataset] = {}

    def open_explorer(width: int = 1200, theme: str = LIGHT) -> ShownDataset:
        key = (width, theme)
        if key not in opened:
            lab.theme(theme)
            page = chromium.new_page(viewport={"width": width, "height": 1400})
            opened[key] = ShownDataset(page)
            opened[key].open(lab.notebook("dataset", SOURCE))
        shown = opened[key]
        shown.tab("Look")
        if not shown.status().startswith("All"):
            shown.click("Clear selection")
        return shown

    yield open_explorer
    for shown in opened.values():
        shown.close()


def number(status: str) -> int:
    """The first number of a status line."""
    return int("".join(c for c in status.split(" transitions")[0].split(" of ")[0] if c.isdigit()))


def total(shown: ShownDataset, name: str, index: int) -> float:
    return sum(shown.trace_of(name, index, "y"))


def drawn_points(shown: ShownDataset) -> int:
    return sum(len(shown.trace_of("states", k, "x")) for k in range(7))


def test_brushing_the_states_filters_episodes_and_columns(show_dataset: SHOT) -> None:
    shown = show_dataset()
    everything = number(shown.status())
    columns, episodes = shown.trace_of("columns", 1, "y"), total(shown, "episodes", 1)
    shown.brush("states", (0.35, 0.0), (0.65, 0.12))  # upright
    assert shown.status().startswith("Selected:")
    assert number(shown.status()) < everything
    assert total(shown, "episodes", 1) < episodes == total(shown, "episodes", 0)
    upright = shown.trace_of("columns", 1, "y")
    assert upright != columns
    assert sum(upright[-6:]) > sum(columns[-6:]), "the cosine is near one"
    wide = number(shown.status())
    shown.brush("states", (0.4, 0.02), (0.5, 0.1))
    assert 0 < number(shown.status()) < wide, "a brush may begin inside the old one"
    shown.click("Clear selection")
    assert number(shown.status()) == everything
    assert shown.trace_of("columns", 1, "y") == columns
    assert shown.problems == []


def test_a_lasso_selects_and_a_double_click_clears(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.lasso("states", [(0.3, 0.6), (0.7, 0.6), (0.7, 0.95), (0.3, 0.95)])
    assert shown.status().startswith("Selected:")
    area = shown.area("states")
    shown.act(lambda: shown.page.mouse.dblclick(area["x"] + 12, area["y"] + area["height"] - 12))
    assert shown.status().startswith("All")
    shown.plot("states").hover()
    shown.plot("states").locator(".modebar-btn[data-title='Box Select']").click()
    assert shown.problems == []


def test_brushing_the_returns_filters_the_states(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.select("colour by", "return")
    labels = [shown.trace_of("states", k, "name") for k in range(6)]
    before = [len(shown.trace_of("states", k, "x")) for k in range(6)]
    assert " to " in labels[0]
    shown.brush("episodes", (0.0, 0.3), (0.5, 0.8))  # the lower half of the returns
    after = [len(shown.trace_of("states", k, "x")) for k in range(6)]
    assert after[-1] == 0 < before[-1], "no good episode is left"
    assert after[0] > before[0], "the bad ones are shown in more detail"
    assert total(shown, "episodes", 3) < total(shown, "episodes", 2), "lengths are filtered too"
    assert shown.row("returns to").locator(".widget-readout").inner_text() != "highest"
    shown.select("colour by", "source")
    assert shown.problems == []


def test_the_return_sliders_brush_from_the_keyboard(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.keys("returns from", "ArrowRight", times=10)
    assert "in 75 of 150 episodes" in shown.status()
    shown.keys("returns to", "ArrowLeft", times=10)
    assert shown.problem() or "in 0 of" not in shown.status()
    shown.click("Clear selection")
    shown.select("columns", "actions")
    title = shown.plot("columns").locator(".annotation-text").first.text_content()
    assert title.startswith("action_0")
    assert "at low" in title
    shown.select("columns", "overview")
    assert shown.problems == []


def test_other_axes_redraw_the_plane(show_dataset: SHOT) -> None:
    shown = show_dataset()
    before = shown.trace_of("states", 0, "x")
    shown.select("across", "obs_2")
    assert shown.trace_of("states", 0, "x") != before
    assert max(shown.trace_of("states", 0, "x")) > 4, "the speed goes up to 8"
    shown.select("across", "PCA 1 (38%)")
    assert shown.problems == []


def test_a_click_on_a_state_opens_its_episode(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.tab("Episodes")
    before = shown.status()
    shown.tab("Look")
    place = shown.plot("states").locator(".scatterlayer .point").nth(40)
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.page.mouse.move(*middle)
    shown.page.wait_for_selector(f"{ROOT} .hoverlayer .hovertext")
    shown.act(lambda: shown.page.mouse.click(*middle))
    assert shown.page.locator(f"{ROOT} .lm-TabBar-tab.lm-mod-current").inner_text() == "Episodes"
    assert shown.status() != before
    assert shown.problems == []


def test_the_viewer_shows_the_selected_episodes(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.select("source", "random")
    shown.tab("Episodes")
    assert "of 50 selected episodes" in shown.status()
    assert "source random" in shown.status()
    reward = shown.trace_of("viewer", 0, "y")
    assert len(reward) == 120
    shown.click("Previous")
    assert shown.trace_of("viewer", 0, "y") != reward
    shown.keys("place", "Home")
    assert "(1 of 50 selected episodes)" in shown.status()
    worst = shown.trace_of("viewer", 1, "y")[-1]
    shown.keys("place", "End")
    assert shown.trace_of("viewer", 1, "y")[-1] > worst
    shown.select("traces", "observations")
    titles = shown.plot("viewer").locator(".annotation-text").all_text_contents()
    assert [t for t in titles if t] == ["reward", "return so far", "obs_0", "obs_1", "obs_2"]
    shown.select("traces", "overview")
    assert shown.problems == []


def test_a_share_slider_moves_the_return_histogram(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.tab("Mix")
    log = shown.trace_of("mixture", 0, "y")
    assert shown.trace_of("mixture", 1, "y") == log
    shown.select("mix by", "source")
    for name in ("noisy", "swing up"):
        shown.keys(name, "Home")
    mixed = shown.trace_of("mixture", 1, "y")
    worse = sum(mixed[: len(mixed) // 2]) - sum(log[: len(log) // 2])
    assert worse > 0.3, "only random episodes are left"
    assert shown.trace_of("mixture", 0, "y") == log
    assert shown.trace_of("mixture", 5, "x") == [0, 1, 0]
    shown.page.evaluate(FOCUS, shown.row("random").locator(".noUi-handle").element_handle())
    shown.page.keyboard.press("Home")
    shown.page.wait_for_selector(f"{ROOT} .offrl-error:visible:not(:empty)")
    assert shown.problem() == "every share is 0: move one of the sliders up"
    assert shown.trace_of("mixture", 1, "y") == mixed, "the picture stays"
    shown.click("Reset")
    assert shown.trace_of("mixture", 1, "y") == log
    assert shown.problems == []


FOCUS = "(handle) => handle.focus()"


def test_a_corruption_slider_changes_the_after_panel(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.tab("Corrupt")
    assert shown.trace_of("damage", 1, "x") == []
    shown.select("spoil", "observations")
    spoiled, after = len(shown.trace_of("damage", 1, "x")), shown.trace_of("damage", 3, "y")
    assert spoiled > 100
    assert after != shown.trace_of("damage", 2, "y")
    shown.keys("rate", "End")
    assert len(shown.trace_of("damage", 1, "x")) > 1.5 * spoiled
    assert shown.trace_of("damage", 3, "y") != after
    shown.keys("scale (in std)", "Home")
    x, y = (shown.trace_of("damage", 1, axis) for axis in "xy")
    assert x == y, "no scale, no change"
    shown.select("mode", "adversarial")
    shown.keys("scale (in std)", "ArrowRight", times=10)
    assert shown.trace_of("damage", 1, "x") != shown.trace_of("damage", 1, "y")
    shown.click("Reset")
    assert shown.problems == []


def test_the_code_tab_shows_python_that_makes_the_dataset(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.tab("Mix")
    shown.select("mix by", "quality")
    shown.keys("replay", "Home")
    shown.tab("Corrupt")
    shown.select("spoil", "rewards")
    shown.tab("Code")
    code = shown.page.locator(f"{ROOT} .offrl-code pre")
    text = code.inner_text()
    log = pendulum_log()
    names: dict[str, Any] = {"explored": log}
    exec(text, names)
    assert 0 < len(names["dataset"]) < len(log)
    assert names["dataset"].transitions["corrupted_reward"].sum() > 0
    shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.page.get_by_role("button", name="Copy the code").click()
    shown.page.wait_for_selector(f"{ROOT} .offrl-code span:not(:empty)")
    assert shown.page.evaluate("navigator.clipboard.readText()") == text
    code.focus()
    assert code.evaluate("element => element === document.activeElement")
    for tab in ("Mix", "Corrupt"):
        shown.tab(tab)
        shown.click("Reset")
    shown.tab("Code")
    assert "mix(" not in code.inner_text()
    assert shown.problems == []


def test_tabs_answer_to_the_keyboard(show_dataset: SHOT) -> None:
    shown = show_dataset()
    shown.page.locator(f"{ROOT} .lm-TabBar-tab").first.focus()
    for title in TABS[1:3]:
        shown.page.keyboard.press("ArrowRight")
        shown.page.keyboard.press("Enter")
        current = shown.page.locator(f"{ROOT} .lm-TabBar-tab.lm-mod-current")
        assert current.inner_text() == title
    assert shown.page.locator(f"{ROOT} .lm-TabBar-tab").first.get_attribute("role") == "tab"


def test_figures_and_sliders_have_names_for_assistive_technology(show_dataset: SHOT) -> None:
    shown = show_dataset()
    for tab, name, start in (
        ("Look", "states", "Scatter plot of a sample"),
        ("Look", "episodes", "Two histograms of the episodes"),
        ("Look", "columns", "Small histograms of columns"),
        ("Episodes", "viewer", "Traces of one episode"),
        ("Mix", "mixture", "Histograms of returns"),
        ("Corrupt", "damage", "Scatter plot of one column"),
    ):
        shown.tab(tab)
        plot = shown.plot(name)
        assert plot.get_attribute("role") == "img"
        assert plot.get_attribute("aria-label").startswith(start)
    shown.tab("Look")
    slider = shown.page.get_by_role("slider", name="returns from")
    assert slider.get_attribute("aria-valuetext") == "lowest"
    assert shown.page.get_by_role("status").filter(has_text="transitions in").count() >= 1


@pytest.mark.parametrize(("width", "theme"), [(1200, LIGHT), (800, DARK)])
def test_nothing_overflows_and_the_text_is_legible(
    show_dataset: SHOT, width: int, theme: str, tmp_path: Path
) -> None:
    shown = show_dataset(width, theme)
    for tab in TABS:
        shown.tab(tab)
        if tab == "Mix":
            shown.select("mix by", "source")
        if tab == "Corrupt":
            shown.select("spoil", "actions")
        shown.page.screenshot(path=tmp_path / f"{tab}-{width}-{theme.split()[-1]}.png")
        assert shown.overflows() == [], tab
    for part in (".offrl-code pre", ".widget-label", ".jupyter-button", ".offrl-readout"):
        assert contrast(*legible(shown, part)) >= 4.5, f"{part} on {theme}"
    for tab in ("Mix", "Corrupt"):
        shown.tab(tab)
        shown.click("Reset")
    assert shown.problems == []


def legible(shown: ShownDataset, part: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ink and paper of the first such part."""
    ink, paper = shown.page.evaluate(INK, f"{ROOT} {part}")
    return tuple(ink), tuple(paper)


INK = """(selector) => {
  const part = document.querySelector(selector);
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const solid = (element) => {
    const channels = numbers(getComputedStyle(element).backgroundColor);
    return channels.length < 4 || channels[3] > 0.99;
  };
  let behind = part;
  while (!solid(behind)) behind = behind.parentElement;
  const paper = numbers(getComputedStyle(behind).backgroundColor).slice(0, 3);
  return [numbers(getComputedStyle(part).color).slice(0, 3), paper];
}"""


def test_the_page_holds_few_points(show_dataset: SHOT) -> None:
    shown = show_dataset()
    assert 500 < shown.points() < PAGE_LIMIT
    assert drawn_points(shown) <= POINTS
