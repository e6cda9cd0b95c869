"""What private statistics bring: AUC with no, exact and private item rates, by epsilon, on MovieTweetings (by time).

Two parts (`--only`). *releases*: the release alone, made by the partners' own code, six partners, and what a pooled
logistic regression makes of it (the model's own features, and 32 components of the text states); its AUC against that
with exact item means and with none is the share that a release recovers. *runs*: whole private runs through `simulate`,
without and with private statistics, at the same total epsilon: what they are worth once training's noise pays for them.

Settings (clip, weights, shrinkage) were chosen on the last fifth of the training window, never on the rows scored here;
`--validation` scores the release part there.

Legend: N rows, F features.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.measuring import REPOSITORY, Options, spread, spread_text
from benchmarks.quality import training_window
from client.statistics import HistogramStep, noised_histogram
from client.training import Randomness
from common.config import Config, load_config
from common.errors import UsageError
from common.features import featurise
from common.histogram import Catalogue, Terms
from common.itemrates import ItemRates, Release
from common.metrics import roc_auc
from common.noise_shares import noise_shares
from common.privacy.calibrate import calibrate_noise
from common.runfolder import RunFolder
from common.textstates import encode_texts
from server.histograms import read_catalogue
from server.noisysums import grid_bits
from simulations.floors import Logs, load_logs
from simulations.prepare import prepare
from simulations.run import simulate

Float = NDArray[np.float64]

CONFIG = REPOSITORY / "simulations" / "configs" / "movietweetings.toml"
EPSILONS = (1.0, 2.0, 4.0, 8.0)
SEEDS = (1, 2, 3)
MODES: tuple[Literal["distributed", "local"], ...] = ("distributed", "local")
RUN_EPSILONS = (2.0, 8.0)
_TEXT_COMPONENTS = 32
_QUICK_SET = (
    "round.num_rounds=1",
    "data.generator.users=80",
    "data.generator.items=40",
    "data.generator.impressions_per_user=8",
    'data.source="generated"',
    "data.partners=4",
)


@dataclass(frozen=True)
class Bench:
    """The rows and base features of one split, made once."""

    config: Config
    logs: Logs
    parts: list[pd.DataFrame] = field(repr=False)  # each partner's training rows
    catalogue: Catalogue = field(repr=False)
    train_NF: Float = field(repr=False)
    test_NF: Float = field(repr=False)
    test_N: NDArray[np.bool_] = field(repr=False)

    def auc(self, train_NF: Float | None = None, test_NF: Float | None = None) -> float:
        """Returns the AUC of a logistic regression on the base features and some more."""
        trained = self.train_NF if train_NF is None else np.hstack([self.train_NF, train_NF])
        scored = self.test_NF if test_NF is None else np.hstack([self.test_NF, test_NF])
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        regression.fit(trained, self.logs.training["clicked"])
        return roc_auc(self.labels, regression.predict_proba(scored)[:, 1])

    @property
    def labels(self) -> NDArray[Any]:
        """Labels of the scored rows."""
        return self.logs.evaluated["clicked"].to_numpy()


def measure(options: Options) -> dict[str, Any]:
    """Returns the AUC of each release, per mode, epsilon and seed, and of whole runs without and with statistics."""
    if options.movietweetings is None and not options.quick:
        raise UsageError("statistics: needs MovieTweetings: --movietweetings DIR")
    parts, seeds = options.only or ("releases", "runs"), SEEDS[:1] if options.quick else SEEDS
    found: dict[str, Any] = {"scored": "validation" if options.validation else "test"}
    if "releases" in parts:
        found |= _releases(options, seeds)
    if "runs" in parts and not options.validation:
        found["runs"] = list(_runs(options, seeds))
    return found


def _releases(options: Options, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the AUC without, with exact and with private item rates, per mode, epsilon and seed of the noise."""
    bench = _bench(options)
    exact = replace(bench.config.model, item_rates="exact")
    frames = (bench.logs.training, np.ones(len(bench.logs.training), bool)), (bench.logs.central, ~bench.test_N)
    exact_train, exact_test = (
        _item_columns(rows, exact, own_N, item_counts=bench.logs.item_counts) for rows, own_N in frames
    )
    none, full = bench.auc(), bench.auc(exact_train.astype(float), exact_test[bench.test_N].astype(float))
    epsilons = EPSILONS[1:2] if options.quick else EPSILONS
    releases = [_released(bench, mode, epsilon, seeds, none, full) for mode in MODES for epsilon in epsilons]
    return {
        "rows": int(bench.test_N.sum()),
        "users_trained": int(bench.logs.training["user"].nunique()),
        "items": len(bench.catalogue.items),
        "none": none,
        "exact": full,
        "exact_popularity": _popularity(bench),
        "delta": bench.config.privacy.delta,
        "releases": releases,
    }


