"""The held-out users in two halves, so that a figure is never of the rows that something was chosen or fitted on.

A run that stops early looks at one half after each round, and reports its final figures on the other. A calibration is
fitted on the first and judged on the second. Halves are whole users, by the hash of their ids: the same in every run.

Legend: N evaluated rows.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.config import ServerConfig
from common.errors import DataError
from common.split import stable_hash

if TYPE_CHECKING:  # which marks the rows with what is here
    from server.evaluation import HeldOut


def in_choosing_half(users: Iterable[str]) -> NDArray[np.bool_]:
    """Returns for each user's id whether it is in the half on which a run may choose and fit."""
    return stable_hash(users, "choosing half") < 2**63


def seen_each_round(heldout: "HeldOut", config: ServerConfig) -> "HeldOut":
    """Returns what a round's figures are of: all rows, or the choosing half's where they decide when to stop."""
    return heldout.part(heldout.choosing_N) if config.patience else heldout


def reported_N(heldout: "HeldOut", config: ServerConfig) -> NDArray[np.bool_]:
    """Returns which evaluated rows the final figures are of: all, or those that decided nothing."""
    return ~heldout.choosing_N if config.patience else np.ones(len(heldout.choosing_N), bool)


def require_halves(heldout: "HeldOut", config: ServerConfig) -> None:
    """Raises `DataError` where a run is to choose or fit, and half of the held-out users do not allow it.

    Better before the first round than after the last.
    """
    asked = [
        name
        for name, on in (("server.patience", config.patience > 0), ("server.calibration", config.calibration != "none"))
        if on
    ]
    if not asked:
        return
    for half, half_N in (("one half", heldout.choosing_N), ("the other half", ~heldout.choosing_N)):
        clicks, rows = int(heldout.label_NL[half_N, 0].sum()), int(half_N.sum())
        if clicks in (0, rows):
            raise DataError(
                f"{' and '.join(asked)}: {half} of the held-out users has {clicks} clicks in {rows} evaluated rows, and"
                " needs rows with and without; bring more held-out users, or turn it off"
            )
