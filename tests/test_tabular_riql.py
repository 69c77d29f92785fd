"""RIQL on tables: the corruption, the pulls, the learner, and what it earns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.records import committed_records
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.theory import tabular_riql as table
from offrl_wb.theory.tabular_riql import (
    ELEMENTS,
    FIELDS,
    LEARNERS,
    MODES,
    RATES,
    TableLearner,
    chain_rows,
    clean_rows,
    learn,
    learn_grid,
    location,
    quantile_of,
    score,
    spoiled_rows,
)
from offrl_wb.worlds.lava_grid import LavaGrid, to_tabular
from offrl_wb.worlds.tabular import value_iteration

GRID = LavaGrid()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_only_the_masked_rows_of_one_column_change(element, mode):
    clean, found = clean_rows(GRID), spoiled_rows(GRID, element, mode, 0.3, 0.5, seed=4)
    for other in set(FIELDS.values()) - {FIELDS[element]}:
        assert np.array_equal(getattr(clean, other), getattr(found, other))
    was, now = (getattr(rows, FIELDS[element]) for rows in (clean, found))
    assert np.array_equal(was[~found.spoiled], now[~found.spoiled])
    assert abs(found.spoiled.mean() - 0.3) < 3 * (0.21 / len(was)) ** 0.5
    assert (was != now).any()
    again = spoiled_rows(GRID, element, mode, 0.3, 0.5, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    none = spoiled_rows(GRID, element, mode, 0.0, 0.5)
    assert np.array_equal(getattr(none, FIELDS[element]), was)


def test_an_adversary_finds_the_worst_cell_within_reach_and_the_worst_action():
    best = value_iteration(to_tabular(GRID)).values
    rows = spoiled_rows(GRID, "dynamics", "adversarial", 1.0, 0.5)
    clean = clean_rows(GRID).next_states
    place = GRID.coordinates(np.arange(121))
    for was, now in zip(clean[::97], rows.next_states[::97], strict=True):
        near = np.abs(place - place[was]).max(axis=1) <= 3
        assert near[now]
        assert best[now] == pytest.approx(best[near].min(), abs=1e-6)
    bad = spoiled_rows(GRID, "actions", "adversarial", 1.0)
    q = table.true_values(GRID)
    assert np.allclose(q[bad.states, bad.actions], q[bad.states].min(axis=1))


def test_random_rewards_forget_and_adversarial_ones_turn_round():
    clean = clean_rows(GRID).rewards
    drawn = spoiled_rows(GRID, "rewards", "random", 1.0, 0.5).rewards
    assert np.abs(drawn).max() <= 15
    assert abs(np.corrcoef(drawn, clean)[0, 1]) < 0.06
    assert not spoiled_rows(GRID, "rewards", "random", 1.0, 0.0).rewards.any()
    turned = spoiled_rows(GRID, "rewards", "adversarial", 1.0, 2.0).rewards
    assert np.array_equal(turned, -2 * clean)


def test_contamination_drags_a_mean_and_leaves_huber_s_location():
    good = np.random.default_rng(0).normal(0, 0.1, 7000)
    values = np.concatenate([good, np.full(3000, 100.0)])
    assert location(values, np.inf) == pytest.approx(values.mean())
    assert location(values, 1e-4) == pytest.approx(np.quantile(good, 5 / 7), abs=0.005)
    assert location(values, 1e-4) < 0.1


@given(st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_quantile_is_numpy_s(heads, level, seed):
    values = np.random.default_rng(seed).normal(size=(heads, 6))
    assert np.allclose(quantile_of(values, level), np.quantile(values, level, axis=0))


def test_on_a_chain_the_greedy_policy_is_value_iteration_s():
    for each in LEARNERS.values():
        patient = TableLearner(each.heads, each.quantile, each.huber_delta, 0.99, 1500)
        found = learn(chain_rows(), 5, 2, 0.9, patient)
        assert found.policy.tolist() == [1] * 5
        assert found.values == pytest.approx(0.9 ** np.arange(4, -1, -1), abs=0.03)


def plainly(rows, states, actions, discount, learner, weights, log):
    """The same sweeps, row by row, without merging."""
    q = np.zeros((learner.heads, len(log.pairs)))
    v = np.zeros(states)
    for _ in range(learner.sweeps):
        after = rows.next_states[log.order]
        go_on = ~rows.terminated[log.order]
        target = rows.rewards[log.order] + discount * go_on * v[after]
        new = q.copy()
        for p in range(len(log.pairs)):
            error = target[log.which == p] - q[:, [p]]
            pull = error if np.isinf(learner.huber_delta) else error / learner.huber_delta
            if not np.isinf(learner.huber_delta):
                pull = pull.clip(-1, 1)
            new[:, p] += learner.critic_step * (weights[:, log.which == p] * pull).sum(axis=1)
        q, low = new, np.quantile(new, learner.quantile, axis=0)
        for s in range(states):
            gap = (low - v[log.states])[log.states == s]
            if len(gap):
                share = np.bincount(rows.actions[rows.states == s], minlength=actions)
                share = share[log.pairs[log.states == s] % actions] / share.sum()
                level = np.where(gap < 0, 1 - learner.expectile, learner.expectile)
                v[s] += 2 * learner.value_step * (level * gap * share).sum()
    return q, v


@pytest.mark.parametrize("delta", [0.3, np.inf])
def test_the_sweeps_are_those_of_plain_loops(delta):
    chain = chain_rows(4, 5)
    generator = np.random.default_rng(0)
    wrong = generator.random(len(chain.states)) < 0.4
    random = generator.integers(4, size=len(chain.states))
    chain = chain._replace(next_states=np.where(wrong, random, chain.next_states))
    chain = chain._replace(states=np.where(random == 3, 0, chain.states))  # uneven counts
    learner = TableLearner(3, 0.25, delta, sweeps=25)
    log = table.by_pairs(chain, 2)
    weights = table.resamples(log, 3, table.stream(7, "tabular_riql", "heads"))
    assert np.allclose(np.add.reduceat(weights, log.first, axis=1), 1)
    found = learn(chain, 4, 2, 0.9, learner, seed=7)
    q, v = plainly(chain, 4, 2, 0.9, learner, weights, log)
    assert np.allclose(found.values, v, atol=1e-5)
    assert np.allclose(found.heads.reshape(3, -1)[:, log.pairs], q, atol=1e-5)


def test_a_huge_delta_is_the_learner_of_squared_errors_with_as_many_heads():
    rows = spoiled_rows(GRID, "dynamics", rate=0.3, seed=3)
    plain = learn_grid(GRID, rows, TableLearner(5, 0.25, np.inf, sweeps=300))
    near, far = (learn_grid(GRID, rows, TableLearner(5, 0.25, d, sweeps=300)) for d in (1e4, 0.3))
    assert np.allclose(near.values, plain.values, atol=2e-3)
    assert np.allclose(near.heads[:, :120], plain.heads[:, :120], atol=2e-3)
    assert np.abs(far.values - plain.values).max() > 1
    steps = [TableLearner(huber_delta=d).critic_step for d in (0.03, 0.3, 0.5, 10, np.inf)]
    assert steps == [0.15, 0.15, 0.15, 3.0, 0.3]


@pytest.mark.parametrize("delta", [1.0, 10.0, 30.0])
def test_a_large_delta_costs_nothing_on_the_clean_log(delta):
    assert table.returns_of(GRID, {"": TableLearner(huber_delta=delta)}, [0]).min() > 7.2


def test_riql_beats_iql_on_spoiled_dynamics_and_nothing_is_lost_on_the_clean_log():
    clean = table.returns_of(GRID, LEARNERS, [0])
    assert clean.min() > 7.2
    found = table.returns_of(GRID, LEARNERS, range(4), element="dynamics", rate=0.3)
    gap = bootstrap_interval(found[:, 2] - found[:, 0])
    assert gap.low > 3


def test_a_pair_that_the_log_does_not_have_is_never_chosen():
    rows = clean_rows(GRID)
    fewer = type(rows)(*(part[rows.actions != 1] for part in rows))
    found = learn_grid(GRID, fewer, TableLearner(sweeps=50))
    assert not (found.policy[:120] == 1).any()
    assert np.isnan(found.reduced[:120, 1]).all()
    assert np.isfinite(score(GRID, found))


def test_the_committed_curves_are_whole_and_a_point_is_made_again():
    curves = table.curves(committed_records("tabular_riql"))
    assert set(curves) == {(e, m) for e in ELEMENTS for m in MODES}
    assert all(c.shape == (3, len(RATES), table.REPLICAS) for c in curves.values())
    again = table.returns_of(GRID, LEARNERS, [0], element="dynamics", rate=0.3)
    assert curves["dynamics", "random"][:, RATES.index(0.3), 0] == pytest.approx(again[0], abs=0.5)


def test_more_rows_cure_huber_s_loss_and_not_the_mean():
    sizes = table.by_copies(committed_records("tabular_riql"))
    assert set(sizes) == set(table.CONDITIONS)
    for values in sizes.values():
        assert values.shape == (3, 3, table.REPLICAS)
        assert values[2, 1:].mean(axis=1).min() > 7.1, "Huber and RIQL with 500 rows of a pair"
    small, large = sizes["dynamics", 0.1][[0, 2], 0]
    assert bootstrap_interval(large - small).low > 3, "little bias: more rows help the mean too"
    assert sizes["dynamics", 0.3][2, 0].max() < 2, "much bias: it is not"
    again = table.returns_of(GRID, LEARNERS, [0], copies=64, element="dynamics", rate=0.3)
    assert sizes["dynamics", 0.3][1, :, 0] == pytest.approx(again[0], abs=0.5)


def test_a_task_s_records_and_what_is_refused():
    task = table.scale_tasks()[0] | {"replicas": 1}
    frame = table.run_task(task, 0)
    assert frame["system"].to_list() == list(LEARNERS)
    assert len(table.scale_tasks()) == 1 + 4 * 2 * 6 + 4 * 2
    for wrong in (dict(element="states"), dict(element="rewards", mode="bad"), dict(element="dynamics", rate=2)):  # noqa: E501  # fmt: skip
        with pytest.raises(InputError):
            spoiled_rows(GRID, **wrong)
    for wrong in (dict(heads=0), dict(quantile=2), dict(expectile=1), dict(huber_delta=0)):
        with pytest.raises(InputError):
            TableLearner(**wrong)
    assert table.excess_kurtosis(np.ones(4)) == 0
