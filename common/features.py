"""Click rows -> arrays that the model reads; the same code at the partners and at the central evaluation.

Nothing here is fitted: every scale and prior is a public constant, so that features carry no private statistic of
other users. What a feature of a row may look at is strictly earlier rows of the same user (two rows of one second
do not see each other), so a row's own label never enters its own features.

Legend: N rows, U users, T distinct texts, E width of a text state, H history length, F dense features, B users of a
batch, M rows of a user in a batch, K history rows of a user in a batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.clicks import impressions_N
from common.config import ModelConfig
from common.itemrates import ItemRates

Float = NDArray[np.float32]
Int = NDArray[np.int64]

_RATE_STRENGTH = 4.0  # pseudo-rows with which a user's own past rate is pulled to the public prior
_ITEM_STRENGTH = 5.0
_RECENT = 10
_KERNEL_SHARPNESS = 12.0  # of exp(sharpness * (cosine - 1)): how near two texts must be to count as alike
_OWN_RATES = ("past_rate", "past_rows", "past_clicks", "recent_rate", "domain_rate", "domain_rows")
_TEXT_RATES = ("alike_rate", "alike_rows", "nearest_click", "click_pull")
_TIME = ("hour_sin", "hour_cos", "weekend")
_ITEM = ("item_rate", "item_rows")
_PRIVATE_ITEM = ("item_rate", "item_pull")

ItemCounts = Mapping[str, tuple[float, float]]  # item -> (clicks, impressions)


@dataclass(frozen=True)
class UserRows:
    """The featurised rows of many users, user after user, rows of a user in order of time.

    Attributes:
        offset_U1: first row of each user, and N at the end; int64.
        text_N: row of `states_TE`; int64.
        label_NL: click, and purchase where the log has it; float32, 0 or 1, or an unbiased estimate of it.
        dense_NF: own past rates, context, time (names: `dense_names`); float32, of order 1.
        history_NH: latest earlier positives of the same user as row numbers, newest first, -1 where there are fewer.
        states_TE: frozen text states, shared and never written to; float32.
        tokens_T: where layers of the encoder are trained, what enters the first of them, float32 [n, E] for each text.
        wording_NW: other wordings of each row's text, of which training draws one; int64, rows of `states_TE`.
        trains_N: which rows may be trained on, bool; None = all. The others are history alone.
        through_model: whether `states_TE` are what such layers made of the tokens, so that nothing is left to run.
    """

    offset_U1: Int
    text_N: Int
    label_NL: Float
    dense_NF: Float
    history_NH: Int
    states_TE: Float
    tokens_T: Sequence[Float] | None = None
    through_model: bool = False
    wording_NW: Int | None = None
    trains_N: NDArray[np.bool_] | None = None

    @property
    def num_users(self) -> int:
        """The number of users U."""
        return len(self.offset_U1) - 1

    def trainable(self, user: int) -> Int:
        """Returns the numbers of a user's rows that may be trained on, ascending."""
        row_M = np.arange(self.offset_U1[user], self.offset_U1[user + 1])
        return row_M if self.trains_N is None else row_M[self.trains_N[row_M]]


@dataclass(frozen=True)
class Batch:
    """Some users' rows, padded to one shape; the batch element is the user.

    Attributes:
        candidate_BME: text states of the rows; float32.
        bank_BKE: text states of every history row that any of them may attend to; float32.
        attend_BMK: which bank entries belong to which row's history; bool.
        dense_BMF: dense features; float32.
        label_BML: labels; float32.
        weight_BM: 1 for a row, 0 for padding; float32.
        candidate_text_BM: which text each row has; int64, -1 for none.
        bank_text_BK: which text each history row has; int64, -1 for none.
    """

    candidate_BME: Float
    bank_BKE: Float
    attend_BMK: NDArray[np.bool_]
    dense_BMF: Float
    label_BML: Float
    weight_BM: Float
    candidate_text_BM: Int
    bank_text_BK: Int


