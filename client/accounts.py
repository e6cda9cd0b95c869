"""Ledgers as an operator reads them: whole, verified, with the policy of the partner that keeps each.

Nothing here writes. A ledger that is not there is never read as one that has spent nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.partner import PartnerConfig, load_partner
from common.config import PrivacyConfig
from common.errors import LedgerError, UsageError
from common.privacy.accounting import epsilon
from common.privacy.chain import LedgerHead
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.views import VIEWS, View, as_seen, bounds_of
from common.runfolder import RunFolder


@dataclass(frozen=True)
class Account:
    """One partner's ledger, read and checked to its last line.

    Attributes:
        name: of the partner, or of the file where no policy lies beside it.
        ledger: the file.
        head: where it stands; keep length and hash elsewhere, and a cut or an older copy is found.
        events: everything that counts as spent, oldest first.
        uncommitted: reservations that were never committed, which count as well.
        policy: the partner's own limits; None where they were not found.
    """

    name: str
    ledger: Path
    head: LedgerHead
    events: tuple[DpEvent, ...]
    uncommitted: int
    policy: PrivacyConfig | None

    def bounds(self) -> dict[View, float]:
        """Returns the policy's bounds by who learns; none in mode "none" or without a policy."""
        if self.policy is None or self.policy.mode == "none":
            return {}
        return bounds_of(self.policy)

    def spent(self, delta: float) -> dict[str, float]:
        """Returns the epsilon (PLD) of everything in the ledger, by who learns."""
        return {view: epsilon(as_seen(self.events, view), delta) for view in VIEWS}


def read_accounts(path: Path, anchor: LedgerHead | None = None) -> list[Account]:
    """Returns the account of a ledger file, or of every partner of a run folder, in name order.

    Args:
        path: a ledger file, or a run folder.
        anchor: a head kept elsewhere, which the ledger must contain; for a single file.

    Raises:
        UsageError: where there is no such file, or no ledger in the folder.
        LedgerError: where any is damaged, naming each, or does not contain the anchor.
        ConfigError: where a policy beside a ledger cannot be read.
    """
    if path.is_dir():
        if anchor is not None:
            raise UsageError(f"--anchor: belongs to one ledger, and {path} is a folder; give the ledger's file")
        return _read_run(RunFolder(path))
    if not path.is_file():
        raise UsageError(f"{path}: no such ledger or run folder; a ledger that is missing has not spent nothing")
    return [_read_one(path, _policy_beside(path), anchor)]


def _read_run(folder: RunFolder) -> list[Account]:
    partners = {Path(one.ledger): one for one in map(load_partner, sorted(folder.root.glob("partners/*/partner.toml")))}
    ledgers = {path.resolve() for path in folder.ledgers.glob("*.jsonl")} | {path for path in partners if path.exists()}
    if not ledgers:
        raise UsageError(f"{folder.root}: holds no ledgers (ledgers/PARTNER.jsonl); give a run folder or a ledger file")
    return _all_or_damages([(path, partners.get(path)) for path in sorted(ledgers)])


def _all_or_damages(found: Sequence[tuple[Path, PartnerConfig | None]]) -> list[Account]:
    accounts, damages = [], []
    for path, partner in found:
        try:
            accounts.append(_read_one(path, partner))
        except LedgerError as error:
            damages.append(str(error))
    if damages:
        whole = f"the other {len(accounts)} ledgers are whole" if accounts else "no other ledger is there"
        raise LedgerError("\n".join([*damages, whole]))
    return accounts


def _read_one(path: Path, partner: PartnerConfig | None, anchor: LedgerHead | None = None) -> Account:
    ledger = Ledger(path)
    head = ledger.verify(anchor)
    events, uncommitted = ledger.events(), len(ledger.uncommitted())
    return Account(
        partner.name if partner else path.stem, path, head, events, uncommitted, partner.privacy if partner else None
    )


def _policy_beside(ledger: Path) -> PartnerConfig | None:
    """Returns the partner whose configuration, in the same folder or in the run's, names this ledger."""
    resolved = ledger.resolve()
    homes = [resolved.with_name("partner.toml"), *sorted(resolved.parent.parent.glob("partners/*/partner.toml"))]
    named = resolved.parent.parent / "partners" / resolved.stem / "partner.toml"
    for path in [named, *homes]:
        if path.is_file():
            partner = load_partner(path)
            if Path(partner.ledger) == resolved:
                return partner
    return None


def by(events: Sequence[DpEvent], key: Callable[[DpEvent], Any], delta: float) -> dict[str, dict[str, Any]]:
    """Returns, per value of a key in the order of the ledger, releases, steps and the epsilon of these alone."""
    parts: dict[str, list[DpEvent]] = {}
    for event in events:
        parts.setdefault(str(key(event)), []).append(event)
    return {
        value: {
            "releases": len(part),
            "steps": sum(event.steps for event in part),
            "epsilon": epsilon(part, delta),
        }
        for value, part in parts.items()
    }


def rounds_of(events: Sequence[DpEvent]) -> int:
    """Returns in how many rounds, over all runs, a ledger has releases."""
    return len({(event.run_id, event.round) for event in events})
