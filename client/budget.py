"""The partner's own budget: a round that would overspend is refused before any data is touched (promise 2).

The bound is the partner's own `PrivacyConfig`, never the server's, and the history is the partner's own ledger. Check
and charge are one act under the ledger's lock, so that two processes cannot both take the last round.

With `privacy.period_days` the bound is for every span of so many days: reservations that are older count no more. What
they cost the partner's users stays theirs, so the epsilon of everything is said beside it.
"""

from collections.abc import Sequence
from datetime import timedelta

from client.anchors import HeadFile
from common.config import PrivacyConfig
from common.errors import BudgetExhausted, LedgerError
from common.privacy.accounting import epsilon
from common.privacy.calibrate import affordable_steps
from common.privacy.events import MAX_STEPS, DpEvent
from common.privacy.ledger import Ledger
from common.privacy.statement import PrivacyStatement, privacy_statement
from common.privacy.views import View, as_seen, bounds_of

# Rounding when a budget is written as the very epsilon that was calculated: far below the accountant's own pessimism.
_TOLERANCE = 1e-9

# How far a clock may go back, such as where it is set right over the network, before a period cannot be held to.
CLOCK_TOLERANCE = timedelta(minutes=5)


class Budget:
    """What a partner still allows.

    Every bound that the policy sets is held: `epsilon` for what the server and the public see, `epsilon_partner` for
    another partner, `epsilon_broken` for whoever breaks secure aggregation. In local mode the three are one number.

    Formal guarantees:
        - no reserve that returns, after whatever calls, crashes, restarts or other processes, leaves a ledger whose
          epsilon (PLD) at `policy.delta` is over `policy.epsilon`, in mode "local" (up to rounding, 1e-9 of it);
        - with a period of P days: no such reserve leaves any span of P days whose reservations are over it;
        - a reservation counts from the moment it is made, committed or not;
        - nothing is reserved in a ledger that lacks the head which was kept, or an anchor which was shown;
        - in mode "label" the same of one label, replace-one; rounds of the same flipped labels cost nothing more;
        - in mode "none" nothing is refused and everything is written down, as epsilon infinite.

    Args:
        ledger: the partner's own.
        policy: the partner's own limits; `mode`, `epsilon`, `delta` and `period_days` are read here.
        head_file: where the ledger's head is kept, outside the ledger; None = nowhere.

    Raises:
        ConfigError: for a delta that no accountant can hold to.
    """

    def __init__(self, ledger: Ledger, policy: PrivacyConfig, head_file: HeadFile | None = None) -> None:
        if policy.mode != "none":
            epsilon((), policy.delta)  # refuses a delta out of range now, not in the first round
        self._ledger = ledger
        self._policy = policy
        self._head_file = head_file
        self._lacks = ""  # why this ledger is not trusted any more

    def reserve(self, event: DpEvent, room: Sequence[DpEvent] = ()) -> int:
        """Charges an event before its data is touched; returns the reservation to commit.

        Args:
            event: what is to be released.
            room: what the budget must still hold after it, and is not charged yet.

        Raises:
            BudgetExhausted: where the event would exceed the budget, or leave no such room; nothing is charged then.
            LedgerError: where the ledger is damaged, cannot be written or stays locked; nothing may be released then.
        """
        self.require_whole()  # before a ledger that was deleted would be made anew by the lock
        with self._ledger.exclusive():
            self.require_whole()
            if self._policy.mode != "none":
                self._require_within(event, room)
            reservation = self._ledger.reserve(event)
            if self._head_file is not None:
                self._head_file.keep(self._ledger.head())
            return reservation

    def _require_within(self, event: DpEvent, room: Sequence[DpEvent]) -> None:
        counted = self.counted()
        _require_one_unit(self._ledger.events(), event)  # of all time, which is accounted for as well
        if not (exceeded := self._exceeded((*counted, *room), event)):
            return
        if room:
            exceeded = self._exceeded(counted, event)
        if exceeded:
            raise BudgetExhausted(self._refusal(counted, event, exceeded))
        raise BudgetExhausted(
            f"{_refused(event)}: it fits the budget, and leaves no room for what is still to come of this run:"
            f" {len(room)} evaluations"
        )

    def commit(self, reservation: int) -> None:
        """Notes that the release of a reservation was made."""
        self._ledger.commit(reservation)

    def require_whole(self) -> None:
        """Raises `LedgerError` where the ledger is not the one that this partner kept the head of, or was shown."""
        known = self._head_file.read() if self._head_file is not None else None  # before the ledger, which may grow
        if known is not None:
            self._ledger.require(known)
        if self._lacks:
            raise LedgerError(self._lacks)

    def anchor(self) -> str:
        """Returns what the server may keep of the ledger: a blinded commitment to its head; "" where there is none."""
        self.require_whole()
        return self._ledger.anchor()

    def require_anchor(self, anchor: str) -> None:
        """Refuses, from now on, to go on with a ledger that never had an anchor which was kept for it elsewhere.

        Who gives false anchors stops this partner, until it is started again, and gains nothing else.
        """
        if self._ledger.place_of(anchor) is None:
            self._lacks = (
                f"the server keeps an anchor of this ledger, {anchor[:12]}, that the ledger never had: it was cut,"
                " restored from a backup, or written anew, or the server is wrong; restore a copy that has it (budget"
                " show LEDGER --anchor ...), count the whole budget as spent, or, if the server is wrong, start again"
            )
        self.require_whole()

    def counted(self) -> tuple[DpEvent, ...]:
        """Returns the reservations that count against the budget now: all, or those of the last `period_days`.

        Raises:
            LedgerError: with a period, where the clock is behind the last record's.
        """
        days = self._policy.period_days
        if days is None:
            return self._ledger.events()
        now, last = self._ledger.now(), self._ledger.last_time()
        if last is not None and now < last - CLOCK_TOLERANCE:
            raise LedgerError(
                f"the clock says {now:%Y-%m-%d %H:%M:%S %Z}, the ledger's last record {last:%Y-%m-%d %H:%M:%S %Z}, and"
                f" privacy.period_days = {days}: a clock that goes back leaves no telling what still counts; set the"
                " clock, or, if it was wrong then, unset privacy.period_days (everything counts)"
            )
        return self._ledger.events(since=max(now, last or now).replace(microsecond=0) - timedelta(days=days))

    def spent(self) -> PrivacyStatement:
        """Returns what all reservations together cost this partner's users, however old."""
        return privacy_statement(self._ledger.events(), self._policy.delta)

    def affordable_rounds(self, event: DpEvent, room: Sequence[DpEvent] = ()) -> int | None:
        """Returns how many more rounds like `event` fit, or None where no budget applies (mode "none").

        Args:
            event: of one round.
            room: what the budget must hold beside them, and is not charged yet.
        """
        if self._policy.mode == "none":
            return None
        if event.mechanism == "none":
            return 0
        self.require_whole()
        spent = (*self.counted(), *room)
        if _units(self._ledger.events()) - {event.unit}:
            return 0
        if event.mechanism == "randomised_response":  # every further round is made of the same labels
            return 0 if self._exceeded(spent, event) else MAX_STEPS
        return min(
            self._affordable(as_seen([event], view)[0], as_seen(spent, view), bound) // event.steps
            for view, bound in self._bounds.items()
        )

    def _exceeded(self, spent: tuple[DpEvent, ...], event: DpEvent) -> View | None:
        """Returns by whose view an event would exceed the budget, or None where it fits every bound."""
        for view, bound in self._bounds.items():
            if not self._fits_one(as_seen(spent, view), as_seen([event], view)[0], bound):
                return view
        return None

    def _fits_one(self, spent: tuple[DpEvent, ...], event: DpEvent, bound: float) -> bool:
        if event.mechanism == "none" or any(past.mechanism == "none" for past in spent):
            return False
        if event.mechanism != "randomised_response" and all(_parameters(past) == _parameters(event) for past in spent):
            # The usual case, one pair of parameters: the answer is a count of steps, worked out once.
            return sum(past.steps for past in spent) + event.steps <= self._affordable(event, (), bound)
        return epsilon([*spent, event], self._policy.delta) <= bound

    def _affordable(self, event: DpEvent, spent: tuple[DpEvent, ...], bound: float) -> int:
        return affordable_steps(bound, self._policy.delta, *_parameters(event), already=spent)

    @property
    def _bounds(self) -> dict[View, float]:
        """The policy's bounds by who learns, with room for rounding."""
        return {view: bound * (1 + _TOLERANCE) for view, bound in bounds_of(self._policy).items()}

    def _refusal(self, spent: tuple[DpEvent, ...], event: DpEvent, view: View) -> str:
        delta = self._policy.delta
        key = "epsilon" if view == "server" else f"epsilon_{view}"
        before, after = epsilon(as_seen(spent, view), delta), epsilon(as_seen([*spent, event], view), delta)
        return (
            f"{_refused(event)}; {len(spent)} releases have"
            f" spent epsilon {before:.6g}, this one would make it {after:.6g}, and the budget is privacy.{key} ="
            f" {getattr(self._policy, key):g} at delta {delta:g}{self._of_period(event, view)};"
            f" {self._mend(spent, event)}"
        )

    def _of_period(self, event: DpEvent, view: View) -> str:
        """Returns, in words, the period that a refusal is about, and what all time would come to."""
        if self._policy.period_days is None:
            return ""
        ever = epsilon(as_seen([*self._ledger.events(), event], view), self._policy.delta)
        return f" in any {self._policy.period_days} days (of all time it would be {ever:.6g})"

    @staticmethod
    def _mend(spent: tuple[DpEvent, ...], event: DpEvent) -> str:
        if event.mechanism == "none":
            return 'train with noise, or set privacy.mode = "none" in this partner\'s own configuration'
        if any(past.mechanism == "none" for past in spent):
            return (
                "the ledger holds a release without noise, which no budget can hold; use other users, and a new ledger"
                " and state folder"
            )
        if event.mechanism == "randomised_response":
            return (
                "labels would be drawn with another key or privacy.label_epsilon than before, and both draws count: go"
                " back to those, or raise privacy.epsilon in this partner's own configuration (no server can)"
            )
        return (
            "ask for fewer steps or more noise, or raise privacy.epsilon in this partner's own configuration"
            " (no server can)"
        )


def _require_one_unit(spent: tuple[DpEvent, ...], event: DpEvent) -> None:
    """Refuses a release whose unit is not the ledger's: a budget in users and one in impressions do not add up."""
    others = _units(spent) - {event.unit}
    if others and event.mechanism != "none":
        raise BudgetExhausted(
            f"{_refused(event)}: {_said(event)}, and the ledger counts in units of one {others.pop()}; go on in that"
            " unit, or with other users and a new ledger and state folder"
        )


def _said(event: DpEvent) -> str:
    return 'privacy.mode = "label"' if event.unit == "label" else f'privacy.unit = "{event.unit}"'


def _refused(event: DpEvent) -> str:
    # Which labels are flipped is known once they are read.
    before = "anything was trained" if event.unit == "label" else "any data was touched"
    return f"{event.purpose} for round {event.round} refused before {before}"


def _units(spent: tuple[DpEvent, ...]) -> set[str]:
    return {past.unit for past in spent if past.mechanism != "none"}


def _parameters(event: DpEvent) -> tuple[float, float]:
    return event.sampling_rate, event.noise_multiplier
