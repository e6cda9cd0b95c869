"""The gate between partners and the SuperLink: registered nodes' calls of the Fleet API pass, and nothing else.

The open-source SuperLink serves its control API on the same port and authenticates no user of it: whoever can reach it
can start a run, that is, ship code to the machine that it runs on. So the SuperLink itself listens on loopback alone,
and partners reach this gate, which ends TLS with the consortium's certificate.

A node signs the time in a header of every call. The gate verifies that before it reads a byte of the body, so that a
stranger can make it hold no more than a connection. The SuperLink, behind it, verifies again.
"""

import asyncio
import binascii
import re
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FLEET = "/v1/fleet/"
_CALL = re.compile(r"/v1/fleet/[a-z-]{1,64}")
_TIMEOUT_SECONDS = 120.0
_BODY_SECONDS = 120.0
_MOST_BODY_BYTES = 2**26  # Flower sends arrays in parts of a few MB
_MOST_CALLS = 8  # of one node at a time; the next ones wait
_MOST_CONNECTIONS = 512
# As Flower 1.41 signs a node's calls, and how far a node's clock may be off, in seconds.
_KEY, _TIMESTAMP, _SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
_OLDEST, _NEWEST = 310.0, -10.0
# Of one connection, not of the message.
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}


@dataclass(frozen=True)
class SuperLink:
    """What the gate stands before.

    Attributes:
        url: https://HOST:PORT on loopback.
        transport: that reaches it.
    """

    url: str
    transport: httpx.AsyncBaseTransport


def superlink_behind_tls(address: str, ca: Path) -> SuperLink:
    """Returns a SuperLink at host:port whose certificate an authority signed."""
    context = ssl.create_default_context(cafile=str(ca))
    return SuperLink(f"https://{address}", httpx.AsyncHTTPTransport(verify=context))


def gate_app(superlink: SuperLink, node_lines: Sequence[str]) -> Starlette:
    """Returns the application that passes on registered nodes' calls of a SuperLink's Fleet API.

    Args:
        superlink: what is behind it.
        node_lines: the nodes' public keys, in OpenSSH form.
    """
    calls = {_spki(load_ssh_public_key(line.encode())): asyncio.Semaphore(_MOST_CALLS) for line in node_lines}

    @asynccontextmanager
    async def client(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(
            base_url=superlink.url, transport=superlink.transport, timeout=_TIMEOUT_SECONDS
        ) as passing:
            app.state.client = passing
            yield

    async def passed(request: Request) -> Response:
        raw = request.scope["raw_path"], request.scope["query_string"]
        if raw != (request.url.path.encode(), b"") or not _CALL.fullmatch(request.url.path):
            return Response("not of the Fleet API", 404)  # no dots, no escapes: what passes is what was checked
        node = signed_by(request.headers, datetime.now(UTC))
        if node not in calls:
            return Response("not a call of a registered node, or its clock is wrong", 401)
        async with calls[node]:
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    body = await _body(request)
            except TimeoutError:
                return Response(f"a request that was not whole after {_BODY_SECONDS:g} s", 408)
            return Response("a request of too many bytes", 413) if body is None else await _answer(request, body)

    return Starlette(routes=[Route(FLEET + "{rest:path}", passed, methods=["POST"])], lifespan=client)


def signed_by(headers: Mapping[str, str], now: datetime) -> bytes | None:
    """Returns the public key (DER) that signed a call's time stamp; None where none did, or not lately."""
    try:
        key = load_pem_public_key(b64decode(headers[_KEY], validate=True))
        stamp, signature = headers[_TIMESTAMP], b64decode(headers[_SIGNATURE], validate=True)
        age = (now - datetime.fromisoformat(stamp)).total_seconds()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not _NEWEST < age < _OLDEST:
            return None
        key.verify(signature, stamp.encode("ascii"), ec.ECDSA(SHA256()))
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error, InvalidSignature):
        return None
    return _spki(key)


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("a node's key is ECDSA")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def _body(request: Request) -> bytes | None:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


async def _answer(request: Request, body: bytes) -> Response:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
    try:
        found = await request.app.state.client.post(request.url.path, content=body, headers=headers)
    except httpx.HTTPError:
        return Response("the SuperLink does not answer", 502)
    kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP_BY_HOP}
    kept.pop("content-encoding", None)  # httpx took it off
    return Response(found.content, found.status_code, kept)


class Gate:
    """A gate that serves in a thread until it is stopped.

    Args:
        host, port: that partners reach.
        certificate, key: of this server.
        app: what `gate_app` returns.
    """

    def __init__(self, host: str, port: int, certificate: Path, key: Path, app: Starlette) -> None:
        config = uvicorn.Config(
            app, host=host, port=port, ssl_certfile=str(certificate), ssl_keyfile=str(key), log_level="warning",
            access_log=False, server_header=False, limit_concurrency=_MOST_CONNECTIONS, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="gate", daemon=True)

    def start(self, timeout_seconds: float) -> bool:
        """Begins to listen; returns whether it does."""
        self._thread.start()
        deadline = time.monotonic() + timeout_seconds
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(self._server.started)

    def stop(self) -> None:
        """Stops listening, and waits for it."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
