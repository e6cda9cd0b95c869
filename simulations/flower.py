"""The same apps through Flower's own Ray simulation: slower and larger, and the same global model.

A SuperLink of the run's own is started on a free loopback port, and `flwr run` gives it an app folder that names
`server.app` and `client.app` and holds no code: actors run the installed package. Both end with the run.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import HushclickError

_START_SECONDS = 60.0
_END_SECONDS = 10.0

_APP = """[project]
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


def run_in_flower(
    num_nodes: int, run_folder: Path, log_path: Path, *, server: str = "server.app:app", client: str = "client.app:app"
) -> None:
    """Runs a ServerApp and a ClientApp of installed modules on Flower's simulation engine, and waits for the end.

    A run that fails inside Flower does not raise here (`flwr run --stream` ends with 0): look for what it leaves.

    Args:
        num_nodes: simulated SuperNodes.
        run_folder: passed to both apps as `run-folder`.
        log_path: where Flower's output goes.
        server: the ServerApp, as module:name.
        client: the ClientApp, as module:name.

    Raises:
        HushclickError: when flwr's simulation is not installed or does not start.
    """
    programs = Path(sys.executable).parent
    if not (programs / "flwr").exists() or not (programs / "ray").exists():
        raise HushclickError("Flower's simulation is not installed: pip install 'hushclick[ray]'")
    with tempfile.TemporaryDirectory(prefix="hushclick-") as scratch, log_path.open("wb") as log:
        home, app = Path(scratch, "flwr"), Path(scratch, "app")
        home.mkdir()
        app.mkdir()
        (app / "pyproject.toml").write_text(_APP.format(server=server, client=client), encoding="utf-8")
        (app / "README.md").write_text("The apps are those of the installed package.\n", encoding="utf-8")
        environment = _environment(home, programs)
        with _superlink(environment, scratch, log.fileno()) as address:
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n',
                encoding="utf-8",
            )
            federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
            subprocess.run(  # noqa: S603 (a fixed program; nothing of it comes from a peer)
                [
                    *(str(programs / "flwr"), "run", str(app), "own", "--stream"),
                    *("--federation-config", federation),
                    *("--run-config", f"run-folder={json.dumps(str(run_folder))}"),
                ],
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
                cwd=scratch,
            )


@contextmanager
def _superlink(environment: dict[str, str], scratch: str, log: int) -> Iterator[str]:
    """Starts a SuperLink in simulation mode, yields its address, and ends it with all that it started."""
    port = _free_port()
    process = subprocess.Popen(  # noqa: S603 (a fixed program on loopback)
        [
            *(str(Path(sys.executable).with_name("flower-superlink")), "--insecure", "--simulation"),
            *("--host", "127.0.0.1", "--port", str(port), "--database", str(Path(scratch, "state.db"))),
            "--disable-runtime-dependency-installation",
        ],
        env=environment,
        stdout=log,
        stderr=log,
        cwd=scratch,
        start_new_session=True,
    )
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        _end_all(environment["FLWR_HOME"])
        process.wait()


def _end_all(home: str) -> None:
    """Ends every process of this run, and waits: Flower and Ray start theirs in sessions of their own.

    They are known by the FLWR_HOME that only this run has. A simulation that went on after a Ctrl-C would go on
    spending budgets.
    """
    import psutil  # comes with Flower's simulation extra

    def of_this_run(process: "psutil.Process") -> bool:
        try:
            return process.environ().get("FLWR_HOME") == home
        except (psutil.Error, OSError):
            return False

    for end in ("terminate", "kill"):
        found = [process for process in psutil.process_iter() if of_this_run(process)]
        for process in found:
            with suppress(psutil.Error):
                getattr(process, end)()
        psutil.wait_procs(found, timeout=_END_SECONDS)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise HushclickError(f"Flower's SuperLink did not start on port {port} within {_START_SECONDS:g} seconds")


def _environment(home: Path, programs: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
