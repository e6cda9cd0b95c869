"""Whether the system keeps what Flower runs apart from the partner's data: a boundary of users, or none."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

from client.deployment import ClientConfig
from client.partner import PartnerConfig
from client.rpc.asking import user_number
from common.errors import HushclickError

_LOOK_SECONDS = 60.0
_OPEN = (
    'for path; do if [ -r "$path" ]; then printf "%s\\0" "$path"; fi; done; printf "\\0"; '
    'for path; do if [ -w "$path" ] || [ -w "${path%/*}" ]; then printf "%s\\0" "$path"; fi; done'
)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}  # and nothing of root's: the shim's user can read it while this runs


def boundary(client: ClientConfig, partner: PartnerConfig | None) -> tuple[bool, str]:
    """Returns whether the boundary is there, when `hushclick client` is started by this user, and what makes it so.

    Args:
        client: the partner's `client.toml`.
        partner: its `worker.toml`, so that its files are tried as the shim's user; None where it is not at hand.
    """
    try:
        worker = user_number(client.worker_owner)
    except HushclickError as error:
        return False, _none(str(error), os.getuid())
    shim, why = _shim(client)
    if shim == worker:
        return False, _none(why or _same(client), shim)
    if shim == 0:
        return False, _none(why or "root reads every file", shim)
    files = _private_files(client, partner) if partner else ()
    told = _told_files(client, partner) if partner else ()
    if files and (open_ := _open_to(files, told, shim)):
        mend = f"chmod 700 on a folder above them, or chmod go= on each; {_name(shim)} needs the socket alone"
        return False, _none(f"{_name(shim)} can {open_} ({mend})", shim)
    tried = f"; {_name(shim)} can read none of the partner's {len(files)} files" if files else ""
    return True, f"what Flower runs is user {_name(shim)}, the worker is {_name(worker)}{tried}"


def _private_files(client: ClientConfig, partner: PartnerConfig) -> tuple[str, ...]:
    """Returns what is there of all that is the worker's alone, the folder of its log and audit log among it."""
    overlap = partner.overlap
    paths = [
        *(partner.clicks, partner.ledger, partner.identity, partner.state, f"{partner.state}/audit.jsonl"),
        *(client.worker, client.node_key, overlap.identifiers, overlap.secret),
    ]
    return _there(paths)


def _told_files(client: ClientConfig, partner: PartnerConfig) -> tuple[str, ...]:
    """Returns what is there of all that the worker and the client believe: who changes it changes the policy."""
    own = Path(client.worker).with_name("client.toml")  # a kit has both in one folder
    paths = (client.worker, str(own), client.ca, partner.card, partner.roster, partner.signing_key)
    return _there(paths)


def _there(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if path and Path(path).exists())


def _open_to(private: Sequence[str], told: Sequence[str], user: int) -> str:
    """Returns what a user can read of the one and replace of the other, in words; nothing where that is nothing."""
    paths = tuple(dict.fromkeys((*private, *told)))
    readable, writable = _tried(paths, user)
    words = []
    if found := [path for path in private if path in readable]:
        words.append(f"read {', '.join(found)}")
    if found := [path for path in paths if path in writable]:
        words.append(f"replace {', '.join(found)}")
    return " and ".join(words)


def _tried(paths: Sequence[str], user: int) -> tuple[list[str], list[str]]:
    """Returns which of these paths a user can read, and which it can write or replace.

    As the system says, access lists and folders above included.
    """
    if user == os.getuid():
        writable = [path for path in paths if os.access(path, os.W_OK) or os.access(Path(path).parent, os.W_OK)]
        return [path for path in paths if os.access(path, os.R_OK)], writable
    try:
        group = pwd.getpwuid(user).pw_gid
        done = subprocess.run(  # noqa: S603 (words of this module; paths are arguments, not words of the shell)
            ["/bin/sh", "-c", _OPEN, "sh", *paths],
            user=user, group=group, extra_groups=[], cwd="/", env=_ENVIRONMENT, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_LOOK_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise HushclickError(f"what {_name(user)} can read could not be found out ({type(error).__name__})") from None
    said = done.stdout.decode(errors="replace").split("\0")
    between = said.index("")
    return said[:between], [found for found in said[between + 1 :] if found]


def _shim(client: ClientConfig) -> tuple[int, str]:
    """Returns the shim's user, and why it is none of its own."""
    own = os.getuid()
    if not client.shim_user:
        return own, "shim_user in client.toml is unset" if client.start_worker or own == 0 else ""
    if own != 0:
        return own, "only root can start what Flower runs as another user" if client.start_worker else ""
    try:
        return pwd.getpwnam(client.shim_user).pw_uid, ""
    except KeyError:
        return own, f"shim_user = {client.shim_user!r} is no user of this machine"


def _same(client: ClientConfig) -> str:
    if client.start_worker:
        return f"shim_user = {client.shim_user!r} is the worker's own user"
    return "worker_owner in client.toml is the same user" if client.worker_owner else "worker_owner is unset"


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # of a container, which need not have a name
        return str(number)


def _none(why: str, shim: int) -> str:
    return (
        f"NO BOUNDARY, {why}: what Flower runs would be user {_name(shim)} and could read the partner's data; start"
        " `hushclick client` as root with shim_user set and the partner's files closed to it, or use containers"
    )
