"""What is said beside every epsilon: unit, adjacency, delta, a second accountant, and against whom it holds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from common.privacy.accountants import prv_error
from common.privacy.accounting import AGREEMENT, MAX_EPSILON, compose, epsilon, rounded_up, unit_of
from common.privacy.events import DpEvent, Unit
from common.privacy.labels import NOT_PROTECTED, closed_epsilon, flips_of
from common.privacy.labels import user_epsilon as labels_of_a_user
from common.privacy.mixture import epsilon_per_user
from common.privacy.views import VIEWS, as_seen

EVERYONE = ("the server", "other partners", "the public", "a broken aggregation")
SERVER_AND_PUBLIC = ("the server", "the public")  # where partners share the noise; the others are said beside it

# A row as it stands in the training table, features and all: not a line of the log, which lies in other rows as well.
_SPELT = {"user": "user", "impression": "training row", "label": "label"}


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What every printed epsilon carries with it (promise 4: the number is the number).

    Attributes:
        epsilon: upper bound by the first accountant; infinity = no guarantee.
        delta: probability with which the bound may fail.
        unit: whose data is protected by `epsilon`.
        user_epsilon: upper bound (PLD) for a whole user, who has `impressions` training rows at most; `epsilon` itself
            where the unit is the user.
        impressions: training rows of one user, at most; 1 where the unit is the user.
        adjacency: which data sets count as neighbours.
        accountant: name of the first accountant.
        second_accountant: name of the second.
        second_epsilon: its upper bound, `second_epsilon_error` included.
        second_epsilon_error: numerical error that the second accountant states for itself.
        protects_against: who learns no more than epsilon; empty where epsilon is infinite.
        views: epsilon against the server (and the public), another partner, and whoever breaks secure aggregation.
        fixed_seed: some noise came from a known seed, so the guarantee holds only against those who do not know it.
        num_events: releases that count.
        steps: noised steps in them; of labels, rounds that were made of the flipped ones.
        not_protected: what of a row the unit leaves out; empty where the unit is a whole row or a user.
    """

    epsilon: float
    delta: float
    unit: str
    user_epsilon: float
    impressions: int
    adjacency: str
    accountant: str
    second_accountant: str
    second_epsilon: float
    second_epsilon_error: float
    protects_against: tuple[str, ...]
    views: dict[str, float]
    fixed_seed: bool
    num_events: int
    steps: int
    not_protected: tuple[str, ...] = ()

    @property
    def accountants_agree(self) -> bool:
        """Whether both accountants say the same, up to `AGREEMENT` and the second's own error."""
        if self.epsilon == self.second_epsilon:
            return True
        return abs(self.epsilon - self.second_epsilon) <= AGREEMENT + self.second_epsilon_error

    def sentence(self) -> str:
        """Returns the statement in one line of English; epsilons are rounded up, never down."""
        scope = f"at delta {self.delta:g} for one {_SPELT[self.unit]} added or removed"
        if not self.num_events:
            return f"epsilon 0.00 {scope}: nothing has been released"
        if math.isinf(self.epsilon):
            return (
                f"no privacy guarantee: epsilon is infinite {scope}, against anyone who sees the updates or the model"
            )
        second = f"{self.second_accountant} {rounded_up(self.second_epsilon)}"
        if not self.accountants_agree:
            second += ", WHICH DISAGREES: rely on the larger"
        if self.unit == "label":
            return self._of_labels(second)
        text = f"epsilon {rounded_up(self.epsilon)} {scope} ({self.accountant}; {second})"
        text += f", against anyone who sees the updates or the model ({', '.join(self.protects_against)})"
        if self.protects_against == SERVER_AND_PUBLIC:
            text += (
                f"; epsilon {rounded_up(self.views['partner'])} against another partner, and"
                f" {rounded_up(self.views['broken'])} should secure aggregation be broken"
            )
        if self.unit == "impression":
            rows = f"one user with up to {self.impressions} training rows"
            against = " and ".join(self.protects_against)
            text += (
                f"; for {rows} NO FINITE BOUND HOLDS"
                if math.isinf(self.user_epsilon)
                else f"; epsilon {rounded_up(self.user_epsilon)} for {rows}, against {against}"
            )
        return text + self._of_the_seed()

    def _of_labels(self, second: str) -> str:
        """Returns the statement where click labels alone are protected, which says so before any figure."""
        all_labels = (
            "NO FINITE BOUND HOLDS" if math.isinf(self.user_epsilon) else f"epsilon {rounded_up(self.user_epsilon)}"
        )
        return (
            f"label-private, NOT user-private: epsilon {rounded_up(self.epsilon)} at delta {self.delta:g} for the click"
            f" label of one row replaced by the other ({self.accountant}; {second}), against anyone who sees the"
            f" updates or the model ({', '.join(self.protects_against)}); for all labels of one user with up to"
            f" {self.impressions} rows {all_labels}; NOT protected: {'; '.join(self.not_protected)}"
            f"{self._of_the_seed()}"
        )

    def _of_the_seed(self) -> str:
        if not self.fixed_seed:
            return ""
        return "; BUT some noise came from a fixed seed: whoever knows it can remove that noise"


def privacy_statement(events: Iterable[DpEvent], delta: float) -> PrivacyStatement:
    """Returns what one partner's releases cost its users, by two accountants.

    In local mode each partner adds the full noise itself, so the same epsilon holds against the server, other
    partners, the public, and whoever breaks the aggregation. In distributed mode `views` says what each learns.

    Raises:
        ConfigError: for a delta out of range, and releases of two units.
    """
    kept = tuple(events)
    first = epsilon(kept, delta, "pld")
    shared = any(event.mode == "distributed" for event in kept)
    noised = [event for event in kept if event.mechanism != "none"]
    unit = unit_of(noised) or "user"
    second, error = _second_opinion(kept, delta, unit)
    return PrivacyStatement(
        epsilon=first,
        delta=delta,
        unit=unit,
        user_epsilon=_of_a_user(kept, delta, unit, first),
        impressions=max((event.impressions for event in noised), default=1),
        adjacency="replace_label" if unit == "label" else "add_remove",
        accountant="PLD",
        second_accountant="closed form" if unit == "label" else "PRV",
        second_epsilon=second,
        second_epsilon_error=error,
        protects_against=() if math.isinf(first) else SERVER_AND_PUBLIC if shared else EVERYONE,
        views={view: epsilon(as_seen(kept, view), delta) if shared else first for view in VIEWS},
        fixed_seed=any(event.fixed_seed for event in kept),
        num_events=len(kept),
        steps=sum(event.steps for event in kept),
        not_protected=NOT_PROTECTED if unit == "label" else (),
    )


def _second_opinion(events: tuple[DpEvent, ...], delta: float, unit: Unit) -> tuple[float, float]:
    """Returns the epsilon of the second accountant, and the error that it states for itself."""
    if unit == "label":
        unprotected = any(event.mechanism == "none" for event in events)
        return math.inf if unprotected else closed_epsilon(flips_of(events), delta), 0.0
    composition = compose(event for event in events if event.mechanism != "none")
    return epsilon(events, delta, "prv"), prv_error(composition, delta) if composition else 0.0


def _of_a_user(events: tuple[DpEvent, ...], delta: float, unit: Unit, first: float) -> float:
    if unit == "user" or math.isinf(first):
        return first
    if unit == "impression":
        return epsilon_per_user(events, delta)
    found = labels_of_a_user(events)
    return found if found <= MAX_EPSILON else math.inf
