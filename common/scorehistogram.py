"""What one user adds to the histogram of scores: held-out rows in public bins, clicked and not, clipped as a whole.

The bins cut what a score says beside the public prior click rate p into equal parts: a score s lies at
u = s (1 - p) / (s (1 - p) + (1 - s) p), in [0, 1]. For p = 1/2 they are equal in probability; a rare click gets bins as
fine, relative to its rate, as a common one. AUC needs no more than the order of bins, with a tie inside each; log loss
and calibration take a row's score to be its bin's middle, in u.

Legend: N rows, B bins, P pairs of a unit and a cell, D = 2B cells (clicked, then not).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import EvaluationConfig, PrivacyConfig

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreTerms:
    """What makes a unit's vector, beside its rows: public, and the same at all partners.

    Attributes:
        bins: of the histogram.
        prior: what scores are measured against (`model.prior_click_rate`).
        max_rows: of a user, the latest that are held out.
        clip: L2 bound on a unit's vector, in rows; 0 = none, and whole rows are counted: no noise is added to sums.
        by_rows: every row is a unit by itself.
    """

    bins: int
    prior: float
    max_rows: int
    clip: float
    by_rows: bool = False

    @property
    def length(self) -> int:
        """D: entries of a vector."""
        return 2 * self.bins

    @property
    def most_weight(self) -> float:
        """The most that all rows of a user can count together: a user of M rows, clipped, has weight C sqrt(M)."""
        if self.by_rows or not self.clip:
            return float(self.max_rows)
        return float(min(self.max_rows, self.clip * self.max_rows**0.5))

    @property
    def middle_B(self) -> Float:
        """The score in the middle of each bin."""
        u_B = (np.arange(self.bins) + 0.5) / self.bins
        return u_B * self.prior / (u_B * self.prior + (1 - u_B) * (1 - self.prior))

    def bins_of(self, score_N: Float) -> Int:
        """Returns the bin of each score in [0, 1]."""
        over_N = score_N * (1 - self.prior)
        u_N = over_N / (over_N + (1 - score_N) * self.prior)
        return np.minimum((u_N * self.bins).astype(np.int64), self.bins - 1)


def terms_of(evaluation: EvaluationConfig, privacy: PrivacyConfig, prior: float) -> ScoreTerms:
    """Returns the terms of a policy.

    Where the unit is a training row, each row's vector has length 1, so that is its clip. In mode "label" a row's click
    is flipped and everything else public, and in mode "none" nothing is private: rows are counted whole.
    """
    by_rows = privacy.unit == "impression"
    clip = 0.0 if not privacy.noised else 1.0 if by_rows else privacy.evaluation_clip
    most = min(evaluation.max_rows, privacy.units_per_user) if by_rows else evaluation.max_rows
    return ScoreTerms(evaluation.bins, prior, most, clip, by_rows)


def latest(user_N: Int, most: int) -> NDArray[np.bool_]:
    """Returns which rows, in the order of users, then times, are among their user's latest so many."""
    stop_N = np.searchsorted(user_N, user_N, side="right")
    return stop_N - np.arange(len(user_N)) <= most


def gridded_scores(
    clicked_N: NDArray[np.bool_], score_N: Float, user_N: Int, terms: ScoreTerms, bound: float, grid: int
) -> Int:
    """Returns the sum over units of their clipped, scaled and rounded vectors, int64 [D].

    Formal guarantees:
        - a unit's vector, rounded, has a length of `grid` at most, however many rows it has and whatever their scores
          are: with `bound` = `client.distributed.rounding_bound(D, clip, grid)`;
        - it is a function of that unit's rows alone; a score that is not finite counts nothing.

    Args:
        clicked_N: labels.
        score_N: probabilities.
        user_N: whose rows they are, as numbers from 0.
        terms: public.
        bound: L2 bound before scaling and rounding.
        grid: length, in whole numbers, of a vector of length `terms.clip`; without a clip a row counts 1.
    """
    fine_N = np.isfinite(score_N)
    cell_N = terms.bins_of(score_N[fine_N]) + terms.bins * ~clicked_N[fine_N]
    if not terms.clip:
        return np.bincount(cell_N, minlength=terms.length).astype(np.int64)
    unit_N = np.arange(len(cell_N)) if terms.by_rows else user_N[fine_N]
    pair_P, rows_P = np.unique(unit_N * terms.length + cell_N, return_counts=True)
    unit_P, cell_P = np.divmod(pair_P, terms.length)
    length_U = np.sqrt(np.bincount(unit_P, rows_P.astype(np.float64) ** 2))
    scaled_P = rows_P * _factors(length_U, bound)[unit_P] * (grid / terms.clip)
    # Whole numbers under 2^53 add up exactly in float64, in any order.
    return np.bincount(cell_P, np.rint(scaled_P), terms.length).astype(np.int64)


def _factors(length_U: Float, bound: float) -> Float:
    # Rounded towards zero, so that no vector exceeds the bound by rounding; who has a row has a length of 1 at least.
    return np.minimum(1.0, bound * (1 - 1e-12) / np.maximum(length_U, 1.0))
