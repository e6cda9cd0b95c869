"""Sensitive columns from a user's own file to the report: a simulation, `hushclick data`, a deployment's log."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto
from kits import Operator, consortium
from sensitive_logs import CANARY, OTHER, card_table, sensitive_log, write_log
from simulated_runs import run, small_config

from common.card import load_card
from common.cli import main
from common.clicks import read_clicks
from common.config import DataConfig
from common.runfolder import RunFolder
from common.sensitive import sensitive_columns
from server.deploy import prepare_folder
from server.deployment import load_deployment
from simulations import grid
from simulations.partners import build_partners
from simulations.sources import load_source

CONTEXT = ("slot", "campaign")


def files(folder: Path, raw: pd.DataFrame, table: dict[str, dict]) -> dict[str, Any]:
    clicks, card = write_log(folder, raw, table)
    return {"source": "files", "path": str(clicks), "card": str(card), "partners": 4}


def holding(folder: Path) -> set[str]:
    """Returns the files in which a group's name is; Parquet is compressed, and is read."""
    found = set()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data = pd.read_parquet(path).to_csv().encode()
        if CANARY.encode() in data or OTHER.encode() in data:
            found.add(str(path.relative_to(folder)))
    return found


def test_partners_train_without_them_and_the_held_out_log_alone_has_them(tmp_path: Path) -> None:
    config = DataConfig(**files(tmp_path, sensitive_log(), card_table()), split="user", test_share=0.5)
    logs = build_partners(load_source(config), config)
    assert sensitive_columns(logs.central) == ["sensitive:age", "sensitive:gender"]
    assert set(logs.central["sensitive:age"]) == {"", CANARY, OTHER}
    for part in logs.training:
        assert sensitive_columns(part) == []
        assert not part.astype(str).isin([CANARY, OTHER]).any(axis=None)
    some = load_source(DataConfig(**files(tmp_path, sensitive_log(), card_table()), max_users=60))
    assert sensitive_columns(some.rows) == ["sensitive:age", "sensitive:gender"]


def test_a_run_over_files_compares_groups_and_no_message_or_partner_has_them(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    original = grid.InProcessGrid._ask

    def spied(own: grid.InProcessGrid, message: Message) -> Message:
        reply = original(own, message)
        sent.extend(recorddict_to_proto(each.content).SerializeToString() for each in (message, reply))
        return reply

    monkeypatch.setattr(grid.InProcessGrid, "_ask", spied)
    data = files(tmp_path, sensitive_log(320), card_table())
    server = {"bootstrap_samples": 40, "floors": ["base_rate", "logistic_regression"]}
    learns = {"local_steps": 8, "learning_rate": 0.1}
    privacy = {"noise_multiplier": 0.3, "sampling_rate": 1.0, "epsilon": 900.0}
    config = small_config(
        tiny_encoder, 4, 4, data=data, server=server, output={"report": True, "jobs": 1}, round=learns, privacy=privacy
    )
    metrics = run(config, tmp_path / "run")
    assert len(sent) > 20
    assert not [body for body in sent if CANARY.encode() in body or OTHER.encode() in body]
    folder = tmp_path / "run"
    assert holding(folder) == {"central.parquet", "metrics.json", "report.html"}
    lines = {line["slice"]: line for line in metrics["final"]["slices"]}
    assert lines[f"age: {CANARY}"]["auc"] < lines[f"age: {OTHER}"]["auc"]
    assert lines["gender: x"] == {"slice": "gender: x", "of": "sensitive:gender", "hidden": "under 20 users"}
    assert sorted(lines[f"gender: {name}"].get("hidden", "") for name in "fm") == ["", "kept back"]
    fairness = json.loads((folder / "metrics.json").read_bytes())["final"]["fairness"]
    assert fairness["sensitive"] == ["age", "gender"]
    gap = next(gap for gap in fairness["columns"][0]["gaps"] if gap["figure"] == "auc")
    assert (gap["highest"], gap["lowest"]) == (f"age: {OTHER}", f"age: {CANARY}")
    assert gap["interval"][0] > gap["by_lot"] > 0  # the elder click at random: no model can serve them as well
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "By group of people" in report
    assert "Largest gaps between groups of people" in report


def test_the_model_is_the_same_to_the_bit_without_them(tmp_path: Path, tiny_encoder: Path) -> None:
    raw = sensitive_log(60)
    models = []
    for name, own, table in (
        ("with", raw, card_table()),
        ("without", raw.drop(columns=["age", "gender"]), card_table(sensitive=())),
    ):
        run(small_config(tiny_encoder, 4, 2, data=files(tmp_path / name, own, table)), tmp_path / name / "run")
        models.append((tmp_path / name / "run" / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_hushclick_data_says_what_is_sensitive_and_what_gives_it_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = files(tmp_path, sensitive_log(), card_table(context=CONTEXT))
    (tmp_path / "run.toml").write_text(tomli_w.dumps({"data": data}), encoding="utf-8")
    assert main(["data", str(tmp_path / "run.toml"), "--out", str(tmp_path / "parts")]) == 0
    shown = capsys.readouterr().out
    assert "sensitive columns, for slices of the held-out rows and no feature: age, gender" in shown
    assert "WARN  context:campaign gives age away: it explains 100% of it" in shown
    assert shown.count("WARN") == 1
    assert holding(tmp_path / "parts") == {"central.parquet"}
    central = pd.read_parquet(tmp_path / "parts" / "central.parquet")
    assert sensitive_columns(central) == ["sensitive:age", "sensitive:gender"]
    for home in sorted((tmp_path / "parts").glob("partner-*")):
        card = load_card(home / "card.toml")
        assert card.sensitive.columns == ()
        assert sensitive_columns(read_clicks(home / "clicks.parquet", card, sensitive=True).rows) == []
    assert main(["data", str(tmp_path / "run.toml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sensitive"]
    assert found["columns"] == ["age", "gender"]
    assert [one["column"] for one in found["associations"] if one["is_proxy"]] == ["context:campaign"]


def test_a_deployments_server_keeps_them_in_its_held_out_log_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium())
    home = operator.kits / "server"
    clicks, card = write_log(home, sensitive_log(), card_table(context=CONTEXT))
    path = home / "server.toml"
    text = path.read_text(encoding="utf-8").replace('clicks = "central.parquet"', f'clicks = "{clicks.name}"')
    path.write_text(text, encoding="utf-8")
    assert card == home / "card.toml"
    capsys.readouterr()
    folder: RunFolder = prepare_folder(load_deployment(path))
    said = capsys.readouterr().out
    assert "sensitive columns, for slices and no feature: age, gender" in said
    assert "warning: context:campaign gives age away" in said
    assert sensitive_columns(pd.read_parquet(folder.central)) == ["sensitive:age", "sensitive:gender"]
