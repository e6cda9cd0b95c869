"""Small simulations that take a second or few, and a spy on what goes into their secure sums and what comes out.

Legend: D parameters.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import client.worker
import server.secure
from common.config import Config, parse_config
from common.runfolder import RunFolder
from simulations.run import simulate


def small_config(encoder: Path, partners: int, rounds: int, **tables: dict[str, Any]) -> Config:
    """Returns a reproducible run over few users with a tiny model; tables are laid over it, key by key."""
    table: dict[str, dict[str, Any]] = {
        "data": {
            "source": "generated",
            "partners": partners,
            "generator": {"users": 12 * partners, "items": 30, "impressions_per_user": 8},
        },
        "model": {"encoder": f"path:{encoder}", "width": 4, "hidden": 4},
        "round": {"num_rounds": rounds, "local_steps": 1, "learning_rate": 0.05},
        "privacy": {"delta": 1e-4, "sampling_rate": 0.5, "noise_multiplier": 1.0, "epsilon": 500.0, "fixed_seed": 7},
        "server": {"floors": [], "bootstrap_samples": 0},
        "output": {"jobs": 1, "report": False},
    }
    for name, values in tables.items():
        table[name] = table.get(name, {}) | values
    return parse_config(table)


def run(config: Config, folder: Path, **options: Any) -> dict[str, Any]:
    return simulate(config, RunFolder(folder), Console(quiet=True), **options)


class SumSpy:
    """Sees the coded words of every partner before they are masked, and the words of every sum once unmasked.

    Attributes:
        coded: (partner, round) -> uint32 [D], a copy.
        sums: round -> [(names of the survivors, uint32 [D], the same as decoded, in grid steps)], one per group that
            came through.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.coded: dict[tuple[str, int], np.ndarray] = {}
        self.sums: dict[int, list[tuple[frozenset[str], np.ndarray, np.ndarray]]] = {}
        self._masking, self._round, self._third = threading.local(), 0, frozenset[str]()
        self._watch_partners(patch)
        self._watch_server(patch)

    def _watch_partners(self, patch: pytest.MonkeyPatch) -> None:
        mask, encode = client.worker.Worker.mask, client.worker.encode

        def spied_mask(worker: Any, task: Any, work: Any) -> Any:
            self._masking.key = worker.config.name, task.session.round
            return mask(worker, task, work)

        def spied_encode(*arguments: Any) -> Iterator[np.ndarray]:
            pieces = []
            for piece_D in encode(*arguments):
                pieces.append(piece_D.copy())
                yield piece_D  # masked in place
            self.coded[self._masking.key] = np.concatenate(pieces)

        patch.setattr(client.worker.Worker, "mask", spied_mask)
        patch.setattr(client.worker, "encode", spied_encode)

    def _watch_server(self, patch: pytest.MonkeyPatch) -> None:
        aggregator = server.secure.SecureAggregator
        collect, strip, decode = aggregator.collect, aggregator._strip, server.secure.decode

        def spied_collect(own: Any, round_number: int, *arguments: Any, **options: Any) -> Any:
            self._round = round_number
            return collect(own, round_number, *arguments, **options)

        def spied_strip(own: Any, unmasking: Any, outcome: Any) -> None:
            self._third = frozenset(own.roster.member(number).name for number in unmasking.third)
            strip(own, unmasking, outcome)

        def spied_decode(sum_D: np.ndarray, count: int, coding: Any) -> np.ndarray:
            words_D = sum_D.copy()
            decoded_D = decode(sum_D, count, coding)
            self.sums.setdefault(self._round, []).append((self._third, words_D, decoded_D * coding.scale))
            return decoded_D

        patch.setattr(aggregator, "collect", spied_collect)
        patch.setattr(aggregator, "_strip", spied_strip)
        patch.setattr(server.secure, "decode", spied_decode)

    def plain_sum(self, names: frozenset[str], round_number: int) -> np.ndarray:
        """Returns the sum, modulo 2^32, of what these partners coded."""
        total_D: np.ndarray = np.sum([self.coded[name, round_number] for name in names], axis=0, dtype=np.uint32)
        return total_D
