"""A user's epsilon where impressions are the unit: known limits, the design's figures, an attack as a lower bound."""

import math

import numpy as np
import pytest
from lower_bounds import gaussian_epsilon
from scipy.stats import binom, norm

from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon
from common.privacy.mixture import MAX_IMPRESSIONS, sensitivity_distribution, user_epsilon

DELTA = 1e-6
DESIGN = ((0.01024, 1.0, 488),)


@pytest.mark.parametrize(("impressions", "low", "high"), [(2, 3.35, 3.45), (10, 20.5, 21.5), (20, 50.5, 51.5)])
def test_the_designs_figures(impressions: int, low: float, high: float) -> None:
    assert low <= user_epsilon(DESIGN, impressions, DELTA) < high


def test_the_designs_figure_for_fifty() -> None:
    assert user_epsilon(DESIGN, 50, DELTA) == pytest.approx(185, abs=0.5)


def test_one_impression_is_the_sampled_gaussian_itself() -> None:
    for composition in (DESIGN, ((0.25, 2.0, 40), (1.0, 5.0, 3))):
        assert user_epsilon(composition, 1, DELTA) == composed_epsilon(composition, DELTA)


def test_nothing_costs_nothing() -> None:
    assert user_epsilon(DESIGN, 0, DELTA) == 0.0
    assert user_epsilon((), 7, DELTA) == 0.0


def test_without_sampling_all_impressions_are_one_gaussian() -> None:
    found = user_epsilon(((1.0, 10.0, 3),), 4, DELTA)
    assert gaussian_epsilon(10 / 4 / math.sqrt(3), DELTA) <= found <= gaussian_epsilon(2.5 / math.sqrt(3), DELTA) + 0.01


def attack_epsilon(noise: float, rate: float, steps: int, impressions: int) -> float:
    """What a threshold on the sum of all steps shows; the count is Binomial(steps x impressions, rate)."""
    s = noise * math.sqrt(steps)
    count_K = np.arange(steps * impressions + 1)
    mass_K = binom.pmf(count_K, steps * impressions, rate)
    best = 0.0
    for threshold in np.linspace(0, steps * impressions * rate + 6 * s, 200):
        with_user, without = float(mass_K @ norm.sf((threshold - count_K) / s)), float(norm.sf(threshold / s))
        if with_user > DELTA and without > 0:
            best = max(best, math.log((with_user - DELTA) / without))
    return best


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "impressions"), [(5.0, 0.3, 20, 3), (2.0, 0.1, 50, 5), (20.0, 0.5, 100, 10)]
)
def test_never_below_what_one_attack_shows_and_never_above_all_at_once(
    noise: float, rate: float, steps: int, impressions: int
) -> None:
    found = user_epsilon(((rate, noise, steps),), impressions, DELTA)
    joined = 1 - (1 - rate) ** impressions
    assert attack_epsilon(noise, rate, steps, impressions) <= found
    assert found <= composed_epsilon(((joined, noise / impressions, steps),), DELTA)


def test_more_impressions_cost_more() -> None:
    costs = [user_epsilon(((0.05, 4.0, 50),), impressions, DELTA) for impressions in (1, 2, 3, 6, 12)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1] / 5


def test_different_steps_compose() -> None:
    first, second = ((0.05, 4.0, 50),), ((1.0, 30.0, 2),)
    both = user_epsilon(first + second, 3, DELTA)
    alone = [user_epsilon(first, 3, DELTA), user_epsilon(second, 3, DELTA)]
    assert max(alone) < both < sum(alone)


def test_hopeless_cases_are_infinite_and_soon() -> None:
    assert user_epsilon(DESIGN, 2000, DELTA) == math.inf
    assert user_epsilon(((0.25, 20.0, 20),), 1000, DELTA) == math.inf
    assert user_epsilon(((0.5, 1e-3, 1),), 2, DELTA) == math.inf


@pytest.mark.parametrize(("impressions", "rate"), [(3, 0.5), (50, 0.01), (5000, 0.3), (MAX_IMPRESSIONS, 1e-3)])
def test_how_many_join_is_binomial_and_cut_tails_are_rounded_up(impressions: int, rate: float) -> None:
    count_K, mass_K = sensitivity_distribution(impressions, rate)
    assert mass_K.sum() == pytest.approx(1, abs=1e-12)
    assert float(mass_K @ count_K) == pytest.approx(impressions * rate, rel=1e-9)
    assert (np.diff(count_K) > 0).all()
    assert len(count_K) <= 3000
    for threshold in count_K[:: max(1, len(count_K) // 7)]:  # never a smaller chance to move the sum by so much
        assert mass_K[count_K >= threshold].sum() >= binom.sf(threshold - 1, impressions, rate) * (1 - 1e-9)


@pytest.mark.parametrize(("impressions", "delta"), [(-1, 1e-5), (MAX_IMPRESSIONS + 1, 1e-5), (2, 0.0), (2, 1.0)])
def test_values_out_of_range_are_refused(impressions: int, delta: float) -> None:
    with pytest.raises(ConfigError, match=r"impressions = |delta = "):
        user_epsilon(DESIGN, impressions, delta)
