"""What dies, hangs or fills up in a deployment, with Flower's own programs over TLS: slow.

What is asserted of every fault: the round ends by its timeout without whoever is lost, later rounds have it again,
nothing is charged twice or forgotten, no round is played twice, and the run ends with exit code 0.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployments import SECONDS, Deployment, Proxy, same_model
from disks import fill
from kits import Operator
from simulated_runs import run, small_config

from common.auditlog import read_audit_log
from common.config import Config
from common.message_types import TRAIN_MASK
from common.runfolder import RunFolder

# Training takes about a second, so that it can be met in the middle; the noise is large, so that no budget ends.
ROUND = {"local_steps": 40}
PRIVACY = {"noise_multiplier": 5.0, "epsilon": 900.0}
ROUNDS = 12  # three times: a full one, a fault, and one without whoever was lost; and some to come back in
TIMEOUTS = {"timeout_seconds": 75.0, "stage_timeout_seconds": 45.0}  # times the machine's pace
_SHIM_SECONDS = 3.0  # that an idle machine takes to start what Flower starts for each message, and some


def pace() -> float:
    """Returns by what timeouts are stretched: a shim that takes four times as long to start gets four times as long."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import flwr.supernode.cli, client.app"], check=True, cwd="/")
    return min(8.0, max(1.0, (time.monotonic() - started) / _SHIM_SECONDS))


def config_of(encoder: Path, partners: int, rounds: int, **aggregation: Any) -> Config:
    by = pace()
    return small_config(
        encoder,
        partners,
        rounds,
        round=ROUND,
        privacy=PRIVACY,
        aggregation={name: seconds * by for name, seconds in TIMEOUTS.items()} | aggregation,
    )


def deployment_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Path, config: Config) -> Deployment:
    """Kits with the clicks of a simulation that is over at once."""
    number = config.data.partners
    run(small_config(encoder, number, 1), tmp_path / "simulated")
    return Deployment(tmp_path, Operator(tmp_path, capsys), config, RunFolder(tmp_path / "simulated"))


@pytest.fixture
def five(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_encoder: Path) -> Iterator[Deployment]:
    """Of five partners without colluders three are enough: two can be lost at a time."""
    found = deployment_of(tmp_path, capsys, tiny_encoder, config_of(tiny_encoder, 5, ROUNDS, colluders=0))
    yield found
    found.end()


def contributed(deployment: Deployment) -> dict[int, int]:
    """Returns round -> how many contributed, as far as the run has come; no round stands there twice."""
    rounds = deployment.facts("round")
    assert len({one["round"] for one in rounds}) == len(rounds), rounds
    return {one["round"]: one.get("contributed", 0) for one in rounds}


def require_books(deployment: Deployment) -> dict[str, set[int]]:
    """Every contributed round is charged, once; no attempt was answered twice. Returns what is charged."""
    charged = {}
    for name in deployment.names:
        audit = [one for one in read_audit_log(deployment.state(name) / "audit.jsonl") if one.get("type") == TRAIN_MASK]
        asked = {one["round"] for one in audit}
        answered = [(one["round"], one["attempt"]) for one in audit if one["what"] == "answered"]
        spent = [event.round for event in deployment.ledger(name).events()]
        assert len(answered) == len(set(answered)), (name, answered)
        assert len(spent) == len(set(spent)), (name, spent)
        assert {number for number, _ in answered} <= set(spent) <= asked, (name, answered, spent, asked)
        charged[name] = set(spent)
    for number, count in contributed(deployment).items():
        assert count <= sum(number in rounds for rounds in charged.values())
    return charged


class Once:
    """Signals processes as soon as something is there, and says what from then on."""

    def __init__(self, there: Callable[[], Any], processes: list[psutil.Process], number: signal.Signals) -> None:
        self._there, self._processes, self._number = there, processes, number
        self.found: Any = None

    def __call__(self) -> Any:
        if not self.found and (found := self._there()):
            for process in self._processes:
                process.send_signal(self._number)
            self.found = found
        return self.found


def all_of(*acts: Once) -> Callable[[], bool]:
    """Returns what is true when each act was done; none waits for another."""
    return lambda: min(bool(act()) for act in acts)


def full(deployment: Deployment, since: int) -> int:
    """Waits for a round, from `since` on, in which everybody was there, and returns its number."""

    def found() -> int:
        everybody = len(deployment.names)
        return max((number for number, count in contributed(deployment).items() if count == everybody), default=0)

    deployment.wait_until(lambda: found() >= since, f"a full round from {since} on")
    return found()


def over(deployment: Deployment, number: int) -> None:
    """Waits for the end of a round."""
    deployment.wait_until(lambda: number in contributed(deployment), f"round {number}")


