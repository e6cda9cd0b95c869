"""Scores of a click log under a signed model: verified again, featurised as in training, scored as in evaluation.

Legend: N rows.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from client.erasure import Erased
from client.partner import PartnerConfig
from client.userdata import MOST_ROWS_PER_USER, UserData
from common.bootstrap import bootstrap_intervals
from common.card import DataCard
from common.clicks import read_clicks
from common.config import ModelConfig
from common.errors import ModelError
from common.features import ItemCounts, featurise
from common.itemrates import ItemRates
from common.lineage import Lineage, read_model_folder, verified
from common.metrics import evaluate_scores
from common.model.click_model import ClickModel
from common.model.saved import load_item_rates, load_model, require_base
from common.pretrained import Pretrained
from common.scoring import chunks, click_rates
from common.textstates import encode_texts

SAMPLES, SEED = 200, 1  # of the intervals
_FIGURES = ("auc", "log_loss", "ne", "calibration_ratio", "gauc", "base_rate")


@dataclass(frozen=True)
class Usable:
    """A verified model over a base that is here."""

    model: ClickModel
    config: ModelConfig
    lineage: Lineage
    pretrained: Pretrained
    cache: str  # folder of encoded texts
    item_rates: ItemRates | None = None  # of the private statistics that were signed with it


@dataclass(frozen=True)
class Rows:
    """What is scored: canonical rows of `common.clicks`, and what was not taken of the log."""

    rows: pd.DataFrame
    dropped: dict[str, int]  # reason -> rows


def usable(folder: Path, key: Ed25519PublicKey, pretrained: Pretrained, cache: str = "") -> Usable:
    """Returns the model in a folder once all of it holds.

    Raises:
        ModelError: for a model that is not signed by this key, was altered, or sits on another base.
    """
    files = read_model_folder(folder)
    lineage = verified(files, key)
    require_base(lineage, pretrained)
    model, config = load_model(files, lineage, pretrained)
    return Usable(model, config, lineage, pretrained, cache, load_item_rates(files, config))


def read_rows(clicks: Path, card: DataCard, erased: Erased | None) -> Rows:
    """Returns the rows that the features of training would be made from: without the erased, the latest of each user.

    Raises:
        DataError: where the log cannot be used, or has no row.
    """
    log = read_clicks(clicks, card, allow_one_class=True)
    rows = erased.without(log.rows) if erased else log.rows
    dropped = dict(log.report.dropped)
    if len(log.rows) > len(rows):
        dropped["of users who were erased"] = len(log.rows) - len(rows)
    kept = rows.groupby("user", sort=False).tail(MOST_ROWS_PER_USER).reset_index(drop=True)
    if len(rows) > len(kept):
        dropped[f"beyond the latest {MOST_ROWS_PER_USER} of a user"] = len(rows) - len(kept)
    return Rows(kept, dropped)


class _Counts(UserData):
    """A partner's summed item counts."""

    def known(self) -> ItemCounts | None:
        return self._known_counts()


def item_counts(use: Usable, partner: PartnerConfig | None, *, own_log: bool) -> ItemCounts | None:
    """Returns the summed item counts that the model's features need; None where they need none.

    Raises:
        ModelError: where they need some, and this log is not the one that the counts were made with.
    """
    if use.config.item_rates != "exact":
        return None
    found = _Counts(partner, use.pretrained).known() if partner and own_log else None
    if found is None:
        raise ModelError(
            'the model reads summed item counts (item_rates = "exact"), which only the partner that was told them has,'
            " for its own log: score that one, with its worker.toml"
        )
    return found


def click_scores(
    use: Usable, rows: pd.DataFrame, counts: ItemCounts | None, *, own_log: bool = True
) -> NDArray[np.float64]:
    """Returns the probability of a click for each row, float64 [N], in the order of the rows.

    Args:
        use: the model.
        rows: canonical, in the order of users, then times.
        counts: exact ones, where the model needs them.
        own_log: the rows are those that statistics were made of: what each added is then taken out again, as in
            training. Rows of another log added nothing.
    """
    encoded = encode_texts(list(rows["text"]), replace(use.config, cache=use.cache), use.pretrained)
    features = featurise(
        rows,
        encoded.index_N,
        encoded.states_TE,
        use.config,
        item_counts=counts,
        item_rates=use.item_rates,
        own_rows_N=None if own_log else np.zeros(len(rows), bool),
        tokens_T=encoded.tokens_T,
    )
    user_N = np.searchsorted(features.offset_U1, np.arange(len(rows)), side="right") - 1
    return click_rates(use.model, features, chunks(np.arange(len(rows)), user_N))


def figures_of(rows: pd.DataFrame, score_N: NDArray[np.float64]) -> dict[str, Any]:
    """Returns the figures of scores against the log's own labels, with 95 % intervals over users; nan = not defined."""
    label_N, user_N = rows["clicked"].to_numpy(np.float64), rows["user"].to_numpy()
    values = evaluate_scores(label_N, score_N, user_N)
    found = bootstrap_intervals(label_N, score_N, user_N, SAMPLES, SEED)
    return {name: values[name] for name in _FIGURES} | {
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()}
    }


def scores_table(rows: pd.DataFrame, score_N: NDArray[np.float64], card: DataCard) -> pd.DataFrame:
    """Returns user, item and time under the log's own names (time in Unix seconds), and `score`."""
    columns = card.columns
    table = {columns.user: rows["user"], columns.item or "item": rows["item"], columns.time: rows["time"]}
    name = "score"
    while name in table:
        name = f"model_{name}"
    return pd.DataFrame(table | {name: score_N})
