"""Real partner folders and the wire to their ClientApp: everything goes through `client.app` as Flower's bytes.

Legend: D parameters.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from conftest import random_rows
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from partner_folder import write_partner
from safetensors.numpy import load_file

from client.app import app
from client.desk import forget_workers, worker_at
from client.partner import PartnerAggregation
from client.work import Work
from client.worker import Worker, thread_model
from common.histogram_messages import EvaluationTask, HistogramTask
from common.message_types import (
    QUERY_ADVERTISE,
    QUERY_CONFIRM,
    QUERY_EVALUATE,
    QUERY_HISTOGRAM,
    QUERY_MASK,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_UNMASK,
    TRAIN_MASK,
)
from common.messages import StatisticsTask
from common.model.click_model import build_model
from common.runfolder import RunFolder, partner_name
from common.secagg.roster import Member, Roster, dump_roster
from common.stage_messages import (
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
    shares: bool = False  # whether it held shares of anybody's secret


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
        place: dict[str, Any] = {"partition-id": number - 1, "num-partitions": len(self.roster)}
        context = Context(1, 1 + number, place, RecordDict(), {"run-folder": str(self.root)})
        arrived, _ = over_the_wire(record)
        reply = app(Message(arrived, 1 + number, kind), context)
        if reply.has_error():
            error = reply.error.code, str(reply.error.reason)
            self.traffic.append(Sent(number, kind, b"", error))
            raise Refused(*error)
        content, body = over_the_wire(reply.content)
        stage = content.config_records.get("hushclick.stage", {})
        self.traffic.append(Sent(number, kind, body, shares=bool(stage.get("shares"))))
        return content

    def tell(self, number: int, task: Any, work: Work | None = None) -> Any:
        """Sends a stage's message and returns the answer, taken apart."""
        if isinstance(task, MaskTask):
            base = work.to_record() if work else RecordDict()
            kinds: dict[type, str] = {StatisticsTask: QUERY_MASK, HistogramTask: QUERY_HISTOGRAM}
            kinds[EvaluationTask] = QUERY_EVALUATE
            return upload_of(self.ask(number, kinds.get(type(work), TRAIN_MASK), stage_record(task, base)))
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
        return [sent.number for sent in self.traffic if sent.shares]

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
        model = thread_model(worker.config.model, worker._pretrained, 1)
        return layout_fingerprint(model, worker._pretrained.fingerprint, worker.config.model)


@contextmanager
def partners(
    root: Path,
    encoder: Path,
    num: int = 4,
    *,
    real: int = 0,
    rows: Callable[[int], pd.DataFrame] | None = None,
    weights: tuple[float, ...] = (),
    model: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    **policy: Any,
) -> Iterator[HostileServer]:
    """Writes partners with few users each, who agree on one roster and one policy, and starts the wire to them.

    Only the first `real` have a folder (0 = all); the others are names in the roster, whose keys the test holds.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # a server's, who makes the messages
    members = [
        Member(partner_name(place), identity(place + 1).public_key().public_bytes_raw().hex(), weight)
        for place, weight in enumerate(weights or (1.0,) * num)
    ]
    server = HostileServer(root, Roster(tuple(members)))
    for number in range(1, (real or num) + 1):
        home = server.folder(number)
        log = rows(number) if rows else random_rows(6, seed=number, most_rows=4)
        aggregation = PartnerAggregation(**policy)
        write_partner(
            home,
            encoder,
            log,
            model=model,
            name=partner_name(number - 1),
            aggregation=aggregation,
            evaluation=evaluation,
            **privacy or {},
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
