"""Texts of different lengths -> few sequences of about one length, in which no text sees another.

Titles are short and uneven: padded to the longest, half of what is worked out would be of nothing.

Legend: V texts, S tokens of all of them, B sequences, T their length, P learnt vectors in front of each text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

LEAST_LENGTH = 96  # of a sequence: attention within it costs its square, padding of the last ones what is left over
TOKENS_AT_A_TIME = 4096  # bounds the memory of what is kept for the backward pass


@dataclass(frozen=True)
class Packing:
    """Where each token lies.

    Attributes:
        shape: (B, T).
        sequence_S: sequence of each token, text after text.
        slot_S: place in its sequence.
        text_S: whose token it is.
        learnt_sequence_VP, learnt_slot_VP: the same of the learnt vectors in front of each text.
        text_BT: whose place it is, plus 1; 0 = nobody's.
        place_BT: place within the text, learnt vectors first.
    """

    shape: tuple[int, int]
    sequence_S: Int
    slot_S: Int
    text_S: Int
    learnt_sequence_VP: Int
    learnt_slot_VP: Int
    text_BT: Int
    place_BT: Int


def pack(lengths: Sequence[int], learnt: int = 0) -> Packing:
    """Returns a packing of texts of these lengths (each at least 1): the longest first, each where it first fits."""
    size_V = np.asarray(lengths, np.int64) + learnt
    width = max(int(size_V.max()), LEAST_LENGTH)
    sequence_V, start_V = np.zeros_like(size_V), np.zeros_like(size_V)
    used: list[int] = []
    for text in np.argsort(-size_V, kind="stable"):
        size = int(size_V[text])
        into = next((number for number, filled in enumerate(used) if filled + size <= width), len(used))
        if into == len(used):
            used.append(0)
        sequence_V[text], start_V[text] = into, used[into]
        used[into] += size
    return _laid_out(size_V, sequence_V, start_V, (len(used), max(used)), learnt)


def _laid_out(size_V: Int, sequence_V: Int, start_V: Int, shape: tuple[int, int], learnt: int) -> Packing:
    text_X = np.repeat(np.arange(len(size_V)), size_V)
    place_X = np.arange(len(text_X)) - np.repeat(np.cumsum(size_V) - size_V, size_V)
    slot_X = start_V[text_X] + place_X
    text_BT, place_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    text_BT[sequence_V[text_X], slot_X] = text_X + 1
    place_BT[sequence_V[text_X], slot_X] = place_X
    own_X = place_X >= learnt
    slot_VP = start_V[:, None] + np.arange(learnt)
    return Packing(
        shape=shape,
        sequence_S=sequence_V[text_X[own_X]],
        slot_S=slot_X[own_X],
        text_S=text_X[own_X],
        learnt_sequence_VP=np.broadcast_to(sequence_V[:, None], slot_VP.shape).copy(),
        learnt_slot_VP=slot_VP,
        text_BT=text_BT,
        place_BT=place_BT,
    )


def portions(lengths: Sequence[int]) -> list[Int]:
    """Returns numbers of texts, those of like lengths together, in portions of at most `TOKENS_AT_A_TIME` tokens.

    A portion of one text may have more. Texts without tokens are in one as well.
    """
    found: list[list[int]] = [[]]
    filled = 0
    for text in np.argsort(np.asarray(lengths, np.int64), kind="stable"):
        if found[-1] and filled + lengths[text] > TOKENS_AT_A_TIME:
            found.append([])
            filled = 0
        found[-1].append(int(text))
        filled += lengths[text]
    return [np.array(part, np.int64) for part in found if part]
