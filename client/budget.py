"""The partner's own budget: a round that would overspend is refused before any data is touched (promise 2).

The bound is the partner's own `PrivacyConfig`, never the server's, and the history is the partner's own ledger. Check
and charge are one act under the ledger's lock, so that two processes cannot both take the last round.
"""

from common.config import PrivacyConfig
from common.errors import BudgetExhausted
from common.privacy.accounting import PrivacyStatement, epsilon, privacy_statement
from common.privacy.calibrate import affordable_steps
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.views import View, as_seen, bounds_of

# Rounding when a budget is written as the very epsilon that was calculated: far below the accountant's own pessimism.
_TOLERANCE = 1e-9


class Budget:
    """What a partner still allows.

    Every bound that the policy sets is held: `epsilon` for what the server and the public see, `epsilon_partner` for
    another partner, `epsilon_broken` for whoever breaks secure aggregation. In local mode the three are one number.

    Formal guarantees:
        - no reserve that returns, after whatever calls, crashes, restarts or other processes, leaves a ledger whose
          epsilon (PLD) at `policy.delta` is over `policy.epsilon`, in mode "local" (up to rounding, 1e-9 of it);
        - a reservation counts from the moment it is made, committed or not;
        - in mode "none" nothing is refused and everything is written down, as epsilon infinite.

    Args:
        ledger: the partner's own.
        policy: the partner's own limits; `mode`, `epsilon` and `delta` are read here.

    Raises:
        ConfigError: for a delta that no accountant can hold to.
    """

    def __init__(self, ledger: Ledger, policy: PrivacyConfig) -> None:
        if policy.mode != "none":
            epsilon((), policy.delta)  # refuses a delta out of range now, not in the first round
        self._ledger = ledger
        self._policy = policy

    def reserve(self, event: DpEvent) -> int:
        """Charges an event before its data is touched; returns the reservation to commit.

        Raises:
            BudgetExhausted: where the event would exceed the budget; nothing is charged then.
            LedgerError: where the ledger is damaged, cannot be written or stays locked; nothing may be released then.
        """
        if self._policy.mode == "none":
            return self._ledger.reserve(event)
        with self._ledger.exclusive():
            spent = self._ledger.events()
            exceeded = self._exceeded(spent, event)
            if exceeded:
                raise BudgetExhausted(self._refusal(spent, event, exceeded))
            return self._ledger.reserve(event)

    def commit(self, reservation: int) -> None:
        """Notes that the release of a reservation was made."""
        self._ledger.commit(reservation)

    def spent(self) -> PrivacyStatement:
        """Returns what all reservations together cost this partner's users."""
        return privacy_statement(self._ledger.events(), self._policy.delta)

    def affordable_rounds(self, event: DpEvent) -> int | None:
        """Returns how many more rounds like `event` fit, or None where no budget applies (mode "none")."""
        if self._policy.mode == "none":
            return None
        if event.mechanism == "none":
            return 0
        spent = self._ledger.events()
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
        if all(_parameters(past) == _parameters(event) for past in spent):
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
            f"{event.purpose} for round {event.round} refused before any data was touched; {len(spent)} releases have"
            f" spent epsilon {before:.6g}, this one would make it {after:.6g}, and the budget is privacy.{key} ="
            f" {getattr(self._policy, key):g} at delta {delta:g}; {self._mend(spent, event)}"
        )

    @staticmethod
    def _mend(spent: tuple[DpEvent, ...], event: DpEvent) -> str:
        if event.mechanism == "none":
            return 'train with noise, or set privacy.mode = "none" in this partner\'s own configuration'
        if any(past.mechanism == "none" for past in spent):
            return (
                "the ledger holds a release without noise, which no budget can hold; use other users and a new ledger"
            )
        return (
            "ask for fewer steps or more noise, or raise privacy.epsilon in this partner's own configuration"
            " (no server can)"
        )


def _parameters(event: DpEvent) -> tuple[float, float]:
    return event.sampling_rate, event.noise_multiplier
