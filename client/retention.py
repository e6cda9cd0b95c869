"""What a partner keeps no longer than its `[retention]` says: a round's secrets, contributions, delivered models.

What is kept whole: the ledger and its head (spent is spent), the list of the erased, the register of answered rounds
and the audit log, whose chain is verified from its first line. None of them holds data.
"""

import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from client.participant import final_rounds
from client.partner import PartnerConfig
from client.sent import forget, round_of, sent_files
from common.errors import HushclickError, LedgerError
from common.expiry import delete, delete_older

log = logging.getLogger("hushclick.partner")

PERSONAL = "personal.json"  # a partner's own correction of a delivered model
_HOUR_SECONDS = 3600.0
_PARTS = (".*.part", "*.part")  # what a kill in the middle of a write leaves behind


class Secrets(Protocol):
    """Where a round's secrets lie."""

    def expire(self, before: float) -> int:
        """Forgets what was kept before a Unix time; returns how much that was."""


@dataclass(frozen=True)
class Deleted:
    """How much was deleted."""

    secrets: int = 0
    contributions: int = 0
    models: int = 0
    parts: int = 0

    def __bool__(self) -> bool:
        return any(asdict(self).values())


def tidy(config: PartnerConfig, secrets: Secrets | None, now: float | None = None) -> Deleted:
    """Deletes what is over; the caller holds the state folder.

    A contribution goes once its round was unmasked, a secret with its round (`Participant`); both at the latest after
    `retention.secrets_hours`, whatever became of the run.
    """
    state, keep = Path(config.state), config.retention
    before = (time.time() if now is None else now) - keep.secrets_hours * _HOUR_SECONDS
    return Deleted(
        secrets=(secrets.expire(before) if secrets else 0) + delete_older(state / "secrets", ("*",), before),
        contributions=_forget_contributions(state, before),
        models=_beyond(state / "models", keep.delivered_models, before),
        parts=delete_older(state, _PARTS, before),
    )


def forget_all(state: Path) -> int:
    """Takes every contribution that is still kept off the disk; returns how many; the caller holds the state folder.

    A personal correction goes too: it was fitted on all users, and is fitted anew where it is asked for.

    Raises:
        LedgerError: naming each file that is damaged; all others are done by then.
    """
    count, problems = 0, []
    for path in sent_files(state):
        try:
            count += forget(path)
        except LedgerError as error:
            problems.append(str(error))
    count += delete({path for pattern in _PARTS for path in state.glob(pattern)})
    delete([state / PERSONAL])
    if problems:
        raise LedgerError("\n".join([*problems, "remove what is damaged by hand, and erase again"]))
    return count


def _forget_contributions(state: Path, before: float) -> int:
    final, count = final_rounds(state), 0
    for path in sent_files(state):
        try:
            round_number = round_of(path)
            over = round_number is not None and (
                round_number <= final.get(path.stem.removeprefix("sent-"), -1) or path.stat().st_mtime < before
            )
            count += over and forget(path)
        except (HushclickError, OSError) as error:  # damaged: what reads it for an answer refuses, and says so
            log.warning("retention: %s", error)
    return count


def _beyond(folder: Path, newest: int, before: float) -> int:
    """Deletes all delivered models but the newest so many; returns how many."""
    found = [path for path in folder.glob("*-*") if path.is_dir() and not path.name.startswith(".")]
    old = sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)[newest:]
    count = 0
    for path in old:
        gone = path.with_name(f".{path.name}.part")  # whoever reads a model finds it whole, or not at all
        try:
            path.rename(gone)
            count += 1
        except OSError as error:
            log.warning("retention: %s cannot be deleted: %s", path.name, error.strerror)
        shutil.rmtree(gone, ignore_errors=True)
    for left in folder.glob(".*.part"):  # by a kill in the middle of a delivery, or of this
        if left.stat().st_mtime < before:
            shutil.rmtree(left, ignore_errors=True)
    return count
