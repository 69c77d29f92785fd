"""The DMSD table: five agents on a log, choices without online returns, committed records."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from offrl_wb.core.errors import InputError
from offrl_wb.core.records import SCHEMA, Records, committed_records
from offrl_wb.data.files import write_neorl2
from offrl_wb.data.world_logs import mass_spring_log
from offrl_wb.protocols import neorl2_dmsd
from offrl_wb.protocols.neorl2_dmsd import (
    ENTRIES,
    KEPT,
    PUBLISHED,
    choice_table,
    choices,
    dmsd_tasks,
    main,
    picked,
    run_dmsd,
    runs_of,
)

from .shared_data import neorl2_file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short log of the rebuilt plant in the benchmark's format."""
    place = tmp_path_factory.mktemp("dmsd") / "DMSD-made.npz"
    return write_neorl2(mass_spring_log(episodes=12), place)


def tiny(name: str) -> dict:
    """A task of two checkpoints of ten updates, in narrow networks, with one value of its grid."""
    task = dmsd_tasks([name])[0] | {"steps": 20, "checkpoints": 2, "episodes": 2, "batch": 16}
    widths = {k: [8, 8] for k in task["settings"] if k.endswith("hidden")}
    return task | {"settings": task["settings"] | widths, "seeds": [0, 1]}


def test_every_agent_runs_is_scored_and_judged(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, told = [tiny(name) for name in ENTRIES], []
    frame = run_dmsd(made, tmp_path / "runs", tasks=tasks, report=told.append)
    assert len(told) == len(ENTRIES)
    assert frame.schema == SCHEMA
    assert set(frame["metric"]) == set(KEPT)
    table = choice_table(frame)
    assert list(table) == ["BC", "TD3+BC", "IQL", "CQL", "SAC-N", "EDAC"]
    for name, row in table.items():
        assert np.isfinite(row["oracle"]).all()
        assert np.isnan(row["critic"]).all() == (name == "BC")
    assert runs_of(frame, "TD3+BC").settings == ("alpha 0.5", "alpha 2.5", "alpha 10")
    assert runs_of(frame, "TD3+BC").values[KEPT[0]].shape == (3, 2, 2)
    monkeypatch.setattr(neorl2_dmsd, "train", None)  # what is done is not done again
    assert run_dmsd(made, tmp_path / "runs", tasks=tasks).equals(frame)


def records(scores: np.ndarray, fitted: np.ndarray) -> pl.DataFrame:
    """Records of one agent with scores and fitted-Q values `(C, S, K)`."""
    found = Records("IQL", {})
    for (c, s, k), value in np.ndenumerate(scores):
        where = dict(seed=s, replica=2 * c + s, step=10 * (k + 1))
        swept = {"swept": {"expectile": 0.5 + c / 10}}
        found.add(metric=KEPT[0], value=value, parameters=swept, **where)
        if np.isfinite(fitted[c, s, k]):
            found.add(metric=KEPT[1], value=fitted[c, s, k], parameters=swept, **where)
    return found.frame()


def test_rules_choose_what_they_say() -> None:
    scores = np.array([[[50, 40], [52, 42]], [[10, 30], [12, 28]], [[0, 70], [0, 10.0]]])
    fitted = np.array([[[9, 1], [9, 1]], [[1, 5], [1, 5]], [[99, 99], [99, np.nan]]])
    runs = runs_of(records(scores, fitted), "IQL")
    assert np.array_equal(runs.values[KEPT[0]], scores)
    rules = choices(runs, default=1)
    assert np.array_equal(rules["default"], [30, 28])
    assert np.array_equal(rules["oracle"], [40, 42])  # the mean of 70 and 10 is below that
    assert np.array_equal(rules["oracle, any checkpoint"], [50, 52])
    assert np.array_equal(rules["fitted-Q"], [30, 28])  # the third lacks a value for a seed
    assert np.array_equal(rules["fitted-Q, any checkpoint"], [0, 0])
    assert np.isnan(rules["critic"]).all()
    assert np.isnan(picked(scores[..., 0], np.full((3, 2), np.nan))).all()
    with pytest.raises(InputError, match="no records of CQL"):
        runs_of(records(scores, fitted), "CQL")


def test_words_that_make_no_sense_are_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, line in (
        ([], "pass FILE"),
        ([str(tmp_path / "none.npz")], "no file"),
        ([str(made), str(tmp_path), "ppo"], "there is no entry 'ppo'"),
    ):
        assert main(words) == 2
        assert line in capsys.readouterr().err


def test_the_published_log_is_known_by_its_score() -> None:
    log = neorl2_dmsd.dmsd_log(str(neorl2_file("DMSD-train.npz")))
    reference = log.spec.score
    score = 100 * (log.returns().mean() - reference.low) / (reference.high - reference.low)
    assert score == pytest.approx(neorl2_dmsd.DATA_SCORE, abs=0.05)


def test_the_committed_records_hold_every_run() -> None:
    frame = committed_records("neorl2_dmsd")
    for name, row in choice_table(frame).items():
        runs = runs_of(frame, name)
        assert runs.values[KEPT[0]].shape[1:] == (3, 10)
        assert np.isfinite(runs.values[KEPT[0]]).all()
        assert row["oracle"].mean() >= row["fitted-Q"].mean() or np.isnan(row["fitted-Q"]).all()
    assert set(PUBLISHED) < set(choice_table(frame))
