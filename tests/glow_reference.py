"""GLOW, GOLF, H2O, MABO.CR and FQI written out slowly, for the tests to hold the library against.

Nothing here is vectorised and nothing is summarised: data are lists of transitions, one list a
layer; every expectation is a loop over them; every supremum over weights is a loop over a list of
weights. Written from the paper (Amortila et al. 2024, arXiv 2401.09681: algorithms 1, 2, F.2, F.4,
equations 13, 34, 37, 38) before the library's code was read. A function f is a list of H tables
f[h][s][a]; a weight is one too, and may hold infinities. 0/0 = 0 and c/0 = infinity.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from offrl_wb.worlds.tabular import FiniteHorizonMDP, plan_horizon

INFINITY = float("inf")
TIE = 1e-12  # values closer than this are equal


class Transition(NamedTuple):
    """One step of one episode, in one layer."""

    state: int
    action: int
    reward: float
    following: int


def inverse_cdf(probabilities: Sequence[float], uniform: float) -> int:
    """Least index whose cumulated probability exceeds `uniform`; the last possible one if none."""
    total = 0.0
    for index, probability in enumerate(probabilities):
        total += float(probability)
        if uniform < total:
            return index
    return max(index for index, probability in enumerate(probabilities) if probability > 0)


def play(mdp, policy, row) -> list[Transition]:
    """One episode of actions `policy[h][s]`; `row`: first state, then action, reward, successor."""
    state, steps = inverse_cdf(mdp.initial, row[0]), []
    for layer in range(mdp.horizon):
        action = int(policy[layer][state])
        mean = float(mdp.reward[layer][state][action])
        reward = float(row[2 + 3 * layer] < mean) if mdp.noise == "bernoulli" else mean
        following = inverse_cdf(mdp.transition[layer][state][action], row[3 + 3 * layer])
        steps.append(Transition(state, action, reward, following))
        state = following
    return steps


# Small random worlds to compare on


def sparse_rows(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random distributions along the last axis, about half of the entries exactly zero."""
    rows = generator.dirichlet(np.full(shape[-1], 0.7), size=shape[:-1])
    rows = rows * (generator.random(shape) > 0.5)
    empty = rows.sum(axis=-1) == 0
    rows[empty, generator.integers(shape[-1])] = 1
    return rows / rows.sum(axis=-1, keepdims=True)


def random_world(
    seed: int, horizon: int, states: int, actions: int, noise: str
) -> FiniteHorizonMDP:
    """Episodes are worth between 0 and 1: Bernoulli rewards are paid in the last layer only."""
    generator = np.random.default_rng([seed, 1])
    transition = sparse_rows(generator, (horizon, states, actions, states))
    reward = generator.integers(0, 5, size=(horizon, states, actions)) / 4
    if noise == "bernoulli":
        reward[:-1] = 0
    else:
        reward /= horizon
    initial = sparse_rows(generator, (1, states))[0]
    return FiniteHorizonMDP(initial, transition, reward, f"random({seed})", noise)


def random_tables(mdp: FiniteHorizonMDP, count: int, seed: int) -> np.ndarray:
    """`(count, H, S, A)`: Q* first, then random values in tenths, so that ties are common."""
    generator = np.random.default_rng([seed, 2])
    tables = generator.integers(0, 11, size=(count, *mdp.reward.shape)) / 10
    tables[0] = np.clip(plan_horizon(mdp).action_values, 0, 1)
    return tables


def as_lists(tables: np.ndarray) -> list:
    """Nested lists of Python floats."""
    return np.asarray(tables, dtype=float).tolist()


# Functions, policies, occupancies


def first_best(values) -> int:
    """Index of the first largest value."""
    best = max(values)
    return next(index for index, value in enumerate(values) if value >= best - TIE)


def greedy(function) -> list[list[int]]:
    """Greedy actions `[h][s]`, the first of ties."""
    return [[first_best(row) for row in table] for table in function]


def largest(function, layer: int, state: int) -> float:
    """`max_a f_h(state, a)`, 0 beyond the last layer."""
    return max(float(v) for v in function[layer][state]) if layer < len(function) else 0.0


def occupancy(mdp, policy) -> list[list[list[float]]]:
    """`d[h][s][a]` of actions `policy[h][s]`."""
    states, actions = len(mdp.initial), mdp.reward.shape[2]
    here, visits = [float(p) for p in mdp.initial], []
    for layer in range(mdp.horizon):
        visits.append([[0.0] * actions for _ in range(states)])
        there = [0.0] * states
        for state in range(states):
            action = int(policy[layer][state])
            visits[layer][state][action] += here[state]
            for following in range(states):
                chance = float(mdp.transition[layer][state][action][following])
                there[following] += here[state] * chance
        here = there
    return visits


