"""Ledgers as an operator reads them: whole, verified, with the policy of the partner that keeps each.

Nothing here writes. A ledger that is not there is never read as one that has spent nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from client.anchors import HeadFile
from client.budget import Budget
from client.partner import PartnerConfig, load_partner
from common.anchors import AnchorFile
from common.config import Config, PrivacyConfig
from common.errors import LedgerError, UsageError
from common.privacy.accounting import epsilon
from common.privacy.chain import LedgerHead
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.releases import evaluation_event
from common.privacy.views import VIEWS, View, as_seen, bounds_of
from common.runfolder import RunFolder
from common.schedule import evaluated_in
from common.scorehistogram import terms_of
from common.secagg.wire import SessionId


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
        counted: those of the events that count against the budget now; all of them without a period.
        refusal: why the budget would grant nothing, whatever is left of it; empty where nothing stands against it.
        ahead: by how much the ledger's times are ahead of the server's clock, at most; None where no server's anchors
            were given.
    """

    name: str
    ledger: Path
    head: LedgerHead
    events: tuple[DpEvent, ...]
    uncommitted: int
    policy: PrivacyConfig | None
    counted: tuple[DpEvent, ...]
    refusal: str = ""
    ahead: timedelta | None = None

    @property
    def period_days(self) -> int | None:
        """The span that the budget is for; None = for ever, or unknown."""
        return self.policy.period_days if self.policy else None

    def bounds(self) -> dict[View, float]:
        """Returns the policy's bounds by who learns; none in mode "none" or without a policy."""
        if self.policy is None or self.policy.mode == "none":
            return {}
        return bounds_of(self.policy)

    def spent(self, delta: float) -> dict[str, float]:
        """Returns the epsilon (PLD) of everything in the ledger, by who learns."""
        return {view: epsilon(as_seen(self.events, view), delta) for view in VIEWS}

    def spent_in_period(self, delta: float) -> dict[str, float]:
        """Returns the epsilon (PLD) of what counts against the budget now, by who learns."""
        return {view: epsilon(as_seen(self.counted, view), delta) for view in VIEWS}

    def rounds_left(self, event: DpEvent, room: Sequence[DpEvent] = ()) -> int | None:
        """Returns how many more rounds like `event` the policy affords now; None where it has no budget.

        Args:
            event: of one round.
            room: what the budget must still hold beside them.
        """
        if self.policy is None or self.policy.mode == "none":
            return None
        return 0 if self.refusal else Budget(Ledger(self.ledger), self.policy).affordable_rounds(event, room)

    def evaluations_to_come(self, config: Config, like: DpEvent) -> list[DpEvent]:
        """Returns the evaluations of a run that this partner has not given yet, and keeps room for.

        Args:
            config: of the run.
            like: a release of training in it.
        """
        policy, evaluation = self.policy, config.evaluation
        if policy is None or not (policy.noised and evaluation.by_partners):
            return []
        clip = terms_of(evaluation, policy, config.model.prior_click_rate).clip
        event = evaluation_event(policy, clip, like.shares, SessionId(like.run_id, 0, 0), "")
        runs = [evaluated_in(past.run_id) for past in self.events if past.purpose == "evaluation"]
        given = sum(found is not None and found[0] == like.run_id for found in runs)
        return [event] * max(0, evaluation.releases - given)


def read_accounts(path: Path, anchor: LedgerHead | AnchorFile | None = None) -> list[Account]:
    """Returns the account of a ledger file, or of every partner of a run folder, in name order.

    Args:
        path: a ledger file, or a run folder.
        anchor: a head kept elsewhere, which the ledger must contain, for a single file; or what a server kept of the
            partners, where each must contain what is kept of it.

    Raises:
        UsageError: where there is no such file, or no ledger in the folder.
        LedgerError: where any is damaged, naming each, or does not contain the anchor.
        ConfigError: where a policy beside a ledger cannot be read.
    """
    if path.is_dir():
        if isinstance(anchor, LedgerHead):
            raise UsageError(f"--anchor: belongs to one ledger, and {path} is a folder; give the ledger's file")
        return _read_run(RunFolder(path), anchor)
    if not path.is_file():
        raise UsageError(f"{path}: no such ledger or run folder; a ledger that is missing has not spent nothing")
    account = _read_one(path, _policy_beside(path), anchor)
    if isinstance(anchor, AnchorFile) and account.ahead is None:
        raise UsageError(f"--anchor: {anchor} keeps no anchor of {account.name}, so it says nothing of its ledger")
    return [account]


def _read_run(folder: RunFolder, anchors: AnchorFile | None) -> list[Account]:
    partners = {Path(one.ledger): one for one in map(load_partner, sorted(folder.root.glob("partners/*/partner.toml")))}
    ledgers = {path.resolve() for path in folder.ledgers.glob("*.jsonl")} | {path for path in partners if path.exists()}
    if not ledgers:
        raise UsageError(f"{folder.root}: holds no ledgers (ledgers/PARTNER.jsonl); give a run folder or a ledger file")
    return _all_or_damages([(path, partners.get(path)) for path in sorted(ledgers)], anchors)


def _all_or_damages(found: Sequence[tuple[Path, PartnerConfig | None]], anchors: AnchorFile | None) -> list[Account]:
    accounts, damages = [], []
    for path, partner in found:
        try:
            accounts.append(_read_one(path, partner, anchors))
        except LedgerError as error:
            damages.append(str(error))
    if damages:
        whole = f"the other {len(accounts)} ledgers are whole" if accounts else "no other ledger is there"
        raise LedgerError("\n".join([*damages, whole]))
    return accounts


def _read_one(path: Path, partner: PartnerConfig | None, anchor: LedgerHead | AnchorFile | None = None) -> Account:
    ledger = Ledger(path, partner.name if partner else None)
    if partner is not None and (kept := HeadFile(Path(partner.state)).read()) is not None:
        ledger.verify(kept)
    head = ledger.verify(anchor if isinstance(anchor, LedgerHead) else None)
    name = partner.name if partner else ledger.owner() or path.stem
    ahead = _ahead(ledger, name, anchor) if isinstance(anchor, AnchorFile) else None
    events, uncommitted, policy = ledger.events(), len(ledger.uncommitted()), partner.privacy if partner else None
    counted, refusal = events, ""
    try:
        counted = Budget(ledger, policy).counted() if policy else events
    except LedgerError as error:  # a clock that is behind: the ledger itself is whole
        refusal = str(error)
    return Account(name, path, head, events, uncommitted, policy, counted, refusal, ahead)


def _ahead(ledger: Ledger, name: str, file: AnchorFile) -> timedelta | None:
    """Returns by how much the times of a ledger are ahead of the server's, at most; None where it has no anchors.

    Raises:
        LedgerError: where the ledger never had one of them.
    """
    leads = []
    for number, kept in enumerate(file.read().get(name, []), 1):
        place = ledger.place_of(kept.anchor)
        if place is None:
            raise LedgerError(
                f"{name}'s ledger never had anchor {number} that {file} keeps of it (of {kept.time:%Y-%m-%d %H:%M:%S}"
                " UTC): it was cut, restored from a backup or written anew, or the file is wrong"
            )
        leads.append(place[1] - kept.time)
    return max(leads, default=None)


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
