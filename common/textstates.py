"""Each distinct text is encoded once, and cached on disk by its content and the encoder's fingerprint.

One SQLite file per (encoder, pooling, max_tokens); the key is the SHA-256 of a text, the value its state. Texts
themselves are not stored, yet a state can betray its text: keep the folder as private as the click log.

Shape letters: N given texts, T distinct texts, C texts of one chunk, E width of the encoder.
"""

import contextlib
import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.cachefolder import default_cache_dir as default_cache_dir
from common.pretrained import Pretrained, TextEncoder, load_text_encoder

POOLING = "mean2"  # raise the number whenever TextEncoder.encode changes its values
CHUNK = 512  # texts between two writes: what Ctrl-C can lose
_QUERY = 500  # keys per SELECT; SQLite's oldest limit on parameters is 999
_TIMEOUT_SECONDS = 60.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # the last: tables of another layout

_TABLE = "CREATE TABLE IF NOT EXISTS states (key BLOB PRIMARY KEY, state BLOB NOT NULL, crc INTEGER NOT NULL)"

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodedTexts:
    """States of distinct texts, and which state each given text has.

    Attributes:
        states_TE: float32 [T, E], in order of first appearance.
        index_N: int64 [N]; `states_TE[index_N]` has one row per given text.
        encoded: how many of the T texts were encoded now.
        reused: how many of them came from the cache.
    """

    states_TE: npt.NDArray[np.float32]
    index_N: npt.NDArray[np.int64]
    encoded: int
    reused: int


class TextStates:
    """Encoded texts of one encoder, cached in a folder that several processes may share."""

    def __init__(self, pretrained: Pretrained, max_tokens: int, cache_dir: Path) -> None:
        self.pretrained = pretrained
        self.max_tokens = max_tokens
        name = f"texts-{pretrained.fingerprint[:32]}-{POOLING}-{max_tokens}.sqlite3"
        self._store = _Store(cache_dir / name, pretrained.width)
        self._encoder: TextEncoder | None = None

    def states(self, texts: Sequence[str], progress: Progress | None = None) -> EncodedTexts:
        """Returns the states of `texts`; the encoder is loaded only when a text is not in the cache.

        What is returned is what is stored, so a later run has the same bits.

        Args:
            texts: N texts; repeats cost nothing.
            progress: called after every chunk with (texts encoded, texts to encode); never when all are cached.

        Raises:
            PretrainedError: when the encoder is needed and cannot be loaded.
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(rows)
        keys = [_key(text) for text in distinct]
        states_TE = np.empty((len(distinct), self.pretrained.width), dtype=np.float32)
        with self._store.session():
            known = self._store.read(keys)
            missing = [row for row, key in enumerate(keys) if key not in known]
            for row, key in enumerate(keys):
                if key in known:
                    states_TE[row] = known[key]
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                states_TE[chunk] = self._encode([distinct[row] for row in chunk], [keys[row] for row in chunk])
                if progress is not None:
                    progress(start + len(chunk), len(missing))
        index_N = np.fromiter((rows[text] for text in texts), dtype=np.int64, count=len(texts))
        return EncodedTexts(states_TE, index_N, encoded=len(missing), reused=len(distinct) - len(missing))

    def _encode(self, texts: list[str], keys: list[bytes]) -> npt.NDArray[np.float32]:
        if self._encoder is None:
            self._encoder = load_text_encoder(self.pretrained)
        fresh_CE = self._encoder.encode(texts, self.max_tokens)
        self._store.write(keys, fresh_CE)
        stored = self._store.read(keys)  # another process may have been first: then its values count
        for row, key in enumerate(keys):
            fresh_CE[row] = stored.get(key, fresh_CE[row])
        return fresh_CE


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class _DamagedError(Exception):
    """A stored value that does not have its checksum or length."""


class _Store:
    """The SQLite file. Damage sets it aside; a disk that cannot be used turns it off; neither stops a run."""

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._width = width
        self._off = False
        self._connection: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Holds one connection; it is never kept between calls, so that a fork cannot inherit it."""
        try:
            yield
        finally:
            self._close()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """Returns the states of those keys that are stored."""
        found: dict[bytes, npt.NDArray[np.float32]] = {}

        def run(connection: sqlite3.Connection) -> None:
            found.clear()
            for start in range(0, len(keys), _QUERY):
                some = keys[start : start + _QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, state, crc FROM states WHERE key IN ({marks})"  # noqa: S608 - only marks
                for key, state, crc in connection.execute(query, some):
                    found[key] = self._unpack(state, crc)

        if keys and not self._try(run):
            found.clear()
        return found

    def write(self, keys: Sequence[bytes], states_CE: npt.NDArray[np.float32]) -> None:
        """Stores states; a key that is there already keeps its value."""
        values = [state_E.tobytes() for state_E in states_CE]
        rows = [(key, value, zlib.crc32(value)) for key, value in zip(keys, values, strict=True)]

        def run(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO states VALUES (?, ?, ?)", rows)

        self._try(run)

    def _unpack(self, state: object, crc: object) -> npt.NDArray[np.float32]:
        if not isinstance(state, bytes) or len(state) != 4 * self._width or zlib.crc32(state) != crc:
            raise _DamagedError
        return np.frombuffer(state, dtype=np.float32)

    def _try(self, run: Callable[[sqlite3.Connection], None]) -> bool:
        """Runs one access, once more after damage; returns whether it worked."""
        for _ in range(2):
            if self._off:
                return False
            try:
                run(self._open())
                return True
            except (_DamagedError, sqlite3.Error, OSError) as error:
                self._close()
                self._recover(error)
        return False

    def _recover(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if not isinstance(error, _DamagedError) and code not in _DAMAGED:
            self._turn_off(error)
            return
        aside = self._path.with_name(self._path.name + ".damaged")
        try:
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as problem:
            self._turn_off(problem)
            return
        _log.warning("cache of encoded texts %s is damaged; set aside as %s and rebuilt", self._path, aside.name)

    def _turn_off(self, error: Exception) -> None:
        self._off = True
        _log.warning("cache of encoded texts %s cannot be used (%s); texts are encoded without it", self._path, error)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # a lost last chunk is only encoded again
            with self._connection:
                self._connection.execute(_TABLE)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
