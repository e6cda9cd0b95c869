"""`sweep` as a whole: its figures, its page, what stops it, what it goes on from, and the union as its oracle."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_rows
from partner_folder import write_partner
from safetensors.numpy import load_file
from sweeps import ROUNDS, refused, result_of, sweep, swept, write_toml
from tiny_encoder import WIDTH

import client.distributed
import client.training
import server.app
import simulations.sweep_cells
from client.worker import Worker
from common.config import load_config
from common.model.click_model import build_model
from common.vector import read_vector
from simulations.preloaded import FeatureStore, PreloadedWorker
from simulations.sweep_page import write_page
from simulations.sweep_table import sweep_table

QUICK = ("--seeds", "2", "--epsilon", "1", "8")


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over every mode, two epsilons and two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    swept(write_toml(folder, tiny_encoder), folder / "out", *QUICK)
    return folder / "out"


@pytest.fixture
def toml(tmp_path: Path, tiny_encoder: Path) -> Path:
    return write_toml(tmp_path, tiny_encoder)


# --- what it leaves -------------------------------------------------------------------------------------------------


def test_every_cell_is_a_run_with_its_figures(whole: Path) -> None:
    result = result_of(whole)
    assert result["states"] == {"done": 14, "failed": 0, "refused": 0}
    assert result["left"] == 0
    assert len(result["lines"]) == 7
    for record in result["cells"]:
        metrics = json.loads((whole / "cells" / record["cell"] / "metrics.json").read_text())
        assert record["auc"] == metrics["final"]["auc"]
        assert record["rounds"] == ROUNDS
        assert (record["spent"] is None) == (record["mode"] == "none")
        assert record["spent"] is None or 0 < record["spent"] <= record["epsilon"]
    for line in result["lines"]:
        values = [r["auc"] for r in result["cells"] if (r["mode"], r["epsilon"]) == (line["mode"], line["epsilon"])]
        assert len(values) == 2
        assert line["auc"]["mean"] == pytest.approx(np.mean(values))
        assert line["auc"]["low"] <= line["auc"]["mean"] <= line["auc"]["high"]


def test_the_realised_noise_of_pooled_is_that_which_the_distributed_sums_had(whole: Path) -> None:
    """Measured on the distributed side by who contributed, taken over on the pooled side."""
    lines = {(line["mode"], line["epsilon"]): line["noise_of_sum"] for line in result_of(whole)["lines"]}
    for epsilon in (1.0, 8.0):
        assert lines["pooled", epsilon] == pytest.approx(lines["distributed", epsilon], rel=1e-12)
        assert lines["local", epsilon] > 1.3 * lines["pooled", epsilon]


def test_the_floors_are_there_once_and_copies_of_the_clicks_are_not(whole: Path) -> None:
    result = result_of(whole)
    assert result["floors"]["base_rate"]["auc"] == pytest.approx(0.5)
    assert not list(whole.rglob("clicks.parquet"))
    assert not list(whole.rglob("central.parquet"))
    assert (whole / "cells" / "local-epsilon-1-seed-1" / "model").is_dir()
    assert len(list(whole.glob("cells/*/ledgers/*.jsonl"))) == 2 * (2 * (4 + 4 + 1) + 1)


def test_generated_clicks_cost_nothing_and_it_says_so(whole: Path) -> None:
    price = result_of(whole)["price"]
    assert price == {"charged": False, "why": "generated clicks are nobody's"}
    assert not (whole / "ledgers").exists()


def test_the_page_opens_offline_and_says_what_was_run(whole: Path) -> None:
    page = (whole / "sweep.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page
    assert "<script src" not in page
    assert "default-src 'none'" in page
    assert "Tiny &lt;b&gt;sweep&lt;/b&gt;" in page
    assert "<b>sweep" not in page
    for words in (
        "over seeds",
        "Nothing was charged",
        "FIXED SEED",
        "realised noise",
        "floor",
        "per user, delta 0.0001",
    ):
        assert words in page, words


def test_the_table_has_a_line_per_mode_and_epsilon_and_the_floors(whole: Path) -> None:
    table = sweep_table(result_of(whole))
    assert list(table.columns[0].cells) == [
        *("local", "distributed", "pooled", "none", "local", "distributed", "pooled", "floor: base rate")
    ]
    assert list(table.columns[1].cells) == ["1", "1", "1", "none", "8", "8", "8", ""]


def test_json_on_stdout_is_what_lies_in_the_folder(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = toml.parent / "out"
    assert sweep(toml, out, "--seeds", "2", "--epsilon", "8", "--modes", "local", "--json") == 0
    assert json.loads(capsys.readouterr().out) == result_of(out)


# --- the union as its oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["fedavg", "fedavgm"])
def test_without_noise_distributed_cells_are_pooled_ones_step_by_step(
    optimiser: str, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is sampled and all their rows are used, so what is left is rounding and the room that the clip makes.

    131 users publish 130 as one holder and 131 as four: with another divisor the steps would be .8 % apart.
    """
    monkeypatch.setattr(client.distributed, "skellam", lambda size, *_: np.zeros(size, np.int64))
    monkeypatch.setattr(client.training, "gaussian_noise", lambda size, *_: np.zeros(size))
    server = {"optimiser": optimiser, "learning_rate": 0.5}
    path = write_toml(
        tmp_path,
        tiny_encoder,
        privacy={"sampling_rate": 1.0, "clip": 0.2, "max_impressions_per_user": 4096},
        server=server,
        round={"num_rounds": 3},
    )
    out = tmp_path / "out"
    swept(path, out, "--seeds", "2", "--epsilon", "3", "--modes", "distributed", "pooled")
    for seed in (1, 2):
        found = [model_D(out, f"{mode}-epsilon-3-seed-{seed}") for mode in ("distributed", "pooled")]
        moved = np.abs(found[1] - start_D(out, f"pooled-epsilon-3-seed-{seed}")).max()
        assert moved > 0.05
        assert np.abs(found[0] - found[1]).max() < 1e-3 * moved
    assert np.abs(model_D(out, "pooled-epsilon-3-seed-1") - model_D(out, "pooled-epsilon-3-seed-2")).max() > 0.05


