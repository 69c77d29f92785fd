"""SAC-N and EDAC: by hand, against plain torch.nn with double backward, and themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offrl_wb.agents import sac_n
from offrl_wb.agents.sac_n import Config, make, values_and_slopes
from offrl_wb.core.errors import InputError
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.data.dataset import Dataset
from offrl_wb.nets.critics import Critic
from offrl_wb.nets.losses import gradient_diversity
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import AgentSpec, make_agent
from offrl_wb.train.loop import rehearse, watched
from offrl_wb.train.noise import NoiseAhead, generators
from offrl_wb.train.replay import Batch
from offrl_wb.train.settings import settings_of
from tests.cql_reference import (
    CORRIDOR,
    DISCOUNT,
    Reference,
    corridor_log,
    corridor_return,
    distance,
    largest_difference,
    learn,
    random_batch,
    study,
)

BOX = AgentSpec(3, 2, low=(-1.0, -2.0), high=(1.0, 2.0))
SMALL = Config(actor_hidden=(8, 7), critic_hidden=(9, 8), critics=4, initialisation="torch")
EDAC = replace(SMALL, diversity=2.0)
VARIANTS = {
    "sac-n": SMALL,
    "one": replace(SMALL, critics=1),
    "ten, as published": replace(SMALL, critics=10, initialisation="edac"),
    "edac": EDAC,
    "edac, best of three, hard": replace(EDAC, backup_actions=3, backup_entropy=False, critics=3),
    "entropy": replace(SMALL, target_entropy=-1.0, temperature_learning_rate=0.01),
}


class ReferenceEDAC(Reference):
    """The authors' order: every loss sees the networks as they were; slopes by double backward."""

    def diversity(self, observation, action):
        action = action.clone().requires_grad_()
        slopes = [
            torch.autograd.grad(self.q([c], observation, action).sum(), action, create_graph=True)[
                0
            ]
            for c in self.critics
        ]
        unit = [slope / (slope.norm(dim=-1, keepdim=True) + 1e-10) for slope in slopes]
        total = 0.0
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                total = total + (one * other).sum(-1) if i != j else total
        return total.mean() / (len(slopes) - 1)

    def update(self, batch, noise, step):
        config, best = self.config, None
        alpha = self.temperature().detach()
        with torch.no_grad():
            for k in range(config.backup_actions):
                ahead = batch["next_observation"]
                action, log_prob = self.sample(ahead, noise["next_action"][:, k])
                value = self.q(self.targets, ahead, action).min(0).values
                if config.backup_entropy:
                    value = value - alpha * log_prob
                best = value if best is None else torch.maximum(best, value)
            target = batch["reward"] + config.discount * (1 - batch["terminated"]) * best
        action, log_prob = self.sample(batch["observation"], noise["action"])
        value = self.q(self.critics, batch["observation"], action).min(0).values
        self.descend(self.actor_adam, (alpha * log_prob - value).mean())
        q = self.q(self.critics, batch["observation"], batch["action"])
        loss = (q - target).square().mean(1).sum()
        if config.diversity:
            loss = loss + config.diversity * self.diversity(batch["observation"], batch["action"])
        self.descend(self.critic_adam, loss)
        goal = -float(self.action) if config.target_entropy is None else config.target_entropy
        entropy = -log_prob.detach().mean()
        self.descend(self.temperature_adam, (self.raw_temperature * (entropy - goal)).sum())
        self.follow()


# Diversity


def test_diversity_by_hand():
    east, north = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])
    slopes = torch.stack([east, north, -2 * east]).view(1, 3, 1, 2)
    assert gradient_diversity(slopes).item() == pytest.approx(2 * (0 + 0 - 1) / 2)
    assert gradient_diversity(torch.stack([east, east]).view(1, 2, 1, 2)).item() == pytest.approx(2)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 10_000))
@example(2, 1, 339)  # a slope of nearly nothing
@settings(max_examples=30, deadline=None)
def test_diversity_lies_between_its_bounds(members, width, seed):
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(2, members, 7, width, generator=generator, dtype=torch.float64)
    found = gradient_diversity(slopes)
    assert (found >= -members / (members - 1) - 1e-9).all()
    assert (found <= members + 1e-9).all()
    # Each norm n has 1e-10 added, which takes at most 1e-10 / n off a unit slope's length, and in
    # the sum over pairs, divided by members - 1, every slope stands twice.
    lost = 2 * (1e-10 / slopes.norm(dim=-1)).sum(1).mean(-1)
    assert ((gradient_diversity(3 * slopes) - found).abs() <= lost + 1e-12).all()


