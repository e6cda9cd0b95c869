"""One append-only, hash-chained file per partner: what its users' privacy has been spent on.

**A reserve counts as spent, committed or not.** It is on disk before anything is released, so a crash at any later
moment leaves the release charged.

**A torn last line** (a crash in the middle of a write) belongs to a call that had not returned, so nothing was
released on its strength. Where only the newline is missing the record is whole and counts. Otherwise the next append
moves the bytes to `NAME.torn`, beside the ledger, and goes on from the last whole line.

**What no chain can see by itself** is a whole file cut at a record, replaced by an older copy, deleted or written anew.
So its head is kept elsewhere, in the clear at the partner (`head()`, `verify`), blinded at the server (`anchor()`).
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import LedgerError, disk_says
from common.privacy.chain import Chain, Kind, LedgerHead, NewerLedgerError, Owner, owner_record
from common.privacy.events import DpEvent

_CHUNK_BYTES = 2**20
_NONCE_BYTES = 32
_MEND = "restore a copy that contains the last known head, or count the whole budget as spent"


class Ledger:
    """The ledger of one partner, in one file that is opened, locked, read or written, and closed at each use.

    Formal guarantees:
        - `reserve` and `commit` return only when the record is on disk (with `durable`);
        - writers in any number of processes and threads take turns;
        - what this object has read once can be neither cut off nor replaced unnoticed;
        - nothing is read from, or written to, another owner's ledger.

    Args:
        path: the file; it and its folder are created at the first write. A missing file is an empty ledger.
        owner: the partner whose ledger it must be; None = anyone's, to read only.
        durable: flush every record to the disk itself. False is for tests and throw-away simulations.
        lock_timeout_seconds: how long to wait for another writer.
        clock: returns the time, with its zone.
        random: so many random bytes: the owner's nonce is drawn from it.

    Raises:
        LedgerError: from every method, where the file is damaged, another owner's, of a later release, cannot be read
            or written, or stays locked.
    """

    def __init__(
        self,
        path: Path,
        owner: str | None = None,
        *,
        durable: bool = True,
        lock_timeout_seconds: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._path, self._owner = path, owner
        self._durable = durable
        self._lock_timeout_seconds = lock_timeout_seconds
        self._clock, self._random = clock, random
        self._chain = Chain()
        self._inode: int | None = None
        self._thread_lock = threading.RLock()
        self._held: int | None = None  # the descriptor inside `exclusive`

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the ledger against all other writers, so that a check and the reserve that follows are one act."""
        with self._holding():
            yield

    def reserve(self, event: DpEvent) -> int:
        """Charges an event, before anything about it leaves; returns the number of the reservation."""
        return self._write("reserve", event.to_dict())

    def commit(self, reservation: int) -> None:
        """Notes that the release of a reservation was made; a second time changes nothing."""
        with self.exclusive():
            chain = self._read()
            if reservation not in chain.reserved:
                raise self._error(f"has no reservation {reservation!r}; commit what reserve() returned")
            if reservation not in chain.committed:
                self._write("commit", reservation)

    def events(self, since: datetime | None = None) -> tuple[DpEvent, ...]:
        """Returns what counts as spent, oldest first: all reservations, committed or not; or those not before `since`.

        A record's time is never before that of a record in front of it (of version 1, it is taken to be no earlier).
        """
        with self._thread_lock:
            chain = self._read()
            return tuple(
                event for number, event in chain.reserved.items() if since is None or chain.times[number - 1] >= since
            )

    def now(self) -> datetime:
        """Returns the time by the ledger's clock."""
        return self._clock()

    def last_time(self) -> datetime | None:
        """Returns the time of the last record; None before the first."""
        with self._thread_lock:
            return self._read().last_time

    def owner(self) -> str | None:
        """Returns whose ledger it says that it is; None where nothing was written yet, or by version 1 alone."""
        with self._thread_lock:
            owner = self._read().owner
            return owner.partner if owner else None

    def uncommitted(self) -> tuple[int, ...]:
        """Returns the reservations that were never committed: a crash, or a round under way. They count as spent."""
        with self._thread_lock:
            chain = self._read()
            return tuple(number for number in chain.reserved if number not in chain.committed)

    def head(self) -> LedgerHead:
        """Returns where the ledger stands now."""
        with self._thread_lock:
            return self._read().head

    def anchor(self) -> str:
        """Returns what may leave the partner of its head: a blinded commitment to it, "" where no owner is written."""
        with self._thread_lock:
            return self._read().anchor()

    def place_of(self, anchor: str) -> tuple[int, datetime] | None:
        """Returns how many records there were when this was the anchor, and the last one's time; None for no anchor."""
        with self._thread_lock:
            chain = self._read()
            place = chain.place_of(anchor)
            return None if place is None else (place, chain.times[place - 1])

    def require(self, head: LedgerHead) -> None:
        """Raises `LedgerError` unless the ledger, as far as it was read, contains a head kept elsewhere."""
        with self._thread_lock:
            self._require(self._read(), head)

    def verify(self, anchor: LedgerHead | None = None) -> LedgerHead:
        """Reads the whole file anew, checks every record, and returns where the ledger stands.

        Args:
            anchor: a head kept elsewhere, which the ledger must contain.

        Raises:
            LedgerError: naming the first line that does not fit, or the anchor that is not there.
        """
        with self._thread_lock:
            fresh = self._read(Chain())
            for known in (self._chain.head, anchor):
                if known is not None:
                    self._require(fresh, known)
            return fresh.head

    def _require(self, chain: Chain, known: LedgerHead) -> None:
        if not chain.contains(known):
            raise self._error(
                f"does not contain the known record {known.num_records}: it holds {chain.head.num_records} and was cut,"
                f" replaced or written anew; {_MEND}"
            )

    @contextmanager
    def _holding(self) -> Iterator[int]:
        with self._thread_lock:
            if self._held is not None:  # by this thread, further out
                yield self._held
                return
            with self._opened(writable=True) as descriptor:
                self._held = descriptor
                try:
                    yield descriptor
                finally:
                    self._held = None

    def _read(self, chain: Chain | None = None) -> Chain:
        """Returns `chain` (by default the one in memory) with everything that the file holds by now."""
        chain = self._chain if chain is None else chain
        if self._held is not None:
            self._catch_up(chain, self._held)
        elif self._exists():
            with self._opened(writable=False) as descriptor:
                self._catch_up(chain, descriptor)
        if self._owner is not None and chain.owner is not None and chain.owner.partner != self._owner:
            raise self._error(
                f"is the ledger of {chain.owner.partner!r} and not of {self._owner!r}: give each partner its own file"
                " (ledger in its configuration); a partner that was renamed keeps the name in its ledger"
            )
        return chain

    def _catch_up(self, chain: Chain, descriptor: int) -> None:
        """Reads what the chain lacks; a file that got shorter or was replaced while in use is refused."""
        status = os.fstat(descriptor)
        if status.st_size < chain.size or self._inode not in (None, status.st_ino):
            raise self._error(f"was cut or replaced while in use, after record {chain.head.num_records}; {_MEND}")
        self._inode = status.st_ino
        if status.st_size == chain.size:
            chain.torn = b""
            return
        try:
            chain.absorb(_read_from(descriptor, chain.size))
        except NewerLedgerError as error:
            raise self._error(str(error)) from None
        except LedgerError as error:
            raise self._error(f"{error}; {_MEND}") from None

    def _write(self, kind: Kind, body: Any) -> int:
        if self._owner is None:
            raise self._error("was opened to be read: who writes says whose ledger it is")
        with self._holding() as descriptor:
            chain = self._read()
            if chain.owner is None:  # a new file, or one of version 1, which is migrated by this
                self._append(chain, descriptor, "owner", owner_record(self._new_owner(self._owner)))
            self._append(chain, descriptor, kind, body)
            return chain.head.num_records

    def _new_owner(self, partner: str) -> Owner:
        try:
            return Owner(partner, self._random(_NONCE_BYTES).hex())
        except ValueError as error:
            raise self._error(f"cannot be a ledger of {partner!r:.80}: {error}") from None

    def _append(self, chain: Chain, descriptor: int, kind: Kind, body: Any) -> None:
        new_bytes = chain.next_bytes(kind, body, self._clock())
        try:
            self._set_torn_bytes_aside(descriptor)
            _write_all(descriptor, new_bytes)
            self._flush(descriptor)
        except OSError as error:
            raise self._error(f"cannot be written ({disk_says(error)}), so nothing may be released") from None
        chain.absorb(new_bytes)

    def _set_torn_bytes_aside(self, descriptor: int) -> None:
        if not self._chain.torn:
            return
        aside = os.open(self._path.with_name(self._path.name + ".torn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _write_all(aside, self._chain.torn + b"\n")
            self._flush(aside)
        finally:
            os.close(aside)
        os.ftruncate(descriptor, self._chain.size)
        self._chain.torn = b""

    @contextmanager
    def _opened(self, *, writable: bool) -> Iterator[int]:
        try:
            descriptor = self._open_or_create() if writable else os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise self._error(f"cannot be opened ({error.strerror}); {_MEND}") from None
        try:
            self._lock(descriptor, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
            yield descriptor
        finally:
            os.close(descriptor)  # gives the lock back too

    def _open_or_create(self) -> int:
        if self._exists():
            return os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            self._flush(folder)  # else a power cut could forget the file itself
        finally:
            os.close(folder)
        return descriptor

    def _exists(self) -> bool:
        try:
            return self._inode is not None or self._path.exists()  # what was seen once is never made anew
        except OSError as error:
            raise self._error(f"cannot be reached ({error.strerror}); {_MEND}") from None

    def _lock(self, descriptor: int, kind: int) -> None:
        deadline = time.monotonic() + self._lock_timeout_seconds
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    wait = f"{self._lock_timeout_seconds:g} s"
                    raise self._error(f"is locked by another writer for over {wait}; stop the other one") from None
                time.sleep(0.005)

    def _flush(self, descriptor: int) -> None:
        if self._durable:
            os.fsync(descriptor)

    def _error(self, text: str) -> LedgerError:
        # The name alone: an error may cross a network, and folders are nobody else's business.
        return LedgerError(f"{self._path.name} {text}")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_from(descriptor: int, start: int) -> bytes:
    chunks = []
    while chunk := os.pread(descriptor, _CHUNK_BYTES, start):
        chunks.append(chunk)
        start += len(chunk)
    return b"".join(chunks)
