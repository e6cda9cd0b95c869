"""What each adversary holds of a round, in one unit: sums of clipped gradients over the clip, plus noise.

| adversary | holds |
|---|---|
| server | each round's mean, as everybody who has the models of two rounds |
| partner | the same, less its own contribution, which it knows |
| broken | every partner's own contribution: secure aggregation has failed |

Legend: D parameters, P partners.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.noise_shares import noise_shares
from common.privacy.views import View
from simulations.audit.observed import Observation, Release

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Sight:
    """What an adversary sees of the users of some partners in one round.

    Attributes:
        seen_D: sum over units of clipped gradients / clip times the partner's factor, plus noise.
        factor_of: partner number -> factor of its users in the sum; partners that are not in it are left out.
        deviation: of the noise in a coordinate, about.
    """

    seen_D: Float
    factor_of: dict[int, float]
    deviation: float


@dataclass(frozen=True)
class Scale:
    """How a run's contributions become sums of gradients over the clip.

    Attributes:
        config: effective.
        declared: partner number -> users that it declares.
    """

    config: Config
    declared: dict[int, int]

    @property
    def steps(self) -> int:
        """Noised steps of a contribution."""
        return 1 if self.config.privacy.mode == "distributed" else self.config.round.local_steps

    def sights(self, view: View, seen: Observation, release: Release) -> dict[int, Sight]:
        """Returns partner number -> what an adversary sees of that partner's users in a round."""
        given = {number: rounds[release.round] for number, rounds in seen.given.items() if release.round in rounds}
        if view == "broken":
            return {number: self._own(number, given_D) for number, given_D in given.items()}
        whole = {number: self._whole(number, given, release) for number in given}
        if view == "server":
            return whole
        # The next partner in the row attacks: it knows what it gave itself.
        numbers = sorted(given)
        attacker = {number: numbers[(place + 1) % len(numbers)] for place, number in enumerate(numbers)}
        return {number: self._without(sight, attacker[number], given) for number, sight in whole.items()}

    def _own(self, number: int, given_D: NDArray[np.generic]) -> Sight:
        return Sight(self._to_gradients(number) * given_D.astype(float), {number: 1.0}, self._deviation())

    def _whole(self, number: int, given: dict[int, NDArray[np.generic]], release: Release) -> Sight:
        """Returns the mean, scaled so that this partner's users count once each."""
        privacy = self.config.privacy
        if privacy.mode == "distributed":
            units = privacy.sampling_rate * sum(self.declared[one] for one in given) * privacy.units_per_user
            seen_D = release.mean_D * units / privacy.clip
            return Sight(seen_D, dict.fromkeys(given, 1.0), self._deviation() * math.sqrt(len(given)))
        weight = {one: self._weight(one) for one in given}
        total = sum(weight.values())
        scale = self._to_gradients(number) * total / weight[number]
        factor = {
            one: weight[one] * self._to_gradients(number) / (weight[number] * self._to_gradients(one)) for one in given
        }
        spread = math.sqrt(math.fsum(each**2 for each in factor.values()))
        return Sight(release.mean_D * scale, factor, self._deviation() * spread)

    def _without(self, sight: Sight, attacker: int, given: dict[int, NDArray[np.generic]]) -> Sight:
        factor = sight.factor_of[attacker]
        own_D = factor * self._to_gradients(attacker) * given[attacker].astype(float)
        left = {number: each for number, each in sight.factor_of.items() if number != attacker}
        spread = math.sqrt(max(sight.deviation**2 - (factor * self._deviation()) ** 2, 1e-12))
        return Sight(sight.seen_D - own_D, left, spread)

    def _to_gradients(self, number: int) -> float:
        """Returns what turns a contribution into a sum of clipped gradients over the clip.

        Of Adam's update this is no more than a guess: where noise is most of a gradient, a step is about the gradient
        over the noise's deviation. A guess that is off costs the attack, and takes nothing from what it proves.
        """
        config, privacy = self.config, self.config.privacy
        if privacy.mode == "distributed":
            return 2.0**-privacy.grid_bits
        if config.round.client_optimiser == "adam" and privacy.noise_multiplier:
            return -privacy.noise_multiplier / config.round.learning_rate
        expected = privacy.sampling_rate * self.declared[number] * privacy.units_per_user
        return -expected / (config.round.learning_rate * privacy.clip)

    def _deviation(self) -> float:
        """Returns the deviation of one contribution's noise."""
        noise: float = self.config.privacy.noise_multiplier or 0.0
        if self.config.privacy.mode == "distributed":
            return float(noise / math.sqrt(noise_shares(self.config)))
        return float(noise * math.sqrt(self.steps))

    def _weight(self, number: int) -> float:
        return 1.0 if self.config.aggregation.weights == "equal" else float(self.declared[number])
