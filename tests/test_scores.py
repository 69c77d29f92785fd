"""Reference returns of the benchmarks: published numbers, found by their published names."""

import pytest

from offrl_wb.core import scores
from offrl_wb.core.errors import InputError
from offrl_wb.core.scores import (
    D4RL_REFERENCES,
    NEORL2_REFERENCES,
    REFERENCES,
    normalised_score,
    reference,
    register_reference,
    score,
)
from offrl_wb.data.files import NEORL2_SCORES, read_neorl2
from tests.shared_data import neorl2_file


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("halfcheetah-medium-replay-v2", -280.178953, 12135.0),
        ("hopper-full-replay-v2", -20.272305, 3234.3),
        ("walker2d-expert-v0", 1.629008, 4592.3),
        ("antmaze-large-diverse-v2", 0.0, 1.0),
        ("pen-human-v1", 96.262799, 3076.8331017826877),
        ("door-cloned-v1", -56.512833, 2880.5693087298737),
        ("kitchen-mixed-v0", 0.0, 4.0),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("maze2d-umaze-dense-v1", 68.537689, 193.66285642381482),
        ("maze2d-open-v0", 0.01, 20.66),
        ("DMSD", 30.60, 849.51),
        ("dmsd-val", 30.60, 849.51),
        ("DMSD-v0", 30.60, 849.51),
        ("DMSD-v0-train", 30.60, 849.51),
        ("dmsd-train-v1", 30.60, 849.51),
        ("SafetyHalfCheetah-train", -283, 2507),
    ],
)
def test_published_references_are_found_by_published_names(name, low, high):
    found = reference(name)
    assert (found.low, found.high) == (low, high)
    assert score(name, [low, high]).tolist() == pytest.approx([0, 100])
    assert found.source


def test_half_way_between_the_references_is_fifty():
    assert float(score("hopper-medium-v2", (3234.3 - 20.272305) / 2)) == pytest.approx(50)


@pytest.mark.parametrize(
    ("name", "published"),
    [("DMSD-train", 56.64), ("Simglucose-train", 73.87), ("SafetyHalfCheetah-train", 73.56)],
)
def test_the_released_data_score_what_the_benchmarks_table_says(name, published):
    data = read_neorl2(neorl2_file(f"{name}.npz"))
    assert round(float(score(name, data.returns().mean())), 2) == published


def test_every_reference_is_in_order_and_says_where_it_is_from():
    assert len(D4RL_REFERENCES) == 85
    assert len(NEORL2_REFERENCES) == 8
    for found in REFERENCES.values():
        assert found.low < found.high
        assert found.source


def test_readers_of_files_know_the_same_references():
    assert NEORL2_SCORES.keys() == NEORL2_REFERENCES.keys()
    for task, found in NEORL2_SCORES.items():
        assert (found.low, found.high, found.source) == NEORL2_REFERENCES[task]


def test_an_unknown_name_is_refused_with_those_near_it():
    with pytest.raises(InputError, match=r"'hopper-medum-v2' .near: hopper-medium"):
        reference("hopper-medum-v2")
    with pytest.raises(InputError, match="no references for 'Hopper-v5'"):
        reference("Hopper-v5")
    with pytest.raises(InputError, match="no references for '§': pass or register"):
        reference("§")


@pytest.mark.parametrize("name", ["D4RL/pen/human-v2", "mujoco/hopper/medium-v0"])
def test_names_of_minari_are_refused_since_their_files_carry_references(name):
    with pytest.raises(InputError, match="Minari's data sets carry their own"):
        reference(name)


def test_only_versions_and_parts_at_the_end_are_left_out():
    with pytest.raises(InputError, match="no references for 'train-v0-DMSD'"):
        reference("train-v0-DMSD")
    with pytest.raises(InputError, match="no references for 'DMSD-training'"):
        reference("DMSD-training")


def test_own_references_are_entered_once_and_do_not_replace_published_ones(monkeypatch):
    monkeypatch.setattr(scores, "REFERENCES", dict(REFERENCES))
    register_reference("Pump-v1", 10, 30, "the old controller, and the best operator")
    register_reference("pump", 10, 30, "the same again")
    assert score("pump-v3", 20) == 50
    with pytest.raises(InputError, match="Pump-v1 has the references"):
        register_reference("PUMP", 10, 31, "another")
    with pytest.raises(InputError, match="DMSD has the references"):
        register_reference("DMSD", 0, 1, "ours")
    with pytest.raises(InputError, match="the source is empty"):
        register_reference("x", 0, 1, " ")
    with pytest.raises(InputError, match="must be above the low one"):
        register_reference("x", 1, 1, "ours")
    with pytest.raises(InputError, match="must be above the low one"):
        normalised_score(0.0, float("nan"), 1.0)
