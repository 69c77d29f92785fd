"""The update loop: the same numbers alone and among others, static and plain, resumed and not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.nets.optimiser import Adam
from offrl_wb.train.agent import Guard, load_state, select_state
from offrl_wb.train.loop import (
    Block,
    Loop,
    Watch,
    noise_for,
    noise_specs,
    objection,
    ramp,
    rehearse,
    updates,
    watched,
)
from offrl_wb.train.replay import Mixed, OnlineBuffer, Transitions
from tests.benchmarks.bench_memory import measured
from tests.tiny_agent import SPEC, Config, TinyAgent, make


def make_log(size=500, seed=0, reward=1.0):
    generator = np.random.default_rng(seed)
    over = generator.random(size) < 0.03
    cut = (generator.random(size) < 0.02) & ~over
    over[-1], cut[-1] = True, False
    log = Dataset.from_arrays(
        generator.normal(size=(size, 3)),
        generator.uniform(-1, 1, size=(size, 2)),
        generator.normal(size=size) * reward,
        over,
        cut,
        final_observations=generator.normal(size=((over | cut).sum(), 3)),
    )
    return log.derive("test", {}, spec=replace(log.spec, action_space=Box(-1, 1, (2,))))


def same(one, two, tolerance=0.0):
    assert set(one) == set(two)
    for name, tensor in one.items():
        difference = (tensor - two[name]).abs().max().item()
        assert difference <= tolerance, (name, difference)


def filled_buffer(replicas, steps=40, seed=0):
    generator = np.random.default_rng(seed)
    buffer = OnlineBuffer(replicas, 3, 2, 16, torch.float64)
    now = generator.normal(size=(replicas, 3))
    for _ in range(steps):
        after, done = (generator.normal(size=(replicas, n)) for n in (3, 2))
        over = generator.random(replicas) < 0.1
        buffer.add(now, np.tanh(done), now[:, 0], after, over, over & False)
        now = np.where(over[:, None], 0, after)
    return buffer


# A replica is its seed


def test_a_replica_in_a_batch_of_16_is_the_same_seed_alone_after_1000_updates():
    discounts = tuple(np.linspace(0.8, 0.98, 16))
    source = Transitions(make_log(), torch.float64)
    many = make(seeds=range(16), config=Config(discount=discounts))
    Loop(many, source, batch_size=16).advance(1000)
    alone = make(seeds=[9], config=Config(discount=discounts[9]))
    Loop(alone, source, batch_size=16).advance(1000)
    same(alone.state(), select_state(many, [9]), 1e-9)


def test_the_same_in_float32_after_100_updates():
    source = Transitions(make_log(), torch.float32)
    many = make(seeds=range(16), dtype=torch.float32)
    Loop(many, source, batch_size=16).advance(100)
    alone = make(seeds=[7], dtype=torch.float32)
    Loop(alone, source, batch_size=16).advance(100)
    same(alone.state(), select_state(many, [7]), 1e-5)


def test_a_learning_rate_for_each_replica_is_what_each_alone_would_learn_with():
    source = Transitions(make_log(), torch.float64)
    rates = (1e-3, 1e-2, 1e-4)
    many = make(seeds=[0, 0, 0], config=Config(learning_rate=rates))
    Loop(many, source, batch_size=16).advance(100)
    for replica, rate in enumerate(rates):
        alone = make(seeds=[0], config=Config(learning_rate=rate))
        Loop(alone, source, batch_size=16).advance(100)
        same(alone.state(), select_state(many, [replica]), 1e-9)


def test_seeds_differ_and_the_same_seed_does_not():
    source = Transitions(make_log(), torch.float64)
    agent = make(seeds=[3, 3, 4])
    Loop(agent, source, batch_size=16).advance(20)
    first, second, third = (select_state(agent, [r])["actor/weights"] for r in range(3))
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 0.01


# The plain loop, and the captured function run as it is


@pytest.mark.parametrize("kind", ["log", "buffer", "mixture"])
def test_the_captured_function_on_static_memory_is_the_plain_update(kind):
    log, buffer = Transitions(make_log(), torch.float64), filled_buffer(3)
    source = {"log": log, "buffer": buffer, "mixture": Mixed(log, buffer, 0.5)}[kind]
    plain, static = make(seeds=range(3)), make(seeds=range(3))
    found = updates(plain, source, noise_for(plain, 8, ahead=5), 24, torch.tensor(0))
    block = Block(static, source, noise_for(static, 8, ahead=5), 8, torch.tensor(0))
    for number in range(3):
        metrics = block.run()
        for name, values in metrics.items():
            assert torch.equal(values, found[name][8 * number : 8 * number + 8])
    same(plain.state(), static.state())
    assert block.step == 24


def test_static_memory_stays_where_it_is():
    source, agent = Transitions(make_log(), torch.float64), make(seeds=[0, 1])
    block = Block(agent, source, noise_for(agent, 8), 4, torch.tensor(0))
    block.run()
    every = {**block.drawn, **block.metrics, **agent.state()}
    places = {name: tensor.data_ptr() for name, tensor in every.items()}
    block.run()
    every = {**block.drawn, **block.metrics, **agent.state()}
    assert places == {name: tensor.data_ptr() for name, tensor in every.items()}


def test_the_loop_is_the_same_static_or_not_however_it_is_cut():
    source = Transitions(make_log(), torch.float64)
    agents = [make(seeds=[0, 1]) for _ in range(3)]
    whole = Loop(agents[0], source, 8, ahead=7).advance(30)
    parts = Loop(agents[1], source, 8, ahead=7, static=True)
    cut = [parts.advance(count) for count in (1, 10, 3, 16)]
    Loop(agents[2], source, 8, ahead=7, static=True).advance(30)
    for name, values in whole.items():
        assert values.shape == (30, 2)
        assert torch.equal(values, torch.cat([part[name] for part in cut]))
    same(agents[0].state(), agents[1].state())
    same(agents[0].state(), agents[2].state())
    assert parts.step == 30


def test_a_buffer_may_grow_between_updates():
    agents, buffers = [make(seeds=[0, 1]) for _ in range(2)], [filled_buffer(2) for _ in range(2)]
    loops = [
        Loop(a, b, 8, static=s) for a, b, s in zip(agents, buffers, (False, True), strict=True)
    ]
    generator = np.random.default_rng(3)
    for _ in range(20):
        seen, done = generator.normal(size=(2, 3)), np.tanh(generator.normal(size=(2, 2)))
        for loop, buffer in zip(loops, buffers, strict=True):
            buffer.add(seen, done, seen[:, 0], seen + 1, [False] * 2, [True] * 2)
            loop.advance(2)
    same(agents[0].state(), agents[1].state())
    assert buffers[0].version > 0
    assert loops[1].blocks[(2, 0)].source.size == 60


class FakeGraph:
    """A graph that calls what it captured."""

    captured = 0

    def replay(self):
        self.body()


class FakeCapture:
    """Stands in for `torch.cuda.graph`: it notes the capture, and runs nothing."""

    def __init__(self, graph):
        self.graph = graph

    def __enter__(self):
        FakeGraph.captured += 1
        TinyAgent.update, self.graph.update = lambda *_: {}, TinyAgent.update

    def __exit__(self, *_):
        TinyAgent.update = self.graph.update


class FakeStream:
    """A stream that waits for nobody."""

    def wait_stream(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("kind", ["buffer", "mixture"])
def test_on_cuda_the_second_run_captures_and_growth_captures_anew(kind, monkeypatch):
    agent, plain, buffer = make(seeds=[0, 1]), make(seeds=[0, 1]), filled_buffer(2)
    source = Mixed(Transitions(make_log(), torch.float64), buffer, 0.5)
    source = buffer if kind == "buffer" else source
    block = Block(agent, source, noise_for(agent, 8), 3, torch.tensor(0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeCapture)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    FakeGraph.body, FakeGraph.captured = lambda _: block.body(), 0
    step = torch.tensor(0)
    noise, counts = noise_for(plain, 8), []
    for number in range(6):
        if number == 3:
            buffer._grow(1000)
        before = block.step.clone()
        block.noise.take(block.drawn)
        block._on_cuda()
        block.step.copy_(before + 3)  # the stand-in's capture counts, a real one does not run
        updates(plain, source, noise, 3, step)
        counts.append(FakeGraph.captured)
    assert counts == [0, 1, 1, 1, 2, 2]
    same(agent.state(), plain.state())


# No question to the host


def test_an_update_asks_the_host_nothing_and_its_shapes_are_constant():
    log, buffer = Transitions(make_log(), torch.float64), filled_buffer(2)
    for norm in (False, True):
        for source in (log, buffer, Mixed(log, buffer, 0.25)):
            agent = make(seeds=[0, 1], config=Config(layer_norm=norm))
            seen = watched(agent, source, 16, count=5)
            assert (seen.objections, seen.constant) == ((), True)
            assert 50 < seen.operations < 700


def test_the_guard_and_the_block_ask_nothing_either():
    source, agent = Transitions(make_log(), torch.float64), make(seeds=[0, 1])
    loop = Loop(agent, source, 16, ahead=4, static=True)
    loop.advance(8)
    block = loop.blocks[(4, 0)]
    with Watch() as watch:
        for _ in range(3):
            block.body()
            loop.guard.watch(block.metrics, loop.step)
            loop.guard.renew(loop.step)
            watch.turn()
    assert watch.objections == []
    assert all(turn == watch.turns[0] for turn in watch.turns)


class Cosine(TinyAgent):
    """An agent whose learning rate follows a schedule, in a tensor."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.parts["critic/adam"] = Adam(self.critic, 1e-3, schedule="cosine", total=10)

    def update(self, batch, noise, step):
        return self.critic_step(batch, noise)


