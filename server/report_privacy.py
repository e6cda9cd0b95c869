"""What the report says about privacy: no epsilon without its unit, adjacency, delta, accountants and adversaries."""

import math
from dataclasses import dataclass

from common.privacy.labels import NOT_PROTECTED
from server.report_numbers import (
    MISSING,
    NOT_RECORDED,
    Json,
    epsilon,
    number,
    significant,
    table,
    text,
    whole,
    words,
)
from server.report_tables import MOST_PARTNERS, Row, Table, cells, columns, left_out, prose, read

_ADJACENCIES = {
    "add_remove": "one {unit} added or removed",
    "replace_one": "one {unit} replaced by another",
    "replace_label": "the click label of one row replaced by the other",
}


_MODES = {
    "local": "local = each partner adds the full noise itself",
    "label": "label = click labels are flipped by chance, and nothing else is protected",
}
_UNITS = {"user": "whose data one clipped gradient holds", "label": "the click of one row, and nothing else of it"}


def adjacency(privacy: Json) -> str:
    """Returns what makes two data sets neighbours, in words."""
    name = text(privacy.get("adjacency"))
    return _ADJACENCIES.get(name, words(name)).format(unit=text(privacy.get("unit")) or "unit")


def scope(privacy: Json) -> str:
    """Returns what every printed epsilon must carry: unit, adjacency, delta, accountants, against whom."""
    second = text(privacy.get("second_accountant")).upper()
    parts = (
        ("Unit", text(privacy.get("unit"))),
        ("adjacency", adjacency(privacy)),
        ("delta", significant(privacy.get("delta")).replace(MISSING, "")),
        ("accountant", text(privacy.get("accountant")).upper()),
        ("second accountant", f"{second} ({epsilon(privacy.get('second_epsilon'))})" if second else ""),
        ("protects against", text(privacy.get("protects_against"))),
    )
    return "; ".join(f"{name}: {found or NOT_RECORDED}" for name, found in parts)


def privacy_table(privacy: Json) -> Table:
    """Returns what the guarantee rests on."""
    seed = {True: "yes: the noise can be removed by whoever knows the seed", False: "no"}
    fixed = privacy.get("fixed_seed")
    lines = (
        ("Mode", text(privacy.get("mode")), _MODES.get(text(privacy.get("mode")), _MODES["local"])),
        ("Unit", text(privacy.get("unit")), _UNITS.get(text(privacy.get("unit")), _UNITS["user"])),
        ("Adjacency", adjacency(privacy), "what may differ without being noticed"),
        ("Epsilon", epsilon(privacy.get("epsilon")), "upper bound on what is learnt of a unit; the largest partner's"),
        *_of_a_user(privacy),
        *_of_labels(privacy),
        ("Budget", epsilon(privacy.get("budget")), _of_budget(privacy)),
        ("Delta", significant(privacy.get("delta")), "probability with which the bound may fail"),
        ("Accountant", text(privacy.get("accountant")).upper(), "how epsilon was derived from what was released"),
        ("Second accountant", _second(privacy), "another derivation, which should agree"),
        ("Protects against", text(privacy.get("protects_against")), "who learns no more than epsilon"),
        ("Noise multiplier", significant(privacy.get("noise_multiplier")), "noise deviation in units of the clip"),
        ("Sampling rate (q)", significant(privacy.get("sampling_rate")), "chance of a user to join a step"),
        ("Clip", significant(privacy.get("clip")), "largest length (L2 norm) of one unit's gradient"),
        ("Steps", whole(privacy.get("steps")), "noised steps at a partner, all rounds together"),
        *_of_histograms(table(privacy, "statistics"), "Private statistics", "noised clicks and impressions per item"),
        *_of_histograms(table(privacy, "evaluation"), "Evaluation at the partners", "noised histograms of scores"),
        *_of_the_sum(privacy),
        ("Noise from a fixed seed", seed[fixed] if isinstance(fixed, bool) else "", "must be no outside of tests"),
        ("Assumption", text(privacy.get("assumption")), "where it fails, such a unit's epsilons add up"),
        ("Aggregation", text(privacy.get("aggregation")), text(privacy.get("aggregation_note"))),
    )
    lacking = "does not apply" if privacy.get("mode") in ("none", "label") else NOT_RECORDED
    rows = tuple(Row(name, (found if found not in ("", MISSING) else lacking, why)) for name, found, why in lines)
    return Table("What the guarantee says and rests on", prose("Property", "Value", "Meaning"), rows)


