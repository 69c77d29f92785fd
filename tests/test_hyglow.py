"""The hybrid reduction and its learners: exact books, definitions by brute force, and who wins."""

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.theory.density_ratios import (
    Problem,
    empty_statistics,
    make_problem,
    on_cells,
    population_statistics,
    residual_sums,
)
from offrl_wb.theory.hyglow import (
    FQI,
    MABO,
    CertaintyEquivalence,
    HybridData,
    HybridRun,
    MaximumLikelihood,
    cc_bound,
    count_tuples,
    empirical_tables,
    every_pair,
    first_rows,
    fqi_round,
    h2o_reduction,
    hy_q,
    hybrid_coverage,
    hybrid_weights,
    hyglow,
    hyglow_round,
    joint_objective,
    layer_classes,
    layer_models,
    offline_only,
    offline_tuples,
    random_function,
    reduced,
    regress,
    regret_traces,
    uniform_policy,
)
from offrl_wb.worlds import layered
from offrl_wb.worlds.layered import (
    Episodes,
    completeness_trap,
    decoy_chains,
    draw_episodes,
    lock_family,
    perturbed_models,
)
from offrl_wb.worlds.tabular import FiniteHorizonMDP, occupancy_horizon, plan_horizon

TRAP = completeness_trap()
TRAPPED = make_problem(TRAP.mdp, TRAP.tables, TRAP.behaviour)
OLD = offline_tuples(TRAPPED, 400)
CHAINS = decoy_chains(3, 3)
SEEDS = st.integers(0, 10**6)


def random_problem(seed: int, noise: str = "bernoulli", functions: int = 6) -> Problem:
    """Three layers, three states, two actions; a class around the truth and a broad behaviour."""
    generator = np.random.default_rng(seed)
    transition = generator.dirichlet(np.full(3, 0.4), size=(3, 3, 2))
    reward = generator.random((3, 3, 2)) / 3
    if noise == "bernoulli":  # one layer pays, so that a return is at most 1
        reward *= np.array([0, 0, 3])[:, None, None]
    mdp = FiniteHorizonMDP(generator.dirichlet(np.ones(3)), transition, reward, "", noise)
    tables = np.array(
        [plan_horizon(m).action_values for m in perturbed_models(mdp, functions, 0.6, seed)]
    )
    return make_problem(mdp, tables, occupancy_horizon(mdp, np.full((3, 3, 2), 0.5)))


def random_run(problem: Problem, seed: int, rounds: int = 40) -> HybridRun:
    old = offline_tuples(problem, rounds, seed)
    return h2o_reduction(problem, random_function, old, rounds, seed)


def both(data: HybridData) -> Episodes:
    """Old and new tuples in one."""
    assert data.offline is not None
    assert data.online is not None
    return Episodes(*(np.concatenate(p) for p in zip(data.offline, data.online, strict=True)))


def population(problem: Problem, round: int = 1) -> HybridData:
    """Infinitely much data that cover every pair."""
    wide = every_pair(problem)
    shape = problem.mdp.reward.shape
    spread = on_cells(occupancy_horizon(problem.mdp, np.full(shape, 1 / shape[2])), wide.cells)
    return HybridData(wide, population_statistics(wide, spread), round)


# The books


class Ledger:
    """Plays a cycle of policies and writes down what it was given."""

    def __init__(self) -> None:
        self.seen: list[HybridData] = []

    def fit(self, data: HybridData) -> np.ndarray:
        self.seen.append(data)
        return data.problem.functions.policies[data.round % len(data.problem.functions.policies)]


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, noise=st.sampled_from(["none", "bernoulli"]))
def test_round_t_has_t_minus_1_old_and_t_minus_1_new_tuples_in_each_layer(seed, noise):
    problem, ledger = random_problem(seed, noise), Ledger()
    old = offline_tuples(problem, 25, seed)
    run = h2o_reduction(problem, ledger, old, 25, seed)
    for past, data in enumerate(ledger.seen):
        assert data.round == past + 1
        assert len(data.offline.states) == len(data.online.states) == past
        assert all(np.array_equal(a, b[:past]) for a, b in zip(data.offline, old, strict=True))
        assert data.size == 2 * past
        assert (data.visits.sum(axis=(1, 2)) == 2 * past).all()
        tuples, layers = both(data), np.arange(3)
        visits, rewards = np.zeros((3, 3, 2)), np.zeros((3, 3, 2))
        moves = np.zeros((3, 3, 2, 3))
        for row in range(2 * past):
            place = (layers, tuples.states[row], tuples.actions[row])
            visits[place] += 1
            rewards[place] += tuples.rewards[row]
            moves[(*place, tuples.next_states[row])] += 1
        assert np.array_equal(data.visits, visits)
        assert np.allclose(data.rewards, rewards)
        assert np.array_equal(data.moves, moves)
    assert len(run.online.states) == 25


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, share=st.sampled_from(["prefix", "all", None]))
def test_what_a_learner_saw_can_be_had_again_from_the_run(seed, share):
    problem, ledger = random_problem(seed), Ledger()
    old = None if share is None else offline_tuples(problem, 20, seed)
    run = h2o_reduction(problem, ledger, old, 20, seed, share or "prefix")
    for seen in ledger.seen:
        again = run.data(seen.round)
        for name, a, b in zip(
            seen.statistics._fields, again.statistics, seen.statistics, strict=True
        ):
            assert np.allclose(a, b), name
        assert again.generator.random() == seen.generator.random()
    last = run.data(21)
    assert last.size == {"prefix": 40, "all": 40, None: 20}[share]
    first = ledger.seen[0]
    assert first.size == (20 if share == "all" else 0)


