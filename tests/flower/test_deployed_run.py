"""A deployment from kits to a model: slow, and the same bits as the simulation.

Three partners' clicks and the held-out ones are those of a small simulation with fixed seeds, so that the deployed run
must give the simulation's model to the bit, whatever dies on the way.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from deployments import Deployment, same_model
from kits import Operator
from simulated_runs import run, small_config

from common.auditlog import read_audit_log
from common.config import Config
from common.keyfiles import load_signing_public
from common.lineage import read_model_folder, verified
from common.privacy.accounting import epsilon
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder

ROUNDS = 3


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
        (delivered,) = (kit / "state" / "models").iterdir()
        assert read_model_folder(delivered) == read_model_folder(deployment.result.model)
        verified(read_model_folder(delivered), load_signing_public(kit / "signing.pub"))
    assert metrics["final"]["delivered"] == {"to": len(deployment.names), "of": len(deployment.names)}
    spent = epsilon(Ledger(kit / "ledger.jsonl").events(), simulated[0].privacy.delta)
    assert metrics["privacy"]["epsilon"] == pytest.approx(spent)  # what the server claims is what a ledger says
    page = deployment.result.report.read_text(encoding="utf-8")
    assert metrics["privacy"]["sentence"].split(",")[0] in page
    assert "not recorded" not in page.split("Learning curves")[0]
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
