"""What every world of continuous control gets: environments that agree, seeds, resets, logs."""

import copy
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import as_policy
from offrl_wb.data.collector import collect
from offrl_wb.data.dataset import Dataset
from offrl_wb.worlds import copies as module
from offrl_wb.worlds.copies import (
    World,
    copy_seeds,
    episode_arrays,
    given_world,
    make_copies,
    make_copies_vector,
    rollout,
)
from offrl_wb.worlds.mass_spring import MassSpring, make_mass_spring, make_mass_spring_vector
from offrl_wb.worlds.u_maze import UMaze, make_u_maze, make_u_maze_vector

WORLDS = [MassSpring(horizon=7), UMaze(horizon=9, start="uniform", noise=0.2)]
NAMES = ["spring", "maze"]
each_world = pytest.mark.parametrize("world", WORLDS, ids=NAMES)


def actions_for(world, count, steps, seed=0):
    generator = np.random.default_rng(seed)
    return generator.uniform(-1.3, 1.3, size=(steps, count, world.action_size)).astype(np.float32)


@each_world
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_many_copies_do_bit_for_bit_what_single_environments_do(world, mode):
    ours = make_copies_vector(world, 5, mode)
    theirs = SyncVectorEnv([lambda: make_copies(world)] * 5, autoreset_mode=AutoresetMode(mode))
    first, second = ours.reset(seed=11), theirs.reset(seed=11)
    assert (first[0] == second[0]).all()
    ends = 0
    for actions in actions_for(world, 5, 40):
        first, second = ours.step(actions), theirs.step(np.clip(actions, -1, 1))
        for mine, other in zip(first[:4], second[:4], strict=True):
            assert mine.dtype == other.dtype
            assert (mine == other).all()
        assert set(first[4]) == set(second[4])
        assert (first[4]["step"] == second[4]["step"]).all()
        if "final_obs" in first[4]:
            over = first[4]["_final_obs"]
            assert (over == second[4]["_final_obs"]).all()
            for place in np.flatnonzero(over):
                assert (first[4]["final_obs"][place] == second[4]["final_obs"][place]).all()
            for name, values in first[4]["final_info"].items():
                assert (values[over] == second[4]["final_info"][name][over]).all()
        ends += int((first[2] | first[3]).sum())
    assert ends >= 20


@each_world
def test_an_episode_depends_on_its_seed_alone(world):
    alone, actions = make_copies(world), actions_for(world, 1, world.horizon, seed=3)
    seen = [alone.reset(seed=42)[0]]
    for action in actions[:, 0]:
        *found, _ = alone.step(action)
        seen.append(found[0])
        if found[2] or found[3]:
            break
    for count, place in ((1, 0), (4, 2)):
        many = make_copies_vector(world, count, "Disabled")
        seeds = [7, 8, 9, 10][:count]
        seeds[place] = 42
        again = [many.reset(seed=seeds)[0][place]]
        for action in actions[: len(seen) - 1]:
            again.append(many.step(np.repeat(action, count, axis=0))[0][place])
            if many.copies.over.any():
                break
        assert (np.array(again) == np.array(seen[: len(again)])).all()


