"""The partner's worker: data, model, ledger and policy behind four questions.

`Worker` is called in process by the ClientApp shim of a simulation; a deployment puts the same object behind a
socket. Whatever it is asked, it answers from its own configuration: noise, sampling rate and clip are the partner's.

Legend: D parameters, T distinct texts, E text width.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.anchors import HeadFile
from client.budget import Budget
from client.charging import charged_once
from client.distributed import SharedStep, noised_step
from client.evaluation import Evaluations
from client.participant import Participant, participant_of
from client.partner import PartnerConfig
from client.received import Received
from client.retention import Deleted, tidy
from client.sent import SentFile, exclusive
from client.statistics import Histograms
from client.training import DpStep, Randomness, require_in_bounds, train_privately
from client.userdata import UserData
from client.work import Work, require_one_task
from common.config import ModelConfig, fingerprint
from common.contribution import LocalDelta
from common.errors import BudgetExhausted, ProtocolError
from common.features import count_items
from common.histogram_messages import EvaluationTask, HistogramTask, ReleaseTask
from common.itemrates import release_hash
from common.messages import (
    AnchorTask,
    CatalogueTask,
    JoinReply,
    JoinTask,
    ModelTask,
    StatisticsReply,
    StatisticsTask,
    TrainReply,
    TrainTask,
    counts_hash,
    shared_hash,
)
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.releases import label_event, training_event
from common.schedule import evaluated_in
from common.secagg.coding import Coding, encode, require_codable
from common.secagg.graph import MOST_COMPLETE
from common.secagg.wire import Advertisement, SessionId
from common.stage_messages import (
    Advertised,
    AdvertiseTask,
    Ahead,
    Coin,
    Confirmation,
    ConfirmTask,
    MaskTask,
    Revealed,
    RevealTask,
    ShareTask,
    UnmaskTask,
    Upload,
)
from common.vector import layout_fingerprint, write_vector

_MOST_RUNS = 256  # that are remembered as joined: the latest

# Weights are hashed once per process, not once per partner of a simulation.
_locate = lru_cache(maxsize=8)(locate)

# A model per thread, shared by all partners of the process: memory does not grow with partners.
_models = threading.local()


class Worker(UserData):
    """One partner's long-lived process, as an object.

    Formal guarantees:
        - No training before the partner's own budget has reserved its cost in the ledger.
        - The same round of the same run, asked again, gets the same bytes again and is charged once; another model
          for a round that was answered is refused.
        - Noise multiplier, sampling rate and clip are the partner's own, never the server's.
    """

    def __init__(self, config: PartnerConfig) -> None:
        torch.set_num_threads(1)  # several clients share the cores, and sums are the same on every machine
        super().__init__(config, _locate(config.model.encoder, config.model.encoder_sha256, config.model.cache))
        self._ledger, head_file = Ledger(Path(config.ledger), config.name), HeadFile(Path(config.state))
        self._budget = Budget(self._ledger, config.privacy, head_file)
        self._histograms = Histograms(config, self._budget, lambda: self._counted_rows(), self.count_failure)
        self._evaluations = Evaluations(config, self._budget, self._ledger, self)
        self._received, self._joined = Received(config, self._pretrained), dict[str, None]()
        self._training = threading.Lock()
        self.noise_alone = 0  # steps in which this partner could not train
        self._participant, self._roster_hash = participant_of(config)

    def ready(self) -> str:
        """Reads ledger and log, so that what is wrong with them is said now; returns the ledger's anchor."""
        anchor = self._budget.anchor()
        self._data()
        return anchor

    def epsilon_spent(self) -> float:
        """Returns the epsilon (PLD) of the partner's ledger, at its own delta."""
        return self._budget.spent().epsilon

    def join(self, task: JoinTask) -> JoinReply:
        """Returns who this partner is, and the layout of the model that it would train."""
        anchor = self.ready()
        self._joined[task.run_id] = None
        while len(self._joined) > _MOST_RUNS:
            del self._joined[next(iter(self._joined))]
        return JoinReply(
            self.config.name,
            self.config.declared_users,
            self._layout(),
            self._has_purchases,
            self._roster_hash,
            anchor,
            fingerprint(self._card),
            self._pretrained.fingerprint,
        )

    def anchor(self, task: AnchorTask) -> None:
        """Refuses to go on with a ledger that lacks what the server last saw of it."""
        with self._alone():
            self._budget.require_anchor(task.anchor)

    def statistics(self, task: StatisticsTask) -> StatisticsReply:
        """Returns exact clicks and impressions per catalogue item; refused wherever privacy is on."""
        self._require_plain()
        return StatisticsReply(self._item_counts(task))

    def catalogue(self, task: CatalogueTask) -> None:
        """Takes over the summed item counts as features of the coming rounds."""
        if self.config.model.item_rates != "exact":
            raise ProtocolError("this partner's model has no item rates")
        counts = {item: list(pair) for item, pair in zip(task.catalogue, task.counts_2I.T.tolist(), strict=True)}
        with self._alone():  # not between the check of a task and the features that it is answered with
            self._keep_counts(counts)

    def release(self, task: ReleaseTask) -> None:
        """Takes over released statistics as features of the coming rounds.

        Raises:
            ProtocolError: for what is no release on this partner's own terms.
        """
        with self._alone():  # as above
            self._keep_release(task.release)

    def train(self, task: TrainTask) -> TrainReply:
        """Returns this partner's contribution to a round.

        Raises:
            BudgetExhausted: before any data is touched, when the round would exceed the partner's budget.
            ProtocolError: for another layout, too many local steps, or a round that was answered for another model.
        """
        self._require_plain()
        self._check(task)
        with self._alone():
            update_D = self._contribution(task, self._shared_hash())
            return TrainReply(task.round, LocalDelta(update_D, task.weight), self._budget.anchor())

    def prepare(self, task: Ahead) -> Ahead:
        """Returns the answer to a stage before MASK, of this round or of the next.

        Raises:
            BudgetExhausted: where the budget does not hold the round to come: better now than after its peers trained.
            ProtocolError: whatever `Participant` refuses.
        """
        with self._alone():
            if isinstance(task, AdvertiseTask):
                self._require_affordable(task)
                return Advertised(self._secure.advertise(task.session).to_bytes())
            if isinstance(task, RevealTask):
                return Coin(self._secure.reveal(task))
            if isinstance(task, ShareTask):
                self._require_complete(task)
                return self._secure.share(task)
        raise ProtocolError(f"a {type(task).__name__} asks nothing of a partner")

    def mask(self, task: MaskTask, work: Work) -> tuple[list[bytes], Upload]:
        """Returns the masked contribution to a round: pieces of little-endian uint32, and what ends them.

        All that the server says is checked before the budget is asked; only then is data touched.

        Raises:
            BudgetExhausted, ProtocolError: as `train`, and whatever `Participant` refuses.
        """
        require_one_task(task, work, whole_numbers=self.config.privacy.mode == "distributed")
        coding = Coding(task.bits, task.clip)
        with self._alone():
            shared = self._shared_of(work)
            opened = self._secure.open(task, *work.hashes(shared))
            value_D: NDArray[Any]
            if isinstance(work, StatisticsTask):
                key, value_D = bytes(32), self._item_counts(work).astype(np.int64).reshape(-1)
            elif isinstance(work, HistogramTask):
                key, value_D = bytes(32), self._histograms.contribution(work, task.session)
            elif isinstance(work, EvaluationTask):
                key, value_D = bytes(32), self._evaluations.contribution(work, task.session)
            else:
                self._check(work)
                key, value_D = self._randomness(work.round).rounding_key, self._contribution(work, shared)
            if not self.config.privacy.noised:
                require_codable(value_D, task.weight, coding)
            once = self.config.privacy.mode == "distributed"
            return self._secure.upload(opened, encode(value_D, task.weight, coding, key), once=once)

    def confirm(self, task: ConfirmTask) -> Confirmation:
        """Returns this partner's signature over the survivors, and where all survive its shares, as `unmask` does."""
        with self._alone():
            anchor = self._budget.anchor()
            signature, revealed = self._secure.confirm(task)
        if revealed is None:
            return Confirmation(signature, anchor)
        return Confirmation(signature, anchor, revealed.owners, revealed.shares, revealed.bad_dealers)

    def unmask(self, task: UnmaskTask) -> Revealed:
        """Returns this partner's shares of what is needed to strip the masks; the round is then final here."""
        with self._alone():
            return self._secure.unmask(task)

    def tidy(self) -> Deleted:
        """Deletes what `[retention]` says is over, and lets go of users who asked to be erased; returns what went.

        Where an answer is under way nothing is deleted; the next call does.
        """
        self.drop_erased()
        if not self._training.acquire(blocking=False):
            return Deleted()
        try:
            with exclusive(Path(self.config.state), wait=False):
                return tidy(self.config, self._participant)
        except BlockingIOError:
            return Deleted()
        finally:
            self._training.release()

    def receive(self, task: ModelTask) -> None:
        """Takes over the final model of a run that this partner took part in, once all of it holds.

        Raises:
            ProtocolError: naming what does not hold; nothing is written then.
        """
        with self._alone():
            if not self.took_part(task.run_id):
                raise ProtocolError(f"a model of run {task.run_id!r:.40}: this partner took no part in it")
            self._received.keep(task.run_id, self._layout(), task.files)

    @property
    def _secure(self) -> Participant:
        if self._participant is None:
            raise ProtocolError("this partner takes no part in secure aggregation (its aggregation.method is plain)")
        return self._participant

    def _require_plain(self) -> None:
        if self._participant is not None:
            raise ProtocolError("this partner gives nothing unmasked (its aggregation.method is secure)")

    def _require_affordable(self, task: AdvertiseTask) -> None:
        if task.session.round == 0:
            self._require_affordable_histogram(task.session)
        session, sent = task.session, SentFile(Path(self.config.state), task.session.run_id)
        sent.require_kept(session.round)
        if task.local_steps == 0 or sent.last_round == session.round:  # nothing to pay, or paid already
            return
        self._require_steps(task.local_steps)
        event = self._event(session, task.local_steps)
        if self._budget.affordable_rounds(event, self._evaluations.room(session.run_id)) == 0:
            raise BudgetExhausted(f"round {session.round}: {task.local_steps} more steps do not fit the budget")

    def _require_affordable_histogram(self, session: SessionId) -> None:
        if self.config.evaluation.by_partners and evaluated_in(session.run_id):
            self._evaluations.require_affordable(session)
        elif self.config.model.item_rates == "private":
            self._histograms.require_affordable(session)

    def _require_complete(self, task: ShareTask) -> None:
        """With neighbours a hostile server can open smaller sums than this partner's part of the noise is sized for."""
        if self.config.privacy.mode == "distributed" and len(task.advertisements) > MOST_COMPLETE * Advertisement.SIZE:
            raise ProtocolError(f"over {MOST_COMPLETE} participants: this partner shares noise among fewer only")

    def _require_steps(self, steps: int) -> None:
        if self.config.privacy.mode == "distributed" and steps != 1:
            raise ProtocolError(f"local_steps = {steps}: with shared noise this partner makes exactly one step a round")
        limit = self.config.privacy.max_local_steps
        if steps < 1 or (self.config.privacy.noised and steps > limit):
            raise ProtocolError(f"local_steps = {steps}: this partner allows at most {limit}, and at least 1")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds this partner's state against other threads and processes."""
        with self._training, exclusive(Path(self.config.state)):
            yield

    def _contribution(self, task: TrainTask, shared: bytes) -> NDArray[Any]:
        """Returns the update of this round: what was sent before, or a reserved, trained and persisted new one."""
        sent = SentFile(Path(self.config.state), task.run_id)
        return charged_once(
            task,
            shared,
            sent,
            self._budget,
            lambda: self._event_of(task),
            lambda: self._train(task),
            self._evaluations.room(task.run_id),
        )

    def _event_of(self, task: TrainTask) -> DpEvent:
        if self._labels:
            self._data()  # labels are flipped before the ledger says which
        return self._event(SessionId(task.run_id, task.round, task.attempt), task.plan.local_steps)

    def _event(self, session: SessionId, steps: int) -> DpEvent:
        if self._labels:
            return label_event(self.config.privacy, session, self._labels.identity())
        return training_event(self.config.privacy, self.config.noise_shares, session, steps)

    def _check(self, task: TrainTask) -> None:
        self._require_steps(task.plan.local_steps)
        self._require_layout(task)

    def _require_layout(self, task: TrainTask | EvaluationTask) -> None:
        own = self._layout()
        if task.fingerprint != own:
            raise ProtocolError(
                f"model layout {task.fingerprint[:12]}, this partner has {own[:12]}: other weights or widths"
            )
        # Before the reservation: a model that cannot be trained must not cost any budget.
        write_vector(self._model(), task.model_D)
        require_in_bounds(task.model_D)

    def _train(self, task: TrainTask) -> NDArray[Any]:
        privacy = self.config.privacy
        if privacy.mode == "distributed":
            return self._step(task)
        private = privacy.noised
        step = DpStep(
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=(privacy.noise_multiplier or 0.0) if private else 0.0,
            clip=privacy.clip if private else None,
            max_rows=privacy.max_impressions_per_user,
            expected_units=privacy.sampling_rate * self.config.declared_users * privacy.units_per_user,
            unit=privacy.unit,
        )
        return train_privately(self._model(), task.model_D, self._data(), task.plan, step, self._randomness(task.round))

    def _step(self, task: TrainTask) -> NDArray[np.int64]:
        privacy = self.config.privacy
        step = SharedStep(
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=privacy.noise_multiplier or 0.0,
            shares=self.config.noise_shares,
            clip=privacy.clip,
            grid=2**privacy.grid_bits,
            max_rows=privacy.max_impressions_per_user,
            declared_units=self.config.declared_users,
            unit=privacy.unit,
        )
        given = noised_step(
            self._model(), task.model_D, self._data, step, self._randomness(task.round), self.count_failure
        )
        return given.sum_D

    def count_failure(self) -> None:
        """Counts a time in which this partner gave its noise alone, as it could not read or use its rows."""
        self.noise_alone += 1

    def loaded(self, task: EvaluationTask) -> ClickModel:
        """Returns the model that is to be evaluated, in this partner's own layout."""
        self._require_layout(task)
        return self._model()

    def took_part(self, run_id: str) -> bool:
        """Returns whether this partner joined a run, or its ledger knows it."""
        trained = (event for event in self._ledger.events() if event.purpose not in ("evaluation", "statistics"))
        return run_id in self._joined or any(event.run_id == run_id for event in trained)

    def flipped_labels(self) -> str:
        """Returns which flipped labels the log has, once all of it was read; empty where none are flipped."""
        if not self._labels:
            return ""
        self._log()
        return self._labels.identity()

    def _randomness(self, round_number: int) -> Randomness:
        return Randomness(self.config.privacy.fixed_seed, self.config.name, round_number)

    def _item_counts(self, task: StatisticsTask) -> NDArray[np.float64]:
        """Returns exact clicks and impressions per catalogue item, [2, items]; refused wherever privacy is on."""
        if self.config.privacy.mode != "none" or self.config.model.item_rates != "exact":
            raise ProtocolError("exact item counts are not private; this partner does not give them")
        counts = count_items(self._rows())
        found_2I: NDArray[np.float64] = (
            np.array([counts.get(item, (0.0, 0.0)) for item in task.catalogue]).T.reshape(2, -1).copy()
        )
        return found_2I

    def _shared_of(self, work: Work) -> bytes:
        if isinstance(work, HistogramTask):
            return self._histograms.shared
        return self._evaluations.shared if isinstance(work, EvaluationTask) else self._shared_hash()

    def _shared_hash(self) -> bytes:
        return shared_hash(self.told(), self.config.privacy, self.config.noise_shares)

    def told(self) -> bytes:
        """Returns the hash of the item counts, or of the statistics, that features are made with; empty for neither."""
        counts, release = self._known_counts(), self._known_release()
        if release is not None:
            return release_hash(release)
        return b"" if counts is None else counts_hash(counts)

    def _layout(self) -> str:
        return layout_fingerprint(self._model(), self._pretrained.fingerprint, self.config.model)

    def _model(self) -> ClickModel:
        return thread_model(self.config.model, self._pretrained, 2 if self._has_purchases else 1)


def thread_model(config: ModelConfig, pretrained: Pretrained, heads: int) -> ClickModel:
    """Returns this thread's model of a layout; its parameters are overwritten at every use."""
    known: dict[Any, ClickModel] = _models.__dict__.setdefault("by_layout", {})
    key = (config, pretrained.fingerprint, heads)
    if key not in known:
        known[key] = build_model(config, pretrained.width, heads, seed=0, base=pretrained)
    return known[key]
