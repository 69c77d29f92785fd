"""Each explorer in a real JupyterLab: a key on a slider moves the picture the right way."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

from .lab_driver import DARK, LIGHT, Shown

SOURCES = {
    name: f"from offrl_wb.app.{module} import {function}\n\nexplorer = {function}()\nexplorer"
    for name, (module, function) in {
        "arms": ("explore_lcb_bandit", "explore_arms"),
        "winner-map": ("explore_lcb_bandit", "explore_winner_map"),
        "error-curve": ("explore_lcb_contextual", "explore_error_curve"),
        "staircase": ("explore_lcb_mdp", "explore_staircase"),
        "life-bars": ("explore_glow", "explore_life_bars"),
        "ratios": ("explore_glow", "explore_ratios"),
        "decomposition": ("explore_glow", "explore_decomposition"),
        "clip-scale": ("explore_glow", "explore_gamma"),
        "one-round": ("explore_hyglow", "explore_round"),
    }.items()
}
PLAIN = """
from offrl_wb.app.explorer import Explorer, choices
from offrl_wb.core.errors import InputError
from offrl_wb.core.figures import new_figure

def height(slope):
    if slope == 3:
        raise InputError("a slope of 3 leaves the picture: choose 2 or less")
    return slope

def draw(figure, result):
    figure.data[0].y = [0, result]

