"""Evaluation at the partners in whole small runs: figures beside the central ones, one budget, over a restart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_runs import run, small_config
from sklearn.metrics import roc_auc_score

import client.worker
import server.app
import server.noisysums
from client.budget import Budget
from client.desk import forget_workers, worker_at
from common.cli import main
from common.config import Config, dump_config, load_config
from common.errors import BudgetExhausted, ConfigError, Stopped
from common.privacy.accounting import epsilon
from common.privacy.ledger import Ledger
from common.privacy.mixture import epsilon_per_user
from common.privacy.views import as_seen
from common.runfolder import RunFolder
from common.schedule import with_calibrated_noise
from common.scorehistogram import gridded_scores, terms_of
from server.report import build_report
from server.scorefigures import Scores, partner_figures
from simulations.spending import with_noise

CALIBRATED = {"noise_multiplier": None, "epsilon": 30.0, "evaluation_epsilon": 20.0, "sampling_rate": 0.5}
USERS = {"users": 240, "items": 30, "impressions_per_user": 8, "purchase_rate": 0.0}


def evaluated(encoder: Path, mode: str = "local", split: str = "time", rounds: int = 2, **tables: Any) -> Config:
    """Returns a small run whose partners evaluate, with noise named for an epsilon in the hundreds."""
    privacy = {"mode": mode, "evaluation_clip": 2.0} | tables.pop("privacy", {})
    if mode in ("label", "none"):
        privacy |= {"noise_multiplier": None} | ({"label_epsilon": 3.0} if mode == "label" else {})
    rule = {"at": "partners", "bins": 32} | tables.pop("evaluation", {})
    data = {"split": split, "generator": USERS}
    tables |= {"data": data, "evaluation": rule, "privacy": {k: v for k, v in privacy.items() if v is not None}}
    config = small_config(encoder, 4, rounds, **tables)
    if "noise_multiplier" in privacy and privacy["noise_multiplier"] is None and mode not in ("label", "none"):
        config = replace(config, privacy=replace(config.privacy, noise_multiplier=None))
    return config


def calibrated(encoder: Path, mode: str = "local", rounds: int = 2, **tables: Any) -> Config:
    privacy = CALIBRATED | tables.pop("privacy", {})
    return evaluated(encoder, mode, rounds=rounds, privacy=privacy, **tables)


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.metrics.read_bytes())
    return found


def events_of(folder: RunFolder, name: str = "partner-0000") -> list[Any]:
    return list(Ledger(folder.ledgers / f"{name}.jsonl", name).events())


def central_scores(folder: RunFolder, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clicks, scores and users of the held-out rows that partners count: each user's latest."""
    central = pd.read_parquet(folder.central)
    tested = central[central["evaluate"].to_numpy(bool)]
    tested = tested.assign(score=np.load(folder.root / "scores.npy"))
    kept = tested.groupby("user", sort=False).tail(config.evaluation.max_rows)
    return kept["clicked"].to_numpy() == 1, kept["score"].to_numpy(), pd.factorize(kept["user"])[0]


