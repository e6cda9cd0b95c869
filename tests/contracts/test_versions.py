"""Every file format and every contract carries a version, and another one is refused with both named, and the mend.

One table: what writes an artefact today, how its version is raised, and what reads it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_rows
from dp_events import release
from flwr.app import ConfigRecord, RecordDict
from kits import Operator, consortium
from overlap_pair import NOW, write_pair
from partner_folder import noisy_labels, task_for, write_partner
from safetensors import safe_open
from safetensors.numpy import save

from client.anchors import HeadFile
from client.deployment import load_client
from client.erasure import Erased
from client.identity import new_identity
from client.labels import DRAWN_VERSION
from client.overlap.answers import Answer, AnswerLog
from client.overlap.exchange import Overlap
from client.participant import _Register
from client.partner import PartnerAggregation, load_partner
from client.rpc.pieces import VERSION as WORKER_VERSION
from client.rpc.pieces import pieces_of, read_pieces
from client.sent import SentFile
from client.worker import Worker
from common.anchors import AnchorFile
from common.auditlog import AuditLog, read_audit_log
from common.errors import HushclickError
from common.histogram import Catalogue, Terms
from common.itemrates import Release
from common.messages import PROTOCOL_VERSION, JoinReply, JoinTask
from common.privacy.events import EVENT_VERSION
from common.privacy.ledger import Ledger
from common.runfolder import write_json
from common.secagg.roster import Member, Roster, dump_roster, load_roster
from common.secagg.states import Advertised, dump_state, load_state
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.control import Control
from server.deployment import load_deployment
from server.journal import Journal
from server.partnerevaluation import SCORES_VERSION, read_scores
from server.provision.record import load_issued

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A partner's folder, kits, and an empty folder."""

    root: Path
    encoder: Path
    kits: Path

    def partner(self, **change: Any) -> Any:
        return write_partner(self.root / "shop", self.encoder, **change)


@pytest.fixture
def place(tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium())
    return Place(tmp_path, tiny_encoder, operator.kits)


def in_json(path: Path, key: str = "version") -> int:
    """Raises the version in a file of JSON; returns the one that was written."""
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps(found | {key: found[key] + 1}), encoding="utf-8")
    return int(found[key])


def in_tensors(path: Path, inside: str = "") -> int:
    """Raises the version in the metadata of a safetensors file, or in the JSON under one of its keys."""
    with safe_open(str(path), framework="numpy") as file:
        facts, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if inside:
        table = json.loads(facts[inside])
        version = table["version"]
        facts[inside] = json.dumps(table | {"version": version + 1})
    else:
        version = int(facts["version"])
        facts["version"] = str(version + 1)
    path.write_bytes(save(arrays, facts))
    return int(version)


