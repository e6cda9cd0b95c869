"""What a run claims to have cost its partners' users: from its own configuration, and from how often it asked."""

import math
from collections.abc import Iterable

from common.config import Config
from common.lineage import Claim
from common.noise_shares import noise_shares
from common.privacy.events import DpEvent
from common.privacy.releases import evaluation_event, label_event, statistics_event, training_event
from common.privacy.statement import privacy_statement
from common.schedule import num_releases, rounds_evaluated, run_of_evaluation, run_of_release
from common.scorehistogram import terms_of
from common.secagg.wire import SessionId
from server.cohort import draw_cohort

BASIS = (
    "the run's own configuration over the most rounds that any one partner was asked in; a partner states its own noise"
    " and keeps its own ledger, and that ledger is what counts"
)
_ONE_KEY = f"{0:016x}:1"  # a server never learns a partner's


def rounds_of_the_busiest(config: Config, partners: Iterable[str], rounds: int, *, steady: bool) -> int:
    """Returns the most rounds that any one partner can have been asked in.

    Args:
        config: of the run.
        partners: who joined.
        rounds: that the run has had.
        steady: the same partners were there, with budget, in every round, so that cohorts are those drawn from all of
            them; else nobody is said to have been asked less than always.
    """
    if not steady:
        return rounds
    names, drawn = list(partners), dict.fromkeys(partners, 0)
    for number in range(1, rounds + 1):
        for partner in draw_cohort(names, config.round.partners_per_round, config.round.seed, number):
            drawn[partner] += 1
    return max(drawn.values(), default=0)


def claimed(config: Config, run_id: str, rounds: int, asked: int = 0) -> Claim:
    """Returns the claim for a partner that was asked in so many rounds, with the run's own noise.

    Args:
        config: of the run.
        run_id: of the run.
        rounds: in which the partner was asked to train.
        asked: rounds that the run had, which say how often statistics were released; 0 = as many.
    """
    privacy = config.privacy
    if privacy.mode == "none" or (privacy.noised and privacy.noise_multiplier is None):
        sentence = "No differential privacy: the model and every update may reveal single users."
        return Claim(mode="none", sentence=sentence, basis=BASIS, rounds=rounds)
    statement = privacy_statement(_events(config, run_id, rounds, asked or rounds), privacy.delta)
    return Claim(
        mode=privacy.mode,
        sentence=statement.sentence(),
        basis=BASIS,
        rounds=rounds,
        epsilon=_finite(statement.epsilon),
        delta=statement.delta,
        unit=statement.unit,
        user_epsilon=_finite(statement.user_epsilon),
        impressions=statement.impressions,
        adjacency=statement.adjacency,
        accountant=statement.accountant,
        second_accountant=statement.second_accountant,
        second_epsilon=_finite(statement.second_epsilon),
        protects_against=statement.protects_against,
        views={view: _finite(epsilon) for view, epsilon in statement.views.items()},
        fixed_seed=statement.fixed_seed,
        noise_multiplier=privacy.noise_multiplier if privacy.noised else None,
        sampling_rate=privacy.sampling_rate if privacy.noised else None,
        clip=privacy.clip if privacy.noised else None,
        steps=statement.steps,
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _events(config: Config, run_id: str, rounds: int, asked: int) -> list[DpEvent]:
    """Returns what a partner releases that is asked in so many rounds, of a run that had `asked`."""
    privacy, shares = config.privacy, noise_shares(config)
    sessions = [SessionId(run_id, number, 0) for number in range(1, rounds + 1)]
    if not privacy.noised:  # of one key, whose labels were read once
        return [label_event(privacy, session, _ONE_KEY) for session in sessions]
    statistics = [SessionId(run_of_release(run_id, number), 0, 0) for number in range(num_releases(config, asked))]
    return [
        *(training_event(privacy, shares, session, config.round.local_steps) for session in sessions),
        *(statistics_event(privacy, shares, session) for session in statistics),
        *_evaluations(config, run_id, asked),
    ]


def _evaluations(config: Config, run_id: str, asked: int) -> list[DpEvent]:
    """Returns the histograms of scores of a run that had so many rounds: the last one has one, whatever was planned."""
    if not config.evaluation.by_partners:
        return []
    due = rounds_evaluated(config.round.num_rounds, config.evaluation.releases)
    after = {number for number in due if number <= asked} | {asked} if asked else set()
    clip = terms_of(config.evaluation, config.privacy, config.model.prior_click_rate).clip
    sessions = [SessionId(run_of_evaluation(run_id, number), 0, 0) for number in sorted(after)]
    return [evaluation_event(config.privacy, clip, noise_shares(config), session, "") for session in sessions]
