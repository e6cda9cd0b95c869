"""Whole runs whose models are averaged, chosen, calibrated, corrected for sampling, and asked for the next item."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from safetensors.numpy import load_file
from simulated_runs import run, small_config
from sklearn.metrics import log_loss, roc_auc_score

import server.app
from common.calibration import of_stream
from common.card import canonical_card
from common.cli import main
from common.config import Config, read_toml, to_table
from common.errors import ConfigError, Stopped, TooFewPartners
from common.runfolder import RunFolder
from server.halves import in_choosing_half
from simulations.floors import load_logs


def model_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def same_model(one: Path, other: Path) -> bool:
    first, second = model_of(one), model_of(other)
    return all(first[name].tobytes() == second[name].tobytes() for name in first)


def final_of(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics["final"].items() if name != "delivered"}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The global model after each round, as the server holds it."""
    kept: list[np.ndarray] = []
    step = server.app.ServerOptimiser.step

    def spied(*arguments: Any) -> Any:
        kept.append(step(*arguments))
        return kept[-1]

    monkeypatch.setattr(server.app.ServerOptimiser, "step", spied)
    return kept


# --- averaging and early stopping ---------------------------------------------------------------------------------


def test_the_mean_is_what_is_evaluated_saved_and_delivered(
    tiny_encoder: Path, tmp_path: Path, models: list[np.ndarray]
) -> None:
    plain = run(small_config(tiny_encoder, 4, 4), tmp_path / "plain")
    latest = list(models)
    models.clear()
    config = small_config(tiny_encoder, 4, 4, server={"averaging": "tail", "averaging_from": 0.5})
    metrics = run(config, tmp_path / "mean")
    assert [one.tobytes() for one in models] == [one.tobytes() for one in latest]  # partners train as before
    found_D = np.concatenate([values.ravel() for values in _in_order(tmp_path / "mean")])
    np.testing.assert_allclose(np.sort(found_D), np.sort((models[2] + models[3]) / 2), rtol=1e-6)
    assert metrics["final"]["averaging"] == {"kind": "tail", "models": 2}
    assert metrics["final"]["log_loss"] == metrics["rounds"][-1]["log_loss"] != plain["final"]["log_loss"]
    assert metrics["rounds"][1]["log_loss"] == plain["rounds"][1]["log_loss"]  # no mean yet
    assert metrics["rounds"][3]["epsilon"] == plain["rounds"][3]["epsilon"]
    assert metrics["final"]["delivered"] == plain["final"]["delivered"]


def _in_order(folder: Path) -> list[np.ndarray]:
    return [values for _, values in sorted(model_of(folder).items())]


