"""Before a run: what sampling rate and number of rounds do to noise, progress and epsilon, for one budget.

The measure is noise over progress. A step's sum holds at most (sampling rate x units) clipped gradients that agree, and
noise of `noise_multiplier` in each coordinate; over T steps progress grows like T and noise like sqrt(T). One release
of everything, with the noise that the whole budget asks for, sets the best that many steps come near: `efficiency` is
the share of that which a choice reaches. Larger rates reach more of it and use each unit more often.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.stats import binom

from common.errors import ConfigError
from common.privacy.accountants import Composition
from common.privacy.accounting import MIN_DELTA, composed_epsilon, merge
from common.privacy.calibrate import Bound, noise_within
from common.privacy.quick import gaussian_epsilon, gaussian_noise_multiplier, quick_epsilon, quick_noise
from common.privacy.skellam import tail_probability

SHARES_OF_A_RUN = (0.25, 0.5, 1.0)  # after which epsilon is shown, and after one round
NEAR_THE_BEST = 0.95  # of the largest progress over noise: the cheapest choice that reaches it is recommended

_BETA1, _BETA2 = 0.9, 0.999  # of Adam
_BOUND_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all choices of a plan share.

    Attributes:
        epsilon: budget of one partner, in (0, `MAX_EPSILON`).
        delta: probability with which it may fail.
        units: users behind one noised sum: one partner's, or those of a whole cohort where they share the noise.
        sums: independently noised sums that are averaged in a round: a cohort's partners, or 1 where they share noise.
        local_steps: of a round.
        parameters: trained numbers (D).
        extra_noise: noise in a sum over that which is accounted, at least 1: where everybody is there.
        others: further bounds to keep, as (epsilon, part of the noise's deviation that is left for whoever it bounds).
        statistics_noise: noise multiplier of a release of private statistics, every unit in it; 0 = none is made.
        statistics_every: rounds between releases; 0 = one, before round 1.
        evaluation_noise: noise multiplier of a histogram of scores, every unit in it; 0 = none is made.
        evaluations: histograms of scores, spread over all rounds; the last one after the last round.

    Raises:
        ConfigError: for values out of range; one line per value.
    """

    epsilon: float
    delta: float
    units: float
    sums: int = 1
    local_steps: int = 1
    parameters: int = 1
    extra_noise: float = 1.0
    others: tuple[Bound, ...] = ()
    statistics_noise: float = 0.0
    statistics_every: int = 0
    evaluation_noise: float = 0.0
    evaluations: int = 0

    def histograms(self, done: int, rounds: int) -> Composition:
        """Returns what the histograms of the first so many of a run's rounds release."""
        count = 1 + (done - 1) // self.statistics_every if self.statistics_every else 1
        statistics = [(1.0, self.statistics_noise, count)] if self.statistics_noise and done else []
        evaluated = self.evaluations * done // rounds if rounds else 0
        evaluation = [(1.0, self.evaluation_noise, evaluated)] if self.evaluation_noise else []
        return merge([*statistics, *evaluation])

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """All bounds, the budget first."""
        return ((self.epsilon, 1.0), *self.others)

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)!r}: must be at least 1"
            for name in ("units", "sums", "local_steps", "parameters", "extra_noise")
            if not 1 <= getattr(self, name) < math.inf
        ]
        if not MIN_DELTA <= self.delta < 1:
            problems.append(f"delta = {self.delta!r}: at least {MIN_DELTA:g} and below 1")
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One sampling rate and number of rounds, and what follows.

    Attributes:
        sampling_rate: probability with which each unit joins each step.
        rounds: of the run.
        steps: of the partner that takes part most often, over all rounds.
        noise_multiplier: the least that keeps `steps` within all bounds, in thousandths.
        step_noise: length of one step's noise over the largest mean gradient that the units of one sum could give.
        run_noise: the same over all steps of the run and all sums that are averaged: noise over progress.
        efficiency: share of the best progress over noise that this budget could buy, at most about 1.
        uses: how often each unit is used, on average.
        epsilons: spent after one round, and after each of `SHARES_OF_A_RUN`.
        overflow: bound on the probability that one coordinate of one contribution or sum leaves its range in a step or
            round; None where none is known.
    """

    sampling_rate: float
    rounds: int
    steps: int
    noise_multiplier: float
    step_noise: float
    run_noise: float
    efficiency: float
    uses: float
    epsilons: tuple[float, ...]
    overflow: float | None = None


def plan_choices(setting: Setting, rates: Sequence[float], courses: Mapping[int, Sequence[int]]) -> list[Choice]:
    """Returns one choice per rate and number of rounds, rates first.

    Args:
        setting: the budget and the data's size.
        rates: sampling rates, each in (0, 1].
        courses: number of rounds -> steps that the busiest partner has made after 0, 1, 2 ... rounds.

    Raises:
        ConfigError: where no noise gives the asked epsilon.
    """
    return [_choice(setting, rate, rounds, course) for rate in rates for rounds, course in courses.items()]


def _choice(setting: Setting, rate: float, rounds: int, course: Sequence[int]) -> Choice:
    steps = course[rounds]
    histograms = setting.histograms(rounds, rounds)
    bounds = [(_left_of(epsilon, setting.delta, histograms, left), left) for epsilon, left in setting.bounds]
    noise = noise_within(bounds, setting.delta, rate, steps, quick=quick_noise)
    return with_noise(
        setting,
        Choice(
            sampling_rate=rate,
            rounds=rounds,
            steps=steps,
            noise_multiplier=noise,
            step_noise=0.0,
            run_noise=0.0,
            efficiency=0.0,
            uses=rate * steps,
            epsilons=tuple(
                with_histograms(
                    quick_epsilon(noise, rate, taken, setting.delta), setting.delta, setting.histograms(done, rounds)
                )
                for done, taken in _stops(rounds, course)
            ),
        ),
        noise,
    )


def with_noise(setting: Setting, choice: Choice, noise: float) -> Choice:
    """Returns a choice with another noise multiplier and the figures of size that follow; `epsilons` stay."""
    step_noise = noise * setting.extra_noise * math.sqrt(setting.parameters) / (choice.sampling_rate * setting.units)
    whole = gaussian_noise_multiplier(setting.epsilon, setting.delta)
    return replace(
        choice,
        noise_multiplier=noise,
        step_noise=step_noise,
        run_noise=step_noise / math.sqrt(choice.rounds * setting.local_steps * setting.sums),
        efficiency=choice.sampling_rate * math.sqrt(choice.steps) * whole / noise,
    )


def _left_of(epsilon: float, delta: float, histograms: Composition, left: float = 1.0) -> float:
    """Returns about the epsilon that histograms leave to training: exact where its many steps act as one Gaussian.

    For lines of a table; `confirmed` composes the two by the accountant proper.

    Raises:
        ConfigError: where nothing is left.
    """
    if not histograms:
        return epsilon
    rest = gaussian_noise_multiplier(epsilon, delta) ** -2 - _precision(histograms, left)
    if rest <= 0 or (found := gaussian_epsilon(rest**-0.5, delta)) <= 0:
        raise ConfigError(
            f"epsilon = {epsilon:g} at delta {delta:g}: the histograms alone use it up; lower"
            " privacy.statistics_epsilon or privacy.evaluation_epsilon, or raise the epsilon"
        )
    return found


def with_histograms(epsilon: float, delta: float, histograms: Composition) -> float:
    """Returns about the epsilon of training and histograms together; as `_left_of`."""
    if not histograms or not 0 <= epsilon < math.inf:
        return epsilon
    trained = gaussian_noise_multiplier(epsilon, delta) ** -2 if epsilon else 0.0
    return gaussian_epsilon((trained + _precision(histograms)) ** -0.5, delta)


def _precision(histograms: Composition, left: float = 1.0) -> float:
    return math.fsum(count / (noise * left) ** 2 for _, noise, count in histograms)


def _stops(rounds: int, course: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (rounds, steps of training) at which epsilon is shown."""
    stops = [1, *(max(1, math.ceil(share * rounds)) for share in SHARES_OF_A_RUN)]
    return [(done, course[done]) for done in stops]


