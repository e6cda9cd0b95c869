"""What a server sees of one participant is uniform, whatever was masked; each test also rejects what is not masked.

Sources of bytes are fixed, so that a test fails always or never; significance levels are one in a million.

Legend: D coordinates.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2
from vectors.play import Play, Source, cast

from common.secagg import shamir
from common.secagg.coding import PIECE_WORDS
from common.secagg.masking import Masker, MaskKeys, mask_slots, self_mask

LENGTH = 2**16
LEVEL = 1e-6


def chi_square(counts: NDArray[np.int64]) -> float:
    """Pearson's statistic against equal counts."""
    mean = counts.mean()
    return float(((counts - mean) ** 2 / mean).sum())


def is_uniform(body_D: NDArray[np.uint32]) -> bool:
    """Whether each of a body's four bytes, and each bit with its neighbour's, looks uniform."""
    raw = body_D.astype("<u4").view(np.uint8).reshape(-1, 4)
    most = chi2.isf(LEVEL, 255)
    bytes_are = all(chi_square(np.bincount(raw[:, place], minlength=256)) < most for place in range(4))
    following = (body_D[:-1] & 15) << 4 | body_D[1:] & 15
    return bytes_are and chi_square(np.bincount(following, minlength=256)) < most


def differ(one_D: NDArray[np.uint32], other_D: NDArray[np.uint32]) -> bool:
    """Whether two bodies' top bytes are of different distributions (two-sample chi-square)."""
    one, other = (np.bincount(body_D >> 24, minlength=256) for body_D in (one_D, other_D))
    both = one + other
    seen = both > 0
    statistic = ((one - other)[seen] ** 2 / both[seen]).sum()
    return bool(statistic > chi2.isf(LEVEL, int(seen.sum()) - 1))


def bodies(label: str, value: float) -> Play:
    """Three participants; the first contributes `value` in every coordinate."""
    values = {number: np.full(LENGTH, value if number == 1 else 0.25, np.float32) for number in (1, 2, 3)}
    return Play(cast([1.0] * 3), values, Source(label)).until("confirm")


@pytest.fixture(scope="module")
def zeros() -> Play:
    return bodies("zeros", 0.0)


@pytest.fixture(scope="module")
def ones() -> Play:
    return bodies("ones", 1.0)


def body_of(played: Play, number: int = 1) -> NDArray[np.uint32]:
    body_D = played.steps["mask"][number].body
    assert body_D is not None
    return body_D


def coded_of(played: Play) -> NDArray[np.uint32]:
    coded_D = played.steps["mask"][1].coded
    assert coded_D is not None
    return coded_D


def test_a_masked_body_is_uniform_whatever_it_holds(zeros: Play, ones: Play) -> None:
    for played in (zeros, ones):
        for number in (1, 2, 3):
            assert is_uniform(body_of(played, number))


def test_bodies_of_different_inputs_and_fresh_keys_are_alike(zeros: Play, ones: Play) -> None:
    assert not differ(body_of(zeros), body_of(ones))


def test_what_is_not_masked_is_rejected(zeros: Play, ones: Play) -> None:
    """The tests above have power: plain words, and words under a constant mask, fail them."""
    draw = np.random.default_rng(0)
    spread_D = draw.normal(0, 2**22, LENGTH).astype(np.int32).view(np.uint32)
    for unmasked_D in (coded_of(zeros), coded_of(ones), spread_D, coded_of(ones) + np.uint32(123_456_789)):
        assert not is_uniform(unmasked_D)
    assert differ(coded_of(zeros), coded_of(ones))
    assert differ(spread_D, spread_D // np.uint32(4))
    assert not is_uniform(np.arange(LENGTH, dtype=np.uint32))  # every value once, yet in order


def test_a_body_without_one_of_its_masks_is_still_uniform(ones: Play) -> None:
    """A colluding peer knows one pairwise mask, or the seed came out: the others hide the body still."""
    opened = ones.steps["mask"][1].opened
    assert opened is not None
    assert len(opened.masks) == 3
    for known in range(3):
        left_D = body_of(ones).copy()
        Masker([_undo(opened.masks[known])]).apply(left_D)
        assert is_uniform(left_D)
    bare_D = body_of(ones).copy()
    Masker([_undo(mask) for mask in opened.masks]).apply(bare_D)
    assert np.array_equal(bare_D, coded_of(ones))


def _undo(mask: MaskKeys) -> MaskKeys:
    return MaskKeys(mask.body, mask.slots, subtract=not mask.subtract)


def test_a_body_is_not_correlated_with_its_input() -> None:
    """Half of the coordinates are at the bound, half at its opposite: in the masked body one cannot tell which."""
    half = np.random.default_rng(1).permutation(np.repeat([1.0, -1.0], LENGTH // 2)).astype(np.float32)
    values = {number: half if number == 1 else np.zeros(LENGTH, np.float32) for number in (1, 2, 3)}
    played = Play(cast([1.0] * 3), values, Source("halves")).until("confirm")
    signs = np.sign(half)
    noise = 5 / np.sqrt(LENGTH)
    for words_D, seen in ((body_of(played), False), (coded_of(played), True)):
        signed = words_D.view(np.int32).astype(np.float64)
        assert (abs(np.corrcoef(signed, signs)[0, 1]) > noise) == seen


def test_masked_slots_hide_weight_and_count() -> None:
    """Over 300 rounds, each of the first slot's eight bytes is uniform in its upper half; unmasked it is constant."""
    found = []
    for number in range(300):
        mask = self_mask(number.to_bytes(32, "little"), bytes(32), 1)
        slots_S = np.array([2**32, 1], np.uint64)
        mask_slots(slots_S, [mask])
        found.append(slots_S.view(np.uint8) >> 4)
    nibbles = np.array(found)
    for place in range(16):
        assert chi_square(np.bincount(nibbles[:, place], minlength=16)) < chi2.isf(LEVEL, 15)
    plain = np.array([2**32, 1], np.uint64).view(np.uint8) >> 4
    assert chi_square(np.bincount(np.repeat(plain[0], 300), minlength=16)) > chi2.isf(LEVEL, 15)


def test_shares_are_uniform_whatever_the_secret() -> None:
    """One share of a threshold of two, for the zero secret and for the largest."""
    source = Source("uniform shares")
    for secret in (bytes(32), b"\xff" * 32):
        first = b"".join(shamir.split(secret, (1, 2), 2, source)[0][:32] for _ in range(2000))
        counts = np.bincount(np.frombuffer(first, np.uint8), minlength=256)
        assert chi_square(counts) < chi2.isf(LEVEL, 255)
    fixed = b"".join(shamir.split(bytes(32), (1, 2), 1, source)[0][:32] for _ in range(2000))  # no mask at all
    assert chi_square(np.bincount(np.frombuffer(fixed, np.uint8), minlength=256)) > chi2.isf(LEVEL, 255)


def test_pieces_of_one_body_do_not_share_a_keystream() -> None:
    """A long body of zeros, masked: no piece repeats, so that no difference of two pieces shows their inputs'."""
    body_D = np.zeros(3 * PIECE_WORDS, np.uint32)
    Masker([self_mask(bytes(32), bytes(32), 1)]).apply(body_D)
    pieces = body_D.reshape(3, PIECE_WORDS)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert is_uniform(pieces[one] - pieces[other])
    assert is_uniform(body_D)