def in_last_line(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Raises the version of the last line of a file, and signs the line again."""
    *lines, last = path.read_bytes().splitlines()
    record = json.loads(last)
    digest, version = record.pop("sha256", None), record["version"]
    if change:
        change(record)
    else:
        record["version"] += 1
    text = json.dumps(record, separators=(",", ":")).encode()
    if digest:
        text = text[:-1] + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}'
    path.write_bytes(b"\n".join([*lines, text]) + b"\n")
    return int(version)


def in_toml(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("kit = 1\n")
    path.write_text(text.replace("kit = 1", "kit = 2", 1), encoding="utf-8")
    return 1


# Each writes an artefact, raises its version, and returns it with what then reads it.
Case = Callable[[Place], tuple[int, Callable[[], Any]]]


def _ledger(place: Place) -> Any:
    path = place.root / "ledger.jsonl"
    Ledger(path, "shop").reserve(EVENT)
    return in_last_line(path), lambda: Ledger(path, "shop").events()


def _event(place: Place) -> Any:
    path = place.root / "ledger.jsonl"
    Ledger(path, "shop").reserve(EVENT)

    def change(record: dict[str, Any]) -> None:
        record["event"]["version"] += 1

    in_last_line(path, change)
    return EVENT_VERSION, lambda: Ledger(path, "shop").events()


def _head(place: Place) -> Any:
    ledger = Ledger(place.root / "ledger.jsonl", "shop")
    ledger.reserve(EVENT)
    head = HeadFile(place.root)
    head.keep(ledger.head())
    return in_json(place.root / "ledger-head.json"), head.read


def _anchors(place: Place) -> Any:
    file = AnchorFile(place.root / "anchors.jsonl")
    file.append("run", 1, {"shop": "ab" * 32})
    assert file.last() == {"shop": "ab" * 32}
    return in_last_line(place.root / "anchors.jsonl"), file.last


def _audit(place: Place) -> Any:
    path = place.root / "audit.jsonl"
    log = AuditLog(path)
    log.append("started")
    log.close()
    return in_last_line(path), lambda: read_audit_log(path)


def _checkpoint(place: Place) -> Any:
    path = place.root / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint("run", "a" * 64, "b" * 64, 1, np.zeros(2, np.float32), {}))
    return in_tensors(path, "facts"), lambda: load_checkpoint(path, "a" * 64)


def _journal(place: Place) -> Any:
    journal = Journal(place.root)
    journal.begin(1, [])
    assert journal.load(1) == []
    return in_tensors(place.root / "unmask.safetensors", "facts"), lambda: journal.load(1)


def _nodes(place: Place) -> Any:
    control = Control(place.root, "127.0.0.1:1", place.root / "ca.crt")
    path = place.root / "nodes.json"
    path.write_text(json.dumps({"version": 1, "nodes": {"shop": {"node": "1", "key": "k"}}}), encoding="utf-8")
    assert control._written() == {"shop": {"node": "1", "key": "k"}}
    return in_json(path), control._written


def _sent(place: Place) -> Any:
    worker = Worker(place.partner())
    task = task_for(worker)
    worker.train(task)
    (path,) = Path(worker.config.state).glob("sent-*")
    return in_tensors(path), lambda: SentFile(path.parent, "run").last_round


def _register(place: Place) -> Any:
    register = _Register(place.root, "run")
    register.close(1)
    (path,) = place.root.glob("rounds-*.json")
    return in_json(path), lambda: _Register(place.root, "run")


def _state(_place: Place) -> Any:
    table = json.loads(dump_state(Advertised(b"s", b"m", b"c", b"n", b"o")))
    blob = json.dumps(table | {"version": table["version"] + 1}).encode()
    return table["version"], lambda: load_state(blob)


def _erased(place: Place) -> Any:
    erased = Erased(place.root)
    erased.add(["u1"])
    return in_json(place.root / "erased/users.json"), lambda: len(erased)


def _counts(place: Place) -> Any:
    worker = Worker(place.partner(mode="none", model={"item_rates": "exact"}))
    worker._keep_counts({"i1": [1.0, 2.0]})
    assert worker._known_counts() == {"i1": (1.0, 2.0)}
    return in_json(worker._catalogue_path), worker._known_counts


def _release(place: Place) -> Any:
    privacy = {"statistics_noise_multiplier": 1.0}
    secure = PartnerAggregation()
    config = place.partner(model={"item_rates": "private"}, aggregation=secure, **privacy)
    own = Member("shop", new_identity(Path(config.identity)), 1.0)
    others = [Member(f"other{n}", new_identity(place.root / f"{n}.pem"), 1.0) for n in range(2)]
    Path(config.roster).write_text(dump_roster(Roster((own, *others))), encoding="utf-8")
    worker, catalogue = Worker(config), Catalogue(("i1",), ("",))
    sums_2B = np.zeros((2, catalogue.block), np.int64)
    worker._keep_release(Release(0, catalogue, Terms(0.5, 0.75), 2**16, sums_2B, 1.0).to_bytes())
    assert worker._item_rates() is not None
    return in_json(worker._release_path), worker._item_rates


def _overlap_file(place: Place) -> Any:
    users = [f"user-{number}" for number in range(120)]
    pair = write_pair(place.root / "pair", place.encoder, {"shop-a": users, "shop-b": users})
    request = Overlap(pair["shop-a"], now=lambda: NOW).ask("shop-b", place.root)
    text = request.read_bytes().replace(b'"version":1', b'"version":2')
    request.write_bytes(text)
    return 1, lambda: Overlap(pair["shop-b"], now=lambda: NOW).answer(request, place.root)


def _answers(place: Place) -> Any:
    log = AnswerLog(place.root / "answers.jsonl")
    log.append(Answer(1, "aa" * 16, "shop-a", "00" * 32, "11" * 32, 1024, 1024))
    assert len(log.answers()) == 1
    return in_last_line(log.path), log.answers


def _worker_contract(_place: Place) -> Any:
    pieces = list(pieces_of(RecordDict(), "query.join"))
    pieces[0].head.version += 1
    return WORKER_VERSION, lambda: read_pieces(pieces, 100)


def _join(message: JoinTask | JoinReply) -> Case:
    def case(_place: Place) -> Any:
        fields = dict(message.to_record().config_records["hushclick.fields"])
        fields["protocol"] = PROTOCOL_VERSION + 1
        fields["a_field_of_tomorrow"] = 1  # which must not be what is complained of
        record = RecordDict({"hushclick.fields": ConfigRecord(fields)})
        assert type(message).from_record(message.to_record()) == message
        return PROTOCOL_VERSION, lambda: type(message).from_record(record)

    return case


def _kit(name: str, load: Callable[[Path], Any]) -> Case:
    def case(place: Place) -> Any:
        load(place.kits / name)
        return in_toml(place.kits / name), lambda: load(place.kits / name)

    return case


def _issued(place: Place) -> Any:
    load_issued(place.kits / "issued.json")
    return in_json(place.kits / "issued.json", "kit"), lambda: load_issued(place.kits / "issued.json")


EVENT = release()


def _labels(place: Place) -> Any:
    config, rows = place.partner(mode="label", epsilon=1.0, noise_multiplier=None), random_rows(3)
    labels = noisy_labels(config)
    labels.flipped(rows)
    (path,) = (Path(config.state) / "labels").glob("*.drawn")
    data = bytearray(path.read_bytes())
    data[8] += 1  # after the magic, the version in four bytes
    path.write_bytes(bytes(data))
    return DRAWN_VERSION, lambda: labels.flipped(rows)


def _evaluation(place: Place) -> Any:
    path = place.root / "round-000001.json"
    write_json(path, {"version": SCORES_VERSION, "round": 1, "contributors": 3, "grid": 4096, "sums": [[1], [2]]})
    assert read_scores(path).contributors == 3
    return in_json(path), lambda: read_scores(path)


CASES: dict[str, Case] = {
    "protocol, to a partner": _join(JoinTask("run")),
    "protocol, to the server": _join(JoinReply("shop", 10, "f", False, "")),
    "worker contract": _worker_contract,
    "ledger": _ledger,
    "ledger event": _event,
    "ledger-head.json": _head,
    "anchors.jsonl": _anchors,
    "audit.jsonl": _audit,
    "checkpoint.safetensors": _checkpoint,
    "unmask.safetensors": _journal,
    "nodes.json": _nodes,
    "sent-RUN.safetensors": _sent,
    "rounds-RUN.json": _register,
    "a round's secrets": _state,
    "erased/users.json": _erased,
    "labels/KEY.drawn": _labels,
    "item_counts.json": _counts,
    "statistics.json": _release,
    "evaluation/round-N.json": _evaluation,
    "overlap request": _overlap_file,
    "overlap/answers.jsonl": _answers,
    "worker.toml": _kit("partners/shop-a/worker.toml", load_partner),
    "client.toml": _kit("partners/shop-a/client.toml", load_client),
    "server.toml": _kit("server/server.toml", load_deployment),
    "roster.toml": _kit("server/roster.toml", load_roster),
    "issued.json": _issued,
}
MENDS = ("release", "upgrade", "version of", "install the version", "ask anew", "remove", "move it away")


@pytest.mark.parametrize("name", CASES)
def test_another_version_is_refused_with_both_named_and_the_mend(name: str, place: Place) -> None:
    written, read = CASES[name](place)
    with pytest.raises(HushclickError) as refused:
        read()
    text = str(refused.value)
    assert str(written + 1) in text, text
    assert str(written) in text.replace(str(written + 1), ""), text
    assert any(mend in text for mend in MENDS), text
    assert "damaged" not in text.split(";")[0], text


def test_who_must_be_upgraded_is_the_older_one() -> None:
    fields = dict(JoinTask("run").to_record().config_records["hushclick.fields"])

    def refusal(**change: Any) -> str:
        record = RecordDict({"hushclick.fields": ConfigRecord({**fields, **change})})
        with pytest.raises(HushclickError) as refused:
            JoinTask.from_record(record)
        return str(refused.value)

    newer, older = PROTOCOL_VERSION + 1, PROTOCOL_VERSION - 1
    assert refusal(protocol=newer).endswith(
        f"speaks protocol {newer}, this partner speaks {PROTOCOL_VERSION}: upgrade hushclick of this partner to the"
        " release of the server"
    )
    assert "upgrade hushclick of the server to the release of this partner" in refusal(protocol=older)
    del fields["protocol"]
    assert "the server speaks protocol 0" in refusal()
    assert refusal(protocol="1") == "protocol = '1': must be a whole number"


def test_the_page_lists_every_version() -> None:
    page = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    table = page[page.index("## Versions") :]
    for name in CASES:
        assert name in table, name
