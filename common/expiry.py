"""Deleting files that are old: what goes is counted, what cannot go is said and tried again the next time."""

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("hushclick.files")


def delete_older(folder: Path, patterns: Iterable[str], before: float) -> int:
    """Deletes the files of a folder that were last written before a Unix time; returns how many."""
    old = []
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < before:
                old.append(path)
    return delete(old)


def delete(paths: Iterable[Path]) -> int:
    """Deletes files; returns how many went."""
    count = 0
    for path in paths:
        try:
            path.unlink()
            count += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s cannot be deleted: %s", path.name, error.strerror)
    return count
