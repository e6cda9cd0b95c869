"""Many epsilons in little time, for tables and searches: the PLD accountant's bound in a few milliseconds.

The same analysis as `common.privacy.accountants.pld_epsilon` (connect the dots, both directions of adjacency, mass that
was cut off counted as infinite loss), for one kind of step at a time and written over whole arrays. What is charged to
a partner goes through the accountant proper; what is printed here is an upper bound too, and the tests hold the two
together.

Legend: K points of the grid of privacy losses.
Source: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, "Connect the Dots: Tighter Discrete Approximations of Privacy
Loss Distributions", section 4; Balle and Wang 2018, "Improving the Gaussian Mechanism", theorem 8 (without sampling).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from common.privacy.accounting import MAX_EPSILON, composed_epsilon
from common.privacy.calibrate import MAX_CALIBRATED_NOISE, MIN_CALIBRATED_NOISE, calibrate_noise

Float = NDArray[np.float64]

_CUT_MASS = 1e-15  # of a composition, beyond what the transform holds; it counts as infinite loss
_EDGE_DEVIATIONS = 8.5  # of the noise, where a step's grid ends
_MAX_BINS = 2**18
_MAX_STEPS = 2**14  # more, and rounding of the transform could reach the tail: the accountant proper goes by blocks
_MIN_DELTA = 1e-9
_MAX_STEP_LOSS = 500.0  # e to the power of more overflows
_MAX_RESULT = 100.0  # beyond it, e^epsilon times a rounding error matters
_ORDERS = (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 12.0)  # of the Chernoff bound, over the deviation
_SEARCHES = 12
_BUMPS = 4
_SLACK = 2e-4  # how far under the wished epsilon a search may end, before the noise is rounded


@dataclass(frozen=True)
class _Losses:
    """The privacy losses of one step in one direction: `masses_K` at (first + k) * interval, the rest infinite."""

    first: int
    interval: float
    masses_K: Float
    infinite: float


def quick_epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Returns an upper bound on the epsilon of `steps` equal steps, as `composed_epsilon` does, but sooner.

    Cases that the quick way cannot hold (very many steps, tiny delta, epsilon over 100) go to the accountant proper.

    Args:
        noise_multiplier: standard deviation of the noise over the clip, > 0.
        sampling_rate: probability with which each unit joins each step, in (0, 1].
        steps: >= 0.
        delta: probability with which the bound may fail.
    """
    if steps == 0:
        return 0.0
    if sampling_rate >= 1:
        return gaussian_epsilon(noise_multiplier / math.sqrt(steps), delta)
    found = math.nan
    largest = _loss(_EDGE_DEVIATIONS * noise_multiplier + 1, noise_multiplier, sampling_rate)
    if steps <= _MAX_STEPS and delta >= _MIN_DELTA and largest <= _MAX_STEP_LOSS:
        found = max(_composed(losses, steps, delta) for losses in _step(noise_multiplier, sampling_rate))
    if found <= _MAX_RESULT:  # false for not-a-number
        return found
    return composed_epsilon(((sampling_rate, noise_multiplier, steps),), delta)


