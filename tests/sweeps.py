"""Small sweeps for tests: a TOML over few users with a tiny model, and the command as its user calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.card import canonical_card
from common.cli import main
from common.clicks import write_clicks
from common.config import GeneratorConfig, to_table
from simulations.generator import generate_clicks

ROUNDS = 2


def write_toml(folder: Path, encoder: Path, **tables: dict[str, Any]) -> Path:
    """Writes a reproducible configuration of 131 users at four partners; tables are laid over it, key by key."""
    table: dict[str, dict[str, Any]] = {
        "data": {
            "source": "generated",
            "partners": 4,
            "generator": {"users": 131, "items": 30, "impressions_per_user": 8},
        },
        "model": {"encoder": f"path:{encoder}", "width": 4, "hidden": 4},
        "round": {"num_rounds": ROUNDS, "local_steps": 1},
        "privacy": {"delta": 1e-4, "sampling_rate": 0.5, "fixed_seed": 7},
        "server": {"optimiser": "fedadam", "learning_rate": 0.05, "floors": ["base_rate"], "bootstrap_samples": 0},
        "output": {"jobs": 1, "title": "Tiny <b>sweep</b>"},
    }
    for name, values in tables.items():
        table[name] = table.get(name, {}) | values
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def private_toml(folder: Path, encoder: Path, **tables: dict[str, Any]) -> Path:
    """Writes the same over a log of its own (`data.source = "files"`), so that it is charged."""
    rows = generate_clicks(GeneratorConfig(users=131, items=30, impressions_per_user=8)).rows
    write_clicks(rows, folder / "clicks.parquet")
    (folder / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    data = {"source": "files", "path": "clicks.parquet", "card": "card.toml", "partners": 4}
    path = write_toml(folder, encoder, **tables)
    text = path.read_text(encoding="utf-8").partition("[data]")
    rest = text[2][text[2].index("[model]") :]
    path.write_text(f"{text[0]}{tomli_w.dumps({'data': data})}\n{rest}", encoding="utf-8")
    return path


def sweep(toml: Path, out: Path, *words: str) -> int:
    """Returns the exit code of the command."""
    return main(["sweep", str(toml), "--out", str(out), *words])


def result_of(out: Path) -> dict[str, Any]:
    """Returns what the command left."""
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    return found


def swept(toml: Path, out: Path, *words: str) -> dict[str, Any]:
    """Returns the result of a sweep that must succeed."""
    assert sweep(toml, out, *words) == 0
    return result_of(out)


def refused(capsys: pytest.CaptureFixture[str], toml: Path, out: Path, *words: str) -> tuple[int, str]:
    """Returns exit code and complaint of a sweep."""
    code = sweep(toml, out, *words)
    return code, capsys.readouterr().err
