"""The kits' certificates in real handshakes: OpenSSL takes this authority's and no other's, for these hosts, now."""

import shutil
import socket
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from kits import Operator, consortium
from loopback import serving

from common.certificates import (
    authority_problems,
    certificate_pem,
    hosts_of,
    issue,
    load_certificate,
    new_authority,
    server_problems,
    utc_now,
)
from common.errors import ConfigError
from common.keyfiles import new_curve_key


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    one = Operator(tmp_path, capsys)
    one.provision(consortium())
    return one


def handshake(port: int, authority: Path | None, host: str) -> None:
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        assert connection.version() == "TLSv1.3"


def test_a_partner_shakes_hands_with_its_own_server_and_no_other(operator: Operator, tmp_path: Path) -> None:
    server, authority = operator.kits / "server", operator.partner("shop-b") / "ca.crt"
    foreign = tmp_path / "foreign.crt"
    foreign.write_bytes(certificate_pem(new_authority(new_curve_key(), "Example ads", 10, utc_now())))
    with serving(server / "server.crt", server / "server.key") as port:
        for host in ("localhost", "127.0.0.1"):
            handshake(port, authority, host)
        with pytest.raises(ssl.SSLCertVerificationError, match=r"Hostname mismatch|not valid for"):
            handshake(port, authority, "example.org")
        with pytest.raises(ssl.SSLCertVerificationError, match=r"IP address mismatch|not valid for"):
            handshake(port, authority, "127.0.0.2")
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            handshake(port, foreign, "localhost")
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            handshake(port, None, "localhost")  # what the machine trusts


def test_openssl_finds_the_chain_sound(operator: Operator) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    words = ["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost"]
    done = subprocess.run(
        [openssl, *words, "-CAfile", operator.kits / "ca" / "ca.crt", operator.kits / "server" / "server.crt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_authority_certifies_servers_and_no_authorities(operator: Operator) -> None:
    found = load_certificate(operator.kits / "ca" / "ca.crt")
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = found.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    server = load_certificate(operator.kits / "server" / "server.crt")
    assert hosts_of(server) == ("localhost", "127.0.0.1")
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert server.serial_number.bit_length() > 64
    now = utc_now()
    for certificate in (found, server):
        assert timedelta(hours=23) < now - certificate.not_valid_before_utc < timedelta(hours=25)
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        assert certificate.public_key().curve.name == "secp384r1"


def test_a_server_outlives_no_authority() -> None:
    key, now = new_curve_key(), utc_now()
    authority = new_authority(key, "x", 30, now)
    server = issue(key, authority, new_curve_key().public_key(), ["localhost"], 365, now)
    assert server.not_valid_after_utc == authority.not_valid_after_utc == now + timedelta(days=30)


def test_problems_are_said_and_agree_with_an_independent_verifier() -> None:
    key, other, now = new_curve_key(), new_curve_key(), utc_now()
    authority, foreign = new_authority(key, "x", 100, now), new_authority(other, "x", 100, now)
    server = issue(key, authority, new_curve_key().public_key(), ["a.example", "::1"], 50, now)
    assert server_problems(server, authority, "a.example", now) == []
    assert server_problems(server, authority, "::1", now) == []
    for host in ("b.example", "sub.a.example", "127.0.0.1"):
        assert "is for a.example, ::1, not for" in server_problems(server, authority, host, now)[0]
    assert "another server answers" in server_problems(server, foreign, "a.example", now)[0]
    early, late = now - timedelta(days=2), now + timedelta(days=51)
    assert "set the clock" in server_problems(server, authority, "a.example", early)[0]
    assert "provision --rotate-server" in server_problems(server, authority, "a.example", late)[0]
    assert "not an authority's" in authority_problems(server, now)[0]
    assert authority_problems(authority, now) == []
    # A certificate that its authority's key signed, and that is not for servers: the library refuses what we allow.
    client = _for_clients(key, authority, server)
    assert "is refused" in server_problems(client, authority, "a.example", now)[0]


def _for_clients(
    key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, server: x509.Certificate
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        issuer_name=authority.subject,
        subject_name=server.subject,
        public_key=server.public_key(),
        serial_number=7,
        not_valid_before=server.not_valid_before_utc,
        not_valid_after=server.not_valid_after_utc,
    )
    for extension in server.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(key, server.signature_hash_algorithm)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.crt").write_bytes(text)
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        load_certificate(tmp_path / "x.crt")
    with pytest.raises(ConfigError, match="no such certificate"):
        load_certificate(tmp_path / "y.crt")


def test_a_bundle_is_refused(tmp_path: Path, operator: Operator) -> None:
    """A second authority in the file would be trusted as well."""
    one = (operator.kits / "ca" / "ca.crt").read_bytes()
    (tmp_path / "two.crt").write_bytes(one + one)
    with pytest.raises(ConfigError, match="2 certificates"):
        load_certificate(tmp_path / "two.crt")
