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

from common.privacy.events import DpEvent

View = Literal["server", "partner", "broken"]
VIEWS: tuple[View, ...] = get_args(View)


def noise_seen(event: DpEvent, view: View) -> float:
    """Returns the noise multiplier that is left of a release for one adversary; 0 = none."""
    if event.mode != "distributed" or view == "server":
        return event.noise_multiplier
    left = (event.shares - 1) / event.shares if view == "partner" else 1 / event.shares
    noise: float = event.noise_multiplier * left**0.5
    return noise


def as_seen(events: Iterable[DpEvent], view: View) -> tuple[DpEvent, ...]:
    """Returns the releases with the noise that one adversary sees."""
    return tuple(replace(event, noise_multiplier=noise_seen(event, view)) for event in events)
