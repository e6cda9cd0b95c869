"""What a round of training, or a release of statistics, releases: as the facts that the ledger keeps."""

from client.partner import PartnerConfig
from common.privacy.events import DpEvent, Mechanism
from common.secagg.wire import SessionId

_MECHANISMS: dict[str, Mechanism] = {"local": "poisson_gaussian", "distributed": "poisson_skellam", "none": "none"}


def label_event(config: PartnerConfig, session: SessionId, labels: str) -> DpEvent:
    """Returns the facts of one round that was made of flipped labels, however many steps it had.

    Args:
        config: the partner's own.
        session: of the round.
        labels: which flipped labels, as `NoisyLabels.identity` says it.
    """
    privacy = config.privacy
    return DpEvent(
        run_id=session.run_id,
        round=session.round,
        attempt=session.attempt,
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
        labels=labels,
    )


def statistics_event(config: PartnerConfig, session: SessionId) -> DpEvent:
    """Returns the facts of one release of private statistics: every user is in it, in one step."""
    privacy = config.privacy
    return DpEvent(
        run_id=session.run_id,
        round=session.round,
        attempt=session.attempt,
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
        shares=config.noise_shares,
    )


def training_event(config: PartnerConfig, session: SessionId, steps: int) -> DpEvent:
    """Returns the facts of one round of training under a partner's own privacy configuration."""
    privacy = config.privacy
    return DpEvent(
        run_id=session.run_id,
        round=session.round,
        attempt=session.attempt,
        purpose="training",
        mechanism=_MECHANISMS[privacy.mode],
        unit=privacy.unit,
        adjacency="add_remove",
        noise_multiplier=(privacy.noise_multiplier or 0.0) if privacy.noised else 0.0,
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        clip=privacy.clip,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
        shares=config.noise_shares,
        impressions=privacy.units_per_user,
    )
