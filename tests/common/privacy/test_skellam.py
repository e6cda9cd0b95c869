"""Skellam against Gaussian: the bound over the exact divergence, the gap, sampling, the tail."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import skellam

from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon
from common.privacy.skellam import (
    ORDERS,
    gaussian_rdp,
    largest_l1,
    relative_gap,
    skellam_rdp,
    subsampled_epsilon,
    tail_probability,
)


def exact_divergence(order: int, variance: float, shift: int) -> float:
    """The Rényi divergence of one coordinate's Skellam noise from itself, shifted: summed term by term."""
    reach = math.ceil(40 * math.sqrt(variance) + 40 * shift * order)
    k = np.arange(-reach, reach + 1)
    log_p, log_q = (skellam.logpmf(k - by, variance / 2, variance / 2) for by in (shift, 0))
    kept = np.isfinite(log_p) & np.isfinite(log_q)
    return float(logsumexp(order * log_p[kept] + (1 - order) * log_q[kept])) / (order - 1)


@pytest.mark.parametrize("variance", [4.0, 25.0, 100.0])
@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_the_bound_is_over_the_exact_divergence_and_near_it(variance: float, shift: int, order: int) -> None:
    exact = exact_divergence(order, variance, shift)
    bound = skellam_rdp(order, variance, shift, shift)
    assert 0 < exact <= bound
    if 4 * order * shift <= variance:  # further out the noise's own tail, heavier than a Gaussian's, protects more
        assert gaussian_rdp(order, variance, shift) * 0.95 < exact
        assert bound <= exact * (1 + 12 / variance)


def test_by_hand() -> None:
    # 3 x 4 / (2 x 10) + min((5 x 4 + 6 x 2) / (4 x 100), 3 x 2 / 20) = .6 + min(.08, .3)
    assert skellam_rdp(3, 10.0, 2.0, 2.0) == pytest.approx(0.68)
    # A small variance: the other branch, 3 x 2 / (2 x 1), is the smaller of (20 + 12) / 4 and 3.
    assert skellam_rdp(3, 1.0, 2.0, 2.0) == pytest.approx(6 + 3)


def test_the_l1_norm_of_whole_numbers() -> None:
    assert largest_l1(3.0, 4) == 6.0  # sqrt(D) limits
    assert largest_l1(3.0, 100) == 9.0  # whole numbers: |x| <= x^2


@pytest.mark.parametrize(("bits", "most"), [(16, 1e-9), (18, 1e-10), (8, 1e-4)])
def test_the_gap_at_the_grids_in_use(bits: int, most: float) -> None:
    gaps = [relative_gap(order, 1.0, 2**bits, 74_500) for order in (2, 8, 64)]
    assert all(0 < gap < most for gap in gaps)


def test_sampling_by_the_gaussians_bound_agrees_with_the_rdp_accountant() -> None:
    for noise, rate, steps in [(1.0, 0.01024, 488), (1.0, 0.1, 50), (3.0, 0.5, 20)]:
        rdp_A = np.array([gaussian_rdp(order, noise**2, 1) for order in ORDERS])
        own = subsampled_epsilon(rdp_A, rate, steps, 1e-6, gaussian=True)
        library = composed_epsilon(((rate, noise, steps),), 1e-6, "rdp")  # which has fractional orders as well
        assert library * (1 - 1e-6) <= own <= library * 1.03


def test_an_unknown_mechanism_costs_more_than_a_gaussian_and_less_than_without_sampling() -> None:
    rdp_A = np.array([skellam_rdp(order, 2.0**32, 2.0**16, largest_l1(2.0**16, 74_500)) for order in ORDERS])
    generic = subsampled_epsilon(rdp_A, 0.01024, 488, 1e-6)
    gaussian = subsampled_epsilon(rdp_A, 0.01024, 488, 1e-6, gaussian=True)
    assert gaussian < generic < subsampled_epsilon(rdp_A, 1.0, 488, 1e-6)
    assert subsampled_epsilon(rdp_A, 0.01024, 0, 1e-6) == 0.0


@pytest.mark.parametrize(("variance", "distance"), [(4.0, 5), (100.0, 30), (100.0, 80), (1e4, 600)])
def test_the_tail_bound_is_over_the_tail(variance: float, distance: int) -> None:
    tail = 2 * float(skellam.sf(distance - 1, variance / 2, variance / 2))
    assert tail <= tail_probability(variance, distance) <= max(40 * tail, 1e-12)


def test_the_tail_bound_of_fine_grids_is_the_gaussians() -> None:
    variance = 2.0**40
    for deviations in (2.0, 6.0, 10.0):
        found = tail_probability(variance, deviations * 2.0**20)
        assert found == pytest.approx(min(1.0, 2 * math.exp(-(deviations**2) / 2)), rel=1e-6)
    assert tail_probability(variance, 0) == 1.0
    assert tail_probability(variance, -5) == 1.0


@pytest.mark.parametrize(("order", "variance"), [(1, 1.0), (2.5, 1.0), (2, 0.0), (2, -1.0)])
def test_values_out_of_range_are_refused(order: int, variance: float) -> None:
    with pytest.raises(ConfigError, match=r"order = |variance = "):
        skellam_rdp(order, variance, 1.0, 1.0)
