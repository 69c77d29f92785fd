"""Behaviour cloning, of a whole log or of its best tenth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from offrl_wb.agents.bc import Config, best_episodes, make, prepare
from offrl_wb.core.errors import InputError
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import Agent, agent_spec, make_agent
from offrl_wb.train.loop import noise_for
from offrl_wb.train.replay import Transitions
from tests.agent_checks import (
    GAIN,
    assert_modules,
    cart_log,
    cart_returns,
    cart_scores,
    check_alone,
    check_captured,
    check_resumed,
    check_vectors,
    dense,
    modules_of,
    random_log,
    run,
)

SMALL = Config(hidden=(8, 8), learning_rate=1e-3)
KINDS = {
    "deterministic": SMALL,
    "gaussian": replace(SMALL, policy="gaussian"),
    "dropout": replace(SMALL, dropout=0.2),
    "categorical": SMALL,
}


def log_for(kind):
    return random_log(discrete=kind == "categorical", actions=3 if kind == "categorical" else 2)


def made(kind, seeds=(0,), dtype=torch.float64):
    return make_agent("bc", agent_spec(log_for(kind)), KINDS[kind], seeds, dtype=dtype)


def drawn(kind, agent, batch_size=6):
    source = Transitions(log_for(kind), agent.dtype)
    noise = noise_for(agent, batch_size)
    return lambda: (n := noise.next(), source.sample(n["rows"]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_obeys_the_protocol(kind):
    assert isinstance(made(kind), Agent)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "categorical"])
def test_the_loss_is_that_of_numpy(kind):
    agent = made(kind)
    noise, batch = drawn(kind, agent)()
    (network,) = modules_of(agent.actor)
    seen, done = batch.observation[0].numpy(), batch.action[0].numpy()
    out = dense(network, seen)
    if kind == "deterministic":
        by_hand = ((np.tanh(out) - done) ** 2).mean()
    elif kind == "gaussian":
        log_std = agent.actor.tensors()["log_std"][0].detach().numpy()
        distance = (done - np.tanh(out)) / np.exp(log_std)
        density = -0.5 * distance**2 - log_std - 0.5 * np.log(2 * np.pi)
        by_hand = -density.sum(-1).mean()
    else:
        shares = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
        by_hand = -np.log(shares[np.arange(6), done]).mean()
    assert agent.loss(batch, noise).item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "categorical"])
def test_twenty_updates_are_those_of_a_straightforward_implementation(kind):
    agent = made(kind)
    last = [] if kind == "categorical" else [nn.Tanh()]
    (network,) = modules_of(agent.actor, last=last)
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    numbers = [*network.parameters(), *([free] if kind == "gaussian" else [])]
    adam = torch.optim.Adam(numbers, lr=1e-3)
    step, draw = torch.zeros((), dtype=torch.int64), drawn(kind, agent)
    for _ in range(20):
        noise, batch = draw()
        agent.update(batch, noise, step)
        out, done = network(batch.observation[0]), batch.action[0]
        if kind == "deterministic":
            loss = nn.functional.mse_loss(out, done)
        elif kind == "gaussian":
            normal = torch.distributions.Normal(out, free.clamp(-5, 2).exp())
            loss = -normal.log_prob(done).sum(-1).mean()
        else:
            loss = nn.functional.cross_entropy(out, done)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert_modules(agent.actor, [network], 1e-10)
    if kind == "gaussian":
        assert torch.allclose(agent.actor.tensors()["log_std"][0], free, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_of_sixteen_is_the_same_seed_alone(kind):
    check_alone("bc", KINDS[kind], log_for(kind), 1000 if kind == "deterministic" else 200)


def test_learning_rates_may_differ_between_replicas():
    check_vectors("bc", SMALL, random_log(), learning_rate=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_can_be_captured(kind):
    check_captured("bc", KINDS[kind], log_for(kind))


def test_the_state_holds_everything():
    check_resumed("bc", KINDS["dropout"], random_log())


def test_it_imitates_a_controller():
    log, statistics = prepare(Config(), cart_log((0.8,), 60))
    config = replace(SMALL, hidden=(32, 32), learning_rate=3e-3)
    agent = make_agent("bc", agent_spec(log), config, range(5))
    run(agent, log, 600, batch_size=64)
    scores = cart_scores(agent, statistics)
    pushed = cart_returns(lambda state: state @ (0.8 * GAIN).T, 1)[0]
    idle = cart_returns(lambda state: 0 * state[..., :1], 1)[0]
    assert np.abs(scores - pushed).max() < 0.05 * (pushed - idle)


def test_the_best_tenth_teaches_more_than_the_whole():
    mixed, scores = cart_log((0.02, 0.05, 0.2, 1.0), 40), {}
    for fraction in (1.0, 0.1):
        config = replace(SMALL, hidden=(32, 32), learning_rate=3e-3, fraction=fraction)
        log, statistics = prepare(config, mixed)
        agent = make_agent("bc", agent_spec(log), config, range(5))
        run(agent, log, 600, batch_size=64)
        scores[fraction] = cart_scores(agent, statistics)
    interval = bootstrap_interval(scores[0.1] - scores[1.0])
    assert interval.low > 0
    assert scores[0.1].min() > mixed.returns().mean()


def test_the_filter_keeps_the_best_episodes():
    log = random_log(seed=3)
    returns = log.returns()
    for fraction in (0.05, 0.1, 0.5, 0.9):
        kept = best_episodes(log, fraction)
        worst = np.sort(returns)[-kept.episode_count]
        assert kept.episode_count == pytest.approx(fraction * len(returns), abs=1)
        assert np.sort(kept.returns()) == pytest.approx(np.sort(returns[returns >= worst]))
    assert best_episodes(log, 1e-9).episode_count == 1
    assert best_episodes(log, 1.0) is log


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(InputError, match="share of episodes"):
        best_episodes(random_log(), fraction)


def test_bounds_in_the_wrong_order_are_refused():
    config = replace(SMALL, policy="gaussian", log_std_low=3.0)
    with pytest.raises(InputError, match="below log_std_high"):
        made_with(config)


def made_with(config):
    return make(agent_spec(random_log()), config, (0,), torch.float32, "cpu")


def test_whole_number_observations_are_not_normalised():
    from gymnasium.spaces import Discrete

    log = random_log(discrete=True)
    spec = replace(log.spec, observation_space=Discrete(5))
    frame = log.transitions.with_columns(obs=np.arange(len(log)) % 5)
    ends = log.episodes.with_columns(final_obs=np.zeros(log.episode_count, dtype=int))
    coded = log.derive("coded", {}, transitions=frame, episodes=ends, spec=spec)
    found, statistics = prepare(Config(), coded)
    assert statistics.observation_mean is None
    assert len(found) == len(log)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "categorical"])
def test_a_saved_policy_acts_as_the_agent_does(kind, tmp_path):
    agent = made(kind, seeds=(0, 1))
    seen = torch.randn(2, 7, 3, dtype=torch.float64)
    save_policy(tmp_path, agent.policy(1))
    policy = load_policy(tmp_path)
    assert np.allclose(policy.act(seen[1].numpy()), agent.act(seen)[1].numpy())
    assert policy.about["agent"] == "bc"
    generator = np.random.default_rng(0)
    assert len(policy.act(seen[1].numpy(), generator)) == 7


def test_with_noise_a_stochastic_actor_samples():
    agent, seen = made("gaussian"), torch.randn(1, 50, 3, dtype=torch.float64)
    noise = torch.randn(1, 50, 2, dtype=torch.float64)
    assert (agent.act(seen, noise) != agent.act(seen)).any()
    assert agent.acting_noise(50).shape == (50, 2)
    certain = made("deterministic")
    assert torch.equal(certain.act(seen, noise), certain.act(seen))
