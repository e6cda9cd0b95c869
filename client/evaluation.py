"""A partner's part of the evaluation: scores of the rows that it holds out, as one noised histogram.

What it is depends on the partner's own mode. "local" and "distributed": clipped vectors and Skellam noise, as in
`client.statistics`. "label": the clicks are flipped ones, so the counts cost no more than these. "none": counts.

Legend: N rows, D entries of a histogram.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.budget import Budget
from client.charging import charged_once, require_affordable
from client.distributed import MOST_DEVIATION, noised_sum, rounding_bound
from client.partner import PartnerConfig
from client.sent import SentFile
from client.training import Randomness
from client.userdata import HeldOutRows
from common.errors import ProtocolError
from common.histogram_messages import EvaluationTask, score_terms_hash
from common.model.click_model import ClickModel, with_text_states
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.releases import evaluation_event
from common.schedule import evaluated_in
from common.scorehistogram import ScoreTerms, gridded_scores, terms_of
from common.scoring import chunks, click_rates
from common.secagg.wire import SessionId

log = logging.getLogger("hushclick.partner")


class Host(Protocol):
    """What an evaluation needs of the partner's worker."""

    def held_out(self) -> HeldOutRows | None:
        """Returns the rows that are held out; None where there are none."""

    def loaded(self, task: EvaluationTask) -> ClickModel:
        """Returns the model of a task; raises `ProtocolError` for what this partner would not train from either."""

    def told(self) -> bytes:
        """Returns the hash of what features are made with, beside the rows."""

    def took_part(self, run_id: str) -> bool:
        """Returns whether this partner joined, or gave anything to, a run."""

    def flipped_labels(self) -> str:
        """Returns which flipped labels the log has, once it is read; empty where none are."""

    def count_failure(self) -> None:
        """Counts a time in which this partner could not read or score its rows."""


