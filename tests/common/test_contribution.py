"""Contributions: what may be summed, what is refused, and that a refusal changes nothing."""

from typing import Any

import numpy as np
import pytest

from common.contribution import LocalDelta, NoisedStep, RunningSum
from common.errors import ProtocolError, TooFewPartners


def delta(*values: float, weight: float = 1.0) -> LocalDelta:
    return LocalDelta(np.array(values, np.float32), weight)


def step(*values: int, units: int = 10) -> NoisedStep:
    return NoisedStep(np.array(values, np.int64), units)


def sum_of(*contributions: LocalDelta | NoisedStep) -> RunningSum:
    total = RunningSum(
        len(getattr(contributions[0], "delta_D", getattr(contributions[0], "sum_D", []))), type(contributions[0])
    )
    for contribution in contributions:
        total.add(contribution)
    return total


def test_a_weighted_mean_by_hand() -> None:
    total = sum_of(delta(1.0, -2.0, weight=1.0), delta(4.0, 0.0, weight=0.5), delta(0.0, 8.0, weight=0.25))
    np.testing.assert_array_equal(total.total(3), [3.0, 0.0])
    assert total.weight == 1.75
    np.testing.assert_allclose(total.mean(3), [3 / 1.75, 0.0], rtol=1e-15)
    assert total.count == 3


def test_a_mean_of_steps_by_hand() -> None:
    """Declared units divide; nothing is scaled, as steps are integers already."""
    total = sum_of(step(5, -7, units=30), step(1, 1, units=10))
    np.testing.assert_array_equal(total.total(2), [6.0, -6.0])
    np.testing.assert_array_equal(total.mean(2), [6 / 40, -6 / 40])


def test_the_sum_is_float64_and_a_copy() -> None:
    total = sum_of(delta(1.0))
    first = total.total(1)
    assert first.dtype == np.float64
    first += 5
    np.testing.assert_array_equal(total.total(1), [1.0])


def test_resolution_is_half_of_2_to_the_minus_32() -> None:
    assert sum_of(delta(2.0**-32)).total(1)[0] == 2.0**-32
    assert sum_of(delta(2.0**-34)).total(1)[0] == 0.0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_promise_1_fewer_than_the_minimum_give_nothing(count: int) -> None:
    total = RunningSum(1, LocalDelta)
    for _ in range(count):
        total.add(delta(1.0))
    for ask in (total.total, total.mean):
        with pytest.raises(TooFewPartners, match=f"{count} of at least 3 partners contributed"):
            ask(3)
    assert "_sum_D" not in repr(total)  # nor does a log line show it


def test_the_minimum_itself_is_enough() -> None:
    assert sum_of(delta(1.0), delta(2.0), delta(3.0)).total(3)[0] == 6.0


NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize(
    "bad",
    [
        *(delta(0.0, value) for value in NOT_FINITE),
        delta(0.0, 2.0**15),
        delta(0.0, -(2.0**15)),
        delta(0.0, 3e38),
        delta(0.0),
        delta(0.0, 0.0, 0.0),
        delta(),
        step(0, 0),
    ],
    ids=["nan", "inf", "-inf", "limit", "-limit", "huge", "short", "long", "empty", "other kind"],
)
def test_a_refused_update_leaves_the_sum_unchanged(bad: LocalDelta | NoisedStep) -> None:
    total = sum_of(delta(1.0, 2.0, weight=0.5), delta(3.0, 4.0, weight=0.25))
    before = total.total(1), total.mean(1), total.count, total.weight
    with pytest.raises(ProtocolError):
        total.add(bad)
    after = total.total(1), total.mean(1), total.count, total.weight
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "bad",
    [step(0, 2**47), step(0, -(2**47)), step(0, 2**63 - 1), step(0, -(2**63)), step(0), delta(0.0, 0.0)],
    ids=["limit", "-limit", "max", "min", "short", "other kind"],
)
def test_a_refused_step_leaves_the_sum_unchanged(bad: LocalDelta | NoisedStep) -> None:
    """-2^63 is its own negative, so a check by absolute values would let it pass."""
    total = sum_of(step(1, 2))
    with pytest.raises(ProtocolError):
        total.add(bad)
    np.testing.assert_array_equal(total.total(1), [1.0, 2.0])
    assert (total.count, total.weight) == (1, 10.0)


def test_values_just_below_the_limits_pass() -> None:
    assert sum_of(delta(np.nextafter(np.float32(2**15), np.float32(0)))).total(1)[0] < 2**15
    assert sum_of(step(2**47 - 1)).total(1)[0] == 2**47 - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_never_wraps_however_many_contribute(sign: int) -> None:
    """All that may be summed, at the largest value that may be summed, stays within 63 bits."""
    total = RunningSum(1, NoisedStep)
    total.add(step(sign * (2**47 - 1)))
    for _ in range(16):  # doubles: as if 2^16 had been added one by one
        total._sum_D += total._sum_D
    assert total.total(1)[0] == sign * 2.0**16 * (2**47 - 1)
    # The largest update that passes is no larger, whatever its weight rounds to.
    for weight in (1.0, 1 - 2**-53, 0.99999, 0.5):
        largest = np.float32(2**15 / weight)
        while True:
            total = RunningSum(1, LocalDelta)
            try:
                total.add(delta(sign * largest, weight=weight))
                break
            except ProtocolError:
                largest = np.nextafter(largest, np.float32(0))
        assert largest > 0.99 * 2**15 / weight
        assert abs(int(total._sum_D[0])) < 2**47


def test_too_many_contributions_are_refused() -> None:
    total = RunningSum(0, LocalDelta)
    total.count = 2**16
    with pytest.raises(ProtocolError, match="more than 65536"):
        total.add(delta())


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.0000001, np.nan, np.inf])
def test_weights_outside_their_range_are_refused(weight: float) -> None:
    with pytest.raises(ProtocolError, match="over 0 and at most 1"):
        delta(1.0, weight=weight)


@pytest.mark.parametrize("units", [0, -1, 2**53 + 1, 10**400])
def test_declared_units_outside_their_range_are_refused(units: int) -> None:
    with pytest.raises(ProtocolError, match="declared_units"):
        step(1, units=units)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros(3, np.float16), np.zeros((3, 1), np.float32), np.zeros((), np.float32), np.zeros(3, ">f4")],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_update_is_a_float32_vector(array: Any) -> None:
    with pytest.raises(ProtocolError, match="float32 vector"):
        LocalDelta(array, 1.0)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.int32), np.zeros(3, np.uint64), np.zeros(3), np.zeros((1, 3), np.int64)],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_a_step_is_an_int64_vector(array: Any) -> None:
    with pytest.raises(ProtocolError, match="int64 vector"):
        NoisedStep(array, 1)
