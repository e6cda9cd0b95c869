"""Trainable parameters <-> one flat vector, in a fixed order, with a fingerprint of the layout.

Legend: D trainable parameters.
"""

import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ProtocolError

Float = NDArray[np.float32]


def read_vector(model: nn.Module) -> Float:
    """Returns a copy of the trainable parameters in the order of `named_parameters`, float32 [D]."""
    parts = [parameter.detach().numpy().ravel() for _, parameter in _trainable(model)]
    return np.concatenate(parts).astype(np.float32)


def write_vector(model: nn.Module, vector_D: Float) -> None:
    """Copies a flat vector into the model.

    Raises:
        ProtocolError: when the length is not the model's D, or a value is not finite.
    """
    size = sum(parameter.numel() for _, parameter in _trainable(model))
    if vector_D.shape != (size,):
        raise ProtocolError(f"a vector of shape {vector_D.shape} for a model of {size} trainable parameters")
    if not np.isfinite(vector_D).all():
        raise ProtocolError("the model vector holds values that are not finite")
    position = 0
    with torch.no_grad():
        for _, parameter in _trainable(model):
            part = vector_D[position : position + parameter.numel()]
            parameter.copy_(torch.from_numpy(np.array(part, np.float32)).view_as(parameter))
            position += parameter.numel()


def layout_fingerprint(model: nn.Module, weights_sha256: str) -> str:
    """Returns a hash (hex) of names, shapes and the frozen base: equal at two roles, or the vector means two things."""
    layout = [[name, list(parameter.shape)] for name, parameter in _trainable(model)]
    return hashlib.sha256(json.dumps([layout, weights_sha256]).encode()).hexdigest()


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
