"""The dataset type: its invariants, whatever the data look like."""

from dataclasses import FrozenInstanceError

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset, concatenate, gather_episodes, widened
from offrl_wb.data.spec import ImageFile, ScoreReference, Spec
from tests.made_logs import log

FEW = settings(max_examples=25, deadline=None)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=7)


@FEW
@given(LENGTHS, st.booleans(), st.booleans())
def test_arrays_give_back_what_came_in(lengths: list[int], discrete: bool, terminal: bool) -> None:
    made = log(lengths, discrete=discrete, terminal=terminal)
    arrays = made.arrays()
    assert made.lengths.tolist() == lengths
    assert made.starts.tolist() == np.cumsum([0, *lengths[:-1]]).tolist()
    assert "next_obs" not in made.transitions.columns
    inside = np.ones(len(made), dtype=bool)
    inside[made.ends] = False
    where = np.flatnonzero(inside)
    assert np.array_equal(arrays.next_observations[where], arrays.observations[where + 1])
    assert arrays.terminated.sum() == (len(lengths) if terminal else 0)


@FEW
@given(LENGTHS, st.data())
def test_selected_episodes_are_whole_and_in_order(lengths: list[int], data: st.DataObject) -> None:
    made = log(lengths)
    picks = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    chosen = made.select(picks)
    assert chosen.lengths.tolist() == [lengths[p] for p in picks]
    rows = np.concatenate([np.arange(made.starts[p], made.ends[p] + 1) for p in picks])
    for mine, theirs in zip(chosen.arrays(), made.arrays(), strict=True):
        assert np.array_equal(mine, theirs[rows])
    assert chosen.episodes["task"].to_list() == made.episodes["task"][picks].to_list()


@FEW
@given(LENGTHS, st.data())
def test_filtered_rows_keep_their_next_observation(lengths: list[int], data: st.DataObject) -> None:
    made = log(lengths)
    size = len(made)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    marked = made.with_columns(keep=keep)
    if not keep.any():
        with pytest.raises(InputError, match="no transition is left"):
            marked.filter(pl.col("keep"))
        return
    left = marked.filter(pl.col("keep"))
    for mine, theirs in zip(left.arrays()[:5], made.arrays()[:5], strict=True):
        assert np.array_equal(mine, theirs[keep])
    flags = left.transitions["truncated"].to_numpy()
    assert flags[left.ends].all()


@FEW
@given(LENGTHS, LENGTHS)
def test_concatenation_keeps_everything(first: list[int], second: list[int]) -> None:
    one, two = log(first), log(second, seed=1).with_columns(label=pl.col("step"))
    both = concatenate([one, two])
    assert both.lengths.tolist() == first + second
    assert both.transitions["label"].null_count() == sum(first)
    for joined, a, b in zip(both.arrays(), one.arrays(), two.arrays(), strict=True):
        assert np.array_equal(joined, np.concatenate([a, b]))


@FEW
@given(LENGTHS, st.integers(0, 5))
def test_a_split_is_a_partition_by_episode(lengths: list[int], seed: int) -> None:
    made = log(lengths).with_episode_columns(mine=pl.col("episode"))
    if len(lengths) < 2:
        with pytest.raises(InputError, match="holds none"):
            made.split([0.5, 0.5], seed=seed)
        return
    parts = made.split([0.5, 0.5], seed=seed)
    numbers = np.concatenate([p.episodes["mine"].to_numpy() for p in parts])
    assert sorted(numbers) == list(range(len(lengths)))
    assert parts[0].content_hash == made.split([0.5, 0.5], seed=seed)[0].content_hash


@FEW
@given(LENGTHS, st.sampled_from([1.0, 0.9, 0.0]))
def test_returns_are_discounted_sums(lengths: list[int], discount: float) -> None:
    made = log(lengths)
    rewards = np.split(made.arrays().rewards, made.starts[1:])
    slow = [sum(discount**k * r for k, r in enumerate(episode)) for episode in rewards]
    assert np.allclose(made.returns(discount), slow)


def recipe(made: Dataset, **names: object) -> Dataset:
    """The dataset that its provenance's Python makes."""
    space: dict = dict(names)
    exec(made.provenance.as_python(), space)
    return space["dataset"]


