"""Which requests this partner answered: an audit log of its own, and its head in a file beside it.

The head shows that last lines were cut off, or the log restored from an older copy by itself.
"""

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.anchors import HeadFile
from common.auditlog import AUDIT_VERSION, AuditLog, read_audit_log
from common.errors import LedgerError, ProtocolError
from common.privacy.chain import LedgerHead

_WHAT = "overlap_answered"
_MEND = "the log is damaged: which requests were answered is unknown, so none is answered. Restore it from a copy"
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
        LedgerError: from every method, where a line was altered or removed: then nothing more is answered.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._head = path, HeadFile(path.parent, "answers-head.json")

    def answers(self) -> list[Answer]:
        """Returns every answer, oldest first."""
        return [_parsed(record) for record in self._records()]

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
        self._records()  # with what is damaged nothing is answered
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        audit = AuditLog(self.path)
        try:
            audit.append(
                _WHAT, **{("answered" if key == "time" else key): fact for key, fact in asdict(answer).items()}
            )
            self._head.keep(LedgerHead(*audit.head))  # behind the log: a kill leaves a head that the log contains
        finally:
            audit.close()

    def _records(self) -> list[dict[str, Any]]:
        """Returns the records, verified, none cut off since the last was written."""
        if not self.path.exists() and self._head.read() is None:
            return []
        try:
            _require_version(self.path)
            records = read_audit_log(self.path)
            known = self._head.read()
        except LedgerError as error:
            raise LedgerError(f"{error}; {_MEND}") from None
        if known and (known.num_records > len(records) or records[known.num_records - 1]["sha256"] != known.sha256):
            raise LedgerError(
                f"{self.path.name}: damaged: it held {known.num_records} answers, and the last ones were cut off or are"
                f" others; {_MEND}"
            )
        return records


def _require_version(path: Path) -> None:
    """Refuses an earlier format, which said no version and had a chain of its own."""
    first = path.read_bytes().partition(b"\n")[0] if path.exists() else b""
    if first.startswith(b'{"previous":'):
        raise LedgerError(
            f"{path.name}: version 0, of an earlier release, and this one reads {AUDIT_VERSION}; move it away, and keep"
            " to its days by hand: each partner can then be answered once more"
        )


def _parsed(record: dict[str, Any]) -> Answer:
    try:
        return Answer(record["answered"], *(record[field.name] for field in fields(Answer)[1:]))
    except (KeyError, ValueError):
        raise LedgerError(f"answers.jsonl line {record['sequence']}: not a record of an answer; {_MEND}") from None


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
