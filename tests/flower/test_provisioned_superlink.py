"""A kit's files in Flower's own programs: a SuperLink over TLS that knows two partners' nodes, and no third."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from kits import Operator, consortium

from client.certificate_check import check_certificates
from client.deployment import ClientConfig, load_client
from server.control import Control
from server.deployment import load_deployment, node_keys

BIN = Path(sys.executable).parent
QUIET = {
    "PATH": f"{BIN}:{os.environ['PATH']}",  # a SuperLink starts further programs by name
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
SECONDS = 120  # on two busy cores a SuperLink takes half a minute to start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(words: list[Any], home: Path, log: Path) -> Iterator[psutil.Popen]:
    """Runs one of Flower's programs in a folder of its own, and ends it, and its children, afterwards."""
    home.mkdir(parents=True)
    environment = os.environ | QUIET | {"FLWR_HOME": str(home)}
    with log.open("wb") as out:
        process = psutil.Popen([str(word) for word in words], cwd=home, env=environment, stdout=out, stderr=out)
        try:
            yield process
        finally:
            started = [process, *process.children(recursive=True)]  # Flower detaches its own helpers
            process.terminate()
            _, alive = psutil.wait_procs(started, timeout=10)
            for one in alive:
                one.kill()
            psutil.wait_procs(alive, timeout=10)


def flwr(home: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [BIN / "flwr", *words, "kits", "--format", "json"],
        cwd=home,
        env=os.environ | QUIET | {"FLWR_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def supernode(client: ClientConfig) -> list[Any]:
    options = ["--root-certificates", client.ca, "--superlink", client.superlink, "--max-retries", "2"]
    own = ["--auth-supernode-private-key", client.node_key, "--port", free_port()]
    return [BIN / "flower-supernode", *options, *own]


@pytest.mark.slow
def test_flower_takes_the_kits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operator, port = Operator(tmp_path, capsys), free_port()
    operator.provision(consortium(server={"host": ["localhost", "127.0.0.1"], "port": port}))
    server = load_deployment(operator.kits / "server" / "server.toml")
    clients = {name: load_client(operator.partner(name) / "client.toml") for name in ("shop-a", "shop-b", "shop-c")}
    tls = ["--ssl-ca-certfile", server.ca, "--ssl-certfile", server.certificate, "--ssl-keyfile", server.key]
    where = ["--host", server.host, "--port", server.port, "--database", server.database]
    control = tmp_path / "control"
    control.mkdir()
    (control / "config.toml").write_text(
        f'[superlink]\ndefault = "kits"\n[superlink.kits]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{server.ca}"\n'
    )
    with ExitStack() as stack:
        link = [BIN / "flower-superlink", *tls, "--enable-supernode-auth", *where]
        stack.enter_context(running(link, tmp_path / "link", tmp_path / "link.log"))
        deadline = time.monotonic() + SECONDS
        while not all(ok for ok, _ in check_certificates(clients["shop-a"])) and time.monotonic() < deadline:
            time.sleep(0.5)
        lines = check_certificates(clients["shop-a"])
        assert all(ok for ok, _ in lines), (lines, (tmp_path / "link.log").read_text())
        assert lines[-1][1].startswith("clock: within")  # the SuperLink says its time
        operators = Control(tmp_path / "operator", f"127.0.0.1:{port}", Path(server.ca))
        operators.know({name: node_keys(server)[name] for name in ("shop-a", "shop-b")})  # the third has a kit alone
        known = {found["node"]: name for name, found in operators._written().items()}
        for name, client in clients.items():
            stack.enter_context(running(supernode(client), tmp_path / f"node-{name}", tmp_path / f"{name}.log"))

        def listed() -> dict[str, str]:
            nodes = flwr(control, "supernode", "list")["nodes"]
            return {known.get(str(node["node-id"]), "?"): node["status"] for node in nodes}

        status: dict[str, str] = {}
        deadline = time.monotonic() + SECONDS
        while list(status.values()).count("online") < 2 and time.monotonic() < deadline:
            status = listed()
        assert status == {"shop-a": "online", "shop-b": "online"}, (tmp_path / "shop-a.log").read_text()
        said, deadline = "", time.monotonic() + SECONDS
        while "Failed to activate SuperNode" not in said and time.monotonic() < deadline:
            time.sleep(0.5)
            said = (tmp_path / "shop-c.log").read_text()
        assert "Failed to activate SuperNode" in said
        # shop-b leaves for good: its key is gone from the server's folder, and its node from the SuperLink.
        table = consortium(server={"host": ["localhost", "127.0.0.1"], "port": port})
        table["partners"] = [partner for partner in table["partners"] if partner["name"] != "shop-b"]
        operator.provision(table)
        assert "shop-b" not in node_keys(server)
        operators.know({"shop-a": node_keys(server)["shop-a"]})
        assert listed() == {"shop-a": "online", "shop-b": "unregistered"}
        said, again, deadline = "", tmp_path / "again.log", time.monotonic() + SECONDS
        stack.enter_context(running(supernode(clients_of_removed(operator)), tmp_path / "node-again", again))
        while "Failed to activate SuperNode" not in said and time.monotonic() < deadline:
            time.sleep(0.5)
            said = again.read_text()
        assert "Failed to activate SuperNode" in said
        assert listed() == {"shop-a": "online", "shop-b": "unregistered"}


def clients_of_removed(operator: Operator) -> ClientConfig:
    """Returns what the partner that left would still start from: its own copy of its kit."""
    return load_client(operator.kits / "removed" / "shop-b" / "client.toml")
