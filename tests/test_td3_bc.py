"""TD3+BC: its losses, its updates, its promises, and that it improves on a mixed log."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from offrl_wb.agents import bc
from offrl_wb.agents.td3_bc import Config, prepare, smoothed_action, td3_target
from offrl_wb.core.errors import InputError
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.nets.losses import td3_bc_loss
from offrl_wb.nets.policies import load_policy, save_policy
from offrl_wb.train.agent import Agent, Guard, agent_spec, make_agent
from offrl_wb.train.loop import Loop, noise_for
from offrl_wb.train.replay import Transitions
from tests.agent_checks import (
    assert_modules,
    assert_same,
    cart_log,
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

SMALL = Config(hidden=(8, 8), actor_learning_rate=1e-3, critic_learning_rate=1e-3)


def made(config=SMALL, seeds=(0,), dtype=torch.float64):
    return make_agent("td3_bc", agent_spec(random_log()), config, seeds, dtype=dtype)


def draws(agent, log=None, batch_size=6):
    source, noise = Transitions(log or random_log(), agent.dtype), noise_for(agent, batch_size)

    def draw():
        drawn = noise.next()
        return drawn, source.sample(drawn["rows"])

    return draw


def test_the_agent_obeys_the_protocol():
    assert isinstance(made(), Agent)


def test_the_target_is_that_of_numpy():
    agent = made()
    noise, batch = draws(agent)()
    (actor,), critics = modules_of(agent.actor_target), modules_of(agent.critic_target)
    after, done = batch.next_observation[0].numpy(), batch.terminated[0].numpy()
    moved = np.clip(0.2 * noise["smoothing"][0].numpy(), -0.5, 0.5)
    action = np.clip(np.tanh(dense(actor, after)) + moved, -1, 1)
    values = [dense(c, np.concatenate([after, action], 1))[:, 0] for c in critics]
    by_hand = batch.reward[0].numpy() + 0.99 * (1 - done) * np.minimum(*values)
    assert np.allclose(td3_target(agent, batch, noise)[0].numpy(), by_hand, rtol=1e-12)


def test_the_actors_loss_is_that_of_numpy():
    generator = np.random.default_rng(0)
    q, chosen, logged = (generator.normal(size=s) for s in ((1, 5), (1, 5, 2), (1, 5, 2)))
    by_hand = ((chosen - logged) ** 2).mean() - 2.5 * q.mean() / np.abs(q).mean()
    found = td3_bc_loss(*(torch.tensor(x) for x in (q, chosen, logged)), 2.5)
    assert found.item() == pytest.approx(by_hand, rel=1e-12)


def test_smoothing_noise_is_clipped_and_the_action_stays_in_the_box():
    noise = torch.tensor([[[-10.0], [-1.0], [0.0], [1.0], [10.0]]])
    found = smoothed_action(torch.zeros(1, 5, 1), noise, 0.2, 0.5).flatten()
    assert torch.allclose(found, torch.tensor([-0.5, -0.2, 0.0, 0.2, 0.5]))
    edge = smoothed_action(torch.full((1, 5, 1), 0.9), noise, 0.2, 0.5)
    assert edge.max() == 1


def test_twenty_updates_are_those_of_a_straightforward_implementation():
    agent = made()
    (actor,), critics = modules_of(agent.actor, last=[nn.Tanh()]), modules_of(agent.critic)
    slow_actor, slow_critics = deepcopy(actor), deepcopy(critics)
    actor_adam = torch.optim.Adam(actor.parameters(), lr=1e-3)
    critic_adam = torch.optim.Adam([p for c in critics for p in c.parameters()], lr=1e-3)
    step, draw = torch.zeros((), dtype=torch.int64), draws(agent)
    for number in range(1, 21):
        noise, batch = draw()
        told = agent.update(batch, noise, step)
        seen, done, reward, after, over = (part[0] for part in batch[:5])
        with torch.no_grad():
            moved = (0.2 * noise["smoothing"][0]).clamp(-0.5, 0.5)
            ahead = torch.cat([after, (slow_actor(after) + moved).clamp(-1, 1)], 1)
            worse = torch.minimum(*(c(ahead)[:, 0] for c in slow_critics))
            target = reward + (1 - over) * 0.99 * worse
        pairs = torch.cat([seen, done], 1)
        loss = sum(nn.functional.mse_loss(c(pairs)[:, 0], target) for c in critics)
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()
        assert told["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-9)
        if number % 2 == 0:
            chosen = actor(seen)
            q = critics[0](torch.cat([seen, chosen], 1))[:, 0]
            scale = 2.5 / q.abs().mean().detach()
            loss = nn.functional.mse_loss(chosen, done) - scale * q.mean()
            actor_adam.zero_grad()
            loss.backward()
            actor_adam.step()
            assert told["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-9)
            pairs_of = zip([slow_actor, *slow_critics], [actor, *critics], strict=True)
            with torch.no_grad():
                for slow, fast in pairs_of:
                    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                        old.mul_(0.995).add_(new, alpha=0.005)
    assert_modules(agent.critic, critics, 1e-10)
    assert_modules(agent.actor, [actor], 1e-10)
    assert_modules(agent.critic_target, slow_critics, 1e-10)
    assert_modules(agent.actor_target, [slow_actor], 1e-10)


def test_a_replica_of_sixteen_is_the_same_seed_alone():
    check_alone("td3_bc", SMALL, random_log())


def test_settings_may_differ_between_replicas():
    spread = dict(alpha=(0.0, 1.0, 2.5, 5.0, 10.0), discount=(0.9, 0.95, 0.97, 0.98, 0.99))
    check_vectors("td3_bc", SMALL, random_log(), **spread)
    noises = dict(policy_noise=(0.0, 0.3), noise_clip=(0.1, 0.6), polyak=(0.005, 0.02))
    check_vectors("td3_bc", SMALL, random_log(), count=50, **noises)


@pytest.mark.parametrize("frequency", [1, 2])
def test_an_update_can_be_captured(frequency):
    check_captured("td3_bc", replace(SMALL, policy_frequency=frequency), random_log())


@pytest.mark.parametrize("at", [6, 7])
def test_the_state_holds_everything_between_two_updates_of_the_actor_too(at):
    check_resumed("td3_bc", SMALL, random_log(), at=at)


def test_the_actor_moves_at_every_second_update():
    agent, step = made(), torch.zeros((), dtype=torch.int64)
    draw = draws(agent)
    for number in range(1, 7):
        before = {n: t.clone() for n, t in agent.state().items()}
        noise, batch = draw()
        agent.update(batch, noise, step)
        after = agent.state()
        assert not torch.equal(before["critic/weights"], after["critic/weights"])
        for name in ("actor", "actor_target", "critic_target"):
            still = torch.equal(before[f"{name}/weights"], after[f"{name}/weights"])
            assert still == (number % 2 == 1), (number, name)


def test_a_time_out_bootstraps_and_a_terminal_does_not():
    log = random_log(60, seed=1)
    ended = log.ends
    swapped = log.transitions.with_columns(
        terminated=log.transitions["truncated"], truncated=log.transitions["terminated"]
    )
    other = log.derive("swapped", {}, transitions=swapped)
    agent = made()
    rows = torch.tensor(ended)[None]
    noise = {"smoothing": torch.zeros(1, len(ended), 2, dtype=torch.float64)}
    batches = [Transitions(each, torch.float64).batch(rows) for each in (log, other)]
    found = [td3_target(agent, batch, noise)[0] - batch.reward[0] for batch in batches]
    over = batches[0].terminated[0].bool()
    assert (found[0][over] == 0).all()
    assert (found[1][~over] == 0).all()
    assert (found[0][~over] != 0).all()
    assert (found[1][over] != 0).all()


def test_without_the_critic_it_is_behaviour_cloning():
    log, config = random_log(), replace(SMALL, alpha=0.0, policy_frequency=1)
    agent = make_agent("td3_bc", agent_spec(log), config, (4,), dtype=torch.float64)
    clone_config = bc.Config(hidden=(8, 8), learning_rate=1e-3)
    clone = make_agent("bc", agent_spec(log), clone_config, (4,), dtype=torch.float64)
    assert torch.equal(agent.actor.flat, clone.actor.flat)
    source = Transitions(log, torch.float64)
    noise, step = noise_for(agent, 8), torch.zeros((), dtype=torch.int64)
    for _ in range(50):
        drawn = noise.next()
        batch = source.sample(drawn["rows"])
        agent.update(batch, drawn, step)
        clone.update(batch, {}, step)
    assert torch.allclose(agent.actor.flat, clone.actor.flat, rtol=0, atol=1e-12)


def test_it_improves_on_a_mixed_log_and_on_imitation():
    mixed = cart_log((0.02, 0.05, 0.2, 1.0), 40)
    log, statistics = prepare(Config(), mixed)
    rates = dict(actor_learning_rate=3e-3, critic_learning_rate=3e-3, polyak=0.02)
    config = Config(hidden=(32, 32), discount=0.97, **rates)
    agent = make_agent("td3_bc", agent_spec(log), config, range(5))
    run(agent, log, 1000, batch_size=64)
    scores = cart_scores(agent, statistics)
    clone_config = bc.Config(hidden=(32, 32), learning_rate=3e-3)
    clone = make_agent("bc", agent_spec(log), clone_config, range(5))
    run(clone, log, 600, batch_size=64)
    assert bootstrap_interval(scores).low > mixed.returns().mean()
    assert bootstrap_interval(scores - cart_scores(clone, statistics)).low > 0


def test_a_diverged_replica_is_frozen_and_the_others_go_on():
    config = replace(SMALL, critic_learning_rate=(1e-3, 1e30, 1e-3))
    log = random_log()
    agent = make_agent("td3_bc", agent_spec(log), config, (0, 1, 2))
    guard = Guard(agent, every=8)
    loop = Loop(agent, Transitions(log), 8, ahead=8, guard=guard)
    loop.advance(64)
    loop.settle()
    assert guard.alive.tolist() == [True, False, True]
    assert "critic" in str(guard.report()[0])
    assert all(torch.isfinite(t).all() for t in agent.state().values())
    alone = make_agent("td3_bc", agent_spec(log), SMALL, (2,))
    Loop(alone, Transitions(log), 8, ahead=8).advance(64)
    seen = torch.randn(1, 5, 3)
    assert torch.allclose(agent.act(seen.expand(3, -1, -1))[2], alone.act(seen)[0], atol=1e-5)


def test_finitely_many_actions_are_refused():
    spec = agent_spec(random_log(discrete=True))
    with pytest.raises(InputError, match="needs actions in a box"):
        make_agent("td3_bc", spec, SMALL)


def test_observations_are_normalised_unless_it_is_switched_off():
    log = random_log()
    found, statistics = prepare(Config(), log)
    assert len(statistics.observation_mean) == 3
    assert np.abs(found.arrays().observations.mean(0)).max() < 0.2
    assert prepare(Config(normalise=False), log).statistics.observation_mean is None


def test_a_saved_policy_acts_as_the_agent_does(tmp_path):
    agent = made(seeds=(0, 1))
    seen = torch.randn(2, 7, 3, dtype=torch.float64)
    save_policy(tmp_path, agent.policy(1))
    policy = load_policy(tmp_path)
    assert np.allclose(policy.act(seen[1].numpy()), agent.act(seen)[1].numpy())


def test_noise_explores_within_the_box():
    agent, seen = made(replace(SMALL, exploration_noise=0.5)), torch.zeros(1, 400, 3).double()
    noise = torch.randn(1, 400, 2, dtype=torch.float64)
    plain, moved = agent.act(seen), agent.act(seen, noise)
    inside = moved.abs() < 1
    assert torch.allclose((moved - plain)[inside], (0.5 * noise)[inside])
    assert moved.abs().max() <= 1


def test_hand_over_takes_everything():
    agent, other = made(seeds=(0, 1)), made(seeds=(5, 6))
    run(agent, random_log(), 5)
    from offrl_wb.train.agent import copy_state

    copied = copy_state(agent, other)
    assert copied.left == copied.fresh == ()
    assert_same(other.state(), agent.state(), 0.0)
