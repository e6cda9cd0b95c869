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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from common.card import DataCard, load_card
from common.clicks import ClickLog, read_clicks
from common.config import Config, dump_config, load_config
from common.errors import BudgetExhausted, ConfigError, HushclickError, Stopped
from common.proxies import associations, warnings_of
from common.registry import Registry
from common.runfolder import RunFolder, write_atomically, write_json
from common.secagg.roster import load_roster
from common.signals import stop_on_signals
from server.central import central_rows, mark_sampling
from server.control import Control
from server.deployment import ServerDeployment, load_deployment, node_keys
from server.gate import Gate, gate_app, superlink_behind_tls
from server.histograms import read_catalogue
from server.modelfolder import link_signing_key, load_signing_key
from server.report import write_report
from server.superlink import START_SECONDS, Link, OthersLink, own_link
from server.trackers import require_trackers

_LOOK_SECONDS = 1.0
_ASK_SECONDS = 10.0
_LEAST_FREE_BYTES = 2**20  # logs and metrics
_MOST_UNHEARD = 5  # calls to the SuperLink in a row that failed
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
        register(deployment, folder)  # where it was stopped between the two
        raise ConfigError(f"{folder.metrics}: this run is over; name another run folder (run = ...) for another one")
    stop = stop_on_signals()
    home = Path(deployment.database).parent / "flower"
    with reachable(deployment, home) as link:
        control = Control(home, link.address, Path(deployment.ca))
        keys = node_keys(deployment)
        control.know(keys)
        _say(f"{len(keys)} partners may join at {deployment.superlink or f'{deployment.host}:{deployment.port}'}")
        run_to_the_end(control, link, folder, stop)
    register(deployment, folder)
    write_report(folder)
    metrics: dict[str, Any] = json.loads(folder.metrics.read_bytes())
    if metrics["stopped"]:
        raise BudgetExhausted(metrics["stopped"])
    return metrics