def test_the_density_is_half_the_behaviour_and_half_the_mean_of_what_was_played():
    run = random_run(TRAPPED, 3)
    data = run.data(31)
    past = np.stack(
        [
            on_cells(occupancy_horizon(TRAP.mdp, run.policies[i]), run.problem.cells)
            for i in run.chosen[:30]
        ]
    )
    expected = (run.problem.behaviour + past.mean(axis=0)) / 2
    assert np.allclose(data.statistics.density / data.size, expected)
    assert data.statistics.played.sum() == 30
    own = np.tensordot(data.statistics.played, run.problem.occupancies, axes=1)
    assert np.allclose(own, past.sum(axis=0))


def test_a_learner_that_keeps_its_data_keeps_what_it_was_given():
    ledger = Ledger()
    h2o_reduction(TRAPPED, ledger, OLD, 10)
    assert [data.size for data in ledger.seen] == list(range(0, 20, 2))
    assert [data.statistics.visits.sum() for data in ledger.seen] == list(range(0, 40, 4))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_episodes_are_those_that_the_policy_draws_from_its_rows(seed):
    problem = random_problem(seed)
    run = random_run(problem, seed, 60)
    uniforms = stream(seed, "online").random((60, 10))
    for row, number in enumerate(run.chosen):
        drawn = draw_episodes(problem.mdp, run.policies[number], uniforms[row : row + 1])
        assert all(np.array_equal(a[0], b[row]) for a, b in zip(drawn, run.online, strict=True))


def test_equal_seeds_give_equal_runs_and_others_do_not():
    runs = [hyglow(TRAPPED, None, 60, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0].online.rewards, runs[1].online.rewards)
    assert np.array_equal(runs[0].chosen, runs[1].chosen)
    assert not np.array_equal(runs[0].online.rewards, runs[2].online.rewards)


def test_two_learners_that_play_alike_see_the_same_episodes():
    policy = TRAPPED.functions.policies[3]
    first = h2o_reduction(TRAPPED, lambda data: policy, OLD, 100)
    table = (policy[..., None] == np.arange(10)).astype(float)
    second = h2o_reduction(TRAPPED, lambda data: policy.tolist(), None, 100)
    third = h2o_reduction(TRAPPED, lambda data: table, None, 100)
    for other in (second, third):
        assert all(np.array_equal(a, b) for a, b in zip(first.online, other.online, strict=True))


def test_risk_is_the_mean_regret_and_the_loss_of_the_mixture():
    run = random_run(TRAPPED, 5, 100)
    assert np.isclose(run.risk, run.regret.mean())
    assert np.isclose(run.risk, run.problem.optimum - run.mixture @ run.returns)
    assert np.isclose(run.mixture.sum(), 1)
    assert run.regret.min() >= -1e-12


# Any learner


def test_functions_classes_probabilities_and_lists_are_all_policies():
    class Plain:
        def fit(self, data):
            return data.visits.argmax(axis=-1)

    for learner in (Plain(), lambda data: [[0, 0], [0, 0]], uniform_policy):
        run = h2o_reduction(TRAPPED, learner, OLD, 30)
        assert run.regret.shape == (30,)
    assert np.allclose(h2o_reduction(TRAPPED, uniform_policy, OLD, 5).regret, 0.171)


def test_a_learner_may_return_the_same_array_changed():
    policy = np.full((2, 2, 10), 0.1)

    def sharpens(data):
        policy[:] *= 0.9
        policy[..., 0] += 1 - policy.sum(axis=-1)
        return policy

    run = h2o_reduction(TRAPPED, sharpens, OLD, 20)
    assert len(run.policies) == 20
    assert [each[0, 0, 1] for each in run.policies] == pytest.approx(0.1 * 0.9 ** np.arange(1, 21))


