"""What a partner keeps no longer: by the round's end, by hours, by number; and what it keeps all the same."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile.hostile_round import Round
from hostile.hostile_server import partners
from partner_folder import task_for, write_partner

from client.observing import Metrics
from client.partner import PartnerConfig, PartnerRetention
from client.retention import Deleted, forget_all, tidy
from client.roundstore import MemoryRoundStore
from client.sent import SentFile, exclusive, round_of, sent_files
from client.worker import Worker
from client.worker_command import Keeper
from common.auditlog import AuditLog, read_audit_log
from common.errors import LedgerError, ProtocolError

HOUR = 3600.0


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> PartnerConfig:
    return write_partner(tmp_path, tiny_encoder)


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


def test_a_contribution_goes_with_its_round_and_the_mark_stays(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, privacy={"epsilon": 200.0}, round_secrets="disk") as server:
        Round(server).run()
        worker = server.worker(1)
        state = Path(worker.config.state)
        (path,) = sent_files(state)
        assert round_of(path) == 1
        before = path.stat().st_size
        assert worker.tidy() == Deleted(contributions=1)
        assert round_of(path) is None
        assert path.stat().st_size < before
        assert worker.tidy() == Deleted()
        assert Round(server, round=2).run()  # the next round is none the worse
        assert round_of(path) == 2


def test_a_round_that_is_under_way_keeps_what_it_needs(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, privacy={"epsilon": 200.0}, round_secrets="disk") as server:
        round_ = Round(server).until("confirm")
        worker = server.worker(1)
        assert worker.tidy() == Deleted()
        round_.play("confirm")
        assert worker.tidy() == Deleted()
        round_.play("unmask")
        assert round_.sums()


def test_a_run_that_died_leaves_nothing_after_the_hours(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, privacy={"epsilon": 200.0}, round_secrets="disk") as server:
        round_ = Round(server).until("confirm")
        worker = server.worker(1)
        state = Path(worker.config.state)
        (secret,) = (state / "secrets").iterdir()
        (sent,) = sent_files(state)
        half = state / f".{sent.name}.00ff.part"  # a kill in the middle of a write
        half.write_bytes(sent.read_bytes())
        for path in (secret, sent, half):
            age(path, 23.9)
        assert worker.tidy() == Deleted()
        for path in (secret, sent, half):
            age(path, 24.1)
        assert worker.tidy() == Deleted(secrets=1, contributions=1, parts=1)
        assert not half.exists()
        with pytest.raises(ProtocolError, match="not under way here"):
            worker._secure.confirm(round_.tasks("confirm")[1])


def test_memory_forgets_too() -> None:
    store = MemoryRoundStore()
    store.put("old", b"1")
    now = time.time()
    assert store.expire(now - HOUR) == 0
    assert store.expire(now + 1) == 1
    assert store.get("old") is None


def test_a_contribution_of_a_plain_run_goes_by_its_age_and_is_not_made_again(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    task = task_for(worker)
    worker.train(task)
    (path,) = sent_files(Path(shop.state))
    assert worker.tidy() == Deleted()
    age(path, 25)
    assert worker.tidy() == Deleted(contributions=1)
    assert SentFile(Path(shop.state), "run").last_round == 1
    with pytest.raises(ProtocolError, match="what was sent is deleted by now"):
        worker.train(task)
    assert len(worker._budget._ledger.events()) == 1


def test_the_newest_models_stay(shop: PartnerConfig) -> None:
    models = Path(shop.state) / "models"
    for number in range(4):
        (models / f"run-{number}").mkdir(parents=True)
        (models / f"run-{number}" / "model.safetensors").write_bytes(b"x")
        age(models / f"run-{number}", 40 - number)
    (models / ".run-9.ab.part").mkdir()
    config = replace(shop, retention=PartnerRetention(delivered_models=2))
    assert tidy(config, None) == Deleted(models=2)
    assert sorted(path.name for path in models.iterdir()) == [".run-9.ab.part", "run-2", "run-3"]
    age(models / ".run-9.ab.part", 25)
    tidy(config, None)
    assert sorted(path.name for path in models.iterdir()) == ["run-2", "run-3"]


def test_nothing_is_deleted_while_an_answer_is_under_way(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    age(sent_files(Path(shop.state))[0], 25)
    with exclusive(Path(shop.state)):  # another process
        assert worker.tidy() == Deleted()
    with worker._training:
        assert worker.tidy() == Deleted()
    assert worker.tidy() == Deleted(contributions=1)


def test_a_damaged_file_stops_no_tidying(shop: PartnerConfig, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    whole = sent_files(Path(shop.state))[0]
    broken = whole.with_name("sent-0000.safetensors")
    broken.write_bytes(b"nonsense")
    age(whole, 25)
    assert worker.tidy() == Deleted(contributions=1)
    assert "sent-0000.safetensors: damaged" in caplog.text
    assert broken.exists()


def test_a_damaged_file_stops_no_erasure_of_the_others(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    (whole,) = sent_files(Path(shop.state))
    broken = whole.with_name("sent-0000.safetensors")  # the first of them
    broken.write_bytes(b"nonsense")
    with pytest.raises(LedgerError, match=r"sent-0000.safetensors: damaged(.|\n)*erase again"):
        forget_all(Path(shop.state))
    assert round_of(whole) is None


def test_the_ledger_the_register_and_the_audit_log_stay(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    state = Path(shop.state)
    log = AuditLog(state / "audit.jsonl")
    log.append("started")
    log.close()
    for path in [*state.rglob("*"), Path(shop.ledger)]:
        age(path, 10**5)
    kept = {path.name: path.read_bytes() for path in (Path(shop.ledger), state / "audit.jsonl")}
    worker.tidy()
    assert {path.name: path.read_bytes() for path in (Path(shop.ledger), state / "audit.jsonl")} == kept
    assert (state / "ledger-head.json").exists()


def test_what_was_deleted_is_counted_in_the_audit_log_and_the_metrics(shop: PartnerConfig, tmp_path: Path) -> None:
    worker, metrics, audit = Worker(shop), Metrics(), AuditLog(tmp_path / "audit.jsonl")
    worker.train(task_for(worker))
    age(sent_files(Path(shop.state))[0], 25)
    keeper = Keeper(worker, audit, metrics)
    keeper.look()
    worker.erased.add(["u1", "u2"])
    worker.noise_alone += 3
    keeper.look()
    keeper.look()
    audit.close()
    found: list[dict[str, Any]] = read_audit_log(tmp_path / "audit.jsonl")
    assert [one["what"] for one in found] == ["deleted", "erased", "noise_alone"]
    assert found[0]["contributions"] == 1
    assert (found[1]["users"], found[2]["times"]) == (2, 3)
    sample = metrics.registry.get_sample_value
    assert sample("hushclick_deleted_total", {"kind": "contributions"}) == 1
    assert sample("hushclick_noise_alone") == 3
