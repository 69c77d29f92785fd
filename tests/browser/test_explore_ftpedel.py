"""The FTPedel explorers in a real JupyterLab: keys and buttons move the pictures the right way."""

from typing import Any

import pytest

from .lab_driver import DARK
from .test_explorers import Show, contrast

NAMES = ("filling", "coefficient", "epochs", "design")


def source(name: str) -> str:
    """The code of a cell that shows one of the four explorers."""
    function = f"explore_{name}"
    return f"from offrl_wb.app.explore_ftpedel import {function}\n\n{function}()"


def test_epochs_the_player_drops_policies_step_by_step_and_a_log_saves_episodes(show: Show) -> None:
    shown = show("epochs", source("epochs"))
    assert len(shown.trace(0, "x")) == 36
    assert len(shown.trace(1, "x")) == 6, "those that explore are dropped in epoch 3"
    spent = sum(shown.trace(5, "y"))
    shown.click("Epoch ▶")
    assert len(shown.trace(0, "x")) == 11
    assert "Epoch 4: 36 policies in play, 25 dropped" in shown.readout()
    shown.press("epoch", "End")
    assert len(shown.trace(0, "x")) == 1
    assert "the last of this run" in shown.readout()
    shown.click("◀ Epoch")
    assert len(shown.trace(0, "x")) == 11
    shown.click("No log")
    assert sum(shown.trace(5, "y")) > 10 * spent
    assert shown.problems == []


@pytest.mark.parametrize("name", NAMES)
def test_without_a_log_more_is_to_be_played_and_everything_stays_in_its_column(
    show: Show, name: str, tmp_path_factory: Any
) -> None:
    where = {"filling": (4, "y"), "coefficient": (4, "x"), "epochs": (5, "y"), "design": (7, "y")}
    shown = show(name, source(name), theme=DARK)
    folder = tmp_path_factory.mktemp("shots")
    before = sum(shown.trace(*where[name]))
    shown.press("log pulls per L-arm", "Home")
    assert sum(shown.trace(*where[name])) > 1.5 * before
    for width in (1200, 800):
        shown.resize(width)
        shown.page.screenshot(path=folder / f"{name}-{width}.png")
        assert shown.overflows() == []
        figure, column = shown.widths()
        assert column - 4 <= figure <= column, "the figure fills its card"
    for part in (".offrl-readout", ".widget-label", ".widget-readout", ".jupyter-button"):
        assert contrast(*shown.colours(part)) >= 4.5, part
    assert shown.error() == ""
    assert shown.problems == []
