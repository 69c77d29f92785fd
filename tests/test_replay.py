"""Batches out of logs and of buffers: the right rows, in the right shapes, with nothing twice."""

import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.corruption import corrupt
from offrl_wb.data.dataset import Dataset, as_numpy
from offrl_wb.data.spec import ImageFile
from offrl_wb.data.views import add_monte_carlo_returns, normalise
from offrl_wb.train.replay import (
    Mixed,
    OnlineBuffer,
    Transitions,
    episode_returns,
    mixed,
    pick,
    shared_tensor,
)


def uniform(replicas, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(replicas, size, dtype=torch.float64, generator=generator)


def make_log(size=60, seed=0, low=-1.0, high=1.0, dtype=np.float32, following=False, **more):
    """A random log; the first numbers of observations tell row and kind (final ones: + 1000)."""
    generator = np.random.default_rng(seed)
    over = generator.random(size) < 0.1
    cut = (generator.random(size) < 0.1) & ~over
    cut[-1] = not over[-1]
    seen = generator.normal(size=(size, 3)).astype(dtype)
    seen[:, 0] = np.arange(size)
    done = generator.uniform(low, high, size=(size, 2)).astype(dtype)
    ends = over | cut
    finals = generator.normal(size=(ends.sum(), 3)).astype(dtype)
    finals[:, 0] = 1000 + np.arange(len(finals))
    last = dict(final_observations=finals)
    if following:
        last = dict(next_observations=(seen + 0.25).astype(dtype))
    reward = generator.normal(size=size).astype(dtype)
    log = Dataset.from_arrays(seen, done, reward, over, cut, **last, **more)
    return with_actions(log, Box(low, high, (2,), dtype))


def with_actions(log, space):
    return log.derive("test", {}, spec=replace(log.spec, action_space=space))


def expected(log, rows):
    """The transitions of `rows` in float64, from the data room's own arrays."""
    arrays = log.arrays()
    return [np.asarray(values[rows], dtype=np.float64) for values in arrays[:5]]


# A log


@settings(max_examples=30)
@given(
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([np.float32, np.float64]),
)
def test_a_batch_holds_the_transitions_of_the_log(seed, following, dtype, kind):
    log = make_log(seed=seed, following=following, dtype=kind)
    source = Transitions(log, dtype)
    found = source.sample(uniform(3, 40, seed))
    rows = found.observation[..., 0].long().numpy()
    assert rows.shape == (3, 40)
    assert rows.tolist() == (uniform(3, 40, seed) * len(log)).floor().long().tolist()
    seen, done, reward, ahead, over = expected(log, rows)
    tolerance = dict(rtol=1e-6, atol=1e-6)
    assert np.allclose(found.observation, seen, **tolerance)
    assert np.allclose(found.action, done, **tolerance)
    assert np.allclose(found.reward, reward, **tolerance)
    assert np.allclose(found.next_observation, ahead, **tolerance)
    assert np.array_equal(found.terminated, over)
    assert all(part.dtype == dtype for part in found[:5])
    assert (found.mc_return, found.online) == (None, None)


def test_time_outs_are_not_terminals_and_bootstrap_from_the_final_observation():
    log = make_log()
    found = Transitions(log).batch(torch.as_tensor(log.ends)[None])
    terminated = log.transitions["terminated"].to_numpy()[log.ends]
    assert not terminated.all()
    assert terminated.any()
    assert found.terminated[0].bool().tolist() == terminated.tolist()
    assert (found.next_observation[0, :, 0] >= 1000).all()


def test_a_terminal_without_a_final_observation_is_kept_and_an_open_end_left_out():
    seen = np.arange(6, dtype=np.float32)[:, None]
    over = np.array([0, 0, 1, 0, 0, 0], bool)
    final = np.ma.masked_all((2, 1), np.float32)
    log = Dataset.from_arrays(
        seen, seen * 0, seen[:, 0], over, over * False, episode=[0] * 3 + [1] * 3,
        final_observations=final,
    )  # fmt: skip
    source = Transitions(with_actions(log, Box(-1, 1, (1,), np.float32)))
    drawn = source.sample(uniform(1, 500)).observation[0, :, 0]
    assert sorted(set(drawn.tolist())) == [0, 1, 2, 3, 4]
    assert len(source) == 6


def test_a_log_of_nothing_but_open_ends_is_refused():
    final = np.ma.masked_all((1, 1), np.float32)
    one = np.zeros((1, 1), np.float32)
    log = Dataset.from_arrays(one, one, [0.0], [False], episode=[0], final_observations=final)
    with pytest.raises(InputError, match=r"no transition tells its next observation"):
        Transitions(with_actions(log, Box(-1, 1, (1,), np.float32)))


@given(st.integers(0, 20), st.booleans(), st.integers(1, 4))
def test_one_log_for_each_replica_gives_what_each_log_alone_gives(seed, following, count):
    logs = [make_log(20 + 7 * i, seed + i, following=following) for i in range(count)]
    drawn = uniform(count, 30, seed)
    together = Transitions(logs, torch.float64).sample(drawn)
    for replica, log in enumerate(logs):
        alone = Transitions(log, torch.float64).sample(drawn[replica : replica + 1])
        for one, two in zip(together[:5], alone[:5], strict=True):
            assert torch.equal(one[replica : replica + 1], two)


def test_logs_with_and_without_chains_can_stand_side_by_side():
    logs = [make_log(30, 0), make_log(30, 1, following=True)]
    drawn = uniform(2, 50)
    together = Transitions(logs).sample(drawn)
    for replica in range(2):
        alone = Transitions(logs[replica]).sample(drawn[replica : replica + 1])
        assert torch.equal(together.next_observation[replica], alone.next_observation[0])


def test_logs_of_other_sizes_spaces_or_with_open_ends_are_refused():
    log = make_log()
    wide = Dataset.from_arrays(np.zeros((2, 4)), np.zeros((2, 2)), [0, 0], [0, 1])
    with pytest.raises(InputError, match=r"observation_space of two logs differ"):
        Transitions([log, with_actions(wide, Box(-1, 1, (2,)))])
    with pytest.raises(InputError, match=r"action_space of two logs differ"):
        Transitions([log, make_log(low=-2, high=2)])
    with pytest.raises(InputError, match=r"there is no dataset to learn from"):
        Transitions([])
    with pytest.raises(InputError, match=r"asked for 3 replicas, and the data are of 2"):
        Transitions([log, log]).sample(uniform(3, 4))
    with pytest.raises(InputError, match=r"asked for 1 replicas, and the data are of 2"):
        OnlineBuffer(2, 3, 1).sample(uniform(1, 4))
    final = np.ma.masked_all((1, 3), np.float32)
    zeros = np.zeros((2, 3), np.float32)
    open_ = Dataset.from_arrays(
        zeros, zeros[:, :2], [0, 0], [False] * 2, episode=[0, 0], final_observations=final
    )
    with pytest.raises(InputError, match=r"episodes without an end"):
        Transitions([log, with_actions(open_, log.spec.action_space)])


def test_actions_of_another_box_come_on_the_agents_scale():
    log = make_log(low=-3.0, high=1.0)
    found = Transitions(log, torch.float64).batch(torch.arange(len(log))[None]).action[0]
    original = as_numpy(log.transitions["action"])
    assert np.allclose(found, (original + 1) / 2, atol=1e-6)
    assert found.abs().max() <= 1 + 1e-6


def test_actions_beyond_the_box_are_refused_unless_they_are_to_be_clipped():
    log = with_actions(make_log(low=-3, high=3), Box(-1, 1, (2,), np.float32))
    rows = torch.arange(len(log))[None]
    told = r"action \d is -?[12]\.\d+ at row \d+ \(episode \d+, .* spec says -1 to 1: correct"
    with pytest.raises(InputError, match=told):
        Transitions(log)
    assert Transitions(log, clip_actions=0.999).batch(rows).action.abs().max() <= 0.999


def test_actions_may_overshoot_by_rounding_and_where_they_were_corrupted():
    edge = make_log().with_columns(action=np.full((60, 2), 1.0001, np.float32))
    assert Transitions(edge).sample(uniform(1, 4)).action.max() > 1
    with pytest.raises(InputError, match=r"action 0 is 1\.001"):
        Transitions(edge.with_columns(action=np.full((60, 2), 1.001, np.float32)))
    spoiled = normalise(corrupt(make_log(), "actions", rate=0.5, scale=3.0, seed=0).dataset)
    assert Transitions(spoiled.dataset).sample(uniform(1, 200)).action.abs().max() > 1.1


def test_whole_number_actions_that_there_are_not_are_refused():
    log = Dataset.from_arrays(np.zeros((4, 2)), np.array([2, 4, 5, 3]), np.zeros(4), [0, 0, 0, 1])
    Transitions(with_actions(log, Discrete(4, start=2)))
    for space in (Discrete(3, start=2), Discrete(3, start=3)):
        with pytest.raises(
            InputError, match=r"action 0 is \d at row \d .* whole numbers from \d to"
        ):
            Transitions(with_actions(log, space))


def test_returns_that_are_not_numbers_and_numbers_too_large_are_refused():
    known = np.where(np.arange(60) == 7, np.nan, 1.0)
    with pytest.raises(InputError, match=r"mc_return is not a finite number at row 7 "):
        Transitions(make_log().with_columns(mc_return=known))
    large = make_log(dtype=np.float64).with_columns(reward=np.full(60, 1e39))
    with pytest.raises(InputError, match=r"reward has a number of 1e\+39, .* train in float64"):
        Transitions(large)
    assert Transitions(large, torch.float64).sample(uniform(1, 4)).reward.min() == 1e39
    step = [
        np.zeros((2, 3)),
        np.zeros((2, 1)),
        np.array([0, 1e39]),
        np.zeros((2, 3)),
        [0, 0],
        [0, 0],
    ]
    with pytest.raises(InputError, match=r"reward of replica 1 is not a finite number"):
        OnlineBuffer(2, 3, 1).add(*step)
    OnlineBuffer(2, 3, 1, dtype=torch.float64).add(*step)
    alone = OnlineBuffer(2, 3, 1, dtype=torch.float64)
    alone.add(*(np.asarray(part, np.float32) for part in (*step[:2], np.zeros(2), *step[3:])))


def test_a_mixture_tells_that_the_storage_of_a_part_moved():
    offline, online = tagged()
    source = Mixed(offline, online, 0.5)
    before = source.version
    online._grow(20_000)
    assert source.version != before


def test_whole_number_actions_and_observations():
    size = 12
    over = np.arange(size) % 4 == 3
    seen, done = np.arange(size) % 5 + 2, np.arange(size) % 3 + 7
    finals = np.array([2, 3, 4])
    log = Dataset.from_arrays(seen, done, np.ones(size), over, final_observations=finals)
    spec = replace(
        log.spec, observation_space=Discrete(6, start=2), action_space=Discrete(3, start=7)
    )
    found = Transitions(log.derive("test", {}, spec=spec)).batch(torch.arange(size)[None])
    assert found.action.dtype == torch.int64
    assert found.action[0].tolist() == (done - 7).tolist()
    assert found.observation.shape == (1, size, 6)
    assert found.observation[0].argmax(-1).tolist() == (seen - 2).tolist()
    after = np.append(seen[1:], 0)
    after[over] = finals
    assert found.next_observation[0].argmax(-1).tolist() == (after - 2).tolist()
    assert (found.observation.sum(-1) == 1).all()


def test_whole_number_observations_with_next_ones_of_their_own():
    seen = np.array([1, 2, 3])
    log = Dataset.from_arrays(
        seen, seen * 0, seen, [0, 0, 1], next_observations=np.array([3, 1, 2])
    )
    spec = replace(log.spec, observation_space=Discrete(3, start=1))
    found = Transitions(log.derive("test", {}, spec=spec)).batch(torch.arange(3)[None])
    assert found.next_observation[0].argmax(-1).tolist() == [2, 0, 1]


def test_monte_carlo_returns_are_handed_on():
    log = add_monte_carlo_returns(make_log(), discount=0.9)
    found = Transitions(log, torch.float64).sample(uniform(2, 20))
    rows = found.observation[..., 0].long().numpy()
    assert np.allclose(found.mc_return, as_numpy(log.transitions["mc_return"])[rows])
    both = Transitions([log, log], torch.float64).sample(uniform(2, 20))
    assert torch.equal(both.mc_return, found.mc_return)


def test_on_a_cpu_the_log_is_not_copied():
    log = make_log(size=2000)
    tables = Transitions(log).tables
    for name, tensor in (("obs", tables.observation), ("reward", tables.reward)):
        assert tensor.data_ptr() == as_numpy(log.transitions[name]).__array_interface__["data"][0]
    copied = Transitions(log, torch.float64)
    assert copied.tables.observation.dtype == torch.float64


def test_final_observations_lie_beside_a_shared_log_and_behind_a_copied_one():
    log = make_log()
    shared, copied = Transitions(log), Transitions(log, torch.float64)
    assert len(shared.tables.finals) == log.episode_count
    assert len(copied.tables.finals) == 0
    assert len(copied.tables.observation) == len(log) + log.episode_count
    rows = torch.arange(len(log))[None]
    for one, two in zip(shared.batch(rows)[:5], copied.batch(rows)[:5], strict=True):
        assert torch.equal(one, two.float())
    assert len(shared) == len(copied) == len(log)


def test_what_is_kept_beside_the_log_is_little():
    size = 200_000
    generator = np.random.default_rng(0)
    seen = generator.normal(size=(size, 17)).astype(np.float32)
    done = generator.uniform(-1, 1, size=(size, 6)).astype(np.float32)
    cut = np.arange(size) % 1000 == 999
    finals = np.zeros((cut.sum(), 17), np.float32)
    reward = np.zeros(size, np.float32)
    log = Dataset.from_arrays(seen, done, reward, cut & False, cut, final_observations=finals)
    source = Transitions(with_actions(log, Box(-1, 1, (6,), np.float32)))
    raw = size * (17 + 6) * 4
    assert source.size_in_bytes < 1.15 * raw
    batch = source.sample(uniform(1, 256))
    assert batch.observation.shape == (1, 256, 17)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_drawing_takes_no_memory_that_grows():
    source, drawn = Transitions(make_log(size=50_000)), uniform(1, 256)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(50):
        source.sample(drawn)
    before = resident()
    for _ in range(500):
        source.sample(drawn)
    assert resident() - before < 5e6


# Numbers that are no numbers


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_told_with_its_row(name, bad):
    size = 70_000
    arrays = dict(
        observations=np.zeros((size, 1), np.float32),
        actions=np.zeros((size, 1), np.float32),
        rewards=np.zeros(size, np.float32),
        terminated=np.arange(size) % 100 == 99,
        next_observations=np.full((size, 1), 3, np.float32),
    )
    arrays[name][67_017] = bad
    log = with_actions(Dataset.from_arrays(**arrays), Box(-1, 1, (1,), np.float32))
    column = {"observations": "obs", "next_observations": "next_obs"}.get(name, name.rstrip("s"))
    with pytest.raises(
        InputError, match=rf"{column} is not a finite number at row 67017 .*670"
    ) as e:
        Transitions(log)
    assert "step 17" in str(e.value)


def test_a_final_observation_that_is_not_finite_is_told_with_its_episode():
    final = np.ma.masked_array(np.zeros((3, 1), np.float32))
    final[0], final[2] = np.ma.masked, np.nan
    zeros, over = np.zeros((6, 1), np.float32), np.arange(6) % 2 == 1
    log = Dataset.from_arrays(zeros, zeros, zeros[:, 0], over, final_observations=final)
    with pytest.raises(InputError, match=r"final observation of episode 2 is not a finite"):
        Transitions(with_actions(log, Box(-1, 1, (1,), np.float32)))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (Box(-np.inf, np.inf, (2,)), "action 0 lies between -inf and inf: give .* finite bounds"),
        (Box(np.array([-1, 2.0]), np.array([1.0, 2])), "action 1 lies between 2 and 2"),
        (MultiDiscrete([2, 2]), "MultiDiscrete space cannot be learnt"),
    ],
)
def test_actions_that_cannot_be_scaled_are_refused(space, told):
    with pytest.raises(InputError, match=told):
        Transitions(with_actions(make_log(), space))


