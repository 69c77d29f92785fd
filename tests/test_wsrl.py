"""WSRL: the gate, the hand-over, what is counted and what is watched, and the experiment."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offrl_wb.agents import cal_ql, cql, iql, sac, wsrl
from offrl_wb.agents.wsrl import (
    Arm,
    Study,
    arm_phases,
    arms,
    common_settings,
    drift,
    fine_tuning,
    heir,
    matched,
    maze_logs,
    offline_config,
    pretrain,
    probe,
    run_arm,
    run_arms,
    success_rates,
    untrained_steps,
)
from offrl_wb.core.errors import InputError
from offrl_wb.train.agent import AgentSpec, agent_module, load_state, make_agent
from offrl_wb.train.replay import Batch, Transitions
from offrl_wb.train.run import train
from offrl_wb.worlds.u_maze import ENVIRONMENT, WAYPOINTS, UMaze, waypoint_ahead

MAZE = AgentSpec(2, 2, low=(-1.0, -1.0), high=(1.0, 1.0))
BEFORE = cal_ql.Config(
    (8,), (8,), critics=4, subset=2, critic_layer_norm=True, actor_layer_norm=True, lagrange=True,
    samples=2, backup_actions=2, failure_reward=-1.0, parametrisation="softplus",
)  # fmt: skip
TINY = Study(
    seeds=(0, 1), size=400, offline_steps=20, offline_batch=8, online_steps=50, batch_size=4,
    critics=3, width=8, episodes=2, every=25,
)  # fmt: skip


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")


@pytest.fixture(scope="module")
def handed() -> dict[str, torch.Tensor]:
    return pretrain(TINY)[0]


def online(phases: list, **told: Any) -> tuple[list[dict], list[int]]:
    """States of the agent and sizes of the buffer, after every step of `phases`."""
    states, sizes = [], []

    def watch(agent: Any, buffer: Any) -> dict:
        states.append({name: tensor.clone() for name, tensor in agent.state().items()})
        sizes.append(len(buffer))
        return {}

    agent = make_agent("cal_ql", MAZE, BEFORE, (0, 1))
    told = dict(episodes=0, log_every=1, watch=watch) | told
    train(agent, told.pop("source", None), ENVIRONMENT, phases, **told)
    return states, sizes


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("warm_up", "last"),
    [(20, 20), (3, 8)],  # K, and the last index j that nothing follows: max(K, a batch of 8)
)
def test_nothing_moves_until_the_index_has_passed_warm_up_and_a_batch(warm_up, last) -> None:
    phases = fine_tuning(BEFORE, last + 4, warm_up=warm_up, batch_size=2, updates=4)
    states, sizes = online(phases)
    for j in range(1, last + 1):
        assert changed(states[0], states[j]) == set()
    assert sizes[last + 1] == last + 2
    moved = changed(states[last], states[last + 1])
    assert {"actor/weights", "critic/weights", "critic_target/weights"} <= moved
    assert {"temperature/weights", "actor/adam/mean", "critic/adam/mean"} <= moved


def test_an_online_step_is_four_steps_of_the_critics_and_one_of_the_rest(monkeypatch) -> None:
    calls = []
    real = sac.polyak
    monkeypatch.setattr(sac, "polyak", lambda *args: calls.append(1) or real(*args))
    states, _ = online(fine_tuning(BEFORE, 12, warm_up=9, batch_size=2, updates=4))
    assert len(calls) == 4 * 2
    for part, count in (("critic", 4), ("actor", 1), ("temperature", 1)):
        name = f"{part}/adam/count"
        assert float((states[-1][name] - states[-2][name]).max()) == count


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    agent = make_agent("wsrl", MAZE, matched(BEFORE, updates=4), (0,))
    some = [torch.zeros(1, 6, n) for n in (2, 2, 1, 2)]
    batch = Batch(some[0], some[1], some[2][..., 0], some[3], torch.zeros(1, 6))
    noise = {n: torch.zeros(1, *s.shape) for n, s in agent.noise(6).items()}
    noise["members"] = torch.zeros(1, 4, 2, dtype=torch.int64)
    with pytest.raises(InputError, match="6 rows cannot be cut into 4"):
        agent.update(batch, noise, torch.tensor(0))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_log_is_out_of_every_batch_or_exactly_half_of_each_minibatch(
    share, monkeypatch
) -> None:
    seen = []
    real = sac.critic_steps

    def noting(agent: Any, batch: Batch, *args: Any) -> Any:
        seen.append(batch.online.clone())
        return real(agent, batch, *args)

    monkeypatch.setattr(sac, "critic_steps", noting)
    source = Transitions(maze_logs((0, 1), 300, 0.5, 0.95))
    phases = fine_tuning(BEFORE, 60, warm_up=40, batch_size=256, updates=4, share=share, least=40)
    online(phases, source=source, log_every=60)
    assert len(seen) == 60 - 41
    for tags in seen:
        assert tags.shape == (2, 1024)
        assert (~tags).sum(1).tolist() == [round(1024 * share)] * 2
        for part in tags.view(2, 4, 256).unbind(1):
            assert (~part).sum(1).tolist() == [round(256 * share)] * 2


def test_the_whole_state_goes_over_through_a_file_and_the_multiplier_does_not(tmp_path) -> None:
    source = Transitions(maze_logs((0, 1), 300, 0.5, 0.95))
    agent = make_agent("cal_ql", MAZE, BEFORE, (0, 1))
    run = train(agent, source, None, fine_tuning_offline(30), episodes=0, log_every=30)
    file = tmp_path / "state.safetensors"
    save_file({n: t.contiguous() for n, t in run.agent.state().items()}, file)
    fresh = make_agent("wsrl", MAZE, matched(BEFORE), (0, 1))
    report = load_state(fresh, load_file(file))
    assert report.fresh == ()
    assert set(report.left) == {n for n in run.agent.state() if n.startswith("multiplier")} != set()
    for name, tensor in fresh.state().items():
        assert torch.equal(tensor, run.agent.state()[name])
    assert fresh.state()["critic/adam/mean"].abs().max() > 0
    assert not torch.equal(fresh.critic.flat, fresh.critic_target.flat)
    both = heir(BEFORE)(run.agent).state()
    assert all(torch.equal(both[name], fresh.state()[name]) for name in both)


def fine_tuning_offline(steps: int) -> list:
    from offrl_wb.train.run import Phase

    return [Phase("offline", steps, batch_size=8)]


def test_the_defaults_are_those_of_the_code() -> None:
    config = wsrl.Config()
    agent = make_agent("wsrl", MAZE)
    assert (config.critics, config.subset, config.replacement, config.updates) == (10, 2, True, 4)
    assert (config.actor_learning_rate, config.critic_learning_rate) == (1e-4, 3e-4)
    assert (config.backup_entropy, config.entropy_at) == (False, "next_observation")
    assert (agent.target_entropy, config.actor_value) == (-2.0, "smallest")
    assert math.exp(config.log_std_high) == pytest.approx(10)
    assert make_agent("wsrl", AgentSpec(3, 4, discrete=True)).name == "wsrl"
    plan = fine_tuning(cal_ql.Config(critics=10, subset=2), 20_000)
    assert (plan[0].steps, plan[0].act, plan[0].learn) == (5001, "policy", False)
    assert (plan[1].batch_size, plan[1].offline_share) == (1024, 0.0)


def test_conservative_heirs_keep_every_setting_but_those_named() -> None:
    kept = heir(BEFORE, "cal_ql", updates=4).config
    assert kept == replace(BEFORE, updates=4)
    plain = heir(BEFORE, "cql", updates=2).config
    assert type(plain) is cql.Config
    assert (plain.weight, plain.lagrange, plain.updates) == (BEFORE.weight, True, 2)
    with pytest.raises(InputError, match="pass sac, cal_ql or cql"):
        heir(BEFORE, "td3")


def test_from_iql_actor_and_critics_go_over_and_the_mode_stays() -> None:
    before = iql.Config(hidden=(8,), policy="gaussian", squash_mean=True)
    old = make_agent("iql", MAZE, before, (0, 1))
    new = heir(before)(old)
    seen = torch.rand(2, 5, 2)
    assert torch.allclose(new.act(seen), old.act(seen), atol=1e-6)
    assert (new.config.subset, new.config.replacement) == (2, False)
    q = new.critic_net(new.critic_fixed, seen, new.act(seen))
    assert torch.equal(q, old.critic_net(old.critic.frozen(), seen, new.act(seen)))
    with pytest.raises(InputError, match="squash_mean"):
        matched(replace(before, squash_mean=False))


@pytest.mark.parametrize("name", ["sac_n", "sac", "rlpd", "cql"])
def test_from_soft_actor_critics_everything_that_moves_the_policy_goes_over(name) -> None:
    kind = agent_module(name).Config
    before = kind(actor_hidden=(8,), critic_hidden=(8,), critics=3)
    old = make_agent(name, MAZE, before, (0, 1))
    with torch.no_grad():
        old.temperature.weights.flat.fill_(1.1)
    new = heir(before)(old)
    seen = torch.rand(2, 5, 2)
    assert torch.allclose(new.temperature.value(), old.temperature.value())
    assert torch.equal(new.act(seen), old.act(seen))
    assert torch.equal(new.state()["critic/weights"], old.state()["critic/weights"])


@pytest.mark.parametrize("name", ["bc", "td3_bc", "riql"])
def test_other_actors_are_refused_with_what_to_do(name) -> None:
    with pytest.raises(InputError, match="wsrl goes on from cal_ql, cql"):
        heir(agent_module(name).Config())


@pytest.mark.parametrize(
    ("arguments", "told"), [((-1, 8), "warm_up is -1"), ((0, 8, 1.5), "the share 1.5")]
)
def test_a_gate_that_makes_no_sense_is_refused(arguments, told) -> None:
    with pytest.raises(InputError, match=told):
        untrained_steps(*arguments)


def test_too_few_online_steps_are_refused_with_the_number() -> None:
    with pytest.raises(InputError, match="the first 1025 online steps are without updates"):
        fine_tuning(BEFORE, 1000, warm_up=0)


class Guide:
    """Two replicas: one follows the waypoints, the other stands still."""

    replicas, device, dtype = 2, "cpu", torch.float32

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        where = (observation[0].double().numpy() + 1) * 1.5
        leg = WAYPOINTS[waypoint_ahead(where)]
        way = torch.from_numpy(np.clip((leg - where) / 0.4, -1, 1)).float()
        return torch.stack([way, torch.zeros_like(way)])


@pytest.mark.parametrize("start", ["corner", "uniform"])
def test_success_is_counted_by_replica_and_does_not_depend_on_luck(start) -> None:
    rates = success_rates(Guide(), UMaze(start=start), 20)
    assert rates[0] >= 0.95
    assert rates[1] <= 0.1  # whoever starts in the goal is not there by a step
    assert torch.equal(rates, success_rates(Guide(), UMaze(start=start), 20))


def test_the_probe_bootstraps_time_outs_and_not_terminals() -> None:
    agent = make_agent("wsrl", MAZE, matched(BEFORE), (0, 1))
    some = [torch.rand(2, 6, n) for n in (2, 2, 1, 2)]
    rows = Batch(some[0], some[1], some[2][..., 0], some[3], torch.zeros(2, 6))
    q = agent.critic_net(agent.critic_fixed, rows.observation, rows.action)
    ahead = agent.critic_net(
        agent.critic_target, rows.next_observation, agent.act(rows.next_observation)
    )
    for ended, following in ((0.0, ahead.amin(1)), (1.0, torch.zeros(2, 6))):
        value, error = probe(agent, rows._replace(terminated=torch.full((2, 6), ended)))
        target = (rows.reward + 0.99 * following).unsqueeze(1)
        assert torch.allclose(value, q.mean((1, 2)))
        assert torch.allclose(error, (q - target).square().mean((1, 2)), atol=1e-6)


def test_scaled_logs_have_scaled_rewards_and_returns() -> None:
    (plain,), (scaled,) = (maze_logs([3], 400, 0.5, 0.9, scale) for scale in (1.0, 5.0))
    assert np.array_equal(plain.arrays().observations, scaled.arrays().observations)
    for column in ("reward", "mc_return"):
        whole = slice(
            0, plain.transitions.height - plain.lengths[-1]
        )  # the last episode is cut to fit
        one, five = (log.transitions[column].to_numpy()[whole] for log in (plain, scaled))
        assert np.allclose(5 * one, five, atol=1e-5)


def test_a_study_says_the_same_to_all_its_agents() -> None:
    config, plan = offline_config(TINY), arm_phases(TINY, arms(30)["WSRL"])
    online_config = plan[0].becomes.config
    for name, value in common_settings(TINY).items():
        assert getattr(config, name) == getattr(online_config, name) == value
    assert (online_config.critics, online_config.actor_hidden) == (3, (8, 8))


@pytest.mark.parametrize("label", ["random warm-up", "WSRL, half log", "CQL, no log", "RLPD"])
def test_every_arm_runs_and_counts_its_steps_from_the_switch(label, handed) -> None:
    arm = replace(arms(30)[label], warm_up=min(arms(30)[label].warm_up, 30))
    course = run_arm(TINY, arm, handed)
    assert course.visits.shape == (2, 50, 2)
    steps = course.records.filter(metric="success/anywhere")["step"].unique().sort().to_list()
    assert {25, 50} <= set(steps)
    assert set(course.records["system"]) == {label}
    assert {"q/offline", "td/newest"} <= set(course.records["metric"])
    first = course.records.filter(metric="q/offline", step=25).sort("replica")["value"]
    now = course.records.filter(metric="q/offline", step=50).sort("replica")["value"]
    assert (first != now).all()
    newest = course.records.filter(metric="q/newest", step=50).sort("replica")["value"]
    assert (newest != now).all()


@pytest.mark.parametrize("label", [name for name, arm in arms(30).items() if not arm.scratch])
def test_an_arm_is_what_its_name_says(label) -> None:
    arm = arms(30)[label]
    first, then = arm_phases(TINY, arm)
    assert (first.act, first.learn, first.steps) == (arm.way, False, max(arm.warm_up, 30) + 1)
    assert (then.act, then.offline_share) == ("policy", arm.share)
    assert first.becomes.name == {"sac": "wsrl"}.get(arm.objective, arm.objective)
    assert ("half" in label) == (arm.share == 0.5)
    assert ("random" in label) == (arm.way == "random")


def test_processes_change_nothing(handed) -> None:
    chosen = [Arm("one", warm_up=30), Arm("two", objective="cql", warm_up=30)]
    study = replace(TINY, online_steps=34)
    alone = run_arms(study, chosen, handed)
    beside = run_arms(study, chosen, handed, workers=2)
    assert list(alone) == list(beside) == ["one", "two"]
    for label, course in alone.items():
        keys = ["metric", "step", "replica"]
        both = course.records.join(beside[label].records, on=keys, suffix="_beside")
        assert both.height == course.records.height
        assert both["value"].to_numpy() == pytest.approx(both["value_beside"].to_numpy(), rel=1e-3)


def test_the_companion_begins_where_the_offline_agent_ended(handed) -> None:
    found = drift(TINY, handed, 30, "cal_ql", count=10, every=5)
    again = drift(TINY, handed, 30, "cal_ql", count=10, every=5)
    assert found.update.tolist() == [0, 5, 10]
    assert found.q.shape == found.td.shape == (3, 2)
    assert np.array_equal(found.q, again.q)
    assert np.array_equal(found.q[0], drift(TINY, handed, 40, "sac", 10, 5).q[0])
    assert (found.q[0] != found.q[2]).all()
    assert (found.q[2] != drift(TINY, handed, 60, "cal_ql", 10, 5).q[2]).all()
