"""Small notebooks for the tests of reports, outputs and the command line."""

import json
import textwrap
from pathlib import Path
from typing import Any

PLOTLY = "application/vnd.plotly.v1+json"


def cell(source: str, *tags: str, **more: Any) -> dict[str, Any]:
    """A code cell; `**outputs` and other keys are taken over."""
    base = {"cell_type": "code", "source": textwrap.dedent(source).strip(), "outputs": []}
    return base | {"metadata": {"tags": list(tags)} if tags else {}, "execution_count": None} | more


def prose(source: str) -> dict[str, Any]:
    """A markdown cell."""
    return {"cell_type": "markdown", "source": textwrap.dedent(source).strip(), "metadata": {}}


def write(path: Path, *cells: dict[str, Any]) -> Path:
    """Write a notebook of these cells."""
    numbered = [each | {"id": f"c{number}"} for number, each in enumerate(cells)]
    document = {"cells": numbered, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def figure(alt: str = "A rising line from one to three, with no surprises.") -> dict[str, Any]:
    """A Plotly figure as JSON."""
    layout = {"meta": {"alt": alt}, "title": {"text": "A line"}, "height": 300}
    return {"data": [{"type": "scatter", "y": [1, 2, 3]}], "layout": layout}
