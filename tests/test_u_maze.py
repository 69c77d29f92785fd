"""The maze: walls, law of starts, ends of episodes, and the log with its rule for failures."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import as_policy
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.views import monte_carlo_returns
from offrl_wb.data.world_logs import maze_log
from offrl_wb.worlds.copies import Copies, make_copies, rollout
from offrl_wb.worlds.u_maze import (
    WAYPOINTS,
    UMaze,
    Wanderers,
    free,
    free_position,
    maze_episodes,
    slide,
    waypoint_ahead,
)

unit = st.floats(0, 1, exclude_max=True)


def is_free(x, y):
    """Plainly: inside the square, and not in the wall."""
    return 0 <= x <= 3 and 0 <= y <= 3 and not (x < 2 and 1 < y < 2)


def slid(x, y, dx, dy):
    """Plainly: one axis after the other, a blocked one stays."""
    if is_free(x + dx, y):
        x += dx
    if is_free(x, y + dy):
        y += dy
    return x, y


@given(unit, unit, st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
def test_a_move_is_one_axis_after_the_other_and_never_ends_in_a_wall(u, v, dx, dy):
    (start,) = free_position(np.array([[u, v]]))
    (after,) = slide(start[None], np.array([[dx, dy]]))
    assert after == pytest.approx(slid(*start, dx, dy))
    assert is_free(*after)
    assert is_free(*start)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20), st.integers(0, 2**31))
def test_nobody_jumps_over_the_wall(starts, seed):
    positions = free_position(np.array(starts))
    moves = np.random.default_rng(seed).uniform(-0.9, 0.9, size=positions.shape)
    after = slide(positions, moves)
    over = (positions[:, 0] < 1.9) & (after[:, 0] < 1.9)
    assert ((positions[over, 1] <= 1) == (after[over, 1] <= 1)).all()


def test_uniform_starts_are_uniform_over_the_free_area():
    copies = Copies(UMaze(start="uniform"), 7000)
    copies.start(copies.over, [np.random.default_rng(i) for i in range(7000)])
    assert free(copies.states).all()
    cells = np.histogram2d(*copies.states.T, bins=6, range=[[0, 3]] * 2)[0].reshape(36)
    inside = cells[cells > 0]
    assert len(inside) == 28
    assert np.abs(inside - 250).max() < 5 * 250**0.5


def test_corner_starts_lie_in_the_corner():
    copies = Copies(UMaze(), 2000)
    copies.start(copies.over, [np.random.default_rng(i) for i in range(2000)])
    assert copies.states.min() >= 0.2
    assert copies.states.max() <= 0.8
    assert copies.states.std(axis=0) == pytest.approx([0.6 / 12**0.5] * 2, rel=0.05)
    assert np.allclose(copies.observe(), (copies.states - 1.5) / 1.5, atol=1e-6)


def test_displacements_are_the_action_and_noise():
    maze = UMaze(noise=0.03)
    copies = Copies(maze, 4000)
    copies.start(copies.over, [np.random.default_rng(i) for i in range(4000)])
    copies.states[:] = [1.0, 0.5]
    copies.step(np.tile([0.5, -0.25], (4000, 1)))
    moved = copies.states - [1.0, 0.5]
    assert moved.mean(axis=0) == pytest.approx([0.2, -0.1], abs=5 * 0.03 / 4000**0.5)
    assert moved.std(axis=0) == pytest.approx([0.03, 0.03], rel=0.06)


def test_reaching_the_goal_terminates_for_nothing_and_time_only_truncates():
    maze = UMaze(noise=0.0, horizon=4)
    for start, steps, ends in (((0.9, 2.5), 1, True), ((0.5, 0.5), 4, False)):
        environment = make_copies(maze)
        environment.reset(seed=0)
        environment.copies.states[:] = start
        for _ in range(4):
            _, reward, terminated, truncated, info = environment.step(np.array([-1.0, 0.0]))
            assert reward == (0 if terminated else -1)
            assert info["success"] == terminated
            if terminated or truncated:
                break
        assert (info["step"], terminated, truncated) == (steps, ends, not ends)


def test_the_goal_is_a_disc():
    maze = UMaze()
    points = maze.goal + 0.25 * np.array([[0.99, 0], [0, 1.01], [0.7, 0.7], [0.75, 0.75]])
    assert maze.reached(points).tolist() == [True, False, True, False]


def test_the_way_is_eleven_or_twelve_steps_at_full_speed():
    def fast(seen):
        place = 1.5 * (seen.astype(float) + 1)
        across, up = place.T
        aim = np.array([[2.1, 0.9], [2.1, 2.1], [0.5, 2.4]])
        leg = np.where(up > 2, 2, np.where(across >= 2, 1, 0))
        return np.clip((aim[leg] - place) / 0.4, -1, 1)

    found = rollout(UMaze(noise=0.0), as_policy(fast), 200, seed=0)
    assert found.terminated.all()
    assert set(found.lengths) == {11, 12}


def test_followers_arrive_and_wanderers_rarely_do():
    rates = {}
    for start in ("corner", "uniform"):
        for share in (0.0, 1.0):
            found = rollout(UMaze(start=start), Wanderers(share), 400, seed=2)
            rates[start, share] = found.terminated.mean()
    assert rates["corner", 1.0] > 0.93
    assert rates["uniform", 1.0] > 0.97
    assert rates["corner", 0.0] < 0.1
    assert 0.05 < rates["uniform", 0.0] < 0.25


def test_followers_join_the_way_ahead_of_them():
    places = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 1.5], [2.9, 2.5], [0.1, 2.9]])
    assert waypoint_ahead(places).tolist() == [0, 1, 2, 3, 3]
    guide = Wanderers(share=1.0)
    guide.begin(5, np.random.default_rng(0))
    wanted = 0.7 * np.clip((WAYPOINTS[[0, 1, 2, 3, 3]] - places) / 0.4, -1, 1)
    assert guide.act(places / 1.5 - 1) == pytest.approx(wanted)


def test_wanderers_keep_their_aim_unless_it_is_drawn_anew():
    calm, nervous = Wanderers(0.0, noise=0.0, redraw=0.0), Wanderers(0.0, noise=0.0, redraw=1.0)
    generator = np.random.default_rng(0)
    for behaviour, same in ((calm, True), (nervous, False)):
        behaviour.begin(50, generator)
        aims = behaviour.wanted.copy()
        behaviour.act(np.zeros((50, 2)), generator)
        assert (behaviour.wanted == aims).all() == same


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_log_has_the_share_of_followers_that_was_asked_for(share):
    log = maze_log(8000, share, seed=4)
    assert len(log) == 8000
    followers = (log.episodes["source"] == "follower").mean()
    assert abs(followers - share) < 4 * (share * (1 - share) / log.episode_count) ** 0.5
    assert log.spec.discount == 0.95
    assert log.spec.name == "UMaze2D"
    assert log.transitions["reward"].is_in([-1.0, 0.0]).all()
    assert (log.transitions["terminated"] == (log.transitions["reward"] == 0)).all()


def test_failed_episodes_are_worth_failing_for_ever():
    log = maze_log(3000, 0.2, seed=0)
    rows = log.transitions.join(log.episodes.select("episode", "success"), on="episode")
    lost = rows.filter(~pl.col("success"))
    assert len(lost) > 1000
    assert (lost["mc_return"] == -20).all()
    won = rows.filter("success")
    assert (won["mc_return"] > -20).all()
    assert won.filter("terminated")["mc_return"].unique().to_list() == [0]
    whole = log.select(np.arange(log.episode_count - 1))
    wanted = monte_carlo_returns(whole, 0.95, -1.0, "success")
    assert np.allclose(whole.transitions["mc_return"], wanted, atol=1e-5)
    ahead = won.filter(~pl.col("terminated"))["mc_return"].to_numpy()
    assert ahead.max() == -1  # the step before the goal


def test_the_cut_at_the_size_changes_no_row():
    short, long = maze_log(997, 0.3, seed=7), maze_log(1000, 0.3, seed=7)
    assert len(short) == 997
    both = [log.arrays() for log in (short, long)]
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        assert (getattr(both[0], name) == getattr(both[1], name)[:997]).all()
    assert (short.transitions["mc_return"] == long.transitions["mc_return"][:997]).all()
    last = short.transitions[-1]
    assert last["truncated"][0] != last["terminated"][0]
    assert short.transitions["truncated"].sum() + short.transitions["terminated"].sum() == (
        short.episode_count
    )


def test_a_log_is_made_again_by_its_record_and_by_its_seed_alone():
    log = maze_log(500, 0.2, seed=3, noise=0.1)
    names: dict[str, Dataset] = {}
    exec(log.provenance.as_python(), names)
    assert names["dataset"].content_hash == log.content_hash
    assert maze_log(500, 0.2, seed=4, noise=0.1).content_hash != log.content_hash


def test_easy_episodes_are_made_until_there_are_enough():
    quick = UMaze(start="uniform", radius=0.5, horizon=60)
    found, followers = maze_episodes(2000, 1.0, 0, quick)
    assert found.lengths.sum() >= 2000 > found.lengths[:-1].sum()
    assert len(found.lengths) == len(followers) > 2000 / 60 * 2


def test_what_is_no_maze_is_refused():
    for given_number, message in (
        ({"start": "middle"}, "start is 'middle': pass corner or uniform"),
        ({"step_length": 1.0}, "step_length is 1.0: pass a number from 0 to 0.9"),
        ({"horizon": 0}, "the horizon is 0"),
        ({"discount": 1.0}, "discount is 1.0"),
        ({"noise": -0.1}, "noise is -0.1"),
    ):
        with pytest.raises(InputError, match=message):
            UMaze(**given_number)
    with pytest.raises(InputError, match=r"share is 1\.5: pass a number from 0 to 1"):
        Wanderers(1.5)
    with pytest.raises(InputError, match="size is 0"):
        maze_log(0)
    with pytest.raises(InputError, match="has no 'wall'"):
        maze_log(10, wall=3)
    with pytest.raises(InputError, match="3 observations, and 0 episodes began"):
        Wanderers().act(np.zeros((3, 2)))
