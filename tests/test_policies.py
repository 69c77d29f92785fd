"""Policies: densities against PyTorch and by integration, sampling, saving and loading."""

import dataclasses
import json
import subprocess
import sys
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import DiscretePolicy, Policy, StochasticPolicy
from offrl_wb.nets.layers import Weights
from offrl_wb.nets.policies import (
    FAMILIES,
    Categorical,
    Deterministic,
    Gaussian,
    SavedPolicy,
    TanhGaussian,
    load_policy,
    log_slope_of_tanh,
    save_policy,
    saved_policy,
)

DOUBLE = torch.float64
EVERY = [
    Deterministic(3, 2, (8, 8)),
    Gaussian(3, 2, (8, 8)),
    Gaussian(3, 2, (8,), log_std="head", squash_mean=False, layer_norm=True),
    TanhGaussian(3, 2, (8, 8)),
    TanhGaussian(3, 2, (8,), log_std="free", log_std_bounds=(-5, 2)),
    TanhGaussian(3, 2, (8,), log_std="scaled", initialisation="xavier", last_scale=0.01),
    Categorical(3, 4, (8,), initialisation="orthogonal"),
]


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeds(seed)[0], dtype=DOUBLE)


def parts(out) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def lively(policy, replicas: int = 2) -> Weights:
    """Weights far enough from their start that all parts matter."""
    weights = policy.initialise(seeds(*range(replicas)), DOUBLE)
    weights.flat.add_(0.2 * noise(weights.flat.numel(), seed=8))
    return weights


