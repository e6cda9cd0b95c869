"""How many honest partners' parts make up the noise of a secure sum: from a run's configuration, or a partner's own."""

from common.config import Config
from common.secagg.parameters import shape


def shares_of(mode: str, least_participants: int, colluders: int) -> int:
    """Returns the parts of the noise that are in every sum: 1 where each partner adds the whole.

    No sum comes out over fewer than `least_participants`, and at most `colluders` of them know their own parts, which
    then hide nothing from them.
    """
    return least_participants - colluders if mode == "distributed" else 1


def least_in_a_sum(config: Config) -> int:
    """Returns the fewest contributions that a sum of this run can have, a full cohort having begun the round."""
    cohort = config.round.partners_per_round or config.data.partners
    return max(shape(cohort, config.aggregation.colluders).least_survivors, config.aggregation.min_partners)


def noise_shares(config: Config) -> int:
    """Returns the parts of the noise in every sum of a run."""
    if config.privacy.mode != "distributed":
        return 1
    return shares_of(config.privacy.mode, least_in_a_sum(config), config.aggregation.colluders)
