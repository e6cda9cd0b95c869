"""Each distinct text is encoded once, and cached on disk by its content and the encoder's fingerprint.

One SQLite file per (encoder, pooling, max_tokens), and one per number of frozen layers where the layers above them are
trained; the key is the SHA-256 of a text, the value its state, or the states of its tokens. Texts themselves are not
stored, yet a state can betray its text: keep the folder as private as the click log.

Shape letters: N given texts, T distinct texts, E width of the encoder, n tokens of a text.
"""

import contextlib
import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.cachefolder import default_cache_dir
from common.config import ModelConfig
from common.pretrained import Pretrained, TextEncoder, load_text_encoder

POOLING = "mean2"  # raise the number whenever TextEncoder.encode changes its values
TOKENS = "tokens1"  # and this one whenever TextEncoder.token_states does
CHUNK = 512  # texts between two writes: what Ctrl-C can lose
_QUERY = 500  # keys per SELECT; SQLite's oldest limit on parameters is 999
_TIMEOUT_SECONDS = 60.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # the last: tables of another layout

_TABLE = "CREATE TABLE IF NOT EXISTS states (key BLOB PRIMARY KEY, state BLOB NOT NULL, crc INTEGER NOT NULL)"

Float = npt.NDArray[np.float32]

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
        tokens_T: where layers of the encoder are trained, float32 [n, E] for each distinct text: what enters the first
            of these layers.
    """

    states_TE: Float
    index_N: npt.NDArray[np.int64]
    encoded: int
    reused: int
    tokens_T: list[Float] | None = None


def encode_texts(
    texts: Sequence[str], model: ModelConfig, pretrained: Pretrained, progress: Progress | None = None
) -> EncodedTexts:
    """Returns what a model of this configuration reads of `texts`; arguments and errors as of `TextStates.states`."""
    folder = default_cache_dir(model.cache)
    encoded = TextStates(pretrained, model.max_tokens, folder).states(texts, progress)
    if model.tune == "head":
        return encoded
    depth = model.frozen_layers(pretrained.layers)
    return replace(encoded, tokens_T=TokenStates(pretrained, model.max_tokens, depth, folder).states(texts, progress))


class TextStates:
    """Encoded texts of one encoder, cached in a folder that several processes may share."""

    def __init__(self, pretrained: Pretrained, max_tokens: int, cache_dir: Path) -> None:
        self.pretrained = pretrained
        name = f"texts-{pretrained.fingerprint[:32]}-{POOLING}-{max_tokens}.sqlite3"
        store = _Store(cache_dir / name, pretrained.width, rows=1)
        self._cache = _Cache(pretrained, store, lambda encoder, texts: [*encoder.encode(texts, max_tokens)[:, None]])

    def states(self, texts: Sequence[str], progress: Progress | None = None) -> EncodedTexts:
        """Returns the states of `texts`; the encoder is loaded only when a text is not in the cache.

        What is returned is what is stored, so a later run has the same bits.

        Args:
            texts: N texts; repeats cost nothing.
            progress: called after every chunk with (texts encoded, texts to encode); never when all are cached.

        Raises:
            PretrainedError: when the encoder is needed and cannot be loaded.
        """
        distinct, index_N = _distinct(texts)
        found, encoded = self._cache.values(distinct, progress)
        states_TE = np.concatenate([np.zeros((0, self.pretrained.width), np.float32), *found])
        return EncodedTexts(states_TE, index_N, encoded=encoded, reused=len(distinct) - encoded)


class TokenStates:
    """What the frozen lower layers of an encoder say of each token, cached as `TextStates` are.

    Args:
        pretrained: the encoder.
        max_tokens: the most tokens of a text that are read.
        depth: how many layers are frozen; 0 = the embeddings alone.
        cache_dir: folder.
    """

    def __init__(self, pretrained: Pretrained, max_tokens: int, depth: int, cache_dir: Path) -> None:
        name = f"tokens-{pretrained.fingerprint[:32]}-{TOKENS}-{max_tokens}-{depth}.sqlite3"
        store = _Store(cache_dir / name, pretrained.width)
        self._cache = _Cache(pretrained, store, lambda encoder, texts: encoder.token_states(texts, max_tokens, depth))

    def states(self, texts: Sequence[str], progress: Progress | None = None) -> list[Float]:
        """Returns float32 [n, E] for each distinct text of n tokens, in order of first appearance."""
        return self._cache.values(_distinct(texts)[0], progress)[0]


def _distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Returns the distinct texts in order of first appearance, and which of them each is."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return list(rows), np.fromiter((rows[text] for text in texts), dtype=np.int64, count=len(texts))


class _Cache:
    """Values of texts, float32 [n, E] each: stored ones, and those that the encoder gives."""

    def __init__(
        self, pretrained: Pretrained, store: "_Store", encode: Callable[[TextEncoder, list[str]], list[Float]]
    ) -> None:
        self._pretrained, self._store, self._encode = pretrained, store, encode
        self._encoder: TextEncoder | None = None

    def values(self, distinct: list[str], progress: Progress | None) -> tuple[list[Float], int]:
        """Returns each text's value, and how many were not in the store."""
        keys = [_key(text) for text in distinct]
        with self._store.session():
            found = self._store.read(keys)
            missing = [row for row, key in enumerate(keys) if key not in found]
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                found |= self._fresh([distinct[row] for row in chunk], [keys[row] for row in chunk])
                if progress is not None:
                    progress(start + len(chunk), len(missing))
        return [found[key] for key in keys], len(missing)

    def _fresh(self, texts: list[str], keys: list[bytes]) -> dict[bytes, Float]:
        if self._encoder is None:
            self._encoder = load_text_encoder(self._pretrained)
        fresh = dict(zip(keys, self._encode(self._encoder, texts), strict=True))
        self._store.write(fresh)
        # Another process may have been first: then its values count.
        return fresh | self._store.read(keys)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class _DamagedError(Exception):
    """A stored value that does not have its checksum or length."""


class _Store:
    """The SQLite file. Damage sets it aside; a disk that cannot be used turns it off; neither stops a run.

    Args:
        path: of the file.
        width: numbers in each row of a value.
        rows: of each value; None = as many as each has.
    """

    def __init__(self, path: Path, width: int, rows: int | None = None) -> None:
        self._path, self._width, self._rows = path, width, rows
        self._off = False
        self._connection: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Holds one connection; it is never kept between calls, so that a fork cannot inherit it."""
        try:
            yield
        finally:
            self._close()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Float]:
        """Returns the values of those keys that are stored, float32 [n, E] each."""
        found: dict[bytes, Float] = {}

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

    def write(self, values: Mapping[bytes, Float]) -> None:
        """Stores values; a key that is there already keeps its own."""
        packed = {key: value.tobytes() for key, value in values.items()}
        rows = [(key, value, zlib.crc32(value)) for key, value in packed.items()]

        def run(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO states VALUES (?, ?, ?)", rows)

        self._try(run)

    def _unpack(self, state: object, crc: object) -> Float:
        if not isinstance(state, bytes) or len(state) % (4 * self._width) or zlib.crc32(state) != crc:
            raise _DamagedError
        value_TE = np.frombuffer(state, dtype=np.float32).reshape(-1, self._width)
        if self._rows is not None and len(value_TE) != self._rows:
            raise _DamagedError
        return value_TE

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
