"""The RIQL explorer, driven without a browser: pictures move the right way."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.app.explore_riql import explore_riql
from offrl_wb.app.explorer import Explorer
from tests.explorer_checks import check_one_message_a_move, check_static_picture

STILL: list[Explorer] = []


def still() -> Explorer:
    if not STILL:
        STILL.append(explore_riql(live=False))
    STILL[0].reset()
    return STILL[0]


@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_reachable_setting_draws(data: st.DataObject) -> None:
    explorer = still()
    explorer.set(
        **{
            key: data.draw(st.sampled_from(control.settings), key)
            for key, control in explorer.controls.items()
        }
    )
    assert explorer.error == ""
    assert explorer.readout


def test_both_ends_of_every_control_draw() -> None:
    explorer = still()
    for key, control in explorer.controls.items():
        for end in (control.settings[0], control.settings[-1]):
            explorer.reset()
            explorer.set(**{key: end})
            assert explorer.error == "", (key, end)


def test_a_live_explorer_sends_one_message_a_move() -> None:
    check_one_message_a_move(explore_riql, "heads")


def test_the_static_picture_is_small_and_described() -> None:
    check_static_picture(still())


def test_nothing_spoiled_leaves_three_equal_maps_and_no_spoiled_points() -> None:
    explorer = still()
    explorer.set(rate=0.0)
    maps = [np.array(trace.z, dtype=float) for trace in explorer.figure.data[:3]]
    assert np.allclose(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() < 0.5
    assert len(explorer.figure.data[4].x) == 0
    assert sum(explorer.figure.data[6].y) == 0
    assert len(explorer.figure.data[17].x) == 0


def test_spoiled_dynamics_fatten_the_tail_and_iql_loses_more_than_riql() -> None:
    explorer = still()
    calm, rough = explorer.result.kurtosis
    assert rough > calm + 1
    iql, robust = (trace.y[0] for trace in explorer.figure.data[14:16])
    assert robust > iql + 2
    explorer.set(delta=30.0)
    assert explorer.result.returns[2] < robust, "with a large delta RIQL averages as IQL does"
    assert max(explorer.figure.data[7].y) < 0.51, "the pull is not flat within the picture"


def test_a_large_delta_costs_nothing_where_nothing_is_spoiled() -> None:
    explorer = still()
    for delta in (1.0, 10.0, 30.0):
        explorer.set(rate=0.0, delta=delta)
        assert explorer.result.returns[2] > 7.2
    explorer.set(delta=0.03)
    assert explorer.result.returns[2] < 7, "too small for the step of the tables"


def test_the_curves_are_those_of_the_element_and_fall() -> None:
    explorer = still()
    before = list(explorer.figure.data[9].y)
    assert before[0] > 7 > before[3]
    explorer.set(element="rewards")
    assert list(explorer.figure.data[9].y) != before
    assert "spoiled rewards" in explorer.readout


def test_spoiling_again_changes_the_data_and_nothing_else() -> None:
    explorer = still()
    before = explorer.values
    explorer.press("Spoil again")
    assert explorer.values == before | {"seed": 3}


@pytest.mark.timeout(120)
def test_a_move_is_quick() -> None:
    explorer = still()
    spent = []
    for name in ("delta", "quantile", "heads", "level", "rate"):
        for value in explorer.controls[name].settings[:4]:
            before = time.process_time()
            explorer.set(**{name: value})
            spent.append(time.process_time() - before)
    assert np.quantile(spent, 0.95) < 0.6, "150 ms on a quiet machine, with room for a busy one"
