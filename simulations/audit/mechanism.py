"""Tests of the mechanism itself, without statistics of attacks: how far a unit moves a step, who is sampled.

What is tried is what a worker calls, end to end: `train_privately` or `noised_step`, noise off, every unit sampled. So
a wrong unit, a missing clip, a division by the sampled size or a way of taking norms that is off all show, as does
anything else that lets one unit move what leaves by more than the clip.

Legend: N rows, D parameters, U users, M rows of a user, T steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from client import distributed, training
from client.distributed import SharedStep
from client.sensitivity import (
    Change,
    ClickSample,
    Neighbour,
    Sample,
    distributed_sum,
    hostile_models,
    hostile_neighbours,
    hostile_units,
    largest_change,
    local_sum,
)
from client.training import DpStep, Randomness
from common.config import PrivacyConfig
from common.errors import HushclickError
from common.features import UserRows
from common.messages import TrainingPlan
from common.model.click_model import ClickModel
from common.vector import read_vector
from simulations.audit.findings import Finding, Verdict
from simulations.audit.userrows import few_users, first_users, gather, rows_by_user, units_of

_USERS = 8  # beside the one that comes and goes
LEAST_CHANGE = 0.1  # of the clip: a search that finds less has tried nothing
_CHANCE = 1e-6  # of a false alarm, per question
_SAMPLER_UNITS = 20_000  # that the sampler draws from, at most, over all steps together 50 times as many


@dataclass(frozen=True)
class Log:
    """One step's whole input: weights, and everybody's rows."""

    model_D: NDArray[np.float32]
    rows: UserRows


def sensitivity(model: ClickModel, rows: UserRows, privacy: PrivacyConfig, tries: int, seed: int) -> list[Finding]:
    """Returns how far one unit moved the clipped sum, over every split into physical batches, and a whole step.

    Args:
        model: the run's.
        rows: of one partner.
        privacy: its own.
        tries: neighbours of each kind, drawn from all.
        seed: of that draw and of hostile values.
    """
    generator = np.random.default_rng(seed)
    few = few_users(rows, _USERS + 1, privacy.max_impressions_per_user, generator)
    chosen = units_of(few, privacy)
    own_D = read_vector(model)
    most = privacy.max_impressions_per_user if privacy.unit == "user" else 1
    shared = privacy.mode == "distributed"
    step = shared_step(privacy)
    unit = "user" if privacy.unit == "user" else "training row"
    summed: Callable[[ClickSample], NDArray[np.generic]]
    summed = distributed_sum(model, step) if shared else local_sum(model, privacy.clip)
    bound = float(step.grid) if shared else privacy.clip
    splits = _drawn(list(hostile_neighbours(few, chosen, own_D, most, generator)), tries, generator)
    found = largest_change(summed, splits, bound)
    whole = _drawn(list(_logs(few, own_D, most, privacy, generator)), tries, generator)
    moved = largest_change(lambda log: whole_step(model, log, privacy), whole, bound)
    return [
        of_change("sensitivity of the clipped sum", found, unit, over="every split into physical batches"),
        of_change("sensitivity of a whole step", moved, unit, over="sampler, model, loss and division included"),
    ]


def whole_step(model: ClickModel, log: Log, privacy: PrivacyConfig) -> NDArray[np.float64]:
    """Returns the sum that one step without noise releases when everybody is sampled, in units of clip or grid."""
    randomness = Randomness(0, "audit", 1)
    if privacy.mode == "distributed":
        shared = shared_step(privacy)
        given = distributed.noised_step(model, log.model_D, lambda: log.rows, shared, randomness, cannot_be_tried)
        return given.sum_D.astype(np.float64)
    # Divided by the clip, so that what one unit may do is 1 beside weights of at most 100; a little under that, so that
    # the sum of all is not cut where weights are held to their bound.
    step = DpStep(1.0, 0.0, privacy.clip, privacy.max_impressions_per_user, privacy.clip, privacy.unit)
    start_D = (log.model_D * np.float32(1 - 2 * (_USERS + 1) / training.MAX_WEIGHT)).astype(np.float32)
    update_D = training.train_privately(model, start_D, log.rows, TrainingPlan(1, "sgd", 1.0, 0.0), step, randomness)
    return -update_D.astype(np.float64) * privacy.clip


def cannot_be_tried() -> None:
    """Ends the audit where a step fails on a hostile user: the zeros that a partner sends then would pass any test.

    Raises:
        HushclickError: always.
    """
    raise HushclickError("audit: a step failed on a made-up user, so that nothing can be said of it; see the log above")


def shared_step(privacy: PrivacyConfig) -> SharedStep:
    """Returns the distributed step of a policy without its noise, everybody being sampled."""
    return SharedStep(
        sampling_rate=1.0,
        noise_multiplier=0.0,
        shares=2,
        clip=privacy.clip,
        grid=2**privacy.grid_bits,
        max_rows=privacy.max_impressions_per_user,
        declared_units=1,
        unit=privacy.unit,
    )


def sampling(rows: UserRows, privacy: PrivacyConfig, seed: int) -> Finding:
    """Returns whether units are drawn as the accountant assumes: each on its own, at one rate, anew in each step.

    Three figures of many steps: how many were drawn, how the size of a sample varies, how often a unit is in two steps
    that follow each other. A shuffled log has the first right and neither of the others.
    """
    few = first_users(rows, max(1, _SAMPLER_UNITS // 50))
    units = sum(len(row_M) > 0 for row_M in units_of(few, privacy))
    steps = max(50, min(2000, 50 * _SAMPLER_UNITS // max(units, 1)))
    drawn = _drawn_units(few, privacy, steps, Randomness(seed, "audit", 1).sampling)
    rate = privacy.sampling_rate
    size_T, again = drawn.sum(1), int((drawn[1:] & drawn[:-1]).sum())
    if rate >= 1:
        holds = bool((size_T == units).all())
        return Finding(
            test="sampling",
            verdict="holds" if holds else "violation",
            says="every unit is in every step, as sampling rate 1 says"
            if holds
            else "not every unit is in every step, against sampling rate 1",
            figures={"units": units, "steps": steps},
        )
    total = float(size_T.sum())
    z_total = (total - steps * units * rate) / np.sqrt(steps * units * rate * (1 - rate))
    spread = float(((size_T - units * rate) ** 2).sum() / (units * rate * (1 - rate)))
    p_spread = 2 * min(float(chi2.cdf(spread, steps)), float(chi2.sf(spread, steps)))
    # Each unit's runs of two: of variance (T - 1) r^2 (1 - r^2) + 2 (T - 2) (r^3 - r^4).
    variance = units * ((steps - 1) * rate**2 * (1 - rate**2) + 2 * (steps - 2) * (rate**3 - rate**4))
    z_again = (again - units * (steps - 1) * rate**2) / np.sqrt(variance)
    chances = {
        "the rate": 2 * float(norm.sf(abs(z_total))),
        "the size of a sample": p_spread,
        "units in two steps that follow each other": 2 * float(norm.sf(abs(z_again))),
    }
    wrong = [name for name, chance in chances.items() if chance < _CHANCE]
    figures = {
        "units": units,
        "steps": steps,
        "sampling_rate": rate,
        "rate_seen": total / steps / units,
        "variance_of_size_over_poisson": spread / steps,
        "again_over_poisson": again / (units * (steps - 1) * rate**2),
        "chances": chances,
    }
    says = f"{units} units over {steps} steps are drawn each on its own at rate {rate:g}"
    if wrong:
        says = f"units are not drawn each on its own at rate {rate:g}: {', '.join(wrong)} is off"
    return Finding(test="sampling", verdict="violation" if wrong else "holds", says=says, figures=figures)


def _logs(
    rows: UserRows,
    own_D: NDArray[np.float32],
    most: int,
    privacy: PrivacyConfig,
    generator: np.random.Generator,
) -> Iterator[Neighbour[Log]]:
    """Yields whole logs that differ in one hostile user (unit user), or in a user of one hostile row."""
    own = rows_by_user(rows)
    unit_M, others = own[-1][:most], own[:-1]
    units = hostile_units(rows, unit_M, others, most, generator)
    for weights, model_D in hostile_models(own_D, generator).items():
        for whom, beside in (("all others", others), ("nobody", [])):
            without = Log(model_D, gather(rows, beside))
            for what, (changed, row_M) in units.items():
                for first in (True, False):
                    joined = [row_M, *beside] if first else [*beside, row_M]
                    users = [each for each in joined if len(each)]  # who has no row is in no log
                    name = f"{what}; {weights}; beside {whom}, {'first' if first else 'last'}"
                    yield Neighbour(name, without, Log(model_D, gather(changed, users)))


def _drawn(neighbours: list[Neighbour[Sample]], count: int, generator: np.random.Generator) -> list[Neighbour[Sample]]:
    """Returns so many of them, in their order, which keeps those of one sample together."""
    kept = np.sort(generator.permutation(len(neighbours))[:count])
    return [neighbours[place] for place in kept]


def _drawn_units(
    rows: UserRows, privacy: PrivacyConfig, steps: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Returns which units were in which step, [T, units], by the sampler that the mode's step calls."""
    sampler = vars(distributed if privacy.mode == "distributed" else training)["sample_units"]
    step = DpStep(privacy.sampling_rate, 0.0, privacy.clip, privacy.max_impressions_per_user, 1.0, privacy.unit)
    # A unit is known by its rows: a user's row number finds the user, and a row is a unit of its own.
    user_N = np.repeat(np.arange(rows.num_users), np.diff(rows.offset_U1))
    unit_N = user_N if step.unit == "user" else np.arange(len(user_N))
    known = sorted({int(unit_N[row_M[0]]) for row_M in units_of(rows, privacy) if len(row_M)})
    kept = {unit: place for place, unit in enumerate(known)}
    drawn = np.zeros((steps, len(kept)), bool)
    for number in range(steps):
        for row_M in sampler(rows, step, generator):
            if len(row_M):
                drawn[number, kept[int(unit_N[row_M[0]])]] = True
    return drawn


def of_change(test: str, found: Change, unit: str, of: str = "it", over: str = "") -> Finding:
    """Returns the finding of the largest change that a search came to.

    Args:
        test: its name.
        found: the change, over the bound.
        unit: what comes and goes.
        of: what it moves.
        over: what the search went over beside neighbours.
    """
    verdict: Verdict = "holds" if found.holds else "violation"
    if found.ratio < LEAST_CHANGE:
        says, verdict = f"no {unit} that was tried moved it", "no verdict"
    elif found.holds:
        says = f"one {unit} moved {of} by {found.ratio:.4f} times the clip at most, over {found.tried} neighbours"
        says += f" ({over})" if over else ""
    else:
        says = f"one {unit} moves {of} by {found.ratio:.3g} times the clip: {found.name}"
    return Finding(
        test=test,
        verdict=verdict,
        says=says,
        figures={"ratio": found.ratio, "neighbour": found.name, "tried": found.tried},
    )
