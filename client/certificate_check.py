"""The part of a partner's preflight that is about certificates and the node key: each a pair of ok and a line."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from client.deployment import ClientConfig
from common.certificates import authority_problems, ends_soon, load_certificate, server_problems, utc_now
from common.errors import ConfigError, HushclickError
from common.keyfiles import line_fingerprint, load_node_key, load_signing_public, parse_node_line, public_line

Line = tuple[bool, str]

_MOST_SKEW_SECONDS = 240  # Flower refuses a node whose clock is 5 minutes off; what is close to that is said
_HEAD = b"HEAD / HTTP/1.1\r\nHost: hushclick\r\nConnection: close\r\n\r\n"


def check_certificates(config: ClientConfig, *, connect: bool = True, seconds: float = 5.0) -> list[Line]:
    """Returns a line for the authority, the node key, the signing key and, with `connect`, for the server that answers.

    Args:
        config: the partner's.
        connect: whether the server is asked for its certificate and its clock; nothing else is sent to it.
        seconds: to wait for the server.
    """
    looks: list[Callable[[ClientConfig], str]] = [_authority, _node_key, _signing_key]
    lines = [_line(look, config) for look in looks]
    return lines + (_server(config, seconds) if connect and lines[0][0] else [])


def _line(look: Callable[[ClientConfig], str], config: ClientConfig) -> Line:
    try:
        return True, look(config)
    except HushclickError as error:
        return False, "; ".join(str(error).splitlines())


def _authority(config: ClientConfig) -> str:
    found = load_certificate(Path(config.ca))
    problems = authority_problems(found, utc_now())
    if problems:
        raise ConfigError(f"{config.ca}: {'; '.join(problems)}")
    return f"authority: valid until {found.not_valid_after_utc:%Y-%m-%d}{_soon(found)}"


def _node_key(config: ClientConfig) -> str:
    path = Path(config.node_key)
    line = public_line(load_node_key(path).public_key())
    beside = path.with_suffix(".pub")
    if beside.exists():
        try:
            told = parse_node_line(beside.read_text(encoding="utf-8"), str(beside))
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{beside}: cannot be read as a public key; take it out of the kit again") from None
        if told != line:
            raise ConfigError(
                f"{path}: not the private half of {beside}, which the server has ({line_fingerprint(told)}): put the"
                " right key there, or send the operator the public half of this one"
            )
    return f"node key: {line_fingerprint(line)}, its owner's alone"


def _signing_key(config: ClientConfig) -> str:
    found = load_signing_public(Path(config.signing_key))
    return f"signing key of the server: {found.public_bytes_raw().hex()[:12]}"


def _server(config: ClientConfig, seconds: float) -> list[Line]:
    """Returns a line for the certificate that the server shows, and one for its clock."""
    authority, problems = load_certificate(Path(config.ca)), []
    try:
        shown = _shown(config, seconds)
        problems = server_problems(shown, authority, config.host, utc_now())
        if problems:
            return [(False, f"{config.superlink}: {'; '.join(problems)}")]
        clock = _clock(config, seconds)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        return [(False, f"{config.superlink}: no TLS connection: {reason}; is it the server's port?")]
    except OSError as error:
        reason = error.strerror or str(error)
        return [(False, f"{config.superlink}: not reached: {reason}; mend superlink, or ask the operator")]
    until = f"{shown.not_valid_after_utc:%Y-%m-%d}{_soon(shown)}"
    return [(True, f"server {config.superlink}: its certificate is this authority's, valid until {until}"), *clock]


def _shown(config: ClientConfig, seconds: float) -> x509.Certificate:
    """Returns the certificate that the server shows, trusted or not: only looked at, nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _connected(config, context, seconds) as connection:
        shown = connection.getpeercert(binary_form=True)
    if shown is None:
        raise ssl.SSLError("the server shows no certificate")
    return x509.load_der_x509_certificate(shown)


def _clock(config: ClientConfig, seconds: float) -> list[Line]:
    """Returns a line on this machine's clock beside the server's, over a connection that was verified; none unsaid."""
    context = ssl.create_default_context(cafile=config.ca)
    with _connected(config, context, seconds) as connection:
        connection.sendall(_HEAD)
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < 65_536 and (more := connection.recv(4096)):
            answer += more
    for header in answer.split(b"\r\n"):
        if header.lower().startswith(b"date:"):
            with contextlib.suppress(ValueError, TypeError):
                theirs = parsedate_to_datetime(header[5:].decode("ascii", "replace").strip())
                return [_skew((datetime.now(UTC) - theirs).total_seconds())]
    return []


def _skew(skew: float) -> Line:
    if abs(skew) > _MOST_SKEW_SECONDS:
        where = "ahead of" if skew > 0 else "behind"
        return False, f"clock: {abs(skew):.0f} s {where} the server's, at most {_MOST_SKEW_SECONDS}: set the clock"
    return True, f"clock: within {max(1.0, abs(skew)):.0f} s of the server's"


@contextlib.contextmanager
def _connected(config: ClientConfig, context: ssl.SSLContext, seconds: float) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((config.host, config.port), timeout=seconds) as plain,
        context.wrap_socket(plain, server_hostname=config.host) as connection,
    ):
        yield connection


def _soon(certificate: x509.Certificate) -> str:
    return "; it ends soon, tell the operator" if ends_soon(certificate, utc_now()) else ""
