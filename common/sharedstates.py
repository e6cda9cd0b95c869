"""One table of text states per process, which all partners of a simulation read.

Partners of one process show many of the same items: a table each would hold the same states a thousand times. The
table only grows; rows that were handed out never change, so readers need no lock.

Legend: N texts, E text width.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.config import ModelConfig
from common.pretrained import Pretrained
from common.textstates import EncodedTexts, encode_texts

# Address space, not memory: pages are backed when a row is written. 2^19 rows of 384 floats are 0.8 GB of addresses.
_CAPACITY = 2**19

_tables: dict[tuple[str, int, int | None], "StateTable"] = {}
_tables_lock = threading.Lock()


class StateTable:
    """A growing table of distinct texts' states under one encoder."""

    def __init__(self, width: int, capacity: int = _CAPACITY) -> None:
        self.states_TE = np.zeros((capacity, width), np.float32)
        self.tokens_T: list[NDArray[np.float32]] = []
        self._row_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def rows_of(self, texts: Sequence[str], encode: Callable[[list[str]], EncodedTexts]) -> EncodedTexts:
        """Returns a table and each text's row in it, encoding what is new.

        The table is the shared one, or, where its capacity is used up, one of these texts alone.
        """
        code_N, distinct = pd.factorize(np.asarray(texts, object))
        with self._lock:
            new = [text for text in distinct if text not in self._row_of]
            if len(self._row_of) + len(new) > len(self.states_TE):
                return encode(list(texts))
            ragged = self._add(new, encode(new)) if new else bool(self.tokens_T)
            row_V = np.array([self._row_of[text] for text in distinct], np.int64)
        tokens = self.tokens_T if ragged else None
        return EncodedTexts(self.states_TE, row_V[code_N], len(new), len(distinct) - len(new), tokens)

    def _add(self, new: list[str], encoded: EncodedTexts) -> bool:
        """Takes over the states of new texts; returns whether they have token states."""
        first = len(self._row_of)
        self.states_TE[first : first + len(new)] = encoded.states_TE[encoded.index_N]
        self.tokens_T += [encoded.tokens_T[text] for text in encoded.index_N] if encoded.tokens_T is not None else []
        self._row_of.update(zip(new, range(first, first + len(new)), strict=True))
        return encoded.tokens_T is not None


def encode_shared(texts: Sequence[str], model: ModelConfig, pretrained: Pretrained) -> EncodedTexts:
    """Returns what `encode_texts` does, out of this process' table for one encoder, truncation and depth."""
    depth = None if model.tune == "head" else model.frozen_layers(pretrained.layers)
    with _tables_lock:
        key = (pretrained.fingerprint, model.max_tokens, depth)
        if key not in _tables:
            _tables[key] = StateTable(pretrained.width)
        table = _tables[key]
    return table.rows_of(texts, lambda new: encode_texts(new, model, pretrained))
