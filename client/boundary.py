"""Whether the system keeps what Flower runs apart from the partner's data: a boundary of users, or none."""

import os
import pwd

from client.deployment import ClientConfig


def boundary(client: ClientConfig) -> tuple[bool, str]:
    """Returns whether the boundary is there, when `hushclick client` is started by this user, and what makes it so."""
    own = pwd.getpwuid(os.getuid()).pw_name
    if not client.shim_user:
        return False, _none("shim_user in client.toml is unset", own)
    if os.getuid() != 0:
        return False, _none("only root can start what Flower runs as another user", own)
    try:
        other = pwd.getpwnam(client.shim_user).pw_uid
    except KeyError:
        return False, _none(f"shim_user = {client.shim_user!r} is no user of this machine", own)
    if other == os.getuid():
        return False, _none(f"shim_user = {client.shim_user!r} is the worker's own user", own)
    return True, f"what Flower runs is user {client.shim_user}, the worker is {own}"


def _none(why: str, own: str) -> str:
    return (
        f"NO BOUNDARY, {why}: what Flower runs would be user {own} and could read the partner's data; start"
        " `hushclick client` as root with shim_user set, or use containers"
    )