def confirmed(setting: Setting, choice: Choice, course: Sequence[int]) -> Choice:
    """Returns a choice with the very noise and epsilons of the accountant that a ledger is read with.

    Formal guarantees:
        - the epsilon (PLD) of all its steps is at most the budget: never less privacy than asked.
    """
    noise = choice.noise_multiplier
    rate, steps = choice.sampling_rate, choice.steps
    below = round(noise - 0.001, 3)
    already = setting.histograms(choice.rounds, choice.rounds)
    if not _keeps(setting, rate, noise, steps, already) or (below > 0 and _keeps(setting, rate, below, steps, already)):
        noise = noise_within(setting.bounds, setting.delta, rate, steps, already=already)
    spent = tuple(
        composed_epsilon(merge([(rate, noise, count), *setting.histograms(done, choice.rounds)]), setting.delta)
        for done, count in _stops(choice.rounds, course)
    )
    return replace(with_noise(setting, choice, noise), epsilons=spent)


def _keeps(setting: Setting, rate: float, noise: float, steps: int, already: Composition) -> bool:
    groups = [(rate, noise, steps), *already]
    return all(
        composed_epsilon(merge((one, sigma * left, count) for one, sigma, count in groups), setting.delta) <= epsilon
        for epsilon, left in setting.bounds
    )


