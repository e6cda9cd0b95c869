"""Exact item counts, summed over partners: only where privacy is off."""

import json
from collections.abc import Mapping

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import Config
from common.errors import HushclickError, ProtocolError, TooFewPartners
from common.message_types import QUERY_CATALOGUE, QUERY_STATISTICS
from common.messages import CatalogueTask, StatisticsReply, StatisticsTask
from common.runfolder import RunFolder, write_json
from server.round import Exchange, exchange
from server.secure import SecureAggregator
from server.sums import total_of


def item_counts(
    grid: Grid,
    config: Config,
    folder: RunFolder,
    run_id: str,
    nodes: Mapping[str, int],
    aggregator: SecureAggregator | None,
) -> dict[str, tuple[float, float]]:
    """Sums exact item counts over the partners, once per run, and sends the sum back (privacy is off).

    Raises:
        TooFewPartners: when they cannot be summed, or a partner does not take the sum.
    """
    catalogue = _catalogue(folder)
    kept = folder.root / "item_counts.json"
    if kept.exists():  # the run goes on: partners have them, and a round is answered once
        total_2I = np.array(json.loads(kept.read_bytes()))
    else:
        task = StatisticsTask(run_id, catalogue)
        if aggregator is None:
            total_2I = _plain_counts(grid, config, task, nodes)
        else:
            total_2I = _secure_counts(aggregator, config, task, nodes)
        told = CatalogueTask(run_id, catalogue, total_2I).to_record()
        timeout, letters = config.aggregation.timeout_seconds, dict.fromkeys(nodes.values(), told)
        _require_all(exchange(grid, QUERY_CATALOGUE, letters, "catalogue", timeout, lambda *_: None))
        write_json(kept, total_2I.tolist())
    return {item: (clicks, shown) for item, (clicks, shown) in zip(catalogue, total_2I.T.tolist(), strict=True)}


def _secure_counts(
    aggregator: SecureAggregator, config: Config, task: StatisticsTask, nodes: Mapping[str, int]
) -> NDArray[np.float64]:
    """Returns the counts [2, items] summed over whoever answers, as round 0: no partner's own counts are seen."""
    length = 2 * len(task.catalogue)
    collected = aggregator.collect(0, list(nodes), lambda *_: task, length, local_steps=0)
    return total_of(collected, config.aggregation.min_partners).reshape(2, -1)


def _plain_counts(grid: Grid, config: Config, task: StatisticsTask, nodes: Mapping[str, int]) -> NDArray[np.float64]:
    """Returns the counts [2, items] summed over all partners, each of which the server sees."""
    total_2I = np.zeros((2, len(task.catalogue)))

    def take(_node: int, content: RecordDict) -> None:
        counts_2I = StatisticsReply.from_record(content).counts_2I
        if counts_2I.shape != total_2I.shape:
            raise ProtocolError(f"counts of shape {counts_2I.shape}, expected {total_2I.shape}")
        total_2I[...] += counts_2I  # whole numbers: exact in any order

    letters = dict.fromkeys(nodes.values(), task.to_record())
    timeout = config.aggregation.timeout_seconds
    _require_all(exchange(grid, QUERY_STATISTICS, letters, "statistics", timeout, take))
    return total_2I


def _catalogue(folder: RunFolder) -> tuple[str, ...]:
    path = folder.root / "catalogue.json"
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise HushclickError(f"{path}: no item catalogue; model.item_rates needs the public list of items") from None


def _require_all(outcome: Exchange) -> None:
    if outcome.failures:
        raise TooFewPartners(
            f"{len(outcome.failures)} partners gave no item counts: {next(iter(outcome.failures.values()))}"
        )
