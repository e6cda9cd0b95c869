"""Next item: where the item that a user clicked stands among all that were known by then, ranked by p(click).

Held-out clicks are drawn where there are many, rather than candidates: figures among drawn candidates flatter every
model, and not each by as much. Where candidates are drawn all the same, the figures say so.

Legend: N evaluated rows, C clicks that are sought, I items, J candidates of a click, U users.
Source: Krichene and Rendle 2020, "On Sampled Metrics for Item Recommendation".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bootstrap import user_codes, user_intervals
from common.clicks import impressions_N
from common.config import Config
from common.model.click_model import ClickModel
from common.nextitem import Int, Items, Log, Moment, candidate_rates, items_of
from server.evaluation import HeldOut

Floats = NDArray[np.float64]

PLACES = 10
FIGURES = ("hit_10", "mrr", "ndcg_10")


@dataclass(frozen=True)
class Sought:
    """The clicks whose items are sought; the first candidate of each is the one that was clicked."""

    moments: list[Moment]
    user_C: Int
    total: int  # clicks that they were drawn from
    fewer: int  # clicks of which not all candidates were taken


def next_item_figures(model: ClickModel, heldout: HeldOut, config: Config) -> dict[str, Any] | None:
    """Returns the figures of the model beside two floors; None where none are asked for, or nothing is clicked.

    `hit_10`, `mrr` and `ndcg_10` are means over clicks. Items of which the user was shown an earlier row are no
    candidates, but for the one that was clicked. Ties count with their expectation over random orders.
    """
    if not config.server.next_item_clicks:
        return None
    log = heldout.log
    items = items_of(log)
    sought = _sought(heldout, items, config)
    if not sought.moments:
        return None
    rates = list(candidate_rates(model, config.model, log, items, sought.moments))
    popular = _popularity(log, items, sought.moments)
    sizes_C = np.array([len(moment.candidates_J) for moment in sought.moments])
    model_C3 = _figures(rates)
    samples = config.server.bootstrap_samples
    found: dict[str, Any] = dict(zip(FIGURES, model_C3.mean(0), strict=True))
    if samples:
        found["intervals"] = _intervals(model_C3, sought.user_C, samples, config.round.seed)
    return found | {
        "clicks": len(sizes_C),
        "of_clicks": sought.total,
        "users": len(np.unique(sought.user_C)),
        "candidates": {"least": int(sizes_C.min()), "mean": float(sizes_C.mean()), "most": int(sizes_C.max())},
        "clicks_with_drawn_candidates": sought.fewer,
        "seen_excluded": True,
        "floors": {
            "popularity": dict(zip(FIGURES, _figures(popular).mean(0), strict=True)),
            "random": dict(zip(FIGURES, _figures([np.zeros(size) for size in sizes_C]).mean(0), strict=True)),
        },
    }


def _sought(heldout: HeldOut, items: Items, config: Config) -> Sought:
    """Returns clicks of the evaluated rows, drawn by the run's seed where there are more than asked for."""
    rng = np.random.default_rng(config.round.seed)
    clicked_N = heldout.label_NL[:, 0] > 0
    row_C = np.concatenate(heldout.chosen)[clicked_N]
    user_C, total = heldout.user_N[clicked_N], len(row_C)
    if total > config.server.next_item_clicks:
        drawn_C = np.sort(rng.choice(total, config.server.next_item_clicks, replace=False))
        row_C, user_C = row_C[drawn_C], user_C[drawn_C]
    time_N, offset_U1 = heldout.log.rows["time"].to_numpy(np.int64), heldout.rows.offset_U1
    moments, fewer = [], 0
    for row, user in zip(row_C, user_C, strict=True):
        start, moment = int(offset_U1[user]), int(time_N[row])
        past_M = np.arange(start, start + np.searchsorted(time_N[start : row + 1], moment, side="left"))
        unseen_I = items.first_I <= moment
        unseen_I[items.code_N[past_M]] = False
        unseen_I[items.code_N[row]] = False
        others_J = np.flatnonzero(unseen_I)
        if len(others_J) >= config.server.next_item_candidates:
            others_J = rng.choice(others_J, config.server.next_item_candidates - 1, replace=False)
            fewer += 1
        moments.append(Moment(past_M, moment, np.append(items.code_N[row], others_J), int(row)))
    return Sought(moments, user_C, total, fewer)


def _popularity(log: Log, items: Items, moments: list[Moment]) -> list[Floats]:
    """Returns for each candidate how often it was clicked in the held-out log strictly before the moment."""
    clicked_N = (log.rows["clicked"].to_numpy() > 0) & impressions_N(log.rows)
    time_N = log.rows["time"].to_numpy(np.int64)
    earliest = int(time_N.min())
    span = int(time_N.max()) - earliest + 1
    key_C = np.sort(items.code_N[clicked_N] * span + (time_N[clicked_N] - earliest))
    found = []
    for moment in moments:
        first_J = moment.candidates_J * span
        before_J = np.searchsorted(key_C, first_J + (moment.time - earliest)) - np.searchsorted(key_C, first_J)
        found.append(before_J.astype(np.float64))
    return found


def _figures(scores: list[Floats]) -> Floats:
    """Returns hit@10, reciprocal rank and nDCG@10 of the first of each click's candidates, float64 [C, 3].

    Among m equal scores it stands at each of the m places with the same chance.
    """
    lines = []
    for score_J in scores:
        above, equal = int((score_J > score_J[0]).sum()), int((score_J == score_J[0]).sum())
        rank_E = above + 1 + np.arange(equal)
        gain_E = np.where(rank_E <= PLACES, 1 / np.log2(rank_E + 1), 0.0)
        lines.append(((rank_E <= PLACES).mean(), (1 / rank_E).mean(), gain_E.mean()))
    return np.array(lines, np.float64)


def _intervals(figure_C3: Floats, user_C: Int, samples: int, seed: int) -> dict[str, list[float]]:
    """Returns the 95 % percentile interval of each mean, from resampled users."""
    code_C, users = user_codes(user_C, len(user_C))
    columns = [np.ones(len(code_C)), *figure_C3.T]
    sum_U4 = np.stack([np.bincount(code_C, weights=column, minlength=users) for column in columns], axis=1)

    def means(weight_U: Floats) -> tuple[float, ...]:
        total_4 = weight_U @ sum_U4
        return tuple(float(value) for value in total_4[1:] / total_4[0]) if total_4[0] else (float("nan"),) * 3

    found = user_intervals(means, users, samples, seed)
    return {name: [each.low, each.high] for name, each in zip(FIGURES, found, strict=True)}