def _of_labels(privacy: Json) -> list[tuple[str, str, str]]:
    """Returns, where click labels alone are protected, what that means for a user, and what it leaves out."""
    if privacy.get("mode") != "label":
        return []
    rows = whole(privacy.get("impressions"))
    of_a_user = "no finite bound" if number(found := privacy.get("user_epsilon")) is None else epsilon(found)
    flips = privacy.get("flip_probability")
    lines = [
        (f"Epsilon of all labels of a user with {rows} rows", of_a_user, "at delta 0; so many rows of a user are used"),
        ("Not protected", "; ".join(NOT_PROTECTED), "is as open as without privacy"),
    ]
    if number(flips) is not None:  # a deployment's server claims no more than its configuration says
        lines.append(("Flip probability", significant(flips), "chance that a label is the wrong one, once"))
    return lines


def _of_the_sum(privacy: Json) -> list[tuple[str, str, str]]:
    """Returns, where whole numbers are summed, how probably one leaves the range of the sum."""
    found = number(privacy.get("wrap_probability"))
    if found is None:
        return []
    meaning = "bound on the chance that a coordinate of a round's sum wraps; it harms the model, not privacy"
    return [("Chance of a wrapped coordinate", f"{found:.0e}" if found >= 1e-300 else "under 1e-300", meaning)]


def _of_histograms(found: Json, name: str, what: str) -> list[tuple[str, str, str]]:
    """Returns, where histograms of a kind were released, what these alone cost and with what noise."""
    if not found:
        return []
    clip = found.get("clip")
    alone = f"epsilon {epsilon(found.get('epsilon'))}, in the epsilon above"
    noise = f"noise multiplier {significant(found.get('noise_multiplier'))} over a clip of"
    return [
        (
            f"{name}, {whole(found.get('releases'))} releases",
            alone,
            f"{what}; {noise} {significant(clip)} rows" if clip else f"{what}, of flipped labels",
        )
    ]


def _of_budget(privacy: Json) -> str:
    days = number(privacy.get("period_days"))
    of = "" if days is None else f" of any {days:g} days (the epsilon above is of all time)"
    return f"epsilon{of} beyond which a partner refuses to train"


def _of_a_user(privacy: Json) -> list[tuple[str, str, str]]:
    """Returns, where the unit is less than a user, what the same releases mean for users, by their training rows."""
    return [
        (
            f"Epsilon of a user with {rows} training rows",
            "no finite bound" if number(found) is None else epsilon(found),
            "all of the user's rows added or removed (PLD)",
        )
        for rows, found in table(privacy, "by_rows_of_a_user").items()
        if str(rows) != "1"
    ]


def _second(privacy: Json) -> str:
    name, value = text(privacy.get("second_accountant")).upper(), epsilon(privacy.get("second_epsilon"))
    return f"{name}: epsilon {value}" if name else ""


