"""Histograms of scores against independent truths: one user at a time by hand, the claimed bound, scikit-learn."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

import common.scorehistogram
from client.distributed import noised_sum, rounding_bound
from client.training import secure_generator
from common.metrics import ece
from common.scorehistogram import ScoreTerms, gridded_scores, latest
from server.scorefigures import Scores, partner_figures

TERMS = ScoreTerms(bins=16, prior=0.3, max_rows=50, clip=2.0)
EXACT = ScoreTerms(bins=16, prior=0.3, max_rows=50, clip=0.0)
GRID = 2**16

Log = tuple[np.ndarray, np.ndarray, np.ndarray]


def crowd(users: int, seed: int, most_rows: int = 12) -> Log:
    """Returns clicks, scores and users: scores of one user lie together, and clicks follow them."""
    rng = np.random.default_rng(seed)
    user_N = np.repeat(np.arange(users), rng.integers(1, most_rows + 1, users))
    logit_N = rng.normal(-1.0, 0.8, users)[user_N] + rng.normal(0, 0.7, len(user_N))
    score_N = 1 / (1 + np.exp(-logit_N))
    return rng.random(len(user_N)) < 1 / (1 + np.exp(-1.3 * logit_N)), score_N, user_N


def edge(terms: ScoreTerms, place: float) -> float:
    """Returns the score at a place from 0 to 1 of the bins' scale: the odds are the prior's times its own."""
    odds = terms.prior / (1 - terms.prior) * place / (1 - place) if place < 1 else math.inf
    return odds / (1 + odds) if odds < math.inf else 1.0


def by_hand(log: Log, terms: ScoreTerms, bound: float, grid: int = GRID) -> np.ndarray:
    """The histogram in plain Python: the bin found by comparing with each edge, one user at a time."""
    rows: dict[int, Counter[int]] = defaultdict(Counter)
    edges = [edge(terms, (number + 1) / terms.bins) for number in range(terms.bins - 1)]
    for place, (clicked, score, user) in enumerate(zip(*log, strict=True)):
        if math.isfinite(score):
            found = sum(score >= one for one in edges)
            rows[place if terms.by_rows else int(user)][found if clicked else terms.bins + found] += 1
    total = [0] * terms.length
    for counts in rows.values():
        length = math.sqrt(sum(count * count for count in counts.values()))
        for cell, count in counts.items():
            total[cell] += round(count * min(1.0, bound / length) * grid / terms.clip) if terms.clip else count
    return np.array(total, np.int64)


BOUND = rounding_bound(TERMS.length, TERMS.clip, GRID)


@pytest.mark.parametrize("terms", [TERMS, EXACT, ScoreTerms(16, 0.3, 50, 1.0, by_rows=True)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_histogram_is_that_of_one_user_at_a_time(terms: ScoreTerms, seed: int) -> None:
    log, bound = crowd(60, seed), rounding_bound(terms.length, terms.clip, GRID)
    found_D = gridded_scores(*log, terms, bound, GRID)
    assert np.abs(found_D - by_hand(log, terms, bound)).max() <= 1  # a tie of rounding, at most
    assert found_D.dtype == np.int64


def test_bins_are_equal_parts_of_what_a_score_says_beside_the_prior() -> None:
    """At prior 1/2 equal in probability; at any, the prior itself lies in the middle, and the ends are 0 and 1."""
    even = ScoreTerms(10, 0.5, 8, 2.0)
    assert even.bins_of(np.array([0.0, 0.05, 0.1, 0.55, 0.999, 1.0])).tolist() == [0, 0, 1, 5, 9, 9]
    assert even.middle_B == pytest.approx(np.arange(10) / 10 + 0.05)
    rare = ScoreTerms(10, 0.01, 8, 2.0)
    assert rare.bins_of(np.array([0.0, 0.0099, 0.0101, 1.0])).tolist() == [0, 4, 5, 9]
    assert rare.bins_of(rare.middle_B).tolist() == list(range(10))
    assert rare.middle_B[5] == pytest.approx(edge(rare, 0.55))


def test_the_latest_rows_of_each_user_count() -> None:
    user_N = np.array([0, 0, 0, 1, 2, 2])
    assert latest(user_N, 2).tolist() == [False, True, True, True, True, True]
    assert latest(user_N, 1).tolist() == [False, False, True, True, False, True]
    assert latest(np.array([], np.int64), 3).tolist() == []


# --- sensitivity ------------------------------------------------------------------------------------------------------

EVERYWHERE = np.linspace(0, 1, 400)
WORST: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "all in one cell": (np.ones(4096, bool), np.full(4096, 0.5)),
    "every cell": (np.arange(800) % 2 == 0, np.repeat(EVERYWHERE, 2)),
    "both ends": (np.arange(1000) % 2 == 0, np.arange(1000) % 2 * 1.0),
    "one row": (np.zeros(1, bool), np.array([0.2])),
    "nothing finite": (np.ones(50, bool), np.full(50, np.nan)),
    "some finite": (np.ones(50, bool), np.where(np.arange(50) % 2, np.inf, 0.7)),
}


def moved(user: tuple[np.ndarray, np.ndarray], terms: ScoreTerms = TERMS, grid: int = GRID) -> float:
    """Returns how far one user more moves the whole numbers, over the grid: L2, exact."""
    bound, (clicked_N, score_N, user_N) = rounding_bound(terms.length, terms.clip, grid), crowd(15, 7)
    before_D = gridded_scores(clicked_N, score_N, user_N, terms, bound, grid)
    after = (
        np.append(clicked_N, user[0]),
        np.append(score_N, user[1]),
        np.append(user_N, np.full(len(user[0]), 15)),
    )
    after_D = gridded_scores(*after, terms, bound, grid)
    return math.sqrt(sum(int(value) ** 2 for value in after_D - before_D)) / grid


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("clip", [0.3, 2.0, 7.0])
@pytest.mark.parametrize("grid", [2**12, 2**16, 2**24])
def test_one_user_more_moves_the_whole_numbers_by_the_grid_at_most(name: str, clip: float, grid: int) -> None:
    assert moved(WORST[name], ScoreTerms(16, 0.3, 50, clip), grid) <= 1.0


def test_the_worst_user_comes_near_the_bound_so_that_the_test_above_can_fail() -> None:
    assert max(moved(user) for user in WORST.values()) > 0.99
    assert moved(WORST["nothing finite"]) == 0


def test_where_the_unit_is_a_row_each_is_bounded_by_itself() -> None:
    by_rows = ScoreTerms(16, 0.3, 50, 1.0, by_rows=True)
    assert moved(WORST["one row"], by_rows) == pytest.approx(1.0, abs=1e-3)
    assert moved(WORST["one row"], by_rows) <= 1.0
    assert moved(WORST["all in one cell"], by_rows) > 4000


@settings(max_examples=60, deadline=None, database=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.floats(0, 1) | st.just(math.nan)), max_size=60),
    prior=st.floats(0.001, 0.999),
    clip=st.floats(0.05, 20.0),
)
def test_no_user_is_longer_than_the_grid_once_rounded(
    rows: list[tuple[bool, float]], prior: float, clip: float
) -> None:
    user = np.array([row[0] for row in rows], bool), np.array([row[1] for row in rows], float)
    assert moved(user, ScoreTerms(16, prior, 50, clip), 2**12) <= 1.0


BUGS = {
    "no clip": lambda length_U, _bound: np.ones_like(length_U),
    "a clip of each row": lambda length_U, bound: np.full_like(length_U, min(1.0, bound)),
    "no room for rounding": lambda length_U, bound: np.minimum(1.0, (1 + 5e-5) * bound / length_U),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_of_clipping_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.scorehistogram, "_factors", BUGS[bug])
    assert max(moved(user) for user in WORST.values()) > 1.0


# --- figures ----------------------------------------------------------------------------------------------------------


def exact_figures(log: Log, terms: ScoreTerms = EXACT, repeat: int = 1) -> dict[str, object]:
    counts_D = gridded_scores(*log, terms, 0.0, 1) * repeat
    return partner_figures(Scores(counts_D.reshape(2, -1).astype(float), 0.0, terms), seed=1)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bins", [8, 32, 500])
def test_without_noise_figures_are_scikit_learns_on_the_binned_scores(seed: int, bins: int) -> None:
    log = crowd(80, seed)
    terms = ScoreTerms(bins, 0.3, 50, 0.0)
    binned_N = terms.middle_B[terms.bins_of(log[1])]
    found, base = exact_figures(log, terms), log[0].mean()
    assert found["auc"] == pytest.approx(roc_auc_score(log[0], binned_N), abs=1e-12)
    assert found["log_loss"] == pytest.approx(log_loss(log[0], binned_N), abs=1e-12)
    entropy = -base * math.log(base) - (1 - base) * math.log(1 - base)
    assert found["ne"] == pytest.approx(log_loss(log[0], binned_N) / entropy, abs=1e-12)
    assert found["base_rate"] == pytest.approx(base, abs=1e-12)
    assert found["calibration_ratio"] == pytest.approx(binned_N.mean() / base, abs=1e-12)
    assert found["ece"] == pytest.approx(ece(log[0], binned_N), abs=1e-12)
    assert found["rows"] == len(binned_N)
    assert found["noise_intervals"]["auc"] == pytest.approx([found["auc"]] * 2)  # type: ignore[index]


def test_many_bins_come_near_the_scores_themselves() -> None:
    log = crowd(400, 5)
    found = [exact_figures(log, ScoreTerms(bins, 0.3, 50, 0.0)) for bins in (8, 32, 1000)]
    errors = [abs(float(one["auc"]) - roc_auc_score(log[0], log[1])) for one in found]  # type: ignore[arg-type]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.003
    assert errors[2] < 1e-4


def noised(log: Log, multiplier: float, seed: int, terms: ScoreTerms = TERMS) -> Scores:
    bound = rounding_bound(terms.length, terms.clip, GRID)
    generator = secure_generator(seed.to_bytes(32, "little"))
    sum_D = noised_sum(lambda: gridded_scores(*log, terms, bound, GRID), terms.length, multiplier * GRID, generator)
    return Scores(sum_D.reshape(2, -1) * terms.clip / GRID, multiplier * terms.clip, terms)


def clipped_figures(log: Log, terms: ScoreTerms = TERMS) -> dict[str, object]:
    """The truth that noise hides: the figures of the same clipped vectors."""
    return partner_figures(noised(log, 0.0, 1, terms), seed=1)


@pytest.mark.parametrize("multiplier", [2.0, 6.0])
def test_intervals_of_the_noise_cover_the_figures_without_it(multiplier: float) -> None:
    """95 % of the time, within what 300 releases can tell (93 to 98 %); ECE's is a bound, and covers more."""
    log = crowd(700, 11)
    truth = clipped_figures(log)
    covered, wider, values = Counter[str](), 0, []
    for seed in range(300):
        found = partner_figures(noised(log, multiplier, 90_000 + seed), seed=seed)
        assert found["certain"]
        values.append(found["auc"])
        for name, (low, high) in found["noise_intervals"].items():
            covered[name] += low <= truth[name] <= high  # type: ignore[operator]
        whole, alone = found["intervals"]["auc"], found["noise_intervals"]["auc"]
        wider += whole[0] < alone[0] and whole[1] > alone[1]
    assert wider == 300
    for name in ("auc", "ne", "log_loss", "calibration_ratio", "base_rate"):
        assert 0.92 <= covered[name] / 300 <= 0.985, (name, covered)
    assert covered["ece"] >= 0.95 * 300
    # Unbiased: the mean of 300 lies within three of its own deviations of the truth.
    assert abs(np.mean(values) - truth["auc"]) < 3 * np.std(values) / math.sqrt(300)


