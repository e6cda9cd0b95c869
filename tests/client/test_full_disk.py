"""A partner's disk that fills up: nothing is released that could not be charged, and with space it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from disks import fill
from flwr.app import RecordDict
from partner_folder import task_for, write_partner

from client.partner import PartnerConfig, dump_partner
from client.rpc.asking import ask, is_serving
from client.worker import Worker
from common.auditlog import read_audit_log
from common.message_types import REFUSED, TRAIN_UPDATE
from common.messages import TrainReply
from common.privacy.ledger import Ledger

SECONDS = 600.0
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def partner(tiny_encoder: Path, disk: Path) -> Iterator[PartnerConfig]:
    folder = Path("/tmp") / f"hushfd-{os.getpid()}"  # short: it holds a socket
    found = write_partner(folder, tiny_encoder)
    yield replace(found, ledger=str(disk / "ledger.jsonl"), state=str(disk / "state"))
    shutil.rmtree(folder)


def start(partner: PartnerConfig, log: Path) -> "subprocess.Popen[bytes]":
    path = log.with_name("worker.toml")
    path.write_text(dump_partner(partner), encoding="utf-8")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "common.cli", "worker", str(path)], stdout=out, stderr=out, env=ENVIRONMENT
        )
    deadline = time.monotonic() + SECONDS
    while not is_serving(partner.worker.listen):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return process


def test_a_worker_on_a_full_disk_refuses_says_so_and_goes_on_with_space(
    partner: PartnerConfig, disk: Path, tmp_path: Path
) -> None:
    other = replace(partner, ledger=str(tmp_path / "other.jsonl"), state=str(tmp_path / "other"))
    first, second = (task_for(Worker(other), number).to_record() for number in (1, 2))
    log, listen = tmp_path / "worker.log", partner.worker.listen

    def told(task: RecordDict) -> tuple[int, str, RecordDict]:
        head, content = ask(listen, "", TRAIN_UPDATE, task, SECONDS)
        return head.refusal.code, head.refusal.text, content

    process = start(partner, log)
    try:
        code, _, given = told(first)
        assert code == 0
        filler = fill(disk)
        code, says, _ = told(second)
        assert (code, says) == (REFUSED, "refused (LedgerError); this partner's own log says why")
        assert "No space left on device: the disk is full, make space there" in log.read_text()
        # What was charged before the disk was full to the last page stays charged, though nothing left.
        spent = [event.round for event in Ledger(Path(partner.ledger)).events()]
        assert spent in ([1], [1, 2])
        assert str(disk) not in says
        filler.unlink()
        assert told(second)[0] == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start(partner, log)
        code, _, again = told(second)
        assert code == 0
        assert TrainReply.from_record(again).round == 2
        code, says, _ = told(first)  # the last good one is kept, earlier ones are over
        assert code == REFUSED, says
    finally:
        process.kill()
        process.wait()
    assert TrainReply.from_record(given).round == 1
    ledger = Ledger(Path(partner.ledger))
    ledger.verify()
    assert [event.round for event in ledger.events()] == [*spent, 2]
    assert len(ledger.uncommitted()) == len(spent) - 1
    whats = [record["what"] for record in read_audit_log(Path(partner.state) / "audit.jsonl")]
    assert whats.count("answered") == 3
