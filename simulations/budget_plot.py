"""The plot of `hushclick budget plan`: noise over progress against the sampling rate, and epsilon over the rounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from common.privacy.plan import Choice, Setting, with_histograms
from common.privacy.quick import quick_epsilon
from common.runfolder import write_atomically

_COLOURS = ("#7a8794", "#2f7fd0", "#159a72", "#d98200")
_MARKED = "#c2334d"
_POINTS = 16


def write_budget_plot(setting: Setting, choices: Sequence[Choice], marked: Sequence[Choice], path: Path) -> None:
    """Writes one HTML file with plotly.js in it, which opens offline.

    Args:
        setting: of the plan.
        choices: all of them; one line per number of rounds.
        marked: the asked and the recommended one, whose epsilon is drawn over the rounds.
        path: of the file.
    """
    titles = ("Noise over progress, whole run", f"Epsilon spent, at delta {setting.delta:g}")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    for colour, rounds in zip(_COLOURS, sorted({choice.rounds for choice in choices}), strict=False):
        figure.add_trace(_line([one for one in choices if one.rounds == rounds], rounds, colour), row=1, col=1)
    names = ("asked", "recommended") if marked[0] != marked[1] else ("asked and recommended",)
    for name, choice, symbol in zip(names, marked, ("circle-open", "star"), strict=False):
        figure.add_trace(_mark(choice, name, symbol), row=1, col=1)
        figure.add_trace(_course(setting, choice, name), row=1, col=2)
    figure.add_hline(y=setting.epsilon, line={"dash": "dot", "color": _MARKED}, row=1, col=2)
    figure.update_xaxes(type="log", title="sampling rate", row=1, col=1)
    figure.update_yaxes(type="log", title="times the largest mean gradient", row=1, col=1)
    figure.update_xaxes(title="rounds", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(title="epsilon (PLD)", rangemode="tozero", row=1, col=2)
    figure.update_layout(template="plotly_white", title=f"Budget plan: epsilon {setting.epsilon:g}", height=520)
    write_atomically(path, figure.to_html(include_plotlyjs=True, full_html=True).encode())


def _line(chosen: Sequence[Choice], rounds: int, colour: str) -> Any:
    return go.Scatter(
        x=[one.sampling_rate for one in chosen],
        y=[one.run_noise for one in chosen],
        customdata=[(one.noise_multiplier, one.uses, 100 * one.efficiency) for one in chosen],
        hovertemplate="rate %{x}: noise %{customdata[0]:.3f}, uses %{customdata[1]:.3g}, %{customdata[2]:.0f} %",
        name=f"{rounds} rounds",
        mode="lines+markers",
        line={"color": colour},
    )


def _mark(choice: Choice, name: str, symbol: str) -> Any:
    marker = {"symbol": symbol, "size": 16, "color": _MARKED, "line": {"width": 2}}
    return go.Scatter(x=[choice.sampling_rate], y=[choice.run_noise], name=name, mode="markers", marker=marker)


def _course(setting: Setting, choice: Choice, name: str) -> Any:
    """Returns epsilon over the rounds of one choice, as if steps came evenly."""
    shares = [point / _POINTS for point in range(_POINTS + 1)]
    steps = [round(share * choice.steps) for share in shares]
    trained = [
        quick_epsilon(choice.noise_multiplier, choice.sampling_rate, count, setting.delta) if count else 0.0
        for count in steps
    ]
    spent = [
        with_histograms(epsilon, setting.delta, setting.histograms(round(share * choice.rounds), choice.rounds))
        for share, epsilon in zip(shares, trained, strict=True)
    ]
    return go.Scatter(x=[share * choice.rounds for share in shares], y=spent, name=f"epsilon, {name}", mode="lines")
