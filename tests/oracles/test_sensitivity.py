"""The sensitivity search: what is offered holds under hostile neighbours, and every known way of breaking it is found.

Legend: B users, M rows of a user, D parameters.
"""

import math
import random
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
from conftest import random_features
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from test_training_oracles import all_rows, new_model
from torch import Tensor
from torch.func import functional_call, grad, vmap

from client.distributed import SharedStep
from client.gradients import GradientHooks, unit_gradients
from client.sensitivity import (
    ROUNDING,
    Change,
    ClickSample,
    Neighbour,
    distributed_sum,
    hostile_neighbours,
    largest_change,
    local_sum,
)
from client.training import clip_and_sum, load_for_training, per_user_gradients, physical_batches
from common.features import Batch, make_batch
from common.model.click_model import ClickModel, forward, user_losses
from common.vector import read_vector

CLIP, GRID, MOST_ROWS = 0.05, 2**16, 16
# What a way of training must get right that does not drop users who are not finite.
ORDINARY = ("as it is;", "labels flipped;", "equal rows;", "no history;", "one row", "no row;", "another's rows;")

Sum = Callable[[ClickSample], np.ndarray]


@lru_cache
def every_neighbour() -> tuple[Neighbour[ClickSample], ...]:
    features = random_features(8)
    own_D = read_vector(new_model())
    return tuple(hostile_neighbours(features, all_rows(features), own_D, MOST_ROWS, np.random.default_rng(0)))


def some(count: int, *words: str) -> list[Neighbour[ClickSample]]:
    """Returns neighbours drawn from all, of those whose name has each word."""
    fitting = [one for one in every_neighbour() if all(word in one.name for word in words)]
    return random.Random(1).sample(fitting, min(count, len(fitting)))


def ordinary(count: int) -> list[Neighbour[ClickSample]]:
    fitting = [one for one in every_neighbour() if one.name.startswith(ORDINARY) and "; own weights;" in one.name]
    return random.Random(2).sample(fitting, min(count, len(fitting)))


# --- the search itself --------------------------------------------------------------------------------------------


def test_the_largest_change_by_hand() -> None:
    """Sums of (1, 2) and of the empty sample, against those with (3, 4) and (6, 8): lengths 5 and 10, bound 4."""
    points = [Neighbour("five", ((1.0, 2.0),), ((1.0, 2.0), (3.0, 4.0))), Neighbour("ten", (), ((6.0, 8.0),))]
    found = largest_change(lambda sample: np.sum([(0.0, 0.0), *sample], axis=0), points, 4.0)
    assert found == Change(2.5, "ten", 2)
    assert not found.holds


def test_a_sum_that_is_not_finite_breaks_any_bound_and_no_neighbour_holds_nothing() -> None:
    sick = [Neighbour("sick", (1.0,), (1.0, math.nan)), Neighbour("well", (1.0,), (1.0, 1.0))]
    assert largest_change(lambda sample: np.array([sum(sample)]), sick, 1e9) == Change(math.inf, "sick", 2)
    assert not largest_change(lambda sample: np.zeros(1), [], 1.0).holds


def test_neighbours_differ_in_one_unit_and_cover_what_is_promised() -> None:
    names = [one.name for one in every_neighbour()]
    assert len(set(names)) == len(names) > 1000
    for word in (
        "not a number",
        "infinite",
        "huge",
        "labels flipped",
        "no row",
        "no history",
        "beside nobody",
        "first",
    ):
        assert any(word in name for name in names), word
    for one in every_neighbour():
        before, after = one.without, one.with_unit
        assert len(after.chosen) == len(before.chosen) + 1
        assert np.array_equal(before.model_D, after.model_D)
        assert np.abs(after.model_D).max() <= 100
        kept = np.concatenate([np.zeros(0, int), *before.chosen]).astype(int)
        assert np.array_equal(before.rows.dense_NF[kept], after.rows.dense_NF[kept])
        assert np.array_equal(before.rows.label_NL[kept], after.rows.label_NL[kept])
    assert max(len(row_M) for one in every_neighbour() for row_M in one.with_unit.chosen) == MOST_ROWS


# --- what is offered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.01, 0.5])
def test_the_local_mode_moves_by_the_clip_at_most_over_hostile_neighbours(clip: float) -> None:
    found = largest_change(local_sum(new_model(), clip), some(120), clip)
    assert found.holds, found
    assert found.ratio >= 0.99  # the bound is reached


def test_the_distributed_mode_moves_by_the_grid_at_most_over_hostile_neighbours() -> None:
    step = SharedStep(1.0, 0.0, 3, CLIP, GRID, MOST_ROWS, declared_units=10)
    found = largest_change(distributed_sum(new_model(), step), some(120), GRID)
    assert found.holds, found
    assert found.ratio >= 0.99


