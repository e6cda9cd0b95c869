"""The figures of the report, as plotly charts that need nothing but plotly.js in the same page.

A chart is None where there is nothing to draw. Colours of text and lines of the grid are left to the page's style
sheet, which knows dark mode and print; every chart carries its message as text, for whoever cannot see it.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

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

BLUE = "#2f7fd0"
_BAND = "rgba(47, 127, 208, 0.22)"
_OTHERS = ("#8a8a8a", "#d98200", "#159a72", "#c2569b", "#7a6ae0", "#c8553d", "#5a9fb5")
_DASHES = ("dot", "dash", "longdash", "dashdot", "longdashdot")
_STROKES = {"dot": "2 3", "dash": "6 4", "longdash": "10 4", "dashdot": "7 3 2 3", "longdashdot": "11 3 2 3"}
_CONFIG = {"displayModeBar": False, "responsive": True, "showTips": False}
_MOST_BARS = 60  # more would be thinner than the gaps between them
_MOST_TICKS = 12  # one a round, and still apart on a phone
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
        _curve(rounds, "ne", "NE by round (lower is better)", floors[:0], height=240),
        _epsilon_curve(rounds, table(metrics, "privacy")),
    ]
    return [chart for chart in charts if chart]


def _curve(rounds: Sequence[Json], name: str, title: str, floors: list[tuple[str, Json]], height: int) -> Chart | None:
    points = _points(rounds, name)
    if not points:
        return None
    x, y = [point[0] for point in points], [point[1] for point in points]
    ends = _ends(x)
    lines = [
        (FLOOR_NAMES.get(key, words(key)), level)
        for key, floor in floors
        if (level := number(floor.get(name))) is not None
    ]
    chart = go.Figure(_band(rounds, name))
    keys = [Key(BLUE, "", "This model", figure(y[-1]))]
    for place, (label, level) in enumerate(lines):
        colour, dash = _OTHERS[place % len(_OTHERS)], _DASHES[place % len(_DASHES)]
        chart.add_trace(_level(ends, level, label, colour, dash))
        keys.append(Key(colour, _STROKES[dash], label, figure(level)))
    chart.add_trace(_line(x, y, "This model", "%{y:.3f}"))
    _whole_ticks(_lay_out(chart, height, "Round", name.upper(), ends), ends[1] - ends[0])
    message = f"{title}: {figure(y[0])} in round {whole(x[0])}, {figure(y[-1])} in round {whole(x[-1])}."
    message += "".join(f" {label}: {figure(level)}." for label, level in lines)
    return Chart(f"chart-{name}", title, message, _markup(chart, f"chart-{name}"), tuple(keys if lines else ()))


def _epsilon_curve(rounds: Sequence[Json], privacy: Json) -> Chart | None:
    points = _points(rounds, "epsilon")
    if not points:
        return None
    x, y = [point[0] for point in points], [point[1] for point in points]
    line = _line(x, y, "epsilon", "%{customdata}")
    chart = go.Figure(line.update(customdata=[epsilon(value) for value in y]))  # rounded up, which %{y:.2f} is not
    _whole_ticks(_lay_out(chart, 240, "Round", "Epsilon", _ends(x)), max(x) - min(x))
    chart.update_yaxes(rangemode="tozero")
    message = f"Epsilon spent: {epsilon(y[0])} after round {whole(x[0])}, {epsilon(y[-1])} after round {whole(x[-1])}."
    markup = _markup(chart, "chart-epsilon")
    return Chart("chart-epsilon", "Epsilon spent so far", message, markup, note=f"{scope(privacy)}.")


def _points(rounds: Sequence[Json], name: str) -> list[tuple[float, float]]:
    pairs = [(number(record.get("round")), number(record.get(name))) for record in rounds]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _ends(x: Sequence[float]) -> tuple[float, float]:
    """Returns where the axis of rounds begins and ends, with a little air."""
    air = max((max(x) - min(x)) * 0.02, 0.25)
    return min(x) - air, max(x) + air


def _line(x: list[float], y: list[float], name: str, hover: str) -> go.Scatter:
    mode = "lines+markers" if len(x) <= 40 else "lines"
    template = f"round %{{x}}: {hover}<extra>{name}</extra>"
    return go.Scatter(x=x, y=y, mode=mode, line={"color": BLUE, "width": 2.5}, hovertemplate=template, name=name)


def _level(ends: tuple[float, float], level: float, label: str, colour: str, dash: str) -> go.Scatter:
    template = f"%{{y:.3f}}<extra>{_plain(label)}</extra>"
    line = {"color": colour, "width": 1.5, "dash": dash}
    return go.Scatter(x=list(ends), y=[level, level], mode="lines", line=line, hovertemplate=template)


def _band(rounds: Sequence[Json], name: str) -> go.Scatter:
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
    rows = numbers(bins, "rows_B")
    if not predicted or len(predicted) != len(observed):
        return None
    top = max(*predicted, *observed) * 1.06 or 1.0
    lowest = -0.02 * top
    counts = [whole(amount) for amount in rows] if len(rows) == len(predicted) else ["?"] * len(predicted)
    chart = go.Figure(_level((lowest, top), 0.0, "perfect", _OTHERS[0], "dash").update(y=[lowest, top]))
    hover = "predicted %{x:.1%}, observed %{y:.1%}<br>%{customdata} rows<extra></extra>"
    points = go.Scatter(x=predicted, y=observed, customdata=counts, mode="lines+markers", hovertemplate=hover)
    chart.add_trace(points.update(line={"color": BLUE, "width": 1.5}, marker={"size": 8}))
    _lay_out(chart, 380, "Predicted click rate", "Observed click rate", (lowest, top))
    chart.update_xaxes(tickformat=".0%", rangemode="normal").update_yaxes(tickformat=".0%", range=[lowest, top])
    pairs = "; ".join(
        f"{percent(x)} predicted, {percent(y)} observed" for x, y in zip(predicted, observed, strict=True)
    )
    keys = (Key(BLUE, "", f"This model, {len(predicted)} bins of about equal size", ""), _DIAGONAL)
    markup = _markup(chart, "chart-calibration")
    return Chart("chart-calibration", "Observed against predicted click rate", f"By bin: {pairs}.", markup, keys)


_DIAGONAL = Key(_OTHERS[0], _STROKES["dash"], "Perfect calibration", "")


def partners_charts(data: Json) -> list[Chart]:
    """Returns the partners' users, rows and click rates as bars, each where it is recorded; many are sorted."""
    kinds = (("users", whole, ","), ("rows", whole, ","), ("click_rate", percent, ".1%"))
    charts = []
    for name, write, hover in kinds:
        if sizes := numbers(data, f"{name}_per_partner"):
            many = len(sizes) > _MOST_BARS
            title = f"{words(name)} by partner{', highest first' if many else ''}"
            chart = _bars(sorted(sizes, reverse=True) if many else sizes, hover, "Rank" if many else "Partner")
            message = f"{title}: {spread(sizes, write)} over {len(sizes)} partners."
            charts.append(Chart(f"chart-{name}", title, message, _markup(chart, f"chart-{name}")))
    return charts


