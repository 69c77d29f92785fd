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


def rerun(made: Dataset, start: Dataset) -> Dataset:
    """What the provenance's Python makes of `start`."""
    names: dict = {"start": start}
    exec(made.provenance.as_python({start.provenance.hash: "start"}), names)
    return names["dataset"]


def test_a_condition_with_one_value_holds_for_every_row() -> None:
    made = log([2, 3, 4])
    assert len(made.filter(pl.lit(True))) == 9
    assert len(made.filter(pl.col("step").max() == 3)) == 9
    assert made.filter_episodes(pl.lit(True)).episode_count == 3
    with pytest.raises(InputError, match="no transition is left"):
        made.filter(pl.lit(False))


@pytest.mark.parametrize("kind", ["float32", "vectors", "series", "list", "expression", "name"])
def test_given_columns_are_made_again_exactly(kind: str) -> None:
    made = log([2, 3])
    values = {
        "float32": np.array([0.1, 0.2, 0.3, 0.4, np.nan], dtype=np.float32),
        "vectors": np.arange(10, dtype=np.float32).reshape(5, 2),
        "series": pl.Series(["a", None, "b", "c", "d"]),
        "list": [1, 2, 3, 4, 5],
        "expression": pl.col("reward") * 2,
        "name": "reward",
    }[kind]
    changed = made.with_columns(x=values)
    again = rerun(changed, made)
    assert again.content_hash == changed.content_hash
    assert again.provenance.hash == changed.provenance.hash
    assert len(changed.transitions["x"]) == 5
    assert not isinstance(changed.transitions["x"].dtype, pl.List)


def test_given_columns_of_episodes_are_made_again_exactly() -> None:
    made = log([2, 3])
    for values in (np.array([0.1, 0.2], np.float32), pl.Series(["a", "b"]), pl.col("length")):
        changed = made.with_episode_columns(x=values)
        assert rerun(changed, made).content_hash == changed.content_hash


def test_other_columns_and_other_specs_give_another_hash() -> None:
    made = log([2, 3])
    one, other = (made.with_columns(x=pl.Series(range(k, k + 5))) for k in (0, 1))
    assert one.provenance.hash != other.provenance.hash
    long = log([9000, 9000])
    one, other = (long.with_columns(x=np.arange(k, k + 18_000)) for k in (0, 1))
    assert one.provenance.hash != other.provenance.hash
    places = made.spec.observation_space, made.spec.action_space
    specs = [Spec(*places), Spec(*places, 0.9), Spec(*places, images=ImageFile("a.npy"))]
    hashes = [
        Dataset(made.transitions, made.episodes, s, made.origin).provenance.hash for s in specs
    ]
    assert len(set(hashes)) == 3


def test_rewards_are_floats_and_whole_numbers_int64() -> None:
    flat = dict(observations=np.zeros((3, 1)), actions=[0, 1, 0], terminated=[0, 0, 1])
    for rewards in (np.arange(3), np.array([True, False, True])):
        made = Dataset.from_arrays(rewards=rewards, **flat)
        assert made.transitions["reward"].dtype == pl.Float64
        assert made.transitions["reward"].to_list() == list(rewards)
    frame = made.transitions.with_columns(
        pl.col("action").cast(pl.Int8), obs=pl.Series(np.ones((3, 2), dtype=np.int16))
    )
    again = Dataset.from_frames(frame)
    assert again.transitions["action"].dtype == pl.Int64
    assert again.transitions["obs"].dtype == pl.Array(pl.Int64, 2)


def test_whole_numbers_written_as_floats_are_whole_numbers_again() -> None:
    box = spaces.Box(-1, 1, (2,), dtype=np.float64)
    flat = dict(observations=np.zeros((2, 2)), rewards=[0, 0], terminated=[0, 1])
    made = Dataset.from_arrays(actions=[0.0, 1.0], spec=Spec(box, spaces.Discrete(2)), **flat)
    assert made.arrays().actions.tolist() == [0, 1]
    assert made.arrays().actions.dtype == np.int64
    with pytest.raises(InputError, match=r"actions hold 0\.5 at row 1"):
        Dataset.from_arrays(actions=[0.0, 0.5], spec=Spec(box, spaces.Discrete(2)), **flat)
    one = spaces.Box(-1, 1, (1,), dtype=np.float64)
    made = Dataset.from_arrays(actions=[0, 1], spec=Spec(box, one), **flat)
    assert made.arrays().actions.shape == (2, 1)


def test_frames_with_next_observations_alone_know_their_ends() -> None:
    made = log([2, 3])
    again = Dataset.from_frames(made.to_frame())
    assert again.episodes["final_obs"].to_list() == made.episodes["final_obs"].to_list()
    assert np.array_equal(again.arrays().next_observations, made.arrays().next_observations)


