"""Epsilon from facts: three accountants, one statement.

Epsilon is derived from a sequence of events at a delta each time it is asked for, and never stored. Events of equal
sampling rate and noise are one group with added steps, so that thousands of rounds cost as many compositions as there
are distinct parameters, and the order of events cannot matter.

- "pld": privacy loss distributions (dp-accounting), rounded pessimistically: never less than the truth.
- "prv": privacy loss random variables (Opacus), the second opinion: an upper bound that includes its own error.
- "rdp": Rényi differential privacy (dp-accounting): valid, but usually 17 to 57 % above the other two.

Opacus' fourth accountant, "gdp", is not offered: it is a central-limit approximation that *understates* epsilon, by up
to 2.8 times where we measured it, and a printed epsilon must never be below the truth.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from common.errors import ConfigError
from common.privacy.accountants import Composition, Group, pld_epsilon, prv_epsilon, prv_error, rdp_epsilon
from common.privacy.events import DpEvent
from common.privacy.views import VIEWS, as_seen

Accountant = Literal["pld", "prv", "rdp"]

MAX_EPSILON = 1000.0  # no privacy is left to measure: larger values are reported as infinity
MIN_DELTA = 1e-12  # below it floating-point error of the Fourier transforms would decide the answer
AGREEMENT = 0.05  # accountants further apart than this, beyond the second's own error, disagree

EVERYONE = ("the server", "other partners", "the public", "a broken aggregation")
SERVER_AND_PUBLIC = ("the server", "the public")  # where partners share the noise; the others are said beside it


def epsilon(events: Iterable[DpEvent], delta: float, accountant: Accountant = "pld") -> float:
    """Returns the epsilon of all events together, add-or-remove-one adjacency.

    Formal guarantees:
        - no events: 0; any event without noise: infinity;
        - the order of events does not matter;
        - "pld" and "prv" are upper bounds, so an added event can lower the answer only by discretisation error
          (under 0.2 %).

    Args:
        events: releases by one partner, in any order.
        delta: probability in [`MIN_DELTA`, 1) with which the bound may fail.
        accountant: "pld", "prv" or "rdp".

    Returns:
        epsilon >= 0; infinity where it exceeds `MAX_EPSILON` or where the accountant cannot bound it.

    Raises:
        ConfigError: for an unknown accountant or a delta out of range.

    Source: Koskela, Jälkö, Honkela 2020 and Doroshenko et al. 2022 (PLD, connect the dots); Gopi, Lee, Wutschitz 2021
    (PRV); Mironov, Talwar, Zhang 2019 (RDP).
    """
    kept = tuple(events)
    if any(event.mechanism == "none" for event in kept):
        _check(delta, accountant)
        return math.inf
    return composed_epsilon(compose(kept), delta, accountant)


def compose(events: Iterable[DpEvent]) -> Composition:
    """Returns the canonical composition of noised events: equal parameters merged, steps added, sorted."""
    return merge((event.sampling_rate, event.noise_multiplier, event.steps) for event in events)


def merge(groups: Iterable[Group]) -> Composition:
    """Returns groups in canonical form; groups without steps vanish."""
    steps_of: dict[tuple[float, float], int] = {}
    for sampling_rate, noise_multiplier, steps in groups:
        key = (sampling_rate, noise_multiplier)
        steps_of[key] = steps_of.get(key, 0) + steps
    return tuple((rate, noise, steps) for (rate, noise), steps in sorted(steps_of.items()) if steps)


@lru_cache(maxsize=4096)
def composed_epsilon(composition: Composition, delta: float, accountant: Accountant = "pld") -> float:
    """Returns the epsilon of a canonical composition, as `epsilon` does of events.

    Raises:
        ConfigError: for an unknown accountant or a delta out of range.
    """
    _check(delta, accountant)
    if not composition:
        return 0.0
    found = {"pld": pld_epsilon, "prv": prv_epsilon, "rdp": rdp_epsilon}[accountant](composition, delta)
    return found if found <= MAX_EPSILON else math.inf  # not-a-number fails the comparison too


def _check(delta: float, accountant: str) -> None:
    if accountant not in get_args(Accountant):
        known = ", ".join(get_args(Accountant))
        raise ConfigError(f"accountant = {accountant!r}: one of {known} (gdp understates epsilon and is not offered)")
    if not MIN_DELTA <= delta < 1:
        raise ConfigError(
            f"delta = {delta!r}: at least {MIN_DELTA:g} and below 1; well below 1 / number of users is usual"
        )


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What every printed epsilon carries with it (promise 4: the number is the number).

    Attributes:
        epsilon: upper bound by the first accountant; infinity = no guarantee.
        delta: probability with which the bound may fail.
        unit: whose data is protected.
        adjacency: which data sets count as neighbours.
        accountant: name of the first accountant.
        second_accountant: name of the second.
        second_epsilon: its upper bound, `second_epsilon_error` included.
        second_epsilon_error: numerical error that the second accountant states for itself.
        protects_against: who learns no more than epsilon; empty where epsilon is infinite.
        views: epsilon against the server (and the public), another partner, and whoever breaks secure aggregation.
        fixed_seed: some noise came from a known seed, so the guarantee holds only against those who do not know it.
        num_events: releases that count.
        steps: noised steps in them.
    """

    epsilon: float
    delta: float
    unit: str
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

    @property
    def accountants_agree(self) -> bool:
        """Whether both accountants say the same, up to `AGREEMENT` and the second's own error."""
        if self.epsilon == self.second_epsilon:
            return True
        return abs(self.epsilon - self.second_epsilon) <= AGREEMENT + self.second_epsilon_error

    def sentence(self) -> str:
        """Returns the statement in one line of English; epsilons are rounded up, never down."""
        scope = f"at delta {self.delta:g} for one {self.unit} added or removed"
        if not self.num_events:
            return f"epsilon 0.00 {scope}: nothing has been released"
        if math.isinf(self.epsilon):
            return (
                f"no privacy guarantee: epsilon is infinite {scope}, against anyone who sees the updates or the model"
            )
        second = f"{self.second_accountant} {rounded_up(self.second_epsilon)}"
        if not self.accountants_agree:
            second += ", WHICH DISAGREES: rely on the larger"
        text = f"epsilon {rounded_up(self.epsilon)} {scope} ({self.accountant}; {second})"
        text += f", against anyone who sees the updates or the model ({', '.join(self.protects_against)})"
        if self.protects_against == SERVER_AND_PUBLIC:
            text += (
                f"; epsilon {rounded_up(self.views['partner'])} against another partner, and"
                f" {rounded_up(self.views['broken'])} should secure aggregation be broken"
            )
        if self.fixed_seed:
            text += "; BUT some noise came from a fixed seed: whoever knows it can remove that noise"
        return text


