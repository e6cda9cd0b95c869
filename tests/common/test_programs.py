"""Programs of others: what they inherit, and that nothing of theirs outlives who started them."""

import io
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from flwr.cli.build import build_fab_from_disk
from other_users import SHIM, needs_other_users

from common.errors import HushclickError
from common.programs import end, environment, running, start, write_bundle

# Starts a process in a session of its own, as Flower does, says its number, and ends.
LEAVES_ONE_BEHIND = (
    "import subprocess, sys;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
    "print(child.pid, flush=True)"
)


def left_behind(log: Path) -> psutil.Process:
    deadline = time.monotonic() + 60
    while not log.exists() or not log.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int(log.read_text()))


def test_what_a_dead_program_left_behind_is_ended_too(tmp_path: Path) -> None:
    """A shim whose SuperNode was killed would wait for it for ever; by then it is nobody's child."""
    home, log = tmp_path / "home", tmp_path / "log"
    process = start([sys.executable, "-c", LEAVES_ONE_BEHIND], home, log)
    child = left_behind(log)
    process.wait(60)
    assert child.is_running()
    end(process, home)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_programs_of_another_home_are_left_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    with running(words, tmp_path / "one", tmp_path / "one.log") as one:
        with running(words, tmp_path / "two", tmp_path / "two.log") as two:
            assert two.poll() is None
        assert two.poll() is not None
        assert one.poll() is None


def test_promise_3_no_password_of_the_operators_and_no_setting_of_others_is_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    monkeypatch.setenv("LC_TIME", "de_DE")
    found = environment(tmp_path, {"HOME": "/home/shim", "FLWR_TELEMETRY_ENABLED": "1"})
    assert "secret" not in found.values()
    assert {name for name in found if name.startswith("FLWR_")} == {
        "FLWR_HOME",
        "FLWR_TELEMETRY_ENABLED",
        "FLWR_DISABLE_UPDATE_CHECK",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
    }
    assert (found["FLWR_HOME"], found["FLWR_TELEMETRY_ENABLED"]) == (str(tmp_path), "0")
    assert (found["HOME"], found["LC_TIME"]) == ("/home/shim", "de_DE")
    assert found["PATH"].startswith(str(Path(sys.executable).parent))


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own use of pathspec
def test_promise_3_the_bundle_that_is_sent_holds_no_code(tmp_path: Path) -> None:
    """As Flower builds it; of a folder with code, the same build does hold it."""

    def names(folder: Path) -> set[str]:
        return {name for name in zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))).namelist() if name[0] != "."}

    assert names(write_bundle(tmp_path / "bundle")) == {"pyproject.toml", "README.md"}
    hostile = Path(__file__).parents[1] / "flower" / "hostile_bundle"
    assert names(hostile) == {"pyproject.toml", "evil/__init__.py", "evil/client.py", "evil/server.py"}


def test_a_program_that_cannot_be_started_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(HushclickError, match=r"no-such-program cannot be started \(No such file or directory\)"):
        start(["no-such-program"], tmp_path / "home", tmp_path / "log")


@needs_other_users
def test_a_program_that_another_user_cannot_run_is_said_in_words(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.write_text("#!/bin/sh\n", encoding="ascii")
    closed.chmod(0o700)
    with pytest.raises(HushclickError, match=f"as user {SHIM}: may that user read"):
        start([str(closed)], tmp_path / "home", tmp_path / "log", SHIM)
