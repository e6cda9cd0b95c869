"""Epsilon from events: published numbers, closed forms, and one contract that every accountant passes."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dp_events
import pytest
from dp_events import unprotected
from scipy.optimize import brentq
from scipy.stats import norm

import common
from common.errors import ConfigError
from common.privacy.accounting import (
    AGREEMENT,
    Accountant,
    PrivacyStatement,
    compose,
    composed_epsilon,
    epsilon,
    privacy_statement,
)
from common.privacy.events import DpEvent

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "prv", "rdp")
DELTA = 1e-6


def release(noise_multiplier: float = 1.0, sampling_rate: float = 0.01024, steps: int = 98) -> DpEvent:
    return dp_events.release(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


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


# noise multiplier, steps -> PLD, PRV, RDP as the design notes print them (sampling rate .01024, delta 1e-6)
PRINTED = [
    (0.6, 98, "4.79", "4.80", "5.84"),
    (0.6, 488, "7.00", "7.01", "8.18"),
    (0.8, 488, "2.96", "2.97", "3.57"),
    (1.0, 98, "0.97", "0.98", "1.52"),
    (1.0, 488, "1.60", "1.61", "1.99"),
]


@pytest.mark.parametrize(("noise_multiplier", "steps", "pld", "prv", "rdp"), PRINTED)
def test_the_printed_numbers_come_out(noise_multiplier: float, steps: int, pld: str, prv: str, rdp: str) -> None:
    events = [release(noise_multiplier, steps=steps)]
    assert [f"{epsilon(events, DELTA, accountant):.2f}" for accountant in ACCOUNTANTS] == [pld, prv, rdp]


def test_three_runs_of_1_60_compose_to_2_60_and_not_to_their_sum() -> None:
    assert epsilon([release(steps=488)] * 3, DELTA) == pytest.approx(2.60, abs=0.005)


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


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "steps"),
    [(1.0, 0.01024, 488), (0.6, 0.01024, 98), (1.235, 0.25, 40), (6.13, 0.25, 40), (5.0, 1.0, 100), (0.5, 1e-4, 1000)],
)
def test_pld_and_prv_agree(noise_multiplier: float, sampling_rate: float, steps: int) -> None:
    events = [release(noise_multiplier, sampling_rate, steps), release(2.0, 0.05, 10)]
    assert abs(epsilon(events, 1e-5, "pld") - epsilon(events, 1e-5, "prv")) <= AGREEMENT


@pytest.mark.parametrize(("noise_multiplier", "steps"), [(10.0, 1000), (30.0, 4095), (300.0, 10**6), (3000.0, 10**7)])
@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10])
def test_many_steps_lose_nothing_in_the_transform(noise_multiplier: float, steps: int, delta: float) -> None:
    # A rate just below 1 takes the sampled path, step by step, yet has the closed form of the Gaussian.
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(steps), delta)
    found = composed_epsilon(((1 - 1e-12, noise_multiplier, steps),), delta)
    assert exact <= found <= exact * 1.002 + 0.002


def test_a_tiny_sampling_rate_is_resolved() -> None:
    # .01 / 10 per step: a fixed interval of 1e-3 would print 1.81.
    assert epsilon([release(10.0, 0.01, 100_000)], 1e-8) == pytest.approx(1.6644, rel=1e-3)


def test_thousands_of_events_are_one_group_per_parameter_pair() -> None:
    events = [release(1.0, steps=2), release(2.0, steps=3)] * 2000
    assert compose(events) == ((0.01024, 1.0, 4000), (0.01024, 2.0, 6000))


@pytest.mark.parametrize("accountant", ["gdp", "PLD", ""])
def test_an_accountant_that_understates_is_not_offered(accountant: str) -> None:
    with pytest.raises(ConfigError, match="one of pld, prv, rdp"):
        epsilon([release()], DELTA, accountant)  # type: ignore[arg-type]


def test_the_sentence_says_everything_that_the_number_means() -> None:
    statement = privacy_statement([release(steps=244)] * 2, DELTA)
    assert (statement.num_events, statement.steps, statement.fixed_seed) == (2, 488, False)
    assert (statement.unit, statement.adjacency) == ("user", "add_remove")
    assert statement.second_epsilon_error == 0.01
    assert statement.accountants_agree
    assert statement.sentence() == (  # 1.6034 and 1.6134, rounded up
        "epsilon 1.61 at delta 1e-06 for one user added or removed (PLD; PRV 1.62), against anyone who sees the updates"
        " or the model (the server, other partners, the public, a broken aggregation)"
    )


def test_a_fixed_seed_anywhere_is_said() -> None:
    statement = privacy_statement([release(), replace(release(), fixed_seed=True)], DELTA)
    assert statement.fixed_seed
    assert statement.sentence().endswith(
        "BUT some noise came from a fixed seed: whoever knows it can remove that noise"
    )


def test_nothing_released_is_said() -> None:
    statement = privacy_statement([], 1e-5)
    assert (statement.epsilon, statement.second_epsilon, statement.num_events) == (0.0, 0.0, 0)
    assert statement.sentence() == (
        "epsilon 0.00 at delta 1e-05 for one user added or removed: nothing has been released"
    )


def test_no_guarantee_is_said_and_protects_against_nobody() -> None:
    statement = privacy_statement([release(), unprotected()], 1e-5)
    assert (statement.epsilon, statement.second_epsilon, statement.protects_against) == (math.inf, math.inf, ())
    assert statement.sentence().startswith("no privacy guarantee: epsilon is infinite at delta 1e-05")


def statement_of(first: float, second: float) -> PrivacyStatement:
    return replace(privacy_statement([release()], DELTA), epsilon=first, second_epsilon=second)


@pytest.mark.parametrize(
    ("value", "printed"), [(1.6, "1.60"), (1.6001, "1.61"), (1.5999999999, "1.60"), (8.0, "8.00"), (7.996, "8.00")]
)
def test_a_printed_epsilon_is_rounded_up(value: float, printed: str) -> None:
    assert statement_of(value, value).sentence().startswith(f"epsilon {printed} at")


@pytest.mark.parametrize(("second", "agrees"), [(1.945, True), (2.055, True), (2.065, False), (1.935, False)])
def test_a_second_accountant_that_disagrees_is_shouted(second: float, agrees: bool) -> None:
    statement = statement_of(2.0, second)
    assert statement.accountants_agree is agrees
    assert ("WHICH DISAGREES" in statement.sentence()) is not agrees


def test_a_second_accountant_without_an_answer_is_said() -> None:
    statement = statement_of(400.0, math.inf)
    assert not statement.accountants_agree
    assert "PRV gives no finite bound" in statement.sentence()


def test_importing_the_privacy_room_loads_neither_torch_nor_flwr() -> None:
    program = (
        "import sys, common.privacy.accounting, common.privacy.calibrate, common.privacy.ledger\n"
        "print([name for name in ('torch', 'flwr', 'transformers', 'opacus') if name in sys.modules])"
    )
    root = Path(common.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
