"""What a run has spent of its partners' privacy: derived from their ledgers, never from what the server says."""

from collections.abc import Sequence
from typing import Any

from client.partner import load_partner
from common.config import Config
from common.errors import LedgerError
from common.noise_shares import noise_shares
from common.privacy.accounting import composed_epsilon, epsilon, merge
from common.privacy.events import DpEvent
from common.privacy.labels import label_epsilon
from common.privacy.ledger import Ledger
from common.privacy.mixture import by_rows
from common.privacy.plan import wrap_probability
from common.privacy.statement import privacy_statement
from common.runfolder import RunFolder, partner_name
from common.schedule import evaluated_in, first_round, histograms_cost, number_of_release, with_calibrated_noise
from common.secagg.parameters import RING
from simulations.sizes import busiest

ASSUMPTION = (
    "No person is a user of two partners: then every person is protected by one partner's epsilon. A person who is a"
    " user of several partners is protected by the sum of theirs."
)
LABEL_ASSUMPTION = (
    "No row is in the logs of two partners: then every click label is protected by one partner's epsilon. A label that"
    " is in several is protected by the sum of theirs."
)
PLAIN_NOTE = "Aggregation is plain: the server sees each partner's update for the moment in which it adds it."
NOISED_NOTE = (
    " In local mode the update is already noised by its partner, so the epsilon holds against the server as well."
)
EXACT_NOTE = " Updates carry no noise: the server sees each exact update."
LABEL_NOTE = (
    " An update is made of flipped labels, so the epsilon of a label holds against the server as well; of everything"
    " else in a row the server may learn what an exact update tells."
)
_PLAIN_NOTES = {"none": EXACT_NOTE, "label": LABEL_NOTE, "local": NOISED_NOTE, "distributed": NOISED_NOTE}


def aggregation_note(config: Config) -> str:
    """Returns, in words, what the server learns of single updates."""
    if config.aggregation.method == "plain":
        return PLAIN_NOTE + _PLAIN_NOTES[config.privacy.mode]
    colluders = config.aggregation.colluders
    helpers = f", and up to {colluders} of the partners help it" if colluders else ""
    summed = "of each group of partners" if config.aggregation.groups > 1 else "of the partners"
    exact = "" if config.privacy.noised else " These sums are exact: sums over different partners may be compared."
    return (
        f"Aggregation is secure: the server learns the sum {summed} that took part in a round and no single update,"
        f" also if it lies{helpers}.{exact}"
    )


def with_noise(config: Config) -> Config:
    """Returns the configuration with the least noise that keeps its bounds over the busiest partner's steps.

    These are `epsilon`, and `epsilon_partner` and `epsilon_broken` where they are set. Noise that a configuration names
    stays as it is.
    """
    return with_calibrated_noise(config, busiest(config)[-1] * config.round.local_steps)


def planned_epsilon(config: Config, rounds: int) -> float | None:
    """Returns the epsilon of the busiest partner after so many rounds; None without privacy."""
    privacy, taken = config.privacy, busiest(config)[rounds]
    if privacy.mode == "label":
        return label_epsilon((privacy.flip_probability,), privacy.delta) if taken else 0.0
    if privacy.mode == "none" or privacy.noise_multiplier is None:
        return None
    steps = (privacy.sampling_rate, privacy.noise_multiplier, taken * config.round.local_steps)
    return composed_epsilon(merge([steps, *histograms_cost(config, rounds)]), privacy.delta)


def read_ledgers(config: Config, folder: RunFolder) -> dict[str, list[DpEvent]]:
    """Returns partner -> the events in its ledger, which count as spent."""
    names = [partner_name(number) for number in range(config.data.partners)]
    return {name: list(Ledger(folder.ledgers / f"{name}.jsonl", name).events()) for name in names}


