"""Experiment design: closed forms, an independent convex solver, certificates, and bad input."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.theory.experiment_design import (
    ArmDesigns,
    DesignProblem,
    FiniteDesigns,
    MarkovDesigns,
    Mixture,
    arm_demand,
    coefficient_curve,
    design_problems,
    enough,
    frank_wolfe,
    g_design,
    inverse_norms,
    least_episodes,
    least_online_episodes,
    o2o_coefficient,
    offline_norms,
    slacks,
    smooth_max,
    smooth_norm,
    spanned,
    water_filling,
    xy_design,
)
from offrl_wb.theory.policy_sets import all_deterministic, softmax_class
from offrl_wb.worlds.linear import (
    LinearMDP,
    bandit_world,
    covariances,
    random_world,
    simplex_world,
    two_room,
    two_room_visits,
)

SEEDS = st.integers(0, 10**6)


def random_bandit(seed: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Gaps, counts, epsilon and beta."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 9))
    counts = generator.poisson(10 ** generator.uniform(0, 4), size) * generator.integers(0, 2, size)
    return (
        generator.exponential(0.3, size),
        counts,
        generator.uniform(0.02, 0.5),
        10 ** generator.uniform(-1, 2),
    )


def one_hot(gaps: np.ndarray, counts: np.ndarray, epsilon: float) -> DesignProblem:
    return DesignProblem(np.eye(len(gaps)), FiniteDesigns(np.eye(len(gaps))), counts, gaps, epsilon)


def two_room_offline(world: LinearMDP, pulls: int) -> np.ndarray:
    """The diagonals of the log's covariances, `(H, d)`."""
    return two_room_visits(world, pulls).reshape(2, -1) @ world.phi.reshape(-1, world.dimension)


def random_problem(seed: int, tabular: bool, log: bool) -> DesignProblem:
    """A layer of a random world with a random log that leaves some directions out."""
    generator = np.random.default_rng(seed)
    if tabular:
        world = random_world(3, 2, 3, seed=seed)
        offline = generator.poisson(20, (3, 6)) * generator.integers(0, 2, (3, 6)) * log
    else:
        world = simplex_world(6, 2, 4, 3, seed=seed, concentration=0.5)
        rows = generator.normal(size=(3, 2, 4)) * 3 * log
        offline = np.swapaxes(rows, 1, 2) @ rows
    policies = softmax_class(world, 25, seed=seed)
    layer = int(generator.integers(3))
    return design_problems(world, policies, offline, generator.uniform(0.05, 0.3))[layer]


def occupancy_polytope(world: LinearMDP, layer: int, mass: object) -> tuple[object, list]:
    """Occupancies `(S, A)` of `layer` whose total is `mass`, and the constraints of the flow."""
    shape = (world.states, world.actions_count)
    flows = [cp.Variable(shape, nonneg=True) for _ in range(layer + 1)]
    constraints = [cp.sum(flows[0], axis=1) == world.initial * mass]
    for before, after, table in zip(flows, flows[1:], world.transition, strict=False):
        arriving = table.reshape(-1, world.states).T @ cp.vec(before, order="C")
        constraints.append(cp.sum(after, axis=1) == arriving)
    return flows[-1], constraints


def solver_norms(problem: DesignProblem, flow: object, unit: float) -> list:
    """Each policy's norm, as a convex expression of occupancies `(S, A)` in units of `unit`."""
    world, log = problem.designs.world, problem.log / unit
    flat, rows = world.phi.reshape(-1, world.dimension), problem.scaled / np.sqrt(unit)
    visits = cp.vec(flow, order="C")
    if problem.diagonal:
        used = np.flatnonzero(np.abs(rows).max(axis=0) > 0)
        return [rows[:, used] ** 2 @ cp.inv_pos((log + flat.T @ visits)[used])]
    met = rows.T @ rows / (rows**2).sum() + log / max(np.trace(log), 1e-9)
    values, vectors = np.linalg.eigh(met)
    basis = vectors[:, values > 1e-9].T  # all that policies and the log reach
    total = basis @ (log + flat.T @ cp.diag(visits) @ flat) @ basis.T
    return [cp.matrix_frac(row, (total + total.T) / 2) for row in rows @ basis.T]


