"""Rows of some users out of many, as features: whole logs that an audit makes up, and who is a unit in them.

Legend: N rows, U users, M rows of a user.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client import training
from client.training import DpStep
from common.config import PrivacyConfig
from common.features import UserRows


def rows_by_user(rows: UserRows, most: int | None = None) -> list[NDArray[np.int64]]:
    """Returns the numbers of each user's rows that may be trained on, at most so many of them: the latest."""
    return [rows.trainable(user)[0 if most is None else -most :] for user in range(rows.num_users)]


def few_users(rows: UserRows, count: int, most_rows: int, generator: np.random.Generator) -> UserRows:
    """Returns some users, each with its latest rows up to a bound; the one with the most rows is among them."""
    own = rows_by_user(rows, most_rows)
    length_U = np.array([len(rows.trainable(user)) for user in range(rows.num_users)], np.int64)
    longest = int(length_U.argmax())
    others = np.setdiff1d(np.flatnonzero(length_U > 0), [longest])
    drawn = generator.permutation(others)[: count - 1]
    return gather(rows, [own[user] for user in [*sorted(drawn), longest]])


def first_users(rows: UserRows, count: int) -> UserRows:
    """Returns the first so many users."""
    last = min(count, rows.num_users)
    stop = int(rows.offset_U1[last])
    return replace(
        rows,
        offset_U1=rows.offset_U1[: last + 1],
        text_N=rows.text_N[:stop],
        label_NL=rows.label_NL[:stop],
        dense_NF=rows.dense_NF[:stop],
        history_NH=rows.history_NH[:stop],
        trains_N=None if rows.trains_N is None else rows.trains_N[:stop],
    )


def units_of(rows: UserRows, privacy: PrivacyConfig) -> list[NDArray[np.int64]]:
    """Returns the row numbers of every unit that can be sampled."""
    everybody = DpStep(1.0, 0.0, privacy.clip, privacy.max_impressions_per_user, 1.0, privacy.unit)
    return training.sample_units(rows, everybody, np.random.default_rng(0))


def gather(rows: UserRows, users: Sequence[NDArray[np.int64]]) -> UserRows:
    """Returns a log of these users, each given by row numbers; history that is not among them is left out."""
    row_N = np.concatenate([*users, np.zeros(0, np.int64)]).astype(np.int64)
    offset_U1 = np.cumsum([0, *map(len, users)]).astype(np.int64)
    history_NH = np.full((len(row_N), rows.history_NH.shape[1]), -1, np.int64)
    for start, row_M in zip(offset_U1, users, strict=False):
        place = {int(row): int(start) + index for index, row in reversed(list(enumerate(row_M)))}
        for index, row in enumerate(row_M):
            known = [place.get(int(past), -1) for past in rows.history_NH[row]]
            history_NH[start + index] = sorted(known, key=lambda past: past < 0)
    return replace(
        rows,
        offset_U1=offset_U1,
        text_N=rows.text_N[row_N],
        label_NL=rows.label_NL[row_N],
        dense_NF=rows.dense_NF[row_N],
        history_NH=history_NH,
        trains_N=None if rows.trains_N is None else rows.trains_N[row_N],
    )
