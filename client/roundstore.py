"""Where a round's secrets lie between its stages: in the worker's memory, or sealed on the partner's own disk.

Never with Flower: what Flower keeps, whoever ships code through Flower can read.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import ProtocolError
from common.expiry import delete_older
from common.runfolder import write_atomically
from common.secagg.keys import derive

_NONCE_BYTES = 12


class RoundStore(Protocol):
    """Blobs by name; `get` of what was never put, or was erased, is None."""

    def put(self, name: str, blob: bytes) -> None:
        """Keeps a blob, in place of what was there."""

    def get(self, name: str) -> bytes | None:
        """Returns a blob."""

    def erase(self, name: str) -> None:
        """Forgets a blob."""

    def expire(self, before: float) -> int:
        """Forgets what was kept before a Unix time; returns how many blobs that were."""


class MemoryRoundStore:
    """Secrets die with the process; what a restarted worker cannot finish, it refuses."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[float, bytes]] = {}

    def put(self, name: str, blob: bytes) -> None:
        """Keeps a blob."""
        self._blobs[name] = datetime.now(UTC).timestamp(), blob

    def get(self, name: str) -> bytes | None:
        """Returns a blob."""
        found = self._blobs.get(name)
        return None if found is None else found[1]

    def expire(self, before: float) -> int:
        """Forgets old blobs."""
        old = [name for name, (kept, _) in list(self._blobs.items()) if kept < before]
        for name in old:
            self.erase(name)
        return len(old)

    def erase(self, name: str) -> None:
        """Forgets a blob."""
        self._blobs.pop(name, None)


class SealedRoundStore:
    """One file per blob, sealed under a key derived from the partner's identity: survives a restart of the worker.

    An erased file may still be found on the disk by whoever has the disk and the identity key.
    """

    def __init__(self, folder: Path, identity: Ed25519PrivateKey) -> None:
        self._folder = folder
        self._key = derive(identity.private_bytes_raw(), b"", "round store")

    def put(self, name: str, blob: bytes) -> None:
        """Keeps a blob, on the disk before this returns: a power cut never brings an older one back."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        nonce = os.urandom(_NONCE_BYTES)
        write_atomically(self._folder / name, nonce + AESGCM(self._key).encrypt(nonce, blob, name.encode()))

    def get(self, name: str) -> bytes | None:
        """Returns a blob, or raises `ProtocolError` for one that was altered."""
        try:
            sealed = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return AESGCM(self._key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise ProtocolError("a round's stored state is damaged; the round is over for this participant") from None

    def erase(self, name: str) -> None:
        """Forgets a blob."""
        (self._folder / name).unlink(missing_ok=True)

    def expire(self, before: float) -> int:
        """Forgets old blobs, and what a kill in the middle of a write left of them."""
        return delete_older(self._folder, ("*",), before)
