"""`hushclick server SERVER.toml`: the coordinator of a deployment, from its kit to a trained model and an exit code.

A SuperLink on loopback with TLS, node authentication and state on disk; a gate in front of it that lets partners reach
the Fleet API and nothing else; the partners' node keys registered; and the run, started again from its checkpoint when
it dies. The run folder is what a simulation has: config.toml, roster, checkpoint, metrics.json, model/.
"""

import argparse
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.card import load_card
from common.clicks import read_clicks
from common.config import dump_config, load_config
from common.errors import BudgetExhausted, ConfigError, HushclickError, Stopped
from common.programs import free_port, program, running, wait_for_port
from common.runfolder import RunFolder, write_atomically
from common.secagg.roster import load_roster
from common.signals import stop_on_signals
from server.central import central_rows
from server.control import Control
from server.deployment import ServerDeployment, load_deployment, node_keys
from server.gate import Gate

_START_SECONDS = 180.0
_LOOK_SECONDS = 2.0
_MOST_STARTS = 10  # without a round between, before the run's failure counts


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the deployment to its end; returns what metrics.json holds.

    Raises:
        HushclickError: where the SuperLink or the run does not start, or the run dies again and again.
        BudgetExhausted: where too few partners have budget left; the model so far is saved.
        Stopped: after SIGTERM or Ctrl-C; started again, the run goes on.
    """
    os.umask(0o077)
    deployment = load_deployment(arguments.config)
    folder = prepare_folder(deployment)
    if folder.metrics.exists():
        raise ConfigError(f"{folder.metrics}: this run is over; name another run folder (run = ...) for another one")
    stop = stop_on_signals()
    home = Path(deployment.database).parent / "flower"
    with superlink(deployment, home) as address, gate(deployment, address):
        control = Control(home, address, Path(deployment.ca))
        keys = node_keys(deployment)
        control.know(keys)
        _say(f"{len(keys)} partners may join at {deployment.host}:{deployment.port}")
        run_to_the_end(control, folder, stop)
    metrics: dict[str, Any] = json.loads(folder.metrics.read_bytes())
    if metrics["stopped"]:
        raise BudgetExhausted(metrics["stopped"])
    return metrics


def show(metrics: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Says how the run ended."""
    final = metrics["final"]
    auc = "undefined" if final["auc"] is None else f"{final['auc']:.4f}"
    _say(f"{final['rounds']} rounds, AUC {auc}; model and metrics are in the run folder")


def prepare_folder(deployment: ServerDeployment) -> RunFolder:
    """Makes the run folder, or finds it as an earlier start made it.

    Raises:
        ConfigError: where it is of another configuration or roster than the kit's.
        DataError: where the central clicks cannot be read.
    """
    folder, config = RunFolder(Path(deployment.run)), load_config(Path(deployment.config))
    roster, text = Path(deployment.roster), dump_config(config)
    load_roster(roster)  # which says what is wrong with it
    if folder.config.exists():
        for path, wanted in ((folder.config, text.encode()), (folder.roster, roster.read_bytes())):
            if path.read_bytes() != wanted:
                raise ConfigError(
                    f"{path}: is of an earlier configuration; a changed run needs another folder (run = ...)"
                )
        return folder
    log_read = read_clicks(Path(deployment.clicks), load_card(Path(deployment.card)))
    folder.root.mkdir(parents=True, exist_ok=True)
    central_rows(log_read, config.data).to_parquet(folder.central, index=False)
    shutil.copyfile(roster, folder.roster)
    folder.audit.touch(mode=0o600)
    write_atomically(folder.config, text.encode())  # last: the folder is whole once it is there
    return folder


@contextmanager
def superlink(deployment: ServerDeployment, home: Path) -> Iterator[str]:
    """Runs a SuperLink on loopback and yields its host:port.

    Raises:
        HushclickError: where it does not start.
    """
    port = free_port()
    words = [
        *(program("flower-superlink"), "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", deployment.ca, "--ssl-certfile", deployment.certificate),
        *("--ssl-keyfile", deployment.key, "--database", deployment.database),
    ]
    with running(words, home, Path(deployment.log)) as process:
        if not wait_for_port("127.0.0.1", port, process, _START_SECONDS):
            raise HushclickError(f"the SuperLink did not start; {deployment.log} says why")
        yield f"127.0.0.1:{port}"


@contextmanager
def gate(deployment: ServerDeployment, address: str) -> Iterator[None]:
    """Opens the gate that partners reach, for as long as the block runs.

    Raises:
        HushclickError: where its port is taken.
    """
    opened = Gate(
        deployment.host, deployment.port, Path(deployment.certificate), Path(deployment.key), f"https://{address}",
        Path(deployment.ca),
    )  # fmt: skip
    if not opened.start(_START_SECONDS):
        raise HushclickError(f"{deployment.host}:{deployment.port}: cannot be listened on; is the port taken?")
    try:
        yield
    finally:
        opened.stop()


def run_to_the_end(control: Control, folder: RunFolder, stop: threading.Event) -> None:
    """Starts the run, and again from its checkpoint when it dies, until metrics.json is there.

    Raises:
        Stopped: where the operator ends it.
        HushclickError: where it died `_MOST_STARTS` times without a round between.
    """
    deaths, last = 0, 0.0
    while deaths < _MOST_STARTS:
        run = control.start(folder.root)
        while not (status := control.state(run))[0].startswith("finished"):
            if stop.wait(_LOOK_SECONDS):
                control.stop(run)
                raise Stopped("stopped; start it again, and the run goes on from its last good round")
        if folder.metrics.exists():
            return
        moved = folder.checkpoint.stat().st_mtime if folder.checkpoint.exists() else 0.0
        waiting = "partners joined" in status[1]  # too few are there yet: no death, and no end to the waiting
        deaths, last = 0 if moved > last or waiting else deaths + 1, max(moved, last)
        _say(f"the run ended without a result ({status[0]} {status[1]}); it is started again")
    raise HushclickError(f"the run died {_MOST_STARTS} times without a round between; the SuperLink's log says why")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
