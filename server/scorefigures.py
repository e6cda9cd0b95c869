"""From a noised histogram of scores to figures with intervals: post-processing of what the secure sum gave.

Nothing is clipped at zero before it is summed up. A negative count is noise that went down, as likely as up; cut off,
every empty bin would count for something. AUC is a ratio of sums of products: of clicked and unclicked counts, whose
noises are independent, so that numerator and denominator are right on average as they are. In mode "label" a flip that
adds a click takes a row from the others, and what that adds to the products on average is known and taken out.

Intervals come from drawing the noise again, whose scale is known, around what was released. `noise_intervals` cover
that noise alone: where the same figure of the same rows lies, counted without it. `intervals` also cover that other
users could have been held out. Of these the server knows no more than the most that one user's rows count, so the worst
case is taken, in which each user has that many and all say the same: they are too wide, never too narrow.

Legend: B bins, S draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.scorehistogram import ScoreTerms

Float = NDArray[np.float64]

FIGURES = ("auc", "ne", "log_loss", "calibration_ratio", "base_rate", "ece")
_DRAWS = 2000
_SURE = 4.0  # deviations of its noise that a total must be over before it is divided by
_ECE_BINS = 15  # as `common.metrics.ece`
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Scores:
    """Clicked and unclicked rows per bin as the sum says, noise included.

    Attributes:
        rows_2B: as released, in rows; of clicks that are flipped still.
        deviation: of the noise in each entry, in rows.
        terms: of the vectors that were summed.
        flip_probability: with which each click was flipped; 0 = none was.
    """

    rows_2B: Float
    deviation: float
    terms: ScoreTerms
    flip_probability: float = 0.0

    @property
    def counts_2B(self) -> Float:
        """Clicked and unclicked rows, with flips taken back on average."""
        total_B, clicked_B = self.rows_2B.sum(0), self.rows_2B[0]
        clicked_B = (clicked_B - self.flip_probability * total_B) / (1 - 2 * self.flip_probability)
        return np.stack([clicked_B, total_B - clicked_B])

    @property
    def flipped_B(self) -> Float:
        """Variance that flips leave in a bin's clicks; what they add to these they take from the others."""
        flips = self.flip_probability
        flipped_B: Float = np.maximum(self.rows_2B.sum(0), 0.0) * flips * (1 - flips) / (1 - 2 * flips) ** 2
        return flipped_B

    @property
    def certain(self) -> bool:
        """Whether clicks and others stand out from their noise, so that figures can be made of them."""
        noise = np.sqrt(self.terms.bins * self.deviation**2 + self.flipped_B.sum())
        return bool((self.counts_2B.sum(1) > _SURE * noise).all())


def partner_figures(scores: Scores, seed: int) -> dict[str, Any]:
    """Returns every figure with two 95 % intervals; None for all where the noise drowns them.

    Args:
        scores: of a model.
        seed: of the draws; public.
    """
    told: dict[str, Any] = {
        "rows": float(scores.counts_2B.sum()),
        "noise_rows": scores.deviation,
        "bins": scores.terms.bins,
        "certain": scores.certain,
    }
    if not scores.certain:
        return told | dict.fromkeys(FIGURES) | {"intervals": {}, "noise_intervals": {}}
    generator = np.random.default_rng(seed)
    noise_S2B = _noise(scores, generator)
    sampling_S2B = noise_S2B + _sampling(scores, generator)
    values = _values(scores)
    told |= {name: _finite(value) for name, value in values.items()}
    told["intervals"] = _intervals(scores, values, sampling_S2B)
    told["noise_intervals"] = _intervals(scores, values, noise_S2B)
    return told


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _values(scores: Scores) -> dict[str, float]:
    counts_S2B, flipped_B, middle_B = scores.counts_2B[None], scores.flipped_B, scores.terms.middle_B
    found = {name: float(of(counts_S2B, flipped_B, middle_B)[0]) for name, of in _SMOOTH.items()}
    found["ece"] = float(np.abs(_gaps(scores, counts_S2B)).sum() / counts_S2B.sum())
    return found


def _noise(scores: Scores, generator: np.random.Generator) -> Float:
    """Returns draws of what noise and flips do to the counts, [S, 2, B]."""
    shape = _DRAWS, 2, scores.terms.bins
    noise_S2B = generator.normal(0.0, scores.deviation, shape)
    flips_SB = generator.normal(0.0, 1.0, (shape[0], shape[2])) * np.sqrt(scores.flipped_B)
    return noise_S2B + np.stack([flips_SB, -flips_SB], axis=1)


def _sampling(scores: Scores, generator: np.random.Generator) -> Float:
    """Returns draws of what other users would do to the counts, [S, 2, B].

    A figure's linear part is a sum over users of their rows' worths; that of a user whose rows weigh at most w together
    has a variance of at most w times the sum of the squares (Cauchy and Schwarz), which is what independent counts of
    variance w x count give.
    """
    spread_2B = np.sqrt(scores.terms.most_weight * np.maximum(scores.counts_2B, 0.0))
    return generator.normal(0.0, 1.0, (_DRAWS, *spread_2B.shape)) * spread_2B


