"""The gate between partners and the SuperLink: the Fleet API passes, and nothing else.

The open-source SuperLink serves its control API on the same port and authenticates no user of it: whoever can reach it
can start a run, that is, ship code to the machine that it runs on. So the SuperLink listens on loopback alone, and
partners reach this gate, which ends TLS with the consortium's certificate and passes on what belongs to the Fleet API.
"""

import re
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FLEET = "/v1/fleet/"
_CALL = re.compile(r"/v1/fleet/[a-z-]{1,64}")
_TIMEOUT_SECONDS = 120.0
_MOST_BODY_BYTES = 2**26  # Flower sends arrays in parts of a few MB
# Of one connection, not of the message.
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}


def gate_app(superlink: str, ca: Path) -> Starlette:
    """Returns the application that passes on requests to the Fleet API of a SuperLink, https://HOST:PORT."""
    context = ssl.create_default_context(cafile=str(ca))

    @asynccontextmanager
    async def client(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=superlink, verify=context, timeout=_TIMEOUT_SECONDS) as passing:
            app.state.client = passing
            yield

    async def passed(request: Request) -> Response:
        if not _CALL.fullmatch(request.url.path):  # no dots, no escapes: what passes is what was checked
            return Response("not of the Fleet API", 404)
        body = await _body(request)
        if body is None:
            return Response("a request of too many bytes", 413)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        try:
            found = await request.app.state.client.request(request.method, url, content=body, headers=headers)
        except httpx.HTTPError:
            return Response("the SuperLink does not answer", 502)
        kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP_BY_HOP}
        kept.pop("content-encoding", None)  # httpx took it off
        return Response(found.content, found.status_code, kept)

    return Starlette(routes=[Route(FLEET + "{rest:path}", passed, methods=["POST"])], lifespan=client)


async def _body(request: Request) -> bytes | None:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


class Gate:
    """A gate that serves in a thread until it is stopped.

    Args:
        host, port: that partners reach.
        certificate, key: of this server.
        superlink: https://HOST:PORT on loopback.
        ca: that signed the SuperLink's certificate.
    """

    def __init__(self, host: str, port: int, certificate: Path, key: Path, superlink: str, ca: Path) -> None:
        config = uvicorn.Config(
            gate_app(superlink, ca), host=host, port=port, ssl_certfile=str(certificate), ssl_keyfile=str(key),
            log_level="warning", access_log=False, server_header=False,
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
