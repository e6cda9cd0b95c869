"""`hushclick models add | list | show | promote | verify REGISTRY`: versions of trained models, and which is in use."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import HushclickError, UsageError
from common.keyfiles import load_signing_public
from common.lineage import LINEAGE, Lineage, read_model_folder, verified
from common.privacy.accounting import rounded_up
from common.registry import Registry
from common.runfolder import jsonable

_WIDTH = 110
_SHORT = 12


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what an action did or found.

    Raises:
        UsageError: for options that the action does not take, or lacks.
        ModelError: for a model that is not signed, was altered, or is not there.
    """
    if arguments.set or arguments.out:
        raise UsageError(f"models {arguments.action} takes neither --set nor --out")
    actions: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "add": _add,
        "list": _list,
        "show": _show,
        "promote": _promote,
        "verify": _verify,
    }
    found: dict[str, Any] = jsonable(actions[arguments.action](arguments))
    return found


def exit_code(result: dict[str, Any]) -> int:
    """Returns 1 where a version does not hold."""
    return 0 if result.get("ok", True) else 1


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints a line or a small table."""
    console = Console(width=_WIDTH)
    if arguments.action == "list":
        console.print(_versions_table(result))
    elif arguments.action == "show":
        _print_lineage(console, result)
    elif arguments.action == "verify":
        for one in result["checked"]:
            _say(console, f"{'ok  ' if one['ok'] else 'MEND'}  {one['what']}: {one['says']}")
    else:
        _say(console, result["says"])


def _registry(arguments: argparse.Namespace) -> Registry:
    if not arguments.config.is_dir():
        raise UsageError(f"{arguments.config}: no such registry; `hushclick models add` makes one")
    return Registry(arguments.config)


def _add(arguments: argparse.Namespace) -> dict[str, Any]:
    for flag, value in (("--model DIR", arguments.model), ("--key FILE", arguments.key)):
        if value is None:
            raise UsageError(f"models add needs {flag}: a model is taken only with the key that it is signed with")
    registry, key = Registry(arguments.config), load_signing_public(arguments.key)
    before = registry.numbers()
    number = registry.add(arguments.model, key)
    done = "is there already" if number in before else "added"
    return {"version": number, "says": f"{arguments.config}: version {number} {done}"}


def _list(arguments: argparse.Namespace) -> dict[str, Any]:
    registry = _registry(arguments)
    promoted = registry.promoted()
    lines = [_line(registry, number) for number in registry.numbers()]
    return {"versions": lines, "promoted": promoted}


def _line(registry: Registry, number: int) -> dict[str, Any]:
    try:
        found = registry.version(number)
    except HushclickError as error:  # one bad version must not hide the others
        return {"version": number, "ok": False, "says": str(error)}
    lineage = found.lineage
    return {
        "version": number,
        "ok": True,
        "added": found.added.get("when"),
        "run": lineage.run_id,
        "rounds": len(lineage.rounds),
        "partners": len(lineage.partners),
        "epsilon": lineage.privacy.epsilon,
        "unit": lineage.privacy.unit,
        "delta": lineage.privacy.delta,
        "user_epsilon": lineage.privacy.user_epsilon,
        "mode": lineage.privacy.mode,
        "base": lineage.base.encoder,
    }


def _show(arguments: argparse.Namespace) -> dict[str, Any]:
    registry = _registry(arguments)
    promoted = registry.promoted()
    number = arguments.number or promoted or max(registry.numbers(), default=0)
    found = registry.version(number)
    return {
        "version": number,
        "promoted": number == promoted,
        "folder": str(found.folder),
        "added": found.added,
        "history": [step for step in registry.history() if number in (step["version"], step["before"])],
        "lineage": asdict(found.lineage),
    }


def _promote(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.number is None:
        raise UsageError("models promote needs --version N")
    before = _registry(arguments).promote(arguments.number)
    was = "for the first time" if before is None else f"in the place of version {before}"
    says = "was promoted already" if before == arguments.number else f"promoted {was}"
    return {
        "version": arguments.number,
        "before": before,
        "says": f"{arguments.config}: version {arguments.number} {says}",
    }


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    key = load_signing_public(arguments.key) if arguments.key else None
    if (arguments.config / LINEAGE).exists():  # a model that is in no registry
        if key is None:
            raise UsageError(f"models verify {arguments.config}: needs --key FILE for a model outside a registry")
        model = arguments.config
        checked = [_finding(str(model), lambda: verified(read_model_folder(model), key))]
    else:
        registry = _registry(arguments)
        numbers = [arguments.number] if arguments.number else registry.numbers()
        checked = [_finding(f"version {one}", partial(_lineage_of, registry, one, key)) for one in numbers]
        checked.append(_pointer(registry))
    return {"ok": all(one["ok"] for one in checked), "checked": checked}


def _lineage_of(registry: Registry, number: int, key: Ed25519PublicKey | None) -> Lineage:
    return registry.version(number, key).lineage


def _finding(what: str, look: Callable[[], Lineage]) -> dict[str, Any]:
    try:
        lineage = look()
    except HushclickError as error:
        return {"what": what, "ok": False, "says": str(error)}
    says = f"run {lineage.run_id}, {len(lineage.rounds)} rounds, signed by {lineage.signed_by[:_SHORT]}"
    return {"what": what, "ok": True, "says": says}


def _pointer(registry: Registry) -> dict[str, Any]:
    try:
        promoted = registry.promoted()
        there = promoted is None or promoted in registry.numbers()
    except HushclickError as error:
        return {"what": "promoted", "ok": False, "says": str(error)}
    says = "none yet" if promoted is None else f"version {promoted}" + ("" if there else ", which is not there")
    return {"what": "promoted", "ok": there, "says": says}


def _versions_table(result: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("version", "", "added", "run", "rounds", "partners", "epsilon claimed", "base"):
        table.add_column(column)
    for one in result["versions"]:
        mark = "promoted" if one["version"] == result["promoted"] else ""
        if not one["ok"]:
            table.add_row(str(one["version"]), mark, "[bold]MEND[/]", escape(one["says"]), "", "", "", "")
            continue
        cells = one["added"], one["run"][:_SHORT], one["rounds"], one["partners"], _epsilon(one), one["base"]
        table.add_row(str(one["version"]), mark, *(escape(str(cell)) for cell in cells))
    return table


def _epsilon(one: dict[str, Any]) -> str:
    """Returns the server's claim with its unit: figures of different units are not to be compared."""
    return "not bounded" if one["epsilon"] is None else f"{rounded_up(one['epsilon'])} per {one['unit']}"


