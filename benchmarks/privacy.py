"""Every figure of privacy that the documents quote, computed anew: accountants, adjacency, composition, adversaries.

Nothing is measured and nothing is random: two runs print the same. Unless a table says otherwise: 100,000 users, each
in a step with probability .01024, five epochs of 488 steps, noise multiplier 1, delta 1e-6, one user added or removed.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, RepeatAndSelectDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from rich.table import Table

from benchmarks.measuring import Options
from common.privacy.accountants import PRV_EPSILON_ERROR
from common.privacy.accounting import composed_epsilon
from common.privacy.calibrate import affordable_steps, calibrate_noise
from common.privacy.mixture import user_epsilon
from common.privacy.plan import wrap_probability
from common.privacy.quick import quick_noise
from common.privacy.skellam import ORDERS, largest_l1, relative_gap, skellam_rdp, subsampled_epsilon
from common.secagg.parameters import RING, shape

USERS, RATE, STEPS, EPOCH, NOISE, DELTA = 100_000, 0.01024, 488, 98, 1.0, 1e-6
PARAMETERS = 74_500  # of a LoRA of a small text encoder
_EPOCHS = ((0.6, 1), (0.6, 5), (0.8, 5), (1.0, 1), (1.0, 5))
_PARTNERS = (2, 3, 5, 8, 16)
_IMPRESSIONS = (1, 2, 10, 20, 50)
_GRID_BITS = (8, 12, 16, 18)
_RATES = (0.164, 0.041, 0.01024, 0.001)
_INTERVAL = 5e-4  # of privacy loss, where a library is asked directly


def measure(options: Options) -> dict[str, Any]:
    """Returns all tables as numbers; quick mode has the first lines of each."""
    few = slice(0, 2) if options.quick else slice(None)
    return {
        "setting": {"users": USERS, "sampling_rate": RATE, "steps": STEPS, "noise": NOISE, "delta": DELTA},
        "accountants": [accountants(noise, epochs) for noise, epochs in _EPOCHS[few]],
        "adjacency": adjacency(),
        "composition": composition(),
        "adversaries": [adversaries(partners) for partners in _PARTNERS[few]],
        "shares": [shares(10, 1)],
        "users": [user_of(impressions) for impressions in _IMPRESSIONS[few]],
        "skellam": [gap(bits) for bits in _GRID_BITS[few]],
        "rates": [noise_per_progress(rate) for rate in _RATES[few]],
    }


def accountants(noise: float, epochs: int) -> dict[str, float]:
    """Returns one line: what each accountant says of so many epochs."""
    steps = EPOCH if epochs == 1 else STEPS
    group = ((RATE, noise, steps),)
    rdp, prv, exact = (composed_epsilon(group, DELTA, name) for name in ("rdp", "prv", "pld"))
    return {
        "noise": noise,
        "epochs": epochs,
        "rdp": rdp,
        "prv": prv,
        "pld": exact,
        "gdp": _gdp(noise, steps),
        "apart": abs(prv - exact),
        "rdp_over": rdp / exact - 1,
    }


def _gdp(noise: float, steps: int) -> float:
    """Returns what Opacus' central-limit accountant says, which is too little: shown, and used for nothing."""
    from opacus.accountants import GaussianAccountant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says itself that it is an approximation
        accountant = GaussianAccountant()
        accountant.history = [(noise, RATE, steps)]
        return float(accountant.get_epsilon(DELTA))


def adjacency() -> dict[str, float]:
    """Returns the same mechanism for one user added or removed, and for one replaced by another."""
    pairs = {"add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace": NeighboringRelation.REPLACE_ONE}
    return {
        name: _library(
            lambda relation=relation: pld.from_gaussian_mechanism(  # type: ignore[misc]
                NOISE, sampling_prob=RATE, value_discretization_interval=_INTERVAL, neighboring_relation=relation
            )
        )
        for name, relation in pairs.items()
    }


def _library(step: Callable[[], Any]) -> float:
    return float(step().self_compose(STEPS).get_epsilon_for_delta(DELTA))


def composition() -> dict[str, float]:
    """Returns what several releases cost together: runs, tries, a batch that is cut, and the steps of a budget."""
    one = composed_epsilon(((RATE, NOISE, STEPS),), DELTA)
    run = SelfComposedDpEvent(PoissonSampledDpEvent(RATE, GaussianDpEvent(NOISE)), STEPS)
    return {
        "one_run": one,
        "three_runs": composed_epsilon(((RATE, NOISE, 3 * STEPS),), DELTA),
        "three_times": 3 * one,
        "one_run_rdp": composed_epsilon(((RATE, NOISE, STEPS),), DELTA, "rdp"),
        "best_of_ten_rdp": _rdp(RepeatAndSelectDpEvent(run, 10, 1)),
        "batch_cut_at_1200": _library(
            lambda: pld.from_truncated_subsampled_gaussian_mechanism(
                USERS, RATE, 1200, NOISE, value_discretization_interval=_INTERVAL
            )
        ),
        "steps_for_2_pld": affordable_steps(2.0, DELTA, RATE, NOISE),
        "steps_for_2_rdp": _most_steps(lambda steps: composed_epsilon(((RATE, NOISE, steps),), DELTA, "rdp") <= 2.0),
    }


