"""A generated click log of any size whose structure is planted and known, so that what should be learnt is known too.

What is planted, per impression of an item to a user:

    click logit = base + signal * taste + quality + context + activity

- taste: each user likes exactly two of the eight themes: +sqrt(3) there, -1/sqrt(3) elsewhere, so that taste has mean
  0 and variance 1 over themes, and `signal` is the logit per standard deviation. A theme runs through all domains and
  both languages and shows in the copy alone, so a text model can carry a taste from shop to news and from partner
  to partner. With signal 0 there is nothing personal to learn from text.
- quality: N(0, 0.3) per item; not in the copy.
- context: placement (top +0.4, feed +0.1, sidebar -0.2, footer -0.3) and device (phone +0.1, tablet 0, desktop -0.1).
- activity: N(0, 0.4) per user.
- base: solved so that the mean click probability is `base_rate`.

Purchases, of clicks: logit = level + 0.5 * standardised quality - 0.5 * standardised log price, `level` solved so that
their mean probability over clicks is `purchase_rate`.

How impressions come about: 1 + geometric per user, mean `impressions_per_user`, at least 2, in slates of 4 (the first
and the last may be shorter), one second apart. Each user has a language, a usual device (in 4 of 5 slates) and a home
domain (in 7 of 10 slates; else any domain): that is the skew which partition "dominant" turns into partners. The log
spans 30 days. About three users in eight join late, and about one item in three is launched late: cold users, cold
items. Within a domain and a language, earlier items are shown more often.

Letters: N = impressions, U = users, I = items, S = slates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from common.clicks import CONTEXT_PREFIX, ClickLog, make_log, require_both_classes
from common.config import GeneratorConfig
from simulations.generator_copy import COPY, LANGUAGES, THEMES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START_SECOND = 1_735_689_600  # 2025-01-01
SPAN_SECONDS = 30 * 86_400
SLATE_SIZE = 4
LIKED_THEMES = 2
HOME_RATE = 0.7
USUAL_DEVICE_RATE = 0.8
QUALITY_SCALE = 0.3
ACTIVITY_SCALE = 0.4
PLACEMENTS = {"top": 0.4, "feed": 0.1, "sidebar": -0.2, "footer": -0.3}
DEVICES = {"phone": 0.1, "tablet": 0.0, "desktop": -0.1}
_NUMBERS = (3, 5, 7, 8, 10, 12, 15, 20, 30, 40)
_TRIES = 20  # at a text that no earlier item has


@dataclass(frozen=True)
class GeneratedTruth:
    """The planted parts of every click logit, in the order of the log's rows."""

    logit_N: Floats  # base + signal * taste_N + quality_N + context_N + activity_N
    taste_N: Floats
    quality_N: Floats
    context_N: Floats
    activity_N: Floats
    base: float


@dataclass(frozen=True)
class _Items:
    domain_I: Ints
    language_I: Ints
    theme_I: Ints
    launch_I: Floats  # share of the span that has passed
    quality_I: Floats  # standardised
    log_price_I: Floats  # standardised
    text_I: list[str]


@dataclass(frozen=True)
class _Users:
    home_U: Ints
    language_U: Ints
    device_U: Ints
    activity_U: Floats
    joined_U: Floats  # share of the span that has passed
    taste_UT: Floats
    impressions_U: Ints


@dataclass(frozen=True)
class _Impressions:
    user_N: Ints
    slate_N: Ints  # within the user
    time_N: Ints
    domain_N: Ints
    device_N: Ints
    placement_N: Ints
    item_N: Ints


def generate_clicks(config: GeneratorConfig) -> ClickLog:
    """Returns a log of planted structure; the same configuration gives the same log.

    Raises:
        DataError: when so few impressions came about that all or none of them are clicked.
    """
    return generate_with_truth(config)[0]


def generate_with_truth(config: GeneratorConfig) -> tuple[ClickLog, GeneratedTruth]:
    """Returns the log of `generate_clicks` and the truth behind each of its rows."""
    rng = np.random.default_rng(config.seed)
    items, users = _make_items(config, rng), _make_users(config, rng)
    shown = _show(config, items, users, rng)
    truth = _plant(config, items, users, shown)
    clicked_N = rng.random(len(shown.user_N)) < expit(truth.logit_N)
    rows = pd.DataFrame(_columns(items, users, shown) | {"clicked": clicked_N.astype("int8")})
    require_both_classes(rows, "data.generator", "data.generator.base_rate, or raise data.generator.users")
    if config.purchase_rate > 0:
        rows["purchased"] = _purchase(config, items, shown, clicked_N, rng)
    return make_log(rows), truth


