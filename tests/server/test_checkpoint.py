"""The checkpoint: all there or the one before, and no other run's."""

import errno
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from common.errors import CheckpointError, HushclickError
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

STATE = Checkpoint(
    run_id="run",
    config_fingerprint="a" * 64,
    layout="b" * 64,
    round=3,
    model_D=np.array([1.5, -2.25, 1e-30], np.float32),
    optimiser={"first": np.array([0.1, 0.2, 0.3]), "second": np.zeros(3)},
    rounds=[{"round": 1, "auc": 0.61, "failures": {"shop": "läuft nicht"}}, {"round": 2, "auc": None}],
    exhausted=("a", "b"),
    starts=2,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, STATE)
    return path


def load(path: Path) -> Checkpoint:
    return load_checkpoint(path, "a" * 64)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    for field in fields(Checkpoint):
        if field.name not in ("model_D", "optimiser"):
            assert getattr(one, field.name) == getattr(other, field.name)
    assert one.model_D.tobytes() == other.model_D.tobytes()
    assert one.model_D.dtype == np.float32
    assert one.optimiser.keys() == other.optimiser.keys()
    for name, moment in one.optimiser.items():
        assert moment.tobytes() == other.optimiser[name].tobytes()
        assert moment.dtype == np.float64


def test_there_and_back(path: Path) -> None:
    assert_same(load(path), STATE)


def test_a_first_checkpoint_has_no_rounds(tmp_path: Path) -> None:
    first = replace(STATE, round=0, rounds=[], exhausted=(), optimiser={})
    save_checkpoint(tmp_path / "c", first)
    assert_same(load(tmp_path / "c"), first)


def test_figures_that_are_not_finite_come_back_as_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", replace(STATE, rounds=[{"auc": float("nan"), "ne": np.float64(0.5)}]))
    assert load(tmp_path / "c").rounds == [{"auc": None, "ne": 0.5}]


def test_a_later_one_replaces_it(path: Path) -> None:
    save_checkpoint(path, replace(STATE, round=4))
    assert load(path).round == 4
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "os.open"])
def test_a_full_disk_leaves_the_one_before(where: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, refuse)
        with pytest.raises(HushclickError, match="No space left on device"):
            save_checkpoint(path, replace(STATE, round=4))
    assert_same(load(path), STATE)


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_kill_leaves_the_one_before(where: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, kill)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, replace(STATE, round=4))
    assert_same(load(path), STATE)


def test_a_missing_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint; start the run without --resume"):
        load(tmp_path / "none")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_one_is_damaged(share: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged; start again in another folder"):
        load(path)


@pytest.mark.parametrize("content", [b"\0" * 100, b"\xff" * 100, b"not a checkpoint at all", b"{}"])
def test_another_file_is_damaged(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_a_folder_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "folder")


FACTS = {
    "version": 2,
    "run_id": "run",
    "config_fingerprint": "a" * 64,
    "layout": "b" * 64,
    "round": 3,
    "rounds": [],
    "exhausted": [],
    "starts": 0,
}


def write(path: Path, facts: Any, **arrays: np.ndarray) -> None:
    text = facts if isinstance(facts, str) else json.dumps(facts)
    path.write_bytes(save(arrays or {"model": np.zeros(2, np.float32)}, {"facts": text}))


def test_facts_by_hand_are_read(path: Path) -> None:
    write(path, FACTS)
    assert load(path).round == 3


@pytest.mark.parametrize("missing", [*FACTS, "model"])
def test_a_missing_fact_is_damage(missing: str, path: Path) -> None:
    if missing == "model":
        write(path, FACTS, other=np.zeros(2, np.float32))
    else:
        write(path, {name: value for name, value in FACTS.items() if name != missing})
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


@pytest.mark.parametrize("facts", ["[]", "3", "null", "{", "", '{"version": 2}'])
def test_facts_of_another_kind_are_damage(facts: str, path: Path) -> None:
    write(path, facts)
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_no_facts_at_all_are_damage(path: Path) -> None:
    path.write_bytes(save({"model": np.zeros(2, np.float32)}))
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


@pytest.mark.parametrize("version", [0, 1, 3, "2"])
def test_another_version_is_named(version: Any, path: Path) -> None:
    write(path, FACTS | {"version": version})
    with pytest.raises(CheckpointError, match=f"version {version!r}, and this release reads 2"):
        load(path)


def test_another_configuration_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another configuration; resume with the run's own"):
        load_checkpoint(path, "b" * 64)
