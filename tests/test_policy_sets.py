"""Sets of policies: which decisions count, softmax and its cover, bootstrap, what is measured."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.theory.policy_sets import (
    all_deterministic,
    behaviour_policy,
    bootstrap_greedy,
    canonical,
    combine,
    deterministic_count,
    distinct,
    greedy_policies,
    measured_cover,
    nearest_in_net,
    net_policies,
    optimal_weights,
    resampled_moments,
    softmax_class,
    softmax_net,
    softmax_policies,
    uniform_policy,
)
from offrl_wb.worlds.layered import draw_counts
from offrl_wb.worlds.linear import (
    LinearMDP,
    bandit_world,
    draw_log,
    empty_moments,
    feature_visitations,
    linear_from_tabular,
    moments_from_counts,
    occupancies,
    optimal_policy,
    optimal_value,
    policy_values,
    random_world,
    simplex_world,
    two_room,
    two_room_visits,
)
from offrl_wb.worlds.tabular import FiniteHorizonMDP, plan_horizon

small_worlds = st.builds(
    random_world,
    states=st.integers(1, 3),
    actions=st.integers(1, 3),
    horizon=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)


# All deterministic policies


def test_the_two_rooms_have_seventy_two_policies():
    world = two_room(0.05)
    policies = all_deterministic(world)
    assert policies.shape == (72, 2, 3)
    assert deterministic_count(world) == 72
    assert len(np.unique(policies.reshape(72, -1), axis=0)) == 72
    assert set(policies[:, 0, 0]) == {0, 1}
    assert (policies[:, 0, 1:] == 0).all()
    assert (policies[:, 1, 0] == 0).all()


@settings(max_examples=25, deadline=None)
@given(small_worlds)
def test_every_deterministic_policy_acts_like_one_of_the_set(world):
    policies = all_deterministic(world)
    every = np.indices((world.actions_count,) * (world.horizon * world.states))
    every = every.reshape(world.horizon * world.states, -1).T
    every = every.reshape(-1, world.horizon, world.states)[:: max(1, len(every) // 500)]
    listed = {row.tobytes() for row in occupancies(world, policies).round(9) + 0.0}
    assert {row.tobytes() for row in occupancies(world, every).round(9) + 0.0} <= listed
    assert len(distinct(world, policies)) == len(policies) == deterministic_count(world)


@settings(max_examples=25, deadline=None)
@given(small_worlds)
def test_the_best_deterministic_policy_is_the_best_of_all(world):
    cover = measured_cover(world, all_deterministic(world))
    assert cover.gap <= 1e-12
    assert cover.optimum == optimal_value(world)


def test_states_out_of_reach_and_repeated_actions_decide_nothing():
    transition = np.zeros((2, 3, 2, 3))
    transition[:, :2, :, 1], transition[:, 2, :, 2] = 1, 1  # nobody reaches state 2
    reward = np.zeros((2, 3, 2))
    reward[1, 1] = [0.2, 0.4]
    mdp = FiniteHorizonMDP(np.eye(3)[0], transition, reward)
    assert len(all_deterministic(linear_from_tabular(mdp))) == 4
    shared = np.array([[0, 0], [1, 2], [3, 4]])
    assert all_deterministic(linear_from_tabular(mdp, shared)).tolist() == [
        [[0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0]],
    ]


def test_too_many_policies_are_refused_with_their_number():
    with pytest.raises(
        InputError, match=r"has about 6\.2e14 deterministic policies, and .* 200,000"
    ):
        all_deterministic(simplex_world())
    world = random_world(10, 4, 1)
    with pytest.raises(InputError, match="has 1,048,576 deterministic policies"):
        all_deterministic(LinearMDP(world.phi, world.mu, world.theta, np.full(10, 0.1)))
    huge = random_world(40, 10, 30)
    assert deterministic_count(huge) == 10 ** (29 * 40 + 1)
    with pytest.raises(InputError, match=r"about 1\.0e1161"):
        all_deterministic(huge)


def test_the_largest_set_allowed_is_made():
    world = random_world(17, 2, 1)
    start = LinearMDP(world.phi, world.mu, world.theta, np.full(17, 1 / 17))
    policies = all_deterministic(start)
    assert policies.shape == (2**17, 1, 17)
    assert policies[-1].all()
    assert measured_cover(start, policies).gap <= 1e-12


# Softmax


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(-3, 1.5), st.floats(-2, 2))
def test_softmax_neither_stretches_nor_loses_much(seed, actions, scale, sharpness):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(2, 1, 1, actions)) * [[[[10.0**scale]]], [[[1.0]]]]
    world = bandit_world(np.full(actions, 0.5))
    eta = 10.0**sharpness
    x, y = softmax_policies(world, np.concatenate([weights[0], weights[0] + weights[1]]), eta)[
        :, 0, 0
    ]
    assert np.abs(x - y).sum() <= eta * np.abs(weights[1]).max() * (1 + 1e-9)
    values = weights[0].ravel()
    assert 0 <= values.max() - x @ values + 1e-12 <= np.log(actions) / eta + 1e-9


def test_softmax_policies_are_the_formula():
    world = simplex_world(4, 3, 3, 2, seed=1)
    generator = np.random.default_rng(0)
    weights, eta = generator.normal(size=(5, 2, 3)), generator.random(5)
    policies = softmax_policies(world, weights, eta)
    for n, h, s in itertools.product(range(5), range(2), range(4)):
        odds = np.exp(eta[n] * world.phi[s] @ weights[n, h])
        assert policies[n, h, s] == pytest.approx(odds / odds.sum(), abs=1e-14)


def test_softmax_takes_large_weights_and_leaves_out_repeated_actions():
    world = two_room(0.05)
    policies = softmax_policies(world, np.full((1, 2, 14), 1e6) * np.arange(14), 1e3)
    assert np.isfinite(policies).all()
    assert policies[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert (softmax_class(world, 30)[:, :, 0, 2:] == 0).all()


def test_a_softmax_class_has_its_norm_its_grid_and_its_seed():
    world = simplex_world(4, 3, 3, 2, seed=1)
    policies = softmax_class(world, 40, etas=(0.5, 2.0), seed=3)
    assert policies.shape == (40, 2, 4, 3)
    assert (policies == softmax_class(world, 40, (0.5, 2.0), 3)).all()
    assert (policies != softmax_class(world, 40, (0.5, 2.0), 4)).any()
    spread = policies.max(axis=-1).mean(axis=(1, 2))
    assert spread[1::2].mean() > spread[::2].mean()
    span = np.abs(np.log(policies[:, 0, :1]) - np.log(policies[:, 0, :1, :1])).max()
    assert span <= 2.0 * 2 * 2 * 2 * np.sqrt(3)
    for bad in (dict(n=0), dict(n=5, etas=()), dict(n=5, etas=(0,)), dict(n=5, etas=(np.inf,))):
        with pytest.raises(InputError):
            softmax_class(world, **bad)


def test_a_larger_class_covers_at_least_as_much():
    world = simplex_world(6, 3, 4, 2, seed=2)
    policies = softmax_class(world, 400)
    gaps = [measured_cover(world, policies[:n]).gap for n in (1, 10, 100, 400)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 2
    cover = measured_cover(world, policies)
    assert policy_values(world, policies)[cover.policy] == cover.best
    assert cover.optimum - cover.best == pytest.approx(cover.gap)
    with pytest.raises(InputError, match="empty set"):
        measured_cover(world, policies[:0])


# The net


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1, 0.1), (1, 2, 0.5), (2, 1, 0.4), (3, 1, 0.9), (2, 2, 1.5)]),
)
def test_the_net_reaches_what_it_is_derived_to_reach(seed, sizes):
    dimension, horizon, epsilon = sizes
    world = simplex_world(4, 3, dimension, horizon, seed)
    net, weights = softmax_net(world, epsilon), optimal_weights(world)
    ball = 2 * horizon * np.sqrt(dimension)
    assert (np.linalg.norm(weights, axis=-1) <= ball).all()
    assert len(net.points) <= net.bound
    anywhere = np.random.default_rng(seed).normal(size=(200, dimension))
    anywhere *= (
        ball
        * np.random.default_rng(seed).random((200, 1))
        / np.linalg.norm(anywhere, axis=1, keepdims=True)
    )
    distance = np.linalg.norm(net.points - anywhere[:20, None], axis=-1).min(axis=1)
    assert (distance <= net.radius * (1 + 1e-9)).all()
    near = nearest_in_net(world, net, weights)
    assert optimal_value(world) - policy_values(world, near)[0] <= epsilon


def test_the_whole_net_is_at_least_as_good_as_its_nearest_point():
    world = simplex_world(4, 3, 2, 1, seed=5)
    net = softmax_net(world, 0.5)
    policies = net_policies(world, net)
    assert policies.shape == (len(net.points), 1, 4, 3)
    near = policy_values(world, nearest_in_net(world, net, optimal_weights(world)))[0]
    cover = measured_cover(world, policies)
    assert cover.gap <= 0.5
    assert cover.best >= near
    one = simplex_world(2, 2, 1, 2)
    both = net_policies(one, softmax_net(one, 2.0))
    assert len(both) == len(softmax_net(one, 2.0).points) ** 2


def test_optimal_weights_give_optimal_action_values():
    world = simplex_world(6, 3, 4, 3, seed=2)
    table = np.einsum("sad,hd->hsa", world.phi, optimal_weights(world))
    assert np.allclose(table, plan_horizon(world.tabular).action_values, atol=1e-12)


def test_nets_that_cannot_be_made_are_refused():
    for world in (simplex_world(4, 2, 4, 1), simplex_world(4, 2, 2, 3)):
        with pytest.raises(InputError, match="for d <= 3, H <= 2 and norms of at most 1"):
            softmax_net(world, 0.5)
    long = LinearMDP(np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 0.5), np.full((1, 1), 0.2), [1])
    with pytest.raises(InputError, match="norms 2"):
        softmax_net(long, 0.5)
    world = simplex_world(4, 3, 2, 2)
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="pass a positive number"):
            softmax_net(world, bad)
    with pytest.raises(InputError, match="points a layer, and one of at most 1e6"):
        softmax_net(world, 0.1)
    with pytest.raises(InputError, match="policies in all, and at most 200,000 are listed"):
        net_policies(world, softmax_net(world, 1.0))


# Greedy policies of a log


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_greedy_on_the_moments_of_the_means_is_optimal(seed, tabular):
    world = random_world(4, 3, 3, seed) if tabular else simplex_world(5, 3, 4, 3, seed)
    visits = np.full(world.reward.shape, 1e6)
    moments = moments_from_counts(
        world, visits[..., None] * world.transition, visits * world.reward
    )
    planned = greedy_policies(world, moments)
    assert policy_values(world, planned[None])[0] == pytest.approx(optimal_value(world), abs=1e-9)


def test_greedy_policies_of_several_logs_are_those_of_each():
    world = simplex_world(5, 3, 4, 2, seed=3)
    logs = [
        draw_counts(world.tabular, uniform_policy(world), 20, stream(i, "log")) for i in range(4)
    ]
    moments = [moments_from_counts(world, *log) for log in logs]
    stacked = type(moments[0])(*(np.stack(parts) for parts in zip(*moments, strict=True)))
    together = greedy_policies(world, stacked)
    for index, each in enumerate(moments):
        assert (together[index] == greedy_policies(world, each)).all()


def test_one_hot_greedy_is_planning_in_the_empirical_world():
    world = random_world(4, 3, 2, seed=5)
    visits = np.random.default_rng(0).integers(5, 9, size=world.reward.shape)
    moves, paid = draw_log(world, visits, np.random.default_rng(1))
    empirical = FiniteHorizonMDP(
        world.initial, moves / visits[..., None], paid / visits, "empirical"
    )
    found = greedy_policies(world, moments_from_counts(world, moves, paid), ridge=1e-9)
    assert (found == plan_horizon(empirical).actions).all()


def test_without_data_greedy_takes_the_first_actions():
    world = two_room(0.05)
    assert (greedy_policies(world, empty_moments(world)) == 0).all()
    nothing = np.zeros(world.tabular.transition.shape, dtype=int)
    assert len(bootstrap_greedy(world, nothing, np.zeros(world.reward.shape), 10)) == 1


def test_resamples_have_the_logs_size_and_its_means():
    world = simplex_world(4, 3, 3, 2, seed=1)
    log = draw_counts(world.tabular, uniform_policy(world), 200, stream(0, "log"))
    held = moments_from_counts(world, *log)
    again = resampled_moments(world, *log, 3000, stream(0, "again"))
    assert (again.counts == 200).all()
    for drawn, mean in zip(again[:3], held[:3], strict=True):
        error = np.abs(drawn.mean(axis=0) - mean)
        assert (error <= 5 * drawn.std(axis=0) / np.sqrt(3000) + 1e-9).all()
    spread = again.covariance[:, 0].std(axis=0)
    assert spread.max() > 1
    # as a bootstrap of the rows themselves, in their spread too
    rows = np.repeat(np.arange(log[0][0].size), log[0][0].ravel())
    pairs = rows // world.states
    features = world.phi.reshape(-1, 3)[pairs]
    picks = np.random.default_rng(0).integers(len(rows), size=(3000, len(rows)))
    direct = np.einsum("bnd,bne->bde", features[picks], features[picks])
    assert np.allclose(direct.std(axis=0), spread, rtol=0.15)


def test_rewards_without_noise_are_resampled_as_they_are():
    given = simplex_world(4, 3, 3, 2, seed=1)
    world = LinearMDP(given.phi, given.mu, given.theta, given.initial)
    log = draw_counts(world.tabular, uniform_policy(world), 50, stream(0, "log"))
    again = resampled_moments(world, *log, 20, stream(0, "again"))
    expected = np.einsum("bhde,he->bhd", again.covariance, world.theta)
    assert np.allclose(again.reward_sums, expected)


def test_the_bootstrap_differs_where_the_log_is_undecided_only():
    world = two_room(0.05)
    vague = draw_log(world, two_room_visits(world, 30), stream(0, "vague"))
    clear = draw_log(world, two_room_visits(world, 20_000, 20_000), stream(0, "clear"))
    assert len(bootstrap_greedy(world, *vague, 100)) > 2
    settled = bootstrap_greedy(world, *clear, 100)
    assert (canonical(world, settled) == canonical(world, optimal_policy(world)[None])).all()
    assert (
        bootstrap_greedy(world, *vague, 100, 1) == bootstrap_greedy(world, *vague, 100, 1)
    ).all()
    with pytest.raises(InputError, match="resamples is 0"):
        bootstrap_greedy(world, *vague, 0)


# Sets together


def test_policies_that_act_alike_are_kept_once_in_order():
    world = two_room(0.05)
    policies = np.repeat(all_deterministic(world)[:4], 3, axis=0)
    policies[1, 0, 0], policies[2, 0, 2], policies[5, 1, 0] = 3, 5, 2
    assert (distinct(world, policies) == policies[::3]).all()
    table = softmax_class(world, 6)
    twin = table.copy()
    twin[:, 0, 0, 5] = twin[:, 0, 0, 0]
    twin[:, 0, 0, 0] = 0
    assert (distinct(world, np.concatenate([table, twin])) == table).all()
    assert np.allclose(canonical(world, twin), canonical(world, table), atol=1e-15)


@settings(max_examples=25, deadline=None)
@given(small_worlds, st.integers(0, 10**6))
def test_the_canonical_form_visits_the_same(world, seed):
    shape = (4, world.horizon, world.states, world.actions_count)
    table = np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1])
    for policies in (table, table.argmax(axis=-1)):
        same = canonical(world, policies)
        visited = feature_visitations(world, policies)
        assert np.allclose(feature_visitations(world, same), visited, atol=1e-13)
        assert np.allclose(canonical(world, same), same)


def test_sets_are_combined_as_actions_where_they_can_be():
    world = two_room(0.05)
    every = all_deterministic(world)
    assert combine(world, every, every[:9]).shape == (72, 2, 3)
    both = combine(world, every, softmax_class(world, 10))
    assert both.shape == (82, 2, 3, 6)
    assert measured_cover(world, both).gap <= 1e-12
    with pytest.raises(InputError, match="outside 0 to 5"):
        distinct(world, every + 6)


def test_behaviours_run_from_uniform_to_optimal():
    world = two_room(0.05)
    assert uniform_policy(world)[0, 0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert np.allclose(uniform_policy(world).sum(axis=-1), 1)
    assert (behaviour_policy(world, 0) == uniform_policy(world)).all()
    best = behaviour_policy(world, 1)
    assert policy_values(world, best[None])[0] == pytest.approx(optimal_value(world))
    assert behaviour_policy(world, 0.5)[1, 2] == pytest.approx([1 / 12] * 5 + [7 / 12])
    for quality in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="quality of the behaviour"):
            behaviour_policy(world, quality)
