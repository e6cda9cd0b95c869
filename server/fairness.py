"""Gaps between the groups of a sensitive column: how differently one model treats the people in them.

A gap is the largest difference between two groups that are shown. The largest of several differences is never below
zero, and grows with the number of groups and with noise; so beside its interval stands the gap that groups drawn by lot
stay under in 95 of 100 draws. A gap above that is one that chance does not explain.

Legend: N evaluated rows, U users, G shown groups, F figures, S draws.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bootstrap import Figures, Interval, WeightedFigures, user_codes, user_intervals
from common.config import ServerConfig
from server.slices import Int, Partition, Scored, hidden_groups

FIGURES = ("auc", "calibration_ratio", "mean_score", "click_rate")  # the last says what the others are to be read by
_LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Group:
    """One shown group: its figures under any weights of all U users."""

    name: str
    member_V: Int  # its users
    figures: WeightedFigures

    def __call__(self, weight_U: Floats) -> Floats:
        found: Figures = self.figures(weight_U[self.member_V])
        return np.array([getattr(found, name) for name in FIGURES])


def fairness(
    partitions: tuple[Partition, ...], scored: Scored, config: ServerConfig, seed: int
) -> dict[str, Any] | None:
    """Returns the gaps of every sensitive column, or None where there is no such column.

    Args:
        partitions: of the evaluated rows; those by a sensitive column are compared.
        scored: the evaluated rows.
        config: the least users and rows of a slice, and how many draws.
        seed: of the draws.
    """
    compared = [partition for partition in partitions if partition.sensitive]
    if not compared:
        return None
    return {
        "sensitive": [partition.sensitive for partition in compared],
        "least_users": config.least_slice_users,
        "least_rows": config.least_slice_rows,
        "columns": [_column(partition, scored, config, seed) for partition in compared],
    }


def _column(partition: Partition, scored: Scored, config: ServerConfig, seed: int) -> dict[str, Any]:
    """Returns the gaps between the groups of one column that are shown; whoever stated nothing is no group here."""
    hidden = hidden_groups(partition, scored.user_N, config)
    shown = [
        group
        for group, name in enumerate(partition.groups)
        if group not in hidden and name != partition.unstated and (partition.group_N == group).any()
    ]
    line: dict[str, Any] = {"column": partition.sensitive, "groups": [partition.groups[group] for group in shown]}
    if len(shown) < 2:
        return line | {"gaps": [], "why": "fewer than two groups are large enough to be shown"}
    return line | {"gaps": _gaps(partition, shown, scored, config, seed)}


def _gaps(partition: Partition, shown: list[int], scored: Scored, config: ServerConfig, seed: int) -> list[Any]:
    kept_N = np.isin(partition.group_N, shown)
    rows = Scored(scored.label_N[kept_N], scored.score_N[kept_N], scored.user_N[kept_N])
    user_N, users = user_codes(rows.user_N, len(rows.user_N))
    place_N = np.searchsorted(shown, partition.group_N[kept_N])
    group_U = np.zeros(users, np.int64)
    group_U[user_N] = place_N  # a person is in one group
    groups = [_group(partition.groups[group], place, rows, user_N, group_U) for place, group in enumerate(shown)]
    pairs = _extremes(np.array([group(np.ones(users)) for group in groups]))
    found = user_intervals(_Difference(groups, pairs), users, config.bootstrap_samples, seed)
    by_lot = _by_lot(rows, user_N, group_U, config.bootstrap_samples, seed)
    return [
        _gap(name, groups, pair, interval, limit)
        for name, pair, interval, limit in zip(FIGURES, pairs, found, by_lot, strict=True)
    ]


def _group(name: str, place: int, rows: Scored, user_N: Int, group_U: Int) -> _Group:
    member_V = np.flatnonzero(group_U == place)
    mask_N = group_U[user_N] == place
    own_N = np.searchsorted(member_V, user_N[mask_N])
    label_M, score_M = rows.label_N[mask_N].astype(np.float64), rows.score_N[mask_N]
    return _Group(name, member_V, WeightedFigures(label_M, score_M, own_N, len(member_V)))


def _extremes(value_GF: Floats) -> list[tuple[int, int] | None]:
    """Returns for each figure the groups that have most and least of it; None where fewer than two have any."""
    found: list[tuple[int, int] | None] = []
    for value_G in value_GF.T:
        enough = (~np.isnan(value_G)).sum() > 1
        found.append((int(np.nanargmax(value_G)), int(np.nanargmin(value_G))) if enough else None)
    return found


@dataclass(frozen=True)
class _Difference:
    """The differences between fixed pairs of groups, all under the same weights per user; nan for no pair."""

    groups: list[_Group]
    pairs: list[tuple[int, int] | None]

    def __call__(self, weight_U: Floats) -> tuple[float, ...]:
        value_GF = np.array([group(weight_U) for group in self.groups])
        return tuple(
            float(value_GF[pair[0], place] - value_GF[pair[1], place]) if pair else float("nan")
            for place, pair in enumerate(self.pairs)
        )


def _by_lot(rows: Scored, user_N: Int, group_U: Int, draws: int, seed: int) -> list[float]:
    """Returns for each figure the gap that 95 % of draws stay under in which the users' groups are shuffled."""
    figures = WeightedFigures(rows.label_N.astype(np.float64), rows.score_N, user_N, len(group_U))
    generator = np.random.default_rng([seed, len(group_U)])
    gap_SF = np.full((draws, len(FIGURES)), np.nan)
    for draw in range(draws):
        drawn_U = generator.permutation(group_U)
        # Weights of 1 inside a group and 0 outside give the figures of that group alone.
        found = [figures((drawn_U == place).astype(np.float64)) for place in range(int(group_U.max()) + 1)]
        value_GF = np.array([[getattr(one, name) for name in FIGURES] for one in found])
        gap_SF[draw] = [
            value_GF[pair[0], place] - value_GF[pair[1], place] if pair else np.nan
            for place, pair in enumerate(_extremes(value_GF))
        ]
    return [_quantile(gap_S[~np.isnan(gap_S)]) for gap_S in gap_SF.T]


def _quantile(gap_S: Floats) -> float:
    return float(np.quantile(gap_S, _LEVEL)) if gap_S.size else float("nan")


def _gap(
    name: str, groups: list[_Group], pair: tuple[int, int] | None, interval: Interval, by_lot: float
) -> dict[str, Any]:
    line: dict[str, Any] = {"figure": name, "gap": interval.value, "interval": [interval.low, interval.high]}
    ends = {"highest": groups[pair[0]].name, "lowest": groups[pair[1]].name} if pair else {}
    return line | ends | {"by_lot": by_lot}
