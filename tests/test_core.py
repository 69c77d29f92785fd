"""The ground floor: errors, random streams, statistics, records, policies, scores, figures."""

import json
import os
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import trim_mean

from offrl_wb.core import errors, figures, policy, progress, random, records, scores, statistics
from offrl_wb.core.errors import InputError

floats = st.floats(-1e6, 1e6)


def test_an_input_error_is_one_line_and_a_value_error() -> None:
    problem = errors.InputError("first\n   second")
    assert str(problem) == "first second"
    assert isinstance(problem, ValueError)


@given(st.integers(0, 2**40), st.lists(st.text() | st.integers(), max_size=4))
def test_a_stream_depends_on_its_seed_and_name_alone(seed: int, keys: list) -> None:
    first = random.stream(seed, *keys).random(4)
    random.stream(seed + 1, *keys).random(100)
    assert np.array_equal(first, random.stream(seed, *keys).random(4))
    assert not np.array_equal(first, random.stream(seed, *keys, "more").random(4))


def test_keys_are_not_run_together() -> None:
    assert random.stream(0, "a", "b").random() != random.stream(0, "ab").random()
    assert random.stream(0, 1).random() != random.stream(0, "1").random()


@given(arrays(float, (5, 4), elements=st.integers(0, 2).map(float)), st.integers(0, 1000))
def test_a_random_argmax_is_an_argmax(values: np.ndarray, seed: int) -> None:
    chosen = random.argmax_random_ties(values, np.random.default_rng(seed))
    assert (values[np.arange(5), chosen] == values.max(axis=1)).all()
    assert (random.argmax_random_ties(values) == values.argmax(axis=1)).all()
    along = random.argmax_random_ties(values, np.random.default_rng(seed), axis=0)
    assert (values[along, np.arange(4)] == values.max(axis=0)).all()


def test_argmax_refuses_nan() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        random.argmax_random_ties(np.array([1, np.nan]))


@given(arrays(float, st.integers(1, 40), elements=floats))
def test_the_interquartile_mean_is_scipys_trimmed_mean(values: np.ndarray) -> None:
    expected = trim_mean(values, 0.25)
    assert np.isclose(statistics.interquartile_mean(values), expected, rtol=1e-9, atol=1e-6)


def test_the_interquartile_mean_of_a_table_flattens_it() -> None:
    table = np.arange(24.0).reshape(4, 6)
    assert statistics.interquartile_mean(table) == 11.5
    assert statistics.interquartile_mean(table, axis=1).shape == (4,)


@given(arrays(float, (8, 2), elements=floats), st.floats(-100, 100))
def test_bootstrap_intervals_move_with_the_data(samples: np.ndarray, shift: float) -> None:
    first = statistics.bootstrap_interval(samples, resamples=50)
    second = statistics.bootstrap_interval(samples + shift, resamples=50)
    assert (first.low <= first.high).all()
    assert np.allclose(second.low - first.low, shift, atol=1e-6)


def test_a_bootstrap_of_the_mean_agrees_with_one_through_a_function() -> None:
    samples = random.stream(0, "x").normal(size=(60, 3))
    fast = statistics.bootstrap_interval(samples, resamples=4000)
    slow = statistics.bootstrap_interval(samples, lambda rows: rows.mean(axis=0), resamples=4000)
    assert np.allclose(fast.low, slow.low, atol=0.02)
    assert np.array_equal(fast.estimate, slow.estimate)


def test_the_stratified_bootstrap_resamples_within_tasks() -> None:
    table = np.repeat([[0.0, 100.0]], 6, axis=0)
    assert statistics.stratified_bootstrap_interval(table) == (50, 50, 50)
    noisy = table + random.stream(0, "runs").normal(size=table.shape)
    interval = statistics.stratified_bootstrap_interval(noisy, resamples=500)
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < 5


@given(st.floats(-2, 2), st.floats(0.01, 100))
def test_a_power_law_has_its_slope(slope: float, scale: float) -> None:
    x = np.array([1.0, 3, 10, 40])
    assert np.isclose(statistics.log_log_slope(x, scale * x**slope), slope, atol=1e-9)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [0, 1]), ([0, 1], [1, 1]), ([1], [1])])
def test_a_slope_needs_positive_numbers(x: list, y: list) -> None:
    with pytest.raises(ValueError, match="positive"):
        statistics.log_log_slope(np.array(x), np.array(y))


def test_the_slope_interval_takes_the_worst_case_inside_each_resample() -> None:
    sizes = np.array([10.0, 100, 1000])
    samples = random.stream(0, "s").exponential(1, size=(3, 400, 2)) / sizes[:, None, None]
    samples[..., 1] *= 5
    worst = statistics.log_log_slope_interval(sizes, samples, lambda means: means.max(axis=-1))
    assert worst.low < -1 < worst.high


def test_a_paired_comparison_sees_through_the_seed() -> None:
    seeds = random.stream(0, "seeds").normal(size=40) * 10
    result = statistics.paired_comparison(seeds + 1, seeds)
    assert np.allclose(result.difference, 1)
    assert result.probability_first_larger == 1
    assert result.p_value < 0.01
    same = statistics.paired_comparison(seeds, seeds)
    assert (same.probability_first_larger, same.p_value) == (0.5, 1)


