"""The vectorised learners against slow ones that loop over transitions and weights, round by round.

The loops of `tests/glow_reference.py` were written from the paper before the library's code was
read. Each test follows a run of the library: the slow side draws the same episodes from the same
random numbers, forms its own verdict from its own list of transitions, and the library's must
agree; what ties is left to the library, as long as it picks one of those that tie.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.random import stream
from offrl_wb.theory.density_ratios import episode_statistics, make_problem, take
from offrl_wb.theory.glow import (
    GLOW,
    GOLF,
    LITERAL,
    RandomFunction,
    error_finder,
    one_moment,
    round_uniforms,
    run_online,
    thresholds,
)
from offrl_wb.theory.hyglow import FQI, MABO, MaximumLikelihood, h2o_reduction, hy_q, offline_tuples
from offrl_wb.worlds.layered import (
    Episodes,
    completeness_trap,
    contextual_bandit,
    decoy_chains,
)
from tests import glow_reference as reference
from tests.glow_reference import INFINITY, as_lists, random_tables, random_world, sparse_rows

some = settings(max_examples=40, deadline=None)
AGREE = 1e-10


# Online: GLOW and GOLF


class Watched:
    """A learner that remembers the statistics that it was last given before each round."""

    def __init__(self, learner):
        self.learner, self.given = learner, {}
        self.episodes_per_round = learner.episodes_per_round

    def start(self, problem, rounds):
        judge = self.learner.start(problem, rounds)

        def watching(statistics, before):
            assert statistics.size == pytest.approx(self.episodes_per_round * (before - 1))
            for row, round_ in enumerate(before):
                self.given[int(round_)] = take(statistics, row)
            return judge(statistics, before)

        return watching


class Online:
    """A random world and class, in both forms."""

    def __init__(self, seed, horizon, states, actions, functions, noise, rounds):
        self.mdp = random_world(seed, horizon, states, actions, noise)
        self.tables = random_tables(self.mdp, functions, seed)
        self.problem = make_problem(self.mdp, self.tables)
        self.lists = as_lists(self.tables)
        self.rounds, self.seed = rounds, seed

    def follow(self, learner, judge, block, optimism=True, fallback="least"):
        """Run the library, then the loops on the library's choices, comparing round by round."""
        each, columns = learner.episodes_per_round, 1 + 3 * self.mdp.horizon
        watched = Watched(learner)
        run = run_online(self.problem, watched, self.rounds, self.seed, block)
        drawn = round_uniforms(self.seed, 0, self.rounds, 1 + each * columns)
        uniforms = drawn[:, 1:].reshape(self.rounds, each, columns)

        def choose(candidates, excess, scores, round_):
            chosen, alive = int(run.chosen[round_ - 1]), run.alive[round_ - 1]
            for f, value in enumerate(excess):
                assert alive[f] == (value <= 1e-9) or abs(value) < 1e-8
            if not alive.any() and fallback == "random":
                return chosen
            assert chosen in candidates or (alive[chosen] and not optimism)
            return chosen

        slow = reference.run_online(self.mdp, self.lists, judge, uniforms, choose)
        assert len(run.chosen) == self.rounds
        returns = [
            reference.expected_return(self.mdp, reference.greedy(self.lists[f]))
            for f in slow.chosen
        ]
        assert run.regret == pytest.approx([self.problem.optimum - r for r in returns], abs=1e-12)
        self.compare(watched.given | {self.rounds + 1: run.statistics}, slow, each)

    def compare(self, given, slow, each):
        """What the learner was given before each round, and is left with, is what was played."""
        layers, actions = self.mdp.horizon, self.mdp.reward.shape[2]
        total, played = np.zeros((layers, len(self.problem.cells))), np.zeros(len(self.lists))
        for round_ in range(1, self.rounds + 2):
            statistics = given[round_]
            assert np.allclose(statistics.density, total, rtol=0, atol=1e-12)
            assert statistics.played.tolist() == [
                sum(played[self.problem.policy_of == p]) for p in range(len(self.problem.policies))
            ]
            data = [steps[: each * (round_ - 1)] for steps in slow.data]
            for layer, steps in enumerate(data):
                for z, cell in enumerate(self.problem.cells):
                    here = [s for s in steps if s.state * actions + s.action == cell]
                    assert statistics.visits[layer, z] == len(here)
                    paid = sum(s.reward for s in here)
                    assert statistics.rewards[layer, z] == pytest.approx(paid, abs=1e-12)
                    moves = [
                        sum(s.following == x for s in here) for x in range(len(self.mdp.initial))
                    ]
                    assert statistics.moves[layer, z].tolist() == moves
            if round_ <= self.rounds:
                visits = np.array(slow.played[round_ - 1]).reshape(layers, -1)
                total += each * visits[:, self.problem.cells]
                played[slow.chosen[round_ - 1]] += each


