"""Logs that are collected: reproducible, unbiased, with the right probabilities and ends."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.policy import TabularPolicy
from offrl_wb.core.random import stream
from offrl_wb.core.statistics import bootstrap_interval
from offrl_wb.data.collector import (
    Ledger,
    RowGenerator,
    UniformBox,
    collect,
    draw_from,
    episode_seed,
    gaussian_density,
    squashed,
    tabular_environment,
    uniform_policy,
)
from offrl_wb.data.dataset import Dataset
from offrl_wb.worlds.tabular import TabularMDP, occupancy
from offrl_wb.worlds.toy_text import raw_toy_text

MODES = ["Disabled", "NextStep", "SameStep"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRL_WB_STATIC", "1")


class Counter(gymnasium.Env):
    """Counts its steps; ends after a random number of them, by a terminal or a time-out."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
    action_space = spaces.Discrete(3, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 9))
        self.count, self.name = 0, float(self.np_random.random())
        return np.array([self.name, 0.0]), {}

    def step(self, action: int) -> tuple:
        assert self.action_space.contains(action)
        assert self.count < self.length, "stepped beyond the end"
        self.count += 1
        over = self.count == self.length
        even = self.length % 2 == 0
        info = {"twice": 2 * self.count, "word": "x"} | ({"last": True} if over else {})
        seen = np.array([self.name, float(self.count)])
        return seen, float(action), over and even, over and not even, info


