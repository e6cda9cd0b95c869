"""Processes of other users, where these tests run as root: a boundary of users cannot be tried otherwise."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = "daemon"  # names that every machine has, and whose primary groups are their own
WORKER = "games"

needs_other_users = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can start processes as another user: run these tests as root, in a container"
)

_OPEN = """
set -e
while [ "$1" != -- ]; do
    closed=$1 needed=$2; shift 2
    aside=$(mktemp -d)
    mount --bind "$needed" "$aside"
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$needed"
    mount --bind "$aside" "$needed"
done
shift
exec "$@"
"""


def for_all_users(words: list[str]) -> list[str]:
    """Returns a command that runs words where every user can run this Python, whoever's home it lies in.

    Where a folder above it is closed to others, a mount namespace shows it with nothing else in it; without leave to
    make one, the test is skipped.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[1]}
    pairs = [(closed, path) for path in sorted(needed) for closed in [_closed_above(path)] if closed]
    if not pairs:
        return words
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip(f"other users cannot run {sys.executable}, and no mount namespace can be made to let them")
    if len({closed for closed, _ in pairs}) != len(pairs):
        pytest.skip(f"two folders that other users need lie under {pairs[0][0]}, which is closed to them")
    return ["unshare", "-m", "sh", "-c", _OPEN, "sh", *(str(part) for pair in pairs for part in pair), "--", *words]


def _closed_above(path: Path) -> Path | None:
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)


def ids(name: str) -> tuple[int, int]:
    """Returns number and primary group of a user."""
    who = pwd.getpwnam(name)
    return who.pw_uid, who.pw_gid


def as_user(name: str, words: list[str]) -> list[str]:
    """Returns a command that runs words as another user, in its own group alone."""
    return for_all_users(["setpriv", "--reuid", name, "--regid", str(ids(name)[1]), "--clear-groups", *words])
