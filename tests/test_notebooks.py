"""Every notebook of the library runs as a report at `scale=quick`, from the library's own code."""

import json
from pathlib import Path

import pytest

from offrl_wb.app.notebooks import find_notebooks
from offrl_wb.app.reports import run_report
from offrl_wb.core.records import load_records

LIMIT = 60  # seconds
NOTEBOOKS = [n for n in find_notebooks() if n.room not in ("", "tutorials")]


def test_the_house_has_its_rooms() -> None:
    rooms = {notebook.room for notebook in NOTEBOOKS}
    assert rooms == {
        *("core", "worlds", "data", "theory", "nets"),
        *("train", "agents", "protocols", "app"),
    }


@pytest.mark.notebooks
@pytest.mark.timeout(5 * LIMIT)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_a_notebook_runs_within_a_minute(notebook, tmp_path: Path) -> None:
    parameters = {parameter.name for parameter in notebook.parameters}
    asked = {"log": "none"} if "log" in parameters and not has_field_experiment() else {}
    scale = "quick" if "scale" in parameters else None
    folder = run_report(notebook.name, asked, tmp_path, scale=scale)
    story = json.loads((folder / "run.json").read_text())
    assert story["wall_time_seconds"] < LIMIT
    load_records(folder / "records.parquet")


def has_field_experiment() -> bool:
    from importlib.util import find_spec

    return find_spec("causaldata") is not None