def test_a_policy_may_go_where_no_policy_of_the_class_goes():
    single = make_problem(TRAP.mdp, TRAP.tables[:1], TRAP.behaviour)
    run = h2o_reduction(single, uniform_policy, OLD, 200)
    assert len(np.unique(run.online.actions[:, 1])) == 10
    assert run.data(201).visits.sum() == 800


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "fit"),
        (lambda data: np.zeros((3, 3), int), "round 1"),
        (lambda data: np.full((2, 2), 10), "round 1: a policy takes actions outside 0 to 9"),
        (lambda data: np.full((2, 2, 10), 0.2), "sum to 1"),
        (lambda data: np.zeros((4, 2, 2), int), "more than one policy"),
        (lambda data: None, "round 1"),
    ],
)
def test_what_is_no_learner_or_no_policy_is_refused_in_one_line(wrong, said):
    with pytest.raises(InputError, match=said) as problem:
        h2o_reduction(TRAPPED, wrong, OLD, 10)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(rounds=0), "rounds is 0: pass a whole number of 1 or more"),
        (dict(rounds=2.5), "rounds is 2.5"),
        (dict(rounds=float("nan")), "rounds is nan"),
        (dict(learner=MaximumLikelihood(())), "needs one at least"),
        (dict(learner=MaximumLikelihood((CHAINS.mdp,))), "model 0 has layers, states and actions"),
        (dict(learner=MABO(weights="models", models=(CHAINS.mdp,))), "model 0 has layers"),
        (dict(rounds=401), "401 rounds use 401 offline tuples a layer: found 400"),
        (dict(share="half"), "'prefix' or 'all'"),
        (dict(offline=Episodes(*(np.zeros((5, 3), int),) * 4), rounds=5), "shape"),
        (dict(problem=make_problem(TRAP.mdp, TRAP.tables)), "behaviour"),
    ],
)
def test_runs_that_cannot_be_made_are_refused(change, said):
    arguments = dict(problem=TRAPPED, learner=FQI(), offline=OLD, rounds=10) | change
    with pytest.raises(InputError, match=said):
        h2o_reduction(**arguments)


def test_missing_behaviours_and_rounds_are_named():
    bare = make_problem(TRAP.mdp, TRAP.tables)
    with pytest.raises(InputError, match="behaviour"):
        offline_tuples(bare, 10)
    with pytest.raises(InputError, match="behaviour"):
        count_tuples(bare, OLD, None)
    run = random_run(TRAPPED, 0, 5)
    for round in (0, 7):
        with pytest.raises(InputError, match="rounds 1 to 6"):
            run.data(round)


def test_the_first_policy_may_be_given_and_failing_without_data_is_explained():
    def needs_data(data):
        return np.full((2, 2), 0 * (100 // data.size))

    run = h2o_reduction(TRAPPED, needs_data, OLD, 10, first=np.ones((2, 2), int))
    assert run.policies[run.chosen[0]].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ZeroDivisionError) as problem:
        h2o_reduction(TRAPPED, needs_data, OLD, 10)
    assert "no data in round 1" in problem.value.__notes__[0]

    def fails_later(data):
        assert data.round < 5
        return np.zeros((2, 2), int)

    with pytest.raises(AssertionError) as problem:
        h2o_reduction(TRAPPED, fails_later, OLD, 10)
    assert not getattr(problem.value, "__notes__", [])


# MABO.CR


def by_definition(
    data: HybridData, weights: np.ndarray, alpha: float, absolute: bool
) -> np.ndarray:
    """The objective over the raw tuples: every function, weight, sign and choice of layers."""
    tuples, answer = both(data), []
    for f in data.problem.functions.tables:
        ahead = np.vstack([f.max(axis=-1)[1:], np.zeros(f.shape[1])])
        scores = []
        for w in weights:
            errors, costs = [], []
            for h in range(len(f)):
                x, a, r, following = (column[:, h] for column in tuples)
                weight = w[h, data.problem.position[x * f.shape[2] + a]]
                errors.append((weight * (f[h, x, a] - r - ahead[h, following])).mean())
                costs.append(alpha * (weight**2).mean())
            signs = product([1, -1], repeat=len(f)) if absolute else [[1] * len(f), [-1] * len(f)]
            scores += [np.dot(sign, errors) - sum(costs) for sign in signs]
            scores += [abs(e) - c for e, c in zip(errors, costs, strict=True)]
        answer.append(max(scores))
    return np.array(answer)


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    gamma=st.sampled_from([0.01, 0.1, 1.0]),
    c_alpha=st.sampled_from([0.25, 8.0]),
    clip=st.booleans(),
    penalty=st.booleans(),
    absolute=st.booleans(),
)
def test_the_objective_is_its_definition(seed, gamma, c_alpha, clip, penalty, absolute):
    problem = random_problem(seed)
    data = random_run(problem, seed).data(20)
    learner = MABO(gamma, c_alpha, clip, penalty, absolute=absolute)
    ratios = hybrid_weights(data)
    alpha = c_alpha / (gamma * 20) if penalty else 0.0
    weights = np.minimum(ratios, gamma * 20) if clip else np.where(np.isinf(ratios), 0, ratios)
    expected = by_definition(data, weights, alpha, absolute)
    assert np.allclose(learner.objective(data), expected, atol=1e-11)
    policy, chosen = learner.fit(data), expected.argmin()
    ties = np.flatnonzero(expected <= expected[chosen] + 1e-9)
    assert any(np.array_equal(policy, problem.functions.policies[f]) for f in ties)


