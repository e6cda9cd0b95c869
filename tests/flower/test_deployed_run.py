"""A deployment on one machine, from kits to a model, through Flower's own programs over TLS: slow, and the same bits.

Three partners' clicks and the held-out ones are those of a small simulation with fixed seeds, so that the deployed run
must give the simulation's model to the bit, whatever dies on the way.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from kits import Operator, consortium
from simulated_runs import run, small_config

from common.auditlog import read_audit_log
from common.config import Config, fingerprint, load_config, read_toml, to_table
from common.privacy.ledger import Ledger
from common.programs import END_SECONDS, free_port
from common.runfolder import RunFolder, partner_name
from server.checkpoint import load_checkpoint

SECONDS = 600.0
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ROUNDS = 3


class Deployment:
    """Kits of a small consortium, filled in, and the processes that were started from them."""

    def __init__(self, root: Path, operator: Operator, config: Config, simulated: RunFolder) -> None:
        self.root, self.kits = root, operator.kits
        self.names = [partner_name(number) for number in range(config.data.partners)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._provision(operator, config, simulated)

    def _provision(self, operator: Operator, config: Config, simulated: RunFolder) -> None:
        table = to_table(config)
        del table["privacy"]["fixed_seed"]  # which provisioning refuses, as it should
        users = {
            n: read_toml(simulated.partner(i) / "partner.toml")["declared_users"] for i, n in enumerate(self.names)
        }
        partners = [{"name": name, "declared_users": users[name]} for name in self.names]
        server = {"host": "localhost", "port": free_port()}
        operator.provision(consortium(partners=partners, server=server), run=table)
        self.change(self.kits / "server" / "run.toml", ("privacy", "fixed_seed", config.privacy.fixed_seed))
        for number, name in enumerate(self.names):
            kit, theirs = operator.partner(name), simulated.partner(number)
            shutil.copyfile(theirs / "clicks.parquet", kit / "clicks.parquet")
            shutil.copyfile(theirs / "card.toml", kit / "card.toml")
            self.change(kit / "worker.toml", ("privacy", "fixed_seed", config.privacy.fixed_seed))
            self.change(kit / "worker.toml", ("aggregation", "round_secrets", "disk"))
            self.change(kit / "worker.toml", ("worker", "listen", f"unix:{self.socket(number)}"))
        home = self.kits / "server"
        shutil.copyfile(simulated.central, home / "central.parquet")
        shutil.copyfile(simulated.partner(0) / "card.toml", home / "card.toml")

    def socket(self, number: int) -> Path:
        return Path("/tmp") / f"hushd-{os.getpid()}" / str(number) / "socket"

    @staticmethod
    def change(path: Path, change: tuple[str, str, Any]) -> None:
        table, (section, key, value) = read_toml(path), change
        table.setdefault(section, {})[key] = value
        path.write_text(tomli_w.dumps(table), encoding="utf-8")

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        log = self.root / f"{words[0]}-{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "common.cli", *words], stdout=out, stderr=out, env=ENVIRONMENT, cwd=self.root
            )
        self.processes.append(process)
        return process

    def start_server(self) -> "subprocess.Popen[bytes]":
        return self.start("server", str(self.kits / "server" / "server.toml"))

    def start_client(self, name: str) -> "subprocess.Popen[bytes]":
        return self.start("client", str(self.kits / "partners" / name / "client.toml"))

    @property
    def result(self) -> RunFolder:
        return RunFolder(self.kits / "server" / "run")

    def rounds_done(self) -> int:
        if not self.result.checkpoint.exists():
            return 0
        return load_checkpoint(self.result.checkpoint, fingerprint(load_config(self.result.config))).round

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said()) from None

    def wait_for_round(self, number: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.rounds_done() < number:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.3)

    def said(self) -> str:
        logs = [*sorted(self.root.glob("*.log")), self.kits / "server" / "superlink.log"]
        logs += sorted(self.kits.glob("partners/*/state/*.log"))
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.exists()
        )

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(5 * END_SECONDS)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
        shutil.rmtree(self.socket(0).parents[1], ignore_errors=True)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Config, RunFolder]:
    encoder = request.getfixturevalue("tiny_encoder")
    config = small_config(encoder, 3, ROUNDS, aggregation={"timeout_seconds": 120.0, "stage_timeout_seconds": 60.0})
    folder = tmp_path_factory.mktemp("simulated")
    run(config, folder / "run")
    return config, RunFolder(folder / "run")


@pytest.fixture
def deployment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], simulated: tuple[Config, RunFolder]
) -> Iterator[Deployment]:
    config, folder = simulated
    found = Deployment(tmp_path, Operator(tmp_path, capsys), config, folder)
    yield found
    found.end()


def same_model(one: RunFolder, other: RunFolder) -> bool:
    files = [sorted(folder.model.glob("*.safetensors"))[0].read_bytes() for folder in (one, other)]
    return files[0] == files[1]


@pytest.mark.slow
def test_promise_5_the_deployed_run_gives_the_simulations_model_to_the_bit(
    deployment: Deployment, simulated: tuple[Config, RunFolder]
) -> None:
    server = deployment.start_server()
    for name in deployment.names:
        deployment.start_client(name)
    assert deployment.wait(server) == 0, deployment.said()
    metrics = json.loads(deployment.result.metrics.read_bytes())
    assert [one.get("error") for one in metrics["rounds"]] == [None] * ROUNDS
    assert same_model(deployment.result, simulated[1]), deployment.said()
    for name in deployment.names:
        kit = deployment.kits / "partners" / name
        assert len(Ledger(kit / "ledger.jsonl").events()) == ROUNDS
        assert read_audit_log(kit / "state" / "audit.jsonl")[0]["what"] == "started"
    assert "NO BOUNDARY, shim_user in client.toml is unset" in (deployment.root / "client-1.log").read_text()


@pytest.mark.slow
def test_what_is_killed_on_the_way_changes_no_bit_and_spends_nothing_twice(
    deployment: Deployment, simulated: tuple[Config, RunFolder]
) -> None:
    """The server dies with all its programs after the first round, and a partner's SuperNode with it."""
    server = deployment.start_server()
    clients = [deployment.start_client(name) for name in deployment.names]
    deployment.wait_for_round(1)
    server.kill()
    server.wait()
    for child in psutil.Process(clients[0].pid).children():
        if "flower-supernode" in " ".join(child.cmdline()):
            child.kill()
    again = deployment.start_server()
    assert deployment.wait(again) == 0, deployment.said()
    metrics = json.loads(deployment.result.metrics.read_bytes())
    assert [one.get("error") for one in metrics["rounds"]] == [None] * ROUNDS, deployment.said()
    assert same_model(deployment.result, simulated[1])
    for name in deployment.names:
        events = Ledger(deployment.kits / "partners" / name / "ledger.jsonl").events()
        assert sorted({event.round for event in events}) == list(range(1, ROUNDS + 1))
        assert len(events) == ROUNDS  # each round once, whatever was asked again
    starts = [one["what"] for one in read_audit_log(deployment.result.audit)].count("server_started")
    assert starts >= 2
