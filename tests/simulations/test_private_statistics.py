"""Private statistics in a whole small run: within one budget, the same values everywhere, kept over a restart."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from simulated_runs import run, small_config

import client.userdata
import server.app
from client.desk import forget_workers, worker_at
from common.card import canonical_card
from common.cli import main
from common.config import Config, load_config, to_table
from common.errors import BudgetExhausted, Stopped
from common.features import dense_names
from common.itemrates import ItemRates, parse_release
from common.lineage import STATISTICS, read_model_folder
from common.pretrained import locate
from common.privacy.accounting import epsilon
from common.privacy.ledger import Ledger
from common.privacy.views import as_seen
from common.runfolder import RunFolder
from server.evaluation import load_heldout
from simulations.floors import load_logs
from simulations.spending import with_noise

CALIBRATED = {"noise_multiplier": None, "epsilon": 6.0, "statistics_epsilon": 2.0, "sampling_rate": 0.5}


def private(encoder: Path, mode: str = "local", rounds: int = 2, **privacy: Any) -> Config:
    """Returns a small run with private statistics whose noise is calibrated."""
    table = {key: value for key, value in (CALIBRATED | privacy).items() if value is not None}
    base = small_config(encoder, 4, rounds, model={"item_rates": "private"}, privacy={"mode": mode})
    return replace(base, privacy=replace(base.privacy, **{"noise_multiplier": None} | table))


@pytest.fixture(scope="module", params=["local", "distributed"])
def done(request: pytest.FixtureRequest, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp(request.param) / "run")
    config = private(tiny_encoder, request.param, rounds=3, statistics_every=2)
    floors = ("item_popularity", "logistic_regression")
    run(replace(config, server=replace(config.server, floors=floors)), folder.root)
    return folder


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.metrics.read_bytes())
    return found


def events_of(folder: RunFolder, name: str = "partner-0000") -> list[Any]:
    return list(Ledger(folder.ledgers / f"{name}.jsonl", name).events())


def test_statistics_and_training_together_keep_the_budget(done: RunFolder) -> None:
    """Three rounds with a release every two: before round 1 and before round 3."""
    events, delta = events_of(done), 1e-4
    assert [event.purpose for event in events] == ["statistics", "training", "training", "statistics", "training"]
    statistics = [event for event in events if event.purpose == "statistics"]
    assert 1.8 < epsilon(statistics, delta) <= 2.0
    assert 5.9 < epsilon(events, delta) <= 6.0
    found = metrics_of(done)
    assert found["privacy"]["epsilon"] == pytest.approx(epsilon(events, delta))
    assert found["privacy"]["statistics"]["releases"] == 2
    assert found["privacy"]["statistics"]["epsilon"] == pytest.approx(epsilon(statistics, delta))
    assert found["privacy"]["partners"]["partner-0000"] == {"epsilon": epsilon(events, delta), "steps": 5, "rounds": 3}
    spent = [record["epsilon"] for record in found["rounds"]]
    assert spent == pytest.approx([epsilon(events[:2], delta), epsilon(events[:3], delta), epsilon(events, delta)])


def test_the_signed_claim_counts_the_statistics(done: RunFolder) -> None:
    claim = json.loads((done.model / "lineage.json").read_bytes())["privacy"]
    assert claim["epsilon"] == pytest.approx(epsilon(events_of(done), 1e-4))


def test_the_noise_is_the_parts_that_answered(done: RunFolder) -> None:
    """Four partners: in local mode each adds the whole noise, in distributed mode h = 4 - 1 parts are counted on."""
    release = parse_release((done.model / STATISTICS).read_bytes())
    event = events_of(done)[0]
    assert release.deviation == pytest.approx(event.noise_multiplier * (4 / event.shares) ** 0.5)
    assert release.number == 1
    assert metrics_of(done)["statistics"]["releases"] == 2


def test_the_same_bytes_are_kept_told_signed_and_used(done: RunFolder) -> None:
    files = read_model_folder(done.model)
    kept = (done.root / "statistics" / "release-000001.json").read_bytes()
    assert files[STATISTICS] == kept
    for number in range(4):
        assert (done.partner(number) / "state/statistics.json").read_bytes() == kept
        delivered = list((done.partner(number) / "state/models").iterdir())
        assert read_model_folder(delivered[0])[STATISTICS] == kept


def test_the_same_values_at_training_evaluation_and_serving(
    done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of one partner's rows, of the held-out rows, of the floors; and `predict` gives the run's own scores."""
    config = load_config(done.config)
    rates = ItemRates(parse_release((done.model / STATISTICS).read_bytes()))
    forget_workers()
    worker = worker_at(done.partner(1))
    rows = worker._rows()
    assert np.array_equal(worker._data().dense_NF[:, -2:], rates.features(rows))
    central = pd.read_parquet(done.central)
    evaluate_N = central["evaluate"].to_numpy(bool)
    pretrained = locate(config.model.encoder, config.model.encoder_sha256)
    heldout = load_heldout(done.central, config.model, pretrained, item_rates=rates)
    features_N2 = heldout.rows.dense_NF[evaluate_N, -2:]
    assert np.array_equal(features_N2, rates.features(central, ~evaluate_N)[evaluate_N])
    assert np.array_equal(features_N2, rates.features(central, np.zeros(len(central), bool))[evaluate_N])
    assert len(np.unique(features_N2[:, 0])) > 5
    plain = central.drop(columns=["partner", "evaluate", "cold_user", "cold_item"])
    plain.to_parquet(done.root / "log.parquet", index=False)
    (done.root / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(plain))), encoding="utf-8")
    words = ["predict", str(done.model), "--key", str(done.signing_public), "--clicks", str(done.root / "log.parquet")]
    out = done.root / "scored"
    assert main([*words, "--card", str(done.root / "card.toml"), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = pd.read_parquet(out / "scores.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores[evaluate_N], np.load(done.root / "scores.npy"), atol=1e-6)
    assert found["unknown_items"] == 0


def test_the_floors_know_what_the_statistics_say(done: RunFolder) -> None:
    found = metrics_of(done)["floors"]
    assert found["private_item_popularity"]["private"] is True
    assert found["item_popularity"]["private"] is False
    logs = load_logs(load_config(done.config), done)
    assert logs.item_rates is not None
    assert found["private_item_popularity"]["auc"] is not None
    assert "logistic_regression_private_item_rates" in found
    assert dense_names(logs.config.model)[-2:] == ["item_rate", "item_pull"]


def test_a_run_that_goes_on_goes_on_with_its_release(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, torn = private(tiny_encoder), tmp_path / "whole", tmp_path / "torn"
    run(config, whole)
    with monkeypatch.context() as patch:
        save = server.app._checkpoint

        def stop(state: Any) -> None:
            save(state)
            if state.round == 1:
                raise KeyboardInterrupt

        patch.setattr(server.app, "_checkpoint", stop)
        with pytest.raises(Stopped, match="--resume"):
            run(config, torn)
    kept = (torn / "statistics" / "release-000000.json").read_bytes()
    run(config, torn, resume=True)
    assert (torn / "model" / STATISTICS).read_bytes() == kept
    assert [event.purpose for event in events_of(RunFolder(torn))] == ["statistics", "training", "training"]
    assert (torn / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_budgets_that_hold_no_statistics_end_the_run_before_any_data_is_read(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(tiny_encoder, statistics_noise_multiplier=0.5, noise_multiplier=50.0, epsilon=1.0)
    ready = client.userdata.UserData._rows
    reads: list[str] = []

    def counted(worker: Any) -> Any:
        reads.append(worker.config.name)
        return ready(worker)

    monkeypatch.setattr(client.userdata.UserData, "_rows", counted)
    with pytest.raises(BudgetExhausted, match="statistics: 4 of 4 partners have no budget left"):
        run(config, tmp_path / "run")
    assert len(reads) == 4  # once each when they joined
    assert events_of(RunFolder(tmp_path / "run")) == []


@pytest.mark.parametrize("view", ["partner", "broken"])
def test_every_bound_is_kept_by_both_together(view: str, tiny_encoder: Path, tmp_path: Path) -> None:
    bound = 7.0
    config = private(tiny_encoder, "distributed", **{f"epsilon_{view}": bound})
    run(config, tmp_path / "run")
    found = epsilon(as_seen(events_of(RunFolder(tmp_path / "run")), view), 1e-4)  # type: ignore[arg-type]
    assert bound * 0.97 < found <= bound


def test_noise_is_calibrated_once_and_again_the_same(tiny_encoder: Path) -> None:
    config = with_noise(private(tiny_encoder, statistics_epsilon=None))
    assert config.privacy.statistics_noise_multiplier is not None
    assert with_noise(config) == config
    without = with_noise(replace(config, model=replace(config.model, item_rates="none")))
    assert without == replace(config, model=replace(config.model, item_rates="none"))
