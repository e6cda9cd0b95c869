"""What every benchmark shares: its options, the machine, spread over repeats, and memory with child processes."""

import json
import os
import platform
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("hushclick", "torch", "flwr", "opacus", "transformers", "ray")
_POLL_SECONDS = 0.1
_MIB = 2.0**20


@dataclass(frozen=True)
class Options:
    """What the command line asks of a benchmark."""

    scratch: Path  # run folders go here; the caller deletes it
    quick: bool = False  # a few seconds, to see that it works: its figures mean nothing
    movietweetings: Path | None = None  # a folder with ratings.tsv and movies.tsv
    validation: bool = False  # quality: score the last fifth of the training window, by which settings are chosen
    encoder: str = ""  # in the place of the configured text encoder (tests have a tiny one)
    only: tuple[str, ...] = ()  # quality: these parts; empty = all


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the least, the median and the largest of some repeats, and how many there were."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "repeats": len(values)}


def spread_text(figures: dict[str, float], digits: int = 2) -> str:
    """Returns a spread as `median (min to max)`."""
    return f"{figures['median']:.{digits}f} ({figures['min']:.{digits}f} to {figures['max']:.{digits}f})"


def machine_facts() -> dict[str, Any]:
    """Returns what a figure was measured on, without the machine's name or paths."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load_at_start": round(psutil.getloadavg()[0], 2),
        **{name: version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    """Returns the processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def resident_mib() -> float:
    """Returns the resident memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss / _MIB)


class PeakMemory:
    """Samples the memory of this process and its descendants while it is entered; pages shared by several count once.

    `above_mib` is the peak over what there was at entry, in MiB: what the imports of this process hold is left out.
    """

    def __init__(self) -> None:
        self.above_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0.0

    def __enter__(self) -> Self:
        self._before = _family_mib()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """Takes one sample now."""
        self.above_mib = max(self.above_mib, _family_mib() - self._before)


def _family_mib() -> float:
    """Returns the proportional set size of this process and its descendants (resident size where there is none)."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it ended between listing and reading
            continue
        total += getattr(memory, "pss", 0) or memory.rss
    return total / _MIB


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a benchmark's figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
