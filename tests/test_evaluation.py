"""Evaluation beside the training: the same numbers wherever, whenever and beside whom."""

import io
import os
import pickle
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest

from offrl_wb.core.errors import InputError
from offrl_wb.data.spec import ScoreReference
from offrl_wb.train import evaluation
from offrl_wb.train.evaluation import (
    Beside,
    Copies,
    Environments,
    Evaluation,
    Here,
    WorkerLost,
    environment_maker,
    evaluate,
    evaluation_seed,
)

Array = np.ndarray


class Steps(gymnasium.Env):
    """Pays 1 a step and ends after as many steps as the seed says; success at step 2 only."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, shortest: int = 3, broken: bool = False) -> None:
        self.shortest, self.broken = shortest, broken

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict]:
        super().reset(seed=seed)
        self.length, self.step_number = self.shortest + int(self.np_random.integers(4)), 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
        if self.broken:
            raise OSError("the plant is on fire")
        self.step_number += 1
        info = {"success": self.step_number == 2}
        over = self.step_number >= self.length
        return np.full(2, 0.1, np.float32), 1.0, over, False, info


class Endless(Steps):
    """Never ends."""

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
        return np.zeros(2, np.float32), 0.0, False, False, {}


def nothing(observations: Array) -> Array:
    return np.zeros((len(observations), 1))


class Noisy:
    """Acts by its generator, when it has one."""

    def act(self, observations: Array, generator: np.random.Generator | None = None) -> Array:
        if generator is None:
            return np.zeros((len(observations), 1))
        return generator.uniform(-1, 1, (len(observations), 1))


def test_returns_lengths_and_success_are_those_of_single_episodes() -> None:
    found = evaluate([nothing], Steps, seeds=[5], episodes=6)
    for episode in range(6):
        world = Steps()
        world.reset(seed=evaluation_seed(5, episode))
        assert found.lengths[0, episode] == world.length
        assert found.returns[0, episode] == world.length
    assert (found.success == 1).all()  # reached at step 2, whatever came later
    assert len(set(found.lengths[0].tolist())) > 1


def test_an_episode_belongs_to_its_replica_and_number_alone() -> None:
    many = evaluate([nothing] * 3, "Pendulum-v1", seeds=[0, 1, 2], episodes=4)
    alone = evaluate([nothing], "Pendulum-v1", seeds=[1], episodes=2)
    assert (many.returns[1, :2] == alone.returns[0]).all()
    assert (many.returns[0] != many.returns[1]).any()


def test_a_world_that_steps_many_copies_gives_the_numbers_of_single_ones() -> None:
    maker = environment_maker("DMSD-v0")
    fast, slow = maker.open_fast(3), maker.open(3)
    assert isinstance(fast, Copies)
    assert isinstance(slow, Environments)
    push = lambda seen: np.tanh(seen[:, :2])  # noqa: E731
    first = evaluation.play(Given(push), fast, 3, True)
    second = evaluation.play(Given(push), slow, 3, True)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


class Given:
    """A function as a policy."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def act(self, observations: Array, generator: Any = None) -> Array:
        return self.function(observations)


def test_a_sampled_evaluation_is_seeded() -> None:
    first, second = (
        evaluate([Noisy()], "Pendulum-v1", [0], episodes=2, deterministic=False) for _ in range(2)
    )
    mode = evaluate([Noisy()], "Pendulum-v1", [0], episodes=2)
    assert (first.returns == second.returns).all()
    assert (first.returns != mode.returns).all()


def test_means_and_scores() -> None:
    found = evaluate([nothing], Steps, [0], 4)
    means = found.means(ScoreReference(0.0, 10.0))
    assert means["evaluation/return"][0] == found.returns.mean()
    assert means["evaluation/score"][0] == pytest.approx(10 * found.returns.mean())
    assert means["evaluation/success"].tolist() == [1.0]
    assert "evaluation/success" not in evaluate([nothing], "Pendulum-v1", [0], 1).means()


def test_the_worker_gives_the_numbers_of_this_process_and_lets_it_go_on() -> None:
    asked = Evaluation(environment_maker("Pendulum-v1"), episodes=2)
    beside, here = Beside(asked, waiting=2), Here(asked)
    try:
        for step in (10, 20, 30):  # the third waits for the first: memory stays bounded
            beside.submit(step, [nothing, Noisy()], [3, 4])
            here.submit(step, [nothing, Noisy()], [3, 4])
        far, near = beside.wait(), here.wait()
    finally:
        beside.close()
    assert [step for step, _ in far] == [10, 20, 30]
    assert all((a.returns == b.returns).all() for (_, a), (_, b) in zip(far, near, strict=True))
    assert beside.wait() == here.finished() == []


def test_what_cannot_be_imported_travels_by_value() -> None:
    gymnasium.register("OnlyHere-v0", entry_point=Steps)
    factor = 0.5

    def made_here(observations: Array) -> Array:
        return np.full((len(observations), 1), factor)

    for environment in (lambda: Steps(shortest=2), "OnlyHere-v0"):
        beside = Beside(Evaluation(environment_maker(environment), 2))
        try:
            beside.submit(1, [made_here], [0])
            [(_, found)] = beside.wait()
        finally:
            beside.close()
        assert found.success.tolist() == [[1.0, 1.0]]


