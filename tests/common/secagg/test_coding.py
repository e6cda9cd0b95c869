"""Real numbers on the grid: by hand, unbiased, at most one step off, and never a wrapped sum.

Legend: D coordinates.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.secagg.coding import PIECE_WORDS, Coding, decode, encode, require_codable
from common.secagg.masking import keystream_words

KEY = bytes(range(32))
EIGHT = Coding(8, 1.0)  # limit 128, scale 127


def coded(value_D: NDArray[np.generic], weight: float = 1.0, coding: Coding = EIGHT, key: bytes = KEY) -> list[int]:
    words_D = np.concatenate(list(encode(value_D, weight, coding, key)))
    assert words_D.dtype == np.uint32
    signed: list[int] = words_D.view(np.int32).tolist()
    return signed


def test_scale_and_limit_by_hand() -> None:
    assert (EIGHT.limit, EIGHT.scale) == (128, 127.0)
    assert (Coding(26, 0.5).limit, Coding(26, 0.5).scale) == (2**25, (2**25 - 1) / 0.5)
    assert (Coding(12, 0.0).limit, Coding(12, 0.0).scale) == (2048, 1.0)


def test_words_by_hand() -> None:
    """floor(x * 127 + u) in two's complement; values on the grid do not depend on u."""
    value_D = np.array([0.0, 1.0, -1.0, 1 / 127, -1 / 127, 64 / 127], np.float64)
    assert coded(value_D) == [0, 127, -127, 1, -1, 64]
    (words_D,) = encode(np.array([-1.0]), 1.0, EIGHT, KEY)
    assert words_D.tolist() == [2**32 - 127]


def test_each_word_is_what_its_draw_makes_of_it() -> None:
    """Against exact fractions: x * scale + draw / 2^32, rounded down."""
    value_D = np.random.default_rng(0).uniform(-1, 1, 500).astype(np.float32)
    draw_D = keystream_words(KEY, 500).tolist()
    expected = [
        math.floor(Fraction(float(x)) * 127 + Fraction(u, 2**32)) for x, u in zip(value_D.tolist(), draw_D, strict=True)
    ]
    assert coded(value_D) == expected


def test_the_weight_scales_before_the_clip() -> None:
    assert coded(np.array([1.0, -1.0, 4.0, -8.0]), 0.5, Coding(8, 1.0)) in (
        [63, -64, 127, -127],
        [63, -63, 127, -127],
        [64, -64, 127, -127],
        [64, -63, 127, -127],
    )
    assert coded(np.array([2.0, 1.0]), 0.5, Coding(8, 1.0))[0] == 127


def test_equal_keys_round_alike_and_others_do_not() -> None:
    value_D = np.full(400, 0.1, np.float32)
    assert coded(value_D) == coded(value_D)
    assert coded(value_D) != coded(value_D, key=bytes(32))


@pytest.mark.parametrize("x", [0.003, -0.003, 0.5, -0.7001, 0.9999])
def test_rounding_is_unbiased_and_at_most_one_step_off(x: float) -> None:
    """The mean over 40,000 draws lies within five standard errors of a Bernoulli's; 1/20 step of bias does not."""
    found_D = np.array(coded(np.full(40_000, x, np.float64)))
    exact = x * 127
    assert set(found_D.tolist()) <= {math.floor(exact), math.floor(exact) + 1}
    part = exact - math.floor(exact)
    spread = 5 * math.sqrt(part * (1 - part) / 40_000)
    assert abs(found_D.mean() - exact) < spread
    assert spread < 0.05


def test_rounding_to_the_nearest_would_be_caught() -> None:
    assert abs(round(0.003 * 127) - 0.003 * 127) > 0.05


def test_draws_differ_from_piece_to_piece() -> None:
    found_D = np.array(coded(np.full(2 * PIECE_WORDS, 0.5 / 127)))
    assert found_D[:1000].tolist() != found_D[PIECE_WORDS : PIECE_WORDS + 1000].tolist()
    assert len(list(encode(np.zeros(PIECE_WORDS + 1), 1.0, EIGHT, KEY))) == 2


@pytest.mark.parametrize("bits", [2, 8, 12, 23, 26, 28, 30])
def test_no_word_is_over_the_limit(bits: int) -> None:
    coding = Coding(bits, 1.0)
    value_D = np.tile(np.array([1.0, -1.0, 1e30, -1e30, np.nextafter(1.0, 0)]), 2000)
    assert max(abs(word) for word in coded(value_D, 1.0, coding)) <= coding.limit


def test_what_no_grid_holds_is_clamped_and_nan_counts_zero() -> None:
    value_D = np.array([np.nan, np.inf, -np.inf, 3.0, -3.0, 3e38], np.float32)
    assert coded(value_D) == [0, 127, -127, 127, -127, 127]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, np.int64])
