"""Real numbers <-> words of the ring Z_2^32, by stochastic rounding onto a grid.

A coordinate x in [-clip, clip] becomes floor(x * scale + u) with u uniform in [0, 1): unbiased, at most one grid step
off. A sum of n such words cannot wrap (`bits_for`), so decoding a sum is exact.

Legend: D coordinates.
Source: Bonawitz et al. 2019, "Federated Learning with Autotuned Communication-Efficient Secure Aggregation", section 3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.secagg.masking import Masker, MaskKeys
from common.secagg.parameters import HEADROOM_BITS, RING

PIECE_WORDS = 2**15  # encoded, masked and sent piece by piece: memory does not hold a second copy


@dataclass(frozen=True)
class Coding:
    """The grid of a round.

    Attributes:
        bits: of one contribution's coordinate, sign included.
        clip: bound on a coordinate; 0 = the values are whole numbers already, below 2^(bits - 1).

    Raises:
        ProtocolError: for bits or a clip that no grid has.
    """

    bits: int
    clip: float

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 30:
            raise ProtocolError(f"bits = {self.bits}: must be from 2 to 30")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise ProtocolError(f"update_bound = {self.clip}: must be finite and at least 0")

    @property
    def limit(self) -> int:
        """The bound on one coded coordinate: 2^(bits - 1)."""
        limit: int = 2 ** (self.bits - 1)
        return limit

    @property
    def scale(self) -> float:
        """Grid steps in one unit."""
        return (self.limit - 1) / self.clip if self.clip else 1.0

    def require_room(self, num_participants: int) -> None:
        """Raises `ProtocolError` when a sum of so many contributions could wrap."""
        room = RING >> (1 + HEADROOM_BITS)
        if num_participants * self.limit >= room:
            raise ProtocolError(
                f"bits = {self.bits} for {num_participants} participants: their sum could wrap; use fewer bits"
            )


def require_codable(value_D: NDArray[Any], weight: float, coding: Coding) -> None:
    """Refuses what the grid cannot hold; only for runs without differential privacy, since the answer tells of data.

    Raises:
        ProtocolError: for values that are not finite, or over the bound once weighted.
    """
    for piece_D in _pieces(value_D):
        largest = float(np.abs(piece_D.astype(np.float64)).max(initial=0.0)) * (weight if coding.clip else 1.0)
        if not math.isfinite(largest):
            raise ProtocolError("an update with values that are not finite; lower round.learning_rate")
        if largest > (coding.clip or coding.limit - 1):
            bound = f"aggregation.update_bound = {coding.clip:g}" if coding.clip else f"2^{coding.bits - 1} - 1"
            raise ProtocolError(f"an update with values over {bound}; raise the bound or lower round.learning_rate")


def encode(value_D: NDArray[Any], weight: float, coding: Coding, rounding_key: bytes) -> Iterator[NDArray[np.uint32]]:
    """Returns the coded words of weight x value, piece by piece.

    Args:
        value_D: any float or integer type; values over the clip are clamped to it and NaN counts 0, which under
            differential privacy is post-processing.
        weight: public, in (0, 1].
        coding: the grid; with a clip of 0 the values must be integers, the weight is left out and words are taken
            modulo 2^32.
        rounding_key: 32 bytes; the keystream of it decides the rounding, so that equal keys round alike.
    """
    rounding = Masker([MaskKeys(rounding_key, rounding_key)])
    for piece_D in _pieces(value_D):
        if coding.clip:
            draw_D = np.zeros(len(piece_D), np.uint32)
            rounding.apply(draw_D)
            yield _rounded(piece_D, weight, coding, draw_D)
        else:
            yield piece_D.astype(np.int64).astype(np.uint32)


def _rounded(piece_D: NDArray[Any], weight: float, coding: Coding, draw_D: NDArray[np.uint32]) -> NDArray[np.uint32]:
    value_D = piece_D.astype(np.float64)
    value_D *= weight
    np.clip(value_D, -coding.clip, coding.clip, out=value_D)
    value_D[np.isnan(value_D)] = 0.0
    value_D *= coding.scale
    value_D += draw_D * 2.0**-32
    np.floor(value_D, out=value_D)
    return value_D.astype(np.int32).view(np.uint32)


def decode(sum_D: NDArray[np.uint32], num_contributions: int, coding: Coding) -> NDArray[np.float64]:
    """Returns the sum as real numbers, float64 [D].

    Raises:
        ProtocolError: with a clip, for a coordinate over `num_contributions` times the bound: then one of them was
            malformed.
    """
    signed_D = sum_D.view(np.int32)
    if not coding.clip:  # whole numbers wrap: under differential privacy nothing that depends on data is refused
        return signed_D.astype(np.float64)
    bound = num_contributions * coding.limit
    if int(signed_D.max(initial=0)) > bound or int(signed_D.min(initial=0)) < -bound:
        raise ProtocolError(
            f"a sum of {num_contributions} contributions with coordinates over {bound}: one of them was malformed"
        )
    value_D: NDArray[np.float64] = signed_D / coding.scale
    return value_D


def _pieces(value_D: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (value_D[start : start + PIECE_WORDS] for start in range(0, len(value_D), PIECE_WORDS))
