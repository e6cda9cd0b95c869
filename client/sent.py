"""The last contribution of each run that left, on the partner's disk: a retry never draws fresh noise.

Legend: D parameters.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import LedgerError, ProtocolError
from common.messages import TrainTask
from common.runfolder import write_atomically


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a partner's state folder against other processes: a round is trained, and answered, once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class SentFile:
    """The last contribution of one run that left: a retry sends the same bytes and never draws fresh noise."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._run_id = run_id
        self.path = folder / f"sent-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.safetensors"

    def reuse(self, task: TrainTask, shared: bytes) -> NDArray[Any] | None:
        """Returns what was sent for this very task, None for a new one; raises `ProtocolError` for a replay."""
        found = self._read()
        if found is None:
            return None
        last_round, same_run, answered, delta_D = found
        if not same_run or last_round < task.round:
            return None
        if last_round > task.round:
            raise ProtocolError(f"round {task.round} after round {last_round}: a round is answered once")
        if answered != _task_hash(task, shared):
            raise ProtocolError(f"round {task.round} was answered for another model; it is not answered again")
        return delta_D

    @property
    def last_round(self) -> int:
        """The round of what was sent last; 0 = nothing yet."""
        found = self._read()
        return found[0] if found else 0

    def _read(self) -> tuple[int, bool, str, NDArray[Any]] | None:
        """Returns round, whether it is this run, task hash and update of what was sent last."""
        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="numpy") as file:
                facts, delta_D = file.metadata(), file.get_tensor("delta")
            return int(facts["round"]), facts["run_id"] == self._run_id, facts["task"], np.asarray(delta_D)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise LedgerError(
                f"{self.path.name}: damaged; what was sent last is unknown, so nothing more is sent"
            ) from None

    def keep(self, task: TrainTask, shared: bytes, delta_D: NDArray[Any]) -> None:
        """Persists a contribution before it leaves."""
        facts = {"run_id": task.run_id, "round": str(task.round), "task": _task_hash(task, shared)}
        write_atomically(self.path, save({"delta": delta_D}, facts))


def _task_hash(task: TrainTask, shared: bytes) -> str:
    digest = hashlib.sha256(repr((task.run_id, task.round, task.fingerprint, task.plan, shared)).encode())
    digest.update(task.model_D.tobytes())
    return digest.hexdigest()
