"""The figures of the report, as plotly charts that need nothing but plotly.js in the same page.

A chart is None where there is nothing to draw. Colours of text and lines of the grid are left to the page's style
sheet, which knows dark mode and print; every chart carries its message as text, for whoever cannot see it.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from server.report_course import phases, spread
from server.report_numbers import (
    Json,
    duration,
    epsilon,
    figure,
    interval,
    number,
    numbers,
    percent,
    table,
    tables,
    whole,
    words,
)
from server.report_privacy import scope
from server.report_tables import FLOOR_NAMES

Trace = Any  # a plotly trace: plotly has no types

BLUE = "#2f7fd0"
_BAND = "rgba(47, 127, 208, 0.22)"
_OTHERS = ("#8a8a8a", "#d98200", "#159a72", "#c2569b", "#7a6ae0", "#c8553d", "#5a9fb5")
_STROKES = {"dot": "2 3", "dash": "6 4", "longdash": "10 4", "dashdot": "7 3 2 3", "longdashdot": "11 3 2 3"}
_CONFIG = {"displayModeBar": False, "responsive": True, "showTips": False}
_MOST_BARS = 60  # more would be thinner than the gaps between them
_MOST_TICKS = 12  # one a round, and still apart on a phone
_MOST_MARKERS = 40
_LEAST_BAND = 0.15  # half-width, in rounds, of the band of a round that stands alone


@dataclass(frozen=True)
class Key:
    """An entry of a legend: the line's colour and SVG dash array (empty = solid), its name and its value."""

    colour: str
    strokes: str
    name: str
    value: str


@dataclass(frozen=True)
class Chart:
    """A figure: the id of its element, what stands above and below it, its message as text, its markup."""

    name: str
    title: str
    description: str
    markup: str
    keys: tuple[Key, ...] = ()
    note: str = ""


def learning_charts(metrics: Json) -> list[Chart]:
    """Returns AUC, normalised entropy and epsilon by round, each where any round has it."""
    rounds = [record for record in tables(metrics, "rounds") if number(record.get("round")) is not None]
    floors = [(name, table(record)) for name, record in table(metrics, "floors").items()]
    charts = [
        _curve(rounds, "auc", "AUC by round (higher is better)", floors, height=360),
        _curve(rounds, "ne", "NE by round (lower is better)", [], height=240),
        _epsilon_curve(rounds, table(metrics, "privacy")),
    ]
    return [chart for chart in charts if chart]


def _curve(rounds: Sequence[Json], name: str, title: str, floors: list[tuple[str, Json]], height: int) -> Chart | None:
    points = _points(rounds, name)
    if not points:
        return None
    x, y = [point[0] for point in points], [point[1] for point in points]
    lines = [
        (FLOOR_NAMES.get(key, words(key)), level)
        for key, floor in floors
        if (level := number(floor.get(name))) is not None
    ]
    levels = [_level(_ends(x), line, place) for place, line in enumerate(lines)]
    traces = [_band(rounds, name), *levels, _line(x, y, hover="%{y:.3f}")]
    markup = _markup(f"chart-{name}", traces, height, _round_axis(x), _axis(name.upper()))
    message = f"{title}: {figure(y[0])} in round {whole(x[0])}, {figure(y[-1])} in round {whole(x[-1])}."
    message += "".join(f" {label}: {figure(level)}." for label, level in lines)
    keys = (Key(BLUE, "", "This model", figure(y[-1])), *map(_level_key, range(len(lines)), lines)) if lines else ()
    return Chart(f"chart-{name}", title, message, markup, keys)


def _epsilon_curve(rounds: Sequence[Json], privacy: Json) -> Chart | None:
    points = _points(rounds, "epsilon")
    if not points:
        return None
    x, y = [point[0] for point in points], [point[1] for point in points]
    written = [epsilon(value) for value in y]
    line = _line(x, y, hover="%{customdata}", customdata=written)  # rounded up, which %{y:.2f} would not be
    markup = _markup("chart-epsilon", [line], 240, _round_axis(x), _axis("Epsilon", rangemode="tozero"))
    message = f"Epsilon spent: {written[0]} after round {whole(x[0])}, {written[-1]} after round {whole(x[-1])}."
    return Chart("chart-epsilon", "Epsilon spent so far", message, markup, note=f"{scope(privacy)}.")


