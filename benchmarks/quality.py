"""What the models are worth: federated against logistic regression and pooled training, without and with privacy.

Real clicks (MovieLens; MovieTweetings where its folder is given) split by time 80/20 over six partners, and generated
clicks whose planted logits give the AUC that a model which knew everything would reach. Each case runs through
`simulate`, the deployed apps, with seeds 1 to 3 of initial weights, sampling and noise (with seed 1 where users are
many); the data stay the same.

How settings were chosen: on real clicks, by AUC on the last fifth of the *training window* (`--validation` scores the
same cases there), never on the test rows; on generated clicks, with another generator seed.

Letters: N evaluated rows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import REPOSITORY, Options, spread, spread_text
from common.bootstrap import paired_difference
from common.card import canonical_card
from common.clicks import write_clicks
from common.config import Config, load_config, to_table
from common.metrics import roc_auc
from common.runfolder import RunFolder
from common.split import split_rows
from simulations.generator import generate_with_truth
from simulations.run import simulate
from simulations.sources import load_source

Scores = NDArray[np.float64]

CONFIGS = Path(__file__).parent / "configs"
SHIPPED = REPOSITORY / "simulations" / "configs"
SEEDS = (1, 2, 3)
SIZES = (600, 2_000, 20_000)
VALIDATION_GENERATOR_SEED = 99
HOW_CHOSEN = (
    "Settings were chosen by AUC on the last fifth of the training window (real clicks) and on another generator seed"
    " (generated clicks), not on the rows scored here."
)
LABELS = 128  # of one user that label-only privacy uses, the latest
_NEVER = 10**6
# With more users a step can be a smaller share of them, and a budget affords more steps.
_MANY_PLAIN = ("privacy.sampling_rate=0.05",)
_MANY_PRIVATE = ("round.num_rounds=20", "round.local_steps=4", "round.learning_rate=0.02", "privacy.sampling_rate=0.1")
_LR, _LR_ITEM = "logistic_regression", "logistic_regression_item_means"
_QUICK_USERS = 120
_QUICK_SET = (
    "round.num_rounds=2",
    "round.local_steps=2",
    "data.generator.items=40",
    "data.generator.impressions_per_user=8",
    "data.max_users=30",
    "data.partners=3",
)


@dataclass(frozen=True)
class Case:
    """One configuration, run once per seed."""

    part: str  # movielens, movietweetings, generated
    label: str
    config: Path
    overrides: tuple[str, ...] = ()
    floor: str = _LR  # what it is held against
    pooled: bool = False
    against: str = ""  # label of the non-private case that shows the price of privacy
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Run:
    """One seed of a case: its figures, and the scores that later cases are compared with."""

    figures: dict[str, Any]
    score_N: Scores = field(repr=False)


def measure(options: Options) -> dict[str, Any]:
    """Returns every case's figures per seed, in three parts (`Options.only` picks some)."""
    named = tuple(part for part in options.only if part in _CASES)
    parts = named or ("movielens", "movietweetings", "generated")
    results: list[dict[str, Any]] = []
    for part in parts:
        if part == "movietweetings" and options.movietweetings is None:
            continue
        earlier: dict[str, list[Run]] = {}
        for case in _CASES[part](options):
            seeds = case.seeds[:1] if options.quick else case.seeds
            earlier[case.label] = [_run(case, seed, options, earlier) for seed in seeds]
            results.append(_summary(case, [run.figures for run in earlier[case.label]]))
    return {
        "how_settings_were_chosen": HOW_CHOSEN,
        "scored": "validation" if options.validation else "test",
        "cases": results,
    }


def _movielens(options: Options) -> Iterator[Case]:
    return _real("movielens", options, SHIPPED / "demo.toml", "data.partners=6")


def _movietweetings(options: Options) -> Iterator[Case]:
    path = f'data.path="{options.movietweetings}"'
    return _real("movietweetings", options, SHIPPED / "movietweetings.toml", path)


