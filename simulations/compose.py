"""What docker-compose.yml starts from: the kits of four example partners, filled in, each in volumes of its role's own.

`python -m simulations.compose CONFIG [--set key=value ...]` runs once, as root, without a network, before anything
else: it provisions the consortium, deals the clicks of a public log out among the partners, and hands each file to the
one user that is to read it. What is there already stays: keys are made once.
"""

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.certificates import certificate_pem, issue, new_authority, utc_now
from common.config import load_config
from common.errors import HushclickError
from common.keyfiles import new_curve_key, pem
from simulations.filled_kits import CLICKS, Example, fill_kits

PARTNERS = ("ads", "news", "shop", "video")
GATE = "proxy"  # as partners call it
SUPERLINK = "superlink"  # as the gate and the server call it
PORT = 8000
_DAYS = 365


def main(words: list[str] | None = None) -> int:
    """Fills the volumes under --volumes, or finds them filled; returns an exit code."""
    parser = argparse.ArgumentParser(prog="simulations.compose", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--volumes", type=Path, default=Path("/volumes"))
    arguments = parser.parse_args(words)
    os.umask(0o077)
    try:
        prepared = prepare(arguments.config, arguments.set, arguments.volumes)
    except HushclickError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write("kits made and clicks dealt out\n" if prepared else "prepared before; nothing is made again\n")
    return 0


def prepare(config: Path, overrides: list[str], volumes: Path) -> bool:
    """Returns whether anything was made.

    Raises:
        ConfigError: for a configuration of another number of partners, or one that cannot be deployed.
    """
    done = volumes / "server" / "prepared"
    if done.exists():
        return False
    with tempfile.TemporaryDirectory() as scratch:
        example = Example(PARTNERS, (GATE, SUPERLINK), PORT, dict.fromkeys(PARTNERS, _WORKER), _SERVER)
        kits = fill_kits(load_config(config, overrides), example, Path(scratch))
        for name in PARTNERS:
            _hand_to_partner(kits / "partners" / name, volumes, name)
        _hand_to_server(kits / "server", volumes)
    done.touch()
    return True


_WORKER: Mapping[str, Any] = {
    "clicks": f"/clicks/{CLICKS}",
    "ledger": "/state/ledger.jsonl",
    "state": "/state",
    "aggregation": {"round_secrets": "disk"},
    "worker": {"listen": "unix:/socket/worker", "group": "shim"},
}
_SERVER: Mapping[str, Any] = {
    "superlink": f"{SUPERLINK}:{PORT}",
    "run": "/server-state/run",
    "database": "/server-state/superlink.db",
}


def _hand_to_partner(kit: Path, volumes: Path, name: str) -> None:
    """Deals a kit out: clicks and identity to the worker, the node's key to the node, to the shim neither."""
    runtime, secret = kit / "runtime", secrets.token_hex(32).encode()
    _runtime_certificate(runtime, f"{name}-supernode")
    for folder in ("node", "shim"):
        (kit / folder).mkdir()
        (kit / folder / "superexec").write_bytes(secret)
        shutil.copyfile(runtime / "ca.crt", kit / folder / "runtime-ca.crt")
    for file in ("runtime.crt", "runtime.key"):
        shutil.copyfile(runtime / file, kit / "node" / file)
    for file in ("node.key", "ca.crt"):
        shutil.copyfile(kit / file, kit / "node" / file)
    worker = ("worker.toml", "card.toml", "identity.pem", "roster.toml", "signing.pub")
    _hand(volumes / f"{name}-clicks", "worker", [kit / CLICKS])
    _hand(volumes / f"{name}-kit", "worker", [kit / file for file in worker])
    _hand(volumes / f"{name}-node", "node", sorted((kit / "node").iterdir()))
    _hand(volumes / f"{name}-shim", "shim", sorted((kit / "shim").iterdir()))


def _runtime_certificate(folder: Path, host: str) -> None:
    """Makes what a SuperNode and its shim talk TLS with: an authority of this partner's own, which nobody keeps."""
    folder.mkdir()
    authority_key, key, now = new_curve_key(), new_curve_key(), utc_now()
    authority = new_authority(authority_key, host, _DAYS, now)
    certificate = issue(authority_key, authority, key.public_key(), [host], _DAYS, now)
    (folder / "ca.crt").write_bytes(certificate_pem(authority))
    (folder / "runtime.crt").write_bytes(certificate_pem(certificate))
    (folder / "runtime.key").write_bytes(pem(key))


def _hand_to_server(kit: Path, volumes: Path) -> None:
    tls = [kit / "ca.crt", kit / "server.crt", kit / "server.key"]
    (kit / "superexec").write_bytes(secrets.token_hex(32).encode())
    server = (
        "server.toml",
        "run.toml",
        "roster.toml",
        "card.toml",
        "central.parquet",
        "signing.key",
        "ca.crt",
        "nodes",
    )
    _hand(volumes / "proxy-tls", "proxy", tls)
    _hand(volumes / "superlink-tls", "superlink", [*tls, kit / "superexec"])
    _hand(volumes / "server", "server", [*(kit / name for name in server), kit / "superexec"])


def _hand(volume: Path, user: str, sources: list[Path]) -> None:
    """Copies files and folders into a volume that one user alone can read."""
    volume.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, volume / source.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, volume / source.name)
    for path in (volume, *volume.rglob("*")):
        shutil.chown(path, user, user)
        path.chmod(0o500 if path.is_dir() else 0o400)


if __name__ == "__main__":
    sys.exit(main())
