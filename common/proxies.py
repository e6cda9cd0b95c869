"""What gives a sensitive column away: mapped columns from whose values it can be read, measured over users.

A sensitive column that is no feature is still one where a feature says the same. Two measures, each looked at on the
machine that holds the log, and nowhere else:

- *explained*: the share of the sensitive column's entropy that knowing the other column takes away (Theil's U, which
  scikit-learn calls homogeneity), less what a column as fine as this one takes away by chance. 1 = can be read off.
- *telling values*: single values of the other column, each of enough users, nearly all of whom are in one group.

Rows of one user are not independent, so users are counted, not rows: each user has weight one, spread over the distinct
values that its rows hold. Chance is measured by shuffling groups among users.

What it does not see: what several columns say together, and what texts mean.

Legend: N rows, U users, P distinct pairs of user and value, V values, S groups.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.special import xlogy
from scipy.stats import binom, entropy

from common.card import CONTEXT_PREFIX, SENSITIVE_PREFIX
from common.sensitive import sensitive_columns, stated_by_row

MOST_EXPLAINED = 0.2  # beyond it a column is named as a proxy
LEAST_USERS = 20  # of a value that is named: of fewer, it could point at somebody
LEAST_SHARE = 0.9  # of a value's users who are in one group
_DOUBT_LEFT = 0.25  # and at most this much of the doubt that there is without the value
_FINE = 0.95  # shuffled groups are explained as well: (nearly) each value is of one user
_SHUFFLES = 20
_LEVEL = 0.01  # chance that any value of a column is named that tells nothing
_LONGEST = 40  # characters of a value that is printed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Telling:
    """A value of a column that tells a group: of its users, `share` are in `group`; of all users, `overall` are."""

    value: str
    group: str
    users: int
    share: float
    overall: float


@dataclass(frozen=True)
class Association:
    """How much one mapped column says of one sensitive column.

    Attributes:
        sensitive: its name, without a prefix.
        column: canonical name of the mapped one.
        explained: less what chance explains; None where each value is of one user, so that nothing can be measured.
        telling: values that tell a group, those of most users first.
    """

    sensitive: str
    column: str
    explained: float | None
    telling: tuple[Telling, ...] = field(default=(), repr=False)  # values of rows

    @property
    def is_proxy(self) -> bool:
        """Whether it is worth a warning."""
        return self.explained is None or self.explained >= MOST_EXPLAINED or bool(self.telling)


def associations(rows: pd.DataFrame) -> list[Association]:
    """Returns how much each column that a model sees says of each sensitive column, what says most first.

    Args:
        rows: canonical rows, sorted by user and time, with their sensitive columns.
    """
    user_N, users = pd.factorize(rows["user"])
    found = []
    for column in sensitive_columns(rows):
        stated_N = stated_by_row(rows, column)
        group_N, groups = pd.factorize(stated_N)
        group_U = np.zeros(len(users), np.int64)
        group_U[user_N] = group_N
        known_U = np.array([group != "" for group in groups])[group_U]
        if len(np.unique(group_U[known_U])) < 2:
            continue  # everybody is in one group: there is nothing to give away
        known_N = known_U[user_N]
        for other in _seen_by_a_model(rows):
            pairs = _pairs(user_N[known_N], rows.loc[known_N, other].to_numpy(object), group_U, groups)
            if len(pairs.values) > 1:
                found.append(_association(column.removeprefix(SENSITIVE_PREFIX), other, pairs))
    return sorted(found, key=lambda one: -1.0 if one.explained is None else -one.explained)


def _seen_by_a_model(rows: pd.DataFrame) -> list[str]:
    """Returns the columns of which features are made; items only where they are not the texts by another name."""
    context = [str(name) for name in rows.columns if str(name).startswith(CONTEXT_PREFIX)]
    items, texts = pd.factorize(rows["item"])[0], pd.factorize(rows["text"])[0]
    return ["text", *([] if (items == texts).all() else ["item"]), "domain", *context]


@dataclass(frozen=True)
class _Pairs:
    """Each distinct pair of a user and a value of one column, and the users' groups, 0..S-1."""

    user_P: Ints  # 0..U-1
    value_P: Ints
    values: list[str]
    group_U: Ints
    groups: list[str]

    @property
    def weight_P(self) -> Floats:
        """One per user, spread evenly over its values."""
        spread: Floats = 1.0 / np.bincount(self.user_P)[self.user_P]
        return spread