def test_a_worker_that_was_killed_is_replaced_once() -> None:
    beside = Beside(Evaluation(environment_maker("Pendulum-v1"), episodes=1))
    try:
        beside.submit(1, [nothing], [0])
        assert beside.process is not None
        os.kill(beside.process.process.pid, signal.SIGKILL)
        [(step, found)] = beside.wait()
        assert step == 1
        assert found.lengths.tolist() == [[200]]
        beside.submit(2, [nothing], [0])
        beside.replaced = True
        os.kill(beside.process.process.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"Pendulum-v1 at step 2: .* died twice: exit"):
            beside.wait()
    finally:
        beside.close()


def test_a_worker_ends_with_whoever_started_it() -> None:
    beside = Beside(Evaluation(environment_maker("Pendulum-v1"), episodes=1))
    beside.submit(1, [nothing], [0])
    beside.wait()
    assert beside.process is not None
    worker = beside.process.process
    assert worker.stdin is not None
    worker.stdin.close()  # what the system does when a process is gone
    for _ in range(200):
        if worker.poll() is not None:
            break
        time.sleep(0.05)
    assert worker.poll() == 0
    beside.close()


@pytest.mark.parametrize(
    ("policies", "environment", "options", "told"),
    [
        ([nothing, nothing], "Pendulum-v1", {}, "2 policies came with 1 seeds"),
        ([nothing], "Pendulmu-v1", {}, "Did you mean: `Pendulum`"),
        ([nothing], "Pendulum-v1", {"gravty": 3}, "gravty"),
        ([nothing], 7, {}, "a int makes no environments"),
        ([lambda seen: np.zeros((len(seen), 4))], "Pendulum-v1", {}, "have 4 numbers"),
        ([lambda seen: np.full((len(seen), 1), np.nan)], "Pendulum-v1", {}, "not finite"),
        ([7], "Pendulum-v1", {}, "a int is no policy"),
    ],
)
def test_what_does_not_fit_is_one_line(
    policies: list, environment: Any, options: dict, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        evaluate(policies, environment_maker(environment, **options), [0], 1)


def test_an_episode_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST", 50)
    with pytest.raises(InputError, match="has not ended after 50 steps: set longest"):
        evaluate([nothing], Endless, [0], 1)
    limited = evaluation.EnvironmentMaker(Endless, longest=7)
    assert evaluate([nothing], limited, [0], 2).lengths.tolist() == [[7, 7]]
    with pytest.raises(InputError, match="episodes is 0"):
        evaluate([nothing], Steps, [0], 0)


def test_what_goes_wrong_in_the_worker_is_told_here() -> None:
    for environment, kind, told in (
        (lambda: Steps(broken=True), RuntimeError, "at step 7: OSError: the plant is on fire"),
        (lambda: 3, InputError, "at step 7: the environment's maker returned a int"),
    ):
        beside = Beside(Evaluation(environment_maker(environment), 1))
        try:
            beside.submit(7, [nothing], [0])
            with pytest.raises(kind, match=told):
                beside.wait()
        finally:
            beside.close()


def test_the_worker_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` in a thread of this process, on a pipe and a prepared standard input."""
    read, write = os.pipe()
    raw = io.BytesIO()
    asked = Evaluation(environment_maker(Steps), 2)
    pickle.dump(cloudpickle.dumps((asked, None)), raw)
    for step, policies in ((1, [nothing]), (2, [7]), (3, [Given(1)])):
        pickle.dump(pickle.dumps((step, cloudpickle.dumps((policies, (0,))))), raw)
    raw.seek(0)
    ended: list[int] = []
    monkeypatch.setattr(evaluation.os, "dup", lambda number: write)
    monkeypatch.setattr(evaluation.os, "dup2", lambda *numbers: None)
    monkeypatch.setattr(evaluation.os, "nice", lambda number: 0)
    monkeypatch.setattr(evaluation.os, "_exit", ended.append)
    monkeypatch.setattr(evaluation.sys, "stdin", SimpleNamespace(buffer=raw))
    threading.Thread(target=evaluation.serve, daemon=True).start()
    with os.fdopen(read, "rb") as answers:
        found = [pickle.load(answers) for _ in range(3)]
    assert [(step, kind) for step, kind, _ in found] == [
        (1, "episodes"),
        (2, "mend"),
        (3, "error"),
    ]
    assert found[0][2][0].tolist() == evaluate([nothing], Steps, [0], 2).returns.tolist()
    assert "a int is no policy" in found[1][2]
    assert found[2][2].startswith("TypeError: ")
    assert ended == [0]  # its input had ended


def test_a_worker_that_cannot_begin_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    with open(os.devnull, "wb") as nowhere:
        for name in ("dup", "dup2", "nice"):
            monkeypatch.setattr(evaluation.os, name, lambda *numbers: 0)
        monkeypatch.setattr(evaluation.os, "fdopen", lambda *given: nowhere)
        monkeypatch.setattr(evaluation.os, "_exit", ended.append)
        monkeypatch.setattr(evaluation.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"?")))
        evaluation.serve()
    assert ended == [1]
    assert "UnpicklingError" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise InputError("cannot be made") from ImportError("No module named 'mujoco': install it")

    monkeypatch.setattr(evaluation, "open_environments", refuse)
    with pytest.raises(InputError, match=r"pip install 'offrl_wb\[mujoco\]'"):
        environment_maker("Hopper-v5").open(1)


def test_training_keeps_its_threads() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate([nothing], Steps, [0], 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
