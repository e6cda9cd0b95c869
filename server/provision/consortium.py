"""What the operator says of a consortium: its run, its server's hosts, and its partners with the keys they made."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from common.addresses import checked_host
from common.config import STRICT, Positive, parse_table, read_toml
from common.errors import ConfigError
from common.keyfiles import parse_node_line
from common.kit import KIT_VERSION

_LONGEST_NAME = 64  # of a partner: it names folders and files


def _as_tuple(value: Any) -> Any:
    """Returns one host, or a list of them, as a tuple, and anything else as it is."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=STRICT)
class Server:
    """Where partners find the server. The first host is what their kits say; the certificate is for all of them."""

    host: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000

    def __post_init__(self) -> None:
        hosts = tuple(checked_host(host, "server.host") for host in self.host)
        object.__setattr__(self, "host", tuple(dict.fromkeys(hosts)))

    @property
    def certified(self) -> tuple[str, ...]:
        """What the certificate is for: these hosts, and loopback, where the SuperLink listens behind the gate."""
        return tuple(dict.fromkeys((*self.host, "localhost", "127.0.0.1")))


@dataclass(frozen=True, config=STRICT)
class Partner:
    """One partner: its public size, and the public halves of the keys that it made itself."""

    name: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    declared_users: Positive  # published; its weight
    identity_public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # Ed25519; unset = made here
    node_public_key: str | None = None  # ECDSA, OpenSSH form; unset = made here

    def __post_init__(self) -> None:
        if self.node_public_key is not None:
            line = parse_node_line(self.node_public_key, f"partners.{self.name}.node_public_key")
            object.__setattr__(self, "node_public_key", line)


@dataclass(frozen=True, config=STRICT)
class Consortium:
    """The whole of `consortium.toml`; the path of the run is taken from the file's folder."""

    name: Annotated[str, Field(min_length=1, max_length=48, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    run: str  # configuration of the run that the server will do
    server: Server
    partners: Annotated[tuple[Partner, ...], Field(min_length=1)]
    kit: Annotated[int, Field(ge=KIT_VERSION, le=KIT_VERSION)] = KIT_VERSION
    days: Annotated[int, Field(ge=1, le=825)] = 365  # of the server's certificate
    authority_days: Annotated[int, Field(ge=1, le=7_300)] = 3_650

    def __post_init__(self) -> None:
        problems = []
        for what, values in (
            ("name", [partner.name.casefold() for partner in self.partners]),  # also on disks that fold case
            ("identity_public_key", [partner.identity_public_key for partner in self.partners]),
            ("node_public_key", [partner.node_public_key for partner in self.partners]),
        ):
            given = [value for value in values if value is not None]
            twice = sorted({value for value in given if given.count(value) > 1})
            problems += [f"partners: the {what} {value} is there twice; every partner needs its own" for value in twice]
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def names(self) -> tuple[str, ...]:
        """The partners' names, in order."""
        return tuple(sorted(partner.name for partner in self.partners))


def load_consortium(path: Path) -> Consortium:
    """Returns the consortium in a TOML file, or raises `ConfigError`."""
    table = read_toml(path)
    if isinstance(table.get("run"), str):
        table["run"] = str((path.resolve().parent / Path(table["run"]).expanduser()).resolve())
    return parse_table(Consortium, table)