@pytest.mark.parametrize("policy", EVERY, ids=lambda p: f"{type(p).__name__}")
def test_a_policy_in_a_stack_of_eight_equals_it_alone_with_its_gradients(policy):
    weights = lively(policy, 8).trainable()
    observation = noise(8, 6, 3)
    out = policy(weights, observation)
    loss = sum(part.square().mean((1, 2)).sum() for part in parts(out))
    (gradient,) = torch.autograd.grad(loss, [weights.flat])
    for replica in (0, 5):
        alone = weights.select([replica]).trainable()
        own = policy(alone, observation[replica : replica + 1])
        own_loss = sum(part.square().mean((1, 2)).sum() for part in parts(own))
        (own_gradient,) = torch.autograd.grad(own_loss, [alone.flat])
        for many, one in zip(parts(out), parts(own), strict=True):
            assert torch.allclose(many[replica], one[0], rtol=1e-12, atol=1e-12)
        part = Weights(gradient, weights.shapes).select([replica]).flat
        assert torch.allclose(part, own_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", EVERY, ids=lambda p: f"{type(p).__name__}")
def test_the_fast_path_equals_named_tensors_with_gradients(policy):
    weights = lively(policy).trainable()
    assert {name: tuple(b.shape) for name, b in weights.tensors().items()} == policy.shapes(2)
    found = []
    for given_weights in (weights, weights.tensors()):
        out = policy(given_weights, noise(2, 6, 3))
        loss = sum(part.square().sum() for part in parts(out))
        found.append((*parts(out), *torch.autograd.grad(loss, [weights.flat])))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert (found[0][-1] != 0).any()


@pytest.mark.parametrize("policy", EVERY, ids=lambda p: f"{type(p).__name__}")
def test_acting_without_noise_is_the_mode_and_stays_in_the_box(policy):
    weights, observation = lively(policy), 20 * noise(2, 30, 3)
    action = policy.act(weights, observation)
    assert torch.equal(action, policy.mode(policy(weights, observation)))
    if isinstance(policy, Categorical):
        drawn = policy.act(weights, observation, torch.rand(2, 30, generator=seeds(1)[0]).double())
        assert drawn.shape == (2, 30)
        assert drawn.min() >= 0
        assert drawn.max() <= 3
        return
    assert action.shape == (2, 30, 2)
    drawn = policy.act(weights, observation, 3 * noise(2, 30, 2, seed=4))
    assert drawn.abs().max() <= 1
    assert action.abs().max() <= 1
    assert not torch.equal(drawn, action)


def test_dropout_masks_reach_a_policy():
    policy = Gaussian(3, 2, (8, 8), dropout=0.1)
    weights = lively(policy)
    assert policy.dropout_shapes(5) == ((5, 8), (5, 8))
    nothing = [torch.zeros(2, 5, 8), torch.zeros(2, 5, 8)]
    mean, _ = policy(weights, noise(2, 5, 3), nothing)
    assert torch.allclose(mean, weights.tensors()["bias_2"].unsqueeze(1).expand(2, 5, 2).tanh())


def test_the_deviation_is_bounded_and_free_scaled_or_a_head():
    observation = noise(2, 50, 3)
    for kind in ("free", "head", "scaled"):
        policy = Gaussian(3, 2, (8,), log_std=kind, log_std_bounds=(-0.1, 0.1))
        weights = policy.initialise(seeds(0, 1), DOUBLE)
        weights.flat.mul_(10)
        _, log_std = policy(weights, observation)
        assert log_std.shape == (2, 50, 2)
        assert log_std.min() >= -0.1
        assert log_std.max() <= 0.1
    with pytest.raises(InputError, match="log_std"):
        Gaussian(3, 2, log_std="none")


def test_the_free_deviation_does_not_depend_on_the_observation_and_learns():
    policy = Gaussian(3, 2, (8,), log_std_start=-0.5)
    weights = policy.initialise(seeds(0, 1), DOUBLE).trainable()
    out = policy(weights, noise(2, 50, 3))
    assert (out[1] == -0.5).all()
    (gradient,) = torch.autograd.grad(policy.log_prob(out, noise(2, 50, 2)).sum(), [weights.flat])
    assert (Weights(gradient, weights.shapes).tensors()["log_std"] != 0).all()


def test_a_scaled_deviation_starts_from_factor_one_and_offset_minus_one():
    scaled, head = (TanhGaussian(3, 2, (8,), log_std=kind) for kind in ("scaled", "head"))
    observation = noise(1, 20, 3)
    mean, log_std = scaled(scaled.initialise(seeds(3), DOUBLE), observation)
    same_mean, raw = head(head.initialise(seeds(3), DOUBLE), observation)
    assert torch.allclose(mean, same_mean)
    assert torch.allclose(log_std, raw - 1)


@pytest.mark.parametrize("samples", [0, 5])
def test_the_gaussian_density_is_that_of_torch(samples):
    policy = Gaussian(3, 2, (8, 8), log_std="head")
    mean, log_std = out = policy(lively(policy), noise(2, 7, 3))
    drawn = policy.sample(out, noise(2, 7, *((samples,) if samples else ()), 2, seed=2))
    if samples:
        mean, log_std = mean.unsqueeze(2), log_std.unsqueeze(2)
    peer = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    assert policy.log_prob(out, drawn).shape == drawn.shape[:-1]
    assert torch.allclose(policy.log_prob(out, drawn), peer.log_prob(drawn), rtol=1e-12)


# Tanh


def test_the_slope_of_tanh_is_exact_however_far_out():
    getcontext().prec = 80
    for value in (-1000.0, -50.0, -19.1, -1.0, -1e-9, 0.0, 0.3, 5.0, 9.0, 20.0, 350.0):
        large = (2 * Decimal(abs(value))).exp()
        exact = float((4 * large / (1 + large) ** 2).ln())
        for dtype, error in ((DOUBLE, 1e-14), (torch.float32, 3e-7)):
            told = log_slope_of_tanh(torch.tensor(value, dtype=dtype)).item()
            assert abs(told - exact) <= error * max(abs(exact), 1)


@given(st.floats(-3, 3), st.floats(-3, 1), st.integers(0, 99))
@settings(max_examples=50)
def test_the_squashed_density_is_that_of_torch(mean, log_std, seed):
    policy = TanhGaussian(1, 2)
    out = torch.full((2, 4, 2), mean, dtype=DOUBLE), torch.full((2, 4, 2), log_std, dtype=DOUBLE)
    standard = noise(2, 4, 3, 2, seed=seed)
    action, log_prob = policy.sample(out, standard)
    before = mean + np.exp(log_std) * standard
    transform = torch.distributions.TanhTransform(cache_size=1)
    normal = torch.distributions.Normal(out[0].unsqueeze(2), out[1].exp().unsqueeze(2))
    peer = torch.distributions.TransformedDistribution(normal, transform)
    expected = peer.log_prob(transform(before)).sum(-1)
    assert torch.allclose(action, before.tanh())
    assert torch.allclose(log_prob, expected, rtol=1e-10, atol=1e-10)
    near = (before.abs() < 6).all(-1)
    assert torch.allclose(policy.log_prob(out, action)[near], log_prob[near], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -0.4), (-2.0, -1.5), (1.0, 0.5)])
