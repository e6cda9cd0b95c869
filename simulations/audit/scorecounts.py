"""Tests of the evaluation at the partners: how far one unit moves a histogram of scores, and the noise on it.

Legend: D entries of a histogram.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client import evaluation
from client.distributed import rounding_bound
from client.sensitivity import Neighbour, largest_change
from client.userdata import HeldOutRows
from common.config import Config
from common.scorehistogram import terms_of
from common.vector import write_vector
from simulations.audit.findings import Finding
from simulations.audit.mechanism import of_change
from simulations.audit.noise import of_histograms
from simulations.audit.observed import Observation
from simulations.audit.subject import Subject

_MOST_ROWS = 300
_NAME = "hushclick-neighbour"


def score_sensitivity(subject: Subject, seen: Observation, config: Config) -> Finding:
    """Returns how far one hostile unit moved a partner's histogram of scores, noise off, over the clip.

    Features, model, bins and clip are the deployed ones; all rows count as held out, however many a user has.

    Args:
        subject: whose logs and features are used.
        seen: a run with an evaluation: which model and grid were asked for.
        config: effective.
    """
    test = "sensitivity of the evaluation"
    if not seen.scores:
        return Finding(test=test, verdict="no verdict", says="no histogram of scores was asked for")
    task = seen.scores[0].task
    terms, grid = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate), 2**task.grid_bits
    bound, model = rounding_bound(task.length, terms.clip, grid), subject.new_model()
    write_vector(model, task.model_D)

    def summed(rows: pd.DataFrame) -> NDArray[np.int64]:
        if rows.empty:
            return evaluation.score_histogram(None, model, terms, bound, grid)
        ordered = rows.sort_values(["user", "time"], kind="stable").reset_index(drop=True)
        user_N = pd.factorize(ordered["user"])[0].astype(np.int64)
        clicked_N = ordered["clicked"].to_numpy() == 1
        held_out = HeldOutRows(subject.features(ordered), np.arange(len(ordered)), user_N, clicked_N)
        return evaluation.score_histogram(held_out, model, terms, bound, grid)

    log = subject.logs[0]
    found = largest_change(summed, _neighbours(log, one_row=terms.by_rows), grid)
    return of_change(test, found, "unit", "a histogram")


def score_noise(seen: Observation, config: Config) -> Finding:
    """Returns whether the noise in each partner's histogram of nobody has the variance that its ledger claims."""
    test, noise = "noise of the evaluation", config.privacy.evaluation_noise_multiplier
    if not seen.scores or noise is None:
        return Finding(test=test, verdict="no verdict", says="no histogram of scores was asked for")
    parts = {
        f"{one.partner}, {one.task.run_id.rpartition('-')[2]}": (one.given_D, noise * 2**one.task.grid_bits)
        for one in seen.scores
    }
    return of_histograms(test, "the noise of a partner's histogram of scores", parts, config)


def _neighbours(log: pd.DataFrame, *, one_row: bool) -> Iterator[Neighbour[pd.DataFrame]]:
    """Yields logs that differ in one user, of many rows of one text or of many, or in a user of one row."""
    some = log[log["user"].isin(log["user"].unique()[:20])].reset_index(drop=True)
    every = log.drop_duplicates("item")
    shown = {"one row": log.iloc[:1]}
    if not one_row:
        shown |= {
            "many rows of one text": log.iloc[np.zeros(_MOST_ROWS, int)],
            "rows of every text": every.iloc[np.arange(_MOST_ROWS) % len(every)],
        }
    for without, beside in ((some, "beside 20 users"), (log.iloc[:0], "alone")):
        for what, chosen in shown.items():
            for how, clicked_N in (("all clicked", np.ones(len(chosen))), ("none clicked", np.zeros(len(chosen)))):
                times = int(log["time"].max()) + np.arange(len(chosen))
                made = chosen.assign(user=_NAME, time=times, clicked=clicked_N).astype(log.dtypes.to_dict())
                joined = pd.concat([without, made], ignore_index=True)
                yield Neighbour(f"{what}, {how}, {beside}", without, joined)