def _print_lineage(console: Console, result: dict[str, Any]) -> None:
    lineage = result["lineage"]
    base, privacy, rounds = lineage["base"], lineage["privacy"], lineage["rounds"]
    asked, given = sum(one["asked"] for one in rounds), sum(one["contributed"] for one in rounds)
    partners = ", ".join(
        f"{name} (card {facts['card_sha256'][:_SHORT] or 'unknown'})" for name, facts in lineage["partners"].items()
    )
    table = Table(box=None, show_header=False)
    for what, says in (
        ("version", f"{result['version']}{', promoted' if result['promoted'] else ''}"),
        ("folder", result["folder"]),
        ("added", f"{result['added'].get('when')} by {result['added'].get('by')}"),
        ("run", f"{lineage['run_id']}, configuration {lineage['config_fingerprint'][:_SHORT]}"),
        ("signed by", lineage["signed_by"]),
        ("base", f"{base['encoder']}, weights {base['weights_sha256'][:_SHORT]}"),
        ("rounds", f"{len(rounds)}: {given} contributions of {asked} that were asked for"),
        ("partners", partners),
        ("privacy", privacy["sentence"]),
        ("", f"({privacy['basis']})"),
        *((name, f"{facts['num_bytes']} bytes, {facts['sha256']}") for name, facts in lineage["files"].items()),
        *(
            ("promotion", f"{one['before']} -> {one['version']}, {one['when']} by {one['by']}")
            for one in result["history"]
        ),
    ):
        table.add_row(what, escape(str(says)))
    console.print(table)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