def test_p_values_are_uniform_under_no_difference() -> None:
    pairs = random.stream(0, "null").normal(size=(300, 2, 12))
    p_values = [statistics.paired_comparison(a, b, resamples=200).p_value for a, b in pairs]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.none(), max_size=5))
def test_the_hash_of_parameters_ignores_their_order(parameters: dict) -> None:
    backwards = dict(reversed(parameters.items()))
    assert records.parameters_hash(parameters) == records.parameters_hash(backwards)


def test_parameters_must_be_plain() -> None:
    with pytest.raises(InputError, match="plain values"):
        records.parameters_hash({"a": object()})


def example() -> pl.DataFrame:
    rows = records.Records("lcb", {"penalty": 0.5})
    rows.add(metric="suboptimality", value=0.5, world="w", dataset="d", step=3, seed=1, replica=2)
    rows.add(metric="other", value=1, system="rival", parameters={"gap": 1}, unit="s")
    return rows.frame()


def test_records_round_trip(tmp_path: Path) -> None:
    path = records.save_records(example(), tmp_path / "new" / "run.parquet")
    assert records.load_records(path).equals(example())
    assert example()["parameters"].to_list() == ['{"penalty":0.5}', '{"gap":1,"penalty":0.5}']


def test_saving_never_harms_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.save_records(example(), tmp_path / "run.parquet")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_parquet", die)
    with pytest.raises(KeyboardInterrupt):
        records.save_records(example(), path)
    monkeypatch.undo()
    assert records.load_records(path).equals(example())
    assert os.listdir(tmp_path) == ["run.parquet"]


def test_other_tables_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    with pytest.raises(InputError, match="no records at"):
        records.load_records(path)
    path.write_text("nonsense")
    with pytest.raises(InputError, match="not a readable Parquet"):
        records.load_records(path)
    example().write_parquet(path)
    with pytest.raises(InputError, match="no version"):
        records.load_records(path)
    example().write_parquet(path, metadata={records.VERSION_KEY: "99"})
    with pytest.raises(InputError, match="version 99"):
        records.load_records(path)
    with pytest.raises(InputError, match=r"missing columns \['value'\]"):
        records.save_records(example().drop("value"), path)
    with pytest.raises(InputError, match="no committed records"):
        records.committed_records("nothing of the kind")


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write records"):
        records.save_records(example(), tmp_path / "file" / "run.parquet")


def test_publishing_reaches_the_report_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OFFRL_WB_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    records.publish(example())
    records.publish_provenance({"log": "x"})
    assert not os.listdir(tmp_path)
    monkeypatch.setenv("OFFRL_WB_RUN_DIR", str(tmp_path))
    records.publish(example())
    records.publish(example())
    records.publish_provenance({"log": "x"})
    records.publish_provenance({"rows": 3})
    assert records.load_records(tmp_path / "records.parquet").height == 4
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"log": "x", "rows": 3}


@pytest.mark.parametrize(
    ("table", "message"),
    [([0.5, 0.5], "shape"), ([[0.5, 0.6]], "row 0"), ([[1, 0], [2, -1]], "row 1")],
)
def test_a_policy_table_holds_distributions(table: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        policy.TabularPolicy(np.array(table))


@given(arrays(float, (3, 4), elements=st.floats(0.01, 1)), st.integers(0, 100))
def test_a_tabular_policy_acts_within_its_support(table: np.ndarray, seed: int) -> None:
    table[:, 1] = 0
    tabular = policy.TabularPolicy(table / table.sum(axis=1, keepdims=True))
    observations = np.arange(3).repeat(20)
    actions = tabular.act(observations, np.random.default_rng(seed))
    assert (tabular.probabilities(observations)[np.arange(60), actions] > 0).all()
    assert (tabular.act(np.arange(3)) == table.argmax(axis=1)).all()


def test_callables_are_policies_and_other_things_are_not() -> None:
    wrapped = policy.as_policy(lambda observations: observations * 2)
    assert isinstance(wrapped, policy.Policy)
    assert not isinstance(wrapped, policy.DiscretePolicy)
    assert wrapped.act(np.arange(3)).tolist() == [0, 2, 4]
    with pytest.raises(InputError, match="is no policy"):
        policy.as_policy("expert")  # type: ignore[arg-type]


def test_scores_are_linear_between_their_references() -> None:
    assert scores.normalised_score(np.array([1.0, 3, 5]), 1, 5).tolist() == [0, 50, 100]
    with pytest.raises(InputError, match="high reference"):
        scores.normalised_score(np.array(1.0), 2, 2)


def test_every_figure_needs_alternative_text() -> None:
    figure = figures.new_figure("A single line that rises from left to right, slowly.")
    assert figures.alternative_text(figure).startswith("A single line")
    assert figures.alternative_text(go.Figure()) == ""
    with pytest.raises(InputError, match="30 characters"):
        figures.describe(figure, "a plot")


def test_every_role_has_a_colour_a_dash_and_a_marker_of_its_own() -> None:
    assert set(figures.COLOURS) == set(figures.LINE_DASHES) == set(figures.MARKERS)
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert len(set(figures.MARKERS.values())) == len(figures.MARKERS)
    for role in figures.COLOURS:
        go.Scatter(**figures.series_style(role))


def test_progress_hands_every_item_on(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    assert list(progress.track(range(3), "label")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("OFFRL_WB_STATIC", "0")
    assert list(progress.track(iter("ab"), "label", total=2)) == ["a", "b"]
