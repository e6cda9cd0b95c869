"""The private statistics as released, and what is made of them: one shrunk click rate per item, and how sure it is.

All of this is post-processing of one noisy release, and a pure function of its bytes and of the rows at hand: partners,
the central evaluation, the floors and whoever uses the finished model get the same values.

Of each item the release has X, noisy centred clicks, and Y, noisy impressions. How often an item was really shown has
a prior that is fitted to all noisy impressions (a mixture of Gaussians over a geometric grid, by EM); the item's rate
differs from its category's by an effect of variance tau^2, fitted by marginal likelihood; and its posterior mean,
given that the noise is known, is the shrunk rate: item -> category -> everything.

Legend: N rows, I items, K categories, B = I + K + 1, G parts of the mixture.
Source: Efron and Morris 1973, "Stein's Estimation Rule and Its Competitors" (shrinkage by known variance); Dempster,
Laird, Rubin 1977 (EM).
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from scipy.special import logsumexp, softmax

from common.config import STRICT
from common.errors import ConfigError, ModelError
from common.histogram import CATEGORY_WEIGHT, IMPRESSION_WEIGHT, TOTAL_WEIGHT, Catalogue, Terms, row_shares, weights

Float = NDArray[np.float64]
Int = NDArray[np.int64]

RELEASE_VERSION = 1

_LEAST_RATE, _MOST_RATE = 0.01, 0.99
_GRID_STEP = 1.6  # of the mixture over how often an item was shown
_GRID_WIDTH = 0.25  # deviation of a part, over its mean
_EM_ROUNDS = 60
_EFFECTS = tuple(0.02 * 1.25**step for step in range(14))  # deviations of item effects that are tried, .02 to .36
_CATEGORY_EFFECT = 0.1  # public guess of how far categories' rates lie apart
_FITTED_ITEMS = 20_000  # more tell no more of how items are distributed
_BLOCK = 2**15  # rows at a time: bounds memory
_PULL, _PULL_ROWS = 4.0, 5.0  # scale of `item_pull`, and rows that it takes an item to stand out
_SURE = 4.0  # deviations of its noise that a total must be over before it is believed


@checked(frozen=True, config=STRICT)
class _Written:
    """What a release is written as."""

    version: int
    number: Annotated[int, Field(ge=0, lt=2**31)]
    items: tuple[str, ...]
    categories: tuple[str, ...]
    sums: tuple[tuple[int, ...], tuple[int, ...]]
    grid: Annotated[int, Field(ge=1, le=2**24)]
    clip: Annotated[float, Field(gt=0, le=1e6)]
    prior: Annotated[float, Field(gt=0, lt=1)]
    deviation: Annotated[float, Field(ge=0, le=1e9)]
    weights: tuple[float, float, float]


@dataclass(frozen=True)
class Release:
    """One noisy histogram, exactly as it came out of the secure sum.

    Attributes:
        number: of the release in its run, from 0.
        catalogue: its items.
        terms: of the users' vectors.
        grid: whole numbers in `terms.clip`.
        sums_2B: centred clicks and impressions, weighted, scaled and noisy; int64.
        deviation: of the noise in each entry of `sums_2B`, in units of the clip: known, not estimated.
    """

    number: int
    catalogue: Catalogue
    terms: Terms
    grid: int
    sums_2B: Int
    deviation: float

    def to_bytes(self) -> bytes:
        """Returns the release as it is kept, sent and signed: always the same bytes."""
        table = {
            "version": RELEASE_VERSION,
            "number": self.number,
            "items": self.catalogue.items,
            "categories": self.catalogue.categories,
            "sums": self.sums_2B.tolist(),
            "grid": self.grid,
            "clip": self.terms.clip,
            "prior": self.terms.prior,
            "deviation": self.deviation,
            "weights": [IMPRESSION_WEIGHT, CATEGORY_WEIGHT, TOTAL_WEIGHT],
        }
        return json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @property
    def rows_2B(self) -> Float:
        """The noisy sums in rows: what the vectors' weights, the clip and the grid made of them is taken back."""
        rows_2B: Float = self.sums_2B * (self.terms.clip / self.grid) / weights(self.catalogue)
        return rows_2B

    @property
    def noise_2B(self) -> Float:
        """The deviation of the noise in each entry of `rows_2B`."""
        noise_2B: Float = self.deviation * self.terms.clip / weights(self.catalogue)
        return noise_2B


def parse_release(data: bytes) -> Release:
    """Returns the release in some bytes.

    Raises:
        ModelError: for another version, other public weights, and anything that is no release.
    """
    try:
        version = json.loads(data)["version"]
        if version != RELEASE_VERSION:
            raise ModelError(
                f"item statistics of version {version!r:.20}, and this release of hushclick reads {RELEASE_VERSION};"
                " use the release that made them"
            )
        found = TypeAdapter(_Written).validate_json(data)
        sums_2B = np.array(found.sums, np.int64)
        catalogue = Catalogue(found.items, found.categories)
        if found.weights != (IMPRESSION_WEIGHT, CATEGORY_WEIGHT, TOTAL_WEIGHT) or sums_2B.shape != (2, catalogue.block):
            raise ValueError
    except (ValueError, ValidationError, KeyError, TypeError, OverflowError, RecursionError, ConfigError):
        raise ModelError("item statistics: damaged, or of another form than this release reads") from None
    return Release(found.number, catalogue, Terms(found.prior, found.clip), found.grid, sums_2B, found.deviation)


