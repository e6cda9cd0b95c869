"""One log -> one log per partner, users whole, and the rows of the central evaluation.

Three partitions, all independent of the order of rows:

    hash      partner = SHA-256(user) modulo partners: alike partners of about equal size
    dominant  users ordered by their dominant domain (the one with most of their clicks, then most of their rows, then
              first by name; ties in order of hash), then cut into runs of equal length: most partners hold users of
              one domain, partners at a boundary hold two, and every partner gets users
    skew      users in order of hash, cut into runs whose lengths follow Zipf's law, i^-size_skew, at least one user
              each: partner-0000 is the largest

Letters: N = rows, U = users, P = partners.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.clicks import ClickLog, impressions_N
from common.config import LEAST_PRIOR, Config, DataConfig, ModelConfig, Split
from common.errors import ConfigError, DataError
from common.runfolder import partner_name
from common.sensitive import without_sensitive
from common.split import SplitRows, split_rows, stable_hash

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartnerLogs:
    """Each partner's training rows, and what the server evaluates on. Reprs show no rows.

    `central` holds every row (history included) of each user with a test row, in canonical columns and
    `partner` (int64), `evaluate` (bool: a test row; the rest is history), `cold_user` (bool: the user has no training
    row) and `cold_item` (bool: no partner trained on the item). It alone holds the sensitive columns.
    """

    training: list[pd.DataFrame] = field(repr=False)  # canonical rows, by user and time; index from 0
    names: list[str]
    central: pd.DataFrame = field(repr=False)
    report: dict[str, Any]  # JSON-able counts and rates


def assign_partners(rows: pd.DataFrame, config: DataConfig) -> "pd.Series[int]":
    """Returns the partner number, 0 to `partners` - 1, of each user (the index); users are whole.

    Raises:
        DataError: for partition "dominant" when all rows are of one domain, and for "skew" when there are fewer users
            than partners.
    """
    users = pd.Index(rows["user"].unique(), dtype="str", name="user")
    hash_U = stable_hash(users, "partner")
    if config.partition == "hash":
        partner_U = (hash_U % np.uint64(config.partners)).astype(np.int64)
        return pd.Series(partner_U, index=users, name="partner", dtype="int64")
    if config.partition == "dominant":
        order_U = np.lexsort((hash_U, pd.factorize(_dominant_domains(rows, users), sort=True)[0]))
        size_P = _equal_sizes(len(users), config.partners)
    else:
        order_U = np.argsort(hash_U, kind="stable")
        size_P = _zipf_sizes(len(users), config.partners, config.size_skew)
    partner_U = np.empty(len(users), dtype=np.int64)
    partner_U[order_U] = np.repeat(np.arange(config.partners), size_P)
    return pd.Series(partner_U, index=users, name="partner", dtype="int64")


def build_partners(log: ClickLog, config: DataConfig) -> PartnerLogs:
    """Returns every partner's training rows and the central rows under the configured split and partition.

    A training log may hold one class only (a small partner without a click): it is kept, and counted in the report.

    Raises:
        DataError: when a partner has no training row, or the split or the partition is impossible.
    """
    rows = log.rows
    split = split_rows(rows, config.split, config.test_share)
    partner_of_user = assign_partners(rows, config)
    partner_N: Ints = np.asarray(partner_of_user.reindex(rows["user"]), dtype=np.int64)
    training = _cut(without_sensitive(rows), partner_N, split.train_N | split.past_N, config.partners)
    _require_none_empty(training, len(partner_of_user), config)
    return PartnerLogs(
        training=training,
        names=[partner_name(number) for number in range(config.partners)],
        central=_central(rows, partner_N, split),
        report=_report(log, config, split, training),
    )


def click_rate(facts: Mapping[str, Any]) -> float:
    """Returns the click rate of all partners' training rows together, of the `data` part of metrics.json."""
    return float(np.average(facts["click_rate_per_partner"], weights=facts["rows_per_partner"]))


def with_click_rate(config: Config, facts: Mapping[str, Any]) -> Config:
    """Returns the configuration with the measured click rate as prior, where it asks for that; four decimals of it.

    Raises:
        ConfigError: where it names another prior as well.
    """
    if not config.data.measure_click_rate:
        return config
    rate = round(min(max(click_rate(facts), LEAST_PRIOR), 1 - LEAST_PRIOR), 4)
    given = config.model.prior_click_rate
    if given not in (ModelConfig().prior_click_rate, rate):
        raise ConfigError(
            f"model.prior_click_rate = {given:g} and data.measure_click_rate = true, which gives {rate:g}: take out the"
            " first, or set the second to false"
        )
    return replace(config, model=replace(config.model, prior_click_rate=rate))


def with_rule(config: Config, cut_time: int | None) -> Config:
    """Returns the configuration with what partners hold out, where they evaluate: the test rows of the split.

    Args:
        config: of a simulation.
        cut_time: of its split; None where time does not count.

    Raises:
        ConfigError: for a configuration that would have them hold out anything else.
    """
    evaluation, data = config.evaluation, config.data
    if not evaluation.by_partners:
        return config
    share = data.test_share if data.split in ("user", "user_time") else None
    wanted = replace(evaluation, from_time=cut_time, user_share=share, key="")
    differing = [
        f"evaluation.{key} = {getattr(evaluation, key)!r}"
        for key in ("from_time", "user_share", "key")
        if getattr(evaluation, key) not in (None, "", getattr(wanted, key))
    ]
    if differing:
        raise ConfigError(
            f"{', '.join(differing)}: in a simulation partners hold out what data.split and data.test_share do; take it"
            " out here, and keep it for a deployment"
        )
    return replace(config, evaluation=wanted)


