"""Trackers hold a run's figures as their own readers give them back, stay on this machine, and stop no run."""

import json
import logging
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import run, small_config

import server.trackers as trackers
from common.config import Config, OutputConfig, load_config
from common.errors import ConfigError, Stopped
from server.trackers import Trackers, flat, require_trackers

ALL = ("tensorboard", "wandb", "mlflow")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:tensorboard.*",
    "ignore::DeprecationWarning:wandb.*",
    "ignore:datetime.datetime.utc:DeprecationWarning",
)


def needed(*names: str) -> Any:
    missing = [name for name in names if any(find_spec(module) is None for module in trackers._NEEDS[name][0])]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; the dev extra has them")


def config(*names: Any, **settings: Any) -> Config:
    return Config(output=OutputConfig(title="A run", trackers=names), **settings)


RECORDS = [
    {
        "round": 1,
        "auc": 0.61,
        "intervals": {"auc": [0.5, 0.7]},
        "timings": {"train_seconds": 1.5},
        "failures": {"a": "b"},
    },
    {"round": 2, "auc": 0.64, "intervals": {"auc": [0.52, 0.74]}, "timings": {"train_seconds": 1.25}},
]
METRICS: dict[str, Any] = {
    "rounds": RECORDS,
    "final": {"auc": 0.65, "purchase": {"auc": 0.7}, "slices": [{"auc": 0.1}], "ne": None},
    "privacy": {"epsilon": 7.5, "sentence": "epsilon 7.5 for one user", "fixed_seed": False},
    "timings": {"server_seconds": 3.0},
    "data": {"partners": 4},
    "stopped": None,
}
FINAL = {
    "final/auc": 0.65,
    "final/purchase/auc": 0.7,
    "privacy/epsilon": 7.5,
    "timings/server_seconds": 3.0,
    "data/partners": 4.0,
}


def play(folder: Path, *names: str, starts: int = 0) -> None:
    told = Trackers(config(*names), folder, "f00d", starts)
    for record in RECORDS:
        told.round(record)
    told.finish(METRICS)


# --- what is told -------------------------------------------------------------------------------------------------


def test_numbers_alone_are_told() -> None:
    assert flat(RECORDS[0]) == {
        "round": 1,
        "auc": 0.61,
        "intervals/auc/low": 0.5,
        "intervals/auc/high": 0.7,
        "timings/train_seconds": 1.5,
    }
    assert flat({"a": True, "b": float("nan"), "c": "text", "d": [1, 2], "e": None, "f": {"g": float("inf")}}) == {}


def test_neither_places_nor_what_removes_noise_is_told(tmp_path: Path) -> None:
    found = trackers._params(load_config(_written(tmp_path)))
    assert "secret" not in json.dumps(found)
    assert "4242" not in json.dumps(found)
    assert found["round.num_rounds"] == "3"
    assert found["model.encoder"] == "path:"


