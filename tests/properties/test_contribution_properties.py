"""Sums of contributions: exact to their resolution, and the same to the bit in every order of arrival."""

import random
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contribution import LocalDelta, NoisedStep, RunningSum
from common.errors import ProtocolError

LENGTH = 3
values = st.floats(-32_000, 32_000, width=32)
weights = st.floats(2**-20, 1.0)
updates = st.lists(
    st.builds(
        lambda numbers, weight: LocalDelta(np.array(numbers, np.float32), weight),
        st.lists(values, min_size=LENGTH, max_size=LENGTH),
        weights,
    ),
    min_size=1,
    max_size=12,
)
steps = st.lists(
    st.builds(
        lambda numbers, units: NoisedStep(np.array(numbers, np.int64), units),
        st.lists(st.integers(1 - 2**47, 2**47 - 1), min_size=LENGTH, max_size=LENGTH),
        st.integers(1, 2**53),
    ),
    min_size=1,
    max_size=12,
)


def sum_of(contributions: list[LocalDelta] | list[NoisedStep]) -> RunningSum:
    total = RunningSum(LENGTH, type(contributions[0]))
    for contribution in contributions:
        total.add(contribution)
    return total


@settings(max_examples=150, deadline=None)
@given(st.one_of(updates, steps), st.randoms(use_true_random=False))
def test_sum_and_mean_do_not_depend_on_the_order(
    contributions: list[LocalDelta] | list[NoisedStep], shuffler: random.Random
) -> None:
    shuffled = list(contributions)
    shuffler.shuffle(shuffled)
    one, other = sum_of(contributions), sum_of(shuffled)
    assert one.total(1).tobytes() == other.total(1).tobytes()
    assert one.mean(1).tobytes() == other.mean(1).tobytes()


def test_a_float_sum_of_these_weights_would_depend_on_the_order() -> None:
    """The example that the property must survive: .1 + .7 + .3 differs from .3 + .1 + .7 in the last bit."""
    assert 0.1 + 0.7 + 0.3 != 0.3 + 0.1 + 0.7
    means = {
        sum_of([LocalDelta(np.full(LENGTH, 1 / 3, np.float32), weight) for weight in order]).mean(1).tobytes()
        for order in ((0.1, 0.7, 0.3), (0.3, 0.1, 0.7), (0.7, 0.3, 0.1))
    }
    assert len(means) == 1


@settings(max_examples=150, deadline=None)
@given(updates)
def test_the_sum_is_the_rational_sum_to_its_resolution(contributions: list[LocalDelta]) -> None:
    found = sum_of(contributions).total(1)
    for column in range(LENGTH):
        exact = sum(Fraction(float(each.delta_D[column])) * Fraction(each.weight) for each in contributions)
        # half a unit of 2^-32 each, the float64 product's rounding, and that of the sum as a float64
        slack = len(contributions) * (Fraction(1, 2**33) + Fraction(32_000, 2**52)) + abs(exact) / 2**52
        assert abs(Fraction(float(found[column])) - exact) <= slack


@settings(max_examples=100, deadline=None)
@given(steps)
def test_steps_sum_exactly(contributions: list[NoisedStep]) -> None:
    total = sum_of(contributions)
    exact = [sum(int(each.sum_D[column]) for each in contributions) for column in range(LENGTH)]
    assert total.total(1).tolist() == [float(number) for number in exact]
    assert total.weight == float(sum(each.declared_units for each in contributions))


@settings(max_examples=100, deadline=None)
@given(updates, st.sampled_from([np.nan, np.inf, -np.inf, 2.0**15, 3e38]), st.integers(0, LENGTH - 1))
def test_what_is_refused_leaves_no_trace(contributions: list[LocalDelta], bad: float, column: int) -> None:
    total = sum_of(contributions)
    before = total.total(1).tobytes(), total.mean(1).tobytes(), total.count
    spoilt = np.ones(LENGTH, np.float32)
    spoilt[column] = bad
    try:
        total.add(LocalDelta(spoilt, 1.0))
    except ProtocolError:
        assert (total.total(1).tobytes(), total.mean(1).tobytes(), total.count) == before
    else:
        raise AssertionError(f"{bad} was accepted")
