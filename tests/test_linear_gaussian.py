"""The linear-Gaussian world: its closed forms against simulation, grids and each other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import StochasticPolicy
from offrl_wb.worlds.linear_gaussian import (
    GaussianMixture,
    Gaussians,
    LinearGaussianWorld,
    LinearPolicy,
    expected_return,
    gaussian_concentrability,
    gaussian_second_moment,
    log_density_ratio,
    normal_log_density,
    occupancy_mixture,
    quadratic_value,
    riccati_gain,
    root,
    simulate,
    visits,
)


def random_world(seed: int, states: int = 3, actions: int = 2, horizon: int = 6):
    """A world and two policies, the second with a wider noise."""
    generator = np.random.default_rng(seed)

    def covariance(size: int) -> np.ndarray:
        half = generator.standard_normal((size, size))
        return half @ half.T / size + 0.05 * np.eye(size)

    world = LinearGaussianWorld(
        dynamics=0.6 * generator.standard_normal((states, states)) / np.sqrt(states),
        control=0.5 * generator.standard_normal((states, actions)),
        noise=0.2 * covariance(states),
        start_mean=generator.standard_normal(states),
        start_covariance=covariance(states),
        state_cost=covariance(states),
        action_cost=covariance(actions),
        horizon=horizon,
        discount=0.9,
    )
    gain, noise = 0.3 * generator.standard_normal((actions, states)), 0.2 * covariance(actions)
    offset = generator.standard_normal(actions)
    policy = LinearPolicy(gain, noise, offset)
    return world, policy, LinearPolicy(gain, 3 * noise, offset)


def gaussian(mean, covariance) -> Gaussians:
    return Gaussians(np.atleast_2d(np.array(mean, float)), np.array(covariance, float)[None])


@pytest.mark.parametrize("seed", range(3))
def test_simulated_visits_have_the_exact_moments(seed):
    world, policy, _ = random_world(seed)
    runs = simulate(world, policy, 40_000, np.random.default_rng(seed))
    assert runs.observations.shape == (40_000, 7, 3)
    pairs = np.concatenate([runs.observations[:, :-1], runs.actions], axis=-1)
    exact = visits(world, policy)
    scale = np.sqrt(np.einsum("tii->ti", exact.covariances))
    assert np.abs(pairs.mean(axis=0) - exact.means).max() < 0.03 * scale.max()
    measured = np.stack([np.cov(pairs[:, t].T) for t in range(6)])
    relative = (measured - exact.covariances) / (scale[:, :, None] * scale[:, None])
    assert np.abs(relative).max() < 0.04


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), offset=st.booleans())
def test_the_value_over_the_start_is_the_return_over_the_visits(seed, offset):
    world, policy, _ = random_world(seed)
    policy = policy if offset else replace(policy, offset=None)
    value = quadratic_value(world, policy)
    start = value.at(world.start_mean) - np.trace(value.matrices[0] @ world.start_covariance)
    assert start == pytest.approx(expected_return(world, policy), rel=1e-9)


def test_the_value_of_a_later_step_is_the_return_of_the_shorter_world():
    world, policy, _ = random_world(5)
    state = np.array([0.3, -1.0, 2.0])
    short = replace(world, start_mean=state, start_covariance=np.zeros((3, 3)), horizon=4)
    later = quadratic_value(world, policy).at(state, step=2)
    assert later == pytest.approx(expected_return(short, policy), rel=1e-9)
    assert quadratic_value(world, policy).at(np.stack([state, state]), 2).shape == (2,)


def test_simulated_returns_average_to_the_exact_one():
    world, policy, _ = random_world(7)
    runs = simulate(world, policy, 40_000, np.random.default_rng(0))
    returns = runs.rewards @ world.discount ** np.arange(world.horizon)
    error = returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - expected_return(world, policy)) < 4 * error


def test_rewards_are_minus_the_cost_of_state_and_action():
    world, policy, _ = random_world(8)
    runs = simulate(world, policy, 5, np.random.default_rng(0))
    x, u = runs.observations[2, 3], runs.actions[2, 3]
    cost = x @ world.state_cost @ x + u @ world.action_cost @ u
    assert runs.rewards[2, 3] == pytest.approx(-cost)


def test_the_same_seed_gives_the_same_rollouts():
    world, policy, _ = random_world(9)
    first, again, other = (
        simulate(world, policy, 3, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first.observations == again.observations).all()
    assert (first.observations != other.observations).any()


def test_no_gain_nearby_beats_the_riccati_gain():
    world, _, _ = random_world(11, horizon=300)
    best = LinearPolicy(riccati_gain(world), np.zeros((2, 2)))
    top = expected_return(world, best)
    generator = np.random.default_rng(0)
    for _ in range(30):
        other = best.gain + 0.05 * generator.standard_normal(best.gain.shape)
        assert expected_return(world, replace(best, gain=other)) < top


def test_the_riccati_gain_of_one_dimension_solves_its_quadratic():
    world = LinearGaussianWorld([[1]], [[1]], [[1]], [0], [[1]], [[1]], [[1]], 10)
    golden = (1 + np.sqrt(5)) / 2  # P = 1 + P - P^2 / (1 + P)
    assert riccati_gain(world)[0, 0] == pytest.approx(-golden / (1 + golden), rel=1e-9)
    assert riccati_gain(world, steps=1)[0, 0] == pytest.approx(-0.5)


def test_a_free_action_without_effect_has_no_best_gain():
    world = LinearGaussianWorld([[1]], [[0]], [[1]], [0], [[1]], [[1]], [[0]], 10)
    with pytest.raises(InputError, match="not unique"):
        riccati_gain(world)


def test_a_linear_policy_is_a_stochastic_policy_whose_density_fits_its_samples():
    policy = LinearPolicy([[0.5, -1.0]], [[0.4]], [0.2])
    assert isinstance(policy, StochasticPolicy)
    states = np.tile([1.0, 2.0], (50_000, 1))
    drawn = policy.sample(states, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(-1.3, abs=0.02)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.4)
    assert -policy.log_prob(states, drawn).mean() == pytest.approx(entropy, abs=0.02)
    assert policy.act(states[:2]).tolist() == [[-1.3], [-1.3]]
    assert policy.act(states[:2], np.random.default_rng(0)).shape == (2, 1)


def test_a_deterministic_policy_has_no_density_but_acts():
    policy = LinearPolicy([[2.0]], [[0.0]])
    assert policy.act(np.array([[1.0]]), np.random.default_rng(0)).tolist() == [[2.0]]
    with pytest.raises(InputError, match="no density"):
        policy.log_prob(np.array([[1.0]]), np.array([[2.0]]))


def test_a_root_of_a_singular_covariance_exists():
    covariance = np.array([[1.0, 2.0], [2.0, 4.0]])
    assert root(covariance) @ root(covariance).T == pytest.approx(covariance)


def test_the_density_of_a_mixture_integrates_to_one():
    mixture = GaussianMixture(
        np.array([0.4, 0.0, 0.6]),
        np.array([[0.0, 0.0], [9.0, 9.0], [1.0, -1.0]]),
        np.array([np.diag([0.5, 0.3]), np.eye(2), [[1.0, 0.4], [0.4, 0.6]]]),
    )
    axis = np.linspace(-7, 8, 301)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(mixture.log_density(grid)) * (axis[1] - axis[0]) ** 2
    assert density.sum() == pytest.approx(1)
    assert (grid.T * density) @ grid == pytest.approx(mixture.second_moment, abs=1e-6)
    drawn = mixture.sample(50_000, np.random.default_rng(0))
    assert drawn.T @ drawn / len(drawn) == pytest.approx(mixture.second_moment, abs=0.03)


def test_discounting_moves_the_mixture_to_the_start():
    world, policy, _ = random_world(12)
    assert occupancy_mixture(world, policy, 0.0).weights.tolist() == [1, 0, 0, 0, 0, 0]
    half = occupancy_mixture(world, policy, 0.5).weights
    assert half[1:] / half[:-1] == pytest.approx(0.5)
    assert occupancy_mixture(world, policy).weights == pytest.approx(1 / 6)


@pytest.mark.parametrize("seed", range(3))
def test_a_density_ratio_averages_to_one_over_the_behaviour(seed):
    world, narrow, wide = random_world(seed)
    target, behaviour = (occupancy_mixture(world, p) for p in (narrow, wide))
    points = behaviour.sample(40_000, np.random.default_rng(seed))
    ratio = np.exp(log_density_ratio(target, behaviour, points))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_concentrability_bounds_the_ratio_and_the_mixture_and_is_attained(seed):
    world, narrow, wide = random_world(seed)
    p, q = visits(world, narrow), visits(world, wide)
    by_step = gaussian_concentrability(p, q)
    generator = np.random.default_rng(seed)
    for t in range(world.horizon):
        spread = p.means[t] + generator.standard_normal((300, 5)) @ root(q.covariances[t])
        logs = normal_log_density(spread, p.means[t], p.covariances[t])
        logs -= normal_log_density(spread, q.means[t], q.covariances[t])
        assert np.exp(logs.max()) <= by_step[t] * (1 + 1e-9)
        if by_step[t] < 1e6:
            inverse_p, inverse_q = np.linalg.inv(p.covariances[t]), np.linalg.inv(q.covariances[t])
            pull = inverse_p @ p.means[t] - inverse_q @ q.means[t]
            peak = np.linalg.lstsq(inverse_p - inverse_q, pull, rcond=1e-9)[0]
            log_peak = normal_log_density(peak, p.means[t], p.covariances[t])
            log_peak -= normal_log_density(peak, q.means[t], q.covariances[t])
            assert np.exp(log_peak) == pytest.approx(by_step[t], rel=1e-4)
    target, behaviour = (occupancy_mixture(world, each) for each in (narrow, wide))
    logs = log_density_ratio(target, behaviour, behaviour.sample(300, generator))
    assert np.exp(logs.max()) <= by_step.max() * (1 + 1e-9)


def test_equal_gaussians_have_concentrability_one_and_second_moment_one():
    world, policy, _ = random_world(3)
    same = visits(world, policy)
    assert gaussian_concentrability(same, same) == pytest.approx(1)
    assert gaussian_second_moment(same, same) == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "data", "finite"),
    [
        ((0.0, 1.0), (0.0, 1.01), True),
        ((0.0, 1.0), (0.0, 0.99), False),
        ((0.2, 1.0), (0.0, 1.0), False),
        ((5.0, 1.0), (0.0, 2.0), True),
    ],
)
def test_concentrability_is_finite_exactly_where_the_data_spread_wider(target, data, finite):
    value = gaussian_concentrability(
        gaussian([target[0]], [[target[1]]]), gaussian([data[0]], [[data[1]]])
    )
    assert np.isfinite(value[0]) == finite


def test_a_direction_that_is_equal_does_not_spoil_the_others():
    target = gaussian([0.5, 0.0], np.diag([0.5, 1.0]))
    data = gaussian([0.0, 0.0], np.eye(2))
    alone = gaussian_concentrability(gaussian([0.5], [[0.5]]), gaussian([0.0], [[1.0]]))
    assert gaussian_concentrability(target, data) == pytest.approx(alone)


@settings(max_examples=30)
@given(shift=st.floats(-2, 2), inner=st.floats(0.2, 1.8), outer=st.floats(1.0, 2.0))
def test_the_second_moment_is_the_integral(shift, inner, outer):
    line = np.linspace(-40, 40, 40_001)[:, None]
    log_p = normal_log_density(line, [shift], [[inner]])
    log_q = normal_log_density(line, [0.0], [[outer]])
    closed = gaussian_second_moment(gaussian([shift], [[inner]]), gaussian([0], [[outer]]))[0]
    if 2 * outer - inner > 0.3:
        by_grid = np.exp(2 * log_p - log_q).sum() * 0.002
        assert closed == pytest.approx(by_grid, rel=1e-6)
    assert closed >= 1 - 1e-12


def test_the_second_moment_is_infinite_for_data_half_as_wide():
    assert gaussian_second_moment(gaussian([0], [[2]]), gaussian([0], [[1]]))[0] == np.inf


GOOD = dict(
    dynamics=np.eye(2),
    control=np.ones((2, 1)),
    noise=np.eye(2),
    start_mean=np.zeros(2),
    start_covariance=np.eye(2),
    state_cost=np.eye(2),
    action_cost=np.eye(1),
    horizon=3,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dynamics": np.eye(3)}, "dynamics has shape"),
        ({"control": np.ones(2)}, "control has shape"),
        ({"noise": [[1, 2], [0, 1]]}, "noise is not symmetric"),
        ({"start_covariance": [[1, 2], [2, 1]]}, "start_covariance has the eigenvalue -1"),
        ({"state_cost": -np.eye(2)}, "state_cost has the eigenvalue -1"),
        ({"start_mean": [0, np.nan]}, r"start_mean at index \(1,\) is nan"),
        ({"horizon": 0}, "horizon is 0"),
        ({"discount": 1.5}, "discount is 1.5"),
    ],
)
def test_a_world_that_does_not_fit_together_is_refused(change, message):
    LinearGaussianWorld(**GOOD)
    with pytest.raises(InputError, match=message):
        LinearGaussianWorld(**(GOOD | change))


def test_policies_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="gain has shape"):
        LinearPolicy([1.0, 2.0], [[1.0]])
    with pytest.raises(InputError, match="offset has shape"):
        LinearPolicy([[1.0, 2.0]], [[1.0]], [1.0, 2.0])
    with pytest.raises(InputError, match="gain has shape"):
        visits(LinearGaussianWorld(**GOOD), LinearPolicy([[1.0]], [[1.0]]))


def test_nonsense_mixtures_and_discounts_are_refused():
    world, policy, _ = random_world(0)
    with pytest.raises(InputError, match="discount is 2"):
        occupancy_mixture(world, policy, 2)
    with pytest.raises(InputError, match="weights of a mixture"):
        GaussianMixture(np.array([0.5, 0.6]), np.zeros((2, 1)), np.ones((2, 1, 1)))


def test_a_singular_gaussian_has_no_ratio():
    flat = gaussian([0, 0], np.diag([1.0, 0.0]))
    with pytest.raises(InputError, match="no density"):
        gaussian_concentrability(flat, gaussian([0, 0], np.eye(2)))


def test_a_worlds_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        LinearGaussianWorld(**GOOD).dynamics[0, 0] = 2
