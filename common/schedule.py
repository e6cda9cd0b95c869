"""When a run releases histograms, of items and of scores, what they cost, and what is left for training.

Private statistics: one release before round 1, and with `privacy.statistics_every` = E another before rounds 1 + E,
1 + 2E and so on. Evaluation at the partners: `evaluation.releases` = K, after rounds R/K, 2R/K, ... R, rounded up.
"""

import re
from dataclasses import replace

from common.config import Config
from common.errors import ConfigError
from common.noise_shares import noise_shares
from common.privacy.accountants import Composition
from common.privacy.accounting import composed_epsilon, merge, rounded_up
from common.privacy.calibrate import calibrate_noise, noise_within
from common.privacy.views import bounds_of, bounds_with_noise, noise_left

# Of epsilon, where `privacy.statistics_epsilon` or `evaluation_epsilon` is unset: a 20th of training's noise, or less.
_SHARE = 0.25
_TOLERANCE = 1e-9  # as the budget's own
# One spelling of a number alone: else one round could be asked for under several names.
_EVALUATED = re.compile(r"(.+)-e(0|[1-9][0-9]{0,8})", re.DOTALL)


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


def rounds_evaluated(rounds: int, releases: int) -> tuple[int, ...]:
    """Returns after which of so many rounds partners evaluate the model; the last is always among them."""
    return tuple(sorted({-(-rounds * (number + 1) // releases) for number in range(releases)}))


def evaluation_cost(config: Config, rounds: int) -> Composition:
    """Returns what evaluation in the first so many rounds releases of each partner's users, as the accountants take it.

    Exact and flipped counts, as modes "none" and "label" have them, are no group of noised releases.
    """
    evaluation, noise = config.evaluation, config.privacy.evaluation_noise_multiplier
    if not evaluation.by_partners or not config.privacy.noised or noise is None:
        return ()
    count = sum(number <= rounds for number in rounds_evaluated(config.round.num_rounds, evaluation.releases))
    return ((1.0, noise, count),) if count else ()


def histograms_cost(config: Config, rounds: int) -> Composition:
    """Returns what all histograms of so many rounds release of each partner's users."""
    return merge([*statistics_cost(config, rounds), *evaluation_cost(config, rounds)])


def with_histogram_noise(config: Config) -> Config:
    """Returns the configuration with the least noise with which each kind of histogram keeps its own epsilon.

    Raises:
        ConfigError: where no noise does.
    """
    return _with_evaluation_noise(_with_statistics_noise(config))


def _with_statistics_noise(config: Config) -> Config:
    privacy = config.privacy
    if config.model.item_rates != "private" or privacy.statistics_noise_multiplier is not None:
        return config
    aim = privacy.statistics_epsilon or _SHARE * privacy.epsilon
    noise = calibrate_noise(aim, privacy.delta, 1.0, num_releases(config, config.round.num_rounds))
    return replace(config, privacy=replace(privacy, statistics_noise_multiplier=noise))


def _with_evaluation_noise(config: Config) -> Config:
    privacy, evaluation = config.privacy, config.evaluation
    if not evaluation.by_partners or not privacy.noised or privacy.evaluation_noise_multiplier is not None:
        return config
    aim = privacy.evaluation_epsilon or _SHARE * privacy.epsilon
    noise = calibrate_noise(aim, privacy.delta, 1.0, evaluation.releases)
    return replace(config, privacy=replace(privacy, evaluation_noise_multiplier=noise))


def with_calibrated_noise(config: Config, steps: int) -> Config:
    """Returns the configuration with the least noise that keeps its bounds: of histograms, then of training.

    Histograms and training together keep `privacy.epsilon`, and `epsilon_partner` and `epsilon_broken` where they are
    set. Noise that a configuration names stays as it is.

    Args:
        config: of a run.
        steps: of training, of the partner that takes part most often.

    Raises:
        ConfigError: where no noise keeps the bounds, and where the noise that is named leaves the run's evaluation no
            room: it would be missed at the very end.
    """
    if not config.privacy.noised:
        return config
    config = with_histogram_noise(config)
    privacy = config.privacy
    if privacy.noise_multiplier is not None:
        _require_room(config, steps)
        return config
    already = histograms_cost(config, config.round.num_rounds)
    bounds = bounds_with_noise(privacy, noise_shares(config))
    noise = noise_within(bounds, privacy.delta, privacy.sampling_rate, steps, already=already)
    return replace(config, privacy=replace(privacy, noise_multiplier=noise))


def _require_room(config: Config, steps: int) -> None:
    privacy, shares = config.privacy, noise_shares(config)
    if not evaluation_cost(config, config.round.num_rounds):
        return
    training = (privacy.sampling_rate, privacy.noise_multiplier or 0.0, steps)
    groups = [training, *histograms_cost(config, config.round.num_rounds)]
    for view, bound in bounds_of(privacy).items():
        seen = merge((rate, noise_left(noise, shares, view), count) for rate, noise, count in groups)
        spent = composed_epsilon(seen, privacy.delta)
        if spent > bound * (1 + _TOLERANCE):
            key = "epsilon" if view == "server" else f"epsilon_{view}"
            raise ConfigError(
                f"{config.round.num_rounds} rounds and {config.evaluation.releases} evaluations at the partners come to"
                f" epsilon {rounded_up(spent)} and the budget is privacy.{key} = {bound:g}: the model would go"
                " unevaluated, or its training end early; unset privacy.noise_multiplier and"
                " privacy.evaluation_noise_multiplier (or raise them), take fewer rounds, or raise the epsilon"
            )


def run_of_evaluation(run_id: str, round_number: int) -> str:
    """Returns the id under which the scores after a round are summed: a run of its own, with one round, 0."""
    return f"{run_id}-e{round_number}"


def evaluated_in(summed_as: str) -> tuple[str, int] | None:
    """Returns the run and the round of an id of `run_of_evaluation`; None where it is none."""
    found = _EVALUATED.fullmatch(summed_as)
    return (found[1], int(found[2])) if found else None


def run_of_release(run_id: str, number: int) -> str:
    """Returns the id under which a release is summed: a run of secure aggregation of its own, with one round, 0."""
    return f"{run_id}-s{number}"


def number_of_release(run_id: str, summed_as: str) -> int | None:
    """Returns which release of a run an id of `run_of_release` is; None where it is none of that run."""
    text = summed_as.removeprefix(f"{run_id}-s")
    return int(text) if text != summed_as and text.isascii() and text.isdigit() else None
