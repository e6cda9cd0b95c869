"""`privacy.period_days`: the budget holds in every span of so many days, and what it cost of all time is said."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dp_events import ledger_at, release, unprotected
from hypothesis import given, settings
from hypothesis import strategies as st

from client.budget import CLOCK_TOLERANCE, Budget
from common.config import PrivacyConfig, parse_config
from common.errors import BudgetExhausted, ConfigError, LedgerError
from common.privacy.accounting import epsilon
from common.privacy.chain import Chain
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

START = datetime(2027, 1, 1, 8, 0, 0, 500_000, tzinfo=UTC)
# Two rounds cost 5.04, three 6.02: the budget is for two in thirty days.
POLICY = PrivacyConfig(epsilon=5.5, delta=1e-5, sampling_rate=0.25, noise_multiplier=1.0, period_days=30)


def training(number: int = 0, **changes: Any) -> DpEvent:
    return release(round=number, noise_multiplier=1.0, sampling_rate=0.25, steps=4, **changes)


class Clock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def forward(self, **span: float) -> None:
        self.time += timedelta(**span)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.jsonl"


def budget_at(path: Path, clock: Clock, policy: PrivacyConfig = POLICY) -> Budget:
    return Budget(ledger_at(path, clock=clock), policy)


def test_the_numbers_that_these_tests_are_built_on() -> None:
    assert epsilon([training()] * 2, POLICY.delta) < POLICY.epsilon < epsilon([training()] * 3, POLICY.delta)


def test_what_is_older_than_the_period_counts_no_more_and_not_a_second_earlier(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock)
    budget.reserve(training(1))
    clock.forward(days=10)
    budget.reserve(training(2))
    assert budget.affordable_rounds(training()) == 0
    for span in (timedelta(days=20) - timedelta(seconds=1), timedelta(seconds=1)):  # exactly 30 days still count
        clock.forward(seconds=span.total_seconds())
        with pytest.raises(BudgetExhausted):
            budget.reserve(training(3))
    clock.forward(seconds=1)
    assert budget.affordable_rounds(training()) == 1
    budget.reserve(training(3))
    with pytest.raises(BudgetExhausted):
        budget.reserve(training(4))
    assert budget.counted() == (training(2), training(3))


def test_without_a_period_nothing_ever_stops_counting(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock, replace(POLICY, period_days=None))
    budget.reserve(training(1))
    budget.reserve(training(2))
    clock.forward(days=36_500)
    with pytest.raises(BudgetExhausted) as refused:
        budget.reserve(training(3))
    assert "days" not in str(refused.value)


def test_spent_is_of_all_time_and_so_says_a_refusal(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock)
    for number in range(1, 5):
        budget.reserve(training(number))
        clock.forward(days=16)
    assert budget.spent().epsilon == epsilon([training()] * 4, POLICY.delta) > POLICY.epsilon
    clock.forward(days=-15)
    with pytest.raises(BudgetExhausted) as refused:
        budget.reserve(training(5))
    two, three, five = (epsilon([training()] * count, POLICY.delta) for count in (2, 3, 5))
    assert (
        f"2 releases have spent epsilon {two:.6g}, this one would make it {three:.6g}, and the budget is"
        f" privacy.epsilon = 5.5 at delta 1e-05 in any 30 days (of all time it would be {five:.6g});"
    ) in str(refused.value)


def test_a_release_without_noise_is_past_with_its_period_and_infinite_for_ever(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock)
    ledger_at(path, clock=clock).reserve(unprotected())
    with pytest.raises(BudgetExhausted, match="a release without noise"):
        budget.reserve(training())
    clock.forward(days=31)
    budget.reserve(training())
    assert budget.spent().epsilon == float("inf")


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 40 * 24), min_size=1, max_size=14),  # hours
    steps=st.lists(st.integers(1, 6), min_size=14, max_size=14),
)
def test_promise_2_cannot_overspend_in_any_span_of_the_period(
    gaps: list[int], steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock, path = Clock(), tmp_path_factory.mktemp("period") / "shop.jsonl"
    budget = budget_at(path, clock)
    for number, (gap, count) in enumerate(zip(gaps, steps, strict=False)):
        clock.forward(hours=gap)
        try:
            budget.reserve(replace(training(number), steps=count))
        except BudgetExhausted:
            continue
    chain = Chain()
    chain.absorb(path.read_bytes() if path.exists() else b"")
    made = [(chain.times[number - 1], event) for number, event in chain.reserved.items()]
    for first, _ in made:
        span = [event for time, event in made if first <= time <= first + timedelta(days=30)]
        assert epsilon(span, POLICY.delta) <= POLICY.epsilon * (1 + 1e-9)


# --- clocks -------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_is_refused_and_frees_nothing(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock)
    budget.reserve(training(1))
    before = path.read_bytes()
    clock.forward(seconds=-CLOCK_TOLERANCE.total_seconds() - 1)
    for use in (lambda: budget.reserve(training(2)), lambda: budget.affordable_rounds(training()), budget.counted):
        with pytest.raises(LedgerError, match=r"the clock says 2027-01-01 07:54:59 UTC, the ledger's last record 2027"):
            use()
    assert path.read_bytes() == before
    clock.forward(seconds=1)  # as much as a clock may be set right
    budget.reserve(training(2))
    assert Ledger(path).last_time() == START.replace(microsecond=0)


def test_without_a_period_no_figure_depends_on_the_clock(path: Path, clock: Clock) -> None:
    budget = budget_at(path, clock, replace(POLICY, period_days=None))
    budget.reserve(training(1))
    clock.forward(days=-1000)
    assert budget.affordable_rounds(training()) == 1
    budget.reserve(training(2))
    assert budget.spent().num_events == 2


def test_a_clock_that_was_wrong_once_counts_for_longer_and_never_for_less(path: Path, clock: Clock) -> None:
    """Set a year forward by mistake for one record: what follows bears that time, and counts until then."""
    forever = budget_at(path, clock, replace(POLICY, period_days=None))
    clock.forward(days=365)
    forever.reserve(training(1))
    clock.forward(days=-365)
    forever.reserve(training(2))
    clock.forward(days=365 + 29)
    assert len(budget_at(path, clock).counted()) == 2


@pytest.mark.parametrize("days", [0, -1, 1.5, 36_501, "30", True])
def test_a_period_that_makes_no_sense_is_refused(days: object) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.period_days"):
        parse_config({"privacy": {"period_days": days}})
