"""The stages of secure aggregation as Flower records; with `common.messages` the only file that spells record keys.

| message | type | server -> client | client -> server |
|---|---|---|---|
| ADVERTISE | query.advertise | `AdvertiseTask` | `Advertised` |
| REVEAL | query.reveal | `RevealTask` | `Coin` |
| SHARE | query.share | `ShareTask` | `Shares` |
| MASK | train.mask or query.mask | `MaskTask` and a `TrainTask` or `StatisticsTask` | masked body and `Upload` |
| CONSISTENCY | query.confirm | `ConfirmTask` | `Confirmation`, where all of U2 survive with the shares of UNMASK |
| UNMASK | query.unmask | `UnmaskTask` | `Revealed` |

A message of the next round can ride along in any of them (`with_ahead`), and so can its answer: in steady state a round
takes two round trips, and three where somebody fell silent before its masked body came.
"""

import types
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.anchors import require_anchor
from common.errors import ProtocolError
from common.message_types import QUERY_ADVERTISE, QUERY_REVEAL, QUERY_SHARE
from common.secagg.transcript import pack_numbers
from common.secagg.wire import (
    NUMBER_BYTES,
    Advertisement,
    ConfirmTask,
    MaskTask,
    Revealed,
    RevealTask,
    SessionId,
    Shares,
    ShareTask,
    UnmaskTask,
    Upload,
    parts_of,
)

_STAGE = "hushclick.stage"
_AHEAD = "hushclick.ahead"
_KIND = "kind"
_BODY = "hushclick.body"
_RAW = "numpy.raw"
_WORDS = "<u4"


@dataclass(frozen=True)
class AdvertiseTask:
    """Asks for fresh keys.

    Attributes:
        local_steps: steps of the round to come, so that a partner whose budget does not hold them says so now.
    """

    session: SessionId
    local_steps: int


@dataclass(frozen=True)
class Advertised:
    """One advertisement, 164 bytes."""

    advertisement: bytes

    def parsed(self) -> Advertisement:
        """Returns it taken apart, or raises `ProtocolError`."""
        return Advertisement.from_bytes(self.advertisement)


@dataclass(frozen=True)
class Coin:
    """One participant's coin for drawing groups, 32 bytes."""

    coin: bytes


@dataclass(frozen=True)
class Confirmation:
    """One consistency signature, 64 bytes, what the server keeps of the signer's ledger, and shares if asked for.

    Attributes:
        anchor: blinded commitment to the head of the ledger; empty before its first record.
        owners, shares, bad_dealers: as in `Revealed`; empty where the task did not ask for them.
    """

    signature: bytes
    anchor: str = ""
    owners: tuple[int, ...] = ()
    shares: bytes = field(default=b"", repr=False)
    bad_dealers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_anchor(self.anchor)

    @property
    def revealed(self) -> Revealed:
        """Returns the shares as UNMASK would have given them."""
        return Revealed(self.owners, self.shares, self.bad_dealers)


Ahead = AdvertiseTask | Advertised | RevealTask | Coin | ShareTask | Shares
_AHEAD_KINDS: dict[str, type[Ahead]] = {
    kind.__name__: kind for kind in (AdvertiseTask, Advertised, RevealTask, Coin, ShareTask, Shares)
}
TYPE_OF: dict[type[Ahead], str] = {
    AdvertiseTask: QUERY_ADVERTISE,
    RevealTask: QUERY_REVEAL,
    ShareTask: QUERY_SHARE,
}
ANSWER_TO: dict[type[Ahead], type[Ahead]] = {AdvertiseTask: Advertised, RevealTask: Coin, ShareTask: Shares}

M = TypeVar("M")


def stage_record(message: Any, base: RecordDict | None = None) -> RecordDict:
    """Returns a record that holds a stage's message, beside what `base` holds."""
    record = RecordDict(dict(base or {}))
    record[_STAGE] = ConfigRecord(_flat(message))
    return record


def stage_of(kind: type[M], record: RecordDict, alone: bool = True) -> M:
    """Returns the stage's message in a record, or raises `ProtocolError`; `alone`: the record holds nothing else."""
    if _STAGE not in record or (alone and set(record) != {_STAGE}):
        raise ProtocolError(f"a message with the records {sorted(record)}, expected {_STAGE}")
    return _rich(kind, record[_STAGE])


def without_stage(record: RecordDict) -> RecordDict:
    """Returns what a record holds beside the stage's message."""
    return RecordDict({name: part for name, part in record.items() if name != _STAGE})


