"""Identifiers as points of a curve, masked by one partner and then by the other: equal only where equal before.

Two partners with secrets a and b compare a b H(x) with b a H(y). Neither sees H(x) of the other, and under the
decisional Diffie-Hellman assumption a H(x) is not told from a random point. The curve is NIST P-256, of prime order:
no point has a small order, and every 32 bytes that are a coordinate of it are a point to multiply. Only first
coordinates travel; a point and its negative share theirs, in all products.

Source: Meadows 1986; Huberman, Franklin, Hogg 1999; De Cristofaro, Gasti, Tsudik 2012 (the count alone).
"""

import hmac
import unicodedata
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ProtocolError
from common.secagg.keys import Random

POINT_BYTES = 32

_CURVE = ec.SECP256R1()
_ECDH = ec.ECDH()
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SECRET_BYTES = 48  # drawn for a number below the order: what is left of bias is under 2^-128


def normalised(text: str, *, fold_case: bool) -> str:
    """Returns an identifier as both partners must spell it; empty where nothing is left of it.

    Invisible format characters and the blanks around it go, and composed and decomposed characters become one (NFC).
    With `fold_case`, so do upper and lower case, and full and half width (NFKC): for e-mail addresses, not for ids in
    which A and a differ.
    """
    if text.isascii():  # which has nothing of all this but blanks and case
        return (text.lower() if fold_case else text).strip()
    visible = "".join(character for character in text if unicodedata.category(character) != "Cf")
    if not fold_case:
        return unicodedata.normalize("NFC", visible).strip()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold()).strip()


def new_secret(random: Random) -> bytes:
    """Returns a uniform multiplier of points, 32 bytes, of 48 random ones."""
    return (int.from_bytes(random(_SECRET_BYTES)) % (_ORDER - 1) + 1).to_bytes(POINT_BYTES)


def masked(secret: bytes, key: bytes, identifiers: Iterable[str]) -> list[bytes]:
    """Returns `secret` times the point of each identifier under a key, in their order."""
    multiplier = _multiplier(secret)
    return [multiplier.exchange(_ECDH, _point_of(key, identifier.encode())) for identifier in identifiers]


def masked_again(secret: bytes, points: Iterable[bytes]) -> list[bytes]:
    """Returns `secret` times each of the other partner's points, in ascending order: which was whose is lost.

    Raises:
        ProtocolError: for 32 bytes that are no point of the curve.
    """
    multiplier = _multiplier(secret)
    try:
        return sorted(multiplier.exchange(_ECDH, _lifted(point)) for point in points)
    except ValueError:
        raise ProtocolError("a point that is not on the curve; ask for the file again") from None


def padded(points: list[bytes], size: int, random: Random) -> list[bytes]:
    """Returns the points among random ones, `size` in all, in ascending order; nobody has the identifier of those."""
    return sorted([*points, *(_random_point(random) for _ in range(size - len(points)))])


def _random_point(random: Random) -> bytes:
    """Returns the first coordinate of a uniform point."""
    while True:
        point = random(POINT_BYTES)
        try:
            _lifted(point)
        except ValueError:
            continue
        return point


def _point_of(key: bytes, identifier: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the point of an identifier: the first of a keyed stream that is on the curve, the second on average.

    How long it takes depends on the identifier; only this partner's own machine could tell.
    """
    number = 0
    while True:
        try:
            return _lifted(hmac.digest(key, number.to_bytes(4) + identifier, "sha256"))
        except ValueError:
            number += 1


def _lifted(first: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the point with a first coordinate and an even second one; raises `ValueError` where there is none."""
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x02" + first)


def _multiplier(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret), _CURVE)
