"""CORL's update code, imported from a folder outside this repository, driven as by its own loop.

`OFFRL_WB_CORL` names a checkout of CORL (github.com/tinkoff-ai/CORL, Apache-2.0), or a folder that
holds its files `iql.py`, `td3_bc.py`, ... What those files import and do not need for an update
(gym, d4rl, wandb, pyrallis) is replaced by empty modules.
"""

import contextlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Updates = Callable[[int], None]
FILES = {
    "bc": "any_percent_bc",
    "td3_bc": "td3_bc",
    "iql": "iql",
    "cql": "cql",
    "cal_ql": "cal_ql",
    "sac_n": "sac_n",
    "edac": "edac",
}


class Anything:
    """Stands for a module's contents that an update never uses; as a decorator it does nothing."""

    def __getattr__(self, name: str) -> "Anything":
        return Anything()

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if given and callable(given[0]) else Anything()


def empty_modules() -> None:
    """Put empty `gym`, `d4rl`, `wandb`, `pyrallis` in place where there are none."""
    for name in ("gym", "d4rl", "wandb", "pyrallis"):
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.Env, module.wrappers = object, Anything()  # type: ignore[attr-defined]
            module.wrap = lambda *_, **__: lambda function: function  # type: ignore[attr-defined]
            sys.modules[name] = module


def folder() -> Path | None:
    """Where CORL lies, if it does."""
    given = os.environ.get("OFFRL_WB_CORL")
    return Path(given) if given and Path(given).is_dir() else None


def load(agent: str) -> Any:
    """CORL's module for `agent`; FileNotFoundError where the folder has none."""
    root, name = folder(), FILES[agent] + ".py"
    if root is None:
        raise FileNotFoundError("OFFRL_WB_CORL names no folder")
    for place in (root, root / "algorithms" / "offline", root / "algorithms" / "finetune"):
        if (place / name).is_file():
            empty_modules()
            found = importlib.util.spec_from_file_location(f"corl_{agent}", place / name)
            assert found is not None
            assert found.loader is not None
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            found.loader.exec_module(module)
            return module
    raise FileNotFoundError(f"{root} holds no {name}")


def adam(part: torch.nn.Module, rate: float = 3e-4) -> torch.optim.Optimizer:
    """The optimiser as CORL makes it."""
    return torch.optim.Adam(part.parameters(), lr=rate)


def filled_buffer(module: Any, data: dict[str, np.ndarray], device: str) -> Any:
    """CORL's own buffer with `data`."""
    states, actions = data["observations"].shape[1], data["actions"].shape[1]
    buffer = module.ReplayBuffer(states, actions, len(data["rewards"]), device)
    with contextlib.redirect_stdout(io.StringIO()):
        buffer.load_d4rl_dataset(data)
    return buffer


def bc(module: Any, states: int, actions: int, device: str) -> Callable[[Any], Any]:
    actor = module.Actor(states, actions, 1.0).to(device)
    return module.BC(1.0, actor, adam(actor), device=device).train


def td3_bc(module: Any, states: int, actions: int, device: str) -> Callable[[Any], Any]:
    actor = module.Actor(states, actions, 1.0).to(device)
    critics = [module.Critic(states, actions).to(device) for _ in range(2)]
    first, second = critics
    return module.TD3_BC(
        1.0, actor, adam(actor), first, adam(first), second, adam(second), device=device
    ).train


def iql(module: Any, states: int, actions: int, device: str) -> Callable[[Any], Any]:
    critics = module.TwinQ(states, actions).to(device)
    value = module.ValueFunction(states).to(device)
    actor = module.GaussianPolicy(states, actions, 1.0).to(device)
    return module.ImplicitQLearning(
        1.0, actor, adam(actor), critics, adam(critics), value, adam(value), device=device
    ).train


def cql(module: Any, states: int, actions: int, device: str) -> Callable[[Any], Any]:
    """Three hidden layers, as CORL's file has them throughout."""
    kind = module.CalQL if hasattr(module, "CalQL") else module.ContinuousCQL
    critics = [module.FullyConnectedQFunction(states, actions, True).to(device) for _ in range(2)]
    actor = module.TanhGaussianPolicy(states, actions, 1.0, orthogonal_init=True).to(device)
    given = dict(
        critic_1=critics[0],
        critic_1_optimizer=adam(critics[0]),
        critic_2=critics[1],
        critic_2_optimizer=adam(critics[1]),
        actor=actor,
        actor_optimizer=adam(actor, 3e-5),
        target_entropy=-float(actions),
        bc_steps=0,
        device=device,
    )
    return kind(**given).train


def sac_n(module: Any, states: int, actions: int, device: str) -> Callable[[Any], Any]:
    """Ten critics and three hidden layers, as CORL's file has them throughout."""
    actor = module.Actor(states, actions, 256, 1.0).to(device)
    critics = module.VectorizedCritic(states, actions, 256, 10).to(device)
    kind = module.EDAC if hasattr(module, "EDAC") else module.SACN
    return kind(actor, adam(actor), critics, adam(critics), device=device).update


MAKERS = dict(bc=bc, td3_bc=td3_bc, iql=iql, cql=cql, cal_ql=cql, sac_n=sac_n, edac=sac_n)


def make(agent: str, data: dict[str, np.ndarray], batch_size: int, device: str) -> Updates:
    """A function that runs so many of CORL's updates, each on a batch of its buffer.

    FileNotFoundError where there is no CORL.
    """
    module = load(agent)
    buffer = filled_buffer(module, data, device)
    torch.manual_seed(0)
    update = MAKERS[agent](module, data["observations"].shape[1], data["actions"].shape[1], device)

    def updates(count: int) -> None:
        for _ in range(count):
            update([part.to(device) for part in buffer.sample(batch_size)])

    return updates