onlines = st.builds(
    Online,
    seed=st.integers(0, 10**6),
    horizon=st.integers(1, 3),
    states=st.sampled_from([1, 2, 3, 3]),
    actions=st.sampled_from([1, 2, 3, 3]),
    functions=st.sampled_from([1, 3, 5, 5]),
    noise=st.sampled_from(["none", "bernoulli"]),
    rounds=st.sampled_from([1, 6, 14]),
)
blocks = st.sampled_from([1, 3, 512])
constants = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([0.01, 0.2, 1.0]),
        "c_alpha": st.sampled_from([0.0, 0.05, 0.25, 8.0]),
        "c_beta": st.sampled_from([1e-3, 0.02, 0.2, 36.0]),  # the small ones rule functions out
        "clip": st.booleans(),
        "penalty": st.booleans(),
        "episodes_per_round": st.sampled_from([1, 2]),
    }
)


def slow_settings(online: Online, learner: GLOW, weight_count: int) -> reference.GlowSettings:
    return reference.GlowSettings(
        learner.gamma,
        online.rounds,
        weight_count,
        learner.delta,
        learner.c_alpha,
        learner.c_beta,
        learner.clip,
        learner.penalty,
        learner.episodes_per_round,
    )


@some
@given(
    online=onlines,
    chosen=constants,
    optimism=st.booleans(),
    fallback=st.sampled_from(["least", "random"]),
    block=blocks,
)
def test_glow_keeps_and_plays_what_loops_over_transitions_and_weights_do(
    online, chosen, optimism, fallback, block
):
    learner = GLOW(**chosen, optimism=optimism, fallback=fallback)
    settings_ = slow_settings(online, learner, len(online.problem.policies))

    def judge(run, round_):
        weights = reference.glow_weights(online.mdp, online.lists, run.played)
        return reference.glow_excess(run.data, online.lists, weights, settings_, round_)

    online.follow(learner, judge, block, optimism, fallback)


@some
@given(online=onlines, chosen=constants, others=st.integers(1, 2), block=blocks)
def test_glow_with_a_model_class_uses_the_ratios_inside_each_model(online, chosen, others, block):
    shape = online.mdp.reward.shape
    models = (online.mdp, *(random_world(k, *shape, online.mdp.noise) for k in range(others)))
    learner = GLOW(**chosen, weights="models", models=models)
    settings_ = slow_settings(online, learner, len(online.problem.policies) * len(models))

    def judge(run, round_):
        weights = reference.model_glow_weights(models, online.lists, run.chosen)
        return reference.glow_excess(run.data, online.lists, weights, settings_, round_)

    online.follow(learner, judge, block)


@some
@given(
    online=onlines,
    beta=st.one_of(st.none(), st.sampled_from([0.01, 0.3, 2.0])),
    optimism=st.booleans(),
    each=st.sampled_from([1, 2]),
    block=blocks,
)
def test_golf_compares_squared_losses_inside_the_class_of_each_layer(
    online, beta, optimism, each, block
):
    learner = GOLF(0.1, beta, optimism, each)
    sizes = len(online.lists) * online.rounds * online.mdp.horizon
    allowed = np.log(sizes / 0.1) if beta is None else beta

    def judge(run, round_):
        return reference.golf_excess(run.data, online.lists, allowed)

    online.follow(learner, judge, block, optimism)


@some
@given(online=onlines, block=blocks)
def test_the_random_baseline_never_rules_anybody_out(online, block):
    everything = [0.0] * len(online.lists)
    online.follow(RandomFunction(), lambda run, round_: everything, block, optimism=False)


