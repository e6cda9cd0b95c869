"""Tables as text, and those that say how good the model is; each is a pure function of the recorded metrics."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from server.report_numbers import (
    MISSING,
    Json,
    bounds,
    bracketed,
    difference,
    figure,
    interval,
    number,
    signed,
    table,
    text,
    with_bounds,
    words,
    yes_or_no,
)

MOST_PARTNERS = 30  # rows per table that lists partners

FLOOR_NAMES = {
    "base_rate": "Base rate",
    "item_popularity": "Item popularity",
    "own_recent_rate": "User's own recent rate",
    "logistic_regression": "Logistic regression",
    "logistic_regression_item_means": "Logistic regression with item means",
    "private_item_popularity": "Item popularity, private statistics",
    "logistic_regression_private_item_rates": "Logistic regression with private statistics",
    "local_only": "Each partner alone",
    "pooled": "All logs pooled",
}
_FLOOR_MEANINGS = {
    "base_rate": "Every impression gets the same probability.",
    "item_popularity": "Every impression gets its item's past click rate.",
    "own_recent_rate": "Every impression gets the rate of its user's last ten labels; nothing is trained.",
    "logistic_regression": "A linear model on the same rows.",
    "logistic_regression_item_means": "The same, knowing each item's past click rate.",
    "private_item_popularity": "Every impression gets its item's click rate from the run's private statistics.",
    "logistic_regression_private_item_rates": "The same, knowing what the run's private statistics say of each item.",
    "local_only": "Every partner trains by itself; nothing is shared.",
    "pooled": "One central model on everybody's raw rows: what separation costs.",
}
METRIC_MEANINGS = (  # key, name, meaning
    (
        "auc",
        "AUC",
        "area under the ROC curve: chance that a clicked row outscores one that was not; guessing gives 0.5",
    ),
    ("pr_auc", "PR-AUC", "area under precision and recall; guessing gives the base rate"),
    ("base_rate", "Base rate", "share of held-out impressions that were clicked"),
    ("log_loss", "Log loss", "mean penalty, in nats, on the probability given to what happened; lower is better"),
    (
        "ne",
        "NE",
        "normalised entropy: log loss over that of always saying the base rate; 1 = no better, 0 = perfect",
    ),
    ("calibration_ratio", "Calibration ratio", "mean prediction over observed click rate; 1 = right on average"),
    ("ece", "ECE", "expected calibration error: mean distance of predicted and observed rate over equal-mass bins"),
    ("brier", "Brier", "mean squared error of the probabilities; lower is better"),
    ("gauc", "GAUC", "AUC within each user, averaged by their rows"),
    ("uauc", "UAUC", "AUC within each user, averaged by users"),
    ("impression_auc", "Impression AUC", "AUC within each slate of items shown together, averaged"),
    ("mrr", "MRR", "mean reciprocal rank: 1 over the place of the best-ranked click in its slate"),
    ("ndcg_5", "nDCG@5", "normalised discounted cumulative gain of a slate's first 5 places; 1 = clicks on top"),
    ("ndcg_10", "nDCG@10", "the same of its first 10 places"),
)
_SLATE_METRICS = ("impression_auc", "mrr", "ndcg_5", "ndcg_10")


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds numbers, which are set to the right."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """A row's heading, its cells, and a remark under the heading."""

    head: str
    cells: tuple[str, ...]
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table as text; `left_out` says how many rows it does not show, `note` what must be read with it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    left_out: str = ""
    note: str = ""


Reader = Callable[[Json], str]


def columns(*titles: str) -> tuple[Column, ...]:
    """Returns a heading column and columns of numbers."""
    return Column(titles[0], numeric=False), *map(Column, titles[1:])


def prose(*titles: str) -> tuple[Column, ...]:
    """Returns columns of text."""
    return tuple(Column(title, numeric=False) for title in titles)


def read(name: str, write: Callable[[Any], str]) -> Reader:
    """Returns what reads one key of a record and writes it."""
    return lambda record: write(record.get(name))


def cells(record: Json, readers: Iterable[Reader]) -> tuple[str, ...]:
    """Returns the cells of one record's row."""
    return tuple(read(record) for read in readers)


def left_out(shown: int, total: int, what: str) -> str:
    """Returns a remark on the rows that a table does not show; empty where it shows all."""
    return f"{shown} of {total:,} {what} are shown; metrics.json has all." if shown < total else ""


# --- how good ----------------------------------------------------------------------------------------------------


def floors_table(metrics: Json) -> Table:
    """Returns the model and its floors, line by line."""
    floors = {name: record for name, record in table(metrics, "floors").items() if isinstance(record, dict)}
    final = table(metrics, "final")
    rows = [Row("This model", (*_scores(final), "", _model_is_private(table(metrics, "privacy"))), "")] if final else []
    for name, floor in floors.items():
        remark = text(floor.get("note")) or _FLOOR_MEANINGS.get(name, "")
        line = (*_scores(floor), _lead(floor), yes_or_no(floor.get("private")))
        rows.append(Row(FLOOR_NAMES.get(name, words(name)), line, remark))
    heads = columns("Model", "AUC [interval]", "Log loss", "NE", "This model's lead in AUC [interval]")
    heads = (*heads, *prose("Private?"))
    return Table("This model and its floors, on the same held-out rows", heads, tuple(rows))


def _scores(record: Json) -> tuple[str, ...]:
    return with_bounds(record, "auc"), figure(record.get("log_loss")), figure(record.get("ne"))


def _lead(floor: Json) -> str:
    found = difference(floor)
    if found is None:
        return MISSING
    return bracketed(signed(found[0]), bounds(found[1:], signed=True))


def _model_is_private(privacy: Json) -> str:
    if privacy.get("mode") == "none":
        return "no"
    if number(privacy.get("epsilon")) is None:
        return MISSING
    if privacy.get("mode") == "label":
        return "labels alone, and a fixed seed" if privacy.get("fixed_seed") is True else "labels alone"
    return "no: fixed seed" if privacy.get("fixed_seed") is True else "yes"


def figures_table(final: Json) -> Table:
    """Returns every metric of the final model with its meaning; those of slates only where there are slates."""
    rows = tuple(
        Row(name, (figure(final.get(key)), bounds(interval(final, key)), meaning))
        for key, name, meaning in METRIC_MEANINGS
        if key not in _SLATE_METRICS or key in final
    )
    heads = (*columns("Figure", "Value", "95 % interval"), *prose("Meaning"))
    return Table("Every figure of the final model", heads, rows if final else ())
