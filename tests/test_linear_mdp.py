"""Linear worlds: nothing lost from tabular ones, the recursion, moments, what is refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.worlds import linear
from offrl_wb.worlds.layered import Episodes, decoy_chains, draw_counts, draw_episodes
from offrl_wb.worlds.linear import (
    LinearMDP,
    add_moments,
    as_probabilities,
    bandit_world,
    check_possible,
    check_spanning,
    count_episodes,
    covariances,
    draw_log,
    empty_moments,
    feature_visitations,
    linear_from_tabular,
    linear_world,
    mean_features,
    moments_from_counts,
    moments_from_episodes,
    occupancies,
    optimal_policy,
    optimal_value,
    policy_values,
    propagate,
    random_world,
    reachable_rank,
    read_linear_world,
    simplex_world,
    state_visitations,
    two_room,
    two_room_visits,
    visitation_values,
)
from offrl_wb.worlds.tabular import (
    FiniteHorizonMDP,
    evaluate_horizon,
    occupancy_horizon,
    plan_horizon,
)


def tabular_world(seed: int, states: int, actions: int, horizon: int) -> FiniteHorizonMDP:
    """A random world, a random start, about a third of the transitions impossible."""
    generator = np.random.default_rng(seed)
    shape = (horizon, states, actions, states)
    transition = generator.random(shape) * (generator.random(shape) < 0.7)
    transition[..., 0] += 0.05
    transition /= transition.sum(axis=-1, keepdims=True)
    initial = generator.dirichlet(np.ones(states))
    return FiniteHorizonMDP(initial, transition, generator.random(shape[:3]), "random")


def some_policies(world: LinearMDP, seed: int, count: int = 6) -> np.ndarray:
    shape = (count, world.horizon, world.states)
    return np.random.default_rng(seed).dirichlet(np.ones(world.actions_count), size=shape)


tables = st.builds(
    tabular_world,
    seed=st.integers(0, 10**6),
    states=st.integers(1, 6),
    actions=st.integers(1, 4),
    horizon=st.integers(1, 4),
)
simplices = st.builds(
    lambda seed, states, actions, horizon, share: simplex_world(
        states, actions, 1 + int(share * (states * actions - 1)), horizon, seed
    ),
    seed=st.integers(0, 10**6),
    states=st.integers(1, 6),
    actions=st.integers(1, 4),
    horizon=st.integers(1, 4),
    share=st.floats(0, 1),
)


# Tabular worlds


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 10**6))
def test_a_tabular_world_becomes_linear_without_loss(mdp, seed):
    world = linear_from_tabular(mdp)
    assert (world.transition == mdp.transition).all()
    assert (world.reward == mdp.reward).all()
    policies = some_policies(world, seed)
    flows = occupancy_horizon(mdp, policies)
    values = evaluate_horizon(mdp, policies)[:, 0] @ mdp.initial
    assert (
        np.abs(feature_visitations(world, policies) - flows.reshape(6, mdp.horizon, -1)).max()
        < 1e-12
    )
    assert np.abs(occupancies(world, policies) - flows).max() < 1e-12
    assert np.abs(policy_values(world, policies) - values).max() < 1e-12
    assert abs(optimal_value(world) - plan_horizon(mdp).values[0] @ mdp.initial) < 1e-12
    back = world.tabular
    assert (back.transition == mdp.transition).all()
    assert (back.reward == mdp.reward).all()
    assert back.noise == mdp.noise


def test_pairs_that_are_alike_may_share_a_direction_and_others_may_not():
    chains = decoy_chains(actions=3, horizon=2).mdp
    shared = np.array([[0, 1, 2], [3, 3, 3], [4, 4, 4]])
    with pytest.raises(InputError, match="state 0, action 1 shares direction 0"):
        linear_from_tabular(chains, np.zeros((3, 3), dtype=int))
    world = linear_from_tabular(
        FiniteHorizonMDP(chains.initial, chains.transition, chains.reward), shared
    )
    assert world.dimension == 5
    assert (world.transition == chains.transition).all()
    assert world.distinct_actions.sum(axis=1).tolist() == [3, 1, 1]
    assert (world.directions == shared).all()
    for bad, told in (
        (shared + 1, "numbered 0 to 4"),
        (shared.astype(float), "whole numbers"),
        (shared[:2], "whole numbers"),
    ):
        with pytest.raises(InputError, match=told):
            linear_from_tabular(chains, bad)


def test_one_hot_covariances_are_diagonal_and_hold_the_occupancy():
    world = random_world(4, 3, 3, seed=1)
    policies = some_policies(world, 0)
    flows = occupancy_horizon(world.tabular, policies).reshape(6, 3, 12)
    assert np.allclose(covariances(world, policies), flows[..., None] * np.eye(12), atol=1e-14)


# The recursion


def looped(world: LinearMDP, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visitations and values, one policy and one state at a time."""
    visits = np.zeros((len(table), world.horizon, world.dimension))
    values = np.zeros(len(table))
    for i, policy in enumerate(table):
        arriving = world.initial
        for h in range(world.horizon):
            for s in range(world.states):
                for a in range(world.actions_count):
                    visits[i, h] += arriving[s] * policy[h, s, a] * world.phi[s, a]
            values[i] += visits[i, h] @ world.theta[h]
            arriving = visits[i, h] @ world.mu[h]
    return visits, values