@pytest.mark.soak
@pytest.mark.slow
def test_partners_that_die_hang_or_are_cut_off_are_missed_and_come_back(five: Deployment) -> None:
    """A worker is killed in its training while another hangs; a shim is killed while a network is cut; a worker is
    killed whose secrets lie on the disk, while those of the first lay in its memory."""
    shim, killed, hangs, cut_off, sealed = five.names
    proxy = Proxy(five.port)
    five.point(cut_off, proxy.address)
    five.change(five.kits / "partners" / killed / "worker.toml", ("aggregation", "round_secrets", "memory"))
    server = five.start_server()
    clients = {name: five.start_client(name) for name in five.names}
    missed: dict[str, int] = {}

    number = full(five, 1)
    hung, died = five.processes_of(clients[hangs], " worker "), five.processes_of(clients[killed], " worker ")
    in_training = Once(five.ledger(killed).uncommitted, died, signal.SIGKILL)
    hanging = Once(lambda: five.asked(hangs, TRAIN_MASK, number + 1), hung, signal.SIGSTOP)
    five.wait_until(all_of(in_training, hanging), "the next training")
    assert five.ledger(killed).uncommitted(), "it was not killed in its training"
    missed |= {killed: five.ledger(killed).events()[-1].round, hangs: hanging.found}
    over(five, max(missed.values()))
    for one in hung:
        one.send_signal(signal.SIGCONT)

    number = full(five, number + 2)
    proxy.cut()
    missed[cut_off] = number + 1
    working = Once(lambda: five.asked(shim, TRAIN_MASK, number + 1), [], signal.SIGKILL)
    missed[shim] = five.wait_until(working, "the next training")
    for one in five.processes_of(clients[shim], "flwr-clientapp"):
        one.kill()
    over(five, missed[shim])
    proxy.restore()

    over(five, missed[shim] + 1)  # whoever was cut off may take longer: its SuperNode must be found to have given up
    died = five.processes_of(clients[sealed], " worker ")
    five.wait_until(Once(five.ledger(sealed).uncommitted, died, signal.SIGKILL), "the next training")
    assert five.ledger(sealed).uncommitted(), "it was not killed in its training"
    missed[sealed] = five.ledger(sealed).events()[-1].round

    assert five.wait(server) == 0, five.said()
    proxy.end()
    rounds = {one["round"]: one for one in json.loads(five.result.metrics.read_bytes())["rounds"]}
    assert len(rounds) == ROUNDS
    for name, when in missed.items():
        assert name in rounds[when]["failures"], (name, rounds)
    assert all(one["contributed"] >= 3 for one in rounds.values() if one["round"] >= min(missed.values())), rounds
    charged = require_books(five)
    for name in (killed, sealed):
        assert missed[name] in charged[name], "what was reserved when it was killed is spent"
        clients[name].send_signal(signal.SIGTERM)
        assert clients[name].wait(SECONDS) == 0
        assert "worker 1 times" in five.log_of(clients[name])
    for name in set(five.names) - {cut_off}:
        assert "and seeks none" not in five.log_of(clients[name]), "a SuperNode that works is left alone"
    for name in five.names:
        assert max(charged[name]) > missed[name], f"{name} did not come back"


@pytest.fixture
def three(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_encoder: Path) -> Iterator[Deployment]:
    """Three partners, of whom none can be missed, and the server's run folder on a small disk of its own."""
    config = small_config(tiny_encoder, 3, 4, aggregation={"timeout_seconds": 300.0, "stage_timeout_seconds": 120.0})
    run(config, tmp_path / "simulated")
    found = Deployment(tmp_path, Operator(tmp_path, capsys), config, RunFolder(tmp_path / "simulated"))
    disk = found.result.root
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here: only root can")
    yield found
    found.end()
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
@pytest.mark.soak
@pytest.mark.slow
def test_a_server_that_dies_in_parts_or_fills_its_disk_ends_with_the_same_bits(three: Deployment) -> None:
    """After round 1 the ServerApp is killed, after 2 the SuperLink; after 3 the disk is full for a while."""
    server = three.start_server()
    for name in three.names:
        three.start_client(name)
    for number, word in ((1, "flwr-serverapp"), (2, "flower-superlink")):
        three.wait_for_round(number)
        victims = three.processes_of(server, word)
        assert victims, word
        for one in victims:
            one.kill()
    three.wait_for_round(3)
    good = three.result.checkpoint.read_bytes()
    filler = fill(three.result.root)
    three.wait_until(lambda: "the disk is full" in three.log_of(server), "the server's word on its disk")
    assert three.result.checkpoint.read_bytes() == good
    filler.unlink()
    assert three.wait(server) == 0, three.said()
    said = three.log_of(server)
    assert "the SuperLink ended with -9; it is started again" in said
    assert "make space there, and the run goes on from its last good round" in said
    metrics = json.loads(three.result.metrics.read_bytes())
    assert [one.get("error") for one in metrics["rounds"]] == [None] * 4, three.said()
    assert same_model(three.result, RunFolder(three.root / "simulated"))
    assert require_books(three) == {name: {1, 2, 3, 4} for name in three.names}
