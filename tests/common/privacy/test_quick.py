"""The quick bound: the accountant's answer, sooner; closed forms without sampling; noise that keeps its promise."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lower_bounds import gaussian_epsilon as independent_gaussian_epsilon
from lower_bounds import one_sampled_step_epsilon, sum_test_epsilon

from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon
from common.privacy.calibrate import MIN_CALIBRATED_NOISE, calibrate_noise
from common.privacy.quick import gaussian_epsilon, gaussian_noise_multiplier, quick_epsilon, quick_noise

some = settings(max_examples=25, deadline=None, derandomize=True, database=None)

# noise, sampling rate, steps, delta
CASES = [
    (0.495, 0.01, 200, 1e-5),
    (1.0, 0.01024, 488, 1e-6),
    (0.6, 0.01024, 98, 1e-6),
    (1.553, 0.5, 20, 1e-5),
    (20.0, 0.9, 1000, 1e-6),
    (0.5, 0.001, 5000, 1e-6),
    (0.5, 1e-4, 1000, 1e-8),
    (0.2, 0.5, 1, 1e-5),
    (0.5, 0.5, 50, 1e-5),
    (2.0, 0.001, 16_000, 1e-9),
    (0.9, 0.01, 100, 0.1),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_the_answer_is_the_accountants(noise: float, rate: float, steps: int, delta: float) -> None:
    exact = composed_epsilon(((rate, noise, steps),), delta)
    assert quick_epsilon(noise, rate, steps, delta) == pytest.approx(exact, rel=1e-5, abs=1e-9)


@some
@given(
    noise=st.floats(0.3, 30.0),
    rate=st.floats(1e-3, 0.999),
    steps=st.integers(1, 2000),
    delta=st.sampled_from([1e-9, 1e-6, 1e-3]),
)
def test_any_answer_is_the_accountants(noise: float, rate: float, steps: int, delta: float) -> None:
    exact = composed_epsilon(((rate, noise, steps),), delta)
    assert quick_epsilon(noise, rate, steps, delta) == pytest.approx(exact, rel=1e-4, abs=1e-7)


@some
@given(noise=st.floats(0.5, 10.0), rate=st.floats(0.01, 0.99), steps=st.integers(1, 500))
def test_never_below_what_one_attack_shows(noise: float, rate: float, steps: int) -> None:
    assert quick_epsilon(noise, rate, steps, 1e-6) >= sum_test_epsilon(noise, rate, steps, 1e-6) - 1e-9


@some
@given(noise=st.floats(0.5, 10.0), rate=st.floats(0.01, 0.99))
def test_one_step_is_never_below_the_closed_form(noise: float, rate: float) -> None:
    exact = one_sampled_step_epsilon(noise, rate, 1e-6)
    assert exact - 1e-6 <= quick_epsilon(noise, rate, 1, 1e-6) <= exact * 1.002 + 2e-3


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (5.0, 100), (50.0, 1000), (300.0, 10**6)])
def test_without_sampling_it_is_the_exact_gaussian(noise: float, steps: int) -> None:
    exact = independent_gaussian_epsilon(noise / math.sqrt(steps), 1e-6)
    assert quick_epsilon(noise, 1.0, steps, 1e-6) == pytest.approx(exact, rel=1e-9)


def test_what_it_cannot_hold_goes_to_the_accountant_proper() -> None:
    for noise, rate, steps, delta in [(10.0, 0.01, 100_000, 1e-8), (1.0, 0.1, 10, 1e-11), (0.15, 0.5, 5, 1e-5)]:
        assert quick_epsilon(noise, rate, steps, delta) == composed_epsilon(((rate, noise, steps),), delta)


def test_no_steps_cost_nothing_and_hardly_any_noise_costs_everything() -> None:
    assert quick_epsilon(1.0, 0.1, 0, 1e-6) == 0.0
    assert quick_epsilon(1e-3, 0.25, 40, 1e-5) == math.inf
    assert gaussian_epsilon(1e-3, 1e-5) == math.inf
    assert gaussian_epsilon(1e6, 1e-5) == 0.0


@some
@given(asked=st.floats(0.1, 20.0), rate=st.floats(0.005, 0.99) | st.just(1.0), steps=st.integers(1, 1000))
def test_quick_noise_never_gives_less_privacy_than_asked(asked: float, rate: float, steps: int) -> None:
    noise = quick_noise(asked, 1e-5, rate, steps)
    assert noise == round(noise, 3)
    assert quick_epsilon(noise, rate, steps, 1e-5) <= asked
    assert composed_epsilon(((rate, noise, steps),), 1e-5) <= asked * (1 + 2e-5) + 1e-3 * (rate == 1)


@pytest.mark.parametrize(
    ("asked", "rate", "steps"),
    [(8.0, 0.5, 20), (8.0, 0.01, 200), (2.0, 0.01024, 488), (50.0, 0.01, 100), (0.1, 0.25, 1000), (8.0, 1.0, 20)],
)
def test_quick_noise_is_the_calibrated_noise(asked: float, rate: float, steps: int) -> None:
    calibrated = calibrate_noise(asked, 1e-5, rate, steps)
    found = quick_noise(asked, 1e-5, rate, steps)
    assert calibrated - 0.0011 <= found <= calibrated * 1.001 + 0.001


def test_a_wish_that_any_noise_grants_gets_the_least() -> None:
    assert quick_noise(1.0, 1e-5, 1e-6, 1) == MIN_CALIBRATED_NOISE


def test_absurd_wishes_are_refused_as_by_calibration() -> None:
    for asked, rate, steps in [(0.0, 0.5, 1), (1.0, 0.0, 1), (1.0, 0.5, 0), (1e-4, 1.0, 1000)]:
        with pytest.raises(ConfigError):
            quick_noise(asked, 1e-5, rate, steps)


@pytest.mark.parametrize(("asked", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (8.0, 1e-6), (30.0, 1e-8)])
def test_the_noise_of_one_gaussian_gives_back_its_epsilon(asked: float, delta: float) -> None:
    noise = gaussian_noise_multiplier(asked, delta)
    assert independent_gaussian_epsilon(noise, delta) == pytest.approx(asked, rel=1e-8)


def test_it_is_quick() -> None:
    quick_epsilon(1.4, 0.25, 60, 1e-5)
    started = time.process_time()
    for thousandths in range(1400, 1420):
        quick_epsilon(thousandths / 1000, 0.25, 60, 1e-5)
    assert (time.process_time() - started) / 20 < 0.02  # about 1 ms; the accountant proper takes 13