@settings(max_examples=30, deadline=None)
@given(simplices, st.integers(0, 10**6))
def test_the_batched_recursion_is_a_loop_over_policies(world, seed):
    policies = some_policies(world, seed)
    visits, values = looped(world, policies)
    fast = feature_visitations(world, policies)
    assert np.abs(fast - visits).max() < 1e-12
    assert np.abs(policy_values(world, policies) - values).max() < 1e-12
    assert np.abs(visitation_values(world, fast) - values).max() < 1e-12
    exact = evaluate_horizon(world.tabular, policies)[:, 0] @ world.initial
    assert np.abs(values - exact).max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(simplices, st.integers(0, 10**6))
def test_integer_actions_are_policies_too(world, seed):
    shape = (7, world.horizon, world.states)
    actions = np.random.default_rng(seed).integers(world.actions_count, size=shape)
    table = as_probabilities(world, actions)
    assert (table.argmax(axis=-1) == actions).all()
    assert as_probabilities(world, table) is table
    for function in (feature_visitations, state_visitations, occupancies, covariances):
        assert np.abs(function(world, actions) - function(world, table)).max() < 1e-13


@settings(max_examples=30, deadline=None)
@given(simplices, st.integers(0, 10**6))
def test_visited_states_and_pairs_are_those_of_the_tabular_world(world, seed):
    policies = some_policies(world, seed)
    flows = occupancy_horizon(world.tabular, policies)
    assert np.abs(state_visitations(world, policies) - flows.sum(axis=-1)).max() < 1e-12
    outer = world.phi[..., :, None] * world.phi[..., None, :]
    wanted = np.einsum("nhsa,sade->nhde", flows, outer)
    assert np.abs(covariances(world, policies) - wanted).max() < 1e-12


def test_blocks_of_policies_change_nothing(monkeypatch):
    world = simplex_world(7, 3, 5, 3, seed=2)
    policies = some_policies(world, 1, 50)
    once, values = feature_visitations(world, policies), policy_values(world, policies)
    monkeypatch.setattr(linear, "BLOCK", 100)
    assert np.allclose(feature_visitations(world, policies), once, rtol=0, atol=1e-15)
    assert np.allclose(policy_values(world, policies), values, rtol=0, atol=1e-15)
    assert policy_values(world, policies[:0]).shape == (0,)


def test_the_recursion_takes_estimates_that_are_no_distributions():
    generator = np.random.default_rng(0)
    features, measures = generator.normal(size=(4, 2, 3)), generator.normal(size=(3, 3, 4))
    policies = generator.dirichlet(np.ones(2), size=(5, 3, 4))
    x = np.broadcast_to(generator.normal(size=4), (5, 4))
    wanted, start = [], x[0]
    for h in range(3):
        wanted.append(np.einsum("ns,nsa,sad->nd", x, policies[:, h], features))
        assert np.allclose(mean_features(features, x, policies[:, h]), wanted[-1])
        x = wanted[-1] @ measures[h]
    assert np.allclose(propagate(features, measures, start, policies), np.stack(wanted, axis=1))


