"""One contract that every accountant passes: PLD, PRV and RDP.

Where hypothesis chooses, it does so the same way each time, and in few examples: PRV and RDP take tens of milliseconds.
"""

import itertools
import math

import dp_events
import pytest
from dp_events import unprotected
from hypothesis import given, settings
from hypothesis import strategies as st
from lower_bounds import gaussian_epsilon, one_sampled_step_epsilon, sum_test_epsilon

from common.errors import ConfigError
from common.privacy.accounting import Accountant, composed_epsilon, epsilon
from common.privacy.calibrate import calibrate_noise
from common.privacy.events import DpEvent

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "prv", "rdp")
DELTA = 1e-6
STATED_ERROR = {"pld": 0.0, "prv": 0.05, "rdp": 0.0}  # that an answer may be over the truth, and so over a neighbour
DISCRETISATION = 2e-3  # relative: with other parameters the grid of losses is another

few = settings(max_examples=6, deadline=None, derandomize=True, database=None)
noises = st.floats(0.7, 5.0)
rates = st.floats(0.03, 0.9) | st.just(1.0)
counts = st.integers(1, 300)


def release(noise_multiplier: float = 1.0, sampling_rate: float = 0.01024, steps: int = 98) -> DpEvent:
    return dp_events.release(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


def cost(accountant: Accountant, noise: float, rate: float, steps: int) -> float:
    return epsilon([release(noise, rate, steps)] if steps else [], DELTA, accountant)


def at_most(smaller: float, larger: float, accountant: Accountant) -> bool:
    """Whether it holds up to what the accountant states of its own error."""
    return smaller <= larger * (1 + DISCRETISATION) + STATED_ERROR[accountant]


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
class TestContract:
    """What every accountant promises."""

    def test_no_events_cost_nothing(self, accountant: Accountant) -> None:
        assert epsilon([], DELTA, accountant) == 0.0

    def test_a_release_without_noise_costs_everything(self, accountant: Accountant) -> None:
        assert epsilon([release(), unprotected()], DELTA, accountant) == math.inf

    def test_more_steps_cost_more(self, accountant: Accountant) -> None:
        costs = [epsilon([release(steps=steps)], DELTA, accountant) for steps in (1, 10, 100, 110, 1000)]
        assert all(low < high for low, high in itertools.pairwise(costs))

    def test_more_noise_costs_less(self, accountant: Accountant) -> None:
        costs = [epsilon([release(noise)], DELTA, accountant) for noise in (0.5, 0.7, 0.75, 1.0, 2.0)]
        assert all(low > high for low, high in itertools.pairwise(costs))

    def test_more_sampling_costs_more(self, accountant: Accountant) -> None:
        costs = [epsilon([release(3.0, rate)], DELTA, accountant) for rate in (0.05, 0.1, 0.11, 0.5, 1.0)]
        assert all(low < high for low, high in itertools.pairwise(costs))

    def test_a_smaller_delta_costs_more(self, accountant: Accountant) -> None:
        costs = [epsilon([release()], delta, accountant) for delta in (1e-9, 1e-7, 1e-5, 1e-3)]
        assert all(low > high for low, high in itertools.pairwise(costs))

    def test_order_does_not_matter(self, accountant: Accountant) -> None:
        events = [
            release(1.0, steps=50),
            release(2.0, 0.2, steps=7),
            release(5.0, 1.0, steps=2),
            release(1.0, steps=48),
        ]
        costs = {epsilon(order, DELTA, accountant) for order in itertools.permutations(events)}
        assert len(costs) == 1

    def test_only_the_sum_of_equal_steps_matters(self, accountant: Accountant) -> None:
        assert epsilon([release(steps=1)] * 98, DELTA, accountant) == epsilon([release(steps=98)], DELTA, accountant)

    @pytest.mark.parametrize("added", [release(1.0, steps=1), release(4.0, 0.001, 1), release(0.7, 0.3, 5)])
    def test_an_added_event_never_lowers_epsilon(self, accountant: Accountant, added: DpEvent) -> None:
        for events in ([], [release()], [release(3.0, 0.25, 40), release()]):
            before, after = epsilon(events, DELTA, accountant), epsilon([*events, added], DELTA, accountant)
            assert after >= before - 2e-3 * before

    def test_several_parameters_cost_less_than_the_sum_and_more_than_each(self, accountant: Accountant) -> None:
        events = [release(1.0, steps=488), release(5.0, 0.25, 40), release(20.0, 1.0, 3)]
        alone = [epsilon([event], DELTA, accountant) for event in events]
        assert max(alone) < epsilon(events, DELTA, accountant) < sum(alone)

    @pytest.mark.parametrize(("noise_multiplier", "steps"), [(1.0, 1), (5.0, 100), (50.0, 1000)])
    def test_without_sampling_never_below_the_exact_gaussian(
        self, accountant: Accountant, noise_multiplier: float, steps: int
    ) -> None:
        exact = gaussian_epsilon(noise_multiplier / math.sqrt(steps), DELTA)
        found = epsilon([release(noise_multiplier, 1.0, steps)], DELTA, accountant)
        assert exact <= found <= exact + {"pld": 0.001, "prv": 0.03, "rdp": 0.1 * exact}[accountant]

    @pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), [(1.0, 0.25), (0.7, 0.01), (3.0, 0.9)])
    def test_one_sampled_step_is_never_below_the_closed_form(
        self, accountant: Accountant, noise_multiplier: float, sampling_rate: float
    ) -> None:
        exact = one_sampled_step_epsilon(noise_multiplier, sampling_rate, DELTA)
        found = epsilon([release(noise_multiplier, sampling_rate, 1)], DELTA, accountant)
        assert exact - 1e-6 <= found <= exact + {"pld": 0.003, "prv": 0.03, "rdp": exact}[accountant]

    def test_hardly_any_noise_is_infinite(self, accountant: Accountant) -> None:
        assert epsilon([release(1e-3, 0.25, 40)], DELTA, accountant) == math.inf

    def test_huge_noise_costs_next_to_nothing(self, accountant: Accountant) -> None:
        assert 0 <= epsilon([release(1e6, 0.25, 40)], DELTA, accountant) <= 0.011

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1e-13, math.nan])
    def test_a_delta_out_of_range_is_refused(self, accountant: Accountant, delta: float) -> None:
        for events in ([], [release()], [unprotected()]):
            with pytest.raises(ConfigError, match="delta = "):
                epsilon(events, delta, accountant)

    def test_zero_steps_cost_nothing(self, accountant: Accountant) -> None:
        assert composed_epsilon((), DELTA, accountant) == 0.0
        assert cost(accountant, 1.0, 0.5, 0) == 0.0

    @few
    @given(noise=noises, rate=rates, steps=counts, more=st.integers(1, 300))
    def test_monotone_in_steps(self, accountant: Accountant, noise: float, rate: float, steps: int, more: int) -> None:
        assert at_most(cost(accountant, noise, rate, steps), cost(accountant, noise, rate, steps + more), accountant)

    @few
    @given(noise=noises, rate=rates, steps=counts, factor=st.floats(1.001, 4.0))
    def test_monotone_in_noise(
        self, accountant: Accountant, noise: float, rate: float, steps: int, factor: float
    ) -> None:
        assert at_most(cost(accountant, noise * factor, rate, steps), cost(accountant, noise, rate, steps), accountant)

    @few
    @given(noise=noises, rate=rates, steps=counts, factor=st.floats(0.1, 0.999))
    def test_monotone_in_the_sampling_rate(
        self, accountant: Accountant, noise: float, rate: float, steps: int, factor: float
    ) -> None:
        assert at_most(cost(accountant, noise, rate * factor, steps), cost(accountant, noise, rate, steps), accountant)

    @few
    @given(noise=noises, rate=rates, parts=st.lists(st.integers(1, 60), min_size=1, max_size=8))
    def test_k_events_compose_to_one_event_of_all_their_steps(
        self, accountant: Accountant, noise: float, rate: float, parts: list[int]
    ) -> None:
        apart = epsilon([release(noise, rate, steps) for steps in parts], DELTA, accountant)
        assert apart == cost(accountant, noise, rate, sum(parts))

    @few
    @given(noise=noises, steps=counts)
    def test_never_below_the_exact_gaussian(self, accountant: Accountant, noise: float, steps: int) -> None:
        assert cost(accountant, noise, 1.0, steps) >= gaussian_epsilon(noise / math.sqrt(steps), DELTA) - 1e-9

    @few
    @given(noise=noises, rate=rates, steps=counts)
    def test_never_below_what_one_attack_shows(
        self, accountant: Accountant, noise: float, rate: float, steps: int
    ) -> None:
        assert cost(accountant, noise, rate, steps) >= sum_test_epsilon(noise, rate, steps, DELTA) - 1e-9


