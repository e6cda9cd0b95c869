"""Opacus DP-SGD at one partner: per-user gradients, own Poisson sampler, clipped sum and noise.

Opacus' hooks give the exact gradient of every batch element (the user). Sampler, clipping, sum and noise are the
project's own, since PrivacyEngine's sampling rate, step count and empty batches are wrong for rounds of a federation
(docs/PRIVACY.md lists what was seen). Everything random comes from one `Randomness` of the partner's own.

Legend: B sampled users, D trainable parameters, N users of the partner.
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1; McMahan et al. 2018, "Learning
Differentially Private Recurrent Language Models", section 2 (the unit is the user).
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from randomgen import AESCounter
from torch import Tensor, nn

from client.encoder_gradients import summed_gradient, unit_gradients_one_by_one
from client.gradients import GradientHooks, unit_gradients
from common.augment import reworded
from common.errors import ProtocolError
from common.features import UserRows, make_batch
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, forward, in_encoder, user_losses
from common.privacy.events import Unit
from common.vector import num_trainable, read_vector, trainable, write_vector

Float = NDArray[np.float32]

# The text states are inputs without gradients, which is what frozen means; torch warns of it once per hook.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")

# A physical batch is bounded in rows, so that one step of many users, or of users with many rows, fits in memory.
# Which users share a physical batch changes nothing: every gradient is one user's alone.
_PHYSICAL_ROWS = 4096
_PHYSICAL_USERS = 1024

# A server chooses the weights that a step starts from. Beyond this size float32 overflows, or its rounding, which
# depends on a batch's shape and so on other users, grows past the clip: measured harmless up to 1e5.
MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class DpStep:
    """What one step needs to be private; `noise_multiplier` 0 and `clip` None are plain SGD on the same code path."""

    sampling_rate: float
    noise_multiplier: float
    clip: float | None
    max_rows: int
    expected_units: float  # public divisor: sampling rate x declared units, never the sampled size
    unit: Unit = "user"

    def __post_init__(self) -> None:
        if self.clip is None and self.noise_multiplier > 0:
            raise ValueError("noise_multiplier > 0 without clip: noise has no scale without a bound")


class Randomness:
    """Sampling and noise of one partner in one round, from cryptographic generators.

    Production seeds both from the operating system. With `fixed_seed` they are a function of (seed, partner, round):
    reproducible, different at every partner, and no privacy against whoever knows the seed; ledger and report say so.
    """

    def __init__(self, fixed_seed: int | None, partner: str, round_number: int) -> None:
        self.sampling = secure_generator(_seed_bytes(fixed_seed, partner, round_number, "sampling"))
        self.noise = secure_generator(_seed_bytes(fixed_seed, partner, round_number, "noise"))
        # Decides only to which of two neighbours on the grid of secure aggregation a coordinate is rounded.
        self.rounding_key = _seed_bytes(fixed_seed, partner, round_number, "rounding")


def secure_generator(seed: bytes) -> np.random.Generator:
    """Returns numpy's distributions over AES-128 in counter mode, keyed with the first 16 bytes of a seed."""
    return np.random.Generator(AESCounter(key=int.from_bytes(seed[:16], "little")))


def _seed_bytes(fixed_seed: int | None, *labels: object) -> bytes:
    labelled = hashlib.sha256(repr((fixed_seed, *labels)).encode()).digest()
    return os.urandom(32) if fixed_seed is None else labelled


def train_privately(
    model: ClickModel, start_D: Float, rows: UserRows, plan: TrainingPlan, step: DpStep, randomness: Randomness
) -> Float:
    """Returns the update (after - before, float32 [D]) of `plan.local_steps` DP-SGD steps from `start_D`.

    Formal guarantees:
        - Each step releases the clipped sum over a Poisson sample of units plus Gaussian noise of standard deviation
          `noise_multiplier * clip`, divided by a public constant; all else is post-processing of these.
        - A unit changes one step's clipped sum by at most `clip` in L2 (up to float32 rounding of the gradients, see
          `MAX_WEIGHT`), whatever its rows hold and whatever model the server sent: NaN counts 0. A user is one unit, or
          at most `max_rows` of them.
        - An empty sample is a step like any other.
    """
    load_for_training(model, start_D)
    optimiser = make_optimiser(model, plan)
    hooks = hooks_on(model)
    try:
        for _ in range(plan.local_steps):
            sampled = sample_units(rows, step, randomness.sampling)
            total_D = clipped_sum(model, reworded(rows, randomness.sampling), sampled, step.clip)
            total_D += gaussian_noise(len(total_D), step, randomness.noise)
            _set_gradients(model, total_D / step.expected_units)
            optimiser.step()
            _keep_in_bounds(model)
    finally:
        hooks.cleanup()
    return read_vector(model) - start_D


