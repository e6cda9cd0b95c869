"""AdaLoRA's budget of ranks, allocated at the server from the global model alone.

Between rounds each layer's product P diag(s) Q is written as its singular value decomposition, so that s are its true
singular values and P and Q are orthonormal again; then the smallest of all layers' are set to 0, down to a budget that
shrinks over the rounds. AdaLoRA's own importance reads every batch's gradient, which is private; a singular value is
its variant "magnitude", and post-processing of what was released: it costs no privacy. What was set to 0 may grow
again.

Legend: R rank, I inputs, O outputs of a layer, D trained parameters.
Source: Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", section 3.2 and
equation 12 (the schedule); Eckart, Young 1936 (the best product of lower rank).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import Config
from common.model.click_model import ClickModel
from common.model.tuning import SingularLowRank
from common.vector import read_vector, write_vector

_WARM_UP, _AT_REST = 0.1, 0.3  # share of the rounds before the budget begins to shrink, and after it has


def budget(round_number: int, num_rounds: int, first: int, last: int) -> int:
    """Returns how many singular values of all layers may differ from 0 after a round (1, 2, ...)."""
    start, stop = _WARM_UP * num_rounds, (1 - _AT_REST) * num_rounds
    left = 1 - min(max((round_number - start) / max(stop - start, 1e-9), 0.0), 1.0)
    return round(last + (first - last) * left**3)


def with_ranks(model: ClickModel, global_D: NDArray[np.float32], round_number: int, config: Config) -> NDArray[Any]:
    """Returns the global model after a round, float32 [D], its low-rank products within the budget of that round."""
    layers = [module for module in model.modules() if isinstance(module, SingularLowRank)]
    if not layers:
        return global_D
    write_vector(model, global_D)
    with torch.no_grad():
        for layer in layers:
            _decompose(layer)
        first = sum(len(layer.value_R) for layer in layers)
        last = min(first, round(config.model.tune_final_rank * len(layers)))
        kept = budget(round_number, config.round.num_rounds, first, last)
        value_X = torch.cat([layer.value_R for layer in layers])
        order_X = torch.argsort(value_X, descending=True, stable=True)
        value_X[order_X[kept:]] = 0.0
        position = 0
        for layer in layers:
            layer.value_R.copy_(value_X[position : position + len(layer.value_R)])
            position += len(layer.value_R)
    return read_vector(model)


def _decompose(layer: SingularLowRank) -> None:
    """Rewrites P diag(s) Q as its singular value decomposition; directions of value 0 stay orthonormal as well."""
    left_OR, upper_RR = torch.linalg.qr(layer.left_OR.double())
    right_IR, lower_RR = torch.linalg.qr(layer.right_RI.double().T)
    core_RR: Tensor = upper_RR @ torch.diag(layer.value_R.double()) @ lower_RR.T
    u_RR, value_R, v_RR = torch.linalg.svd(core_RR)
    layer.left_OR.copy_(left_OR @ u_RR)
    layer.value_R.copy_(value_R)
    layer.right_RI.copy_(v_RR @ right_IR.T)
