"""Confidence intervals by resampling users, not rows: rows of one user are not independent.

Every resample draws as many users as there are, with replacement; each brings all of its rows. A resample is a vector
of multiplicities, so no row is copied: AUC is one cumulative sum over scores sorted once, and the other figures are
sums per user. Memory is a few arrays of N, whatever the number of samples.

Shape letters: N rows, C clicked rows, O other rows, U users, S resamples, M models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.metrics import Array, Floats, Ints, base_entropy, check_rows, row_log_loss

NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """A figure on all rows and the percentile bounds of its resamples; bounds are nan where they mean nothing."""

    value: float
    low: float
    high: float


class WeightedAuc:
    """AUC under any weights per user, ties one half; the sorting is done once.

    Args:
        label_N: 0 or 1.
        score_N: finite.
        user_N: user numbers 0..U-1.
    """

    def __init__(self, label_N: Floats, score_N: Floats, user_N: Ints) -> None:
        clicked = np.flatnonzero(label_N == 1)
        other = np.flatnonzero(label_N == 0)
        clicked = clicked[np.argsort(score_N[clicked], kind="stable")]  # neighbours in memory read faster
        other = other[np.argsort(score_N[other], kind="stable")]
        self._user_C = user_N[clicked]
        self._user_O = user_N[other]
        self._below_C = np.searchsorted(score_N[other], score_N[clicked], side="left")
        self._not_above_C = np.searchsorted(score_N[other], score_N[clicked], side="right")

    def __call__(self, weight_U: Floats) -> float:
        """Returns the AUC with every row weighted as its user; nan where a class has no weight."""
        weight_C = weight_U[self._user_C]
        total_O = np.append(0.0, np.cumsum(weight_U[self._user_O]))
        pairs = weight_C.sum() * total_O[-1]
        if pairs <= 0:
            return NAN
        return float(weight_C @ (total_O[self._below_C] + total_O[self._not_above_C]) / (2 * pairs))


class Figures(NamedTuple):
    """What `WeightedFigures` gives; nan where a figure is not defined."""

    auc: float
    log_loss: float
    ne: float
    calibration_ratio: float
    click_rate: float
    mean_score: float


class WeightedFigures:
    """Every figure under any weights per user; arguments as `WeightedAuc`, with scores that are probabilities."""

    def __init__(self, label_N: Floats, score_N: Floats, user_N: Ints, users: int) -> None:
        self._auc = WeightedAuc(label_N, score_N, user_N)
        columns = (np.ones(label_N.size), label_N, score_N, row_log_loss(label_N, score_N))
        self._sums_U4 = np.stack([np.bincount(user_N, weights=column, minlength=users) for column in columns], axis=1)

    def __call__(self, weight_U: Floats) -> Figures:
        """Returns the figures with every row weighted as its user."""
        rows, clicks, predicted, loss = (float(total) for total in weight_U @ self._sums_U4)
        if rows <= 0:
            return Figures(NAN, NAN, NAN, NAN, NAN, NAN)
        entropy = float(base_entropy(clicks / rows, clicks / rows))
        return Figures(
            auc=self._auc(weight_U),
            log_loss=loss / rows,
            ne=loss / rows / entropy if entropy > 0 else NAN,
            calibration_ratio=predicted / clicks if clicks > 0 else NAN,
            click_rate=clicks / rows,
            mean_score=predicted / rows,
        )


_USUAL = ("auc", "log_loss", "ne", "calibration_ratio")


def bootstrap_intervals(
    label_N: Array,
    score_N: Array,
    user_N: Array,
    samples: int,
    seed: int,
    level: float = 0.95,
    names: Sequence[str] = _USUAL,
) -> dict[str, Interval]:
    """Returns percentile intervals of figures, by name.

    A resample in which a figure is undefined (one class only) is left out of that figure. Bounds are nan with fewer
    than two users or no samples: one user says nothing about the spread over users.

    Args:
        label_N: 0 or 1.
        score_N: probabilities.
        user_N: whose row it is: any values that can be compared.
        samples: how many resamples; 200 places 95 % bounds roughly, 1000 well.
        seed: the same seed gives the same bounds.
        level: share of resamples between the bounds, strictly between 0 and 1.
        names: which of the `Figures`.

    Raises:
        ValueError: for rows that `common.metrics` refuses, users that are missing, or a level out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    label, score = check_rows(label_N, score_N, probabilities=True)
    user, users = user_codes(user_N, label.size)
    found = user_intervals(WeightedFigures(label, score, user, users), users, samples, seed, level)
    return {name: interval for name, interval in zip(Figures._fields, found, strict=True) if name in names}


def paired_difference(
    label_N: Array, score_a_N: Array, score_b_N: Array, user_N: Array, samples: int, seed: int, level: float = 0.95
) -> Interval:
    """Returns AUC of model a minus AUC of model b, both on the same resampled users each time.

    Pairing takes out what both models find hard, so that the interval is narrower than two separate ones suggest.
    Arguments, errors and undefined cases as `bootstrap_intervals`; scores need only be finite.
    """
    label, score_a = check_rows(label_N, score_a_N)
    _, score_b = check_rows(label_N, score_b_N)
    user, users = user_codes(user_N, label.size)
    auc_a, auc_b = WeightedAuc(label, score_a, user), WeightedAuc(label, score_b, user)
    (interval,) = user_intervals(lambda weight_U: (auc_a(weight_U) - auc_b(weight_U),), users, samples, seed, level)
    return interval


def user_codes(user_N: Array, rows: int) -> tuple[Ints, int]:
    """Returns users as numbers 0..U-1 by first appearance, and U; raises `ValueError` for missing ones."""
    values = np.asarray(user_N)
    if values.shape != (rows,):
        raise ValueError(f"users of shape {values.shape}, expected one for each of {rows} rows")
    codes, names = pd.factorize(values)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} of {rows} users are missing")
    return np.asarray(codes, dtype=np.int64), len(names)


def user_intervals(
    figures: Callable[[Floats], tuple[float, ...]], users: int, samples: int, seed: int, level: float = 0.95
) -> list[Interval]:
    """Returns one interval per figure.

    Args:
        figures: gives figures, always as many, under weights per user [U].
        users: U.
        samples: as `bootstrap_intervals`, as are all below.
        seed: of the resamples.
        level: share between the bounds.
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be between 0 and 1, both excluded")
    values_M = figures(np.ones(users))
    draws = samples if users > 1 else 0
    drawn_SM = np.array([figures(weight_U) for weight_U in _resamples(users, draws, seed)], dtype=np.float64)
    drawn_SM = drawn_SM.reshape(draws, len(values_M))
    return [_interval(value, drawn_SM[:, column], level) for column, value in enumerate(values_M)]


def _resamples(users: int, samples: int, seed: int) -> Iterator[Floats]:
    """Yields how often each user was drawn, `samples` times."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64)


def _interval(value: float, drawn_S: npt.NDArray[np.float64], level: float) -> Interval:
    defined_S = drawn_S[~np.isnan(drawn_S)]
    if not defined_S.size:
        return Interval(value, NAN, NAN)
    low, high = np.quantile(defined_S, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
