"""The page of a sweep: AUC against epsilon, a line per mode with intervals over seeds, as one file that opens offline.

Text from the configuration is escaped, plotly.js is inlined, and a content security policy forbids everything else.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from simulations.page import write_html
from simulations.sweep_table import closing, line_name, span

_COLOURS = {"local": "#d98200", "distributed": "#2f7fd0", "pooled": "#159a72", "none": "#7a8794"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_BESIDE = 1.012  # marks of one epsilon stand side by side, so that their intervals can be told apart
_FLOORS = {"base_rate": "#b0453a", "logistic_regression": "#8a6bb0"}
_STYLE = (
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #d5dbe1;text-align:right}"
    "th:first-child,td:first-child{text-align:left}caption{text-align:left;color:#59636e;padding:1.6rem 0 .4rem}"
    ".loud{background:#fdecea;color:#b3261e;padding:.5rem .8rem}"
)
Lines = Sequence[Mapping[str, Any]]


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a sweep's result as a whole."""
    title = f"{result['title']}: utility against privacy"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *_paragraphs(_what_was_run(result)),
        sweep_figure(result).to_html(include_plotlyjs=True, full_html=False, config={"displaylogo": False}),
        *_paragraphs(closing(result)),
        _table("Lines", _LINE_COLUMNS, map(_line_row, result["lines"])),
        _table("Floors, on the same rows", ("", "AUC", "note"), _floor_rows(result["floors"])),
        _table("Cells", _CELL_COLUMNS, map(_cell_row, result["cells"])),
    ]
    write_html(path, title, parts, _STYLE)


def sweep_figure(result: Mapping[str, Any]) -> Any:
    """Returns AUC against epsilon on a logarithmic axis, with the non-private line and the floors across."""
    figure = go.Figure()
    curves = _curves(result["lines"])
    for place, ((mode, _), lines) in enumerate(curves.items()):
        dash = _DASHES[sum(other == mode for other, _ in list(curves)[:place]) % len(_DASHES)]
        figure.add_trace(_curve(lines, _COLOURS[mode], dash, _BESIDE ** (place - (len(curves) - 1) / 2)))
    for line in result["lines"]:
        if line["epsilon"] is None:
            text = f"{line_name(line)}: {line['auc']['mean']:.4f}"
            _across(figure, line["auc"]["mean"], text, _COLOURS["none"], "dash")
    low, high = _shown(result["lines"])
    for name, colour in _FLOORS.items():
        auc = result["floors"].get(name, {}).get("auc")
        if auc is not None:
            out = "" if low <= auc <= high else " (below)" if auc < low else " (above)"
            _across(figure, min(max(auc, low), high), f"{name.replace('_', ' ')}: {auc:.4f}{out}", colour, "dot")
    epsilons = sorted({line["epsilon"] for line in result["lines"] if line["epsilon"] is not None})
    unit, delta = result["unit"], result["delta"]
    figure.update_xaxes(
        type="log",
        title=f"epsilon per {unit}, delta {delta:g} (PLD), logarithmic",
        tickvals=epsilons,
        ticktext=[f"{epsilon:g}" for epsilon in epsilons],
    )
    figure.update_yaxes(title="AUC on held-out clicks", range=[low, high])
    figure.update_layout(template="plotly_white", height=540, margin={"r": 230}, legend={"orientation": "h", "y": 1.08})
    return figure


def _shown(lines: Lines) -> tuple[float, float]:
    """Returns the AUCs that the axis spans: all lines with their intervals. A floor far off would flatten them."""
    values = [line["auc"][name] for line in lines for name in ("mean", "low", "high")]
    known = [value for value in values if value is not None]
    if not known:
        return 0.0, 1.0
    margin = max(0.25 * (max(known) - min(known)), 0.005)
    return min(known) - margin, max(known) + margin


