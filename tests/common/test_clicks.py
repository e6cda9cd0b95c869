"""Click logs: what is read, what is dropped and counted, what is refused, and that nothing of a user is shown."""

import datetime
import hashlib
import io
import string
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.card import Click, Columns, Time
from common.clicks import (
    DataCard,
    canonical_card,
    load_card,
    make_log,
    parse_card,
    read_clicks,
    select_users,
    validate_rows,
    write_clicks,
)
from common.errors import ConfigError, DataError

MINIMAL = {"columns": {"user": "u", "time": "t", "text": "title", "clicked": "c"}, "time": {"unit": "seconds"}}


def card(unit="seconds", threshold=None, **columns):
    mapped = {"user": "u", "time": "t", "text": ("title",), "clicked": "c"} | columns
    return DataCard(columns=Columns(**mapped), time=Time(unit=unit), click=Click(threshold=threshold))


def csv(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def canonical(**columns):
    rows = {
        "user": ["a", "a", "b"],
        "time": np.array([1, 2, 3]),
        "item": ["i", "j", "i"],
        "text": ["one", "two", "one"],
        "clicked": np.array([1, 0, 1], dtype="int8"),
        "domain": ["", "", ""],
    }
    return pd.DataFrame(rows | columns)


# The data card


def test_card_takes_one_text_column_or_several(tmp_path):
    one = load_card(csv(tmp_path, '[columns]\nuser="u"\ntime="t"\ntext="x"\nclicked="c"\n[time]\nunit="iso"', "a.toml"))
    two = parse_card(MINIMAL | {"columns": MINIMAL["columns"] | {"text": ["x", "y"], "context": "place"}})
    assert one.columns.text == ("x",)
    assert two.columns.text == ("x", "y")
    assert two.columns.names() == ["u", "t", "x", "y", "c", "place"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"columns": MINIMAL["columns"]}, "time: missing"),
        (MINIMAL | {"columns": {"user": "u", "time": "t", "text": "x"}}, "columns.clicked: missing"),
        (
            MINIMAL | {"columns": MINIMAL["columns"] | {"usr": "u"}},
            "columns.usr: unknown key; did you mean columns.user?",
        ),
        (MINIMAL | {"clik": {}}, "clik: unknown key; did you mean click?"),
        (MINIMAL | {"time": {"unit": "hours"}}, 'time.unit = "hours"'),
        (MINIMAL | {"time": {}}, "time.unit: missing"),
        (MINIMAL | {"click": {"threshold": "high"}}, 'click.threshold = "high"'),
        (MINIMAL | {"columns": MINIMAL["columns"] | {"text": []}}, "columns.text"),
        (MINIMAL | {"columns": MINIMAL["columns"] | {"context": ["c"]}}, "is columns.clicked too"),
        (MINIMAL | {"columns": MINIMAL["columns"] | {"text": ["title", "c"]}}, "is columns.clicked too"),
        (MINIMAL | {"columns": MINIMAL["columns"] | {"purchased": "c"}}, "the same column as columns.clicked"),
        (MINIMAL | {"columns": MINIMAL["columns"] | {"context": ["a", "context:a"]}}, "listed twice"),
    ],
)
def test_card_is_refused_with_key_and_mend(table, text):
    with pytest.raises(ConfigError) as refusal:
        parse_card(table)
    assert text in str(refusal.value)


