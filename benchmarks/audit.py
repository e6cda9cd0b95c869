"""What share of its claimed epsilon the white-box audit proves of an honest run.

A whole run of the deployed apps over generated clicks with 1,000 canaries, as `hushclick audit` makes it; one per seed
of canaries, coins and, through the operating system, noise. Nothing is wrong with these runs: a share of 1 cannot be
reached, and one over 1 would be a violation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measuring import Options, spread, spread_text
from common.config import load_config
from common.privacy.views import VIEWS
from simulations.audit.examine import one_run_findings
from simulations.audit.subject import subject_of

CONFIG = Path(__file__).parent / "configs" / "audit.toml"
SEEDS = (1, 2)
CASES = ((2.0, 1.0), (8.0, 1.0))  # claimed epsilon, sampling rate


def measure(options: Options) -> dict[str, Any]:
    """Returns, per claimed epsilon, sampling rate and adversary, what was proved."""
    cases = CASES[:1] if options.quick else CASES
    seeds = SEEDS[:1] if options.quick else SEEDS
    smaller = ("data.generator.users=400", "audit.canaries=60") if options.quick else ()
    return {"cases": [_case(epsilon, rate, seeds, smaller) for epsilon, rate in cases]}


def _case(epsilon: float, rate: float, seeds: Sequence[int], smaller: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {view: [] for view in VIEWS}
    for seed in seeds:
        overrides = [f"privacy.epsilon={epsilon}", f"privacy.sampling_rate={rate}", f"audit.seed={seed}", *smaller]
        with subject_of(load_config(CONFIG, overrides), lambda _: None, lambda *_: None) as subject:
            users, noise = subject.users, subject.config.privacy.noise_multiplier
            for one in one_run_findings(subject, black_box=False):
                found[one.adversary].append(
                    {
                        "claimed": one.claimed_epsilon or 0.0,
                        "proved": one.lower_bound or 0.0,
                        "gaussian": one.figures["gaussian_lower_bound"],
                        "canaries": one.figures["canaries"],
                    }
                )
    lines = {
        view: {
            "claimed": runs[0]["claimed"],
            "proved": spread([run["proved"] for run in runs]),
            "gaussian": spread([run["gaussian"] for run in runs]),
            "share": spread([run["proved"] / run["claimed"] for run in runs]),
            "gaussian_share": spread([run["gaussian"] / run["claimed"] for run in runs]),
        }
        for view, runs in found.items()
    }
    return {
        "epsilon": epsilon,
        "sampling_rate": rate,
        "users": users,
        "canaries": found["server"][0]["canaries"],
        "noise_multiplier": noise,
        "seeds": len(seeds),
        "views": lines,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Returns the table to print: a line per case and adversary."""
    table = Table(title="What the white-box audit proves of an honest run, median (min to max) over seeds")
    columns = ("users", "canaries", "rate", "adversary", "claimed", "proved", "share", "as a Gaussian", "share")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 3 else "right")
    for case in result["cases"]:
        for view, line in case["views"].items():
            table.add_row(
                str(case["users"]),
                str(case["canaries"]),
                f"{case['sampling_rate']:g}",
                view,
                f"{line['claimed']:.2f}",
                *(spread_text(line[name]) for name in ("proved", "share", "gaussian", "gaussian_share")),
            )
    return [table]
