"""A raw column -> typed arrays and the mask of what cannot be read; numpy throughout, as partners' logs may be tiny.

What a cell becomes depends on that cell alone: differential privacy per user needs that no user's rows change how those
of another are read. So nothing here looks at a column to decide on a format, a type or a unit.

N = rows in every array name. Texts are pandas "str" arrays with NaN for missing.
"""

import datetime
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc

from common.card import DataCard
from common.errors import DataError

LAST_SECOND = 4_102_444_800  # 2100-01-01: a time beyond it is a wrong unit, not a click
WHOLE = 2**53  # a whole float beyond it may stand for several integers
# Checked first, as Python sees a date in some numbers of milliseconds too.
_DATE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8})([T ].+)?\Z")
_UNITS = {"seconds": "Unix seconds", "milliseconds": "Unix milliseconds", "iso": "ISO 8601"}

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def as_text(column: "pd.Series[Any]") -> "pd.Series[str]":
    """Returns each value as text, NaN for missing; what one cell becomes never depends on another.

    Text stays as it is, whole floats lose their ".0" (as user 12.0 is user 12), moments become ISO 8601, and numbers
    that are not finite count as missing.
    """
    if isinstance(column.dtype, pd.StringDtype) and column.dtype.na_value is np.nan:
        return column
    if not isinstance(column.dtype, np.dtype) or column.dtype.kind not in "biufM":
        # Cell by cell: one code per distinct object would merge 1, 1.0 and True.
        return pd.Series([_text(value) for value in column], index=column.index, dtype="str")
    codes_N, distinct = pd.factorize(column.to_numpy())  # -1 = missing, which picks the None at the end
    return pd.Series([*map(_text, distinct), None], dtype="str").take(codes_N).set_axis(column.index)


def _text(value: Any) -> str | None:
    """Returns one value's text; None for a missing one and for a number that is not finite."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating):
        number = float(value)
        if not math.isfinite(number):
            return None
        return str(int(number)) if number.is_integer() and abs(number) < WHOLE else str(value)
    if isinstance(value, np.datetime64):  # "2024-01-31T10:00:00.500000", with the digits of the column's unit
        whole, _, fraction = str(value).partition(".")
        fraction = fraction.rstrip("0")
        return f"{whole}.{fraction}" if fraction else whole
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def filled(text: "pd.Series[str]") -> "pd.Series[str]":
    """Returns texts with "" for missing."""
    return text.fillna("") if text.hasnans else text


def joined_text(raw: pd.DataFrame, names: tuple[str, ...]) -> "pd.Series[str]":
    """Returns text columns joined by ". ", without blank parts; "" where all parts are blank."""
    if len(names) == 1:
        return as_text(raw[names[0]])
    text = pd.Series("", index=raw.index, dtype="str")
    for name in names:
        part = filled(as_text(raw[name])).str.strip()
        gap_N = np.where((text != "") & (part != ""), ". ", "")
        text = text + pd.Series(gap_N, index=raw.index, dtype="str") + part
    return text


def blank(text: "pd.Series[str]") -> Bools:
    """Returns which texts are missing, empty or only white space."""
    trimmed = pc.utf8_trim_whitespace(arrow.array(text, from_pandas=True))
    return np.asarray(pc.fill_null(pc.equal(trimmed, ""), True))


def hashed(text: "pd.Series[str]") -> "pd.Series[str]":
    """Returns an item id per text: 16 hex digits of its SHA-256, so that partners agree on it."""
    codes_N, distinct = pd.factorize(filled(text))
    ids = pd.Series([hashlib.sha256(each.encode()).hexdigest()[:16] for each in distinct], dtype="str")
    return ids.take(codes_N).set_axis(text.index)


def as_number(column: "pd.Series[Any]") -> Floats:
    """Returns finite floats, NaN for anything else; reads numbers, true/false, and either as text."""
    if column.dtype.kind in "biuf":
        number_N = column.to_numpy(dtype="float64", na_value=np.nan)
    elif isinstance(column.dtype, pd.StringDtype):
        number_N = _per_distinct(column, _number)
    else:
        number_N = np.array([_number(value) for value in column], dtype="float64")
    return np.where(np.isfinite(number_N), number_N, np.nan)


def _per_distinct(text: "pd.Series[str]", reading: Callable[[str], float]) -> Floats:
    """Returns `reading` of each text, NaN for missing, called once per distinct text."""
    codes_N, distinct = pd.factorize(text)  # -1 = missing, which picks the NaN at the end
    return np.array([*map(reading, distinct), np.nan], dtype="float64")[codes_N]


def _number(value: Any) -> float:
    """Returns the number in one cell; NaN where there is none. Alone, as pandas reads a column by all its values."""
    if isinstance(value, str):
        value = value.strip().lower()
        value = {"true": 1.0, "false": 0.0}.get(value, value)
        if isinstance(value, str) and ("_" in value or not value.isascii()):  # Python's own spellings of numbers
            return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def as_clicks(column: "pd.Series[Any]", card: DataCard) -> tuple[npt.NDArray[np.int8], Bools]:
    """Returns clicks as 0 or 1 (0 where not readable), and which values are not readable.

    Without a threshold only 0 and 1 are readable; with one, any number.
    """
    value_N = as_number(column)
    if card.click.threshold is not None:
        return (value_N >= card.click.threshold).astype("int8"), np.isnan(value_N)
    return (value_N == 1).astype("int8"), not_zero_one(value_N)


def not_zero_one(value_N: Floats) -> Bools:
    """Returns which numbers are neither 0 nor 1."""
    return ~np.isin(value_N, (0.0, 1.0))


def as_seconds(column: "pd.Series[Any]", unit: str, path: Path) -> tuple[Ints, Bools]:
    """Returns Unix seconds (0 where not readable), and which values are not readable as moments from 1970 to 2100.

    Raises:
        DataError: when no value is readable, or a column of timestamps comes with a numeric unit.
    """
    is_moment = column.dtype.kind == "M"
    if is_moment and unit != "iso":
        raise DataError(f'{path}: column {column.name} holds timestamps: set time.unit = "iso" in the data card')
    if is_moment:  # a finer unit is cut, not rounded; missing becomes the lowest integer
        second_N = column.to_numpy(dtype="datetime64[s]").astype("int64").astype("float64")
    elif unit == "iso":
        second_N = np.floor(_per_distinct(as_text(column), _moment))
    else:
        second_N = np.floor(as_number(column) / (1000 if unit == "milliseconds" else 1))
    good_N = (second_N >= 0) & (second_N <= LAST_SECOND)
    if not good_N.any():
        others = " or ".join(f'"{other}"' for other in _UNITS if other != unit)
        raise DataError(
            f"{path}: column {column.name}: none of {len(column)} values is a time in {_UNITS[unit]} between 1970 and"
            f" 2100; set time.unit to {others} in the data card"
        )
    return np.where(good_N, second_N, 0).astype("int64"), ~good_N


def _moment(text: str) -> float:
    """Returns the Unix seconds of one ISO 8601 text (without a zone: UTC), NaN for any other text."""
    text = text.strip()
    if not _DATE.match(text):
        return math.nan
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
