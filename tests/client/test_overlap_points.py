"""Masked points against set intersection and against the curve worked out by hand; spelling of identifiers."""

import hashlib
import hmac
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.overlap.points import masked, masked_again, new_secret, normalised, padded
from common.errors import ProtocolError

KEY = bytes(range(32))

# NIST P-256 (FIPS 186-4, D.1.2.3)
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 115792089210356248762697446949407573529996955224135760342422259061068512044369
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

Point = tuple[int, int] | None


def add(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return other if one is None else one
    (x1, y1), (x2, y2) = one, other
    if x1 == x2 and (y1 + y2) % P == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, P) if one == other else (y2 - y1) * pow(x2 - x1, -1, P)
    x3 = (slope * slope - x1 - x2) % P
    return x3, (slope * (x1 - x3) - y1) % P


def times(number: int, point: Point) -> Point:
    total: Point = None
    while number:
        total = add(total, point) if number & 1 else total
        point, number = add(point, point), number >> 1
    return total


def first_point(identifier: str) -> tuple[int, int]:
    """The point of an identifier, by the definition: the first hash of the stream that is a coordinate, y even."""
    for number in range(256):
        x = int.from_bytes(
            hmac.new(KEY, number.to_bytes(4, "big") + identifier.encode(), hashlib.sha256).digest(), "big"
        )
        square = (x**3 - 3 * x + B) % P
        y = pow(square, (P + 1) // 4, P)
        if x < P and y * y % P == square:
            return x, y if y % 2 == 0 else P - y
    raise AssertionError


@pytest.mark.parametrize("identifier", ["a", "anna@shop.example", "用户", "x" * 300])
def test_a_mask_is_the_multiple_of_the_identifiers_point(identifier: str) -> None:
    one, other = new_secret(os.urandom), new_secret(os.urandom)
    point = first_point(identifier)
    assert times(N, point) is None
    once = times(int.from_bytes(one, "big"), point)
    twice = times(int.from_bytes(other, "big"), once)
    assert once is not None
    assert twice is not None
    (found,) = masked(one, KEY, [identifier])
    assert found == once[0].to_bytes(32, "big")
    assert masked_again(other, [found]) == [twice[0].to_bytes(32, "big")]


def test_secrets_are_from_1_to_the_order_less_1_by_hand() -> None:
    assert new_secret(lambda count: bytes(count)) == (1).to_bytes(32, "big")
    assert new_secret(lambda count: (N - 2).to_bytes(count, "big")) == (N - 1).to_bytes(32, "big")
    assert new_secret(lambda count: (N - 1).to_bytes(count, "big")) == (1).to_bytes(32, "big")
    asked: list[int] = []
    new_secret(lambda count: asked.append(count) or os.urandom(count))  # type: ignore[func-returns-value]
    assert asked == [48]  # the bias of a remainder of 48 bytes is below 2^-128


names = st.sets(
    st.text(min_size=1, max_size=4).filter(lambda text: normalised(text, fold_case=False) != ""), max_size=12
)


def spelt(text: str, fold_case: bool = False) -> str:
    return normalised(text, fold_case=fold_case)


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_equal_masks_are_the_intersection(first: set[str], second: set[str]) -> None:
    own, other = ({spelt(text) for text in one if text.isprintable()} for one in (first, second))
    one, two = new_secret(os.urandom), new_secret(os.urandom)
    ours = masked_again(two, masked(one, KEY, own))
    theirs = masked_again(one, masked(two, KEY, other))
    assert len(set(ours)) == len(own)
    assert len(set(ours) & set(theirs)) == len(own & other)


def test_another_key_shares_nothing() -> None:
    one, two = new_secret(os.urandom), new_secret(os.urandom)
    ours = masked_again(two, masked(one, KEY, ["a", "b"]))
    assert not set(ours) & set(masked_again(one, masked(two, bytes(32), ["a", "b"])))


def test_padding_is_exact_on_the_curve_and_in_order() -> None:
    real = masked(new_secret(os.urandom), KEY, [f"u{number}" for number in range(40)])
    filled = padded(real, 64, os.urandom)
    assert len(filled) == len(set(filled)) == 64
    assert set(real) < set(filled)
    assert filled == sorted(filled)
    assert len(masked_again(new_secret(os.urandom), filled)) == 64  # each is a point, or this would refuse it
    # No dummy is alike in two fillings, and the real ones are not at any fixed place.
    assert set(filled) & set(padded(real, 64, os.urandom)) == set(real)
    assert filled[:40] != real


def test_what_is_no_point_is_refused() -> None:
    refused = 0
    for number in range(40):
        x = number.to_bytes(32, "big")
        square = (number**3 - 3 * number + B) % P
        on_curve = pow(square, (P - 1) // 2, P) == 1
        if on_curve:
            masked_again(KEY, [x])
            continue
        refused += 1
        with pytest.raises(ProtocolError, match="not on the curve"):
            masked_again(KEY, [x])
    assert 10 < refused < 30
    for wrong in (b"", bytes(31), bytes(33), b"\xff" * 32):
        with pytest.raises(ProtocolError, match="not on the curve"):
            masked_again(KEY, [wrong])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" anna ", "anna"),
        ("\tanna\r\n", "anna"),
        ("\u00a0anna\u3000", "anna"),
        ("\ufeffanna\u200b", "anna"),
        ("Ren\u00e9", "Rene\u0301"),
        ("e\u200d\u0301", "\u00e9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
    ],
)
def test_one_identifier_in_two_spellings_is_one(one: str, other: str) -> None:
    for fold_case in (False, True):
        assert spelt(one, fold_case) == spelt(other, fold_case)


@pytest.mark.parametrize(
    ("one", "other"), [("Anna@Shop.Example", "anna@shop.example"), ("STRASSE", "straße"), ("ｕ１", "u1")]
)
def test_case_and_width_are_one_only_where_asked(one: str, other: str) -> None:
    assert spelt(one) != spelt(other)
    assert spelt(one, fold_case=True) == spelt(other, fold_case=True)


def test_what_differs_stays_different() -> None:
    ids = ["1", "01", "1.0", "a b", "ab", "a-b", "l", "I"]
    assert len({spelt(one) for one in ids}) == len(ids)
    assert len({spelt(one, fold_case=True) for one in ids}) == len(ids)


@given(st.text(max_size=12), st.booleans())
def test_spelling_twice_is_spelling_once(text: str, fold_case: bool) -> None:
    once = spelt(text, fold_case)
    assert spelt(once, fold_case) == once
