"""The partner's worker: data, model, ledger and policy behind four questions.

`Worker` is called in process by the ClientApp shim of a simulation; a deployment puts the same object behind a
socket. Whatever it is asked, it answers from its own configuration: noise, sampling rate and clip are the partner's.

Legend: D parameters, T distinct texts, E text width.
"""

import fcntl
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.budget import Budget
from client.partner import PartnerConfig
from client.training import DpStep, Randomness, require_in_bounds, train_privately
from common.card import DataCard, load_card
from common.clicks import read_clicks
from common.config import ModelConfig, PrivacyConfig
from common.contribution import LocalDelta
from common.errors import LedgerError, ProtocolError
from common.features import UserRows, count_items, featurise
from common.messages import (
    CatalogueTask,
    JoinReply,
    JoinTask,
    StatisticsReply,
    StatisticsTask,
    TrainReply,
    TrainTask,
)
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.runfolder import write_atomically
from common.sharedstates import shared_table
from common.textstates import TextStates, default_cache_dir
from common.vector import layout_fingerprint, write_vector

_MOST_ROWS_PER_USER = 4096  # the latest

# Weights are hashed once per process, not once per partner of a simulation.
_locate = lru_cache(maxsize=8)(locate)

# A model per thread, shared by all partners of the process: memory does not grow with partners.
_models = threading.local()


class Worker:
    """One partner's long-lived process, as an object.

    Formal guarantees:
        - No training before the partner's own budget has reserved its cost in the ledger.
        - The same round of the same run, asked again, gets the same bytes again and is charged once; another model
          for a round that was answered is refused.
        - Noise multiplier, sampling rate and clip are the partner's own, never the server's.
    """

    def __init__(self, config: PartnerConfig) -> None:
        self.config = config
        torch.set_num_threads(1)  # several clients share the cores, and sums are the same on every machine
        self._pretrained: Pretrained = _locate(config.model.encoder, config.model.encoder_sha256)
        self._budget = Budget(Ledger(Path(config.ledger)), config.privacy)
        self._card: DataCard = load_card(Path(config.card))
        self._loaded: UserRows | None = None
        self._loading, self._training = threading.Lock(), threading.Lock()

    def join(self, _task: JoinTask) -> JoinReply:
        """Returns who this partner is, and the layout of the model that it would train."""
        self._data()  # a log that cannot be read is said now, not in the first round
        fingerprint = layout_fingerprint(self._model(), self._pretrained.fingerprint, self.config.model)
        return JoinReply(self.config.name, self.config.declared_users, fingerprint, self._has_purchases)

    def statistics(self, task: StatisticsTask) -> StatisticsReply:
        """Returns exact clicks and impressions per catalogue item; refused wherever privacy is on."""
        if self.config.privacy.mode != "none" or self.config.model.item_rates != "exact":
            raise ProtocolError("exact item counts are not private; this partner does not give them")
        counts = count_items(self._rows())
        return StatisticsReply(
            np.array([counts.get(item, (0.0, 0.0)) for item in task.catalogue]).T.reshape(2, -1).copy()
        )

    def catalogue(self, task: CatalogueTask) -> None:
        """Takes over the summed item counts as features of the coming rounds."""
        if self.config.model.item_rates != "exact":
            raise ProtocolError("this partner's model has no item rates")
        counts = {item: list(pair) for item, pair in zip(task.catalogue, task.counts_2I.T.tolist(), strict=True)}
        write_atomically(self._catalogue_path, json.dumps(counts).encode())
        with self._loading:
            self._loaded = None

    def train(self, task: TrainTask) -> TrainReply:
        """Returns this partner's contribution to a round.

        Raises:
            BudgetExhausted: before any data is touched, when the round would exceed the partner's budget.
            ProtocolError: for another layout, too many local steps, or a round that was answered for another model.
        """
        self._check(task)
        with self._training:
            return TrainReply(task.round, LocalDelta(self._contribution(task), task.weight))

    def _contribution(self, task: TrainTask) -> NDArray[np.float32]:
        """Returns the update of this round: what was sent before, or a reserved, trained and persisted new one."""
        with _exclusive(Path(self.config.state)):
            sent = _SentFile(Path(self.config.state), task.run_id)
            earlier_D = sent.reuse(task)
            return self._new_contribution(task, sent) if earlier_D is None else earlier_D

    def _new_contribution(self, task: TrainTask, sent: "_SentFile") -> NDArray[np.float32]:
        event = training_event(self.config.privacy, task.run_id, task.round, task.attempt, task.plan.local_steps)
        reservation = self._budget.reserve(event)
        update_D = self._train(task)
        sent.keep(task, update_D)
        self._budget.commit(reservation)
        return update_D

    def _check(self, task: TrainTask) -> None:
        limit = self.config.privacy.max_local_steps
        if self.config.privacy.mode != "none" and task.plan.local_steps > limit:
            raise ProtocolError(f"local_steps = {task.plan.local_steps}: this partner allows at most {limit}")
        own = layout_fingerprint(self._model(), self._pretrained.fingerprint, self.config.model)
        if task.fingerprint != own:
            raise ProtocolError(
                f"model layout {task.fingerprint[:12]}, this partner has {own[:12]}: other weights or widths"
            )
        # Before the reservation: a model that cannot be trained must not cost any budget.
        write_vector(self._model(), task.model_D)
        require_in_bounds(task.model_D)

    def _train(self, task: TrainTask) -> NDArray[np.float32]:
        privacy = self.config.privacy
        private = privacy.mode != "none"
        step = DpStep(
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=(privacy.noise_multiplier or 0.0) if private else 0.0,
            clip=privacy.clip if private else None,
            max_rows=privacy.max_impressions_per_user,
            expected_users=privacy.sampling_rate * self.config.declared_users,
        )
        randomness = Randomness(privacy.fixed_seed, self.config.name, task.round)
        return train_privately(self._model(), task.model_D, self._data(), task.plan, step, randomness)

    def _rows(self) -> pd.DataFrame:
        rows = read_clicks(Path(self.config.clicks), self._card, allow_one_class=True).rows
        # Features of a user cost the square of its rows: one user must not be able to stall or kill a round.
        return rows.groupby("user", sort=False).tail(_MOST_ROWS_PER_USER).reset_index(drop=True)

    def _data(self) -> UserRows:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> UserRows:
        model, rows = self.config.model, self._rows()
        store = TextStates(self._pretrained, model.max_tokens, default_cache_dir(model.cache))
        table = shared_table(self._pretrained.fingerprint, model.max_tokens, self._pretrained.width)
        states_TE, text_N = table.rows_of(list(rows["text"]), store)
        counts = None
        if model.item_rates == "exact" and self._catalogue_path.exists():
            counts = {item: tuple(pair) for item, pair in json.loads(self._catalogue_path.read_bytes()).items()}
        return featurise(rows, text_N, states_TE, model, item_counts=counts)

    def _model(self) -> ClickModel:
        return thread_model(self.config.model, self._pretrained.width, 2 if self._has_purchases else 1)

    @property
    def _has_purchases(self) -> bool:
        """Whether the log has a purchase column: read off the data card, not off the data."""
        return bool(self._card.columns.purchased)

    @property
    def _catalogue_path(self) -> Path:
        return Path(self.config.state) / "item_counts.json"


