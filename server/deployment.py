"""The operator's `server.toml`: what `hushclick server` starts from."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from common.addresses import checked_host, split_address
from common.config import STRICT
from common.kit import load_kit_file

_PATHS = (
    *("config", "roster", "run", "certificate", "key", "ca", "signing_key", "nodes"),
    *("clicks", "card", "catalogue", "database", "log", "registry"),
)


@dataclass(frozen=True, config=STRICT)
class ServerDeployment:
    """What the coordinator of a deployment is made of; relative paths are taken from the file's folder."""

    clicks: str = ""  # held-out clicks of the central evaluation, CSV or Parquet; no partner's; unset = there are none
    card: str = ""  # data card of these clicks
    catalogue: str = ""  # JSON, item -> category: the public list of items that model.item_rates needs
    config: str = "run.toml"  # the run's configuration
    roster: str = "roster.toml"  # the same at every partner
    run: str = "run"  # run folder: made at the first start, gone on with at the next
    superlink: str = ""  # host:port of a SuperLink that others keep behind a gate of theirs; unset = both start here
    host: str = "127.0.0.1"  # that the gate listens at, for partners; 0.0.0.0 = on all interfaces
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    certificate: str = "server.crt"
    key: str = "server.key"
    ca: str = "ca.crt"
    signing_key: str = "signing.key"  # signs the final model; Ed25519, PEM
    nodes: str = "nodes"  # NAME.pub per partner; whose file is gone is taken off the list
    database: str = "superlink.db"
    log: str = "superlink.log"
    log_days: Annotated[int, Field(ge=1, le=3660)] = 30  # that what is turned of it by day is kept
    registry: str = ""  # folder of model versions that the final model is put into; unset = none

    def __post_init__(self) -> None:
        if self.superlink:
            split_address(self.superlink, "superlink")
        object.__setattr__(self, "host", checked_host(self.host, "host"))


def load_deployment(path: Path) -> ServerDeployment:
    """Returns the deployment in a `server.toml` with absolute paths.

    Raises:
        ConfigError: where it cannot be read, is of another kit version, or has a wrong key or value.
    """
    return load_kit_file(ServerDeployment, path, _PATHS)


def node_keys(deployment: ServerDeployment) -> dict[str, Path]:
    """Returns partner -> the file of its public node key, in name order: all that the SuperLink is to know."""
    return {path.stem: path for path in sorted(Path(deployment.nodes).glob("*.pub"))}
