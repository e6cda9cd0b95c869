"""Membership inference on the released model alone: was this user in the training data?

The attacker holds the final model and a user's rows, and nothing of the rounds. Two attacks: the loss by itself, and
the likelihood ratio of Carlini et al., which trains shadow models with and without each user to learn what the model
says of that user in either case. Users of the partners' own logs are the targets; a coin decides in each run who is in.

Legend: R runs, T target users.
Source: Carlini, Chien, Nasr, Song, Terzis, Tramèr 2022, "Membership Inference Attacks From First Principles",
algorithm 1 (online, with the variance pooled over targets, as few shadow models call for); Yeom, Giacomelli,
Fredrikson, Jha 2018, "Privacy Risk in Machine Learning", section 3.2 (loss threshold).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from common.scoring import click_rates

Float = NDArray[np.float64]
FALSE_POSITIVES = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Roc:
    """How well scores tell members from others.

    Attributes:
        auc: area under the curve; .5 = guessing.
        at: false-positive rate -> true-positive rate, for the rates that so few decisions can tell from 0.
        curve: (false-positive rates, true-positive rates), thinned for a plot.
        pairs: how many decisions it rests on.
    """

    auc: float
    at: dict[float, float]
    curve: tuple[list[float], list[float]]
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready fields, but for the curve."""
        return {"auc": self.auc, "pairs": self.pairs, "true_positive_rate_at": {str(k): v for k, v in self.at.items()}}


def confidence_of(model: Any, rows: Any, units: list[NDArray[np.int64]]) -> Float:
    """Returns how sure a model is of each user's labels: the mean logit of the right label's probability, [T]."""
    rate_N = np.clip(click_rates(model, rows, units), 1e-7, 1 - 1e-7)
    row_N = np.concatenate(units)
    right_N = np.where(rows.label_NL[row_N, 0] > 0, rate_N, 1 - rate_N)
    start_T = np.cumsum([0, *map(len, units)])[:-1]
    length_T = np.array([len(row_M) for row_M in units])
    found_T: Float = np.add.reduceat(logit(right_N), start_T) / length_T
    return found_T


def likelihood_ratios(confidence_RT: Float, inside_RT: NDArray[np.bool_], run: int) -> Float:
    """Returns the log likelihood ratio of each target in one run, from what the other runs say of it, float64 [T].

    Formal guarantees:
        - the coins of `run` are not looked at.
    """
    others_RT, coins_RT = np.delete(confidence_RT, run, 0), np.delete(inside_RT, run, 0)
    mean_in_T, mean_out_T = _means(others_RT, coins_RT), _means(others_RT, ~coins_RT)
    spread_in = _spread(others_RT, coins_RT, mean_in_T)
    spread_out = _spread(others_RT, ~coins_RT, mean_out_T)
    own_T = confidence_RT[run]
    found_T: Float = norm.logpdf(own_T, mean_in_T, spread_in) - norm.logpdf(own_T, mean_out_T, spread_out)
    return found_T


def _means(value_RT: Float, where_RT: NDArray[np.bool_]) -> Float:
    """Returns each target's mean over the runs where it holds; over all runs where it holds in none."""
    count_T = where_RT.sum(0)
    mean_T = (value_RT * where_RT).sum(0) / np.maximum(count_T, 1)
    found_T: Float = np.where(count_T > 0, mean_T, value_RT.mean(0))
    return found_T


def _spread(value_RT: Float, where_RT: NDArray[np.bool_], mean_T: Float) -> float:
    """Returns the deviation around each target's own mean, pooled over targets."""
    freedom = max(int(where_RT.sum()) - int((where_RT.sum(0) > 0).sum()), 1)
    return float(np.sqrt((((value_RT - mean_T) ** 2) * where_RT).sum() / freedom)) or 1e-12


def roc_of(score_N: Float, inside_N: NDArray[np.bool_]) -> Roc:
    """Returns the curve of scores against coins."""
    false_K, true_K, _ = roc_curve(inside_N, score_N)
    others = int((~inside_N).sum())
    at = {rate: float(true_K[false_K <= rate].max(initial=0.0)) for rate in FALSE_POSITIVES if rate * others >= 1}
    kept = np.unique(np.linspace(0, len(false_K) - 1, min(200, len(false_K))).astype(int))
    curve = [float(value) for value in false_K[kept]], [float(value) for value in true_K[kept]]
    return Roc(float(roc_auc_score(inside_N, score_N)), at, curve, len(score_N))
