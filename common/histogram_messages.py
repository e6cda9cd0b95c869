"""The messages of noised histograms, of items and of scores; `common.records` spells their keys.

| message | type | who -> whom | what it holds |
|---|---|---|---|
| `HistogramTask` | query.histogram, with a `MaskTask` | server -> client | public catalogue, release, grid |
| `ReleaseTask` | query.release | server -> client | a release: the noisy sums; answered by an empty record |
| `EvaluationTask` | query.evaluate, with a `MaskTask` | server -> client | the global model, bins, grid |

A partner's noisy vector travels masked, like every contribution, and under a session of its own (`common.schedule`).

Legend: D parameters.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from common.config import EvaluationConfig, ModelConfig, PrivacyConfig
from common.errors import ConfigError, ProtocolError
from common.histogram import CATEGORY_WEIGHT, IMPRESSION_WEIGHT, TOTAL_WEIGHT, Catalogue
from common.records import array_of, bytes_of, pack, scalars_of
from common.scorehistogram import terms_of
from common.secagg.transcript import digest

LEAST_GRID_BITS, MOST_GRID_BITS = 12, 24  # under the least, Skellam noise is not accounted for as it is here


def terms_hash(model: ModelConfig, privacy: PrivacyConfig, shares: int) -> bytes:
    """Returns the hash of what must be the same at all partners of a histogram, in every mode.

    One sum is made of all vectors, so centre and clip are one for all; and what the sum's noise is must be known.

    Args:
        model: whose prior click rate is the centre.
        privacy: a partner's own.
        shares: parts of the noise.
    """
    numbers = struct.pack(
        "<ddd", privacy.statistics_noise_multiplier or 0.0, privacy.statistics_clip, model.prior_click_rate
    )
    weights = struct.pack("<ddd", IMPRESSION_WEIGHT, CATEGORY_WEIGHT, TOTAL_WEIGHT)
    return digest("statistics", privacy.mode, privacy.unit, numbers, weights, shares)


@dataclass(frozen=True)
class HistogramTask:
    """Asks for one noisy, clipped histogram over the users of a partner.

    Attributes:
        run_id: of the session in which it is summed.
        number: of the release in its run, from 0.
        grid_bits: a vector of length `privacy.statistics_clip` has length 2^grid_bits.
        catalogue: public.

    Raises:
        ProtocolError: for a value out of range, or what is no catalogue.
    """

    run_id: str
    number: int
    grid_bits: int
    catalogue: Catalogue = field(repr=False)

    round = 0  # in its session

    def __post_init__(self) -> None:
        if not 0 <= self.number < 2**31:
            raise ProtocolError(f"number = {self.number} of a histogram: must be from 0 to 2^31 - 1")
        _require_grid(self.grid_bits)

    @property
    def length(self) -> int:
        """Entries of a partner's vector."""
        return self.catalogue.length

    @cached_property
    def _catalogue_hash(self) -> bytes:
        return digest("public catalogue", len(self.catalogue.items), *self.catalogue.items, *self.catalogue.categories)

    def hashes(self, shared: bytes) -> tuple[bytes, bytes]:
        """Returns the hash of the catalogue, and that of all else that partners must have in common.

        Args:
            shared: `terms_hash`.
        """
        return self._catalogue_hash, digest("histogram", self.number, self.grid_bits, shared)

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        scalars = {"run_id": self.run_id, "number": self.number, "grid_bits": self.grid_bits}
        lists = {"items": list(self.catalogue.items), "categories": list(self.catalogue.categories)}
        return pack({**scalars, **lists})

    @classmethod
    def from_record(cls, record: RecordDict) -> "HistogramTask":
        """Returns the message in a record, or raises `ProtocolError`."""
        types = {"run_id": str, "number": int, "grid_bits": int, "items": list, "categories": list}
        values = scalars_of(record, types)
        try:
            catalogue = Catalogue(tuple(values.pop("items")), tuple(values.pop("categories")))
        except ConfigError as error:
            raise ProtocolError(str(error)) from None
        return cls(**values, catalogue=catalogue)


