"""Probabilities that mean what they say: down-sampling undone, and a calibration that was fitted on held-out clicks.

Two populations are told apart. Of the *stream* every impression is a row. A *log* may hold every clicked row and only a
known share of the others. What a model was trained on is such a log; what it is scored on may be another. All of it is
a shift of the logit, so that ranks stay as they are.

Legend: N rows.
"""

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.optimize import minimize
from scipy.special import expit

from common.config import LEAST_PRIOR, STRICT

Floats = npt.NDArray[np.float64]
Method = Literal["temperature", "platt"]

_LEAST_SLOPE, _MOST_SLOPE = 1e-3, 1e3  # a calibration never turns the order around
_FAR_FROM_PRIOR = 1.5  # in logits: of a prior of one half, a rate below .18 or above .82
_CLIP = 1e-12  # of a probability, before its logit is taken


def prior_warning(rate: float, prior: float) -> str:
    """Returns why training starts far off under a public prior, and the mend; nothing where it does not.

    Args:
        rate: share of clicks in a log, 0 to 1.
        prior: `model.prior_click_rate`.
    """
    nearest = min(max(rate, LEAST_PRIOR), 1 - LEAST_PRIOR)
    if not 0 < rate < 1 or abs(np.subtract(*logit(np.array([nearest, prior])))) < _FAR_FROM_PRIOR:
        return ""
    return (
        f"{rate:.1%} of the rows are clicks, and model.prior_click_rate = {prior:g}: training will spend its first"
        " rounds on that alone; set it to the click rate that is publicly known of such logs"
    )


@dataclass(frozen=True, config=STRICT)
class Scale:
    """A straight line over logits: new logit = slope x logit + intercept."""

    slope: Annotated[float, Field(gt=0)]
    intercept: float = 0.0

    def __call__(self, probability_N: Floats) -> Floats:
        """Returns the probabilities with their logits on this line."""
        return np.asarray(expit(self.slope * logit(probability_N) + self.intercept))


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """What was fitted on held-out clicks, on users whose rows no figure beside it is computed of.

    Attributes:
        method: "temperature" (slope alone) or "platt" (slope and intercept).
        click: the line over logits of a click, as they are in a log of this `unclicked_kept`.
        purchase: the line over logits of a purchase given a click; None where the rows did not tell.
        unclicked_kept: the share of unclicked rows that the log of the fit holds.
        users: whose rows it was fitted on.
        rows: how many these were.
    """

    method: Method
    click: Scale
    purchase: Scale | None = None
    unclicked_kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    users: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=0)] = 0

    def clicks(self, click_N: Floats) -> Floats:
        """Returns calibrated probabilities of a click, from uncalibrated ones; both are of the stream."""
        return of_stream(self.click(of_log(click_N, self.unclicked_kept)), self.unclicked_kept)

    def purchases(self, given_click_N: Floats) -> Floats:
        """Returns calibrated probabilities of a purchase given a click; how clicks were sampled does not enter."""
        return given_click_N if self.purchase is None else self.purchase(given_click_N)


def logit(probability_N: Floats) -> Floats:
    """Returns ln(p / (1 - p)), finite also where p is 0 or 1."""
    clipped_N = np.clip(probability_N, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(clipped_N) - np.log1p(-clipped_N))


def of_stream(log_N: Floats, unclicked_kept: float) -> Floats:
    """Returns the probability in the stream, of one in a log that holds a share w of the unclicked rows.

    p = q / (q + (1 - q) / w).

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (2014), section 6.3.
    """
    if unclicked_kept == 1:
        return log_N
    return np.asarray(log_N / (log_N + (1 - log_N) / unclicked_kept))


def of_log(stream_N: Floats, unclicked_kept: float) -> Floats:
    """Returns the probability in a log that holds a share w of the unclicked rows: q = p / (p + (1 - p) w)."""
    if unclicked_kept == 1:
        return stream_N
    return np.asarray(stream_N / (stream_N + (1 - stream_N) * unclicked_kept))


def fit_scale(label_N: npt.ArrayLike, probability_N: Floats, method: Method) -> Scale | None:
    """Returns the line of least log loss; None where the labels are of one class, which fit none.

    Method "platt" takes Platt's targets, (c + 1) / (c + 2) and 1 / (u + 2) of c clicked and u unclicked rows, in the
    place of 1 and 0, so that separable scores give no infinite slope.

    Source: Platt (1999), Probabilistic Outputs for Support Vector Machines; Guo et al. (2017), On Calibration of Modern
    Neural Networks, section 4.2 (temperature).
    """
    label_N = np.asarray(label_N, np.float64)
    clicks, others = float(label_N.sum()), float((1 - label_N).sum())
    if not clicks or not others:
        return None
    x_N = logit(probability_N)
    target_N = np.where(label_N > 0, (clicks + 1) / (clicks + 2), 1 / (others + 2)) if method == "platt" else label_N

    def loss(line: npt.NDArray[np.float64]) -> tuple[float, Floats]:
        slope, intercept = float(line[0]), float(line[1]) if method == "platt" else 0.0
        z_N = slope * x_N + intercept
        error_N = expit(z_N) - target_N
        gradient = [error_N @ x_N, error_N.sum()] if method == "platt" else [error_N @ x_N]
        return float(np.sum(np.logaddexp(0.0, z_N) - target_N * z_N)) / len(x_N), np.array(gradient) / len(x_N)

    bounds: list[Any] = [(_LEAST_SLOPE, _MOST_SLOPE), (None, None)]
    length = 2 if method == "platt" else 1
    found = minimize(
        loss,
        np.array([1.0, 0.0])[:length],
        jac=True,
        bounds=bounds[:length],
        method="L-BFGS-B",
        options={"ftol": 1e-14},
    )
    return Scale(float(found.x[0]), float(found.x[1]) if method == "platt" else 0.0)
