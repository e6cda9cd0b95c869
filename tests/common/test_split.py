"""Named splits: who is on which side, by hand-counted examples and by property."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from conftest import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.split import Rule, split_rows, stable_hash


def rows(users, times, clicked):
    return pd.DataFrame({"user": users, "time": times, "clicked": clicked})


def many(seed=0, users=200, each=10):
    rng = np.random.default_rng(seed)
    size = users * each
    names = [f"user-{n // each}" for n in range(size)]
    return rows(names, rng.integers(0, 1_000_000, size), rng.integers(0, 2, size))


def test_hash_is_sha256_of_purpose_and_name():
    expected = int.from_bytes(hashlib.sha256("hushclick/split\0é".encode()).digest()[:8], "big")
    assert stable_hash(["é"], "split").tolist() == [expected]
    assert stable_hash([], "split").tolist() == []
    assert stable_hash(["a"], "split") != stable_hash(["a"], "partner")


def test_time_split_cuts_off_the_latest_rows():
    log = rows(["a", "b", "a", "b", "a"], [50, 10, 30, 20, 40], [1, 0, 1, 1, 0])
    split = split_rows(log, "time", 0.4)
    assert split.cut_time == 40
    assert split.test_N.tolist() == [True, False, False, False, True]
    assert split.train_N.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("times", "share", "cut"),
    [
        ([1, 1, 1, 2, 2, 2], 0.2, 2),  # half is nearer to a fifth than all would be
        ([1, 2, 2, 2, 2, 3], 0.4, 3),  # 1 row (1/6) is nearer than 5 rows
        ([1, 2, 2, 2, 3, 3], 0.6, 2),  # 2 rows and 5 rows: 3.6 lies nearer to 5
        ([1, 2, 3, 4, 5, 6], 0.01, 6),  # never empty
        ([1, 2, 3, 4, 5, 6], 0.99, 2),  # never everything
    ],
)
def test_rows_of_one_moment_stay_together(times, share, cut):
    log = rows(["a"] * 12, times * 2, [0] * 6 + [1] * 6)  # both classes at every moment
    split = split_rows(log, "time", share)
    assert split.cut_time == cut


def test_user_split_keeps_users_whole_and_near_the_share():
    log = many(users=2000, each=2)
    split = split_rows(log, "user", 0.3)
    assert split.cut_time is None
    held = set(log.loc[split.test_N, "user"])
    assert held.isdisjoint(log.loc[split.train_N, "user"])
    assert (split.train_N ^ split.test_N).all()
    assert len(held) / 2000 == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 2000))


def test_a_user_stays_on_its_side_when_the_log_grows():
    small, large = many(users=100), many(users=300)
    sides = [
        dict(zip(log["user"], split_rows(log, "user", 0.4).test_N, strict=True)) for log in (small, large.iloc[::-1])
    ]
    assert {user: sides[1][user] for user in sides[0]} == sides[0]


def test_user_time_split_is_both():
    log = many()
    both, by_user, by_time = (split_rows(log, name, 0.3) for name in ("user_time", "user", "time"))
    assert both.cut_time == by_time.cut_time
    assert (both.test_N == (by_user.test_N & by_time.test_N)).all()
    assert (both.train_N == (by_user.train_N & by_time.train_N)).all()
    assert not (both.test_N | both.train_N).all()  # the rest is history


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["time", "user", "user_time"]),
    st.floats(0.05, 0.95),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)), min_size=2, max_size=40),
    st.randoms(use_true_random=False),
)
def test_sides_never_meet_and_do_not_depend_on_order(name, share, cells, random):
    log = rows(*zip(*((f"u{user}", time, click) for user, time, click in cells), strict=True))
    try:
        split = split_rows(log, name, share)
    except DataError:
        return
    assert not (split.train_N & split.test_N).any()
    for side_N in (split.train_N, split.test_N):
        assert set(log.loc[side_N, "clicked"]) == {0, 1}
    order = random.sample(range(len(log)), len(log))
    again = split_rows(log.iloc[order].reset_index(drop=True), name, share)
    assert (again.test_N == split.test_N[order]).all()
    assert (again.train_N == split.train_N[order]).all()


@pytest.mark.parametrize(
    ("log", "name", "message"),
    [
        (rows(["a", "b"], [5, 5], [0, 1]), "time", "all 2 rows have one time"),
        (rows(["a"] * 4, [1, 2, 3, 4], [1, 1, 0, 1]), "time", "leaves 1 test rows, all of them clicked"),
        (rows(["a"] * 8, range(8), [0, 0, 0, 0, 0, 0, 0, 1]), "time", "training rows, none of them clicked"),
        (rows(["a"] * 4, [1, 2, 3, 4], [1, 0, 0, 1]), "user", "leaves no"),
    ],
)
def test_an_unusable_side_is_refused_with_the_mend(log, name, message):
    with pytest.raises(DataError) as refusal:
        split_rows(log, name, 0.2)
    assert message in str(refusal.value)
    assert "data." in str(refusal.value)


# --- what partners hold out -------------------------------------------------------------------------------------------


def test_the_rule_of_a_split_is_the_split() -> None:
    """What a partner holds out by the cut and the share of a split are the split's own test rows."""
    rows = random_rows(40, seed=8)
    for split in ("time", "user", "user_time"):
        found = split_rows(rows, split, 0.3)  # type: ignore[arg-type]
        train_N, test_N = Rule(found.cut_time, None if split == "time" else 0.3).sides(rows)
        assert np.array_equal(train_N, found.train_N)
        assert np.array_equal(test_N, found.test_N)


def test_a_rows_side_depends_on_its_own_user_and_time_alone() -> None:
    rows = random_rows(40, seed=8)
    rule = Rule(int(rows["time"].median()), 0.4, "agreed")
    train_N, test_N = rule.sides(rows)
    assert 0 < test_N.sum() < len(rows)
    assert not (train_N & test_N).any()
    order_N = np.random.default_rng(1).permutation(len(rows))[: len(rows) // 2]
    shuffled = rows.iloc[order_N].assign(clicked=1, item="another")
    assert np.array_equal(rule.sides(shuffled)[0], train_N[order_N])
    assert np.array_equal(rule.sides(shuffled)[1], test_N[order_N])


def test_another_key_holds_out_other_users_and_none_holds_all() -> None:
    rows = random_rows(200, seed=8)
    drawn = {key: set(rows.loc[Rule(None, 0.5, key).sides(rows)[1], "user"]) for key in ("", "one", "two")}
    for key, users in drawn.items():
        assert 70 < len(users) < 130
        others = [len(users & other) for name, other in drawn.items() if name != key]
        assert all(30 < both < 70 for both in others)  # about a quarter of all: independent draws
    train_N, test_N = Rule().sides(rows)
    assert train_N.all()
    assert test_N.all()