def test_an_update_runs_where_tensors_have_no_numbers():
    def make_on(device):
        return make(seeds=[0, 1], dtype=torch.float32, device=device)

    metrics = rehearse(make_on, 16)
    assert set(metrics) == {"critic_loss", "actor_loss", "multiplier_loss"}
    scheduled = rehearse(lambda device: Cosine(SPEC, Config(), [0], torch.float32, device), 4)
    assert set(scheduled) == {"critic_loss"}
    discrete = replace(SPEC, discrete=True, action=3)

    class Counting(TinyAgent):
        def update(self, batch, noise, step):
            assert batch.action.dtype == torch.int64
            return {"loss": batch.reward.mean(1)}

    rehearse(lambda d: Counting(discrete, Config(), [0], torch.float32, d), 4)


class Turns(TinyAgent):
    """An agent that moves its actor at every second update only."""

    period = 2

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.count = np.zeros((), dtype=np.int64)
        self.parts["phase"] = torch.from_numpy(self.count)
        self.loss = torch.zeros(self.replicas, dtype=self.dtype, device=self.device)

    @property
    def phase(self):
        return int(self.count)

    def update(self, batch, noise, step):
        metrics = self.critic_step(batch, noise)
        np.remainder(self.count + 1, 2, out=self.count)
        if self.count == 0:
            self.loss.copy_(self.actor_step(batch)["actor_loss"])
        return {**metrics, "actor_loss": self.loss.clone()}


