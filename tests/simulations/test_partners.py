"""Partners: users whole, every row somewhere, and the central rows marked for what they are."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clicks import canonical_card, make_log, read_clicks, write_clicks
from common.config import DataConfig, GeneratorConfig
from common.errors import DataError
from common.split import split_rows, stable_hash
from simulations.generator import generate_clicks
from simulations.partners import _zipf_sizes, assign_partners, build_partners


@pytest.fixture(scope="module")
def log():
    return generate_clicks(GeneratorConfig(users=400, impressions_per_user=12))


def small(cells):
    """Returns a log of (user, time, item, clicked, domain) rows."""
    user, time, item, clicked, domain = zip(*cells, strict=True)
    clicked = np.array(clicked, dtype="int8")
    rows = {"user": user, "time": time, "item": item, "text": item, "clicked": clicked, "domain": domain}
    return make_log(pd.DataFrame(rows))


# Assignment


def test_hash_partner_is_the_hash_of_the_user(log):
    partner = assign_partners(log.rows, DataConfig(partners=7))
    assert sorted(partner.index) == sorted(log.rows["user"].unique())
    assert partner.tolist() == [int(word) % 7 for word in stable_hash(partner.index, "partner")]


def test_hash_partner_does_not_follow_the_hash_of_the_split(log):
    """With one hash for both uses, test users would share partners."""
    partner = assign_partners(log.rows, DataConfig(partners=2))
    held = set(log.rows.loc[split_rows(log.rows, "user", 0.5).test_N, "user"])
    share = partner[partner.index.isin(held)].mean()
    assert share == pytest.approx(0.5, abs=0.2)


def test_dominant_partners_are_skewed_and_of_equal_size(log):
    partner = assign_partners(log.rows, DataConfig(partners=5, partition="dominant"))
    assert partner.value_counts().to_dict() == dict.fromkeys(range(5), 80)
    shares = pd.crosstab(partner.reindex(log.rows["user"]).to_numpy(), log.rows["domain"], normalize="index")
    alike = pd.crosstab(
        assign_partners(log.rows, DataConfig(partners=5)).reindex(log.rows["user"]).to_numpy(),
        log.rows["domain"],
        normalize="index",
    )
    assert shares.max(axis=1).min() > 0.5
    assert alike.max(axis=1).max() < 0.4


def test_dominant_domain_is_that_of_most_clicks_then_rows_then_name():
    cells = [
        *[("clicks", t, f"i{t}", 0, "news") for t in range(3)],
        ("clicks", 9, "i", 1, "video"),  # one click outweighs three rows
        *[("rows", t, f"i{t}", 0, "news") for t in range(2)],
        ("rows", 9, "i", 0, "apps"),
        ("name", 1, "i", 1, "video"),
        ("name", 2, "i", 1, "news"),
        ("last", 1, "i", 1, "zoo"),
    ]
    partner = assign_partners(small(cells).rows, DataConfig(partners=4, partition="dominant"))
    assert partner["clicks"] == 2  # news, news, video, zoo
    assert partner["last"] == 3
    assert {partner["rows"], partner["name"]} == {0, 1}


def test_dominant_needs_two_domains():
    with pytest.raises(DataError, match=r'data\.partition to "hash" or "skew"'):
        assign_partners(small([("a", 1, "i", 0, ""), ("b", 1, "i", 1, "")]).rows, DataConfig(partition="dominant"))


@pytest.mark.parametrize(
    ("users", "partners", "exponent", "sizes"),
    [
        (11, 3, 0.0, [4, 4, 3]),  # 1 each, and 8 in equal parts
        (14, 3, 1.0, [7, 4, 3]),  # 1 each, and 11 as 6 : 3 : 2
        (3, 3, 5.0, [1, 1, 1]),
        (9, 1, 2.0, [9]),
    ],
)
def test_zipf_sizes_by_hand(users, partners, exponent, sizes):
    assert _zipf_sizes(users, partners, exponent).tolist() == sizes


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 5000), st.floats(0, 5))
def test_zipf_sizes_add_up_and_fall(partners, more, exponent):
    size_P = _zipf_sizes(partners + more, partners, exponent)
    assert size_P.sum() == partners + more
    assert size_P.min() >= 1
    assert (np.diff(size_P) <= 0).all()


def test_skew_assigns_in_order_of_hash(log):
    partner = assign_partners(log.rows, DataConfig(partners=6, partition="skew", size_skew=1.5))
    assert partner.value_counts().sort_index().tolist() == _zipf_sizes(400, 6, 1.5).tolist()
    ordered = partner.iloc[np.argsort(stable_hash(partner.index, "partner"))]
    assert ordered.is_monotonic_increasing


def test_skew_needs_a_user_per_partner():
    with pytest.raises(DataError, match=r"2 users cannot fill data\.partners = 6"):
        assign_partners(small([("a", 1, "i", 0, ""), ("b", 1, "i", 1, "")]).rows, DataConfig(partition="skew"))


@pytest.mark.parametrize("partition", ["hash", "dominant", "skew"])
def test_assignment_does_not_depend_on_the_order_of_rows(log, partition):
    config = DataConfig(partners=5, partition=partition)
    shuffled = log.rows.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(
        assign_partners(shuffled, config).sort_index(), assign_partners(log.rows, config).sort_index()
    )


# Training and central rows


@pytest.mark.parametrize("partition", ["hash", "dominant", "skew"])
@pytest.mark.parametrize("split", ["time", "user", "user_time"])
def test_every_training_row_is_at_its_users_partner(log, partition, split):
    config = DataConfig(partners=5, partition=partition, split=split, test_share=0.3)
    logs = build_partners(log, config)
    sides = split_rows(log.rows, split, 0.3)
    partner = assign_partners(log.rows, config)
    for number, part in enumerate(logs.training):
        expected = log.rows[sides.train_N & (partner.reindex(log.rows["user"]).to_numpy() == number)]
        pd.testing.assert_frame_equal(part, expected.reset_index(drop=True))
    assert sum(map(len, logs.training)) == sides.train_N.sum()
    assert logs.names == [f"partner-000{number}" for number in range(5)]


@pytest.mark.parametrize("split", ["time", "user", "user_time"])
def test_central_holds_all_rows_of_tested_users_and_marks_them(log, split):
    config = DataConfig(partners=5, split=split, test_share=0.3)
    logs, sides = build_partners(log, config), split_rows(log.rows, split, 0.3)
    central = logs.central
    tested = set(log.rows.loc[sides.test_N, "user"])
    whole = log.rows[log.rows["user"].isin(tested)].reset_index(drop=True)
    pd.testing.assert_frame_equal(central[list(log.rows)], whole)
    assert central["evaluate"].sum() == sides.test_N.sum()
    trained = pd.concat(logs.training)
    assert central["cold_user"].equals(~central["user"].isin(set(trained["user"])))
    assert central["cold_item"].equals(~central["item"].isin(set(trained["item"])))
    assert central["partner"].tolist() == assign_partners(log.rows, config).reindex(central["user"]).tolist()
    if split == "time":
        assert 0 < central["cold_user"].mean() < 1
        assert (central.loc[central["evaluate"], "time"] >= sides.cut_time).all()
    else:
        assert central["cold_user"].all()


def test_a_user_with_test_rows_only_is_cold_and_kept():
    cells = [(f"u{n}", t, f"i{n % 2}", (n + t) % 2, "") for n in range(6) for t in range(4)]
    late = [("late", 10, "i0", 1, ""), ("late", 11, "new", 0, ""), ("other", 12, "i1", 1, "")]
    logs = build_partners(small(cells + late), DataConfig(partners=2, test_share=3 / 27))
    central = logs.central
    assert central["user"].tolist() == ["late", "late", "other"]
    assert central["cold_user"].all()
    assert central["cold_item"].tolist() == [False, True, False]
    assert central["partner"].between(0, 1).all()
    assert logs.report["users_with_one_row"] == 1


def test_empty_partners_are_counted_and_refused(log):
    with pytest.raises(DataError) as refusal:
        build_partners(log, DataConfig(partners=2000))
    partner = assign_partners(log.rows, DataConfig(partners=2000))
    trained = set(log.rows.loc[split_rows(log.rows, "time", 0.2).train_N, "user"])
    empty = 2000 - partner[partner.index.isin(trained)].nunique()
    assert str(refusal.value).startswith(f"{empty} of data.partners = 2000 have no training row, among 400 users")
    assert "set fewer data.partners, or bring more users" in str(refusal.value)


def test_report_counts_by_hand():
    # Times 0 to 3 of six users; the last moment (6 rows of 24) is the test.
    cells = [(f"u{n}", t, f"i{t}", (n + t) % 2, "a" if n < 3 else "b") for n in range(6) for t in range(4)]
    logs = build_partners(small(cells), DataConfig(partners=2, partition="dominant", test_share=0.25))
    assert logs.report == {
        "partners": 2,
        "partition": "dominant",
        "split": "time",
        "cut_time": 3,
        "users_per_partner": [3, 3],
        "rows_per_partner": [9, 9],
        "click_rate_per_partner": [4 / 9, 5 / 9],
        "one_class_partners": 0,
        "users": 6,
        "users_with_one_row": 0,
        "users_trained": 6,
        "users_tested": 6,
        "rows": 24,
        "rows_trained": 18,
        "rows_tested": 6,
        "rows_dropped": {},
    }
    assert json.loads(json.dumps(logs.report)) == logs.report
    assert "u1" not in repr(logs)


def test_a_partner_without_a_click_is_kept_and_counted():
    cells = [("quiet", t, "i", 0, "a") for t in range(4)] + [("loud", t, "i", t % 2, "b") for t in range(4)]
    logs = build_partners(small(cells), DataConfig(partners=2, partition="dominant", test_share=0.25))
    assert logs.report["click_rate_per_partner"] == [0.0, 1 / 3]
    assert logs.report["one_class_partners"] == 1


def test_training_rows_are_a_log_of_their_own(log, tmp_path):
    part = build_partners(log, DataConfig(partners=40)).training[7]
    write_clicks(part, tmp_path / "part.parquet")
    again = read_clicks(tmp_path / "part.parquet", canonical_card(part), allow_one_class=True)
    pd.testing.assert_frame_equal(again.rows, part)
