"""The run that a consortium asks for, made right for its partners, and the policy that it puts before them."""

from collections import Counter
from pathlib import Path
from typing import Any

from common.config import MACHINES_OWN, Config, SimulationConfig, load_config, to_table
from common.errors import ConfigError
from common.noise_shares import least_in_a_sum
from common.schedule import with_calibrated_noise
from common.secagg.parameters import LEAST_PARTICIPANTS
from common.secagg.roster import Member, Roster
from server.cohort import draw_cohort
from server.provision.consortium import Consortium


def planned_run(consortium: Consortium) -> Config:
    """Returns the run's configuration with `data.partners` as they are and the noise calibrated to its bounds.

    Raises:
        ConfigError: for a configuration that cannot be read or contradicts itself, one that is for a simulation alone,
            a delta that is too large for a partner, or bounds that no noise keeps.
    """
    config = load_config(Path(consortium.run), [f"data.partners={len(consortium.partners)}"])
    problems = []
    if config.privacy.fixed_seed is not None:
        problems.append(
            f"{consortium.run}: privacy.fixed_seed = {config.privacy.fixed_seed}: whoever knows it can remove the"
            " noise; take it out"
        )
    if config.simulation != SimulationConfig():
        problems.append(f"{consortium.run}: [simulation]: real partners play no faults; take the table out")
    if config.data.measure_click_rate:
        problems.append(
            f"{consortium.run}: data.measure_click_rate = true: a deployment measures nothing; set it to false, and"
            " model.prior_click_rate to the rate"
        )
    evaluation = config.evaluation
    if evaluation.by_partners and evaluation.from_time is None and evaluation.user_share is None:
        problems.append(
            f'{consortium.run}: evaluation.at = "partners": set evaluation.from_time (Unix seconds) or'
            " evaluation.user_share, or both: what every partner holds out"
        )
    if config.privacy.mode != "none":
        problems += [
            f"{consortium.run}: privacy.delta = {config.privacy.delta:g} and {partner.declared_users} users of"
            f" {partner.name}: a delta of 1 / users allows one of them to be shown; lower it well below that"
            for partner in consortium.partners
            if config.privacy.delta * partner.declared_users >= 1
        ]
    if problems:
        raise ConfigError("\n".join(problems))
    return _with_noise(config, consortium.names)


def _with_noise(config: Config, names: tuple[str, ...]) -> Config:
    return with_calibrated_noise(config, rounds_of_the_busiest(config, names) * config.round.local_steps)


def rounds_of_the_busiest(config: Config, names: tuple[str, ...]) -> int:
    """Returns in how many rounds the busiest partner takes part: cohorts are public, drawn ahead by name."""
    rounds = config.round
    drawn = Counter[str]()
    for number in range(1, rounds.num_rounds + 1):
        drawn.update(draw_cohort(names, rounds.partners_per_round, rounds.seed, number))
    return max(drawn.values())


def roster_of(consortium: Consortium, config: Config, identities: dict[str, str]) -> Roster:
    """Returns the roster: a partner's weight is its declared users over the largest, or 1 where weights are equal."""
    largest = max(partner.declared_users for partner in consortium.partners)
    equal = config.aggregation.weights == "equal"
    members = [
        Member(partner.name, identities[partner.name], 1.0 if equal else partner.declared_users / largest)
        for partner in consortium.partners
    ]
    return Roster(tuple(members))


def policy_tables(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the tables of a partner's own policy, as the run asks for them: a proposal that it may tighten."""
    least = least_in_a_sum(config) if config.privacy.mode == "distributed" else LEAST_PARTICIPANTS
    model = {key: value for key, value in to_table(config.model).items() if key not in MACHINES_OWN}
    return {
        "model": model,
        "privacy": to_table(config.privacy),
        "evaluation": to_table(config.evaluation),
        "aggregation": {
            "method": config.aggregation.method,
            "colluders": config.aggregation.colluders,
            "least_participants": least,
            "update_bound": config.aggregation.update_bound,
        },
    }
