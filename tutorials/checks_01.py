"""The checks of tutorial 1. They know the right answers: read this after you tried.

Each check calls the student's function on a few logs. If an answer is not right, it is compared
with those of typical slips, and the hint names the slip. To add one: write the wrong answer as a
function and the hint beside it, in the list of its exercise.
"""

import textwrap
import traceback

import numpy as np

from offrl_wb.core.random import stream
from offrl_wb.theory.lcb_bandit import hoeffding_width, lcb_bandit, most_played, most_played_bound
from offrl_wb.worlds.bandits import bandit


class Hint(AssertionError):
    """An answer that is not right yet. Jupyter shows the message alone, without a traceback."""

    def _render_traceback_(self):
        return textwrap.wrap(str(self), 96)


def ask(exercise, function, *arguments):
    """The function's answer to copies of the arguments; a `Hint` where there is none."""
    if not callable(function):
        raise Hint(
            f"{exercise}: its name now means {function!r}, not a function. Run its cell again."
        )
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        with np.errstate(all="ignore"):
            answer = function(*copies)
    except NotImplementedError:
        raise Hint(
            f"{exercise} is not done yet. Write your answer, run its cell, then run me again."
        ) from None
    except Exception as problem:
        name = getattr(function, "__name__", "")
        frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.name == name]
        line = f" in the line `{frames[-1].line}`" if frames and frames[-1].line else ""
        kind = type(problem).__name__
        raise Hint(f"{exercise}: your function stopped{line} with {kind}: {problem}") from problem
    if answer is None:
        raise Hint(
            f"{exercise}: your function returns nothing. Is there a `return` before the result?"
        )
    return answer


def numbers(exercise, answer, shape):
    """The answer as an array of this shape; a `Hint` if it is not one."""
    try:
        array = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        raise Hint(f"{exercise}: numbers were expected, and you return {answer!r}.") from None
    if array.shape != shape:
        expected = "one number" if shape == () else f"an array of shape {shape}"
        raise Hint(
            f"{exercise}: {expected} was expected, and you return one of shape {array.shape}."
        )
    return array


def same(first, second):
    """Equal up to rounding; two NaN or two infinities are equal too."""
    return np.allclose(first, second, rtol=1e-6, atol=1e-9, equal_nan=True)


def judge(exercise, answers, cases, right, slips):
    """Raise the hint of the slip that explains all answers, or else show the first wrong one."""
    expected = [right(*case) for case in cases]
    if all(same(a, e) for a, e in zip(answers, expected, strict=True)):
        return
    with np.errstate(all="ignore"):
        for hint, slip in slips:
            if all(same(a, slip(*case)) for a, case in zip(answers, cases, strict=True)):
                raise Hint(f"{exercise}: {hint}")
    for answer, value, case in zip(answers, expected, cases, strict=True):
        if not same(answer, value):
            given = ", ".join(
                np.array2string(np.asarray(c), precision=4, separator=", ") for c in case
            )
            got, want = (
                np.array2string(np.asarray(x), precision=4, separator=", ") for x in (answer, value)
            )
            raise Hint(f"{exercise}: for ({given}) you return {got}, and {want} is right.")


# Exercise 1: Hoeffding's width, for all soups at once

WIDTH_CASES = [
    (np.array([1, 10, 40]), 0.1),
    (np.array([60, 25, 12, 8, 3]), 0.05),
    (np.array([7, 100]), 0.01),
]


def right_widths(counts, delta):
    return hoeffding_width(counts, np.log(2 * len(counts) / delta))


WIDTH_SLIPS = [
    (
        "each soup alone keeps its promise, but all together they do not: the union bound is "
        "missing. With A soups each may fail with probability delta / A only.",
        lambda n, d: np.sqrt(np.log(2 / d) / (2 * n)),
    ),
    (
        "you divide by the length of the whole logbook. The width of a soup depends on the "
        "evenings on which that soup was cooked: its own count.",
        lambda n, d: np.full(len(n), np.sqrt(np.log(2 * len(n) / d) / (2 * n.sum()))),
    ),
    (
        "an average can be too high or too low: the 2 in front of Hoeffding's exponential got "
        "lost.",
        lambda n, d: np.sqrt(np.log(len(n) / d) / (2 * n)),
    ),
    (
        "the 2 in Hoeffding's exponent, exp(-2 n b²), got lost: you divide by n in place of 2n.",
        lambda n, d: np.sqrt(np.log(2 * len(n) / d) / n),
    ),
    (
        "this is b², not b: the square root is missing.",
        lambda n, d: np.log(2 * len(n) / d) / (2 * n),
    ),
    (
        "the inverse of exp is the natural logarithm, np.log; you took the one to base ten.",
        lambda n, d: np.sqrt(np.log10(2 * len(n) / d) / (2 * n)),
    ),
    (
        "delta belongs under the fraction: the smaller the risk you take, the wider the bar.",
        lambda n, d: np.sqrt(np.log(2 * len(n) * d) / (2 * n)),
    ),
]


