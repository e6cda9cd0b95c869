"""Metrics against hand-computed numbers, scikit-learn and torchmetrics; ties and undefined cases included."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from common import metrics

# Few distinct scores, so that ties are everywhere.
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda n: n / 8), st.integers(0, 3)), min_size=1, max_size=40
)


def _columns(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, score, group = zip(*rows, strict=True)
    return np.array(label), np.array(score), np.array(group)


def _both(label: np.ndarray) -> bool:
    return 0 < label.sum() < label.size


def _random(rows: int = 2000, groups: int = 150, seed: int = 0):
    rng = np.random.default_rng(seed)
    score = rng.random(rows)
    label = (rng.random(rows) < score**2).astype(int)
    return label, score, rng.integers(0, groups, rows)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_hand_computed_figures() -> None:
    label, score = [0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]
    assert metrics.roc_auc(label, score) == 3.5 / 4  # of four pairs three are right and one is a tie
    # Thresholds .8, .4, .1: precision 1, 2/3, 1/2 where recall rises by 1/2, 1/2, 0.
    assert metrics.pr_auc(label, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    loss = -(math.log(0.9) + math.log(0.4) + math.log(0.6) + math.log(0.8)) / 4
    assert metrics.log_loss(label, score) == pytest.approx(loss)
    assert metrics.normalised_entropy(label, score) == pytest.approx(loss / math.log(2))
    assert metrics.calibration_ratio(label, score) == pytest.approx(1.7 / 2)
    assert metrics.brier(label, score) == pytest.approx((0.01 + 0.36 + 0.16 + 0.04) / 4)


def test_grouped_figures_by_hand() -> None:
    # User a: AUC 1 over 2 rows. User b: AUC 1/8 over 4 rows. User c has one class and does not count.
    label = [1, 0, 1, 0, 0, 1, 0]
    score = [0.9, 0.1, 0.5, 0.7, 0.5, 0.2, 0.4]
    user = np.array(["a", "a", "b", "b", "b", "b", "c"], dtype=object)
    by_user = metrics.group_auc(label, score, user)
    np.testing.assert_allclose(by_user.auc_G, [1.0, 0.125, np.nan])
    assert by_user.rows_G.tolist() == [2, 4, 1]
    assert metrics.gauc(label, score, user) == pytest.approx((2 * 1 + 4 * 0.125) / 6)
    assert metrics.uauc(label, score, user) == pytest.approx((1 + 0.125) / 2)


def test_slate_figures_by_hand() -> None:
    # Slate 7: clicks at ranks 2 and 3 of three. Slate 5: click at rank 1. Slate 9: no click, left out.
    slate = [7, 7, 7, 5, 5, 9]
    label = [0, 1, 1, 1, 0, 0]
    score = [0.9, 0.8, 0.1, 0.6, 0.5, 0.3]
    assert metrics.mrr(label, score, slate) == pytest.approx((1 / 2 + 1) / 2)
    log3 = 1 / math.log2(3)
    assert metrics.ndcg_at_k(label, score, slate, 10) == pytest.approx(((log3 + 0.5) / (1 + log3) + 1) / 2)
    assert metrics.ndcg_at_k(label, score, slate, 1) == pytest.approx((0 + 1) / 2)


def test_a_constant_score_is_worth_the_base_rate() -> None:
    label = np.array([1, 0, 0, 0] * 25)
    score = np.full(100, 0.25)
    figures = metrics.evaluate_scores(label, score, np.arange(100) % 7)
    assert figures["auc"] == figures["gauc"] == figures["uauc"] == 0.5
    assert figures["pr_auc"] == figures["base_rate"] == 0.25
    assert figures["ne"] == pytest.approx(1)
    assert figures["calibration_ratio"] == pytest.approx(1)
    assert figures["ece"] == pytest.approx(0, abs=1e-12)


def test_a_given_base_rate_is_scored_on_the_rows() -> None:
    label = np.array([1, 0, 0, 0])
    assert metrics.normalised_entropy(label, np.full(4, 0.4), base_rate=0.4) == pytest.approx(1)
    assert metrics.normalised_entropy(label, np.full(4, 0.25), base_rate=0.4) < 1
    for wrong in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="base_rate"):
            metrics.normalised_entropy(label, np.full(4, 0.4), base_rate=wrong)


def test_certain_and_wrong_is_clipped_not_infinite() -> None:
    assert metrics.log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-math.log(metrics.CLIP))
    assert metrics.log_loss([1, 0], [1.0, 0.0]) == pytest.approx(metrics.CLIP, rel=1e-6)


# --- calibration --------------------------------------------------------------------------------------------------


def test_ece_by_hand_in_two_bins() -> None:
    label, score = [0, 1, 1, 1], [0.1, 0.3, 0.6, 0.8]
    curve = metrics.calibration_bins(label, score, bins=2)
    np.testing.assert_allclose(curve.predicted_B, [0.2, 0.7])
    np.testing.assert_allclose(curve.observed_B, [0.5, 1.0])
    assert curve.rows_B.tolist() == [2, 2]
    assert metrics.ece(label, score, bins=2) == pytest.approx(0.3)


def test_bins_are_those_of_scikit_learn_when_scores_differ() -> None:
    label, score, _ = _random(1500)
    curve = metrics.calibration_bins(label, score, bins=15)
    observed, predicted = calibration_curve(label, score, n_bins=15, strategy="quantile")
    assert curve.rows_B.tolist() == [100] * 15
    np.testing.assert_allclose(curve.observed_B, observed)
    np.testing.assert_allclose(curve.predicted_B, predicted)


def test_equal_scores_share_a_bin() -> None:
    curve = metrics.calibration_bins([0, 1] * 50, np.repeat([0.2, 0.7], 50), bins=15)
    np.testing.assert_allclose(curve.predicted_B, [0.2, 0.7])
    assert curve.rows_B.tolist() == [50, 50]
    with pytest.raises(ValueError, match="bins = 0"):
        metrics.calibration_bins([0, 1], [0.1, 0.2], bins=0)


@given(ROWS, st.integers(1, 20))
def test_bins_hold_every_row_once(rows, bins: int) -> None:
    label, score, _ = _columns(rows)
    curve = metrics.calibration_bins(label, score, bins)
    assert curve.rows_B.sum() == label.size
    assert curve.rows_B.size <= bins
    assert (np.diff(curve.predicted_B) > 0).all()
    assert curve.observed_B @ curve.rows_B == pytest.approx(label.sum())


# --- against the libraries ----------------------------------------------------------------------------------------


@given(ROWS)
def test_agrees_with_scikit_learn(rows) -> None:
    label, score, group = _columns(rows)
    inside = 0.01 + 0.98 * score
    assert metrics.brier(label, score) == pytest.approx(np.mean((label - score) ** 2))
    assert metrics.log_loss(label, inside) == pytest.approx(sk.log_loss(label, inside, labels=[0, 1]))
    if label.any():
        assert metrics.pr_auc(label, score) == pytest.approx(sk.average_precision_score(label, score))
    if _both(label):
        assert metrics.roc_auc(label, score) == pytest.approx(sk.roc_auc_score(label, score))
        assert metrics.brier(label, score) == pytest.approx(sk.brier_score_loss(label, score))
    by_group = metrics.group_auc(label, score, group)
    for row, name in enumerate(dict.fromkeys(group.tolist())):
        mine = group == name
        expected = sk.roc_auc_score(label[mine], score[mine]) if _both(label[mine]) else float("nan")
        assert by_group.auc_G[row] == pytest.approx(expected, nan_ok=True)
        assert by_group.rows_G[row] == mine.sum()


@given(ROWS, st.integers(1, 12))
def test_ndcg_agrees_with_scikit_learn_ties_included(rows, k: int) -> None:
    label, score, slate = _columns(rows)
    values = []
    for name in np.unique(slate):
        mine = slate == name
        if label[mine].any():
            # scikit-learn refuses slates of one row, whose only click is always first
            values.append(sk.ndcg_score([label[mine]], [score[mine]], k=k) if mine.sum() > 1 else 1.0)
    expected = np.mean(values) if values else float("nan")
    assert metrics.ndcg_at_k(label, score, slate, k) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6))
def test_mrr_is_the_mean_over_all_orders_of_ties(rows) -> None:
    label, score = np.array(rows).T
    if not label.any():
        return
    values = []
    for order in itertools.permutations(range(label.size)):
        ranked = sorted(order, key=lambda row: -score[row])  # stable: the permutation decides among ties
        values.append(1 / (1 + next(rank for rank, row in enumerate(ranked) if label[row])))
    # A second slate (click at rank 1) in front shows that slates do not leak into one another.
    slate = np.r_[9, 9, np.zeros(label.size)]
    found = metrics.mrr(np.r_[1, 0, label], np.r_[3, 0, score], slate)
    assert found == pytest.approx((1 + np.mean(values)) / 2)


def test_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics import functional as tm
    from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG

    label, score, slate = _random()
    score = score.astype(np.float32)
    tensors = torch.tensor(score), torch.tensor(label)
    assert metrics.roc_auc(label, score) == pytest.approx(float(tm.auroc(*tensors, task="binary")), abs=1e-5)
    expected = float(tm.average_precision(*tensors, task="binary"))
    assert metrics.pr_auc(label, score) == pytest.approx(expected, abs=1e-5)
    places = {"indexes": torch.tensor(slate)}
    expected = float(RetrievalMRR(empty_target_action="skip")(*tensors, **places))
    assert metrics.mrr(label, score, slate) == pytest.approx(expected, abs=1e-5)
    for k in (5, 10):
        expected = float(RetrievalNormalizedDCG(empty_target_action="skip", top_k=k)(*tensors, **places))
        assert metrics.ndcg_at_k(label, score, slate, k) == pytest.approx(expected, abs=1e-5)


# --- properties, undefined cases, refusals ------------------------------------------------------------------------


@given(ROWS, st.randoms(use_true_random=False))
def test_no_figure_depends_on_the_order_of_rows(rows, random) -> None:
    shuffled = random.sample(rows, len(rows))
    before, after = (metrics.evaluate_scores(*_columns(some), _columns(some)[2]) for some in (rows, shuffled))
    assert after == pytest.approx(before, nan_ok=True)


def test_names_of_all_figures() -> None:
    label, score, group = _random(200, 10)
    plain = ["auc", "pr_auc", "base_rate", "log_loss", "ne", "calibration_ratio", "ece", "brier", "gauc", "uauc"]
    assert list(metrics.evaluate_scores(label, score, group)) == plain
    with_slates = metrics.evaluate_scores(label, score, group, group)
    assert list(with_slates) == [*plain, "impression_auc", "mrr", "ndcg_5", "ndcg_10"]
    assert with_slates["impression_auc"] == with_slates["uauc"]
    assert all(type(value) is float and math.isfinite(value) for value in with_slates.values())


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        ([1, 1], {"auc", "ne", "gauc", "uauc", "impression_auc"}),
        (
            [0, 0],
            {"auc", "ne", "gauc", "uauc", "impression_auc", "pr_auc", "calibration_ratio", "mrr", "ndcg_5", "ndcg_10"},
        ),
    ],
)
def test_one_class_is_nan_where_nothing_can_be_said(label: list[int], undefined: set[str]) -> None:
    figures = metrics.evaluate_scores(label, [0.2, 0.3], [1, 1], [1, 1])
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined


def test_no_rows_are_nan_everywhere() -> None:
    assert all(math.isnan(value) for value in metrics.evaluate_scores([], [], [], []).values())


@pytest.mark.parametrize(
    ("label", "score", "said"),
    [
        ([0, 1, 1], [0.5, float("nan"), float("inf")], "2 of 3 scores are not finite"),
        ([0, 2, 1], [0.5, 0.5, 0.5], "1 of 3 labels are neither 0 nor 1"),
        ([0, 1, float("nan")], [0.5, 0.5, 0.5], "1 of 3 labels are neither 0 nor 1"),
        ([0, 1], [0.5], "shape"),
        ([[0, 1]], [[0.5, 0.1]], "shape"),
        ([0, 1, 1], [-0.1, 1.1, 0.2], "2 of 3 scores are no probabilities"),
    ],
)
def test_bad_rows_are_refused_with_their_count(label, score, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.evaluate_scores(label, score, np.zeros(len(label)))


def test_ranking_metrics_take_logits() -> None:
    assert metrics.roc_auc([0, 1], [-3.0, 7.0]) == 1.0
    assert metrics.ndcg_at_k([0, 1], [-3.0, 7.0], [1, 1], 5) == 1.0
    with pytest.raises(ValueError, match="k = 0"):
        metrics.ndcg_at_k([0, 1], [-3.0, 7.0], [1, 1], 0)


def test_missing_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 groups are missing"):
        metrics.gauc([0, 1], [0.1, 0.2], np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        metrics.gauc([0, 1], [0.1, 0.2], [1])


def test_many_groups_are_fast() -> None:
    label, score, user = _random(200_000, 20_000)
    start = time.process_time()
    metrics.evaluate_scores(label, score, user, user)
    assert time.process_time() - start < 5.0  # under one second alone; a loop over groups takes far longer
