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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Limits:
    """How long a stream may stand still, and take in all: a GiB over a socket of this machine takes a few seconds."""

    still_seconds: float = 30.0
    seconds: float = 600.0


Answerer = Callable[[str, RecordDict], RecordDict | Refused]


class WorkerServer:
    """Serves one worker until it is stopped.

    Args:
        address: "unix:PATH", or "HOST:PORT" on loopback.
        answer: message type and content -> answer; it raises nothing.
        most_bytes: of one question.
        refused: error code of a question that is not of the contract.
        group: of the socket and its folder, so that the shim's user may connect; empty = nobody else.
        limits: of a question that comes, and of an answer that goes.

    Raises:
        ConfigError: for an address that cannot be listened on, or is not local.
    """

    def __init__(
        self,
        address: str,
        answer: Answerer,
        most_bytes: int,
        refused: int,
        group: str = "",
        limits: Limits = Limits(),
    ) -> None:
        self._address = address
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="answer"), maximum_concurrent_rpcs=_MOST_STREAMS
        )
        servicer = _Servicer(answer, most_bytes, refused, limits)
        add_PartnerWorkerServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
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
    def __init__(self, answer: Answerer, most_bytes: int, refused: int, limits: Limits) -> None:
        self._answer, self._most_bytes, self._refused, self._limits = answer, most_bytes, refused, limits
        self._reading = threading.Semaphore(2)  # questions in memory at a time

    def Answer(self, request_iterator: Iterator[Piece], context: Any) -> Iterator[Piece]:  # noqa: N802 (gRPC's name)
        try:
            with self._reading:
                answer = self._answered(request_iterator, context)
            pieces = refusal_pieces(answer.code, answer.text) if isinstance(answer, Refused) else pieces_of(answer)
            with _Moving(self._limits, context) as moving:  # an answer that nobody reads must not hold a thread
                yield from moving.through(pieces)
        except grpc.RpcError:
            raise
        except Exception as error:  # what it says may hold data, and gRPC would pass it on: only its kind leaves
            log.error("an answer that failed: %s", type(error).__name__)
            yield from refusal_pieces(self._refused, f"internal error: {type(error).__name__}")

    def _answered(self, pieces: Iterator[Piece], context: Any) -> RecordDict | Refused:
        try:
            with _Moving(self._limits, context) as moving:
                head, content = read_pieces(moving.through(pieces), self._most_bytes)
        except (ProtocolError, grpc.RpcError) as error:
            text = str(error) if isinstance(error, ProtocolError) else "the question broke off"
            log.warning("a question that is not answered: %s", text)
            return Refused(self._refused, text)
        try:
            return self._answer(head.type, content)
        except HushclickError as error:  # an audit log that cannot be written, say: paths stay in the own log
            log.error("%s", error)
            return Refused(self._refused, f"refused ({type(error).__name__}); this partner's own log says why")


class _Moving:
    """Breaks a stream off that stands still, or takes too long: half a message must not hold a place for ever."""

    def __init__(self, limits: Limits, context: Any) -> None:
        self._limits, self._context = limits, context
        self._started = self._moved = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "_Moving":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def through(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Passes pieces on, and notes that they move: what is empty moves nothing."""
        for piece in pieces:
            if piece.body or piece.HasField("head"):
                self._moved = time.monotonic()
            yield piece

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limits.still_seconds / 4)):
            now = time.monotonic()
            still, long = now - self._moved, now - self._started
            if still > self._limits.still_seconds or long > self._limits.seconds:
                self._context.cancel()
                return


def _path_of(address: str) -> Path | None:
    return Path(address.removeprefix(UNIX)) if address.startswith(UNIX) else None


def _made(folder: Path) -> bool:
    """Makes a folder, and says whether it was not there: one that was, /run say, is somebody's to keep as it is."""
    if folder.exists():
        return False
    try:
        folder.mkdir()
    except FileExistsError:  # another worker, whose socket lies beside this one, was faster
        return False
    return True


def _make_room(path: Path, group: str) -> None:
    """Makes the socket's folder, for its owner and the group alone, and removes a socket that nobody listens on."""
    if len(os.fsencode(path)) > 100:
        raise ConfigError(
            f"worker.listen = {path}: a path of over 100 bytes is too long for a socket; use a shorter one"
        )
    for folder in reversed(path.parent.parents):
        if _made(folder):
            folder.chmod(0o711 if group else 0o700)  # the group must get through, whatever the umask
    if _made(path.parent):
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
