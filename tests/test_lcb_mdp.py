"""VI-LCB: invariants, limits, conventions, an oracle, and the staircase of the explorer."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.theory.lcb_mdp import (
    PAPER_PENALTY,
    PRACTICAL_PENALTY,
    RULES,
    behaviour_cloning,
    empirical_model,
    hoeffding_penalty,
    iteration_count,
    monotone_update,
    plan_from_folds,
    plug_in_value_iteration,
    split_folds,
    value_staircase,
    vi_lcb,
    worst_case_losses,
)
from offrl_wb.worlds.tabular import (
    TabularMDP,
    ambiguous_mdp,
    ambiguous_mdp_lower_bound,
    evaluate,
    missing_mass_mdp,
    missing_mass_mdp_loss,
    occupancy,
    sample_counts,
    value_iteration,
)

SIGNS = np.array([1, -1, 1, -1, 1])


def random_world(seed: int, discount: float = 0.9) -> tuple[TabularMDP, np.ndarray]:
    generator = np.random.default_rng(seed)
    transition = generator.dirichlet(np.full(4, 0.5), size=(4, 3))
    reward = generator.random((4, 3, 4))
    mdp = TabularMDP.from_dense(generator.dirichlet(np.ones(4)), transition, reward, discount)
    return mdp, generator.dirichlet(np.ones(12)).reshape(4, 3)


def loop_vi_lcb(folds, successors, rewards, discount, penalty, iterations, delta):
    """One data set, written out: folds[0] for pi_0, folds[t] (or the one) for sweep t."""
    states, actions, slots = successors.shape
    value_max = 1 / (1 - discount)
    log_term = penalty * np.log(2 * (iterations + 1) * states * actions / delta)
    values, policy = [0.0] * states, []
    for s in range(states):
        frequency = [sum(folds[0][s, a]) for a in range(actions)]
        policy.append(frequency.index(max(frequency)))
    for t in range(1, iterations + 1):
        data = folds[t] if len(folds) > 2 else folds[-1]
        fresh_values, fresh_policy = list(values), list(policy)
        for s in range(states):
            best, chosen = -np.inf, 0
            for a in range(actions):
                seen = sum(data[s, a])
                estimate = 0.0
                for k in range(slots):
                    if seen:
                        outcome = rewards[s, a, k] + discount * values[successors[s, a, k]]
                        estimate += data[s, a, k] / seen * outcome
                estimate -= value_max * (log_term / max(seen, 1)) ** 0.5
                if estimate > best:
                    best, chosen = estimate, a
            if best > values[s]:
                fresh_values[s], fresh_policy[s] = best, chosen
        values, policy = fresh_values, fresh_policy
    return np.array(values), np.array(policy)


@pytest.mark.parametrize("penalty", [0.0, 0.002, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_all_data_sets_at_once_give_what_a_loop_gives(seed, penalty):
    mdp, behaviour = random_world(seed, discount=0.7)
    counts = sample_counts(mdp, behaviour, 300, 12, np.random.default_rng(seed))
    plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.7, penalty, "none")
    sweeps = iteration_count(300, 0.7)
    assert (plan.iterations == sweeps).all()
    for row, data in enumerate(counts):
        values, actions = loop_vi_lcb(
            [data, data], mdp.successors, mdp.rewards, 0.7, penalty, sweeps, 1 / 300
        )
        assert plan.values[row] == pytest.approx(values, abs=1e-12)
        assert np.array_equal(plan.actions[row], actions)


@pytest.mark.parametrize("penalty", [0.0, 0.001, 0.5])
def test_folds_give_what_a_loop_over_the_same_folds_gives(penalty):
    mdp, behaviour = random_world(5, discount=0.7)
    counts = sample_counts(mdp, behaviour, 5000, 6, np.random.default_rng(5))
    sweeps = iteration_count(5000, 0.7)
    folds = split_folds(counts, sweeps + 1, np.random.default_rng(6))
    world = (mdp.successors, mdp.rewards, 0.7, penalty)
    values, actions = plan_from_folds(folds[0], folds[1:], *world, 5000, 1 / 5000)
    for row in range(6):
        looped = loop_vi_lcb(folds[:, row], *world, sweeps, 1 / 5000)
        assert values[-1, row] == pytest.approx(looped[0], abs=1e-12)
        assert np.array_equal(actions[-1, row], looped[1])


def test_paper_splitting_gives_each_sweep_its_own_fold():
    mdp, behaviour = random_world(5, discount=0.7)
    counts = sample_counts(mdp, behaviour, 5000, 6, np.random.default_rng(5))
    world = (mdp.successors, mdp.rewards, 0.7, 0.001)
    plan = vi_lcb(counts, *world, "paper", generator=np.random.default_rng(6))
    generator = np.random.default_rng(6)
    folds = split_folds(counts, iteration_count(5000, 0.7) + 1, generator)
    values, actions = plan_from_folds(folds[0], folds[1:], *world, 5000, 1 / 5000, generator)
    assert np.array_equal(plan.values, values[-1])
    assert np.array_equal(plan.actions, actions[-1])
    assert np.array_equal(plan.default_actions, actions[0])


def test_all_data_sets_at_once_are_much_faster_than_a_loop():
    mdp, behaviour = random_world(0, discount=0.7)
    counts = sample_counts(mdp, behaviour, 300, 400, np.random.default_rng(0))
    world = (mdp.successors, mdp.rewards, 0.7, 0.05)
    vi_lcb(counts[:2], *world, "none")
    started = time.process_time()
    vi_lcb(counts, *world, "none")
    together = time.process_time() - started
    started = time.process_time()
    for data in counts[:40]:
        loop_vi_lcb([data, data], *world, iteration_count(300, 0.7), 1 / 300)
    looped = 10 * (time.process_time() - started)
    assert looped > 5 * together


# Invariants


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 30, 1000, 10**5]),
    penalty=st.sampled_from([0.0, 0.01, 0.05, 0.5, 2000.0]),
)
def test_values_only_climb_from_zero_and_never_exceed_the_maximum(seed, size, penalty):
    mdp, behaviour = random_world(seed)
    counts = sample_counts(mdp, behaviour, size, 5, np.random.default_rng(seed))
    plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, penalty, "none", history=True)
    assert (plan.value_history[0] == 0).all()
    assert (np.diff(plan.value_history, axis=0) >= 0).all()
    assert plan.values.max() <= 10
    assert len(plan.value_history) == iteration_count(size, 0.9) + 1
    assert np.array_equal(plan.value_history[-1], plan.values)
    assert np.array_equal(plan.action_history[-1], plan.actions)
    assert np.array_equal(plan.action_history[0], plan.default_actions)


@pytest.mark.parametrize("penalty", [0.05, 0.5])
def test_the_certified_value_of_the_start_is_below_what_the_policy_earns(penalty):
    for world in range(4):
        mdp, behaviour = ambiguous_mdp(5, 1.05, (0.1, 0.3, 0.6, 1.0)[world], 0.9, SIGNS)
        for size in (300, 3000, 30_000, 300_000):
            counts = sample_counts(mdp, behaviour, size, 250, stream(world, "certificate", size))
            plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, penalty, "none")
            earned = evaluate(mdp, plan.actions)
            assert (plan.values @ mdp.initial <= earned @ mdp.initial + 1e-9).all()


def test_a_penalty_of_one_half_certifies_every_state_after_every_sweep():
    mdp, behaviour = ambiguous_mdp(5, 1.05, 0.3, 0.9, SIGNS)
    for size in (300, 30_000, 300_000):
        counts = sample_counts(mdp, behaviour, size, 100, stream(1, "certificate", size))
        plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, 0.5, "none", history=True)
        assert (plan.value_history <= evaluate(mdp, plan.action_history) + 1e-9).all()


def test_without_a_penalty_promises_are_broken():
    mdp, behaviour = ambiguous_mdp(5, 1.05, 0.3, 0.9, SIGNS)
    counts = sample_counts(mdp, behaviour, 1000, 200, stream(1, "broken"))
    plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, 0.0, "none")
    broken = plan.values > evaluate(mdp, plan.actions) + 1e-9
    assert broken.any(axis=-1).mean() > 0.9


def test_an_action_changes_only_where_its_value_rises():
    values, actions = np.array([[1.0, 1.0, 1.0]]), np.array([[0, 1, 1]])
    table = np.array([[[0.9, 1.0, 0.2], [0.5, 0.3, 1.5]]])
    new_values, new_actions = monotone_update(values, actions, table)
    assert new_values.tolist() == [[1.0, 1.0, 1.5]]
    assert new_actions.tolist() == [[0, 1, 1]]
    rising = monotone_update(np.zeros((1, 3)), actions, table)
    assert rising[1].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_without_penalty_and_with_the_true_model_it_is_value_iteration(discount):
    mdp, _ = random_world(3, discount)
    size = 10**9
    true_counts = np.rint(mdp.probabilities * 1e15).astype(np.int64)[None]
    values, actions = plan_from_folds(
        true_counts, true_counts[None], mdp.successors, mdp.rewards, discount, 0.0, size, 0.1
    )
    exact = value_iteration(mdp, 1e-11)
    reached = discount ** iteration_count(size, discount) / (1 - discount)
    assert np.abs(values[-1, 0] - exact.values).max() <= reached + 1e-9
    assert np.array_equal(actions[-1, 0], exact.actions)


# Imitation


@pytest.mark.parametrize("split", ["none", "paper"])
def test_the_literal_constant_gives_exactly_imitation(split):
    mdp, behaviour = ambiguous_mdp(5, 1.05, 0.5, 0.9, SIGNS)
    counts = sample_counts(mdp, behaviour, 10_000, 100, stream(0, "literal"))
    plan = vi_lcb(
        counts, mdp.successors, mdp.rewards, 0.9, 2000, split, generator=stream(0, "folds")
    )
    assert (plan.values == 0).all()
    assert np.array_equal(plan.actions, plan.default_actions)
    if split == "none":
        ties = stream(0, "folds")
        assert np.array_equal(plan.actions, behaviour_cloning(counts, ties))


def test_the_defaults_are_the_practical_choice_and_leave_imitation():
    mdp, behaviour = ambiguous_mdp(5, 1.1, 1.0, 0.9, SIGNS)
    counts = sample_counts(mdp, behaviour, 10_000, 20, stream(0, "defaults"))
    world = (counts, mdp.successors, mdp.rewards, 0.9)
    plan = vi_lcb(*world)
    named = vi_lcb(*world, penalty=PRACTICAL_PENALTY, split="none")
    assert np.array_equal(plan.values, named.values)
    assert (plan.actions[:, 1:6] == (1 - SIGNS) // 2).all()
    literal = vi_lcb(*world, penalty=PAPER_PENALTY, split="paper")
    assert (PAPER_PENALTY, PRACTICAL_PENALTY) == (2000, 0.05)
    assert np.array_equal(literal.actions, literal.default_actions)


@pytest.mark.parametrize("size", [10_000, 300_000])
def test_folds_at_one_half_do_not_leave_imitation_up_to_three_hundred_thousand(size):
    mdp, behaviour = ambiguous_mdp(5, 1.1, 1.0, 0.9, SIGNS)
    counts = sample_counts(mdp, behaviour, size, 10, stream(0, "folds", size))
    plan = vi_lcb(
        counts, mdp.successors, mdp.rewards, 0.9, 0.5, "paper", generator=stream(0, "split")
    )
    assert np.array_equal(plan.actions, plan.default_actions)
    reused = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, 0.5, "none")
    assert (reused.actions[:, 1:6] == (1 - SIGNS) // 2).all()


def test_imitation_takes_the_most_frequent_action_of_the_first_fold_only():
    mdp, behaviour = ambiguous_mdp(5, 1.1, 0.0, 0.9, SIGNS)
    counts = sample_counts(mdp, behaviour, 20_000, 30, stream(0, "first fold"))
    plan = vi_lcb(
        counts, mdp.successors, mdp.rewards, 0.9, 2000, "paper", generator=np.random.default_rng(1)
    )
    generator = np.random.default_rng(1)
    first = split_folds(counts, iteration_count(20_000, 0.9) + 1, generator)[0]
    assert np.array_equal(plan.default_actions, behaviour_cloning(first, generator))
    assert not np.array_equal(plan.default_actions, behaviour_cloning(counts))


def test_unseen_pairs_are_not_preferred_whatever_the_constant():
    successors = np.zeros((1, 2, 1), dtype=int)
    rewards = np.full((1, 2, 1), 0.5)
    counts = np.array([[[[0], [50]]]])
    for penalty in (0.05, 0.5, 2000.0, np.inf):
        plan = vi_lcb(counts, successors, rewards, 0.9, penalty, "none")
        assert plan.actions.tolist() == [[1]]


def test_ties_of_imitation_are_broken_at_random_with_a_generator():
    successors = np.zeros((1, 2, 1), dtype=int)
    counts = np.full((4000, 1, 2, 1), 3)
    plan = vi_lcb(
        counts,
        successors,
        np.zeros((1, 2, 1)),
        0.9,
        0.05,
        "none",
        generator=np.random.default_rng(0),
    )
    assert abs(plan.actions.mean() - 0.5) < 0.04
    assert (behaviour_cloning(counts) == 0).all()


# Other limits


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from([0.001, 0.02, 0.5]))
def test_without_a_future_it_is_the_contextual_bandits_rule_above_zero(seed, penalty):
    mdp, behaviour = random_world(seed, discount=0.0)
    counts = sample_counts(mdp, behaviour, 200, 20, np.random.default_rng(seed))
    plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.0, penalty, "none")
    visits, means, _ = empirical_model(counts, mdp.rewards)
    sweeps = iteration_count(200, 0.0)
    width = np.sqrt(penalty * np.log(2 * (sweeps + 1) * 12 * 200) / np.maximum(visits, 1))
    lower = means - width
    positive = lower.max(axis=-1) > 0
    expected = np.where(positive, lower.argmax(axis=-1), visits.argmax(axis=-1))
    assert np.array_equal(plan.actions, expected)
    assert plan.values == pytest.approx(np.maximum(lower.max(axis=-1), 0))


def test_no_penalty_is_the_plug_in_and_an_infinite_one_imitation():
    mdp, behaviour = random_world(7)
    counts = sample_counts(mdp, behaviour, 200, 50, np.random.default_rng(7))
    world = (counts, mdp.successors, mdp.rewards, 0.9)
    assert np.array_equal(vi_lcb(*world, 0.0, "none").actions, plug_in_value_iteration(*world))
    assert np.array_equal(vi_lcb(*world, np.inf, "none").actions, behaviour_cloning(counts))


def test_the_plug_in_is_optimal_in_its_own_model():
    mdp, behaviour = random_world(8)
    counts = sample_counts(mdp, behaviour, 3000, 1, np.random.default_rng(8))[0]
    _, _, frequencies = empirical_model(counts, mdp.rewards)
    model = TabularMDP(mdp.initial, mdp.successors, frequencies, mdp.rewards, 0.9)
    chosen = plug_in_value_iteration(counts, mdp.successors, mdp.rewards, 0.9)
    best = value_iteration(model).values
    assert evaluate(model, chosen) == pytest.approx(best, abs=10 / 3000)


# The penalty, the number of sweeps, the model


def test_the_penalty_is_the_papers_formula():
    visits = np.array([[[0, 1, 10]]])
    by_hand = 10 * np.sqrt(2000 * np.log(2 * 70 * 3 / 0.001) / np.array([1, 1, 10]))
    assert hoeffding_penalty(visits, 69, 0.001, 0.9, 2000)[0, 0] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("size", "discount", "sweeps"),
    [(1, 0.9, 0), (1000, 0.9, 69), (10_000, 0.9, 92), (1_000_000, 0.9, 138), (1000, 0.0, 6)],
)
def test_the_number_of_sweeps_is_log_n_over_one_minus_discount(size, discount, sweeps):
    assert iteration_count(size, discount) == sweeps


def test_a_single_sample_is_enough_for_imitation():
    counts = np.zeros((1, 2, 2, 1), dtype=int)
    counts[0, 1, 1, 0] = 1
    plan = vi_lcb(counts, np.zeros((2, 2, 1), dtype=int), np.ones((2, 2, 1)), 0.9, 0.05, "none")
    assert plan.iterations.tolist() == [0]
    assert plan.actions.tolist() == [[0, 1]]


def test_a_failure_probability_of_the_users_own_widens_the_penalty():
    mdp, behaviour = random_world(9)
    counts = sample_counts(mdp, behaviour, 3000, 20, np.random.default_rng(9))
    world = (counts, mdp.successors, mdp.rewards, 0.9, 0.01, "none")
    certain, default = vi_lcb(*world, 1e-9), vi_lcb(*world)
    same = vi_lcb(*world, 1 / 3000)
    assert np.array_equal(same.values, default.values)
    assert (certain.values <= default.values).all()
    assert (certain.values < default.values).any()


# Folds


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), folds=st.integers(1, 40), extra=st.integers(0, 200))
def test_folds_are_equal_and_disjoint_parts_of_the_data(seed, folds, extra):
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(folds + extra, generator.dirichlet(np.ones(8)), size=3)
    counts = counts.reshape(3, 2, 2, 2)
    parts = split_folds(counts, folds, generator)
    fold = (folds + extra) // folds
    assert parts.shape == (folds, 3, 2, 2, 2)
    assert (parts.sum(axis=(2, 3, 4)) == fold).all()
    left = counts - parts.sum(axis=0)
    assert (parts >= 0).all()
    assert (left >= 0).all()
    assert (left.sum(axis=(1, 2, 3)) == folds + extra - folds * fold).all()


def test_a_fold_is_a_hypergeometric_sample():
    counts = np.array([[[30, 10], [50, 10]]]).reshape(1, 2, 2)
    parts = split_folds(np.broadcast_to(counts, (20_000, 1, 2, 2)), 5, np.random.default_rng(0))
    share = counts / 100
    variance = 20 * share * (1 - share) * (100 - 20) / (100 - 1)
    assert np.allclose(parts.mean(axis=1), 20 * share, atol=5 * np.sqrt(3 / 20_000) * 2)
    assert np.allclose(parts.var(axis=1), variance, rtol=0.06)


@pytest.mark.parametrize(("size", "message"), [(30, "for each of its 35 folds"), (10**9, "10\\^9")])
def test_too_few_or_too_many_samples_for_folds_are_refused(size, message):
    counts = np.full((1, 1, 1, 1), size)
    with pytest.raises(InputError, match=message):
        vi_lcb(counts, np.zeros((1, 1, 1), dtype=int), np.ones((1, 1, 1)), 0.9, split="paper")


# Shapes and bad input


def test_leading_axes_of_any_kind_and_size_are_kept():
    mdp, behaviour = random_world(11)
    drawn = [sample_counts(mdp, behaviour, n, 6, np.random.default_rng(n)) for n in (50, 700)]
    counts = np.stack(drawn).reshape(2, 3, 2, 4, 3, 4)
    plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, 0.02, "none")
    assert plan.actions.shape == plan.values.shape == plan.default_actions.shape == (2, 3, 2, 4)
    assert plan.iterations.tolist() == [[[39, 39]] * 3, [[65, 65]] * 3]
    alone = vi_lcb(counts[1, 2, 0], mdp.successors, mdp.rewards, 0.9, 0.02, "none")
    assert np.array_equal(plan.values[1, 2, 0], alone.values)
    assert alone.values.shape == (4,)


GOOD = dict(
    counts=np.ones((2, 3, 2, 1), dtype=int),
    successors=np.zeros((3, 2, 1), dtype=int),
    rewards=np.ones((3, 2, 1)),
    discount=0.9,
    penalty=0.05,
    split="none",
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.ones((2, 3, 3, 1), dtype=int)}, "do not fit together"),
        ({"rewards": np.ones((3, 2))}, "do not fit together"),
        ({"counts": -np.ones((2, 3, 2, 1), dtype=int)}, "whole numbers"),
        ({"counts": np.ones((2, 3, 2, 1))}, "whole numbers"),
        ({"counts": np.zeros((2, 3, 2, 1), dtype=int)}, "at least one sample"),
        ({"counts": np.ones((0, 3, 2, 1), dtype=int)}, "at least one sample"),
        ({"rewards": np.full((3, 2, 1), 1.5)}, "must lie in"),
        ({"rewards": np.full((3, 2, 1), np.nan)}, "must lie in"),
        ({"discount": 1.0}, "discount"),
        ({"penalty": -1.0}, "penalty"),
        ({"penalty": float("nan")}, "penalty"),
        ({"split": "half"}, "split is 'half'"),
        ({"delta": 0.0}, "failure probability"),
        ({"delta": 1.5}, "failure probability"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(change, message):
    vi_lcb(**GOOD)
    with pytest.raises(InputError, match=message) as problem:
        vi_lcb(**GOOD | change)
    assert "\n" not in str(problem.value)


def test_a_history_of_data_sets_of_different_sizes_is_refused():
    counts = np.array([GOOD["counts"][0], 2 * GOOD["counts"][0]])
    with pytest.raises(InputError, match="one size"):
        vi_lcb(**GOOD | {"counts": counts}, history=True)


# What the chapter claims


def losses_of(mdp, behaviour, size, datasets, name):
    counts = sample_counts(mdp, behaviour, size, datasets, stream(0, name, size))
    world = (counts, mdp.successors, mdp.rewards, mdp.discount)
    ties = stream(0, name, "ties")
    actions = [
        behaviour_cloning(counts, ties),
        plug_in_value_iteration(*world, generator=ties),
        vi_lcb(*world, 0.05, "none", generator=ties).actions,
        vi_lcb(*world, 0.5, "none", generator=ties).actions,
    ]
    best = evaluate(mdp, value_iteration(mdp).actions) @ mdp.initial
    return best - evaluate(mdp, np.stack(actions)) @ mdp.initial


def test_every_rule_loses_what_missing_mass_says():
    losses = np.concatenate(
        [
            losses_of(*missing_mass_mdp(5, 1000, 0.9, good), 1000, 3000, f"missing {good}")
            for good in (np.array([0, 0, 1, 0, 1]), np.array([0, 1, 0, 1, 0]))
        ],
        axis=1,
    )
    error = losses.std(axis=1) / np.sqrt(losses.shape[1])
    assert (np.abs(losses.mean(axis=1) - missing_mass_mdp_loss(5, 1000, 0.9)) < 5 * error).all()


@pytest.mark.parametrize("size", [3000, 30_000])
def test_every_rule_loses_more_than_the_lower_bound_at_its_hardest_gap(size):
    gap = float(np.sqrt(5 * 1.05 / (8 * size * 0.05)))
    losses = np.concatenate(
        [
            losses_of(*ambiguous_mdp(5, 1.05, gap, 0.9, v), size, 200, f"gap {v}")
            for v in (SIGNS, -SIGNS)
        ],
        axis=1,
    )
    bound = ambiguous_mdp_lower_bound(5, 1.05, gap, 0.9, size)
    assert (losses.mean(axis=1) > bound).all()


@pytest.mark.parametrize(("concentrability", "floor"), [(1.001, 0.045), (1.01, 0.45), (1.05, 2.25)])
def test_imitation_has_a_floor_that_data_do_not_lower_and_vi_lcb_has_not(concentrability, floor):
    mdp, behaviour = ambiguous_mdp(5, concentrability, 1.0, 0.9, SIGNS)
    small, large = (losses_of(mdp, behaviour, n, 300, "floor") for n in (20_000, 2_000_000))
    for losses in (small, large):
        assert abs(losses[0].mean() - floor) < 5 * losses[0].std() / np.sqrt(300)
    assert large[2].mean() == pytest.approx(0, abs=1e-9)


def test_a_larger_constant_stays_on_the_imitation_line_for_longer():
    mdp, behaviour = ambiguous_mdp(5, 1.1, 0.5, 0.9, SIGNS)
    early, late = (losses_of(mdp, behaviour, n, 100, "knee").mean(axis=1) for n in (1000, 30_000))
    imitation, _, practical, heavy = early
    assert heavy > 0.8 * imitation
    assert practical < 0.2 * imitation
    assert late[3] < 0.05 * late[0]


def test_the_plug_in_is_fooled_by_rarely_tried_actions_and_vi_lcb_is_not():
    from offrl_wb.worlds.tabular import fork_mdp

    mdp = fork_mdp(np.ones(1), np.append(0.7, np.full(40, 0.2))[None], 0.9)
    shares = np.append(0.9, np.full(40, 0.1 / 40))
    behaviour = occupancy(mdp, np.tile(shares, (3, 1)))
    losses = losses_of(mdp, behaviour, 5000, 100, "whims").mean(axis=1)
    assert losses[0] == losses[2] == losses[3] == 0
    assert losses[1] > 3


def test_worst_case_losses_are_those_of_the_members_one_by_one():
    sizes, gaps = np.array([1000, 4000]), np.array([1.0, 0.3])
    losses = worst_case_losses(1.05, sizes, gaps, 5, 0.9, 0.05, half_datasets=6, seed=3)
    assert losses.shape == (len(RULES), 2, 3, 12)
    assert losses.min() > -1e-9
    for n, size in enumerate(sizes.tolist()):
        for half, signs in enumerate((SIGNS, -SIGNS)):
            mdp, behaviour = ambiguous_mdp(5, 1.05, 0.3, 0.9, signs)
            generator = stream(3, "ambiguous 1.05", size, 1, half)
            counts = sample_counts(mdp, behaviour, size, 6, generator)
            plan = vi_lcb(counts, mdp.successors, mdp.rewards, 0.9, 0.05, "none")
            lost = (value_iteration(mdp).values - evaluate(mdp, plan.actions)) @ mdp.initial
            logged = np.diff(np.sort(counts.sum(axis=-1)[:, :6], axis=-1))[..., 0] > 0
            settled = (logged | (plan.values[:, :6] > 0)).all(axis=-1)
            assert settled.any()
            mine = losses[RULES.index("lcb"), n, 2, 6 * half : 6 * half + 6]
            assert mine[settled] == pytest.approx(lost[settled], abs=1e-6)


def test_worst_case_losses_do_not_depend_on_the_other_concentrabilities():
    setting = (np.array([1000]), np.array([0.5]))
    alone = worst_case_losses(1.0, *setting, half_datasets=5, seed=1)
    both = worst_case_losses(1.05, *setting, half_datasets=5, seed=1)
    assert alone.shape == (4, 1, 1, 10)
    assert np.array_equal(alone, both[:, :, :1])
    other = worst_case_losses(1.05, *setting, half_datasets=5, seed=2)
    assert not np.array_equal(both, other)


# The explorer's numbers


@pytest.mark.parametrize("split", ["none", "paper"])
@pytest.mark.parametrize("penalty", [0.0, 0.05, np.inf])
@pytest.mark.parametrize("discount", [0.5, 0.9])
@pytest.mark.parametrize("excess", [0.0, 0.001, 0.1, 1.0])
def test_a_staircase_has_consistent_shapes_and_numbers(excess, discount, penalty, split):
    stairs = value_staircase(3000, excess, penalty, 0.4, discount, split, 4, seed=1)
    sweeps = iteration_count(3000, discount)
    assert (
        stairs.values.shape == stairs.policy_values.shape == stairs.actions.shape == (sweeps + 1, 7)
    )
    assert len(stairs.state_names) == len(stairs.optimal) == 7
    assert np.isfinite(stairs.values).all()
    assert (np.diff(stairs.values, axis=0) >= 0).all()
    assert (stairs.policy_values <= stairs.optimal + 1e-9).all()
    mdp, _ = ambiguous_mdp(4, 1 + excess, 0.4, discount, np.array([1, -1, 1, -1]))
    assert stairs.optimal == pytest.approx(value_iteration(mdp).values)
    assert stairs.best == pytest.approx(mdp.initial @ stairs.optimal)
    assert stairs.achieved == pytest.approx(mdp.initial @ stairs.policy_values[-1])
    assert stairs.certified == pytest.approx(mdp.initial @ stairs.values[-1])
    if penalty == np.inf:
        assert stairs.certified == 0


def test_a_staircase_climbs_higher_with_more_data():
    heights = [value_staircase(n, 0.04, 0.05, 0.4, 0.9).certified for n in (100, 10_000, 10**6)]
    assert heights[0] == 0 < heights[1] < heights[2]


def test_the_same_seed_gives_the_same_staircase():
    first, again = (value_staircase(5000, 0.04, 0.05, 0.4, 0.9, "paper", seed=3) for _ in range(2))
    other = value_staircase(5000, 0.04, 0.05, 0.4, 0.9, "none", seed=4)
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(value_staircase(5000, 0.04, 0.05, 0.4, 0.9).values, other.values)


def test_a_staircase_is_fast_enough_for_a_slider():
    fastest = {}
    for split in ("none", "paper"):
        times = []
        for _ in range(5):
            started = time.process_time()
            value_staircase(10**6, 0.04, 0.05, 0.4, 0.95, split, 4)
            times.append(time.process_time() - started)
        fastest[split] = min(times)
    assert max(fastest.values()) < 0.3  # about 0.02 s on a quiet machine


def test_importing_the_module_needs_no_plots_frames_or_torch():
    heavy = "{'torch', 'polars', 'plotly', 'pandas', 'gymnasium'}"
    code = f"import sys, offrl_wb.theory.lcb_mdp; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