def recommended(choices: Sequence[Choice], rounds: int) -> Choice:
    """Returns, of the choices with so many rounds, the least used one within `NEAR_THE_BEST` of the least run noise.

    Larger rates always win, by ever less: beyond this point they cost time and buy nothing that one would see.
    """
    same = [choice for choice in choices if choice.rounds == rounds]
    least = min(choice.run_noise for choice in same)
    return min((choice for choice in same if choice.run_noise * NEAR_THE_BEST <= least), key=lambda choice: choice.uses)


def adam_reach(steps: int) -> float:
    """Returns how far, in learning rates, a coordinate can move in so many steps of a fresh Adam, whatever it is given.

    A step is the ratio of two weighted means of the gradients seen, which Cauchy and Schwarz bound.
    """
    return math.fsum(_adam_step(step) for step in range(1, steps + 1))


def _adam_step(step: int) -> float:
    first, second = 1 - _BETA1**step, 1 - _BETA2**step
    ratio = _BETA1**2 / _BETA2
    total = (1 - ratio**step) / (1 - ratio)
    return math.sqrt((1 - _BETA1) ** 2 / first**2 * second / (1 - _BETA2) * total)


def sgd_clamp_probability(
    bound: float, learning_rate: float, local_steps: int, clip: float, step_deviation: float
) -> float:
    """Returns the probability that a coordinate of an update of plain SGD leaves [-bound, bound], at worst.

    At worst, all users' whole gradients lie in that coordinate: it then moves by `learning_rate * clip` a step, for a
    sample of the expected size, and the noise adds to that.

    Args:
        bound: `aggregation.update_bound`; weights are at most 1.
        learning_rate: of the local optimiser, without weight decay.
        local_steps: of a round.
        clip: bound on one user's gradient.
        step_deviation: standard deviation of the noise of one step in a coordinate, over the expected sample.
    """
    left = bound - learning_rate * local_steps * clip
    deviation = learning_rate * math.sqrt(local_steps) * step_deviation
    if left <= 0:
        return 1.0
    return min(1.0, math.erfc(left / deviation / math.sqrt(2))) if deviation else 0.0


def wrap_probability(limit: int, grid: int, units: int, sampling_rate: float, deviation: float) -> float:
    """Returns a bound on the probability that a coordinate of a noised sum of whole numbers wraps in a step.

    It wraps where users and noise together reach `limit`. At worst all of a user's gradient lies in that coordinate,
    always on the same side. The bound is the best split between too large a sample and too large a noise.

    Args:
        limit: half of the ring.
        grid: length, in grid steps, of a clipped gradient.
        units: users of all partners together.
        sampling_rate: probability with which each joins, in (0, 1].
        deviation: of the Skellam noise in the sum, in grid steps.
    """
    most = min(limit // grid, units)
    least = min(int(units * sampling_rate), most)
    best = 1.0
    for point in range(_BOUND_POINTS + 1):
        sample = least + (most - least) * point // _BOUND_POINTS
        too_many = float(binom.sf(sample, units, sampling_rate))
        best = min(best, too_many + tail_probability(deviation**2, limit - sample * grid))
    return best
