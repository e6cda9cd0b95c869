"""What one user adds to the private statistics: one vector over a public catalogue, clipped as a whole.

The vector has a block of clicks and a block of impressions, each over the items, their categories and one total. Clicks
are *centred*: a row adds (clicked - prior), not 0 or 1, since a vector of clicks and impressions would have length
sqrt(2) per row where this one has about a half, and the sums of the one are a linear, invertible function of the
sums of the other. Impressions, categories and the total are large where they matter, and a small public weight on
them leaves most of a user's length to the clicks on items, where noise hurts.

Legend: N rows, U users, I items, K categories, B = I + K + 1 (items, categories, total), D = 2B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from common.errors import ConfigError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

# Public, and the same everywhere: part of what a release means, and of the hash that partners agree on.
IMPRESSION_WEIGHT = 0.2  # of an impression beside a click
CATEGORY_WEIGHT = 0.1  # of a category's entries beside an item's
TOTAL_WEIGHT = 0.05
MOST_ITEMS = 1_000_000
MOST_ROWS = 4096  # of one user, the latest: as many as are ever read


@dataclass(frozen=True)
class Catalogue:
    """The public list of items, each with its category; nothing of it may come from private logs.

    Raises:
        ConfigError: for items that come twice, lists of two lengths, none or too many.
    """

    items: tuple[str, ...]
    categories: tuple[str, ...]  # one for each item; "" is one like any other

    def __post_init__(self) -> None:
        if not 1 <= len(self.items) <= MOST_ITEMS:
            raise ConfigError(f"item catalogue of {len(self.items)} items: from 1 to {MOST_ITEMS}")
        if len(self.categories) != len(self.items):
            raise ConfigError(f"item catalogue: {len(self.items)} items and {len(self.categories)} categories")
        if len(set(self.items)) < len(self.items):
            raise ConfigError("item catalogue: an item comes twice")

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """The K categories, in the order of their entries."""
        return tuple(sorted(set(self.categories)))

    @cached_property
    def category_of_I(self) -> Int:
        """The number of each item's category."""
        place = {name: number for number, name in enumerate(self.category_names)}
        return np.array([place[name] for name in self.categories], np.int64)

    @property
    def block(self) -> int:
        """B: entries of one block."""
        return len(self.items) + len(self.category_names) + 1

    @property
    def length(self) -> int:
        """D: entries of a user's vector."""
        return 2 * self.block

    def items_of(self, rows: pd.DataFrame) -> Int:
        """Returns the number of each row's item, -1 where the catalogue does not have it."""
        return np.asarray(self._item_index.get_indexer(pd.Index(rows["item"].astype(str))), np.int64)

    def categories_of(self, rows: pd.DataFrame, item_N: Int) -> Int:
        """Returns the number of each row's category: its item's, else that which the row itself names, else -1."""
        named_N = pd.Index(self.category_names).get_indexer(pd.Index(rows["domain"].astype(str)))
        return np.where(item_N >= 0, self.category_of_I[item_N], named_N).astype(np.int64)

    @cached_property
    def _item_index(self) -> "pd.Index[Any]":
        return pd.Index(self.items)

    @classmethod
    def of(cls, categories: Mapping[str, str]) -> "Catalogue":
        """Returns the catalogue of item -> category, items in order of their names."""
        items = tuple(sorted(categories))
        return cls(items, tuple(categories[item] for item in items))


@dataclass(frozen=True)
class Terms:
    """What makes a user's vector, beside its rows: public, and the same at all partners.

    Attributes:
        prior: what a click is centred at (`model.prior_click_rate`).
        clip: L2 bound on a user's vector, in rows: a row of one click has length |1 - prior| before categories,
            impressions and the total.
    """

    prior: float
    clip: float


def weights(catalogue: Catalogue) -> Float:
    """Returns what each entry of a user's vector is multiplied by, float64 [2, B]."""
    parts = np.array([1.0, CATEGORY_WEIGHT, TOTAL_WEIGHT])
    entry_B = np.repeat(parts, [len(catalogue.items), len(catalogue.category_names), 1])
    return np.stack([entry_B, IMPRESSION_WEIGHT * entry_B])


