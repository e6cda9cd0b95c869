"""Logs that a child writes: turned by day and size while it writes on, and deleted when they are old."""

import errno
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.logrotation import LogRotation

DAY = timedelta(days=1)


def at(log: Path, moment: datetime) -> None:
    os.utime(log, (moment.timestamp(), moment.timestamp()))


def test_a_day_that_is_over_is_turned_and_deleted_after_so_many_days(tmp_path: Path) -> None:
    log, now = tmp_path / "worker.log", datetime(2026, 11, 29, 12, tzinfo=UTC)
    other = tmp_path / "worker.log.old"  # somebody else's
    other.write_text("kept")
    rotation = LogRotation([log, tmp_path / "not-there.log"], days=2)
    assert rotation.tend(now) == 0
    log.write_text("monday\n")
    at(log, now)
    assert rotation.tend(now) == 0
    assert rotation.tend(now + timedelta(hours=11)) == 0
    assert log.read_text() == "monday\n"
    deleted = [rotation.tend(now + number * DAY) for number in range(1, 5)]
    assert log.read_text() == ""
    assert deleted == [0, 0, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker.log", "worker.log.old"]


def test_each_day_has_a_file_and_a_start_turns_what_earlier_days_left(tmp_path: Path) -> None:
    log, now = tmp_path / "worker.log", datetime(2026, 11, 29, 12, tzinfo=UTC)
    log.write_text("from before the start\n")
    at(log, now - 3 * DAY)
    rotation = LogRotation([log], days=30)
    rotation.tend(now)
    with log.open("a") as file:
        file.write("sunday\n")
    rotation.tend(now + DAY)
    assert (tmp_path / "worker.log.2026-11-26").read_text() == "from before the start\n"
    assert (tmp_path / "worker.log.2026-11-29").read_text() == "sunday\n"
    assert log.read_text() == ""


def test_a_log_that_grows_too_long_is_turned_within_the_day(tmp_path: Path) -> None:
    log, now = tmp_path / "worker.log", datetime.now(UTC)
    rotation = LogRotation([log], days=30, most_bytes=10)
    for text in ("first, too long", "second, too long", "short"):
        log.write_text(text)
        rotation.tend(now)
    day = now.date().isoformat()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        f"worker.log.{day}": "first, too long",
        f"worker.log.{day}.2": "second, too long",
        "worker.log": "short",
    }


def test_a_full_disk_leaves_the_log_as_it_is_until_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "worker.log"
    log.write_text("line\n")
    rotation = LogRotation([log], days=30)

    def full(_source: Path, target: Path) -> None:
        target.write_text("li")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        for _ in range(3):
            assert rotation.tend(datetime.now(UTC) + DAY) == 0
    assert log.read_text() == "line\n"
    assert list(tmp_path.iterdir()) == [log]  # no part of a copy stays
    rotation.tend(datetime.now(UTC) + DAY)
    assert log.read_text() == ""
    assert [path.read_text() for path in tmp_path.glob("worker.log.*")] == ["line\n"]


def test_a_child_that_holds_the_file_open_writes_on(tmp_path: Path) -> None:
    """It has the file open to append, as `common.programs.start` opens it."""
    log = tmp_path / "worker.log"
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with log.open("ab") as out:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=out, text=True)
    assert child.stdin
    rotation = LogRotation([log], days=30)
    child.stdin.write("before\n")
    child.stdin.flush()
    while "before\n" not in log.read_text():
        pass
    rotation.tend()
    rotation.tend(datetime.now(UTC) + DAY)
    child.stdin.write("after\n")
    child.stdin.close()
    assert child.wait(30) == 0
    assert log.read_bytes() == b"after\n"
    (turned,) = tmp_path.glob("worker.log.*")
    assert turned.read_text() == "before\n"
