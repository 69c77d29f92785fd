"""What acts on any agent's state: hand-over, choosing replicas, freezing; and what is refused."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import Spec
from offrl_wb.nets.layers import Weights
from offrl_wb.train import agent as module
from offrl_wb.train.agent import (
    Agent,
    AgentSpec,
    Guard,
    ReplicaAgent,
    agent_names,
    agent_spec,
    blocks,
    check_batch,
    check_environment,
    check_hand_over,
    copy_state,
    layouts,
    load_state,
    make_agent,
    select_replicas,
    select_state,
    spec_of_spaces,
)
from offrl_wb.train.noise import Noise
from offrl_wb.train.replay import Batch
from tests.tiny_agent import SPEC, Config, make

FREE = Box(-np.inf, np.inf, (3,))
PUSH = Box(np.array([-1, -2]), np.array([1, 4]), dtype=np.float64)


def random_batch(replicas=1, size=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(replicas, size, *shape, generator=generator, dtype=dtype)

    return Batch(normal(3), normal(2).tanh(), normal(), normal(3), (normal() > 1).to(dtype))


def random_noise(agent, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (agent.replicas, size, 2)
    smooth = torch.randn(shape, generator=generator, dtype=agent.dtype)
    pairs = torch.rand(agent.replicas, agent.config.members, generator=generator).argsort(1)
    return {"smooth": smooth, "subset": pairs[:, :2]}


def train(agent, count, seed=0):
    for number in range(count):
        batch = random_batch(agent.replicas, seed=seed + number, dtype=agent.dtype)
        agent.update(batch, random_noise(agent, seed=seed + number), torch.tensor(number))
    return agent


# What it sees and does


def test_a_spec_knows_the_sizes_and_the_scale_of_spaces():
    spec = spec_of_spaces(FREE, PUSH)
    assert spec == AgentSpec(3, 2, low=(-1.0, -2.0), high=(1.0, 4.0))
    assert spec_of_spaces(Dict(a=FREE, b=MultiBinary(2)), PUSH).observation == 5
    discrete = spec_of_spaces(Discrete(5, start=2), Discrete(3, start=7))
    assert discrete == AgentSpec(5, 3, discrete=True, one_hot=True, start=7, observation_start=2)
    assert agent_spec(Spec(FREE, PUSH)) == spec
    log = Dataset.from_arrays(np.zeros((2, 3)), np.zeros((2, 2)), [0, 0], [0, 1])
    assert agent_spec(log.derive("test", {}, spec=Spec(FREE, PUSH))) == spec


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_actions_go_to_the_environment_and_back(numbers):
    spec = spec_of_spaces(FREE, PUSH)
    there = spec.to_environment(np.array([numbers]))
    assert (there >= PUSH.low).all()
    assert (there <= PUSH.high).all()
    assert np.allclose(spec.from_environment(there), [numbers], atol=1e-12)
    assert AgentSpec.from_json(spec.to_json()) == spec


def test_actions_beyond_the_scale_are_cut_and_whole_numbers_counted():
    spec = spec_of_spaces(FREE, PUSH)
    assert spec.to_environment(np.array([[-3, 3]])).tolist() == [[-1, 4]]
    counted = spec_of_spaces(FREE, Discrete(3, start=7))
    assert counted.to_environment(np.array([0, 2])).tolist() == [7, 9]
    assert counted.from_environment(np.array([7, 9])).tolist() == [0, 2]


def test_observations_are_vectors():
    spec = spec_of_spaces(Discrete(3, start=4), Discrete(2))
    assert spec.observe(np.array([4, 6])).tolist() == [[1, 0, 0], [0, 0, 1]]
    wide = spec_of_spaces(FREE, Discrete(2))
    assert wide.observe(np.zeros((5, 3))).shape == (5, 3)
    with pytest.raises(InputError, match=r"shape \(5, 4\): the agent sees 3 numbers"):
        wide.observe(np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (MultiDiscrete([2, 2]), "MultiDiscrete space cannot be learnt"),
        (Box(-np.inf, np.inf, (2,)), "give the dataset's spec finite ones"),
        (Box(np.array([0.0, 1]), np.array([1.0, 1])), "give the dataset's spec finite ones"),
    ],
)
def test_actions_that_cannot_be_learnt_are_refused(space, told):
    with pytest.raises(InputError, match=told):
        spec_of_spaces(FREE, space)


@pytest.mark.parametrize(
    ("observations", "actions", "told"),
    [
        (FREE, Box(-1, 1, (2,), np.float64), "action 1 has the low bound -2 in the data and -1"),
        (FREE, Box(np.array([-1, -2]), np.array([1, 3]), dtype=np.float64), "high bound 4 .* 3"),
        (FREE, Box(-1, 1, (3,)), "actions have size 2 in the data and 3 in the environment"),
        (FREE, Discrete(2), "actions are vectors in the data, whole numbers in the env"),
        (Box(-1, 1, (4,)), PUSH, "observations have size 3 in the data and 4"),
        (Discrete(3), PUSH, "observations are vectors in the data, whole numbers"),
    ],
)
def test_an_environment_that_does_not_fit_the_data_is_refused(observations, actions, told):
    with pytest.raises(InputError, match=told):
        check_environment(spec_of_spaces(FREE, PUSH), observations, actions)


def test_an_environment_that_fits_is_taken():
    check_environment(spec_of_spaces(FREE, PUSH), FREE, PUSH)
    rounded = Box(PUSH.low.astype(np.float32), PUSH.high.astype(np.float32) + 1e-6)
    check_environment(spec_of_spaces(FREE, PUSH), FREE, rounded)
    with pytest.raises(InputError, match=r"start at 7, 0 .* at 0, 0"):
        check_environment(spec_of_spaces(FREE, Discrete(3, start=7)), FREE, Discrete(3))


@pytest.mark.parametrize("name", ["observation", "action", "next_observation", "terminated"])
def test_a_batch_of_another_shape_is_refused(name):
    batch = random_batch(2)
    check_batch(SPEC, batch, 2)
    wrong = getattr(batch, name)
    wrong = wrong[..., :-1] if wrong.ndim == 3 else wrong[:, :-1]
    with pytest.raises(InputError, match=rf"{name} of the batch has shape"):
        check_batch(SPEC, batch._replace(**{name: wrong}), 2)
    with pytest.raises(InputError, match=r"reward of the batch has shape"):
        check_batch(SPEC, batch, 3)


# The protocol and the registry


def test_the_tiny_agent_obeys_the_protocol():
    agent = make(seeds=[3, 4])
    assert isinstance(agent, Agent)
    assert (agent.replicas, agent.seeds) == (2, (3, 4))
    assert agent.acting_noise(5) == Noise("normal", (5, 2))
    assert make(replace(SPEC, discrete=True)).acting_noise(5) == Noise("uniform", (5,))
    assert ReplicaAgent(SPEC, Config(), [0]).noise(4) == {}


def test_the_state_is_named_and_not_copied():
    agent = make(seeds=[0, 1])
    state = agent.state()
    assert state["critic/weights"].data_ptr() == agent.critic.flat.data_ptr()
    assert {"critic/adam/mean", "critic/adam/count", "weight/weights", "target/weights"} <= set(
        state
    )
    assert not any(tensor.requires_grad for tensor in state.values())
    agent.parts["extra"] = torch.ones(2, 5)
    assert agent.state()["extra"].shape == (2, 5)


def test_an_agent_needs_a_seed_and_settings_in_range():
    with pytest.raises(InputError, match=r"there are no seeds"):
        make(seeds=[])
    for seeds, told in (([0.7], "seeds are whole numbers"), ([3, -1], "seeds are 0 or more")):
        with pytest.raises(InputError, match=told):
            make(seeds=seeds)
    assert make(seeds=np.arange(2)).seeds == (0, 1)
    with pytest.raises(InputError, match=r"discount has 2 values and there are 3 replicas"):
        make(config=Config(discount=(0.9, 0.8)), seeds=[0, 1, 2])
    with pytest.raises(InputError, match=r"^members is 1"):
        make(config=Config(members=1))


@pytest.fixture
def room(monkeypatch):
    """A room of agents that holds the tiny one alone."""
    made = types.ModuleType("tests.tiny_agent_room")
    made.__path__ = []
    tiny = types.ModuleType("tests.tiny_agent_room.tiny")
    tiny.Config, tiny.make = Config, make
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, tiny.__name__, tiny)
    monkeypatch.setattr(module, "ROOM", made.__name__)
    monkeypatch.setattr(module, "agent_names", lambda: ("tiny",))


@pytest.mark.usefixtures("room")
def test_an_agent_is_made_by_name():
    agent = make_agent("tiny", SPEC, seeds=[1, 2])
    assert (agent.seeds, agent.dtype) == ((1, 2), torch.float32)
    other = make_agent("tiny", SPEC, Config(hidden=[8]), dtype=torch.float64)
    assert (other.config.hidden, other.dtype) == ((8,), torch.float64)
    with pytest.raises(InputError, match=r"no agent 'tyni': there are tiny"):
        make_agent("tyni", SPEC)
    with pytest.raises(InputError, match=r"^members is 0"):
        make_agent("tiny", SPEC, Config(members=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told():
    with pytest.raises(InputError, match=r"no device cuda: PyTorch finds no CUDA here"):
        make_agent("tiny", SPEC, device="cuda")


def test_the_agents_that_there_are_have_names(monkeypatch):
    assert all(name.isidentifier() for name in agent_names())
    monkeypatch.setattr(module, "ROOM", "offrl_wb.no_such_room")
    assert agent_names() == ()


# Whose number is it?


def test_layouts_tell_every_number_apart():
    agent = train(make(seeds=range(3)), 2)
    state, shapes = agent.state(), layouts(agent)
    assert shapes["critic/adam/count"] is None
    assert shapes["critic/adam/mean"] == shapes["target/weights"] == agent.critic.shapes
    assert shapes["actor/weights"] == agent.actor.shapes
    for name, tensor in state.items():
        if shapes[name] is not None:
            parts = blocks(tensor, shapes[name])
            assert all(len(part) == 3 for part in parts)
            assert sum(part.numel() for part in parts) == tensor.numel()


def test_layouts_find_weights_wherever_they_hide_and_refuse_what_has_no_owner():
    agent = make(seeds=range(3))
    agent.parts["matrix"] = torch.zeros(3, 4)
    agent.hidden = {"deep": [Weights(torch.zeros(6), {"w": (3, 2)})]}
    agent.parts["hidden"] = agent.hidden["deep"][0]
    found = layouts(agent)
    assert found["matrix"] == {"": (3, 4)}
    assert found["hidden/weights"] == {"w": (3, 2)}
    agent.parts["stray"] = torch.zeros(5)
    with pytest.raises(TypeError, match=r"stray .* belongs to no replica"):
        layouts(agent)


def test_a_replica_taken_out_goes_on_as_it_would_have_among_the_others():
    many = train(make(seeds=[4, 5, 6], config=Config(discount=(0.9, 0.5, 0.7))), 3)
    chosen = make(seeds=[6, 4], config=Config(discount=(0.7, 0.9)))
    load_state(chosen, select_state(many, [2, 0]))
    for number in range(5):
        batch, noise = random_batch(3, seed=number), random_noise(many, seed=number)
        many.update(batch, noise, torch.tensor(0))
        part = Batch(*(x[[2, 0]] for x in batch[:5]))
        chosen.update(part, {n: x[[2, 0]] for n, x in noise.items()}, torch.tensor(0))
    for name, tensor in select_state(many, [2, 0]).items():
        assert torch.allclose(tensor, chosen.state()[name], rtol=0, atol=1e-12), name


@pytest.mark.usefixtures("room")
def test_select_replicas_makes_such_an_agent():
    many = train(make(seeds=[4, 5, 6], config=Config(discount=(0.9, 0.5, 0.7))), 3)
    chosen = select_replicas(many, "tiny", [1])
    assert (chosen.seeds, chosen.config.discount) == ((5,), (0.5,))
    for name, tensor in select_state(many, [1]).items():
        assert torch.equal(tensor, chosen.state()[name])


# Handed over


def test_hand_over_takes_moments_targets_and_counts_along():
    source, target = train(make(seeds=[0, 1]), 7), make(seeds=[2, 3])
    found = copy_state(source, target)
    assert set(found.copied) == set(source.state())
    assert (found.left, found.fresh) == ((), ())
    for name, tensor in source.state().items():
        assert torch.equal(tensor, target.state()[name]), name
    assert target.state()["critic/adam/count"] == 7
    train(source, 3, seed=50)
    train(target, 3, seed=50)
    for name, tensor in source.state().items():
        assert torch.equal(tensor, target.state()[name]), name


def test_what_the_other_side_lacks_is_left_behind_or_starts_afresh():
    source, target = train(make(), 3), make(seeds=[1])
    for name in ("weight", "weight/adam"):
        del target.parts[name]
    source.parts.pop("target")
    before = target.target.flat.clone()
    found = copy_state(source, target)
    assert found.left == tuple(n for n in source.state() if n.startswith("weight"))
    assert found.fresh == ("target/weights",)
    assert torch.equal(target.target.flat, before)
    assert torch.equal(target.critic.flat, source.critic.flat)


def test_names_choose_what_is_handed_over():
    source, target = train(make(), 3), make(seeds=[1])
    before = {name: tensor.clone() for name, tensor in target.state().items()}
    found = copy_state(source, target, ["actor/weights", "critic"])
    assert set(found.copied) == {
        name for name in before if name.startswith("critic/") or name == "actor/weights"
    }
    for name, tensor in target.state().items():
        assert torch.equal(tensor, (source.state() if name in found.copied else before)[name])
    assert "actor/adam/mean" in found.left
    assert "actor/adam/mean" in found.fresh


def test_a_hand_over_that_cannot_be_is_refused_and_changes_nothing():
    source, target = make(config=Config(hidden=(16,))), make()
    before = {name: tensor.clone() for name, tensor in target.state().items()}
    with pytest.raises(InputError, match=r"critic/weights has shape .*same replicas, layers"):
        copy_state(source, target)
    with pytest.raises(InputError, match=r"has no 'crtic': there are actor/adam/count"):
        copy_state(make(), target, ["crtic"])
    with pytest.raises(InputError, match=r"critic/weights has shape"):
        copy_state(make(seeds=[0, 1]), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state().items())


def test_shapes_and_settings_tell_beforehand_what_cannot_be_handed_over():
    source, nowhere = make(), dict(device="meta")
    check_hand_over(source, make(**nowhere))
    for settings, told in (
        (
            dict(hidden=(16,)),
            r"critic, target, actor of another shape: hidden is .*, then \(16,\);",
        ),
        (
            dict(members=5),
            r"critic, target of another shape: members is 3, then 5; first crit.*then \(5, ",
        ),
    ):
        with pytest.raises(InputError, match=told):
            check_hand_over(source, make(config=Config(**settings), **nowhere))
    other = make()
    other.parts = {"other": torch.zeros(1)}
    with pytest.raises(InputError, match=r"nothing can be handed over: from actor, .* to other"):
        check_hand_over(source, other)


# Frozen where it diverged


def poisoned(agent, replica, part="critic", value=float("nan")):
    """Put a number that is none into one replica's weights."""
    with torch.no_grad():
        next(iter(agent.parts[part].tensors().values()))[replica].view(-1)[0] = value


