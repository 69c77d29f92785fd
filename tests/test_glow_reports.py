"""Reports of GLOW and HyGLOW on a user's own arrays file, by the command line."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from offrl_wb.app.cli import run
from offrl_wb.core.records import load_records

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.notebooks


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arrays() -> dict[str, np.ndarray]:
    """0, then 1, then the goal 2, which is never left and pays in the last layer: 1 is right."""
    transition, reward = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transition[[0, 1, 2], 1, [1, 2, 2]] = 1
    transition[[0, 1, 2], 0, [0, 0, 2]] = 1
    reward[2] = 1
    return {"P": transition, "R": reward, "rho": np.array([1.0, 0, 0]), "H": np.array(3)}


@pytest.mark.parametrize("name", ["glow", "hyglow"])
def test_a_report_on_a_users_own_world(name: str, capsys: Capture) -> None:
    np.savez("goal.npz", **arrays())  # out of reach, Q* of the goal is 3: that must not matter
    asked = ["report", name, "-p", "world=goal.npz", "-p", "rounds=100", "--scale", "quick"]
    assert run([*asked, "-o", "out"]) == 0
    folder = Path(capsys.readouterr().out.split()[-1])
    assert (folder / f"{name}.html").exists()
    records = load_records(folder / "records.parquet").filter(pl.col("world") == "goal")
    assert len(records) > 0
    assert np.isfinite(records["value"].to_numpy()).all()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("glow", {"P": np.full((3, 2, 3), 0.4)}, "P of state 0, action 0 sums to 1.2"),
        ("hyglow", {"R": np.full((3, 2), 2.0)}, "a path can return 6"),
    ],
)
def test_a_world_that_will_not_do_is_one_line(
    name: str, change: dict, said: str, capsys: Capture
) -> None:
    np.savez("bad.npz", **arrays() | change)
    assert run(["report", name, "-p", "world=bad.npz", "--scale", "quick", "-o", "out"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"bad.npz: {said}" in line
    assert not list(Path("out").glob("*"))