@each_world
def test_gymnasiums_checker_is_content(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity.*")
        check_env(make_copies(world), skip_render_check=True)


@pytest.mark.parametrize(
    ("name", "space"), [("DMSD-v0", (6,)), ("UMaze2D-v0", (2,))], ids=["spring", "maze"]
)
def test_gymnasium_makes_them_by_name(name, space):
    single = gymnasium.make(name, horizon=5)
    many = gymnasium.make_vec(name, num_envs=3, horizon=5)
    assert many.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert many.observation_space.shape == (3, *space)
    assert single.observation_space == many.single_observation_space
    assert single.action_space == many.single_action_space
    assert single.reset(seed=1)[0].dtype == np.float32


@each_world
def test_a_masked_reset_leaves_the_other_copies_as_they_are(world):
    many = make_copies_vector(world, 6, "Disabled")
    before, _ = many.reset(seed=0)
    before = many.step(np.zeros((6, 2)))[0]
    mask = np.arange(6) % 2 == 0
    after, info = many.reset(options={"reset_mask": mask})
    assert (after[~mask] == before[~mask]).all()
    assert (after[mask] != before[mask]).any(axis=1).all()
    assert info["step"].tolist() == [0, 1] * 3
    assert (info["_step"] == mask).all()
    seeded, _ = many.reset(seed=5, options={"reset_mask": mask})
    fresh, _ = make_copies_vector(world, 6).reset(seed=5)
    assert (seeded[mask] == fresh[mask]).all()


@each_world
def test_copies_out_of_step_end_each_in_its_time(world):
    many = make_copies_vector(world, 2, "Disabled")
    many.reset(seed=0)
    many.step(np.zeros((2, 2)))
    many.reset(options={"reset_mask": np.array([False, True])})
    for _ in range(world.horizon - 1):
        *_, cut, _ = many.step(np.zeros((2, 2)))
    assert cut.tolist() == [True, False]
    with pytest.raises(InputError, match="copy 0 has no episode under way"):
        many.step(np.zeros((2, 2)))


@each_world
def test_observations_belong_to_the_caller_and_environments_can_be_copied(world):
    for environment in (make_copies(world), make_copies_vector(world, 2)):
        seen, _ = environment.reset(seed=4)
        kept = seen.copy()
        action = np.full(environment.action_space.shape, 0.5)
        others = [copy.deepcopy(environment), pickle.loads(pickle.dumps(environment))]
        wanted = environment.step(action)[0].copy()
        assert (seen == kept).all()
        seen[:] = 0
        for other in others:
            assert (other.step(action)[0] == wanted).all()


@each_world
def test_a_new_episode_of_the_same_copy_is_another_one(world):
    single = make_copies(world)
    first, second = single.reset(seed=1)[0], single.reset()[0]
    assert (first != second).any()
    assert (single.reset(seed=1)[0] == first).all()
    unseeded = make_copies_vector(world, 2).reset()[0]
    assert (unseeded[0] != unseeded[1]).any()


@each_world
def test_a_log_of_whole_episodes_is_what_the_environment_gives(world):
    def policy(seen):
        return np.clip(-seen[:, :2] + 0.3, -1, 1)

    found = rollout(world, as_policy(policy), 12, seed=5)
    log = Dataset.from_arrays(**episode_arrays(found))
    assert log.episode_count == 12
    assert (log.lengths == found.lengths).all()
    assert np.allclose(log.returns(), found.returns, rtol=1e-6)
    ends = log.transitions[log.ends]
    assert (ends["terminated"].to_numpy() == found.terminated).all()
    assert (ends["truncated"] != ends["terminated"]).all()
    assert (found.lengths[~found.terminated] == world.horizon).all()
    ahead = log.arrays().next_observations
    for number, (start, length) in enumerate(zip(log.starts, found.lengths, strict=True)):
        track = found.observations[number, : length + 1]
        assert (ahead[start : start + length] == track[1:]).all()
    fewer = rollout(world, as_policy(policy), 3, seed=5)
    assert (fewer.observations == found.observations[:3]).all()


def test_the_collector_takes_the_worlds_by_name():
    for name in ("DMSD-v0", "UMaze2D-v0"):
        log = collect(
            as_policy(lambda seen: 0.2 * np.ones((len(seen), 2))),
            name,
            episodes=5,
            options={"horizon": 6},
            seed=2,
        )
        assert log.episode_count == 5
        assert (log.lengths == 6).all()
        assert log.transitions["truncated"].sum() == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31), st.sampled_from(WORLDS))
def test_whole_numbers_seed_each_copy_as_gymnasium_does(count, seed, world):
    together = make_copies_vector(world, count).reset(seed=seed)[0]
    single = make_copies(world)
    for place in range(count):
        assert (single.reset(seed=seed + place)[0] == together[place]).all()


def refused(message, function, *arguments, **given):
    with pytest.raises(InputError, match=message) as caught:
        function(*arguments, **given)
    assert "\n" not in str(caught.value)


