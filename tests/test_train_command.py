"""`offrl-wb train`: an agent's settings as options, a summary, a folder, one line for errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from offrl_wb.app import train_command
from offrl_wb.app.cli import run, train
from offrl_wb.app.train_command import (
    Words,
    ask,
    heir_config,
    parse_bounds,
    parse_seeds,
    replica_config,
    results,
)
from offrl_wb.core.errors import InputError
from offrl_wb.core.records import load_records, save_records
from offrl_wb.data.collector import collect, uniform_policy
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import Spec
from offrl_wb.nets.policies import load_policy
from offrl_wb.train.logs import Log
from offrl_wb.worlds.mass_spring import register

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]
SHORT = ["--steps", "30", "--batch-size", "8", "--episodes", "1", "--log-every", "10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of random pushes, as a native folder and as plain arrays without bounds."""
    place = tmp_path_factory.mktemp("logs")
    pushes = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    log = collect(uniform_policy(pushes), "Pendulum-v1", transitions=400)
    log.save(place / "log")
    rows = log.arrays()
    plain = {"observations": rows.observations, "actions": rows.actions, "rewards": rows.rewards}
    ends = {"terminals": rows.terminated, "timeouts": rows.truncated}
    np.savez(place / "plain.npz", **plain, **ends)
    np.savez(place / "wild.npz", **(plain | {"actions": 3 * rows.actions}), **ends)
    holed = np.where(np.arange(400) == 9, np.nan, rows.rewards)
    np.savez(place / "holed.npz", **(plain | {"rewards": holed}), **ends)
    return place


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")


def test_a_run_is_a_folder_with_all_that_belongs_to_it(made: Path, capsys: Capture) -> None:
    words = ["train", "bc", "--data", f"{made}/log", "--env", "Pendulum-v1", *SHORT]
    words += ["-p", "learning_rate=1e-3,1e-4", "-p", "hidden=8", "--seeds", "3..4"]
    assert run(words) == 0
    shown = capsys.readouterr()
    folder = Path(shown.out.strip())
    assert folder.parent == Path("runs").absolute()
    assert re.fullmatch(r"bc-[0-9a-f]{12}", folder.name)
    assert "bc, 4 replicas (seeds 3..4), 3 → 1 numbers" in shown.err
    assert "400 transitions in 2 episodes" in shown.err
    assert "learning_rate=0.001,0.0001" in shown.err
    assert re.search(r"learning_rate=0.001 +-\d+.* ± .*\(2 seeds\)", shown.err)
    told = json.loads((folder / "run.json").read_text())
    assert told["exit_state"] == "finished"
    assert told["seeds"] == [3, 4, 3, 4]
    assert told["config"]["learning_rate"] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert told["versions"]["torch"]
    assert told["dataset"]
    records = load_records(folder / "records.parquet")
    assert set(records["world"]) == {"Pendulum-v1"}
    assert set(records["dataset"]) == {"log"}
    assert records.filter(records["metric"] == "evaluation/return").height == 4
    policy = load_policy(folder / "policies" / "replica-3")
    assert np.abs(policy.act(np.zeros((2, 3)))).max() <= 2
    assert len(list((folder / "tensorboard").glob("replica-*/events*"))) == 4
    assert not list(folder.parent.glob(".*"))