# --- the same code, the same figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["time", "user", "user_time"])
def test_promise_5_without_noise_partners_figures_are_the_central_ones_of_the_same_rows(
    split: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    """To the last count: the same rows, features and scores, binned; AUC as scikit-learn has it."""
    found = run(evaluated(tiny_encoder, "none", split, evaluation={"bins": 200, "max_rows": 6}), tmp_path / "run")
    folder, final = RunFolder(tmp_path / "run"), found["final"]
    config = load_config(folder.config)
    clicked_N, score_N, user_N = central_scores(folder, config)
    terms = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate)
    expected_D = gridded_scores(clicked_N, score_N, user_N, terms, 0.0, 1)
    written = json.loads((folder.root / "evaluation" / "round-000002.json").read_bytes())
    assert np.array(written["sums"]).ravel().tolist() == expected_D.tolist()
    binned_N = terms.middle_B[terms.bins_of(score_N)]
    assert final["partners"]["auc"] == pytest.approx(roc_auc_score(clicked_N, binned_N), abs=1e-12)
    assert final["partners"]["auc"] == pytest.approx(roc_auc_score(clicked_N, score_N), abs=0.01)
    assert final["partners"]["rows"] == len(clicked_N)
    assert final["rounds"] == 2


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_at_a_large_epsilon_the_figures_are_those_of_the_clipped_rows(
    mode: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    """A clip that nobody reaches, and hardly any noise: AUC is the central one up to bins and noise."""
    privacy = {"epsilon": 990.0, "evaluation_noise_multiplier": 0.05, "evaluation_clip": 6.0}
    rule = {"bins": 20, "max_rows": 6}
    found = run(evaluated(tiny_encoder, mode, privacy=privacy, evaluation=rule), tmp_path / "run")
    folder, partners = RunFolder(tmp_path / "run"), found["final"]["partners"]
    config = load_config(folder.config)
    clicked_N, score_N, _ = central_scores(folder, config)
    terms = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate)
    binned = roc_auc_score(clicked_N, terms.middle_B[terms.bins_of(score_N)])
    assert partners["auc"] == pytest.approx(binned, abs=0.04)
    assert partners["auc"] == pytest.approx(roc_auc_score(clicked_N, score_N), abs=0.06)
    low, high = partners["noise_intervals"]["auc"]
    assert low < binned < high
    assert partners["rows"] == pytest.approx(len(clicked_N), rel=0.05)
    assert partners["base_rate"] == pytest.approx(clicked_N.mean(), abs=0.03)
    shares = 1 if mode == "local" else 2
    assert partners["noise_rows"] == pytest.approx(0.05 * 6 * (4 / shares) ** 0.5)


def test_at_a_moderate_epsilon_the_interval_holds_the_figures_without_noise(tiny_encoder: Path, tmp_path: Path) -> None:
    """Epsilon 20 of 30 is the evaluation's; the noise of a fixed seed, so that this is one draw, always the same."""
    found = run(calibrated(tiny_encoder, "distributed"), tmp_path / "run")
    folder, partners = RunFolder(tmp_path / "run"), found["final"]["partners"]
    config = load_config(folder.config)
    terms, grid = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate), 2**16
    log = central_scores(folder, config)
    clipped_2B = gridded_scores(*log, terms, terms.clip, grid).reshape(2, -1) * terms.clip / grid
    truth = partner_figures(Scores(clipped_2B, 0.0, terms), seed=1)
    for name in ("auc", "ne", "log_loss", "calibration_ratio", "base_rate", "ece"):
        low, high = partners["noise_intervals"][name]
        assert low <= truth[name] <= high, name
        assert partners["intervals"][name][1] - partners["intervals"][name][0] > high - low
    assert partners["auc"] != truth["auc"]


def test_in_mode_label_flips_are_taken_back(tiny_encoder: Path, tmp_path: Path) -> None:
    found = run(evaluated(tiny_encoder, "label"), tmp_path / "run")
    folder, partners = RunFolder(tmp_path / "run"), found["final"]["partners"]
    config = load_config(folder.config)
    clicked_N = central_scores(folder, config)[0]
    low, high = partners["noise_intervals"]["base_rate"]
    assert low < clicked_N.mean() < high
    assert low < partners["base_rate"] < high
    assert partners["rows"] == len(clicked_N)  # how many there are is public
    assert found["privacy"]["epsilon"] == pytest.approx(3.0, abs=1e-3)
    assert [event.purpose for event in events_of(folder)] == ["training", "training", "evaluation"]


