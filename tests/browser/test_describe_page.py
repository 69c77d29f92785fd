"""The page of a log in a real browser, from disk, with the network off."""

from pathlib import Path
from typing import Any

import pytest

from offrl_wb.app.describe import describe_html
from tests.test_describe import log


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "log.html"
    path.write_text(describe_html(log(wide=17)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[(1200, "light"), (400, "dark")], ids=str)
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
    figures = "document.querySelectorAll('.plot .main-svg').length"
    shown.wait_for_function(f"{figures} >= document.querySelectorAll('.plot').length")
    yield shown
    context.close()


def test_every_figure_is_drawn_without_a_network_or_an_error(page: Any) -> None:
    assert page.said == []
    assert page.asked == []
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == 7


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = (
        "[...document.querySelectorAll('.plotly-figure')].every(f => f.scrollWidth <= innerWidth)"
    )
    assert page.evaluate(inside)


def visible(page: Any, figure: str) -> list[str]:
    """The groups of the traces that a figure shows."""
    return page.evaluate(
        f"[...new Set(document.querySelector('#{figure} .plot').data"
        ".filter(t => t.visible !== false).map(t => t.meta))]"
    )


def test_menus_choose_what_is_shown_from_the_keyboard(page: Any) -> None:
    assert visible(page, "states") == ["return"]
    menu = page.get_by_label("Colour by")
    menu.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(200)
    assert visible(page, "states") == ["reward"]
    menu.select_option("source")
    assert visible(page, "states") == ["source"]
    page.get_by_label("Episode", exact=True).select_option("best")
    assert visible(page, "episodes") == ["best"]
    assert page.said == []


def test_the_code_can_be_copied(page: Any) -> None:
    button = page.get_by_role("button", name="Copy")
    button.click()
    assert button.count() == 0 or button.text_content() in ("Copied", "Selected: copy it")
    assert "given_0" in page.evaluate("getSelection().toString()")


def test_text_and_ground_follow_the_colour_scheme(page: Any) -> None:
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (ground == "rgb(255, 255, 255)") is not dark
