"""Intervals over users: the weighted AUC against scikit-learn, coverage, and what resampling rows would miss."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from common import metrics
from common.bootstrap import Interval, WeightedAuc, bootstrap_intervals, paired_difference


def _simulate(rng: np.random.Generator, users: int, rows_each: int, user_spread: float = 0.0):
    """Returns label, score and user; `user_spread` makes a user's rows alike (some users are easy, some hard)."""
    user = np.repeat(np.arange(users), rows_each)
    taste = rng.normal(size=user.size)
    ease = 1 + user_spread * rng.normal(size=users)[user]
    label = (rng.random(user.size) < 1 / (1 + np.exp(-ease * taste))).astype(int)
    return label, 1 / (1 + np.exp(-taste)), user


ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40)


@given(ROWS, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weighted_auc_is_that_of_scikit_learn(rows, weights) -> None:
    label, score, user = np.array(rows).T
    weight = np.array(weights, dtype=float)
    found = WeightedAuc(label.astype(float), score.astype(float), user)(weight)
    kept = weight[user] > 0
    if len(set(label[kept].tolist())) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(label, score, sample_weight=weight[user]))


def test_every_resample_is_what_repeating_the_rows_gives() -> None:
    """One resample, its interval being that value: rows repeated by hand give the same four figures."""
    label, score, user = _simulate(np.random.default_rng(0), 30, 4)
    found = bootstrap_intervals(label, score, user, samples=1, seed=5)
    drawn = np.random.default_rng(5).integers(30, size=30)
    rows = np.concatenate([np.flatnonzero(user == name) for name in drawn])
    expected = {
        "auc": roc_auc_score(label[rows], score[rows]),
        "log_loss": log_loss(label[rows], score[rows]),
        "ne": metrics.normalised_entropy(label[rows], score[rows]),
        "calibration_ratio": score[rows].sum() / label[rows].sum(),
    }
    assert {name: interval.low for name, interval in found.items()} == pytest.approx(expected)
    assert {name: interval.high for name, interval in found.items()} == pytest.approx(expected)


def test_values_are_those_of_all_rows() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 40, 5)
    figures = metrics.evaluate_scores(label, score, user)
    for name, interval in bootstrap_intervals(label, score, user, samples=50, seed=1).items():
        assert interval.value == pytest.approx(figures[name])
        assert interval.low < interval.value < interval.high


def test_names_of_users_do_not_matter_and_the_seed_does() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 40, 5)
    first = bootstrap_intervals(label, score, user, samples=50, seed=1)
    assert bootstrap_intervals(label, score, [f"user {name}" for name in user], samples=50, seed=1) == first
    assert bootstrap_intervals(label, score, user, samples=50, seed=2) != first


def test_a_lower_level_is_narrower() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 40, 5)
    wide, narrow = (bootstrap_intervals(label, score, user, 200, 1, level)["auc"] for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_about_nineteen_in_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    label, score, _ = _simulate(rng, 200_000, 1)
    truth = {"auc": metrics.roc_auc(label, score), "log_loss": metrics.log_loss(label, score)}
    held = dict.fromkeys(truth, 0)
    for seed in range(200):
        intervals = bootstrap_intervals(*_simulate(rng, 150, 2), samples=150, seed=seed)
        for name, value in truth.items():
            held[name] += intervals[name].low <= value <= intervals[name].high
    # 190 are expected; the standard deviation is 3, and percentile bounds are a little narrow.
    assert all(176 <= count <= 199 for count in held.values()), held


def test_intervals_over_users_are_wider_where_a_users_rows_are_alike() -> None:
    label, score, user = _simulate(np.random.default_rng(2), 100, 40, user_spread=3.0)
    over_users = bootstrap_intervals(label, score, user, samples=300, seed=1)["auc"]
    over_rows = bootstrap_intervals(label, score, np.arange(label.size), samples=300, seed=1)["auc"]
    assert over_users.high - over_users.low > 1.5 * (over_rows.high - over_rows.low)


def test_with_independent_rows_users_and_rows_agree() -> None:
    label, score, user = _simulate(np.random.default_rng(2), 400, 10)
    over_users = bootstrap_intervals(label, score, user, samples=400, seed=1)["auc"]
    over_rows = bootstrap_intervals(label, score, np.arange(label.size), samples=400, seed=1)["auc"]
    ratio = (over_users.high - over_users.low) / (over_rows.high - over_rows.low)
    assert 0.8 < ratio < 1.25


def test_paired_difference_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(3)
    label, score, user = _simulate(rng, 150, 6)
    worse = score + 0.15 * rng.normal(size=score.size)
    paired = paired_difference(label, score, worse, user, samples=300, seed=1)
    assert paired.value == pytest.approx(roc_auc_score(label, score) - roc_auc_score(label, worse))
    assert 0 < paired.low < paired.value < paired.high
    alone = bootstrap_intervals(label, score, user, samples=300, seed=1)["auc"]
    assert paired.high - paired.low < alone.high - alone.low
    swapped = paired_difference(label, worse, score, user, samples=300, seed=1)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))


def test_a_model_does_not_differ_from_itself() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 40, 5)
    assert paired_difference(label, score, score, user, samples=20, seed=1) == Interval(0.0, 0.0, 0.0)


def test_no_spread_is_made_up() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 40, 5)
    for some, samples in ((user, 0), (np.zeros_like(user), 20)):
        found = bootstrap_intervals(label, score, some, samples=samples, seed=1)["auc"]
        assert found.value == pytest.approx(roc_auc_score(label, score))
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_one_class_and_no_rows_are_nan() -> None:
    found = bootstrap_intervals([1, 1, 1], [0.2, 0.5, 0.6], [1, 2, 3], samples=20, seed=1)
    assert all(math.isnan(value) for value in (found["auc"].value, found["auc"].low, found["ne"].high))
    assert found["log_loss"].low < found["log_loss"].high
    empty = bootstrap_intervals([], [], [], samples=20, seed=1)
    assert all(math.isnan(interval.value) for interval in empty.values())


def test_resamples_of_one_class_are_left_out() -> None:
    """Two users, one of each class: half of the resamples have one class only, the others a perfect AUC."""
    found = bootstrap_intervals([1, 0], [0.9, 0.1], [1, 2], samples=50, seed=1)["auc"]
    assert found == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_intervals([0, 1], [0.1, 0.2], [1, 2], samples=5, seed=1, level=level)


def test_bad_rows_are_refused_with_their_count() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        paired_difference([0, 1], [0.1, 0.2], [0.1, float("nan")], [1, 2], samples=5, seed=1)
    with pytest.raises(ValueError, match="1 of 2 users are missing"):
        bootstrap_intervals([0, 1], [0.1, 0.2], [1.0, float("nan")], samples=5, seed=1)
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        bootstrap_intervals([0, 1], [0.1, 0.2], [1], samples=5, seed=1)


def test_two_hundred_resamples_of_twenty_thousand_rows_are_fast() -> None:
    label, score, user = _simulate(np.random.default_rng(0), 2000, 10)
    start = time.process_time()
    bootstrap_intervals(label, score, user, samples=200, seed=1)
    assert time.process_time() - start < 1.0
