"""A partner's own clicks, read and turned into features: the one place where a worker gets at its users.

Legend: N rows, T distinct texts, E text width.
"""

import json
import logging
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.erasure import Erased, Mark
from client.labels import NoisyLabels, unbiased
from client.partner import PartnerConfig
from common.augment import with_wordings
from common.card import DataCard, load_card, require_sampling
from common.clicks import impressions_N, read_clicks
from common.errors import LedgerError, ModelError, ProtocolError
from common.features import UserRows, featurise
from common.histogram import Terms
from common.itemrates import ItemRates, parse_release
from common.pretrained import Pretrained
from common.runfolder import write_atomically
from common.scorehistogram import latest, terms_of
from common.sharedstates import encode_shared
from common.split import rule_of

log = logging.getLogger("hushclick.partner")

COUNTS_VERSION = 1
MOST_ROWS_PER_USER = 4096  # the latest


@dataclass(frozen=True)
class HeldOutRows:
    """Rows to evaluate a model on: the features of their users' rows, which of these they are, users and clicks."""

    features: UserRows = field(repr=False)
    row_N: NDArray[np.int64] = field(repr=False)
    user_N: NDArray[np.int64] = field(repr=False)
    clicked_N: NDArray[np.bool_] = field(repr=False)


class UserData:
    """The rows of a partner's users, but for those who asked to be erased.

    Formal guarantees:
        - who is on the list of the erased when rows are asked for is not among them, however long this object has
          held features, and whatever the log says;
        - in mode "label" no true click label is behind what `_rows` returns (`client.labels`);
        - no row is in both `_rows` and `held_out`, and which side one is on depends on its own user and time alone.
    """

    config: PartnerConfig

    def __init__(self, config: PartnerConfig, pretrained: Pretrained) -> None:
        self.config, self._pretrained = config, pretrained
        self.erased = Erased(Path(config.state))
        self._card: DataCard = load_card(Path(config.card))
        require_sampling(self._card, config.model.unclicked_kept)
        self._rule = rule_of(config.evaluation)
        self._labels = NoisyLabels(config, self._card) if config.privacy.mode == "label" else None
        self._loaded: tuple[Mark, UserRows] | None = None
        self._loading = threading.Lock()

    def drop_erased(self) -> bool:
        """Lets features go that hold somebody who has asked to be erased since; returns whether there were some."""
        with self._loading:
            stale = self._loaded is not None and self._loaded[0] != self.erased.mark()
            if stale:
                self._loaded = None
            return stale

    def _data(self) -> UserRows:
        with self._loading:
            mark = self.erased.mark()  # before the list is read: what comes between is seen the next time
            if self._loaded is None or self._loaded[0] != mark:
                self._loaded = None
                self._loaded = mark, self._load()
                self._say_if_few(self._loaded[1].num_users)
            return self._loaded[1]

    def _say_if_few(self, users: int) -> None:
        if users < self.config.declared_users:
            log.info(
                "%d users, fewer than declared_users = %d: that is published, and changes only with a new roster",
                users,
                self.config.declared_users,
            )

    def _load(self) -> UserRows:
        return self._featurised(self._rows(), reword=True)

    def _featurised(
        self, rows: pd.DataFrame, own_rows_N: NDArray[np.bool_] | None = None, *, reword: bool = False
    ) -> UserRows:
        """Returns the features of rows, with other wordings where they train; `own_rows_N` as `featurise` takes it."""
        model = self.config.model
        if self._labels:
            clicked_N = unbiased(rows["clicked"].to_numpy(), self.config.privacy.flip_probability)
            rows = rows.assign(clicked=clicked_N)
        given = list(rows["text"])
        texts = encode_shared(with_wordings(given, model) if reword else given, model, self._pretrained)
        text_N, *others = texts.index_N.reshape(-1, len(given)) if given else [texts.index_N]
        features = featurise(
            rows,
            text_N,
            texts.states_TE,
            model,
            item_counts=self._known_counts(),
            item_rates=self._item_rates(),
            own_rows_N=own_rows_N,
            tokens_T=texts.tokens_T,
        )
        return replace(features, wording_NW=np.stack(others, axis=1)) if others else features

    def _rows(self) -> pd.DataFrame:
        """Returns the rows that train, and their users' history: none that is held out."""
        log = self._log()
        return _few_each(log[self._rule.sides(log)[0]])

    def _counted_rows(self) -> pd.DataFrame:
        """Returns the rows that statistics are made of: those that train."""
        rows = self._rows()
        return rows[impressions_N(rows)].reset_index(drop=True)

    def _log(self) -> pd.DataFrame:
        rows = read_clicks(Path(self.config.clicks), self._card, allow_one_class=True).rows
        rows = self.erased.without(rows)
        return self._labels.flipped(_few_each(rows)) if self._labels else rows

    def held_out(self) -> HeldOutRows | None:
        """Returns the rows that this partner holds out, of each user the latest that count; None where it has none."""
        log = self._log()
        if not self.config.evaluation.by_partners:
            raise ProtocolError('this partner holds nothing out (its evaluation.at is not "partners")')
        users = set(log.loc[self._rule.sides(log)[1], "user"])
        rows = _few_each(log[log["user"].isin(users)])
        train_N, test_N = (side_N & impressions_N(rows) for side_N in self._rule.sides(rows))
        row_N = np.flatnonzero(test_N)
        user_N = pd.factorize(rows["user"])[0][row_N].astype(np.int64)
        terms = terms_of(self.config.evaluation, self.config.privacy, self.config.model.prior_click_rate)
        kept_N = latest(user_N, terms.max_rows)
        if not kept_N.any():
            return None
        clicked_N = rows["clicked"].to_numpy()[row_N] == 1  # in mode "label" as flipped: the server knows how often
        features = self._featurised(rows, train_N)
        return HeldOutRows(features, row_N[kept_N], user_N[kept_N], clicked_N[kept_N])

    def _keep_counts(self, counts: dict[str, list[float]]) -> None:
        """Takes over the summed item counts, and lets features go that were made with others."""
        write_atomically(self._catalogue_path, json.dumps({"version": COUNTS_VERSION, "counts": counts}).encode())
        with self._loading:
            self._loaded = None

    def _known_counts(self) -> dict[str, tuple[float, float]] | None:
        """Returns the summed item counts that this partner was told, if its features use them."""
        path = self._catalogue_path
        if self.config.model.item_rates != "exact" or not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            version, told = found["version"], found["counts"]
            if version == COUNTS_VERSION:
                return {item: (clicks, shown) for item, (clicks, shown) in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LedgerError(f"{path.name}: damaged; remove it, and the next run gives the counts anew") from None
        raise LedgerError(
            f"{path.name}: version {version!r:.20}, and this release reads {COUNTS_VERSION}; remove it, and the next"
            " run gives the counts anew"
        )

    def _keep_release(self, data: bytes) -> None:
        """Takes over released statistics, once they are on this partner's own terms, and lets features go.

        Raises:
            ProtocolError: naming what is not.
        """
        model, privacy = self.config.model, self.config.privacy
        if model.item_rates != "private":
            raise ProtocolError("this partner's model has no item rates from private statistics")
        try:
            found = parse_release(data)
        except ModelError as error:
            raise ProtocolError(str(error)) from None
        if found.terms != Terms(model.prior_click_rate, privacy.statistics_clip):
            raise ProtocolError(f"statistics with {found.terms}: this partner's clip or prior_click_rate is another")
        if found.deviation < (privacy.statistics_noise_multiplier or 0.0) * (1 - 1e-9):
            raise ProtocolError(f"statistics with noise of {found.deviation:g} clips: this partner alone adds more")
        if data != self._known_release():
            write_atomically(self._release_path, data)
            with self._loading:
                self._loaded = None

    def _known_release(self) -> bytes | None:
        """Returns the released statistics that this partner was told last, if its features use them."""
        path = self._release_path
        if self.config.model.item_rates != "private" or not path.exists():
            return None
        return path.read_bytes()

    @property
    def _has_purchases(self) -> bool:
        """Whether the log has a purchase column: read off the data card, not off the data."""
        return bool(self._card.columns.purchased)

    def _item_rates(self) -> ItemRates | None:
        release = self._known_release()
        try:
            return None if release is None else ItemRates(parse_release(release))
        except ModelError as error:
            raise LedgerError(
                f"{self._release_path.name}: {error}; remove it, and the next run tells it anew"
            ) from None

    @property
    def _catalogue_path(self) -> Path:
        return Path(self.config.state) / "item_counts.json"

    @property
    def _release_path(self) -> Path:
        return Path(self.config.state) / "statistics.json"


def _few_each(rows: pd.DataFrame) -> pd.DataFrame:
    # Features of a user cost the square of its rows: one user must not be able to stall or kill a round.
    return rows.groupby("user", sort=False).tail(MOST_ROWS_PER_USER).reset_index(drop=True)
