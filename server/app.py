"""The ServerApp: join, then rounds of cohort -> tasks -> sum -> step -> evaluation -> checkpoint. Read this first.

It reads a run folder (`config.toml`, `central.parquet`), and leaves there a checkpoint per round, `model/` and
`metrics.json`. Progress goes out as log records of `hushclick.run` that carry a `fact` dict.

Legend: D parameters.
"""

import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.config import Config, fingerprint, load_config
from common.contribution import LocalDelta, RunningSum
from common.errors import BudgetExhausted, CheckpointError, HushclickError, ProtocolError, TooFewPartners
from common.messages import (
    QUERY_CATALOGUE,
    QUERY_JOIN,
    QUERY_STATISTICS,
    TRAIN_UPDATE,
    CatalogueTask,
    JoinReply,
    JoinTask,
    StatisticsReply,
    StatisticsTask,
    TrainingPlan,
    TrainTask,
)
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.runfolder import RunFolder, write_json
from common.vector import layout_fingerprint, read_vector, write_vector
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.cohort import draw_cohort
from server.evaluation import HeldOut, final_figures, load_heldout, round_figures, score
from server.modelfolder import save_model
from server.optimiser import ServerOptimiser
from server.round import Exchange, collect_sum, exchange

app = ServerApp()
log = logging.getLogger("hushclick.run")

_JOIN_PAUSE_SECONDS = 0.2


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds that the run folder's configuration asks for, from its checkpoint where there is one."""
    run(grid, RunFolder(Path(str(context.run_config["run-folder"]))))


@dataclass
class Coordinator:
    """What the loop holds between rounds."""

    config: Config
    folder: RunFolder
    run_id: str
    roster: dict[str, int]  # partner -> node id
    weights: dict[str, float]  # partner -> public weight in (0, 1]
    model: ClickModel
    layout: str
    heldout: HeldOut
    optimiser: ServerOptimiser
    global_D: NDArray[np.float32]
    round: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)


def run(grid: Grid, folder: RunFolder) -> None:
    """Runs all rounds that are left, then evaluates and saves the final model.

    Raises:
        TooFewPartners: when not enough partners join or answer.
        BudgetExhausted: when too few partners have budget left; the model so far is saved.
        CheckpointError: when the folder's checkpoint is of another configuration.
    """
    started = time.monotonic()
    config = load_config(folder.config)
    pretrained = locate(config.model.encoder, config.model.encoder_sha256)
    state = _begin(grid, config, folder, pretrained)
    _say("begun", f"{len(state.roster)} partners joined", partners=len(state.roster), round=state.round)
    stopped: BudgetExhausted | None = None
    while state.round < config.round.num_rounds and stopped is None:
        try:
            _run_round(grid, state)
        except BudgetExhausted as error:
            stopped = error
    _finish(state, pretrained, time.monotonic() - started, stopped)
    if stopped:
        raise stopped


def _begin(grid: Grid, config: Config, folder: RunFolder, pretrained: Pretrained) -> Coordinator:
    """Returns the state before the next round: fresh, or from the checkpoint."""
    mark = fingerprint(config)
    saved = load_checkpoint(folder.checkpoint, mark) if folder.checkpoint.exists() else None
    run_id = saved.run_id if saved else uuid.uuid4().hex
    nodes, replies = _join(grid, config, run_id)
    heads = 2 if 2 * sum(reply.has_purchases for reply in replies.values()) > len(replies) else 1
    model = build_model(config.model, pretrained.width, heads, config.round.seed)
    layout = layout_fingerprint(model, pretrained.fingerprint, config.model)
    if saved and saved.layout != layout:
        raise CheckpointError("the partners that joined have another model layout than the run's: it cannot go on")
    replies = _of_one_layout(config, replies, layout)
    nodes = {partner: nodes[partner] for partner in replies}
    counts = _item_counts(grid, config, folder, run_id, nodes) if config.model.item_rates == "exact" else None
    heldout = load_heldout(folder.central, config.model, pretrained, counts)
    optimiser = ServerOptimiser(config.server, len(read_vector(model)))
    state = Coordinator(
        config, folder, run_id, nodes, _weights(config, replies), model, layout, heldout, optimiser, read_vector(model)
    )
    if saved:
        optimiser.load_state(saved.optimiser)
        state.global_D, state.round, state.rounds = saved.model_D, saved.round, list(saved.rounds)
        state.exhausted = set(saved.exhausted)
    else:
        _checkpoint(state)  # fixes the run id before anything is asked of a partner's budget
    return state


