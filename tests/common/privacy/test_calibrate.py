"""Noise for an epsilon, and steps for a budget: never less privacy than asked, and no noise wasted."""

import math
from dataclasses import replace
from typing import Any

import dp_events
import pytest

from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon, epsilon
from common.privacy.calibrate import MIN_CALIBRATED_NOISE, affordable_steps, calibrate_noise
from common.privacy.events import MAX_STEPS, DpEvent

# epsilon, delta, sampling rate, steps
ASKED = [
    (8.0, 1e-5, 0.25, 40),
    (1.0, 1e-5, 0.25, 40),
    (2.0, 1e-6, 0.01024, 488),
    (0.1, 1e-6, 0.25, 1000),
    (1.0, 1e-6, 1.0, 100),
    (50.0, 1e-5, 0.01, 100),
    (3.0, 1e-8, 0.002, 3000),
]


def release(noise_multiplier: float, sampling_rate: float, steps: int) -> DpEvent:
    return dp_events.release(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


@pytest.mark.parametrize(("asked", "delta", "sampling_rate", "steps"), ASKED)
class TestCalibratedNoise:
    def test_never_less_privacy_than_asked(self, asked: float, delta: float, sampling_rate: float, steps: int) -> None:
        noise = calibrate_noise(asked, delta, sampling_rate, steps)
        assert epsilon([release(noise, sampling_rate, steps)], delta) <= asked
        assert epsilon([release(noise, sampling_rate, steps)], delta, "prv") <= asked + 0.05

    def test_a_thousandth_less_noise_would_not_do(
        self, asked: float, delta: float, sampling_rate: float, steps: int
    ) -> None:
        noise = calibrate_noise(asked, delta, sampling_rate, steps)
        assert noise == round(noise, 3)
        assert epsilon([release(round(noise - 0.001, 3), sampling_rate, steps)], delta) > asked

    def test_the_budget_affords_exactly_what_it_was_calibrated_for(
        self, asked: float, delta: float, sampling_rate: float, steps: int
    ) -> None:
        noise = calibrate_noise(asked, delta, sampling_rate, steps)
        affordable = affordable_steps(asked, delta, sampling_rate, noise)
        assert affordable >= steps
        assert epsilon([release(noise, sampling_rate, affordable)], delta) <= asked
        assert epsilon([release(noise, sampling_rate, affordable + 1)], delta) > asked


def test_a_wish_that_any_noise_grants_gets_the_least() -> None:
    assert calibrate_noise(1.0, 1e-5, 1e-6, 1) == MIN_CALIBRATED_NOISE


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"epsilon": 0.0}, "epsilon = 0"),
        ({"epsilon": -1.0}, "epsilon = -1"),
        ({"epsilon": math.nan}, "epsilon = nan"),
        ({"epsilon": math.inf}, "epsilon = inf"),
        ({"epsilon": 1000.0}, "epsilon = 1000"),
        ({"sampling_rate": 0.0}, "sampling_rate = 0"),
        ({"sampling_rate": 1.5}, "sampling_rate = 1.5"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": MAX_STEPS + 1}, f"steps = {MAX_STEPS + 1}"),
        ({"delta": 0.0}, "delta = 0"),
        ({"epsilon": 1e-4, "sampling_rate": 1.0, "steps": 1000}, "noise multiplier over 1000"),
    ],
)
def test_an_absurd_wish_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        calibrate_noise(**{"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.25, "steps": 40, **asked})


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.nan, math.inf])
def test_affordable_steps_refuses_noise_that_is_none(noise_multiplier: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier = "):
        affordable_steps(1.0, 1e-5, 0.25, noise_multiplier)


def test_what_was_spent_before_is_taken_off() -> None:
    bound, delta, rate, noise = 4.0, 1e-5, 0.25, 2.5
    whole = affordable_steps(bound, delta, rate, noise)
    assert affordable_steps(bound, delta, rate, noise, already=[release(noise, rate, 10)]) == whole - 10
    assert affordable_steps(bound, delta, rate, noise, already=[release(noise, rate, whole)]) == 0
    assert affordable_steps(bound, delta, rate, noise, already=[release(noise, rate, whole + 5)]) == 0


def test_spending_at_other_parameters_is_composed() -> None:
    bound, delta = 4.0, 1e-5
    already = [release(3.0, 0.1, 100), release(8.0, 1.0, 2)]
    steps = affordable_steps(bound, delta, 0.25, 2.5, already=already)
    assert 0 < steps < affordable_steps(bound, delta, 0.25, 2.5)
    assert epsilon([*already, release(2.5, 0.25, steps)], delta) <= bound
    assert epsilon([*already, release(2.5, 0.25, steps + 1)], delta) > bound


def test_a_release_without_noise_leaves_nothing() -> None:
    bare = replace(release(1.0, 0.25, 1), mechanism="none", noise_multiplier=0.0, mode="none")
    assert affordable_steps(8.0, 1e-5, 0.25, 1.0, already=[bare]) == 0


def test_one_step_too_many_from_the_start_affords_none() -> None:
    assert affordable_steps(0.1, 1e-5, 1.0, 1.0) == 0


def test_practically_free_steps_stop_at_the_cap() -> None:
    assert affordable_steps(1.0, 1e-5, 1.0, 1e6) == MAX_STEPS


def test_the_design_notes_count_of_steps_for_epsilon_2() -> None:
    # "826 steps against 496 for epsilon 2": noise 1, rate .01024, delta 1e-6.
    assert abs(affordable_steps(2.0, 1e-6, 0.01024, 1.0) - 826) <= 3
    assert composed_epsilon(((0.01024, 1.0, 496),), 1e-6, "rdp") == pytest.approx(2.0, abs=0.01)
