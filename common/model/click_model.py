"""The click model: candidate against history, with the user's own past beside it.

What is always trained is a candidate projection, a DIN-like attention over the history and small heads: `nn.Linear`
only, so that Opacus' hooks give the exact gradient of every batch element, and the batch element is the user. Text
states are frozen and come in ready, unless part of the encoder is trained as well (`common.model.tail`).

Legend: B users, M rows of a user, K history entries, E text width, D model width, F dense features, L heads.
Source: Zhou et al. 2018, "Deep Interest Network", section 4.3 (attention that keeps the amount of interest).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import skip_init

from common.config import ModelConfig
from common.features import Batch, Float, UserRows, dense_names
from common.model.packing import portions
from common.model.tail import TextTail, build_tail
from common.pretrained import Pretrained
from common.vector import trainable


class ClickModel(nn.Module):
    """Logits of click (and of purchase given click) for every row of every user of a batch."""

    def __init__(
        self, text_width: int, num_dense: int, num_heads: int, config: ModelConfig, text: TextTail | None = None
    ) -> None:
        super().__init__()
        width = config.width
        self.project = _linear(text_width, width)
        self.query = _linear(width, width)
        self.hidden = _linear(3 * width + num_dense, config.hidden)
        self.head = _linear(config.hidden, num_heads)
        self.wide = _linear(num_dense, num_heads, bias=False)
        self.text = text
        self.text_rate = config.tune_rate

    def forward(self, candidate_BME: Tensor, bank_BKE: Tensor, attend_BMK: Tensor, dense_BMF: Tensor) -> Tensor:
        """Returns logits_BML; a row without history attends to nothing and gets a zero interest vector."""
        num_rows = candidate_BME.shape[1]
        # One call for candidates and history: one set of activations for the hooks to keep.
        item_BD = torch.tanh(self.project(torch.cat([candidate_BME, bank_BKE], dim=1)))
        candidate_BMD, bank_BKD = item_BD[:, :num_rows], item_BD[:, num_rows:]
        interest_BMD = self._interest(candidate_BMD, bank_BKD, attend_BMK)
        joined = torch.cat([candidate_BMD, interest_BMD, candidate_BMD * interest_BMD, dense_BMF], dim=-1)
        logits: Tensor = self.head(torch.tanh(self.hidden(joined))) + self.wide(dense_BMF)
        return logits

    def _interest(self, candidate_BMD: Tensor, bank_BKD: Tensor, attend_BMK: Tensor) -> Tensor:
        """Returns the attention-weighted history; a null entry of score 0 keeps the amount of interest."""
        scale = candidate_BMD.shape[-1] ** -0.5
        score_BMK = torch.bmm(self.query(candidate_BMD), bank_BKD.transpose(1, 2)) * scale
        score_BMK = score_BMK.masked_fill(~attend_BMK, -1e9)
        null_BM1 = torch.zeros_like(score_BMK[..., :1])
        weight_BMK = torch.softmax(torch.cat([null_BM1, score_BMK], dim=-1), dim=-1)[..., 1:]
        return torch.bmm(weight_BMK, bank_BKD)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Returns a layer whose weights `build_model` fills."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return layer


def in_encoder(name: str) -> bool:
    """Whether a parameter of this name lies in the encoder's layers."""
    return name.startswith("text.")


def learning_rates(model: ClickModel) -> NDArray[np.float64]:
    """Returns each trained parameter's learning rate over that of the small layers, float64 [D]."""
    rates = [(model.text_rate if in_encoder(name) else 1.0, parameter.numel()) for name, parameter in trainable(model)]
    return np.concatenate([np.full(size, rate) for rate, size in rates])


def build_model(
    config: ModelConfig, text_width: int, num_heads: int, seed: int, base: Pretrained | None = None
) -> ClickModel:
    """Returns a freshly initialised model; the same seed gives the same weights, and torch's own RNG is not touched.

    The head starts near zero, so that first predictions of a click are near the public prior
    (`model.prior_click_rate`), and no user's first gradient is extreme.

    Args:
        config: sizes, and what of the encoder is trained.
        text_width: E of its states.
        num_heads: 1, or 2 with purchases.
        seed: of the weights that are not pretrained.
        base: the encoder; needed where part of it is trained (`config.tune` other than "head").

    Raises:
        PretrainedError: where the encoder's layers cannot be trained.
        ValueError: where they are to be, and no encoder was given.
    """
    if config.tune != "head" and base is None:
        raise ValueError(f"tune = {config.tune!r} needs the encoder")
    text = build_tail(config, base, seed) if base is not None and config.tune != "head" else None
    model = ClickModel(text_width, len(dense_names(config)), num_heads, config, text)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.project, model.query, model.hidden):
            layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        model.head.weight.normal_(0.0, 0.1 * model.head.in_features**-0.5, generator=generator)
        model.head.bias.zero_()
        model.head.bias[0] = math.log(config.prior_click_rate / (1 - config.prior_click_rate))
        model.wide.weight.zero_()
    return model


