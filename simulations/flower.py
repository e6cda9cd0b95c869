"""The same apps through Flower's own Ray simulation: slower and larger, and the same global model.

A SuperLink of the run's own is started on a free loopback port, and `flwr run` gives it an app folder that names
`server.app` and `client.app` and holds no code: actors run the installed package. Both end with the run.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import HushclickError
from common.programs import (
    end_all,
    environment,
    free_port,
    program,
    wait_for_port,
    write_bundle,
    write_connection,
)

_START_SECONDS = 60.0


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
        home = Path(scratch, "flwr")
        app = write_bundle(Path(scratch, "app"), server=server, client=client)
        with _superlink(home, scratch, log.fileno()) as address:
            write_connection(home, address)
            federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
            subprocess.run(  # noqa: S603 (a fixed program; nothing of it comes from a peer)
                [
                    *(str(programs / "flwr"), "run", str(app), "own", "--stream"),
                    *("--federation-config", federation),
                    *("--run-config", f"run-folder={json.dumps(str(run_folder))}"),
                ],
                env=environment(home, os.environ),
                stdout=log,
                stderr=log,
                check=False,
                cwd=scratch,
            )


@contextmanager
def _superlink(home: Path, scratch: str, log: int) -> Iterator[str]:
    """Starts a SuperLink in simulation mode, yields its address, and ends it with all that it started."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603 (a fixed program on loopback)
        [
            *(program("flower-superlink"), "--insecure", "--simulation"),
            *("--host", "127.0.0.1", "--port", str(port), "--database", str(Path(scratch, "state.db"))),
            "--disable-runtime-dependency-installation",
        ],
        env=environment(home, os.environ),
        stdout=log,
        stderr=log,
        cwd=scratch,
        start_new_session=True,
    )
    try:
        if not wait_for_port("127.0.0.1", port, process, _START_SECONDS):
            raise HushclickError(f"Flower's SuperLink did not start on port {port} within {_START_SECONDS:g} seconds")
        yield f"127.0.0.1:{port}"
    finally:
        end_all(home)
        process.wait()
