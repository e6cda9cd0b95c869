"""The state after the last good round: one file, replaced as a whole.

Legend: D parameters.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError
from common.runfolder import jsonable, write_atomically

CHECKPOINT_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """All that the next round depends on.

    Attributes:
        run_id: the run's own name, kept over restarts.
        layout: fingerprint of the model's layout, which the partners that join later must have too.
        config_fingerprint: of the effective configuration; another one cannot go on from here.
        round: the last round that is final; 0 = none yet.
        model_D: the global model after it, float32.
        optimiser: the server optimiser's moments, float64 [D] each.
        rounds: the records of the rounds so far, as in metrics.json.
        exhausted: partners whose budget is spent.
        starts: how often the run's server was started before, so that no attempt at a round is made twice.
        course: what `server.course.Course` needs: the mean of models, the best one so far; float64.
    """

    run_id: str
    config_fingerprint: str
    layout: str
    round: int
    model_D: NDArray[np.float32]
    optimiser: dict[str, NDArray[np.float64]]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    exhausted: tuple[str, ...] = ()
    starts: int = 0
    course: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint; a kill or a full disk leaves the one before."""
    facts = {
        "version": CHECKPOINT_VERSION,
        "run_id": checkpoint.run_id,
        "config_fingerprint": checkpoint.config_fingerprint,
        "layout": checkpoint.layout,
        "round": checkpoint.round,
        "rounds": checkpoint.rounds,
        "exhausted": list(checkpoint.exhausted),
        "starts": checkpoint.starts,
    }
    arrays: dict[str, NDArray[Any]] = {"model": checkpoint.model_D}
    arrays |= {f"optimiser.{name}": moment for name, moment in checkpoint.optimiser.items()}
    arrays |= {f"course.{name}": values for name, values in checkpoint.course.items()}
    write_atomically(path, save(arrays, {"facts": json.dumps(jsonable(facts))}))


def load_checkpoint(path: Path, config_fingerprint: str) -> Checkpoint:
    """Returns the checkpoint of a run with this configuration.

    Raises:
        CheckpointError: when there is none, it is damaged, of another version, or of another configuration.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if facts["version"] != CHECKPOINT_VERSION:
            raise CheckpointError(
                f"{path}: version {facts['version']!r:.20}, and this release reads {CHECKPOINT_VERSION}; go on with the"
                " release that wrote it, or start in another folder"
            )
        checkpoint = _checkpoint(facts, arrays)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no checkpoint; start the run without --resume") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        raise CheckpointError(f"{path}: damaged; start again in another folder") from None
    if checkpoint.config_fingerprint != config_fingerprint:
        raise CheckpointError(
            f"{path}: belongs to another configuration; resume with the run's own config.toml,"
            " or start in another folder"
        )
    return checkpoint


def _checkpoint(facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Checkpoint:
    return Checkpoint(
        facts["run_id"],
        facts["config_fingerprint"],
        facts["layout"],
        facts["round"],
        arrays["model"],
        _under("optimiser.", arrays),
        facts["rounds"],
        tuple(facts["exhausted"]),
        facts["starts"],
        _under("course.", arrays),
    )


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
