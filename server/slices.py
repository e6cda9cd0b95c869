"""The same model on parts of the held-out rows: no figure of a part that is too small, nor one it can be worked out by.

Parts come in partitions: every evaluated row is in exactly one group of each, so that what a hidden group leaves behind
is known, and is looked at before anything is shown.

Legend: N evaluated rows, G groups of one partition.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.bootstrap import bootstrap_intervals
from common.card import SENSITIVE_PREFIX
from common.config import ServerConfig
from common.metrics import calibration_ratio, log_loss, roc_auc
from common.sensitive import sensitive_columns, stated_by_row

_HISTORY_BINS = ((0, 0, "no history"), (1, 4, "1 to 4 positives"), (5, 19, "5 to 19"), (20, None, "20 or more"))
_WITH_INTERVALS = ("auc", "log_loss", "calibration_ratio", "click_rate")
KEPT_BACK = "kept back"  # large enough, and hidden so that a small one cannot be worked out
_NOBODY = "no rows"

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """The evaluated rows cut into groups.

    Attributes:
        name: "partner", "user", "item", "history", "domain" or "sensitive:NAME".
        groups: their names, G.
        group_N: each row's group.
        unstated: the group of whoever stated nothing, where there is one.
    """

    name: str
    groups: tuple[str, ...]
    group_N: Int
    unstated: str = ""

    @property
    def sensitive(self) -> str:
        """The column of people's groups that this partition is by, or nothing."""
        return self.name.removeprefix(SENSITIVE_PREFIX) if self.name.startswith(SENSITIVE_PREFIX) else ""


@dataclass(frozen=True)
class Scored:
    """The evaluated rows as figures are made of them; labels 0 or 1, scores as probabilities, users as numbers."""

    label_N: NDArray[np.float32]
    score_N: NDArray[np.float64]
    user_N: Int


# --- how rows are cut ---------------------------------------------------------------------------------------------


def partitions(frame: pd.DataFrame, evaluate_N: NDArray[np.bool_], history_NH: Int) -> tuple[Partition, ...]:
    """Returns the partitions of the evaluated rows.

    Args:
        frame: the held-out log, in the order of users and times.
        evaluate_N: which of its rows are evaluated.
        history_NH: row numbers of earlier positives of each evaluated row, -1 where there are fewer.
    """
    rows = frame[evaluate_N]
    found = [_by_partner(rows)] if "partner" in rows and (rows["partner"] >= 0).any() else []
    for column, name, groups in (
        ("cold_user", "user", ("known users", "new users")),
        ("cold_item", "item", ("known items", "new items")),
    ):
        if column in rows:
            found.append(Partition(name, groups, rows[column].to_numpy(bool).astype(np.int64)))
    found.append(_by_history(history_NH))
    if rows.loc[rows["domain"] != "", "domain"].nunique() > 1:
        found.append(_by_value("domain", "domain ", "no domain", rows["domain"].to_numpy(object)))
    for column in sensitive_columns(frame):
        bare = column.removeprefix(SENSITIVE_PREFIX)
        stated_N = stated_by_row(frame, column)[evaluate_N]
        found.append(_by_value(column, f"{bare}: ", f"{bare} not stated", stated_N))
    return tuple(found)


def _by_partner(rows: pd.DataFrame) -> Partition:
    group_N, partners = pd.factorize(rows["partner"], sort=True)
    return Partition("partner", tuple(f"partner {partner}" for partner in partners), group_N.astype(np.int64))


def _by_history(history_NH: Int) -> Partition:
    lowest = [low for low, _, _ in _HISTORY_BINS]
    group_N = np.searchsorted(lowest, (history_NH >= 0).sum(1), side="right") - 1
    return Partition("history", tuple(f"history: {name}" for _, _, name in _HISTORY_BINS), group_N.astype(np.int64))


def _by_value(name: str, before: str, unstated: str, value_N: NDArray[np.object_]) -> Partition:
    """Returns the partition by the values of a column; rows without one are a group of their own, the last."""
    code_N, values = pd.factorize(value_N, sort=True)
    groups = [f"{before}{value}" for value in values]
    if "" not in values:
        return Partition(name, tuple(groups), code_N.astype(np.int64))
    group_N = np.where(code_N == 0, len(values) - 1, code_N - 1)  # "" sorts first
    return Partition(name, (*groups[1:], unstated), group_N.astype(np.int64), unstated)


