"""The tutorial teaches: its solutions pass, typical slips get their hint, and it fits a course."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TUTORIALS = ROOT / "tutorials"
TUTORIAL = TUTORIALS / "01_when_is_imitation_enough.ipynb"
SOLUTIONS = TUTORIALS / "solutions" / "01_when_is_imitation_enough.py"
EXERCISES = ("exercise_1", "exercise_2", "exercise_3", "exercise_4")
CHECKS = (
    "exercise_1_check",
    "exercise_2_check",
    "exercise_3_check_concentrability",
    "exercise_3_check_bound",
    "exercise_4_check",
)


def sections() -> dict[str, str]:
    """The solutions by grade_id."""
    parts = re.split(r"^# %% (\w+)\n", SOLUTIONS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def grade_id(cell: Any) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def graded(cell: Any) -> bool:
    return cell.metadata.get("nbgrader", {}).get("grade", False)


def release() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def solved() -> Any:
    """The tutorial with the solutions in place."""
    notebook, answers = release(), sections()
    for cell in notebook.cells:
        cell.source = answers.get(grade_id(cell), cell.source)
    return notebook


def sources(notebook: Any) -> dict[str, str]:
    return {grade_id(cell): cell.source for cell in notebook.cells if grade_id(cell)}


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What exercise cells see: the notebook's folder to import from, and NumPy."""
    monkeypatch.syspath_prepend(str(TUTORIALS))
    return {"np": np}


def run_exercise(namespace: dict[str, Any], check: str, answer: str) -> None:
    """Run an answer and then the check cell, as the student would."""
    exec(answer, namespace)
    exec(sources(release())[check], namespace)


def exercise_of(check: str) -> str:
    return check.split("_check")[0]


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_solution_passes(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str], check: str
) -> None:
    run_exercise(namespace, check, sections()[exercise_of(check)])
    assert ": right." in capsys.readouterr().out


@pytest.mark.parametrize("check", CHECKS)
def test_an_unanswered_exercise_is_told_so_kindly(namespace: dict[str, Any], check: str) -> None:
    with pytest.raises(AssertionError, match=r"Exercise \d.* is not done yet\."):
        run_exercise(namespace, check, sources(release())[exercise_of(check)])