def quick_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Returns about the least noise multiplier, in thousandths, whose `quick_epsilon` is at most the wished one.

    Formal guarantees:
        - `quick_epsilon` of `steps` steps with it is at most `epsilon`;
        - it is over `calibrate_noise` by one part in a thousand and one thousandth at most.

    Raises:
        ConfigError: as `calibrate_noise`.
    """
    if not (0 < epsilon < MAX_EPSILON and 0 < sampling_rate <= 1 and steps >= 1):
        return calibrate_noise(epsilon, delta, sampling_rate, steps)  # which says what is wrong
    noise = _in_thousandths(_search(epsilon, delta, sampling_rate, steps))
    for _ in range(_BUMPS):
        if noise <= MAX_CALIBRATED_NOISE and quick_epsilon(noise, sampling_rate, steps, delta) <= epsilon:
            return noise
        noise = _in_thousandths(noise * (1 + 1e-6))
    return calibrate_noise(epsilon, delta, sampling_rate, steps)


def _search(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Returns where the cost is just under `epsilon`, by secants of log cost over log noise from the first guess."""
    noise, aim = _first_guess(epsilon, delta, sampling_rate, steps), epsilon * (1 - _SLACK / 2)
    slope = -1.0  # of log epsilon over log noise; learnt while searching
    before: tuple[float, float] | None = None
    for _ in range(_SEARCHES):
        noise = min(max(noise, MIN_CALIBRATED_NOISE), MAX_CALIBRATED_NOISE)
        cost = quick_epsilon(noise, sampling_rate, steps, delta)
        if epsilon * (1 - _SLACK) <= cost <= epsilon or (cost <= epsilon and noise == MIN_CALIBRATED_NOISE):
            return noise
        if not 0 < cost < math.inf:
            noise *= 2 if cost else 0.5
            continue
        if before and before[0] != noise and before[1] != cost:
            slope = min(-0.2, math.log(cost / before[1]) / math.log(noise / before[0]))
        before = (noise, cost)
        noise *= (aim / cost) ** (1 / slope)
    return noise


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Returns the exact epsilon of one Gaussian mechanism of sensitivity 1; infinity beyond `MAX_EPSILON`."""
    if _gaussian_delta(0.0, noise_multiplier) <= delta:
        return 0.0
    if _gaussian_delta(MAX_EPSILON, noise_multiplier) > delta:
        return math.inf
    return float(brentq(lambda e: _gaussian_delta(e, noise_multiplier) - delta, 0.0, MAX_EPSILON, xtol=1e-12))


@lru_cache(maxsize=256)
def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Returns the least noise multiplier of one Gaussian mechanism for an epsilon: the price of privacy itself.

    In the limit of many steps, however they sample, progress over noise comes to the units over this, and no further.
    """
    low = high = 1.0
    while _gaussian_delta(epsilon, high) > delta:
        high *= 2
    while _gaussian_delta(epsilon, low) <= delta:
        low /= 2
    return float(brentq(lambda noise: _gaussian_delta(epsilon, noise) - delta, low, high, xtol=1e-12))


def _gaussian_delta(epsilon: float, noise: float) -> float:
    second = epsilon + float(log_ndtr(-0.5 / noise - epsilon * noise))
    return float(ndtr(0.5 / noise - epsilon * noise)) - math.exp(second)


def _first_guess(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Returns the noise that the central limit theorem suggests; it understates, and is only where a search starts."""
    whole = 1 / gaussian_noise_multiplier(epsilon, delta)
    if sampling_rate >= 1:
        return math.sqrt(steps) / whole * (1 + 1e-12)
    return 1 / math.sqrt(math.log1p(whole**2 / (sampling_rate**2 * steps)))


def _in_thousandths(noise: float) -> float:
    return max(math.ceil(min(noise, 1e9) * 1000 - 1e-9) / 1000, MIN_CALIBRATED_NOISE)


@lru_cache(maxsize=16)
def _step(noise: float, rate: float) -> tuple[_Losses, ...]:
    """Returns the losses of one Poisson-sampled step: with the unit against without it, and the other way round."""
    edge = _EDGE_DEVIATIONS * noise
    interval = _interval(noise, rate)
    highest = _loss(edge + 1, noise, rate)
    lowest = max(_loss(-edge, noise, rate), math.log1p(-rate) + 1e-9)
    remove = _connect(interval, math.floor(lowest / interval), math.ceil(highest / interval), noise, rate, add=False)
    add = _connect(interval, math.floor(-highest / interval), math.ceil(-lowest / interval), noise, rate, add=True)
    return remove, add


def _interval(noise: float, rate: float) -> float:
    """Returns a 16th of the deviation of a step's loss, as the accountant proper takes it, or what fits in memory."""
    deviation = rate * math.sqrt(math.expm1(min(noise**-2, 30.0)))
    widest = _loss(_EDGE_DEVIATIONS * noise + 1, noise, rate)
    return float(2.0 ** math.floor(math.log2(max(min(deviation / 16, 1e-2), widest / 2**14))))


def _loss(x: float, noise: float, rate: float) -> float:
    """Returns the log ratio at x of the densities with the unit (mixture of 0 and 1) and without it (0)."""
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + (x - 0.5) / noise**2))


def _connect(interval: float, first: int, last: int, noise: float, rate: float, *, add: bool) -> _Losses:
    """Returns the distribution on the grid whose trade-off touches the true one at every grid point."""
    epsilon_K: Float = np.arange(first, last + 1, dtype=np.float64) * interval
    delta_K = _deltas(epsilon_K, noise, rate, add=add)
    step_K = -np.diff(delta_K)
    masses_K = np.empty_like(delta_K)
    masses_K[1:] = step_K / -math.expm1(-interval)
    masses_K[1:-1] -= step_K[1:] / math.expm1(interval)
    masses_K[0] = 1 - delta_K[0] - step_K[0] / math.expm1(interval)
    return _Losses(first, interval, np.maximum(masses_K, 0.0), float(delta_K[-1]))


