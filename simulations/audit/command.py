"""`hushclick audit CONFIG`: attacks a configuration's privacy claim and prints what was proved beside it.

Exit codes: 0 nothing was found against the claim, 4 a violation was found.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.config import Config, dump_config, load_config
from common.errors import UsageError
from common.runfolder import RunFolder, jsonable, write_atomically, write_json
from simulations.audit.examine import Examined, examine
from simulations.audit.findings import overall
from simulations.audit.page import write_page
from simulations.audit.subject import subject_of
from simulations.run import machine_facts

AUDIT_VERSION = 1
_VIOLATION = 4  # the exit code
_COLOURS = {"holds": "green", "violation": "bold red", "warning": "yellow", "no verdict": "dim"}


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs every test and returns the result (what `--json` prints), which also lies in `--out`.

    Raises:
        UsageError: for a configuration without privacy, and a folder that holds something else.
        ConfigError: for more canaries than the data can hold.
    """
    arguments.out = arguments.out or Path("runs", f"{arguments.config.stem}-audit")
    folder = RunFolder(arguments.out.resolve())
    config = load_config(arguments.config, arguments.set)
    _require_auditable(config, folder)
    console = Console(stderr=True)
    started = time.monotonic()
    with console.status("reading clicks") as status:

        def say(what: str) -> None:
            status.update(what)
            if not console.is_terminal:
                console.print(what, highlight=False)

        with subject_of(config, say, lambda done, total: status.update(f"encoding texts {done}/{total}")) as subject:
            examined = examine(subject)
            effective, users = subject.config, subject.users
    result = _result(config, effective, examined, users, time.monotonic() - started)
    folder.root.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.config, dump_config(effective).encode())
    write_json(folder.root / "audit.json", result)
    found: dict[str, Any] = jsonable(result)
    write_page(found, examined.curves, folder.report)
    return found


def _require_auditable(config: Config, folder: RunFolder) -> None:
    if config.privacy.mode == "none":
        raise UsageError('privacy.mode = "none": there is no claim to attack; set it to "local" or "distributed"')
    if config.privacy.mode == "label":
        raise UsageError(
            'privacy.mode = "label": the audit attacks clipped gradients and their noise, and this mode has neither;'
            ' its flips are measured by tests/oracles/test_randomised_response.py. Set it to "local" or'
            ' "distributed"'
        )
    if config.simulation.faulty:
        raise UsageError(
            "simulation.dropout_rate or simulation.attackers is set: an audit attacks honest partners; unset them"
        )
    if folder.metrics.exists() or folder.checkpoint.exists():
        raise UsageError(f"{folder.root} holds a run: give the audit another --out")


def _result(config: Config, effective: Config, examined: Examined, users: int, seconds: float) -> dict[str, Any]:
    privacy, findings = effective.privacy, examined.findings
    bounds = [one.lower_bound for one in findings if one.lower_bound is not None]
    claims = [one.claimed_epsilon for one in findings if one.claimed_epsilon is not None]
    return {
        "version": AUDIT_VERSION,
        "title": config.output.title,
        "verdict": overall(findings),
        "lower_bound": max(bounds, default=None),
        "claimed_epsilon": min(claims, default=None),
        "tests": [one.to_dict() for one in findings],
        "privacy": {
            "mode": privacy.mode,
            "unit": privacy.unit,
            "delta": privacy.delta,
            "noise_multiplier": privacy.noise_multiplier,
            "sampling_rate": privacy.sampling_rate,
            "clip": privacy.clip,
            "fixed_seed": config.privacy.fixed_seed is not None,
        },
        "data": {"source": config.data.source, "partners": config.data.partners, "users": users},
        "confidence": effective.audit.confidence,
        "timings": examined.timings | {"total_seconds": seconds},
        "machine": machine_facts("in-process"),
    }


def exit_code(result: dict[str, Any]) -> int:
    """Returns 4 where a violation was found, else 0."""
    return _VIOLATION if result["verdict"] == "violation" else 0


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints one line per test, the verdict, and where the page lies."""
    console = Console()
    table = Table(title=f"{result['title']}: audit", box=SIMPLE_HEAD)
    for column in ("test", "adversary", "proved", "claimed", "verdict"):
        table.add_column(column, justify="right" if column in ("proved", "claimed") else "left", no_wrap=True)
    for one in result["tests"]:
        table.add_row(
            one["test"].partition(": ")[0],  # the adversary has a column of its own
            one["adversary"],
            "" if one["lower_bound"] is None else f"{one['lower_bound']:.2f}",
            "" if one["claimed_epsilon"] is None else f"{one['claimed_epsilon']:.2f}",
            one["verdict"],
            style=_COLOURS[one["verdict"]] if one["verdict"] != "holds" else None,
        )
    console.print(table)
    for one in result["tests"]:
        if one["verdict"] in ("violation", "warning"):
            console.print(f"{one['verdict']}: {one['test']}: {one['says']}", markup=False, highlight=False)
    console.print(sentence(result), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {arguments.out.resolve() / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def sentence(result: dict[str, Any]) -> str:
    """Returns the verdict in one sentence."""
    if result["verdict"] == "violation":
        return "VIOLATION: the claim does not hold; see the tests above."
    if result["verdict"] == "warning":
        return "Warning: no violation is proved, and one test would refute the claim under an assumption."
    if result["verdict"] == "no verdict":
        return "No verdict: no test could have refuted the claim on this data."
    return "Nothing was found against the claim. An audit cannot prove it: it fails to refute it."
