"""The plant of NeoRL-2's DMSD against the released files, its closed forms, and its controllers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import Policy, as_policy
from offrl_wb.core.scores import score
from offrl_wb.data.files import read_neorl2
from offrl_wb.worlds.copies import Copies, make_copies, rollout
from offrl_wb.worlds.mass_spring import (
    BEHAVIOUR,
    PID,
    Gains,
    MassSpring,
    TwoStep,
    acceleration,
    euler,
    reward,
    targets,
)
from tests.shared_data import neorl2_file


def released(part):
    """The released trajectories as `(E, 100, …)`."""
    with np.load(neorl2_file(f"DMSD-{part}.npz")) as file:
        return {key: file[key].reshape(-1, 100, *file[key].shape[1:]) for key in file.files}


# A state, an action and the next state, by pencil
BY_HAND = ([0.1, -0.2, 0.05, 0.3], [0.5, -1.0], [0.11, -0.14, 0.2, -0.012])


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_released_transition_is_a_step_of_the_plant(part):
    data, plant = released(part), MassSpring()
    flat = {key: values.reshape(-1, values.shape[-1]) for key, values in data.items()}
    seen, after = flat["obs"].astype(float), flat["next_obs"].astype(float)
    moved = euler(plant, seen[:, :4], flat["action"].astype(float))
    assert np.abs(moved - after[:, :4]).max() < 1e-6
    paid = reward(after[:, :2], after[:, 4:])
    assert np.abs(paid - data["reward"].reshape(-1)).max() < 2e-4
    assert not data["done"].any()
    assert (np.argwhere(data["truncated"].reshape(-1, 100))[:, 1] == 99).all()


@pytest.mark.parametrize("part", ["train", "val"])
def test_released_starts_and_targets_have_the_law_of_the_plant(part):
    data, plant = released(part), MassSpring()
    seen = np.concatenate([data["obs"], data["next_obs"][:, -1:]], axis=1).astype(float)
    copies = Copies(plant, len(seen))
    copies.start(copies.over, [np.random.default_rng(i) for i in range(len(seen))])
    ours = copies.observe().astype(float)
    for column, width in enumerate([0.25, 0.25, 0.1, 0.1, 1.5, 1.5]):
        for found in (seen[:, 0, column], ours[:, column]):
            assert np.abs(found).max() <= width
            assert np.abs(found).max() > 0.95 * width
            assert abs(found.mean()) < 5 * width / (3 * len(found)) ** 0.5
    changes = (np.diff(seen[:, :, 4:], axis=1) != 0).sum(axis=(0, 2))
    assert np.flatnonzero(changes).tolist() == [49]
    assert abs(changes[49] / (2 * len(seen)) - 0.5) < 5 * 0.5 / (2 * len(seen)) ** 0.5


@pytest.mark.parametrize("part", ["train", "val"])
def test_the_published_controllers_reproduce_the_released_actions(part):
    data = released(part)
    controller = PID(part)
    controller.begin(len(data["obs"]))
    errors = [
        np.abs(controller.act(data["obs"][:, step]) - data["action"][:, step]).max()
        for step in range(100)
    ]
    assert max(errors) < 2e-3  # the gains are rounded to four digits


@pytest.mark.parametrize("part", ["train", "val"])
def test_our_logs_return_what_the_released_files_do(part):
    found = read_neorl2(neorl2_file(f"DMSD-{part}.npz")).returns()
    ours = rollout(MassSpring(), PID(part), 1000, seed=1).returns
    error = np.hypot(found.std() / len(found) ** 0.5, ours.std() / 1000**0.5)
    assert abs(found.mean() - ours.mean()) < 4 * error
    assert ours.std() == pytest.approx(found.std(), rel=0.15)


def test_a_step_by_pencil():
    before, action, after = (np.array([row]) for row in BY_HAND)
    first = 2 * (-0.2 - 2 * 0.1) + 4 * (0.3 - 2 * 0.05) + 30 * 0.5  # springs, dampers, motor
    second = 2 * (0.1 + 2 * 0.2) + 4 * (0.05 - 2 * 0.3) - 30
    wanted = np.array([[first, second]]) / 20
    assert acceleration(MassSpring(), before, action) == pytest.approx(wanted)
    assert euler(MassSpring(), before, action) == pytest.approx(after)


def test_at_rest_nothing_moves_and_every_step_pays_the_same():
    plant = MassSpring(largest_target=0.0)
    copies = Copies(plant, 1)
    copies.start(copies.over, [np.random.default_rng(0)])
    copies.states[:] = 0
    for _ in range(100):
        paid, _, cut = copies.step(np.zeros((1, 2)))
        assert paid[0] == pytest.approx(9.2103, abs=1e-4)
        assert (copies.observe() == 0).all()
    assert cut.all()


def test_the_published_controller_returns_what_the_benchmark_needs():
    found = rollout(MassSpring(), PID("train"), 100, seed=0).returns.mean()
    assert 478 < found < 518
    generator = np.random.default_rng(0)
    uniform = as_policy(lambda seen: generator.uniform(-1, 1, size=(len(seen), 2)))
    assert 20 < rollout(MassSpring(), uniform, 200, seed=0).returns.mean() < 55


def test_the_two_step_force_nearly_solves_both_plants():
    for plant in (MassSpring(), MassSpring(mass=30.0)):
        found = rollout(plant, TwoStep(plant), 200, seed=0)
        assert score("DMSD", found.returns.mean()) > 90 - 5 * (plant.mass > 20)
        best = rollout(plant, PID("train"), 200, seed=0)
        assert (found.returns > best.returns).mean() > 0.98


def test_the_two_step_force_is_exact_where_motors_are_strong():
    plant = MassSpring(force=1e5)
    copies = Copies(plant, 20)
    copies.start(copies.over, [np.random.default_rng(i) for i in range(20)])
    policy = TwoStep(plant)
    for _ in range(2):
        copies.step(policy.act(copies.observe()))
    wanted = targets(plant, copies.steps, copies.draws)
    assert np.abs(copies.states[:, :2] - wanted).max() < 1e-5


@given(
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.lists(st.floats(-1, 1), min_size=2, max_size=2),
    st.floats(1, 100),
)
def test_the_masses_can_be_exchanged_and_the_plant_is_linear(state, action, mass):
    plant, swap = MassSpring(mass=mass), [1, 0, 3, 2]
    before, force = np.array([state]), np.array([action])
    after = euler(plant, before, force)
    mirrored = euler(plant, before[:, swap], force[:, ::-1])
    assert mirrored[:, swap] == pytest.approx(after, abs=1e-12)
    assert euler(plant, -2 * before, -2 * force) == pytest.approx(-2 * after, abs=1e-12)


def test_targets_change_half_way_and_only_then():
    plant, generator = MassSpring(horizon=10), np.random.default_rng(0)
    draws = np.array([plant.draw(generator) for _ in range(400)])
    seen = np.array([targets(plant, np.full(400, step), draws) for step in range(11)])
    changed = (seen[1:] != seen[:-1]).any(axis=(1, 2))
    assert np.flatnonzero(changed).tolist() == [4]
    both = (seen[0] != seen[-1]).sum(axis=1)
    assert np.bincount(both, minlength=3) / 400 == pytest.approx([0.25, 0.5, 0.25], abs=0.11)


def test_reward_is_that_of_the_target_in_the_next_observation():
    plant = MassSpring(horizon=4)
    environment = make_copies(plant)
    environment.reset(seed=3)
    for _ in range(4):
        seen, paid, *_ = environment.step(np.zeros(2))
        wanted = -np.log(np.abs(seen[:2] - seen[4:]) + 0.01).sum()
        assert paid == pytest.approx(wanted, abs=1e-4)


def test_a_controller_forgets_at_the_start_of_an_episode():
    controller = PID(Gains((1.0, 1.0), (1.0, 0.0), (0.0, 0.5)))
    seen = np.array([[0.0, 0.0, 0.0, 0.0, 0.1, 0.2]])
    controller.begin(1)
    first = controller.act(seen)
    assert first == pytest.approx(np.array([[0.1 + 0.02, 0.2 + 0.5]]))
    assert controller.act(seen) == pytest.approx(np.array([[0.1 + 0.04, 0.2]]))
    controller.begin(1)
    assert (controller.act(seen) == first).all()


def test_noise_widens_the_log_and_needs_a_generator():
    plain, noisy = PID("train"), PID("train", noise=0.3)
    seen = np.zeros((1000, 6))
    for controller in (plain, noisy):
        controller.begin(1000)
    assert (noisy.act(seen) == plain.act(seen)).all()
    noisy.begin(1000)
    drawn = noisy.act(seen, np.random.default_rng(0))
    assert drawn.std() == pytest.approx(0.3, rel=0.1)
    assert isinstance(TwoStep(), Policy)


def test_what_is_no_plant_or_controller_is_refused():
    for given_number, message in (
        ({"mass": 0.0}, "mass is 0.0"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"force": float("nan")}, "force is nan"),
        ({"horizon": 1}, "the horizon is 1: pass a whole number from 2"),
        ({"horizon": 5.0}, "the horizon is 5.0"),
    ):
        with pytest.raises(InputError, match=message):
            MassSpring(**given_number)
    with pytest.raises(InputError, match="no gains 'best': pass train, val"):
        PID("best")
    with pytest.raises(InputError, match="noise is -1"):
        PID("train", noise=-1)
    controller = PID(BEHAVIOUR["val"])
    with pytest.raises(InputError, match="3 observations, and 0 episodes began"):
        controller.act(np.zeros((3, 6)))
