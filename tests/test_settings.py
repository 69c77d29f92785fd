"""Configurations: what may be set, checked, spread over replicas, read and written."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.train.settings import (
    Vector,
    check_config,
    config_from,
    config_to_json,
    for_replicas,
    grid,
    setting,
    settings_of,
    settings_table,
    vectors,
)


@dataclass(frozen=True)
class Config:
    discount: Vector = setting(0.99, "paper", vector=True, help="of the task", low=0, below=1)
    weight: Vector = setting(1, "ours", vector=True, kind=float, above=0)
    hidden: tuple[int, ...] = setting((64, 64), low=1)
    members: int = setting(2, "public code: CORL", low=1, high=50)
    loss: str = setting("huber", choices=("huber", "square"))
    normalise: bool = setting(False)
    clip_norm: float | None = setting(None, kind=float, above=0)
    plain: str = "no setting"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("discount", 1.0, "a number of at least 0 and below 1"),
        ("discount", float("nan"), "a number of at least 0"),
        ("discount", (0.9, 1.2), "for each replica"),
        ("discount", (), "for each replica"),
        ("discount", "0.9", "a number"),
        ("weight", 0, "a number above 0"),
        ("hidden", 64, "a list of whole numbers of at least 1"),
        ("hidden", (64, 0), "a list of whole numbers"),
        ("hidden", (64.5,), "a list of whole numbers"),
        ("members", 2.5, "a whole number of at least 1 and of at most 50"),
        ("members", True, "a whole number"),
        ("members", None, "a whole number"),
        ("members", (2, 3), "start another run"),
        ("loss", "cube", "one of huber, square"),
        ("loss", 1, "one of huber, square"),
        ("normalise", "yes", "True or False"),
        ("normalise", 1, "True or False"),
        ("clip_norm", -1.0, "a number above 0, or None"),
    ],
)
def test_a_value_out_of_range_is_told_in_one_line_with_what_is_allowed(name, value, told):
    with pytest.raises(InputError) as caught:
        check_config(Config(**{name: value}))
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}: it must be ")
    assert told in message
    assert "\n" not in message


def test_what_is_nearly_right_is_put_right():
    given_ = Config(
        discount=[np.float32(0.5), 0],
        hidden=np.array([32, 16]),
        members=np.int64(3),
        normalise=np.bool_(True),
        clip_norm=1,
    )
    tidy = check_config(given_)
    assert tidy == Config((0.5, 0.0), 1.0, (32, 16), 3, "huber", True, 1.0)
    assert isinstance(tidy.weight, float)
    assert isinstance(tidy.members, int)
    assert tidy.normalise is True
    assert hash(tidy) == hash(check_config(tidy))
    assert tidy.plain == "no setting"


def test_a_vector_has_one_number_for_each_replica():
    assert check_config(Config(discount=(0.5, 0.6)), 2).discount == (0.5, 0.6)
    with pytest.raises(InputError, match=r"discount has 2 values and there are 3 replicas"):
        check_config(Config(discount=(0.5, 0.6)), 3)


def test_vectors_are_floats_or_tensors_on_the_device():
    values = vectors(Config(discount=(0.5, 0.6)), 2, torch.float64, "meta")
    assert values.discount.shape == (2,)
    assert values.discount.dtype == torch.float64
    assert values.discount.device.type == "meta"
    assert values["weight"] == values.weight == 1.0
    assert values.hidden == (64, 64)
    assert values.clip_norm is None
    assert not hasattr(values, "plain")
    with pytest.raises(AttributeError):
        values.missing  # noqa: B018


def test_settings_know_where_they_come_from():
    rules = {rule.name: rule for rule in settings_of(Config)}
    assert list(rules)[:3] == ["discount", "weight", "hidden"]
    assert "plain" not in rules
    assert (rules["members"].source, rules["members"].kind) == ("public code: CORL", int)
    assert rules["discount"].vector
    assert not rules["hidden"].vector
    assert rules["clip_norm"].optional
    assert settings_of(Config()) == settings_of(Config)
    table = settings_table(Config).splitlines()
    assert table[2] == "| `discount` | 0.99 | paper | of the task *(vector)* |"
    assert len(table) == 2 + len(rules)


def test_a_setting_needs_a_kind_that_can_be_checked():
    with pytest.raises(TypeError, match=r"pass kind="):
        setting(None)
    with pytest.raises(TypeError, match=r"dict"):
        setting({})


def test_text_is_read_as_the_kind_of_the_setting():
    text = {
        "discount": "0.9, 0.95",
        "weight": "2",
        "hidden": "(32,)",
        "members": "5",
        "loss": "square",
        "normalise": "true",
        "clip_norm": "None",
    }
    assert config_from(Config, text) == Config((0.9, 0.95), 2.0, (32,), 5, "square", True, None)
    assert config_from(Config, {"normalise": "no"}) == Config(weight=1.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("members", "many"), ("normalise", "perhaps"), ("members", "1,2"), ("hidden", "a,b")],
)
def test_text_that_is_no_such_value_is_refused(name, text):
    with pytest.raises(InputError, match=rf"^{name} is "):
        config_from(Config, {name: text})


def test_an_unknown_setting_is_told_with_those_that_there_are():
    with pytest.raises(InputError, match=r"no setting 'gamma': there are discount, weight"):
        config_from(Config, {"gamma": 1})


@given(
    st.lists(st.floats(0, 0.999), min_size=1, max_size=5),
    st.lists(st.integers(1, 999), max_size=4),
    st.one_of(st.none(), st.floats(0.001, 10)),
)
def test_a_configuration_comes_back_from_json(discount, hidden, clip):
    config = check_config(Config(discount=tuple(discount), hidden=tuple(hidden), clip_norm=clip))
    assert config_from(Config, json.loads(json.dumps(config_to_json(config)))) == config


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0, 0.9), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0.1, 9), min_size=1, max_size=3, unique=True),
)
def test_a_grid_has_every_seed_with_every_combination_once(seeds, discounts, weights):
    config, all_seeds = grid(Config(), seeds, discount=discounts, weight=weights)
    rows = list(zip(all_seeds, config.discount, config.weight, strict=True))
    assert len(rows) == len(set(rows)) == len(seeds) * len(discounts) * len(weights)
    assert all_seeds[: len(seeds)] == tuple(seeds)
    check_config(config, len(all_seeds))


def test_only_vectors_can_be_spread():
    with pytest.raises(InputError, match=r"members cannot differ .* discount, weight"):
        grid(Config(), [0], members=[1, 2])


def test_some_replicas_take_their_entries_along():
    config = Config(discount=(0.1, 0.2, 0.3), members=7)
    assert for_replicas(config, [2, 0]) == Config(discount=(0.3, 0.1), members=7)
    assert for_replicas(Config(), [5]) == Config()


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().discount = 0.5