@pytest.mark.slow
def test_both_modes_over_every_neighbour() -> None:
    local = largest_change(local_sum(new_model(), CLIP), every_neighbour(), CLIP)
    step = SharedStep(1.0, 0.0, 3, CLIP, GRID, MOST_ROWS, declared_units=10)
    whole = largest_change(distributed_sum(new_model(), step), every_neighbour(), GRID)
    assert local.holds, local
    assert whole.holds, whole
    assert local.tried == whole.tried > 1000


# --- other ways to the same gradients -----------------------------------------------------------------------------


def batches(model: ClickModel, sample: ClickSample) -> Iterator[Batch]:
    load_for_training(model, sample.model_D)
    for part in physical_batches(sample.chosen, sample.physical_rows):
        yield make_batch(sample.rows, part)


def functorch_sum(sample: ClickSample) -> np.ndarray:
    model = new_model()
    total_D = np.zeros(len(sample.model_D))
    for batch in batches(model, sample):
        total_D += clip_and_sum(functorch_gradients(model, batch), CLIP).numpy()
    return total_D


def functorch_gradients(model: ClickModel, batch: Batch) -> Tensor:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        *features, label_ML, weight_M = inputs
        logit_ML = functional_call(model, parameters, tuple(feature[None] for feature in features))[0]
        loss_M = torch.nn.functional.binary_cross_entropy_with_logits(logit_ML[:, 0], label_ML[:, 0], reduction="none")
        return (loss_M * weight_M).sum()

    arrays = (batch.candidate_BME, batch.bank_BKE, batch.attend_BMK, batch.dense_BMF, batch.label_BML, batch.weight_BM)
    inputs = [torch.from_numpy(array) for array in arrays]
    found = vmap(grad(loss), in_dims=(None, *[0] * len(inputs)))(parameters, *inputs)
    return torch.cat([found[name].flatten(1) for name, _ in model.named_parameters()], dim=1)


def ghost_sum(sample: ClickSample, column: bool = False) -> np.ndarray:
    """Opacus' ghost clipping: norms without gradients, then a second backward pass of the weighted loss."""
    model = new_model()
    total_D = np.zeros(len(sample.model_D))
    for batch in batches(model, sample):
        hooks = GradSampleHooksFastGradientClipping(model, loss_reduction="sum", max_grad_norm=CLIP)
        loss_B = user_losses(forward(model, batch), batch)
        optimiser = torch.optim.SGD(model.parameters())
        DPTensorFastGradientClipping(hooks, optimiser, loss_B[:, None] if column else loss_B, "sum").backward()
        total_D += np.concatenate([parameter.grad.double().numpy().ravel() for parameter in model.parameters()])
        hooks.cleanup()
    return total_D


@pytest.mark.parametrize("way", [functorch_sum, ghost_sum])
def test_another_way_to_the_clipped_sum_agrees_and_meets_the_bound(way: Sum) -> None:
    ours, neighbours = local_sum(new_model(), CLIP), ordinary(12)
    found = largest_change(way, neighbours, CLIP)
    assert found.holds, found
    assert found.ratio >= 0.99
    for one in neighbours:
        expected_D = ours(one.with_unit)
        np.testing.assert_allclose(way(one.with_unit), expected_D, atol=1e-4 * CLIP)


def test_unit_gradients_are_opacus_own_to_the_bit() -> None:
    """The same formulas from the same hooks, applied later."""
    features, model = random_features(12), new_model().train()
    batch = make_batch(features, all_rows(features))
    own = GradientHooks(model)
    ours_BD = torch.cat([part.clone() for part in unit_gradients(model, user_losses(forward(model, batch), batch))])
    own.cleanup()
    theirs = GradSampleHooks(model, loss_reduction="sum")
    user_losses(forward(model, batch), batch).sum().backward()
    theirs_BD = torch.cat([parameter.grad_sample.flatten(1) for parameter in model.parameters()], dim=1)
    theirs.cleanup()
    assert torch.equal(ours_BD.float(), theirs_BD)


def test_ghost_mode_with_losses_in_a_column_is_found() -> None:
    """Opacus multiplies [B] by [B, 1] and sums B x B products: a user's weight is the sum of all users' factors."""
    right, wrong = (largest_change(lambda s, c=c: ghost_sum(s, c), ordinary(16), CLIP) for c in (False, True))
    assert right.holds
    assert wrong.ratio > 5, wrong
    assert not largest_change(lambda s: ghost_sum(s, True), ordinary(16), CLIP).holds


def test_losses_in_a_column_are_refused_here() -> None:
    features, model = random_features(3), new_model().train()
    batch = make_batch(features, all_rows(features))
    hooks = GradientHooks(model)
    with pytest.raises(ValueError, match=r"losses of shape \[3, 1\]: one number per unit"):
        next(unit_gradients(model, user_losses(forward(model, batch), batch)[:, None]))
    hooks.cleanup()


def test_ghost_norms_of_rows_that_cancel_break_the_bound() -> None:
    """Inner products of 1e12 cancel, what is left is rounding, and the norm is too small for what is then summed."""
    cancelling = some(24, "huge values that nearly cancel", "; weights 0;")
    assert largest_change(local_sum(new_model(), CLIP), cancelling, CLIP).holds
    assert largest_change(functorch_sum, cancelling, CLIP).holds
    assert largest_change(ghost_sum, cancelling, CLIP).ratio > 50


