"""Keys and certificates of a consortium: each is made once, and replaced only where that was asked for.

```
ca/ca.key ca.crt   server/server.key server.crt ca.crt signing.key   partners/NAME/node.key identity.pem
```
"""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.certificates import (
    certificate_fingerprint,
    certificate_pem,
    issue,
    load_certificate,
    new_authority,
)
from common.errors import ConfigError
from common.keyfiles import (
    load_curve_key,
    load_ed25519,
    load_node_key,
    new_curve_key,
    openssh,
    pem,
    public_hex,
    public_line,
    replace_private,
    retire,
    write_private,
)
from common.runfolder import write_atomically
from server.provision.consortium import Consortium, Partner
from server.provision.record import Issued, KeyName, Keys

_ELSEWHERE = "was issued and is not here; bring it back"


@dataclass(frozen=True)
class Place:
    """Where the keys of a consortium lie."""

    root: Path

    @property
    def authority_key(self) -> Path:
        """The operator's alone."""
        return self.root / "ca" / "ca.key"

    @property
    def authority(self) -> Path:
        """Certificate of the authority."""
        return self.root / "ca" / "ca.crt"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.root / "server"

    @property
    def record(self) -> Path:
        """What was issued."""
        return self.root / "issued.json"

    def partner(self, name: str) -> Path:
        """The kit of one partner."""
        return self.root / "partners" / name


def authority(place: Place, consortium: Consortium, issued: Issued, now: datetime) -> x509.Certificate:
    """Returns the consortium's authority, made where there is none.

    Raises:
        ConfigError: where the one that issued before is gone or was replaced.
    """
    if issued.authority:
        found = load_certificate(place.authority)
        if certificate_fingerprint(found) != issued.authority:
            raise ConfigError(
                f"{place.authority}: not the authority that issued these kits ({issued.authority[:16]}): restore it, or"
                " provision into a new folder and hand out every kit again"
            )
        return found
    place.authority.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.authority_key.exists():  # an earlier run was stopped between key and certificate
        key = load_curve_key(place.authority_key, _ELSEWHERE)
    else:
        key = new_curve_key()
        write_private(place.authority_key, pem(key))
    certificate = new_authority(key, consortium.name, consortium.authority_days, now)
    write_atomically(place.authority, certificate_pem(certificate))
    return certificate


def server_certificate(
    place: Place, consortium: Consortium, signer: x509.Certificate, issued: Issued, now: datetime, *, rotate: bool
) -> Issued:
    """Returns the record with the server's key and certificate made; as it was where there is one and `rotate` is off.

    Raises:
        ConfigError: where the authority's key, which signs, is not here.
    """
    if issued.certificate and not rotate:
        _require_pair(place)
        return issued
    signing = load_curve_key(place.authority_key, f"{_ELSEWHERE}: it signs the server's certificate")
    if signing.public_key() != signer.public_key():
        raise ConfigError(f"{place.authority_key}: not the key of {place.authority}; restore it from a backup")
    path = place.server / "server.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    key = new_curve_key()
    if path.exists() and rotate and issued.certificate:
        replace_private(path, pem(key))
    elif path.exists():  # an earlier run was stopped between key and certificate
        key = load_curve_key(path, _ELSEWHERE)
    else:
        write_private(path, pem(key))
    certificate = issue(signing, signer, key.public_key(), consortium.server.certified, consortium.days, now)
    write_atomically(place.server / "server.crt", certificate_pem(certificate))
    return replace(issued, certificate=certificate_fingerprint(certificate))


def _require_pair(place: Place) -> None:
    """Raises `ConfigError` where the server's key is not its certificate's: a rotation was stopped between the two."""
    key, certificate = place.server / "server.key", place.server / "server.crt"
    if not (key.exists() and certificate.exists()):  # moved to the server
        return
    if load_curve_key(key, _ELSEWHERE).public_key() != load_certificate(certificate).public_key():
        raise ConfigError(f"{key}: not the key of {certificate}: put the right one back, or --rotate-server makes both")


def signing_key(place: Place, issued: Issued, *, rotate: bool) -> Issued:
    """Returns the record with the key that signs the final model made; as it was where there is one."""
    path = place.server / "signing.key"
    if issued.signing and not rotate:
        if path.exists() and public_hex(load_ed25519(path, _ELSEWHERE)) != issued.signing:
            raise ConfigError(
                f"{path}: another key than the one that was issued: put the right one back, such as {path.name}.old, or"
                " replace it on purpose (--rotate-signing)"
            )
        return issued
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not issued.signing:
        return replace(issued, signing=public_hex(load_ed25519(path, _ELSEWHERE)))
    key = Ed25519PrivateKey.generate()
    if path.exists():
        replace_private(path, pem(key))
    else:
        write_private(path, pem(key))
    return replace(issued, signing=public_hex(key))


def partner_keys(place: Place, partner: Partner, before: Keys | None, *, rotate: bool) -> Keys:
    """Returns the public halves of one partner's keys; makes those that the partner did not make itself.

    Raises:
        ConfigError: where a key in the kit is another than the one that was issued.
    """
    found: dict[KeyName, str] = {}
    made: list[KeyName] = []
    for name, public in given_keys(partner).items():
        path = key_path(place, partner.name, name)
        ours = before is None or name in before.made_here
        if public is not None:
            if path.exists():  # the partner has made its own by now
                retire(path)
            found[name] = public
        elif before is not None and not (rotate and ours):
            found[name] = before.public(name)
            _require_same(path, name, found[name], partner.name)
        else:
            found[name] = _made(path, name, replaces=before is not None)
        if public is None and ours:
            made.append(name)
    return Keys(found["identity"], found["node"], tuple(made))


def given_keys(partner: Partner) -> dict[KeyName, str | None]:
    """Returns the public halves that a partner sent of its own keys; None = made here."""
    return {"identity": partner.identity_public_key, "node": partner.node_public_key}


def _require_same(path: Path, name: KeyName, public: str, partner: str) -> None:
    if path.exists() and _public_of(path, name) != public:
        raise ConfigError(
            f"{path}: another key than the one that was issued: put the right one back, such as {path.name}.old, or"
            f" replace it on purpose (--rotate {partner})"
        )


def _public_of(path: Path, name: KeyName) -> str:
    return (
        public_hex(load_ed25519(path, _ELSEWHERE))
        if name == "identity"
        else public_line(load_node_key(path).public_key())
    )


def key_path(place: Place, partner: str, name: KeyName) -> Path:
    """Returns where a partner's private key lies in its kit."""
    return place.partner(partner) / ("identity.pem" if name == "identity" else "node.key")


def _made(path: Path, name: KeyName, *, replaces: bool) -> str:
    """Returns the public half of a new key, or of the one that an earlier run made and did not write down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not replaces:
        return _public_of(path, name)
    data, public = _new(name)
    if path.exists():
        replace_private(path, data)
    else:
        write_private(path, data)
    return public


def _new(name: KeyName) -> tuple[bytes, str]:
    if name == "identity":
        identity = Ed25519PrivateKey.generate()
        return pem(identity), public_hex(identity)
    node: ec.EllipticCurvePrivateKey = new_curve_key()
    return openssh(node), public_line(node.public_key())
