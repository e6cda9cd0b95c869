"""`hushclick client CLIENT.toml`: one partner's two processes, the worker and Flower's SuperNode, kept running.

With `start_worker = false` the worker is somebody else's to start, another container's say, and is waited for.

The worker holds data, keys and ledger. The SuperNode, and the shims that it starts for every message, hold nothing.
They run as another user where `shim_user` is set and this command is started as root: only then is the boundary between
what Flower runs and the partner's data one that the system keeps. It says so plainly where it is not there.
"""

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from client.boundary import boundary
from client.deployment import ClientConfig, load_client
from client.partner import PartnerConfig, load_partner
from client.rpc.asking import is_serving, user_number, why_not_serving
from client.uplink import Uplink
from common.addresses import UNIX
from common.errors import BudgetExhausted, ConfigError, HushclickError
from common.logrotation import LogRotation
from common.programs import END_SECONDS, end, free_port, program, start
from common.runfolder import make_private
from common.signals import stop_on_signals

_READY_SECONDS = 1800.0  # a large log, and texts that are encoded for the first time
_LOOK_SECONDS = 0.5
_PAUSES_SECONDS = (1.0, 2.0, 5.0, 10.0)  # before a process that ended is started again
_STEADY_SECONDS = 300.0  # after which an end counts as the first


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs worker and SuperNode until it is stopped, and starts again what ends by itself.

    Raises:
        BudgetExhausted: where the worker ended because its budget holds no further round.
        HushclickError: where the worker does not start.
    """
    os.umask(0o077)
    client = load_client(arguments.config)
    partner = partner_of(client)
    address = client.worker_socket or (partner.worker.listen if partner else "")
    stop = stop_on_signals()
    _say(_boundary_of(client, partner))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hushclick-")))
        scratch.chmod(0o755)
        worker, log = None, None
        if client.start_worker and partner:
            worker, log = _start_worker(client, partner, scratch, stop, stack), Path(partner.state) / "supernode.log"
        else:
            wait_for_worker(address, client.worker_owner, stop)
        node = Kept("supernode", *_node(client, address, scratch), log, client.shim_user)
        stack.callback(node.stop)
        uplink = Uplink()
        logs = LogRotation(
            [one.log for one in (worker, node) if one and one.log], partner.retention.log_days if partner else 30
        )
        while not stop.wait(_LOOK_SECONDS):
            if count := logs.tend():
                _say(f"{count} logs older than retention.log_days deleted")
            _keep_connected(node, uplink, client)
            if worker and worker.ended_with == BudgetExhausted.exit_code:
                raise BudgetExhausted(f"{client.name}: the privacy budget holds no further round; the partner has left")
            if worker:
                worker.keep()
    return {"partner": client.name, "restarts": {one.name: one.restarts for one in (worker, node) if one}}


def _keep_connected(node: "Kept", uplink: Uplink, client: ClientConfig) -> None:
    node.keep()
    if node.process and uplink.is_given_up(node.process):
        _say(f"the SuperNode has no connection to {client.superlink} any more, and seeks none; it is ended")
        node.kill()


def partner_of(client: ClientConfig) -> PartnerConfig | None:
    """Returns the partner's own configuration, or None where `client.toml` says where a worker runs already.

    Raises:
        ConfigError: where it cannot be read, or is of another partner.
    """
    if not client.start_worker and client.worker_socket:
        return None  # another container's file, which this one need not be able to read
    partner = load_partner(Path(client.worker))
    if partner.name != client.name:
        raise ConfigError(f"name = {client.name!r}: {client.worker} is of {partner.name!r}; one kit has one name")
    return partner


def _boundary_of(client: ClientConfig, partner: PartnerConfig | None) -> str:
    there, says = boundary(client, partner)
    if (
        there
        and client.start_worker
        and partner
        and partner.worker.listen.startswith(UNIX)
        and not partner.worker.group
    ):
        raise ConfigError(
            f"worker.group is unset in {client.worker}: {client.shim_user} could not reach the worker's socket; name a"
            f" group that is {client.shim_user}'s own"
        )
    return says


def _start_worker(
    client: ClientConfig, partner: PartnerConfig, scratch: Path, stop: threading.Event, stack: ExitStack
) -> "Kept":
    state = Path(partner.state)
    make_private(state)
    words = [program("hushclick"), "worker", client.worker]
    worker = Kept("worker", words, scratch / "worker", state / "worker.log")
    stack.callback(worker.stop, partner.worker.grace_seconds + END_SECONDS)
    worker.keep()
    wait_until_ready(partner, worker, stop)
    return worker


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Says that it has stopped, and what had to be started again."""
    again = ", ".join(f"{name} {count} times" for name, count in result["restarts"].items() if count)
    _say(f"{result['partner']}: stopped" + (f"; started again: {again}" if again else ""))


