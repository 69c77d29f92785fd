"""Conservative Q-learning: by hand, against plain torch.nn, exact minimisers, and itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.agents import cql, sac
from offrl_wb.agents.cql import Config, few_members, make, minibatches, pieces
from offrl_wb.core.errors import InputError
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.data.dataset import Dataset
from offrl_wb.nets.critics import Critic
from offrl_wb.nets.losses import cql_discrete, cql_regulariser
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import AgentSpec, Guard, copy_state, make_agent
from offrl_wb.train.loop import Block, noise_for, rehearse, updates, watched
from offrl_wb.train.noise import NoiseAhead, generators
from offrl_wb.train.replay import Batch, Transitions
from offrl_wb.train.settings import settings_of, vectors
from tests.cql_reference import (
    CORRIDOR,
    DISCOUNT,
    ReferenceCQL,
    corridor_log,
    corridor_return,
    distance,
    largest_difference,
    learn,
    random_batch,
    study,
)

BOX = AgentSpec(3, 2, low=(-1.0, -2.0), high=(1.0, 2.0))
FINITE = AgentSpec(3, 4, discrete=True)
SMALL = Config(actor_hidden=(8, 7), critic_hidden=(9, 8), samples=3)
ENSEMBLE = replace(
    SMALL, critics=5, subset=2, actor_layer_norm=True, critic_layer_norm=True, backup_actions=4,
    updates=3, parametrisation="softplus", entropy_at="next_observation",
    initialisation="orthogonal", last_scale=0.01,
)  # fmt: skip
LAGRANGE = replace(SMALL, lagrange=True, gap=1.0, weight=0.5, backup_entropy=True)
VARIANTS = {
    "paper": SMALL,
    "joined": replace(SMALL, importance=False),
    "lagrange": LAGRANGE,
    "ensemble": ENSEMBLE,
    "one critic": replace(SMALL, critics=1),
    "distinct": replace(SMALL, critics=3, subset=2, replacement=False, lagrange=True),
    "one of three": replace(SMALL, critics=3, subset=1),
    "imitation first": replace(SMALL, imitation_steps=7, weight=0.3, target_entropy=-1.0),
}


def flat_state(agent):
    return {name: tensor.clone() for name, tensor in agent.state().items()}


# The conservative term


def test_the_term_by_hand():
    q = torch.tensor([[[[1.0, 2.0, 0.0]]]]).double()
    logged, density = torch.tensor([[[1.5]]]).double(), torch.tensor([[[-1.0, 0.0, -2.0]]]).double()
    weighted = np.log(np.exp(2) + np.exp(2) + np.exp(2)) - 1.5
    assert cql_regulariser(q, density, logged).item() == pytest.approx(weighted)
    joined = np.log(np.exp([1, 2, 0, 1.5]).mean()) - 1.5
    assert cql_regulariser(q, None, logged).item() == pytest.approx(joined)


def test_its_gradient_is_a_softmax_minus_the_logged_action():
    q = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    action = torch.randint(4, (2, 5))
    (slope,) = torch.autograd.grad(cql_discrete(q, action).sum(), q)
    expected = q.softmax(-1) - torch.nn.functional.one_hot(action, 4).unsqueeze(1)
    assert torch.allclose(slope * 15, expected)


def test_only_the_drawn_critics_pay_for_the_term():
    agent = make(BOX, replace(ENSEMBLE, updates=1, weight=1.0), [0], torch.float64)
    batch = random_batch(agent, 6, 0)
    members = torch.tensor([[3, 1]])
    actions = torch.rand(1, 6, 9, 2, dtype=torch.float64)
    _, sampled, logged = cql.data_and_samples(agent, batch, actions, members)
    density = torch.zeros(1, 6, 9, dtype=torch.float64)
    term = cql_regulariser(sampled, density, logged).sum()
    (slope,) = torch.autograd.grad(term, [agent.critic.flat])
    blocks = type(agent.critic)(slope, agent.critic.shapes).tensors()
    moved = torch.stack([b[0].abs().flatten(1).sum(1) for b in blocks.values()]).sum(0)
    assert (moved > 0).tolist() == [False, True, False, True, False]


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 4), st.booleans())
@settings(max_examples=15, deadline=None)
def test_gathered_critics_say_what_the_ensemble_says(replicas, size, count, norm):
    net = Critic(2, 1, (4,), size, layer_norm=norm)
    weights = net.initialise(generators(range(replicas)), torch.float64)
    members = torch.randint(size, (replicas, count))
    s, a = torch.randn(replicas, 3, 2).double(), torch.randn(replicas, 3, 1).double()
    few = replace(net, members=count)(few_members(weights, members), s, a)
    every = net(weights, s, a)
    assert torch.allclose(few, torch.stack([e[m] for e, m in zip(every, members, strict=True)]))


# Against a plain version


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_updates_are_those_of_a_plain_version(name):
    config = VARIANTS[name]
    agent = make(BOX, config, [4, 5], torch.float64)
    references = [ReferenceCQL(agent, r, config.actor_layer_norm) for r in range(2)]
    learn(agent, 20, 12, references=references)
    for replica, reference in enumerate(references):
        assert largest_difference(agent, reference, replica) < 1e-10


def test_states_taken_in_pieces_give_the_same_update(monkeypatch):
    agents = [make(BOX, ENSEMBLE, [1], torch.float64) for _ in range(2)]
    assert len(pieces(agents[0], 5)) == 1
    learn(agents[0], 10, 15)
    monkeypatch.setattr(cql, "CACHE", 2500)
    assert [p.stop - p.start for p in pieces(agents[1], 5)] == [1, 2, 2]
    learn(agents[1], 10, 15)
    assert distance(agents[0], agents[1], 0) < 1e-12


def test_without_the_term_it_is_soft_actor_critic():
    shared = dict(actor_hidden=(8,), critic_hidden=(8,), critics=3, updates=2, backup_entropy=True)
    shared |= dict(subset=2, replacement=True, temperature_learning_rate=0.0)
    ours = make(BOX, Config(weight=0.0, samples=2, **shared), [3], torch.float64)
    rates = dict(actor_learning_rate=1e-4, critic_learning_rate=3e-4)
    plain = sac.make(BOX, sac.Config(**rates, **shared), [3], torch.float64)
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, ours.state()[name]), name
    learned = NoiseAhead(ours.noise(8), [3], 16, torch.float64)
    for number in range(10):
        batch, noise = random_batch(ours, 8, number), learned.next()
        ours.update(batch, noise, torch.tensor(number))
        plain.update(batch, noise, torch.tensor(number))
    for name, tensor in plain.state().items():
        assert torch.allclose(tensor, ours.state()[name], atol=1e-12), name


# Replicas


@pytest.mark.parametrize("spec", [BOX, FINITE], ids=["box", "finite"])
def test_a_replica_in_a_batch_of_sixteen_is_the_same_seed_alone(spec):
    small = dict(actor_hidden=(4,), critic_hidden=(4,), samples=1, updates=4)
    weights = tuple(0.5 + r for r in range(16))
    for dtype, count, bound in ((torch.float64, 250, 1e-9), (torch.float32, 25, 1e-5)):
        many = make(spec, Config(weight=weights, **small), range(16), dtype)
        alone = make(spec, Config(weight=weights[11], **small), [11], dtype)
        learn(many, count, 4)
        learn(alone, count, 4, first=11)
        assert distance(many, alone, 11) < bound


def test_lagrange_ensembles_do_not_mix_either():
    config = replace(ENSEMBLE, lagrange=True, samples=1)
    many, alone = (make(BOX, config, seeds, torch.float64) for seeds in (range(5), [3]))
    learn(many, 30, 6)
    learn(alone, 30, 6, first=3)
    assert distance(many, alone, 3) < 1e-9


# Directions and counts


def test_the_multiplier_rises_above_the_gap_and_falls_below():
    for difference, rises in ((3.0, True), (0.1, False)):
        agent = make(BOX, replace(LAGRANGE, weight=1.0), [0])
        before = agent.multiplier.value().item()
        cql.update_multiplier(agent, torch.tensor([difference]))
        assert (agent.multiplier.value().item() > before) == rises


@pytest.mark.parametrize("parametrisation", ["exp", "softplus"])
def test_the_temperature_rises_where_entropy_is_below_its_target(parametrisation):
    for log_prob, rises in ((5.0, True), (-5.0, False)):
        agent = make(BOX, replace(SMALL, parametrisation=parametrisation), [0])
        assert agent.temperature.value().item() == pytest.approx(1)
        cql.update_temperature(agent, torch.full((1, 4), log_prob))
        assert (agent.temperature.value().item() > 1) == rises


def test_an_update_counts_its_steps():
    agent = make(BOX, replace(ENSEMBLE, updates=4, lagrange=True), [0])
    learn(agent, 3, 8)
    counts = {n: agent.adam[n].tensors()["count"].item() for n in agent.adam}
    assert counts == dict(actor=3, critic=12, temperature=3, multiplier=3)
    with pytest.raises(InputError, match="batch of 9 rows cannot be cut into 4"):
        learn(agent, 1, 9)


def test_minibatches_are_slices():
    rows = torch.arange(6.0).view(1, 6)
    first, second = minibatches(Batch(rows, rows, rows, rows, rows), 2)
    assert first.reward.tolist() == [[0, 1, 2]]
    assert second.mc_return is None


def test_time_outs_bootstrap_and_terminals_do_not():
    flags = np.array([[0, 0, 1, 0], [0, 1, 0, 0]], bool)
    log = Dataset.from_arrays(
        np.arange(12.0).reshape(4, 3) / 10, np.full((4, 2), 0.1), np.ones(4), *flags,
        final_observations=np.ones((3, 3)), episode=[0, 0, 1, 2],
    )  # fmt: skip
    space = type(log.spec.action_space)(np.array([-1, -2]), np.array([1, 2]), dtype=np.float64)
    log = log.derive("example", {}, spec=replace(log.spec, action_space=space))
    agent = make(BOX, SMALL, [0])
    batch = Transitions(log).batch(torch.arange(4)[None])
    noise = NoiseAhead(agent.noise(4), [0]).next()
    here = agent.actor_net(agent.actor, batch.observation)
    ahead = agent.actor_net(agent.actor, batch.next_observation)
    draws = cql.draw_actions(agent.actor_net, here, ahead, noise)
    target = cql.critic_target(agent, batch, draws, None)
    assert target[0, 2] == 1
    q = agent.critic_net(agent.critic_target, batch.next_observation, draws.next_action)
    value = q.amin(1).amax(-1)
    expected = 1 + 0.99 * value[0, [0, 1, 3]]
    assert torch.allclose(target[0, [0, 1, 3]], expected)
    assert (expected != 1).all()


# Finitely many actions


def exact_values(shares, mean_reward, transition, alive, discount, weight):
    """The fixed point `(S, A)` of conservative iteration on a table, by Newton's method.

    `shares` `(S, A)`: how often the log shows each pair, `mean_reward`, `alive` `(S, A)`.
    """
    q = np.zeros_like(shares)
    for _ in range(2000):
        target = mean_reward + discount * alive * (transition @ q.max(1))
        new = q.copy()
        for _ in range(8):
            soft = np.exp(new - new.max(1, keepdims=True))
            soft /= soft.sum(1, keepdims=True)
            state = shares.sum(1, keepdims=True)
            slope = 2 * shares * (new - target) + weight * (state * soft - shares)
            for s in range(len(q)):
                curve = np.diag(2 * shares[s]) + weight * state[s] * (
                    np.diag(soft[s]) - np.outer(soft[s], soft[s])
                )
                new[s] -= np.linalg.solve(curve + 1e-12 * np.eye(q.shape[1]), slope[s])
        if np.abs(new - q).max() < 1e-12:
            return new
        q = new
    raise AssertionError("no fixed point")


def table_log():
    """Three states, three actions, every pair logged, unequally; the last action ends all."""
    counts = np.array([[5, 2, 1], [1, 6, 2], [3, 3, 2]])
    rows = [(s, a) for s in range(3) for a in range(3) for _ in range(counts[s, a])]
    state, action = np.array(rows).T
    reward = np.array([[0.0, 1.0, 0.5], [0.3, -0.5, 1.5], [1.0, 0.2, 0.1]])
    after = np.array([[1, 2, 0], [2, 0, 1], [0, 1, 2]])
    over = action == 2
    eye = torch.eye(3, dtype=torch.float64)
    batch = Batch(
        eye[state], torch.tensor(action), torch.tensor(reward[state, action]),
        eye[after[state, action]], torch.tensor(over).double(),
    )  # fmt: skip
    transition = np.eye(3)[after]
    alive = np.ones((3, 3)) * (np.arange(3) < 2)
    return (
        Batch(*(None if f is None else f[None] for f in batch)),
        counts,
        reward,
        transition,
        alive,
    )


@pytest.mark.parametrize("critics", [1, 2])
def test_on_a_table_it_finds_the_exact_minimiser(critics):
    log, counts, reward, transition, alive = table_log()
    weights = (0.0, 0.3, 2.0)
    config = Config(
        critic_hidden=(), critics=critics, discount=0.8, weight=weights, polyak=0.3,
        critic_learning_rate=0.05,
    )  # fmt: skip
    agent = make(AgentSpec(3, 3, discrete=True), config, [0, 1, 2], torch.float64)
    batch = Batch(*(None if f is None else f.expand(3, *f.shape[1:]) for f in log))
    for rate in (0.05, 5e-3, 5e-4):
        agent.adam["critic"].learning_rate = rate
        for number in range(250):
            agent.update(batch, {}, torch.tensor(number))
    found = agent.critic_net(agent.critic_fixed, torch.eye(3).double().expand(3, 3, 3))
    for replica, weight in enumerate(weights):
        shares = counts / counts.sum()
        exact = exact_values(shares, reward, transition, alive, 0.8, weight)
        for member in range(critics):
            assert np.abs(found[replica, member].numpy() - exact).max() < 2e-3
    assert (np.diff(found.amax(-1).mean((1, 2)).numpy()) < 0).all()


def test_discrete_actions_are_greedy_or_drawn_from_a_softmax():
    agent = make(FINITE, Config(critic_hidden=(8,)), [0, 1])
    seen = torch.randn(2, 5, 3)
    values = agent.critic_net(agent.critic_fixed, seen)[:, 0]
    assert torch.equal(agent.act(seen), values.argmax(-1))
    many = seen[:, :1].expand(2, 20_000, 3)
    drawn = agent.act(many, torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.nn.functional.one_hot(drawn, 4).float().mean(1)
    assert (shares - values[:, 0].softmax(-1)).abs().max() < 0.02
    saved = agent.policy(1)
    assert saved.act(seen[1].numpy()).tolist() == agent.act(seen)[1].tolist()


# Learning


def test_it_keeps_to_what_the_log_supports():
    """A log of slow walkers: without the term the critics' fancies are believed."""
    weights, seeds = (0.0, 0.3, 2.0), range(3)
    config = Config(
        actor_hidden=(24, 24), critic_hidden=(24, 24), samples=3, discount=DISCOUNT,
        weight=tuple(w for w in weights for _ in seeds), actor_learning_rate=1e-3,
        critic_learning_rate=1e-3, temperature_learning_rate=1e-3,
    )  # fmt: skip
    agent = make(CORRIDOR, config, [s for _ in weights for s in seeds])
    found = study(agent, corridor_log(), 500, rows=24)
    assert all(torch.isfinite(metric).all() for metric in found.values())
    scores = corridor_return(agent).reshape(3, 3)
    intervals = [bootstrap_interval(row, generator=np.random.default_rng(0)) for row in scores]
    print([tuple(round(v, 1) for v in interval) for interval in intervals])
    assert intervals[0].high < 8
    assert min(interval.low for interval in intervals[1:]) > 11
    gap = found["conservative"].view(3, 3).mean(1)
    assert gap[0] > gap[1] > gap[2]