def _deltas(epsilon_K: Float, noise: float, rate: float, *, add: bool) -> Float:
    """Returns the hockey-stick divergence of one step at each epsilon."""
    sign = -1.0 if add else 1.0
    # Where the loss is epsilon: sigma^2 log((e^epsilon - 1 + q) / q) + 1/2, of -epsilon in the other direction.
    with np.errstate(divide="ignore", invalid="ignore"):
        inside_K = np.expm1(sign * epsilon_K) + rate
        x_K = np.where(inside_K > 0, noise**2 * (np.log(np.maximum(inside_K, 1e-300) / rate)) + 0.5, -np.inf)
    zero_K, one_K = log_ndtr(-sign * x_K / noise), log_ndtr(-sign * (x_K - 1) / noise)
    found_K: Float
    if add:
        mixed_K = np.logaddexp(math.log1p(-rate) + zero_K, math.log(rate) + one_K)
        found_K = np.exp(zero_K) - np.exp(epsilon_K + mixed_K)
    else:
        found_K = (1 - rate) * np.exp(zero_K) + rate * np.exp(one_K) - np.exp(epsilon_K + zero_K)
    return np.maximum(found_K, 0.0)


def _composed(step: _Losses, steps: int, delta: float) -> float:
    """Returns the epsilon of `steps` steps in one direction, or not-a-number where they do not fit."""
    low, high = _bounds(step, steps)
    size = next_fast_len(max(high - low + 1, len(step.masses_K)), real=True)
    if size > _MAX_BINS:
        return math.nan
    turned_K = np.roll(irfft(rfft(step.masses_K, size) ** steps, size), -low)[: high - low + 1]
    loss_K: Float = (step.first * steps + low + np.arange(len(turned_K), dtype=np.float64)) * step.interval
    infinite = _CUT_MASS - math.expm1(steps * math.log1p(-step.infinite))
    return _epsilon_of(loss_K, np.maximum(turned_K, 0.0), infinite, delta)


def _bounds(step: _Losses, steps: int) -> tuple[int, int]:
    """Returns the grid points, over `steps * first`, outside of which the composition has `_CUT_MASS` at most."""
    index_K = np.arange(len(step.masses_K), dtype=np.float64)
    total = step.masses_K.sum()
    mean = float(step.masses_K @ index_K / total)
    deviation = math.sqrt(max(float(step.masses_K @ (index_K - mean) ** 2 / total), 1e-6) * steps)
    with np.errstate(divide="ignore"):
        log_mass_K = np.log(step.masses_K)
    cut = -_chernoff(log_mass_K, -index_K, steps, deviation)
    end = _chernoff(log_mass_K, index_K, steps, deviation)
    return max(0, math.floor(cut)), min((len(index_K) - 1) * steps, math.ceil(end))


def _chernoff(log_mass_K: Float, index_K: Float, steps: int, deviation: float) -> float:
    """Returns a point over which the sum of `steps` draws has half of `_CUT_MASS` at most; any order gives one."""
    best = math.inf
    for order in _ORDERS:
        tilt = order / deviation
        tilted_K = log_mass_K + tilt * index_K
        most = float(tilted_K.max())
        moment = most + math.log(float(np.exp(tilted_K - most).sum()))
        edge = (steps * moment + math.log(2 / _CUT_MASS)) / tilt
        if edge > best:  # the bound falls and then rises with the order
            break
        best = edge
    return best


def _epsilon_of(loss_K: Float, mass_K: Float, infinite: float, delta: float) -> float:
    """Returns the least epsilon >= 0 whose hockey-stick divergence is at most delta."""
    if infinite > delta:
        return math.inf
    start = int(np.searchsorted(loss_K, 0.0, side="right"))  # smaller losses never count
    loss_K, mass_K = loss_K[start:], mass_K[start:]
    upper_K = infinite + np.cumsum(mass_K[::-1])[::-1]
    lower_K = np.cumsum((mass_K * np.exp(-loss_K))[::-1])[::-1]
    if not len(loss_K) or upper_K[0] - lower_K[0] <= delta:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        delta_K = upper_K - np.exp(loss_K) * lower_K
    over = np.flatnonzero(~(delta_K <= delta))
    first = int(over[-1]) + 1 if len(over) else 0
    if first >= len(loss_K) or not lower_K[first] > 0:
        return math.nan
    return float(math.log((upper_K[first] - delta) / lower_K[first]))
