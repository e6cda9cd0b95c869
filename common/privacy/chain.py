"""The records of a ledger as bytes: written, chained by hash, and replayed with every check.

One JSON object a line, in this order of fields:

    {"version":1, "sequence":N, "previous":HASH, "time":UTC, "kind":"reserve", "event":{...}, "sha256":HASH}
    {"version":1, "sequence":N, "previous":HASH, "time":UTC, "kind":"commit", "reservation":M, "sha256":HASH}

`sequence` is the line number. `sha256` is of the line without that last field, and `previous` is the `sha256` of the
line before, so that an altered, removed, inserted or moved record is found at its line, the last line included.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from common.errors import ConfigError, LedgerError
from common.privacy.events import DpEvent

LEDGER_VERSION = 1
GENESIS = hashlib.sha256(b"hushclick-ledger-v1").hexdigest()  # what the first record calls its previous

Kind = Literal["reserve", "commit"]

_HEAD_FIELDS = ("version", "sequence", "previous", "time", "kind")
_BODY_FIELD = {"reserve": "event", "commit": "reservation"}
_HASH_LENGTH = 64


@dataclass(frozen=True)
class LedgerHead:
    """Where a ledger stands: anchor it outside the file, to notice a cut or an older copy.

    Attributes:
        num_records: whole records.
        sha256: hash of the last one, or `GENESIS`.
        torn_bytes: bytes of an unfinished record behind it, which count for nothing.
    """

    num_records: int
    sha256: str
    torn_bytes: int = 0


class Chain:
    """The records read so far, checked one by one.

    Attributes:
        hashes: one per whole record.
        reserved: event per reservation, in the order of the file.
        committed: reservations whose release was made.
        size: bytes of the whole records, which is where the next one starts.
        torn: bytes of an unfinished record behind them.
        newline_missing: the last record is whole but for its newline.
    """

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.reserved: dict[int, DpEvent] = {}
        self.committed: set[int] = set()
        self.size = 0
        self.torn = b""
        self.newline_missing = False

    @property
    def head(self) -> LedgerHead:
        """Where the chain stands."""
        return LedgerHead(len(self.hashes), self.hashes[-1] if self.hashes else GENESIS, len(self.torn))

    def contains(self, head: LedgerHead) -> bool:
        """Whether the chain once stood where `head` says."""
        if not 0 < head.num_records <= len(self.hashes):
            return head.num_records == 0 and head.sha256 == GENESIS
        return self.hashes[head.num_records - 1] == head.sha256

    def next_bytes(self, kind: Kind, body: Any) -> bytes:
        """Returns what to append to the file for one more record."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = (LEDGER_VERSION, len(self.hashes) + 1, self.head.sha256, now, kind, body)
        record = dict(zip((*_HEAD_FIELDS, _BODY_FIELD[kind]), values, strict=True))
        unsigned = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        return (b"\n" if self.newline_missing else b"") + unsigned[:-1] + _signature(unsigned) + b"\n"

    def absorb(self, new_bytes: bytes) -> None:
        """Takes in what the file holds from `size` on.

        Raises:
            LedgerError: naming the first line that does not fit; the lines before it are taken in.
        """
        if self.newline_missing and new_bytes.startswith(b"\n"):
            self.size, self.newline_missing, new_bytes = self.size + 1, False, new_bytes[1:]
        *lines, tail = new_bytes.split(b"\n")
        for line in lines:
            self._append(line)
            self.size += len(line) + 1
        self.torn = tail
        if tail and _hash_of(tail) is not None:
            self._append(tail)
            self.size, self.torn, self.newline_missing = self.size + len(tail), b"", True

    def _append(self, line: bytes) -> None:
        number = len(self.hashes) + 1
        digest = _hash_of(line)
        if digest is None:
            raise LedgerError(f"line {number}: altered or damaged, its own hash does not match")
        try:
            self._replay(number, json.loads(line))
        except (ConfigError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise LedgerError(f"line {number}: {error}") from None
        self.hashes.append(digest)

    def _replay(self, number: int, record: dict[str, Any]) -> None:
        if record["version"] != LEDGER_VERSION:
            raise ValueError(f"version {record['version']!r}, and this release reads version {LEDGER_VERSION}")
        if record["sequence"] != number:
            raise ValueError(f"sequence {record['sequence']!r} where {number} belongs: a record was removed or moved")
        if record["previous"] != self.head.sha256:
            raise ValueError("does not continue the line before: a record was altered, removed or inserted")
        kind = record["kind"]
        if kind not in _BODY_FIELD or tuple(record) != (*_HEAD_FIELDS, _BODY_FIELD[kind], "sha256"):
            raise ValueError(f"unknown kind or fields: {kind!r}")
        if kind == "reserve":
            self.reserved[number] = DpEvent.from_dict(record["event"])
            return
        reservation = record["reservation"]
        if reservation not in self.reserved or reservation in self.committed:
            raise ValueError(f"commits reservation {reservation!r}, which is unknown or already committed")
        self.committed.add(reservation)


def _signature(unsigned: bytes) -> bytes:
    return b',"sha256":"' + hashlib.sha256(unsigned).hexdigest().encode() + b'"}'


def _hash_of(line: bytes) -> str | None:
    """Returns the hash that a whole, unaltered line carries, or None."""
    cut = len(line) - len(_signature(b""))
    body, signature = line[: max(cut, 0)], line[max(cut, 0) :]
    return signature[-2 - _HASH_LENGTH : -2].decode() if signature == _signature(body + b"}") else None
