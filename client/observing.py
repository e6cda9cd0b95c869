"""What a worker's process says of itself: structured logs, Prometheus metrics and the audit log; never data.

All three are the partner's own: nothing of them reaches the server.
"""

import json
import logging
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from client.rpc.refused import Refused
from common.auditlog import AuditLog
from common.message_types import BUDGET_EXHAUSTED

log = logging.getLogger("hushclick.partner")

Answerer = Callable[[str, RecordDict], RecordDict | Refused]

_MOST_NAME = 64  # characters of a run's id: a peer must not fill the disk with its names
_MOST_FRAMES = 6  # of an exception, the innermost
_SECONDS = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, text, and the `facts` of a record that has some."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a record as one line; of an exception its type and places alone, since its text may hold data."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        } | getattr(record, "facts", {})
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])[-_MOST_FRAMES:]
            line["places"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


class Metrics:
    """The partner's own figures, for its own Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "hushclick_answers", "Messages answered, by type and outcome", ["type", "outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "hushclick_answer_seconds", "Seconds from message to answer", ["type"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.epsilon = Gauge(
            "hushclick_epsilon_spent", "Epsilon (PLD) of the ledger at the policy's delta", registry=self.registry
        )
        self.budget = Gauge(
            "hushclick_epsilon_budget", "The policy's epsilon; 0 without privacy", registry=self.registry
        )
        self.noise_alone = Gauge(
            "hushclick_noise_alone",
            "Steps since the start in which this partner could not train",
            registry=self.registry,
        )
        self.deleted = Counter("hushclick_deleted", "What retention deleted, by kind", ["kind"], registry=self.registry)
        self.last = Gauge("hushclick_last_message_time", "Unix time of the last message", registry=self.registry)

    def serve(self, port: int) -> None:
        """Serves them on loopback; a Prometheus elsewhere is the partner's own to connect."""
        start_http_server(port, addr="127.0.0.1", registry=self.registry)


class Observer:
    """Puts down every message and what became of it.

    Args:
        answer: what is observed.
        audit: the partner's audit log.
        metrics: the partner's metrics.
        known: message types; others are counted as "unknown", so that a peer cannot fill memory with names.
    """

    def __init__(self, answer: Answerer, audit: AuditLog, metrics: Metrics, known: tuple[str, ...]) -> None:
        self._answer, self._audit, self._metrics, self._known = answer, audit, metrics, known
        self.exhausted = False
        self.answered = self.refused = 0
        self.last_message = time.monotonic()

    def __call__(self, message_type: str, content: RecordDict) -> RecordDict | Refused:
        """Answers, and puts down type, session, outcome and seconds; a log that cannot be written refuses."""
        started, kind = time.monotonic(), message_type if message_type in self._known else "unknown"
        session = session_of(content)
        self._audit.append("asked", type=kind, **session)
        found = self._answer(message_type, content)
        seconds = time.monotonic() - started
        outcome = "refused" if isinstance(found, Refused) else "answered"
        if outcome == "answered" and kind.startswith("train."):
            self.exhausted = False  # one message asked for more than is left, and the rounds go on
        self.answered += outcome == "answered"
        self.refused += outcome == "refused"
        facts: dict[str, Any] = {"type": kind, **session}
        if isinstance(found, Refused):
            facts |= {"code": found.code, "reason": found.text}
            self.exhausted |= found.code == BUDGET_EXHAUSTED
        self._audit.append(outcome, **facts)
        self._metrics.answers.labels(kind, outcome).inc()
        self._metrics.seconds.labels(kind).observe(seconds)
        self._metrics.last.set_to_current_time()
        self.last_message = time.monotonic()
        log.info(
            "%s %s in %.3f s",
            kind,
            outcome,
            seconds,
            extra={"facts": facts | {"outcome": outcome, "seconds": round(seconds, 3)}},
        )
        return found


def session_of(content: RecordDict) -> dict[str, Any]:
    """Returns run, round and attempt that a message speaks of, as far as it says them; nothing is believed of it."""
    found: dict[str, Any] = {}
    for record in content.values():
        if isinstance(record, ConfigRecord):
            for name, kind in (("run_id", str), ("round", int), ("attempt", int)):
                value = record.get(name)
                if type(value) is kind:
                    found.setdefault(name, value[:_MOST_NAME] if isinstance(value, str) else value)
    return found
