"""When a run's private statistics are released, what they cost, and what is left for training.

One release before round 1, and with `privacy.statistics_every` = E another before rounds 1 + E, 1 + 2E and so on.
"""

from dataclasses import replace

from common.config import Config
from common.noise_shares import noise_shares
from common.privacy.accountants import Composition
from common.privacy.calibrate import calibrate_noise, noise_within
from common.privacy.views import bounds_with_noise

_SHARE = 0.25  # of epsilon, where `privacy.statistics_epsilon` is unset: a 20th of training's noise, or less


def release_due(config: Config, round_number: int) -> int | None:
    """Returns the number of the release that comes right before a round, from 0; None where none does."""
    every = config.privacy.statistics_every
    if config.model.item_rates != "private" or round_number < 1:
        return None
    if round_number == 1:
        return 0
    return (round_number - 1) // every if every and (round_number - 1) % every == 0 else None


def first_round(config: Config, number: int) -> int:
    """Returns the round that a release comes before."""
    return 1 + number * config.privacy.statistics_every


def num_releases(config: Config, rounds: int) -> int:
    """Returns how many releases a run has had after so many rounds."""
    every = config.privacy.statistics_every
    if config.model.item_rates != "private" or rounds < 1:
        return 0
    return 1 + (rounds - 1) // every if every else 1


def statistics_cost(config: Config, rounds: int) -> Composition:
    """Returns what the statistics of so many rounds release of each partner's users, as the accountants take it."""
    count, noise = num_releases(config, rounds), config.privacy.statistics_noise_multiplier
    return ((1.0, noise, count),) if count and noise is not None else ()


def with_statistics_noise(config: Config) -> Config:
    """Returns the configuration with the least noise with which the statistics of the whole run keep their epsilon.

    Raises:
        ConfigError: where no noise does.
    """
    privacy = config.privacy
    if config.model.item_rates != "private" or privacy.statistics_noise_multiplier is not None:
        return config
    aim = privacy.statistics_epsilon or _SHARE * privacy.epsilon
    noise = calibrate_noise(aim, privacy.delta, 1.0, num_releases(config, config.round.num_rounds))
    return replace(config, privacy=replace(privacy, statistics_noise_multiplier=noise))


def with_calibrated_noise(config: Config, steps: int) -> Config:
    """Returns the configuration with the least noise that keeps its bounds: of the statistics, then of training.

    Statistics and training together keep `privacy.epsilon`, and `epsilon_partner` and `epsilon_broken` where they are
    set. Noise that a configuration names stays as it is.

    Args:
        config: of a run.
        steps: of training, of the partner that takes part most often.

    Raises:
        ConfigError: where no noise keeps the bounds.
    """
    if not config.privacy.noised:
        return config
    config = with_statistics_noise(config)
    privacy = config.privacy
    if privacy.noise_multiplier is not None:
        return config
    already = statistics_cost(config, config.round.num_rounds)
    bounds = bounds_with_noise(privacy, noise_shares(config))
    noise = noise_within(bounds, privacy.delta, privacy.sampling_rate, steps, already=already)
    return replace(config, privacy=replace(privacy, noise_multiplier=noise))


def run_of_release(run_id: str, number: int) -> str:
    """Returns the id under which a release is summed: a run of secure aggregation of its own, with one round, 0."""
    return f"{run_id}-s{number}"


def number_of_release(run_id: str, summed_as: str) -> int | None:
    """Returns which release of a run an id of `run_of_release` is; None where it is none of that run."""
    text = summed_as.removeprefix(f"{run_id}-s")
    return int(text) if text != summed_as and text.isascii() and text.isdigit() else None