figure = new_figure("A straight line whose slope is set by a slider", height=260)
figure.add_scatter(x=[0, 1], y=[0, 1])
slope = {"slope": choices("slope", [1, 2, 3, 4], 1)}
explorer = Explorer(figure, slope, height, draw, lambda values, result: f"It ends at {result}.")
"""
Show = Callable[..., Shown]


def counts(shown: Shown) -> list[float]:
    return shown.trace(3, "y")


def test_arms_more_samples_raise_the_lower_bound_of_the_best_arm(show: Show) -> None:
    shown = show("arms", SOURCES["arms"])
    bound, plays = shown.trace(2, "y")[0], sum(counts(shown))
    shown.press("samples N", "ArrowRight", times=3)
    assert sum(counts(shown)) == 10 * plays == 1000
    assert shown.trace(2, "y")[0] > bound
    before = counts(shown)
    shown.click("Resample data")
    assert counts(shown) != before
    assert sum(counts(shown)) == 1000
    shown.click("Reset")
    assert sum(counts(shown)) == plays
    assert shown.problems == []


def test_winner_map_less_penalty_gives_lcb_the_cells_of_the_empirical_best(show: Show) -> None:
    shown = show("winner-map", SOURCES["winner-map"])
    before = shown.trace(0, "z")
    shown.choose("worst case over", "two arms, and traps")
    after = shown.trace(0, "z")
    assert sum(row.count(2) for row in after) > sum(row.count(2) for row in before)
    shown.press("penalty of LCB", "ArrowLeft", times=2)
    assert shown.trace(0, "z") != after
    assert "Right of it:" in shown.readout()
    assert shown.problems == []


def test_error_curve_a_smaller_c_star_moves_the_knee_right_and_the_floor_down(show: Show) -> None:
    shown = show("error-curve", SOURCES["error-curve"])
    knee, floor = shown.trace(5, "x")[0], shown.trace(1, "y")[-1]
    shown.press("C* − 1", "ArrowLeft", times=3)
    assert shown.trace(5, "x")[0] == pytest.approx(10 * knee)
    assert shown.trace(1, "y")[-1] < floor / 3
    assert "The knee is at N = 10,000" in shown.readout()
    assert shown.problems == []


def test_staircase_a_larger_penalty_lowers_the_certificate(show: Show) -> None:
    shown = show("staircase", SOURCES["staircase"])
    certified, best = shown.trace(2, "y"), shown.trace(0, "y")
    shown.press("penalty", "ArrowRight", times=3)
    lower = shown.trace(2, "y")
    assert lower[-1] < certified[-1]
    assert shown.trace(0, "y") == pytest.approx(best)
    shown.press("penalty", "End")
    assert max(shown.trace(2, "y")) == 0
    assert "nothing is certified" in shown.readout()
    assert shown.problems == []


def test_life_bars_the_round_player_moves_the_marker_and_gamma_keeps_decoys_alive(
    show: Show,
) -> None:
    shown = show("life-bars", SOURCES["life-bars"])
    assert shown.trace(4, "x") == [600]
    shown.press("round t", "ArrowRight", times=3)
    assert shown.trace(4, "x") == [603]
    assert "Round 603:" in shown.readout()
    shown.click("Change of the set ▶")
    (changed,) = shown.trace(4, "x")
    assert changed > 603
    assert len(shown.trace(9, "x")) == 1, "one function has left the set"
    shown.click("◀ Change of the set")
    assert shown.trace(4, "x") == [1]
    ends = [x for x in shown.trace(0, "x") if x is not None]
    shown.press("clip scale γ", "ArrowRight")
    later = [x for x in shown.trace(0, "x") if x is not None]
    assert later[1::3] == [3000.5] * 5, "past the wall nobody is dropped"
    assert ends != later
    assert shown.problems == []


def test_life_bars_a_lock_too_large_is_an_error_line_under_the_old_picture(show: Show) -> None:
    shown = show("life-bars", SOURCES["life-bars"])
    shown.choose("world", "combination lock (2 actions)")
    bars = shown.trace(0, "x")
    shown.handle("layers H").focus()
    shown.page.keyboard.press("End")
    shown.page.wait_for_selector(".offrl-error:not(:empty)")
    assert shown.error().startswith("a lock of 7 digits has 128 codes")
    assert shown.trace(0, "x") == bars
    shown.press("layers H", "ArrowLeft")
    assert shown.error() == ""
    assert shown.problems == []


def test_ratios_a_smaller_gamma_frames_more_tiles(show: Show) -> None:
    shown = show("ratios", SOURCES["ratios"])
    framed, share = len(shown.trace(3, "x")), shown.trace(6, "y")[-1]
    shown.press("clip scale γ", "ArrowLeft", times=2)
    assert len(shown.trace(3, "x")) > framed
    assert shown.trace(6, "y")[-1] > 2 * share
    shown.choose("clip", "off")
    assert len(shown.trace(3, "x")) == 0
    assert "is not clipped" in shown.readout()
    assert shown.problems == []


def test_decomposition_without_the_clip_nothing_is_lost_to_it(show: Show) -> None:
    shown = show("decomposition", SOURCES["decomposition"])
    parts = shown.trace(5, "y")
    assert parts[1] > 0
    assert sum(parts[:3]) == pytest.approx(parts[3])
    shown.press("clip scale γ", "ArrowLeft")
    assert shown.trace(5, "y")[1] > parts[1]
    shown.choose("clip", "off")
    assert shown.trace(5, "y")[1] == 0
    assert shown.problems == []


def test_clip_scale_a_smaller_limit_moves_the_wall_right_and_regret_down(show: Show) -> None:
    shown = show("clip-scale", SOURCES["clip-scale"])
    regret = shown.trace(1, "y")
    shown.press("limit c_β", "ArrowLeft")
    assert min(shown.trace(1, "y")) < min(regret)
    assert sum(y < 1199 for y in shown.trace(1, "y")) > sum(y < 1199 for y in regret)
    shown.press("clip scale γ", "End")
    assert shown.trace(4, "x") == [1]
    assert shown.readout().startswith("γ = 1: regret 1200")
    assert shown.problems == []


def test_one_round_steps_uncover_the_picture_and_the_world_decides_who_wins(show: Show) -> None:
    shown = show("one-round", SOURCES["one-round"])
    assert shown.trace(5, "y")[-1] > 10 * shown.trace(6, "y")[-1], "the trap: FQI loses more"
    shown.press("step", "Home")
    assert all(x is None or x != x for x in shown.trace(3, "x"))
    assert "have never been tried" in shown.readout()
    shown.click("Step ▶")
    assert "chance decides" in shown.readout()
    assert sum(x is not None and x == x for x in shown.trace(3, "x")) == 10
    shown.choose("world", "decoy chains")
    assert shown.trace(5, "y")[-1] < shown.trace(6, "y")[-1], "the chains: HyGLOW loses more"
    assert shown.problems == []


@pytest.mark.parametrize(("name", "theme"), list(zip(SOURCES, cycle([LIGHT, DARK]), strict=False)))
def test_nothing_overflows_and_the_text_is_legible(
    show: Show, name: str, theme: str, tmp_path_factory: Any
) -> None:
    shown = show(name, SOURCES[name], width=1200, theme=theme)
    folder = tmp_path_factory.mktemp("shots")
    for width in (1200, 800):
        shown.resize(width)
        shown.page.screenshot(path=folder / f"{name}-{width}-{theme.split()[-1].lower()}.png")
        assert shown.overflows() == []
        figure, column = shown.widths()
        assert column - 4 <= figure <= column, "the figure fills its card"
    for part in (".offrl-readout", ".widget-label", ".widget-readout", ".jupyter-button"):
        assert contrast(*shown.colours(part)) >= 4.5, f"{part} on {theme}"
    assert shown.colours(".offrl-card")[1] == (255, 255, 255), "the figure stays on white"
    assert shown.problems == []


def test_the_figure_follows_its_column_when_the_sidebar_closes(show: Show) -> None:
    shown = show("error-curve", SOURCES["error-curve"])
    before = shown.widths()[0]
    shown.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    shown.page.wait_for_function(f"({WIDTH})() > {before + 50}")
    shown.settle()
    figure, column = shown.widths()
    assert column - 4 <= figure <= column
    assert shown.overflows() == []


WIDTH = "() => document.querySelector('.js-plotly-plot')._fullLayout.width"


def test_an_error_is_a_line_under_the_old_picture(show: Show) -> None:
    shown = show("plain", PLAIN + "explorer")
    shown.press("slope", "ArrowRight")
    assert shown.trace(0, "y") == [0, 2]
    shown.handle("slope").focus()
    shown.page.keyboard.press("ArrowRight")
    shown.page.wait_for_selector(".offrl-error:not(:empty)")
    assert shown.error() == "a slope of 3 leaves the picture: choose 2 or less"
    assert shown.trace(0, "y") == [0, 2]
    shown.press("slope", "ArrowRight")
    assert shown.trace(0, "y") == [0, 4]
    assert shown.error() == ""
    assert shown.problems == []


def test_a_second_view_shows_the_same_picture_and_follows(show: Show) -> None:
    shown = show("plain", PLAIN + "figure.data[0].marker.symbol = 'square'\nexplorer", "explorer")
    shown.page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 2")
    shown.handle("slope").focus()
    shown.page.keyboard.press("ArrowRight")
    ends = "[...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data[0].y[1])"
    shown.page.wait_for_function(f"{ends}.every(end => end === 2)")
    assert shown.problems == []


def test_sliders_and_figure_have_names_for_assistive_technology(show: Show) -> None:
    shown = show("staircase", SOURCES["staircase"])
    slider = shown.page.get_by_role("slider", name="discount γ")
    assert slider.get_attribute("aria-valuetext") == "0.9"
    slider.focus()
    shown.page.keyboard.press("ArrowLeft")
    shown.page.wait_for_selector(".noUi-handle[aria-label='discount γ'][aria-valuetext='0.8']")
    figure = shown.page.locator(".js-plotly-plot")
    assert figure.get_attribute("role") == "img"
    assert figure.get_attribute("aria-label").startswith("Small multiples, one panel a state")
    assert shown.page.get_by_role("status").filter(has_text="iterations").count() == 1


def contrast(ink: tuple[int, ...], paper: tuple[int, ...]) -> float:
    """WCAG's contrast ratio of two colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (channel / 255 for channel in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