def test_blocks_of_weights_give_the_same_objective(monkeypatch):
    data = random_run(random_problem(4, functions=30), 4).data(30)
    whole = MABO().objective(data)
    monkeypatch.setattr("offrl_wb.theory.hyglow.BLOCK", 200)
    assert np.array_equal(MABO().objective(data), whole)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, round=st.sampled_from([1, 10, 10_000]))
def test_at_q_star_with_population_statistics_the_objective_is_at_most_zero(seed, round):
    data = population(random_problem(seed), round)
    for learner in (
        MABO(0.05), MABO(0.05, 8.0), MABO(0.3, clip=False), MABO(0.3, penalty=False),
        MABO(clip=False, penalty=False), MABO(weights="box"), MABO(absolute=False),
    ):  # fmt: skip
        assert learner.objective(data)[data.problem.optimal] <= 1e-14


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_plain_mabo_on_infinite_data_bounds_what_each_function_loses(seed):
    data = population(random_problem(seed))
    objective = MABO(clip=False, penalty=False).objective(data)
    lost = data.problem.optimum - data.problem.returns
    assert (2 * objective >= lost - 1e-12).all()  # Lemma F.2, with pi* in the class


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, alpha=st.sampled_from([0.0, 0.02, 0.5]))
def test_without_absolute_values_it_is_less_but_not_by_more_than_the_number_of_layers(seed, alpha):
    data = random_run(random_problem(seed), seed).data(25)
    sums, weights = residual_sums(data.problem, data.statistics), MABO(0.2).usable(data)
    full = joint_objective(data.statistics, sums, weights, alpha)
    signed = joint_objective(data.statistics, sums, weights, alpha, absolute=False)
    assert (signed <= full + 1e-12).all()
    assert (signed >= full / 3 - 1e-12)[full > 0].all()
    signs = np.array(list(product([1.0, -1.0], repeat=3)))
    every = (signs[:, None, :, None] * weights).reshape(-1, *weights.shape[1:])
    again = joint_objective(data.statistics, sums, every, alpha, absolute=False)
    assert np.allclose(again, full)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_box_in_closed_form_is_no_less_than_any_weight_and_attained(seed):
    data = random_run(random_problem(seed), seed).data(30)
    learner, limit = MABO(0.05, 8.0, weights="box"), 0.05 * 30
    alpha, closed = 8 / limit, MABO(0.05, 8.0, weights="box").objective(data)
    sums, visits = residual_sums(data.problem, data.statistics), data.statistics.visits
    generator = np.random.default_rng(seed)
    random = generator.uniform(-limit, limit, size=(200, *visits.shape))
    brute = joint_objective(data.statistics, sums, random, alpha)
    assert (brute <= closed + 1e-12).all()
    shares, means = visits / data.size, sums / np.maximum(visits, 1)[..., None]
    assert np.allclose(closed, limit / 32 * (shares[..., None] * means**2).sum(axis=(0, 1)))
    for f in range(3):
        best = np.clip(means[..., f] / (2 * alpha), -limit, limit)[None]
        assert np.isclose(joint_objective(data.statistics, sums, best, alpha)[f], closed[f])
    assert learner.scales(data) == (limit, alpha)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_hyglow_with_all_tables_and_the_box_is_dynamic_programming_in_the_empirical_model(seed):
    problem = random_problem(seed)
    data = random_run(problem, seed).data(35)
    dynamic = np.clip(empirical_tables(data), 0, 1)
    generator = np.random.default_rng(seed)
    others = np.clip(dynamic + generator.uniform(-0.2, 0.2, size=(60, *dynamic.shape)), 0, 1)
    tables = np.concatenate([others, dynamic[None]])
    wider = every_pair(make_problem(problem.mdp, tables, problem.behaviour.reshape(3, 3, 2)))
    again = HybridData(wider, data.statistics, data.round)
    for c_alpha in (0.25, 8.0):
        learner = MABO(0.05, c_alpha, weights="box")
        objective = learner.objective(again)
        assert objective[-1] < 1e-15
        assert objective[:-1].min() > 1e-9
        assert np.array_equal(learner.fit(again), wider.functions.policies[-1])


