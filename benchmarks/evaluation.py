"""What an evaluation at the partners costs in accuracy: error of AUC by epsilon, bins and clip, against the exact AUC.

One model is trained without privacy on generated clicks; its scores of the rows that six partners hold out go through
the partners' own histogram and noise and the server's own figures, with fresh noise for each seed. The exact AUC is
that of all held-out rows, so that errors hold all there is: noise, ties within bins, the clip and the cap on rows.

Legend: N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import REPOSITORY, Options, spread, spread_text
from client.distributed import noised_sum, rounding_bound
from client.training import Randomness
from common.config import Config, EvaluationConfig, load_config
from common.metrics import roc_auc
from common.noise_shares import noise_shares
from common.privacy.calibrate import calibrate_noise
from common.runfolder import RunFolder
from common.scorehistogram import ScoreTerms, gridded_scores
from server.scorefigures import Scores, partner_figures
from simulations.run import simulate

CONFIG = REPOSITORY / "simulations" / "configs" / "scale.toml"
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
MODES = ("distributed", "local")
BINS = (8, 16, 32, 64, 128)
ROWS_AND_CLIPS = ((4, 2.0), (16, 1.0), (16, 2.0), (16, 4.0), (16, 16.0))
BINS_AND_CLIPS = ((32, 2.0), (64, 4.0))  # by epsilon; the latter are the defaults
SEEDS = range(1, 41)
_DELTA = 1e-5
_PARTNERS = 6
_GRID = 2**16
_HEADS = ("error of AUC", "without noise", "width of interval", "covered", "certain")
_USERS, _QUICK_USERS = 4000, 300


@dataclass(frozen=True)
class HeldOutScores:
    """What all partners hold out, scored: clicks, scores and users, in the order of users and times."""

    config: Config
    clicked_N: NDArray[np.bool_] = field(repr=False)
    score_N: NDArray[np.float64] = field(repr=False)
    user_N: NDArray[np.int64] = field(repr=False)

    @property
    def auc(self) -> float:
        """The exact AUC."""
        return roc_auc(self.clicked_N, self.score_N)

    def latest(self, most: int) -> NDArray[np.bool_]:
        """Returns which rows are among their user's latest so many."""
        from_the_end = pd.Series(self.user_N).groupby(self.user_N, sort=False).cumcount(ascending=False)
        return from_the_end.to_numpy() < most


def measure(options: Options) -> dict[str, Any]:
    """Returns the errors of AUC by epsilon, and by bins, rows and clip at epsilon 1."""
    held_out, seeds = _scored(options), SEEDS[:5] if options.quick else SEEDS
    return {
        "partners": _PARTNERS,
        "users": int(held_out.user_N.max()) + 1,
        "rows": len(held_out.score_N),
        "clicks": int(held_out.clicked_N.sum()),
        "exact_auc": held_out.auc,
        "seeds": len(seeds),
        "by_epsilon": list(_by_epsilon(held_out, seeds)),
        "by_setting": list(_by_setting(held_out, seeds)),
    }


def _scored(options: Options) -> HeldOutScores:
    """Returns the scores of one model that was trained without privacy."""
    users = _QUICK_USERS if options.quick else _USERS
    overrides = [
        'data.source="generated"',
        f"data.generator.users={users}",
        f"data.partners={_PARTNERS}",
        "data.generator.purchase_rate=0.0",
        'privacy.mode="none"',
        "round.num_rounds=4",
        "round.local_steps=25",
        "round.partners_per_round=0",
        "privacy.sampling_rate=0.05",
        "model.width=16",
        "model.hidden=16",
        'server.optimiser="fedavg"',
        "server.learning_rate=1.0",
        "server.evaluate_every=4",
        "privacy.max_local_steps=64",
        "server.floors=[]",
        "server.bootstrap_samples=0",
        "output.report=false",
    ]
    if options.encoder:
        overrides.append(f'model.encoder="{options.encoder}"')
    config, folder = load_config(CONFIG, overrides), RunFolder(options.scratch / "run")
    simulate(config, folder, Console(quiet=True))
    central = pd.read_parquet(folder.central)
    rows = central[central["evaluate"].to_numpy(bool)]
    user_N = pd.factorize(rows["user"])[0].astype(np.int64)
    return HeldOutScores(config, rows["clicked"].to_numpy() == 1, np.load(folder.root / "scores.npy"), user_N)