def _join(grid: Grid, config: Config, run_id: str) -> tuple[dict[str, int], dict[str, JoinReply]]:
    """Waits for the partners and returns partner -> node id and partner -> what it said, in name order."""
    timeout, wanted = config.aggregation.timeout_seconds, config.data.partners
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(_JOIN_PAUSE_SECONDS)
    found: dict[str, tuple[int, JoinReply]] = {}

    def take(node: int, content: RecordDict) -> None:
        reply = JoinReply.from_record(content)
        if reply.partner in found:
            raise ProtocolError(f"two nodes say that they are {reply.partner}")
        found[reply.partner] = (node, reply)

    outcome = exchange(grid, QUERY_JOIN, {node: JoinTask(run_id).to_record() for node in nodes}, "join", timeout, take)
    least = min(wanted, max(config.aggregation.min_partners, 1))
    if len(found) < least:
        reasons = "; ".join(sorted(set(outcome.failures.values()))[:3]) or f"{len(nodes)} nodes are connected"
        raise TooFewPartners(f"{len(found)} of at least {least} partners joined: {reasons}")
    for reason in outcome.failures.values():
        _say("left_out", f"a partner did not join: {reason}")
    names = sorted(found)
    return {name: found[name][0] for name in names}, {name: found[name][1] for name in names}


def _of_one_layout(config: Config, replies: Mapping[str, JoinReply], layout: str) -> dict[str, JoinReply]:
    """Returns the partners that would train this very model; the others are left out, and named.

    Raises:
        TooFewPartners: when too few are left.
    """
    alike = {partner: reply for partner, reply in replies.items() if reply.fingerprint == layout}
    for partner in replies.keys() - alike.keys():
        _say("left_out", f"{partner} is left out: its model layout is another")
    if len(alike) < config.aggregation.min_partners:
        raise TooFewPartners(
            f"{len(alike)} of {len(replies)} partners have the server's model layout, {config.aggregation.min_partners}"
            " are needed: compare their encoder, [model] table and purchase column with the server's"
        )
    return alike


def _weights(config: Config, replies: Mapping[str, JoinReply]) -> dict[str, float]:
    """Returns each partner's public weight, the largest being 1."""
    if config.aggregation.weights == "equal":
        return dict.fromkeys(replies, 1.0)
    largest = max(reply.declared_users for reply in replies.values())
    return {partner: reply.declared_users / largest for partner, reply in replies.items()}


