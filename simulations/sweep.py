"""`hushclick sweep`: utility against epsilon over seeds, local against distributed against pooled, with intervals.

Every cell is a whole run of the deployed apps (`simulations.run.simulate`); only the reading of clicks is shared. Cells
that are done stay in `OUT/cells`, and `--resume` goes on with the others. On private clicks all cells are charged to
one ledger per partner, in `OUT/ledgers`.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common.config import Config, dump_config, load_config
from common.errors import BudgetExhausted, CheckpointError, HushclickError, Stopped, UsageError
from common.runfolder import jsonable, write_atomically, write_json
from simulations.run import differing, machine_facts
from simulations.sweep_cells import ClicksOnce, Record, floors_of, kept_record, remove_clicks, run_cell
from simulations.sweep_figures import INTERVAL, lines_of
from simulations.sweep_grid import Cell, Grid, make_cells, make_grid
from simulations.sweep_page import write_page
from simulations.sweep_price import Charges, is_private, require_chargeable, require_no_budget, why_free
from simulations.sweep_progress import SweepProgress
from simulations.sweep_table import say_result

EPSILONS = (1.0, 3.0, 8.0)
SEEDS = 5
_STATES = ("done", "failed", "refused")


@dataclass(frozen=True)
class Sweep:
    """What is to be run, where, and who pays.

    Attributes:
        root: the folder of the sweep.
        base: the configuration that all cells start from.
        grid: as asked for.
        cells: all of them.
        charges: None where nothing is charged.
    """

    root: Path
    base: Config
    grid: Grid
    cells: tuple[Cell, ...]
    charges: Charges | None

    @property
    def page(self) -> Path:
        """The page of the result."""
        return self.root / "sweep.html"

    def home(self, cell: Cell) -> Path:
        """Returns the folder of a cell."""
        return self.root / "cells" / cell.name


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the cells that are not done yet and returns what all came to; also in OUT/sweep.json and OUT/sweep.html.

    Raises:
        UsageError, ConfigError: for a grid or a cell that is refused; nothing was run.
        BudgetExhausted: where private clicks cannot pay for all cells; what is done is kept and shown.
        HushclickError: where cells failed; what is done is kept and shown.
        Stopped: on Ctrl-C.
    """
    arguments.out = arguments.out or Path("runs", f"{arguments.config.stem}-sweep")
    sweep = _plan(arguments)
    _begin(sweep, arguments.resume)
    console = Console(stderr=True)
    started = time.monotonic()
    console.print(_announcement(sweep), markup=False, highlight=False, soft_wrap=True)
    records: list[Record] = []
    floors: dict[str, Any] = {}
    try:
        _run_all(sweep, console, records, floors)
    except (KeyboardInterrupt, Stopped):
        _write(sweep, _result(sweep, records, floors, time.monotonic() - started))
        mend = f"go on with the same command and --resume (--out {sweep.root})"
        raise Stopped(f"stopped after {len(records)} of {len(sweep.cells)} cells: {mend}") from None
    result = _result(sweep, records, floors, time.monotonic() - started)
    _write(sweep, result)
    _complain(result, arguments)
    return result


def _plan(arguments: argparse.Namespace) -> Sweep:
    """Returns the sweep that the command line asks for, every configuration of it checked."""
    base = load_config(arguments.config, arguments.set)
    private = is_private(base)
    if not private:
        require_no_budget(base, arguments.budget)
    modes = arguments.modes or ("local", "distributed", "pooled", *(() if private else ("none",)))
    grid = make_grid(
        arguments.config,
        arguments.set,
        modes,
        EPSILONS if arguments.epsilon is None else arguments.epsilon,
        SEEDS if arguments.seeds is None else arguments.seeds,
        arguments.vary,
        arguments.set_for,
    )
    cells = tuple(make_cells(grid, base))
    if not private:
        return Sweep(arguments.out, base, grid, cells, None)
    require_chargeable(base, cells)
    charges = Charges(base, (arguments.out / "ledgers").resolve(), arguments.budget)
    return Sweep(arguments.out, base, grid, cells, charges)


def _begin(sweep: Sweep, resume: bool) -> None:
    """Takes the folder, or checks that it is this sweep's.

    Raises:
        UsageError: for a folder that holds something else, or a sweep where `resume` is off.
        CheckpointError: for a sweep of another configuration.
        BudgetExhausted: where a new sweep would not fit the budget.
    """
    path = sweep.root / "sweep.toml"
    if path.is_file():
        if not resume:
            raise UsageError(f"{sweep.root} already holds a sweep: add --resume to go on with it, or another --out")
        own = load_config(path)
        if own != sweep.base:
            raise CheckpointError(
                f"{path} differs from the configuration given ({', '.join(differing(sweep.base, own))}): resume with"
                " the same TOML and --set values, or give another --out"
            )
        for cell in sweep.cells:
            kept_record(cell, sweep.home(cell))
        return
    if any((sweep.root / name).exists() for name in ("config.toml", "checkpoint.safetensors", "cells", "ledgers")):
        raise UsageError(f"{sweep.root} holds something else, such as a run: give another --out")
    if resume:
        raise CheckpointError(f"{sweep.root} holds no sweep to resume; start it without --resume")
    if sweep.charges:
        sweep.charges.require_affordable(sweep.cells)
    write_atomically(path, dump_config(sweep.base).encode())