def test_weights_inside_the_true_model_are_the_oracles():
    problem = random_problem(8)
    data = random_run(problem, 8).data(30)
    inside = hybrid_weights(data, (problem.mdp,))
    assert np.allclose(inside, hybrid_weights(data))
    models = perturbed_models(problem.mdp, 4, 0.5, 1)
    several = hybrid_weights(data, models)
    assert several.shape == (4 * len(problem.policies), 3, len(data.problem.cells))
    assert np.allclose(several[: len(inside)], inside)
    learner = MABO(weights="models", models=models)
    assert learner.objective(data).max() >= MABO().objective(data).max() - 1e-12
    online = h2o_reduction(problem, random_function, None, 30).data(20)
    assert np.allclose(hybrid_weights(online, (problem.mdp,)), hybrid_weights(online))


def test_inside_models_the_behaviour_counts_for_the_old_tuples_and_nothing_else():
    outsider = np.full((2, 2, 10), 0.1)  # the policy of round 1 is none of the class

    def check(data: HybridData, old: int, new: int) -> None:
        assert (data.old, data.statistics.played.sum()) == (old, new)
        made = np.tensordot(data.statistics.played, data.problem.occupancies, axes=1)
        mean = (old * data.problem.behaviour + made) / max(old + new, 1)
        weights = hybrid_weights(data, (TRAP.mdp,))
        seen = (data.problem.occupancies > 0) & (mean > 0)
        expected = data.problem.occupancies / np.where(mean > 0, mean, 1)
        assert np.allclose(weights[seen], expected[seen])
        assert np.isinf(weights[(data.problem.occupancies > 0) & (mean == 0)]).all()

    for offline in (OLD, None):
        run = h2o_reduction(TRAPPED, random_function, offline, 12, first=outsider)
        check(run.data(12), 0 if offline is None else 11, 10)
        check(run.data(1), 0, 0)
    counted = run.data(12)
    only = HybridData(counted.problem, counted.statistics._replace(size=np.float64(30)), 12)
    assert only.old == 20  # where only counts exist, what no policy of the class made is old


def test_a_box_has_no_weights_to_be_listed():
    data = random_run(TRAPPED, 0, 5).data(5)
    with pytest.raises(InputError, match="the weights of a box cannot be listed"):
        hyglow_round(data, MABO(weights="box"))


def test_no_old_tuples_are_enough_to_be_asked():
    none = Episodes(*(column[:0] for column in OLD))
    assert len(offline_only(TRAPPED, MABO(), none, 5).regret) == 5


def test_without_data_nothing_is_preferred_and_infinite_weights_do_no_harm():
    empty = HybridData(every_pair(TRAPPED), empty_statistics(every_pair(TRAPPED)), 1)
    for learner in (MABO(), MABO(clip=False), MABO(weights="box"), MABO(clip=False, penalty=False)):
        assert (learner.objective(empty) == 0).all()
    assert np.isinf(hybrid_weights(empty)).any()
    assert MABO(0.1).usable(empty).max() == pytest.approx(0.1)
    assert MABO(clip=False).usable(empty).max() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        dict(gamma=0.0), dict(gamma=np.inf), dict(c_alpha=-1.0), dict(weights="all"),
        dict(weights="models"), dict(models=()), dict(weights="box", clip=False),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        MABO(**wrong)


# FQI and Hy-Q


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_regression_is_its_definition_layer_by_layer(seed):
    data = random_run(random_problem(seed), seed).data(25)
    losses, _, chosen = regress(data)
    tuples, ahead = both(data), np.zeros(3)
    for layer in (2, 1, 0):
        members = layer_classes(data.problem)[layer]
        x, a, r, following = (column[:, layer] for column in tuples)
        target = r + ahead[following]
        slow = np.array([((g[x, a] - target) ** 2).mean() for g in members.full])
        assert np.allclose(losses[layer] + (target**2).mean(), slow)
        assert slow[chosen[layer]] <= slow.min() + 1e-9
        ahead = members.full[chosen[layer]].max(axis=-1)
    policy = FQI().fit(HybridData(data.problem, data.statistics, 25, seed))
    full = [c.full[g] for c, g in zip(layer_classes(data.problem), chosen, strict=True)]
    assert (
        np.take_along_axis(np.stack(full), policy[..., None], -1)[..., 0] == np.max(full, axis=-1)
    ).all()


