"""The main job, small: promises, reproducibility to the bit, resume, Ctrl-C, exhausted budgets."""

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import client.desk
import server.app
from common.config import Config, dump_config, load_config, parse_config
from common.errors import BudgetExhausted, CheckpointError, ConfigError, Stopped, UsageError
from common.messages import TrainTask
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder
from simulations.run import simulate


@pytest.fixture
def config(tiny_encoder: Path) -> Config:
    return parse_config(
        {
            "data": {
                "source": "generated",
                "partners": 4,
                "generator": {"users": 120, "items": 30, "impressions_per_user": 8},
            },
            "model": {"encoder": f"path:{tiny_encoder}", "width": 4, "hidden": 4},
            "round": {"num_rounds": 3, "local_steps": 2, "learning_rate": 0.05},
            "privacy": {"delta": 1e-4, "sampling_rate": 0.5, "fixed_seed": 7},
            "server": {"floors": ["base_rate"], "bootstrap_samples": 20, "optimiser": "fedadam", "learning_rate": 0.05},
            "output": {"jobs": 2, "report": False},
        }
    )


def run(config: Config, folder: Path, **options: Any) -> dict[str, Any]:
    return simulate(config, RunFolder(folder), Console(quiet=True), **options)


def model_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_model(first: Path, second: Path) -> None:
    one, other = model_of(first), model_of(second)
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def stable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of the metrics that a seed fixes: all but times, messages and the run's name."""
    moving = {"timings", "bytes", "round_trips", "stages"}
    rounds = [{key: value for key, value in record.items() if key not in moving} for record in metrics["rounds"]]
    return {"rounds": rounds, "final": metrics["final"], "floors": metrics["floors"], "privacy": metrics["privacy"]}


