"""The repository is what it says: exported, clean, formatted, linted, typed, up to date."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(
    path
    for folder in ("nbs", "tutorials")
    for path in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, exported and cleaned anew."""
    copy = tmp_path_factory.mktemp("export") / "offrl_wb"
    copy.mkdir()
    for folder in ("nbs", "tutorials"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "settings.ini", copy)
    (copy / "offrl_wb").mkdir()
    shutil.copy(ROOT / "offrl_wb" / "__init__.py", copy / "offrl_wb")
    run(BIN / "nbdev_export", cwd=copy)
    for folder in ("nbs", "tutorials"):
        run(BIN / "nbdev_clean", "--fname", folder, cwd=copy)
    return copy


def test_the_library_is_what_the_notebooks_export(exported: Path) -> None:
    def sources(root: Path) -> dict[str, str]:
        package = root / "offrl_wb"
        files = {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob("*.py")}
        return {k: v for k, v in files.items() if not (k.endswith("__init__.py") and not v.strip())}

    committed, fresh = sources(ROOT), sources(exported)
    assert sorted(committed) == sorted(fresh), "modules differ: run make export"
    stale = [name for name in fresh if committed[name] != fresh[name]]
    assert not stale, f"run make export; out of date: {stale}"


def test_the_notebooks_are_clean(exported: Path) -> None:
    dirty = [
        name_of(p) for p in NOTEBOOKS if (exported / name_of(p)).read_bytes() != p.read_bytes()
    ]
    assert not dirty, f"run make export; not clean: {dirty}"


def test_cleaning_keeps_the_tags_that_reports_and_grading_need(exported: Path) -> None:
    chapters = [
        path
        for path in (exported / "nbs" / "theory").glob("*.ipynb")
        if any("# 4. Parameters" in "".join(cell["source"]) for cell in cells(path))
    ]
    assert len(chapters) >= 7
    for path in chapters:
        tags = [tag for cell in cells(path) for tag in cell["metadata"].get("tags", [])]
        assert tags.count("parameters") == 1, f"{path.stem} has one parameters cell"
    (tutorial,) = (exported / "tutorials").glob("01_*.ipynb")
    assert any("nbgrader" in cell["metadata"] for cell in cells(tutorial))


def test_one_notebook_one_module() -> None:
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        source = "\n".join("".join(cell["source"]) for cell in cells(path))
        target = re.search(r"^#\| default_exp (\S+)", source, re.MULTILINE)
        if path.name == "index.ipynb":
            assert target is None
            continue
        room, stem = path.parent.name, path.stem
        assert re.fullmatch(r"\d\d_[a-z0-9_]+", stem), f"{name_of(path)}: NN_<module>"
        assert target is not None, f"{name_of(path)} exports nothing"
        assert target.group(1) == f"{room}.{stem[3:]}"


def test_names_of_notebooks_are_unique_across_rooms() -> None:
    names = [path.stem.split("_", 1)[-1] for path in NOTEBOOKS]
    assert len(names) == len(set(names))


def test_exported_functions_fit_on_a_screen() -> None:
    long = []
    for path in (ROOT / "offrl_wb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > 45:
                    long.append((name_of(path), node.name, lines))
    assert not long, f"one idea in a function: {long}"


def test_committed_outputs_are_current_and_small() -> None:
    run(sys.executable, "-m", "offrl_wb.app.outputs", "check")


def test_the_readme_is_the_index_notebook() -> None:
    from offrl_wb.app.outputs import readme

    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(ROOT / "nbs" / "index.ipynb")


def test_links_in_the_readme_and_the_notebooks_lead_somewhere() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    for path in NOTEBOOKS:
        texts[path] = "\n".join(
            "".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown"
        )
    broken = []
    for path, text in texts.items():
        for target in re.findall(
            r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        ):
            outside = target.startswith(("http", "#", "mailto:"))
            if not outside and not (path.parent / target.split("#")[0]).exists():
                broken.append((name_of(path), target))
    assert not broken


def test_formatter_and_linter_agree() -> None:
    run(BIN / "ruff", "check", "nbs", "tutorials", "tests", "setup.py")
    run(BIN / "ruff", "format", "--check", "nbs", "tutorials", "tests", "setup.py")


def test_types_hold() -> None:
    run(BIN / "mypy")


def test_the_floors_hold() -> None:
    run(BIN / "lint-imports")


THEORY = sorted(path.stem for path in (ROOT / "offrl_wb" / "theory").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", THEORY)
def test_theory_imports_neither_torch_nor_polars_nor_plotly(module: str) -> None:
    code = (
        f"import sys, offrl_wb.theory.{module}; "
        "heavy = {'torch', 'polars', 'plotly', 'pandas', 'gymnasium'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run(sys.executable, "-c", code)


DATA = sorted(path.stem for path in (ROOT / "offrl_wb" / "data").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", DATA)
def test_importing_a_data_module_brings_no_optional_package(module: str) -> None:
    code = (
        f"import sys, offrl_wb.data.{module}; "
        "optional = {'torch', 'minari', 'h5py', 'pyarrow', 'sklearn', 'pandas', 'yaml', 'plotly'}; "
        "heavy = optional & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run(sys.executable, "-c", code)


def test_nothing_in_the_repository_speaks_of_a_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.split():
        path = ROOT / name
        if (
            path.suffix in (".png", ".parquet")
            or not path.exists()
            or name == "tests/test_repository.py"
        ):
            continue
        text = path.read_text(encoding="utf-8")
        for word in ("/" + "work/", "/" + "root/"):
            assert word not in text, f"{name} holds a path of one machine: {word}"
