"""The click model: candidate against history, with the user's own past beside it.

Text states are frozen and come in ready; what is trained is a candidate projection, a DIN-like attention over the
history and small heads: `nn.Linear` only, so that Opacus' hooks give the exact gradient of every batch element, and
the batch element is the user.

Legend: B users, M rows of a user, K history entries, E text width, D model width, F dense features, L heads.
Source: Zhou et al. 2018, "Deep Interest Network", section 4.3 (attention that keeps the amount of interest).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from common.config import ModelConfig
from common.features import Batch, dense_names


class ClickModel(nn.Module):
    """Logits of click (and of purchase given click) for every row of every user of a batch."""

    def __init__(self, text_width: int, num_dense: int, num_heads: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.project = _linear(text_width, width)
        self.query = _linear(width, width)
        self.hidden = _linear(3 * width + num_dense, config.hidden)
        self.head = _linear(config.hidden, num_heads)
        self.wide = _linear(num_dense, num_heads, bias=False)

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


def build_model(config: ModelConfig, text_width: int, num_heads: int, seed: int) -> ClickModel:
    """Returns a freshly initialised model; the same seed gives the same weights, and torch's own RNG is not touched.

    The head starts near zero, so that first predictions are near one half and no user's first gradient is extreme.
    """
    model = ClickModel(text_width, len(dense_names(config)), num_heads, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.project, model.query, model.hidden):
            layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        model.head.weight.normal_(0.0, 0.1 * model.head.in_features**-0.5, generator=generator)
        model.head.bias.zero_()
        model.wide.weight.zero_()
    return model


def forward(model: ClickModel, batch: Batch) -> Tensor:
    """Returns logits_BML of a numpy batch."""
    return model(  # type: ignore[no-any-return]
        torch.from_numpy(batch.candidate_BME),
        torch.from_numpy(batch.bank_BKE),
        torch.from_numpy(batch.attend_BMK),
        torch.from_numpy(batch.dense_BMF),
    )


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
