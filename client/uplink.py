"""Whether a SuperNode still holds, or seeks, a connection to the server.

Flower's SuperNode retries for ever, but for one case: where a TLS handshake times out, as behind a network that was cut
without a word, it takes that for a wrong certificate, gives up, and stays there as a process that does nothing.
"""

import time

import psutil

QUIET_SECONDS = 60.0  # a SuperNode asks for messages every few seconds
_SEEKING = (psutil.CONN_ESTABLISHED, psutil.CONN_SYN_SENT)


class Uplink:
    """The connections that a process makes, looked at again and again.

    Args:
        quiet_seconds: without any, after which it has given up.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds, self._process, self._last = quiet_seconds, 0, 0.0

    def is_given_up(self, process: int) -> bool:
        """Returns whether a process, since it was first asked about, has had no connection for too long."""
        now = time.monotonic()
        if process != self._process or _seeks(process):
            self._process, self._last = process, now
        return now - self._last > self._quiet_seconds


def _seeks(process: int) -> bool:
    """Returns whether a process has a connection that it made itself; True where that cannot be seen."""
    try:
        found = psutil.Process(process).net_connections("tcp")
    except psutil.Error:
        return True
    own = {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
    return any(one.status in _SEEKING and one.laddr.port not in own for one in found)