def test_every_type_of_number_is_coded_in_double_precision(kind: type) -> None:
    assert coded(np.array([0, 1, -1]).astype(kind)) == [0, 127, -127]
    assert coded(np.array([60_000.0, -2.0], np.float16), 0.5, Coding(20, 30_000.0))[0] == 2**19 - 1


def test_without_a_clip_words_are_the_integers_and_weights_left_out() -> None:
    value_D = np.array([0, 5, -5, 2**31, -(2**31) - 1, 2**40 + 3])
    assert coded(value_D, 0.5, Coding(12, 0.0)) == [0, 5, -5, -(2**31), 2**31 - 1, 3]


def test_coding_leaves_its_input_alone() -> None:
    value_D = np.array([0.3, np.nan], np.float64)
    coded(value_D, 0.5)
    assert value_D[0] == 0.3
    assert np.isnan(value_D[1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.nan, "not finite"),
        (np.inf, "not finite"),
        (-np.inf, "not finite"),
        (1.001, r"over aggregation.update_bound = 1; raise the bound"),
        (-1.001, r"over aggregation.update_bound = 1; raise the bound"),
    ],
)
def test_without_privacy_what_the_grid_cannot_hold_is_refused(value: float, text: str) -> None:
    value_D = np.zeros(3, np.float32)
    value_D[1] = value
    with pytest.raises(ProtocolError, match=text):
        require_codable(value_D, 1.0, EIGHT)


def test_refusals_look_behind_the_first_piece() -> None:
    value_D = np.zeros(PIECE_WORDS + 2, np.float32)
    value_D[-1] = np.nan
    with pytest.raises(ProtocolError, match="not finite"):
        require_codable(value_D, 1.0, EIGHT)


def test_what_fits_once_weighted_is_codable() -> None:
    require_codable(np.array([2.0, -2.0, 0.0], np.float16), 0.5, EIGHT)
    require_codable(np.array([], np.float32), 1.0, EIGHT)
    require_codable(np.array([2047, -2047]), 1.0, Coding(12, 0.0))
    with pytest.raises(ProtocolError, match=r"over 2\^11 - 1"):
        require_codable(np.array([2048]), 1.0, Coding(12, 0.0))


def test_integers_are_held_against_the_bound_without_the_weight_that_coding_leaves_out() -> None:
    with pytest.raises(ProtocolError, match=r"over 2\^11 - 1"):
        require_codable(np.array([4000]), 0.5, Coding(12, 0.0))


def test_a_sum_decodes_to_the_sum_of_its_words() -> None:
    sum_D = np.array([3 * 127, 2**32 - 3 * 127, 0, 1], np.uint32)
    assert decode(sum_D, 3, EIGHT).tolist() == [3.0, -3.0, 0.0, 1 / 127]
    assert decode(np.array([2**32 - 9], np.uint32), 3, Coding(8, 0.0)).tolist() == [-9.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_over_the_bound_proves_a_malformed_contribution(sign: int) -> None:
    good, bad = (np.array([0, sign * word]).astype(np.int32).view(np.uint32) for word in (3 * 128, 3 * 128 + 1))
    assert decode(good, 3, EIGHT)[1] == pytest.approx(sign * 384 / 127)
    with pytest.raises(ProtocolError, match="a sum of 3 contributions with coordinates over 384: one of them was malf"):
        decode(bad, 3, EIGHT)
    with pytest.raises(ProtocolError, match="malformed"):
        decode(np.array([2**31], np.uint32), 3, EIGHT)


def test_room_is_what_leaves_two_bits_of_headroom() -> None:
    """n * 2^(bits - 1) < 2^29, by hand: 4 * 2^27 = 2^29 is too much, 3 * 2^27 is not."""
    Coding(28, 1.0).require_room(3)
    with pytest.raises(ProtocolError, match="bits = 28 for 4 participants: their sum could wrap"):
        Coding(28, 1.0).require_room(4)
    Coding(2, 1.0).require_room(2**28 - 1)
    with pytest.raises(ProtocolError, match="could wrap"):
        Coding(2, 1.0).require_room(2**28)


@pytest.mark.parametrize("bits", [-1, 0, 1, 31, 32, 64])
def test_bits_that_no_grid_has(bits: int) -> None:
    with pytest.raises(ProtocolError, match=f"bits = {bits}: must be from 2 to 30"):
        Coding(bits, 1.0)


@pytest.mark.parametrize("clip", [-1.0, math.nan, math.inf])
def test_clips_that_no_grid_has(clip: float) -> None:
    with pytest.raises(ProtocolError, match=f"update_bound = {clip}: must be finite and at least 0"):
        Coding(8, clip)
