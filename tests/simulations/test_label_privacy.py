"""Label-only privacy in a whole small run: every place says labels, and none says that a user is protected."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from simulated_runs import run, small_config

from common.cli import main
from common.config import Config, dump_config
from common.errors import ConfigError
from common.lineage import read_model_folder
from common.privacy.labels import NOT_PROTECTED
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder
from simulations.run import summary_table
from simulations.sources import load_source

ROWS_OF_A_USER = 6


def label_private(encoder: Path, rounds: int = 3) -> Config:
    generator = {"users": 48, "items": 30, "impressions_per_user": 8, "purchase_rate": 0.0}
    privacy = {"mode": "label", "epsilon": 2.0, "max_impressions_per_user": ROWS_OF_A_USER}
    tables = {"data": {"generator": generator}, "round": {"local_steps": 3}, "output": {"report": True}}
    return small_config(encoder, 4, rounds, privacy=privacy, **tables)


@pytest.fixture(scope="module")
def done(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunFolder]:
    folder = RunFolder(tmp_path_factory.mktemp("label") / "run")
    return run(label_private(tiny_encoder), folder.root), folder


def test_the_metrics_say_unit_adjacency_user_and_what_is_open(done: tuple[dict[str, Any], RunFolder]) -> None:
    privacy = json.loads(done[1].metrics.read_bytes())["privacy"]
    assert (privacy["mode"], privacy["unit"], privacy["adjacency"]) == ("label", "label", "replace_label")
    assert 1.999 < privacy["epsilon"] <= 2.0
    assert privacy["user_epsilon"] == pytest.approx(2.0 * ROWS_OF_A_USER)
    assert tuple(privacy["not_protected"]) == NOT_PROTECTED
    assert privacy["flip_probability"] == pytest.approx(1 / (1 + np.exp(2.0)))
    assert (privacy["noise_multiplier"], privacy["clip"], privacy["sampling_rate"]) == (None, None, None)
    assert privacy["sentence"].startswith("label-private, NOT user-private: epsilon 2.00")
    assert "more_users" not in privacy


def test_every_round_costs_what_the_first_did(done: tuple[dict[str, Any], RunFolder]) -> None:
    metrics, folder = done
    spent = [record["epsilon"] for record in metrics["rounds"]]
    assert len(spent) == 3
    assert spent[0] == spent[1] == spent[2]
    events = Ledger(sorted(folder.ledgers.glob("*.jsonl"))[0]).events()
    assert len(events) == 3
    assert len({event.labels for event in events}) == 1


def test_table_report_and_signed_lineage_say_labels(done: tuple[dict[str, Any], RunFolder]) -> None:
    metrics, folder = done
    console = Console(file=io.StringIO(), width=140)
    console.print(summary_table(metrics))
    assert "labels, seeded" in console.file.getvalue()  # type: ignore[attr-defined]
    report = folder.report.read_text(encoding="utf-8")
    for said in (
        "Click labels are protected, not users",
        "the click label of one row replaced by the other",
        f"Epsilon of all labels of a user with {ROWS_OF_A_USER} rows",
        "who was shown what, and when",
    ):
        assert said in report, said
    assert "a unit&#39;s having taken part" not in report
    assert "a unit's having taken part" not in report
    claim = read_model_folder(folder.model)
    lineage = json.loads(claim["lineage.json"])["privacy"]
    assert (lineage["mode"], lineage["unit"], lineage["adjacency"]) == ("label", "label", "replace_label")
    assert lineage["sentence"].startswith("label-private, NOT user-private")


def test_partners_trained_on_flipped_labels_and_their_logs_are_true(
    tiny_encoder: Path, done: tuple[dict[str, Any], RunFolder]
) -> None:
    true = load_source(label_private(tiny_encoder).data).rows
    clicked = {(row.user, row.item, row.time): row.clicked for row in true.itertuples()}
    rows = pd.read_parquet(done[1].partner(0) / "clicks.parquet")
    assert all(clicked[row.user, row.item, row.time] == row.clicked for row in rows.itertuples())
    (drawn,) = (done[1].partner(0) / "state" / "labels").glob("*.seeded")
    used = rows.groupby("user").tail(ROWS_OF_A_USER)
    assert (drawn.stat().st_size - 48) // 8 == len(used) < len(rows)


def test_purchases_of_generated_clicks_are_refused_by_name(tiny_encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.generator\.purchase_rate = 0\.15: must be 0"):
        small_config(tiny_encoder, 4, 1, privacy={"mode": "label", "epsilon": 2.0})


@pytest.mark.parametrize("words", [("budget", "plan"), ("audit",)])
def test_what_has_no_meaning_without_noise_is_refused(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    path = tmp_path / "label.toml"
    path.write_text(dump_config(label_private(tiny_encoder)), encoding="utf-8")
    out = ["--out", str(tmp_path / "out")]
    assert main([*words, str(path), *out]) == 2
    assert 'privacy.mode = "label"' in capsys.readouterr().err
