"""Scores of items that a user was not shown: each as if it were shown at one moment, after the user's rows before it.

A candidate is a row like any other, with the features that it would have had. Rows of one second do not see each other,
so candidates of one moment do not either, and none of them is in anybody's past.

Legend: N rows of a log, I items, J candidates of a moment, P rows of a batch, M rows of one user.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.card import CONTEXT_PREFIX
from common.clicks import impressions_N
from common.config import ModelConfig
from common.features import ItemCounts, featurise
from common.itemrates import ItemRates
from common.model.click_model import ClickModel, own_text_states
from common.scoring import chunks, click_rates

Int = NDArray[np.int64]

NEVER = np.iinfo(np.int64).max
BATCH_ROWS = 20_000  # candidates and past rows that are turned into features at a time


@dataclass(frozen=True)
class Items:
    """The items of a log, in order of first appearance.

    Attributes:
        name_I: their ids.
        domain_I: of their first row.
        text_I: number of their text state; int64.
        first_I: when they were first shown to anybody, in Unix seconds, or `NEVER`; int64.
        code_N: each row's item; int64.
    """

    name_I: NDArray[np.object_]
    domain_I: NDArray[np.object_]
    text_I: Int
    first_I: Int
    code_N: Int


@dataclass(frozen=True)
class Moment:
    """When candidates are scored, and for whom.

    Attributes:
        past_M: row numbers of the user's rows that are strictly earlier, in order of time; int64.
        time: in Unix seconds.
        candidates_J: items; int64.
        like: a row whose context the candidates share; -1 = no context is known.
    """

    past_M: Int
    time: int
    candidates_J: Int
    like: int = -1


@dataclass(frozen=True)
class Log:
    """A click log as features are made of it.

    Attributes:
        rows: canonical, in the order of users and times, without sensitive columns.
        text_N: each row's text state; int64.
        states_TE: the states.
        item_counts: exact counts, where the model needs them.
        item_rates: private statistics, where the model uses them.
        tokens_T: token states of each text, where the model trains layers of the encoder.
    """

    rows: pd.DataFrame
    text_N: Int
    states_TE: NDArray[np.float32]
    item_counts: ItemCounts | None = None
    item_rates: ItemRates | None = None
    tokens_T: Sequence[NDArray[np.float32]] | None = None


def items_of(log: Log) -> Items:
    """Returns the items of a log."""
    code_N, names = pd.factorize(log.rows["item"])
    code_N = code_N.astype(np.int64)
    # The times of a history are not when an item was there to be shown: one without an impression never was.
    time_N = np.where(impressions_N(log.rows), log.rows["time"].to_numpy(np.int64), NEVER)
    order_N = np.lexsort((time_N, code_N))
    first_row_I = order_N[np.flatnonzero(np.diff(code_N[order_N], prepend=-1))]
    return Items(
        name_I=np.asarray(names, object),
        domain_I=log.rows["domain"].to_numpy(object)[first_row_I],
        text_I=log.text_N[first_row_I],
        first_I=time_N[first_row_I],
        code_N=code_N,
    )


def candidate_rates(
    model: ClickModel, config: ModelConfig, log: Log, items: Items, moments: Sequence[Moment]
) -> Iterator[NDArray[np.float64]]:
    """Yields, moment after moment, what the model says of a click on each candidate, float64 [J]."""
    own_TE = None if model.text is None else own_text_states(model, log.tokens_T, np.unique(log.text_N))
    for batch in _batches(moments):
        rows, text_P, scored_P = _rows(log, items, batch)
        features = featurise(
            rows,
            text_P,
            log.states_TE,
            config,
            item_counts=log.item_counts,
            item_rates=log.item_rates,
            own_rows_N=np.zeros(len(rows), bool),  # no candidate was counted as shown
        )
        if own_TE is not None:
            features = replace(features, states_TE=own_TE, through_model=True)
        row_J = np.flatnonzero(scored_P)
        rate_J = click_rates(model, features, chunks(row_J, rows["user"].to_numpy()[row_J]))
        yield from np.split(rate_J, np.cumsum([len(moment.candidates_J) for moment in batch])[:-1])


def _batches(moments: Sequence[Moment]) -> Iterator[list[Moment]]:
    batch: list[Moment] = []
    size = 0
    for moment in moments:
        rows = len(moment.past_M) + len(moment.candidates_J)
        if batch and size + rows > BATCH_ROWS:
            yield batch
            batch, size = [], 0
        batch.append(moment)
        size += rows
    if batch:
        yield batch


def _rows(log: Log, items: Items, moments: Sequence[Moment]) -> tuple[pd.DataFrame, Int, NDArray[np.bool_]]:
    """Returns rows of a made-up user per moment, its past, then its candidates; their texts; which are scored."""
    contexts = [str(name) for name in log.rows if str(name).startswith(CONTEXT_PREFIX)]
    own = {name: log.rows[name].to_numpy(object) for name in ("item", "domain", *contexts)}
    time_N, clicked_N = log.rows["time"].to_numpy(np.int64), log.rows["clicked"].to_numpy()
    history_N = (~impressions_N(log.rows)).astype(np.int8)
    parts: dict[str, list[NDArray[np.generic]]] = {
        name: [] for name in ("user", "time", "clicked", "history", "text", *own)
    }
    scored = []
    for number, moment in enumerate(moments):
        past_M, candidates_J = moment.past_M, moment.candidates_J
        count = len(candidates_J)
        parts["user"].append(np.full(len(past_M) + count, number))
        parts["time"] += [time_N[past_M], np.full(count, moment.time)]
        parts["clicked"] += [clicked_N[past_M], np.zeros(count, clicked_N.dtype)]
        parts["history"] += [history_N[past_M], np.zeros(count, np.int8)]
        parts["text"] += [log.text_N[past_M], items.text_I[candidates_J]]
        parts["item"] += [own["item"][past_M], items.name_I[candidates_J]]
        parts["domain"] += [own["domain"][past_M], items.domain_I[candidates_J]]
        for name in contexts:
            shared = own[name][moment.like] if moment.like >= 0 else ""
            parts[name] += [own[name][past_M], np.full(count, shared, object)]
        scored += [np.zeros(len(past_M), bool), np.ones(count, bool)]
    columns = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    text_P = columns.pop("text").astype(np.int64)
    return pd.DataFrame(columns), text_P, np.concatenate(scored)