# --- one budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_evaluation_statistics_and_training_together_keep_the_budget(
    mode: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    privacy = {"statistics_epsilon": 1.5}
    config = calibrated(
        tiny_encoder, mode, 3, model={"item_rates": "private"}, privacy=privacy, evaluation={"releases": 2}
    )
    found = run(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    events, delta = events_of(folder), 1e-4
    purposes = [event.purpose for event in events]
    assert purposes == ["statistics", "training", "training", "evaluation", "training", "evaluation"]
    alone = [event for event in events if event.purpose == "evaluation"]
    assert 19.5 < epsilon(alone, delta) <= 20.0
    assert 29.5 < epsilon(events, delta) <= 30.0
    assert found["privacy"]["epsilon"] == pytest.approx(epsilon(events, delta))
    assert found["privacy"]["evaluation"]["releases"] == 2
    assert found["privacy"]["evaluation"]["epsilon"] == pytest.approx(epsilon(alone, delta))
    assert [record["epsilon"] for record in found["rounds"]] == pytest.approx(
        [epsilon(events[:2], delta), epsilon(events[:4], delta), epsilon(events, delta)]
    )
    claim = json.loads((folder.model / "lineage.json").read_bytes())["privacy"]
    assert claim["epsilon"] == pytest.approx(epsilon(events, delta))
    assert claim["views"] == pytest.approx(
        {view: epsilon(as_seen(events, view), delta) for view in ("server", "partner", "broken")}  # type: ignore[arg-type]
    )
    assert [record.get("partners", {}).get("round") for record in found["rounds"]] == [None, 2, 3]
    assert found["final"]["partners"] == found["rounds"][-1]["partners"]


def test_noise_is_calibrated_once_and_again_the_same(tiny_encoder: Path) -> None:
    config = with_noise(calibrated(tiny_encoder))
    assert config.privacy.evaluation_noise_multiplier is not None
    assert with_noise(config) == config
    plain = with_noise(replace(config, evaluation=replace(config.evaluation, at="server")))
    assert plain.privacy == config.privacy
    assert with_noise(calibrated(tiny_encoder, evaluation={"at": "server"})).privacy.noise_multiplier < (  # type: ignore[operator]
        config.privacy.noise_multiplier or 0
    )


def test_promise_2_a_run_that_cannot_afford_its_evaluation_says_so_at_the_start(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    """Noise that is named: four rounds fit the budget by themselves, and not beside the evaluation."""
    privacy = {"noise_multiplier": 1.0, "evaluation_noise_multiplier": 1.0, "sampling_rate": 0.5}
    whole = evaluated(tiny_encoder, rounds=4, privacy=privacy | {"epsilon": 100.0})
    alone = with_noise(replace(whole, evaluation=replace(whole.evaluation, at="server")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.schedule._require_room", lambda *_: None)
        assert alone == with_noise(alone)
    found = replace(whole, privacy=replace(whole.privacy, epsilon=6.0))
    with pytest.raises(ConfigError, match=r"4 rounds and 1 evaluations at the partners come to epsilon \d\.\d\d"):
        run(found, tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()
    run(replace(found, evaluation=replace(found.evaluation, at="server")), tmp_path / "without")


def test_budgets_that_hold_no_evaluation_end_the_run_with_its_model_and_exit_code_3(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budgets that went on something else meanwhile, as where a partner is in two runs."""
    reserve = Budget.reserve

    def refuse(budget: Any, event: Any, room: Any = ()) -> int:
        if event.purpose == "evaluation":
            raise BudgetExhausted("spent elsewhere")
        return reserve(budget, event, room)

    monkeypatch.setattr(Budget, "reserve", refuse)
    (tmp_path / "run.toml").write_text(dump_config(evaluated(tiny_encoder)), encoding="utf-8")
    assert main(["simulate", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 3
    found = metrics_of(RunFolder(tmp_path / "run"))
    assert "evaluation: 4 of 4 partners have no budget left for it" in found["stopped"]
    assert "no budget left" in found["final"]["partners"]["error"]
    assert found["final"]["auc"] is not None
    assert (tmp_path / "run" / "model" / "lineage.json").exists()
    page = build_report(found, "")
    assert "Partners did not evaluate the final model: evaluation: 4 of 4 partners have no budget left" in page


def test_a_run_that_ends_early_is_evaluated_where_it_ended(tiny_encoder: Path, tmp_path: Path) -> None:
    """Partners hold less than the run asks for: training stops while the evaluation still fits."""
    config = with_noise(calibrated(tiny_encoder, rounds=4))
    folder = RunFolder(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.prepare.with_noise", lambda one: one)
        patch.setattr("simulations.prepare.dump_partner", _with_less)
        with pytest.raises(BudgetExhausted, match="the run ends after round"):
            run(config, folder.root)
    found = metrics_of(folder)
    rounds = found["final"]["rounds"]
    assert 0 < rounds < 4
    assert found["final"]["partners"]["round"] == rounds
    assert "error" not in found["final"]["partners"]
    events = events_of(folder)
    trained = sum(record["contributed"] > 0 for record in found["rounds"])
    assert 0 < trained < 4
    assert [event.purpose for event in events] == ["training"] * trained + ["evaluation"]
    assert epsilon(events, 1e-4) <= 27.0


def _with_less(partner: Any) -> str:
    from client.partner import dump_partner

    return dump_partner(replace(partner, privacy=replace(partner.privacy, epsilon=27.0)))


# --- over a restart, dropouts, without central clicks ----------------------------------------------------------------


def test_a_run_that_goes_on_asks_for_no_second_histogram(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after an evaluation, and right before one: both times it goes on with the same figures."""
    config = calibrated(tiny_encoder, evaluation={"releases": 2})
    whole = run(config, tmp_path / "whole")
    for place in ("before", "after"):
        torn, deployed = tmp_path / place, server.app.evaluate_after

        def stop(*arguments: Any, place: str = place, deployed: Any = deployed, **options: Any) -> Any:
            found = deployed(*arguments, **options) if place == "after" else None
            if arguments[1] and arguments[1][-1]["round"] == 1:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patch:
            patch.setattr(server.app, "evaluate_after", stop)
            with pytest.raises(Stopped, match="--resume"):
                run(config, torn)
        assert (torn / "evaluation" / "round-000001.json").exists() == (place == "after")
        found = run(config, torn, resume=True)
        assert [record["partners"] for record in found["rounds"]] == [record["partners"] for record in whole["rounds"]]
        purposes = [event.purpose for event in events_of(RunFolder(torn))]
        assert purposes == ["training", "evaluation"] * 2
        assert (torn / "model/model.safetensors").read_bytes() == (
            tmp_path / "whole/model/model.safetensors"
        ).read_bytes()


def test_a_partner_that_falls_silent_is_left_out_and_the_noise_is_that_of_the_rest(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = client.worker.Worker.mask

    def silent(worker: Any, task: Any, work: Any) -> Any:
        if worker.config.name == "partner-0003" and hasattr(work, "bins"):
            raise RuntimeError
        return mask(worker, task, work)

    monkeypatch.setattr(client.worker.Worker, "mask", silent)
    config = with_noise(calibrated(tiny_encoder, "distributed"))
    partners = run(config, tmp_path / "run")["final"]["partners"]
    assert partners["contributed"] == 3
    noise = (config.privacy.evaluation_noise_multiplier or 0) * config.privacy.evaluation_clip
    assert partners["noise_rows"] == pytest.approx(noise * (3 / 2) ** 0.5)  # h = 4 - 1 - 1 parts are counted on


def test_too_few_partners_leave_no_figures_and_the_run_its_model(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = client.worker.Worker.mask

    def silent(worker: Any, task: Any, work: Any) -> Any:
        if worker.config.name != "partner-0000" and hasattr(work, "bins"):
            raise RuntimeError
        return mask(worker, task, work)

    monkeypatch.setattr(client.worker.Worker, "mask", silent)
    found = run(calibrated(tiny_encoder), tmp_path / "run")
    assert "of at least 3 partners contributed" in found["final"]["partners"]["error"]
    assert found["stopped"] is None
    assert found["final"]["auc"] is not None


def test_without_central_clicks_partners_alone_evaluate(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deployed, where the operator has no held-out clicks of its own."""
    apps = server.app._begin

    def begin(grid: Any, config: Config, folder: RunFolder, pretrained: Any) -> Any:
        folder.central.unlink(missing_ok=True)
        return apps(grid, config, folder, pretrained)

    monkeypatch.setattr(server.app, "_begin", begin)
    found = run(calibrated(tiny_encoder), tmp_path / "run")
    assert "auc" not in found["final"]
    assert found["final"]["partners"]["auc"] is not None
    assert not (tmp_path / "run" / "scores.npy").exists()
    page = build_report(found, "")
    assert "evaluated at the partners alone" in page


def test_what_partners_bring_is_their_training_rows_and_what_they_hold_out(tiny_encoder: Path, tmp_path: Path) -> None:
    """And what trains is what trains without an evaluation: the same rows to the last."""
    for at in ("server", "partners"):
        run(evaluated(tiny_encoder, "none", evaluation={"at": at}), tmp_path / at)
    plain, held = RunFolder(tmp_path / "server"), RunFolder(tmp_path / "partners")
    central, forgotten = pd.read_parquet(plain.central), 0
    for number in range(4):
        trained = pd.read_parquet(plain.partner(number) / "clicks.parquet")
        forget_workers()
        own = worker_at(held.partner(number))._rows()
        pd.testing.assert_frame_equal(own[["user", "time", "item"]], trained[["user", "time", "item"]])
        brought = pd.read_parquet(held.partner(number) / "clicks.parquet")
        tested = central[(central["partner"] == number) & central["evaluate"]]
        assert len(brought) == len(trained) + len(tested)
        forgotten += len(tested)
    assert forgotten == central["evaluate"].sum()
    forget_workers()
    first, second = ((folder.model / "model.safetensors").read_bytes() for folder in (plain, held))
    assert first == second


@pytest.mark.parametrize(
    ("evaluation", "match"),
    [
        ({"from_time": 5}, "evaluation.from_time = 5: in a simulation partners hold out what data.split"),
        ({"user_share": 0.3}, "evaluation.user_share = 0.3"),
        ({"key": "mine"}, "evaluation.key = 'mine'"),
        ({"releases": 3}, "evaluation.releases = 3: at most one a round, round.num_rounds = 2"),
    ],
)
def test_a_simulation_refuses_another_rule_than_its_split(
    evaluation: dict[str, Any], match: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=match):
        run(evaluated(tiny_encoder, evaluation=evaluation), tmp_path / "run")


def test_report_table_and_terminal_say_what_partners_found(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(
        dump_config(calibrated(tiny_encoder, output={"report": True}, evaluation={"releases": 2})), encoding="utf-8"
    )
    assert main(["simulate", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 0
    found = metrics_of(RunFolder(tmp_path / "run"))["final"]["partners"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("at the partners"))
    assert f"{found['auc']:.4f}" in line
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="at-partners">At the partners</h2>' in page
    assert f"{found['auc']:.3f}" in page
    assert "Evaluation at the partners, by round" in page
    assert "Evaluation at the partners, 2 releases" in page
    shutil.rmtree(tmp_path / "run" / "evaluation")  # the page is made of metrics.json alone
    assert main(["report", str(tmp_path / "run")]) == 0


def test_forecast_keeps_room_for_the_evaluation_to_come(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after one of four rounds: three are left, as planned, and would be more without the evaluation."""
    config, save = calibrated(tiny_encoder, rounds=4), server.app._checkpoint

    def stop(state: Any) -> None:
        save(state)
        if state.round == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(server.app, "_checkpoint", stop)
    with pytest.raises(Stopped):
        run(config, tmp_path / "run")
    capsys.readouterr()
    assert main(["budget", "forecast", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["partners"][0]
    assert found["evaluations_to_come"] == 1
    assert found["rounds_left"] == 3
    assert found["enough"] is True
    assert main(["budget", "show", str(tmp_path / "run"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["ledgers"][0]["by_purpose"]) == {"training"}


def test_a_plan_counts_the_evaluation(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = calibrated(tiny_encoder, rounds=4)
    (tmp_path / "run.toml").write_text(dump_config(config), encoding="utf-8")
    words = ["budget", "plan", str(tmp_path / "run.toml"), "--users", "60"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    planned = with_calibrated_noise(config, 4)
    assert found["setting"]["evaluation_noise"] == planned.privacy.evaluation_noise_multiplier
    assert found["asked"]["noise_multiplier"] == planned.privacy.noise_multiplier
    assert 29.5 < found["asked"]["epsilons"][-1] <= 30.0
    assert main(words) == 0
    assert "Partners evaluate the model once, after the last round" in " ".join(capsys.readouterr().out.split())


def test_where_the_unit_is_a_row_a_users_epsilon_counts_the_evaluation(tiny_encoder: Path, tmp_path: Path) -> None:
    privacy = {"unit": "impression", "max_impressions_per_user": 4, "noise_multiplier": 4.0}
    privacy |= {"evaluation_noise_multiplier": 4.0}
    found = run(evaluated(tiny_encoder, privacy=privacy), tmp_path / "run")
    events = events_of(RunFolder(tmp_path / "run"))
    assert [(event.purpose, event.unit, event.impressions) for event in events] == [
        *[("training", "impression", 4)] * 2,
        ("evaluation", "impression", 4),
    ]
    assert events[-1].clip == 1.0
    alone = [event for event in events if event.purpose == "training"]
    assert found["privacy"]["epsilon"] == pytest.approx(epsilon(events, 1e-4))
    assert epsilon_per_user(alone, 1e-4) < found["privacy"]["user_epsilon"] < float("inf")
    assert found["final"]["partners"]["noise_rows"] == pytest.approx(4.0 * 2)  # four partners, the whole noise each
