"""The folders of a consortium: what is written into each, who is taken out, and what the operator must be told."""

from datetime import datetime
from pathlib import Path

from cryptography import x509

from common.certificates import authority_problems, certificate_pem, ends_soon, load_certificate, server_problems
from common.config import Config, dump_config
from common.errors import ConfigError
from common.keyfiles import public_pem
from common.kit import KIT_VERSION
from common.secagg.roster import Roster, dump_roster
from server.provision import texts
from server.provision.consortium import Consortium
from server.provision.issue import Place, given_keys
from server.provision.plan import policy_tables
from server.provision.record import Issued, KeyName, Shelf

_KEYS: tuple[KeyName, ...] = ("identity", "node")


def require_sound(consortium: Consortium, before: Issued, rotated: tuple[str, ...]) -> None:
    """Refuses, before anything is written, rotations that cannot be and a key that two partners would share."""
    partners = {partner.name: partner for partner in consortium.partners}
    for name in rotated:
        known = before.partners.get(name)
        if name not in partners or known is None:
            raise ConfigError(f"--rotate {name}: no kit was issued to a partner of that name")
        if not any(key in known.made_here and given_keys(partners[name])[key] is None for key in _KEYS):
            raise ConfigError(
                f"--rotate {name}: its keys were made at the partner: it runs `hushclick keys rotate`, and the public"
                " halves that this prints go into the consortium's file"
            )
    for key in _KEYS:
        holders: dict[str, str] = {}
        for name, partner in partners.items():
            known = before.partners.get(name)
            public = given_keys(partner)[key] or (known.public(key) if known and name not in rotated else None)
            if public is not None and holders.setdefault(public, name) != name:
                raise ConfigError(
                    f"{name} and {holders[public]} have the same {key} key; every partner needs its own: one of them"
                    " runs `hushclick keys rotate`"
                )


def remove_others(place: Place, consortium: Consortium, issued: Issued) -> dict[str, Path]:
    """Takes out who is not in the consortium any more, and returns partner -> where its kit lies now."""
    homes = place.root / "partners"
    there = {path.name for path in homes.iterdir() if path.is_dir()} if homes.is_dir() else set()
    removed = {}
    for name in sorted((there | set(issued.partners)) - set(consortium.names)):
        (place.server / "nodes" / f"{name}.pub").unlink(missing_ok=True)
        target, number = place.root / "removed" / name, 1
        while target.exists():
            number += 1
            target = place.root / "removed" / f"{name}.{number}"
        if place.partner(name).exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            place.partner(name).rename(target)
        removed[name] = target
    return removed


def write_kits(
    shelf: Shelf, consortium: Consortium, config: Config, roster: Roster, issued: Issued, signer: x509.Certificate
) -> None:
    """Writes every file that is no private key."""
    shared = {
        "ca.crt": certificate_pem(signer).decode(),
        "signing.pub": public_pem(issued.signing).decode(),
        "roster.toml": f"kit = {KIT_VERSION}\n\n{dump_roster(roster)}",
        "card.toml": texts.CARD,
        ".gitignore": texts.IGNORE,
    }
    server = {
        "run.toml": f"# Run of {consortium.name}; of [data], a deployment reads `partners`.\n{dump_config(config)}",
        "server.toml": texts.server_toml(consortium),
        "README.md": texts.server_readme(consortium),
    }
    nodes = {f"nodes/{name}.pub": f"{keys.node} {name}\n" for name, keys in issued.partners.items()}
    shelf.put(".gitignore", texts.IGNORE)
    _put(shelf, "server", shared | server | nodes)
    tables = policy_tables(config)
    for partner in consortium.partners:
        keys = issued.partners[partner.name]
        own = {
            "node.pub": nodes[f"nodes/{partner.name}.pub"],
            "worker.toml": texts.worker_toml(consortium, partner, tables, config),
            "client.toml": texts.client_toml(consortium, partner),
            "README.md": texts.partner_readme(consortium, partner, keys),
        }
        _put(shelf, f"partners/{partner.name}", shared | own)


def _put(shelf: Shelf, folder: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        shelf.put(f"{folder}/{name}", text)


def attention(
    place: Place, consortium: Consortium, kept: list[str], signer: x509.Certificate, now: datetime
) -> list[str]:
    """Returns what the operator must mend: certificates that do not hold, files that were changed by hand."""
    lines = authority_problems(signer, now)
    if ends_soon(signer, now):
        lines.append(
            f"the authority's certificate ends on {signer.not_valid_after_utc:%Y-%m-%d}: plan a new consortium folder"
        )
    if (place.server / "server.crt").exists():
        found = load_certificate(place.server / "server.crt")
        for host in consortium.server.certified:
            lines += server_problems(found, signer, host, now)
        if ends_soon(found, now):
            lines.append(f"the server's certificate ends on {found.not_valid_after_utc:%Y-%m-%d}: --rotate-server")
    else:
        lines.append(f"{place.server / 'server.crt'} is not here, so nobody looked whether it ends soon")
    lines += [f"{name} was changed by hand and is left alone; what it would be now is {name}.new" for name in kept]
    return list(dict.fromkeys(lines))


def notes(config: Config, before: Issued, issued: Issued, *, roster_is_new: bool) -> list[str]:
    """Returns what the operator should know and need not mend."""
    lines = []
    ours = [name for name, keys in issued.partners.items() if "identity" in keys.made_here]
    if config.aggregation.method == "secure" and ours:
        lines.append(
            f"the identity keys of {', '.join(sorted(ours))} were made here: who has one can take that partner's place"
            " in secure aggregation; `hushclick keys new` at the partner rules that out"
        )
    if config.aggregation.method == "plain":
        lines.append('aggregation.method = "plain": the server sees every update')
    if config.privacy.mode == "none":
        lines.append('privacy.mode = "none": nothing protects the partners\' users')
    if config.privacy.mode == "label":
        lines.append(
            'privacy.mode = "label": click labels alone are protected; who was shown what, when and in which context,'
            " is not"
        )
    if before.partners and roster_is_new:
        lines.append(
            "the roster is another: every partner takes the new roster.toml, and the server too, since its hash is in"
            " every round"
        )
    if before.partners and len(before.partners) != len(issued.partners):
        lines.append(
            f"data.partners is {len(issued.partners)}, it was {len(before.partners)}: a run that was begun before"
            " starts anew, in another run folder"
        )
    lines.append("private keys that were handed over can be deleted here: they count as issued and are not made again")
    return lines
