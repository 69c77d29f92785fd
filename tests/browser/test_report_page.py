"""A report's page in a real browser, from disk, with the network off."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest

from offrl_wb.app.html import report_page
from tests.test_html import STORY
from tests.tiny import PLOTLY, figure

EQUATION = r"""## Bound

Inline $\hat r(a)$, and displayed:

$$\mathrm{LCB}(a) = \hat r(a) - \sqrt{\frac{\log(2|A|/\delta)}{2N(a)}}$$

## Figure

## End
"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = figure()
    drawn["data"][0]["y"] = {"dtype": "f8", "bdata": base64.b64encode(bytes(24)).decode()}
    outputs = [nbformat.v4.new_output("display_data", data={PLOTLY: f}) for f in (figure(), drawn)]
    cells = [
        nbformat.v4.new_markdown_cell(EQUATION),
        nbformat.v4.new_code_cell("figure", outputs=outputs),
    ]
    page = report_page(nbformat.v4.new_notebook(cells=cells), STORY, Path(__file__).parent)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[(1200, "light"), (800, "dark"), (400, "dark")], ids=str)
def page(request: pytest.FixtureRequest, chromium: Any, page_file: Path) -> Any:
    """The page opened from disk; `said` gathers console errors, `asked` foreign requests."""
    width, scheme = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    shown = context.new_page()
    shown.said, shown.asked = [], []
    shown.on("console", lambda m: shown.said.append(m.text) if m.type == "error" else None)
    shown.on("pageerror", lambda problem: shown.said.append(str(problem)))
    shown.on(
        "request",
        lambda r: (
            None if r.url.startswith(("file:", "data:", "blob:")) else shown.asked.append(r.url)
        ),
    )
    shown.goto(page_file.as_uri())
    shown.wait_for_function("document.querySelectorAll('.js-plotly-plot .xtick').length > 0")
    yield shown
    context.close()


def test_the_page_draws_equations_and_figures_without_a_network(page: Any) -> None:
    assert page.said == []
    assert page.asked == []
    assert page.locator("math").count() == 2
    root = page.locator("msqrt").bounding_box()
    assert root["width"] > 40
    assert root["height"] > 20, "the fraction stands under the root"
    assert page.locator(".js-plotly-plot").count() == 2
    assert page.locator(".js-plotly-plot .scatterlayer .point").count() == 6


def test_the_page_fits_its_window(page: Any) -> None:
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0
    assert page.locator(".facts").first.bounding_box()["y"] < 400, "facts are on the first screen"


def test_a_figure_answers_to_the_pointer(page: Any) -> None:
    plot = page.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    area = plot.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.75, steps=5)
    page.mouse.up()
    zoomed = "document.querySelector('.js-plotly-plot').layout.xaxis.range[0] > 0.2"
    page.wait_for_function(zoomed)


def test_code_opens_and_the_dark_page_is_dark(page: Any) -> None:
    code = page.locator("details.code").first
    assert not code.locator(".highlight").is_visible()
    code.locator("summary").click()
    assert code.locator(".highlight").is_visible()
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(map(int, c[4:-1].split(","))) for c in colours)
    assert (ink > paper) is dark
    assert abs(ink - paper) > 450, "enough contrast to read"
