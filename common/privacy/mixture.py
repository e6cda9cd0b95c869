"""What impression-level clipping means for a user: the epsilon of one user with several impressions.

Where the unit is the impression, each impression joins a step on its own and is clipped on its own. So a user with m of
them moves a step's sum by up to K clips, K ~ Binomial(m, sampling rate): a mixture of Gaussians. Group privacy would
answer infinity; accounting for the mixture answers the truth, since m gradients can point the same way.

Source: Choquette-Choo, Ganesh, Steinke, Thakurta 2024, "Privacy Amplification for Matrix Mechanisms", section 4 (the
mixture, and that a vector's mixture is dominated by that of the norms).
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom, norm

from common.errors import ConfigError
from common.privacy.accountants import Composition, Group, self_compose
from common.privacy.accounting import MAX_EPSILON, MIN_DELTA, compose, composed_epsilon, merge
from common.privacy.events import MAX_IMPRESSIONS, DpEvent

Parts = tuple[tuple[Group, int], ...]  # steps of one kind, and the impressions of the user at them

_ROWS_SHOWN = (1, 2, 5, 10, 20, 50)
_MAX_STEP_BINS = 2**12
_MAX_STEP_LOSS = 2e4  # of natural logarithm: less noise than this has nothing left to account for
_NO_MASS = 1e-30  # of a binomial tail, whose sensitivity is rounded up
_NO_LOSS_MASS = 1e-22  # where dp-accounting cuts the losses of a step


def user_epsilon(composition: Composition, impressions: int, delta: float) -> float:
    """Returns the epsilon (PLD) of a user with so many impressions, of steps that clip and sample impressions.

    Formal guarantees:
        - no impressions or no steps: 0; one impression: the epsilon of the impression itself;
        - an upper bound whatever the gradients, attained where all of the user's point the same way;
        - more impressions never cost less, up to discretisation (under 0.2 %).

    Args:
        composition: as `common.privacy.accounting.compose` gives it; noise over the clip of one impression.
        impressions: of this user in the whole log, 0 to `MAX_IMPRESSIONS`.
        delta: probability in [`MIN_DELTA`, 1) with which the bound may fail.

    Returns:
        epsilon >= 0, add-or-remove-one user; infinity where it exceeds `MAX_EPSILON`.

    Raises:
        ConfigError: for values out of range.
    """
    if not 0 <= impressions <= MAX_IMPRESSIONS:
        raise ConfigError(f"impressions = {impressions!r}: from 0 to {MAX_IMPRESSIONS}")
    if not MIN_DELTA <= delta < 1:
        raise ConfigError(f"delta = {delta!r}: at least {MIN_DELTA:g} and below 1")
    return _epsilon_of_parts(tuple((group, impressions) for group in composition if impressions), delta)


def epsilon_per_user(events: Iterable[DpEvent], delta: float) -> float:
    """Returns the epsilon (PLD) of a user, of releases whose units are users or impressions; as `user_epsilon`."""
    by_impressions: dict[int, list[DpEvent]] = {}
    for event in events:
        if event.mechanism == "none":
            return math.inf
        by_impressions.setdefault(event.impressions, []).append(event)
    return _epsilon_of_parts(
        tuple((group, count) for count in sorted(by_impressions) for group in compose(by_impressions[count])), delta
    )


def by_rows(events: Iterable[DpEvent], delta: float) -> dict[int, float]:
    """Returns epsilon by the training rows of a user, from 1 to the most that any can have: a public table.

    Which of its lines is a person's own follows from that person's log, which the partner knows and nobody else.
    """
    kept = tuple(events)
    most = max((event.impressions for event in kept), default=1)
    return {
        rows: epsilon_per_user([replace(event, impressions=min(rows, event.impressions)) for event in kept], delta)
        for rows in sorted({rows for rows in _ROWS_SHOWN if rows < most} | {most})
    }


@lru_cache(maxsize=1024)
def _epsilon_of_parts(parts: Parts, delta: float) -> float:
    if all(impressions == 1 for _, impressions in parts):
        return composed_epsilon(tuple(group for group, _ in parts), delta)
    whole = composed_epsilon(merge(_all_at_once(*part) for part in parts), delta)
    if whole == 0 or all(group[0] == 1 for group, _ in parts):
        return whole  # without sampling all impressions join every step, which is one Gaussian
    if math.isinf(composed_epsilon(merge(_half_the_time(*part) for part in parts), delta)):
        return math.inf
    if any(_largest_loss(*part) > _MAX_STEP_LOSS for part in parts):
        return math.inf
    interval = _interval(parts)
    total = None
    for (rate, noise, steps), impressions in parts:
        part = self_compose(_step(rate, noise, impressions, interval), steps)
        total = part if total is None else total.compose(part)
    found = float(total.get_epsilon_for_delta(delta))  # type: ignore[union-attr]  # there are parts here
    return min(found, whole) if min(found, whole) <= MAX_EPSILON else math.inf


def _all_at_once(group: Group, impressions: int) -> Group:
    """Returns the steps as they would be if a user's impressions were all sampled, or none: never cheaper.

    Any of them is sampled with probability 1 - (1 - q)^m, and then moves the sum by m clips at most.
    """
    rate, noise, steps = group
    return -math.expm1(impressions * math.log1p(-rate)) if rate < 1 else 1.0, noise / impressions, steps


def _half_the_time(group: Group, impressions: int) -> Group:
    """Returns steps that cost less and are soon accounted: the median number of impressions where that or more join."""
    rate, noise, steps = group
    if rate == 1:
        return 1.0, noise / impressions, steps
    median = max(1, int(binom.median(impressions, rate)))
    return min(1.0, float(binom.sf(median - 1, impressions, rate))), noise / median, steps


@lru_cache(maxsize=64)
def _step(rate: float, noise: float, impressions: int, interval: float) -> Any:
    if rate == 1:
        return privacy_loss_distribution.from_gaussian_mechanism(
            noise / impressions, value_discretization_interval=interval
        )
    sensitivities, probabilities = sensitivity_distribution(impressions, rate)
    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        noise, sensitivities, probabilities, value_discretization_interval=interval
    )


def sensitivity_distribution(impressions: int, rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns by how many clips a user moves a step's sum, and how probably; tails are rounded up.

    Both arrays are of equal length; the probabilities are those of Binomial(impressions, rate), where tails of mass
    `_NO_MASS` are given the next larger number that is kept, or all impressions: never less than the truth.
    """
    count_K = np.arange(impressions + 1)
    mass_K = binom.pmf(count_K, impressions, rate)
    low = int(np.searchsorted(np.cumsum(mass_K), _NO_MASS))
    above = np.flatnonzero(np.cumsum(mass_K[::-1])[::-1] >= _NO_MASS)
    high = int(above[-1])
    kept_K, sensitivity_K = mass_K[low : high + 1].copy(), count_K[low : high + 1].astype(np.float64)
    kept_K[0] += mass_K[:low].sum()
    if high < impressions:
        kept_K, sensitivity_K = np.append(kept_K, mass_K[high + 1 :].sum()), np.append(sensitivity_K, impressions)
    return sensitivity_K, kept_K / kept_K.sum()


