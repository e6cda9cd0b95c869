"""Tests of what leaves the partners when nobody is in a sample: the noise alone, and the masks over it.

The run is the deployed one, over several rounds; only its optimisers are plain, so that an update is the noise itself.
An attack on a model says little about noise that is too small by half. Its variance says it at once.

Legend: D parameters, T rounds, P partners.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, chisquare, norm

from common.config import Config
from common.noise_shares import noise_shares
from simulations.audit.findings import Finding, Verdict
from simulations.audit.observed import Array, Observation

_CHANCE = 1e-6  # of a false alarm, per question
_BINS = 256


def zero_config(config: Config, rounds: int) -> Config:
    """Returns a configuration whose updates are its noise: one plain step a round, of rate 1."""
    plain = replace(
        config.round, num_rounds=rounds, local_steps=1, client_optimiser="sgd", learning_rate=1.0, weight_decay=0.0
    )
    # What an update may be is the run's own affair elsewhere; here nothing may be cut off.
    return replace(config, round=plain, aggregation=replace(config.aggregation, update_bound=_bound(config), groups=1))


def _bound(config: Config) -> float:
    """Returns a bound on a coordinate, twelve deviations of what the noisiest partner's update holds."""
    privacy = config.privacy
    deviation = (privacy.noise_multiplier or 0.0) * privacy.clip / (privacy.sampling_rate * privacy.units_per_user)
    return float(min(1e6, max(0.001, 12 * deviation)))


def noise_scale(seen: Observation, deviation_of: Mapping[int, float]) -> Finding:
    """Returns whether each partner's own noise has the variance that its ledger claims.

    Args:
        seen: a run in which nobody was sampled.
        deviation_of: partner number -> claimed standard deviation of what it contributes.
    """
    ratios, chances = {}, {}
    for number, deviation in deviation_of.items():
        all_N = np.concatenate([np.ravel(given_D) for given_D in seen.given[number].values()]).astype(np.float64)
        ratios[number], chances[number] = variance_ratio(all_N, deviation)
    return of_variance("noise scale", "a partner's own noise", ratios, chances, _values(seen))


def noise_in_the_sum(seen: Observation, deviation_of: Mapping[int, float]) -> Finding:
    """Returns whether the noise in what the server gets has the variance of all partners' together.

    Args:
        seen: a run in which nobody was sampled.
        deviation_of: round -> standard deviation of its mean, as the partners' own claims add up.
    """
    if not seen.releases:
        return Finding(test="noise in the sum", verdict="no verdict", says="no round came to a sum")
    scaled = [release.mean_D / (deviation_of[release.round] or math.inf) for release in seen.releases]
    ratio, chance = variance_ratio(np.concatenate(scaled), 1.0)
    return of_variance("noise in the sum", "the noise in a round's sum", {0: ratio}, {0: chance}, _values(seen))


def variance_ratio(values_N: NDArray[np.float64], deviation: float) -> tuple[float, float]:
    """Returns the second moment over the claimed variance, and the chance of a value as far off."""
    total = float((values_N**2).sum()) / deviation**2 if deviation else math.inf
    size = len(values_N)
    return total / size, 2 * min(float(chi2.cdf(total, size)), float(chi2.sf(total, size)))


def of_histograms(
    test: str, what: str, parts: Mapping[str, tuple[NDArray[np.int64], float]], config: Config
) -> Finding:
    """Returns the finding of partners' histograms of nobody.

    Args:
        test: its name.
        what: is looked at.
        parts: partner and release -> the histogram, and the deviation of all parts of the noise together.
        config: of the run.
    """
    shares = math.sqrt(noise_shares(config))
    found = {place: variance_ratio(sum_D.astype(float), claimed / shares) for place, (sum_D, claimed) in parts.items()}
    ratios, chances = ({place: pair[which] for place, pair in found.items()} for which in (0, 1))
    return of_variance(test, what, ratios, chances, sum(len(sum_D) for sum_D, _ in parts.values()))


def of_variance(test: str, what: str, ratios: Mapping[Any, float], chances: Mapping[Any, float], size: int) -> Finding:
    """Returns the finding of ratios of variance to claim, by partner, over so many values."""
    wrong = [number for number, chance in chances.items() if chance < _CHANCE / len(chances)]
    worst, each = min(ratios.values()), size // len(ratios)
    figures = {"variance_over_claim": dict(ratios), "chances": dict(chances), "values": size}
    if not wrong and 2 * float(chi2.cdf(each / 4, each)) > _CHANCE / len(chances):
        says = f"{each} values are too few to tell half of the noise from all of it"
        return Finding(test=test, verdict="no verdict", says=says, figures=figures)
    if not wrong:
        says = f"{what} has {worst:.3f} times the claimed variance or more, over {size} values"
        return Finding(test=test, verdict="holds", says=says, figures=figures)
    # Too much noise is no loss of privacy, and yet no accident: what is there is not what was claimed.
    verdict: Verdict = "violation" if any(ratios[number] < 1 for number in wrong) else "warning"
    found = ", ".join(f"{ratios[number]:.3f}" for number in wrong[:3])
    return Finding(test=test, verdict=verdict, says=f"{what} has {found} times the claimed variance", figures=figures)


