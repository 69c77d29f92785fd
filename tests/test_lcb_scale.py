"""The paper-scale run of LCB: reductions, grids, resuming, which records are read, and fits."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.core.records import committed_records
from offrl_wb.theory import lcb_scale
from offrl_wb.theory.lcb_mdp import hoeffding_penalty, vi_lcb
from offrl_wb.worlds.tabular import evaluate, missing_mass_mdp, missing_mass_mdp_loss, sample_counts


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Some tasks of every kind, small enough for a test."""
    few = [task for task in lcb_scale.scale_tasks(30) if task["contexts"] in (1, 2, 5)]
    kinds = ("bandit", "contextual", "mdp", "literal mdp, split none", "literal mdp, split paper")
    chosen = [task for kind in kinds for task in [t for t in few if t["kind"] == kind][:3]]
    monkeypatch.setattr(lcb_scale, "scale_tasks", lambda datasets: chosen)
    monkeypatch.setattr(lcb_scale, "LITERAL_SIZES", np.array([10**4, 10**6]))
    monkeypatch.setattr(lcb_scale, "fit_records", lambda frame, seed: frame.head(0))
    return chosen


def test_a_scale_run_resumes_and_repeats(tmp_path, few_tasks: list[dict]) -> None:
    said: list[str] = []
    first = lcb_scale.run_scale(tmp_path, 30, report=said.append)
    assert len(said) == len(few_tasks) == 15
    next(tmp_path.iterdir()).unlink()
    again = lcb_scale.run_scale(tmp_path, 30, report=said.append)
    assert len(said) == len(few_tasks) + 1
    keep = [frame.filter(frame["metric"] != "wall_time") for frame in (first, again)]
    assert keep[0].equals(keep[1])


def test_an_unfinished_run_is_not_read_and_a_finished_one_is(
    tmp_path, few_tasks: list[dict]
) -> None:
    said: list[str] = []
    committed = lcb_scale.scale_records(tmp_path / "nothing here", 30, report=said.append)
    assert committed.equals(committed_records("lcb_scale"))
    assert "committed" in said[-1]
    assert "0 of 15" in said[-1]
    run = lcb_scale.run_scale(tmp_path, 30, report=lambda line: None)
    fresh = lcb_scale.scale_records(tmp_path, 30, report=said.append)
    assert fresh.equals(run)
    assert said[-1] == f"records: the finished run in {tmp_path}"
    next(tmp_path.iterdir()).unlink()
    assert lcb_scale.scale_records(tmp_path, 30, report=said.append).equals(committed)
    assert "14 of 15" in said[-1]


def test_the_scale_command_writes_records_and_names_a_bad_folder(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    few = lcb_scale.scale_tasks(10)[:1]
    monkeypatch.setattr(lcb_scale, "scale_tasks", lambda datasets: few)
    monkeypatch.setattr("offrl_wb.core.scale_runs.notebooks_folder", lambda: tmp_path / "nbs")
    monkeypatch.setattr("sys.argv", ["lcb_scale", str(tmp_path / "parts")])
    assert lcb_scale.main() == 0
    assert (tmp_path / "nbs" / "theory" / "records" / "lcb_scale.parquet").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["lcb_scale", str(tmp_path / "file")])
    assert lcb_scale.main() == 2
    assert "cannot write records" in capsys.readouterr().err


def test_the_committed_records_hold_every_task_and_the_fits_to_them() -> None:
    frame = committed_records("lcb_scale")
    tasks = lcb_scale.scale_tasks(10_000)
    wall_time = frame.filter(pl.col("metric") == "wall_time")
    assert wall_time["parameters_hash"].n_unique() == wall_time.height == len(tasks)
    fits = {
        (dataset, metric): value
        for dataset, metric, value in frame.select("dataset", "metric", "value").iter_rows()
    }
    for unseen in ("unseen=paper", "unseen=never"):
        for metric in lcb_scale.SURFACE_METRICS:
            low, high = (fits[unseen, metric + end] for end in ("_low", "_high"))
            assert 0 < low < fits[unseen, metric] < high
        assert fits[unseen, "r_squared"] > 0.95
    assert 1.5 < fits["slow branch", "horizon_exponent_low"] < 2
    assert 2 < fits["slow branch", "horizon_exponent_high"] < 2.5
    assert fits["fast branch", "horizon_exponent"] == pytest.approx(2, abs=0.02)
    assert ("fast branch", "horizon_exponent_low") not in fits


def test_committed_fits_are_those_of_the_committed_losses() -> None:
    frame = committed_records("lcb_scale")
    table = lcb_scale.loss_table(frame).filter(pl.col("system") == "lcb")
    for unseen in ("paper", "never"):
        part = table.filter(pl.col("world") == "contextual", pl.col("unseen") == unseen)
        fit = lcb_scale.fit_surface(*lcb_scale.surface_terms(part))
        rows = frame.filter(pl.col("dataset") == f"unseen={unseen}")
        for metric, value in zip(lcb_scale.SURFACE_METRICS, fit, strict=True):
            kept = rows.filter(pl.col("metric") == metric)["value"].item()
            assert value == pytest.approx(kept, rel=1e-4)


def test_a_sample_of_the_committed_losses_comes_again() -> None:
    frame = lcb_scale.loss_table(committed_records("lcb_scale"))
    tasks = lcb_scale.scale_tasks(10_000)
    some = [task for task in tasks if task["kind"] in ("bandit", "contextual", "mdp")]
    exact = [task for task in some if task["excess"] == 0 and task["contexts"] in (10, 50)]
    for task in [some[0], *exact[:2]]:
        fresh = lcb_scale.loss_table(lcb_scale.run_task(task, 0))
        kept = frame.filter(pl.col("parameters") == fresh["parameters"][0])
        assert np.allclose(fresh["value"], kept["value"], rtol=1e-9, atol=0)
        assert fresh["step"].equals(kept["step"])


