"""Hosts and `host:port`, as certificates and Flower take them: DNS names in ASCII, IPv4, IPv6 (in brackets)."""

import ipaddress
import re

from common.errors import ConfigError

UNIX = "unix:"  # of a socket's path, as gRPC writes it

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_LONGEST = 253


def checked_host(text: str, key: str) -> str:
    """Returns a host in lower case, an address in its usual form, or raises `ConfigError` that names the key."""
    address = as_address(text)
    if address is not None:
        return str(address)
    host = text.lower()
    labels = host.split(".")
    if len(host) > _LONGEST or not all(_LABEL.match(label) for label in labels) or labels[-1].isdigit():
        raise ConfigError(
            f"{key} = {text!r}: not a host; give a DNS name in ASCII (no wildcard, no scheme, no port) or an IP address"
        )
    return host


def as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the IP address that a host is, or None for a name."""
    if "%" in host:  # a scope is one machine's own
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def split_address(text: str, key: str) -> tuple[str, int]:
    """Returns host and port of `host:port` (IPv6: `[host]:port`), or raises `ConfigError` that names the key."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or (bare == host and ":" in host):
        raise ConfigError(f"{key} = {text!r}: expected host:port, such as hushclick.example.org:8000 or [::1]:8000")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ConfigError(f"{key} = {text!r}: the port must be from 1 to 65535")
    return checked_host(bare, key), int(port)


def join_address(host: str, port: int) -> str:
    """Returns `host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_local(text: str, key: str) -> None:
    """Refuses what is neither `unix:PATH` nor `HOST:PORT` on loopback with a `ConfigError` that names the key."""
    if text.startswith(UNIX) and len(text) > len(UNIX):
        return
    host, _ = split_address(text, key)
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f'{key} = "{text}": a worker listens on this machine only: unix:PATH')
