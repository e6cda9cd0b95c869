"""Secure aggregation a second time, from docs/SECAGG.md: hashlib, `cryptography` and Python integers.

It shares no line with `common.secagg` and is slow on purpose; the vectors are checked against it.
"""

import hashlib
import hmac
import math
import struct
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

PRIME = 2**256 + 297


def le(number: int, size: int) -> bytes:
    """A little-endian integer."""
    return number.to_bytes(size, "little")


def H(label: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 over protocol, label and parts, each as type letter, 8-byte length and content."""
    text = b""
    for part in ("hushclick-secagg-v1", label, *parts):
        if isinstance(part, str):
            letter, content = b"s", part.encode("utf-8")
        elif isinstance(part, int):
            letter, content = b"i", le(part, 8)
        else:
            letter, content = b"b", part
        text += letter + le(len(content), 8) + content
    return hashlib.sha256(text).digest()


def numbers(participants: Sequence[int]) -> bytes:
    """Participant numbers, four bytes each."""
    return b"".join(le(number, 4) for number in participants)


def roster_hash(members: Sequence[tuple[str, str, float]]) -> bytes:
    """Over name, key in hex and weight in 2^-32, in name order."""
    parts: list[str | int] = []
    for name, key, weight in sorted(members):
        parts += [name, key, round(weight * 2**32)]
    return H("roster", *parts)


def session_hash(run_id: str, round_number: int, attempt: int, roster: bytes) -> bytes:
    """What binds advertisements and shares."""
    return H("session", "x25519+ed25519+hkdf-sha256+aes256", run_id, round_number, attempt, roster)


def context_hash(
    session: bytes,
    cohort: Sequence[int],
    first: bytes,
    model: bytes,
    config: bytes,
    threshold: int,
    length: int,
    bits: int,
    clip: float,
) -> bytes:
    """What binds masks and every signature from MASK on."""
    grid = threshold, length, 2**32, bits, struct.pack("<d", clip)
    return H("context", session, numbers(cohort), first, model, config, *grid)


def signature(seed: bytes, label: str, *parts: bytes | str | int) -> bytes:
    """Ed25519 over a hash."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(H(label, *parts))


def point(secret: bytes) -> bytes:
    """The X25519 public key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, public: bytes) -> bytes:
    """The X25519 shared secret."""
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def hkdf(secret: bytes, salt: bytes, *info: bytes | str | int) -> bytes:
    """RFC 5869 with one output block."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, H("hkdf", *info) + b"\x01", "sha256")


def shares(secret: bytes, holders: Sequence[int], draws: Sequence[bytes]) -> dict[int, bytes]:
    """Shamir's shares, 33 bytes each; draws are the coefficients, the highest power first, 48 bytes each."""
    powers = [int.from_bytes(draw, "little") % PRIME for draw in draws][::-1]
    found = {}
    for holder in holders:
        value = int.from_bytes(secret, "little")
        for power, coefficient in enumerate(powers, start=1):
            value += coefficient * holder**power
        found[holder] = le(value % PRIME, 33)
    return found


def secret_of(found: dict[int, bytes]) -> bytes:
    """Lagrange at 0."""
    total = 0
    for here, share in found.items():
        top = bottom = 1
        for other in found:
            if other != here:
                top, bottom = top * -other, bottom * (here - other)
        total += int.from_bytes(share, "little") * top * pow(bottom, -1, PRIME)
    return le(total % PRIME, 32)


def box(key: bytes, content: bytes, associated: bytes) -> bytes:
    """AES-256-GCM with a zero nonce."""
    return AESGCM(key).encrypt(bytes(12), content, associated)


def stream(key: bytes, count: int, size: int) -> list[int]:
    """AES-256 over a counter from zero (16 bytes, big-endian), cut into little-endian words."""
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(count * size // 16 + 1))
    made = Cipher(AES256(key), ECB()).encryptor().update(blocks)
    return [int.from_bytes(made[size * at : size * (at + 1)], "little") for at in range(count)]


def coded(values: Sequence[float], weight: float, bits: int, clip: float, rounding_key: bytes) -> list[int]:
    """Words of a weighted contribution."""
    if clip == 0:
        return [int(value) % 2**32 for value in values]
    scale = (2 ** (bits - 1) - 1) / clip
    draws = stream(rounding_key, len(values), 4)
    clamped = [min(max(value * weight, -clip), clip) for value in values]
    return [math.floor(x * scale + u / 2**32) % 2**32 for x, u in zip(clamped, draws, strict=True)]


def decoded(word: int, bits: int, clip: float) -> float:
    """A word of the sum as a real number."""
    signed = word - 2**32 if word >= 2**31 else word
    found: float = signed / ((2 ** (bits - 1) - 1) / clip)
    return found
