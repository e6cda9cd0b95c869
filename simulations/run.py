"""`hushclick simulate`: the deployed ServerApp and ClientApp on this machine, from one TOML to a report."""

import argparse
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.app import app as client_app
from client.desk import forget_workers
from common.calibration import prior_warning
from common.config import Config, load_config, to_table
from common.errors import BudgetExhausted, CheckpointError, HushclickError, Stopped, UsageError
from common.runfolder import RunFolder, write_json
from server import report_behaviour
from server.app import app as server_app
from server.modelfolder import num_parameters
from server.report import write_report
from server.trackers import require_trackers
from simulations.attackers import attackers_of
from simulations.faults import app as faulty_client_app
from simulations.floors import compute_floors
from simulations.flower import run_in_flower
from simulations.grid import InProcessGrid
from simulations.partners import click_rate, with_click_rate, with_rule
from simulations.preloaded import SharedClicks
from simulations.prepare import prepare, set_round_secrets
from simulations.progress import LiveProgress
from simulations.spending import more_users, privacy_facts, spent_by_round, with_noise


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a simulation and returns its metrics (what `--json` prints)."""
    arguments.out = arguments.out or Path("runs", arguments.config.stem)
    folder = RunFolder(arguments.out.resolve())
    config = load_config(arguments.config, arguments.set)
    console = Console(stderr=True)
    try:
        return simulate(config, folder, console, resume=arguments.resume, engine=arguments.engine)
    except BudgetExhausted:
        if not arguments.json:
            show(read_metrics(folder), arguments)  # it ended early, with a model
        raise


def simulate(
    config: Config,
    folder: RunFolder,
    console: Console,
    *,
    resume: bool = False,
    engine: str = "in-process",
    shared: SharedClicks | None = None,
) -> dict[str, Any]:
    """Trains over simulated partners and returns the metrics, which also lie in the folder with model and report.

    Args:
        config: of the run.
        folder: where it goes.
        console: for progress and complaints.
        resume: go on with the run in the folder.
        engine: "in-process" or "flower".
        shared: clicks that other runs of this process have read and turned into features, for the in-process engine.

    Raises:
        UsageError: when the folder holds a run and `resume` is off.
        BudgetExhausted: when too few partners have budget left; model, metrics and report are there.
        Stopped: on Ctrl-C; the text says how the run goes on.
    """
    try:
        return _simulate(config, folder, console, resume, engine, shared)
    except KeyboardInterrupt:
        if folder.checkpoint.exists():
            mend = f"go on from the last good round with the same command and --resume (--out {folder.root})"
        else:
            mend = "nothing was trained yet; start it again"
        raise Stopped(f"stopped: {mend}") from None


def _simulate(
    config: Config, folder: RunFolder, console: Console, resume: bool, engine: str, shared: SharedClicks | None
) -> dict[str, Any]:
    require_trackers(config.output.trackers)
    started = time.monotonic()
    with LiveProgress(console, config) as progress:
        if resume:
            config, prepared = _resumed(config, folder)
        else:
            _require_fresh(folder)
            preparation = prepare(config, folder, progress.encoding, shared.data if shared else None)
            config, prepared = preparation.config, {"data": preparation.facts, "timings": preparation.timings}
        progress.config = config
        if warning := prior_warning(click_rate(prepared["data"]), config.model.prior_click_rate):
            console.print(warning, style="yellow", markup=False, highlight=False)
        stopped = _run_apps(config, folder, engine, shared)
        trained = time.monotonic()
        metrics = read_metrics(folder)
        floors = compute_floors(config, folder, progress.floor)
    contributions = sum(record["contributed"] for record in metrics["rounds"])
    privacy = privacy_facts(config, folder, contributions)
    metrics |= {"title": config.output.title, "floors": floors, "privacy": privacy}
    _add_epsilon(config, folder, metrics)
    metrics["data"] = prepared["data"]
    if config.privacy.noised:
        size = num_parameters(folder.model)
        metrics["privacy"]["more_users"] = more_users(config, size, prepared["data"]["users_per_partner"])
    metrics["timings"] = (
        prepared["timings"]
        | metrics["timings"]
        | {"floors_seconds": time.monotonic() - trained, "total_seconds": time.monotonic() - started}
    )
    metrics["machine"] = machine_facts(engine)
    if config.simulation.faulty:  # so that nobody takes its figures for those of honest, reachable partners
        metrics["simulation"] = to_table(config.simulation) | {"attacking": sorted(attackers_of(config))}
    write_json(folder.metrics, metrics)
    if config.output.report:
        write_report(folder)
    if stopped:
        raise stopped
    _complain_of_failed_rounds(metrics["rounds"], console)
    return metrics


def _complain_of_failed_rounds(rounds: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Says how many rounds were not aggregated; none at all is a failure of the run.

    Raises:
        HushclickError: when no round was aggregated, so that the final model is the first one.
    """
    failed = [record for record in rounds if record.get("error")]
    if not failed:
        return
    reasons = sorted({reason for record in failed for reason in record.get("failures", {}).values()})
    first = f"round {failed[0]['round']}: {failed[0]['error']}"
    text = f"{len(failed)} of {len(rounds)} rounds were not aggregated; {first}"
    text += f" ({'; '.join(reasons[:3])})" if reasons else ""
    if len(failed) == len(rounds):
        raise HushclickError(f"{text}; the model is as it was at the start")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _require_fresh(folder: RunFolder) -> None:
    # Prepared, yet nothing was asked of a partner: it is simply prepared again.
    spent = folder.shared_ledgers is None and any(folder.ledgers.glob("*.jsonl"))  # shared ones hold other runs
    untouched = not folder.checkpoint.exists() and not spent
    if not untouched or folder.metrics.exists():
        raise UsageError(f"{folder.root} already holds a run: add --resume to go on with it, or give another --out")


