"""The public catalogue, and which rows of whom are in the statistics."""

import numpy as np
import pandas as pd
import pytest

import common.histogram
from common.errors import ConfigError
from common.histogram import Catalogue, Terms, counted, row_shares

CATALOGUE = Catalogue(("a", "b", "c"), ("news", "", "news"))


def rows_of(*rows: tuple[str, str, int, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["user", "item", "clicked", "domain"])
    return frame.assign(time=np.arange(len(rows)))


def test_the_entries_of_a_catalogue() -> None:
    assert CATALOGUE.category_names == ("", "news")
    assert CATALOGUE.category_of_I.tolist() == [1, 0, 1]
    assert (CATALOGUE.block, CATALOGUE.length) == (6, 12)
    assert Catalogue.of({"c": "news", "a": "news", "b": ""}) == CATALOGUE


@pytest.mark.parametrize(
    ("items", "categories", "match"),
    [
        ((), (), "0 items: from 1 to"),
        (("a", "b"), ("x",), "2 items and 1 categories"),
        (("a", "a"), ("x", "x"), "an item comes twice"),
    ],
)
def test_what_is_no_catalogue_is_refused(items: tuple[str, ...], categories: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Catalogue(items, categories)


def test_an_unknown_item_is_its_own_domains_or_of_none() -> None:
    rows = rows_of(("u", "a", 1, "film"), ("u", "x", 1, "news"), ("u", "y", 0, "film"))
    item_N = CATALOGUE.items_of(rows)
    assert item_N.tolist() == [0, -1, -1]
    assert CATALOGUE.categories_of(rows, item_N).tolist() == [1, 1, -1]  # a's is the catalogue's, whatever its row says


def test_the_latest_rows_of_a_user_are_counted_and_strangers_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.histogram, "MOST_ROWS", 2)
    rows = rows_of(*(("u", item, 1, "") for item in ("a", "b", "x", "c", "y")), ("v", "a", 0, ""), ("w", "x", 0, ""))
    assert counted(rows, CATALOGUE).tolist() == [False, True, False, True, False, True, False]


def test_a_rows_share_is_its_users_clip_factor() -> None:
    """One row of a centred half: sqrt(.25 + w^2) beside category and total; four rows of one item are four times."""
    weight = common.histogram.IMPRESSION_WEIGHT
    one = np.sqrt((0.25 + weight**2) * (1 + 0.1**2 + 0.05**2))
    rows = rows_of(("u", "a", 1, ""), *(("v", "b", 1, ""),) * 4, ("v", "x", 1, ""))
    share_N = row_shares(rows, CATALOGUE, Terms(0.5, 1.0))
    assert share_N[0] == pytest.approx(1.0)
    assert share_N[1:5] == pytest.approx([1 / (4 * one)] * 4)
    assert share_N[5] == 0
    assert row_shares(rows[:0], CATALOGUE, Terms(0.5, 1.0)).shape == (0,)
