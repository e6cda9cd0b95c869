"""A configuration -> a run folder that the deployed apps can start from: one folder per partner, and the central log.

Each simulated partner gets what a real one would bring: a click log, a data card and its own `partner.toml`.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tomli_w

from client.identity import new_identity
from client.partner import PartnerAggregation, PartnerConfig, dump_partner
from common.card import Columns, DataCard, Time, canonical_card, load_card, require_sampling
from common.clicks import write_clicks
from common.config import Config, DataConfig, ModelConfig, dump_config, read_toml, to_table
from common.keyfiles import public_pem
from common.model.tail import dealt, require_tunable
from common.noise_shares import least_in_a_sum
from common.pretrained import locate
from common.runfolder import RunFolder, partner_name, write_atomically, write_json
from common.secagg.parameters import LEAST_PARTICIPANTS
from common.secagg.roster import Member, Roster, dump_roster
from common.textstates import encode_texts
from server.central import mark_sampling
from simulations.partners import (
    PartnerLogs,
    build_partners,
    users_trained,
    whole_log,
    with_click_rate,
    with_rule,
    write_central,
)
from simulations.sizes import declared
from simulations.sources import load_source
from simulations.spending import with_noise

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RunData:
    """What runs over the same clicks have in common: read, split, partitioned and encoded once."""

    logs: PartnerLogs
    declared_users: tuple[int, ...]  # what each partner publishes as its size
    facts: dict[str, Any]  # the `data` part of metrics.json
    timings: dict[str, float]
    catalogue: Mapping[str, str] | None = None  # item -> domain; None = what the logs hold


@dataclass(frozen=True)
class Preparation:
    """What preparing a run found and took."""

    config: Config  # effective: noise calibrated, what partners hold out said
    facts: dict[str, Any]  # the `data` part of metrics.json
    timings: dict[str, float]


def prepare(
    config: Config, folder: RunFolder, progress: Progress | None = None, data: RunData | None = None
) -> Preparation:
    """Writes the run folder of a configuration, over clicks that `read_data` reads where they are not given.

    Raises:
        ConfigError: when no noise gives the asked epsilon.
        DataError, PretrainedError: as `read_data`.
    """
    config = with_noise(config)
    if config.data.source == "files" or config.model.unclicked_kept < 1:
        require_sampling(_card_of(config.data), config.model.unclicked_kept)
    data = data or read_data(config.data, config.model, progress)
    config = with_click_rate(with_rule(config, data.logs.report["cut_time"]), data.facts)
    _write(config, folder, data)
    write_json(folder.preparation, {"data": data.facts, "timings": data.timings})
    # Last: a folder with a configuration is a folder that can be resumed.
    write_atomically(folder.config, dump_config(config).encode())
    return Preparation(config, data.facts, data.timings)


def _card_of(data: DataConfig) -> DataCard:
    """Returns the card of the clicks; sources without a card of their own hold every row."""
    if data.source == "files":
        return load_card(Path(data.card))
    return DataCard(Columns(user="user", time="time", text=("text",), clicked="clicked"), Time("seconds"))


def read_data(data: DataConfig, model: ModelConfig, progress: Progress | None = None) -> RunData:
    """Reads, splits and partitions the clicks, and encodes each distinct text once.

    Raises:
        DataError: when the clicks cannot be used.
        PretrainedError: when the text encoder is not there or not what it says.
    """
    started = time.monotonic()
    pretrained = locate(model.encoder, model.encoder_sha256, model.cache)
    require_tunable(model, pretrained)
    logs = build_partners(load_source(data), data)
    read = time.monotonic()
    texts = sorted(set(logs.central["text"]).union(*(part["text"] for part in logs.training)))
    encoded = encode_texts(texts, model, pretrained, progress)
    done = time.monotonic()
    facts = {"source": data.source} | logs.report
    facts["texts"] = {"distinct": len(texts), "encoded": encoded.encoded, "reused": encoded.reused}
    users = tuple(declared(users_trained(rows)) for rows in logs.training)
    return RunData(logs, users, facts, {"read_seconds": read - started, "encode_seconds": done - read})


def _write(config: Config, folder: RunFolder, data: RunData) -> None:
    folder.ledgers.mkdir(parents=True, exist_ok=True)
    logs = data.logs
    for number, (rows, users) in enumerate(zip(logs.training, data.declared_users, strict=True)):
        brought = whole_log(logs, number, config.data.split) if config.evaluation.by_partners else rows
        _write_partner(config, folder, number, brought, users)
    write_roster(config, folder, data.declared_users)
    write_signing_key(folder, len(data.declared_users))
    write_central(mark_sampling(logs.central, config.model.unclicked_kept), folder.central)
    if config.model.item_rates != "none":
        write_json(folder.catalogue, data.catalogue or catalogue_of(logs))


def catalogue_of(logs: PartnerLogs) -> dict[str, str]:
    """Returns item -> domain, as an operator's public catalogue says; a simulation has none but in its logs."""
    listed = pd.concat([rows[["item", "domain"]] for rows in (logs.central, *logs.training)]).drop_duplicates()
    return {str(item): str(domain) for item, domain in listed.groupby("item")["domain"].min().items()}


