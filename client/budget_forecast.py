"""`hushclick budget forecast RUN`: how many more rounds each partner's budget holds, at the rate of its last one."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.accounts import Account, read_accounts, rounds_of
from common.config import Config, load_config
from common.errors import UsageError
from common.privacy.accounting import rounded_up
from common.privacy.events import MAX_STEPS, DpEvent
from common.runfolder import RunFolder, jsonable

_SHOWN = 20
_WIDTH = 100


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns per partner what is spent, the rounds left of its own and of the run, and whether they are enough."""
    if arguments.set or arguments.out:
        raise UsageError("budget forecast takes neither --set nor --out: it reads a run as it is")
    folder = RunFolder(arguments.config)
    if not folder.config.is_file():
        raise UsageError(f"{arguments.config}: no such run folder (no config.toml in it)")
    config = load_config(folder.config)
    planned = config.round.num_rounds
    accounts = read_accounts(arguments.config)
    last = _last(accounts)
    done = last.round if last else 0
    to_come = max(0, planned - done)
    partners = [_forecast(account, config, last, done, to_come) for account in accounts]
    result: dict[str, Any] = jsonable(
        {"rounds_planned": planned, "rounds_done": done, "rounds_to_come": to_come, "partners": partners}
    )
    return result


def _last(accounts: Sequence[Account]) -> DpEvent | None:
    """Returns the latest release of training in the run that most partners were last in; None before the first."""
    latest = [event for account in accounts for event in _training(account)[-1:]]
    if not latest:
        return None
    (run_id, _), *_ = Counter(event.run_id for event in latest).most_common(1)
    return max((event for event in latest if event.run_id == run_id), key=lambda event: event.round)


def _training(account: Account) -> list[DpEvent]:
    return [event for event in account.events if event.purpose == "training"]


def _forecast(account: Account, config: Config, last: DpEvent | None, done: int, to_come: int) -> dict[str, Any]:
    own = rounds_of([event for event in _training(account) if last and event.run_id == last.run_id])
    like = _like(account, last)
    found: dict[str, Any] = {"partner": account.name, "rounds_taken_part": own, "rounds_left": None}
    if account.policy is not None and account.policy.mode != "none":
        found |= {"spent": account.spent(account.policy.delta), "delta": account.policy.delta}
        found |= {"period_days": account.period_days, "refusal": account.refusal}
        found["spent_in_period"] = account.spent_in_period(account.policy.delta)
        found["budget"] = dict(account.bounds())
        if like is not None:
            room = account.evaluations_to_come(config, like)
            found["rounds_left"] = account.rounds_left(like, room) or 0
            found["evaluations_to_come"] = len(room)
            found["or_more"] = found["rounds_left"] >= MAX_STEPS // like.steps
    left = found["rounds_left"]
    # A partner that sits rounds out has its own rounds spread over more of the run's.
    share = min(1.0, own / done) if own and done else 1.0
    found["run_rounds_left"] = None if left is None else math.floor(left / share + 1e-9)
    found["enough"] = None if left is None else left >= math.ceil(to_come * share - 1e-9)
    return found


def _like(account: Account, last: DpEvent | None) -> DpEvent | None:
    """Returns the release that a coming round would be: this partner's last, or another's under its own policy."""
    training, policy = _training(account), account.policy
    if training:
        return training[-1]
    if last is None or policy is None or policy.noise_multiplier is None:
        return None
    return replace(last, noise_multiplier=policy.noise_multiplier, sampling_rate=policy.sampling_rate)


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Prints one line per partner, those with the fewest rounds left first."""
    console = Console()
    console.width = max(console.width, _WIDTH)
    partners = sorted(result["partners"], key=lambda one: (one["rounds_left"] is None, one["rounds_left"] or 0))
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("partner")
    for column in ("rounds", "spent", "of", "own rounds left", "run's rounds left", "enough"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in partners[:_SHOWN]:
        table.add_row(escape(one["partner"]), str(one["rounds_taken_part"]), *_cells(one))
    console.print(table)
    if len(partners) > _SHOWN:
        _say(console, f"and {len(partners) - _SHOWN} more; --json shows all")
    _say(
        console,
        f"{result['rounds_done']} of {result['rounds_planned']} rounds begun, {result['rounds_to_come']} to come."
        " Rounds left are further rounds like each partner's last, within every bound of its policy (spent: against the"
        " server). The run's: if it takes part as often as so far.",
    )
    if any(one.get("period_days") for one in partners):
        _say(
            console,
            "With a period (of d days) spent is what counts in it now, and rounds left are those before older ones"
            " count no more; budget show has the epsilon of all time.",
        )
    if any(one.get("evaluations_to_come") for one in partners):
        _say(console, "Room is kept for the evaluations at the partners that are still to come.")
    for one in partners[:_SHOWN]:
        if one.get("refusal"):
            _say(console, f"{one['partner']}: nothing is granted: {one['refusal']}")


def _cells(one: dict[str, Any]) -> list[str]:
    if "spent" not in one:
        return ["no budget", "", "", "", ""]
    spent = one["spent_in_period"]["server"]
    text = "infinite" if spent is None else rounded_up(spent)
    budget = f"{one['budget']['server']:g}" + (f" in {one['period_days']} d" if one["period_days"] else "")
    if one["rounds_left"] is None:
        return [text, budget, "no round yet", "", ""]
    more = "at least " if one["or_more"] else ""
    enough = "yes" if one["enough"] else "NO"
    return [text, budget, f"{more}{one['rounds_left']}", f"{more}{one['run_rounds_left']}", enough]


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