@settings(max_examples=30, deadline=None)
@given(simplices)
def test_an_optimal_policy_is_worth_the_optimal_value(world):
    best = optimal_policy(world)
    assert np.isclose(policy_values(world, best[None])[0], optimal_value(world), atol=1e-12)
    assert policy_values(world, some_policies(world, 0)).max() <= optimal_value(world) + 1e-12


def test_of_equal_actions_the_first_is_optimal():
    world = two_room(0.1)
    assert optimal_policy(world)[0, 0] == 0
    assert optimal_policy(bandit_world([0.3, 0.7, 0.7])).tolist() == [[1]]


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        (np.zeros((2, 3), dtype=int), "integer actions"),
        (np.zeros((1, 2, 3)), "integer actions"),
        (np.zeros((1, 2, 3, 6), dtype=int), "integer actions"),
        (np.full((1, 2, 3), 6), "outside 0 to 5"),
        (np.full((1, 2, 3), -1), "outside 0 to 5"),
        (np.full((1, 2, 3, 6), 0.2), "policy 0, layer 0, state 0"),
        (np.full((1, 2, 3, 6), np.nan), "policy 0, layer 0, state 0"),
        (np.tile([1.5, -0.5, 0, 0, 0, 0], (1, 2, 3, 1)), "policy 0, layer 0, state 0"),
    ],
)
def test_what_is_no_policy_is_refused(policies, told):
    for function in (feature_visitations, policy_values, covariances):
        with pytest.raises(InputError, match=told):
            function(two_room(0.05), policies)


# Worlds


def test_the_two_rooms_are_those_described():
    world = two_room(0.05)
    assert (world.horizon, world.states, world.actions_count, world.dimension) == (2, 3, 6, 14)
    assert world.distinct_actions.sum(axis=1).tolist() == [2, 6, 6]
    assert reachable_rank(world).tolist() == [2, 12]
    assert world.transition[0, 0, 0].tolist() == [0, 0.8, 0.2]
    assert world.transition[0, 0, 1].tolist() == [0, 0, 1]
    assert (world.transition[0, 0, 2:] == world.transition[0, 0, 0]).all()
    assert world.reward[1, 1].tolist() == [0.75] * 5 + [0.85]
    assert world.reward[1, 2].tolist() == [0] * 5 + [0.5]
    assert (world.reward[0] == 0).all()
    assert world.noise == "bernoulli"
    wrong = np.tile(optimal_policy(world), (2, 1, 1))
    wrong[0, 1, 1], wrong[1, 1, 2] = 0, 0
    losses = optimal_value(world) - policy_values(world, wrong)
    assert losses == pytest.approx([0.8 * 0.1, 0.1], abs=1e-12)


def test_the_two_rooms_take_their_sizes():
    world = two_room(0.1, actions=3, p=0.5, best=(1, 0))
    assert world.dimension == 8
    assert world.transition[0, 0, 0].tolist() == [0, 0.5, 0.5]
    assert world.reward[1, 1:].tolist() == [[0.75, 0.95, 0.75], [0.5, 0, 0]]
    for sizes, told in (
        (dict(epsilon=0), "epsilon 0,"),
        (dict(epsilon=0.2), "epsilon 0.2"),
        (dict(epsilon=float("nan")), "epsilon nan"),
        (dict(p=1.1), "p 1.1"),
        (dict(actions=1), "actions is 1"),
        (dict(best=(0, 6)), "best arms are 0 and 6"),
    ):
        with pytest.raises(InputError, match=told):
            two_room(**sizes)


@settings(max_examples=30, deadline=None)
@given(simplices)
def test_simplex_worlds_span_and_keep_to_the_norms(world):
    check_spanning(world)
    assert np.allclose(world.phi.sum(axis=-1), 1)
    assert (
        world.phi.reshape(-1, world.dimension)[: world.dimension] == np.eye(world.dimension)
    ).all()
    assert max(world.norms) <= 1 + 1e-12


def test_the_same_seed_gives_the_same_world():
    assert (simplex_world(seed=3).mu == simplex_world(seed=3).mu).all()
    assert (simplex_world(seed=3).mu != simplex_world(seed=4).mu).any()
    assert (random_world(seed=3).mu == random_world(seed=3).mu).all()
    for bad in (dict(dimension=46), dict(concentration=0), dict(dimension=0), dict(states=1.5)):
        with pytest.raises(InputError):
            simplex_world(**bad)