def step_with(guard, agent, start, count, seed):
    """Train, and let the guard look."""
    metrics = []
    for number in range(count):
        batch = random_batch(agent.replicas, seed=seed + number)
        noise = random_noise(agent, seed=seed + number)
        metrics.append(agent.update(batch, noise, torch.tensor(0)))
    stacked = {name: torch.stack([m[name] for m in metrics]) for name in metrics[0]}
    guard.watch(stacked, torch.tensor(start))
    return stacked


def test_a_diverged_replica_is_frozen_and_the_others_go_on_untouched():
    agent, healthy = make(seeds=range(4)), make(seeds=range(4))
    guard, other = Guard(agent), Guard(healthy)
    step_with(guard, agent, 0, 5, seed=0)
    step_with(other, healthy, 0, 5, seed=0)
    guard.renew(torch.tensor(5))
    good = select_state(agent, [2])
    poisoned(agent, 2)
    for start in (5, 15):
        step_with(guard, agent, start, 10, seed=start)
        step_with(other, healthy, start, 10, seed=start)
        guard.renew(torch.tensor(start + 10))
        assert guard.alive.tolist() == [True, True, False, True]
        frozen = select_state(agent, [2])
        for name in good:
            if not name.endswith("count"):
                assert torch.equal(good[name], frozen[name]), name
    rest, wanted = select_state(agent, [0, 1, 3]), select_state(healthy, [0, 1, 3])
    assert all(torch.equal(rest[name], wanted[name]) for name in wanted)
    (told,) = guard.report()
    assert (told.replica, told.seed, told.loss, told.step) == (2, 2, "critic_loss", 5)
    assert "replica 2 (seed 2) diverged: critic_loss is not finite at update 5" in str(told)
    assert other.report() == []


