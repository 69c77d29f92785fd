"""Adam on flat weights equals PyTorch's; replicas do not feel each other; multipliers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from offrl_wb.core.errors import InputError
from offrl_wb.nets.layers import MLP, Weights
from offrl_wb.nets.optimiser import Adam, Multiplier, clip_gradient, cosine, gradient_norms

DOUBLE = torch.float64
NET = MLP(5, (9, 7), 3, members=2, layer_norm=True)


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def gradients(weights: Weights, steps: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(11)
    shape = (steps, weights.flat.numel())
    scale = torch.logspace(-6, 3, steps, dtype=DOUBLE)[:, None]
    drawn = scale * torch.randn(shape, generator=source, dtype=DOUBLE)
    return list(drawn.to(weights.flat.dtype))


def peer_of(weights: Weights, kind: type, **options) -> tuple[dict, torch.optim.Optimizer]:
    """PyTorch's optimiser on one parameter per block."""
    blocks = weights.frozen().tensors()
    named = {name: torch.nn.Parameter(block.clone()) for name, block in blocks.items()}
    return named, kind(named.values(), **options)


def apply(
    named: dict, peer: torch.optim.Optimizer, weights: Weights, gradient: torch.Tensor
) -> None:
    for name, block in Weights(gradient, weights.shapes).tensors().items():
        named[name].grad = block.clone()
    peer.step()


def apart(named: dict, weights: Weights) -> float:
    ours = weights.frozen().tensors()
    return max((named[n].detach() - ours[n]).abs().max().item() for n in named)


ADAM, ADAMW = torch.optim.Adam, torch.optim.AdamW
VARIANTS = {
    "plain": (ADAM, {}, {}),
    "betas": (ADAM, {"betas": (0.5, 0.9), "epsilon": 1e-3}, {"betas": (0.5, 0.9), "eps": 1e-3}),
    "decay": (ADAM, {"decay": 0.1}, {"weight_decay": 0.1}),
    "decoupled": (ADAMW, {"decay": 0.1, "decoupled": True}, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "error"), [(DOUBLE, 1e-13), (torch.float32, 1e-5)])
def test_adam_equals_that_of_torch(name, vector, dtype, error):
    kind, ours, theirs = VARIANTS[name]
    weights = NET.initialise(seeds(3), dtype).trainable()
    named, peer = peer_of(weights, kind, lr=3e-3, **theirs)
    adam = Adam(weights, torch.full((3,), 3e-3) if vector else 3e-3, **ours)
    start = weights.flat.detach().clone()
    for gradient in gradients(weights, 50):
        adam.step(gradient)
        apply(named, peer, weights, gradient)
    if vector:
        error = max(error, 1e-7)  # the rate itself was given in single precision
    assert apart(named, weights) < error
    assert (weights.flat - start).abs().mean() > 1e-3


def test_a_learning_rate_per_replica_is_each_replica_with_its_own():
    weights = NET.initialise(seeds(3), DOUBLE)
    rates = torch.tensor([1e-2, 3e-4, 0.0], dtype=DOUBLE)
    alone = [weights.select([r]) for r in range(3)]
    start = weights.flat.clone()
    adam = Adam(weights, rates, clip_norm=torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))
    own = [
        Adam(part, rate, clip_norm=r + 1.0)
        for r, (part, rate) in enumerate(zip(alone, rates.tolist(), strict=True))
    ]
    for gradient in gradients(weights, 40):
        adam.step(gradient)
        for replica, single in enumerate(own):
            single.step(Weights(gradient, weights.shapes).select([replica]).flat)
    for replica, part in enumerate(alone):
        assert torch.allclose(weights.select([replica]).flat, part.flat, rtol=1e-11, atol=1e-13)
    assert torch.equal(alone[2].flat, Weights(start, weights.shapes).select([2]).flat)


@given(st.integers(1, 4), st.floats(0.01, 100))
@settings(max_examples=20)
def test_norms_are_per_replica_and_clipping_is_that_of_torch(replicas, limit):
    weights = NET.initialise(seeds(replicas), DOUBLE)
    gradient = gradients(weights, 7)[-1]
    clipped = clip_gradient(weights, gradient, limit)
    for replica in range(replicas):
        own = Weights(gradient, weights.shapes).select([replica])
        assert torch.allclose(gradient_norms(weights, gradient)[replica], own.flat.norm())
        named, _ = peer_of(own, ADAM, lr=1.0)
        for name, block in own.tensors().items():
            named[name].grad = block.clone()
        torch.nn.utils.clip_grad_norm_(named.values(), limit)
        ours = Weights(clipped, weights.shapes).select([replica]).tensors()
        for name, parameter in named.items():
            assert torch.allclose(ours[name], parameter.grad, rtol=1e-12)