def turns():
    return Turns(SPEC, Config(), [0, 1], torch.float64, "cpu")


def test_an_agent_may_take_turns():
    source = Transitions(make_log(), torch.float64)
    seen = watched(turns(), source, 16, count=3)
    assert (seen.objections, seen.constant) == ((), True)
    plain, static = turns(), turns()
    Loop(plain, source, 8, ahead=4).advance(21)
    loop = Loop(static, source, 8, ahead=4, static=True)
    for count in (3, 8, 1, 4, 5):
        loop.advance(count)
    same(plain.state(), static.state())
    assert {(4, 0), (4, 1), (3, 0)} <= set(loop.blocks)
    assert [loop.blocks[key].whole for key in ((4, 1), (3, 0))] == [True, False]


class Asking(TinyAgent):
    """An agent that does in its update what cannot be captured."""

    sin = None

    def update(self, batch, noise, step):
        type(self).sin(batch, step)
        return super().update(batch, noise, step)


SINS = {
    "item": lambda batch, step: batch.reward.mean().item(),
    "branch": lambda batch, step: 1 if batch.reward.mean() > 0 else 2,
    "float": lambda batch, step: float(step),
    "nonzero": lambda batch, step: batch.terminated.nonzero(),
    "where": lambda batch, step: torch.where(batch.reward > 0),
    "mask": lambda batch, step: batch.reward[batch.reward > 0],
    "masked_select": lambda batch, step: torch.masked_select(batch.reward, batch.reward > 0),
    "write by mask": lambda batch, step: batch.reward.index_put(
        (batch.reward > 0,), torch.zeros((), dtype=batch.reward.dtype, device=batch.reward.device)
    ),
    "unique": lambda batch, step: batch.reward.unique(),
    "new number": lambda batch, step: torch.tensor([3.0], device=batch.reward.device),
    "equal": lambda batch, step: torch.equal(batch.reward, batch.reward + 1),
    "repeat": lambda batch, step: torch.repeat_interleave((batch.reward > 0).long().view(-1)),
}


