"""The operator's command between its SuperLink and its run: what it does when either dies, or the disk is full."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import server.deploy
from common.errors import HushclickError, Stopped
from common.runfolder import RunFolder
from server.deploy import run_to_the_end

FINISHED = ("finished:completed", "")


class Scene:
    """A SuperLink and its control API, of which a test says what each look at the run's state finds."""

    def __init__(self, folder: RunFolder, *looks: Any, holds_run: bool = True) -> None:
        self._folder, self._looks = folder, list(looks)
        self.holds_run, self.address = holds_run, "127.0.0.1:1"
        self.started = self.revived = 0
        self.stopped: list[str] = []
        self.dead = False

    def start(self, _: Path) -> str:
        self.started += 1
        return f"run-{self.started}"

    def state(self, _run: str) -> tuple[str, str]:
        look = self._looks.pop(0)
        if look == "dies":
            self.dead = True
            look = HushclickError("flwr list: connection refused")
        if isinstance(look, Exception):
            raise look
        if look == FINISHED:
            self._folder.metrics.write_bytes(b"{}")
        found: tuple[str, str] = look
        return found

    def stop(self, run: str) -> None:
        self.stopped.append(run)

    @property
    def has_died(self) -> bool:
        return self.dead

    def revive(self) -> bool:
        was, self.dead = self.dead, False
        self.revived += was
        return was


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(server.deploy, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(server.deploy, "_ASK_SECONDS", 0.002)
    return RunFolder(tmp_path)


def play(folder: RunFolder, *looks: Any, holds_run: bool = True) -> Scene:
    scene = Scene(folder, *looks, holds_run=holds_run)
    run_to_the_end(scene, scene, folder, threading.Event())  # type: ignore[arg-type]
    return scene


def test_a_superlink_that_died_is_revived_and_the_run_started_again(folder: RunFolder) -> None:
    scene = play(folder, ("running", ""), "dies", ("running", ""), FINISHED)
    assert (scene.started, scene.revived, scene.stopped) == (2, 1, ["run-1"])


def test_a_run_of_somebody_elses_superlink_goes_on_when_that_is_back(folder: RunFolder) -> None:
    scene = play(folder, ("running", ""), "dies", ("running", ""), FINISHED, holds_run=False)
    assert (scene.started, scene.revived, scene.stopped) == (1, 1, [])


def test_a_call_that_fails_is_made_again_but_not_for_ever(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = HushclickError("flwr list: no answer of the SuperLink in 120 s")
    assert play(folder, *[busy] * 4, ("running", ""), *[busy] * 4, FINISHED).started == 1
    assert capsys.readouterr().out.count("it is asked again") == 8
    with pytest.raises(HushclickError, match="no answer of the SuperLink"):
        play(folder, *[busy] * 5)


def test_a_full_disk_is_waited_for_and_said_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.checkpoint.write_bytes(bytes(1000))
    frees = iter([0, 0, 2**20 + 1999, 2**20 + 2000])  # room for a checkpoint beside the one that is there
    monkeypatch.setattr(server.deploy.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(frees)))
    assert play(folder, FINISHED).started == 1
    said = capsys.readouterr().out
    assert said.count("the disk is full, 0 bytes are free and a round takes 1050576; make space there") == 1
    assert not list(frees)


def test_the_operator_can_stop_while_the_disk_is_full(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.deploy.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    stop = threading.Event()
    stop.set()
    scene = Scene(folder)
    with pytest.raises(Stopped, match="goes on from its last good round"):
        run_to_the_end(scene, scene, folder, stop)  # type: ignore[arg-type]
    assert scene.started == 0


def test_a_run_that_dies_again_and_again_ends(folder: RunFolder) -> None:
    scene = Scene(folder, *[("finished:failed", "x")] * 10)
    with pytest.raises(HushclickError, match="died 10 times"):
        run_to_the_end(scene, scene, folder, threading.Event())  # type: ignore[arg-type]
    assert scene.started == 10
