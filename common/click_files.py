"""A click log's file -> the mapped columns as they stand in it; what they mean is for `common.clicks` to say.

Differential privacy per user needs that no user's rows change how those of another are read. So each line of a CSV file
is parsed alone, and of a Parquet file only the schema decides how a cell is read.
"""

import codecs
import csv
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq

from common.card import DataCard
from common.errors import DataError

_NULL_WORDS = ("nan", "NaN", "null", "NULL", "None", "<NA>", "NA", "N/A")  # what CSV writers put for no id
NOT_UTF8 = "line not UTF-8"
NOT_FIELDS = "not a line of the header's fields"


def read_file(path: Path, card: DataCard, *, sensitive: bool = False) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the mapped columns of a CSV or Parquet file, and how many lines were left out for which reason.

    Args:
        path: the file.
        card: which column plays which role.
        sensitive: take the sensitive columns along, which must be there; else they are left where they are.

    Raises:
        DataError: when the file is missing, a folder, of an unknown kind, not readable, or lacks a column that is asked
            for or has it twice.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one .csv or .parquet file")
    if not path.exists():
        raise DataError(f"{path}: no such file; mend data.path, or clicks in worker.toml or server.toml")
    wanted = [*card.columns.names(), *(card.sensitive.columns if sensitive else ())]
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f'{path}: unknown kind "{path.suffix}"; give a .csv or .parquet file')
    try:
        return readers[path.suffix.lower()](path, card, wanted)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _require_columns(path: Path, present: list[str], wanted: list[str]) -> None:
    """Raises a `DataError` that lists the missing and the present columns."""
    missing = [name for name in wanted if name not in present]
    if missing:
        alone = len(present) == 1 and any(mark in present[0] for mark in ";\t|")
        mend = "separate the fields with commas" if alone else "mend the data card"
        raise DataError(f"{path}: no column {', '.join(missing)}; {mend}; the file has: {', '.join(present)}")
    twice = [name for name in wanted if present.count(name) > 1]
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} is there more than once; rename all but one")


def _read_parquet(path: Path, _card: DataCard, columns: list[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    try:
        file = pq.ParquetFile(path)
        _require_columns(path, file.schema_arrow.names, columns)
        for name in columns:
            kind = _value_kind(file.schema_arrow.field(name).type)
            if arrow.types.is_nested(kind) or arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
                raise DataError(f"{path}: column {name} holds {kind}; give text, numbers or times")
        table = file.read(columns=columns)
        plain = arrow.table({name: _plain(table.column(name)) for name in columns})
        # Nulls must not turn long integer ids into floats, which would merge users.
        return plain.to_pandas(integer_object_nulls=True), {}
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet ({type(error).__name__}); export it again") from None


def _value_kind(kind: arrow.DataType) -> arrow.DataType:
    return kind.value_type if arrow.types.is_dictionary(kind) else kind


def _plain(column: arrow.ChunkedArray) -> arrow.ChunkedArray:
    """Returns a column in the type from which pandas reads any value: it refuses all for one odd date, time or text."""
    kind = _value_kind(column.type)
    column = column.cast(kind) if kind != column.type else column
    if arrow.types.is_date(kind) or arrow.types.is_time(kind):
        return column.cast(arrow.string())
    if arrow.types.is_timestamp(kind):
        return column.cast(arrow.timestamp(kind.unit))  # with a zone: as UTC
    if arrow.types.is_duration(kind):
        return column.cast(arrow.int64())
    return _valid_text(column) if arrow.types.is_string(kind) or arrow.types.is_large_string(kind) else column


def _valid_text(column: arrow.ChunkedArray) -> arrow.ChunkedArray:
    """Returns a column of text in which cells that are not UTF-8 are null."""
    try:
        column.validate(full=True)
    except arrow.ArrowInvalid:
        cells = [_decoded(cell) for cell in column.cast(arrow.large_binary()).to_pylist()]
        return arrow.chunked_array([arrow.array(cells, type=column.type)])
    return column


def _decoded(cell: bytes | None) -> str | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return None


def _read_csv(path: Path, card: DataCard, columns: list[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the mapped columns as texts (nothing is guessed from other rows) and the lines left out; blank = null."""
    lines = [line for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines() if line]
    if not lines:
        raise DataError(f"{path}: is empty; give a file with a header and rows")
    header = _header(path, lines[0])
    _require_columns(path, header, columns)
    rows, lost = _parsed(lines[1:], len(header))
    if lost and not rows:
        if NOT_UTF8 in lost:
            raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8")
        mend = "quote texts that hold commas or quotes, and leave no line break in them"
        raise DataError(f"{path}: none of {len(lines) - 1} lines has the header's {len(header)} fields; {mend}")
    raw = pd.DataFrame({name: _column(rows, header.index(name)) for name in columns})
    ids = [name for name in (card.columns.user, card.columns.item, *card.sensitive.columns) if name in raw]
    return raw.assign(**{name: raw[name].mask(raw[name].isin(_NULL_WORDS)) for name in ids}), lost


def _header(path: Path, line: bytes) -> list[str]:
    """Returns the columns' names, or raises a `DataError`."""
    try:
        header = _fields(line.decode())
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    if not header:
        raise DataError(f"{path}: the first line is not a header; quote names that hold commas or quotes")
    return header


def _parsed(lines: list[bytes], width: int) -> tuple[list[list[str]], dict[str, int]]:
    """Returns the fields of each line that has `width` of them, and the number of other lines per reason."""
    rows: list[list[str]] = []
    lost = {NOT_UTF8: 0, NOT_FIELDS: 0}
    for line in lines:
        try:
            fields = _fields(line.decode())
        except UnicodeDecodeError:
            lost[NOT_UTF8] += 1
            continue
        if len(fields) == width:
            rows.append(fields)
        else:
            lost[NOT_FIELDS] += 1
    return rows, {reason: count for reason, count in lost.items() if count}


def _fields(line: str) -> list[str]:
    """Returns the fields of one line, none if it is not CSV. Alone: one reader for all would carry a quote on."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader((line,), strict=True))
    except csv.Error:
        return []


def _column(rows: list[list[str]], place: int) -> "pd.Series[str]":
    return pd.Series([row[place] or None for row in rows], dtype="str")
