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
    """One command: what it is for, and the module that has its `command` and `show`; None = not built yet."""

    help: str
    module: str | None = None
    takes: str = "config"  # config (a TOML) or run (a run folder)
    options: tuple[tuple[str, Mapping[str, Any]], ...] = ()  # beyond those that every command has


_SIMULATE_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
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

COMMANDS: dict[str, Command] = {
    "simulate": Command(
        "train over simulated partners on this machine, and write a report",
        "simulations.run",
        options=_SIMULATE_OPTIONS,
    ),
    "sweep": Command("draw utility against privacy over seeds and settings"),
    "audit": Command("attack a run's privacy claim and print the lower bound"),
    "budget": Command("plan, show and forecast a partner's privacy budget"),
    "check": Command("preflight of a partner: data, keys, network, budget"),
    "provision": Command("make one kit per partner"),
    "keys": Command("make and rotate a partner's keys"),
    "server": Command("run the coordinator of a deployment"),
    "worker": Command("run a partner's worker"),
    "client": Command("run a partner's client"),
    "report": Command("write a run folder's report.html again", "server.report_command", takes="run"),
    "data": Command("read the clicks of a configuration and say what is in them", "simulations.data_command"),
    "predict": Command("score rows with a trained model"),
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
        text = command.help if command.module else f"{command.help} (not in this version)"
        sub = commands.add_parser(name, help=text, description=command.help.capitalize() + ".", allow_abbrev=False)
        what = "run folder" if command.takes == "run" else "configuration (TOML)"
        sub.add_argument(
            "config", type=Path, nargs="?", metavar="RUN" if command.takes == "run" else "CONFIG", help=what
        )
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
    return parser


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
    command = COMMANDS[arguments.command]
    if command.module is None:
        raise UsageError(f"{arguments.command}: not in this version; CHANGELOG.md says what is")
    if arguments.config is None:
        wanted = "a run folder" if command.takes == "run" else "a configuration: a TOML file"
        raise UsageError(f"{arguments.command} needs {wanted}")
    module = importlib.import_module(command.module)
    result = module.command(arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        module.show(result, arguments)
    return 0


def _complain(text: str, as_json: bool, code: int) -> None:
    """Says what went wrong: on stderr, and as JSON on stdout where JSON was asked for."""
    sys.stderr.write("".join(f"hushclick: {line}\n" for line in text.splitlines()))
    if as_json:
        sys.stdout.write(json.dumps({"error": text, "exit_code": code}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
