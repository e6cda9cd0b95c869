"""`hushclick erase WORKER.toml --user ID`: a user of this partner takes part in nothing from the next question on.

It may run beside the partner's worker, which obeys without a restart. The click log is the partner's own to clean: the
list holds for every later export of it too. Nothing that this command prints or writes holds an id.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from client.erasure import Erased
from client.overlap.points import normalised
from client.partner import PartnerConfig, load_partner
from client.retention import forget_all
from client.sent import exclusive
from common.card import load_card
from common.clicks import read_clicks
from common.errors import DataError, UsageError
from common.expiry import delete
from common.runfolder import make_private

_SESSIONS = "?" * 32  # open counts of shared users: this partner's own half of them holds all of its users


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Lists the users, drops what still holds them, and says how many rows the log has of them.

    Raises:
        UsageError: without an id.
        DataError: where the list is damaged.
    """
    if arguments.set:
        raise UsageError("erase takes no --set: it works on a partner's configuration as it is")
    os.umask(0o077)
    users = _users(arguments.user)
    config = load_partner(arguments.config)
    make_private(Path(config.state))
    erased = Erased(Path(config.state))
    added = erased.add(users)  # first, and on the disk: whatever else fails, they take part in nothing any more
    with exclusive(Path(config.state) / "overlap"):
        counts = delete((Path(config.state) / "overlap").glob(_SESSIONS))
    with exclusive(Path(config.state)):  # until the answer under way is given
        contributions = forget_all(Path(config.state))
    return {
        "partner": config.name,
        "named": len(users),
        "added": added,
        "listed": len(erased),
        "contributions_deleted": contributions,
        "counts_closed": counts,
        "declared_users": config.declared_users,
        **_in_the_log(config, erased, users),
    }


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Says what was done, and what is left for the partner to do."""
    for line in _lines(result):
        sys.stdout.write(f"{line}\n")


def _lines(result: dict[str, Any]) -> list[str]:
    declared, left = result["declared_users"], result["users_left"]
    lines = [
        f"{result['partner']}: {result['named']} named, {result['added']} of them new to the list of"
        f" {result['listed']}; they take part in nothing from now on",
        f"{result['contributions_deleted']} kept contributions deleted, {result['counts_closed']} open counts of shared"
        " users closed",
    ]
    if result["problem"]:
        return [*lines, f"the click log was not looked at: {result['problem']}"]
    if result["users_found"] < result["named"]:
        lines.append(
            f"{result['named'] - result['users_found']} of them are no user of the click log as it is now: compare the"
            " spelling with its user column, if they should be"
        )
    if result["rows_found"]:
        lines.append(
            f"the click log holds {result['rows_found']} rows of those listed, read no more: delete them there"
        )
    if left < declared:
        lines.append(
            f"{left} users are left, and declared_users = {declared}: it is published and does not change by itself;"
            " agree on a new roster with the operator"
        )
    return lines


def _users(given: list[str]) -> list[str]:
    """Returns the ids, each once; those on standard input, one a line, where "-" is given."""
    lines = [line for one in given for line in (sys.stdin.read().splitlines() if one == "-" else [one])]
    users = list(dict.fromkeys(line for line in lines if line.strip()))
    if not users:
        raise UsageError("erase needs --user ID, or --user - and ids on standard input, one a line")
    return users


def _in_the_log(config: PartnerConfig, erased: Erased, named: list[str]) -> dict[str, Any]:
    """Returns how many of those named are in the log, how many rows it holds of all listed, and how many are left."""
    try:
        rows = read_clicks(Path(config.clicks), load_card(Path(config.card)), allow_one_class=True).rows
    except DataError as error:
        return {"users_found": 0, "rows_found": 0, "users_left": 0, "problem": str(error)}
    others = erased.without(rows)
    spelt = {normalised(str(user), fold_case=False) for user in rows["user"].unique()}
    return {
        "users_found": sum(normalised(user, fold_case=False) in spelt for user in named),
        "rows_found": len(rows) - len(others),
        "users_left": int(others["user"].nunique()),
        "problem": "",
    }