def test_every_operation_can_be_run_again_from_its_provenance() -> None:
    made = log([3, 4, 5, 2])
    goals = pl.DataFrame({"task": ["t0"], "goal": [1.5]})
    for changed in (
        made.select([2, 0, 2]),
        made.filter(pl.col("step") > 0),
        made.filter_episodes(pl.col("length") > 2),
        made.with_columns(reward=pl.col("reward") * 2),
        made.with_episode_columns(success=pl.col("return") > 0),
        made.label("again"),
        made.split([0.5, 0.25], seed=3)[1],
        concatenate([made, made.label("x")]).filter(pl.col("step") < 3),
    ):
        again = recipe(changed, given_0=made)
        assert again.content_hash == changed.content_hash
        assert again.provenance.hash == changed.provenance.hash
        assert again.provenance.hash != made.provenance.hash
    joined = made.join(goals, on="task")
    assert recipe(joined, given_0=made, frame=goals).content_hash == joined.content_hash
    assert "# give polars.DataFrame" in joined.provenance.as_python()


def test_joins_add_columns_and_never_rows() -> None:
    made = log([3, 4])
    by_row = pl.DataFrame({"episode": [0, 1], "step": [1, 2], "note": ["a", "b"]})
    assert made.join(by_row, on=["episode", "step"]).transitions["note"].null_count() == 5
    inner = made.join(by_row, on=["episode", "step"], how="inner")
    assert inner.transitions["note"].to_list() == ["a", "b"]
    assert np.array_equal(inner.arrays().next_observations, made.arrays().next_observations[[1, 5]])
    by_episode = pl.DataFrame({"episode": [1], "goal": [7.0]})
    assert made.join(by_episode, on="episode").episodes["goal"].to_list() == [None, 7.0]
    assert made.join(by_episode, on="episode", how="inner").lengths.tolist() == [4]
    with pytest.raises(InputError, match="not unique"):
        made.join(pl.concat([by_episode, by_episode]), on="episode")
    with pytest.raises(InputError, match="cannot join on"):
        made.join(by_episode, on="nowhere")