class Noisy:
    """A stochastic policy over two-dimensional actions."""

    def sample(self, observations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.normal(observations[:, :1], 1.0, (len(observations), 1))

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return gaussian_density(actions, observations[:, :1], np.ones(1))

    def act(self, observations: np.ndarray, generator: Any = None) -> np.ndarray:
        return observations[:, :1] if generator is None else self.sample(observations, generator)


class Leaning:
    """A discrete policy on CartPole."""

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        right = 1 / (1 + np.exp(-9 * observations[:, 2] - 2 * observations[:, 3]))
        return np.stack([1 - right, right], axis=1)

    def act(self, observations: np.ndarray, generator: Any = None) -> np.ndarray:
        return draw_from(self.probabilities(observations), generator).actions


UNIFORM = uniform_policy(Counter.action_space)


def assert_counts(log: Dataset) -> None:
    """No phantom transitions, real final observations, flags as the environment gave them."""
    arrays = log.arrays()
    names, counts = arrays.observations[:, 0], arrays.observations[:, 1]
    assert np.array_equal(counts, log.transitions["step"].to_numpy())
    assert np.array_equal(arrays.next_observations[:, 0], names)
    assert np.array_equal(arrays.next_observations[:, 1], counts + 1)
    assert np.array_equal(arrays.rewards, arrays.actions)
    ends = log.ends
    assert not (arrays.terminated & arrays.truncated).any()
    done = arrays.terminated | arrays.truncated
    assert np.array_equal(np.flatnonzero(done), ends)


@pytest.mark.parametrize("environments", [1, 2, 8])
@pytest.mark.parametrize("episodes", [1, 5, 20])
def test_episodes_are_whole_and_their_chains_hold(environments: int, episodes: int) -> None:
    log = collect(UNIFORM, Counter, episodes=episodes, environments=environments, seed=3)
    assert_counts(log)
    assert log.episode_count == episodes
    assert np.array_equal(log.arrays().terminated[log.ends], log.lengths % 2 == 0)
    assert log.transitions["behaviour_prob"].to_list() == [1 / 3] * len(log)


@settings(max_examples=15)
@given(st.integers(0, 100), st.integers(1, 60), st.integers(1, 9))
def test_vectorised_is_the_same_as_one_by_one(seed: int, size: int, environments: int) -> None:
    together = collect(UNIFORM, Counter, transitions=size, environments=environments, seed=seed)
    alone = collect(UNIFORM, Counter, transitions=size, environments=1, seed=seed)
    assert len(together) == size
    assert together.content_hash == alone.content_hash
    assert together.episodes["seed"][0] == episode_seed(seed, 0)
    last = together.arrays()
    assert last.terminated[-1] or last.truncated[-1]
    assert np.array_equal(last.next_observations[-1], last.observations[-1] + [0, 1])


def test_a_log_by_transitions_is_the_beginning_of_one_by_episodes() -> None:
    whole = collect(UNIFORM, Counter, episodes=30, seed=5)
    part = collect(UNIFORM, Counter, transitions=len(whole) // 2, seed=5)
    rows = whole.transitions.head(len(part))
    assert part.transitions.drop("truncated").equals(rows.drop("truncated"))
    assert part.transitions["truncated"][:-1].equals(rows["truncated"][:-1])


def test_the_seed_decides() -> None:
    hashes = [collect(UNIFORM, Counter, episodes=3, seed=s).content_hash for s in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_every_way_of_resetting_gives_the_same_kind_of_log(vector: Any, mode: str) -> None:
    environments = vector([Counter] * 3, autoreset_mode=mode)
    try:
        log = collect(UNIFORM, environments, episodes=20, seed=0, infos=["twice", "last"])
        again = collect(UNIFORM, environments, transitions=40, seed=0)
    finally:
        environments.close()
    assert_counts(log)
    assert_counts(again)
    assert log.episode_count == 20
    assert ("seed" in log.episodes.columns) == (mode == "Disabled")
    counts = log.arrays().observations[:, 1] + 1
    assert log.transitions["info.twice"].to_list() == (2 * counts).tolist()
    assert log.transitions["info.last"].is_not_null().arg_true().to_list() == log.ends.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_dictionary_observations_go_through_every_mode(mode: str) -> None:
    class Named(gymnasium.ObservationWrapper):
        observation_space = spaces.Dict(
            {
                "n": spaces.Discrete(99),
                "pair": spaces.Tuple([spaces.Box(0, 1, (1,), np.float64), spaces.Discrete(9)]),
            }
        )

        def observation(self, seen: np.ndarray) -> dict:
            return {"n": int(seen[1]), "pair": (seen[:1], 4)}

    environments = SyncVectorEnv([lambda: Named(Counter())] * 3, autoreset_mode=mode)
    log = collect(UNIFORM, environments, episodes=9)
    arrays = log.arrays()
    assert np.array_equal(arrays.next_observations[:, 0], arrays.observations[:, 0] + 1)
    assert np.array_equal(arrays.next_observations[:, 1:], arrays.observations[:, 1:])
    assert (arrays.observations[:, 2] == 4).all()


def test_episodes_are_not_the_first_to_finish() -> None:
    log = collect(UNIFORM, Counter, episodes=400, environments=16, seed=1)
    interval = bootstrap_interval(log.lengths.astype(float))
    assert interval.low < 4.5 < interval.high


def test_only_what_is_needed_is_kept() -> None:
    log = collect(UNIFORM, Counter, transitions=10, environments=8)
    told = log.provenance.to_json()[-1]["outcome"]
    assert told["environment_steps"] < 100
    assert told["vector"] == "SyncVectorEnv(8)"


# Gymnasium's own environments


def test_cartpole_actions_agree_with_their_probabilities() -> None:
    log = collect(Leaning(), "CartPole-v1", transitions=8_000, seed=1)
    told = Leaning().probabilities(log.arrays().observations)
    actions = log.arrays().actions
    logged = log.transitions["behaviour_prob"].to_numpy()
    assert np.allclose(logged, told[np.arange(len(log)), actions], rtol=1e-6)
    surprise = (actions == 1) - told[:, 1]
    for band in np.array_split(np.argsort(told[:, 1]), 8):
        spread = np.sqrt((told[band, 1] * told[band, 0]).mean() / len(band))
        assert abs(surprise[band].mean()) < 4 * spread
    weights = 0.5 / logged
    interval = bootstrap_interval(weights, resamples=300)
    assert interval.low < 1 < interval.high, "importance weights of a policy average one"


def test_cartpole_time_outs_are_not_terminals() -> None:
    log = collect(Leaning(), "CartPole-v1", episodes=20, seed=1)
    table = log.episode_table()
    assert table.filter(pl.col("length") == 500)["truncated"].all()
    short = table.filter(pl.col("length") < 500)
    assert short["terminated"].all()
    assert not short["truncated"].any()
    final = np.stack(short["final_obs"].to_list())
    limits = [2.4, 12 * np.pi / 180]
    assert (np.abs(final[:, [0, 2]]) > limits).any(axis=1).all(), "a fall is seen at the end"
    assert log.spec.name == "CartPole-v1"
    assert log.spec.observation_space == gymnasium.make("CartPole-v1").observation_space


def test_an_episode_can_be_lived_again_from_its_seed() -> None:
    log = collect(Leaning(), "CartPole-v1", episodes=3, seed=4)
    environment = gymnasium.make("CartPole-v1")
    seen, _ = environment.reset(seed=int(log.episodes["seed"][2]))
    start, length = log.starts[2], log.lengths[2]
    for row in range(start, start + length):
        assert np.array_equal(seen, log.arrays().observations[row])
        seen, *_ = environment.step(int(log.arrays().actions[row]))
    assert np.array_equal(seen, log.episodes["final_obs"][2])


def test_pendulum_actions_are_clipped_and_the_drawn_ones_kept() -> None:
    log = collect(Noisy(), "Pendulum-v1", transitions=1000, seed=0, options={"g": 9.0})
    arrays, frame = log.arrays(), log.transitions
    drawn = frame["drawn_action"].to_numpy()
    clipped = np.abs(drawn[:, 0]) > 2
    assert 0 < clipped.mean() < 0.5
    assert np.array_equal(arrays.actions, np.clip(drawn, -2, 2))
    assert arrays.actions.dtype == np.float32
    assert np.array_equal(frame["behaviour_prob"].is_null().to_numpy(), clipped)
    assert frame["behaviour_prob"].drop_nulls().equals(frame["drawn_prob"].filter(~clipped))
    density = np.exp(Noisy().log_prob(arrays.observations, drawn))
    assert np.allclose(frame["drawn_prob"], density, rtol=1e-4)
    assert (arrays.truncated.sum(), arrays.terminated.sum()) == (5, 0)
    told = log.provenance.to_json()[-1]
    assert told["outcome"]["options"]["g"] == 9.0
    assert told["outcome"]["max_episode_steps"] == 200
    assert told["outcome"]["gymnasium"] == gymnasium.__version__
    assert told["parameters"]["environment"] == "Pendulum-v1"
    assert told["parameters"]["options"] == {"g": 9.0}
    assert told["seed"] == 0


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_a_collected_log_goes_to_minari_and_back(tmp_path: Any, data_format: str) -> None:
    minari = pytest.importorskip("minari")
    from offrl_wb.data.minari_store import read_minari, write_minari

    log = collect(Noisy(), "Pendulum-v1", transitions=450, seed=0, source="noisy")
    path = write_minari(
        log,
        "pendulum/noisy-v0",
        root=tmp_path,
        data_format=data_format,
        environment="Pendulum-v1",
    )
    assert read_minari("pendulum/noisy-v0", root=tmp_path).content_hash == log.content_hash
    theirs = minari.MinariDataset(path / "data")
    environment = theirs.recover_environment()
    for episode, seed in zip(theirs, log.episodes["seed"], strict=True):
        seen, _ = environment.reset(seed=seed)
        assert np.array_equal(seen, episode.observations[0])
        for action, following in zip(episode.actions, episode.observations[1:], strict=True):
            assert theirs.action_space.contains(action)
            assert np.array_equal(environment.step(action)[0], following)


def test_without_clipping_the_environment_gets_what_was_drawn() -> None:
    log = collect(Noisy(), "Pendulum-v1", transitions=300, clip=False)
    assert np.abs(log.arrays().actions).max() > 2
    assert "drawn_action" not in log.transitions.columns
    assert not log.transitions["behaviour_prob"].has_nulls()


def test_normal_draws_do_not_depend_on_how_many_environments_there_are() -> None:
    logs = [collect(Noisy(), "Pendulum-v1", transitions=450, environments=n) for n in (1, 3)]
    assert logs[0].content_hash == logs[1].content_hash


def test_the_mode_of_a_policy_is_taken_if_asked_for() -> None:
    log = collect(Noisy(), "Pendulum-v1", transitions=50, deterministic=True)
    assert np.array_equal(log.arrays().actions, log.arrays().observations[:, :1])
    assert "behaviour_prob" not in log.transitions.columns
    sure = collect(Leaning(), "CartPole-v1", transitions=50, deterministic=True)
    assert sure.transitions["behaviour_prob"].to_list() == [1.0] * 50


def test_a_lake_is_walked_by_a_table() -> None:
    walk = TabularPolicy(np.full((16, 4), 0.25))
    log = collect(walk, "FrozenLake-v1", episodes=50, options={"is_slippery": True})
    world = raw_toy_text("FrozenLake-v1", 0.9)
    arrays = log.arrays()
    moved = world.transition_matrix[arrays.observations, arrays.actions]
    alive = ~arrays.terminated
    assert (moved[np.arange(len(log)), arrays.next_observations][alive] > 0).all()
    assert log.transitions["obs"].dtype == pl.Int64


def test_a_tabular_world_is_visited_as_often_as_computed() -> None:
    generator = np.random.default_rng(0)
    world = TabularMDP.from_dense(
        generator.dirichlet(np.ones(4)),
        generator.dirichlet(np.ones(4), size=(4, 2)),
        generator.random((4, 2)),
        0.8,
    )
    table = generator.dirichlet(np.ones(2), size=4)
    log = collect(TabularPolicy(table), world, episodes=700, longest=15, environments=50, seed=2)
    assert log.spec.discount == 0.8
    assert (log.lengths == 15).all()
    assert log.arrays().truncated[log.ends].all()
    weights = 0.2 * 0.8 ** log.transitions["step"].to_numpy() / log.episode_count
    pairs = log.arrays().observations * 2 + log.arrays().actions
    visited = np.bincount(pairs, weights, minlength=8).reshape(4, 2) / (1 - 0.8**15)
    exact = occupancy(world, table)
    assert np.abs(visited - exact).max() < 0.025
    expected = (world.reward * exact).sum()
    paid = (weights * log.arrays().rewards).sum() / (1 - 0.8**15)
    assert abs(paid - expected) < 0.02


def test_a_tabular_environment_obeys_gymnasium() -> None:
    from gymnasium.utils.env_checker import check_env

    world = TabularMDP.from_dense(
        np.array([0.5, 0.5, 0.0]), np.full((3, 2, 3), 1 / 3), np.zeros((3, 2)), 0.5
    )
    check_env(tabular_environment(world), skip_render_check=True)


# Kinds of environments


def test_an_environment_that_is_handed_in_stays_open_and_is_used_alone() -> None:
    environment = gymnasium.make("CartPole-v1")
    log = collect(Leaning(), environment, episodes=3, seed=7)
    assert log.content_hash == collect(Leaning(), "CartPole-v1", episodes=3, seed=7).content_hash
    assert log.provenance.to_json()[-1]["outcome"]["vector"] == "SyncVectorEnv(1)"
    environment.reset()
    environment.step(0)


def test_environments_made_here_are_closed() -> None:
    closed: list[int] = []

    class Closing(Counter):
        def close(self) -> None:
            closed.append(1)

    collect(UNIFORM, Closing, episodes=5, environments=3)
    assert len(closed) == 3
    with pytest.raises(InputError):
        collect(lambda seen: seen * np.nan, Closing, episodes=5, environments=3)
    assert len(closed) == 6


def test_gymnasiums_own_vector_environments_are_run() -> None:
    environments = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    log = collect(Leaning(), environments, episodes=12)
    steps = np.diff(log.arrays().observations[:, 0]) / 0.02
    inside = np.diff(log.transitions["episode"].to_numpy().astype(int)) == 0
    assert np.allclose(steps[inside], log.arrays().observations[:-1, 1][inside], atol=1e-2)
    assert log.episode_count == 12
    environments.close()


@pytest.mark.parametrize("longest", [3, 4])
def test_an_episode_is_cut_at_the_longest(longest: int) -> None:
    log = collect(UNIFORM, Counter, episodes=30, longest=longest)
    assert log.lengths.max() == longest
    cut = log.lengths == longest
    over = log.arrays().terminated[log.ends]
    assert log.arrays().truncated[log.ends][cut & ~over].all()


def test_images_go_to_their_file(tmp_path: Any) -> None:
    class Screen(gymnasium.ObservationWrapper):
        observation_space = spaces.Box(0, 255, (32, 32, 3), dtype=np.uint8)

        def observation(self, seen: np.ndarray) -> np.ndarray:
            return np.full((32, 32, 3), int(seen[1]), dtype=np.uint8)

    shapes = set()

    def policy(seen: np.ndarray) -> np.ndarray:
        shapes.add(seen.shape[1:])
        return np.full(len(seen), 2)

    def make() -> gymnasium.Env:
        return Screen(Counter())

    with pytest.raises(InputError, match="pass images="):
        collect(policy, make, episodes=5)
    log = collect(policy, make, episodes=5, images=tmp_path / "frames.npy")
    assert shapes == {(32, 32, 3)}
    assert len(np.load(tmp_path / "frames.npy")) == len(log) + 5
    arrays = log.arrays()
    frames = log.spec.images.open()
    assert np.array_equal(frames[arrays.observations][:, 0, 0, 0], log.transitions["step"])
    assert np.array_equal(frames[arrays.next_observations][:, 5, 5, 2], log.transitions["step"] + 1)


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.MultiDiscrete([2, 3]), [1, 2]),
        (spaces.MultiBinary(3), [1, 0, 1]),
        (spaces.Box(-1, 1, (2, 2), dtype=np.float32), [0.5, -0.5, 0.25, 1.0]),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,), np.float32)), [2, 0, 1]),
        (spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]), [2, 1]),
    ],
)  # fmt: skip
def test_actions_of_every_kind_reach_the_environment(space: Any, given: list) -> None:
    class Anything(Counter):
        action_space = space

        def step(self, action: Any) -> tuple:
            assert space.contains(action), action
            self.count += 1
            return np.array([self.name, float(self.count)]), 1.0, self.count == 3, False, {}

    log = collect(lambda seen: np.tile(given, (len(seen), 1)), Anything, episodes=2)
    assert log.transitions["action"].to_list() == [given] * 6
    assert "behaviour_prob" not in log.transitions.columns


