"""The preflight of certificates: what a partner reads where authority, key, server or clock are wrong."""

import socket
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from kits import Operator, consortium
from loopback import serving

from client import certificate_check
from client.certificate_check import check_certificates
from client.deployment import ClientConfig, load_client
from common.certificates import certificate_pem, issue, new_authority, utc_now
from common.keyfiles import new_curve_key, openssh, pem, public_line
from server.provision.consortium import Server


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    one = Operator(tmp_path, capsys)
    one.provision(consortium())
    return one


@pytest.fixture
def client(operator: Operator) -> ClientConfig:
    return load_client(operator.partner("shop-b") / "client.toml")


def at(client: ClientConfig, port: int, host: str = "localhost") -> ClientConfig:
    return replace(client, superlink=f"{host}:{port}")


def test_a_kit_in_order_passes(operator: Operator, client: ClientConfig) -> None:
    server = operator.kits / "server"
    with serving(server / "server.crt", server / "server.key") as port:
        for host in ("localhost", "127.0.0.1"):
            lines = check_certificates(at(client, port, host))
            assert all(ok for ok, _ in lines), lines
            assert [text.split(":")[0] for _, text in lines] == [
                *("authority", "node key", "signing key of the server", f"server {host}", "clock")
            ]
    assert [ok for ok, _ in check_certificates(client, connect=False)] == [True] * 3


def test_a_port_that_nobody_answers_at(client: ClientConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ok, text = check_certificates(at(client, port))[-1]
    assert not ok
    assert "not reached: Connection refused; mend superlink" in text


def test_a_port_that_speaks_something_else(client: ClientConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            plain, _ = listener.accept()
            with plain:
                plain.recv(10)
                plain.sendall(b"SSH-2.0-OpenSSH\r\n" * 20)

        thread = threading.Thread(target=answer)
        thread.start()
        ok, text = check_certificates(at(client, listener.getsockname()[1]))[-1]
        thread.join()
    assert not ok
    assert "no TLS connection" in text


def test_a_server_that_says_nothing_is_not_waited_for(client: ClientConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ok, text = check_certificates(at(client, listener.getsockname()[1]), seconds=0.2)[-1]
    assert not ok
    assert "timed out" in text


def test_a_server_of_another_authority(operator: Operator, client: ClientConfig, tmp_path: Path) -> None:
    now, key, own = utc_now(), new_curve_key(), new_curve_key()
    authority = new_authority(key, "Example ads", 100, now)  # of the same name
    certificate = issue(key, authority, own.public_key(), ["localhost"], 50, now)
    (tmp_path / "x.crt").write_bytes(certificate_pem(certificate))
    (tmp_path / "x.key").write_bytes(pem(own))
    with serving(tmp_path / "x.crt", tmp_path / "x.key") as port:
        lines = check_certificates(at(client, port))
    assert [ok for ok, _ in lines] == [True, True, True, False]
    assert "another server answers, or ca.crt is another consortium's" in lines[-1][1]


def test_a_server_for_another_host(operator: Operator, client: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "certified", property(lambda server: server.host))  # without loopback's names
    operator.provision(consortium(server={"host": "hush.example.org"}), "--rotate-server")
    server = operator.kits / "server"
    with serving(server / "server.crt", server / "server.key") as port:
        ok, text = check_certificates(at(client, port))[-1]
    assert not ok
    assert "is for hush.example.org, not for localhost" in text


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (-2, "authority's certificate begins on"),
        (366, "server's certificate ended on"),
        (3_651, "authority's certificate ended on"),
    ],
)
def test_the_wrong_moment(
    operator: Operator, client: ClientConfig, monkeypatch: pytest.MonkeyPatch, days: int, says: str
) -> None:
    now = utc_now()
    monkeypatch.setattr(certificate_check, "utc_now", lambda: now + timedelta(days=days))
    server = operator.kits / "server"
    with serving(server / "server.crt", server / "server.key") as port:
        lines = check_certificates(at(client, port))
    failed = [text for ok, text in lines if not ok]
    assert len(failed) == 1
    assert says in failed[0]


def test_what_ends_soon_is_said(operator: Operator, client: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = utc_now()
    monkeypatch.setattr(certificate_check, "utc_now", lambda: now + timedelta(days=340))
    server = operator.kits / "server"
    with serving(server / "server.crt", server / "server.key") as port:
        lines = {text.split(":")[0]: (ok, text) for ok, text in check_certificates(at(client, port))}
    assert lines["server localhost"][0]
    assert "it ends soon, tell the operator" in lines["server localhost"][1]
    assert "soon" not in lines["authority"][1]


@pytest.mark.parametrize(("ahead", "ok"), [(0, True), (200, True), (-200, True), (300, False), (-3600, False)])
def test_the_clock_is_compared_with_the_servers(operator: Operator, client: ClientConfig, ahead: int, ok: bool) -> None:
    server = operator.kits / "server"
    with serving(server / "server.crt", server / "server.key", clock_ahead=ahead) as port:
        found, text = check_certificates(at(client, port))[-1]
    assert found == ok
    if not ok:
        assert ("behind" if ahead > 0 else "ahead of") + " the server's" in text
        assert "set the clock" in text


def test_node_keys_that_do_not_fit(client: ClientConfig) -> None:
    path = Path(client.node_key)

    def said() -> str:
        ok, text = check_certificates(client, connect=False)[1]
        assert not ok
        return text

    right = path.read_bytes()
    path.chmod(0o640)
    assert "mode 0640: others can read this key; chmod 600 it" in said()
    path.chmod(0o600)
    path.write_bytes(openssh(new_curve_key()))
    assert "not the private half of" in said()
    path.write_bytes(pem(new_curve_key()))
    assert "not an unencrypted private key in OpenSSH form" in said()
    path.unlink()
    assert "no node key" in said()
    path.write_bytes(right)
    path.chmod(0o600)
    path.with_suffix(".pub").write_text("nonsense")
    assert "not an ECDSA public key in OpenSSH form" in said()
    path.with_suffix(".pub").write_text(public_line(new_curve_key().public_key()))
    assert "not the private half of" in said()
    path.with_suffix(".pub").unlink()
    assert check_certificates(client, connect=False)[1][0]


def test_authorities_that_do_not_fit(operator: Operator, client: ClientConfig) -> None:
    path = Path(client.ca)
    path.write_bytes((operator.kits / "server" / "server.crt").read_bytes())
    lines = check_certificates(client)  # nobody is asked where there is no authority to ask with
    assert [ok for ok, _ in lines] == [False, True, True]
    assert "not an authority's: take ca.crt out of the kit" in lines[0][1]
    path.unlink()
    assert "no such certificate; it comes with the kit" in check_certificates(client)[0][1]


def test_signing_keys_that_do_not_fit(client: ClientConfig) -> None:
    path = Path(client.signing_key)
    path.write_bytes(Path(client.ca).read_bytes())
    assert "not a public key in PEM" in check_certificates(client, connect=False)[2][1]
    path.unlink()
    assert "it came with the kit" in check_certificates(client, connect=False)[2][1]
