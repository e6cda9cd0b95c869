"""The SuperLink of a deployment: one of its own, started again when it dies, or one that somebody else runs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from common.addresses import split_address
from common.errors import HushclickError
from common.logrotation import LogRotation
from common.programs import end, free_port, program, start, wait_for_port
from server.deployment import ServerDeployment

START_SECONDS = 180.0


class Link(Protocol):
    """A SuperLink that runs can be started on.

    Attributes:
        address: host:port.
        holds_run: whether the ServerApp is its child and goes with it.
    """

    address: str
    holds_run: bool

    @property
    def has_died(self) -> bool:
        """Whether it is known to have died, at no cost."""

    def revive(self) -> bool:
        """Returns whether it had died; it answers again then.

        Raises:
            HushclickError: where it does not come back.
        """


class OwnLink:
    """A SuperLink on loopback with TLS, node authentication and its state on disk, behind the same port all along.

    Args:
        deployment: the operator's `server.toml`.
        home: FLWR_HOME of the SuperLink and all that it starts.

    Raises:
        HushclickError: where it does not start.
    """

    holds_run = True

    def __init__(self, deployment: ServerDeployment, home: Path) -> None:
        self._port, self._home, self._log = free_port(), home, Path(deployment.log)
        self.address = f"127.0.0.1:{self._port}"
        self._words = [
            *(program("flower-superlink"), "--host", "127.0.0.1", "--port", str(self._port)),
            *("--enable-supernode-auth", "--ssl-ca-certfile", deployment.ca, "--ssl-certfile", deployment.certificate),
            *("--ssl-keyfile", deployment.key, "--database", deployment.database),
        ]
        self._logs = LogRotation([self._log], deployment.log_days)
        self._process = self._started()

    @property
    def has_died(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def revive(self) -> bool:
        """Starts it again where it has ended; what it had started, a ServerApp say, is ended first."""
        self._logs.tend()
        if (code := self._process.poll()) is None:
            return False
        sys.stdout.write(f"the SuperLink ended with {code}; it is started again ({self._log} says why)\n")
        sys.stdout.flush()
        end(self._process, self._home)
        self._process = self._started()
        return True

    def stop(self) -> None:
        """Ends it and all that it started."""
        end(self._process, self._home)

    def _started(self) -> "subprocess.Popen[bytes]":
        process = start(self._words, self._home, self._log)
        if not wait_for_port("127.0.0.1", self._port, process, START_SECONDS):
            end(process, self._home)
            raise HushclickError(f"the SuperLink did not start; {self._log} says why")
        return process


class OthersLink:
    """A SuperLink that somebody else runs, and starts again: another container's."""

    holds_run = False

    def __init__(self, address: str) -> None:
        self.address, self.has_died = address, False  # which only asking it can tell

    def revive(self) -> bool:
        """Waits for it where nobody listens."""
        host, port = split_address(self.address, "superlink")
        if wait_for_port(host, port, None, 0.5):
            return False
        if not wait_for_port(host, port, None, START_SECONDS):
            raise HushclickError(
                f"superlink = {self.address!r}: nobody listened there for {START_SECONDS:g} s; start it, or leave"
                " `superlink` out and have it started here"
            )
        return True


@contextmanager
def own_link(deployment: ServerDeployment, home: Path) -> Iterator[OwnLink]:
    """Runs a SuperLink for as long as the block runs."""
    link = OwnLink(deployment, home)
    try:
        yield link
    finally:
        link.stop()