# Policies


def test_a_function_can_be_given_its_probability() -> None:
    def probability(seen: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.where(actions == 3, 0.75, 0.25)

    log = collect(lambda seen: np.full(len(seen), 3), Counter, episodes=2, probability=probability)
    assert set(log.transitions["behaviour_prob"]) == {0.75}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda seen: np.full(len(seen), 5), "chose action 5, and the environment has Discrete"),
        (lambda seen: np.full(len(seen), 1), "chose action 1"),
        (lambda seen: np.full(len(seen), 2.5), r"chose action 2\.5"),
        (lambda seen: np.full(len(seen), np.nan), "not finite: nan"),
        (lambda seen: np.full(len(seen) + 1, 2), r"int64 \(3,\) for 2 observations"),
        (lambda seen: np.array(["a"] * len(seen)), "for 2 observations"),
        (TabularPolicy, "no policy"),
        (3, "a int is no policy"),
    ],
)
def test_a_policy_that_does_not_fit_is_named(policy: Any, message: str) -> None:
    if policy is TabularPolicy:
        policy = type("Nothing", (), {})()
    with pytest.raises(InputError, match=message):
        collect(policy, Counter, episodes=2)


def test_wrong_probabilities_are_named() -> None:
    class Wrong:
        def probabilities(self, seen: np.ndarray) -> np.ndarray:
            return np.where(np.arange(len(seen))[:, None] == 1, 0.9, 1 / 3) * np.ones(3)

        def act(self, seen: np.ndarray, generator: Any = None) -> np.ndarray:
            raise AssertionError

    with pytest.raises(InputError, match="no distribution in row 1"):
        collect(Wrong(), Counter, episodes=2)
    with pytest.raises(InputError, match="actions have 3 numbers"):
        collect(lambda seen: np.zeros((len(seen), 3)), "Pendulum-v1", episodes=1)


