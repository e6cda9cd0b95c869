"""`hushclick COMMAND CONFIG [--set key=value ...] [--out DIR] [--json]`: one table of commands, imported on use.

Exit codes: 0 done, 1 failed, 2 usage, 3 budget exhausted, 4 privacy violation found.
"""

import argparse
import importlib
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import HushclickError, UsageError
from common.presets import NAMES, overrides_of

# Before numpy and torch load: several clients share the cores, so each computes on one; and no hub is ever asked.
for _name, _value in (
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
):
    os.environ.setdefault(_name, _value)


@dataclass(frozen=True)
class Command:
    """One command: what it is for, and the module that has its `command` and `show`; None = not built yet.

    A command with actions has no module of its own: the word that follows its name chooses one of them.
    """

    help: str
    module: str | None = None
    takes: str = "config"  # a key of _TAKES
    options: tuple[tuple[str, Mapping[str, Any]], ...] = ()  # beyond those that every command has
    actions: tuple[tuple[str, "Command"], ...] = ()

    @property
    def built(self) -> bool:
        """Whether this version has it."""
        return bool(self.module or self.actions)


# What stands for the positional argument in usage, in help and in an error.
_TAKES = {
    "config": ("CONFIG", "configuration (TOML)", "a configuration: a TOML file"),
    "run": ("RUN", "run folder", "a run folder"),
    "ledger": ("LEDGER", "ledger file, or run folder for all of its ledgers", "a ledger file or a run folder"),
    "consortium": ("CONSORTIUM", "the consortium's own file (TOML)", "a consortium: a TOML file"),
    "keys": ("DIR", "folder with a partner's keys", "a folder with keys"),
    "key": ("FILE", "key or certificate", "a key or certificate file"),
    "registry": ("REGISTRY", "folder of model versions", "a registry: a folder of model versions"),
    "model": ("MODEL", "worker.toml of a partner, or folder of a signed model", "a worker.toml or a model folder"),
    "nothing": ("FILE", argparse.SUPPRESS, ""),  # --out says it all
}


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10**9):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to 1000000000")
    return int(text)


_SECOND_OPINION: tuple[str, Mapping[str, Any]] = (
    "--second-opinion",
    {"action": "store_true", "help": "ask the second accountant (PRV) too; it takes seconds to load"},
)
_BUDGET_ACTIONS = (
    (
        "plan",
        Command(
            "a table over sampling rates and rounds: noise, progress, epsilon",
            "simulations.budget_plan",
            options=(
                ("--users", {"type": _count, "metavar": "N", "help": "users that each partner declares"}),
                ("--parameters", {"type": _count, "metavar": "D", "help": "trained parameters, where not the model's"}),
                _SECOND_OPINION,
            ),
        ),
    ),
    (
        "show",
        Command(
            "what a ledger has spent and has left, per purpose and run; verifies the chain",
            "client.budget_show",
            takes="ledger",
            options=(
                ("--epsilon", {"type": float, "help": "budget, in the place of the partner's policy"}),
                ("--delta", {"type": float, "help": "delta, in the place of the partner's policy"}),
                (
                    "--anchor",
                    {
                        "metavar": "LENGTH:SHA256",
                        "help": "a head kept elsewhere that it must contain, or a server's anchors.jsonl",
                    },
                ),
                _SECOND_OPINION,
            ),
        ),
    ),
    ("forecast", Command("rounds left at the rate of the last one, per partner", "client.budget_forecast", "run")),
)

_PROVISION_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("--rotate", {"action": "append", "default": [], "metavar": "NAME", "help": "new keys for a partner's kit"}),
    ("--rotate-server", {"action": "store_true", "help": "a new certificate and TLS key for the server"}),
    ("--rotate-signing", {"action": "store_true", "help": "a new key for signing models"}),
)
_ONLY_KEY: tuple[str, Mapping[str, Any]] = (
    "--only",
    {"choices": ("identity", "node"), "help": "one of the two keys (default: both)"},
)
_KEYS_ACTIONS = (
    (
        "new",
        Command("make a partner's keys in --out; prints public halves", "client.keys_command", "nothing", (_ONLY_KEY,)),
    ),
    (
        "rotate",
        Command("make new ones in the place of the old, which are kept", "client.keys_command", "keys", (_ONLY_KEY,)),
    ),
    ("show", Command("say what a key or certificate is", "client.keys_command", "key")),
)

