"""Layered worlds: drawing by rows of uniforms, the worlds and their classes, files of one's own."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.coverage import policies_coverability, single_policy_concentrability
from offrl_wb.worlds.layered import (
    WORLDS,
    bandit_family,
    check_entries,
    check_returns,
    class_of_models,
    combination_lock,
    completeness_trap,
    contextual_bandit,
    decoy_chains,
    distribution_function,
    draw_counts,
    draw_episodes,
    draw_tuples,
    find_table,
    largest_return,
    lock_codes,
    lock_family,
    noisy_optimal,
    perturbed_models,
    possible_states,
    read_world,
    slots,
    split_counts,
    world,
)
from offrl_wb.worlds.tabular import (
    FiniteHorizonMDP,
    evaluate_horizon,
    occupancy_horizon,
    plan_horizon,
)


def random_world(seed: int, noise: str = "bernoulli", horizon: int = 3) -> FiniteHorizonMDP:
    """Four states, two actions; some successors are impossible; returns stay below 1."""
    generator = np.random.default_rng(seed)
    shape = (horizon, 4, 2)
    rows = generator.random((*shape, 4)) * (generator.random((*shape, 4)) < 0.6)
    rows[..., seed % 4] += 0.01
    rows /= rows.sum(axis=-1, keepdims=True)
    start = np.roll([0.0, 0.3, 0.7, 0.0], seed)
    return FiniteHorizonMDP(start, rows, generator.random(shape) / horizon, "random", noise)


def random_policy(seed: int, mdp: FiniteHorizonMDP) -> np.ndarray:
    weights = np.random.default_rng(seed).random(mdp.reward.shape)
    weights[..., 1] *= weights[..., 0] > 0.3
    return weights / weights.sum(axis=-1, keepdims=True)


def transition_counts(mdp: FiniteHorizonMDP, drawn: Any) -> np.ndarray:
    counts = np.zeros(mdp.transition.shape)
    for layer in range(mdp.horizon):
        cells = drawn.states[:, layer], drawn.actions[:, layer], drawn.next_states[:, layer]
        np.add.at(counts[layer], cells, 1)
    return counts


def deviations(counts: np.ndarray, share: np.ndarray, size: int) -> float:
    """Largest deviation from `size * share` in standard deviations; impossible cells stay empty."""
    assert not counts[share == 0].any()
    spread = np.sqrt(size * share * (1 - share))
    random = spread > 1e-6
    return float((np.abs(counts - size * share)[random] / spread[random]).max())


def loop_episode(mdp: FiniteHorizonMDP, policy: np.ndarray, row: np.ndarray) -> list[tuple]:
    """One episode, written out: three numbers a layer, each drawn by adding up probabilities."""

    def pick(probabilities: np.ndarray, number: float) -> int:
        total = 0.0
        for entry, probability in enumerate(probabilities):
            total += probability
            if probability > 0 and number < total:
                return entry
        return int(np.flatnonzero(probabilities)[-1])

    state, steps = pick(mdp.initial, row[0]), []
    for layer in range(mdp.horizon):
        act, pay, move = row[1 + 3 * layer : 4 + 3 * layer]
        fixed = np.issubdtype(policy.dtype, np.integer)
        action = policy[layer, state] if fixed else pick(policy[layer, state], act)
        mean = mdp.reward[layer, state, action]
        reward = float(pay < mean) if mdp.noise == "bernoulli" else mean
        after = pick(mdp.transition[layer, state, action], move)
        steps.append((state, action, reward, after))
        state = after
    return steps


# --- drawing ------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e-12]), min_size=1, max_size=6).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_an_impossible_entry_is_never_drawn_and_there_always_is_one(
    weights: list[float], number: float
) -> None:
    probabilities = np.array(weights) / sum(weights)
    drawn = int(np.searchsorted(distribution_function(probabilities), number, side="right"))
    assert probabilities[drawn] > 0
    assert probabilities[:drawn].sum() <= number + 1e-12


@given(st.integers(0, 40), st.booleans(), st.sampled_from(["none", "bernoulli"]))
@settings(max_examples=30, deadline=None)
def test_episodes_equal_those_of_a_loop(seed: int, fixed: bool, noise: str) -> None:
    mdp = random_world(seed, noise)
    policy = plan_horizon(mdp).actions if fixed else random_policy(seed, mdp)
    numbers = np.random.default_rng(seed).random((20, 10))
    drawn = draw_episodes(mdp, policy, numbers)
    for place, row in enumerate(numbers):
        steps = list(zip(*(column[place].tolist() for column in drawn), strict=True))
        assert steps == loop_episode(mdp, policy, row)


@given(st.integers(0, 20), st.lists(st.integers(0, 49), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_row_gives_its_episode_whatever_is_drawn_with_it(seed: int, chosen: list[int]) -> None:
    mdp = random_world(seed)
    policy = random_policy(seed, mdp)
    numbers = np.random.default_rng(seed).random((50, 10))
    for whole, part in zip(
        draw_episodes(mdp, policy, numbers),
        draw_episodes(mdp, policy, numbers[chosen]),
        strict=True,
    ):
        assert (whole[chosen] == part).all()
    flow, numbers = occupancy_horizon(mdp, policy), numbers.repeat(2, axis=1)[:, :12]
    numbers = numbers.reshape(50, 3, 4)
    for whole, part in zip(
        draw_tuples(mdp, flow, numbers), draw_tuples(mdp, flow, numbers[chosen]), strict=True
    ):
        assert (whole[chosen] == part).all()


@pytest.mark.parametrize("seed", range(3))
def test_frequencies_agree_with_the_exact_occupancy(seed: int) -> None:
    mdp, size = random_world(seed), 40_000
    policy, generator = random_policy(seed, mdp), np.random.default_rng(seed)
    flow = occupancy_horizon(mdp, policy)
    share = flow[..., None] * mdp.transition
    drawn = draw_episodes(mdp, policy, generator.random((size, 10)))
    assert deviations(transition_counts(mdp, drawn), share, size) < 5
    tuples = draw_tuples(mdp, flow, generator.random((size, 3, 4)))
    assert deviations(transition_counts(mdp, tuples), share, size) < 5
    counts, paid = draw_counts(mdp, policy, size, generator)
    assert deviations(counts, share, size) < 5
    assert deviations(paid, flow * mdp.reward, size) < 5
    returns = drawn.rewards.sum(axis=1)
    exact = evaluate_horizon(mdp, policy)[0] @ mdp.initial
    assert abs(returns.mean() - exact) < 5 * returns.std() / size**0.5


def test_tuples_of_different_layers_are_independent() -> None:
    mdp = random_world(1)
    flow = occupancy_horizon(mdp, np.full((3, 4, 2), 0.5))
    drawn = draw_tuples(mdp, flow, np.random.default_rng(0).random((20_000, 3, 4)))
    joint = np.zeros((4, 4))
    np.add.at(joint, (drawn.next_states[:, 0], drawn.states[:, 1]), 1)
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / joint.sum() ** 2
    assert deviations(joint, apart, 20_000) < 5


def test_counts_have_the_spread_of_episodes_too() -> None:
    mdp = random_world(2)
    policy, generator = random_policy(2, mdp), np.random.default_rng(0)
    counted = np.array([draw_counts(mdp, policy, 30, generator)[0] for _ in range(3000)])
    drawn = np.array(
        [
            transition_counts(mdp, draw_episodes(mdp, policy, generator.random((30, 10))))
            for _ in range(3000)
        ]
    )
    pooled = counted.reshape(3000, -1), drawn.reshape(3000, -1)
    first, second = (np.cov(one, rowvar=False) for one in pooled)
    scale = np.sqrt(np.outer(np.diag(second), np.diag(second)))
    assert np.abs(first - second)[scale > 0.01].max() < 0.12 * scale.max()
    assert np.abs(first - second)[scale == 0].max(initial=0) == 0


@given(st.integers(0, 30), st.integers(0, 10**7), st.sampled_from(["none", "bernoulli"]))
@settings(max_examples=25, deadline=None)
def test_counts_flow_from_layer_to_layer(seed: int, episodes: int, noise: str) -> None:
    mdp = random_world(seed, noise)
    counts, paid = draw_counts(
        mdp, plan_horizon(mdp).actions, episodes, np.random.default_rng(seed)
    )
    assert (counts.sum(axis=(1, 2, 3)) == episodes).all()
    assert (counts[:-1].sum(axis=(1, 2)) == counts[1:].sum(axis=(2, 3))).all()
    assert not counts[mdp.transition == 0].any()
    visits = counts.sum(axis=-1)
    if noise == "none":
        assert np.allclose(paid, visits * mdp.reward)
    assert ((paid >= 0) & (paid <= visits)).all()


@given(st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_split_counts_leave_impossible_entries_empty(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.random((5, 6)) * (generator.random((5, 6)) < 0.4)
    weights[:, seed % 6] += 1e-9
    counts = generator.integers(0, 10**9, size=5)
    split = split_counts(counts, weights / weights.sum(axis=1, keepdims=True), generator)
    assert (split.sum(axis=1) == counts).all()
    assert not split[weights == 0].any()


def test_slots_are_kept_for_a_world_and_hold_only_what_is_possible() -> None:
    mdp = decoy_chains(actions=20, horizon=4).mdp
    assert slots(mdp) is slots(mdp)
    assert slots(mdp).successors.shape == (4, 400, 1)


def test_drawing_costs_little() -> None:
    instance = decoy_chains(actions=10, horizon=5)
    numbers = np.random.default_rng(0).random((100_000, 16))
    policy = plan_horizon(instance.mdp).actions
    draw_episodes(instance.mdp, policy, numbers[:1])
    start = time.perf_counter()
    draw_episodes(instance.mdp, policy, numbers)
    many = time.perf_counter() - start
    start = time.perf_counter()
    draw_counts(instance.mdp, policy, 10**9, np.random.default_rng(0))
    counts = time.perf_counter() - start
    assert many < 2
    assert counts < 0.5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda mdp: draw_episodes(mdp, np.zeros((3, 4), int), np.zeros((5, 9))), "(N, 10)"),
        (lambda mdp: draw_episodes(mdp, np.zeros((3, 4), int), np.zeros(10)), "(N, 10)"),
        (lambda mdp: draw_episodes(mdp, np.zeros((2, 3, 4), int), np.zeros((1, 10))), "one policy"),
        (lambda mdp: draw_episodes(mdp, np.full((3, 4), 2), np.zeros((1, 10))), "outside 0 to 1"),
        (lambda mdp: draw_episodes(mdp, np.full((3, 4, 2), 0.4), np.zeros((1, 10))), "sum to 1"),
        (lambda mdp: draw_tuples(mdp, np.full((3, 4, 2), 1 / 8), np.zeros((1, 3))), "(N, 3, 4)"),
        (lambda mdp: draw_tuples(mdp, np.ones((3, 4)), np.zeros((1, 3, 4))), "(3, 4, 2)"),
        (lambda mdp: draw_tuples(mdp, np.ones((3, 4, 2)), np.zeros((1, 3, 4))), "of layer 0"),
        (lambda mdp: draw_counts(mdp, np.zeros((3, 4), int), -1, None), "0 or more"),
        (lambda mdp: draw_counts(mdp, np.zeros((3, 4), int), 1.5, None), "whole number"),
        (lambda mdp: draw_counts(mdp, np.zeros((2, 3, 4), int), 1, None), "one policy"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Any, said: str) -> None:
    with pytest.raises(InputError) as problem:
        call(random_world(0))
    assert said in str(problem.value)


# --- the worlds and their classes ---------------------------------------------------------------


def backup(mdp: FiniteHorizonMDP, table: np.ndarray) -> np.ndarray:
    ahead = np.append(table.max(axis=-1)[1:], np.zeros((1, mdp.initial.size)), axis=0)
    return mdp.reward + np.einsum("hsat,ht->hsa", mdp.transition, ahead)


SIZES: list[tuple[str, dict[str, Any]]] = [
    ("decoy_chains", {}),
    ("decoy_chains", {"actions": 6, "horizon": 5, "covered": (0, 1)}),
    ("decoy_chains", {"actions": 2, "horizon": 1, "covered": [1]}),
    ("completeness_trap", {}),
    ("completeness_trap", {"dummies": 1}),
    ("lock", {"horizon": 4, "actions": 3, "code": [2, 0, 1, 0]}),
    ("lock", {"horizon": 5, "actions": 2, "slip": 0.1, "noise": 1}),
    ("contextual_bandit", {"contexts": 5, "actions": 4, "models": 7}),
]


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_every_named_world_is_sound(name: str, sizes: dict[str, Any]) -> None:
    instance = world(name, **sizes)
    mdp, optimal = instance.mdp, instance.optimal
    assert optimal is not None
    assert instance.tables.shape == (len(instance.names), *mdp.reward.shape)
    assert (instance.tables[optimal] == plan_horizon(mdp).action_values).all()
    assert find_table(mdp, instance.tables, possible_states(mdp)) == optimal
    assert ((instance.tables >= 0) & (instance.tables <= 1)).all()
    assert mdp.noise == "bernoulli"
    assert largest_return(mdp) == 1
    if instance.behaviour is not None:
        assert np.allclose(instance.behaviour.sum(axis=(1, 2)), 1)
    if instance.models is not None:
        planned = [plan_horizon(model).action_values for model in instance.models]
        assert np.allclose(instance.tables, planned, rtol=0, atol=1e-15)
        for field in ("initial", "transition", "reward"):
            assert (getattr(instance.models[optimal], field) == getattr(mdp, field)).all()


@given(st.integers(2, 8), st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_a_decoys_backup_lies_halfway_until_the_last_layer(actions: int, horizon: int) -> None:
    instance = decoy_chains(actions, horizon)
    best, values = instance.tables[0], instance.tables.max(axis=-1)
    assert np.allclose(values[:, 0, 0], [0.7] + [0.8] * (actions - 1))
    assert (instance.tables.argmax(axis=-1)[:, 0, 0] == np.arange(actions)).all()
    assert not instance.tables.argmax(axis=-1)[:, 1:].any()
    for chain in range(1, actions):
        table, aim = instance.tables[chain], backup(instance.mdp, instance.tables[chain])
        wrong = table != best
        assert wrong[0].sum() == 1
        assert wrong[1:, chain].all()
        assert wrong[1:].sum() == (horizon - 1) * actions
        early = wrong.copy()
        early[-1] = False
        assert np.allclose(aim[early], (table + best)[early] / 2)
        assert np.isclose(table[0, 0, chain] - aim[0, 0, chain], 0.25)
        assert np.allclose(aim[-1], best[-1])
        assert np.allclose((table - aim)[-1][wrong[-1]], 0.5 * 2.0 ** (1 - horizon))
        assert evaluate_horizon(instance.mdp, table.argmax(axis=-1))[0, 0] == pytest.approx(0.3)


def test_the_behaviour_of_the_chains_covers_the_chosen_ones_only() -> None:
    behaviour = decoy_chains(actions=6, horizon=4, covered=(0, 1)).behaviour
    assert behaviour is not None
    assert behaviour[0, 0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert (behaviour[1:, :2, 0] == 0.5).all()
    assert decoy_chains().behaviour is None


@given(st.integers(1, 12))
def test_the_trap_shows_nothing_of_its_dummies(dummies: int) -> None:
    instance = completeness_trap(dummies)
    size, tables = dummies + 1, instance.tables
    assert len(tables) == 2 * size
    assert len(np.unique(tables.reshape(2 * size, -1), axis=0)) == 2 * size
    assert instance.behaviour is not None
    assert instance.behaviour[0, 0, 0] == instance.behaviour[1, 0, 0] == 1
    greedy = tables.argmax(axis=-1)
    assert greedy[:, 0, 0].tolist() == [0] * size + [1] * size
    assert greedy[:, 1, 0].tolist() == 2 * list(range(size))
    assert (tables[:, 1, 0, 0] == 0.4).all()
    assert (tables[size:, 0, 0, 1:] == 0.61).all()
    values = evaluate_horizon(instance.mdp, greedy)[:, 0, 0]
    assert np.allclose(values, [0.4] + [0] * dummies + [0.25] * size)
    expert = occupancy_horizon(instance.mdp, plan_horizon(instance.mdp).actions)
    assert single_policy_concentrability(expert, instance.behaviour).max() == 1


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=25, deadline=None)
def test_only_its_code_opens_a_lock(code: list[int], slip: float) -> None:
    mdp = combination_lock(code, 3, success=0.9, failure=0.1, slip=slip)
    plan = plan_horizon(mdp)
    assert plan.actions[:, 0].tolist() == code
    assert not plan.actions[:, 1].any()
    assert np.isclose(plan.values[0, 0], 0.1 + 0.8 * (1 - slip) ** (len(code) - 1))
    returns = np.array(
        [
            evaluate_horizon(mdp, np.stack([other, 0 * other], axis=1))[0, 0]
            for other in lock_codes(len(code), 3)
        ]
    )
    best = int(returns.argmax())
    assert lock_codes(len(code), 3)[best].tolist() == code
    assert np.sort(returns)[-2] < returns[best] - 0.01


def test_the_coverability_of_a_lock_does_not_grow_with_its_codes() -> None:
    for horizon, actions in ((3, 2), (6, 2), (4, 3)):
        instance = lock_family(horizon, actions)
        assert len(instance.tables) == actions**horizon
        greedy = instance.tables.argmax(axis=-1)
        flows = occupancy_horizon(instance.mdp, greedy)
        assert policies_coverability(flows).value == pytest.approx(actions + 1)


def test_a_code_is_the_number_that_its_digits_spell() -> None:
    assert lock_codes(3, 10)[407].tolist() == [4, 0, 7]
    instance = lock_family(3, 3, code=[1, 0, 2])
    assert instance.optimal == 11
    assert instance.names[11] == "lock(102)"
    assert combination_lock([10, 2], 11).name == "lock(10-2)"


def test_the_noise_of_a_behaviour_is_the_share_of_uniform_actions() -> None:
    mdp = combination_lock([1, 1, 0], 2)
    expert = occupancy_horizon(mdp, plan_horizon(mdp).actions)
    assert (noisy_optimal(mdp, 0) == expert).all()
    assert single_policy_concentrability(expert, noisy_optimal(mdp, 0.2)).max() == pytest.approx(
        0.9**-3
    )


def test_a_contextual_bandit_is_a_world_of_one_layer() -> None:
    mdp = contextual_bandit([0.25, 0.75], [[0.1, 0.3], [0.6, 0.2]])
    assert mdp.horizon == 1
    assert plan_horizon(mdp).values[0] @ mdp.initial == pytest.approx(0.525)
    flows = occupancy_horizon(mdp, np.indices((2, 2)).reshape(2, -1).T[:, None])
    assert policies_coverability(flows).value == pytest.approx(2)


@given(st.integers(0, 10), st.floats(0, 1), st.sampled_from(["none", "bernoulli"]))
@settings(max_examples=25, deadline=None)
def test_models_keep_what_is_impossible_and_what_a_path_can_pay(
    seed: int, spread: float, noise: str
) -> None:
    mdp = random_world(seed, noise)
    rewards = mdp.reward * (np.random.default_rng(seed).random(mdp.reward.shape) < 0.5)
    mdp = FiniteHorizonMDP(mdp.initial, mdp.transition, rewards, "", mdp.noise)
    models = perturbed_models(mdp, 5, spread, seed)
    assert models[0] is mdp
    for model in models:
        assert not model.transition[mdp.transition == 0].any()
        assert not model.reward[mdp.reward == 0].any()
        assert largest_return(model) <= max(1.0, largest_return(mdp)) + 1e-12
        assert np.abs(model.transition - mdp.transition).max() <= spread + 1e-12
        if largest_return(model) < 1:  # not scaled
            assert np.abs(model.reward - mdp.reward).max() <= spread + 1e-12
    fewer = perturbed_models(mdp, 3, spread, seed)
    assert all(
        (one.reward == other.reward).all() for one, other in zip(fewer, models[:3], strict=True)
    )


@pytest.mark.parametrize(
    "mdp", [random_world(0, "none"), random_world(1, "none"), combination_lock([0, 1, 1], 2)]
)
def test_some_models_promise_more_than_the_world_keeps_and_some_less(mdp: FiniteHorizonMDP) -> None:
    best = [plan_horizon(m).values[0] @ m.initial for m in perturbed_models(mdp, 32, 0.3, 0)]
    assert 3 <= (np.array(best[1:]) > best[0]).sum() <= 28


def test_a_class_of_models_holds_their_optimal_values() -> None:
    models = perturbed_models(random_world(3, "none"), 4, 0.4, 0)
    instance = class_of_models(models)
    assert instance.optimal == 0
    assert instance.names == ("random", "model 1", "model 2", "model 3")
    assert instance.behaviour is None
    for table, model in zip(instance.tables, models, strict=True):
        assert (table == plan_horizon(model).action_values).all()


@given(st.integers(0, 30), st.sampled_from(["none", "bernoulli"]))
@settings(max_examples=30, deadline=None)
def test_the_largest_return_is_that_of_the_best_path(seed: int, noise: str) -> None:
    mdp = random_world(seed, noise)
    rewards = mdp.reward * (np.random.default_rng(seed).random(mdp.reward.shape) < 0.4)
    mdp = FiniteHorizonMDP(mdp.initial, mdp.transition, rewards, "", mdp.noise)
    paid = (rewards > 0).astype(float) if noise == "bernoulli" else rewards

    def best(layer: int, state: int) -> float:
        if layer == mdp.horizon:
            return 0.0
        return max(
            paid[layer, state, action] + best(layer + 1, after)
            for action in range(2)
            for after in np.flatnonzero(mdp.transition[layer, state, action])
        )

    assert largest_return(mdp) == pytest.approx(
        max(best(0, state) for state in np.flatnonzero(mdp.initial))
    )


def test_the_states_that_can_be_met() -> None:
    met = possible_states(decoy_chains(actions=3, horizon=3).mdp)
    assert met.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert possible_states(completeness_trap().mdp).tolist() == [[True, False], [True, True]]


MODELS = perturbed_models(combination_lock([0, 1], 2), 2, 0.1, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: decoy_chains(actions=1), "2 or more"),
        (lambda: decoy_chains(horizon=0), "horizon is 0"),
        (lambda: decoy_chains(actions=2.5), "whole number"),
        (lambda: decoy_chains(actions="5"), "whole number"),
        (lambda: decoy_chains(covered=(0, 7)), "0 to 4"),
        (lambda: decoy_chains(covered=(0, 0)), "0 to 4"),
        (lambda: decoy_chains(actions=5000), "smaller sizes"),
        (lambda: completeness_trap(0), "dummies is 0"),
        (lambda: completeness_trap(10**6), "smaller sizes"),
        (lambda: combination_lock([0, 2], 2), "0 to 1"),
        (lambda: combination_lock([], 2), "0 to 1"),
        (lambda: combination_lock([0], 2, success=0.2), "failure < success"),
        (lambda: combination_lock([0], 2, slip=0.5), "slip < 0.5"),
        (lambda: lock_family(17, 2), "131072 codes"),
        (lambda: lock_family(3, 2, code=[0, 1]), "has 2 digits"),
        (lambda: lock_family(2, 2, noise=1.5), "in [0, 1]"),
        (lambda: contextual_bandit([1.0], [0.5]), "(S, A)"),
        (lambda: contextual_bandit([0.5, 0.6], [[0.5], [0.1]]), "sum to 1"),
        (lambda: contextual_bandit([1.0], [[1.5]]), "lies in [0, 1]"),
        (lambda: bandit_family(contexts=0), "contexts is 0"),
        (lambda: perturbed_models(MODELS[0], 0, 0.1, 0), "1 or more"),
        (lambda: perturbed_models(MODELS[0], 3, 2, 0), "in [0, 1]"),
        (lambda: class_of_models([]), "one at least"),
        (lambda: class_of_models([MODELS[0], combination_lock([0], 2)]), "model 1"),
        (lambda: class_of_models(MODELS, np.ones((2, 2, 2))), "sum to 1"),
        (lambda: check_entries((10**5, 10**5), "a table"), "a table of shape"),
        (lambda: check_returns(random_world(0)), "3 Bernoulli rewards"),
        (lambda: world("maze"), "decoy_chains, completeness_trap, lock, contextual_bandit"),
        (lambda: world("x" * 5000), "there is no world"),
        (lambda: world("lock", digits=3), "horizon, actions, code"),
        (lambda: world("some.npz", actions=3), "models, spread, seed"),
        (lambda: world("some.npz"), "some.npz: there is no such file"),
    ],
)
def test_what_makes_no_world_is_refused_in_one_line(call: Any, said: str) -> None:
    with pytest.raises(InputError) as problem:
        call()
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


# --- files --------------------------------------------------------------------------------------


def arrays_of(mdp: FiniteHorizonMDP) -> dict[str, Any]:
    return {"P": mdp.transition, "R": mdp.reward, "rho": mdp.initial, "noise": mdp.noise}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_a_world_written_is_the_world_read(name: str, sizes: dict, file: Path) -> None:
    instance = world(name, **sizes)
    further = {} if instance.behaviour is None else {"nu": instance.behaviour}
    np.savez_compressed(file, F=instance.tables, **arrays_of(instance.mdp), **further)
    back = world(file)
    for field in ("initial", "transition", "reward", "noise"):
        assert np.array_equal(getattr(back.mdp, field), getattr(instance.mdp, field))
    assert (back.tables == instance.tables).all()
    assert back.optimal == instance.optimal
    assert back.models is None
    assert back.mdp.name == "mine"
    if instance.behaviour is None:
        assert back.behaviour is None
    else:
        assert np.allclose(back.behaviour, instance.behaviour, rtol=0, atol=1e-12)


def test_a_stationary_world_is_repeated(file: Path) -> None:
    mdp = random_world(0, "none")
    arrays = {"P": mdp.transition[0], "R": mdp.reward[0] / 10, "rho": mdp.initial}
    np.savez(file, H=4, **arrays)
    read = read_world(file).mdp
    assert read.noise == "none"
    assert read.transition.shape == (4, 4, 2, 4)
    assert (read.transition == mdp.transition[0]).all()
    assert (read.reward == arrays["R"]).all()
    np.savez(file, **arrays | {"R": mdp.reward})
    assert read_world(file).mdp.horizon == 3
    np.savez(file, H=3, **arrays | {"R": mdp.reward})
    assert read_world(file).mdp.horizon == 3


def test_a_file_without_functions_gets_those_of_models_around_it(file: Path) -> None:
    mdp = random_world(0, "none")
    np.savez(file, nu=np.full((3, 4, 2), 1 / 8), **arrays_of(mdp))
    instance = world(file, models=5, spread=0.2, seed=3)
    assert instance.models is not None
    assert len(instance.models) == len(instance.tables) == 5
    assert instance.optimal == 0
    assert (instance.tables[0] == plan_horizon(mdp).action_values).all()
    assert (instance.behaviour == 1 / 8).all()


def test_a_class_without_the_optimal_values_is_allowed(file: Path) -> None:
    instance = decoy_chains()
    np.savez(file, F=instance.tables[1:], **arrays_of(instance.mdp))
    assert read_world(file).optimal is None
    nearly = instance.tables + 1e-10
    nearly[:, 0, 1:] = 0.123  # states that no episode meets there
    np.savez(file, F=nearly[::-1], **arrays_of(instance.mdp))
    assert read_world(file).optimal == 4


def test_single_precision_is_precise_enough(file: Path) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(7), size=(3, 7, 2)).astype(np.float32)
    start = np.full(7, 1 / 7, dtype=np.float32)
    reward = np.full((3, 7, 2), 1 / 3, dtype=np.float32)
    nu = np.full((3, 7, 2), 1 / 14, dtype=np.float32)
    np.savez(file, P=rows, R=reward - 1e-7, rho=start, nu=nu)
    instance = read_world(file, models=2)
    assert np.abs(instance.mdp.transition.sum(axis=-1) - 1).max() < 1e-15
    assert np.abs(instance.mdp.transition - rows).max() < 1e-7


CHAINS = decoy_chains(actions=3, horizon=2)
SPOILT = CHAINS.mdp.transition.copy()
SPOILT[1, 2, 0] = [0, 0.2, 0.9]
NEGATIVE = CHAINS.mdp.transition.copy()
NEGATIVE[1, 2, 0] = [-0.5, 0.5, 1]
GAP = CHAINS.mdp.reward.copy()
GAP[1, 2, 1] = np.nan
DEBT = CHAINS.mdp.reward.copy()
DEBT[0, 1, 2] = -0.25
ALIKE = {"P": CHAINS.mdp.transition[1], "R": CHAINS.mdp.reward[1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"P": SPOILT}, "P of layer 1, state 2, action 0 sums to 1.1"),
        ({"P": NEGATIVE}, "P[1, 2, 0, 0] is -0.5"),
        ({"P": CHAINS.mdp.transition[..., :2]}, "first and last states differ"),
        ({"P": np.eye(3)}, "pass (S, A, S) or (H, S, A, S)"),
        ({"P": np.zeros((0, 3, 3, 3))}, "P has shape (0, 3, 3, 3)"),
        ({"P": CHAINS.mdp.transition.astype(complex)}, "P holds complex128"),
        ({"P": CHAINS.mdp.transition.astype(str)}, "P holds <U"),
        ({"P": CHAINS.mdp.transition.astype(object)}, "P cannot be read"),
        ({"P": SPOILT[1], "R": CHAINS.mdp.reward[1], "H": 2}, "P of state 2, action 0 sums"),
        ({"R": GAP}, "R[1, 2, 1] is nan"),
        ({"R": np.full((2, 3, 3), np.inf)}, "R[0, 0, 0] is inf"),
        ({"R": DEBT, "noise": "none"}, "layer 0, state 1, action 2 is -0.25"),
        ({"R": DEBT}, "a Bernoulli reward lies in [0, 1]"),
        ({"R": CHAINS.mdp.reward[:, :2]}, "and P 3 states, 3 actions"),
        ({"R": CHAINS.mdp.reward[0]}, "pass (H, S, A), as P has layers"),
        ({"R": CHAINS.mdp.reward[:1]}, "P says 2, R says 1"),
        ({"R": 4 * CHAINS.mdp.reward, "noise": "none"}, "divide the rewards by 2.8"),
        ({"R": np.full((2, 3, 3), 0.5)}, "2 Bernoulli rewards of 1"),
        ({"rho": np.ones(3)}, "rho sums to 3"),
        ({"rho": np.ones(2) / 2}, "rho has shape (2,), and P has 3 states"),
        ({"rho": np.eye(3)}, "rho has shape (3, 3): pass (S,)"),
        (ALIKE, "say how many there are with a number H"),
        (ALIKE | {"H": 2.5}, "H is 2.5"),
        (ALIKE | {"H": [2, 2]}, "H has shape (2,)"),
        (ALIKE | {"H": 10**8}, "smaller sizes"),
        ({"H": 3}, "P says 2, R says 2, H says 3"),
        ({"noise": "gaussian"}, "noise is 'gaussian'"),
        ({"noise": np.ones(3)}, "noise is '[1. 1. 1.]'"),
        ({"F": CHAINS.tables[:, :1]}, "pass (F, 2, 3, 3)"),
        ({"F": CHAINS.tables[0]}, "pass (F, H, S, A)"),
        ({"F": 2 * CHAINS.tables}, "F[0, 0, 0, 0] is 1.4"),
        ({"F": -CHAINS.tables}, "F[0, 0, 0, 0] is -0.7"),
        ({"F": CHAINS.tables * np.nan}, "F[0, 0, 0, 0] is nan"),
        ({"nu": np.ones((2, 3))}, "nu has shape (2, 3)"),
        ({"nu": np.ones((1, 3, 3)) / 9}, "nu has shape (1, 3, 3): pass (2, 3, 3)"),
        ({"nu": np.full((2, 3, 3), 0.1)}, "nu of layer 0 sums to 0.9"),
        ({"Nu": np.ones(1)}, "'Nu' is none of P, R, rho, H, noise, F, nu"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(change: dict, said: str, file: Path) -> None:
    np.savez(file, **arrays_of(CHAINS.mdp) | change)
    with pytest.raises(InputError) as problem:
        world(file)
    text = str(problem.value)
    assert text.startswith("mine.npz: ")
    assert said in text
    assert "\n" not in text


def test_what_is_no_arrays_file_is_refused(file: Path) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as problem:
            read_world(file)
        return str(problem.value)

    assert "no such file" in refusal()
    file.write_text("P, R, rho")
    assert "no npz file" in refusal()
    file.write_bytes(b"")
    assert "no npz file" in refusal()
    with file.open("wb") as handle:
        np.save(handle, np.eye(3))
    assert "a single array" in refusal()
    np.savez(file, P=np.eye(3), R=np.eye(3))
    assert "no array 'rho'" in refusal()
    np.savez(file, **arrays_of(CHAINS.mdp))
    damaged = bytearray(file.read_bytes())
    damaged[150:160] = b"0123456789"
    file.write_bytes(damaged)
    assert "damaged" in refusal()
    with pytest.raises(InputError, match="no npz file"):
        read_world(file.parent)


def test_a_pickle_in_a_file_is_never_run(file: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (mark,)

    np.savez(file, **arrays_of(CHAINS.mdp) | {"rho": np.array([Trap()], dtype=object)})
    with pytest.raises(InputError, match="rho cannot be read"):
        read_world(file)
    assert not mark.exists()


def test_every_name_makes_a_world_without_being_told_sizes() -> None:
    for name in WORLDS:
        assert world(name).mdp.horizon >= 1


def test_importing_is_light() -> None:
    code = (
        "import sys, offrl_wb.worlds.layered;"
        "assert not {'torch', 'polars', 'plotly', 'gymnasium', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