def release_hash(data: bytes) -> bytes:
    """Returns what partners compare releases by."""
    return hashlib.sha256(b"hushclick statistics\0" + data).digest()


@dataclass(frozen=True)
class _Rates:
    """What the release says of everything, of categories, and of how items are distributed.

    Attributes:
        base: click rate of everything.
        category_K: click rates of the categories.
        part_G, share_G: mean impressions and share of the parts of the mixture.
        effect: deviation of an item's rate from its category's.
    """

    base: float
    category_K: Float
    part_G: Float
    share_G: Float
    effect: float


class ItemRates:
    """The features of items under one release; fitted once, when they are first asked for."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def features(self, rows: pd.DataFrame, own_rows_N: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Returns two features of each row's item, float32 [N, 2]: how it differs from the public prior, two ways.

        `item_rate` is logit(rate) - logit(prior) of the shrunk rate; `item_pull` is 4 X / (n + s + 5), X the noisy
        centred clicks, s the deviation of their noise, n the expected impressions: it knows no category, and falls off
        otherwise where little is known, so that a model can weigh the two. An item that the catalogue does not have
        has its category's rate, or the base rate, and no pull.

        Args:
            rows: canonical rows in the order of users, then times.
            own_rows_N: rows that may themselves be in the statistics: what a row added to them is taken out again, so
                that its own label is not among its features. None = all.
        """
        catalogue, terms = self.release.catalogue, self.release.terms
        item_N = catalogue.items_of(rows)
        own_N = np.ones(len(rows), bool) if own_rows_N is None else own_rows_N
        share_N = np.zeros(len(rows))
        share_N[own_N] = row_shares(rows[own_N], catalogue, terms)
        click_N = share_N * (rows["clicked"].to_numpy(np.float64) - terms.prior)
        rate_N, shown_N = self._rates(item_N, catalogue.categories_of(rows, item_N), click_N, share_N)
        logit_N = np.log(rate_N / (1 - rate_N)) - np.log(terms.prior / (1 - terms.prior))
        left_N = np.where(item_N >= 0, self.release.rows_2B[0, item_N] - click_N, 0.0)
        pull_N = _PULL * left_N / (shown_N + self._item_noise[0] + _PULL_ROWS)
        return np.stack([logit_N, np.clip(pull_N, -_PULL, _PULL)], axis=1).astype(np.float32)

    def num_unknown(self, rows: pd.DataFrame) -> int:
        """Returns how many rows are of an item that the catalogue does not have."""
        return int((self.release.catalogue.items_of(rows) < 0).sum())

    def rates(self, rows: pd.DataFrame) -> Float:
        """Returns the shrunk click rate of each row's item, none of the rows being in the statistics, float64 [N]."""
        item_N = self.release.catalogue.items_of(rows)
        zero_N = np.zeros(len(rows))
        return self._rates(item_N, self.release.catalogue.categories_of(rows, item_N), zero_N, zero_N)[0]

    def _rates(self, item_N: Int, category_N: Int, own_click_N: Float, own_shown_N: Float) -> tuple[Float, Float]:
        """Returns the posterior mean of rate and impressions, an own contribution taken out."""
        fitted, (click_B, shown_B) = self._fitted, self.release.rows_2B
        prior_rate_N = np.where(category_N >= 0, fitted.category_K[category_N], fitted.base)
        known_N = item_N >= 0
        rate_N, count_N = prior_rate_N.copy(), np.zeros(len(item_N))
        item_M = item_N[known_N]
        rate_N[known_N], count_N[known_N] = _posterior(
            click_B[item_M] - own_click_N[known_N],
            shown_B[item_M] - own_shown_N[known_N],
            prior_rate_N[known_N],
            self._item_noise,
            self.release.terms.prior,
            fitted,
        )
        return rate_N, count_N

    @property
    def _item_noise(self) -> tuple[float, float]:
        return float(self.release.noise_2B[0, 0]), float(self.release.noise_2B[1, 0])

    @cached_property
    def _fitted(self) -> _Rates:
        catalogue, prior = self.release.catalogue, self.release.terms.prior
        rows_2B, noise_2B, items = self.release.rows_2B, self.release.noise_2B, len(catalogue.items)
        base = _rate_of_all(rows_2B[:, -1], noise_2B[:, -1], prior)
        category_K = _category_rates(rows_2B[:, items:-1], noise_2B[:, items:-1], base, prior)
        some = slice(None, items, math.ceil(items / _FITTED_ITEMS))
        click_I, shown_I = rows_2B[:, some]
        rate_I = category_K[catalogue.category_of_I[some]]
        part_G, share_G = _mixture(shown_I, float(noise_2B[1, 0]))
        tried = [_Rates(base, category_K, part_G, share_G, effect) for effect in _EFFECTS]
        return max(tried, key=lambda one: _likelihood(click_I, shown_I, rate_I, self._item_noise, prior, one))


