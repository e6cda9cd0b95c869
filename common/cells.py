"""A raw column -> typed arrays and the mask of what cannot be read; numpy throughout, as partners' logs may be tiny.

N = rows in every array name. Texts are pandas "str" arrays with NaN for missing.
"""

import hashlib
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
_UNITS = {"seconds": "Unix seconds", "milliseconds": "Unix milliseconds", "iso": "ISO 8601"}

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def as_text(column: "pd.Series[Any]") -> "pd.Series[str]":
    """Returns values as text, whole floats without their ".0" (as user 12.0 is user 12)."""
    if isinstance(column.dtype, pd.StringDtype) and column.dtype.na_value is np.nan:
        return column
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return column.astype("str")


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
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        number_N = column.to_numpy(dtype="float64", na_value=np.nan)
    else:
        text = column.astype("str").str.strip().str.lower().replace({"true": "1", "false": "0"})
        number_N = pd.to_numeric(text, errors="coerce").to_numpy(dtype="float64")
    return np.where(np.isfinite(number_N), number_N, np.nan)


def as_clicks(column: "pd.Series[Any]", card: DataCard, path: Path) -> tuple[npt.NDArray[np.int8], Bools]:
    """Returns clicks as 0 or 1 (0 where not readable), and which values are not readable.

    Raises:
        DataError: when most values are numbers other than 0 and 1 and the card sets no threshold.
    """
    value_N = as_number(column)
    if card.click.threshold is not None:
        return (value_N >= card.click.threshold).astype("int8"), np.isnan(value_N)
    bad_N = not_zero_one(value_N)
    if (bad_N & ~np.isnan(value_N)).sum() * 2 > len(value_N):
        raise DataError(
            f"{path}: column {column.name} holds numbers from {np.nanmin(value_N):g} to {np.nanmax(value_N):g}, not 0"
            " or 1; set click.threshold in the data card"
        )
    return (value_N == 1).astype("int8"), bad_N


def not_zero_one(value_N: Floats) -> Bools:
    """Returns which numbers are neither 0 nor 1."""
    return ~np.isin(value_N, (0.0, 1.0))


def as_seconds(column: "pd.Series[Any]", unit: str, path: Path) -> tuple[Ints, Bools]:
    """Returns Unix seconds (0 where not readable), and which values are not readable as moments from 1970 to 2100.

    Raises:
        DataError: when no value is readable, or a column of timestamps comes with a numeric unit.
    """
    is_moment = pd.api.types.is_datetime64_any_dtype(column)
    if is_moment and unit != "iso":
        raise DataError(f'{path}: column {column.name} holds timestamps: set time.unit = "iso" in the data card')
    if unit == "iso":
        moments = column if is_moment else column.astype("str")
        since = pd.to_datetime(moments, utc=True, format="ISO8601", errors="coerce") - pd.Timestamp(0, tz="UTC")
        second_N = (since // pd.Timedelta(seconds=1)).to_numpy(dtype="float64", na_value=np.nan)
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