def test_cutting_negative_counts_off_would_be_biased_so_that_the_test_above_can_fail() -> None:
    log, values = crowd(700, 11), []
    for seed in range(300):
        scores = noised(log, 6.0, 1000 + seed)
        cut = Scores(np.maximum(scores.rows_2B, 0.0), scores.deviation, TERMS)
        values.append(partner_figures(cut, seed=seed)["auc"])
    assert abs(np.mean(values) - clipped_figures(log)["auc"]) > 10 * np.std(values) / math.sqrt(300)  # type: ignore[operator]


def test_the_interval_over_users_covers_other_users() -> None:
    """Of 120 samples of people of one kind, noised: at least 95 % hold the figure of all people; here nearly all."""
    everybody = clipped_figures(crowd(60_000, 99))["auc"]
    covered = 0
    for seed in range(120):
        low, high = partner_figures(noised(crowd(300, seed), 1.0, seed), seed=seed)["intervals"]["auc"]
        covered += low <= everybody <= high  # type: ignore[operator]
    assert covered >= 0.97 * 120


def test_flips_are_taken_back_without_bias() -> None:
    """Mode "label": 400 draws of flipped clicks of the same rows; the mean AUC is the true one, and intervals cover."""
    clicked_N, score_N, user_N = crowd(400, 21)
    truth, flips, rng = exact_figures((clicked_N, score_N, user_N)), 0.27, np.random.default_rng(3)
    values, base, covered = [], [], 0
    for seed in range(400):
        flipped_N = clicked_N ^ (rng.random(len(clicked_N)) < flips)
        counts_D = gridded_scores(flipped_N, score_N, user_N, EXACT, 0.0, 1)
        found = partner_figures(Scores(counts_D.reshape(2, -1).astype(float), 0.0, EXACT, flips), seed=seed)
        values.append(found["auc"])
        base.append(found["base_rate"])
        low, high = found["noise_intervals"]["auc"]
        covered += low <= truth["auc"] <= high  # type: ignore[operator]
    assert abs(np.mean(values) - truth["auc"]) < 3 * np.std(values) / 20  # type: ignore[operator]
    assert abs(np.mean(base) - truth["base_rate"]) < 3 * np.std(base) / 20  # type: ignore[operator]
    assert 0.92 <= covered / 400 <= 0.98


