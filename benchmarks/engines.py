"""The in-process grid against Flower's own Ray engine: the same empty apps, client exchanges per second.

Start-up is included on both sides, in two readings: `called` starts either engine from a running Python program, as
`simulate` does; `fresh` gives the in-process grid a new Python process as well, imports included, as Ray's actors have.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.empty_apps import ANSWER, PLAN, run_in_process
from benchmarks.measuring import REPOSITORY, Options, PeakMemory, spread, spread_text
from common.errors import HushclickError
from simulations.flower import run_in_flower

_SIZES = ((10, 10, 3), (100, 10, 3))  # nodes, rounds, repeats
_QUICK = ((4, 2, 1),)


def measure(options: Options) -> dict[str, Any]:
    """Returns exchanges per second, their ratios and peak memory for each size; quick mode leaves Ray out."""
    cases = []
    for nodes, rounds, repeats in _QUICK if options.quick else _SIZES:
        cases.append(compare(options, nodes, rounds, repeats))
    return {"cases": cases}


def compare(options: Options, nodes: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Returns one size's figures; engines take turns, `repeats` times, so that a busy moment hits all of them alike."""
    folder = options.scratch / f"engines-{nodes}-{rounds}"
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(json.dumps({"nodes": nodes, "rounds": rounds}), encoding="utf-8")
    engines: dict[str, Callable[[Path, int], None]] = {"called": run_in_process, "fresh": _fresh_process}
    if not options.quick:
        engines["ray"] = _ray
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            runs[name].append(_timed(engine, folder, nodes))
    figures = {name: _figures(found) for name, found in runs.items()}
    ratios = {
        name: spread([one["seconds"] / other["seconds"] for one, other in zip(runs["ray"], runs[name], strict=True)])
        for name in ("called", "fresh")
        if "ray" in runs
    }
    return {"nodes": nodes, "rounds": rounds, "engines": figures, "faster_than_ray": ratios}


def _timed(engine: Callable[[Path, int], None], folder: Path, nodes: int) -> dict[str, float]:
    """Returns what one run took: wall seconds with start-up, seconds of the rounds alone, exchanges, peak memory."""
    (folder / ANSWER).unlink(missing_ok=True)
    with PeakMemory() as memory:
        started = time.monotonic()
        engine(folder, nodes)
        seconds = time.monotonic() - started
    try:
        answer = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        log = folder / "flower.log"
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""
        raise HushclickError(f"an engine did not finish its rounds\n{tail}") from None
    round_seconds = answer["round_seconds"]
    return {
        "seconds": seconds,
        "exchanges": answer["exchanges"],
        "exchanges_per_second": answer["exchanges"] / seconds,
        "later_round_seconds": sum(round_seconds[1:]) / max(len(round_seconds) - 1, 1),
        "peak_mib_above_start": memory.above_mib,
    }


def _figures(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([one[name] for one in runs]) for name in runs[0]}


def _fresh_process(folder: Path, _nodes: int) -> None:
    run_child(["-m", "benchmarks.empty_apps", str(folder)])


def run_child(arguments: Sequence[str]) -> None:
    """Runs this Python on some arguments in the repository, to its end."""
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=True)


def _ray(folder: Path, nodes: int) -> None:
    # Opacus installs a stray `benchmarks` package: Ray's actors must find this one before it.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), before)))
    try:
        run_in_flower(
            nodes,
            folder,
            folder / "flower.log",
            server="benchmarks.empty_apps:server",
            client="benchmarks.empty_apps:client",
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


_TITLES = {
    "called": "in process, called",
    "fresh": "in process, fresh Python",
    "ray": "Flower's Ray engine",
}


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns one table over all sizes and engines."""
    table = Table(title="Empty clients, start-up included: median (min to max)")
    for column in ("nodes x rounds", "engine", "seconds", "exchanges / s", "a later round, ms", "peak MiB", "ratio"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    for case in result["cases"]:
        for name, figures in case["engines"].items():
            ratio = case["faster_than_ray"].get(name)
            later = {key: value * 1000 for key, value in figures["later_round_seconds"].items()}
            table.add_row(
                f"{case['nodes']} x {case['rounds']}",
                _TITLES[name],
                spread_text(figures["seconds"]),
                spread_text(figures["exchanges_per_second"], 0),
                spread_text(later, 1),
                spread_text(figures["peak_mib_above_start"], 0),
                spread_text(ratio, 1) if ratio else "1" if name == "ray" else "",
            )
    return [table]