def test_norms_are_measured():
    world = LinearMDP(np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 0.5), np.full((1, 1), 0.2), [1])
    assert world.norms == (2, 0.2, 0.5)


def test_a_last_layer_without_measures_ends_the_episode():
    world = simplex_world(5, 2, 3, 2, seed=0)
    ended = LinearMDP(world.phi, [world.mu[0], 0 * world.mu[1]], world.theta, world.initial)
    policies = some_policies(world, 0)
    assert (policy_values(ended, policies) == policy_values(world, policies)).all()
    assert (ended.transition[-1, ..., 0] == 1).all()
    with pytest.raises(InputError, match="layer 0, state 0, action 0 is no distribution"):
        LinearMDP(world.phi, [0 * world.mu[0], world.mu[1]], world.theta, world.initial)


def test_rounding_is_forgiven_and_more_is_not():
    phi, theta = np.array([[[1.0, 0], [0, 1]]] * 2), np.array([[1.0, 0.5]])
    mu = np.array([[[1.0 + 1e-12, -1e-12], [0, 1]]])
    world = LinearMDP(phi, mu, theta * (1 + 1e-12), [1, 0])
    assert world.transition.min() == 0
    assert world.reward.max() == 1
    assert world.tabular.horizon == 1
    with pytest.raises(InputError, match="layer 0, state 0, action 0 is no distribution"):
        LinearMDP(phi, mu + [[[1e-6, -1e-6], [0, 0]]], theta, [1, 0])
    with pytest.raises(InputError, match=r"layer 0, state 0, action 0 is 1\.00001"):
        LinearMDP(phi, mu, theta * 1.00001, [1, 0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(phi=np.zeros((3, 5))), r"phi has shape \(3, 5\)"),
        (dict(phi=np.zeros((3, 0, 5))), r"phi has shape \(3, 0, 5\)"),
        (dict(mu=np.zeros((0, 3, 4))), "mu has shape"),
        (dict(mu=np.zeros((2, 4, 4))), r"pass \(layers, 3, 4\)"),
        (dict(theta=np.zeros((1, 3))), r"theta has shape \(1, 3\): pass \(2, 3\)"),
        (dict(initial=np.ones(3) / 3), r"initial has shape \(3,\): pass \(4,\)"),
        (dict(initial=np.array([0.5, 0, 0, 0])), "the initial distribution"),
        (dict(noise="gaussian"), "noise is 'gaussian'"),
        (dict(theta=np.full((2, 3), np.inf)), r"theta\[0, 0\] is inf"),
        (dict(theta=np.full((2, 3), -0.1)), "layer 0, state 0, action 0 is -0.1"),
    ],
)
def test_arrays_that_make_no_world_are_refused(change, told):
    world = simplex_world(4, 2, 3, 2)
    given = {name: getattr(world, name) for name in ("phi", "mu", "theta", "initial")}
    with pytest.raises(InputError, match=told):
        LinearMDP(**given | change)


def test_a_world_cannot_be_written_to():
    world = two_room(0.05)
    with pytest.raises(ValueError, match="read-only"):
        world.mu[0, 0, 0] = 1


def test_features_that_do_not_span_are_told_with_a_direction_they_miss():
    world = simplex_world(4, 2, 3, 2)
    twice = LinearMDP(
        np.concatenate([world.phi, world.phi[..., :1]], axis=-1),
        np.insert(world.mu, 3, 0, axis=1),
        np.insert(world.theta, 3, 0, axis=1),
        world.initial,
    )
    with pytest.raises(
        InputError, match=r"span 3 of 4 dimensions: all are orthogonal to \(-?0.707,"
    ):
        check_spanning(twice)
    one_hot = LinearMDP(np.eye(3)[[[0, 1]]], np.ones((1, 3, 1)), np.zeros((1, 3)), [1])
    with pytest.raises(InputError, match=r"span 2 of 3 dimensions: .* \(0, 0, -?1\)"):
        check_spanning(one_hot)
    wide = LinearMDP(np.eye(9)[[[0, 1]]], np.ones((1, 9, 1)), np.zeros((1, 9)), [1])
    with pytest.raises(InputError, match=r"span 2 of 9 .*, \.\.\.\)"):
        check_spanning(wide)
    assert reachable_rank(world, everywhere=True).tolist() == [3, 3]
    assert reachable_rank(simplex_world(seed=3)).tolist() == [3, 5, 5]


