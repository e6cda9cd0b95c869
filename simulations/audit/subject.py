"""What is audited: a configuration, its clicks, and the runs of the deployed apps that the tests look at."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.config import Config, fingerprint
from common.features import UserRows, featurise
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.privacy.statement import PrivacyStatement, privacy_statement
from common.runfolder import RunFolder
from common.textstates import encode_texts
from common.vector import write_vector
from server.checkpoint import load_checkpoint
from simulations.audit.observed import Observation, Watching, observe, with_logs
from simulations.audit.userrows import rows_by_user, units_of
from simulations.partners import with_rule
from simulations.preloaded import FeatureStore, SharedClicks
from simulations.prepare import read_data
from simulations.spending import read_ledgers, with_noise


@dataclass
class Subject:
    """A configuration under audit.

    Attributes:
        config: effective: noise calibrated, and what runs need not do for an audit switched off.
        shared: its clicks.
        say: told what is being done.
        folder: where runs go; each is removed once it was looked at.
    """

    config: Config
    shared: SharedClicks
    say: Callable[[str], None]
    folder: Path
    _count: int = field(default=0)

    @property
    def logs(self) -> list[pd.DataFrame]:
        """The partners' training rows."""
        return self.shared.data.logs.training

    @property
    def users(self) -> int:
        """Training users of all partners."""
        return sum(int(log["user"].nunique()) for log in self.logs)

    @property
    def declared(self) -> dict[int, int]:
        """Partner number -> users that it declares."""
        return dict(enumerate(self.shared.data.declared_users))

    @contextmanager
    def run(
        self, logs: list[pd.DataFrame] | None = None, how: Watching | None = None, config: Config | None = None
    ) -> Iterator[tuple[Observation, RunFolder]]:
        """Gives what one run of the deployed apps showed, and its folder, which is removed afterwards."""
        self._count += 1
        folder = self.folder / f"run-{self._count:03d}"
        clicks = self.shared if logs is None else with_logs(self.shared, logs)
        try:
            yield observe(config or self.config, folder, clicks, how), RunFolder(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def claim(self, folder: RunFolder) -> PrivacyStatement:
        """Returns what the ledgers of a run say: the statement of the partner that spent most."""
        delta = self.config.privacy.delta
        statements = [privacy_statement(events, delta) for events in read_ledgers(self.config, folder).values()]
        return max(statements, key=lambda statement: statement.epsilon)

    def final_model(self, folder: RunFolder) -> ClickModel:
        """Returns the model that a run released."""
        model = self.new_model()
        config = self.config
        write_vector(model, load_checkpoint(folder.checkpoint, fingerprint(config)).model_D)
        return model

    def new_model(self) -> ClickModel:
        """Returns the model that a run starts from."""
        heads = 2 if "purchased" in self.logs[0] else 1
        return build_model(self.config.model, self.pretrained.width, heads, self.config.round.seed, self.pretrained)

    @property
    def pretrained(self) -> Pretrained:
        """The text encoder."""
        return locate(self.config.model.encoder, self.config.model.encoder_sha256, self.config.model.cache)

    def features(self, rows: pd.DataFrame) -> UserRows:
        """Returns the features of training rows, as a partner makes them."""
        ordered = rows.sort_values(["user", "time"], kind="stable").reset_index(drop=True)
        model = self.config.model
        encoded = encode_texts(list(ordered["text"]), model, self.pretrained)
        return featurise(ordered, encoded.index_N, encoded.states_TE, model, tokens_T=encoded.tokens_T)

    def units(self, rows: UserRows) -> list[NDArray[np.int64]]:
        """Returns the row numbers of every unit: of a user with more rows than a step takes, the latest."""
        privacy = self.config.privacy
        if privacy.unit == "impression":
            return units_of(rows, privacy)
        return rows_by_user(rows, privacy.max_impressions_per_user)


@contextmanager
def subject_of(config: Config, say: Callable[[str], None], reading: Callable[[int, int], None]) -> Iterator[Subject]:
    """Gives a configuration and its clicks, with a folder of its own for as long as it is looked at.

    A fixed seed is left out: an attacker who could repeat the noise would attack something else.
    """
    config = with_noise(config)
    quiet = replace(config.server, floors=(), bootstrap_samples=0, evaluate_every=config.round.num_rounds)
    config = replace(
        config,
        privacy=replace(config.privacy, fixed_seed=None),
        server=quiet,
        output=replace(config.output, report=False),
    )
    data = read_data(config.data, config.model, reading)
    once = replace(config.evaluation, releases=1)  # also of runs with fewer rounds
    config = with_rule(replace(config, evaluation=once), data.logs.report["cut_time"])
    with tempfile.TemporaryDirectory(prefix="hushclick-audit-") as folder:
        yield Subject(config, SharedClicks(data, FeatureStore()), say, Path(folder))


def without_users_of(logs: Sequence[pd.DataFrame], users: set[str]) -> list[pd.DataFrame]:
    """Returns the logs without the rows of some users."""
    return [log[~log["user"].isin(users)].reset_index(drop=True) for log in logs]