def users_trained(rows: pd.DataFrame) -> int:
    """Returns how many users have a row to train on; those of history alone are never in a sample."""
    return int(rows.loc[impressions_N(rows), "user"].nunique())


def whole_log(logs: PartnerLogs, number: int, split: Split) -> pd.DataFrame:
    """Returns a partner's training rows and, among them in order, what it holds out, with its users' history."""
    central = logs.central
    mine_N = central["partner"].to_numpy() == number
    if split == "time":  # else no user with a test row has any that trains
        later_N = central["time"].to_numpy() >= logs.report["cut_time"]  # earlier history is among what trains
        mine_N &= central["evaluate"].to_numpy() | (later_N & ~impressions_N(central))
    held_out = without_sensitive(central[mine_N])[logs.training[number].columns]
    joined = pd.concat([logs.training[number], held_out])
    return joined.sort_values(["user", "time"], kind="stable").reset_index(drop=True)


def _require_none_empty(training: list[pd.DataFrame], users: int, config: DataConfig) -> None:
    """Raises a `DataError` that counts the partners without a training row."""
    empty = sum(not impressions_N(part).any() for part in training)
    if empty:
        flatter = f", lower data.size_skew = {config.size_skew:g}" if config.partition == "skew" else ""
        raise DataError(
            f"{empty} of data.partners = {config.partners} have no training row, among {users} users under"
            f' data.partition = "{config.partition}" and data.split = "{config.split}";'
            f" set fewer data.partners{flatter}, or bring more users (data.max_users, data.generator.users)"
        )


def _dominant_domains(rows: pd.DataFrame, users: "pd.Index[str]") -> "pd.Series[str]":
    """Returns each user's dominant domain, in the order of `users`."""
    if rows["domain"].nunique() < 2:
        raise DataError(
            'data.partition = "dominant": all rows are of one domain; map columns.domain in the data card, raise'
            ' data.generator.domains, or set data.partition to "hash" or "skew"'
        )
    counts = rows.groupby(["user", "domain"], sort=False)["clicked"].agg(["sum", "size"]).reset_index()
    counts = counts.sort_values(["user", "sum", "size", "domain"], ascending=[True, False, False, True])
    return counts.drop_duplicates("user").set_index("user")["domain"].reindex(users)


def _equal_sizes(users: int, partners: int) -> Ints:
    """Returns sizes that sum to `users` and differ by one at most."""
    edges = np.arange(partners + 1, dtype=np.int64) * users // partners
    return np.diff(edges)


def _zipf_sizes(users: int, partners: int, exponent: float) -> Ints:
    """Returns falling sizes of at least one that sum to `users` and, beyond the one, follow rank^-exponent."""
    if users < partners:
        raise DataError(
            f'data.partition = "skew": {users} users cannot fill data.partners = {partners}; set fewer, or bring more'
            " users"
        )
    weight_P = np.arange(1, partners + 1, dtype=np.float64) ** -exponent
    edges = np.rint(np.cumsum(weight_P / weight_P.sum()) * (users - partners)).astype(np.int64)
    return -np.sort(-(1 + np.diff(edges, prepend=0)))


def _cut(rows: pd.DataFrame, partner_N: Ints, train_N: Bools, partners: int) -> list[pd.DataFrame]:
    """Returns each partner's training rows; one sort, then slices, so that a thousand partners cost little."""
    place_M = np.flatnonzero(train_N)
    place_M = place_M[partner_N[place_M].argsort(kind="stable")]
    ordered = rows.take(place_M)
    edges = np.searchsorted(partner_N[place_M], np.arange(partners + 1))
    return [ordered.iloc[start:stop].reset_index(drop=True) for start, stop in pairwise(edges)]


def _central(rows: pd.DataFrame, partner_N: Ints, split: SplitRows) -> pd.DataFrame:
    """Returns all rows of users with test rows, marked."""
    user_codes_N, users = pd.factorize(rows["user"])
    item_codes_N, items = pd.factorize(rows["item"])
    tested_N = _seen(user_codes_N, len(users), split.test_N)
    marked = rows.assign(
        partner=partner_N,
        evaluate=split.test_N,
        cold_user=~_seen(user_codes_N, len(users), split.train_N),
        cold_item=~_seen(item_codes_N, len(items), split.train_N),
    )
    return marked[tested_N].reset_index(drop=True)


def _seen(codes_N: npt.NDArray[np.intp], distinct: int, chosen_N: Bools) -> Bools:
    """Returns which rows have a code that some chosen row has."""
    seen = np.zeros(distinct, dtype=bool)
    seen[codes_N[chosen_N]] = True
    return seen[codes_N]


def _report(log: ClickLog, config: DataConfig, split: SplitRows, training: list[pd.DataFrame]) -> dict[str, Any]:
    rows = log.rows
    trained = [part[impressions_N(part)] for part in training]
    rates = [float(part["clicked"].mean()) for part in trained]
    return {
        "partners": config.partners,
        "partition": config.partition,
        "split": config.split,
        "cut_time": split.cut_time,
        "users_per_partner": [users_trained(part) for part in training],
        "rows_per_partner": [len(part) for part in trained],
        "click_rate_per_partner": rates,
        "one_class_partners": sum(rate in (0.0, 1.0) for rate in rates),
        "users": log.report.users,
        "users_with_one_row": log.report.users_with_one_row,
        "users_trained": int(rows.loc[split.train_N, "user"].nunique()),
        "users_tested": int(rows.loc[split.test_N, "user"].nunique()),
        "rows": len(rows),
        "rows_trained": int(split.train_N.sum()),
        "rows_tested": int(split.test_N.sum()),
        "rows_dropped": dict(log.report.dropped),
    }


def write_central(central: pd.DataFrame, path: Path) -> None:
    """Writes the held-out log with its evaluation columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    central.to_parquet(path, index=False)