def _write_partner(config: Config, folder: RunFolder, number: int, rows: pd.DataFrame, users: int) -> None:
    home, name = folder.partner(number), partner_name(number)
    (home / "state").mkdir(parents=True, exist_ok=True)
    write_clicks(rows, home / "clicks.parquet")
    (home / "card.toml").write_text(
        tomli_w.dumps(to_table(canonical_card(rows, config.model.unclicked_kept))), encoding="utf-8"
    )
    least = least_in_a_sum(config) if config.privacy.mode == "distributed" else LEAST_PARTICIPANTS
    partner = PartnerConfig(
        name=name,
        clicks="clicks.parquet",
        card="card.toml",
        ledger=os.path.relpath(folder.ledgers / f"{name}.jsonl", home),
        state="state",
        declared_users=users,
        identity="identity.pem",
        roster="roster.toml",
        signing_key="signing.pub",
        model=dealt(config.model, number),
        privacy=config.privacy,
        evaluation=config.evaluation,
        aggregation=PartnerAggregation(
            method=config.aggregation.method,
            colluders=config.aggregation.colluders,
            least_participants=least,
            update_bound=config.aggregation.update_bound,
        ),
    )
    (home / "partner.toml").write_text(dump_partner(partner), encoding="utf-8")


def write_roster(config: Config, folder: RunFolder, declared_users: Sequence[int]) -> None:
    """Gives every simulated partner a signing key, and everyone the same roster, as partners agree on before a run."""
    largest = max(declared_users)
    members = []
    for number, users in enumerate(declared_users):
        path = folder.partner(number) / "identity.pem"
        path.unlink(missing_ok=True)  # what an earlier, interrupted preparation left
        weight = 1.0 if config.aggregation.weights == "equal" else users / largest
        members.append(Member(partner_name(number), new_identity(path), weight))
    text = dump_roster(Roster(tuple(members))).encode()
    for number in range(len(members)):
        (folder.partner(number) / "roster.toml").write_bytes(text)
    write_atomically(folder.roster, text)


def write_signing_key(folder: RunFolder, partners: int) -> None:
    """Gives the run a key that signs its final model, and every partner the public half, as a kit would."""
    folder.signing_key.unlink(missing_ok=True)  # what an earlier, interrupted preparation left
    public = public_pem(new_identity(folder.signing_key))
    write_atomically(folder.signing_public, public)
    for number in range(partners):
        (folder.partner(number) / "signing.pub").write_bytes(public)


def set_round_secrets(folder: RunFolder, where: Literal["memory", "disk"]) -> None:
    """Says where each partner keeps a round's secrets: on disk where Flower starts a process per message."""
    for path in sorted(folder.root.glob("partners/*/partner.toml")):
        table = read_toml(path)
        table["aggregation"]["round_secrets"] = where
        write_atomically(path, tomli_w.dumps(table).encode())