def _written(folder: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(
        '[data]\nsource = "files"\npath = "/secret/place.csv"\ncard = "/secret/card.toml"\n[model]\n'
        'encoder = "path:/secret/model"\ncache = "/secret/cache"\n[round]\nnum_rounds = 3\n'
        "[privacy]\nfixed_seed = 4242\n"
    )
    return path


# --- each by its own reader ---------------------------------------------------------------------------------------


def tensorboard_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@needed("tensorboard")
def test_tensorboard(tmp_path: Path) -> None:
    play(tmp_path, "tensorboard")
    found = tensorboard_of(tmp_path / "trackers" / "tensorboard" / "f00d-0")
    assert found["auc"] == [(1, pytest.approx(0.61)), (2, pytest.approx(0.64))]
    assert found["intervals/auc/high"] == [(1, pytest.approx(0.7)), (2, pytest.approx(0.74))]
    for key, value in FINAL.items():
        assert found[key] == [(2, pytest.approx(value))], key
    assert set(found) == {*FINAL, "auc", "intervals/auc/low", "intervals/auc/high", "timings/train_seconds"}


@needed("mlflow")
def test_mlflow(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    play(tmp_path, "mlflow")
    store = tmp_path / "trackers" / "mlflow" / "f00d-0" / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "hushclick"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("A run", "FINISHED")
    assert {point.step: point.value for point in client.get_metric_history(found.info.run_id, "auc")} == {
        1: 0.61,
        2: 0.64,
    }
    assert {key: found.data.metrics[key] for key in FINAL} == FINAL
    assert found.data.params["round.num_rounds"] == "10"
    assert found.data.tags["privacy"] == "epsilon 7.5 for one user"


def log_records(data: bytes) -> list[bytes]:
    """Returns the records of a LevelDB log, as wandb writes it: 7 bytes of its own, then blocks of 32 KiB."""
    assert data[:4] == b":W&B"
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no room for a header: the rest of the block is empty
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(part)
            part = b""
    return found


def wandb_of(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Returns history, summary and configuration of an offline run, from its own file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    history, summary, params = [], {}, {}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.history.item:
            history.append(
                {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            )
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for item in [*record.run.config.update, *record.config.update]:
            params["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return history, summary, params


@needed("wandb")
def test_wandb_offline(tmp_path: Path) -> None:
    import wandb

    play(tmp_path, "wandb")
    wandb.teardown()  # as at the end of a process: its service has then written all
    history, summary, params = wandb_of(tmp_path / "trackers" / "wandb" / "f00d-0")
    assert [(line["_step"], line["auc"]) for line in history] == [(1, 0.61), (2, 0.64)]
    assert {key: summary[key] for key in FINAL} == FINAL
    assert summary["privacy"] == "epsilon 7.5 for one user"
    assert params["round.num_rounds"] == "10"
    texts = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log")
    assert socket.gethostname().encode() not in texts or len(socket.gethostname()) < 4


@needed(*ALL)
def test_a_run_that_is_started_again_is_a_record_of_its_own(tmp_path: Path) -> None:
    play(tmp_path, "tensorboard")
    play(tmp_path, "tensorboard", starts=1)
    folders = sorted(path.name for path in (tmp_path / "trackers" / "tensorboard").iterdir())
    assert folders == ["f00d-0", "f00d-1"]


# --- what is not there, and what fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_one_that_is_not_installed_is_refused_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf'output\.trackers = \["{name}"\].*`python -m pip install .*{name}'):
        require_trackers([name])


def test_before_anything_else_of_a_run(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match="not installed here"):
        run(small_config(tiny_encoder, 4, 1, output={"trackers": ["wandb"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_one_is_a_mistake_of_the_configuration(tiny_encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"output\.trackers"):
        small_config(tiny_encoder, 4, 1, output={"trackers": ["neptune"]})


class Broken:
    """A tracker that fails at one of its calls, and counts how often it is called."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0

    def _call(self, name: str) -> None:
        self.calls += 1
        if name == self.at:
            raise OSError("disk full\nof somebody else")

    def begin(self, *_: Any) -> None:
        self._call("begin")

    def round(self, *_: Any) -> None:
        self._call("round")

    def finish(self, *_: Any) -> None:
        self._call("finish")


@pytest.mark.parametrize(("at", "calls"), [("begin", 1), ("round", 2), ("finish", 4)])
def test_one_that_fails_is_said_once_and_the_run_goes_on(
    at: str,
    calls: int,
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken(at)
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda: broken)
    monkeypatch.setattr(trackers, "find_spec", lambda module: True)
    with caplog.at_level(logging.WARNING):
        metrics = run(small_config(tiny_encoder, 4, 2, output={"trackers": ["wandb"]}), tmp_path / "run")
    assert len(metrics["rounds"]) == 2
    assert broken.calls == calls
    said = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert said == ["tracker wandb failed and is told nothing more; the run goes on: disk full"]


# --- whole runs ---------------------------------------------------------------------------------------------------


@needed("tensorboard")
def test_a_run_tells_what_its_metrics_hold(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_config(tiny_encoder, 4, 3, output={"trackers": ["tensorboard"]})
    calls, original = [], trackers.Trackers.round

    def stop(told: Trackers, record: Any) -> None:
        calls.append(record["round"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(told, record)

    with monkeypatch.context() as patch:
        patch.setattr(trackers.Trackers, "round", stop)
        with pytest.raises(Stopped):
            run(settings, tmp_path / "run")
    metrics = run(settings, tmp_path / "run", resume=True)
    folder = tmp_path / "run" / "trackers" / "tensorboard"
    first, second = sorted(folder.iterdir(), key=lambda path: path.name)
    assert [step for step, _ in tensorboard_of(first)["auc"]] == [1, 2]
    found = tensorboard_of(second)  # the rounds before the stop are in it too
    assert found["auc"] == [(record["round"], pytest.approx(record["auc"])) for record in metrics["rounds"]]
    assert found["final/auc"] == [(3, pytest.approx(metrics["final"]["auc"]))]
    assert found["privacy/epsilon"][0][1] == pytest.approx(metrics["privacy"]["epsilon"], rel=1e-3)
    plain = run(replace(settings, output=OutputConfig(jobs=1, report=False)), tmp_path / "plain")
    assert plain["final"] == metrics["final"]
    assert not (tmp_path / "plain" / "trackers").exists()
