"""What a click model is worth: pure functions of labels, scores and groups.

Scores that a metric reads as probabilities must lie in [0, 1]; ranking metrics take any finite score. Scores that are
not finite, labels other than 0 and 1, and unequal lengths are a `ValueError` with the count. Where a metric is not
defined (rows of one class, no group with both, no rows) it is `nan`, never a made-up number. No result depends on the
order of rows: equal scores count as ties, or as the mean over their orders.

Shape letters: N rows, G groups (users or slates), R runs of equal scores within a group, B bins, J ranks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import gammaln, xlogy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Array = npt.ArrayLike

CLIP = 1e-7  # probabilities nearer to 0 or 1 count as this far: float32 cannot tell them apart, and log 0 is infinite
NAN = float("nan")


@dataclass(frozen=True)
class GroupAuc:
    """AUC inside each group: `auc_G` (nan where a group has one class) and its size `rows_G`."""

    auc_G: Floats
    rows_G: Ints


@dataclass(frozen=True)
class CalibrationBins:
    """Bins of about equal mass, by rising score: mean prediction, observed rate, and rows of each."""

    predicted_B: Floats
    observed_B: Floats
    rows_B: Ints


def check_rows(label_N: Array, score_N: Array, probabilities: bool = False) -> tuple[Floats, Floats]:
    """Returns labels and scores as float64.

    Raises:
        ValueError: for unequal lengths, labels other than 0 and 1, scores that are not finite, and, where
            `probabilities`, scores outside [0, 1]; names the count.
    """
    label, score = np.asarray(label_N, dtype=np.float64), np.asarray(score_N, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels of shape {label.shape}, scores of shape {score.shape}: both must be one row long")
    _refuse((label != 0) & (label != 1), "labels are neither 0 nor 1")
    _refuse(~np.isfinite(score), "scores are not finite")
    if probabilities:
        _refuse((score < 0) | (score > 1), "scores are no probabilities (outside 0 to 1)")
    return label, score


def _refuse(bad_N: npt.NDArray[np.bool_], what: str) -> None:
    if bad_N.any():
        raise ValueError(f"{int(bad_N.sum())} of {bad_N.size} {what}")


def _codes(group_N: Array, rows: int) -> Ints:
    """Returns group numbers 0..G-1 in order of first appearance."""
    values = np.asarray(group_N)
    if values.shape != (rows,):
        raise ValueError(f"groups of shape {values.shape}, expected one for each of {rows} rows")
    codes = np.asarray(pd.factorize(values)[0], dtype=np.int64)
    _refuse(codes < 0, "groups are missing")
    return codes


def roc_auc(label_N: Array, score_N: Array) -> float:
    """Returns the chance that a clicked row outscores one that was not, ties one half; nan with one class."""
    label, score = check_rows(label_N, score_N)
    return float(_group_auc(label, score, np.zeros(label.size, dtype=np.int64), 1).auc_G[0])


def pr_auc(label_N: Array, score_N: Array) -> float:
    """Returns average precision, the step-wise area under precision and recall; nan without a click.

    Its floor is the base rate, so quote both.
    """
    label, score = check_rows(label_N, score_N)
    if not label.any():
        return NAN
    order = np.argsort(-score, kind="stable")
    last_R = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # thresholds lie between runs of ties
    clicks_R = np.cumsum(label[order])[last_R]
    return float(np.sum(np.diff(clicks_R, prepend=0.0) * clicks_R / (last_R + 1)) / clicks_R[-1])


def row_log_loss(label_N: Floats, score_N: Floats) -> Floats:
    """Returns the log loss of each row, in nats, with probabilities clipped to [CLIP, 1 - CLIP]."""
    clipped = np.clip(score_N, CLIP, 1 - CLIP)
    return np.asarray(-np.where(label_N == 1, np.log(clipped), np.log1p(-clipped)))


def log_loss(label_N: Array, score_N: Array) -> float:
    """Returns the mean log loss in nats (at most 16.2 for a row, see `CLIP`); nan without rows."""
    label, score = check_rows(label_N, score_N, probabilities=True)
    return float(row_log_loss(label, score).mean()) if label.size else NAN


def base_entropy(observed_rate: Any, base_rate: Any) -> Any:
    """Returns the log loss, in nats, of predicting `base_rate` where clicks come at `observed_rate`."""
    return -(xlogy(observed_rate, base_rate) + xlogy(1 - observed_rate, 1 - base_rate))


def normalised_entropy(label_N: Array, score_N: Array, base_rate: float | None = None) -> float:
    """Returns log loss divided by that of a constant base rate: 1 = no better than the base rate, 0 = perfect.

    Unless given, the base rate is that of the evaluated rows, and the divisor is its entropy. A given one (say, of
    training) is scored on the evaluated rows, so that 1 keeps its meaning. nan with one class and no given rate.

    Raises:
        ValueError: also when `base_rate` is not strictly between 0 and 1.

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (2014), section 2.
    """
    if base_rate is not None and not 0 < base_rate < 1:
        raise ValueError(f"base_rate = {base_rate}: must be between 0 and 1, both excluded")
    loss = log_loss(label_N, score_N)
    observed = float(np.mean(np.asarray(label_N, dtype=np.float64))) if np.size(label_N) else NAN
    entropy = float(base_entropy(observed, observed if base_rate is None else base_rate))
    return loss / entropy if entropy > 0 else NAN


def calibration_ratio(label_N: Array, score_N: Array) -> float:
    """Returns mean prediction over observed rate: above 1 predicts too many clicks; nan without a click."""
    label, score = check_rows(label_N, score_N, probabilities=True)
    return float(score.sum() / label.sum()) if label.any() else NAN


def brier(label_N: Array, score_N: Array) -> float:
    """Returns the mean squared error of the probabilities; nan without rows."""
    label, score = check_rows(label_N, score_N, probabilities=True)
    return float(np.mean((score - label) ** 2)) if label.size else NAN


def calibration_bins(label_N: Array, score_N: Array, bins: int = 15) -> CalibrationBins:
    """Returns at most `bins` bins of about equal mass; equal scores share a bin, so a constant score has one."""
    label, score = check_rows(label_N, score_N, probabilities=True)
    if bins < 1:
        raise ValueError(f"bins = {bins}: at least 1")
    _, run_N, rows_R = np.unique(score, return_inverse=True, return_counts=True)
    middle_R = np.cumsum(rows_R) - rows_R / 2  # mid-rank, between 0 and N
    bin_N = np.floor(middle_R * bins / max(label.size, 1)).astype(np.int64)[run_N]
    rows_B = np.bincount(bin_N, minlength=bins)
    kept = rows_B > 0
    predicted_B = np.bincount(bin_N, weights=score, minlength=bins)[kept] / rows_B[kept]
    observed_B = np.bincount(bin_N, weights=label, minlength=bins)[kept] / rows_B[kept]
    return CalibrationBins(predicted_B, observed_B, rows_B[kept].astype(np.int64))


def ece(label_N: Array, score_N: Array, bins: int = 15) -> float:
    """Returns the expected calibration error over equal-mass bins, by rows; nan without rows."""
    curve = calibration_bins(label_N, score_N, bins)
    if not curve.rows_B.size:
        return NAN
    return float(np.average(np.abs(curve.predicted_B - curve.observed_B), weights=curve.rows_B))


def group_auc(label_N: Array, score_N: Array, group_N: Array) -> GroupAuc:
    """Returns the AUC inside every group, groups in order of first appearance, without a loop over groups."""
    label, score = check_rows(label_N, score_N)
    code = _codes(group_N, label.size)
    return _group_auc(label, score, code, int(code.max(initial=-1)) + 1)


def _group_auc(label_N: Floats, score_N: Floats, code_N: Ints, groups: int) -> GroupAuc:
    """Returns Mann-Whitney AUC per group, from mid-ranks inside each group."""
    order, first_R, run_N = _runs(code_N, score_N)
    size_R = np.diff(np.append(first_R, label_N.size))
    rows_G = np.bincount(code_N, minlength=groups)
    start_G = np.cumsum(rows_G) - rows_G
    rank_N = (first_R + (size_R + 1) / 2)[run_N] - start_G[code_N[order]]
    ranks_G = np.bincount(code_N[order], weights=rank_N * label_N[order], minlength=groups)
    clicks_G = np.bincount(code_N, weights=label_N, minlength=groups)
    pairs_G = clicks_G * (rows_G - clicks_G)
    wins_G = ranks_G - clicks_G * (clicks_G + 1) / 2
    auc_G = np.divide(wins_G, pairs_G, out=np.full(groups, NAN), where=pairs_G > 0)
    return GroupAuc(auc_G, rows_G.astype(np.int64))


def _runs(code_N: Ints, score_N: Floats) -> tuple[Ints, Ints, Ints]:
    """Returns the order by (group, score), where each run of equals starts in it, and each ordered row's run."""
    order = np.lexsort((score_N, code_N))
    code, score = code_N[order], score_N[order]
    new_N = np.ones(order.size, dtype=np.bool_)
    new_N[1:] = (code[1:] != code[:-1]) | (score[1:] != score[:-1])
    return order.astype(np.int64), np.flatnonzero(new_N).astype(np.int64), np.cumsum(new_N) - 1


