"""The audit log: what is written is read back, and whatever was done to it is found at its line."""

import json
import multiprocessing
from pathlib import Path

import pytest

from common.auditlog import GENESIS, AuditLog, read_audit_log
from common.errors import LedgerError


def written(path: Path, count: int = 4) -> Path:
    log = AuditLog(path)
    for number in range(count):
        log.append("asked", round=number, stage="mask")
    log.close()
    return path


def test_records_come_back_in_order_and_over_processes(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 2)
    log = AuditLog(path)
    log.append("refused", reason="ä" * 600)
    head = log.head
    log.close()
    records = read_audit_log(path)
    assert [(one["sequence"], one["what"]) for one in records] == [(1, "asked"), (2, "asked"), (3, "refused")]
    assert records[0]["previous"] == GENESIS
    assert head == (3, records[2]["sha256"])
    assert records[2]["reason"] == "ä" * 500
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [1, 2, 4])
def test_an_altered_record_is_found_at_its_line(line: int, tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"stage":"mask"', b'"stage":"join"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"line {line}: altered"):
        read_audit_log(path)
    with pytest.raises(LedgerError, match=f"line {line}: altered"):
        AuditLog(path)


def test_a_removed_and_a_moved_record_are_found(tmp_path: Path) -> None:
    lines = written(tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    for name, kept in (("removed", [lines[0], *lines[2:]]), ("moved", [lines[1], lines[0], *lines[2:]])):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join(kept))
        with pytest.raises(LedgerError, match="altered, removed or inserted"):
            read_audit_log(path)


def test_another_version_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(json.dumps({"version": 2, "sequence": 1, "previous": GENESIS, "sha256": "0"}) + "\n")
    with pytest.raises(LedgerError, match="version 2, and this release reads 1"):
        read_audit_log(path)


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_an_unfinished_last_line_is_set_aside(cut: int, tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl", 3)
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(read_audit_log(path)) == 2
    log = AuditLog(path)
    log.append("again")
    log.close()
    assert [one["sequence"] for one in read_audit_log(path)] == [1, 2, 3]
    assert path.with_name("audit.jsonl.torn").stat().st_size > 1


def _try(path: Path, answers: "multiprocessing.Queue[str]") -> None:
    try:
        AuditLog(path)
        answers.put("opened")
    except LedgerError as error:
        answers.put(str(error))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    answers: multiprocessing.Queue[str] = multiprocessing.get_context("spawn").Queue()
    child = multiprocessing.get_context("spawn").Process(target=_try, args=(tmp_path / "audit.jsonl", answers))
    child.start()
    assert "is written by another process" in answers.get(timeout=60)
    child.join()
    log.close()


def test_facts_cannot_stand_in_for_the_records_own(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(ValueError, match="sequence"):
        log.append("asked", sequence=7)
    log.close()