# Logs


@settings(max_examples=20, deadline=None)
@given(simplices, st.integers(0, 10**6), st.integers(1, 60))
def test_moments_are_sums_over_rows(world, seed, count):
    generator = np.random.default_rng(seed)
    policy = some_policies(world, seed, 1)[0]
    log = draw_episodes(world.tabular, policy, generator.random((count, 1 + 3 * world.horizon)))
    moments = moments_from_episodes(world, log)
    for h in range(world.horizon):
        rows = world.phi[log.states[:, h], log.actions[:, h]]
        assert np.allclose(moments.covariance[h], rows.T @ rows, atol=1e-11)
        assert np.allclose(moments.reward_sums[h], rows.T @ log.rewards[:, h], atol=1e-11)
        follow = np.eye(world.states)[log.next_states[:, h]]
        assert np.allclose(moments.moves[h], rows.T @ follow, atol=1e-11)
    assert (moments.counts == count).all()
    part = [Episodes(*(column[cut] for column in log)) for cut in (slice(7), slice(7, None))]
    both = add_moments(*(moments_from_episodes(world, each) for each in part))
    for one, other in zip(moments, add_moments(both, empty_moments(world)), strict=True):
        assert np.allclose(one, other, atol=1e-11)


def test_moments_of_several_logs_at_once_are_those_of_each():
    world = simplex_world(5, 3, 4, 2)
    logs = [
        draw_counts(world.tabular, some_policies(world, i, 1)[0], 50, np.random.default_rng(i))
        for i in range(3)
    ]
    moves, paid = (np.stack(parts) for parts in zip(*logs, strict=True))
    together = moments_from_counts(world, moves, paid)
    for index, log in enumerate(logs):
        for one, other in zip(together, moments_from_counts(world, *log), strict=True):
            assert np.allclose(one[index], other, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(simplices, st.integers(0, 10**6))
def test_least_squares_on_the_moments_of_the_means_is_the_truth(world, seed):
    visits = np.random.default_rng(seed).integers(1, 9, size=world.reward.shape)
    moments = moments_from_counts(
        world, visits[..., None] * world.transition, visits * world.reward
    )
    assert np.allclose(np.linalg.solve(moments.covariance, moments.moves), world.mu, atol=1e-8)
    theta = np.linalg.solve(moments.covariance, moments.reward_sums[..., None])[..., 0]
    assert np.allclose(theta, world.theta, atol=1e-8)


def test_a_drawn_log_has_the_rows_asked_for_and_the_worlds_means():
    world = two_room(0.05)
    visits = two_room_visits(world, 20_000, right=10_000)
    assert visits[0, 0].tolist() == [180_000, 0, 0, 0, 0, 0]
    moves, paid = draw_log(world, visits, np.random.default_rng(0))
    assert (moves.sum(axis=-1) == visits).all()
    check_possible(world, moves, paid)
    spread = 5 * np.sqrt(0.25 / np.maximum(visits, 1))
    assert (np.abs(paid - visits * world.reward) <= spread * visits).all()
    assert abs(moves[0, 0, 0, 2] / 180_000 - 0.2) < 5 * np.sqrt(0.16 / 180_000)
    silent = LinearMDP(world.phi, world.mu, world.theta, world.initial)
    assert (draw_log(silent, visits, np.random.default_rng(0))[1] == visits * silent.reward).all()
    for bad in (visits[0], visits - 1, visits + 0.5):
        with pytest.raises(InputError, match="whole numbers"):
            draw_log(world, bad, np.random.default_rng(0))
    with pytest.raises(InputError, match="pulls is -1"):
        two_room_visits(world, -1)


def spoilt(log: Episodes, column: str, value: float) -> Episodes:
    array = getattr(log, column).astype(float)
    array[3, 1] = value
    return log._replace(**{column: array})


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("states", 3, "states of the log hold 3.* row 3, layer 1.* 0 to 2"),
        ("states", -1, "states of the log hold -1"),
        ("actions", 6, "actions of the log hold 6.* 0 to 5"),
        ("actions", 0.5, "actions of the log hold 0.5"),
        ("next_states", np.nan, "next_states of the log hold nan"),
        ("rewards", 1.5, r"rewards of the log hold 1.5.* numbers in \[0, 1\]"),
        ("rewards", np.nan, "rewards of the log hold nan"),
    ],
)
def test_a_log_outside_the_world_is_refused(column, value, told):
    world = two_room(0.05)
    policy = optimal_policy(world)
    log = draw_episodes(world.tabular, policy, np.random.default_rng(0).random((9, 7)))
    assert (
        count_episodes(world, spoilt(log, column, 0 if column != "rewards" else 1))[0].sum() == 18
    )
    with pytest.raises(InputError, match=told):
        moments_from_episodes(world, spoilt(log, column, value))


