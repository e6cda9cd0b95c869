"""A thousand partners in one process: memory after every round, and rounds a minute.

Runs simulations/configs/scale.toml through `simulate` (a hundred partners a round) in two lengths: as shipped, and with
all thousand in every round, shortened. Memory is the resident set of this process when a round ends.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import REPOSITORY, Options, resident_mib, spread, spread_text
from common.config import load_config
from common.runfolder import RunFolder
from simulations.progress import RUN_LOGGER
from simulations.run import simulate

_CONFIG = REPOSITORY / "simulations" / "configs" / "scale.toml"
_CASES: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "all partners every round": ("round.partners_per_round=0", "round.num_rounds=5", 'server.floors=["base_rate"]'),
}
_QUICK_SET = (
    "data.partners=8",
    "data.generator.users=80",
    "data.generator.items=30",
    "round.partners_per_round=4",
    "round.num_rounds=3",
    "server.bootstrap_samples=0",
    'server.floors=["base_rate"]',
)


class RoundWatch(logging.Handler):
    """Notes the time and the resident memory when the partners have joined and when each round ends."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.moments: list[float] = []
        self.resident: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one fact from the server's log."""
        if getattr(record, "fact", {}).get("fact") in ("begun", "round"):
            self.moments.append(time.monotonic())
            self.resident.append(resident_mib())


def measure(options: Options) -> dict[str, Any]:
    """Returns memory per round and rounds a minute for each case."""
    cases = list(_CASES.items())[:1] if options.quick else list(_CASES.items())
    return {"config": "simulations/configs/scale.toml", "cases": [_case(*case, options) for case in cases]}


def _case(label: str, overrides: Sequence[str], options: Options) -> dict[str, Any]:
    extra = ["output.report=false", *(_QUICK_SET if options.quick else ())]
    if options.encoder:
        extra.append(f'model.encoder="{options.encoder}"')
    config = load_config(_CONFIG, [*overrides, *extra])
    watch = RoundWatch()
    logger = logging.getLogger(RUN_LOGGER)
    logger.addHandler(watch)
    before = resident_mib()
    try:
        folder = RunFolder(options.scratch / f"scale-{label.replace(' ', '-')}")
        metrics = simulate(config, folder, Console(quiet=True))
    finally:
        logger.removeHandler(watch)
    seconds = [later - earlier for earlier, later in zip(watch.moments, watch.moments[1:], strict=False)]
    return {
        "label": label,
        "overrides": list(overrides),
        "partners": config.data.partners,
        "partners_per_round": config.round.partners_per_round or config.data.partners,
        "rounds": len(seconds),
        "contributed": [record["contributed"] for record in metrics["rounds"]],
        "resident_mib_before": before,
        "resident_mib_joined": watch.resident[0],
        "resident_mib_after_round": watch.resident[1:],
        "growth_mib_first_to_last_round": watch.resident[-1] - watch.resident[1],
        "round_seconds": spread(seconds),
        "train_seconds_per_round": spread([record["timings"]["train_seconds"] for record in metrics["rounds"]]),
        "evaluate_seconds_total": metrics["timings"]["evaluate_seconds"],
        "rounds_per_minute": 60 * len(seconds) / sum(seconds),
        "total_seconds": metrics["timings"]["total_seconds"],
        "auc": metrics["final"]["auc"],
        "epsilon": metrics["privacy"]["epsilon"],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns one table over the cases."""
    table = Table(title="Partners in one process")
    for column in ("", "partners", "a round", "rounds", "train s", "rounds / min", "RSS MiB", "growth MiB"):
        table.add_column(column, justify="right" if column else "left")
    for case in result["cases"]:
        resident = case["resident_mib_after_round"]
        table.add_row(
            case["label"],
            str(case["partners"]),
            str(case["partners_per_round"]),
            str(case["rounds"]),
            spread_text(case["train_seconds_per_round"], 1),
            f"{case['rounds_per_minute']:.1f}",
            f"{min(resident):.0f} to {max(resident):.0f} (joined: {case['resident_mib_joined']:.0f})",
            f"{case['growth_mib_first_to_last_round']:+.0f}",
        )
    return [table]
