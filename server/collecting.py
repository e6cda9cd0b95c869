"""A round's tasks to a cohort, and the mean contribution that comes of them: securely summed, or in plain.

Legend: D parameters.
"""

from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.anchors import AnchorFile
from common.contribution import LocalDelta, RunningSum
from common.message_types import TRAIN_UPDATE
from common.messages import TrainingPlan, TrainTask
from server.cohort import draw_cohort
from server.coordinator import Coordinator
from server.round import collect_sum
from server.secure import SecureAggregator
from server.sums import mean_of, total_of


def collect_secure(
    aggregator: SecureAggregator, state: Coordinator, able: list[str], record: dict[str, Any]
) -> NDArray[np.float64]:
    """Returns the mean contribution of a cohort of which the server sees the sum alone."""
    rounds, number = state.config.round, state.round + 1
    collected = aggregator.finish_journal(number)
    if collected is None:
        last = number == rounds.num_rounds
        collected = aggregator.collect(
            number,
            draw_cohort(able, rounds.partners_per_round, rounds.seed, number),
            lambda partner, attempt: _task(state, partner, attempt),
            len(state.global_D),
            local_steps=rounds.local_steps,
            following=[] if last else draw_cohort(able, rounds.partners_per_round, rounds.seed, number + 1),
        )
    state.exhausted |= collected.exhausted
    AnchorFile(state.folder.anchors).append(state.run_id, number, collected.anchors)
    record |= {"cohort": collected.stages.get("asked", 0), "contributed": collected.contributed}
    record |= {"stages": collected.stages, "round_trips": collected.round_trips}
    record["bytes"] = {"down": collected.bytes_down, "up": collected.bytes_up}
    if collected.failures:
        record["failures"] = dict(sorted(collected.failures.items()))
    if collected.sums and collected.errors:
        record["lost_groups"] = collected.errors
    aggregation, privacy = state.config.aggregation, state.config.privacy
    if privacy.mode != "distributed":
        return mean_of(collected, aggregation.min_partners, aggregation.groups)
    # One noised step over the union: divided by public constants, rate x declared users, never by a sampled size.
    sum_D = total_of(collected, aggregation.min_partners)
    declared = sum(state.declared_users[partner] for partner in collected.sums[0].partners)
    mean_D: NDArray[np.float64] = (
        sum_D * (privacy.clip / 2**privacy.grid_bits) / (privacy.sampling_rate * declared * privacy.units_per_user)
    )
    return mean_D


def collect_plain(grid: Grid, state: Coordinator, able: list[str], record: dict[str, Any]) -> NDArray[np.float64]:
    """Returns the mean contribution of a cohort whose every update the server sees."""
    config, number = state.config, state.round + 1
    cohort = draw_cohort(able, config.round.partners_per_round, config.round.seed, number)
    total = RunningSum(len(state.global_D), LocalDelta)
    tasks = {state.nodes[partner]: _task(state, partner) for partner in cohort}
    outcome = collect_sum(grid, TRAIN_UPDATE, tasks, number, total, config.aggregation.timeout_seconds)
    names = {node: partner for partner, node in state.nodes.items()}
    state.exhausted |= {names[node] for node in outcome.exhausted}
    anchors = {names[node]: anchor for node, anchor in outcome.anchors.items()}
    AnchorFile(state.folder.anchors).append(state.run_id, number, anchors)
    record |= {"cohort": len(cohort), "contributed": total.count}
    record["bytes"] = {"down": outcome.bytes_down, "up": outcome.bytes_up}
    if outcome.failures:
        record["failures"] = {names[node]: reason for node, reason in sorted(outcome.failures.items())}
    return total.mean(config.aggregation.min_partners)


def _task(state: Coordinator, partner: str, attempt: int = 0) -> TrainTask:
    rounds = state.config.round
    plan = TrainingPlan(rounds.local_steps, rounds.client_optimiser, rounds.learning_rate, rounds.weight_decay)
    return TrainTask(state.run_id, state.round + 1, attempt, state.weights[partner], state.layout, plan, state.global_D)