@some
@given(online=onlines, chosen=constants)
def test_errors_and_thresholds_are_those_of_the_loops(online, chosen):
    learner = GLOW(**chosen)
    settings_ = slow_settings(online, learner, len(online.problem.policies))
    generator = np.random.default_rng(online.seed)
    data: list = [[] for _ in range(online.mdp.horizon)]
    played, statistics, each = [], [], learner.episodes_per_round
    find = error_finder(online.problem, "oracle", each)
    box = error_finder(online.problem, "box", each)
    for round_ in range(2, online.rounds + 2):
        f = int(generator.integers(len(online.lists)))
        policy = reference.greedy(online.lists[f])
        played.append(reference.occupancy(online.mdp, policy))
        for row in generator.random((each, 1 + 3 * online.mdp.horizon)):
            for layer, step in enumerate(reference.play(online.mdp, policy, row)):
                data[layer].append(step)
        columns = (np.array([[step[k] for step in steps] for steps in data]).T for k in range(4))
        density = np.zeros((online.mdp.horizon, len(online.problem.cells)))
        episodes = Episodes(*columns)
        counted = episode_statistics(online.problem, episodes, density)
        total = np.array(reference.mean_occupancy(played, [1.0 * each] * len(played)))
        on = total.reshape(online.mdp.horizon, -1)[:, online.problem.cells]
        statistics.append(one_moment(counted._replace(density=on)))
        limit, alpha, beta = reference.glow_constants(
            settings_, len(online.lists), online.mdp.horizon, round_
        )
        found = thresholds(
            learner.gamma,
            learner.c_alpha if learner.penalty else 0.0,
            learner.c_beta,
            learner.log_term(online.problem, online.rounds),
            np.array([round_]),
            np.array([float(len(data[0]))]),
        )
        if learner.clip:
            assert found.limit[0] == pytest.approx(limit, rel=1e-14)
        assert found.alpha[0] == pytest.approx(alpha, rel=1e-14)
        assert found.beta[0] == pytest.approx(beta, rel=1e-12)
        weights = reference.glow_weights(online.mdp, online.lists, played)
        slow = reference.glow_errors(data, online.lists, weights, found.limit[0], alpha)
        errors = find(statistics[-1], np.array([round_]), found)[0]
        scale = 1 + found.limit[0] + alpha * found.limit[0] ** 2
        assert np.allclose(errors, slow, rtol=AGREE, atol=AGREE * scale)
        upper = box(statistics[-1], np.array([round_]), found)[0]
        assert (upper >= errors - AGREE * scale).all()  # the box holds every clipped ratio
        for layer, steps in enumerate(data):
            for f, table in enumerate(online.lists):
                best = 0.0
                for pair in {(step.state, step.action) for step in steps}:
                    here = [s for s in steps if (s.state, s.action) == pair]
                    total = sum(reference.sampled_residual(table, layer, s) for s in here)
                    free = total / (2 * alpha * len(here)) if alpha else found.limit[0]
                    w = min(max(free, 0.0), found.limit[0]) if total > 0 else 0.0
                    best += (w * total - alpha * len(here) * w * w) / len(steps)
                assert upper[layer, f] == pytest.approx(best, abs=AGREE * scale)


def test_the_decoy_chains_run_alike_for_a_hundred_rounds():
    chains = decoy_chains(3, 3)
    problem, lists = make_problem(chains.mdp, chains.tables), as_lists(chains.tables)
    learner = GLOW(0.05, c_alpha=0.25, c_beta=0.05)
    run = run_online(problem, learner, 100, 1, ties="first")
    settings_ = reference.GlowSettings(0.05, 100, 3, 0.1, 0.25, 0.05)

    def judge(slow, round_):
        weights = reference.glow_weights(chains.mdp, lists, slow.played)
        return reference.glow_excess(slow.data, lists, weights, settings_, round_)

    uniforms = round_uniforms(1, 0, 100, 11)[:, None, 1:]
    slow = reference.run_online(chains.mdp, lists, judge, uniforms)
    assert slow.chosen == run.chosen.tolist()
    alive = [[value <= 1e-9 for value in row] for row in slow.excess]
    assert alive == run.alive.tolist()
    assert len(set(slow.chosen)) == 3  # every chain was tried
    assert not run.alive[-1, 1:].any()  # and every decoy refuted


def test_the_class_of_weights_is_counted_as_it_is_used():
    chains = decoy_chains(4, 3)
    problem = make_problem(chains.mdp, np.concatenate([chains.tables, chains.tables[:1]]))
    size = 6 * 5 * 100 * 3 / 0.1  # five functions, four policies
    assert GLOW(0.1).log_term(problem, 100) == pytest.approx(np.log(4 * size))
    two = GLOW(0.1, weights="models", models=(chains.mdp, chains.mdp))
    assert two.log_term(problem, 100) == pytest.approx(np.log(8 * size))
    assert GLOW(0.1, weights="zero").log_term(problem, 100) == pytest.approx(np.log(size))


