"""One mean of a round: the weighted mean of one sum, or the clipped median of several groups' means.

Legend: D parameters, G groups.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import TooFewPartners
from server.sums import Collected, GroupSum, mean_of, robust_mean, total_of

finite = st.floats(-1e3, 1e3)


def group(*sums: float, count: int = 4, weight: float = 4.0) -> GroupSum:
    return GroupSum(np.array(sums), tuple(map(str, range(count))), weight)


def means(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


# --- one group ----------------------------------------------------------------------------------------------------


def test_the_mean_of_one_group_is_its_sum_over_its_public_weight() -> None:
    collected = Collected(sums=[group(3.0, -1.0, count=3, weight=2.5)])
    assert mean_of(collected, 3, 1).tolist() == [1.2, -0.4]
    assert total_of(collected, 3).tolist() == [3.0, -1.0]
    assert collected.contributed == 3


@pytest.mark.parametrize("take", [lambda collected: mean_of(collected, 4, 1), lambda collected: total_of(collected, 4)])
def test_too_few_contributions_are_no_mean_and_the_reasons_are_told(take: object) -> None:
    short = Collected(sums=[group(1.0, count=3)], errors=["7 of 10 sent shares", "a bad sum"])
    with pytest.raises(TooFewPartners) as refused:
        take(short)  # type: ignore[operator]
    assert str(refused.value) == "3 of at least 4 partners contributed: 7 of 10 sent shares; a bad sum"


def test_no_sum_at_all_is_no_mean_however_few_are_enough() -> None:
    with pytest.raises(TooFewPartners, match="0 of at least 3 partners contributed: no sum came out"):
        mean_of(Collected(), 3, 1)


# --- several groups -----------------------------------------------------------------------------------------------


def test_several_groups_give_the_median_of_their_means() -> None:
    sums = [group(2.0, 8.0, weight=2.0), group(8.0, 2.0, weight=2.0), group(4.0, 4.0, weight=1.0)]
    # Means (1, 4), (4, 1), (4, 4): norms 4.12, 4.12, 5.66; the last is clipped to length 4.12, as (2.92, 2.92).
    clipped = 17**0.5 / 2**0.5
    assert mean_of(Collected(sums=sums), 3, 3) == pytest.approx([clipped, clipped])


def test_no_groups_weight_counts_more_than_anothers() -> None:
    sums = [group(1.0, count=4, weight=0.01), group(2.0, count=4, weight=1.0), group(900.0, count=40, weight=300.0)]
    assert mean_of(Collected(sums=sums), 3, 3).tolist() == [3.0]  # means 100, 2, 3, of which 3 is both median and bound


@pytest.mark.parametrize(
    ("num_groups", "left", "needed"), [(3, 2, 3), (5, 2, 3), (7, 3, 4), (8, 4, 5), (9, 4, 5), (3, 1, 3)]
)
def test_a_median_needs_three_groups_and_a_majority(num_groups: int, left: int, needed: int) -> None:
    collected = Collected(sums=[group(1.0)] * left, errors=["a sum of 4 contributions: one of them was malformed"])
    with pytest.raises(TooFewPartners) as refused:
        mean_of(collected, 3, num_groups)
    assert str(refused.value) == (
        f"{left} of {num_groups} groups came through, {needed} are needed for a median:"
        " a sum of 4 contributions: one of them was malformed"
    )
    collected.sums += [group(1.0)] * (needed - left)
    assert mean_of(collected, 3, num_groups).tolist() == [0.25]


def test_the_minimum_of_partners_counts_over_all_groups() -> None:
    with pytest.raises(TooFewPartners, match="12 of at least 13 partners contributed"):
        mean_of(Collected(sums=[group(1.0)] * 3), 13, 3)


# --- the median ---------------------------------------------------------------------------------------------------


def test_the_median_is_taken_by_coordinate() -> None:
    assert robust_mean(means([1, 0, 0], [0, 1, 0], [0, 0, 1])).tolist() == [0, 0, 0]
    assert robust_mean(means([3, 4], [4, 3], [5, 0])).tolist() == [4, 3]
    assert robust_mean(means([1, 0], [2, 0], [4, 0], [8, 0])).tolist() == [2.5, 0]  # bound 3: 1, 2, 3, 3


def test_a_long_mean_is_clipped_to_the_median_length() -> None:
    # Lengths 5, 10, 50: the third becomes (6, 8), the median of (3, 0, 6) and of (4, 10, 8) follows.
    assert robust_mean(means([3, 4], [0, 10], [30, 40])) == pytest.approx([3, 8])


def test_zero_means_stay_zero() -> None:
    assert robust_mean(means([0, 0], [0, 0], [5, 5])).tolist() == [0, 0]


def test_alike_groups_give_their_own_mean_to_the_bit() -> None:
    mean_D = np.random.default_rng(0).normal(size=50)
    assert np.array_equal(robust_mean([mean_D] * 5), mean_D)


@given(st.data(), st.integers(1, 3))
def test_f_attacked_groups_of_2f_plus_1_cannot_leave_the_range_of_the_honest_ones(
    data: st.DataObject, num_attacked: int
) -> None:
    """Every coordinate stays between the honest means', or between these and 0, to which clipping shrinks them."""
    honest_GD = data.draw(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=num_attacked + 1, max_size=4))
    attacked_GD = data.draw(
        st.lists(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3), min_size=num_attacked, max_size=num_attacked)
    )
    found_D = robust_mean(means(*data.draw(st.permutations(honest_GD + attacked_GD))))
    slack = 1e-9 * (1 + np.abs(honest_GD).max())
    assert (found_D >= np.minimum(np.min(honest_GD, axis=0), 0) - slack).all()
    assert (found_D <= np.maximum(np.max(honest_GD, axis=0), 0) + slack).all()


def test_one_attacked_group_more_leaves_it() -> None:
    """Why G must be at least 2f + 1: three of five groups decide."""
    honest, attacked = [[1.0], [1.0]], [[-900.0]] * 3
    assert robust_mean(means(*honest, *attacked))[0] < -100


def test_a_plain_mean_would_follow_one_attacker_whom_the_median_ignores() -> None:
    rng = np.random.default_rng(1)
    honest = [rng.normal(1.0, 0.1, 20) for _ in range(6)]
    attacked = [*honest, np.full(20, -400.0)]
    assert np.mean(attacked, axis=0).max() < -50
    assert np.abs(robust_mean(attacked) - 1.0).max() < 0.3
