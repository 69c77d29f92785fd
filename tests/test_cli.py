"""The command line: one line and an exit code for whatever goes wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offrl_wb import __version__
from offrl_wb.app import cli
from offrl_wb.app.cli import copy_notebooks, parse_pairs, run
from offrl_wb.app.notebooks import find_notebooks
from offrl_wb.core.errors import InputError
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
    "words", [[], ["--help"], ["report", "--help"], ["lab", "-h"], ["list", "-h"]]
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
