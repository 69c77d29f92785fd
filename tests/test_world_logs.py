"""Logs of the library's own worlds, as datasets."""

import numpy as np
import pytest

from offrl_wb.core.errors import InputError
from offrl_wb.core.scores import score
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.files import read_neorl2
from offrl_wb.data.world_logs import lava_grid_log, mass_spring_log, maze_log
from offrl_wb.worlds.mass_spring import MassSpring, euler, reward
from tests.shared_data import neorl2_file


def test_a_log_of_the_plant_is_one_of_its_steps():
    log = mass_spring_log(30, seed=2)
    rows, plant = log.arrays(), MassSpring()
    seen, ahead = rows.observations.astype(float), rows.next_observations.astype(float)
    moved = euler(plant, seen[:, :4], rows.actions.astype(float))
    assert np.abs(moved - ahead[:, :4]).max() < 1e-6
    paid = reward(ahead[:, :2], ahead[:, 4:])
    assert np.abs(paid - rows.rewards).max() < 2e-3
    assert (log.lengths == 100).all()
    assert rows.truncated.sum() == 30
    assert not rows.terminated.any()
    assert log.episodes["source"].unique().to_list() == ["train"]


def test_a_log_of_the_plant_has_the_benchmarks_score():
    log = mass_spring_log(300, seed=0)
    assert (log.spec.score.low, log.spec.score.high) == (30.60, 849.51)
    assert log.spec.name == "DMSD"
    assert 53 < float(score("DMSD", log.returns().mean())) < 60


def test_our_log_and_the_released_one_are_alike():
    released = read_neorl2(neorl2_file("DMSD-train.npz"))
    ours = mass_spring_log(1000, seed=0)
    assert ours.spec.score == released.spec.score
    assert ours.spec.action_space == released.spec.action_space
    mine, theirs = ours.arrays(), released.arrays()
    for name in ("observations", "actions", "rewards"):
        first, second = getattr(mine, name), getattr(theirs, name)
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert first.std(axis=0) == pytest.approx(second.std(axis=0), rel=0.1)


def test_settings_of_the_plant_and_noise_reach_the_log():
    plain = mass_spring_log(20, seed=1)
    heavy = mass_spring_log(20, controller="val", seed=1, mass=30.0)
    noisy = mass_spring_log(20, noise=0.3, seed=1)
    assert heavy.episodes["source"][0] == "val"
    first = plain.arrays().observations[::100]
    assert (heavy.arrays().observations[::100] == first).all()
    assert (noisy.arrays().observations[::100] == first).all()
    assert (noisy.arrays().actions != plain.arrays().actions).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mass_spring_log(5, "val", 0.1, seed, mass=25.0),
        lambda seed: maze_log(200, 0.3, seed, horizon=20),
        lambda seed: lava_grid_log("rewards", 0.2, seed, copies=2, size=8),
    ],
    ids=["spring", "maze", "lava"],
)
def test_the_record_makes_the_log_again(make):
    log = make(3)
    names: dict[str, Dataset] = {}
    exec(log.provenance.as_python(), names)
    assert names["dataset"].content_hash == log.content_hash
    assert make(4).content_hash != log.content_hash
    assert "error" not in log.check()["severity"].to_list()


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="episodes is 0"):
        mass_spring_log(0)
    with pytest.raises(InputError, match="no gains 'best'"):
        mass_spring_log(3, "best")
    with pytest.raises(InputError, match="MassSpring has no 'weight'"):
        mass_spring_log(3, weight=2.0)