def test_images_in_a_file_are_refused():
    log = make_log()
    spec = replace(log.spec, images=ImageFile("nowhere.npy"))
    with pytest.raises(InputError, match=r"these agents take vectors"):
        Transitions(log.derive("test", {}, spec=spec))


def test_observations_of_bits_are_numbers():
    bits = np.arange(8).reshape(4, 2) % 2
    log = Dataset.from_arrays(bits, np.zeros((4, 1), np.float32), np.zeros(4), [0, 1, 0, 1])
    spec = replace(
        log.spec, observation_space=MultiBinary(2), action_space=Box(-1, 1, (1,), np.float32)
    )
    found = Transitions(log.derive("test", {}, spec=spec)).batch(torch.arange(4)[None])
    assert found.observation[0].tolist() == bits.tolist()


# Rows


@given(st.integers(1, 2**40), st.floats(0, 1, exclude_max=True))
def test_a_row_is_never_outside(size, number):
    numbers = torch.tensor([[number, np.nextafter(1.0, 0)]], dtype=torch.float64)
    for sizes in (size, torch.tensor([size])):
        found = pick(numbers, sizes)
        assert found.min() >= 0
        assert found.max() < size
    assert pick(numbers, size).tolist() == pick(numbers, torch.tensor([size])).tolist()