def test_it_leaves_what_the_command_promises(config: Config, tmp_path: Path) -> None:
    metrics = run(replace(config, output=replace(config.output, report=True)), tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "metrics.json", "model", "ledgers", "report.html"} <= left
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert {"rounds", "final", "floors", "privacy", "timings"} <= metrics.keys()
    assert [record["round"] for record in metrics["rounds"]] == [1, 2, 3]
    assert 0 < metrics["final"]["auc"] < 1
    assert metrics["floors"]["base_rate"]["auc"] == pytest.approx(0.5)
    assert metrics["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.05)
    assert metrics["privacy"]["fixed_seed"] is True


def test_the_same_seed_gives_the_same_run_to_the_bit_however_many_jobs(config: Config, tmp_path: Path) -> None:
    first = run(config, tmp_path / "a")
    second = run(replace(config, output=replace(config.output, jobs=1)), tmp_path / "b")
    assert_same_model(tmp_path / "a", tmp_path / "b")
    assert stable(first) == stable(second)
    other = replace(config, privacy=replace(config.privacy, fixed_seed=8))
    run(other, tmp_path / "c")
    assert not np.array_equal(model_of(tmp_path / "a")["head.weight"], model_of(tmp_path / "c")["head.weight"])


def test_without_a_fixed_seed_noise_is_fresh(config: Config, tmp_path: Path) -> None:
    fresh = replace(config, privacy=replace(config.privacy, fixed_seed=None))
    metrics = [run(fresh, tmp_path / name) for name in ("a", "b")]
    assert not np.array_equal(model_of(tmp_path / "a")["head.weight"], model_of(tmp_path / "b")["head.weight"])
    assert metrics[0]["privacy"]["fixed_seed"] is False


@pytest.mark.parametrize("where", ["between rounds", "within a round"])
def test_a_stopped_run_resumes_to_the_same_result(
    where: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        name = "_checkpoint" if where == "between rounds" else "round_figures"
        original, calls = getattr(server.app, name), []

        def stop(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3 or (where == "within a round" and len(calls) == 2):
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(server.app, name, stop)
        with pytest.raises(Stopped, match="--resume"):
            run(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    resumed = run(config, tmp_path / "stopped", resume=True)
    assert_same_model(tmp_path / "whole", tmp_path / "stopped")
    # Partners whose round was asked for twice sent the same bytes again, and were charged once.
    assert stable(resumed) == stable(undisturbed)


def test_a_folder_that_holds_a_run_is_not_overwritten(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    with pytest.raises(UsageError, match=r"already holds a run.*--resume.*--out"):
        run(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


def test_resume_refuses_another_configuration_and_an_empty_folder(config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(config, tmp_path / "none", resume=True)
    run(config, tmp_path / "run")
    other = replace(config, round=replace(config.round, learning_rate=0.06))
    with pytest.raises(CheckpointError, match="differs from the configuration given"):
        run(other, tmp_path / "run", resume=True)


def test_resuming_a_finished_run_spends_nothing_and_gives_the_same(config: Config, tmp_path: Path) -> None:
    first = run(config, tmp_path / "run")
    ledger = (tmp_path / "run" / "ledgers" / "partner-0000.jsonl").read_bytes()
    assert stable(run(config, tmp_path / "run", resume=True)) == stable(first)
    assert (tmp_path / "run" / "ledgers" / "partner-0000.jsonl").read_bytes() == ledger


def test_promise_2_partners_out_of_budget_leave_and_the_model_so_far_is_saved(config: Config, tmp_path: Path) -> None:
    """Noise for three rounds, but a budget that affords fewer: every partner refuses, on its own."""
    noisy = replace(config.privacy, noise_multiplier=1.0, epsilon=6.0)
    short = replace(config, privacy=noisy, round=replace(config.round, num_rounds=30))
    with pytest.raises(BudgetExhausted, match="partners have budget left"):
        run(short, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < metrics["final"]["rounds"] < 30
    assert 0 < metrics["privacy"]["epsilon"] <= 6.0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    for number in range(4):
        events = Ledger(tmp_path / "run" / "ledgers" / f"partner-{number:04d}.jsonl").events()
        assert 0 < len(events) < 30


def test_promise_5_the_simulator_runs_the_deployed_apps(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training request reaches a worker through the ClientApp, decoded from Flower's records."""
    seen: list[TrainTask] = []
    original = client.desk.Worker.mask

    def spy(worker: Any, task: Any, work: TrainTask) -> Any:
        seen.append(work)
        return original(worker, task, work)

    monkeypatch.setattr(client.desk.Worker, "mask", spy)
    run(config, tmp_path / "run")
    assert len(seen) == 3 * 4
    assert {task.round for task in seen} == {1, 2, 3}


def test_a_partner_that_fails_is_left_out_named_and_comes_back(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = client.desk.Worker.mask

    def fail(worker: Any, task: Any, work: TrainTask) -> Any:
        if worker.config.name == "partner-0002" and work.round == 2:
            raise RuntimeError("user u0001 has a bad row")
        return original(worker, task, work)

    monkeypatch.setattr(client.desk.Worker, "mask", fail)
    longer = replace(config, round=replace(config.round, num_rounds=4))
    metrics = run(longer, tmp_path / "run")
    # Whoever fails while round 2 trains gives no keys for round 3 either, which were to ride along.
    assert [record["contributed"] for record in metrics["rounds"]] == [4, 3, 3, 4]
    assert metrics["rounds"][1]["failures"] == {"partner-0002": "mask: internal error: RuntimeError"}
    assert metrics["rounds"][1]["stages"]["shared"] == 4
    assert metrics["privacy"]["partners"]["partner-0002"]["rounds"] == 2


def test_a_round_with_too_few_contributions_ends_with_an_error_and_the_run_goes_on(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = client.desk.Worker.mask

    def fail(worker: Any, task: Any, work: TrainTask) -> Any:
        if work.round == 2 and worker.config.name != "partner-0000":
            raise RuntimeError
        return original(worker, task, work)

    monkeypatch.setattr(client.desk.Worker, "mask", fail)
    metrics = run(config, tmp_path / "run")
    assert "1 of 4 participants sent a masked body, 3 are needed: 2 too few" in metrics["rounds"][1]["error"]
    assert metrics["rounds"][1]["auc"] == metrics["rounds"][0]["auc"]  # nothing was aggregated
    assert metrics["rounds"][2]["contributed"] == 4


def test_without_privacy_it_says_so(config: Config, tmp_path: Path) -> None:
    plain = replace(
        config, privacy=replace(config.privacy, mode="none"), model=replace(config.model, item_rates="exact")
    )
    metrics = run(plain, tmp_path / "run")
    assert metrics["privacy"]["epsilon"] is None
    assert metrics["privacy"]["sentence"].startswith("No differential privacy")
    assert metrics["final"]["rounds"] == 3


def test_without_privacy_the_prior_may_be_measured(config: Config, tmp_path: Path) -> None:
    plain = replace(
        config, privacy=replace(config.privacy, mode="none"), data=replace(config.data, measure_click_rate=True)
    )
    first = run(plain, tmp_path / "run")
    trained = pd.concat([pd.read_parquet(path) for path in (tmp_path / "run" / "partners").glob("*/clicks.parquet")])
    own = load_config(tmp_path / "run" / "config.toml")
    assert own.model.prior_click_rate == pytest.approx(trained["clicked"].mean(), abs=1e-4)
    assert stable(run(plain, tmp_path / "run", resume=True)) == stable(first)
    assert stable(run(own, tmp_path / "again")) == stable(first)
    other = replace(plain, model=replace(plain.model, prior_click_rate=0.4))
    with pytest.raises(ConfigError, match=r"model\.prior_click_rate = 0\.4 and data\.measure_click_rate = true"):
        run(other, tmp_path / "other")


@pytest.mark.parametrize(("prior", "said"), [(0.3, False), (0.9, True)])
def test_a_prior_far_from_the_clicks_is_said(prior: float, said: bool, config: Config, tmp_path: Path) -> None:
    text = io.StringIO()
    other = replace(config, model=replace(config.model, prior_click_rate=prior))
    simulate(other, RunFolder(tmp_path / "run"), Console(file=text, width=300))
    assert ("model.prior_click_rate = 0.9: training will spend its first rounds" in text.getvalue()) == said


def test_ctrl_c_stops_cleanly_and_leaves_a_resumable_run(config: Config, tmp_path: Path) -> None:
    """A real process, a real SIGINT: exit code 1, one line, no traceback; --resume ends the run."""
    long = replace(config, round=replace(config.round, num_rounds=400), privacy=replace(config.privacy, epsilon=500.0))
    toml, out = tmp_path / "run.toml", tmp_path / "run"
    toml.write_text(dump_config(long), encoding="utf-8")
    command = [sys.executable, "-m", "common.cli", "simulate", str(toml), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("ledgers/*.jsonl")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not (out / "metrics.json").exists()
    assert (out / "checkpoint.safetensors").exists()
    stopped = Ledger(out / "ledgers" / "partner-0000.jsonl")
    assert 0 < len(stopped.events()) < 400
