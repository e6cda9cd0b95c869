"""Tests of the private statistics: how far one user moves a histogram, and the noise that partners add to it.

Legend: D entries of a histogram.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from client import statistics
from client.sensitivity import Neighbour, largest_change
from client.statistics import HistogramStep
from common.config import Config
from common.histogram import Catalogue, Terms
from simulations.audit.findings import Finding
from simulations.audit.mechanism import cannot_be_tried, of_change
from simulations.audit.noise import of_histograms
from simulations.audit.observed import Observation

_MOST_ROWS = 4096
_NAME = "hushclick-neighbour"


def histogram_sensitivity(log: pd.DataFrame, seen: Observation, config: Config) -> Finding:
    """Returns how far one hostile user moved a partner's histogram, noise off, over the clip.

    Args:
        log: rows of one partner.
        seen: a run with statistics: which catalogue and grid were asked for.
        config: effective.
    """
    test = "sensitivity of the statistics"
    if not seen.histograms:
        return Finding(test=test, verdict="no verdict", says="no histogram was asked for")
    task = seen.histograms[0].task
    terms = Terms(config.model.prior_click_rate, config.privacy.statistics_clip)
    grid = 2**task.grid_bits
    step = HistogramStep(task.catalogue, terms, grid, noise_multiplier=0.0, shares=1)

    def summed(rows: pd.DataFrame) -> np.ndarray:
        return statistics.noised_histogram(lambda: rows, step, np.random.default_rng(0), cannot_be_tried)

    found = largest_change(summed, _neighbours(log, task.catalogue), grid)
    return of_change(test, found, "user", "a histogram")


def histogram_noise(seen: Observation, config: Config) -> Finding:
    """Returns whether the noise in each partner's histogram of nobody has the variance that its ledger claims."""
    test = "noise of the statistics"
    noise = config.privacy.statistics_noise_multiplier
    if not seen.histograms or noise is None:
        return Finding(test=test, verdict="no verdict", says="no histogram was asked for")
    parts = {
        f"{one.partner}, release {one.task.number}": (one.given_D, noise * 2**one.task.grid_bits)
        for one in seen.histograms
    }
    return of_histograms(test, "the noise of a partner's histogram", parts, config)


def _neighbours(log: pd.DataFrame, catalogue: Catalogue) -> Iterator[Neighbour[pd.DataFrame]]:
    """Yields logs that differ in one user: many rows of one item, one of each, outside the catalogue, one row."""
    some = log[log["user"].isin(log["user"].unique()[:20])].reset_index(drop=True)
    nobody = log.iloc[:0]
    items, category_of = list(catalogue.items), dict(zip(catalogue.items, catalogue.categories, strict=True))
    everything = (items * (_MOST_ROWS // len(items) + 1))[:_MOST_ROWS]
    shown = {
        "the most rows of one item": items[:1] * _MOST_ROWS,
        "rows of every item": everything,
        "two items in turn": (items[:2] * _MOST_ROWS)[:_MOST_ROWS],
        "one row": items[:1],
        "rows outside the catalogue": ["hushclick-no-such-item"] * 100,
    }
    for without, beside in ((some, "beside 20 users"), (nobody, "alone")):
        for what, chosen in shown.items():
            for how, clicked in (
                ("all clicked", np.ones(len(chosen))),
                ("none clicked", np.zeros(len(chosen))),
                ("every other clicked", np.arange(len(chosen)) % 2),
            ):
                added = _user(log, chosen, clicked, category_of)
                joined = pd.concat([without, added], ignore_index=True)
                yield Neighbour(f"{what}, {how}, {beside}", without, joined)


def _user(log: pd.DataFrame, items: list[str], clicked_N: np.ndarray, category_of: dict[str, str]) -> pd.DataFrame:
    """Returns the rows of one made-up user, in the columns of a log."""
    made = log.iloc[np.zeros(len(items), int)].reset_index(drop=True)
    changed: dict[str, Any] = {
        "user": _NAME,
        "time": int(log["time"].max()) + np.arange(len(items)),
        "item": items,
        "clicked": clicked_N,
        "domain": [category_of.get(item, "") for item in items],
    }
    return made.assign(**changed).astype(log.dtypes.to_dict())
