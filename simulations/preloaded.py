"""Clicks that several runs of one process share: read, partitioned and turned into features once.

The workers are the deployed ones in all but where their features come from, and the features are the ones that each
would have made itself: they are kept under the hash of the very bytes that it would read.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.desk import place_worker
from client.partner import PartnerConfig
from client.worker import Worker
from common.config import Config, ModelConfig
from common.features import UserRows
from common.runfolder import RunFolder
from simulations.prepare import RunData

Key = tuple[str, str, str, ModelConfig]


@dataclass
class FeatureStore:
    """The features of click logs, by what they are made from; a repr shows none."""

    _kept: dict[Key, UserRows] = field(default_factory=dict, repr=False)

    def features(self, key: Key, make: Callable[[], UserRows]) -> UserRows:
        """Returns the features under a key, made where they are not known; those of other models are let go."""
        if key not in self._kept:
            self._kept = {known: rows for known, rows in self._kept.items() if known[2:] == key[2:]}
            self._kept[key] = make()
        return self._kept[key]


class PreloadedWorker(Worker):
    """The deployed worker, except that it takes its features from a store where they are known."""

    def __init__(self, config: PartnerConfig, store: FeatureStore) -> None:
        super().__init__(config)
        self._store = store

    def _load(self) -> UserRows:
        told = self._known_counts() is not None or self._known_release() is not None
        # Told anew in each run, or not the log as it is: fewer rows, or flipped labels.
        fewer = self.erased.mark() or self.config.evaluation.by_partners
        if told or fewer or self.config.privacy.mode == "label":
            return super()._load()
        clicks, card = _sha256(self.config.clicks), _sha256(self.config.card)
        model = replace(self.config.model, device="auto", device_memory=1.0)  # features are the same everywhere
        return self._store.features((clicks, card, self._pretrained.fingerprint, model), super()._load)


@dataclass(frozen=True)
class SharedClicks:
    """What `simulate` takes in the place of reading: the clicks of a configuration, and features made so far."""

    data: RunData
    store: FeatureStore

    def place_workers(self, config: Config, folder: RunFolder) -> None:
        """Gives every partner of a prepared run folder a worker that knows the store."""
        for number in range(config.data.partners):
            place_worker(folder.partner(number), lambda partner: PreloadedWorker(partner, self.store))


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
