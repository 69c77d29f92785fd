"""`offrl-wb data collect`: an agent trained here leaves random, medium, expert and replay sets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from offrl_wb.app.cli import run
from offrl_wb.app.collect_command import (
    Wanted,
    asked_for,
    expert_step,
    medium_step,
    run_collection,
)
from offrl_wb.core.errors import InputError
from offrl_wb.core.scores import normalised_score
from offrl_wb.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]
SMALL = ["-p", "actor_hidden=32,32", "-p", "critic_hidden=32,32", "--episodes", "3"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")


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
        (["Pendulum-v1", "--sets", "best"], "there is no set 'best'"),
        (["Pendulum-v1", "--steps", "1"], "--steps is 1: pass 2 or more"),
        (["Pendulum-v1", "--seed", "-1"], "--seed is -1: pass 0 or more"),
        (["Pendulum-v1", "--transitions", "0"], "--transitions is 0: pass 1 or more"),
        (["Pendulum-v1", "--steps", "5", "--evaluate-every", "9"], "there are 5 steps"),
        (["Pendulum-v1", "-p", "discount=0.9,0.99"], "discount takes one value"),
        (["Acrobot-v1"], "pass --steps for Acrobot-v1"),
        (["FrozenLake-v1", "--steps", "9"], "not seen as one row of numbers"),
        (["NoSuch-v1", "--steps", "9"], "cannot be made"),
    ],
)
def test_bad_words_are_one_line_and_nothing_is_written(
    words: list[str], line: str, capsys: Capture
) -> None:
    assert run(["data", "collect", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told
    assert not Path("datasets").exists()


def test_without_mujoco_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise InputError('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`')

    monkeypatch.setattr("offrl_wb.train.evaluation.open_environments", refuse)
    with pytest.raises(InputError, match=r"needs MuJoCo: pip install 'offrl_wb\[mujoco\]'"):
        asked_for(Wanted("Hopper-v5"))


def test_sets_know_their_score_and_their_origin(capsys: Capture) -> None:
    pytest.importorskip("mujoco")
    words = ["data", "collect", "InvertedPendulum-v5", "--steps", "600", "--transitions", "300"]
    assert run([*words, *SMALL]) == 0
    shown = capsys.readouterr()
    folder = Path(shown.out.strip())
    assert "score 0 is a return of" in shown.err
    logs = {name: Dataset.load(folder / name) for name in ("random", "medium", "expert", "replay")}
    told = json.loads((folder / "run.json").read_text())
    for name, log in logs.items():
        assert vars(log.spec.score) == told["score"]
        assert log.provenance.parameters["set"] == name
        assert not log.check().filter(log.check()["severity"] == "error").height
        assert set(log.episode_table()["source"]) == {name}
    assert [len(logs[name]) for name in logs] == [300, 300, 300, 600]
    assert np.abs(logs["replay"].arrays().actions).max() <= 3
    low, high = told["score"]["low"], told["score"]["high"]
    random, expert = (logs[name].returns().mean() for name in ("random", "expert"))
    assert abs(normalised_score(np.array(random), low, high)) < 40
    assert expert > random
    assert 1 / 3 <= told["chosen"]["share"] <= 1.2
    assert run([*words, *SMALL]) == 0
    assert "nothing is left to do" in capsys.readouterr().err


def test_a_killed_collection_goes_on_to_the_same_sets(capsys: Capture) -> None:
    words = ["data", "collect", "DMSD-v0", "--steps", "200", "--transitions", "200", *SMALL]
    words += ["--sets", "random,replay", "--checkpoint-seconds", "0", "--evaluate-every", "50"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(
        [sys.executable, "-c", "from offrl_wb.app.cli import main; main()", *words, "-o", "killed"],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while begun.poll() is None and time.monotonic() < deadline:
        if list(Path("killed").glob(".*.collecting/policies/100")):
            begun.send_signal(signal.SIGKILL)
        time.sleep(0.005)
    begun.wait()
    if begun.returncode != -signal.SIGKILL:
        pytest.skip("it was over before it could be killed")
    folders = []
    for where in ("killed", "whole"):
        code = run([*words, "-o", where])
        shown = capsys.readouterr()
        assert code == 0 or "pass more --steps" in shown.err
        assert ("cut short" in shown.err) == (where == "killed")
        folders.append(next(p for p in Path(where).iterdir()))
    seen = [np.sort([p.name for p in f.glob("policies/*")]).tolist() for f in folders]
    assert seen[0] == seen[1]
    kept = [(f / "policies" / "200" / "policy.safetensors").read_bytes() for f in folders]
    assert kept[0] == kept[1]


def test_the_same_request_finds_the_same_folder() -> None:
    one, other = Wanted("Pendulum-v1"), Wanted("Pendulum-v1", seed=1)
    assert asked_for(one).folder == asked_for(one).folder
    assert asked_for(one).folder != asked_for(other).folder
    assert asked_for(one).steps == 12_000
    assert run_collection.__doc__