def test_every_row_is_drawn_equally_often():
    rows = pick(uniform(1, 200_000), 7)
    assert (torch.bincount(rows[0]) / 200_000 - 1 / 7).abs().max() < 0.005


def test_a_shared_tensor_reads_read_only_memory_without_a_warning(recwarn):
    values = np.arange(3.0)
    values.flags.writeable = False
    tensor = shared_tensor(values, torch.float64, "cpu")
    assert tensor.data_ptr() == values.__array_interface__["data"][0]
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


# What is lived through


def live(buffer, steps, seed=0, success=False, failing=None):
    """Let every replica live through `steps`; what was put in, step by step."""
    generator = np.random.default_rng(seed)
    replicas, wide = buffer.replicas, buffer.widths
    now, rows = generator.normal(size=(replicas, wide[0])), []
    for _ in range(steps):
        after = generator.normal(size=now.shape)
        done = generator.integers(0, 3, replicas) if not wide[1] else None
        done = generator.uniform(-1, 1, (replicas, wide[1])) if done is None else done
        reward = generator.normal(size=replicas).round(3)
        if failing is not None:
            reward = np.where(generator.random(replicas) < 0.9, failing, reward)
        over = generator.random(replicas) < 0.15
        cut = (generator.random(replicas) < 0.1) & ~over
        told = generator.integers(0, 2, replicas) if success else None
        rows.append((now, done, reward, after, over, cut, told))
        buffer.add(*rows[-1])
        now = np.where((over | cut)[:, None], generator.normal(size=now.shape), after)
    return rows


