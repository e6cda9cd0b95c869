"""What the server's loop holds between rounds.

Legend: D parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from common.config import Config
from common.contribution import LocalDelta, NoisedStep
from common.model.click_model import ClickModel
from common.runfolder import RunFolder
from server.course import Course
from server.evaluation import HeldOut
from server.histograms import Histograms
from server.optimiser import ServerOptimiser
from server.partnerevaluation import PartnerEvaluation
from server.secure import SecureAggregator
from server.trackers import Trackers

Watch = Callable[[int, NDArray[np.float32], NDArray[np.float64]], None]


@dataclass
class Coordinator:
    """What the loop holds between rounds."""

    config: Config
    folder: RunFolder
    run_id: str
    nodes: dict[str, int]  # partner -> node id
    weights: dict[str, float]  # partner -> public weight in (0, 1]
    declared_users: dict[str, int]  # partner -> what it publishes of its size
    cards: dict[str, str]  # partner -> hash of its data card
    key: Ed25519PrivateKey = field(repr=False)  # signs the final model
    model: ClickModel
    layout: str
    heldout: HeldOut | None  # None = the operator has no clicks: partners alone evaluate
    optimiser: ServerOptimiser
    course: Course
    global_D: NDArray[np.float32]
    round: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)
    aggregator: SecureAggregator | None = None  # None = plain
    starts: int = 0  # how often the run's server was started before
    histograms: Histograms | None = None  # private statistics, where the model's features are made with them
    evaluation: PartnerEvaluation | None = None  # histograms of scores, where partners evaluate
    counts_told: bytes = b""  # hash of exact item counts, where features are made with them
    watch: Watch | None = None  # an audit's eyes
    trackers: Trackers = field(init=False, repr=False)

    @property
    def told(self) -> bytes:
        """Hash of what partners were told to make features with."""
        return self.histograms.shared if self.histograms else self.counts_told

    @property
    def kind(self) -> type[LocalDelta] | type[NoisedStep]:
        """What the partners contribute."""
        return NoisedStep if self.config.privacy.mode == "distributed" else LocalDelta