@pytest.mark.parametrize(
    ("environment", "more", "message"),
    [
        (Counter, {}, "one of the two"),
        (Counter, {"episodes": 1, "transitions": 1}, "one of the two"),
        (Counter, {"episodes": 0}, "pass 1 or more"),
        (Counter, {"transitions": 5, "environments": 0}, "pass 1 or more"),
        (Counter, {"episodes": 2, "seed": -1}, "seed is -1"),
        (Counter, {"episodes": 2, "infos": ["speed"]}, "never reported 'speed'"),
        (Counter, {"episodes": 2, "infos": ["word"]}, "'word' is not one number"),
        ("Nowhere-v0", {"episodes": 1}, "environment 'Nowhere-v0' cannot be made"),
        ("CartPole-v1", {"episodes": 1, "options": {"wind": 3}}, "cannot be made"),
        (lambda: 3, {"episodes": 1}, "maker returned a int"),
        (3, {"episodes": 1}, "a int is no environment"),
    ],
)
def test_what_does_not_fit_is_named(environment: Any, more: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect(UNIFORM, environment, **more)


def test_ready_vector_environments_keep_their_own_settings() -> None:
    environments = SyncVectorEnv([Counter] * 2)
    with pytest.raises(InputError, match="set them where it is made"):
        collect(UNIFORM, environments, episodes=1, longest=3)
    environments.metadata = {}
    with pytest.raises(InputError, match="does not say how it resets"):
        collect(UNIFORM, environments, episodes=1)
    world = TabularMDP.from_dense(np.ones(1), np.ones((1, 2, 1)), np.zeros((1, 2)), 0.5)
    with pytest.raises(InputError, match="pass longest="):
        collect(UNIFORM, world, episodes=1)


def test_uniform_policies_are_uniform_and_need_bounds() -> None:
    box = uniform_policy(spaces.Box(np.array([-1, 0]), np.array([1, 4]), dtype=np.float64))
    assert isinstance(box, UniformBox)
    drawn = box.act(np.zeros((20_000, 1)), stream(0, "test"))
    assert np.allclose(drawn.mean(axis=0), [0, 2], atol=0.05)
    assert np.allclose(drawn.var(axis=0), [4 / 12, 16 / 12], atol=0.05)
    assert np.allclose(np.exp(box.log_prob(drawn, drawn)), 1 / 8)
    assert box.act(np.zeros((2, 1))).tolist() == [[0, 2]] * 2
    assert UNIFORM.act(np.zeros(3)).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="must be bounded"):
        uniform_policy(spaces.Box(-np.inf, 1, (1,)))
    log = collect(uniform_policy(spaces.Box(-2, 2, (1,))), "Pendulum-v1", transitions=20)
    assert np.allclose(log.transitions["behaviour_prob"], 0.25)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True), st.integers(0, 3))
