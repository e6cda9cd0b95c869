"""The items of a log that each of its users is most likely to click next, of those that the user was not shown."""

from itertools import pairwise

import numpy as np
import pandas as pd

from client.predicting import Usable, log_of
from common.calibration import of_stream
from common.card import DataCard
from common.features import ItemCounts
from common.nextitem import NEVER, Moment, candidate_rates, items_of


def next_items(use: Usable, rows: pd.DataFrame, counts: ItemCounts | None, card: DataCard, most: int) -> pd.DataFrame:
    """Returns user, item, rank (1 = best) and score, at most `most` lines a user, under the log's own names.

    The moment is the second after the last row of the log, for everybody; no context is known of it. Equal scores are
    ranked in the order of the log. A user who was shown everything has no line.

    Args:
        use: the model.
        rows: canonical, in the order of users, then times.
        counts: exact ones, where the model needs them.
        card: of the log.
        most: items a user.
    """
    log = log_of(use, rows, counts)
    items, moment = items_of(log), int(rows["time"].max()) + 1
    user_N, users = pd.factorize(rows["user"])
    first_U1 = np.append(np.flatnonzero(np.diff(user_N, prepend=-1)), len(rows))
    moments = []
    for start, stop in pairwise(first_U1):
        unseen_I = items.first_I < NEVER
        unseen_I[items.code_N[start:stop]] = False
        moments.append(Moment(np.arange(start, stop), moment, np.flatnonzero(unseen_I)))
    some = [place for place, each in enumerate(moments) if len(each.candidates_J)]
    users, moments = users[some], [moments[place] for place in some]
    parts = [pd.DataFrame({"user": [], "item": [], "rank": [], "score": []}, dtype="object")] if not some else []
    for user, asked, rate_J in zip(
        users, moments, candidate_rates(use.model, use.config, log, items, moments), strict=True
    ):
        best_K = np.argsort(-rate_J, kind="stable")[:most]
        score_K = of_stream(rate_J[best_K], use.config.unclicked_kept)
        if use.calibration:
            score_K = use.calibration.clicks(score_K)
        names_K = items.name_I[asked.candidates_J[best_K]]
        parts.append(
            pd.DataFrame({"user": user, "item": names_K, "rank": np.arange(1, len(best_K) + 1), "score": score_K})
        )
    return pd.concat(parts, ignore_index=True).rename(
        columns={"user": card.columns.user, "item": card.columns.item or "item"}
    )