def gauc(label_N: Array, score_N: Array, group_N: Array) -> float:
    """Returns the mean of per-group AUC weighted by rows, over groups with both classes; nan where there is none.

    Source: Zhou et al., Deep Interest Network for Click-Through Rate Prediction (2018), on metrics.
    """
    return _mean_auc(group_auc(label_N, score_N, group_N), weighted=True)


def uauc(label_N: Array, score_N: Array, group_N: Array) -> float:
    """Returns the plain mean of per-group AUC over groups with both classes; by slate it is the impression AUC."""
    return _mean_auc(group_auc(label_N, score_N, group_N), weighted=False)


def _mean_auc(groups: GroupAuc, weighted: bool) -> float:
    kept = ~np.isnan(groups.auc_G)
    if not kept.any():
        return NAN
    return float(np.average(groups.auc_G[kept], weights=groups.rows_G[kept] if weighted else None))


def mrr(label_N: Array, score_N: Array, slate_N: Array) -> float:
    """Returns the mean of 1 / rank of the best-ranked click, over slates with a click; nan where there is none.

    Ties count with their expectation over random orders. (MIND's own script averages over all clicks of a slate
    instead; with one click a slate the two agree.)

    Source: McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of
    Tied Scores (2008).
    """
    label, score = check_rows(label_N, score_N)
    code = _codes(slate_N, label.size)
    order, first_R, run_N = _runs(code, -score)
    clicks_R = np.bincount(run_N, weights=label[order], minlength=first_R.size).astype(np.int64)
    size_R = np.diff(np.append(first_R, label.size))
    slate_R = code[order][first_R]
    start_G = np.searchsorted(slate_R, np.arange(int(code.max(initial=-1)) + 1))
    clicked = np.flatnonzero(clicks_R > 0)
    if not clicked.size:
        return NAN
    _, best = np.unique(slate_R[clicked], return_index=True)  # the first run with a click of each slate
    run = clicked[best]
    above = first_R[run] - first_R[start_G[slate_R[run]]]
    return float(_first_click_reciprocal(above, size_R[run], clicks_R[run]).mean())


