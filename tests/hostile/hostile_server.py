"""A malicious server, with colluders, against the real client: everything goes through `client.app` as Flower's bytes.

`HostileServer` owns real partner folders and speaks to their ClientApp; `Round` drives one attempt stage by stage, as an
honest server would, until a test makes it lie: `tell` sends whatever a test wants, `lies` change every message of a kind.

Legend: D parameters.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from conftest import random_rows
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from partner_folder import PLAN, write_partner
from safetensors.numpy import load_file

from client.app import app, forget_workers, worker_at
from client.partner import PartnerAggregation
from client.worker import Worker, thread_model
from common.messages import StatisticsTask, TrainTask
from common.model.click_model import build_model
from common.runfolder import RunFolder, partner_name
from common.secagg.coding import Coding, decode
from common.secagg.parameters import bits_for
from common.secagg.roster import WEIGHT_UNIT, Member, Roster, dump_roster
from common.secagg.server_role import Gathering, Grid, Tally
from common.secagg.unmasking import Unmasking
from common.secagg.wire import SessionId
from common.stage_messages import (
    QUERY_ADVERTISE,
    QUERY_CONFIRM,
    QUERY_MASK,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_UNMASK,
    TRAIN_MASK,
    Advertised,
    AdvertiseTask,
    Coin,
    Confirmation,
    ConfirmTask,
    MaskTask,
    Revealed,
    RevealTask,
    Shares,
    ShareTask,
    UnmaskTask,
    stage_of,
    stage_record,
    upload_of,
)
from common.vector import layout_fingerprint, read_vector

RUN = "run"
CLIP = 4.0
Lie = Callable[[int, Any], Any]

_KIND_OF = {
    AdvertiseTask: QUERY_ADVERTISE,
    RevealTask: QUERY_REVEAL,
    ShareTask: QUERY_SHARE,
    ConfirmTask: QUERY_CONFIRM,
    UnmaskTask: QUERY_UNMASK,
}
_ANSWER_OF: dict[type, type] = {
    AdvertiseTask: Advertised,
    RevealTask: Coin,
    ShareTask: Shares,
    ConfirmTask: Confirmation,
    UnmaskTask: Revealed,
}


class Refused(Exception):
    """An error reply: its code and all that it says."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def identity(number: int) -> Ed25519PrivateKey:
    """The same key for a participant in every test: the server knows those of its colluders."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"identity {number}".encode()).digest())


def over_the_wire(record: RecordDict) -> tuple[RecordDict, bytes]:
    """Returns a record as it arrives after Flower's serialisation, and the bytes that travelled."""
    proto = recorddict_to_proto(record)
    sent = proto.SerializeToString(deterministic=True)
    return recorddict_from_proto(type(proto).FromString(sent)), sent


@dataclass
class Sent:
    """One answer as it left a client."""

    number: int
    kind: str
    body: bytes
    error: tuple[int, str] | None = None


@dataclass
class HostileServer:
    """Every partner of a roster as a real folder, and the wire to its ClientApp.

    Attributes:
        roster: as pinned at all partners; participant n has the folder of partner n - 1.
        traffic: every answer that left any client, in order.
    """

    root: Path
    roster: Roster
    traffic: list[Sent] = field(default_factory=list)

    def folder(self, number: int) -> Path:
        return RunFolder(self.root).partner(number - 1)

    def worker(self, number: int) -> Worker:
        return worker_at(self.folder(number))

    def restart(self) -> None:
        """Every partner's process ends; the next message starts a new one on the same disk."""
        forget_workers()

    def ask(self, number: int, kind: str, record: RecordDict) -> RecordDict:
        """Sends a record to one ClientApp as Flower does; raises `Refused` for an error reply."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # a server's, who makes the message
        place: dict[str, Any] = {"partition-id": number - 1, "num-partitions": len(self.roster)}
        context = Context(1, 1 + number, place, RecordDict(), {"run-folder": str(self.root)})
        arrived, _ = over_the_wire(record)
        reply = app(Message(arrived, 1 + number, kind), context)
        if reply.has_error():
            error = reply.error.code, str(reply.error.reason)
            self.traffic.append(Sent(number, kind, b"", error))
            raise Refused(*error)
        content, body = over_the_wire(reply.content)
        self.traffic.append(Sent(number, kind, body))
        return content

    def tell(self, number: int, task: Any, work: TrainTask | StatisticsTask | None = None) -> Any:
        """Sends a stage's message and returns the answer, taken apart."""
        if isinstance(task, MaskTask):
            base = work.to_record() if work else RecordDict()
            return upload_of(self.ask(number, TRAIN_MASK if task.clip else QUERY_MASK, stage_record(task, base)))
        return stage_of(_ANSWER_OF[type(task)], self.ask(number, _KIND_OF[type(task)], stage_record(task)))

    def facts(self, number: int) -> dict[str, Any]:
        """Returns all that a partner remembers: its ledger, its state folder, its round's secrets."""
        home = self.folder(number)
        files = [home / "ledger.jsonl", *(path for path in (home / "state").rglob("*") if path.name != "lock")]
        kept = {str(path.relative_to(home)): path.read_bytes() for path in files if path.is_file()}
        participant = self.worker(number)._participant
        blobs = dict(getattr(participant._store, "_blobs", {})) if participant else {}
        return {"files": kept, "secrets": blobs}

    def charged(self, number: int) -> int:
        """Returns how many releases a partner's ledger holds."""
        return len(self.worker(number)._budget._ledger.events())

    def shares_left(self) -> list[int]:
        """Returns who has given out shares so far."""
        return [sent.number for sent in self.traffic if sent.kind == QUERY_UNMASK and sent.error is None]

    def contribution(self, number: int, run_id: str = RUN) -> NDArray[np.float32]:
        """Returns what a partner contributed last, read off its own disk: the secret that is to be kept."""
        name = f"sent-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.safetensors"
        delta_D: NDArray[np.float32] = load_file(self.folder(number) / "state" / name)["delta"]
        return delta_D

    def model(self, seed: int = 1) -> NDArray[np.float32]:
        worker = self.worker(1)
        return read_vector(build_model(worker.config.model, worker._pretrained.width, 1, seed))

    def layout(self) -> str:
        worker = self.worker(1)
        model = thread_model(worker.config.model, worker._pretrained.width, 1)
        return layout_fingerprint(model, worker._pretrained.fingerprint, worker.config.model)


