"""Critics and ensembles: shapes, random subsets, quantiles, LayerNorm's bound."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.nets.critics import (
    Critic,
    DiscreteCritic,
    Value,
    draw_members,
    layer_norm_bound,
    pick_members,
    quantile,
    smallest,
    subset_smallest,
)
from offrl_wb.nets.layers import Weights

DOUBLE = torch.float64


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeds(seed)[0], dtype=DOUBLE)


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_critic_judges_one_action_or_many_alike(members, replicas):
    critic = Critic(3, 2, (8, 8), members, layer_norm=True)
    weights = critic.initialise(seeds(*range(replicas)), DOUBLE)
    observation, actions = noise(replicas, 6, 3), noise(replicas, 6, 4, 2, seed=1)
    q = critic(weights, observation, actions)
    assert q.shape == (replicas, members, 6, 4)
    for k in range(4):
        one = critic(weights, observation, actions[:, :, k])
        assert one.shape == (replicas, members, 6)
        assert torch.allclose(q[..., k], one, atol=1e-13)


def test_every_member_of_every_replica_is_a_critic_of_its_own():
    critic = Critic(3, 2, (8,), 4)
    weights = critic.initialise(seeds(0, 1), DOUBLE)
    q = critic(weights, noise(2, 6, 3), noise(2, 6, 2, seed=1))
    blocks = {n: b[1:, 2:3] for n, b in weights.tensors().items()}
    single = Critic(3, 2, (8,), 1)
    alone = Weights.from_tensors({name: block[:, 0] for name, block in blocks.items()})
    own = single(alone, noise(2, 6, 3)[1:], noise(2, 6, 2, seed=1)[1:])
    assert torch.allclose(q[1, 2], own[0, 0], atol=1e-14)


def test_a_critic_in_a_stack_of_eight_equals_it_alone_with_its_gradients():
    critic = Critic(3, 2, (16, 16), 3, layer_norm=True, initialisation="orthogonal")
    weights = critic.initialise(seeds(*range(8)), DOUBLE).trainable()
    observation, action = noise(8, 5, 3), noise(8, 5, 2, seed=1).requires_grad_()
    q = critic(weights, observation, action)
    gradients = torch.autograd.grad(smallest(q).square().mean(1).sum(), [weights.flat, action])
    for replica in range(8):
        alone = weights.select([replica]).trainable()
        own_action = action.detach()[replica : replica + 1].requires_grad_()
        own = critic(alone, observation[replica : replica + 1], own_action)
        loss = smallest(own).square().mean(1).sum()
        own_gradients = torch.autograd.grad(loss, [alone.flat, own_action])
        part = Weights(gradients[0], weights.shapes).select([replica]).flat
        assert torch.allclose(q[replica], own[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(part, own_gradients[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(gradients[1][replica], own_gradients[1][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("members", [1, 3])
def test_a_discrete_critic_has_one_value_per_action(members):
    critic = DiscreteCritic(3, 5, (8,), members, initialisation="edac")
    weights = critic.initialise(seeds(0, 1), DOUBLE)
    assert {name: tuple(b.shape) for name, b in weights.tensors().items()} == critic.shapes(2)
    assert critic(weights, noise(2, 6, 3)).shape == (2, members, 6, 5)


def test_a_value_has_one_number_per_observation_and_dropout_where_asked():
    value = Value(3, (8,), dropout=0.5)
    weights = value.initialise(seeds(0, 1), DOUBLE)
    assert value.dropout_shapes(6) == ((6, 8),)
    masks = [torch.ones(2, 6, 8, dtype=torch.bool)]
    dropped = value(weights, noise(2, 6, 3), masks)
    assert dropped.shape == (2, 6)
    assert not torch.allclose(dropped, value(weights, noise(2, 6, 3)))  # kept numbers are doubled
    assert Critic(3, 2, (8,), 4, dropout=0.1).dropout_shapes(6) == ((4, 6, 8),)


def test_options_reach_the_network():
    critic = Critic(3, 2, (8, 8), 2, True, "orthogonal", activation="tanh", last_hidden_scale=0.01)
    assert critic.net.layer_norm
    assert critic.net.activation == "tanh"
    blocks = critic.initialise(seeds(0), DOUBLE).tensors()
    assert abs(torch.linalg.matrix_norm(blocks["weight_1"][0, 1], 2) - 0.01) < 1e-10
    with pytest.raises(InputError, match="initialisation"):
        Value(3, initialisation="he").initialise(seeds(0))


@given(st.integers(1, 6), st.integers(0, 99))
def test_smallest_is_the_minimum_and_only_it_gets_gradient(members, seed):
    q = noise(2, members, 7, seed=seed).requires_grad_()
    least = smallest(q)
    assert torch.equal(least, q.min(dim=1).values)
    (gradient,) = torch.autograd.grad(least.sum(), [q])
    assert torch.equal(gradient != 0, q == least.unsqueeze(1))


def test_picked_members_keep_their_other_axes():
    q = noise(2, 5, 3, 4)
    members = torch.tensor([[4, 0], [1, 1]])
    picked = pick_members(q, members)
    assert picked.shape == (2, 2, 3, 4)
    for replica, place in itertools.product(range(2), range(2)):
        assert torch.equal(picked[replica, place], q[replica, members[replica, place]])
    assert torch.equal(subset_smallest(q, members)[1], q[1, 1])


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("members", [2, 3, 10])
def test_the_minimum_of_a_random_pair_has_the_mean_that_counting_gives(replacement, members):
    q = noise(members, seed=members).sort().values
    trials = 100_000
    uniforms = torch.rand(trials, members, generator=seeds(1)[0], dtype=DOUBLE)
    drawn = draw_members(uniforms, 2, replacement)
    minima = subset_smallest(q.expand(trials, members), drawn)
    rank = torch.arange(1, members + 1, dtype=DOUBLE)
    if replacement:
        shares = (2 * (members - rank) + 1) / members**2
        pairs = itertools.product(range(members), repeat=2)
    else:
        shares = 2 * (members - rank) / (members * (members - 1))
        pairs = itertools.permutations(range(members), 2)
        assert (drawn[:, 0] != drawn[:, 1]).all()
    exact = torch.stack([q[list(pair)].min() for pair in pairs]).mean()
    assert torch.allclose(q @ shares, exact)
    assert abs(minima.mean() - exact) <= 4 * minima.std() / math.sqrt(trials) + 1e-12


def test_drawn_members_are_in_range_and_even():
    uniforms = torch.tensor([[0.0, 0.999999999, 0.5]])
    assert draw_members(uniforms, 3, True).tolist() == [[0, 2, 1]]
    assert draw_members(uniforms, 2, False).tolist() == [[0, 2]]
    uniforms = torch.rand(30_000, 5, generator=seeds(0)[0])
    for replacement in (True, False):
        counts = torch.bincount(draw_members(uniforms, 1, replacement)[:, 0], minlength=5) / 30_000
        assert (counts - 0.2).abs().max() < 0.012


def test_the_quantile_of_five_at_a_quarter_is_the_second_smallest():
    q = noise(3, 5, 9)
    assert torch.equal(quantile(q, 0.25), q.sort(1).values[:, 1])
    assert torch.equal(quantile(q, 0.0), smallest(q))
    assert torch.equal(quantile(q, 1.0), q.amax(1))
    assert torch.equal(quantile(q, 0.5), q.median(1).values)
    low = q.sort(1).values
    assert torch.allclose(quantile(q, 0.1), low[:, 0] + 0.4 * (low[:, 1] - low[:, 0]))


@given(st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60)
def test_the_quantile_agrees_with_torch_for_a_number_and_for_one_per_replica(members, level, seed):
    q = noise(2, members, 4, seed=seed)
    expected = torch.quantile(q, level, dim=1)
    assert torch.allclose(quantile(q, level), expected, atol=1e-12)
    assert torch.allclose(
        quantile(q, torch.tensor([level, level], dtype=DOUBLE)), expected, atol=1e-12
    )
    if members == 1:
        assert torch.equal(quantile(q, level), q[:, 0])


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_the_quantile_rises_with_its_level(one, other, seed):
    q = noise(1, 6, 5, seed=seed)
    assert (quantile(q, min(one, other)) <= quantile(q, max(one, other)) + 1e-12).all()


def test_a_level_per_replica_reaches_only_its_replica():
    q = noise(3, 5, 4)
    levels = torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE)
    for replica, level in enumerate(levels.tolist()):
        assert torch.allclose(quantile(q, levels)[replica], quantile(q, level)[replica])


@given(st.integers(0, 50), st.floats(0.01, 3))
@settings(max_examples=30)
def test_layer_norm_bounds_a_critic_on_any_input(seed, spread):
    critic = Critic(3, 2, (16, 12), 3, layer_norm=True)
    weights = critic.initialise(seeds(seed, seed + 1), DOUBLE)
    weights.flat.add_(spread * noise(weights.flat.numel(), seed=seed))
    bound = layer_norm_bound(critic, weights)
    assert bound.shape == (2, 3)
    for scale in (1.0, 1e6):
        pairs = scale * noise(2, 200, 5, seed=seed + 7)
        q = critic(weights, pairs[..., :3], pairs[..., 3:])
        assert (q.abs().amax(-1) <= bound).all()


def test_without_layer_norm_there_is_no_such_bound():
    with_norm, without = (Critic(3, 2, (16, 16), 3, layer_norm=norm) for norm in (True, False))
    bound = layer_norm_bound(with_norm, with_norm.initialise(seeds(0), DOUBLE))
    pairs = 1e6 * noise(1, 200, 5)
    q = without(without.initialise(seeds(0), DOUBLE), pairs[..., :3], pairs[..., 3:])
    assert (q.abs().amax(-1) > 100 * bound).all()


def test_the_bound_covers_values_and_discrete_critics():
    for net in (Value(3, (8,), layer_norm=True), DiscreteCritic(3, 4, (8,), 2, layer_norm=True)):
        weights = net.initialise(seeds(0), DOUBLE)
        reached = net(weights, 1e6 * noise(1, 300, 3)).abs()
        assert reached.max() <= layer_norm_bound(net, weights).max()