def convex_coefficient(problem: DesignProblem, online: float) -> float:
    """The coefficient from occupancies by a general convex solver: no policies, no vertices."""
    flow, constraints = occupancy_polytope(problem.designs.world, problem.designs.layer, 1)
    scale = o2o_coefficient(problem, online, 0.5).value  # for the solver's units only
    top = cp.max(cp.hstack(solver_norms(problem, flow, online))) / scale
    task = cp.Problem(cp.Minimize(top), constraints)
    task.solve(solver="CLARABEL")
    return float(task.value) * scale


def convex_episodes(problem: DesignProblem, beta: float, unit: float) -> float:
    """The least number of episodes in one convex programme, in units of `unit`."""
    mass = cp.Variable(nonneg=True)
    world, layer = problem.designs.world, problem.designs.layer
    flow, constraints = occupancy_polytope(world, layer, mass)
    constraints += [norm * beta <= 1 for norm in solver_norms(problem, flow, unit)]
    task = cp.Problem(cp.Minimize(mass), constraints)
    task.solve(solver="CLARABEL")
    return float(task.value) * unit


# Water filling


@settings(max_examples=40)
@given(seed=SEEDS)
def test_the_least_number_of_episodes_of_a_bandit_is_water_filling(seed):
    gaps, counts, epsilon, beta = random_bandit(seed)
    closed = water_filling(arm_demand(gaps, epsilon, beta), counts)
    found = least_episodes(one_hot(gaps, counts, epsilon), beta)
    assert found.lower <= closed.total * (1 + 1e-9)
    assert found.episodes == pytest.approx(closed.total, rel=1.1e-3, abs=1e-12)
    if closed.total > 0:
        played = found.episodes * found.design.covariance
        assert played == pytest.approx(closed.top_up, abs=0.01 * closed.total)


@settings(max_examples=60)
@given(seed=SEEDS)
def test_water_filling_falls_with_each_count_and_is_zero_only_where_all_is_covered(seed):
    gaps, counts, epsilon, beta = random_bandit(seed)
    demand = arm_demand(gaps, epsilon, beta)
    before = water_filling(demand, counts)
    for arm in range(len(gaps)):
        after = water_filling(demand, counts + 7 * (np.arange(len(gaps)) == arm))
        assert after.total <= before.total
        assert (after.total < before.total) == (counts[arm] < demand[arm])
    assert (before.total == 0) == (counts >= demand).all()
    assert water_filling(demand, demand).total == 0


def test_a_bandit_world_is_a_list_of_arms():
    world = bandit_world([0.9, 0.5, 0.4])
    counts = np.array([[3.0, 50.0, 0.0]])
    (found,) = least_online_episodes(world, all_deterministic(world), counts, 0.1, 2.0)
    closed = water_filling(arm_demand(np.array([0, 0.4, 0.5]), 0.1, 2.0), counts[0])
    assert found.episodes == pytest.approx(closed.total, rel=1e-3)


# Norms and the smooth maximum


@settings(max_examples=40)
@given(seed=SEEDS, eta=st.floats(0.01, 100))
def test_the_gradient_is_that_of_finite_differences_and_the_bounds_hold(seed, eta):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(9, 4))
    half = generator.normal(size=(6, 4))
    covariance = half.T @ half + 0.3 * np.eye(4)
    value, gradient = smooth_norm(features, covariance, eta)
    largest = inverse_norms(features, covariance).max()
    assert largest * (1 - 1e-12) <= value <= largest + np.log(9) / eta
    along = generator.normal(size=(4, 4))
    along = (along + along.T) * 1e-6
    ahead, behind = (smooth_norm(features, covariance + s * along, eta)[0] for s in (1, -1))
    scale = np.abs(gradient * along).sum()
    assert (ahead - behind) / 2 == pytest.approx((gradient * along).sum(), abs=2e-4 * scale)


