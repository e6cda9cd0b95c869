"""The partner's signing key on its own disk: Ed25519, PKCS #8 PEM, readable by its owner alone."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.keyfiles import load_ed25519, pem, public_hex, write_private


def new_identity(path: Path) -> str:
    """Writes a new key and returns its public half, 64 hex digits.

    Raises:
        ConfigError: where a file is there already: a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    write_private(path, pem(key))
    return public_hex(key)


def load_identity(path: Path) -> Ed25519PrivateKey:
    """Returns the key in a file, or raises `ConfigError`; also where others than the owner can read it."""
    return load_ed25519(path, "no identity key; a partner needs one for secure aggregation")
