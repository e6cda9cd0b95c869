"""`hushclick report RUN`: writes a run folder's report.html again from its metrics and configuration."""

import argparse
import sys
from typing import Any

from common.errors import UsageError
from common.runfolder import RunFolder
from server.report import write_report


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the report and returns where it is."""
    if arguments.set or arguments.out:
        raise UsageError("report takes neither --set nor --out: it shows a run as it was, in its own folder")
    if not arguments.config.is_dir():
        raise UsageError(f"{arguments.config}: no such run folder")
    return {"report": str(write_report(RunFolder(arguments.config.resolve())))}


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Says where the report is."""
    sys.stdout.write(f"{result['report']}\n")
