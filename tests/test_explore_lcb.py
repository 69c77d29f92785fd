"""The four explorers of the LCB chapter, driven without a browser: pictures move the right way."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.app.explore_lcb_bandit import explore_arms, explore_winner_map
from offrl_wb.app.explore_lcb_contextual import explore_error_curve
from offrl_wb.app.explore_lcb_mdp import explore_staircase
from offrl_wb.app.explorer import Explorer
from offrl_wb.theory.lcb_bandit import RULES
from tests.explorer_checks import check_one_message_a_move, check_static_picture

EXPLORERS = {
    "arms": explore_arms,
    "winner map": explore_winner_map,
    "error curve": explore_error_curve,
    "staircase": explore_staircase,
}
STILL: dict[str, Explorer] = {}


def still(name: str) -> Explorer:
    """One explorer of each kind without widgets, put back to its first picture."""
    if name not in STILL:
        STILL[name] = EXPLORERS[name](live=False)
    STILL[name].reset()
    return STILL[name]


@pytest.mark.parametrize("name", EXPLORERS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_reachable_setting_draws_or_says_what_to_change(
    name: str, data: st.DataObject
) -> None:
    explorer = still(name)
    values = {
        key: data.draw(st.sampled_from(control.settings), key)
        for key, control in explorer.controls.items()
    }
    explorer.set(**values)
    assert not explorer.error.startswith("unexpected"), explorer.error
    assert explorer.error or explorer.readout


@pytest.mark.parametrize("name", EXPLORERS)
def test_both_ends_of_every_control_draw(name: str) -> None:
    explorer = still(name)
    for key, control in explorer.controls.items():
        for end in (control.settings[0], control.settings[-1]):
            explorer.reset()
            explorer.set(**{key: end})
            assert not explorer.error.startswith("unexpected"), (key, end, explorer.error)


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_live_explorer_sends_one_message_a_move(name: str) -> None:
    check_one_message_a_move(EXPLORERS[name], "penalty")


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_static_picture_is_small_and_described(name: str) -> None:
    check_static_picture(still(name))


# Arms


def picks(explorer: Explorer) -> dict[str, int]:
    return {trace.y[0]: int(trace.x[0]) for trace in explorer.figure.data[4:7]}


def test_arms_without_a_penalty_lcb_is_the_empirical_best_arm() -> None:
    explorer = still("arms")
    for seed in range(5):
        explorer.set(penalty=0.0, seed=seed)
        assert picks(explorer)["LCB"] == picks(explorer)["empirical best"]


def test_arms_with_an_infinite_penalty_lcb_is_the_most_played_arm() -> None:
    explorer = still("arms")
    for seed in range(5):
        explorer.set(penalty=float("inf"), seed=seed, excess=1.0)
        assert picks(explorer)["LCB"] == picks(explorer)["most played"]


def test_arms_with_the_paper_s_unplayed_arms_an_infinite_penalty_picks_one() -> None:
    explorer = still("arms")
    explorer.set(penalty=float("inf"), unseen="paper", size=20, arms=12)
    counts = explorer.figure.data[3].y
    assert counts[picks(explorer)["LCB"] - 1] == 0


def test_arms_lower_bounds_fall_as_the_penalty_rises_and_rise_with_samples() -> None:
    explorer = still("arms")
    first = np.array(explorer.figure.data[2].customdata)
    explorer.set(penalty=1.0)
    played = np.array(explorer.figure.data[3].y) > 0
    assert np.all(np.array(explorer.figure.data[2].customdata)[played] < first[played])
    explorer.set(penalty=0.5, size=100_000)
    assert explorer.figure.data[2].customdata[0] > first[0]


def test_arms_resampling_changes_the_data_and_nothing_else() -> None:
    explorer = still("arms")
    before, counts = explorer.values, list(explorer.figure.data[3].y)
    explorer.press("Resample data")
    assert explorer.values == before | {"seed": 1}
    assert list(explorer.figure.data[3].y) != counts
    assert sum(explorer.figure.data[3].y) == sum(counts) == before["size"]


def test_arms_a_bound_under_the_floor_is_drawn_on_it_as_an_arrow() -> None:
    explorer = still("arms")
    explorer.set(penalty=10.0)
    floor = explorer.figure.layout.yaxis.range[0]
    under = np.array(explorer.figure.data[2].customdata) < floor
    drawn = np.array(explorer.figure.data[2].marker.symbol)
    assert under.any()
    assert np.all(drawn[under] == "triangle-down")
    assert np.all(np.array(explorer.figure.data[2].y) > floor)


# Winner map


def share(explorer: Explorer, rule: str) -> float:
    return float(np.mean(np.array(explorer.figure.data[0].z) == RULES.index(rule)))


def test_winner_map_the_wall_stands_at_two_and_imitation_never_wins_beyond_it() -> None:
    explorer = still("winner map")
    columns = np.array(explorer.figure.layout.xaxis.ticktext).astype(float)
    wall = explorer.figure.data[1].x[0]
    assert np.all((np.arange(len(columns)) > wall) == (columns >= 2))
    winners = np.array(explorer.figure.data[0].z)
    most_played = RULES.index("most_played")
    assert not np.any(winners[:, columns >= 2] == most_played)
    assert np.mean(winners[:, columns < 2] == most_played) > 0.5


def test_winner_map_traps_take_ground_from_the_empirical_best() -> None:
    explorer = still("winner map")
    before = share(explorer, "empirical_best")
    explorer.set(family="with traps")
    assert share(explorer, "empirical_best") < before / 2
    assert share(explorer, "lcb") > 0.2


def test_winner_map_hover_names_the_three_losses_of_its_cell() -> None:
    explorer = still("winner map")
    text = np.array(explorer.figure.data[0].customdata)
    assert text.shape == np.array(explorer.figure.data[0].z).shape
    assert text[0, 0].startswith("C* = 1.02, N = 20<br>most played: loses ")
    assert "empirical best: loses" in text[-1, -1]
    assert "LCB: loses" in text[-1, -1]


# Error curve


def test_error_curve_the_knee_moves_left_as_the_data_gets_less_expert() -> None:
    explorer = still("error curve")
    knees = []
    for excess in (0.0001, 0.001, 0.01, 0.1):
        explorer.set(excess=excess)
        knees.append(explorer.figure.data[5].x[0])
    assert knees == pytest.approx([100_000, 10_000, 1000, 100])


def test_error_curve_the_guides_have_their_slopes_and_cross_at_the_knee() -> None:
    explorer = still("error curve")
    fast, slow = explorer.figure.data[3:5]
    for trace, slope in ((fast, -1.0), (slow, -0.5)):
        assert np.polyfit(np.log(trace.x), np.log(trace.y), 1)[0] == pytest.approx(slope)
    knee = explorer.figure.data[5].x[0]
    assert np.all((np.array(fast.y) > np.array(slow.y)) == (np.array(fast.x) < knee))


def test_error_curve_imitation_stays_on_a_floor_that_rises_with_c_star() -> None:
    explorer = still("error curve")
    floors = []
    for excess in (0.01, 0.1, 1.0):
        explorer.set(excess=excess)
        floors.append(explorer.figure.data[1].y[-1])
        assert explorer.figure.data[0].y[-1] < floors[-1] / 4, "LCB gets below it"
    assert floors == sorted(floors)
    assert floors[-1] == pytest.approx(0.5, rel=0.3)


def test_error_curve_an_infinite_penalty_is_imitation() -> None:
    explorer = still("error curve")
    explorer.set(penalty=float("inf"), excess=0.1)
    lcb, imitation = (np.array(trace.y) for trace in explorer.figure.data[:2])
    assert lcb[-6:] == pytest.approx(imitation[-6:], rel=0.5)


def test_error_curve_says_when_no_knee_is_in_sight() -> None:
    explorer = still("error curve")
    explorer.set(excess=1e-6)
    assert explorer.readout.startswith("No knee in sight")
    assert explorer.figure.data[5].x == (None, None)


# Staircase


def lines(explorer: Explorer) -> np.ndarray:
    """Best, earned and certified values as drawn: (state, line, iteration)."""
    drawn = np.array([np.array(trace.y) for trace in explorer.figure.data])
    return drawn.reshape(-1, 3, drawn.shape[-1])


def test_staircase_each_panel_is_ordered_and_certified_values_never_fall() -> None:
    explorer = still("staircase")
    for change in ({}, {"penalty": 0.2}, {"size": 500}, {"discount": 0.5, "gap": 0.9}):
        explorer.reset()
        explorer.set(**change)
        best, earned, certified = lines(explorer).swapaxes(0, 1)
        assert np.all(certified <= earned + 1e-9)
        assert np.all(earned <= best + 1e-9)
        assert np.all(np.diff(certified, axis=-1) >= 0)


def test_staircase_more_data_certifies_more_and_more_penalty_less() -> None:
    explorer = still("staircase")
    ends = [lines(explorer)[:, 2, -1]]
    for change in ({"size": 1_000_000}, {"size": 10_000, "penalty": 0.5}):
        explorer.set(**change)
        ends.append(lines(explorer)[:, 2, -1])
    assert np.all(ends[1] > ends[0])
    assert np.all(ends[2] <= ends[0])
    assert ends[2].sum() < ends[0].sum()


def test_staircase_an_infinite_penalty_certifies_nothing_and_says_so() -> None:
    explorer = still("staircase")
    explorer.set(penalty=float("inf"))
    assert not lines(explorer)[:, 2].any()
    assert "nothing is certified" in explorer.readout


def test_staircase_fresh_folds_need_far_more_data_than_reused_data() -> None:
    explorer = still("staircase")
    reused = lines(explorer)[:, 2, -1]
    explorer.set(split="paper")
    assert np.all(lines(explorer)[:, 2, -1] < reused / 2)
    assert explorer.error == ""


@pytest.mark.parametrize("make", EXPLORERS.values(), ids=EXPLORERS)
def test_first_pictures_are_the_same_every_time(make: Callable[..., Explorer]) -> None:
    assert make(live=False).figure.to_json() == make(live=False).figure.to_json()
