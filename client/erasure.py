"""Who asked to be erased: a list of keyed hashes in the partner's state folder, which every reading of people obeys.

`state/erased/users.json` holds no id: HMAC-SHA-256 under `state/erased/key`, random bytes of this partner's own. Who
has both files can test a guessed id, and read none. The list is looked at again before each use of data, so that it
holds in a running worker, and for a log that is exported anew with the same people in it.
"""

import hmac
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from client.overlap.points import normalised
from client.sent import exclusive
from common.errors import DataError
from common.runfolder import write_atomically

ERASED_VERSION = 1
_KEY_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}")
_MEND = "no row of anybody is used until it is mended: restore the folder from a copy, or name all who were erased anew"

Mark = tuple[int, int, int] | None  # tells one state of the list from another; None = no list


@dataclass(frozen=True)
class _Listed:
    exact: frozenset[str]
    folded: frozenset[str]  # the same people, without regard to case


class Erased:
    """The list of one partner.

    Formal guarantees:
        - no id, and no hash of one without a key, is written anywhere;
        - a list that is damaged, of another version, or of another key is refused, never taken for an empty one;
        - who was listed when a call begins is not among what it returns.

    What it cannot see: a folder that was deleted as a whole before this process read it. `check` says how many are
    listed.

    Args:
        state: the partner's state folder.

    Raises:
        DataError: from every method but `mark`, where the list cannot be relied on.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "erased"
        self._list, self._key_file = self._folder / "users.json", self._folder / "key"
        self._seen = False  # this object has read a list, which cannot be gone

    def __len__(self) -> int:
        return len(self._read().exact)

    def mark(self) -> Mark:
        """Returns what changes whenever the list does; cheap enough to be asked for each question."""
        try:
            found = self._list.stat()
        except (FileNotFoundError, NotADirectoryError):
            return (0, 0, 0) if self._key_file.exists() else None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def add(self, users: Iterable[str]) -> int:
        """Lists users, on the disk before this returns; returns how many were not listed before."""
        with exclusive(self._folder):
            before = self._read()
            key = self._key() or self._new_key()
            exact = before.exact | {_hash(key, "exact", user) for user in users}
            folded = before.folded | {_hash(key, "folded", user) for user in users}
            self._write(key, _Listed(exact, folded))
        return len(exact) - len(before.exact)

    def without(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of all users who are not listed, in their order."""
        listed, key = self._read(), self._key()
        if not listed.exact or key is None:
            return rows
        gone = [user for user in rows["user"].unique() if _hash(key, "exact", str(user)) in listed.exact]
        return rows[~rows["user"].isin(gone)].reset_index(drop=True)

    def others(self, identifiers: Iterable[str], *, fold_case: bool) -> list[str]:
        """Returns the identifiers that are nobody's who is listed, in their order."""
        listed, key = self._read(), self._key()
        if not listed.exact or key is None:
            return list(identifiers)
        kind, hashes = ("folded", listed.folded) if fold_case else ("exact", listed.exact)
        return [one for one in identifiers if _hash(key, kind, one) not in hashes]

    def _read(self) -> _Listed:
        try:
            found = json.loads(self._list.read_bytes())
            if found["version"] != ERASED_VERSION:
                raise DataError(
                    f"erased/users.json: version {found['version']!r:.20}, and this release reads {ERASED_VERSION};"
                    " go on with the release that wrote it, or a later one"
                )
            listed = _Listed(_hashes(found["users"]), _hashes(found["folded"]))
            check = str(found["key_check"])
        except (FileNotFoundError, NotADirectoryError):
            if self._key_file.exists() or self._seen:
                raise DataError(f"erased/users.json: is gone, and was there before; {_MEND}") from None
            return _Listed(frozenset(), frozenset())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"erased/users.json: damaged; {_MEND}") from None
        key = self._key()
        if key is None and not listed.exact:
            return listed  # a first call that was killed before it had listed anybody
        if key is None or not hmac.compare_digest(check, _hash(key, "check", "")):
            raise DataError(f"erased/key: is not the key of erased/users.json; {_MEND}")
        self._seen = True
        return listed

    def _key(self) -> bytes | None:
        try:
            key = self._key_file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(f"erased/key: cannot be read ({error.strerror}); {_MEND}") from None
        if len(key) != _KEY_BYTES:
            raise DataError(f"erased/key: damaged; {_MEND}")
        return key

    def _new_key(self) -> bytes:
        """Returns a new key, behind an empty list of it: a key without a list is refused."""
        key = os.urandom(_KEY_BYTES)
        self._write(key, _Listed(frozenset(), frozenset()))
        write_atomically(self._key_file, key, mode=0o600)
        return key

    def _write(self, key: bytes, listed: _Listed) -> None:
        facts = {"version": ERASED_VERSION, "key_check": _hash(key, "check", "")}
        facts |= {"users": sorted(listed.exact), "folded": sorted(listed.folded)}
        write_atomically(self._list, json.dumps(facts, indent=0).encode(), mode=0o600)


def _hash(key: bytes, kind: str, user: str) -> str:
    text = normalised(user, fold_case=kind == "folded")
    return hmac.digest(key, f"hushclick-erased-v1 {kind} {text}".encode(), "sha256").hex()


def _hashes(found: Any) -> frozenset[str]:
    if not isinstance(found, list) or not all(type(one) is str and _HASH.fullmatch(one) for one in found):
        raise ValueError
    return frozenset(found)
