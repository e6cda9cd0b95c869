"""Experiment trackers: what metrics.json holds of a run, told to TensorBoard, Weights & Biases or MLflow as well.

All of them write into the run folder, `trackers/NAME/`, and nothing goes over the network: sending it anywhere is a
command of theirs, to be given by hand. A tracker is told numbers of the server's own records and the configuration
without paths and what removes noise (`round.seed` is public); no row, no score and no name of a partner.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from common.config import Config, to_table
from common.errors import ConfigError
from server.tracker_kinds import MlflowTracker, TensorboardTracker, WandbTracker

log = logging.getLogger("hushclick.trackers")

_NEEDS = {  # modules that each needs, and what pip calls them
    "tensorboard": (("tensorboard",), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "mlflow-skinny sqlalchemy alembic"),
}
# Where things lie; what removes noise, or tells who is held out.
_LEFT_OUT = ("data.path", "data.card", "model.cache", "privacy.fixed_seed", "evaluation.key")
_OF_THE_END = ("final", "privacy", "timings", "data")
# Before any of them is imported: neither usage statistics nor crash reports.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}


class Tracker(Protocol):
    """One way of keeping a run's numbers. Any exception is caught by `Trackers`."""

    def begin(self, folder: Path, name: str, params: Mapping[str, str]) -> None:
        """Starts a record in a folder of its own, with the configuration as key -> value."""

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Takes in the figures of one round."""

    def finish(self, number: int, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Takes in the figures and sentences of the end, after so many rounds, and closes the record."""


_KINDS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


def require_trackers(names: Sequence[str]) -> None:
    """Raises `ConfigError` with the pip command where a tracker that is asked for is not installed."""
    for name in names:
        modules, packages = _NEEDS[name]
        if any(find_spec(module) is None for module in modules):
            raise ConfigError(
                f'output.trackers = ["{name}"]: not installed here; run `python -m pip install {packages}`, or take it'
                " out of output.trackers"
            )


class Trackers:
    """Those that a run asks for. One that fails is named once in the log, and told nothing more: the run goes on."""

    def __init__(self, config: Config, folder: Path, run_id: str, starts: int) -> None:
        names = config.output.trackers
        require_trackers(names)
        os.environ.update(_QUIET if names else {})
        self._open: dict[str, Tracker] = {name: _KINDS[name]() for name in names}
        # A run that was started again is a record of its own, which begins with the rounds that were there.
        start = f"{run_id}-{starts}"
        params = _params(config) | {"run_id": run_id}
        for name, tracker in list(self._open.items()):
            beside, title = folder / "trackers" / name / start, config.output.title
            self._guarded(name, lambda each=tracker, at=beside, of=title: each.begin(at, of, params))  # type: ignore[misc]

    def round(self, record: Mapping[str, Any]) -> None:
        """Tells a round's record, as metrics.json has it."""
        if self._open:
            number, figures = int(record["round"]), flat(record)
            figures.pop("round", None)
            for name, tracker in list(self._open.items()):
                self._guarded(name, lambda each=tracker: each.round(number, figures))  # type: ignore[misc]

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Tells how the run ended, as metrics.json has it."""
        if not self._open:
            return
        ended = {name: metrics[name] for name in _OF_THE_END if isinstance(metrics.get(name), Mapping)}
        texts = {"privacy": str(ended["privacy"].get("sentence", "")), "stopped": str(metrics.get("stopped") or "")}
        texts = {name: text for name, text in texts.items() if text}
        for name, tracker in list(self._open.items()):
            self._guarded(
                name,
                lambda each=tracker: each.finish(len(metrics["rounds"]), flat(ended), texts),  # type: ignore[misc]
            )

    def _guarded(self, name: str, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # whatever somebody else's package does, the run is worth more
            del self._open[name]
            log.warning("tracker %s failed and is told nothing more; the run goes on: %s", name, _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def flat(record: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Returns the finite numbers in nested tables as a/b/c -> value; bounds of an interval end in low and high.

    Lists are left out, as are texts and what is true or false.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}/")
        elif before.endswith("intervals/") and isinstance(value, Sequence) and len(value) == 2:
            found |= flat({"low": value[0], "high": value[1]}, f"{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = float(value)
    return found


def _params(config: Config) -> dict[str, str]:
    """Returns the configuration as table.key -> value, without where things lie on this machine."""
    found = _dotted(to_table(config))
    encoder = config.model.encoder
    found["model.encoder"] = "path:" if encoder.startswith("path:") else encoder
    return {key: value for key, value in found.items() if key not in _LEFT_OUT}


def _dotted(table: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in table.items():
        found |= _dotted(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": str(value)}
    return found
