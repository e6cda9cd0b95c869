"""One cell of a sweep: the deployed apps over clicks that all cells share, and the figures that are kept of it.

A finished cell is a folder with `config.toml`, `metrics.json`, `model/`, `scores.npy`, `cell.json`, and its ledgers
where it has its own; the copies of the clicks that its partners trained on are removed.
"""

import json
import math
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from common.clicks import impressions_N
from common.config import Config, DataConfig, load_config
from common.errors import BudgetExhausted, CheckpointError, HushclickError, Stopped
from common.noise_shares import noise_shares
from common.privacy.accounting import epsilon
from common.runfolder import RunFolder, write_json
from simulations.floors import compute_floors
from simulations.partners import PartnerLogs
from simulations.preloaded import FeatureStore, SharedClicks
from simulations.prepare import Progress, RunData, read_data
from simulations.run import simulate
from simulations.spending import read_ledgers
from simulations.sweep_grid import Cell
from simulations.sweep_price import Charges

Record = dict[str, Any]
_FIGURES = ("auc", "log_loss", "ne", "uauc", "calibration_ratio", "rows", "users", "intervals")


@dataclass
class ClicksOnce:
    """The clicks of the last data configuration, as partners hold them and pooled, and their features."""

    progress: Progress | None = None
    store: FeatureStore = field(default_factory=FeatureStore)
    _of: tuple[DataConfig, str, int] | None = None
    _apart: RunData | None = field(default=None, repr=False)
    _together: RunData | None = field(default=None, repr=False)

    def shared(self, cell: Cell) -> SharedClicks:
        """Returns what a cell's run takes in the place of reading."""
        model = cell.config.model
        of = cell.data, model.encoder, model.max_tokens
        if self._apart is None or self._of != of:
            self._apart = self._together = None
            self._apart, self._of = read_data(cell.data, model, self.progress), of
        if not is_pooled(cell):
            return SharedClicks(self._apart, self.store)
        self._together = self._together or together(self._apart)
        return SharedClicks(self._together, self.store)


def is_pooled(cell: Cell) -> bool:
    """Returns whether one holder has everybody's users in a cell."""
    return cell.mode in ("pooled", "none")


def together(apart: RunData) -> RunData:
    """Returns the same clicks at one holder that publishes the partners' published sizes, summed.

    The held-out rows stay as they are, so that slices are those of the partners.
    """
    logs = apart.logs
    training = pd.concat(logs.training).sort_values(["user", "time"], kind="stable").reset_index(drop=True)
    trained = training[impressions_N(training)]
    users = [trained["user"].nunique()]
    facts = apart.facts | {
        "partners": 1,
        "users_per_partner": users,
        "rows_per_partner": [len(trained)],
        "click_rate_per_partner": [float(trained["clicked"].mean())],
        "one_class_partners": int(trained["clicked"].nunique() < 2),
    }
    pooled = PartnerLogs([training], logs.names[:1], logs.central, logs.report)
    return RunData(pooled, (sum(apart.declared_users),), facts, apart.timings)