def _real(part: str, options: Options, private: Path, *overrides: str) -> Iterator[Case]:
    plain = CONFIGS / f"{part}.toml"
    yield Case(part, "federated", plain, (*overrides, 'model.item_rates="none"'), _LR, pooled=True)
    item = (*overrides, 'model.item_rates="exact"')
    yield Case(part, "federated, exact item means", plain, item, _LR_ITEM, pooled=True)
    for epsilon in (8.0,) if options.quick else (8.0, 2.0):
        given = (*overrides, f"privacy.epsilon={epsilon}")
        yield Case(part, f"federated, epsilon {epsilon:g}", private, given, against="federated")


def _generated(options: Options) -> Iterator[Case]:
    for users in (_QUICK_USERS,) if options.quick else SIZES:
        many = users == SIZES[-1]
        seeds = SEEDS[:1] if many else SEEDS  # two minutes a run: intervals tell more than seeds there
        size, plain = f"data.generator.users={users}", f"{users:,} users, federated"
        steps = _MANY_PLAIN if many else ()
        yield Case("generated", plain, CONFIGS / "generated.toml", (size, *steps), pooled=many, seeds=seeds)
        for epsilon in (8.0, 2.0) if many else (8.0,):
            given = (size, f"privacy.epsilon={epsilon}", *(_MANY_PRIVATE if many else ()))
            label, config = f"{users:,} users, epsilon {epsilon:g}", CONFIGS / "generated_private.toml"
            yield Case("generated", label, config, given, against=plain, seeds=seeds)


def _labels(options: Options) -> Iterator[Case]:
    """Yields label-only privacy with the settings of no privacy: on MovieTweetings where given, else on MovieLens."""
    part = "movielens" if options.movietweetings is None else "movietweetings"
    path = "data.partners=6" if options.movietweetings is None else f'data.path="{options.movietweetings}"'
    plain, given = CONFIGS / f"{part}.toml", (path, 'model.item_rates="none"')
    yield Case("labels", "federated", plain, given)
    for epsilon in (2.0,) if options.quick else (4.0, 2.0, 1.0):
        label = ('privacy.mode="label"', f"privacy.epsilon={epsilon}", f"privacy.max_impressions_per_user={LABELS}")
        yield Case("labels", f"federated, label epsilon {epsilon:g}", plain, (*given, *label), against="federated")


_CASES = {"movielens": _movielens, "movietweetings": _movietweetings, "generated": _generated, "labels": _labels}


def _run(case: Case, seed: int, options: Options, earlier: dict[str, list[Run]]) -> Run:
    config = _configured(case, seed, options)
    name = "".join(letter if letter.isalnum() else "-" for letter in case.label)
    folder = RunFolder(options.scratch / case.part / name / str(seed))
    metrics = simulate(config, folder, Console(quiet=True))
    score_N: Scores = np.load(folder.root / "scores.npy")
    figures = _figures(case, seed, metrics)
    if case.against:
        other = next(run for run in earlier[case.against] if run.figures["seed"] == seed)
        central = pd.read_parquet(folder.central)
        rows = central[central["evaluate"].to_numpy(bool)]
        gap = paired_difference(
            rows["clicked"], score_N, other.score_N, rows["user"], config.server.bootstrap_samples, seed
        )
        figures["minus_non_private"] = [gap.value, gap.low, gap.high]
    if case.part == "generated":
        figures["oracle_auc"] = oracle(config)
    return Run(figures, score_N)


def _configured(case: Case, seed: int, options: Options) -> Config:
    floors = json.dumps([_LR, "pooled"] if case.pooled else [_LR])
    overrides = [
        *case.overrides,
        f"round.seed={seed}",
        f"privacy.fixed_seed={seed}",
        f"server.floors={floors}",
        f"server.bootstrap_samples={50 if options.quick else 1000}",
        f"server.evaluate_every={_NEVER}",
        "output.report=false",
    ]
    if options.quick:
        overrides += _QUICK_SET
    if options.encoder:
        overrides.append(f'model.encoder="{options.encoder}"')
    if options.validation and case.part == "generated":
        overrides.append(f"data.generator.seed={VALIDATION_GENERATOR_SEED}")
    elif options.validation:
        overrides += training_window(load_config(case.config, overrides), options.scratch / case.part)
    return load_config(case.config, overrides)


