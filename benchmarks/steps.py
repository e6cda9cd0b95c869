"""What a private step costs beside a plain one: the same users, rows, model and optimiser, in turns in one process.

A plain step is what a trainer without privacy does: one backward pass of the summed loss for each physical batch, no
hooks. A private step is `train_privately` as it ships: sampling, hooks, clipping, noise, bounds. Beside it stand other
ways to the same clipped sum. Times are CPU times of one thread; peak memory is measured in a process for each way.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.measuring import REPOSITORY, Options, spread, spread_text
from client.gradients import GradientHooks
from client.training import (
    DpStep,
    Randomness,
    choose_rows,
    clip_and_sum,
    clipped_sum,
    make_optimiser,
    physical_batches,
    train_privately,
)
from common.config import ModelConfig
from common.features import Batch, UserRows, dense_names, make_batch
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model, forward, user_losses
from common.vector import read_vector

TEXT_WIDTH, TEXTS, CLIP, STEPS = 384, 3000, 1.0, 2
_REPEATS = 11


@dataclass(frozen=True)
class Case:
    """One size: so many sampled users of so many rows each on average, and the model's two widths."""

    name: str
    users: int
    rows: int
    width: int


CASES = (
    Case("as the demo's partners, 50 users", 50, 24, 16),
    Case("the shipped head, 128 users", 128, 24, 16),
    Case("many users of few rows", 1000, 6, 16),
    Case("impressions as the unit", 2000, 1, 16),
    Case("a head of width 64", 128, 24, 64),
)