def test_the_same_request_finds_the_finished_run(made: Path, capsys: Capture) -> None:
    words = ["train", "bc", "--data", f"{made}/log", *SHORT, "-p", "hidden=8"]
    assert run(words) == 0
    first = capsys.readouterr()
    when = (Path(first.out.strip()) / "run.json").stat().st_mtime_ns
    assert run(words) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "nothing is left to do" in again.err
    assert "nothing was evaluated" in again.err
    assert (Path(first.out.strip()) / "run.json").stat().st_mtime_ns == when
    assert run([*words, "--force"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "run.json").stat().st_mtime_ns > when
    assert run([*words, "--seeds", "1"]) == 0
    assert capsys.readouterr().out != first.out


CHILD = """
import os, signal, sys
from offrl_wb.train.acting import Lives

step, calls = Lives.step, 0

def kill(lives, actions):
    global calls
    calls += 1
    if calls == int(os.environ["CALLS"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(lives, actions)

Lives.step = kill
from offrl_wb.app.cli import main
main()
"""


def test_a_killed_run_goes_on_when_it_is_asked_for_again(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", "sac", "--data", f"{made}/log", "--env", "Pendulum-v1", *SHORT, "--threads"]
    words += ["1", "--warm-up", "10", "--online-steps", "20", "--offline-share", "0.5"]
    words += ["-p", "actor_hidden=8", "-p", "critic_hidden=8", "--checkpoint-seconds", "0"]
    words += ["--episodes", "0"]
    assert run([*words, "-o", "whole"]) == 0
    whole = Path(capsys.readouterr().out.strip())
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CALLS": "17"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], env=here, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    [work] = Path("runs").iterdir()
    assert work.name == f".{whole.name}.training"
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "going on from its last checkpoint" in shown.err
    again = Path(shown.out.strip())
    assert again.name == whole.name
    first, second = (load_records(place / "records.parquet") for place in (whole, again))
    assert first.equals(second, null_equal=True)
    for name in ("policy.safetensors", "policy.json"):
        parts = (place / "policies" / "replica-0" / name for place in (whole, again))
        assert next(parts).read_bytes() == next(parts).read_bytes()
    assert not work.exists()


def test_two_processes_do_not_train_the_same_run(
    made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "bc", "--data", f"{made}/log", *SHORT]
    codes: list[int] = []
    monkeypatch.setattr(train_command, "_train", lambda asked: codes.append(run(words)) or 1 / 0)
    assert run(words) == 1
    assert codes == [2]
    assert "another process is training this very run" in capsys.readouterr().err


def test_a_run_that_diverged_keeps_its_folder(made: Path, capsys: Capture) -> None:
    words = ["train", "bc", "--data", f"{made}/log", *SHORT, "-p", "learning_rate=1e38"]
    assert run(words) == 1
    told = capsys.readouterr().err
    assert "offrl-wb: all 1 replicas diverged: actor_loss is not finite" in told
    [failed] = Path("runs").glob("bc-*.failed")
    assert json.loads((failed / "run.json").read_text())["exit_state"] == "failed"


def test_online_from_nothing_and_handed_over(made: Path, capsys: Capture) -> None:
    small = ["-p", "actor_hidden=8", "-p", "critic_hidden=8", "--batch-size", "8"]
    words = ["train", "sac", "--env", "Pendulum-v1", "--online-steps", "30", *small]
    assert run([*words, "--episodes", "0"]) == 0
    shown = capsys.readouterr().err
    assert "random: 3 steps" in shown
    assert "online: 30 steps, 8 rows in a batch, 1 updates a step" in shown
    words = ["train", "sac", "--data", f"{made}/log", "--env", "Pendulum-v1", *SHORT, *small]
    words += ["--warm-up", "8", "--online-steps", "10", "--then", "sac", "--episodes", "0"]
    assert run([*words, "--then-set", "updates=2"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "as sac (actor_hidden=8 critic_hidden=8 updates=2), 16 rows in a batch" in told


def test_the_example_of_a_hand_over_runs_as_it_stands(tmp_path: Path, capsys: Capture) -> None:
    register()
    space = gymnasium.make("DMSD-v0").action_space
    collect(uniform_policy(space), "DMSD-v0", transitions=150).save(tmp_path / "log")
    [line] = [line for line in (train.__doc__ or "").splitlines() if "--then wsrl" in line]
    words = line.replace("log.npz", "log").replace("ID", "DMSD-v0").split()[1:]
    words += ["--steps", "2", "--warm-up", "3", "--online-steps", "2", "--batch-size", "4"]
    assert run([*words, "--episodes", "0"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "warm-up: 3 steps" in told
    assert "as wsrl (critics=2 replacement=False critic_layer_norm=False" in told


def test_who_goes_on_takes_networks_and_discount_unless_told_otherwise() -> None:
    from offrl_wb.agents import cal_ql, rlpd, td3_bc, wsrl

    before = cal_ql.Config(actor_hidden=(8,), critics=3, discount=(0.9, 0.8), polyak=0.5)
    config = heir_config("wsrl", before, {"updates": "2", "critic_hidden": "16"})
    assert config == wsrl.matched(before, updates=2, critic_hidden=(16,))
    assert (config.discount, config.polyak) == ((0.9, 0.8), wsrl.Config().polyak)
    found = heir_config("rlpd", before, {"critics": "5"})
    assert (found.actor_hidden, found.critics, found.discount) == ((8,), 5, (0.9, 0.8))
    assert found.critic_layer_norm == before.critic_layer_norm
    assert (found.updates, found.polyak) == (rlpd.Config().updates, rlpd.Config().polyak)
    with pytest.raises(InputError, match="wsrl goes on from cal_ql, cql"):
        heir_config("wsrl", td3_bc.Config(), {})
    with pytest.raises(InputError, match="'critcs'; did you mean critics"):
        heir_config("wsrl", before, {"critcs": "5"})


def test_a_run_without_records_ends_and_is_found_again(capsys: Capture) -> None:
    words = ["train", "sac", "--env", "Pendulum-v1", "--online-steps", "20", "--random-steps", "0"]
    words += ["--updates-per-step", "0.01", "--episodes", "0", "-p", "actor_hidden=8"]
    assert run([*words, "-p", "critic_hidden=8"]) == 0
    first = capsys.readouterr()
    assert "nothing was evaluated: pass --episodes of 1 or more" in first.err
    assert run([*words, "-p", "critic_hidden=8"]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "nothing is left to do" in again.err


def table(folder: Path, rows: list[tuple[int, int, float]], rates: tuple[float, ...]) -> str:
    """The table for returns `(step, replica, value)`; a value of NaN: the replica diverged."""
    log, seeds = Log("bc", "world", "log", [0, 1] * (len(rates) // 2), [{}] * len(rates)), rates
    for step, replica, value in rows:
        only = np.arange(len(rates)) == replica
        metric = {"diverged": np.ones(len(rates))}
        if not np.isnan(value):
            metric = {"evaluation/return": np.full(len(rates), value)}
        log.add(step, metric, only)
    save_records(log.frame(), folder / "records.parquet")
    config = SimpleNamespace(learning_rate=rates)
    asked: Any = SimpleNamespace(
        folder=folder, seeds=seeds, config=config, varied=("learning_rate",), environment="world"
    )
    return results(asked)


def test_what_a_replica_had_before_it_diverged_is_no_result(tmp_path: Path) -> None:
    lost = float("nan")
    rows = [(100, r, 0.0) for r in range(4)] + [(150, 1, lost), (200, 0, 100.0), (200, 2, 7.0)]
    found = table(tmp_path, [*rows, (200, 3, 9.0), (300, 2, 8.0)], (0.1, 0.1, 0.2, 0.2))
    first, second, third = (" ".join(line.split()) for line in found.splitlines())
    assert first == "return at step 200"
    assert second == "learning_rate=0.1 100 (1 seed, 1 of 2 diverged)"
    assert third == "learning_rate=0.2 8 ± 1 (2 seeds)"


def test_a_combination_of_which_nothing_is_left_stays_in_the_table(tmp_path: Path) -> None:
    lost = float("nan")
    rows = [(100, 2, 5.0), (100, 3, 5.0), (150, 0, lost), (160, 1, lost)]
    found = [" ".join(line.split()) for line in table(tmp_path, rows, (1, 1, 2, 2)).splitlines()]
    assert found[1:] == [
        "learning_rate=1 no evaluation (2 of 2 diverged)",
        "learning_rate=2 5 ± 0 (2 seeds)",
    ]
    gone = table(tmp_path, rows[2:], (1, 1, 2, 2)).splitlines()
    assert gone[0].startswith("nothing was evaluated")
    assert " ".join(gone[1].split()) == "learning_rate=1 no evaluation (2 of 2 diverged)"
    apart = table(tmp_path, [(100, 0, 1.0), (200, 1, 3.0)], (1, 1)).splitlines()
    assert apart[0] == "return when each replica last had one, up to step 200"
    assert " ".join(apart[1].split()) == "learning_rate=1 2 ± 1 (2 seeds)"


def test_the_state_of_an_earlier_run_is_a_beginning(made: Path, capsys: Capture) -> None:
    wide = ["train", "bc", "--data", f"{made}/log", *SHORT, "-p"]
    words = [*wide, "hidden=8"]
    assert run(words) == 0
    first = capsys.readouterr().out.strip()
    assert run([*words, "--start", first]) == 0
    second = capsys.readouterr().out.strip()
    assert second != first
    losses = [load_records(Path(p) / "records.parquet")["value"][0] for p in (first, second)]
    assert losses[0] != losses[1]
    assert run([*words, "--start", "nowhere"]) == 2
    assert "there is no checkpoint in nowhere" in capsys.readouterr().err
    for other in ([*wide, "hidden=9"], [*words, "--seeds", "0,1"]):
        assert run([*other, "--start", first]) == 2
        told = capsys.readouterr()
        assert "agent " not in told.err  # not even a summary
        assert f"--start {first}: actor/weights has shape" in told.err


def test_a_log_without_bounds_takes_those_of_the_environment(made: Path, capsys: Capture) -> None:
    words = ["train", "bc", *SHORT, "--episodes", "0", "--data"]
    assert run([*words, f"{made}/plain.npz"]) == 2
    assert "does not tell the bounds of its actions: pass --env, or" in capsys.readouterr().err
    assert run([*words, f"{made}/plain.npz", "--env", "Pendulum-v1"]) == 0
    assert run([*words, f"{made}/plain.npz", "--action-bounds", "-2,2"]) == 0
    capsys.readouterr()
    assert run([*words, f"{made}/wild.npz", "--env", "Pendulum-v1"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"action 0 of the data lies between -\d.* and Pendulum-v1 takes -2 to 2", told)


def test_a_log_that_never_saw_an_action_takes_the_environments_number() -> None:
    seen = np.zeros((6, 2), np.float32)
    ends = np.arange(6) == 5
    log = Dataset.from_arrays(seen, np.array([0, 1, 1, 0, 1, 0]), np.zeros(6), ends, ~ends & ends)
    space = gymnasium.spaces.Discrete(4)
    assert train_command.with_action_space(log, space, "env").spec.action_space == space
    spec = Spec(log.spec.observation_space, gymnasium.spaces.Discrete(9))
    wide = log.derive("wide", {}, spec=spec)
    assert train_command.with_action_space(wide, space, "env").spec.action_space.n == 9


def test_a_schedule_runs_over_the_updates_that_there_are(made: Path) -> None:
    words = Words("iql", data=f"{made}/log", steps=50)
    assert ask(words).config.schedule_steps == 50
    given = Words("iql", data=f"{made}/log", steps=50, settings={"schedule_steps": "7"})
    assert ask(given).config.schedule_steps == 7


def test_settings_are_shown(capsys: Capture) -> None:
    assert run(["train", "iql", "--settings"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"expectile +0.7 \[v\]; ", shown)
    assert max(len(line) for line in shown.splitlines()) <= 96


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "qil", "--data", "{log}"], "there is no agent 'qil': there are"),
        (["train", "bc"], "there is nothing to learn from: pass --data FILE, --env ID"),
        (["train", "bc", "--data", "gone.npz"], "gone.npz"),
        (["train", "bc", "--data", "{log}", "--env", "Pendulmu-v1"], "Did you mean: `Pendulum`?"),
        (["train", "bc", "--data", "{log}", "--env", "CartPole-v1"], "observations have size 3 in"),
        (["train", "bc", "--data", "{log}", "--env", "MountainCarContinuous-v0"], "have size 3"),
        (["train", "bc", "--data", "{log}", "-p", "hiden=8"], "'hiden'; did you mean hidden?"),
        (["train", "bc", "--data", "{log}", "-p", "xyz=8"], "'xyz': there are policy, hidden"),
        (["train", "bc", "--data", "{log}", "-p", "hidden=wide"], "hidden is 'wide': it must be"),
        (["train", "bc", "--data", "{log}", "-p", "dropout=0.1,0.2"], "start another run"),
        (["train", "bc", "--data", "{log}", "-p", "hidden"], "-p takes key=value"),
        (["train", "bc", "--data", "{log}", "--seeds", "9..1"], "--seeds takes"),
        (["train", "bc", "--data", "{log}", "--seeds", "0..999999"], "--seeds takes"),
        (["train", "bc", "--data", "{log}", "--steps", "-1"], "--steps is -1: pass 0 or more"),
        (["train", "bc", "--data", "{log}", "--steps", "0"], "there is no phase with at least one"),
        (["train", "bc", "--data", "{log}", "--steps", "1.5"], "Invalid value for '--steps'"),
        (["train", "bc", "--data", "{log}", "--device", "gpu"], "--device is 'gpu'"),
        (["train", "bc", "--data", "{log}", "--batch-size", "0"], "--batch-size is 0"),
        (["train", "bc", "--data", "{log}", "--device", "cuda"], "finds no CUDA here; use 'cpu'"),
        (["train", "bc", "--data", "{log}", "--threads", "0"], "--threads is 0"),
        (["train", "bc", "--data", "{log}", "--threads", "9999"], "pass 1 to 256"),
        (["train", "bc", "--data", "{log}", "--seeds", "9" * 30], "--seeds takes"),
        (["train", "bc", "--data", "{log}", "-p", "hidden=99999999999"], "not enough memory"),
        (["train", "bc", "--data", "{log}", "--checkpoint-seconds", "nan"], "seconds is nan"),
        (["train", "bc", "--data", "{log}", "--offline-share", "1"], "--offline-share is for the"),
        (["train", "bc", "--data", "{log}", "--episodes", "-1"], "--episodes is -1"),
        (["train", "bc", "--data", "{log}", "--log-every", "0"], "--log-every is 0"),
        (["train", "bc", "--data", "{log}", "--online-steps", "9"], "there is no environment"),
        (["train", "bc", "--data", "{log}", "--then", "sac"], "--then is for the online steps"),
        (["train", "bc", "--data", "{log}", "--then-set", "a=1"], "--then-set needs --then"),
        (["train", "bc", "--data", "{log}", "--action-bounds", "1"], "--action-bounds takes"),
        (["train", "bc", "--data", "{log}", "--action-bounds=-0.1,0.1"], "lies between -2 and 2"),
        (["train", "bc", "--env", "Pendulum-v1", "--action-bounds=-1,1"], "is of no use without"),
        (["train", "bc", "--data", "{log}", "--env-option", "g=3"], "--env-option is of no use"),
        (["train", "bc", "--data", "{log}", "-o", "{log}/spec"], "cannot write to"),
        (["train", "bc", "--data", "{holed}", "--env", "Pendulum-v1"], "reward"),
        (
            ["train", "sac", "--env", "Pendulum-v1", "--env-option", "gravty=3"],
            "gravty",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    words: list[str], told: str, made: Path, tmp_path: Path, capsys: Capture
) -> None:
    if "{log}/spec" in words:
        (tmp_path / "file").write_text("")
        words = [str(tmp_path / "file" / "x") if w == "{log}/spec" else w for w in words]
    places = {"{log}": f"{made}/log", "{holed}": f"{made}/holed.npz"}
    assert run([places.get(word, word) for word in words]) == 2
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("offrl-wb: ")
    assert told in last
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not list(Path().glob("runs/.*"))


def test_a_missing_extra_is_named(made: Path, capsys: Capture, monkeypatch: Any) -> None:
    found = train_command.importlib.util.find_spec
    monkeypatch.setattr(
        train_command.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "torch" else found(name, *more),
    )
    assert run(["train", "bc", "--data", f"{made}/log"]) == 2
    assert "pip install 'offrl_wb[deep]'" in capsys.readouterr().err


def test_words() -> None:
    assert parse_seeds("5") == (5,)
    assert parse_seeds("0..2, 9") == (0, 1, 2, 9)
    assert parse_bounds("-1,2.5") == (-1.0, 2.5)
    for wrong in ("1,0", "a,b", "1", "0,inf"):
        with pytest.raises(InputError, match="--action-bounds takes"):
            parse_bounds(wrong)
    from offrl_wb.agents.bc import Config

    config, seeds, varied = replica_config(Config, {"learning_rate": "1e-3,1e-4"}, [0, 1, 2])
    assert seeds == (0, 1, 2, 0, 1, 2)
    assert varied == ("learning_rate",)
    assert config.learning_rate == (1e-3,) * 3 + (1e-4,) * 3
    with pytest.raises(InputError, match="that makes 8192 replicas"):
        replica_config(Config, {"learning_rate": "1e-3,1e-4"}, range(4096))


def test_the_command_is_told_without_loading_torch() -> None:
    code = """
import sys
from offrl_wb.app.cli import run, train
assert run(["train", "-h"]) == 0
print([name for name in ("torch", "numpy", "polars") if name in sys.modules])
"""
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]")
    assert done.stdout.count("offrl-wb train ") >= 2


def test_an_interrupted_run_says_so_and_goes_on(made: Path) -> None:
    words = ["train", "bc", "--data", f"{made}/log", "--steps", "1000000", "--batch-size", "8"]
    words += ["--checkpoint-seconds", "0", "--log-every", "10", "-p", "hidden=8"]
    code = "from offrl_wb.app.cli import main; main()"
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], env=here, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if list(Path("runs").glob(".bc-*/checkpoint/checkpoint.json")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().splitlines()[-1] == "offrl-wb: interrupted"
    assert "Traceback" not in told
