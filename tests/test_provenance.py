"""Where a dataset comes from, as a record and as code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from offrl_wb.core.errors import InputError
from offrl_wb.data.provenance import Provenance, frame_hash, recorded

LEAF = Provenance("offrl_wb.data.files.read", {"path": "log.npz"}, content="00ff")


def test_values_are_recorded_as_json() -> None:
    value = {"a": np.float32(0.5), "b": (1, Path("x")), "c": np.inf, "d": np.arange(2), "e": True}
    noted = recorded(value)
    assert noted == {"a": 0.5, "b": [1, "x"], "c": {"number": "inf"}, "d": [0, 1], "e": True}
    assert json.loads(json.dumps(noted)) == noted


def test_what_cannot_be_recorded_is_named_and_asked_for() -> None:
    step = Provenance(
        "offrl_wb.data.corruption.corrupt", {"attacker": recorded(np.linalg.norm)}, 1, (LEAF,)
    )
    code = step.as_python()
    assert "attacker=attacker" in code
    assert "# give" in code


def test_frames_are_told_apart_by_content() -> None:
    frame = pl.DataFrame({"x": [1, 2], "s": ["a", None], "l": [[1], [2, 3]]})
    same = pl.concat([frame.head(1), frame.tail(1)])
    assert frame_hash(frame) == frame_hash(same)
    for other in (
        frame.with_columns(x=pl.Series([2, 1])),
        frame.with_columns(x=pl.col("x").cast(pl.Int32)),
        frame.with_columns(s=pl.lit("a")),
        frame.with_columns(l=pl.Series([[1, 2], [3]])),
        frame.rename({"x": "y"}),
    ):
        assert frame_hash(other) != frame_hash(frame)
    assert recorded(frame) != recorded(frame.reverse())


def test_a_null_differs_from_a_zero_and_from_another_place() -> None:
    one = pl.DataFrame({"x": [0.0, None]})
    assert len({frame_hash(f) for f in (one, one.fill_null(0), one.reverse())}) == 3


def test_identity_follows_recipe_and_parents() -> None:
    step = Provenance("offrl_wb.data.composition.mix", {"shares": [1]}, 0, (LEAF,), many=True)
    changed = [
        replace(step, seed=1),
        replace(step, parameters={"shares": [0.5]}),
        replace(step, operation="offrl_wb.data.composition.thin"),
        replace(step, parents=(replace(LEAF, content="aa"),)),
        replace(step, attribute="[0]"),
    ]
    assert len({s.hash for s in [step, *changed]}) == len(changed) + 1
    assert replace(step, outcome={"realised": 1}).hash == step.hash


def test_a_record_survives_json_and_names_shared_parents_once() -> None:
    step = LEAF
    for number in range(60):  # as a tree this would have 2**60 steps
        step = Provenance(
            "offrl_wb.data.composition.mix", {"n": number}, 0, (step, step), many=True
        )
    noted = json.loads(json.dumps(step.to_json()))
    assert len(noted) == 61
    again = Provenance.from_json(noted)
    assert again.hash == step.hash
    assert again.as_python() == step.as_python()
    assert len(step.tree().splitlines()) == 121


def test_a_variable_that_holds_a_step_is_used() -> None:
    step = Provenance("offrl_wb.data.dataset.Dataset.label", {"source": "x"}, None, (LEAF,))
    assert "dataset_0 = mine" in step.as_python({LEAF.hash: "mine"})
    assert "read(" not in step.as_python({LEAF.hash: "mine"})
    assert "read(path='log.npz')" in step.as_python()


def test_the_tree_shows_every_step() -> None:
    step = Provenance(
        "offrl_wb.data.dataset.Dataset.filter",
        {"predicate": pl.col("step") > 3, "long": "x" * 99},
        7,
        (LEAF,),
    )
    told = step.tree().splitlines()
    assert told[0].startswith("filter(predicate=")
    assert "…" in told[0]
    assert "seed=7" in told[0]
    assert told[1].startswith("  read(")


@pytest.mark.parametrize("found", [[], [{"parents": [3]}], [{"parents": [], "odd": 1}], {}, None])
def test_a_damaged_record_is_refused(found: object) -> None:
    with pytest.raises(InputError, match="provenance of the dataset cannot be read"):
        Provenance.from_json(found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"], dtype=pl.Categorical)),
        (pl.Series([b"a"]), pl.Series([b"b"])),
        (pl.Series(["1.5"]).cast(pl.Decimal(9, 2)), pl.Series(["1.25"]).cast(pl.Decimal(9, 2))),
    ],
)
def test_columns_of_every_type_are_told_apart(one: pl.Series, other: pl.Series) -> None:
    assert frame_hash(pl.DataFrame({"x": one})) != frame_hash(pl.DataFrame({"x": other}))
    assert frame_hash(pl.DataFrame({"x": one})) == frame_hash(pl.DataFrame({"x": one}))


def test_a_frame_without_rows_or_width_has_a_hash() -> None:
    empty = pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})
    assert len(frame_hash(empty)) == len(frame_hash(pl.DataFrame({"x": np.zeros((3, 0))}))) == 16


def test_a_series_is_recorded_by_value_or_by_hash() -> None:
    short, long = pl.Series([1, 2]), pl.Series(np.arange(20_000))
    assert "polars_expression" in recorded(short)
    assert recorded(short) != recorded(short + 1)
    assert recorded(long)["not_recorded"] == "polars.Series"
    assert recorded(long)["content"] != recorded(long + 1)["content"]


def test_several_things_that_were_not_recorded_have_a_variable_each() -> None:
    told = recorded({"attacker": {"actions": print, "rewards": len}})
    step = Provenance("offrl_wb.data.corruption.corrupt", told, 1, (LEAF,))
    assert "{'actions': attacker_actions, 'rewards': attacker_rewards}" in step.as_python()
    assert not step.complete
    assert LEAF.complete


def test_thousands_of_steps_need_no_recursion() -> None:
    step = LEAF
    for number in range(3000):
        step = Provenance("offrl_wb.data.dataset.Dataset.label", {"source": number}, None, (step,))
    again = Provenance.from_json(step.to_json())
    assert again.hash == step.hash
    assert len(again.as_python().splitlines()) == 3000 + 1 + 3
    assert len(step.tree().splitlines()) == 3001