def test_the_smooth_maximum_does_not_overflow_and_its_weights_sum_to_one():
    value, weights = smooth_max(np.array([[1e5, 0.0], [-1e5, -1e5]]), 50.0)
    assert value == pytest.approx([1e5, -1e5 + np.log(2) / 50])
    assert weights.sum(axis=-1) == pytest.approx([1, 1])


@settings(max_examples=30)
@given(seed=SEEDS, count=st.floats(1, 1e6))
def test_norms_of_means_are_norms_of_sums_times_their_number(seed, count):
    generator = np.random.default_rng(seed)
    features, halves = generator.normal(size=(5, 3)), generator.normal(size=(2, 8, 3))
    mean, log = np.swapaxes(halves, 1, 2) @ halves
    one = inverse_norms(features, mean + log / count)
    assert one == pytest.approx(count * inverse_norms(features, count * mean + log), rel=1e-7)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_diagonal_covariance_is_the_full_one(seed):
    generator = np.random.default_rng(seed)
    features, diagonal = generator.normal(size=(6, 5)), generator.exponential(size=5) + 0.01
    full = np.diag(diagonal)
    assert inverse_norms(features, diagonal) == pytest.approx(inverse_norms(features, full))
    value, gradient = smooth_norm(features, diagonal, 2.0)
    whole = smooth_norm(features, full, 2.0)
    assert value == pytest.approx(whole[0])
    assert gradient == pytest.approx(np.diagonal(whole[1]))


@settings(max_examples=40)
@given(seed=SEEDS, kappa=st.floats(1e-2, 1e9))
def test_slacks_solve_their_equation(seed, kappa):
    worth = 10 ** np.random.default_rng(seed).uniform(-3, 3, size=20)
    slack = slacks(worth, kappa)
    assert (slack > 0).all()
    assert (1 / slack).sum() == pytest.approx(kappa, rel=1e-6)
    assert np.ptp(worth - slack) <= 1e-12 * worth.max()


# Oracles


@settings(max_examples=25)
@given(seed=SEEDS, tabular=st.booleans())
def test_dynamic_programming_finds_the_best_of_all_deterministic_policies(seed, tabular):
    generator = np.random.default_rng(seed)
    world = random_world(3, 2, 3, seed) if tabular else simplex_world(3, 2, 3, 3, seed)
    every = covariances(world, all_deterministic(world))
    for layer in range(3):
        oracle = MarkovDesigns(world, layer)
        half = generator.normal(size=(2, world.dimension))
        m = np.diag(half[0] ** 2) if oracle.diagonal else half.T @ half
        found = oracle.best(np.diagonal(m) if oracle.diagonal else m)
        assert found.value == pytest.approx((every[:, layer] * m).sum(axis=(1, 2)).max())
        played = covariances(world, found.label[None])[0, layer]
        full = np.diag(found.covariance) if oracle.diagonal else found.covariance
        assert full == pytest.approx(played)


@pytest.mark.parametrize("tabular", [True, False])
def test_all_policies_listed_and_all_policies_planned_for_give_one_coefficient(tabular):
    world = random_world(2, 2, 2, 4) if tabular else simplex_world(3, 2, 3, 2, 4)
    policies = all_deterministic(world)
    planned = design_problems(world, policies, None, 0.1)[1]
    listed = FiniteDesigns(covariances(world, policies)[:, 1])
    found = o2o_coefficient(DesignProblem(planned.features, listed, None, planned.gaps, 0.1), 9.0)
    assert found.value == pytest.approx(o2o_coefficient(planned, 9.0).value, rel=2e-3)


