"""The RIQL explorer in a real JupyterLab: a key on a slider moves all five pictures."""

from typing import Any

from .lab_driver import DARK
from .test_explorers import Show, contrast

SOURCE = "from offrl_wb.app.explore_riql import explore_riql\n\nexplore_riql()"


def test_a_larger_delta_takes_riql_s_lead_and_a_smaller_share_brings_it_back(show: Show) -> None:
    shown = show("riql", SOURCE)
    robust = shown.trace(15, "y")[0]
    assert robust > shown.trace(14, "y")[0]
    shown.press("Huber's δ", "End")
    assert shown.trace(15, "y")[0] < robust
    assert max(shown.trace(7, "y")) < 0.51
    shown.click("Reset")
    shown.press("share c", "Home")
    assert shown.trace(4, "x") == []
    assert "0% of the rows" in shown.readout()
    shown.choose("spoiled", "rewards")
    assert "spoiled rewards" in shown.readout()
    assert shown.problems == []


def test_everything_stays_in_its_column_and_is_legible(show: Show, tmp_path_factory: Any) -> None:
    shown = show("riql", SOURCE, theme=DARK)
    folder = tmp_path_factory.mktemp("shots")
    for width in (1200, 800):
        shown.resize(width)
        shown.page.screenshot(path=folder / f"riql-{width}.png")
        assert shown.overflows() == []
        figure, column = shown.widths()
        assert column - 4 <= figure <= column, "the figure fills its card"
    for part in (".offrl-readout", ".widget-label", ".widget-readout", ".jupyter-button"):
        assert contrast(*shown.colours(part)) >= 4.5, part
    assert shown.problems == []
