"""The ledger under crashes, full disks and several writers: nothing that was spent is forgotten."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from dp_events import RELEASE, ledger_at, release, write_four_records

import common
from common.errors import LedgerError
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(common.__file__).parent.parent)}


def nth(number: int) -> DpEvent:
    return release(round=number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "shop.jsonl"


@pytest.fixture
def filled(path: Path) -> Path:
    return write_four_records(path)


# --- a torn last line --------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_set_aside_wherever_it_tore(filled: Path) -> None:
    whole = filled.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    aside = filled.with_name("shop.jsonl.torn")
    for cut in range(start + 1, len(whole) - 1, 7):
        filled.write_bytes(whole[:cut])
        aside.unlink(missing_ok=True)
        ledger = ledger_at(filled)
        assert ledger.events() == (nth(0),)
        assert ledger.head().torn_bytes == cut - start
        assert filled.read_bytes() == whole[:cut]  # reading changes nothing
        assert ledger.reserve(nth(7)) == 4
        assert aside.read_bytes() == whole[start:cut] + b"\n"
        assert Ledger(filled).events() == (nth(0), nth(7))
        assert Ledger(filled).verify().torn_bytes == 0


def test_a_last_line_that_only_lacks_its_newline_counts(filled: Path) -> None:
    filled.write_bytes(filled.read_bytes()[:-1])
    reader, writer = ledger_at(filled), ledger_at(filled)
    assert reader.events() == (nth(0), nth(1))
    assert reader.head().torn_bytes == 0
    assert writer.reserve(nth(2)) == 5
    assert reader.events() == (nth(0), nth(1), nth(2))
    assert reader.reserve(nth(3)) == 6
    assert Ledger(filled).verify().num_records == 6
    assert not filled.with_name("shop.jsonl.torn").exists()


def test_a_write_that_fails_half_way_is_refused_and_then_mended(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_at(filled)
    real_write, calls = os.write, []

    def disk_full_after_ten_bytes(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", disk_full_after_ten_bytes)
    with pytest.raises(
        LedgerError,
        match=r"written \(No space left on device: the disk is full, make space there\), so nothing may be released",
    ):
        ledger.reserve(nth(5))
    monkeypatch.undo()
    assert ledger.events() == (nth(0), nth(1))
    assert ledger.head().torn_bytes == 10
    assert ledger.reserve(nth(6)) == 5
    assert Ledger(filled).verify() == ledger.head()


# --- writers at once ---------------------------------------------------------------------------------------------


def test_another_writers_records_are_seen(path: Path) -> None:
    one, two = ledger_at(path), ledger_at(path)
    assert [one.reserve(nth(0)), two.reserve(nth(1)), one.reserve(nth(2)), two.reserve(nth(3))] == [2, 3, 4, 5]
    two.commit(2)
    assert one.uncommitted() == (3, 4, 5)
    assert one.events() == two.events() == tuple(map(nth, range(4)))


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
event = DpEvent.from_dict(eval(sys.argv[2]))
ledger = Ledger(Path(sys.argv[1]), "shop", durable=False)
for number in range(60):
    ledger.commit(ledger.reserve(replace(event, round=number)))
"""


def test_writers_in_several_processes_take_turns(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, repr(replace(RELEASE, run_id=name).to_dict())], env=ENVIRONMENT)
        for name in ("one", "two", "three")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert Ledger(path).verify().num_records == 1 + 3 * 60 * 2
    events = Ledger(path).events()
    for name in ("one", "two", "three"):
        assert [event.round for event in events if event.run_id == name] == list(range(60))


def test_threads_with_one_ledger_take_turns(path: Path) -> None:
    ledger = ledger_at(path)
    threads = [threading.Thread(target=lambda: [ledger.reserve(nth(n)) for n in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(path).verify().num_records == 101


def test_a_ledger_that_stays_locked_is_refused(filled: Path) -> None:
    impatient = Ledger(filled, "shop", lock_timeout_seconds=0.02)
    with Ledger(filled).exclusive(), pytest.raises(LedgerError, match=r"locked by another writer for over 0\.02 s"):
        impatient.reserve(nth(2))
    assert impatient.reserve(nth(2)) == 5


def test_inside_exclusive_everything_still_works(filled: Path) -> None:
    ledger = Ledger(filled, "shop", lock_timeout_seconds=0.02)
    with ledger.exclusive(), ledger.exclusive():
        assert ledger.reserve(nth(2)) == 5
        ledger.commit(5)
        assert ledger.events() == (nth(0), nth(1), nth(2))
        assert ledger.verify().num_records == 6
    assert ledger.uncommitted() == (4,)


# --- the disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "expected"), [(True, [4, 2, 2]), (False, [0, 0, 0])])
def test_each_record_is_flushed_and_so_is_a_new_file_s_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, expected: list[int]
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    ledger = ledger_at(path, durable=durable)
    seen = []
    for number in range(3):
        before = len(flushed)
        ledger.commit(ledger.reserve(nth(number)))
        seen.append(len(flushed) - before)
    assert seen == expected


def test_a_folder_in_the_ledgers_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        ledger_at(tmp_path).reserve(RELEASE)


def test_errors_name_the_file_and_not_where_it_lies(filled: Path) -> None:
    filled.write_bytes(b"x\n")
    with pytest.raises(LedgerError) as refused:
        Ledger(filled).events()
    assert "shop.jsonl" in str(refused.value)
    assert str(filled.parent) not in str(refused.value)


def test_ten_thousand_records_are_verified_in_a_second_and_appended_to_without_being_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_at(path)
    with ledger.exclusive():
        for number in range(10_000):
            ledger.reserve(nth(number))
    start = time.process_time()
    assert Ledger(path).verify().num_records == 10_001
    assert time.process_time() - start < 2.0  # .4 s on one core; twice the promise leaves room for a busy machine
    asked: list[int] = []
    real_pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, size, place: asked.append(place) or real_pread(descriptor, size, place)
    )
    ledger.reserve(nth(0))
    assert asked == []