def check_rows(buffer, rows):
    found = buffer.batch(torch.arange(len(buffer)).expand(buffer.replicas, -1))
    for place, name in enumerate(("observation", "action", "reward", "next_observation")):
        wanted = np.stack([row[place] for row in rows], axis=1)
        assert np.allclose(getattr(found, name), wanted), name
    assert np.array_equal(found.terminated, np.stack([row[4] for row in rows], axis=1))
    assert found.online.all()


@settings(max_examples=30)
@given(
    st.integers(1, 4), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2), st.integers(0, 99)
)
def test_what_is_put_in_comes_out(replicas, steps, capacity, action, seed):
    buffer = OnlineBuffer(replicas, 3, action, capacity, torch.float64)
    rows = live(buffer, steps, seed)
    assert len(buffer) == steps
    check_rows(buffer, rows)
    newest = buffer.newest(5)
    assert np.allclose(newest.reward, np.stack([r[2] for r in rows[-5:]], axis=1))
    assert buffer.capacity >= steps
    assert (buffer.version > 0) >= (steps > capacity)


def test_a_buffer_keeps_each_observation_once():
    buffer = OnlineBuffer(1, 50, 1, capacity=1000)
    live(buffer, 1000)
    assert buffer.observations.shape[1] < 1.6 * 1000  # a quarter of these steps end an episode
    straight = OnlineBuffer(1, 50, 1, capacity=1000)
    zeros = np.zeros((1, 50))
    for _ in range(1000):
        straight.add(zeros, np.zeros((1, 1)), [0.0], zeros, [False], [False])
    assert straight.observations.shape[1] == 1000 + 125 + 2
    assert straight.version == 0