def test_the_squashed_density_integrates_to_one_with_the_right_mean(mean, log_std):
    policy = TanhGaussian(1, 1)
    before = torch.linspace(-14, 14, 400_001, dtype=DOUBLE)
    out = torch.full((1, 1, 1), mean, dtype=DOUBLE), torch.full((1, 1, 1), log_std, dtype=DOUBLE)
    action = before.tanh()
    density = policy.log_prob(out, action.view(1, 1, -1, 1)).exp()[0, 0]
    assert abs(torch.trapezoid(density, action) - 1) < 1e-6
    drawn, _ = policy.sample(out, noise(1, 1, 400_000, 1))
    assert abs(torch.trapezoid(density * action, action) - drawn.mean()) < 4 * drawn.std() / 632


def test_the_squashed_density_in_two_dimensions_is_a_product():
    policy = TanhGaussian(1, 2)
    mean, log_std = noise(1, 5, 2), 0.3 * noise(1, 5, 2, seed=1)
    action = noise(1, 5, 2, seed=2).tanh()
    both = policy.log_prob((mean, log_std), action)
    each = [
        TanhGaussian(1, 1).log_prob(
            (mean[..., i : i + 1], log_std[..., i : i + 1]), action[..., i : i + 1]
        )
        for i in range(2)
    ]
    assert torch.allclose(both, each[0] + each[1])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_densities_and_their_gradients_stay_finite_at_the_edge(dtype):
    policy = TanhGaussian(1, 2)
    mean = torch.tensor([[[-40.0, 40.0]]], dtype=dtype, requires_grad=True)
    log_std = torch.zeros_like(mean).requires_grad_()
    action, log_prob = policy.sample((mean, log_std), torch.ones_like(mean))
    assert action.abs().max() == 1
    told = policy.log_prob((mean, log_std), torch.tensor([[[-1.0, 1.0]]], dtype=dtype))
    for value in (log_prob, told):
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), [mean, log_std], retain_graph=True):
            assert gradient.isfinite().all()


def test_the_sampled_log_density_has_the_gradient_of_its_formula():
    policy = TanhGaussian(2, 1, (4,), activation="tanh")
    flat = policy.initialise(seeds(0), DOUBLE).flat.requires_grad_()

    def loss(numbers: torch.Tensor) -> torch.Tensor:
        weights = Weights(numbers, policy.shapes(1))
        action, log_prob = policy.sample(policy(weights, noise(1, 3, 2)), noise(1, 3, 1, seed=1))
        return log_prob.sum() + action.sum()

    assert torch.autograd.gradcheck(loss, (flat,))


# Finitely many actions


def test_a_categorical_agrees_with_torch():
    policy = Categorical(3, 4, (8,))
    out = policy(lively(policy), noise(2, 9, 3))
    peer = torch.distributions.Categorical(logits=out)
    action = policy.mode(out)
    assert torch.allclose(policy.log_prob(out, action), peer.log_prob(action))
    assert torch.allclose(policy.entropy(out), peer.entropy())
    assert torch.allclose(policy.probabilities(out), peer.probs)
    assert torch.allclose(policy.log_probabilities(out).exp(), peer.probs)


def test_uniform_numbers_become_actions_by_their_shares():
    policy = Categorical(1, 4)
    out = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=DOUBLE).log().expand(1, 1000, 4)
    uniforms = (torch.arange(1000, dtype=DOUBLE) + 0.5) / 1000
    drawn = policy.sample(out, uniforms[None])
    assert torch.bincount(drawn[0], minlength=4).tolist() == [100, 0, 600, 300]
    assert policy.sample(out[:, :1], torch.ones(1, 1, dtype=DOUBLE)).item() == 3


# Saved policies


def saved(policy, **details) -> SavedPolicy:
    weights = lively(policy).select([1]).to(torch.float32)
    return SavedPolicy(policy, weights, **details)


