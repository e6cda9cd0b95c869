"""A run of the deployed apps with the eyes of an adversary: what leaves each partner, what the server gets to see.

The partners' workers are the deployed ones; `ObservedWorker` changes nothing of what they answer and writes down what
they contribute, which is what an adversary holds once secure aggregation is broken. The server's releases come from the
same loop that a deployment runs.

Legend: D parameters, T rounds, P partners.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.desk import forget_workers, place_worker
from client.partner import PartnerConfig
from client.statistics import Histograms
from client.userdata import HeldOutRows
from client.work import Work
from common.config import Config
from common.features import UserRows
from common.histogram_messages import EvaluationTask, HistogramTask
from common.messages import TrainTask
from common.runfolder import RunFolder
from common.secagg.wire import MaskTask, SessionId, Upload
from server.app import run as run_server
from simulations.audit.answers import Answer, listening
from simulations.audit.crafted import Crafted
from simulations.audit.userrows import first_users
from simulations.grid import InProcessGrid
from simulations.preloaded import PreloadedWorker, SharedClicks
from simulations.prepare import catalogue_of, prepare

Array = NDArray[Any]


@dataclass(frozen=True)
class Release:
    """One round as whoever sees the model learns it: the weights it started from, and the mean contribution."""

    round: int
    start_D: NDArray[np.float32]
    mean_D: NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """One partner's part of the private statistics, before masks."""

    partner: int
    task: HistogramTask
    given_D: Array


@dataclass(frozen=True)
class ScoreCounts:
    """One partner's part of an evaluation, before masks."""

    partner: int
    task: EvaluationTask
    given_D: Array


