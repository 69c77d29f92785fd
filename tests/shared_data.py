"""Published data sets that the project does not ship: tests that need one skip where it is absent."""

import os
from pathlib import Path

import pytest

FOLDERS = [
    Path(__file__).parents[2] / "shared" / "data" / "neorl2",
    *(Path(p) for p in [os.environ.get("OFFRL_WB_NEORL2", "")] if p),
]


def neorl2_file(name: str) -> Path:
    """Where `name` of the NeoRL-2 files lies, or a skip that says where it was looked for."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} of polixir/neorl2_dataset is not here; set OFFRL_WB_NEORL2 to its folder")
