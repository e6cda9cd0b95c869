"""Hashes: one input, one hash; what looks alike but is not has another."""

import hashlib
import itertools

import pytest

from common.errors import ProtocolError
from common.secagg.transcript import (
    context_hash,
    digest,
    pack_numbers,
    participants_hash,
    require_ascending,
    session_hash,
)


def test_a_digest_by_hand() -> None:
    """Every part is its type's letter, its length as eight bytes, and itself; the protocol's name comes first."""
    text = (
        b"s\x13\0\0\0\0\0\0\0hushclick-secagg-v1"
        b"s\x05\0\0\0\0\0\0\0label"
        b"b\x02\0\0\0\0\0\0\0\xff\x00"
        b"s\x02\0\0\0\0\0\0\0\xc3\xa9"
        b"i\x08\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0"
    )
    assert digest("label", b"\xff\x00", "é", 258) == hashlib.sha256(text).digest()


CONFUSABLE: list[tuple[object, ...]] = [
    (),
    (b"",),
    ("",),
    (0,),
    (b"", b""),
    ("a",),
    (b"a",),
    (97,),
    ("ab",),
    ("a", "b"),
    (b"ab",),
    (b"a", b"b"),
    ("a", b"b"),
    ("", "ab"),
    ("ab", ""),
    (1, 2),
    (2, 1),
    (12,),
    ("12",),
    (1, 256),
    (2**63,),
    ((2**63).to_bytes(8, "little"),),
    (b"b\x01\0\0\0\0\0\0\0a",),
    (b"a" + b"b\x01\0\0\0\0\0\0\0b",),  # the encoding of two parts within one
    (bytes(32),),
    (bytes(33),),
]


def test_no_two_confusable_inputs_have_one_digest() -> None:
    found = {digest(label, *parts) for label in ("label", "labe") for parts in CONFUSABLE}  # type: ignore[arg-type]
    assert len(found) == 2 * len(CONFUSABLE)
    assert digest("labe", "l") != digest("label")


@pytest.mark.parametrize("number", [-1, 2**64])
def test_integers_that_no_eight_bytes_hold_are_an_error_and_never_cut(number: int) -> None:
    with pytest.raises(ProtocolError, match="whole number"):
        digest("label", number)


def test_numbers_are_packed_as_little_endian_words() -> None:
    assert pack_numbers([1, 258, 2**32 - 1]) == b"\x01\0\0\0\x02\x01\0\0\xff\xff\xff\xff"
    assert pack_numbers(()) == b""


def test_every_field_of_a_session_matters() -> None:
    fields = [("run", 1, 0, bytes(32)), ("ruN", 1, 0, bytes(32)), ("run", 0, 1, bytes(32))]
    fields += [("run", 1, 1, bytes(32)), ("run", 1, 0, b"\x01" + bytes(31))]
    assert len({session_hash(*each) for each in fields}) == len(fields)


@pytest.mark.parametrize(("round_number", "attempt"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**32)])
def test_rounds_and_attempts_out_of_range(round_number: int, attempt: int) -> None:
    with pytest.raises(ProtocolError, match=r"must be from 0 to 2\^32 - 1"):
        session_hash("run", round_number, attempt, bytes(32))


def test_every_field_of_a_context_matters() -> None:
    good = {
        "session": bytes(32),
        "cohort": (1, 2, 3),
        "first_hash": bytes(32),
        "model_hash": bytes(32),
        "config_hash": bytes(32),
        "threshold": 3,
        "length": 5,
        "ring": 2**32,
        "bits": 23,
        "clip": 1.0,
    }
    one = b"\x01" + bytes(31)
    changes: list[dict[str, object]] = [{name: one} for name in ("session", "first_hash", "model_hash", "config_hash")]
    changes += [{"cohort": (1, 2)}, {"cohort": (1, 2, 4)}, {"threshold": 4}, {"length": 6}, {"ring": 2**31}]
    changes += [{"bits": 22}, {"clip": 1.0000000000000002}, {"clip": -1.0}, {"threshold": 5, "length": 3}]
    found = {context_hash(**(good | change)) for change in [{}, *changes]}  # type: ignore[arg-type]
    assert len(found) == len(changes) + 1


def test_lists_of_participants_hash_apart_by_stage_and_session() -> None:
    content = pack_numbers((1, 2, 3))
    pairs = itertools.product(("first", "second", "third"), (bytes(32), b"\x01" + bytes(31)))
    assert len({participants_hash(label, session, content) for label, session in pairs}) == 6


def test_ascending_numbers_pass() -> None:
    require_ascending((1,), "U2", 1)
    require_ascending((1, 3, 7), "U2", 7)
    require_ascending((), "U2", 3)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 1), "U2: a participant outside the roster of 3"),
        ((-1,), "outside the roster of 3"),
        ((1, 4), "outside the roster of 3"),
        ((True,), "outside the roster of 3"),
        ((1.0, 2.0), "outside the roster of 3"),
        (("1",), "outside the roster of 3"),
        ((1, 1), "U2: participants must be named once each, in ascending order"),
        ((2, 1), "in ascending order"),
        ((1, 3, 2), "in ascending order"),
    ],
)
def test_lists_that_are_refused(numbers: tuple[int, ...], text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        require_ascending(numbers, "U2", 3)
