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
from pathlib import Path
from typing import Any

from client.desk import reply
from client.observing import JsonLines, Metrics, Observer
from client.partner import PartnerConfig, load_partner
from client.rpc.serving import WorkerServer
from client.worker import Worker
from common.auditlog import AuditLog
from common.errors import BudgetExhausted
from common.message_types import MESSAGE_TYPES, REFUSED
from common.runfolder import make_private
from common.signals import stop_on_signals

log = logging.getLogger("hushclick.partner")

_LOOK_SECONDS = 0.5


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
    if own.metrics_port:
        metrics.epsilon.set_function(worker.epsilon_spent)
        metrics.budget.set(config.privacy.epsilon if config.privacy.mode != "none" else 0.0)
        metrics.serve(own.metrics_port)
    server.start()
    audit.append("started", partner=config.name)
    log.info("%s answers on %s", config.name, own.listen, extra={"facts": {"event": "started"}})
    exhausted = False
    while not stop.wait(_LOOK_SECONDS) and not exhausted:
        exhausted = observer.exhausted and time.monotonic() - observer.last_message > own.linger_seconds
    server.stop(own.grace_seconds)
    audit.append("stopped", exhausted=exhausted)
    log.info("stopped", extra={"facts": {"event": "stopped", "exhausted": exhausted}})
    if exhausted:
        raise BudgetExhausted(f"{config.name}: the privacy budget holds no further round; the worker has stopped")
    return {"partner": config.name, "answered": observer.answered, "refused": observer.refused}


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