def _pairs(user_N: Ints, value_N: npt.NDArray[np.object_], group_U: Ints, groups: Any) -> _Pairs:
    """Returns the pairs of some rows, users and groups numbered anew without those that the rows lack."""
    code_N, values = pd.factorize(value_N)
    kept, own_N = np.unique(user_N, return_inverse=True)
    present, own_group_U = np.unique(group_U[kept], return_inverse=True)
    pair_P = np.unique(own_N.astype(np.int64) * len(values) + code_N)
    return _Pairs(
        user_P=pair_P // len(values),
        value_P=pair_P % len(values),
        values=[str(value) for value in values],
        group_U=own_group_U.astype(np.int64),
        groups=[str(groups[group]) for group in present],
    )


def _association(name: str, column: str, pairs: _Pairs) -> Association:
    generator = np.random.default_rng(0)  # of the measure, not of the data: the same log gives the same figure
    by_chance = np.array([_explained(pairs, generator.permutation(pairs.group_U)) for _ in range(_SHUFFLES)])
    found, chance = _explained(pairs, pairs.group_U), float(by_chance.mean())
    if chance >= _FINE:
        return Association(name, column, None)
    above = found > by_chance.max()
    return Association(name, column, (found - chance) / (1 - chance) if above else 0.0, _telling(pairs))


def _explained(pairs: _Pairs, group_U: Ints) -> float:
    """Returns Theil's U of groups given values: 1 = every value is of one group."""
    shape = len(pairs.values), len(pairs.groups)
    table_VS = coo_matrix((pairs.weight_P, (pairs.value_P, group_U[pairs.user_P])), shape=shape).tocsr()
    weight_V = np.asarray(table_VS.sum(axis=1)).ravel()
    left = float(xlogy(weight_V, weight_V).sum() - xlogy(table_VS.data, table_VS.data).sum()) / len(group_U)
    return 1.0 - left / float(entropy(np.bincount(group_U)))


def _telling(pairs: _Pairs) -> tuple[Telling, ...]:
    """Returns the values of enough users of whom nearly all are in one group, beyond chance."""
    users_S = np.bincount(pairs.group_U, minlength=len(pairs.groups))
    overall_S = users_S / users_S.sum()
    users_V = np.bincount(pairs.value_P, minlength=len(pairs.values))
    large_V = np.flatnonzero(users_V >= LEAST_USERS)
    place = np.full(len(pairs.values), -1)
    place[large_V] = np.arange(len(large_V))
    kept_P = place[pairs.value_P] >= 0
    counts_VS = np.zeros((len(large_V), len(pairs.groups)), np.int64)
    np.add.at(counts_VS, (place[pairs.value_P[kept_P]], pairs.group_U[pairs.user_P[kept_P]]), 1)
    share_VS = counts_VS / users_V[large_V, None]
    chance_VS = binom.sf(counts_VS - 1, users_V[large_V, None], overall_S)
    tells_VS = (share_VS >= LEAST_SHARE) & (1 - share_VS <= _DOUBT_LEFT * (1 - overall_S))
    tells_VS &= chance_VS < _LEVEL / max(counts_VS.size, 1)
    found = [
        Telling(
            pairs.values[large_V[row]],
            pairs.groups[group],
            int(users_V[large_V[row]]),
            float(share_VS[row, group]),
            float(overall_S[group]),
        )
        for row, group in zip(*np.nonzero(tells_VS), strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (-one.users, one.value)))


# --- in words -----------------------------------------------------------------------------------------------------


def warnings_of(found: list[Association]) -> list[str]:
    """Returns a sentence for each column that gives a sensitive one away."""
    return [_sentence(one) for one in found if one.is_proxy]


def _sentence(one: Association) -> str:
    if one.explained is None:
        return (
            f"{one.column} may give {one.sensitive} away: nearly each of its values is of one user, so that it cannot"
            " be measured, and works as an id"
        )
    said = f"{one.column} gives {one.sensitive} away: it explains {one.explained:.0%} of it"
    if one.telling:
        first, more = one.telling[0], len(one.telling) - 1
        said += (
            f'; of {first.users} users with {one.column} = "{_short(first.value)}", {first.share:.0%} have'
            f' {one.sensitive} = "{_short(first.group)}", and {first.overall:.0%} of all users'
        )
        said += f" ({more} more such value{'s' if more > 1 else ''})" if more else ""
    return said


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def facts_of(found: list[Association]) -> list[dict[str, Any]]:
    """Returns the associations as JSON holds them."""
    return [asdict(one) | {"is_proxy": one.is_proxy} for one in found]
