"""A deployment whose partners evaluate: what its kits say, and a server without clicks of its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from kits import RUN, Operator, consortium

from client.partner import load_partner
from common.config import load_config, read_toml
from common.errors import ConfigError
from server.deploy import prepare_folder, show
from server.deployment import load_deployment

RULE = {"at": "partners", "user_share": 0.2, "key": "agreed"}


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The server's kit of a run that partners evaluate, without held-out clicks."""
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium(), run=RUN | {"evaluation": RULE})
    return operator.kits / "server"


def without_clicks(home: Path, **change: Any) -> Path:
    path = home / "server.toml"
    table = {key: value for key, value in read_toml(path).items() if key not in ("clicks", "card")}
    path.write_text(tomli_w.dumps(table | change), encoding="utf-8")
    return path


def test_every_kit_says_what_is_held_out_and_with_what_noise(home: Path) -> None:
    config = load_config(home / "run.toml")
    assert config.privacy.evaluation_noise_multiplier is not None  # a quarter of the budget, calibrated
    for name in ("shop-a", "shop-b", "shop-c", "shop-d"):
        worker = load_partner(home.parent / "partners" / name / "worker.toml")
        assert worker.evaluation == config.evaluation
        assert worker.evaluation.user_share == 0.2
        assert worker.privacy.evaluation_noise_multiplier == config.privacy.evaluation_noise_multiplier


def test_a_rule_must_be_agreed_before_kits_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Operator(tmp_path, capsys).refused(consortium(), run=RUN | {"evaluation": {"at": "partners"}})
    assert "set evaluation.from_time (Unix seconds) or evaluation.user_share" in " ".join(said.split())


def test_a_server_whose_partners_evaluate_needs_no_clicks(home: Path) -> None:
    folder = prepare_folder(load_deployment(without_clicks(home)))
    assert folder.config.exists()
    assert not folder.central.exists()


def test_a_server_that_evaluates_alone_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium())
    with pytest.raises(ConfigError, match=r"clicks or card is unset in server\.toml: name the held-out clicks"):
        prepare_folder(load_deployment(without_clicks(operator.kits / "server")))


def test_clicks_without_their_card_are_no_clicks(home: Path) -> None:
    with pytest.raises(ConfigError, match="clicks or card is unset"):
        prepare_folder(load_deployment(without_clicks(home, clicks="central.parquet")))


@pytest.mark.parametrize(
    ("final", "said"),
    [
        ({"auc": 0.71234, "rounds": 3}, "3 rounds, AUC 0.7123;"),
        ({"partners": {"auc": 0.6}, "rounds": 3}, "3 rounds, AUC at the partners 0.6000;"),
        ({"auc": 0.7, "partners": {"auc": 0.6}, "rounds": 3}, "AUC 0.7000, AUC at the partners 0.6000;"),
        ({"auc": None, "partners": {"error": "no"}, "rounds": 3}, "3 rounds, AUC undefined;"),
    ],
)
def test_how_a_run_ended_is_said_with_whichever_auc_there_is(
    final: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show({"final": final}, SimpleNamespace())  # type: ignore[arg-type]
    assert said in capsys.readouterr().out
