"""How much an attack proves: lower bounds on epsilon from guesses about canaries in a single run.

Each of m canaries is in the data or not, by a fair coin of its own. An attacker who sees a release scores every canary
and guesses "in" for the highest scores and "out" for the lowest. Under a guarantee, only so many guesses can be right;
more than that refutes it. How the scores are made changes how much is proved and never whether it holds, as long as
they depend on the coins through the release alone.

Two bounds: `epsilon_bound` holds for anything that is (epsilon, delta)-private, and a verdict may rest on it.
`gaussian_bound` assumes that the whole trade-off between errors is a Gaussian's, and proves more; where a mechanism is
none (sampled users), what it says is a warning and no verdict.

Legend: M canaries.
Source: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2; Mahloujifar, Melis,
Chaudhuri 2024, "Auditing f-Differential Privacy in One Run", theorem 9 and algorithm 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from common.privacy.quick import gaussian_epsilon

CONFIDENCE = 0.95
# Shares of the canaries that are guessed at, from both ends; which is best is not known ahead, so all are tried, and
# the confidence is split among them (Bonferroni).
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
_MOST_EPSILON = 50.0
_MOST_MU = 20.0
_HALVINGS = 40


@dataclass(frozen=True)
class Proved:
    """What guesses prove, at the confidence that was asked for.

    Attributes:
        epsilon: lower bound that holds for any mechanism.
        gaussian_epsilon: lower bound for one whose trade-off is a Gaussian's.
        guesses: how many guesses gave `epsilon`.
        correct: how many of them were right.
        canaries: how many there were.
    """

    epsilon: float
    gaussian_epsilon: float
    guesses: int
    correct: int
    canaries: int


def proved(
    score_M: NDArray[np.float64], inside_M: NDArray[np.bool_], delta: float, confidence: float = CONFIDENCE
) -> Proved:
    """Returns what scores of canaries prove of the epsilon at `delta`.

    Formal guarantees:
        - For a release that is (epsilon, delta)-private for each canary by itself, `epsilon` is over that with
          probability 1 - confidence at most.

    Args:
        score_M: higher = more likely in; not a number where an attack says nothing, which is a guess of neither.
        inside_M: whether each canary was in, by independent fair coins.
        delta: of the guarantee that is attacked.
        confidence: that the bounds hold with.
    """
    score_M = np.nan_to_num(score_M.astype(float), nan=0.0, posinf=np.finfo(float).max, neginf=np.finfo(float).min)
    order_M = np.argsort(score_M, kind="stable")
    level = (1 - confidence) / len(_SHARES)
    canaries, best = len(score_M), Proved(0.0, 0.0, 0, 0, len(score_M))
    for guesses in sorted({max(2, 2 * round(share * canaries / 2)) for share in _SHARES if canaries >= 2}):
        half = min(guesses, canaries) // 2
        correct = int(inside_M[order_M[-half:]].sum() + (~inside_M[order_M[:half]]).sum())
        plain = epsilon_bound(canaries, 2 * half, correct, delta, level)
        gaussian = gaussian_epsilon_bound(canaries, 2 * half, correct, delta, level)
        if plain > best.epsilon or best.guesses == 0:
            best = Proved(plain, best.gaussian_epsilon, 2 * half, correct, canaries)
        best = Proved(best.epsilon, max(best.gaussian_epsilon, gaussian), best.guesses, best.correct, canaries)
    return best


def most_provable(canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Returns the epsilon that so many canaries could prove at most, every guess being right."""
    level = (1 - confidence) / len(_SHARES)
    sizes = {min(canaries, max(2, 2 * round(share * canaries / 2))) for share in _SHARES}
    return max((epsilon_bound(canaries, size, size, delta, level) for size in sizes if size > 0), default=0.0)


def chance_of_guesses(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Returns a bound on the chance of so many right guesses under (epsilon, delta)-privacy (theorem 5.2).

    Args:
        canaries: m, each in by a fair coin.
        guesses: r of them that are guessed at.
        correct: v right guesses or more.
        epsilon: of the guarantee.
        delta: of the guarantee.
    """
    rate = float(expit(epsilon))
    chance = float(binom.sf(correct - 1, guesses, rate))
    if delta > 0 and correct > 0:
        # P[v > B >= v - i] / i, at its largest over i: what delta can add, times 2 m delta.
        below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate)
        chance += 2 * canaries * delta * float((np.cumsum(below) / np.arange(1, correct + 1)).max())
    return min(chance, 1.0)


def epsilon_bound(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """Returns the largest epsilon under which so many right guesses have a chance of `level` at most; 0 = none."""
    return _largest(
        lambda epsilon: chance_of_guesses(canaries, guesses, correct, epsilon, delta) <= level, _MOST_EPSILON
    )


def gaussian_epsilon_bound(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """Returns the epsilon at `delta` of the largest Gaussian trade-off that the guesses refute; 0 = none."""
    mu = _largest(lambda one: _refutes_gaussian(canaries, guesses, correct, one, level), _MOST_MU)
    return gaussian_epsilon(1 / mu, delta) if mu > 0 else 0.0


def _refutes_gaussian(canaries: int, guesses: int, correct: int, mu: float, level: float) -> bool:
    """Whether a Gaussian trade-off of parameter mu allows `correct` right guesses with a chance below `level` only.

    `right` is the least that P[right guess on a random canary, i or more right in all] can be if the chance of
    `correct` were `level`, and `wrong` that of a wrong guess; walked down from i = correct to 0, where their sum must
    be the share of canaries that are guessed at. More than that cannot be.
    """
    right, wrong = level * correct / canaries, level * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        if right >= 1:
            return True
        more = max(float(ndtr(ndtri(right) - mu)) - wrong, 0.0)
        wrong += more
        right += more * count / (guesses - count)
        if right + wrong > guesses / canaries:
            return True
    return False


def _largest(refuted: Callable[[float], bool], most: float) -> float:
    """Returns the largest parameter that is refuted, to a billionth of `most`; 0 where not even the least is."""
    if not refuted(most * 2.0**-_HALVINGS):
        return 0.0
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low if math.isfinite(low) else 0.0
