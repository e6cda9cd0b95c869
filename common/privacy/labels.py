"""What randomised response on click labels costs: epsilon of one label, and of all labels of a user.

Each label is flipped with a probability f, once, by a keyed function; whatever is made of the flipped labels
afterwards, over however many rounds and runs, is post-processing of them. So releases with one key cost what one of
them does, and labels of other rows cost nothing more (parallel composition: a label is a row's, and rows are disjoint).
Only another key draws a label anew, and that composes.

Two accountants: privacy loss distributions (dp-accounting), and the closed form. One key is pure: epsilon
log((1 - f) / f) at delta 0.

Source: Warner 1965, "Randomized Response"; Kasiviswanathan et al. 2011, "What Can We Learn Privately?", section 2
(local randomisers); Kairouz, Oh, Viswanath 2015, "The Composition Theorem for Differential Privacy", theorem 3.3 (the
closed form for several keys).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from dp_accounting.pld import privacy_loss_distribution

from common.privacy.events import DpEvent

NOT_PROTECTED = (
    "who was shown what, and when",
    "the text and the context of a row",
    "that a row or a user is in the log",
)

Flips = tuple[float, ...]  # one probability per key, ascending

_LOSS_BINS = 2**14  # of one key's privacy loss, at most
_FINEST = 1e-4
_MOST_LOSSES = 2**16  # distinct sums of losses that the closed form lists
_HALVINGS = 100


def flips_of(events: Iterable[DpEvent]) -> Flips:
    """Returns the flip probability of each key that labels were flipped with; however often one was used."""
    return tuple(sorted(probability for _, probability in {(_key(event), event.flip_probability) for event in events}))


def pure_epsilon(flips: Flips) -> float:
    """Returns the epsilon of one label at delta 0."""
    return math.fsum(_loss(flip) for flip in flips)


def label_epsilon(flips: Flips, delta: float) -> float:
    """Returns the epsilon (PLD) of one label, replace-one: never less than the truth, nor more than at delta 0."""
    if not flips:
        return 0.0
    return min(pure_epsilon(flips), _pld_epsilon(flips, delta))


@lru_cache(maxsize=1024)
def _pld_epsilon(flips: Flips, delta: float) -> float:
    interval = _FINEST * 2.0 ** max(0, math.ceil(math.log2(max(map(_loss, flips)) / _LOSS_BINS / _FINEST)))
    total: Any = None
    for flip in flips:
        # Their parameter: with that probability the answer is one of both labels at random.
        part = privacy_loss_distribution.from_randomized_response(2 * flip, 2, value_discretization_interval=interval)
        total = part if total is None else total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=1024)
def closed_epsilon(flips: Flips, delta: float) -> float:
    """Returns the epsilon of one label from the losses of all keys, listed; the second opinion.

    A key's privacy loss is +a with probability 1 - f and -a with probability f, a = log((1 - f) / f). Where too many
    different keys make too many sums, the answer is the one at delta 0.
    """
    mass_of = {0.0: 1.0}
    for flip in flips:
        grown: dict[float, float] = {}
        for loss, mass in mass_of.items():
            for more, share in ((_loss(flip), 1 - flip), (-_loss(flip), flip)):
                key = round(loss + more, 9)
                grown[key] = grown.get(key, 0.0) + mass * share
        mass_of = grown
        if len(mass_of) > _MOST_LOSSES:
            return pure_epsilon(flips)
    low, high = 0.0, pure_epsilon(flips)
    if _delta_at(mass_of, low) <= delta:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _delta_at(mass_of, middle) <= delta else (middle, high)
    return high


def user_epsilon(events: Iterable[DpEvent]) -> float:
    """Returns the epsilon, at delta 0, of all labels of one user together (group privacy).

    So many rows of a user as an event says are in its labels, and each generation may hold as many others.
    """
    most: dict[tuple[str, float], tuple[int, int]] = {}
    for event in events:
        key = _key(event), event.flip_probability
        generations, rows = most.get(key, (0, 0))
        most[key] = max(generations, int(event.labels.partition(":")[2])), max(rows, event.impressions)
    return math.fsum(generations * rows * _loss(flip) for (_, flip), (generations, rows) in most.items())


def _delta_at(mass_of: dict[float, float], epsilon: float) -> float:
    """Returns the least delta at an epsilon: the hockey-stick divergence of the listed losses."""
    return math.fsum(mass * -math.expm1(epsilon - loss) for loss, mass in mass_of.items() if loss > epsilon)


def _key(event: DpEvent) -> str:
    return event.labels.partition(":")[0]


def _loss(flip: float) -> float:
    return math.log1p(-flip) - math.log(flip)