class TestCalibration:
    @few
    @given(asked=st.floats(0.2, 12.0), rate=rates, steps=counts, delta=st.sampled_from([1e-7, 1e-5, 1e-3]))
    def test_calibrated_noise_never_gives_less_privacy_than_asked(
        self, asked: float, rate: float, steps: int, delta: float
    ) -> None:
        noise = calibrate_noise(asked, delta, rate, steps)
        assert composed_epsilon(((rate, noise, steps),), delta) <= asked
        assert composed_epsilon(((rate, noise, steps),), delta, "prv") <= asked + STATED_ERROR["prv"]
        assert sum_test_epsilon(noise, rate, steps, delta) <= asked
        if rate == 1:
            assert gaussian_epsilon(noise / math.sqrt(steps), delta) <= asked


def test_the_attack_is_strong_enough_to_tell_two_thirds_of_the_noise() -> None:
    """A bound that no wrong accountant would fail would be no test: here it refuses noise taken for 3/2 of itself."""
    true = sum_test_epsilon(1.0, 0.5, 200, DELTA)
    assert true > composed_epsilon(((0.5, 1.5, 200),), DELTA)
    assert true > composed_epsilon(((0.25, 1.0, 200),), DELTA)  # or half the sampling rate
    assert true > composed_epsilon(((0.5, 1.0, 100),), DELTA)  # or half the steps
