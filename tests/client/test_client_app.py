"""The shim: what leaves it, and above all what does not."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_rows
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from partner_folder import task_for, write_partner

import client.app
import client.worker
from client.app import app
from client.desk import forget_workers, worker_at
from client.worker import Worker
from common.errors import HushclickError
from common.message_types import BUDGET_EXHAUSTED, QUERY_CATALOGUE, QUERY_JOIN, QUERY_STATISTICS, REFUSED, TRAIN_UPDATE
from common.messages import CatalogueTask, JoinReply, JoinTask, StatisticsReply, StatisticsTask, TrainReply
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder

Ask = Callable[..., Message]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(tmp_path)
    forget_workers()


@pytest.fixture
def ask(folder: RunFolder) -> Ask:
    """Sends a record to the ClientApp as Flower does and returns its reply."""

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # a server's, who makes the message

    def send(kind: str, record: RecordDict, partner: int = 0, **run_config: Any) -> Message:
        place = {"partition-id": partner, "num-partitions": 2}
        context = Context(1, 2 + partner, place, RecordDict(), {"run-folder": str(folder.root)} | run_config)
        return app(Message(record, 2 + partner, kind), context)

    return send


@pytest.fixture
def partner(folder: RunFolder, tiny_encoder: Path) -> Callable[..., Worker]:
    """Writes a partner's folder and returns the worker that the app will use."""

    def write(number: int = 0, rows: Any = None, **privacy: Any) -> Worker:
        write_partner(folder.partner(number), tiny_encoder, rows, **privacy)
        return worker_at(folder.partner(number))

    return write


def test_each_question_is_answered_by_its_message(ask: Ask, partner: Callable[..., Worker]) -> None:
    worker = partner(mode="none", model={"item_rates": "exact"})
    joined = JoinReply.from_record(ask(QUERY_JOIN, JoinTask("run").to_record()).content)
    assert joined == worker.join(JoinTask("run"))
    counts = StatisticsReply.from_record(ask(QUERY_STATISTICS, StatisticsTask("run", ("i1",)).to_record()).content)
    assert counts.counts_2I.shape == (2, 1)
    told = ask(QUERY_CATALOGUE, CatalogueTask("run", ("i1",), counts.counts_2I).to_record())
    assert not told.has_error()
    assert len(told.content) == 0
    trained = TrainReply.from_record(ask(TRAIN_UPDATE, task_for(worker, 4).to_record()).content)
    assert trained.round == 4


def test_a_worker_is_made_once_per_folder_and_forgotten(folder: RunFolder, partner: Callable[..., Worker]) -> None:
    first, second = partner(0), partner(1)
    assert worker_at(folder.partner(0)) is first is not second
    forget_workers()
    assert worker_at(folder.partner(0)) is not first


# --- promise 1 ----------------------------------------------------------------------------------------------------


def test_promise_1_the_reply_holds_round_kind_public_weight_and_body_whatever_the_data(
    ask: Ask, partner: Callable[..., Worker]
) -> None:
    """Two partners with other users, rows and click rates: replies of the same fields and the same size."""
    few, many = random_rows(2, seed=1, most_rows=2), random_rows(60, seed=2).assign(clicked=np.int8(1))
    assert len(many) > 50 * len(few)
    sizes, names = [], []
    for number, rows in enumerate((few, many)):
        task = task_for(partner(number, rows), weight=0.5)
        reply = ask(TRAIN_UPDATE, task.to_record(), number)
        fields = dict(reply.content["hushclick.fields"])
        assert len(fields.pop("anchor")) == 64  # of the ledger, blinded by a nonce
        assert fields == {"round": 1, "kind": "local_delta", "weight": 0.5}
        body = reply.content["hushclick.arrays"]["body"]
        assert body.shape == task.model_D.shape
        assert set(reply.content) == {"hushclick.fields", "hushclick.arrays"}
        assert set(reply.content["hushclick.arrays"]) == {"body"}
        sizes.append(len(recorddict_to_proto(reply.content).SerializeToString()))
        names.append(body.data)
    assert sizes[0] == sizes[1]
    assert names[0] != names[1]


def test_promise_1_a_join_reply_does_not_depend_on_the_data(ask: Ask, partner: Callable[..., Worker]) -> None:
    replies = []
    for number, rows in enumerate((random_rows(3), random_rows(60, seed=2))):
        partner(number, rows)
        replies.append(recorddict_to_proto(ask(QUERY_JOIN, JoinTask("run").to_record(), number).content))
    assert replies[0] == replies[1]


