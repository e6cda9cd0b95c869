"""Per-unit gradients of a model that trains layers of its encoder: one unit at a time.

In a deep network the last bits of a product, which depend on the shapes of what is worked out together, can be made to
grow to any size by whoever chooses the weights; in a batch they would tell of the other units in it, past the clip
(`test_weights_of_a_server_make_a_deep_batch_tell_of_the_others`). So no unit shares a shape with another: its gradient
is a function of its own rows alone, to the bit, in every fine-tuning mode, and needs no formula for each layer.

Legend: M rows of a unit, V texts that they read, D trainable parameters, E text width.
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1 (per-example gradients).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.features import UserRows, make_batch
from common.model.click_model import ClickModel, forward_states, used_texts, user_losses
from common.model.packing import portions
from common.vector import trainable


def unit_gradients_one_by_one(model: ClickModel, rows: UserRows, chosen: Sequence[NDArray[Any]]) -> Iterator[Tensor]:
    """Yields the gradient of each unit's loss, float64 [1, D].

    Formal guarantees:
        - What is yielded for a unit is a function of the model and of that unit's own rows, to the bit.
    """
    for row_M in chosen:
        yield summed_gradient(model, rows, [row_M])[None]


def summed_gradient(model: ClickModel, rows: UserRows, chosen: Sequence[NDArray[Any]]) -> Tensor:
    """Returns the gradient of the summed loss of some units, float64 [D].

    The encoder's layers are run on few tokens at a time: first without keeping anything, to learn what the loss asks of
    each text's state, then once more for the gradient. Where all fits at once, one run serves both.

    Raises:
        ValueError: for rows without token states.
        TypeError: for trained parameters that are not float32.
    """
    if model.text is None or rows.tokens_T is None:
        raise ValueError("rows without token states: the model's own layers have nothing to read")
    parameters = [parameter for _, parameter in trainable(model)]
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        raise TypeError("trained parameters that are not float32: gradients are clipped in float32 only")
    batch = make_batch(rows, chosen)
    text_V = used_texts(batch)
    tokens_V = [rows.tokens_T[text] for text in text_V]
    parts = portions([len(token_TE) for token_TE in tokens_V])
    with torch.set_grad_enabled(len(parts) == 1):
        runs = [model.text([tokens_V[text] for text in part]) for part in parts]
    state_VE = torch.zeros(len(text_V), model.text.width)
    for part, run_KE in zip(parts, runs, strict=True):
        state_VE[torch.from_numpy(part)] = run_KE.detach().cpu()
    state_VE.requires_grad_()
    loss = user_losses(forward_states(model, batch, text_V, state_VE), batch).sum()
    inside = [parameter for _, parameter in trainable(model.text)]
    above = parameters[: len(parameters) - len(inside)]  # the encoder's layers are registered last
    *found, asked_VE = torch.autograd.grad(loss, [*above, state_VE])
    gradient_D = torch.cat([part.double().flatten() for part in (*found, *(torch.zeros_like(one) for one in inside))])
    inside_D = gradient_D[sum(part.numel() for part in found) :]
    for part, run_KE in zip(parts, runs, strict=True):
        if len(parts) > 1:
            run_KE = model.text([tokens_V[text] for text in part])
        _add_through_layers(inside_D, run_KE, asked_VE[torch.from_numpy(part)], inside)
    return gradient_D


def _add_through_layers(gradient_D: Tensor, state_KE: Tensor, asked_KE: Tensor, parameters: list[nn.Parameter]) -> None:
    """Adds what some texts' states ask of the layers' parameters; texts without tokens ask nothing."""
    if not state_KE.requires_grad:
        return
    position = 0
    for gradient in torch.autograd.grad(state_KE, parameters, asked_KE.to(state_KE.device)):
        gradient_D[position : position + gradient.numel()] += gradient.double().flatten().cpu()
        position += gradient.numel()
