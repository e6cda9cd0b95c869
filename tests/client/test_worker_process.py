"""`hushclick worker` as a process: started, asked over its socket, ended, killed and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from partner_folder import task_for, write_partner

from client.partner import PartnerConfig, PartnerWorker, dump_partner
from client.rpc.asking import ask, is_serving
from client.worker import Worker
from client.worker_command import serve
from common.auditlog import AuditLog, read_audit_log
from common.message_types import BUDGET_EXHAUSTED, QUERY_JOIN, TRAIN_UPDATE
from common.messages import JoinReply, JoinTask, TrainReply, TrainTask
from common.privacy.ledger import Ledger
from common.programs import free_port

Start = Callable[..., "subprocess.Popen[bytes]"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def partner(tiny_encoder: Path) -> Iterator[PartnerConfig]:
    folder = Path("/tmp") / f"hushw-{os.getpid()}-{time.monotonic_ns() % 10**8}"  # short: it holds a socket
    yield write_partner(folder, tiny_encoder)
    shutil.rmtree(folder)


@pytest.fixture
def start(partner: PartnerConfig) -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(**worker: Any) -> "subprocess.Popen[bytes]":
        path = Path(partner.state).parent / "worker.toml"
        path.write_text(dump_partner(replace(partner, worker=replace(partner.worker, **worker))), encoding="utf-8")
        words = [sys.executable, "-m", "common.cli", "worker", str(path)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
        running.append(process)
        deadline = time.monotonic() + 120
        while not is_serving(partner.worker.listen):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline, "not ready in two minutes"
            time.sleep(0.1)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def told(partner: PartnerConfig, kind: str, record: RecordDict) -> tuple[int, RecordDict]:
    head, content = ask(partner.worker.listen, "", kind, record, 120)
    return head.refusal.code, content


def test_it_answers_as_the_worker_object_does_and_ends_in_order(partner: PartnerConfig, start: Start) -> None:
    task = task_for(Worker(replace(partner, ledger=partner.ledger + ".other", state=partner.state + ".other")))
    process = start()
    _, content = told(partner, QUERY_JOIN, JoinTask("run").to_record())
    assert JoinReply.from_record(content).partner == "shop"
    code, content = told(partner, TRAIN_UPDATE, task.to_record())
    assert code == 0
    assert len(TrainReply.from_record(content).contribution.delta_D) == len(task.model_D)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.decode() == "shop: 2 messages answered, 0 refused\n"
    assert not Path(partner.worker.listen.removeprefix("unix:")).exists()
    lines = [json.loads(line) for line in err.decode().splitlines()]

    assert {line["level"] for line in lines} == {"info"}
    assert all("seconds" in line for line in lines if line.get("outcome"))
    audit = read_audit_log(Path(partner.state) / "audit.jsonl")
    assert [record["what"] for record in audit] == ["started", *["asked", "answered"] * 2, "stopped"]
    assert audit[3] | {"type": TRAIN_UPDATE, "run_id": "run", "round": 1, "attempt": 0} == audit[3]


def test_promise_2_a_killed_worker_forgets_no_spend_and_gives_the_same_bytes(
    partner: PartnerConfig, start: Start
) -> None:
    task = task_for(Worker(replace(partner, ledger=partner.ledger + ".other", state=partner.state + ".other")))
    process = start()
    _, first = told(partner, TRAIN_UPDATE, task.to_record())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start()  # the socket was left behind
    _, again = told(partner, TRAIN_UPDATE, task.to_record())
    one, other = TrainReply.from_record(first), TrainReply.from_record(again)
    assert one.contribution.delta_D.tobytes() == other.contribution.delta_D.tobytes()
    assert len(Ledger(Path(partner.ledger)).events()) == 1


def test_a_worker_without_budget_ends_with_exit_code_3_once_nobody_asks(partner: PartnerConfig, start: Start) -> None:
    """One round of two steps costs 5.66, and the budget is 12: the fifth does not fit."""
    worker = Worker(replace(partner, ledger=partner.ledger + ".other", state=partner.state + ".other"))
    tasks: list[TrainTask] = [task_for(worker, number) for number in range(1, 7)]
    process = start(linger_seconds=3.0)
    codes = [told(partner, TRAIN_UPDATE, task.to_record())[0] for task in tasks]
    assert codes[0] == 0
    assert codes[-1] == BUDGET_EXHAUSTED
    assert told(partner, QUERY_JOIN, JoinTask("run").to_record())[0] == 0  # what is left of the run is answered
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "the privacy budget holds no further round" in err.decode()
    assert read_audit_log(Path(partner.state) / "audit.jsonl")[-1]["exhausted"] is True


def test_a_worker_whose_budget_comes_back_one_day_stays_up(tiny_encoder: Path, partner: PartnerConfig) -> None:
    """With a period, an exhausted budget is a pause: served in this process, and asked until it is exhausted."""
    config = replace(partner, privacy=replace(partner.privacy, period_days=30))
    config = replace(config, worker=replace(config.worker, linger_seconds=0.5))
    task = task_for(Worker(replace(config, ledger=config.ledger + ".other", state=config.state + ".other")))
    stop, audit, found = threading.Event(), AuditLog(Path(config.state) / "audit.jsonl"), []
    thread = threading.Thread(target=lambda: found.append(serve(config, audit, stop)))
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not is_serving(config.worker.listen) and time.monotonic() < deadline:
            time.sleep(0.1)
        codes = [told(config, TRAIN_UPDATE, replace(task, round=number).to_record())[0] for number in range(1, 7)]
        assert codes[-1] == BUDGET_EXHAUSTED
        time.sleep(2.5)  # beyond linger_seconds
        assert thread.is_alive()
        assert is_serving(config.worker.listen)
    finally:
        stop.set()
        thread.join(30)
        audit.close()
    assert found == [{"partner": "shop", "answered": codes.count(0), "refused": len(codes) - codes.count(0)}]


def test_a_users_erasure_reaches_a_running_worker_and_its_audit_log(partner: PartnerConfig, start: Start) -> None:
    process = start()
    path = str(Path(partner.state).parent / "worker.toml")
    words = [sys.executable, "-m", "common.cli", "erase", path, "--user", "u1", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    log, deadline = Path(partner.state) / "audit.jsonl", time.monotonic() + 30
    while not any(one["what"] == "erased" for one in read_audit_log(log)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [one["users"] for one in read_audit_log(log) if one["what"] == "erased"] == [1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_metrics_are_the_partners_own_and_on_loopback(partner: PartnerConfig, start: Start) -> None:
    task = task_for(Worker(replace(partner, ledger=partner.ledger + ".other", state=partner.state + ".other")))
    port = free_port()
    start(metrics_port=port)
    told(partner, TRAIN_UPDATE, task.to_record())
    told(partner, "train.nonsense", RecordDict())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as found:
        text = found.read().decode()
    assert f'hushclick_answers_total{{outcome="answered",type="{TRAIN_UPDATE}"}} 1.0' in text
    assert 'hushclick_answers_total{outcome="refused",type="unknown"} 1.0' in text
    spent = next(line for line in text.splitlines() if line.startswith("hushclick_epsilon_spent "))
    assert float(spent.split()[1]) == pytest.approx(5.66, abs=0.01)
    assert "hushclick_epsilon_budget 12.0" in text


def test_a_second_worker_of_the_same_partner_is_refused(partner: PartnerConfig, start: Start) -> None:
    start()
    words = [sys.executable, "-m", "common.cli", "worker", str(Path(partner.state).parent / "worker.toml")]
    second = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert second.returncode == 1
    assert "audit.jsonl is written by another process" in second.stderr
    assert is_serving(partner.worker.listen)


@pytest.mark.parametrize(
    ("listen", "says"),
    [("0.0.0.0:7000", "this machine only"), ("example.org:7000", "this machine only"), ("unix:", "the port must be")],
)
def test_a_worker_listens_on_this_machine_only(listen: str, says: str) -> None:
    with pytest.raises(Exception, match=says):
        PartnerWorker(listen=listen)
