"""The data card: a TOML file that says which column of a click log plays which role.

```toml
[columns]
user = "visitor_id"
time = "shown_at"
text = ["headline", "body"]     # one column, or several that are joined by ". "
clicked = "clicked"             # 0/1, true/false, or a number beside click.threshold
item = "ad_id"                  # optional, as are all below; without it an item is the hash of its text
purchased = "bought"
history = "from_history"        # 1 where the row is only part of its user's past: features see it, nothing else does
slate = "impression_id"         # which rows were shown together
domain = "vertical"
context = ["placement", "device"]

[click]
threshold = 4.0                 # optional: clicked = value >= threshold
unclicked_kept = 0.1            # optional: the log holds this share of the unclicked rows, drawn by chance

[time]
unit = "iso"                    # "seconds" | "milliseconds" | "iso" (without a zone: UTC)

[sensitive]
columns = ["age_band"]          # optional: whose groups evaluation compares; never a feature
```
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from common.config import STRICT, Rate, parse_table, read_toml
from common.errors import ConfigError

CONTEXT_PREFIX = "context:"
SENSITIVE_PREFIX = "sensitive:"

Name = Annotated[str, Field(min_length=1)]


def _as_tuple(value: Any) -> Any:
    """Returns one column's name, or a list of them, as a tuple, and anything else as it is."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=STRICT)
class Columns:
    """Which column plays which role; an empty name means that the log has no such column."""

    user: Name
    time: Name
    text: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    clicked: Name
    item: str = ""
    purchased: str = ""
    history: str = ""
    slate: str = ""
    domain: str = ""
    context: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] = ()

    def names(self) -> list[str]:
        """Returns every mapped column once, in the order of the roles."""
        optional = [name for name in (self.item, self.purchased, self.history, self.slate, self.domain) if name]
        return list(dict.fromkeys([self.user, self.time, *self.text, self.clicked, *optional, *self.context]))


@dataclass(frozen=True, config=STRICT)
class Click:
    """What counts as a click."""

    threshold: float | None = None  # clicked = value >= threshold; unset: the column holds 0/1 already
    unclicked_kept: Rate = 1.0  # share of the unclicked rows that are in the log; 1 = every row is


@dataclass(frozen=True, config=STRICT)
class Time:
    """How moments are written. There is no default: a guessed unit would pass silently."""

    unit: Literal["seconds", "milliseconds", "iso"]


@dataclass(frozen=True, config=STRICT)
class Sensitive:
    """Columns that say to which groups a person belongs. They play no other role: no feature is made of them."""

    columns: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] = ()

    def canonical(self) -> dict[str, str]:
        """Returns column -> its canonical name."""
        return {name: SENSITIVE_PREFIX + name.removeprefix(SENSITIVE_PREFIX) for name in self.columns}


@dataclass(frozen=True, config=STRICT)
class DataCard:
    """The whole card; `load_card` is the usual way to get one."""

    columns: Columns
    time: Time
    click: Click = Field(default_factory=Click)
    sensitive: Sensitive = Field(default_factory=Sensitive)

    def __post_init__(self) -> None:
        problems = _cross_checks(self.columns) + _sensitive_checks(self.columns, self.sensitive)
        if problems:
            raise ConfigError("\n".join(problems))


def _inputs(columns: Columns) -> dict[str, tuple[str, ...]]:
    """Returns role -> columns, for every role but the labels."""
    single = {role: (getattr(columns, role),) for role in ("user", "time", "item", "history", "slate", "domain")}
    return {"text": columns.text, "context": columns.context, **single}


def _cross_checks(columns: Columns) -> list[str]:
    """Returns one line per mapping that would leak a label or give two columns one name."""
    problems = []
    labels = {columns.clicked: "clicked"} | ({columns.purchased: "purchased"} if columns.purchased else {})
    if len(labels) == 1 and columns.purchased:
        problems.append(f'columns.purchased = "{columns.purchased}": the same column as columns.clicked')
    for role, names in _inputs(columns).items():
        problems += [
            f'columns.{role} = "{name}": is columns.{labels[name]} too, which gives the answer away; leave it out'
            for name in names
            if name in labels
        ]
    bare = [name.removeprefix(CONTEXT_PREFIX) for name in columns.context]
    problems += [
        f'columns.context = "{name}": listed twice; leave one out'
        for name in sorted({name for name in bare if bare.count(name) > 1})
    ]
    return problems


def _sensitive_checks(columns: Columns, sensitive: Sensitive) -> list[str]:
    """Returns one line per sensitive column that plays another role, or is listed twice."""
    roles = {**_inputs(columns), "clicked": (columns.clicked,), "purchased": (columns.purchased,)}
    bare = [name.removeprefix(SENSITIVE_PREFIX) for name in sensitive.columns]
    problems = [
        f'sensitive.columns = "{name}": listed twice; leave one out'
        for name in sorted({name for name in bare if bare.count(name) > 1})
    ]
    for role, names in roles.items():
        for name in names:
            if name.startswith(SENSITIVE_PREFIX):
                problems.append(
                    f'columns.{role} = "{name}": was written as a sensitive column, which is never a feature; leave it'
                    " out of columns, or list it in sensitive.columns alone"
                )
            elif name.removeprefix(CONTEXT_PREFIX) in bare or name in bare:
                problems.append(
                    f'sensitive.columns = "{name}": is columns.{role} too, and a sensitive column plays no other role;'
                    f" take it out of columns.{role}, or out of sensitive.columns"
                )
    return problems


def parse_card(table: Mapping[str, Any]) -> DataCard:
    """Returns the card that a parsed TOML table describes.

    Raises:
        ConfigError: for unknown, missing or mistyped keys, and for labels and sensitive columns that are mapped as
            inputs; one line each.
    """
    return parse_table(DataCard, table)


def load_card(path: Path) -> DataCard:
    """Returns the data card in a TOML file.

    Raises:
        ConfigError: when the file is missing, is not TOML, or `parse_card` refuses it; every line names the file.
    """
    if not path.is_file():
        what = "is a folder; give a TOML file" if path.is_dir() else "no such data card; write one, or mend data.card"
        raise ConfigError(f"{path}: {what}")
    table = read_toml(path)
    try:
        return parse_card(table)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def require_sampling(card: DataCard, unclicked_kept: float) -> None:
    """Raises `ConfigError` unless a training log's card says of its sampling what the model is told."""
    if card.click.unclicked_kept != unclicked_kept:
        raise ConfigError(
            f"model.unclicked_kept = {unclicked_kept:g}, and the data card says click.unclicked_kept ="
            f" {card.click.unclicked_kept:g}: they are one thing, the share of unclicked rows that the training logs"
            " hold; mend the one that is wrong"
        )


def canonical_card(rows: pd.DataFrame, unclicked_kept: float = 1.0) -> DataCard:
    """Returns the card under which a file written by `write_clicks` reads back as the same rows."""
    present = set(rows.columns)
    columns = Columns(
        user="user",
        time="time",
        text=("text",),
        clicked="clicked",
        item="item",
        purchased="purchased" if "purchased" in present else "",
        history="history" if "history" in present else "",
        slate="slate" if "slate" in present else "",
        domain="domain",
        context=tuple(name for name in rows.columns if name.startswith(CONTEXT_PREFIX)),
    )
    sensitive = Sensitive(tuple(name for name in rows.columns if name.startswith(SENSITIVE_PREFIX)))
    click = Click(unclicked_kept=unclicked_kept)
    return DataCard(columns=columns, time=Time(unit="seconds"), click=click, sensitive=sensitive)