@pytest.mark.parametrize(("members", "hidden"), [(1, (6,)), (4, (6, 5)), (3, ()), (2, (5, 4, 3))])
def test_slopes_and_their_derivatives_are_those_of_double_backward(members, hidden):
    net = Critic(3, 2, hidden, members)
    weights = net.initialise(generators([0, 1]), torch.float64).trainable()
    s = torch.randn(2, 6, 3, dtype=torch.float64)
    a = torch.randn(2, 6, 2, dtype=torch.float64)
    several = a.unsqueeze(1).expand(2, members, 6, 2).clone().requires_grad_()
    seen = s.unsqueeze(1).expand(2, members, 6, 3)
    pairs = torch.cat([seen, several], dim=-1)
    plain = net.net(weights.tensors(), pairs if members > 1 else pairs[:, 0]).view(2, members, 6)
    (slopes,) = torch.autograd.grad(plain.sum(), several, create_graph=True)
    q, found = values_and_slopes(net, weights, s, a)
    assert torch.allclose(q, plain)
    assert torch.allclose(found, slopes)
    direction = torch.randn(2, members, 6, 2, dtype=torch.float64)
    expected = torch.autograd.grad((slopes * direction).sum(), weights.flat, allow_unused=True)[0]
    (second,) = torch.autograd.grad((found * direction).sum(), weights.flat)
    assert torch.allclose(second, expected)


def test_the_term_pulls_slopes_apart():
    agent = make(BOX, replace(EDAC, diversity=(0.0, 50.0)), [0, 0], torch.float64)
    learn(agent, 150, 16)
    batch = random_batch(agent, 16, 3)
    _, slopes = values_and_slopes(agent.critic_net, agent.critic, batch.observation, batch.action)
    plain, diverse = gradient_diversity(slopes.detach()).tolist()
    assert diverse < plain - 0.3


# Against a plain version


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_updates_are_those_of_a_plain_version(name):
    agent = make(BOX, VARIANTS[name], [4, 5], torch.float64)
    references = [ReferenceEDAC(agent, replica) for replica in range(2)]
    learn(agent, 20, 12, references=references)
    for replica, reference in enumerate(references):
        assert largest_difference(agent, reference, replica) < 1e-10


@pytest.mark.parametrize(("kind", "width"), [("edac", 40), ("edac_authors", 5)])
def test_critics_start_as_corls_or_as_the_authors(kind, width):
    config = Config(actor_hidden=(30, 40), critic_hidden=(40, 30), critics=4, initialisation=kind)
    agent = make(BOX, config, (0, 1), torch.float64)
    blocks = agent.critic.frozen().tensors()
    widths = (width, 30 if kind == "edac" else 40)
    for layer, counted in enumerate(widths):
        assert (blocks[f"bias_{layer}"] == 0.1).all()
        largest = blocks[f"weight_{layer}"].abs().amax(dim=(-1, -2))  # of each critic
        assert (largest <= counted**-0.5).all()
        assert (largest > 0.9 * counted**-0.5).all()
    for name in ("weight_2", "bias_2"):
        assert 0.0015 < blocks[name].abs().max() <= 0.003
    assert torch.equal(agent.critic.flat, agent.critic_target.flat)
    assert agent.critic.flat.requires_grad
    actor = agent.actor.frozen().tensors()
    assert 0.9 * 30**-0.5 < actor["weight_0"].abs().max() <= 30**-0.5
    assert (actor["bias_1"] == 0.1).all()
    assert actor["weight_2"].abs().max() <= 1e-3


def test_both_first_weights_of_edac_share_their_actor_and_are_replicas_own():
    config = replace(SMALL, initialisation="edac_authors")
    several, alone = make(BOX, config, (3, 4)), make(BOX, config, (4,))
    assert torch.equal(several.critic.select([1]).flat, alone.critic.flat)
    other = make(BOX, replace(SMALL, initialisation="edac"), (4,))
    assert torch.equal(alone.actor.flat, other.actor.flat)
    assert not torch.equal(alone.critic.flat, other.critic.flat)


def test_edac_without_its_weight_is_sac_n():
    plain = make(BOX, SMALL, [2], torch.float64)
    vector = make(BOX, replace(SMALL, diversity=(0.0, 3.0)), [2, 2], torch.float64)
    learn(plain, 20, 8)
    learn(vector, 20, 8)
    assert distance(vector, plain, 0) < 1e-12
    assert distance(vector, plain, 1) > 1e-4


@pytest.mark.parametrize("config", [SMALL, EDAC], ids=["sac-n", "edac"])
def test_a_replica_in_a_batch_of_sixteen_is_the_same_seed_alone(config):
    config = replace(config, actor_hidden=(4,), critic_hidden=(4,))
    for dtype, count, bound in ((torch.float64, 1000, 1e-9), (torch.float32, 100, 1e-5)):
        many, alone = (make(BOX, config, seeds, dtype) for seeds in (range(16), [9]))
        learn(many, count, 4)
        learn(alone, count, 4, first=9)
        assert distance(many, alone, 9) < bound


# Directions


