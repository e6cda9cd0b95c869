"""Down-sampling undone, and calibration fitted, against scikit-learn, by hand and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from common.calibration import Calibration, Scale, fit_scale, logit, of_log, of_stream, prior_warning


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose decision values are its inputs."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Given":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return (x[:, 0] > 0).astype(float)


def planted(rows: int, slope: float, intercept: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and probabilities whose logits are to be put on a known line."""
    rng = np.random.default_rng(seed)
    z_N = rng.normal(0, 1.5, rows)
    return (rng.random(rows) < expit(slope * z_N + intercept)).astype(float), expit(z_N)


# --- down-sampling ------------------------------------------------------------------------------------------------


def test_the_correction_by_hand() -> None:
    np.testing.assert_allclose(of_stream(np.array([0.5, 0.0, 1.0]), 0.1), [1 / 11, 0, 1], rtol=1e-12)
    np.testing.assert_allclose(of_log(np.array([1 / 11, 0.0, 1.0]), 0.1), [0.5, 0, 1], rtol=1e-12)


@given(st.floats(0, 1), st.floats(1e-4, 1))
def test_there_and_back(probability: float, kept: float) -> None:
    there = of_log(np.array([probability]), kept)
    assert of_stream(there, kept)[0] == pytest.approx(probability, rel=1e-9, abs=1e-12)
    assert there[0] >= probability - 1e-15


def test_it_undoes_what_dropping_rows_does() -> None:
    """The rate of each group of a log in which one in ten unclicked rows was kept gives back that of the stream."""
    rng = np.random.default_rng(3)
    true_G = np.array([0.02, 0.1, 0.4])
    group_N = rng.integers(3, size=300_000)
    clicked_N = rng.random(len(group_N)) < true_G[group_N]
    kept_N = clicked_N | (rng.random(len(group_N)) < 0.1)
    log_G = np.array([clicked_N[kept_N & (group_N == group)].mean() for group in range(3)])
    assert (log_G > 1.5 * true_G).all()
    np.testing.assert_allclose(of_stream(log_G, 0.1), true_G, rtol=0.05)


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "theirs"), [("platt", "sigmoid"), ("temperature", "temperature")])
def test_the_fit_is_scikit_learns(method: str, theirs: str) -> None:
    label_N, probability_N = planted(3000, 0.6, -0.4, seed=1)
    x_N1 = logit(probability_N)[:, None]
    other = CalibratedClassifierCV(FrozenEstimator(Given().fit(x_N1, label_N)), method=theirs).fit(x_N1, label_N)
    fitted = fit_scale(label_N, probability_N, method)  # type: ignore[arg-type]
    assert fitted is not None
    np.testing.assert_allclose(fitted(probability_N), other.predict_proba(x_N1)[:, 1], atol=2e-4)


def test_a_planted_line_is_found() -> None:
    label_N, probability_N = planted(200_000, 0.6, -0.4, seed=2)
    platt = fit_scale(label_N, probability_N, "platt")
    assert platt is not None
    assert (platt.slope, platt.intercept) == (pytest.approx(0.6, abs=0.02), pytest.approx(-0.4, abs=0.02))
    label_N, probability_N = planted(200_000, 0.5, 0.0, seed=3)
    temperature = fit_scale(label_N, probability_N, "temperature")
    assert temperature is not None
    assert (temperature.slope, temperature.intercept) == (pytest.approx(0.5, abs=0.02), 0)


def test_labels_of_one_class_fit_nothing() -> None:
    assert fit_scale(np.ones(5), np.linspace(0.1, 0.9, 5), "platt") is None
    assert fit_scale(np.zeros(0), np.zeros(0), "temperature") is None


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_scores_that_tell_all_or_the_opposite_keep_their_order(method: str) -> None:
    probability_N = np.linspace(0.01, 0.99, 50)
    for label_N in (probability_N > 0.5, probability_N < 0.5):
        fitted = fit_scale(label_N, probability_N, method)  # type: ignore[arg-type]
        assert fitted is not None
        assert np.isfinite([fitted.slope, fitted.intercept]).all()
        assert (np.diff(fitted(probability_N)) >= 0).all()


def test_a_probability_of_nought_or_one_stays_finite() -> None:
    fitted = fit_scale([0, 1, 1, 0], np.array([0.0, 1.0, 0.4, 0.6]), "platt")
    assert fitted is not None
    assert np.isfinite(fitted(np.array([0.0, 1.0]))).all()


def test_fitted_on_a_log_it_holds_in_the_stream() -> None:
    """Fitted where a tenth of the unclicked rows is; applied to the stream, mean prediction is the stream's rate."""
    rng = np.random.default_rng(5)
    z_N = rng.normal(-3, 1, 400_000)
    clicked_N = rng.random(len(z_N)) < expit(z_N)
    model_N = expit(1.7 * z_N + 1.0)  # a stream probability that is wrong
    kept_N = clicked_N | (rng.random(len(z_N)) < 0.1)
    click = fit_scale(clicked_N[kept_N], of_log(model_N[kept_N], 0.1), "platt")
    assert click is not None
    calibrated_N = Calibration("platt", click, unclicked_kept=0.1).clicks(model_N)
    assert model_N.mean() > 1.3 * clicked_N.mean() or model_N.mean() < 0.8 * clicked_N.mean()
    assert calibrated_N.mean() == pytest.approx(clicked_N.mean(), rel=0.02)
    ignorant_N = Calibration("platt", click, unclicked_kept=1.0).clicks(model_N)  # the planted bug
    assert abs(ignorant_N.mean() / clicked_N.mean() - 1) > 0.1


@pytest.mark.parametrize(
    ("rate", "prior", "far"),
    [
        (0.2, 0.5, False),
        (0.17, 0.5, True),
        (0.85, 0.5, True),
        (0.03, 0.03, False),
        (0.5, 0.03, True),
        (1e-5, 0.001, False),
    ],
)
def test_a_prior_is_far_by_its_logit(rate: float, prior: float, far: bool) -> None:
    text = prior_warning(rate, prior)
    assert bool(text) == far
    assert not far or (f"{rate:.1%}" in text and f"prior_click_rate = {prior:g}" in text)


def test_without_a_line_for_purchases_they_stay_as_they_are() -> None:
    given_N = np.array([0.2, 0.7])
    calibration = Calibration("platt", Scale(2.0, 0.5))
    np.testing.assert_array_equal(calibration.purchases(given_N), given_N)
    np.testing.assert_allclose(calibration.clicks(given_N), expit(2 * logit(given_N) + 0.5))
