"""Weights and MLPs: against PyTorch, against plain autograd, alone and stacked."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from offrl_wb.core.errors import InputError
from offrl_wb.nets.layers import (
    INITIALISATIONS,
    MLP,
    Weights,
    draw_linear,
    keep,
    owners,
    per_replica,
    polyak,
    stack,
)

DOUBLE = torch.float64


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeds(seed)[0], dtype=DOUBLE)


def masks_of(net: MLP, replicas: int, batch: int) -> list[torch.Tensor]:
    source = seeds(9)[0]
    shapes = net.dropout_shapes(batch)
    return [torch.rand(replicas, *s, generator=source) >= net.dropout for s in shapes]


@st.composite
def networks(draw: st.DrawFn) -> MLP:
    hidden = tuple(draw(st.lists(st.integers(1, 20), max_size=3)))
    return MLP(
        inputs=draw(st.integers(1, 6)),
        hidden=hidden,
        outputs=draw(st.sampled_from((1, 2, 3, 16, 33))),
        members=draw(st.sampled_from((1, 2, 5))),
        layer_norm=draw(st.booleans()),
        dropout=draw(st.sampled_from((0.0, 0.3))),
        activation=draw(st.sampled_from(("relu", "tanh", "gelu"))),
        initialisation=draw(st.sampled_from(INITIALISATIONS)),
    )


def loss_and_gradients(net, weights, inputs, masks):
    inputs = inputs.clone().requires_grad_()
    output = net(weights, inputs, masks)
    loss = (output.square().flatten(1).mean(1) + output.flatten(1).sin().mean(1)).sum()
    return output, *torch.autograd.grad(loss, [weights.flat, inputs])


class Operations(TorchDispatchMode):
    """Collects the names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# Weights


def test_blocks_are_views_and_their_gradient_has_the_layout_of_the_vector():
    shapes = {"weight_0": (2, 3, 4), "bias_0": (2, 4), "one": (2, 1)}
    weights = Weights(torch.arange(34.0), shapes).trainable()
    blocks = weights.tensors()
    assert {name: tuple(block.shape) for name, block in blocks.items()} == shapes
    for name, block in blocks.items():
        assert block.data_ptr() >= weights.flat.data_ptr(), name
        (gradient,) = torch.autograd.grad(weights.tensors()[name].sum(), [weights.flat])
        assert torch.equal(Weights(gradient, shapes).tensors()[name], torch.ones(shapes[name]))
        assert gradient.sum() == math.prod(shapes[name])


def test_frozen_weights_share_memory_and_a_copy_does_not():
    weights = Weights(torch.zeros(6), {"a": (2, 3)}).trainable()
    frozen, copied = weights.frozen(), weights.copy()
    with torch.no_grad():
        weights.flat.add_(1)
    assert (frozen.flat == 1).all()
    assert (copied.flat == 0).all()
    assert not frozen.flat.requires_grad
    assert not copied.flat.requires_grad
    assert weights.frozen() is frozen


def test_frozen_weights_follow_a_replaced_vector():
    weights = Weights(torch.zeros(6), {"a": (2, 3)})
    weights.frozen()
    weights.flat = torch.ones(6)
    assert (weights.frozen().flat == 1).all()


@pytest.mark.parametrize(
    ("size", "shapes", "said"),
    [
        (5, {"a": (2, 3)}, "do not fit a tensor of shape"),
        (9, {"a": (2, 3), "b": (3,)}, "number of replicas"),
        (1, {"a": ()}, "number of replicas"),
    ],
)
def test_weights_that_do_not_fit_are_refused(size, shapes, said):
    with pytest.raises(InputError, match=said):
        Weights(torch.zeros(size), shapes)


