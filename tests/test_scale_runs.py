"""Long runs as tasks: what is done is not done again, workers change nothing, commands say why."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from offrl_wb.core import scale_runs
from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.core.records import Records, load_records
from offrl_wb.core.scale_runs import (
    finished_or_committed,
    run_tasks,
    scale_command,
    task_files,
)

TASKS = [{"size": size} for size in (4, 2, 7, 5)]


def drawn(task: dict[str, Any], seed: int) -> pl.DataFrame:
    """A task whose number depends on its settings and the seed alone."""
    records = Records("example", task)
    value = stream(seed, "example", task["size"]).random()
    records.add(metric="value", value=value, step=task["size"])
    return records.frame()


def failing(task: dict[str, Any], seed: int) -> pl.DataFrame:
    """A task of which one cannot be done."""
    if task["size"] == 7:
        raise InputError("size 7 is refused")
    return drawn(task, seed)


def quiet(line: str) -> None:
    """Say nothing."""


def test_two_workers_give_what_one_gives(tmp_path: Path) -> None:
    alone = run_tasks(drawn, TASKS, tmp_path / "one", 3, report=quiet)
    said: list[str] = []
    together = run_tasks(drawn, TASKS, tmp_path / "two", 3, workers=2, report=said.append)
    assert alone.equals(together)
    assert alone["step"].to_list() == [4, 2, 7, 5]
    assert sorted(line.split("/")[0] for line in said) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_failed_keeps_what_was_done_and_goes_on(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match="size 7 is refused"):
        run_tasks(failing, TASKS, tmp_path, workers=workers, report=quiet)
    kept = list(tmp_path.glob("*.parquet"))
    assert 2 <= len(kept) < len(TASKS)
    times = {path: path.stat().st_mtime_ns for path in kept}
    whole = run_tasks(drawn, TASKS, tmp_path, report=quiet)
    assert whole.height == len(TASKS)
    assert times == {path: path.stat().st_mtime_ns for path in kept}


def test_another_seed_is_another_file() -> None:
    files = [set(task_files("folder", TASKS, seed)) for seed in (0, 1)]
    assert not files[0] & files[1]


def test_a_killed_run_leaves_whole_files_only(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from offrl_wb.core.scale_runs import run_tasks
from tests.test_scale_runs import TASKS, drawn
def killed(task, seed):
    if task["size"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn(task, seed)
run_tasks(killed, TASKS, {str(tmp_path)!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert ended.returncode == -9
    assert [load_records(p).height for p in tmp_path.glob("*.parquet")] == [1, 1]
    said: list[str] = []
    whole = run_tasks(drawn, TASKS, tmp_path, report=said.append)
    assert [line.split(" ")[0] for line in said] == ["3/4", "4/4"]
    expected = [stream(0, "example", task["size"]).random() for task in TASKS]
    assert np.array_equal(whole["value"].to_numpy(), expected)


def test_an_unfinished_run_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    committed = drawn(TASKS[0], 0)
    monkeypatch.setattr(scale_runs, "committed_records", lambda name: committed)
    run_tasks(drawn, TASKS[:2], tmp_path, report=quiet)
    shown = finished_or_committed("any", lambda: None, TASKS, tmp_path, report=said.append)
    assert shown is committed
    assert "holds 2 of 4 tasks" in said[0]


def test_the_command_writes_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale_runs, "notebooks_folder", lambda: tmp_path / "nbs")
    monkeypatch.setattr(sys, "argv", ["example", str(tmp_path / "parts"), "1"])

    def run(folder: Path, workers: int) -> pl.DataFrame:
        return run_tasks(drawn, TASKS, folder, workers=workers, report=quiet)

    assert scale_command("example", run, ".example") == 0
    assert load_records(tmp_path / "nbs/theory/records/example.parquet").height == 4
    assert "4 records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["x", "many"], "'many'"), (["x", "0"], "pass 1 or more"), (["x", "-1"], "'-1'")],
)
def test_the_command_names_what_it_cannot_use(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example", *arguments])

    def run(folder: Path, workers: int) -> pl.DataFrame:
        return run_tasks(drawn, TASKS, folder, workers=workers, report=quiet)

    assert scale_command("example", run, ".example") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
