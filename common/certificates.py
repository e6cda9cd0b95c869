"""A consortium's own certificate authority, the server's certificate, and what can be wrong with them, in words.

P-384 with SHA-384 throughout: what OpenSSL, nginx and gRPC take. A certificate begins a day before it is made, so that
a partner whose clock is a little behind can use it at once.

Source: RFC 5280 (profile), RFC 9525 (a server's names stand in subjectAltName alone).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from common.addresses import as_address
from common.errors import ConfigError

SKEW = timedelta(days=1)
SOON = timedelta(days=30)  # a certificate that ends earlier is said
_LONGEST_COMMON_NAME = 64  # RFC 5280, ub-common-name


def new_authority(key: ec.EllipticCurvePrivateKey, name: str, days: int, now: datetime) -> x509.Certificate:
    """Returns the certificate of an authority that signs servers and no further authorities."""
    subject = _named(f"{name} authority"[:_LONGEST_COMMON_NAME])
    builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, SHA384())


def issue(
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    days: int,
    now: datetime,
) -> x509.Certificate:
    """Returns a server's certificate for hosts (DNS names and IP addresses); it ends no later than the authority's."""
    ends = min(now + timedelta(days=days), authority.not_valid_after_utc)
    builder = _builder(_named(hosts[0][:_LONGEST_COMMON_NAME]), authority.subject, key, now, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_name_of(host) for host in hosts]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority_key, SHA384())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
        .add_extension(identifier, critical=False)
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name_of(host: str) -> x509.DNSName | x509.IPAddress:
    address = as_address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Returns a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Returns the SHA-256 of a certificate, in hex."""
    return certificate.fingerprint(SHA256()).hex()


def load_certificate(path: Path) -> x509.Certificate:
    """Returns the one certificate in a PEM file, or raises `ConfigError`."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such certificate; it comes with the kit") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: not a certificate in PEM") from None
    if len(found) != 1:
        raise ConfigError(f"{path}: {len(found)} certificates; a kit's file holds exactly one")
    return found[0]


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the hosts that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def date_problems(certificate: x509.Certificate, what: str, now: datetime, mend: str) -> list[str]:
    """Returns, in words, where a certificate is not valid now."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return [
            f"{what} begins on {begins:%Y-%m-%d %H:%M} UTC and this clock says {now:%Y-%m-%d %H:%M}: set the clock, or"
            " the clock that it was made by was wrong"
        ]
    return [f"{what} ended on {ends:%Y-%m-%d %H:%M} UTC; {mend}"] if now > ends else []


def ends_soon(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate that is valid now ends within 30 days."""
    return now <= certificate.not_valid_after_utc < now + SOON


def authority_problems(authority: x509.Certificate, now: datetime) -> list[str]:
    """Returns, in words, what is wrong with an authority's certificate."""
    what = "the authority's certificate"
    problems = date_problems(authority, what, now, "the operator provisions a new consortium folder")
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        certifies = constraints.ca
    except x509.ExtensionNotFound:
        certifies = False
    return problems if certifies else [*problems, f"{what} is not an authority's: take ca.crt out of the kit"]


def server_problems(certificate: x509.Certificate, authority: x509.Certificate, host: str, now: datetime) -> list[str]:
    """Returns, in words, why a server's certificate is not to be trusted for a host; nothing where it is."""
    problems = date_problems(
        certificate, "the server's certificate", now, "the operator runs provision --rotate-server"
    )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        problems.append(
            "the server's certificate was not issued by this consortium's authority: another server answers, or"
            " ca.crt is another consortium's"
        )
    if host not in hosts_of(certificate):
        names = ", ".join(hosts_of(certificate)) or "no host"
        problems.append(
            f"the server's certificate is for {names}, not for {host}: mend the host, or the operator adds it under"
            " server.host and runs provision --rotate-server"
        )
    return problems or _library_problems(certificate, authority, host, now)


def _library_problems(
    certificate: x509.Certificate, authority: x509.Certificate, host: str, now: datetime
) -> list[str]:
    """Returns what a whole verification finds beyond the usual mistakes."""
    try:
        policy = PolicyBuilder().store(Store([authority])).time(now)
        policy.build_server_verifier(_name_of(host)).verify(certificate, [])
    except VerificationError as error:
        return [f"the server's certificate is refused: {error}"]
    return []


def utc_now() -> datetime:
    """Returns the moment, in UTC, in whole seconds as certificates have them."""
    return datetime.now(UTC).replace(microsecond=0)
