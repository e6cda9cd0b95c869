"""Runs tests on request, each in a fork of a process that has the third-party packages loaded already.

Reads lines `test<TAB>path`; writes pytest's output to the path and its exit code, one a line, to standard output.
Nothing of the project is loaded before the fork, so that every test reads the source as it stands then.
"""

import importlib
import os
import sys

HEAVY = (
    "torch",
    "opacus.grad_sample",
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.common.serde",
    "flwr.supercore.task_identity",
    "pandas",
    "pandera",
    "pyarrow.parquet",
    "transformers",
    "hypothesis.strategies",
    "pydantic.dataclasses",
    "safetensors.numpy",
    "sklearn.metrics",
    "dp_accounting",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "pytest",
)
ARGUMENTS = ("-x", "-q", "--no-header", "-p", "no:warnings")


def run_in_fork(test: str, path: str) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = int(importlib.import_module("pytest").main([*ARGUMENTS, test]))
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        test, path = line.rstrip("\n").split("\t")
        sys.stdout.write(f"{run_in_fork(test, path)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
