"""The private statistics of a run: released on schedule, kept, and told to the partners; noisy from their first byte.

`statistics/release-N.json` in the run folder is a release as it is told, signed and used. A run that goes on goes on
with it: a release that was begun is never asked for a second time under another number.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from common.config import Config
from common.errors import BudgetExhausted, ConfigError, HushclickError, TooFewPartners
from common.histogram import Catalogue, Terms
from common.histogram_messages import HistogramTask, ReleaseTask, terms_hash
from common.itemrates import ItemRates, Release, parse_release, release_hash
from common.message_types import QUERY_RELEASE
from common.noise_shares import noise_shares
from common.runfolder import RunFolder, write_atomically
from common.schedule import first_round, release_due, run_of_release
from common.secagg.roster import Roster
from server.joining import say, take_nothing
from server.noisysums import NoisySums, grid_bits
from server.round import exchange


class Histograms:
    """The releases of one run.

    Args:
        grid: Flower's.
        config: of the run.
        folder: where they are kept, and where `catalogue.json` lies.
        run_id: of the run.
        nodes: partner -> node id.
        roster: of the run.
        starts: how often the run's server was started before.
        declared: users that all partners declare together.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        folder: RunFolder,
        run_id: str,
        nodes: Mapping[str, int],
        roster: Roster,
        starts: int,
        declared: int,
    ) -> None:
        self._grid, self._config, self._folder, self._run_id = grid, config, folder, run_id
        self._nodes, self._declared = nodes, declared
        self._sums = NoisySums(grid, config, folder, run_id, nodes, roster, starts, "statistics")
        self._catalogue = read_catalogue(folder.catalogue)
        self._untold: set[str] = set()
        self.number = -1
        self.release: bytes | None = None
        for path in sorted(self._home.glob("release-*.json")):
            self._take(parse_release(path.read_bytes()))

    @property
    def shared(self) -> bytes:
        """What goes into the hash of every round: which release features are made with."""
        return b"" if self.release is None else release_hash(self.release)

    @property
    def rates(self) -> ItemRates | None:
        """What the latest release says of items."""
        return None if self.release is None else ItemRates(parse_release(self.release))

    def facts(self) -> dict[str, Any]:
        """Returns what metrics.json says of the latest release."""
        if self.release is None:
            return {"releases": 0, "items": len(self._catalogue.items)}
        found = parse_release(self.release)
        return {
            "releases": found.number + 1,
            "items": len(found.catalogue.items),
            "categories": len(found.catalogue.category_names),
            "clip": found.terms.clip,
            "noise_over_clip": found.deviation,
            "untold": sorted(self._untold),
        }

    def prepare(self, round_number: int) -> bool:
        """Makes the release that is due before a round, if it is not there; returns whether another is there now.

        Partners that have not been told the latest one are told it.

        Raises:
            BudgetExhausted: for the first release, where budgets refuse it.
            TooFewPartners: for the first release, where it does not come about. Later ones leave the one before.
        """
        due = release_due(self._config, round_number)
        made = due is not None and due > self.number and self._make(due)
        self._tell()
        return made

    def _make(self, number: int) -> bool:
        try:
            release = self._collect(number)
        except (BudgetExhausted, TooFewPartners) as error:
            if self.release is None:
                raise
            say("statistics", f"release {number + 1} of the statistics failed, the one before stays: {error}")
            return False
        write_atomically(self._home / f"release-{number:06d}.json", release.to_bytes())
        self._sums.end(self._journal(number))
        self._take(release)
        return True

    def _take(self, release: Release) -> None:
        self.number, self.release, self._untold = release.number, release.to_bytes(), set(self._nodes)

    def _tell(self) -> None:
        """Tells the latest release to all who have not taken it; who does not cannot take part in a round."""
        if self.release is None or not self._untold:
            return
        told = ReleaseTask(self._run_id, self.release).to_record()
        names = {self._nodes[partner]: partner for partner in self._untold}
        letters, timeout = dict.fromkeys(names, told), self._config.aggregation.timeout_seconds
        outcome = exchange(self._grid, QUERY_RELEASE, letters, "release", timeout, take_nothing)
        self._untold = {names[node] for node in outcome.failures}
        for node, reason in sorted(outcome.failures.items()):
            say("statistics", f"{names[node]} has not taken release {self.number + 1} of the statistics: {reason}")

    def _collect(self, number: int) -> Release:
        config, privacy = self._config, self._config.privacy
        bits = grid_bits(privacy.grid_bits, self._declared, self._deviation(len(self._nodes)))
        task = HistogramTask(run_of_release(self._run_id, number), number, bits, self._catalogue)
        shared = terms_hash(config.model, privacy, noise_shares(config))
        summed = self._sums.collect(task, shared, self._journal(number), first_round(config, number) - 1)
        return Release(
            number,
            self._catalogue,
            Terms(config.model.prior_click_rate, privacy.statistics_clip),
            2**bits,
            summed.sum_D.reshape(2, -1),
            self._deviation(summed.count),
        )

    def _deviation(self, contributors: int) -> float:
        return self._sums.deviation(self._config.privacy.statistics_noise_multiplier, contributors)

    def _journal(self, number: int) -> Path:
        return self._home / f"unmask-{number:06d}"

    @property
    def _home(self) -> Path:
        return self._folder.root / "statistics"


def read_catalogue(path: Path) -> Catalogue:
    """Returns the public catalogue in a JSON file: item -> category, or a list of items.

    Raises:
        HushclickError: where there is none, or it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        table = dict.fromkeys(found, "") if isinstance(found, list) else dict(found)
        if not all(type(text) is str for pair in table.items() for text in pair):
            raise ValueError
    except FileNotFoundError:
        raise HushclickError(
            f"{path}: no item catalogue; model.item_rates needs the public list of items, as JSON: item -> category"
        ) from None
    except (OSError, ValueError, TypeError):
        raise HushclickError(f"{path}: not a JSON object of item -> category, nor a list of items") from None
    try:
        return Catalogue.of(table)
    except ConfigError as error:
        raise HushclickError(f"{path}: {error}") from None
