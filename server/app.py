"""The ServerApp: join, then rounds of cohort -> tasks -> sum -> step -> evaluation -> checkpoint. Read this first.

It reads a run folder (`config.toml`, `central.parquet`), and leaves there a checkpoint per round, `model/` and
`metrics.json`. Progress goes out as log records of `hushclick.run` that carry a `fact` dict.

Legend: D parameters.
"""

import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.anchors import AnchorFile
from common.calibration import Calibration
from common.config import Config, fingerprint, load_config
from common.errors import BudgetExhausted, CheckpointError, ConfigError, TooFewPartners
from common.features import ItemCounts
from common.itemrates import ItemRates
from common.lineage import Claim, RoundFacts
from common.messages import counts_hash, shared_hash
from common.model.click_model import build_model, learning_rates
from common.noise_shares import noise_shares
from common.pretrained import Pretrained, locate
from common.runfolder import RunFolder, write_json
from common.secagg.roster import load_roster
from common.vector import layout_fingerprint, num_trainable, read_vector, write_vector
from server.auditing import audited
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.claim import claimed, rounds_of_the_busiest
from server.collecting import collect_plain, collect_secure
from server.coordinator import Coordinator, Watch
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
from server.secure import SecureAggregator
from server.statistics import item_counts
from server.trackers import Trackers

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds that the run folder's configuration asks for, from its checkpoint where there is one."""
    folder = RunFolder(Path(str(context.run_config["run-folder"])))
    with audited(folder):
        run(grid, folder)


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
        whole = config.privacy.mode == "distributed"
        shared = shared_hash(b"", config.privacy, noise_shares(config))
        aggregator = SecureAggregator(
            grid, config.aggregation, roster, numbers, run_id, starts, Journal(folder.root), shared, whole
        )
    exact = config.model.item_rates == "exact"
    counts = item_counts(grid, config, folder, run_id, nodes, aggregator) if exact else None
    told = b"" if counts is None else counts_hash(counts)
    if aggregator and told:
        aggregator.shared = shared_hash(told, config.privacy, noise_shares(config))
    declared = {partner: reply.declared_users for partner, reply in replies.items()}
    histograms, evaluation, users = None, None, sum(declared.values())
    if config.model.item_rates == "private":
        histograms = Histograms(grid, config, folder, run_id, nodes, roster, starts, users)
    if config.evaluation.by_partners:
        sums = NoisySums(grid, config, folder, run_id, nodes, roster, starts, "evaluation")
        evaluation = PartnerEvaluation(sums, config, folder, run_id, layout, users)
    rates = histograms.rates if histograms else None
    heldout = _heldout(config, folder, pretrained, counts, rates)
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


def _heldout(
    config: Config, folder: RunFolder, pretrained: Pretrained, counts: ItemCounts | None, rates: ItemRates | None
) -> HeldOut | None:
    """Returns the operator's held-out clicks; None where there are none, and partners evaluate."""
    if config.evaluation.by_partners and not folder.central.exists():
        _require_nothing_central(config)
        return None
    heldout = load_heldout(folder.central, config.model, pretrained, counts, rates)
    require_halves(heldout, config.server)
    return heldout


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
            mean_D = collect_plain(grid, state, able, record)
        else:
            mean_D = collect_secure(state.aggregator, state, able, record)
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
