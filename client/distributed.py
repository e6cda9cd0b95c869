"""One step of the distributed mode: whole numbers from the clipped gradient to the masked sum.

Every user's gradient is clipped, scaled and rounded before it is summed, and each partner adds its part of Skellam
noise (Poisson minus Poisson), so that what the secure sum holds is exactly one noised step over the union of all
partners' users: continuous noise that is rounded afterwards would not be post-processing of a noised sum. Skellam
variables add up to Skellam variables, for whichever partners are left.

Legend: B sampled users, D trainable parameters.
Source: Agarwal, Kairouz, Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning", algorithm 1;
Kairouz, Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism", section 4 (rounding and the clip).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training import (
    Float,
    Randomness,
    clip_factors,
    hooks_on,
    load_for_training,
    per_user_gradients,
    physical_batches,
    sample_units,
)
from common.augment import reworded
from common.contribution import NoisedStep
from common.errors import ConfigError, HushclickError
from common.features import UserRows
from common.model.click_model import ClickModel
from common.privacy.events import Unit
from common.vector import num_trainable

log = logging.getLogger("hushclick.partner")

MOST_DEVIATION = 2.0**31  # of noise in whole numbers: Poisson draws of more overflow


@dataclass(frozen=True)
class SharedStep:
    """What one step needs to be private together with the other partners' parts.

    Attributes:
        sampling_rate: probability with which each user joins; the same at all partners.
        noise_multiplier: of all parts together, over `clip`; 0 only in tests.
        shares: honest partners whose parts are in every sum.
        clip: L2 bound on one user's gradient.
        grid: length, on the grid of whole numbers, of a gradient of length `clip`.
        max_rows: rows of a sampled user, at most; where the unit is the impression, units of a user.
        declared_units: users that the partner declares; public.
        unit: whose data one clipped gradient holds.
    """

    sampling_rate: float
    noise_multiplier: float
    shares: int
    clip: float
    grid: int
    max_rows: int
    declared_units: int
    unit: Unit = "user"

    @property
    def part_deviation(self) -> float:
        """Standard deviation of this partner's part of the noise, in steps of the grid."""
        return self.noise_multiplier * self.grid / math.sqrt(self.shares)


def noised_step(
    model: ClickModel,
    start_D: Float,
    data: Callable[[], UserRows],
    step: SharedStep,
    randomness: Randomness,
    failed: Callable[[], None] = lambda: None,
) -> NoisedStep:
    """Returns one partner's clipped, gridded gradient sum with its part of the noise, int64 [D].

    Formal guarantees:
        - A unit changes the sum before noise by at most `grid` in L2, rounding included, whatever its rows hold, short
          of making training fail at all: then the whole partner's sum is 0, and its own log says why.
        - The parts of `shares` partners have together at least the variance (noise_multiplier x grid)^2.
        - An empty sample is a step like any other.
        - A partner that cannot train sends its part of the noise, on zero: the others rely on it, and whether data can
          be read or trained on must not show. Its own log says so, and `failed` is called.

    Raises:
        ConfigError: for a grid so coarse that rounding alone could exceed the clip.
    """
    bound = rounding_bound(len(start_D), step.clip, step.grid)
    load_for_training(model, start_D)
    hooks = hooks_on(model)
    try:
        rows = data()
        units = sample_units(rows, step, randomness.sampling)
        sum_D = gridded_sum(model, reworded(rows, randomness.sampling), units, bound, step)
    except Exception as error:  # a refusal, instead, would show that something is wrong with the data
        say_why(error)
        failed()
        sum_D = np.zeros(len(start_D), np.int64)
    finally:
        hooks.cleanup()
    return NoisedStep(sum_D + skellam(len(sum_D), step.part_deviation, randomness.noise), step.declared_units)


def noised_sum(
    make: Callable[[], NDArray[np.int64]],
    length: int,
    deviation: float,
    generator: np.random.Generator,
    failed: Callable[[], None] = lambda: None,
) -> NDArray[np.int64]:
    """Returns a histogram with this partner's noise, int64 [length]; its noise alone, on zero, where there is none.

    A refusal, instead, would show that something is wrong with the data.

    Args:
        make: counts the users' vectors, whole numbers.
        length: of the histogram.
        deviation: of this partner's noise, in whole numbers.
        generator: of the noise.
        failed: called where it cannot be made.
    """
    try:
        sum_D = make()
    except Exception as error:
        say_why(error)
        failed()
        sum_D = np.zeros(length, np.int64)
    return sum_D + skellam(length, deviation, generator)


def say_why(error: Exception) -> None:
    """Puts down what stops this partner: its own data, disk or memory, or an error of this program's."""
    if isinstance(error, HushclickError):  # whose text holds no data
        log.error("this partner cannot train; it sends its part of the noise alone, until it is mended: %s", error)
    elif isinstance(error, OSError | MemoryError):
        log.error("this partner cannot train; it sends its part of the noise alone: %s", type(error).__name__)
    else:
        log.critical(
            "AN ERROR OF THIS PROGRAM, not of the data: %s; this partner sends its part of the noise alone, round after"
            " round, until it is mended; report it with the place that stands here",
            type(error).__name__,
            exc_info=error,
        )


def rounding_bound(length: int, clip: float, grid: int) -> float:
    """Returns the clip before rounding, C (1 - sqrt(D) / (2 grid)): rounded, no gradient is longer than `grid`.

    Raises:
        ConfigError: where nothing would be left.
    """
    left = 1 - math.sqrt(length) / (2 * grid)
    if left <= 0:
        raise ConfigError(
            f"privacy.grid_bits: a grid of {grid} is too coarse for {length} parameters; use more grid bits"
        )
    return clip * left


def gridded_sum(
    model: ClickModel,
    rows: UserRows,
    chosen: Sequence[NDArray[np.int64]],
    bound: float,
    step: SharedStep,
    physical_rows: int | None = None,
) -> NDArray[np.int64]:
    """Returns the sum over users of their clipped and rounded gradients, int64 [D]; zeros when nobody was sampled."""
    total_D = np.zeros(num_trainable(model), np.int64)
    for part in physical_batches(chosen, physical_rows):
        for gradient_BD in per_user_gradients(model, rows, part):
            total_D += clip_and_round(gradient_BD, bound, step).numpy()
    return total_D


def clip_and_round(gradient_BD: Tensor, bound: float, step: SharedStep) -> Tensor:
    """Returns the sum of the rows, each clipped to `bound` in L2, scaled and rounded, int64 [D].

    A row that is not finite counts 0. Rounding is to the nearest and of one user at a time.
    """
    gradient_BD, factor_B = clip_factors(gradient_BD.double(), bound)
    whole_BD = gradient_BD.mul(factor_B[:, None] * (step.grid / step.clip)).round_()
    return whole_BD.sum(0).to(torch.int64)  # whole numbers under 2^53 add up exactly in float64


def skellam(size: int, deviation: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns independent Skellam noise of a standard deviation, int64 [size]: Poisson minus Poisson."""
    if deviation == 0:
        return np.zeros(size, np.int64)
    rate = deviation**2 / 2
    return generator.poisson(rate, size) - generator.poisson(rate, size)
