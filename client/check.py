"""`hushclick check CLIENT.toml` (or WORKER.toml): a preflight; `--overlap`: a step of a count of shared users."""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.deployment import ClientConfig, load_client
from client.overlap.composition import NOTHING, Bound, for_a_user_of_both, span_of, stated
from client.overlap.exchange import Counted, Overlap
from client.partner import PartnerConfig, load_partner
from client.preflight import NOT_CHECKED, connection, preflight
from common.config import read_toml
from common.errors import UsageError
from common.privacy.accounting import rounded_up
from common.runfolder import jsonable, write_json

_NEEDS = {"ask": ("peer", "--with NAME"), "answer": ("file", "--file REQUEST"), "count": ("file", "--file RESPONSE")}
_AGAINST = {
    "server": "the server and the public",
    "partner": "another partner",
    "broken": "whoever breaks secure aggregation",
}
_WIDTH = 110


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the findings of a preflight, or what a step of a count gave.

    Raises:
        UsageError: for options that do not go together, or a configuration that cannot be read.
        ProtocolError: for a file that this partner refuses.
    """
    _require_options(arguments)
    client = load_client(arguments.config) if "superlink" in read_toml(arguments.config) else None
    config = None
    if client is None or client.start_worker or not client.worker_socket:
        config = load_partner(Path(client.worker) if client else arguments.config)
    if arguments.overlap is not None:
        if config is None:
            raise UsageError("check --overlap: give the partner's worker.toml; client.toml names no data")
        return _overlap(config, arguments)
    findings = [*(connection(client, config) if client else ()), *(preflight(config) if config else ())]
    return {
        "partner": config.name if config else client.name if client else "",
        "ok": all(finding.ok for finding in findings),
        "checks": [asdict(finding) for finding in findings],
        "not_checked": ", ".join([NOT_CHECKED, *_left_out(client, config)]),
    }


def _left_out(client: ClientConfig | None, config: PartnerConfig | None) -> list[str]:
    if client is None:
        return ["certificates", "network (give client.toml)"]
    return [] if config else ["clicks, keys, budget (give worker.toml, where the worker runs)"]


def exit_code(result: dict[str, Any]) -> int:
    """Returns 1 where a preflight found something to mend."""
    return 0 if result.get("ok", True) else 1


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints one line per check, or what to do next in a count."""
    console = Console(width=_WIDTH)
    if arguments.overlap is None:
        for one in result["checks"]:
            mark = "MEND" if not one["ok"] else "WARN" if one["warns"] else "ok  "
            _say(console, f"{mark}  {one['what']}: {one['says']}")
        _say(console, f"not checked in this version: {result['not_checked']}")
    elif arguments.overlap == "count":
        _show_count(console, result)
    else:
        _say(console, f"{result['file']}\n{result['next']}")


def _require_options(arguments: argparse.Namespace) -> None:
    if arguments.set:
        raise UsageError("check takes no --set: a partner's configuration is checked as it is")
    if arguments.overlap is None:
        given = {"--with": arguments.peer, "--file": arguments.file, "--out": arguments.out}
        for flag, value in given.items():
            if value is not None:
                raise UsageError(f"check {flag}: only together with --overlap ask, answer or count")
        return
    needed, spelt = _NEEDS[arguments.overlap]
    if getattr(arguments, needed) is None:
        raise UsageError(f"check --overlap {arguments.overlap} needs {spelt}")
    other = "file" if needed == "peer" else "peer"
    if getattr(arguments, other) is not None:
        raise UsageError(f"check --overlap {arguments.overlap} takes {spelt} alone")


def _overlap(config: PartnerConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    overlap, out = Overlap(config), arguments.out or Path()
    if arguments.overlap == "ask":
        path = overlap.ask(arguments.peer, out)
        return {"file": str(path), "next": f"Send it to {arguments.peer}, who runs `check --overlap answer`."}
    if arguments.overlap == "answer":
        path = overlap.answer(arguments.file, out)
        return {"file": str(path), "next": "Send it back to who asked, who runs `check --overlap count`."}
    counted = overlap.count(arguments.file)
    result = _counted(config, counted)
    path = out / f"overlap-{config.name}-{counted.answerer}-{counted.session[:8]}.json"
    write_json(path, result)
    overlap.close(counted.session)
    found: dict[str, Any] = jsonable({"file": str(path), **result})
    return found


def _counted(config: PartnerConfig, counted: Counted) -> dict[str, Any]:
    bounds = for_a_user_of_both(stated(config.privacy), counted.stated)
    return {
        "partner": config.name,
        "other": counted.answerer,
        "shared_users": counted.shared,
        "own_users": counted.own_users,
        "other_users_at_most": counted.answerer_points,
        "span_days": span_of(stated(config.privacy), counted.stated),
        "user_of_both": {view: None if bound == NOTHING else asdict(bound) for view, bound in bounds.items()},
        "exact": "the count is exact: no noise is on it, and no epsilon covers it",
    }


def _show_count(console: Console, result: dict[str, Any]) -> None:
    shared, other = result["shared_users"], result["other"]
    _say(console, f"{shared} of the {result['own_users']} users of {result['partner']} are users of {other} too.")
    if not shared:
        _say(console, "Between these two partners each user is protected by one partner's epsilon.")
    else:
        span = f"in every span of {result['span_days']} days" if result["span_days"] else "for ever"
        _say(console, f"For these no partner's epsilon holds alone. What both policies bound together, {span}:")
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for column in ("against", "epsilon, at most", "at delta"):
            table.add_column(column)
        for view, bound in result["user_of_both"].items():
            shown = ("not bounded", "") if bound is None else _spelt(Bound(**bound))
            table.add_row(_AGAINST[view], *map(escape, shown))
        console.print(table)
    _say(console, f"{result['exact'].capitalize()}. It stands in {result['file']}; keep it between the two.")


def _spelt(bound: Bound) -> tuple[str, str]:
    digit = 10.0 ** (math.floor(math.log10(bound.delta)) - 2)
    return rounded_up(bound.epsilon), f"{math.ceil(bound.delta / digit - 1e-6) * digit:.3g}"  # up, as epsilon is


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