def test_optimism_looks_at_the_first_states_that_were_seen():
    """Two contexts, each function hopeful about one: which is played follows the draws."""
    bandit = contextual_bandit(np.array([0.5, 0.5]), np.full((2, 2), 0.5))
    tables = np.array([[[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]]])
    run = run_online(make_problem(bandit, tables), GLOW(0.5, weights="zero"), 60, 0, ties="first")
    firsts = round_uniforms(0, 0, 60, 5)[:, 1] >= 0.5  # context 1
    seen = np.concatenate([[0], firsts.cumsum()])
    for round_ in range(1, 61):
        more = seen[round_ - 1] > (round_ - 1) / 2
        assert run.chosen[round_ - 1] == int(more)
    assert 0 < run.chosen.sum() < 60


def test_without_optimism_any_of_the_living_is_played():
    chains = decoy_chains(4, 2)
    problem = make_problem(chains.mdp, chains.tables)
    run = run_online(problem, GLOW(0.1, **LITERAL, optimism=False), 80, 0)
    assert (np.bincount(run.chosen, minlength=4) > 8).all()
    hopeful = run_online(problem, GLOW(0.1, **LITERAL), 80, 0)
    counts = np.bincount(hopeful.chosen, minlength=4)
    assert counts[0] == 0  # the decoys promise more, equally much each
    assert (counts[1:] > 8).all()


def test_literal_constants_rule_nobody_out_at_this_size():
    chains = decoy_chains(3, 2)
    problem, lists = make_problem(chains.mdp, chains.tables), as_lists(chains.tables)
    run = run_online(problem, GLOW(0.1, **LITERAL), 20, 0)
    assert run.alive.all()
    settings_ = reference.GlowSettings(0.1, 20, 3)
    played = [reference.occupancy(chains.mdp, reference.greedy(lists[f])) for f in run.chosen]
    data: list = [[], []]
    for f, row in zip(run.chosen, round_uniforms(0, 0, 20, 8)[:, 1:], strict=True):
        for layer, step in enumerate(reference.play(chains.mdp, reference.greedy(lists[f]), row)):
            data[layer].append(step)
    weights = reference.glow_weights(chains.mdp, lists, played[:-1])
    head = [steps[:-1] for steps in data]
    assert max(reference.glow_excess(head, lists, weights, settings_, 20)) < -1


# Hybrid: the reduction and its learners


class Hybrid:
    """A random world, class, behaviour and offline data, in both forms."""

    def __init__(self, seed, horizon, states, actions, functions, noise, rounds=7):
        self.mdp = random_world(seed, horizon, states, actions, noise)
        self.tables = random_tables(self.mdp, functions, seed)
        generator = np.random.default_rng([seed, 4])
        behaviour = sparse_rows(generator, (horizon, states * actions))
        self.behaviour = behaviour.reshape(self.mdp.reward.shape)
        self.problem = make_problem(self.mdp, self.tables, self.behaviour)
        self.lists = as_lists(self.tables)
        self.rounds, self.seed = rounds, seed
        self.offline = offline_tuples(self.problem, rounds, seed)
        self.tuples = [
            [
                reference.Transition(*(column[row, layer].item() for column in self.offline))
                for row in range(rounds)
            ]
            for layer in range(horizon)
        ]

    @property
    def uniforms(self) -> np.ndarray:
        return stream(self.seed, "online").random((self.rounds, 1 + 3 * self.mdp.horizon))

    def follow(self, run, verdict) -> None:
        """Let `verdict(data, played, round)` judge what the loops see in each round of `run`."""

        def fit(data, played, round_):
            assert all(len(steps) == 2 * (round_ - 1) for steps in data)
            verdict(data, played, round_)
            return run.policies[run.chosen[round_ - 1]]

        first = run.policies[run.chosen[0]]
        slow = reference.h2o(self.mdp, self.tuples, fit, self.uniforms, first)
        for layer, steps in enumerate(slow.data):
            for row, step in enumerate(steps[self.rounds :]):
                assert step == tuple(column[row, layer] for column in run.online)
        best = max(reference.expected_return(self.mdp, p) for p in run.policies)
        assert best <= self.problem.optimum + 1e-12
        regret = [self.problem.optimum - value for value in slow.returns]
        assert run.regret == pytest.approx(regret, abs=1e-12)


