"""`hushclick keys new | rotate | show`: made at the partner, never overwritten, and only public halves said."""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from kits import Operator, consortium, is_private

from client.identity import load_identity
from common.cli import main
from common.errors import ConfigError
from common.keyfiles import load_node_key, new_curve_key, pem, public_hex, write_private


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def keys(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> dict[str, Any]:
    assert main(["keys", *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["keys", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_both_keys_are_made_and_only_public_halves_are_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "--out", str(home)]) == 0
    shown = capsys.readouterr().out
    assert "PRIVATE" not in shown
    for path in (home / "identity.pem", home / "node.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secret = b"".join(path.read_bytes().splitlines()[1:-1]).decode()
        assert secret[-40:] not in shown
    public = tomllib.loads((home / "public.toml").read_text())
    assert public["identity_public_key"] == public_hex(load_identity(home / "identity.pem"))
    assert f'identity_public_key = "{public["identity_public_key"]}"' in shown
    assert f'node_public_key = "{public["node_public_key"]}"' in shown
    assert not is_private(home / "public.toml")


def test_flower_takes_the_node_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the very calls of `flower-supernode` and `flwr supernode register`."""
    keys(capsys, "new", "--out", home)
    private = load_ssh_private_key((home / "node.key").read_bytes(), None)
    public = load_ssh_public_key((home / "node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert uses_nist_ec_curve(public)
    assert private.public_key() == public


def test_a_mask_of_the_shell_changes_no_mode(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        keys(capsys, "new", "--out", home)
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "identity.pem").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(capsys, "new", "--out", home, "--only", "node")
    kept = (home / "node.key").read_bytes()
    assert not (home / "identity.pem").exists()
    assert "node.key: there already; a key is never overwritten" in refused(capsys, "new", "--out", home)
    assert not (home / "identity.pem").exists()  # nothing was made
    keys(capsys, "new", "--out", home, "--only", "identity")
    assert (home / "node.key").read_bytes() == kept
    assert set(tomllib.loads((home / "public.toml").read_text())) == {"identity_public_key", "node_public_key"}


def test_a_link_in_the_place_of_a_key_is_not_followed(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "identity.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        write_private(home / "identity.pem", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_rotating_keeps_the_old_keys(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = keys(capsys, "new", "--out", home)
    old = {name: (home / name).read_bytes() for name in ("identity.pem", "node.key")}
    second = keys(capsys, "rotate", home)
    for name, data in old.items():
        assert (home / f"{name}.old").read_bytes() == data
        assert stat.S_IMODE((home / f"{name}.old").stat().st_mode) == 0o600
    for key in ("identity_public_key", "node_public_key"):
        assert first[key] != second[key]
        assert tomllib.loads((home / "public.toml").read_text())[key] == second[key]
    assert (home / "node.pub").read_text().strip() == second["node_public_key"]
    third = keys(capsys, "rotate", home, "--only", "node")
    assert third["identity_public_key"] == second["identity_public_key"]
    assert third["node_public_key"] != second["node_public_key"]
    assert (home / "node.key.old").read_bytes() == old["node.key"]
    assert third["kept"] == [str(home / "node.key.old.2")]


def test_a_rotated_partner_is_in_again_with_the_operators_answer(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, table = Operator(tmp_path, capsys), consortium()
    made = keys(capsys, "new", "--out", home)
    names = ("identity_public_key", "node_public_key")
    table["partners"][0] |= {name: made[name] for name in names}
    operator.provision(table)
    made = keys(capsys, "rotate", home)
    table["partners"][0] |= {name: made[name] for name in names}
    result = operator.provision(table)
    assert result["partners"]["shop-a"]["send"] == ["roster.toml", "node.pub"]
    assert result["partners"]["shop-b"]["send"] == ["roster.toml"]
    assert made["identity_public_key"] in (operator.partner("shop-b") / "roster.toml").read_text()


@pytest.mark.parametrize("words", [("rotate",), ("rotate", "--only", "node")])
def test_there_must_be_something_to_rotate(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    home.mkdir()
    assert "to replace; `hushclick keys new --out" in refused(capsys, *words, home)
    assert list(home.iterdir()) == []
    assert "takes no --out" in refused(capsys, *words, home, "--out", home)
    assert "takes no --set" in refused(capsys, *words, home, "--set", "a=b")


def test_showing_what_a_file_is(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = keys(capsys, "new", "--out", home)
    shown = keys(capsys, "show", home / "identity.pem")
    assert shown == {
        "file": str(home / "identity.pem"),
        "kind": "private Ed25519 key",
        "public_key": made["identity_public_key"],
        "ok": True,
    }
    blob = base64.b64decode(made["node_public_key"].split()[1])
    mark = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    for name, half in (("node.key", "private"), ("node.pub", "public")):
        shown = keys(capsys, "show", home / name)
        assert (shown["public_key"], shown["fingerprint"]) == (made["node_public_key"], mark)
        assert shown["kind"] == f"{half} ECDSA key (secp384r1)"
    (home / "node.key").chmod(0o644)
    assert "chmod 600" in keys(capsys, "show", home / "node.key", code=1)["mend"]
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium())
    shown = keys(capsys, "show", operator.kits / "server" / "server.crt")
    assert (shown["hosts"], shown["ok"]) == (["localhost", "127.0.0.1"], True)
    assert keys(capsys, "show", operator.kits / "server" / "signing.pub")["kind"] == "public Ed25519 key"
    assert main(["keys", "show", str(operator.kits / "server" / "server.crt")]) == 0
    assert "hosts: localhost, 127.0.0.1" in capsys.readouterr().out


def test_the_fingerprint_is_that_of_ssh_keygen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("no ssh-keygen here")
    keys(capsys, "new", "--out", home)
    done = subprocess.run([program, "-l", "-f", home / "node.pub"], capture_output=True, text=True, check=True)
    assert keys(capsys, "show", home / "node.pub")["fingerprint"] in done.stdout.split()
    public = subprocess.run([program, "-y", "-f", home / "node.key"], capture_output=True, text=True, check=True)
    assert public.stdout.split()[:2] == keys(capsys, "show", home / "node.pub")["public_key"].split()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"\xff" * 100,
        new_curve_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
    ids=["empty", "text", "pem", "openssh", "bytes", "encrypted", "rsa"],
)
def test_what_is_no_key_of_a_kit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    path.chmod(0o600)
    error = refused(capsys, "show", path)
    assert "neither an unencrypted key nor a certificate" in error or "of a kind that no kit holds" in error
    for load in (load_identity, load_node_key):
        with pytest.raises(ConfigError, match="not an"):
            load(path)


def test_a_node_key_with_a_passphrase_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flower asks nobody for one."""
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("no ssh-keygen here")
    words = ["-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", str(tmp_path / "node.key")]
    subprocess.run([program, *words], check=True)
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        load_node_key(tmp_path / "node.key")
    assert "neither an unencrypted key" in refused(capsys, "show", tmp_path / "node.key")


def test_a_key_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "curve.pem", pem(new_curve_key()))
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        load_identity(tmp_path / "curve.pem")
