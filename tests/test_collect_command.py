"""`offrl-wb data collect`: an agent trained here leaves random, medium, expert and replay sets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offrl_wb.app import collect_command
from offrl_wb.app.cli import run
from offrl_wb.app.collect_command import (
    SETS,
    Chosen,
    Wanted,
    asked_for,
    expert_step,
    medium_step,
    parse_sets,
    take_over,
)
from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ScoreReference

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]
SMALL = ["-p", "actor_hidden=16,16", "-p", "critic_hidden=16,16", "--episodes", "3"]
WORDS = ["DMSD-v0", "--steps", "150", "--transitions", "150", "--evaluate-every", "50", *SMALL]


def collect(*words: str) -> int:
    return run(["data", "collect", *words])


def shell(*words: str) -> subprocess.Popen[str]:
    """The console script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from offrl_wb.app.cli import main; main()", "data", "collect"]
        + list(words),
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hashes(folder: Path) -> dict[str, str]:
    return {name: Dataset.load(folder / name).content_hash for name in SETS}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that nothing interrupted, from the console."""
    place = tmp_path_factory.mktemp("whole")
    script = shell(*WORDS, "-o", str(place))
    out, told = script.communicate(timeout=300)
    assert script.returncode == 0, told
    assert "score 0 is a return of" in told
    (folder,) = place.iterdir()
    assert out.strip() == str(folder)
    return folder


def test_medium_is_the_first_checkpoint_between_a_third_and_a_half() -> None:
    curve = {30: 40.0, 10: 0.0, 20: 60.0, 40: 90.0}
    assert expert_step(curve) == 40
    assert medium_step(curve, 0.0, 90.0) == (30, pytest.approx(4 / 9))
    assert medium_step({10: 0.0, 20: 60.0, 40: 90.0}, 0.0, 90.0) == (20, pytest.approx(2 / 3))
    with pytest.raises(InputError, match="pass more --steps"):
        medium_step(curve, 90.0, 90.0)
    with pytest.raises(InputError, match="pass more --episodes"):
        medium_step(curve, 0.0, 900.0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["Pendulum-v1", "--sets", "random,best"], "there is no set 'best': choose from random,"),
        (["Pendulum-v1", "--sets", ""], "there is no set ''"),
        (["Pendulum-v1", "--steps", "0"], "--steps is 0: pass 2 or more"),
        (["Pendulum-v1", "--steps", "many"], "Invalid value for '--steps'"),
        (["Pendulum-v1", "--seed", "-1"], "--seed is -1: pass 0 or more"),
        (["Pendulum-v1", "--seed", str(2**63)], "pass less than 2**63"),
        (["Pendulum-v1", "--transitions", "0"], "--transitions is 0: pass 1 or more"),
        (["Pendulum-v1", "--episodes", "0"], "--episodes is 0: pass 1 or more"),
        (["Pendulum-v1", "--steps", "5", "--evaluate-every", "9"], "there are 5 steps"),
        (["Pendulum-v1", "--checkpoint-seconds", "nan"], "--checkpoint-seconds is nan"),
        (["Pendulum-v1", "-p", "discount=0.9,0.99"], "discount takes one value"),
        (["Pendulum-v1", "-p", "discont=0.9"], "did you mean discount?"),
        (["Pendulum-v1", "-p", "discount=2"], "discount"),
        (["Pendulum-v1", "-o", "file"], "cannot write to"),
        (["Acrobot-v1"], "pass --steps for Acrobot-v1"),
        (["FrozenLake-v1", "--steps", "9"], "does not show one row of numbers"),
        (["Pendulun-v1"], "cannot be made"),
        ([], "Missing argument 'ENV'"),
    ],
)
def test_bad_words_are_one_line_and_nothing_is_written(
    words: list[str], line: str, capsys: Capture
) -> None:
    Path("file").touch()
    assert collect(*words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert line in told[-1]
    assert len(told) == (2 if "file" in words else 1)  # what is going to be done, then the line
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise InputError('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`')

    with monkeypatch.context() as patch:
        patch.setattr("offrl_wb.train.evaluation.open_environments", refuse)
        with pytest.raises(InputError, match=r"needs MuJoCo: pip install 'offrl_wb\[mujoco\]'"):
            asked_for(Wanted("Hopper-v5"))
    monkeypatch.setattr(collect_command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trains an agent: pip install 'offrl_wb\[deep\]'"):
        asked_for(Wanted("Hopper-v5"))


def test_a_request_is_known_by_what_it_asks_for() -> None:
    one = asked_for(Wanted("Pendulum-v1"))
    same = Wanted("Pendulum-v1", steps=12_000, sets="replay, expert,medium,random,replay")
    assert asked_for(same).folder == one.folder
    assert asked_for(Wanted("Pendulum-v1", settings={"discount": "0.99"})).folder == one.folder
    fewer = asked_for(Wanted("Pendulum-v1", sets="expert", transitions=9))
    assert fewer.folder != one.folder
    assert fewer.training == one.training
    other = asked_for(Wanted("Pendulum-v1", seed=1))
    assert other.training != one.training
    assert parse_sets("replay,random") == ("random", "replay")


def test_sets_know_their_score_and_their_origin(whole: Path) -> None:
    told = json.loads((whole / "run.json").read_text())
    logs = {name: Dataset.load(whole / name) for name in SETS}
    assert [len(log) for log in logs.values()] == [150] * 4
    for name, log in logs.items():
        assert log.spec.score is not None
        assert vars(log.spec.score) == told["score"]
        assert "100 episodes each" in log.spec.score.source
        assert log.spec.name == "DMSD-v0"
        assert log.provenance.parameters["name"] == name
        assert log.provenance.outcome is not None
        assert log.provenance.outcome["expert_return"] == told["score"]["high"]
        assert not log.check().filter(log.check()["severity"] == "error").height
        assert set(log.episode_table()["source"]) == {name}
        assert ("behaviour_prob" in log.transitions.columns) == (name != "replay")
    assert "score 0 is a return of" in (whole / "table.txt").read_text()


def test_the_provenance_of_a_set_is_the_call_that_makes_it_again(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, found = Dataset.load(whole / "replay"), dict[str, Any]()

    def done(wanted: Wanted, report: Any) -> tuple[Path, str]:
        asked = asked_for(wanted)
        assert asked.sets == ("replay",)
        assert asked.training == json.loads((whole / "run.json").read_text())["training"]
        return whole, ""

    monkeypatch.setattr(collect_command, "run_collection", done)
    assert not log.provenance.parents
    exec(log.provenance.as_python(), found)
    assert found["dataset"].content_hash == log.content_hash


def test_the_same_again_is_there_at_once_and_force_does_it_again(
    whole: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, place = hashes(whole), ["-o", str(whole.parent)]
    with monkeypatch.context() as patch:
        patch.setattr(collect_command, "train_sac", None)
        assert collect(*WORDS, *place) == 0
    shown = capsys.readouterr()
    assert Path(shown.out.strip()) == whole
    assert "nothing is left to do" in shown.err
    assert (whole / "table.txt").read_text() in shown.err
    (whole / "random" / "dataset.json").unlink()
    assert collect(*WORDS, *place, "--force") == 0
    assert hashes(whole) == before
    assert not list(whole.parent.glob(".*"))


def test_other_sets_of_the_same_training_take_no_second_training(
    whole: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl_wb.train.run._proceed", None)
    words = ["-o", str(whole.parent), "--sets", "replay,expert"]
    assert collect(*WORDS, *words) == 0
    shown = capsys.readouterr()
    assert "only the sets are new" in shown.err
    folder = Path(shown.out.strip())
    assert not (folder / "medium").exists()
    for name in ("replay", "expert"):
        assert Dataset.load(folder / name).content_hash == hashes(whole)[name]


def test_a_copy_of_a_training_that_was_killed_is_begun_again(whole: Path) -> None:
    wanted = Wanted("DMSD-v0", 150, episodes=3, evaluate_every=50, transitions=7)
    sizes = {"actor_hidden": "16,16", "critic_hidden": "16,16"}
    asked = asked_for(replace(wanted, output=whole.parent, settings=sizes))
    begun = asked.work / ".training" / "checkpoint"
    begun.mkdir(parents=True)
    (begun / "half").touch()
    take_over(asked, lambda line: None)
    assert sorted(path.name for path in asked.work.iterdir()) == ["policies", "training"]
    found = {path.name for path in (asked.work / "training" / "checkpoint").iterdir()}
    assert "checkpoint.json" in found
    assert "half" not in found
    shutil.rmtree(asked.work)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_collection_killed_twice_goes_on_to_the_same_sets(
    whole: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "-o", "killed", "--checkpoint-seconds", "0"]
    begun = shell(*words)
    deadline = time.monotonic() + 120
    while begun.poll() is None and time.monotonic() < deadline:
        if list(Path("killed").glob(".*.collecting/policies/50")):
            begun.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    begun.communicate()
    if begun.returncode != -signal.SIGKILL:
        pytest.skip("it was over before it could be killed")

    def interrupted(name: str, *words: Any) -> Dataset:
        if name == "expert":
            raise KeyboardInterrupt
        return make_set(name, *words)

    make_set = collect_command.make_set
    with monkeypatch.context() as patch:
        patch.setattr(collect_command, "make_set", interrupted)
        assert collect(*words) == 130
    assert [path.name[0] for path in Path("killed").iterdir()] == ["."]
    assert "cut short" in capsys.readouterr().err
    assert collect(*words) == 0
    told = capsys.readouterr()
    assert "random: set" not in told.err
    assert "expert: set 3 of 4" in told.err
    folder = Path(told.out.strip())
    assert hashes(folder) == hashes(whole)
    assert (folder / "table.txt").read_text() == (whole / "table.txt").read_text()
    assert [path.name for path in Path("killed").iterdir()] == [folder.name]


def test_a_policy_no_better_than_random_is_said_in_one_line(
    whole: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_command, "mean_return", lambda policy, asked, mode: 1.0)
    assert collect(*WORDS, "--sets", "expert", "-o", str(whole.parent)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.search(
        r"random actions 1.0: pass more --steps \(what was trained is in (.*)\)", line
    )
    assert found is not None
    shutil.rmtree(found[1])


def test_the_exit_code_of_the_console_script_for_bad_words() -> None:
    script = shell("Pendulum-v1", "--sets", "best")
    out, told = script.communicate(timeout=120)
    assert (script.returncode, out) == (2, "")
    assert told.startswith("offrl-wb: there is no set 'best'")
    assert told.count("\n") == 1


def test_a_set_is_described_and_trained_on(whole: Path, capsys: Capture) -> None:
    medium = str(whole / "medium")
    assert run(["data", "describe", medium]) == 0
    assert "150" in capsys.readouterr().out
    words = ["--steps", "20", "--evaluate-every", "20", "--episodes", "2", "-p", "hidden=8,8"]
    assert run(["train", "iql", "--data", medium, "--env", "DMSD-v0", *words]) == 0
    assert "score" in capsys.readouterr().err


def test_a_task_of_mujoco(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    chosen = Chosen(100, 100, 1.0), ScoreReference(5.0, 10.0, "a test")
    monkeypatch.setattr(collect_command, "choose_policies", lambda run, asked: chosen)
    words = ["--steps", "100", "--transitions", "100", "--evaluate-every", "100"]
    assert collect("InvertedPendulum-v5", *words, *SMALL) == 0
    folder = Path(capsys.readouterr().out.strip())
    for name in SETS:
        log = Dataset.load(folder / name)
        assert len(log) == 100
        assert 1 < np.abs(log.arrays().actions).max() <= 3  # bounds are -3 and 3
