"""Canaries with gradients of their own: the strongest users that there can be.

A guarantee holds for any gradient, since a server may send any model. So an attack is strongest against users whose
gradients are as long as the clip allows and share no direction with anybody's. The deployed code samples, clips, sums
and noises them as it does everybody; only what comes out of the model for a canary is put in the place of it.

Legend: M canaries, D parameters, B units of a batch, N rows.
Source: Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis 2023, "Tight Auditing of Differentially Private
Machine Learning", section 4 (gradient canaries).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import distributed, training
from common.features import UserRows
from simulations.audit.canaries import number_of

_LENGTH = 10.0  # in clips: it is clipped like any long gradient


class Crafted:
    """Random directions, one per canary, and the place at which they enter the deployed code.

    Args:
        count: M.
        size: D.
        clip: the run's.
        generator: of the directions.
    """

    def __init__(self, count: int, size: int, clip: float, generator: np.random.Generator) -> None:
        direction_MD = generator.standard_normal((count, size), dtype=np.float32)
        self.direction_MD = direction_MD / np.linalg.norm(direction_MD, axis=1, keepdims=True)
        self._given_MD = torch.from_numpy(self.direction_MD).double() * (_LENGTH * clip)
        self._canary_of: dict[int, NDArray[np.int64]] = {}
        self.planted_ones: set[int] = set()  # that were in a sample

    def know(self, rows: UserRows, users: Sequence[str]) -> None:
        """Notes which rows of a partner are whose: -1 where no canary's."""
        self._canary_of[id(rows.dense_NF)] = np.array([number_of(user) for user in users], np.int64)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Puts the directions in the place of the canaries' gradients for as long as it is open."""
        deployed = training.per_user_gradients

        def gradients(model: Any, rows: UserRows, chosen: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
            canary_N = self._canary_of.get(id(rows.dense_NF))
            place = 0
            for gradient_BD in deployed(model, rows, chosen):
                for unit, row_M in enumerate(chosen[place : place + len(gradient_BD)]):
                    if canary_N is not None and len(row_M) and canary_N[row_M[0]] >= 0:
                        gradient_BD[unit] = self._given_MD[canary_N[row_M[0]]]
                        self.planted_ones.add(int(canary_N[row_M[0]]))
                place += len(gradient_BD)
                yield gradient_BD

        _replace(gradients)
        try:
            yield
        finally:
            _replace(deployed)


def _replace(gradients: Callable[..., Iterator[Tensor]]) -> None:
    """Puts a function in the place of the deployed one, in both modes."""
    for module in (training, distributed):
        vars(module)["per_user_gradients"] = gradients