class Hooks(Protocol):
    """What is on a model while it is trained."""

    def cleanup(self) -> None:
        """Takes it off."""


class _NoHooks:
    def cleanup(self) -> None:
        pass


def hooks_on(model: ClickModel) -> Hooks:
    """Puts on a model what `per_user_gradients` needs; nothing where units are worked out one by one."""
    return GradientHooks(model) if model.text is None else _NoHooks()


def load_for_training(model: ClickModel, start_D: Float) -> None:
    """Writes the weights that a step starts from into a model that can be trained privately.

    Raises:
        ProtocolError: for weights out of bounds.
        TypeError: for layers with memory.
    """
    _refuse_layers_with_memory(model)
    require_in_bounds(start_D)
    write_vector(model, start_D)
    model.train()  # Opacus' hooks keep activations only in training mode


class Sampling(Protocol):
    """The part of a step that says which rows make one clipped gradient."""

    @property
    def unit(self) -> Unit:
        """Whose data one clipped gradient holds."""

    @property
    def sampling_rate(self) -> float:
        """Probability with which each unit joins."""

    @property
    def max_rows(self) -> int:
        """Unit user: rows of a sampled user. Unit impression: the latest rows of a user that can ever join."""


def sample_units(rows: UserRows, step: Sampling, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Returns the row numbers of each unit in a Poisson sample: a user's chosen rows, or one row.

    Where the unit is the impression, a user has at most `max_rows` of them whatever the log holds, so that what a whole
    user can move is bounded as well.
    """
    if step.unit == "user":
        users = sample_users(rows.num_users, step.sampling_rate, generator)
        return choose_rows(rows, users, step.max_rows, generator)
    stop_N = np.repeat(rows.offset_U1[1:], np.diff(rows.offset_U1))
    trains_N = np.ones(len(stop_N), bool) if rows.trains_N is None else rows.trains_N
    before_N1 = np.append(0, np.cumsum(trains_N))
    row_N = np.flatnonzero(trains_N & (before_N1[stop_N] - before_N1[:-1] <= step.max_rows))
    return list(row_N[generator.random(len(row_N)) < step.sampling_rate, None])


def sample_users(num_users: int, rate: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns a Poisson sample of user numbers: each joins independently with probability `rate`."""
    return np.flatnonzero(generator.random(num_users) < rate)


def choose_rows(
    rows: UserRows, users: NDArray[np.int64], max_rows: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Returns for each user its row numbers, at most `max_rows` of them drawn without replacement."""
    chosen = []
    for user in users:
        row_M = rows.trainable(user)
        if len(row_M) > max_rows:
            row_M = row_M[np.sort(generator.choice(len(row_M), max_rows, replace=False))]
        chosen.append(row_M)
    return chosen


def clipped_sum(
    model: ClickModel,
    rows: UserRows,
    chosen: Sequence[NDArray[np.int64]],
    clip: float | None,
    physical_rows: int | None = None,
) -> NDArray[np.float64]:
    """Returns the sum over users of their clipped gradients, float64 [D]; zeros when nobody was sampled."""
    total_D = np.zeros(num_trainable(model))
    for part in physical_batches(chosen, physical_rows):
        if clip is None and model.text is not None:  # nothing is claimed of a unit, so units may share a pass
            total_D += summed_gradient(model, rows, part).numpy()
            continue
        for gradient_BD in per_user_gradients(model, rows, part):
            total_D += clip_and_sum(gradient_BD, clip).numpy()
    return total_D


def physical_batches(
    chosen: Sequence[NDArray[np.int64]], most_rows: int | None = None
) -> list[list[NDArray[np.int64]]]:
    """Returns the users in runs whose padded size stays under a bound in rows; a user never spans two."""
    most_rows = most_rows or _PHYSICAL_ROWS
    parts: list[list[NDArray[np.int64]]] = []
    width = 0
    for row_M in chosen:
        width = max(width, len(row_M))
        if not parts or len(parts[-1]) >= _PHYSICAL_USERS or (len(parts[-1]) + 1) * width > most_rows:
            parts.append([])
            width = len(row_M)
        parts[-1].append(row_M)
    return parts


def per_user_gradients(model: ClickModel, rows: UserRows, chosen: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
    """Yields each user's gradient of its summed loss, float64 [b, D] for b users at a time; overwritten by the next."""
    if model.text is not None:
        return unit_gradients_one_by_one(model, rows, chosen)
    batch = make_batch(rows, chosen)
    return unit_gradients(model, user_losses(forward(model, batch), batch))


def clip_and_sum(gradient_BD: Tensor, clip: float | None) -> Tensor:
    """Returns the sum of rows, each scaled down to L2 norm `clip`, float64 [D]; a row that is not finite counts 0."""
    if clip is None:
        return gradient_BD.double().sum(0)
    gradient_BD, factor_B = clip_factors(gradient_BD.double(), clip)
    return factor_B @ gradient_BD


def clip_factors(gradient_BD: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Returns float64 rows, zeros in the place of one that is not finite, and what to multiply each with, float64 [B].

    Norms are taken in float64 and the factor is rounded towards zero, so that no row exceeds the bound by rounding.
    """
    norm_B = gradient_BD.norm(dim=1)
    factor_B = torch.clamp(clip / norm_B.clamp(min=1e-30), max=1.0) * (1 - 1e-12)
    finite_B = torch.isfinite(norm_B)
    if not finite_B.all():
        gradient_BD, factor_B = torch.where(finite_B[:, None], gradient_BD, 0.0), torch.where(finite_B, factor_B, 0.0)
    return gradient_BD, factor_B


def gaussian_noise(size: int, step: DpStep, generator: np.random.Generator) -> NDArray[np.float64]:
    """Returns independent Gaussian noise of standard deviation `noise_multiplier * clip`, float64 [D]."""
    if step.clip is None or step.noise_multiplier == 0:
        return np.zeros(size)
    return generator.normal(0.0, step.noise_multiplier * step.clip, size)


def make_optimiser(model: ClickModel, plan: TrainingPlan) -> torch.optim.Optimizer:
    """Returns the partner's optimiser, without state from earlier rounds; the encoder's part has its own rate."""
    groups: list[dict[str, Any]] = [{"params": [], "lr": plan.learning_rate * rate} for rate in (1.0, model.text_rate)]
    for name, parameter in trainable(model):
        groups[in_encoder(name)]["params"].append(parameter)
    kind = torch.optim.Adam if plan.client_optimiser == "adam" else torch.optim.SGD
    return kind([group for group in groups if group["params"]], lr=plan.learning_rate, weight_decay=plan.weight_decay)


def _refuse_layers_with_memory(model: nn.Module) -> None:
    """A buffer (BatchNorm's statistics) would carry private rows out unaccounted; dropout would be unseeded."""
    for name, module in model.named_modules():
        drops = isinstance(module, nn.Dropout) and module.p > 0
        if next(module.buffers(recurse=False), None) is not None or drops:
            raise TypeError(f"layer {name or 'model'} ({type(module).__name__}) cannot be trained privately")


def require_in_bounds(model_D: Float) -> None:
    """Refuses a model whose weights could overflow, or turn rounding into signal, on the way to a gradient.

    Raises:
        ProtocolError: naming the bound.
    """
    if not (np.abs(model_D) <= MAX_WEIGHT).all():  # NaN is refused too
        raise ProtocolError(f"a model with weights that are not finite or over {MAX_WEIGHT:g}: it is not trained from")


def _keep_in_bounds(model: nn.Module) -> None:
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.clamp_(-MAX_WEIGHT, MAX_WEIGHT)


def _set_gradients(model: nn.Module, gradient_D: NDArray[np.float64]) -> None:
    position = 0
    for _, parameter in trainable(model):
        part = gradient_D[position : position + parameter.numel()]
        parameter.grad = torch.from_numpy(part.astype(np.float32)).view_as(parameter).to(parameter.device)
        position += parameter.numel()
