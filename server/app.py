"""The ServerApp: join, then rounds of cohort -> tasks -> sum -> step -> evaluation -> checkpoint. Read this first.

It reads a run folder (`config.toml`, `central.parquet`), and leaves there a checkpoint per round, `model/` and
`metrics.json`. Progress goes out as log records of `hushclick.run` that carry a `fact` dict.

Legend: D parameters.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.anchors import AnchorFile
from common.calibration import Calibration
from common.config import Config, fingerprint, load_config
from common.contribution import LocalDelta, NoisedStep, RunningSum
from common.errors import BudgetExhausted, CheckpointError, ConfigError, TooFewPartners
from common.lineage import Claim, RoundFacts
from common.message_types import TRAIN_UPDATE
from common.messages import TrainingPlan, TrainTask, counts_hash, shared_hash
from common.model.click_model import ClickModel, build_model, learning_rates
from common.noise_shares import noise_shares
from common.pretrained import Pretrained, locate
from common.runfolder import RunFolder, write_json
from common.secagg.roster import load_roster
from common.vector import layout_fingerprint, num_trainable, read_vector, write_vector
from server.auditing import audited
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.claim import claimed, rounds_of_the_busiest
from server.cohort import draw_cohort
from server.course import Course
from server.delivery import deliver
from server.evaluation import HeldOut, load_heldout, round_figures, score
from server.halves import require_halves, seen_each_round
from server.histograms import Histograms
from server.joining import anchored, fitting, join, say
from server.journal import Journal
from server.judging import judge
from server.modelfolder import load_signing_key, save_model, vouch
from server.noisysums import NoisySums
from server.optimiser import ServerOptimiser
from server.partnerevaluation import PartnerEvaluation, evaluate_after
from server.ranks import with_ranks
from server.round import collect_sum
from server.secure import SecureAggregator
from server.statistics import item_counts
from server.sums import mean_of, total_of
from server.trackers import Trackers

app = ServerApp()

Watch = Callable[[int, NDArray[np.float32], NDArray[np.float64]], None]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds that the run folder's configuration asks for, from its checkpoint where there is one."""
    folder = RunFolder(Path(str(context.run_config["run-folder"])))
    with audited(folder):
        run(grid, folder)


@dataclass
class Coordinator:
    """What the loop holds between rounds."""

    config: Config
    folder: RunFolder
    run_id: str
    nodes: dict[str, int]  # partner -> node id
    weights: dict[str, float]  # partner -> public weight in (0, 1]
    declared_users: dict[str, int]  # partner -> what it publishes of its size
    cards: dict[str, str]  # partner -> hash of its data card
    key: Ed25519PrivateKey = field(repr=False)  # signs the final model
    model: ClickModel
    layout: str
    heldout: HeldOut | None  # None = the operator has no clicks: partners alone evaluate
    optimiser: ServerOptimiser
    course: Course
    global_D: NDArray[np.float32]
    round: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)
    aggregator: SecureAggregator | None = None  # None = plain
    starts: int = 0  # how often the run's server was started before
    histograms: Histograms | None = None  # private statistics, where the model's features are made with them
    evaluation: PartnerEvaluation | None = None  # histograms of scores, where partners evaluate
    counts_told: bytes = b""  # hash of exact item counts, where features are made with them
    watch: Watch | None = None  # an audit's eyes
    trackers: Trackers = field(init=False, repr=False)

    @property
    def told(self) -> bytes:
        """Hash of what partners were told to make features with."""
        return self.histograms.shared if self.histograms else self.counts_told

    @property
    def kind(self) -> type[LocalDelta] | type[NoisedStep]:
        """What the partners contribute."""
        return NoisedStep if self.config.privacy.mode == "distributed" else LocalDelta


def run(grid: Grid, folder: RunFolder, watch: Watch | None = None) -> None:
    """Runs all rounds that are left, then evaluates and saves the final model.

    Args:
        grid: Flower's.
        folder: of the run.
        watch: told each round's number, the weights that it started from and the mean contribution: no more than who
            holds the models of both rounds can work out.

    Raises:
        TooFewPartners: when not enough partners join or answer.
        BudgetExhausted: when too few partners have budget left; the model so far is saved.
        CheckpointError: when the folder's checkpoint is of another configuration.
    """
    started = time.monotonic()
    config = load_config(folder.config)
    pretrained = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
    state = _begin(grid, config, folder, pretrained)
    state.watch = watch
    state.trackers = Trackers(config, folder.root, state.run_id, state.starts)
    for record in state.rounds:
        state.trackers.round(record)
    say("begun", f"{len(state.nodes)} partners joined", partners=len(state.nodes), round=state.round)
    _at_partners(state)  # where a start before ended at that
    stopped: BudgetExhausted | None = None
    while state.round < config.round.num_rounds and stopped is None and not state.course.done:
        try:
            _run_round(grid, state)
        except BudgetExhausted as error:
            stopped = error
    refused = _at_partners(state, last=True)
    stopped = stopped or refused
    _finish(grid, state, pretrained, time.monotonic() - started, stopped)
    if stopped:
        raise stopped


