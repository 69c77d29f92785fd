"""Spaces as JSON, and named parts as columns."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.spec import (
    Spec,
    column_names,
    fields,
    flatten,
    infer_space,
    space_from_json,
    space_to_json,
    unflatten,
    width,
)

LEAVES = st.one_of(
    st.builds(
        lambda shape, high: spaces.Box(-high, high, tuple(shape), dtype=np.float32),
        st.lists(st.integers(1, 3), max_size=2),
        st.sampled_from([1.0, 2.5, np.inf]),
    ),
    st.builds(lambda n: spaces.MultiDiscrete([n, n + 1]), st.integers(1, 5)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(0, 3)
    ),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.text("abxy", min_size=1, max_size=3), inner, min_size=1, max_size=3).map(
            spaces.Dict
        ),
        st.lists(inner, min_size=1, max_size=2).map(spaces.Tuple),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(SPACES)
def test_a_space_survives_json(space: spaces.Space) -> None:
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def batched(space: spaces.Space, size: int) -> object:
    """A batch `(size, …)` of samples, nested as the space is."""
    if isinstance(space, spaces.Dict):
        return {k: batched(v, size) for k, v in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batched(v, size) for v in space.spaces)
    return np.stack([space.sample() for _ in range(size)])


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(0, 3))
def test_flattened_parts_come_back(space: spaces.Space, size: int) -> None:
    value = batched(space, size + 1)
    flat = flatten(space, value)
    assert flat.shape == (
        (size + 1,) if isinstance(space, spaces.Discrete) else (size + 1, width(space))
    )
    assert [f.stop for f in fields(space)][-1] == width(space)

    def same(one: object, two: object) -> bool:
        if isinstance(one, dict):
            return all(same(one[k], two[k]) for k in one)
        if isinstance(one, tuple):
            return all(same(a, b) for a, b in zip(one, two, strict=True))
        return np.allclose(one, two)

    assert same(value, unflatten(space, flat))


@pytest.mark.parametrize(
    "found",
    [
        {"kind": "Nonsense"},
        {},
        {"kind": "Box", "shape": [2]},
        {"kind": "Box", "shape": [2], "dtype": "float32", "low": [0, 0, 0], "high": 1},
        {"kind": "Box", "shape": [2], "dtype": "not a type", "low": 0, "high": 1},
        {"kind": "Box", "shape": [10**6, 10**6], "dtype": "float32", "low": 0, "high": 1},
        {"kind": "Discrete", "n": -1, "start": 0},
        {"kind": "Dict", "spaces": 3},
    ],
)
def test_what_is_no_space_is_refused(found: dict) -> None:
    with pytest.raises(InputError, match=r"space|no observation"):
        space_from_json(found)


def test_spaces_that_no_learner_takes_are_refused() -> None:
    with pytest.raises(InputError, match="Text space is not supported"):
        space_to_json(spaces.Text(3))


def test_spaces_are_inferred_as_far_as_data_tell() -> None:
    assert infer_space(np.zeros((3, 2))).shape == (2,)
    assert not infer_space(np.zeros((3, 2))).is_bounded()
    assert infer_space(np.array([2, 0])) == spaces.Discrete(3)
    for values, message in ((np.array([-1, 0]), "start at 0"), (np.array(["a"]), "pass floats")):
        with pytest.raises(InputError, match=message):
            infer_space(values)


def test_wrong_parts_are_named() -> None:
    space = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "y": spaces.Box(-1, 1, (1,))})
    with pytest.raises(InputError, match="no part called 'y'"):
        flatten(space, {"x": np.zeros((3, 2))})
    with pytest.raises(InputError, match=r"part 'x' has rows of shape \(3,\)"):
        flatten(space, {"x": np.zeros((3, 3)), "y": np.zeros((3, 1))})
    with pytest.raises(InputError, match="the array has rows"):
        flatten(spaces.Box(-1, 1, (2,)), np.zeros((3, 3)))


def test_columns_are_named_by_number() -> None:
    assert column_names(None, "obs") == ["obs"]
    assert column_names(3, "obs") == ["obs_0", "obs_1", "obs_2"]


def test_half_a_spec_is_refused() -> None:
    whole = Spec(spaces.Discrete(2), spaces.Discrete(2)).to_json()
    for key in whole:
        with pytest.raises(InputError, match="spec cannot be read"):
            Spec.from_json({k: v for k, v in whole.items() if k != key})


def test_wide_integer_bounds_and_starts_survive_json() -> None:
    whole = np.iinfo(np.int64)
    for space in (
        spaces.Box(whole.min, whole.max, (2,), dtype=np.int64),
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
    ):
        again = space_from_json(json.loads(json.dumps(space_to_json(space))))
        assert again == space
    assert again.start.tolist() == [1, -2]
    older = space_to_json(again)
    del older["start"]
    assert space_from_json(older) == spaces.MultiDiscrete([3, 4])


def test_a_name_with_a_dot_is_one_part() -> None:
    space = spaces.Dict(
        {"a.b": spaces.Box(0, 1, (2,)), "a": spaces.Dict({"c": spaces.Discrete(3)})}
    )
    value = {"a.b": np.ones((4, 2)), "a": {"c": np.arange(4)}}
    flat = flatten(space, value)
    assert [field.name for field in fields(space)] == ["a.c", "a.b"]
    assert unflatten(space, flat)["a"]["c"].tolist() == [0, 1, 2, 3]


def test_parts_of_different_lengths_and_numbers_too_large_are_refused() -> None:
    space = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Box(0, 1, (1,))})
    with pytest.raises(InputError, match="part 'b' has 4 rows, the first part 3"):
        flatten(space, {"a": np.zeros((3, 2)), "b": np.zeros((4, 1))})
    with pytest.raises(InputError, match="no space can be made"):
        space_from_json({"kind": "Discrete", "n": 10**30, "start": 0})