# As an agent among others


def test_its_state_has_the_names_of_soft_actor_critic():
    ours = make(BOX, replace(SMALL, lagrange=True), [0, 1])
    heir = sac.make(BOX, sac.Config(actor_hidden=(8, 7), critic_hidden=(9, 8)), [0, 1])
    learn(ours, 3, 6)
    handed = copy_state(ours, heir)
    assert set(handed.left) == {
        "multiplier/weights", "multiplier/adam/mean", "multiplier/adam/square",
        "multiplier/adam/count",
    }  # fmt: skip
    assert handed.fresh == ()
    for name in handed.copied:
        assert torch.equal(heir.state()[name], ours.state()[name])
    assert heir.state()["critic/adam/count"] == 3


@pytest.mark.parametrize("name", ["paper", "ensemble", "lagrange", "imitation first"])
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


def test_a_finite_agent_asks_nothing_either():
    rehearse(lambda device: make(FINITE, Config(), [0, 1], torch.float32, device), 8)


def test_the_function_to_be_captured_is_the_plain_loop():
    def fresh():
        agent = make(BOX, ENSEMBLE, [0, 1], torch.float32)
        log = random_batch(agent, 40, 0, torch.float32)

        class Rows:
            def sample(self, uniform):
                rows = (uniform * 40).long()
                return Batch(*(None if f is None else f[0][rows] for f in log))

        return agent, Rows(), noise_for(agent, 6, 8), torch.zeros((), dtype=torch.int64)

    plain, source, noise, step = fresh()
    updates(plain, source, noise, 8, step)
    other, source, noise, step = fresh()
    block = Block(other, source, noise, 4, step)
    block.run()
    block.run()
    assert all(torch.equal(t, plain.state()[n]) for n, t in other.state().items())


