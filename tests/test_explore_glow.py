"""The five explorers of the GLOW and HyGLOW chapters, driven without a browser."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb.app import explore_glow
from offrl_wb.app.explore_glow import (
    CURVE_SEEDS,
    GAMMAS,
    ROUNDS,
    committed_curves,
    curve_tasks,
    explore_decomposition,
    explore_gamma,
    explore_life_bars,
    explore_ratios,
    main,
    played_run,
    spans,
    strips,
    world_of,
)
from offrl_wb.app.explore_hyglow import explore_round
from offrl_wb.app.explorer import Explorer
from offrl_wb.core.errors import InputError
from offrl_wb.core.records import load_records
from offrl_wb.theory.glow import GLOW
from tests.explorer_checks import check_one_message_a_move, check_static_picture

EXPLORERS = {
    "life bars": explore_life_bars,
    "ratios": explore_ratios,
    "decomposition": explore_decomposition,
    "gamma": explore_gamma,
    "round": explore_round,
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
    """What is in one trace of the picture, as floats."""
    return np.array(explorer.figure.data[trace][name], dtype=float)


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
@settings(max_examples=5, **SLOWLY)
def test_every_reachable_setting_draws_or_says_what_to_change(
    name: str, data: st.DataObject
) -> None:
    values = {
        key: data.draw(st.sampled_from(control.settings), key)
        for key, control in still(name).controls.items()
    }
    explorer = still(name, **values)
    assert not explorer.error.startswith("unexpected"), explorer.error
    assert explorer.error or explorer.readout


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_live_explorer_sends_one_message_a_move(name: str) -> None:
    check_one_message_a_move(EXPLORERS[name], "gamma")


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_static_picture_is_small_and_described(name: str) -> None:
    check_static_picture(still(name))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("life bars", dict(world="trap", actions=8, optimism=False)),
        ("life bars", dict(world="lock", layers=5, optimism=False, gamma=0.05)),
        ("ratios", dict(actions=8, layers=7)),
        ("round", dict(world="chains", round=400)),
    ],
)
def test_the_fullest_pictures_stay_small_too(name: str, values: dict[str, object]) -> None:
    explorer = still(name, **values)
    assert explorer.error == ""
    assert len(json.dumps(explorer._repr_mimebundle_())) < 150_000


@pytest.mark.parametrize(
    ("name", "trace", "values"),
    [("ratios", 0, {"world": "lock"}), ("ratios", 2, {"world": "trap"}), ("round", 0, {})],
)
def test_tiles_that_a_layer_lacks_are_empty_in_a_way_that_json_knows(
    name: str, trace: int, values: dict[str, object]
) -> None:
    tiles = [z for row in still(name, **values).figure.data[trace].z for z in row]
    assert None in tiles
    assert all(z is None or np.isfinite(z) for z in tiles)


@pytest.mark.parametrize("make", EXPLORERS.values(), ids=EXPLORERS)
def test_first_pictures_are_the_same_every_time(make: Callable[..., Explorer]) -> None:
    assert make(live=False).figure.to_json() == make(live=False).figure.to_json()


# Life bars


def test_life_bars_each_decoy_costs_the_same_and_then_only_the_best_chain_is_played() -> None:
    explorer = still("life bars")
    counts = np.bincount(explorer.result.chosen, minlength=5)
    assert len(set(counts[1:])) == 1
    assert explorer.result.regret.sum() == pytest.approx(0.4 * counts[1:].sum())
    assert explorer.result.regret[-300:].max() == 0
    assert "Q* stays in the set throughout" in explorer.readout


def test_life_bars_a_bar_ends_where_the_function_leaves_the_set() -> None:
    explorer = still("life bars")
    x, y = drawn(explorer, 0, "x"), drawn(explorer, 0, "y")
    for row, alive in enumerate(explorer.result.alive.T):
        ends = x[(y == row) & ~np.isnan(x)]
        assert list(ends) == [0.5, alive.sum() + 0.5], "one unbroken bar from the first round"


@given(mask=st.lists(st.booleans(), max_size=60), gap=st.integers(1, 8))
def test_life_bars_spans_hold_every_round_and_close_only_short_gaps(
    mask: list[bool], gap: int
) -> None:
    rounds = np.flatnonzero(mask) + 1
    starts, ends = spans(rounds, gap)[:-1:3], spans(rounds, gap)[1::3]
    covered = [any(s < t < e for s, e in zip(starts, ends, strict=False)) for t in rounds]
    assert all(covered)
    assert all(later - end >= gap for end, later in zip(ends, starts[1:], strict=False))


@given(chosen=st.lists(st.integers(0, 3), min_size=1, max_size=300), row=st.integers(0, 3))
def test_life_bars_the_dark_strip_has_the_area_of_the_rounds_played(
    chosen: list[int], row: int
) -> None:
    x, y = (np.asarray(part, dtype=float)[1:-1] for part in strips(np.array(chosen), [row], 4))
    twice = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) if len(x) else 0.0
    assert abs(twice) / 2 == pytest.approx(0.4 * chosen.count(row), abs=1e-3)


@given(data=st.data())
@settings(max_examples=6, **SLOWLY)
def test_life_bars_a_function_is_alive_exactly_where_its_error_is_within_the_limit(
    data: st.DataObject,
) -> None:
    keys = ("round", "learner", "gamma", "c_beta", "clip", "penalty", "world")
    controls = still("life bars").controls
    values = {key: data.draw(st.sampled_from(controls[key].settings), key) for key in keys}
    life = still("life bars", **values).result
    assert np.array_equal(life.errors <= 1 + 1e-9, life.alive[life.round - 1])


def test_life_bars_moving_the_round_moves_the_marker_and_says_who_is_alive() -> None:
    explorer = still("life bars", actions=3)
    life = explorer.result
    for t in (1, 300, 585, 1200, ROUNDS):
        explorer.set(round=t)
        assert explorer.figure.data[4].x == (t,)
        assert explorer.figure.data[4].y == (life.chosen[t - 1],)
        assert explorer.figure.layout.shapes[0].x0 == explorer.figure.layout.shapes[0].x1 == t
        assert set(drawn(explorer, 8, "y")) == set(np.flatnonzero(life.alive[t - 1]))
        assert set(drawn(explorer, 9, "y")) == set(np.flatnonzero(~life.alive[t - 1]))
        assert explorer.figure.data[7].y[0] == pytest.approx(life.regret[:t].sum())


def test_life_bars_the_one_played_is_among_the_most_hopeful_of_the_set() -> None:
    explorer = still("life bars", world="trap", actions=4)
    for t in (1, 100, 200, 400, 2000):
        explorer.set(round=t)
        life = explorer.result
        hopes = np.where(life.alive[t - 1], life.claims, -1)
        assert life.claims[life.chosen[t - 1]] == pytest.approx(hopes.max())


def test_life_bars_buttons_step_through_the_rounds_and_the_changes_of_the_set() -> None:
    explorer = still("life bars", round=1)
    alive = explorer.result.alive
    changes = np.flatnonzero((alive[1:] != alive[:-1]).any(axis=1)) + 2
    seen = []
    for _ in range(5):
        explorer.press("Change of the set ▶")
        seen.append(explorer.values["round"])
    assert seen == [*changes, ROUNDS]
    explorer.press("Round ▶")
    assert explorer.values["round"] == ROUNDS
    explorer.press("◀ Change of the set")
    assert explorer.values["round"] == changes[-1]
    explorer.press("◀ Round")
    assert explorer.values["round"] == changes[-1] - 1
    explorer.set(round=2)
    explorer.press("◀ Change of the set")
    explorer.press("◀ Round")
    assert explorer.values["round"] == 1


def test_life_bars_with_the_paper_s_constants_nobody_is_ever_dropped() -> None:
    explorer = still("life bars")
    explorer.press("Paper's constants")
    assert explorer.values["c_alpha"] == 8
    assert explorer.values["c_beta"] == 36
    assert explorer.result.alive.all()
    assert explorer.result.regret.sum() == pytest.approx(1200)


def test_life_bars_another_seed_is_another_run() -> None:
    explorer = still("life bars", world="trap")
    chosen = explorer.result.chosen
    explorer.press("Another seed")
    assert explorer.values["seed"] == 1
    assert not np.array_equal(explorer.result.chosen, chosen)


def test_life_bars_golf_never_finds_the_best_chain() -> None:
    explorer = still("life bars", learner="golf")
    assert not np.any(explorer.result.chosen == 0)
    assert explorer.result.regret.sum() == pytest.approx(1200)
    assert explorer.figure.data[2].x.size == 1, "nothing green"


def test_life_bars_without_clip_and_penalty_q_star_is_marked_as_missing() -> None:
    explorer = still("life bars", clip=False, penalty=False, gamma=0.01)
    gone = np.flatnonzero(~explorer.result.alive[:, 0]) + 1
    marked = drawn(explorer, 3, "x")
    assert len(gone)
    assert set(marked) <= set(gone)
    assert f"Q* is missing in {len(gone):,} rounds" in explorer.readout


def test_life_bars_a_lock_too_large_leaves_the_picture_and_says_what_to_do() -> None:
    explorer = still("life bars", world="lock", layers=4)
    assert explorer.error == ""
    assert len(explorer.figure.layout.yaxis.ticktext) == 16
    explorer.set(layers=7)
    assert explorer.error == (
        "a lock of 7 digits has 128 codes, and the picture has room for 40 functions: take 5"
        " layers or fewer"
    )
    assert len(explorer.figure.layout.yaxis.ticktext) == 16


# Ratios


def frames(explorer: Explorer, trace: int) -> set[tuple[int, int]]:
    """Row (layer, from 1) and column of each framed tile."""
    x, y = (drawn(explorer, trace, name).reshape(-1, 6)[:, :4].mean(axis=1) for name in "xy")
    return {(round(row), round(column)) for row, column in zip(y, x, strict=True)}


@pytest.mark.parametrize("world", ["chains", "trap", "lock"])
def test_ratios_frames_are_on_the_tiles_above_the_limit(world: str) -> None:
    explorer = still("ratios", world=world, gamma=0.02)
    for t in (1, 20, 150, 900):
        explorer.set(round=t)
        ratios = explorer.result
        assert ratios.limit == pytest.approx(0.02 * t)
        for trace, weights in ((1, ratios.played), (3, ratios.largest)):
            above = {(row + 1, column) for row, column in np.argwhere(weights > ratios.limit)}
            assert frames(explorer, trace) == above
        assert np.nanmax(ratios.largest) <= t + 1e-9
        assert np.nanmax(ratios.played - ratios.largest) <= 1e-9


def test_ratios_are_occupancies_over_their_running_average() -> None:
    explorer = still("ratios", round=700)
    run = played_run("chains", 5, 3, GLOW(0.01, c_beta=1), 0)
    counts = np.bincount(run.chosen[:700], minlength=5)
    expected = np.where(np.arange(5) == run.chosen[699], 700 / np.maximum(counts, 1), 0)
    assert explorer.result.played == pytest.approx(np.tile(expected, (3, 1)))
    assert explorer.result.largest[0, 0] == 700, "the best chain was not entered yet"
    assert explorer.figure.data[2].text[0][0] == "700"


@given(data=st.data())
@settings(max_examples=6, **SLOWLY)
def test_ratios_potential_and_clipped_share_stay_under_their_bounds(data: st.DataObject) -> None:
    keys = ("world", "actions", "gamma", "c_beta", "penalty", "optimism")
    controls = still("ratios").controls
    values = {key: data.draw(st.sampled_from(controls[key].settings), key) for key in keys}
    ratios = still("ratios", **values).result
    rounds = np.arange(1, ROUNDS + 1)
    assert np.all(ratios.share <= ratios.coverability / (ratios.gamma * rounds) + 1e-9)
    running = ratios.potential.cumsum(axis=0)[1:].max(axis=1)
    assert np.all(running <= 5 * ratios.coverability * np.log(rounds[1:]))


def test_ratios_without_the_clip_nothing_is_framed() -> None:
    explorer = still("ratios", clip=False, round=1)
    assert frames(explorer, 1) == frames(explorer, 3) == set()
    assert not explorer.result.share.any()
    assert "is not clipped" in explorer.readout


def test_ratios_a_smaller_gamma_clips_for_longer() -> None:
    shares = [still("ratios", gamma=gamma).result.share[-1] for gamma in (0.005, 0.01, 0.05)]
    assert shares[0] > shares[1] > shares[2] > 0


# Decomposition


@pytest.mark.parametrize("world", ["chains", "trap", "lock"])
def test_decomposition_the_parts_add_up_to_the_regret_of_every_round(world: str) -> None:
    for change in ({}, {"gamma": 0.1}, {"clip": False}, {"optimism": False, "c_beta": 0.1}):
        result = still("decomposition", world=world, **change).result
        assert result.parts.sum(axis=1) == pytest.approx(result.regret, abs=1e-9)


def test_decomposition_the_optimism_gap_is_never_positive_while_q_star_is_in_the_set() -> None:
    run = played_run("chains", 5, 3, GLOW(0.01, c_beta=1), 0)
    assert run.alive[:, 0].all()
    assert still("decomposition").result.parts[:, 2].max() <= 1e-12


def test_decomposition_clipping_costs_only_while_places_are_new() -> None:
    loss = still("decomposition").result.parts[:, 1]
    assert loss[0] > 0.3
    assert loss[ROUNDS // 2 :].max() == 0
    assert not still("decomposition", clip=False).result.parts[:, 1].any()


def test_decomposition_the_bars_are_the_marked_round() -> None:
    explorer = still("decomposition", round=77)
    result = explorer.result
    assert drawn(explorer, 5, "y")[:3] == pytest.approx(result.parts[76])
    assert drawn(explorer, 5, "y")[3] == pytest.approx(result.regret[76])
    assert explorer.figure.data[4].y[3] == pytest.approx(result.regret[:77].sum())


# The clip scale


def test_gamma_every_setting_has_a_committed_curve_of_every_seed() -> None:
    curves = committed_curves()
    for task in curve_tasks():
        for last in (*explore_glow.CHECKPOINTS, "missing"):
            curve = curves[task["world"], task["actions"], task["c_alpha"], task["c_beta"], last]
            assert curve.shape == (CURVE_SEEDS, len(GAMMAS))
            assert np.isfinite(curve).all()


@pytest.mark.parametrize(("world", "actions", "gamma"), [("chains", 5, 0.005), ("trap", 5, 0.01)])
def test_gamma_the_committed_runs_are_those_of_the_library(
    world: str, actions: int, gamma: float
) -> None:
    run = played_run(world, actions, 3, GLOW(gamma, c_alpha=0.25, c_beta=1.0), 2)
    curve = committed_curves()[world, actions, 0.25, 1.0, ROUNDS]
    assert curve[2, GAMMAS.index(gamma)] == pytest.approx(run.total_regret)


@pytest.mark.parametrize("actions", [2, 5, 8])
def test_gamma_regret_on_the_chains_is_a_u_that_ends_at_the_wall(actions: int) -> None:
    curve = still("gamma", actions=actions).result
    mean, best = curve.regret.mean(axis=0), int(curve.regret.mean(axis=0).argmin())
    assert 0 < best < len(GAMMAS) - 1
    assert mean[curve.gammas > curve.wall] == pytest.approx(curve.ceiling)
    assert mean[best] < 0.75 * mean[0] + 1e-9
    assert curve.gammas[best] < curve.wall


def test_gamma_the_prediction_meets_the_runs_on_the_chains() -> None:
    for change in ({}, {"c_alpha": 0.0}, {"c_beta": 0.3}, {"actions": 2}):
        curve = still("gamma", **change).result
        fine = np.geomspace(curve.gammas[0], curve.gammas[-1], len(curve.predicted))
        predicted = np.interp(np.log(curve.gammas), np.log(fine), curve.predicted)
        far = np.abs(np.log(curve.gammas / curve.wall)) > 0.4
        assert predicted[far] == pytest.approx(curve.regret.mean(axis=0)[far], rel=0.1)


def test_gamma_the_marker_follows_and_the_readout_says_so() -> None:
    explorer = still("gamma", gamma=0.05)
    assert explorer.figure.data[4].x == (0.05,)
    assert explorer.figure.data[4].y[0] == pytest.approx(1200)
    assert explorer.readout.startswith("γ = 0.05: regret 1200 after 3,000 rounds")


def test_gamma_with_too_small_constants_q_star_is_lost() -> None:
    careful, careless = (
        still("gamma", c_alpha=0.1, c_beta=c_beta).result.missing for c_beta in (1.0, 0.1)
    )
    assert not careful.any()
    assert careless.mean(axis=0).max() > 0.03


def test_gamma_the_command_writes_the_records_and_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [task | {"seeds": 1} for task in curve_tasks() if task["actions"] == 2][:2]
    monkeypatch.setattr(explore_glow, "curve_tasks", lambda: few)
    monkeypatch.setattr(explore_glow, "GAMMAS", (0.01,))
    monkeypatch.setattr("offrl_wb.core.scale_runs.notebooks_folder", lambda: tmp_path / "nbs")
    monkeypatch.setattr("sys.argv", ["explore_glow", str(tmp_path / "parts")])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    frame = load_records(tmp_path / "nbs" / "theory" / "records" / "glow_gamma.parquet")
    assert frame.height == 2 * 4
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "nothing is run again"


# One round


def test_round_fqi_falls_into_the_trap_and_hyglow_does_not() -> None:
    explorer = still("round")
    seen = explorer.result
    assert seen.fqi.earned == 0.25
    assert seen.hyglow.earned == 0.4
    assert seen.layer_names[0][seen.fqi.chosen[0]] == "u"
    assert seen.fqi.tied[1].sum() >= 9, "the last layer's functions agree on the data"
    assert seen.names[seen.hyglow.chosen] == "Q*, Q*"
    assert "FQI goes b, y and earns 0.25; HyGLOW goes a*, x₂: 0 and earns 0.40" in explorer.readout


def test_round_the_steps_uncover_one_thing_after_the_other() -> None:
    explorer = still("round", step=1)
    shown = []
    for step in range(1, 6):
        explorer.set(step=step)
        losses, objectives = drawn(explorer, 3, "x"), drawn(explorer, 4, "x")
        paths = sum(drawn(explorer, trace, "x").size > 0 for trace in (1, 2))
        shown.append((np.sum(~np.isnan(losses)), np.sum(~np.isnan(objectives)), paths))
    assert shown == [(0, 0, 0), (10, 0, 0), (12, 0, 0), (12, 20, 0), (12, 20, 2)]


def test_round_buttons_go_through_the_steps_and_on_to_the_next_round() -> None:
    explorer = still("round", step=4, round=25)
    explorer.press("Step ▶")
    assert (explorer.values["step"], explorer.values["round"]) == (5, 25)
    explorer.press("Step ▶")
    assert (explorer.values["step"], explorer.values["round"]) == (1, 26)
    explorer.press("◀ Step")
    assert (explorer.values["step"], explorer.values["round"]) == (5, 25)
    explorer.press("◀ Step")
    assert explorer.values["step"] == 4
    explorer.set(round=1, step=1)
    explorer.press("◀ Step")
    assert (explorer.values["step"], explorer.values["round"]) == (5, 1)
    explorer.press("Another seed")
    assert explorer.values["seed"] == 1


def test_round_the_dark_bars_are_least_among_their_rivals() -> None:
    for values in ({}, {"world": "chains"}, {"collector": "hyglow", "round": 100}):
        seen = still("round", **values).result
        for losses, chosen in zip(seen.fqi.losses, seen.fqi.chosen, strict=True):
            assert losses[chosen] <= losses.min() + 1e-9
        objective = seen.hyglow.objective
        assert objective[seen.hyglow.chosen] <= objective.min() + 1e-9


def test_round_tiles_count_every_tuple_once_a_layer() -> None:
    for values in ({"offline": True}, {"offline": False}, {"world": "chains", "round": 101}):
        explorer = still("round", **values)
        counts = [
            sum(int(text.replace("<br>", " ").split()[-1]) for text in row if text)
            for row in explorer.figure.data[0].text
        ]
        past = explorer.values["round"] - 1
        assert counts == [past * (1 + explorer.values["offline"])] * len(counts)


def test_round_each_learner_wins_in_one_of_the_worlds() -> None:
    fqi, hyglow = still("round").result.regret.sum(axis=1)
    assert hyglow < fqi / 20
    fqi, hyglow = still("round", world="chains", actions=6).result.regret.sum(axis=1)
    assert fqi < hyglow


def test_round_the_paper_s_penalty_hides_every_error_at_this_size() -> None:
    practical, literal = (still("round", c_alpha=c).result.regret[1].sum() for c in (0.25, 8))
    assert literal > 50 * practical


def test_round_the_frames_are_where_the_policies_go() -> None:
    explorer = still("round")
    assert frames(explorer, 1) == {(1, 1), (2, 10)}, "FQI: b, then y"
    assert frames(explorer, 2) == {(1, 0), (2, 0)}, "HyGLOW: a*, then action 0"


def test_a_world_with_too_many_codes_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="a lock of 6 digits has 64 codes"):
        world_of("lock", 2, 6)
