"""A sweep on the terminal: one line per mode and epsilon, the floors, and what was paid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.privacy.accounting import rounded_up
from simulations.run import SHORT

_WIDTH = 118
_FREE_TEXT = "Nothing was charged: {why}."


def say_result(console: Console, result: Mapping[str, Any], page: Path) -> None:
    """Prints the whole result."""
    console.width = max(console.width, _WIDTH)  # a table cut to a narrow terminal would lose figures
    console.print(sweep_table(result))
    for line in [*closing(result), f"Page: {page}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def sweep_table(result: Mapping[str, Any]) -> Table:
    """Returns the lines, best settings and smallest epsilon first as they were asked for, and the floors under them."""
    table = Table(title=f"{escape(result['title'])}: AUC against epsilon", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("epsilon", "seeds", "AUC", "minus pooled", "noise"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in result["lines"]:
        auc, gap = line["auc"], line.get("minus_pooled")
        table.add_row(
            line_name(line),
            "none" if line["epsilon"] is None else f"{line['epsilon']:g}",
            str(auc["seeds"]),
            f"{auc['mean']:.4f} {span(auc)}",
            f"{gap['mean']:+.4f} {span(gap, '+.4f')}" if gap else "",
            "" if line["noise_of_sum"] is None else f"{line['noise_of_sum']:.3f}",
        )
    for name, floor in result["floors"].items():
        short = SHORT.get(name, name.replace("_", " "))
        table.add_row(f"floor: {short}", "", "", f"{floor['auc']:.4f}", "", "", style="dim")
    return table


def line_name(line: Mapping[str, Any]) -> str:
    """Returns the mode of a line, and its settings where they vary."""
    settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in line["settings"].items())
    return f"{line['mode']} ({settings})" if settings else str(line["mode"])


def span(figures: Mapping[str, Any], form: str = ".4f") -> str:
    """Returns an interval as text; a dash where one seed gives none."""
    return "-" if figures["low"] is None else f"[{figures['low']:{form}}, {figures['high']:{form}}]"


def closing(result: Mapping[str, Any]) -> list[str]:
    """Returns what the figures mean, what was paid, and what is missing, a line each."""
    lines = [
        f"Intervals: {result['interval']}. noise: of the sum over all partners in one step, over the clip. pooled: one"
        " holder with everybody's users, at the rate, steps and realised noise of distributed; none: the same without"
        " noise and clip.",
        *verdicts(result["lines"]),
        price_text(result["price"], result["delta"]),
    ]
    if result["fixed_seed"]:
        lines.append("FIXED SEED: the noise comes from a seed in the configuration; whoever knows it can remove it.")
    states = result["states"]
    missing = [f"{states[state]} {state}" for state in ("failed", "refused") if states[state]]
    if result["left"]:
        missing.append(f"{result['left']} not run yet")
    if missing:
        lines.append(f"NOT WHOLE: {', '.join(missing)}; the lines are of the cells that are done.")
    return lines


def verdicts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns, per mode and epsilon, whether it reaches pooled training within its interval, in one line a mode."""
    found: dict[str, list[str]] = {}
    for line in lines:
        gap = line.get("minus_pooled")
        if gap and gap["within"] is not None:
            word = "level with pooled" if gap["within"] else "above it" if gap["mean"] > 0 else "below it"
            gap_text = f"{gap['mean']:+.4f} +- {gap['high'] - gap['mean']:.4f}"
            found.setdefault(line_name(line), []).append(f"epsilon {line['epsilon']:g} {word} ({gap_text})")
    return [f"{name}: {', '.join(parts)}." for name, parts in found.items()]


def price_text(price: Mapping[str, Any], delta: float) -> str:
    """Returns who paid what, in words."""
    if not price["charged"]:
        return _FREE_TEXT.format(**price)
    spent = ", ".join(
        f"{'no finite bound' if value is None else rounded_up(value)} against the {view}"
        for view, value in price["spent"].items()
    )
    return (
        "Charged to every partner, all cells together, per unit of privacy.unit:"
        f" epsilon {spent} (PLD, delta {delta:g}), of a budget of"
        f" {price['budget']:g}. The AUCs themselves are exact figures of held-out rows, which no epsilon covers."
    )
