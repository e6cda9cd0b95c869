"""Keystreams and masks: known answers, piece by piece as in one go, and what cancels.

Legend: D coordinates of the body, S slots.
"""

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.secagg import masking
from common.secagg.keys import public_key
from common.secagg.masking import Masker, MaskKeys, keystream_words, mask_slots, pair_mask, self_mask

BLOCK = 2**15
CONTEXT = bytes(range(100, 132))
SECRETS = {number: bytes([number]) * 32 for number in (1, 2, 3, 4)}
PUBLIC = {number: public_key(secret) for number, secret in SECRETS.items()}


def ecb_counters(key: bytes, num_blocks: int) -> bytes:
    """AES-256 in plain ECB over the counters 0, 1, 2, ...: what CTR from zero must give."""
    encryptor = Cipher(AES256(key), ECB()).encryptor()
    return encryptor.update(b"".join(counter.to_bytes(16, "big") for counter in range(num_blocks)))


def masks_of(number: int, peers: list[int]) -> list[MaskKeys]:
    return [pair_mask(SECRETS[number], PUBLIC[peer], CONTEXT, number, peer) for peer in peers if peer != number]


def words(count: int, seed: int = 0) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


def test_the_keystream_is_that_of_sp_800_38a(monkeypatch: pytest.MonkeyPatch) -> None:
    """F.5.5, CTR-AES256.Encrypt, with its initial counter in place of our zeros."""
    monkeypatch.setattr(masking, "_COUNTER", bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = (
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = keystream_words(key, 16).astype("<u4").tobytes()
    assert bytes(a ^ b for a, b in zip(stream, bytes.fromhex(plain), strict=True)).hex() == cipher


@pytest.mark.parametrize("count", [1, 3, 4, 5, 1000, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_the_keystream_is_aes_over_counters_from_zero_in_little_endian_words(count: int) -> None:
    key = bytes(range(32))
    expected = np.frombuffer(ecb_counters(key, count // 4 + 1), "<u4")[:count]
    assert keystream_words(key, count).tolist() == expected.tolist()


def test_the_first_words_of_the_zero_key_by_hand() -> None:
    """AES-256 of the zero block under the zero key is dc95c078 a2408989 ad48a214 92842087."""
    assert [f"{word:08x}" for word in keystream_words(bytes(32), 4).tolist()] == [
        "78c095dc",
        "898940a2",
        "14a248ad",
        "87208492",
    ]


def test_masks_add_and_subtract_modulo_two_to_32() -> None:
    body_D = np.array([0, 2**32 - 1, 5], np.uint32)
    stream = keystream_words(bytes(32), 3).tolist()
    Masker([MaskKeys(bytes(32), bytes(32))]).apply(body_D)
    assert body_D.tolist() == [(word + key) % 2**32 for word, key in zip((0, 2**32 - 1, 5), stream, strict=True)]
    Masker([MaskKeys(bytes(32), bytes(32), subtract=True)]).apply(body_D)
    assert body_D.tolist() == [0, 2**32 - 1, 5]


def test_slots_take_eight_bytes_a_word_of_their_own_key() -> None:
    slots_S = np.array([2**64 - 1, 1], np.uint64)
    stream = np.frombuffer(ecb_counters(bytes([1]) * 32, 1), "<u8").tolist()
    mask = MaskKeys(bytes(32), bytes([1]) * 32)
    mask_slots(slots_S, [mask])
    assert slots_S.tolist() == [(2**64 - 1 + stream[0]) % 2**64, (1 + stream[1]) % 2**64]
    mask_slots(slots_S, [MaskKeys(mask.body, mask.slots, subtract=True)])
    assert slots_S.tolist() == [2**64 - 1, 1]


@pytest.mark.parametrize(
    "sizes",
    [
        [1] * 40,
        [7, 33],
        [BLOCK, BLOCK, 5],
        [BLOCK - 1, 2, BLOCK + 3],
        [3 * BLOCK + 1],
        [4, 0, 12, BLOCK],
        [2, 2, 1, 99],
    ],
)
def test_piece_by_piece_is_as_in_one_go(sizes: list[int]) -> None:
    """Pieces of any sizes, also those that end within a cipher block."""
    whole_D, masks = words(sum(sizes)), [self_mask(bytes(32), CONTEXT, 1), *masks_of(1, [2, 3])]
    pieces = np.split(whole_D.copy(), np.cumsum(sizes)[:-1])
    masker = Masker(masks)
    for piece_D in pieces:
        masker.apply(piece_D)
    Masker(masks).apply(whole_D)
    assert np.array_equal(np.concatenate(pieces), whole_D)


def test_an_upload_of_a_whole_body_masks_a_view_of_it_alone() -> None:
    """No aliasing: words beside the piece, and a piece masked earlier, stay as they are."""
    body_D = words(3 * BLOCK)
    before_D = body_D.copy()
    masker = Masker(masks_of(1, [2, 3]))
    first_D, second_D = body_D[100 : BLOCK + 150], body_D[2 * BLOCK :]
    masker.apply(first_D)
    kept_D = first_D.copy()
    masker.apply(second_D)
    assert np.array_equal(first_D, kept_D)
    assert np.array_equal(body_D[:100], before_D[:100])
    assert np.array_equal(body_D[BLOCK + 150 : 2 * BLOCK], before_D[BLOCK + 150 : 2 * BLOCK])
    assert not np.array_equal(first_D, before_D[100 : BLOCK + 150])


def test_two_maskers_do_not_share_a_stream_or_a_buffer() -> None:
    one, other = Masker(masks_of(1, [2])), Masker(masks_of(1, [3]))
    found = np.zeros((2, 64), np.uint32)
    for at in range(0, 64, 8):
        one.apply(found[0, at : at + 8])
        other.apply(found[1, at : at + 8])
    for row_D, peer in zip(found, (2, 3), strict=True):
        assert np.array_equal(row_D, keystream_words(masks_of(1, [peer])[0].body, 64))


@pytest.mark.parametrize("group", list(itertools.chain(*(itertools.combinations((1, 2, 3, 4), n) for n in (2, 3, 4)))))
def test_pair_masks_cancel(group: tuple[int, ...]) -> None:
    total_D, slots_S = np.zeros(100, np.uint32), np.zeros(2, np.uint64)
    for number in group:
        masked_D = np.zeros(100, np.uint32)
        Masker(masks_of(number, list(group))).apply(masked_D)
        assert masked_D.any()
        total_D += masked_D
        mask_slots(slots_S, masks_of(number, list(group)))
    assert not total_D.any()
    assert not slots_S.any()


def test_a_missing_participant_leaves_every_mask_in() -> None:
    total_D = np.zeros(100, np.uint32)
    for number in (1, 2, 3):
        Masker(masks_of(number, [1, 2, 3, 4])).apply(total_D)
    left_D = np.zeros(100, np.uint32)
    Masker(masks_of(4, [1, 2, 3])).apply(left_D)
    assert np.array_equal(total_D + left_D, np.zeros(100, np.uint32))
    assert np.count_nonzero(total_D) > 95


def test_both_ends_of_a_pair_have_one_key_and_two_signs() -> None:
    low, high = masks_of(1, [2])[0], masks_of(2, [1])[0]
    assert (low.body, low.slots, low.subtract, high.subtract) == (high.body, high.slots, False, True)


def test_every_mask_has_a_key_of_its_own() -> None:
    """Body and slots, self and pairs, contexts and participants: one key, one mask."""
    other = bytes(32)
    masks = [self_mask(bytes(32), CONTEXT, 1), self_mask(bytes(32), CONTEXT, 2), self_mask(bytes(32), other, 1)]
    masks += masks_of(1, [2, 3, 4]) + masks_of(2, [3, 4])
    masks += [pair_mask(SECRETS[1], PUBLIC[2], other, 1, 2)]
    keys = [key for mask in masks for key in (mask.body, mask.slots)]
    assert len(set(keys)) == len(keys) == 18


def test_low_order_mask_keys_are_refused() -> None:
    with pytest.raises(ProtocolError, match="low order"):
        pair_mask(SECRETS[1], bytes(32), CONTEXT, 1, 2)


def test_nothing_to_mask_is_no_error() -> None:
    empty_D = np.zeros(0, np.uint32)
    Masker(masks_of(1, [2])).apply(empty_D)
    assert keystream_words(bytes(32), 0).tolist() == []