def _intervals(scores: Scores, values: dict[str, float], drawn_S2B: Float) -> dict[str, list[float]]:
    """Returns the 95 % intervals: what a draw adds to a figure is what the release may have added to it."""
    counts_S2B, middle_B = scores.counts_2B + drawn_S2B, scores.terms.middle_B
    found = {}
    for name, of in _SMOOTH.items():
        moved_S = of(counts_S2B, 2 * scores.flipped_B, middle_B) - values[name]  # flips drawn again, beside those there
        low, high = np.percentile(moved_S[np.isfinite(moved_S)], _TAILS) if np.isfinite(moved_S).any() else (0.0, 0.0)
        found[name] = _within(values[name] - high, values[name] - low, _MOST[name])
    # What noise adds to a sum of absolute values is at most the sum of its own: right also where they are all zero.
    most = float(np.percentile(np.abs(_gaps(scores, drawn_S2B)).sum(1), 95.0)) / float(scores.counts_2B.sum())
    found["ece"] = _within(values["ece"] - most, values["ece"] + most, 1.0)
    return {name: pair for name, pair in found.items() if np.isfinite(pair).all()}


def _within(low: float, high: float, most: float) -> list[float]:
    return [float(np.clip(low, 0.0, most)), float(np.clip(high, 0.0, most))]


Figure = Callable[[Float, Float, Float], Float]


def _auc(counts_S2B: Float, flipped_B: Float, _middle_B: Float) -> Float:
    """Returns the chance that a clicked row outscores one that was not, ties one half, float64 [S]."""
    clicked_SB, other_SB = counts_S2B[:, 0], counts_S2B[:, 1]
    below_SB = np.cumsum(other_SB, axis=1) - other_SB / 2
    wins_S = (clicked_SB * below_SB).sum(1) + flipped_B.sum() / 2
    pairs_S = clicked_SB.sum(1) * other_SB.sum(1) + flipped_B.sum()
    auc_S: Float = _over(wins_S, pairs_S)
    return auc_S


def _base_rate(counts_S2B: Float, _flipped_B: Float, _middle_B: Float) -> Float:
    return _over(counts_S2B[:, 0].sum(1), counts_S2B.sum((1, 2)))


def _log_loss(counts_S2B: Float, _flipped_B: Float, middle_B: Float) -> Float:
    lost_S = counts_S2B[:, 0] @ np.log(middle_B) + counts_S2B[:, 1] @ np.log1p(-middle_B)
    return _over(-lost_S, counts_S2B.sum((1, 2)))


def _normalised_entropy(counts_S2B: Float, flipped_B: Float, middle_B: Float) -> Float:
    rate_S = np.clip(_base_rate(counts_S2B, flipped_B, middle_B), 1e-9, 1 - 1e-9)
    entropy_S = -(rate_S * np.log(rate_S) + (1 - rate_S) * np.log1p(-rate_S))
    return _over(_log_loss(counts_S2B, flipped_B, middle_B), entropy_S)


def _calibration_ratio(counts_S2B: Float, _flipped_B: Float, middle_B: Float) -> Float:
    return _over(counts_S2B.sum(1) @ middle_B, counts_S2B[:, 0].sum(1))


def _gaps(scores: Scores, counts_S2B: Float) -> Float:
    """Returns clicks less predicted clicks of groups of bins, about equal in rows, float64 [S, groups].

    The groups are those of the release: a figure and its draws are of the same.
    """
    rows_B, middle_B = scores.counts_2B.sum(0), scores.terms.middle_B
    place_B = np.floor((np.cumsum(rows_B) - rows_B / 2) * _ECE_BINS / rows_B.sum())
    group_B = np.clip(place_B, 0, _ECE_BINS - 1).astype(np.int64)
    in_group_BG = np.eye(_ECE_BINS)[group_B]
    gaps_SG: Float = (counts_S2B[:, 0] - counts_S2B.sum(1) * middle_B) @ in_group_BG
    return gaps_SG


def _over(above_S: Float, below_S: Float) -> Float:
    """Returns the ratio, nan where nothing positive is divided by."""
    ratio_S: Float = np.divide(above_S, below_S, out=np.full_like(above_S, np.nan), where=below_S > 0)
    return ratio_S


_SMOOTH: dict[str, Figure] = {
    "auc": _auc,
    "ne": _normalised_entropy,
    "log_loss": _log_loss,
    "calibration_ratio": _calibration_ratio,
    "base_rate": _base_rate,
}
_MOST = {"auc": 1.0, "ne": np.inf, "log_loss": np.inf, "calibration_ratio": np.inf, "base_rate": 1.0}