def _rate_of_all(total_2: Float, noise_2: Float, prior: float) -> float:
    """Returns the click rate of everything; the public prior where the total drowns in its noise."""
    clicks, shown = total_2
    if shown <= _SURE * max(noise_2):
        return prior
    return float(np.clip(prior + clicks / shown, _LEAST_RATE, _MOST_RATE))


def _category_rates(rows_2K: Float, noise_2K: Float, base: float, prior: float) -> Float:
    """Returns each category's click rate, shrunk to that of everything by its known noise."""
    shown_K = np.maximum(rows_2K[1], 1e-9)
    over_K = rows_2K[0] - shown_K * (base - prior)  # clicks beyond those that the base rate gives
    variance_K = noise_2K[0] ** 2 + ((base - prior) * noise_2K[1]) ** 2 + shown_K * base * (1 - base)
    effect_K = shown_K * over_K / (shown_K**2 + variance_K / _CATEGORY_EFFECT**2)
    rates_K: Float = np.clip(base + effect_K, _LEAST_RATE, _MOST_RATE)
    return rates_K


def _mixture(shown_I: Float, noise: float) -> tuple[Float, Float]:
    """Returns means and shares of a mixture of Gaussians for how often items were shown, fitted to noisy counts."""
    most = max(float(shown_I.max(initial=0.0)), 4 * noise, 4.0)
    part_G = np.concatenate([[0.0], 0.5 * _GRID_STEP ** np.arange(1 + int(np.log(2 * most) / np.log(_GRID_STEP)))])
    log_IG = _log_normal(shown_I[:, None] - part_G, noise**2 + _part_variances(part_G))
    density_IG = np.exp(log_IG - log_IG.max(1, keepdims=True))
    share_G = np.full(len(part_G), 1 / len(part_G))
    for _ in range(_EM_ROUNDS):
        joint_IG = density_IG * share_G
        share_G = (joint_IG / joint_IG.sum(1, keepdims=True)).mean(0)
        share_G = np.maximum(share_G / share_G.sum(), 1e-9)
    return part_G, share_G


def _part_variances(part_G: Float) -> Float:
    variances_G: Float = (_GRID_WIDTH * part_G) ** 2 + 1e-6
    return variances_G


def _log_normal(distance: Float, variance: Float) -> Float:
    log_density: Float = -0.5 * (distance**2 / variance + np.log(variance))
    return log_density


def _joint(
    click_M: Float, shown_M: Float, rate_M: Float, noise: tuple[float, float], prior: float, fitted: _Rates
) -> tuple[Float, Float, Float]:
    """Returns, for each part of the mixture, its log likelihood, the item's impressions and its effect, [M, G] each."""
    click_noise, shown_noise = noise
    part_variance_G = _part_variances(fitted.part_G)
    total_G = shown_noise**2 + part_variance_G
    kept_G = part_variance_G / total_G  # of what the noisy count says, beside the part's own mean
    shown_MG = np.maximum(fitted.part_G + kept_G * (shown_M[:, None] - fitted.part_G), 0.0)
    left_G = part_variance_G * (1 - kept_G)  # variance of the count that is left
    over_MG = click_M[:, None] - shown_MG * (rate_M - prior)[:, None]
    spread_MG = click_noise**2 + shown_MG * (rate_M * (1 - rate_M))[:, None] + left_G * ((rate_M - prior) ** 2)[:, None]
    explained_MG = (fitted.effect * shown_MG) ** 2 + 1e-9
    effect_MG = fitted.effect**2 * shown_MG * over_MG / (spread_MG + explained_MG)
    log_MG = np.log(fitted.share_G) + _log_normal(shown_M[:, None] - fitted.part_G, total_G)
    return log_MG + _log_normal(over_MG, spread_MG + explained_MG), shown_MG, effect_MG


def _posterior(
    click_M: Float, shown_M: Float, rate_M: Float, noise: tuple[float, float], prior: float, fitted: _Rates
) -> tuple[Float, Float]:
    """Returns the posterior means of an item's rate and of its impressions."""
    rates_M, counts_M = np.empty(len(click_M)), np.empty(len(click_M))
    for start in range(0, len(click_M), _BLOCK):
        part = slice(start, start + _BLOCK)
        log_MG, shown_MG, effect_MG = _joint(click_M[part], shown_M[part], rate_M[part], noise, prior, fitted)
        weight_MG = softmax(log_MG, axis=1)
        rates_M[part] = np.clip(rate_M[part] + (weight_MG * effect_MG).sum(1), _LEAST_RATE, _MOST_RATE)
        counts_M[part] = (weight_MG * shown_MG).sum(1)
    return rates_M, counts_M


def _likelihood(
    click_I: Float, shown_I: Float, rate_I: Float, noise: tuple[float, float], prior: float, fitted: _Rates
) -> float:
    """Returns the log marginal likelihood of the noisy sums of items."""
    return float(logsumexp(_joint(click_I, shown_I, rate_I, noise, prior, fitted)[0], axis=1).sum())