@pytest.mark.parametrize("policy", EVERY, ids=lambda p: f"{type(p).__name__}")
def test_a_saved_policy_reads_back_to_the_same_actions(policy, tmp_path):
    details = {
        "observation_mean": np.ones(3),
        "observation_scale": (1.0, 2.0, 3.0),
        "about": {"seed": 3},
    }
    if not isinstance(policy, Categorical):
        details |= {"low": (-2.0, 0.0), "high": (2.0, 5.0)}
    written = saved(policy, **details)
    loaded = load_policy(save_policy(tmp_path / "deep" / "er", written))
    assert loaded.architecture == policy
    assert loaded.about == {"seed": 3}
    assert torch.equal(loaded.weights.flat, written.weights.flat)
    scene = np.random.default_rng(0).normal(size=(20, 3))
    assert np.array_equal(loaded.act(scene), written.act(scene))
    drawn = [p.act(scene, np.random.default_rng(1)) for p in (loaded, written)]
    assert np.array_equal(*drawn)
    assert sorted(file.name for file in (tmp_path / "deep" / "er").iterdir()) == [
        "policy.json",
        "policy.safetensors",
    ]


def test_a_saved_policy_normalises_and_stretches():
    policy = Deterministic(3, 2, (8,))
    plain = saved(policy)
    worldly = saved(
        policy,
        observation_mean=np.ones(3),
        observation_scale=np.full(3, 2.0),
        low=[0, -1],
        high=[4, 1],
    )
    scene = np.random.default_rng(0).normal(size=(5, 3))
    inside = plain.act((scene - 1) / 2)
    assert np.allclose(worldly.act(scene), [2, 0] + inside * [2, 1], atol=1e-6)


def test_kinds_of_saved_policies_follow_the_protocols():
    kinds = {
        Deterministic: (Policy,),
        Gaussian: (Policy, StochasticPolicy),
        TanhGaussian: (Policy, StochasticPolicy),
        Categorical: (Policy, DiscretePolicy),
    }
    for family, expected in kinds.items():
        policy = saved(family(3, 2))
        for protocol in (Policy, StochasticPolicy, DiscretePolicy):
            assert isinstance(policy, protocol) == (protocol in expected)
    weights = Categorical(3, 2).initialise(seeds(0))
    assert isinstance(saved_policy(Categorical(3, 2), weights), DiscretePolicy)


@pytest.mark.parametrize("family", [Gaussian, TanhGaussian])
def test_a_saved_density_is_in_the_units_of_the_world(family):
    policy = family(3, 1, (8,), log_std_bounds=(-3, -2))
    worldly = saved(policy, low=[-1.0], high=[3.0])
    scene = np.zeros((1, 3))
    grid = np.linspace(-0.9999, 2.9999, 40_001)[:, None]
    density = np.exp(worldly.log_prob(np.repeat(scene, len(grid), 0), grid))
    assert abs(np.trapezoid(density, grid[:, 0]) - 1) < 1e-3
    drawn = worldly.sample(np.repeat(scene, 4000, 0), np.random.default_rng(0))
    mean = np.trapezoid(density * grid[:, 0], grid[:, 0])
    assert abs(drawn.mean() - mean) < 5 * drawn.std() / np.sqrt(4000)
    assert np.allclose(worldly.act(scene)[0], mean, atol=0.1)


def test_a_saved_categorical_gives_probabilities_and_draws_by_them():
    policy = saved(Categorical(3, 4, (8,)))
    scene = np.repeat(np.random.default_rng(0).normal(size=(1, 3)), 20_000, 0)
    probabilities = policy.probabilities(scene)
    assert np.allclose(probabilities.sum(1), 1)
    drawn = policy.act(scene, np.random.default_rng(2))
    assert np.abs(np.bincount(drawn, minlength=4) / 20_000 - probabilities[0]).max() < 0.015
    assert policy.act(scene[:1])[0] == probabilities[0].argmax()