def dense_names(config: ModelConfig) -> list[str]:
    """Returns the names of the F dense features, in their order."""
    names = [*_OWN_RATES, *_TEXT_RATES, *_TIME]
    names += [f"context_{bucket}" for bucket in range(config.context_buckets)]
    return names + list({"none": (), "exact": _ITEM, "private": _PRIVATE_ITEM}[config.item_rates])


def featurise(
    rows: pd.DataFrame,
    text_N: Int,
    states_TE: Float,
    config: ModelConfig,
    *,
    item_counts: ItemCounts | None = None,
    item_rates: ItemRates | None = None,
    own_rows_N: NDArray[np.bool_] | None = None,
    tokens_T: Sequence[Float] | None = None,
) -> UserRows:
    """Returns the features of validated rows (sorted by user, then time).

    Args:
        rows: canonical columns of `common.clicks`; clicks may be unbiased estimates, over 0 where the answer is a
            click, and are then summed as such, within what is possible (0 to the number of rows).
        text_N: for each row the index of its text in `states_TE`.
        states_TE: one frozen state per distinct text, entries of unit mean square.
        config: history length, context buckets, prior.
        item_counts: clicks and impressions per item over the training rows; needed where `config.item_rates` is
            "exact", an unknown item counts as never shown.
        item_rates: what the released private statistics say of items, where `config.item_rates` is "private"; while
            nothing was released, every item is unknown.
        own_rows_N: rows that are themselves in what was counted, whose own label is taken out again; None = all.
        tokens_T: token states of each text, where the model trains layers of the encoder.
    """
    num_rows, shown_N = len(rows), impressions_N(rows)
    user_codes, _ = pd.factorize(rows["user"])
    offset_U1 = np.append(np.flatnonzero(np.diff(user_codes, prepend=-1)), num_rows).astype(np.int64)
    clicked_N = rows["clicked"].to_numpy(np.float32)
    time_N = rows["time"].to_numpy(np.int64)
    domain_N = pd.factorize(rows["domain"])[0]
    own_NF = np.zeros((num_rows, len(_OWN_RATES) + len(_TEXT_RATES)), np.float32)
    history_NH = np.full((num_rows, config.history), -1, np.int64)
    for start, stop in pairwise(offset_U1):
        part = slice(start, stop)
        seen_M = _known_before(time_N[part], config.label_delay_seconds)
        own_NF[part, : len(_OWN_RATES)] = _own_rates(
            clicked_N[part], domain_N[part], shown_N[part], seen_M, config.prior_click_rate
        )
        own_NF[part, len(_OWN_RATES) :] = _text_rates(
            _unit(states_TE[text_N[part]]), clicked_N[part], shown_N[part], seen_M, config.prior_click_rate
        )
        _fill_history(history_NH[part], clicked_N[part], seen_M, int(start))
    counted_N = shown_N if own_rows_N is None else shown_N & own_rows_N
    blocks = [own_NF, _time_features(time_N), _context_features(rows, config.context_buckets)]
    blocks.append(item_features(rows, config, counted_N, item_counts, item_rates))
    labels = [clicked_N]
    if "purchased" in rows:
        labels.append(rows["purchased"].to_numpy(np.float32))
    label_NL, dense_NF = np.stack(labels, axis=1), np.concatenate(blocks, axis=1)
    trains_N = None if shown_N.all() else shown_N
    return UserRows(offset_U1, text_N, label_NL, dense_NF, history_NH, states_TE, tokens_T, trains_N=trains_N)


