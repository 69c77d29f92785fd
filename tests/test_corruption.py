"""The corruption model: what changes, by how much, and that the mask tells the truth."""

import sys
import time

import numpy as np
import polars as pl
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.data.composition import mix
from offrl_wb.data.corruption import (
    COLUMNS,
    Column,
    corrupt,
    corruption_mask,
    deviations,
    fit_quadratic_critic,
    plans,
    projected_descent,
    random_values,
    torch_attacker,
    without_corrupted,
)
from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import ImageFile, Spec
from tests.shared_data import neorl2_file

ELEMENTS = list(COLUMNS)


def log(size=4000, seed=0, kind=np.float64) -> Dataset:
    """Chains of ten steps; columns of very different scale, one of them constant."""
    generator = np.random.default_rng(seed)
    seen = generator.normal(size=(size, 4)) * [1, 100, 0.01, 0] + [0, 5, 1, 7]
    ends = np.arange(size) % 10 == 9
    return Dataset.from_arrays(
        seen.astype(kind),
        generator.uniform(-1, 1, size=(size, 2)).astype(kind),
        generator.normal(size=size).astype(kind) + seen[:, 0].astype(kind),
        np.zeros(size, bool),
        ends,
        final_observations=generator.normal(size=(size // 10, 4)).astype(kind),
        spec=Spec(
            spaces.Box(-np.inf, np.inf, (4,), dtype=kind), spaces.Box(-1, 1, (2,), dtype=kind), 0.9
        ),
    )


@pytest.fixture(scope="module")
def clean() -> Dataset:
    return log()


def column(dataset: Dataset, element: str) -> np.ndarray:
    """The values `(N, d)` of one element."""
    arrays = dataset.arrays()
    values = {
        "observations": arrays.observations,
        "actions": arrays.actions,
        "rewards": arrays.rewards,
        "dynamics": arrays.next_observations,
    }[element]
    return values.reshape(len(values), -1)


def rerun(dataset: Dataset, **given: Dataset) -> Dataset:
    """The dataset made again by the Python that its provenance tells."""
    script = dataset.provenance.as_python({d.provenance.hash: n for n, d in given.items()})
    names = dict(given)
    exec(script, names)
    return names["dataset"]


def linear(weights: np.ndarray):
    """An attacker whose critic is linear in whatever is moved first or second."""

    def of(place: int):
        def attack(observations, actions):
            moved = (observations, actions)[place]
            return moved @ weights, np.tile(weights, (len(moved), 1))

        return attack

    return of


# What changes, and what does not


@settings(max_examples=25, deadline=None)
@given(
    element=st.sampled_from(ELEMENTS),
    rate=st.floats(0, 1),
    scale=st.floats(0, 3),
    seed=st.integers(0, 10**6),
)
def test_only_masked_rows_of_the_one_element_change(element, rate, scale, seed):
    before = LOG
    made = corrupt(before, element, rate=rate, scale=scale, seed=seed)
    for other in ELEMENTS:
        moved = (column(made.dataset, other) != column(before, other)).any(axis=1)
        if other != element:
            assert not moved.any()
        else:
            assert not (moved & ~made.mask).any()
            assert (moved == made.mask).all() or scale < 1e-3
    flag = made.dataset.transitions[f"corrupted_{COLUMNS[element]}"]
    assert np.array_equal(flag.to_numpy(), made.mask)
    same = before.transitions.drop(COLUMNS[element], strict=False)
    assert made.dataset.transitions.select(same.columns).equals(same)
    assert made.dataset.episodes.equals(before.episodes)


LOG = log()


@settings(max_examples=25, deadline=None)
@given(
    element=st.sampled_from(["observations", "actions", "dynamics"]),
    scale=st.floats(0, 3),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_random_changes_stay_within_the_scale_of_the_clean_columns_deviation(
    element, scale, seed, kind
):
    before = log(800, kind=kind)
    made = corrupt(before, element, rate=0.5, scale=scale, seed=seed)
    clean, moved = (column(d, element).astype(float) for d in (before, made.dataset))
    limit = scale * clean.std(axis=0)
    tiny = 3 * np.finfo(kind).eps * (np.abs(clean).max(axis=0) + limit)
    change = np.abs(moved - clean)
    assert (change <= limit * (1 + 1e-4) + tiny).all()
    assert column(made.dataset, element).dtype == kind
    if scale > 0.1:  # the noise is uniform: its mean size is half of its limit
        free = limit > 1e-6
        assert change[made.mask][:, free].mean(axis=0) == pytest.approx(limit[free] / 2, rel=0.15)
    told = made.report["largest_change"].to_numpy()
    assert np.nanmax(told) <= scale * (1 + 1e-4) + 1e-3


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_the_realised_rate_is_within_three_deviations_of_the_asked_one(rate, seed):
    made = corrupt(LOG, "rewards", rate=rate, seed=seed)
    spread = np.sqrt(rate * (1 - rate) / len(LOG))
    assert abs(made.mask.mean() - rate) <= 4.5 * spread + 1e-12  # over many examples
    assert made.report["realised_rate"][0] == made.mask.mean()
    assert made.report["rows"][0] == made.mask.sum()


def test_over_many_seeds_the_mean_rate_is_the_asked_one_and_rows_are_independent():
    masks = np.array([corruption_mask(1000, 0.3, np.random.default_rng(s)) for s in range(400)])
    assert masks.mean() == pytest.approx(0.3, abs=3 * np.sqrt(0.21 / 400_000))
    assert masks.mean(axis=1).std() == pytest.approx(np.sqrt(0.21 / 1000), rel=0.1)
    neighbours = np.corrcoef(masks[:, :-1].ravel(), masks[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(clean):
    for element in ELEMENTS:
        one, two, three = (corrupt(clean, element, seed=s).dataset for s in (4, 4, 5))
        assert one.content_hash == two.content_hash != three.content_hash


def test_a_higher_rate_corrupts_the_same_rows_and_more(clean):
    low, high = (corrupt(clean, "actions", rate=rate).mask for rate in (0.1, 0.4))
    assert (low <= high).all()
    assert low.sum() < high.sum()


def test_random_rewards_are_replaced(clean):
    made = corrupt(clean, "rewards", scale=0.5, rate=0.8)
    old, new = clean.arrays().rewards[made.mask], made.dataset.arrays().rewards[made.mask]
    assert abs(np.corrcoef(old, new)[0, 1]) < 0.06
    assert np.abs(new).max() <= 15
    assert np.abs(new).max() > 14.9
    assert new.mean() == pytest.approx(0, abs=0.6)
    narrow = corrupt(clean, "rewards", scale=0.5, rate=0.8, reward_range=2.0)
    assert 0.99 < np.abs(narrow.dataset.arrays().rewards[narrow.mask]).max() <= 1


def test_adversarial_rewards_are_turned_round_and_scaled(clean):
    made = corrupt(clean, "rewards", "adversarial", scale=0.7)
    old, new = clean.arrays().rewards, made.dataset.arrays().rewards
    assert new[made.mask] == pytest.approx(-0.7 * old[made.mask])
    assert (new[~made.mask] == old[~made.mask]).all()


@pytest.mark.parametrize("mode", ["random", "adversarial"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_nothing_changes_at_rate_zero_or_scale_zero_but_for_rewards(clean, element, mode):
    never = corrupt(clean, element, mode, rate=0.0, attacker="quadratic")
    assert (column(never.dataset, element) == column(clean, element)).all()
    assert not never.mask.any()
    still = corrupt(clean, element, mode, scale=0.0, attacker="quadratic")
    if element == "rewards":
        assert (column(still.dataset, element)[still.mask] == 0).all()
    else:
        assert (column(still.dataset, element) == column(clean, element)).all()


def test_a_corrupted_observation_does_not_touch_the_row_before(clean):
    made = corrupt(clean, "observations", rate=0.5).dataset
    assert "next_obs" in made.transitions.columns
    assert (made.arrays().next_observations == clean.arrays().next_observations).all()
    assert (made.arrays().observations != clean.arrays().observations).any()


def test_corrupted_dynamics_do_not_touch_the_row_after(clean):
    made = corrupt(clean, "dynamics", rate=0.5).dataset
    assert (made.arrays().observations == clean.arrays().observations).all()


def test_nothing_is_clipped_and_actions_outside_their_box_are_counted(clean):
    made = corrupt(clean, "actions", scale=1.0, rate=0.5)
    moved = made.dataset.arrays().actions
    outside = (np.abs(moved) > 1).any(axis=1)
    assert outside.sum() > 100
    assert made.report["rows_outside"].to_list() == [outside.sum()] * 2
    assert corrupt(clean, "rewards").report["rows_outside"].to_list() == [None]


def test_the_report_and_the_outcome_tell_the_same(clean):
    made = corrupt(clean, ["actions", "observations"], rate=0.2)
    report = made.report
    assert report["column"].to_list() == [*(f"obs_{j}" for j in range(4)), "action_0", "action_1"]
    assert report["std"].to_numpy()[:4] == pytest.approx(clean.arrays().observations.std(axis=0))
    assert report["largest_change"][3] is None  # a constant column has no deviation to count in
    outcome = made.dataset.provenance.outcome
    assert list(outcome) == ["observations", "actions"]
    assert outcome["actions"]["rows"] == made.masks["actions"].sum()
    assert outcome["actions"]["largest_change"] == report["largest_change"][4:].max()


# Several elements


def test_several_elements_have_masks_of_their_own_or_share_one(clean):
    own = corrupt(clean, ELEMENTS, rate=0.3)
    flags = np.array([own.masks[element] for element in ELEMENTS])
    together = flags.all(axis=0).mean()
    assert together == pytest.approx(0.3**4, abs=0.01)
    assert own.mask.mean() == pytest.approx(1 - 0.7**4, abs=0.04)
    shared = corrupt(clean, ELEMENTS, rate=0.3, same_mask=True)
    assert all((mask == shared.mask).all() for mask in shared.masks.values())
    for element in ELEMENTS:
        moved = (column(shared.dataset, element) != column(clean, element)).any(axis=1)
        assert (moved == shared.mask).all()


def test_an_elements_corruption_does_not_depend_on_what_else_is_corrupted(clean):
    alone = corrupt(clean, "actions", seed=3).dataset
    among = corrupt(clean, ["rewards", "observations", "actions"], seed=3).dataset
    assert (alone.arrays().actions == among.arrays().actions).all()


def test_elements_may_each_have_their_mode_rate_and_scale(clean):
    made = corrupt(
        clean,
        ["rewards", "observations"],
        {"rewards": "adversarial", "observations": "random"},
        rate=[0.1, 0.5],
        scale={"observations": 0.2, "rewards": 2.0},
    )
    assert made.masks["rewards"].mean() == pytest.approx(0.1, abs=0.03)
    assert made.masks["observations"].mean() == pytest.approx(0.5, abs=0.03)
    hit = made.masks["rewards"]
    assert column(made.dataset, "rewards")[hit] == pytest.approx(-2 * column(clean, "rewards")[hit])


def test_a_second_corruption_adds_to_the_mask(clean):
    first = corrupt(clean, "dynamics", seed=0)
    second = corrupt(first.dataset, "dynamics", seed=1)
    flag = second.dataset.transitions["corrupted_next_obs"].to_numpy()
    assert (flag == (first.mask | second.mask)).all()
    assert flag.sum() > first.mask.sum()


def test_the_order_of_work_is_observations_actions_rewards_dynamics():
    order = [p.element for p in plans(ELEMENTS[::-1], "random", 0.1, 1.0, False)]
    assert order == ["observations", "actions", "rewards", "dynamics"]


def test_the_untouched_rows_alone_are_the_oracles_data(clean):
    made = corrupt(clean, ["observations", "rewards"], rate=0.4)
    rest = without_corrupted(made.dataset)
    assert len(rest) == (~made.mask).sum()
    arrays = clean.arrays()
    assert (rest.arrays().rewards == arrays.rewards[~made.mask]).all()
    assert (rest.arrays().observations == arrays.observations[~made.mask]).all()
    assert (rest.arrays().next_observations == arrays.next_observations[~made.mask]).all()


# Deviations


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shift=st.floats(-1e4, 1e4),
    spread=st.floats(1e-3, 1e4),
    kind=st.sampled_from([np.float32, np.float64]),
    size=st.sampled_from([1, 7, 8192, 20_001]),
)
def test_deviations_are_those_of_numpy_in_double_precision(seed, shift, spread, kind, size):
    values = np.random.default_rng(seed).normal(shift, spread, size=(size, 3)).astype(kind)
    exact = values.astype(np.float64).std(axis=0)
    assert deviations(values, "abc") == pytest.approx(exact, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_with_its_row(bad):
    values = np.zeros((9000, 2))
    values[8500, 1] = bad
    with pytest.raises(InputError, match=rf"b is {bad} at row 8500"):
        deviations(values, "ab")


# Adversaries


def test_on_a_linear_critic_the_descent_ends_in_the_corner_of_the_box():
    weights, spread = np.array([3.0, -0.01, 0.0, -2.0]), np.array([0.5, 2.0, 1.0, 0.0])
    place, seen = np.random.default_rng(0).normal(size=(40, 4)), []

    def gradient(moved):
        seen.append((moved @ weights).copy())
        return np.tile(weights, (40, 1))

    for scale in (0.1, 1.0, 2.0):
        seen.clear()
        shift = projected_descent(gradient, place, spread, scale, np.zeros((40, 4)))
        moving = np.sign(weights) * (spread > 0)
        assert shift == pytest.approx(np.tile(-scale * moving, (40, 1)), abs=1e-3)
        assert (np.diff(seen, axis=0) <= 1e-12).all()  # Q never increases
        assert np.abs(shift).max() <= scale


def test_the_travel_is_exactly_the_scale():
    weights = np.ones(1)
    for steps in (1, 50, 100, 300):
        shift = projected_descent(
            lambda x: np.ones_like(x), np.zeros((5, 1)), weights, 1.0, np.ones((5, 1)), steps
        )
        assert shift == pytest.approx(np.full((5, 1), max(-1, 1 - steps * 0.01)), abs=1e-5)


def test_the_descent_is_that_of_a_fresh_adam_at_every_step():
    torch = pytest.importorskip("torch")
    from torch.optim.adam import adam

    generator = np.random.default_rng(0)
    place, spread = generator.normal(size=(30, 3)), np.array([0.5, 2.0, 1e-6])
    start, scale = generator.uniform(-1, 1, size=(30, 3)) * spread, 0.8

    def critic(moved):
        return torch.sin(3 * moved[:, 0]) + (moved[:, 1] * moved[:, 2]) ** 2 - moved[:, 2] / 7

    def gradient(moved):
        moved = torch.tensor(moved, requires_grad=True)
        return torch.autograd.grad(critic(moved).sum(), moved)[0].numpy()

    ours = projected_descent(gradient, place, spread, scale, start)
    shift, width = torch.tensor(start), torch.tensor(spread)
    usual = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0, "lr": 0.01 * scale}
    for _ in range(100):
        shift.requires_grad_(True)
        slope = torch.autograd.grad(critic(torch.tensor(place) + shift * width).mean(), shift)
        shift = shift.detach().clone()
        fresh = [[torch.zeros_like(shift)] for _ in range(2)]
        with torch.no_grad():  # the function behind torch.optim.Adam, which is slow to import
            adam(
                [shift],
                list(slope),
                *fresh,
                [],
                [torch.tensor(0.0)],
                foreach=False,
                amsgrad=False,
                maximize=False,
                **usual,
            )
        shift = shift.clamp(-scale, scale)
    assert ours == pytest.approx(shift.numpy(), abs=1e-12)


@pytest.mark.parametrize(
    ("element", "place"), [("observations", 0), ("actions", 1), ("dynamics", 0)]
)
def test_a_linear_adversary_lowers_its_critic_in_every_corrupted_row(clean, element, place):
    weights = np.array([1.0, -0.02, 50.0, 3.0])[: column(clean, element).shape[1]]
    made = corrupt(
        clean, element, "adversarial", scale=0.5, attacker=linear(weights)(place), seed=2
    )
    old, new = column(clean, element), column(made.dataset, element)
    drop = ((new - old) @ weights)[made.mask]
    assert (drop <= 1e-9).all()
    limit = 0.5 * old.std(axis=0)
    assert (np.abs(new - old) <= limit * (1 + 1e-6) + 1e-12).all()
    assert ((new != old).any(axis=1) == made.mask).all()
    noise = corrupt(clean, element, "random", scale=0.5, seed=2)
    assert (noise.mask == made.mask).all()
    plain = ((column(noise.dataset, element) - old) @ weights)[noise.mask]
    assert drop.mean() < plain.mean() - 0.2 * np.abs(weights * limit).sum()


def test_more_steps_than_the_authors_reach_the_corner_from_anywhere(clean):
    weights = np.array([1.0, -1.0])
    attack = linear(weights)(1)
    made = corrupt(clean, "actions", "adversarial", attacker=attack, steps=200)
    old, new = column(clean, "actions"), column(made.dataset, "actions")
    corner = old - np.sign(weights) * old.std(axis=0)
    assert new[made.mask] == pytest.approx(corner[made.mask], abs=1e-4)
    online = corrupt(clean, "actions", "adversarial", attacker=attack, steps=2, step=0.1)
    assert np.abs(column(online.dataset, "actions") - old).max() < 1.01 * old.std(axis=0).max()


def test_the_attacker_of_dynamics_is_called_with_the_policys_actions(clean):
    calls = []

    def attack(observations, actions):
        calls.append(actions)
        return observations[:, 0], np.tile([1.0, 0, 0, 0], (len(observations), 1))

    corrupt(clean, "dynamics", "adversarial", attacker=attack, steps=1)
    assert calls[-1] is None
    corrupt(clean, "dynamics", "adversarial", attacker=attack, policy=lambda s: s[:, :2], steps=1)
    assert calls[-1].shape[1] == 2
    assert len(calls) == 20  # ten chunks each


def test_a_quadratic_critic_recovers_a_quadratic_reward_with_its_gradient():
    generator = np.random.default_rng(1)
    seen, done = generator.normal(size=(3000, 2)) * [1, 20], generator.normal(size=(3000, 2))
    worth = seen[:, 0] * done[:, 1] - 0.1 * seen[:, 1] - done[:, 0] ** 2
    one_step = Dataset.from_arrays(
        seen, done, worth, np.ones(3000), final_observations=np.zeros((3000, 2))
    )
    critic = fit_quadratic_critic(one_step)
    assert critic.judge(seen, done)[0] == pytest.approx(worth, abs=1e-3)
    for element in ("observations", "actions", "dynamics"):
        attack = critic.attacker(element)
        values, slope = attack(seen, done)
        moved = done if element == "actions" else seen
        for j in range(2):
            bump = 1e-5 * np.eye(2)[j]
            pairs = ((seen, moved + bump), (seen, moved - bump))
            if element != "actions":
                pairs = ((moved + bump, done), (moved - bump, done))
            ahead, back = (attack(*pair)[0] for pair in pairs)
            assert (ahead - back) / 2e-5 == pytest.approx(slope[:, j], abs=1e-4)
    assert values.shape == (3000,)


def test_a_large_log_is_fitted_on_a_seeded_sample(monkeypatch, clean):
    monkeypatch.setattr("offrl_wb.data.corruption.FIT_ROWS", 500)
    one, two, three = (fit_quadratic_critic(clean, seed=s) for s in (0, 0, 1))
    assert (one.slope == two.slope).all()
    assert (one.slope != three.slope).any()


@pytest.mark.parametrize("shape", ["flat", "column", "ensemble", "last"])
def test_a_torch_critic_of_any_common_shape_attacks_like_the_same_critic_in_numpy(clean, shape):
    torch = pytest.importorskip("torch")
    critic = fit_quadratic_critic(clean)
    parts = [torch.tensor(v) for v in (critic.centre, critic.spread, critic.slope)]
    bend, line = torch.tensor(critic.curvature), torch.tensor(critic.policy)

    def network(state, action):
        place = (torch.cat([state, action], dim=1) - parts[0]) / parts[1]
        values = critic.constant + place @ parts[2] + 0.5 * ((place @ bend) * place).sum(dim=1)
        return {
            "flat": values,
            "column": values[:, None],
            "ensemble": torch.stack([values - 1, values, values + 1]),
            "last": torch.stack([values - 1, values + 1], dim=1),
        }[shape]

    def policy(state):
        action = state.double() @ line[:-1] + line[-1]
        return (action, None) if shape == "flat" else action

    seen, done = clean.arrays().observations[:100], clean.arrays().actions[:100]
    for element in ("observations", "actions", "dynamics"):
        ours = critic.attacker(element)(seen, done)
        theirs = torch_attacker(network, element, policy)(seen, done)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_a_torch_attack_of_dynamics_needs_a_policy():
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="needs the policy"):
        torch_attacker(lambda s, a: s, "dynamics")


def test_without_torch_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install \"offrl_wb\[deep\]\""):
        torch_attacker(lambda s, a: s, "actions")


def test_a_corruption_is_a_dataset_a_mask_and_a_report(clean):
    dataset, mask, report = corrupt(clean, "actions", "random", 0.3, 1.0, 0, None, False)
    assert (dataset.transitions["corrupted_action"].to_numpy() == mask).all()
    assert report["rows"][0] == mask.sum()


def test_attackers_come_alone_by_element_or_as_an_object(clean):
    critic = fit_quadratic_critic(clean, seed=0)
    by_name = {e: critic.attacker(e) for e in ("observations", "actions")}
    both = ["observations", "actions"]
    made = [
        corrupt(clean, both, "adversarial", attacker=given, steps=3).dataset.content_hash
        for given in (critic, by_name, "quadratic")
    ]
    assert len(set(made)) == 1


# Whole numbers


def grid(size=3000) -> Dataset:
    generator = np.random.default_rng(0)
    return Dataset.from_arrays(
        generator.integers(2, 7, size=size),
        generator.integers(3, size=size),
        generator.integers(5, size=size),
        np.ones(size),
        final_observations=generator.integers(2, 7, size=size),
        spec=Spec(spaces.Discrete(5, start=2), spaces.Discrete(3)),
    )


@pytest.mark.parametrize("element", ["observations", "actions", "dynamics"])
def test_whole_numbers_become_one_of_the_others_each_as_often(element):
    before = grid()
    made = corrupt(before, element, rate=0.9, scale=0.0)
    old, new = column(before, element)[:, 0], column(made.dataset, element)[:, 0]
    assert (new[made.mask] != old[made.mask]).all()
    assert (new[~made.mask] == old[~made.mask]).all()
    count = 3 if element == "actions" else 5
    jumps = np.bincount((new - old)[made.mask] % count, minlength=count)[1:]
    assert jumps / jumps.sum() == pytest.approx(np.full(count - 1, 1 / (count - 1)), abs=0.03)
    assert set(new) <= set(range(0, 3) if element == "actions" else range(2, 7))
    assert made.report["std"].to_list() == [0.0]
    assert made.dataset.transitions["action"].dtype == pl.Int64


def test_whole_rewards_become_numbers():
    made = corrupt(grid(), "rewards", rate=1.0, scale=0.01)
    assert made.dataset.transitions["reward"].dtype == pl.Float64
    assert np.abs(made.dataset.arrays().rewards).max() <= 0.3
    assert len(np.unique(made.dataset.arrays().rewards)) > 1000


def test_in_a_dictionary_switches_flip_and_numbers_get_noise():
    space = spaces.Dict(
        {
            "arm": spaces.Box(-1, 1, (2,), dtype=np.float32),
            "lamp": spaces.MultiBinary(1),
            "only": spaces.Discrete(1),
        }
    )
    generator = np.random.default_rng(0)
    parts = {
        "arm": generator.uniform(-1, 1, size=(2000, 2)).astype(np.float32),
        "lamp": generator.integers(2, size=(2000, 1)),
        "only": np.zeros(2000, int),
    }
    before = Dataset.from_arrays(
        parts,
        generator.integers(4, size=(2000, 3)),
        np.zeros(2000),
        np.ones(2000),
        next_observations=parts,
        spec=Spec(space, spaces.MultiDiscrete([4, 4, 4])),
    )
    made = corrupt(before, ["observations", "actions"], scale=0.1, rate=0.5)
    old, new = before.arrays().observations, made.dataset.arrays().observations
    hit = made.masks["observations"]
    assert (new[hit, 2] == 1 - old[hit, 2]).all()
    assert (new[hit, 3] == 0).all()
    change = np.abs(new - old)[:, :2]
    assert 0 < change.max() <= 0.1 * old[:, :2].std(axis=0).max() * 1.001
    assert made.report["column"].to_list()[:4] == ["arm_0", "arm_1", "lamp_0", "only"]
    moved = (before.arrays().actions != made.dataset.arrays().actions)[made.masks["actions"]]
    assert moved.all()
    with pytest.raises(InputError, match=r"whole numbers \(lamp_0\), along which"):
        corrupt(before, "observations", "adversarial", attacker=lambda s, a: (0, 0))


def test_a_single_level_cannot_become_another():
    only = Column(np.zeros((5, 1), int), ["x"], np.zeros(1), np.zeros(1, int), np.ones(1, int))
    assert (random_values(only, np.arange(5), 1.0, np.random.default_rng(0)) == 0).all()


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": "state"}, "the elements are observations"),
        ({"element": []}, "the elements are observations"),
        ({"element": ["rewards", "rewards"]}, "each once"),
        ({"element": "rewards", "mode": "malicious"}, "the mode is 'malicious'"),
        ({"element": "rewards", "rate": 1.5}, "the rate is 1.5"),
        ({"element": "rewards", "rate": np.nan}, "the rate is nan"),
        ({"element": "rewards", "scale": -1}, "the scale is -1"),
        ({"element": "rewards", "scale": np.inf}, "the scale is inf"),
        ({"element": ["rewards", "actions"], "rate": [0.1]}, "2 elements and 1 of rate"),
        ({"element": ["rewards"], "rate": {"actions": 0.1}}, "rate is given for"),
        (
            {"element": ["rewards", "actions"], "rate": [0.1, 0.2], "same_mask": True},
            "one mask has one rate",
        ),
        ({"element": "actions", "mode": "adversarial"}, "needs a critic"),
        ({"element": "actions", "mode": "adversarial", "attacker": "edac"}, "no attacker 'edac'"),
        (
            {"element": "actions", "mode": "adversarial", "attacker": {"observations": max}},
            "no attacker is given for actions",
        ),
        (
            {"element": ["actions", "dynamics"], "mode": "adversarial", "attacker": max},
            "need an attacker each",
        ),
        (
            {
                "element": "actions",
                "mode": "adversarial",
                "attacker": lambda s, a: (s[:, 0], s),
            },
            r"gradient has shape \(\d+, 4\), not",
        ),
        (
            {
                "element": "actions",
                "mode": "adversarial",
                "attacker": lambda s, a: (s[:, 0], a * np.nan),
            },
            "gradient is not finite",
        ),
        ({"element": "rewards", "seed": -1}, "the seed is -1"),
    ],
)
def test_what_cannot_be_corrupted_is_refused_in_one_line(clean, arguments, message):
    with pytest.raises(InputError, match=message) as problem:
        corrupt(clean, **arguments)
    assert "\n" not in str(problem.value)


def with_space(observations: np.ndarray, space, images=None) -> Dataset:
    size = len(observations)
    return Dataset.from_arrays(
        observations,
        np.zeros((size, 1)),
        np.zeros(size),
        np.ones(size),
        final_observations=observations,
        spec=Spec(space, spaces.Box(-1, 1, (1,)), images=images),
    )


def test_observations_that_noise_would_make_no_sense_of_are_refused():
    pixels = spaces.Box(0, 255, (8, 8), dtype=np.uint8)
    by_reference = with_space(np.arange(5), pixels, ImageFile("frames.npy"))
    with pytest.raises(InputError, match="images by reference"):
        corrupt(by_reference, "dynamics")
    assert corrupt(by_reference, "rewards").mask.any()
    floats = spaces.Box(-1, 1, (2,))
    with pytest.raises(InputError, match="whole numbers in a box of floats"):
        corrupt(with_space(np.ones((5, 2), int), floats), "observations")
    endless = spaces.Box(-(2**31), 2**31 - 1, (2,), dtype=np.int32)
    endless.high = endless.high.astype(float) + np.inf
    with pytest.raises(InputError, match="without bounds"):
        corrupt(with_space(np.ones((5, 2), int), endless), "observations")
    wide = with_space(np.ones((5, 2)), floats)
    narrow = wide.derive("x", {}, spec=Spec(spaces.Box(-1, 1, (3,)), wide.spec.action_space))
    with pytest.raises(InputError, match="obs has 2 numbers, its space 3"):
        corrupt(narrow, "observations")
    with pytest.raises(InputError, match="needs vectors"):
        fit_quadratic_critic(grid())


# Provenance, real data, speed


@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_a_corruption_reruns_from_its_record(clean, mode):
    made = corrupt(clean, ELEMENTS, mode, 0.2, 0.4, seed=8, attacker="quadratic", steps=5).dataset
    assert rerun(made, clean=clean).content_hash == made.content_hash


def test_a_mixture_of_corrupted_logs_reruns_and_a_foreign_critic_is_asked_for(clean):
    dirty = corrupt(clean, ["rewards", "dynamics"], seed=1).dataset
    both = mix({"clean": log(seed=5), "dirty": dirty}, [0.5, 0.5])
    assert both.transitions["corrupted_reward"].mean() == pytest.approx(0.15, abs=0.02)
    other = log(seed=5)
    assert rerun(both, clean=clean, other=other).content_hash == both.content_hash
    attacked = corrupt(clean, "actions", "adversarial", attacker=linear(np.ones(2))(1)).dataset
    assert "# give" in attacked.provenance.as_python()


@pytest.fixture(scope="module")
def pipe() -> Dataset:
    with np.load(neorl2_file("DMSD-train.npz")) as found:
        return Dataset.from_arrays(
            found["obs"],
            found["action"],
            found["reward"],
            found["done"].reshape(-1) > 0,
            found["truncated"].reshape(-1) > 0,
            next_observations=found["next_obs"],
        )


@pytest.fixture(scope="module")
def pipe_critic(pipe):
    return fit_quadratic_critic(pipe)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_real_data_are_corrupted_at_random_and_by_an_adversary(pipe, pipe_critic, element, mode):
    critic = None if element == "rewards" or mode == "random" else pipe_critic
    made = corrupt(pipe, element, mode, 0.02, 1.0, attacker=critic)
    old, new = column(pipe, element).astype(float), column(made.dataset, element).astype(float)
    assert ((new != old).any(axis=1) == made.mask).all()
    if element != "rewards":
        limit = old.std(axis=0) + 1e-6 * np.abs(old).max()
        assert (np.abs(new - old) <= limit * (1 + 1e-4)).all()
    if critic is not None:
        arrays = made.dataset.arrays()
        seen = arrays.next_observations if element == "dynamics" else arrays.observations
        acts = critic.act(seen) if element == "dynamics" else arrays.actions
        states = pipe.arrays().next_observations if element == "dynamics" else None
        was = critic.judge(states, critic.act(states)) if states is not None else None
        was = was or critic.judge(pipe.arrays().observations, pipe.arrays().actions)
        drop = (critic.judge(seen, acts)[0] - was[0])[made.mask]
        assert (drop < 1e-6).mean() > 0.9
        assert drop.mean() < 0


def test_real_data_take_a_mixed_corruption_of_all_elements(pipe):
    modes = ["adversarial", "random", "adversarial", "random"]
    made = corrupt(pipe, ELEMENTS, modes, 0.01, 0.5, attacker="quadratic", same_mask=True)
    for element in ELEMENTS:
        moved = (column(pipe, element) != column(made.dataset, element)).any(axis=1)
        assert (moved == made.mask).all()
    assert len(without_corrupted(made.dataset)) == (~made.mask).sum()
    assert rerun(made.dataset, pipe=pipe).content_hash == made.dataset.content_hash


def test_a_million_transitions_are_corrupted_in_a_moment():
    size, generator = 1_000_000, np.random.default_rng(0)
    large = Dataset.from_arrays(
        np.tile(generator.random((1000, 17), dtype=np.float32), (1000, 1)),
        np.zeros((size, 6), np.float32),
        np.zeros(size, np.float32),
        np.zeros(size, bool),
        np.arange(size) % 1000 == 999,
        final_observations=np.zeros((1000, 17), np.float32),
        copy=False,
    )
    assert large.provenance.content
    spent = []
    for seed in range(3):
        started = time.process_time()
        made = corrupt(large, "observations", seed=seed)
        spent.append(time.process_time() - started)
    assert made.mask.any()
    assert min(spent) < 0.6  # about 0.12 s on a quiet machine


def test_another_attacker_of_the_same_name_gives_another_hash(clean):
    made = [
        corrupt(
            clean, "actions", "adversarial", attacker=fit_quadratic_critic(clean, discount)
        ).dataset
        for discount in (0.0, 0.9, 0.9)
    ]
    assert made[0].content_hash != made[1].content_hash == made[2].content_hash
    assert made[0].provenance.hash != made[1].provenance.hash == made[2].provenance.hash
    later = [data.label("x").provenance.hash for data in made]
    assert later[0] != later[1] == later[2]


def test_attackers_by_element_are_asked_for_by_element(clean):
    critic = fit_quadratic_critic(clean)
    attackers = {name: critic.attacker(name) for name in ("actions", "observations")}
    made = corrupt(clean, list(attackers), "adversarial", attacker=attackers).dataset
    script = made.provenance.as_python({clean.provenance.hash: "clean"})
    names = {"clean": clean} | {f"attacker_{name}": each for name, each in attackers.items()}
    exec(script, names)
    assert names["dataset"].content_hash == made.content_hash
    assert names["dataset"].provenance.hash == made.provenance.hash


def test_numbers_of_a_multidiscrete_space_stay_in_it():
    spec = Spec(spaces.Discrete(50), spaces.MultiDiscrete([2, 3], start=[1, -1]))
    actions = np.random.default_rng(0).integers(0, [2, 3], size=(50, 2)) + [1, -1]
    made = Dataset.from_arrays(np.arange(50), actions, np.ones(50), np.arange(50) == 49, spec=spec)
    new = corrupt(made, "actions", rate=1.0).dataset.arrays().actions
    assert (new != actions).all()
    assert (new.min(axis=0) == [1, -1]).all()
    assert (new.max(axis=0) == [2, 1]).all()
