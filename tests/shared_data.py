"""Published data sets, not shipped: tests that need one skip where it is absent."""

import os
from pathlib import Path

import pytest

FOLDERS = [
    Path(os.environ.get("OFFRL_WB_NEORL2", "neorl2")),
    Path(__file__).parents[2] / "shared" / "data" / "neorl2",
]


def neorl2_file(name: str) -> Path:
    """Where `name` of the NeoRL-2 files lies, or a skip that says where it was looked for."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} of polixir/neorl2_dataset is not here; set OFFRL_WB_NEORL2 to its folder")
