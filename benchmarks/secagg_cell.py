"""One cell of the secure-aggregation table, in a process of its own: `python -m benchmarks.secagg_cell CELLS`.

CELLS is a JSON list of cells; the last line of the output is a JSON list with the runs of each. An engine is a module
`benchmarks.secagg_NAME` whose `KINDS` has a function per kind of cell; it prepares inputs, then counts with the meter
only what the measured party does. Parties that are not measured act outside the meter, or in `Elsewhere`.
"""

import ctypes
import gc
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

NUM_MASKS = 10
COLLUDERS = 1  # for which thresholds are made, on every engine that has one
VALUE_BOUND = 0.5
_WARM = 2**16
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Kinds: `generator` (ten masks made), `masks` (ten made and added to a body), `client` (one, a whole round),
    `stream` (the same, of a client that keeps no body) and `server` (a whole round).
    """

    engine: str  # ours, flower, ckks
    kind: str
    length: int  # parameters
    partners: int = 0
    dropped: int = 0  # partners that fall silent when masked vectors are due
    runs: int = 1  # in one process


class Meter:
    """Process CPU seconds, and peak resident memory over `start`, of what happens while it counts.

    `peak_bytes` stays None where the system has no /proc to reset and read the peak.
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.peak_bytes: int | None = None
        self._before = 0
        self._since: float | None = None

    def start(self) -> None:
        """Takes what is resident now (imports, inputs) as the baseline of the peak."""
        gc.collect()
        _give_back()
        self._before = _status_bytes("VmRSS") or 0

    def resume(self) -> None:
        """Starts to count; memory that others have freed goes back to the system first."""
        _give_back()
        if _CLEAR.exists():
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        self._since = time.process_time()

    def pause(self) -> None:
        """Stops counting.

        Raises:
            RuntimeError: when it was not counting.
        """
        now = time.process_time()
        if self._since is None:
            raise RuntimeError("the meter was not counting")
        self.cpu_seconds += now - self._since
        self._since = None
        peak = _status_bytes("VmHWM")
        if peak is not None and _CLEAR.exists():
            self.peak_bytes = max(self.peak_bytes or 0, peak - self._before)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what happens inside."""
        self.resume()
        yield
        self.pause()


def _give_back() -> None:
    """Lets the allocator return free pages, where it can, so that they are not taken for memory in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int | None:
    """Returns a figure of this process's memory from /proc, in bytes."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


class Elsewhere:
    """Calls a function in a forked process: neither its CPU time nor its memory is that of this one.

    Args:
        function: takes and returns what can be pickled; keeps its state between calls.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, self._here, function), daemon=True)
        self._process.start()
        there.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._here.close()
        self._process.join()

    def __call__(self, request: Any) -> Any:
        """Returns the function's answer; EOFError when it raised (its traceback is on stderr)."""
        self._here.send(request)
        return self._here.recv()


def _serve(connection: Any, other_end: Any, function: Callable[[Any], Any]) -> None:
    other_end.close()  # else its end would never be seen here
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(function(request))


def update(length: int, seed: int) -> npt.NDArray[np.float32]:
    """Returns what one client would send: float32, uniform within VALUE_BOUND."""
    values = np.random.default_rng(seed).random(length, dtype=np.float32)
    values -= VALUE_BOUND
    return values


def check_close(found: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, what: str) -> None:
    """Raises RuntimeError when an engine's result is wrong: what it costs would mean nothing then."""
    error = float(np.max(np.abs(np.subtract(found, expected))))
    if not error <= tolerance:
        raise RuntimeError(f"{what}: off by {error:.3g}, allowed {tolerance:.3g}")


def run_cell(cell: Cell) -> list[dict[str, Any]]:
    """Returns CPU seconds, peak bytes and the engine's own facts of each run; a small one goes before."""
    work = importlib.import_module(f"benchmarks.secagg_{cell.engine}").KINDS[cell.kind]
    small = replace(cell, length=min(cell.length, _WARM), partners=min(cell.partners, 4), dropped=min(cell.dropped, 1))
    work(small, Meter())
    runs = []
    for _ in range(cell.runs):
        meter = Meter()
        facts = work(cell, meter)
        runs.append({"cpu_seconds": meter.cpu_seconds, "peak_bytes": meter.peak_bytes, **facts})
    return runs


def cells_to_json(cells: list[Cell]) -> str:
    """Returns cells as this program takes them."""
    return json.dumps([asdict(cell) for cell in cells])


if __name__ == "__main__":
    answer = [run_cell(Cell(**given)) for given in json.loads(sys.argv[1])]
    print("\n" + json.dumps(answer))