def test_ties_fall_on_every_candidate_alike():
    data = HybridData(every_pair(TRAPPED), population(TRAPPED).statistics, 1)
    seen = count_tuples(every_pair(TRAPPED), OLD, None)
    picks = [regress(HybridData(data.problem, seen, t))[2][1] for t in range(2000)]
    shares = np.bincount(picks, minlength=10) / 2000
    assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / 2000)


@settings(max_examples=12, deadline=None)
@given(
    seed=SEEDS,
    share=st.sampled_from(["prefix", "all"]),
    noise=st.sampled_from(["none", "bernoulli"]),
)
def test_the_reduction_with_fqi_is_hy_q_given_the_same_offline_data(seed, share, noise):
    problem = random_problem(seed, noise)
    old, zero = offline_tuples(problem, 60, seed), np.zeros((3, 3), int)
    written_out = hy_q(problem, old, 60, seed, share)
    run = h2o_reduction(problem, FQI(), old, 60, seed, share, first=zero)
    for i, j in zip(written_out.chosen, run.chosen, strict=True):
        assert np.array_equal(written_out.policies[i], run.policies[j])
    assert all(np.array_equal(a, b) for a, b in zip(written_out.online, run.online, strict=True))
    assert np.array_equal(written_out.regret, run.regret)


def test_hy_q_as_published_sees_all_old_data_from_the_start():
    few = hy_q(TRAPPED, first_rows(OLD, 50), 50, 0)
    assert len(few.offline.states) == 50
    assert few.data(1).size == 50
    assert few.data(11).size == 60


# Models, dynamic programming, baselines


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, noise=st.sampled_from(["none", "bernoulli"]))
def test_likelihoods_are_sums_over_tuples(seed, noise):
    problem = random_problem(seed, noise)
    models = perturbed_models(problem.mdp, 5, 0.5, seed)
    data = random_run(problem, seed).data(30)
    learner, tuples = MaximumLikelihood(models), both(data)
    layers = layer_models(models, data.problem)
    for h, found in enumerate(learner.likelihoods(data)):
        x, a, r, following = (column[:, h] for column in tuples)
        for total, member in zip(found, layers[h].members, strict=True):
            model = models[member]
            slow = np.log(model.transition[h, x, a, following]).sum() if h < 2 else 0.0
            mean = model.reward[h, x, a]
            if noise == "bernoulli":
                slow += np.log(np.where(r == 1, mean, 1 - mean)).sum()
            elif not np.allclose(r, mean):
                assert total < -1e8
                continue
            assert np.isclose(total, slow)


def test_with_enough_data_maximum_likelihood_plans_in_the_truth():
    for noise in ("none", "bernoulli"):
        problem = random_problem(11, noise)
        models = perturbed_models(problem.mdp, 6, 0.5, 2)[::-1]
        policy = MaximumLikelihood(models).fit(population(problem))
        assert np.array_equal(policy, plan_horizon(problem.mdp).actions)


def test_models_of_different_layers_are_put_together():
    lock = lock_family(3, 2, code=(0, 1, 0))
    chosen = tuple(m for m in lock.models if m is not lock.models[lock.optimal])
    data = population(make_problem(lock.mdp, lock.tables, lock.behaviour))
    policy = MaximumLikelihood(chosen).fit(data)  # no single model is right, every layer is
    assert policy[:, 0].tolist() == [0, 1, 0]


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_certainty_equivalence_plans_in_frequencies(seed):
    problem = random_problem(seed)
    data = population(problem)
    assert np.allclose(empirical_tables(data), plan_horizon(problem.mdp).action_values)
    assert np.array_equal(CertaintyEquivalence().fit(data), plan_horizon(problem.mdp).actions)
    few = random_run(problem, seed).data(4)
    curious = empirical_tables(few, unseen=1.0)
    assert (curious[few.visits == 0] == 1).all()
    assert (empirical_tables(few)[few.visits == 0] == 0).all()


def test_baselines_do_what_their_names_say():
    old_only = offline_only(TRAPPED, FQI(), OLD, 50, seed=1)
    assert len(old_only.policies) == 1
    counts = count_tuples(every_pair(TRAPPED), OLD, None)
    alone = FQI().fit(HybridData(every_pair(TRAPPED), counts, 400, 1))
    assert np.array_equal(old_only.policies[0], alone)
    runs = h2o_reduction(TRAPPED, random_function, OLD, 400)
    assert len(runs.policies) == len(TRAPPED.policies)
    new_only = hyglow(TRAPPED, None, 50)
    assert new_only.data(51).size == 50
    assert new_only.data(51).offline is None