hybrids = st.builds(
    Hybrid,
    seed=st.integers(0, 10**6),
    horizon=st.integers(1, 3),
    states=st.integers(1, 3),
    actions=st.integers(1, 3),
    functions=st.integers(1, 4),
    noise=st.sampled_from(["none", "bernoulli"]),
)


@some
@given(
    hybrid=hybrids,
    gamma=st.sampled_from([0.01, 0.3, 1.0]),
    c_alpha=st.sampled_from([0.25, 8.0]),
    switches=st.sampled_from([(True, True), (False, True), (True, False), (False, False)]),
    absolute=st.booleans(),
)
def test_mabo_minimises_what_trying_every_weight_of_the_augmented_class_gives(
    hybrid, gamma, c_alpha, switches, absolute
):
    clip, penalty = switches
    learner = MABO(gamma, c_alpha, clip, penalty, absolute=absolute)
    judged = {}

    def watched(data):
        judged[data.round] = learner.objective(data)
        return learner.fit(data)

    run = h2o_reduction(hybrid.problem, watched, hybrid.offline, hybrid.rounds, hybrid.seed)
    policies = [reference.greedy(f) for f in hybrid.lists]

    def verdict(data, played, round_):
        ratios = reference.hybrid_weights(hybrid.mdp, hybrid.lists, played, hybrid.behaviour)
        weights = reference.augmented(ratios)
        limit = gamma * round_ if clip else INFINITY
        alpha = c_alpha / (gamma * round_) if penalty else 0.0
        arguments = (data, hybrid.lists, weights, limit, alpha, absolute)
        objectives = reference.mabo_objectives(*arguments)
        scale = 1 + (alpha * limit**2 if clip else alpha * 100)
        for found in (judged[round_], learner.objective(run.data(round_))):
            assert found == pytest.approx(objectives, rel=AGREE, abs=AGREE * scale)
        least = min(objectives)
        tied = [p for p, o in zip(policies, objectives, strict=True) if o <= least + 1e-9 * scale]
        assert run.policies[run.chosen[round_ - 1]].tolist() in tied

    hybrid.follow(run, verdict)


@some
@given(hybrid=hybrids, others=st.integers(1, 2), gamma=st.sampled_from([0.05, 1.0]))
def test_mabo_with_a_model_class_uses_the_ratios_inside_each_model(hybrid, others, gamma):
    shape = hybrid.mdp.reward.shape
    models = (hybrid.mdp, *(random_world(k, *shape, hybrid.mdp.noise) for k in range(others)))
    learner = MABO(gamma, weights="models", models=models)
    run = h2o_reduction(hybrid.problem, learner, hybrid.offline, hybrid.rounds, hybrid.seed)

    def verdict(data, played, round_):
        weights = []
        for model in models:
            past = [reference.occupancy(model, run.policies[n]) for n in run.chosen[: round_ - 1]]
            weights += reference.hybrid_weights(model, hybrid.lists, past, hybrid.behaviour)
        limit = gamma * round_
        arguments = (data, hybrid.lists, reference.augmented(weights), limit, 0.25 / limit)
        expected = reference.mabo_objectives(*arguments)
        found = learner.objective(run.data(round_))
        assert found == pytest.approx(expected, rel=AGREE, abs=AGREE * (1 + limit))

    hybrid.follow(run, verdict)


@some
@given(hybrid=hybrids)
def test_regression_picks_a_best_fit_of_every_layer(hybrid):
    run = h2o_reduction(hybrid.problem, FQI(), hybrid.offline, hybrid.rounds, hybrid.seed)

    def verdict(data, played, round_):
        fits = [reference.greedy(f) for f in reference.all_fitted(data, hybrid.lists)]
        assert run.policies[run.chosen[round_ - 1]].tolist() in fits

    hybrid.follow(run, verdict)


@some
@given(hybrid=hybrids)
def test_hy_q_regresses_on_all_offline_and_all_online_tuples(hybrid):
    run = hy_q(hybrid.problem, hybrid.offline, hybrid.rounds, hybrid.seed)
    online: list = [[] for _ in range(hybrid.mdp.horizon)]
    for round_, row in enumerate(hybrid.uniforms, start=1):
        policy = run.policies[run.chosen[round_ - 1]]
        if round_ == 1:
            assert (policy == 0).all()
        else:
            data = [old + new for old, new in zip(hybrid.tuples, online, strict=True)]
            fits = [reference.greedy(f) for f in reference.all_fitted(data, hybrid.lists)]
            assert policy.tolist() in fits
        for layer, step in enumerate(reference.play(hybrid.mdp, policy, row)):
            online[layer].append(step)
            assert step == tuple(column[round_ - 1, layer] for column in run.online)