def _announcement(sweep: Sweep) -> str:
    """Returns how much is to be run, and what it will cost whom."""
    left = [cell for cell in sweep.cells if kept_record(cell, sweep.home(cell)) is None]
    text = f"{len(sweep.cells)} runs, {len(left)} to go. "
    if sweep.charges is None:
        return text + f"Nothing is charged: {why_free(sweep.base)}."
    spent = {view: _figure(value) for view, value in sweep.charges.epsilons().items()}
    planned = {view: _figure(value) for view, value in sweep.charges.epsilons(left).items()}
    figures = "; ".join(f"{view}: {spent[view]} spent, {planned[view]} at the end" for view in planned)
    return text + (
        f'Private clicks (data.source = "{sweep.base.data.source}"): every run is charged to its partners\' users, all'
        f" runs to one ledger per partner. Epsilon (PLD, delta {sweep.charges.policy.delta:g}) against the {figures};"
        f" the budget is {sweep.charges.policy.epsilon:g}."
    )


def _figure(epsilon: float) -> str:
    return f"{epsilon:.4g}" if epsilon < float("inf") else "infinite"


def _run_all(sweep: Sweep, console: Console, records: list[Record], floors: dict[str, Any]) -> None:
    """Fills `records` cell by cell, and `floors` once the first is done."""
    with SweepProgress(console, len(sweep.cells)) as progress:
        clicks = ClicksOnce(progress.encoding)
        for cell in sweep.cells:
            progress.begin(cell)
            records.append(run_cell(cell, sweep.home(cell), clicks, sweep.charges))
            floors.update(floors or _floors(sweep, cell, records[-1], progress.say))
            if records[-1]["state"] == "done":
                remove_clicks(sweep.home(cell))
            progress.done(records[-1])


def _floors(sweep: Sweep, cell: Cell, record: Record, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the floors: kept ones, or those over the clicks of a cell that was just done."""
    path = sweep.root / "floors.json"
    if len({cell.data for cell in sweep.cells}) > 1:  # each value of a varied data.KEY would have floors of its own
        return {}
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    if record["state"] != "done" or not (sweep.home(cell) / "central.parquet").is_file():
        return {}
    found = floors_of(sweep.base, sweep.home(cell), say)
    write_json(path, found)
    return found


def _result(sweep: Sweep, records: Sequence[Record], floors: dict[str, Any], seconds: float) -> dict[str, Any]:
    counts = Counter(record["state"] for record in records)
    base = sweep.base
    found: dict[str, Any] = jsonable(
        {
            "title": base.output.title,
            "data": {
                "source": base.data.source,
                "private": sweep.charges is not None,
                "partners": base.data.partners,
                "partition": base.data.partition,
                "split": base.data.split,
            },
            "grid": {
                "modes": sweep.grid.modes,
                "epsilons": sweep.grid.epsilons,
                "seeds": sweep.grid.seeds,
                "vary": sweep.grid.vary,
                "set": sweep.grid.overrides,
                "set_for": sweep.grid.settings,
            },
            "interval": INTERVAL,
            "unit": base.privacy.unit,
            "delta": base.privacy.delta,
            "accountant": "PLD",
            "fixed_seed": base.privacy.fixed_seed is not None,
            "states": {state: counts[state] for state in _STATES},
            "left": len(sweep.cells) - len(records),
            "price": _price(sweep),
            "lines": lines_of(records),
            "floors": floors,
            "cells": list(records),
            "machine": machine_facts("in-process"),
            "timings": {"total_seconds": seconds},
        }
    )
    return found


def _price(sweep: Sweep) -> dict[str, Any]:
    """Returns who paid what for the sweep so far."""
    if sweep.charges is None:
        return {"charged": False, "why": why_free(sweep.base)}
    return {
        "charged": True,
        "why": "private clicks: all cells are charged to one ledger per partner",
        "budget": sweep.charges.policy.epsilon,
        "spent": sweep.charges.epsilons(),
        "releases": {name: len(events) for name, events in sweep.charges.spent().items()},
        "ledgers": "ledgers",
    }


def _write(sweep: Sweep, result: dict[str, Any]) -> None:
    write_json(sweep.root / "sweep.json", result)
    write_page(result, sweep.page)


def _complain(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Raises where not every cell is done, after showing what is."""
    states, total = result["states"], len(result["cells"])
    if states["done"] == total:
        return
    if not arguments.json and states["done"]:
        show(result, arguments)
    reasons = dict.fromkeys(record["error"] for record in result["cells"] if record["state"] != "done")
    first = "; ".join(list(reasons)[:3])
    if states["refused"]:
        text = f"{states['refused']} of {total} cells refused by the budget, {states['failed']} failed: {first}"
        raise BudgetExhausted(text)
    raise HushclickError(f"{states['failed']} of {total} cells failed: {first}; --resume tries them again")


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the table, what was paid, and where everything lies."""
    say_result(Console(), result, arguments.out / "sweep.html")