def forward(model: ClickModel, batch: Batch) -> Tensor:
    """Returns logits_BML of a numpy batch, its text states as they are in it."""
    return model(  # type: ignore[no-any-return]
        torch.from_numpy(batch.candidate_BME),
        torch.from_numpy(batch.bank_BKE),
        torch.from_numpy(batch.attend_BMK),
        torch.from_numpy(batch.dense_BMF),
    )


def used_texts(batch: Batch) -> NDArray[np.int64]:
    """Returns the numbers of the distinct texts that a batch reads, in the order in which it does, int64 [V].

    Not by number: how texts are numbered depends on who else has them, and their order on how sums are rounded.
    """
    text_X = np.concatenate([batch.candidate_text_BM.ravel(), batch.bank_text_BK.ravel()])
    text_V, first_V = np.unique(text_X[text_X >= 0], return_index=True)
    ordered_V: NDArray[np.int64] = text_V[np.argsort(first_V)]
    return ordered_V


def forward_states(model: ClickModel, batch: Batch, text_V: NDArray[np.int64], state_VE: Tensor) -> Tensor:
    """Returns logits_BML of a numpy batch whose texts have these states, with the graph to `state_VE`.

    Args:
        model: the model.
        batch: the batch.
        text_V: numbers of texts, in any order, `used_texts(batch)` among them.
        state_VE: their states.
    """
    padded_VE = torch.cat([state_VE, state_VE.new_zeros(1, state_VE.shape[1])])  # the last: no text
    order_V = np.argsort(text_V)
    sorted_V = text_V[order_V]

    def states_of(text_BX: NDArray[np.int64]) -> Tensor:
        if not len(text_V):
            return padded_VE[torch.zeros(text_BX.shape, dtype=torch.int64)]
        found_BX = order_V[np.minimum(np.searchsorted(sorted_V, text_BX), len(text_V) - 1)]
        place_BX = np.where(text_BX < 0, len(text_V), found_BX)
        return padded_VE[torch.from_numpy(place_BX)]

    return model(  # type: ignore[no-any-return]
        states_of(batch.candidate_text_BM),
        states_of(batch.bank_text_BK),
        torch.from_numpy(batch.attend_BMK),
        torch.from_numpy(batch.dense_BMF),
    )


def with_text_states(model: ClickModel, rows: UserRows, *, alone: bool = False) -> UserRows:
    """Returns the rows with the states that the model's own layers give their texts; scoring reads those.

    A model without layers of its own reads the states as they are.

    Args:
        model: the model.
        rows: the rows.
        alone: run each text by itself, so that its state is a function of it alone to the bit.
    """
    if model.text is None or rows.through_model:
        return rows
    states_TE = own_text_states(model, rows.tokens_T, np.unique(rows.text_N), alone=alone)
    return replace(rows, states_TE=states_TE, through_model=True)


def own_text_states(
    model: ClickModel, tokens_T: Sequence[Float] | None, text_V: NDArray[np.int64], *, alone: bool = False
) -> Float:
    """Returns the states that the model's own layers give some texts, float32 [T, E]; 0 for the others."""
    if model.text is None or tokens_T is None:
        raise ValueError("texts without token states: the model's own layers have nothing to read")
    states_TE = np.zeros((len(tokens_T), model.text.width), np.float32)
    with torch.no_grad():
        lengths = [len(tokens_T[text]) for text in text_V]
        for part in np.arange(len(text_V))[:, None] if alone else portions(lengths):
            states_TE[text_V[part]] = model.text([tokens_T[text] for text in text_V[part]]).cpu().numpy()
    return states_TE


def user_losses(logits_BML: Tensor, batch: Batch) -> Tensor:
    """Returns each user's summed loss, shape [B] (a [B, 1] here would break per-user gradients in ghost mode).

    Click: binary cross-entropy. Purchase: binary cross-entropy of p(click) * p(purchase | click) over all rows, so
    that rows without a click count. Logits that are not finite give a loss that is not, never an error.

    Source: Ma et al. 2018, "Entire Space Multi-Task Model", equation 3.
    """
    label_BML, weight_BM = torch.from_numpy(batch.label_BML), torch.from_numpy(batch.weight_BM)
    click_BM = logits_BML[..., 0]
    loss_BM = nn.functional.binary_cross_entropy_with_logits(click_BM, label_BML[..., 0], reduction="none")
    if logits_BML.shape[-1] > 1:
        loss_BM = loss_BM + _purchase_loss(click_BM, logits_BML[..., 1], label_BML[..., 1])
    return (loss_BM * weight_BM).sum(dim=1)


def _purchase_loss(click_BM: Tensor, buy_BM: Tensor, label_BM: Tensor) -> Tensor:
    """Returns the binary cross-entropy of s(click) * s(buy), s the logistic function, without forming the product.

    1 - s(a) s(b) = (1 + e^a + e^b) / ((1 + e^a) (1 + e^b)), so both logarithms are sums of softplus and logsumexp.
    """
    softplus = nn.functional.softplus
    log_bought_BM = -softplus(-click_BM) - softplus(-buy_BM)
    either_BM = torch.logsumexp(torch.stack([torch.zeros_like(click_BM), click_BM, buy_BM]), dim=0)
    log_not_bought_BM = either_BM - softplus(click_BM) - softplus(buy_BM)
    return -(label_BM * log_bought_BM + (1 - label_BM) * log_not_bought_BM)