def test_a_diverged_replica_is_frozen_and_the_others_go_on():
    agent = make(BOX, replace(SMALL, weight=(1.0, 1.0)), [0, 1])
    guard = Guard(agent, every=1)
    before = flat_state(agent)
    with torch.no_grad():
        agent.critic.tensors()["bias_0"][0] = float("nan")
    metrics = learn(agent, 1, 6)
    guard.watch({n: m.unsqueeze(0) for n, m in metrics.items()}, torch.tensor(0))
    guard.renew(torch.tensor(1))
    assert guard.alive.tolist() == [False, True]
    assert "replica 0 (seed 0) diverged" in str(guard.report()[0])
    blocks = {n: (t, before[n]) for n, t in agent.state().items() if n == "actor/weights"}
    assert any(not torch.equal(now, then) for now, then in blocks.values())


def test_a_saved_policy_acts_as_the_agent(tmp_path):
    agent = make(BOX, SMALL, [0, 1])
    learn(agent, 2, 6)
    save_policy(tmp_path, agent.policy(1))
    policy = load_policy(tmp_path)
    assert policy.about["agent"] == "cql"
    seen = torch.randn(2, 7, 3)
    expected = agent.act(seen)[1].numpy() * np.array([1.0, 2.0])
    assert np.allclose(policy.act(seen[1].numpy()), expected, atol=1e-6)
    noise = torch.randn(2, 7, 2)
    sampled = agent.act(seen, noise)
    assert sampled.abs().max() <= 1
    assert not torch.equal(sampled, agent.act(seen))