def wait_until_ready(partner: PartnerConfig, worker: "Kept", stop: threading.Event) -> None:
    """Waits until the worker answers health checks.

    Raises:
        HushclickError: where it ends before, or takes longer than half an hour.
    """
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and not stop.is_set():
        if is_serving(partner.worker.listen):
            return
        if worker.ended_with is not None:
            raise HushclickError(f"{partner.name}: the worker did not start; {worker.log} says why")
        stop.wait(_LOOK_SECONDS)
    if not stop.is_set():
        raise HushclickError(f"{partner.name}: the worker was not ready within {_READY_SECONDS:g} s; see {worker.log}")


def wait_for_worker(address: str, owner: str, stop: threading.Event) -> None:
    """Waits, for as long as it takes, until a worker that somebody else starts answers; says once what it waits for."""
    said = ""
    while not stop.is_set():
        why = why_not_serving(address, owner)
        if not why:
            return
        if why != said:
            _say(f"waiting for the worker at {address}: {why}")
            said = why
        stop.wait(_LOOK_SECONDS)


def _node(client: ClientConfig, address: str, scratch: Path) -> tuple[list[str], Path]:
    """Returns the SuperNode's words and its home, which holds all that its user may read."""
    home = scratch / "supernode"
    home.mkdir(mode=0o700)
    key, ca = home / "node.key", home / "ca.crt"
    shutil.copyfile(client.ca, ca)
    key.touch(mode=0o600)
    shutil.copyfile(client.node_key, key)
    if client.shim_user and os.getuid() == 0:
        who = pwd.getpwnam(client.shim_user)
        # The folder last: whoever owns it could put a link in the place of a file that root then gives away.
        for path in (key, ca, home):
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)
    node = f'worker="{address}" worker-owner="{user_number(client.worker_owner)}"'
    words = [
        *(program("flower-supernode"), "--root-certificates", str(ca), "--superlink", client.superlink),
        *("--auth-supernode-private-key", str(key), "--port", str(free_port()), "--node-config", node),
    ]
    return words, home


class Kept:
    """A process that is started again when it ends, after pauses that grow.

    Attributes:
        name: that it is called by.
        log: where its output goes; None = where this process's own goes.
        restarts: how often it was started again.
    """

    def __init__(self, name: str, words: list[str], home: Path, log: Path | None, user: str = "") -> None:
        self.name, self._words, self._home, self.log = name, words, home, log
        self._user = user if os.getuid() == 0 else ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._again = 0.0
        self._failures = 0
        self.restarts = 0

    @property
    def ended_with(self) -> int | None:
        """Its exit code; None while it runs, and before it does."""
        return self._process.poll() if self._process else None

    def keep(self) -> None:
        """Starts the process where it has not run yet, and where it has ended and its pause is over."""
        if self._process and self.ended_with is None:
            return
        now = time.monotonic()
        if self._process is None:
            self._launch(now)
        elif not self._again:
            self._failures = 0 if now - self._started > _STEADY_SECONDS else self._failures + 1
            pause = _PAUSES_SECONDS[min(self._failures, len(_PAUSES_SECONDS) - 1)]
            where = self.log or "its output"
            _say(f"{self.name} ended with {self.ended_with}; it starts again in {pause:g} s ({where} says why)")
            self._again = now + pause
        elif now >= self._again:
            end(self._process, self._home)  # whatever it left behind
            self.restarts += 1
            self._launch(now)

    @property
    def process(self) -> int:
        """Its number while it runs, else 0."""
        return self._process.pid if self._process and self.ended_with is None else 0

    def kill(self) -> None:
        """Kills the process, which hangs; `keep` starts it again."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = END_SECONDS) -> None:
        """Ends the process and all that it started, and gives it so long to end in order."""
        if self._process:
            end(self._process, self._home, seconds)

    def _launch(self, now: float) -> None:
        self._process = start(self._words, self._home, self.log, self._user)
        self._started, self._again = now, 0.0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