_PRESET: tuple[str, Mapping[str, Any]] = (
    "--preset",
    {"choices": NAMES, "help": "settings for a machine: no GPU, one or several; --set comes after them"},
)
_SIMULATE_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    _PRESET,
    ("--resume", {"action": "store_true", "help": "go on with the run in --out from its last good round"}),
    (
        "--engine",
        {
            "choices": ("in-process", "flower"),
            "default": "in-process",
            "help": "in-process (default), or Flower's own Ray simulation of the same apps",
        },
    ),
)

_CHECK_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "--overlap",
        {
            "choices": ("ask", "answer", "count"),
            "help": "in place of the preflight, a step of counting the users that two partners share",
        },
    ),
    ("--with", {"dest": "peer", "metavar": "NAME", "help": "ask: the other partner"}),
    ("--file", {"type": Path, "metavar": "FILE", "help": "answer: the request; count: the response"}),
)

_ERASE_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "--user",
        {
            "action": "append",
            "default": [],
            "metavar": "ID",
            "help": "as the click log spells it, or as overlap.identifiers does; - reads ids from standard input",
        },
    ),
)

_SWEEP_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    _PRESET,
    ("--epsilon", {"type": float, "nargs": "+", "metavar": "EPSILON", "help": "which (default: 1 3 8)"}),
    ("--seeds", {"type": _count, "metavar": "N", "help": "runs of each point, for an interval (default: 5)"}),
    (
        "--modes",
        {
            "nargs": "+",
            "metavar": "MODE",
            "help": "of local, distributed, pooled and none (default: all; none only where clicks are public)",
        },
    ),
    (
        "--vary",
        {"action": "append", "default": [], "metavar": "KEY=V1,V2", "help": "run the whole grid at each of these"},
    ),
    (
        "--set-for",
        {"action": "append", "default": [], "metavar": "MODE:KEY=VALUE", "help": "override one key in one mode"},
    ),
    (
        "--budget",
        {"type": float, "metavar": "EPSILON", "help": "of the whole sweep on private clicks, not privacy.epsilon"},
    ),
    ("--resume", {"action": "store_true", "help": "go on with the sweep in --out; cells that are done are kept"}),
)

_MODEL_KEY: tuple[str, Mapping[str, Any]] = (
    "--key",
    {"type": Path, "metavar": "FILE", "help": "public key (signing.pub) that the model must be signed with"},
)
_MODEL_VERSION: tuple[str, Mapping[str, Any]] = (
    "--version",
    {"dest": "number", "type": _count, "metavar": "N", "help": "which version"},
)
_MODEL_FOLDER: tuple[str, Mapping[str, Any]] = (
    "--model",
    {"type": Path, "metavar": "DIR", "help": "folder of a signed model"},
)
_MODELS_ACTIONS = tuple(
    (action, Command(text, "common.models_command", "registry", options))
    for action, text, options in (
        ("add", "verify a signed model and keep it as the next version", (_MODEL_FOLDER, _MODEL_KEY)),
        ("list", "every version, and which is in use", ()),
        ("show", "lineage of a version: run, base, partners, privacy", (_MODEL_VERSION,)),
        ("promote", "put a version in use", (_MODEL_VERSION,)),
        ("verify", "check signatures and files, of a registry or of one model", (_MODEL_VERSION, _MODEL_KEY)),
    )
)
_PREDICT_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    _MODEL_FOLDER,
    _MODEL_KEY,
    ("--clicks", {"type": Path, "metavar": "FILE", "help": "click log, CSV or Parquet (default: the partner's own)"}),
    ("--card", {"type": Path, "metavar": "FILE", "help": "its data card (default: the partner's own)"}),
    ("--format", {"choices": ("parquet", "csv"), "default": "parquet", "help": "of the scores in --out"}),
    (
        "--next",
        {"type": _count, "metavar": "K", "help": "also the K best next items of each user, of those in the log"},
    ),
)

