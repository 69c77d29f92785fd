"""RLPD: its settings, half of every minibatch from the log, bounds, and that the log helps."""

from functools import cache

import numpy as np
import pytest
import torch

from offrl_wb.agents import rlpd, wsrl
from offrl_wb.agents.rlpd import Config, make, online_phases
from offrl_wb.core.errors import InputError
from offrl_wb.data.world_logs import maze_log
from offrl_wb.train.agent import AgentSpec, make_agent
from offrl_wb.train.noise import NoiseAhead
from offrl_wb.train.replay import Batch
from offrl_wb.train.run import train

BOX = AgentSpec(3, 2, low=(-1.0, -1.0), high=(1.0, 1.0))
MAZE = AgentSpec(2, 2, low=(-1.0, -1.0), high=(1.0, 1.0))
TINY = dict(actor_hidden=(8,), critic_hidden=(8,))


@cache
def random_batch(replicas, rows, seed, dtype=torch.float32, discrete=False):
    """Random transitions of each of `replicas`, a range: each has its own, whoever is beside it."""
    parts = []
    for replica in replicas:
        draw = np.random.default_rng([seed, replica])
        action = draw.integers(4, size=rows) if discrete else np.tanh(draw.normal(size=(rows, 2)))
        parts.append(
            (
                draw.normal(size=(rows, 3)),
                action,
                draw.normal(size=rows),
                draw.normal(size=(rows, 3)),
                1.0 * (draw.random(rows) < 0.1),
            )
        )
    fields = [torch.tensor(np.stack(field)) for field in zip(*parts, strict=True)]
    return Batch(*(f if f.dtype == torch.int64 else f.to(dtype) for f in fields))


def learn(agent, count, rows, dtype=torch.float32, first=0):
    """`count` updates of an agent on random batches, sixteen of them in turn."""
    noise = NoiseAhead(agent.noise(rows), agent.seeds, 16, dtype)
    replicas = range(first, first + agent.replicas)
    for number in range(count):
        batch = random_batch(replicas, rows, number % 16, dtype, agent.spec.discrete)
        agent.update(batch, noise.next(), torch.tensor(number))


def test_the_settings_are_the_papers():
    agent = make_agent("rlpd", BOX)
    config = agent.config
    assert (config.critics, config.subset, config.replacement, config.updates) == (10, 2, False, 20)
    assert (config.actor_value, config.actor_rows) == ("mean", "last minibatch")
    assert (config.critic_layer_norm, config.actor_layer_norm, config.backup_entropy) == (
        True,
        False,
        True,
    )
    assert agent.target_entropy == -1  # half the dimension
    rates = (
        config.actor_learning_rate,
        config.critic_learning_rate,
        config.temperature_learning_rate,
    )
    assert rates == (3e-4,) * 3
    blocks = agent.critic.tensors()
    assert (blocks["bias_0"] == 0).all()
    assert blocks["weight_0"].abs().max() <= (6 / (5 + 256)) ** 0.5  # Xavier's bound
    finite = make_agent("rlpd", AgentSpec(3, 4, discrete=True))
    assert finite.target_entropy == pytest.approx(0.98 * np.log(4))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        (rlpd, lambda k, n: 2 * (n - k) / (n * (n - 1))),  # without replacement
        (wsrl, lambda k, n: (2 * (n - k) + 1) / n**2),  # with
    ],
)
def test_the_expected_minimum_of_two_drawn_critics(kind, formula):
    values = torch.sort(torch.randn(10, generator=torch.Generator().manual_seed(0)).double()).values
    agent = kind.make(BOX, kind.Config(**TINY), [0])
    noise = NoiseAhead(
        {"members": agent.noise(agent.config.updates)["members"]},
        [0],
        100_000 // agent.config.updates,
    )

    noise.refill()
    drawn = values[noise.buffers["members"].reshape(-1, 2)].min(-1).values
    expected = sum(v.item() * formula(k, 10) for k, v in enumerate(values, start=1))
    assert abs(drawn.mean() - expected) < 5 * drawn.std() / len(drawn) ** 0.5
    distinct = (noise.buffers["members"][..., 0] != noise.buffers["members"][..., 1]).all()
    assert bool(distinct) == (kind is rlpd)


