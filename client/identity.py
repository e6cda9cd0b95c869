"""The partner's signing key on its own disk: Ed25519, PKCS #8 PEM, readable by its owner alone."""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from common.errors import ConfigError


def new_identity(path: Path) -> str:
    """Writes a new key and returns its public half, 64 hex digits.

    Raises:
        ConfigError: where a file is there already: a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already; a key is never overwritten. Move it away first") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return key.public_key().public_bytes_raw().hex()


def load_identity(path: Path) -> Ed25519PrivateKey:
    """Returns the key in a file, or raises `ConfigError`; also where others than the owner can read it."""
    try:
        mode = path.stat().st_mode
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no identity key; a partner needs one for secure aggregation") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: not an unencrypted Ed25519 key in PEM") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: mode {mode & 0o777:04o}: others can read this key; chmod 600 it")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key")
    return key
