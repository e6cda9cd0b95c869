"""`hushclick budget show LEDGER`: what is spent and left, per purpose and run, from a ledger that is checked first."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.accounts import Account, by, read_accounts, rounds_of
from client.budget import CLOCK_TOLERANCE
from common.anchors import AnchorFile
from common.errors import UsageError
from common.privacy.accounting import MAX_EPSILON, MIN_DELTA, rounded_up
from common.privacy.chain import LedgerHead
from common.privacy.events import DpEvent
from common.privacy.labels import NOT_PROTECTED, user_epsilon
from common.privacy.mixture import by_rows
from common.privacy.statement import privacy_statement
from common.privacy.views import VIEWS
from common.runfolder import jsonable

ASSUMED_DELTA = 1e-5  # where neither a policy nor the operator says one; the output says so

_AGAINST = {
    "server": "the server and the public",
    "partner": "another partner",
    "broken": "whoever breaks secure aggregation",
}
_AS_UNIT = {
    "user": "user added or removed",
    "impression": "impression added or removed",
    "label": "click label replaced by the other",
}
_SHOWN = 20
_WIDTH = 110
_HASH_LENGTH = 64


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what each ledger says; exit code 1 (`LedgerError`) where one is damaged or lacks the anchor."""
    if arguments.set or arguments.out:
        raise UsageError("budget show takes neither --set nor --out: it reads ledgers as they are")
    _check(arguments)
    anchor = parse_anchor(arguments.anchor) if arguments.anchor else None
    accounts = read_accounts(arguments.config, anchor)
    result: dict[str, Any] = jsonable({"ledgers": [_describe(account, arguments) for account in accounts]})
    return result


def _check(arguments: argparse.Namespace) -> None:
    if arguments.epsilon is not None and not 0 < arguments.epsilon < MAX_EPSILON:
        raise UsageError(f"--epsilon {arguments.epsilon:g}: over 0 and below {MAX_EPSILON:g}")
    if arguments.delta is not None and not MIN_DELTA <= arguments.delta < 1:
        raise UsageError(f"--delta {arguments.delta:g}: at least {MIN_DELTA:g} and below 1")


def parse_anchor(text: str) -> LedgerHead | AnchorFile:
    """Returns the head that `LENGTH:SHA256` spells, as this command prints it, or a server's file of anchors.

    Raises:
        UsageError: for anything else.
    """
    length, colon, digest = text.partition(":")
    known = length.isascii() and length.isdigit() and colon and len(digest) == _HASH_LENGTH
    if not known or set(digest.lower()) - set("0123456789abcdef"):
        if Path(text).is_file():
            return AnchorFile(Path(text))
        raise UsageError(
            f"--anchor {text}: expected LENGTH:SHA256, as budget show prints it, or a server's anchors.jsonl"
        )
    return LedgerHead(int(length), digest.lower())


def _describe(account: Account, arguments: argparse.Namespace) -> dict[str, Any]:
    delta, source = _delta(account, arguments.delta)
    bounds = account.bounds()
    if arguments.epsilon is not None:
        bounds["server"] = arguments.epsilon
    spent, counted = account.spent(delta), account.spent_in_period(delta)
    shared = any(event.mode == "distributed" for event in account.events)
    units = sorted({event.unit for event in account.events})
    found: dict[str, Any] = {
        "partner": account.name,
        "length": account.head.num_records,
        "sha256": account.head.sha256,
        "torn_bytes": account.head.torn_bytes,
        "releases": len(account.events),
        "uncommitted": account.uncommitted,
        "rounds": rounds_of(account.events),
        "steps": sum(event.steps for event in account.events),
        "units": units,
        "by_rows_of_a_user": by_rows(account.events, delta) if "impression" in units else {},
        "fixed_seed": any(event.fixed_seed for event in account.events),
        "delta": delta,
        "delta_from": source,
        "accountant": "PLD",
        "adjacency": "replace_label" if units == ["label"] else "add_remove",
        "of_all_labels_of_a_user": _of_all_labels(account.events),
        "spent": spent,
        "unprotected": any(event.mechanism == "none" for event in account.events),
        "shared_noise": shared,
        "budget": bounds,
        "period_days": account.period_days,
        "spent_in_period": counted,
        "left": {view: max(0.0, bound - counted[view]) for view, bound in bounds.items()},
        "refusal": account.refusal,
        "clock_ahead_seconds": None if account.ahead is None else account.ahead.total_seconds(),
        "rounds_left": _rounds_left(account, arguments),
        "by_purpose": by(account.events, lambda event: event.purpose, delta),
        "by_run": by(account.events, lambda event: event.run_id, delta),
    }
    if arguments.second_opinion:
        found["sentence"] = privacy_statement(account.events, delta).sentence()
    return found