def test_places_of_episodes_cannot_be_overwritten() -> None:
    made = log([2, 3])
    for array in (made.starts, made.lengths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_spaces_of_multidiscrete_with_another_start_do_not_mix() -> None:
    def one(start: int) -> Dataset:
        space = spaces.MultiDiscrete([2], start=[start])
        spec = Spec(spaces.Box(0, 1, (1,), dtype=np.float64), space)
        return Dataset.from_arrays([[0.0]], [[start]], [0], [1], spec=spec)

    mixed = concatenate([one(1), one(1)]).spec.action_space
    assert mixed == spaces.MultiDiscrete([2], start=[1])
    with pytest.raises(InputError, match="do not fit together"):
        concatenate([one(0), one(1)])


FLAT = dict(observations=np.zeros((2, 2)), actions=[0, 1], rewards=[0, 0], terminated=[0, 1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(observations=[[1.0], [1.0, 2.0]]), "rows of different lengths"),
        (dict(observations=3.0), "pass rows of numbers"),
        (dict(rewards=["a", "b"]), "reward has type String"),
        (dict(step=[0]), "step has 1 rows"),
        (dict(step=["a", "b"]), "step has type String"),
        (dict(columns={"x": 3}), "x has 0 rows"),
        (dict(columns={"obs": [1, 2]}), "obs is made from other arguments"),
        (dict(episode_columns={"final_obs": [1]}), "final_obs is made from other arguments"),
        (dict(final_observations=np.zeros((1, 3))), r"rows of shape \(3,\), observations \(2,\)"),
        (
            dict(observations=[0, 1], final_observations=[0.5]),
            r"final observations hold 0\.5 at row 0",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_told_in_one_line(changed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset.from_arrays(**(FLAT | changed))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("obs", pl.lit("x"), "obs has type String"),
        ("obs", pl.col("obs").arr.to_list(), "obs has type List"),
        ("action", pl.lit(0.5), "action has type Float64"),
        ("reward", pl.lit("x"), "reward has type String"),
        ("step", pl.lit(None), "step is null at row 0"),
        ("episode", pl.lit(0.5), "episode has type Float64"),
        ("episode", pl.lit(-1), "too large or negative"),
    ],
)
def test_frames_of_other_types_are_told_in_one_line(
    name: str, value: pl.Expr, message: str
) -> None:
    frame = Dataset.from_arrays(**FLAT).transitions
    with pytest.raises(InputError, match=message):
        Dataset.from_frames(frame.with_columns(value.alias(name)))


def test_wrong_requests_are_told_in_one_line() -> None:
    made = log([2, 3])
    text, lists = made.with_episode_columns(g=pl.lit("x")), pl.Series([[1], [2]])
    for call, message in (
        (lambda: made.filter(pl.col("nope") > 1), "condition cannot be evaluated"),
        (lambda: made.filter(pl.col("reward")), "it must be true or false"),
        (lambda: made.filter(np.ones(5, bool)), "pass a Polars expression"),
        (lambda: made.filter_episodes(pl.col("nope") > 1), "condition cannot be evaluated"),
        (lambda: made.with_columns(x=pl.col("nope")), "the columns cannot be made"),
        (lambda: made.with_columns(x=[1, 2]), "x has 2 values, and there are 5 rows"),
        (lambda: made.with_episode_columns(x=[1, 2, 3]), "x has 3 values"),
        (lambda: made.with_episode_columns(final_obs=["a", "b"]), "final_obs has type String"),
        (lambda: made.select([-1]), "episode -1 is asked for"),
        (lambda: made.select([0.7]), "pass a list of numbers"),
        (lambda: made.select(1), "pass a list of numbers"),
        (lambda: made.split(np.array([0.5, np.nan])), "must be positive"),
        (lambda: concatenate([text, made.with_episode_columns(g=lists)]), "do not mix"),
        (lambda: made.join(pl.DataFrame({"episode": ["a"]}), "episode"), "keys are of other types"),
        (lambda: made.join(pl.DataFrame({"episode": [0.2, 0.4]}), "episode"), "is not unique"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert len(made.split(np.array([0.5, 0.5]), seed=1)) == 2


def test_a_joined_column_never_renames_itself() -> None:
    made = log([3, 4])
    clash = pl.DataFrame({"episode": [0], "step": [0], "reward": [9.0]})
    with pytest.raises(InputError, match="reward is there already"):
        made.join(clash, on=["episode", "step"])
    with pytest.raises(InputError, match="both sides have: episode"):
        made.join(clash, on="id")


def test_a_device_that_is_not_there_is_told() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    with pytest.raises(InputError, match="PyTorch finds no CUDA"):
        log([3]).tensors("cuda")
