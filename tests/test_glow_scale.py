"""GLOW, HyGLOW and Hy-Q at larger scale: tasks, what is measured, and the committed records."""

import numpy as np
import polars as pl
import pytest

from offrl_wb.core.records import committed_records, parameters_hash
from offrl_wb.core.statistics import log_log_slope
from offrl_wb.theory import glow_scale
from offrl_wb.theory.density_ratios import make_problem
from offrl_wb.theory.glow_scale import METHODS, episodes_to, hybrid_gamma, run_lock, run_task
from offrl_wb.worlds.layered import lock_family


def measured(frame: pl.DataFrame, **settings: object) -> pl.DataFrame:
    """The records whose settings are these."""
    for key, value in settings.items():
        found = pl.col("parameters").str.json_path_match(f"$.{key}")
        frame = frame.filter(found == str(value))
    return frame


def test_episodes_count_from_the_last_time_the_mixture_was_too_bad() -> None:
    regret = np.array([1.0, 0.0, 0.0, 1.0, 0, 0, 0, 0, 0, 0])
    for epsilon in (0.2, 0.25, 0.4, 0.6):
        risk = regret.cumsum() / np.arange(1, 11)
        after = int(episodes_to(regret, epsilon))
        assert (risk[after - 1 :] <= epsilon + 1e-12).all()
        assert after == 1 or risk[after - 2] > epsilon
    assert episodes_to(regret, 0.1) == np.inf


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plays_a_small_lock(method: str) -> None:
    task = dict(horizon=3, actions=2, slip=0.0, method=method, rounds=60, replicas=2)
    regret = run_lock(task, 0)
    assert regret.shape == (2, 60)
    assert np.isin(regret.round(12), (0.0, 0.6)).all()
    assert np.array_equal(regret, run_lock(task, 0))
    assert not np.array_equal(regret, run_lock(task | {"rounds": 60}, 1)) or method == "Hy-Q"


def test_the_gamma_of_the_hybrid_theorem_is_its_formula() -> None:
    lock = lock_family(3, 2)
    problem = make_problem(lock.mdp, lock.tables, lock.behaviour)
    logarithm = np.log(8 * 8 / 0.1)
    star = 1 / 0.9**3  # the noisy expert takes the right digit with 0.8 + 0.2 / 2
    expected = np.sqrt((star + 3) / (500 * 9 * logarithm))
    assert hybrid_gamma(problem, 500) == pytest.approx(expected)


def test_the_committed_records_hold_every_task() -> None:
    frame = committed_records("glow_scale")
    tasks = glow_scale.scale_tasks()
    assert frame["parameters_hash"].n_unique() == len(tasks)
    replicas = frame.group_by("parameters_hash").agg(pl.col("replica").n_unique())["replica"]
    assert replicas.min() >= 20


@pytest.mark.parametrize(
    "settings",
    [
        dict(kind="rate", rounds=1e3, constants="practical", growth=0.0),
        dict(kind="lock", horizon=3, actions=3, method="Hy-Q"),
        dict(kind="lock", horizon=3, actions=2, method="GLOW, weights of models"),
        dict(kind="lock", horizon=4, actions=2, slip=0.1, method="HyGLOW"),
    ],
)
def test_a_sample_of_the_committed_records_comes_again(settings: dict) -> None:
    task = next(t for t in glow_scale.scale_tasks() if settings.items() <= t.items())
    few = run_task(task | {"replicas": 2}, 0).select("metric", "step", "replica", "value")
    frame = committed_records("glow_scale")
    kept = frame.filter(pl.col("parameters_hash") == parameters_hash(task))
    both = few.join(kept, on=["metric", "step", "replica"], suffix="_kept")
    assert both.height == few.height
    assert both["value_kept"].to_numpy() == pytest.approx(both["value"].to_numpy(), abs=1e-9)


def test_the_committed_regret_grows_slower_than_the_rounds() -> None:
    frame = measured(committed_records("glow_scale"), kind="rate", constants="practical", actions=5)
    frame = frame.filter(pl.col("metric") == "regret", pl.col("step") >= 10**6)
    mean = frame.group_by("step").agg(pl.col("value").mean()).sort("step")
    slope = float(log_log_slope(mean["step"].to_numpy(), mean["value"].to_numpy()))
    assert 0.4 < slope < 0.6
