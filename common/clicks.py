"""A raw click log (CSV or Parquet) and its data card -> canonical rows, and a report of what was dropped and why.

Canonical columns, whatever the log called them:

    user          str    never empty
    time          int64  Unix seconds, UTC
    item          str    the log's own id, else a hash of the text
    text          str    never blank
    clicked       int8   0 or 1
    purchased     int8   0 or 1, 1 only where clicked; the column is there only if the log has it
    history       int8   1 = only part of its user's past: features see it, and nothing is trained, counted or
                         evaluated on it; only if mapped
    slate         str    rows that were shown together; only if mapped, "" = unknown
    domain        str    "" = not mapped
    context:NAME  str    one per context column, "" = missing
    sensitive:NAME  str  one per sensitive column, "" = not stated; only where a reader asks for them, never to train

Single bad rows are dropped and counted, never shown. N = rows in every array name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.parquet as pq

from common.card import CONTEXT_PREFIX, SENSITIVE_PREFIX, DataCard, canonical_card, load_card, parse_card
from common.cells import (
    LAST_SECOND,
    Bools,
    as_clicks,
    as_number,
    as_seconds,
    as_text,
    blank,
    filled,
    hashed,
    joined_text,
    not_zero_one,
)
from common.click_files import read_file
from common.errors import DataError

__all__ = [
    "CONTEXT_PREFIX",
    "SAME_MOMENT",
    "ClickLog",
    "DataCard",
    "ReadReport",
    "canonical_card",
    "impressions_N",
    "load_card",
    "make_log",
    "parse_card",
    "read_clicks",
    "require_both_classes",
    "select_users",
    "validate_rows",
    "write_clicks",
]

LONG_TEXT = 10_000  # characters; kept, but noted: an encoder reads only the first max_tokens
SAME_MOMENT = "same user, item and time as an earlier row"
_NOT_ZERO_ONE = "click not 0 or 1"
_ORDER = ("user", "time", "item", "text", "clicked", "purchased", "history", "slate", "domain")
_REQUIRED = {"user", "time", "item", "text", "clicked", "domain"}
_KINDS = {"time": "int64", "clicked": "int8", "purchased": "int8", "history": "int8"}  # all others are "str"
_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}


@dataclass(frozen=True)
class ReadReport:
    """What a log holds and what was dropped: counts and rates only, so that it may be printed.

    Rates, and rows per user, are of impressions: rows that are history alone are counted by themselves.
    """

    rows_read: int
    rows_kept: int
    dropped: Mapping[str, int]  # reason -> rows; each row counts once, under its first reason
    users: int
    items: int
    click_rate: float
    purchase_rate: float | None  # purchases per click; None = no purchase column, or no click
    first_time: int  # Unix seconds
    last_time: int
    impressions_per_user: Mapping[str, float]  # min, p25, median, p75, p90, max
    users_with_one_row: int
    history_rows: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClickLog:
    """Canonical rows, sorted by user and time (ties in the log's own order), and their report."""

    rows: pd.DataFrame = field(repr=False)  # user data: never in a repr
    report: ReadReport


_STR = pa.Check(lambda text_N: str(text_N.dtype) == "str", error="dtype str")  # pandera's "str" lets object pass
_TEXT = pa.Check(lambda text_N: text_N.str.strip() != "", error="never empty")
_ZERO_ONE = pa.Check.isin([0, 1], error="0 or 1")
_BOUGHT = pa.Check(
    lambda rows: "purchased" not in rows or bool((rows["purchased"] <= rows["clicked"]).all()),
    error="purchased only where clicked",
)
_DISTINCT = pa.Check(
    lambda rows: not rows[["user", "item", "time"]].duplicated().any(), error="one row per user, item and time"
)
_SCHEMA_CASES = {"column_in_dataframe": "no such column", "column_in_schema": "unknown column"}
_CANONICAL = pa.DataFrameSchema(
    {
        "user": pa.Column("str", [_STR, _TEXT]),
        "time": pa.Column("int64", pa.Check.in_range(0, LAST_SECOND, error=f"Unix seconds, 0 to {LAST_SECOND}")),
        "item": pa.Column("str", [_STR, _TEXT]),
        "text": pa.Column("str", [_STR, _TEXT]),
        "clicked": pa.Column("int8", _ZERO_ONE),
        "purchased": pa.Column("int8", _ZERO_ONE, required=False),
        "history": pa.Column("int8", _ZERO_ONE, required=False),
        "slate": pa.Column("str", _STR, required=False),
        "domain": pa.Column("str", _STR),
        f"^({CONTEXT_PREFIX}|{SENSITIVE_PREFIX})[\\s\\S]+": pa.Column("str", _STR, regex=True, required=False),
    },
    checks=[_BOUGHT, _DISTINCT],
    strict=True,
)


def impressions_N(rows: pd.DataFrame) -> Bools:
    """Returns which canonical rows were shown and judged, and so are trained, counted or evaluated on, bool [N].

    The others are history: clicks that are known of a user, without what was shown beside them.
    """
    return rows["history"].to_numpy() == 0 if "history" in rows else np.ones(len(rows), bool)


def validate_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns `rows` as they are when they are canonical: the gate for every loader that builds rows itself.

    Raises:
        DataError: when a column is missing, unknown, of another type, or holds a value out of bounds; the text names
            columns and bounds and shows no value.
    """
    try:
        _CANONICAL.validate(rows, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        # Only where the column itself is missing or unknown is the failing "case" a name and not a value.
        named = cases["column"].where(~cases["check"].isin(list(_SCHEMA_CASES)), cases["failure_case"]).fillna("rows")
        checks = cases["check"].replace(_SCHEMA_CASES)
        problems = sorted({f"{name}: {check}" for name, check in zip(named, checks, strict=True)})
        raise DataError(f"rows are not canonical: {'; '.join(problems)}") from None
    return rows


def make_log(
    rows: pd.DataFrame,
    *,
    rows_read: int | None = None,
    dropped: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> ClickLog:
    """Returns a log of rows that a loader has built: validated, sorted, and summarised.

    Args:
        rows: canonical rows in the log's own order.
        rows_read: rows before dropping; unset = as many as kept.
        dropped: reason -> rows.
        notes: lines for the report that are not counts of dropped rows.

    Raises:
        DataError: when there are no rows, or `validate_rows` refuses them.
    """
    if rows.empty:
        raise DataError(f"no row is left{_list_dropped(dropped or {})}")
    return _finish(validate_rows(_in_order(rows)), len(rows) if rows_read is None else rows_read, dropped or {}, notes)


def read_clicks(path: Path, card: DataCard, *, allow_one_class: bool = False, sensitive: bool = False) -> ClickLog:
    """Returns the canonical rows of a CSV or Parquet file, and the report of what was dropped.

    A row is dropped, under the first reason that holds, when it has no user, item or text, a time that cannot be
    read, a click that is not 0 or 1 (not a number, under `click.threshold`), a purchase that is not 0 or 1 (blank
    without a click = 0) or without a click, a history that is not 0 or 1, or when it repeats the user, item and time
    of an earlier row. A CSV line that is not UTF-8 or has not as many fields as the header is dropped too. In CSV, the
    words that stand for null are no user or item.

    Each row is read alone: what becomes of it depends on no row of another user.

    Args:
        path: a .csv file (comma-separated, UTF-8, with a header) or a .parquet file.
        card: which column plays which role.
        allow_one_class: accept a log without a click, or with nothing else: a small partner's may be either.
        sensitive: keep the sensitive columns, for slices of an evaluation; else they are not even read.

    Raises:
        DataError: when the file is missing, of an unknown kind, not readable, empty or without a mapped column, or
            when nothing usable is left of it.
    """
    raw, malformed = read_file(path, card, sensitive=sensitive)
    if raw.empty:
        raise DataError(f"{path}: holds no rows; export the log again, with its rows")
    arrays, checks = _to_canonical(raw, card, path)
    kept_N, dropped = _apply_checks(arrays, checks)
    dropped = {**malformed, **dropped}
    kept = _frame(arrays)
    kept = kept if kept_N.all() else kept.loc[kept_N]
    if kept.empty:
        mend = f"mend the log or the data card{_threshold_hint(card, dropped)}"
        raise DataError(f"{path}: no row is left{_list_dropped(dropped)}; {mend}")
    log = _finish(kept, len(raw) + sum(malformed.values()), dropped, _notes(kept))
    if not allow_one_class:
        mend = f"the data card{_threshold_hint(card, dropped)}"
        if card.click.threshold is not None:
            mend = f"click.threshold = {card.click.threshold:g}"
        require_both_classes(log.rows, f"{path}: column {card.columns.clicked}", mend)
    return log


def _threshold_hint(card: DataCard, dropped: Mapping[str, int]) -> str:
    """Returns an error's last words where values other than 0 and 1 were dropped for want of a threshold."""
    lost = dropped.get(_NOT_ZERO_ONE, 0)
    if not lost:
        return ""
    return f"; {lost} rows hold clicks other than 0 and 1: if {card.columns.clicked} is a number, set click.threshold"


def require_both_classes(rows: pd.DataFrame, where: str, mend: str) -> None:
    """Raises a `DataError` that opens with `where` and ends with `mend` when all rows, or none, are clicked."""
    clicked_M = rows["clicked"].to_numpy()[impressions_N(rows)]
    clicks = int(clicked_M.sum())
    if clicks in (0, len(clicked_M)):
        which = "no row is" if clicks == 0 else "every row is"
        raise DataError(f"{where}: {which} clicked among {len(clicked_M)}; a click model needs both; check {mend}")


def write_clicks(rows: pd.DataFrame, path: Path) -> None:
    """Writes canonical rows as Parquet; `read_clicks(path, canonical_card(rows))` gives the same rows back.

    Columns and their types are checked here; values are where the file is read, as a file may change in between.

    Raises:
        DataError: when a column is missing, unknown, sensitive or of another type.
    """
    refused = [str(name) for name in rows if str(name).startswith(SENSITIVE_PREFIX)]
    if refused:
        raise DataError(f"{path}: {', '.join(refused)}: sensitive columns are for held-out clicks alone; drop them")
    if not _has_canonical_types(rows):
        validate_rows(rows)  # says which; it takes too long to ask it about each of a thousand partners' logs
    pq.write_table(arrow.Table.from_pandas(rows, preserve_index=False), path)


def _has_canonical_types(rows: pd.DataFrame) -> bool:
    kinds = {str(name): str(kind) for name, kind in rows.dtypes.items()}
    known = all(name in _ORDER or name.startswith(CONTEXT_PREFIX) for name in kinds)
    return known and kinds.keys() >= _REQUIRED and all(kind == _KINDS.get(name, "str") for name, kind in kinds.items())


def select_users(log: ClickLog, users: "pd.Index[str]", reason: str) -> ClickLog:
    """Returns the log of these users only; the rows of others count as dropped for `reason`."""
    kept = log.rows[log.rows["user"].isin(users)]
    lost = len(log.rows) - len(kept)
    dropped = {**log.report.dropped, **({reason: lost} if lost else {})}
    return make_log(kept, rows_read=log.report.rows_read, dropped=dropped, notes=log.report.notes)


def _to_canonical(raw: pd.DataFrame, card: DataCard, path: Path) -> tuple[dict[str, Any], dict[str, Bools]]:
    """Returns canonical arrays of every row, and which rows hold under each reason for dropping, in order."""
    columns = card.columns
    user, text = as_text(raw[columns.user]), joined_text(raw, columns.text)
    item = as_text(raw[columns.item]) if columns.item else hashed(text)
    time_N, bad_time_N = as_seconds(raw[columns.time], card.time.unit, path)
    clicked_N, bad_click_N = as_clicks(raw[columns.clicked], card)
    arrays: dict[str, Any] = {"user": user, "time": time_N, "item": item, "text": text, "clicked": clicked_N}
    checks = {
        "no user": blank(user),
        "no text": blank(text),
        "no item": blank(item),
        "time not readable": bad_time_N,
        _NOT_ZERO_ONE if card.click.threshold is None else "click not a number": bad_click_N,
    }
    if columns.purchased:
        value_N = as_number(raw[columns.purchased])
        bought_N = value_N == 1
        checks["purchase not 0 or 1"] = not_zero_one(value_N) & ~(np.isnan(value_N) & (clicked_N == 0))
        checks["purchase without a click"] = bought_N & (clicked_N == 0)
        arrays["purchased"] = bought_N.astype("int8")
    if columns.history:
        value_N = as_number(raw[columns.history])
        checks["history not 0 or 1"] = not_zero_one(value_N)
        arrays["history"] = (value_N == 1).astype("int8")
    for name, column in {"slate": columns.slate, "domain": columns.domain}.items():
        if column:
            arrays[name] = filled(as_text(raw[column]))
    for name in columns.context:
        arrays[CONTEXT_PREFIX + name.removeprefix(CONTEXT_PREFIX)] = filled(as_text(raw[name]))
    for name, canonical in card.sensitive.canonical().items():
        if name in raw:
            arrays[canonical] = filled(as_text(raw[name]))
    return arrays, checks


def _apply_checks(arrays: Mapping[str, Any], checks: Mapping[str, Bools]) -> tuple[Bools, dict[str, int]]:
    """Returns which rows to keep, and how many fell to each reason; duplicates are sought among what is left."""
    kept_N = np.ones(len(arrays["time"]), dtype=bool)
    dropped = {}
    for reason, bad_N in checks.items():
        dropped[reason] = int((kept_N & bad_N).sum())
        kept_N &= ~bad_N
    place_M = np.flatnonzero(kept_N)
    # Of a click that the log has twice, as history and as it was shown, the row that has a label to train on stays.
    past_M = arrays["history"][kept_N] if "history" in arrays else np.zeros(len(place_M))
    keys = [past_M, arrays["time"][kept_N], *(pd.factorize(arrays[name])[0][kept_N] for name in ("item", "user"))]
    order_M = np.lexsort(keys)  # stable: of equal rows the earliest stays in front
    same_M = np.logical_and.reduce([key[order_M][1:] == key[order_M][:-1] for key in keys[1:]])
    kept_N[place_M[order_M[1:][same_M]]] = False
    dropped[SAME_MOMENT] = int(same_M.sum())
    return kept_N, {reason: count for reason, count in dropped.items() if count}


def _frame(arrays: Mapping[str, Any]) -> pd.DataFrame:
    """Returns arrays as a frame in the canonical order of columns; a missing domain is ""."""
    rows = pd.DataFrame(arrays)
    if "domain" not in rows:
        rows["domain"] = pd.Series("", index=rows.index, dtype="str")
    return _in_order(rows)


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[*(name for name in _ORDER if name in rows), *(name for name in rows if name not in _ORDER)]]