def test_what_no_environment_takes_is_refused():
    single, many = make_copies(WORLDS[0]), make_copies_vector(WORLDS[0], 3)
    refused("call reset before step", single.step, np.zeros(2))
    refused("call reset before step", many.step, np.zeros((3, 2)))
    single.reset(seed=0)
    many.reset(seed=0)
    refused(r"numbers \(1, 2\): found float64 \(1, 3\)", single.step, np.zeros(3))
    refused(r"numbers \(3, 2\): found float64 \(2, 2\)", many.step, np.zeros((2, 2)))
    refused("numbers", many.step, np.full((3, 2), "a"))
    bad = np.zeros((3, 2))
    bad[1, 0] = np.inf
    refused("action of copy 1 is not finite", many.step, bad)
    refused("the seed is -1", many.reset, seed=-1)
    refused("a seed is -2", many.reset, seed=[1, -2, 3])
    refused("pass one whole number, or 3", many.reset, seed=[1, 2])
    refused("pass one whole number, or 3", many.reset, seed=0.5)
    refused("reset_mask must be booleans", many.reset, options={"reset_mask": np.zeros(3)})
    refused("num_envs is 0", make_copies_vector, WORLDS[0], 0)
    refused("autoreset_mode is 'Never'", make_copies_vector, WORLDS[0], 2, "Never")
    refused("episodes is 0", rollout, WORLDS[0], as_policy(lambda seen: seen[:, :2]), 0)
    with pytest.raises(AttributeError, match="no attribute 'CopiesWagon'"):
        _ = module.CopiesWagon


@pytest.mark.parametrize("make", [make_mass_spring, make_u_maze])
def test_makers_take_a_world_or_its_settings(make):
    assert make(horizon=4).world.horizon == 4
    refused("has no 'colour': there are", make, colour="blue")
    refused("has no 'observation_size'", make, observation_size=3)


def test_makers_of_many_take_a_world_or_its_settings():
    assert make_mass_spring_vector(2, plant=MassSpring(mass=3.0)).world.mass == 3
    assert make_u_maze_vector(2, "SameStep", UMaze(noise=0.0)).world.noise == 0
    refused("pass a MassSpring or 'mass'", make_mass_spring_vector, plant=MassSpring(), mass=3.0)
    refused("pass a UMaze or 'noise'", make_u_maze, UMaze(), noise=0.1)


def test_a_world_of_ones_own_needs_nothing_but_the_protocol():
    @dataclass(frozen=True)
    class Clock:
        horizon: int = 3
        observation_size: int = 1
        action_size: int = 1
        observation_bound: float = 10.0

        def draw(self, generator):
            return generator.random(1)

        def first(self, draws):
            return draws.copy()

        def observe(self, states, steps, draws):
            return steps[:, None].astype(np.float32)

        def move(self, states, actions, steps, draws):
            done = np.zeros(len(states), dtype=bool)
            return module.Moved(states + 1, actions[:, 0], done)

        def report(self, states, steps):
            return {}

    assert isinstance(Clock(), World)
    many = make_copies_vector(given_world(Clock, None, {"horizon": 2}), 2, "SameStep")
    many.reset(seed=0)
    seen, rewards, *_ = many.step([[5.0], [-5.0]])
    assert seen.tolist() == [[1], [1]]
    assert rewards.tolist() == [1, -1]
    seen, _, _, cut, info = many.step([[0.0], [0.0]])
    assert seen.tolist() == [[0], [0]]
    assert cut.all()
    assert [last.tolist() for last in info["final_obs"]] == [[2], [2]]


def test_seeds_of_copies():
    assert copy_seeds(np.int64(3), 2) == [3, 4]
    assert copy_seeds(np.array([5, 1]), 2) == [5, 1]


def test_importing_the_worlds_imports_nothing_heavy_and_registers_nothing():
    code = (
        "import sys, offrl_wb.worlds.mass_spring as m, offrl_wb.worlds.u_maze as u,"
        " offrl_wb.worlds.lava_grid as g; from offrl_wb.worlds.copies import Copies, rollout;"
        "Copies(m.MassSpring(), 2); g.to_tabular(g.LavaGrid());"
        "heavy = {'gymnasium', 'torch', 'polars', 'plotly', 'scipy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_gymnasium_finds_them_by_module_and_name():
    code = (
        "import gymnasium as g;"
        "g.make('offrl_wb.worlds.u_maze:UMaze2D-v0', start='uniform').reset(seed=0);"
        "v = g.make_vec('offrl_wb.worlds.mass_spring:DMSD-v0', num_envs=2);"
        "assert v.reset(seed=0)[0].shape == (2, 6)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
