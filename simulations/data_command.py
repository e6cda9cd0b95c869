"""`hushclick data CONFIG`: reads and splits the clicks of a configuration and says what is in them.

With `--out DIR` it also writes what each partner would bring: `DIR/partner-0000/clicks.parquet` with its data card, and
the held-out `DIR/central.parquet`.
"""

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.card import SENSITIVE_PREFIX, canonical_card
from common.clicks import write_clicks
from common.config import load_config, to_table
from common.errors import UsageError
from common.proxies import associations, facts_of, warnings_of
from common.sensitive import sensitive_columns
from simulations.partners import PartnerLogs, build_partners, write_central
from simulations.sources import load_source

_SHOWN = 20


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns counts, rates, drops and the partition; writes the logs where `--out` is given."""
    config = load_config(arguments.config, arguments.set)
    log = load_source(config.data)
    logs = build_partners(log, config.data)
    if arguments.out:
        _require_free(arguments.out)
        _write(logs, arguments)
    facts = {"source": config.data.source, "log": asdict(log.report), "partners": dict(logs.report)}
    return facts | _sensitive(log.rows)


def _sensitive(rows: pd.DataFrame) -> dict[str, Any]:
    """Returns which columns are sensitive, and what gives them away; nothing where there are none."""
    columns = [name.removeprefix(SENSITIVE_PREFIX) for name in sensitive_columns(rows)]
    if not columns:
        return {}
    found = associations(rows)
    return {"sensitive": {"columns": columns, "associations": facts_of(found), "warnings": warnings_of(found)}}


def _require_free(folder: Path) -> None:
    """Refuses a folder that holds a run, or logs of an earlier call: partners of two calls would be mixed."""
    if (folder / "config.toml").exists() or (folder / "central.parquet").exists() or any(folder.glob("partner*")):
        raise UsageError(f"--out {folder}: holds a run or earlier logs; give another folder")


def _write(logs: PartnerLogs, arguments: argparse.Namespace) -> None:
    for name, rows in zip(logs.names, logs.training, strict=True):
        home = arguments.out / name
        home.mkdir(parents=True, exist_ok=True)
        write_clicks(rows, home / "clicks.parquet")
        (home / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    write_central(logs.central, arguments.out / "central.parquet")


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Prints the log's facts and the partners' sizes as tables."""
    console = Console()
    facts = Table(title=f"Clicks: {result['source']}", show_header=False)
    for key, value in result["log"].items():
        moment = datetime.fromtimestamp(value, UTC).isoformat(" ") if key in ("first_time", "last_time") else None
        facts.add_row(key.replace("_", " "), escape(moment or _text(value)))
    console.print(facts)
    partners = result["partners"]
    sizes = Table(title=f"{partners['partners']} partners by {partners['partition']}, split {partners['split']}")
    for column in ("partner", "users", "rows", "click rate"):
        sizes.add_column(column, justify="right")
    columns = (partners["users_per_partner"], partners["rows_per_partner"], partners["click_rate_per_partner"])
    for number, (users, rows, rate) in enumerate(list(zip(*columns, strict=True))[:_SHOWN]):
        sizes.add_row(str(number), str(users), str(rows), f"{rate:.3f}")
    console.print(sizes)
    if partners["partners"] > _SHOWN:
        console.print(f"and {partners['partners'] - _SHOWN} more; --json shows all")
    console.print(f"{partners['rows_tested']} held-out rows of {partners['users_tested']} users")
    if "sensitive" in result:
        _show_sensitive(console, result["sensitive"])


def _show_sensitive(console: Console, sensitive: dict[str, Any]) -> None:
    lines = [f"sensitive columns, for slices of the held-out rows and no feature: {', '.join(sensitive['columns'])}"]
    for line in [*lines, *(f"WARN  {warning}" for warning in sensitive["warnings"])]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "none"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return "; ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
