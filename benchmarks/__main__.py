"""`python -m benchmarks [NAME ...] [--out DIR] [--quick]`: measures, prints tables, writes DIR/NAME.json.

Quality of some parts only (`--only PART`) is written to DIR/quality-PART.json; secagg also draws DIR/secagg.html.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several clients share the cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.measuring import Options, machine_facts, write_result
from common.errors import HushclickError
from common.runfolder import jsonable

NAMES = (
    "text_cache",
    "engines",
    "scale",
    "quality",
    "model",
    "secagg",
    "privacy",
    "steps",
    "overlap",
    "deployed",
    "statistics",
    "evaluation",
    "audit",
)
PARTS = ("movielens", "movietweetings", "generated", "labels")  # of quality; the last only where it is named
STATISTICS_PARTS = ("releases", "runs")
MODEL_PARTS = ("head", "lora", "adalora", "adapter", "prefix", "prompt", "top_layers", "full", "steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or that of the first benchmark that could not run; the others still run."""
    given = _parser().parse_args(arguments)
    code = 0
    for name in given.names or NAMES:
        try:
            run(name, given)
        except HushclickError as error:
            Console(stderr=True).print(f"{name}: {error}", highlight=False, soft_wrap=True)
            code = code or error.exit_code
    return code


def run(name: str, given: argparse.Namespace) -> None:
    """Runs one benchmark, prints its tables and writes its JSON."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    machine, started = machine_facts(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hushclick-benchmark-") as scratch:
        result = benchmark.measure(
            Options(Path(scratch), given.quick, given.movietweetings, given.validation, only=tuple(given.only))
        )
    result = {
        "benchmark": name,
        "quick": given.quick,
        "machine": machine,
        "total_seconds": time.monotonic() - started,
        **result,
    }
    path = given.out / ("-".join([name, *(given.only if name == "quality" else ())]) + ".json")
    write_result(path, jsonable(result))
    if hasattr(benchmark, "plot"):
        benchmark.plot(result, path.with_suffix(".html"))
    console = Console(width=200)
    for table in benchmark.tables(result):
        console.print(table)
    cores, cpu, gpu = machine["cores"], machine["cpu"], machine["gpu"] or "no GPU"
    console.print(f"{cpu}, {cores} cores, {gpu}; {result['total_seconds']:.0f} s; {path}\n")


def _parser() -> argparse.ArgumentParser:
    shared = os.environ.get("HUSHCLICK_SHARED_DATA", "")
    folder = Path(shared, "movietweetings100k")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--out", type=Path, default=Path("runs", "benchmarks"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="small and short; the figures mean nothing")
    parser.add_argument(
        "--movietweetings",
        type=Path,
        metavar="DIR",
        default=folder if shared and folder.is_dir() else None,
        help="ratings.tsv and movies.tsv (default: HUSHCLICK_SHARED_DATA/movietweetings100k, where it is there)",
    )
    parts = (*PARTS, *STATISTICS_PARTS, *MODEL_PARTS)
    parser.add_argument("--only", nargs="+", choices=parts, default=(), help="parts of quality, statistics or model")
    parser.add_argument(
        "--validation", action="store_true", help="quality: score the last fifth of the training window instead"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