def test_every_setting_tells_where_it_is_from():
    for rule in settings_of(Config):
        assert rule.source == "ours" or rule.source.startswith(("public code: ", "paper: "))
        assert rule.help
    found = vectors(Config(weight=(1.0, 2.0)), 2)
    assert found.weight.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("spec", "config", "told"),
    [
        (BOX, Config(critics=3, subset=4), "subset is 4 and there are 3 critics"),
        (BOX, Config(critics=1, subset=1), "there is one"),
        (BOX, Config(log_std_low=2.0, log_std_high=1.0), "log_std_low must lie below"),
        (BOX, Config(weight=-1.0), "weight is -1.0"),
        (BOX, Config(weight=(1.0, 2.0)), "weight has 2 values and there are 1 replicas"),
        (FINITE, Config(lagrange=True), "are for actions in a box"),
        (FINITE, Config(subset=2), "are for actions in a box"),
    ],
)
def test_settings_that_do_not_fit_are_told(spec, config, told):
    with pytest.raises(InputError, match=told):
        make(spec, config, [0])


def test_it_is_found_by_name_and_prepares_a_log():
    agent = make_agent("cql", BOX, SMALL, [0])
    assert isinstance(agent, cql.CQL)
    assert isinstance(make_agent("cql", FINITE, None, [0]), cql.DiscreteCQL)
    log = Dataset.from_arrays(
        np.random.default_rng(0).normal(5, 2, (20, 3)), np.zeros((20, 2)), np.zeros(20),
        np.zeros(20, bool), np.arange(20) == 19, final_observations=np.zeros((1, 3)),
    )  # fmt: skip
    assert cql.prepare(Config(), log).dataset.transitions["obs"].equals(log.transitions["obs"])
    moved = cql.prepare(Config(normalise=True), log)
    assert abs(moved.dataset.transitions["obs"].to_numpy().mean()) < 0.5
    assert moved.statistics.observation_mean is not None
