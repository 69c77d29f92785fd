"""The report on a log: coverage is exact where it is called so, and findings follow from facts."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.app import know_your_log
from offrl_wb.app.describe import open_log, summarise
from offrl_wb.app.know_your_log import (
    BREAKS,
    Examination,
    Measure,
    check_findings,
    checks_shown,
    chosen_discount,
    counted,
    coverage_figure,
    coverage_findings,
    coverage_shown,
    distances_figure,
    examine,
    example_logs,
    findings_shown,
    learning_findings,
    log_model,
    ratio_measures,
    records_of,
    side_shown,
    sources_shown,
    spread_shown,
    table_shown,
    target_of,
)
from offrl_wb.app.reports import run_report
from offrl_wb.core.errors import InputError
from offrl_wb.core.figures import alternative_text
from offrl_wb.core.records import SCHEMA, load_records
from offrl_wb.data.dataset import Dataset, as_numpy
from offrl_wb.data.spec import Spec
from offrl_wb.worlds.tabular import TabularMDP, occupancy, value_iteration
from tests.shared_data import neorl2_file


def grid(seed: int, episodes: int = 60, length: int = 12) -> Dataset:
    """A random log of whole numbers: walks on five states with two actions."""
    generator = np.random.default_rng(seed)
    rows = episodes * length
    action = generator.integers(2, size=rows)
    seen, ahead, last = np.empty(rows, int), np.empty(rows, int), 0
    for row in range(rows):
        seen[row] = 0 if row % length == 0 else last
        step = 1 if action[row] else -1
        last = int(np.clip(seen[row] + (step if generator.random() < 0.8 else -step), 0, 4))
        ahead[row] = last
    cut = np.arange(rows) % length == length - 1
    return Dataset.from_arrays(
        seen, action, (ahead == 4) * 1.0, np.zeros(rows, bool), cut, next_observations=ahead
    )


def walk(shift: float = 0.0, episodes: int = 40, length: int = 25, seed: int = 0) -> Dataset:
    """A log of vectors; returns rise with the episode."""
    generator = np.random.default_rng(seed)
    rows = episodes * length
    seen = generator.normal(shift, size=(rows, 2)).astype(np.float32)
    quality = np.repeat(np.arange(episodes), length).astype(np.float32)
    return Dataset.from_arrays(
        seen,
        np.clip(generator.normal(size=(rows, 1)), -1, 1).astype(np.float32),
        quality,
        np.zeros(rows, bool),
        np.arange(rows) % length == length - 1,
        final_observations=seen[::length],
        spec=Spec(Box(-np.inf, np.inf, (2,)), Box(-1, 1, (1,)), discount=0.9, name="walk"),
    )


@pytest.fixture(scope="module")
def examined() -> Examination:
    return examine(walk(), walk(0.5, seed=1), scale="quick")


# Counting


def test_the_model_of_a_log_has_its_frequencies() -> None:
    dataset = grid(0)
    model = log_model(dataset, 0.9)
    assert model is not None
    assert model.states.tolist() == [0, 1, 2, 3, 4]
    assert model.counts[:-1].sum() == len(dataset)
    arrays = dataset.arrays()
    for state in range(5):
        for action in range(2):
            rows = (arrays.observations == state) & (arrays.actions == action)
            found = np.zeros(6)
            np.add.at(
                found, model.mdp.successors[state, action], model.mdp.probabilities[state, action]
            )
            assert found[:5] == pytest.approx(
                np.bincount(arrays.next_observations[rows], minlength=5) / rows.sum()
            )
            assert model.mdp.reward[state, action] == pytest.approx(arrays.rewards[rows].mean())


def test_counted_concentrability_is_that_of_the_model_solved_densely() -> None:
    dataset = grid(3)
    arrays = dataset.arrays()
    counts, paid = np.zeros((5, 2, 5)), np.zeros((5, 2))
    for state, action, ahead, reward in zip(
        arrays.observations, arrays.actions, arrays.next_observations, arrays.rewards, strict=True
    ):
        counts[state, action, ahead] += 1
        paid[state, action] += reward
    shares = counts.sum(axis=2)
    world = TabularMDP.from_dense(np.eye(5)[0], counts / shares[..., None], paid / shares, 0.9)
    visits = occupancy(world, value_iteration(world).actions)
    expected = (visits / (shares / shares.sum())).max()
    found = counted(dataset, 0.9)
    assert found is not None
    assert found.concentrability.estimate == pytest.approx(expected)
    assert found.concentrability.low < expected < found.concentrability.high


@given(st.integers(0, 20), st.floats(0, 0.95))
def test_concentrability_is_at_least_one_and_inside_its_interval(
    seed: int, discount: float
) -> None:
    found = counted(grid(seed, episodes=10), discount)
    assert found is not None
    assert found.concentrability.estimate >= 1 - 1e-9
    assert found.pairs <= found.possible <= 10


def test_an_action_that_was_never_tried_is_never_chosen() -> None:
    dataset = Dataset.from_arrays(  # action 1 was tried in state 0 only, everything costs
        [0, 1, 0, 1],
        [0, 0, 1, 0],
        [-1.0, -1, -1, -1],
        [False] * 4,
        [0, 1, 0, 1],
        next_observations=[1, 0, 1, 0],
    )
    model = log_model(dataset, 0.9)
    assert model is not None
    assert value_iteration(model.mdp).actions[1] == 0
    assert counted(dataset, 0.9).pairs == 3  # type: ignore[union-attr]


def test_names_of_states_do_not_matter_and_vectors_of_integers_are_states_too() -> None:
    dataset = grid(1)
    arrays = dataset.arrays()
    pairs = np.stack([arrays.observations + 7, arrays.observations % 2], axis=1)
    ahead = np.stack([arrays.next_observations + 7, arrays.next_observations % 2], axis=1)
    renamed = Dataset.from_arrays(
        pairs,
        arrays.actions + 3,
        arrays.rewards,
        arrays.terminated,
        arrays.truncated,
        next_observations=ahead,
    )
    assert counted(renamed, 0.9) == counted(dataset, 0.9)


def test_what_cannot_be_counted_is_not() -> None:
    assert counted(walk(), 0.9) is None
    dataset = grid(0)
    spoiled = dataset.with_columns(reward=pl.lit(float("nan")))
    assert counted(spoiled, 0.9) is None


def test_a_model_too_large_to_be_solved_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(know_your_log, "MOST_CELLS", 5)
    assert log_model(grid(0), 0.9) is None
    assert counted(grid(0), 0.9) is None


@pytest.mark.parametrize("discount", [-0.1, 1.0, float("nan")])
def test_a_discount_outside_its_range_is_refused(discount: float) -> None:
    with pytest.raises(InputError, match="discount is"):
        chosen_discount(walk(), discount)


def test_the_discount_is_the_asked_one_then_the_logs_then_a_common_one() -> None:
    assert chosen_discount(walk(), 0.5) == 0.5
    assert chosen_discount(walk(), None) == 0.9
    assert chosen_discount(grid(0), None) == 0.99


# The target


def test_the_best_tenth_is_asked_of_the_rest() -> None:
    asked = target_of(walk(), None)
    assert not isinstance(asked, str)
    assert asked.wanted.episode_count == 4
    assert asked.base.episode_count == 36
    assert asked.wanted.returns().min() > asked.base.returns().max()


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (walk(episodes=5), "fewer than 20 episodes"),
        (walk().with_columns(reward=pl.lit(1.0)), "alike"),
    ],
)
def test_without_a_best_tenth_the_report_says_why(dataset: Dataset, why: str) -> None:
    assert why in str(target_of(dataset, None))
    found = examine(dataset, scale="quick")
    assert found.target == ""
    assert why in found.remarks[0]
    assert "No target" in repr(coverage_shown(found))
    assert coverage_figure(found) is None
    assert distances_figure(found) is None


def test_logs_that_do_not_fit_together_are_one_line() -> None:
    with pytest.raises(
        InputError, match=r"observations do not fit .* 1 whole numbers a row, .* 2 reals"
    ):
        examine(walk(), grid(0), scale="quick")
    wide = walk()
    steps = np.tile(as_numpy(wide.transitions["action"]), (1, 2))
    wide = wide.with_columns(action=pl.Series(steps, dtype=pl.Array(pl.Float32, steps.shape[1])))
    with pytest.raises(InputError, match="its actions do not fit those of the log"):
        examine(walk(), wide)


def test_a_missing_classifier_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError('density ratios need scikit-learn: pip install "offrl_wb[data]"')

    monkeypatch.setattr("offrl_wb.data.coverage_estimates.require_scikit_learn", missing)
    asked = target_of(walk(), None)
    assert not isinstance(asked, str)
    measures, remarks = ratio_measures(asked, "quick", 0)
    assert measures == []
    assert "offrl_wb[data]" in remarks[0]


# Estimates


def test_a_shifted_target_is_less_covered_than_a_like_one(examined: Examination) -> None:
    alike = {m.name: m for m in examine(walk(), walk(seed=2), scale="quick").measures}
    shifted = {m.name: m for m in examined.measures}
    assert shifted["effective_share"].estimate < alike["effective_share"].estimate
    assert shifted["state_percentile"].estimate > alike["state_percentile"].estimate
    assert shifted["ratio_99"].estimate > alike["ratio_99"].estimate
    assert alike["effective_share"].estimate > 0.7


def test_every_estimate_is_called_one_and_has_an_interval(examined: Examination) -> None:
    assert {m.kind for m in examined.measures} == {"estimate"}
    for each in examined.measures:
        if each.name != "separation":
            assert each.low <= each.estimate <= each.high, each.name


def test_counted_and_estimated_concentrability_of_a_second_log_agree() -> None:
    log, other = example_logs("lake", 3)
    at = {m.name: m for m in examine(log, other, scale="quick").measures}
    exact = at["concentrability_target"]
    assert exact.kind == "counted"
    assert at["ratio_largest"].low <= exact.high
    assert at["ratio_largest"].high >= exact.low
    assert at["concentrability"].kind == "exact in its model"
    assert "state_percentile" not in at, "distances between names mean nothing"


# Findings


def test_the_planted_mistake_of_the_example_is_found_first() -> None:
    log, _ = example_logs("pendulum")
    found = examine(log, scale="quick").findings
    assert found.row(0)[:2] == ("error", "timeouts as terminals")


def test_examples_make_themselves_again() -> None:
    log, other = example_logs("pendulum", 5)
    for dataset in (log, other):
        names: dict = {}
        exec(dataset.provenance.as_python(), names)
        assert names["dataset"].content_hash == dataset.content_hash
    with pytest.raises(InputError, match="choose pendulum or lake"):
        example_logs("walker")


def test_findings_are_sorted_and_carry_the_checks(examined: Examination) -> None:
    order = ["error", "warning", "note"]
    places = [order.index(s) for s in examined.findings["severity"]]
    assert places == sorted(places)
    told = {finding.about for finding in check_findings(examined.summary.checks)}
    assert told <= set(examined.findings["about"])
    assert examined.findings["breaks"].str.len_chars().min() > 10  # type: ignore[operator]


def about(dataset: Dataset, discount: float = 0.9) -> set[str]:
    return {finding.about for finding in learning_findings(summarise(dataset), discount)}


def test_each_rule_of_learning_fires_where_it_should() -> None:
    dataset = walk()
    assert about(dataset) == {"no episode terminates"}
    assert about(dataset, 0.999) == {"no episode terminates", "a far horizon"}
    assert "few episodes" in about(dataset.select([0, 1]))
    assert "returns are alike" in about(dataset.with_columns(reward=pl.lit(1.0)))
    rare = dataset.with_columns(reward=np.eye(1000)[3])
    assert "sparse rewards" in about(rare)
    assert about(grid(0)) >= {"no discount"}
    ended = dataset.with_columns(terminated=pl.col("truncated"), truncated=pl.lit(False))
    assert about(ended) == set()


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (Measure("ratio_99", "", "", 90.0, 30.0, 200.0), "thin coverage"),
        (Measure("effective_share", "", "", 0.02, 0.01, 0.04), "small effective sample"),
        (Measure("separation", "", "", 0.99), "little overlap"),
        (Measure("concentrability", "", "", 99.0, 2.0, 200.0), "the best policy is rare"),
        (Measure("pairs_logged", "", "", 0.3), "actions never tried"),
        (Measure("beyond_own", "", "", 0.3, 0.2, 0.4), "out of the data"),
    ],
)
def test_each_rule_of_coverage_warns_only_if_the_better_end_is_bad(
    measure: Measure, expected: str
) -> None:
    assert [f.about for f in coverage_findings([measure], "t")] == [expected]
    assert coverage_findings([measure], "t")[0].breaks == BREAKS[expected]
    fine = {"effective_share": 0.5, "pairs_logged": 0.9}.get(measure.name, 0.01)
    assert coverage_findings([Measure(measure.name, "", "", fine, fine, fine)], "t") == []


# What is shown


def test_tables_are_html_and_text(examined: Examination) -> None:
    shown = table_shown("a < b", ["x", "y"], [["<1>", "2"]])
    assert "&lt;1&gt;" in shown._repr_html_()
    assert repr(shown).splitlines() == ["a < b", "x       y", "<1>     2"]
    for each in (coverage_shown(examined), findings_shown(examined.findings)):
        assert max(map(len, repr(each).splitlines())) <= 100
        assert each._repr_html_().startswith("<")
    assert sources_shown(examined.summary) is None
    told = repr(checks_shown(examined.summary.checks))
    assert told.startswith("Checks: ")
    assert "episode 0, step" in told or "the log" in told
    assert "100 %" in repr(spread_shown(examined.summary))
    assert "obs_1" in repr(side_shown(examined.summary.observations, "observation"))
    assert "distinct actions" in repr(side_shown(summarise(grid(0)).actions, "action"))
    assert repr(side_shown("images of 4 × 4", "observation")) == "images of 4 × 4"


def test_figures_say_what_they_show(examined: Examination) -> None:
    for figure in (coverage_figure(examined), distances_figure(examined)):
        assert figure is not None
        assert len(alternative_text(figure)) > 60
    assert sum(sum(bar.y) for bar in distances_figure(examined).data) == pytest.approx(2)  # type: ignore[union-attr]


def test_records_hold_the_numbers_with_their_intervals(examined: Examination) -> None:
    frame = records_of(examined, seed=4)
    assert frame.schema == pl.Schema(SCHEMA)
    at = dict(frame.select("metric", "value").rows())
    assert at["transitions"] == 1000
    assert at["episodes_truncated"] == 40
    assert at["return_mean"] == pytest.approx(walk().returns().mean())
    assert at["effective_share_low"] <= at["effective_share"] <= at["effective_share_high"]
    assert set(frame["seed"]) == {4}
    assert at["findings_error"] == 0


# The report


def report(folder: Path, **parameters: str) -> tuple[dict, str, pl.DataFrame]:
    made = run_report("know_your_log", parameters, folder, scale="quick")
    page = (made / "know_your_log.html").read_text()
    return json.loads((made / "run.json").read_text()), page, load_records(made / "records.parquet")


@pytest.mark.notebooks
def test_the_report_of_a_table_with_a_mapping(tmp_path: Path) -> None:
    frame = walk().transitions
    wide = pl.DataFrame(
        {
            "s_0": frame["obs"].arr.get(0),
            "s_1": frame["obs"].arr.get(1),
            "push": frame["action"].arr.get(0),
            "gain": frame["reward"],
            "trip": frame["episode"],
        }
    )
    wide.write_csv(tmp_path / "plant.csv")
    story, page, records = report(
        tmp_path,
        file=str(tmp_path / "plant.csv"),
        mapping="obs=s_* action=push reward=gain episode=trip",
    )
    assert story["exit_state"] == "finished"
    assert "plant.csv" in json.dumps(story["dataset"])
    assert story["dataset"]["log"]["name"] == "plant"
    assert "what learning and coverage add" in page
    assert "effective share of the log" in page
    assert {"effective_share", "return_mean"} <= set(records["metric"])
    wide.drop("s_1").write_csv(tmp_path / "narrow.csv")
    with pytest.raises(InputError, match="observations do not fit"):
        report(
            tmp_path / "out",
            file=str(tmp_path / "plant.csv"),
            compare=str(tmp_path / "narrow.csv"),
            mapping="obs=s_* action=push reward=gain episode=trip",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.notebooks
def test_a_file_that_is_no_log_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InputError, match=r"bad\.npz"):
        report(tmp_path / "out", file=str(tmp_path / "bad.npz"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "score", "finding"),
    [
        ("DMSD-train.npz", 56.64, "no episode terminates"),
        ("Simglucose-train.npz", 73.87, "constant columns"),
        ("SafetyHalfCheetah-train.npz", 73.56, "few episodes"),
    ],
)
def test_published_logs_have_their_published_scores(name: str, score: float, finding: str) -> None:
    summary = summarise(open_log(str(neorl2_file(name))))
    spreads = {row["quantity"]: row["mean"] for row in summary.spread.iter_rows(named=True)}
    assert spreads["score"] == pytest.approx(score, abs=0.005)
    found = [*check_findings(summary.checks), *learning_findings(summary, 0.99)]
    assert finding in {each.about for each in found}
    assert "error" not in {each.severity for each in found}


def test_a_published_log_does_not_cover_its_validation_part() -> None:
    train, validation = (
        open_log(str(neorl2_file(f"DMSD-{part}.npz"))) for part in ("train", "val")
    )
    at = {m.name: m for m in examine(train, validation, scale="quick").measures}
    assert at["separation"].estimate > 0.8, "another checkpoint acted there"
    assert at["effective_share"].high < 0.3
