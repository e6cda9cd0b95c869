"""A signed model's files -> a click model that scores, with the configuration of its features."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.numpy import load

from common.calibration import Calibration
from common.config import STRICT, ModelConfig
from common.errors import ModelError, PretrainedError
from common.itemrates import ItemRates, parse_release
from common.lineage import PARAMETERS, SETTINGS, STATISTICS, Lineage
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained
from common.vector import layout_fingerprint, trainable

SETTINGS_VERSION = 1


@dataclass(frozen=True, config=STRICT)
class Settings:
    """What `config.json` of a model folder holds."""

    format: int
    model: ModelConfig
    text_width: Annotated[int, Field(ge=1, le=2**20)]
    num_heads: Annotated[int, Field(ge=1, le=2)]
    encoder: str
    encoder_sha256: str
    run_id: str
    rounds: int
    calibration: Calibration | None = None


def load_model(
    files: Mapping[str, bytes], lineage: Lineage, base: Pretrained | None = None
) -> tuple[ClickModel, ModelConfig]:
    """Returns the trained model and its configuration, from files that `common.lineage.verified` has passed.

    Args:
        files: name -> bytes.
        lineage: what they were verified with.
        base: the encoder; needed where part of it was trained.

    Raises:
        ModelError: where they do not make a model of the layout that the lineage names.
    """
    settings = _settings(files[SETTINGS])
    if settings.model.tune != "head" and base is None:
        raise ModelError(f"{SETTINGS}: part of the encoder was trained, which cannot be built without the encoder")
    try:
        # Where its layers run is this machine's to say, not the file's.
        own = replace(settings.model, device="auto")
        model = build_model(own, settings.text_width, settings.num_heads, seed=0, base=base)
    except PretrainedError as error:
        raise ModelError(f"{SETTINGS}: {error}") from None
    if layout_fingerprint(model, lineage.base.fingerprint, settings.model) != lineage.layout:
        raise ModelError(f"{SETTINGS}: describes another layout than the lineage's {lineage.layout[:12]}")
    try:
        found = load(files[PARAMETERS])
    except (SafetensorError, ValueError, KeyError):
        raise ModelError(f"{PARAMETERS}: cannot be read as safetensors") from None
    wanted = {name: tuple(parameter.shape) for name, parameter in trainable(model)}
    if {name: values.shape for name, values in found.items()} != wanted:
        raise ModelError(f"{PARAMETERS}: other parameters than those of its own {SETTINGS}")
    if any(values.dtype != np.float32 or not np.isfinite(values).all() for values in found.values()):
        raise ModelError(f"{PARAMETERS}: parameters that are not finite float32")
    with torch.no_grad():
        for name, parameter in trainable(model):
            parameter.copy_(torch.from_numpy(found[name]))
    return model, settings.model


def load_item_rates(files: Mapping[str, bytes], config: ModelConfig) -> ItemRates | None:
    """Returns what the private statistics say that the model's features are made with; None where it has none.

    Raises:
        ModelError: where they cannot be read, or the model does not use any.
    """
    if STATISTICS not in files:
        return None
    if config.item_rates != "private":
        raise ModelError(f'{STATISTICS}: beside a model of item_rates = "{config.item_rates}"')
    return ItemRates(parse_release(files[STATISTICS]))


def load_calibration(files: Mapping[str, bytes]) -> Calibration | None:
    """Returns what the model's probabilities were calibrated with; None where they were not."""
    return _settings(files[SETTINGS]).calibration


def _settings(data: bytes) -> Settings:
    try:
        version = json.loads(data)["format"]
        if version != SETTINGS_VERSION:
            raise ModelError(f"{SETTINGS}: format {version!r:.20}, this release reads format {SETTINGS_VERSION}")
        return TypeAdapter(Settings).validate_json(data)
    except (ValueError, ValidationError, KeyError, TypeError, RecursionError):
        raise ModelError(f"{SETTINGS}: not the settings of a model") from None


def require_base(lineage: Lineage, pretrained: Pretrained) -> None:
    """Raises `ModelError` unless this is the very encoder that the model was trained on, tokenizer included."""
    base = lineage.base
    if base.fingerprint != pretrained.fingerprint:
        raise ModelError(
            f"the model was trained on {base.encoder} (fingerprint {base.fingerprint[:12]}, weights"
            f" {base.weights_sha256[:12]}), here is {pretrained.spec} ({pretrained.fingerprint[:12]}, weights"
            f" {pretrained.weights_sha256[:12]}): name the right one as model.encoder"
        )
