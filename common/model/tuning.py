"""What fine-tuning puts into frozen layers: low-rank products, adapters, learnt vectors.

Legend: R rank, I inputs, O outputs of a layer, P learnt vectors, L layers, E text width.
Sources: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1; Zhang et al. 2023,
"AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", section 3.1; Houlsby et al. 2019,
"Parameter-Efficient Transfer Learning for NLP", section 2.1; Lester et al. 2021, "The Power of Scale for
Parameter-Efficient Prompt Tuning", section 2; Liu et al. 2022, "P-Tuning v2", section 3.2 (prefixes in every layer).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.config import ModelConfig

if TYPE_CHECKING:
    from common.model.tail import Family, TextTail

_SMALL = 0.02  # deviation of learnt vectors to begin with: as pretrained embeddings have


class LowRank(nn.Module):
    """A frozen layer, and beside it up(down(x)), which is 0 before training."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.down_RI = nn.Parameter(_normal((rank, base.in_features), base.in_features**-0.5, generator))
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the layer's output, [..., O]."""
        low: Tensor = nn.functional.linear(nn.functional.linear(hidden, self.down_RI), self.up_OR)
        return self.base(hidden) + low  # type: ignore[no-any-return]


class SingularLowRank(nn.Module):
    """A frozen layer, and beside it P diag(s) Q x, with orthonormal columns of P and rows of Q to begin with, and s 0.

    Which of s are kept is the server's to say, from the global model alone: `server.ranks`.
    """

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        rank = min(rank, base.in_features, base.out_features)
        self.left_OR = nn.Parameter(_orthonormal(base.out_features, rank, generator))
        self.value_R = nn.Parameter(torch.zeros(rank))
        self.right_RI = nn.Parameter(_orthonormal(base.in_features, rank, generator).T.contiguous())

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the layer's output, [..., O]."""
        low: Tensor = nn.functional.linear(hidden, self.right_RI) * self.value_R
        return self.base(hidden) + nn.functional.linear(low, self.left_OR)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """A frozen layer, and behind it y + up(gelu(down(y))), where up is 0 before training."""

    def __init__(self, base: nn.Linear, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        outputs = base.out_features
        self.down_RO = nn.Parameter(_normal((width, outputs), outputs**-0.5, generator))
        self.down_R = nn.Parameter(torch.zeros(width))
        self.up_OR = nn.Parameter(torch.zeros(outputs, width))
        self.up_O = nn.Parameter(torch.zeros(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the layer's output, [..., O]."""
        out: Tensor = self.base(hidden)
        inner = nn.functional.gelu(nn.functional.linear(out, self.down_RO, self.down_R))
        return out + nn.functional.linear(inner, self.up_OR, self.up_O)


def put_in(tail: "TextTail", config: ModelConfig, family: "Family", generator: torch.Generator) -> None:
    """Puts what `config.tune` names into the layers of a tail; the parameters of the layers stay as they are."""
    width = tail.width
    if config.tune == "prompt":
        tail.prompt_PE = nn.Parameter(_normal((config.tune_tokens, width), _SMALL, generator))
    elif config.tune == "prefix":
        shape = (len(tail.layers), config.tune_tokens, width)
        tail.prefix_LPE = nn.Parameter(_normal(shape, _SMALL, generator))
    kinds = {"lora": LowRank, "adalora": SingularLowRank, "adapter": Adapter}
    if config.tune not in kinds:
        return
    for layer in tail.layers:
        for name in _places(layer, config, family):
            holder, _, last = name.rpartition(".")
            parent = layer.get_submodule(holder)
            setattr(parent, last, kinds[config.tune](getattr(parent, last), config.tune_rank, generator))


def _places(layer: nn.Module, config: ModelConfig, family: "Family") -> tuple[str, ...]:
    if config.tune == "adapter":
        return family.outputs
    if config.tune_targets == "all":
        return tuple(name for name, module in layer.named_modules() if isinstance(module, nn.Linear))
    return family.attention if config.tune_targets == "attention" else family.query_value


def _normal(shape: tuple[int, ...], deviation: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    columns_RC: Tensor = torch.linalg.qr(_normal((rows, columns), 1.0, generator))[0]
    return columns_RC.contiguous()
