"""A release's bytes, and the rates that are made of it: right where noise is known, and finite whatever it says."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.errors import ModelError
from common.histogram import Catalogue, Terms, weights
from common.itemrates import ItemRates, Release, _joint, _posterior, _Rates, parse_release, release_hash

GRID = 2**16
WIDE = Catalogue(tuple(f"i{n:04d}" for n in range(600)), tuple("ab"[n % 2] for n in range(600)))
TERMS = Terms(0.5, 1.0)


def released(clicks_I: np.ndarray, shown_I: np.ndarray, deviation: float, seed: int = 0) -> Release:
    """Returns the release of exact counts, with Gaussian noise of a known deviation."""
    centred_I, category_I = clicks_I - TERMS.prior * shown_I, WIDE.category_of_I
    blocks = [np.concatenate([of, np.bincount(category_I, of), [of.sum()]]) for of in (centred_I, shown_I)]
    noise_2B = np.random.default_rng(seed).normal(0, deviation, (2, WIDE.block))
    sums_2B = np.rint((np.stack(blocks) * weights(WIDE) + noise_2B) * GRID).astype(np.int64)
    return Release(0, WIDE, TERMS, GRID, sums_2B, deviation)


def world(seed: int, effect: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true rates, clicks and impressions of items of heavy-tailed popularity."""
    rng = np.random.default_rng(seed)
    rate_I = np.clip(np.where(WIDE.category_of_I, 0.6, 0.5) + rng.normal(0, effect, 600), 0.02, 0.98)
    shown_I = np.floor(rng.pareto(0.9, 600) * 3 + 1).clip(max=3000)
    return rate_I, rng.binomial(shown_I.astype(int), rate_I).astype(float), shown_I


def every_item() -> pd.DataFrame:
    return pd.DataFrame({"user": "u", "item": WIDE.items, "domain": "", "clicked": 0})


def test_a_release_is_the_same_after_its_bytes() -> None:
    _, clicks_I, shown_I = world(1)
    release = released(clicks_I, shown_I, 2.0)
    data = release.to_bytes()
    back = parse_release(data)
    assert back.to_bytes() == data
    assert (back.catalogue, back.terms, back.grid, back.deviation) == (WIDE, TERMS, GRID, 2.0)
    assert np.array_equal(back.sums_2B, release.sums_2B)
    assert release_hash(data) != release_hash(replace(release, number=1).to_bytes())


def test_sums_come_back_in_rows() -> None:
    """Without noise: 7 of 10 are two clicks more than half."""
    clicks_I, shown_I = np.zeros(600), np.zeros(600)
    clicks_I[4], shown_I[4] = 7, 10
    rows_2B = released(clicks_I, shown_I, 0.0).rows_2B
    assert rows_2B[:, 4] == pytest.approx([2, 10], abs=1e-3)
    assert rows_2B[:, -1] == pytest.approx([2, 10], abs=1e-2)
    assert rows_2B[:, 600] == pytest.approx([2, 10], abs=1e-2)  # category a


@pytest.mark.parametrize(
    "change",
    [
        {"sums": [[1], [2]]},
        {"sums": [[0.5] * 603] * 2},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"deviation": -1.0},
        {"weights": [0.5, 0.1, 0.05]},
        {"prior": 1.0},
        {"items": ["i", "i"], "categories": ["", ""]},
        {"more": 1},
    ],
)
def test_what_is_no_release_is_refused(change: dict[str, Any]) -> None:
    _, clicks_I, shown_I = world(1)
    table = json.loads(released(clicks_I, shown_I, 2.0).to_bytes()) | change
    with pytest.raises(ModelError, match="item statistics: damaged"):
        parse_release(json.dumps(table).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"version": 1}'])
def test_bytes_that_are_nothing_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="item statistics: damaged"):
        parse_release(data)


def test_another_version_is_refused_with_both_named() -> None:
    with pytest.raises(ModelError, match="version 2, and this release of hushclick reads 1"):
        parse_release(b'{"version": 2}')


# --- rates ------------------------------------------------------------------------------------------------------------


def test_without_noise_rates_are_the_items_means_but_for_their_shrinkage() -> None:
    rate_I, clicks_I, shown_I = world(2)
    found_I = ItemRates(released(clicks_I, shown_I, 1e-6)).rates(every_item())
    often_I = shown_I > 300
    assert np.abs(found_I - clicks_I / shown_I)[often_I].max() < 0.01
    assert np.abs(found_I - rate_I).mean() < np.abs(clicks_I / shown_I - rate_I).mean() * 0.7


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_known_noise_shrinks_better_than_taking_noisy_means_as_they_are(seed: int) -> None:
    """Weighted by how often an item is shown, as evaluated rows are; against the plain ratio, and against no items."""
    rate_I, clicks_I, shown_I = world(seed)
    release = released(clicks_I, shown_I, 3.0, seed)
    found_I = ItemRates(release).rates(every_item())
    noisy_I = np.clip(0.5 + release.rows_2B[0, :600] / np.maximum(release.rows_2B[1, :600], 1), 0, 1)

    def error(guess_I: np.ndarray | float) -> float:
        return float(np.average((guess_I - rate_I) ** 2, weights=shown_I))

    category_I = np.where(WIDE.category_of_I, 0.6, 0.5)
    assert error(found_I) < 0.5 * error(category_I)
    assert error(found_I) < 0.5 * error(noisy_I)