def _largest_loss(group: Group, impressions: int) -> float:
    """Returns the largest privacy loss of a step, short of outcomes of mass `_NO_LOSS_MASS`."""
    rate, noise, _ = group
    sensitivity_K, mass_K = sensitivity_distribution(impressions, rate)
    likely_K = mass_K > _NO_LOSS_MASS
    # Where each component's own tail ends; the mixture's ends at the furthest.
    edge = float(np.max(sensitivity_K[likely_K] + noise * norm.isf(_NO_LOSS_MASS / mass_K[likely_K])))
    return float(logsumexp(np.log(mass_K) + sensitivity_K * (edge - sensitivity_K / 2) / noise**2))


def _interval(parts: Parts) -> float:
    """Returns the discretisation interval: a 16th of a step's deviation, as `accountants` has it, or what fits."""
    wanted = min(1e-2, *(_loss_deviation(*part) / 16 for part in parts))
    floor = max(_largest_loss(*part) for part in parts) / _MAX_STEP_BINS
    return float(2.0 ** math.floor(math.log2(max(wanted, floor))))


def _loss_deviation(group: Group, impressions: int) -> float:
    """Returns about one standard deviation of a step's privacy loss; understates it for many impressions."""
    rate, noise, _ = group
    return math.sqrt(impressions) * rate * math.sqrt(math.expm1(min(noise**-2, 30.0))) if rate < 1 else 1 / noise