@given(networks(), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_selecting_and_stacking_replicas_are_inverse(net, replicas, random):
    weights = net.initialise(seeds(*range(replicas)), DOUBLE)
    order = list(range(replicas))
    random.shuffle(order)
    shuffled = stack([weights.select([replica]) for replica in order])
    assert torch.equal(shuffled.flat, weights.select(order).flat)
    back = shuffled.select([order.index(replica) for replica in range(replicas)])
    assert torch.equal(back.flat, weights.flat)
    assert shuffled.shapes == weights.shapes


def test_only_one_architecture_can_be_stacked():
    with pytest.raises(InputError, match="one architecture"):
        stack([Weights(torch.zeros(3), {"a": (1, 3)}), Weights(torch.zeros(4), {"a": (1, 4)})])


def test_arrays_read_back_to_the_same_numbers_whatever_their_order():
    net = MLP(3, (4,), 2, members=2, layer_norm=True)
    weights = net.initialise(seeds(0, 1))
    arrays = weights.to_arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    arrays["weight_0"][:] *= 1  # a copy: the weights stay as they are
    again = Weights.from_arrays(arrays)
    assert torch.equal(again.flat, weights.flat)
    assert again.shapes == weights.shapes
    assert Weights.from_arrays(arrays, DOUBLE).flat.dtype == DOUBLE


@given(networks(), st.integers(1, 3))
@settings(max_examples=20)
def test_every_number_belongs_to_its_replica(net, replicas):
    shapes = net.shapes(replicas)
    owner = owners(shapes)
    blocks = Weights(owner.double(), shapes).tensors()
    for block in blocks.values():
        expected = torch.arange(replicas).view(-1, *(1,) * (block.ndim - 1)).expand(block.shape)
        assert torch.equal(block.long(), expected)


def test_polyak_averages_by_one_rate_or_one_per_replica():
    shapes = {"a": (2, 3), "b": (2,)}
    target, source = Weights(noise(8), shapes), Weights(noise(8, seed=1), shapes).trainable()
    before = target.flat.clone()
    polyak(target, source, 0.005)
    assert torch.allclose(target.flat, 0.995 * before + 0.005 * source.flat, rtol=1e-14)
    before = target.flat.clone()
    rates = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    polyak(target, source, rates)
    assert torch.equal(target.select([0]).flat, Weights(before, shapes).select([0]).flat)
    assert torch.allclose(target.select([1]).flat, source.select([1]).flat)
    assert not target.flat.requires_grad


def test_a_replica_that_is_not_kept_gets_its_old_numbers_even_from_nan():
    shapes = {"a": (3, 2), "b": (3,)}
    new, old = Weights(torch.full((9,), math.nan), shapes), torch.arange(9.0)
    new.tensors()["a"][1] = 7
    new.tensors()["b"][1] = 8
    keep(torch.tensor([False, True, False]), new, old)
    assert new.tensors()["a"].tolist() == [[0, 1], [7, 7], [4, 5]]
    assert new.tensors()["b"].tolist() == [6, 8, 8]


def test_a_value_per_replica_broadcasts_over_everything_else():
    like = torch.zeros(3, 4, 5)
    assert per_replica(0.5, like) == 0.5
    assert per_replica(torch.tensor(0.5), like) == 0.5
    assert (per_replica(torch.arange(3.0), like) + like)[2, 1, 1] == 2


# Initialisation


@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_a_replica_is_drawn_as_if_alone_and_alike_in_both_precisions(kind):
    net = MLP(5, (16, 8), 3, members=3, layer_norm=True, initialisation=kind)
    many = net.initialise(seeds(4, 2, 7))
    assert torch.equal(many.select([1]).flat, net.initialise(seeds(2)).flat)
    double = net.initialise(seeds(4, 2, 7), DOUBLE)
    assert torch.equal(double.flat.float(), many.flat)
    blocks = double.tensors()
    assert not torch.equal(blocks["weight_0"][0], blocks["weight_0"][1])
    assert not torch.equal(blocks["weight_0"][0, 0], blocks["weight_0"][0, 1])
    assert (blocks["scale_1"] == 1).all()
    assert (blocks["shift_1"] == 0).all()


def test_the_torch_initialisation_has_the_moments_of_a_linear_layer():
    weight, bias = draw_linear(seeds(0)[0], 400, 300, "torch")
    layer = torch.nn.Linear(400, 300)
    for ours, theirs in ((weight, layer.weight), (bias, layer.bias)):
        assert abs(ours.std() / theirs.detach().std() - 1) < 0.1
        assert ours.abs().max() <= 1 / 20
    assert weight.abs().max() > 0.0499


def test_orthogonal_matrices_are_uniform_in_sign():
    first = torch.stack([draw_linear(g, 4, 4, "orthogonal", 1.0)[0] for g in seeds(*range(400))])
    eye = torch.eye(4, dtype=DOUBLE).expand(400, 4, 4)
    assert torch.allclose(first @ first.mT, eye, atol=1e-12)
    assert first.mean(0).abs().max() < 4 * 0.5 / math.sqrt(400)
    assert 0.4 < (torch.linalg.det(first) > 0).double().mean() < 0.6


def test_edac_starts_with_its_biases_and_its_narrow_last_layer():
    net = MLP(9, (30, 20), 2, members=4, initialisation="edac")
    blocks = net.initialise(seeds(0), DOUBLE).tensors()
    for layer, width in ((0, 30), (1, 20)):
        assert (blocks[f"bias_{layer}"] == 0.1).all()
        largest = blocks[f"weight_{layer}"].abs().max()
        assert 0.95 / math.sqrt(width) < largest <= 1 / math.sqrt(width)
    for name in ("weight_2", "bias_2"):
        assert 0.001 < blocks[name].abs().max() <= 0.003


def test_scales_touch_only_the_layer_they_name():
    plain = MLP(6, (8, 8), 4, initialisation="orthogonal").initialise(seeds(0), DOUBLE)
    options = {"last_hidden_scale": 0.01, "last_scale": 3.0}
    scaled = MLP(6, (8, 8), 4, initialisation="orthogonal", **options).initialise(seeds(0), DOUBLE)
    ours, before = scaled.tensors(), plain.tensors()
    assert torch.equal(ours["weight_0"], before["weight_0"])
    root = math.sqrt(2)
    assert torch.allclose(ours["weight_1"], before["weight_1"] * 0.01 / root, rtol=1e-12)
    assert torch.allclose(ours["weight_2"], before["weight_2"] * 3.0 / root, rtol=1e-12)


def test_heads_are_initialised_as_layers_of_their_own():
    net = MLP(8, (8,), 6, heads=2, initialisation="orthogonal")
    weight = net.initialise(seeds(0), DOUBLE).tensors()["weight_1"][0]
    for head in weight.split(3, dim=1):
        assert torch.allclose(head.T @ head, 2 * torch.eye(3, dtype=DOUBLE))
    assert (weight[:, :3].T @ weight[:, 3:]).abs().max() > 0.01


def test_a_hidden_bias_can_be_set_without_touching_the_weights():
    plain = MLP(3, (4,), 2, last_scale=1e-3).initialise(seeds(0)).tensors()
    biased = MLP(3, (4,), 2, last_scale=1e-3, hidden_bias=0.1).initialise(seeds(0)).tensors()
    assert (biased["bias_0"] == 0.1).all()
    assert torch.equal(plain["weight_1"], biased["weight_1"])
    assert biased["weight_1"].abs().max() <= 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"initialisation": "he"},
        {"activation": "swish"},
        {"dropout": 1.0},
        {"hidden": (0,)},
        {"members": 0},
        {"heads": 2},
    ],
)
def test_an_impossible_network_is_refused(wrong):
    with pytest.raises(InputError):
        MLP(**{"inputs": 3, "hidden": (4,), "outputs": 1, **wrong})