def _bench(options: Options) -> Bench:
    overrides = _overrides(options)
    config = load_config(CONFIG, [*overrides, 'model.item_rates="private"'])
    if options.validation:
        window = training_window(config, options.scratch / "window")
        config = load_config(CONFIG, [*overrides, *window, 'model.item_rates="private"'])
    folder = RunFolder(options.scratch / "prepared")
    config = prepare(config, folder).config
    logs = load_logs(config, folder)
    base, test_N = replace(config.model, item_rates="none"), logs.central["evaluate"].to_numpy(bool)
    dense_train, dense_test = (_dense(logs, rows, base) for rows in (logs.training, logs.central))
    states_train, states_test = _states(logs, logs.training), _states(logs, logs.central)[test_N]
    components = min(_TEXT_COMPONENTS, *states_train.shape)
    text = PCA(components, svd_solver="randomized", random_state=0).fit(states_train)
    return Bench(
        config,
        logs,
        [rows.drop(columns="partner") for _, rows in logs.training.groupby("partner")],
        read_catalogue(folder.catalogue),
        np.hstack([dense_train, text.transform(states_train)]),
        np.hstack([dense_test[test_N], text.transform(states_test)]),
        test_N,
    )


def _overrides(options: Options) -> list[str]:
    overrides = [f'model.encoder="{options.encoder}"'] if options.encoder else []
    if options.quick:
        return [*overrides, *_QUICK_SET]
    return [*overrides, f'data.path="{options.movietweetings}"']


def _states(logs: Logs, rows: pd.DataFrame) -> NDArray[np.float32]:
    encoded = encode_texts(list(rows["text"]), logs.config.model, logs.pretrained)
    return encoded.states_TE[encoded.index_N]


def _dense(logs: Logs, rows: pd.DataFrame, model: Any) -> NDArray[np.float32]:
    encoded = encode_texts(list(rows["text"]), logs.config.model, logs.pretrained)
    return featurise(rows, encoded.index_N, encoded.states_TE, model).dense_NF


def _item_columns(rows: pd.DataFrame, model: Any, own_N: NDArray[np.bool_], **told: Any) -> NDArray[np.float32]:
    """Returns the features of items alone: no text is looked at for them."""
    blank_TE, text_N = np.ones((1, 1), np.float32), np.zeros(len(rows), np.int64)
    return featurise(rows, text_N, blank_TE, model, own_rows_N=own_N, **told).dense_NF[:, -2:]


def _popularity(bench: Bench, strength: float = 5.0) -> float:
    """Returns the AUC of exact shrunk item means, as the floor has it."""
    counts, rate = bench.logs.item_counts, float(bench.logs.training["clicked"].mean())
    count_N2 = np.array([counts.get(item, (0.0, 0.0)) for item in bench.logs.evaluated["item"]])
    return roc_auc(bench.labels, (count_N2[:, 0] + strength * rate) / (count_N2[:, 1] + strength))


def _released(
    bench: Bench, mode: Literal["distributed", "local"], epsilon: float, seeds: Sequence[int], none: float, full: float
) -> dict[str, Any]:
    """Returns one release's figures over seeds of its noise."""
    noise = calibrate_noise(epsilon, bench.config.privacy.delta, 1.0, 1)
    runs = []
    for seed in seeds:
        rates = ItemRates(make_release(bench, mode, noise, seed))
        train = rates.features(bench.logs.training)
        test = rates.features(bench.logs.central, ~bench.test_N)[bench.test_N]
        auc = bench.auc(train.astype(float), test.astype(float))
        runs.append({"seed": seed, "auc": auc, "popularity": roc_auc(bench.labels, rates.rates(bench.logs.evaluated))})
    return {
        "mode": mode,
        "epsilon": epsilon,
        "noise_multiplier": noise,
        "auc": spread([run["auc"] for run in runs]),
        "popularity": spread([run["popularity"] for run in runs]),
        "share": spread([(run["auc"] - none) / (full - none) for run in runs]),
        "runs": runs,
    }


