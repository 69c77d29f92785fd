"""Training runs: phases, hand-over, divergence, and the same numbers after kill -9."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import polars as pl
import pytest
import torch

from offrl_wb.agents import bc, rlpd, sac
from offrl_wb.core.errors import InputError
from offrl_wb.data.collector import collect, uniform_policy
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ScoreReference
from offrl_wb.data.views import normalise
from offrl_wb.nets.policies import load_policy
from offrl_wb.train import checkpoints, run
from offrl_wb.train.acting import Lives, environment_policies
from offrl_wb.train.agent import Agent, agent_spec, make_agent, select_state, spec_of_spaces
from offrl_wb.train.checkpoints import saved_state
from offrl_wb.train.evaluation import Here, environment_maker, evaluate
from offrl_wb.train.loop import Loop
from offrl_wb.train.replay import OnlineBuffer, Transitions
from offrl_wb.train.run import Diverged, Phase, Run, Schedule, hand_over, train, warm_start

ROOT = Path(__file__).resolve().parents[1]
PENDULUM = environment_maker("Pendulum-v1", max_episode_steps=15)
SMALL = sac.Config(actor_hidden=(8,), critic_hidden=(8,))


@pytest.fixture(scope="module")
def log() -> Dataset:
    """Random pushes."""
    pushes = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    return collect(uniform_policy(pushes), "Pendulum-v1", transitions=300, longest=30)


@pytest.fixture(autouse=True)
def _one_thread_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(BaseException):
    """In place of kill -9."""


class Forgetful(gymnasium.Env):
    """Takes its noise from a generator of its own, whatever the seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    noise = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return self.noise.random(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.noise.random(3, np.float32), 0.0, False, False, {}


def small_sac(log: Dataset, seeds: Sequence[int] = (0, 1), **more: Any) -> Agent:
    config = more.pop("config", SMALL)
    return make_agent("sac", agent_spec(log), config, seeds, **more)


def small_bc(log: Dataset, rate: Any = 1e-3, seeds: Sequence[int] = (0, 1)) -> Agent:
    return make_agent("bc", agent_spec(log), bc.Config(hidden=(8,), learning_rate=rate), seeds)


THREE = (
    Phase("offline", 20, batch_size=8),
    Phase("warm-up", 12, act="policy", learn=False),
    Phase("online", 33, act="policy", batch_size=8, offline_share=0.25, updates_per_step=0.7),
)


def three(log: Dataset, folder: Path | None, **more: Any) -> Run:
    """A run of three phases; stops every 10 steps."""
    told = dict(episodes=1, evaluate_every=20, log_every=10, overlap=False, checkpoint_seconds=0.0)
    told |= more
    return train(small_sac(log), normalise(log), PENDULUM, THREE, folder, **told)


def values(found: Run, metric: str) -> np.ndarray:
    """Values of a metric, `(steps, R)`."""
    rows = found.records.filter(pl.col("metric") == metric).sort("step", "replica")
    return rows["value"].to_numpy().reshape(-1, found.agent.replicas)


def same(one: Run, other: Run) -> bool:
    """Whether two runs gave the same numbers, bit for bit."""
    first, second = one.agent.state(), other.agent.state()
    states = all(torch.equal(first[name], second[name]) for name in first)
    return states and one.records.equals(other.records, null_equal=True)


# Phases


def test_the_phases_do_what_their_names_say(log: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    advance, step = Loop.advance, Lives.step
    monkeypatch.setattr(
        Loop, "advance", lambda loop, n: told.append(("learn", n)) or advance(loop, n)
    )
    monkeypatch.setattr(Lives, "step", lambda lives, a: told.append(("act", 1)) or step(lives, a))
    found = three(log, None)
    count = {kind: sum(n for k, n in told if k == kind) for kind in ("learn", "act")}
    assert count == {"learn": 20 + int(33 * 0.7), "act": 12 + 33}
    first = [kind for kind, _ in told].index("act")
    assert [kind for kind, _ in told[first : first + 12]] == ["act"] * 12
    assert found.buffer is not None
    assert len(found.buffer) == 45


def test_nothing_changes_in_a_warm_up(log: Dataset) -> None:
    agent = small_sac(log)
    before = {name: tensor.clone() for name, tensor in agent.state().items()}
    found = train(agent, None, PENDULUM, [THREE[1]], episodes=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.state().items())
    assert found.buffer is not None
    assert len(found.buffer) == 12


@pytest.mark.parametrize("rate", [0.25, 1.0, 3.0, Schedule(0.0, 2.0, 40)])
def test_the_number_of_updates_for_each_step(
    rate: Any, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    each: list[int] = []
    update = type(small_sac(log)).update
    monkeypatch.setattr(
        sac.SAC, "update", lambda *given: (each.append(int(given[3])), update(*given))[1]
    )
    phase = Phase("online", 40, act="policy", batch_size=4, updates_per_step=rate)
    train(small_sac(log), None, PENDULUM, [phase], episodes=0)
    wanted = sum(run.at(rate, step) for step in range(40))
    assert abs(len(each) - wanted) < 1
    assert each == list(range(len(each)))


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.5, 8), (1.0, 16), (0.3, 5)])
def test_every_batch_has_its_exact_share_of_offline_rows(
    share: float, rows: int, log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    update = sac.SAC.update
    monkeypatch.setattr(
        sac.SAC,
        "update",
        lambda agent, batch, *more: (seen.append(batch.online), update(agent, batch, *more))[1],
    )
    phase = Phase("online", 6, act="policy", batch_size=16, offline_share=share)
    train(small_sac(log), log, PENDULUM, [phase], episodes=0)
    assert len(seen) == 6
    assert all(((~online).sum(1) == rows).all() for online in seen)


def test_a_share_may_move(log: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[int] = []
    update = sac.SAC.update
    monkeypatch.setattr(
        sac.SAC,
        "update",
        lambda agent, batch, *more: (
            shares.append(int((~batch.online[0]).sum())),
            update(agent, batch, *more),
        )[1],
    )
    down = Schedule(1.0, 0.0, 4)
    phase = Phase("online", 6, act="policy", batch_size=8, offline_share=down)
    train(small_sac(log), log, PENDULUM, [phase], episodes=0)
    assert shares == [8, 6, 4, 2, 0, 0]


def test_another_agent_goes_on_with_the_whole_state(log: Dataset) -> None:
    heir = replace(SMALL, updates=2, subset=1)
    offline = Phase("offline", 30, batch_size=8)
    warm = Phase("warm-up", 5, act="policy", learn=False, becomes=hand_over("sac", heir))
    before = train(small_sac(log), log, None, [offline]).agent
    after = train(small_sac(log), log, PENDULUM, [offline, warm], episodes=0).agent
    assert after.config.subset == 1
    assert set(after.state()) == set(before.state())
    assert any("adam" in name for name in after.state())
    for name, tensor in before.state().items():
        assert torch.equal(after.state()[name], tensor), name


def test_a_run_may_start_from_the_state_of_another(log: Dataset, tmp_path: Path) -> None:
    first = train(small_sac(log), log, None, [THREE[0]], tmp_path)
    agent = small_sac(log)
    train(agent, None, PENDULUM, [THREE[1]], start=saved_state(tmp_path), episodes=0)
    ended = first.agent.state()
    assert all(torch.equal(ended[name], tensor) for name, tensor in agent.state().items())


def test_acting_at_random_and_by_the_mode(log: Dataset) -> None:
    phases = [
        Phase("random", 200, act="random", learn=False),
        Phase("mode", 3, act="mode", learn=False),
    ]
    found = train(small_sac(log), None, PENDULUM, phases, episodes=0)
    assert found.buffer is not None
    actions = found.buffer.newest(203).action[..., 0].numpy()
    drawn = actions[:, :200]
    assert np.abs(np.quantile(drawn, [0.25, 0.5, 0.75]) - [-0.5, 0, 0.5]).max() < 0.15
    assert (drawn[0] != drawn[1]).all()
    last = found.buffer.newest(1).observation
    with torch.no_grad():
        mode = found.agent.act(last)[:, 0, 0].numpy()
    assert np.allclose(mode, actions[:, -1])


def test_whole_number_actions_and_observations(tmp_path: Path) -> None:
    lake = environment_maker("FrozenLake-v1", is_slippery=False)
    spaces = lake.open(1)
    spec = spec_of_spaces(spaces.observation_space, spaces.action_space)
    agent = make_agent("sac", spec, SMALL, (0, 1))
    phases = [
        Phase("random", 30, act="random", learn=False),
        Phase("online", 20, act="policy", batch_size=8),
    ]
    told = dict(episodes=2, overlap=False, checkpoint_seconds=0.0, log_every=10)
    first = train(agent, None, lake, phases, tmp_path, **told)
    again = train(make_agent("sac", spec, SMALL, (0, 1)), None, lake, phases, tmp_path, **told)
    assert first.buffer is not None
    assert first.buffer.newest(5).observation.sum(-1).eq(1).all()
    assert same(first, again)
    assert (tmp_path / "policies" / "replica-1" / "policy.json").exists()


# What it tells


def test_records_are_tidy(log: Dataset) -> None:
    config = replace(SMALL, discount=(0.9, 0.99))
    reference = ScoreReference(-1600.0, 0.0)
    names = dict(world="Pendulum-v1", dataset="pushes", reference=reference)
    told = dict(episodes=2, evaluate_every=20, log_every=10, overlap=False)
    agent = small_sac(log, config=config)
    records = train(agent, normalise(log), PENDULUM, THREE, **told, **names).records
    assert records["system"].unique().to_list() == ["sac"]
    assert records["world"].unique().to_list() == ["Pendulum-v1"]
    assert set(records.filter(pl.col("replica") == 1)["seed"]) == {1}
    assert '"discount":0.99' in records.filter(pl.col("replica") == 1)["parameters"][0]
    assert records["parameters_hash"].n_unique() == 2
    evaluated = records.filter(pl.col("metric") == "evaluation/score")
    assert evaluated["step"].unique().sort().to_list() == [20, 32, 40, 60, 65]
    assert evaluated["value"].is_between(-100, 100).all()
    assert records.filter(pl.col("metric") == "online/length")["value"].max() == 15
    keys = ["metric", "replica", "step"]
    assert records.select(keys).is_duplicated().sum() == 0
    assert records.equals(records.sort("step", "metric", "replica"))


def test_watched_numbers_are_noted_at_every_stop(log: Dataset) -> None:
    def watch(agent: Agent, buffer: OnlineBuffer | None) -> dict[str, torch.Tensor]:
        size = 0 if buffer is None else len(buffer)
        return {"watched/size": torch.full((agent.replicas,), float(size))}

    found = three(log, None, watch=watch)
    assert values(found, "watched/size")[:, 0].tolist() == [0, 0, 10, 12, 20, 30, 40, 45]


def test_event_files_hold_what_the_records_hold(log: Dataset, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    found = three(log, tmp_path, tensorboard=True)
    for replica in range(2):
        place = tmp_path / "tensorboard" / f"replica-{replica}-seed-{replica}"
        raw, rows = next(place.glob("events*")).read_bytes(), []
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            event = Event.FromString(raw[12 : 12 + length])
            rows += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            raw = raw[16 + length :]
        table = found.records.filter(pl.col("replica") == replica)
        wanted = table.select("step", "metric", "value").rows()
        assert sorted((s, t) for s, t, _ in rows) == sorted((s, t) for s, t, _ in wanted)
        known = {(step, tag): value for step, tag, value in rows}
        assert all(np.isclose(known[step, tag], v, rtol=1e-6) for step, tag, v in wanted)


def test_the_bar_tells_the_speed_and_the_time_left(
    log: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OFFRL_WB_STATIC", raising=False)
    train(small_bc(log), log, None, [Phase("offline", 300, batch_size=8)])
    shown = capsys.readouterr().err
    assert re.search(r"offline: +\d+%.*\d+/300 \[\d+:\d+<[\d:]+, +[\d.]+ steps/s", shown)
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    train(small_bc(log), log, None, [Phase("offline", 10, batch_size=8)])
    assert capsys.readouterr().err == ""


def test_the_saved_policies_are_those_that_were_evaluated(log: Dataset, tmp_path: Path) -> None:
    found = three(log, tmp_path)
    saved = [load_policy(tmp_path / "policies" / f"replica-{r}") for r in range(2)]
    again = evaluate(saved, PENDULUM, [0, 1], 1)
    assert np.array_equal(again.returns[:, 0], values(found, "evaluation/return")[-1])
    assert saved[0].observation_mean is not None


# Replicas


def test_a_replica_in_company_is_the_same_seed_alone(log: Dataset) -> None:
    def go(seeds: tuple[int, ...]) -> Run:
        agent = small_sac(log, seeds, dtype=torch.float64)
        told = dict(episodes=1, evaluate_every=20, log_every=10, overlap=False)
        return train(agent, normalise(log), PENDULUM, THREE, **told)

    many, alone = go((3, 4, 5)), go((4,))
    columns = ["metric", "step", "value"]
    one = many.records.filter(pl.col("replica") == 1).select(columns)
    other = alone.records.select(columns)
    assert one.select(columns[:2]).equals(other.select(columns[:2]))
    assert np.allclose(one["value"], other["value"], rtol=1e-9, atol=1e-9)


def test_a_diverged_replica_is_told_and_frozen_while_the_others_go_on(
    log: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = Phase("offline", 200, batch_size=8)
    told = dict(episodes=1, evaluate_every=50, log_every=50, overlap=False)
    both = train(small_bc(log, (1e-3, 1e38)), log, PENDULUM, [phase], **told)
    alone = train(small_bc(log, 1e-3, (0,)), log, PENDULUM, [phase], **told)
    assert [each.replica for each in both.diverged] == [1]
    assert re.search(r"replica 1 \(seed 1\) diverged: actor_loss", capsys.readouterr().err)
    marks = both.records.filter(pl.col("metric") == "diverged")
    assert marks["replica"].to_list() == [1]
    late = both.records.filter((pl.col("replica") == 1) & (pl.col("step") > 50))
    assert late.is_empty()
    good = both.records.filter(pl.col("replica") == 0)["value"].to_numpy()
    assert np.allclose(good, alone.records["value"].to_numpy(), rtol=1e-4)
    assert all(torch.isfinite(t).all() for t in both.agent.state().values())
    assert np.isfinite(environment_policies(both.agent)[1].act(np.zeros((2, 3)))).all()


def test_a_run_without_a_replica_left_stops_and_names_the_loss(
    log: Dataset, tmp_path: Path
) -> None:
    agent = small_bc(log, 1e38)
    with pytest.raises(Diverged, match=r"all 2 replicas diverged: actor_loss is not finite, first"):
        train(agent, log, None, [Phase("offline", 10_000, batch_size=8)], tmp_path, log_every=50)
    records = pl.read_parquet(tmp_path / "records.parquet")
    assert records["metric"].unique().to_list() == ["diverged"]


ONLINE = (
    Phase("random", 20, act="random", learn=False),
    Phase("online", 40, act="policy", batch_size=8),
)


def test_a_replica_that_diverges_while_it_acts_leaves_the_others_alone(
    log: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(rates: tuple[float, float]) -> Run:
        agent = small_sac(log, config=replace(SMALL, critic_learning_rate=rates))
        return train(agent, None, PENDULUM, ONLINE, episodes=0, log_every=30)

    both, good = go((3e-4, 1e30)), go((3e-4, 1e-3))
    assert [each.replica for each in both.diverged] == [1]
    assert re.search(r"replica 1 \(seed 1\) diverged: \w+_loss is not", capsys.readouterr().err)
    for one, other in zip(both.buffer.newest(60), good.buffer.newest(60), strict=True):
        assert one is other is None or torch.equal(one[0], other[0])
    mine, theirs = (select_state(found.agent, [0]) for found in (both, good))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    # after a stop it acts once as it was before, until the next update
    assert both.buffer.newest(29).action[1].eq(0).all()
    assert all(torch.isfinite(t).all() for t in both.agent.state().values())


def test_a_run_goes_on_bit_for_bit_with_a_diverged_replica(
    log: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(folder: Path | None) -> Run:
        agent = small_sac(log, config=replace(SMALL, critic_learning_rate=(3e-4, 1e30)))
        told = dict(episodes=0, log_every=10, checkpoint_seconds=0.0)
        return train(agent, None, PENDULUM, ONLINE, folder, **told)

    whole, step, calls = go(None), Lives.step, 0

    def killed(lives: Lives, actions: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 44:
            raise Killed
        return step(lives, actions)

    monkeypatch.setattr(Lives, "step", killed)
    with pytest.raises(Killed):
        go(tmp_path)
    found = go(tmp_path)
    assert same(found, whole)
    assert torch.equal(found.buffer.newest(60).action, whole.buffer.newest(60).action)


def test_a_healthy_replica_without_an_action_is_an_error(
    log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sac.SAC, "act", lambda agent, seen, noise: seen[..., :1] * np.nan)
    with pytest.raises(InputError, match="action is not finite: nan"):
        train(small_sac(log), None, PENDULUM, ONLINE[1:], episodes=0)


def test_a_return_that_is_no_number_is_told(
    log: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Forgetful):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return self.noise.random(3, np.float32), float("nan"), True, False, {}

    phase = [Phase("offline", 5, batch_size=4)]
    train(small_bc(log), log, Broken, phase, episodes=1, overlap=False)
    assert "step 5: the return of replica 1 is not a number" in capsys.readouterr().err


# Returns that are known once an episode has ended


def with_returns(log: Dataset, folder: Path | None, environment: Any = PENDULUM) -> Run:
    phase = Phase("online", 40, act="policy", batch_size=8, updates_per_step=0.7)
    told = dict(episodes=0, log_every=5, checkpoint_seconds=0.0, return_discount=0.9)
    return train(small_sac(log), None, environment, [phase], folder, **told)


def test_updates_are_owed_until_every_replica_has_ended_an_episode(
    log: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    advance, step = Loop.advance, Lives.step
    monkeypatch.setattr(Loop, "advance", lambda loop, n: (done.append(n), advance(loop, n))[1])
    whole = with_returns(log, None)
    assert done[:2] == [10, 1]  # the first 15 steps are an episode
    assert sum(done) == 28

    def killed(lives: Lives, actions: np.ndarray) -> Any:
        done.append(0)
        if done.count(0) in (9, 22):
            raise Killed
        return step(lives, actions)

    monkeypatch.setattr(Lives, "step", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            with_returns(log, tmp_path)
    assert same(with_returns(log, tmp_path), whole)


def test_an_environment_without_an_end_is_told(log: Dataset) -> None:
    told = "phase 'online': 28 updates are owed, because replica 0 has ended no episode in 40 steps"
    with pytest.raises(InputError, match=told):
        with_returns(log, None, Forgetful)


# Going on


@pytest.fixture(scope="module")
def whole(log: Dataset) -> Run:
    """The run of three phases without interruption."""
    torch.set_num_threads(1)
    return three(log, None)


@pytest.mark.parametrize("moment", [1, 29, 41, 77, 90, 118, 131, 155])
def test_killed_at_any_moment_it_goes_on_with_the_same_numbers(
    moment: int, log: Dataset, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return function(*arguments, **options)

        return call

    for owner, name in (
        (Loop, "advance"),
        (Lives, "step"),
        (checkpoints, "_told"),
        (checkpoints, "save_records"),
        (os, "replace"),
        (OnlineBuffer, "extend"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    with pytest.raises(Killed):
        three(log, tmp_path)
    calls = moment - 4
    with suppress(Killed):  # and again, a little later, unless that is the end
        three(log, tmp_path)
    monkeypatch.undo()
    found = three(log, tmp_path)
    assert same(found, whole)
    assert found.buffer is not None
    assert whole.buffer is not None
    mine, theirs = found.buffer.newest(45), whole.buffer.newest(45)
    assert all(torch.equal(a, b) for a, b in zip(mine[:5], theirs[:5], strict=True))
    assert same(three(log, tmp_path), whole)  # finished: nothing is done again


def test_checkpoints_and_workers_change_nothing(log: Dataset, whole: Run, tmp_path: Path) -> None:
    assert same(three(log, tmp_path, overlap=True), whole)


def test_evaluations_under_way_are_asked_for_again(
    log: Dataset, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = Lives.step, 0

    def killed(lives: Lives, actions: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 35:
            raise Killed
        return step(lives, actions)

    monkeypatch.setattr(Lives, "step", killed)
    monkeypatch.setattr(Here, "finished", lambda evaluator: [])  # as if the worker were slow
    with pytest.raises(Killed):
        three(log, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")
    index = checkpoints.read_index(tmp_path / "checkpoint")
    assert index is not None
    assert sorted(map(int, index["place"]["waiting"])) == [20, 32, 40]
    assert len(list((tmp_path / "checkpoint").glob("kept-*/*/policy.json"))) == 3 * 2
    assert same(three(log, tmp_path), whole)
    assert not list((tmp_path / "checkpoint").glob("kept-*"))


def test_an_agent_that_became_another_goes_on(
    log: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir = hand_over("sac", replace(SMALL, critics=2, subset=1))
    phases = [THREE[0], THREE[1], replace(THREE[2], becomes=heir)]
    told = dict(episodes=0, log_every=10, checkpoint_seconds=0.0)
    whole = train(small_sac(log), log, PENDULUM, phases, **told)
    step, calls = Lives.step, 0

    def killed(lives: Lives, actions: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 37:
            raise Killed
        return step(lives, actions)

    monkeypatch.setattr(Lives, "step", killed)
    with pytest.raises(Killed):
        train(small_sac(log), log, PENDULUM, phases, tmp_path, **told)
    monkeypatch.undo()
    assert same(train(small_sac(log), log, PENDULUM, phases, tmp_path, **told), whole)


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests import test_run
from offrl_wb.data.dataset import Dataset
from offrl_wb.train.acting import Lives

step, calls = Lives.step, 0

def kill(lives, actions):
    global calls
    calls += 1
    if calls == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(lives, actions)

Lives.step = kill
test_run.three(Dataset.load(sys.argv[1]), Path(sys.argv[2]))
"""


def test_kill_minus_nine_in_an_online_phase(log: Dataset, whole: Run, tmp_path: Path) -> None:
    log.save(tmp_path / "log")
    words = [sys.executable, "-c", CHILD, str(tmp_path / "log"), str(tmp_path / "run")]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "OFFRL_WB_STATIC": "1"}
    done = subprocess.run(words, env=os.environ | threads, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "run" / "checkpoint" / checkpoints.INDEX).exists()
    assert same(three(log, tmp_path / "run"), whole)


def test_what_can_change_the_last_digits_is_told(
    log: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    phases = [THREE[0]]
    train(small_sac(log), log, None, phases, tmp_path)
    monkeypatch.setattr(run, "threads", lambda: 7)
    train(small_sac(log), log, None, phases, tmp_path)
    assert "began with 1 threads and goes on with 7" in capsys.readouterr().err


def test_an_environment_that_does_not_repeat_itself_is_told(
    log: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [Phase("online", 20, act="policy", batch_size=4)]
    for _ in range(2):
        train(small_sac(log), None, Forgetful, phases, tmp_path, episodes=0, world="Forgetful")
    assert "Forgetful does not repeat itself from its seed" in capsys.readouterr().err


def test_control_c_leaves_a_checkpoint_at_the_next_stop(
    log: Dataset, whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = Lives.step, 0

    def pressed(lives: Lives, actions: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return step(lives, actions)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker ignores it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lives, "step", pressed)
            with pytest.raises(KeyboardInterrupt):
                three(log, tmp_path, checkpoint_seconds=1e9)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted after step 40" in capsys.readouterr().err
    index = checkpoints.read_index(tmp_path / "checkpoint")
    assert index is not None
    assert index["place"]["step"] == 40
    assert same(three(log, tmp_path), whole)


def test_a_folder_takes_one_run_at_a_time(log: Dataset, tmp_path: Path) -> None:
    phase = [Phase("offline", 5, batch_size=4)]

    def again(agent: Agent, buffer: OnlineBuffer | None) -> dict[str, torch.Tensor]:
        with pytest.raises(InputError, match=r"another run is training into .* just now"):
            train(small_bc(log), log, None, phase, tmp_path)
        return {"seen": torch.ones(2)}

    found = train(small_bc(log), log, None, phase, tmp_path, watch=again)
    assert values(found, "seen").tolist() == [[1, 1]]
    train(small_bc(log), log, None, phase, tmp_path)


def test_the_events_of_a_run_without_a_checkpoint_are_void(log: Dataset, tmp_path: Path) -> None:
    place = tmp_path / "tensorboard" / "replica-0-seed-0"
    place.mkdir(parents=True)
    (place / "events.killed").write_bytes(b"")
    phase = [Phase("offline", 5, batch_size=4)]
    train(small_bc(log), log, None, phase, tmp_path, tensorboard=True)
    for replica in range(2):  # the first event is the mark from which to purge: 0, not written
        folder = place.with_name(f"replica-{replica}-seed-{replica}")
        raw = next(p for p in folder.glob("events*") if p.stat().st_size).read_bytes()
        assert b"\x3a\x02\x08\x01" in raw[:100]  # session_log: START


def test_records_name_the_agent_that_there_is_then(log: Dataset) -> None:
    wide = dict(actor_hidden=(8,), critic_hidden=(8,), critics=2, critic_layer_norm=False)
    heir = rlpd.Config(**wide, updates=2, subset=1, discount=0.5)
    phases = [THREE[0], replace(THREE[1], becomes=hand_over("rlpd", heir))]
    told = dict(episodes=1, log_every=10, evaluate_every=20)
    agent = small_sac(log, config=replace(SMALL, discount=(0.9, 0.99)))
    records = train(agent, log, PENDULUM, phases, **told).records
    rows = {name: records.filter(pl.col("system") == name) for name in ("sac", "rlpd")}
    assert rows["sac"]["step"].max() == 20
    assert rows["rlpd"]["step"].min() == 32
    assert "evaluation/return" in rows["sac"]["metric"].to_list()
    last = json.loads(rows["rlpd"].filter(pl.col("replica") == 1)["parameters"][0])
    assert (last["discount"], last["sac.discount"], last["updates"]) == (0.5, 0.99, 2)


# Bad input


def test_a_hand_over_that_cannot_be_is_told_before_anything_is_trained(
    log: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "advance", lambda *_: pytest.fail("an update was made"))
    for heir, told in (
        (hand_over("sacc"), "there is no agent 'sacc'"),
        (hand_over("sac", replace(SMALL, critics=5)), "critics is 2, then 5"),
        (
            hand_over("sac", replace(SMALL, critic_hidden=(9,))),
            r"critic_hidden is \(8,\), then \(9,",
        ),
        (hand_over("sac", SMALL, ["nothing"]), "the agent has no 'nothing'"),
        (hand_over("sac", replace(SMALL, discount=7.0)), "discount is 7.0"),
    ):
        phases = [THREE[0], THREE[1], replace(THREE[2], becomes=heir)]
        with pytest.raises(InputError, match="phase 'online': sac cannot become .*" + told):
            train(small_sac(log), log, PENDULUM, phases, episodes=0)
    chain = [THREE[0], replace(THREE[1], becomes=hand_over("sac", SMALL)), THREE[2]]
    chain[2] = replace(chain[2], becomes=hand_over("sac", replace(SMALL, critics=3)))
    with pytest.raises(InputError, match="critics is 2, then 3"):
        train(small_sac(log), log, PENDULUM, chain, episodes=0)


def test_counts_may_be_of_any_whole_kind(log: Dataset, tmp_path: Path) -> None:
    phase = Phase("a", np.int64(6), batch_size=np.int32(4), updates_per_step=np.float32(1))
    told = dict(log_every=np.int64(3), return_discount=np.float32(0.5), episodes=np.int64(1))
    for _ in range(2):
        train(small_bc(log), log, PENDULUM, [phase], tmp_path, overlap=False, **told)
    for name, value in (("log_every", 1.5), ("evaluate_every", -3), ("episodes", 2.0)):
        with pytest.raises(InputError, match=f"{name} is {value}: pass a whole number"):
            train(small_bc(log), log, PENDULUM, [phase], **{name: value})


def test_a_state_with_nothing_in_common_is_refused_and_what_is_fresh_is_told(
    log: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    state = small_bc(log).state()
    with pytest.raises(InputError, match="nothing can be handed over: from other to actor"):
        train(small_bc(log), log, None, THREE[:1], start={"other/weights": torch.ones(1)})
    kept = {name: tensor.clone() for name, tensor in state.items() if name != "actor/adam/mean"}
    train(small_bc(log), log, None, THREE[:1], start=kept)
    assert "begins afresh, for the state to start from has none: actor/adam/mean" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], "there is no phase"),
        ([Phase("a", 0)], "phase 'a': steps is 0"),
        ([Phase("a", 5), Phase("a", 5)], "phases need different names"),
        ([Phase("a", 5, act="polcy")], "act is 'polcy': choose policy, mode, random"),
        ([Phase("a", 5, act="policy")], "it acts, and there is no environment"),
        ([Phase("a", 5, learn=False)], "it neither acts nor learns"),
        ([Phase("a", 1e2)], "steps is 100.0: pass a whole number"),
        ([Phase("a", 5, batch_size=0)], "batch_size is 0"),
        ([Phase("a", 5, batch_size=8.0)], "batch_size is 8.0: pass a whole number"),
        ([Phase("a", 5, evaluate_every=-7)], "evaluate_every is -7"),
        ([Phase("a", 5, offline_share=1.5)], "offline_share is 1.5"),
        ([Phase("a", 5, updates_per_step=-1)], "updates_per_step is -1"),
    ],
)
def test_phases_that_make_no_sense_are_named(phases: list, told: str, log: Dataset) -> None:
    with pytest.raises(InputError, match=told):
        train(small_bc(log), log, None, phases)


def test_what_is_missing_is_named(log: Dataset, tmp_path: Path, monkeypatch: Any) -> None:
    online = Phase("online", 5, act="policy", batch_size=4, offline_share=0.5)
    for phase in (Phase("a", 5), online):
        with pytest.raises(InputError, match="learns offline, and there is no dataset"):
            train(small_sac(log), None, PENDULUM, [phase])
    with pytest.raises(InputError, match="log_every is 0"):
        train(small_bc(log), log, None, [Phase("a", 5)], log_every=0)
    with pytest.raises(InputError, match="TensorBoard's files need a folder"):
        train(small_bc(log), log, None, [Phase("a", 5)], tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(InputError, match=r"tensorboardX: pip install 'offrl_wb\[deep\]'"):
        train(small_bc(log), log, None, [Phase("a", 5)], tmp_path, tensorboard=True)


def test_data_agent_and_environment_must_fit(log: Dataset) -> None:
    phase = [Phase("a", 5, batch_size=4)]
    with pytest.raises(InputError, match="observations have size 3 in the data and 4 in the env"):
        train(small_bc(log), log, "CartPole-v1", phase)
    other = collect(
        uniform_policy(gymnasium.spaces.Box(-1, 1, (1,), np.float32)),
        "MountainCarContinuous-v0",
        transitions=20,
    )
    with pytest.raises(InputError, match="observations have size 3 in the agent and 2 in the data"):
        train(small_bc(log), other, None, phase)
    with pytest.raises(InputError, match=r"the data are torch.float64 on cpu, the agent is"):
        train(small_bc(log), Transitions(log, torch.float64), None, phase)
    holed = log.with_columns(reward=np.where(np.arange(len(log)) == 7, np.nan, 0.0))
    with pytest.raises(InputError, match="reward is not a finite number at row 7"):
        train(small_bc(log), holed, None, phase)


def test_a_checkpoint_of_another_run_is_refused(log: Dataset, tmp_path: Path) -> None:
    phase = Phase("a", 5, batch_size=4)
    train(small_bc(log), log, None, [phase], tmp_path)
    for again, told in (
        (lambda: train(small_sac(log), log, None, [phase], tmp_path), '"bc", and .* "sac"'),
        (lambda: train(small_bc(log, 0.5), log, None, [phase], tmp_path), "learning_rate"),
        (lambda: train(small_bc(log), log, None, [replace(phase, steps=9)], tmp_path), "phases"),
        (lambda: train(small_bc(log), normalise(log), None, [phase], tmp_path), "is of"),
    ):
        with pytest.raises(InputError, match=told):
            again()


def test_transitions_are_known_by_what_is_in_them(log: Dataset, tmp_path: Path) -> None:
    phase = [Phase("a", 5, batch_size=4)]
    for data in (log, Transitions(log)):
        train(small_bc(log), data, None, phase, tmp_path)
    other = Transitions(log.with_columns(reward=np.zeros(len(log))))
    with pytest.raises(InputError, match="is of data"):
        train(small_bc(log), other, None, phase, tmp_path)
    assert run.agent_about(small_bc(log))["device"] == "cpu"


def test_warm_start_leaves_out_phases_of_no_steps() -> None:
    heir = hand_over("sac")
    phases = warm_start(10, 0, 5, heir, batch_size=4, offline_share=0.5)
    assert [(p.name, p.steps, p.becomes) for p in phases] == [
        ("offline", 10, None),
        ("online", 5, heir),
    ]
    assert [p.becomes for p in warm_start(10, 3, 5, heir)] == [None, heir, None]
