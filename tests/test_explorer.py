"""The shared base of the explorers, driven without a browser."""

import asyncio
import copy
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
import pytest
from plotly.basedatatypes import Undefined

from offrl_wb.app.explorer import (
    Control,
    Debounced,
    Explorer,
    choices,
    log_choices,
    number_text,
)
from offrl_wb.core.errors import InputError
from offrl_wb.core.figures import new_figure

X = np.linspace(0, 1, 5)


def heights(slope: int, shift: float) -> np.ndarray:
    if slope == 13:
        raise InputError("a slope of 13 is unlucky: take another")
    if slope == 14:
        raise KeyError("a defect")
    return slope * X + shift


def draw(figure: Any, result: np.ndarray) -> None:
    figure.data[0].y = result
    figure.layout.yaxis.range = [0, result.max()]
    figure.layout.title.text = f"ends at {result[-1]:g}"
    if result[-1] == 15:
        raise RuntimeError("half drawn\nwith more below")
    figure.data[1].width = result[-1] / 100


def line_explorer(compute: Callable[..., Any] = heights, live: bool | None = True) -> Explorer:
    figure = new_figure("A straight line whose slope is set with a slider", height=300)
    figure.add_scatter(x=X, y=X, marker_symbol="square")
    figure.add_bar(x=X, y=X)
    return Explorer(
        figure,
        {
            "slope": choices("slope", range(1, 16), 2),
            "shift": choices("shift", {"none": 0.0, "one": 1.0}, 0.0, "menu"),
        },
        compute,
        draw,
        lambda values, result: f"slope {values['slope']} ends at {result[-1]:g}",
        actions={"Steeper": lambda values: {"slope": values["slope"] + 1}},
        live=live,
    )


def sent(explorer: Explorer) -> list[tuple[str, Any]]:
    """Collect every message that the figure sends to the browser from now on."""
    messages: list[tuple[str, Any]] = []
    names = [name for name in explorer.figure.trait_names() if name.startswith("_py2js_")]

    def hear(change: Any) -> None:
        if change["new"] is not None:
            messages.append((change["name"], change["new"]))

    explorer.figure.observe(hear, names)
    return messages


def test_moving_a_widget_computes_and_draws() -> None:
    explorer = line_explorer()
    explorer.panel.controls["slope"].value = 5
    assert explorer.values == {"slope": 5, "shift": 0.0}
    assert explorer.figure.data[0].y[-1] == 5
    assert explorer.readout == explorer.panel.readout.text == "slope 5 ends at 5"


def test_a_redraw_is_one_message() -> None:
    explorer = line_explorer()
    messages = sent(explorer)
    explorer.set(slope=7, shift=1.0)
    assert [name for name, _ in messages] == ["_py2js_update"]
    assert explorer.figure.layout.title.text == "ends at 8"


def test_the_message_leaves_no_property_of_another_trace_undefined() -> None:
    explorer = line_explorer()
    messages = sent(explorer)
    explorer.set(slope=7)
    style = messages[0][1]["style_data"]
    assert set(style) == {"y", "width"}
    assert all(value is not Undefined for values in style.values() for value in values)
    assert list(style["y"][1]) == list(X), "the bars keep the heights they have"


def test_set_moves_the_widgets_and_draws_once() -> None:
    calls: list[int] = []

    def counted(**values: Any) -> np.ndarray:
        calls.append(1)
        return heights(**values)

    explorer = line_explorer(counted)
    calls.clear()
    explorer.set(slope=9, shift=1.0)
    assert calls == [1]
    assert explorer.panel.controls["slope"].value == 9
    assert explorer.panel.controls["shift"].value == 1.0


@pytest.mark.parametrize("live", [True, False])
def test_a_mendable_error_is_one_line_and_keeps_the_picture(live: bool) -> None:
    explorer = line_explorer(live=live)
    explorer.set(slope=4)
    explorer.set(slope=13)
    assert explorer.error == "a slope of 13 is unlucky: take another"
    assert explorer.figure.data[0].y[-1] == 4
    assert explorer.readout == "slope 4 ends at 4"
    if explorer.panel:
        assert explorer.panel.error.text == explorer.error
    explorer.set(slope=5)
    assert explorer.error == ""
    assert explorer.problem is None


def test_a_defect_is_called_unexpected_and_kept_for_its_traceback() -> None:
    explorer = line_explorer()
    explorer.panel.controls["slope"].value = 14
    assert explorer.panel.error.text == "unexpected: KeyError: 'a defect'"
    assert isinstance(explorer.problem, KeyError)


def test_a_failure_in_the_middle_of_drawing_restores_the_picture() -> None:
    explorer = line_explorer()
    explorer.set(slope=4)
    explorer.set(slope=15)
    assert explorer.error == "unexpected: RuntimeError: half drawn"
    assert explorer.figure.data[0].y[-1] == 4
    assert explorer.figure.layout.title.text == "ends at 4"


def test_reset_and_buttons_act() -> None:
    explorer = line_explorer()
    explorer.panel.buttons["Steeper"].click()
    assert explorer.values["slope"] == 3
    explorer.set(shift=1.0)
    explorer.panel.buttons["Reset"].click()
    assert explorer.values == {"slope": 2, "shift": 0.0}
    assert explorer.panel.controls["slope"].value == 2