def counted(rows: pd.DataFrame, catalogue: Catalogue) -> NDArray[np.bool_]:
    """Returns which rows (of users, then times) are in the statistics: those of its items, a user's latest."""
    known_N = catalogue.items_of(rows) >= 0
    after_N = rows["user"].to_numpy()[known_N]
    place_M = pd.Series(np.ones(len(after_N))).groupby(after_N, sort=False).cumcount(ascending=False).to_numpy()
    found_N = np.zeros(len(rows), bool)
    found_N[np.flatnonzero(known_N)[place_M < MOST_ROWS]] = True
    return found_N


def row_shares(rows: pd.DataFrame, catalogue: Catalogue, terms: Terms, bound: float | None = None) -> Float:
    """Returns with what share each row is in the statistics: its user's clip factor, 0 where it is not, float64 [N]."""
    counted_N = counted(rows, catalogue)
    share_N = np.zeros(len(rows))
    if counted_N.any():
        vectors_UD, user_M = _vectors(rows[counted_N], catalogue, terms)
        share_N[counted_N] = _factors(vectors_UD, terms.clip if bound is None else bound)[user_M]
    return share_N


def gridded_histogram(rows: pd.DataFrame, catalogue: Catalogue, terms: Terms, bound: float, grid: int) -> Int:
    """Returns the sum over users of their clipped, scaled and rounded vectors, int64 [D].

    Formal guarantees:
        - a user's vector, rounded, has a length of `grid` at most, whatever the user's rows hold: with `bound` =
          `client.distributed.rounding_bound(D, clip, grid)`;
        - it is a function of that user's rows alone.

    Args:
        rows: canonical rows in the order of users, then times; labels of 0 and 1.
        catalogue: public.
        terms: public.
        bound: L2 bound before scaling and rounding.
        grid: length, in whole numbers, of a vector of length `terms.clip`.
    """
    chosen = rows[counted(rows, catalogue)]
    if chosen.empty:
        return np.zeros(catalogue.length, np.int64)
    vectors_UD, _ = _vectors(chosen, catalogue, terms)
    factor_U = _factors(vectors_UD, bound)
    scaled = vectors_UD.data * np.repeat(factor_U * (grid / terms.clip), np.diff(vectors_UD.indptr))
    # Whole numbers under 2^53 add up exactly in float64, in any order.
    return np.bincount(vectors_UD.indices, np.rint(scaled), catalogue.length).astype(np.int64)


def _vectors(rows: pd.DataFrame, catalogue: Catalogue, terms: Terms) -> tuple[csr_array, Int]:
    """Returns each user's vector before the clip, sparse [U, D], and the number of each row's user."""
    user_N, users = pd.factorize(rows["user"])
    item_N, items, block = catalogue.items_of(rows), len(catalogue.items), catalogue.block
    entry_3N = np.stack([item_N, items + catalogue.category_of_I[item_N], np.full(len(rows), block - 1)])
    centred_N = rows["clicked"].to_numpy(np.float64) - terms.prior
    weight_2D = weights(catalogue)
    value = [weight_2D[0][entry_3N] * centred_N, weight_2D[1][entry_3N]]
    place = np.concatenate([entry_3N.ravel(), block + entry_3N.ravel()])
    data = np.concatenate([part.ravel() for part in value])
    shape = (len(users), catalogue.length)
    return coo_array((data, (np.tile(user_N, 6), place)), shape).tocsr(), user_N.astype(np.int64)


def _factors(vectors_UD: csr_array, bound: float) -> Float:
    """Returns min(1, bound / length) of each vector, float64 [U]."""
    squares = np.add.reduceat(vectors_UD.data**2, vectors_UD.indptr[:-1])  # every user has a row
    return np.minimum(1.0, bound * (1 - 1e-12) / np.sqrt(squares))