def test_an_exploding_replica_does_not_shrink_the_others():
    weights = NET.initialise(seeds(2), DOUBLE)
    gradient = torch.ones_like(weights.flat) * 1e-3
    for block in Weights(gradient, weights.shapes).tensors().values():
        block[1] = 1e9
    clipped = Weights(clip_gradient(weights, gradient, 1.0), weights.shapes)
    assert torch.equal(clipped.select([0]).flat, Weights(gradient, weights.shapes).select([0]).flat)
    assert clipped.select([1]).flat.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("vector", [False, True])
def test_the_cosine_schedule_is_that_of_torch_and_ends_at_zero(vector):
    weights = NET.initialise(seeds(2), DOUBLE)
    named, peer = peer_of(weights, ADAM, lr=1e-2)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(peer, 30)
    rate = torch.full((2,), 1e-2, dtype=DOUBLE) if vector else 1e-2
    adam = Adam(weights, rate, schedule="cosine", total=30)
    for gradient in gradients(weights, 30):
        adam.step(gradient)
        apply(named, peer, weights, gradient)
        plan.step()
    assert apart(named, weights) < 1e-12
    before = weights.flat.clone()
    adam.step(torch.ones_like(before))
    assert torch.allclose(weights.flat, before, atol=1e-15)
    halfway = cosine(torch.tensor(15.0), 30).item()
    assert halfway == pytest.approx(0.5)
    assert cosine(torch.tensor(0.0), 30) == 1


def test_state_carried_over_goes_on_where_it_stopped():
    weights = NET.initialise(seeds(2), DOUBLE)
    twin = weights.copy()
    adam, other = Adam(weights, 1e-3), Adam(twin, 1e-3)
    steps = gradients(weights, 20)
    for gradient in steps[:10]:
        adam.step(gradient)
    twin.flat.copy_(weights.flat)
    for name, tensor in other.tensors().items():
        tensor.copy_(adam.tensors()[name])
    for gradient in steps[10:]:
        adam.step(gradient)
        other.step(gradient)
    assert torch.equal(weights.flat, twin.flat)
    assert adam.tensors()["count"] == 20
    assert {n: tuple(t.shape) for n, t in adam.tensors().items()} == {
        "mean": tuple(weights.flat.shape),
        "square": tuple(weights.flat.shape),
        "count": (),
    }


def test_a_step_leaves_the_gradient_alone_and_works_on_leaves():
    weights = NET.initialise(seeds(1)).trainable()
    gradient = torch.ones_like(weights.flat).detach()
    before = weights.flat.detach().clone()
    Adam(weights, 1e-3, decay=0.1, clip_norm=0.5).step(gradient)
    assert (gradient == 1).all()
    assert weights.flat.requires_grad
    assert not torch.equal(weights.flat, before)


@pytest.mark.parametrize(
    "options", [{}, {"schedule": "cosine", "total": 9}, {"clip_norm": 1.0, "decay": 0.1}]
)
@pytest.mark.parametrize("vector", [False, True])
def test_a_step_never_reads_values_on_the_host(options, vector):
    class NoHost(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero")
            return func(*args, **(kwargs or {}))

    weights = NET.initialise(seeds(2))
    adam = Adam(weights, torch.tensor([1e-3, 1e-4]) if vector else 1e-3, **options)
    gradient = torch.ones_like(weights.flat)
    adam.step(gradient)
    with NoHost():
        adam.step(gradient)


def test_a_schedule_must_be_known_and_have_a_length():
    weights = NET.initialise(seeds(1))
    for wrong in ({"schedule": "linear", "total": 3}, {"schedule": "cosine"}):
        with pytest.raises(InputError, match="cosine"):
            Adam(weights, 1e-3, **wrong)


@given(st.floats(1e-4, 100), st.sampled_from(("exp", "softplus")))
def test_a_multiplier_starts_where_it_is_told(initial, kind):
    multiplier = Multiplier(3, initial, kind, DOUBLE)
    assert multiplier.value().shape == (3,)
    assert torch.allclose(multiplier.value(), torch.tensor(initial, dtype=DOUBLE), rtol=1e-9)
    raw = multiplier.raw()
    inverse = math.log(initial) if kind == "exp" else initial + math.log(-math.expm1(-initial))
    assert torch.allclose(raw, torch.tensor(inverse, dtype=DOUBLE), rtol=1e-9)
    assert multiplier.weights.flat is raw


@pytest.mark.parametrize("kind", ["exp", "softplus"])
def test_multipliers_are_positive_apart_and_learn(kind):
    multiplier = Multiplier(2, torch.tensor([0.5, 2.0]), kind)
    assert multiplier.weights.replicas == 2
    assert torch.allclose(multiplier.value(), torch.tensor([0.5, 2.0]))
    adam = Adam(multiplier.weights, 0.05)
    for _ in range(300):
        loss = (multiplier.value() - torch.tensor([1.0, -1.0])).square().sum()
        adam.step(torch.autograd.grad(loss, [multiplier.weights.flat])[0])
    assert abs(multiplier.value()[0] - 1) < 1e-3
    assert 0 < multiplier.value()[1] < 0.1
    with pytest.raises(InputError, match="parametrisation"):
        Multiplier(2, 1.0, "identity")