# --- what is shown ------------------------------------------------------------------------------------------------


def hidden_groups(partition: Partition, user_N: Int, config: ServerConfig) -> dict[int, str]:
    """Returns which groups may not be shown, each with what is said in the place of its figures.

    Formal guarantees:
        - where any group is hidden, the hidden ones of its partition are at least two, and together hold at least as
          many users and rows as a slice must; or none of its groups is shown.

    Args:
        partition: of the evaluated rows.
        user_N: whose rows they are.
        config: the least users and rows of a slice.
    """
    rows_G, users_G = _sizes(partition, user_N)
    small = np.flatnonzero(_small(rows_G, users_G, config))
    hidden = {int(group): _too_small(int(users_G[group]), config) for group in small}
    shown = [int(group) for group in np.lexsort((rows_G, users_G)) if rows_G[group] and int(group) not in hidden]
    while hidden and shown and not _covers(partition, user_N, hidden, config):
        hidden[shown.pop(0)] = KEPT_BACK
    return hidden


def _sizes(partition: Partition, user_N: Int) -> tuple[Int, Int]:
    """Returns rows and distinct users of each group."""
    groups = len(partition.groups)
    seen = pd.DataFrame({"group": partition.group_N, "user": user_N}).drop_duplicates()["group"].to_numpy()
    return (
        np.bincount(partition.group_N, minlength=groups).astype(np.int64),
        np.bincount(seen, minlength=groups).astype(np.int64),
    )


def _small(rows_G: Int, users_G: Int, config: ServerConfig) -> NDArray[np.bool_]:
    """Returns which groups have rows, and too few; one without any has nobody in it to protect."""
    too_few: NDArray[np.bool_] = (users_G < config.least_slice_users) | (rows_G < config.least_slice_rows)
    return too_few & (rows_G > 0)


def _too_small(users: int, config: ServerConfig) -> str:
    few_users = users < config.least_slice_users
    return f"under {config.least_slice_users} users" if few_users else f"under {config.least_slice_rows} rows"


def _covers(partition: Partition, user_N: Int, hidden: dict[int, str], config: ServerConfig) -> bool:
    """Returns whether what the total gives away is about enough people; of one hidden group alone it never is."""
    apart_N = np.isin(partition.group_N, list(hidden))
    users, rows = len(np.unique(user_N[apart_N])), int(apart_N.sum())
    return users >= config.least_slice_users and rows >= config.least_slice_rows


def slice_lines(partition: Partition, scored: Scored, config: ServerConfig, seed: int) -> list[dict[str, Any]]:
    """Returns one line per group: its figures with 95 % intervals over users, or why there are none.

    Args:
        partition: of the evaluated rows.
        scored: the evaluated rows.
        config: the least users and rows of a slice, and how many resamples.
        seed: of the resamples.
    """
    hidden = hidden_groups(partition, scored.user_N, config)
    lines: list[dict[str, Any]] = []
    for group, name in enumerate(partition.groups):
        line: dict[str, Any] = {"slice": name, "of": partition.name}
        mask_N = partition.group_N == group
        if group in hidden or not mask_N.any():
            lines.append(line | {"hidden": hidden.get(group, _NOBODY)})
        else:
            lines.append(line | _figures(mask_N, scored, config, seed))
    return lines


def _figures(mask_N: NDArray[np.bool_], scored: Scored, config: ServerConfig, seed: int) -> dict[str, Any]:
    label_M = scored.label_N[mask_N].astype(np.float64)
    score_M, user_M = scored.score_N[mask_N], scored.user_N[mask_N]
    figures: dict[str, Any] = {
        "rows": len(label_M),
        "users": len(np.unique(user_M)),
        "click_rate": float(label_M.mean()),
        "mean_score": float(score_M.mean()),
        "auc": roc_auc(label_M, score_M),
        "log_loss": log_loss(label_M, score_M),
        "calibration_ratio": calibration_ratio(label_M, score_M),
    }
    if config.bootstrap_samples:
        found = bootstrap_intervals(label_M, score_M, user_M, config.bootstrap_samples, seed, names=_WITH_INTERVALS)
        figures["intervals"] = {name: [interval.low, interval.high] for name, interval in found.items()}
    return figures
