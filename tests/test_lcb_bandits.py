"""LCB for bandits and contextual bandits: rules, limits, hard instances, bounds, speed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import argmax_random_ties, stream
from offrl_wb.core.statistics import log_log_slope
from offrl_wb.theory import lcb_bandit as mab
from offrl_wb.theory import lcb_contextual as cb
from offrl_wb.worlds import bandits

counts_and_sums = arrays(np.int64, (6, 3, 4), elements=st.integers(0, 12)).flatmap(
    lambda n: arrays(float, (6, 3, 4), elements=st.floats(0, 1)).map(lambda f: (n, np.floor(f * n)))
)


def loop_lcb(counts: np.ndarray, sums: np.ndarray, penalty: float, unseen: str) -> np.ndarray:
    """Algorithm 2 one data set, one context, one action at a time: the oracle."""
    datasets, contexts, actions = counts.shape
    chosen = np.zeros((datasets, contexts), dtype=int)
    for d in range(datasets):
        size = max(1, int(counts[d].sum()))
        log_term = np.log(2 * contexts * actions * size)
        for s in range(contexts):
            best = None
            for a in range(actions):
                n = int(counts[d, s, a])
                if n:
                    bound = float(sums[d, s, a]) / n - (penalty * log_term / n) ** 0.5
                else:
                    bound = -1.0 if unseen == "paper" else -np.inf
                if best is None or bound > best:
                    best, chosen[d, s] = bound, a
    return chosen


@given(counts_and_sums, st.sampled_from(["paper", "never"]), st.sampled_from([0, 0.1, 0.5, 2000]))
def test_the_rule_agrees_with_the_loop(data: tuple, unseen: str, penalty: float) -> None:
    counts, sums = data
    fast = cb.lcb_contextual(counts, sums, penalty, unseen=unseen)
    assert (fast == loop_lcb(counts, sums, penalty, unseen)).all()


def test_the_rule_is_much_faster_than_the_loop() -> None:
    instance = bandits.ambiguous_contexts(10, 1.2, 0.25)
    counts, sums = instance.sample(1000, 3000, stream(0, "speed"))
    cb.lcb_contextual(counts, sums)
    fast = min(timed(lambda: cb.lcb_contextual(counts, sums)) for _ in range(5))
    few = slice(0, 300)
    slow = timed(lambda: loop_lcb(counts[few], sums[few], 0.5, "paper")) * 10
    assert (
        cb.lcb_contextual(counts[few], sums[few]) == loop_lcb(counts[few], sums[few], 0.5, "paper")
    ).all()
    assert slow > 4 * fast, f"loop {slow:.3f} s, vectorised {fast:.3f} s"


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def test_widths_by_hand() -> None:
    log_term = np.log(2 * 3 / 0.1)
    by_hand = [np.sqrt(log_term / 2), np.sqrt(log_term / 20), 1]
    assert np.allclose(mab.hoeffding_width(np.array([1, 10, 0]), log_term), by_hand)


def test_theorem_1_holds_on_simulated_logs() -> None:
    instance = bandits.bandit("six", [0.25, *[0.15] * 5], [0.6, *[0.5] * 5])
    counts, sums = instance.sample(2000, 4000, stream(1, "theorem 1"))
    loss = instance.suboptimality(mab.lcb_bandit(counts, sums, delta=0.1))
    assert (loss > 2 * np.sqrt(4 * np.log(120) / 2000)).mean() <= 0.2


@given(counts_and_sums, st.integers(0, 999), st.floats(0, 5))
def test_the_pessimism_lemma(data: tuple, seed: int, log_term: float) -> None:
    counts, sums = (part[:, 0] for part in data)
    widths = mab.hoeffding_width(counts, log_term)
    means = sums / np.maximum(counts, 1)
    truth = means + widths * np.random.default_rng(seed).uniform(-1, 1, means.shape)
    bounds = mab.lower_confidence_bounds(counts, sums, log_term)
    rows, chosen, best = np.arange(len(truth)), bounds.argmax(axis=1), truth.argmax(axis=1)
    loss = truth[rows, best] - truth[rows, chosen]
    assert (loss <= 2 * widths[rows, best] + 1e-12).all()


def test_the_most_played_arm_errs_as_often_as_the_binomial_tail_says() -> None:
    exact = binom.cdf(9, 20, 0.8) + binom.pmf(10, 20, 0.8) / 2
    generator = stream(2, "tail")
    counts, _ = bandits.two_arms(1.25, 0.2).sample(20, 300_000, generator)
    wrong = (mab.most_played(counts, generator) == 1).mean()
    assert abs(wrong - exact) < 3 * np.sqrt(exact / 300_000)
    assert wrong < mab.most_played_bound(1.25, 20) < 0.0116
    assert mab.most_played_bound(2.5, 10) == 1


@given(counts_and_sums)
def test_the_penalty_leads_from_greed_to_imitation(data: tuple) -> None:
    counts, sums = data
    greedy = mab.lcb_bandit(counts, sums, 0, unseen="never")
    assert (greedy == mab.empirical_best(counts, sums)).all()
    heavy = mab.lcb_bandit(counts, sums, 1e14, unseen="never")
    most = counts.max(axis=-1, keepdims=True)
    untied = ((counts == most).sum(axis=-1) == 1) & (counts.sum(axis=-1) > 0)
    assert (heavy == mab.most_played(counts))[untied].all()


def test_literal_constants_prefer_an_arm_that_was_never_pulled() -> None:
    trap = bandits.many_arms(1.2, 400)
    assert trap.reward_mean.shape == (1, 68)
    counts, sums = trap.sample(400, 500, stream(3, "literal"))
    chosen = mab.lcb_bandit(counts, sums, penalty=2000, unseen="paper")
    never = np.take_along_axis(counts[:, 0], chosen, axis=1) == 0
    assert never.mean() > 0.99
    assert np.isclose(trap.suboptimality(chosen).mean(), 0.3, atol=0.01)


@given(counts_and_sums, st.sampled_from(["paper", "never"]))
def test_one_context_is_a_bandit(data: tuple, unseen: str) -> None:
    counts, sums = (part[:, :1] for part in data)
    contextual = cb.lcb_contextual(counts, sums, unseen=unseen)[:, 0]
    assert (contextual == mab.lcb_bandit(counts[:, 0], sums[:, 0], unseen=unseen)).all()


@pytest.mark.parametrize("rule", [mab.lcb_bandit, cb.lcb_contextual])
def test_bad_settings_are_refused(rule) -> None:
    counts, sums = np.ones((2, 3)), np.ones((2, 3))
    with pytest.raises(InputError, match="penalty"):
        rule(counts, sums, penalty=-1)
    with pytest.raises(InputError, match="penalty"):
        rule(counts, sums, penalty=np.nan)
    with pytest.raises(InputError, match="unseen"):
        rule(counts, sums, unseen="sometimes")


@pytest.mark.parametrize(
    ("counts", "sums", "delta", "message"),
    [
        ([[1, 2]], [[0, 3]], None, "between 0 and their counts"),
        ([[1, -2]], [[0, 0]], None, "0 or more"),
        ([[1, 2]], [[0, np.nan]], None, "between 0"),
        ([[1, 2]], [[0]], None, "one shape"),
        ([[1, 2]], [[1, 1]], 0, "delta"),
        ([[1, 2]], [[1, 1]], 50, "delta"),
    ],
)
@pytest.mark.parametrize("rule", [mab.lcb_bandit, cb.lcb_contextual])
def test_what_is_not_a_log_is_refused(rule, counts, sums, delta, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(counts, sums, delta=delta)


def test_plain_lists_are_welcome() -> None:
    assert mab.lcb_bandit([60, 3], [43, 3]) == 0
    assert cb.lcb_contextual([[60, 3], [2, 90]], [[43, 3], [2, 60]]).tolist() == [0, 1]
    with pytest.raises(InputError, match="2 axes"):
        cb.lcb_contextual([60, 3], [43, 3])


def test_ties_are_broken_at_random_only_with_a_generator() -> None:
    counts, sums = np.full((4000, 1, 2), 5), np.full((4000, 1, 2), 2.0)
    assert (cb.lcb_contextual(counts, sums) == 0).all()
    tossed = cb.lcb_contextual(counts, sums, generator=stream(0, "toss"))
    assert 0.45 < tossed.mean() < 0.55


# Worlds ------------------------------------------------------------------------------------------


@given(st.floats(1.001, 50), st.floats(0.001, 0.9))
def test_two_arms_have_the_concentrability_asked_for(concentrability: float, gap: float) -> None:
    assert np.isclose(bandits.two_arms(concentrability, gap).concentrability, concentrability)


@given(st.integers(1, 40), st.floats(1.0001, 2), st.floats(0.01, 1), st.integers(0, 99))
def test_ambiguous_contexts_are_exact(s: int, c: float, gap: float, seed: int) -> None:
    signs = np.random.default_rng(seed).choice([-1, 1], s)
    instance = bandits.ambiguous_contexts(s, c, gap, signs)
    assert np.isclose(instance.concentrability, c)
    assert np.isclose(instance.behaviour.sum(), 1)
    best = np.append(0, (1 - signs) // 2)
    assert instance.suboptimality(best) == 0
    assert np.isclose(instance.suboptimality(1 - best), 2 - c + (c - 1) * gap)


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        (bandits.missing_mass(10, 100), 1.0),
        (bandits.half_logged(7, 3.5, 0.1), 3.5),
        (bandits.many_arms(1.25, 400), 1.25),
        (bandits.indistinguishable_pair_high(4, 100)[0], 4.0),
        (bandits.indistinguishable_pair_low(1.5, 0.2)[1], 1.5),
        (bandits.rare_lucky_arm(100), 1 / 0.98),
    ],
)
def test_hard_instances_have_the_concentrability_they_say(instance, expected: float) -> None:
    assert np.isclose(instance.concentrability, expected)
    assert np.isclose(instance.behaviour.sum(), 1)
    assert np.isclose(instance.context_distribution.sum(), 1)


def test_expert_data_has_concentrability_one_and_missing_actions_have_infinite() -> None:
    rho, reward = np.array([0.3, 0.7]), np.array([[1.0, 0.0], [0.2, 0.6]])
    expert = bandits.bandit("expert", rho[:, None] * np.eye(2), reward, rho)
    assert expert.concentrability == 1
    wrong = bandits.bandit("wrong", rho[:, None] * np.eye(2)[[0, 0]], reward, rho)
    assert wrong.concentrability == np.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bandits.bandit("x", [0.5, 0.6], [0.1, 0.2]), "not a distribution"),
        (lambda: bandits.bandit("x", [0.5, 0.5], [0.1, 1.2]), r"\[0, 1\]"),
        (lambda: bandits.missing_mass(200, 100), "missing mass"),
        (lambda: bandits.ambiguous_contexts(3, 2.5, 0.1), "concentrability"),
        (lambda: bandits.half_logged(3, 1.5, 0.1), "concentrability"),
        (lambda: bandits.indistinguishable_pair_high(1.5, 10), "2 or more"),
        (lambda: bandits.many_arms(1.0, 10), "no arms"),
        (lambda: bandits.bandit("x", [0.5, 0.5], [np.nan, 0.2]), r"\[0, 1\]"),
        (lambda: bandits.bandit("x", [0.5, np.nan], [0.1, 0.2]), "not a distribution"),
        (lambda: bandits.bandit("x", [0.5, 0.5], [0.1, 0.2, 0.3]), "one shape|broadcast"),
        (lambda: bandits.bandit("x", np.full((2, 2), 0.25), np.full((2, 2), 0.5)), "one shape"),
        (lambda: bandits.two_arms(0.5, 0.1), "1 or more"),
        (lambda: bandits.rare_lucky_arm(1), "raise N"),
        (lambda: bandits.missing_mass(3, 10, good_action=5), "0 or 1"),
        (lambda: bandits.ambiguous_contexts(3, 1.5, 0.1, [1, 1]), "signs"),
        (lambda: mab.most_played_bound(0.5, 10), "1 or more"),
    ],
)
def test_impossible_instances_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@settings(max_examples=20)
@given(st.integers(1, 10**9), st.integers(0, 99))
def test_samples_add_up_and_cost_nothing_in_size(size: int, seed: int) -> None:
    instance = bandits.ambiguous_contexts(3, 1.4, 0.3)
    counts, sums = instance.sample(size, 5, np.random.default_rng(seed))
    assert (counts.sum(axis=(1, 2)) == size).all()
    assert (sums <= counts + 1e-6 * counts).all()
    assert np.allclose(sums[:, 0], counts[:, 0] * instance.reward_mean[0])


def test_the_rare_lucky_arm_costs_the_same_at_every_size() -> None:
    for size in (500, 50_000):
        trap = bandits.rare_lucky_arm(size)
        counts, sums = trap.sample(size, 20_000, stream(size, "lucky"))
        loss = trap.suboptimality(mab.empirical_best(counts, sums)).mean()
        assert abs(loss - bandits.rare_lucky_arm_limit()) < 4 * 0.19 / np.sqrt(20_000) + 1e-3
        assert trap.suboptimality(mab.lcb_bandit(counts, sums)).mean() < 0.005


@pytest.mark.parametrize("size", [50, 500])
@pytest.mark.parametrize("concentrability", [2.0, 4.0])
def test_no_rule_beats_the_limit_above_two(concentrability: float, size: int) -> None:
    bound = float(bandits.lower_bound_high(concentrability, size))
    losses = []
    for member in bandits.indistinguishable_pair_high(concentrability, size):
        generator = stream(4, "limit", size)
        counts, sums = member.sample(size, 4000, generator)
        rules = cb.rule_actions(counts, sums, 0.5, "paper", generator)
        losses.append([member.suboptimality(actions).mean() for actions in rules.values()])
    assert (np.max(losses, axis=0) >= bound).all()


def test_no_rule_beats_the_limit_below_two() -> None:
    bound = float(bandits.lower_bound_low(1.5, 0.2, 10))
    losses = []
    for member in bandits.indistinguishable_pair_low(1.5, 0.2):
        generator = stream(5, "limit")
        counts, sums = member.sample(10, 20_000, generator)
        rules = cb.rule_actions(counts, sums, 0.5, "paper", generator)
        losses.append([member.suboptimality(actions).mean() for actions in rules.values()])
    assert (np.max(losses, axis=0) >= bound).all()


def test_the_missing_mass_bound_is_attained() -> None:
    size, generator = 100, stream(6, "missing")
    losses = []
    for good in (0, 1):
        instance = bandits.missing_mass(10, size, good)
        counts, sums = instance.sample(size, 20_000, generator)
        actions = cb.lcb_contextual(counts, sums, unseen="never", generator=generator)
        losses.append(instance.suboptimality(actions))
    mean, error = np.mean(losses), np.std(losses) / np.sqrt(40_000)
    assert abs(mean - bandits.missing_mass_loss(10, size)) < 4 * error


@pytest.mark.parametrize(("concentrability", "size"), [(1.05, 3200), (1.5, 800)])
def test_no_rule_beats_assouads_bound(concentrability: float, size: int) -> None:
    bound = float(bandits.ambiguous_lower_bound(10, concentrability, size))
    gap = np.sqrt(10 * concentrability / (8 * size * (concentrability - 1)))
    generator = stream(7, "assouad", size)
    losses: dict[str, list] = {rule: [] for rule in cb.RULES}
    for _ in range(40):
        signs = generator.choice([-1, 1], 10)
        instance = bandits.ambiguous_contexts(10, concentrability, gap, signs)
        actions = cb.rule_actions(*instance.sample(size, 40, generator), 0.5, "paper", generator)
        for rule, chosen in actions.items():
            losses[rule].append(instance.suboptimality(chosen).mean())
    assert all(np.mean(values) > bound for values in losses.values())


def test_the_ambiguous_bound_is_nan_where_it_is_not_valid() -> None:
    bound = bandits.ambiguous_lower_bound(10, 1.01, np.array([10, 10**6]))
    assert np.isnan(bound[0])
    assert bound[1] > 0


# Experiments and explorers -----------------------------------------------------------------------


def test_error_rates_agree_with_the_rules_on_sampled_instances() -> None:
    rates = mab.error_rates(1.5, 60, 20_000, stream(0, "rates"), gaps=(0.3,))
    instance, generator = bandits.two_arms(1.5, 0.3), stream(1, "rates")
    counts, sums = instance.sample(60, 20_000, generator)
    plain = cb.rule_actions(counts, sums, 0.5, "paper", generator)
    for row, rule in zip(rates, ("imitation", "plug_in", "lcb"), strict=True):
        assert abs(row[0] - plain[rule].mean()) < 4 * np.sqrt(0.5 / 20_000)


def test_below_two_imitation_wins_for_large_logs_and_from_two_on_never_learns() -> None:
    result = mab.winner_map()
    left = np.flatnonzero(result.concentrabilities == 1.5)[0]
    assert mab.RULES[result.winner[left, -1]] == "most_played"
    right = result.concentrabilities > 2
    assert (result.losses["most_played"][right, -1] > 0.4).all()
    assert (result.winner[right] != mab.RULES.index("most_played")).all()
    losses = np.sort(np.stack(list(result.losses.values())), axis=0)
    assert not result.clear[losses[0] == losses[1]].any()
    assert result.clear[left, 0] or not result.clear.all()


def test_traps_hurt_the_empirical_best_and_nobody_else() -> None:
    plain, trapped = mab.winner_map(), mab.winner_map(family="with traps")
    assert (trapped.losses["empirical_best"][3:, -1] > 0.1).all()
    assert trapped.losses["lcb"][3:8, -1].max() < 0.05
    assert plain.losses["empirical_best"][3:8, -1].max() < 0.05
    with pytest.raises(InputError, match="family"):
        mab.winner_map(family="gentle")
    with pytest.raises(InputError, match="penalty"):
        mab.winner_map(penalty=np.nan)


@given(st.integers(2, 9), st.integers(1, 10**6), st.floats(1.01, 20), st.floats(0.01, 0.9))
def test_the_arms_picture_is_consistent(arms: int, size: int, c: float, gap: float) -> None:
    picture = mab.arms_picture(size, c, gap, arms=arms, seed=3)
    assert picture.counts.sum() == size
    sums = (picture.means * picture.counts).round()
    assert picture.chosen == mab.lcb_bandit(picture.counts, sums)
    assert picture.most_played == mab.most_played(picture.counts)
    assert picture.empirical_best == mab.empirical_best(picture.counts, sums)
    assert picture.truth.argmax() == picture.optimal == 0
    seen = picture.counts > 0
    assert np.allclose(picture.lower[seen], (picture.means - picture.widths)[seen])


def test_family_losses_are_those_of_the_instances() -> None:
    fast = cb.family_losses(5, 1.3, 150, 6000, stream(0, "family"), gaps=(0.6,))
    instance, generator = bandits.ambiguous_contexts(5, 1.3, 0.6), stream(1, "family")
    plain = cb.rule_actions(*instance.sample(150, 6000, generator), 0.5, "paper", generator)
    for rule in cb.RULES:
        slow = instance.suboptimality(plain[rule])
        noise = np.hypot(slow.std(), fast[rule][:, 1].std()) / np.sqrt(6000)
        assert abs(slow.mean() - fast[rule][:, 1].mean()) < 4 * noise


@pytest.mark.parametrize(("label", "low", "high"), [("1", -1.05, -0.95), ("2", -0.65, -0.45)])
def test_the_phase_transition_goes_from_one_to_one_half(
    label: str, low: float, high: float
) -> None:
    sizes = 200 * 4 ** np.arange(4)
    means = [
        cb.family_losses(10, float(label), int(n), 150, stream(0, label, int(n)))["lcb"]
        .mean(0)
        .max()
        for n in sizes
    ]
    assert low < log_log_slope(sizes, np.array(means)) < high


def test_imitation_stops_at_half_of_the_ambiguous_mass() -> None:
    losses = cb.family_losses(10, 1.2, 12_800, 400, stream(0, "floor"))["imitation"].mean(axis=0)
    assert np.isclose(losses.max(), 0.1, rtol=0.06)


@pytest.mark.parametrize("penalty", [0.5, 2000, np.inf])
@pytest.mark.parametrize("unseen", ["paper", "never"])
def test_one_marginal_stands_for_all_contexts(unseen: str, penalty: float) -> None:
    sizes = np.array([800])
    marginal = cb.ambiguous_marginal_losses(8, 0.3, sizes, 20_000, stream(0, "m"), penalty, unseen)
    gap = float(np.sqrt(8 * 1.3 / (800 * 0.3)) * cb.GAP_MULTIPLES[5])
    full = cb.family_losses(8, 1.3, 800, 5000, stream(1, "m"), penalty, unseen, gaps=(gap,))
    for rule in cb.RULES:
        noise = full[rule][:, 1].std() / np.sqrt(5000) + 0.3 * gap * 0.5 / np.sqrt(20_000)
        assert abs(marginal[rule][0, 5] - full[rule][:, 1].mean()) < 4 * noise


@pytest.mark.parametrize("penalty", [0.0, 0.5, 20, 2000, np.inf])
@pytest.mark.parametrize("unseen", ["paper", "never"])
def test_the_exact_missing_mass_loss_is_what_simulation_gives(unseen: str, penalty: float) -> None:
    exact = cb.missing_mass_expected_loss(6, np.array([50]), penalty, unseen)
    generator, losses = stream(0, "exact", unseen), []
    for good in (0, 1):
        instance = bandits.missing_mass(6, 50, good)
        sample = instance.sample(50, 20_000, generator)
        actions = cb.rule_actions(*sample, penalty, unseen, generator)
        losses.append({rule: instance.suboptimality(a) for rule, a in actions.items()})
    for rule in cb.RULES:
        both = np.concatenate([part[rule] for part in losses])
        assert abs(both.mean() - exact[rule][0]) < 4 * both.std() / np.sqrt(len(both))


@pytest.mark.parametrize("excess", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("penalty", [0.0, 0.5, np.inf])
def test_the_error_curve_exists_for_every_setting(excess: float, penalty: float) -> None:
    curve = cb.error_curve(excess, 10, penalty)
    for name in ("lcb", "imitation", "plug_in", "fast", "slow"):
        line = getattr(curve, name)
        assert line.shape == curve.sizes.shape
        assert (line > 0).all()
    assert np.isclose(curve.knee, 10 / excess)
    before = curve.sizes < curve.knee
    assert (curve.fast[before] > curve.slow[before]).all()
    assert (curve.fast[~before] <= curve.slow[~before] * (1 + 1e-12)).all()


def test_the_error_curve_answers_to_its_sliders() -> None:
    low, high = cb.error_curve(0.01), cb.error_curve(0.5)
    assert high.lcb[-1] > low.lcb[-1]
    assert high.imitation[-1] > 10 * low.imitation[-1]
    assert cb.error_curve(0.5, penalty=np.inf, unseen="paper").lcb.min() > 0.5
    heavy = cb.error_curve(0.5, penalty=np.inf, unseen="never")
    assert np.allclose(heavy.lcb, heavy.imitation, rtol=0.5)
    assert np.array_equal(cb.error_curve(0.1).lcb, cb.error_curve(0.1).lcb)
    for arguments in ((0, 10), (2, 10), (0.1, 1), (0.1, 1000)):
        with pytest.raises(InputError):
            cb.error_curve(*arguments)


def test_ties_are_fair_across_every_rule_of_a_family() -> None:
    counts = np.zeros((6000, 1, 2), dtype=int)
    actions = cb.rule_actions(counts, counts * 0.0, 0.5, "paper", stream(0, "fair"))
    for chosen in actions.values():
        assert 0.46 < chosen.mean() < 0.54
    assert argmax_random_ties(counts[0]).tolist() == [0]
