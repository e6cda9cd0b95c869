"""Trainable parameters <-> one flat vector, in a fixed order, with a fingerprint of the layout.

Legend: D trainable parameters.
"""

import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.config import MACHINES_OWN, ModelConfig, to_table
from common.errors import ProtocolError

Float = NDArray[np.float32]

_PLACES = ("encoder", "encoder_sha256", *MACHINES_OWN)  # the base's own fingerprint says what it is


def read_vector(model: nn.Module) -> Float:
    """Returns a copy of the trainable parameters in the order of `named_parameters`, float32 [D]."""
    parts = [parameter.detach().cpu().numpy().ravel() for _, parameter in trainable(model)]
    return np.concatenate(parts).astype(np.float32)


def write_vector(model: nn.Module, vector_D: Float) -> None:
    """Copies a flat vector into the model.

    Raises:
        ProtocolError: when the length is not the model's D, or a value is not finite.
    """
    size = num_trainable(model)
    if vector_D.shape != (size,):
        raise ProtocolError(f"a vector of shape {vector_D.shape} for a model of {size} trainable parameters")
    if not np.isfinite(vector_D).all():
        raise ProtocolError("the model vector holds values that are not finite")
    position = 0
    with torch.no_grad():
        for _, parameter in trainable(model):
            part = vector_D[position : position + parameter.numel()]
            parameter.copy_(torch.from_numpy(np.array(part, np.float32)).view_as(parameter))
            position += parameter.numel()


def num_trainable(model: nn.Module) -> int:
    """Returns the number of trained parameters D."""
    return sum(parameter.numel() for _, parameter in trainable(model))


def layout_fingerprint(model: nn.Module, base_fingerprint: str, config: ModelConfig) -> str:
    """Returns a hash (hex) of what a vector means: equal at two roles, or they train two different things.

    It covers names and shapes of the trained parameters, the frozen base with its tokenizer, and every field of the
    model's configuration that changes a feature; where files lie at one role is left out.
    """
    layout = [[name, list(parameter.shape)] for name, parameter in trainable(model)]
    features = {name: value for name, value in to_table(config).items() if name not in _PLACES}
    return hashlib.sha256(json.dumps([layout, base_fingerprint, features], sort_keys=True).encode()).hexdigest()


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Returns the parameters that are trained, and travel, with their names, in their order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
