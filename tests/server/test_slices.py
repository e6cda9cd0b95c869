"""Slices: which are too small to be shown, which else would give them away, and that nothing can be worked out."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from common.bootstrap import bootstrap_intervals
from common.config import ServerConfig
from common.metrics import calibration_ratio
from server.slices import KEPT_BACK, Partition, Scored, hidden_groups, partitions, slice_lines

CONFIG = ServerConfig(bootstrap_samples=20, least_slice_users=20, least_slice_rows=50)


def cut(*sizes: tuple[int, int]) -> tuple[Partition, np.ndarray]:
    """Returns a partition into groups of (users, rows each), and whose rows they are; no user is in two groups."""
    group_N = np.repeat(np.arange(len(sizes)), [users * each for users, each in sizes])
    user_N = np.concatenate(
        [np.repeat(np.arange(users) + 10_000 * group, each) for group, (users, each) in enumerate(sizes)]
    )
    return Partition("sensitive:age", tuple(f"age: {name}" for name in "abcdefgh"[: len(sizes)]), group_N), user_N


def scored_rows(user_N: np.ndarray, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    score_N = rng.random(len(user_N))
    return Scored((rng.random(len(user_N)) < score_N).astype(np.float32), score_N, user_N)


# --- what is hidden -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ([(40, 5), (30, 5)], {}),
        ([(20, 3), (20, 3)], {}),  # the bounds themselves are enough
        ([(19, 9), (60, 5), (30, 5)], {0: "under 20 users", 2: KEPT_BACK}),  # else: the total less the two others
        ([(60, 5), (30, 5), (20, 2)], {2: "under 50 rows", 1: KEPT_BACK}),
        ([(5, 5), (60, 5)], {0: "under 20 users", 1: KEPT_BACK}),  # nothing is left to show
        ([(5, 9), (4, 9), (60, 5), (30, 5)], {0: "under 20 users", 1: "under 20 users", 3: KEPT_BACK}),  # nine in all
        ([(12, 5), (12, 5), (60, 5), (30, 5)], {0: "under 20 users", 1: "under 20 users"}),  # 24 of two groups
        ([(0, 0), (60, 5), (30, 5)], {}),  # nobody to protect
        ([(5, 5)], {0: "under 20 users"}),
    ],
)
def test_small_groups_and_what_gives_them_away_are_hidden(sizes: Any, hidden: dict[int, str]) -> None:
    partition, user_N = cut(*sizes)
    assert hidden_groups(partition, user_N, CONFIG) == hidden


def test_the_bounds_are_the_configurations() -> None:
    partition, user_N = cut((19, 9), (60, 5), (30, 5))
    assert hidden_groups(partition, user_N, ServerConfig(least_slice_users=19)) == {}
    assert hidden_groups(partition, user_N, ServerConfig(least_slice_users=1, least_slice_rows=151)).keys() == {0, 2}
    assert hidden_groups(partition, user_N, ServerConfig(least_slice_users=61)).keys() == {0, 1, 2}


def test_a_user_in_two_groups_counts_once_in_what_is_left() -> None:
    """Rows of history slices: twelve users in either of two small groups are twelve, not twenty-four."""
    user_N = np.concatenate(
        [np.repeat(np.arange(12), 10), np.repeat(np.arange(100, 160), 5), np.repeat(np.arange(200, 230), 5)]
    )
    group_N = np.concatenate([np.tile([0, 1], 60), np.full(300, 2), np.full(150, 3)])
    partition = Partition("history", ("a", "b", "c", "d"), group_N)
    assert hidden_groups(partition, user_N, CONFIG).keys() == {0, 1, 3}


@given(st.lists(st.tuples(st.integers(0, 45), st.integers(1, 6)), min_size=1, max_size=8))
def test_nothing_that_is_too_small_can_be_worked_out_of_a_partition(sizes: list[tuple[int, int]]) -> None:
    """Whoever knows the total and every slice that is shown learns the sum over all that are hidden, and no part."""
    partition, user_N = cut(*sizes)
    hidden = hidden_groups(partition, user_N, CONFIG)
    for group, (users, each) in enumerate(sizes):
        if users and (users < 20 or users * each < 50):
            assert group in hidden
    left = [sizes[group] for group in hidden]
    shown = [size for group, size in enumerate(sizes) if size[0] and group not in hidden]
    if left and shown:
        assert len(left) > 1
        assert sum(users for users, _ in left) >= 20
        assert sum(users * each for users, each in left) >= 50
    # And no more than needed: at most one group is kept back that is large enough.
    assert sum(why == KEPT_BACK for why in hidden.values()) <= 1


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_groups_rows() -> None:
    partition, user_N = cut((40, 5), (30, 5))
    scored = scored_rows(user_N)
    lines = slice_lines(partition, scored, CONFIG, seed=3)
    assert [line["slice"] for line in lines] == ["age: a", "age: b"]
    for group, line in enumerate(lines):
        mask_N = partition.group_N == group
        label_M, score_M = scored.label_N[mask_N], scored.score_N[mask_N]
        assert line["of"] == "sensitive:age"
        assert (line["rows"], line["users"]) == (mask_N.sum(), (40, 30)[group])
        assert line["click_rate"] == pytest.approx(label_M.mean())
        assert line["mean_score"] == pytest.approx(score_M.mean())
        assert line["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(label_M, score_M), abs=1e-12)
        assert line["log_loss"] == pytest.approx(sklearn_metrics.log_loss(label_M, score_M), abs=1e-6)
        assert line["calibration_ratio"] == pytest.approx(calibration_ratio(label_M, score_M))
        found = bootstrap_intervals(label_M, score_M, user_N[mask_N], 20, 3)["auc"]
        assert line["intervals"]["auc"] == [found.low, found.high]
        assert line["intervals"].keys() == {"auc", "log_loss", "calibration_ratio", "click_rate"}
        for name, (low, high) in line["intervals"].items():
            assert low < line[name] < high


def test_intervals_of_click_rates_are_over_users() -> None:
    """Users who click on all or nothing: their rates vary as coins do, whatever the number of their rows."""
    user_N = np.repeat(np.arange(400), 10)
    label_N = (user_N % 2 == 0).astype(np.float32)
    partition = Partition("user", ("known users",), np.zeros(4000, np.int64))
    scored = Scored(label_N, np.full(4000, 0.5), user_N)
    config = ServerConfig(bootstrap_samples=400)
    (line,) = slice_lines(partition, scored, config, seed=1)
    low, high = line["intervals"]["click_rate"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.15)  # over rows: a third of it


def test_a_hidden_line_holds_a_name_and_a_reason_and_nothing_else() -> None:
    partition, user_N = cut((3, 5), (60, 5), (30, 5))
    lines = slice_lines(partition, scored_rows(user_N), CONFIG, seed=3)
    assert lines[0] == {"slice": "age: a", "of": "sensitive:age", "hidden": "under 20 users"}
    assert lines[2] == {"slice": "age: c", "of": "sensitive:age", "hidden": KEPT_BACK}
    assert "auc" in lines[1]
    partition, user_N = cut((0, 0), (60, 5))
    assert slice_lines(partition, scored_rows(user_N), CONFIG, seed=3)[0]["hidden"] == "no rows"


def test_without_resamples_there_are_no_intervals() -> None:
    partition, user_N = cut((40, 5))
    (line,) = slice_lines(partition, scored_rows(user_N), ServerConfig(bootstrap_samples=0), seed=3)
    assert "intervals" not in line


# --- how rows are cut ---------------------------------------------------------------------------------------------


def test_every_row_is_in_one_group_of_each_partition() -> None:
    frame = pd.DataFrame(
        {
            "user": ["a", "a", "b", "b", "c"],
            "domain": ["news", "", "news", "video", ""],
            "partner": [1, 1, 0, 0, 1],
            "cold_user": [False, False, True, True, False],
            "sensitive:age": ["", "old", "young", "young", ""],
        }
    )
    evaluate_N = np.array([False, True, True, True, True])
    history_NH = np.array([[7, 6], [-1, -1], [2, -1], [-1, -1]])
    found = {partition.name: partition for partition in partitions(frame, evaluate_N, history_NH)}
    assert {name: [each.groups[group] for group in each.group_N] for name, each in found.items()} == {
        "partner": ["partner 1", "partner 0", "partner 0", "partner 1"],
        "user": ["known users", "new users", "new users", "known users"],
        "history": [
            "history: 1 to 4 positives",
            "history: no history",
            "history: 1 to 4 positives",
            "history: no history",
        ],
        "domain": ["no domain", "domain news", "domain video", "no domain"],
        "sensitive:age": ["age: old", "age: young", "age: young", "age not stated"],
    }
    assert found["sensitive:age"].unstated == "age not stated"
    assert found["sensitive:age"].sensitive == "age"
    assert found["domain"].sensitive == ""


def test_rows_without_a_domain_are_a_group_as_else_the_total_would_give_them_away() -> None:
    """Three users of no domain: two domains that are shown, less the total, are those three."""
    frame = pd.DataFrame(
        {"user": np.repeat([f"u{n:03d}" for n in range(83)], 4), "domain": ["news"] * 160 + ["video"] * 160 + [""] * 12}
    )
    partition = partitions(frame, np.ones(332, bool), np.full((332, 1), -1))[-1]
    assert partition.name == "domain"
    hidden = hidden_groups(partition, pd.factorize(frame["user"])[0], CONFIG)
    assert {partition.groups[group]: why for group, why in hidden.items()} == {
        "no domain": "under 20 users",
        "domain news": KEPT_BACK,
    }


def test_a_deployments_held_out_rows_are_of_no_partner() -> None:
    frame = pd.DataFrame({"user": ["a", "b"], "domain": "", "partner": -1})
    assert [each.name for each in partitions(frame, np.ones(2, bool), np.full((2, 1), -1))] == ["history"]


def test_an_odd_name_of_a_group_is_a_name_like_any_other() -> None:
    frame = pd.DataFrame({"user": ["a", "b"], "domain": "", "sensitive:{}": ["{x}", "%s"]})
    partition = partitions(frame, np.ones(2, bool), np.full((2, 1), -1))[-1]
    assert partition.groups == ("{}: %s", "{}: {x}")
