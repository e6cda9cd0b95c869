"""Known answers of the standards, through the functions that the protocol calls; then what they refuse."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ProtocolError
from common.secagg import keys
from common.secagg.keys import agree, derive, open_box, public_key, seal, sign, verify
from common.secagg.transcript import digest

SCALARS = [  # RFC 7748, section 5.2: scalar, coordinate, result
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]


@pytest.mark.parametrize(("scalar", "coordinate", "result"), SCALARS)
def test_x25519_gives_the_results_of_rfc_7748(scalar: str, coordinate: str, result: str) -> None:
    assert agree(bytes.fromhex(scalar), bytes.fromhex(coordinate)).hex() == result


@pytest.mark.parametrize(
    ("times", "result"),
    [
        (1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
        (1000, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"),
    ],
)
def test_x25519_iterated_as_rfc_7748_iterates_it(times: int, result: str) -> None:
    scalar = coordinate = (9).to_bytes(32, "little")
    for _ in range(times):
        scalar, coordinate = agree(scalar, coordinate), scalar
    assert scalar.hex() == result


def test_a_public_key_is_the_base_point_times_the_secret() -> None:
    secret = bytes.fromhex(SCALARS[0][0])
    assert public_key(secret) == agree(secret, (9).to_bytes(32, "little"))


def test_both_sides_agree() -> None:
    one, other = bytes(range(32)), bytes(range(32, 64))
    assert agree(one, public_key(other)) == agree(other, public_key(one)) != agree(one, public_key(one))


P = 2**255 - 19
LOW_ORDER = [
    (0).to_bytes(32, "little").hex(),
    (1).to_bytes(32, "little").hex(),
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",  # order 8
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",  # order 8
    (P - 1).to_bytes(32, "little").hex(),
    P.to_bytes(32, "little").hex(),
    (P + 1).to_bytes(32, "little").hex(),
    (P + 2**255).to_bytes(32, "little").hex(),  # the top bit is ignored: zero again
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="low order"):
        agree(bytes(range(32)), bytes.fromhex(point))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="wrong length"):
        agree(bytes(range(32)), bytes(length))


OKM = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"  # RFC 5869, A.1
IKM, SALT, INFO = bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA-256 as RFC 5869 writes it: extract, then expand."""
    key, okm, block = hmac.digest(salt, secret, "sha256"), b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        okm += block
    return okm[:length]


def test_derive_gives_the_first_key_of_rfc_5869(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "digest", lambda *parts: INFO)
    assert derive(IKM, SALT, "any").hex() == OKM[:64]


def test_derive_is_hkdf_over_the_digest_of_label_and_numbers() -> None:
    assert hkdf(IKM, SALT, INFO, 42).hex() == OKM
    secret, salt = bytes(range(32)), hashlib.sha256(b"context").digest()
    expected = hkdf(secret, salt, digest("hkdf", "mask body", 1, 2), 32)
    assert derive(secret, salt, "mask body", 1, 2) == expected


def test_another_secret_salt_label_or_number_gives_another_key() -> None:
    found = {
        derive(bytes(32), bytes(32), "mask body", 1, 2),
        derive(bytes(31) + b"\x01", bytes(32), "mask body", 1, 2),
        derive(bytes(32), bytes(31) + b"\x01", "mask body", 1, 2),
        derive(bytes(32), bytes(32), "mask slots", 1, 2),
        derive(bytes(32), bytes(32), "mask body", 2, 1),
        derive(bytes(32), bytes(32), "mask body", 1),
    }
    assert len(found) == 6


SIGNATURES = [  # RFC 8032, section 7.1, tests 1 to 3: secret, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe246"
        "55141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb"
        "00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc"
        "027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), SIGNATURES)
def test_sign_and_verify_give_the_signatures_of_rfc_8032(
    monkeypatch: pytest.MonkeyPatch, secret: str, public: str, message: str, signature: str
) -> None:
    monkeypatch.setattr(keys, "digest", lambda *parts: bytes.fromhex(message))
    identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert identity.public_key().public_bytes_raw().hex() == public
    assert sign(identity, "label").hex() == signature
    verify(bytes.fromhex(public), bytes.fromhex(signature), "it", "label")


def test_a_signature_is_of_one_key_label_and_content() -> None:
    identity = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = identity.public_key().public_bytes_raw()
    good = sign(identity, "confirm", b"context", 3)
    verify(key, good, "it", "confirm", b"context", 3)
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01").public_key().public_bytes_raw()
    wrong = [
        (stranger, good, "confirm", b"context", 3),
        (key, good, "upload", b"context", 3),
        (key, good, "confirm", b"kontext", 3),
        (key, good, "confirm", b"context", 4),
        (key, good[:-1], "confirm", b"context", 3),
        (key, bytes(64), "confirm", b"context", 3),
        (key[:-1], good, "confirm", b"context", 3),
    ]
    for public, signature, *bound in wrong:
        with pytest.raises(ProtocolError, match="consistency of birch: its signature is not"):
            verify(public, signature, "consistency of birch", *bound)  # type: ignore[arg-type]


def test_boxes_are_aes_256_gcm_with_a_zero_nonce() -> None:
    """Test cases 13 and 14 of the GCM specification (McGrew and Viega): zero key, zero nonce."""
    assert seal(bytes(32), b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert seal(bytes(32), bytes(16), b"").hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_a_box_opens_only_as_it_was_sealed() -> None:
    key, content, place = bytes(range(32)), b"two shares", b"from 1 to 2"
    box = seal(key, content, place)
    assert open_box(key, box, place) == content
    assert len(box) == len(content) + 16
    for at in range(8 * len(box)):
        flipped = bytearray(box)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(ProtocolError, match="does not open"):
            open_box(key, bytes(flipped), place)
    for other_key, other_box, other_place in [
        (bytes(32), box, place),
        (key, box, b"from 1 to 3"),
        (key, box[:-1], place),
        (key, box[:3], place),
        (key, b"", place),
    ]:
        with pytest.raises(ProtocolError, match="does not open"):
            open_box(other_key, other_box, other_place)
