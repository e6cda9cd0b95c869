"""Shamir's secret sharing of 32-byte secrets over the prime field 2^256 + 297.

Source: Shamir 1979, "How to Share a Secret". Coordinates are participant numbers, from 1.
"""

from collections.abc import Sequence
from functools import lru_cache

from common.errors import ProtocolError
from common.secagg.keys import Random

PRIME = 2**256 + 297
SHARE_BYTES = 33
_DRAW_BYTES = 48  # reduced modulo the prime: within 2^-127 of uniform


def split(secret: bytes, holders: Sequence[int], threshold: int, random: Random) -> list[bytes]:
    """Returns one 33-byte share per holder; any `threshold` of them give the secret, fewer say nothing of it.

    Raises:
        ProtocolError: for a secret of another length, repeated or non-positive holders, or a threshold that the holders
            cannot meet.
    """
    if len(secret) != 32:
        raise ProtocolError(f"a secret of {len(secret)} bytes: must be 32")
    if not 1 <= threshold <= len(holders):
        raise ProtocolError(f"threshold = {threshold}: must be from 1 to the {len(holders)} holders")
    if len(set(holders)) < len(holders) or min(holders) < 1:
        raise ProtocolError("holders must be different numbers from 1")
    coefficients = [int.from_bytes(random(_DRAW_BYTES), "little") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "little"))  # the constant comes last: Horner
    return [_evaluate(coefficients, holder).to_bytes(SHARE_BYTES, "little") for holder in holders]


def _evaluate(coefficients: Sequence[int], at: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * at + coefficient) % PRIME
    return value


@lru_cache(maxsize=4096)
def lagrange_at_zero(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the Lagrange coefficients at 0 of these coordinates: worked out once for all owners they serve."""
    tops, bottoms = [], []
    for here in holders:
        top = bottom = 1
        for other in holders:
            if other != here:
                top, bottom = top * other % PRIME, bottom * (other - here) % PRIME
        tops.append(top)
        bottoms.append(bottom)
    return tuple(top * inverse % PRIME for top, inverse in zip(tops, _inverses(bottoms), strict=True))


def _inverses(values: Sequence[int]) -> list[int]:
    """Returns the inverses of all values for the price of one (Montgomery's trick)."""
    products = [1]
    for value in values:
        products.append(products[-1] * value % PRIME)
    inverse = pow(products.pop(), -1, PRIME)
    found = []
    for value, before in zip(reversed(values), reversed(products), strict=True):
        found.append(inverse * before % PRIME)
        inverse = inverse * value % PRIME
    return found[::-1]


def combine(holders: tuple[int, ...], shares: Sequence[bytes]) -> bytes:
    """Returns the 32-byte secret that shares of these holders give.

    Raises:
        ProtocolError: when they give no 32-byte secret; they are then not shares of one.
    """
    weights = lagrange_at_zero(holders)
    total = sum(weight * int.from_bytes(share, "little") for weight, share in zip(weights, shares, strict=True)) % PRIME
    if total >= 2**256:
        raise ProtocolError("shares that do not belong together")
    return total.to_bytes(32, "little")