def expected_return(mdp, policy) -> float:
    """J of a policy: sum of occupancy times mean reward."""
    visits, total = occupancy(mdp, policy), 0.0
    for layer in range(mdp.horizon):
        for state, row in enumerate(visits[layer]):
            for action, chance in enumerate(row):
                total += chance * float(mdp.reward[layer][state][action])
    return total


def bellman_residual(mdp, function, layer: int, state: int, action: int) -> float:
    """`[Delta_h f](s, a) = f_h(s, a) - r(s, a) - sum_s' P(s' | s, a) max f_{h+1}(s')`."""
    ahead = 0.0
    for following, chance in enumerate(mdp.transition[layer][state][action]):
        ahead += float(chance) * largest(function, layer + 1, following)
    return float(function[layer][state][action]) - float(mdp.reward[layer][state][action]) - ahead


def sampled_residual(function, layer: int, step: Transition) -> float:
    """`f_h(x, a) - r - max_a' f_{h+1}(x', a')` of one transition."""
    here = float(function[layer][step.state][step.action])
    return here - step.reward - largest(function, layer + 1, step.following)


# Weights


def ratio(above: float, below: float) -> float:
    if above == 0:
        return 0.0
    return above / below if below > 0 else INFINITY


def clipped(weight: float, limit: float) -> float:
    """`sign(w) min(|w|, limit)`."""
    return math.copysign(min(abs(weight), limit), weight) if weight else 0.0


def mean_occupancy(parts, shares=None):
    """Weighted mean of occupancies `[h][s][a]`, equal shares unless told."""
    shares = shares or [1 / len(parts)] * len(parts)
    layers, states, actions = len(parts[0]), len(parts[0][0]), len(parts[0][0][0])
    return [
        [
            [
                sum(share * part[h][s][a] for share, part in zip(shares, parts, strict=True))
                for a in range(actions)
            ]
            for s in range(states)
        ]
        for h in range(layers)
    ]


def divide(above, below):
    """Ratio of two occupancies `[h][s][a]`, cell by cell."""
    return [
        [
            [ratio(x, y) for x, y in zip(row, other, strict=True)]
            for row, other in zip(upper, lower, strict=True)
        ]
        for upper, lower in zip(above, below, strict=True)
    ]


def glow_weights(mdp, functions, played):
    """`d^{pi_f} / dbar_f`, `dbar_f` the mean of the played occupancies and of `d^{pi_f}` itself."""
    weights = []
    for function in functions:
        visits = occupancy(mdp, greedy(function))
        weights.append(divide(visits, mean_occupancy([*played, visits])))
    return weights


def model_glow_weights(models, functions, chosen):
    """`glow_weights` inside each model, of the history that the model says was visited."""
    policies, weights = [greedy(f) for f in functions], []
    for model in models:
        played = [occupancy(model, policies[index]) for index in chosen]
        weights += glow_weights(model, functions, played)
    return weights


def hybrid_weights(mdp, functions, played, behaviour):
    """`d^{pi_f} / mu`, `mu` half behaviour and half mean of the played occupancies."""
    online = mean_occupancy(played)
    data = mean_occupancy([[[list(map(float, row)) for row in t] for t in behaviour], online])
    return [divide(occupancy(mdp, greedy(function)), data) for function in functions]


def mixture(weights):
    """The operator Mixture of equation 34: `1 / mean of the weights`, cell by cell (one layer)."""
    mixed = []
    for values in zip(*weights, strict=True):
        mean = sum(values) / len(values)
        mixed.append(0.0 if mean == INFINITY else 1 / mean if mean > 0 else INFINITY)
    return mixed


# GLOW and GOLF


def weighted_error(data, function, layer, weight, limit, alpha) -> float:
    """`E^[w~ Delta^ f - alpha w~^2]` over the transitions of a layer."""
    total = 0.0
    for step in data:
        w = clipped(weight[layer][step.state][step.action], limit)
        total += w * sampled_residual(function, layer, step) - (alpha * w * w if alpha else 0.0)
    return total / len(data)


def glow_errors(data, functions, weights, limit, alpha) -> list[list[float]]:
    """`[h][f]`: supremum over the listed weights."""
    return [
        [
            max(weighted_error(data[h], f, h, weight, limit, alpha) for weight in weights)
            for f in functions
        ]
        for h in range(len(data))
    ]


class GlowSettings(NamedTuple):
    gamma: float
    rounds: int
    weight_count: int
    delta: float = 0.1
    c_alpha: float = 8.0
    c_beta: float = 36.0
    clip: bool = True
    penalty: bool = True
    episodes: int = 1  # K


