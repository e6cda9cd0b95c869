"""`hushclick keys new | rotate | show`: a partner's own keys, made where they are used; only public halves are printed.

`identity.pem` signs this partner's part in every sum (Ed25519); `node.key` is what the server knows its connection by
(ECDSA P-384, OpenSSH form). The public halves also go into `public.toml`, two lines for the operator.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from client.keys_show import describe
from common.errors import ConfigError, UsageError
from common.keyfiles import (
    load_ed25519,
    load_node_key,
    new_curve_key,
    openssh,
    pem,
    public_hex,
    public_line,
    replace_private,
    write_private,
)
from common.runfolder import write_atomically

KeyName = Literal["identity", "node"]

FILES: dict[KeyName, str] = {"identity": "identity.pem", "node": "node.key"}
_WIDTH = 110
_NEXT = {
    "new": "Send the operator these lines of {file}, and no other file: they go under this partner's [[partners]].",
    "rotate": (
        "Send the operator these lines of {file}. Until its answer, a new kit, is here, this partner takes part in"
        " nothing: the others know the old keys."
    ),
}


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what `keys new`, `keys rotate` or `keys show` made or found; never a private half.

    Raises:
        UsageError: for options that the action does not take.
        ConfigError: where a key is there already, is not there, or is not what it should be.
    """
    if arguments.set:
        raise UsageError(f"keys {arguments.action} takes no --set")
    actions: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"new": _new, "rotate": _rotate, "show": _show}
    return actions[arguments.action](arguments)


def exit_code(result: dict[str, Any]) -> int:
    """Returns 1 where a key that is shown can be read by others."""
    return 0 if result.get("ok", True) else 1


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the public halves as lines of TOML, or what a file holds."""
    console = Console(width=_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if arguments.action == "show":
        for name, value in result.items():
            if name not in ("ok", "mend"):
                say(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
        if "mend" in result:
            say(f"MEND  {result['mend']}")
        return
    for path in result["made"]:
        say(f"made {path}")
    for path in result["kept"]:
        say(f"kept {path}: the old key; delete it once the new one is in use")
    say(_NEXT[arguments.action].format(file=result["public_file"]))
    say(_lines(result))


def _lines(result: dict[str, Any]) -> str:
    keys = "identity_public_key", "node_public_key"
    return tomli_w.dumps({key: result[key] for key in keys if key in result}).rstrip()


def _chosen(arguments: argparse.Namespace) -> list[KeyName]:
    return [name for name in FILES if arguments.only in (None, name)]


def _new(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.config is not None:
        raise UsageError("keys new takes no file: hushclick keys new --out DIR")
    if arguments.out is None:
        raise UsageError("keys new needs --out DIR: the folder in which this partner's keys are to lie")
    folder, chosen = arguments.out, _chosen(arguments)
    there = [str(folder / FILES[name]) for name in chosen if (folder / FILES[name]).exists()]
    if there:
        raise ConfigError(
            f"{', '.join(there)}: there already; a key is never overwritten: `hushclick keys rotate` replaces it, and"
            " --only identity or --only node makes the other one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        write_private(folder / FILES[name], _fresh(name))
    return _made(folder, [str(folder / FILES[name]) for name in chosen], [])


def _rotate(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.out is not None:
        raise UsageError("keys rotate takes no --out: hushclick keys rotate DIR")
    folder = arguments.config
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the one with this partner's keys")
    chosen = [name for name in _chosen(arguments) if (folder / FILES[name]).exists()]
    if not chosen:
        missing = " and no ".join(FILES[name] for name in _chosen(arguments))
        raise ConfigError(f"{folder}: no {missing} to replace; `hushclick keys new --out {folder}` makes one")
    kept = [str(replace_private(folder / FILES[name], _fresh(name))) for name in chosen]
    return _made(folder, [str(folder / FILES[name]) for name in chosen], kept)


def _show(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.out is not None:
        raise UsageError("keys show takes no --out: it prints")
    return describe(arguments.config)


def _fresh(name: KeyName) -> bytes:
    return pem(Ed25519PrivateKey.generate()) if name == "identity" else openssh(new_curve_key())


def _made(folder: Path, made: list[str], kept: list[str]) -> dict[str, Any]:
    """Returns the outcome, and writes the public halves of the keys that are in the folder now."""
    public: dict[str, str] = {}
    if (folder / FILES["identity"]).exists():
        public["identity_public_key"] = public_hex(load_ed25519(folder / FILES["identity"], "no identity key"))
    if (folder / FILES["node"]).exists():
        public["node_public_key"] = public_line(load_node_key(folder / FILES["node"]).public_key())
        write_atomically(folder / "node.pub", (public["node_public_key"] + "\n").encode())
    path = folder / "public.toml"
    write_atomically(path, tomli_w.dumps(public).encode())
    return {"folder": str(folder), "made": made, "kept": kept, "public_file": str(path), **public}
