"""What a round of training releases, as the facts that the ledger keeps."""

from client.partner import PartnerConfig
from common.privacy.events import DpEvent, Mechanism
from common.secagg.wire import SessionId

_MECHANISMS: dict[str, Mechanism] = {"local": "poisson_gaussian", "distributed": "poisson_skellam", "none": "none"}


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
        noise_multiplier=(privacy.noise_multiplier or 0.0) if privacy.mode != "none" else 0.0,
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        clip=privacy.clip,
        fixed_seed=privacy.fixed_seed is not None,
        mode=privacy.mode,
        shares=config.noise_shares,
        impressions=privacy.units_per_user,
    )
