"""Lower bounds from guesses in one run: by hand, against mechanisms whose epsilon is known, and how much they prove.

Legend: M canaries.
"""

import numpy as np
import pytest
from scipy.special import expit, logit

from common.privacy.onerun import (
    chance_of_guesses,
    epsilon_bound,
    gaussian_epsilon_bound,
    most_provable,
    proved,
)
from common.privacy.quick import gaussian_epsilon

DELTA = 1e-5


def test_without_delta_the_chance_is_a_binomial_tail() -> None:
    """At epsilon 0 a guess is right with 1/2: ten of ten with 2^-10, one or more of two with 3/4."""
    assert chance_of_guesses(10, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
    assert chance_of_guesses(9, 2, 1, 0.0, 0.0) == pytest.approx(0.75)
    assert chance_of_guesses(9, 5, 0, 3.0, 0.0) == 1.0


def test_what_delta_adds_by_hand() -> None:
    """Two right of two at epsilon 0: P[B = 1] / 1 = 1/2 and (P[B = 1] + P[B = 0]) / 2 = 3/8, so 2 m delta / 2."""
    assert chance_of_guesses(7, 2, 2, 0.0, 1e-3) == pytest.approx(0.25 + 2 * 7 * 1e-3 * 0.5)


def test_all_guesses_right_by_hand() -> None:
    """expit(epsilon)^40 = 0.05."""
    assert epsilon_bound(40, 40, 40, 0.0, 0.05) == pytest.approx(logit(0.05 ** (1 / 40)), abs=1e-6)
    assert epsilon_bound(40, 40, 20, 0.0, 0.05) == 0.0
    assert epsilon_bound(40, 40, 40, 1e-5, 0.05) < epsilon_bound(40, 40, 40, 0.0, 0.05)


def test_more_right_guesses_prove_more() -> None:
    for bound in (epsilon_bound, gaussian_epsilon_bound):
        found = [bound(100, 60, correct, DELTA, 0.01) for correct in range(30, 61, 5)]
        assert found == sorted(found)
        assert found[0] == 0.0
        assert found[-1] > 1.5


def test_the_most_that_can_be_proved_is_what_guesses_that_are_all_right_prove() -> None:
    inside_M = np.arange(200) % 3 > 0
    found = proved(inside_M.astype(float), inside_M, DELTA)
    assert found.epsilon <= most_provable(200, DELTA)
    even_M = np.arange(200) % 2 > 0
    assert proved(even_M.astype(float), even_M, DELTA).epsilon == most_provable(200, DELTA)
    assert most_provable(20, DELTA) < most_provable(200, DELTA) < most_provable(2000, DELTA)
    assert most_provable(0, DELTA) == 0.0


def test_no_bound_is_over_the_epsilon_of_randomised_response_more_often_than_it_says() -> None:
    """Every coin is told with probability e / (1 + e), which is epsilon 1 and nothing less."""
    generator, over = np.random.default_rng(1), 0
    for _ in range(200):
        inside_M = generator.random(400) < 0.5
        told_M = inside_M ^ (generator.random(400) >= expit(1.0))
        found = proved(told_M + 1e-6 * generator.random(400), inside_M, 0.0)
        over += found.epsilon > 1.0
    assert over <= 10


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_no_bound_is_over_the_epsilon_of_a_gaussian_more_often_than_it_says(noise: float) -> None:
    generator, plain, gaussian = np.random.default_rng(2), 0, 0
    true = gaussian_epsilon(noise, DELTA)
    for _ in range(60):
        inside_M = generator.random(150) < 0.5
        found = proved(inside_M + noise * generator.standard_normal(150), inside_M, DELTA)
        plain, gaussian = plain + (found.epsilon > true), gaussian + (found.gaussian_epsilon > true)
    assert plain == 0
    assert gaussian <= 3


def test_how_much_of_an_honest_gaussian_is_proved() -> None:
    """What docs/AUDIT.md says: about a third, and about half where it may be taken for a Gaussian."""
    generator, plain, gaussian = np.random.default_rng(3), [], []
    for _ in range(10):
        inside_M = generator.random(1000) < 0.5
        found = proved(inside_M + generator.standard_normal(1000), inside_M, DELTA)
        plain.append(found.epsilon)
        gaussian.append(found.gaussian_epsilon)
    true = gaussian_epsilon(1.0, DELTA)
    assert 0.28 < np.mean(plain) / true < 0.42
    assert 0.42 < np.mean(gaussian) / true < 0.58


def test_scores_that_say_nothing_prove_nothing() -> None:
    inside_M = np.random.default_rng(4).random(300) < 0.5
    for score_M in (np.zeros(300), np.full(300, np.nan), np.random.default_rng(5).random(300)):
        assert proved(score_M, inside_M, DELTA).epsilon < 0.2
    wild_M = np.where(inside_M, np.inf, -np.inf)
    assert proved(wild_M, inside_M, DELTA).epsilon > 3


def test_few_canaries_are_no_error() -> None:
    for count in (0, 1, 2, 3):
        found = proved(np.arange(count, dtype=float), np.ones(count, bool), DELTA)
        assert found.epsilon == 0.0
        assert found.canaries == count