def test_what_drowns_in_the_noise_has_no_figures() -> None:
    found = partner_figures(noised(crowd(20, 1), 200.0, 1), seed=1)
    assert found["certain"] is False
    assert [found[name] for name in ("auc", "ne", "ece")] == [None, None, None]
    assert found["intervals"] == found["noise_intervals"] == {}
    assert found["noise_rows"] == 400.0


def test_rows_of_one_class_alone_have_none_either() -> None:
    clicked_N, score_N, user_N = crowd(50, 1)
    found = exact_figures((np.zeros_like(clicked_N), score_N, user_N))
    assert found["certain"] is False
    assert found["auc"] is None


def test_the_noise_of_a_histogram_has_the_claimed_scale() -> None:
    """Chi-square accepts the claim, and rejects 2/3 and 3/2 of it."""
    nobody = np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64)
    noise_N = np.concatenate([noised(nobody, 1.7, seed).rows_2B.ravel() for seed in range(60)])

    def fits(deviation: float) -> bool:
        return bool(1e-4 < stats.chi2.cdf((noise_N**2).sum() / deviation**2, len(noise_N)) < 1 - 1e-4)

    assert fits(1.7 * TERMS.clip)
    assert not fits(1.7 * TERMS.clip * 2 / 3)
    assert not fits(1.7 * TERMS.clip * 3 / 2)
