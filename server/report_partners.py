"""What the report says of the evaluation at the partners: figures of one noised, summed histogram of scores."""

from server.report_numbers import (
    MISSING,
    Json,
    bounds,
    figure,
    interval,
    number,
    significant,
    table,
    tables,
    text,
    whole,
)
from server.report_tables import METRIC_MEANINGS, Row, Table, columns, prose

_SHOWN = ("auc", "ne", "log_loss", "calibration_ratio", "ece", "base_rate")


def partners_table(metrics: Json) -> Table:
    """Returns the final model's figures at the partners, each with both its intervals."""
    found = table(metrics, "final", "partners")
    noise = {"intervals": table(found, "noise_intervals")}
    known = {key: (name, meaning) for key, name, meaning in METRIC_MEANINGS}
    rows = tuple(
        Row(
            known[key][0],
            (figure(found.get(key)), bounds(interval(noise, key)), bounds(interval(found, key)), known[key][1]),
        )
        for key in _SHOWN
    )
    heads = (*columns("Figure", "Value", "95 %, noise alone", "95 %, noise and users"), *prose("Meaning"))
    return Table("The final model on what partners hold out", heads, rows if certain(found) else (), note=_note(found))


def certain(found: Json) -> bool:
    """Returns whether an evaluation at the partners has figures."""
    return number(found.get("auc")) is not None


def _note(found: Json) -> str:
    return (
        f"About {whole(found.get('rows'))} rows (of users with many, fewer count) of {whole(found.get('contributed'))}"
        f" partners, in {whole(found.get('bins'))} bins for clicked and unclicked ones, with noise of"
        f" {significant(found.get('noise_rows'), 3)} rows in each. Scores are taken at the middle of their bin."
    )


def why_not(metrics: Json) -> str:
    """Returns why partners evaluated nothing, where they were to; empty where they did, or were not to."""
    found = table(metrics, "final", "partners")
    if error := text(found.get("error")):
        return f"Partners did not evaluate the final model: {error}."
    if found and not certain(found):
        return (
            f"The histogram holds about {whole(found.get('rows'))} rows and noise of"
            f" {significant(found.get('noise_rows'), 3)} rows in each of {whole(found.get('bins'))} bins, clicked and"
            " not: no figure can be made of it."
        )
    return ""


def course_table(metrics: Json) -> Table:
    """Returns the evaluations at the partners by round, where there were several."""
    found = [table(record, "partners") for record in tables(metrics, "rounds") if table(record, "partners")]
    rows = tuple(
        Row(
            whole(one.get("round")),
            (*(f"{figure(one.get(key))} [{bounds(interval(one, key)) or MISSING}]" for key in ("auc", "ne")),),
            text(one.get("error")),
        )
        for one in found
    )
    heads = columns("Round", "AUC [interval]", "NE [interval]")
    return Table("Evaluation at the partners, by round", heads, rows if len(found) > 1 else ())


def sentence(metrics: Json) -> str:
    """Returns the AUC at the partners with its intervals; empty where there is none."""
    found = table(metrics, "final", "partners")
    if not certain(found):
        return why_not(metrics)
    noise = bounds(interval({"intervals": table(found, "noise_intervals")}, "auc"))
    return (
        f"On what {whole(found.get('contributed'))} partners hold out its AUC is {figure(found.get('auc'))} (95 %"
        f" interval {bounds(interval(found, 'auc'))}; of the noise alone {noise}), from one noised, summed histogram."
    )
