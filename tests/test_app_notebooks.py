"""Notebooks are found by name, and their parameters are checked before anything runs."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.app.notebooks import (
    Notebook,
    Parameter,
    bind,
    bound_names,
    describe_notebook,
    find_notebook,
    find_notebooks,
    import_instead,
    name_of,
    prepare,
    read_parameters,
    resolve_files,
)
from offrl_wb.core.errors import InputError
from tests.tiny import cell, prose, write

PARAMETERS = """
seed: int = 0  # of every stream
scale: str = "minutes"  # quick, minutes or paper
gap = 0.1
log: str | None = None
sizes: tuple[int, ...] = (1, 2)
fast = True
"""


def bind_one(annotation: str, text: str) -> object:
    return bind([Parameter("x", annotation, None)], {"x": text})["x"]


def test_every_notebook_has_a_name_of_its_own_and_says_what_it_claims() -> None:
    notebooks = find_notebooks()
    assert len({n.name for n in notebooks}) == len(notebooks)
    for notebook in notebooks:
        assert notebook.title, f"{notebook.path} has no title"
        assert notebook.claim, f"{notebook.path} has no claim"
        assert notebook.cost, f"{notebook.path} has no badge line"


def test_a_notebook_is_found_by_name_by_numbered_name_and_by_path() -> None:
    by_name = find_notebook("notebooks")
    assert by_name == find_notebook("01_notebooks") == find_notebook(str(by_name.path))
    assert (by_name.room, by_name.path.name) == ("app", "01_notebooks.ipynb")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("notebok", "did you mean notebooks"),
        ("nowhere.ipynb", "there is no notebook nowhere.ipynb"),
        ("folder/file.txt", "neither a notebook's name nor"),
    ],
)
def test_an_unknown_notebook_is_one_line_with_what_comes_close(asked: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        find_notebook(asked)


@pytest.mark.parametrize("content", ["not json", "[]", '{"nbformat": 3, "worksheets": []}'])
def test_a_file_that_is_no_notebook_is_told_from_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    with pytest.raises(InputError, match="not a notebook"):
        find_notebook(str(path))


def test_names_lose_their_number_and_nothing_else() -> None:
    assert name_of(Path("01_lcb_bandit.ipynb")) == "lcb_bandit"
    assert name_of(Path("12b_x.ipynb")) == "x"
    assert name_of(Path("my own (2).ipynb")) == "my_own_2_"
    assert name_of(Path("3d.ipynb")) == "3d"


def test_parameters_are_read_with_type_default_and_comment() -> None:
    read = {p.name: p for p in read_parameters(PARAMETERS)}
    assert read["seed"] == Parameter("seed", "int", 0, "of every stream")
    assert read["log"] == Parameter("log", "str | None", None)
    assert (read["gap"].annotation, read["fast"].annotation) == ("float", "bool")


def test_a_parameters_cell_must_be_plain_python_and_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not plain Python"):
        describe_notebook(write(tmp_path / "a.ipynb", cell("%matplotlib", "parameters")))
    two = write(tmp_path / "b.ipynb", cell("a = 1", "parameters"), cell("b = 1", "parameters"))
    with pytest.raises(InputError, match="2 cells tagged parameters"):
        describe_notebook(two)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "-3", -3),
        ("int", "1e5", 100_000),
        ("float", "3", 3.0),
        ("bool", "No", False),
        ("str", "7", "7"),
        ("str | None", "none", None),
        ("Optional[int]", "4", 4),
        ("int | str", "4", 4),
        ("int | str", "four", "four"),
        ("Literal['a', 'b']", "b", "b"),
        ("list[int]", "1,2", [1, 2]),
        ("tuple[float, ...]", "(1, 2)", (1.0, 2.0)),
        ("list", "1, x", [1, "x"]),
        ("list[str]", "", []),
        ("dict", "{'a': 1}", {"a": 1}),
        ("Any", "word", "word"),
    ],
)
def test_text_becomes_the_annotated_type(annotation: str, text: str, value: object) -> None:
    bound = bind_one(annotation, text)
    assert bound == value
    assert type(bound) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("int", "0.5"),
        ("int", "inf"),
        ("int", "seven"),
        ("float", "nan"),
        ("float", ""),
        ("bool", "maybe"),
        ("int | None", "x"),
        ("Literal['a', 'b']", "c"),
        ("list[int]", "1,x"),
        ("list[int]", "[1"),
        ("tuple[int, int]", "1,2,3"),
        ("dict", "[1]"),
    ],
)
def test_text_of_the_wrong_type_is_refused_with_the_type(annotation: str, text: str) -> None:
    with pytest.raises(InputError, match="parameter x of this notebook takes"):
        bind_one(annotation, text)


def test_unknown_parameters_and_scales_are_refused_before_a_run() -> None:
    parameters = read_parameters(PARAMETERS)
    with pytest.raises(InputError, match=r"no parameter 'sede'; did you mean seed\?"):
        bind(parameters, {"sede": "1"}, "it")
    with pytest.raises(InputError, match="scale is quick, minutes or paper, not 'huge'"):
        bind(parameters, {"scale": "huge"})
    with pytest.raises(InputError, match="its parameters: none"):
        bind([], {"seed": "1"})


@given(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text())
def test_values_come_back_from_their_own_text(i: int, f: float, b: bool, s: str) -> None:
    parameters = [Parameter(n, n, None) for n in ("int", "float", "bool", "str")]
    given_text = {"int": str(i), "float": repr(f), "bool": str(b), "str": s}
    assert bind(parameters, given_text) == {"int": i, "float": f, "bool": b, "str": s}


def test_file_names_are_seen_from_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "log.csv").write_text("a")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "log.csv").write_text("b")
    parameters = read_parameters("log = 'log.csv'")
    folders = [tmp_path / "here", tmp_path / "there"]
    values, found = resolve_files(parameters, {"log": "log.csv"}, [], folders)
    assert values == {"log": str((tmp_path / "here" / "log.csv").resolve())}
    assert found["log"].read_text() == "a"


def test_a_folder_does_not_swallow_a_word_that_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    parameters = read_parameters("unseen: str = 'never'\nfolder: str = ''\nnumber = 1")
    values = {"unseen": "paper", "folder": "paper", "number": 1}
    resolved, found = resolve_files(parameters, values, values, [tmp_path])
    assert resolved["unseen"] == "paper"
    assert found == {"folder": (tmp_path / "paper").resolve()}


def test_a_folder_is_found_where_the_comment_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    parameters = read_parameters(
        "log = 'trial'  # trial, a folder, a CSV or Parquet file\nname = 'x'  # column in a file"
    )
    values = {"log": "logs", "name": "logs"}
    assert list(resolve_files(parameters, values, values, [tmp_path])[1]) == ["log"]
    (tmp_path / "trial").mkdir()
    default = {"log": "trial", "name": "x"}
    assert resolve_files(parameters, default, [], [tmp_path])[1] == {}, "a default is a choice"


def test_a_missing_data_file_is_told_only_where_somebody_named_it(tmp_path: Path) -> None:
    parameters = read_parameters("log = 'example.csv'")
    with pytest.raises(InputError, match=r"parameter log: there is no file .*mine\.csv"):
        resolve_files(parameters, {"log": "mine.csv"}, ["log"], [tmp_path])
    assert resolve_files(parameters, {"log": "example.csv"}, [], [tmp_path])[1] == {}


def test_bound_names_are_those_that_running_the_cell_binds() -> None:
    source = """
