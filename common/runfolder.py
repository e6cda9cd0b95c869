"""What lies where in a run folder, and how files there are replaced without ever being half-written."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import HushclickError, disk_says


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run; nothing is created by asking for a path."""

    root: Path
    shared_ledgers: Path | None = None  # where several runs on the same people's clicks are charged to one ledger each

    @property
    def config(self) -> Path:
        """The effective configuration."""
        return self.root / "config.toml"

    @property
    def metrics(self) -> Path:
        """Rounds, final figures, floors, privacy, timings."""
        return self.root / "metrics.json"

    @property
    def model(self) -> Path:
        """The trained parameters and what is needed to use them."""
        return self.root / "model"

    @property
    def ledgers(self) -> Path:
        """One privacy ledger per partner."""
        return self.shared_ledgers or self.root / "ledgers"

    @property
    def report(self) -> Path:
        """The report: one HTML file."""
        return self.root / "report.html"

    @property
    def checkpoint(self) -> Path:
        """The state after the last good round."""
        return self.root / "checkpoint.safetensors"

    @property
    def anchors(self) -> Path:
        """What the server keeps of the partners' ledgers, so that they notice a backup that was restored."""
        return self.root / "anchors.jsonl"

    @property
    def audit(self) -> Path:
        """The audit log of a deployed server; a simulation has none."""
        return self.root / "audit.jsonl"

    @property
    def roster(self) -> Path:
        """The server's copy of the partners' names, public keys and weights."""
        return self.root / "roster.toml"

    @property
    def signing_key(self) -> Path:
        """What signs the final model: a simulation's own key, or a link to that of the server's kit."""
        return self.root / "signing.key"

    @property
    def signing_public(self) -> Path:
        """Its public half, where the run folder is a simulation's."""
        return self.root / "signing.pub"

    @property
    def central(self) -> Path:
        """The held-out click log of the central evaluation."""
        return self.root / "central.parquet"

    @property
    def catalogue(self) -> Path:
        """The public list of items, each with its category, where features are made with item rates."""
        return self.root / "catalogue.json"

    @property
    def preparation(self) -> Path:
        """What was read, dropped and split, and the exact floors; written once per run."""
        return self.root / "preparation.json"

    def partner(self, number: int) -> Path:
        """The folder of one simulated partner: its click log and its own configuration."""
        return self.root / "partners" / partner_name(number)


def partner_name(number: int) -> str:
    """Returns the name of a simulated partner."""
    return f"partner-{number:04d}"


def make_private(folder: Path) -> None:
    """Makes a folder that its owner alone can look into, or narrows one that was there.

    Raises:
        HushclickError: where it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise HushclickError(f"{folder}: cannot be kept from others: {error.strerror}") from None


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replaces a file as a whole: a kill or a full disk leaves the old one.

    It has its mode (less the umask) from the first byte on: at no moment can others read what only its owner may.

    Raises:
        HushclickError: when the disk refuses, naming the path and why.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise HushclickError(f"{path}: cannot be written: {disk_says(error)}; the earlier file is untouched") from None


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder with these files, all of them or none: a kill or a full disk leaves no folder of that name.

    Raises:
        HushclickError: where a folder of that name holds something already, or the disk refuses.
    """
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        beside.mkdir(parents=True)
        for name, data in files.items():
            with (beside / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(beside)
        beside.rename(folder)  # refused where a folder with files is there
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise HushclickError(f"{folder}: cannot be written: {disk_says(error)}; no part of it is left there") from None


def sync_folder(folder: Path) -> None:
    """Makes a rename last: else a power cut could bring the earlier file back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that any parser reads: floats that are not finite become null."""
    write_atomically(path, (json.dumps(jsonable(value), indent=1, ensure_ascii=False) + "\n").encode())


def jsonable(value: Any) -> Any:
    """Returns the value with floats that are not finite as None, numpy values as Python's, tuples as lists."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy array or scalar
        return jsonable(value.tolist())
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    return None if isinstance(value, float) else value