# --- planted bugs -------------------------------------------------------------------------------------------------


def of_users(sample: ClickSample, combine: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Returns the sum over physical batches of what is made of the gradients of each."""
    model = new_model()
    load_for_training(model, sample.model_D)
    hooks = GradientHooks(model)
    total_D = np.zeros(len(sample.model_D))
    for part in physical_batches(sample.chosen, sample.physical_rows):
        whole_BD = torch.cat([one.clone() for one in per_user_gradients(model, sample.rows, part)])
        total_D += combine(whole_BD).numpy()
    hooks.cleanup()
    return total_D


def clipped_per_row(sample: ClickSample) -> np.ndarray:
    rows = tuple(np.array([row]) for row_M in sample.chosen for row in row_M)
    return local_sum(new_model(), CLIP)(ClickSample(sample.model_D, sample.rows, rows, sample.physical_rows))


def unclipped(sample: ClickSample) -> np.ndarray:
    return of_users(sample, lambda gradient_BD: gradient_BD.sum(0))


def divided_by_the_sampled_size(sample: ClickSample) -> np.ndarray:
    return local_sum(new_model(), CLIP)(sample) / max(1, len(sample.chosen)) * 8


def clipped_per_physical_batch(sample: ClickSample) -> np.ndarray:
    return of_users(sample, lambda gradient_BD: clip_and_sum(gradient_BD.sum(0, keepdim=True), CLIP))


def only_the_last_physical_batch_clipped(sample: ClickSample) -> np.ndarray:
    parts = physical_batches(sample.chosen, sample.physical_rows)
    left = tuple(row_M for part in parts[:-1] for row_M in part)
    last = tuple(row_M for part in parts[-1:] for row_M in part)
    of = [ClickSample(sample.model_D, sample.rows, part, sample.physical_rows) for part in (left, last)]
    return unclipped(of[0]) + local_sum(new_model(), CLIP)(of[1])


def clipped_per_layer(sample: ClickSample) -> np.ndarray:
    sizes = [parameter.numel() for parameter in new_model().parameters()]
    return of_users(
        sample, lambda gradient_BD: torch.cat([clip_and_sum(g, CLIP) for g in gradient_BD.split(sizes, dim=1)])
    )


def not_a_number_kept(sample: ClickSample) -> np.ndarray:
    return of_users(
        sample,
        lambda gradient_BD: (gradient_BD * torch.clamp(CLIP / gradient_BD.norm(dim=1, keepdim=True), max=1.0)).sum(0),
    )


def clipped_in_bfloat16(sample: ClickSample) -> np.ndarray:
    def combine(gradient_BD: Tensor) -> Tensor:
        norm_B = gradient_BD.bfloat16().norm(dim=1).double()
        return clip_and_sum(gradient_BD * torch.clamp(CLIP / norm_B, max=1.0)[:, None], None)

    return of_users(sample, combine)


@pytest.mark.parametrize(
    ("bug", "least"),
    [
        (clipped_per_row, 5.0),
        (unclipped, 100.0),
        (divided_by_the_sampled_size, 1.5),
        (clipped_per_physical_batch, 1.5),
        (only_the_last_physical_batch_clipped, 5.0),
        (clipped_per_layer, 1.5),
        (not_a_number_kept, math.inf),
        (clipped_in_bfloat16, 1 + ROUNDING),
    ],
)
def test_a_planted_bug_of_clipping_is_found(bug: Sum, least: float) -> None:
    neighbours = some(40) if bug is not clipped_in_bfloat16 else ordinary(20)
    found = largest_change(bug, neighbours, CLIP)
    assert found.ratio >= least, found
    assert not found.holds


# --- numbers of less precision ------------------------------------------------------------------------------------


def test_a_model_in_bfloat16_is_refused() -> None:
    with pytest.raises(TypeError, match=r"project in torch.bfloat16: gradients are clipped in float32 only"):
        GradientHooks(new_model().to(torch.bfloat16))


def test_gradients_in_bfloat16_are_refused() -> None:
    features, model = random_features(3), new_model().train()
    batch = make_batch(features, all_rows(features))
    hooks = GradientHooks(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss_B = user_losses(forward(model, batch), batch)
    with pytest.raises(TypeError, match=r"in torch.bfloat16: gradients are clipped in float32 only"):
        next(unit_gradients(model, loss_B))
    hooks.cleanup()


def test_gradients_without_hooks_and_layers_without_a_formula_are_refused() -> None:
    features, model = random_features(3), new_model().train()
    batch = make_batch(features, all_rows(features))
    with pytest.raises(TypeError, match="no GradientHooks"):
        next(unit_gradients(model, user_losses(forward(model, batch), batch)))
    model.extra = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(TypeError, match=r"layer extra \(Bilinear\): no formula"):
        GradientHooks(model)
