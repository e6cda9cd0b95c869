"""The report of a run: one HTML file that opens offline, made of metrics.json and the effective configuration.

Any figure may be missing or null; the report says so instead of failing. Text from the run is escaped. Nothing is
loaded from anywhere: plotly.js is inlined, and a content security policy in the page forbids the rest.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from common.errors import HushclickError
from common.runfolder import RunFolder, write_atomically
from server import (
    report_behaviour,
    report_course,
    report_figures,
    report_partners,
    report_privacy,
    report_slices,
    report_tables,
)
from server.report_numbers import (
    MISSING,
    Json,
    bounds,
    count,
    difference,
    figure,
    interval,
    number,
    percent,
    table,
    text,
    words,
)

_TEMPLATE = Path(__file__).with_name("report_template.html")
_SUMMARY_FLOORS = {
    "base_rate": "the base rate",
    "item_popularity": "item popularity",
    "private_item_popularity": "the private item popularity",
    "logistic_regression": "logistic regression",
}


def write_report(folder: RunFolder) -> Path:
    """Writes `report.html` of a run folder as a whole and returns its path.

    Raises:
        HushclickError: when metrics.json or config.toml is missing or unreadable, or the disk refuses.
    """
    metrics = _read_metrics(folder.metrics)
    page = build_report(metrics, _read(folder.config, "the run writes it at its start: run it again"))
    write_atomically(folder.report, page.encode("utf-8", "replace"))
    return folder.report


def _read_metrics(path: Path) -> dict[str, Any]:
    mend = "a run writes it when it ends: let it finish, or resume it"
    try:
        metrics = json.loads(_read(path, mend))
    except ValueError as error:
        raise HushclickError(f"{path}: not JSON ({error}); {mend}") from None
    if not isinstance(metrics, dict):
        raise HushclickError(f"{path}: holds no JSON object at its top; {mend}")
    return metrics


def _read(path: Path, mend: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HushclickError(f"{path}: no such file; {mend}") from None
    except UnicodeDecodeError as error:
        raise HushclickError(f"{path}: not UTF-8 text ({error.reason}); {mend}") from None
    except OSError as error:
        raise HushclickError(
            f"{path}: cannot be read: {error.strerror}; mend that, then write the report again"
        ) from None


def build_report(metrics: Mapping[str, Any], config_toml: str) -> str:
    """Returns the report as one HTML page; equal arguments give equal pages.

    Args:
        metrics: what metrics.json holds; whatever is missing, null or of another type is reported as not recorded.
        config_toml: the effective configuration, shown as it is.
    """
    final, privacy = table(metrics, "final"), table(metrics, "privacy")
    charts = _charts(metrics)
    return _template().render(
        title=text(metrics.get("title")) or "Hushclick run",
        summary=summary(metrics),
        banners=report_privacy.banners(privacy),
        charts=charts,
        plotly_js=Markup(get_plotlyjs()) if any(charts.values()) else "",  # noqa: S704  plotly's own file
        tables=_tables(metrics),
        course=report_behaviour.course_lines(final),
        calibration_figures=[(name, figure(final.get(key))) for key, name in _CALIBRATION_FIGURES],
        not_at_partners=report_partners.why_not(metrics),
        has_floors=bool(table(metrics, "floors")),
        none_dropped=table(metrics, "data").get("rows_dropped") == {},
        odds=report_privacy.odds(privacy),
        more_users=text(privacy.get("more_users")),
        config_toml=config_toml,
        run_id=text(metrics.get("run_id")),
        machine=[(words(name), text(value)) for name, value in table(metrics, "machine").items() if text(value)],
        missing=MISSING,
    )


def _charts(metrics: Json) -> dict[str, Any]:
    return {
        "learning": report_figures.learning_charts(metrics),
        "calibration": report_figures.calibration_chart(table(metrics, "final")),
        "partners": report_figures.partners_charts(table(metrics, "data")),
        "time": report_figures.time_chart(table(metrics, "timings")),
    }


def _tables(metrics: Json) -> dict[str, Any]:
    final, privacy, data = (table(metrics, name) for name in ("final", "privacy", "data"))
    return {
        "floors": report_tables.floors_table(metrics),
        "figures": report_tables.figures_table(final),
        "purchase": report_behaviour.purchase_table(final),
        "next_item": report_behaviour.next_item_table(final),
        "calibrated": report_behaviour.calibrated_table(final),
        "at_partners": report_partners.partners_table(metrics),
        "at_partners_by_round": report_partners.course_table(metrics),
        "slices": report_slices.slice_tables(final),
        "gaps": report_slices.gaps_table(final),
        "privacy": report_privacy.privacy_table(privacy),
        "partner_epsilons": report_privacy.partner_epsilons_table(privacy),
        "data": report_course.data_table(data),
        "dropped": report_course.dropped_table(data),
        "time": report_course.time_table(table(metrics, "timings")),
        "bytes": report_course.bytes_table(metrics),
        "rounds": report_course.rounds_table(metrics),
        "stages": report_course.stages_table(metrics),
        "problems": report_course.problems_table(metrics),
    }


_CALIBRATION_FIGURES = (("calibration_ratio", "calibration ratio"), ("ece", "ECE"), ("brier", "Brier score"))


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def summary(metrics: Json) -> list[str]:
    """Returns the summary as sentences: how good, against what, at which price."""
    final, data = table(metrics, "final"), table(metrics, "data")
    declared = number(data.get("declared_users"))  # a deployment's server knows what partners publish, and no more
    users = count(data.get("users"), "user") if declared is None else f"{count(declared, 'user')} by their own account"
    who = f"over {count(data.get('partners'), 'partner')} with {users}"
    if number(final.get("auc")) is None and report_partners.certain(table(final, "partners")):
        start = f"After {count(final.get('rounds'), 'round')} {who}, evaluated at the partners alone."
    elif number(final.get("auc")) is None:
        start = f"No final AUC is recorded for this run {who}: it may not have finished."
    else:
        start = f"After {count(final.get('rounds'), 'round')} {who}, {_goodness(final)}."
    floors = _against_floors(table(metrics, "floors"))
    at_partners = [said] if (said := report_partners.sentence(metrics)) else []
    return [start, *floors, *at_partners, f"Privacy: {report_privacy.price(table(metrics, 'privacy'))}"]


def _goodness(final: Json) -> str:
    """Returns what the AUC says, with its interval and the rows it was measured on."""
    pair = bounds(interval(final, "auc"))
    certainty = f"95 % interval {pair}" if pair else "no interval recorded"
    return (
        f"the model scores a clicked impression above one that was not in {percent(final.get('auc'))} of such pairs"
        f" (AUC, the area under the ROC curve: {figure(final.get('auc'))}, {certainty}), on"
        f" {count(final.get('rows'), 'held-out row')} of {count(final.get('users'), 'user')}"
    )


def _against_floors(floors: Json) -> list[str]:
    """Returns how the model stands against the floors, one clause each; certain only where an interval is."""
    clauses = [_verdict(name, table(floors, name)) for name in _SUMMARY_FLOORS if table(floors, name)]
    if not clauses:
        return ["No floors to compare it with are recorded."]
    return [f"In AUC it is {'; '.join(clauses)}."]


def _verdict(name: str, floor: Json) -> str:
    known = f"{_SUMMARY_FLOORS[name]} ({figure(floor.get('auc'))})"
    found = difference(floor)
    if found is None:
        return f"not compared with {known}"
    value, low, high = found
    if low is None or high is None:
        return f"{figure(abs(value))} {'above' if value > 0 else 'below'} {known}, with no interval recorded"
    if low <= 0 <= high:
        return f"not told apart from {known}: difference {bounds((low, high), signed=True)}"
    side = "ahead of" if value > 0 else "behind"
    return f"{side} {known} by {figure(abs(value))} ({bounds((low, high), signed=True)})"
