"""The command line: one line and an exit code for whatever goes wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from gymnasium.spaces import Box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offrl_wb import __version__
from offrl_wb.app import cli
from offrl_wb.app.cli import copy_notebooks, parse_pairs, run
from offrl_wb.app.describe import describe_text, open_log, write_log
from offrl_wb.app.notebooks import find_notebooks
from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import Spec
from tests.shared_data import neorl2_file
from tests.tiny import cell, prose, write

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from offrl_wb.app.cli import main; main()"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "dumb"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_version_is_told_without_loading_what_a_report_needs() -> None:
    heavy = ["papermill", "nbconvert", "nbformat", "jupyterlab", "plotly", "polars", "numpy"]
    code = f"""
import sys
from offrl_wb.app.cli import run
assert run(["--version"]) == 0
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"offrl-wb {__version__}\n[]\n"


def test_list_shows_every_notebook_with_its_claim_and_parameters(capsys: Capture) -> None:
    assert run(["list"]) == 0
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    for notebook in find_notebooks():
        assert f"\n{notebook.name}\n" in shown
        assert " ".join(notebook.claim.split()) in flat
        for parameter in notebook.parameters:
            assert f"{parameter.name}={parameter.default!r}" in flat


def test_list_of_one_room(capsys: Capture) -> None:
    assert run(["list", "app"]) == 0
    assert "lcb_bandit\n" not in capsys.readouterr().out.replace("explore_lcb_bandit", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["report", "--help"],
        ["lab", "-h"],
        ["list", "-h"],
        ["data", "check", "-h"],
        ["data", "describe", "-h"],
        ["data", "convert", "-h"],
    ],
)
def test_help_has_examples(words: list[str], capsys: Capture) -> None:
    assert run(words) == 0
    assert capsys.readouterr().out.count("offrl-wb ") >= 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["repotr"], "No such command"),
        (["report"], "Missing argument"),
        (["report", "x", "--scael", "quick"], "No such option: --scael"),
        (["report", "notebok"], "did you mean notebooks"),
        (["report", "gone.ipynb"], "there is no notebook gone.ipynb"),
        (["report", "tiny.ipynb", "-p", "seed"], "-p takes key=value, not 'seed'"),
        (["report", "tiny.ipynb", "-p", "=3"], "-p takes key=value"),
        (["report", "tiny.ipynb", "-p", "seed=1", "-p", "seed=2"], "given twice"),
        (["report", "tiny.ipynb", "-p", "sede=1"], "no parameter 'sede'; did you mean seed?"),
        (["report", "tiny.ipynb", "-p", "seed=one"], "takes int, not 'one'"),
        (["report", "tiny.ipynb", "-p", "log=gone.csv"], "there is no file"),
        (["report", "tiny.ipynb", "--scale", "quick"], "no parameter 'scale'"),
        (["report", "tiny.ipynb", "-o", "tiny.ipynb"], "cannot write to"),
        (["report", "text.ipynb"], "is not a notebook"),
        (["list", "cellar"], "there is no room 'cellar'; the rooms are"),
        (["lab", "tiny.ipynb", "--no-start"], "cannot write to"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    words: list[str], told: str, tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "tiny.ipynb", cell("seed: int = 0\nlog: str = ''", "parameters"))
    (tmp_path / "text.ipynb").write_text("text")
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("offrl-wb: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert shown.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.ipynb", "tiny.ipynb"]