def _rdp(event: Any) -> float:
    accountant = RdpAccountant()
    accountant.compose(event)
    return float(accountant.get_epsilon(DELTA))


def _most_steps(fits: Callable[[int], bool]) -> int:
    """Returns the largest count that fits, by bisection; one fits."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def adversaries(partners: int) -> dict[str, float]:
    """Returns the epsilon of distributed mode by who learns; each of n partners adds sigma / sqrt(n)."""
    left = {"server": 1.0, "partner": (partners - 1) / partners, "broken": 1 / partners}
    return {
        "partners": partners,
        **{who: composed_epsilon(((RATE, NOISE * share**0.5, STEPS),), DELTA) for who, share in left.items()},
    }


def shares(partners: int, colluders: int) -> dict[str, float]:
    """Returns how much noise a sum has when all come, parts being sized for the fewest that can be left."""
    least = shape(partners, colluders).least_survivors
    return {
        "partners": partners,
        "colluders": colluders,
        "least_in_a_sum": least,
        "shares": least - colluders,
        "noise_if_all_come": math.sqrt(partners / (least - colluders)),
    }


def user_of(impressions: int) -> dict[str, float]:
    """Returns the epsilon of a user with so many impressions, where each impression is clipped and sampled alone."""
    return {"impressions": impressions, "epsilon": user_epsilon(((RATE, NOISE, STEPS),), impressions, DELTA)}


def gap(grid_bits: int) -> dict[str, float]:
    """Returns how far Skellam noise on a grid is from Gaussian noise, and what the grid asks for."""
    grid = 2**grid_bits
    rdp_A = np.array([skellam_rdp(order, (NOISE * grid) ** 2, grid, largest_l1(grid, PARAMETERS)) for order in ORDERS])
    batch = round(USERS * RATE)
    return {
        "grid_bits": grid_bits,
        "gap": max(relative_gap(order, NOISE, grid, PARAMETERS) for order in ORDERS),
        "gaussian_rdp": subsampled_epsilon(_gaussian_rdp(), RATE, STEPS, DELTA, gaussian=True),
        "skellam_as_gaussian": subsampled_epsilon(rdp_A, RATE, STEPS, DELTA, gaussian=True),
        "skellam_any_mechanism": subsampled_epsilon(rdp_A, RATE, STEPS, DELTA),
        "clip_lost": math.sqrt(PARAMETERS) / (2 * grid),
        # Whole numbers of `batch` users of one sign, and noise of ten deviations, with a sign.
        "bits_of_a_sum": math.ceil(math.log2(grid * batch + 10 * NOISE * grid)) + 1,
        "wraps": wrap_probability(RING // 2, grid, USERS, RATE, NOISE * grid),
    }


def _gaussian_rdp() -> Any:
    return np.array([order / (2 * NOISE**2) for order in ORDERS])


def noise_per_progress(rate: float) -> dict[str, float]:
    """Returns what a rate buys at epsilon 2 in five epochs: noise over progress, relative to the mean gradient."""
    steps = round(5 / rate)
    noise = quick_noise(2.0, DELTA, rate, steps)
    return {
        "rate": rate,
        "steps": steps,
        "noise": noise,
        "per_progress": noise / (rate * math.sqrt(steps)),
        "confirmed": calibrate_noise(2.0, DELTA, rate, steps),
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns the tables to print."""
    return [
        _table(
            f"Accountants: PRV states an error of {PRV_EPSILON_ERROR:g} of its own; gdp understates",
            ("noise", "epochs", "rdp", "prv", "pld", "gdp"),
            result["accountants"],
        ),
        _table("Adjacency, by PLD", ("add_remove", "replace"), [result["adjacency"]]),
        _table("Composition", tuple(result["composition"]), [result["composition"]]),
        _table(
            "Distributed mode: who sees what (noise 1 in the sum of n partners)",
            ("partners", "server", "partner", "broken"),
            result["adversaries"],
        ),
        _table("Parts of the noise, sized for the fewest in a sum", tuple(result["shares"][0]), result["shares"]),
        _table(
            "Impressions as the unit: epsilon of a user with so many, by mixtures of Gaussians",
            ("impressions", "epsilon"),
            result["users"],
        ),
        _table(
            f"Skellam against Gaussian noise, {PARAMETERS} parameters (RDP; the last epsilon needs no Gaussian at all)",
            tuple(result["skellam"][0]),
            result["skellam"],
        ),
        _table(
            "Larger rates win: epsilon 2, five epochs; per_progress = noise / (rate sqrt(steps))",
            ("rate", "steps", "noise", "per_progress"),
            result["rates"],
        ),
    ]


def _table(title: str, columns: Sequence[str], lines: Sequence[Mapping[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for line in lines:
        table.add_row(*(_figure(line[column]) for column in columns))
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return "infinite"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    if value and (abs(value) < 5e-3 or abs(value) >= 1e6):
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
