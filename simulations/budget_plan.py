"""`hushclick budget plan CONFIG`: from data sizes, epsilon, rounds and local steps to noise, sampling rate and clip.

Sizes are declared ones: given (`--users`), read in a run folder, or a simulation's own. A real log is never read.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.config import Config, load_config
from common.errors import ConfigError
from common.noise_shares import noise_shares
from common.privacy.accountants import Composition, prv_error
from common.privacy.accounting import AGREEMENT, composed_epsilon, merge, rounded_up
from common.privacy.mixture import user_epsilon
from common.privacy.plan import (
    NEAR_THE_BEST,
    Choice,
    Setting,
    adam_reach,
    confirmed,
    plan_choices,
    recommended,
    sgd_clamp_probability,
    wrap_probability,
)
from common.privacy.views import VIEWS, bounds_of, bounds_with_noise, noise_left
from common.runfolder import RunFolder, jsonable, write_json
from common.schedule import histograms_cost, with_histogram_noise
from common.secagg.parameters import RING
from simulations.budget_plot import write_budget_plot
from simulations.sizes import busiest, declared_users, trained_parameters

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
_ROUND_FACTORS = (0.5, 1.0, 2.0)
_WIDTH = 128
_MARKS = {"asked": "asked", "best": "recommended"}


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the table over choices, what was asked and what is recommended; writes plot and JSON under `--out`."""
    config, folder = _read(arguments)
    if arguments.users:
        users, source = [arguments.users] * config.data.partners, "given"
    else:
        users, source = declared_users(config, folder)
    setting = make_setting(config, users, arguments.parameters or trained_parameters(config))
    choices, asked, best = _plan(config, setting)
    result: dict[str, Any] = jsonable(
        {
            "setting": asdict(setting) | _facts(config, users, source),
            "choices": [asdict(choice) for choice in choices],
            "asked": _in_full(config, asked, arguments.second_opinion),
            "recommended": _in_full(config, best, arguments.second_opinion),
            "configured": _configured(config, asked),
            "accountant": "PLD",
        }
    )
    if arguments.out:
        write_json(arguments.out / "budget.json", result)
        write_budget_plot(setting, choices, (asked, best), arguments.out / "budget.html")
    return result


def _read(arguments: argparse.Namespace) -> tuple[Config, Path]:
    """Returns the configuration, of a TOML or of a run folder, and the folder where it lies."""
    path: Path = arguments.config
    path = RunFolder(path).config if path.is_dir() and RunFolder(path).config.is_file() else path
    config = load_config(path, arguments.set)
    if config.privacy.mode == "none":
        raise ConfigError('privacy.mode = "none": there is no budget to plan; --set privacy.mode=local, or distributed')
    if config.privacy.mode == "label":
        raise ConfigError(
            'privacy.mode = "label": there is no budget to plan: labels are flipped once, and every round after is'
            " free; choose privacy.label_epsilon, or --set privacy.mode=local, or distributed"
        )
    return config, path.parent


def make_setting(config: Config, users: Sequence[int], parameters: int) -> Setting:
    """Returns what all choices share: whose users are behind one noised sum, and how many sums are averaged."""
    privacy, cohort = config.privacy, config.round.partners_per_round or config.data.partners
    common = {"epsilon": privacy.epsilon, "delta": privacy.delta, "parameters": parameters}
    if config.model.item_rates == "private":
        noise = with_histogram_noise(config).privacy.statistics_noise_multiplier
        common |= {"statistics_noise": noise or 0.0, "statistics_every": privacy.statistics_every}
    if config.evaluation.by_partners:
        noise = with_histogram_noise(config).privacy.evaluation_noise_multiplier
        common |= {"evaluation_noise": noise or 0.0, "evaluations": config.evaluation.releases}
    if privacy.mode == "distributed":
        # Shares are sized for the fewest that can be left, so a full cohort's sum has more noise than is accounted.
        shares = noise_shares(config)
        units = sum(users) * privacy.units_per_user * cohort / len(users)
        others = tuple(bounds_with_noise(privacy, shares)[1:])  # the first is epsilon itself
        return Setting(units=units, extra_noise=math.sqrt(cohort / shares), others=others, **common)  # type: ignore[arg-type]
    local_steps = config.round.local_steps
    units = statistics.median(users) * privacy.units_per_user
    return Setting(units=units, sums=cohort, local_steps=local_steps, **common)  # type: ignore[arg-type]


def _plan(config: Config, setting: Setting) -> tuple[list[Choice], Choice, Choice]:
    """Returns all choices, and of them the asked and the recommended one, confirmed by the accountant proper."""
    rounds, asked_rate = config.round.num_rounds, config.privacy.sampling_rate
    # A step of less than one expected user is mostly empty: not worth a line, unless it was asked for.
    rates = sorted({rate for rate in RATES if rate * setting.units >= 1} | {asked_rate})
    counts = sorted({max(1, round(rounds * factor)) for factor in _ROUND_FACTORS})
    courses = {count: _course(config, count) for count in counts}
    choices = plan_choices(setting, rates, courses)
    best = choices.index(recommended(choices, rounds))
    asked = next(place for place, one in enumerate(choices) if (one.sampling_rate, one.rounds) == (asked_rate, rounds))
    for place in {asked, best}:
        choices[place] = confirmed(setting, choices[place], courses[rounds])
    choices = [replace(choice, overflow=overflow(config, setting, choice)) for choice in choices]
    return choices, choices[asked], choices[best]