def _item_counts(
    grid: Grid, config: Config, folder: RunFolder, run_id: str, nodes: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Sums exact item counts over the partners and sends the sum back (privacy is off)."""
    catalogue = _catalogue(folder)
    total_2I = np.zeros((2, len(catalogue)))

    def take(_node: int, content: RecordDict) -> None:
        counts_2I = StatisticsReply.from_record(content).counts_2I
        if counts_2I.shape != total_2I.shape:
            raise ProtocolError(f"counts of shape {counts_2I.shape}, expected {total_2I.shape}")
        total_2I[...] += counts_2I  # whole numbers: exact in any order

    timeout = config.aggregation.timeout_seconds
    task = StatisticsTask(run_id, catalogue).to_record()
    _require_all(exchange(grid, QUERY_STATISTICS, dict.fromkeys(nodes.values(), task), "statistics", timeout, take))
    told = CatalogueTask(run_id, catalogue, total_2I).to_record()
    _require_all(
        exchange(grid, QUERY_CATALOGUE, dict.fromkeys(nodes.values(), told), "catalogue", timeout, lambda *_: None)
    )
    return {item: (clicks, shown) for item, (clicks, shown) in zip(catalogue, total_2I.T.tolist(), strict=True)}


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


def _run_round(grid: Grid, state: Coordinator) -> None:
    """One round: it ends with a new global model, or with a record of why there is none."""
    config, number = state.config, state.round + 1
    started = time.monotonic()
    able = [partner for partner in state.roster if partner not in state.exhausted]
    if len(able) < config.aggregation.min_partners:
        raise BudgetExhausted(
            f"{len(able)} partners have budget left, {config.aggregation.min_partners} are needed:"
            f" the run ends after round {state.round} with its model saved"
        )
    cohort = draw_cohort(able, config.round.partners_per_round, config.round.seed, number)
    total = RunningSum(len(state.global_D), LocalDelta)
    tasks = {state.roster[partner]: _task(state, partner, number) for partner in cohort}
    outcome = collect_sum(grid, TRAIN_UPDATE, tasks, number, total, config.aggregation.timeout_seconds)
    trained = time.monotonic()
    names = {node: partner for partner, node in state.roster.items()}
    state.exhausted |= {names[node] for node in outcome.exhausted}
    record: dict[str, Any] = {"round": number, "cohort": len(cohort), "contributed": total.count}
    try:
        state.global_D = state.optimiser.step(state.global_D, total.mean(config.aggregation.min_partners), LocalDelta)
    except TooFewPartners as error:
        record["error"] = str(error)
    if outcome.failures:
        record["failures"] = {names[node]: reason for node, reason in sorted(outcome.failures.items())}
    if number % config.server.evaluate_every == 0 or number == config.round.num_rounds:
        write_vector(state.model, state.global_D)
        record |= round_figures(score(state.model, state.heldout), state.heldout, config.server, config.round.seed)
    record["timings"] = {"train_seconds": trained - started, "evaluate_seconds": time.monotonic() - trained}
    record["bytes"] = {"down": outcome.bytes_down, "up": outcome.bytes_up}
    state.round = number
    state.rounds.append(record)
    _checkpoint(state)
    _say("round", f"round {number}", **record)


def _task(state: Coordinator, partner: str, number: int) -> TrainTask:
    rounds = state.config.round
    plan = TrainingPlan(rounds.local_steps, rounds.client_optimiser, rounds.learning_rate, rounds.weight_decay)
    return TrainTask(state.run_id, number, 0, state.weights[partner], state.layout, plan, state.global_D)


def _checkpoint(state: Coordinator) -> None:
    save_checkpoint(
        state.folder.checkpoint,
        Checkpoint(
            state.run_id,
            fingerprint(state.config),
            state.layout,
            state.round,
            state.global_D,
            state.optimiser.state(),
            state.rounds,
            tuple(sorted(state.exhausted)),
        ),
    )


def _finish(state: Coordinator, pretrained: Pretrained, seconds: float, stopped: BudgetExhausted | None) -> None:
    """Writes the final model and the server's part of metrics.json."""
    write_vector(state.model, state.global_D)
    score_N = score(state.model, state.heldout)
    final = final_figures(score_N, state.heldout, state.config.server, state.config.round.seed)
    final["rounds"] = state.round
    save_model(state.folder.model, state.model, state.config.model, pretrained, state.run_id, state.round)
    np.save(state.folder.root / "scores.npy", score_N)
    timings = {
        "train_seconds": sum(record["timings"]["train_seconds"] for record in state.rounds),
        "evaluate_seconds": sum(record["timings"]["evaluate_seconds"] for record in state.rounds),
        "server_seconds": seconds,
    }
    write_json(
        state.folder.metrics,
        {
            "run_id": state.run_id,
            "rounds": state.rounds,
            "final": final,
            "timings": timings,
            "stopped": str(stopped) if stopped else None,
        },
    )
    _say("finished", "final model saved", round=state.round, auc=final["auc"])


def _say(fact: str, text: str, **values: Any) -> None:
    log.info(text, extra={"fact": {"fact": fact} | values})
