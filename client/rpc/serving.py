"""The worker's side of the contract: a gRPC server on a socket, in front of whatever answers.

Answers are given one at a time by the worker itself; streams are bounded in number and size, since the shim is hostile
until shown otherwise.
"""

import grp
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from flwr.app import RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.rpc.pieces import pieces_of, read_pieces, refusal_pieces
from client.rpc.refused import Refused
from client.rpc.worker_pb2 import Piece
from client.rpc.worker_pb2_grpc import PartnerWorkerServicer, add_PartnerWorkerServicer_to_server
from common.addresses import UNIX
from common.errors import ConfigError, HushclickError, ProtocolError

log = logging.getLogger("hushclick.partner")

SERVICE = "hushclick.worker.v1.PartnerWorker"
_THREADS = 4  # an answer and its stream; a second question waits in the worker, a fifth in the queue
_MOST_STREAMS = 16


Answerer = Callable[[str, RecordDict], RecordDict | Refused]


class WorkerServer:
    """Serves one worker until it is stopped.

    Args:
        address: "unix:PATH", or "HOST:PORT" on loopback.
        answer: message type and content -> answer; it raises nothing.
        most_bytes: of one question.
        refused: error code of a question that is not of the contract.
        group: of the socket and its folder, so that the shim's user may connect; empty = nobody else.

    Raises:
        ConfigError: for an address that cannot be listened on, or is not local.
    """

    def __init__(self, address: str, answer: Answerer, most_bytes: int, refused: int, group: str = "") -> None:
        self._address = address
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="answer"), maximum_concurrent_rpcs=_MOST_STREAMS
        )
        add_PartnerWorkerServicer_to_server(_Servicer(answer, most_bytes, refused), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        path = _path_of(address)
        if path:
            _make_room(path, group)
        try:
            port = self._server.add_insecure_port(address)  # a socket of this machine: no wire to protect
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"worker.listen = {address!r}: cannot be listened on; is another worker running?")
        if path:
            _open_to(path, group)

    def start(self) -> None:
        """Begins to answer, and says so to health checks."""
        self._server.start()
        self._say(health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_seconds: float) -> None:
        """Takes no more questions, and waits so long for the answers under way."""
        self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server.stop(grace_seconds).wait()
        if path := _path_of(self._address):
            path.unlink(missing_ok=True)

    def _say(self, status: Any) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


class _Servicer(PartnerWorkerServicer):
    def __init__(self, answer: Answerer, most_bytes: int, refused: int) -> None:
        self._answer, self._most_bytes, self._refused = answer, most_bytes, refused
        self._reading = threading.Semaphore(2)  # questions in memory at a time

    def Answer(self, request_iterator: Iterator[Piece], context: Any) -> Iterator[Piece]:  # noqa: N802 (gRPC's name)
        with self._reading:
            try:
                head, content = read_pieces(request_iterator, self._most_bytes)
            except (HushclickError, grpc.RpcError) as error:
                text = str(error) if isinstance(error, ProtocolError) else "the question broke off"
                log.warning("a question that is not answered: %s", text)
                return refusal_pieces(self._refused, text)
            answer = self._answer(head.type, content)
        return refusal_pieces(answer.code, answer.text) if isinstance(answer, Refused) else pieces_of(answer)


def _path_of(address: str) -> Path | None:
    return Path(address.removeprefix(UNIX)) if address.startswith(UNIX) else None


def _make_room(path: Path, group: str) -> None:
    """Makes the socket's folder, for its owner and the group alone, and removes a socket that nobody listens on."""
    if len(os.fsencode(path)) > 100:
        raise ConfigError(
            f"worker.listen = {path}: a path of over 100 bytes is too long for a socket; use a shorter one"
        )
    if not path.parent.exists():  # a folder that was there, /run say, is somebody's to keep as it is
        path.parent.mkdir(parents=True)
        _give(path.parent, group, 0o750 if group else 0o700)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"worker.listen = {path}: is a file; name a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()  # left behind by a worker that was killed
            return
    raise ConfigError(f"worker.listen = {path}: another worker listens there; stop it, or use another path")


def _open_to(path: Path, group: str) -> None:
    _give(path, group, 0o660 if group else 0o600)


def _give(path: Path, group: str, mode: int) -> None:
    try:
        if group:
            os.chown(path, -1, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
        path.chmod(mode)
    except KeyError:
        raise ConfigError(f"worker.group = {group!r}: no such group on this machine") from None
    except PermissionError:
        raise ConfigError(
            f"worker.group = {group!r}: {path} cannot be given to it; is this user a member of the group?"
        ) from None
