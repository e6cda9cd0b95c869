"""Gaps between groups of people: by hand, against scikit-learn, and against what chance alone does."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from common.config import ServerConfig
from server.fairness import FIGURES, fairness
from server.slices import Partition, Scored

CONFIG = ServerConfig(bootstrap_samples=100, least_slice_users=20, least_slice_rows=50)


def people(
    group_U: list[int] | np.ndarray, names: tuple[str, ...], rows_each: int = 6, unstated: str = ""
) -> tuple[Partition, np.ndarray]:
    user_N = np.repeat(np.arange(len(group_U)), rows_each)
    return Partition("sensitive:age", names, np.asarray(group_U)[user_N], unstated), user_N


def honest(user_N: np.ndarray, seed: int) -> Scored:
    """Scores that say the truth of everybody alike."""
    rng = np.random.default_rng(seed)
    score_N = expit(rng.normal(size=len(user_N)))
    return Scored((rng.random(len(user_N)) < score_N).astype(np.float32), score_N, user_N)


def gaps_of(partition: Partition, scored: Scored, config: ServerConfig = CONFIG, seed: int = 1) -> dict[str, dict]:
    found = fairness((partition,), scored, config, seed)
    assert found is not None
    (column,) = found["columns"]
    return {gap["figure"]: gap for gap in column["gaps"]}


def test_without_a_sensitive_column_there_is_nothing_to_compare() -> None:
    partition, user_N = people([0, 1] * 30, ("domain a", "domain b"))
    plain = Partition("domain", partition.groups, partition.group_N)
    assert fairness((plain,), honest(user_N, 0), CONFIG, 1) is None


def test_gaps_are_the_largest_differences_between_groups() -> None:
    partition, user_N = people(np.arange(120) % 3, ("age: a", "age: b", "age: c"))
    scored = honest(user_N, 4)
    worse_N = partition.group_N == 1
    score_N = np.where(worse_N, np.random.default_rng(1).permutation(scored.score_N), scored.score_N)
    score_N[partition.group_N == 2] *= 0.5
    scored = Scored(scored.label_N, score_N, user_N)
    found = gaps_of(partition, scored)
    assert list(found) == list(FIGURES)
    by_hand = {
        "auc": [
            roc_auc_score(scored.label_N[mask], score_N[mask]) for mask in (partition.group_N == g for g in range(3))
        ],
        "calibration_ratio": [
            score_N[m].mean() / scored.label_N[m].mean() for m in (partition.group_N == g for g in range(3))
        ],
        "mean_score": [score_N[partition.group_N == g].mean() for g in range(3)],
        "click_rate": [scored.label_N[partition.group_N == g].mean() for g in range(3)],
    }
    for name, values in by_hand.items():
        gap = found[name]
        assert gap["gap"] == pytest.approx(max(values) - min(values), abs=1e-6)
        assert gap["highest"] == partition.groups[int(np.argmax(values))]
        assert gap["lowest"] == partition.groups[int(np.argmin(values))]
        assert gap["interval"][0] < gap["gap"] < gap["interval"][1]
    assert found["auc"]["lowest"] == "age: b"
    assert found["calibration_ratio"]["lowest"] == "age: c"


def test_a_planted_gap_is_beyond_chance_and_its_interval_leaves_out_zero() -> None:
    partition, user_N = people(np.arange(300) % 2, ("age: a", "age: b"))
    scored = honest(user_N, 2)
    noise_N = np.random.default_rng(3).random(len(user_N))
    planted = Scored(scored.label_N, np.where(partition.group_N == 1, noise_N, scored.score_N), user_N)
    gap = gaps_of(partition, planted)["auc"]
    assert gap["gap"] > 2 * gap["by_lot"]
    assert gap["interval"][0] > 0


def test_of_a_model_that_serves_all_alike_about_one_gap_in_twenty_is_beyond_chance() -> None:
    """Six groups: the largest of fifteen differences is never near zero, so that a plain interval would cry wolf."""
    beyond = dict.fromkeys(FIGURES, 0)
    plain = 0
    config = ServerConfig(bootstrap_samples=60)
    runs = 50
    for seed in range(runs):
        partition, user_N = people(np.arange(180) % 6, tuple(f"age: {name}" for name in "abcdef"))
        for name, gap in gaps_of(partition, honest(user_N, seed), config, seed).items():
            beyond[name] += gap["gap"] > gap["by_lot"]
            plain += name == "auc" and gap["interval"][0] > 0
    # 2.5 of 50 are expected, with a standard deviation of 1.5; the quantile of 60 draws adds to it.
    assert all(count <= 9 for count in beyond.values()), beyond
    assert sum(beyond.values()) >= 2
    assert plain > 20  # what stands beside the interval is needed


def test_users_are_shuffled_and_not_rows() -> None:
    """Where a user's rows are alike, groups differ by who is in them; drawing rows by lot would not see that."""
    rng = np.random.default_rng(0)
    partition, user_N = people(np.arange(80) % 2, ("age: a", "age: b"), rows_each=30)
    rate_U = rng.choice([0.1, 0.9], 80)
    scored = Scored((rng.random(len(user_N)) < rate_U[user_N]).astype(np.float32), rate_U[user_N], user_N)
    by_users = gaps_of(partition, scored)["mean_score"]["by_lot"]
    apart = Scored(scored.label_N, scored.score_N, np.arange(len(user_N)))
    by_rows = gaps_of(partition, apart)["mean_score"]["by_lot"]
    assert by_users > 3 * by_rows