def more_users(config: Config, num_parameters: int, users_per_partner: Sequence[int]) -> str:
    """Returns, in words, how large the noise of one step is beside the data, and what more users would change."""
    privacy, users = config.privacy, sorted(users_per_partner)[len(users_per_partner) // 2]
    units = users * privacy.units_per_user
    noise = (privacy.noise_multiplier or 0.0) * num_parameters**0.5 / (privacy.sampling_rate * units)
    cohort = config.round.partners_per_round or config.data.partners
    return (
        f"At the median partner ({users} users) the noise of one step has {noise:.2g} times the length of the largest"
        f" mean gradient that its users could give; averaged over {cohort} partners, {noise / cohort**0.5:.2g} times."
        f" Noise does not grow with users: with ten times as many at each partner and the same epsilon these would be"
        f" {noise / 10:.2g} and {noise / 10 / cohort**0.5:.2g} times."
    )


def privacy_facts(config: Config, folder: RunFolder, contributions: int) -> dict[str, Any]:
    """Returns the `privacy` part of metrics.json: the largest epsilon of any partner, said in full.

    Args:
        config: of the run.
        folder: where the ledgers are.
        contributions: updates that the server took in all rounds: there cannot be fewer reservations.

    Raises:
        LedgerError: when the ledgers hold fewer: they were removed or replaced.
    """
    spent = read_ledgers(config, folder)
    recorded = sum(len(events) for events in spent.values())
    if recorded < contributions:
        raise LedgerError(
            f"{folder.ledgers}: the ledgers hold {recorded} releases and the server took {contributions} updates:"
            " ledgers were removed or replaced, and no epsilon can be stated; restore them"
        )
    privacy = config.privacy
    if privacy.mode == "none":
        return {
            "mode": "none",
            "epsilon": None,
            "sentence": "No differential privacy: the model and every update may reveal single users.",
            "aggregation": config.aggregation.method,
            "aggregation_note": aggregation_note(config),
        }
    worst = max(spent.values(), key=lambda events: epsilon(events, privacy.delta))
    statement = privacy_statement(worst, privacy.delta)
    return {
        "mode": privacy.mode,
        "unit": statement.unit,
        "user_epsilon": statement.user_epsilon,
        "by_rows_of_a_user": by_rows(worst, privacy.delta) if statement.unit == "impression" else {},
        "epsilon": statement.epsilon,
        "delta": statement.delta,
        "adjacency": statement.adjacency,
        "accountant": statement.accountant,
        "second_accountant": statement.second_accountant,
        "second_epsilon": statement.second_epsilon,
        "protects_against": statement.protects_against,
        "views": statement.views,
        "noise_shares": noise_shares(config),
        "wrap_probability": _wraps(config, folder),
        "sentence": statement.sentence(),
        "fixed_seed": statement.fixed_seed,
        "noise_multiplier": privacy.noise_multiplier if privacy.noised else None,
        "sampling_rate": privacy.sampling_rate if privacy.noised else None,
        "clip": privacy.clip if privacy.noised else None,
        "impressions": statement.impressions,
        "flip_probability": None if privacy.noised else privacy.flip_probability,
        "not_protected": statement.not_protected,
        "statistics": _of_purpose(worst, "statistics", privacy.delta),
        "evaluation": _of_purpose(worst, "evaluation", privacy.delta),
        "steps": statement.steps,
        "budget": privacy.epsilon,
        "period_days": privacy.period_days,
        "assumption": LABEL_ASSUMPTION if privacy.mode == "label" else ASSUMPTION,
        "aggregation": config.aggregation.method,
        "aggregation_note": aggregation_note(config),
        "partners": _per_partner(spent, privacy.delta),
    }


def _of_purpose(events: Sequence[DpEvent], purpose: str, delta: float) -> dict[str, Any] | None:
    """Returns what the histograms of one kind in a ledger cost by themselves; None where there are none."""
    released = [event for event in events if event.purpose == purpose]
    if not released:
        return None
    return {
        "releases": len(released),
        "epsilon": epsilon(released, delta),
        "noise_multiplier": released[-1].noise_multiplier,
        "clip": released[-1].clip,
    }


def _wraps(config: Config, folder: RunFolder) -> float | None:
    """Returns a bound on the chance that a coordinate of a round's sum wraps; None where no integers are summed."""
    privacy, partners = config.privacy, config.data.partners
    if privacy.mode != "distributed":
        return None
    cohort, grid = config.round.partners_per_round or partners, 2**privacy.grid_bits
    users = [load_partner(folder.partner(number) / "partner.toml").declared_users for number in range(partners)]
    largest = sum(sorted(users)[-cohort:]) * privacy.units_per_user
    deviation = (privacy.noise_multiplier or 0.0) * grid * (cohort / noise_shares(config)) ** 0.5
    return wrap_probability(RING // 2, grid, largest, privacy.sampling_rate, deviation)


def spent_by_round(config: Config, folder: RunFolder, rounds: Sequence[int], run_id: str) -> list[float | None]:
    """Returns, for each round of a run, the largest epsilon of any partner up to and with it, from the ledgers.

    What a ledger holds of other runs counts in each: all of it was released before, or may have been.
    """
    if config.privacy.mode == "none":
        return [None] * len(rounds)
    spent = read_ledgers(config, folder).values()
    return [
        max(
            epsilon([event for event in events if _released_by(config, event, run_id, last)], config.privacy.delta)
            for events in spent
        )
        for last in rounds
    ]


def _released_by(config: Config, event: DpEvent, run_id: str, last: int) -> bool:
    """Returns whether a release was made up to and with a round of a run; those of other runs may have been."""
    statistics = number_of_release(run_id, event.run_id)
    if statistics is not None:
        return first_round(config, statistics) <= last
    evaluated = evaluated_in(event.run_id)
    if evaluated and evaluated[0] == run_id:
        return evaluated[1] <= last
    return event.run_id != run_id or event.round <= last


def _per_partner(spent: dict[str, list[DpEvent]], delta: float) -> dict[str, dict[str, Any]]:
    return {name: _one_partner(events, delta) for name, events in spent.items()}


def _one_partner(events: Sequence[DpEvent], delta: float) -> dict[str, Any]:
    return {
        "epsilon": epsilon(events, delta),
        "steps": sum(event.steps for event in events),
        "rounds": len({(event.run_id, event.round) for event in events if event.purpose == "training"}),
    }