COMMANDS: dict[str, Command] = {
    "simulate": Command(
        "train over simulated partners on this machine, and write a report",
        "simulations.run",
        options=_SIMULATE_OPTIONS,
    ),
    "sweep": Command(
        "draw utility against privacy over seeds and settings", "simulations.sweep", options=_SWEEP_OPTIONS
    ),
    "audit": Command("attack a run's privacy claim and print the lower bound", "simulations.audit.command"),
    "budget": Command("plan, show and forecast a partner's privacy budget", actions=_BUDGET_ACTIONS),
    "check": Command(
        "preflight of a partner: data, keys, budget; counts users shared with another",
        "client.check",
        options=_CHECK_OPTIONS,
    ),
    "provision": Command(
        "make one kit per partner", "server.provision.command", takes="consortium", options=_PROVISION_OPTIONS
    ),
    "keys": Command("make and rotate a partner's keys", actions=_KEYS_ACTIONS),
    "server": Command("run the coordinator of a deployment", "server.deploy"),
    "worker": Command("run a partner's worker", "client.worker_command"),
    "client": Command("run a partner's client", "client.deploy"),
    "erase": Command(
        "leave a partner's users who ask for it out of everything", "client.erase_command", options=_ERASE_OPTIONS
    ),
    "report": Command("write a run folder's report.html again", "server.report_command", takes="run"),
    "data": Command("read the clicks of a configuration and say what is in them", "simulations.data_command"),
    "models": Command("keep versions of trained models, and say which is in use", actions=_MODELS_ACTIONS),
    "predict": Command(
        "score rows with a trained model", "client.predict_command", takes="model", options=_PREDICT_OPTIONS
    ),
    "rank": Command("rank ads for a user with a trained model"),
    "explain": Command("say why a model ranks an ad where it does"),
    "copy": Command("write ad copy"),
    "refresh": Command("refresh tired creatives"),
    "serve": Command("serve a trained model over HTTP"),
}


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty (an unset variable?); name a folder")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return path


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; nothing of a command is imported for it."""
    parser = argparse.ArgumentParser(
        prog="hushclick", description="Privacy-preserving federated training of click models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        _add(commands, name, command)
    return parser


def _add(commands: Any, name: str, command: Command) -> None:
    """Adds the parser of one command, or of one action of a command."""
    text = command.help if command.built else f"{command.help} (not in this version)"
    sub = commands.add_parser(name, help=text, description=command.help.capitalize() + ".", allow_abbrev=False)
    if command.actions:
        actions = sub.add_subparsers(dest="action", metavar="ACTION", title="actions")
        for action, part in command.actions:
            _add(actions, action, part)
        return
    metavar, what, _ = _TAKES[command.takes]
    sub.add_argument("config", type=Path, nargs="?", metavar=metavar, help=what)
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, such as round.num_rounds=3",
    )
    sub.add_argument("--out", type=_folder, metavar="DIR", help="where results go")
    sub.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    for flag, settings in command.options:
        sub.add_argument(flag, **settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; whatever a user can cause ends in one line, without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title in a script that the terminal lacks is no failure
    try:
        return _run(argv)
    except HushclickError as error:
        _complain(str(error), as_json="--json" in argv, code=error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped", "--json" in argv, 1)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        _complain("not enough memory for this configuration: lower its sizes", "--json" in argv, 1)
        return 1
    except OSError as error:  # a disk that is full, a folder that may not be written to
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}", False, 1)
        return 1


def _run(argv: list[str]) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        sys.stdout.write(f"hushclick {importlib.metadata.version('hushclick')}\n")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 2
    name, command = arguments.command, COMMANDS[arguments.command]
    if command.actions:
        if arguments.action is None:
            raise UsageError(f"{name} needs one of {', '.join(action for action, _ in command.actions)}")
        name, command = f"{name} {arguments.action}", dict(command.actions)[arguments.action]
    if command.module is None:
        raise UsageError(f"{name}: not in this version; CHANGELOG.md says what is")
    if arguments.config is None and command.takes != "nothing":
        raise UsageError(f"{name} needs {_TAKES[command.takes][2]}")
    module = importlib.import_module(command.module)
    if getattr(arguments, "preset", None):
        arguments.set = [*overrides_of(arguments.preset), *arguments.set]
    result = module.command(arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        module.show(result, arguments)
    code: int = module.exit_code(result) if hasattr(module, "exit_code") else 0
    return code


def _complain(text: str, as_json: bool, code: int) -> None:
    """Says what went wrong: on stderr, and as JSON on stdout where JSON was asked for."""
    sys.stderr.write("".join(f"hushclick: {line}\n" for line in text.splitlines()))
    if as_json:
        sys.stdout.write(json.dumps({"error": text, "exit_code": code}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