def test_a_row_of_a_draw_depends_on_its_own_stream_alone(numbers: list, extra: int) -> None:
    def generator(seeds: list) -> RowGenerator:
        return RowGenerator([stream(s, "row") for s in seeds], stream(1, "shared"))

    draws: list[Callable] = [
        lambda g, n: g.random(n),
        lambda g, n: g.random((n, extra)),
        lambda g, n: g.standard_normal((n, extra)),
        lambda g, n: g.normal(np.zeros((n, 2)), 3.0),
        lambda g, n: g.uniform(-1, np.ones((n, 2))),
        lambda g, n: g.integers(0, 5, size=(n, 2)),
    ]
    for draw in draws:
        together = draw(generator(numbers), len(numbers))
        for place, number in enumerate(numbers):
            assert np.array_equal(together[place], draw(generator([number]), 1)[0])


def test_other_draws_come_from_the_shared_stream() -> None:
    generator = RowGenerator([stream(0, "row")] * 2, stream(1, "shared"))
    same = stream(1, "shared")
    assert generator.random() == same.random()
    assert generator.standard_normal(3).tolist() == same.standard_normal(3).tolist()
    assert generator.integers(9) == same.integers(9)
    assert (
        generator.integers(9, size=2, dtype=np.int8).tolist()
        == same.integers(9, size=2, dtype=np.int8).tolist()
    )
    assert generator.choice(9) == same.choice(9)