def _of_all_labels(events: Sequence[DpEvent]) -> dict[str, Any] | None:
    """Returns, where labels were flipped, what all those of one user cost together, and what is not protected."""
    flipped = [event for event in events if event.unit == "label"]
    if not flipped:
        return None
    rows = max(event.impressions for event in flipped)
    return {"epsilon": user_epsilon(flipped), "rows": rows, "not_protected": NOT_PROTECTED}


def _delta(account: Account, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    if account.policy is not None:
        return account.policy.delta, "the partner's policy"
    return ASSUMED_DELTA, "assumed"


def _rounds_left(account: Account, arguments: argparse.Namespace) -> int | None:
    """Returns how many more rounds like the last the policy affords; None where other bounds were asked about."""
    if account.policy is None or not account.events or arguments.epsilon is not None or arguments.delta is not None:
        return None
    return account.rounds_left(account.events[-1])


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints one line per ledger, the heads to anchor, and for a single ledger its purposes and runs."""
    console = Console()
    console.width = max(console.width, _WIDTH)  # a hash cut to a narrow terminal could not be copied
    ledgers = result["ledgers"]
    console.print(_overview(ledgers[:_SHOWN]))
    if shared := [one for one in ledgers[:_SHOWN] if one["shared_noise"]]:
        console.print(_adversaries(shared))
    console.print(_heads(ledgers[:_SHOWN]))
    if len(ledgers) > _SHOWN:
        _say(console, f"and {len(ledgers) - _SHOWN} more; --json shows all")
    if len(ledgers) == 1:
        console.print(_parts("purpose", ledgers[0]["by_purpose"]))
        console.print(_parts("run", ledgers[0]["by_run"]))
    for line in _notes(ledgers):
        _say(console, line)


def _overview(ledgers: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("partner")
    periods = any(one["period_days"] for one in ledgers)
    for column in ("releases", "rounds", "steps", "not committed", "delta", "spent", "of", "left", "rounds left"):
        table.add_column(column, justify="right", no_wrap=True)
    if periods:
        table.add_column("spent in period", justify="right", no_wrap=True)
    for one in ledgers:
        counts = [str(one[name]) for name in ("releases", "rounds", "steps", "uncommitted")]
        more = "" if one["rounds_left"] is None else str(one["rounds_left"])
        cells = [*counts, f"{one['delta']:g}", *_figures(one, "server"), more]
        table.add_row(escape(one["partner"]), *cells, *([_in_period(one)] if periods else []))
    return table


def _in_period(one: dict[str, Any]) -> str:
    """Returns what counts against the budget now, and the days that it is for."""
    return f"{_spelt(one['spent_in_period']['server'])} in {one['period_days']} d" if one["period_days"] else ""


def _adversaries(ledgers: list[dict[str, Any]]) -> Table:
    """Returns what each learns where partners share the noise of a sum."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("partner", "against"):
        table.add_column(column)
    for column in ("spent", "of", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in ledgers:
        for view in VIEWS:
            table.add_row(escape(one["partner"]), _AGAINST[view], *_figures(one, view))
    return table


def _figures(one: dict[str, Any], view: str) -> tuple[str, str, str]:
    """Returns spent (rounded up), budget and left (rounded down) for one adversary."""
    budget, left = one["budget"].get(view), one["left"].get(view)
    return (
        _spelt(one["spent"][view]),
        "" if budget is None else f"{budget:g}",
        "" if left is None else f"{math.floor(left * 100 + 1e-4) / 100:.2f}",
    )


def _heads(ledgers: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("chain verified: keep this elsewhere")
    table.add_column("length:sha256 (budget show LEDGER --anchor ...)", no_wrap=True)
    for one in ledgers:
        table.add_row(escape(one["partner"]), f"{one['length']}:{one['sha256']}")
    return table


def _parts(what: str, parts: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column(what)
    for column in ("releases", "steps", "epsilon alone"):
        table.add_column(column, justify="right")
    for name, part in parts.items():
        table.add_row(escape(name), str(part["releases"]), str(part["steps"]), _spelt(part["epsilon"]))
    return table


def _notes(ledgers: list[dict[str, Any]]) -> list[str]:
    units = " or ".join(sorted({_AS_UNIT[unit] for one in ledgers for unit in one["units"]})) or _AS_UNIT["user"]
    notes = [
        f"Epsilon by PLD for one {units}, of everything in a ledger together; parts alone do not add"
        " up to it. What is reserved counts as spent, committed or not. Rounds left: such as the last one."
    ]
    if any(one["period_days"] for one in ledgers):
        notes.append(
            "With a period the budget is for every span of so many days, and left is of that. Spent is of all time:"
            " what a user who stayed that long has."
        )
    notes += [f"{one['partner']}: nothing is granted: {one['refusal']}" for one in ledgers[:_SHOWN] if one["refusal"]]
    for one in ledgers[:_SHOWN]:
        if (ahead := one["clock_ahead_seconds"] or 0) > CLOCK_TOLERANCE.total_seconds():
            notes.append(
                f"{one['partner']}: its clock was {ahead:.0f} s ahead of the server's: a clock set forward ends periods"
                " early."
            )
    if any(one["delta_from"] == "assumed" for one in ledgers):
        notes.append(
            f"No partner.toml names this ledger: delta {ASSUMED_DELTA:g} is assumed; give --delta (--epsilon)."
        )
    if any(one["unprotected"] for one in ledgers):
        notes.append("A release without noise is in a ledger: no epsilon holds for it.")
    for one in ledgers[:_SHOWN]:
        if costs := one["by_rows_of_a_user"]:
            listed = ", ".join(f"{rows}: {_spelt(cost)}" for rows, cost in costs.items())
            notes.append(f"{one['partner']}: epsilon of a whole user by its training rows: {listed}.")
    notes += [_label_note(one) for one in ledgers[:_SHOWN] if one["of_all_labels_of_a_user"]]
    if any(one["fixed_seed"] for one in ledgers):
        notes.append("BUT some noise came from a FIXED SEED: whoever knows it can remove that noise.")
    torn = sum(one["torn_bytes"] for one in ledgers)
    if torn:
        notes.append(f"{torn} bytes of an unfinished record were ignored: its release had not been allowed yet.")
    return notes + [f"{one['partner']}: {one['sentence']}" for one in ledgers[:_SHOWN] if "sentence" in one]


def _label_note(one: dict[str, Any]) -> str:
    found = one["of_all_labels_of_a_user"]
    return (
        f"{one['partner']}: label-private, NOT user-private: rounds of the same flipped labels cost what one does;"
        f" epsilon {_spelt(found['epsilon'])} for all labels of one user with up to {found['rows']} rows; NOT"
        f" protected: {'; '.join(found['not_protected'])}."
    )


def _spelt(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else rounded_up(epsilon)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