def _resumed(config: Config, folder: RunFolder) -> tuple[Config, dict[str, Any]]:
    """Returns the run's own configuration, after checking that the given one does not contradict it."""
    if not folder.config.exists():
        raise CheckpointError(f"{folder.root} holds no run to resume; start it without --resume")
    own = load_config(folder.config)
    try:
        prepared = json.loads(folder.preparation.read_text(encoding="utf-8"))
        facts, timings = dict(prepared["data"]), dict(prepared["timings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder.preparation}: missing or damaged; start again in another folder") from None
    given = with_noise(config)
    if config.data == own.data:
        given = with_click_rate(with_rule(given, facts.get("cut_time")), facts)
    if given != own:
        raise CheckpointError(
            f"{folder.config} differs from the configuration given ({', '.join(differing(given, own))}):"
            f" resume with the same TOML and --set values, or with {folder.config} itself"
        )
    return own, {"data": facts, "timings": timings}


def differing(one: Config, other: Config) -> list[str]:
    """Returns the keys, as table.key, in which two configurations differ."""
    first, second = to_table(one), to_table(other)
    return [
        f"{table}.{key}"
        for table in first
        for key in sorted(first[table].keys() | second[table].keys())
        if first[table].get(key) != second[table].get(key)
    ]


def _run_apps(
    config: Config, folder: RunFolder, engine: str, shared: SharedClicks | None = None
) -> BudgetExhausted | None:
    """Runs the deployed apps to the last round; returns why they ended early, if they did."""
    set_round_secrets(folder, "disk" if engine == "flower" else "memory")
    if engine == "flower":
        return _run_flower(config, folder)
    run_config = {"run-folder": str(folder.root)}
    clients = faulty_client_app if config.simulation.faulty else client_app
    if shared and not config.simulation.faulty:  # an attacking worker is one of its own kind
        shared.place_workers(config, folder)
    try:
        with InProcessGrid(clients, config.data.partners, run_config, config.output.jobs) as grid, _ctrl_c(grid):
            grid.run_server(server_app, run_config)
            grid.raise_if_interrupted()
    except BudgetExhausted as error:
        return error
    finally:
        forget_workers()
    return None


@contextmanager
def _ctrl_c(grid: InProcessGrid) -> Iterator[None]:
    """Turns the first Ctrl-C into a stop at the next exchange; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        grid.interrupt()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_flower(config: Config, folder: RunFolder) -> BudgetExhausted | None:
    folder.metrics.unlink(missing_ok=True)  # Flower ends with 0 when a run fails: what counts is what the server wrote
    log_path = folder.root / "flower.log"
    clients = "simulations.faults:app" if config.simulation.faulty else "client.app:app"
    run_in_flower(config.data.partners, folder.root, log_path, client=clients)
    if not folder.metrics.exists():
        raise HushclickError(f"the run failed inside Flower; its log is {log_path}")
    reason = read_metrics(folder)["stopped"]
    return BudgetExhausted(reason) if reason else None


def read_metrics(folder: RunFolder) -> dict[str, Any]:
    """Returns metrics.json, or raises a `HushclickError` that says what to do."""
    try:
        metrics: dict[str, Any] = json.loads(folder.metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise HushclickError(f"{folder.metrics}: not there or damaged; run the simulation to its end first") from None
    return metrics


def show(metrics: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the table at the end of a run, and where everything lies."""
    console = Console()
    console.print(summary_table(metrics))
    dropped = metrics["data"].get("rows_dropped") or {}
    if dropped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        console.print(f"Rows dropped: {reasons}", markup=False, highlight=False)
    for line in report_behaviour.lines(metrics["final"]):
        console.print(line, markup=False, highlight=False)
    console.print(metrics["privacy"]["sentence"], markup=False, highlight=False)
    report = RunFolder(arguments.out.resolve()).report
    console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)