def _bars(heights: list[float], hover: str, axis: str) -> go.Figure:
    template = f"{axis.lower()} %{{x}}: %{{y:{hover}}}<extra></extra>"
    bars = go.Bar(x=list(range(len(heights))), y=heights, marker={"color": BLUE}, hovertemplate=template)
    chart = _whole_ticks(_lay_out(go.Figure(bars), 220, axis, ""), len(heights))
    chart.update_yaxes(tickformat=".0%" if "%" in hover else "~s", rangemode="tozero")
    return chart.update_layout(bargap=0) if axis == "Rank" else chart


def time_chart(timings: Json) -> Chart | None:
    """Returns the time of each phase as a bar; phases that hold others are left to the table."""
    found = phases(timings)
    if not found:
        return None
    labels, seconds = [_plain(name) for name, _ in found], [amount for _, amount in found]
    written = [duration(amount) for amount in seconds]
    bars = go.Bar(x=seconds, y=labels, orientation="h", marker={"color": BLUE}, text=written, hoverinfo="skip")
    chart = go.Figure(bars.update(textposition="outside", cliponaxis=False))
    _lay_out(chart, 70 + 34 * len(found), "Seconds", "")
    chart.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(range=[0, max(max(seconds), 1e-3) * 1.3])
    message = "; ".join(f"{name}: {amount}" for (name, _), amount in zip(found, written, strict=True))
    return Chart("chart-time", "Where the time went", f"{message}.", _markup(chart, "chart-time"))


def _lay_out(chart: go.Figure, height: int, x: str, y: str, ends: tuple[float, float] | None = None) -> go.Figure:
    """Sets what all charts share: no chrome, no zoom that would catch a finger on its way down the page."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True, "showline": False, "ticks": ""}
    chart.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        showlegend=False,
        dragmode=False,
        hovermode="closest",
        bargap=0.25,
    )
    chart.update_xaxes(title={"text": x, "standoff": 8, "font": {"size": 13}}, showgrid=False, **axis)
    chart.update_yaxes(title={"text": y, "standoff": 8, "font": {"size": 13}}, showgrid=True, **axis)
    if ends:
        chart.update_xaxes(range=list(ends))
    return chart


def _whole_ticks(chart: go.Figure, span: float) -> go.Figure:
    """Keeps a short axis of rounds or partners from showing fractions of them."""
    return chart.update_xaxes(dtick=1) if span <= _MOST_TICKS else chart


def _plain(words_of_others: str) -> str:
    """Returns text that plotly shows as it is: it would read tags, and links, in labels."""
    return html.escape(words_of_others).replace("%{", "% {")


def _markup(chart: go.Figure, name: str) -> str:
    height = f"{chart.layout.height}px"
    return str(chart.to_html(_CONFIG, include_plotlyjs=False, full_html=False, default_height=height, div_id=name))