def test_draws_follow_the_table_even_at_its_edges() -> None:
    class Edge:
        def random(self, count: int) -> np.ndarray:
            return np.full(count, np.nextafter(1.0, 0.0))

    table = np.array([[0.1, 0.2, 0.7, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]])
    drawn = draw_from(table, Edge())  # type: ignore[arg-type]
    assert drawn.actions.tolist() == [2, 2]


@settings(max_examples=30)
@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_ledger_asks_for_no_less_and_no_more(
    size: int, lengths: list, environments: int, by_episodes: bool
) -> None:
    ledger = Ledger(None, size) if by_episodes else Ledger(size, None)
    true = (lengths * 40)[:60]
    running = [ledger.start() for _ in range(environments)]
    for _ in range(1000):
        if ledger.complete():
            break
        needed = [n for n in running if 0 <= n < ledger.needed()]
        assert needed, "something is always running until all is there"
        ended = [ledger.lengths[n] + 1 == true[n] for n in needed]
        ledger.step(np.array(needed), np.array(ended))
        running = [ledger.start() if n < 0 or ledger.done[n] else n for n in running]
    assert ledger.complete()
    if by_episodes:
        assert ledger.lengths[:size] == true[:size]
    else:
        whole = int(np.searchsorted(np.cumsum(true), size))
        assert ledger.lengths[:whole] == true[:whole]
        assert sum(ledger.lengths[: whole + 1]) >= size


# Stable-Baselines3


def model(name: str, environment: Any, **options: Any) -> Any:
    baselines = pytest.importorskip("stable_baselines3")
    made = getattr(baselines, name)("MlpPolicy", environment, device="cpu", seed=0, **options)
    return made.learn(32)


SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}


def test_a_ppo_model_logs_its_own_probabilities() -> None:
    import torch

    agent = model("PPO", "CartPole-v1", **SMALL)
    log = collect(agent, "CartPole-v1", transitions=300, seed=0, source="ppo")
    again = collect(agent, "CartPole-v1", transitions=300, seed=0, source="ppo")
    assert log.content_hash == again.content_hash
    arrays = log.arrays()
    with torch.no_grad():
        _, log_prob, _ = agent.policy.evaluate_actions(
            torch.as_tensor(arrays.observations.copy()), torch.as_tensor(arrays.actions.copy())
        )
    assert np.allclose(log.transitions["behaviour_prob"], log_prob.exp(), rtol=1e-4)
    alone = collect(agent, "CartPole-v1", transitions=300, seed=0, environments=1)
    assert np.array_equal(alone.arrays().actions, arrays.actions)
    sure = collect(agent, "CartPole-v1", transitions=50, deterministic=True)
    expected, _ = agent.predict(sure.arrays().observations, deterministic=True)
    assert np.array_equal(sure.arrays().actions, expected)
    assert set(sure.transitions["behaviour_prob"]) == {1.0}


def test_a_gaussian_ppo_model_is_clipped_like_its_own_predictions() -> None:
    import torch

    agent = model("PPO", "Pendulum-v1", **SMALL)
    log = collect(agent, "Pendulum-v1", transitions=400, seed=0)
    drawn = log.transitions["drawn_action"].to_numpy()
    assert np.abs(log.arrays().actions).max() <= 2 < np.abs(drawn).max()
    with torch.no_grad():
        _, log_prob, _ = agent.policy.evaluate_actions(
            torch.as_tensor(log.arrays().observations.copy()), torch.as_tensor(drawn.copy())
        )
    assert np.allclose(log.transitions["drawn_prob"], log_prob.exp(), rtol=1e-3)


def test_a_sac_model_logs_the_density_of_its_squashed_actions() -> None:
    import torch

    agent = model("SAC", "Pendulum-v1", learning_starts=60, policy_kwargs={"net_arch": [8]})
    log = collect(agent, "Pendulum-v1", transitions=400, seed=0)
    actions = log.arrays().actions
    assert (np.abs(actions) <= 2).all()
    actor = agent.policy.actor
    with torch.no_grad():
        means, deviations, _ = actor.get_action_dist_params(
            torch.as_tensor(log.arrays().observations.copy())
        )
        inside = torch.as_tensor(actions.copy()) / 2
        found = actor.action_dist.proba_distribution(means, deviations).log_prob(inside)
    safe = np.abs(actions[:, 0]) < 1.9
    density = log.transitions["behaviour_prob"].to_numpy() * 2  # the box is twice as wide
    assert safe.sum() > 50
    assert np.allclose(density[safe], found.exp().numpy()[safe], rtol=1e-2)


def test_a_dqn_model_explores_row_by_row() -> None:
    agent = model("DQN", "CartPole-v1", learning_starts=10, policy_kwargs={"net_arch": [8]})
    agent.exploration_rate = 0.3
    log = collect(agent, "CartPole-v1", transitions=2000, seed=0)
    greedy, _ = agent.policy.predict(log.arrays().observations, deterministic=True)
    agreed = greedy == log.arrays().actions
    assert np.array_equal(log.transitions["behaviour_prob"], np.where(agreed, 0.85, 0.15))
    assert abs(agreed.mean() - 0.85) < 4 * np.sqrt(0.85 * 0.15 / 2000)