def test_logs_of_other_shapes_or_impossible_moves_are_refused():
    world = two_room(0.05)
    log = draw_episodes(
        world.tabular, optimal_policy(world), np.random.default_rng(0).random((9, 7))
    )
    with pytest.raises(InputError, match=r"shape \(9, 1\): pass rows of 2 layers"):
        moments_from_episodes(world, Episodes(*(column[:, :1] for column in log)))
    with pytest.raises(InputError, match=r"rewards of the log have shape \(9, 1\)"):
        moments_from_episodes(world, log._replace(rewards=log.rewards[:, :1]))
    moves, paid = count_episodes(world, log)
    with pytest.raises(InputError, match="the counts have shapes"):
        moments_from_counts(world, moves[0], paid)
    moves[1, 0, 0, 2] = 5  # in the last layer, where next states mean nothing
    check_possible(world, moves, paid)
    moves[0, 0, 1, 1] = 5
    with pytest.raises(
        InputError, match=r"from state 0 with action 1 to state 1 in layer 0 \(5 times\)"
    ):
        check_possible(world, moves, paid)
    moves[0, 0, 1, 1] = 0
    paid[1, 2, 3] = 2
    with pytest.raises(
        InputError, match="pays 2 in all for 0 visits of state 2, action 3 in layer 1"
    ):
        check_possible(world, moves, paid)


# Files


GOOD = simplex_world(4, 2, 3, 2, seed=1)
ARRAYS = {"phi": GOOD.phi, "mu": GOOD.mu, "theta": GOOD.theta, "initial": GOOD.initial}
TABLES = {"P": GOOD.transition, "R": GOOD.reward, "rho": GOOD.initial}