def score_terms_hash(
    model: ModelConfig, privacy: PrivacyConfig, evaluation: EvaluationConfig, shares: int, told: bytes
) -> bytes:
    """Returns the hash of what must be the same at all partners of a histogram of scores, in every mode.

    Args:
        model: whose prior click rate scores are measured against.
        privacy: a partner's own.
        evaluation: what it holds out.
        shares: parts of the noise.
        told: hash of what the partners were told to make features with; empty where that is nothing.
    """
    terms = terms_of(evaluation, privacy, model.prior_click_rate)
    noise = (privacy.evaluation_noise_multiplier or 0.0) if privacy.noised else privacy.flip_probability
    numbers = struct.pack("<dddd", noise, terms.clip, terms.prior, evaluation.user_share or 0.0)
    since = "" if evaluation.from_time is None else str(evaluation.from_time)
    counts = terms.bins, terms.max_rows, shares
    return digest("scores", privacy.mode, privacy.unit, numbers, since, evaluation.key, told, *counts)


@dataclass(frozen=True)
class EvaluationTask:
    """Asks for one noisy, clipped histogram of a model's scores of the rows that a partner holds out.

    Attributes:
        run_id: of the session in which it is summed; it says after which round of which run.
        grid_bits: a vector as long as its clip has length 2^grid_bits; without a clip a row counts 1.
        bins: of the histogram.
        fingerprint: of the model's layout.
        model_D: the global model, float32.

    Raises:
        ProtocolError: for a value out of range.
    """

    run_id: str
    grid_bits: int
    bins: int
    fingerprint: str
    model_D: NDArray[np.float32] = field(repr=False)

    round = 0  # in its session

    def __post_init__(self) -> None:
        if not 1 <= self.bins < 2**16:
            raise ProtocolError(f"bins = {self.bins} of a histogram: must be from 1 to 2^16 - 1")
        _require_grid(self.grid_bits)

    @property
    def length(self) -> int:
        """Entries of a partner's vector."""
        return 2 * self.bins

    def hashes(self, shared: bytes) -> tuple[bytes, bytes]:
        """Returns the hash of the global weights, and that of all else that partners must have in common.

        Args:
            shared: `score_terms_hash`.
        """
        model = hashlib.sha256(self.model_D.astype("<f4", copy=False).data).digest()
        return digest("model", model), digest("evaluation", self.fingerprint, self.bins, self.grid_bits, shared)

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return pack({name: getattr(self, name) for name in _EVALUATION_FIELDS}, {"model": self.model_D})

    @classmethod
    def from_record(cls, record: RecordDict) -> "EvaluationTask":
        """Returns the message in a record, or raises `ProtocolError`."""
        values = scalars_of(record, _EVALUATION_FIELDS, with_array=True)
        return cls(**values, model_D=array_of(record, "model", "<f4"))


_EVALUATION_FIELDS: dict[str, type] = {"run_id": str, "grid_bits": int, "bins": int, "fingerprint": str}


def _require_grid(bits: int) -> None:
    if not LEAST_GRID_BITS <= bits <= MOST_GRID_BITS:
        raise ProtocolError(f"grid_bits = {bits} of a histogram: must be from {LEAST_GRID_BITS} to {MOST_GRID_BITS}")


@dataclass(frozen=True)
class ReleaseTask:
    """Hands a partner a release, which the features of the coming rounds are made with.

    Attributes:
        run_id: of the run that trains with it.
        release: the bytes of `common.itemrates.Release`.
    """

    run_id: str
    release: bytes

    def to_record(self) -> RecordDict:
        """Returns the message as a record."""
        return pack({"run_id": self.run_id}, {"release": np.frombuffer(self.release, np.uint8)})

    @classmethod
    def from_record(cls, record: RecordDict) -> "ReleaseTask":
        """Returns the message in a record, or raises `ProtocolError`."""
        run_id = scalars_of(record, {"run_id": str}, with_array=True)["run_id"]
        return cls(run_id, bytes_of(record, {"release"})["release"])
