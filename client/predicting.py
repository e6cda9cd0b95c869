"""Scores of a click log under a signed model: verified again, featurised as in training, scored as in evaluation.

Legend: N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from client.erasure import Erased
from client.partner import PartnerConfig
from client.personal import Personal, look
from client.userdata import MOST_ROWS_PER_USER, UserData
from common.bootstrap import bootstrap_intervals
from common.calibration import Calibration, of_log, of_stream
from common.card import DataCard
from common.clicks import read_clicks
from common.config import ModelConfig
from common.errors import ModelError
from common.features import ItemCounts, UserRows, featurise
from common.itemrates import ItemRates
from common.lineage import Lineage, read_model_folder, verified
from common.metrics import evaluate_scores
from common.model.click_model import ClickModel
from common.model.saved import load_calibration, load_item_rates, load_model, require_base
from common.nextitem import Log
from common.pretrained import Pretrained
from common.scoring import chunks, head_rates
from common.textstates import encode_texts

Floats = NDArray[np.float64]

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
    calibration: Calibration | None = None  # fitted on held-out clicks, and signed with it


@dataclass(frozen=True)
class Predicted:
    """Probabilities of each row, in the stream of all impressions, whatever share of it training logs hold.

    Attributes:
        click_N: of a click.
        given_click_N: of a purchase given a click; None where the model has no such head.
    """

    click_N: Floats
    given_click_N: Floats | None

    @property
    def purchase_N(self) -> Floats | None:
        """Of a purchase, clicked or not."""
        return None if self.given_click_N is None else self.click_N * self.given_click_N

    def in_log(self, unclicked_kept: float) -> "Predicted":
        """Returns them as they are in a log that holds a share of the unclicked rows."""
        return Predicted(of_log(self.click_N, unclicked_kept), self.given_click_N)

    def part(self, kept_N: NDArray[np.bool_]) -> "Predicted":
        """Returns those of some rows."""
        given_N = None if self.given_click_N is None else self.given_click_N[kept_N]
        return Predicted(self.click_N[kept_N], given_N)


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
    return Usable(model, config, lineage, pretrained, cache, load_item_rates(files, config), load_calibration(files))


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


def predictions(
    use: Usable,
    rows: pd.DataFrame,
    counts: ItemCounts | None,
    *,
    own_log: bool = True,
    personal: Personal | None = None,
) -> dict[str, Predicted]:
    """Returns the probabilities of each row, in the order of the rows.

    They are "raw", and "calibrated" and "personal" where there is a calibration, or a correction of the partner's own.

    Args:
        use: the model.
        rows: canonical, in the order of users, then times.
        counts: exact ones, where the model needs them.
        own_log: the rows are those that statistics were made of: what each added is then taken out again, as in
            training. Rows of another log added nothing.
        personal: the partner's own correction.
    """
    features = features_of(use, rows, counts, own_log=own_log)
    user_N = np.searchsorted(features.offset_U1, np.arange(len(rows)), side="right") - 1
    rate_NL = head_rates(use.model, features, chunks(np.arange(len(rows)), user_N))
    kept, given_N = use.config.unclicked_kept, rate_NL[:, 1] if rate_NL.shape[1] > 1 else None
    found = {"raw": Predicted(of_stream(rate_NL[:, 0], kept), given_N)}
    if use.calibration:
        found["calibrated"] = _calibrated(use.calibration, found["raw"])
    if personal:
        found["personal"] = Predicted(of_stream(personal(look(use.model, features)), kept), given_N)
    return found


def features_of(use: Usable, rows: pd.DataFrame, counts: ItemCounts | None, *, own_log: bool = True) -> UserRows:
    """Returns the features of rows, as in training; arguments as `predictions`."""
    log = log_of(use, rows, counts)
    return featurise(
        rows,
        log.text_N,
        log.states_TE,
        use.config,
        item_counts=counts,
        item_rates=use.item_rates,
        own_rows_N=None if own_log else np.zeros(len(rows), bool),
        tokens_T=log.tokens_T,
    )


def log_of(use: Usable, rows: pd.DataFrame, counts: ItemCounts | None) -> Log:
    """Returns the rows with their text states, and what else their features are made of."""
    encoded = encode_texts(list(rows["text"]), replace(use.config, cache=use.cache), use.pretrained)
    return Log(rows, encoded.index_N, encoded.states_TE, counts, use.item_rates, encoded.tokens_T)


def _calibrated(calibration: Calibration, raw: Predicted) -> Predicted:
    given_N = None if raw.given_click_N is None else calibration.purchases(raw.given_click_N)
    return Predicted(calibration.clicks(raw.click_N), given_N)


def figures_of(rows: pd.DataFrame, score_N: Floats, label: str = "clicked") -> dict[str, Any]:
    """Returns the figures of scores against the log's own labels, with 95 % intervals over users; nan = not defined.

    Args:
        rows: canonical.
        score_N: probabilities in this log, as it is sampled.
        label: "clicked" or "purchased".
    """
    label_N, user_N = rows[label].to_numpy(np.float64), rows["user"].to_numpy()
    values = evaluate_scores(label_N, score_N, user_N)
    found = bootstrap_intervals(label_N, score_N, user_N, SAMPLES, SEED)
    return {name: values[name] for name in _FIGURES} | {
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()}
    }


_COLUMNS = {
    "raw": ("score", "purchase"),
    "calibrated": ("calibrated", "calibrated_purchase"),
    "personal": ("personal", "personal_purchase"),
}


def scores_table(rows: pd.DataFrame, found: Mapping[str, Predicted], card: DataCard) -> pd.DataFrame:
    """Returns user, item and time under the log's own names (time in Unix seconds), and the probabilities.

    `score` is of a click, as the model says; `purchase`, and both `calibrated` and `personal`, where there are any.
    """
    columns = card.columns
    table: dict[str, Any] = {
        columns.user: rows["user"].to_numpy(),
        columns.item or "item": rows["item"].to_numpy(),
        columns.time: rows["time"].to_numpy(),
    }
    for kind, predicted in found.items():
        for name, score_N in zip(_COLUMNS[kind], (predicted.click_N, predicted.purchase_N), strict=True):
            if score_N is not None:
                table[_unused(name, table)] = score_N
    return pd.DataFrame(table)


def _unused(name: str, table: Mapping[str, Any]) -> str:
    while name in table:
        name = f"model_{name}"
    return name
