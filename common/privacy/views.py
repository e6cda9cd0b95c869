"""Who sees how much noise: one history of releases as each adversary sees it.

| view | local | distributed, noise multiplier sigma over `shares` parts |
|---|---|---|
| server | sigma | sigma: the secure sum, with the colluders' parts known and left out |
| partner | sigma | sigma sqrt((shares - 1) / shares): it subtracts its own part |
| broken | sigma | sigma / sqrt(shares): secure aggregation fails, and one part is all that there is |

The public sees what the server sees, or less. Colluders with the server are in `server`: the parts are sized for them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, get_args

from common.config import PrivacyConfig
from common.privacy.events import DpEvent

View = Literal["server", "partner", "broken"]
VIEWS: tuple[View, ...] = get_args(View)


def bounds_of(policy: PrivacyConfig) -> dict[View, float]:
    """Returns the bounds that a policy sets, by who learns; one that is not set holds nobody."""
    asked = policy.epsilon, policy.epsilon_partner, policy.epsilon_broken
    return {view: bound for view, bound in zip(VIEWS, asked, strict=True) if bound is not None}


def bounds_with_noise(policy: PrivacyConfig, shares: int) -> list[tuple[float, float]]:
    """Returns, for every bound that a policy sets, (epsilon, part of the noise's deviation that is left for it)."""
    return [(bound, noise_left(1.0, shares, view)) for view, bound in bounds_of(policy).items()]


def noise_left(noise_multiplier: float, shares: int, view: View) -> float:
    """Returns what one adversary sees of noise that is made of so many equal parts; all of it where there is one."""
    if shares == 1 or view == "server":
        return noise_multiplier
    left = (shares - 1) / shares if view == "partner" else 1 / shares
    noise: float = noise_multiplier * left**0.5
    return noise


def noise_seen(event: DpEvent, view: View) -> float:
    """Returns the noise multiplier that is left of a release for one adversary."""
    return noise_left(event.noise_multiplier, event.shares, view)


def as_seen(events: Iterable[DpEvent], view: View) -> tuple[DpEvent, ...]:
    """Returns the releases with the noise that one adversary sees."""
    return tuple(_seen(event, noise_seen(event, view)) for event in events)


def _seen(event: DpEvent, noise: float) -> DpEvent:
    """Returns the event itself where nothing changes: a copy is checked anew, and ledgers are long."""
    return event if noise == event.noise_multiplier else replace(event, noise_multiplier=noise)