def run_cell(cell: Cell, root: Path, clicks: ClicksOnce, charges: Charges | None) -> Record:
    """Returns the record of a cell: kept from before, or of a run that is started, or gone on with, now.

    A failure is a record too, so that it costs no other cell; only being stopped ends the sweep.

    Raises:
        CheckpointError: where the folder holds a cell of another configuration.
        Stopped, KeyboardInterrupt: on Ctrl-C.
    """
    kept = kept_record(cell, root)
    if kept is not None:
        return kept
    try:
        return _run(cell, root, clicks, charges)
    except Stopped:
        raise
    except BudgetExhausted as error:
        return _unfinished(cell, "refused", str(error))
    except HushclickError as error:
        return _unfinished(cell, "failed", str(error))
    except Exception as error:  # one broken cell must not cost the others; the whole story is beside it
        root.mkdir(parents=True, exist_ok=True)
        (root / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return _unfinished(cell, "failed", f"{type(error).__name__}; see {root / 'error.txt'}")


def kept_record(cell: Cell, root: Path) -> Record | None:
    """Returns the record of a cell that was done before, or None.

    Raises:
        CheckpointError: where it was done under another configuration, or its record is damaged.
    """
    path = root / "cell.json"
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        mark = record["mark"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: damaged; remove {root} to run this cell again") from None
    if mark != cell.mark:
        raise CheckpointError(
            f"{root} holds this cell under another configuration: give the options of then, or another --out"
        )
    return record


def _unfinished(cell: Cell, state: str, reason: str) -> Record:
    return _identity(cell) | {"state": state, "error": reason}


def _identity(cell: Cell) -> Record:
    return {
        "cell": cell.name,
        "mode": cell.mode,
        "epsilon": cell.epsilon,
        "seed": cell.seed,
        "settings": dict(cell.settings),
        "fixed_seed": cell.config.privacy.fixed_seed is not None,
    }


def _run(cell: Cell, root: Path, clicks: ClicksOnce, charges: Charges | None) -> Record:
    config, folder = cell.config, RunFolder(root.resolve())
    if charges is not None:
        config, folder = charges.charged(cell), charges.folder_of(cell, root.resolve())
    resume = folder.config.exists() and folder.checkpoint.exists()
    if resume:
        config = _under_its_own_budget(config, folder)
    elif charges is not None:
        _require_room(cell, charges)
    if charges is not None and cell.mode == "pooled":
        charges.charge_pooled(cell, root)
    shared = clicks.shared(cell)
    metrics = simulate(config, folder, Console(quiet=True), resume=resume, shared=shared)
    record = _record(cell, config, folder, metrics)
    write_json(root / "cell.json", record)
    return record


def _require_room(cell: Cell, charges: Charges) -> None:
    """Refuses a cell whose whole run does not fit what is left: a part of it would be paid for and show nothing."""
    found = charges.over([cell])
    if found is not None:
        view, comes_to, bound = found
        raise BudgetExhausted(
            f"with this cell the partners' users would be at epsilon {comes_to:.4g} ({view}), the budget is"
            f" {bound:g}; it was not started; raise --budget and go on with --resume"
        )


def _under_its_own_budget(config: Config, folder: RunFolder) -> Config:
    """Returns the configuration with the bound that a started run began with: its partners keep to that."""
    own = load_config(folder.config).privacy.epsilon
    return replace(config, privacy=replace(config.privacy, epsilon=own))


def _record(cell: Cell, config: Config, folder: RunFolder, metrics: Record) -> Record:
    final, rounds = metrics["final"], metrics["rounds"]
    record = _identity(cell) | {"state": "done", "mark": cell.mark}
    record |= {name: final.get(name) for name in _FIGURES}
    record |= {
        "rounds": final["rounds"],
        "failed_rounds": sum(bool(one.get("error")) for one in rounds),
        "steps": final["rounds"] * config.round.local_steps,
        "noise_multiplier": config.privacy.noise_multiplier if cell.mode != "none" else None,
        "noise_of_sum": _noise_of_sum(config, rounds),
        "spent": None if cell.mode == "none" else _spent(config, folder, metrics["run_id"]),
        "delta": config.privacy.delta,
        "seconds": metrics["timings"]["total_seconds"],
    }
    return record


def _noise_of_sum(config: Config, rounds: list[Record]) -> float | None:
    """Returns the noise multiplier that the sum over all partners had in a step (root mean square of the rounds).

    In distributed mode each contribution carries one part of the noise, in local mode the whole.
    """
    if config.privacy.mode == "none" or config.privacy.noise_multiplier is None:
        return None
    counts = [one["contributed"] for one in rounds if one.get("contributed") and not one.get("error")]
    if not counts:
        return None
    return config.privacy.noise_multiplier * math.sqrt(sum(counts) / len(counts) / noise_shares(config))


def _spent(config: Config, folder: RunFolder, run_id: str) -> float:
    """Returns the epsilon of this run alone, by its ledgers, for the partner whose users it cost most."""
    return max(
        epsilon([event for event in events if event.run_id == run_id], config.privacy.delta)
        for events in read_ledgers(config, folder).values()
    )


def floors_of(base: Config, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the floors that cost no training, on the rows that every cell is scored on.

    Args:
        base: whose `server.floors` they are picked from.
        root: a cell's folder in which the partners' clicks still lie.
        say: for progress.
    """
    cheap = tuple(name for name in base.server.floors if name not in ("local_only", "pooled"))
    folder = RunFolder(root.resolve())
    own = load_config(folder.config)
    config = replace(own, server=replace(own.server, floors=cheap))
    return compute_floors(config, folder, say)


def remove_clicks(root: Path) -> None:
    """Removes what a finished cell no longer needs: copies of the clicks, keys, state and checkpoint."""
    folder = RunFolder(root)
    shutil.rmtree(root / "partners", ignore_errors=True)
    for path in (folder.central, folder.checkpoint, *root.glob("unmask.*")):
        path.unlink(missing_ok=True)