def test_a_tabular_world_with_a_log_that_is_not_is_written_out():
    world = random_world(3, 2, 2, 1)
    diagonal = np.arange(6.0)
    policies = all_deterministic(world)
    tilt = np.zeros((2, 6, 6))
    tilt[1] = np.diag(diagonal) + 1e-7 * np.ones((6, 6))
    flat = design_problems(world, policies, np.stack([diagonal, diagonal]), 0.2)[1]
    full = design_problems(world, policies, tilt, 0.2)[1]
    assert flat.diagonal
    assert not full.diagonal
    found, same = o2o_coefficient(full, 30.0), o2o_coefficient(flat, 30.0)
    assert found.value == pytest.approx(same.value, rel=2e-3)
    assert np.diagonal(found.covariance) == pytest.approx(same.covariance, abs=0.02)


# The coefficient, against a convex solver and closed forms


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("tabular", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_coefficient_agrees_with_a_convex_solver_and_its_bounds_enclose_that(
    seed, tabular, log
):
    problem = random_problem(seed, tabular, log)
    online = 10.0 ** (1 + seed / 2)
    found, answer = o2o_coefficient(problem, online), convex_coefficient(problem, online)
    assert found.gap <= 1e-3
    assert found.value == pytest.approx(answer, rel=2e-3)
    assert found.lower <= answer * 1.001
    assert found.value >= answer * 0.999
    total = online * found.covariance + problem.ground.base
    largest = inverse_norms(problem.scaled, total).max()
    assert largest == pytest.approx(found.value, rel=1e-6)


@pytest.mark.parametrize("tabular", [False, True])
def test_frank_wolfe_alone_comes_within_one_per_cent_of_the_convex_solver(tabular):
    problem = random_problem(11, tabular, True)
    answer = convex_coefficient(problem, 50.0)
    found = frank_wolfe(problem, 50.0)
    assert found.lower <= answer * 1.001
    assert answer * 0.999 <= found.value <= 1.01 * answer
    assert found.steps <= 1500
    assert frank_wolfe(problem, 50.0, 40).gap >= found.gap


@pytest.mark.parametrize(("tabular", "seed"), [(True, 0), (True, 1), (False, 2), (False, 3)])
def test_the_least_number_of_episodes_agrees_with_a_convex_solver(tabular, seed):
    problem = random_problem(seed, tabular, True)
    found = least_episodes(problem, 3.0)
    assert found.episodes > 0
    answer = convex_episodes(problem, 3.0, found.episodes)
    assert found.lower * 0.999 <= answer
    assert found.episodes == pytest.approx(answer, rel=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_certificate_holds_for_every_number_of_episodes(seed):
    problem = random_problem(seed, seed % 2 == 0, True)
    certificate = o2o_coefficient(problem, 40.0).certificate
    assert certificate is not None
    for online in (1.0, 10.0, 40.0, 200.0, 5000.0):
        truth = o2o_coefficient(problem, online)
        assert certificate.coefficient(online) <= truth.value * (1 + 1e-9)
        assert certificate.episodes(truth.value) <= online * (1 + 1e-9)
    assert certificate.coefficient(40.0) == pytest.approx(o2o_coefficient(problem, 40.0).lower)


def test_shares_are_those_of_policies_that_can_be_played():
    world = simplex_world(seed=2)
    policies = softmax_class(world, 60, seed=2)
    problem = design_problems(world, policies, None, 0.1)[2]
    found = o2o_coefficient(problem, 100.0)
    assert found.weights.sum() == pytest.approx(1)
    assert (np.diff(found.weights) <= 0).all()
    assert found.importance.sum() == pytest.approx(1, abs=1e-6)
    played = covariances(world, np.stack(found.labels))[:, 2]
    assert np.tensordot(found.weights, played, 1) == pytest.approx(found.covariance)


# Reductions


@pytest.mark.parametrize("seed", range(3))
def test_without_a_log_the_coefficient_is_pedels_measure_over_the_number_of_episodes(seed):
    problem = random_problem(seed, seed == 0, False)
    once = o2o_coefficient(problem, 1.0).value
    assert once <= problem.designs.dimension / problem.epsilon**2 * 1.001
    for online in (7.0, 1e3, 1e7):
        assert o2o_coefficient(problem, online).value * online == pytest.approx(once, rel=2e-3)
    assert least_episodes(problem, 2.0).episodes == pytest.approx(2 * once, rel=2e-3)
    assert o2o_coefficient(problem, 0.0).value == np.inf


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("tabular", [False, True])
def test_without_episodes_the_coefficient_is_the_logs_worst_coverage(tabular, ridge):
    generator = np.random.default_rng(0)
    world = random_world(2, 2, 1, 0) if tabular else simplex_world(4, 2, 3, 2, 0)
    half = generator.normal(size=(9, world.dimension))
    log = np.diag(half[0] ** 2) if tabular else half.T @ half
    policies = all_deterministic(world)[:20]
    problem = design_problems(world, policies, np.stack([log] * world.horizon), 0.3, ridge)[0]
    found = o2o_coefficient(problem, 0.0)
    exact = inverse_norms(problem.scaled, log + ridge * np.eye(len(log)))
    assert found.value == pytest.approx(exact.max())
    assert found.lower == found.value
    assert not found.labels
    assert found.gap == 0
    assert offline_norms(problem) == pytest.approx(exact)


def test_a_log_with_a_hole_covers_the_policies_that_keep_out_of_it():
    features = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    for log in (np.array([4.0, 0.0, 2.0]), np.diag([4.0, 0.0, 2.0])):
        for designs in (FiniteDesigns(np.eye(3)), ArmDesigns(np.eye(3))):
            problem = DesignProblem(features, designs, log)
            assert offline_norms(problem) == pytest.approx([1 / 4, np.inf, 1 / 16 + 1 / 8])


def test_a_log_that_covers_all_policies_leaves_no_episodes():
    world = random_world(3, 2, 2, 5)
    found = least_online_episodes(world, all_deterministic(world), np.full((2, 6), 1e6), 0.1)
    assert [layer.episodes for layer in found] == [0.0, 0.0]
    assert [layer.lower for layer in found] == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_more_episodes_more_log_and_more_ridge_never_raise_the_coefficient(seed):
    problem = random_problem(seed, seed % 2 == 0, True)
    designs, gaps, epsilon = problem.designs, problem.gaps, problem.epsilon
    base = o2o_coefficient(problem, 20.0)
    for extra in (
        o2o_coefficient(problem, 25.0),
        o2o_coefficient(
            DesignProblem(problem.features, designs, 1.5 * problem.log, gaps, epsilon), 20.0
        ),
        o2o_coefficient(
            DesignProblem(problem.features, designs, problem.log, gaps, epsilon, 1.0), 20.0
        ),
        o2o_coefficient(
            DesignProblem(problem.features[:5], designs, problem.log, gaps[:5], epsilon), 20.0
        ),
    ):
        assert extra.lower <= base.value * (1 + 1e-9)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_units_do_not_matter(seed):
    problem = random_problem(seed, True, True)
    found = o2o_coefficient(problem, 30.0)
    gaps, epsilon = problem.gaps / 1e3, problem.epsilon / 1e3
    scaled = DesignProblem(problem.features, problem.designs, 1e5 * problem.log, gaps, epsilon)
    assert o2o_coefficient(scaled, 30e5).value == pytest.approx(10 * found.value, rel=2e-3)


def test_policies_that_visit_nothing_cost_nothing():
    problem = DesignProblem(np.zeros((3, 2)), FiniteDesigns(np.eye(2)))
    assert o2o_coefficient(problem, 5.0).value == 0
    assert o2o_coefficient(problem, 0.0).value == 0
    assert frank_wolfe(problem, 5.0).gap == 0
    assert least_episodes(problem).episodes == 0
    mixture = Mixture()
    assert [found.value for found in coefficient_curve(problem, [1.0, 2.0])] == [0, 0]
    assert o2o_coefficient(problem, 5.0, mixture=mixture).value == 0
    assert o2o_coefficient(problem, 5.0, mixture=mixture).value == 0


def test_a_curve_is_what_its_points_are_alone():
    problem = random_problem(7, False, True)
    numbers = [0.0, 3.0, 1000.0, 20.0]
    for online, found in zip(numbers, coefficient_curve(problem, numbers, 1e-3), strict=True):
        alone = o2o_coefficient(problem, online)
        assert found.online == online
        assert found.value == pytest.approx(alone.value, rel=2e-3)


def test_few_rounds_leave_a_gap_that_is_shown():
    problem = random_problem(3, False, True)
    rough, fine = o2o_coefficient(problem, 50.0, 1e-6, rounds=1), o2o_coefficient(problem, 50.0)
    assert rough.gap > 1e-6
    assert rough.lower <= fine.value
    assert rough.value >= fine.lower
    loose = least_episodes(problem, 30.0, 1e-6, passes=1)
    tight = least_episodes(problem, 30.0)
    assert loose.episodes - loose.lower > tight.episodes - tight.lower
    assert loose.lower <= tight.episodes


@pytest.mark.parametrize("short", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_log_that_is_nearly_enough_does_not_loosen_the_bounds(short):
    """The coefficient is nearly flat there: small errors in it are large ones in episodes."""
    for epsilon, share, pulls in ((0.03, 0.24, 100_000), (0.0125, 0.025, 50_000), (0.1, 0.1, 20)):
        world = two_room(epsilon, p=share)
        visits = two_room_visits(world, pulls, max(1, pulls // 19)).reshape(2, -1)
        visits[0, 1] = visits[0, 0] // 3  # "explore" as well
        log = visits @ world.phi.reshape(-1, world.dimension)
        for problem in design_problems(world, all_deterministic(world), log, epsilon):
            found = least_episodes(problem, (1 + short) / offline_norms(problem).max())
            assert 0 < found.lower <= found.episodes <= 1.001 * found.lower


@pytest.mark.parametrize("seed", range(6))
def test_a_tolerance_near_rounding_is_no_error(seed):
    problem = random_problem(seed, seed % 2 == 0, True)
    fine, plain = o2o_coefficient(problem, 50.0, 1e-12, 30), o2o_coefficient(problem, 50.0)
    assert fine.value == pytest.approx(plain.value, rel=1e-3)
    assert fine.gap <= 1e-4


# Two rooms

PRINTED = {0.1: (308, 36.2), 0.05: (1004, 36.2), 0.025: (3777, 36.3), 0.0125: (14746, 36.3)}


@pytest.mark.parametrize("epsilon", PRINTED)
def test_two_rooms_need_as_many_episodes_as_the_table_says(epsilon):
    world = two_room(epsilon)
    policies = all_deterministic(world)
    offline = two_room_offline(world, round(120 / epsilon**2))
    alone = least_online_episodes(world, policies, None, epsilon)[1]
    hybrid = least_online_episodes(world, policies, offline, epsilon)[1]
    assert alone.episodes == pytest.approx(PRINTED[epsilon][0], rel=0.01)
    assert hybrid.episodes == pytest.approx(PRINTED[epsilon][1], rel=0.01)
    for found in (alone, hybrid):
        assert found.episodes - found.lower <= 1e-3 * found.episodes
    assert hybrid.episodes == pytest.approx(36, rel=0.005)  # 16 + 4 (A - 1)
    right = hybrid.episodes * hybrid.design.covariance[8:]
    assert right == pytest.approx([4, 4, 4, 4, 4, 16], rel=0.02)


def test_two_rooms_agree_with_a_convex_solver():
    world = two_room(0.05)
    policies = all_deterministic(world)
    for log, unit in ((None, 1000.0), (two_room_offline(world, 48_000), 36.0)):
        problem = design_problems(world, policies, log, 0.05)[1]
        answer = convex_episodes(problem, 1.0, unit)
        assert least_episodes(problem).episodes == pytest.approx(answer, rel=2e-3)


def test_where_room_r_is_not_rare_a_log_of_room_l_saves_little():
    """All policies meet R then, and its directions cost epsilon^-2 themselves."""
    world = two_room(0.05, p=0.5)
    found = least_online_episodes(
        world, all_deterministic(world), two_room_offline(world, 48_000), 0.05
    )[1]
    assert found.episodes > 100


# Designs of arms


@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_g_design_has_the_value_of_kiefer_and_wolfowitz(seed):
    generator = np.random.default_rng(seed)
    dimension = int(generator.integers(1, 7))
    arms = generator.normal(size=(dimension + int(generator.integers(0, 40)), dimension))
    found = g_design(arms)
    assert found.weights.sum() == pytest.approx(1)
    assert found.lower <= dimension * (1 + 1e-9)
    assert dimension * (1 - 1e-9) <= found.value <= 1.001 * dimension
    total = (arms.T * found.weights) @ arms
    assert inverse_norms(arms, total).max() == pytest.approx(found.value)


@pytest.mark.parametrize("seed", range(3))
def test_an_xy_design_agrees_with_a_convex_solver(seed):
    generator = np.random.default_rng(seed)
    arms = generator.normal(size=(12, 3))
    directions = arms[:1] - arms[1:5]
    weights = cp.Variable(12, nonneg=True)
    total = arms.T @ cp.diag(weights) @ arms
    top = cp.max(cp.hstack([cp.matrix_frac(y, (total + total.T) / 2) for y in directions]))
    task = cp.Problem(cp.Minimize(top), [cp.sum(weights) == 1])
    task.solve(solver="CLARABEL")
    found = xy_design(arms, directions)
    assert found.value == pytest.approx(task.value, rel=2e-3)
    assert found.value < 4 * g_design(arms).value  # at most twice the radius


def test_an_xy_design_leaves_alone_what_it_is_not_asked_about():
    found = xy_design(np.eye(3), np.array([[2.0, 0.0, 0.0]]))
    assert found.weights == pytest.approx([1, 0, 0], abs=2e-3)
    assert found.value == pytest.approx(4, rel=1e-3)
    flat = xy_design(np.eye(3)[:2], np.eye(3)[:2])
    assert flat.value == pytest.approx(2, rel=1e-3)


# Bad input

SPANNED = FiniteDesigns(np.diag([1.0, 1.0, 0.0])[:2])
BAD = {
    "gaps at least 0": (lambda: arm_demand(np.array([0.1, -0.2]), 0.1), r"gaps\[1\] is -0.2"),
    "epsilon above 0": (
        lambda: arm_demand(np.array([0.1]), 0.0),
        "epsilon is 0.0: pass a positive",
    ),
    "beta above 0": (lambda: arm_demand(np.array([0.1]), 0.1, -1.0), "beta is -1.0"),
    "counts": (lambda: water_filling(np.ones(2), np.array([1, -3])), r"counts\[1\] is -3"),
    "lengths": (lambda: water_filling(np.ones(2), np.ones(3)), "2 demands and 3 counts"),
    "no numbers": (lambda: water_filling("many", np.ones(3)), "demand must be numbers"),
    "no arms": (lambda: water_filling(np.zeros(0), np.zeros(0)), "array of 1 axes"),
    "singular": (lambda: inverse_norms(np.eye(2), np.array([1.0, 0.0])), "direction 1 is 0"),
    "singular matrix": (lambda: inverse_norms(np.eye(2), np.ones((2, 2))), "is singular"),
    "eta": (lambda: smooth_max(np.ones(3), 0.0), "eta is 0.0"),
    "rank": (lambda: g_design(np.ones((5, 2))), "the 5 features span 1 of 2 dimensions"),
    "not spanned": (lambda: xy_design(np.eye(3)[:2], np.eye(3)), "direction 2 is not spanned"),
    "arms": (lambda: xy_design(np.eye(3), np.eye(2)), "arms have 3 entries, directions 2"),
    "nan": (lambda: ArmDesigns(np.array([[1.0, np.nan]])), r"arms\[0, 1\] is nan"),
    "square": (lambda: FiniteDesigns(np.ones((2, 3, 4))), r"\(V, d, d\) or \(V, d\)"),
    "negative covariance": (lambda: FiniteDesigns(-np.ones((1, 2))), "at least 0"),
    "indefinite": (lambda: FiniteDesigns(np.diag([1.0, -1])[None]), "no negative eigenvalue"),
    "layer": (lambda: MarkovDesigns(two_room(0.1), 2), "layer 2: this world has 0 to 1"),
    "dimension": (lambda: DesignProblem(np.eye(2), SPANNED), "features have 2 entries"),
    "gap count": (lambda: DesignProblem(np.eye(3), SPANNED, gaps=np.ones(2)), "3 policies and 2"),
    "problem's epsilon": (lambda: DesignProblem(np.eye(3), SPANNED, epsilon=-1.0), "epsilon is -1"),
    "ridge": (lambda: DesignProblem(np.eye(3), SPANNED, ridge=np.nan), "ridge is nan"),
    "log's shape": (lambda: DesignProblem(np.eye(3), SPANNED, np.ones(2)), r"shape \(2,\)"),
    "log's sign": (lambda: DesignProblem(np.eye(3), SPANNED, -np.ones(3)), "offline covariance"),
    "log's symmetry": (
        lambda: DesignProblem(np.eye(3), SPANNED, np.triu(np.ones((3, 3)))),
        "must be symmetric",
    ),
    "unreachable": (
        lambda: o2o_coefficient(DesignProblem(np.eye(3), SPANNED), 5.0),
        "policy 2 have a part that no design and no log reaches",
    ),
    "unreachable, full": (
        lambda: o2o_coefficient(DesignProblem(np.eye(3), ArmDesigns(np.eye(3)[:2])), 5.0),
        "policy 2 have a part that no design and no log reaches",
    ),
    "online": (lambda: o2o_coefficient(DesignProblem(np.eye(3), SPANNED), -1.0), "online is -1"),
    "tolerance": (
        lambda: o2o_coefficient(DesignProblem(np.eye(3), SPANNED), 1.0, 0.0),
        "tolerance is 0",
    ),
    "least beta": (
        lambda: least_episodes(DesignProblem(np.eye(3), SPANNED), np.inf),
        "beta is inf",
    ),
    "only the log": (
        lambda: least_episodes(DesignProblem(np.eye(3), SPANNED, np.array([0, 0, 0.5])), 1.0),
        "that only the log reaches",
    ),
    "no policies": (
        lambda: design_problems(two_room(0.1), np.zeros((0, 2, 3), dtype=int)),
        "the set of policies is empty",
    ),
    "log's layers": (
        lambda: design_problems(two_room(0.1), np.zeros((1, 2, 3), dtype=int), np.ones((3, 14))),
        "offline has 3 layers, the world 2",
    ),
    "log's axes": (
        lambda: design_problems(two_room(0.1), np.zeros((1, 2, 3), dtype=int), np.ones(14)),
        r"pass \(H, d, d\) or \(H, d\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case):
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_log_may_reach_what_no_policy_does():
    problem = DesignProblem(np.eye(3), SPANNED, np.array([0.0, 0.0, 2.0]))
    found = least_episodes(problem, 2.0)
    assert found.episodes == pytest.approx(4, rel=1e-3)
    assert enough(problem, np.array([0.5, 0.5, 0.0]), 0.5, 1.0) == pytest.approx(4)
    assert enough(problem, np.array([0.5, 0.5, 0.0]), 0.4, 1.0) == np.inf


def test_a_ridge_reaches_everything():
    problem = DesignProblem(np.eye(3), ArmDesigns(np.eye(3)[:2]), ridge=0.1)
    assert o2o_coefficient(problem, 100.0).value == pytest.approx(10)
    assert np.array_equal(spanned(np.diag([1.0, 0.0])), np.diag([1.0, 0.0]))


def test_the_same_problem_gives_the_same_answer():
    first, second = (o2o_coefficient(random_problem(5, False, True), 10.0) for _ in range(2))
    assert first.value == second.value
    assert np.array_equal(first.weights, second.weights)