def check_widths(function):
    """Exercise 1."""
    name = "Exercise 1"

    def widths(counts, delta):  # one number stands for the same width everywhere
        answer = ask(name, function, counts, delta)
        return numbers(
            name, [answer] * len(counts) if np.ndim(answer) == 0 else answer, counts.shape
        )

    answers = [widths(*case) for case in WIDTH_CASES]
    judge(name, answers, WIDTH_CASES, right_widths, WIDTH_SLIPS)
    unseen = widths(np.array([10, 0, 5]), 0.1)
    if not same(unseen[1], 1):
        raise Hint(
            f"{name}: right, except for a soup that was never cooked: its width is 1, and yours is "
            f"{unseen[1]:g}. Look at np.where(counts > 0, …, 1.0), and guard the division."
        )
    judge(name, [unseen], [(np.array([10, 0, 5]), 0.1)], right_widths, [])
    print("Exercise 1: right. Four times the evenings halve the width; more soups hardly widen it.")


# Exercise 2: the highest lower bound

# Counts, successes and delta. Together they tell all slips below apart.
CHOICE_LOGS = [
    ([60, 25, 12, 8, 3], [43, 13, 5, 3, 3], 0.1),  # a lucky soup
    ([90, 60, 5], [18, 48, 4], 0.1),  # the most cooked is bad
    ([3, 0, 2], [0, 0, 1], 0.1),  # one was never cooked, and all bounds are below zero
    ([30, 100, 0], [24, 60, 0], 0.05),  # rates, not sums
    ([1, 0, 1], [0, 0, 0], 0.05),  # nothing is as good as the unknown
]
CHOICE_CASES = [
    (np.array(n), np.array(s), hoeffding_width(np.array(n), np.log(2 * len(n) / d)))
    for n, s, d in CHOICE_LOGS
]


def averages(counts, sold):
    return sold / np.maximum(counts, 1)


def right_choice(counts, sold, widths):
    return np.argmax(averages(counts, sold) - widths)


CHOICE_SLIPS = [
    (
        "you return the highest lower bound itself (max). Asked for is its place: np.argmax.",
        lambda n, s, w: np.max(averages(n, s) - w),
    ),
    (
        "you add the width. The best that could be is optimism, good for exploring; here nothing "
        "more can be tried, so subtract.",
        lambda n, s, w: np.argmax(averages(n, s) + w),
    ),
    (
        "this is the empirical best: it trusts three lucky evenings. The widths are not used yet.",
        lambda n, s, w: np.argmax(averages(n, s)),
    ),
    (
        "this is the most cooked soup, blind to sales: imitation.",
        lambda n, s, w: np.argmax(n),
    ),
    (
        "you use the number of evenings sold out where the average belongs: divide by the counts.",
        lambda n, s, w: np.argmax(s - w),
    ),
    (
        "a soup never cooked has a lower bound of -1 (average 0 minus width 1), and you count it "
        "as 0: so it beats every soup whose bound is below zero.",
        lambda n, s, w: np.argmax(np.where(n > 0, averages(n, s) - w, 0)),
    ),
    (
        "0 / 0 is NaN, and np.argmax takes NaN for the largest: a soup never cooked then always "
        "wins. Divide by np.maximum(counts, 1).",
        lambda n, s, w: np.argmax(s / n - w),
    ),
    (
        "you rule out soups that were never cooked. A healthy instinct (the library calls it "
        "unseen='never'); but the rule asked for here gives them -1, which can win.",
        lambda n, s, w: np.argmax(np.where(n > 0, averages(n, s) - w, -np.inf)),
    ),
    (
        "soups are numbered from 0, as in NumPy; you start at 1.",
        lambda n, s, w: right_choice(n, s, w) + 1,
    ),
]