@dataclass
class Observation:
    """What one run showed.

    Attributes:
        config: effective: noise calibrated.
        releases: by round.
        given: partner number -> round -> what it contributed, before masks.
        histograms: every partner's, of every release of statistics.
        scores: every partner's, of every evaluation.
        repeated: whether a partner that was asked the same again gave the same bytes, once per question.
        uploads: the masked pieces of every partner, in the order in which they came.
        answers: of every partner, in the order in which they were given.
    """

    config: Config
    releases: list[Release] = field(default_factory=list)
    given: dict[int, dict[int, Array]] = field(default_factory=dict, repr=False)
    histograms: list[Histogram] = field(default_factory=list, repr=False)
    scores: list[ScoreCounts] = field(default_factory=list, repr=False)
    repeated: list[bool] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list, repr=False)  # little-endian words of the ring, modulo 2^32
    answers: list[Answer] = field(default_factory=list, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


@dataclass(frozen=True)
class Watching:
    """What a run is to be watched for, beyond its releases.

    Attributes:
        ask_twice: ask every partner for each contribution a second time.
        empty: no partner has a user in a sample: what it gives is its noise.
        crafted: canaries whose gradients are given, whatever the model makes of their rows.
    """

    ask_twice: bool = False
    empty: bool = False
    crafted: Crafted | None = None


class ObservedWorker(PreloadedWorker):
    """The deployed worker, which writes down what it contributes."""

    def __init__(self, partner: PartnerConfig, shared: SharedClicks, number: int, seen: Observation, how: Watching):
        super().__init__(partner, shared.store)
        self._number, self._seen, self._how = number, seen, how
        if how.empty:
            self._histograms = Histograms(partner, self._budget, lambda: self._rows().iloc[:0], lambda: None)
        self._deployed_histogram = self._histograms.contribution
        self._histograms.contribution = self._histogram  # type: ignore[method-assign]
        self._deployed_scores = self._evaluations.contribution
        self._evaluations.contribution = self._scores  # type: ignore[method-assign]

    def _data(self) -> UserRows:
        rows = super()._data()
        return first_users(rows, 0) if self._how.empty else rows

    def _load(self) -> UserRows:
        rows = super()._load()
        if self._how.crafted is not None:
            self._how.crafted.know(rows, list(self._rows()["user"]))
        return rows

    def _histogram(self, task: HistogramTask, session: SessionId) -> Array:
        return self._watched(
            lambda: self._deployed_histogram(task, session),
            lambda given_D: self._seen.histograms.append(Histogram(self._number, task, given_D)),
        )

    def _scores(self, task: EvaluationTask, session: SessionId) -> Array:
        return self._watched(
            lambda: self._deployed_scores(task, session),
            lambda given_D: self._seen.scores.append(ScoreCounts(self._number, task, given_D)),
        )

    def held_out(self) -> HeldOutRows | None:
        """Returns the rows that are held out; none where no partner is to have any."""
        return None if self._how.empty else super().held_out()

    def _contribution(self, task: TrainTask, shared: bytes) -> Array:
        deployed = super()._contribution
        return self._watched(
            lambda: deployed(task, shared),
            lambda given_D: self._seen.given.setdefault(self._number, {}).update({task.round: given_D}),
        )

    def _watched(self, give: Callable[[], Array], keep: Callable[[Array], None]) -> Array:
        """Returns what is given, kept as a copy, and asked for once more where that is to be watched."""
        given_D = give()
        again = [np.array_equal(given_D, give())] if self._how.ask_twice else []
        with self._seen.lock:
            keep(given_D.copy())
            self._seen.repeated += again
        return given_D

    def mask(self, task: MaskTask, work: Work) -> tuple[list[bytes], Upload]:
        """Returns the masked contribution, and keeps a copy of it."""
        pieces, upload = super().mask(task, work)
        with self._seen.lock:
            self._seen.uploads += [bytes(piece) for piece in pieces]
        return pieces, upload


def observe(config: Config, folder: Path, shared: SharedClicks, how: Watching | None = None) -> Observation:
    """Returns what a run of the deployed apps over given clicks showed; the folder then holds the run.

    Args:
        config: of the run; its floors and its central evaluation are the caller's to switch off.
        folder: an empty one.
        shared: the clicks.
        how: what to watch for.

    Raises:
        TooFewPartners, BudgetExhausted: as any run.
    """
    run_folder, how = RunFolder(folder), how or Watching()
    with how.crafted.planted() if how.crafted else nullcontext():
        return _observe(config, run_folder, shared, how)


def _observe(config: Config, run_folder: RunFolder, shared: SharedClicks, how: Watching) -> Observation:
    preparation = prepare(config, run_folder, None, shared.data)
    seen = Observation(preparation.config)
    for number in range(config.data.partners):
        place_worker(run_folder.partner(number), _maker(shared, number, seen, how))
    run_config = {"run-folder": str(run_folder.root)}
    try:
        with InProcessGrid(_listening(seen), config.data.partners, run_config, config.output.jobs) as grid:
            run_server(
                grid,
                run_folder,
                lambda number, start_D, mean_D: seen.releases.append(Release(number, start_D.copy(), mean_D.copy())),
            )
    finally:
        forget_workers()
    return seen


def _maker(
    shared: SharedClicks, number: int, seen: Observation, how: Watching
) -> Callable[[PartnerConfig], ObservedWorker]:
    return lambda partner: ObservedWorker(partner, shared, number, seen, how)


def _listening(seen: Observation) -> Callable[[Any, Any], Any]:
    """Returns the deployed ClientApp, every answer of which is written down."""

    def heard(answer: Answer) -> None:
        with seen.lock:
            seen.answers.append(answer)

    return listening(heard)


def with_logs(shared: SharedClicks, logs: list[Any]) -> SharedClicks:
    """Returns shared clicks whose partners hold other training rows; what they declare as their size stays."""
    data = shared.data
    catalogue = data.catalogue or catalogue_of(data.logs)  # public, so that it does not depend on who is in
    changed = replace(data, logs=replace(data.logs, training=logs), catalogue=catalogue)
    return SharedClicks(changed, shared.store)
