"""Flower's records <-> the pieces of `worker.proto`: a head that says what is there, then the bytes.

Neither side trusts the other: sizes are bounded before anything is held, and what is announced must come, to the byte.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.rpc.worker_pb2 import Array as ArrayHead
from client.rpc.worker_pb2 import Field, Head, Piece, Refusal, Section, Texts
from common.errors import ProtocolError

VERSION = 1
PART_BYTES = 2**20
_RAW = "numpy.raw"
_PLAIN = {int: "whole", float: "number", str: "text", bool: "flag"}


def pieces_of(record: RecordDict, message_type: str = "") -> Iterator[Piece]:
    """Returns a question of a type, or an answer where the type is empty.

    Raises:
        ProtocolError: for values that the contract has no word for.
    """
    body: list[bytes] = []
    head = Head(version=VERSION, type=message_type)
    for name, part in record.items():
        head.sections.append(_section(name, part, body))
    yield Piece(head=head)
    for data in body:
        view = memoryview(data)
        for start in range(0, len(view), PART_BYTES):
            yield Piece(body=bytes(view[start : start + PART_BYTES]))


def refusal_pieces(code: int, text: str) -> Iterator[Piece]:
    """Returns an answer that refuses."""
    yield Piece(head=Head(version=VERSION, refusal=Refusal(code=code, text=text)))


def read_pieces(pieces: Iterable[Piece], most_bytes: int) -> tuple[Head, RecordDict]:
    """Returns the head and the record that it announces.

    Raises:
        ProtocolError: for another version, more than `most_bytes`, and where head and bytes do not fit each other.
    """
    stream = iter(pieces)
    first = next(stream, Piece())
    if first.WhichOneof("piece") != "head":
        raise ProtocolError("a message of the worker's contract begins with its head")
    head = first.head
    if head.version != VERSION:
        raise ProtocolError(
            f"version {head.version} of the worker's contract, this is version {VERSION}: install the same release of"
            " hushclick for client and worker"
        )
    expected = sum(field.num_bytes for section in head.sections for field in section.fields)
    expected += sum(array.num_bytes for section in head.sections for array in section.arrays)
    if expected > most_bytes:
        raise ProtocolError(f"a message of {expected} bytes: at most {most_bytes}")
    body = _Body(stream, expected)
    record = _record(head, body)
    body.require_end()
    return head, record


class _Body:
    """The bytes of a message, handed out in order as they come: of no more than one field are there two copies."""

    def __init__(self, stream: Iterator[Piece], expected: int) -> None:
        self._stream, self._expected = stream, expected
        self._came, self._left = 0, memoryview(b"")

    def take(self, count: int) -> bytes:
        """Returns the next bytes.

        Raises:
            ProtocolError: where fewer come, or something else than bytes.
        """
        parts: list[memoryview] = []
        while count:
            if not self._left and not self._next():
                raise self._unlike()
            part, self._left = self._left[:count], self._left[count:]
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def require_end(self) -> None:
        """Raises `ProtocolError` where more bytes come than the head announces."""
        if self._left or self._next():
            raise self._unlike()

    def _next(self) -> bool:
        """Takes the next piece that is not empty; returns whether there was one."""
        for piece in self._stream:
            if piece.WhichOneof("piece") != "body":
                raise ProtocolError("a second head in one message")
            self._left = memoryview(piece.body)
            self._came += len(self._left)
            if self._left:
                return True
        return False

    def _unlike(self) -> ProtocolError:
        return ProtocolError(f"a message of {self._came} bytes or more, its head announces {self._expected}")


def _section(name: str, part: Any, body: list[bytes]) -> Section:
    section = Section(name=name)
    if isinstance(part, ArrayRecord):
        for key, array in part.items():
            section.arrays.append(ArrayHead(name=key, dtype=array.dtype, shape=array.shape, num_bytes=len(array.data)))
            body.append(array.data)
        return section
    if not isinstance(part, ConfigRecord):
        raise ProtocolError(f"record {name}: {type(part).__name__}, the worker's contract has fields and arrays only")
    for key, value in part.items():
        section.fields.append(_field(key, value, body))
    return section


def _field(name: str, value: Any, body: list[bytes]) -> Field:
    if isinstance(value, bytes):
        body.append(value)
        return Field(name=name, num_bytes=len(value))
    if isinstance(value, list) and all(type(item) is str for item in value):
        return Field(name=name, texts=Texts(text=value))
    kind = _PLAIN.get(type(value))
    if kind is None or (kind == "whole" and not -(2**63) <= value < 2**63):
        raise ProtocolError(f"field {name}: a value of type {type(value).__name__} that the worker's contract lacks")
    return Field(name=name, **{kind: value})


def _record(head: Head, body: _Body) -> RecordDict:
    record = RecordDict()
    for section in head.sections:
        if section.name in record:
            raise ProtocolError(f"record {section.name}: twice in one message")
        record[section.name] = _arrays(section, body) if section.arrays else _fields(section, body)
    return record


def _arrays(section: Section, body: _Body) -> ArrayRecord:
    if section.fields:
        raise ProtocolError(f"record {section.name}: fields and arrays in one")
    found = {
        array.name: Array(dtype=array.dtype, shape=tuple(array.shape), stype=_RAW, data=body.take(array.num_bytes))
        for array in section.arrays
    }
    if len(found) != len(section.arrays):
        raise ProtocolError(f"record {section.name}: an array twice")
    return ArrayRecord(found)


def _fields(section: Section, body: _Body) -> ConfigRecord:
    found = {field.name: _value(field, body) for field in section.fields}
    if len(found) != len(section.fields):
        raise ProtocolError(f"record {section.name}: a field twice")
    return ConfigRecord(found)


def _value(field: Field, body: _Body) -> Any:
    kind = field.WhichOneof("value")
    if kind is None:
        raise ProtocolError(f"field {field.name}: without a value")
    if kind == "num_bytes":
        return body.take(field.num_bytes)
    return list(field.texts.text) if kind == "texts" else getattr(field, kind)
