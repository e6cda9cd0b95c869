"""Per-unit gradients of a batch from Opacus' hooks, a few units at a time.

Opacus' `GradSampleHooks` forms every unit's gradient inside the backward pass and keeps them all, while autograd forms
the gradient of the whole batch beside it, which nobody uses. Here the same hooks keep what they are given, the whole
batch's gradient is not formed, and Opacus' formula of each layer is applied afterwards, to so many units at a time
that memory does not grow with units times parameters. It is the same gradient in less time (`python -m benchmarks
steps`).

The norm that a gradient is clipped by must be the norm of the very numbers that are summed. Ghost clipping works it
out from inner products of activations, in which large rows cancel: a user of such rows gets a norm that is too small,
and moves the sum by more than the clip (`test_ghost_norms_of_rows_that_cancel_break_the_bound`). It is not used.

Legend: B units (users) of a batch, b of them at a time, D trainable parameters.
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1 (per-example gradients).
"""

from collections.abc import Iterator

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

_NUMBERS_AT_A_TIME = 2**20  # in the gradients of the units that are worked on at a time
_ATTRIBUTE = "gradient_hooks"  # of a model whose hooks are on

_Call = tuple[nn.Module, list[Tensor], Tensor]  # of a layer: what came in, and the loss's gradient by what went out


class GradientHooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus' hooks on a model, which keep what `unit_gradients` needs; `cleanup()` takes them off.

    The batch element of every layer's input must be the unit of privacy.

    Raises:
        TypeError: for a parameter in a layer that Opacus has no formula for, or that is not float32.
    """

    def __init__(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            own = _own_parameters(module)
            if own and type(module) not in self.GRAD_SAMPLERS:
                raise TypeError(f"layer {name or 'model'} ({type(module).__name__}): no formula for per-user gradients")
            for parameter in own:
                _require_float32(parameter.dtype, name)
        super().__init__(model, loss_reduction="sum")
        self.calls: list[_Call] = []
        self._buffer = torch.empty(0, dtype=torch.float64)
        model.__dict__[_ATTRIBUTE] = self

    def capture_backprops_hook(
        self, module: nn.Module, _input: object, gradient: tuple[Tensor], loss_reduction: str, batch_first: bool
    ) -> None:
        """Keeps what Opacus would work a gradient out from at once."""
        if not self.hooks_enabled:
            return
        activations, backprops = self.rearrange_grad_samples(
            module=module, backprops=gradient[0].detach(), loss_reduction=loss_reduction, batch_first=batch_first
        )
        self.calls.append((module, activations, backprops))
        if not module.activations:
            del module.max_batch_len

    def room(self, units: int, size: int) -> Tensor:
        """Returns float64 [units, size] that is overwritten at the next call: fresh memory costs more than filling."""
        if self._buffer.numel() < units * size:
            self._buffer = torch.empty(units * size, dtype=torch.float64)
        return self._buffer[: units * size].view(units, size)

    def remove_hooks(self) -> None:
        """Takes off the hooks and what they kept."""
        super().remove_hooks()
        self.calls.clear()
        self._module.__dict__.pop(_ATTRIBUTE, None)


def unit_gradients(model: nn.Module, loss_B: Tensor) -> Iterator[Tensor]:
    """Yields the gradient of each unit's loss, float64 [b, D] for b units at a time; overwritten by the next.

    D runs over the trainable parameters in the order of `model.parameters()`. The numbers are float32 gradients, held
    in float64 so that norms and sums of them are float64.

    Formal guarantees:
        - Row n is the gradient of `loss_B[n]`, if the batch element of every layer is the unit.

    Raises:
        ValueError: for losses that are not one number per unit.
        TypeError: where the hooks are not on, for gradients that are not float32, for a parameter without a gradient,
            and for a layer whose batch is not the losses'.
    """
    if loss_B.dim() != 1:
        raise ValueError(f"losses of shape {list(loss_B.shape)}: one number per unit is needed, shape [B]")
    hooks = model.__dict__.get(_ATTRIBUTE)
    if hooks is None:
        raise TypeError("no per-user gradients: the model has no GradientHooks on")
    calls = _backward(hooks, model, loss_B)
    places, size = _places(model)
    most = max(1, _NUMBERS_AT_A_TIME // size)
    for start in range(0, len(loss_B), most):
        part = slice(start, min(start + most, len(loss_B)))
        gradient_BD = hooks.room(part.stop - part.start, size)
        _fill(gradient_BD, calls, part, places)
        yield gradient_BD


def _backward(hooks: GradientHooks, model: nn.Module, loss_B: Tensor) -> list[_Call]:
    """Returns every call of a layer in the forward pass of the losses.

    Only each layer's smallest parameter is differentiated for: that runs the backward pass, and little more.
    """
    hooks.calls = []
    smallest = [min(own, key=lambda one: one.numel()) for own in map(_own_parameters, model.modules()) if own]
    torch.autograd.grad(loss_B.sum(), smallest)
    for module, activations, backprops in hooks.calls:
        _require_float32(backprops.dtype, type(module).__name__)
        if not len(activations[0]) == len(backprops) == len(loss_B):
            raise TypeError(f"{len(loss_B)} losses, but a {type(module).__name__} saw a batch of {len(backprops)}")
    return hooks.calls


def _fill(gradient_BD: Tensor, calls: list[_Call], part: slice, places: dict[nn.Parameter, slice]) -> None:
    """Writes the gradients of some units, by Opacus' formula of each layer."""
    written: set[nn.Parameter] = set()
    for module, activations, backprops in calls:
        formula = GradientHooks.GRAD_SAMPLERS[type(module)]
        found = formula(module, [activation[part] for activation in activations], backprops[part])
        for parameter, sample in found.items():
            target = gradient_BD[:, places[parameter]]
            if parameter in written:  # a layer that was called more than once
                target += sample.flatten(1)
            else:
                target.copy_(sample.flatten(1))
            written.add(parameter)
    if len(written) != len(places):
        raise TypeError(f"{len(places) - len(written)} parameters have no per-user gradient")


def _places(model: nn.Module) -> tuple[dict[nn.Parameter, slice], int]:
    """Returns where each trainable parameter lies in a flat vector, and the vector's length D."""
    places, position = {}, 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            places[parameter] = slice(position, position + parameter.numel())
            position += parameter.numel()
    return places, position


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]


def _require_float32(dtype: torch.dtype, where: str) -> None:
    """In bfloat16 a norm is off by a thousandth and more, and so is the bound that it is to hold."""
    if dtype != torch.float32:
        raise TypeError(f"{where or 'model'} in {dtype}: gradients are clipped in float32 only")