# The network


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_network_equals_the_one_made_of_torch_layers(activation, layer_norm):
    net = MLP(4, (9, 7), 3, members=2, layer_norm=layer_norm, activation=activation)
    weights = net.initialise(seeds(0, 1), DOUBLE).trainable()
    with torch.no_grad():
        weights.flat.add_(0.3 * noise(weights.flat.numel()))
    inputs = noise(2, 11, 4, seed=3)
    gradient = loss_and_gradients(net, weights, inputs, None)[1]
    for replica in range(2):
        for member in range(2):
            blocks = {name: b[replica, member] for name, b in weights.frozen().tensors().items()}
            peer = torch_network(net, blocks)
            output = peer(inputs[replica])
            assert torch.allclose(output, net(weights, inputs)[replica, member], atol=1e-12)
            whole = 2 * output.numel()  # the loss is a mean over both members
            ((output.square().sum() + output.sin().sum()) / whole).backward()
            ours = {
                n: b[replica, member]
                for n, b in Weights(gradient, weights.shapes).tensors().items()
            }
            for name, parameter in torch_parameters(peer).items():
                assert torch.allclose(ours[name], parameter, atol=1e-12), name


def torch_network(net: MLP, blocks: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    kinds = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU}
    widths, parts = (net.inputs, *net.hidden, net.outputs), []
    for layer in range(len(net.hidden) + 1):
        linear = torch.nn.Linear(widths[layer], widths[layer + 1], dtype=DOUBLE)
        linear.weight.data = blocks[f"weight_{layer}"].T.clone()
        linear.bias.data = blocks[f"bias_{layer}"].clone()
        parts.append(linear)
        if layer < len(net.hidden):
            if net.layer_norm:
                norm = torch.nn.LayerNorm(widths[layer + 1], eps=net.norm_epsilon, dtype=DOUBLE)
                norm.weight.data = blocks[f"scale_{layer}"].clone()
                norm.bias.data = blocks[f"shift_{layer}"].clone()
                parts.append(norm)
            parts.append(kinds[net.activation]())
    return torch.nn.Sequential(*parts)