def _points(rounds: Sequence[Json], name: str) -> list[tuple[float, float]]:
    pairs = [(number(record.get("round")), number(record.get(name))) for record in rounds]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _ends(x: Sequence[float]) -> tuple[float, float]:
    """Returns where the axis of rounds begins and ends, with a little air."""
    air = max((max(x) - min(x)) * 0.02, 0.25)
    return min(x) - air, max(x) + air


def _line(x: list[float], y: list[float], hover: str, **more: Any) -> Trace:
    mode = "lines+markers" if len(x) <= _MOST_MARKERS else "lines"
    line = {"color": BLUE, "width": 2.5}
    template = f"round %{{x}}: {hover}<extra></extra>"
    return go.Scatter(x=x, y=y, mode=mode, line=line, hovertemplate=template, name="This model", **more)


def _level(ends: tuple[float, float], line: tuple[str, float], place: int) -> Trace:
    label, level = line
    style = {"color": _OTHERS[place % len(_OTHERS)], "width": 1.5, "dash": _dash(place)}
    hover = f"%{{y:.3f}}<extra>{_plain(label)}</extra>"
    return go.Scatter(x=list(ends), y=[level, level], mode="lines", line=style, hovertemplate=hover)


def _level_key(place: int, line: tuple[str, float]) -> Key:
    return Key(_OTHERS[place % len(_OTHERS)], _STROKES[_dash(place)], line[0], figure(line[1]))


def _dash(place: int) -> str:
    return list(_STROKES)[place % len(_STROKES)]


def _band(rounds: Sequence[Json], name: str) -> Trace:
    """Returns the intervals as one filled outline per run of rounds that have them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for run in _runs_with_intervals(rounds, name):
        along = [place for place, _, _ in run]
        low, high = [bound for _, bound, _ in run], [bound for _, _, bound in run]
        if len(run) == 1:
            along, low, high = [along[0] - _LEAST_BAND, along[0] + _LEAST_BAND], low * 2, high * 2
        x += [*along, *reversed(along), None]
        y += [*high, *reversed(low), None]
    return go.Scatter(x=x, y=y, fill="toself", fillcolor=_BAND, mode="lines", line={"width": 0}, hoverinfo="skip")


def _runs_with_intervals(rounds: Sequence[Json], name: str) -> list[list[tuple[float, float, float]]]:
    """Returns runs of evaluated rounds with an interval, as (round, low, high); one without ends a run."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for record in rounds:
        place, bounds = number(record.get("round")), interval(record, name)
        if number(record.get(name)) is None or place is None:
            continue
        if bounds is None:
            runs.append([])
        else:
            runs[-1].append((place, *bounds))
    return [run for run in runs if run]


def calibration_chart(final: Json) -> Chart | None:
    """Returns observed against predicted rate in bins of equal mass, beside the diagonal."""
    bins = table(final, "calibration")
    predicted, observed = numbers(bins, "predicted_B"), numbers(bins, "observed_B")
    if not predicted or len(predicted) != len(observed):
        return None
    top = max(*predicted, *observed) * 1.06 or 1.0
    lowest = -0.02 * top  # keeps the zeros of both axes apart
    x = _axis("Predicted click rate", tickformat=".0%", range=[lowest, top], showgrid=False)
    y = _axis("Observed click rate", tickformat=".0%", range=[lowest, top])
    traces = [_diagonal(lowest, top), _bins(predicted, observed, numbers(bins, "rows_B"))]
    both = zip(predicted, observed, strict=True)
    message = "; ".join(f"{percent(x)} predicted, {percent(y)} observed" for x, y in both)
    keys = (
        Key(BLUE, "", f"This model, {len(predicted)} bins of about equal size", ""),
        Key(_OTHERS[0], _STROKES["dash"], "Perfect calibration", ""),
    )
    markup = _markup("chart-calibration", traces, 380, x, y)
    return Chart("chart-calibration", "Observed against predicted click rate", f"By bin: {message}.", markup, keys)


