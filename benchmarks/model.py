"""What each fine-tuning mode is worth and costs: one table of quality over whole runs, one of the cost of a step.

Quality: MovieLens split by time 80/20 over six partners (`benchmarks/configs/model.toml`), every mode through
`simulate` with secure aggregation, without privacy and under user-level epsilon 8, the same rounds and users for all.

Cost: steps on the users of one such partner, one thread, CPU time, ways in turns in one process. A plain step has one
backward pass for all units; a private one works each out alone. *Through all layers* runs the frozen layers as well for
every step and text, as training without a cache of what enters the trained layers does.

Letters: D trained parameters, N evaluated rows.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Options, spread, spread_text
from client.training import DpStep, Randomness, train_privately
from common.config import Config, ModelConfig, load_config
from common.features import UserRows, featurise
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.runfolder import RunFolder
from common.textstates import encode_texts
from common.vector import num_trainable, read_vector
from server.modelfolder import num_parameters
from simulations.partners import build_partners
from simulations.run import simulate
from simulations.sources import load_source

CONFIG = Path(__file__).parent / "configs" / "model.toml"
MODES = ("head", "lora", "adalora", "adapter", "prefix", "prompt", "top_layers", "full")
# Whole layers want a smaller rate than what is put into them.
RATES = {"top_layers": 0.02, "full": 0.01}
STEPS = (("lora", 2), ("lora", 0), ("adapter", 2), ("top_layers", 1), ("full", 0))  # mode, layers; 0 = all
_UNITS, _ROWS, _TURNS = 12, 8, 5
_QUICK = ("round.num_rounds=1", "data.max_users=20", "data.partners=3", "privacy.sampling_rate=0.5")


@dataclass(frozen=True)
class Case:
    """A mode, with or without privacy."""

    mode: str
    private: bool


def measure(options: Options) -> dict[str, Any]:
    """Returns every mode's figures of whole runs, and of single steps."""
    modes = ("head", "lora") if options.quick else MODES
    if options.only:
        modes = tuple(mode for mode in MODES if mode in options.only)
    cases = [_run(Case(mode, private), options) for mode in modes for private in (False, True)]
    return {"cases": cases, "steps": _steps(options) if not options.only or "steps" in options.only else []}


def _configured(options: Options, *overrides: str) -> Config:
    given = [*overrides, "round.seed=1", "privacy.fixed_seed=1"]
    given += [*_QUICK] if options.quick else ["server.bootstrap_samples=1000"]
    if options.encoder:
        given.append(f'model.encoder="{options.encoder}"')
    return load_config(CONFIG, given)


def _run(case: Case, options: Options) -> dict[str, Any]:
    overrides = [f'model.tune="{case.mode}"', f"model.tune_rate={RATES.get(case.mode, 0.1)}"]
    if not case.private:
        overrides += ['privacy.mode="none"']
    config = _configured(options, *overrides)
    folder = RunFolder(options.scratch / f"{case.mode}-{case.private}")
    started = time.process_time()
    metrics = simulate(config, folder, Console(quiet=True))
    final, rounds = metrics["final"], metrics["rounds"]
    return {
        "mode": case.mode,
        "epsilon": metrics["privacy"]["epsilon"] if case.private else None,
        "auc": final["auc"],
        "auc_interval": final["intervals"]["auc"],
        "ne": final["ne"],
        "floor_auc": metrics["floors"]["logistic_regression"]["auc"],
        "minus_floor": metrics["floors"]["logistic_regression"]["difference"],
        "parameters": num_parameters(folder.model),
        "megabytes_up": float(np.median([record["bytes"]["up"] / record["cohort"] for record in rounds])) / 1e6,
        "round_seconds": spread([record["timings"]["train_seconds"] for record in rounds]),
        "cpu_seconds": time.process_time() - started,
    }


def _base(config: Config) -> Pretrained:
    return locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)


def _steps(options: Options) -> list[dict[str, Any]]:
    """Returns for each mode the CPU time of a private step over that of a plain one, and of one through all layers."""
    torch.set_num_threads(1)
    config = _configured(options)
    rows = build_partners(load_source(config.data), config.data).training[0]
    return [_step(config, rows, mode, layers, options) for mode, layers in STEPS[: 1 if options.quick else None]]


