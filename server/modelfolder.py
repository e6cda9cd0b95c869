"""The model folder that a run leaves: trained parameters, and what is needed to use them."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from common.config import ModelConfig, to_table
from common.model.click_model import ClickModel
from common.pretrained import Pretrained
from common.runfolder import write_atomically, write_json


def num_parameters(folder: Path) -> int:
    """Returns the number of trained parameters in a model folder."""
    with safe_open(str(folder / "model.safetensors"), framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)


def save_model(
    folder: Path, model: ClickModel, config: ModelConfig, pretrained: Pretrained, run_id: str, rounds: int
) -> None:
    """Writes `model.safetensors` (trained parameters only) and `config.json` (layout, base and its hash, lineage)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", save(model.state_dict()))
    facts: dict[str, Any] = {
        "format": 1,
        "model": to_table(config),
        "text_width": pretrained.width,
        "num_heads": model.head.out_features,
        "encoder": pretrained.spec,
        "encoder_sha256": pretrained.weights_sha256,
        "run_id": run_id,
        "rounds": rounds,
    }
    write_json(folder / "config.json", facts)
