"""Settings for all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is not a failure: timings belong to the benchmarks.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: Playwright leaves an event loop running until the session ends.

    Where several workers share the tests, a file stays with one, but for the notebooks' runs.
    """
    browser = Path(__file__).parent / "browser"
    items.sort(key=lambda item: browser in Path(item.path).parents)
    for item in items:
        if item.get_closest_marker("notebooks") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