def test_layer_norm_bounds_the_critics_whatever_they_are_asked():
    for norm in (True, False):
        agent = make(BOX, Config(**TINY, critic_layer_norm=norm, critics=3, updates=2), [0, 1])
        learn(agent, 30, 16)
        blocks = agent.critic.frozen().tensors()
        far = 1e6 * torch.randn(2, 500, 3), 1e6 * torch.randn(2, 500, 2)
        q = agent.critic_net(agent.critic_fixed, *far).abs().amax(-1)
        weight, bias = blocks["weight_1"][..., 0], blocks["bias_1"][..., 0]
        if not norm:
            assert (q > 1e3).all()
            continue
        inner = 8**0.5 * blocks["scale_0"].abs().amax(-1) + blocks["shift_0"].norm(dim=-1)
        assert (q <= weight.norm(dim=-1) * inner + bias.abs() + 1e-4).all()


@pytest.mark.parametrize(
    ("spec", "updates"),  # finitely many actions: the class is soft actor-critic's, tested there
    [(BOX, 250), (AgentSpec(3, 4, discrete=True), 50)],
    ids=["box", "finite"],
)
def test_a_replica_among_sixteen_is_the_same_seed_alone(spec, updates):
    config = Config(**TINY, critics=4, updates=4)
    for dtype, count, tolerance in ((torch.float64, updates, 1e-9), (torch.float32, 25, 1e-5)):
        many, alone = make(spec, config, range(16), dtype), make(spec, config, [7], dtype)
        learn(many, count, 16, dtype)  # four steps of the critics each
        learn(alone, count, 16, dtype, first=7)
        for name in ("actor", "critic", "critic_target"):
            ours = getattr(many, name).select([7]).flat
            assert (ours - getattr(alone, name).flat).abs().max() < tolerance


def test_every_minibatch_is_half_log_and_a_share_of_none_is_none(monkeypatch):
    seen = []
    original = rlpd.RLPD.update

    def watched(self, batch, noise, step):
        seen.append(batch.online)
        return original(self, batch, noise, step)

    monkeypatch.setattr(rlpd.RLPD, "update", watched)
    config = Config(**TINY, critics=2, subset=2, updates=4)
    log = maze_log(500, 0.5, seed=0)
    for share in (0.5, 0.0, 0.25):
        seen.clear()
        phases = online_phases(25, config, start=20, batch_size=16, share=share)
        run = train(make(MAZE, config, [0, 1]), log, "UMaze2D-v0", phases, episodes=0)
        assert len(seen) == 5  # one update follows each step after the random ones
        assert len(run.buffer) == 25
        for online in seen:
            offline = (~online).view(2, 4, 16).sum(-1)
            assert (offline == 16 * share).all()


def test_the_first_steps_are_random_and_without_updates():
    config = Config(**TINY, critics=2, subset=2, updates=2)
    agent = make(MAZE, config, [0, 1])
    before = {n: t.clone() for n, t in agent.state().items()}
    (random, online) = online_phases(301, config, start=300, batch_size=8)
    run = train(agent, None, "UMaze2D-v0", [random], episodes=0)
    assert all(torch.equal(t, before[n]) for n, t in agent.state().items())
    action = run.buffer.newest(300).action
    assert (action.abs().mean((1, 2)) - 0.5).abs().max() < 0.06
    assert (action[0] != action[1]).any()
    assert (online.steps, online.batch_size, online.offline_share) == (1, 16, 0.5)
    with pytest.raises(InputError, match="5000 of 4000 steps are random"):
        online_phases(4000, config)


def test_a_log_helps_where_the_goal_is_far():
    config = Config(
        (32, 32),
        (32, 32),
        critics=2,
        updates=4,
        discount=0.95,
        polyak=0.02,
        backup_entropy=False,
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-3,
        temperature_learning_rate=1e-3,
        initial_temperature=0.1,
    )
    log, late = maze_log(4000, 0.3, seed=0), {}
    for share in (0.5, 0.0):
        phases = online_phases(600, config, start=100, batch_size=48, share=share)
        run = train(
            make(MAZE, config, range(3)), log, "UMaze2D-v0", phases, episodes=0, log_every=50
        )
        success = run.records.filter(metric="online/success")
        late[share] = success.filter(success["step"] > 450)["value"].mean()
    print(late)
    assert late[0.5] > 0.3 + late[0.0]