def torch_parameters(peer: torch.nn.Sequential) -> dict[str, torch.Tensor]:
    found, layer = {}, -1
    for part in peer:
        if isinstance(part, torch.nn.Linear):
            layer += 1
            found |= {f"weight_{layer}": part.weight.grad.T, f"bias_{layer}": part.bias.grad}
        if isinstance(part, torch.nn.LayerNorm):
            found |= {f"scale_{layer}": part.weight.grad, f"shift_{layer}": part.bias.grad}
    return found


@given(networks(), st.integers(1, 3), st.integers(1, 5), st.booleans())
@settings(max_examples=60)
def test_one_node_equals_plain_autograd(net, replicas, batch, shared):
    weights = net.initialise(seeds(*range(replicas)), DOUBLE).trainable()
    middle = () if shared or net.members == 1 else (net.members,)
    inputs = noise(replicas, *middle, batch, net.inputs, seed=5)
    masks = masks_of(net, replicas, batch)
    ours = loss_and_gradients(net, weights, inputs, masks)
    leaf = inputs.clone().requires_grad_()
    output = net(weights.tensors(), leaf, masks)
    loss = (output.square().flatten(1).mean(1) + output.flatten(1).sin().mean(1)).sum()
    theirs = (output, *torch.autograd.grad(loss, [weights.flat, leaf]))
    expected = (replicas, batch, net.outputs) if net.members == 1 else None
    assert expected is None or output.shape == expected
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
    flat_only = net(weights.flat, inputs, masks)
    assert torch.equal(flat_only, ours[0])
    with torch.no_grad():
        assert torch.allclose(net(weights, inputs, masks), ours[0], rtol=1e-13, atol=1e-13)


@given(networks(), st.integers(0, 7))
@settings(max_examples=40)
def test_a_replica_in_a_stack_of_eight_equals_it_alone(net, chosen):
    weights = net.initialise(seeds(*range(8)), DOUBLE).trainable()
    inputs, masks = noise(8, 6, net.inputs, seed=5), masks_of(net, 8, 6)
    output, gradient, to_inputs = loss_and_gradients(net, weights, inputs, masks)
    alone = weights.select([chosen]).trainable()
    own = [mask[chosen : chosen + 1] for mask in masks]
    own_output, own_gradient, own_inputs = loss_and_gradients(
        net, alone, inputs[chosen : chosen + 1], own
    )
    assert torch.allclose(output[chosen], own_output[0], rtol=1e-12, atol=1e-12)
    part = Weights(gradient, weights.shapes).select([chosen]).flat
    assert torch.allclose(part, own_gradient, rtol=1e-12, atol=1e-12)
    assert torch.allclose(to_inputs[chosen], own_inputs[0], rtol=1e-12, atol=1e-12)


@given(networks(), st.integers(0, 3))
@settings(max_examples=30)
def test_gradients_do_not_mix_between_replicas(net, chosen):
    weights = net.initialise(seeds(*range(4)), DOUBLE).trainable()
    inputs = noise(4, 6, net.inputs, seed=5).requires_grad_()
    output = net(weights, inputs, masks_of(net, 4, 6))
    gradient, to_inputs = torch.autograd.grad(
        output[chosen].square().sum() + output[chosen].sum(), [weights.flat, inputs]
    )
    others = [replica for replica in range(4) if replica != chosen]
    assert (Weights(gradient, weights.shapes).select(others).flat == 0).all()
    assert (to_inputs[others] == 0).all()
    last = f"bias_{len(net.hidden)}"
    assert (Weights(gradient, weights.shapes).tensors()[last][chosen] != 0).any()


