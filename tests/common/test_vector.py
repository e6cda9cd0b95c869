"""Parameters as one vector: a fixed order, exact there and back, and a fingerprint of what the vector means."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.config import ModelConfig
from common.errors import ProtocolError
from common.model.click_model import build_model
from common.vector import layout_fingerprint, read_vector, write_vector

CONFIG = ModelConfig(width=4, hidden=6)


def test_the_order_is_that_of_the_parameters_row_by_row() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model[0].bias.copy_(torch.tensor([5.0, 6.0]))
        model[1].weight.copy_(torch.tensor([[7.0, 8.0]]))
    vector_D = read_vector(model)
    assert vector_D.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert vector_D.dtype == np.float32


def test_there_and_back_to_the_bit() -> None:
    model = build_model(CONFIG, 8, 2, seed=1)
    vector_D = np.random.default_rng(0).normal(size=len(read_vector(model))).astype(np.float32)
    write_vector(model, vector_D)
    assert read_vector(model).tobytes() == vector_D.tobytes()


def test_what_is_read_is_a_copy_and_what_is_written_too() -> None:
    model = build_model(CONFIG, 8, 1, seed=1)
    first = read_vector(model)
    kept = first.copy()
    first[:] = 9.0
    assert read_vector(model).tobytes() == kept.tobytes()
    write_vector(model, first)
    first[:] = 1.0
    assert (read_vector(model) == 9.0).all()


def test_frozen_parameters_are_neither_read_nor_written() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    assert len(read_vector(model)) == 2 + 3
    write_vector(model, np.full(5, 4.0, np.float32))
    assert torch.equal(model[0].weight, frozen)
    assert (model[1].weight == 4.0).all()


def test_the_model_stays_trainable_and_shares_no_memory_with_numpy() -> None:
    model = build_model(CONFIG, 8, 1, seed=1)
    write_vector(model, read_vector(model))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(bad: float) -> None:
    model = build_model(CONFIG, 8, 1, seed=1)
    before = read_vector(model)
    vector_D = np.zeros_like(before)
    vector_D[-1] = bad
    with pytest.raises(ProtocolError, match="not finite"):
        write_vector(model, vector_D)
    assert read_vector(model).tobytes() == before.tobytes()


def test_another_length_or_shape_is_refused_and_nothing_is_written() -> None:
    model = build_model(CONFIG, 8, 1, seed=1)
    before = read_vector(model)
    size = len(before)
    for shape in ((size - 1,), (size + 1,), (0,), (1, size), (size, 1)):
        with pytest.raises(ProtocolError, match=f"a model of {size} trainable parameters"):
            write_vector(model, np.zeros(shape, np.float32))
    assert read_vector(model).tobytes() == before.tobytes()


def test_the_fingerprint_is_of_the_layout_not_of_the_values() -> None:
    one, other = build_model(CONFIG, 8, 1, seed=1), build_model(CONFIG, 8, 1, seed=2)
    assert layout_fingerprint(one, "hash", CONFIG) == layout_fingerprint(other, "hash", CONFIG)
    assert len(layout_fingerprint(one, "hash", CONFIG)) == 64


def test_the_fingerprint_changes_with_names_shapes_base_and_what_is_frozen() -> None:
    base = build_model(CONFIG, 8, 1, seed=1)
    frozen = build_model(CONFIG, 8, 1, seed=1)
    frozen.wide.weight.requires_grad_(False)
    marks = [
        layout_fingerprint(base, "hash", CONFIG),
        layout_fingerprint(base, "other", CONFIG),
        layout_fingerprint(build_model(CONFIG, 8, 2, seed=1), "hash", CONFIG),
        layout_fingerprint(build_model(CONFIG, 9, 1, seed=1), "hash", CONFIG),
        layout_fingerprint(build_model(ModelConfig(width=5, hidden=6), 8, 1, seed=1), "hash", CONFIG),
        layout_fingerprint(build_model(ModelConfig(width=4, hidden=7), 8, 1, seed=1), "hash", CONFIG),
        layout_fingerprint(
            build_model(ModelConfig(width=4, hidden=6, context_buckets=9), 8, 1, seed=1), "hash", CONFIG
        ),
        layout_fingerprint(frozen, "hash", CONFIG),
        layout_fingerprint(nn.ModuleDict({"a": nn.Linear(2, 2)}), "hash", CONFIG),
        layout_fingerprint(nn.ModuleDict({"b": nn.Linear(2, 2)}), "hash", CONFIG),
        layout_fingerprint(nn.ModuleDict({"a": nn.Linear(1, 4)}), "hash", CONFIG),
    ]
    assert len(set(marks)) == len(marks)


def test_a_square_layer_turned_round_is_another_layout() -> None:
    """Same number of parameters, other meaning of the vector."""
    assert layout_fingerprint(nn.Linear(2, 3, bias=False), "", CONFIG) != layout_fingerprint(
        nn.Linear(3, 2, bias=False), "", CONFIG
    )


@pytest.mark.parametrize(
    "change", [{"max_tokens": 32}, {"history": 9}, {"prior_click_rate": 0.2}, {"item_rates": "exact"}]
)
def test_another_meaning_of_the_features_is_another_layout(change: dict[str, Any]) -> None:
    model = build_model(CONFIG, 8, 1, seed=1)
    assert layout_fingerprint(model, "hash", replace(CONFIG, **change)) != layout_fingerprint(model, "hash", CONFIG)


def test_where_files_lie_at_one_partner_is_no_part_of_the_layout() -> None:
    model, elsewhere = (
        build_model(CONFIG, 8, 1, seed=1),
        replace(CONFIG, encoder="path:/mnt/models", cache="/mnt/cache"),
    )
    assert layout_fingerprint(model, "hash", elsewhere) == layout_fingerprint(model, "hash", CONFIG)