def make_release(bench: Bench, mode: Literal["distributed", "local"], noise: float, seed: int) -> Release:
    """Returns what six partners' own code releases, summed; secure aggregation adds the same whole numbers."""
    config = replace(
        bench.config, privacy=replace(bench.config.privacy, mode=mode), round=replace(bench.config.round, local_steps=1)
    )
    terms, shares = Terms(config.model.prior_click_rate, config.privacy.statistics_clip), noise_shares(config)
    deviation = noise * (len(bench.parts) / shares) ** 0.5
    users = sum(rows["user"].nunique() for rows in bench.parts)
    step = HistogramStep(
        bench.catalogue, terms, 2 ** grid_bits(config.privacy.grid_bits, users, deviation), noise, shares
    )
    total_D = np.zeros(bench.catalogue.length, np.int64)
    for place, rows in enumerate(bench.parts):
        total_D += noised_histogram(lambda rows=rows: rows, step, Randomness(seed, f"partner {place}", 0).noise)  # type: ignore[misc]
    return Release(0, bench.catalogue, terms, step.grid, total_D.reshape(2, -1), deviation)


def _runs(options: Options, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields whole private runs at one total epsilon, without and with private statistics."""
    for epsilon in RUN_EPSILONS[-1:] if options.quick else RUN_EPSILONS:
        for rates in ("none", "private"):
            figures = [_run(options, epsilon, rates, seed) for seed in seeds]
            yield {
                "epsilon": epsilon,
                "item_rates": rates,
                "auc": spread([one["auc"] for one in figures]),
                "runs": figures,
            }


def _run(options: Options, epsilon: float, rates: str, seed: int) -> dict[str, Any]:
    overrides = [
        *_overrides(options),
        f"privacy.epsilon={epsilon}",
        f'model.item_rates="{rates}"',
        f"round.seed={seed}",
        f"privacy.fixed_seed={seed}",
        f"server.floors={json.dumps(['item_popularity'])}",
        "server.bootstrap_samples=0",
        "server.evaluate_every=1000000",
        "output.report=false",
    ]
    folder = RunFolder(options.scratch / f"run-{epsilon:g}-{rates}-{seed}")
    metrics = simulate(load_config(CONFIG, overrides), folder, Console(quiet=True))
    return {
        "seed": seed,
        "auc": metrics["final"]["auc"],
        "epsilon": metrics["privacy"]["epsilon"],
        "statistics": metrics["privacy"]["statistics"],
        "popularity": metrics["floors"].get("private_item_popularity", {}).get("auc"),
        "seconds": metrics["timings"]["total_seconds"],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns a table of releases and one of whole runs."""
    return [*_release_tables(result), *_run_tables(result)]


def _release_tables(result: dict[str, Any]) -> list[Table]:
    if "releases" not in result:
        return []
    table = Table(
        title=f"A release alone, {result['scored']} rows: LR without item rates {result['none']:.4f}, with exact ones"
        f" {result['exact']:.4f}; exact item popularity {result['exact_popularity']:.4f}"
    )
    for column in (
        "mode",
        "epsilon",
        "noise",
        "LR with private rates",
        "share of the exact lift",
        "private popularity",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result["releases"]:
        table.add_row(
            one["mode"],
            f"{one['epsilon']:g}",
            f"{one['noise_multiplier']:.3f}",
            spread_text(one["auc"], 4),
            spread_text(one["share"], 2),
            spread_text(one["popularity"], 4),
        )
    return [table]


def _run_tables(result: dict[str, Any]) -> list[Table]:
    if "runs" not in result:
        return []
    table = Table(title="Whole runs in local mode, statistics within the same total epsilon (a quarter of it)")
    for column in ("epsilon", "item_rates", "AUC"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result["runs"]:
        table.add_row(f"{one['epsilon']:g}", one["item_rates"], spread_text(one["auc"], 4))
    return [table]
