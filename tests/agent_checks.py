"""What the tests of several agents share: logs, runs, and the promises that every agent keeps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from offrl_wb.core.random import stream
from offrl_wb.data.dataset import Dataset
from offrl_wb.nets.layers import Weights
from offrl_wb.train.agent import agent_spec, load_state, make_agent, select_state
from offrl_wb.train.loop import Block, noise_for, rehearse, updates, watched
from offrl_wb.train.replay import Transitions
from offrl_wb.worlds.linear_gaussian import (
    LinearGaussianWorld,
    LinearPolicy,
    riccati_gain,
    simulate,
)


def random_log(
    size: int = 400, states: int = 3, actions: int = 2, discrete: bool = False, seed: int = 0
) -> Dataset:
    """Noise in the shape of a log, in which episodes terminate and time out."""
    generator = np.random.default_rng(seed)
    over = generator.random(size) < 0.05
    cut = (generator.random(size) < 0.05) & ~over
    over[-1], cut[-1] = True, False
    drawn: Any = generator.uniform(-1, 1, size=(size, actions))
    space: Any = Box(-1, 1, (actions,))
    if discrete:
        drawn, space = generator.integers(actions, size=size), Discrete(actions)
    log = Dataset.from_arrays(
        generator.normal(size=(size, states)),
        drawn,
        generator.normal(size=size),
        over,
        cut,
        final_observations=generator.normal(size=((over | cut).sum(), states)),
    )
    return log.derive("noise", {}, spec=replace(log.spec, action_space=space))


def run(agent: Any, log: Dataset, count: int, batch_size: int = 8) -> dict[str, Tensor]:
    """`count` updates on `log`; metrics `(count, R)`."""
    noise = noise_for(agent, batch_size)
    step = torch.zeros((), dtype=torch.int64)
    return updates(agent, Transitions(log, agent.dtype), noise, count, step)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor agrees, relative to its own size where that is above one."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        scale = max(1.0, float(tensor.abs().max()))
        difference = float((found[name] - tensor).abs().max())
        assert difference <= tolerance * scale, (name, difference, scale)


def check_alone(name: str, config: Any, log: Dataset, long: int = 1000) -> None:
    """A replica of sixteen equals the same seed alone; and something was learnt at all.

    `long`: updates in double precision; in single precision there are a hundred.
    """
    seeds = tuple(range(100, 116))
    for dtype, count, tolerance in ((torch.float64, long, 1e-9), (torch.float32, 100, 1e-5)):
        many = make_agent(name, agent_spec(log), config, seeds, dtype=dtype)
        alone = make_agent(name, agent_spec(log), config, seeds[5:6], dtype=dtype)
        before = {n: t.clone() for n, t in alone.state().items()}
        assert_same(select_state(many, [5]), before, 0.0)
        run(many, log, count)
        run(alone, log, count)
        assert_same(select_state(many, [5]), alone.state(), tolerance)
        moved = (alone.state()["actor/weights"] - before["actor/weights"]).abs().max()
        assert moved > 1e-3


def check_vectors(
    name: str, config: Any, log: Dataset, count: int = 200, **vectors: Sequence[float]
) -> None:
    """Replicas with settings of their own equal runs of one setting each."""
    size = len(next(iter(vectors.values())))
    together = replace(config, **{n: tuple(v) for n, v in vectors.items()})
    many = make_agent(name, agent_spec(log), together, (7,) * size, dtype=torch.float64)
    run(many, log, count)
    for replica in range(size):
        one = replace(config, **{n: v[replica] for n, v in vectors.items()})
        alone = make_agent(name, agent_spec(log), one, (7,), dtype=torch.float64)
        run(alone, log, count)
        assert_same(select_state(many, [replica]), alone.state(), 1e-9)
    first, last = (select_state(many, [r])["actor/weights"] for r in (0, size - 1))
    assert (first - last).abs().max() > 1e-6


def check_captured(name: str, config: Any, log: Dataset) -> None:
    """Nothing in an update could not be captured, and the static form gives the same numbers."""
    spec = agent_spec(log)
    source = Transitions(log, torch.float64)
    for seeds in ((3,), (3, 4)):
        agent = make_agent(name, spec, config, seeds, dtype=torch.float64)
        seen = watched(agent, source, 8)
        assert seen.objections == ()
        assert seen.constant
        rehearse(
            lambda device, seeds=seeds: make_agent(name, spec, config, seeds, device=device), 8
        )
    plain, static = (make_agent(name, spec, config, (3, 4), dtype=torch.float64) for _ in range(2))
    steps = [torch.zeros((), dtype=torch.int64) for _ in range(2)]
    block = Block(static, source, noise_for(static, 8, ahead=4), 4, steps[1])
    noise = noise_for(plain, 8, ahead=4)
    for _ in range(3):
        told = updates(plain, source, noise, 4, steps[0])
        assert_same(block.run(), told, 0.0)
    assert_same(static.state(), plain.state(), 0.0)


def check_resumed(name: str, config: Any, log: Dataset, at: int = 7, then: int = 6) -> None:
    """The state holds everything: another agent that gets it goes on with the same numbers."""
    spec, source = agent_spec(log), Transitions(log, torch.float64)
    agent, other = (
        make_agent(name, spec, config, seeds, dtype=torch.float64) for seeds in ((0, 1), (8, 9))
    )
    noise, step = noise_for(agent, 8), torch.zeros((), dtype=torch.int64)
    updates(agent, source, noise, at, step)
    load_state(other, {n: t.clone() for n, t in agent.state().items()})
    kept, held = noise.state(), step.clone()
    told = updates(agent, source, noise, then, step)
    noise.restore(kept)
    assert_same(updates(other, source, noise, then, held), told, 0.0)
    assert_same(other.state(), agent.state(), 0.0)


# Independent networks: torch.nn modules that take their first numbers from an agent's weights.


def modules_of(
    weights: Weights, activation: type[nn.Module] = nn.ReLU, last: Sequence[nn.Module] = ()
) -> list[nn.Sequential]:
    """The networks of the first replica, one for each member, as `nn.Sequential` in float64."""
    blocks = {n: t.detach()[0] for n, t in weights.tensors().items()}
    members = blocks["weight_0"].ndim == 3
    depth = sum(n.startswith("weight_") for n in blocks)
    made = []
    for member in range(len(blocks["weight_0"]) if members else 1):
        layers: list[nn.Module] = []
        for layer in range(depth):
            weight, bias = (blocks[f"{kind}_{layer}"] for kind in ("weight", "bias"))
            if members:
                weight, bias = weight[member], bias[member]
            linear = nn.Linear(*weight.shape, dtype=torch.float64)
            linear.weight.data.copy_(weight.T)
            linear.bias.data.copy_(bias)
            layers += [linear, activation()] if layer < depth - 1 else [linear, *last]
        made.append(nn.Sequential(*layers))
    return made


def assert_modules(weights: Weights, networks: Sequence[nn.Sequential], tolerance: float) -> None:
    """The weights of the first replica are those of the modules."""
    for member, wanted in enumerate(networks):
        found = modules_of(weights)[member]
        for (name, ours), theirs in zip(
            found.named_parameters(), wanted.parameters(), strict=False
        ):
            difference = (ours - theirs).abs().max().item()
            assert difference <= tolerance, (member, name, difference)


def dense(network: nn.Sequential, values: np.ndarray) -> np.ndarray:
    """A module's output by NumPy alone (ReLU layers)."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for place, layer in enumerate(layers):
        values = values @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        values = np.maximum(values, 0) if place < len(layers) - 1 else values
    return values