def test_card_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="no such data card"):
        load_card(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_card(tmp_path)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_card(csv(tmp_path, "[columns", "broken.toml"))
    with pytest.raises(ConfigError, match=r"short\.toml: columns: missing"):
        load_card(csv(tmp_path, '[time]\nunit="iso"', "short.toml"))


# Reading


def test_every_role_reads_into_its_canonical_column(tmp_path):
    path = csv(
        tmp_path,
        "who,when,ad,head,body,c,buy,page,vertical,place,unused\n"
        "2,100,x,Red shoes,Light,1,1,s1,shop,top,?\n"
        "1,300,y,Blue,,0,0,s2,shop,,?\n"
        "1,200,y,Blue,,0,,s2,,feed,?\n",
    )
    wide = card(
        user="who",
        time="when",
        item="ad",
        text=("head", "body"),
        purchased="buy",
        slate="page",
        domain="vertical",
        context=("place",),
    )
    log = read_clicks(path, wide)
    assert log.rows.to_dict("list") == {
        "user": ["1", "1", "2"],
        "time": [200, 300, 100],
        "item": ["y", "y", "x"],
        "text": ["Blue", "Blue", "Red shoes. Light"],
        "clicked": [0, 0, 1],
        "purchased": [0, 0, 1],
        "slate": ["s2", "s2", "s1"],
        "domain": ["", "shop", "shop"],
        "context:place": ["feed", "", "top"],
    }
    assert validate_rows(log.rows) is log.rows
    assert log.report.dropped == {}
    assert (log.report.users, log.report.items, log.report.users_with_one_row) == (2, 2, 1)
    assert (log.report.first_time, log.report.last_time) == (100, 300)
    assert log.report.click_rate == pytest.approx(1 / 3)
    assert log.report.purchase_rate == 1.0
    assert log.report.impressions_per_user["median"] == 1.5


def test_bad_rows_are_dropped_and_counted_once_each(tmp_path):
    path = csv(
        tmp_path,
        "u,t,title,i,c,b\n"
        "1,10,A,a,1,1\n"  # kept
        ",10,A,a,1,0\n"  # no user
        "NaN,10,A,a,1,0\n"  # no user, as CSV writers put it
        "2,10,  ,a,1,0\n"  # no text
        "2,x,A,a,1,0\n"  # time
        "2,-5,A,a,x,0\n"  # time first, click second: counts once
        "2,9e12,A,a,1,0\n"  # beyond 2100
        "2,10,A,,1,0\n"  # no item
        "2,10,A,a,,0\n"  # click missing
        "2,10,A,a,2,0\n"  # click not 0 or 1
        "2,10,A,a,1,\n"  # purchase of a click is unknown
        "2,10,A,a,0,1\n"  # bought without a click
        "1,10,A2,a,0,0\n"  # again the same user, item and time
        "1,11,A,a,0,\n"  # kept: no click, so no purchase
        "3,5,B,b,0,0,0,0\n"  # more fields than the header
        "3,5,B,b,0\n"  # fewer
        '3,5,"B,b,0,0\n',  # a quote that is not closed
    )
    log = read_clicks(path, card(item="i", purchased="b"))
    assert log.report.dropped == {
        "not a line of the header's fields": 3,
        "no user": 2,
        "no text": 1,
        "no item": 1,
        "time not readable": 3,
        "click not 0 or 1": 2,
        "purchase not 0 or 1": 1,
        "purchase without a click": 1,
        "same user, item and time as an earlier row": 1,
    }
    assert log.report.rows_read == 17
    assert log.report.rows_kept == 2 == 17 - sum(log.report.dropped.values())
    assert log.rows["text"].tolist() == ["A", "A"]  # the earlier of the two duplicates stayed
    assert log.rows["clicked"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "clicked",
    [
        [True, False, True],
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        ["1", "0", "1"],
        ["true", "False", "TRUE"],
        pd.array([1, 0, 1], dtype="Int8"),
        pd.Categorical(["1", "0", "1"]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_clicks_of_any_type_read_alike(tmp_path, clicked, suffix):
    frame = pd.DataFrame({"u": [1, 2, 3], "t": [1, 2, 3], "title": ["a", "b", "c"], "c": clicked})
    path = tmp_path / f"log.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert read_clicks(path, card()).rows["clicked"].tolist() == [1, 0, 1]


def test_threshold_makes_clicks_of_ratings(tmp_path):
    path = csv(tmp_path, "u,t,title,c\n1,1,a,3.5\n1,2,b,4\n1,3,c,5\n1,4,d,\n1,5,e,inf\n")
    log = read_clicks(path, card(threshold=4.0))
    assert log.rows["clicked"].tolist() == [0, 1, 1]
    assert log.report.dropped == {"click not a number": 2}


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("seconds", [1_706_695_200, 1_706_695_201]),
        ("milliseconds", [1_706_695_200_000, 1_706_695_201_999]),
        ("iso", ["2024-01-31T10:00:00", "2024-01-31 10:00:01Z"]),  # naive is UTC
        ("iso", ["2024-01-31T12:00:00+02:00", "2024-01-31T05:00:01.9-05:00"]),
        ("iso", pd.to_datetime(["2024-01-31T10:00:00", "2024-01-31T10:00:01"])),
        ("iso", pd.to_datetime(["2024-01-31T10:00:00Z", "2024-01-31T10:00:01Z"]).tz_convert("Asia/Shanghai")),
    ],
)
def test_moments_read_as_unix_seconds(tmp_path, unit, values):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"u": "1", "t": values, "title": "a", "c": [1, 0]}).to_parquet(path)
    assert read_clicks(path, card(unit=unit)).rows["time"].tolist() == [1_706_695_200, 1_706_695_201]


