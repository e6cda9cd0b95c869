"""The ledger: nothing that was spent is forgotten, and nothing in it can be altered unseen."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dp_events import RELEASE, ledger_at, release, write_four_records

from common.errors import LedgerError
from common.privacy.chain import GENESIS, LedgerHead
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger


def nth(number: int) -> DpEvent:
    return release(round=number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "shop.jsonl"


@pytest.fixture
def filled(path: Path) -> Path:
    return write_four_records(path)


def test_a_missing_file_is_an_empty_ledger_and_reading_does_not_make_one(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.events() == ()
    assert ledger.uncommitted() == ()
    assert ledger.verify() == ledger.head() == LedgerHead(0, GENESIS)
    assert not path.parent.exists()


def test_every_reserve_counts_committed_or_not(filled: Path) -> None:
    ledger = Ledger(filled)
    assert ledger.events() == (nth(0), nth(1))
    assert ledger.uncommitted() == (4,)


def test_a_new_object_on_the_same_file_remembers(path: Path) -> None:
    assert [ledger_at(path).reserve(nth(number)) for number in range(3)] == [2, 3, 4]
    assert Ledger(path).events() == (nth(0), nth(1), nth(2))
    assert Ledger(path).verify().num_records == 4


def test_a_record_is_one_line_with_its_place_in_the_chain(filled: Path) -> None:
    lines = filled.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert [list(record)[:5] for record in records] == [["version", "sequence", "previous", "time", "kind"]] * 4
    assert [record["version"] for record in records] == [2] * 4
    assert [record["sequence"] for record in records] == [1, 2, 3, 4]
    assert [record["kind"] for record in records] == ["owner", "reserve", "commit", "reserve"]
    assert [record["previous"] for record in records] == [GENESIS, *(record["sha256"] for record in records[:3])]
    assert set(records[0]["owner"]) == {"partner", "nonce"}
    assert records[0]["owner"]["partner"] == "shop"
    assert records[2]["reservation"] == 2
    assert DpEvent.from_dict(records[3]["event"]) == nth(1)
    unsigned = lines[3][: lines[3].index(b',"sha256"')] + b"}"
    assert records[3]["sha256"] == hashlib.sha256(unsigned).hexdigest()
    assert "epsilon" not in filled.read_text()
    assert filled.stat().st_mode & 0o777 == 0o600


def test_committing_twice_changes_nothing(filled: Path) -> None:
    before = filled.read_bytes()
    ledger_at(filled).commit(2)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("reservation", [0, 1, 3, 5, -1])
def test_committing_what_was_never_reserved_is_refused(filled: Path, reservation: int) -> None:
    with pytest.raises(LedgerError, match=rf"shop\.jsonl has no reservation {reservation};"):
        ledger_at(filled).commit(reservation)


# --- tampering ---------------------------------------------------------------------------------------------------


def test_any_altered_byte_is_found_at_its_line(filled: Path) -> None:
    original = filled.read_bytes()
    line_of = [original[:place].count(b"\n") + 1 for place in range(len(original))]
    for place in range(0, len(original) - 1, 3):
        altered = bytearray(original)
        altered[place] ^= 1
        filled.write_bytes(altered)
        with pytest.raises(LedgerError, match=rf"^shop\.jsonl line {line_of[place]}: "):
            Ledger(filled).verify()
    filled.write_bytes(original)
    assert Ledger(filled).verify().num_records == 4


def without(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line for place, line in enumerate(lines, 1) if place != number]


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (without(1), 1),
        (without(2), 2),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: [lines[0], b"", *lines[1:]], 2),
        (lambda lines: [*lines, b"{}"], 5),
        (lambda lines: [*lines, b"not json"], 5),
    ],
    ids=["first gone", "second gone", "swapped", "repeated", "empty line", "foreign object", "foreign text"],
)
def test_removed_moved_or_inserted_lines_are_found(
    filled: Path, change: Callable[[list[bytes]], list[bytes]], number: int
) -> None:
    filled.write_bytes(b"".join(line + b"\n" for line in change(filled.read_bytes().splitlines())))
    for use in (Ledger(filled).events, Ledger(filled).head, lambda: ledger_at(filled).reserve(nth(9))):
        with pytest.raises(LedgerError, match=rf"line {number}: .*whole budget as spent"):
            use()


def forge(path: Path, **changes: object) -> None:
    """Appends a well-signed copy of the last line with other values: what only the replay can refuse."""
    last = json.loads(path.read_bytes().splitlines()[-1])
    record = {**last, "sequence": last["sequence"] + 1, "previous": last.pop("sha256"), **changes}
    record.pop("sha256", None)
    unsigned = json.dumps(record, separators=(",", ":")).encode()
    signature = hashlib.sha256(unsigned).hexdigest()
    with path.open("ab") as file:
        file.write(unsigned[:-1] + f',"sha256":"{signature}"}}\n'.encode())


def test_a_forged_copy_with_the_right_values_would_pass(filled: Path) -> None:
    forge(filled)
    assert Ledger(filled).verify().num_records == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"version": 0},
        {"version": True},
        {"version": "2"},
        {"time": "2000-01-01T00:00:00+00:00"},
        {"time": "9999-01-01T00:00:00"},
        {"time": "9999-01-01T00:00:00+01:00"},
        {"time": "9999-01-01T00:00:00.5+00:00"},
        {"time": 7},
        {"sequence": 6},
        {"previous": GENESIS},
        {"kind": "refund"},
        {"kind": "commit"},
        {"extra": 1},
        {"event": {**RELEASE.to_dict(), "steps": 0}},
        {"event": {**RELEASE.to_dict(), "version": 9}},
        {"event": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_makes_no_sense_is_refused_by_line(filled: Path, changes: dict[str, object]) -> None:
    forge(filled, **changes)
    with pytest.raises(LedgerError, match=r"^shop\.jsonl line 5: .*whole budget as spent"):
        Ledger(filled).verify()


def test_a_cut_at_a_record_is_seen_by_the_object_that_knew_more(filled: Path) -> None:
    ledger = ledger_at(filled)
    assert len(ledger.events()) == 2
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join(lines[:3]))
    for use in (ledger.events, ledger.verify, lambda: ledger.reserve(nth(2))):
        with pytest.raises(LedgerError, match=r"cut or replaced while in use|does not contain the known record 4"):
            use()


def test_a_cut_at_a_record_is_seen_against_an_anchor_and_only_so(filled: Path) -> None:
    anchor = Ledger(filled).head()
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join(lines[:3]))
    assert Ledger(filled).verify().num_records == 3
    with pytest.raises(LedgerError, match="does not contain the known record 4: it holds 3"):
        Ledger(filled).verify(anchor)


def test_a_ledger_written_anew_is_seen_against_an_anchor(filled: Path, tmp_path: Path) -> None:
    anchor = Ledger(filled).head()
    other = ledger_at(tmp_path / "other.jsonl")
    for number in range(5):
        other.reserve(nth(number))
    with pytest.raises(LedgerError, match="does not contain the known record 4: it holds 6"):
        other.verify(anchor)
    ledger_at(filled).reserve(nth(2))
    assert Ledger(filled).verify(anchor).num_records == 5


def test_a_deleted_or_replaced_file_is_seen_by_the_object_that_knew_it(filled: Path) -> None:
    ledger = ledger_at(filled)
    assert ledger.head().num_records == 4
    copy = filled.read_bytes()
    filled.rename(filled.with_suffix(".old"))
    with pytest.raises(LedgerError, match="cannot be opened"):
        ledger.reserve(nth(2))
    assert not filled.exists()
    filled.write_bytes(copy)
    with pytest.raises(LedgerError, match="cut or replaced while in use"):
        ledger.reserve(nth(2))


def test_verify_reads_the_file_and_not_the_memory(filled: Path) -> None:
    ledger = Ledger(filled)
    assert ledger.verify().num_records == 4
    content = filled.read_bytes()
    with filled.open("r+b") as file:  # the same inode and size
        file.write(content.replace(b'"steps":4', b'"steps":1', 1))
    with pytest.raises(LedgerError, match="line 2: altered"):
        ledger.verify()
