"""docker-compose.yml, built and run for real: it trains, and each container is kept from what it must not reach.

Skipped where no Docker engine answers. Minutes: three images, seventeen containers.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTNERS = ("ads", "news", "shop", "video")
LONG_LIVED = (
    "superlink",
    "serverapp",
    "proxy",
    *(f"{name}-{role}" for name in PARTNERS for role in ("supernode", "shim", "worker")),
)
SECONDS = 1500.0


def engine_answers() -> bool:
    if not shutil.which("docker") or not compose_words():
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def compose_words() -> list[str]:
    """Compose v1 or v2, whichever is there."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    found = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    return ["docker", "compose"] if found and found.returncode == 0 else []


pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers"),
]


class Stack:
    """The composed example, under a name of its own."""

    def __init__(self, out: Path) -> None:
        self.name, self.out = f"hushclick-test-{os.getpid()}", out
        self.environment = os.environ | {"HUSHCLICK_OUT": str(out), "COMPOSE_PROFILES": "cpu"}

    def compose(self, *words: str, seconds: float = SECONDS, check: bool = True) -> str:
        files = ("-f", "docker-compose.yml", "-f", "tests/deployment/shorter.yml")
        done = subprocess.run(
            [*compose_words(), *files, "-p", self.name, *words], cwd=ROOT, env=self.environment, capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + self.logs()
        return done.stdout

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service, seconds=60).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        found = subprocess.run(["docker", "inspect", self.container(service)], capture_output=True, check=True)
        (one,) = json.loads(found.stdout)
        return dict(one)

    def inside(self, service: str, code: str) -> str:
        """What a line of Python says in a running container; "refused: ..." where it raises."""
        program = f"try:\n    {code}\nexcept BaseException as error:\n    print('refused:', type(error).__name__)"
        words = ["docker", "exec", self.container(service), "python3", "-c", program]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    def wait_for_exit(self, service: str) -> int:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            state = self.inspect(service)["State"]
            if state["Status"] == "exited":
                return int(state["ExitCode"])
            time.sleep(3)
        raise AssertionError(self.logs())

    def logs(self) -> str:
        done = subprocess.run(
            [*compose_words(), "-p", self.name, "logs", "--no-color", "--tail=15"], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout[-12000:]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("out"))
    try:
        stack.compose("up", "-d", "--build")
        assert stack.wait_for_exit("server") == 0, stack.logs()
        yield stack
    finally:
        stack.compose("down", "-v", "-t", "5", seconds=300, check=False)


def test_it_trains_and_leaves_a_report(stack: Stack) -> None:
    assert stack.wait_for_exit("report") == 0
    metrics = json.loads((stack.out / "metrics.json").read_bytes())
    assert [one["contributed"] for one in metrics["rounds"]] == [4, 4]
    assert metrics["final"]["delivered"] == {"to": 4, "of": 4}
    assert 0.5 < metrics["final"]["auc"] < 1
    assert (stack.out / "report.html").stat().st_size > 10_000
    assert list((stack.out / "model").glob("*.safetensors"))


@pytest.mark.parametrize("service", LONG_LIVED)
def test_a_service_is_nobody_special(service: str, stack: Stack) -> None:
    facts = stack.inspect(service)
    assert stack.inside(service, "import os; print(os.getuid())") not in ("", "0")
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["CapDrop"] == ["ALL"]
    assert not facts["HostConfig"]["CapAdd"]
    assert facts["State"]["Health"]["Status"] == "healthy"


@pytest.mark.parametrize("name", PARTNERS)
def test_clicks_are_in_the_worker_alone(name: str, stack: Stack) -> None:
    mounts = {mount["Destination"]: mount for mount in stack.inspect(f"{name}-worker")["Mounts"]}
    assert not mounts["/clicks"]["RW"]
    assert not mounts["/kit"]["RW"]
    volumes = {mounts["/clicks"]["Name"], mounts["/kit"]["Name"], mounts["/state"]["Name"]}
    for service in LONG_LIVED:
        if service != f"{name}-worker":
            assert volumes.isdisjoint(mount.get("Name") for mount in stack.inspect(service)["Mounts"]), service


def test_a_worker_has_no_network(stack: Stack) -> None:
    assert stack.inside("ads-worker", "import socket; print([name for _, name in socket.if_nameindex()])") == "['lo']"


def test_a_shim_holds_no_torch_and_reaches_its_supernode_and_its_worker_alone(stack: Stack) -> None:
    for package in ("torch", "opacus", "transformers"):
        assert stack.inside("ads-shim", f"import {package}") == "refused: ModuleNotFoundError"
    assert stack.inside("ads-shim", "import client.app; print('imported')") == "imported"
    connect = "import socket; socket.create_connection(({!r}, {}), 5); print('reached')"
    assert stack.inside("ads-shim", connect.format("ads-supernode", 9094)) == "reached"
    for host, port in (("proxy", 8000), ("superlink", 8000), ("news-supernode", 9094), ("1.1.1.1", 443)):
        assert stack.inside("ads-shim", connect.format(host, port)).startswith("refused"), host
    ask = "from client.rpc.asking import is_serving; print(is_serving('unix:/socket/worker'))"
    assert stack.inside("ads-shim", ask) == "True"


def test_a_supernode_reaches_the_gate_and_no_other_partner(stack: Stack) -> None:
    connect = "import socket; socket.create_connection(({!r}, {}), 5); print('reached')"
    assert stack.inside("ads-supernode", connect.format("proxy", 8000)) == "reached"
    for host in ("superlink", "news-supernode", "news-shim"):
        assert stack.inside("ads-supernode", connect.format(host, 8000)).startswith("refused"), host


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/fleet/pull-messages", (400, 401, 403, 415, 422)),  # the SuperLink itself refuses: it passed
        ("/v1/control/list-runs", (404,)),
        ("/v1/runtime/pull", (404,)),
        ("/v1/fleet/../control/list-runs", (404,)),
        ("/v1/fleet/%2e%2e/control/list-runs", (404,)),
        ("//v1/fleet/pull-messages", (404,)),
        ("/", (404,)),
    ],
)
def test_the_gate_passes_the_fleet_api_alone(path: str, status: tuple[int, ...], stack: Stack) -> None:
    code = (
        "import http.client, ssl; c = http.client.HTTPSConnection('proxy', 8000, timeout=10,"
        " context=ssl.create_default_context(cafile='/node/ca.crt')); c.putrequest('POST',"
        f" {path!r}, skip_accept_encoding=True); c.putheader('Content-Length', '0'); c.endheaders();"
        " print(c.getresponse().status)"
    )
    assert int(stack.inside("ads-supernode", code)) in status


def test_started_again_it_makes_no_key_anew(stack: Stack) -> None:
    before = stack.inside(
        "ads-worker", "import hashlib; print(hashlib.sha256(open('/kit/identity.pem','rb').read()).hexdigest())"
    )
    said = stack.compose("run", "--rm", "prepare")
    assert "prepared before" in said
    after = stack.inside(
        "ads-worker", "import hashlib; print(hashlib.sha256(open('/kit/identity.pem','rb').read()).hexdigest())"
    )
    assert before == after != ""