def test_what_is_lost_in_noise_is_the_categorys_rate() -> None:
    _, clicks_I, shown_I = world(6)
    shown_I[10], clicks_I[10] = 1, 1
    rates_I = ItemRates(released(clicks_I, shown_I, 2.0)).rates(every_item())
    fitted = ItemRates(released(clicks_I, shown_I, 2.0))._fitted
    assert rates_I[10] == pytest.approx(fitted.category_K[0], abs=0.06)
    of_K = np.bincount(WIDE.category_of_I, clicks_I) / np.bincount(WIDE.category_of_I, shown_I)
    assert fitted.category_K == pytest.approx(of_K, abs=0.03)
    nothing = ItemRates(released(np.zeros(600), np.zeros(600), 5.0))
    assert nothing._fitted.base == 0.5  # the public prior


def test_the_posterior_is_that_of_an_integral() -> None:
    """Effect and impressions integrated numerically, for one item, under the same prior and noise."""
    fitted = _Rates(0.5, np.array([0.5]), np.array([40.0]), np.array([1.0]), 0.15)
    click, shown, rate, noise = 9.0, 52.0, 0.6, (3.0, 12.0)
    found_rate, found_shown = _posterior(np.array([click]), np.array([shown]), np.array([rate]), noise, 0.5, fitted)
    shown_S = np.linspace(1, 110, 1200)[:, None]
    effect_E = np.linspace(-0.9, 0.9, 1201)[None, :]
    log_SE = (
        -0.5 * ((shown_S - 40) / 10) ** 2 - 0.5 * ((shown - shown_S) / noise[1]) ** 2 - 0.5 * (effect_E / 0.15) ** 2
    )
    variance_S = noise[0] ** 2 + shown_S * rate * (1 - rate)
    mean_SE = shown_S * (rate - 0.5 + effect_E)
    log_SE = log_SE - 0.5 * (click - mean_SE) ** 2 / variance_S - 0.5 * np.log(variance_S)
    weight_SE = np.exp(log_SE - log_SE.max())
    assert found_rate[0] == pytest.approx(rate + (weight_SE * effect_E).sum() / weight_SE.sum(), abs=0.005)
    assert found_shown[0] == pytest.approx((weight_SE * shown_S).sum() / weight_SE.sum(), rel=0.03)


def test_parts_of_the_mixture_are_weighed_by_their_likelihood() -> None:
    """A noisy count between two parts: the nearer one weighs more, by exactly the ratio of densities and shares."""
    fitted = _Rates(0.5, np.array([0.5]), np.array([10.0, 60.0]), np.array([0.8, 0.2]), 0.1)
    args = np.array([0.0]), np.array([20.0]), np.array([0.5]), (1e6, 15.0), 0.5, fitted
    log_MG, shown_MG, _ = _joint(*args)
    spread = [15.0**2 + (0.25 * mean) ** 2 for mean in (10.0, 60.0)]
    expected = [
        np.log(0.8) - 50 / spread[0] - np.log(spread[0]) / 2,
        np.log(0.2) - 800 / spread[1] - np.log(spread[1]) / 2,
    ]
    assert log_MG[0, 0] - log_MG[0, 1] == pytest.approx(expected[0] - expected[1], abs=1e-6)
    assert shown_MG[0] == pytest.approx([10 + 10 * 2.5**2 / spread[0], 60 - 40 * 15**2 / spread[1]], abs=1e-4)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_of_an_unknown_item_are_the_base_rate_and_it_is_counted() -> None:
    _, clicks_I, shown_I = world(7)
    rates = ItemRates(released(clicks_I, shown_I, 2.0))
    rows = pd.DataFrame(
        {
            "user": "u",
            "item": ["i0000", "x", "y"],
            "domain": ["a", "b", "film"],
            "clicked": [1, 0, 1],
            "time": [1, 2, 3],
        }
    )
    features_N2 = rates.features(rows)
    fitted = rates._fitted
    expected = [np.log(rate / (1 - rate)) for rate in (fitted.category_K[1], fitted.base)]
    assert features_N2[1:, 0] == pytest.approx(expected, abs=1e-5)
    assert features_N2[1:, 1].tolist() == [0.0, 0.0]
    assert features_N2[0, 1] != 0
    assert rates.num_unknown(rows) == 2
    assert features_N2.dtype == np.float32


@pytest.mark.parametrize("size", [0, 1, 2**31 - 1, -(2**31)])
def test_a_hostile_release_gives_finite_features(size: int) -> None:
    """Whoever sends it: sums at the ends of the ring, the least and the largest clip and noise."""
    for clip, deviation in ((1e-6, 0.0), (1e6, 1e9), (1e6, 0.0), (1.0, 2.0)):
        sums_2B = np.full((2, WIDE.block), size, np.int64)
        sums_2B[1, ::7] *= -1
        rows = every_item().assign(clicked=1, time=0)
        features_N2 = ItemRates(Release(0, WIDE, Terms(0.5, clip), GRID, sums_2B, deviation)).features(rows)
        assert np.isfinite(features_N2).all()
        assert np.abs(features_N2).max() <= 20