def _step(config: Config, rows: pd.DataFrame, mode: str, layers: int, options: Options) -> dict[str, Any]:
    own = replace(config.model, tune=mode, tune_layers=layers)
    base = _base(config)
    model, features = build_model(own, base.width, 1, 1, base), _features(rows, own, base)
    ways = {
        "plain": lambda: _train(model, features, None),
        "private": lambda: _train(model, features, config.privacy.clip),
    }
    if mode == "top_layers":
        whole = replace(own, tune="full")
        deep, tokens = build_model(whole, base.width, 1, 1, base), _features(rows, whole, base)
        for number, layer in enumerate(deep.text.layers):  # type: ignore[union-attr, arg-type]
            layer.requires_grad_(number >= len(deep.text.layers) - layers)  # type: ignore[union-attr, arg-type]
        ways["through all layers"] = lambda: _train(deep, tokens, config.privacy.clip)
    turns: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(2 if options.quick else _TURNS + 1):
        for way, work in ways.items():
            started = time.process_time()
            work()
            if turn:  # the first warms up
                turns[way].append(time.process_time() - started)
    return {
        "mode": mode,
        "layers": layers,
        "parameters": num_trainable(model),
        "plain_seconds": spread(turns["plain"]),
        "private_over_plain": _ratio(turns["private"], turns["plain"]),
        "all_layers_over_cached": _ratio(turns["through all layers"], turns["private"])
        if "through all layers" in turns
        else None,
    }


def _features(rows: pd.DataFrame, model: ModelConfig, base: Pretrained) -> UserRows:
    texts = encode_texts(list(rows["text"]), model, base)
    return featurise(rows, texts.index_N, texts.states_TE, model, tokens_T=texts.tokens_T)


def _train(model: ClickModel, features: UserRows, clip: float | None) -> None:
    """Makes one step as a partner does: the same users and rows whatever the clip."""
    rate = min(1.0, _UNITS / features.num_users)
    noise = 0.0 if clip is None else 1.0
    step = DpStep(rate, noise, clip, _ROWS, _UNITS)
    train_privately(
        model, read_vector(model), features, TrainingPlan(1, "adam", 1e-6, 0.0), step, Randomness(1, "p", 1)
    )


def _ratio(over: list[float], under: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(over, under, strict=True)])


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns a table of quality and one of cost."""
    quality = Table(title="Fine-tuning modes on MovieLens, split by time: whole runs of the same rounds and users")
    for column in ("mode", "epsilon", "AUC", "95 % interval", "minus LR", "parameters", "MB up", "s a round", "CPU s"):
        quality.add_column(column, justify="right" if column != "mode" else "left", no_wrap=True)
    for case in result["cases"]:
        gap, low, high = case["minus_floor"]
        quality.add_row(
            case["mode"],
            f"{case['epsilon']:.1f}" if case["epsilon"] else "none",
            f"{case['auc']:.4f}",
            "[{:.3f}, {:.3f}]".format(*case["auc_interval"]),
            f"{gap:+.4f} [{low:+.4f}, {high:+.4f}]",
            f"{case['parameters']:,}",
            f"{case['megabytes_up']:.2f}",
            spread_text(case["round_seconds"], 1),
            f"{case['cpu_seconds']:.0f}",
        )
    cost = Table(title=f"A step of about {_UNITS} users, {_ROWS} rows each at most: CPU time, one thread")
    for column in ("mode", "layers", "parameters", "plain s", "private / plain", "through all layers / cached"):
        cost.add_column(column, justify="right" if column != "mode" else "left", no_wrap=True)
    for step in result["steps"]:
        beside = step["all_layers_over_cached"]
        cost.add_row(
            step["mode"],
            str(step["layers"] or "all"),
            f"{step['parameters']:,}",
            spread_text(step["plain_seconds"]),
            spread_text(step["private_over_plain"]),
            spread_text(beside) if beside else "",
        )
    return [quality, cost]