def partner_epsilons_table(privacy: Json) -> Table:
    """Returns what the first partners have spent, and the range over all."""
    partners = {name: table(record) for name, record in table(privacy, "partners").items()}
    spent = [found for record in partners.values() if (found := number(record.get("epsilon"))) is not None]
    readers = (read("epsilon", epsilon), read("steps", whole), read("rounds", whole))
    rows = tuple(Row(name, cells(record, readers)) for name, record in list(partners.items())[:MOST_PARTNERS])
    span = f"From {epsilon(min(spent))} to {epsilon(max(spent))} over {len(spent):,} partners. " if spent else ""
    unknown = len(partners) - len(spent)
    lacking = f"No finite epsilon is recorded for {unknown:,} of {len(partners):,} partners. " if unknown else ""
    hidden = left_out(len(rows), len(partners), "partners")
    note = f"{span}{lacking}{scope(privacy)}."
    return Table("Epsilon by partner", columns("Partner", "Epsilon", "Steps", "Rounds"), rows, hidden, note)


# --- sentences ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Banner:
    """What nobody may overlook; `grave` = there is no privacy against somebody at least."""

    title: str
    body: str
    grave: bool


def banners(privacy: Json) -> list[Banner]:
    """Returns what limits or voids the guarantee, the gravest first."""
    found = [_mode_banner(privacy)]
    if privacy.get("fixed_seed") is True:
        body = (
            "The noise came from a fixed seed, so that the run can be repeated. Whoever knows the seed can compute the"
            " noise and remove it: against them there is no privacy. Such a run is for tests, never for people's data."
        )
        found.append(Banner("The noise is reproducible", body, grave=True))
    if privacy.get("mode") == "label":
        body = (
            "Epsilon holds for the click label of one row. Who was shown what, when and in which context, and that a"
            " user is in the log at all, is not protected; all labels of a user together far less than one."
        )
        found.append(Banner("Click labels are protected, not users", body, grave=True))
    if privacy.get("unit") == "impression":
        body = (
            "Epsilon holds for one training row. A person with many rows is protected far less, and a click lies in its"
            " user's later rows too, as history: the table below has the epsilon of a whole user."
        )
        found.append(Banner("Single rows are protected, not users", body, grave=False))
    if privacy.get("aggregation") == "plain":
        body = "Aggregation is plain: each partner's update reaches the server by itself, not only the sum."
        note = text(privacy.get("aggregation_note"))
        found.append(Banner("The server sees each partner's update", note or body, grave=False))
    return [banner for banner in found if banner]


def _mode_banner(privacy: Json) -> Banner | None:
    mode = text(privacy.get("mode"))
    if mode == "none":
        body = "Updates and model were released without noise: they may give away what single users did."
        return Banner("No privacy", body, grave=True)
    if not mode:
        body = "The run does not say how it protected its users. Treat the model as unprotected."
        return Banner("Privacy is not recorded", body, grave=True)
    if number(privacy.get("epsilon")) is None:
        body = "The run names a mode of privacy but no finite epsilon. Treat the model as unprotected."
        return Banner("No finite epsilon", body, grave=True)
    return None


def price(privacy: Json) -> str:
    """Returns what the run cost in privacy: its own sentence, else one made of the recorded parts."""
    assumption = text(privacy.get("assumption")).split(". ")[0]  # the table has the rest
    condition = f" Assumption: {assumption.rstrip('.')}." if assumption else ""
    if sentence := text(privacy.get("sentence")):
        return f"{sentence.rstrip('.')}.{condition}"
    if privacy.get("mode") == "none":
        return "none; updates and model were released without noise."
    if number(privacy.get("epsilon")) is None:
        return f"{NOT_RECORDED}."
    return f"epsilon {epsilon(privacy.get('epsilon'))}. {scope(privacy)}.{condition}"


def odds(privacy: Json) -> str:
    """Returns the factor, e to the epsilon and rounded up, by which odds may change; empty where it says nothing."""
    found = number(privacy.get("epsilon"))
    if found is None or not 0 <= found <= 20 or privacy.get("unit") == "label":  # odds of having taken part
        return ""
    factor = math.exp(found)
    return f"{math.ceil(factor * 100) / 100:.2f}" if factor < 100 else f"{math.ceil(factor):,}"
