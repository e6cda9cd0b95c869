"""A whole run in process: its model is signed, reaches every partner, and whoever does not take it fails nothing."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import run, small_config

import server.app
from client.desk import forget_workers
from client.worker import Worker
from common.card import load_card
from common.config import Config, fingerprint, load_config
from common.errors import ConfigError, ProtocolError
from common.keyfiles import load_signing_public
from common.lineage import Lineage, read_model_folder, verified
from common.privacy.ledger import Ledger
from common.privacy.statement import privacy_statement
from common.runfolder import RunFolder, partner_name
from server.claim import claimed, rounds_of_the_busiest
from server.delivery import deliver
from simulations.prepare import prepare

PARTNERS, ROUNDS = 4, 2


@pytest.fixture(scope="module")
def config(tiny_encoder: Path) -> Config:
    return small_config(tiny_encoder, PARTNERS, ROUNDS)


@pytest.fixture(scope="module")
def done(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("delivered") / "run")
    run(config, folder.root)
    return folder


def lineage_of(folder: RunFolder) -> Lineage:
    return verified(read_model_folder(folder.model), load_signing_public(folder.signing_public))


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.metrics.read_bytes())
    return found


def delivered(folder: RunFolder, number: int) -> list[Path]:
    return sorted((folder.partner(number) / "state" / "models").glob("*"))


def test_every_partner_has_the_servers_model_byte_for_byte(done: RunFolder) -> None:
    assert metrics_of(done)["final"]["delivered"] == {"to": PARTNERS, "of": PARTNERS}
    for number in range(PARTNERS):
        (folder,) = delivered(done, number)
        assert folder.name == f"{metrics_of(done)['run_id']}-{ROUNDS:06d}"
        assert read_model_folder(folder) == read_model_folder(done.model)


def test_the_lineage_is_the_runs(done: RunFolder) -> None:
    found, metrics = lineage_of(done), metrics_of(done)
    assert found.run_id == metrics["run_id"]
    assert found.config_fingerprint == fingerprint(load_config(done.config))
    assert [(one.round, one.asked, one.contributed) for one in found.rounds] == [
        (record["round"], record["cohort"], record["contributed"]) for record in metrics["rounds"]
    ]
    cards = {
        partner_name(number): fingerprint(load_card(done.partner(number) / "card.toml")) for number in range(PARTNERS)
    }
    assert {name: one.card_sha256 for name, one in found.partners.items()} == cards


def test_promise_4_the_claim_is_the_epsilon_of_the_ledgers(done: RunFolder) -> None:
    claim, delta = lineage_of(done).privacy, 1e-4
    for number in range(PARTNERS):
        events = Ledger(done.ledgers / f"{partner_name(number)}.jsonl").events()
        statement = privacy_statement(events, delta)
        assert claim.epsilon == statement.epsilon
        assert claim.sentence == statement.sentence()
        assert (claim.unit, claim.adjacency, claim.delta) == ("user", "add_remove", delta)
        assert (claim.accountant, claim.second_accountant) == ("PLD", "PRV")
        assert claim.protects_against == statement.protects_against
        assert claim.fixed_seed is True
    assert claim.epsilon == metrics_of(done)["privacy"]["epsilon"]


@pytest.mark.parametrize("mode", ["distributed", "impression", "none"])
def test_a_claim_says_what_the_ledgers_would(mode: str, config: Config) -> None:
    privacy = replace(config.privacy, mode="distributed" if mode == "distributed" else "local")
    if mode == "impression":
        privacy = replace(privacy, unit="impression", max_impressions_per_user=3)
    if mode == "none":
        privacy = replace(privacy, mode="none")
    claim = claimed(replace(config, privacy=privacy), "run", 3)
    assert claim.rounds == 3
    if mode == "none":
        assert (claim.epsilon, claim.mode) == (None, "none")
        assert claim.sentence.startswith("No differential privacy")
    elif mode == "impression":
        assert claim.impressions == 3
        assert claim.user_epsilon is None or claim.user_epsilon > (claim.epsilon or 0)
    else:
        assert claim.protects_against == ("the server", "the public")
        assert claim.views["broken"] is None or claim.views["broken"] > claim.views["server"]  # type: ignore[operator]


def test_the_busiest_partner_is_counted_by_the_public_draw(config: Config) -> None:
    names = [f"p{number}" for number in range(6)]
    few = replace(config, round=replace(config.round, partners_per_round=3))
    assert rounds_of_the_busiest(config, names, 8, steady=True) == 8
    assert 4 <= rounds_of_the_busiest(few, names, 8, steady=True) < 8
    assert rounds_of_the_busiest(few, names, 8, steady=False) == 8  # who joined later, or was drawn in another's place


# --- what goes wrong at the end of a run ------------------------------------------------------------------------------


def test_a_partner_that_does_not_take_it_fails_nothing_and_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Worker.receive

    def refuse(worker: Worker, task: Any) -> None:
        if worker.config.name == partner_name(1):
            raise ProtocolError("not today")
        receive(worker, task)

    monkeypatch.setattr(Worker, "receive", refuse)
    metrics = run(config, tmp_path / "run")
    assert metrics["final"]["delivered"] == {
        "to": PARTNERS - 1,
        "of": PARTNERS,
        "failures": {partner_name(1): "not today"},
    }
    assert delivered(RunFolder(tmp_path / "run"), 1) == []
    assert len(delivered(RunFolder(tmp_path / "run"), 0)) == 1


def test_a_silent_partner_is_given_a_stages_time(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, over = Worker.receive, threading.Event()

    def silent(worker: Worker, task: Any) -> None:
        if worker.config.name == partner_name(2):
            over.wait(60)
        receive(worker, task)

    def hurried(grid: Any, run_id: str, nodes: Any, files: Any, timeout_seconds: float) -> Any:
        assert timeout_seconds == config.aggregation.stage_timeout_seconds
        try:
            return deliver(grid, run_id, nodes, files, 2.0)
        finally:
            over.set()

    monkeypatch.setattr(Worker, "receive", silent)
    monkeypatch.setattr(server.app, "deliver", hurried)
    patient = replace(config, output=replace(config.output, jobs=2))  # else the silent one would hold up the others
    found = run(patient, tmp_path / "run")["final"]["delivered"]
    late = {partner_name(2): "no answer within 2 seconds"}
    assert found == {"to": PARTNERS - 1, "of": PARTNERS, "failures": late}


def test_partners_without_budget_are_given_the_model_too(config: Config, tmp_path: Path) -> None:
    poor = replace(config, privacy=replace(config.privacy, epsilon=4.5), round=replace(config.round, num_rounds=9))
    with pytest.raises(Exception, match="partners have budget left"):
        run(poor, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert metrics_of(folder)["final"]["delivered"] == {"to": PARTNERS, "of": PARTNERS}
    assert 0 < len(lineage_of(folder).rounds) < 9
    assert all(len(delivered(folder, number)) == 1 for number in range(PARTNERS))


def test_a_server_that_died_after_handing_out_hands_out_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(server.app.np, "save", die)  # what follows the delivery
        with pytest.raises(Exception, match="--resume"):
            run(config, folder.root)
    first = read_model_folder(folder.model)
    assert read_model_folder(delivered(folder, 0)[0]) == first
    forget_workers()
    metrics = run(config, folder.root, resume=True)
    assert metrics["final"]["delivered"] == {"to": PARTNERS, "of": PARTNERS}
    assert read_model_folder(folder.model) == first
    assert all(read_model_folder(delivered(folder, number)[0]) == first for number in range(PARTNERS))


def test_a_run_without_a_signing_key_does_not_begin(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*arguments: Any) -> Any:
        made = prepare(*arguments)
        RunFolder(tmp_path / "run").signing_key.unlink()
        return made

    monkeypatch.setattr("simulations.run.prepare", without)
    with pytest.raises(ConfigError, match=r"no key to sign the final model with; name the kit's signing\.key"):
        run(config, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").checkpoint.exists()