def test_traces_pair_the_methods_on_the_same_randomness():
    methods = {"one": reduced(FQI()), "same": reduced(FQI()), "new": reduced(FQI(), old_data=False)}
    traces = regret_traces(TRAPPED, methods, 40, 3, seed=5)
    assert np.array_equal(traces["one"], traces["same"])
    assert not np.array_equal(traces["one"], traces["new"])
    assert np.array_equal(traces["one"], regret_traces(TRAPPED, methods, 40, 3, seed=5)["one"])
    fewer = regret_traces(TRAPPED, {"one": reduced(FQI())}, 40, 2, seed=5)
    assert np.array_equal(traces["one"][:2], fewer["one"])


# Who wins


def losses(problem: Problem, learner: object, rounds: int, seeds: int) -> np.ndarray:
    return regret_traces(problem, {"": reduced(learner)}, rounds, seeds)[""]


def test_in_the_trap_hy_q_loses_for_ever_what_the_theory_says_and_hyglow_stops():
    trapped = losses(TRAPPED, FQI(), 300, 4)
    late = trapped[:, 50:]
    error = np.sqrt(0.15**2 * 0.09 / late.size)
    assert abs(late.mean() - 0.15 * 9 / 10) < 5 * error
    free = losses(TRAPPED, MABO(0.05), 300, 4)
    assert free.sum(axis=1).max() < 2.5
    assert free[:, 50:].max() < 1e-12
    unclipped = losses(TRAPPED, MABO(0.05, clip=False), 200, 3).sum(axis=1)
    assert 3 < unclipped.mean() < 8
    assert losses(TRAPPED, MABO(0.05, 8.0), 200, 2).sum(axis=1).min() > 30


def test_the_trap_is_escaped_by_joint_minimisation_even_without_new_data():
    assert np.abs(offline_only(TRAPPED, MABO(), OLD, 5).regret).max() < 1e-12
    trapped = [offline_only(TRAPPED, FQI(), OLD, 1, seed).regret[0] for seed in range(12)]
    assert np.mean(np.array(trapped) > 0.1) > 0.5


def test_a_penalty_above_the_error_delays_until_the_predicted_visits():
    for c_alpha in (0.5, 1.0, 2.0):
        total = losses(TRAPPED, MABO(0.05, c_alpha), 300, 3).sum(axis=1).mean()
        assert total == pytest.approx(0.15 * 2 * c_alpha / (0.05 * 0.36), rel=0.25)
    assert losses(TRAPPED, MABO(0.05, 0.3), 100, 3).sum(axis=1).mean() < 1.5


def test_on_the_chains_hy_q_is_better_than_hyglow_with_ratios():
    chains = decoy_chains(6, 3, covered=(0, 1))
    problem = make_problem(chains.mdp, chains.tables, chains.behaviour)
    regression = losses(problem, FQI(), 300, 4).sum(axis=1).mean()
    ratios = losses(problem, MABO(0.01), 300, 4).sum(axis=1).mean()
    assert regression < 0.5 * ratios
    assert losses(problem, MABO(weights="box"), 300, 4).sum(axis=1).mean() < ratios / 10


# The step-through


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, round=st.sampled_from([1, 2, 30]))
def test_a_round_seen_in_full_is_the_round_that_was_played(seed, round):
    problem = random_problem(seed)
    old = offline_tuples(problem, 40, seed)
    for learner, look in ((FQI(), fqi_round), (MABO(0.1), lambda d: hyglow_round(d, MABO(0.1)))):
        run = h2o_reduction(problem, learner, old, 40, seed)
        seen = look(run.data(round))
        assert np.array_equal(seen.policy, run.policies[run.chosen[round - 1]])
        assert np.isclose(seen.earned, run.returns[run.chosen[round - 1]])


def test_the_regression_round_shows_losses_targets_and_ties():
    run = random_run(TRAPPED, 2, 60)
    data = run.data(61)
    seen, tuples = fqi_round(data), both(data)
    ahead = seen.candidates[1][seen.chosen[1]].max(axis=-1)
    target = tuples.rewards[:, 0] + ahead[tuples.next_states[:, 0]]
    for loss, candidate in zip(seen.losses[0], seen.candidates[0], strict=True):
        rated = candidate[tuples.states[:, 0], tuples.actions[:, 0]]
        assert np.isclose(loss, ((rated - target) ** 2).mean())
    for x, a in np.ndindex(2, 10):
        here = (tuples.states[:, 0] == x) & (tuples.actions[:, 0] == a)
        assert seen.visits[0, x, a] == here.sum()
        expected = target[here].mean() if here.any() else np.nan
        assert np.isclose(seen.targets[0, x, a], expected, equal_nan=True)
    assert all(tied[g] for tied, g in zip(seen.tied, seen.chosen, strict=True))
    counts_only = fqi_round(HybridData(data.problem, data.statistics, 61, data.seed))
    shift = seen.losses[1] - counts_only.losses[1]
    assert np.allclose(shift, shift[0])


