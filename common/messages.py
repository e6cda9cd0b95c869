"""One frozen dataclass per message, with `to_record` and `from_record`; `common.records` spells their keys.

| message | type | who -> whom | what it holds |
|---|---|---|---|
| `JoinTask` | query.join | server -> client | run id |
| `JoinReply` | | client -> server | name, declared users, fingerprint, heads it can label, anchor, card hash |
| `AnchorTask` | query.anchor | server -> client | the last anchor of its ledger; answered by an empty record |
| `StatisticsTask` | query.statistics | server -> client | item catalogue (only without privacy) |
| `StatisticsReply` | | client -> server | clicks and impressions per item |
| `CatalogueTask` | query.catalogue | server -> client | the summed item counts; answered by an empty record |
| `TrainTask` | train.update | server -> client | run, round, attempt, training plan, global model |
| `TrainReply` | | client -> server | one contribution, anchor |
| `ModelTask` | query.model | server -> client | run id, the signed model's files; answered by an empty record |

A record that does not decode is a `ProtocolError`: a peer's mistake, never a crash. Arrays travel as little-endian
bytes with explicit dtype and shape.
"""

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from common.anchors import require_anchor
from common.config import PrivacyConfig
from common.contribution import Contribution, LocalDelta, NoisedStep
from common.errors import ProtocolError
from common.lineage import MODEL_FILES, STATISTICS
from common.records import array_of, bytes_of, pack, peek, scalars_of
from common.secagg.transcript import digest

PROTOCOL_VERSION = 2  # of all messages; said at the join, before any other field is looked at

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile("[0-9a-f]{64}|")


def _counts(record: RecordDict) -> NDArray[np.float64]:
    """Returns clicks and impressions per item, [2, items]: finite, none negative, no more clicks than impressions."""
    counts_2I = array_of(record, "counts", "<f8", 2)
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


def require_protocol(found: Any, peer: str, own: str) -> None:
    """Raises `ProtocolError`, which names both versions and who must be upgraded, unless a peer's protocol is ours."""
    if type(found) is int and found == PROTOCOL_VERSION:
        return
    if found is not None and type(found) is not int:
        raise ProtocolError(f"protocol = {found!r:.20}: must be a whole number")
    said = 0 if found is None else found  # releases that said none spoke what is called 0 here
    old, new = (peer, own) if said < PROTOCOL_VERSION else (own, peer)
    raise ProtocolError(
        f"{peer} speaks protocol {said}, {own} speaks {PROTOCOL_VERSION}: upgrade hushclick of {old} to the release of"
        f" {new}"
    )


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
        return pack({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        return cls(**scalars_of(record, _types(cls)))


@dataclass(frozen=True)
class JoinTask(_Flat):
    """Asks who is there, before any model is sent."""

    run_id: str
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise ProtocolError(
                f"run {self.run_id!r:.80}: a run's id is 1 to 64 letters, digits, dashes and underscores"
            )

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`; of another protocol it reads nothing else."""
        if peek(record, "run_id") is not None:  # else it is no such message of any version
            require_protocol(peek(record, "protocol"), "the server", "this partner")
        return super().from_record(record)


@dataclass(frozen=True)
class JoinReply(_Flat):
    """What a partner says of itself: all of it public by the partner's own decision."""

    partner: str
    declared_users: int
    fingerprint: str
    has_purchases: bool
    roster: str  # hash (hex) of the roster that it pinned; empty without secure aggregation
    anchor: str = ""  # blinded commitment to the head of its ledger; empty before the first record
    card: str = ""  # hash (hex) of what its data card says, which is which column plays which role, and of no click
    base: str = ""  # hash (hex) of the base weights, their configuration and tokenizer; `fingerprint` covers it
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        require_anchor(self.anchor)
        for name in ("card", "base"):
            if not _HASH.fullmatch(value := getattr(self, name)):
                raise ProtocolError(f"{name} = {value!r:.80}: 64 hex digits are needed, or none")

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        name = peek(record, "partner")
        if type(name) is str:
            require_protocol(peek(record, "protocol"), f"{name:.80}", "the server")
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
        return pack({"run_id": self.run_id, "catalogue": list(self.catalogue)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = scalars_of(record, {"run_id": str, "catalogue": list})
        return cls(values["run_id"], tuple(values["catalogue"]))


@dataclass(frozen=True)
class StatisticsReply:
    """Clicks and impressions per catalogue item, float64 [2, items]."""

    counts_2I: NDArray[np.float64]

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return pack({}, {"counts": self.counts_2I})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        scalars_of(record, {}, with_array=True)
        return cls(_counts(record))


@dataclass(frozen=True)
class CatalogueTask:
    """Tells a partner the summed item counts which its features are to use; answered by an empty record."""

    run_id: str
    catalogue: tuple[str, ...]
    counts_2I: NDArray[np.float64]

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return pack({"run_id": self.run_id, "catalogue": list(self.catalogue)}, {"counts": self.counts_2I})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = scalars_of(record, {"run_id": str, "catalogue": list}, with_array=True)
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
        return pack(scalars, {"model": self.model_D})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = scalars_of(record, _TRAIN_FIELDS | _types(TrainingPlan), with_array=True)
        plan = TrainingPlan(**{name: values.pop(name) for name in _types(TrainingPlan)})
        return cls(**values, plan=plan, model_D=array_of(record, "model", "<f4"))


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
        return pack({"round": self.round, **scalars, "anchor": self.anchor}, {"body": body_D})

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        values = scalars_of(record, {"round": int, "kind": str, "weight": float, "anchor": str}, with_array=True)
        number, anchor = values["round"], values["anchor"]
        if values["kind"] == "local_delta":
            delta_D = array_of(record, "body", "<f4")
            return cls(number, LocalDelta(delta_D, values["weight"]), anchor)
        if values["kind"] == "noised_step":
            if not values["weight"].is_integer():
                raise ProtocolError(f"weight = {values['weight']} of a noised step: must be a whole number")
            return cls(number, NoisedStep(array_of(record, "body", "<i8"), int(values["weight"])), anchor)
        raise ProtocolError(f"a contribution of kind {values['kind']!r}: must be local_delta or noised_step")


@dataclass(frozen=True)
class ModelTask:
    """Hands a partner the run's final model, with its lineage and the signature over that.

    Attributes:
        files: name -> bytes, of exactly the files of a signed model; nothing of it is believed before its signature.
    """

    run_id: str
    files: dict[str, bytes]

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in self.files.items()}
        return pack({"run_id": self.run_id}, arrays)

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message in a record, or raises `ProtocolError`."""
        run_id = scalars_of(record, {"run_id": str}, with_array=True)["run_id"]
        return cls(run_id, bytes_of(record, MODEL_FILES, optional={STATISTICS}))
