"""The records of a ledger as bytes: written, chained by hash, and replayed with every check.

One JSON object a line, in this order of fields:

    {"version":2, "sequence":N, "previous":HASH, "time":UTC, "kind":"owner", "owner":{...}, "sha256":HASH}
    {"version":2, "sequence":N, "previous":HASH, "time":UTC, "kind":"reserve", "event":{...}, "sha256":HASH}
    {"version":2, "sequence":N, "previous":HASH, "time":UTC, "kind":"commit", "reservation":M, "sha256":HASH}

`sequence` is the line number. `sha256` is of the line without that last field, and `previous` is the `sha256` of the
line before, so that an altered, removed, inserted or moved record is found at its line, the last line included.

Version 1 had no owner, and its times were not held to any order. Its records stay as they are: the first write of this
release appends the owner's record behind them, in the same chain, and from there on all records are of version 2.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from common.errors import ConfigError, LedgerError
from common.privacy.events import MAX_NAME_LENGTH, DpEvent

LEDGER_VERSION = 2
GENESIS = hashlib.sha256(b"hushclick-ledger-v1").hexdigest()  # what the first record calls its previous

Kind = Literal["owner", "reserve", "commit"]

_HEAD_FIELDS = ("version", "sequence", "previous", "time", "kind")
_BODY_FIELD = {"owner": "owner", "reserve": "event", "commit": "reservation"}
_KINDS = {1: ("reserve", "commit"), 2: ("owner", "reserve", "commit")}
_HASH_LENGTH = 64
_NONCE = re.compile(r"[0-9a-f]{64}")


class NewerLedgerError(LedgerError):
    """A ledger that a later release wrote: nothing is wrong with it."""


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


@dataclass(frozen=True)
class Owner:
    """Whose ledger it is.

    Attributes:
        partner: the name in its configuration, 1 to 200 printable characters.
        nonce: 32 random bytes in hex, which never leave the partner: they blind what does (`Chain.anchor`).
    """

    partner: str
    nonce: str

    def __post_init__(self) -> None:
        named = type(self.partner) is str and 1 <= len(self.partner) <= MAX_NAME_LENGTH and self.partner.isprintable()
        if not named or type(self.nonce) is not str or not _NONCE.fullmatch(self.nonce):
            raise ValueError(f"an owner has a name of 1 to {MAX_NAME_LENGTH} printable characters and 32 random bytes")


class Chain:
    """The records read so far, checked one by one.

    Attributes:
        owner: whose ledger it is; None before the owner's record (an empty file, or one of version 1).
        hashes: one per whole record.
        times: one per whole record, none before those in front of it.
        reserved: event per reservation, in the order of the file.
        committed: reservations whose release was made.
        size: bytes of the whole records, which is where the next one starts.
        torn: bytes of an unfinished record behind them.
        newline_missing: the last record is whole but for its newline.
    """

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.hashes: list[str] = []
        self.times: list[datetime] = []
        self.reserved: dict[int, DpEvent] = {}
        self.committed: set[int] = set()
        self.size = 0
        self.torn = b""
        self.newline_missing = False
        self._version = 1

    @property
    def head(self) -> LedgerHead:
        """Where the chain stands."""
        return LedgerHead(len(self.hashes), self.hashes[-1] if self.hashes else GENESIS, len(self.torn))

    @property
    def last_time(self) -> datetime | None:
        """Time of the last record; None before the first."""
        return self.times[-1] if self.times else None

    def contains(self, head: LedgerHead) -> bool:
        """Whether the chain once stood where `head` says."""
        if not 0 < head.num_records <= len(self.hashes):
            return head.num_records == 0 and head.sha256 == GENESIS
        return self.hashes[head.num_records - 1] == head.sha256

    def anchor(self, num_records: int | None = None) -> str:
        """Returns a commitment to length and hash of the chain, or of its first so many records; "" without an owner.

        Formal guarantees:
            - two chains, or two lengths of one, have different anchors (SHA-256);
            - who does not have the owner's nonce learns nothing from it but whether it is the same as another: no
              count of releases, no time, and no fact of an event, however few values it could have.
        """
        num_records = len(self.hashes) if num_records is None else num_records
        if self.owner is None or not num_records:
            return ""
        digest = hashlib.sha256(b"hushclick-anchor-v1" + bytes.fromhex(self.owner.nonce))
        digest.update(num_records.to_bytes(8, "big") + bytes.fromhex(self.hashes[num_records - 1]))
        return digest.hexdigest()

    def place_of(self, anchor: str) -> int | None:
        """Returns how many records the chain had when this was its anchor; None where it never was."""
        for num_records in range(len(self.hashes), 0, -1):  # usually among the last
            if self.anchor(num_records) == anchor:
                return num_records
        return None

    def next_bytes(self, kind: Kind, body: Any, now: datetime) -> bytes:
        """Returns what to append to the file for one more record; its time is never before the last one's."""
        time = max(now.astimezone(UTC), self.last_time or now).isoformat(timespec="seconds")
        values = (LEDGER_VERSION, len(self.hashes) + 1, self.head.sha256, time, kind, body)
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
            time = self._replay(number, json.loads(line))
        except (ConfigError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise LedgerError(f"line {number}: {error}") from None
        self.hashes.append(digest)
        self.times.append(time)

    def _replay(self, number: int, record: dict[str, Any]) -> datetime:
        """Takes in what a record says, and returns its time."""
        version = _version_of(record["version"], number)
        if version < self._version:
            raise ValueError(f"version {version} behind version {self._version}: the format never goes back")
        if record["sequence"] != number:
            raise ValueError(f"sequence {record['sequence']!r} where {number} belongs: a record was removed or moved")
        if record["previous"] != self.head.sha256:
            raise ValueError("does not continue the line before: a record was altered, removed or inserted")
        kind = record["kind"]
        if kind not in _KINDS[version] or tuple(record) != (*_HEAD_FIELDS, _BODY_FIELD[kind], "sha256"):
            raise ValueError(f"unknown kind or fields: {kind!r}")
        time = self._time_of(record["time"], version)
        if (kind == "owner") != (version > 1 and self.owner is None):
            raise ValueError("the first record of version 2, and no other, says whose ledger it is")
        self._take(number, kind, record[_BODY_FIELD[kind]])
        self._version = version
        return time

    def _take(self, number: int, kind: str, body: Any) -> None:
        if kind == "owner":
            self.owner = _owner_of(body)
        elif kind == "reserve":
            self.reserved[number] = DpEvent.from_dict(body)
        elif type(body) is not int or body not in self.reserved or body in self.committed:
            raise ValueError(f"commits reservation {body!r}, which is unknown or already committed")
        else:
            self.committed.add(body)

    def _time_of(self, text: Any, version: int) -> datetime:
        """Returns a record's time; one of version 1, which kept no order, is no earlier than those in front of it."""
        time = datetime.fromisoformat(text)
        if time.utcoffset() is None or time.astimezone(UTC).isoformat(timespec="seconds") != text:
            raise ValueError(f"time {text!r:.80}: UTC to the second, such as 2026-11-24T13:53:48+00:00")
        if self.last_time is None or time >= self.last_time:
            return time
        if version > 1:
            raise ValueError(f"time {text}, and the line before has {self.last_time.isoformat()}: times never go back")
        return self.last_time


def owner_record(owner: Owner) -> Mapping[str, str]:
    """Returns the body of an owner's record."""
    return asdict(owner)


def _owner_of(body: Any) -> Owner:
    if not isinstance(body, dict) or set(body) != {"partner", "nonce"}:
        raise ValueError("an owner has a partner and a nonce")
    return Owner(**body)


def _version_of(version: Any, number: int) -> int:
    if type(version) is int and version > LEDGER_VERSION:
        raise NewerLedgerError(
            f"line {number}: version {version}, and this release reads versions 1 to {LEDGER_VERSION}; go on with the"
            " release that wrote it, or a later one (a ledger is never written back to an earlier version)"
        )
    if type(version) is not int or version not in _KINDS:
        raise ValueError(f"version {version!r:.80}, and this release reads versions 1 to {LEDGER_VERSION}")
    return version


def _signature(unsigned: bytes) -> bytes:
    return b',"sha256":"' + hashlib.sha256(unsigned).hexdigest().encode() + b'"}'


def _hash_of(line: bytes) -> str | None:
    """Returns the hash that a whole, unaltered line carries, or None."""
    cut = len(line) - len(_signature(b""))
    body, signature = line[: max(cut, 0)], line[max(cut, 0) :]
    return signature[-2 - _HASH_LENGTH : -2].decode() if signature == _signature(body + b"}") else None
