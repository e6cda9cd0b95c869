"""Epsilon from events: published numbers, agreement of the accountants, and what every printed epsilon says."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dp_events
import pytest
from dp_events import unprotected
from lower_bounds import gaussian_epsilon

import common
from common.errors import ConfigError
from common.privacy.accounting import (
    AGREEMENT,
    Accountant,
    compose,
    composed_epsilon,
    epsilon,
)
from common.privacy.events import DpEvent
from common.privacy.statement import PrivacyStatement, privacy_statement

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "prv", "rdp")
DELTA = 1e-6


def release(noise_multiplier: float = 1.0, sampling_rate: float = 0.01024, steps: int = 98) -> DpEvent:
    return dp_events.release(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


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
