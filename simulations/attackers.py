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

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.partner import PartnerConfig
from client.worker import Worker
from common.config import Config
from common.messages import StatisticsTask, TrainTask
from common.runfolder import partner_name
from common.secagg.wire import MaskTask, Upload

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

    def mask(self, task: MaskTask, work: TrainTask | StatisticsTask) -> tuple[list[bytes], Upload]:
        """Returns the masked contribution; for garbage, masks over random words."""
        if self._run.simulation.attack != "garbage" or isinstance(work, StatisticsTask):
            return super().mask(task, work)
        with self._alone():
            opened = self._secure.open(task, *work.hashes())
            self._check(work)
            self._contribution(work)  # trained and charged like anybody's, then thrown away
            return self._secure.upload(opened, iter([self._garbage(work.round, task.length)]))

    def _train(self, task: TrainTask) -> NDArray[np.float32]:
        update_D = super()._train(task)
        simulation = self._run.simulation
        if simulation.attack == "nan":
            return np.full_like(update_D, np.nan)
        if simulation.attack not in ("boost", "sign_flip"):
            return update_D
        factor = simulation.attack_factor if simulation.attack == "boost" else -simulation.attack_factor
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

    def _garbage(self, round_number: int, length: int) -> NDArray[np.uint32]:
        """Returns words that depend on seed, partner and round alone, so that a simulation can be repeated."""
        label = repr(("garbage", self._run.round.seed, self.config.name, round_number)).encode()
        generator = np.random.default_rng(list(hashlib.sha256(label).digest()))
        return generator.integers(0, 2**32, length, dtype=np.uint32)
