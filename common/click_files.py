"""A click log's file -> the mapped columns as they stand in it; what they mean is for `common.clicks` to say."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq

from common.card import DataCard
from common.errors import DataError

_NULL_WORDS = ("nan", "NaN", "null", "NULL", "None", "<NA>", "NA", "N/A")  # what CSV writers put for no id


def read_file(path: Path, card: DataCard) -> tuple[pd.DataFrame, int]:
    """Returns the mapped columns of a CSV or Parquet file, and the number of malformed lines that were left out.

    Raises:
        DataError: when the file is missing, a folder, of an unknown kind, not readable, or lacks a mapped column.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one .csv or .parquet file")
    if not path.exists():
        raise DataError(f"{path}: no such file; mend data.path")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f'{path}: unknown kind "{path.suffix}"; give a .csv or .parquet file')
    try:
        return readers[path.suffix.lower()](path, card)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _require_columns(path: Path, present: list[str], card: DataCard) -> list[str]:
    """Returns the mapped columns, or raises a `DataError` that lists the missing and the present ones."""
    wanted = card.columns.names()
    missing = [name for name in wanted if name not in present]
    if missing:
        alone = len(present) == 1 and any(mark in present[0] for mark in ";\t|")
        mend = "separate the fields with commas" if alone else "mend the data card"
        raise DataError(f"{path}: no column {', '.join(missing)}; {mend}; the file has: {', '.join(present)}")
    return wanted


def _read_parquet(path: Path, card: DataCard) -> tuple[pd.DataFrame, int]:
    try:
        file = pq.ParquetFile(path)
        columns = _require_columns(path, file.schema_arrow.names, card)
        for name in columns:
            kind = file.schema_arrow.field(name).type
            if arrow.types.is_nested(kind) or arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
                raise DataError(f"{path}: column {name} holds {kind}; give text, numbers or times")
        # Nulls must not turn long integer ids into floats, which would merge users.
        return file.read(columns=columns).to_pandas(integer_object_nulls=True, ignore_metadata=True), 0
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet ({type(error).__name__}); export it again") from None


def _read_csv(path: Path, card: DataCard) -> tuple[pd.DataFrame, int]:
    malformed = 0
    try:
        # Texts, so that no id becomes a float and nothing is guessed from the first rows.
        raw = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""], encoding="utf-8-sig")
        if not isinstance(raw.index, pd.RangeIndex):  # the first line is longer than the header
            raw, malformed = _read_ragged_csv(path)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: is empty; give a file with a header and rows") from None
    except pd.errors.ParserError:
        raw, malformed = _read_ragged_csv(path)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    raw = raw[_require_columns(path, list(raw.columns), card)]
    ids = [name for name in (card.columns.user, card.columns.item) if name]
    return raw.assign(**{name: raw[name].mask(raw[name].isin(_NULL_WORDS)) for name in ids}), malformed


def _read_ragged_csv(path: Path) -> tuple[pd.DataFrame, int]:
    """Returns a CSV file without the lines that have more fields than its header, and their number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader)
            lines = [line for line in reader if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV: {error}; quote texts that hold commas or quotes") from None
    width = len(header)
    good = [line + [""] * (width - len(line)) for line in lines if len(line) <= width]
    frame = pd.DataFrame(good, columns=pd.Index(header), dtype="str")
    if not good:
        raise DataError(f"{path}: every line has more than the header's {width} fields; quote texts that hold commas")
    return frame.mask(frame == ""), len(lines) - len(good)