def test_set_refuses_what_is_not_on_the_controls_and_changes_nothing() -> None:
    explorer = line_explorer()
    with pytest.raises(InputError, match="no control is named 'speed'"):
        explorer.set(speed=3)
    with pytest.raises(InputError, match=r"slope: 99 is not on this control; try 13, 14, 15"):
        explorer.set(shift=1.0, slope=99)
    assert explorer.values == {"slope": 2, "shift": 0.0}


def test_every_reachable_setting_is_listed_once() -> None:
    settings = [tuple(each.values()) for each in line_explorer(live=False).settings()]
    assert len(settings) == len(set(settings)) == 15 * 2


def test_a_burst_of_moves_is_drawn_once_with_the_last_value() -> None:
    calls: list[int] = []

    def counted(slope: int, shift: float) -> np.ndarray:
        calls.append(slope)
        return heights(slope, shift)

    async def drag() -> None:
        explorer = line_explorer(counted)
        calls.clear()
        for slope in (3, 4, 5, 6):
            explorer.panel.controls["slope"].value = slope
        assert calls == []
        await asyncio.sleep(0.3)
        assert calls == [6]

    asyncio.run(drag())


def test_set_cancels_a_redraw_that_is_waiting() -> None:
    calls: list[int] = []

    def counted(slope: int, shift: float) -> np.ndarray:
        calls.append(slope)
        return heights(slope, shift)

    async def move_then_set() -> None:
        explorer = line_explorer(counted)
        calls.clear()
        explorer.panel.controls["slope"].value = 3
        explorer.set(slope=8)
        assert calls == [8]
        await asyncio.sleep(0.2)
        assert calls == [8]

    asyncio.run(move_then_set())


def test_a_long_drag_is_followed_while_it_lasts() -> None:
    times: list[int] = []

    async def drag() -> int:
        later = Debounced(lambda: times.append(1), wait=0.5, longest=0.05)
        moves = 0
        for _ in range(60):
            later()
            moves += 1
            await asyncio.sleep(0.005)
        return moves

    moves = asyncio.run(drag())
    assert 1 <= len(times) < moves / 2


def test_without_a_loop_a_redraw_happens_at_once_in_the_same_thread() -> None:
    seen: list[int] = []
    Debounced(lambda: seen.append(threading.get_ident()))()
    assert seen == [threading.get_ident()]


def test_the_static_picture_needs_no_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    before = len(ipywidgets.widget._instances)
    explorer = line_explorer(live=None)
    bundle = explorer._repr_mimebundle_()
    assert len(ipywidgets.widget._instances) == before
    assert explorer.panel is None
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain"}
    assert bundle["text/plain"].startswith("A straight line whose slope is set with a slider\n")
    drawn = bundle["application/vnd.plotly.v1+json"]
    assert drawn["layout"]["title"]["text"] == "ends at 2"
    assert "slope 2 ends at 2" in drawn["layout"]["annotations"][-1]["text"]


def test_making_the_static_bundle_leaves_the_figure_as_it_was() -> None:
    explorer = line_explorer(live=False)
    before = copy.deepcopy(explorer.figure.to_plotly_json()["layout"])
    explorer._repr_mimebundle_()
    assert explorer.figure.to_plotly_json()["layout"] == before


def test_live_display_is_a_widget_with_the_alternative_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OFFRL_WB_STATIC", raising=False)
    bundle = line_explorer(live=None)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "A straight line whose slope is set with a slider"


def test_the_two_lines_are_announced_with_their_urgency() -> None:
    panel = line_explorer().panel
    assert (panel.readout.kind, panel.error.kind) == ("readout", "error")
    assert 'setAttribute("aria-live", urgent ? "assertive" : "polite")' in panel.readout._esm


def test_log_choices_are_round_numbers_with_their_limits() -> None:
    control = log_choices("penalty", 0.01, 1.0, 0.1, zero="greedy", infinity="imitation")
    assert control.settings == (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, float("inf"))
    assert control.text(0.0) == "0 (greedy)"
    assert control.text(float("inf")) == "∞ (imitation)"
    sizes = log_choices("N", 10, 200, 15, digits=(1, 1.5)).settings
    assert sizes == (10, 15, 100, 150)
    assert all(isinstance(size, int) for size in log_choices("N", 10, 1000, 20).settings)


def test_a_control_refuses_a_first_value_that_it_cannot_take() -> None:
    with pytest.raises(InputError, match=r"gap: 0.3 is not on this control; try 0\.1, 0\.2, 0\.5"):
        choices("gap", [0.1, 0.2, 0.5, 0.9], 0.3)
    with pytest.raises(InputError, match="try 'paper', 'none'"):
        Control("split", (("as in the paper", "paper"), ("no split", "none")), "half", "menu")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1_000_000, "10⁶"), (20_000, "20\u00a0000"), (0.002, "0.002"), (5e-6, "5×10⁻⁶")],
)
def test_numbers_read_exactly_on_a_slider(value: float, text: str) -> None:
    assert number_text(value) == text
