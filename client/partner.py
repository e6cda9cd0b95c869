"""What one partner says in its own TOML: who it is, where its clicks and ledger lie, what it allows.

Nothing here comes from the server, and nothing that the server sends can change it.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from common.config import STRICT, ModelConfig, Positive, PrivacyConfig, parse_table, read_toml, to_table
from common.errors import ConfigError
from common.noise_shares import shares_of
from common.secagg.parameters import Policy


@dataclass(frozen=True, config=STRICT)
class PartnerAggregation:
    """What this partner allows when contributions are summed; a server that asks for less is refused."""

    method: Literal["secure", "plain"] = "secure"  # secure = a plain update never leaves
    colluders: Annotated[int, Field(ge=0)] = 1  # partners that may collude with the server; all partners state the same
    least_participants: Annotated[int, Field(ge=3)] = 3
    least_threshold: Annotated[int, Field(ge=2)] = 2
    least_bits: Annotated[int, Field(ge=8, le=28)] = 12
    most_bits: Annotated[int, Field(ge=8, le=28)] = 28
    update_bound: Annotated[float, Field(ge=0.001, le=1_000_000)] = 4.0  # on one coordinate of a weighted update
    round_secrets: Literal["memory", "disk"] = "memory"  # disk = sealed in the state folder; survives a restart

    def policy(self) -> Policy:
        """Returns the bounds as the protocol takes them."""
        return Policy(
            self.colluders,
            self.least_participants,
            self.least_threshold,
            self.least_bits,
            self.most_bits,
            self.update_bound,
        )


@dataclass(frozen=True, config=STRICT)
class PartnerConfig:
    """One partner's own configuration; relative paths are taken from the file's folder."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    clicks: str  # CSV or Parquet
    card: str  # data card: which column plays which role
    ledger: str  # append-only privacy ledger
    state: str  # folder for the last contribution sent, so that a retry never draws fresh noise
    declared_users: Positive  # published; the divisor of steps and the partner's weight, never read off the data
    identity: str = ""  # this partner's signing key (PEM); needed where aggregation.method = "secure"
    roster: str = ""  # all partners' names and public keys, agreed among partners; the server does not vouch for it
    model: ModelConfig = field(default_factory=ModelConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    aggregation: PartnerAggregation = field(default_factory=PartnerAggregation)

    @property
    def noise_shares(self) -> int:
        """The parts of the noise that this partner's own policy guarantees in every sum."""
        policy = self.aggregation
        return shares_of(self.privacy.mode, policy.least_participants, policy.colluders)

    def __post_init__(self) -> None:
        if self.privacy.mode != "none" and self.privacy.noise_multiplier is None:
            raise ConfigError(
                f"{self.name}: privacy.noise_multiplier is unset; a partner states its own noise"
                f' (privacy.mode = "{self.privacy.mode}")'
            )
        if self.aggregation.method == "secure" and not (self.identity and self.roster):
            raise ConfigError(f'{self.name}: identity or roster is unset; aggregation.method = "secure" needs both')
        if self.privacy.mode == "distributed" and (self.aggregation.method == "plain" or self.noise_shares < 2):
            raise ConfigError(
                f'{self.name}: privacy.mode = "distributed" needs aggregation.method = "secure", and'
                f" aggregation.least_participants at least 2 over aggregation.colluders (they are"
                f" {self.aggregation.least_participants} and {self.aggregation.colluders})"
            )
        if self.privacy.mode != "none" and self.model.item_rates != "none":
            raise ConfigError(f"{self.name}: model.item_rates needs exact counts, which are not private")


def load_partner(path: Path) -> PartnerConfig:
    """Returns a partner's configuration with absolute paths, or raises `ConfigError`."""
    table = read_toml(path)
    for key in ("clicks", "card", "ledger", "state", "identity", "roster"):
        if isinstance(table.get(key), str) and table[key]:
            table[key] = str((path.parent / table[key]).resolve())
    return parse_table(PartnerConfig, table)


def dump_partner(config: PartnerConfig) -> str:
    """Returns the TOML text of a partner's configuration."""
    return tomli_w.dumps(to_table(config))
