"""The explorer of the WSRL chapter, driven without a browser, and the records behind it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from offrl_wb.agents.wsrl import Study, arms
from offrl_wb.app import explore_wsrl as explore
from offrl_wb.app import wsrl_scale as scale
from offrl_wb.app.explore_wsrl import explore_wsrl, scene_of
from offrl_wb.app.explorer import Explorer
from offrl_wb.core.errors import InputError
from offrl_wb.core.records import committed_records, load_records, parameters_hash
from tests.explorer_checks import check_one_message_a_move, check_static_picture

STILL: list[Explorer] = []
TINY = Study(
    seeds=(0, 1), size=300, offline_steps=10, offline_batch=8, online_steps=120, batch_size=4,
    critics=4, width=8, episodes=1, every=60,
)  # fmt: skip


def still(**values: object) -> Explorer:
    """The explorer without widgets: its first picture, then that of `values`."""
    if not STILL:
        STILL.append(explore_wsrl(live=False))
    STILL[0].reset()
    if values:
        STILL[0].set(**values)
    return STILL[0]


def test_every_setting_draws_and_says_what_it_shows() -> None:
    explorer, drawn = still(), 0
    for values in explorer.settings():
        scene = scene_of(**values)
        asked = tuple(values[name] for name in explore.SWITCHES)
        assert (scene.shown[:2], scene.shown[3]) == (asked[:2], asked[3])
        told = explore.describe_scene(values, scene)
        assert ("Not run" in told) == (scene.shown != asked)
        drawn += scene.shown == asked
    assert drawn == len(explore.courses()) == len(scale.grid_arms())


def test_moving_the_controls_draws_the_run_that_they_name() -> None:
    explorer = still(objective="cql", warm_up=100, updates=4, share=0.1)
    assert explorer.error == ""
    course = explore.courses()["cql", 100, 4, 0.1, 2]
    shown = np.array(explorer.figure.data[6].y, dtype=float)
    assert shown == pytest.approx(np.median(course.curves["q/offline"], axis=1), abs=1e-3)
    assert explorer.figure.layout.shapes[0].x0 == 101
    assert len(explorer.figure.data[10].x) == 300
    path = len(explorer.figure.data[11].x) + len(explorer.figure.data[12].x)
    assert path == 50  # every tenth of 500 steps
    still(subset=4, share=0.5)
    assert "drawn are 4 updates a step and a subset of 2" in explorer.readout


def test_the_buttons_show_the_downward_spiral_and_its_cure() -> None:
    explorer = still()
    explorer.press("Downward spiral")
    fallen = np.array(explorer.figure.data[6].y, dtype=float)
    assert fallen[-1] < 1.5 * fallen[0] < 0
    explorer.press("Keep half the log")
    assert np.array(explorer.figure.data[6].y, dtype=float)[-1] > fallen[-1] + 2
    explorer.press("Reset")
    assert explorer.values == explorer.initial


def test_a_live_explorer_sends_one_message_a_move() -> None:
    check_one_message_a_move(explore_wsrl, "updates")


def test_the_static_picture_is_small_and_described() -> None:
    check_static_picture(still())


def test_records_without_a_grid_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = committed_records("wsrl_scale").filter(system="offline").head(0)
    monkeypatch.setattr(explore, "committed_records", lambda name: frame)
    with pytest.raises(InputError, match="hold no grid"):
        explore.courses.__wrapped__()


def test_the_committed_records_hold_every_task() -> None:
    frame, tasks = committed_records("wsrl_scale"), scale.scale_tasks()
    assert set(frame["parameters_hash"]) == {parameters_hash(task) for task in tasks}
    for family, study in scale.FAMILIES.items():
        mine = frame.filter(pl.col("parameters").str.json_path_match("$.family") == family)
        ends = mine.filter(step=study.online_steps, metric="success/anywhere")
        ends = ends.filter(pl.col("system") != "offline")
        for _, rows in ends.group_by("system", "parameters"):
            assert set(rows["seed"]) <= set(study.seeds)
        assert set(ends["seed"]) == set(study.seeds)
    assert "diverged" not in set(frame["metric"])


def family(name: str, metric: str) -> dict[str, np.ndarray]:
    """Values `(seeds,)` at the end, by arm, from the committed records."""
    frame = committed_records("wsrl_scale").filter(metric=metric)
    frame = frame.filter(pl.col("parameters").str.json_path_match("$.family") == name)
    found = {}
    for (label,), rows in frame.group_by("system"):
        last = rows.filter(pl.col("step") == pl.col("step").max()).sort("seed")
        found[str(label)] = last["value"].to_numpy()
    return found


def test_the_committed_run_shows_the_spiral_and_its_cures() -> None:
    q, error = family("main", "q/offline"), family("main", "td/offline")
    success = family("main", "success/anywhere")
    before = q["offline"]
    assert 0.3 <= success["offline"].mean() <= 0.95
    for label in ("Cal-QL, no log", "CQL, no log"):
        assert (q[label] < before - 3).all()
        assert (error[label] > 20 * error["offline"]).all()
    for label in ("WSRL", "no warm-up", "Cal-QL, half log"):
        assert np.median(np.abs(q[label] - before)) < 4
    assert success["WSRL"].mean() > success["Cal-QL, no log"].mean()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    monkeypatch.setattr(scale, "FAMILIES", {"main": TINY})
    monkeypatch.setattr(scale, "arms", lambda: {"WSRL": replace(arms()["WSRL"], warm_up=40)})


def test_a_run_resumes_from_its_folder(tiny, tmp_path: Path, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(scale, "grid_arms", list)
    monkeypatch.setattr(scale, "PAPER_ARMS", ())
    first = scale.run_scale(tmp_path, told.append)
    assert len(told) == 2
    assert set(first["system"]) == {"offline", "WSRL"}
    for row in first.filter(metric="x")["value"]:
        assert 0 <= row <= 3
    assert first.filter(metric="x", system="WSRL")["step"].to_list() == list(range(0, 120, 10))
    again = scale.scale_records(tmp_path, told.append)
    assert again.equals(first)
    assert told[2] == f"records: the finished run in {tmp_path}"


def test_the_command_writes_the_records_and_refuses_what_is_no_number(
    tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    frame = pl.DataFrame(schema=committed_records("wsrl_scale").schema)
    monkeypatch.setattr(scale, "run_scale", lambda *rest: frame)
    monkeypatch.setattr(scale, "notebooks_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["wsrl_scale", str(tmp_path), "2"])
    assert scale.main() == 0
    assert load_records(tmp_path / "app" / "records" / "wsrl_scale.parquet").height == 0
    monkeypatch.setattr(sys, "argv", ["wsrl_scale", str(tmp_path), "two"])
    assert scale.main() == 2
    assert "pass 1 or more" in capsys.readouterr().err


def test_every_task_is_its_arm_again() -> None:
    tasks = scale.scale_tasks()
    assert len({json.dumps(task, sort_keys=True) for task in tasks}) == len(tasks)
    assert len(tasks) == 3 + 9 + 4 + 45
