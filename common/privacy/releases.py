"""What a round of training, or a histogram, releases: as facts, for a ledger or for a server's claim.

A partner's ledger keeps them under the partner's own policy; the server's claim and the price of a sweep are made of
the same facts under the run's configuration. So where both say the same noise, both give the same epsilon.
"""

from dataclasses import replace
from typing import Any

from common.config import PrivacyConfig
from common.privacy.events import DpEvent, Mechanism
from common.secagg.wire import SessionId

_MECHANISMS: dict[str, Mechanism] = {"local": "poisson_gaussian", "distributed": "poisson_skellam", "none": "none"}


def label_event(privacy: PrivacyConfig, session: SessionId, labels: str) -> DpEvent:
    """Returns the facts of one round that was made of flipped labels, however many steps it had.

    Args:
        privacy: the policy.
        session: of the round.
        labels: which flipped labels, as `DpEvent.labels` says it.
    """
    return _event(
        privacy,
        session,
        purpose="training",
        mechanism="randomised_response",
        unit="label",
        adjacency="replace_label",
        noise_multiplier=0.0,
        sampling_rate=1.0,
        steps=1,
        clip=0.0,
        impressions=privacy.max_impressions_per_user,
        flip_probability=privacy.flip_probability,
        labels=labels,
    )


def statistics_event(privacy: PrivacyConfig, shares: int, session: SessionId) -> DpEvent:
    """Returns the facts of one release of private statistics: every user is in it, in one step.

    Args:
        privacy: the policy.
        shares: parts of the noise in every sum.
        session: in which it is summed.
    """
    return _event(
        privacy,
        session,
        purpose="statistics",
        mechanism="poisson_skellam",
        unit="user",
        adjacency="add_remove",
        noise_multiplier=privacy.statistics_noise_multiplier or 0.0,
        sampling_rate=1.0,
        steps=1,
        clip=privacy.statistics_clip,
        shares=shares,
    )


def evaluation_event(privacy: PrivacyConfig, clip: float, shares: int, session: SessionId, labels: str) -> DpEvent:
    """Returns the facts of one histogram of scores: every user with a row that is held out is in it, in one step.

    In mode "label" it is made of flipped labels, those of the rows that train among them.

    Args:
        privacy: the policy.
        clip: of a unit's vector, in rows.
        shares: parts of the noise in every sum.
        session: in which it is summed.
        labels: which flipped labels; empty where none are.
    """
    if privacy.mode == "label":
        return replace(label_event(privacy, session, labels), purpose="evaluation")
    return _event(
        privacy,
        session,
        purpose="evaluation",
        mechanism="poisson_skellam" if privacy.noised else "none",
        unit=privacy.unit,
        adjacency="add_remove",
        noise_multiplier=(privacy.evaluation_noise_multiplier or 0.0) if privacy.noised else 0.0,
        sampling_rate=1.0,
        steps=1,
        clip=clip,
        shares=shares,
        impressions=privacy.units_per_user,
    )


def training_event(privacy: PrivacyConfig, shares: int, session: SessionId, steps: int) -> DpEvent:
    """Returns the facts of one round of training.

    Args:
        privacy: the policy.
        shares: parts of the noise in every sum.
        session: of the round.
        steps: local steps.
    """
    return _event(
        privacy,
        session,
        purpose="training",
        mechanism=_MECHANISMS[privacy.mode],
        unit=privacy.unit,
        adjacency="add_remove",
        noise_multiplier=(privacy.noise_multiplier or 0.0) if privacy.noised else 0.0,
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        clip=privacy.clip,
        shares=shares,
        impressions=privacy.units_per_user,
    )


def _event(privacy: PrivacyConfig, session: SessionId, **facts: Any) -> DpEvent:
    """Returns a release under a policy; how it was noised is the caller's to say."""
    return DpEvent(
        run_id=session.run_id,
        round=session.round,
        attempt=session.attempt,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
        **facts,
    )