# Answers as students write them, and words of the hint that each should get.
WIDTHS = (
    "def confidence_widths(counts, delta):\n    A, n = len(counts), np.maximum(counts, 1)\n    "
)
CHOICE = (
    "def careful_choice(counts, sold, widths):\n    average = sold / np.maximum(counts, 1)\n    "
)
SHARES = "def concentrability(shares, rates):\n    "
BOUND = (
    "def copying_error_bound(c_star, size):\n    if c_star >= 2:\n        return 1.0\n    return "
)
DESIGN = "def design_log(kinds, excess):\n    c_star = 1 + excess\n    "
GUESTS = "arrivals = np.append(1 - excess, np.full(kinds, excess / kinds))\n    "
BOTH = "log = np.stack([arrivals, arrivals], axis=1)\n    log[0, 1] = 0\n    "
WRONG = [
    ("exercise_1_check", WIDTHS + "return np.sqrt(np.log(2 / delta) / (2 * n))", "union bound"),
    (
        "exercise_1_check",
        WIDTHS + "return np.sqrt(np.log(2 * A / delta) / (2 * counts.sum()))",
        "the whole logbook",
    ),
    (
        "exercise_1_check",
        WIDTHS + "return np.sqrt(np.log(A / delta) / (2 * n))",
        "too high or too low",
    ),
    ("exercise_1_check", WIDTHS + "return np.sqrt(np.log(2 * A / delta) / n)", "in place of 2n"),
    ("exercise_1_check", WIDTHS + "return np.log(2 * A / delta) / (2 * n)", "square root"),
    ("exercise_1_check", WIDTHS + "return np.sqrt(np.log10(2 * A / delta) / (2 * n))", "base ten"),
    (
        "exercise_1_check",
        WIDTHS + "return np.sqrt(np.log(2 * A * delta) / (2 * n))",
        "delta belongs",
    ),
    (
        "exercise_1_check",
        WIDTHS + "return np.sqrt(np.log(2 * A / delta) / (2 * counts))",
        "never cooked: its width is 1, and yours is inf",
    ),
    (
        "exercise_1_check",
        WIDTHS + "return np.sqrt(np.log(2 * A / delta) / (2 * n))",
        "never cooked: its width is 1",
    ),
    ("exercise_1_check", WIDTHS + "np.sqrt(np.log(2 * A / delta) / (2 * n))", "returns nothing"),
    ("exercise_1_check", WIDTHS + "return math.sqrt(n)", "in the line .* NameError|with NameError"),
    ("exercise_1_check", WIDTHS + "return 0.3", "and .* is right"),
    ("exercise_1_check", WIDTHS + "return counts[1:]", r"shape \(3,\) was expected"),
    ("exercise_1_check", WIDTHS + "return 'wide'", "numbers were expected"),
    ("exercise_1_check", WIDTHS + "return 3 * n", "and .* is right"),
    ("exercise_1_check", "confidence_widths = 3", "not a function"),
    ("exercise_2_check", CHOICE + "return np.max(average - widths)", "its place: np.argmax"),
    ("exercise_2_check", CHOICE + "return np.argmax(average + widths)", "optimism"),
    ("exercise_2_check", CHOICE + "return np.argmax(average)", "empirical best"),
    ("exercise_2_check", CHOICE + "return np.argmax(counts)", "imitation"),
    ("exercise_2_check", CHOICE + "return np.argmin(widths)", "imitation|is right"),
    ("exercise_2_check", CHOICE + "return np.argmax(sold - widths)", "where the average belongs"),
    (
        "exercise_2_check",
        CHOICE + "return np.argmax(np.where(counts > 0, average - widths, 0))",
        "you count it as 0",
    ),
    ("exercise_2_check", CHOICE + "return np.argmax(sold / counts - widths)", "NaN"),
    (
        "exercise_2_check",
        CHOICE + "return np.argmax(np.where(counts > 0, average - widths, -np.inf))",
        "rule out",
    ),
    ("exercise_2_check", CHOICE + "return 1 + np.argmax(average - widths)", "from 0"),
    ("exercise_2_check", CHOICE + "return average - widths", "one number was expected"),
    ("exercise_3_check_concentrability", SHARES + "return shares[rates.argmax()]", "one over it"),
    ("exercise_3_check_concentrability", SHARES + "return 1 / shares.max()", "played most"),
    ("exercise_3_check_concentrability", SHARES + "return 1 / shares.min()", "rarest arm"),
    (
        "exercise_3_check_concentrability",
        SHARES + "return rates.argmax()",
        "number of the best arm",
    ),
    ("exercise_3_check_concentrability", SHARES + "return 1 / rates.max()", "how much it pays"),
    ("exercise_3_check_bound", BOUND + "(2 * np.sqrt(c_star) / c_star) ** size", "-1 got lost"),
    ("exercise_3_check_bound", BOUND + "2 * np.sqrt(c_star - 1) / c_star * size", "exponent"),
    ("exercise_3_check_bound", BOUND + "2 * np.sqrt(c_star - 1) / c_star", "power N is missing"),
    (
        "exercise_3_check_bound",
        BOUND + "(4 * (c_star - 1) / c_star**2) ** size",
        "square root got lost",
    ),
    ("exercise_3_check_bound", BOUND + "(np.sqrt(c_star - 1) / c_star) ** size", "The 2|the 2"),
    (
        "exercise_3_check_bound",
        BOUND + "(2 * np.sqrt((c_star - 1) / c_star)) ** size",
        "divide by C\\* once",
    ),
    (
        "exercise_3_check_bound",
        BOUND + "1 - (2 * np.sqrt(c_star - 1) / c_star) ** size",
        "being right",
    ),
    (
        "exercise_3_check_bound",
        "def copying_error_bound(c, n):\n    return (2 * np.sqrt(c - 1) / c) ** n",
        r"for C\* = 2.5 you promise",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "arrivals = np.append(1 - c_star, np.full(kinds, c_star / kinds))\n    "
        + BOTH
        + "return arrivals, log / c_star",
        "-1 got lost",
    ),
    (
        "exercise_4_check",
        DESIGN
        + GUESTS
        + "log = np.full((kinds + 1, 2), 0.5)\n    log[0] = 1, 0\n    return arrivals, log",
        "each row of your log sums to 1",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "arrivals = np.append(1 - excess, np.full(kinds, excess))\n    "
        + BOTH
        + "return arrivals, log / c_star",
        "share w equally",
    ),
    (
        "exercise_4_check",
        DESIGN + GUESTS + BOTH + "log[1:] /= 2\n    return arrivals, log",
        "as often as they arrive",
    ),
    ("exercise_4_check", DESIGN + GUESTS + BOTH + "return arrivals, log", "divide by C"),
    (
        "exercise_4_check",
        DESIGN + GUESTS + BOTH + "log[1:, 1] = 0\n    return arrivals, log / log.sum()",
        "with one alone",
    ),
    (
        "exercise_4_check",
        DESIGN + GUESTS + BOTH + "log[1:, 1] /= 3\n    return arrivals, log / log.sum()",
        "equally often",
    ),
    (
        "exercise_4_check",
        DESIGN + GUESTS + BOTH + "log[0, 1] = log[0, 0]\n    return arrivals, log / log.sum()",
        "only soup 0 is logged",
    ),
    (
        "exercise_4_check",
        DESIGN + GUESTS + BOTH + "return arrivals, log / (2 * c_star)",
        "the whole log sums to 0.5",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "arrivals = np.append(1 - excess / 2, np.full(kinds, excess / 2 / kinds))\n    "
        + BOTH
        + "return arrivals, log / log.sum()",
        r"has C\* = 1.1, and 1.2 was asked for",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "arrivals = np.append(1, np.full(kinds, excess / kinds / 2))\n    "
        + BOTH
        + "return arrivals, log",
        "arrivals sum to 1.1, not to 1",
    ),
    (
        "exercise_4_check",
        DESIGN
        + GUESTS
        + BOTH
        + "log[1:] += 0.01\n    log[0, 0] = 1 - log[1:].sum()\n    return arrivals, log",
        r"C\* =|uneven",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "shares = np.arange(1, kinds + 1) / sum(range(kinds + 1))\n    "
        + "arrivals = np.append(1 - excess, excess * shares)\n    "
        + BOTH
        + "return arrivals, log / c_star",
        "equally frequent",
    ),
    (
        "exercise_4_check",
        DESIGN
        + "arrivals = np.append(1 + excess, np.full(kinds, -excess / kinds))\n    "
        + BOTH
        + "return arrivals, log",
        "negative",
    ),
    ("exercise_4_check", DESIGN + GUESTS + "return arrivals", "return two arrays"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_a_typical_slip_gets_its_hint(
    namespace: dict[str, Any], check: str, answer: str, hint: str
) -> None:
    with pytest.raises(
        AssertionError, match=f"Exercise {exercise_of(check)[-1]}.*({hint})"
    ) as caught:
        run_exercise(namespace, check, answer)
    assert "\n" not in str(caught.value), "one line"
    assert type(caught.value).__name__ == "Hint", "a hint, not a stray assertion"


def test_no_two_slips_of_an_exercise_look_alike(
    namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a hint never names the wrong slip."""
    import checks_01 as checks

    for slips, cases, right in (
        (checks.WIDTH_SLIPS, checks.WIDTH_CASES, checks.right_widths),
        (checks.CHOICE_SLIPS, checks.CHOICE_CASES, checks.right_choice),
        (checks.SHARE_SLIPS, checks.SHARE_CASES, lambda s, r: 1 / s[r.argmax()]),
        (checks.BOUND_SLIPS, checks.BOUND_CASES, checks.most_played_bound),
    ):
        assert len(slips) >= 3
        functions: list[Callable[..., Any]] = [right, *(slip for _, slip in slips)]
        with np.errstate(all="ignore"):
            answers = [np.concatenate([np.ravel(f(*case)) for case in cases]) for f in functions]
        for i, first in enumerate(answers):
            assert not any(checks.same(first, second) for second in answers[i + 1 :])


# The notebook as a whole


def executed(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook after a run without a front end; an error in an untagged cell raises."""
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    resources = {"metadata": {"path": str(TUTORIALS)}}
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    return notebook


def outputs(notebook: Any, kind: str) -> Iterator[Any]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == kind:
                yield output


def seconds(cell: Any) -> float:
    moments = cell.metadata["execution"]
    start, end = (
        np.datetime64(moments[key].rstrip("Z"))
        for key in ("iopub.execute_input", "shell.execute_reply")
    )
    return float((end - start) / np.timedelta64(1, "s"))


@pytest.mark.notebooks
def test_with_the_solutions_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.perf_counter()
    notebook = executed(solved(), monkeypatch)
    assert time.perf_counter() - started < 60
    assert not list(outputs(notebook, "error"))
    told = "".join(output.text for output in outputs(notebook, "stream"))
    assert told.count(": right.") == len(CHECKS)
    assert all(seconds(cell) < 10 for cell in notebook.cells if "execution" in cell.metadata)


@pytest.mark.notebooks
def test_without_answers_it_runs_on_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(release(), monkeypatch)
    errors = list(outputs(notebook, "error"))
    assert [e.ename for e in errors] == ["Hint"] * len(CHECKS)
    assert all(len(e.traceback) == 1 and "is not done yet" in e.traceback[0] for e in errors)
    told = "".join(output.text for output in outputs(notebook, "stream"))
    assert told.count("You did not predict yet") == 5
    assert "You did not choose yet" in told


def test_predictions_are_compared_kindly(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    exec(next(c.source for c in release().cells if "def compare" in c.source), namespace)
    for guess, words in (
        (0.95, "Well judged"),
        (0.2, "Surprised"),
        (None, "did not predict"),
        ("many", "one plain number"),
        (True, "one plain number"),
    ):
        namespace["compare"](guess, 0.992, within=0.1)
        assert words in capsys.readouterr().out


def test_nothing_later_depends_on_what_the_student_wrote() -> None:
    """Outputs and reports leave exercise cells out, and a slip must not spoil the next exercise."""
    names = (
        "confidence_widths",
        "careful_choice",
        "concentrability",
        "copying_error_bound",
        "design_log",
    )
    for cell in release().cells:
        if cell.cell_type == "code" and not grade_id(cell):
            assert not any(re.search(rf"\b{name}\(", cell.source) for name in names)


def test_without_its_exercise_cells_it_still_runs(
    namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    for cell in release().cells:
        if cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", []):
            exec(cell.source, namespace)
    assert "checks_01" not in str(namespace.get("check_widths", "")), "checks are exercise cells"


# nbgrader


def test_the_grading_metadata_is_valid() -> None:
    nbgraderformat = pytest.importorskip("nbgrader.nbgraderformat")
    notebook = release()
    nbgraderformat.MetadataValidator().validate_nb(notebook)
    ids = [grade_id(cell) for cell in notebook.cells if grade_id(cell)]
    assert sorted(ids) == sorted({*EXERCISES, *CHECKS})
    for cell in notebook.cells:
        if not grade_id(cell):
            continue
        assert cell.metadata.nbgrader.schema_version == 3
        assert cell.metadata.nbgrader.solution != graded(cell)
        assert cell.metadata.nbgrader.locked == graded(cell)
        assert {"exercise", "raises-exception"} <= set(cell.metadata.get("tags", [])) or not graded(
            cell
        )
    assert sum(c.metadata.nbgrader.points for c in notebook.cells if graded(c)) == 10


def test_the_solutions_keep_the_form_of_the_cells_they_replace() -> None:
    empty, answers = sources(release()), sections()
    assert tuple(answers) == EXERCISES
    region = re.compile(r"(### BEGIN SOLUTION\n).*?(\n +### END SOLUTION)", re.DOTALL)
    for name in EXERCISES:
        assert region.sub(r"\1\2", answers[name]) == region.sub(r"\1\2", empty[name])


def command(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words, "--course-dir", str(folder)],
        cwd=folder,
        env=os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])},  # for alembic
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.notebooks
def test_a_course_can_release_and_grade_it(tmp_path: Path) -> None:
    api = pytest.importorskip("nbgrader.api")
    source = tmp_path / "source" / "week1"
    source.mkdir(parents=True)
    nbformat.write(solved(), source / TUTORIAL.name)
    shutil.copy(TUTORIALS / "checks_01.py", source)
    command(tmp_path, "generate_assignment", "week1", "--create")

    given = tmp_path / "release" / "week1"
    released = nbformat.read(given / TUTORIAL.name, as_version=4)
    for name in EXERCISES:
        assert "def " in sources(released)[name], "the signature is still there"
        assert "raise NotImplementedError" in sources(released)[name]
        assert "np." not in sources(released)[name], "the solution is gone"

    for student, answered in (("half", EXERCISES[:3:2]), ("good", EXERCISES)):
        handed_in = tmp_path / "submitted" / student / "week1"
        shutil.copytree(given, handed_in)
        notebook = nbformat.read(handed_in / TUTORIAL.name, as_version=4)
        for cell in notebook.cells:
            if grade_id(cell) in answered:
                cell.source = sections()[grade_id(cell)]
        nbformat.write(notebook, handed_in / TUTORIAL.name)
    command(tmp_path, "autograde", "week1")
    with api.Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        scores = {
            s.student.id: (s.score, s.max_score) for s in book.assignment_submissions("week1")
        }
    assert scores == {"half": (5, 10), "good": (10, 10)}