@pytest.mark.parametrize("sin", SINS)
def test_what_cannot_be_captured_is_seen(sin, monkeypatch):
    monkeypatch.setattr(Asking, "sin", SINS[sin])
    source = Transitions(make_log(), torch.float64)
    agent = Asking(SPEC, Config(), [0, 1], torch.float64, "cpu")
    assert watched(agent, source, 16).objections


@pytest.mark.parametrize("sin", ["item", "branch", "float", "nonzero", "mask", "unique", "equal"])
def test_what_asks_the_host_raises_on_the_meta_device(sin, monkeypatch):
    monkeypatch.setattr(Asking, "sin", SINS[sin])
    with pytest.raises((RuntimeError, NotImplementedError)):
        rehearse(lambda device: Asking(SPEC, Config(), [0], torch.float32, device), 16)


def test_shapes_that_change_are_seen(monkeypatch):
    def growing(batch, step):
        growing.size += 1
        return batch.reward.new_zeros(growing.size)

    growing.size = 0
    monkeypatch.setattr(Asking, "sin", staticmethod(growing))
    agent = Asking(SPEC, Config(), [0], torch.float64, "cpu")
    seen = watched(agent, Transitions(make_log(), torch.float64), 16)
    assert (seen.constant, seen.objections) == (False, ())


def test_copies_between_devices_are_seen():
    cpu, meta = torch.zeros(3), torch.zeros(3, device="meta")
    assert "copies from meta to cpu" in objection("aten.copy_.default", (cpu, meta), {})
    assert "copies from meta to cpu" in objection(
        "aten._to_copy.default", (meta,), {"device": torch.device("cpu")}
    )
    assert objection("aten._to_copy.default", (cpu,), {"dtype": torch.float64}) is None
    assert objection("aten.copy_.default", (cpu, cpu), {}) is None
    assert objection("aten.empty.memory_format", ([3],), {"device": torch.device("cpu")}) is None
    with Watch() as watch:
        cpu.to("meta")
    assert len(watch.objections) == 1


def test_a_metric_must_have_one_number_for_each_replica_and_no_gradient():
    class Wrong(TinyAgent):
        def update(self, batch, noise, step):
            return {"loss": batch.reward.mean()}

    with pytest.raises(TypeError, match=r"the metric loss is"):
        rehearse(lambda device: Wrong(SPEC, Config(), [0], torch.float32, device), 16)


# Divergence, checkpoints, bad input


def test_one_diverging_replica_of_three_is_frozen_and_named():
    source = Transitions(make_log(reward=10.0), torch.float64)
    rates = (1e-3, 1e200, 1e-3)
    agent = make(seeds=[0, 1, 2], config=Config(learning_rate=rates))
    loop = Loop(agent, source, 16, ahead=8)
    loop.advance(100)
    loop.settle()
    (told,) = loop.guard.report()
    assert (told.replica, told.seed) == (1, 1)
    assert told.loss.endswith("loss")
    assert told.step < 8
    assert loop.guard.alive.tolist() == [True, False, True]
    start = make(seeds=[0, 1, 2], config=Config(learning_rate=rates))
    same(select_state(agent, [1]) | {}, select_state(start, [1]) | counts_of(agent))
    well = make(seeds=[0, 7, 2])
    Loop(well, source, 16, ahead=8).advance(100)
    same(select_state(agent, [0, 2]), select_state(well, [0, 2]), 1e-12)


