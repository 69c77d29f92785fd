"""The rich-observation lock against a plain loop, its closed forms, and Gymnasium's own checks."""

import copy
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import polars as pl
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard
from scipy.stats import binomtest, kstest

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import DiscretePolicy
from offrl_wb.data.collector import collect
from offrl_wb.data.dataset import Dataset
from offrl_wb.worlds import rich_lock as module
from offrl_wb.worlds.rich_lock import (
    Copies,
    DecodedPolicy,
    RichLock,
    box_muller,
    dataset_arrays,
    decode,
    draw_noise,
    features,
    first_latents,
    hadamard,
    lock_behaviour,
    lock_policy,
    make_rich_lock,
    make_rich_lock_vector,
    move,
    offline_tuples,
    register,
    rich_lock,
    to_tabular,
    turned,
)
from offrl_wb.worlds.tabular import evaluate_horizon, occupancy_horizon, plan_horizon

register()


class PlainLock(gymnasium.Env):
    """One lock, written plainly with Gymnasium's interface: a Python step, one noise vector.

    `follow` makes the step out of given numbers, which is what the tests compare with.
    """

    def __init__(self, horizon=100, actions=10, codes=None, noise=0.1):
        if codes is None:
            codes = np.random.default_rng(0).integers(actions, size=(2, horizon))
        self.codes, self.horizon, self.noise = codes.tolist(), horizon, noise
        self.dimension = 2 ** int(np.ceil(np.log2(horizon + 4)))
        self.rotation = scipy_hadamard(self.dimension).astype(float)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.dimension,))
        self.action_space = gymnasium.spaces.Discrete(actions)

    def observe(self, gaussian):
        vector = np.zeros(self.dimension)
        vector[: self.horizon + 3] = self.noise * gaussian
        vector[self.latent] += 1
        vector[3 + self.layer] += 1
        return (self.rotation @ vector).astype(np.float32)

    def begin(self, uniform):
        self.layer, self.latent = 0, int(uniform < 0.5)

    def follow(self, action, switching, baiting):
        reward = 0.0
        if self.latent == 2:
            pass
        elif action == self.codes[self.latent][self.layer]:
            if self.layer == self.horizon - 1:
                reward = 1.0
            if switching < 0.5:
                self.latent = 1 - self.latent
        else:
            if baiting < 0.5:
                reward = 0.1
            self.latent = 2
        self.layer += 1
        return reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begin(self.np_random.random())
        return self.observe(self.np_random.normal(size=self.horizon + 3)), {"latent": self.latent}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(action)
        reward = self.follow(action, *self.np_random.random(2))
        seen = self.observe(self.np_random.normal(size=self.horizon + 3))
        return seen, reward, self.layer == self.horizon, False, {"latent": self.latent}


def plain_gaussians(words: np.ndarray, rows: int, noisy: int, dimension: int) -> np.ndarray:
    """The noise vectors `(rows, noisy)` before their rotation, in double precision."""
    pairs = words.view(np.uint32)[: 2 * len(words)].astype(float)
    radius = np.sqrt(-2 * np.log((pairs[: len(words)] + 0.5) / 2**32))
    angle = 2 * np.pi * pairs[len(words) :] / 2**32
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    found = numbers[: rows * noisy].reshape(rows, noisy).copy()
    at, size = 0, dimension
    while size > 32:
        size //= 2
        if noisy - at > size:
            part = found[:, at : at + size]
            found[:, at : at + size] = part @ scipy_hadamard(size) / size**0.5
            at += size
    return found