SHORT = {
    "logistic_regression_item_means": "LR with item means",
    "logistic_regression_private_item_rates": "LR with private statistics",
}


def summary_table(metrics: dict[str, Any]) -> Table:
    """Returns the model and its floors, best AUC first."""
    table = Table(title=f"{escape(metrics['title'])}: the final model beside its floors", box=SIMPLE_HEAD)
    for column in ("", "AUC", "95 % interval", "log loss", "NE", "private"):
        table.add_column(column, justify="left" if column in ("", "private") else "right", no_wrap=True)
    private = {"none": "no", "label": "labels"}.get(metrics["privacy"]["mode"], "yes")
    if metrics["privacy"].get("fixed_seed"):
        private = "labels, seeded" if private == "labels" else "seeded"  # whoever knows the seed can remove the noise
    lines = {"this model": metrics["final"]} | metrics["floors"]
    for name, line in sorted(lines.items(), key=lambda item: -(item[1]["auc"] or 0)):
        low, high = line.get("intervals", {}).get("auc", (None, None))
        table.add_row(
            SHORT.get(name, name.replace("_", " ")),
            _figure(line["auc"]),
            f"[{_figure(low, 3)}, {_figure(high, 3)}]" if low is not None else "",
            _figure(line["log_loss"]),
            _figure(line["ne"]),
            private if name == "this model" else "yes" if line["private"] else "no",
            style="bold" if name == "this model" else None,
        )
    _add_partners_line(table, metrics["final"].get("partners") or {}, private)
    return table


def _add_partners_line(table: Table, found: Mapping[str, Any], private: str) -> None:
    """Adds the model as partners evaluated it, where they did."""
    if "error" in found:
        table.caption = escape(f"Not evaluated at the partners: {found['error']}")
    elif found and not found["certain"]:
        table.caption = "Evaluation at the partners: the rows drown in the noise; no figure can be made of them"
    elif found:
        low, high = found["intervals"].get("auc", (None, None))
        between = f"[{_figure(low, 3)}, {_figure(high, 3)}]"
        shown = (_figure(found["auc"]), between, _figure(found["log_loss"]), _figure(found["ne"]))
        table.add_row("at the partners", *shown, private)


def _figure(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _add_epsilon(config: Config, folder: RunFolder, metrics: dict[str, Any]) -> None:
    """Writes beside each round what the partner that spent most had spent after it."""
    rounds = metrics["rounds"]
    numbers = [record["round"] for record in rounds]
    for record, epsilon in zip(rounds, spent_by_round(config, folder, numbers, metrics["run_id"]), strict=True):
        record["epsilon"] = epsilon


def machine_facts(engine: str) -> dict[str, Any]:
    """Returns what a run was made on, without the machine's name."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "engine": engine,
        **{name: version(name) for name in ("hushclick", "torch", "flwr", "opacus", "transformers")},
    }
