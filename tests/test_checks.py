"""Every check finds what was planted, where it was planted, and says nothing of a clean log."""

import warnings

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.data import checks
from offrl_wb.data.checks import Finding, check, check_text
from offrl_wb.data.dataset import Dataset, concatenate
from offrl_wb.data.spec import ImageFile, ScoreReference, Spec
from tests.shared_data import neorl2_file

LIMIT = 40


def clean_rows(episodes: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Two AR(1) signals; the first ends an episode beyond 1.4, a time limit cuts it after 40."""
    generator, rows = np.random.default_rng(seed), []
    state, alive = generator.uniform(-0.5, 0.5, (episodes, 2)), np.ones(episodes, dtype=bool)
    for step in range(LIMIT):
        action = np.tanh(generator.normal(size=(episodes, 1)))
        ahead = 0.9 * state + 0.3 * action + 0.3 * generator.normal(size=state.shape)
        over = np.abs(ahead[:, 0]) > 1.4
        numbers = [np.arange(episodes), np.full(episodes, step), over, alive]
        rows.append(np.column_stack([*numbers, state, action, -(ahead[:, 0] ** 2), ahead]))
        alive, state = alive & ~over, ahead
    table = np.concatenate(rows)
    table = table[table[:, 3] == 1]
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    return dict(
        episode=table[:, 0].astype(int),
        observations=table[:, 4:6],
        actions=table[:, 6:7],
        rewards=table[:, 7],
        terminated=table[:, 2] == 1,
        truncated=(table[:, 2] == 0) & (table[:, 1] == LIMIT - 1),
        next_observations=table[:, 8:10],
    )


ROWS = clean_rows()
SPEC = Spec(
    spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64),
    spaces.Box(-1, 1, (1,), dtype=np.float64),
    score=ScoreReference(-40, 0),
)


def log(spec: Spec = SPEC, **replaced) -> Dataset:
    """The clean log with some arrays replaced."""
    return Dataset.from_arrays(**(ROWS | replaced), spec=spec)


def changed(name: str, rows, values) -> dict[str, np.ndarray]:
    """One array of the clean log with new values at some rows."""
    array = ROWS[name].copy()
    array[rows] = values
    return {name: array}


CLEAN = log()


def only(found) -> Finding:
    """The one finding there is."""
    (finding,) = found
    return finding


def told(finding: Finding) -> tuple[str, int, int | None]:
    return finding.severity, finding.count, finding.row


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_log_gives_an_empty_table(seed):
    data = Dataset.from_arrays(**clean_rows(seed=seed), spec=SPEC)
    assert check(data).is_empty()
    single = {n: a.astype(np.float32) if a.dtype == float else a for n, a in ROWS.items()}
    assert check(Dataset.from_arrays(**single, spec=SPEC)).is_empty()


# Numbers


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
def test_numbers_that_are_none_are_found(name):
    rows, values = [9, 31], np.array([np.nan, np.inf])
    shape = (2,) if name == "rewards" else (2, 1)
    finding = only(checks.non_finite(log(**changed(name, rows, values.reshape(shape)))))
    assert told(finding) == ("error", 2, 9)


def test_the_column_of_a_number_that_is_none_is_named():
    observations = ROWS["observations"].copy()
    observations[5, 1] = np.nan
    data = log(observations=observations, next_observations=None)
    assert "obs_1:" in only(checks.non_finite(data)).what


def test_a_final_observation_that_is_no_number_is_found_at_the_last_row():
    final = CLEAN.arrays().next_observations[CLEAN.ends].copy()
    final[3] = np.nan
    data = log(next_observations=None, final_observations=np.ma.array(final, mask=False))
    assert told(only(checks.non_finite(data))) == ("error", 1, CLEAN.ends[3])


def test_further_columns_are_looked_at_and_their_nulls_are_not():
    column = np.arange(len(CLEAN), dtype=float)
    column[6] = np.inf
    series = pl.Series([None, *column[1:]], dtype=pl.Float64)
    finding = only(checks.non_finite(CLEAN.with_columns(mc_return=series)))
    assert told(finding) == ("warning", 1, 6)
    assert "mc_return" in finding.what


# Steps and ends


@pytest.mark.parametrize(("change", "severity"), [(-1, "error"), (1, "warning")])
def test_steps_that_go_back_or_jump_are_found(change, severity):
    step = CLEAN.transitions["step"].to_numpy()
    later = (ROWS["episode"] == 2) & (step >= 4)
    finding = only(checks.steps(log(step=step + change * later)))
    assert told(finding) == (severity, 1, CLEAN.starts[2] + 4)


def test_an_episode_that_does_not_begin_at_the_beginning_is_noted():
    step = CLEAN.transitions["step"].to_numpy() + 7 * (ROWS["episode"] == 3)
    assert told(only(checks.steps(log(step=step)))) == ("note", 1, CLEAN.starts[3])


def test_torn_chains_are_found():
    rows = [4, 9, 20]
    torn = changed("next_observations", rows, ROWS["next_observations"][rows] + 0.01)
    assert told(only(checks.broken_chains(log(**torn)))) == ("error", 3, 4)


def test_a_shifted_column_is_recognised():
    own = only(checks.broken_chains(log(next_observations=ROWS["observations"])))
    assert "repeats the row's own" in own.what
    after = np.roll(ROWS["observations"], -2, axis=0)
    assert "shifted by a row" in only(checks.broken_chains(log(next_observations=after))).what


def test_rounding_is_told_from_tearing():
    rounded = ROWS["next_observations"].astype(np.float32).astype(np.float64)
    finding = only(checks.broken_chains(log(next_observations=rounded)))
    assert finding.severity == "note"
    assert finding.count == len(CLEAN) - CLEAN.episode_count
    rows = np.setdiff1d(np.arange(len(CLEAN)), CLEAN.ends)[[3, 8]]
    rounded[rows] += 1
    found = {f.severity: f for f in checks.broken_chains(log(next_observations=rounded))}
    assert told(found["error"]) == ("error", 2, rows[0])
    assert found["note"].count == finding.count - 2


def test_rows_that_were_left_out_explain_a_broken_chain():
    data = CLEAN.filter(~((pl.col("episode") == 1) & (pl.col("step") == 5)))
    finding = only(checks.broken_chains(data))
    assert told(finding) == ("note", 1, CLEAN.starts[1] + 4)
    assert "before a gap" in finding.what


def test_corruption_on_purpose_explains_a_broken_chain():
    observations = changed("observations", [7, 15], 9.0)["observations"]
    mark = np.isin(np.arange(len(CLEAN)), [7, 15])
    data = log(observations=observations, columns={"corrupted_obs": mark})
    finding = only(checks.broken_chains(data))
    assert told(finding) == ("note", 2, 6)  # the row before does not lead there
    assert "marked as corrupted" in finding.what


def test_chains_of_whole_numbers_are_compared_exactly():
    cells = 1_000_000 + np.arange(6)  # so large that a relative tolerance would forgive one
    space = spaces.Discrete(2_000_000)
    ahead = cells + 1
    ahead[2] += 1
    data = Dataset.from_arrays(
        cells,
        cells % 2,
        np.ones(6),
        np.arange(6) == 5,
        next_observations=ahead,
        spec=Spec(space, spaces.Discrete(2)),
    )
    assert told(only(checks.broken_chains(data))) == ("error", 1, 2)


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_ends_inside_an_episode_are_found(name):
    inside = np.setdiff1d(np.arange(len(CLEAN)), CLEAN.ends)[[5, 50]]
    finding = only(checks.ends_inside(log(**changed(name, inside, True))))
    assert told(finding) == ("error", 2, inside[0])
    assert finding.what.startswith(name)


def test_rows_that_are_both_are_noted():
    rows = np.flatnonzero(ROWS["terminated"])[:3]
    finding = only(checks.ends_inside(log(**changed("truncated", rows, True))))
    assert told(finding) == ("note", 3, rows[0])


def test_open_episodes_are_found():
    rows = np.flatnonzero(ROWS["truncated"])[[1, 4]]
    finding = only(checks.open_episodes(log(**changed("truncated", rows, False))))
    assert told(finding) == ("warning", 2, rows[0])


def test_a_log_that_stops_in_its_last_episode_is_only_noted():
    flags = {n: changed(n, len(CLEAN) - 1, False)[n] for n in ("terminated", "truncated")}
    finding = only(checks.open_episodes(log(**flags)))
    assert told(finding) == ("note", 1, len(CLEAN) - 1)


def test_unknown_final_observations_are_found():
    final = np.ma.array(CLEAN.arrays().next_observations[CLEAN.ends], mask=False)
    over = CLEAN.episode_table()["terminated"].to_numpy()
    ended, cut = np.flatnonzero(over)[:2], np.flatnonzero(~over)[[0, 2, 3]]
    final[np.concatenate([ended, cut])] = np.ma.masked
    data = log(next_observations=None, final_observations=final)
    found = {f.severity: f for f in checks.unknown_final_observations(data)}
    assert told(found["error"]) == ("error", 3, CLEAN.ends[cut[0]])
    assert told(found["note"]) == ("note", 2, CLEAN.ends[ended[0]])


# Time-outs as terminals


def marked(rows=ROWS, **more) -> Dataset:
    """The log with every time-out written down as a terminal."""
    over = rows["terminated"] | rows["truncated"]
    return Dataset.from_arrays(
        **(rows | {"terminated": over, "truncated": np.zeros(len(over), bool)} | more), spec=SPEC
    )


def test_time_outs_marked_as_terminals_are_found():
    finding = only(checks.timeouts_as_terminals(marked()))
    cut = np.flatnonzero(ROWS["truncated"])
    assert told(finding) == ("error", len(cut), cut[0])
    assert "exactly 40 steps" in finding.what
    assert "no episode is marked truncated" in finding.what


def test_the_other_half_that_is_marked_truncated_is_evidence():
    cut = np.flatnonzero(ROWS["truncated"])
    over, flags = ROWS["terminated"].copy(), ROWS["truncated"].copy()
    over[cut[::2]], flags[cut[::2]] = True, False
    finding = only(checks.timeouts_as_terminals(log(terminated=over, truncated=flags)))
    assert told(finding) == ("error", len(cut[::2]), cut[0])
    assert f"{len(cut[1::2])} other episodes are truncated at that length" in finding.what
    both = log(terminated=ROWS["terminated"] | ROWS["truncated"])
    assert "marked truncated as well" in only(checks.timeouts_as_terminals(both)).what


def test_an_episode_that_is_longer_takes_the_accusation_back():
    data = concatenate([marked(), marked()])
    assert only(checks.timeouts_as_terminals(data)).severity == "error"
    size = 55
    extra = Dataset.from_arrays(
        np.random.default_rng(0).normal(size=(size, 2)) * 0.3,
        np.zeros((size, 1)),
        np.zeros(size),
        np.zeros(size, bool),
        np.arange(size) == size - 1,
        final_observations=np.zeros((1, 2)),
        spec=SPEC,
    )
    assert not list(checks.timeouts_as_terminals(concatenate([data, extra])))


def test_whole_multiples_of_the_limit_do_not_take_it_back():
    """Resets that got lost: two time-outs in a row become one episode of eighty steps."""
    ends = np.flatnonzero(ROWS["truncated"])
    episode = ROWS["episode"].copy()
    pair = next((end - LIMIT, end) for end in ends.tolist() if end - LIMIT in ends)
    episode[episode == episode[pair[1]]] = episode[pair[0]]
    over = ROWS["terminated"] | ROWS["truncated"]
    over[pair[0]] = False
    data = log(terminated=over, truncated=np.zeros(len(over), bool), episode=episode)
    finding = only(checks.timeouts_as_terminals(data))
    assert finding.count == len(ends) - 1
    assert "or a whole multiple" in finding.what


def test_two_sources_with_two_limits_are_judged_one_by_one():
    short = {n: a.copy() for n, a in ROWS.items()}
    keep = CLEAN.transitions["step"].to_numpy() < 25
    short = {n: a[keep] for n, a in short.items()}
    last = np.append(np.diff(short["episode"]) > 0, True)
    short["truncated"] = last & ~short["terminated"]
    parts = [marked().label("long"), marked(short).label("short")]
    found = list(checks.timeouts_as_terminals(concatenate(parts)))
    assert [("'long'" in f.what, "'short'" in f.what) for f in found] == [
        (True, False),
        (False, True),
    ]
    lengths = np.bincount(short["episode"])
    assert [f.count for f in found] == [ROWS["truncated"].sum(), (lengths == 25).sum()]
    unlabelled = only(checks.timeouts_as_terminals(concatenate([marked(), marked(short)])))
    assert "exactly 40" in unlabelled.what


def test_a_clock_in_the_observation_makes_the_limit_an_honest_end():
    step = CLEAN.transitions["step"].to_numpy()[:, None] / LIMIT
    clocked = dict(
        observations=np.append(ROWS["observations"], step, axis=1),
        next_observations=np.append(ROWS["next_observations"], step + 1 / LIMIT, axis=1),
    )
    spec = Spec(spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64), SPEC.action_space)
    over = ROWS["terminated"] | ROWS["truncated"]
    data = log(spec, **clocked, terminated=over, truncated=np.zeros(len(over), bool))
    assert not list(checks.timeouts_as_terminals(data))


def corridor(known: bool, cells: int = 12, copies: int = 30) -> Dataset:
    """An expert in a deterministic corridor: all episodes reach the goal in the same time."""
    seen, over = np.tile(np.arange(cells), copies), np.tile(np.arange(cells) == cells - 1, copies)
    final = np.full(copies, cells)
    return Dataset.from_arrays(
        seen,
        np.ones_like(seen),
        np.full(len(seen), -1.0),
        over,
        final_observations=final if known else np.ma.masked_all(copies, int),
        spec=Spec(spaces.Discrete(cells + 1), spaces.Discrete(2)),
    )


@pytest.mark.parametrize("known", [True, False])
def test_an_expert_in_a_corridor_is_not_accused(known):
    assert not list(checks.timeouts_as_terminals(corridor(known)))


@pytest.mark.parametrize("known", [True, False])
def test_a_walk_back_and_forth_that_always_stops_at_the_same_step_is_accused(known):
    """Every cell and every pair was also left: the end is no matter of the state."""
    cells, copies = 12, 30
    seen = np.concatenate([(np.arange(cells) + k) % cells for k in range(copies)])
    data = Dataset.from_arrays(
        seen,
        np.ones_like(seen),
        np.full(len(seen), -1.0),
        np.tile(np.arange(cells) == cells - 1, copies),
        final_observations=np.arange(copies) % cells if known else np.ma.masked_all(copies, int),
        spec=Spec(spaces.Discrete(cells), spaces.Discrete(2)),
    )
    assert told(only(checks.timeouts_as_terminals(data))) == ("error", copies, cells - 1)


def test_a_reward_that_only_ends_have_makes_it_a_note():
    rewards = np.where(ROWS["truncated"], 100.0, ROWS["rewards"])
    finding = only(checks.timeouts_as_terminals(marked(rewards=rewards)))
    assert finding.severity == "note"
    assert "unlike all others" in finding.what


def test_unknown_final_observations_do_not_clear_anybody():
    bare = marked(
        next_observations=None, final_observations=np.ma.masked_all((CLEAN.episode_count, 2))
    )
    assert only(checks.timeouts_as_terminals(bare)).severity == "error"


def test_ends_that_crowd_before_the_limit_are_no_pile():
    """Three ends at the longest length among thirty just below it: nothing odd."""
    lengths = np.repeat(np.arange(16, 21), [9, 9, 9, 9, 3])
    ends = np.cumsum(lengths) - 1
    seen = np.random.default_rng(0).normal(size=(lengths.sum(), 2))
    over = np.isin(np.arange(len(seen)), ends)
    data = Dataset.from_arrays(seen, seen, seen[:, 0], over, final_observations=0 * seen[ends])
    assert checks.pile_at_the_limit(data, np.arange(len(lengths))) is None
    assert checks.limit_of(data.lengths, np.ones(len(lengths), bool)) == 20


def test_copies_of_one_episode_are_one_episode():
    data = marked()
    longest = np.flatnonzero(data.lengths == LIMIT)
    assert not list(checks.timeouts_as_terminals(data.select(np.repeat(longest[0], 50))))
    assert list(checks.timeouts_as_terminals(data.select(longest)))


def test_a_single_step_or_a_handful_is_no_limit():
    bandit = np.random.default_rng(0).normal(size=(50, 2))
    for length in (1, 4):
        over = np.arange(len(bandit)) % length == length - 1
        data = Dataset.from_arrays(
            bandit,
            bandit[:, :1],
            bandit[:, 1],
            over,
            next_observations=bandit,
            episode=np.arange(50) // length,
        )
        assert not list(checks.timeouts_as_terminals(data))


@given(st.integers(0, 10_000), st.integers(20, 300), st.floats(0.005, 0.05))
@settings(max_examples=40)
def test_ends_that_come_at_random_are_not_accused(seed, limit, hazard):
    """Geometric lengths, cut at the limit and marked as they should be."""
    generator = np.random.default_rng(seed)
    drawn = generator.geometric(hazard, size=30)
    lengths, over = np.minimum(drawn, limit), drawn <= limit
    rows = int(lengths.sum())
    ends = np.cumsum(lengths) - 1
    flags = np.zeros((2, rows), dtype=bool)
    flags[0, ends], flags[1, ends] = over, ~over
    seen = generator.normal(size=(rows, 2))
    data = Dataset.from_arrays(
        seen,
        seen,
        seen[:, 0],
        *flags,
        episode=np.repeat(np.arange(30), lengths),
        final_observations=seen[ends],
    )
    assert not list(checks.timeouts_as_terminals(data))


# Actions


def test_actions_out_of_bounds_are_found_and_rounding_is_not():
    finding = only(checks.out_of_bounds(log(**changed("actions", [3, 12], [[1.2], [-7.0]]))))
    assert told(finding) == ("error", 2, 3)
    assert "action_0 reaches from -7 to 1.2" in finding.what
    assert not list(checks.out_of_bounds(log(**changed("actions", [3], 1 + 1e-7))))


def numbered(actions, space, observations=None, observation_space=None) -> Dataset:
    """A short log of whole numbers."""
    size = len(actions)
    observations = np.zeros(size, int) if observations is None else observations
    spec = Spec(observation_space or spaces.Discrete(3), space)
    return Dataset.from_arrays(
        observations,
        actions,
        np.arange(size),
        np.arange(size) == size - 1,
        next_observations=np.append(observations[1:], observations[:1], axis=0),
        spec=spec,
    )


def test_whole_numbers_beyond_their_space_are_found():
    data = numbered(np.array([0, 1, 3, -1]), spaces.Discrete(3))
    assert told(only(checks.out_of_bounds(data))) == ("error", 2, 2)
    shifted = numbered(np.array([2, 3, 1, 4]), spaces.Discrete(3, start=2))
    assert told(only(checks.out_of_bounds(shifted))) == ("error", 1, 2)
    pairs = np.array([[0, 4], [2, 1], [1, 5]])
    assert told(only(checks.out_of_bounds(numbered(pairs, spaces.MultiDiscrete([3, 5]))))) == (
        *("error", 1, 2),
    )
    bits = np.array([[0, 1], [1, 1], [0, 2]])
    assert only(checks.out_of_bounds(numbered(bits, spaces.MultiBinary(2)))).row == 2


def test_named_parts_beyond_their_bounds_are_named():
    space = spaces.Dict({"gear": spaces.Discrete(4), "place": spaces.Box(-1, 1, (2,), np.float64)})
    seen = np.array([[0, 0.5, 0], [3, 1.5, 0], [4, 0, 0]])
    data = numbered(np.zeros(3, int), spaces.Discrete(2), seen, space)
    finding = only(checks.out_of_bounds(data))
    assert told(finding) == ("warning", 2, 1)
    assert "gear, place_0" in finding.what


def test_a_space_of_another_width_is_an_error():
    wrong = Spec(spaces.Box(-9, 9, (3,), np.float64), SPEC.action_space)
    data = Dataset(CLEAN.transitions, CLEAN.episodes, wrong, CLEAN.origin)
    assert "obs has 2 numbers, and its space 3" in only(checks.out_of_bounds(data)).what
    assert checks.obs_names(data) == ["obs_0", "obs_1"]
    other = Spec(SPEC.observation_space, spaces.Box(-1, 1, (2,), np.float64))
    data = Dataset(CLEAN.transitions, CLEAN.episodes, other, CLEAN.origin)
    assert not list(checks.unscaled_actions(data))


def test_row_numbers_of_images_are_not_compared_with_the_images_space():
    data = numbered(np.array([0, 1]), spaces.Discrete(2), np.array([7, 8]))
    spec = Spec(spaces.Box(0, 255, (4, 4, 1), np.uint8), spaces.Discrete(2), None, None)
    spec = Spec(spec.observation_space, spec.action_space, images=ImageFile("frames.npy"))
    assert not list(
        checks.out_of_bounds(Dataset(data.transitions, data.episodes, spec, data.origin))
    )


def test_actions_at_their_bounds_are_found():
    hard = np.clip(1.2 * ROWS["actions"], -1, 1)
    finding = only(checks.saturated_actions(log(actions=hard)))
    at = np.abs(hard[:, 0]) == 1
    assert told(finding) == ("warning", at.sum(), at.argmax())
    assert f"{(hard == 1).mean():.0%} at 1" in finding.what
    assert "bound" not in finding.what


def test_a_floor_inside_the_bounds_is_found_too():
    floored = np.maximum(ROWS["actions"], -0.75)
    finding = only(checks.saturated_actions(log(actions=floored)))
    assert finding.count == (floored == -0.75).sum()
    assert "at -0.75 (bound -1)" in finding.what


def test_few_values_are_called_few():
    signs = np.sign(ROWS["actions"])
    assert "takes only 2 values" in only(checks.saturated_actions(log(actions=signs))).what


def test_a_small_pile_is_a_note_and_whole_numbers_have_no_edges():
    share = np.arange(len(CLEAN)) % 10 == 0
    some = np.where(share[:, None], 1.0, ROWS["actions"])
    assert only(checks.saturated_actions(log(actions=some))).severity == "note"
    assert not list(checks.saturated_actions(numbered(np.zeros(9, int), spaces.Discrete(2))))


# Columns and episodes that say nothing new


def test_columns_that_never_change_are_found():
    observations = ROWS["observations"].copy()
    observations[:, 1] = 0.3
    finding = only(checks.constant_columns(log(observations=observations, next_observations=None)))
    assert told(finding) == ("warning", 1, None)
    assert "obs_1 is 0.3" in finding.what
    finding = only(checks.constant_columns(log(actions=np.zeros_like(ROWS["actions"]))))
    assert "1 of 1 action columns (action_0 is 0)" in finding.what


def test_columns_that_change_late_are_not_constant():
    data = concatenate([CLEAN] * 3)
    observations = data.arrays().observations.copy()
    observations[:, 1] = 0
    observations[2500, 1] = 1
    rows = dict(ROWS)
    long = {n: np.concatenate([a] * 3) for n, a in rows.items() if n != "next_observations"}
    long |= dict(observations=observations, episode=data.transitions["episode"].to_numpy())
    assert len(data) > 2500
    final = np.zeros((data.episode_count, 2))
    assert not list(
        checks.constant_columns(Dataset.from_arrays(**long, final_observations=final, spec=SPEC))
    )


def test_columns_that_are_constant_within_episodes_are_noted():
    observations = ROWS["observations"].copy()
    observations[:, 0] = ROWS["episode"] % 7
    finding = only(checks.constant_columns(log(observations=observations, next_observations=None)))
    assert told(finding) == ("note", 1, None)
    assert "obs_0" in finding.what


def test_a_constant_reward_matters_unless_episodes_end():
    flat = np.full(len(CLEAN), -1.0)
    assert only(checks.constant_columns(log(rewards=flat))).severity == "note"
    never = log(rewards=flat, terminated=np.zeros(len(CLEAN), bool))
    assert only(checks.constant_columns(never)).severity == "warning"


def test_a_log_of_one_row_has_no_constant_columns():
    assert not list(checks.constant_columns(numbered(np.array([1]), spaces.Discrete(2))))


def test_equal_columns_are_found():
    twice = ROWS["observations"][:, [0, 0]]
    finding = only(checks.duplicated_columns(log(observations=twice, next_observations=None)))
    assert told(finding) == ("warning", 1, None)
    assert "obs_1 = obs_0" in finding.what
    almost = twice.copy()
    almost[777, 1] += 1e-9
    assert not list(checks.duplicated_columns(log(observations=almost, next_observations=None)))


def test_an_observation_that_tells_a_rare_reward_is_a_leak():
    rare = np.zeros(len(CLEAN))
    rare[[601, 888]] = 1
    observations = np.column_stack([ROWS["observations"][:, 0], rare])
    data = log(observations=observations, rewards=rare, next_observations=None)
    finding = only(checks.duplicated_columns(data))
    assert told(finding) == ("error", 1, None)
    assert "reward = obs_1" in finding.what


def test_episodes_that_occur_twice_are_found():
    data = CLEAN.select([*range(40), 3, 3, 11])
    finding = only(checks.duplicated_episodes(data))
    assert told(finding) == ("warning", 3, len(CLEAN))
    assert "episode 40 is episode 3 again" in finding.what
    copies, origin = checks.repeats(data)
    assert copies.tolist() == [40, 41, 42]
    assert origin.tolist() == [3, 3, 11]


def test_the_same_rows_in_another_order_are_another_episode():
    seen = np.array([[1.0], [2.0], [2.0], [1.0]])
    data = Dataset.from_arrays(
        seen, seen, np.ones(4), np.array([0, 1, 0, 1]), final_observations=np.zeros((2, 1))
    )
    assert not list(checks.duplicated_episodes(data))


def test_a_shared_code_alone_is_no_repetition(monkeypatch):
    real, calls = checks.row_codes, []

    def colliding(*columns):
        calls.append(1)
        codes = real(*columns)
        return np.zeros_like(codes) if len(calls) == 1 else codes

    monkeypatch.setattr(checks, "row_codes", colliding)
    assert not list(checks.duplicated_episodes(CLEAN.select(CLEAN.lengths == LIMIT)))
    assert len(calls) == 3


def test_a_log_of_whole_numbers_goes_through_all_checks():
    found = set(check(corridor(False))["check"])
    assert found == {
        *("unknown_final_observations", "constant_columns", "duplicated_episodes"),
        "unknown_scales",
    }


def test_whole_numbered_episodes_may_repeat():
    assert only(checks.duplicated_episodes(corridor(True))).severity == "note"


# Rewards, lengths, scales


def test_reward_outliers_are_found():
    finding = only(checks.reward_outliers(log(**changed("rewards", [2, 99], [1e3, -1e5]))))
    assert told(finding) == ("warning", 2, 2)
    assert "-1e+05 to 1000" in finding.what


def test_a_penalty_at_terminals_is_noted():
    rows = np.flatnonzero(ROWS["terminated"])[:5]
    finding = only(checks.reward_outliers(log(**changed("rewards", rows, -500.0))))
    assert told(finding) == ("note", 5, rows[0])


@pytest.mark.parametrize("kind", ["sparse", "constant", "normal", "second kind", "nothing"])
def test_ordinary_rewards_are_no_outliers(kind):
    generator, size = np.random.default_rng(0), len(CLEAN)
    rewards = {
        "sparse": (np.arange(size) % 400 == 0).astype(float),
        "constant": np.ones(size),
        "normal": generator.normal(size=size),
        "second kind": np.where(np.arange(size) % 20 == 0, 1e3, generator.normal(size=size)),
        "nothing": np.full(size, np.nan),
    }[kind]
    assert not list(checks.reward_outliers(log(rewards=rewards)))


def test_an_outlier_among_sparse_rewards_is_found():
    rewards = (np.arange(len(CLEAN)) % 400 == 0).astype(float)
    rewards[17] = 1e6
    assert told(only(checks.reward_outliers(log(rewards=rewards)))) == ("warning", 1, 17)


def test_tiny_episodes_are_found():
    some = pl.col("episode").is_in([4, 9]) & (pl.col("step") > 0)
    data = CLEAN.filter(~some)
    finding = only(checks.tiny_episodes(data))
    assert told(finding) == ("warning", 2, CLEAN.starts[4])
    assert finding.what.startswith("1 step long: 2 of 40 episodes")


def test_a_log_of_single_steps_has_no_tiny_episodes():
    bandit = Dataset.from_arrays(np.eye(3), np.eye(3), np.arange(3.0), np.ones(3, bool))
    assert not list(checks.tiny_episodes(bandit))


def test_scales_that_nobody_wrote_down_are_found():
    far = log(observations=ROWS["observations"] * [1e-5, 1e4], next_observations=None)
    finding = only(checks.unscaled_observations(far))
    assert told(finding) == ("warning", 2, None)
    bare = Spec(SPEC.observation_space, spaces.Box(-np.inf, np.inf, (1,), np.float64))
    assert "no bounds are known of 1 of 1" in only(checks.unscaled_actions(log(bare))).what
    small = log(actions=0.01 * ROWS["actions"])
    assert only(checks.unscaled_actions(small)).severity == "note"
    found = list(checks.unscaled_rewards(log(bare, rewards=1e5 * ROWS["rewards"])))
    assert [f.severity for f in found] == ["warning", "note"]
    assert "no reference returns" in found[1].what
    tiny = log(rewards=1e-6 * ROWS["rewards"])
    assert only(checks.unscaled_rewards(tiny)).severity == "warning"


def test_scales_of_what_is_no_number_do_not_stop_the_check():
    data = log(
        observations=np.full_like(ROWS["observations"], np.nan),
        actions=np.full_like(ROWS["actions"], np.inf),
        rewards=np.full(len(CLEAN), np.nan),
        next_observations=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = check(data)
    assert table["check"].to_list().count("non_finite") >= 3


# The table


def test_the_table_lists_errors_first_with_their_places():
    data = log(**changed("rewards", 57, np.nan), **changed("actions", [60, 61], 0.5))
    data = data.with_columns(terminated=pl.Series(changed("terminated", 3, True)["terminated"]))
    table = check(data)
    assert dict(table.schema) == checks.SCHEMA
    ranks = [checks.SEVERITIES.index(s) for s in table["severity"]]
    assert ranks == sorted(ranks)
    first = table.row(0, named=True)
    place = CLEAN.transitions.row(57, named=True)
    assert (first["check"], first["count"]) == ("non_finite", 1)
    assert (first["first_episode"], first["first_step"]) == (place["episode"], place["step"])
    assert data.check().equals(table)


def test_checking_changes_nothing():
    data = log()
    before = data.content_hash, data.provenance.hash
    check(data)
    fresh = Dataset(data.transitions, data.episodes, data.spec, data.origin)
    assert (fresh.content_hash, fresh.provenance.hash) == before


def test_the_text_fits_the_terminal():
    table = check(marked(rewards=changed("rewards", 13, 1e4)["rewards"]))
    text = check_text(table, columns=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.endswith("1 error, 1 warning")
    place = CLEAN.transitions.row(13, named=True)
    assert f"first in episode {place['episode']}, step {place['step']}" in text
    assert "breaks: values at the limit" in text
    assert check_text(check(CLEAN)) == "nothing found"


@given(st.data())
@settings(max_examples=25)
def test_no_log_however_odd_stops_the_checks(draw):
    """Any shape, any numbers, any flags: a table comes back, each place in it exists."""
    size = draw.draw(st.integers(1, 12))
    wide = draw.draw(st.integers(1, 3))
    numbers = st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 1e-30])
    floats = np.array(draw.draw(st.lists(numbers, min_size=size * wide, max_size=size * wide)))
    flags = [draw.draw(st.lists(st.booleans(), min_size=size, max_size=size)) for _ in range(2)]
    rewards = np.array(draw.draw(st.lists(numbers, min_size=size, max_size=size)))
    discrete = draw.draw(st.booleans())
    actions = np.arange(size) if discrete else floats.reshape(size, wide)[:, :1]
    data = Dataset.from_arrays(
        floats.reshape(size, wide),
        actions,
        rewards,
        *flags,
        next_observations=np.roll(floats, draw.draw(st.integers(0, 3))).reshape(size, wide),
        episode=np.arange(size) // draw.draw(st.integers(1, 12)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = check(data)
    places = table.select("first_episode", "first_step").drop_nulls()
    rows = set(data.transitions.select("episode", "step").rows())
    assert set(places.rows()) <= rows
    assert (table["count"] > 0).all()
    check_text(table)


# Published logs


NEORL2 = {
    "DMSD-train.npz": {"saturated_actions"},
    "DMSD-val.npz": {"saturated_actions"},
    "SafetyHalfCheetah-train.npz": {"saturated_actions", "unknown_scales"},
    "Simglucose-train.npz": {
        *("saturated_actions", "constant_columns", "unknown_scales", "reward_outliers"),
    },
}


def neorl2(name: str, **replaced) -> Dataset:
    """One of the files as it was published, actions in [-1, 1]."""
    file = dict(np.load(neorl2_file(name)))
    rows = dict(
        observations=file["obs"],
        actions=file["action"],
        rewards=file["reward"],
        terminated=file["done"],
        truncated=file["truncated"],
        next_observations=file["next_obs"],
    )
    spec = Spec(
        spaces.Box(-np.inf, np.inf, file["obs"].shape[1:], dtype=np.float32),
        spaces.Box(-1, 1, file["action"].shape[1:], dtype=np.float32),
        score=ScoreReference(0, 1),
    )
    return Dataset.from_arrays(**(rows | replaced), spec=spec)


@pytest.mark.parametrize("name", NEORL2)
def test_published_logs_hold_no_errors(name):
    table = check(neorl2(name))
    assert "error" not in table["severity"].to_list()
    assert set(table["check"]) == NEORL2[name]


def test_the_glucose_log_shows_its_floor_its_patients_and_its_penalty():
    table = check(neorl2("Simglucose-train.npz"))
    what = {(r["check"], r["severity"]): r["what"] for r in table.iter_rows(named=True)}
    assert "at -0.99933 (bound -1)" in what["saturated_actions", "warning"]
    assert "4 of 31 obs columns" in what["constant_columns", "warning"]
    assert "26 of 31 obs columns" in what["constant_columns", "note"]
    assert "all at terminals" in what["reward_outliers", "note"]


def test_marking_the_glucose_logs_time_outs_as_terminals_is_noticed():
    file = dict(np.load(neorl2_file("Simglucose-train.npz")))
    over = (file["done"] + file["truncated"]) > 0
    data = neorl2("Simglucose-train.npz", terminated=over, truncated=None)
    finding = only(checks.timeouts_as_terminals(data))
    assert (finding.severity, finding.count) == ("error", 169)
    assert "exactly 480 steps" in finding.what


def test_an_end_that_is_unknown_is_told_also_beside_written_next_observations() -> None:
    bare = log(next_observations=None, final_observations=np.ma.masked_all((40, 2)))
    holed = bare.filter(pl.col("step") != 1)
    assert "next_obs" in holed.transitions.columns
    found = {f.severity: f.count for f in checks.unknown_final_observations(holed)}
    assert found["error"] == ROWS["truncated"].sum()


def test_a_multidiscrete_space_may_begin_elsewhere() -> None:
    spec = Spec(spaces.Discrete(4), spaces.MultiDiscrete([2, 2], start=[1, -1]))
    made = Dataset.from_arrays(
        [0, 1, 2, 3], [[1, -1], [2, 0], [1, 0], [2, -1]], np.ones(4), [0, 0, 0, 1], spec=spec
    )
    assert not list(checks.out_of_bounds(made))
    (finding,) = checks.out_of_bounds(made.with_columns(action=np.zeros((4, 2), dtype=int)))
    assert (finding.severity, finding.count) == ("error", 4)


def test_an_infinite_action_is_no_saturation() -> None:
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(size=(1000, 2)) * 0.3, -0.95, 0.95)
    actions[7] = np.inf
    made = Dataset.from_arrays(
        rng.normal(size=(1000, 3)), actions, rng.normal(size=1000), np.arange(1000) % 100 == 99
    )
    found = made.check()["check"].to_list()
    assert "saturated_actions" not in found


def test_rows_given_up_while_reading_are_noted() -> None:
    rng = np.random.default_rng(0)
    size = 400
    made = Dataset.from_arrays(
        rng.normal(size=(size, 3)),
        rng.normal(size=(size, 2)),
        rng.normal(size=size),
        np.zeros(size),
        np.arange(size) % 100 == 99,
    )
    found = made.check().filter(pl.col("check") == "given_up_rows")
    assert found.select("severity", "count").rows() == [("note", 4)]