def test_nothing_changes_in_place() -> None:
    made = log([3, 4])
    before = made.content_hash
    with pytest.raises(ValueError, match="read-only"):
        made.arrays().observations[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        made.arrays().next_observations[0] = 0
    with pytest.raises(FrozenInstanceError):
        made.spec = None  # type: ignore[misc,assignment]
    made.with_columns(reward=pl.col("reward") * 0)
    made.tensors().rewards.zero_()
    assert Dataset(made.transitions, made.episodes, made.spec, made.origin).content_hash == before


def test_the_callers_arrays_stay_the_callers() -> None:
    seen = np.zeros((4, 2), dtype=np.float32)
    made = Dataset.from_arrays(seen, np.zeros(4, int), np.zeros(4), [0, 0, 0, 1])
    seen[:] = 5
    assert made.arrays().observations.max() == 0


def test_tensors_are_contiguous_writable_and_float32() -> None:
    torch = pytest.importorskip("torch")
    made = log([3, 4], discrete=True)
    tensors = made.tensors()
    for tensor, array in zip(tensors, made.arrays(), strict=True):
        assert tensor.is_contiguous()
        assert np.allclose(tensor.numpy(), array)
    assert tensors.rewards.dtype == torch.float32
    assert tensors.actions.dtype == torch.int64
    assert tensors.terminated.dtype == torch.bool
    tensors.observations[0] = 9
    assert made.arrays().observations[0, 0] != 9


def test_a_broken_chain_is_kept_as_it_is() -> None:
    seen, following = np.arange(4), np.array([1, 7, 3, 4])
    made = Dataset.from_arrays(seen, seen, np.zeros(4), [0, 0, 0, 1], next_observations=following)
    assert made.transitions["next_obs"].to_list() == [1, 7, 3, 4]
    assert made.arrays().next_observations.tolist() == [1, 7, 3, 4]
    whole = Dataset.from_arrays(seen, seen, np.zeros(4), [0, 0, 0, 1], next_observations=seen + 1)
    both = concatenate([whole, made])
    assert both.arrays().next_observations.tolist() == [1, 2, 3, 4, 1, 7, 3, 4]


def test_unknown_observations_that_repeat_count_as_a_chain() -> None:
    seen = np.array([[0.0], [np.nan], [2.0]])
    following = np.array([[np.nan], [2.0], [3.0]])
    made = Dataset.from_arrays(
        seen, np.zeros(3, int), np.zeros(3), [0, 0, 1], next_observations=following
    )
    assert "next_obs" not in made.transitions.columns


def test_a_log_without_next_observations_gives_up_last_rows_of_cut_episodes() -> None:
    made = Dataset.from_arrays(
        np.arange(7),
        np.zeros(7, int),
        np.arange(7.0),
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
    )
    assert made.transitions["obs"].to_list() == [0, 1, 2, 3, 4]
    assert made.episodes["final_obs"].to_list() == [None, 5]
    assert made.transitions["truncated"].to_list() == [False, False, False, False, True]
    assert made.provenance.outcome == {"rows_given_up": 2}
    with pytest.raises(InputError, match="every episode is one row long"):
        Dataset.from_arrays([1, 2], [0, 0], [0.0, 0.0], [0, 0], [1, 1])


def test_an_unknown_final_observation_is_given_as_the_last_one() -> None:
    made = Dataset.from_arrays(np.arange(3), np.zeros(3, int), np.zeros(3), [0, 0, 1])
    assert made.arrays().next_observations.tolist() == [1, 2, 2]
    assert made.select([0, 0]).episodes["final_obs"].null_count() == 2


def test_named_parts_are_flattened_and_given_back() -> None:
    space = spaces.Dict(
        {
            "position": spaces.Box(-1, 1, (2,), dtype=np.float32),
            "speed": spaces.Box(-9, 9, (), dtype=np.float32),
        }
    )
    seen = {"speed": np.arange(4.0), "position": np.ones((4, 2))}
    made = Dataset.from_arrays(
        seen, np.zeros(4, int), np.zeros(4), [0, 0, 0, 1], spec=Spec(space, spaces.Discrete(1))
    )
    assert made.arrays().observations.shape == (4, 3)
    back = made.observations([2, 0])
    assert back["speed"].tolist() == [2.0, 0.0]
    with pytest.raises(InputError, match="named parts"):
        Dataset.from_arrays(seen, np.zeros(4, int), np.zeros(4), [0, 0, 0, 1])
    with pytest.raises(InputError, match="no part called 'speed'"):
        Dataset.from_arrays(
            {"position": np.ones((4, 2))},
            np.zeros(4, int),
            np.zeros(4),
            [0, 0, 0, 1],
            spec=Spec(space, spaces.Discrete(1)),
        )


def test_images_are_kept_by_reference(tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    space = spaces.Box(0, 255, (4, 4, 3), dtype=np.uint8)
    spec = Spec(space, spaces.Discrete(2), images=ImageFile(str(tmp_path / "frames.npy")))
    made = Dataset.from_arrays(
        np.arange(4),
        [0, 1, 0, 1],
        np.zeros(4),
        np.zeros(4),
        [0, 0, 0, 1],
        final_observations=[4],
        spec=spec,
    )
    assert np.array_equal(made.observations([0, 3]), frames[[0, 3]])
    assert np.array_equal(made.spec.images.open()[made.arrays().next_observations], frames[1:])
    with pytest.raises(InputError, match="no images can be read"):
        ImageFile(str(tmp_path / "gone.npy")).open()
    other = Dataset(made.transitions, made.episodes, Spec(space, spaces.Discrete(2)), made.origin)
    with pytest.raises(InputError, match="different image files"):
        concatenate([made, other])


def test_multi_discrete_actions_are_vectors_of_whole_numbers() -> None:
    made = Dataset.from_arrays(np.arange(3), [[0, 4], [1, 2], [1, 0]], np.zeros(3), [0, 0, 1])
    assert made.spec.action_space == spaces.MultiDiscrete([2, 5])
    assert made.arrays().actions.dtype == np.int64


def test_specs_are_united() -> None:
    narrow, wide = log([2]), log([3], seed=1)
    both = concatenate([narrow, wide])
    assert both.spec.observation_space.shape == (3,)
    scored = Dataset(
        narrow.transitions,
        narrow.episodes,
        Spec(narrow.spec.observation_space, narrow.spec.action_space, 0.9, ScoreReference(0, 1)),
        narrow.origin,
    )
    assert concatenate([scored, scored]).spec.score == ScoreReference(0, 1)
    assert concatenate([scored, wide]).spec.score is None
    with pytest.raises(InputError, match="do not mix"):
        gather_episodes([narrow, log([2], discrete=True)], [np.array([0]), np.array([0])])
    with pytest.raises(InputError, match="do not fit together"):
        concatenate([narrow, log([2], discrete=True)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(3)}, "reward has 3 rows, and there are 4"),
        ({"terminated": [0, 0, 2, 1]}, "terminated is 2 at row 2"),
        ({"terminated": [0, 1]}, "terminated has 2 rows"),
        ({"observations": np.zeros((0, 2))}, "there are no observations"),
        ({"observations": ["a", "b", "c", "d"]}, "observations hold"),
        ({"actions": np.array([-1, 0, 0, 0])}, "actions hold -1"),
        ({"episode": [0, 1, 0, 1]}, "episode 0 starts again at row 2"),
        ({"episode": [0, 1]}, "episode has shape"),
        ({"next_observations": np.zeros((4, 3))}, "next observations have shape"),
        ({"final_observations": np.zeros((3, 2))}, "there are 3 final observations"),
        ({"columns": {"label": [1, 2]}}, "label has 2 rows"),
        ({"episode_columns": {"goal": [1, 2]}}, "goal has 2 rows"),
        ({"columns": {"label": [1, 2, 3, "x"]}}, "label"),
    ],
)
def test_arrays_that_fit_no_dataset_are_refused(change: dict, message: str) -> None:
    good = {
        "observations": np.zeros((4, 2)),
        "actions": np.zeros(4, int),
        "rewards": np.zeros(4),
        "terminated": [0, 0, 0, 1],
    }
    with pytest.raises(InputError, match=message):
        Dataset.from_arrays(**(good | change))


