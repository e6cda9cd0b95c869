"""Planning: figures of size by hand, larger rates win, the recommended line, and what can leave a range."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm, skellam

from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon
from common.privacy.calibrate import calibrate_noise
from common.privacy.plan import (
    NEAR_THE_BEST,
    Setting,
    adam_reach,
    confirmed,
    plan_choices,
    recommended,
    sgd_clamp_probability,
    wrap_probability,
)
from common.privacy.quick import gaussian_noise_multiplier

SETTING = Setting(epsilon=2.0, delta=1e-6, units=1000, sums=4, local_steps=2, parameters=400)
COURSES = {10: range(0, 22, 2), 20: range(0, 42, 2)}  # two steps a round, every partner in every round
RATES = (0.05, 0.2, 1.0)


def test_one_choice_per_rate_and_number_of_rounds() -> None:
    choices = plan_choices(SETTING, RATES, COURSES)
    assert [(one.sampling_rate, one.rounds, one.steps) for one in choices] == [
        (rate, rounds, 2 * rounds) for rate in RATES for rounds in (10, 20)
    ]


def test_the_figures_by_hand() -> None:
    (choice,) = plan_choices(SETTING, [0.2], {10: COURSES[10]})
    noise = choice.noise_multiplier
    assert noise == calibrate_noise(2.0, 1e-6, 0.2, 20)
    assert choice.step_noise == pytest.approx(noise * 20 / 200)  # sqrt(400) coordinates, .2 x 1000 users
    assert choice.run_noise == pytest.approx(choice.step_noise / math.sqrt(20 * 4))  # 20 steps, 4 partners
    assert choice.uses == pytest.approx(4.0)
    assert choice.efficiency == pytest.approx(0.2 * math.sqrt(20) * gaussian_noise_multiplier(2.0, 1e-6) / noise)
    stops = [2, 6, 10, 20]  # after 1 round, 3 (a quarter, rounded up), 5 and 10
    spent = [composed_epsilon(((0.2, noise, steps),), 1e-6) for steps in stops]
    assert choice.epsilons == pytest.approx(spent, rel=1e-6)


def test_noise_beyond_what_is_accounted_counts_in_size_and_not_in_epsilon() -> None:
    (plain,) = plan_choices(SETTING, [0.2], {10: COURSES[10]})
    (more,) = plan_choices(replace(SETTING, extra_noise=1.5), [0.2], {10: COURSES[10]})
    assert more.step_noise == pytest.approx(1.5 * plain.step_noise)
    assert (more.noise_multiplier, more.epsilons) == (plain.noise_multiplier, plain.epsilons)


def test_larger_rates_win_by_ever_less() -> None:
    choices = plan_choices(SETTING, (0.01, 0.05, 0.2, 0.5, 1.0), {10: COURSES[10]})
    noises = [one.run_noise for one in choices]
    assert noises == sorted(noises, reverse=True)
    assert choices[-1].efficiency == pytest.approx(1.0, abs=2e-3)
    gains = [before / after for before, after in itertools.pairwise(noises)]
    assert gains == sorted(gains, reverse=True)


def test_noise_per_progress_falls_threefold_as_the_design_says() -> None:
    """Epsilon 2, five epochs: from a rate of .001 to one of .164."""
    whole = Setting(epsilon=2.0, delta=1e-6, units=1e5)
    (small,) = plan_choices(whole, [0.001], {5000: range(5001)})
    (large,) = plan_choices(whole, [0.164], {30: range(31)})
    assert small.uses == pytest.approx(5, rel=0.02)
    assert large.uses == pytest.approx(5, rel=0.02)
    assert 2.5 < small.run_noise / large.run_noise < 3.5


def test_the_recommended_line_is_the_least_used_of_the_best() -> None:
    choices = plan_choices(SETTING, (0.01, 0.05, 0.2, 0.5, 1.0), COURSES)
    best = recommended(choices, 20)
    same = [one for one in choices if one.rounds == 20]
    least = min(one.run_noise for one in same)
    assert best.rounds == 20
    assert best.run_noise <= least / NEAR_THE_BEST
    assert all(one.run_noise > least / NEAR_THE_BEST for one in same if one.uses < best.uses)


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_a_confirmed_choice_is_what_a_run_would_be_calibrated_to(rate: float) -> None:
    (choice,) = plan_choices(SETTING, [rate], {10: COURSES[10]})
    sure = confirmed(SETTING, choice, COURSES[10])
    assert sure.noise_multiplier == calibrate_noise(2.0, 1e-6, rate, 20)
    assert sure.epsilons[-1] == composed_epsilon(((rate, sure.noise_multiplier, 20),), 1e-6) <= 2.0
    assert sure.step_noise == pytest.approx(sure.noise_multiplier * 20 / (rate * 1000))


@pytest.mark.parametrize("wrong", [0.7, 1.3])
def test_a_wrong_noise_is_not_confirmed(wrong: float) -> None:
    (choice,) = plan_choices(SETTING, [0.5], {10: COURSES[10]})
    shifted = replace(choice, noise_multiplier=round(wrong * choice.noise_multiplier, 3))
    assert confirmed(SETTING, shifted, COURSES[10]).noise_multiplier == calibrate_noise(2.0, 1e-6, 0.5, 20)


@pytest.mark.parametrize("changes", [{"units": 0.5}, {"parameters": 0}, {"sums": 0}, {"delta": 0.0}, {"delta": 1.0}])
def test_a_setting_out_of_range_is_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} = "):
        replace(SETTING, **changes)  # type: ignore[arg-type]


def test_adam_moves_no_further_than_its_reach_and_can_come_near() -> None:
    def moved(gradients: list[float]) -> float:
        first = second = total = 0.0
        for step, gradient in enumerate(gradients, 1):
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            total += first / (1 - 0.9**step) / math.sqrt(second / (1 - 0.999**step))
        return abs(total)

    generator = np.random.default_rng(1)
    for steps in (1, 2, 5, 40):
        reach = adam_reach(steps)
        tries = [[1.0] * steps, [3.0**step for step in range(steps)], [1e-6] * (steps - 1) + [1.0]]
        tries += generator.standard_t(1.5, (200, steps)).tolist()
        furthest = max(moved(tried) for tried in tries)
        assert furthest <= reach + 1e-9
        assert furthest >= 0.5 * reach
    assert adam_reach(1) == pytest.approx(1.0)


def test_sgd_clamps_as_often_as_its_noise_reaches_the_bound() -> None:
    # Two steps at rate .5: users move the coordinate by 1 at most, noise by sqrt(2) x .5 x 3; the bound is 7.
    deviation = 0.5 * math.sqrt(2) * 3
    assert sgd_clamp_probability(7.0, 0.5, 2, 1.0, 3.0) == pytest.approx(2 * norm.sf(6 / deviation))
    assert sgd_clamp_probability(1.0, 0.5, 2, 1.0, 3.0) == 1.0  # the users alone reach it
    assert sgd_clamp_probability(7.0, 0.5, 2, 1.0, 0.0) == 0.0


def test_a_sum_wraps_no_oftener_than_the_bound() -> None:
    limit, grid, units, rate, deviation = 60, 4, 20, 0.3, 9.0
    count_K = np.arange(units + 1)
    # All sampled users at their bound on one side, exactly.
    exact = float(
        binom.pmf(count_K, units, rate) @ skellam.sf(limit - 1 - count_K * grid, deviation**2 / 2, deviation**2 / 2)
    )
    found = wrap_probability(limit, grid, units, rate, deviation)
    assert exact <= found < 1000 * exact


def test_what_cannot_be_excluded_is_one_and_what_cannot_happen_is_nothing() -> None:
    assert wrap_probability(2**31, 2**16, 100_000, 1.0, 2.0**16) == 1.0  # 100,000 users of 2^16 each
    assert wrap_probability(2**31, 2**16, 1_024, 1.0, 2.0**16) < 1e-100
    assert wrap_probability(2**31, 2**16, 100_000, 0.01024, 2.0**16) < 1e-50
