"""The report's tables on parts of the held-out rows, and on gaps between groups of people."""

from collections.abc import Sequence

from server.report_numbers import (
    MISSING,
    NOT_RECORDED,
    Json,
    bounds,
    bracketed,
    figure,
    interval,
    number,
    percent,
    signed,
    table,
    tables,
    text,
    values,
    whole,
    with_bounds,
    words,
)
from server.report_tables import MOST_PARTNERS, Column, Row, Table, columns, left_out, prose

MOST_SLICES = 60
_KINDS = {
    "people": ("By group of people", MOST_SLICES),
    "partner": ("By partner", MOST_PARTNERS),
    "other": ("By kind of user, item and domain", MOST_SLICES),
}
_SENSITIVE = "sensitive:"
_FIGURES = {
    "auc": "AUC",
    "calibration_ratio": "calibration ratio",
    "mean_score": "mean score",
    "click_rate": "click rate",
}
_HIDDEN = (
    "Under so many users or rows, a slice has no figures. Kept back: a larger one has none either, as the small one"
    " could be worked out from it and the total."
)


def slice_tables(final: Json) -> list[Table]:
    """Returns the slices: those of groups of people, those of partners, then all others."""
    found: dict[str, list[Json]] = {kind: [] for kind in _KINDS}
    for line in tables(final, "slices"):
        found[_kind(line)].append(line)
    shown = [_slice_table(caption, found[kind], most) for kind, (caption, most) in _KINDS.items()]
    return [part for part in shown if part.rows]


def _kind(line: Json) -> str:
    if text(line.get("of")).startswith(_SENSITIVE):
        return "people"
    return "partner" if text(line.get("slice")).startswith("partner ") else "other"


def _slice_table(caption: str, lines: Sequence[Json], most: int) -> Table:
    shown = lines[:most]
    rows = tuple(Row(text(line.get("slice")) or NOT_RECORDED, _cells(line)) for line in shown)
    heads = columns(
        "Slice", "Rows", "Users", "Click rate", "AUC [interval]", "Log loss", "Calibration ratio [interval]"
    )
    note = _HIDDEN if any(text(line.get("hidden")) not in ("", "no rows") for line in shown) else ""
    return Table(caption, heads, rows, left_out(len(rows), len(lines), "slices"), note)


def _cells(line: Json) -> tuple[str, ...]:
    hidden = text(line.get("hidden"))
    if hidden:
        return (hidden, *[""] * 5)
    return (
        whole(line.get("rows")),
        whole(line.get("users")),
        percent(line.get("click_rate")),
        with_bounds(line, "auc"),
        figure(line.get("log_loss")),
        with_bounds(line, "calibration_ratio"),
    )


def gaps_table(final: Json) -> Table:
    """Returns the largest gaps between groups of people, by sensitive column and figure."""
    found = table(final, "fairness")
    rows = [row for column in tables(found, "columns") for row in _gap_rows(column)]
    heads = (*prose("Column and figure", "Highest", "Lowest"), Column("Gap [interval]"), Column("By lot, under"))
    caption = "Largest gaps between groups of people"
    least = f"{whole(found.get('least_users'))} users or {whole(found.get('least_rows'))} rows"
    note = (
        "By lot: where people are put into these groups at random, 95 of 100 gaps stay under this. Only a gap above it"
        " says more than chance: the largest of several differences is never below 0. A gap in mean score is to be read"
        " beside the one in click rate. Groups"
        f" of under {least}, and people of whom nothing is stated, are not compared."
    )
    return Table(caption, heads, tuple(rows), note=note)


def _gap_rows(column: Json) -> list[Row]:
    name, gaps = text(column.get("column")) or NOT_RECORDED, tables(column, "gaps")
    if not gaps:
        return [Row(name, (text(column.get("why")) or MISSING, "", "", ""))]
    return [Row(f"{name}: {_spelt(gap)}", _gap_cells(gap)) for gap in gaps]


def _spelt(gap: Json) -> str:
    name = text(gap.get("figure"))
    return _FIGURES.get(name, words(name)) or NOT_RECORDED


def _gap_cells(gap: Json) -> tuple[str, ...]:
    ends = [text(gap.get(end)) or MISSING for end in ("highest", "lowest")]
    pair = interval({"intervals": {"gap": values(gap, "interval")}}, "gap")
    value = bracketed(signed(number(gap.get("gap"))), bounds(pair, signed=True))
    return (*ends, value, figure(gap.get("by_lot")))
