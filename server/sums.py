"""What a round came to, and one mean from it: of one sum, or robustly from several groups' sums.

Legend: D parameters, G groups.
Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning", section 3 (coordinate-wise median); groups under
secure aggregation: Velicheti et al. 2021, "Secure Byzantine-Robust Distributed Learning via Clustering".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import TooFewPartners

_LEAST_GROUPS = 3  # of two means, one can drag the median wherever it likes


@dataclass(frozen=True)
class GroupSum:
    """One group's sum: float64 [D], over the contributions of `partners`, whose public weights sum to `weight`."""

    sum_D: NDArray[np.float64]
    partners: tuple[str, ...]
    weight: float

    @property
    def count(self) -> int:
        """Contributions in the sum."""
        return len(self.partners)

    @property
    def mean_D(self) -> NDArray[np.float64]:
        """The weighted mean."""
        mean_D: NDArray[np.float64] = self.sum_D / self.weight
        return mean_D


@dataclass
class Collected:
    """What became of a round.

    Attributes:
        sums: one per group that came through.
        stages: how many participants were left after each stage.
        failures: partner -> stage and reason.
        exhausted: partners whose budget refused.
        anchors: partner -> what it gave of its ledger.
        round_trips: exchanges that this round took, those of its preparation among them unless they rode along.
        errors: why a group, or the whole round, has no sum.
    """

    sums: list[GroupSum] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    exhausted: set[str] = field(default_factory=set)
    anchors: dict[str, str] = field(default_factory=dict)
    round_trips: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def contributed(self) -> int:
        """Contributions in all sums."""
        return sum(group.count for group in self.sums)


def total_of(collected: Collected, min_partners: int) -> NDArray[np.float64]:
    """Returns the sum of a round of one group, float64 [D]; raises `TooFewPartners` like `mean_of`."""
    _require(collected, min_partners)
    return collected.sums[0].sum_D


def mean_of(collected: Collected, min_partners: int, num_groups: int) -> NDArray[np.float64]:
    """Returns the mean contribution of a round, float64 [D].

    Of one group: the weighted mean. Of several: each group's mean, clipped in L2 to the median of their norms, then the
    median of every coordinate.

    Raises:
        TooFewPartners: when fewer than `min_partners` contributed, or fewer groups are left than three or than a
            majority: with every group that is lost, the median holds against fewer attackers.
    """
    _require(collected, min_partners)
    if num_groups == 1:
        return collected.sums[0].mean_D
    least = max(_LEAST_GROUPS, num_groups // 2 + 1)
    if len(collected.sums) < least:
        raise TooFewPartners(
            f"{len(collected.sums)} of {num_groups} groups came through, {least} are needed for a median:"
            f" {'; '.join(collected.errors)}"
        )
    return robust_mean([group.mean_D for group in collected.sums])


def _require(collected: Collected, min_partners: int) -> None:
    if collected.contributed < min_partners or not collected.sums:
        reasons = "; ".join(collected.errors) or "no sum came out"
        raise TooFewPartners(f"{collected.contributed} of at least {min_partners} partners contributed: {reasons}")


def robust_mean(means: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns the coordinate-wise median of group means, each clipped to the median of their norms."""
    means_GD = np.stack(means)
    norms_G = np.linalg.norm(means_GD, axis=1)
    bound = float(np.median(norms_G))
    factors_G = np.divide(bound, norms_G, out=np.ones_like(norms_G), where=norms_G > bound)
    median_D: NDArray[np.float64] = np.median(means_GD * factors_G[:, None], axis=0)
    return median_D
