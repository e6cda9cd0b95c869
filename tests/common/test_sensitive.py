"""Sensitive columns: no other role, not read where they are not asked for, and in no feature."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sensitive_logs import CANARY, OTHER, card_table, sensitive_log, write_log

from common import click_files
from common.card import canonical_card, load_card, parse_card
from common.clicks import read_clicks, validate_rows, write_clicks
from common.config import ModelConfig, to_table
from common.errors import ConfigError, DataError
from common.features import UserRows, featurise
from common.sensitive import sensitive_columns, stated_by_row, without_sensitive


def features(rows: pd.DataFrame) -> UserRows:
    codes, texts = pd.factorize(rows["text"], sort=True)
    states_TE = np.random.default_rng(1).normal(size=(len(texts), 8)).astype(np.float32)
    return featurise(rows, codes.astype(np.int64), states_TE, ModelConfig())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"context": ["slot", "age"]},
            "columns.context too, and a sensitive column plays no other role; take it out of",
        ),
        ({"context": ["context:age"]}, 'sensitive.columns = "context:age": is columns.context too'),
        ({"text": ["headline", "age"]}, 'sensitive.columns = "age": is columns.text too'),
        ({"domain": "gender"}, 'sensitive.columns = "gender": is columns.domain too'),
        ({"item": "gender"}, "is columns.item too"),
        ({"slate": "gender"}, "is columns.slate too"),
        ({"user": "gender"}, "is columns.user too"),
        ({"clicked": "gender"}, "is columns.clicked too"),
        ({"purchased": "gender"}, "is columns.purchased too"),
        ({"context": ["sensitive:income"]}, "was written as a sensitive column, which is never a feature"),
    ],
)
def test_a_sensitive_column_with_another_role_is_refused_with_the_mend(change: dict, text: str) -> None:
    table = card_table()
    table["columns"] |= change
    with pytest.raises(ConfigError) as refusal:
        parse_card(table)
    assert text in str(refusal.value)


def test_a_card_names_sensitive_columns_once_or_not_at_all() -> None:
    assert parse_card(card_table(sensitive=())).sensitive.columns == ()
    assert parse_card(card_table() | {"sensitive": {"columns": "age"}}).sensitive.columns == ("age",)
    with pytest.raises(ConfigError, match=r'sensitive\.columns = "age": listed twice'):
        parse_card(card_table(sensitive=("age", "sensitive:age")))
    with pytest.raises(ConfigError, match=r"sensitive\.colums: unknown key; did you mean sensitive\.columns"):
        parse_card(card_table() | {"sensitive": {"colums": ["age"]}})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_they_are_read_only_where_they_are_asked_for(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks, path = write_log(tmp_path, sensitive_log(), card_table(), suffix)
    card, read = load_card(path), []
    original = click_files._plain
    monkeypatch.setattr(click_files, "_plain", lambda column: read.append(column) or original(column))
    rows = read_clicks(clicks, card).rows
    assert sensitive_columns(rows) == []
    assert not rows.astype(str).isin([CANARY]).any(axis=None)
    if suffix == "parquet":  # not even a byte of theirs is decoded
        assert len(read) == len(card.columns.names())
    kept = read_clicks(clicks, card, sensitive=True).rows
    assert sensitive_columns(kept) == ["sensitive:age", "sensitive:gender"]
    assert set(kept["sensitive:age"]) == {"", CANARY, OTHER}
    pd.testing.assert_frame_equal(without_sensitive(kept), rows)
    assert validate_rows(kept) is kept


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_mistyped_one_is_refused_where_it_is_asked_for(suffix: str, tmp_path: Path) -> None:
    """A log to train on or to score need not hold what is not read of it."""
    clicks, path = write_log(tmp_path, sensitive_log(10), card_table(sensitive=("age_band",)), suffix)
    with pytest.raises(DataError, match="no column age_band; mend the data card; the file has: visitor"):
        read_clicks(clicks, load_card(path), sensitive=True)
    assert len(read_clicks(clicks, load_card(path)).rows) == 80


def test_null_words_of_csv_are_nothing_stated(tmp_path: Path) -> None:
    raw = sensitive_log(4).assign(age=["NULL", "nan", "None", "N/A"] * 8)
    clicks, path = write_log(tmp_path, raw, card_table())
    assert set(read_clicks(clicks, load_card(path), sensitive=True).rows["sensitive:age"]) == {""}


def test_no_file_of_a_partner_is_written_with_them(tmp_path: Path) -> None:
    clicks, path = write_log(tmp_path, sensitive_log(10), card_table())
    kept = read_clicks(clicks, load_card(path), sensitive=True).rows
    with pytest.raises(DataError, match="sensitive:age, sensitive:gender: sensitive columns are for held-out clicks"):
        write_clicks(kept, tmp_path / "partner.parquet")
    assert not (tmp_path / "partner.parquet").exists()


def test_a_canonical_card_reads_them_back_as_sensitive(tmp_path: Path) -> None:
    clicks, path = write_log(tmp_path, sensitive_log(10), card_table())
    kept = read_clicks(clicks, load_card(path), sensitive=True).rows
    kept.to_parquet(tmp_path / "central.parquet", index=False)
    card = parse_card(to_table(canonical_card(kept)))
    pd.testing.assert_frame_equal(read_clicks(tmp_path / "central.parquet", card, sensitive=True).rows, kept)
    assert sensitive_columns(read_clicks(tmp_path / "central.parquet", card).rows) == []
    assert "sensitive:age" in pq.read_schema(tmp_path / "central.parquet").names


def test_features_do_not_change_with_them_and_would_if_they_were_context(tmp_path: Path) -> None:
    clicks, path = write_log(tmp_path, sensitive_log(), card_table())
    kept = read_clicks(clicks, load_card(path), sensitive=True).rows
    assert len(sensitive_columns(kept)) == 2
    with_them, without = features(kept), features(without_sensitive(kept))
    for name in ("offset_U1", "text_N", "label_NL", "dense_NF", "history_NH", "states_TE"):
        assert getattr(with_them, name).tobytes() == getattr(without, name).tobytes(), name
    planted = kept.rename(columns={"sensitive:age": "context:age"})
    assert features(planted).dense_NF.tobytes() != without.dense_NF.tobytes()


def test_a_person_is_in_the_group_that_was_stated_last() -> None:
    rows = pd.DataFrame(
        {
            "user": ["a", "a", "a", "b", "b", "c"],
            "sensitive:age": ["18-24", " 25-34 ", "", "", "", "25-34"],
        }
    ).astype("str")
    assert stated_by_row(rows, "sensitive:age").tolist() == ["25-34"] * 3 + ["", ""] + ["25-34"]