def test_the_scale_is_a_parameter_with_an_option_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(
        "offrl_wb.app.reports.run_report", lambda *words: asked.append(words) or Path("out/x-1")
    )
    words = ["report", "x", "-p", "a=1", "-p", "b=x=y", "-o", "out", "--scale", "quick", "--force"]
    assert run(words) == 0
    assert asked == [("x", {"a": "1", "b": "x=y"}, Path("out"), "quick", True)]
    assert capsys.readouterr().out == "out/x-1\n"


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (InputError("mend it"), 2, "offrl-wb: mend it\n"),
        (OSError(28, "No space left"), 1, "offrl-wb: OSError: [Errno 28] No space left\n"),
        (RuntimeError("one\n  two"), 1, "offrl-wb: RuntimeError: one two\n"),
        (KeyboardInterrupt(), 130, "offrl-wb: interrupted\n"),
    ],
)
def test_every_failure_is_one_line(
    problem: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr("offrl_wb.app.reports.run_report", fail)
    assert run(["report", "x"]) == code
    assert capsys.readouterr().err.endswith(line)
    assert run(["--debug", "report", "x"]) == code
    assert ("Traceback" in capsys.readouterr().err) is (code != 130)


def test_pairs_may_hold_signs_of_their_own() -> None:
    assert parse_pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_lab_copies_what_is_missing_and_never_what_was_changed(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    copied = copy_notebooks(target)
    names = {p.relative_to(target).as_posix() for p in copied}
    assert "nbs/app/09_cli.ipynb" in names
    assert not any("records/" in name or "/." in name for name in names)
    changed, deleted = target / "nbs/app/09_cli.ipynb", target / "nbs/app/02_html.ipynb"
    changed.write_text("mine")
    deleted.unlink()
    assert copy_notebooks(target) == [deleted]
    assert changed.read_text() == "mine"


def test_lab_starts_jupyterlab_of_this_environment_with_further_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    started: list[tuple] = []

    def start(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        started.append((command, cwd, env["JUPYTER_PREFER_ENV_PATH"]))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(cli.subprocess, "run", start)
    assert run(["lab", "mine", "--no-browser", "--port", "9000"]) == 3
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port", "9000"]
    command.append("--LabApp.default_url=/lab/tree/nbs/index.ipynb")
    command += ["--allow-root"] if os.geteuid() == 0 else []
    assert started == [(command, Path("mine"), "1")]
    assert run(["lab", "mine", "--no-start"]) == 0
    assert len(started) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "0 new files in mine"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )


def test_a_report_from_the_shell_and_the_same_again(tmp_path: Path) -> None:
    write(
        tmp_path / "tiny.ipynb", prose("# Tiny"), cell("seed: int = 0", "parameters"), cell("seed")
    )
    first = command("report", "tiny.ipynb", "-p", "seed=4", "-o", "out")
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert (folder / "tiny.html").is_file()
    assert "Executing: 100%" in first.stderr, "a progress bar"
    again = command("report", "tiny.ipynb", "-p", "seed=4", "-o", "out")
    assert (again.stdout, again.stderr) == (first.stdout, "")


def test_a_mendable_problem_inside_a_notebook_is_exit_code_2(tmp_path: Path) -> None:
    raised = "from offrl_wb.core.errors import InputError\nraise InputError('row 3 is empty')"
    write(tmp_path / "bad.ipynb", cell(raised))
    done = command("report", "bad.ipynb", "-o", "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "offrl-wb: row 3 is empty"
    assert not (tmp_path / "out").exists()


def test_a_terminated_report_tidies_up(tmp_path: Path) -> None:
    write(tmp_path / "long.ipynb", cell("open('begun', 'w').close(); import time; time.sleep(60)"))
    done = subprocess.Popen(
        [*COMMAND, "report", "long.ipynb", "-o", "out"], env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/.long-*/begun")) and time.monotonic() < until:
        time.sleep(0.05)
    done.send_signal(signal.SIGTERM)
    assert done.wait(timeout=30) == 130
    assert not (tmp_path / "out").exists()


# Logged data


def small_log(**changed: object) -> Dataset:
    """Forty transitions of vectors in four episodes."""
    rows = np.arange(40)
    seen = np.stack([np.sin(rows), np.cos(rows * 1.7)], axis=1).astype(np.float32)
    given: dict = {
        "observations": seen,
        "actions": np.tanh(np.sin(rows * 3.1))[:, None].astype(np.float32),
        "rewards": np.cos(rows * 0.9).astype(np.float32),
        "terminated": rows == 17,
        "truncated": np.isin(rows, (9, 29, 39)),
        "final_observations": seen[[9, 17, 29, 39]],
        "spec": Spec(Box(-np.inf, np.inf, (2,)), Box(-1, 1, (1,)), name="small"),
    }
    return Dataset.from_arrays(**(given | changed))


def shown_after(words: list[str], code: int, capsys: Capture) -> Any:
    assert run(["data", *words]) == code
    return capsys.readouterr()


def test_check_is_silent_about_nothing_and_exits_with_0(tmp_path: Path, capsys: Capture) -> None:
    small_log().save(tmp_path / "log")
    shown = shown_after(["check", "log"], 0, capsys)
    assert shown.out.startswith("log: 40 transitions in 4 episodes: ")
    assert "error" not in shown.out
    assert shown.err == ""


def test_check_of_a_broken_log_tells_where_and_exits_with_3(
    tmp_path: Path, capsys: Capture
) -> None:
    rewards = np.zeros(40, np.float32)
    rewards[12] = np.nan
    small_log(rewards=rewards).save(tmp_path / "log")
    shown = shown_after(["check", "log"], 3, capsys)
    assert re.search(r"^error +non_finite: 1, first in episode 1, step 2$", shown.out, re.MULTILINE)
    assert "breaks: " in shown.out
    assert shown.err == ""
    assert max(map(len, shown.out.splitlines())) <= 100


def test_strict_counts_warnings_as_errors(tmp_path: Path, capsys: Capture) -> None:
    constant = np.ones((40, 2), np.float32)
    small_log(observations=constant, final_observations=constant[:4]).save(tmp_path / "log")
    assert "warning" in shown_after(["check", "log"], 0, capsys).out
    assert "warning" in shown_after(["check", "log", "--strict"], 3, capsys).out


def test_describe_prints_text_and_writes_a_page(tmp_path: Path, capsys: Capture) -> None:
    dataset = small_log()
    dataset.save(tmp_path / "log")
    shown = shown_after(["describe", "log"], 0, capsys)
    assert shown.out == describe_text(Dataset.load(tmp_path / "log"))
    assert shown.out.startswith("small: 40 transitions in 4 episodes\n")
    again = shown_after(["describe", "log", "--html", "log.html"], 0, capsys)
    assert (again.out, again.err) == (shown.out, "wrote log.html\n")
    assert (tmp_path / "log.html").read_text().endswith("</html>\n")


COLUMNS = ["-c", "obs=x*", "-c", "action=push", "-c", "reward=gain", "-c", "episode=trip"]


def test_a_table_is_told_which_column_is_what(tmp_path: Path, capsys: Capture) -> None:
    frame = small_log().transitions
    columns = {
        "x1": frame["obs"].arr.get(0),
        "x2": frame["obs"].arr.get(1),
        "trip": frame["episode"],
    }
    columns |= {"push": frame["action"].arr.get(0), "gain": frame["reward"]}
    pl.DataFrame(columns).write_csv(tmp_path / "plant.csv")
    assert "no column looks like" in shown_after(["describe", "plant.csv"], 2, capsys).err
    shown = shown_after(["describe", "plant.csv", *COLUMNS], 0, capsys)
    assert "36 transitions in 4 episodes" in shown.out, "each episode gave its last row"
    told = "obs: x*\naction: push\nreward: gain\nepisode: run\n"
    (tmp_path / "plant.yaml").write_text(told)
    both = ["describe", "plant.csv", "--mapping", "plant.yaml", "-c", "episode=trip"]
    assert shown_after(both, 0, capsys).out.splitlines()[0] == shown.out.splitlines()[0]
    shown_after(["check", "plant.csv", "--format", "csv", *COLUMNS], 0, capsys)


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("copy", []),
        ("log.parquet", []),
        ("log.csv", ["--to", "csv"]),
        ("log.ndjson", []),
        ("log.hdf5", []),
        ("other.npz", ["--to", "neorl2"]),
        ("log.npz", ["--to", "episodes"]),
    ],
)
def test_convert_keeps_the_transitions(
    out: str, options: list[str], tmp_path: Path, capsys: Capture
) -> None:
    dataset = small_log()
    dataset.save(tmp_path / "log")
    shown = shown_after(["convert", "log", out, *options], 0, capsys)
    assert shown.out == f"{out}\n"
    before, after = dataset.arrays(), open_log(str(tmp_path / out)).arrays()
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert "is there already" in shown_after(["convert", "log", out, *options], 2, capsys).err
    shown_after(["convert", "log", out, *options, "--force"], 0, capsys)


def plant(folder: Path, gains: list[str]) -> None:
    """Two episodes of three rows as a table without next observations."""
    rows = [f"{row // 3},{row},{row / 7},{gain}" for row, gain in enumerate(gains)]
    (folder / "plant.csv").write_text("\n".join(["episode,obs_0,action_0,reward", *rows]))


def test_rows_that_were_given_up_are_told(tmp_path: Path, capsys: Capture) -> None:
    plant(tmp_path, ["0.5"] * 6)
    told = "2 last rows of cut episodes were given up: their observation is the final one"
    shown = shown_after(["describe", "plant.csv", "--html", "plant.html"], 0, capsys)
    assert shown.out.startswith("plant: 4 transitions in 2 episodes\n")
    assert told in shown.out
    assert told in (tmp_path / "plant.html").read_text()
    assert shown_after(["convert", "plant.csv", "log"], 0, capsys).err == f"{told}\n"


@pytest.mark.parametrize("gap", ["", "nan"])
def test_what_is_missing_in_a_table_is_found_by_check_and_survives_convert(
    gap: str, tmp_path: Path, capsys: Capture
) -> None:
    plant(tmp_path, ["0.5", gap, "0.5", "1.5", "0.5", "0.5"])
    place = r"^error +non_finite: 1, first in episode 0, step 1$"
    shown = shown_after(["check", "plant.csv"], 3, capsys)
    assert re.search(place, shown.out, re.MULTILINE)
    shown_after(["convert", "plant.csv", "log.parquet"], 0, capsys)
    rewards = open_log("log.parquet").arrays().rewards
    assert np.array_equal(rewards, [0.5, np.nan, 1.5, 0.5], equal_nan=True)


def test_convert_to_minari_and_back_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset = small_log()
    dataset.save(tmp_path / "log")
    shown_after(["convert", "log", "plant/small-v0", "--to", "minari"], 0, capsys)
    shown = shown_after(["describe", "plant/small-v0"], 0, capsys)
    assert "40 transitions in 4 episodes" in shown.out
    assert np.array_equal(open_log("plant/small-v0").arrays().rewards, dataset.arrays().rewards)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], "Missing argument"),
        (["check", "gone.npz"], "gone.npz"),
        (["check", "gone/log-v0"], "gone/log-v0"),
        (["check", "empty.npz"], "empty.npz"),
        (["check", "text.hdf5"], "text.hdf5"),
        (["check", "pickle.npz"], "pickle.npz"),
        (["check", "nothing"], "a folder with nothing"),
        (["check", "log", "--format", "matlab"], "there is no format 'matlab'"),
        (["check", "log", "-c", "obs"], "is no pair"),
        (["check", "log", "-c", "obs=x"], "name columns of tables; log is a folder that"),
        (["describe", "flat.npz", "-c", "obs=x"], "of tables; flat.npz is D4RL\n"),
        (["describe", "log", "--html", "new/log.html"], "there is no folder new"),
        (["convert", "log", "new/log.csv"], "there is no folder new"),
        (["check", "log", "--mapping", "gone.yaml"], "gone.yaml"),
        (["describe", "log", "--html", "page.png"], "a page is called something.html"),
        (["describe", "log", "--html", "folder.html"], "is a folder"),
        (["describe", "log", "--html", "text.hdf5/log.html"], "cannot write"),
        (["convert", "log", "log.xyz"], "does not tell the format"),
        (["convert", "log", "x", "--to", "matlab"], "choose --to native"),
        (["convert", "log", "x.npz", "--to", "csv"], "call it x.csv"),
        (["convert", "log", "log"], "is there already"),
        (["convert", "log", "text.hdf5/x.parquet"], "cannot write"),
    ],
)
def test_bad_data_is_one_line_and_exit_code_2(
    words: list[str], told: str, tmp_path: Path, capsys: Capture
) -> None:
    small_log().save(tmp_path / "log")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\xff" * 40)
    np.savez(tmp_path / "pickle.npz", observations=np.array([{"a": 1}], dtype=object))
    flat = {"observations": np.zeros((3, 1)), "actions": np.zeros((3, 1))}
    np.savez(tmp_path / "flat.npz", rewards=np.zeros(3), terminals=np.ones(3, bool), **flat)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder.html").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    shown = shown_after(words, 2, capsys)
    assert shown.err.startswith("offrl-wb: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert shown.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["log.parquet", "log.npz", "log.hdf5", "log.csv"]),
)
def test_damaged_files_never_end_in_a_traceback(
    seed: int, name: str, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / f"{seed}-{name}"
    write_log(small_log(), str(place), "episodes" if name == "log.npz" else "auto", replace=True)
    raw, generator = bytearray(place.read_bytes()), np.random.default_rng(seed)
    for _ in range(int(generator.integers(1, 20))):
        raw[int(generator.integers(len(raw)))] = int(generator.integers(256))
    place.write_bytes(bytes(raw[: int(generator.integers(1, len(raw) + 1))]))
    code = run(["data", "check", str(place)])
    shown = capsys.readouterr()
    assert code in (0, 2, 3), shown.err
    assert shown.err.count("\n") == (1 if code == 2 else 0)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("DMSD-train.npz", "56.64"),
        ("DMSD-val.npz", "55.03"),
        ("Simglucose-train.npz", "73.87"),
        ("SafetyHalfCheetah-train.npz", "73.56"),
    ],
)
def test_published_files_check_and_describe_with_their_scores(
    name: str, score: str, capsys: Capture
) -> None:
    file = str(neorl2_file(name))
    assert "errors" not in shown_after(["check", file], 0, capsys).out
    assert f"score        mean {score}, where" in shown_after(["describe", file], 0, capsys).out