def glow_constants(settings: GlowSettings, functions: int, horizon: int, round_: int):
    """Clip limit, penalty and tolerance of a round (1, 2, ...)."""
    scale = settings.gamma * round_
    limit = scale if settings.clip else INFINITY
    alpha = settings.c_alpha / scale if settings.penalty else 0.0
    if round_ == 1:
        return limit, alpha, INFINITY
    size = functions * settings.weight_count * settings.rounds * horizon
    log_term = math.log(6 * size / settings.delta)
    beta = settings.c_beta * scale / (settings.episodes * (round_ - 1)) * log_term
    return limit, alpha, beta


def glow_excess(data, functions, weights, settings: GlowSettings, round_: int) -> list[float]:
    """By how much each function breaks its worst constraint; it lives if that is at most 0."""
    if not data[0]:
        return [-INFINITY] * len(functions)
    limit, alpha, beta = glow_constants(settings, len(functions), len(data), round_)
    errors = glow_errors(data, functions, weights, limit, alpha)
    return [max(row[f] for row in errors) - beta for f in range(len(functions))]


def squared_loss(data, function, target, layer: int) -> float:
    """Sum of `(g_h - r - max f_{h+1})^2` over the transitions of a layer."""
    total = 0.0
    for step in data:
        aim = step.reward + largest(target, layer + 1, step.following)
        total += (float(function[layer][step.state][step.action]) - aim) ** 2
    return total


def golf_excess(data, functions, beta: float) -> list[float]:
    """Worst of the layers: squared loss of f minus the least in the layer's class, minus beta."""
    excess = []
    for f in functions:
        worst = -INFINITY
        for h, steps in enumerate(data):
            least = min(squared_loss(steps, g, f, h) for g in functions)
            worst = max(worst, squared_loss(steps, f, f, h) - least)
        excess.append(worst - beta)
    return excess


def optimism(mdp, data, functions) -> list[float]:
    """Mean of `max_a f_1` over the first states seen; over the true ones when none was seen."""
    if not data[0]:
        return [
            sum(float(p) * largest(f, 0, s) for s, p in enumerate(mdp.initial)) for f in functions
        ]
    return [sum(largest(f, 0, step.state) for step in data[0]) / len(data[0]) for f in functions]


class OnlineRun(NamedTuple):
    chosen: list[int]
    excess: list[list[float]]
    data: list[list[Transition]]
    played: list  # occupancy of each round's policy


def most_hopeful(excess, scores, slack: float = 1e-9) -> list[int]:
    """Who may be played: the most optimistic of the living; where none lives, the least guilty."""
    alive = [f for f, value in enumerate(excess) if value <= slack]
    if not alive:
        return [f for f, value in enumerate(excess) if value <= min(excess) + slack]
    best = max(scores[f] for f in alive)
    return [f for f in alive if scores[f] >= best - slack]


def run_online(mdp, functions, judge: Callable, uniforms, choose: Callable | None = None):
    """Algorithm 1: `judge(run, round)` gives every f's excess; `uniforms[t]` plays round t + 1.

    Each round's rows, K of them, are one episode each. `choose(candidates, excess, scores, round)`
    says which is played; without it the first candidate.
    """
    run = OnlineRun([], [], [[] for _ in range(mdp.horizon)], [])
    policies = [greedy(f) for f in functions]
    visits = [occupancy(mdp, policy) for policy in policies]
    for round_, rows in enumerate(uniforms, start=1):
        excess = judge(run, round_)
        scores = optimism(mdp, run.data, functions)
        candidates = most_hopeful(excess, scores)
        index = candidates[0] if choose is None else choose(candidates, excess, scores, round_)
        run.chosen.append(index)
        run.excess.append(excess)
        run.played.append(visits[index])
        for row in rows:
            for layer, step in enumerate(play(mdp, policies[index], row)):
                run.data[layer].append(step)
    return run


# The offline learners


def augmented(weights):
    """Equation 38: the weights, their negatives, and each layer of each alone, both signs."""
    everything = []
    for weight in weights:
        parts = [weight]
        for kept in range(len(weight)):
            parts.append(
                [
                    table if h == kept else [[0.0] * len(row) for row in table]
                    for h, table in enumerate(weight)
                ]
            )
        for part in parts:
            everything += [part, [[[-w for w in row] for row in table] for table in part]]
    return everything


def mabo_objectives(data, functions, weights, limit, alpha, absolute=True) -> list[float]:
    """Equation 13 for every f: `max_w sum_h (|E^[w~ Delta^ f]| - alpha E^[w~^2])`.

    `weights` are the class itself: pass `augmented(weights)` for the paper's.
    """
    objectives = []
    for f in functions:
        best = -INFINITY
        for weight in weights:
            total = 0.0
            for h, steps in enumerate(data):
                error = weighted_error(steps, f, h, weight, limit, 0.0)
                size = 0.0
                for step in steps:
                    size += clipped(weight[h][step.state][step.action], limit) ** 2
                penalty = alpha * size / len(steps) if alpha else 0.0
                total += (abs(error) if absolute else error) - penalty
            best = max(best, total)
        objectives.append(best)
    return objectives


