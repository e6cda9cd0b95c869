"""Keys of a round: X25519 agreement, HKDF, signatures and boxes, each under a label and a hash of its own.

All randomness is an argument: `os.urandom` in production, a fixed source in test vectors.

Source: RFC 7748 (X25519), RFC 5869 (HKDF-SHA-256), RFC 8032 (Ed25519), SP 800-38D (AES-256-GCM).
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ProtocolError
from common.secagg.transcript import Part, digest

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16

# One key seals one box, so its nonce can be fixed.
_NONCE = bytes(12)

# Scalars are multiples of the cofactor, so that a key of low order is found with any of them.
_ANY_SECRET = X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))

Random = Callable[[int], bytes]


def public_key(secret: bytes) -> bytes:
    """Returns the X25519 public key of a 32-byte secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def load_secret(secret: bytes) -> X25519PrivateKey:
    """Returns a secret ready for many agreements; loading one costs as much as an agreement."""
    return X25519PrivateKey.from_private_bytes(secret)


def agree(secret: bytes | X25519PrivateKey, peer: bytes) -> bytes:
    """Returns the X25519 shared secret, 32 bytes.

    Raises:
        ProtocolError: for a peer key of low order, which would give a secret that everyone knows.
    """
    try:
        loaded = load_secret(secret) if isinstance(secret, bytes) else secret
        return loaded.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise ProtocolError("a public key of low order or of a wrong length") from None


def require_good_key(peer: bytes, what: str) -> None:
    """Raises `ProtocolError`, naming `what`, for a public key of low order."""
    try:
        agree(_ANY_SECRET, peer)
    except ProtocolError as error:
        raise ProtocolError(f"{what}: {error}") from None


def derive(secret: bytes, salt: bytes, *info: Part) -> bytes:
    """Returns a 32-byte key: HKDF-SHA-256 with a salt, its info being the digest of a label and numbers."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=digest("hkdf", *info)).derive(secret)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Returns an AES-256-GCM box, 16 bytes longer than its content; a key seals one box."""
    return AESGCM(key).encrypt(_NONCE, plaintext, associated)


def open_box(key: bytes, box: bytes, associated: bytes, what: str = "box") -> bytes:
    """Returns a box's content; raises `ProtocolError` for one that was altered or is for another place."""
    try:
        return AESGCM(key).decrypt(_NONCE, box, associated)
    except InvalidTag:
        raise ProtocolError(f"{what}: does not open: altered, or of another round, sender or recipient") from None


def sign(identity: Ed25519PrivateKey, label: str, *parts: Part) -> bytes:
    """Returns the Ed25519 signature over the digest of a label and parts, 64 bytes."""
    return identity.sign(digest(label, *parts))


def verify(key: bytes, signature: bytes, what: str, label: str, *parts: Part) -> None:
    """Raises `ProtocolError`, naming `what`, unless the signature over the label and parts is good."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, digest(label, *parts))
    except (InvalidSignature, ValueError):
        raise ProtocolError(f"{what}: its signature is not that of the roster's key over this round") from None
