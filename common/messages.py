"""One frozen dataclass per message, with `to_record` and `from_record`; the only file that spells record keys.

| message | type | who -> whom | what it holds |
|---|---|---|---|
| `JoinTask` | query.join | server -> client | run id |
| `JoinReply` | | client -> server | partner name, users it declares, fingerprint it has, heads it can label, anchor |
| `AnchorTask` | query.anchor | server -> client | the last anchor of its ledger; answered by an empty record |
| `StatisticsTask` | query.statistics | server -> client | item catalogue (only without privacy) |
| `StatisticsReply` | | client -> server | clicks and impressions per item |
| `CatalogueTask` | query.catalogue | server -> client | the summed item counts; answered by an empty record |
| `TrainTask` | train.update | server -> client | run, round, attempt, training plan, global model |
| `TrainReply` | | client -> server | one contribution, anchor |

A record that does not decode is a `ProtocolError`: a peer's mistake, never a crash. Arrays travel as little-endian
bytes with explicit dtype and shape.
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.anchors import require_anchor
from common.config import PrivacyConfig
from common.contribution import Contribution, LocalDelta, NoisedStep
from common.errors import ProtocolError
from common.secagg.transcript import digest

_FIELDS = "hushclick.fields"
_ARRAYS = "hushclick.arrays"
_RAW = "numpy.raw"  # how arrays are written: their bytes, without a header


def _pack(scalars: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None) -> RecordDict:
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


def _scalars(record: RecordDict, types: dict[str, type], with_array: bool = False) -> dict[str, Any]:
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


def _array(record: RecordDict, name: str, dtype: str, dimensions: int = 1) -> NDArray[Any]:
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


def _counts(record: RecordDict) -> NDArray[np.float64]:
    """Returns clicks and impressions per item, [2, items]: finite, none negative, no more clicks than impressions."""
    counts_2I = _array(record, "counts", "<f8", 2)
    if len(counts_2I) != 2 or not np.isfinite(counts_2I).all() or not (counts_2I[1] >= counts_2I[0]).all():
        raise ProtocolError(f"counts of shape {counts_2I.shape}: two lines of finite numbers, clicks <= impressions")
    if counts_2I.min(initial=0.0) < 0:
        raise ProtocolError("counts below 0")
    return counts_2I


def counts_hash(counts: Mapping[str, tuple[float, float]]) -> bytes:
    """Returns the hash of item -> (clicks, impressions), in any order."""
    parts = [part for item in sorted(counts) for part in (item, struct.pack("<dd", *counts[item]))]
    return digest("item counts", *parts)


def shared_hash(item_counts: bytes, privacy: PrivacyConfig, shares: int) -> bytes:
    """Returns the hash of what must be the same at all partners of a round, beside the model and the plan.

    Args:
        item_counts: `counts_hash` of the summed item counts that features use; empty where they use none.
        privacy: a partner's own; in mode "distributed" noise, rate, clip, grid and rows are one for all, since together
            they make one step, and each relies on the others' part of the noise. In local mode they are each
            partner's own affair.
        shares: parts of the noise.
    """
    if privacy.mode != "distributed":
        return item_counts
    numbers = struct.pack("<ddd", privacy.sampling_rate, privacy.clip, privacy.noise_multiplier or 0.0)
    counts = privacy.grid_bits, privacy.max_impressions_per_user, shares
    return digest("shared", privacy.mode, privacy.unit, item_counts, numbers, *counts)


def _types(kind: type) -> dict[str, type]:
    """Returns field name -> type of a dataclass of scalars."""
    return {field.name: field.type for field in fields(kind)}  # type: ignore[misc]


@dataclass(frozen=True)
class TrainingPlan:
    """The public training configuration that all partners of a round share; nothing here loosens privacy."""

    local_steps: int
    client_optimiser: str
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        if self.local_steps < 1:
            raise ProtocolError(f"local_steps = {self.local_steps}: must be at least 1")
        if self.client_optimiser not in ("sgd", "adam"):
            raise ProtocolError(f"client_optimiser = {self.client_optimiser!r}: must be sgd or adam")
        if not (0 < self.learning_rate <= 1000 and 0 <= self.weight_decay < 1):
            raise ProtocolError("learning_rate must be over 0 and at most 1000, weight_decay in [0, 1)")


@dataclass(frozen=True)
class _Flat:
    """A message of scalars alone."""

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return _pack({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        return cls(**_scalars(record, _types(cls)))


@dataclass(frozen=True)
class JoinTask(_Flat):
    """Asks who is there, before any model is sent."""

    run_id: str


@dataclass(frozen=True)
class JoinReply(_Flat):
    """What a partner says of itself: all of it public by the partner's own decision."""

    partner: str
    declared_users: int
    fingerprint: str
    has_purchases: bool
    roster: str  # hash (hex) of the roster that it pinned; empty without secure aggregation
    anchor: str = ""  # blinded commitment to the head of its ledger; empty before the first record

    def __post_init__(self) -> None:
        require_anchor(self.anchor)

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        reply = super().from_record(record)
        if reply.declared_users < 1:
            raise ProtocolError(f"declared_users = {reply.declared_users}: must be at least 1")
        return reply


@dataclass(frozen=True)
class AnchorTask(_Flat):
    """Tells a partner the last anchor of its ledger that the server has; answered by an empty record."""

    run_id: str
    anchor: str

    def __post_init__(self) -> None:
        require_anchor(self.anchor)
        if not self.anchor:
            raise ProtocolError("an empty anchor: 64 hex digits are needed")


