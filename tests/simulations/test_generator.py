"""The generator: what is planted is there, at the size and rate asked for, and nothing else is."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from common.clicks import canonical_card, read_clicks, validate_rows, write_clicks
from common.config import GeneratorConfig
from common.errors import DataError
from simulations.generator import (
    SLATE_SIZE,
    SPAN_SECONDS,
    START_SECOND,
    generate_clicks,
    generate_with_truth,
    oracle_auc,
)
from simulations.generator_copy import COPY, LANGUAGES, THEMES

HAN = r"[\u4e00-\u9fff]"


@pytest.fixture(scope="module")
def usual():
    return generate_with_truth(GeneratorConfig(users=2000))


def test_rows_are_canonical_and_sorted(usual):
    rows = usual[0].rows
    assert validate_rows(rows) is rows
    assert rows["time"].between(START_SECOND, START_SECOND + SPAN_SECONDS).all()
    assert list(rows) == [
        "user",
        "time",
        "item",
        "text",
        "clicked",
        "purchased",
        "slate",
        "domain",
        "context:placement",
        "context:device",
    ]
    assert usual[0].report.dropped == {}


def test_sizes_are_what_was_asked_for(usual):
    report = usual[0].report
    assert report.users == 2000
    assert report.impressions_per_user["min"] >= 2
    # Geometric with mean 23 has standard deviation sqrt(22 * 23): 24 +- 5 standard errors.
    assert report.rows_kept / 2000 == pytest.approx(24, abs=5 * np.sqrt(22 * 23 / 2000))
    assert report.items <= 600
    assert generate_clicks(GeneratorConfig(users=300, impressions_per_user=2)).report.rows_kept == 600


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.7])
def test_click_and_purchase_rates_are_near_the_base_rates(rate):
    log, truth = generate_with_truth(GeneratorConfig(users=1500, base_rate=rate))
    assert expit(truth.logit_N).mean() == pytest.approx(rate, abs=1e-9)
    assert log.report.click_rate == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / log.report.rows_kept))
    clicks = log.report.click_rate * log.report.rows_kept
    assert log.report.purchase_rate == pytest.approx(0.15, abs=5 * np.sqrt(0.15 * 0.85 / clicks))


def test_truth_is_the_sum_of_its_parts_in_row_order(usual):
    log, truth = usual
    total_N = truth.base + 1.5 * truth.taste_N + truth.quality_N + truth.context_N + truth.activity_N
    np.testing.assert_allclose(truth.logit_N, total_N, atol=1e-12)
    rows = log.rows
    effect = {"top": 0.4, "feed": 0.1, "sidebar": -0.2, "footer": -0.3} | {"phone": 0.1, "tablet": 0.0, "desktop": -0.1}
    planted_N = rows["context:placement"].map(effect) + rows["context:device"].map(effect)
    np.testing.assert_allclose(truth.context_N, planted_N.astype(float), atol=1e-12)
    assert pd.Series(truth.activity_N).groupby(rows["user"].to_numpy()).nunique().max() == 1
    assert pd.Series(truth.quality_N).groupby(rows["item"].to_numpy()).nunique().max() == 1


def test_taste_has_mean_zero_and_variance_one_and_is_carried_by_themes(usual):
    log, truth = usual
    assert sorted(set(truth.taste_N.round(6))) == [-0.577350, 1.732051]
    assert (truth.taste_N > 0).mean() == pytest.approx(0.25, abs=0.02)
    theme = log.rows["text"].map(_theme_of_text)
    assert set(theme) == set(THEMES)
    tastes = pd.DataFrame({"user": log.rows["user"], "theme": theme, "taste": truth.taste_N})
    per_theme = tastes.groupby(["user", "theme"])["taste"]
    assert per_theme.nunique().max() == 1  # across domains and languages
    liked = (per_theme.first() > 0).groupby("user").sum()
    assert liked.max() == 2


def _theme_of_text(text):
    """Returns the theme whose longest thing the text holds: the copy must say what the item is about."""
    found = [(len(thing), theme) for thing, theme in _THINGS if thing in text.lower()]
    return max(found)[1]


_THINGS = [
    (thing.lower(), theme)
    for languages in COPY.values()
    for copy in languages.values()
    for theme, things in copy.things.items()
    for thing in things
]


def test_oracle_rises_with_signal_and_taste_is_worth_nothing_at_zero():
    logs = {signal: generate_with_truth(GeneratorConfig(users=1500, signal=signal)) for signal in (0.0, 0.5, 1.5, 3.0)}
    oracle = [oracle_auc(*each) for each in logs.values()]
    taste = [roc_auc_score(log.rows["clicked"], truth.taste_N) for log, truth in logs.values()]
    assert oracle[0] < oracle[1] < oracle[2] < oracle[3]
    assert taste[0] == pytest.approx(0.5, abs=0.015)
    assert taste[0] < taste[1] < taste[2] < taste[3]
    # What is left at signal 0 is known: item, context and activity, of standard deviation sqrt(.3^2 + .4^2 + context).
    assert 0.6 < oracle[0] < 0.7
    assert oracle[3] > 0.93


def test_no_score_beats_the_oracle(usual):
    log, truth = usual
    partial = truth.logit_N - truth.activity_N
    assert roc_auc_score(log.rows["clicked"], partial) < oracle_auc(log, truth)


def test_seed_decides_everything():
    first, again, other = (generate_clicks(GeneratorConfig(users=100, seed=seed)) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.rows, again.rows)
    assert not first.rows["text"].equals(other.rows["text"])


@pytest.mark.parametrize(("languages", "lowest", "highest"), [("en", 0.0, 0.0), ("zh", 1.0, 1.0), ("both", 0.4, 0.6)])
def test_languages_show_in_their_script(languages, lowest, highest):
    rows = generate_clicks(GeneratorConfig(users=300, languages=languages)).rows
    chinese = rows["text"].str.contains(HAN)
    assert lowest <= chinese.mean() <= highest
    assert chinese.groupby(rows["user"]).nunique().max() == 1  # a user reads one language
    assert rows.loc[~chinese, "text"].str.match(r"^[A-Z0-9]").all()


def test_texts_are_nearly_all_distinct_and_filled():
    rows = generate_clicks(GeneratorConfig(users=3000)).rows.drop_duplicates("item")
    assert len(rows) > 590
    assert rows["text"].nunique() > 0.99 * len(rows)
    assert not rows["text"].str.contains(r"[{}]").any()


def test_vocabulary_is_complete():
    assert list(COPY) == ["e-commerce", "social", "news", "video", "apps"]
    for languages in COPY.values():
        assert tuple(languages) == LANGUAGES
        for language, copy in languages.items():
            assert tuple(copy.things) == THEMES
            things = [thing for each in copy.things.values() for thing in each]
            assert len(things) == 40 == len(set(things))
            assert all("{thing}" in template for template in copy.templates)
            assert all(pd.Series(things + list(copy.hooks)).str.contains(HAN)) is (language == "zh")


def test_slates_are_of_one_user_domain_and_device_and_of_about_four(usual):
    rows = usual[0].rows
    slates = rows.groupby("slate")
    assert (slates[["user", "domain", "context:device"]].nunique().max() == 1).all()
    sizes = slates.size()
    assert sizes.max() == SLATE_SIZE
    assert (sizes == SLATE_SIZE).mean() > 0.6
    assert (slates["time"].max() - slates["time"].min()).max() < SLATE_SIZE
    assert rows.groupby("user")["time"].diff().dropna().gt(0).all()


def test_users_have_a_home_domain(usual):
    rows = usual[0].rows
    busy = rows[rows.groupby("user")["user"].transform("size") >= 40]
    share = busy.groupby("user")["domain"].value_counts(normalize=True).groupby("user").max()
    # Home in 7 of 10 slates, and in a fifth of the other 3: 0.76.
    assert share.mean() == pytest.approx(0.76, abs=0.03)
    assert busy.groupby("user")["domain"].agg(lambda each: each.mode()[0]).value_counts(normalize=True).min() > 0.1


def test_domains_are_the_first_so_many():
    rows = generate_clicks(GeneratorConfig(users=100, domains=2)).rows
    assert set(rows["domain"]) == {"e-commerce", "social"}


def test_some_users_and_items_come_late(usual):
    rows = usual[0].rows
    late = START_SECOND + 0.8 * SPAN_SECONDS
    assert 0.02 < (rows.groupby("user")["time"].min() > late).mean() < 0.2
    assert 0.0 < (rows.groupby("item")["time"].min() > late).mean() < 0.2


def test_purchases_follow_quality_and_may_be_left_out(usual):
    log, truth = usual
    clicked = log.rows["clicked"] == 1
    assert roc_auc_score(log.rows.loc[clicked, "purchased"], truth.quality_N[clicked]) > 0.55
    assert "purchased" not in generate_clicks(GeneratorConfig(users=100, purchase_rate=0.0)).rows


def test_smallest_sizes_work():
    log = generate_clicks(GeneratorConfig(users=20, items=5, impressions_per_user=2, base_rate=0.5))
    assert log.report.items == 5  # fewer items than (domain, language) cells
    with pytest.raises(DataError, match=r"data\.generator: no row is clicked among"):
        generate_clicks(GeneratorConfig(users=1, impressions_per_user=2, base_rate=1e-6))


def test_generated_log_survives_a_file(tmp_path, usual):
    path = tmp_path / "log.parquet"
    write_clicks(usual[0].rows, path)
    again = read_clicks(path, canonical_card(usual[0].rows))
    pd.testing.assert_frame_equal(again.rows, usual[0].rows)
    assert again.report == usual[0].report