def item_features(
    rows: pd.DataFrame,
    config: ModelConfig,
    counted_N: NDArray[np.bool_],
    item_counts: ItemCounts | None,
    item_rates: ItemRates | None,
) -> Float:
    """Returns the last of the dense features, what `config.item_rates` says of each row's item; [N, 0] of "none".

    Args:
        rows: as in `featurise`, as are all below.
        config: which of them.
        counted_N: rows that are themselves in what was counted.
        item_counts: exact counts.
        item_rates: released ones.
    """
    if config.item_rates == "exact":
        clicked_N = rows["clicked"].to_numpy(np.float32)
        return _item_rates(rows, clicked_N, item_counts or {}, counted_N, config.prior_click_rate)
    if config.item_rates == "private" and item_rates is not None:
        return item_rates.features(rows, counted_N)
    return np.zeros((len(rows), len(_PRIVATE_ITEM) if config.item_rates == "private" else 0), np.float32)


def make_batch(rows: UserRows, chosen: Sequence[Int]) -> Batch:
    """Returns the padded batch of some users' chosen rows.

    How much padding a user gets depends on the other users of the batch, so padding must not be able to do anything
    that the user's own rows do not: it repeats the user's own first row, with weight 0. (Rows of zeros could overflow
    where real rows do not, under a model that a server chose for it.)

    Args:
        rows: where the rows are.
        chosen: for each of B users the row numbers, all of that user; may be empty.
    """
    banks = [_bank(rows.history_NH[row_M]) for row_M in chosen]
    num_users = len(chosen)
    width = max((len(row_M) for row_M in chosen), default=0) or 1
    depth = max((len(bank_K) for bank_K in banks), default=0) or 1
    row_BM = np.full((num_users, width), -1, np.int64)
    weight_BM = np.zeros((num_users, width), np.float32)
    bank_BK = np.full((num_users, depth), -1, np.int64)
    attend_BMK = np.zeros((num_users, width, depth), bool)
    for user, (row_M, bank_K) in enumerate(zip(chosen, banks, strict=True)):
        if not len(row_M):
            continue
        weight_BM[user, : len(row_M)] = 1.0
        row_BM[user] = _repeat_first(row_M, width)
        bank_BK[user] = _repeat_first(bank_K, depth)
        history_MH = rows.history_NH[row_BM[user]]
        line, _ = np.nonzero(history_MH >= 0)
        attend_BMK[user, line, np.searchsorted(bank_K, history_MH[history_MH >= 0])] = True
    text_BM, text_BK = (np.where(row_BX < 0, -1, rows.text_N[row_BX]) for row_BX in (row_BM, bank_BK))
    return Batch(
        candidate_BME=_gather_states(rows, text_BM),
        bank_BKE=_gather_states(rows, text_BK),
        attend_BMK=attend_BMK,
        dense_BMF=_gather(rows.dense_NF, row_BM),
        label_BML=_gather(rows.label_NL, row_BM),
        weight_BM=weight_BM,
        candidate_text_BM=text_BM,
        bank_text_BK=text_BK,
    )