def test_dates_read_as_midnight(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"u": "1", "t": [datetime.date(1970, 1, 2), None], "title": ["a", "b"], "c": [1, 0]}).to_parquet(path)
    log = read_clicks(path, card(unit="iso"), allow_one_class=True)
    assert log.rows["time"].tolist() == [86_400]
    assert log.report.dropped == {"time not readable": 1}


def test_long_integer_ids_survive_nulls(tmp_path):
    big = 2**60 + 1  # a float would make it 2**60, another user
    path = tmp_path / "log.parquet"
    users = pd.array([big, 2**60, None], dtype="Int64")
    pd.DataFrame({"u": users, "t": [1, 1, 1], "title": "a", "c": [1, 0, 1]}).to_parquet(path)
    log = read_clicks(path, card())
    assert sorted(log.rows["user"]) == [str(2**60), str(big)]
    assert log.report.dropped == {"no user": 1}


def test_whole_float_ids_lose_their_point_zero(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"u": [12.0, np.nan, 7.0], "t": 1, "title": ["a", "b", "c"], "c": [1, 1, 0]}).to_parquet(path)
    assert read_clicks(path, card()).rows["user"].tolist() == ["12", "7"]


def test_item_is_the_hash_of_its_text_where_there_is_no_item_column(tmp_path):
    log = read_clicks(csv(tmp_path, "u,t,title,c\n1,1,a,1\n2,1,a,0\n1,2,é,1\n"), card())
    first, accent, again = log.rows["item"]
    assert first == again == hashlib.sha256(b"a").hexdigest()[:16]
    assert accent == hashlib.sha256("é".encode()).hexdigest()[:16]


def test_emoji_mixed_scripts_and_long_texts_are_kept(tmp_path):
    texts = ["🛒🎉 50 %", "مرحبا hello 你好", "x" * 10_000, "zero\u200bwidth"]
    path = tmp_path / "log.csv"
    pd.DataFrame({"u": 1, "t": [1, 2, 3, 4], "title": texts, "c": [1, 0, 1, 0]}).to_csv(path, index=False)
    log = read_clicks(path, card())
    assert log.rows["text"].tolist() == texts
    assert log.report.notes == ("1 texts of 10000 characters or more were kept; the encoder reads their beginning",)


def test_order_within_one_moment_is_the_logs_own(tmp_path):
    path = csv(tmp_path, "u,t,title,c\n" + "".join(f"1,7,{letter},{n % 2}\n" for n, letter in enumerate("dbca")))
    assert read_clicks(path, card()).rows["text"].tolist() == ["d", "b", "c", "a"]


