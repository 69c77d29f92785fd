"""What a stranger gets from `pip install`: the wheel alone, in an empty folder, without git."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVELOPMENT = {"nbdev", "execnb", "pytest", "mypy", "ruff", "playwright", "hypothesis", "coverage"}

pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]


def run(
    *command: str | Path, cwd: Path, ok: bool = True, **environment: str
) -> tuple[str, str, int]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
    )
    if ok:
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout, done.stderr, done.returncode


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, which is built from a clean copy."""
    folder = tmp_path_factory.mktemp("build")
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "reports", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source"]
    run(*command, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a fresh environment that holds the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return programs


@pytest.fixture
def installed(bin_folder: Path, tmp_path: Path):
    """Call the installed command in an empty folder, with no other program on the path."""
    home = tmp_path / "home"
    home.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()

    def call(*words: str, ok: bool = True) -> tuple[str, str, int]:
        command = bin_folder / "offrl-wb"
        return run(command, *words, cwd=empty, ok=ok, PATH=str(bin_folder), HOME=str(home))

    call.folder = empty
    return call


def test_a_bare_install_brings_no_torch_and_nothing_of_development(bin_folder: Path) -> None:
    out, _, _ = run(bin_folder / "python", "-m", "pip", "list", "--format", "json", cwd=bin_folder)
    names = {package["name"].lower() for package in json.loads(out)}
    assert "offrl_wb" in {name.replace("-", "_") for name in names}
    assert not names & (DEVELOPMENT | {"torch", "pandas"})


def test_the_notebooks_travel_in_the_wheel(installed) -> None:
    out, _, _ = installed("list")
    assert {"lcb_bandit", "lcb_contextual", "lcb_mdp", "when_is_imitation_enough"} <= set(
        out.split()
    )


def test_lab_copies_every_notebook_and_tutorial(installed) -> None:
    installed("lab", "mine", "--no-start")

    def notebooks(root: Path) -> set[str]:
        folders = (root / "nbs", root / "tutorials")
        found = [p for folder in folders for p in folder.rglob("*.ipynb")]
        return {p.relative_to(root).as_posix() for p in found if "/." not in p.as_posix()}

    assert notebooks(installed.folder / "mine") == notebooks(ROOT)


def test_a_chapter_is_rerun_as_a_report(installed) -> None:
    out, _, _ = installed("report", "lcb_bandit", "--scale", "quick", "-o", "out")
    report = Path(out.strip())
    story = json.loads((report / "run.json").read_text())
    assert story["exit_state"] == "finished"
    assert (story["git_revision"], story["parameters"]["scale"]) == (None, "quick")
    assert story["versions"]["offrl_wb"]
    assert {"lcb_bandit.html", "lcb_bandit.ipynb", "records.parquet", "figures"} <= {
        path.name for path in report.iterdir()
    }
    again, said, _ = installed("report", "lcb_bandit", "--scale", "quick", "-o", "out")
    assert (again, said) == (out, "")


def test_mistakes_are_one_line_and_exit_code_2(installed) -> None:
    for words in (["report", "lcb_bandt"], ["report", "lcb_bandit", "-p", "sead=1"]):
        _, said, code = installed(*words, ok=False)
        assert (code, said.count("\n")) == (2, 1)
        assert "did you mean" in said
    assert list(installed.folder.iterdir()) == []


def test_committed_records_are_found_in_the_wheel(bin_folder: Path, tmp_path: Path) -> None:
    names = sorted(p.stem for p in (ROOT / "nbs").glob("*/records/*.parquet"))
    code = "import sys; from offrl_wb.core.records import committed_records as read;"
    code += "print(*(read(name).height for name in sys.argv[1:]))"
    out, _, _ = run(bin_folder / "python", "-c", code, *names, cwd=tmp_path)
    assert len(out.split()) == len(names)
    assert all(int(height) > 0 for height in out.split())
