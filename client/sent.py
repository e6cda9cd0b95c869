"""The last contribution of each run that left, on the partner's disk: a retry never draws fresh noise.

Once the round is over, or a user of it asked to be erased, the numbers go and a mark stays: that round of that run was
answered, and is not answered again.

Legend: D parameters.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import LedgerError, ProtocolError
from common.histogram_messages import EvaluationTask, HistogramTask
from common.messages import TrainTask
from common.runfolder import write_atomically

SENT_VERSION = 2  # version 1 had no mark of what is gone, and did not say its version; it is read
_NAMES = "sent-*.safetensors"


@contextmanager
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a partner's state folder against other processes: a round is trained, and answered, once.

    Raises:
        BlockingIOError: where it is held and `wait` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@dataclass(frozen=True)
class _Found:
    """What a file says: the round that was sent last, and what was sent, None where that is gone."""

    run_id: str
    round: int
    task: str
    delta_D: NDArray[Any] | None


class SentFile:
    """The last contribution of one run that left: a retry sends the same bytes and never draws fresh noise.

    Args:
        folder: the partner's state folder.
        run_id: of the run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._run_id = run_id
        self.path = folder / f"sent-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.safetensors"

    def reuse(self, task: TrainTask | HistogramTask | EvaluationTask, shared: bytes) -> NDArray[Any] | None:
        """Returns what was sent for this very task, None for a new one; raises `ProtocolError` for a replay."""
        found = self._read()
        if found is None or found.run_id != self._run_id or found.round < task.round:
            return None
        last_round, answered = found.round, found.task
        if last_round > task.round:
            raise ProtocolError(f"round {task.round} after round {last_round}: a round is answered once")
        if answered != _task_hash(task, shared):
            raise ProtocolError(f"round {task.round} was answered for another model; it is not answered again")
        if found.delta_D is None:
            raise ProtocolError(_gone(task.round))
        return found.delta_D

    def require_kept(self, round_number: int) -> None:
        """Raises `ProtocolError` where this round was answered, and what was sent is gone by now."""
        found = self._read()
        if found is not None and found.round == round_number and found.delta_D is None:
            raise ProtocolError(_gone(round_number))

    def answered(self, round_number: int) -> bool:
        """Whether this round was answered, and would be again; raises `ProtocolError` where that is gone."""
        self.require_kept(round_number)
        found = self._read()
        return found is not None and found.round == round_number

    @property
    def last_round(self) -> int:
        """The round of what was sent last; 0 = nothing yet."""
        found = self._read()
        return found.round if found else 0

    def _read(self) -> _Found | None:
        return _read(self.path)

    def keep(self, task: TrainTask | HistogramTask | EvaluationTask, shared: bytes, delta_D: NDArray[Any]) -> None:
        """Persists a contribution before it leaves."""
        _write(self.path, _Found(task.run_id, task.round, _task_hash(task, shared), delta_D))


def sent_files(folder: Path) -> list[Path]:
    """Returns the files of all runs in a state folder."""
    return sorted(folder.glob(_NAMES))


def round_of(path: Path) -> int | None:
    """Returns the round whose contribution a file of `sent_files` still holds, None where that is gone.

    Raises:
        LedgerError: where the file is damaged.
    """
    found = _read(path)
    return None if found is None or found.delta_D is None else found.round


def forget(path: Path) -> bool:
    """Takes a contribution out of a file of `sent_files`, and leaves the mark; returns whether there was one.

    Raises:
        LedgerError: where the file is damaged.
    """
    found = _read(path)
    if found is None or found.delta_D is None:
        return False
    _write(path, _Found(found.run_id, found.round, found.task, None))
    return True


def _gone(round_number: int) -> str:
    return f"round {round_number} was answered, and what was sent is deleted by now; it is not answered again"


def _read(path: Path) -> _Found | None:
    if not path.exists():
        return None
    version = "1"
    try:
        with safe_open(str(path), framework="numpy") as file:
            facts = file.metadata()
            version = facts.get("version", "1")
            if version not in ("1", str(SENT_VERSION)):
                raise ValueError
            delta_D = file.get_tensor("delta")
        gone = facts.get("gone") == "1"
        return _Found(facts["run_id"], int(facts["round"]), facts["task"], None if gone else np.asarray(delta_D))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        if version not in ("1", str(SENT_VERSION)):
            raise LedgerError(
                f"{path.name}: version {version!r:.20}, and this release reads versions 1 to {SENT_VERSION}; go on"
                " with the release that wrote it, or a later one"
            ) from None
        raise LedgerError(f"{path.name}: damaged; what was sent last is unknown, so nothing more is sent") from None


def _write(path: Path, found: _Found) -> None:
    facts = {"version": str(SENT_VERSION), "run_id": found.run_id, "round": str(found.round), "task": found.task}
    if found.delta_D is None:
        facts["gone"] = "1"
    write_atomically(path, save({"delta": np.zeros(0) if found.delta_D is None else found.delta_D}, facts))


def _task_hash(task: TrainTask | HistogramTask | EvaluationTask, shared: bytes) -> str:
    if isinstance(task, HistogramTask | EvaluationTask):
        return hashlib.sha256(b"".join((task.run_id.encode(), *task.hashes(shared)))).hexdigest()
    digest = hashlib.sha256(repr((task.run_id, task.round, task.fingerprint, task.plan, shared)).encode())
    digest.update(task.model_D.tobytes())
    return digest.hexdigest()
