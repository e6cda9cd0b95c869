"""A folder of model versions: each signed and whole, none ever changed, and one of them promoted.

```
versions/0001/      the four files of a signed model, signing.pub that it was verified with, added.json
versions/0002/
promoted.json       which version is in use, and every change of that: when, who, from which
lock                held while something is added or promoted
```

A version is made beside its place and renamed into it, and `promoted.json` is replaced as a whole: a kill, a full disk
or a second writer leaves the registry as it was before, or with all of the change in it.
"""

import fcntl
import json
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import HushclickError, ModelError
from common.keyfiles import load_signing_public, public_pem
from common.lineage import LINEAGE, SIGNATURE, Lineage, read_model_folder, verified
from common.runfolder import write_folder, write_json

REGISTRY_VERSION = 1
_KEY, _ADDED = "signing.pub", "added.json"
_NAME = re.compile("[0-9]{4,9}")


@dataclass(frozen=True)
class Version:
    """One model of a registry, its signature verified."""

    number: int
    folder: Path
    lineage: Lineage
    added: dict[str, Any]  # when, by whom, from which folder


class Registry:
    """The model versions in one folder.

    Formal guarantees:
        - what is added was verified with the key that is given, byte for byte of what is kept;
        - a number is given once, also to several that add at the same time, and its files are not touched again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._versions, self._pointer = root / "versions", root / "promoted.json"

    def add(self, model: Path, key: Ed25519PublicKey) -> int:
        """Copies a signed model in as the next version and returns its number; the same model again has its own.

        Raises:
            ModelError: where the model is not whole, or not signed by this key.
            HushclickError: where the disk refuses; nothing is changed then.
        """
        files = read_model_folder(model)
        verified(files, key)
        with self._alone():
            for number in self.numbers():
                if self._same(number, files):
                    return number
            number = max([*self.numbers(), *(step["version"] for step in self.history())], default=0) + 1
            facts = {"registry": REGISTRY_VERSION, "when": _now(), "by": _user(), "from": str(model.resolve())}
            kept = files | {
                _KEY: public_pem(key.public_bytes_raw().hex()),
                _ADDED: json.dumps(facts, indent=1).encode() + b"\n",
            }
            write_folder(self._folder(number), kept)
            return number

    def numbers(self) -> list[int]:
        """Returns the numbers of all versions, ascending."""
        if not self._versions.is_dir():
            return []
        return sorted(int(path.name) for path in self._versions.iterdir() if _NAME.fullmatch(path.name))

    def version(self, number: int, key: Ed25519PublicKey | None = None) -> Version:
        """Returns one version after verifying it, with the key given, or with the one that it was added under.

        Raises:
            ModelError: where there is none of that number, or it was altered or signed by another key.
        """
        folder = self._require(number)
        lineage = verified(read_model_folder(folder), key or load_signing_public(folder / _KEY))
        return Version(number, folder, lineage, _json(folder / _ADDED))

    def promoted(self) -> int | None:
        """Returns the number of the version in use; None before the first."""
        history = self.history()
        return int(history[-1]["version"]) if history else None

    def history(self) -> list[dict[str, Any]]:
        """Returns every promotion, oldest first: version, when, by, before (null for the first)."""
        if not self._pointer.exists():
            return []
        found = _json(self._pointer)
        version, history = found.get("registry"), found.get("history")
        if version != REGISTRY_VERSION:
            raise ModelError(
                f"{self._pointer}: version {version!r:.20}, this release reads {REGISTRY_VERSION}: use the release that"
                " wrote it"
            )
        if not isinstance(history, list) or not all(map(_is_step, history)):
            raise ModelError(f"{self._pointer}: not a record of promotions; restore it, or delete it and promote again")
        return history

    def promote(self, number: int) -> int | None:
        """Points at another version, which is verified first; returns the one before, itself where nothing changes.

        Raises:
            ModelError: as `version`.
            HushclickError: where the disk refuses; the version before stays in use then.
        """
        self.version(number)
        with self._alone():
            history, before = self.history(), self.promoted()
            if before != number:
                step = {"version": number, "when": _now(), "by": _user(), "before": before}
                write_json(self._pointer, {"registry": REGISTRY_VERSION, "history": [*history, step]})
            return before

    def _same(self, number: int, files: dict[str, bytes]) -> bool:
        folder = self._folder(number)
        try:
            return all((folder / name).read_bytes() == files[name] for name in (LINEAGE, SIGNATURE))
        except OSError:
            return False

    def _require(self, number: int) -> Path:
        folder = self._folder(number)
        if not folder.is_dir():
            known = ", ".join(map(str, self.numbers())) or "none"
            raise ModelError(f"{self.root}: no version {number}; there are: {known}")
        return folder

    def _folder(self, number: int) -> Path:
        return self._versions / f"{number:04d}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("wb")
        except OSError as error:
            raise HushclickError(f"{self.root}: cannot be written: {error.strerror}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _is_step(step: Any) -> bool:
    return (
        isinstance(step, dict) and step.keys() >= {"version", "when", "by", "before"} and type(step["version"]) is int
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: missing or damaged; restore it from a backup")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"
