"""`hushclick provision CONSORTIUM.toml --out KITS`: a folder for the authority, one for the server, one per partner.

Run again it adds what is new, takes out who has left, and touches no key; `--rotate NAME`, `--rotate-server` and
`--rotate-signing` replace keys on purpose. All is checked before anything is written.
"""

import argparse
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from rich.console import Console

from common.certificates import certificate_fingerprint, utc_now
from common.errors import UsageError
from server.provision.consortium import Consortium, load_consortium
from server.provision.issue import Place, authority, key_path, partner_keys, server_certificate, signing_key
from server.provision.kits import attention, notes, remove_others, require_sound, write_kits
from server.provision.plan import planned_run, roster_of
from server.provision.record import Issued, Shelf, load_issued, save_issued

_WIDTH = 110


@dataclass(frozen=True)
class Wanted:
    """What is to be replaced on purpose."""

    partners: tuple[str, ...] = ()
    server: bool = False
    signing: bool = False


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what was made, what must be sent to whom, and what asks for attention.

    Raises:
        UsageError: without `--out`, or with `--set`.
        ConfigError: for a consortium that is refused; nothing was written then.
    """
    if arguments.out is None:
        raise UsageError("provision needs --out DIR: the folder of the kits, which stays with the operator")
    if arguments.set:
        raise UsageError("provision takes no --set: what is handed out stands in the consortium's own files")
    wanted = Wanted(tuple(arguments.rotate), arguments.rotate_server, arguments.rotate_signing)
    return provision(load_consortium(arguments.config), arguments.out, wanted, utc_now())


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Prints one line per folder, then who must be sent what, then what asks for attention."""
    console = Console(width=_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"{result['folder']}: kits of {len(result['partners'])} partners, roster {result['roster'][:12]}")
    for name, partner in result["partners"].items():
        send = f"send {', '.join(partner['send'])}" if partner["send"] else "nothing new"
        say(f"  {name}: {send}")
    for name, place in result["removed"].items():
        say(f"  {name}: removed; its kit lies in {place}")
    for line in result["attention"]:
        say(f"MEND  {line}")
    for line in result["notes"]:
        say(f"note  {line}")


def provision(consortium: Consortium, root: Path, wanted: Wanted, now: datetime) -> dict[str, Any]:
    """Writes or brings up to date the kits of a consortium in a folder; returns what `command` does."""
    config, place = planned_run(consortium), Place(root)
    before = load_issued(place.record)
    require_sound(consortium, before, wanted.partners)
    root.mkdir(parents=True, exist_ok=True)
    signer = authority(place, consortium, before, now)
    issued = replace(before, authority=certificate_fingerprint(signer))
    removed = remove_others(place, consortium, issued)
    issued = replace(issued, partners={name: keys for name, keys in issued.partners.items() if name not in removed})
    issued = _keys(place, consortium, issued, signer, wanted, now)
    roster = roster_of(consortium, config, {name: keys.identity for name, keys in issued.partners.items()})
    shelf = Shelf(root, dict(issued.files))
    for name in removed:
        shelf.forget(f"partners/{name}/")
        shelf.forget(f"server/nodes/{name}.pub")
    write_kits(shelf, consortium, config, roster, issued, signer)
    issued = replace(issued, files=shelf.hashes)
    save_issued(place.record, issued)
    return {
        "folder": str(root),
        "roster": roster.hash.hex(),
        "partners": {name: _partner(name, before, issued, shelf) for name in consortium.names},
        "server": {"send": [name for name in shelf.changed if name.startswith("server/")]},
        "removed": {name: str(path) for name, path in removed.items()},
        "attention": attention(place, consortium, shelf.kept, signer, now),
        "notes": notes(config, before, issued, roster_is_new="server/roster.toml" in shelf.changed),
    }


def _keys(
    place: Place, consortium: Consortium, issued: Issued, signer: x509.Certificate, wanted: Wanted, now: datetime
) -> Issued:
    """Returns the record with every key made; it is written down after each, so that none is made and forgotten."""
    save_issued(place.record, issued)
    issued = server_certificate(place, consortium, signer, issued, now, rotate=wanted.server)
    save_issued(place.record, issued)
    issued = signing_key(place, issued, rotate=wanted.signing)
    save_issued(place.record, issued)
    for partner in consortium.partners:
        rotate, known = partner.name in wanted.partners, issued.partners.get(partner.name)
        keys = partner_keys(place, partner, known, rotate=rotate)
        issued = replace(issued, partners=issued.partners | {partner.name: keys})
        save_issued(place.record, issued)
    return issued


def _partner(name: str, before: Issued, issued: Issued, shelf: Shelf) -> dict[str, Any]:
    """Returns one partner's line: the public halves of its keys, which were made here, and what it must be sent."""
    keys, known, prefix = issued.partners[name], before.partners.get(name), f"partners/{name}/"
    facts = {"identity_public_key": keys.identity, "node_public_key": keys.node, "made_here": list(keys.made_here)}
    if known is None:
        return facts | {"send": ["the whole kit"]}
    fresh = [key_path(Place(Path()), name, one).name for one in keys.made_here if keys.public(one) != known.public(one)]
    return facts | {"send": fresh + [path.removeprefix(prefix) for path in shelf.changed if path.startswith(prefix)]}
