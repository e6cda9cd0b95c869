"""`hushclick worker WORKER.toml`: the partner's own process, which holds data, warm model, keys, ledger and policy.

It answers what Flower's shim passes on, over a socket of this machine, for as long as the partner lets it run. SIGTERM
and Ctrl-C end it once the answer under way is given. A partner whose budget is exhausted ends with exit code 3, after
the messages that the run still has for it.
"""

import argparse
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.desk import reply
from client.observing import JsonLines, Metrics, Observer
from client.partner import PartnerConfig, load_partner
from client.rpc.serving import WorkerServer
from client.worker import Worker
from common.auditlog import AuditLog
from common.errors import BudgetExhausted, HushclickError
from common.message_types import MESSAGE_TYPES, REFUSED
from common.runfolder import make_private
from common.signals import stop_on_signals

log = logging.getLogger("hushclick.partner")

_LOOK_SECONDS = 0.5
_TIDY_SECONDS = 60.0


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs until it is stopped; returns how many messages were answered.

    Raises:
        BudgetExhausted: where the budget ended and the run has asked nothing for `worker.linger_seconds`.
    """
    os.umask(0o077)  # what was sent lies in the state folder, before it was masked: nobody else's to read
    config = load_partner(arguments.config)
    make_private(Path(config.state))
    _log_as_json_lines()
    audit = AuditLog(Path(config.state) / "audit.jsonl")
    try:
        return serve(config, audit, stop_on_signals())
    finally:
        audit.close()


def serve(config: PartnerConfig, audit: AuditLog, stop: threading.Event) -> dict[str, Any]:
    """Serves one partner's worker until `stop` is set, or its budget is exhausted and nobody asks any more."""
    worker, metrics, own = Worker(config), Metrics(), config.worker
    worker.ready()
    observer = Observer(lambda kind, content: reply(lambda: worker, kind, content), audit, metrics, MESSAGE_TYPES)
    server = WorkerServer(own.listen, observer, own.most_message_bytes, REFUSED, own.group)
    keeper = Keeper(worker, audit, metrics)
    keeper.look()
    if own.metrics_port:
        metrics.epsilon.set_function(worker.epsilon_spent)
        metrics.budget.set(config.privacy.epsilon if config.privacy.mode != "none" else 0.0)
        metrics.serve(own.metrics_port)
    server.start()
    audit.append("started", partner=config.name)
    log.info("%s answers on %s", config.name, own.listen, extra={"facts": {"event": "started"}})
    exhausted, for_ever = False, config.privacy.period_days is None  # with a period there is budget again one day
    while not stop.wait(_LOOK_SECONDS) and not exhausted:
        keeper.look()
        silent = time.monotonic() - observer.last_message > own.linger_seconds
        exhausted = for_ever and observer.exhausted and silent
    server.stop(own.grace_seconds)
    audit.append("stopped", exhausted=exhausted)
    log.info("stopped", extra={"facts": {"event": "stopped", "exhausted": exhausted}})
    if exhausted:
        raise BudgetExhausted(f"{config.name}: the privacy budget holds no further round; the worker has stopped")
    return {"partner": config.name, "answered": observer.answered, "refused": observer.refused}


class Keeper:
    """What a worker does between answers: it lets go of the erased, tidies up, and puts down what it did."""

    def __init__(self, worker: Worker, audit: AuditLog, metrics: Metrics) -> None:
        self._worker, self._audit, self._metrics = worker, audit, metrics
        self._mark, self._noise_alone, self._next = worker.erased.mark(), 0, 0.0

    def look(self) -> None:
        """Looks after everything; called twice a second, it tidies once a minute."""
        if (mark := self._worker.erased.mark()) != self._mark:
            self._mark = mark
            self._say_erased()
        if (count := self._worker.noise_alone) != self._noise_alone:
            self._audit.append("noise_alone", times=count - self._noise_alone)
            self._noise_alone = count
            self._metrics.noise_alone.set(count)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _TIDY_SECONDS
            self._tidy()

    def _say_erased(self) -> None:
        self._worker.drop_erased()
        try:
            users = len(self._worker.erased)
        except HushclickError as error:
            log.error("%s", error)
            return
        self._audit.append("erased", users=users)
        log.info("%d users are erased", users, extra={"facts": {"event": "erased"}})

    def _tidy(self) -> None:
        deleted = self._worker.tidy()
        for kind, count in asdict(deleted).items():
            self._metrics.deleted.labels(kind).inc(count)
        if deleted:
            self._audit.append("deleted", **asdict(deleted))
            log.info("deleted", extra={"facts": {"event": "deleted", **asdict(deleted)}})


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Says how many messages were answered."""
    sys.stdout.write(f"{result['partner']}: {result['answered']} messages answered, {result['refused']} refused\n")


def _log_as_json_lines() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("hushclick")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
