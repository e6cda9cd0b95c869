"""The server's audit log: what a run tells whoever follows it, put down; and the lock that keeps a second server out.

Only a deployment has one: `hushclick server` makes the empty file, and the ServerApp that finds it writes.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.auditlog import AuditLog
from common.errors import LedgerError
from common.runfolder import RunFolder

_WAIT_SECONDS = 90.0  # for a ServerApp whose operator's process was killed, until Flower ends it
_KEPT = ("round", "partners", "partner", "cohort", "contributed", "error", "failures")


class _Writer(logging.Handler):
    def __init__(self, audit: AuditLog) -> None:
        super().__init__()
        self._audit = audit

    def emit(self, record: logging.LogRecord) -> None:
        fact: dict[str, Any] | None = getattr(record, "fact", None)
        if fact is not None:
            kept = {name: fact[name] for name in _KEPT if name in fact}
            self._audit.append(str(fact["fact"]), text=record.getMessage(), **kept)


@contextmanager
def audited(folder: RunFolder) -> Iterator[None]:
    """Puts down what the run says while the block runs, where the run folder has an audit log.

    Raises:
        LedgerError: where the log is damaged, or another ServerApp works in this folder and does not end.
    """
    if not folder.audit.exists():
        yield
        return
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    audit = _opened(folder)
    log, writer = logging.getLogger("hushclick.run"), _Writer(audit)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(writer)
    try:
        audit.append("server_started")
        yield
        audit.append("server_ended")
    finally:
        log.removeHandler(writer)
        log.setLevel(level)
        audit.close()


def _end_with_parent(parent: int) -> None:
    """Ends this process when what started it is gone: a killed SuperLink would leave its ServerApp waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _opened(folder: RunFolder) -> AuditLog:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return AuditLog(folder.audit)
        except LedgerError as error:
            if "another process" not in str(error) or time.monotonic() >= deadline:
                raise
        time.sleep(1.0)
