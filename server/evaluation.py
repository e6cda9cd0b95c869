"""The global model on the operator's own held-out clicks, with intervals over users and slices.

Legend: N evaluated rows, L heads, D parameters.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import scoring
from common.bootstrap import bootstrap_intervals
from common.calibration import of_log, of_stream
from common.clicks import validate_rows
from common.config import ModelConfig, ServerConfig
from common.errors import DataError
from common.features import ItemCounts, UserRows, featurise
from common.itemrates import ItemRates
from common.metrics import calibration_bins, evaluate_scores
from common.model.click_model import ClickModel
from common.nextitem import Log
from common.pretrained import Pretrained
from common.sensitive import without_sensitive
from common.textstates import encode_texts
from server.fairness import fairness
from server.halves import in_choosing_half
from server.slices import Partition, Scored, partitions, slice_lines

KEPT_COLUMN = "unclicked_kept"  # the same in all rows: the share of the unclicked ones that the log holds
_EVALUATION_COLUMNS = ("partner", "evaluate", "cold_user", "cold_item", KEPT_COLUMN)
_COLUMNS = ("user", "time", "item", "text", "clicked", "domain", "evaluate")


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, featurised, and what they are grouped by.

    Attributes:
        rows: every row of the users, history included.
        chosen: for each chunk the row numbers to score; concatenated they give the N evaluated rows.
        label_NL: labels of the evaluated rows.
        user_N: user codes; int64.
        slate_N: slate ids as text, or None where the log has none.
        partitions: how the evaluated rows are cut into slices.
        choosing_N: the evaluated rows of one half of the users, drawn by hash, on which a run may choose and fit; what
            was chosen or fitted there is judged on the others.
        model_kept: the share of unclicked rows that the training logs hold.
        log_kept: the share of them that these rows hold.
        log: what the features were made of.
        unknown_items: evaluated rows of an item that private statistics do not know.
    """

    rows: UserRows
    chosen: list[NDArray[np.int64]]
    label_NL: NDArray[np.float32]
    user_N: NDArray[np.int64]
    slate_N: NDArray[Any] | None
    partitions: tuple[Partition, ...]
    choosing_N: NDArray[np.bool_]
    log: Log
    model_kept: float = 1.0
    log_kept: float = 1.0
    unknown_items: int = 0

    def part(self, kept_N: NDArray[np.bool_]) -> "HeldOut":
        """Returns the same with some of the evaluated rows alone: those of some users, whole."""
        first_C = np.cumsum([0, *(len(row_M) for row_M in self.chosen)])[:-1]
        return replace(
            self,
            chosen=[row_M for row_M, first in zip(self.chosen, first_C, strict=True) if kept_N[first]],
            label_NL=self.label_NL[kept_N],
            user_N=self.user_N[kept_N],
            slate_N=None if self.slate_N is None else self.slate_N[kept_N],
            partitions=tuple(replace(each, group_N=each.group_N[kept_N]) for each in self.partitions),
            choosing_N=self.choosing_N[kept_N],
        )


def load_heldout(
    path: Path,
    config: ModelConfig,
    pretrained: Pretrained,
    item_counts: ItemCounts | None = None,
    item_rates: ItemRates | None = None,
) -> HeldOut:
    """Returns the held-out log in a Parquet file of canonical columns plus `evaluate` (and, in a simulation,
    `partner`, `cold_user`, `cold_item`). Sensitive columns cut it into slices; no feature is made of them.

    Raises:
        DataError: when the file is not there or not readable, lacks a column, is not in the order of users and times,
            or holds no row to evaluate.
    """
    if item_counts is not None or item_rates is not None or not path.is_file():
        return _load(path, config, pretrained, item_counts, item_rates)
    key = hashlib.sha256(path.read_bytes()).hexdigest(), config, pretrained.fingerprint, scoring.CHUNK_ROWS
    if key not in _latest:
        heldout = _load(path, config, pretrained, None, None)
        _latest.clear()
        _latest[key] = heldout
    return _latest[key]


# The features of one held-out log, under the hash of its bytes: several runs of one process make them once.
_latest: dict[tuple[str, ModelConfig, str, int], HeldOut] = {}