def show(metrics: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Says how the run ended."""
    final = metrics["final"]
    found = {"AUC": final.get("auc"), "AUC at the partners": final.get("partners", {}).get("auc")}
    known = [f"{name} {value:.4f}" for name, value in found.items() if value is not None] or ["AUC undefined"]
    _say(f"{final['rounds']} rounds, {', '.join(known)}; report.html, model/ and metrics.json are in the run folder")


def prepare_folder(deployment: ServerDeployment) -> RunFolder:
    """Makes the run folder, or finds it as an earlier start made it.

    Raises:
        ConfigError: where it is of another configuration or roster than the kit's.
        DataError: where the central clicks cannot be read.
    """
    folder, config = RunFolder(Path(deployment.run)), load_config(Path(deployment.config))
    roster, text = Path(deployment.roster), dump_config(config)
    load_roster(roster)  # which says what is wrong with it
    load_signing_key(Path(deployment.signing_key))
    require_trackers(config.output.trackers)
    if folder.config.exists():
        for path, wanted in ((folder.config, text.encode()), (folder.roster, roster.read_bytes())):
            if path.read_bytes() != wanted:
                raise ConfigError(
                    f"{path}: is of an earlier configuration; a changed run needs another folder (run = ...)"
                )
        link_signing_key(folder, Path(deployment.signing_key))
        return folder
    central = _central(deployment, config)
    folder.root.mkdir(parents=True, exist_ok=True)
    if central is not None:
        central.to_parquet(folder.central, index=False)
    _copy_catalogue(deployment, config, folder)
    shutil.copyfile(roster, folder.roster)
    folder.audit.touch(mode=0o600)
    link_signing_key(folder, Path(deployment.signing_key))
    write_atomically(folder.config, text.encode())  # last: the folder is whole once it is there
    return folder


def _central(deployment: ServerDeployment, config: Config) -> pd.DataFrame | None:
    """Returns the held-out clicks of the central evaluation; None where there are none, and partners evaluate.

    Raises:
        ConfigError: where none are named, and nobody else evaluates; or none of their data card.
        DataError: where they cannot be read.
    """
    if not deployment.clicks and config.evaluation.by_partners:
        return None
    if not (deployment.clicks and deployment.card):
        raise ConfigError(
            "clicks or card is unset in server.toml: name the held-out clicks of the central evaluation and their data"
            ' card, or have partners evaluate (evaluation.at = "partners" in run.toml)'
        )
    card = load_card(Path(deployment.card))
    log_read = read_clicks(Path(deployment.clicks), card, sensitive=True)
    _say_sensitive(card, log_read)
    return mark_sampling(central_rows(log_read, config.data), card.click.unclicked_kept)


def _copy_catalogue(deployment: ServerDeployment, config: Config, folder: RunFolder) -> None:
    """Puts the public list of items into the run folder, where the model's features need one.

    Raises:
        ConfigError: where none is named, or it is none.
    """
    if config.model.item_rates == "none":
        return
    if not deployment.catalogue:
        raise ConfigError(
            f'model.item_rates = "{config.model.item_rates}": name the public list of items in server.toml, as'
            " catalogue = FILE (JSON: item -> category)"
        )
    catalogue = read_catalogue(Path(deployment.catalogue))
    write_json(folder.catalogue, dict(zip(catalogue.items, catalogue.categories, strict=True)))


def _say_sensitive(card: DataCard, log_read: ClickLog) -> None:
    """Says which columns of the held-out clicks are for slices alone, and which others give them away."""
    if card.sensitive.columns:
        _say(f"sensitive columns, for slices and no feature: {', '.join(card.sensitive.columns)}")
        for warning in warnings_of(associations(log_read.rows)):
            _say(f"warning: {warning}")


def register(deployment: ServerDeployment, folder: RunFolder) -> None:
    """Puts the run's model into the registry, where one is named; one that is in it already is not put in twice."""
    if deployment.registry:
        key = load_signing_key(Path(deployment.signing_key))
        version = Registry(Path(deployment.registry)).add(folder.model, key.public_key())
        _say(f"the model is version {version} of {deployment.registry}")


@contextmanager
def reachable(deployment: ServerDeployment, home: Path) -> Iterator[Link]:
    """Yields the SuperLink: one of its own behind a gate of its own, or the one that was named.

    Raises:
        HushclickError: where it does not start, or nobody listens.
    """
    if not deployment.superlink:
        with own_link(deployment, home) as own, gate(deployment, own.address):
            yield own
        return
    named = OthersLink(deployment.superlink)
    named.revive()
    yield named


@contextmanager
def gate(deployment: ServerDeployment, address: str) -> Iterator[None]:
    """Opens the gate that partners reach, for as long as the block runs.

    Raises:
        HushclickError: where its port is taken.
    """
    lines = [path.read_text(encoding="ascii").strip() for path in node_keys(deployment).values()]
    app = gate_app(superlink_behind_tls(address, Path(deployment.ca)), lines)
    opened = Gate(deployment.host, deployment.port, Path(deployment.certificate), Path(deployment.key), app)
    if not opened.start(START_SECONDS):
        raise HushclickError(f"{deployment.host}:{deployment.port}: cannot be listened on; is the port taken?")
    try:
        yield
    finally:
        opened.stop()


def run_to_the_end(control: Control, link: Link, folder: RunFolder, stop: threading.Event) -> None:
    """Starts the run, and again from its checkpoint when it or the SuperLink dies, until metrics.json is there.

    Raises:
        Stopped: where the operator ends it.
        HushclickError: where it died `_MOST_STARTS` times without a round between.
    """
    deaths, last = 0, 0.0
    while deaths < _MOST_STARTS:
        _wait_for_space(folder, stop)
        status = _ended(control, link, folder, stop)
        if folder.metrics.exists():
            return
        moved = folder.checkpoint.stat().st_mtime if folder.checkpoint.exists() else 0.0
        waiting = "partners joined" in status[1]  # too few are there yet: no death, and no end to the waiting
        deaths, last = 0 if moved > last or waiting else deaths + 1, max(moved, last)
        _say(f"the run ended without a result ({status[0]} {status[1]}); it is started again")
    raise HushclickError(f"the run died {_MOST_STARTS} times without a round between; the SuperLink's log says why")


def _wait_for_space(folder: RunFolder, stop: threading.Event) -> None:
    """Waits while the run folder's disk has no room for another checkpoint; a run that was started would only die.

    Raises:
        Stopped: where the operator ends it.
    """
    needed = _LEAST_FREE_BYTES + 2 * (folder.checkpoint.stat().st_size if folder.checkpoint.exists() else 0)
    said = False
    while (free := shutil.disk_usage(folder.root).free) < needed:
        if not said:
            _say(
                f"{folder.root}: the disk is full, {free} bytes are free and a round takes {needed}; make space there,"
                " and the run goes on from its last good round"
            )
        said = True
        if stop.wait(_LOOK_SECONDS):
            raise Stopped("stopped; start it again, and the run goes on from its last good round")


def _ended(control: Control, link: Link, folder: RunFolder, stop: threading.Event) -> tuple[str, str]:
    """Starts a run, and returns status and details of how it ended."""
    run, unheard = "", 0
    while True:
        try:
            run = run or control.start(folder.root)
            status, died, unheard = control.state(run), False, 0
        except HushclickError as error:  # a SuperLink that is dead, or too busy to answer
            status, died, unheard = ("unknown", ""), link.revive(), unheard + 1
            if not died and unheard == _MOST_UNHEARD:
                raise
            _say(f"{' '.join(str(error).split())}; it is asked again")
        if status[0].startswith("finished"):
            return status
        if (died or link.revive()) and run and link.holds_run:
            with suppress(HushclickError):
                control.stop(run)
            return "lost", "the SuperLink died"
        if _stopped(folder, link, stop):
            with suppress(HushclickError):
                control.stop(run)
            raise Stopped("stopped; start it again, and the run goes on from its last good round")


def _stopped(folder: RunFolder, link: Link, stop: threading.Event) -> bool:
    """Waits until it is worth asking for the run's state again, which takes a second of a core; returns whether to end.

    That is when the result is there or the SuperLink is not, and else every `_ASK_SECONDS`.
    """
    deadline = time.monotonic() + _ASK_SECONDS
    while time.monotonic() < deadline:
        if stop.wait(_LOOK_SECONDS):
            return True
        if folder.metrics.exists() or link.has_died:
            return False
    return False


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
