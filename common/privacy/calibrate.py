"""From a wished epsilon to noise, and from noise to the steps that a budget affords.

Both answers are checked with the accountant that the ledger uses, so that the budget accepts a plan made here.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

from scipy.optimize import brentq

from common.errors import ConfigError
from common.privacy.accountants import Composition
from common.privacy.accounting import MAX_EPSILON, compose, composed_epsilon, merge
from common.privacy.events import MAX_STEPS, DpEvent

MAX_CALIBRATED_NOISE = 1000.0
MIN_CALIBRATED_NOISE = 0.05  # a single step with less noise has an epsilon in the hundreds
_PER_UNIT = 1000  # noise multipliers have three decimals

Bound = tuple[float, float]
Quick = Callable[[float, float, float, int], float]


@lru_cache(maxsize=256)
def calibrate_noise(epsilon: float, delta: float, sampling_rate: float, steps: int, already: Composition = ()) -> float:
    """Returns the least noise multiplier, rounded up to three decimals, whose epsilon is at most the wished one.

    Formal guarantees:
        - the epsilon (PLD) of `steps` steps with the returned noise, and of `already`, is at most `epsilon`;
        - with .001 less it is over `epsilon`, unless the answer is `MIN_CALIBRATED_NOISE`.

    Args:
        epsilon: wished bound, in (0, `MAX_EPSILON`).
        delta: probability with which it may fail.
        sampling_rate: probability with which each unit joins each step, in (0, 1].
        steps: noised steps over all rounds, >= 1.
        already: what the same epsilon has to hold beside them, canonical.

    Raises:
        ConfigError: for values out of range, where more noise than `MAX_CALIBRATED_NOISE` would be needed, and where
            what is there already leaves nothing.
    """
    _check(epsilon, sampling_rate, steps)

    def cost(noise_multiplier: float) -> float:
        return composed_epsilon(merge([*already, (sampling_rate, noise_multiplier, steps)]), delta)

    if cost(MAX_CALIBRATED_NOISE) > epsilon:
        if already and (spent := composed_epsilon(already, delta)) > 0:
            raise ConfigError(
                f"epsilon = {epsilon:g} at delta {delta:g}: the histograms alone cost {spent:.4g}, which leaves too"
                f" little for {steps} steps at sampling rate {sampling_rate:g}; lower privacy.statistics_epsilon or"
                " privacy.evaluation_epsilon (or raise their noise multipliers), or raise the epsilon"
            )
        raise ConfigError(
            f"epsilon = {epsilon:g} at delta {delta:g} with {steps} steps at sampling rate {sampling_rate:g} needs a"
            f" noise multiplier over {MAX_CALIBRATED_NOISE:g}; raise epsilon or delta, or take fewer steps or a smaller"
            " sampling rate"
        )
    if cost(MIN_CALIBRATED_NOISE) <= epsilon:
        return MIN_CALIBRATED_NOISE
    thousandths = math.ceil(_crossing(cost, epsilon) * _PER_UNIT)
    while cost(thousandths / _PER_UNIT) > epsilon:
        thousandths += 1
    while cost((thousandths - 1) / _PER_UNIT) <= epsilon:
        thousandths -= 1
    return thousandths / _PER_UNIT


def noise_within(
    bounds: Iterable[Bound],
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    already: Composition = (),
    quick: Quick | None = None,
) -> float:
    """Returns the least noise multiplier, rounded up to three decimals, that keeps every bound; as `calibrate_noise`.

    Args:
        bounds: (epsilon, part of the noise's deviation that is left for whoever it bounds, in (0, 1]), at least one.
        delta: probability with which each may fail.
        sampling_rate: of units, in (0, 1].
        steps: over all rounds.
        already: what every bound has to hold beside them, with its whole noise; whoever is bounded sees the same part
            of it.
        quick: what stands in for `calibrate_noise`, where many answers are wanted in little time.
    """

    def least(epsilon: float, left: float) -> float:
        if quick:
            return quick(epsilon, delta, sampling_rate, steps)
        seen = merge((rate, noise * left, count) for rate, noise, count in already)
        return calibrate_noise(epsilon, delta, sampling_rate, steps, seen)

    return max(math.ceil(least(epsilon, left) / left * _PER_UNIT - 1e-9) / _PER_UNIT for epsilon, left in bounds)


def affordable_steps(
    epsilon: float, delta: float, sampling_rate: float, noise_multiplier: float, already: Iterable[DpEvent] = ()
) -> int:
    """Returns how many more steps keep the epsilon (PLD) of everything together at or below `epsilon`.

    Args:
        epsilon: bound on everything, in (0, `MAX_EPSILON`).
        delta: probability with which it may fail.
        sampling_rate: of the further steps, in (0, 1].
        noise_multiplier: of the further steps, > 0.
        already: events that count as spent, in any order.

    Returns:
        A count from 0 (also where an event in `already` has no noise) to `MAX_STEPS`, which stands for "or more".

    Raises:
        ConfigError: for values out of range.
    """
    spent = tuple(already)
    _check(epsilon, sampling_rate, 1)
    if not 0 < noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier = {noise_multiplier!r}: must be over 0 and finite")
    if any(event.mechanism == "none" for event in spent):
        return 0
    return _affordable(epsilon, delta, sampling_rate, noise_multiplier, compose(spent))


@lru_cache(maxsize=256)
def _affordable(epsilon: float, delta: float, sampling_rate: float, noise_multiplier: float, spent: Composition) -> int:
    def cost(steps: int) -> float:
        return composed_epsilon(merge([*spent, (sampling_rate, noise_multiplier, steps)]), delta)

    if cost(1) > epsilon:
        return 0
    low = high = 1
    while high < MAX_STEPS and cost(high) <= epsilon:
        low, high = high, min(high * 8, MAX_STEPS)
    if cost(high) <= epsilon:
        return MAX_STEPS

    def gap(log_steps: float) -> float:
        return _log_ratio(cost(round(math.exp(log_steps))), epsilon)

    steps = round(math.exp(brentq(gap, math.log(low), math.log(high), xtol=0.2 / high)))
    while cost(steps) > epsilon:
        steps -= 1
    while cost(steps + 1) <= epsilon:
        steps += 1
    return steps


def _crossing(cost: Callable[[float], float], epsilon: float) -> float:
    """Returns where a falling cost crosses `epsilon`, to about 1e-7 relative; the crossing is known to exist."""

    def gap(log_noise: float) -> float:
        return _log_ratio(cost(math.exp(log_noise)), epsilon)

    low, high = 0.0, 0.0
    while gap(high) > 0:
        low, high = high, min(high + math.log(2), math.log(MAX_CALIBRATED_NOISE))
    while gap(low) <= 0:
        low, high = max(low - math.log(2), math.log(MIN_CALIBRATED_NOISE)), low
    return math.exp(brentq(gap, low, high, xtol=1e-7))


def _log_ratio(cost: float, epsilon: float) -> float:
    """Returns log(cost / epsilon), nearly straight in log noise and log steps, and finite where cost is not."""
    return math.log(min(max(cost, 1e-12), 10 * MAX_EPSILON) / epsilon)


def _check(epsilon: float, sampling_rate: float, steps: int) -> None:
    problems = []
    if not 0 < epsilon < MAX_EPSILON:
        problems.append(f'epsilon = {epsilon!r}: over 0 and below {MAX_EPSILON:g}; without privacy say mode "none"')
    if not 0 < sampling_rate <= 1:
        problems.append(f"sampling_rate = {sampling_rate!r}: over 0 and at most 1")
    if not 1 <= steps <= MAX_STEPS:
        problems.append(f"steps = {steps!r}: from 1 to {MAX_STEPS}")
    if problems:
        raise ConfigError("\n".join(problems))