def _begin(grid: Grid, config: Config, folder: RunFolder, pretrained: Pretrained) -> Coordinator:
    """Returns the state before the next round: fresh, or from the checkpoint."""
    mark, key = fingerprint(config), load_signing_key(folder.signing_key)
    saved = load_checkpoint(folder.checkpoint, mark) if folder.checkpoint.exists() else None
    run_id, starts = (saved.run_id, saved.starts + 1) if saved else (uuid.uuid4().hex, 0)
    roster = load_roster(folder.roster)
    nodes, replies = join(grid, config, run_id)
    heads = 2 if 2 * sum(reply.has_purchases for reply in replies.values()) > len(replies) else 1
    model = build_model(config.model, pretrained.width, heads, config.round.seed, pretrained)
    layout = layout_fingerprint(model, pretrained.fingerprint, config.model)
    if saved and saved.layout != layout:
        raise CheckpointError("the partners that joined have another model layout than the run's: it cannot go on")
    replies = fitting(config, replies, layout, pretrained.fingerprint, roster)
    replies = anchored(grid, config, run_id, nodes, replies, AnchorFile(folder.anchors), saved.round if saved else 0)
    nodes = {partner: nodes[partner] for partner in replies}
    aggregator = None
    if config.aggregation.method == "secure":
        numbers = {roster.number(partner): node for partner, node in nodes.items()}
        journal = Journal(folder.root)
        shared, integers = shared_hash(b"", config.privacy, noise_shares(config)), config.privacy.mode == "distributed"
        aggregator = SecureAggregator(
            grid, config.aggregation, roster, numbers, run_id, starts, journal, shared, integers
        )
    exact = config.model.item_rates == "exact"
    counts = item_counts(grid, config, folder, run_id, nodes, aggregator) if exact else None
    if aggregator and counts is not None:
        aggregator.shared = shared_hash(counts_hash(counts), config.privacy, noise_shares(config))
    told = b"" if counts is None else counts_hash(counts)
    declared = {partner: reply.declared_users for partner, reply in replies.items()}
    histograms, evaluation, users = None, None, sum(declared.values())
    if config.model.item_rates == "private":
        histograms = Histograms(grid, config, folder, run_id, nodes, roster, starts, users)
    if config.evaluation.by_partners:
        sums = NoisySums(grid, config, folder, run_id, nodes, roster, starts, "evaluation")
        evaluation = PartnerEvaluation(sums, config, folder, run_id, layout, users)
    heldout = None
    if folder.central.exists() or not evaluation:
        rates = histograms.rates if histograms else None
        heldout = load_heldout(folder.central, config.model, pretrained, counts, rates)
        require_halves(heldout, config.server)
    else:
        _require_nothing_central(config)
    optimiser = ServerOptimiser(config.server, num_trainable(model), learning_rates(model))
    weights = {partner: roster.member(roster.number(partner)).weight for partner in nodes}
    state = Coordinator(
        config,
        folder,
        run_id,
        nodes,
        weights,
        declared,
        {partner: reply.card for partner, reply in replies.items()},
        key,
        model,
        layout,
        heldout,
        optimiser,
        Course(config.server, config.round.num_rounds, optimiser.length),
        read_vector(model),
        aggregator=aggregator,
        starts=starts,
        histograms=histograms,
        evaluation=evaluation,
        counts_told=told,
    )
    if saved:
        optimiser.load_state(saved.optimiser)
        state.course.load_state(saved.course)
        state.global_D, state.round, state.rounds = saved.model_D, saved.round, list(saved.rounds)
        state.exhausted = set(saved.exhausted)
    _checkpoint(state)  # fixes run id and start before anything is asked of a partner's budget
    return state


def _require_nothing_central(config: Config) -> None:
    """Refuses settings that need clicks of the operator's own, where there are none."""
    server = config.server
    for key, unused in (("patience", 0), ("calibration", "none"), ("next_item_clicks", 0)):
        if (value := getattr(server, key)) != unused:
            raise ConfigError(
                f"server.{key} = {value}: needs held-out clicks of the operator's own, and there are none; set it to"
                f" {unused!r}, or name clicks in server.toml"
            )


def _run_round(grid: Grid, state: Coordinator) -> None:
    """One round: it ends with a new global model, or with a record of why there is none."""
    config, number = state.config, state.round + 1
    started = time.monotonic()
    able = [partner for partner in state.nodes if partner not in state.exhausted]
    if len(able) < config.aggregation.min_partners:
        raise BudgetExhausted(
            f"{len(able)} partners have budget left, {config.aggregation.min_partners} are needed:"
            f" the run ends after round {state.round} with its model saved"
        )
    _prepare_statistics(state, number)
    record: dict[str, Any] = {"round": number}
    try:
        if state.aggregator is None:
            mean_D = _collect_plain(grid, state, able, record)
        else:
            mean_D = _collect_secure(state.aggregator, state, able, record)
        if state.watch:
            state.watch(number, state.global_D, mean_D)
        stepped_D = state.optimiser.step(state.global_D, mean_D, state.kind)
        state.global_D = with_ranks(state.model, stepped_D, number, config)
        state.course.add(number, state.global_D)
    except TooFewPartners as error:
        record["error"] = str(error)
    trained = time.monotonic()
    scored = number % config.server.evaluate_every == 0 or number == config.round.num_rounds
    if scored and state.heldout:
        write_vector(state.model, state.course.model(state.global_D))
        heldout = seen_each_round(state.heldout, config.server)
        record |= round_figures(score(state.model, heldout), heldout, config.server, config.round.seed)
        if "error" not in record:  # else there is no new model to be better or worse
            state.course.look(number, record, state.global_D)
    record["timings"] = {"train_seconds": trained - started, "evaluate_seconds": time.monotonic() - trained}
    state.round = number
    state.rounds.append(record)
    _checkpoint(state)
    state.trackers.round(record)
    if state.aggregator:
        state.aggregator.journal.end()  # shares of a round that is over are kept no longer
    _at_partners(state)
    say("round", f"round {number}", **record)


