"""Presets by hardware: each is a configuration that parses, auto looks for GPUs, and one's own settings come last."""

import json
from pathlib import Path

import pytest
import torch

from common.cli import main
from common.config import ModelConfig, load_config
from common.errors import PretrainedError
from common.model.tail import dealt, device_of
from common.presets import NAMES, PRESETS, overrides_of

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "simulations" / "configs" / "smoke.toml"


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[tuple[float, int]]:
    """Makes torch count so many GPUs; returns the shares of memory that are asked for."""
    taken: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: taken.append((share, gpu)))
    return taken


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_settings_of_a_configuration(name: str) -> None:
    config = load_config(SMOKE, overrides_of(name))
    assert (config.model.tune, config.model.device) == (("head", "cpu") if name == "cpu" else ("lora", "cuda"))


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (1, "gpu"), (2, "gpus"), (8, "gpus")])
def test_auto_is_the_preset_for_the_gpus_that_are_there(monkeypatch, count, expected) -> None:
    gpus(monkeypatch, count)
    assert overrides_of("auto") == PRESETS[expected]
    assert set(NAMES) == {"auto", "cpu", "gpu", "gpus"}


def test_partners_of_a_simulation_are_dealt_out_to_gpus(monkeypatch) -> None:
    gpus(monkeypatch, 3)
    lora = ModelConfig(tune="lora", device="cuda")
    assert [dealt(lora, number).device for number in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    for own in (ModelConfig(device="cuda"), ModelConfig(tune="lora", device="cpu"), ModelConfig(device="cuda:2")):
        assert dealt(own, 1) == own
    gpus(monkeypatch, 0)
    assert dealt(lora, 1) == lora


def test_a_gpu_is_named_by_number_and_its_memory_capped(monkeypatch) -> None:
    taken = gpus(monkeypatch, 2)
    assert device_of(ModelConfig(device="cuda:1", device_memory=0.5), "x") == "cuda:1"
    assert device_of(ModelConfig(device="auto"), "x") == "cuda:0"
    assert device_of(ModelConfig(device="cpu", device_memory=0.5), "x") == "cpu"
    assert taken == [(0.5, 1)]
    with pytest.raises(PretrainedError, match=r'"cuda:2": torch finds no such GPU .* 2 of them, from cuda:0 on'):
        device_of(ModelConfig(device="cuda:2"), "x")
    gpus(monkeypatch, 1)
    assert device_of(ModelConfig(), "x") == "cuda"


def test_own_settings_come_after_a_preset(tiny_encoder, tmp_path, capsys) -> None:
    command = ["simulate", str(SMOKE), "--preset", "cpu", "--out", str(tmp_path / "run"), "--json"]
    few = ("data.generator.users=60", "round.num_rounds=1", "server.floors=[]", f"model.encoder=path:{tiny_encoder}")
    words = [word for setting in (*few, 'model.precision="bfloat16"') for word in ("--set", setting)]
    assert main([*command, *words]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"]
    written = load_config(tmp_path / "run" / "config.toml").model
    assert (written.device, written.precision) == ("cpu", "bfloat16")
    with pytest.raises(SystemExit):
        main(["simulate", str(SMOKE), "--preset", "tpu"])
    assert "--preset" in capsys.readouterr().err