def with_ahead(record: RecordDict, message: Ahead) -> RecordDict:
    """Returns the record with a message of the next round riding along."""
    combined = RecordDict(dict(record))
    combined[_AHEAD] = ConfigRecord(_flat(message) | {_KIND: type(message).__name__})
    return combined


def take_ahead(record: RecordDict) -> tuple[RecordDict, Ahead | None]:
    """Returns the record without the message that rides along, and that message, if there is one."""
    if _AHEAD not in record:
        return record, None
    content = record[_AHEAD]
    rest = RecordDict({name: part for name, part in record.items() if name != _AHEAD})
    if not isinstance(content, ConfigRecord) or str(content.get(_KIND)) not in _AHEAD_KINDS:
        raise ProtocolError("a message of the next round of an unknown kind")
    fields_only = ConfigRecord({name: value for name, value in content.items() if name != _KIND})
    return rest, _rich(_AHEAD_KINDS[str(content[_KIND])], fields_only)


def upload_record(pieces: Iterable[bytes], upload: Upload) -> RecordDict:
    """Returns the masked body, in pieces of little-endian uint32, and what ends it; nothing is copied."""
    arrays = {
        f"{place:06d}": Array(dtype=_WORDS, shape=(len(piece) // 4,), stype=_RAW, data=piece)
        for place, piece in enumerate(pieces)
    }
    return stage_record(upload, RecordDict({_BODY: ArrayRecord(arrays)}))


def upload_of(record: RecordDict) -> tuple[list[NDArray[np.uint32]], Upload]:
    """Returns the pieces of a masked body in order, without copying them, and what ends it."""
    body = record.array_records.get(_BODY)
    if set(record) != {_STAGE, _BODY} or body is None:
        raise ProtocolError(f"a masked body with the records {sorted(record)}, expected {sorted((_STAGE, _BODY))}")
    pieces = []
    for place, (name, array) in enumerate(body.items()):
        if name != f"{place:06d}" or array.dtype != _WORDS or array.stype != _RAW or len(array.data) % 4:
            raise ProtocolError(f"piece {place} of a masked body: {array.dtype} as {array.stype}, expected {_WORDS}")
        words = np.frombuffer(array.data, _WORDS)
        if array.shape != (len(words),):
            raise ProtocolError(f"piece {place} of a masked body: a shape of {array.shape} for {len(words)} words")
        pieces.append(words)
    return pieces, stage_of(Upload, record, alone=False)


def _flat(message: Any) -> dict[str, Any]:
    """Returns a message's fields as values that a record can hold; numbers of participants as packed bytes."""
    values: dict[str, Any] = {}
    for each in fields(message):
        value = getattr(message, each.name)
        if isinstance(value, SessionId):
            values |= {"run_id": value.run_id, "round": value.round, "attempt": value.attempt}
        else:
            values[each.name] = pack_numbers(value) if isinstance(value, tuple) else value
    return values


_SESSION: dict[str, type] = {"run_id": str, "round": int, "attempt": int}


def _rich(kind: type[M], record: Any) -> M:
    """Returns the message of a kind, every field there and of exactly its type, or raises `ProtocolError`."""
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"a {kind.__name__} that is not a record of fields")
    hints = get_type_hints(kind)
    expected: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        expected |= _SESSION if hints[each.name] is SessionId else {each.name: hints[each.name]}
    if set(record) != set(expected):
        raise ProtocolError(f"a {kind.__name__} with the fields {sorted(record)}, expected {sorted(expected)}")
    values = {name: _value(name, record[name], hint) for name, hint in expected.items()}
    if "session" in hints:
        values["session"] = SessionId(*(values.pop(name) for name in _SESSION))
    return kind(**values)


def _value(name: str, value: Any, hint: Any) -> Any:
    numbers = isinstance(hint, types.GenericAlias)  # tuple[int, ...]
    wanted = bytes if numbers else hint
    if type(value) is not wanted:
        raise ProtocolError(f"field {name}: {type(value).__name__}, expected {wanted.__name__}")
    if not numbers:
        return value
    return tuple(int.from_bytes(part, "little") for part in parts_of(value, NUMBER_BYTES, name))


__all__ = [
    "ANSWER_TO",
    "TYPE_OF",
    "AdvertiseTask",
    "Advertised",
    "Ahead",
    "Coin",
    "ConfirmTask",
    "Confirmation",
    "MaskTask",
    "RevealTask",
    "Revealed",
    "ShareTask",
    "Shares",
    "UnmaskTask",
    "Upload",
    "stage_of",
    "stage_record",
    "take_ahead",
    "upload_of",
    "upload_record",
    "with_ahead",
    "without_stage",
]