def _at_partners(state: Coordinator, *, last: bool = False) -> BudgetExhausted | None:
    """Has partners evaluate the model that the run would end with now, where that is due."""
    kept_D = state.course.chosen(state.global_D)
    return evaluate_after(state.evaluation, state.rounds, kept_D, state.told, last=last)


def _prepare_statistics(state: Coordinator, number: int) -> None:
    """Makes the private statistics that are due before a round; features of the rounds to come are made with them."""
    histograms, config = state.histograms, state.config
    if histograms is None or state.aggregator is None:
        return
    if histograms.prepare(number) and state.heldout:
        pretrained = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
        state.heldout = load_heldout(state.folder.central, config.model, pretrained, item_rates=histograms.rates)
    state.aggregator.shared = shared_hash(state.told, config.privacy, noise_shares(config))


def _collect_secure(
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


def _collect_plain(grid: Grid, state: Coordinator, able: list[str], record: dict[str, Any]) -> NDArray[np.float64]:
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
            state.starts,
            state.course.state(),
        ),
    )


def _finish(
    grid: Grid, state: Coordinator, pretrained: Pretrained, seconds: float, stopped: BudgetExhausted | None
) -> None:
    """Writes, signs and delivers the final model, and writes the server's part of metrics.json."""
    write_vector(state.model, state.course.chosen(state.global_D))
    final: dict[str, Any] = {}
    judged = None
    if state.heldout:
        judged = judge(state.model, state.heldout, state.config, state.course.facts(state.round))
        final = judged.figures
    if state.evaluation and state.rounds:
        final["partners"] = state.rounds[-1]["partners"]
    final["rounds"] = state.round
    claim = _claim(state)
    final["delivered"] = _hand_out(grid, state, pretrained, claim, judged.calibration if judged else None)
    if judged:
        np.save(state.folder.root / "scores.npy", judged.score_N)
    timings = {
        "train_seconds": sum(record["timings"]["train_seconds"] for record in state.rounds),
        "evaluate_seconds": sum(record["timings"]["evaluate_seconds"] for record in state.rounds),
        "server_seconds": seconds,
    }
    metrics = {
        "run_id": state.run_id,
        "title": state.config.output.title,
        "data": {"partners": len(state.nodes), "declared_users": sum(state.declared_users.values())},
        "rounds": state.rounds,
        "final": final,
        "privacy": asdict(claim) | {"budget": state.config.privacy.epsilon, "assumption": claim.basis},
        "timings": timings,
        "statistics": _of_statistics(state),
        "stopped": str(stopped) if stopped else None,
    }
    write_json(state.folder.metrics, metrics)
    state.trackers.finish(metrics)
    say("finished", "final model saved", round=state.round, auc=final.get("auc"))


def _of_statistics(state: Coordinator) -> dict[str, Any] | None:
    """Returns what metrics.json says of private statistics; None where there are none."""
    if state.histograms is None:
        return None
    return state.histograms.facts() | {"unknown_rows": state.heldout.unknown_items if state.heldout else None}


def _claim(state: Coordinator) -> Claim:
    """Returns what the run's configuration, over the rounds that it had, costs the users of one partner."""
    steady = state.starts == 0 and not state.exhausted
    return claimed(
        state.config,
        state.run_id,
        rounds_of_the_busiest(state.config, state.nodes, state.round, steady=steady),
        state.round,
    )


def _hand_out(
    grid: Grid, state: Coordinator, pretrained: Pretrained, claim: Claim, calibration: Calibration | None
) -> dict[str, Any]:
    """Saves and signs the final model; returns to how many of its partners it was delivered."""
    config, folder = state.config, state.folder.model
    release = state.histograms.release if state.histograms else None
    save_model(folder, state.model, config.model, pretrained, state.run_id, state.round, release, calibration)
    rounds = tuple(
        RoundFacts(record["round"], record.get("cohort", 0), record.get("contributed", 0)) for record in state.rounds
    )
    files = vouch(
        folder,
        state.key,
        pretrained,
        state.run_id,
        state.layout,
        fingerprint(config),
        rounds,
        state.cards,
        claim,
    )
    return deliver(grid, state.run_id, state.nodes, files, config.aggregation.stage_timeout_seconds)
