"""The floors on a planted log whose right answers are known beforehand.

In the log, items with the word "good" are clicked four times in five, the others once in five, at both partners.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

import simulations.floors
from common.clicks import write_clicks
from common.config import Config, parse_config
from common.runfolder import RunFolder
from simulations.floors import Logs, compute_floors, load_logs
from simulations.prepare import write_central

ALL = ("base_rate", "item_popularity", "logistic_regression", "local_only", "pooled")


def planted(rng: np.random.Generator, users: int, rows: int, name: str) -> pd.DataFrame:
    count = users * rows
    item_N = rng.integers(0, 10, count)
    good_N = item_N % 2 == 0
    return pd.DataFrame(
        {
            "user": np.repeat([f"{name}{number:03d}" for number in range(users)], rows),
            "time": 1_700_000_000 + np.tile(np.arange(rows), users) * 3600,
            "item": [f"i{number}" for number in item_N],
            "text": [
                f"{'good' if good else 'poor'} offer {number}" for good, number in zip(good_N, item_N, strict=True)
            ],
            "clicked": (rng.random(count) < np.where(good_N, 0.8, 0.2)).astype(np.int8),
            "domain": "",
        }
    )


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder]:
    """A run folder of two partners, as if a run of chance scores had ended in it."""
    folder, rng = RunFolder(tmp_path_factory.mktemp("run")), np.random.default_rng(0)
    logs = [planted(rng, 40, 10, "ab"[number]) for number in range(2)]
    central = []
    for number, log in enumerate(logs):
        late_N = (log.groupby("user").cumcount() >= 7).to_numpy()
        folder.partner(number).mkdir(parents=True)
        write_clicks(log[~late_N].reset_index(drop=True), folder.partner(number) / "clicks.parquet")
        central.append(log.assign(partner=number, evaluate=late_N, cold_user=False, cold_item=False))
    write_central(pd.concat(central).reset_index(drop=True), folder.central)
    np.save(folder.root / "scores.npy", rng.random(2 * 40 * 3))
    config = parse_config(
        {
            "data": {"source": "generated", "partners": 2},
            "model": {"encoder": f"path:{tiny_encoder}", "width": 4, "hidden": 4},
            "round": {"num_rounds": 2, "local_steps": 2, "learning_rate": 0.05},
            "privacy": {"sampling_rate": 0.5},
            "aggregation": {"method": "plain", "min_partners": 1},
            "server": {"bootstrap_samples": 50},
        }
    )
    return config, folder


def quiet(_text: str) -> None:
    return None


@pytest.fixture(scope="module")
def floors(run: tuple[Config, RunFolder]) -> dict[str, dict[str, Any]]:
    config, folder = run
    return compute_floors(replace(config, server=replace(config.server, floors=ALL)), folder, quiet)


def evaluated(folder: RunFolder) -> pd.DataFrame:
    central = pd.read_parquet(folder.central)
    return central[central["evaluate"]]


def training(folder: RunFolder) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder.partner(number) / "clicks.parquet") for number in range(2)])


def test_the_logs_are_the_folders(run: tuple[Config, RunFolder]) -> None:
    logs = load_logs(*run)
    _, folder = run
    assert len(logs.training) == len(training(folder)) == 2 * 40 * 7
    assert set(logs.training["partner"]) == {0, 1}
    assert len(logs.evaluated) == len(logs.heldout.label_NL) == 2 * 40 * 3
    np.testing.assert_array_equal(logs.evaluated["clicked"], logs.heldout.label_NL[:, 0])
    clicked = training(folder).groupby("item")["clicked"]
    assert logs.item_counts["i3"] == (clicked.sum()["i3"], clicked.size()["i3"])


def test_the_base_rate_knows_nothing(floors: dict[str, Any], run: tuple[Config, RunFolder]) -> None:
    _, folder = run
    rate, label_N = training(folder)["clicked"].mean(), evaluated(folder)["clicked"]
    floor = floors["base_rate"]
    assert floor["auc"] == 0.5
    assert floor["log_loss"] == pytest.approx(sklearn_metrics.log_loss(label_N, np.full(len(label_N), rate)))
    assert floor["note"] == f"{rate:.3f} of the training rows are clicks"


def test_item_popularity_by_hand(floors: dict[str, Any], run: tuple[Config, RunFolder]) -> None:
    """(clicks + 5 rate) / (impressions + 5) over both partners' training rows, in the order of the evaluated rows."""
    _, folder = run
    rows, test = training(folder), evaluated(folder)
    grouped = rows.groupby("item")["clicked"]
    score = (grouped.sum() + 5 * rows["clicked"].mean()) / (grouped.size() + 5)
    score_N = score.reindex(test["item"]).to_numpy()
    floor = floors["item_popularity"]
    assert floor["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(test["clicked"], score_N), abs=1e-12)
    assert floor["log_loss"] == pytest.approx(sklearn_metrics.log_loss(test["clicked"], score_N), abs=1e-9)
    assert floor["auc"] > 0.7


def test_an_item_nobody_trained_on_gets_the_base_rate(run: tuple[Config, RunFolder]) -> None:
    logs = load_logs(*run)
    bare = replace(logs, item_counts={})
    (score_N, _) = simulations.floors._item_popularity(bare, quiet)["item_popularity"]
    np.testing.assert_allclose(score_N, logs.training["clicked"].mean())


@pytest.mark.parametrize("name", ["logistic_regression", "logistic_regression_item_means", "pooled", "local_only"])
def test_what_learns_beats_the_base_rate(name: str, floors: dict[str, Any]) -> None:
    assert floors[name]["auc"] > 0.65
    assert floors[name]["log_loss"] < floors["base_rate"]["log_loss"] - 0.03


def test_each_floor_has_its_interval_its_note_and_is_not_private(floors: dict[str, Any]) -> None:
    assert list(floors) == [
        "base_rate",
        "item_popularity",
        "logistic_regression",
        "logistic_regression_item_means",
        "local_only",
        "pooled",
    ]
    for floor in floors.values():
        assert floor["private"] is False
        assert floor["note"]
        low, high = floor["intervals"]["auc"]
        assert low <= floor["auc"] <= high


def test_the_difference_is_the_model_minus_the_floor(floors: dict[str, Any], run: tuple[Config, RunFolder]) -> None:
    _, folder = run
    model_N = np.load(folder.root / "scores.npy")
    model_auc = sklearn_metrics.roc_auc_score(evaluated(folder)["clicked"], model_N)
    for floor in floors.values():
        value, low, high = floor["difference"]
        assert value == pytest.approx(model_auc - floor["auc"], abs=1e-12)
        assert low <= value <= high
    assert floors["item_popularity"]["difference"][2] < 0  # chance is clearly below it


def test_alone_means_each_row_by_its_own_partners_model(
    run: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = load_logs(*run)
    given: list[set[str]] = []

    def train(logs: Logs, rows: pd.DataFrame, label: str) -> tuple[int, np.ndarray]:
        given.append({user[0] for user in rows["user"]})
        return 7, np.full(len(logs.evaluated), float(label.split()[-1]) + 0.25)

    monkeypatch.setattr(simulations.floors, "_train_and_score", train)
    score_N, note = simulations.floors._local_only(logs, quiet)["local_only"]
    assert given == [{"a"}, {"b"}]
    np.testing.assert_array_equal(score_N, logs.evaluated["partner"] + 0.25)
    assert "7 steps" in note


def test_only_the_floors_that_are_asked_for_are_computed(
    run: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = run
    said: list[str] = []

    def ask(*names: Any) -> Callable[[], dict[str, Any]]:
        server = replace(config.server, floors=names, bootstrap_samples=0)
        return lambda: compute_floors(replace(config, server=server), folder, said.append)

    found = ask("item_popularity")()
    assert list(found) == ["item_popularity"]
    assert not {"intervals", "difference"} & found["item_popularity"].keys()
    monkeypatch.setattr(simulations.floors, "load_logs", None)
    assert ask()() == {}  # nothing is even read
    assert said == []


def test_floors_are_repeatable(run: tuple[Config, RunFolder], floors: dict[str, Any]) -> None:
    config, folder = run
    again = compute_floors(replace(config, server=replace(config.server, floors=("pooled",))), folder, quiet)
    assert again["pooled"] == floors["pooled"]