def saved(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def test_a_world_is_read_back_as_it_was_written(tmp_path):
    world = read_linear_world(saved(tmp_path, noise="bernoulli", **ARRAYS))
    for name in ("phi", "mu", "theta", "initial"):
        assert (getattr(world, name) == getattr(GOOD, name)).all()
    assert (world.noise, world.name) == ("bernoulli", "mine")
    flat = linear_world(str(saved(tmp_path, **TABLES)))
    assert (flat.transition == GOOD.transition).all()
    assert flat.noise == "none"


def test_what_is_the_same_in_every_layer_is_written_once(tmp_path):
    world = read_linear_world(
        saved(tmp_path, phi=GOOD.phi, mu=GOOD.mu[0], theta=GOOD.theta[0], H=4, rho=2)
    )
    assert world.horizon == 4
    assert (world.mu == GOOD.mu[0]).all()
    assert world.initial.tolist() == [0, 0, 1, 0]
    flat = read_linear_world(saved(tmp_path, P=GOOD.transition[0], R=GOOD.reward))
    assert flat.horizon == 2
    assert flat.initial.tolist() == [1, 0, 0, 0]


def test_single_precision_tables_are_good_enough(tmp_path):
    world = read_linear_world(saved(tmp_path, P=GOOD.transition.astype(np.float32), R=GOOD.reward))
    assert np.abs(world.transition.sum(axis=-1) - 1).max() < 1e-12
    assert np.abs(world.transition - GOOD.transition).max() < 1e-6


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (ARRAYS | {"mu": GOOD.mu * 0.9}, "layer 0, state 0, action 0 is no distribution"),
        (ARRAYS | {"theta": GOOD.theta + 1}, r"mean rewards lie in \[0, 1\]"),
        (ARRAYS | {"mu": GOOD.mu[:1]}, "mu says 1, theta says 2"),
        (ARRAYS | {"H": 3}, "mu says 2, theta says 2, H says 3"),
        (ARRAYS | {"H": 0}, "H is 0"),
        (ARRAYS | {"mu": GOOD.mu[0], "theta": GOOD.theta[0]}, "no array has layers"),
        (ARRAYS | {"mu": GOOD.mu.astype(object)}, "mu cannot be read: it holds objects"),
        (ARRAYS | {"mu": GOOD.mu.astype(complex)}, "mu holds complex128"),
        (ARRAYS | {"phi": GOOD.phi[0]}, r"phi has shape \(2, 3\): pass an array of 3 axes"),
        (ARRAYS | {"phi": np.where(GOOD.phi == 1, np.nan, GOOD.phi)}, r"phi\[0, 0, 0\] is nan"),
        (ARRAYS | {"phi": GOOD.phi[:, :, :2]}, "mu has shape"),
        (ARRAYS | {"initial": 4}, "initial is state 4, and the world has 0 to 3"),
        (ARRAYS | {"initial": np.ones(3)}, r"initial has shape \(3,\), and the world 4 states"),
        (ARRAYS | {"initial": np.ones(4)}, "the initial distribution"),
        (ARRAYS | {"rho": GOOD.initial}, "initial and rho both say"),
        (ARRAYS | {"noise": "much"}, "noise is 'much'"),
        (ARRAYS | {"Mu": GOOD.mu}, "'Mu' is none of"),
        (ARRAYS | TABLES, "holds both kinds"),
        ({"rho": GOOD.initial}, "holds neither kind"),
        ({"P": GOOD.transition}, "there is no array 'R'"),
        (TABLES | {"R": GOOD.reward + 1}, r"R\[0, 0, 0\] is 1\."),
        (TABLES | {"R": GOOD.reward[:, :3]}, "P has shape"),
        (TABLES | {"P": GOOD.transition[..., :3]}, "P has shape"),
        (TABLES | {"P": GOOD.transition * 0.9}, "layer 0, state 0, action 0"),
        (
            {
                "phi": GOOD.phi[:1, :, :],
                "mu": np.ones((1, 3, 1)),
                "theta": np.zeros((1, 3)),
            },
            "span 2 of 3 dimensions",
        ),
    ],
)
def test_files_that_will_not_do_are_refused_in_one_line(tmp_path, arrays, told):
    with pytest.raises(InputError, match=told) as problem:
        read_linear_world(saved(tmp_path, **arrays))
    assert str(problem.value).startswith("mine.npz: ")
    assert "\n" not in str(problem.value)


def test_what_is_no_npz_file_is_refused(tmp_path):
    for name, told in (
        ("none.npz", "no such file"),
        ("text.npz", "no npz file"),
        ("one.npz", "single array"),
    ):
        path = tmp_path / name
        if name == "text.npz":
            path.write_text("phi, mu, theta")
        if name == "one.npz":
            buffer = io.BytesIO()
            np.save(buffer, GOOD.mu)
            path.write_bytes(buffer.getvalue())
        with pytest.raises(InputError, match=told):
            linear_world(path)
    broken = saved(tmp_path, **ARRAYS)
    with zipfile.ZipFile(broken, "a") as archive:
        archive.writestr("H.npy", b"this is no array")
    with pytest.raises(InputError, match=r"mine.npz: H holds"):
        linear_world(broken)


def test_worlds_have_names_and_sizes(tmp_path):
    assert linear_world("two_room", epsilon=0.1).name == "two_room(epsilon=0.1, actions=6)"
    assert linear_world("simplex", states=5, dimension=4).dimension == 4
    assert linear_world("bandit", means=[0.1, 0.2]).actions_count == 2
    assert linear_world("random", seed=4).states == 5
    with pytest.raises(InputError, match="pass one of two_room, simplex, bandit, random, or"):
        linear_world("castle")
    with pytest.raises(InputError, match="has no size 'eps': pass some of epsilon, actions"):
        linear_world("two_room", eps=0.1)
    with pytest.raises(InputError, match="takes no sizes: leave out epsilon"):
        linear_world(saved(tmp_path, **ARRAYS), epsilon=0.1)