SECRET = "user u0001 clicked on item i7"


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ValueError, MemoryError, UnicodeError, TypeError])
@pytest.mark.parametrize("question", [QUERY_JOIN, TRAIN_UPDATE])
def test_promise_1_an_internal_error_leaves_its_type_only(
    kind: type[Exception], question: str, ask: Ask, partner: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = partner()
    record = task_for(worker).to_record() if question == TRAIN_UPDATE else JoinTask("run").to_record()

    def fail(*_: Any) -> None:
        raise kind(SECRET)

    monkeypatch.setattr(Worker, "_data", fail)
    reply = ask(question, record)
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (REFUSED, f"internal error: {kind.__name__}")
    assert "u0001" not in repr(reply)


def test_promise_1_an_error_in_the_click_log_leaves_no_figure_of_it(
    ask: Ask, folder: RunFolder, partner: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """Times in milliseconds: the error counts the rows, which is for the partner's operator and for nobody else."""
    rows = random_rows(11)
    partner(rows=rows)
    card = folder.partner(0) / "card.toml"
    card.write_text(card.read_text().replace('"seconds"', '"iso"'))
    forget_workers()
    reply = ask(QUERY_JOIN, JoinTask("run").to_record())
    assert (reply.error.code, reply.error.reason) == (
        REFUSED,
        "refused (DataError); this partner's own log says why",
    )
    (line,) = caplog.messages
    assert f"none of {len(rows)} values is a time" in line


# --- promise 2 ----------------------------------------------------------------------------------------------------


def test_promise_2_an_exhausted_budget_has_a_code_of_its_own(ask: Ask, partner: Callable[..., Worker]) -> None:
    worker = partner(epsilon=1.0)
    reply = ask(TRAIN_UPDATE, task_for(worker).to_record())
    assert reply.error.code == BUDGET_EXHAUSTED
    assert reply.error.reason == "this partner's privacy budget is exhausted"  # what is spent is not the server's
    assert Ledger(Path(worker.config.ledger)).events() == ()


@pytest.mark.parametrize("field", ["noise_multiplier", "clip", "sampling_rate", "epsilon", "fixed_seed", "mode"])
def test_promise_2_a_server_that_sends_privacy_fields_is_refused(
    field: str, ask: Ask, partner: Callable[..., Worker]
) -> None:
    worker = partner()
    record = task_for(worker).to_record()
    record["hushclick.fields"][field] = 0.0
    reply = ask(TRAIN_UPDATE, record)
    assert reply.error.code == REFUSED
    assert field in reply.error.reason
    assert Ledger(Path(worker.config.ledger)).events() == ()


@pytest.mark.parametrize("run_id", ["", "x" * 201, "a\nb"])
def test_promise_2_a_run_that_cannot_be_written_down_is_not_trained(
    run_id: str, ask: Ask, partner: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = partner()
    task = task_for(worker, run_id=run_id)

    def train(*_: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(client.worker, "train_privately", train)
    reply = ask(TRAIN_UPDATE, task.to_record())
    assert reply.error.code == REFUSED


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [QUERY_JOIN, QUERY_STATISTICS, QUERY_CATALOGUE, TRAIN_UPDATE])
@pytest.mark.parametrize(
    "record", [RecordDict(), RecordDict({"hushclick.fields": ConfigRecord({"x": 1})})], ids=["empty", "foreign"]
)
def test_nonsense_is_refused(question: str, record: RecordDict, ask: Ask, partner: Callable[..., Worker]) -> None:
    partner()
    reply = ask(question, record)
    assert reply.error.code == REFUSED
    assert reply.error.reason.startswith("a message with the ")


def test_only_errors_about_the_message_itself_keep_their_text(
    ask: Ask, partner: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = partner()
    task = task_for(worker, fingerprint="0" * 64)
    assert ask(TRAIN_UPDATE, task.to_record()).error.reason.startswith("model layout 000000000000, this partner has")

    def fail(*_: Any) -> None:
        raise HushclickError("a path and a count of the partner's own")

    monkeypatch.setattr(Worker, "join", fail)
    assert ask(QUERY_JOIN, JoinTask("run").to_record()).error.reason == (
        "refused (HushclickError); this partner's own log says why"
    )


def test_a_partner_that_is_not_there_is_said_in_its_own_log(
    ask: Ask, partner: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    partner(0)
    reply = ask(QUERY_JOIN, JoinTask("run").to_record(), 1)
    assert reply.error.reason == "refused (ConfigError); this partner's own log says why"
    assert "partner-0001" in caplog.text
    assert "no such file" in caplog.text


def test_a_failing_partner_recovers(ask: Ask, folder: RunFolder, partner: Callable[..., Worker]) -> None:
    """A worker that could not be made is not remembered."""
    worker = partner()
    path = folder.partner(0) / "partner.toml"
    text = path.read_text()
    forget_workers()
    path.write_text("broken")
    assert ask(QUERY_JOIN, JoinTask("run").to_record()).has_error()
    path.write_text(text)
    reply = ask(QUERY_JOIN, JoinTask("run").to_record())
    assert JoinReply.from_record(reply.content) == worker.join(JoinTask("run"))


def test_an_answer_is_to_its_question(ask: Ask, partner: Callable[..., Worker]) -> None:
    partner()
    for record in (JoinTask("run").to_record(), RecordDict()):
        reply = ask(QUERY_JOIN, record)
        assert reply.metadata.message_type == QUERY_JOIN
        assert reply.metadata.src_node_id == 2


def test_promise_3_the_shim_holds_no_data_model_or_key() -> None:
    """What Flower starts keeps nothing, and loads nothing that could train or be kept: it starts for every message."""
    held = {name: value for name, value in vars(client.app).items() if not name.startswith("__")}
    assert not {name for name, value in held.items() if isinstance(value, (dict, list, set, np.ndarray))}
    program = "import client.app, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(found.stdout.split())
    assert {"flwr", "grpc"} <= loaded
    assert not loaded & {"torch", "opacus", "transformers", "pandas", "sklearn", "scipy", "pydantic", "simulations"}
