"""A report's page needs no network: equations are MathML, figures carry their data."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from offrl_wb.app.html import (
    equation,
    figure_html,
    markdown_to_html,
    mathml,
    pairs_table,
    report_page,
    self_contained,
)
from tests.tiny import PLOTLY, figure

STORY: dict[str, Any] = {
    "notebook": "line",
    "title": "A line & more",
    "exit_state": "finished",
    "error": None,
    "parameters": {"seed": 3, "gap": 0.5, "log": None},
    "defaults": {"seed": 0, "gap": 0.5, "log": None},
    "dataset": {"trial": {"rows": 12, "source": "a <file>"}},
    "files": {"log": {"path": "/x/log.csv", "sha256": "f" * 64}},
    "seeds": {"seed": 3},
    "started": "2026-01-02T03:04:05+00:00",
    "wall_time_seconds": 3723.0,
    "hash": "0123456789ab",
    "git_revision": "abcdef0123456789",
    "git_modified": True,
    "numeric": {"processors": 2, "float": "float64"},
    "versions": {f"package{i}": str(i) for i in range(9)} | {"offrl_wb": "0.1.0"},
}


def page_of(*cells: Any, **story: Any) -> str:
    document = nbformat.v4.new_notebook(cells=list(cells))
    return report_page(document, STORY | story, Path(__file__).parent)


def code(source: str = "x", **data: Any) -> Any:
    output = nbformat.v4.new_output("display_data", data=data) if data else None
    return nbformat.v4.new_code_cell(source, outputs=[output] if output else [])


prose = nbformat.v4.new_markdown_cell


@pytest.mark.parametrize(
    ("latex", "seen"),
    [
        (r"\mathbb{E}_{s\sim d}[r]", "𝔼"),
        (r"\mathbb 1\{a=b\}", "𝟙"),
        (r"\boldsymbol{\mu}", "𝝁"),
        (r"\mathrm{LCB}(a)", ">LCB<"),
        (r"\arg\max_a Q", "<munder>"),
        (r"\operatorname*{arg\,min}_x f", "arg\N{THIN SPACE}min"),
        (r"\max_{a} Q", "<munder>"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "<mtr>"),
        (r"\begin{align} a &= b \end{align}", "<mtd"),
        (r"\begin{gather} a \\ b \end{gather}", "<mtable>"),
        (r"\begin{cases} 1 & x>0 \\ 0 & x\le0 \end{cases}", "<mtable>"),
        (r"\Big\{ x \Big\}", ">{<"),
        (r"\Big\lfloor x \Big\rfloor", ">⌊<"),
        (r"\log x", "<mspace"),
        (r"a \nonumber \label{eq:a}", "<mi>a</mi>"),
        (r"1 / N", 'lspace="0"'),
    ],
)
def test_the_latex_that_we_write_becomes_mathml(latex: str, seen: str) -> None:
    drawn = mathml(latex, display=True)
    assert seen in drawn
    assert "\\" not in drawn


@pytest.mark.parametrize("latex", [r"\nosuchmacro{x}", r"\frac{1}{", r"a & b"])
def test_latex_that_cannot_be_translated_is_shown_and_named(latex: str) -> None:
    with pytest.raises(ValueError, match=re.escape(latex.split("{")[0].split()[0][:5])):
        mathml(latex)
    assert "untranslated" in equation(latex)


@pytest.mark.parametrize(
    "source",
    [
        "it costs $5 and then $10 more",
        "from $5-$10",
        r"exactly \$5 and \$6",
        "`$x$` and ``$y$``",
        "costs $5, see `$x`",
        "```\n$x$\n```",
        "~~~python\n$$x$$\n~~~",
        "text\n\n    $x$ = 1\n",
    ],
)
def test_money_and_code_are_no_equations(source: str) -> None:
    page = markdown_to_html(source)
    assert "<math" not in page
    assert page.count("$") == source.count("$")


@pytest.mark.parametrize(
    ("source", "equations"),
    [
        ("$x$, $y$ and $z$.", 3),
        ("$$x$$", 1),
        ("before\n$$\nx\n\n+ y\n$$\nafter", 1),
        ("- a point: $a_1*b_1*c$\n- $$x$$", 2),
        ("| a | b |\n|---|---|\n| $x$ | $y_{1}$ |", 2),
        ("\\begin{align}\na &= b\n\\end{align}", 1),
        ("> quoted $x$", 1),
        ("**bold $x$** and $\\{a\\}$", 2),
    ],
)
def test_equations_are_found_wherever_prose_may_stand(source: str, equations: int) -> None:
    assert markdown_to_html(source).count("<math") == equations


def test_headings_have_anchors_of_their_own() -> None:
    headings: list[tuple[int, str, str]] = []
    markdown_to_html("# One\n## One\n### $x$ two", headings)
    assert [(level, anchor) for level, anchor, _ in headings][:2] == [(1, "one"), (2, "one-2")]
    assert len({anchor for _, anchor, _ in headings}) == 3


def test_a_figure_carries_its_data_and_its_words() -> None:
    drawn = figure_html(figure('A "quoted" </script> line'))
    assert 'role="img" aria-label="A &quot;quoted&quot;' in drawn
    assert drawn.count("</script>") == 1
    assert "<figcaption>A &quot;quoted&quot;" in drawn
    assert "Figure without a description" in figure_html({"data": [], "layout": {}})


def test_plotly_is_in_the_page_once_and_only_with_a_figure() -> None:
    drawn = {PLOTLY: figure()}
    two = page_of(code(**drawn), code(**drawn))
    assert two.count("</figcaption>") == 2
    assert len(two) < 6_000_000, "one copy of plotly.js is 5 MB"
    assert len(page_of(code())) < 60_000


def test_the_page_asks_for_nothing_from_a_network() -> None:
    foreign = (
        '<script src="https://cdn.example/x.js"></script><link rel="a" href="//x.example/a.css">'
        '<img src="https://x.example/a.png"><b>kept</b>'
    )
    page = page_of(
        prose("![far](https://x.example/b.png) $x$"),
        code(**{"text/html": foreign}),
        code(**{PLOTLY: figure()}),
    )
    asked = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"'](?!data:)[^\"']*", page
    )
    assert asked == []
    assert "<b>kept</b>" in page
    assert "@import" not in page.split("<script>")[0]
    assert "url(" not in page.split("<body>")[0]


def test_the_first_screen_says_what_was_run_on_what_and_how_it_ended() -> None:
    head = page_of(prose("# A line & more\n\nText.")).split("<main>")[0]
    for words in (
        "A line &amp; more",
        'class="state finished"',
        "0.5",
        '3 <b class="set">set</b>',
        "trial.rows",
        "a &lt;file&gt;",
        "ffffffffffff",
        "1 h 2 min",
        "2026-01-02 03:04:05 UTC",
        "0123456789ab",
        "abcdef012345</code> and changes",
        "package0",
        "3 more",
    ):
        assert words in head, words


def test_the_title_stands_once_and_sections_below_it() -> None:
    page = page_of(prose("# A line & more\n\nText."), prose("# 1. First\n## Inner\n# 2. Second"))
    assert page.count("<h1") == 1
    assert '<h2 id="1-first">' in page
    assert '<h3 id="inner">' in page
    assert 'aria-label="Contents"' in page
    assert '<a href="#2-second">' in page


def test_code_is_folded_and_shows_what_was_imported() -> None:
    cell = code("from offrl_wb.x import f")
    cell.metadata["offrl_wb"] = {"module": "offrl_wb.x", "exported": "def f():\n    return 41"}
    page = page_of(cell)
    assert '<details class="code">' in page
    assert "Code of offrl_wb.x" in page
    assert "41" in page


def test_a_failed_run_shows_its_error_and_opens_the_cell() -> None:
    error = nbformat.v4.new_output(
        "error",
        ename="ValueError",
        evalue="no <luck>",
        traceback=["\x1b[31mValueError\x1b[0m: no <luck>"],
    )
    cell = nbformat.v4.new_code_cell("boom()", outputs=[error])
    page = page_of(cell, exit_state="failed", error="cell In[1] failed: no <luck>")
    assert 'class="state failed"' in page
    assert '<a href="#failed">cell In[1] failed: no &lt;luck&gt;</a>' in page
    assert '<details class="code" open' in page
    assert "no &lt;luck&gt;" in page.split("<main>")[1]


def test_equations_in_outputs_are_drawn_too() -> None:
    page = page_of(
        code(**{"text/latex": r"$\displaystyle x^2$"}),
        code(**{"text/markdown": "so $y^2$"}),
        code(**{"text/latex": r"x_1 + 1"}),
    )
    assert page.count("<math") == 3


def test_local_pictures_are_taken_in_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    body = self_contained('<img src="dot.png" alt="dot"><img src="gone.png" alt="gone">', tmp_path)
    assert 'src="data:image/png;base64,' in body
    assert "[picture: gone]" in body


def test_links_to_other_notebooks_keep_their_words_only() -> None:
    body = self_contained('<a href="../a.ipynb">a</a> <a href="https://x.org">b</a>', Path())
    assert body == '<span>a</span> <a href="https://x.org">b</a>'


def test_long_tables_of_facts_are_folded() -> None:
    pairs = [(f"name {i}", str(i)) for i in range(6)]
    assert "4 more" in pairs_table("Facts", pairs, most=2)
    assert pairs_table("Facts", []) == ""
