"""Named splits of click rows into training and test rows, and the stable hash that draws users.

Figures say which split they come from: a `time` split asks how well the model does later, with users it may know; a
`user` split asks how well it does on people it has never seen; `user_time` asks both. Neither depends on the order of
rows, on the process or on the machine.

N = rows, U = users, in every array name.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.clicks import impressions_N
from common.config import EvaluationConfig, Split
from common.errors import DataError

Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SplitRows:
    """Which rows are for training and which for the test; a row may be neither, and is never both.

    Attributes:
        train_N: rows to train on.
        test_N: rows to evaluate on.
        past_N: history alone, on the side of training: features of a training row may see it.
        cut_time: Unix seconds; test rows are at or after it. None for split "user".
    """

    train_N: Bools
    test_N: Bools
    past_N: Bools
    cut_time: int | None


@dataclass(frozen=True)
class Rule:
    """What is held out, by a public rule: a row's side depends on nothing but its own user and time.

    Attributes:
        from_time: Unix seconds; rows at or after it are held out; None = whatever their time.
        user_share: of users, in (0, 1), whose rows are held out; None = of all users.
        key: of the hash that draws these users.
    """

    from_time: int | None = None
    user_share: float | None = None
    key: str = ""

    def sides(self, rows: pd.DataFrame) -> tuple[Bools, Bools]:
        """Returns which rows are for training and which are held out; never both, and neither where both rules apply.

        Rows that are history alone go with the others of their user and time: who trains or evaluates leaves them out.

        With both rules the later rows of the drawn users are held out and the earlier rows of the others train.
        """
        train_N = test_N = np.ones(len(rows), dtype=bool)
        if self.user_share is not None:
            held_N = self._drawn(rows["user"])
            train_N, test_N = ~held_N, held_N
        if self.from_time is not None:
            later_N = rows["time"].to_numpy() >= self.from_time
            train_N, test_N = train_N & ~later_N, test_N & later_N
        return train_N, test_N

    def _drawn(self, users: "pd.Series[str]") -> Bools:
        codes_N, distinct = pd.factorize(users)
        most = np.uint64(min(int((self.user_share or 0.0) * 2**64), 2**64 - 1))
        held_U = stable_hash(distinct, f"split/{self.key}" if self.key else "split") < most
        return np.asarray(held_U[codes_N])


def rule_of(evaluation: EvaluationConfig) -> Rule:
    """Returns what partners hold out."""
    return Rule(evaluation.from_time, evaluation.user_share, evaluation.key)


def stable_hash(names: Iterable[str], purpose: str) -> Words:
    """Returns 64 bits per name: the head of SHA-256(purpose, name), the same in every process and on every machine.

    Args:
        names: such as user ids.
        purpose: a tag per use, so that two uses of the hash do not correlate (test users must not share a partner).
    """
    heads = [hashlib.sha256(f"hushclick/{purpose}\0{name}".encode()).digest()[:8] for name in names]
    return np.frombuffer(b"".join(heads), dtype=">u8").astype(np.uint64)


def split_rows(rows: pd.DataFrame, split: Split, test_share: float) -> SplitRows:
    """Returns the training and the test rows of canonical rows under a named split.

    `time`: the latest `test_share` of rows are test, cut at the moment that comes nearest to it (rows of one moment
    stay together); a user may be on both sides. `user`: users are whole on one side; each is a test user with
    probability `test_share` by the hash of the id, so that nobody changes sides when a log grows. `user_time`: the
    later rows of test users are test, the earlier rows of other users train, and the rest is neither (it is history).
    Rows that are history alone are on no side.

    Args:
        rows: canonical rows, in any order.
        split: its name.
        test_share: in (0, 1); of rows for `time`, of users for `user`, of each for `user_time`.

    Raises:
        DataError: when training or test rows are none, or all, or none of them are clicked.
    """
    cut_time = (
        _cut(rows["time"].to_numpy()[impressions_N(rows)], test_share) if split in ("time", "user_time") else None
    )
    rule = Rule(cut_time, test_share if split in ("user", "user_time") else None)
    train_N, test_N = rule.sides(rows)
    shown_N = impressions_N(rows)
    past_N = train_N & ~shown_N
    train_N, test_N = train_N & shown_N, test_N & shown_N
    clicked_N = rows["clicked"].to_numpy() == 1
    for side, side_N in (("training", train_N), ("test", test_N)):
        _require_usable(clicked_N[side_N], side, split, test_share)
    return SplitRows(train_N=train_N, test_N=test_N, past_N=past_N, cut_time=cut_time)


def _cut(time_N: npt.NDArray[np.int64], test_share: float) -> int:
    """Returns the moment whose share of rows at or after it is nearest to `test_share`, with rows on both sides."""
    distinct, counts = np.unique(time_N, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f'split by time: all {len(time_N)} rows have one time; set data.split = "user", or mend the time column'
        )
    later = counts[::-1].cumsum()[::-1][1:]  # rows at or after each moment but the first
    return int(distinct[1 + np.abs(later - test_share * len(time_N)).argmin()])


def _require_usable(clicked: Bools, side: str, split: str, test_share: float) -> None:
    """Raises a `DataError` when one side of a split has no rows, or one class only."""
    clicks, total = int(clicked.sum()), len(clicked)
    if 0 < clicks < total:
        return
    problem = f"no {side} row" if total == 0 else f"{total} {side} rows, {'all' if clicks else 'none'} of them clicked"
    raise DataError(
        f'data.split = "{split}" with data.test_share = {test_share:g} leaves {problem}; both sides need clicked and'
        " unclicked rows: change data.test_share, choose another data.split, or bring more rows"
    )
