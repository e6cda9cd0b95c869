"""What a run claims to have cost its partners' users: from its own configuration, and from how often it asked."""

import math
from collections.abc import Iterable

from common.config import Config
from common.lineage import Claim
from common.noise_shares import noise_shares
from common.privacy.events import DpEvent, Mechanism
from common.privacy.statement import privacy_statement
from common.schedule import num_releases, run_of_release
from server.cohort import draw_cohort

BASIS = (
    "the run's own configuration over the most rounds that any one partner was asked in; a partner states its own noise"
    " and keeps its own ledger, and that ledger is what counts"
)
_ONE_KEY = f"{0:016x}:1"  # a server never learns a partner's
_MECHANISMS: dict[str, Mechanism] = {"local": "poisson_gaussian", "distributed": "poisson_skellam"}


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
    make = _event if privacy.noised else _label_event
    events = [make(config, run_id, number) for number in range(1, rounds + 1)]
    events += [_statistics_event(config, run_id, number) for number in range(num_releases(config, asked or rounds))]
    statement = privacy_statement(events, privacy.delta)
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


def _statistics_event(config: Config, run_id: str, number: int) -> DpEvent:
    privacy = config.privacy
    return DpEvent(
        run_id=run_of_release(run_id, number),
        round=0,
        attempt=0,
        purpose="statistics",
        mechanism="poisson_skellam",
        unit="user",
        adjacency="add_remove",
        noise_multiplier=privacy.statistics_noise_multiplier or 0.0,
        sampling_rate=1.0,
        steps=1,
        clip=privacy.statistics_clip,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
        shares=noise_shares(config),
    )


def _label_event(config: Config, run_id: str, number: int) -> DpEvent:
    """Returns a round of mode "label" at a partner that flipped its labels with one key, once."""
    privacy = config.privacy
    return DpEvent(
        run_id=run_id,
        round=number,
        attempt=0,
        purpose="training",
        mechanism="randomised_response",
        unit="label",
        adjacency="replace_label",
        noise_multiplier=0.0,
        sampling_rate=1.0,
        steps=1,
        clip=0.0,
        fixed_seed=privacy.fixed_seed is not None,
        mode="label",
        impressions=privacy.max_impressions_per_user,
        flip_probability=privacy.flip_probability,
        labels=_ONE_KEY,
    )


def _event(config: Config, run_id: str, number: int) -> DpEvent:
    privacy = config.privacy
    return DpEvent(
        run_id=run_id,
        round=number,
        attempt=0,
        purpose="training",
        mechanism=_MECHANISMS[privacy.mode],
        unit=privacy.unit,
        adjacency="add_remove",
        noise_multiplier=privacy.noise_multiplier or 0.0,
        sampling_rate=privacy.sampling_rate,
        steps=config.round.local_steps,
        clip=privacy.clip,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
        shares=noise_shares(config),
        impressions=privacy.units_per_user,
    )