def layer_class(functions, layer: int) -> list:
    """Distinct tables of a layer, in order of appearance."""
    tables: list = []
    for function in functions:
        table = [[float(v) for v in row] for row in function[layer]]
        if table not in tables:
            tables.append(table)
    return tables


def fitted_q_iteration(data, functions, choose: Callable | None = None):
    """Algorithm F.2: a list of H tables. `choose(losses, layer)` picks an index of `layer_class`.

    Without `choose` the first of equal losses is taken.
    """
    horizon = len(data)
    fitted: list = [None] * horizon
    for layer in reversed(range(horizon)):
        losses, tables = [], layer_class(functions, layer)
        for table in tables:
            total = 0.0
            for step in data[layer]:
                aim = step.reward + largest(fitted, layer + 1, step.following)
                total += (table[step.state][step.action] - aim) ** 2
            losses.append(total)
        index = losses.index(min(losses)) if choose is None else choose(losses, layer)
        fitted[layer] = tables[index]
    return fitted


def all_fitted(data, functions, slack: float = 1e-9) -> list:
    """Every result that FQI can have, whichever way its ties (within `slack`) are broken."""

    def extend(layer: int, ahead: list) -> list:
        if layer < 0:
            return [ahead]
        losses, tables = [], layer_class(functions, layer)
        padded = [None] * (layer + 1) + ahead
        for table in tables:
            total = 0.0
            for step in data[layer]:
                aim = step.reward + largest(padded, layer + 1, step.following)
                total += (table[step.state][step.action] - aim) ** 2
            losses.append(total)
        least = min(losses)
        found = []
        for table, loss in zip(tables, losses, strict=True):
            if loss <= least + slack:
                found += extend(layer - 1, [table, *ahead])
        return found

    return extend(len(data) - 1, [])


def log_likelihoods(data, models) -> list[list[float]]:
    """`[h][m]`: log likelihood of successors and rewards; -infinity for what cannot happen.

    The successor drawn after the last layer means nothing and is left out.
    """
    horizon, rows = len(data), []
    for layer in range(horizon):
        row = []
        for model in models:
            total = 0.0
            for s, a, reward, following in data[layer]:
                mean = float(model.reward[layer][s][a])
                if model.noise == "bernoulli":
                    chance = mean if reward == 1 else 1 - mean if reward == 0 else 0.0
                else:
                    chance = 1.0 if abs(reward - mean) < 1e-12 else 0.0
                if layer + 1 < horizon:
                    chance *= float(model.transition[layer][s][a][following])
                total += math.log(chance) if chance > 0 else -INFINITY
            row.append(total)
        rows.append(row)
    return rows


# The H2O reduction


class HybridRun(NamedTuple):
    policies: list
    data: list[list[Transition]]
    returns: list[float]


def h2o(mdp, offline, fit: Callable, uniforms, first_policy) -> HybridRun:
    """Algorithm 2: `offline[h]` is a list of transitions; `fit(data, played, round) -> policy`.

    At round t the data of every layer are the first t - 1 offline and the t - 1 online tuples;
    round 1 plays `first_policy`.
    """
    policies: list = []
    online: list[list[Transition]] = [[] for _ in range(mdp.horizon)]
    data: list[list[Transition]] = [[] for _ in range(mdp.horizon)]
    played: list = []
    for round_, row in enumerate(uniforms, start=1):
        policy = first_policy if round_ == 1 else fit(data, played, round_)
        policies.append(policy)
        played.append(occupancy(mdp, policy))
        for layer, step in enumerate(play(mdp, policy, row)):
            online[layer].append(step)
            data[layer] = offline[layer][:round_] + online[layer]
    return HybridRun(policies, data, [expected_return(mdp, policy) for policy in policies])


def hy_q(mdp, offline, functions, uniforms, first_policy, choose: Callable | None = None):
    """The published loop (Song et al. 2023): all offline and all online tuples, every round."""
    policies: list = []
    online: list[list[Transition]] = [[] for _ in range(mdp.horizon)]
    for round_, row in enumerate(uniforms, start=1):
        data = [offline[h] + online[h] for h in range(mdp.horizon)]
        fitted = None if round_ == 1 else fitted_q_iteration(data, functions, choose)
        policy = first_policy if fitted is None else greedy(fitted)
        policies.append(policy)
        for layer, step in enumerate(play(mdp, policy, row)):
            online[layer].append(step)
    return policies