@pytest.mark.parametrize(
    "server_table",
    [{"averaging": "exponential", "averaging_decay": 0.5}, {"averaging": "uniform", "patience": 3}],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    server_table: dict[str, Any], tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tiny_encoder, 4, 4, server=server_table)
    whole = run(config, tmp_path / "whole")
    original, calls = server.app._checkpoint, []

    def stop(state: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(state)

    with monkeypatch.context() as patch:
        patch.setattr(server.app, "_checkpoint", stop)
        with pytest.raises(Stopped):
            run(config, tmp_path / "stopped")
    resumed = run(config, tmp_path / "stopped", resume=True)
    assert same_model(tmp_path / "whole", tmp_path / "stopped")
    assert final_of(resumed) == final_of(whole)


def test_a_run_that_does_not_get_better_ends_with_its_best_model_and_budget_left(
    tiny_encoder: Path, tmp_path: Path, models: list[np.ndarray]
) -> None:
    """A learning rate under which no model is better than the first."""
    config = small_config(
        tiny_encoder, 4, 8, round={"learning_rate": 5.0}, server={"patience": 2, "floors": ["base_rate"]}
    )
    metrics = run(config, tmp_path / "run")
    stopping = metrics["final"]["early_stopping"]
    rounds = len(metrics["rounds"])
    assert stopping["stopped"]
    assert rounds == stopping["rounds_run"] == stopping["best_round"] + 2 < 8
    losses = [record["log_loss"] for record in metrics["rounds"]]
    assert stopping["best"] == min(losses) == losses[stopping["best_round"] - 1]
    found_D = np.concatenate([values.ravel() for values in _in_order(tmp_path / "run")])
    np.testing.assert_array_equal(np.sort(found_D), np.sort(models[stopping["best_round"] - 1]))
    # What is not run is not paid for.
    full = run(small_config(tiny_encoder, 4, 8, round={"learning_rate": 5.0}), tmp_path / "full")
    assert metrics["privacy"]["epsilon"] < full["privacy"]["epsilon"]
    assert metrics["rounds"][-1]["epsilon"] == full["rounds"][rounds - 1]["epsilon"]
    ledger = (tmp_path / "run" / "ledgers" / "partner-0000.jsonl").read_text()
    assert len(ledger.splitlines()) < len(
        (tmp_path / "full" / "ledgers" / "partner-0000.jsonl").read_text().splitlines()
    )
    # The figures are of the users that decided nothing, as are the floors'.
    rows = pd.read_parquet(tmp_path / "run" / "central.parquet")
    rows = rows[rows["evaluate"]]
    other = ~in_choosing_half(rows["user"])
    score_N = np.load(tmp_path / "run" / "scores.npy")
    assert metrics["final"]["rows"] == other.sum() < len(rows)
    assert metrics["final"]["auc"] == pytest.approx(roc_auc_score(rows["clicked"][other], score_N[other]))
    logs = load_logs(config, RunFolder(tmp_path / "run"))
    rate = logs.training["clicked"].mean()
    expected = log_loss(rows["clicked"][other], np.full(other.sum(), rate))
    assert metrics["floors"]["base_rate"]["log_loss"] == pytest.approx(expected)


def test_a_round_without_a_new_model_is_not_waited_for(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of four fail: counted, they would end a run of patience 1 after the second."""
    collect, calls = server.app.collect_secure, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        found = collect(*arguments)
        if len(calls) in (2, 3):
            raise TooFewPartners("nobody answered")
        return found

    monkeypatch.setattr(server.app, "collect_secure", failing)
    metrics = run(small_config(tiny_encoder, 4, 4, server={"patience": 1}), tmp_path / "run")
    assert [bool(record.get("error")) for record in metrics["rounds"]] == [False, True, True, False]
    assert metrics["final"]["early_stopping"]["rounds_run"] == 4


def test_statistics_of_later_rounds_do_not_go_with_the_best_model(tiny_encoder: Path) -> None:
    privacy = {"statistics_every": 2, "statistics_noise_multiplier": 5.0}
    with pytest.raises(ConfigError, match=r"server\.patience = 2 with privacy\.statistics_every = 2"):
        small_config(tiny_encoder, 4, 4, server={"patience": 2}, privacy=privacy, model={"item_rates": "private"})
    with pytest.raises(
        ConfigError, match=r"server\.averaging_from = 0\.9: of round\.num_rounds = 4 the last one alone"
    ):
        small_config(tiny_encoder, 4, 4, server={"averaging": "tail", "averaging_from": 0.9})


# --- calibration, next items --------------------------------------------------------------------------------------


def predict(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["predict", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def as_log(frame: pd.DataFrame, folder: Path, unclicked_kept: float = 1.0) -> tuple[Path, Path]:
    plain = frame.drop(columns=["partner", "evaluate", "cold_user", "cold_item", "unclicked_kept"], errors="ignore")
    folder.mkdir(parents=True, exist_ok=True)
    plain.to_parquet(folder / "log.parquet", index=False)
    table = to_table(canonical_card(plain, unclicked_kept))
    (folder / "card.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return folder / "log.parquet", folder / "card.toml"


def test_a_calibration_travels_with_the_signed_model(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(small_config(tiny_encoder, 4, 2), tmp_path / "plain")
    config = small_config(tiny_encoder, 4, 2, server={"calibration": "platt", "next_item_clicks": 10})
    metrics = run(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    calibrated, found = metrics["final"]["calibrated"], final_of(metrics)
    assert found.pop("next_item")["clicks"] == 10
    del found["calibrated"]
    assert found == final_of(plain)
    settings = json.loads((folder.model / "config.json").read_text())
    assert settings["calibration"]["click"] == calibrated["click"]
    assert "calibration" not in json.loads((tmp_path / "plain" / "model" / "config.json").read_text())
    rows = pd.read_parquet(folder.central)
    log, card = as_log(rows, tmp_path / "log")
    theirs = predict(
        capsys, folder.partner(1) / "partner.toml", "--clicks", log, "--card", card, "--out", tmp_path, "--next", 3
    )
    scores = pd.read_parquet(theirs["scores"])
    assert list(scores.columns)[3:] == ["score", "purchase", "calibrated", "calibrated_purchase"]
    judged_N = rows["evaluate"].to_numpy() & ~in_choosing_half(rows["user"])
    expected = log_loss(rows["clicked"][judged_N], scores["calibrated"][judged_N])
    assert calibrated["after"]["log_loss"] == pytest.approx(expected, abs=1e-6)
    assert theirs["calibrated"]["log_loss"] == pytest.approx(log_loss(rows["clicked"], scores["calibrated"]))
    assert theirs["figures"]["log_loss"] == pytest.approx(log_loss(rows["clicked"], scores["score"]))
    best = pd.read_parquet(theirs["next"])
    assert list(best.columns) == ["user", "item", "rank", "score"]
    assert set(best["user"]) == set(rows["user"])
    assert best.groupby("user").size().max() == 3
    seen = set(zip(rows["user"], rows["item"], strict=True))
    assert seen.isdisjoint(zip(best["user"], best["item"], strict=True))
    assert (best.groupby("user")["score"].diff().dropna() <= 0).all()


def test_next_items_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "--next", "3"]) == 2
    assert "--next: needs --out DIR" in capsys.readouterr().err


# --- down-sampling ------------------------------------------------------------------------------------------------

KEPT = 0.25


@pytest.fixture(scope="module")
def clicks(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The whole stream as a log with a card; and its rows."""
    folder = tmp_path_factory.mktemp("stream")
    data = {"generator": {"users": 300, "items": 40, "impressions_per_user": 16, "base_rate": 0.15}}
    run(small_config(tiny_encoder, 4, 1, data=data), folder / "run")
    parts = [pd.read_parquet(path) for path in sorted((folder / "run" / "partners").glob("*/clicks.parquet"))]
    held = pd.read_parquet(folder / "run" / "central.parquet")
    rows = pd.concat([*parts, held[held["evaluate"]][parts[0].columns]])
    rows = rows.drop_duplicates(["user", "item", "time"]).sort_values(["user", "time"], kind="stable")
    as_log(rows, folder)
    return folder, rows.reset_index(drop=True)


def sampled(rows: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    keep_N = (rows["clicked"] == 1) | (np.random.default_rng(1).random(len(rows)) < KEPT)
    return as_log(rows[keep_N], folder, KEPT)


def test_a_model_of_an_undersampled_log_predicts_the_rate_of_the_stream(
    clicks: tuple[Path, pd.DataFrame], tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, card = sampled(clicks[1], tmp_path / "sampled")
    data = {"source": "files", "path": str(log), "card": str(card)}
    table = {
        "data": data,
        "model": {"unclicked_kept": KEPT},
        "privacy": {"mode": "none", "sampling_rate": 1.0},
        "round": {"local_steps": 6, "learning_rate": 0.05},
        "server": {"calibration": "platt"},
    }
    config = small_config(tiny_encoder, 4, 8, **table)
    metrics = run(config, tmp_path / "run")
    stream = metrics["final"]["stream"]
    true_rate = clicks[1]["clicked"].mean()
    assert metrics["final"]["base_rate"] > 2 * true_rate
    assert stream["base_rate"] == pytest.approx(true_rate, rel=0.15)
    assert metrics["final"]["calibration_ratio"] == pytest.approx(1, abs=0.15)
    assert stream["calibration_ratio"] == pytest.approx(1, abs=0.2)
    folder = RunFolder(tmp_path / "run")
    rows = pd.read_parquet(folder.central)
    assert (rows["unclicked_kept"] == KEPT).all()
    found = predict(capsys, folder.partner(0) / "partner.toml", "--clicks", log, "--card", card, "--out", tmp_path)
    scores = pd.read_parquet(found["scores"])
    # Scores are of the stream, figures of the log: the mean score is near the stream's rate, the ratio near 1.
    weight_N = np.where(pd.read_parquet(log)["clicked"] == 1, 1, 1 / KEPT)
    for column in ("score", "calibrated"):
        assert np.average(scores[column], weights=weight_N) == pytest.approx(true_rate, rel=0.2)
    assert found["figures"]["calibration_ratio"] == pytest.approx(1, abs=0.15)
    expected_N = np.load(folder.root / "scores.npy")
    own = scores.set_index(["user", "item", "time"])["score"].loc[
        list(rows[rows["evaluate"]][["user", "item", "time"]].itertuples(index=False, name=None))
    ]
    np.testing.assert_allclose(own, of_stream(expected_N, KEPT), atol=1e-6)


def test_a_card_and_a_model_that_disagree_are_refused(
    clicks: tuple[Path, pd.DataFrame], tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, card = sampled(clicks[1], tmp_path / "sampled")
    data = {"source": "files", "path": str(log), "card": str(card)}
    says = r"model\.unclicked_kept = 1, and the data card says click\.unclicked_kept = 0\.25"
    with pytest.raises(ConfigError, match=says):
        run(small_config(tiny_encoder, 4, 1, data=data), tmp_path / "run")
    generated = small_config(tiny_encoder, 4, 1)
    other: Config = replace(generated, model=replace(generated.model, unclicked_kept=0.25))
    with pytest.raises(ConfigError, match=r"model\.unclicked_kept = 0\.25, and the data card says .* = 1"):
        run(other, tmp_path / "other")
    done = tmp_path / "done"
    run(small_config(tiny_encoder, 4, 1), done)
    home = RunFolder(done).partner(0)
    table = read_toml(home / "card.toml")
    table["click"] = {"unclicked_kept": 0.25}
    (home / "card.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    capsys.readouterr()
    assert main(["check", str(home / "partner.toml")]) == 1
    assert "click.unclicked_kept = 0.25" in " ".join(capsys.readouterr().out.split())