def test_frames_that_are_no_dataset_are_refused() -> None:
    made = log([2, 2])
    frame = made.transitions
    for broken, message in (
        (frame.drop("reward"), "lack the column reward"),
        (frame.with_columns(episode=pl.Series([1, 1, 2, 2])), "numbered 0, 1"),
        (frame.with_columns(episode=pl.Series([0, 1, 0, 1])), "numbered 0, 1"),
        (frame.with_columns(reward=pl.Series([1.0, None, 2.0, 3.0])), "reward is null at row 1"),
        (frame.with_columns(terminated=pl.lit(0)), "must be Boolean"),
        (frame.head(0), "no transition is left"),
    ):
        with pytest.raises(InputError, match=message):
            Dataset.from_frames(broken)
    for episodes, message in (
        (made.episodes.head(1), "1 rows"),
        (made.episodes.reverse(), "in order"),
    ):
        with pytest.raises(InputError, match=message):
            Dataset.from_frames(frame, episodes)
    again = Dataset.from_frames(frame, made.episodes)
    assert again.content_hash == made.content_hash


def test_misuse_is_told_in_one_line() -> None:
    made = log([2, 3])
    for call, message in (
        (lambda: made.select([5]), "episode 5 is asked for; there are 2"),
        (lambda: made.select(np.array([True])), "the mask has shape"),
        (lambda: made.select([]), "no episode is left"),
        (lambda: made.with_columns(obs=pl.lit(0)), "cannot be replaced"),
        (lambda: made.split([0.7, 0.7]), "sum to at most 1"),
        (lambda: concatenate([]), "nothing to concatenate"),
        (lambda: made.filter_episodes(pl.col("return") > 1e9), "no episode is left"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_wide_columns_hold_the_same_numbers() -> None:
    made = log([2, 3])
    wide = made.to_frame(wide=True)
    assert np.array_equal(
        wide.select("next_obs_0", "next_obs_1", "next_obs_2").to_numpy(),
        made.arrays().next_observations,
    )
    assert widened(made.transitions)["obs_2"].to_list() == wide["obs_2"].to_list()
    assert "3 episodes" not in repr(made)
    assert "5 transitions, 2 episodes" in repr(made)
