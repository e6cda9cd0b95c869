"""Masks: AES-256-CTR keystreams added to a body modulo 2^32 and to slots modulo 2^64.

Fixed once, for every implementation: the initial counter block is 16 zero bytes, keystream words are little-endian,
one key makes one keystream, and body and slots have keys of different labels. Of a pair, the lower number adds and
the higher subtracts.

A block of every keystream is added before the next block is made: the block of the body stays in the cache.

Legend: D coordinates of the body, S slots.
Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", section 4;
SP 800-38A section 6.5 (CTR).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from common.secagg.keys import agree, derive

_BLOCK_WORDS = 2**15  # 128 KiB of uint32
_COUNTER = bytes(16)


@dataclass(frozen=True)
class MaskKeys:
    """The keys of one mask, and whether it is added or subtracted."""

    body: bytes = field(repr=False)
    slots: bytes = field(repr=False)
    subtract: bool = False


def self_mask(seed: bytes, context: bytes, number: int) -> MaskKeys:
    """Returns the mask of a participant's own seed b_i."""
    return MaskKeys(derive(seed, context, "self body", number), derive(seed, context, "self slots", number))


def pair_mask(secret: bytes | X25519PrivateKey, peer_key: bytes, context: bytes, own: int, peer: int) -> MaskKeys:
    """Returns the mask that `own` shares with `peer`; both derive the same keys and opposite signs.

    Raises:
        ProtocolError: for a peer key of low order.
    """
    shared = agree(secret, peer_key)
    low, high = min(own, peer), max(own, peer)
    body, slots = (derive(shared, context, f"mask {part}", low, high) for part in ("body", "slots"))
    return MaskKeys(body, slots, subtract=own > peer)


class Masker:
    """Adds masks to a body piece by piece, in order; the keystreams go on where the last piece ended."""

    def __init__(self, masks: Sequence[MaskKeys]) -> None:
        self._streams = [(_Keystream(mask.body), mask.subtract) for mask in masks]
        # A CTR encryptor wants room for one more block than it writes.
        self._key_bytes = np.empty(4 * _BLOCK_WORDS + 16, np.uint8)

    def apply(self, body_D: NDArray[np.uint32]) -> None:
        """Adds (or subtracts) every mask to the next piece of the body, in place, modulo 2^32."""
        for start in range(0, len(body_D), _BLOCK_WORDS):
            block = body_D[start : start + _BLOCK_WORDS]
            key = self._key_bytes[: 4 * len(block)].view("<u4")
            for stream, subtract in self._streams:
                stream.fill(self._key_bytes, 4 * len(block))
                if subtract:
                    np.subtract(block, key, out=block)
                else:
                    np.add(block, key, out=block)


def mask_slots(slots_S: NDArray[np.uint64], masks: Sequence[MaskKeys]) -> None:
    """Adds (or subtracts) every mask's slot words to the slots, in place, modulo 2^64."""
    buffer = np.empty(8 * len(slots_S) + 16, np.uint8)
    for mask in masks:
        _Keystream(mask.slots).fill(buffer, 8 * len(slots_S))
        key_S = buffer[: 8 * len(slots_S)].view("<u8")
        slots_S[...] = slots_S - key_S if mask.subtract else slots_S + key_S


def keystream_words(key: bytes, count: int) -> NDArray[np.uint32]:
    """Returns the first words of a key's stream."""
    words = np.zeros(count, np.uint32)
    Masker([MaskKeys(key, key)]).apply(words)
    return words


class _Keystream:
    """One AES-256-CTR keystream."""

    _zeros = bytes(4 * _BLOCK_WORDS)

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(AES256(key), CTR(_COUNTER)).encryptor()

    def fill(self, buffer: NDArray[Any], count: int) -> None:
        """Writes the next `count` bytes into a buffer of at least 16 bytes more."""
        self._encryptor.update_into(memoryview(self._zeros)[:count], buffer.data)