def _finish(rows: pd.DataFrame, rows_read: int, dropped: Mapping[str, int], notes: tuple[str, ...]) -> ClickLog:
    """Returns the log of canonical rows: sorted and summarised."""
    user_codes_N, users = pd.factorize(rows["user"], sort=True)
    time_N = rows["time"].to_numpy()
    ordered = rows.take(np.lexsort((time_N, user_codes_N)))  # stable
    ordered.index = pd.RangeIndex(len(rows))
    shown_N = impressions_N(rows)
    shown = int(shown_N.sum())
    per_user_U = np.bincount(user_codes_N[shown_N], minlength=len(users))
    clicks = int(rows["clicked"].to_numpy()[shown_N].sum())
    quantiles = np.quantile(per_user_U, list(_QUANTILES.values()))
    report = ReadReport(
        rows_read=rows_read,
        rows_kept=len(rows),
        dropped=dict(dropped),
        users=len(users),
        items=len(pd.factorize(rows["item"])[1]),
        click_rate=clicks / shown if shown else float("nan"),
        purchase_rate=float(rows["purchased"].to_numpy()[shown_N].sum()) / clicks
        if "purchased" in rows and clicks
        else None,
        first_time=int(time_N.min()),
        last_time=int(time_N.max()),
        impressions_per_user={name: float(value) for name, value in zip(_QUANTILES, quantiles, strict=True)},
        users_with_one_row=int((per_user_U == 1).sum()),
        history_rows=len(rows) - shown,
        notes=notes,
    )
    return ClickLog(rows=ordered, report=report)


def _notes(rows: pd.DataFrame) -> tuple[str, ...]:
    long = int((rows["text"].str.len() >= LONG_TEXT).sum())
    return (f"{long} texts of {LONG_TEXT} characters or more were kept; the encoder reads their beginning",) * bool(
        long
    )


def _list_dropped(dropped: Mapping[str, int]) -> str:
    return ": " + ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) if dropped else ""
