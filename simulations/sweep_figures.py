"""From the cells of a sweep to its lines: a mean over seeds with its interval, and the difference to pooled training.

The interval is Student's t over seeds: what differs between seeds is initial weights, sampling and noise, over the same
clicks. It says how far another run of the same sweep may be off, and nothing about other users; for those each cell has
its own interval, over resampled users.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
INTERVAL = "95 % Student's t over seeds (initial weights, sampling, noise; the clicks are the same)"
METRICS = ("auc", "log_loss", "ne")
Record = Mapping[str, Any]


def t_interval(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of some repeats with its 95 % t-interval; without bounds where there is one repeat only.

    Source: Student 1908; mean +- t(.975, n - 1) s / sqrt(n).
    """
    value_N = np.asarray(values, np.float64)
    mean = float(value_N.mean())
    if len(value_N) < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": len(value_N)}
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(value_N) - 1) * value_N.std(ddof=1) / math.sqrt(len(value_N)))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(value_N)}


def lines_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns one line per mode, settings and epsilon of the cells that are done, in the order of the cells.

    Args:
        records: one per cell, as `simulations.sweep_cells` makes them.
    """
    grouped: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record["state"] == "done":
            grouped.setdefault((record["mode"], _key(record), record["epsilon"]), []).append(record)
    return [_line(group, grouped) for group in grouped.values()]


def _key(record: Record) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(record["settings"].items()))


def _line(group: Sequence[Record], grouped: Mapping[tuple[Any, ...], Sequence[Record]]) -> dict[str, Any]:
    first = group[0]
    line: dict[str, Any] = {name: first[name] for name in ("mode", "settings", "epsilon", "noise_of_sum", "steps")}
    line |= {metric: t_interval([record[metric] for record in group]) for metric in METRICS}
    spent = [record["spent"] for record in group]
    line["spent"] = None if None in spent else max(spent)
    against = grouped.get(("pooled", _key(first), first["epsilon"]), ())
    if first["mode"] in ("local", "distributed"):
        line["minus_pooled"] = _difference(group, against)
    return line


def _difference(group: Sequence[Record], against: Sequence[Record]) -> dict[str, Any] | None:
    """Returns the AUC minus that of pooled cells, paired by seed: both start from the same weights."""
    other = {record["seed"]: record["auc"] for record in against}
    gaps = [record["auc"] - other[record["seed"]] for record in group if record["seed"] in other]
    return t_interval(gaps) | {"within": _holds_zero(gaps)} if gaps else None


def _holds_zero(gaps: Sequence[float]) -> bool | None:
    """Returns whether the interval of the difference holds 0; None where there is no interval."""
    found = t_interval(gaps)
    return None if found["low"] is None else found["low"] <= 0 <= found["high"]
