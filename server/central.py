"""The held-out rows of the central evaluation, as a deployment's operator brings them.

They are consented or public clicks, and no partner's: figures computed from them are not covered by any epsilon.
"""

import numpy as np
import pandas as pd

from common.clicks import ClickLog
from common.config import DataConfig
from common.errors import DataError
from common.split import split_rows
from server.evaluation import KEPT_COLUMN


def mark_sampling(rows: pd.DataFrame, unclicked_kept: float) -> pd.DataFrame:
    """Returns held-out rows that say, in a column of their own, which share of the unclicked ones they hold."""
    return rows if unclicked_kept == 1 else rows.assign(**{KEPT_COLUMN: unclicked_kept})


def central_rows(log: ClickLog, data: DataConfig) -> pd.DataFrame:
    """Returns all rows of users that have some to be scored, marked as a simulation marks them.

    Columns beyond the canonical ones: `partner` (-1), `evaluate` (bool: scored; the user's other rows are its history),
    `cold_user` and `cold_item` (bool: not among the rows before the split).

    Raises:
        DataError: where nothing is left to score.
    """
    rows, split = log.rows, split_rows(log.rows, data.split, data.test_share)
    if not split.test_N.any():
        raise DataError("the central clicks leave no row to score; bring more, or raise data.test_share")
    marked = rows.assign(
        partner=np.full(len(rows), -1),
        evaluate=split.test_N,
        cold_user=~rows["user"].isin(set(rows.loc[split.train_N, "user"])),
        cold_item=~rows["item"].isin(set(rows.loc[split.train_N, "item"])),
    )
    return marked[marked["user"].isin(set(rows.loc[split.test_N, "user"]))].reset_index(drop=True)