def check_choice(function):
    """Exercise 2."""
    name = "Exercise 2"
    answers = [numbers(name, ask(name, function, *case), ()) for case in CHOICE_CASES]
    judge(name, answers, CHOICE_CASES, right_choice, CHOICE_SLIPS)
    print(
        "Exercise 2: right. On Rosa's logbook your rule paints pea: three evenings of crab did not "
        "fool it."
    )


# Exercise 3: concentrability, and what it says about copying

SHARE_CASES = [
    (np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.7, 0.1])),
    (np.array([0.8, 0.15, 0.05]), np.array([0.9, 0.5, 0.2])),
    (np.array([0.1, 0.65, 0.25]), np.array([0.2, 0.3, 0.6])),
]
SHARE_SLIPS = [
    (
        "this is the share of the best arm. C* is one over it: rare is large.",
        lambda shares, rates: shares[rates.argmax()],
    ),
    (
        "you take the arm that was played most. C* asks about the arm that is best, played or not.",
        lambda shares, rates: 1 / shares.max(),
    ),
    (
        "you take the rarest arm. That measures how well all arms are covered; C* asks about the "
        "best one only, which is why it can be small.",
        lambda shares, rates: 1 / shares.min(),
    ),
    (
        "you return the number of the best arm. C* is one over that arm's share.",
        lambda shares, rates: rates.argmax(),
    ),
    (
        "you divide by the reward of the best arm. C* does not depend on how much it pays, only on "
        "its share of the log.",
        lambda shares, rates: 1 / rates.max(),
    ),
]
BOUND_CASES = [(1.25, 20), (1.6, 100), (1.1, 5), (1.9, 31)]
BOUND_SLIPS = [
    (
        "the -1 got lost. With p = 1/C*, the other arms have 1 - p = (C* - 1) / C*, not 1.",
        lambda c, n: (2 * np.sqrt(c) / c) ** n,
    ),
    (
        "the number of evenings belongs in the exponent: every evening makes a mistake less "
        "likely by the same factor. You multiply by it.",
        lambda c, n: n * 2 * np.sqrt(c - 1) / c,
    ),
    (
        "this does not depend on the number of evenings: the power N is missing.",
        lambda c, n: 2 * np.sqrt(c - 1) / c,
    ),
    (
        "the square root got lost: you have (4 p (1 - p)) to the power N.",
        lambda c, n: (4 * (c - 1) / c**2) ** n,
    ),
    (
        "the 2 in front of the square root got lost.",
        lambda c, n: (np.sqrt(c - 1) / c) ** n,
    ),
    (
        "under the root you divide by C* once: p and 1 - p both have a C* below, so p (1 - p) is "
        "(C* - 1) / C* squared.",
        lambda c, n: (2 * np.sqrt((c - 1) / c)) ** n,
    ),
    (
        "this is the probability of being right. The bound is on being wrong.",
        lambda c, n: 1 - most_played_bound(c, n),
    ),
]


def check_concentrability(function):
    """Exercise 3, first half."""
    name = "Exercise 3, concentrability"
    answers = [numbers(name, ask(name, function, *case), ()) for case in SHARE_CASES]
    judge(name, answers, SHARE_CASES, lambda s, r: 1 / s[r.argmax()], SHARE_SLIPS)
    print("Exercise 3, concentrability: right. Only the best arm's share counts.")


def check_bound(function):
    """Exercise 3, second half."""
    name = "Exercise 3, bound"
    answers = [numbers(name, ask(name, function, *case), ()) for case in BOUND_CASES]
    judge(name, answers, BOUND_CASES, most_played_bound, BOUND_SLIPS)
    for c_star in (2.0, 2.5, 10.0):
        answer = numbers(name, ask(name, function, c_star, 50), ())
        if not same(answer, 1):
            raise Hint(
                f"{name}: right below the wall, but for C* = {c_star:g} you promise {answer:.2g}. "
                "There the best arm fills at most half of the log and copying is never safe: "
                "return 1."
            )
    size = next(n for n in range(1, 10_000) if ask(name, function, 1.5, n) < 0.01)
    print(
        f"Exercise 3, bound: right. At C* = 1.5 a log of {size} evenings makes copying 99 % safe."
    )