def counts_of(agent):
    return {name: t for name, t in agent.state().items() if name.endswith("count")}


@pytest.mark.parametrize("static", [False, True])
def test_a_restored_loop_goes_on_bit_for_bit(static):
    source = Transitions(make_log(), torch.float64)
    first = make(seeds=[0, 1])
    loop = Loop(first, source, 8, ahead=6, static=static)
    loop.advance(16)
    loop.settle()
    kept = {name: tensor.clone() for name, tensor in first.state().items()}
    state = {name: tensor.clone() for name, tensor in loop.state().items()}
    rest = loop.advance(13)
    again = make(seeds=[0, 1])
    other = Loop(again, source, 8, ahead=6, static=static)
    other.advance(3)
    load_state(again, kept)
    other.restore(state)
    found = other.advance(13)
    assert all(torch.equal(rest[name], found[name]) for name in rest)
    same(first.state(), again.state())
    assert other.step == 29


def test_a_loop_refuses_what_does_not_fit_before_the_first_update():
    log = Transitions(make_log(), torch.float64)
    wide = make(replace(SPEC, observation=4))
    with pytest.raises(InputError, match=r"observation of the batch has shape"):
        Loop(wide, log, 8).advance(1)
    with pytest.raises(InputError, match=r"batch size is 0"):
        Loop(make(), log, 0)
    with pytest.raises(InputError, match=r"the buffer is empty"):
        Loop(make(), OnlineBuffer(1, 3, 2), 8).advance(1)
    logs = Transitions([make_log(), make_log()], torch.float64)
    with pytest.raises(InputError, match=r"asked for 1 replicas, and the data are of 2"):
        Loop(make(), logs, 8).advance(1)


def test_a_ramp_goes_from_one_number_to_another_and_stays():
    found = [ramp(torch.tensor(n), 2.0, -2.0, 8).item() for n in (0, 2, 8, 100)]
    assert found == [2.0, 1.0, -2.0, -2.0]
    assert ramp(torch.zeros((), dtype=torch.int64, device="meta"), 0, 1, 5).is_meta


def test_a_phase_draws_noise_of_its_own():
    agent = make()
    assert list(noise_specs(agent, 8)) == ["rows", "smooth", "subset"]
    one, two = noise_for(agent, 8), noise_for(agent, 8, label="online")
    assert not torch.equal(one.next()["rows"], two.next()["rows"])


def test_a_guard_may_be_shared_and_has_its_own_rhythm():
    source, agent = Transitions(make_log(), torch.float64), make()
    guard = Guard(agent, every=8)
    loop = Loop(agent, source, 8, ahead=4, guard=guard)
    loop.advance(7)
    assert guard.since == 7
    loop.advance(1)
    assert guard.since == 0
    same(guard.kept, agent.state())


def test_time_outs_bootstrap_and_terminals_do_not():
    """A value of 10 behind the end of an episode counts if a time-out ended it, else not at all."""

    class Target(TinyAgent):
        def update(self, batch, noise, step):
            value = 10 * batch.next_observation[..., 0]
            return {"target": (batch.reward + (1 - batch.terminated) * value).mean(1)}

    ones = np.ones((1, 3))
    targets = []
    for over in (True, False):
        log = Dataset.from_arrays(
            ones * 0, ones[:, :2] * 0, [1.0], [over], [not over], final_observations=ones
        )
        log = log.derive("test", {}, spec=replace(log.spec, action_space=Box(-1, 1, (2,))))
        agent = Target(SPEC, Config(), [0], torch.float64, "cpu")
        loop = Loop(agent, Transitions(log, torch.float64), 4)
        targets.append(loop.advance(1)["target"].item())
    assert targets == [1.0, 11.0]


def test_training_takes_little_more_memory_than_the_log():
    found = measured(200_000)
    assert found["more"] <= 1.5 * found["raw"] + found["parameters"]
    assert found["raw"] == 200_000 * 23 * 4