def training_window(config: Config, home: Path) -> list[str]:
    """Returns the overrides that put the rows before the test rows in the place of all rows."""
    clicks, card = home / "training-window.parquet", home / "training-window.toml"
    if not clicks.exists():
        log = load_source(config.data)
        train_N = split_rows(log.rows, config.data.split, config.data.test_share).train_N
        rows = log.rows[train_N].reset_index(drop=True)
        home.mkdir(parents=True, exist_ok=True)
        write_clicks(rows, clicks)
        card.write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    return ['data.source="files"', f'data.path="{clicks}"', f'data.card="{card}"']


def _figures(case: Case, seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
    final, floors = metrics["final"], metrics["floors"]
    figures: dict[str, Any] = {
        "seed": seed,
        "auc": final["auc"],
        "auc_interval": final["intervals"]["auc"],
        "uauc": final["uauc"],
        "ne": final["ne"],
        "calibration_ratio": final["calibration_ratio"],
        "rows": final["rows"],
        "users": final["users"],
        "users_trained": metrics["data"]["users_trained"],
        "epsilon": metrics["privacy"]["epsilon"],
        "seconds": metrics["timings"]["total_seconds"],
        "floor": case.floor,
        "floor_auc": floors[case.floor]["auc"],
        "minus_floor": floors[case.floor]["difference"],
    }
    if case.pooled:
        figures["pooled_auc"] = floors["pooled"]["auc"]
        figures["pooled_note"] = floors["pooled"]["note"]
        figures["minus_pooled"] = floors["pooled"]["difference"]
    return figures


def oracle(config: Config) -> float:
    """Returns the AUC of the planted logits over the evaluated rows: every test row of the same split."""
    log, truth = generate_with_truth(config.data.generator)
    test_N = split_rows(log.rows, config.data.split, config.data.test_share).test_N
    return roc_auc(log.rows["clicked"].to_numpy()[test_N], truth.logit_N[test_N])


def _summary(case: Case, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a case's spread over seeds, and the seed of median AUC, whose intervals the tables show."""
    middle = sorted(runs, key=lambda run: run["auc"])[len(runs) // 2]
    summary: dict[str, Any] = {
        "part": case.part,
        "label": case.label,
        "config": str(case.config.relative_to(REPOSITORY)),
        "overrides": [text for text in case.overrides if not text.startswith("data.path")],
        "auc": spread([run["auc"] for run in runs]),
        "median_seed": middle["seed"],
        "runs": list(runs),
    }
    for name in ("minus_floor", "minus_pooled", "minus_non_private"):
        if name in middle:
            summary[name] = spread([run[name][0] for run in runs])
    return summary


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns one table for real clicks and one for generated ones."""
    real = [case for case in result["cases"] if case["part"] != "generated"]
    generated = [case for case in result["cases"] if case["part"] == "generated"]
    found = []
    for title, cases in (("Real clicks", real), ("Generated clicks", generated)):
        if cases:
            found.append(_table(f"{title}, {result['scored']} rows, time split 80/20", cases))
            found[-1].caption = (
                "AUC: median (min to max) over seeds. Intervals: 95 %, users resampled (in pairs for differences), for"
                f" the seed of median AUC. {result['how_settings_were_chosen']}"
            )
    return found


def _table(title: str, cases: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title)
    known = ("oracle",) if cases[0]["part"] == "generated" else ()
    for column in ("", "AUC", "95 % interval", "LR", "minus LR", "minus pooled", "minus non-private", *known):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for case in cases:
        run = next(run for run in case["runs"] if run["seed"] == case["median_seed"])
        low, high = run["auc_interval"]
        name = case["label"] if case["part"] == "generated" else f"{case['part']}: {case['label']}"
        table.add_row(
            name,
            spread_text(case["auc"], 4),
            f"[{low:.3f}, {high:.3f}]",
            f"{run['floor_auc']:.4f}",
            *(_gap(run.get(column)) for column in ("minus_floor", "minus_pooled", "minus_non_private")),
            *([f"{run['oracle_auc']:.4f}"] if known else []),
        )
    return table


def _gap(difference: Sequence[float] | None) -> str:
    if difference is None:
        return ""
    value, low, high = difference
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
