"""Starting and ending the programs that Flower installs, so that none outlives who started it.

They are found beside the interpreter, run with an environment of their own, and never reach for the internet.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil

from common.errors import HushclickError

END_SECONDS = 10.0
_PROBE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_INHERITED = frozenset(
    {
        *("HOME", "LANG", "TZ", "TMPDIR", "HUSHCLICK_CACHE", "CUDA_VISIBLE_DEVICES"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

BUNDLE = """[project]
name = "hushclick-run"
version = "0.1.0"
description = "Names the installed apps; holds no code"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "hushclick"
fab-include = ["/README.md"]

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
run-folder = ""
"""


def program(name: str) -> str:
    """Returns the path of a program of this environment.

    Raises:
        HushclickError: where it is not installed.
    """
    for folder in _program_folders():
        if (folder / name).exists():
            return str(folder / name)
    raise HushclickError(f"{name} is not installed with {sys.executable}: install hushclick again")


def _program_folders() -> tuple[Path, ...]:
    """Where programs of this environment lie: beside Python in a virtual one; a system's Python installs elsewhere."""
    return Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of Flower's programs, whose state and configuration lie in `home`.

    `more` is added to the little that is inherited; what keeps Flower quiet and at home stays as it is.
    """
    path = os.pathsep.join([*map(str, _program_folders()), os.environ.get("PATH", "")])
    # What Flower runs may be hostile: it gets none of the passwords that an operator's own environment may hold, and no
    # setting of Flower that is not ours.
    kept = {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith("LC_")}
    return kept | dict(more or {}) | _QUIET | {"PATH": path, "FLWR_HOME": str(home)}


def write_bundle(folder: Path, *, server: str = "server.app:app", client: str = "client.app:app") -> Path:
    """Writes the app folder that Flower is given, which names the installed apps and holds no code; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(BUNDLE.format(server=server, client=client), encoding="utf-8")
    (folder / "README.md").write_text("The apps are those of the installed package.\n", encoding="utf-8")
    return folder


def write_connection(home: Path, address: str, ca: Path | None = None) -> None:
    """Writes the configuration with which `flwr` finds a SuperLink, under the name "own"."""
    home.mkdir(parents=True, exist_ok=True)
    trust = f'root-certificates = "{ca}"' if ca else "insecure = true"
    text = f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\n{trust}\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def free_port() -> int:
    """Returns a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(host: str, port: int, process: "subprocess.Popen[bytes] | None", seconds: float) -> bool:
    """Returns whether something listens there before so many seconds are over or the process, if one is given, ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=_PROBE_SECONDS):
            return True
        time.sleep(0.1)
    return False


@contextmanager
def running(words: Sequence[str], home: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a program with its output in a log, and ends it, with all that it started, when the block is left."""
    process = start(words, home, log)
    try:
        yield process
    finally:
        end(process, home)


def start(words: Sequence[str], home: Path, log: Path | None, user: str = "") -> "subprocess.Popen[bytes]":
    """Starts a program in a session of its own, as another user where one is named (root may).

    Its output goes to `log`, or without one to where this process's own goes.

    Raises:
        HushclickError: where it cannot be started, as this user or at all.
    """
    home.mkdir(parents=True, exist_ok=True)
    who = pwd.getpwnam(user) if user else None
    with log.open("ab") if log else nullcontext() as output:
        try:
            return subprocess.Popen(  # noqa: S603 (a program of this environment, words of this operator)
                list(words),
                env=environment(home, {"HOME": str(home)} if who else None),
                stdout=output,
                stderr=output,
                cwd=home,
                start_new_session=True,
                user=who.pw_uid if who else None,
                group=who.pw_gid if who else None,
                extra_groups=[] if who else None,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            as_whom = f" as user {user}: may that user read {sys.prefix} and its Python?" if user else ""
            raise HushclickError(f"{words[0]} cannot be started ({error.strerror}){as_whom}") from None


def _end_with_parent() -> None:
    """Has the kernel end this process when its parent is killed: nothing goes on spending budgets unseen (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end(process: "subprocess.Popen[bytes]", home: Path, seconds: float = END_SECONDS) -> None:
    """Asks a process to end, and after so many seconds ends it and whatever it started."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    end_all(home)
    process.wait()


def end_all(home: Path) -> None:
    """Ends every process whose FLWR_HOME is this one, and waits: Flower and Ray start theirs in sessions of their own.

    They outlive whoever started them, and a run that went on after a Ctrl-C would go on spending budgets.
    """

    def of_this_home(process: psutil.Process) -> bool:
        try:
            return process.environ().get("FLWR_HOME") == str(home)
        except (psutil.Error, OSError):
            return False

    for way in ("terminate", "kill"):
        found = [process for process in psutil.process_iter() if of_this_home(process)]
        for process in found:
            with contextlib.suppress(psutil.Error):
                getattr(process, way)()
        psutil.wait_procs(found, timeout=END_SECONDS)