def _first_click_reciprocal(above_R: Ints, size_R: Ints, clicks_R: Ints) -> Floats:
    """Returns the expected 1 / rank of the first of `clicks` in a shuffled run of `size` with `above` rows before it.

    P(first click at place j) = C(size - j, clicks - 1) / C(size, clicks) for j = 1 .. size - clicks + 1.
    """
    places_R = size_R - clicks_R + 1
    run_J = np.repeat(np.arange(size_R.size), places_R)
    place_J = np.arange(run_J.size) - (np.cumsum(places_R) - places_R)[run_J] + 1
    m, r = size_R[run_J], clicks_R[run_J]
    chance_J = np.exp(_log_binomial(m - place_J, r - 1) - _log_binomial(m, r))
    weight_J = chance_J / (above_R[run_J] + place_J)
    return np.asarray(np.bincount(run_J, weights=weight_J, minlength=size_R.size), dtype=np.float64)


def _log_binomial(n: Ints, k: Ints) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def ndcg_at_k(label_N: Array, score_N: Array, slate_N: Array, k: int) -> float:
    """Returns the mean nDCG of the first `k` places over slates with a click, ties averaged; nan where there is none.

    Source: Järvelin and Kekäläinen (2002); ties as in McSherry and Najork (2008).
    """
    if k < 1:
        raise ValueError(f"k = {k}: at least 1")
    label, score = check_rows(label_N, score_N)
    code = _codes(slate_N, label.size)
    order, first_R, run_N = _runs(code, -score)
    rows_G = np.bincount(code)
    place_N = np.arange(label.size) - (np.cumsum(rows_G) - rows_G)[code[order]]
    discount_N = np.where(place_N < k, 1 / np.log2(place_N + 2), 0.0)
    clicks_R = np.bincount(run_N, weights=label[order], minlength=first_R.size)
    gain_N = (clicks_R / np.bincount(run_N, minlength=first_R.size))[run_N]
    dcg_G = np.bincount(code[order], weights=gain_N * discount_N)
    clicks_G = np.bincount(code, weights=label).astype(np.int64)
    ideal_K = np.append(0.0, np.cumsum(1 / np.log2(np.arange(k) + 2)))
    kept = clicks_G > 0
    return float(np.mean(dcg_G[kept] / ideal_K[np.minimum(clicks_G[kept], k)])) if kept.any() else NAN


def evaluate_scores(label_N: Array, score_N: Array, user_N: Array, slate_N: Array | None = None) -> dict[str, float]:
    """Returns every metric by name; those of slates only where `slate_N` is given.

    Raises:
        ValueError: as `check_rows`, with scores read as probabilities.
    """
    label, score = check_rows(label_N, score_N, probabilities=True)
    by_user = group_auc(label, score, user_N)
    figures = {
        "auc": roc_auc(label, score),
        "pr_auc": pr_auc(label, score),
        "base_rate": float(label.mean()) if label.size else NAN,
        "log_loss": log_loss(label, score),
        "ne": normalised_entropy(label, score),
        "calibration_ratio": calibration_ratio(label, score),
        "ece": ece(label, score),
        "brier": brier(label, score),
        "gauc": _mean_auc(by_user, weighted=True),
        "uauc": _mean_auc(by_user, weighted=False),
    }
    if slate_N is not None:
        figures["impression_auc"] = uauc(label, score, slate_N)
        figures["mrr"] = mrr(label, score, slate_N)
        figures["ndcg_5"] = ndcg_at_k(label, score, slate_N, 5)
        figures["ndcg_10"] = ndcg_at_k(label, score, slate_N, 10)
    return figures
