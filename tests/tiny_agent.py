"""A small actor-critic that obeys the protocol of agents, to test what acts on any agent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl_wb.nets.layers import MLP, per_replica, polyak
from offrl_wb.nets.optimiser import Adam, Multiplier
from offrl_wb.train.agent import AgentSpec, ReplicaAgent
from offrl_wb.train.noise import Noise
from offrl_wb.train.replay import Batch
from offrl_wb.train.settings import Vector, setting

SPEC = AgentSpec(observation=3, action=2, low=(-1.0, -1.0), high=(1.0, 1.0))


@dataclass(frozen=True)
class Config:
    """Settings of the small actor-critic."""

    discount: Vector = setting(0.95, "ours", vector=True, help="of the task", low=0, high=1)
    polyak: Vector = setting(0.01, "ours", vector=True, help="step of the targets", low=0, high=1)
    learning_rate: Vector = setting(1e-3, "ours", vector=True, help="of Adam", above=0)
    hidden: tuple[int, ...] = setting((16, 16), "ours", help="widths", low=1)
    members: int = setting(3, "ours", help="critics", low=2)
    layer_norm: bool = setting(False, "ours", help="LayerNorm in the critics")


class TinyAgent(ReplicaAgent):
    """Two of E critics at random in the target, a deterministic actor, a learned multiplier."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        spec, hidden = self.spec, self.config.hidden
        members, norm = self.config.members, self.config.layer_norm
        self.critic_net = MLP(spec.observation + spec.action, hidden, 1, members, norm)
        self.actor_net = MLP(spec.observation, hidden, spec.action)
        make = (self.generators, self.dtype, self.device)
        self.critic = self.critic_net.initialise(*make).trainable()
        self.target, self.actor = self.critic.copy(), self.actor_net.initialise(*make).trainable()
        self.weight = Multiplier(self.replicas, 0.1, dtype=self.dtype, device=self.device)
        rate = self.values.learning_rate
        self.parts = {"critic": self.critic, "target": self.target, "actor": self.actor}
        self.parts |= {f"{n}/adam": Adam(self.parts[n], rate) for n in ("critic", "actor")}
        self.parts |= {"weight": self.weight, "weight/adam": Adam(self.weight.weights, rate)}

    def noise(self, batch_size: int) -> dict[str, Noise]:
        smooth = Noise("normal", (batch_size, self.spec.action))
        return {"smooth": smooth, "subset": Noise("subset", (2,), self.config.members)}

    def critics(self, weights: Any, observation: Tensor, action: Tensor) -> Tensor:
        return self.critic_net(weights, torch.cat([observation, action], -1)).squeeze(-1)

    def update(self, batch: Batch, noise: Mapping[str, Tensor], step: Tensor) -> dict[str, Tensor]:
        metrics = self.critic_step(batch, noise) | self.actor_step(batch)
        polyak(self.target, self.critic, self.values.polyak)
        return metrics

    def critic_step(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            action = self.act(batch.next_observation, 0.1 * noise["smooth"])
            every = self.critics(self.target, batch.next_observation, action)
            picked = noise["subset"].unsqueeze(-1).expand(-1, -1, every.shape[-1])
            after = every.gather(1, picked).amin(1)
            discount = per_replica(self.values.discount, after)
            target = batch.reward + discount * (1 - batch.terminated) * after
        error = self.critics(self.critic, batch.observation, batch.action) - target.unsqueeze(1)
        loss = error.square().mean((1, 2))
        self.step_of("critic", loss)
        return {"critic_loss": loss.detach()}

    def actor_step(self, batch: Batch) -> dict[str, Tensor]:
        action = self.actor_net(self.actor, batch.observation).tanh()
        value = self.critics(self.critic.frozen(), batch.observation, action).mean((1, 2))
        near = (action - batch.action).square().sum(-1).mean(1)
        loss = near - self.weight.value().detach() * value
        self.step_of("actor", loss)
        multiplier = self.weight.value() * (near.detach() - 0.5)
        self.step_of("weight", multiplier)
        return {"actor_loss": loss.detach(), "multiplier_loss": multiplier.detach()}

    def step_of(self, name: str, loss: Tensor) -> None:
        part = self.parts[name]
        weights = part.weights if isinstance(part, Multiplier) else part
        (gradient,) = torch.autograd.grad(loss.sum(), [weights.flat])
        self.parts[f"{name}/adam"].step(gradient)

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        action = self.actor_net(self.actor, observation).tanh()
        return action if noise is None else (action + noise).clamp(-1, 1)

    def policy(self, replica: int) -> Any:
        return self.actor.select([replica])


def make(
    spec: AgentSpec = SPEC,
    config: Config | None = None,
    seeds: Sequence[int] = (0,),
    dtype: torch.dtype = torch.float64,
    device: Any = "cpu",
) -> TinyAgent:
    """The small actor-critic, one replica for each seed."""
    return TinyAgent(spec, config or Config(), seeds, dtype, device)
