"""The benchmark of fine-tuning modes in quick mode: sane, and both ways of its step give the same model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import model as benchmark
from benchmarks.measuring import Options
from common.runfolder import jsonable
from common.vector import num_trainable, read_vector


@pytest.fixture
def options(tiny_encoder: Path, tmp_path: Path) -> Options:
    return Options(scratch=tmp_path, quick=True, encoder=f"path:{tiny_encoder}")


def generated(options: Options, *overrides: str) -> Any:
    """The benchmark's configuration on generated clicks: the wheel of MovieLens may not be there."""
    config = benchmark.load_config(benchmark.CONFIG, [*overrides, *benchmark._QUICK, 'data.source="generated"'])
    users = replace(config.data.generator, users=30, items=12, impressions_per_user=6)
    encoder = replace(config.model, encoder=options.encoder, tune_layers=1)
    return replace(config, data=replace(config.data, generator=users, max_users=0), model=encoder)


def test_the_table_agrees_with_itself(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_configured", generated)
    result = json.loads(json.dumps(jsonable(benchmark.measure(options)), allow_nan=False))
    assert [(case["mode"], case["epsilon"] is not None) for case in result["cases"]] == [
        ("head", False),
        ("head", True),
        ("lora", False),
        ("lora", True),
    ]
    head, _, lora, private = result["cases"]
    assert lora["parameters"] == head["parameters"] + 2 * 2 * 8 * 32  # query and value of one layer, both factors
    assert lora["megabytes_up"] > head["megabytes_up"]
    assert 0 < private["epsilon"] <= 8.01
    assert all(case["auc_interval"][0] <= case["auc"] <= case["auc_interval"][1] for case in result["cases"])
    assert result["steps"][0]["private_over_plain"]["median"] > 0
    for table in benchmark.tables(result):
        Console(quiet=True).print(table)


def test_layers_without_a_cache_give_the_same_step(options: Options) -> None:
    config = generated(options)
    rows = benchmark.build_partners(benchmark.load_source(config.data), config.data).training[0]
    top = replace(config.model, tune="top_layers", tune_layers=1)
    base = benchmark._base(config)
    moved = []
    for own, deep in ((top, False), (replace(top, tune="full"), True)):
        model = benchmark.build_model(own, base.width, 1, 1, base)
        if deep:
            model.text.layers[0].requires_grad_(False)
        start_D = read_vector(model)
        benchmark._train(model, benchmark._features(rows, own, base), None)
        moved.append(read_vector(model) - start_D)
        assert num_trainable(model) == len(start_D)
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-7)
    assert np.abs(moved[0]).max() > 0
