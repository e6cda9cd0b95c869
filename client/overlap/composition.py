"""What an epsilon per partner means for a person who is a user of two of them.

**Local mode.** The two partners' noises are independent, so that what each releases of the person composes: epsilons
and deltas add up (basic composition, also where rounds alternate; Dwork, Roth 2014, theorem 3.16; Lyu 2022).

**Distributed mode.** The person is two units of one sum. Removing one and then the other gives epsilon_1 + epsilon_2,
and delta_1 + exp(epsilon_1) delta_2 or the other way about, whichever is less (group privacy; Dwork, Roth 2014, theorem
2.2, with delta carried along). Where secure aggregation is broken, each part is a release of its own with noise of its
own, and they add up as in local mode.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from common.config import STRICT, PrivacyConfig
from common.privacy.views import VIEWS, View, bounds_of

_Epsilon = Annotated[float, Field(gt=0, lt=1000)]


@checked_dataclass(frozen=True, config=STRICT)
class Stated:
    """What a partner's policy bounds, as it tells the other one; nothing of its data is in it."""

    mode: Literal["local", "distributed", "none"]
    unit: Literal["user", "impression"]
    delta: Annotated[float, Field(gt=0, lt=0.01)]
    period_days: Annotated[int, Field(ge=1)] | None = None  # for every span of so many days; None = for ever
    server: _Epsilon | None = None
    partner: _Epsilon | None = None
    broken: _Epsilon | None = None


@dataclass(frozen=True)
class Bound:
    """An epsilon at a delta; infinite at delta 1 where nothing holds."""

    epsilon: float
    delta: float


NOTHING = Bound(math.inf, 1.0)


def stated(policy: PrivacyConfig) -> Stated:
    """Returns what a policy bounds, by who learns; in local mode all learn the same, and the least bound holds."""
    if policy.mode == "label":  # labels are bounded and users are not: to the other partner, as without privacy
        return Stated("none", policy.unit, policy.delta, policy.period_days)
    bounds = bounds_of(policy) if policy.mode != "none" else {}
    if policy.mode == "local":
        bounds = dict.fromkeys(VIEWS, min(bounds.values()))
    bounded = (bounds.get(view) for view in VIEWS)
    return Stated(policy.mode, policy.unit, policy.delta, policy.period_days, *bounded)


def span_of(first: Stated, second: Stated) -> int | None:
    """Returns the days of every span for which the sum holds: the shorter of two periods; None = for ever."""
    return min((days for days in (first.period_days, second.period_days) if days is not None), default=None)


def for_a_user_of_both(first: Stated, second: Stated) -> dict[View, Bound]:
    """Returns, by who learns, what two policies leave of the privacy of one who is a user of both partners.

    Formal guarantees:
        - an upper bound on everything that the two ledgers will hold in any span of `span_of` days, as long as both
          budgets are kept;
        - what a policy does not bound, the sum does not bound; without noise, or where a unit is not the user, nothing.
    """
    return {view: _bound(view, first, second) for view in VIEWS}


def _bound(view: View, first: Stated, second: Stated) -> Bound:
    one, other = getattr(first, view), getattr(second, view)
    if one is None or other is None or (first.unit, second.unit) != ("user", "user"):
        return NOTHING
    deltas = first.delta, second.delta
    one_sum = "distributed" in (first.mode, second.mode) and view != "broken"
    delta = _delta_of_a_pair((one, other), deltas) if one_sum else sum(deltas)
    return Bound(one + other, delta) if delta < 1 else NOTHING


def _delta_of_a_pair(epsilons: tuple[float, float], deltas: tuple[float, float]) -> float:
    """Returns the delta of two units of one release, removed in the better order."""
    (one, other), (first, second) = epsilons, deltas
    return min(_grown(second, one) + first, _grown(first, other) + second)


def _grown(delta: float, epsilon: float) -> float:
    return math.exp(min(epsilon, 700.0)) * delta
