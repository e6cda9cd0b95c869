"""What was issued so far, `issued.json` in the kits' folder: public halves and hashes, nothing secret.

It is why a key is never made twice: a private key that was handed over and deleted here stays issued. And it is how a
file that the operator changed is told from one that is as it was written.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from common.config import STRICT
from common.errors import ConfigError
from common.kit import KIT_VERSION, take_version
from common.runfolder import write_atomically, write_json

KeyName = Literal["identity", "node"]


@checked_dataclass(frozen=True, config=STRICT)
class Keys:
    """Public halves of one partner's keys, and which of them were made here."""

    identity: str  # Ed25519, hex
    node: str  # OpenSSH line
    made_here: tuple[KeyName, ...] = ()

    def public(self, name: KeyName) -> str:
        """The public half of one of them."""
        return self.identity if name == "identity" else self.node


@checked_dataclass(frozen=True, config=STRICT)
class Issued:
    """All that was issued; "" = not yet."""

    authority: str = ""  # SHA-256 of the certificate, hex
    certificate: str = ""  # of the server, the same
    signing: str = ""  # Ed25519, hex
    partners: dict[str, Keys] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # path in the kits' folder -> SHA-256 of what was written


def load_issued(path: Path) -> Issued:
    """Returns the record in a kits' folder; an empty one where nothing was issued."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: not a record of what was issued; restore it from a backup")
        take_version(table, path)
        return TypeAdapter(Issued).validate_json(json.dumps(table))
    except FileNotFoundError:
        return Issued()
    except (ValueError, ValidationError):
        raise ConfigError(f"{path}: not a record of what was issued; restore it from a backup") from None


def save_issued(path: Path, issued: Issued) -> None:
    """Writes the record down, as a whole."""
    write_json(path, {"kit": KIT_VERSION} | asdict(issued))


@dataclass
class Shelf:
    """Writes the files of the kits, and keeps their hashes.

    A file that is as it was written is written anew; one that somebody changed is left alone, and the new one is put
    beside it as `NAME.new`.

    Attributes:
        changed: paths that hold something new, in the order of writing.
        kept: paths that were changed by hand and left alone.
    """

    root: Path
    hashes: dict[str, str]
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def put(self, name: str, data: bytes | str) -> None:
        """Writes one file, unless it says the same already."""
        data = data.encode() if isinstance(data, str) else data
        path, mark, before = self.root / name, _hash(data), self.hashes.get(name)
        there = _hash(path.read_bytes()) if path.is_file() else None
        if before != mark:
            self.changed.append(name)
        beside = path.with_name(f"{path.name}.new")
        if there in (None, mark, before):
            if there != mark:
                write_atomically(path, data)
            beside.unlink(missing_ok=True)
        elif before != mark:
            write_atomically(beside, data)
            self.kept.append(name)
        self.hashes[name] = mark

    def forget(self, prefix: str) -> None:
        """Forgets the files of a folder that is gone."""
        for name in [name for name in self.hashes if name.startswith(prefix)]:
            del self.hashes[name]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