def test_nan_in_one_replica_stays_there():
    net = MLP(3, (8,), 2, members=2, layer_norm=True)
    weights = net.initialise(seeds(0, 1, 2), DOUBLE).trainable()
    inputs = noise(3, 4, 3)
    inputs[1, 2, 0] = math.nan
    output, gradient, _ = loss_and_gradients(net, weights, inputs, None)
    parts = Weights(gradient, weights.shapes)
    assert output[[0, 2]].isfinite().all()
    assert parts.select([0, 2]).flat.isfinite().all()
    assert parts.select([1]).flat.isnan().any()


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_gradients_of_gradients_are_right(members, layer_norm):
    net = MLP(2, (3, 2), 1, members=members, layer_norm=layer_norm, activation="tanh")
    weights = net.initialise(seeds(0), DOUBLE)
    inputs = noise(1, 2, 2).requires_grad_()
    flat = weights.flat.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, x: net(f, x), (flat, inputs))
    assert torch.autograd.gradgradcheck(lambda f, x: net(f, x), (flat, inputs))


def test_a_penalty_on_the_input_gradient_can_be_trained():
    net = MLP(3, (6, 6), 1, members=2)
    weights = net.initialise(seeds(0, 1), DOUBLE).trainable()
    found = []
    for given_weights in (weights, weights.tensors()):
        inputs = noise(2, 5, 3).requires_grad_()
        (slope,) = torch.autograd.grad(
            net(given_weights, inputs).sum(), [inputs], create_graph=True
        )
        found.append(torch.autograd.grad(slope.norm(dim=-1).sum(), [weights.flat])[0])
    assert torch.allclose(*found, atol=1e-13)
    assert found[0].abs().max() > 0


def test_frozen_weights_cost_no_weight_gradient():
    net = MLP(3, (6,), 2)
    weights = net.initialise(seeds(0)).trainable()
    inputs = torch.randn(1, 5, 3, generator=seeds(1)[0], requires_grad=True)
    output = net(weights.frozen(), inputs)
    with Operations() as seen:
        (gradient,) = torch.autograd.grad(output, [inputs], torch.ones_like(output))
    assert gradient.shape == inputs.shape
    assert not any(name.startswith("sum") for name in seen.names)


def test_changing_weights_between_forward_and_backward_is_noticed():
    net = MLP(3, (6,), 2)
    weights = net.initialise(seeds(0)).trainable()
    loss = net(weights, torch.ones(1, 4, 3)).sum()
    with torch.no_grad():
        weights.flat.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [weights.flat])


def test_a_step_in_place_is_seen_by_the_kept_views():
    net = MLP(3, (6,), 2)
    weights = net.initialise(seeds(0), DOUBLE)
    inputs = noise(1, 4, 3)
    net(weights, inputs)
    weights.flat.mul_(0.5)
    assert torch.equal(net(weights, inputs), net(weights.copy(), inputs))
    weights.flat = weights.flat * 2
    assert torch.equal(net(weights, inputs), net(weights.copy(), inputs))


def test_copied_networks_go_their_own_ways():
    net = MLP(3, (6,), 2)
    weights = net.initialise(seeds(0), DOUBLE).trainable()
    inputs = noise(1, 4, 3)
    before = net(weights, inputs)
    twin = copy.deepcopy(weights)
    with torch.no_grad():
        twin.flat.zero_()
    assert (net(twin, inputs) == 0).all()
    assert torch.equal(net(weights, inputs), before)


def test_dropout_rescales_what_it_keeps_and_kills_the_rest():
    net = MLP(3, (50,), 4, dropout=0.2)
    weights = net.initialise(seeds(0), DOUBLE)
    inputs = noise(1, 1, 3)
    blocks = weights.tensors()
    hidden = torch.relu(inputs[0] @ blocks["weight_0"][0] + blocks["bias_0"][0])
    mask = torch.rand(1, 1, 50, generator=seeds(1)[0]) < 0.8
    expected = (hidden * mask[0] / 0.8) @ blocks["weight_1"][0] + blocks["bias_1"][0]
    assert torch.allclose(net(weights, inputs, [mask])[0], expected)
    assert torch.allclose(net(weights, inputs, [mask.double()])[0], expected)
    nothing = net(weights, inputs, [torch.zeros_like(mask)])
    assert torch.allclose(nothing[0, 0], blocks["bias_1"][0])
    assert MLP(3, (50,), 4).dropout_shapes(8) == ()