def test_a_byte_order_mark_and_quoted_commas_are_read(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes('\ufeffu,t,title,c\r\n1,1,"a, ""b""",1\r\n\r\n1,2,d\u2028e,0\r\n'.encode())
    log = read_clicks(path, card())
    assert log.rows["text"].tolist() == ['a, "b"', "d\u2028e"]  # U+2028 ends no line; a blank line is none
    assert (log.report.rows_read, log.report.dropped) == (2, {})


def test_a_stray_quote_takes_no_other_line_with_it(tmp_path):
    between = "".join(f"1,{n},t{n},{n % 2}\n" for n in range(2, 152))
    path = csv(tmp_path, f'u,t,title,c\n1,1,"say hi,1\n{between}1,200,5" nail,0\n1,201,"a"b,0\n')
    log = read_clicks(path, card())
    assert log.rows["text"].tolist() == [*(f"t{n}" for n in range(2, 152)), '5" nail']
    assert log.report.dropped == {"not a line of the header's fields": 2}


def test_a_line_break_in_a_field_costs_its_own_row_only(tmp_path):
    log = read_clicks(csv(tmp_path, 'u,t,title,c\n1,1,a,1\n2,1,"b\nb",1\n1,2,c,0\n'), card())
    assert log.rows["text"].tolist() == ["a", "c"]
    assert log.report.dropped == {"not a line of the header's fields": 2}


def test_a_line_that_is_not_utf8_is_dropped_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("u,t,title,c\n1,1,é,1\n1,2,b,0\n".encode() + b"2,1,\xe9,1\n")
    log = read_clicks(path, card())
    assert log.rows["text"].tolist() == ["é", "b"]
    assert log.report.dropped == {"line not UTF-8": 1}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (
            np.array([20, 20.5, np.inf, np.nan, 1e300, 2.0**53 - 1, 2.0**53, -0.0]),
            ["20", "20.5", "", "", "1e+300", "9007199254740991", "9007199254740992.0", "0"],
        ),
        (np.array([20, 0.1], dtype="float32"), ["20", "0.1"]),
        ([True, None, False], ["True", "", "False"]),
        (np.array([2**60 + 1, None, -1], dtype="object"), [str(2**60 + 1), "", "-1"]),
        ([Decimal("2.50"), None], ["2.50", ""]),
        (
            np.array(["2024-01-31T10:00:00", "NaT", "2024-01-31T10:00:00.5", "12024-01-31"], dtype="datetime64[ms]"),
            ["2024-01-31T10:00:00", "", "2024-01-31T10:00:00.5", "12024-01-31T00:00:00"],
        ),
        ([datetime.date(2024, 1, 31), None], ["2024-01-31", ""]),
        ([datetime.time(9, 30), None], ["09:30:00.000000", ""]),
        (pd.Categorical(["a", None, "a"]), ["a", "", "a"]),
        (pd.Categorical([2**60 + 1, None]), [str(2**60 + 1), ""]),
    ],
)
def test_each_cell_becomes_text_by_itself(tmp_path, values, texts):
    path = tmp_path / "log.parquet"
    frame = pd.DataFrame({"u": "1", "t": range(len(texts)), "title": "a", "c": 1, "age": values})
    frame.to_parquet(path)
    log = read_clicks(path, card(context="age"), allow_one_class=True)
    assert log.rows["context:age"].tolist() == texts


def test_odd_values_of_any_parquet_type_spoil_their_own_cell_only(tmp_path):
    path = tmp_path / "log.parquet"
    odd = {
        "day": arrow.array([19_753, 2**31 - 1], arrow.int32()).view(arrow.date32()),
        "at": arrow.array([34_200_000_000_000, -5], arrow.int64()).view(arrow.time64("ns")),
        "words": arrow.array([b"ok", b"\xff"]).view(arrow.string()),
        "shown": arrow.array([1_706_695_200, 2**62], arrow.int64()).view(arrow.timestamp("us", "Asia/Shanghai")),
    }
    columns = {"u": ["1", "2"], "t": [1, 2], "title": ["a", "b"], "c": [1, 0], **odd}
    pq.write_table(arrow.table(columns), path)
    log = read_clicks(path, card(context=tuple(odd)))
    contexts = log.rows.filter(like="context:")
    assert contexts.iloc[0].tolist() == ["2024-01-31", "09:30:00.000000000", "ok", "1970-01-01T00:28:26.6952"]
    assert contexts["context:words"][1] == ""
    for name in ("day", "shown"):
        log = read_clicks(path, card(unit="iso", time=name), allow_one_class=True)
        assert log.rows["time"].tolist() == [{"day": 1_706_659_200, "shown": 1_706}[name]]
        assert log.report.dropped == {"time not readable": 1}


NOT_ISO = ["now", "today", "1706695200", "2012121012345", "31.1.2024", "0001-01-01T00:00:00+02:00"]


