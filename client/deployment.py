"""A partner's `client.toml`: where the server is, how to know it, and where this partner's own worker is described."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from common.addresses import join_address, split_address
from common.config import STRICT
from common.kit import load_kit_file

_PATHS = ("ca", "node_key", "worker", "signing_key")


@dataclass(frozen=True, config=STRICT)
class ClientConfig:
    """What `hushclick client` starts from; relative paths are taken from the file's folder."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    superlink: str  # host:port of the server's Fleet API, without a scheme
    ca: str = "ca.crt"  # the consortium's own authority; no other is trusted
    node_key: str = "node.key"  # ECDSA, OpenSSH form: what the server knows this partner's connection by
    worker: str = "worker.toml"
    signing_key: str = "signing.pub"  # what the final model is signed with
    shim_user: str = ""  # another user, for all that Flower runs; needs a start as root

    def __post_init__(self) -> None:
        host, port = split_address(self.superlink, "superlink")
        object.__setattr__(self, "superlink", join_address(host, port))

    @property
    def host(self) -> str:
        """The server's host, without brackets."""
        return split_address(self.superlink, "superlink")[0]

    @property
    def port(self) -> int:
        """The server's port."""
        return split_address(self.superlink, "superlink")[1]


def load_client(path: Path) -> ClientConfig:
    """Returns the configuration in a `client.toml` with absolute paths.

    Raises:
        ConfigError: where it cannot be read, is of another kit version, or has a wrong key or value.
    """
    return load_kit_file(ClientConfig, path, _PATHS)
