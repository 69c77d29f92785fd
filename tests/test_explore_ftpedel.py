"""The four explorers of the FTPedel chapter, driven without a browser."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.app.explore_ftpedel import (
    ARMS,
    GROUPS,
    LOGS,
    amount,
    describe_player,
    explore_coefficient,
    explore_design,
    explore_epochs,
    explore_filling,
    left_to_play,
    pulls_in_right,
    room_problem,
    run_of,
    short,
)
from offrl_wb.app.explorer import Explorer
from offrl_wb.theory.experiment_design import least_online_episodes
from offrl_wb.theory.policy_sets import all_deterministic
from offrl_wb.worlds.linear import policy_values, two_room, two_room_visits
from tests.explorer_checks import check_one_message_a_move, check_static_picture

EXPLORERS = {
    "filling": explore_filling,
    "coefficient": explore_coefficient,
    "epochs": explore_epochs,
    "design": explore_design,
}
STILL: dict[str, Explorer] = {}
SLOWLY = dict(deadline=None, suppress_health_check=list(HealthCheck))


def still(name: str, **values: object) -> Explorer:
    """One explorer of each kind without widgets: its first picture, then that of `values`."""
    if name not in STILL:
        STILL[name] = EXPLORERS[name](live=False)
    STILL[name].reset()
    if values:
        STILL[name].set(**values)
    return STILL[name]


def drawn(explorer: Explorer, trace: int, name: str) -> np.ndarray:
    """What is in one trace of the picture, as floats; nothing for a trace without it."""
    found = explorer.figure.data[trace][name]
    return np.array([] if found is None else found, dtype=float)


@pytest.mark.parametrize("name", EXPLORERS)
def test_both_ends_of_every_control_draw(name: str) -> None:
    explorer = still(name)
    for key, control in explorer.controls.items():
        for end in (control.settings[0], control.settings[-1]):
            explorer.reset()
            explorer.set(**{key: end})
            assert explorer.error == "", (key, end)
            assert explorer.readout


@pytest.mark.parametrize("name", EXPLORERS)
@given(data=st.data())
@settings(max_examples=8, **SLOWLY)
def test_every_reachable_setting_draws(name: str, data: st.DataObject) -> None:
    values = {
        key: data.draw(st.sampled_from(control.settings), key)
        for key, control in still(name).controls.items()
    }
    explorer = still(name, **values)
    assert explorer.error == ""
    assert 40 < len(explorer.readout) < 330
    assert "nan" not in explorer.readout
    assert json.loads(explorer.figure.to_json())["data"]


@pytest.mark.parametrize("make", EXPLORERS.values(), ids=EXPLORERS)
def test_a_live_explorer_sends_one_message_a_move(make: Callable[..., Explorer]) -> None:
    check_one_message_a_move(make, "pulls")


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_static_picture_is_small_and_described(name: str) -> None:
    check_static_picture(still(name))


@pytest.mark.parametrize("make", EXPLORERS.values(), ids=EXPLORERS)
def test_first_pictures_are_the_same_every_time(make: Callable[..., Explorer]) -> None:
    assert make(live=False).figure.to_json() == make(live=False).figure.to_json()


@pytest.mark.parametrize("name", EXPLORERS)
def test_buttons_put_a_log_in_place_or_take_it_away(name: str) -> None:
    explorer = still(name, chance=3.0)
    seen = []
    for button in ("No log", "A log of L", "A log of both rooms"):
        explorer.press(button)
        assert explorer.error == ""
        seen.append((explorer.values["pulls"], explorer.values["share"]))
        assert explorer.values["chance"] == 3.0
    assert seen[0][0] == 0
    assert seen[1][0] == seen[2][0] > 0
    assert seen[1][1] == 0 < seen[2][1]


# Four kinds of arms


@given(
    epsilon=st.sampled_from([0.025, 0.05, 0.1]),
    chance=st.sampled_from([0.0, 0.5, 2.0, 4.0, 8.0]),
    pulls=st.sampled_from([0, 20, 500, 50_000]),
    share=st.sampled_from([0.0, 0.001, 0.1]),
    beta=st.sampled_from([0.5, 1.0, 10.0]),
)
@settings(max_examples=12, **SLOWLY)
def test_kinds_of_arms_give_the_price_of_the_whole_world(
    epsilon: float, chance: float, pulls: int, share: float, beta: float
) -> None:
    world = two_room(epsilon, ARMS, chance * epsilon)
    visits = two_room_visits(world, pulls, pulls_in_right(pulls, share)).reshape(2, -1)
    log = visits @ world.phi.reshape(-1, world.dimension)
    whole = least_online_episodes(world, all_deterministic(world), log, epsilon, beta, 1e-2)
    for layer, full in enumerate(whole):
        kinds = left_to_play(layer, epsilon, chance, pulls, share, beta)
        assert kinds.lower <= full.episodes * (1 + 1e-9)
        assert full.lower <= kinds.episodes * (1 + 1e-9)


def test_a_share_of_the_log_is_what_it_says() -> None:
    for share in (0.0, 0.001, 0.2, 0.5):
        right = pulls_in_right(100_000, share)
        assert right / (right + 100_000) == pytest.approx(share, abs=1e-5)
    assert room_problem(1, 0.05, 4.0, 100, 0.5).log.tolist() == [100] * 4
    assert room_problem(0, 0.05, 4.0, 100, 0.5).log.tolist() == [1200, 0]


# Water filling


def test_filling_a_log_of_l_leaves_thirty_six_visits_of_r_and_the_lines_are_the_closed_form() -> (
    None
):
    explorer = still("filling")
    demand = np.concatenate([drawn(explorer, k, "y") for k in (2, 5, 8)])
    assert demand[8:] == pytest.approx([4, 4, 4, 4, 4, 16])
    assert demand[2:8] == pytest.approx([*[(0.8 / 0.08) ** 2] * 5, 256], rel=1e-9)
    assert explorer.result.closed[1] == pytest.approx(36)
    assert 36 <= explorer.result.episodes[1] < 36.3
    assert drawn(explorer, 7, "y").sum() == pytest.approx(explorer.result.episodes[1], rel=0.01)
    assert "0% go to L and 100% to R" in explorer.readout


@given(data=st.data())
@settings(max_examples=15, **SLOWLY)
def test_filling_log_and_top_up_reach_every_line_and_grey_never_rises_above_it(
    data: st.DataObject,
) -> None:
    values = {
        key: data.draw(st.sampled_from(control.settings), key)
        for key, control in still("filling").controls.items()
    }
    explorer = still("filling", **values)
    filled = explorer.result
    assert np.all(filled.log + filled.top_up >= filled.demand * (1 - 1e-6))
    assert np.all(filled.closed <= filled.episodes * (1 + 1e-9))
    assert np.all(filled.episodes <= filled.alone * 1.05)
    for k in range(3):
        grey, needed = drawn(explorer, 3 * k, "y"), drawn(explorer, 3 * k + 2, "y")
        assert np.all(grey <= needed + 1e-9)
        assert np.all(grey <= drawn(explorer, 3 * k, "customdata") + 1e-9)
    assert filled.top_up[:2].sum() == pytest.approx(filled.episodes[0])
    assert filled.top_up[2:].sum() == pytest.approx(filled.episodes[1])


def test_filling_enough_of_both_rooms_leaves_only_the_start() -> None:
    explorer = still("filling", share=0.01)
    assert explorer.result.episodes[1] == 0
    assert drawn(explorer, 4, "y").sum() == drawn(explorer, 7, "y").sum() == 0
    assert "12.8 at the start and 0 in the rooms" in explorer.readout
    assert set(explorer.figure.data[7].text) == {""}


def test_filling_without_a_log_everything_is_topped_up() -> None:
    explorer = still("filling", pulls=0)
    assert not any(drawn(explorer, 3 * k, "y").any() for k in range(3))
    assert explorer.result.episodes == pytest.approx(explorer.result.alone)
    assert explorer.figure.layout.xaxis2.ticktext[0] == "1<br>0"


def test_numbers_are_written_as_they_are_read() -> None:
    assert [amount(x) for x in (0, 0.4, 36.11, 363.5, 14697.2)] == [
        "0",
        "0.4",
        "36.1",
        "364",
        "14,697",
    ]
    assert [short(n) for n in (0, 120, 1200, 50_000, 6_000_000)] == [
        "0",
        "120",
        "1.2k",
        "50k",
        "6M",
    ]


# The coefficient


def test_coefficient_the_curves_cross_the_level_at_the_marks() -> None:
    explorer = still("coefficient", pulls=200)
    crossing = explorer.result
    marks = drawn(explorer, 4, "x")
    assert marks == pytest.approx(crossing.crossings)
    assert marks[0] == pytest.approx(225, rel=0.01)
    for trace, mark in zip((1, 0), marks, strict=True):
        x, y = np.log(drawn(explorer, trace, "x")), np.log(drawn(explorer, trace, "y"))
        assert np.interp(np.log(mark), x, y) == pytest.approx(np.log(crossing.limit), abs=1e-6)
        assert np.all(np.diff(y) <= 0.02)
    assert f"with it {amount(marks[0])}" in explorer.readout


@pytest.mark.parametrize("layer", [0, 1])
def test_coefficient_a_log_never_makes_it_larger_and_none_makes_no_difference(layer: int) -> None:
    with_log = still("coefficient", layer=layer).result
    assert np.all(with_log.hybrid <= 1.015 * with_log.alone)
    explorer = still("coefficient", layer=layer, pulls=0)
    assert explorer.result.hybrid == pytest.approx(explorer.result.alone, rel=0.015)
    assert "the two curves are one" in explorer.readout


def test_coefficient_a_log_of_both_rooms_is_a_ceiling_and_may_be_enough() -> None:
    explorer = still("coefficient", share=0.01)
    ceiling = drawn(explorer, 2, "y")
    assert np.all(drawn(explorer, 1, "y") <= ceiling[0] * 1.001)
    assert len(drawn(explorer, 4, "x")) == 1, "only the curve without the log crosses"
    assert "by itself" in explorer.readout
    explorer.set(beta=100.0)
    assert explorer.result.crossings[0] > 0
    assert "the log by itself ends at" in explorer.readout
    explorer.set(share=0.0)
    assert len(drawn(explorer, 2, "y")) == 0
    assert "certifies nothing" in explorer.readout


def test_coefficient_a_larger_beta_moves_the_crossing_without_a_log_by_as_much() -> None:
    first = still("coefficient").result.crossings[1]
    assert still("coefficient", beta=10.0).result.crossings[1] == pytest.approx(
        10 * first, rel=0.01
    )


# The epoch player


def test_epochs_stepping_shows_who_is_dropped_and_stops_at_the_ends_of_the_run() -> None:
    explorer = still("epochs", epoch=1)
    run = explorer.result.epochs
    seen = 0
    for k, epoch in enumerate(run):
        player = explorer.result
        assert player.at == k
        assert player.active.sum() == len(epoch.active)
        assert len(drawn(explorer, 0, "x")) == epoch.kept.sum()
        assert len(drawn(explorer, 1, "x")) == (~epoch.kept).sum()
        assert len(drawn(explorer, 2, "x")) == 72 - len(epoch.active)
        assert explorer.figure.data[0].error_y.value == epoch.epsilon
        limit = drawn(explorer, 4, "y")[0]
        assert np.all(drawn(explorer, 0, "customdata") >= limit)
        assert np.all(drawn(explorer, 1, "customdata") < limit)
        seen += (~epoch.kept).sum()
        explorer.press("Epoch ▶")
    assert explorer.values["epoch"] == len(run), "no further than the last"
    assert seen == 71, "one is left"
    for _ in range(len(run) + 1):
        explorer.press("◀ Epoch")
    assert explorer.values["epoch"] == 1
    assert sum(drawn(explorer, 5, "y")) == run[-1].episodes


def test_epochs_past_the_end_of_a_run_its_last_epoch_is_shown() -> None:
    explorer = still("epochs", epoch=9)
    assert explorer.result.at == len(explorer.result.epochs) - 1 < 8
    assert "the last of this run" in explorer.readout
    explorer.press("◀ Epoch")
    assert explorer.values["epoch"] == len(explorer.result.epochs) - 1


def test_epochs_the_best_policy_stands_first_and_is_returned() -> None:
    for pulls in (0, 50_000):
        player = still("epochs", pulls=pulls, epoch=9).result
        assert player.names[player.answer] == "main, L6, R6"
        assert player.truth[0] == player.truth.max() == player.truth[player.answer]
        main = np.array([name.startswith("main") for name in player.names])
        assert main[:36].all()
        assert not main[36:].any()
        assert np.all(np.diff(player.truth[:36]) <= 1e-9)
        assert np.all(np.diff(player.truth[36:]) <= 1e-9)


def test_epochs_estimates_shown_are_those_of_the_run_and_the_dropped_stay_in_sight() -> None:
    explorer = still("epochs", epoch=4)
    world, policies, answer = run_of(0.05, 4.0, 50_000, 0.0, 1, 0)
    player, values = explorer.result, policy_values(world, policies)
    assert sorted(player.truth) == pytest.approx(sorted(values))
    assert sorted(player.estimates[player.active]) == pytest.approx(sorted(answer.epochs[3].values))
    assert not np.isnan(player.estimates).any()
    low, high = explorer.figure.layout.yaxis.range
    for trace in (0, 1, 2):
        y = drawn(explorer, trace, "y")
        assert np.all((y > low) & (y < high))


def test_epochs_a_log_saves_episodes_and_the_paper_s_constant_costs_them() -> None:
    spent = {
        name: still("epochs", **values).result.epochs[-1].episodes
        for name, values in dict(log={}, none=dict(pulls=0), paper=dict(c_beta=576.0)).items()
    }
    assert spent["none"] > 10 * spent["log"]
    assert spent["paper"] > 100 * spent["log"]
    assert "bounds its failure by" in still("epochs", c_beta=576.0).readout
    assert "promises nothing" in still("epochs").readout


def test_epochs_another_seed_is_another_run() -> None:
    explorer = still("epochs")
    estimates = explorer.result.estimates
    explorer.press("Another seed")
    assert explorer.values["seed"] == 1
    assert not np.array_equal(explorer.result.estimates, estimates)
    explorer.set(seed=999)
    explorer.press("Another seed")
    assert explorer.values["seed"] == 0


def test_epochs_a_wrong_answer_is_called_wrong() -> None:
    player = still("epochs").result
    wrong = player._replace(answer=1, failure_bound=0.02)
    text = describe_player({"epoch": 3}, wrong)
    assert "returns main, L1, R6, 0.080 below the best; Hoeffding bounds" in text
    assert "the best there is" in still("epochs").readout


def test_epochs_a_tiny_constant_means_few_episodes_and_estimates_beyond_what_is_allowed() -> None:
    beyond = 0
    for seed in range(20):
        player = still("epochs", c_beta=0.02, seed=seed, epoch=1).result
        assert player.epochs[-1].episodes < 1000
        world, policies, answer = run_of(0.05, 4.0, 50_000, 0.0, 0.02, seed)
        truth = policy_values(world, policies)
        off = [np.abs(each.values - truth[each.active]).max() for each in answer.epochs]
        beyond += any(o > each.epsilon for o, each in zip(off, answer.epochs, strict=True))
    assert beyond > 0


# The design


@pytest.mark.parametrize("layer", GROUPS)
def test_design_shares_add_up_to_one_wherever_something_is_left(layer: int) -> None:
    explorer = still("design", layer=layer)
    areas = [drawn(explorer, k, "y") for k in range(3, 3 + len(GROUPS[layer]))]
    assert np.sum(areas, axis=0) == pytest.approx(np.ones(len(areas[0])))
    assert [explorer.figure.data[k].visible for k in range(3, 7)] == [
        k < len(GROUPS[layer]) for k in range(4)
    ]
    assert drawn(explorer, 7, "y").sum() == pytest.approx(explorer.result.least)


def test_design_a_growing_log_of_l_turns_main_into_explore() -> None:
    result = still("design").result
    main = result.episodes[:, :2].sum(axis=1)
    share = main / result.episodes.sum(axis=1)
    assert share[0] > 0.98
    assert np.all(share[-6:] < 0.01)
    assert np.all(np.diff(result.episodes.sum(axis=1)) <= 0.01 * result.episodes.sum(axis=1)[:-1])
    explore = result.episodes[-1, 2:]
    assert explore == pytest.approx([16, 20], rel=0.02)


def test_design_the_marker_moves_with_the_log_and_the_areas_do_not() -> None:
    explorer = still("design")
    area = drawn(explorer, 3, "y")
    for pulls in (0, 1000, 1_000_000):
        explorer.set(pulls=pulls)
        here = max(pulls, LOGS[0])
        assert drawn(explorer, 2, "x") == [here]
        assert [line.x0 for line in explorer.figure.layout.shapes] == [here, here]
        assert np.array_equal(drawn(explorer, 3, "y"), area)
        at = int(np.flatnonzero(np.array(LOGS) == here)[0])
        tall = drawn(explorer, 0, "y")[at]
        assert drawn(explorer, 2, "y")[0] == pytest.approx(tall, rel=0.02)


def test_design_when_the_log_is_enough_nothing_is_played() -> None:
    explorer = still("design", share=0.1, pulls=1_000_000)
    assert explorer.result.least == 0
    assert drawn(explorer, 2, "x").size == 0
    assert not drawn(explorer, 7, "y").any()
    assert explorer.figure.layout.annotations[0].visible
    assert "nothing is left to be played" in explorer.readout
    assert not still("design").figure.layout.annotations[0].visible


@pytest.mark.parametrize(
    "room",
    [
        {"epsilon": 0.05, "chance": 3.0, "pulls": 10, "share": 1e-4, "beta": 0.1},
        {"epsilon": 0.1, "chance": 0.5, "pulls": 1000, "share": 1e-3, "beta": 50.0},
    ],
)
def test_a_design_that_rounding_leaves_open_is_found_all_the_same(room) -> None:
    """Newton's matrix has no inverse there, to sixteen digits."""
    found = left_to_play(1, **room)
    assert found.lower <= found.episodes <= found.lower * 1.001
