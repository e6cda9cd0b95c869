"""Versions of the ledger's format, whose ledger it is, and what leaves of it."""

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dp_events import ledger_at, release, write_four_records

from common.errors import LedgerError
from common.privacy.chain import GENESIS, Chain
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

VERSION_1 = Path(__file__).parents[2] / "vectors" / "ledger_version_1.jsonl"  # as version 0.1.0 wrote it
NOW = datetime(2026, 12, 1, 12, 0, 30, 999_999, tzinfo=UTC)


def nth(number: int) -> DpEvent:
    return release(round=number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.jsonl"


@pytest.fixture
def old(path: Path) -> Path:
    return Path(shutil.copy(VERSION_1, path))


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def sign(record: dict[str, object]) -> bytes:
    """Returns a line with a right hash of its own: what only the replay can refuse."""
    unsigned = json.dumps({name: value for name, value in record.items() if name != "sha256"}, separators=(",", ":"))
    return f'{unsigned[:-1]},"sha256":"{hashlib.sha256(unsigned.encode()).hexdigest()}"}}\n'.encode()


def append(path: Path, **changes: object) -> None:
    last = records(path)[-1]
    record = {**last, "sequence": last["sequence"] + 1, "previous": last["sha256"], **changes}  # type: ignore[operator]
    path.write_bytes(path.read_bytes() + sign(record))


# --- migration ----------------------------------------------------------------------------------------------------


def test_a_ledger_of_version_1_is_read_as_it_was(old: Path) -> None:
    before = old.read_bytes()
    ledger = Ledger(old, "shop")
    assert ledger.events() == (nth(0), nth(1))
    assert ledger.uncommitted() == (3,)
    assert (ledger.owner(), ledger.anchor()) == (None, "")
    assert old.read_bytes() == before  # reading migrates nothing


def test_the_first_write_migrates_in_place_behind_what_is_there_in_the_same_chain(old: Path) -> None:
    before, head = old.read_bytes(), Ledger(old).head()
    ledger = ledger_at(old, clock=lambda: NOW)
    assert ledger.reserve(nth(2)) == 5
    assert old.read_bytes().startswith(before)
    found = records(old)
    assert [record["version"] for record in found] == [1, 1, 1, 2, 2]
    assert [record["kind"] for record in found[3:]] == ["owner", "reserve"]
    assert [record["previous"] for record in found] == [GENESIS, *(record["sha256"] for record in found[:4])]
    assert Ledger(old).verify(head).num_records == 5
    assert Ledger(old).events() == (nth(0), nth(1), nth(2))
    ledger.commit(3)  # a reservation of version 1 is committed by a record of version 2
    assert Ledger(old).uncommitted() == (5,)
    assert Ledger(old).owner() == "shop"


def test_a_migrated_ledger_is_not_claimed_again_nor_by_another(old: Path) -> None:
    ledger_at(old).reserve(nth(2))
    ledger_at(old).reserve(nth(3))
    assert [record["kind"] for record in records(old)].count("owner") == 1
    with pytest.raises(LedgerError, match=r"^shop\.jsonl is the ledger of 'shop' and not of 'bank'"):
        ledger_at(old, "bank").events()


def test_a_crash_between_the_owners_record_and_the_first_charge_loses_nothing(old: Path) -> None:
    ledger_at(old).reserve(nth(2))
    whole = old.read_bytes().splitlines(keepends=True)
    for cut in (b"".join(whole[:4]), b"".join(whole[:4])[:-30], b"".join(whole[:3]) + b"{"):
        old.write_bytes(cut)
        assert ledger_at(old).events() == (nth(0), nth(1))
        ledger_at(old).reserve(nth(9))
        assert Ledger(old).events() == (nth(0), nth(1), nth(9))
        assert [record["kind"] for record in records(old)].count("owner") == 1


def test_times_of_version_1_out_of_order_never_make_a_release_older_than_those_before_it(old: Path) -> None:
    """The third record says four days less than the two before it: a clock that was set back."""
    assert [str(record["time"])[8:10] for record in records(old)] == ["24", "24", "20"]
    since = datetime(2026, 11, 24, 13, 53, 49, tzinfo=UTC)
    assert Ledger(old).events(since=since) == (nth(1),)
    assert Ledger(old).last_time() == since + timedelta(seconds=1)


def test_a_later_version_is_refused_with_its_own_mend(path: Path) -> None:
    write_four_records(path)
    append(path, version=3, anything="else")
    for use in (Ledger(path).events, lambda: ledger_at(path).reserve(nth(9))):
        with pytest.raises(LedgerError, match="line 5: version 3, and this release reads versions 1 to 2; go on with"):
            use()
        with pytest.raises(LedgerError) as refused:
            use()
        assert "restore" not in str(refused.value)  # nothing is wrong with it
    assert len(records(path)) == 5


def test_version_1_has_no_owner_and_never_follows_version_2(old: Path) -> None:
    owner = {"kind": "owner", "owner": {"partner": "shop", "nonce": "a" * 64}}
    last = records(old)[-1]
    head = {name: last[name] for name in ("version", "sequence", "previous", "time")}
    whole = old.read_bytes()
    head |= {"sequence": 4, "previous": last["sha256"], "time": "2026-11-30T00:00:00+00:00"}
    old.write_bytes(whole + sign(head | owner))
    with pytest.raises(LedgerError, match="line 4: unknown kind or fields: 'owner'"):
        Ledger(old).events()
    old.write_bytes(whole + sign(head | {"version": 2, "kind": "commit", "reservation": 3}))
    with pytest.raises(LedgerError, match="line 4: the first record of version 2, and no other, says whose"):
        Ledger(old).events()
    old.write_bytes(whole + sign(head | {"version": 2} | owner))
    assert Ledger(old).owner() == "shop"
    append(old)
    with pytest.raises(LedgerError, match="line 5: the first record of version 2, and no other, says whose"):
        Ledger(old).events()


@pytest.mark.parametrize(
    "owner",
    [
        {"partner": "shop"},
        {"partner": "shop", "nonce": "a" * 63},
        {"partner": "shop", "nonce": "A" * 64},
        {"partner": "", "nonce": "a" * 64},
        {"partner": "s" * 201, "nonce": "a" * 64},
        {"partner": "a\nb", "nonce": "a" * 64},
        {"partner": 7, "nonce": "a" * 64},
        {"partner": "shop", "nonce": "a" * 64, "more": 1},
        "shop",
    ],
)
def test_an_owner_that_makes_no_sense_is_refused(path: Path, owner: object) -> None:
    time = "2026-11-30T00:00:00+00:00"
    head = {"version": 2, "sequence": 1, "previous": GENESIS, "time": time, "kind": "owner"}
    path.write_bytes(sign(head | {"owner": owner}))
    with pytest.raises(LedgerError, match="line 1: an owner has"):
        Ledger(path).events()


# --- whose it is --------------------------------------------------------------------------------------------------


def test_a_ledger_of_another_owner_is_neither_read_nor_written(path: Path) -> None:
    write_four_records(path)
    before = path.read_bytes()
    other = ledger_at(path, "bank")
    for use in (other.events, other.head, other.verify, other.anchor, lambda: other.reserve(nth(9))):
        with pytest.raises(LedgerError, match=r"is the ledger of 'shop' and not of 'bank': give each partner its own"):
            use()
    assert path.read_bytes() == before
    assert Ledger(path).events() == (nth(0), nth(1))  # to read, nobody has to say whose it is


def test_two_partners_with_the_same_history_have_ledgers_that_cannot_be_exchanged(tmp_path: Path) -> None:
    shop, bank = (ledger_at(tmp_path / f"{name}.jsonl", name, clock=lambda: NOW) for name in ("shop", "bank"))
    for ledger in (shop, bank):
        ledger.reserve(nth(0))
    (tmp_path / "bank.jsonl").write_bytes((tmp_path / "shop.jsonl").read_bytes())
    with pytest.raises(LedgerError, match="not of 'bank'"):
        ledger_at(tmp_path / "bank.jsonl", "bank").events()


def test_who_does_not_say_whose_ledger_it_is_does_not_write(path: Path) -> None:
    write_four_records(path)
    with pytest.raises(LedgerError, match="was opened to be read"):
        Ledger(path).reserve(nth(9))
    with pytest.raises(LedgerError, match="was opened to be read"):
        Ledger(path).commit(4)
    assert len(records(path)) == 4


def test_a_name_that_a_ledger_cannot_hold_is_refused_before_anything_is_written(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"cannot be a ledger of 'a\\nb'"):
        ledger_at(path, "a\nb").reserve(nth(0))
    assert path.read_bytes() == b""


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_writes_no_earlier_time(path: Path) -> None:
    clock = iter([NOW, NOW, NOW - timedelta(days=3), NOW + timedelta(seconds=2)])
    ledger = ledger_at(path, clock=lambda: next(clock))
    for number in range(3):
        ledger.reserve(nth(number))
    assert [str(record["time"])[11:19] for record in records(path)] == ["12:00:30", "12:00:30", "12:00:30", "12:00:32"]
    assert Ledger(path).verify().num_records == 4


def test_events_since_a_time_are_those_of_that_second_and_later(path: Path) -> None:
    clock = iter([NOW, *(NOW + timedelta(minutes=minute) for minute in range(3))])
    ledger = ledger_at(path, clock=lambda: next(clock))
    for number in range(3):
        ledger.reserve(nth(number))
    assert ledger.events(since=NOW + timedelta(minutes=1)) == (nth(2),)
    assert ledger.events(since=(NOW + timedelta(minutes=1)).replace(microsecond=0)) == (nth(1), nth(2))


# --- what leaves --------------------------------------------------------------------------------------------------


def test_an_anchor_is_the_hash_of_nonce_length_and_head(path: Path) -> None:
    ledger = ledger_at(path, random=lambda count: bytes(range(count)))
    assert ledger.anchor() == ""
    ledger.reserve(nth(0))
    head = ledger.head()
    expected = b"hushclick-anchor-v1" + bytes(range(32)) + (2).to_bytes(8, "big") + bytes.fromhex(head.sha256)
    assert ledger.anchor() == hashlib.sha256(expected).hexdigest()


def test_every_anchor_that_the_ledger_ever_had_is_found_at_its_place(path: Path) -> None:
    ledger = ledger_at(path, clock=lambda: NOW)
    seen = []
    for number in range(4):
        ledger.reserve(nth(number))
        seen.append(ledger.anchor())
    assert len(set(seen)) == 4
    places = [Ledger(path).place_of(anchor) for anchor in seen]
    assert places == [(place, NOW.replace(microsecond=0)) for place in (2, 3, 4, 5)]
    assert Ledger(path).place_of("a" * 64) is None
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert [Ledger(path).place_of(anchor) is None for anchor in seen] == [False, False, False, True]


def test_the_same_history_of_two_ledgers_has_unlike_anchors_and_one_says_nothing(tmp_path: Path) -> None:
    """Without the nonce the few facts of a release could be guessed and compared."""
    one, other = (ledger_at(tmp_path / name, clock=lambda: NOW) for name in "ab")
    for ledger in (one, other):
        ledger.reserve(nth(0))
    assert one.anchor() != other.anchor()
    assert re.fullmatch("[0-9a-f]{64}", one.anchor())
    assert one.anchor() not in (tmp_path / "a").read_text()
    assert one.head().sha256 != one.anchor()


def test_a_chain_without_an_owner_has_no_anchor(old: Path) -> None:
    chain = Chain()
    chain.absorb(old.read_bytes())
    assert [chain.anchor(), chain.anchor(2), chain.place_of("a" * 64)] == ["", "", None]