@dataclass(frozen=True)
class StatisticsTask:
    """Asks for exact clicks and impressions of a catalogue's items: answered only where privacy is off."""

    run_id: str
    catalogue: tuple[str, ...]

    def hashes(self, _shared: bytes) -> tuple[bytes, bytes]:
        """Returns the hash of the catalogue, and that of an empty configuration."""
        return digest("catalogue", *self.catalogue), digest("no plan")

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return _pack({"run_id": self.run_id, "catalogue": list(self.catalogue)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = _scalars(record, {"run_id": str, "catalogue": list})
        return cls(values["run_id"], tuple(values["catalogue"]))


@dataclass(frozen=True)
class StatisticsReply:
    """Clicks and impressions per catalogue item, float64 [2, items]."""

    counts_2I: NDArray[np.float64]

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return _pack({}, {"counts": self.counts_2I})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        _scalars(record, {}, with_array=True)
        return cls(_counts(record))


@dataclass(frozen=True)
class CatalogueTask:
    """Tells a partner the summed item counts which its features are to use; answered by an empty record."""

    run_id: str
    catalogue: tuple[str, ...]
    counts_2I: NDArray[np.float64]

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return _pack({"run_id": self.run_id, "catalogue": list(self.catalogue)}, {"counts": self.counts_2I})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = _scalars(record, {"run_id": str, "catalogue": list}, with_array=True)
        counts_2I = _counts(record)
        if counts_2I.shape != (2, len(values["catalogue"])):
            raise ProtocolError(f"counts of shape {counts_2I.shape} for {len(values['catalogue'])} items")
        return cls(values["run_id"], tuple(values["catalogue"]), counts_2I)


@dataclass(frozen=True)
class TrainTask:
    """Asks for one contribution to one attempt of one round.

    Attributes:
        round: from 1.
        attempt: from 0.
        weight: the partner's public weight, in (0, 1].
        model_D: the global model to start from, float32.

    Raises:
        ProtocolError: for a value out of range.
    """

    run_id: str
    round: int
    attempt: int
    weight: float
    fingerprint: str
    plan: TrainingPlan
    model_D: NDArray[np.float32]

    def hashes(self, shared: bytes) -> tuple[bytes, bytes]:
        """Returns the hash of the global weights and that of the public configuration: all partners must have these.

        A partner that trained from other weights, faster, or with features that its peers do not have would stand out
        from their sum.

        Args:
            shared: hash of what else must be the same at all partners (`shared_hash`).
        """
        plan = struct.pack("<dd", self.plan.learning_rate, self.plan.weight_decay)
        config = digest("plan", self.fingerprint, self.plan.local_steps, self.plan.client_optimiser, plan, shared)
        return digest("model", hashlib.sha256(self.model_D.astype("<f4", copy=False).data).digest()), config

    def __post_init__(self) -> None:
        if self.round < 1 or self.attempt < 0:
            raise ProtocolError(f"round {self.round}, attempt {self.attempt}: rounds start at 1, attempts at 0")
        if not 0 < self.weight <= 1:
            raise ProtocolError(f"weight = {self.weight}: must be over 0 and at most 1")

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        scalars = {name: getattr(self, name) for name in _TRAIN_FIELDS}
        scalars |= {field.name: getattr(self.plan, field.name) for field in fields(TrainingPlan)}
        return _pack(scalars, {"model": self.model_D})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = _scalars(record, _TRAIN_FIELDS | _types(TrainingPlan), with_array=True)
        plan = TrainingPlan(**{name: values.pop(name) for name in _types(TrainingPlan)})
        return cls(**values, plan=plan, model_D=_array(record, "model", "<f4"))


_TRAIN_FIELDS: dict[str, type] = {
    "run_id": str,
    "round": int,
    "attempt": int,
    "weight": float,
    "fingerprint": str,
}


@dataclass(frozen=True)
class TrainReply:
    """One partner's contribution; no count, loss or norm travels beside it."""

    round: int
    contribution: Contribution
    anchor: str = ""  # blinded commitment to the head of the sender's ledger

    def __post_init__(self) -> None:
        require_anchor(self.anchor)

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        if isinstance(self.contribution, LocalDelta):
            scalars = {"kind": "local_delta", "weight": float(self.contribution.weight)}
            body_D: NDArray[Any] = self.contribution.delta_D
        else:
            scalars = {"kind": "noised_step", "weight": float(self.contribution.declared_units)}
            body_D = self.contribution.sum_D
        return _pack({"round": self.round, **scalars, "anchor": self.anchor}, {"body": body_D})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = _scalars(record, {"round": int, "kind": str, "weight": float, "anchor": str}, with_array=True)
        number, anchor = values["round"], values["anchor"]
        if values["kind"] == "local_delta":
            delta_D = _array(record, "body", "<f4")
            return cls(number, LocalDelta(delta_D, values["weight"]), anchor)
        if values["kind"] == "noised_step":
            if not values["weight"].is_integer():
                raise ProtocolError(f"weight = {values['weight']} of a noised step: must be a whole number")
            return cls(number, NoisedStep(_array(record, "body", "<i8"), int(values["weight"])), anchor)
        raise ProtocolError(f"a contribution of kind {values['kind']!r}: must be local_delta or noised_step")
