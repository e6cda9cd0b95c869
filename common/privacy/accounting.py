"""Epsilon from facts: three accountants.

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
from functools import lru_cache
from typing import Literal, get_args

from common.errors import ConfigError
from common.privacy import labels
from common.privacy.accountants import Composition, Group, pld_epsilon, prv_epsilon, rdp_epsilon
from common.privacy.events import DpEvent, Unit

Accountant = Literal["pld", "prv", "rdp"]

MAX_EPSILON = 1000.0  # no privacy is left to measure: larger values are reported as infinity
MIN_DELTA = 1e-12  # below it floating-point error of the Fourier transforms would decide the answer
AGREEMENT = 0.05  # accountants further apart than this, beyond the second's own error, disagree


def epsilon(events: Iterable[DpEvent], delta: float, accountant: Accountant = "pld") -> float:
    """Returns the epsilon of all events together, add-or-remove-one adjacency; of labels, replace-one by PLD alone.

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
        ConfigError: for an unknown accountant, a delta out of range, and releases of two units.

    Source: Koskela, Jälkö, Honkela 2020 and Doroshenko et al. 2022 (PLD, connect the dots); Gopi, Lee, Wutschitz 2021
    (PRV); Mironov, Talwar, Zhang 2019 (RDP).
    """
    kept = tuple(events)
    if any(event.mechanism == "none" for event in kept):
        _check(delta, accountant)
        return math.inf
    if unit_of(kept) == "label":
        _check(delta, accountant)
        if accountant != "pld":
            raise ConfigError(f'accountant = "{accountant}": knows no randomised response; use "pld"')
        found = labels.label_epsilon(labels.flips_of(kept), delta)
        return found if found <= MAX_EPSILON else math.inf
    return composed_epsilon(compose(kept), delta, accountant)


def unit_of(events: Iterable[DpEvent]) -> Unit | None:
    """Returns the unit of all noised releases; None where there are none.

    Raises:
        ConfigError: where there are two: no single epsilon holds for both (`common.privacy.mixture` knows the user's).
    """
    units = sorted({event.unit for event in events if event.mechanism != "none"})
    if len(units) > 1:
        raise ConfigError(f"releases of units {' and '.join(units)} in one ledger have no epsilon in common")
    return units[0] if units else None


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


def rounded_up(value: float) -> str:
    """Returns `value` to two decimals, up; what lies within 1e-6 of a printed value is that value."""
    return f"{math.ceil(value * 100 - 1e-4) / 100:.2f}" if math.isfinite(value) else "gives no finite bound"
