"""Partners that may count the users they share: folders with identities and one roster, as real partners have them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from partner_folder import write_partner

from client.identity import new_identity
from client.partner import PartnerAggregation, PartnerConfig, PartnerOverlap, dump_partner, load_partner
from common.secagg.roster import Member, Roster, dump_roster

NAMES = ("shop-a", "shop-b", "shop-c")
NOW = 1_800_000_000.0


def rows_of(users: list[str]) -> pd.DataFrame:
    """Returns a log of one row per user."""
    return pd.DataFrame(
        {
            "user": pd.Series(users, dtype="str"),
            "time": range(1_700_000_000, 1_700_000_000 + len(users)),
            "item": pd.Series(["i1"] * len(users), dtype="str"),
            "text": pd.Series(["a text"] * len(users), dtype="str"),
            "clicked": pd.Series([number % 2 for number in range(len(users))], dtype="int8"),
            "domain": pd.Series([""] * len(users), dtype="str"),
        }
    )


def write_pair(
    home: Path, encoder: Path, users: dict[str, list[str]], *, privacy: dict[str, Any] | None = None, **overlap: Any
) -> dict[str, PartnerConfig]:
    """Writes the folders of partners that name all others in `overlap.partners`, and returns their configurations."""
    members = {}
    for name in users:
        write_partner(home / name, encoder, rows_of(users[name]), name=name, aggregation=PartnerAggregation())
        members[name] = Member(name, new_identity(home / name / "identity.pem"))
    roster = dump_roster(Roster(tuple(members.values())))
    for name in users:
        (home / name / "roster.toml").write_text(roster, encoding="utf-8")
        others = tuple(sorted(set(users) - {name}))
        settings: dict[str, Any] = {"partners": others, "least_users": 100} | overlap
        change(home / name, overlap=PartnerOverlap(**settings), privacy=privacy or {})
    return {name: load_partner(home / name / "partner.toml") for name in users}


def change(folder: Path, overlap: PartnerOverlap | None = None, privacy: dict[str, Any] | None = None) -> PartnerConfig:
    """Rewrites a partner's own TOML and returns what it says then."""
    path = folder / "partner.toml"
    config = load_partner(path)
    config = replace(config, overlap=overlap or config.overlap, privacy=replace(config.privacy, **privacy or {}))
    path.write_text(dump_partner(config), encoding="utf-8")
    return load_partner(path)
