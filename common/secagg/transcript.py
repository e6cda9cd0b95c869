"""Hashes that bind everything: every signature, key and box of a round names what it belongs to.

`digest` is injective in its label and parts: each part is preceded by its type and length.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from common.errors import ProtocolError

PROTOCOL = "hushclick-secagg-v1"
ALGORITHM = "x25519+ed25519+hkdf-sha256+aes256"  # in every session: another one is another session
HASH_BYTES = 32

Part = bytes | str | int
_INTEGER = b"i" + (8).to_bytes(8, "little")


def digest(label: str, *parts: Part) -> bytes:
    """Returns SHA-256 over the protocol's name, a label and the parts, unambiguously; integers are below 2^64.

    Raises:
        ProtocolError: for an integer out of that range.
    """
    return hashlib.sha256(_framed_label(label) + b"".join(map(_framed, parts))).digest()


@lru_cache(maxsize=256)
def _framed_label(label: str) -> bytes:
    return _framed(PROTOCOL) + _framed(label)


def _framed(part: Part) -> bytes:
    """Returns a part behind its type and length."""
    if isinstance(part, int):
        if not 0 <= part < 2**64:
            raise ProtocolError(f"{part}: a whole number from 0 to 2^64 - 1 is needed here")
        return _INTEGER + part.to_bytes(8, "little")
    kind, body = (b"s", part.encode()) if isinstance(part, str) else (b"b", part)
    return kind + len(body).to_bytes(8, "little") + body


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Returns participant numbers as little-endian uint32."""
    return np.fromiter(numbers, dtype="<u4").tobytes()


def require_ascending(numbers: Sequence[int], what: str, most: int) -> None:
    """Raises `ProtocolError` unless the numbers are from 1 to `most`, each once, in ascending order."""
    if any(type(number) is not int or not 1 <= number <= most for number in numbers):
        raise ProtocolError(f"{what}: a participant outside the roster of {most}")
    if any(first >= second for first, second in pairwise(numbers)):
        raise ProtocolError(f"{what}: participants must be named once each, in ascending order")


def session_hash(run_id: str, round_number: int, attempt: int, roster_hash: bytes) -> bytes:
    """Returns the hash that binds advertisements and shares; known before the round's model is."""
    if not (0 <= round_number < 2**32 and 0 <= attempt < 2**32):
        raise ProtocolError(f"round {round_number}, attempt {attempt}: must be from 0 to 2^32 - 1")
    return digest("session", ALGORITHM, run_id, round_number, attempt, roster_hash)


def context_hash(
    session: bytes,
    cohort: Sequence[int],
    first_hash: bytes,
    model_hash: bytes,
    config_hash: bytes,
    threshold: int,
    length: int,
    ring: int,
    bits: int,
    clip: float,
) -> bytes:
    """Returns the hash that binds masks and every signature from MASK on.

    Args:
        session: `session_hash`.
        cohort: participants that were asked, ascending.
        first_hash: H(U1), see `participants_hash`.
        model_hash: of the exact global weights trained from.
        config_hash: of the public configuration that all participants share.
        threshold: shares that reconstruct a secret.
        length: coordinates of the body.
        ring: modulus of the body.
        bits: bits per coordinate of one contribution.
        clip: bound on a coordinate. A participant with a smaller one than its peers would outweigh them in the sum.
    """
    hashes = session, pack_numbers(cohort), first_hash, model_hash, config_hash
    return digest("context", *hashes, threshold, length, ring, bits, struct.pack("<d", clip))


def participants_hash(label: str, session: bytes, content: bytes) -> bytes:
    """Returns H(U1) over the advertisements, or H(U2), H(U3) over packed numbers."""
    return digest(label, session, content)
