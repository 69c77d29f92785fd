"""Returns ahead, n steps, windows, and one scale."""

import json

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ScoreReference, Spec
from offrl_wb.data.views import (
    Statistics,
    add_monte_carlo_returns,
    continuous_columns,
    denormalise,
    failed_episodes,
    monte_carlo_returns,
    n_step,
    normalise,
    observation_moments,
    returns_to_go,
    reward_numbers,
    rows_ahead,
    scaled_space,
    windows,
)

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
DISCOUNT = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def log(lengths, seed=0, inside=0.0, unknown=False, float32=False, **more) -> Dataset:
    """Episodes of these lengths; a share `inside` of rows is terminated wherever it is."""
    generator = np.random.default_rng(seed)
    size, ends = sum(lengths), np.cumsum(lengths) - 1
    ended = generator.random(len(lengths)) < 0.5
    terminated = generator.random(size) < inside
    terminated[ends] = ended
    truncated = np.zeros(size, dtype=bool)
    truncated[ends] = ~ended
    final = generator.normal(size=(len(lengths), 2))
    if unknown:
        final = np.ma.masked_array(final, np.repeat(ended[:, None], 2, axis=1))
    kind = np.float32 if float32 else np.float64
    rows = dict(
        observations=(5 + 3 * generator.normal(size=(size, 2))).astype(kind),
        actions=generator.normal(size=(size, 1)).astype(kind),
        rewards=generator.normal(size=size).astype(kind),
        terminated=terminated,
        truncated=truncated,
        episode=np.repeat(np.arange(len(lengths)), lengths),
        final_observations=final,
    )
    return Dataset.from_arrays(**(rows | more))


def rerun(made: Dataset, given: Dataset) -> Dataset:
    """What the provenance's Python makes, starting from `given`."""
    names: dict = {"start": given}
    exec(made.provenance.as_python({given.provenance.hash: "start"}), names)
    return names["dataset"]


# Sums ahead


@given(LENGTHS, DISCOUNT, st.sampled_from([0.0, 0.3]))
@settings(max_examples=40)
def test_return_to_go_is_the_loop_from_behind(lengths, discount, inside):
    data = log(lengths, inside=inside)
    arrays, expected = data.arrays(), np.zeros(len(data))
    ends = set(data.ends.tolist())
    for row in reversed(range(len(data))):
        goes_on = row not in ends and not arrays.terminated[row]
        later = discount * expected[row + 1] if goes_on else 0.0
        expected[row] = arrays.rewards[row] + later
    np.testing.assert_allclose(returns_to_go(data, discount), expected, rtol=1e-12, atol=1e-12)


@given(LENGTHS, DISCOUNT)
@settings(max_examples=40)
def test_the_first_return_to_go_is_the_episodes_return(lengths, discount):
    data = log(lengths)
    first = returns_to_go(data, discount)[data.starts]
    np.testing.assert_allclose(first, data.returns(discount), rtol=1e-12, atol=1e-12)


def test_a_reward_that_is_no_number_spoils_only_what_it_is_part_of():
    rewards = np.ones(9)
    rewards[[4, 5]] = np.nan, np.inf
    data = log([3, 3, 3], rewards=rewards)
    assert np.isfinite(returns_to_go(data, 0.0)).tolist() == [True] * 4 + [False] * 2 + [True] * 3
    assert np.isfinite(returns_to_go(data, 1.0)).tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_long_episodes_are_summed_without_losing_digits():
    data = log([200_000], rewards=np.full(200_000, 0.1))
    exact = 0.1 * np.arange(200_000, 0, -1)
    assert np.abs(returns_to_go(data, 1.0) / exact - 1).max() < 1e-13


def test_the_discount_comes_from_the_spec_unless_it_is_given():
    spec = Spec(
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        spaces.Box(-np.inf, np.inf, (1,), np.float64),
        0.5,
    )
    data = log([3], rewards=np.ones(3), spec=spec)
    assert returns_to_go(data).tolist() == [1.75, 1.5, 1]
    assert returns_to_go(data, 1.0).tolist() == [3, 2, 1]
    with pytest.raises(InputError, match="pass discount="):
        returns_to_go(log([3]))
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            returns_to_go(data, wrong)