def test_the_grid_covers_what_the_notebook_says() -> None:
    tasks = lcb_scale.scale_tasks(10_000)
    assert {t["contexts"] for t in tasks if t["kind"] == "mdp"} == {5, 50, 1000}
    assert {t["contexts"] for t in tasks if t["kind"] == "contextual"} == {2, 10, 100, 1000}
    assert {t["discount"] for t in tasks if t["kind"] == "mdp"} == {0.8, 0.9, 0.95, 0.99}
    assert min(t["excess"] for t in tasks if t["excess"]) == pytest.approx(1e-6)
    assert lcb_scale.SIZES[-1] == 10**8
    assert (lcb_scale.LITERAL_SIZES[0], lcb_scale.LITERAL_SIZES[-1]) == (10**3, 10**12)
    assert any(t["kind"] == "bandit" for t in tasks)


def test_every_size_on_an_mdp_line_has_a_world() -> None:
    kept = lcb_scale.loss_table(committed_records("lcb_scale")).filter(pl.col("world") == "mdp")
    settings = kept.select("contexts", "discount").unique()
    for contexts, discount in settings.iter_rows():
        here = kept.filter(pl.col("contexts") == contexts, pl.col("discount") == discount)
        missing_mass_mdp(int(contexts), int(here["step"].min()), discount)  # raises if it cannot be


@given(
    st.integers(0, 10**9),
    st.integers(2, 10**12),
    st.integers(2, 50),
    st.floats(0.5, 0.99),
    st.floats(0.001, 2000),
)
def test_the_width_of_a_marginal_is_that_of_the_full_table(
    visits: int, rows: int, states: int, discount: float, penalty: float
) -> None:
    width = lcb_scale.mdp_widths(np.array([visits]), rows, 7, states, discount, penalty)
    full = hoeffding_penalty(np.full((states, 2), visits), 7, 1 / rows, discount, penalty)
    assert np.allclose(full, width)


def test_vi_lcb_loses_what_the_formula_says_where_the_expert_alone_is_logged() -> None:
    losses = []
    for good in (0, 1):
        mdp, behaviour = missing_mass_mdp(8, 400, 0.8, np.full(8, good))
        counts = sample_counts(mdp, behaviour, 400, 1500, stream(1, "rare", good))
        settings = (mdp.successors, mdp.rewards, 0.8, 0.05, "none")
        plan = vi_lcb(counts, *settings, generator=stream(1, "ties", good))
        best = mdp.initial @ evaluate(mdp, np.append(np.full(8, good), [0, 0]))
        losses.append(best - evaluate(mdp, plan.actions) @ mdp.initial)
    error = np.std(losses) / np.sqrt(3000)
    assert abs(np.mean(losses) - missing_mass_mdp_loss(8, 400, 0.8)) < 4 * error


def test_the_worst_bandit_gap_is_inside_the_grid_far_out() -> None:
    sizes = np.array([10**4, 10**8])
    losses, worst = lcb_scale.bandit_losses(3.0, sizes, 1000, stream(0, "gap"))
    for rule in ("empirical_best", "lcb"):
        multiple = worst[rule] / np.sqrt(3.0 / sizes)
        assert ((multiple > 0.25) & (multiple < 16)).all()
        assert (losses[rule] < np.array([0.1, 0.001])).all()
    assert losses["most_played"].tolist() == [0.5, 0.5]


def test_the_literal_contextual_rule_is_trapped_by_what_was_never_logged() -> None:
    sizes = np.array([1000, 10**7])
    losses = lcb_scale.contextual_losses(10, 0.1, sizes, 1000, stream(0, "trap"), 2000.0, "paper")
    assert losses["lcb"][0] > 0.9
    assert losses["imitation"][0] < 0.1
    assert losses["lcb"][1] < losses["imitation"][1]


def test_the_split_rule_needs_a_row_for_every_fold() -> None:
    with pytest.raises(InputError, match="cannot be split"):
        lcb_scale.split_actions(30, 5, 0.05, np.array([0.1]), 0.9, 10, stream(0, "s"))
    with pytest.raises(InputError, match="1 - discount"):
        lcb_scale.draw_marginal(100, 5, 0.5, np.array([0.1]), 0.9, 10, stream(0, "s"))


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_a_surface_without_noise_is_recovered(slow: float, fast: float) -> None:
    x, y = stream(0, "surface").lognormal(size=(2, 60), sigma=2)
    fit = lcb_scale.fit_surface(x, y, slow * x + fast * y)
    assert np.allclose(fit, (slow, fast, 1), rtol=1e-3)


@given(st.floats(1, 4))
def test_a_horizon_exponent_is_recovered_and_the_discount_is_not_part_of_it(power: float) -> None:
    discount = np.repeat([0.8, 0.9, 0.95, 0.99], 5)
    rate = stream(0, "rate").lognormal(size=20)
    fit = lcb_scale.fit_horizon(discount, rate, 3 * discount * rate * (1 - discount) ** -power)
    assert np.allclose(fit, (power, 1))


def test_repeating_the_points_of_a_line_does_not_narrow_its_interval() -> None:
    values = stream(0, "values").normal(size=12)

    def width(times: int) -> float:
        repeated = np.repeat(values, times)
        interval = lcb_scale.line_intervals(
            lambda weights: [np.average(repeated, weights=weights)],
            np.repeat(np.arange(12), times),
            stream(0, "lines"),
        )
        return float((interval.high - interval.low)[0])

    assert width(20) == pytest.approx(width(1))
