"""A configuration -> a run folder that the deployed apps can start from: one folder per partner, and the central log.

Each simulated partner gets what a real one would bring: a click log, a data card and its own `partner.toml`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from client.partner import PartnerConfig, dump_partner
from common.card import canonical_card
from common.clicks import write_clicks
from common.config import Config, dump_config, to_table
from common.pretrained import locate
from common.runfolder import RunFolder, partner_name, write_atomically, write_json
from common.textstates import TextStates, default_cache_dir
from simulations.partners import PartnerLogs, build_partners, write_central
from simulations.sources import load_source
from simulations.spending import with_noise

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Preparation:
    """What preparing a run found and took."""

    config: Config  # effective: noise calibrated
    facts: dict[str, Any]  # the `data` part of metrics.json
    timings: dict[str, float]


def prepare(config: Config, folder: RunFolder, progress: Progress | None = None) -> Preparation:
    """Reads, splits and partitions the clicks, encodes each distinct text once, and writes the run folder.

    Raises:
        DataError: when the clicks cannot be used.
        PretrainedError: when the text encoder is not there or not what it says.
        ConfigError: when no noise gives the asked epsilon.
    """
    started = time.monotonic()
    pretrained = locate(config.model.encoder, config.model.encoder_sha256)
    config = with_noise(config)
    logs = build_partners(load_source(config.data), config.data)
    read = time.monotonic()
    texts = sorted(set(logs.central["text"]).union(*(part["text"] for part in logs.training)))
    store = TextStates(pretrained, config.model.max_tokens, default_cache_dir(config.model.cache))
    encoded = store.states(texts, progress)
    done = time.monotonic()
    facts = {"source": config.data.source} | logs.report
    facts["texts"] = {"distinct": len(texts), "encoded": encoded.encoded, "reused": encoded.reused}
    _write(config, folder, logs)
    timings = {"read_seconds": read - started, "encode_seconds": done - read}
    write_json(folder.preparation, {"data": facts, "timings": timings})
    # Last: a folder with a configuration is a folder that can be resumed.
    write_atomically(folder.config, dump_config(config).encode())
    return Preparation(config, facts, timings)


def _write(config: Config, folder: RunFolder, logs: PartnerLogs) -> None:
    folder.ledgers.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(logs.training):
        _write_partner(config, folder, number, rows)
    write_central(logs.central, folder.central)
    if config.model.item_rates != "none":
        items = sorted(set(logs.central["item"]).union(*(part["item"] for part in logs.training)))
        write_json(folder.root / "catalogue.json", items)


def _write_partner(config: Config, folder: RunFolder, number: int, rows: pd.DataFrame) -> None:
    home, name = folder.partner(number), partner_name(number)
    (home / "state").mkdir(parents=True, exist_ok=True)
    write_clicks(rows, home / "clicks.parquet")
    (home / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    partner = PartnerConfig(
        name=name,
        clicks="clicks.parquet",
        card="card.toml",
        ledger=str(Path("..", "..", "ledgers", f"{name}.jsonl")),
        state="state",
        declared_users=declared(rows["user"].nunique()),
        model=config.model,
        privacy=config.privacy,
    )
    (home / "partner.toml").write_text(dump_partner(partner), encoding="utf-8")


def declared(users: int) -> int:
    """Returns what a simulated partner publishes as its size: the count to two significant digits."""
    return int(float(f"{users:.2g}"))
