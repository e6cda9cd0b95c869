"""The gate lets registered nodes' calls of the Fleet API through, and reads no byte of a stranger's body."""

import asyncio
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from starlette.applications import Starlette

from common.keyfiles import public_line
from server import gate
from server.gate import SuperLink, gate_app, signed_by

CALL = "/v1/fleet/pull-messages"


class Upstream:
    """Stands for the SuperLink: remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return httpx.Response(200, content=b"answer", headers={"content-type": "application/protobuf"})


@pytest.fixture
def node() -> ec.EllipticCurvePrivateKey:
    key: ec.EllipticCurvePrivateKey = generate_key_pairs()[0]
    return key


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


class Client:
    """Calls an application, each time from its start to its end."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    def post(self, path: str, headers: dict[str, str], content: bytes = b"x", method: str = "POST") -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with (
                self.app.router.lifespan_context(self.app),
                httpx.AsyncClient(transport=transport, base_url="https://gate") as client,
            ):
                request = client.build_request(method, "/", content=content, headers=headers)
                request.url = request.url.copy_with(raw_path=path.encode())  # as it is, with its dots
                return await client.send(request)

        return asyncio.run(ask())


@pytest.fixture
def client(node: ec.EllipticCurvePrivateKey, upstream: Upstream) -> Client:
    return Client(
        gate_app(SuperLink("https://superlink", httpx.MockTransport(upstream)), [public_line(node.public_key())])
    )


def signed(key: ec.EllipticCurvePrivateKey, seconds: float = 0.0) -> dict[str, str]:
    """Flower's own headers of a call, of so many seconds ago."""
    stamp = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(sign_message(key, stamp.encode())).decode(),
    }


def test_a_registered_nodes_call_passes_as_it_is(
    client: Client, node: ec.EllipticCurvePrivateKey, upstream: Upstream
) -> None:
    found = client.post(CALL, content=b"question", headers=signed(node))
    assert (found.status_code, found.content, found.headers["content-type"]) == (
        200,
        b"answer",
        "application/protobuf",
    )
    (request,) = upstream.seen
    assert request.content == b"question"
    assert request.url == "https://superlink/v1/fleet/pull-messages"
    assert request.headers["flwr-signature"]  # the SuperLink verifies again


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/push",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/Pull",
        "/v1/fleet/pull-messages?x=/v1/control",
        "/v1/fleet/",
        "//v1/fleet/pull-messages",
        "/",
    ],
)
def test_nothing_but_the_fleet_api_passes(
    path: str, client: Client, node: ec.EllipticCurvePrivateKey, upstream: Upstream
) -> None:
    assert client.post(path, signed(node)).status_code == 404
    assert upstream.seen == []


def test_only_posts_pass(client: Client, node: ec.EllipticCurvePrivateKey, upstream: Upstream) -> None:
    assert client.post(CALL, signed(node), method="GET").status_code == 405
    assert upstream.seen == []


def _without(name: str) -> Any:
    return lambda headers, _: {key: value for key, value in headers.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        _without("flwr-public-key"),
        _without("flwr-timestamp"),
        _without("flwr-signature"),
        lambda _headers, stranger: signed(stranger),
        lambda headers, stranger: headers | {"flwr-signature": signed(stranger)["flwr-signature"]},
        lambda headers, _: headers | {"flwr-timestamp": datetime.now(UTC).isoformat()},
        lambda headers, _: headers | {"flwr-timestamp": "yesterday"},
        lambda headers, _: headers | {"flwr-public-key": "%%%"},
        lambda headers, _: headers | {"flwr-public-key": b64encode(b"no key").decode()},
    ],
)
def test_a_strangers_body_is_not_read(
    change: Any, client: Client, node: ec.EllipticCurvePrivateKey, upstream: Upstream, monkeypatch: Any
) -> None:
    async def read(_request: Any) -> bytes:
        raise AssertionError("the body was read")

    monkeypatch.setattr(gate, "_body", read)
    headers = change(signed(node), generate_key_pairs()[0])
    assert client.post(CALL, content=b"x", headers=headers).status_code == 401
    assert upstream.seen == []


@pytest.mark.parametrize(("seconds", "passes"), [(0, True), (300, True), (320, False), (-5, True), (-20, False)])
def test_a_time_stamp_holds_as_long_as_flower_lets_it(
    seconds: float, passes: bool, node: ec.EllipticCurvePrivateKey
) -> None:
    found = signed_by(signed(node, seconds), datetime.now(UTC))
    assert (found is not None) == passes


def test_a_time_stamp_without_a_zone_is_refused(node: ec.EllipticCurvePrivateKey) -> None:
    stamp = datetime.now(UTC).replace(tzinfo=None).isoformat()
    headers = signed(node) | {
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(sign_message(node, stamp.encode())).decode(),
    }
    assert signed_by(headers, datetime.now(UTC)) is None


def test_a_body_over_the_bound_is_refused(
    client: Client, node: ec.EllipticCurvePrivateKey, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_MOST_BODY_BYTES", 10)
    assert client.post(CALL, content=b"x" * 11, headers=signed(node)).status_code == 413
    assert client.post(CALL, content=b"x" * 10, headers=signed(node)).status_code == 200
    assert len(upstream.seen) == 1


def test_a_body_that_never_ends_is_given_up(
    node: ec.EllipticCurvePrivateKey, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_BODY_SECONDS", 0.2)
    app = gate_app(SuperLink("https://superlink", httpx.MockTransport(upstream)), [public_line(node.public_key())])

    async def ask() -> int:
        sent = iter([{"type": "http.request", "body": b"x", "more_body": True}])
        status: list[int] = []

        async def receive() -> dict[str, Any]:
            for part in sent:
                return part
            await asyncio.sleep(60)
            raise AssertionError("nobody waits that long")

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        headers = [(name.encode(), value.encode()) for name, value in signed(node).items()]
        scope = {"type": "http", "method": "POST", "path": CALL, "raw_path": CALL.encode(), "headers": headers}
        await app(scope | {"query_string": b"", "scheme": "https", "server": ("gate", 8000)}, receive, send)
        return status[0]

    assert asyncio.run(ask()) == 408
    assert upstream.seen == []


def test_a_superlink_that_does_not_answer_is_said(node: ec.EllipticCurvePrivateKey) -> None:
    def down(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    app = gate_app(SuperLink("https://superlink", httpx.MockTransport(down)), [public_line(node.public_key())])
    assert Client(app).post(CALL, signed(node)).status_code == 502
