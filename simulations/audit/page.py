"""The page of an audit: what was proved beside what is claimed, as one file that opens offline.

Text from the configuration is escaped, plotly.js is inlined, and a content security policy forbids everything else.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from simulations.page import write_html

_COLOURS = {"holds": "#159a72", "violation": "#b3261e", "warning": "#d98200", "no verdict": "#7a8794"}
_STYLE = (
    "th,td{padding:.4rem .6rem;border-bottom:1px solid #d5dbe1;text-align:left;vertical-align:top}"
    "td.number,th.number{text-align:right;white-space:nowrap}td.verdict{white-space:nowrap;font-weight:600}"
    ".verdict{padding:.5rem .8rem;color:#fff}small{color:#59636e}"
)
_INTRODUCTION = (
    "A claimed epsilon is an upper bound: no attack may do better. Each test below tries to. A test of the mechanism"
    " looks at what a step, the sampler, the noise and the masks really do; an attack proves a lower bound on epsilon"
    " from how often it is right. A lower bound over the claim refutes it. An audit that finds nothing proves nothing:"
    " it fails to refute."
)


def write_page(result: Mapping[str, Any], curves: Mapping[str, Any], path: Path) -> None:
    """Writes the page of an audit's result as a whole."""
    title = f"{result['title']}: audit"
    colour = _COLOURS[result["verdict"]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict" style="background:{colour}">{escape(_verdict(result))}</p>',
        f"<p>{escape(_INTRODUCTION)}</p>",
        f"<p>{escape(_what(result))}</p>",
        "<h2>Proved beside claimed</h2>",
        _plot(bounds_figure(result["tests"]), first=True),
        "<h2>Tests</h2>",
        _table(result["tests"]),
    ]
    if curves:
        parts += ["<h2>Membership inference on the released model</h2>", _plot(roc_figure(curves), first=False)]
    write_html(path, title, parts, _STYLE)


def bounds_figure(tests: Iterable[Mapping[str, Any]]) -> Any:
    """Returns, for every attack, the lower bound that it proved, the Gaussian one, and the claim."""
    shown = [one for one in tests if one["lower_bound"] is not None]
    names = [_short(one["test"]) for one in shown][::-1]
    figure = go.Figure()
    for key, label, symbol, colour in (
        ("lower_bound", "proved", "circle", "#2f7fd0"),
        ("gaussian_lower_bound", "proved, were it a Gaussian mechanism", "circle-open", "#2f7fd0"),
        ("claimed_epsilon", "claimed", "line-ns-open", "#1c2128"),
    ):
        values = [one.get(key, one["figures"].get(key)) for one in shown][::-1]
        figure.add_trace(
            go.Scatter(
                x=values,
                y=names,
                mode="markers",
                name=label,
                marker={"symbol": symbol, "color": colour, "size": 13, "line": {"width": 2, "color": colour}},
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            )
        )
    figure.update_xaxes(title="epsilon", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    figure.update_layout(
        template="plotly_white", height=120 + 46 * len(names), legend={"orientation": "h", "y": 1.12}, margin={"t": 40}
    )
    return figure


def roc_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Any:
    """Returns the curves on logarithmic axes, where the few false alarms that matter can be seen."""
    figure = go.Figure()
    for (name, (false, true)), colour in zip(curves.items(), ("#2f7fd0", "#d98200"), strict=False):
        points = [(one, other) for one, other in zip(false, true, strict=True) if one > 0 and other > 0]
        figure.add_trace(
            go.Scatter(
                x=[one for one, _ in points],
                y=[other for _, other in points],
                mode="lines",
                name=name,
                line={"color": colour},
            )
        )
    figure.add_trace(
        go.Scatter(x=[1e-3, 1], y=[1e-3, 1], mode="lines", name="guessing", line={"color": "#7a8794", "dash": "dot"})
    )
    figure.update_xaxes(type="log", title="false-positive rate", range=[-3, 0])
    figure.update_yaxes(type="log", title="true-positive rate", range=[-3, 0])
    figure.update_layout(template="plotly_white", height=460, legend={"orientation": "h", "y": 1.08})
    return figure


def _plot(figure: Any, *, first: bool) -> str:
    html: str = figure.to_html(include_plotlyjs=first, full_html=False, config={"displaylogo": False})
    return html


def _verdict(result: Mapping[str, Any]) -> str:
    return {
        "holds": "Nothing was found against the claim.",
        "violation": "Violation: the claim does not hold.",
        "warning": "Warning: one test would refute the claim under an assumption.",
        "no verdict": "No verdict: no test could have refuted the claim on this data.",
    }[result["verdict"]]


def _what(result: Mapping[str, Any]) -> str:
    data, privacy, machine = result["data"], result["privacy"], result["machine"]
    text = (
        f"{data['users']} users of {data['partners']} partners ({data['source']}); mode {privacy['mode']}, unit"
        f" {privacy['unit']}, delta {privacy['delta']:g}, noise multiplier {privacy['noise_multiplier']:g}, sampling"
        f" rate {privacy['sampling_rate']:g}, clip {privacy['clip']:g}. Lower bounds hold at"
        f" {result['confidence']:.0%}. {result['timings']['total_seconds']:.0f} s on {machine['cores']} cores;"
        f" hushclick {machine['hushclick']}, torch {machine['torch']}."
    )
    if privacy["fixed_seed"]:
        text += " The configuration fixes a seed: the audit drew fresh noise, and whoever knows the seed can remove it."
    return text


def _short(test: str) -> str:
    return test.removeprefix("one-run audit, ")


def _table(tests: Iterable[Mapping[str, Any]]) -> str:
    rows = "".join(map(_row, tests))
    heads = ("test", ""), ("adversary", ""), ("proved", "number"), ("claimed", "number"), ("verdict", "")
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(one: Mapping[str, Any]) -> str:
    proved, claimed = ("" if one[key] is None else f"{one[key]:.2f}" for key in ("lower_bound", "claimed_epsilon"))
    return (
        f"<tr><td>{escape(one['test'].partition(': ')[0])}<br><small>{escape(one['says'])}</small></td>"
        f'<td>{escape(one["adversary"])}</td><td class="number">{proved}</td><td class="number">{claimed}</td>'
        f'<td style="color:{_COLOURS[one["verdict"]]};font-weight:600">{escape(one["verdict"])}</td></tr>'
    )
