"""What a key or certificate file holds, in words that two people can compare; never a private half."""

from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from common.certificates import certificate_fingerprint, date_problems, hosts_of, utc_now
from common.errors import ConfigError
from common.keyfiles import line_fingerprint, public_line

_MOST_BYTES = 65_536


def describe(path: Path) -> dict[str, Any]:
    """Returns what a file holds: kind, public half, fingerprint, dates; `ok` is False where something must be mended.

    Raises:
        ConfigError: for a file that is missing, encrypted, or neither a key nor a certificate.
    """
    data = _read(path)
    if data.startswith(b"-----BEGIN CERTIFICATE-----"):
        return {"file": str(path)} | _certificate(data, path)
    try:
        private, public = _key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: neither an unencrypted key nor a certificate, in PEM or OpenSSH form") from None
    mode = path.stat().st_mode & 0o777
    facts = {"file": str(path)} | _public(public, path, "private" if private else "public")
    if private and mode & 0o077:
        return facts | {"ok": False, "mend": f"mode {mode:04o}: others can read this key; chmod 600 it"}
    return facts | {"ok": True}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _key(data: bytes) -> tuple[bool, object]:
    """Returns whether a key is private, and its public half."""
    if data.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"):
        return True, load_ssh_private_key(data, password=None).public_key()
    if data.startswith(b"-----BEGIN PUBLIC KEY-----"):
        return False, load_pem_public_key(data)
    if data.startswith(b"-----BEGIN"):
        return True, load_pem_private_key(data, password=None).public_key()
    return False, load_ssh_public_key(data)


def _public(public: object, path: Path, half: str) -> dict[str, Any]:
    if isinstance(public, Ed25519PublicKey):
        return {"kind": f"{half} Ed25519 key", "public_key": public.public_bytes_raw().hex()}
    if isinstance(public, ec.EllipticCurvePublicKey):
        line = public_line(public)
        kind = f"{half} ECDSA key ({public.curve.name})"
        return {"kind": kind, "public_key": line, "fingerprint": line_fingerprint(line)}
    raise ConfigError(f"{path}: a key of a kind that no kit holds; a kit's keys are Ed25519 and ECDSA")


def _certificate(data: bytes, path: Path) -> dict[str, Any]:
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{path}: not a certificate in PEM") from None
    problems = date_problems(certificate, "the certificate", utc_now(), "the operator issues a new one")
    facts = {
        "kind": "certificate",
        "subject": certificate.subject.rfc4514_string(),
        "hosts": list(hosts_of(certificate)),
        "begins": f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
        "ends": f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        "sha256": certificate_fingerprint(certificate),
        "ok": not problems,
    }
    return facts | ({"mend": "; ".join(problems)} if problems else {})
