"""What encoding each distinct text once saves: a second run, and an epoch of training.

1. The distinct texts of MovieLens are encoded into an empty cache folder, then asked for again by a fresh reader.
2. One epoch of one-user-in-ten steps over all MovieLens users, in two ways that take the very same steps: from cached
   states, and with the texts of each batch (its candidates and their histories, each once) encoded before the step.
   Encoding in the loop is timed on a stated number of steps and scaled to the epoch.

Letters: T distinct texts, E text width, D parameters, N rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.measuring import Options, spread, spread_text
from client.training import DpStep, Randomness, sample_units, train_privately
from common.config import DataConfig, ModelConfig
from common.features import UserRows, featurise
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, TextEncoder, load_text_encoder, locate
from common.textstates import EncodedTexts, TextStates
from common.vector import read_vector
from simulations.sources import load_source

_RATE, _QUICK_RATE = 0.1, 0.5
_MAX_ROWS = 32
_LOOP_STEPS = 3
_REPEATS = 3
_QUICK_USERS = 4
_PLAN = TrainingPlan(local_steps=1, client_optimiser="adam", learning_rate=0.01, weight_decay=0.0)


def measure(options: Options) -> dict[str, Any]:
    """Returns seconds and ratios of both comparisons."""
    torch.set_num_threads(1)  # as a partner's worker does
    config = ModelConfig(encoder=options.encoder or ModelConfig().encoder)
    rows = load_source(DataConfig(source="movielens", max_users=_QUICK_USERS if options.quick else 0)).rows
    texts = list(rows["text"])
    pretrained = locate(config.encoder)
    repeats = 1 if options.quick else _REPEATS
    encoded, cache = _cache(pretrained, config, texts, options.scratch, repeats)
    features = featurise(rows, encoded.index_N, encoded.states_TE, config)
    distinct = list(dict.fromkeys(texts))
    return {"data": "movielens", "cache": cache, "epoch": _epoch(pretrained, config, features, distinct, options)}


def _cache(
    pretrained: Pretrained, config: ModelConfig, texts: Sequence[str], scratch: Path, repeats: int
) -> tuple[EncodedTexts, dict[str, Any]]:
    """Fills an empty cache and reads it again, several times over."""
    load_text_encoder(pretrained)  # imports of torch and transformers are in neither figure
    first, second, ratios = [], [], []
    for repeat in range(repeats):
        folder = scratch / f"cache-{repeat}"
        fresh, fresh_seconds = _timed_states(pretrained, config, texts, folder)
        again, again_seconds = _timed_states(pretrained, config, texts, folder)
        first.append(fresh_seconds)
        second.append(again_seconds)
        ratios.append(fresh_seconds / again_seconds)
    return again, {
        "rows": len(texts),
        "distinct_texts": len(again.states_TE),
        "first_run_encoded": fresh.encoded,
        "second_run_encoded": again.encoded,
        "same_bits": bool(np.array_equal(fresh.states_TE, again.states_TE)),
        "first_run_seconds": spread(first),
        "second_run_seconds": spread(second),
        "ratio": spread(ratios),
    }


def _timed_states(
    pretrained: Pretrained, config: ModelConfig, texts: Sequence[str], folder: Path
) -> tuple[EncodedTexts, float]:
    started = time.monotonic()
    encoded = TextStates(pretrained, config.max_tokens, folder).states(texts)
    return encoded, time.monotonic() - started


@dataclass(frozen=True)
class _Trainer:
    """What both ways of training share; `step` numbers are seeds, so both take the same steps."""

    model: ClickModel
    start_D: NDArray[np.float32]
    rows: UserRows
    step: DpStep

    def train(self, number: int) -> float:
        """Takes one step and returns its seconds."""
        started = time.monotonic()
        train_privately(self.model, self.start_D, self.rows, _PLAN, self.step, Randomness(number, "benchmark", 1))
        return time.monotonic() - started

    def texts(self, number: int) -> NDArray[np.int64]:
        """Returns the distinct texts that this step reads: its rows' and their histories'."""
        sampling = Randomness(number, "benchmark", 1).sampling
        row_N = np.concatenate([np.zeros(0, np.int64), *sample_units(self.rows, self.step, sampling)])
        history_N = self.rows.history_NH[row_N]
        return np.unique(self.rows.text_N[np.concatenate([row_N, history_N[history_N >= 0]])])


def _epoch(
    pretrained: Pretrained, config: ModelConfig, rows: UserRows, distinct: Sequence[str], options: Options
) -> dict[str, Any]:
    model = build_model(config, rows.states_TE.shape[1], rows.label_NL.shape[1], seed=1)
    rate = _QUICK_RATE if options.quick else _RATE
    step = DpStep(rate, 0.0, None, _MAX_ROWS, rate * rows.num_users)
    trainer = _Trainer(model, read_vector(model), rows, step)
    encoder = load_text_encoder(pretrained)
    steps = round(1 / rate)
    measured = 1 if options.quick else _LOOP_STEPS
    trainer.train(0)  # warm
    encoder.encode(distinct[:8], config.max_tokens)
    cached = [trainer.train(number) for number in range(1, steps + 1)]
    loop, texts, ratios = [], [], []
    for number in range(1, measured + 1):
        text_T = trainer.texts(number)
        seconds = _encode(encoder, [distinct[text] for text in text_T], config.max_tokens) + trainer.train(number)
        loop.append(seconds)
        texts.append(len(text_T))
        ratios.append(seconds / cached[number - 1])
    return {
        "steps": steps,
        "loop_steps_measured": measured,
        "distinct_texts_per_step": spread(texts),
        "cached_step_seconds": spread(cached),
        "loop_step_seconds": spread(loop),
        "cached_epoch_seconds": sum(cached),
        "loop_epoch_seconds_estimated": steps * sum(loop) / measured,
        "ratio_epoch": steps * sum(loop) / measured / sum(cached),
        "ratio_step": spread(ratios),
    }


def _encode(encoder: TextEncoder, texts: Sequence[str], max_tokens: int) -> float:
    started = time.monotonic()
    encoder.encode(texts, max_tokens)
    return time.monotonic() - started


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns one table per comparison."""
    cache, epoch = result["cache"], result["epoch"]
    first = Table(title=f"{cache['distinct_texts']} distinct texts of MovieLens: median (min to max)")
    for column in ("", "texts encoded", "seconds", "ratio"):
        first.add_column(column, justify="right" if column else "left")
    first.add_row("empty cache", str(cache["first_run_encoded"]), spread_text(cache["first_run_seconds"]), "")
    second = spread_text(cache["second_run_seconds"])
    first.add_row("second run", str(cache["second_run_encoded"]), second, spread_text(cache["ratio"], 0))
    loop = Table(title=f"An epoch of {epoch['steps']} steps; encoding in the loop from {epoch['loop_steps_measured']}")
    for column in ("", "seconds a step", "seconds an epoch", "ratio, epoch", "ratio, step"):
        loop.add_column(column, justify="right" if column else "left")
    loop.add_row(
        "encoded in the loop",
        spread_text(epoch["loop_step_seconds"]),
        f"{epoch['loop_epoch_seconds_estimated']:.1f} (estimated)",
        f"{epoch['ratio_epoch']:.0f}",
        spread_text(epoch["ratio_step"], 0),
    )
    loop.add_row(
        "cached states",
        spread_text(epoch["cached_step_seconds"]),
        f"{epoch['cached_epoch_seconds']:.1f}",
        "1",
        "",
    )
    return [first, loop]
