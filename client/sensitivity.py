"""How far one unit can move a clipped sum: the largest change over many neighbours, noise off, same randomness.

For a sum s and neighbours D, D + {u}, the sensitivity is the supremum of ||s(D + {u}) - s(D)||_2. Noise of standard
deviation sigma C hides a unit as the ledger says only if it is at most C. A search cannot prove that; it finds the
neighbour that breaks it. So `largest_change` is a lower bound of the sensitivity over bound C: over 1 by more than
`ROUNDING`, the guarantee does not hold.

`largest_change` knows nothing of what is summed, so it serves any way of training; `hostile_neighbours` makes the
neighbours of the click model: what the added unit's rows hold, under which weights of those that a server may send,
beside whom, at which place, and how the sample is split into physical batches.

Legend: N rows, D trainable parameters, M rows of a unit.
Source: Dwork, Roth 2014, "The Algorithmic Foundations of Differential Privacy", definition 3.8 (L2 sensitivity);
docs/PRIVACY.md, "The mechanism".
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.distributed import SharedStep, gridded_sum, rounding_bound
from client.training import MAX_WEIGHT, clipped_sum, hooks_on, load_for_training
from common.features import UserRows
from common.model.click_model import ClickModel

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Sample = TypeVar("Sample")

ROUNDING = 1e-3  # what float32 rounding of gradients may add, relative to the clip (docs/PRIVACY.md, numerical slack)

PHYSICAL_ROWS = (1, 40, 4096)  # every unit alone, some together, as shipped


@dataclass(frozen=True)
class Neighbour(Generic[Sample]):
    """Two samples that differ in one unit, and what is special about them."""

    name: str
    without: Sample
    with_unit: Sample


@dataclass(frozen=True)
class Change:
    """The largest change that was found.

    Attributes:
        ratio: ||s(with) - s(without)||_2 over the bound; infinite where a sum is not finite.
        name: the neighbour that gave it; empty where none was tried.
        tried: how many neighbours were.
    """

    ratio: float
    name: str
    tried: int

    @property
    def holds(self) -> bool:
        """Whether no neighbour broke the bound by more than rounding may; nothing tried holds nothing."""
        return self.tried > 0 and self.ratio <= 1 + ROUNDING


def largest_change(
    summed: Callable[[Sample], NDArray[np.generic]], neighbours: Iterable[Neighbour[Sample]], bound: float
) -> Change:
    """Returns the largest change of a sum by one unit, over a bound.

    Formal guarantees:
        - The L2 sensitivity of `summed` is at least `ratio` times `bound`.

    Args:
        summed: the sum of clipped gradients of a sample, without noise; it must draw nothing at random.
        neighbours: what to try.
        bound: what one unit may move at most: the clip, or the grid where the sum is of whole numbers.
    """
    worst, without, before_D = Change(0.0, "", 0), None, np.zeros(0)
    for tried, neighbour in enumerate(neighbours, 1):
        with np.errstate(all="ignore"):
            if neighbour.without is not without:
                without, before_D = neighbour.without, np.array(summed(neighbour.without), float)
            ratio = float(np.linalg.norm(np.asarray(summed(neighbour.with_unit), float) - before_D)) / bound
        ratio = ratio if np.isfinite(ratio) else np.inf
        worst = Change(ratio, neighbour.name, tried) if ratio > worst.ratio else replace(worst, tried=tried)
    return worst


@dataclass(frozen=True)
class ClickSample:
    """One step's sample: the weights that it starts from, the rows of each unit, and how it is split.

    Attributes:
        model_D: start weights, float32.
        rows: where the rows are.
        chosen: row numbers of each unit.
        physical_rows: rows of a physical batch, at most.
    """

    model_D: Float
    rows: UserRows
    chosen: tuple[Int, ...]
    physical_rows: int


def local_sum(model: ClickModel, clip: float) -> Callable[[ClickSample], NDArray[np.float64]]:
    """Returns the clipped sum of the local mode as a function of a sample; one unit may move it by `clip`."""

    def summed(sample: ClickSample) -> NDArray[np.float64]:
        load_for_training(model, sample.model_D)
        hooks = hooks_on(model)
        try:
            return clipped_sum(model, sample.rows, sample.chosen, clip, sample.physical_rows)
        finally:
            hooks.cleanup()

    return summed


def distributed_sum(model: ClickModel, step: SharedStep) -> Callable[[ClickSample], NDArray[np.int64]]:
    """Returns the whole numbers of the distributed mode as a function of a sample; one unit may move them by `grid`."""

    def summed(sample: ClickSample) -> NDArray[np.int64]:
        load_for_training(model, sample.model_D)
        bound = rounding_bound(len(sample.model_D), step.clip, step.grid)
        hooks = hooks_on(model)
        try:
            return gridded_sum(model, sample.rows, sample.chosen, bound, step, sample.physical_rows)
        finally:
            hooks.cleanup()

    return summed


def hostile_models(own_D: Float, generator: np.random.Generator) -> dict[str, Float]:
    """Returns weights that a server may send, all within what a partner trains from."""
    sign_D = generator.choice(np.array([-1, 1], np.float32), len(own_D))
    largest = max(float(np.abs(own_D).max()), 1e-30)
    return {
        "own weights": own_D,
        "weights 0": np.zeros_like(own_D),
        "own weights, the largest allowed": (own_D * np.float32(0.999 * MAX_WEIGHT / largest)).astype(np.float32),
        **{f"signs of size {size:g}": sign_D * np.float32(size) for size in (1.0, 10.0, MAX_WEIGHT)},
    }


def hostile_units(
    rows: UserRows, unit_M: Int, others: Sequence[Int], max_rows: int, generator: np.random.Generator
) -> dict[str, tuple[UserRows, Int]]:
    """Returns what a unit may be: a name -> (all rows, those of the unit changed; its row numbers).

    Args:
        rows: everybody's rows.
        unit_M: the unit's row numbers; no other unit's may be among them, as their features are overwritten.
        others: the row numbers of the units beside it.
        max_rows: the most rows that a unit may have in a step.
        generator: of small differences between large values.
    """
    dense_NF, label_NL = rows.dense_NF, rows.label_NL
    many_M = np.resize(unit_M, max_rows)
    in_turn_ML = np.zeros_like(label_NL[unit_M]) + (np.arange(len(unit_M)) % 2)[:, None].astype(np.float32)
    huge_MF = np.full((len(unit_M), dense_NF.shape[1]), 1e6, np.float32)
    same_MF = np.broadcast_to(dense_NF[unit_M[:1]], huge_MF.shape)
    of_all = {
        "as it is": rows,
        "labels flipped": _changed(rows, unit_M, label=1 - label_NL[unit_M]),
        "huge values": _changed(rows, unit_M, dense=huge_MF),
        "huge values, labels flipped": _changed(rows, unit_M, dense=huge_MF, label=1 - label_NL[unit_M]),
        "huge negative values": _changed(rows, unit_M, dense=-huge_MF),
        "largest values": _changed(rows, unit_M, dense=np.full_like(huge_MF, np.finfo(np.float32).max)),
        "not a number": _changed(rows, unit_M, dense=np.full_like(huge_MF, np.nan)),
        "one value infinite": _changed(rows, unit_M, dense=_with_infinity(dense_NF[unit_M])),
        "no history": _changed(rows, unit_M, history=np.full_like(rows.history_NH[unit_M], -1)),
        "equal rows": _changed(rows, unit_M, dense=same_MF, label=np.ones_like(label_NL[unit_M])),
    }
    for draw in range(1, 4):
        # Under weights 0 gradients of 1e6 each, and of some ten together: what a norm makes of them may be rounding.
        nearly_MF = huge_MF + generator.normal(0, 1, huge_MF.shape).astype(np.float32)
        of_all[f"huge values that nearly cancel {draw}"] = _changed(rows, unit_M, dense=nearly_MF, label=in_turn_ML)
    units = {name: (changed, many_M) for name, changed in of_all.items()}
    units |= {"one row": (rows, unit_M[:1]), "one row, most often": (rows, np.repeat(unit_M[:1], max_rows))}
    units |= {"no row": (rows, unit_M[:0])}
    if others and len(others[0]):
        copied_M = np.resize(others[0], len(unit_M))
        copy, against = dense_NF[copied_M], 1 - label_NL[copied_M]
        units["another's rows"] = _changed(rows, unit_M, dense=copy, label=label_NL[copied_M]), unit_M
        units["another's rows, huge, against its labels"] = (
            _changed(rows, unit_M, dense=1e4 * copy, label=against),
            many_M,
        )
    return units


def hostile_neighbours(
    rows: UserRows,
    chosen: Sequence[Int],
    own_D: Float,
    max_rows: int,
    generator: np.random.Generator,
    physical_rows: Sequence[int] = PHYSICAL_ROWS,
) -> Iterator[Neighbour[ClickSample]]:
    """Yields neighbours of the click model: every hostile unit, under every hostile model, beside others and alone.

    The unit is the longest of `chosen`; it is put first and last, beside all others, beside the shorter ones (whose
    padding it lengthens) and alone, for every split into physical batches.

    Args:
        rows: rows of some users, a few hundred at most: they are copied for every neighbour.
        chosen: the row numbers of each unit of a sample, of which the longest is the one that comes and goes.
        own_D: weights of the model as it is, float32.
        max_rows: the most rows that a unit may have in a step.
        generator: of hostile weights and values.
        physical_rows: the splits to try.
    """
    longest = max(range(len(chosen)), key=lambda place: len(chosen[place]))
    unit_M, others = chosen[longest], tuple(row_M for place, row_M in enumerate(chosen) if place != longest)
    shorter = tuple(row_M for row_M in others if 2 * len(row_M) <= len(unit_M))
    beside = {"all others": others, "shorter ones": shorter, "nobody": ()}
    units = hostile_units(rows, unit_M, others, max_rows, generator)
    for (weights, model_D), (whom, rest), most in product(
        hostile_models(own_D, generator).items(), beside.items(), physical_rows
    ):
        without = ClickSample(model_D, rows, rest, most)
        for (what, (changed, row_M)), first in product(units.items(), (True, False)):
            joined = (row_M, *rest) if first else (*rest, row_M)
            name = f"{what}; {weights}; beside {whom}, {'first' if first else 'last'}; physical batch of {most} rows"
            yield Neighbour(name, without, replace(without, rows=changed, chosen=joined))


def _changed(
    rows: UserRows, unit_M: Int, dense: Float | None = None, label: Float | None = None, history: Int | None = None
) -> UserRows:
    """Returns the rows with those of one unit overwritten."""
    new = {"dense_NF": dense, "label_NL": label, "history_NH": history}
    changed = {}
    for name, value in new.items():
        if value is not None:
            changed[name] = getattr(rows, name).copy()
            changed[name][unit_M] = value
    return replace(rows, **changed)


def _with_infinity(dense_MF: Float) -> Float:
    spoilt_MF = dense_MF.copy()
    spoilt_MF[-1, 0] = np.inf
    return spoilt_MF