def test_terminals_do_not_bootstrap():
    agent = make(BOX, SMALL, [0])
    batch = random_batch(agent, 6, 0, torch.float32)
    noise = NoiseAhead(agent.noise(6), [0]).next()
    for over in (0.0, 1.0):
        ends = batch._replace(terminated=torch.full_like(batch.reward, over))
        target = sac_n.critic_target(agent, ends, noise)
        assert torch.equal(target, batch.reward) == bool(over)


def test_the_temperature_rises_where_entropy_is_below_its_target():
    for log_prob, rises in ((5.0, True), (-5.0, False)):
        agent = make(BOX, SMALL, [0])
        sac_n.update_temperature(agent, torch.full((1, 4), log_prob))
        assert (agent.temperature.value().item() > 1) == rises


def test_the_published_initialisation():
    agent = make(BOX, Config(critics=3), [0])
    actor, critic = agent.actor.frozen().tensors(), agent.critic.frozen().tensors()
    assert actor["weight_3"].abs().max() <= 1e-3
    assert critic["weight_3"].abs().max() <= 3e-3
    assert torch.equal(critic["bias_0"], torch.full_like(critic["bias_0"], 0.1))
    assert critic["weight_1"].abs().max() <= 1 / 16


# Learning


def test_more_critics_are_more_cautious():
    """A log of slow walkers: one critic is fooled, twenty are not, and they promise less."""
    found, values = {}, {}
    for critics in (1, 20):
        config = Config(
            actor_hidden=(32, 32), critic_hidden=(32, 32), critics=critics, discount=DISCOUNT,
            initialisation="torch", actor_learning_rate=1e-3, critic_learning_rate=1e-3,
            temperature_learning_rate=1e-3,
        )  # fmt: skip
        agent = make(CORRIDOR, config, range(4))
        metrics = study(agent, corridor_log(spread=0.2), 500, rows=32)
        scores = corridor_return(agent)
        found[critics] = bootstrap_interval(scores, generator=np.random.default_rng(0))
        values[critics] = metrics["q"].mean().item()
        print(critics, found[critics], values[critics])
    assert values[1] > values[20]
    assert found[20].low > found[1].high


# As an agent among others


def test_state_policy_and_settings(tmp_path):
    agent = make_agent("sac_n", BOX, EDAC, [0, 1])
    assert set(agent.state()) == {
        f"{name}{part}"
        for name in ("actor", "critic", "temperature")
        for part in ("/weights", "/adam/mean", "/adam/square", "/adam/count")
    } | {"critic_target/weights"}
    learn(agent, 2, 6)
    save_policy(tmp_path, agent.policy(1))
    policy, seen = load_policy(tmp_path), torch.randn(2, 7, 3)
    expected = agent.act(seen)[1].numpy() * np.array([1.0, 2.0])
    assert np.allclose(policy.act(seen[1].numpy()), expected, atol=1e-6)
    for rule in settings_of(Config):
        assert rule.source == "ours" or rule.source.startswith(("public code: ", "paper: "))
        assert rule.help


@pytest.mark.parametrize("name", ["sac-n", "edac"])
def test_nothing_is_asked_of_the_host(name):
    agent = make(BOX, VARIANTS[name], [0, 1], torch.float32)
    log = random_batch(agent, 50, 0, torch.float32)

    class Rows:
        def sample(self, uniform):
            rows = (uniform * 50).long()
            return Batch(*(None if f is None else f[0][rows] for f in log))

    seen = watched(agent, Rows(), 12)
    assert seen.objections == ()
    assert seen.constant
    rehearse(lambda device: make(BOX, VARIANTS[name], [0, 1], torch.float32, device), 12)


@pytest.mark.parametrize(
    ("spec", "config", "told"),
    [
        (AgentSpec(3, 4, discrete=True), Config(), "use cql, iql or bc"),
        (BOX, Config(critics=1, diversity=1.0), "there is one"),
        (BOX, Config(log_std_low=2.0, log_std_high=1.0), "log_std_low must lie below"),
        (BOX, Config(diversity=-1.0), "diversity is -1.0"),
        (BOX, Config(critics=0), "critics is 0"),
    ],
)
def test_settings_that_do_not_fit_are_told(spec, config, told):
    with pytest.raises(InputError, match=told):
        make(spec, config, [0])


def test_a_log_is_prepared_as_the_settings_say():
    log = Dataset.from_arrays(
        np.random.default_rng(0).normal(5, 2, (20, 3)), np.zeros((20, 2)), np.zeros(20),
        np.zeros(20, bool), np.arange(20) == 19, final_observations=np.zeros((1, 3)),
    )  # fmt: skip
    assert sac_n.prepare(Config(), log).dataset.transitions["obs"].equals(log.transitions["obs"])
    moved = sac_n.prepare(Config(normalise=True), log)
    assert abs(moved.dataset.transitions["obs"].to_numpy().mean()) < 0.5
