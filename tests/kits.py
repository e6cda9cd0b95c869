"""A small consortium as an operator writes it, and the kits that `provision` makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.cli import main

RUN = {
    "round": {"num_rounds": 4, "local_steps": 2},
    "privacy": {"epsilon": 6.0, "sampling_rate": 0.1, "noise_multiplier": 0.9},
}
PARTNERS = (("shop-a", 1200), ("shop-b", 600), ("shop-c", 300), ("shop-d", 1200))


def consortium(**change: Any) -> dict[str, Any]:
    """Returns the table of a consortium of four, on loopback."""
    return {
        "name": "Example ads",
        "run": "run.toml",
        "server": {"host": ["localhost", "127.0.0.1"], "port": 8443},
        "partners": [{"name": name, "declared_users": users} for name, users in PARTNERS],
    } | change


def write(home: Path, table: dict[str, Any], run: dict[str, Any] | None = None) -> Path:
    """Writes a consortium's file and its run's."""
    (home / "run.toml").write_text(tomli_w.dumps(RUN if run is None else run), encoding="utf-8")
    path = home / "consortium.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


class Operator:
    """Runs `hushclick provision` in a folder, and reads what it says."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.kits, self._capsys = home, home / "kits", capsys

    def provision(self, table: dict[str, Any], *words: str, run: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the outcome of a run that must go well."""
        code = main(["provision", str(write(self.home, table, run)), "--out", str(self.kits), "--json", *words])
        captured = self._capsys.readouterr()
        assert code == 0, captured.err
        result: dict[str, Any] = json.loads(captured.out)
        return result

    def refused(self, table: dict[str, Any], *words: str, run: dict[str, Any] | None = None) -> str:
        """Returns the error of a run that must be refused."""
        code = main(["provision", str(write(self.home, table, run)), "--out", str(self.kits), *words])
        captured = self._capsys.readouterr()
        assert code in (1, 2), captured.out
        assert "Traceback" not in captured.err
        return captured.err

    def partner(self, name: str) -> Path:
        """The folder of a partner's kit."""
        return self.kits / "partners" / name

    def private_files(self) -> dict[Path, bytes]:
        """Every private file in the kits' folder."""
        return {path: path.read_bytes() for path in sorted(self.kits.rglob("*")) if is_private(path)}


def is_private(path: Path) -> bool:
    """Whether a file holds a private half."""
    return path.is_file() and b"PRIVATE KEY-----" in path.read_bytes()
