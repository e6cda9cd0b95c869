"""Sizes on the wire, by hand, and blobs of a wrong length."""

import pytest

from common.errors import ProtocolError
from common.secagg.wire import (
    BOX_BYTES,
    COMMITMENT_BYTES,
    SLOTS_BYTES,
    Advertisement,
    Revealed,
    advertisements_of,
    parts_of,
)

ONE = Advertisement(258, b"m" * 32, b"c" * 32, b"k" * 32, b"s" * 64)


def test_sizes_by_hand() -> None:
    assert Advertisement.SIZE == 4 + 32 + 32 + 32 + 64 == 164
    assert BOX_BYTES == 33 + 33 + 16
    assert COMMITMENT_BYTES == 32 + 32
    assert SLOTS_BYTES == 8 + 8


def test_an_advertisement_is_its_fields_in_order() -> None:
    blob = ONE.to_bytes()
    assert blob == b"\x02\x01\0\0" + b"m" * 32 + b"c" * 32 + b"k" * 32 + b"s" * 64
    assert Advertisement.from_bytes(blob) == ONE


@pytest.mark.parametrize("length", [0, 163, 165, 328])
def test_advertisements_of_another_length(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"an advertisement of {length} bytes, expected 164"):
        Advertisement.from_bytes(bytes(length))


def test_a_blob_of_advertisements() -> None:
    other = Advertisement(3, *(bytes(32),) * 3, bytes(64))
    assert advertisements_of(b"".join([ONE.to_bytes(), other.to_bytes()])) == [ONE, other]
    assert advertisements_of(b"") == []
    with pytest.raises(ProtocolError, match="advertisements: 165 bytes, expected whole parts of 164 bytes"):
        advertisements_of(bytes(165))


def test_parts_by_hand() -> None:
    assert parts_of(b"abcdef", 2, "it") == [b"ab", b"cd", b"ef"]
    assert parts_of(b"abcdef", 3, "it", 2) == [b"abc", b"def"]
    assert parts_of(b"", 3, "it", 0) == []


@pytest.mark.parametrize(
    ("blob", "count", "text"),
    [
        (b"abcde", None, "it: 5 bytes, expected whole parts of 2 bytes"),
        (b"abcdef", 2, "it: 6 bytes, expected 2 parts of 2 bytes"),
        (b"abcdef", 4, "it: 6 bytes, expected 4 parts of 2 bytes"),
        (b"", 1, "it: 0 bytes, expected 1 parts"),
        (b"ab", 0, "it: 2 bytes, expected 0 parts"),
        ("ab", None, "it: 2 bytes"),
        (bytearray(b"ab"), None, "it: 2 bytes"),
    ],
)
def test_parts_of_another_length_count_or_type(blob: bytes, count: int | None, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        parts_of(blob, 2, "it", count)


def test_revealed_shares_do_not_show() -> None:
    assert "share" not in repr(Revealed((1, 2), b"share of one and share of two")).replace("shares", "")
