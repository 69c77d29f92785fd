"""The lava grid: exact values, its corrupted logs, and the law of their corruption."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.world_logs import lava_grid_log
from offrl_wb.worlds.lava_grid import (
    MOVES,
    LavaGrid,
    clean_log,
    corrupted_log,
    corrupted_world,
    displacement,
    grid_tables,
    log_arrays,
    mean_return,
    to_tabular,
)
from offrl_wb.worlds.tabular import evaluate, value_iteration


def walked(grid, policy, start, steps=2000):
    """The discounted return of walking, plainly, one step at a time."""
    x, y, total, factor = *divmod(start, grid.size), 0.0, 1.0
    for _ in range(steps):
        if x * grid.size + y == grid.goal:
            break
        dx, dy = MOVES[policy[x * grid.size + y]]
        x = min(max(x + dx, 0), grid.size - 1)
        y = min(max(y + dy, 0), grid.size - 1)
        if x * grid.size + y == grid.goal:
            paid = grid.goal_reward
        elif (x == 3 and y <= 7) or (x == 7 and y >= 3):
            paid = grid.lava_reward
        else:
            paid = grid.step_reward
        total += factor * paid
        factor *= grid.discount
    return total


def test_values_are_those_of_walking():
    grid, generator = LavaGrid(), np.random.default_rng(0)
    best = value_iteration(to_tabular(grid)).actions
    for policy in (best, *generator.integers(4, size=(3, 121))):
        exact = evaluate(to_tabular(grid), policy)
        plain = [walked(grid, policy, start) for start in range(121)]
        assert exact == pytest.approx(plain, abs=1e-5)
        assert mean_return(grid, policy) == pytest.approx(np.mean(plain), abs=1e-5)


def test_the_best_policy_earns_what_it_should():
    grid = LavaGrid()
    solution = value_iteration(to_tabular(grid))
    assert mean_return(grid, solution.actions) == pytest.approx(7.376, abs=5e-4)
    assert solution.values[grid.goal] == 0
    assert solution.values[[grid.goal - 1, grid.goal - 11]] == pytest.approx([10, 10])
    policies = np.random.default_rng(1).dirichlet(np.ones(4), size=(5, 121))
    assert (mean_return(grid, policies) < 7.3).all()
    assert mean_return(grid, policies).shape == (5,)


def test_the_way_back_between_states_and_coordinates():
    grid = LavaGrid(size=9)
    assert (grid.cells(grid.coordinates(np.arange(81))) == np.arange(81)).all()
    assert grid.cells(np.array([[-3, 20], [4, 4]])).tolist() == [8, 40]
    assert grid.lava.sum() == 2 * 6
    assert not grid.lava[:, -1][grid.lava[:, 0]].any()  # each wall has a gap at one end


def test_the_clean_log_says_what_the_grid_does():
    grid = LavaGrid()
    after, rewards = grid_tables(grid)
    log = clean_log(grid, 3)
    assert log.rewards.shape == (120, 4, 3)
    assert (log.rewards == rewards[:120, :, None]).all()
    assert (log.next_states == after[:120, :, None]).all()
    assert (log.terminated == (log.rewards == 10)).all()
    assert log.terminated.sum() == 2 * 3
    assert not log.spoiled.any()
    assert set(np.unique(log.rewards)) == {-2.0, -0.1, 10.0}


@given(st.sampled_from(["dynamics", "rewards"]), st.floats(0, 1), st.integers(0, 10**6))
def test_only_the_named_element_of_spoiled_rows_changes(element, rate, seed):
    grid = LavaGrid()
    clean, log = clean_log(grid), corrupted_log(grid, element, rate, seed)
    changed = {"dynamics": "next_states", "rewards": "rewards"}[element]
    for name in ("rewards", "next_states", "terminated"):
        same = getattr(log, name) == getattr(clean, name)
        assert same[~log.spoiled].all()
        assert name == changed or same.all()
    size = log.spoiled.size
    assert abs(log.spoiled.sum() - rate * size) <= 6 * (rate * (1 - rate) * size) ** 0.5 + 6
    moved = grid.coordinates(log.next_states) - grid.coordinates(clean.next_states)
    assert np.abs(moved).max() <= 6
    assert np.abs(log.rewards).max() <= 30


def test_the_same_seed_spoils_the_same_rows_whatever_the_element():
    grid = LavaGrid()
    logs = [corrupted_log(grid, element, 0.3, seed=5) for element in ("dynamics", "rewards")]
    assert (logs[0].spoiled == logs[1].spoiled).all()
    again = corrupted_log(grid, "dynamics", 0.3, seed=5)
    assert all((a == b).all() for a, b in zip(again, logs[0], strict=True))
    other = corrupted_log(grid, "dynamics", 0.3, seed=6)
    assert (other.spoiled != again.spoiled).any()


def test_random_rewards_are_replaced_and_uniform():
    log = corrupted_log(LavaGrid(), "rewards", 0.5, seed=0, copies=100, reward_range=12.0)
    drawn = log.rewards[log.spoiled]
    assert drawn.min() < -11.9
    assert drawn.max() > 11.9
    assert abs(drawn.mean()) < 5 * 12 / (3 * len(drawn)) ** 0.5
    assert drawn.std() == pytest.approx(12 / 3**0.5, rel=0.02)


def test_displacements_have_their_law():
    grid = LavaGrid()
    law = displacement(grid)
    assert law.sum(axis=1) == pytest.approx(np.ones(121))
    assert law[60, 60] == pytest.approx(1 / 169)  # the middle: one way to stay
    assert law[0, 0] == pytest.approx((7 / 13) ** 2)  # the corner: seven of thirteen, twice
    assert (displacement(grid, 0) == np.eye(121)).all()
    log = corrupted_log(grid, "dynamics", 1.0, seed=3, copies=2000)
    shares = np.bincount(log.next_states[0, 1], minlength=121) / 2000
    assert np.abs(shares - law[0]).max() < 5 * (law[0].max() / 2000) ** 0.5


def test_the_corrupted_world_is_what_corrupted_logs_tend_to():
    grid = LavaGrid()
    assert value_iteration(corrupted_world(grid, 0.0)).values[:121] == pytest.approx(
        value_iteration(to_tabular(grid)).values
    )
    world = corrupted_world(grid, 0.3)
    log = corrupted_log(grid, "dynamics", 0.3, seed=1, copies=500)
    states, actions, _ = np.indices(log.rewards.shape)
    ends = np.where(log.terminated, 121, log.next_states)
    counts = np.zeros((122, 4, 122))
    np.add.at(counts, (states, actions, ends), 1)
    law = world.transition_matrix[:120]
    error = 6 * np.sqrt(law * (1 - law) / 500)
    assert (np.abs(counts[:120] / 500 - law) <= error + 0.012).all()
    assert world.transition_matrix[[109, 119], [0, 2], 121].tolist() == [1, 1]
    lost = [
        float(mean_return(grid, value_iteration(corrupted_world(grid, c)).actions[:121]))
        for c in (0.0, 0.3, 0.7)
    ]
    assert lost[0] > 7.3
    assert lost[1] < 3  # averaging over data without end does not undo the corruption
    assert lost[2] < lost[1]


@pytest.mark.parametrize("element", [None, "dynamics", "rewards"])
def test_a_log_becomes_a_dataset(element):
    data = lava_grid_log(element, 0.3, seed=2, copies=4)
    log = clean_log(LavaGrid(), 4)
    if element:
        log = corrupted_log(LavaGrid(), element, 0.3, 2, 4)
    rows = data.arrays()
    assert len(data) == 120 * 4 * 4
    assert (rows.rewards.reshape(120, 4, 4) == log.rewards).all()
    assert (rows.next_observations.reshape(120, 4, 4) == log.next_states).all()
    assert (rows.observations.reshape(120, -1) == np.arange(120)[:, None]).all()
    assert (rows.actions.reshape(120, 4, 4) == np.arange(4)[:, None]).all()
    assert (rows.terminated ^ rows.truncated).all()
    assert data.transitions["spoiled"].sum() == log.spoiled.sum()
    assert data.spec.discount == 0.99
    names: dict[str, Dataset] = {}
    exec(data.provenance.as_python(), names)
    assert names["dataset"].content_hash == data.content_hash
    assert len(Dataset.from_arrays(**log_arrays(LavaGrid(), log))) == len(data)


def test_what_is_no_grid_or_corruption_is_refused():
    grid = LavaGrid()
    for message, function, given_here in (
        ("the size is 5: pass a whole number from 7", LavaGrid, {"size": 5}),
        ("the discount is 1.0", LavaGrid, {"discount": 1.0}),
        ("goal_reward is nan", LavaGrid, {"goal_reward": float("nan")}),
        ("copies is 0", clean_log, {"grid": grid, "copies": 0}),
        ("'states': pass dynamics or rewards", corrupted_log, {"grid": grid, "element": "states"}),
        ("rate is 1.1", corrupted_log, {"grid": grid, "element": "rewards", "rate": 1.1}),
        ("reach is 12", corrupted_log, {"grid": grid, "element": "dynamics", "reach": 12}),
        ("rate is -0.1", corrupted_world, {"grid": grid, "rate": -0.1}),
        ("LavaGrid has no 'width'", lava_grid_log, {"width": 3}),
    ):
        with pytest.raises(InputError, match=message):
            function(**given_here)