# Monte-Carlo returns


def maze() -> Dataset:
    """A failure of three steps, a success at the last of three."""
    return log([3, 3], rewards=np.array([-5.0, -5, -5, -5, -5, 0]))


def test_a_failure_is_worth_failing_for_ever():
    returns = monte_carlo_returns(maze(), 0.99, failure_reward=-5.0)
    np.testing.assert_allclose(returns[:3], -500)
    np.testing.assert_allclose(returns[3:], [-9.95, -5, 0])


def test_without_the_rule_returns_are_returns_to_go():
    np.testing.assert_array_equal(monte_carlo_returns(maze(), 0.9), returns_to_go(maze(), 0.9))


def test_success_may_be_a_column_or_flags():
    data = maze().with_episode_columns(success=np.array([1, 0]))
    for success in ("success", np.array([True, False]), np.array([1, 0])):
        returns = monte_carlo_returns(data, 0.9, -5.0, success)
        np.testing.assert_allclose(returns, [-13.55, -9.5, -5, -50, -50, -50])


def test_float32_rewards_meet_a_failure_reward_of_more_digits():
    data = log([2], rewards=np.full(2, -0.1), float32=True)
    assert failed_episodes(data, -0.1).all()


def test_the_rule_is_refused_where_it_has_no_meaning():
    data = maze().with_episode_columns(success=pl.Series([None, True]))
    for call, words in (
        (lambda: monte_carlo_returns(data, 1.0, -5.0), "no finite return"),
        (lambda: monte_carlo_returns(data, 0.9, None, "success"), "failure_reward="),
        (lambda: monte_carlo_returns(data, 0.9, -5.0, "reached"), "no column 'reached'"),
        (lambda: monte_carlo_returns(data, 0.9, -5.0, "success"), "null for episode 0"),
        (lambda: monte_carlo_returns(data, 0.9, -5.0, np.array([0.5, 1])), "2 flags"),
        (lambda: monte_carlo_returns(data, 0.9, -5.0, np.array([1])), "2 flags"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_monte_carlo_returns_travel_as_a_column_that_can_be_made_again():
    data = log([3, 3], rewards=np.array([-5.0, -5, -5, -5, -5, 0]), float32=True)
    made = add_monte_carlo_returns(data, 0.99, failure_reward=-5.0)
    assert made.transitions["mc_return"].dtype == made.transitions["reward"].dtype
    assert "mc_return" not in data.transitions.columns
    assert rerun(made, data).content_hash == made.content_hash


# n steps


@given(LENGTHS, st.integers(1, 12), DISCOUNT, st.sampled_from([0.0, 0.3]))
@settings(max_examples=40)
def test_n_steps_are_what_the_definition_says(lengths, n, discount, inside):
    data = log(lengths, inside=inside)
    arrays, view = data.arrays(), n_step(data, n, discount)
    end = np.repeat(data.ends, data.lengths)
    for row in range(len(data)):
        total, taken = 0.0, 0
        while True:
            last = row + taken
            total += discount**taken * arrays.rewards[last]
            taken += 1
            if taken == n or last == end[row] or arrays.terminated[last]:
                break
        assert view.steps[row] == taken
        assert view.last[row] == last
        assert view.rewards[row] == pytest.approx(total, rel=1e-12, abs=1e-12)
        assert view.discounts[row] == (0 if arrays.terminated[last] else discount**taken)
        np.testing.assert_array_equal(view.next_observations[row], arrays.next_observations[last])
    assert view.known.all()


def test_targets_of_an_exact_value_function_do_not_depend_on_n():
    """On a deterministic chain with its true values every n gives the same target."""
    data = log([8], rewards=np.arange(8.0), observations=np.arange(8.0)[:, None].repeat(2, 1))
    values = np.append(returns_to_go(data, 0.9), 0)
    for n in range(1, 9):
        view = n_step(data, n, 0.9)
        ahead = np.where(view.last == 7, 8, view.last + 1)
        np.testing.assert_allclose(view.rewards + 0.9**view.steps * values[ahead], values[:-1])


def test_bootstrapping_from_what_was_never_seen_is_marked():
    final = np.ma.masked_all((2, 2))
    terminated = np.array([False] * 5 + [True])
    data = log([3, 3], terminated=terminated, truncated=np.zeros(6, bool), final_observations=final)
    assert n_step(data, 2, 0.9).known.tolist() == [True, False, False, True, True, True]


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="one step or more"):
        n_step(log([3]), 0, 0.9)


# Windows


def windows_by_hand(data, length, stride, padding, anchor, whole):
    """Rows and masks of all windows, episode by episode."""
    found = []
    for start, size in zip(data.starts.tolist(), data.lengths.tolist(), strict=True):
        here = []
        for place in range(0, size, stride):
            if anchor == "start":
                here.append(range(start + place, start + min(size, place + length)))
            else:
                end = start + size - place
                here.insert(0, range(max(start, end - length), end))
        found += [list(rows) for rows in here if not whole or len(rows) == length]
    pads = [[None] * (length - len(rows)) for rows in found]
    return [p + r if padding == "left" else r + p for p, r in zip(pads, found, strict=True)]


@given(
    LENGTHS,
    st.integers(1, 6),
    st.integers(1, 7),
    st.sampled_from(["left", "right"]),
    st.sampled_from(["start", "end"]),
    st.booleans(),
)
def test_windows_are_what_the_loop_over_episodes_gives(
    lengths, length, stride, padding, anchor, whole
):
    data = log(lengths)
    view = windows(data, length, stride, padding, anchor, whole)
    expected = windows_by_hand(data, length, stride, padding, anchor, whole)
    assert len(view) == len(expected)
    shown = np.where(view.mask, view.rows, -1).tolist()
    assert shown == [[-1 if row is None else row for row in rows] for rows in expected]
    assert view.rows.shape == view.mask.shape == view.timesteps.shape == (len(expected), length)
    if expected:
        episode = np.repeat(np.arange(data.episode_count), data.lengths)[view.rows]
        assert (episode == episode[:, :1]).all()  # pads too point into the same episode
        steps = view.gather(data.transitions["step"].to_numpy(), fill=0)
        np.testing.assert_array_equal(view.timesteps, steps)


@given(LENGTHS, st.integers(1, 6), st.sampled_from(["start", "end"]))
def test_windows_side_by_side_show_every_row_once(lengths, length, anchor):
    data = log(lengths)
    view = windows(data, length, stride=length, anchor=anchor)
    assert sorted(view.rows[view.mask].tolist()) == list(range(len(data)))


def test_a_batch_of_windows_gathers_arrays_and_tensors_alike():
    torch = pytest.importorskip("torch")
    data = log([5, 2], float32=True)
    batch = windows(data, 3).take(np.array([4, 0, 6]))
    array = batch.gather(data.arrays().actions, fill=-10)
    tensor = batch.gather(data.tensors().actions, fill=-10)
    assert isinstance(tensor, torch.Tensor)
    assert array.shape == (3, 3, 1)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert (array[~batch.mask] == -10).all()
    assert len(windows(data, 3).take(slice(2))) == 2


def test_junk_beside_a_window_cannot_reach_it():
    data, other = log([4, 4]), log([4, 4], seed=1)
    view = windows(data, 6, anchor="end").take(slice(4))  # windows of the first episode alone
    mixed = np.concatenate([data.arrays().observations[:4], other.arrays().observations[4:]])
    np.testing.assert_array_equal(view.gather(data.arrays().observations), view.gather(mixed))


def test_windows_that_mean_nothing_are_refused():
    data = log([3])
    for call, words in (
        (lambda: windows(data, 0), "length of windows is 0"),
        (lambda: windows(data, 2, 0), "stride of windows is 0"),
        (lambda: windows(data, 2, padding="middle"), "choose 'left' or 'right'"),
        (lambda: windows(data, 2, anchor="middle"), "choose 'start' or 'end'"),
    ):
        with pytest.raises(InputError, match=words):
            call()


# One scale


@given(LENGTHS, st.booleans(), st.booleans())
def test_moments_are_those_of_observations_and_next_observations(lengths, unknown, torn):
    data = log(lengths, unknown=unknown)
    if torn:  # an explicit column of next observations
        ahead = data.arrays().next_observations + np.random.default_rng(1).normal(size=2)
        fields = dict(observations=data.arrays().observations, next_observations=ahead)
        data = log(lengths, **(fields | {"final_observations": None}))
    arrays, rows = data.arrays(), np.ones(len(data), dtype=bool)
    if "next_obs" not in data.transitions.columns:
        rows[data.ends] = data.episodes["final_obs"].is_not_null().to_numpy()
    both = np.concatenate([arrays.observations, arrays.next_observations[rows]])
    mean, deviation = observation_moments(data)
    np.testing.assert_allclose(mean, both.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(deviation, both.std(axis=0), rtol=1e-8, atol=1e-12)


@given(
    LENGTHS,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "standard", "return_range", (10.0, -5.0)]),
    st.booleans(),
)
@settings(max_examples=50)
def test_what_was_normalised_comes_back(lengths, float32, unknown, rewards, observations):
    data = log([4, 3, *lengths], float32=float32, unknown=unknown)
    made, numbers = normalise(data, observations=observations, rewards=rewards)
    back = numbers.invert(made)
    close = dict(rtol=1e-4, atol=1e-4) if float32 else dict(rtol=1e-9, atol=1e-9)
    for before, after in zip(data.arrays(), back.arrays(), strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_allclose(after, before, **close)
    known = [table.episodes["final_obs"].is_null().to_list() for table in (data, made, back)]
    assert known[0] == known[1] == known[2]


def test_a_normalised_log_has_mean_zero_and_deviation_one():
    data = log([50] * 20)
    arrays = normalise(data, rewards="standard", epsilon=0.0).dataset.arrays()
    both = np.concatenate([arrays.observations, arrays.next_observations])
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(both.std(axis=0), 1, rtol=1e-10)
    np.testing.assert_allclose([arrays.rewards.mean(), arrays.rewards.std()], [0, 1], atol=1e-10)


def test_epsilon_is_added_to_the_deviation():
    data = log([50])
    _, deviation = observation_moments(data)
    scale = normalise(data).statistics.observation_scale
    np.testing.assert_allclose(scale, deviation + 1e-3, rtol=1e-12)


def test_returns_span_a_thousand():
    made = normalise(log([5] * 8), observations=False, rewards="return_range").dataset
    assert np.ptp(made.returns()) == pytest.approx(1000)
    assert np.array_equal(made.arrays().observations, log([5] * 8).arrays().observations)


def test_next_observations_of_a_broken_chain_move_too():
    data = log([4])
    torn = log([4], next_observations=data.arrays().next_observations + 1, final_observations=None)
    made, numbers = normalise(torn)
    assert "next_obs" in made.transitions.columns
    np.testing.assert_allclose(
        made.arrays().next_observations,
        numbers.apply_observations(torn.arrays().next_observations),
    )


def test_statistics_go_through_json_and_onto_other_logs():
    train, other = log([9, 9]), log([5, 4], seed=3)
    numbers = normalise(train, rewards="standard").statistics
    assert Statistics.from_json(json.loads(json.dumps(numbers.to_json()))) == numbers
    made = numbers.apply(other)
    np.testing.assert_allclose(
        made.arrays().observations, numbers.apply_observations(other.arrays().observations)
    )
    np.testing.assert_allclose(made.arrays().rewards, numbers.apply_rewards(other.arrays().rewards))
    assert normalise(other, statistics=numbers.to_json()).dataset.content_hash == made.content_hash


@pytest.mark.parametrize("rewards", [None, "standard", "return_range", (10, -5)])
def test_normalising_is_recorded_as_python_that_does_it_again(rewards):
    data = log([4, 5, 6], float32=True)
    made, numbers = normalise(data, rewards=rewards)
    assert rerun(made, data).content_hash == made.content_hash
    assert Statistics.from_json(made.provenance.outcome["statistics"]) == numbers
    back = denormalise(made, numbers)
    assert rerun(back, made).content_hash == back.content_hash
    applied = numbers.apply(data)
    assert rerun(applied, data).content_hash == applied.content_hash


def test_the_spec_moves_with_the_data():
    spec = Spec(
        spaces.Box(np.array([-20, -np.inf]), np.array([30, 40]), dtype=np.float64),
        spaces.Box(-np.inf, np.inf, (1,), np.float64),
        score=ScoreReference(-10, 20, "paper"),
    )
    data = log([9, 9], spec=spec)
    made, numbers = normalise(data, rewards=(2.0, 0.0))
    low = numbers.apply_observations(np.array([-20.0, 0.0]))[0]
    box = made.spec.observation_space
    assert box.low[0] == pytest.approx(low)
    assert box.low[1] == -np.inf
    assert made.spec.score == ScoreReference(-20, 40, "paper")
    back = numbers.invert(made).spec
    np.testing.assert_allclose(back.observation_space.high, [30, 40])
    assert back.score == spec.score
    for shifted in ((2.0, 1.0), (-1.0, 0.0)):  # an offset counts by step; a sign turns the ends
        assert normalise(data, rewards=shifted).dataset.spec.score is None
    assert normalise(data).dataset.spec.score == spec.score


def test_categories_among_named_parts_are_left_alone():
    space = spaces.Dict(
        {
            "gear": spaces.Discrete(4),
            "place": spaces.Box(-1, 1, (2,), np.float32),
            "pair": spaces.Tuple((spaces.MultiBinary(1), spaces.Box(0, 9, (1,), np.int64))),
        }
    )
    assert continuous_columns(space).tolist() == [False, False, False, True, True]
    moved = scaled_space(space, np.zeros(5), np.full(5, 2.0))
    assert moved["place"].high.tolist() == [2, 2]
    assert moved["gear"] == space["gear"]
    assert moved["pair"] == space["pair"]
    spec = Spec(space, spaces.Box(-9, 9, (1,), np.float64))
    data = log([4], observations=np.arange(20.0).reshape(4, 5), final_observations=np.ones((1, 5)))
    made = normalise(Dataset(data.transitions, data.episodes, spec, data.origin)).dataset
    np.testing.assert_array_equal(
        made.arrays().observations[:, :3], data.arrays().observations[:, :3]
    )
    assert np.abs(made.arrays().observations[:, 3:]).max() < 3


def test_what_cannot_be_normalised_says_why():
    whole = log([3], observations=np.arange(3), final_observations=np.array([3]))
    observations = np.ones((3, 2))
    observations[1, 1] = np.nan
    flat = log([3], rewards=np.ones(3))
    numbers = normalise(log([3])).statistics
    noted = add_monte_carlo_returns(log([3]), 0.9)
    wide = log([3], observations=np.ones((3, 3)), final_observations=np.ones((1, 3)))
    for call, words in (
        (lambda: normalise(whole), "only vectors of floats"),
        (lambda: normalise(log([3], observations=observations)), "observation 1 is not a finite"),
        (lambda: normalise(flat, rewards="standard"), "scaled by inf"),
        (lambda: normalise(flat, rewards="return_range"), "scaled by inf"),
        (lambda: normalise(flat, rewards=(0, 1)), "scaled by 0"),
        (lambda: normalise(flat, rewards="range"), "choose 'standard'"),
        (lambda: normalise(flat, rewards=3), "choose 'standard'"),
        (lambda: normalise(flat, rewards="standard", statistics=numbers), "pass them alone"),
        (lambda: normalise(wide, statistics=numbers), "observations have 3 numbers"),
        (lambda: numbers.invert(wide), "observations have 3 numbers"),
        (lambda: normalise(noted, rewards=(2, 0)), "mc_return"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    assert normalise(noted).dataset.transitions["mc_return"].equals(noted.transitions["mc_return"])


@pytest.mark.parametrize(
    "found",
    [
        {"reward_scale": 0.0},
        {"reward_shift": float("inf")},
        {"observation_mean": [0.0], "observation_scale": [0.0]},
        {"observation_mean": [0.0, 1.0], "observation_scale": [1.0]},
        {"observation_mean": [0.0]},
        {"mean": 1},
        {"reward_scale": "x"},
    ],
)
def test_statistics_that_are_none_are_refused(found):
    with pytest.raises(InputError, match="no statistics"):
        Statistics.from_json(found)


def test_arrays_of_an_environment_are_put_on_the_same_scale():
    numbers = Statistics((1.0, 2.0), (2.0, 4.0))
    assert numbers.apply_observations(np.array([3, 2])).tolist() == [1, 0]
    batch = np.zeros((2, 3, 2), dtype=np.float32)
    assert numbers.apply_observations(batch).dtype == np.float32
    assert numbers.apply_observations(batch).shape == batch.shape
    same = Statistics()
    assert same.apply_observations(batch) is batch
    assert same.invert_observations(batch) is batch


def test_numbers_of_rewards_do_not_depend_on_the_order_of_episodes():
    data = log([5, 3, 7])
    turned = data.select([2, 0, 1])
    for kind in ("standard", "return_range"):
        np.testing.assert_allclose(reward_numbers(data, kind), reward_numbers(turned, kind))
    assert rows_ahead(turned).max() == 6


def test_an_unknown_end_stays_unknown_when_next_observations_are_written_out():
    data = log([4, 4], seed=3, unknown=False)
    ends = np.ma.masked_all((2, 2))
    data = Dataset.from_arrays(*data.arrays()[:3], np.zeros(8), np.arange(8) % 4 == 3,
                               final_observations=ends)  # fmt: skip
    holed = data.filter(pl.col("step") != 1)
    assert "next_obs" in holed.transitions.columns
    assert n_step(holed, 1, 0.9).known.tolist() == [True, True, False] * 2
    known = holed.arrays()
    seen = np.concatenate([known.observations, np.delete(known.next_observations, [2, 5], axis=0)])
    mean, deviation = observation_moments(holed)
    assert np.allclose(mean, seen.mean(axis=0))
    assert np.allclose(deviation, seen.std(axis=0))


def test_n_steps_do_not_jump_over_rows_that_were_left_out():
    data = log([6], rewards=np.arange(6.0))
    whole, holed = data.arrays(), data.filter(pl.col("step") != 2)
    view = n_step(holed, 3, 0.5)
    assert view.steps.tolist() == [2, 1, 3, 2, 1]
    assert view.rewards[0] == whole.rewards[0] + 0.5 * whole.rewards[1]
    assert np.array_equal(view.next_observations[0], whole.observations[2])


def test_whole_numbered_rewards_are_not_rounded():
    data = log([4], rewards=np.ones(4, dtype=int))
    column = add_monte_carlo_returns(data, 0.5).transitions["mc_return"]
    assert column.to_list() == [1.875, 1.75, 1.5, 1]
    data = log([4], rewards=np.arange(4))
    assert np.isclose(normalise(data, rewards="standard").dataset.arrays().rewards.std(), 1)
    assert not failed_episodes(log([4], rewards=np.zeros(4, dtype=int)), -0.5).any()


def test_numbers_of_other_kinds_are_taken_or_refused():
    data = log([4])
    assert normalise(data, rewards=np.array([2.0, 0.5])).statistics.reward_scale == 2
    for call in (lambda: normalise(data, statistics=[1]), lambda: windows(data, 2.5)):
        with pytest.raises(InputError):
            call()