def _course(config: Config, rounds: int) -> list[int]:
    """Returns the steps of the partner that takes part most often after 0, 1, 2 ... rounds."""
    longer = replace(config, round=replace(config.round, num_rounds=rounds))
    return [taken * config.round.local_steps for taken in busiest(longer)]


def overflow(config: Config, setting: Setting, choice: Choice) -> float | None:
    """Returns a bound on the chance that a coordinate leaves the range of the secure sum; None = none is known."""
    privacy, rounds = config.privacy, config.round
    if config.aggregation.method == "plain":
        return None
    if privacy.mode == "distributed":
        grid = 2**privacy.grid_bits
        deviation = choice.noise_multiplier * setting.extra_noise * grid
        return wrap_probability(RING // 2, grid, round(setting.units), choice.sampling_rate, deviation)
    if rounds.client_optimiser == "adam":
        fits = rounds.learning_rate * adam_reach(rounds.local_steps) <= config.aggregation.update_bound
        return 0.0 if fits else None
    if rounds.weight_decay:
        return None
    deviation = choice.noise_multiplier * privacy.clip / (choice.sampling_rate * setting.units)
    return sgd_clamp_probability(
        config.aggregation.update_bound, rounds.learning_rate, rounds.local_steps, privacy.clip, deviation
    )


def _facts(config: Config, users: Sequence[int], source: str) -> dict[str, Any]:
    return {
        "mode": config.privacy.mode,
        "unit": config.privacy.unit,
        "rows_of_a_user": config.privacy.units_per_user,
        "clip": config.privacy.clip,
        "partners": config.data.partners,
        "partners_per_round": config.round.partners_per_round or config.data.partners,
        "users": {"least": min(users), "median": statistics.median(users), "most": max(users), "source": source},
    }


def _in_full(config: Config, choice: Choice, second_opinion: bool) -> dict[str, Any]:
    """Returns one choice with what each adversary learns, and the second accountant's epsilon where it is wanted."""
    privacy = config.privacy
    found: dict[str, Any] = asdict(choice) | {"clip": privacy.clip, "views": _views(config, choice)}
    composition = merge([(choice.sampling_rate, choice.noise_multiplier, choice.steps), *_histograms(config, choice)])
    if privacy.unit == "impression":
        found["user_epsilon"] = user_epsilon(composition, privacy.max_impressions_per_user, privacy.delta)
    if second_opinion:
        second = composed_epsilon(composition, privacy.delta, "prv")
        error = prv_error(composition, privacy.delta)
        agree = abs(second - choice.epsilons[-1]) <= AGREEMENT + error
        found["second_opinion"] = {"accountant": "PRV", "epsilon": second, "own_error": error, "agree": agree}
    return found


def _views(config: Config, choice: Choice) -> dict[str, float]:
    """Returns the epsilon of the whole run by who learns."""
    shares = noise_shares(config)
    groups = [(choice.sampling_rate, choice.noise_multiplier, choice.steps), *_histograms(config, choice)]
    return {
        view: composed_epsilon(
            merge((rate, noise_left(noise, shares, view), steps) for rate, noise, steps in groups), config.privacy.delta
        )
        for view in VIEWS
    }


def _histograms(config: Config, choice: Choice) -> Composition:
    """Returns what the histograms of a run of so many rounds release: its evaluations spread over all of these."""
    longer = replace(config, round=replace(config.round, num_rounds=choice.rounds))
    return histograms_cost(with_histogram_noise(longer), choice.rounds)


def _configured(config: Config, asked: Choice) -> dict[str, Any] | None:
    """Returns what the noise costs that the configuration names; None where it leaves that to calibration."""
    noise = config.privacy.noise_multiplier
    if noise is None:
        return None
    views = _views(config, replace(asked, noise_multiplier=noise))
    over = [view for view, bound in bounds_of(config.privacy).items() if views[view] > bound * (1 + 1e-9)]
    return {"noise_multiplier": noise, "epsilon": views["server"], "views": views, "over": over}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the table, what is recommended and what the figures mean."""
    console = Console()
    console.width = max(console.width, _WIDTH)  # a table cut to a narrow terminal would lose figures
    setting = result["setting"]
    users, cohort = setting["users"], setting["partners_per_round"]
    _say(
        console,
        f"Budget of each partner: epsilon {setting['epsilon']:g} at delta {setting['delta']:g}, for one"
        f" {setting['unit']} added or removed (PLD), mode {setting['mode']}, clip {setting['clip']:g}.",
        f"{setting['partners']} partners, {cohort} a round, of {users['least']} to {users['most']} users, median"
        f" {users['median']:g} ({users['source']}); {setting['parameters']} trained parameters.",
    )
    console.print(_table(result))
    for line in _closing(result):
        _say(console, line)
    if arguments.out:
        _say(console, f"Plot: {arguments.out / 'budget.html'}")


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for column in ("rate", "rounds", "steps", "noise", "a step", "the run", "of best", "uses"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("1 round", "25 %", "50 %", "all", "overflow"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in result["choices"]:
        same = [mark for mark, name in _MARKS.items() if _is(one, result[name])]
        table.add_row(
            f"{one['sampling_rate']:g}",
            str(one["rounds"]),
            str(one["steps"]),
            f"{one['noise_multiplier']:.3f}",
            f"{one['step_noise']:.3g}",
            f"{one['run_noise']:.3g}",
            f"{100 * one['efficiency']:.0f} %",
            f"{one['uses']:.3g}",
            *(rounded_up(spent) for spent in one["epsilons"]),
            "?" if one["overflow"] is None else f"{one['overflow']:.0e}" if one["overflow"] else "0",
            ", ".join(same),
            style="bold" if same else None,
        )
    return table


def _is(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool((one["sampling_rate"], one["rounds"]) == (other["sampling_rate"], other["rounds"]))


def _closing(result: dict[str, Any]) -> list[str]:
    best, asked, configured = result["recommended"], result["asked"], result["configured"]
    whose = "the whole cohort's users" if result["setting"]["mode"] == "distributed" else "the median partner's users"
    lines = [
        f"noise: standard deviation over the clip. a step: length of a step's noise over the largest mean gradient that"
        f" {whose} could give. the run: the same over all steps and partners. of best: progress over noise, of what"
        " this epsilon can buy. uses: how often each user is used. 1 round to all: epsilon spent. overflow: bound on"
        " the chance that a coordinate leaves the secure sum's range in a round (? = none known).",
        f"Recommended for {best['rounds']} rounds: sampling_rate {best['sampling_rate']:g}, noise_multiplier"
        f" {best['noise_multiplier']:.3f}, clip {best['clip']:g}: the least used within"
        f" {100 * (1 - NEAR_THE_BEST):.0f} % of the largest progress over noise, {_times(asked, best)}. The clip"
        " changes no epsilon: choose it on public or generated data.",
        *_of_statistics(result["setting"]),
        *_of_evaluation(result["setting"]),
    ]
    for name, one in (("Asked", asked), ("Recommended", best)):
        lines += _adversaries(name, one) if result["setting"]["mode"] == "distributed" else []
        if "user_epsilon" in one:
            rows = result["setting"]["rows_of_a_user"]
            lines.append(
                f"{name}: epsilon {_spelt(one['user_epsilon'])} for a whole user with {rows} training rows"
                " (privacy.max_impressions_per_user)."
            )
        if "second_opinion" in one:
            second = one["second_opinion"]
            agreement = "agrees" if second["agree"] else "DISAGREES: rely on the larger"
            answer = "no finite bound" if second["epsilon"] is None else rounded_up(second["epsilon"])
            lines.append(
                f"{name}: PLD {rounded_up(one['epsilons'][-1])}, second opinion PRV {answer}, which {agreement}."
            )
    if configured:
        over = " and ".join(f"privacy.epsilon{'' if view == 'server' else '_' + view}" for view in configured["over"])
        verdict = f"OVER {over}: the budget will refuse the last rounds" if over else "within the budget"
        lines.append(
            f"The configuration names noise_multiplier {configured['noise_multiplier']:g}: epsilon"
            f" {_spelt(configured['epsilon'])} after all rounds, {verdict}."
        )
    if "second_opinion" not in best:
        lines.append("Accounted by PLD alone; --second-opinion asks PRV too (it loads torch).")
    return lines


def _of_statistics(setting: dict[str, Any]) -> list[str]:
    noise, every = setting["statistics_noise"], setting["statistics_every"]
    if not noise:
        return []
    often = f"before round 1 and every {every} rounds after" if every else "once, before round 1"
    return [
        f"Private statistics are released {often}, with noise multiplier {noise:g}; epsilons are of both together (in"
        " lines that are neither asked nor recommended, to a few parts in a thousand)."
    ]


def _of_evaluation(setting: dict[str, Any]) -> list[str]:
    noise, count = setting["evaluation_noise"], setting["evaluations"]
    if not noise:
        return []
    often = "once, after the last round" if count == 1 else f"{count} times over the run"
    return [f"Partners evaluate the model {often}, with noise multiplier {noise:g}; it is in the epsilons as well."]


def _times(asked: dict[str, Any], best: dict[str, Any]) -> str:
    if _is(asked, best):
        return "and what was asked"
    return (
        f"{asked['run_noise'] / best['run_noise']:.2f} times that of what was asked (rate {asked['sampling_rate']:g})"
    )


def _adversaries(name: str, one: dict[str, Any]) -> list[str]:
    spelt = {view: _spelt(value) for view, value in one["views"].items()}
    return [
        f"{name}: epsilon {spelt['server']} against the server and the public, {spelt['partner']} against another"
        f" partner, {spelt['broken']} should secure aggregation be broken."
    ]


def _spelt(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else rounded_up(epsilon)


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False)
