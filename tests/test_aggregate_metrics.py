"""Aggregates, profiles, choices over runs: against rliable if it is at hand, and closed forms."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu

from offrl_wb.core.errors import InputError
from offrl_wb.core.records import Records
from offrl_wb.protocols.aggregate_metrics import (
    AGGREGATES,
    YARDSTICKS,
    aggregate_values,
    aggregates,
    choose,
    chosen_scores,
    comparison_table,
    curves_from_records,
    expected_best,
    final_and_best,
    held_out_scores,
    learning_curve,
    performance_profile,
    probability_of_improvement,
    selection_scores,
    selection_table,
    task_table,
)

GENERATOR = np.random.default_rng(3)
FIRST = GENERATOR.normal(0.5, 0.3, size=(10, 6))
SECOND = GENERATOR.normal(0.6, 0.2, size=(8, 6)).round(1)
SECOND[0] = FIRST[0] = FIRST[0].round(1)  # some ties


@pytest.fixture(scope="module")
def rliable():
    """The package, if it can be imported; its `arch` does not know pandas 3, hence the patch."""
    pandas = pytest.importorskip("pandas", reason="rliable needs pandas")
    patch = pytest.MonkeyPatch()
    if int(pandas.__version__.split(".")[0]) >= 3:
        from pandas.util import _decorators

        patch.setattr(_decorators, "deprecate_kwarg", lambda *names, **more: lambda made: made)
    try:
        import rliable.library
        import rliable.metrics
    except ImportError:
        pytest.skip("the rliable package is not installed: pip install rliable")
    finally:
        patch.undo()
    return rliable


@pytest.mark.parametrize("scores", [FIRST, SECOND, FIRST[:3, :1], SECOND[:1]])
def test_the_estimates_are_rliables(rliable, scores):
    metrics = rliable.metrics
    theirs = [
        metrics.aggregate_mean(scores),
        metrics.aggregate_median(scores),
        metrics.aggregate_iqm(scores),
        metrics.aggregate_optimality_gap(scores),
    ]
    assert aggregate_values(scores, ceiling=1.0) == pytest.approx(theirs)


def test_intervals_agree_with_rliables(rliable):
    np.random.seed(0)  # noqa: NPY002 (rliable draws from NumPy's global generator)
    _, found = rliable.library.get_interval_estimates(
        {"first": FIRST}, lambda scores: aggregate_values(scores, 1.0), reps=4000
    )
    ours = aggregates(FIRST, ceiling=1.0, resamples=4000)
    for number, name in enumerate(AGGREGATES):
        low, high = found["first"][:, number]
        assert ours[name].low == pytest.approx(low, abs=0.12 * (high - low))
        assert ours[name].high == pytest.approx(high, abs=0.12 * (high - low))


def test_profiles_are_rliables(rliable):
    thresholds = np.linspace(-0.2, 1.2, 15)
    np.random.seed(0)  # noqa: NPY002
    profile, ends = rliable.library.create_performance_profile(
        {"second": SECOND}, thresholds, reps=2000
    )
    ours = performance_profile(SECOND, thresholds, resamples=2000)
    assert ours.estimate == pytest.approx(profile["second"])
    assert ours.low == pytest.approx(ends["second"][0], abs=0.05)
    assert ours.high == pytest.approx(ends["second"][1], abs=0.05)


def test_the_probability_of_improvement_is_rliables(rliable):
    theirs = rliable.metrics.probability_of_improvement(FIRST, SECOND)
    ours = probability_of_improvement(FIRST, SECOND, resamples=2000)
    assert ours.estimate == pytest.approx(theirs)
    np.random.seed(0)  # noqa: NPY002
    _, found = rliable.library.get_interval_estimates(
        {"pair": (FIRST, SECOND)},
        lambda x, y: np.array([rliable.metrics.probability_of_improvement(x, y)]),
        reps=400,
    )
    low, high = found["pair"][:, 0]
    assert ours.low == pytest.approx(low, abs=0.03)
    assert ours.high == pytest.approx(high, abs=0.03)


def test_the_probability_of_improvement_is_mann_whitneys():
    for task in range(6):
        first, second = FIRST[:, [task]], SECOND[:, [task]]
        u = mannwhitneyu(first[:, 0], second[:, 0], alternative="greater").statistic
        found = probability_of_improvement(first, second, resamples=10)
        assert found.estimate == pytest.approx(u / 80)


@settings(max_examples=50, deadline=None)
@given(arrays(float, (4, 3), elements=st.integers(-3, 3).map(float)))
def test_improvement_and_its_reverse_sum_to_one(scores):
    other = np.roll(scores, 1, axis=1)
    forth = probability_of_improvement(scores, other, resamples=50)
    back = probability_of_improvement(other, scores, resamples=50)
    assert forth.estimate + back.estimate == pytest.approx(1)
    assert forth.low - 1e-12 <= forth.high
    assert -1e-12 <= forth.low <= forth.high <= 1 + 1e-12


@settings(max_examples=50, deadline=None)
@given(
    arrays(float, (5, 4), elements=st.floats(-50, 150)),
    st.floats(0.1, 5),
    st.floats(-20, 20),
)
def test_aggregates_move_with_the_scale(scores, factor, shift):
    before, after = aggregate_values(scores, 100.0), aggregate_values(factor * scores + shift, 100)
    assert after[:3] == pytest.approx(factor * before[:3] + shift, abs=1e-8)
    assert before[3] >= 0
    profile = performance_profile(scores, np.linspace(-60, 160, 23), resamples=20).estimate
    assert (np.diff(profile) <= 0).all()
    assert profile[0] == 1
    assert profile[-1] == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    held = []
    for number in range(80):
        scores = generator.normal(50, 10, size=(10, 5))
        found = aggregates(scores, resamples=200, seed=number)
        held += [[found[name].low < 50 < found[name].high for name in AGGREGATES[:3]]]
    assert (np.mean(held, axis=0) > 0.82).all()
    assert (np.mean(held, axis=0) < 1).all()


def test_final_and_best():
    curves = np.array([[[1.0, 5.0, 3.0]], [[4.0, 0.0, 2.0]]])
    found = final_and_best(curves)
    assert found.final.tolist() == [[3], [2]]
    assert found.best.tolist() == [[5], [4]]
    assert final_and_best(curves, last=2).final.tolist() == [[4], [1]]
    with pytest.raises(InputError, match="last is 4, and a run has 3 evaluations"):
        final_and_best(curves, last=4)


def test_a_learning_curve_draws_whole_runs():
    rising = np.linspace(0, 1, 6) + 10 * np.arange(8)[:, None, None]  # (8, 1, 6): runs differ
    found = learning_curve(np.repeat(rising, 2, axis=1), resamples=400)
    assert found.estimate == pytest.approx(35 + np.linspace(0, 1, 6))
    # the runs' levels are the only noise: it is the same at all evaluations
    assert found.high - found.low == pytest.approx(np.full(6, (found.high - found.low)[0]))
    assert (found.low < found.estimate).all()


def test_the_best_configuration_is_chosen_by_its_criterion():
    criterion = np.array([[[1.0, 3.0], [2.5, 2.5], [np.nan, 9.0]], [[0, 0], [0, 0], [-1, -1]]])
    assert choose(criterion).tolist() == [1, 0]
    online = np.arange(12.0).reshape(2, 3, 2)
    assert chosen_scores(online, choose(criterion)).tolist() == [[2, 3], [6, 7]]
    with pytest.raises(InputError, match="no configuration has a criterion"):
        choose(np.full((2, 3, 1), np.nan))


@settings(max_examples=60, deadline=None)
@given(arrays(float, (2, 4, 3), elements=st.floats(-10, 10)), st.integers(0, 100))
def test_no_choice_beats_the_oracle(online, seed):
    criterion = np.random.default_rng(seed).normal(size=online.shape)
    found = selection_scores(online, {"any criterion": criterion}, default=2)
    best = found["oracle"].mean()
    for name in ("any criterion", "default", "any"):
        assert found[name].mean() <= best + 1e-12
    assert (found["default"] == online[:, 2].T).all()
    assert found["any"].mean() == pytest.approx(online.mean())
    assert all(scores.shape == (3, 2) for scores in found.values())


def test_held_out_seeds_are_judged_by_the_others():
    online = np.array([[9.0, 0.0, 0.0], [2.0, 3.0, 2.0]])
    # seed 0: others sum to 0 and 5, hence 1; seed 1: 9 and 4, hence 0; seed 2: 9 and 5, hence 0
    assert held_out_scores(online).tolist() == [2, 0, 0]
    with pytest.raises(InputError, match="two seeds"):
        held_out_scores(np.ones((3, 1)))


def test_holding_out_takes_the_flattery_away():
    noise = np.random.default_rng(0).normal(size=(3000, 10, 4))
    assert chosen_scores(noise, choose(noise)).mean() == pytest.approx(1.539 / 2, abs=0.02)
    assert abs(held_out_scores(noise).mean()) < 5 / 12_000**0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_a_budget_buys_something_between_the_mean_and_the_best(scores):
    found = expected_best(np.array(scores), np.arange(1, 30))
    assert found[0] == pytest.approx(np.mean(scores), abs=1e-9)
    assert (np.diff(found) >= -1e-9).all()
    assert found[-1] <= max(scores) + 1e-9
    assert float(expected_best(np.array(scores), 10**6)) == pytest.approx(max(scores), abs=1e-3)


def test_a_budget_of_two_by_enumeration():
    values = np.array([4.0, 1.0, 7.0])
    pairs = np.maximum(values[:, None], values)
    assert float(expected_best(values, 2)) == pytest.approx(pairs.mean())
    with pytest.raises(InputError, match="the budget is 0"):
        expected_best(values, 0)


@pytest.mark.parametrize("name", YARDSTICKS)
def test_no_criterion_can_take_the_place_of_a_yardstick(name):
    online = np.random.default_rng(0).normal(size=(2, 3, 4))
    for call in (selection_scores, selection_table):
        with pytest.raises(InputError, match=f"no criterion may be called '{name}'"):
            call(online, {"fitted Q": online, name: -online})


def test_only_the_oracles_count_as_online_whatever_criteria_are_called():
    online = np.random.default_rng(0).normal(size=(2, 3, 4))
    criteria = {"oracle of Delphi": -online, "Default": online, "any other": online}
    table = selection_table(online, criteria, default=1, resamples=50)
    assert dict(table.select("rule", "online").iter_rows()) == {
        "oracle": True,
        "oracle, held-out seeds": True,
        "oracle of Delphi": False,
        "Default": False,
        "any other": False,
        "default": False,
        "any": False,
    }
    score = dict(table.select("rule", "score").iter_rows())
    assert score["oracle"] == pytest.approx(online.mean(axis=2).max(axis=1).mean())
    assert score["default"] == pytest.approx(online[:, 1].mean())


def test_the_table_of_choices():
    generator = np.random.default_rng(1)
    quality = 50 + 10 * generator.normal(size=(4, 8, 1))
    online = quality + generator.normal(size=(4, 8, 5))
    table = selection_table(online, {"validation": quality + 0 * online}, resamples=200)
    assert table["rule"].to_list() == [
        "oracle",
        "oracle, held-out seeds",
        "validation",
        "default",
        "any",
    ]
    assert table["online"].to_list() == [True, True, False, False, False]
    assert (table["low"] <= table["score"]).all()
    assert (table["score"] <= table["high"]).all()
    assert table["regret"][0] == 0
    assert table["regret"][2] < 1
    assert table["regret"][4] > 5
    single = selection_table(online[:, :, :1], {}, resamples=50)
    assert single["rule"].to_list() == ["oracle", "default", "any"]


def test_what_cannot_be_compared_is_refused():
    scores = np.ones((3, 4))
    missing = scores.copy()
    missing[1, 2] = np.nan
    for message, function, values in (
        ("the score of runs 1, tasks 2 is nan: a run is missing", aggregates, (missing,)),
        (r"\(runs, tasks\), none of them empty: found \(4,\)", aggregates, (scores[0],)),
        (r"found \(0, 4\)", performance_profile, (scores[:0], [0.0])),
        ("3 and 4 tasks", probability_of_improvement, (scores[:, :3], scores)),
        ("criterion 'loss' has shape", selection_scores, (np.ones((2, 3, 4)), {"loss": scores})),
        ("the default is 3, and there are 3", selection_scores, (np.ones((2, 3, 4)), {}, 3)),
        ("2 names, and the scores have 4 tasks", task_table, (scores, ["a", "b"])),
    ):
        with pytest.raises(InputError, match=message):
            function(*values)


def made_records(parameters=None, seeds=3, steps=(0, 100), worlds=("maze", "plant"), skip=()):
    records = Records("iql", {"expectile": 0.7})
    for world in worlds:
        for seed in range(seeds):
            for step in steps:
                if (world, seed, step) not in skip:
                    value = 1000 * (world == "plant") + 10 * seed + step / 100
                    settings = {"world": world, "dataset": "log", "seed": seed, "step": step}
                    name = "evaluation/score"
                    records.add(metric=name, value=value, parameters=parameters, **settings)
    return records.frame()


def test_records_become_curves_whatever_their_order():
    frame = made_records().sample(fraction=1, shuffle=True, seed=1)
    (found,) = curves_from_records(frame).values()
    assert found.tasks == ("maze log", "plant log")
    assert found.steps.tolist() == [0, 100]
    assert found.scores.shape == (3, 2, 2)
    assert found.scores[2].tolist() == [[20, 21], [1020, 1021]]


def test_runs_of_other_parameters_are_another_system():
    both = pl.concat([made_records(), made_records({"expectile": 0.9})])
    found = curves_from_records(both)
    assert len(found) == 2
    assert all(name.startswith("iql ") for name in found)
    assert all(curves.scores.shape == (3, 2, 2) for curves in found.values())
    with pytest.raises(
        InputError, match=r"two values for task maze log, seed 0.*parameters differ"
    ):
        curves_from_records(both, by="system")


def test_parameters_that_belong_to_a_task_can_be_joined():
    by_task = [
        made_records(worlds=("maze",)),
        made_records({"expectile": 0.9}, worlds=("plant",)),
    ]
    (found,) = curves_from_records(pl.concat(by_task), by="system").values()
    assert found.scores.shape == (3, 2, 2)


def test_what_a_diverged_run_lacks_is_asked_for():
    frame = made_records(skip=[("plant", 1, 100)])
    with pytest.raises(
        InputError, match=r"iql has no value for task plant log, seed 1, .*step 100"
    ):
        curves_from_records(frame)
    (found,) = curves_from_records(frame, missing=-5.0).values()
    assert found.scores[1].tolist() == [[10, 11], [1010, -5]]


def test_records_that_do_not_fit_are_refused():
    frame = made_records(skip=[("plant", 2, 0), ("plant", 2, 100)])
    with pytest.raises(InputError, match=r"different numbers of runs: .*'maze log': 3"):
        curves_from_records(frame)
    with pytest.raises(InputError, match=r"no records of 'loss': there are .'evaluation/score'"):
        curves_from_records(frame, "loss")
    with pytest.raises(InputError, match="by is 'name'"):
        curves_from_records(frame, by="name")


def test_tables_for_people():
    curves = {name: np.random.default_rng(i).normal(size=(6, 3, 5)) for i, name in enumerate("ab")}
    table = comparison_table(curves, last=2, resamples=100)
    assert table["system"].to_list() == ["a", "b"]
    assert table["runs"].to_list() == [6, 6]
    assert table["tasks"].to_list() == [3, 3]
    assert (table["best"] > table["final"]).all()
    assert (table["final_low"] <= table["final"]).all()
    assert (table["final"] <= table["final_high"]).all()
    tasks = task_table(curves["a"][:, :, 0], ["x", "y", "z"], resamples=100)
    assert tasks["score"].to_list() == pytest.approx(curves["a"][:, :, 0].mean(axis=0).tolist())
    assert (tasks["low"] < tasks["high"]).all()
