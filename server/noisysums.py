"""One histogram, summed over all partners in a session of its own; what is common to statistics and evaluation.

Legend: D entries of a histogram.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.anchors import AnchorFile
from common.config import Config
from common.errors import BudgetExhausted, TooFewPartners
from common.histogram_messages import LEAST_GRID_BITS, EvaluationTask, HistogramTask
from common.noise_shares import noise_shares
from common.runfolder import RunFolder
from common.secagg.parameters import RING
from common.secagg.roster import Roster
from server.journal import Journal
from server.secure import SecureAggregator
from server.sums import Collected, total_of

_TRIES = 3  # of one start of the server, at one histogram
_NOISE_DEVIATIONS = 12.0  # that the ring keeps free for noise


@dataclass(frozen=True)
class Summed:
    """A sum of partners' histograms.

    Attributes:
        sum_D: whole numbers, noisy.
        count: contributions in it.
    """

    sum_D: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class NoisySums:
    """Asks all partners of a run for histograms.

    Attributes:
        grid: Flower's.
        config: of the run.
        folder: of the run.
        run_id: of the run.
        nodes: partner -> node id.
        roster: of the run.
        starts: how often the run's server was started before.
        what: they are for, in messages.
    """

    grid: Grid
    config: Config
    folder: RunFolder
    run_id: str
    nodes: Mapping[str, int]
    roster: Roster
    starts: int
    what: str

    def collect(self, task: HistogramTask | EvaluationTask, shared: bytes, home: Path, last_round: int) -> Summed:
        """Returns a sum: one that a server before this one had all but finished, or a new one.

        Args:
            task: what is asked.
            shared: hash of what partners have in common.
            home: where the journal of this sum lies.
            last_round: of the run, when partners are asked: their ledgers' anchors are kept under it.

        Raises:
            BudgetExhausted: where too few partners have budget left for it.
            TooFewPartners: where it does not come about.
        """
        least, collected = self.config.aggregation.min_partners, self._collected(task, shared, home)
        AnchorFile(self.folder.anchors).append(self.run_id, last_round, collected.anchors)
        if not collected.sums and len(self.nodes) - len(collected.exhausted) < least:
            raise BudgetExhausted(
                f"{self.what}: {len(collected.exhausted)} of {len(self.nodes)} partners have no budget left for it"
            )
        try:
            sum_D = total_of(collected, least).astype(np.int64)
        except TooFewPartners as error:
            failures = "; ".join(sorted(set(collected.failures.values()))[:3])
            raise TooFewPartners(f"{self.what}: {error}{f' ({failures})' if failures else ''}") from None
        return Summed(sum_D, collected.sums[0].count)

    def end(self, home: Path) -> None:
        """Lets the journal of a sum go, once the sum is written down."""
        Journal(home).end()

    def _collected(self, task: HistogramTask | EvaluationTask, shared: bytes, home: Path) -> Collected:
        config = self.config
        home.mkdir(parents=True, exist_ok=True)
        numbers = {self.roster.number(partner): node for partner, node in self.nodes.items()}
        aggregator = SecureAggregator(
            self.grid,
            config.aggregation,
            self.roster,
            numbers,
            task.run_id,
            self.starts,
            Journal(home),
            shared,
            integers=True,
        )
        collected = aggregator.finish_journal(0)
        for _ in range(_TRIES):
            if collected is not None and (collected.sums or collected.exhausted):
                break
            collected = aggregator.collect(0, list(self.nodes), lambda *_: task, task.length, local_steps=0)
        return collected or Collected()

    def deviation(self, noise_multiplier: float | None, contributors: int) -> float:
        """Returns the deviation of the noise in a sum over so many partners, over the clip: each adds one part."""
        return (noise_multiplier or 0.0) * math.sqrt(contributors / noise_shares(self.config))


def grid_bits(most: int, users: float, deviation: float) -> int:
    """Returns the bits of the grid with which a sum over so many users cannot wrap, whatever they click.

    Over half a million users there is none so fine; the least is then used, with which a sum could wrap only if an
    item had half a million clips more of clicks than not, or the other way round.

    Args:
        most: `privacy.grid_bits`.
        users: that are declared; real ones may be a few more.
        deviation: of the noise, over the clip.
    """
    clips = 1.1 * users + _NOISE_DEVIATIONS * deviation
    return max(LEAST_GRID_BITS, min(most, math.floor(math.log2(RING / 2 / clips))))