def test_rows_that_were_written_are_not_changed_by_later_ones():
    buffer = OnlineBuffer(2, 3, 1, capacity=4)
    live(buffer, 20, seed=1)
    rows = torch.arange(20).expand(2, -1)
    before = buffer.batch(rows)
    live(buffer, 30, seed=2)
    for one, two in zip(before, buffer.batch(rows), strict=True):
        assert one is two is None or torch.equal(one, two)


def test_several_steps_at_once_are_what_single_ones_are():
    one, two = (OnlineBuffer(2, 3, 2, 7, torch.float64, discount=0.9) for _ in range(2))
    rows = live(one, 33, seed=4)
    columns = [np.stack([row[place] for row in rows], axis=1) for place in range(6)]
    for part in (slice(0, 5), slice(5, 6), slice(6, 33)):
        two.extend([column[:, part] for column in columns])
    for name in ("size", "begun", "slot", "ready"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    for a, b in zip(one.newest(33)[:5], two.newest(33)[:5], strict=True):
        assert torch.equal(a, b)
    done = int(one.ready.min())
    assert torch.equal(one.returns[:, :done], two.returns[:, :done])


def brute_returns(rows, replica, discount, failing, told):
    """Returns to go of ended episodes by their definition; NaN where the episode is under way."""
    returns, first = np.full(len(rows), np.nan), 0
    for step, row in enumerate(rows):
        if not (row[4][replica] or row[5][replica]):
            continue
        rewards = [r[2][replica] for r in rows[first : step + 1]]
        lost = all(r == failing for r in rewards) if told is None else not row[6][replica]
        for start in range(len(rewards)):
            sums = sum(discount**i * r for i, r in enumerate(rewards[start:]))
            failed = failing is not None and lost
            returns[first + start] = failing / (1 - discount) if failed else sums
        first = step + 1
    return returns


@settings(max_examples=20)
@given(st.integers(0, 999), st.booleans(), st.sampled_from([None, -1.0]))
def test_returns_are_there_once_the_episode_has_ended(seed, told, failing):
    discounts = (0.9, 0.5, 0.99)
    make = dict(discount=discounts, failure_reward=failing, capacity=10, dtype=torch.float64)
    buffer = OnlineBuffer(3, 2, 1, **make)
    rows = live(buffer, 50, seed, told and failing is not None, failing)
    for replica, discount in enumerate(discounts):
        wanted = brute_returns(rows, replica, discount, failing, rows[0][6])
        known = ~np.isnan(wanted)
        ready = int(buffer.ready[replica])
        assert ready == (np.flatnonzero(known)[-1] + 1 if known.any() else 0)
        assert np.allclose(buffer.returns[replica, :ready], wanted[:ready])
    if buffer.ready.all():
        drawn = buffer.sample(uniform(3, 400, seed))
        assert torch.isfinite(drawn.mc_return).all()
        last = [np.float64(rows[int(n) - 1][2][r]) for r, n in enumerate(buffer.ready)]
        assert all(value in drawn.reward[r] for r, value in enumerate(last))


def test_failure_is_what_the_agent_would_collect_for_ever():
    assert np.allclose(episode_returns(np.full(7, -5.0), 0.99, -5.0, None), -500)
    success = episode_returns(np.array([-5.0, -5, 5]), 0.99, -5.0, None)
    assert np.allclose(success, [-5 - 5 * 0.99 + 5 * 0.99**2, -5 + 5 * 0.99, 5])
    told = episode_returns(np.array([-5.0, -5, 5]), 0.99, -5.0, False)
    assert np.allclose(told, -500)
    assert np.allclose(episode_returns(np.array([1.0, 1]), 0.5, None, False), [1.5, 1])


@settings(max_examples=20)
@given(st.integers(0, 99), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.booleans())
def test_a_buffer_comes_back_from_its_chunks(seed, sizes, told):
    make = dict(discount=(0.9, 0.8), failure_reward=-1.0, capacity=8)
    buffer, again = (OnlineBuffer(2, 3, 1, **make) for _ in range(2))
    chunks = []
    for size in sizes:  # each chunk is taken when its rows are new, some episodes still open
        before = len(buffer)
        live(buffer, size, seed + before, told, -1.0)
        chunks.append(buffer.chunk(before, len(buffer)))
    for chunk in chunks:
        for values in chunk.values():
            values.flags.writeable = False
        again.restore(chunk)
    total = sum(sizes)
    for name in ("size", "begun", "slot", "ready"):
        assert np.array_equal(getattr(buffer, name), getattr(again, name)), name
    for one, two in zip(buffer.newest(total)[:5], again.newest(total)[:5], strict=True):
        assert torch.equal(one, two)
    for replica, ready in enumerate(buffer.ready):
        assert torch.equal(buffer.returns[replica, :ready], again.returns[replica, :ready])


def test_on_another_device_rows_are_written_by_tensors():
    buffer = OnlineBuffer(2, 3, 1, capacity=1, device="meta")  # shapes and types without numbers
    for _ in range(2):
        step = [np.ones((2, 3)), np.ones((2, 1)), np.ones(2), np.ones((2, 3)), [0, 1], [1, 0]]
        buffer.add(*step, np.array([1, 0]))
    batch = buffer.sample(uniform(2, 5).to("meta"))
    assert batch.observation.shape == (2, 5, 3)
    assert batch.observation.device.type == "meta"
    assert (len(buffer), buffer.slot.tolist()) == (2, [3, 3])


def test_success_may_be_told_of_the_last_step_only():
    make = dict(discount=0.5, failure_reward=0.0)
    buffer = OnlineBuffer(2, 1, 1, **make)
    ones = np.ones((2, 3, 1))
    ends = np.array([[False, False, True]] * 2)
    buffer.extend([ones, ones, ones[..., 0], ones, ends, ~ends & False], np.array([1, 0]))
    assert buffer.returns[:, 0].tolist() == [1.75, 0.0]


def test_an_empty_buffer_says_so():
    buffer = OnlineBuffer(2, 3, 1)
    with pytest.raises(InputError, match=r"nothing to draw for replica 0: the buffer is empty"):
        buffer.sample(uniform(2, 4))
    waiting = OnlineBuffer(2, 1, 1, discount=0.9)
    zero, no = np.zeros((2, 1)), np.zeros(2, bool)
    waiting.add(zero, zero, zero[:, 0], zero, no, np.array([True, False]))
    with pytest.raises(InputError, match=r"for replica 1: no episode has ended yet"):
        waiting.sample(uniform(2, 4))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, np.zeros((2, 4)), r"observation of a step has shape \(2, 4\).* takes \(2, 3\)"),
        (1, np.zeros((2, 2)), r"action of a step has shape \(2, 2\)"),
        (2, np.zeros(3), r"reward of a step has shape \(3,\)"),
        (3, np.zeros((1, 3)), r"next_observation of a step has shape \(1, 3\)"),
        (0, np.array([[0, 0, 0], [0, np.nan, 0]]), "observation of replica 1 is not a finite"),
        (1, np.array([[np.inf], [0]]), "action of replica 0 is not a finite"),
        (2, np.array([0, np.nan]), "reward of replica 1 is not a finite"),
    ],
)
def test_a_step_of_another_shape_or_without_numbers_is_refused(place, value, told):
    step = [np.zeros((2, 3)), np.zeros((2, 1)), np.zeros(2), np.zeros((2, 3)), [0, 0], [0, 0]]
    step[place] = value
    buffer = OnlineBuffer(2, 3, 1)
    with pytest.raises(InputError, match=told):
        buffer.add(*step)
    assert len(buffer) == 0


