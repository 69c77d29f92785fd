"""Gymnasium's toy worlds as tables."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from offrl_wb.core.errors import InputError
from offrl_wb.worlds.tabular import TabularMDP, evaluate, value_iteration
from offrl_wb.worlds.toy_text import merged_outcomes, raw_toy_text, toy_text, unit_rewards

NAMES = ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"]


@pytest.mark.parametrize("discount", [0.9, 0.99])
@pytest.mark.parametrize("name", NAMES)
def test_mapping_rewards_to_the_unit_interval_keeps_the_optimal_policy(name, discount):
    raw = raw_toy_text(name, discount)
    mapped, scale = unit_rewards(raw)
    assert mapped.rewards.min() >= 0
    assert mapped.rewards.max() == 1
    plan, raw_plan = value_iteration(mapped, 1e-10), value_iteration(raw, 1e-8)
    size = np.abs(raw_plan.values).max()
    assert scale.raw_values(plan.values) == pytest.approx(raw_plan.values, abs=1e-8 * size)
    assert evaluate(raw, plan.actions) == pytest.approx(raw_plan.values, abs=1e-7 * size)
    assert evaluate(mapped, raw_plan.actions) == pytest.approx(plan.values, abs=1e-7)


def test_leaving_the_absorbing_state_at_zero_would_change_the_optimal_policy():
    raw = raw_toy_text("Taxi-v4", 0.99)
    mapped, _ = unit_rewards(raw)
    rewards = np.array(mapped.rewards)
    rewards[-1] = 0
    wrong = TabularMDP(mapped.initial, mapped.successors, mapped.probabilities, rewards, 0.99)
    misled = evaluate(raw, value_iteration(wrong).actions) @ raw.initial
    assert misled < value_iteration(raw).values @ raw.initial - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_map_moves_every_policy_alike(name):
    raw = raw_toy_text(name, 0.9)
    mapped, scale = unit_rewards(raw)
    shape = (3, raw.states)
    policies = np.random.default_rng(0).dirichlet(np.ones(raw.actions_count), size=shape)
    assert scale.raw_values(evaluate(mapped, policies)) == pytest.approx(evaluate(raw, policies))


@pytest.mark.parametrize("name", NAMES)
def test_every_transition_is_gymnasiums_and_the_last_state_absorbs(name):
    world = raw_toy_text(name, 0.9)
    table = gymnasium.make(name).unwrapped.P
    assert world.states == len(table) + 1
    dense, end = world.transition_matrix, world.states - 1
    for state in range(0, len(table), 7):
        for action in range(world.actions_count):
            expected, reward = np.zeros(world.states), 0.0
            for chance, successor, paid, terminated in table[state][action]:
                expected[end if terminated else successor] += chance
                reward += chance * paid
            assert dense[state, action] == pytest.approx(expected)
            assert world.reward[state, action] == pytest.approx(reward)
    assert dense[end, :, end].tolist() == [1.0] * world.actions_count
    assert (world.reward[end] == 0).all()


def test_simulated_episodes_have_the_exact_value():
    discount = 0.9
    world = raw_toy_text("FrozenLake-v1", discount)
    actions = value_iteration(world).actions
    environment = gymnasium.make("FrozenLake-v1")
    returns = []
    for episode in range(3000):
        state, _ = environment.reset(seed=episode if episode == 0 else None)
        total, weight, done = 0.0, 1.0, False
        while not done:
            state, reward, terminated, truncated, _ = environment.step(int(actions[state]))
            total, weight, done = (
                total + weight * reward,
                weight * discount,
                terminated or truncated,
            )
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns))
    exact = evaluate(world, actions) @ world.initial
    assert abs(np.mean(returns) - exact) < 5 * error


def test_the_cliff_has_a_path_of_thirteen_steps():
    world = raw_toy_text("CliffWalking-v1", 0.95)
    best = value_iteration(world).values @ world.initial
    assert best == pytest.approx(-(1 - 0.95**13) / 0.05)


def test_options_reach_the_environment():
    still = toy_text("FrozenLake-v1", 0.9, is_slippery=False)
    assert still.successors.shape[2] == 1
    assert toy_text("FrozenLake-v1", 0.9, map_name="8x8").states == 65


def test_identical_outcomes_are_added_and_different_ones_kept_apart():
    rows = [
        (0.25, 3, 0, False),
        (0.25, 3, 0, False),
        (0.25, 3, 1, False),
        (0.25, 3, 0, True),
        (0, 5, 0, False),
    ]
    merged = merged_outcomes(rows, absorbing=9)
    assert merged == [(3, 0.5, 0.0), (3, 0.25, 1.0), (9, 0.25, 0.0)]


@pytest.mark.parametrize("name", ["FrozenLake-v99", "NoSuchWorld-v0", "Blackjack-v1"])
def test_a_world_that_cannot_be_had_is_refused_by_name(name):
    with pytest.raises(InputError, match=name):
        raw_toy_text(name, 0.9)


def test_a_wrong_option_is_refused():
    with pytest.raises(InputError, match="colour"):
        raw_toy_text("FrozenLake-v1", 0.9, colour="blue")


def test_constant_rewards_cannot_be_mapped():
    flat = TabularMDP.from_dense([1.0], np.ones((1, 1, 1)), np.ones((1, 1)), 0.9, name="flat")
    with pytest.raises(InputError, match="every reward of flat"):
        unit_rewards(flat)


def test_importing_the_module_does_not_import_gymnasium():
    code = "import sys, offrl_wb.worlds.toy_text; sys.exit('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
