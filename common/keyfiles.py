"""Keys on disk: written once, readable by their owner alone, and never overwritten.

| key | algorithm | private file | public half |
|---|---|---|---|
| identity, signing | Ed25519 | PKCS #8 PEM | 64 hex digits; `signing.pub`: PEM |
| node | ECDSA P-384 | OpenSSH, the one format that Flower's SuperNode reads | OpenSSH line |
| authority, server | ECDSA P-384 | PKCS #8 PEM | in its certificate |
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from common.errors import ConfigError

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

# Flower takes any NIST curve; the two that nobody should use any more are left out.
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def new_curve_key() -> ec.EllipticCurvePrivateKey:
    """Returns a new P-384 key: what Flower, OpenSSL, nginx and gRPC all take."""
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: PrivateKey) -> bytes:
    """Returns a private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns a private node key as an unencrypted OpenSSH file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_hex(key: Ed25519PrivateKey) -> str:
    """Returns the public half of an Ed25519 key, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def public_line(key: ec.EllipticCurvePublicKey) -> str:
    """Returns a public node key as one OpenSSH line, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def public_pem(public_hex: str) -> bytes:
    """Returns an Ed25519 public key, given in hex, as PEM."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def line_fingerprint(line: str) -> str:
    """Returns the fingerprint of an OpenSSH line as `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def parse_node_line(text: str, key: str) -> str:
    """Returns a public node key in OpenSSH form without its comment, or raises `ConfigError` that names the key."""
    try:
        public = load_ssh_public_key(" ".join(text.split()[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, _CURVES):
        raise ConfigError(
            f"{key}: not an ECDSA public key in OpenSSH form (ecdsa-sha2-nistp384 AAAA...), the only kind that Flower"
            " takes; `hushclick keys new` makes one"
        )
    return public_line(public)


def write_private(path: Path, data: bytes) -> None:
    """Writes a private key, mode 0600, to disk.

    Raises:
        ConfigError: where a file is there already: a key is never overwritten.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already; a key is never overwritten. Move it away first") from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_private(path: Path, data: bytes) -> Path:
    """Puts a new private key in the place of an old one, and returns where the old one lies now.

    At no moment is there no key: the new one is written beside the old one and then takes its name.

    Raises:
        ConfigError: where an earlier replacement was interrupted.
    """
    beside = path.with_name(f"{path.name}.new")
    if beside.exists():
        raise ConfigError(
            f"{beside}: left by a rotation that was interrupted, and never announced; delete it, then rotate again"
        )
    write_private(beside, data)
    path.chmod(0o600)
    old = _spare_name(path)
    beside.replace(path)
    return old


def retire(path: Path) -> Path:
    """Moves a key to `NAME.old` (or `.old.2` ...), mode 0600, and returns where it lies now; none is overwritten."""
    path.chmod(0o600)
    old = _spare_name(path)
    path.unlink()
    return old


def _spare_name(path: Path) -> Path:
    """Gives a file a second name that nobody has yet, and returns it."""
    number = 1
    while True:
        old = path.with_name(f"{path.name}.old" + (f".{number}" if number > 1 else ""))
        try:
            os.link(path, old)
        except FileExistsError:
            number += 1
        else:
            return old


def load_ed25519(path: Path, missing: str) -> Ed25519PrivateKey:
    """Returns an Ed25519 key from PKCS #8 PEM.

    Raises:
        ConfigError: where it is not there (saying `missing`), is not such a key, or others than its owner can read it.
    """
    data = read_private(path, missing)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not an unencrypted Ed25519 key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key")
    return key


def load_curve_key(path: Path, missing: str) -> ec.EllipticCurvePrivateKey:
    """Returns an ECDSA key from PKCS #8 PEM; raises like `load_ed25519`."""
    data = read_private(path, missing)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not an unencrypted ECDSA key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: not an ECDSA key")
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Returns a node key from its OpenSSH file; raises like `load_ed25519`."""
    data = read_private(path, "no node key; a partner needs one to reach the server")
    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not an unencrypted private key in OpenSSH form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise ConfigError(f"{path}: not an ECDSA key, the only kind that Flower takes; `hushclick keys new` makes one")
    return key


def load_signing_public(path: Path) -> Ed25519PublicKey:
    """Returns the public half of the server's signing key (PEM), or raises `ConfigError`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; it came with the kit, ask the operator for it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: not an Ed25519 public key")
    return key


def read_private(path: Path, missing: str) -> bytes:
    """Returns what is in a private file, or raises `ConfigError`; also where others than its owner can read it."""
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read()
    except FileNotFoundError:
        raise ConfigError(f"{path}: {missing}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: mode {mode & 0o777:04o}: others can read this key; chmod 600 it")
    return data
