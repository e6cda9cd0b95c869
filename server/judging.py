"""What is said of the final model beyond its clicks: purchases, calibration, the stream behind a log, the next item.

Legend: N evaluated rows, L heads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bootstrap import bootstrap_intervals
from common.calibration import Calibration, fit_scale, of_stream
from common.config import Config, ServerConfig
from common.metrics import calibration_bins, evaluate_scores, row_log_loss
from common.model.click_model import ClickModel
from common.scoring import head_rates
from server.evaluation import HeldOut, as_in_log, final_figures
from server.halves import reported_N
from server.next_item import next_item_figures

Floats = NDArray[np.float64]

_PURCHASE = ("auc", "pr_auc", "base_rate", "log_loss", "ne", "calibration_ratio", "ece", "brier")
_GIVEN_CLICK = ("auc", "base_rate", "log_loss", "calibration_ratio")
_CALIBRATED = ("auc", "log_loss", "ne", "calibration_ratio", "ece", "brier")


@dataclass(frozen=True)
class Rates:
    """What a model says of evaluated rows, as probabilities in a log that is sampled as these rows are.

    Attributes:
        click_N: of a click.
        given_click_N: of a purchase given a click; None where the model has no such head, or the log no purchases.
    """

    click_N: Floats
    given_click_N: Floats | None

    def part(self, kept_N: NDArray[np.bool_]) -> "Rates":
        """Returns those of some rows."""
        return Rates(self.click_N[kept_N], None if self.given_click_N is None else self.given_click_N[kept_N])


@dataclass(frozen=True)
class Judged:
    """The final model's score of every evaluated row, its figures, and the calibration that goes with it."""

    score_N: Floats
    figures: dict[str, Any]
    calibration: Calibration | None


def judge(model: ClickModel, heldout: HeldOut, config: Config, course: Mapping[str, Any]) -> Judged:
    """Returns all that is said of the final model.

    Args:
        model: the one that is kept.
        heldout: every evaluated row; the figures are of those on which nothing was chosen.
        config: of the run.
        course: how the model was chosen, for the record.
    """
    rates = rates_of(model, heldout)
    kept_N = reported_N(heldout, config.server)
    shown, seed = heldout.part(kept_N), config.round.seed
    figures = final_figures(rates.click_N[kept_N], shown, config.server, seed) | dict(course)
    purchases = purchase_figures(rates.part(kept_N), shown, config.server, seed)
    if purchases:
        figures["purchase"] = purchases
    if heldout.log_kept < 1 or heldout.model_kept < 1:
        figures["stream"] = stream_figures(rates.click_N[kept_N], shown)
    calibration = fit_calibration(rates, heldout, config.server)
    if calibration:
        figures["calibrated"] = calibrated_figures(calibration, rates, heldout, config.server, seed)
    found = next_item_figures(model, shown, config)
    if found:
        figures["next_item"] = found
    return Judged(rates.click_N, figures, calibration)


def rates_of(model: ClickModel, heldout: HeldOut) -> Rates:
    """Returns what a model says of all evaluated rows."""
    rate_NL = head_rates(model, heldout.rows, heldout.chosen)
    two = rate_NL.shape[1] > 1 and heldout.label_NL.shape[1] > 1
    return Rates(as_in_log(rate_NL[:, 0], heldout), rate_NL[:, 1] if two else None)


def purchase_figures(rates: Rates, heldout: HeldOut, config: ServerConfig, seed: int) -> dict[str, Any] | None:
    """Returns the figures of p(purchase) = p(click) p(purchase | click) over all rows, clicked or not.

    `given_click` holds those of the second factor, over clicked rows: what the head adds to the click.

    Source: Ma et al. 2018, "Entire Space Multi-Task Model".
    """
    if rates.given_click_N is None:
        return None
    label_N, score_N = heldout.label_NL[:, 1], rates.click_N * rates.given_click_N
    values = evaluate_scores(label_N, score_N, heldout.user_N)
    figures: dict[str, Any] = {name: values[name] for name in _PURCHASE}
    if config.bootstrap_samples:
        figures["intervals"] = _intervals(label_N, score_N, heldout.user_N, config.bootstrap_samples, seed)
    clicked_N = heldout.label_NL[:, 0] > 0
    given = evaluate_scores(label_N[clicked_N], rates.given_click_N[clicked_N], heldout.user_N[clicked_N])
    figures["given_click"] = {name: given[name] for name in _GIVEN_CLICK}
    figures |= {"rows": len(label_N), "clicks": int(clicked_N.sum()), "purchases": int(label_N.sum())}
    figures["calibration"] = asdict(calibration_bins(label_N, score_N))
    return figures


