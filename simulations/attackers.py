"""Partners that attack: the deployed worker, honest up to and with its private training, then a changed contribution.

    boost       the update times `attack_factor`: one partner drags the mean its way
    sign_flip   the update times -`attack_factor`: the mean unlearns
    label_flip  trained honestly on a log whose every label is the opposite
    nan         an update of NaN: honest code refuses to send it without differential privacy, and counts it 0 with
    garbage     uniformly random ring words in place of a coded body: not even the bound on a coordinate is kept

Legend: D parameters.
Source: for boost and sign_flip, Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", section 4 (model
replacement), without its backdoor; for label_flip, Tolpegin et al. 2020, "Data Poisoning Attacks Against Federated
Learning Systems", section 3.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.participant import Participant
from client.partner import PartnerConfig
from client.worker import Worker
from common.config import Config
from common.messages import TrainTask
from common.runfolder import partner_name
from common.secagg.states import Opened
from common.secagg.wire import Upload

_UNDER = 1 - 1e-6  # of the bound: what float32 rounds up must not exceed it


def attackers_of(config: Config) -> frozenset[str]:
    """Returns the names of the partners that attack: the first `simulation.attackers` by a hash of seed and name."""
    names = [partner_name(number) for number in range(config.data.partners)]
    names.sort(key=lambda name: hashlib.sha256(repr(("attackers", config.round.seed, name)).encode()).digest())
    return frozenset(names[: config.simulation.attackers])


class AttackingWorker(Worker):
    """One attacking partner; it pays its own budget as everyone does, and touches nobody else's files.

    Args:
        partner: its own configuration.
        run: the run's: which attack, how strong, and the bound on a coordinate that the server announces.
    """

    def __init__(self, partner: PartnerConfig, run: Config) -> None:
        super().__init__(partner)
        self._run = run
        if run.simulation.attack == "garbage" and self._participant is not None:
            self._participant = _GarbageParticipant(self._participant, f"garbage, {run.round.seed}, {partner.name}")

    def _train(self, task: TrainTask) -> NDArray[Any]:
        update_D = super()._train(task)
        simulation = self._run.simulation
        if simulation.attack == "nan":
            return np.full_like(update_D, np.nan)
        if simulation.attack not in ("boost", "sign_flip"):
            return update_D
        factor = simulation.attack_factor if simulation.attack == "boost" else -simulation.attack_factor
        if update_D.dtype == np.int64:  # a step with its share of the noise: whole numbers, which no bound clamps
            step_D: NDArray[np.int64] = np.rint(factor * update_D.astype(np.float64)).astype(np.int64)
            return step_D
        # The largest that encoding lets through: an attacker would not run the check that makes honest code refuse.
        bound = _UNDER * self._run.aggregation.update_bound / task.weight
        attacked_D: NDArray[np.float32] = np.clip(factor * update_D.astype(np.float64), -bound, bound).astype(
            np.float32
        )
        return attacked_D

    def _rows(self) -> pd.DataFrame:
        rows = super()._rows()
        if self._run.simulation.attack != "label_flip":
            return rows
        flipped = (1 - rows["clicked"]).astype(rows["clicked"].dtype)
        changed = {"clicked": flipped} | ({"purchased": flipped} if "purchased" in rows else {})
        return rows.assign(**changed)


class _GarbageParticipant(Participant):
    """A participant whose masks lie over random words; it keeps to the protocol in all else."""

    def __init__(self, honest: Participant, label: str) -> None:
        self.__dict__.update(vars(honest))
        self._label = label

    def upload(self, opened: Opened, coded: Iterator[NDArray[np.uint32]], *, once: bool) -> tuple[list[bytes], Upload]:
        round_number = opened.task.session.round
        if round_number == 0:  # item counts: only training is attacked
            return super().upload(opened, coded, once=once)
        # Of seed, partner and round alone, so that a simulation can be repeated.
        seed = hashlib.sha256(f"{self._label}, {round_number}".encode()).digest()
        generator = np.random.default_rng(list(seed))
        garbage = (generator.integers(0, 2**32, len(piece_D), dtype=np.uint32) for piece_D in coded)
        return super().upload(opened, garbage, once=once)