@pytest.mark.parametrize("learner", [None, MABO(0.2, absolute=False), MABO(clip=False)])
def test_the_minimax_round_shows_the_weight_that_hurts_most(learner: MABO | None):
    data = random_run(TRAPPED, 6, 80).data(70)
    seen, used = hyglow_round(data, learner), learner or MABO()
    assert np.allclose(seen.objective, used.objective(data))
    assert np.allclose(seen.objective, seen.error - seen.penalty)
    shares = data.visits / data.size
    for f in range(20):
        keep = (np.arange(2) == seen.layer[f]) | (seen.layer[f] == -1)
        weight = seen.weights[seen.weight[f]] * keep[:, None, None]
        errors = np.nansum(shares * weight * seen.residuals[f], axis=(1, 2))
        together = np.abs(errors).sum() if used.absolute else abs(errors.sum())
        assert np.isclose(together, seen.error[f])
        assert np.isclose(seen.alpha * (shares * weight**2).sum(), seen.penalty[f])
    assert np.isnan(seen.residuals[:, data.visits == 0]).all()
    assert seen.tied[seen.chosen]


# Coverage and bounds


def test_coverage_is_exact():
    found = hybrid_coverage(TRAPPED)
    assert found.concentrability.tolist() == [1, 1]
    assert np.allclose(found.class_coverability, [2, 11])
    assert np.allclose(found.coverability, [10, 20])
    bare = hybrid_coverage(make_problem(TRAP.mdp, TRAP.tables))
    assert np.isinf(bare.concentrability).all()
    chains = decoy_chains(6, 3, covered=(0, 1))
    covered = hybrid_coverage(make_problem(chains.mdp, chains.tables, chains.behaviour))
    assert np.allclose(covered.concentrability, 2)
    assert np.allclose(covered.class_coverability, 6)
    lost = decoy_chains(6, 3, covered=(1, 2))
    assert np.isinf(
        hybrid_coverage(make_problem(lost.mdp, lost.tables, lost.behaviour)).concentrability
    ).any()


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=st.sampled_from([10, 1000, 10**5]))
def test_mabo_is_cc_bounded_with_the_papers_constants(seed, size):
    problem = every_pair(random_problem(seed))
    density = population(problem).statistics.density
    generator = np.random.default_rng(seed)
    mdp, best = problem.mdp, plan_horizon(problem.mdp).actions
    moves = layered.draw_counts(mdp, np.full((3, 3, 2), 0.5), size, generator)
    moves, rewards = (array.astype(float) for array in moves)
    flat = [x.reshape(3, 6, -1)[:, problem.cells] for x in (moves.sum(axis=-1), rewards, moves)]
    counts = empty_statistics(problem)._replace(
        size=np.float64(size), visits=flat[0][..., 0], rewards=flat[1][..., 0], moves=flat[2],
        density=size * density,
    )  # fmt: skip
    gamma = min(1.0, 3 / np.sqrt(size))
    policy = MABO(gamma, 8.0).fit(HybridData(problem, counts, size, seed))
    risk = problem.optimum - float((occupancy_horizon(mdp, policy) * mdp.reward).sum())
    assert risk <= cc_bound(problem, density, policy, size, gamma, 0.1)
    smaller = cc_bound(problem, density, best, 10**12, 1e-7, 0.1)
    assert smaller < 0.01  # and the bound does say something in the end


# Costs


def test_the_driver_costs_a_fraction_of_a_millisecond_a_round():
    def seconds(run: Callable[[], HybridRun]) -> float:
        run()
        times = []
        for _ in range(3):
            started = time.process_time()
            run()
            times.append(time.process_time() - started)
        return min(times)

    for learner in (MABO(0.05), FQI()):
        spent = seconds(lambda learner=learner: h2o_reduction(TRAPPED, learner, OLD, 400))
        assert spent / 400 < 0.001


def test_importing_the_module_is_light():
    code = (
        "import sys, offrl_wb.theory.hyglow;"
        "print([n for n in ('torch', 'polars', 'plotly', 'gymnasium') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