def privacy_statement(events: Iterable[DpEvent], delta: float) -> PrivacyStatement:
    """Returns what one partner's releases cost its users, by two accountants.

    In local mode each partner adds the full noise itself, so the same epsilon holds against the server, other
    partners, the public, and whoever breaks the aggregation. In distributed mode `views` says what each learns.

    Raises:
        ConfigError: for a delta out of range.
    """
    kept = tuple(events)
    first = epsilon(kept, delta, "pld")
    shared = any(event.mode == "distributed" for event in kept)
    composition = compose(event for event in kept if event.mechanism != "none")
    return PrivacyStatement(
        epsilon=first,
        delta=delta,
        unit="user",
        adjacency="add_remove",
        accountant="PLD",
        second_accountant="PRV",
        second_epsilon=epsilon(kept, delta, "prv"),
        second_epsilon_error=prv_error(composition, delta) if composition else 0.0,
        protects_against=() if math.isinf(first) else SERVER_AND_PUBLIC if shared else EVERYONE,
        views={view: epsilon(as_seen(kept, view), delta) if shared else first for view in VIEWS},
        fixed_seed=any(event.fixed_seed for event in kept),
        num_events=len(kept),
        steps=sum(event.steps for event in kept),
    )


def rounded_up(value: float) -> str:
    """Returns `value` to two decimals, up; what lies within 1e-6 of a printed value is that value."""
    return f"{math.ceil(value * 100 - 1e-4) / 100:.2f}" if math.isfinite(value) else "gives no finite bound"
