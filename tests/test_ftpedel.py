"""FTPedel: estimates and their errors, oracle, both modes, safety, prices, logs in files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.core.statistics import log_log_slope
from offrl_wb.theory import experiment_design
from offrl_wb.theory import ftpedel as chapter
from offrl_wb.theory.experiment_design import (
    MarkovDesigns,
    arm_demand,
    inverse_norms,
    least_online_episodes,
    water_filling,
)
from offrl_wb.theory.ftpedel import (
    Certificate,
    Simulator,
    Tuning,
    candidate_policies,
    confidence,
    epoch_numbers,
    estimate,
    fill_layer,
    frank_wolfe_regret,
    ftpedel,
    inverse_roots,
    named_log,
    named_world,
    noise_scale,
    opt_cov,
    pedel,
    planned_visits,
    plugin_policy,
    read_log,
    regress,
    squared_widths,
    synthetic_reward,
    top_up_table,
    two_room_run,
    value_errors,
)
from offrl_wb.theory.policy_sets import all_deterministic, softmax_class, uniform_policy
from offrl_wb.worlds.layered import draw_counts, draw_episodes, draw_tuples
from offrl_wb.worlds.linear import (
    LinearMDP,
    Moments,
    bandit_world,
    draw_log,
    empty_moments,
    feature_visitations,
    linear_from_tabular,
    moments_from_counts,
    moments_from_episodes,
    optimal_value,
    policy_values,
    random_world,
    simplex_world,
    two_room,
    two_room_visits,
)
from offrl_wb.worlds.tabular import FiniteHorizonMDP, evaluate_horizon, occupancy_horizon


def some_world(seed: int, features: str) -> LinearMDP:
    """A small world with one-hot or with shared features."""
    if features == "one-hot":
        return random_world(states=3, actions=2, horizon=3, seed=seed)
    return simplex_world(states=6, actions=2, dimension=4, horizon=3, seed=seed)


def room_log(epsilon: float, seed: int = 0, pulls: int | None = None) -> Moments:
    """A log of L in the two rooms."""
    world = two_room(epsilon)
    visits = two_room_visits(world, round(120 / epsilon**2) if pulls is None else pulls)
    return moments_from_counts(world, *draw_log(world, visits, stream(seed, "test, rooms")))


# What a learner may touch


@pytest.mark.parametrize("noise", ["bernoulli", "none"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_simulator_draws_what_draw_counts_draws(noise: str, stochastic: bool) -> None:
    base = simplex_world(states=5, actions=3, dimension=4, horizon=3, seed=2)
    initial = np.array([0.2, 0.5, 0.3, 0, 0])
    world = LinearMDP(base.phi, base.mu, base.theta, initial, noise=noise)
    rule = softmax_class(world, 1, seed=1)[0]
    rule = rule if stochastic else rule.argmax(axis=-1)
    generator, sim = stream(0, "law"), Simulator(world, stream(1, "law"))
    ours = [sim.play(rule, 40) for _ in range(400)]
    theirs = [
        moments_from_counts(world, *draw_counts(world.tabular, rule, 40, generator))
        for _ in range(400)
    ]
    for name in ("covariance", "reward_sums"):
        one, other = (np.stack([getattr(m, name) for m in part]) for part in (ours, theirs))
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 400) + 1e-9
        assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) < 5.5 * error).all()
    assert sim.episodes == sim.visits[0].sum() == 16_000
    total = sum(draw.covariance for draw in ours)
    assert sim.seen.covariance == pytest.approx(total)


def test_an_episode_may_end_early_and_never_leads_where_the_world_does_not() -> None:
    world = random_world(states=4, actions=2, horizon=3, seed=0)
    sim = Simulator(world, stream(0, "early"))
    got = sim.play(sim.uniform[:2], 500)
    assert got.counts.tolist() == [500, 500, 0]
    assert not got.covariance[2].any()
    rooms = two_room(0.05)
    sim = Simulator(rooms, stream(0, "possible"))
    got = sim.play(sim.uniform, 10_000)
    assert got.moves[0, :, 0].sum() == 0
    assert got.moves[0, 1, 1] == 0
    assert sim.visits[0, 0, 2:].sum() == 0


def test_the_log_counts_as_seen_but_not_as_played() -> None:
    world, log = two_room(0.1), room_log(0.1)
    sim = Simulator(world, stream(0, "log"), log)
    sim.play(sim.uniform, 10)
    assert sim.episodes == 10
    assert sim.seen.counts.tolist() == (log.counts + 10).tolist()
    assert log.counts[0] == room_log(0.1).counts[0]


def test_the_learner_meets_the_world_through_the_simulator_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, fake = (
        simplex_world(states=6, actions=2, dimension=4, horizon=2, seed=s) for s in (1, 2)
    )
    fake = LinearMDP(real.phi, fake.mu, fake.theta, real.initial, noise="bernoulli")
    policies = softmax_class(real, 40, seed=0)
    expected = ftpedel(real, policies, None, 0.4, seed=5)

    def behind(world: LinearMDP, *rest: object) -> Simulator:
        return Simulator(real, *rest)  # type: ignore[arg-type]

    def forbidden(*arguments: object) -> None:
        raise AssertionError("the learner asked the exact oracle")

    monkeypatch.setattr(chapter, "Simulator", behind)
    monkeypatch.setattr(experiment_design.MarkovDesigns, "best", forbidden)
    found = ftpedel(fake, policies, None, 0.4, seed=5)
    assert found.episodes == expected.episodes
    assert found.policy == expected.policy
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert np.array_equal(one.values, other.values)


# Estimates


@given(
    st.integers(0, 10_000),
    st.sampled_from(["one-hot", "shared"]),
    st.sampled_from([1e-6, 0.1, 3.0]),
    st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_the_error_identity_is_exact(seed: int, features: str, ridge: float, rows: int) -> None:
    world = some_world(seed % 50, features)
    policies = softmax_class(world, 12, seed=seed)
    rule = uniform_policy(world)
    log = draw_counts(world.tabular, rule, rows, stream(seed, "identity"))
    moments = moments_from_counts(world, *log)
    found = estimate(world.phi, world.initial, policies, regress(moments, ridge))
    error = found.values - policy_values(world, policies)
    assert value_errors(world, policies, moments, ridge).sum(axis=1) == pytest.approx(
        error, abs=1e-8
    )


def test_without_a_ridge_the_errors_are_the_noise_of_the_rows() -> None:
    world = some_world(3, "shared")
    policies = softmax_class(world, 5, seed=1)
    even = np.full(world.reward.shape, 1 / 12)
    log = draw_tuples(world.tabular, even, stream(0, "rows").random((200, 3, 4)))
    moments = moments_from_episodes(world, log)
    found = estimate(world.phi, world.initial, policies, regress(moments, 0.0))
    ahead = evaluate_horizon(world.tabular, policies)
    total = np.zeros(5)
    for layer in range(3):
        rows = world.phi[log.states[:, layer], log.actions[:, layer]]
        after = np.zeros((5, 200)) if layer == 2 else ahead[:, layer + 1, log.next_states[:, layer]]
        q = np.repeat(world.reward[layer][None], 5, axis=0)
        if layer < 2:
            q = q + np.einsum("sat,nt->nsa", world.transition[layer], ahead[:, layer + 1])
        noise = log.rewards[:, layer] + after - q[:, log.states[:, layer], log.actions[:, layer]]
        pulled = found.visitations[:, layer] @ np.linalg.inv(moments.covariance[layer])
        total += np.einsum("nd,rd,nr->n", pulled, rows, noise)
    assert found.values - policy_values(world, policies) == pytest.approx(total, abs=1e-9)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_with_one_hot_features_and_full_coverage_it_is_certainty_equivalence(seed: int) -> None:
    world = random_world(states=3, actions=2, horizon=3, seed=seed)
    generator = stream(seed, "certainty")
    visits = generator.integers(1, 20, size=world.reward.shape)
    moves, paid = draw_log(world, visits, generator)
    policies = all_deterministic(world)[::7]
    found = estimate(
        world.phi, world.initial, policies, regress(moments_from_counts(world, moves, paid), 0.0)
    )
    empirical = FiniteHorizonMDP(world.initial, moves / visits[..., None], paid / visits)
    flow = occupancy_horizon(empirical, policies).reshape(len(policies), 3, -1)
    assert found.visitations == pytest.approx(flow, abs=1e-11)
    assert found.visitations.sum(axis=-1) == pytest.approx(1.0)
    values = evaluate_horizon(empirical, policies)[:, 0] @ world.initial
    assert found.values == pytest.approx(values, abs=1e-11)


def test_roots_stay_right_in_directions_without_data() -> None:
    covariance = np.diag([1e8, 1e8, 0.0, 0.0])
    turn = np.linalg.qr(stream(0, "turn").normal(size=(4, 4)))[0]
    root = inverse_roots(turn @ covariance @ turn.T, 1e-6)
    inside, outside = turn[:, 0], turn[:, 3]
    assert squared_widths(inside[None], root)[0] == pytest.approx(1e-8, rel=1e-3)
    assert squared_widths(outside[None], root)[0] == pytest.approx(1e6, rel=0.05)


# Confidence


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("policies", [1, 64, 10**5])
def test_hoeffdings_constants_add_up_to_delta(horizon: int, policies: int) -> None:
    epochs = np.arange(1, 3000)
    betas = np.array([confidence(policies, int(e), horizon, 0.05, "hoeffding") for e in epochs])
    total = (2 * policies * np.exp(-2 * betas / noise_scale(horizon))).sum()
    assert 0.0499 < total <= 0.05
    assert noise_scale(horizon) == sum(k**2 for k in range(1, horizon + 1))
    enough = noise_scale(horizon) / 2
    assert confidence(policies, 3, horizon, 0.05, enough) >= betas[2]


def test_constants_are_those_of_the_table() -> None:
    assert confidence(72, 3, 2, 0.1) == pytest.approx(np.log(4 * 4 * 72 * 9 / 0.1))
    assert confidence(72, 3, 2, 0.1, "paper") == pytest.approx(
        36 * 16 * np.log(4 * 4 * 72 * 9 / 0.1)
    )
    assert confidence(5, -2, 1, 0.1, 2.0) == confidence(5, 1, 1, 0.1, 2.0)


@pytest.mark.parametrize("c_beta", [0, -1.0, np.inf, "tight", None])
def test_a_senseless_constant_is_refused(c_beta: object) -> None:
    with pytest.raises(InputError, match="c_beta"):
        confidence(5, 1, 1, 0.1, c_beta)  # type: ignore[arg-type]


def test_epochs_begin_and_end_as_pedel_says() -> None:
    assert list(epoch_numbers(0.1, 2, 14, "practical")) == [1, 2, 3, 4, 5, 6]
    assert list(epoch_numbers(0.01, 2, 14, "paper")) == [5, 6, 7, 8, 9]
    assert list(epoch_numbers(0.5, 2, 14, "paper")) == [3]
    assert list(epoch_numbers(8.0, 1, 2, "practical")) == [-1]
    assert list(epoch_numbers(0.25, 2, 14, "practical", 3)) == [3, 4]


# The oracle and the design


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_without_a_bonus_and_with_true_means_the_oracle_is_exact(seed: int) -> None:
    world = some_world(seed % 30, "shared" if seed % 2 else "one-hot")
    visits = np.full(world.reward.shape, 1e9)
    means = moments_from_counts(world, visits[..., None] * world.transition, visits * world.reward)
    reward = stream(seed, "oracle").random(world.phi.shape[:2])
    policies = all_deterministic(random_world(3, 2, 3)) if world.states == 3 else None
    plan = np.stack(plugin_policy(world.phi, regress(means, 1e-6), 2, reward, 0.0))

    def earned(acts: np.ndarray) -> np.ndarray:
        flow = occupancy_horizon(world.tabular, acts)
        return (flow[:, 2] * reward).sum(axis=(1, 2))

    if policies is None:
        policies = stream(seed, "others").integers(2, size=(300, 3, world.states))
        assert earned(plan[None])[0] >= earned(policies).max() - 1e-6
    else:
        assert earned(plan[None])[0] == pytest.approx(earned(policies).max(), abs=1e-6)


@pytest.mark.parametrize("bonus", [0.0, 0.1, 1.0])
def test_the_plugin_oracle_converges_to_the_exact_one(bonus: float) -> None:
    world = simplex_world(states=8, actions=3, dimension=4, horizon=3, seed=2)
    oracle, gaps = MarkovDesigns(world, 2), []
    for episodes in (20, 1_000_000):
        sim = Simulator(world, stream(0, "converges", episodes))
        sim.play(sim.uniform, episodes)
        known, lost = regress(sim.seen, 1e-6), []
        for weights in stream(0, "rewards").random((10, 4)):
            half = np.diag(np.sqrt(weights))
            reward = ((world.phi @ half) ** 2).sum(axis=-1)
            plan = np.stack(plugin_policy(world.phi, known, 2, reward / reward.max(), bonus))
            earned = np.trace(half @ oracle.covariance(plan) @ half)
            lost.append(1 - earned / oracle.best(np.diag(weights)).value)
        gaps.append(float(np.mean(lost)))
    assert -1e-12 <= gaps[1] < 1e-3
    assert gaps[1] < gaps[0]


def test_optimism_goes_where_nothing_is_known() -> None:
    world = two_room(0.1)
    sim = Simulator(world, stream(0, "optimism"), room_log(0.1))
    reward = np.zeros((3, 6))
    reward[2] = 1  # pays in R, which the log reaches only by chance
    known = regress(sim.seen, 1e-6)
    assert plugin_policy(world.phi, known, 1, reward, 0.1)[0][0] == 1
    reward[1] = 0.7
    trusting = plugin_policy(world.phi, known, 1, reward, 0.0)
    assert trusting[0][0] == 0  # "explore" was never tried: worth nothing without a bonus


def test_the_synthetic_reward_is_minus_the_gradient() -> None:
    world = simplex_world(seed=3)
    targets = feature_visitations(world, softmax_class(world, 30, seed=1))[:, 1]
    matrix = np.cov(stream(0, "gradient").normal(size=(5, 30))) + 0.1 * np.eye(5)
    worth = synthetic_reward(world.phi, targets, inverse_roots(matrix, 0.0), 2.0)

    def smooth(change: np.ndarray) -> float:
        return float(np.log(np.exp(2 * inverse_norms(targets, matrix + change)).sum()) / 2)

    for state, action in ((0, 0), (3, 1), (14, 2)):
        phi = world.phi[state, action]
        visit, best = 1e-6 * np.outer(phi, phi), np.unravel_index(worth.argmax(), worth.shape)
        top = 1e-6 * np.outer(world.phi[best], world.phi[best])
        ratio = (smooth(-visit) - smooth(visit)) / (smooth(-top) - smooth(top))
        assert worth[state, action] == pytest.approx(ratio, abs=1e-4)


def test_frank_wolfe_plays_what_it_says_and_opt_cov_certifies() -> None:
    world = simplex_world(seed=3)
    targets = feature_visitations(world, softmax_class(world, 30, seed=1))[:, 1]
    sim = Simulator(world, stream(0, "design"))
    got = frank_wolfe_regret(sim, targets, 1, 8, 5, 2.0, np.zeros((5, 5)), Tuning())
    assert sim.episodes == got.counts[1] == 9 * 5
    ground = np.diag([50.0, 0, 0, 0, 0])
    for bound in (0.1, 0.01):
        sim = Simulator(world, stream(0, "cover"))
        got = opt_cov(sim, targets, 1, bound, ground, Tuning())
        matrix = got.covariance[1] + ground + 1e-6 * np.eye(5)
        assert inverse_norms(targets, matrix).max() <= bound
        assert sim.episodes > 0
    sim = Simulator(world, stream(0, "enough"))
    opt_cov(sim, targets, 1, 0.1, 1e4 * np.eye(5), Tuning())
    assert sim.episodes == 0


def test_blocks_stop_when_all_widths_are_small_also_for_large_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = simplex_world(seed=3)
    targets = feature_visitations(world, softmax_class(world, 300, seed=1))[:, 2]
    played = []
    for most in (1000, 20):
        monkeypatch.setattr(chapter, "SHORTLIST", most)
        sim = Simulator(world, stream(0, "blocks"))
        fill_layer(sim, targets, 2, 1e-3, Tuning())
        root = inverse_roots(sim.seen.covariance[2], 1e-6)
        assert squared_widths(targets, root).max() <= 1e-3
        played.append(sim.episodes)
    assert played[1] < 1.5 * played[0]


def test_opt_cov_pays_the_lower_order_term_and_blocks_do_not() -> None:
    epsilons, published, blocks = np.array([0.1, 0.025, 0.00625]), [], []
    for epsilon in epsilons:
        world, log = two_room(epsilon), room_log(epsilon)
        targets = feature_visitations(world, all_deterministic(world)[:36])[:, 1]
        bound = epsilon**2 / 12
        sim = Simulator(world, stream(0, "OptCov"), log)
        opt_cov(sim, targets, 1, bound, log.covariance[1], Tuning())
        published.append(sim.episodes)
        sim = Simulator(world, stream(0, "blocks"), log)
        fill_layer(sim, targets, 1, bound, Tuning())
        blocks.append(sim.episodes)
    assert -2 < log_log_slope(epsilons, np.array(published)) < -1.2
    assert abs(log_log_slope(epsilons, np.array(blocks))) < 0.1


# FTPedel


@pytest.mark.parametrize(("mode", "c_beta"), [("practical", 1.0), ("paper", 0.1)])
def test_an_empty_log_changes_nothing_and_a_full_one_leaves_nothing_to_play(
    mode: str, c_beta: float
) -> None:
    world = two_room(0.1)
    policies = all_deterministic(world)
    given: dict = dict(epsilon=0.2, mode=mode, c_beta=c_beta, seed=4)
    alone = pedel(world, policies, **given)
    beside = ftpedel(world, policies, empty_moments(world), **given)
    assert alone.episodes == beside.episodes > 0
    assert alone.policy == beside.policy
    for one, other in zip(alone.epochs, beside.epochs, strict=True):
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.visits, other.visits)
    visits = two_room_visits(world, 200_000, 200_000)
    visits[0, 0, 1] = 200_000
    full = moments_from_counts(world, *draw_log(world, visits, stream(0, "full")))
    sure = ftpedel(world, policies, full, **given)
    assert sure.episodes == 0
    assert policy_values(world, policies)[sure.policy] == pytest.approx(optimal_value(world))


def failures(
    world: LinearMDP, runs: int, run: Callable[[int], Certificate], values: np.ndarray
) -> tuple[int, int, int]:
    """Runs that removed the best, that kept a bad one, and how many removed anything at all."""
    removed = kept_bad = busy = 0
    for seed in range(runs):
        answer = run(seed)
        best = values.max() - 1e-12
        removed += any(not e.kept[values[e.active] >= best].any() for e in answer.epochs)
        kept_bad += any(
            (values[e.active[e.kept]] < best - 4 * e.epsilon).any() for e in answer.epochs
        )
        busy += len(answer.survivors) < len(values)
    return removed, kept_bad, busy


def five_states() -> LinearMDP:
    """A random MDP of 5 states whose rewards are spread out; of three directions, for speed."""
    base = simplex_world(states=5, actions=2, dimension=3, horizon=2, seed=5, concentration=0.1)
    theta = np.where(base.theta > 0.5, 0.9, 0.1)
    return LinearMDP(base.phi, base.mu, theta, base.initial, "five", "bernoulli")


def test_over_200_seeds_the_best_is_kept_and_the_bad_are_not_in_paper_mode() -> None:
    world = five_states()
    policies = all_deterministic(world)
    values = policy_values(world, policies)
    assert (values < values.max() - 1).sum() == 32  # epoch 2 must not keep one of these

    def run(seed: int) -> Certificate:
        return ftpedel(world, policies, None, 1.0, 0.1, "paper", "hoeffding", seed)

    removed, kept_bad, busy = failures(world, 200, run, values)
    assert max(removed, kept_bad) <= 20
    assert busy == 200
    assert run(0).failure_bound <= 0.1


def test_over_200_seeds_practical_mode_is_safe_and_too_small_a_constant_is_not() -> None:
    world = random_world(states=5, actions=2, horizon=2, seed=0)
    policies = all_deterministic(world)
    values = policy_values(world, policies)

    def run(c_beta: float, epsilon: float) -> Callable[[int], Certificate]:
        quick = Tuning(growth=0.1)
        return lambda seed: ftpedel(
            world, policies, None, epsilon, 0.1, c_beta=c_beta, seed=seed, tuning=quick
        )

    removed, kept_bad, busy = failures(world, 200, run(1.0, 0.5), values)
    assert max(removed, kept_bad) <= 20
    assert busy == 200
    assert failures(world, 100, run(0.01, 0.25), values)[1] > 5


def test_the_two_room_table_of_exact_prices() -> None:
    earlier = {0.1: (308, 36.2), 0.05: (1004, 36.2), 0.025: (3777, 36.3), 0.0125: (14746, 36.3)}
    for epsilon, pair in earlier.items():
        world = two_room(epsilon)
        policies = all_deterministic(world)
        for log, number in zip((None, room_log(epsilon).covariance), pair, strict=True):
            least = least_online_episodes(world, policies, log, epsilon)[1]
            assert least.lower <= least.episodes <= 1.002 * least.lower
            assert least.episodes == pytest.approx(number, rel=0.01)


def test_sampled_runs_follow_the_slopes_and_an_earlier_prototype() -> None:
    epsilons = np.array([0.05, 0.025, 0.0125])
    earlier = {False: (65_051, 281_546), True: (3_495, 3_671)}
    for with_log, medians in earlier.items():
        found = []
        for epsilon in epsilons:
            world = two_room(epsilon)
            policies = all_deterministic(world)
            values = policy_values(world, policies)
            runs = [
                ftpedel(
                    world, policies, room_log(epsilon, s) if with_log else None, epsilon, seed=s
                )
                for s in range(5)
            ]
            assert all(values[run.policy] == values.max() for run in runs)
            found.append(np.median([run.episodes for run in runs]))
        assert found[:2] == pytest.approx(medians, rel=0.15)
        slope = float(log_log_slope(epsilons, np.array(found)))
        assert slope == pytest.approx(0.0 if with_log else -2.0, abs=0.25)


def test_a_bandit_is_certified_near_its_water_filling() -> None:
    means = np.array([0.5, 0.3, 0.3, 0.3, 0.7])
    world, policies = bandit_world(means), np.arange(5)[:, None, None]
    pulls = np.array([100_000, 0, 0, 0, 0])
    log = moments_from_counts(world, pulls.reshape(1, 1, 5, 1), (pulls * means).reshape(1, 1, 5))
    answer = ftpedel(world, policies, log, 0.1)
    last = answer.epochs[-1]
    least = water_filling(arm_demand(0.7 - means, last.epsilon, last.beta), pulls.astype(float))
    assert answer.policy == 4
    assert 0 < answer.episodes < 20 * least.total
    assert answer.epochs[-1].visits[0, 0, 0] < 0.1 * answer.episodes


def test_an_answer_says_how_sure_it_is() -> None:
    world = random_world(states=3, actions=2, horizon=2, seed=1)
    policies = all_deterministic(world)
    practical = ftpedel(world, policies, None, 1.0)
    assert practical.failure_bound == 1
    careful = ftpedel(world, policies, None, 1.0, c_beta="hoeffding")
    assert 0 < careful.failure_bound <= 0.1
    assert careful.accuracy in (0.0, 4 * careful.epochs[-1].epsilon)
    assert careful.accuracy <= 1.0
    twins = np.repeat(policies[:1], 2, axis=0)
    assert ftpedel(world, twins, None, 1.0).accuracy == 1.0
    assert ftpedel(world, policies[:1], None, 1.0).accuracy == 0.0


def test_chance_needs_more_than_design() -> None:
    length = 5
    transition = np.zeros((length, length, 2, length))
    transition[:, :, 0, 0] = 1
    after = np.minimum(np.arange(length) + 1, length - 1)
    transition[:, np.arange(length), 1, after] = 1
    reward = np.zeros((length, length, 2))
    reward[-1, -1] = [0.5, 0.9]
    mdp = FiniteHorizonMDP(np.eye(length)[0], transition, reward, "chain", "bernoulli")
    world = linear_from_tabular(mdp)
    policies = softmax_class(world, 50, seed=0)
    counts = [
        ftpedel(world, policies, None, 0.5, tuning=Tuning(explore=explore)).episodes
        for explore in ("design", "uniform")
    ]
    assert counts[1] > 1.5 * counts[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(epsilon=0), "epsilon is 0"),
        (dict(epsilon=-0.1), "epsilon is -0.1"),
        (dict(epsilon=np.nan), "epsilon is nan"),
        (dict(epsilon="small"), "epsilon is 'small'"),
        (dict(delta=0), "delta is 0"),
        (dict(delta=1.0), "delta is 1.0"),
        (dict(mode="fast"), "mode is 'fast'"),
        (dict(c_beta=0), "c_beta is 0"),
        (dict(policies=np.zeros((0, 2, 3), dtype=int)), "the set of policies is empty"),
        (dict(policies=np.full((1, 2, 3), 6)), "outside 0 to 5"),
        (dict(log=empty_moments(random_world())), "make them for this world"),
        (dict(tuning=Tuning(most=100)), "at most 1e"),
    ],
)
def test_senseless_arguments_are_refused_in_one_line(change: dict, words: str) -> None:
    world = two_room(0.1)
    given = dict(policies=all_deterministic(world)) | change
    with pytest.raises(InputError, match=words) as problem:
        ftpedel(world, **given)
    assert "\n" not in str(problem.value)


def test_paper_mode_gives_up_too() -> None:
    world = two_room(0.1)
    with pytest.raises(InputError, match="pass a larger epsilon"):
        ftpedel(world, all_deterministic(world), None, 0.1, mode="paper", tuning=Tuning(most=1000))


@pytest.mark.parametrize(
    "change",
    [dict(ridge=0.0), dict(bonus=-1), dict(block=0), dict(growth=np.nan), dict(explore="x")],
)
def test_senseless_tuning_is_refused(change: dict) -> None:
    with pytest.raises(InputError):
        Tuning(**change)


# A log in a file


def log_frame(world: LinearMDP, episodes: int = 60) -> pl.DataFrame:
    """Episodes of random actions in the two rooms, as a table."""
    uniforms = stream(0, "frame").random((episodes, 1 + 3 * world.horizon))
    log = draw_episodes(world.tabular, uniform_policy(world), uniforms)
    size = world.horizon
    return pl.DataFrame(
        {
            "episode": np.repeat(np.arange(episodes), size),
            "step": np.tile(np.arange(size), episodes),
            "obs": log.states.ravel(),
            "action": log.actions.ravel(),
            "reward": log.rewards.ravel(),
            "terminated": np.tile(np.arange(size) == size - 1, episodes),
            "truncated": np.zeros(episodes * size, dtype=bool),
        }
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_log_is_read_as_it_was_written(tmp_path: Path, ending: str) -> None:
    world, file = two_room(0.1), tmp_path / f"mine.{ending}"
    frame = log_frame(world)
    frame.write_csv(file) if ending == "csv" else frame.write_parquet(file)
    rows = read_log(world, file)
    uniforms = stream(0, "frame").random((60, 7))
    direct = moments_from_episodes(
        world, draw_episodes(world.tabular, uniform_policy(world), uniforms)
    )
    assert (rows.episodes, rows.left_out) == (60, 0)
    assert rows.visits.sum() == 120
    found = rows.moments(world)
    assert np.array_equal(found.covariance, direct.covariance)
    assert np.array_equal(found.reward_sums, direct.reward_sums)
    assert np.array_equal(found.moves[0], direct.moves[0])


def test_next_observations_are_used_and_rows_without_one_left_out(tmp_path: Path) -> None:
    world = two_room(0.1)
    frame = log_frame(world)
    ahead = frame["obs"].shift(-1, fill_value=0)
    with_next = frame.with_columns(next_obs=ahead, terminated=False, truncated=pl.col("terminated"))
    with_next.write_parquet(tmp_path / "next.parquet")
    whole = read_log(world, tmp_path / "next.parquet")
    assert whole.visits.sum() == 120
    short = frame.with_columns(terminated=pl.col("terminated") | (pl.col("episode") < 5)).filter(
        ~((pl.col("episode") < 5) & (pl.col("step") == 1))
    )
    short.write_parquet(tmp_path / "short.parquet")
    cut = read_log(world, tmp_path / "short.parquet")
    assert cut.left_out == 5
    assert cut.visits.sum() == 110
    broken = frame.with_columns(next_obs=pl.when(pl.col("step") == 0).then(9).otherwise(0))
    broken.write_parquet(tmp_path / "broken.parquet")
    with pytest.raises(InputError, match=r"broken.parquet: the next obs is 9 in episode 0, step 0"):
        read_log(world, tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(obs=pl.col("obs") + 2), "obs is [34] in episode 0, step 1: this world has 0 to 2"),
        (dict(action=pl.col("action") + 3), "action is [678] in episode"),
        (dict(action=pl.col("action") - 1), "actions hold -1"),
        (dict(action=pl.col("action") + 0.5), "action is"),
        (dict(step=pl.col("step") + 1), "step is 2 in episode 0"),
        (dict(reward=pl.col("reward") * 2), "reward is 2 in episode"),
        (dict(obs=pl.lit(0)), "goes from state 0 with action"),
        (dict(terminated=False), "no row of the last layer, step 1"),
    ],
)
def test_a_log_outside_the_world_is_refused_in_one_line(
    tmp_path: Path, change: dict, words: str
) -> None:
    frame = log_frame(two_room(0.1)).with_columns(**change)
    frame.write_csv(tmp_path / "odd.csv")
    with pytest.raises(InputError, match=words) as problem:
        read_log(two_room(0.1), tmp_path / "odd.csv")
    text = str(problem.value)
    assert text.startswith("odd.csv: ")
    assert text.count("odd.csv") == 1
    assert "\n" not in text


def test_a_log_of_vectors_or_no_log_at_all_is_refused(tmp_path: Path) -> None:
    frame = log_frame(two_room(0.1))
    twice = frame.with_columns(obs_0=pl.col("obs"), obs_1=pl.col("obs")).drop("obs")
    twice.write_csv(tmp_path / "twice.csv")
    with pytest.raises(InputError, match="obs has 2 numbers a row"):
        read_log(two_room(0.1), tmp_path / "twice.csv")
    with pytest.raises(InputError, match=r"nothing\.csv"):
        read_log(two_room(0.1), tmp_path / "nothing.csv")


# How many more, and where


def test_the_top_up_is_where_the_log_has_nothing() -> None:
    world = two_room(0.05)
    policies = all_deterministic(world)
    rows = named_log(world, "two_room", 48_000, 0.5)
    covariance = rows.moments(world).covariance
    price = least_online_episodes(world, policies, covariance, 0.05, 13.0)
    table = top_up_table(world, policies, rows, price, 0.05, 13.0)
    assert len(table) == 14
    assert [row.layer for row in table] == [0] * 2 + [1] * 12
    for row in table:
        assert row.logged + row.planned >= 0.999 * row.needed
        if row.layer == 1 and row.state == 1:
            assert row.logged == 48_000
            assert row.planned < 1
    total = sum(least.episodes for least in price)
    assert sum(row.planned for row in table) == pytest.approx(total)
    assert planned_visits(world, price).sum() == pytest.approx(total)
    right = [row.planned for row in table if row.state == 2]
    assert max(right) == right[0]
    assert table[2].action == 5


def test_needs_are_unknown_where_features_are_shared() -> None:
    world = simplex_world(seed=0)
    rows = named_log(world, "simplex", 0, 0.5)
    policies = candidate_policies(world, rows)
    price = least_online_episodes(world, policies, None, 0.3)
    table = top_up_table(world, policies, rows, price, 0.3, 1.0)
    assert all(np.isnan(row.needed) for row in table)
    assert policies.shape == (500, 3, 15, 3)
    with_log = candidate_policies(world, named_log(world, "simplex", 50, 0.5))
    assert len(with_log) > 500


def test_worlds_of_a_report_have_names_or_files(tmp_path: Path) -> None:
    assert named_world("two_room", 0.1).name == two_room(0.1).name
    assert named_world("bandit", 0.1).actions_count == 5
    assert named_world("random", 0.1, 3).name.endswith("seed=3)")
    world = simplex_world(states=3, actions=2, dimension=3, horizon=2, seed=1)
    np.savez(tmp_path / "mine.npz", phi=world.phi, mu=world.mu, theta=world.theta)
    mine = named_world(str(tmp_path / "mine.npz"), 0.1)
    assert np.array_equal(mine.phi, world.phi)
    assert len(candidate_policies(mine, named_log(mine, "mine.npz", 5, 1.0))) == 2**4
    with pytest.raises(InputError, match="there is no world 'castle'"):
        named_world("castle", 0.1)
    flat = np.concatenate([world.phi, world.phi[..., :1]], axis=-1)
    more = np.concatenate([world.mu, 0 * world.mu[:, :1]], axis=1)
    theta = np.concatenate([world.theta, 0 * world.theta[:, :1]], axis=1)
    np.savez(tmp_path / "flat.npz", phi=flat, mu=more, theta=theta)
    with pytest.raises(InputError, match="the features span 3 of 4 dimensions"):
        named_world(str(tmp_path / "flat.npz"), 0.1)


def test_the_epoch_player_runs_what_is_asked_for() -> None:
    world, policies, answer = two_room_run(epsilon=0.1, pulls=12_000, seed=2)
    assert len(policies) == 72
    assert world.name == two_room(0.1).name
    assert policy_values(world, policies)[answer.policy] == pytest.approx(optimal_value(world))
    again = two_room_run(epsilon=0.1, pulls=12_000, seed=2)[2]
    assert again.episodes == answer.episodes
    bare = two_room_run(epsilon=0.1, pulls=0, seed=2)[2]
    rich = two_room_run(epsilon=0.1, pulls=12_000, right=12_000, seed=2)[2]
    assert bare.episodes > answer.episodes > rich.episodes
    assert two_room_run(epsilon=0.1, p=0.05)[0].transition[0, 0, 0, 2] == pytest.approx(0.05)