def stream_figures(click_N: Floats, heldout: HeldOut) -> dict[str, float]:
    """Returns estimates for the stream of all impressions, from a log that holds a known share of the unclicked ones.

    Each unclicked row stands for 1 / share of them; the probabilities are those of the stream.
    """
    label_N = heldout.label_NL[:, 0].astype(np.float64)
    weight_N = np.where(label_N > 0, 1.0, 1 / heldout.log_kept)
    stream_N = of_stream(click_N, heldout.log_kept)
    clicks = float(label_N.sum())
    return {
        "model_unclicked_kept": heldout.model_kept,
        "log_unclicked_kept": heldout.log_kept,
        "base_rate": clicks / float(weight_N.sum()),
        "log_loss": float(np.average(row_log_loss(label_N, stream_N), weights=weight_N)),
        "calibration_ratio": float(weight_N @ stream_N) / clicks if clicks else float("nan"),
    }


def fit_calibration(rates: Rates, heldout: HeldOut, config: ServerConfig) -> Calibration | None:
    """Returns what fits the choosing half of the held-out users; None where none is asked for."""
    if config.calibration == "none":
        return None
    half_N = heldout.choosing_N
    click = fit_scale(heldout.label_NL[half_N, 0], rates.click_N[half_N], config.calibration)
    if click is None:  # a run that was begun has looked
        return None
    purchase = None
    if rates.given_click_N is not None:
        clicked_N = half_N & (heldout.label_NL[:, 0] > 0)
        purchase = fit_scale(heldout.label_NL[clicked_N, 1], rates.given_click_N[clicked_N], config.calibration)
    users, rows = len(np.unique(heldout.user_N[half_N])), int(half_N.sum())
    return Calibration(config.calibration, click, purchase, heldout.log_kept, users, rows)


def calibrated_figures(
    calibration: Calibration, rates: Rates, heldout: HeldOut, config: ServerConfig, seed: int
) -> dict[str, Any]:
    """Returns the figures of raw and calibrated probabilities on the users that the fit did not see."""
    other_N = ~heldout.choosing_N
    rates, judged = rates.part(other_N), heldout.part(other_N)
    label_N, user_N = judged.label_NL[:, 0], judged.user_N
    click_N = calibration.click(rates.click_N)
    found: dict[str, Any] = asdict(calibration) | {
        "fitted_users": calibration.users,
        "fitted_rows": calibration.rows,
        "users": len(np.unique(user_N)),
        "rows": len(label_N),
    }
    pairs = {"before": (label_N, rates.click_N), "after": (label_N, click_N)}
    if rates.given_click_N is not None and calibration.purchase is not None:
        bought_N = judged.label_NL[:, 1]
        pairs["purchase_before"] = bought_N, rates.click_N * rates.given_click_N
        pairs["purchase_after"] = bought_N, click_N * calibration.purchases(rates.given_click_N)
    for name, (what_N, score_N) in pairs.items():
        values = evaluate_scores(what_N, score_N, user_N)
        figures: dict[str, Any] = {figure: values[figure] for figure in _CALIBRATED}
        if config.bootstrap_samples:
            figures["intervals"] = _intervals(what_N, score_N, user_N, config.bootstrap_samples, seed)
        found[name] = figures
    found["calibration"] = asdict(calibration_bins(label_N, click_N))
    return found


def _intervals(
    label_N: NDArray[np.float32], score_N: Floats, user_N: NDArray[np.int64], samples: int, seed: int
) -> dict[str, list[float]]:
    found = bootstrap_intervals(label_N, score_N, user_N, samples, seed)
    return {name: [interval.low, interval.high] for name, interval in found.items()}
