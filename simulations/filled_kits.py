"""Kits of an example consortium, filled in with the clicks of a public or generated log: a deployment to try out.

What `hushclick provision` hands out, and what the partners and the operator then fill in themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from common.card import canonical_card
from common.certificates import utc_now
from common.clicks import write_clicks
from common.config import Config, DataConfig, dump_config, read_toml, to_table
from common.errors import ConfigError
from server.provision.command import Wanted, provision
from server.provision.consortium import load_consortium
from simulations.partners import build_partners, users_trained
from simulations.sizes import declared
from simulations.sources import load_source

CLICKS = "clicks.parquet"
CENTRAL = "central.parquet"


@dataclass(frozen=True)
class Example:
    """An example consortium.

    Attributes:
        names: of its partners, one for each of `data.partners`.
        hosts: that the server's certificate is for; kits say the first.
        port: of the server.
        worker, server: partner -> changes to its worker.toml, and changes to server.toml; tables are merged.
    """

    names: Sequence[str]
    hosts: Sequence[str]
    port: int
    worker: Mapping[str, Mapping[str, Any]]
    server: Mapping[str, Any]


def fill_kits(config: Config, example: Example, folder: Path) -> Path:
    """Returns the folder of kits that it made in `folder`, with clicks, data cards and policies filled in.

    Raises:
        ConfigError: for another number of partners than names, or a run that cannot be deployed.
        DataError: where the clicks cannot be used.
    """
    if config.data.partners != len(example.names):
        raise ConfigError(
            f"data.partners = {config.data.partners}: this example has {len(example.names)}"
            f" ({', '.join(example.names)}); set data.partners = {len(example.names)}"
        )
    training, central = _clicks(config.data, example.names)
    sizes = {name: declared(users_trained(rows)) for name, rows in training.items()}
    (folder / "run.toml").write_text(dump_config(config), encoding="utf-8")
    table = {
        "name": "Example consortium",
        "run": "run.toml",
        "server": {"host": list(example.hosts), "port": example.port},
        "partners": [{"name": name, "declared_users": users} for name, users in sizes.items()],
    }
    (folder / "consortium.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    kits = folder / "kits"
    provision(load_consortium(folder / "consortium.toml"), kits, Wanted(), utc_now())
    for name, rows in training.items():
        _bring(rows, kits / "partners" / name, CLICKS)
        _change(kits / "partners" / name / "worker.toml", example.worker.get(name, {}))
    _bring(central, kits / "server", CENTRAL)
    _change(kits / "server" / "server.toml", example.server)
    return kits


def _clicks(data: DataConfig, names: Sequence[str]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Returns partner -> its clicks, and the held-out ones of all partners' users, which only an example can have."""
    logs = build_partners(load_source(data), data)
    return dict(zip(names, logs.training, strict=True)), logs.central[list(logs.training[0].columns)]


def _bring(rows: pd.DataFrame, kit: Path, name: str) -> None:
    write_clicks(rows, kit / name)
    (kit / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")


def _change(path: Path, changes: Mapping[str, Any]) -> None:
    table = read_toml(path)
    for key, value in changes.items():
        table[key] = table.get(key, {}) | dict(value) if isinstance(value, Mapping) else value
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
