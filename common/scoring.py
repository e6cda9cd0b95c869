"""Scores of featurised rows: the same at the central evaluation and wherever a finished model is used.

Legend: N scored rows, B users of a batch, M rows of a user, L heads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.features import UserRows, make_batch
from common.model.click_model import ClickModel, forward, with_text_states

CHUNK_ROWS = 128  # rows of one user that are scored at a time
BATCH_ROWS = 8192


def head_rates(model: ClickModel, rows: UserRows, chosen: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Returns p(click), and p(purchase | click) where the model has that head, of each chosen row, float64 [N, L].

    Rows are in the order of the chunks.
    """
    model.eval()
    rows = with_text_states(model, rows)
    parts: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for group in batches(chosen):
            batch = make_batch(rows, group)
            rate_BML = torch.sigmoid(forward(model, batch).double()).numpy()
            parts.append(rate_BML[batch.weight_BM > 0])
    return np.concatenate(parts)


def click_rates(model: ClickModel, rows: UserRows, chosen: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Returns the probability of a click for each chosen row, float64 [N], in the order of the chunks."""
    return np.ascontiguousarray(head_rates(model, rows, chosen)[:, 0])


def chunks(row_N: NDArray[np.int64], user_N: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Returns the row numbers in pieces of one user each, none too long."""
    per_user = np.split(row_N, np.flatnonzero(np.diff(user_N)) + 1)
    return [row_M[start : start + CHUNK_ROWS] for row_M in per_user for start in range(0, len(row_M), CHUNK_ROWS)]


def batches(chosen: Sequence[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
    """Returns the chunks in runs whose padded size stays bounded, in their order."""
    found: list[list[NDArray[np.int64]]] = [[]]
    width = 0
    for row_M in chosen:
        width = max(width, len(row_M))
        if found[-1] and (len(found[-1]) + 1) * width > BATCH_ROWS:
            found.append([])
            width = len(row_M)
        found[-1].append(row_M)
    return found