def test_where_nothing_ties_the_whole_loops_give_the_same_runs():
    chains = decoy_chains(4, 2, covered=(0, 1))
    problem = make_problem(chains.mdp, chains.tables, chains.behaviour)
    rounds, lists = 40, as_lists(chains.tables)
    offline = offline_tuples(problem, rounds, 3)
    tuples = [
        [reference.Transition(*(c[row, layer].item() for c in offline)) for row in range(rounds)]
        for layer in range(2)
    ]
    uniforms = stream(3, "online").random((rounds, 7))
    fast = h2o_reduction(problem, FQI(), offline, rounds, 3)
    compared = []

    def fit(data, played, round_):
        fits = reference.all_fitted(data, lists)
        played_now = fast.policies[fast.chosen[round_ - 1]].tolist()
        compared.append(len(fits) == 1)
        return reference.greedy(fits[0]) if len(fits) == 1 else played_now

    slow = reference.h2o(chains.mdp, tuples, fit, uniforms, fast.policies[fast.chosen[0]])
    played = [fast.policies[number] for number in fast.chosen]
    assert [np.array(p).tolist() for p in slow.policies] == [p.tolist() for p in played]
    assert sum(compared) > 5  # the loops did decide


@some
@given(hybrid=hybrids, others=st.integers(1, 3))
def test_likelihoods_are_sums_over_transitions(hybrid, others):
    shape = hybrid.mdp.reward.shape
    models = (hybrid.mdp, *(random_world(k, *shape, hybrid.mdp.noise) for k in range(others)))
    learner = MaximumLikelihood(models)
    run = h2o_reduction(hybrid.problem, learner, hybrid.offline, hybrid.rounds, hybrid.seed)

    def verdict(data, played, round_):
        slow = np.array(reference.log_likelihoods(data, models))
        found = learner.likelihoods(run.data(round_))
        for layer, values in enumerate(found):
            best = slow[layer].max()
            assert values.max() == pytest.approx(best, rel=1e-9, abs=1e-9)
            possible = values[values > -1e8]
            expected = np.unique(np.round(slow[layer][np.isfinite(slow[layer])], 8))
            assert set(np.round(possible, 8)) <= set(expected) or np.allclose(
                np.unique(np.round(possible, 8)), expected
            )

    hybrid.follow(run, verdict)


def test_the_trap_catches_the_slow_regression_as_it_does_the_fast_one():
    trap = completeness_trap(3)
    problem = make_problem(trap.mdp, trap.tables, trap.behaviour)
    rounds = 30
    offline = offline_tuples(problem, rounds, 0)
    lists = as_lists(trap.tables)
    best = problem.functions.policies[trap.optimal]
    run = h2o_reduction(problem, lambda data: best, offline, rounds)
    data = run.data(rounds + 1)
    steps = [
        [
            reference.Transition(*(c[row, layer].item() for c in part))
            for part in (data.offline, data.online)
            for row in range(rounds)
        ]
        for layer in range(2)
    ]
    fits = reference.all_fitted(steps, lists)
    losses = [
        problem.optimum - reference.expected_return(trap.mdp, reference.greedy(f)) for f in fits
    ]
    assert len(fits) == 4  # Q* and every decoy of the second layer fit equally well
    assert sorted(losses) == pytest.approx([0, 0.15, 0.15, 0.15])
    weights = reference.augmented(
        reference.hybrid_weights(
            trap.mdp,
            lists,
            [reference.occupancy(trap.mdp, run.policies[n]) for n in run.chosen],
            trap.behaviour,
        )
    )
    limit = 0.05 * (rounds + 1)
    objectives = reference.mabo_objectives(steps, lists, weights, limit, 0.25 / limit)
    learner = MABO(0.05, 0.25)
    assert learner.objective(data) == pytest.approx(objectives, rel=AGREE, abs=AGREE)
    chosen = reference.greedy(lists[objectives.index(min(objectives))])
    assert problem.optimum == pytest.approx(reference.expected_return(trap.mdp, chosen))
