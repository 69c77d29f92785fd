"""Losses: minimisers, gradients, limits and reductions, one number per replica."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from offrl_wb.nets import losses
from offrl_wb.nets.losses import (
    awr_loss,
    awr_weights,
    bc_discrete,
    bc_loss,
    cal_ql_bound,
    cal_ql_discrete,
    cql_discrete,
    cql_regulariser,
    expectile,
    expectile_terms,
    gradient_diversity,
    greedy_value,
    huber,
    huber_delta,
    huber_terms,
    imitation_error,
    iql_discrete,
    lagrange_loss,
    likelihood_loss,
    max_backup,
    mean_loss,
    sac_actor_loss,
    sac_discrete_actor_loss,
    soft_value,
    soft_value_discrete,
    squared_error,
    taken,
    td3_bc_loss,
    td_error_loss,
    td_target,
    temperature_discrete_loss,
    temperature_loss,
    uniform_log_density,
)
from offrl_wb.nets.optimiser import Adam, Multiplier

DOUBLE = torch.float64
REPLICAS, MEMBERS, BATCH, SAMPLES, ACTIONS, WIDTH = 3, 2, 5, 4, 6, 2


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=DOUBLE)


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return noise(*shape, seed=seed).requires_grad_()


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), [of])[0]


def located(loss, targets: torch.Tensor, steps: int, rate: float) -> torch.Tensor:
    """Where descent on `loss(targets - location)` ends, one location per replica."""
    location = torch.zeros(len(targets), 1, dtype=DOUBLE, requires_grad=True)
    for _ in range(steps):
        step = rate * gradient(loss(targets - location), location)
        location = (location - step).detach().requires_grad_()
    return location.detach()[:, 0]


# Every loss that makes (R,) of tensors, with arguments for R replicas; vector settings included.


def rb(seed: int = 0) -> torch.Tensor:
    return noise(REPLICAS, BATCH, seed=seed)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def integers() -> torch.Tensor:
    return torch.arange(REPLICAS * BATCH).view(REPLICAS, BATCH) % ACTIONS


ENSEMBLE = (REPLICAS, MEMBERS, BATCH)
LOGITS = (REPLICAS, BATCH, ACTIONS)
LEVELS = vector(0.1, 0.5, 0.9)
EVERY = {
    "mean": (mean_loss, [rb()]),
    "squared": (squared_error, [rb(), rb(1)]),
    "expectile": (expectile, [rb(), LEVELS]),
    "huber": (huber, [noise(*ENSEMBLE), LEVELS]),
    "td": (td_error_loss, [noise(*ENSEMBLE), rb()]),
    "awr": (awr_loss, [rb().exp(), rb(1)]),
    "bc": (bc_loss, [noise(REPLICAS, BATCH, WIDTH), noise(REPLICAS, BATCH, WIDTH, seed=1)]),
    "likelihood": (likelihood_loss, [rb()]),
    "td3_bc": (
        td3_bc_loss,
        [rb(), noise(REPLICAS, BATCH, WIDTH), noise(REPLICAS, BATCH, WIDTH, seed=1), LEVELS],
    ),
    "sac_actor": (sac_actor_loss, [rb(), rb(1), LEVELS]),
    "temperature": (temperature_loss, [LEVELS, rb(), vector(-1, -2, -3)]),
    "lagrange": (lagrange_loss, [LEVELS, vector(-1, 2, 3)]),
    "diversity": (gradient_diversity, [noise(*ENSEMBLE, WIDTH)]),
    "cql": (
        cql_regulariser,
        [noise(*ENSEMBLE, SAMPLES), noise(REPLICAS, BATCH, SAMPLES), noise(*ENSEMBLE, seed=2)],
    ),
    "cql_appended": (
        lambda q, data: cql_regulariser(q, None, data),
        [noise(*ENSEMBLE, SAMPLES), noise(*ENSEMBLE, seed=2)],
    ),
    "bc_discrete": (bc_discrete, [noise(*LOGITS), integers()]),
    "cql_discrete": (cql_discrete, [noise(*ENSEMBLE, ACTIONS), integers()]),
    "cal_ql_discrete": (
        cal_ql_discrete,
        [noise(*ENSEMBLE, ACTIONS), noise(*LOGITS).softmax(-1), rb(), integers()],
    ),
    "sac_discrete": (
        sac_discrete_actor_loss,
        [noise(*LOGITS).log_softmax(-1), noise(*LOGITS, seed=1), LEVELS],
    ),
    "temperature_discrete": (
        temperature_discrete_loss,
        [LEVELS, noise(*LOGITS).log_softmax(-1), vector(1, 2, 3)],
    ),
    "iql_discrete": (
        lambda *given: sum(iql_discrete(*given)),
        [rb(), rb(1), noise(*LOGITS), integers(), LEVELS, vector(1, 2, 3), vector(1, 10, 100)],
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_is_one_number_per_replica_which_it_would_be_alone(name):
    loss, arguments = EVERY[name]
    whole = loss(*arguments)
    assert whole.shape == (REPLICAS,)
    for replica in range(REPLICAS):
        alone = loss(*(argument[replica : replica + 1] for argument in arguments))
        assert torch.allclose(alone[0], whole[replica], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_of_a_loss_stays_in_its_replica(name):
    loss, arguments = EVERY[name]
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    chosen = [a for a in leaves if a.requires_grad]
    found = torch.autograd.grad(loss(*leaves)[1], chosen, allow_unused=True)
    assert any(g is not None and (g[1] != 0).any() for g in found)
    for one in found:
        if one is not None:
            assert (one[[0, 2]] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_never_reads_values_on_the_host(name):
    class NoHost(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero")
            return func(*args, **(kwargs or {}))

    loss, arguments = EVERY[name]
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    with NoHost():
        total = loss(*leaves).sum()
        chosen = [a for a in leaves if a.requires_grad]
        torch.autograd.grad(total, chosen, allow_unused=True)


@pytest.mark.parametrize("name", ["expectile", "huber", "td3_bc", "sac_actor"])
def test_a_number_and_the_same_number_per_replica_agree(name):
    loss, arguments = EVERY[name]
    same = torch.full_like(LEVELS, 0.4)
    one, many = loss(*arguments[:-1], 0.4), loss(*arguments[:-1], same)
    assert torch.allclose(one, many, rtol=1e-14)


def test_every_public_loss_says_its_shapes():
    for name in losses.__all__:
        function = getattr(losses, name)
        if inspect.isfunction(function):
            text = inspect.getdoc(function) or ""
            assert "`" in text, name


# Expectile and Huber


def test_the_expectile_of_a_coin_is_its_level():
    levels = torch.linspace(0.05, 0.95, 19, dtype=DOUBLE)
    coin = torch.tensor([0.0, 1.0], dtype=DOUBLE).expand(19, 2)
    found = located(lambda u: expectile(u, levels), coin, 500, 0.5)
    assert torch.allclose(found, levels, atol=1e-6)


@given(st.integers(0, 999))
@settings(max_examples=10)
def test_the_expectile_is_the_mean_at_one_half_and_rises_with_its_level(seed):
    targets = noise(20, seed=seed)
    levels = torch.linspace(0.1, 0.9, 9, dtype=DOUBLE)
    found = located(lambda u: expectile(u, levels), targets.expand(9, 20), 300, 0.5)
    assert torch.allclose(found[4], targets.mean(), atol=1e-6)
    assert (found.diff() >= 0).all()
    weights = torch.where(targets > found[:, None], levels[:, None], 1 - levels[:, None])
    balance = (weights * (targets - found[:, None])).sum(1)
    assert balance.abs().max() < 1e-6


@given(st.floats(0.01, 50), st.floats(-100, 100))
def test_huber_has_the_clipped_slope(delta, difference):
    x = torch.tensor([[difference]], dtype=DOUBLE, requires_grad=True)
    slope = gradient(huber_terms(x, delta), x).item()
    assert slope == pytest.approx(np.clip(difference / delta, -1, 1), abs=1e-12)


@given(st.floats(0.01, 50))
def test_huber_and_its_slope_are_continuous_where_the_pieces_meet(delta):
    for sign in (-1.0, 1.0):
        edge = torch.tensor([[sign * delta]], dtype=DOUBLE)
        inside, outside = edge * (1 - 1e-9), edge * (1 + 1e-9)
        for x in (inside, edge, outside):
            assert huber_terms(x, delta).item() == pytest.approx(delta / 2, rel=1e-8)
            x.requires_grad_()
            assert gradient(huber_terms(x, delta), x).item() == pytest.approx(sign, abs=1e-8)


def test_huber_goes_to_the_absolute_value_and_to_the_square():
    x = torch.linspace(-7, 7, 101, dtype=DOUBLE)[None]
    assert torch.allclose(huber_terms(x, 1e-10), x.abs(), atol=1e-9)
    assert torch.allclose(1e10 * huber_terms(x, 1e10), x.square() / 2, rtol=1e-12)
    assert huber_delta(3.0) == pytest.approx(1 / 9)
    assert [round(huber_delta(sigma), 3) for sigma in (0.1, 0.5, 1.0)] == [100, 4, 1]
    assert torch.allclose(
        huber_terms(x, 1.0), torch.nn.functional.huber_loss(x, 0 * x, reduction="none")
    )


def test_huber_averages_over_the_critics():
    q, target = noise(2, 5, 7), noise(2, 7, seed=1)
    each = torch.stack([huber(target - q[:, k], 0.5) for k in range(5)])
    assert torch.allclose(huber(target[:, None] - q, 0.5), each.mean(0))


def test_huber_resists_contamination_that_drags_the_mean():
    clean = 0.1 * torch.special.ndtri((torch.arange(700, dtype=DOUBLE) + 0.5) / 700)
    targets = torch.cat([clean, torch.full((300,), 100.0, dtype=DOUBLE)])[None]
    mean = located(lambda u: mean_loss(u.square()), targets, 100, 0.3).item()
    robust = located(lambda u: huber(u, 1e-3), targets, 3000, 1e-3).item()
    percentile = 0.1 * torch.special.ndtri(torch.tensor(5 / 7, dtype=DOUBLE)).item()
    assert mean == pytest.approx(30, abs=0.05)
    assert percentile == pytest.approx(0.0566, abs=1e-4)
    assert robust == pytest.approx(percentile, abs=2e-3)
    assert robust < 0.1


def test_terms_keep_their_shape():
    x = noise(3, 2, 5)
    assert expectile_terms(x, LEVELS).shape == huber_terms(x, LEVELS).shape == x.shape


# Temporal differences


def test_terminals_end_the_return_and_time_outs_do_not():
    reward, next_value = torch.full((1, 3), 2.0), torch.full((1, 3), 10.0, requires_grad=True)
    terminated = torch.tensor([[1.0, 0.0, 0.0]])  # the third is a time-out: not terminated
    target = td_target(reward, terminated, next_value, 0.9)
    assert target.tolist() == [[2.0, 11.0, 11.0]]
    assert not target.requires_grad


def test_the_discount_may_differ_between_replicas():
    target = td_target(rb(), 0 * rb(), rb(1), LEVELS)
    assert torch.allclose(target, rb() + LEVELS[:, None] * rb(1))


def test_all_critics_share_one_target_and_the_mean_runs_over_both():
    q, target = leaf(2, 10, 6), noise(2, 6, seed=1)
    loss = td_error_loss(q, target)
    assert torch.allclose(loss, (q - target[:, None]).square().mean((1, 2)))
    assert torch.allclose(gradient(loss, q), 2 * (q - target[:, None]) / 60)


def test_backups_take_the_best_sample_and_the_entropy():
    q, log_prob = noise(2, 3, 5), noise(2, 3, 5, seed=1)
    assert torch.equal(max_backup(q), q.max(-1).values)
    temperatures = vector(0.0, 2.0)
    soft = soft_value(q, log_prob, temperatures)
    assert torch.equal(soft[0], q[0])
    assert torch.allclose(soft[1], q[1] - 2 * log_prob[1])


# Imitation


def test_awr_weights_are_capped_constant_and_never_infinite():
    advantage = torch.tensor([[-1e9, 0.0, 1.0, 1e9]], dtype=DOUBLE, requires_grad=True)
    weights = awr_weights(advantage, 3.0)
    assert torch.allclose(weights, torch.tensor([[0.0, 1.0, math.exp(3), 100.0]], dtype=DOUBLE))
    assert not weights.requires_grad
    assert awr_weights(advantage, 3.0, 7.0).max() == 7
    caps = awr_weights(advantage.expand(2, 4), vector(3.0, 0.0), vector(5.0, 50.0))
    assert caps.amax(1).tolist() == [5, 1]


def test_no_gradient_flows_through_the_weights_of_awr():
    weights, error = leaf(2, 5), leaf(2, 5, seed=1)
    loss = awr_loss(weights, error)
    assert torch.allclose(gradient(loss, error), weights / 5)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(awr_loss(weights, error).sum(), [weights])


def test_the_best_action_on_one_state_is_the_weighted_average():
    logged, advantage = noise(2, 6, 3), noise(2, 6, seed=1)
    weights = awr_weights(advantage, 3.0)
    shares = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
    best = (shares * logged).sum(1, keepdim=True).requires_grad_()
    assert gradient(awr_loss(weights, imitation_error(best, logged)), best).abs().max() < 1e-12
    other = (best + 0.1).detach()
    worse = awr_loss(weights, imitation_error(other, logged))
    assert (worse > awr_loss(weights, imitation_error(best, logged))).all()


def test_cloning_losses_agree_with_torch():
    prediction, action = noise(2, 5, 3), noise(2, 5, 3, seed=1)
    peer = torch.stack(
        [torch.nn.functional.mse_loss(p, a) for p, a in zip(prediction, action, strict=True)]
    )
    assert torch.allclose(bc_loss(prediction, action), peer)
    assert torch.allclose(imitation_error(prediction, action).mean(1) / 3, peer)
    assert torch.allclose(likelihood_loss(prediction[..., 0]), -prediction[..., 0].mean(1))


@given(st.floats(0.01, 1000))
def test_td3_bc_does_not_see_the_scale_of_q(scale):
    q, prediction, action = noise(2, 5), noise(2, 5, 3), noise(2, 5, 3, seed=1)
    one = td3_bc_loss(q, prediction, action, 2.5)
    assert torch.allclose(one, td3_bc_loss(scale * q, prediction, action, 2.5), rtol=1e-10)


def test_td3_bc_holds_its_scale_constant():
    q = leaf(1, 5)
    loss = td3_bc_loss(q, torch.zeros(1, 5, 3), torch.zeros(1, 5, 3), 2.5)
    expected = -2.5 / q.abs().mean() / 5
    assert torch.allclose(gradient(loss, q), expected.expand(1, 5))


# Soft actor-critic and multipliers


def test_the_actor_moves_and_the_temperature_does_not():
    log_prob, q, temperature = leaf(2, 5), leaf(2, 5, seed=1), vector(0.5, 2.0).requires_grad_()
    loss = sac_actor_loss(log_prob, q, temperature)
    assert torch.allclose(loss, (temperature[:, None] * log_prob - q).mean(1))
    assert torch.allclose(gradient(loss, log_prob), temperature[:, None].expand(2, 5) / 5)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(sac_actor_loss(log_prob, q, temperature).sum(), [temperature])


@pytest.mark.parametrize("kind", ["exp", "softplus"])
def test_multipliers_move_the_way_they_should(kind):
    def change(loss_of) -> torch.Tensor:
        multiplier = Multiplier(2, 1.0, kind, DOUBLE)
        loss = loss_of(multiplier.value()).sum()
        (slope,) = torch.autograd.grad(loss, [multiplier.weights.flat])
        Adam(multiplier.weights, 1e-3).step(slope)
        return multiplier.value().detach() - 1

    # a regulariser above its gap raises the multiplier, below it lowers it
    above, below = change(lambda value: lagrange_loss(value, vector(1.0, 0.5) - 0.8))
    assert above > 0 > below
    # entropy (here 3 and -3) below its target raises the temperature, above it lowers it
    log_prob = torch.tensor([[3.0, 3.0], [-3.0, -3.0]], dtype=DOUBLE)
    low, high = change(lambda value: temperature_loss(value, log_prob, -1.0))
    assert low > 0 > high


def test_no_gradient_flows_from_the_temperature_to_the_policy():
    log_prob, temperature = leaf(2, 5), vector(0.5, 2.0).requires_grad_()
    loss = temperature_loss(temperature, log_prob, -3.0)
    assert torch.allclose(gradient(loss, temperature), -log_prob.mean(1) + 3.0)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(temperature_loss(temperature, log_prob, -3.0).sum(), [log_prob])
    excess = leaf(2)
    assert torch.allclose(gradient(lagrange_loss(temperature, excess), temperature), -excess)


def test_diversity_is_the_mean_cosine_of_pairs():
    gradients = noise(2, 4, 6, 3)
    total = torch.zeros(2, 6, dtype=DOUBLE)
    for i in range(4):
        for j in range(4):
            if i != j:
                pair = (gradients[:, i], gradients[:, j])
                total += torch.nn.functional.cosine_similarity(*pair, dim=-1)
    assert torch.allclose(gradient_diversity(gradients), total.mean(1) / 3)
    assert gradient_diversity(torch.zeros(1, 2, 3, 2)).isfinite().all()


# CQL and Cal-QL


def test_importance_weights_make_the_regulariser_an_integral():
    n, slope = 20_000, -2.0
    action = (2 * torch.arange(n, dtype=DOUBLE) + 1) / n - 1
    density = torch.full((1, 1, n), uniform_log_density(1), dtype=DOUBLE)
    told = cql_regulariser(
        (slope * action).view(1, 1, 1, n), density, torch.zeros(1, 1, 1).double()
    )
    assert told.item() - math.log(n) == pytest.approx(math.log(2 * math.sinh(2) / 2), abs=1e-7)
    assert uniform_log_density(6) == pytest.approx(6 * math.log(0.5))


def test_samples_of_any_density_estimate_the_same_integral():
    # a uniform and a sloped density on [-1, 1], sampled by their quantiles
    n = 50_000
    uniforms = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    sloped = 2 * uniforms.sqrt() - 1  # density (1 + a) / 2
    flat = 2 * uniforms - 1
    data = torch.zeros(1, 1, 1, dtype=DOUBLE)
    q = [(0.7 * a).view(1, 1, 1, n) for a in (flat, sloped)]
    logs = [
        torch.full((1, 1, n), math.log(0.5), dtype=DOUBLE),
        torch.log((1 + sloped) / 2).view(1, 1, n),
    ]
    one, other = (cql_regulariser(*pair, data).item() for pair in zip(q, logs, strict=True))
    assert one == pytest.approx(other, abs=0.02)


@given(st.floats(-50, 50), st.floats(0.2, 5))
def test_with_the_data_appended_a_constant_q_costs_nothing(level, temperature):
    q = torch.full((2, 3, 4, 9), level, dtype=DOUBLE)
    loss = cql_regulariser(q, None, torch.full((2, 3, 4), level, dtype=DOUBLE), temperature)
    assert loss.abs().max() < 1e-12


def test_the_appended_form_pushes_samples_down_and_data_up():
    q, data = leaf(1, 1, 1, 3), leaf(1, 1, 1, seed=1)
    loss = cql_regulariser(q, None, data)
    shares = torch.cat([q, data[..., None]], -1).softmax(-1)
    assert torch.allclose(gradient(loss, q), shares[..., :3])
    assert torch.allclose(gradient(cql_regulariser(q, None, data), data), shares[..., 3] - 1)


def test_no_gradient_flows_into_the_density_of_the_samples():
    density = leaf(1, 1, 3)
    loss = cql_regulariser(leaf(1, 2, 1, 3), density, leaf(1, 2, 1))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss.sum(), [density])


def test_huge_values_do_not_overflow_the_regulariser():
    q, data = torch.full((1, 1, 1, 4), 1e4), torch.zeros(1, 1, 1)
    assert cql_regulariser(q, torch.zeros(1, 1, 4), data).item() == pytest.approx(1e4 + math.log(4))


def bounded_parts(seed: int):
    from_policy = torch.tensor([False, True, True, False])
    q = leaf(*ENSEMBLE, SAMPLES, seed=seed)
    return (
        q,
        noise(REPLICAS, BATCH, SAMPLES, seed=seed + 1),
        noise(*ENSEMBLE, seed=seed + 2),
        from_policy,
    )


@given(st.integers(0, 999))
@settings(max_examples=25)
def test_cal_ql_is_cql_under_a_bound_of_minus_infinity(seed):
    q, density, data, from_policy = bounded_parts(seed)
    nowhere = cal_ql_bound(q, torch.full((REPLICAS, BATCH), -math.inf, dtype=DOUBLE), from_policy)
    assert torch.equal(nowhere, q)
    ours = gradient(cql_regulariser(nowhere, density, data), q)
    assert torch.equal(ours, gradient(cql_regulariser(q, density, data), q))


@given(st.integers(0, 999))
@settings(max_examples=25)
def test_a_policy_sample_below_the_return_gets_no_gradient_and_random_ones_always_do(seed):
    q, density, data, from_policy = bounded_parts(seed)
    returns = rb(seed + 3)
    bounded = cal_ql_bound(q, returns, from_policy)
    slope = gradient(cql_regulariser(bounded, density, data), q)
    below = (q < returns[:, None, :, None]) & from_policy
    assert (slope[below] == 0).all()
    assert (slope[~below] > 0).all()
    assert torch.equal(bounded[..., ~from_policy], q[..., ~from_policy])
    assert (bounded[..., from_policy] >= returns[:, None, :, None]).all()


def test_the_gradient_of_discrete_cql_is_softmax_minus_the_data():
    q, action = leaf(REPLICAS, MEMBERS, BATCH, ACTIONS), integers()
    slope = gradient(cql_discrete(q, action), q) * MEMBERS * BATCH
    onehot = torch.nn.functional.one_hot(action, ACTIONS)[:, None]
    assert torch.allclose(slope, q.softmax(-1) - onehot, atol=1e-14)


def test_calibration_stops_the_fall_at_the_return_or_the_target():
    cases = 200  # one per replica
    targets, pi = 1.5 + noise(cases, 5), noise(cases, 5, seed=1).softmax(-1)
    bound, alpha = 1.5 + noise(cases, 1, seed=2), noise(cases, 1, seed=3).exp()
    q = torch.zeros(cases, 1, 1, 5, dtype=DOUBLE, requires_grad=True)
    action = torch.zeros(cases, 1, dtype=torch.long)
    for step in range(1500):
        fit = 0.5 * (q.view(cases, 5) - targets).square().sum(1)
        fall = cal_ql_discrete(q, pi.view(cases, 1, 5), bound, action)
        slope = gradient(fit + alpha[:, 0] * fall, q)
        q = (q - 2 / (step + 8) * slope).detach().requires_grad_()
    found = q.detach().view(cases, 5)
    fallen = torch.maximum(bound, targets - alpha * pi)
    expected = torch.where(targets >= bound, fallen, targets)
    assert ((found - expected)[:, 1:].abs() < 0.01 * (1 + alpha)).all()
    lowest = torch.minimum(targets, bound)
    assert (found >= lowest - 0.01 * (1 + alpha))[:, 1:].all()
    stopped = (targets >= bound) & (targets - alpha * pi < bound)
    assert 30 < stopped[:, 1:].sum() < 770  # both sides of the formula are met


# Finitely many actions


def test_taken_entries_are_those_of_the_actions():
    q, action = noise(REPLICAS, MEMBERS, BATCH, ACTIONS), integers()
    for r in range(REPLICAS):
        for b in range(BATCH):
            assert torch.equal(taken(q, action)[r, :, b], q[r, :, b, action[r, b]])
            assert taken(q[:, 0], action)[r, b] == q[r, 0, b, action[r, b]]
    assert torch.equal(taken(q, action.int()), taken(q, action))


def test_double_q_chooses_by_one_and_judges_by_the_other():
    choosing = torch.tensor([[[1.0, 5.0, 2.0]]])
    judging = torch.tensor([[[7.0, 3.0, 9.0]]])
    assert greedy_value(choosing, judging).item() == 3


def test_discrete_losses_are_their_definitions():
    logits, q, action = leaf(*LOGITS), leaf(*LOGITS, seed=1), integers()
    peer = torch.distributions.Categorical(logits=logits)
    logs = logits.log_softmax(-1)
    assert torch.allclose(bc_discrete(logits, action), -peer.log_prob(action).mean(1))
    soft = soft_value_discrete(q, logs, LEVELS)
    expected = (peer.probs * q).sum(-1) + LEVELS[:, None] * peer.entropy()
    assert torch.allclose(soft, expected)
    loss = sac_discrete_actor_loss(logs, q, LEVELS)
    assert torch.allclose(loss, -expected.mean(1))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(sac_discrete_actor_loss(logs, q, LEVELS).sum(), [q])
    change = temperature_discrete_loss(LEVELS, logs, 1.0)
    assert torch.allclose(change, LEVELS * (peer.entropy().mean(1) - 1))


def test_the_discrete_soft_actor_is_best_where_it_is_softmax():
    q = noise(1, 1, 4)
    best = (q / 0.3).requires_grad_()
    loss = sac_discrete_actor_loss(best.log_softmax(-1), q, 0.3)
    assert gradient(loss, best).abs().max() < 1e-12
    assert loss.item() == pytest.approx(-0.3 * (q / 0.3).logsumexp(-1).item())


def test_discrete_iql_is_an_expectile_and_a_weighted_imitation():
    q, value, logits, action = leaf(2, 5), leaf(2, 5, seed=1), leaf(2, 5, 3), integers()[:2] % 3
    value_loss, actor_loss = iql_discrete(q, value, logits, action, 0.7, 3.0, 10.0)
    advantage = (q - value).detach()
    assert torch.allclose(value_loss, expectile(advantage, 0.7))
    weights = (3 * advantage).exp().clamp(max=10)
    peer = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(actor_loss, -(weights * peer.log_prob(action)).mean(1))
    grads = torch.autograd.grad((value_loss + actor_loss).sum(), [q, value], allow_unused=True)
    assert grads[0] is None
    assert (grads[1] != 0).all()