def test_groups_that_are_hidden_or_state_nothing_are_not_compared() -> None:
    group_U = [0] * 60 + [1] * 50 + [2] * 5 + [3] * 40 + [4] * 60
    names = ("age: a", "age: b", "age: c", "age not stated", "age: d")
    partition, user_N = people(group_U, names, unstated="age not stated")
    scored = honest(user_N, 1)
    # The few of c would be farthest out; 3, who stated nothing, is the one kept back with them.
    scored = Scored(scored.label_N, np.where(partition.group_N == 2, 0.999, scored.score_N), user_N)
    found = fairness((partition,), scored, CONFIG, 1)
    assert found is not None
    assert (found["sensitive"], found["least_users"], found["least_rows"]) == (["age"], 20, 50)
    (column,) = found["columns"]
    assert column["groups"] == ["age: a", "age: b", "age: d"]
    assert "age: c" not in str(found)
    assert "not stated" not in str(found)


def test_one_group_alone_is_not_compared_and_that_is_said() -> None:
    partition, user_N = people([0] * 60 + [1] * 30 + [2] * 5, ("age: a", "age: b", "age: c"))
    found = fairness((partition,), honest(user_N, 1), CONFIG, 1)
    assert found is not None
    (column,) = found["columns"]
    assert column == {
        "column": "age",
        "groups": ["age: a"],
        "gaps": [],
        "why": "fewer than two groups are large enough to be shown",
    }


def test_a_figure_that_no_two_groups_have_is_no_gap() -> None:
    """Nobody of either group clicked: neither AUC nor calibration is defined, and a mean score is."""
    partition, user_N = people(np.arange(80) % 2, ("age: a", "age: b"))
    scored = Scored(np.zeros(len(user_N), np.float32), honest(user_N, 1).score_N, user_N)
    found = gaps_of(partition, scored)
    assert np.isnan(found["auc"]["gap"])
    assert "highest" not in found["auc"]
    assert found["mean_score"]["gap"] > 0
    assert found["click_rate"]["gap"] == 0


def test_without_resamples_gaps_have_no_bounds() -> None:
    partition, user_N = people(np.arange(80) % 2, ("age: a", "age: b"))
    gap = gaps_of(partition, honest(user_N, 1), ServerConfig(bootstrap_samples=0))["auc"]
    assert gap["gap"] > 0
    assert all(np.isnan(value) for value in (*gap["interval"], gap["by_lot"]))
