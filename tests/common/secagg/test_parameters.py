"""Thresholds, least sums and bits, by hand."""

import pytest

from common.errors import ProtocolError
from common.secagg.parameters import (
    MOST_PARTICIPANTS,
    Policy,
    Shape,
    bits_for,
    least_contributors,
    majority,
    shape,
)

THRESHOLDS = [  # n, c -> floor((n + c) / 2) + 1
    (3, 0, 2),
    (3, 1, 3),
    (4, 0, 3),
    (4, 1, 3),
    (4, 2, 4),
    (5, 0, 3),
    (5, 1, 4),
    (6, 1, 4),
    (10, 1, 6),
    (10, 2, 7),
    (10, 8, 10),
    (100, 1, 51),
    (100, 33, 67),
]


@pytest.mark.parametrize(("n", "c", "t"), THRESHOLDS)
def test_the_threshold_table(n: int, c: int, t: int) -> None:
    assert majority(n, c) == t
    found = shape(n, c)
    assert found == Shape(n, t, max(t, 3, c + 2), complete=True)


def test_two_sets_of_threshold_size_share_an_honest_participant() -> None:
    """2t > n + c: two confirmed views of the survivors cannot both be had; and t - 1 would not do."""
    for n in range(3, 101):
        for c in range(n - 1):
            t = shape(n, c).threshold
            assert 2 * t > n + c >= 2 * (t - 1)
            assert c < t <= n


def test_the_least_sum_holds_two_honest_contributions() -> None:
    assert [least_contributors(c) for c in (0, 1, 2, 3, 10)] == [3, 3, 4, 5, 12]
    assert shape(3, 0) == Shape(3, 2, 3, complete=True)  # two shares open, and yet no sum of two comes out


@pytest.mark.parametrize("n", [-1, 0, 1, 2])
def test_fewer_than_three_are_refused(n: int) -> None:
    with pytest.raises(
        ProtocolError, match=rf"{n} participants: secure aggregation needs at least 3 \(colluders = 1\)"
    ):
        shape(n, 1)


def test_more_colluders_need_more_participants() -> None:
    assert shape(5, 3).threshold == 5
    with pytest.raises(ProtocolError, match=r"4 participants: secure aggregation needs at least 5 \(colluders = 3\)"):
        shape(4, 3)
    with pytest.raises(ProtocolError, match="colluders = -1: must be at least 0"):
        shape(5, -1)
    with pytest.raises(ProtocolError, match=f"and at most {MOST_PARTICIPANTS}"):
        shape(MOST_PARTICIPANTS + 1, 0)


def test_above_one_hundred_neighbours_hold_the_shares() -> None:
    assert shape(100, 1).complete
    found = shape(101, 1)
    assert not found.complete
    assert found.threshold < found.num_holders < 101
    assert found.least_survivors == majority(101, 1) == 52


BITS = [  # n -> bits; the next one up is n * 2^bits >= 2^29
    (1, 28),
    (3, 28),
    (4, 27),
    (5, 27),
    (7, 27),
    (8, 26),
    (10, 26),
    (100, 23),
    (1000, 20),
    (1023, 20),
    (1024, 19),
    (65_536, 13),
]


@pytest.mark.parametrize(("n", "bits"), BITS)
def test_bits_by_hand(n: int, bits: int) -> None:
    assert bits_for(n) == bits


def test_bits_leave_room_and_no_more_than_that() -> None:
    for n in [*range(1, 2000), 2**15, 2**16 - 1, 2**16]:
        bits = bits_for(n)
        assert n * 2 ** (bits - 1) < 2**29
        assert bits == 28 or n * 2**bits >= 2**29


@pytest.mark.parametrize("n", [0, -3, 65_537])
def test_bits_for_numbers_that_are_refused(n: int) -> None:
    with pytest.raises(ProtocolError, match=f"{n} participants: must be from 1 to 65536"):
        bits_for(n)


def test_a_policy_is_strict_unless_told() -> None:
    policy = Policy()
    assert (policy.colluders, policy.least_participants, policy.least_threshold) == (1, 3, 2)
    assert (policy.least_bits, policy.most_bits) == (12, 28)