# Exercise 4: a log that defeats copying

DESIGN_CASES = [(4, 0.2), (10, 0.05), (2, 0.5)]


def design_parts(name, function, kinds, excess):
    """The two arrays of a design, shapes checked."""
    answer = ask(name, function, kinds, excess)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise Hint(f"{name}: return two arrays, `return arrivals, log`.")
    arrivals = numbers(f"{name}, arrivals", answer[0], (kinds + 1,))
    return arrivals, numbers(f"{name}, log", answer[1], (kinds + 1, 2))


def design_problem(arrivals, log, kinds, excess):
    """What is wrong with a design, in words; empty if nothing is."""
    c_star, weight = 1 + excess, arrivals[1:].sum()
    if same(arrivals[1:], excess):
        return "every undecided kind has the weight of all: they share w equally, w / kinds each."
    if same(weight, c_star) or same(weight, c_star / 2):
        return (
            f"w, the share of all undecided guests, is {weight:g}: the -1 got lost. The log sums "
            "to (1 - w) / C* once, and w / C* twice; set that sum equal to 1."
        )
    if (arrivals < -1e-9).any() or (log < -1e-9).any():
        return "some of your probabilities are negative."
    if not same(arrivals.sum(), 1):
        return (
            f"arrivals sum to {arrivals.sum():g}, not to 1. Regulars get what the undecided leave, "
            "1 - w."
        )
    if not same(arrivals[1:], weight / kinds):
        return "the undecided kinds should be equally frequent, w / kinds each."
    return log_problem(arrivals, log, c_star)


def log_problem(arrivals, log, c_star):
    """What is wrong with the log of a design whose arrivals are a distribution."""
    if same(log.sum(axis=1), 1):
        return (
            "each row of your log sums to 1: those are habits, given the kind of guest. Asked for "
            "are shares of log lines, kind and soup together, so the whole table sums to 1."
        )
    if (log[1:] < 1e-12).any():
        return "for undecided kinds both soups are logged; with one alone, copying need not guess."
    if not same(log[1:, 0], log[1:, 1]):
        return "for undecided kinds both soups are logged equally often."
    if log[0, 1] > 1e-9:
        return "for regulars, in row 0, only soup 0 is logged."
    if same(log[:, 0], arrivals):
        return (
            "the log's entries are the arrivals themselves: divide by C*, and see what they sum to."
        )
    if same(log[1:, 0], arrivals[1:] / 2):
        return (
            "your log meets guests as often as they arrive, so half of an undecided kind's lines "
            "show the right soup, and C* = 2. Log them more often than they arrive."
        )
    if not same(log.sum(), 1):
        return (
            f"the whole log sums to {log.sum():g}, not to 1. Which w makes (1 - w) / C* + 2 w / C* "
            "equal to 1?"
        )
    reached = (arrivals / log[:, 0]).max()
    if not same(reached, c_star):
        return f"your log has C* = {reached:.4g}, and {c_star:g} was asked for. Is w = C* - 1?"
    uneven = not same(log[:, 0] * c_star, arrivals)
    return "the coverage is uneven: arrivals / log[:, 0] is C* in every row." if uneven else ""


def simulated_losses(arrivals, log):
    """Mean loss of copying and of LCB on 200 logs of 20 000 evenings."""
    rewards = np.tile([1.0, 0.0], (len(arrivals), 1))
    cafe = bandit("designed", log / log.sum(), rewards, arrivals)
    generator = stream(0, "designed log")
    counts, sold = cafe.sample(20_000, 200, generator)
    copied = cafe.suboptimality(most_played(counts, generator)).mean()
    return copied, cafe.suboptimality(lcb_bandit(counts, sold)).mean()


def check_design(function):
    """Exercise 4."""
    name = "Exercise 4"
    designs = [design_parts(name, function, *case) for case in DESIGN_CASES]
    for (arrivals, log), case in zip(designs, DESIGN_CASES, strict=True):
        if problem := design_problem(arrivals, log, *case):
            raise Hint(f"{name}: for kinds = {case[0]}, excess = {case[1]:g}: {problem}")
    copied, careful = simulated_losses(*designs[0])
    print(
        "Exercise 4: right. On 200 logs of 20 000 evenings from your café, with C* = 1.2, copying "
        f"loses {copied:.3f} and the careful rule {careful:.3f}."
    )