def _by_epsilon(held_out: HeldOutScores, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    for bins, clip in BINS_AND_CLIPS:
        for mode in MODES:
            for epsilon in EPSILONS:
                found = _errors(held_out, seeds, mode, epsilon, bins, EvaluationConfig().max_rows, clip)
                yield {"mode": mode} | found


def _by_setting(held_out: HeldOutScores, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    for max_rows, clip in ROWS_AND_CLIPS:
        for bins in BINS:
            yield _errors(held_out, seeds, "distributed", 1.0, bins, max_rows, clip)


def _errors(
    held_out: HeldOutScores, seeds: Sequence[int], mode: str, epsilon: float, bins: int, max_rows: int, clip: float
) -> dict[str, Any]:
    """Returns how far AUC is off at one setting, over seeds of the noise, and how far it would be without noise."""
    terms = ScoreTerms(bins, held_out.config.model.prior_click_rate, max_rows, clip)
    noise = calibrate_noise(epsilon, _DELTA, 1.0, 1)
    found = [_figures(held_out, terms, noise, mode, seed) for seed in seeds]
    certain = [one for one in found if one["certain"]]
    bare = _figures(held_out, terms, 0.0, mode, 0)
    errors = [abs(one["auc"] - held_out.auc) for one in certain]
    inside = [low <= bare["auc"] <= high for low, high in (one["noise_intervals"]["auc"] for one in certain)]
    widths = [high - low for low, high in (one["noise_intervals"]["auc"] for one in certain)]
    return {
        "epsilon": epsilon,
        "noise_multiplier": noise,
        "bins": bins,
        "max_rows": max_rows,
        "clip": clip,
        "certain": len(certain),
        "seeds": len(found),
        "error": spread(errors) if errors else None,
        "error_without_noise": bare["auc"] - held_out.auc,
        "width": spread(widths) if widths else None,
        "covered": sum(inside) / len(inside) if inside else None,
    }


def _figures(held_out: HeldOutScores, terms: ScoreTerms, noise: float, mode: str, seed: int) -> dict[str, Any]:
    kept = held_out.latest(terms.max_rows)
    rows = held_out.clicked_N[kept], held_out.score_N[kept], held_out.user_N[kept]
    bound = rounding_bound(terms.length, terms.clip, _GRID)
    shares = noise_shares(_distributed(held_out.config)) if mode == "distributed" else 1
    deviation = noise * (_PARTNERS / shares) ** 0.5  # of all partners' parts together, over the clip
    generator = Randomness(seed, f"benchmark {mode}", 0).noise
    sum_D = noised_sum(lambda: gridded_scores(*rows, terms, bound, _GRID), terms.length, deviation * _GRID, generator)
    return partner_figures(Scores(sum_D.reshape(2, -1) * terms.clip / _GRID, deviation * terms.clip, terms), seed)


def _distributed(config: Config) -> Config:
    return load_config(
        CONFIG,
        [
            f"data.partners={config.data.partners}",
            "round.partners_per_round=0",
            "round.local_steps=1",
            'privacy.mode="distributed"',
        ],
    )


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns a table by epsilon and one by setting."""
    what = (
        f"{result['rows']} rows ({result['clicks']} clicks) of {result['users']} users, AUC {result['exact_auc']:.4f}"
    )
    first = Table(title=f"Error of AUC at the partners by epsilon: {what}; {result['seeds']} draws of the noise")
    for column in ("bins", "clip", "mode", "epsilon", "noise", *_HEADS):
        first.add_column(column, justify="right", no_wrap=True)
    for one in result["by_epsilon"]:
        setting = str(one["bins"]), f"{one['clip']:g}", one["mode"]
        first.add_row(*setting, f"{one['epsilon']:g}", f"{one['noise_multiplier']:.2f}", *_cells(one))
    second = Table(title="The same at epsilon 1, distributed, by bins, rows of a user and clip")
    for column in ("max rows", "clip", "bins", *_HEADS):
        second.add_column(column, justify="right", no_wrap=True)
    for one in result["by_setting"]:
        second.add_row(str(one["max_rows"]), f"{one['clip']:g}", str(one["bins"]), *_cells(one))
    return [first, second]


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        "" if one["error"] is None else spread_text(one["error"], 4),
        f"{one['error_without_noise']:+.4f}",
        "" if one["width"] is None else f"{one['width']['median']:.4f}",
        "" if one["covered"] is None else f"{one['covered']:.0%}",
        f"{one['certain']} of {one['seeds']}",
    )