def test_a_buffer_needs_replicas_rows_and_discounting_for_failures():
    for replicas, capacity in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match=r"both must be 1 or more"):
            OnlineBuffer(replicas, 1, 1, capacity)
    for discount in (None, 1.0):
        with pytest.raises(InputError, match=r"pass discount= below 1"):
            OnlineBuffer(1, 1, 1, discount=discount, failure_reward=-1.0)


# Mixtures


def tagged(replicas=3):
    """A log whose rewards are 0 and a buffer whose rewards are 1."""
    log = make_log()
    log = log.with_columns(reward=pl.lit(0.0), mc_return=pl.lit(5.0))
    buffer = OnlineBuffer(replicas, 3, 2, discount=0.9)
    ones = np.ones(replicas)
    for _ in range(9):
        seen = np.full((replicas, 3), 7.0)
        buffer.add(seen, seen[:, :2] * 0, ones, seen, ones > 0, ones < 0)
    return Transitions(log), buffer


@settings(max_examples=40)
@given(st.floats(0, 1), st.integers(1, 300))
def test_a_mixture_has_exactly_its_share_of_offline_rows_and_tags_them(share, size):
    offline, online = tagged()
    source = Mixed(offline, online, share)
    wanted = int(np.floor(share * size + 0.5))
    for seed in range(3):
        batch = source.sample(uniform(3, size, seed))
        fresh = batch.reward == 1
        if batch.online is None:
            batch = batch._replace(online=torch.zeros_like(fresh))
        assert torch.equal(fresh, batch.online)
        assert ((~batch.online).sum(1) == wanted).all()
        assert batch.observation.shape == (3, size, 3)
        assert torch.equal(batch.mc_return == 5, ~fresh)


