"""A TLS server on loopback that answers one HTTP header, for as long as a test needs it."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path


@contextlib.contextmanager
def serving(certificate: Path, key: Path, *, clock_ahead: float = 0.0) -> Iterator[int]:
    """Yields the port of a server that shows a certificate and says its time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        stop = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, context, clock_ahead, stop))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def _serve(listener: socket.socket, context: ssl.SSLContext, clock_ahead: float, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError):  # also whoever hangs up in the handshake
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(2)
                with context.wrap_socket(plain, server_side=True) as connection:
                    if connection.recv(4096):
                        now = format_datetime(datetime.now(UTC) + timedelta(seconds=clock_ahead), usegmt=True)
                        connection.sendall(f"HTTP/1.1 404 Not Found\r\nDate: {now}\r\n\r\n".encode())