def _load(
    path: Path,
    config: ModelConfig,
    pretrained: Pretrained,
    item_counts: ItemCounts | None,
    item_rates: ItemRates | None,
) -> HeldOut:
    frame = _read(path)
    evaluate_N = frame["evaluate"].to_numpy(bool)
    if not evaluate_N.any():
        raise DataError(f"{path}: none of the {len(frame)} rows is marked for evaluation")
    encoded = encode_texts(list(frame["text"]), config, pretrained)
    seen = without_sensitive(frame)
    rows = featurise(
        seen,
        encoded.index_N,
        encoded.states_TE,
        config,
        item_counts=item_counts,
        item_rates=item_rates,
        own_rows_N=~evaluate_N,
        tokens_T=encoded.tokens_T,
    )
    row_N = np.flatnonzero(evaluate_N)
    user_N = np.searchsorted(rows.offset_U1, row_N, side="right") - 1
    return HeldOut(
        rows=rows,
        chosen=scoring.chunks(row_N, user_N),
        label_NL=rows.label_NL[row_N],
        user_N=user_N.astype(np.int64),
        slate_N=_slates(frame.iloc[row_N]) if "slate" in frame else None,
        partitions=partitions(frame, evaluate_N, rows.history_NH[row_N]),
        choosing_N=in_choosing_half(frame["user"].iloc[row_N]),
        log=Log(seen, encoded.index_N, encoded.states_TE, item_counts, item_rates, encoded.tokens_T),
        model_kept=config.unclicked_kept,
        log_kept=float(frame[KEPT_COLUMN].iloc[0]) if KEPT_COLUMN in frame else 1.0,
        unknown_items=item_rates.num_unknown(frame.iloc[row_N]) if item_rates else 0,
    )


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no held-out clicks; the central evaluation needs them")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path}: not readable as Parquet; write it again") from None
    missing = [name for name in _COLUMNS if name not in frame]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it needs {', '.join(_COLUMNS)}")
    user_N, time_N = pd.factorize(frame["user"])[0], frame["time"].to_numpy()
    # Else a user's history would be torn apart, or look ahead, without anybody noticing.
    if (np.diff(user_N) < 0).any() or ((np.diff(time_N) < 0) & (np.diff(user_N) == 0)).any():
        raise DataError(f"{path}: rows are not in the order of users, then times; sort them by both")
    validate_rows(frame.drop(columns=[name for name in _EVALUATION_COLUMNS if name in frame]))
    return frame


def _slates(frame: pd.DataFrame) -> NDArray[Any]:
    """Returns slate ids; a row of no known slate is a slate of its own, never one with the others."""
    slate_N = frame["slate"].to_numpy(object)
    alone_N = np.array([f"row {number}" for number in range(len(frame))], object)
    return np.where(slate_N == "", alone_N, slate_N).astype(str)


def score(model: ClickModel, heldout: HeldOut) -> NDArray[np.float64]:
    """Returns the probability of a click for each evaluated row, float64 [N], in a log that is sampled as this one."""
    return as_in_log(scoring.click_rates(model, heldout.rows, heldout.chosen), heldout)


def as_in_log(click_N: NDArray[np.float64], heldout: HeldOut) -> NDArray[np.float64]:
    """Returns what a model says of a log like the training logs, as probabilities in a log like the held-out one."""
    if heldout.model_kept == heldout.log_kept:
        return click_N
    return of_log(of_stream(click_N, heldout.model_kept), heldout.log_kept)


def round_figures(score_N: NDArray[np.float64], heldout: HeldOut, config: ServerConfig, seed: int) -> dict[str, Any]:
    """Returns the figures of one round: AUC, log loss and normalised entropy, with intervals over users."""
    label_N = heldout.label_NL[:, 0]
    values = evaluate_scores(label_N, score_N, heldout.user_N)
    figures: dict[str, Any] = {name: values[name] for name in ("auc", "log_loss", "ne")}
    if config.bootstrap_samples:
        figures["intervals"] = intervals(score_N, heldout, config.bootstrap_samples, seed)
    return figures


def intervals(score_N: NDArray[np.float64], heldout: HeldOut, samples: int, seed: int) -> dict[str, list[float]]:
    """Returns the 95 % percentile interval of each figure from resampled users."""
    found = bootstrap_intervals(heldout.label_NL[:, 0], score_N, heldout.user_N, samples, seed)
    return {name: [interval.low, interval.high] for name, interval in found.items()}


def final_figures(score_N: NDArray[np.float64], heldout: HeldOut, config: ServerConfig, seed: int) -> dict[str, Any]:
    """Returns every metric of the final model, its intervals, slices, gaps between people and calibration bins."""
    label_N = heldout.label_NL[:, 0]
    figures: dict[str, Any] = evaluate_scores(label_N, score_N, heldout.user_N, heldout.slate_N)
    if config.bootstrap_samples:
        figures["intervals"] = intervals(score_N, heldout, config.bootstrap_samples, seed)
    figures["rows"], figures["users"] = len(label_N), len(np.unique(heldout.user_N))
    scored = Scored(label_N, score_N, heldout.user_N)
    figures["slices"] = [
        line for partition in heldout.partitions for line in slice_lines(partition, scored, config, seed)
    ]
    gaps = fairness(heldout.partitions, scored, config, seed)
    if gaps:
        figures["fairness"] = gaps
    figures["calibration"] = asdict(calibration_bins(label_N, score_N))
    return figures
