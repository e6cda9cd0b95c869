"""Disks that fill up."""

from pathlib import Path


def fill(disk: Path) -> Path:
    """Fills a disk to the last byte, and returns the file that it is filled with."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler
