"""Secure aggregation side by side: Hushclick's own, Flower's SecAgg+ and CKKS in TenSEAL, in one run.

Ten masks, one client's whole round and the server's whole round: process CPU time, peak memory over the inputs, bytes
up. Every cell is measured in a fresh process on one thread, engines taking turns; ratios are to ours of the same turn.
What each engine does and leaves out stands in `benchmarks/secagg_ENGINE.py`. TenSEAL is optional.
"""

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence, Set
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from benchmarks.measuring import REPOSITORY, Options, spread
from benchmarks.secagg_cell import Cell, cells_to_json
from benchmarks.secagg_plot import write_plot as plot
from benchmarks.secagg_tables import tables
from common.errors import HushclickError

__all__ = ["measure", "plot", "tables"]

OURS, FLOWER, CKKS = "ours", "flower", "ckks"
_SIZES = (100_000, 1_000_000)
_PARTNERS = (4, 10, 100)
_TURNS = 3
_LOG_CHARACTERS = 2000
_WITHOUT_TENSEAL = "CKKS is left out: TenSEAL is not installed here (python -m pip install tenseal==0.3.18)"

Group = list[Cell]  # what one process measures
Case = tuple[list[Group], int]  # what is measured one after the other, and how often
Turn = list[tuple[Cell, list[dict[str, Any]]]]  # the cells of one turn with their runs


def measure(options: Options) -> dict[str, Any]:
    """Returns every cell's figures; quick mode has one tiny size and all engines that are there."""
    skipped = [] if has_tenseal() else [_WITHOUT_TENSEAL]
    packages = ("cryptography", "numpy", "flwr", *(() if skipped else ("tenseal",)))
    cases = _quick_plan() if options.quick else _plan()
    return {
        "cells": figures(_in_turns(cases, {CKKS} if skipped else set())),
        "skipped": skipped,
        "packages": {name: version(name) for name in packages},
    }


def has_tenseal() -> bool:
    """Returns whether the optional TenSEAL is installed."""
    return importlib.util.find_spec("tenseal") is not None


def _plan() -> list[Case]:
    """Returns all cases; those that take minutes are measured once."""
    most, large = max(_PARTNERS), 10_000_000
    cases = [
        ([[Cell(engine, kind, length, runs=5)] for engine in (OURS, FLOWER)], _TURNS)
        for length, kind in itertools.product((1_000_000, large), ("generator", "masks"))
    ]
    for length, partners in itertools.product(_SIZES, _PARTNERS):
        cases.append((_side_by_side("client", length, partners), _TURNS))
        for dropped in (0, num_dropped(partners)):
            servers = _side_by_side("server", length, partners, dropped)
            beyond = length == max(_SIZES) and partners == most
            cases.append((servers[:1] if beyond else servers, 1 if partners == most else _TURNS))
    for partners in _PARTNERS:
        cases.append(([[_ours("client", large, partners)]], _TURNS))
        cases += [([[_ours("server", large, partners, dropped, 1)]], 1) for dropped in (0, num_dropped(partners))]
    return [*cases, *(([[_ours(kind, 100_000_000, 10)]], 1) for kind in ("client", "stream"))]


def _ours(kind: str, length: int, partners: int, dropped: int = 0, runs: int = 3) -> Cell:
    return Cell(OURS, kind, length, partners, dropped, runs)


def _side_by_side(kind: str, length: int, partners: int, dropped: int = 0) -> list[Group]:
    """Returns one cell per engine, ours first; Flower shares secrets among a hundred partners once in a process."""
    runs = {OURS: 5, FLOWER: 1 if partners == max(_PARTNERS) else 3, CKKS: 1}
    return [[Cell(engine, kind, length, partners, dropped, count)] for engine, count in runs.items()]


def _quick_plan() -> list[Case]:
    """Returns one case with a group per engine: few processes start."""
    length, partners = 2_000, 4
    groups = []
    for engine in (OURS, FLOWER, CKKS):
        group = [] if engine == CKKS else [Cell(engine, kind, length) for kind in ("generator", "masks")]
        group.append(Cell(engine, "client", length, partners))
        group += [Cell(engine, "server", length, partners, dropped) for dropped in (0, num_dropped(partners))]
        groups.append(group)
    groups[0].append(_ours("stream", length, partners, runs=1))
    return [(groups, 1)]


def num_dropped(partners: int) -> int:
    """Returns how many are a fifth, one at least."""
    return max(1, partners // 5)


def _in_turns(cases: Sequence[Case], left_out: Set[str]) -> list[Turn]:
    """Returns what was measured in each turn; a later turn has only the cases that are measured so often."""
    found: list[Turn] = []
    for turn in range(max(turns for _, turns in cases)):
        groups = [group for case, turns in cases if turn < turns for group in case if group[0].engine not in left_out]
        found.append([pair for group in groups for pair in zip(group, in_fresh_process(group), strict=True)])
    return found


def in_fresh_process(cells: Sequence[Cell]) -> list[list[dict[str, Any]]]:
    """Returns the runs of each cell, measured in one new Python process on one thread.

    Raises:
        HushclickError: when it fails, with the end of what it wrote.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.secagg_cell", cells_to_json(list(cells))],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise HushclickError(f"{cells[0]} failed\n{done.stderr[-_LOG_CHARACTERS:]}")
    answer: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def figures(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Returns one entry per cell: spreads over all runs, and over turns of the ratio of its CPU time to ours."""
    medians = [
        {cell: statistics.median(run["cpu_seconds"] for run in runs) for cell, runs in measured} for measured in turns
    ]
    found: dict[Cell, list[dict[str, Any]]] = {}
    for measured in turns:
        for cell, runs in measured:
            found.setdefault(cell, []).extend(runs)
    ours = {_place(cell): cell for cell in found if cell.engine == OURS}
    entries = []
    for cell, runs in found.items():
        own = ours.get(_place(cell), cell)
        ratios = [turn[cell] / turn[own] for turn in medians if cell in turn and own in turn]
        peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
        entries.append(
            {
                **{name: value for name, value in asdict(cell).items() if name != "runs"},
                "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
                "times_ours": spread(ratios) if cell.engine != OURS and ratios else None,
                "peak_bytes": spread(peaks) if peaks else None,
                "bytes_up": max((run["bytes_up"] for run in runs if "bytes_up" in run), default=None),
            }
        )
    return entries


def _place(cell: Cell) -> tuple[str, int, int, int]:
    return cell.kind, cell.length, cell.partners, cell.dropped
