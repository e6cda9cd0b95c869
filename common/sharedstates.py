"""One table of text states per process, which all partners of a simulation read.

Partners of one process show many of the same items: a table each would hold the same states a thousand times. The
table only grows; rows that were handed out never change, so readers need no lock.

Legend: N texts, E text width.
"""

import threading
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.textstates import TextStates

# Address space, not memory: pages are backed when a row is written. 2^19 rows of 384 floats are 0.8 GB of addresses.
_CAPACITY = 2**19

_tables: dict[tuple[str, int], "StateTable"] = {}
_tables_lock = threading.Lock()


class StateTable:
    """A growing table of distinct texts' states under one encoder."""

    def __init__(self, width: int, capacity: int = _CAPACITY) -> None:
        self.states_TE = np.zeros((capacity, width), np.float32)
        self._row_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def rows_of(self, texts: Sequence[str], store: TextStates) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns a table and each text's row in it, encoding what is new.

        The table is the shared one, or, where its capacity is used up, one of these texts alone.
        """
        code_N, distinct = pd.factorize(np.asarray(texts, object))
        with self._lock:
            new = [text for text in distinct if text not in self._row_of]
            if len(self._row_of) + len(new) > len(self.states_TE):
                encoded = store.states(list(texts))
                return encoded.states_TE, encoded.index_N
            if new:
                encoded = store.states(new)
                first = len(self._row_of)
                self.states_TE[first : first + len(new)] = encoded.states_TE[encoded.index_N]
                self._row_of.update(zip(new, range(first, first + len(new)), strict=True))
            row_V = np.array([self._row_of[text] for text in distinct], np.int64)
        return self.states_TE, row_V[code_N]


def shared_table(fingerprint: str, max_tokens: int, width: int) -> StateTable:
    """Returns this process' table for one encoder and truncation."""
    with _tables_lock:
        key = (fingerprint, max_tokens)
        if key not in _tables:
            _tables[key] = StateTable(width)
        return _tables[key]