def training_event(privacy: PrivacyConfig, run_id: str, round_number: int, attempt: int, steps: int) -> DpEvent:
    """Returns the facts of one round of training under a partner's own privacy configuration."""
    private = privacy.mode != "none"
    return DpEvent(
        run_id=run_id,
        round=round_number,
        attempt=attempt,
        purpose="training",
        mechanism="poisson_gaussian" if private else "none",
        unit=privacy.unit,
        adjacency="add_remove",
        noise_multiplier=(privacy.noise_multiplier or 0.0) if private else 0.0,
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        clip=privacy.clip,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
    )


def thread_model(config: ModelConfig, text_width: int, heads: int) -> ClickModel:
    """Returns this thread's model of a layout; its parameters are overwritten at every use."""
    known: dict[Any, ClickModel] = _models.__dict__.setdefault("by_layout", {})
    key = (config, text_width, heads)
    if key not in known:
        known[key] = build_model(config, text_width, heads, seed=0)
    return known[key]


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Holds a partner's state folder against other processes: a round is trained, and answered, once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _SentFile:
    """The last contribution of one run that left: a retry sends the same bytes and never draws fresh noise."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / f"sent-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.safetensors"

    def reuse(self, task: TrainTask) -> NDArray[np.float32] | None:
        """Returns what was sent for this very task, None for a new one; raises `ProtocolError` for a replay."""
        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="numpy") as file:
                facts, delta_D = file.metadata(), file.get_tensor("delta")
            last_round, same_run, answered = int(facts["round"]), facts["run_id"] == task.run_id, facts["task"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise LedgerError(
                f"{self.path.name}: damaged; what was sent last is unknown, so nothing more is sent"
            ) from None
        if not same_run or last_round < task.round:
            return None
        if last_round > task.round:
            raise ProtocolError(f"round {task.round} after round {last_round}: a round is answered once")
        if answered != _task_hash(task):
            raise ProtocolError(f"round {task.round} was answered for another model; it is not answered again")
        return np.asarray(delta_D)

    def keep(self, task: TrainTask, delta_D: NDArray[np.float32]) -> None:
        """Persists a contribution before it leaves."""
        facts = {"run_id": task.run_id, "round": str(task.round), "task": _task_hash(task)}
        write_atomically(self.path, save({"delta": delta_D}, facts))


def _task_hash(task: TrainTask) -> str:
    digest = hashlib.sha256(repr((task.run_id, task.round, task.fingerprint, task.plan)).encode())
    digest.update(task.model_D.tobytes())
    return digest.hexdigest()