class Work:
    """The users, the model and the optimiser of a case, and every way to do a step of it."""

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(1)
        config = ModelConfig(width=case.width, hidden=case.width)
        self.model: ClickModel = build_model(config, TEXT_WIDTH, 1, seed=1).train()
        self.features = random_users(case, len(dense_names(config)), config.history)
        self.start_D = read_vector(self.model)
        self.step = DpStep(1.0, 1.0, CLIP, 2 * case.rows, float(case.users))
        self.plan = TrainingPlan(STEPS, "adam", 0.01, 0.0)
        self.chosen = [np.arange(a, b) for a, b in zip(*_spans(self.features), strict=True)]

    def batches(self, chosen: Sequence[Any]) -> Iterator[Batch]:
        """Yields the physical batches, as both kinds of step make them."""
        for part in physical_batches(chosen):
            yield make_batch(self.features, part)

    def plain_step(self) -> None:
        """Makes the steps of a round without privacy."""
        optimiser, generator = make_optimiser(self.model, self.plan), np.random.default_rng(1)
        for _ in range(STEPS):
            users = np.arange(self.features.num_users)
            optimiser.zero_grad()
            self._backward(choose_rows(self.features, users, self.step.max_rows, generator))
            optimiser.step()

    def private_step(self) -> None:
        """Makes the steps of a round as they ship."""
        train_privately(self.model, self.start_D, self.features, self.plan, self.step, Randomness(None, "p", 1))

    def plain(self) -> None:
        """Forms the gradient of the whole sample."""
        self.model.zero_grad()
        self._backward(self.chosen)

    def _backward(self, chosen: Sequence[Any]) -> None:
        for batch in self.batches(chosen):
            user_losses(forward(self.model, batch), batch).sum().backward()  # type: ignore[no-untyped-call]

    def shipped(self) -> Any:
        """Forms the clipped sum as it ships."""
        hooks = GradientHooks(self.model)
        total_D = clipped_sum(self.model, self.features, self.chosen, CLIP)
        hooks.cleanup()
        return total_D

    def opacus(self) -> Any:
        """Forms it from Opacus' hooks as they are: all gradients of a batch at once."""
        hooks = GradSampleHooks(self.model, loss_reduction="sum")
        total_D = torch.zeros(len(self.start_D), dtype=torch.float64)
        for batch in self.batches(self.chosen):
            for parameter in self.model.parameters():
                parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            user_losses(forward(self.model, batch), batch).sum().backward()  # type: ignore[no-untyped-call]
            samples = [parameter.grad_sample.flatten(1) for parameter in self.model.parameters()]  # type: ignore[attr-defined]
            total_D += clip_and_sum(torch.cat(samples, dim=1), CLIP)
        hooks.cleanup()
        return total_D.numpy()

    def ghost(self) -> Any:
        """Forms it by ghost clipping: two backward passes, no gradients of single users. It is unsafe (PRIVACY.md)."""
        optimiser = torch.optim.SGD(self.model.parameters())
        total_D = np.zeros(len(self.start_D))
        hooks = GradSampleHooksFastGradientClipping(self.model, loss_reduction="sum", max_grad_norm=CLIP)
        for batch in self.batches(self.chosen):
            loss_B = user_losses(forward(self.model, batch), batch)
            DPTensorFastGradientClipping(hooks, optimiser, loss_B, "sum").backward()
            total_D += np.concatenate([one.grad.numpy().ravel() for one in self.model.parameters()])  # type: ignore[union-attr]
        hooks.cleanup()
        return total_D

    def functorch(self) -> Any:
        """Forms it by vmap of grad."""
        parameters = {name: one.detach() for name, one in self.model.named_parameters()}
        total_D = torch.zeros(len(self.start_D), dtype=torch.float64)
        for batch in self.batches(self.chosen):
            arrays = (batch.candidate_BME, batch.bank_BKE, batch.attend_BMK, batch.dense_BMF)
            inputs = [torch.from_numpy(one) for one in (*arrays, batch.label_BML, batch.weight_BM)]
            of_all = vmap(grad(self._loss), in_dims=(None, *[0] * len(inputs)))(parameters, *inputs)
            total_D += clip_and_sum(torch.cat([one.flatten(1) for one in of_all.values()], dim=1), CLIP)
        return total_D.numpy()

    def _loss(self, parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        *features, label_ML, weight_M = inputs
        logit_ML = functional_call(self.model, parameters, tuple(one[None] for one in features))[0]
        loss_ML = torch.nn.functional.binary_cross_entropy_with_logits(logit_ML, label_ML, reduction="none")
        return (loss_ML[:, 0] * weight_M).sum()


STEP_WAYS = ("plain_step", "private_step")
SUM_WAYS = ("plain", "shipped", "opacus", "ghost", "functorch")


def _spans(features: UserRows) -> tuple[Any, Any]:
    return features.offset_U1[:-1], features.offset_U1[1:]


def random_users(case: Case, num_dense: int, history: int) -> UserRows:
    """Returns users of 1 to 2 x rows - 1 rows over random text states, each with random earlier rows as history."""
    rng = np.random.default_rng(0)
    count_U = rng.integers(1, 2 * case.rows, case.users)
    offset_U1 = np.concatenate([[0], np.cumsum(count_U)])
    num_rows = int(offset_U1[-1])
    earlier_N = np.arange(num_rows) - np.repeat(offset_U1[:-1], count_U)  # earlier rows of the same user
    back_NH = rng.integers(1, history + 1, (num_rows, 1)) + np.arange(history)
    history_NH = np.where(back_NH <= earlier_N[:, None], np.arange(num_rows)[:, None] - back_NH, -1)
    return UserRows(
        offset_U1,
        rng.integers(0, TEXTS, num_rows),
        rng.integers(0, 2, (num_rows, 1)).astype(np.float32),
        rng.normal(size=(num_rows, num_dense)).astype(np.float32),
        history_NH,
        rng.normal(size=(TEXTS, TEXT_WIDTH)).astype(np.float32),
    )


def measure(options: Options) -> dict[str, Any]:
    """Returns the cases, each with CPU seconds, ratios to the plain way of the same turn, and peak memory."""
    cases = [Case("quick", 12, 3, 4)] if options.quick else CASES
    found = [_case(case, 2 if options.quick else _REPEATS) for case in cases]
    for case, figures in zip(cases, found, strict=True):
        ways = ("shipped",) if options.quick else STEP_WAYS + SUM_WAYS
        figures["peak_mib"] = {way: _peak_mib(case, way) for way in ways}
    return {"steps_of_a_turn": STEPS, "cases": found}


def _case(case: Case, repeats: int) -> dict[str, Any]:
    work = Work(case)
    disagreement = {
        way: float(np.abs(getattr(work, way)() - work.shipped()).max()) for way in ("opacus", "ghost", "functorch")
    }
    turns: dict[str, list[float]] = {way: [] for way in STEP_WAYS + SUM_WAYS}
    for turn in range(repeats + 1):
        for way in turns:
            seconds = _cpu_seconds(getattr(work, way))
            if turn:  # the first warms up
                turns[way].append(seconds)
    ratios = {
        way: [a / b for a, b in zip(turns[way], turns[base], strict=True)]
        for base, ways in (("plain_step", STEP_WAYS[1:]), ("plain", SUM_WAYS[1:]))
        for way in ways
    }
    return {
        "name": case.name,
        "users": case.users,
        "rows": len(work.features.text_N),
        "width": case.width,
        "parameters": len(work.start_D),
        "seconds": {way: spread(values) for way, values in turns.items()},
        "ratio": {way: spread(values) for way, values in ratios.items()},
        "largest_disagreement": disagreement,
    }


def _cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _peak_mib(case: Case, way: str) -> float:
    """Returns by how much one way lifts the peak memory of a process of its own, above data, model and imports."""
    arguments = json.dumps([case.name, case.users, case.rows, case.width, way])
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.steps import peak; peak({arguments!r})"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def peak(arguments: str) -> None:
    """Prints, in a process of its own, by how many MiB one way lifts resident memory at most (Linux only, else nan)."""
    *facts, way = json.loads(arguments)
    work = Work(Case(*facts))
    if not _STATUS.is_file():
        print("nan")
        return
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = _high_water_mib()
    for _ in range(2):
        getattr(work, way)()
    print(_high_water_mib() - before)


_STATUS = Path("/proc/self/status")


def _high_water_mib() -> float:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns the tables to print."""
    titles = {
        "A private step over a plain one (CPU time; median, min to max), and peak MiB": STEP_WAYS,
        "The clipped sum alone over the plain gradient, by way": SUM_WAYS,
    }
    found = []
    for title, ways in titles.items():
        table = Table(title=title, title_justify="left")
        for column in ("case", "users", "rows", "parameters", "plain ms", *ways[1:], *(f"{way} MiB" for way in ways)):
            table.add_column(column.replace("_", " "))
        for case in result["cases"]:
            table.add_row(
                case["name"],
                *(str(case[key]) for key in ("users", "rows", "parameters")),
                f"{1e3 * case['seconds'][ways[0]]['median']:.1f}",
                *(spread_text(case["ratio"][way]) for way in ways[1:]),
                *(f"{case['peak_mib'].get(way, np.nan):.0f}" for way in ways),
            )
        found.append(table)
    return found