def count_items(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Returns item -> (clicks, impressions), exact and therefore not private."""
    grouped = rows[impressions_N(rows)].groupby("item")["clicked"].agg(["sum", "count"])
    return {
        str(item): (float(clicks), float(shown)) for item, clicks, shown in grouped.itertuples(index=True, name=None)
    }


def _known_before(time_M: Int, delay_seconds: int) -> Int:
    """Returns how many of the user's rows have a label that is known at each row (rows are sorted by time).

    A label is known once its row is strictly earlier by more than the delay with which labels arrive.
    """
    return np.searchsorted(time_M, time_M - delay_seconds, side="left").astype(np.int64)


def _logit(rate: Any) -> Any:
    return np.log(rate / (1.0 - rate))


def _shrunk_logit(clicks: Any, shown: Any, prior: float, strength: float) -> Any:
    """Returns logit(shrunk rate) - logit(prior): 0 where nothing is known."""
    return _logit((clicks + prior * strength) / (shown + strength)) - _logit(prior)


def _own_rates(clicked_M: Float, domain_M: Int, shown_M: NDArray[np.bool_], seen_M: Int, prior: float) -> Float:
    """Returns the user's own past rates before each row, [M, 6]: overall, counts, the last ten, the same domain.

    Of what was shown: a history of clicks alone says nothing about how often the user clicks.
    """
    out_MF = np.zeros((len(seen_M), len(_OWN_RATES)), np.float32)
    seen_M = np.append(0, np.cumsum(shown_M))[seen_M][shown_M]
    clicked_M, domain_M = clicked_M[shown_M], domain_M[shown_M]
    clicks_M1 = np.concatenate([[0.0], np.cumsum(clicked_M)])
    recent_from_M = np.maximum(seen_M - _RECENT, 0)
    recent_M = np.clip(clicks_M1[seen_M] - clicks_M1[recent_from_M], 0, seen_M - recent_from_M)
    past_M = np.clip(clicks_M1[seen_M], 0, seen_M)
    same_clicks_M, same_rows_M = np.zeros(len(seen_M)), np.zeros(len(seen_M))
    for domain in np.unique(domain_M):
        here_M = domain_M == domain
        clicks_of = np.concatenate([[0.0], np.cumsum(clicked_M * here_M)])
        rows_of = np.concatenate([[0.0], np.cumsum(here_M)])
        same_rows_M[here_M] = rows_of[seen_M[here_M]]
        same_clicks_M[here_M] = np.clip(clicks_of[seen_M[here_M]], 0, same_rows_M[here_M])
    out_MF[shown_M] = np.stack(
        [
            _shrunk_logit(past_M, seen_M, prior, _RATE_STRENGTH),
            np.log1p(seen_M) / 3,
            np.log1p(past_M) / 3,
            _shrunk_logit(recent_M, seen_M - recent_from_M, prior, _RATE_STRENGTH),
            _shrunk_logit(same_clicks_M, same_rows_M, prior, _RATE_STRENGTH),
            np.log1p(same_rows_M) / 3,
        ],
        axis=1,
    )
    return out_MF


def _unit(state_ME: Float) -> Float:
    """Returns states of length 1; of a user's rows only, as the table of states may hold far more texts."""
    unit_ME: Float = state_ME / np.maximum(np.linalg.norm(state_ME, axis=1, keepdims=True), 1e-12)
    return unit_ME


def _text_rates(unit_ME: Float, clicked_M: Float, shown_M: NDArray[np.bool_], seen_M: Int, prior: float) -> Float:
    """Returns how the user judged texts like each row's before, [M, 4]: a kernel regression on the user alone.

    Its rate is of what was shown; nearest click and pull see clicks that are history alone as well.
    """
    out_MF = np.zeros((len(seen_M), 4), np.float32)
    block = 256  # bounds the memory of a user with thousands of rows
    for start in range(0, len(seen_M), block):
        part = slice(start, min(start + block, len(seen_M)))
        last = int(seen_M[part].max(initial=0))
        if last == 0:
            continue
        cosine_MK = unit_ME[part] @ unit_ME[:last].T
        before_MK = np.arange(last)[None, :] < seen_M[part, None]
        click_K = clicked_M[:last]
        kernel_MK = np.exp(_KERNEL_SHARPNESS * (cosine_MK - 1)) * (before_MK & shown_M[:last])
        alike_M, alike_click_M = kernel_MK.sum(1), (kernel_MK * click_K).sum(1)
        alike_click_M = np.clip(alike_click_M, 0, alike_M)
        positive_MK = before_MK * (click_K > 0).astype(np.float32)
        # At least 0 in every row: else a negative cosine would show whether the block holds a row that is masked out,
        # such as a later one.
        nearest_M = np.where(positive_MK > 0, cosine_MK, 0.0).max(1, initial=0.0)
        negative_MK = np.maximum((before_MK & shown_M[:last]) - positive_MK, 0)
        pull_M = (cosine_MK * positive_MK).sum(1) / np.maximum(positive_MK.sum(1), 1) - (cosine_MK * negative_MK).sum(
            1
        ) / np.maximum(negative_MK.sum(1), 1)
        out_MF[part, 0] = _shrunk_logit(10 * alike_click_M, 10 * alike_M, prior, _RATE_STRENGTH)
        out_MF[part, 1] = np.log1p(10 * alike_M) / 2
        out_MF[part, 2] = 2 * nearest_M
        out_MF[part, 3] = 5 * pull_M
    return out_MF


def _fill_history(history_MH: Int, clicked_M: Float, seen_M: Int, first_row: int) -> None:
    """Writes, newest first, the row numbers of the latest positives before each row."""
    length = history_MH.shape[1]
    positive_P = np.flatnonzero(clicked_M > 0)
    if not length or not len(positive_P):
        return
    before_M = np.searchsorted(positive_P, seen_M, side="left")  # positives among the seen rows
    ordinal_MH = before_M[:, None] - 1 - np.arange(length)[None, :]
    history_MH[...] = np.where(ordinal_MH >= 0, positive_P[np.maximum(ordinal_MH, 0)] + first_row, -1)


def _time_features(time_N: Int) -> Float:
    """Returns hour of day as a point on a circle, and weekend, in UTC."""
    angle_N = 2 * np.pi * (time_N % 86_400) / 86_400
    weekend_N = ((time_N // 86_400 + 3) % 7) >= 5  # 1 January 1970 was a Thursday
    return np.stack([np.sin(angle_N), np.cos(angle_N), weekend_N], axis=1).astype(np.float32)


def _context_features(rows: pd.DataFrame, buckets: int) -> Float:
    """Returns context values and the domain hashed into a fixed number of buckets (no vocabulary is learnt)."""
    out_NC = np.zeros((len(rows), buckets), np.float32)
    for name in [column for column in rows.columns if column == "domain" or str(column).startswith("context:")]:
        code_N, values = pd.factorize(rows[name])
        bucket_V = np.array([_bucket(f"{name}={value}", buckets) if value else -1 for value in values], np.int64)
        bucket_N = bucket_V[code_N]
        known_N = bucket_N >= 0
        out_NC[np.flatnonzero(known_N), bucket_N[known_N]] = 1.0
    return out_NC


def _bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % buckets


def _item_rates(
    rows: pd.DataFrame, clicked_N: Float, counts: ItemCounts, counted_N: NDArray[np.bool_], prior: float
) -> Float:
    """Returns the item's rate over the training rows without the row's own label, [N, 2]."""
    code_N, items = pd.factorize(rows["item"])
    count_V2 = np.array([counts.get(str(item), (0.0, 0.0)) for item in items]).reshape(-1, 2)
    own_N = counted_N.astype(float)
    shown_N = np.maximum(count_V2[code_N, 1] - own_N, 0)
    clicks_N = np.clip(count_V2[code_N, 0] - own_N * clicked_N, 0, shown_N)
    rate_N = _shrunk_logit(clicks_N, shown_N, prior, _ITEM_STRENGTH)
    return np.stack([rate_N, np.log1p(shown_N) / 3], axis=1).astype(np.float32)


def _bank(history_MH: Int) -> Int:
    """Returns the distinct history rows that any of a user's chosen rows may attend to, ascending."""
    return np.unique(history_MH[history_MH >= 0])


def _repeat_first(row_M: Int, length: int) -> Int:
    """Returns the rows, then the first of them again up to `length`; -1 where there is none."""
    filled = np.full(length, row_M[0] if len(row_M) else -1, np.int64)
    filled[: len(row_M)] = row_M
    return filled


def _gather_states(rows: UserRows, text_BM: Int) -> Float:
    states = rows.states_TE[text_BM]
    states[text_BM < 0] = 0.0
    return states


def _gather(values_NF: Float, row_BM: Int) -> Float:
    """Returns the values of rows, 0 for padding: written, as 0 times another user's NaN would be NaN."""
    values_BMF = values_NF[row_BM]
    values_BMF[row_BM < 0] = 0.0
    return values_BMF