class PlainRun:
    """`count` plain locks stepped one after another, fed in the documented order of draws."""

    def __init__(self, lock, count, seed):
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self.loops = [
            PlainLock(lock.horizon, lock.actions, lock.codes, lock.noise) for _ in range(count)
        ]
        self.lock, self.ahead = lock, []

    def start(self):
        uniforms = self.generator.random(len(self.loops))
        for loop, uniform in zip(self.loops, uniforms, strict=True):
            loop.begin(uniform)

    def step(self, actions):
        numbers = self.generator.random((2, len(self.loops)))
        return [
            loop.follow(int(action), *pair)
            for loop, action, pair in zip(self.loops, actions, numbers.T, strict=True)
        ]

    def observe(self):
        count, noisy = len(self.loops), self.lock.horizon + 3
        if not self.ahead:
            rows = count * max(1, min(512 // count, self.lock.horizon + 1))
            for begin in range(0, rows, 512):
                size = min(512, rows - begin)
                words = self.generator.integers(
                    0, 2**64, size=(size * noisy + 1) // 2, dtype=np.uint64
                )
                self.ahead += [*plain_gaussians(words, size, noisy, self.lock.dimension)]
        now, self.ahead = self.ahead[:count], self.ahead[count:]
        return np.array([loop.observe(g) for loop, g in zip(self.loops, now, strict=True)])

    @property
    def latents(self):
        return [loop.latent for loop in self.loops]


@pytest.mark.parametrize(
    ("horizon", "count"),
    [(1, 3), (2, 1), (5, 4), (29, 2), (33, 3), (67, 2), (100, 1), (100, 3), (4, 600)],
)
def test_many_copies_do_what_a_plain_loop_does_with_the_same_numbers(horizon, count):
    lock = rich_lock(horizon, code_seed=horizon)
    environment = make_rich_lock_vector(count, lock=lock)
    seen, info = environment.reset(seed=5)
    plain = PlainRun(lock, count, 5)
    plain.start()
    assert seen == pytest.approx(plain.observe(), abs=2e-4)
    choices = np.random.default_rng(0)
    for number in range(2 * horizon + 3):
        right = lock.right_actions[info["latent"], info["layer"]]
        actions = np.where(choices.random(count) < 0.9, right, choices.integers(10, size=count))
        actions = np.maximum(actions, 0)
        over = plain.loops[0].layer == horizon
        if over:  # the step after the last only resets; its uniforms are drawn all the same
            plain.generator.random((2, count))
            plain.start()
            wanted = [0.0] * count
        else:
            wanted = plain.step(actions)
        seen, rewards, terminated, truncated, info = environment.step(actions)
        assert rewards.tolist() == wanted, number
        assert info["latent"].tolist() == plain.latents
        assert (info["layer"] == plain.loops[0].layer).all()
        assert (terminated == (plain.loops[0].layer == horizon)).all()
        assert not truncated.any()
        assert seen == pytest.approx(plain.observe(), abs=2e-4)
        assert seen.dtype == np.float32


def test_a_single_environment_does_what_a_plain_loop_does():
    lock = rich_lock(9, code_seed=4)
    environment = gymnasium.make("RichLock-v0", horizon=9, code_seed=4)
    plain = PlainRun(lock, 1, 8)
    for episode in range(3):
        seen, info = environment.reset(seed=8 if episode == 0 else None)
        plain.start()
        assert seen == pytest.approx(plain.observe()[0], abs=1e-4)
        done = False
        while not done:
            action = lock.codes[info["latent"] % 2, info["layer"]] if episode else 3
            seen, reward, done, cut, info = environment.step(action)
            assert [reward] == plain.step([action])
            assert seen == pytest.approx(plain.observe()[0], abs=1e-4)
            assert info == {"latent": plain.loops[0].latent, "layer": plain.loops[0].layer}
            assert type(reward) is float
            assert not cut
        if episode:
            assert reward == 1


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_the_plain_loop_itself_passes_gymnasiums_checks():
    check_env(PlainLock(5), skip_render_check=True)


@settings(max_examples=60)
@given(
    horizon=st.integers(1, 8),
    actions=st.integers(2, 5),
    switch=st.floats(0, 1),
    bait=st.floats(0, 1),
    often=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_values_have_their_closed_forms(horizon, actions, switch, bait, often, seed):
    lock = rich_lock(horizon, actions, seed, switch, bait, often)
    mdp = to_tabular(lock)
    plan = plan_horizon(mdp)
    assert plan.values[:, :2] == pytest.approx(1, abs=1e-12)
    assert (plan.values[:, 2] == 0).all()
    best = evaluate_horizon(mdp, lock_policy(lock))[0] @ mdp.initial
    assert best == pytest.approx(1, abs=1e-12)
    unbaited = to_tabular(rich_lock(horizon, actions, seed, switch, 0.0, often))
    uniform = lock_policy(lock, "uniform")
    chance = evaluate_horizon(unbaited, uniform)[0] @ mdp.initial
    assert chance == pytest.approx(actions**-horizon, rel=1e-9)
    policy = np.random.default_rng(seed).dirichlet(np.ones(actions), size=(horizon, 3))
    success = evaluate_horizon(unbaited, policy)[0] @ mdp.initial
    value = evaluate_horizon(mdp, policy)[0] @ mdp.initial
    assert value == pytest.approx(success + (1 - success) * bait * often, abs=1e-12)


@pytest.mark.parametrize("horizon", [1, 2, 3, 100])
def test_the_table_has_the_transitions_and_rewards_of_the_plain_loop(horizon):
    lock = rich_lock(horizon, actions=3, code_seed=1)
    mdp, loop = to_tabular(lock), PlainLock(horizon, 3, lock.codes)
    for layer in {0, horizon // 2, horizon - 1}:
        for latent in range(3):
            for action in range(3):
                mass, paid = np.zeros(3), 0.0
                for switching in (0.25, 0.75):
                    for baiting in (0.25, 0.75):
                        loop.latent, loop.layer = latent, layer
                        paid += loop.follow(action, switching, baiting) / 4
                        mass[loop.latent] += 0.25
                assert mdp.transition[layer, latent, action] == pytest.approx(mass)
                assert mdp.reward[layer, latent, action] == pytest.approx(paid)


def test_the_optimal_policy_earns_one_in_every_run_and_mistakes_lose_it():
    lock = rich_lock()
    copies, generator = Copies(lock, 300), np.random.default_rng(3)
    oracle = DecodedPolicy(lock, lock_policy(lock))
    copies.start(copies.over, generator)
    returns, slipped = np.zeros(300), np.arange(300) % 3 == 0
    for layer in range(100):
        actions = oracle.act(copies.observe(generator))
        actions = np.where(slipped & (layer == 99), (actions + 1) % 10, actions)
        returns += copies.step(actions, generator)
    assert (returns[~slipped] == 1).all()
    assert set(returns[slipped]) == {0.0, 0.1}
    assert (copies.latents[slipped] == 2).all()


def within(count: int, size: int, probability: float) -> bool:
    """Whether a count is what chance allows, once in a million."""
    return binomtest(count, size, probability).pvalue > 1e-6


def test_coins_fall_as_often_as_they_should():
    size = 200_000
    for lock in (rich_lock(3), rich_lock(3, switch=0.2, anti_shaping_probability=0.7)):
        generator = np.random.default_rng(11)
        first = first_latents(lock, generator.random(size))
        assert within(int(first.sum()), size, lock.switch)
        layers = np.zeros(size, dtype=int)
        moved = move(lock, layers, first, lock.codes[first, 0], generator.random((2, size)))
        assert within(int((moved.latents != first).sum()), size, lock.switch)
        assert (moved.rewards == 0).all()
        wrong = (lock.codes[first, 0] + 1) % 10
        moved = move(lock, layers, first, wrong, generator.random((2, size)))
        assert (moved.latents == 2).all()
        assert within(int((moved.rewards == 0.1).sum()), size, lock.anti_shaping_probability)
        assert set(moved.rewards) == {0.0, 0.1}


def test_the_two_coins_are_independent():
    lock, size = rich_lock(2), 100_000
    numbers = np.random.default_rng(1).random((2, size))
    layers, latents = np.zeros(size, dtype=int), np.zeros(size, dtype=int)
    right = move(lock, layers, latents, np.full(size, lock.codes[0, 0]), numbers)
    wrong = move(lock, layers, latents, np.full(size, (lock.codes[0, 0] + 1) % 10), numbers)
    both = (right.latents == 1) & (wrong.rewards > 0)
    assert within(int(both.sum()), size, 0.25)


@given(st.integers(1, 140))
def test_without_noise_every_state_and_layer_is_decoded(horizon):
    for unit in (False, True):
        lock = rich_lock(horizon, noise=0.0, unit_norm=unit)
        assert lock.dimension == 2 ** int(np.ceil(np.log2(horizon + 4)))
        latents, layers = decode(lock, lock.clean)
        assert (latents == np.arange(3)[:, None]).all()
        assert (layers == np.arange(horizon + 1)).all()


@pytest.mark.parametrize("size", [1, 2, 4, 64, 256])
def test_the_rotation_is_orthogonal_and_scipys(size):
    assert (hadamard(size) == scipy_hadamard(size)).all()
    assert (hadamard(size) @ hadamard(size).T == size * np.eye(size)).all()


def test_unit_norm_keeps_lengths_and_the_published_scale_does_not():
    for unit, factor in ((True, 1.0), (False, 128**0.5)):
        lock = rich_lock(unit_norm=unit)
        vectors = np.random.default_rng(0).standard_normal((9, 128)).astype(np.float32)
        lengths = np.linalg.norm(vectors @ lock.rotation, axis=1)
        assert lengths == pytest.approx(factor * np.linalg.norm(vectors, axis=1), rel=1e-5)
        assert features(lock, vectors @ lock.rotation) == pytest.approx(vectors, abs=1e-5)
        noise = draw_noise(lock, 4000, np.random.default_rng(1))
        power = (noise.astype(float) ** 2).sum(axis=1).mean()
        assert power == pytest.approx(103 * 0.01 * factor**2, rel=0.02)


@pytest.mark.parametrize("horizon", [1, 5, 29, 45, 67, 100])
def test_turned_noise_is_the_rotation_of_standard_normal_vectors(horizon):
    lock = rich_lock(horizon, noise=0.3)
    words = np.random.default_rng(2).integers(0, 2**64, size=20 * (horizon + 3), dtype=np.uint64)
    noisy = horizon + 3
    gaussians = plain_gaussians(words[: 20 * noisy // 2], 20, noisy, lock.dimension)
    numbers = box_muller(words[: 20 * noisy // 2])[: 20 * noisy].reshape(20, noisy)
    wanted = 0.3 * gaussians @ scipy_hadamard(lock.dimension)[:noisy]
    assert turned(lock, lock.dimension, numbers) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("horizon", [5, 67])
def test_rotated_back_the_noise_is_normal_and_ends_where_it_should(horizon):
    lock = rich_lock(horizon, noise=0.2)
    back = features(lock, draw_noise(lock, 4000, np.random.default_rng(3)))
    noisy = horizon + 3
    assert back[:, noisy:] == pytest.approx(0, abs=1e-5)
    assert kstest(back[:, :noisy].reshape(-1) / 0.2, "norm", method="asymp").pvalue > 1e-6
    for column in (0, noisy // 2, noisy - 1):
        assert kstest(back[:, column] / 0.2, "norm", method="asymp").pvalue > 1e-6
    correlations = np.corrcoef(back[:, :noisy].T) - np.eye(noisy)
    assert np.abs(correlations).max() < 6 / 4000**0.5


def test_the_extremes_of_box_muller_are_finite():
    numbers = box_muller(np.array([0, 2**64 - 1, 2**32, 2**32 - 1], dtype=np.uint64))
    assert np.isfinite(numbers).all()
    assert np.abs(numbers).max() < 6.8


def rolled_in(lock, kind, layer, size, generator):
    """Pairs at `layer` by rolling in with plain rules, one run at a time, as published."""
    counts = np.zeros((3, lock.actions))
    loop = PlainLock(lock.horizon, lock.actions, lock.codes)
    for _ in range(size):
        loop.begin(generator.random())
        for step in range(layer + 1):
            action = lock.codes[0 if loop.latent == 0 else 1, step]
            if kind == "epsilon":
                guess = generator.random() < 1 / lock.horizon or step == lock.horizon // 2
            else:
                guess = step == layer
            if guess:
                action = generator.integers(lock.actions)
            if step == layer:
                counts[loop.latent, action] += 1
            loop.follow(int(action), *generator.random(2))
    return counts


@pytest.mark.parametrize("kind", ["epsilon", "mixed"])
def test_offline_pairs_have_the_distribution_of_a_roll_in(kind):
    lock, generator = rich_lock(4, actions=3, code_seed=2), np.random.default_rng(9)
    wanted = lock_behaviour(lock, kind)
    assert wanted.sum(axis=(1, 2)) == pytest.approx(1)
    for layer in range(4):
        counts = rolled_in(lock, kind, layer, 3000, generator)
        drawn = offline_tuples(lock, kind, 20_000, seed=3, layers=[layer])
        ours = np.zeros((3, 3))
        np.add.at(ours, (drawn.latents[0], drawn.actions[0]), 1)
        for pair in np.ndindex(3, 3):
            probability = wanted[(layer, *pair)]
            assert within(int(counts[pair]), 3000, probability)
            assert within(int(ours[pair]), 20_000, probability)


@given(horizon=st.integers(1, 30), actions=st.integers(2, 6))
def test_concentrability_has_its_closed_form(horizon, actions):
    lock = rich_lock(horizon, actions)
    best = occupancy_horizon(to_tabular(lock), lock_policy(lock))
    for kind in ("mixed", "epsilon"):
        ratio = (best[best > 0] / lock_behaviour(lock, kind)[best > 0]).max()
        factor = 1 if kind == "mixed" else (1 - (1 - 1 / actions) / horizon) ** (1 - horizon)
        assert ratio == pytest.approx(actions * factor)


def test_offline_tuples_are_steps_of_the_lock():
    lock = rich_lock(7, noise=0.05, code_seed=5)
    found = offline_tuples(lock, "epsilon", 500, seed=4)
    assert found.layers.tolist() == list(range(7))
    assert found.observations.shape == found.next_observations.shape == (7, 500, 16)
    assert found.observations.dtype == np.float32
    latents, layers = decode(lock, found.observations)
    after, following = decode(lock, found.next_observations)
    assert (latents == found.latents).all()
    assert (after == found.next_latents).all()
    assert (layers == found.layers[:, None]).all()
    assert (following == found.layers[:, None] + 1).all()
    right = found.actions == lock.right_actions[found.latents, found.layers[:, None]]
    assert (found.next_latents[right] < 2).all()
    assert (found.next_latents[~right] == 2).all()
    assert (found.rewards[6][right[6]] == 1).all()
    assert set(np.unique(found.rewards[:6])) == {0.0, 0.1}
    assert (found.rewards[found.latents == 2] == 0).all()


def test_offline_layers_do_not_depend_on_what_else_is_drawn():
    lock = rich_lock(5)
    whole = offline_tuples(lock, "mixed", 40, seed=1)
    again = offline_tuples(lock, "mixed", 40, seed=1, layers=[3, 0])
    assert again.layers.tolist() == [3, 0]
    for name, values in again._asdict().items():
        assert (values == getattr(whole, name)[[3, 0]]).all()
    other = offline_tuples(lock, "mixed", 40, seed=2)
    assert (other.observations != whole.observations).any(axis=(1, 2)).all()


def test_offline_tuples_become_a_dataset():
    lock = rich_lock(3)
    found = offline_tuples(lock, "mixed", 20)
    log = Dataset.from_arrays(**dataset_arrays(lock, found), source="mixed")
    rows = log.transitions
    assert len(rows) == 60
    assert rows["step"].to_list() == [h for h in range(3) for _ in range(20)]
    assert (rows["terminated"] == (rows["step"] == 2)).all()
    assert (rows["terminated"] != rows["truncated"]).all()
    assert (log.arrays().next_observations == found.next_observations.reshape(60, 8)).all()
    assert rows["latent"].to_list() == found.latents.reshape(-1).tolist()


def test_decoded_policies_are_policies_and_draw_what_they_say():
    lock = rich_lock(6)
    policy = DecodedPolicy(lock, lock_policy(lock, "epsilon"))
    assert isinstance(policy, DiscretePolicy)
    seen = np.repeat(lock.clean[1, 2][None], 30_000, axis=0)
    masses = policy.probabilities(seen[:1])[0]
    assert masses == pytest.approx(policy.table[2, 1])
    drawn = np.bincount(policy.act(seen, np.random.default_rng(0)), minlength=10)
    assert all(within(int(n), 30_000, p) for n, p in zip(drawn, masses, strict=True))
    assert (policy.act(seen[:5]) == lock.codes[1, 2]).all()
    last = policy.probabilities(lock.clean[:, 6])  # after the end: whatever the last layer says
    assert (last == policy.table[5]).all()
    assert (lock_policy(lock)[:, 2] == lock_policy(lock)[:, 1]).all()


@pytest.mark.parametrize("horizon", [1, 5, 100])
def test_gymnasiums_checker_is_content(horizon):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Gaussian noise has no bounds, which the checker minds
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity.*")
        environment = gymnasium.make("RichLock-v0", horizon=horizon)
        check_env(environment.unwrapped, skip_render_check=True)
    assert environment.spec is not None
    assert environment.spec.reward_threshold == 1


def test_make_vec_gives_the_vectorised_environment_and_sync_works_too():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = gymnasium.make_vec("RichLock-v0", num_envs=3, horizon=4)
        slow = gymnasium.make_vec("RichLock-v0", num_envs=3, vectorization_mode="sync", horizon=4)
    assert isinstance(fast.unwrapped, module.RichLockVectorEnv)
    assert isinstance(slow, SyncVectorEnv)
    assert fast.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert fast.observation_space == slow.observation_space
    assert fast.action_space == slow.action_space
    assert fast.single_observation_space == slow.single_observation_space


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_end_of_an_episode_is_as_in_gymnasiums_own_vector_environment(mode):
    lock = rich_lock(3)
    ours = make_rich_lock_vector(4, AutoresetMode(mode), lock)
    theirs = SyncVectorEnv([lambda: make_rich_lock(lock)] * 4, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    for environment in (ours, theirs):
        environment.reset(seed=0)
    for number in range(8):
        found = []
        for environment in (ours, theirs):
            if mode == "Disabled" and number in (3, 6):
                environment.reset(options={"reset_mask": np.ones(4, dtype=bool)})
            found.append(environment.step(np.full(4, number % 10)))
        (seen, rewards, over, cut, info), (_, their_rewards, their_over, _, their_info) = found
        assert (over == their_over).all()
        assert (info["layer"] == their_info["layer"]).all()
        assert not cut.any()
        assert rewards.dtype == their_rewards.dtype
        assert set(info) == set(their_info)
        assert decode(lock, seen)[1].tolist() == info["layer"].tolist()
        if "final_obs" in info:
            assert over.all()
            last = np.stack(list(info["final_obs"]))
            assert (decode(lock, last)[1] == 3).all()
            assert (decode(lock, last)[0] == info["final_info"]["latent"]).all()
            assert set(info["final_info"]) == set(their_info["final_info"])
    dictionaries = gymnasium.wrappers.vector.DictInfoToList(make_rich_lock_vector(2, mode, lock))
    assert dictionaries.reset(seed=1)[1][0].keys() == {"latent", "layer"}


def test_a_masked_reset_leaves_the_other_copies_as_they_are():
    lock = rich_lock(60)
    environment = make_rich_lock_vector(200, "Disabled", lock)
    before, info = environment.reset(seed=3)
    for _ in range(4):
        before, *_, info = environment.step(np.zeros(200, dtype=int))
        mask = np.arange(200) % 3 == 0
        after, info_after = environment.reset(options={"reset_mask": mask})
        assert (after[~mask] == before[~mask]).all()
        assert (info_after["layer"][mask] == 0).all()
        assert (info_after["latent"][~mask] == info["latent"][~mask]).all()
        assert (decode(lock, after)[1] == info_after["layer"]).all()
        assert (info_after["_latent"] == mask).all()


def test_copies_out_of_step_end_each_in_its_time():
    environment = make_rich_lock_vector(2, "Disabled", rich_lock(3))
    environment.reset(seed=0)
    environment.step([0, 0])
    environment.reset(options={"reset_mask": np.array([False, True])})
    environment.step([0, 0])
    *_, over, _, _ = environment.step([0, 0])
    assert over.tolist() == [True, False]
    with pytest.raises(InputError, match="copy 0 has no episode under way"):
        environment.step([0, 0])


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    def run(seed, earlier=0):
        environment = make_rich_lock_vector(3, horizon=5)
        if earlier:
            environment.reset(seed=earlier)
            environment.step([1, 2, 3])
        seen = [environment.reset(seed=seed)[0]]
        seen += [environment.step([1, 2, 3])[0] for _ in range(9)]
        return np.array(seen)

    assert (run(1) == run(1)).all()
    assert (run(1) == run(1, earlier=7)).all()
    assert (run(np.int64(1)) == run(1)).all()
    assert (run(1) != run(2)).any(axis=(1, 2)).all()


def test_the_seed_of_a_run_does_not_change_the_lock():
    first, second = (make_rich_lock(horizon=8, code_seed=6) for _ in range(2))
    first.reset(seed=1)
    second.reset(seed=2)
    assert (first.lock.codes == second.lock.codes).all()
    assert (make_rich_lock(horizon=8, code_seed=7).lock.codes != first.lock.codes).any()


def test_observations_belong_to_the_caller():
    environment = make_rich_lock_vector(2, "Disabled", rich_lock(9))
    seen, _ = environment.reset(seed=0)
    kept = seen.copy()
    for _ in range(5):
        environment.step([0, 0])
    assert (seen == kept).all()
    seen[:] = 0
    after, _ = environment.reset(seed=0)
    assert (after == kept).all()


def test_environments_can_be_copied_and_pickled():
    for environment in (make_rich_lock(horizon=5), make_rich_lock_vector(2, horizon=5)):
        environment.reset(seed=2)
        action = [1, 1] if hasattr(environment, "num_envs") else 1
        others = [copy.deepcopy(environment), pickle.loads(pickle.dumps(environment))]
        wanted = environment.step(action)[0]
        for other in others:
            assert (other.step(action)[0] == wanted).all()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_collector_takes_many_copies(mode):
    lock = rich_lock(4)
    environment = make_rich_lock_vector(3, mode, lock)
    policy = DecodedPolicy(lock, lock_policy(lock))
    log = collect(policy, environment, episodes=10, seed=2, infos=["layer"])
    returns = log.transitions.group_by("episode").agg(pl.col("reward").sum())["reward"]
    assert returns.to_list() == [1.0] * 10
    assert log.transitions["terminated"].sum() == 10
    ends = np.array(log.episodes["final_obs"].to_list())
    assert (decode(lock, ends)[1] == 4).all()


def test_the_collector_takes_it_by_name_and_gets_the_exact_value():
    lock = rich_lock(3, actions=4)
    policy = DecodedPolicy(lock, lock_policy(lock, "epsilon"))
    log = collect(policy, "RichLock-v0", episodes=600, options={"horizon": 3, "actions": 4}, seed=1)
    returns = log.transitions.group_by("episode").agg(pl.col("reward").sum())["reward"].to_numpy()
    mdp = to_tabular(lock)
    exact = evaluate_horizon(mdp, policy.table)[0] @ mdp.initial
    assert abs(returns.mean() - exact) < 5 * returns.std() / 600**0.5
    assert set(np.unique(returns)) <= {0.0, 0.1, 1.0}


def refused(message, function, *arguments, **settings_given):
    with pytest.raises(InputError, match=message) as caught:
        function(*arguments, **settings_given)
    assert "\n" not in str(caught.value)


def test_what_makes_no_lock_is_refused_by_name():
    for name, value, message in (
        ("horizon", 0, "the horizon is 0: pass a whole number from 1 to 4092"),
        ("horizon", 5000, "the horizon is 5000"),
        ("horizon", 3.0, "the horizon is 3.0: pass a whole number"),
        ("actions", 1, "actions is 1"),
        ("code_seed", -1, "code_seed is -1"),
        ("switch", 1.1, "switch is 1.1: pass a number from 0 to 1"),
        ("anti_shaping_reward", -0.1, "anti_shaping_reward is -0.1"),
        ("anti_shaping_probability", float("nan"), "anti_shaping_probability is nan"),
        ("noise", -1, "noise is -1"),
        ("noise", "small", "noise is 'small'"),
    ):
        refused(message, rich_lock, **{name: value})
    refused(r"found float64 \(2, 1\)", RichLock, np.zeros((2, 1)))
    refused("the horizon is 0", RichLock, np.zeros((2, 0), int))
    refused("code of B at layer 1 is 5, and the actions are 0 to 4", RichLock, [[0, 1], [1, 5]], 5)
    refused("size of a Hadamard matrix is 6", hadamard, 6)


def test_what_fits_no_lock_is_refused():
    lock = rich_lock(5)
    refused("have 16 numbers", decode, lock, np.zeros((2, 8)))
    refused("the policy 'best' is not known: pass optimal", lock_policy, lock, "best")
    refused("the offline data 'expert' are not known", lock_behaviour, lock, "expert")
    refused(r"has shape \(5, 3, 10\): found \(5, 2, 10\)", DecodedPolicy, lock, np.ones((5, 2, 10)))
    table = lock_policy(lock).copy()
    table[3, 1] = 0
    refused("layer 3, latent state 1", DecodedPolicy, lock, table)
    refused("size is 0", offline_tuples, lock, "mixed", 0)
    refused("a layer is 5", offline_tuples, lock, "mixed", 2, layers=[5])
    refused("no layer was asked for", offline_tuples, lock, "mixed", 2, layers=[])


def test_what_no_environment_takes_is_refused():
    refused("has no 'colour': there are horizon, actions", make_rich_lock, colour="blue")
    refused("pass a lock or 'horizon'", make_rich_lock, rich_lock(3), horizon=3)
    refused("num_envs is 0", make_rich_lock_vector, 0)
    refused("autoreset_mode is 'Never'", make_rich_lock_vector, 2, "Never")
    single, many = make_rich_lock(horizon=2), make_rich_lock_vector(3, horizon=2)
    refused("call reset before step", single.step, 0)
    refused("call reset before step", many.step, [0, 0, 0])
    single.reset(seed=0)
    many.reset(seed=0)
    refused("action of copy 0 is 10: pass 0 to 9", single.step, 10)
    refused("found float64", single.step, 1.0)
    refused("action of copy 1 is -1", many.step, [0, -1, 0])
    refused(r"whole numbers \(3,\): found int64 \(2,\)", many.step, [0, 0])
    refused("found 3 seeds", many.reset, seed=[1, 2, 3])
    refused("the seed is -1", many.reset, seed=-1)
    for mask in (np.zeros(3, dtype=bool), np.ones(3), np.ones(2, dtype=bool)):
        refused("reset_mask must be booleans", many.reset, options={"reset_mask": mask})
    single.step(0)
    single.step(0)
    refused("call reset before step", single.step, 0)
    with pytest.raises(AttributeError, match="no attribute 'RichDoor'"):
        _ = module.RichDoor


def python(code: str) -> None:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_importing_the_module_imports_nothing_heavy_and_registers_nothing():
    python(
        "import sys, offrl_wb.worlds.rich_lock as m; m.Copies(m.rich_lock(3), 2);"
        "heavy = {'gymnasium', 'torch', 'polars', 'plotly', 'scipy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )


def test_gymnasium_finds_it_by_module_and_name():
    python(
        "import gymnasium as g; e = g.make('offrl_wb.worlds.rich_lock:RichLock-v0', horizon=3);"
        "e.reset(seed=0); v = g.make_vec('RichLock-v0', num_envs=2, horizon=3);"
        "assert v.reset(seed=0)[0].shape == (2, 8)"
    )


def test_register_after_the_fact_and_twice():
    python(
        "import warnings; warnings.simplefilter('error');"
        "from offrl_wb.worlds.rich_lock import register; register(); register();"
        "import gymnasium; gymnasium.make('RichLock-v0', horizon=3).reset(seed=0)"
    )