# A world with a known best controller, and a log of controllers of very different vigour.

CART = LinearGaussianWorld(
    dynamics=[[1, 0.2], [0, 1]],
    control=[[0], [0.2]],
    noise=np.diag([1e-4, 4e-3]),
    start_mean=[1, 0],
    start_covariance=np.diag([0.05, 0.02]),
    state_cost=np.diag([1, 0.1]),
    action_cost=[[0.1]],
    horizon=30,
    discount=0.97,
)
GAIN = riccati_gain(CART)


def cart_log(vigours: Sequence[float], episodes: int, seed: int = 0, width: float = 3.0) -> Dataset:
    """`episodes` of each controller `vigour * GAIN`; pushes lie in [-width, width]."""
    parts = [
        simulate(CART, LinearPolicy(v * GAIN, [[0.04]]), episodes, stream(seed, "cart", v))
        for v in vigours
    ]
    seen = np.concatenate([p.observations for p in parts]).astype(np.float32)
    done = np.concatenate([p.actions for p in parts]).clip(-width, width).astype(np.float32)
    paid = np.concatenate([p.rewards for p in parts]).astype(np.float32)
    cut = np.zeros(paid.shape, bool)
    cut[:, -1] = True
    log = Dataset.from_arrays(
        seen[:, :-1].reshape(-1, 2),
        done.reshape(-1, 1),
        paid.ravel(),
        np.zeros(paid.size, bool),
        cut.ravel(),
        final_observations=seen[:, -1],
    )
    space = Box(-width, width, (1,))
    return log.derive("cart", {}, spec=replace(log.spec, action_space=space))


def cart_returns(act: Callable[[np.ndarray], np.ndarray], replicas: int) -> np.ndarray:
    """Mean return `(R,)` over 200 fresh episodes; `act`: `(R, 200, 2)` to `(R, 200, 1)`."""
    generator = stream(0, "fresh")
    spread, wind = (np.sqrt(np.diag(c)) for c in (CART.start_covariance, CART.noise))
    start = CART.start_mean + generator.standard_normal((200, 2)) * spread
    state, total = np.tile(start, (replicas, 1, 1)), np.zeros((replicas, 200))
    for _ in range(CART.horizon):
        push = act(state)
        total -= state**2 @ [1, 0.1] + 0.1 * push[..., 0] ** 2
        drift = state @ CART.dynamics.T + push @ CART.control.T
        state = drift + generator.standard_normal((200, 2)) * wind
    return total.mean(axis=1)


def cart_scores(agent: Any, statistics: Any) -> np.ndarray:
    """`cart_returns` of every replica of an agent that learnt on normalised observations."""

    def act(state: np.ndarray) -> np.ndarray:
        seen = torch.as_tensor(statistics.apply_observations(state)).to(agent.dtype)
        return agent.spec.to_environment(agent.act(seen).numpy())

    return cart_returns(act, agent.replicas)
