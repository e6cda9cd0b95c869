"""The shim's side of the contract: a question to the worker behind a socket, and its answer.

The shim holds no data, model or key. It asks only a worker whose socket belongs to the user that it was told: another
process of the machine must not be able to stand in for the partner's worker.
"""

import os
import pwd
import socket
import stat
from pathlib import Path

import grpc
from flwr.app import RecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.rpc.pieces import pieces_of, read_pieces
from client.rpc.worker_pb2 import Head
from client.rpc.worker_pb2_grpc import PartnerWorkerStub
from common.addresses import UNIX, split_address
from common.errors import HushclickError, ProtocolError

_MOST_ANSWER_BYTES = 2**34
_PROBE_SECONDS = 5.0
_NOT_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_NOT_RUNNING = "this partner's worker is not running; start it with hushclick worker"
_HANGS = (
    "this partner's worker does not answer, or broke off, though something listens: was it killed, is it stopped, or is"
    " the machine overloaded?"
)


def ask(
    address: str, owner: str, message_type: str, content: RecordDict, timeout_seconds: float
) -> tuple[Head, RecordDict]:
    """Returns the worker's answer to a message.

    Args:
        address: "unix:PATH", or "HOST:PORT" on loopback.
        owner: user that owns the socket, by name or number; empty = whoever runs this process.
        message_type: such as "train.mask".
        content: of the message.
        timeout_seconds: of the whole answer.

    Raises:
        HushclickError: where the worker is not there, too slow, or somebody else's.
        ProtocolError: for an answer that is not of the contract.
    """
    if address.startswith(UNIX):
        require_owner(Path(address.removeprefix(UNIX)), owner)
    with grpc.insecure_channel(address) as channel:
        try:
            stub = PartnerWorkerStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.Answer(pieces_of(content, message_type), timeout=timeout_seconds)
            return read_pieces(answer, _MOST_ANSWER_BYTES)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            if code in _NOT_THERE:
                raise HushclickError(_HANGS if _is_listened_on(address) else _NOT_RUNNING) from None
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise HushclickError(f"this partner's worker gave no answer within {timeout_seconds:g} s") from None
            raise ProtocolError(f"this partner's worker broke off ({code.name})") from None


def why_not_serving(address: str, owner: str) -> str:
    """Returns what keeps this process from a worker's answers; nothing where it answers, and is ready."""
    try:
        if address.startswith(UNIX):
            require_owner(Path(address.removeprefix(UNIX)), owner)
    except HushclickError as error:
        return str(error)
    if is_serving(address):
        return ""
    return _HANGS if _is_listened_on(address) else _NOT_RUNNING


def _is_listened_on(address: str) -> bool:
    """Returns whether a plain connection comes about: gRPC calls a worker that hangs unavailable, like none at all."""
    place: str | tuple[str, int]
    if address.startswith(UNIX):
        family, place = socket.AF_UNIX, address.removeprefix(UNIX)
    else:
        host, port = split_address(address, "worker")
        family, place = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)
    with socket.socket(family) as probe:
        probe.settimeout(_PROBE_SECONDS)
        return probe.connect_ex(place) == 0


def is_serving(address: str) -> bool:
    """Returns whether a worker answers there, and is ready."""
    with grpc.insecure_channel(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            found = check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


def require_owner(path: Path, owner: str) -> None:
    """Refuses a socket, or a folder of it, that another user could have put there.

    Raises:
        HushclickError: naming the mend.
    """
    expected = user_number(owner)
    try:
        found, folder = path.stat(), path.parent.stat()
    except PermissionError:
        raise HushclickError(_closed(path.name)) from None
    except OSError:
        raise HushclickError(_NOT_RUNNING) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise HushclickError(f"{path.name}: is no socket; name the worker's own")
    if found.st_uid != expected or folder.st_uid not in (expected, 0):
        raise HushclickError(
            f"{path.name}: belongs to user {found.st_uid} in a folder of user {folder.st_uid}, the worker's user is"
            f" {expected}: somebody else's worker is not asked; set worker_owner, or remove the socket"
        )
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise HushclickError(f"{path.name}: everybody can write to its folder; chmod o-w it")
    if not os.access(path, os.W_OK, effective_ids=True):  # which gRPC would call "unavailable"
        raise HushclickError(_closed(path.name))


def _closed(name: str) -> str:
    return (
        f"{name}: permission denied, user {os.geteuid()} may not reach this partner's worker; set worker.group in"
        " worker.toml to a group of that user's, start the worker again, and see that the folders above the socket"
        " let that user through"
    )


def user_number(owner: str) -> int:
    """Returns the number of a user given by name or number; of this process where none is given.

    Raises:
        HushclickError: for a name that this machine does not know.
    """
    if not owner:
        return os.getuid()
    if owner.isascii() and owner.isdigit():
        return int(owner)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise HushclickError(f"worker_owner = {owner!r:.80}: no such user on this machine") from None
