"""FTPedel at larger scale: tasks, what is measured, resuming, and the committed records."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from offrl_wb.core.records import committed_records, load_records, parameters_hash
from offrl_wb.core.statistics import log_log_slope
from offrl_wb.theory import ftpedel_scale
from offrl_wb.theory.experiment_design import arm_demand, water_filling
from offrl_wb.theory.ftpedel import Epoch, ftpedel
from offrl_wb.theory.ftpedel_scale import epoch_price, failed, run_task, scale_tasks
from offrl_wb.worlds.linear import bandit_world, moments_from_counts

SMALL: list[dict] = [
    dict(
        kind="shared",
        dimension=5,
        horizon=2,
        policies=100,
        epsilon=0.4,
        log=200,
        runs=2,
        world=1,
    ),
    dict(kind="rooms", epsilon=0.1, log=True, runs=2),
    dict(kind="safety", mode="practical", c_beta=1.0, world=0, epsilon=0.5, runs=2),
    dict(kind="warm", world=0, log=0, epsilon=0.1, runs=1),
]


def measured(frame: pl.DataFrame, metric: str, **settings: object) -> np.ndarray:
    """The values of a metric whose settings are these."""
    frame = frame.filter(pl.col("metric") == metric)
    for key, value in settings.items():
        found = pl.col("parameters").str.json_path_match(f"$.{key}")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        frame = frame.filter(found == text)
    return frame.sort("parameters_hash", "replica")["value"].to_numpy()


@pytest.mark.parametrize("task", SMALL, ids=[task["kind"] for task in SMALL])
def test_a_task_gives_the_same_records_again(task: dict) -> None:
    frame = run_task(task, 0)
    assert frame.equals(run_task(task, 0))
    assert set(frame["parameters_hash"]) == {parameters_hash(task)}
    assert frame["replica"].max() == task["runs"] - 1
    if task["kind"] == "warm":
        assert np.isin(measured(frame, "episodes until right"), [*ftpedel_scale.GRID, np.inf]).all()
        return
    assert (measured(frame, "episodes") > 0).all()
    assert (measured(frame, "failed") == 0).all()
    if task["kind"] != "safety":
        assert measured(frame, "loss").max() <= task["epsilon"]
        theorem = measured(frame, "price of the theorem")
        assert measured(frame, "price of the last epoch") >= theorem
    assert not frame.equals(run_task(task, 1))


def test_every_task_is_there_once() -> None:
    tasks = scale_tasks()
    assert len({parameters_hash(task) for task in tasks}) == len(tasks)
    swept = {(t["dimension"], t["horizon"]) for t in tasks if t["kind"] == "shared"}
    assert {(d, h) for d in (5, 10, 20) for h in (2, 3, 5)} == swept
    shared = [t for t in tasks if t["kind"] == "shared"]
    assert {t["policies"] for t in shared} == {100, 1000, 10_000, 100_000}
    assert min(t["epsilon"] for t in shared) == 0.01


def test_the_price_of_an_epoch_of_a_bandit_is_water_filling() -> None:
    world, pulls = bandit_world([0.9, 0.5, 0.3]), np.array([40.0, 500.0, 0.0])
    log = moments_from_counts(world, pulls.reshape(1, 1, 3, 1), pulls.reshape(1, 1, 3) / 2)
    policies = np.arange(3)[:, None, None]
    active, nothing = np.array([0, 2]), np.zeros(0)
    epoch = Epoch(3, 0.125, 6.0, active, nothing, nothing, nothing, 0, nothing)
    demand = arm_demand(np.zeros(2), 0.125, 6.0)
    assert epoch_price(world, policies, log, epoch) == pytest.approx(
        water_filling(demand, pulls[active]).total, rel=0.011
    )
    assert epoch_price(world, policies, None, epoch) == pytest.approx(demand.sum(), rel=0.011)


def test_a_run_fails_if_the_best_goes_or_a_bad_one_stays() -> None:
    answer = ftpedel(bandit_world([0.8, 0.2]), np.arange(2)[:, None, None], None, 0.5)
    assert len(answer.survivors) == 1
    assert not failed(np.array([0.8, 0.2]), answer)
    assert failed(np.array([0.2, 0.8]), answer)
    first = answer.epochs[0]
    assert first.kept.all()
    assert failed(np.array([0.8, 0.8 - 4 * first.epsilon - 0.1]), answer)


def test_a_run_resumes_and_an_unfinished_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [task for task in SMALL if task["kind"] in ("rooms", "safety")]
    monkeypatch.setattr(ftpedel_scale, "scale_tasks", lambda: few)
    said: list[str] = []
    first = ftpedel_scale.run_scale(tmp_path, report=said.append)
    assert len(said) == 2
    assert ftpedel_scale.scale_records(tmp_path, report=said.append).equals(first)
    assert "finished run" in said[-1]
    next(tmp_path.iterdir()).unlink()
    again = ftpedel_scale.run_scale(tmp_path, report=said.append)
    assert again.equals(first)
    assert len(said) == 4


def test_the_command_writes_the_records_and_names_a_bad_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ftpedel_scale, "scale_tasks", lambda: SMALL[1:2])
    monkeypatch.setattr("offrl_wb.core.scale_runs.notebooks_folder", lambda: tmp_path / "nbs")
    monkeypatch.setattr("sys.argv", ["ftpedel_scale", str(tmp_path / "run")])
    assert ftpedel_scale.main() == 0
    assert (
        load_records(tmp_path / "nbs" / "theory" / "records" / "ftpedel_scale.parquet").height > 0
    )
    monkeypatch.setattr("sys.argv", ["ftpedel_scale", str(tmp_path / "run"), "many"])
    assert ftpedel_scale.main() == 2
    assert "number of workers is 'many'" in capsys.readouterr().err


def test_the_committed_records_hold_every_task_with_all_its_runs() -> None:
    frame = committed_records("ftpedel_scale")
    tasks = scale_tasks()
    assert set(frame["parameters_hash"]) == {parameters_hash(task) for task in tasks}
    counted = frame.group_by("parameters_hash").agg(pl.col("replica").n_unique())
    runs = dict(counted.iter_rows())
    assert all(runs[parameters_hash(task)] == task["runs"] for task in tasks)


@pytest.mark.parametrize(
    "settings",
    [
        dict(kind="rooms", epsilon=0.05, log=True),
        dict(kind="safety", mode="practical", c_beta=0.03, world=4),
        dict(kind="shared", dimension=10, horizon=2, policies=10_000, epsilon=0.1, world=3),
    ],
    ids=["rooms", "safety", "shared"],
)
def test_a_sample_of_the_committed_records_comes_again(settings: dict) -> None:
    task = next(t for t in scale_tasks() if settings.items() <= t.items())
    few = run_task(task | {"runs": 2}, 0).select("metric", "replica", "value")
    frame = committed_records("ftpedel_scale")
    kept = frame.filter(pl.col("parameters_hash") == parameters_hash(task))
    both = few.join(kept, on=["metric", "replica"], suffix="_kept")
    assert both.height == few.height
    assert both["value_kept"].to_numpy() == pytest.approx(both["value"].to_numpy(), rel=0.02)


def test_the_committed_runs_are_safe_near_the_price_and_follow_the_slopes() -> None:
    frame = committed_records("ftpedel_scale")
    for mode, constant in (("paper", "hoeffding"), ("practical", "hoeffding"), ("practical", 1.0)):
        wrong = measured(frame, "failed", kind="safety", mode=mode, c_beta=constant)
        assert len(wrong) == 1000
        assert wrong.mean() <= 0.1
    for dimension in (5, 10, 20):
        where = dict(kind="shared", dimension=dimension, policies=10_000, epsilon=0.1, log=0)
        first = frame.filter(pl.col("replica") == 0)
        ratio = measured(first, "episodes", **where) / measured(
            first, "price of the last epoch", **where
        )
        assert ratio.max() <= 20
        assert measured(frame, "loss", **where).max() <= 0.1
    epsilons = np.array([0.05, 0.025, 0.0125, 0.00625, 0.003125])
    for log, slope in ((False, -2.0), (True, 0.0)):
        medians = [
            np.median(measured(frame, "episodes", kind="rooms", epsilon=e, log=log))
            for e in epsilons
        ]
        assert log_log_slope(epsilons, np.array(medians)) == pytest.approx(slope, abs=0.2)