def _curves(lines: Lines) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Returns (mode, name) -> the lines of one curve, by rising epsilon; those without privacy are no curve."""
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in sorted((one for one in lines if one["epsilon"] is not None), key=lambda one: one["epsilon"]):
        curves.setdefault((line["mode"], line_name(line)), []).append(line)
    return curves


def _curve(lines: Lines, colour: str, dash: str, beside: float) -> Any:
    """Returns one curve with its intervals; where one seed gives none, the mark stands alone."""
    above = [0.0 if line["auc"]["high"] is None else line["auc"]["high"] - line["auc"]["mean"] for line in lines]
    return go.Scatter(
        x=[line["epsilon"] * beside for line in lines],
        y=[line["auc"]["mean"] for line in lines],
        error_y={"type": "data", "array": above, "thickness": 1.6, "width": 5},
        customdata=[(line["epsilon"], span(line["auc"]), line["auc"]["seeds"]) for line in lines],
        hovertemplate="epsilon %{customdata[0]:g}: %{y:.4f} %{customdata[1]}, %{customdata[2]} seeds",
        name=escape(line_name(lines[0])),
        mode="lines+markers",
        line={"color": colour, "dash": dash},
    )


def _across(figure: Any, height: float, text: str, colour: str, dash: str) -> None:
    figure.add_hline(y=height, line={"color": colour, "dash": dash})
    figure.add_annotation(
        text=escape(text),
        font={"color": colour},
        xref="paper",
        x=1.005,
        xanchor="left",
        y=height,
        yanchor="middle",
        showarrow=False,
    )


def _what_was_run(result: Mapping[str, Any]) -> list[str]:
    data, grid, machine = result["data"], result["grid"], result["machine"]
    source = "private clicks" if data["private"] else "clicks that cost nobody anything"
    given = [*grid["set"], *(f"{mode}: {word}" for mode, words in grid["set_for"].items() for word in words)]
    return [
        f"{data['source']} ({source}); {data['partners']} partners by {data['partition']}, split {data['split']}."
        f" {len(result['cells'])} runs over {grid['seeds']} seeds, each of the deployed server and client"
        f" in one process; {result['timings']['total_seconds']:.0f} s in the last go, {machine['cores']} cores,"
        f" torch {machine['torch']}, hushclick {machine['hushclick']}.",
        f"Set beside the configuration: {'; '.join(given)}." if given else "Everything else as in the configuration.",
    ]


def _paragraphs(lines: Iterable[str]) -> list[str]:
    loud = ("FIXED SEED", "NOT WHOLE")
    return [f"<p{' class=loud' if line.startswith(loud) else ''}>{escape(line)}</p>" for line in lines]


_LINE_COLUMNS = ("", "epsilon", "seeds", "AUC", "95 % over seeds", "minus pooled", "95 % over seeds", "noise", "spent")
_CELL_COLUMNS = ("", "state", "AUC", "95 % over users", "log loss", "NE", "noise", "spent", "seconds")


def _line_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    auc, gap = line["auc"], line.get("minus_pooled")
    return (
        line_name(line),
        "none" if line["epsilon"] is None else f"{line['epsilon']:g}",
        str(auc["seeds"]),
        f"{auc['mean']:.4f}",
        span(auc),
        f"{gap['mean']:+.4f}" if gap else "",
        span(gap, "+.4f") if gap else "",
        _number(line["noise_of_sum"], ".3f"),
        _number(line["spent"], ".3f"),
    )


def _cell_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    if record["state"] != "done":
        return (record["cell"], f"{record['state']}: {record['error']}", *[""] * (len(_CELL_COLUMNS) - 2))
    low, high = (record["intervals"] or {}).get("auc", (None, None))
    return (
        record["cell"],
        "done" if not record["failed_rounds"] else f"done, {record['failed_rounds']} rounds without a sum",
        _number(record["auc"], ".4f"),
        "" if low is None else f"[{low:.4f}, {high:.4f}]",
        _number(record["log_loss"], ".4f"),
        _number(record["ne"], ".4f"),
        _number(record["noise_of_sum"], ".3f"),
        _number(record["spent"], ".3f"),
        _number(record["seconds"], ".1f"),
    )


def _floor_rows(floors: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name.replace("_", " "), _number(one["auc"], ".4f"), str(one["note"])) for name, one in floors.items()]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