def test_the_first_loss_and_its_step_are_told():
    agent = make(seeds=[7, 8])
    guard = Guard(agent)
    nan = float("nan")
    first = torch.tensor([[1.0, 1], [1, 1], [nan, 1]])
    second = torch.tensor([[1.0, 1], [nan, 1], [nan, float("inf")]])
    guard.watch({"late": first, "early": second}, torch.tensor(1000))
    guard.watch({"late": first * nan, "early": second * nan}, torch.tensor(1003))
    assert [(d.seed, d.loss, d.step) for d in guard.report()] == [
        (7, "early", 1001),
        (8, "early", 1002),
    ]


def test_a_state_that_is_not_finite_is_seen_though_every_loss_was():
    agent = make(seeds=[0, 1])
    guard = Guard(agent)
    before = select_state(agent, [1])
    agent.parts["critic/adam"].mean[-1] = float("inf")  # the last number belongs to replica 1
    guard.watch({"loss": torch.ones(3, 2)}, torch.tensor(0))
    assert guard.report() == []
    guard.renew(torch.tensor(3))
    (told,) = guard.report()
    assert (told.replica, told.loss, told.step) == (1, "the state", 3)
    after = select_state(agent, [1])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_check_puts_a_diverged_replica_back_at_once():
    agent = make(seeds=[0, 1])
    guard = Guard(agent)
    good = select_state(agent, [0])
    assert guard.check(torch.tensor(0)).all()
    poisoned(agent, 0, "actor")
    step_with(guard, agent, 0, 2, seed=0)
    assert guard.check(torch.tensor(2)).tolist() == [False, True]
    assert torch.equal(select_state(agent, [0])["actor/weights"], good["actor/weights"])
    assert torch.isfinite(agent.act(torch.zeros(2, 1, 3, dtype=torch.float64))).all()


def test_a_guard_comes_back_from_its_state():
    agent = make(seeds=[0, 1])
    guard = Guard(agent)
    empty = Guard(make(seeds=[0, 1]))
    empty.restore(guard.state())
    assert (empty.losses, empty.report()) == ((), [])
    poisoned(agent, 1)
    step_with(guard, agent, 10, 2, seed=0)
    guard.renew(torch.tensor(12))
    again = make(seeds=[0, 1])
    load_state(again, agent.state())
    other = Guard(again)
    other.restore({name: tensor.clone() for name, tensor in guard.state().items()})
    assert other.report() == guard.report()
    assert other.losses == guard.losses
    step_with(other, again, 12, 2, seed=3)
    assert other.report() == guard.report()
    assert other.alive.tolist() == [True, False]