def _diagonal(low: float, high: float) -> Trace:
    line = {"color": _OTHERS[0], "width": 1.5, "dash": "dash"}
    return go.Scatter(x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip")


def _bins(predicted: list[float], observed: list[float], rows: list[float]) -> Trace:
    counts = [whole(amount) for amount in rows] if len(rows) == len(predicted) else ["?"] * len(predicted)
    hover = "predicted %{x:.1%}, observed %{y:.1%}<br>%{customdata} rows<extra></extra>"
    style = {"line": {"color": BLUE, "width": 1.5}, "marker": {"size": 8}}
    return go.Scatter(x=predicted, y=observed, customdata=counts, mode="lines+markers", hovertemplate=hover, **style)


def partners_charts(data: Json) -> list[Chart]:
    """Returns the partners' users, rows and click rates as bars, each where it is recorded; many are sorted."""
    kinds = (("users", whole, ","), ("rows", whole, ","), ("click_rate", percent, ".1%"))
    charts = []
    for name, write, hover in kinds:
        if sizes := numbers(data, f"{name}_per_partner"):
            many = len(sizes) > _MOST_BARS
            title = f"{words(name)} by partner{', highest first' if many else ''}"
            heights = sorted(sizes, reverse=True) if many else sizes
            markup = _bars(f"chart-{name}", heights, hover, "Rank" if many else "Partner")
            message = f"{title}: {spread(sizes, write)} over {len(sizes)} partners."
            charts.append(Chart(f"chart-{name}", title, message, markup))
    return charts


def _bars(name: str, heights: list[float], hover: str, label: str) -> str:
    template = f"{label.lower()} %{{x}}: %{{y:{hover}}}<extra></extra>"
    bars = go.Bar(x=list(range(len(heights))), y=heights, marker={"color": BLUE}, hovertemplate=template)
    x = _axis(label, showgrid=False, **_whole_ticks(len(heights)))
    y = _axis("", tickformat=".0%" if "%" in hover else "~s", rangemode="tozero")
    return _markup(name, [bars], 220, x, y, bargap=0 if len(heights) > _MOST_BARS else 0.25)


def time_chart(timings: Json) -> Chart | None:
    """Returns the time of each phase as a bar; phases that hold others are left to the table."""
    found = phases(timings)
    if not found:
        return None
    labels, seconds = [_plain(name) for name, _ in found], [amount for _, amount in found]
    written = [duration(amount) for amount in seconds]
    shown = {"text": written, "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
    bars = go.Bar(x=seconds, y=labels, orientation="h", marker={"color": BLUE}, **shown)
    x = _axis("Seconds", range=[0, max(*seconds, 1e-3) * 1.3], showgrid=False)  # room for the last label
    markup = _markup("chart-time", [bars], 70 + 34 * len(found), x, _axis("", autorange="reversed", showgrid=False))
    message = "; ".join(f"{name}: {amount}" for (name, _), amount in zip(found, written, strict=True))
    return Chart("chart-time", "Where the time went", f"{message}.", markup)


def _round_axis(x: Sequence[float]) -> dict[str, Any]:
    return _axis("Round", range=list(_ends(x)), showgrid=False, **_whole_ticks(max(x) - min(x)))


def _whole_ticks(span: float) -> dict[str, Any]:
    """Keeps a short axis of rounds or partners from showing fractions of them."""
    return {"dtick": 1} if span <= _MOST_TICKS else {}


def _axis(label: str, **more: Any) -> dict[str, Any]:
    """Returns an axis without chrome, and without a zoom that would catch a finger on its way down the page."""
    title = {"text": label, "standoff": 8, "font": {"size": 13}}
    return {"title": title, "fixedrange": True, "zeroline": False, "automargin": True, "ticks": "", **more}


def _plain(words_of_others: str) -> str:
    """Returns text that plotly shows as it is: it would read tags, and links, in labels."""
    return html.escape(words_of_others).replace("%{", "% {")


def _markup(name: str, traces: list[Trace], height: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> str:
    layout = {
        "template": {},
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
        **more,
    }
    chart = go.Figure(traces, layout)
    return str(
        chart.to_html(_CONFIG, include_plotlyjs=False, full_html=False, default_height=f"{height}px", div_id=name)
    )
