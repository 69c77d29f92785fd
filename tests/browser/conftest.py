"""One JupyterLab and one Chromium for all browser tests; without a Chromium they are skipped."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import chromium as installed
from . import lab_driver
from .lab_driver import CHROMIUM_ARGUMENTS, Lab, Shown


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in Path(item.path).parents]
    missing = bool(mine) and installed.find() is None
    for item in mine:
        item.add_marker(pytest.mark.browser)
        if missing:
            reason = "no Chromium or Chrome on this machine: `make browser` installs one"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_driver.jupyterlab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = installed.find()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(lab: Lab, chromium: Any) -> Iterator[Callable[..., Shown]]:
    """Open an explorer by the code that makes it; pages are closed after the test."""
    opened: list[Shown] = []

    def open_explorer(
        name: str, *sources: str, width: int = 1200, theme: str = lab_driver.LIGHT
    ) -> Shown:
        lab.theme(theme)
        page = chromium.new_page(viewport={"width": width, "height": 1000})
        shown = Shown(page)
        opened.append(shown)
        shown.open(lab.notebook(name, *sources))
        return shown

    yield open_explorer
    for shown in opened:
        shown.close()