def test_rows_may_have_several_axes_where_there_are_no_members():
    net = MLP(3, (6,), 2)
    weights = net.initialise(seeds(0, 1), DOUBLE)
    inputs = noise(2, 4, 5, 3)
    assert net(weights, inputs).shape == (2, 4, 5, 2)
    assert torch.allclose(net(weights, inputs)[:, 1], net(weights, inputs[:, 1]), atol=1e-14)


def test_members_may_have_inputs_of_their_own():
    net = MLP(3, (6,), 2, members=4)
    weights = net.initialise(seeds(0, 1), DOUBLE)
    inputs = noise(2, 4, 5, 3)
    output = net(weights, inputs)
    assert output.shape == (2, 4, 5, 2)
    for member in range(4):
        assert torch.allclose(
            output[:, member], net(weights, inputs[:, member])[:, member], atol=1e-14
        )


def test_one_network_uses_two_dimensional_products_and_no_first_input_gradient():
    net = MLP(17, (256, 256), 16)
    weights = net.initialise(seeds(0)).trainable()
    inputs = torch.ones(1, 8, 17)
    with Operations() as seen:
        torch.autograd.grad(net(weights, inputs).sum(), [weights.flat])
    assert seen.names.count("addmm") == 3
    assert seen.names.count("mm") == 5  # three weights, two hidden layers; the inputs need none
    assert not {"bmm", "baddbmm", "cat"} & set(seen.names)


def test_nothing_in_a_pass_reads_values_on_the_host():
    net = MLP(3, (6,), 1, members=2, layer_norm=True, dropout=0.5)
    weights = net.initialise(seeds(0, 1)).trainable()
    target, mask = weights.copy(), torch.tensor([True, False])
    masks = masks_of(net, 2, 4)
    weights.spread(mask)
    with Operations() as seen:
        (gradient,) = torch.autograd.grad(
            net(weights, torch.ones(2, 4, 3), masks).sum(), [weights.flat]
        )
        polyak(target, weights, torch.tensor([0.1, 0.2]))
        keep(mask, target, gradient)
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "unique"} & set(seen.names)


def test_named_weights_work_under_functorch():
    net = MLP(3, (6,), 2)
    tensors = net.initialise(seeds(0), DOUBLE).tensors()
    inputs = noise(1, 4, 3)
    slopes = torch.func.jacrev(lambda x: net(tensors, x))(inputs)
    assert slopes.shape == (1, 4, 2, 1, 4, 3)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 5), (3, 5, 3), (3,)])
def test_inputs_that_do_not_fit_are_named(shape):
    net = MLP(3, (6,), 2)
    with pytest.raises(InputError, match="inputs"):
        net(net.initialise(seeds(0, 1)), torch.zeros(shape))


def test_one_precision_does_not_leak_into_the_other():
    net = MLP(3, (6,), 2, layer_norm=True)
    for dtype in (torch.float32, DOUBLE):
        weights = net.initialise(seeds(0), dtype).trainable()
        output = net(weights, torch.ones(1, 4, 3, dtype=dtype))
        assert output.dtype == dtype
        assert torch.autograd.grad(output.sum(), [weights.flat])[0].dtype == dtype


@pytest.mark.parametrize("members", [1, 2])
def test_weights_may_be_a_part_of_something_larger_and_must_be_of_this_network(members) -> None:
    net = MLP(3, (4,), 2, members=members)
    weights = net.initialise([torch.Generator().manual_seed(0)])
    inputs = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    large = torch.cat([torch.full((7,), 9.0), weights.flat])
    expected = net(weights, inputs)
    assert torch.equal(net(large[7:], inputs), expected)
    assert torch.equal(net(Weights(large[7:], net.shapes(1)), inputs), expected)
    for wrong in (large, weights.flat[:-1], MLP(3, (3,), 2).initialise([torch.Generator()])):
        with pytest.raises(InputError, match="of another network"):
            net(wrong, inputs)
