"""Which requests this partner answered: an append-only file, each line with the hash of the line before."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import LedgerError, ProtocolError

_GENESIS = hashlib.sha256(b"hushclick-overlap-answers-v1").hexdigest()
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Answer:
    """One answer: to whom, when, over how much; the count itself this partner never learns."""

    time: int  # Unix seconds
    session: str
    asker: str
    request: str  # SHA-256 of the request
    response: str  # SHA-256 of the response
    points: int
    own_points: int

    def __post_init__(self) -> None:
        whole = (self.time, self.points, self.own_points)
        texts = (self.session, self.asker, self.request, self.response)
        if any(type(number) is not int for number in whole) or any(type(text) is not str for text in texts):
            raise ValueError


class AnswerLog:
    """The log of one partner; its caller holds the folder against other processes.

    Raises:
        LedgerError: from every method, where a line was altered, or removed before the last: then nothing more is
            answered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def answers(self) -> list[Answer]:
        """Returns every answer, oldest first."""
        return [answer for answer, _ in self._read()]

    def require_new(self, session: str, asker: str, now: int, days: int) -> None:
        """Raises `ProtocolError` for a session that was answered, or a partner that was answered too lately."""
        for answer in self.answers():
            if answer.session == session:
                raise ProtocolError(f"this request was answered already, {_day(answer.time)}; {asker} must ask anew")
            again = answer.time + days * _DAY_SECONDS
            if answer.asker == asker and now < again:
                raise ProtocolError(
                    f"{asker} was answered on {_day(answer.time)}, and overlap.days_between_answers = {days}:"
                    f" not before {_day(again)}"
                )

    def append(self, answer: Answer) -> None:
        """Writes an answer down, on the disk before this returns."""
        read = self._read()
        previous = read[-1][1] if read else _GENESIS
        line = json.dumps({"previous": previous, **asdict(answer)}, separators=(",", ":")).encode() + b"\n"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[tuple[Answer, str]]:
        """Returns every answer with the hash of its line."""
        if not self.path.exists():
            return []
        *lines, tail = self.path.read_bytes().split(b"\n")
        found: list[tuple[Answer, str]] = []
        for number, line in enumerate([*lines, tail] if tail else lines, start=1):
            previous = found[-1][1] if found else _GENESIS
            answer = _parsed(line, previous) if number <= len(lines) else None
            if answer is None:
                raise LedgerError(
                    f"{self.path}: line {number} is damaged or does not follow the line before; which requests were"
                    " answered is unknown, so none is answered. Restore the file from a copy"
                )
            found.append((answer, hashlib.sha256(line).hexdigest()))
        return found


def _parsed(line: bytes, previous: str) -> Answer | None:
    """Returns the answer on a line that follows the one before, else None."""
    try:
        facts = json.loads(line)
        return Answer(**facts) if facts.pop("previous") == previous else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
