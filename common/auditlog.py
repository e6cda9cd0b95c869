"""`audit.jsonl`: who joined, what was asked, what was refused and why; append-only and chained by hash, as ledgers are.

One JSON object a line: `version`, `sequence`, `previous`, `time` (UTC), `what`, the facts, and `sha256` over the line
without it. A partner and the server keep one each; neither holds data, updates or keys. A cut at a whole record or an
older copy is seen only against a head that was kept elsewhere.
"""

import fcntl
import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import LedgerError, disk_says
from common.runfolder import sync_folder

AUDIT_VERSION = 1
GENESIS = hashlib.sha256(b"hushclick-audit-v1").hexdigest()

_OWN_FIELDS = frozenset({"version", "sequence", "previous", "time", "what", "sha256"})
_MOST_TEXT = 500  # characters of one value: an error text of a peer must not fill the disk


class AuditLog:
    """The audit log of one process, which holds it against all others until `close`.

    Formal guarantees:
        - `append` returns only when the record is on disk;
        - records of earlier processes are verified, to the last line, before the first is added.

    Raises:
        LedgerError: where the log is damaged, cannot be written, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            if is_new:
                sync_folder(path.parent)  # else a power cut could forget the file itself
        except OSError as error:
            raise LedgerError(f"{path.name} cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._length, self._head = self._resume()
        except BlockingIOError:
            os.close(self._descriptor)
            raise LedgerError(f"{path.name} is written by another process; stop that one first") from None
        except LedgerError:
            os.close(self._descriptor)
            raise

    @property
    def head(self) -> tuple[int, str]:
        """How many records there are, and the hash of the last one."""
        return self._length, self._head

    def append(self, what: str, **facts: Any) -> None:
        """Writes down what happened; long texts are cut.

        Raises:
            ValueError: for facts that are called like the record's own fields.
            LedgerError: where the disk refuses.
        """
        if taken := _OWN_FIELDS & facts.keys():
            raise ValueError(f"facts called {sorted(taken)}")
        kept = {name: value[:_MOST_TEXT] if isinstance(value, str) else value for name, value in facts.items()}
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            record = {"version": AUDIT_VERSION, "sequence": self._length + 1, "previous": self._head, "time": now}
            unsigned = json.dumps(record | {"what": what} | kept, separators=(",", ":"), allow_nan=False).encode()
            digest = hashlib.sha256(unsigned).hexdigest()
            line = unsigned[:-1] + b',"sha256":"' + digest.encode() + b'"}\n'
            size = os.fstat(self._descriptor).st_size
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError as error:
                os.ftruncate(self._descriptor, size)  # else the next record would continue half a line
                raise LedgerError(f"{self._path.name} cannot be written ({disk_says(error)})") from None
            self._length, self._head = self._length + 1, digest

    def close(self) -> None:
        """Lets others write."""
        os.close(self._descriptor)

    def _resume(self) -> tuple[int, str]:
        """Verifies what is there, and sets the bytes of an unfinished last line aside."""
        found = self._path.read_bytes()
        whole = found[: found.rfind(b"\n") + 1]
        if torn := found[len(whole) :]:
            with self._path.with_name(self._path.name + ".torn").open("ab") as aside:
                aside.write(torn + b"\n")
            os.ftruncate(self._descriptor, len(whole))
        records = _verified(self._path, whole)
        return len(records), records[-1]["sha256"] if records else GENESIS


def read_audit_log(path: Path) -> list[dict[str, Any]]:
    """Returns all records, verified; an unfinished last line is passed over.

    Raises:
        LedgerError: naming the first line that does not fit.
    """
    try:
        found = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    return _verified(path, found[: found.rfind(b"\n") + 1])


def _verified(path: Path, whole: bytes) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    previous = GENESIS
    for number, line in enumerate(whole.splitlines(), 1):
        version: Any = AUDIT_VERSION
        try:
            record = json.loads(line)
            version, digest = record["version"], record["sha256"]
            unsigned = line[: line.rindex(b',"sha256":"')] + b"}"
            fits = (record["sequence"], record["previous"]) == (number, previous)
            fits = fits and hashlib.sha256(unsigned).hexdigest() == digest
        except (ValueError, KeyError, TypeError):
            fits, record, digest = False, {}, ""
        if version != AUDIT_VERSION:
            raise LedgerError(
                f"{path.name} line {number}: version {version!r:.20}, and this release reads {AUDIT_VERSION}; go on"
                " with the release that wrote it, or a later one"
            )
        if not fits:
            raise LedgerError(
                f"{path.name} line {number}: altered, removed or inserted; keep the file and find out why"
            )
        records.append(record)
        previous = digest
    return records
