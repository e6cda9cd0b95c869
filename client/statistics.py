"""A partner's part of the private statistics: its users' clipped vectors, summed, with Skellam noise.

Source: Agarwal, Kairouz, Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning", algorithm 1,
with every user in it (sampling rate 1) and one step; why the vector is what it is: `common.histogram`.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.budget import Budget
from client.charging import charged_once, require_affordable
from client.distributed import MOST_DEVIATION, noised_sum, rounding_bound
from client.partner import PartnerConfig
from client.sent import SentFile
from client.training import Randomness
from common.errors import ProtocolError
from common.histogram import Catalogue, Terms, counted, gridded_histogram
from common.histogram_messages import HistogramTask, terms_hash
from common.privacy.events import DpEvent
from common.privacy.releases import statistics_event
from common.secagg.wire import SessionId

log = logging.getLogger("hushclick.partner")


@dataclass(frozen=True)
class HistogramStep:
    """What one histogram needs to be private.

    Attributes:
        catalogue: public.
        terms: of a user's vector.
        grid: length, in whole numbers, of a vector of length `terms.clip`.
        noise_multiplier: of all parts together, over the clip; 0 only in tests.
        shares: honest partners whose parts are in every sum; 1 where each partner adds the whole noise.
    """

    catalogue: Catalogue
    terms: Terms
    grid: int
    noise_multiplier: float
    shares: int

    @property
    def part_deviation(self) -> float:
        """Standard deviation of this partner's noise, in whole numbers."""
        return self.noise_multiplier * self.grid / math.sqrt(self.shares)


def noised_histogram(
    data: Callable[[], pd.DataFrame],
    step: HistogramStep,
    generator: np.random.Generator,
    failed: Callable[[], None] = lambda: None,
) -> NDArray[np.int64]:
    """Returns the clipped, scaled and rounded histogram of all users with this partner's noise, int64 [D].

    Formal guarantees:
        - one user more or less changes it before noise by at most `grid` in L2, rounding included, whatever the user's
          rows hold, short of making the log unreadable: then the whole partner's sum is 0, and its own log says why;
        - the parts of `shares` partners have together at least the variance (noise_multiplier x grid)^2.

    Raises:
        ConfigError: for a grid so coarse that rounding alone could exceed the clip.
    """
    bound = rounding_bound(step.catalogue.length, step.terms.clip, step.grid)

    def histogram() -> NDArray[np.int64]:
        rows = data()
        sum_D = gridded_histogram(rows, step.catalogue, step.terms, bound, step.grid)
        outside = len(rows) - int(counted(rows, step.catalogue).sum())
        if outside:
            log.info("%d of %d rows are in no statistics: their items are not in the catalogue", outside, len(rows))
        return sum_D

    return noised_sum(histogram, step.catalogue.length, step.part_deviation, generator, failed)


class Histograms:
    """What a partner answers to a `HistogramTask`: charged once, kept, and the same again to whoever asks again.

    Formal guarantees:
        - the ledger holds a release before any row is read for it;
        - a retry gets the same noisy vector and is charged once.

    Args:
        config: the partner's own.
        budget: the partner's own.
        data: reads its users' rows.
        failed: called where they cannot be read.
    """

    def __init__(
        self,
        config: PartnerConfig,
        budget: Budget,
        data: Callable[[], pd.DataFrame],
        failed: Callable[[], None],
    ) -> None:
        self._config, self._budget, self._data, self._failed = config, budget, data, failed

    @property
    def shared(self) -> bytes:
        """Hash of what must be the same at all partners of a histogram."""
        return terms_hash(self._config.model, self._config.privacy, self._config.noise_shares)

    def require_affordable(self, session: SessionId) -> None:
        """Refuses to begin what the budget does not hold: better now than after others have sent theirs.

        Raises:
            BudgetExhausted: with what it would be for.
        """
        self._require_private()
        sent = self._sent(session.run_id)
        require_affordable("release of statistics", sent, session, self._budget, lambda: self._event(session))

    def contribution(self, task: HistogramTask, session: SessionId) -> NDArray[np.int64]:
        """Returns this partner's noisy histogram: what was sent before, or a reserved, made and persisted new one.

        Raises:
            BudgetExhausted: before any row is read, where the release would exceed the partner's budget.
            ProtocolError: where this partner has none to give, or the task is another than was answered.
        """
        self._require_private()
        step, sent = self.step(task), self._sent(task.run_id)
        rounding_bound(step.catalogue.length, step.terms.clip, step.grid)  # what cannot be made must cost nothing
        if step.part_deviation >= MOST_DEVIATION:
            raise ProtocolError(f"a grid of 2^{task.grid_bits}: noise on it would not fit; use fewer grid bits")
        noise = Randomness(self._config.privacy.fixed_seed, f"{self._config.name} statistics {task.number}", 0).noise
        return charged_once(
            task,
            self.shared,
            sent,
            self._budget,
            lambda: self._event(session),
            lambda: noised_histogram(self._data, step, noise, self._failed),
        )

    def _event(self, session: SessionId) -> DpEvent:
        return statistics_event(self._config.privacy, self._config.noise_shares, session)

    def step(self, task: HistogramTask) -> HistogramStep:
        """Returns the histogram that a task asks for, under this partner's own terms."""
        privacy = self._config.privacy
        return HistogramStep(
            catalogue=task.catalogue,
            terms=Terms(self._config.model.prior_click_rate, privacy.statistics_clip),
            grid=2**task.grid_bits,
            noise_multiplier=privacy.statistics_noise_multiplier or 0.0,
            shares=self._config.noise_shares,
        )

    def _sent(self, run_id: str) -> SentFile:
        return SentFile(Path(self._config.state), run_id)

    def _require_private(self) -> None:
        if self._config.model.item_rates != "private":
            raise ProtocolError('this partner gives no statistics (its model.item_rates is not "private")')