def test_a_loaded_policy_needs_no_training_code(tmp_path):
    written = saved(TanhGaussian(3, 2, (8,)), low=[-1, -1], high=[1, 1])
    save_policy(tmp_path, written)
    program = (
        "import sys, numpy as np\n"
        "from offrl_wb.nets.policies import load_policy\n"
        f"policy = load_policy({str(tmp_path)!r})\n"
        "action = policy.act(np.zeros((1, 3)))\n"
        "assert action.shape == (1, 2)\n"
        "heavy = [m for m in sys.modules if m.startswith(('offrl_wb.train', 'offrl_wb.agents'))]\n"
        "print(heavy, [m for m in ('polars', 'plotly', 'gymnasium') if m in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "[] []", ran.stderr


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_missing_or_damaged_file_is_one_clear_line(name, tmp_path):
    save_policy(tmp_path, saved(Deterministic(3, 2, (8,))))
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(InputError, match="cannot be read"):
        load_policy(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_policy(tmp_path)


@pytest.mark.parametrize("change", [{"format": 99}, {"family": "Oracle"}])
def test_another_format_is_refused(change, tmp_path):
    save_policy(tmp_path, saved(Deterministic(3, 2, (8,))))
    description = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(description | change))
    with pytest.raises(InputError, match="version"):
        load_policy(tmp_path)


DAMAGE = [
    (lambda told: [], "does not describe a policy"),
    (lambda told: None, "does not describe a policy"),
    (lambda told: {k: v for k, v in told.items() if k != "format"}, "does not describe a policy"),
    (lambda told: {k: v for k, v in told.items() if k != "architecture"}, "lacks the object arch"),
    (lambda told: {k: v for k, v in told.items() if k != "about"}, "or about"),
    (lambda told: told | {"architecture": []}, "lacks the object architecture"),
    (lambda told: told | {"family": ["Deterministic"]}, "version"),
    ({"depth": 3}, "has an unknown field 'depth'"),
    ({"action": None}, "makes no network|sizes of its architecture"),
    ({"hidden": 8}, "makes no network"),
    ({"hidden": ["8"]}, "makes no network"),
    ({"hidden": [8.0]}, "sizes of its architecture"),
    ({"activation": "sine"}, "makes no network: activation is relu"),
    ({"hidden": [8, 8]}, "is missing, and policy.json tells of floating|has float32 numbers"),
    ({"hidden": [16]}, r"has float32 numbers \(1, 8"),
    ({"observation": 4}, r"numbers \(3,\), and policy.json tells of floating ones \(4,\)"),
]


@pytest.mark.parametrize(("change", "told"), DAMAGE)
def test_a_foreign_description_is_one_clear_line(change, told, tmp_path):
    save_policy(tmp_path, saved(Deterministic(3, 2, (8,)), observation_mean=np.ones(3)))
    file = tmp_path / "policy.json"
    found = json.loads(file.read_text())
    if isinstance(change, dict):
        found["architecture"] |= change
    else:
        found = change(found)
    file.write_text(json.dumps(found))
    with pytest.raises(InputError, match=told) as problem:
        load_policy(tmp_path)
    assert str(tmp_path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_foreign_arrays_are_one_clear_line(tmp_path):
    policy = saved(Deterministic(3, 2, (8,)))
    folder, file = save_policy(tmp_path, policy), tmp_path / "policy.safetensors"
    good = load_file(file)
    save_file(good | {"more": np.ones(2)}, file)
    with pytest.raises(InputError, match=r"more has float64 .* tells of none of that name"):
        load_policy(folder)
    save_file({name: array.astype(np.int64) for name, array in good.items()}, file)
    with pytest.raises(InputError, match="has int64 numbers"):
        load_policy(folder)
    save_file(good, file)
    assert torch.equal(load_policy(folder).weights.flat, policy.weights.flat)


def test_a_saved_policy_is_one_replica_and_takes_batches():
    policy = Deterministic(3, 2, (8,))
    with pytest.raises(InputError, match="one replica"):
        SavedPolicy(policy, policy.initialise(seeds(0, 1)))
    for wrong in (np.zeros(3), np.zeros((2, 4))):
        with pytest.raises(InputError, match="observations"):
            saved(policy).act(wrong)


def test_a_saved_policy_keeps_its_numbers_when_training_goes_on():
    policy = Deterministic(3, 2, (8,))
    weights = policy.initialise(seeds(0))
    written = SavedPolicy(policy, weights)
    before = written.act(np.ones((1, 3)))
    weights.flat.zero_()
    assert np.array_equal(written.act(np.ones((1, 3))), before)


def test_every_family_can_be_written_and_read():
    assert set(FAMILIES) == {"Deterministic", "Gaussian", "TanhGaussian", "Categorical"}
    for family in FAMILIES.values():
        fields = dataclasses.asdict(family(3, 2))
        known = json.loads(json.dumps(fields))
        assert family(**known) == family(3, 2)