class Evaluations:
    """What a partner answers to an `EvaluationTask`: charged once, kept, and the same again to whoever asks again.

    Formal guarantees:
        - the ledger holds a release before a row is read for it; in mode "label", before anything but the labels of the
          log, which are flipped as they are read;
        - after one round of a run there is one histogram: the same model gets the same bytes, another is refused;
        - of a run there are `evaluation.releases` at most.

    Args:
        config: the partner's own.
        budget: the partner's own.
        ledger: the partner's own.
        host: its worker.
    """

    def __init__(self, config: PartnerConfig, budget: Budget, ledger: Ledger, host: Host) -> None:
        self._config, self._budget, self._ledger, self._host = config, budget, ledger, host
        self.terms = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate)

    @property
    def shared(self) -> bytes:
        """Hash of what must be the same at all partners of a histogram."""
        config = self._config
        return score_terms_hash(config.model, config.privacy, config.evaluation, config.noise_shares, self._host.told())

    def room(self, run_id: str) -> Sequence[DpEvent]:
        """Returns the releases of a run that are still to come: what training must leave in the budget."""
        evaluation, privacy = self._config.evaluation, self._config.privacy
        if not (evaluation.by_partners and privacy.noised):
            return ()
        left = evaluation.releases - len(self._rounds(run_id))
        return [self._event(SessionId(run_id, 0, 0))] * left

    def require_affordable(self, session: SessionId) -> None:
        """Refuses to begin what the budget does not hold: better now than after others have sent theirs.

        Raises:
            BudgetExhausted: where it does not fit.
            ProtocolError: where this partner gives none.
        """
        self._require_allowed(session.run_id)
        if self._config.privacy.noised:
            sent = self._sent(session.run_id)
            require_affordable("evaluation", sent, session, self._budget, lambda: self._event(session))

    def contribution(self, task: EvaluationTask, session: SessionId) -> NDArray[np.int64]:
        """Returns this partner's noisy histogram [D]: what was sent before, or a reserved, made and persisted new one.

        Raises:
            BudgetExhausted: before any row is read, where the release would exceed the partner's budget.
            ProtocolError: where this partner has none to give, or the task is another than was answered.
        """
        self._require_allowed(task.run_id)
        if task.bins != self.terms.bins:
            raise ProtocolError(f"{task.bins} bins: this partner gives {self.terms.bins}")
        model = self._host.loaded(task)  # what cannot be scored must cost nothing
        grid, deviation = 2**task.grid_bits, self.part_deviation(task)
        bound = rounding_bound(task.length, self.terms.clip, grid)
        if deviation >= MOST_DEVIATION:
            raise ProtocolError(f"a grid of 2^{task.grid_bits}: noise on it would not fit; use fewer grid bits")
        after = (evaluated_in(task.run_id) or ("", 0))[1]  # a fixed seed gives runs of other ids the same noise
        noise = Randomness(self._config.privacy.fixed_seed, f"{self._config.name} evaluation", after).noise

        def make() -> NDArray[np.int64]:
            return score_histogram(self._host.held_out(), model, self.terms, bound, grid)

        return charged_once(
            task,
            self.shared,
            self._sent(task.run_id),
            self._budget,
            lambda: self._event(session),
            lambda: noised_sum(make, task.length, deviation, noise, self._host.count_failure),
        )

    def part_deviation(self, task: EvaluationTask) -> float:
        """Returns the standard deviation of this partner's noise in each entry, in whole numbers."""
        privacy = self._config.privacy
        noise: float = (privacy.evaluation_noise_multiplier or 0.0) if privacy.noised else 0.0
        return noise * 2.0**task.grid_bits / math.sqrt(self._config.noise_shares)

    def _event(self, session: SessionId) -> DpEvent:
        labels = self._host.flipped_labels()
        return evaluation_event(self._config.privacy, self.terms.clip, self._config.noise_shares, session, labels)

    def _require_allowed(self, summed_as: str) -> None:
        evaluation, found = self._config.evaluation, evaluated_in(summed_as)
        if not evaluation.by_partners:
            raise ProtocolError('this partner evaluates nothing (its evaluation.at is not "partners")')
        if found is None or evaluated_in(found[0]) or not self._host.took_part(found[0]):
            raise ProtocolError(f"an evaluation in {summed_as!r:.60}: of no run that this partner took part in")
        run_id, number = found
        rounds = self._rounds(run_id)
        if number not in rounds and len(rounds) >= evaluation.releases:
            raise ProtocolError(
                f"an evaluation after round {number}: this partner gives {evaluation.releases} a run"
                " (evaluation.releases), and gave them"
            )

    def _rounds(self, run_id: str) -> set[int]:
        """Returns after which rounds of a run the ledger has an evaluation."""
        found = [evaluated_in(event.run_id) for event in self._ledger.events() if event.purpose == "evaluation"]
        return {pair[1] for pair in found if pair is not None and pair[0] == run_id}

    def _sent(self, run_id: str) -> SentFile:
        return SentFile(Path(self._config.state), run_id)


def score_histogram(
    rows: HeldOutRows | None, model: ClickModel, terms: ScoreTerms, bound: float, grid: int
) -> NDArray[np.int64]:
    """Returns the histogram of a model's scores of held-out rows, int64 [D]; zeros where there are none."""
    if rows is None:
        return np.zeros(terms.length, np.int64)
    # One text and one user at a time: how a sum rounds depends on what else is in the batch, and could move others over
    # an edge.
    features = with_text_states(model, rows.features, alone=True)
    score_N = np.concatenate([click_rates(model, features, [row_M]) for row_M in chunks(rows.row_N, rows.user_N)])
    unfit = int((~np.isfinite(score_N)).sum())
    if unfit:
        log.warning("%d held-out rows have no finite score under this model, and count nothing", unfit)
    return gridded_scores(rows.clicked_N, score_N, rows.user_N, terms, bound, grid)
