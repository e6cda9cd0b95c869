"""Who may take part, pinned at every partner: name, Ed25519 public key, public weight. The server vouches for nobody.

A participant's number is its place in the roster, from 1; it is also its coordinate in Shamir's scheme.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from common.config import STRICT, parse_table, read_toml, to_table
from common.errors import ConfigError, ProtocolError
from common.kit import take_version
from common.secagg.parameters import MOST_PARTICIPANTS
from common.secagg.transcript import digest

WEIGHT_UNIT = 2**32  # weights travel as whole multiples of its inverse


@checked_dataclass(frozen=True, config=STRICT)
class Member:
    """One line of the roster; `weight` is the partner's public share in a mean, and its cap."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # Ed25519, hex
    weight: Annotated[float, Field(gt=2**-32, le=1)] = 1.0

    @property
    def units(self) -> int:
        """The weight as a whole number of 2^-32."""
        return round(self.weight * WEIGHT_UNIT)


@checked_dataclass(frozen=True, config=STRICT)
class _File:
    member: tuple[Member, ...]


@dataclass(frozen=True)
class Roster:
    """Members in name order; participant numbers are their places, from 1.

    Raises:
        ConfigError: for a name or a key that is there twice, too many members, or none.
    """

    members: tuple[Member, ...]
    hash: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.members, key=lambda member: member.name))
        object.__setattr__(self, "members", ordered)
        for what, values in (
            ("name", [member.name for member in ordered]),
            ("public key", [member.public_key for member in ordered]),
        ):
            twice = {value for value in values if values.count(value) > 1} if len(set(values)) < len(values) else set()
            if twice:
                raise ConfigError(f"roster: the {what} {min(twice)} is there twice; every member needs its own")
        if not 1 <= len(ordered) <= MOST_PARTICIPANTS:
            raise ConfigError(f"roster: {len(ordered)} members, must be from 1 to {MOST_PARTICIPANTS}")
        parts: list[Any] = [part for member in ordered for part in (member.name, member.public_key, member.units)]
        object.__setattr__(self, "hash", digest("roster", *parts))

    def __len__(self) -> int:
        return len(self.members)

    def number(self, name: str) -> int:
        """Returns a member's number; raises `ProtocolError` for a name outside the roster."""
        for place, member in enumerate(self.members, start=1):
            if member.name == name:
                return place
        raise ProtocolError(f"{name} is not in the roster")

    def member(self, number: int) -> Member:
        """Returns the member with a number; raises `ProtocolError` for a number outside the roster."""
        if not 1 <= number <= len(self.members):
            raise ProtocolError(f"participant {number}: the roster has {len(self.members)} members")
        return self.members[number - 1]

    def public_key(self, number: int) -> bytes:
        """Returns the Ed25519 public key of a number, 32 bytes."""
        return bytes.fromhex(self.member(number).public_key)


def load_roster(path: Path) -> Roster:
    """Returns the roster in a TOML file of `[[member]]` tables, or raises `ConfigError`."""
    table = read_toml(path)
    take_version(table, path, needed=False)  # a simulation's roster belongs to no kit
    return Roster(parse_table(_File, table).member)


def dump_roster(roster: Roster) -> str:
    """Returns the TOML text of a roster."""
    return tomli_w.dumps({"member": [to_table(member) for member in roster.members]})