from __future__ import annotations
import os.path as p, numpy
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
a, *b = 1, 2
c: int
d: int = 3
e += 1 if (f := 2) else 0
for g in []: h = g
with open("x") as i: pass
[j for j in ()]
def k(l): m = l
class N: o = 1
def q(): pass
"""
    expected = [
        "p",
        "numpy",
        "TYPE_CHECKING",
        "a",
        "b",
        "d",
        "e",
        "f",
        "g",
        "h",
        "i",
        "k",
        "N",
        "q",
    ]
    assert bound_names(source) == expected


def test_the_import_that_replaces_a_cell_is_valid_python_however_long() -> None:
    names = [f"a_rather_long_name_{i}" for i in range(20)]
    source = "\n".join(f"{name} = {i}" for i, name in enumerate(names))
    line = import_instead(f"from __future__ import annotations\n{source}", "offrl_wb.room.module")
    tree = ast.parse(line)
    assert line.startswith("from __future__ import annotations\n")
    assert isinstance(tree.body[1], ast.ImportFrom)
    assert [alias.name for alias in tree.body[1].names] == names
    assert max(map(len, line.splitlines())) <= 100
    assert import_instead("print(1)", "offrl_wb.x") == "import offrl_wb.x"


@pytest.fixture
def chapter(tmp_path: Path) -> Notebook:
    path = write(
        tmp_path / "theory" / "01_rule.ipynb",
        prose("# A rule\n\n> It holds.\n\n**Cost** 1 s · **Needs** air"),
        cell("#| default_exp theory.rule"),
        cell("#| export\nimport math\ndef double(x):\n    return 2 * x"),
        cell("assert double(1) == 2"),
        cell("scale: str = 'minutes'\nseed: int = 0", "parameters"),
        cell("explore()", "explore"),
        cell("very_long()", "slow"),
        cell("#| eval: false\nboom()"),
        cell("raise_heat()", "gpu"),
    )
    return describe_notebook(path, "theory")


def sources(notebook: Notebook, **values: object) -> list[str]:
    bound = {p.name: p.default for p in notebook.parameters} | values
    return [c["source"] for c in prepare(notebook, bound)["cells"] if c["cell_type"] == "code"]


def test_a_run_imports_what_the_notebook_exports_and_leaves_out_what_is_slow(
    chapter: Notebook,
) -> None:
    parameters = "scale: str = 'minutes'\nseed: int = 0"
    always = ["from offrl_wb.theory.rule import math, double", "assert double(1) == 2", parameters]
    assert sources(chapter) == always
    assert sources(chapter, seed=3) == [*always, "# set for this run\nseed = 3"]
    paper = sources(chapter, scale="paper")
    assert paper == [
        *always,
        "# set for this run\nscale = 'paper'",
        "very_long()",
        "raise_heat()",
    ]
    left_out = [c for c in prepare(chapter, {"scale": "quick", "seed": 0})["cells"]][-1]
    assert "tagged `gpu`" in left_out["source"]


def test_a_notebook_in_another_language_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.ipynb", cell("x <- 1"))
    document = json.loads(path.read_text())
    document["metadata"] = {"kernelspec": {"name": "ir", "language": "R"}}
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="written in R; a report runs Python"):
        prepare(describe_notebook(path), {})


def test_a_users_own_notebook_runs_its_own_exported_cells(chapter: Notebook) -> None:
    own = describe_notebook(chapter.path)
    assert any(source.startswith("#| export") for source in sources(own))


def test_a_prepared_notebook_is_a_valid_one(chapter: Notebook) -> None:
    import nbformat

    ready = prepare(chapter, {"scale": "quick", "seed": 1})
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(ready))))
