"""The messages of the private statistics; `common.records` spells their keys.

| message | type | who -> whom | what it holds |
|---|---|---|---|
| `HistogramTask` | query.histogram, with a `MaskTask` | server -> client | public catalogue, release, grid |
| `ReleaseTask` | query.release | server -> client | a release: the noisy sums; answered by an empty record |

A partner's noisy vector travels masked, like every contribution, and under a session of its own (`common.schedule`).
"""

import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from flwr.app import RecordDict

from common.config import ModelConfig, PrivacyConfig
from common.errors import ConfigError, ProtocolError
from common.histogram import CATEGORY_WEIGHT, IMPRESSION_WEIGHT, TOTAL_WEIGHT, Catalogue
from common.records import bytes_of, pack, scalars_of
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
        if not LEAST_GRID_BITS <= self.grid_bits <= MOST_GRID_BITS:
            raise ProtocolError(
                f"grid_bits = {self.grid_bits} of a histogram: must be from {LEAST_GRID_BITS} to {MOST_GRID_BITS}"
            )

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
