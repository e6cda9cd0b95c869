"""What a run claims to have cost its partners' users: from its own configuration, and from how often it asked."""

import math
from collections.abc import Iterable

from common.config import Config
from common.lineage import Claim
from common.noise_shares import noise_shares
from common.privacy.events import DpEvent, Mechanism
from common.privacy.statement import privacy_statement
from server.cohort import draw_cohort

BASIS = (
    "the run's own configuration over the most rounds that any one partner was asked in; a partner states its own noise"
    " and keeps its own ledger, and that ledger is what counts"
)
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


def claimed(config: Config, run_id: str, rounds: int) -> Claim:
    """Returns the claim for a partner that was asked in so many rounds, with the run's own noise."""
    privacy = config.privacy
    if privacy.mode == "none" or privacy.noise_multiplier is None:
        sentence = "No differential privacy: the model and every update may reveal single users."
        return Claim(mode="none", sentence=sentence, basis=BASIS, rounds=rounds)
    statement = privacy_statement([_event(config, run_id, number) for number in range(1, rounds + 1)], privacy.delta)
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
        noise_multiplier=privacy.noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        clip=privacy.clip,
        steps=statement.steps,
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


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
