"""The plot of the secure-aggregation benchmark: one HTML file with plotly.js in it, logarithmic, seen offline."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.secagg_tables import TITLES, Entry, gigabytes_per_second, per_parameter, scaled

_COLOURS = {"ours": "#2f7fd0", "flower": "#d98200", "ckks": "#159a72"}
_DASHES = ("dot", "dash", "solid", "longdash", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
_COLUMNS = 3
_HEIGHT = 900
_SPACING = 0.14  # between rows, of the height
_TICKS = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 5)]

Reading = Callable[[Entry], Mapping[str, float] | None]  # a spread, or only its median


def _seconds(found: Entry) -> Mapping[str, float]:
    return scaled(found["cpu_seconds"], 1.0)


def _memory(found: Entry) -> Mapping[str, float] | None:
    return per_parameter(found) if found["peak_bytes"] else None


def _bytes_up(found: Entry) -> Mapping[str, float] | None:
    return {"median": found["bytes_up"] / found["length"]} if found["bytes_up"] else None


# Title, unit, whether a cell belongs there, what is read of it.
_PANELS: tuple[tuple[str, str, Callable[[Entry], bool], Reading], ...] = (
    ("One client, a round", "CPU seconds", lambda one: one["kind"] == "client", _seconds),
    (
        "Server, none dropped",
        "CPU seconds",
        lambda one: one["kind"] == "server" and not one["dropped"],
        _seconds,
    ),
    (
        "Server, a fifth dropped (one at least)",
        "CPU seconds",
        lambda one: one["kind"] == "server" and one["dropped"] > 0,
        _seconds,
    ),
    ("Ten masks, made and added", "GB/s", lambda one: one["kind"] == "masks", gigabytes_per_second),
    ("One client, memory over its update", "bytes per parameter", lambda one: one["kind"] == "client", _memory),
    ("One client, sent", "bytes per parameter", lambda one: one["kind"] == "client", _bytes_up),
)


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """Writes the plot of a result of `measure`."""
    entries = result["cells"]
    lengths = sorted({found["length"] for found in entries})
    figure = make_subplots(
        rows=-(-len(_PANELS) // _COLUMNS),
        cols=_COLUMNS,
        subplot_titles=[title for title, *_ in _PANELS],
        vertical_spacing=_SPACING,
    )
    shown: set[str] = set()
    for place, (_, unit, belongs, read) in enumerate(_PANELS):
        row, column = place // _COLUMNS + 1, place % _COLUMNS + 1
        chosen = [found for found in entries if belongs(found) and read(found)]
        by_length = any(found["kind"] == "masks" for found in chosen)
        for trace in _traces(chosen, read, lengths, by_length):
            figure.add_trace(trace.update(showlegend=trace.name not in shown), row=row, col=column)
            shown.add(trace.name)
        ticks = sorted({found["length" if by_length else "partners"] for found in chosen})
        figure.update_xaxes(type="log", title="parameters" if by_length else "partners", row=row, col=column)
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks], row=row, col=column)
        figure.update_yaxes(
            type="log", title=unit, tickvals=_TICKS, ticktext=[f"{tick:g}" for tick in _TICKS], row=row, col=column
        )
    skipped = "; ".join(result["skipped"])
    figure.update_layout(
        title={"text": "Secure aggregation, one thread: median, least and most" + (f" ({skipped})" if skipped else "")},
        template="plotly_white",
        height=_HEIGHT,
        legend={"title": {"text": "engine, parameters"}},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)


def _traces(chosen: Sequence[Entry], read: Reading, lengths: Sequence[int], by_length: bool) -> list[Any]:
    """Returns one line per engine and length over the partners, or one per engine over the lengths."""
    lines: dict[tuple[str, int | None], list[Entry]] = {}
    for found in chosen:
        lines.setdefault((found["engine"], None if by_length else found["length"]), []).append(found)
    order = list(TITLES)
    places = sorted(lines, key=lambda place: (order.index(place[0]), place[1] or 0))
    return [_line(engine, length, lines[engine, length], read, lengths) for engine, length in places]


def _line(engine: str, length: int | None, found: Sequence[Entry], read: Reading, lengths: Sequence[int]) -> Any:
    style = len(_DASHES) - 1 if length is None else lengths.index(length) % len(_DASHES)
    along = "partners" if length else "length"
    points = sorted(((one[along], read(one)) for one in found), key=lambda point: point[0])
    spreads = [spread for _, spread in points if spread]
    name = TITLES[engine] + (f", {length:,}" if length else ", any")
    return go.Scatter(
        x=[place for place, _ in points],
        y=[spread["median"] for spread in spreads],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [spread.get("max", spread["median"]) - spread["median"] for spread in spreads],
            "arrayminus": [spread["median"] - spread.get("min", spread["median"]) for spread in spreads],
        },
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": _COLOURS[engine], "dash": _DASHES[style]},
        marker={"symbol": _SYMBOLS[style], "size": 8},
    )