def model_D(out: Path, cell: str) -> np.ndarray:
    (path,) = (out / "cells" / cell / "model").glob("*.safetensors")
    tensors = load_file(path)
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def start_D(out: Path, cell: str) -> np.ndarray:
    """Returns the weights that a cell's run started from, like `model_D`; the log has purchases: two heads."""
    config = load_config(out / "cells" / cell / "config.toml")
    model = build_model(config.model, WIDTH, 2, config.round.seed)
    assert len(read_vector(model)) == len(model_D(out, cell))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return np.concatenate([state[name].ravel() for name in sorted(state)])


# --- stops, and goes on ---------------------------------------------------------------------------------------------


def figures(result: dict[str, Any]) -> list[Any]:
    return [(record["cell"], record["auc"], record["spent"]) for record in result["cells"]]


@pytest.mark.parametrize("where", [pytest.param("between cells", marks=pytest.mark.slow), "within a cell"])
def test_a_stopped_sweep_goes_on_to_the_same_figures(
    where: str, whole: Path, toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = toml.parent / "out", []
    owner, name = (simulations.sweep_cells, "simulate") if where == "between cells" else (server.app, "_checkpoint")
    original = getattr(owner, name)

    def stop(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == (4 if where == "between cells" else 3 * (ROUNDS + 1) + 2):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        code, said = refused(capsys, toml, out, *QUICK)
    assert code == 1
    assert "stopped after 3 of 14 cells: go on with the same command and --resume" in said
    partial = result_of(out)
    assert partial["states"]["done"] == 3
    assert partial["left"] == 11
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}
    assert len(kept) == 3
    assert figures(swept(toml, out, *QUICK, "--resume")) == figures(result_of(whole))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_stood(whole: Path, toml: Path) -> None:
    out = toml.parent / "out"
    words = [sys.executable, "-m", "common.cli", "sweep", str(toml), "--out", str(out), *QUICK]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("cells/*/cell.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert figures(swept(toml, out, *QUICK, "--resume")) == figures(result_of(whole))


def test_more_seeds_are_added_to_what_is_there(toml: Path) -> None:
    out, words = toml.parent / "out", ("--epsilon", "8", "--modes", "distributed")
    first = swept(toml, out, *words, "--seeds", "2")
    second = swept(toml, out, *words, "--seeds", "3", "--resume")
    assert figures(second)[:2] == figures(first)
    assert second["lines"][0]["auc"]["seeds"] == 3


def test_a_cell_that_fails_costs_no_other(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = toml.parent / "out"
    encoder = toml.read_text(encoding="utf-8").partition('encoder = "path:')[2].partition('"')[0]
    vary = f"model.encoder=path:{encoder},path:{toml.parent / 'nowhere'}"
    code, said = refused(capsys, toml, out, "--seeds", "2", "--epsilon", "8", "--modes", "local", "--vary", vary)
    assert code == 1
    assert "2 of 4 cells failed" in said
    assert "nowhere" in said
    assert "Traceback" not in said
    result = result_of(out)
    assert result["states"] == {"done": 2, "failed": 2, "refused": 0}
    assert len(result["lines"]) == 1
    assert result["lines"][0]["auc"]["seeds"] == 2
    assert "NOT WHOLE: 2 failed" in (out / "sweep.html").read_text(encoding="utf-8")


def test_an_error_of_our_own_is_reported_with_its_story_beside_it(
    toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = toml.parent / "out", simulations.sweep_cells.simulate

    def broken(config: Any, folder: Any, *arguments: Any, **options: Any) -> Any:
        if folder.root.name.endswith("seed-2"):
            raise ZeroDivisionError("planted")
        return original(config, folder, *arguments, **options)

    words = ("--seeds", "2", "--epsilon", "8", "--modes", "local")
    with monkeypatch.context() as patch:
        patch.setattr(simulations.sweep_cells, "simulate", broken)
        code, said = refused(capsys, toml, out, *words)
    assert code == 1
    assert "1 of 2 cells failed: ZeroDivisionError; see" in said
    assert "planted" in (out / "cells" / "local-epsilon-8-seed-2" / "error.txt").read_text()
    assert swept(toml, out, *words, "--resume")["states"]["done"] == 2


# --- folders that are not its own -----------------------------------------------------------------------------------


def test_a_folder_that_holds_a_sweep_needs_resume_and_the_same_configuration(
    whole: Path, tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = write_toml(tmp_path, tiny_encoder)
    code, said = refused(capsys, same, whole, *QUICK)
    assert (code, "add --resume" in said) == (2, True)
    code, said = refused(capsys, same, whole, *QUICK, "--resume", "--set", "privacy.clip=0.5")
    assert (code, "differs from the configuration given (privacy.clip)" in said) == (1, True)
    code, said = refused(capsys, same, whole, *QUICK, "--resume", "--set-for", "local:privacy.clip=0.5")
    assert (code, "under another configuration" in said) == (1, True)
    before, record = (whole / "sweep.json").read_bytes(), whole / "cells" / "none-seed-1" / "cell.json"
    kept = record.read_bytes()
    record.write_text("{}")
    code, said = refused(capsys, same, whole, *QUICK, "--resume")
    record.write_bytes(kept)
    assert (code, "damaged; remove" in said) == (1, True)
    assert (whole / "sweep.json").read_bytes() == before


def test_a_folder_that_holds_a_run_or_nothing_is_refused(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toml.parent / "run").mkdir()
    (toml.parent / "run" / "config.toml").write_text("")
    code, said = refused(capsys, toml, toml.parent / "run", *QUICK)
    assert (code, "holds something else, such as a run" in said) == (2, True)
    code, said = refused(capsys, toml, toml.parent / "new", *QUICK, "--resume")
    assert (code, "holds no sweep to resume" in said) == (1, True)
    code, said = refused(capsys, toml, toml.parent / "new", *QUICK, "--budget", "9")
    assert (code, "nothing is charged, generated clicks are nobody's" in said) == (2, True)
    assert not (toml.parent / "new").exists()


def test_a_page_of_nothing_done_is_still_a_page(whole: Path, tmp_path: Path) -> None:
    result = result_of(whole) | {"lines": [], "cells": [], "floors": {}, "left": 14}
    write_page(result, tmp_path / "sweep.html")
    assert "NOT WHOLE: 14 not run yet" in (tmp_path / "sweep.html").read_text(encoding="utf-8")


def test_shared_features_are_those_that_each_partner_would_make(tmp_path: Path, tiny_encoder: Path) -> None:
    """And another file, or another model, is never answered with the features of the first."""
    store = FeatureStore()
    first = write_partner(tmp_path / "a", tiny_encoder)
    kept = PreloadedWorker(first, store)._data()
    own = Worker(first)._data()
    for name in ("offset_U1", "text_N", "history_NH", "dense_NF", "label_NL"):
        assert np.array_equal(getattr(kept, name), getattr(own, name)), name
    copy = write_partner(tmp_path / "b", tiny_encoder)
    assert PreloadedWorker(copy, store)._data() is kept
    other = write_partner(tmp_path / "c", tiny_encoder, random_rows(12, seed=5))
    assert PreloadedWorker(other, store)._data() is not kept
    wider = replace(first, model=replace(first.model, history=first.model.history + 1))
    assert PreloadedWorker(wider, store)._data().history_NH.shape[1] == first.model.history + 1
    assert PreloadedWorker(first, store)._data() is not kept  # let go, as nobody asked for it with that model
