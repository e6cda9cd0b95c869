"""What messages are written as: named scalars and named arrays, each of exactly the type that is declared.

With `common.messages` and `common.stage_messages` the only files that spell record keys.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.errors import ProtocolError

_FIELDS = "hushclick.fields"
_ARRAYS = "hushclick.arrays"
_RAW = "numpy.raw"  # how arrays are written: their bytes, without a header


def pack(scalars: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None) -> RecordDict:
    """Returns a record of scalar fields and named arrays."""
    record = RecordDict({_FIELDS: ConfigRecord(scalars)})
    if arrays:
        record[_ARRAYS] = ArrayRecord(
            {
                name: Array(dtype=array.dtype.str, shape=tuple(array.shape), stype=_RAW, data=array.tobytes())
                for name, array in arrays.items()
            }
        )
    return record


def scalars_of(record: RecordDict, types: dict[str, type], with_array: bool = False) -> dict[str, Any]:
    """Returns the scalar fields, all there and of exactly the declared types, of a record that holds nothing else."""
    expected = {_FIELDS, _ARRAYS} if with_array else {_FIELDS}
    found = record.config_records.get(_FIELDS)
    if set(record) != expected or found is None:
        raise ProtocolError(f"a message with the records {sorted(record)}, expected {sorted(expected)}")
    values: dict[str, Any] = dict(found)
    if set(values) != set(types):
        raise ProtocolError(f"a message with the fields {sorted(values)}, expected {sorted(types)}")
    for name, kind in types.items():
        if type(values[name]) is not kind:
            raise ProtocolError(f"field {name}: {type(values[name]).__name__}, expected {kind.__name__}")
        if kind is list and not all(type(item) is str for item in values[name]):
            raise ProtocolError(f"field {name}: expected a list of str only")
    return values


def peek(record: RecordDict, name: str) -> Any:
    """Returns one scalar of a record that may be of any shape; None where it is not there."""
    found = record.config_records.get(_FIELDS)
    return None if found is None else found.get(name)


def array_of(record: RecordDict, name: str, dtype: str, dimensions: int = 1) -> NDArray[Any]:
    """Returns the one array of a message, of exactly the declared name, type and number of dimensions."""
    found = record.array_records.get(_ARRAYS)
    if found is None or set(found) != {name}:
        raise ProtocolError(f"a message with the arrays {sorted(found or ())}, expected {name}")
    array = found[name]
    if (array.dtype, array.stype, len(array.shape)) != (dtype, _RAW, dimensions):
        raise ProtocolError(
            f"array {name}: {array.dtype} {array.shape} as {array.stype}, expected {dtype} in {dimensions} dimensions"
            f" as {_RAW}"
        )
    # In Python's integers: a shape of a peer's choice must not wrap.
    expected = math.prod(array.shape) * np.dtype(dtype).itemsize
    if any(type(size) is not int or size < 0 for size in array.shape) or len(array.data) != expected:
        raise ProtocolError(f"array {name}: {len(array.data)} bytes, expected {expected}")
    try:
        return np.frombuffer(array.data, dtype).reshape(array.shape).copy()
    except ValueError:  # no bytes, yet a size that numpy cannot hold
        raise ProtocolError(f"array {name}: a shape of {array.shape}") from None


def bytes_of(record: RecordDict, names: Collection[str], optional: Collection[str] = ()) -> dict[str, bytes]:
    """Returns the arrays of a message that are plain bytes, of exactly these names, and of the optional ones."""
    found = record.array_records.get(_ARRAYS)
    if found is None or set(found) - set(optional) != set(names):
        raise ProtocolError(f"a message with the arrays {sorted(found or ())}, expected {sorted(names)}")
    for name, array in found.items():
        if (array.dtype, array.stype) != ("|u1", _RAW) or array.shape != (len(array.data),):
            raise ProtocolError(f"array {name}: {array.dtype} {array.shape} as {array.stype}, expected bytes as {_RAW}")
    return {name: bytes(array.data) for name, array in found.items()}
