"""Sensitive columns among canonical rows: which there are, rows without them, and which group a person is in.

They say something of a person (an age band, a gender), so that a person is in one group per column, whatever the row.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.card import SENSITIVE_PREFIX


def sensitive_columns(rows: pd.DataFrame) -> list[str]:
    """Returns the canonical names of the sensitive columns that rows hold."""
    return [str(name) for name in rows.columns if str(name).startswith(SENSITIVE_PREFIX)]


def without_sensitive(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows as whoever makes features of them may see them."""
    return rows.drop(columns=sensitive_columns(rows))


def stated_by_row(rows: pd.DataFrame, column: str) -> npt.NDArray[np.object_]:
    """Returns for each row what its user stated last in all of the rows, "" for a user who never stated anything.

    Args:
        rows: canonical rows, sorted by user and time.
        column: canonical name of a sensitive column.
    """
    stated = rows[["user"]].assign(said=rows[column].str.strip())
    latest = stated[stated["said"] != ""].drop_duplicates("user", keep="last").set_index("user")["said"]
    found: npt.NDArray[np.object_] = latest.reindex(rows["user"]).fillna("").to_numpy(object)
    return found
