"""The two kinds of thing that a partner contributes to a round, and the exact sum of either.

`LocalDelta` is an update (after - before) of several local steps; the sum is divided by the public weights' sum.
`NoisedStep` is one step's clipped, gridded and noised gradient sum, integers already; it is divided by the
declared users (the sampling rate and the grid, public constants, are for the caller), and points uphill, so the
optimiser takes the minus sign.

Sums are taken in integers: a float sum would depend on the order in which replies arrive, an integer sum does not, so
a run is the same to the bit however its clients are scheduled, and the same as under secure aggregation.

Legend: D parameters.
"""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError, TooFewPartners

# Fixed point: 2^16 partners of |weight x delta| < 2^15 with 32 fractional bits fit in 63 bits, as do 2^16 integer steps
# below 2^47.
_FRACTION_BITS = 32
_LIMIT = 2**47
_MAX_CONTRIBUTIONS = 2**16
_MAX_DECLARED = 2**53  # a message carries it as a float64, which is exact up to here


@dataclass(frozen=True)
class LocalDelta:
    """After - before of a partner's local steps.

    Attributes:
        delta_D: float32, finite.
        weight: public, in (0, 1]: the partner's share as the roster states it, never a private count.
    """

    delta_D: NDArray[np.float32]
    weight: float

    def __post_init__(self) -> None:
        if self.delta_D.dtype != np.float32 or self.delta_D.ndim != 1:
            raise ProtocolError(f"an update of {self.delta_D.dtype} {self.delta_D.shape}, expected a float32 vector")
        if not 0 < self.weight <= 1:
            raise ProtocolError(f"weight = {self.weight}: must be over 0 and at most 1")


@dataclass(frozen=True)
class NoisedStep:
    """One step's integer sum of clipped per-user gradients with the partner's share of the noise.

    Attributes:
        sum_D: int64, on the grid that the round's plan states.
        declared_units: users (or impressions) that the partner declares; public.
    """

    sum_D: NDArray[np.int64]
    declared_units: int

    def __post_init__(self) -> None:
        if self.sum_D.dtype != np.int64 or self.sum_D.ndim != 1:
            raise ProtocolError(f"a step of {self.sum_D.dtype} {self.sum_D.shape}, expected an int64 vector")
        if not 1 <= self.declared_units <= _MAX_DECLARED:
            raise ProtocolError(f"declared_units = {self.declared_units}: must be from 1 to {_MAX_DECLARED}")


Contribution = LocalDelta | NoisedStep


@dataclass
class RunningSum:
    """The sum of the contributions so far; none of them is kept."""

    length: int
    kind: type[LocalDelta] | type[NoisedStep]
    count: int = field(init=False, default=0)
    _weight: Fraction = field(init=False, repr=False, default=Fraction(0))  # exact, so that its order does not matter
    _sum_D: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum_D = np.zeros(self.length, np.int64)

    @property
    def weight(self) -> float:
        """The sum of the public weights, or of the declared units."""
        return float(self._weight)

    def add(self, contribution: Contribution) -> None:
        """Adds one contribution.

        Raises:
            ProtocolError: for another kind or length, values that are not finite or out of range, or too many; the
                sum is then unchanged. Within the range no sum can wrap.
        """
        if type(contribution) is not self.kind:
            raise ProtocolError(f"a {type(contribution).__name__} in a round of {self.kind.__name__}")
        if self.count >= _MAX_CONTRIBUTIONS:
            raise ProtocolError(f"more than {_MAX_CONTRIBUTIONS} contributions")
        value_D = contribution.delta_D if isinstance(contribution, LocalDelta) else contribution.sum_D
        if len(value_D) != self.length:
            raise ProtocolError(f"a contribution of {len(value_D)} parameters, expected {self.length}")
        if isinstance(contribution, LocalDelta):
            self._sum_D += _fixed_point(contribution)
            self._weight += Fraction(float(contribution.weight))
        else:
            self._sum_D += _in_range(contribution)
            self._weight += contribution.declared_units
        self.count += 1

    def total(self, min_partners: int) -> NDArray[np.float64]:
        """Returns the sum, float64 [D].

        Raises:
            TooFewPartners: when fewer than `min_partners` contributed.
        """
        if self.count < min_partners:
            raise TooFewPartners(
                f"{self.count} of at least {min_partners} partners contributed: nothing is aggregated;"
                " wait for more partners or lower aggregation.min_partners"
            )
        scale = 2.0**-_FRACTION_BITS if self.kind is LocalDelta else 1.0
        return (self._sum_D * scale).astype(np.float64)

    def mean(self, min_partners: int) -> NDArray[np.float64]:
        """Returns the sum divided by the public weights, float64 [D]; raises `TooFewPartners` like `total`."""
        mean_D: NDArray[np.float64] = self.total(min_partners) / self.weight
        return mean_D


def _fixed_point(contribution: LocalDelta) -> NDArray[np.int64]:
    value_D = contribution.delta_D.astype(np.float64) * contribution.weight
    if not np.isfinite(value_D).all():
        raise ProtocolError("a contribution holds values that are not finite")
    fixed_D = np.rint(value_D * 2.0**_FRACTION_BITS)
    if np.abs(fixed_D).max(initial=0.0) >= _LIMIT:
        raise ProtocolError(f"a contribution holds values of {_LIMIT * 2.0**-_FRACTION_BITS:g} or more")
    return fixed_D.astype(np.int64)


def _in_range(contribution: NoisedStep) -> NDArray[np.int64]:
    step_D = contribution.sum_D
    if step_D.max(initial=0) >= _LIMIT or step_D.min(initial=0) <= -_LIMIT:  # not by abs: that of -2^63 is negative
        raise ProtocolError(f"a step holds values of {_LIMIT} or more")
    return step_D
