"""Canary users: made-up users whose presence in the training data is decided by coins, and found again or not.

A canary is an ordinary user to everything that trains: rows of clicks in a partner's log. Its rows are made so that its
gradient points its own way: copy of random words, drawn for each canary, all shown in one moment and place, half of it
clicked. Rows of one moment do not see each other, so all but their text is the same, and what they would teach of
anything but text cancels: what is left has as many directions as texts have.

Legend: M canaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.card import CONTEXT_PREFIX
from common.config import PrivacyConfig
from common.errors import ConfigError

_NAME = "hushclick-canary-"
_ROWS = 8  # of a canary, where the unit is the user
_WORDS = 6
_TEXTS = 512  # distinct ones: each is encoded once
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Canaries:
    """The canaries of one audit.

    Attributes:
        rows: all of their rows, in or out, by canary; the user of canary m is `name(m)`.
        partner_M: partner number.
        inside_M: whether it is in the training data.
    """

    rows: pd.DataFrame
    partner_M: NDArray[np.int64]
    inside_M: NDArray[np.bool_]

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.partner_M)


def name(canary: int) -> str:
    """Returns a canary's user id; their order as text is their order as numbers."""
    return f"{_NAME}{canary:06d}"


def number_of(user: str) -> int:
    """Returns which canary a user id is, -1 for anybody else."""
    return int(user.removeprefix(_NAME)) if user.startswith(_NAME) else -1


def num_canaries(asked: int, users: int, most_share: float) -> int:
    """Returns how many canaries an audit puts in: what was asked for, or as many as the share allows up to 1,000.

    Raises:
        ConfigError: for more than the share allows: the model would be one of canaries.
    """
    most = int(users * most_share)
    if asked > most:
        raise ConfigError(
            f"audit.canaries = {asked}: at most audit.most_canary_share = {most_share:g} of {users} users, which is"
            f" {most}; with more, the model that is attacked is one of canaries. Lower the one, raise the other, or"
            " bring more users"
        )
    return asked or min(most, 1000)


def make_canaries(
    logs: Sequence[pd.DataFrame], count: int, privacy: PrivacyConfig, generator: np.random.Generator
) -> Canaries:
    """Returns canaries that fit the columns, values and times of the partners' logs.

    Args:
        logs: canonical training rows of each partner.
        count: M.
        privacy: the unit: a canary is one unit, so of one row where that is the impression.
        generator: of everything, the coins included.
    """
    rows_each = _rows_of(privacy)
    size = count * rows_each
    sample = pd.concat([log.head(2000) for log in logs], ignore_index=True)
    texts = [_text(generator) for _ in range(min(size, _TEXTS))]
    text_N = np.concatenate([generator.permutation(len(texts))[:rows_each] for _ in range(count)])
    clicked_N = np.tile(np.arange(rows_each) % 2, count) if rows_each > 1 else generator.integers(2, size=count)
    low, high = int(sample["time"].min()), int(sample["time"].max())
    canary_N = np.repeat(np.arange(count), rows_each)
    time_N = generator.integers(low, high + 1, size=count)[canary_N]
    columns: dict[str, object] = {}
    for column in sample.columns:
        if column == "user":
            columns[column] = [name(int(canary)) for canary in canary_N]
        elif column == "time":
            columns[column] = time_N
        elif column == "text":
            columns[column] = [texts[text] for text in text_N]
        elif column == "item":
            columns[column] = [f"canary-item-{text}" for text in text_N]
        elif column == "clicked":
            columns[column] = clicked_N
        elif column in ("purchased", "history"):
            columns[column] = np.zeros(size, int)
        elif column == "slate":
            columns[column] = [""] * size
        elif column == "domain" or str(column).startswith(CONTEXT_PREFIX):
            known = sorted(set(sample[column]))
            columns[column] = [known[place] for place in generator.integers(len(known), size=count)[canary_N]]
        else:
            columns[column] = sample[column].iloc[0]
    made = pd.DataFrame(columns)
    made = made.astype({column: sample[column].dtype for column in sample.columns})
    return Canaries(made, np.arange(count) % len(logs), generator.random(count) < 0.5)


def planted(logs: Sequence[pd.DataFrame], canaries: Canaries) -> list[pd.DataFrame]:
    """Returns the partners' logs with the canaries that are in."""
    per_canary = len(canaries.rows) // canaries.number
    inside_N, partner_N = np.repeat(canaries.inside_M, per_canary), np.repeat(canaries.partner_M, per_canary)
    return [
        pd.concat([log, canaries.rows[inside_N & (partner_N == number)]], ignore_index=True)
        for number, log in enumerate(logs)
    ]


def _rows_of(privacy: PrivacyConfig) -> int:
    """Returns the rows of a canary: an even number where it can have two."""
    most = min(_ROWS, privacy.max_impressions_per_user) if privacy.unit == "user" else 1
    return most - most % 2 or 1


def _text(generator: np.random.Generator) -> str:
    words = ["".join(generator.choice(_LETTERS, int(generator.integers(3, 9)))) for _ in range(_WORDS)]
    return " ".join(words)