def test_with_share_zero_no_offline_row_is_ever_drawn():
    class Refusing:
        def sample(self, uniform):
            raise AssertionError("an offline row was drawn")

    _, online = tagged()
    for seed in range(50):
        assert mixed(Refusing(), online, 0.0).sample(uniform(3, 64, seed)).online.all()


def test_with_half_exactly_half_of_each_minibatch_is_offline():
    offline, online = tagged()
    batch = Mixed(offline, online, 0.5).sample(uniform(3, 1024))
    assert (batch.online.sum(1) == 512).all()
    assert (batch.online.view(3, 4, 256).sum(-1) == 128).all()


def test_with_share_one_the_online_source_may_be_empty():
    offline, _ = tagged()
    batch = Mixed(offline, OnlineBuffer(3, 3, 2), 1.0).sample(uniform(3, 16))
    assert not batch.online.any()


@given(st.floats(0.05, 0.95), st.integers(2, 64))
def test_the_rows_of_a_mixture_are_those_that_each_source_would_give(share, size):
    offline, online = tagged()
    drawn = uniform(3, size)
    source = Mixed(offline, online, share)
    first, rest = source.counts(size)
    assert first + rest == size
    batch = source.sample(drawn)
    if first and rest:
        kept = offline.sample(drawn[:, :first]).observation[..., 0]
        assert torch.equal(batch.observation[..., 0][~batch.online].view(3, first), kept)


def test_returns_are_dropped_where_one_source_has_none():
    offline, _ = tagged()
    bare = OnlineBuffer(3, 3, 2)
    live(bare, 5)
    assert Mixed(offline, bare, 0.5).sample(uniform(3, 8)).mc_return is None


def test_a_share_beyond_one_is_refused():
    offline, online = tagged()
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"it lies between 0 and 1"):
            Mixed(offline, online, share)
