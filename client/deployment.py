"""A partner's `client.toml`: where the server is, how to know it, and where this partner's own worker is."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from common.addresses import UNIX, join_address, require_local, split_address
from common.config import STRICT
from common.errors import ConfigError
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
    start_worker: bool = True  # false = a worker that runs already: another container's, another service's
    worker_socket: str = ""  # where such a worker listens; unset = worker.toml says it
    worker_owner: str = ""  # name or number of the user that such a worker is; unset = the user of this command

    def __post_init__(self) -> None:
        if self.start_worker and (self.worker_socket or self.worker_owner):
            raise ConfigError(
                "worker_socket and worker_owner are of a worker that runs already: set start_worker = false, or take"
                " them out"
            )
        if self.worker_socket:
            require_local(self.worker_socket, "worker_socket")
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
    client, socket = load_kit_file(ClientConfig, path, _PATHS), ""
    if client.worker_socket.startswith(UNIX):
        socket = UNIX + str((path.resolve().parent / client.worker_socket.removeprefix(UNIX)).resolve())
    return replace(client, worker_socket=socket or client.worker_socket)