def oracle_auc(log: ClickLog, truth: GeneratedTruth) -> float:
    """Returns the ROC-AUC of the planted logits: what a model that knew all would reach, up to chance."""
    return float(roc_auc_score(log.rows["clicked"], truth.logit_N))


def _make_items(config: GeneratorConfig, rng: np.random.Generator) -> _Items:
    """Returns items that fill (domain, language) in turn, then themes; the first of each is there from the start."""
    count, languages = config.items, _languages(config)
    cells = config.domains * len(languages)
    index_I = np.arange(count)
    language_I = np.array([LANGUAGES.index(name) for name in languages])[index_I // config.domains % len(languages)]
    launch_I = np.where(index_I < cells, 0.0, np.maximum(0.0, rng.uniform(-2.0, 0.95, count)))
    domain_I, theme_I = index_I % config.domains, index_I // cells % len(THEMES)
    quality_I, log_price_I = rng.standard_normal((2, count))
    text_I = _write_copy(domain_I, language_I, theme_I, log_price_I, rng)
    return _Items(domain_I, language_I, theme_I, launch_I, quality_I, log_price_I, text_I)


def _languages(config: GeneratorConfig) -> tuple[str, ...]:
    return LANGUAGES if config.languages == "both" else (config.languages,)


def _write_copy(
    domain_I: Ints, language_I: Ints, theme_I: Ints, log_price_I: Floats, rng: np.random.Generator
) -> list[str]:
    """Returns one text per item; distinct ones as far as the vocabulary goes."""
    domains, texts, seen = list(COPY), [], set()
    for domain, language, theme, log_price in zip(domain_I, language_I, theme_I, log_price_I, strict=True):
        place = (domains[domain], LANGUAGES[language], THEMES[theme], float(log_price))
        for _ in range(_TRIES):
            text = _one_text(*place, rng)
            if text not in seen:
                break
        seen.add(text)
        texts.append(text)
    return texts


def _one_text(domain: str, language: str, theme: str, log_price: float, rng: np.random.Generator) -> str:
    """Returns a random template with its slots filled, opening with a capital."""
    copy = COPY[domain][language]
    dollars = np.exp(3.5 + 0.7 * log_price)
    price = f"${dollars:.0f}" if language == "en" else f"{7 * dollars:.0f}元"
    thing, hook = rng.choice(copy.things[theme]), rng.choice(copy.hooks)
    text = str(rng.choice(copy.templates)).format(thing=thing, hook=hook, number=rng.choice(_NUMBERS), price=price)
    return text[:1].upper() + text[1:]


def _make_users(config: GeneratorConfig, rng: np.random.Generator) -> _Users:
    count, languages = config.users, _languages(config)
    rank_UT = rng.random((count, len(THEMES))).argsort(axis=1).argsort(axis=1)
    odds = np.sqrt(len(THEMES) / LIKED_THEMES - 1)  # sqrt(3): mean 0, variance 1 over themes
    return _Users(
        home_U=rng.integers(config.domains, size=count),
        language_U=np.array([LANGUAGES.index(name) for name in languages])[rng.integers(len(languages), size=count)],
        device_U=rng.integers(len(DEVICES), size=count),
        activity_U=rng.normal(0.0, ACTIVITY_SCALE, count),
        joined_U=np.maximum(0.0, rng.uniform(-1.5, 0.9, count)),
        taste_UT=np.where(rank_UT < LIKED_THEMES, odds, -1 / odds),
        impressions_U=1 + rng.geometric(1 / (config.impressions_per_user - 1), count),
    )


def _show(config: GeneratorConfig, items: _Items, users: _Users, rng: np.random.Generator) -> _Impressions:
    """Returns who was shown which item, when and where; by user, then by time."""
    number_U = users.impressions_U
    user_N = np.repeat(np.arange(config.users), number_U)
    place_N = np.arange(len(user_N)) - np.repeat(number_U.cumsum() - number_U, number_U)
    shift_U = rng.integers(SLATE_SIZE, size=config.users)  # shortens the first slate
    shifted_N = place_N + shift_U[user_N]
    slate_N = shifted_N // SLATE_SIZE
    slates_U = (number_U - 1 + shift_U) // SLATE_SIZE + 1
    user_S = np.repeat(np.arange(config.users), slates_U)
    first_U = slates_U.cumsum() - slates_U
    to_slate_N = first_U[user_N] + slate_N
    # One slate per equal stretch of the user's time; the last tenth of a stretch stays free, so slates never meet.
    stretch_S = (np.arange(len(user_S)) - first_U[user_S] + 0.9 * rng.random(len(user_S))) / slates_U[user_S]
    moment_S = users.joined_U[user_S] + (1 - users.joined_U[user_S]) * stretch_S
    at_home_S = rng.random(len(user_S)) < HOME_RATE
    domain_S = np.where(at_home_S, users.home_U[user_S], rng.integers(config.domains, size=len(user_S)))
    usual_S = rng.random(len(user_S)) < USUAL_DEVICE_RATE
    device_S = np.where(usual_S, users.device_U[user_S], rng.integers(len(DEVICES), size=len(user_S)))
    domain_N = domain_S[to_slate_N]
    return _Impressions(
        user_N=user_N,
        slate_N=slate_N,
        time_N=START_SECOND + (moment_S * SPAN_SECONDS).astype(np.int64)[to_slate_N] + shifted_N % SLATE_SIZE,
        domain_N=domain_N,
        device_N=device_S[to_slate_N],
        placement_N=rng.integers(len(PLACEMENTS), size=len(user_N)),
        item_N=_pick_items(items, domain_N, users.language_U[user_N], moment_S[to_slate_N], rng),
    )


def _pick_items(items: _Items, domain_N: Ints, language_N: Ints, moment_N: Floats, rng: np.random.Generator) -> Ints:
    """Returns an item of the domain and language that is launched by the moment; earlier items more often."""
    item_N = np.zeros(len(domain_N), dtype=np.int64)
    pull_N = rng.random(len(domain_N)) ** 1.5
    cell_N = domain_N * len(LANGUAGES) + language_N
    for cell in np.unique(cell_N):
        domain, language = divmod(int(cell), len(LANGUAGES))
        pool = np.flatnonzero((items.domain_I == domain) & (items.language_I == language))
        if len(pool) == 0:  # fewer items than cells: the domain's other language serves
            pool = np.flatnonzero(items.domain_I == domain)
        pool = pool[items.launch_I[pool].argsort(kind="stable")]
        here = np.flatnonzero(cell_N == cell)
        launched = np.searchsorted(items.launch_I[pool], moment_N[here], side="right")
        item_N[here] = pool[(pull_N[here] * launched).astype(np.int64)]
    return item_N


def _plant(config: GeneratorConfig, items: _Items, users: _Users, shown: _Impressions) -> GeneratedTruth:
    taste_N = users.taste_UT[shown.user_N, items.theme_I[shown.item_N]]
    quality_N = QUALITY_SCALE * items.quality_I[shown.item_N]
    placement_N = np.array(list(PLACEMENTS.values()))[shown.placement_N]
    context_N = placement_N + np.array(list(DEVICES.values()))[shown.device_N]
    activity_N = users.activity_U[shown.user_N]
    rest_N = config.signal * taste_N + quality_N + context_N + activity_N
    base = _solve_level(rest_N, config.base_rate)
    return GeneratedTruth(base + rest_N, taste_N, quality_N, context_N, activity_N, base)


def _solve_level(logit_N: Floats, rate: float) -> float:
    """Returns the constant that makes the mean probability of `level + logit_N` equal to `rate`."""
    return float(brentq(lambda level: float(expit(level + logit_N).mean()) - rate, -80.0, 80.0))


def _purchase(
    config: GeneratorConfig,
    items: _Items,
    shown: _Impressions,
    clicked_N: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.int8]:
    pull_N = 0.5 * items.quality_I[shown.item_N] - 0.5 * items.log_price_I[shown.item_N]
    level = _solve_level(pull_N[clicked_N], config.purchase_rate)
    bought_N: npt.NDArray[np.bool_] = clicked_N & (rng.random(len(clicked_N)) < expit(level + pull_N))
    return bought_N.astype("int8")


def _columns(items: _Items, users: _Users, shown: _Impressions) -> dict[str, Any]:
    """Returns the canonical columns, but for the labels."""
    user_names = _names("u", len(users.home_U))
    slate_codes_N, slates = pd.factorize(shown.user_N * (int(shown.slate_N.max()) + 1) + shown.slate_N)
    return {
        "user": _spread(user_names, shown.user_N),
        "time": shown.time_N,
        "item": _spread(_names("i", len(items.text_I)), shown.item_N),
        "text": _spread(items.text_I, shown.item_N),
        "slate": _spread(_names("s", len(slates)), slate_codes_N),
        "domain": _spread(list(COPY), shown.domain_N),
        f"{CONTEXT_PREFIX}placement": _spread(list(PLACEMENTS), shown.placement_N),
        f"{CONTEXT_PREFIX}device": _spread(list(DEVICES), shown.device_N),
    }


def _names(letter: str, count: int) -> list[str]:
    """Returns ids of equal width, so that their order as text is their order as numbers."""
    width = len(str(count))
    return [f"{letter}{index:0{width}d}" for index in range(1, count + 1)]


def _spread(values: list[str], code_N: Ints) -> Any:
    return pd.array(values, dtype="str").take(code_N)