@contextmanager
def partners(
    root: Path,
    encoder: Path,
    num: int = 4,
    *,
    rows: Callable[[int], pd.DataFrame] | None = None,
    weights: tuple[float, ...] = (),
    model: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    **policy: Any,
) -> Iterator[HostileServer]:
    """Writes partners with few users each, who agree on one roster and one policy, and starts the wire to them."""
    members = [
        Member(partner_name(place), identity(place + 1).public_key().public_bytes_raw().hex(), weight)
        for place, weight in enumerate(weights or (1.0,) * num)
    ]
    server = HostileServer(root, Roster(tuple(members)))
    for number in range(1, num + 1):
        home = server.folder(number)
        log = rows(number) if rows else random_rows(6, seed=number, most_rows=4)
        aggregation = PartnerAggregation(**policy)
        write_partner(
            home, encoder, log, model=model, name=partner_name(number - 1), aggregation=aggregation, **privacy or {}
        )
        (home / "roster.toml").write_text(dump_roster(server.roster), encoding="utf-8")
        write_key(home / "identity.pem", identity(number))
    forget_workers()
    try:
        yield server
    finally:
        forget_workers()


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)


STAGES = ("advertise", "reveal", "share", "mask", "confirm", "unmask")


@dataclass
class Round:
    """One attempt at one round, driven as an honest server would, with `lies` in between.

    Attributes:
        numbers: participants that are asked, all of the roster by default.
        lies: message type -> (participant, honest message) -> what is sent instead.
        model_D: of everyone; `work_of` may be lied about too (as `TrainTask`).
        grid: bits and clip.
    """

    server: HostileServer
    round: int = 1
    attempt: int = 0
    run_id: str = RUN
    numbers: Collection[int] = ()
    num_groups: int = 1
    colluders: int = 1
    catalogue: tuple[str, ...] = ()
    item_counts: bytes = b""
    model_D: NDArray[np.float32] | None = None
    clip: float = CLIP
    bits: int = 0
    plan: Any = PLAN
    lies: dict[type, Lie] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = tuple(self.numbers or range(1, len(self.server.roster) + 1))
        self.session = SessionId(self.run_id, self.round, self.attempt)
        self.gathering = Gathering(self.server.roster, self.session, self.numbers, self.colluders, self.num_groups)
        self.model_D = self.server.model() if self.model_D is None else self.model_D
        self.tallies: list[Tally] = []
        self.unmaskings: list[Unmasking] = []

    def work_of(self, number: int) -> TrainTask | StatisticsTask:
        """Returns what a participant is asked to contribute."""
        if self.catalogue:
            return StatisticsTask(self.run_id, self.catalogue)
        weight, model_D = self.server.roster.member(number).weight, np.asarray(self.model_D, np.float32)
        return TrainTask(self.run_id, self.round, self.attempt, weight, self.server.layout(), self.plan, model_D)

    def tell(self, number: int, task: Any, work: Any = None) -> Any:
        """Sends a message, lied about where `lies` says so; notes a refusal, and raises it."""
        task = self.lies.get(type(task), lambda _, honest: honest)(number, task)
        if isinstance(task, MaskTask):
            work = self.lies.get(TrainTask, lambda _, honest: honest)(number, work or self.work_of(number))
        try:
            return self.server.tell(number, task, work)
        except Refused as refusal:
            self.refusals[number] = refusal.reason
            raise

    def until(self, stage: str, **silent: Collection[int]) -> Self:
        """Plays the stages before `stage`; `silent` maps a stage to who does not answer from there on."""
        done = [name for name in STAGES if self.num_groups > 1 or name != "reveal"]
        for name in done[: done.index(stage)]:
            self.play(name, silent.get(name, ()))
        return self

    def run(self, start: str = "advertise", **silent: Collection[int]) -> list[NDArray[np.float64]]:
        """Plays all stages from `start` on and returns the sums that come out."""
        done = [name for name in STAGES if self.num_groups > 1 or name != "reveal"]
        for name in done[done.index(start) :]:
            self.play(name, silent.get(name, ()))
        return self.sums()

    def play(self, stage: str, silent: Collection[int] = ()) -> None:
        """Plays one stage; whoever refuses is left out from there on, and noted in `refusals`."""
        for number, task in self.tasks(stage).items():
            if number in silent:
                continue
            try:
                self.take(stage, number, self.tell(number, task))
            except Refused:
                continue
        if stage == "unmask":
            return
        if stage == "advertise" and self.num_groups == 1 or stage == "reveal":
            self.tallies = self.gathering.tallies()

    def tasks(self, stage: str) -> dict[int, Any]:
        """Returns what an honest server would ask whom in a stage."""
        if stage == "advertise":
            return dict.fromkeys(self.numbers, AdvertiseTask(self.session, 0 if self.catalogue else 2))
        if stage == "reveal":
            return dict.fromkeys([entry.number for entry in self.gathering.first], self.gathering.reveal_task())
        if stage == "share":
            return {number: tally.share_task for tally in self.tallies for number in tally.first}
        if stage == "mask":
            return {number: self.fixed(tally).mask_task(number) for tally in self.tallies for number in tally._sealed}
        for tally in self.tallies if stage == "confirm" else ():
            tally.fix_third()
        if stage == "confirm":
            return {number: tally.confirm_task() for tally in self.tallies for number in tally.third}
        self.unmaskings = [tally.unmasking() for tally in self.tallies]
        return {number: tally.unmask_task(number) for tally in self.tallies for number in tally.confirmed()}

    def take(self, stage: str, number: int, answer: Any) -> None:
        """Takes an answer as an honest server does."""
        if stage == "advertise":
            self.gathering.add(number, answer.parsed())
        elif stage == "reveal":
            self.gathering.add_coin(number, answer.coin)
        elif stage == "share":
            self.tally(number).add_shares(number, answer)
        elif stage == "mask":
            self.tally(number).add_upload(number, *answer)
        elif stage == "confirm":
            self.tally(number).add_confirmation(number, answer.signature)
        else:
            self.unmaskings[self.tallies.index(self.tally(number))].add(number, answer)

    def fixed(self, tally: Tally) -> Tally:
        """Returns a tally with U2 and grid fixed."""
        if not tally.second:
            work = self.work_of(self.numbers[0])  # type: ignore[index]
            length = 2 * len(self.catalogue) if self.catalogue else len(np.asarray(self.model_D))
            bits, clip = self.bits or bits_for(len(tally.first)), 0.0 if self.catalogue else self.clip
            weights = {number: self.server.roster.member(number).weight for number in tally.first}
            tally.fix_second(Grid(length, bits, clip, *work.hashes(self.item_counts)), weights)
        return tally

    def tally(self, number: int = 1) -> Tally:
        return next(tally for tally in self.tallies if number in tally.first)

    def sums(self) -> list[NDArray[np.float64]]:
        """Returns the unmasked sums, float64 [D] each."""
        return [
            decode(unmasking.finish(), len(unmasking.third), unmasking.coding) for unmasking in self.unmaskings
        ]

    def expected(self, numbers: Collection[int]) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of what participants contributed, off their disks, and how far rounding may take it."""
        total_D = np.zeros(len(np.asarray(self.model_D)))
        for number in numbers:
            member = self.server.roster.member(number)
            total_D += self.server.contribution(number, self.run_id).astype(np.float64) * member.units / WEIGHT_UNIT
        coding: Coding = self.unmaskings[0].coding
        return total_D, (len(numbers) + 1e-3) / coding.scale


def changed(message: Any, **change: Any) -> Any:
    """Returns a message with some fields changed."""
    return replace(message, **change)
