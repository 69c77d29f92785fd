"""Random numbers: one generator for each replica, drawn ahead, kept and restored."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.train.noise import Noise, NoiseAhead, draw, generators, rows, scratch_shape

SPECS = {
    "rows": rows(5),
    "normal": Noise("normal", (4, 3)),
    "uniform": Noise("uniform", (7,)),
    "subset": Noise("subset", (2,), members=10),
    "pairs": Noise("subset", (6, 2), members=4),
    "choice": Noise("choice", (3,), members=10),
    "keep": Noise("keep", (2, 8), rate=0.25),
}


def numbers(spec, count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return draw(spec, torch.empty(scratch_shape(spec, count), dtype=dtype), generator)


@pytest.mark.parametrize("name", SPECS)
def test_shapes_and_types_are_those_of_the_spec(name):
    spec = SPECS[name]
    ahead = NoiseAhead(SPECS, [3, 4], ahead=2, dtype=torch.float32)
    found = ahead.next()[name]
    assert found.shape == (2, *spec.shape)
    whole = spec.kind in ("subset", "choice")
    assert found.dtype == (
        torch.int64 if whole else torch.float64 if spec.double else torch.float32
    )


def test_a_subset_holds_distinct_numbers_each_as_often_as_any_other():
    drawn = numbers(Noise("subset", (3,), members=6), 60_000)
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all()
    often = torch.bincount(drawn.flatten(), minlength=6) / 60_000
    assert (often - 0.5).abs().max() < 0.01


def test_the_smaller_of_two_critics_has_the_mean_that_theory_gives():
    """Mean of the minimum of two of N sorted values: with replacement WSRL's, without RLPD's."""
    values = torch.tensor([0.3, 1.0, 1.1, 2.5, 4.0], dtype=torch.float64)
    size = len(values)
    k = torch.arange(1, size + 1)
    for kind, weights in (
        ("choice", (2 * (size - k) + 1) / size**2),
        ("subset", 2 * (size - k) / (size * (size - 1))),
    ):
        smallest = values[numbers(Noise(kind, (2,), members=size), 100_000)].amin(1)
        assert abs(weights.sum() - 1) < 1e-6
        error = smallest.std() / math.sqrt(100_000)
        assert abs(smallest.mean() - (weights * values).sum()) < 4 * error


def test_uniform_normal_and_keep_have_their_moments():
    uniform = numbers(Noise("uniform", (1,)), 100_000)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005
    normal = numbers(Noise("normal", (1,)), 100_000)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    keep = numbers(Noise("keep", (1,), rate=0.25), 100_000)
    assert set(keep.flatten().tolist()) == {0.0, 1.0}
    assert abs(keep.mean() - 0.75) < 0.01


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]))
def test_a_replica_sees_the_same_numbers_alone_and_among_others(seed, ahead, dtype):
    seeds = [seed + 5, seed, 3, 8]
    many = NoiseAhead(SPECS, seeds, ahead, dtype)
    alone = NoiseAhead(SPECS, [seed], ahead, dtype)
    for _ in range(2 * ahead + 1):
        first, second = many.next(), alone.next()
        assert all(torch.equal(first[name][1:2], second[name]) for name in SPECS)


def test_seeds_labels_and_updates_differ():
    ahead = NoiseAhead(SPECS, [0, 1], ahead=3)
    other = NoiseAhead(SPECS, [0, 1], ahead=3, label="online")
    first, second, elsewhere = ahead.next()["normal"].clone(), ahead.next()["normal"], other.next()
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, elsewhere["normal"])


@given(st.integers(0, 12), st.integers(1, 5))
def test_restored_noise_goes_on_bit_for_bit(used, ahead):
    def make():
        return NoiseAhead(SPECS, [7, 8], ahead)

    first = make()
    for _ in range(used):
        first.next()
    kept = {name: values.clone() for name, values in first.state().items()}
    again = make()
    again.next()
    again.restore(kept)
    for _ in range(2 * ahead + 1):
        one, two = first.next(), again.next()
        assert all(torch.equal(one[name], two[name]) for name in SPECS)
    assert first.left == again.left


def test_noise_of_other_replicas_is_refused():
    kept = NoiseAhead(SPECS, [0, 1]).state()
    with pytest.raises(InputError, match=r"kept for 2 replicas; there are 3 here"):
        NoiseAhead(SPECS, [0, 1, 2]).restore(kept)


def test_taking_several_updates_at_once_gives_the_same_numbers():
    one, two = NoiseAhead(SPECS, [0, 1], ahead=4), NoiseAhead(SPECS, [0, 1], ahead=4)
    for size in (3, 6, 1, 4):
        shapes = {name: (size, *b.shape[1:]) for name, b in one.buffers.items()}
        out = {n: torch.empty(shapes[n], dtype=one.buffers[n].dtype) for n in shapes}
        one.take(out)
        for place in range(size):
            each = two.next()
            assert all(torch.equal(out[name][place], each[name]) for name in SPECS)


def test_the_buffers_stay_where_they_are():
    ahead = NoiseAhead(SPECS, [0], ahead=2)
    places = {name: buffer.data_ptr() for name, buffer in ahead.buffers.items()}
    for _ in range(5):
        ahead.next()
    assert places == {name: buffer.data_ptr() for name, buffer in ahead.buffers.items()}


def test_nothing_comes_from_torchs_own_generator():
    before = torch.random.get_rng_state()
    NoiseAhead(SPECS, [0, 1], ahead=2).next()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    first = NoiseAhead(SPECS, [0]).next()
    torch.manual_seed(2)
    second = NoiseAhead(SPECS, [0]).next()
    assert all(torch.equal(first[name], second[name]) for name in SPECS)


def test_generators_of_other_labels_are_other_streams():
    one, two, again = (generators([5], label)[0] for label in ("weights", "noise", "weights"))
    first = torch.rand(3, generator=one)
    assert not torch.equal(first, torch.rand(3, generator=two))
    assert torch.equal(first, torch.rand(3, generator=again))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(kind="cauchy", shape=(1,)), "no noise of kind 'cauchy'"),
        (dict(kind="subset", shape=(2,)), "subset needs members="),
        (dict(kind="choice", shape=(2,)), "choice needs members="),
        (dict(kind="subset", shape=(3,), members=2), "no 3 distinct ones can be drawn of 2"),
        (dict(kind="keep", shape=(3,)), "keep needs rate="),
        (dict(kind="keep", shape=(3,), rate=1.0), "keep needs rate="),
    ],
)
def test_noise_that_cannot_be_drawn_is_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        Noise(**wrong)


def test_there_must_be_a_replica_and_an_update():
    for seeds, ahead in (([], 4), ([0], 0)):
        with pytest.raises(InputError, match=r"both from 1"):
            NoiseAhead(SPECS, seeds, ahead)
