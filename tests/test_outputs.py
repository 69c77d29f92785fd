"""Committed outputs belong to the code beside them, or a check fails."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offrl_wb.app import outputs
from offrl_wb.app.outputs import (
    MOST_OUTPUT,
    all_paths,
    check,
    check_readme,
    code_text,
    imported_modules,
    main,
    output_problems,
    reached,
    readme,
    refresh_one,
    stamp_of,
)
from offrl_wb.app.reports import LARGEST_PICTURE
from tests.tiny import PLOTLY, cell, figure, prose, write

ROOT = Path(__file__).resolve().parents[1]
SHOW = f"""
import sys
from IPython.display import display
print(object(), flush=True)
print("noise", file=sys.stderr, flush=True)
print("more")
display({{"{PLOTLY}": {figure()!r}, "text/plain": "figure", "text/html": "<p>x</p>"}}, raw=True)
"""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    return write(
        tmp_path / "nbs" / "core" / "00_errors.ipynb",
        prose("# Errors\n\n> One.\n\n$x^2$"),
        cell("#| default_exp core.errors"),
        cell("#| export\nclass InputError(ValueError):\n    'One line.'", "kept"),
        cell("print(InputError.__module__)", id="abc"),
        cell("raise SystemError", "slow"),
        cell("print('still')", "explore"),
        cell(SHOW),
        cell("1 + 1"),
    )


def picture(_: object) -> bytes:
    return b"\x89PNG picture"


@pytest.fixture
def refreshed(chapter: Path) -> Path:
    refresh_one(chapter, picture)
    return chapter


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def test_refreshing_keeps_the_sources_and_puts_back_what_a_reader_sees(refreshed: Path) -> None:
    _, first, exported, name, slow, explore, shown, last = cells(refreshed)
    assert exported["source"][0] == "#| export\n"
    assert first["outputs"] == exported["outputs"] == slow["outputs"] == []
    assert name["outputs"][0]["text"] == ["offrl_wb.core.errors\n"], "the library ran, not the cell"
    assert explore["outputs"][0]["text"] == ["still\n"]
    text, drawn = shown["outputs"]
    assert text["text"] == ["<object object>\n", "more\n"], "no address, no noise, one piece"
    assert base64.b64decode(drawn["data"]["image/png"]) == picture(None)
    assert drawn["metadata"]["image/png"]["alt"].startswith("A rising line")
    assert "text/html" not in drawn["data"]
    assert last["outputs"][0]["execution_count"] is None
    assert exported["metadata"] == {"tags": ["kept"]}
    assert check([refreshed]) == []


def test_a_refreshed_notebook_is_as_nbdev_cleans_it(refreshed: Path) -> None:
    shutil.copy(ROOT / "settings.ini", refreshed.parents[2])
    before = refreshed.read_bytes()
    command = [str(Path(sys.executable).parent / "nbdev_clean"), "--fname", str(refreshed)]
    subprocess.run(command, cwd=refreshed.parents[2], check=True)
    assert refreshed.read_bytes() == before


def test_refreshing_twice_changes_nothing(refreshed: Path) -> None:
    before = refreshed.read_bytes()
    refresh_one(refreshed, picture)
    assert refreshed.read_bytes() == before


def test_a_failing_cell_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ipynb", cell("1 / 0"))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"\(`1 / 0`\) failed: ZeroDivisionError"):
        refresh_one(path, picture)
    assert path.read_bytes() == before


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("1 + 1", "1 + 2", True),
        ("slow", "fast", True),
        ("1 + 1", "1 + 1  # two", False),
        ("One line.", "Two lines.", False),
        ("# Errors", "# Mistakes", False),
    ],
)
def test_outputs_go_stale_with_code_and_not_with_prose(
    chapter: Path, old: str, new: str, stale: bool
) -> None:
    document = json.loads(chapter.read_text())
    document["metadata"]["offrl_wb"] = {"stamp": stamp_of(chapter)}
    chapter.write_text(json.dumps(document))
    assert outputs.is_stale(chapter) == ""
    edit(chapter, old, new)
    assert bool(outputs.is_stale(chapter)) is stale


def test_a_notebook_that_was_never_run_is_told(chapter: Path) -> None:
    (line,) = check([chapter])
    assert "was never run" in line
    assert str(chapter) in line


def test_the_stamp_follows_imports_into_the_library_and_not_its_prose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "offrl_wb"
    shutil.copytree(ROOT / "offrl_wb", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(outputs, "package_folder", lambda: copy)
    path = write(tmp_path / "x.ipynb", cell("from offrl_wb.core.records import SCHEMA"))
    before = stamp_of(path)
    errors = copy / "core" / "errors.py"
    errors.write_text(errors.read_text().replace('"""One ', '"""Another ') + "\n# prose\n")
    assert stamp_of(path) == before
    (copy / "core" / "scores.py").write_text("not_imported = 1")
    assert stamp_of(path) == before
    errors.write_text(errors.read_text() + "\nextra = 1\n")
    assert stamp_of(path) != before, "records import errors"


def test_the_stamp_follows_committed_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "notebooks_folder", lambda: tmp_path)
    path = write(tmp_path / "x.ipynb", cell("frame = committed_records('surface')"))
    seen = [stamp_of(path)]
    records = tmp_path / "theory" / "records" / "surface.parquet"
    records.parent.mkdir(parents=True)
    for content in (b"one", b"two"):
        records.write_bytes(content)
        seen.append(stamp_of(path))
    assert len(set(seen)) == 3


def test_the_code_text_does_not_depend_on_the_python_version() -> None:
    text = code_text("def f[T](x): return f'{x!r:>{9}}'") if sys.version_info >= (3, 12) else ""
    assert "type_params" not in text
    assert code_text("x: int") == (
        "Module(body=[AnnAssign(annotation=Name(id='int'),simple=1,target=Name(id='x'))])"
    )


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from ..core.errors import InputError", "offrl_wb.app", {"offrl_wb.core.errors"}),
        ("from offrl_wb.core import errors", "", {"offrl_wb.core", "offrl_wb.core.errors"}),
        ("import offrl_wb.core.errors as e", "", {"offrl_wb.core.errors"}),
        ("def f():\n    from offrl_wb.core.errors import InputError", "", {"offrl_wb.core.errors"}),
        ("%time import offrl_wb\nimport numpy, json", "", set()),
    ],
)
def test_imports_are_found_in_every_form(source: str, package: str, expected: set[str]) -> None:
    found = imported_modules(source, package)
    assert found == {name for name in expected if outputs.module_file(name)}


def test_lazy_imports_are_reached_too() -> None:
    assert "offrl_wb.app.html" in reached(["offrl_wb.app.outputs"])
    assert "offrl_wb.app.reports" in reached(["offrl_wb.app.cli"])


DRAWN = {PLOTLY: figure(), "image/png": "AAAA"}
WORDS = {"image/png": {"alt": "A rising line."}}


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"data": {PLOTLY: figure()}, "metadata": WORDS}, "a figure without a picture"),
        ({"data": DRAWN, "metadata": {}}, "a figure without alternative text"),
        ({"data": {"image/png": "A" * (LARGEST_PICTURE * 4 // 3 + 9)}}, "a picture over 150 KB"),
        ({"data": {"text/html": "<script>/* plotly.js v3.0 */"}}, "an embedded plotly.js"),
        ({"data": {"application/vnd.jupyter.widget-view+json": {}}}, "a live widget"),
        ({"output_type": "error", "ename": "KeyError"}, "an error: KeyError"),
        ({"output_type": "stream", "text": "x" * MOST_OUTPUT}, "an output over 1 MB"),
    ],
)
def test_a_bad_output_is_named(output: dict, problem: str) -> None:
    assert list(output_problems(output)) == [problem]


def test_a_good_output_is_left_alone() -> None:
    assert list(output_problems({"data": DRAWN, "metadata": WORDS})) == []


def test_an_equation_that_a_report_cannot_draw_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ipynb", prose(r"So $\nosuchmacro{x}$, and $x$."))
    (line,) = check([path])
    assert line.endswith(r"cell 1 has an equation that MathML cannot say: \nosuchmacro{x}")


def test_the_readme_is_the_index_without_directives(tmp_path: Path) -> None:
    index = write(
        tmp_path / "nbs" / "index.ipynb",
        prose("# Name\n\n![A](images/a.png) <img src='./images/b.png'> [t](../tutorials/1.ipynb)"),
        cell("#| hide\nimport nothing"),
        cell(
            "#| eval: false\nprint('```')", outputs=[{"output_type": "stream", "text": ["out\n"]}]
        ),
        cell("table", outputs=[{"data": {"text/markdown": "| a |", "text/plain": "no"}}]),
    )
    expected = (
        "# Name\n\n![A](nbs/images/a.png) <img src='nbs/images/b.png'> [t](tutorials/1.ipynb)\n\n"
        "````python\nprint('```')\n````\n\n```\nout\n```\n\n```python\ntable\n```\n\n| a |\n"
    )
    assert readme(index) == expected
    target = tmp_path / "README.md"
    assert len(check_readme(index, target)) == 1
    target.write_text(expected)
    assert check_readme(index, target) == []


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A repository of one index, for the command."""

    def make() -> Path:
        monkeypatch.setattr(outputs, "notebooks_folder", lambda: tmp_path / "nbs")
        monkeypatch.setattr(outputs, "find_notebooks", list)
        return write(tmp_path / "nbs" / "index.ipynb", prose("# Name"), cell("1 + 1"))

    return make


def test_the_command_refreshes_what_is_stale_and_checks(
    house: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    index = house()
    assert main(["check"]) == 1
    assert "was never run" in capsys.readouterr().err
    assert main(["refresh"]) == 0
    assert main(["check"]) == 0
    assert cells(index)[1]["outputs"][0]["data"]["text/plain"] == ["2"]
    before = index.stat().st_mtime_ns
    assert main(["refresh"]) == 0
    assert index.stat().st_mtime_ns == before, "nothing was stale"
    assert main(["readme", "--check"]) == 1
    assert main(["readme"]) == 0
    assert main(["readme", "--check"]) == 0
    assert (index.parents[1] / "README.md").read_text().startswith("# Name")


def test_the_command_says_what_it_takes_and_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == main(["polish"]) == 2
    assert "refresh|check|readme" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.ipynb")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_every_committed_notebook_is_known_to_the_check() -> None:
    found = {path.resolve() for path in all_paths()}
    there = {p.resolve() for p in (ROOT / "nbs").glob("*/*.ipynb")}
    there |= {p.resolve() for p in (ROOT / "tutorials").glob("*.ipynb")}
    assert there <= found