@pytest.mark.parametrize(
    ("unit", "texts", "seconds"),
    [
        ("seconds", ["10", " 11 ", "12.9", "1.3e1", "1_4", "１５", "-1", "inf", "x"], [10, 11, 12, 13]),
        ("milliseconds", ["10000", "11999.9", "2024-01-31", ""], [10, 11]),
        (
            "iso",
            ["1970-01-02", "19700103", "1970-01-04 01:00+01:00", "1970-01-05T00:00:00.123456789Z", *NOT_ISO],
            [86_400, 172_800, 259_200, 345_600],
        ),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_moments_in_mixed_forms_are_read_one_by_one(tmp_path, unit, texts, seconds, turn):
    path = csv(tmp_path, "u,t,title,c\n" + "".join(f"1,{text},a,1\n" for text in texts[::turn]))
    log = read_clicks(path, card(unit=unit), allow_one_class=True)
    assert log.rows["time"].tolist() == seconds


def test_clicks_other_than_0_and_1_cost_their_own_row_even_where_they_are_most(tmp_path):
    path = csv(tmp_path, "u,t,title,c\n1,1,a,1\n1,2,a,false\n" + "".join(f"2,{n},a,5\n" for n in range(9)))
    log = read_clicks(path, card())
    assert log.rows["clicked"].tolist() == [1, 0]
    assert log.report.dropped == {"click not 0 or 1": 9}


# Refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("u,t,title,c\n", "holds no rows"),
        ("u,t,c\n1,1,1\n", "no column title; mend the data card; the file has: u, t, c"),
        ("u;t;title;c\n1;1;a;1\n", "separate the fields with commas"),
        ("u\tt\ttitle\tc\n1\t1\ta\t1\n", "separate the fields with commas"),
        ("u,t,title,c,c\n1,1,a,1,1\n", "column c is there more than once; rename all but one"),
        ('u,t,"title,c\n1,1,a,1\n', "the first line is not a header"),
        ("u,t,title,c\n1,1,a,b,1\n1,1,a\n", "none of 2 lines has the header's 4 fields; quote texts"),
        ("u,t,title,c\n1,yesterday,a,1\n2,?,b,0\n", "none of 2 values is a time in Unix seconds"),
        ("u,t,title,c\n1,1706695200000,a,1\n2,1706695200001,b,0\n", 'set time.unit to "milliseconds" or "iso"'),
        ("u,t,title,c\n,1,a,1\n,2,b,0\n", "no row is left: no user: 2"),
        ("u,t,title,c\n1,1,a,1\n1,2,b,1\n", "every row is clicked among 2"),
        ("u,t,title,c\n1,1,a,0\n1,2,b,0\n", "no row is clicked among 2"),
        (
            "u,t,title,c\n1,1,a,3\n1,2,b,4.5\n",
            "no row is left: click not 0 or 1: 2; mend the log or the data card; 2 row",
        ),
        ("u,t,title,c\n1,1,a,3\n", "1 rows hold clicks other than 0 and 1: if c is a number, set click.threshold"),
        (
            "u,t,title,c\n1,1,a,3\n1,2,b,1\n",
            "every row is clicked among 1; a click model needs both; check the data card",
        ),
    ],
)
def test_unusable_csv_is_refused_with_the_mend(tmp_path, text, message):
    with pytest.raises(DataError) as refusal:
        read_clicks(csv(tmp_path, text), card())
    assert message in str(refusal.value)


def test_unusable_paths_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_clicks(tmp_path / "none.csv", card())
    with pytest.raises(DataError, match="is a folder"):
        read_clicks(tmp_path, card())
    with pytest.raises(DataError, match=r'unknown kind "\.xlsx"; give a \.csv or \.parquet file'):
        read_clicks(csv(tmp_path, "", "log.xlsx"), card())
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_clicks(csv(tmp_path, "u,t,title,c\n1,1,a,1\n", "log.parquet"), card())
    latin = tmp_path / "latin.csv"
    latin.write_bytes("u,t,title,c\n1,1,é,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_clicks(latin, card())


def test_parquet_columns_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"u": ["1"], "t": [1], "title": [["a", "b"]], "c": [1]}).to_parquet(path)
    with pytest.raises(DataError, match="column title holds list"):
        read_clicks(path, card())
    pd.DataFrame({"u": ["1"], "t": pd.to_datetime(["2024-01-01"]), "title": ["a"], "c": [1]}).to_parquet(path)
    with pytest.raises(DataError, match=r'holds timestamps: set time\.unit = "iso"'):
        read_clicks(path, card())
    pd.DataFrame({"u": [], "t": [], "title": [], "c": []}).to_parquet(path)
    with pytest.raises(DataError, match="holds no rows"):
        read_clicks(path, card())


def test_one_class_is_accepted_where_the_caller_says_so(tmp_path):
    log = read_clicks(csv(tmp_path, "u,t,title,c\n1,1,a,0\n"), card(), allow_one_class=True)
    assert log.report.click_rate == 0.0


