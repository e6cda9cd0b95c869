"""Per-unit gradients and their bound where a text encoder is trained: head, low-rank layers, top layer, all of it.

With Opacus' hooks on transformers' own layers, a batch of units at once; the modes that are offered work units out one
by one (`test_tuning_oracles.py`). The encoder is tiny and random, the unit is one text with a label.

Legend: B units, T tokens, D trainable parameters.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from client.gradients import GradientHooks, unit_gradients
from client.sensitivity import Neighbour, largest_change
from client.training import clip_and_sum

CLIP, LENGTH = 0.02, 9
MODES = ("head", "low_rank", "top", "full")


class LowRank(nn.Module):
    """A frozen layer with a trainable product of two thin ones beside it (LoRA, rank 2)."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, 2, bias=False)
        self.up = nn.Linear(2, frozen.out_features, bias=False)

    def forward(self, hidden_BTE: Tensor) -> Tensor:
        return self.frozen(hidden_BTE) + self.up(self.down(hidden_BTE))


class Classifier(nn.Module):
    """The encoder's first state, and a linear head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 1)

    def forward(self, token_BT: Tensor) -> Tensor:
        place_BT = torch.arange(token_BT.shape[1]).expand(len(token_BT), -1).contiguous()  # per unit, not per batch
        states = self.encoder(input_ids=token_BT, position_ids=place_BT, token_type_ids=torch.zeros_like(token_BT))
        return self.head(states.last_hidden_state[:, 0])[:, 0]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> nn.Module:
    from transformers import BertModel

    return BertModel.from_pretrained(tiny_encoder, add_pooling_layer=False, attn_implementation="eager")


def build(encoder: nn.Module, mode: str) -> Classifier:
    torch.manual_seed(1)
    model = Classifier(copy.deepcopy(encoder))
    if mode != "full":
        model.encoder.requires_grad_(False)
    if mode == "top":
        model.encoder.encoder.layer[-1].requires_grad_(True)
    if mode == "low_rank":
        for layer in model.encoder.encoder.layer:
            layer.attention.self.query = LowRank(layer.attention.self.query)
            layer.attention.self.value = LowRank(layer.attention.self.value)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


@dataclass(frozen=True)
class Texts:
    token_BT: Tensor
    label_B: Tensor
    scale_B: Tensor  # a unit's loss is multiplied by it
    a_time: int = 64  # units of a physical batch


def losses(model: nn.Module, texts: Texts) -> Tensor:
    loss_B = nn.functional.binary_cross_entropy_with_logits(model(texts.token_BT), texts.label_B, reduction="none")
    return loss_B * texts.scale_B


def random_texts(count: int, seed: int = 0) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    token_BT = torch.randint(5, 90, (count, LENGTH), generator=generator)
    return Texts(token_BT, torch.randint(0, 2, (count,), generator=generator).float(), torch.ones(count))


def part_of(texts: Texts, part: slice) -> Texts:
    return replace(texts, token_BT=texts.token_BT[part], label_B=texts.label_B[part], scale_B=texts.scale_B[part])


def sum_of(model: Classifier, texts: Texts) -> np.ndarray:
    total_D = np.zeros(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
    hooks = GradientHooks(model)
    for start in range(0, len(texts.label_B), texts.a_time):
        for gradient_BD in unit_gradients(model, losses(model, part_of(texts, slice(start, start + texts.a_time)))):
            total_D += clip_and_sum(gradient_BD, CLIP).numpy()
    hooks.cleanup()
    return total_D


def neighbours() -> Iterator[Neighbour[Texts]]:
    others = random_texts(6)
    nobody = part_of(others, slice(0, 0))
    kinds = {"plain": 1.0, "huge": 1e6, "opposed": -1e6, "nothing": 0.0, "nan": np.nan, "infinite": np.inf}
    for (name, scale), label, a_time, beside in product(kinds.items(), (0.0, 1.0), (3, 64), (others, nobody)):
        without = replace(beside, a_time=a_time)
        yield Neighbour(
            f"{name}, label {label:g}, beside {len(beside.label_B)}, {a_time} a time",
            without,
            Texts(
                torch.cat([without.token_BT, random_texts(1, seed=9).token_BT]),
                torch.cat([without.label_B, torch.tensor([label])]),
                torch.cat([without.scale_B, torch.tensor([scale])]),
                a_time,
            ),
        )


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_text_equal_one_text_at_a_time_in_every_mode(mode: str, encoder: nn.Module) -> None:
    model, texts = build(encoder, mode), random_texts(5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = GradientHooks(model)
    found_BD = torch.cat([part.clone() for part in unit_gradients(model, losses(model, texts))])
    hooks.cleanup()
    for unit in range(5):
        gradients = torch.autograd.grad(losses(model, part_of(texts, slice(unit, unit + 1))).sum(), trained)
        expected_D = torch.cat([gradient.flatten() for gradient in gradients]).double()
        assert expected_D.abs().max() > 1e-3
        torch.testing.assert_close(found_BD[unit], expected_D, atol=1e-5, rtol=1e-4)
    theirs = GradSampleHooks(model, loss_reduction="sum", strict=False)
    losses(model, texts).sum().backward()
    theirs_BD = torch.cat([parameter.grad_sample.flatten(1) for parameter in trained], dim=1)
    theirs.cleanup()
    assert torch.equal(found_BD.float(), theirs_BD)


@pytest.mark.parametrize("mode", MODES)
def test_one_text_moves_the_clipped_sum_by_at_most_the_clip_in_every_mode(mode: str, encoder: nn.Module) -> None:
    model = build(encoder, mode)
    found = largest_change(lambda texts: sum_of(model, texts), neighbours(), CLIP)
    assert found.holds, found
    assert found.ratio >= 0.99
    assert found.tried == 48
