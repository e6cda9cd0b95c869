"""MIND, news of Microsoft's: a folder with behaviors.tsv and news.tsv, or with folders that hold them -> click rows.

behaviors.tsv: impression, user, time (11/15/2019 8:55:22 AM, read as UTC), history (news that the user clicked before
the log begins, apart by spaces), what was shown (N123-1 N456-0: clicked or not). news.tsv: id, category, subcategory,
title, abstract, ...; both without a header. Text = "Title. Category, subcategory"; item = the news' id, domain = its
category, slate = the impression.

A history's clicks have no time of their own: they become rows that are history alone, a second apart, before the
user's first impression. Where several files have one user, the earliest impression's history is taken: what came after
it was shown in the log.

Source: Wu et al. 2020, "MIND: A Large-scale Dataset for News Recommendation", section 3.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.clicks import SAME_MOMENT
from common.errors import DataError

_BEHAVIOURS, _NEWS = "behaviors.tsv", "news.tsv"
_TIME = "%m/%d/%Y %I:%M:%S %p"
NO_USER, NO_TITLE, NO_TIME, NO_LABEL = "no user", "no text", "time not readable", "click not 0 or 1"


def mind_rows(path: Path, draw: Callable[["pd.Index[str]"], "pd.Index[str]"]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns canonical rows, in the log's own order, and reason -> rows that were dropped.

    Args:
        path: of the folder.
        draw: which of the users to keep: what is dropped before it is taken apart needs no memory.

    Raises:
        DataError: where a file is missing or is none of MIND's.
    """
    folders = (
        [path] if (path / _BEHAVIOURS).is_file() else sorted(file.parent for file in path.glob(f"*/{_BEHAVIOURS}"))
    )
    if not folders:
        raise DataError(f"{path}: holds no {_BEHAVIOURS}, nor does a folder in it; data.path must name a MIND folder")
    shown = pd.concat([_table(folder / _BEHAVIOURS, _BEHAVIOUR_COLUMNS).assign(part=folder.name) for folder in folders])
    news = pd.concat([_table(folder / _NEWS, _NEWS_COLUMNS) for folder in folders]).drop_duplicates("item")
    shown["time"] = _seconds(shown["time"])
    shown = shown[shown["user"].isin(draw(pd.Index(shown["user"].unique())))]
    unnamed, unreadable = shown["user"].str.strip() == "", shown["time"] < 0
    shown = shown[~unnamed & ~unreadable].sort_values("time", kind="stable").reset_index(drop=True)
    impressions, unlabelled = _impressions(shown)
    rows = pd.concat([impressions, _past(shown)], ignore_index=True).merge(_texts(news), on="item", how="left")
    untitled, repeated = rows["text"].isna(), rows.duplicated(["user", "item", "time"])
    kept = rows[~untitled & ~repeated].reset_index(drop=True)
    dropped = {
        NO_USER: int(unnamed.sum()),
        NO_TIME: int((unreadable & ~unnamed).sum()),
        NO_LABEL: unlabelled,
        NO_TITLE: int(untitled.sum()),
        SAME_MOMENT: int((repeated & ~untitled).sum()),
    }
    return kept, {reason: count for reason, count in dropped.items() if count}


_BEHAVIOUR_COLUMNS = ("slate", "user", "time", "past", "shown")
_NEWS_COLUMNS = ("item", "category", "subcategory", "title")


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Returns the first columns of a tab-separated file without a header, as text."""
    try:
        return pd.read_csv(
            path,
            sep="\t",
            names=list(columns),
            usecols=range(len(columns)),
            dtype="str",
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a MIND folder has {_BEHAVIOURS} and {_NEWS}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other columns"
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else reason
        raise DataError(f"{path}: not readable ({reason}); expected tab-separated {', '.join(columns)}") from None


def _seconds(written: "pd.Series[str]") -> "pd.Series[int]":
    """Returns Unix seconds, -1 where a time cannot be read."""
    moments = pd.to_datetime(written, format=_TIME, errors="coerce", utc=True)
    seconds = (moments - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
    return seconds.fillna(-1).astype("int64")


def _impressions(shown: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Returns a row for each news item that was shown, and how many had no label (as in MIND's test file)."""
    listed = [words.split() for words in shown["shown"]]
    row_N = np.repeat(np.arange(len(shown)), [len(words) for words in listed])
    words = [word.rpartition("-") for words in listed for word in words]
    item_N, label_N = (np.array([word[place] for word in words], object) for place in (0, 2))
    labelled_N = (label_N == "0") | (label_N == "1")
    row_M = row_N[labelled_N]
    rows = pd.DataFrame(
        {
            "user": shown["user"].to_numpy()[row_M],
            "time": shown["time"].to_numpy()[row_M],
            "item": item_N[labelled_N],
            "clicked": (label_N[labelled_N] == "1").astype("int8"),
            "history": np.zeros(len(row_M), "int8"),
            "slate": (shown["part"] + "/" + shown["slate"]).to_numpy()[row_M],
        }
    )
    return rows, int((~labelled_N).sum())


def _past(shown: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each click of a user's history, the last a second before the user's first impression."""
    first = shown.drop_duplicates("user")
    listed = [items.split() for items in first["past"]]
    length_U = np.array([len(items) for items in listed], np.int64)
    user_N = np.repeat(np.arange(len(first)), length_U)
    back_N = np.concatenate([*(np.arange(length, 0, -1) for length in length_U), np.empty(0, np.int64)]).astype(
        np.int64
    )
    return pd.DataFrame(
        {
            "user": first["user"].to_numpy()[user_N],
            "time": np.maximum(first["time"].to_numpy()[user_N] - back_N, 0),
            "item": [item for items in listed for item in items],
            "clicked": np.ones(len(user_N), "int8"),
            "history": np.ones(len(user_N), "int8"),
            "slate": np.full(len(user_N), "", object),
        }
    )


def _texts(news: pd.DataFrame) -> pd.DataFrame:
    """Returns item, text and domain; an item without a title has no text."""
    titled = news[news["title"].str.strip() != ""]
    kinds = titled["category"] + ", " + titled["subcategory"]
    text = titled["title"].str.strip().str.rstrip(".") + ". " + kinds
    return pd.DataFrame({"item": titled["item"], "text": text, "domain": titled["category"]})
