"""Epsilons that no accountant may go below, from closed forms and from one test; nothing here is the project's."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    s = noise_multiplier

    def gap(e: float) -> float:
        return float(norm.cdf(0.5 / s - e * s) - math.exp(e + norm.logcdf(-0.5 / s - e * s)) - delta)

    return float(brentq(gap, 0, 500, xtol=1e-12)) if gap(0) > 0 else 0.0


def one_sampled_step_epsilon(noise_multiplier: float, sampling_rate: float, delta: float) -> float:
    """The exact epsilon of one Poisson-sampled Gaussian step, the removed user's direction, which is the larger."""
    s, q = noise_multiplier, sampling_rate

    def gap(e: float) -> float:
        edge = s**2 * math.log((math.exp(e) - 1 + q) / q) + 0.5  # where the likelihood ratio is e^epsilon
        tail = norm.sf(edge / s)
        return float((1 - q) * tail + q * norm.sf((edge - 1) / s) - math.exp(e) * tail - delta)

    return float(brentq(gap, 1e-9, 100, xtol=1e-12))


def sum_test_epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """A lower bound on the epsilon of many sampled steps: what it takes for one attack, a threshold on their sum.

    With the user, the sum is Normal(K, steps sigma^2), K ~ Binomial(steps, q); without, Normal(0, steps sigma^2). Any
    (epsilon, delta) that holds has P(with) <= e^epsilon P(without) + delta, for every threshold.
    """
    s = noise_multiplier * math.sqrt(steps)
    count_K = np.arange(steps + 1)
    mass_K = binom.pmf(count_K, steps, sampling_rate)
    best = 0.0
    for threshold in np.linspace(-4 * s, steps * sampling_rate + 8 * s, 200):
        with_user = float(mass_K @ norm.sf((threshold - count_K) / s))
        without = float(norm.sf(threshold / s))
        if with_user > delta and without > 0:
            best = max(best, math.log((with_user - delta) / without))
    return best