def test_no_row_shows_in_errors_or_reprs(tmp_path):
    path = csv(tmp_path, "u,t,title,c\nSECRETUSER,1,SECRETTEXT,1\nSECRETUSER,2,SECRETTEXT,SECRETCLICK\n")
    with pytest.raises(DataError) as refusal:
        read_clicks(path, card())
    log = read_clicks(path, card(), allow_one_class=True)
    for shown in (str(refusal.value), repr(log), str(asdict(log.report))):
        assert "SECRET" not in shown


# The gate


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (canonical().drop(columns="user"), "user: no such column"),
        (canonical(place=["a", "b", "c"]), "place: unknown column"),
        (canonical(clicked=[1, 0, 1]), "clicked: dtype"),
        (canonical(clicked=np.array([1, 2, 0], dtype="int8")), "clicked: 0 or 1"),
        (canonical(time=[-1, 2, 3]), "time: Unix seconds"),
        (canonical(text=["one", " ", "one"]), "text: never empty"),
        (canonical(user=["SECRET", None, "b"]), "user: not_nullable"),
        (canonical(purchased=np.array([0, 1, 0], dtype="int8")), "purchased only where clicked"),
        (pd.concat([canonical(), canonical()]), "one row per user, item and time"),
    ],
)
def test_gate_names_column_and_bound_and_shows_no_value(rows, message):
    with pytest.raises(DataError) as refusal:
        validate_rows(rows)
    assert message in str(refusal.value)
    assert "SECRET" not in str(refusal.value)


def test_make_log_orders_rows_and_columns():
    rows = canonical(slate=["", "", "s"])[["domain", "slate", "clicked", "text", "item", "time", "user"]].iloc[::-1]
    log = make_log(rows, rows_read=5, dropped={"no text": 2})
    assert list(log.rows) == ["user", "time", "item", "text", "clicked", "slate", "domain"]
    assert log.rows["time"].tolist() == [1, 2, 3]
    assert (log.report.rows_read, log.report.rows_kept, log.report.dropped) == (5, 3, {"no text": 2})
    with pytest.raises(DataError, match="no row is left: no text: 2"):
        make_log(rows.iloc[:0], dropped={"no text": 2})


def test_select_users_counts_the_rows_of_others():
    log = select_users(make_log(canonical()), pd.Index(["b"]), "not drawn")
    assert log.rows["user"].tolist() == ["b"]
    assert log.report.dropped == {"not drawn": 2}
    assert (log.report.rows_read, log.report.rows_kept) == (3, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (canonical(extra=1), "extra: unknown column"),
        (canonical().drop(columns="domain"), "domain: no such column"),
        (canonical(clicked=[1, 0, 1]), "clicked: dtype"),
        (canonical(user=pd.Series(["a", "b", "c"], dtype=object)), "user: dtype"),
    ],
)
def test_write_clicks_refuses_other_columns_and_types(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        write_clicks(rows, tmp_path / "log.parquet")
    assert not (tmp_path / "log.parquet").exists()


# Properties

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda text: text.strip() != "")
any_text = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def canonical_rows(draw):
    column = {"slate": any_text, "context:place": any_text, "context:" + draw(words): any_text}
    optional = draw(st.lists(st.sampled_from(sorted(column)), unique=True))
    size = draw(st.integers(1, 8))
    keys = st.tuples(words, st.integers(0, 4_102_444_800), words)
    user, time, item = zip(*draw(st.lists(keys, min_size=size, max_size=size, unique=True)), strict=True)
    several = lambda each: draw(st.lists(each, min_size=size, max_size=size))  # noqa: E731
    clicked = np.array(several(st.integers(0, 1)), dtype="int8")
    rows = pd.DataFrame({"user": user, "time": time, "item": item, "text": several(words), "clicked": clicked})
    if draw(st.booleans()):
        rows["purchased"] = clicked * np.array(several(st.integers(0, 1)), dtype="int8")
    for name in [*optional, "domain"]:
        rows[name] = pd.Series(several(column.get(name, any_text)), dtype="str")
    return make_log(rows).rows


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(canonical_rows())
def test_what_is_written_reads_back_the_same(tmp_path, rows):
    path = tmp_path / "log.parquet"
    write_clicks(rows, path)
    again = read_clicks(path, canonical_card(rows), allow_one_class=True)
    pd.testing.assert_frame_equal(again.rows, rows)
    assert again.report.dropped == {}


