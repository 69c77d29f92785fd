"""The WSRL explorer in a real JupyterLab: menus, sliders and buttons move the picture."""

from collections.abc import Callable

from .lab_driver import Shown

SOURCE = "from offrl_wb.app.explore_wsrl import explore_wsrl\n\nexplorer = explore_wsrl()\nexplorer"
Show = Callable[..., Shown]


def test_the_values_of_the_log_fall_without_it_and_stay_with_half_of_it(show: Show) -> None:
    shown = show("wsrl", SOURCE)
    assert shown.overflows() == []
    level = shown.trace(6, "y")
    assert level[-1] > level[0] - 1
    shown.click("Downward spiral")
    fallen = shown.trace(6, "y")
    assert fallen[0] == level[0]
    assert fallen[-1] < fallen[0] - 3
    shown.click("Keep half the log")
    assert shown.trace(6, "y")[-1] > fallen[-1] + 2
    assert shown.error() == ""
    assert shown.problems == []


def test_a_setting_that_was_not_run_says_what_is_drawn(show: Show) -> None:
    shown = show("wsrl", SOURCE)
    shown.choose("online objective", "CQL")
    shown.press("critics in a target", "ArrowRight")
    assert "a subset of 2" in shown.readout()
    before = shown.trace(3, "y")
    shown.press("warm-up K", "ArrowLeft")
    assert shown.trace(3, "y") != before
    assert shown.problems == []