def _values(seen: Observation) -> int:
    return sum(len(given_D) for rounds in seen.given.values() for given_D in rounds.values())


def independence(seen: Observation) -> Finding:
    """Returns whether no partner's noise can be told from another's, or from its own of another round."""
    series = {
        f"partner {number} in round {turn}": _normal(given)
        for number, rounds in seen.given.items()
        for turn, given in rounds.items()
    }
    for histogram in seen.histograms:
        place = f"partner {histogram.partner} in release {histogram.task.number}"
        series[place] = _normal(histogram.given_D)
    most, between = 0.0, ("", "")
    pairs = [(one, other) for one, other in combinations(series, 2) if len(series[one]) == len(series[other])]
    for one, other in pairs:
        found = abs(float(series[one] @ series[other])) / math.sqrt(len(series[one]))
        if found > most:
            most, between = found, (one, other)
    bound = float(norm.isf(_CHANCE / 2 / max(len(pairs), 1)))
    figures = {"largest_z": most, "bound": bound, "pairs": len(pairs), "between": between}
    if most <= bound:
        says = f"no two of {len(series)} noise vectors are correlated (largest z {most:.1f}, bound {bound:.1f})"
        return Finding(test="independent noise", verdict="holds", says=says, figures=figures)
    says = f"the noise of {between[0]} tells that of {between[1]}: it can be removed"
    return Finding(test="independent noise", verdict="violation", says=says, figures=figures)


def _normal(given_D: Array) -> NDArray[np.float64]:
    values_D = given_D.astype(np.float64)
    spread = float(values_D.std())
    found_D: NDArray[np.float64] = (values_D - values_D.mean()) / (spread or 1.0)
    return found_D


def retries(seen: Observation) -> Finding:
    """Returns whether every partner that was asked the same twice gave the same."""
    differ = sum(not same for same in seen.repeated)
    figures = {"asked": len(seen.repeated), "differ": differ}
    if not seen.repeated:
        return Finding(test="retries", verdict="no verdict", says="nobody was asked twice", figures=figures)
    if differ:
        says = f"{differ} of {len(seen.repeated)} retries drew fresh noise: two views of one gradient average it away"
        return Finding(test="retries", verdict="violation", says=says, figures=figures)
    says = f"{len(seen.repeated)} contributions that were asked for twice were the same bytes both times"
    return Finding(test="retries", verdict="holds", says=says, figures=figures)


def masks(seen: Observation, config: Config) -> Finding:
    """Returns whether what left the partners is uniform over the ring, as masked words are."""
    test = "masked uploads"
    if config.aggregation.method == "plain":
        says = 'aggregation.method = "plain": the server is handed every update; the claim does not rest on masks'
        return Finding(test=test, adversary="server", verdict="no verdict", says=says)
    counts = np.zeros(_BINS)
    for piece in seen.uploads:
        counts += np.bincount(np.frombuffer(piece, "<u4") >> np.uint32(24), minlength=_BINS)
    if not counts.sum():
        return Finding(test=test, adversary="server", verdict="no verdict", says="nothing was uploaded")
    chance = float(chisquare(counts).pvalue)
    figures = {"words": int(counts.sum()), "chance": chance}
    if chance < _CHANCE:
        says = "what leaves a partner is not uniform: the server sees more than the sum"
        return Finding(test=test, adversary="server", verdict="violation", says=says, figures=figures)
    says = f"{int(counts.sum())} uploaded words are uniform over the ring, as far as their highest bits can say"
    return Finding(test=test, adversary="server", verdict="holds", says=says, figures=figures)


def deviation_of_a_partner(config: Config, declared: int) -> float:
    """Returns what one partner's contribution should spread by when nobody is sampled.

    Args:
        config: effective, as `zero_config` makes it.
        declared: users that the partner declares.
    """
    privacy = config.privacy
    noise: float = privacy.noise_multiplier or 0.0
    if privacy.mode == "distributed":
        return noise * 2.0**privacy.grid_bits / math.sqrt(noise_shares(config))
    return noise * privacy.clip / (privacy.sampling_rate * declared * privacy.units_per_user)


def deviation_of_a_mean(config: Config, declared: Mapping[int, int], largest: int) -> float:
    """Returns what the mean of one round should spread by when nobody is sampled.

    Args:
        config: effective, as `zero_config` makes it.
        declared: partner number -> users that it declares, of those in the round.
        largest: users that the largest partner of all declares.
    """
    privacy = config.privacy
    if privacy.mode == "distributed":
        units = privacy.sampling_rate * sum(declared.values()) * privacy.units_per_user
        part = deviation_of_a_partner(config, 1) * privacy.clip / 2**privacy.grid_bits
        return float(part * math.sqrt(len(declared)) / units)
    equal = config.aggregation.weights == "equal"
    weight = {number: 1.0 if equal else users / largest for number, users in declared.items()}
    own = [weight[number] * deviation_of_a_partner(config, users) for number, users in declared.items()]
    return math.sqrt(math.fsum(one**2 for one in own)) / sum(weight.values())
