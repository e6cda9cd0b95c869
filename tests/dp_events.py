"""One release by one partner, for tests that need some event or a small ledger."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

RELEASE = DpEvent(
    run_id="run",
    round=0,
    attempt=0,
    purpose="training",
    mechanism="poisson_gaussian",
    unit="user",
    adjacency="add_remove",
    noise_multiplier=1.0,
    sampling_rate=0.25,
    steps=4,
    clip=1.0,
    fixed_seed=False,
    mode="local",
)


def release(**changes: Any) -> DpEvent:
    """Returns the event with some facts changed."""
    return replace(RELEASE, **changes)


def unprotected(**changes: Any) -> DpEvent:
    """Returns a release without noise."""
    return replace(RELEASE, mechanism="none", noise_multiplier=0.0, mode="none", **changes)


def ledger_at(path: Path, owner: str = "shop", **options: Any) -> Ledger:
    """Returns a partner's ledger as it writes it, not flushed to the disk."""
    return Ledger(path, owner, **{"durable": False, **options})


def write_four_records(path: Path) -> Path:
    """Writes a ledger of four records: owner, reserve 2, commit 2, reserve 4."""
    ledger = ledger_at(path)
    ledger.commit(ledger.reserve(release(round=0)))
    ledger.reserve(release(round=1))
    return path
