"""The same apps through Flower's own Ray simulation: the same global model, to the bit. A minute."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from common.config import parse_config
from common.runfolder import RunFolder
from simulations.run import simulate


@pytest.mark.slow
def test_promise_5_flowers_own_engine_gives_the_same_model(tiny_encoder: Path, tmp_path: Path) -> None:
    config = parse_config(
        {
            "data": {"source": "generated", "generator": {"users": 120, "items": 30}, "partners": 4},
            "model": {"encoder": f"path:{tiny_encoder}", "width": 4, "hidden": 4},
            "round": {"num_rounds": 2, "local_steps": 2, "learning_rate": 0.05},
            "privacy": {"delta": 1e-4, "sampling_rate": 0.5, "fixed_seed": 7},
            "server": {"floors": ["base_rate"], "bootstrap_samples": 20},
            "output": {"report": False},
        }
    )
    results = {}
    for engine in ("in-process", "flower"):
        folder = RunFolder(tmp_path / engine)
        metrics = simulate(config, folder, Console(quiet=True), engine=engine)
        results[engine] = (metrics["final"], load_file(folder.model / "model.safetensors"))
    (own_final, own_model), (flower_final, flower_model) = results.values()
    assert own_final == flower_final
    assert own_model.keys() == flower_model.keys()
    for name in own_model:
        assert np.array_equal(own_model[name], flower_model[name]), name
