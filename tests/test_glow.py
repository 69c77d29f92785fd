"""GLOW and GOLF against loops, block invariance, identities of the regret, validity, limits."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.theory import glow
from offrl_wb.theory.density_ratios import (
    FunctionClass,
    Problem,
    data_weights,
    make_problem,
    population_statistics,
    residual_sums,
    worst_errors,
)
from offrl_wb.theory.glow import (
    GLOW,
    GOLF,
    LITERAL,
    PRACTICAL,
    RandomFunction,
    Run,
    alive_spans,
    class_log_term,
    error_finder,
    gamma_curve,
    layer_terms,
    log_every_mixture,
    log_weight_count,
    one_moment,
    pick,
    potential,
    potential_bound,
    promised_values,
    proof_trace,
    ratio_table,
    regret_decomposition,
    round_uniforms,
    rounds_to_shrink,
    run_online,
    settle,
    theorem_gamma,
    thresholds,
    visits_to_refute,
)
from offrl_wb.worlds.layered import (
    Instance,
    class_of_models,
    completeness_trap,
    decoy_chains,
    draw_episodes,
    lock_family,
    perturbed_models,
)
from offrl_wb.worlds.tabular import FiniteHorizonMDP, evaluate_horizon, plan_horizon


def problem_of(instance: Instance) -> Problem:
    return make_problem(instance.mdp, instance.tables)


CHAINS = problem_of(decoy_chains(5, 3))
TRAP = problem_of(completeness_trap())
LOCK_FAMILY = lock_family(horizon=3, actions=2)
LOCK = problem_of(LOCK_FAMILY)


def random_problem(seed: int, noise: str = "bernoulli", functions: int = 6) -> Problem:
    """A random world of 3 layers and its Q* beside those of perturbed worlds."""
    generator = np.random.default_rng(seed)
    mdp = FiniteHorizonMDP(
        generator.dirichlet(np.ones(3)),
        generator.dirichlet(np.full(3, 0.5), size=(3, 3, 2)),
        generator.random((3, 3, 2)) / 3,
        "random",
        noise,
    )
    own = plan_horizon(mdp).action_values
    shifted = own + generator.normal(0, 0.15, size=(functions - 1, *own.shape))
    return make_problem(mdp, np.clip(np.concatenate([own[None], shifted]), 0, 1))


# The set and the choice


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    optimism=st.booleans(),
    fallback=st.sampled_from(["least", "random"]),
)
def test_candidates_are_the_most_hopeful_survivors_or_the_fallback(seed, optimism, fallback):
    generator = np.random.default_rng(seed)
    excess = generator.integers(-1, 3, size=(20, 5)).astype(float)
    promised = generator.integers(0, 3, size=(20, 5)) / 2
    verdict = settle(excess, promised, optimism, fallback)
    for row in range(20):
        alive = [f for f in range(5) if excess[row, f] <= 0]
        best = max((promised[row, f] for f in alive), default=None)
        wanted = [f for f in alive if not optimism or promised[row, f] == best]
        if not alive:
            least = excess[row].min()
            wanted = [f for f in range(5) if fallback == "random" or excess[row, f] == least]
        assert np.flatnonzero(verdict.alive[row]).tolist() == alive
        assert np.flatnonzero(verdict.candidates[row]).tolist() == wanted


def test_ties_are_broken_evenly_and_zero_takes_the_first():
    candidates = np.tile([False, True, False, True, True], (30_000, 1))
    drawn = pick(candidates, np.random.default_rng(0).random(30_000))
    assert np.bincount(drawn, minlength=5)[[0, 2]].sum() == 0
    assert np.allclose(np.bincount(drawn, minlength=5)[[1, 3, 4]] / 30_000, 1 / 3, atol=0.02)
    assert (pick(candidates[:3], np.zeros(3)) == 1).all()
    assert (pick(candidates[:3], np.full(3, 1 - 1e-16)) == 4).all()


def test_promises_are_averages_over_the_first_states_that_were_seen():
    problem = random_problem(1)
    run = run_online(problem, RandomFunction(), 50)
    starts = run.statistics.starts
    assert starts.sum() == 50
    expected = problem.functions.values[:, 0] @ (starts / 50)
    assert np.allclose(promised_values(problem, one_moment(run.statistics))[0], expected)
    before = one_moment(glow.empty_statistics(problem))
    exact = problem.functions.values[:, 0] @ problem.mdp.initial
    assert np.allclose(promised_values(problem, before)[0], exact)


# Constants


def test_thresholds_are_those_of_the_algorithm():
    assert LITERAL == {"c_alpha": 8, "c_beta": 36}
    assert (GLOW(0.1).c_alpha, GLOW(0.1).c_beta) == (0.25, 1) == tuple(PRACTICAL.values())
    found = thresholds(0.02, 8, 36, 7.0, np.array([1, 51]), np.array([0.0, 3 * 50]))
    assert np.allclose(found.limit, [0.02, 1.02])
    assert np.allclose(found.alpha, 8 / found.limit)
    assert found.beta.tolist() == [np.inf, pytest.approx(36 * 1.02 * 7 / 150)]


def test_the_logarithm_counts_the_weights_that_are_compared():
    models = LOCK_FAMILY.models
    counts = {kind: log_weight_count(LOCK, 100, kind, 8) for kind in ("oracle", "models", "zero")}
    assert np.allclose(list(counts.values()), [np.log(8), np.log(64), 0])
    assert np.isclose(log_weight_count(LOCK, 100, "box"), len(LOCK.cells) * np.log(100))
    assert np.isclose(GLOW(0.1, delta=0.2).log_term(LOCK, 100), np.log(6 * 8 * 8 * 100 * 3 / 0.2))
    inside = GLOW(0.1, weights="models", models=models).log_term(LOCK, 100)
    assert np.isclose(inside, np.log(6 * 8 * 64 * 100 * 3 / 0.1))
    assert np.isclose(GLOW(0.1, log_weights=5.0).log_term(LOCK, 100), np.log(6 * 8 * 300 / 0.1) + 5)
    assert np.isclose(class_log_term(LOCK, 10, 0.5, 0.0), np.log(6 * 8 * 10 * 3 / 0.5))


def test_every_mixture_of_two_policies_is_counted():
    """With two policies a mixture of t of them is how often the first occurs: t + 1 choices."""
    two = make_problem(CHAINS.mdp, CHAINS.functions.tables[:2])
    rounds = 30
    exact = np.log(2 * sum(t + 1 for t in range(1, rounds + 1)))
    assert exact <= log_every_mixture(two, rounds) <= exact + 1


def test_the_number_of_rounds_at_which_the_literal_set_can_shrink_solves_its_equation():
    for problem, residual in ((CHAINS, 1.0), (CHAINS, 0.25), (TRAP, 0.5)):
        rounds = rounds_to_shrink(problem, residual)
        functions, policies = len(problem.policy_of), len(problem.policies)
        gamma = theorem_gamma(
            problem.coverability.value, rounds, np.log(functions * policies / 0.1)
        )
        log_term = np.log(6 * functions * policies * rounds * problem.mdp.horizon / 0.1)
        assert 36 * gamma * log_term == pytest.approx(residual, rel=1e-6)
    assert 1e5 < rounds_to_shrink(CHAINS) < 1e6


# Against loops


def loop_tuples(problem: Problem, seed: int, rounds: int, choose, each: int = 1):
    """The protocol written out: every round from raw tuples. Returns choices and sets."""
    columns = 1 + each * (1 + 3 * problem.mdp.horizon)
    data = [[] for _ in range(problem.mdp.horizon)]
    starts, played, chosen, sets = [], [], [], []
    for t in range(1, rounds + 1):
        row = round_uniforms(seed, t - 1, 1, columns)[0]
        candidates, alive = choose(t, data, starts, played)
        function = candidates[int(row[0] * len(candidates))]
        policy = problem.functions.policies[function]
        episodes = draw_episodes(problem.mdp, policy, row[1:].reshape(each, -1))
        for layer in range(problem.mdp.horizon):
            data[layer] += list(zip(*(part[:, layer] for part in episodes), strict=True))
        starts += episodes.states[:, 0].tolist()
        played.append(int(problem.policy_of[function]))
        chosen.append(function)
        sets.append(alive)
    return np.array(chosen), np.array(sets)


def hopeful(problem: Problem, starts, alive, excess):
    values = problem.functions.values
    mean = (
        values[:, 0] @ problem.mdp.initial if not starts else values[:, 0][:, starts].mean(axis=1)
    )
    if not any(alive):
        return [f for f in range(len(alive)) if excess[f] <= min(excess) + 1e-9]
    best = max(mean[f] for f in range(len(alive)) if alive[f])
    return [f for f in range(len(alive)) if alive[f] and mean[f] >= best - 1e-9]


def glow_by_loops(problem: Problem, learner: GLOW, rounds: int):
    tables, values = problem.functions.tables, problem.functions.values
    layers, actions = problem.mdp.horizon, problem.mdp.reward.shape[2]
    ell = np.log(6 * len(tables) * len(problem.policies) * rounds * layers / learner.delta)

    def choose(t, data, starts, played):
        limit = learner.gamma * t if learner.clip else np.inf
        alpha = learner.c_alpha / (learner.gamma * t) if learner.penalty else 0.0
        excess = []
        for f in range(len(tables)):
            worst = -np.inf
            for policy in range(len(problem.policies)):
                own = problem.occupancies[policy]
                past = sum((problem.occupancies[p] for p in played), np.zeros_like(own))
                for layer in range(layers):
                    if not data[layer]:
                        continue
                    error = square = 0.0
                    for x, a, reward, y in data[layer]:
                        z = problem.position[x * actions + a]
                        ratio = own[layer, z] / ((past[layer, z] + own[layer, z]) / t)
                        w = min(ratio, limit)
                        sampled = tables[f, layer, x, a] - reward
                        sampled -= values[f, layer + 1, y] if layer + 1 < layers else 0.0
                        error += w * sampled
                        square += w * w
                    size = len(data[layer])
                    beta = learner.c_beta * learner.gamma * t / size * ell
                    worst = max(worst, error / size - alpha * square / size - beta)
            excess.append(worst)
        alive = [e <= 1e-9 for e in excess]
        return hopeful(problem, starts, alive, excess), alive

    return choose


@pytest.mark.parametrize(
    ("problem", "learner"),
    [
        (CHAINS, GLOW(0.05, c_beta=0.05)),
        (LOCK, GLOW(0.02, c_beta=0.1)),
        (LOCK, GLOW(0.2, c_beta=0.02, clip=False, penalty=False)),
        (random_problem(0), GLOW(0.3, c_beta=0.005, c_alpha=0.01)),
        (random_problem(2, "none"), GLOW(0.1, c_beta=0.001, c_alpha=0.02)),
    ],
)
def test_glow_is_the_algorithm_written_as_loops_over_tuples(problem, learner):
    run = run_online(problem, learner, 45, seed=4)
    chosen, alive = loop_tuples(problem, 4, 45, glow_by_loops(problem, learner, 45))
    assert np.array_equal(run.chosen, chosen)
    assert np.array_equal(run.alive, alive)
    assert 0 < run.alive[:, 1:].mean() < 1


@pytest.mark.parametrize("problem", [CHAINS, random_problem(3), random_problem(4, "none")])
def test_golf_is_squared_losses_written_as_loops(problem):
    tables, values = problem.functions.tables, problem.functions.values

    def choose(t, data, starts, played):
        excess = []
        for f in range(len(tables)):
            worst = -np.inf
            for layer, seen in enumerate(data):
                losses = np.zeros(len(tables))
                for x, a, reward, y in seen:
                    ahead = values[f, layer + 1, y]
                    losses += (tables[:, layer, x, a] - reward - ahead) ** 2
                worst = max(worst, losses[f] - losses.min() - 0.3)
            excess.append(worst)
        alive = [e <= 1e-9 for e in excess]
        return hopeful(problem, starts, alive, excess), alive

    run = run_online(problem, GOLF(beta=0.3), 60, seed=5)
    chosen, alive = loop_tuples(problem, 5, 60, choose)
    assert np.array_equal(run.chosen, chosen)
    assert np.array_equal(run.alive, alive)
    assert 0 < run.alive[:, 1:].mean() < 1


def test_golfs_own_threshold_is_the_logarithm_of_its_class():
    own = run_online(CHAINS, GOLF(), 2000, seed=1)
    given_one = run_online(CHAINS, GOLF(beta=float(np.log(5 * 2000 * 3 / 0.1))), 2000, seed=1)
    assert np.array_equal(own.alive, given_one.alive)


# Blocks


LEARNERS = [
    GLOW(0.05, c_beta=0.05),
    GLOW(0.05, c_beta=0.02, optimism=False),
    GLOW(0.05, c_beta=0.01, penalty=False, clip=False, fallback="random"),
    GLOW(0.05, c_beta=0.02, weights="box", log_weights=1.0),
    GOLF(beta=0.2),
    RandomFunction(),
]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    learner=st.sampled_from(LEARNERS),
    noise=st.sampled_from(["none", "bernoulli"]),
    block=st.integers(2, 300),
    ties=st.sampled_from(["random", "first"]),
)
def test_a_run_does_not_depend_on_the_size_of_its_blocks(seed, learner, noise, block, ties):
    problem = random_problem(seed % 7, noise)
    one = run_online(problem, learner, 120, seed, block=1, ties=ties)
    other = run_online(problem, learner, 120, seed, block=block, ties=ties)
    assert np.array_equal(one.chosen, other.chosen)
    assert np.array_equal(one.alive, other.alive)
    for first, second in zip(one.statistics, other.statistics, strict=True):
        assert np.allclose(first, second, atol=1e-9)


def test_a_longer_run_begins_like_a_shorter_one_where_the_threshold_is_given():
    long, short = (run_online(CHAINS, GOLF(beta=2.0), rounds, seed=2) for rounds in (1500, 400))
    assert np.array_equal(long.chosen[:400], short.chosen)


def test_a_memory_limit_makes_blocks_smaller_and_changes_nothing(monkeypatch):
    whole = run_online(CHAINS, GLOW(0.02, c_beta=0.1), 300, seed=1)
    monkeypatch.setattr(glow, "NUMBERS_AT_ONCE", 3000)
    assert glow.largest_block(CHAINS, GLOW(0.02)) < 10
    assert np.array_equal(
        run_online(CHAINS, GLOW(0.02, c_beta=0.1), 300, seed=1).alive, whole.alive
    )


def test_blocks_are_many_times_faster_than_single_rounds():
    learner = GLOW(0.01)
    run_online(CHAINS, learner, 100, seed=0)
    spent = []
    for block in (512, 1):
        started = time.process_time()
        run_online(CHAINS, learner, 800, seed=0, block=block)
        spent.append(time.process_time() - started)
    assert spent[1] > 5 * spent[0]


def test_rows_of_random_numbers_belong_to_their_rounds():
    whole = round_uniforms(3, 0, 2500, 4)
    assert whole.shape == (2500, 4)
    assert np.array_equal(whole[1020:1030], round_uniforms(3, 1020, 10, 4))
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(whole[:5], round_uniforms(4, 0, 5, 4))


@pytest.mark.parametrize("block", [1, 13])
def test_several_episodes_a_round(block):
    learner = GLOW(0.05, c_beta=0.05, episodes_per_round=3)
    run = run_online(CHAINS, learner, 20, seed=6, block=block)
    assert run.statistics.size == 60
    assert np.allclose(run.statistics.visits.sum(axis=-1), 60)
    assert np.array_equal(run.statistics.played, 3 * np.bincount(run.policies, minlength=5))
    chosen, alive = loop_tuples(CHAINS, 6, 20, glow_by_loops(CHAINS, learner, 20), each=3)
    assert np.array_equal(run.chosen, chosen)
    assert np.array_equal(run.alive, alive)


# Lazy runs


def test_a_lazy_run_covers_every_round_and_updates_geometrically():
    run = run_online(CHAINS, GLOW(0.01), 5000, seed=1, growth=0.1)
    assert run.length.sum() == 5000
    assert np.array_equal(run.first[1:], run.first[:-1] + run.length[:-1])
    assert (run.length <= np.ceil(0.1 * run.first)).all()
    assert len(run.first) < 110
    assert run.statistics.size == 5000
    assert np.array_equal(run.statistics.visits.sum(axis=-1), np.full(3, 5000.0))
    assert np.isclose(run.total_regret, run.regret @ run.length)


def test_a_lazy_run_refutes_late_by_no_more_than_its_growth():
    prompt = run_online(CHAINS, GLOW(0.01), 3000, seed=0)
    for seed in range(2):
        lazy = run_online(CHAINS, GLOW(0.01), 3000, seed=seed, growth=0.02)
        assert prompt.total_regret - 1e-9 <= lazy.total_regret <= 1.1 * prompt.total_regret


def test_a_lazy_run_of_ten_million_rounds_takes_a_moment():
    started = time.perf_counter()
    gamma = theorem_gamma(5.0, 10**7, float(np.log(25 / 0.1)))
    run = run_online(CHAINS, GLOW(gamma, **LITERAL), 10**7, growth=0.1)
    assert time.perf_counter() - started < 5
    assert run.statistics.size == 10**7
    assert run.alive.all()


# Where the regret comes from


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    learner=st.sampled_from(LEARNERS),
    gamma=st.sampled_from([None, 0.001, 0.1, 1.0]),
    growth=st.sampled_from([0.0, 0.3]),
)
def test_the_three_parts_sum_to_the_regret_of_every_round(seed, learner, gamma, growth):
    problem = random_problem(seed)
    run = run_online(problem, learner, 80, seed, growth=growth)
    parts = regret_decomposition(run, gamma)
    assert np.abs(np.sum(parts, axis=0) - run.regret).max() < 1e-12


def test_without_a_clip_there_is_no_clipping_loss():
    for learner in (GLOW(0.1, clip=False), GOLF(), RandomFunction()):
        parts = regret_decomposition(run_online(CHAINS, learner, 200))
        assert (parts.clipping_loss == 0).all()
    clipped = regret_decomposition(run_online(CHAINS, GLOW(0.01), 200))
    assert clipped.clipping_loss.sum() > 1


def test_the_optimism_gap_is_at_most_zero_while_the_optimal_function_lives():
    for problem, gamma in ((CHAINS, 0.01), (TRAP, 0.01), (LOCK, 0.02)):
        run = run_online(problem, GLOW(gamma), 500)
        assert run.alive[:, problem.optimal].all()
        assert regret_decomposition(run).optimism_gap.max() <= 1e-12


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), growth=st.sampled_from([0.0, 0.2]))
def test_the_potential_stays_below_five_coverabilities_times_log_t(seed, growth):
    problem = random_problem(seed)
    run = run_online(problem, RandomFunction(), 300, seed, growth=growth)
    last = run.first + run.length - 1
    assert np.allclose(potential_bound(run), 5 * problem.coverability.value * np.log(last))
    assert (potential(run)[last > 1] <= potential_bound(run)[last > 1, None]).all()
    assert (np.diff(potential(run), axis=0) > 0).all()


def test_the_potential_of_a_lazy_run_is_that_of_the_same_rounds_written_out():
    lazy = run_online(random_problem(5), RandomFunction(), 400, seed=1, growth=0.3)
    rounds = np.arange(1, 401)
    every = replace(
        lazy,
        first=rounds,
        length=np.ones(400, int),
        chosen=lazy.chosen.repeat(lazy.length),
        alive=lazy.alive.repeat(lazy.length, axis=0),
    )
    ends = lazy.first + lazy.length - 2
    assert np.allclose(potential(lazy), potential(every)[ends])


def test_the_ratios_of_a_round_are_those_of_the_history():
    problem = random_problem(6)
    run = run_online(problem, GLOW(0.05, c_beta=0.01), 90, seed=2)
    for t in (1, 2, 40, 90):
        table = ratio_table(run, t)
        own = problem.occupancies[run.policies[t - 1]]
        past = problem.occupancies[run.policies[: t - 1]].sum(axis=0)
        flat = table.ratios.reshape(3, -1)[:, problem.cells]
        assert np.allclose(flat * (past + own) / t, own)
        assert table.ratios.max() <= t + 1e-9
        assert np.array_equal(table.clipped, table.ratios > 0.05 * t)
        assert np.allclose(table.history.sum(axis=(1, 2)), float(t > 1))
    assert not ratio_table(replace(run, learner=GOLF()), 40).clipped.any()
    assert ratio_table(replace(run, learner=GOLF()), 40, gamma=1e-6).clipped.any()
    for outside in (0, 91):
        with pytest.raises(InputError, match=f"round {outside} is not among 1 to 90"):
            ratio_table(run, outside)


def test_the_ratios_inside_a_stretch_of_a_lazy_run_are_its_own():
    lazy = run_online(CHAINS, GLOW(0.01), 300, seed=1, growth=0.5)
    update = int(np.argmax(lazy.length > 5))
    inside = int(lazy.first[update]) + 3
    table = ratio_table(lazy, inside)
    counts = np.zeros(5)
    for u in range(update):
        counts[lazy.policies[u]] += lazy.length[u]
    policy = lazy.policies[update]
    assert np.isclose(table.ratios.max(), inside / (counts[policy] + 3 + 1))


def test_spans_say_when_a_function_is_alive():
    for growth in (0.0, 0.1):
        learner = GLOW(0.05, c_beta=0.05, clip=False, penalty=False, fallback="random")
        run = run_online(CHAINS, learner, 200, seed=2, growth=growth)
        rebuilt = np.zeros((200, 5), dtype=bool)
        spans = alive_spans(run)
        for function, first, last in zip(*spans, strict=True):
            assert not rebuilt[first - 1 : last, function].any()
            rebuilt[first - 1 : last, function] = True
        assert np.array_equal(rebuilt, run.alive.repeat(run.length, axis=0))
        assert growth > 0 or len(spans.function) > 5  # somebody died and came back


# The proof


@pytest.mark.parametrize("constants", [PRACTICAL, LITERAL])
@pytest.mark.parametrize("problem", [CHAINS, TRAP, LOCK, random_problem(1)])
def test_every_line_of_the_proof_holds_on_every_prefix_of_a_run(problem, constants):
    for gamma in (0.005, 0.05, 0.5):
        run = run_online(problem, GLOW(gamma, **constants), 600, seed=3)
        trace = proof_trace(run)
        assert np.allclose(
            trace.regret, trace.optimism_gap + trace.clipped_error + trace.clipping_loss
        )
        assert (trace.clipped_error <= trace.clipped_bound + 1e-9).all()
        assert (trace.clipping_loss <= trace.clipping_bound + 1e-9).all()
        assert trace.factor.max() <= 10


def test_the_second_moment_under_the_past_is_at_most_t_potentials():
    for problem in (CHAINS, random_problem(2)):
        run = run_online(problem, GLOW(0.05), 300)
        terms = layer_terms(run)
        scaled = run.first[:, None] * terms.potential
        before = (run.first[:, None] - 1) / run.first[:, None]
        assert (before * terms.second_moment <= scaled + 1e-12).all()


def test_the_proof_is_traced_only_where_it_applies():
    lazy = run_online(CHAINS, GLOW(0.01), 100, growth=0.5)
    for run in (lazy, *(run_online(CHAINS, each, 10) for each in (GOLF(), GLOW(0.1, clip=False)))):
        with pytest.raises(InputError, match="the proof is traced on a run of GLOW"):
            proof_trace(run)


# Limits


def test_zero_weights_refute_nothing_for_ever():
    run = run_online(CHAINS, GLOW(0.05, c_beta=0.0, weights="zero"), 500)
    assert run.alive.all()
    assert (run.chosen != 0).all()
    assert run.total_regret == pytest.approx(0.4 * 500)


def test_exact_expectations_leave_those_that_no_policy_finds_over_estimating():
    base = decoy_chains(4, 3)
    generator = np.random.default_rng(0)
    shifted = base.tables[:1] - generator.uniform(0, 0.2, size=(300, 3, 1, 1))
    problem = make_problem(base.mdp, np.concatenate([base.tables, shifted]))
    density = problem.occupancies.mean(axis=0)
    exact = population_statistics(problem, density)
    weights = data_weights(problem.occupancies, density)
    errors = worst_errors(exact, residual_sums(problem, exact), weights).max(axis=0)
    kept = settle(errors[None], np.zeros((1, 304))).alive[0]
    tables, values = problem.functions.tables, problem.functions.values
    ahead = np.einsum("hsat,fht->fhsa", base.mdp.transition, values[:, 1:])
    residual = (tables - base.mdp.reward - ahead).reshape(304, 3, -1)[..., problem.cells]
    largest = np.einsum("phz,fhz->fph", problem.occupancies, residual).max(axis=(1, 2))
    assert np.array_equal(kept, largest <= 1e-9)
    assert kept[0]
    assert 20 < kept.sum() < 200


def test_the_box_is_the_hardest_judge_and_the_true_model_the_oracle():
    run = run_online(LOCK, GLOW(0.05), 200)
    limits = thresholds(0.05, 0.25, 1, 10, np.array([201]), run.statistics.size[None])
    found = {
        kind: error_finder(LOCK, kind, models=models)(
            one_moment(run.statistics), np.array([201]), limits
        )
        for kind, models in (("oracle", ()), ("box", ()), ("models", (LOCK.mdp,)), ("zero", ()))
    }
    assert np.allclose(found["models"], found["oracle"])
    assert (found["box"] >= found["oracle"] - 1e-12).all()
    assert (found["zero"] == 0).all()
    every = error_finder(LOCK, "models", models=LOCK_FAMILY.models)
    several = every(one_moment(run.statistics), np.array([201]), limits)
    assert (several >= found["oracle"] - 1e-12).all()


def test_a_class_of_models_needs_no_oracle_to_open_a_lock():
    learner = GLOW(0.02, c_beta=0.3, weights="models", models=LOCK_FAMILY.models)
    run = run_online(LOCK, learner, 400, seed=1)
    assert run.optimal_lost == 0
    assert (run.regret[-100:] < 1e-9).all()
    assert run.total_regret > 1


def test_without_optimism_every_survivor_is_played_and_the_random_learner_plays_all():
    survivor = run_online(CHAINS, GLOW(0.01, optimism=False), 900)
    assert np.bincount(survivor.chosen[:200], minlength=5).min() > 20
    assert survivor.alive[np.arange(900), survivor.chosen].all()
    anything = run_online(CHAINS, RandomFunction(), 5000)
    assert np.allclose(np.bincount(anything.chosen) / 5000, 0.2, atol=0.03)


def test_an_empty_set_falls_back_and_is_counted():
    reckless = GLOW(0.01, c_beta=0.0, penalty=False, clip=False)
    least, anything = (
        run_online(CHAINS, replace(reckless, fallback=fallback), 400, seed=1)
        for fallback in ("least", "random")
    )
    for run in (least, anything):
        assert run.empty.sum() > 50
        assert run.optimal_lost >= run.empty.mean()
    assert len(np.unique(anything.chosen[anything.empty])) == 5


def test_a_class_without_the_optimal_function_is_run_and_says_so():
    without = make_problem(CHAINS.mdp, CHAINS.functions.tables[1:])
    run = run_online(without, GLOW(0.01), 300)
    assert without.optimal is None
    assert np.isnan(run.optimal_lost)
    assert np.abs(np.sum(regret_decomposition(run), axis=0) - run.regret).max() < 1e-12


# Numbers


@pytest.mark.parametrize(("horizon", "visits", "bare"), [(3, 293, 66), (5, 311, 68), (7, 325, 70)])
def test_decoys_are_refuted_after_the_visits_of_the_formula(horizon, visits, bare):
    problem = problem_of(decoy_chains(5, horizon))
    for learner, wanted in ((GLOW(0.01), visits), (GLOW(0.01, penalty=False), bare)):
        alpha = learner.c_alpha if learner.penalty else 0.0
        formula = visits_to_refute(0.25, 0.01, alpha, 1.0, learner.log_term(problem, 3000))
        run = run_online(problem, learner, 3000, seed=7)
        if learner.penalty or horizon > 3:
            assert np.bincount(run.chosen)[1:].tolist() == [wanted] * 4
            assert run.total_regret == pytest.approx(1.6 * wanted)
        assert formula == wanted
        assert run.optimal_lost == 0


def test_golf_cannot_tell_decoys_apart_before_the_last_layer():
    deep = problem_of(decoy_chains(5, 5))
    assert run_online(deep, GOLF(), 3000).total_regret == pytest.approx(1200)
    late = run_online(CHAINS, GOLF(), 8000, growth=0.02)
    formula = np.log(5 * 8000 * 3 / 0.1) / 0.125**2
    assert late.length[late.chosen != 0].sum() / 4 == pytest.approx(formula, rel=0.35)


def test_the_traps_regret_is_what_its_visits_cost_and_the_wall_stands():
    ell = GLOW(0.01).log_term(TRAP, 3000)
    hope, dummy = (visits_to_refute(error, 0.01, 0.25, 1.0, ell) for error in (0.36, 1.0))
    for seed in range(3):
        run = run_online(TRAP, GLOW(0.01), 3000, seed=seed)
        assert run.total_regret == pytest.approx(0.15 * hope + 9 * 0.4 * dummy)
    assert 111 <= run.total_regret <= 116
    assert 0.01 < 0.36 / ell < 0.02
    assert run_online(TRAP, GLOW(0.02), 3000).total_regret == pytest.approx(450)
    lucky = run_online(TRAP, GLOW(0.01), 3000, ties="first")
    assert lucky.total_regret == pytest.approx(0.15 * hope)


def visits_by_steps(residual, gamma, c_alpha, c_beta, log_term, most):
    """The score of Algorithm 1 after n visits, for n = 1, 2, ...; t cancels, so t = 10^9."""
    t = 10.0**9
    for n in range(1, most):
        w = min(t / (n + 1), gamma * t)
        score = n / (t - 1) * (w * residual - c_alpha / (gamma * t) * w**2)
        if score > c_beta * gamma * t / (t - 1) * log_term + 1e-12:
            return n
    return np.inf


@settings(max_examples=60, deadline=None)
@given(
    residual=st.floats(0.05, 1),
    gamma=st.floats(0.001, 0.5),
    c_alpha=st.sampled_from([0.0, 0.05, 0.25, 8.0]),
    c_beta=st.floats(0.01, 2),
)
def test_the_formula_of_visits_is_the_first_visit_at_which_the_constraint_breaks(
    residual, gamma, c_alpha, c_beta
):
    formula = visits_to_refute(residual, gamma, c_alpha, c_beta, 10.0)
    slow = visits_by_steps(residual, gamma, c_alpha, c_beta, 10.0, 3000)
    if formula < 2999:
        assert abs(slow - formula) <= 1
    else:
        assert slow == np.inf


def test_the_clip_scale_has_a_wall_and_a_bottom():
    ell = GLOW(0.01).log_term(CHAINS, 3000)
    gammas = [0.001, 0.125 / ell, 0.26 / ell]
    totals = gamma_curve(CHAINS, GLOW(0.01), gammas, 3000, range(2))
    assert totals.shape == (3, 2)
    assert (totals[0] > 2 * totals[1]).all()
    assert np.allclose(totals[2], 1200)
    best = 1.6 * visits_to_refute(0.25, gammas[1], 0.25, 1.0, ell)
    assert np.allclose(totals[1], best)


# Validity


def test_the_literal_constants_keep_the_optimal_function_in_two_hundred_runs():
    small = problem_of(decoy_chains(3, 3))
    for seed in range(200):
        assert run_online(small, GLOW(0.05, **LITERAL), 100, seed=seed).optimal_lost == 0


def test_the_literal_constants_keep_it_even_where_the_set_does_shrink():
    gamma = theorem_gamma(5.0, 10**8, float(np.log(25 / 0.1)))
    for seed in range(2):
        run = run_online(CHAINS, GLOW(gamma, **LITERAL), 10**8, seed=seed, growth=0.1)
        assert run.optimal_lost == 0
        assert run.alive[-1].tolist() == [True] + [False] * 4


def test_the_practical_constants_keep_it_in_nine_of_ten_runs_and_tiny_ones_do_not():
    small = problem_of(decoy_chains(3, 3))
    kept = {
        c_beta: np.mean(
            [
                run_online(small, GLOW(0.01, c_beta=c_beta), 800, s).optimal_lost == 0
                for s in range(40)
            ]
        )
        for c_beta in (1.0, 0.01)
    }
    assert kept[1.0] >= 0.9
    assert kept[0.01] < 0.9


# A user's world


def test_a_class_of_models_around_any_world_can_be_run():
    mdp = random_problem(9, "none").mdp
    instance = class_of_models(perturbed_models(mdp, 8, 0.3, 0))
    problem = problem_of(instance)
    for learner in (GLOW(0.05), GOLF()):
        run = run_online(problem, learner, 200)
        assert isinstance(run, Run)
        assert run.total_regret >= -1e-9
        returns = evaluate_horizon(mdp, problem.functions.policies)[:, 0] @ mdp.initial
        assert np.allclose(run.regret, problem.optimum - returns[run.chosen])


def test_functions_outside_the_unit_interval_are_refused():
    with pytest.raises(InputError, match="values lie in"):
        FunctionClass(CHAINS.functions.tables + 0.5)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, r"gamma is 0.0: pass a number in \(0, 1\]"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"delta": 1.0}, r"delta is 1.0: pass a number in \(0, 1\)"),
        ({"c_alpha": -1.0}, r"c_alpha is -1.0: pass a number in \[0, infinity\)"),
        ({"c_beta": float("nan")}, "c_beta is nan"),
        ({"weights": "ratios"}, "weights is 'ratios'"),
        ({"weights": "models"}, "pass models exactly where"),
        ({"models": (CHAINS.mdp,)}, "pass models exactly where"),
        ({"fallback": "first"}, "fallback is 'first'"),
        ({"episodes_per_round": 0}, "episodes_per_round is 0"),
        ({"episodes_per_round": float("inf")}, "episodes_per_round is inf"),
    ],
)
def test_unusable_constants_of_glow_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        GLOW(**{"gamma": 0.1} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"delta": 0.0}, "delta"), ({"beta": -1.0}, "beta is -1"), ({"fallback": "all"}, "fallback")],
)
def test_unusable_constants_of_golf_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        GOLF(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds is 0: pass a whole number of 1 or more"),
        ({"rounds": float("nan")}, "rounds is nan"),
        ({"rounds": float("inf")}, "rounds is inf"),
        ({"block": 0}, "block is 0"),
        ({"block": 2.5}, "block is 2.5"),
        ({"learner": RandomFunction(0)}, "episodes_per_round is 0"),
        ({"learner": GOLF(episodes_per_round=1.5)}, "episodes_per_round is 1.5"),
        ({"growth": -0.1}, "growth is -0.1"),
        ({"ties": "last"}, "ties is 'last'"),
    ],
)
def test_unusable_settings_of_a_run_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        run_online(CHAINS, **{"learner": GOLF(), "rounds": 5} | change)


def test_importing_the_chapter_is_quick_and_pulls_in_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import offrl_wb.theory.glow;"
        "print(time.perf_counter() - t);"
        "heavy = ('torch', 'polars', 'plotly', 'gymnasium', 'scipy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split("\n")[:2]
    assert heavy == "[]"
    assert float(seconds) < 2
