"""`anchors.jsonl`: what the server keeps of the partners' ledgers, so that they notice a backup that was restored.

One JSON object a line, one line for a join and one for a round: `version`, `run_id`, `round`, `time` (the server's,
UTC) and `anchors`, partner -> anchor. A line without a version is of version 1. An anchor is a blinded commitment to
the head of a ledger: 64 hex digits that only the partner can tell anything from.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from common.errors import LedgerError, ProtocolError, disk_says

ANCHORS_VERSION = 1
_ANCHOR = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Anchor:
    """One partner's anchor, and when the server had it, by the server's clock."""

    anchor: str
    time: datetime


def require_anchor(anchor: str) -> None:
    """Raises `ProtocolError` for what is no anchor; "" stands for a ledger that has none yet."""
    if anchor and not _ANCHOR.fullmatch(anchor):
        raise ProtocolError(f"anchor = {anchor!r:.80}: must be empty, or 64 hex digits")


class AnchorFile:
    """The anchors of one run folder, appended to and flushed; a last line that was not finished is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def append(self, run_id: str, round_number: int, anchors: Mapping[str, str]) -> None:
        """Writes down the anchors of one join or round; those that are empty are left out.

        Raises:
            LedgerError: where the disk refuses.
        """
        kept = {partner: anchor for partner, anchor in sorted(anchors.items()) if anchor}
        if not kept:
            return
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps(
            {"version": ANCHORS_VERSION, "run_id": run_id, "round": round_number, "time": time, "anchors": kept}
        )
        try:
            with self._path.open("a+b") as file:
                _cut_torn_line(file)
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be written: {disk_says(error)}") from None

    def read(self) -> dict[str, list[Anchor]]:
        """Returns partner -> its anchors, oldest first; empty where there is no such file.

        Raises:
            LedgerError: for a line, other than a torn one, that is damaged.
        """
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]  # behind the last line end is nothing, or a torn line
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be read: {error.strerror}") from None
        found: dict[str, list[Anchor]] = {}
        for number, line in enumerate(lines, 1):
            for partner, anchor in self._parse(number, line):
                found.setdefault(partner, []).append(anchor)
        return found

    def last(self) -> dict[str, str]:
        """Returns partner -> the anchor that it gave last."""
        return {partner: anchors[-1].anchor for partner, anchors in self.read().items()}

    def _parse(self, number: int, line: bytes) -> list[tuple[str, Anchor]]:
        try:
            record: dict[str, Any] = json.loads(line)
            if (version := record.get("version", 1)) != ANCHORS_VERSION:
                raise LedgerError(
                    f"{self._path} line {number}: version {version!r:.20}, and this release reads {ANCHORS_VERSION}; go"
                    " on with the release that wrote it, or a later one"
                )
            time = datetime.fromisoformat(record["time"]).astimezone(UTC)
            found = [(partner, Anchor(anchor, time)) for partner, anchor in record["anchors"].items()]
            for _, anchor in found:
                require_anchor(anchor.anchor)
        except (ValueError, TypeError, KeyError, AttributeError, ProtocolError):
            raise LedgerError(
                f"{self._path} line {number}: not a line of anchors; restore the file, or remove the line and with it"
                " what it would have noticed"
            ) from None
        return found


def _cut_torn_line(file: IO[bytes]) -> None:
    """Cuts off what a crash in the middle of a write left behind the last line end."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
