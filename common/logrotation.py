"""Logs that a child process writes: turned by day and by size, and deleted when they are old.

The child holds the file open to append, so that it cannot be renamed away from it: what is there is copied to
`NAME.YYYY-MM-DD`, and the file is cut to nothing, in place. A line that is written between the two is lost.
"""

import contextlib
import shutil
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from common.expiry import delete

_MOST_BYTES = 64 * 2**20


class LogRotation:
    """Some logs, looked after by the process that started those who write them.

    Formal guarantees:
        - no line stays longer than `days` and a day, as long as `tend` is called.

    Args:
        logs: paths; a log that is not there yet is passed over.
        days: how long a turned log is kept.
        most_bytes: of a log before it is turned within a day.
    """

    def __init__(self, logs: Iterable[Path], days: int, most_bytes: int = _MOST_BYTES) -> None:
        self._logs, self._days, self._most_bytes = tuple(logs), days, most_bytes
        self._since: dict[Path, date] = {}  # log -> the day that its lines are of

    def tend(self, now: datetime | None = None) -> int:
        """Turns what is of an earlier day or too long, and deletes what is old; returns how many were deleted."""
        today = (now or datetime.now(UTC)).date()
        return sum(self._tend(log, today) for log in self._logs)

    def _tend(self, log: Path, today: date) -> int:
        try:
            found = log.stat()
        except FileNotFoundError:
            return 0
        since = self._since.setdefault(log, datetime.fromtimestamp(found.st_mtime, UTC).date())
        if since == today and found.st_size <= self._most_bytes:
            return 0
        if found.st_size and not _turn(log, since):
            return 0
        self._since[log] = today
        return delete(path for path, day in _turned(log) if today - day > timedelta(self._days))


def _turn(log: Path, since: date) -> bool:
    """Returns whether a log was turned; where the disk is full it stays as it is, and is tried again."""
    copy = _free(log.with_name(f"{log.name}.{since.isoformat()}"))
    try:
        shutil.copyfile(log, copy)
        with log.open("r+b") as file:
            file.truncate()
    except OSError:
        with contextlib.suppress(OSError):
            copy.unlink(missing_ok=True)
        return False
    return True


def _turned(log: Path) -> list[tuple[Path, date]]:
    found = []
    for path in sorted(log.parent.glob(f"{log.name}.*")):
        try:
            found.append((path, date.fromisoformat(path.name.removeprefix(f"{log.name}.")[:10])))
        except ValueError:
            continue  # somebody else's file
    return found


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}.{number + 1}")
    return free