cells = st.sampled_from(["", " ", "0", "1", "1.0", "true", "2", "-3", "nan", "inf", "1e400", "é", "None", "2024-01-01"])


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[cells] * 7), min_size=1, max_size=12), st.sampled_from(["csv", "parquet"]), st.booleans())
def test_whatever_is_read_passes_the_gate_and_is_accounted_for(tmp_path, lines, suffix, ratings):
    raw = pd.DataFrame(lines, columns=list(string.ascii_lowercase[:7]))
    path = tmp_path / f"log.{suffix}"
    raw.to_csv(path, index=False) if suffix == "csv" else raw.to_parquet(path)
    roles = {"user": "a", "time": "b", "text": ("c", "a"), "clicked": "d", "purchased": "e", "context": ("f", "g")}
    try:
        log = read_clicks(path, card(threshold=1.0 if ratings else None, **roles), allow_one_class=True)
    except DataError:
        return
    assert validate_rows(log.rows) is log.rows
    assert log.report.rows_kept == len(log.rows) >= 1
    assert log.report.rows_read == len(raw) == len(log.rows) + sum(log.report.dropped.values())


# What is read of one user's rows never depends on those of another

one_user = st.lists(st.tuples(*[cells] * 7), min_size=1, max_size=6)
line_bytes = st.one_of(st.binary(max_size=12), st.text('",;\\t01hé', max_size=12).map(str.encode))
hostile_line = line_bytes.map(lambda tail: b"h," + tail.replace(b"\n", b"").replace(b"\r", b""))
hostile_numbers = st.one_of(st.none(), st.floats(), st.sampled_from([20.5, 1e300, -0.0, 5.0]))
honest_numbers = st.sampled_from([None, 0.0, 1.0, 20.0, 2.0**60])
CARDS = [
    card(unit=unit, threshold=threshold, user="u", item=item, text=("x", "z"), context=("x", "z"), purchased=bought)
    for unit in ("seconds", "iso")
    for threshold in (None, 1.0)
    for item in ("", "z")
    for bought in ("", "y")
]


def rows_of_others(path, chosen):
    """Canonical rows of every user but the hostile "h"; none where nothing is left."""
    try:
        rows = read_clicks(path, chosen, allow_one_class=True).rows
    except DataError as error:
        if "no row is left" in str(error) or "none of" in str(error):
            return []
        raise
    return rows[rows["user"] != "h"].to_dict("records")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one_user, st.lists(st.tuples(st.integers(0, 6), hostile_line), max_size=8), st.sampled_from(CARDS))
def test_no_csv_line_of_one_user_changes_what_is_read_of_another(tmp_path, honest, hostile, chosen):
    path = tmp_path / "log.csv"
    text = io.StringIO()
    pd.DataFrame(honest, columns=list("utxyzcd")).drop(columns="d").to_csv(text, index=False)
    lines = text.getvalue().encode().splitlines()
    path.write_bytes(b"\n".join(lines))
    alone = rows_of_others(path, chosen)
    for place, line in hostile:
        lines.insert(1 + min(place, len(honest)), line)
    path.write_bytes(b"\n".join([*lines, b"h,1706695200,x,,z,1", b"h,2024-01-31,x,,z,1"]))
    assert rows_of_others(path, chosen) == alone


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(*[honest_numbers] * 4, cells), min_size=1, max_size=6),
    st.lists(st.tuples(*[hostile_numbers] * 4, cells), max_size=8),
    st.booleans(),
    st.sampled_from(CARDS[:8]),
)
def test_no_parquet_row_of_one_user_changes_what_is_read_of_another(tmp_path, honest, hostile, first, chosen):
    path = tmp_path / "log.parquet"
    numbers = arrow.float64()
    schema = arrow.schema(
        {"u": arrow.string(), "t": numbers, "x": arrow.string(), "y": numbers, "z": numbers, "c": numbers}
    )

    def write(rows):
        columns = zip(*[(user, t, x, y, z, c) for user, (t, y, z, c, x) in rows], strict=True)
        arrays = [arrow.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
        pq.write_table(arrow.Table.from_arrays(arrays, schema=schema), path)

    ours, others = [("1", row) for row in honest], [("h", row) for row in hostile]
    write(ours)
    alone = rows_of_others(path, chosen)
    write([*others, *ours] if first else [*ours, *others])
    assert rows_of_others(path, chosen) == alone