def test_a_model_without_probabilities_is_run_reproducibly() -> None:
    import torch

    td3 = model("TD3", "Pendulum-v1", learning_starts=60, policy_kwargs={"net_arch": [8]})
    assert "behaviour_prob" not in collect(td3, "Pendulum-v1", transitions=30).transitions.columns
    agent = model("PPO", "Pendulum-v1", use_sde=True, **SMALL)
    before = torch.random.get_rng_state()
    logs = [collect(agent, "Pendulum-v1", transitions=30, seed=s) for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    hashes = [log.content_hash for log in logs]
    assert hashes[0] == hashes[1] != hashes[2]
    assert "behaviour_prob" not in logs[0].transitions.columns


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_factored_ppo_models_multiply_their_probabilities(space: Any) -> None:
    import torch

    class Factored(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
        action_space = space

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
            super().reset(seed=seed)
            return self.np_random.random(2, dtype=np.float32), {}

        def step(self, action: Any) -> tuple:
            assert space.contains(action)
            over = bool(self.np_random.random() < 0.2)
            return self.np_random.random(2, dtype=np.float32), 0.0, over, False, {}

    agent = model("PPO", Factored(), **SMALL)
    log = collect(agent, Factored, transitions=200)
    with torch.no_grad():
        _, log_prob, _ = agent.policy.evaluate_actions(
            torch.as_tensor(log.arrays().observations.copy()),
            torch.as_tensor(log.arrays().actions.astype(np.float32)),
        )
    assert np.allclose(log.transitions["behaviour_prob"], log_prob.exp(), rtol=1e-4)


def test_a_recurrent_model_is_refused() -> None:
    class Recurrent:
        class policy:
            obs_to_tensor = None

        def predict(self, seen: np.ndarray, deterministic: bool) -> tuple:
            return np.zeros((len(seen), 1)), "memory"

    with pytest.raises(InputError, match="recurrent"):
        collect(Recurrent(), "Pendulum-v1", episodes=1)


@given(st.floats(-6, 6), st.floats(-2, 2), st.floats(0.1, 3))
def test_squashed_densities_change_variables_rightly(x: float, mean: float, spread: float) -> None:
    low, high = np.array([-1.0]), np.array([5.0])
    values = np.array([[x]])
    log_density = gaussian_density(values, np.array([[mean]]), np.array([[spread]]))
    action, found = squashed(values, log_density, low, high)
    slope = 3 / np.cosh(x) ** 2
    assert np.isclose(found[0], log_density[0] - np.log(slope), rtol=1e-9, atol=1e-9)
    assert np.isclose(action[0, 0], 2 + 3 * np.tanh(x))


# Found in review


@pytest.mark.parametrize("mode", MODES)
def test_environments_that_use_their_arrays_again_are_logged_rightly(mode: str) -> None:
    ready = SyncVectorEnv([Counter] * 3, copy=False, autoreset_mode=mode)
    assert_counts(collect(UNIFORM, ready, episodes=6))


@pytest.mark.parametrize(
    ("environment", "more", "message"),
    [
        (Counter(), {"options": {"n": 3}}, "made already"),
        ((lambda one: lambda: one)(Counter()), {}, "returns the same environment again"),
        (lambda: 1 / 0, {}, "cannot be made: division by zero"),
        (Counter, {"longest": 0}, "cannot be made"),
        (Counter, {"episodes": 2.5}, "whole numbers"),
        (Counter, {"environments": 2.0}, "whole numbers"),
        (Counter, {"probability": lambda seen, actions: 0.5}, r"shape \(\), not"),
        (Counter, {"probability": lambda seen, actions: -np.ones(len(seen))}, "is -1"),
        (Counter, {"probability": lambda seen, actions: np.full(len(seen), np.nan)}, "is nan"),
    ],
)
def test_what_would_go_wrong_silently_is_named(environment: Any, more: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect(UNIFORM, environment, **{"episodes": 2} | more)


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (spaces.Discrete(2), [1, 1], "2 numbers"),
        (spaces.MultiBinary(2), [5, 5], "chose action 5"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], "chose action 3"),
        (spaces.MultiDiscrete([2, 3], start=[1, 1]), [0, 1], "chose action 0"),
        (spaces.MultiDiscrete([2, 3]), [0.5, 1], r"chose action 0\.5"),
        (spaces.Box(-1, 1, (2,)), None, r"returned .* \(\) for"),
    ],
)
def test_actions_that_a_space_cannot_have_are_named(space: Any, action: Any, message: str) -> None:
    class Acted(Counter):
        action_space = space

    policy = (lambda seen: 1) if action is None else (lambda seen: np.array([action] * len(seen)))
    with pytest.raises(InputError, match=message):
        collect(policy, Acted, episodes=2)


def test_a_table_of_another_width_is_named() -> None:
    with pytest.raises(InputError, match=r"probabilities have shape \(2, 2\), not \(2, 3\)"):
        collect(uniform_policy(spaces.Discrete(2)), Counter, episodes=2)


def test_a_single_info_may_be_named_alone() -> None:
    log = collect(UNIFORM, Counter, episodes=2, infos="twice")
    assert log.transitions["info.twice"].to_list() == (2 * log.transitions["step"] + 2).to_list()
