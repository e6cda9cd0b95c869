"""How far Skellam noise is from Gaussian noise of the same variance: in privacy, and in its tail.

A noised step of the distributed mode holds whole numbers with Skellam noise (Poisson minus Poisson, closed under sums).
It is accounted as a Gaussian of the same variance, since the Rényi divergences differ by the tiny gap that is worked
out here. `subsampled_epsilon` does without that step, by a bound for any mechanism, and so gives a larger number.

Source: Agarwal, Kairouz, Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning", corollary
3.6; Zhu and Wang 2019, "Poisson Subsampled Rényi Differential Privacy", theorem 5; Canonne, Kamath, Steinke 2020,
proposition 12 (to epsilon and delta).
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from common.errors import ConfigError

ORDERS = tuple(range(2, 129))


def gaussian_rdp(order: float, variance: float, l2: float) -> float:
    """Returns the Rényi divergence of the Gaussian mechanism: order * l2^2 / (2 variance)."""
    return order * l2**2 / (2 * variance)


def skellam_rdp(order: int, variance: float, l2: float, l1: float) -> float:
    """Returns an upper bound on the Rényi divergence of the Skellam mechanism on whole numbers.

    Args:
        order: a whole number, at least 2.
        variance: of the noise in one coordinate, in squared grid steps; both Poissons have half of it.
        l2, l1: sensitivity in either norm, in grid steps.

    Raises:
        ConfigError: for values out of range.
    """
    if order < 2 or order != int(order):
        raise ConfigError(f"order = {order!r}: a whole number, at least 2")
    if not (variance > 0 and l2 >= 0 and l1 >= 0):
        raise ConfigError(f"variance = {variance!r}, l2 = {l2!r}, l1 = {l1!r}: over 0, and not negative")
    beyond = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return gaussian_rdp(order, variance, l2) + beyond


def largest_l1(l2: float, dimension: int) -> float:
    """Returns the largest L1 norm of a whole-numbered vector of an L2 norm: l2 * min(sqrt(D), l2)."""
    return l2 * min(math.sqrt(dimension), l2)


def relative_gap(order: int, noise_multiplier: float, grid: int, dimension: int) -> float:
    """Returns by how much, relatively, the Skellam bound is over the Gaussian's at an order.

    Args:
        order: of the divergence, at least 2.
        noise_multiplier: standard deviation of the noise over the clip.
        grid: length, in grid steps, of a clipped gradient.
        dimension: parameters (D).
    """
    variance = (noise_multiplier * grid) ** 2
    gaussian = gaussian_rdp(order, variance, grid)
    return (skellam_rdp(order, variance, grid, largest_l1(grid, dimension)) - gaussian) / gaussian


def subsampled_epsilon(
    rdp_A: NDArray[np.float64], sampling_rate: float, steps: int, delta: float, *, gaussian: bool = False
) -> float:
    """Returns the epsilon of Poisson-sampled steps of a mechanism of which only Rényi bounds are known.

    Args:
        rdp_A: its divergence at the A orders 2, 3, 4, ... without a gap.
        sampling_rate: probability with which each unit joins each step, in (0, 1].
        steps: >= 0.
        delta: probability with which the bound may fail.
        gaussian: leave out the factor 3 that an unknown mechanism costs; it is only known for the Gaussian.
    """
    order_A = np.arange(2, len(rdp_A) + 2, dtype=np.float64)
    if sampling_rate < 1:
        sampled_A = np.array([_sampled(int(order), rdp_A, sampling_rate, gaussian=gaussian) for order in order_A])
    else:
        sampled_A = rdp_A
    epsilon_A = (
        steps * sampled_A + np.log((order_A - 1) / order_A) - (math.log(delta) + np.log(order_A)) / (order_A - 1)
    )
    return max(0.0, float(epsilon_A.min())) if steps else 0.0


def _sampled(order: int, rdp_A: NDArray[np.float64], rate: float, *, gaussian: bool) -> float:
    """Returns the divergence of the sampled mechanism at one whole order."""
    stay = math.log1p(-rate)
    taken_L = np.arange(2, order + 1, dtype=np.float64)
    weight_L = np.full(len(taken_L), 0.0 if gaussian else math.log(3))
    weight_L[0] = 0.0
    ways_L = gammaln(order + 1) - gammaln(taken_L + 1) - gammaln(order - taken_L + 1)
    term_L = weight_L + ways_L + (order - taken_L) * stay + taken_L * math.log(rate)
    term_L += (taken_L - 1) * rdp_A[: order - 1]
    none_or_one = (order - 1) * stay + math.log1p((order - 1) * rate)
    return float(logsumexp(np.append(term_L, none_or_one))) / (order - 1)


def tail_probability(variance: float, distance: float) -> float:
    """Returns a bound on the probability that Skellam noise is at least `distance` away from 0, either way.

    Chernoff's bound at its best order; a Gaussian of the same variance has a smaller tail.
    """
    if distance <= 0:
        return 1.0
    ratio = distance / variance
    # variance (sqrt(1 + r^2) - 1) - distance asinh(r), written so that small ratios lose no digits.
    exponent = variance * (ratio**2 / (1 + math.sqrt(1 + ratio**2)) - ratio * math.asinh(ratio))
    return min(1.0, 2 * math.exp(exponent))
