"""What the report says of the run itself: its data, time, bytes, rounds and failures."""

from collections.abc import Callable, Sequence
from typing import Any

from server.report_numbers import (
    MISSING,
    NOT_RECORDED,
    Json,
    duration,
    epsilon,
    moment,
    number,
    numbers,
    percent,
    size,
    table,
    tables,
    text,
    whole,
    with_bounds,
    words,
)
from server.report_privacy import scope
from server.report_tables import Reader, Row, Table, cells, columns, left_out, prose, read

MOST_ROUNDS = 200
MOST_PROBLEMS = 50

_SPLITS = {
    "time": "time: rows before and after a moment; a user may be on both sides",
    "user": "user: users are whole on one side",
    "user_time": "user and time: later rows of held-out users",
}
_PHASES = {
    "read_seconds": "Reading the log",
    "encode_seconds": "Encoding texts",
    "train_seconds": "Training",
    "evaluate_seconds": "Evaluation",
    "floors_seconds": "Floors",
    "server_seconds": "Server (holds some of the above)",
    "total_seconds": "Total",
}
_WHOLES = ("server_seconds", "total_seconds")  # times that hold other phases


_DATA_SHOWN = ("source", "partners", "users", "rows", "rows_dropped", "split", "cut_time", "texts")
_PER_PARTNER = (
    ("users_per_partner", "Users of a partner", whole),
    ("rows_per_partner", "Rows of a partner", whole),
    ("click_rate_per_partner", "Click rate of a partner", percent),
)


def data_table(data: Json) -> Table:
    """Returns where the rows came from and how they were split; unknown plain figures come last, by their key."""
    split, texts = text(data.get("split")), table(data, "texts")
    lines = [
        ("Source", text(data.get("source"))),
        ("Partners", whole(data.get("partners"))),
        ("Users", whole(data.get("users"))),
        ("Rows", whole(data.get("rows"))),
        ("Split", _SPLITS.get(split, split)),
        ("Cut between training and held-out rows", moment(data.get("cut_time"))),
        ("Texts encoded, and taken from the cache", f"{whole(texts.get('encoded'))}, {whole(texts.get('reused'))}"),
        *((name, spread(numbers(data, key), write)) for key, name, write in _PER_PARTNER),
        *((words(key), text(value)) for key, value in data.items() if _is_extra(key, value)),
    ]
    rows = tuple(Row(name, (found if found not in ("", MISSING) else NOT_RECORDED,)) for name, found in lines)
    return Table("The rows behind the run", prose("Property", "Value"), rows if data else ())


def _is_extra(key: str, value: Any) -> bool:
    return key not in _DATA_SHOWN and isinstance(value, str | int | float)


def spread(found: Sequence[float], write: Callable[[Any], str]) -> str:
    """Returns the least, the median and the largest of some numbers."""
    if not found:
        return ""
    ordered = sorted(found)
    middle = ordered[(len(ordered) - 1) // 2] / 2 + ordered[len(ordered) // 2] / 2
    return f"{write(ordered[0])} to {write(ordered[-1])}, median {write(middle)}"


def dropped_table(data: Json) -> Table:
    """Returns how many rows were dropped, by reason."""
    dropped = table(data, "rows_dropped")
    rows = tuple(Row(words(reason), (whole(amount),)) for reason, amount in dropped.items())
    return Table("Rows dropped", columns("Reason", "Rows"), rows)


# --- cost and course ---------------------------------------------------------------------------------------------


def phases(timings: Json) -> list[tuple[str, float]]:
    """Returns the phases that do not hold one another, in order, with their seconds."""
    known = [key for key in _PHASES if key in timings] + [key for key in timings if key not in _PHASES]
    return [
        (_phase_name(key), seconds)
        for key in known
        if key not in _WHOLES and (seconds := number(timings[key])) is not None
    ]


def _phase_name(key: str) -> str:
    return _PHASES.get(key) or words(key.removesuffix("_seconds"))


def time_table(timings: Json) -> Table:
    """Returns the time of each phase and its share of all phases (a resumed run's total lacks the earlier ones)."""
    parts = phases(timings)
    everything = sum(seconds for _, seconds in parts)
    rows = [Row(name, (duration(time), percent(time / everything) if everything else MISSING)) for name, time in parts]
    rows += [Row(_PHASES[key], (duration(timings[key]), "")) for key in _WHOLES if key in timings]
    return Table("Time by phase", columns("Phase", "Time", "Share of phases"), tuple(rows))


def bytes_table(metrics: Json) -> Table:
    """Returns what travelled between server and partners in training."""
    rounds = tables(metrics, "rounds")
    rows = []
    for name, key, reached in (("To the partners", "down", "cohort"), ("From the partners", "up", "contributed")):
        sent = [found for record in rounds if (found := number(table(record, "bytes").get(key))) is not None]
        messages = sum(number(record.get(reached)) or 0 for record in rounds)
        if sent:
            each = size(sum(sent) / messages) if messages else MISSING
            rows.append(Row(name, (size(sum(sent)), size(sum(sent) / len(sent)), each)))
    heads = columns("Direction", "All rounds", "A round", "A partner in a round")
    return Table("Bytes sent for training", heads, tuple(rows))


def rounds_table(metrics: Json) -> Table:
    """Returns the latest rounds, line by line: the numbers behind the learning curves."""
    rounds = tables(metrics, "rounds")
    readers: tuple[Reader, ...] = (
        read("cohort", whole),
        read("contributed", whole),
        lambda record: with_bounds(record, "auc"),
        lambda record: with_bounds(record, "log_loss"),
        lambda record: with_bounds(record, "ne"),
        read("epsilon", epsilon),
        lambda record: duration(table(record, "timings").get("train_seconds")),
        lambda record: duration(table(record, "timings").get("evaluate_seconds")),
    )
    rows = tuple(Row(whole(record.get("round")), cells(record, readers)) for record in rounds[-MOST_ROUNDS:])
    titles = ("Round", "Asked", "Contributed", "AUC", "Log loss", "NE", "Epsilon", "Training", "Evaluation")
    hidden = left_out(len(rows), len(rounds), "rounds, the latest,")
    note = f"Asked, contributed: partners. Brackets: 95 % intervals. Of epsilon: {scope(table(metrics, 'privacy'))}."
    return Table("Round by round", columns(*titles), rows, hidden, note)


def stages_table(metrics: Json) -> Table:
    """Returns how many partners were left after each stage of secure aggregation."""
    rounds = [record for record in tables(metrics, "rounds") if table(record, "stages")]
    stages = ("asked", "advertised", "shared", "masked", "confirmed", "unmasked")
    rows = tuple(
        Row(
            whole(record.get("round")),
            (*(whole(table(record, "stages").get(stage)) for stage in stages), whole(record.get("round_trips"))),
        )
        for record in rounds[-MOST_ROUNDS:]
    )
    titles = ("Round", "Asked", "Gave keys", "Gave shares", "Sent masked", "Confirmed", "Unmasked", "Round trips")
    note = "Partners left after each stage: the server learns the sum over those who sent a masked update, or nothing."
    hidden = left_out(len(rows), len(rounds), "rounds, the latest,")
    return Table("Secure aggregation, stage by stage", columns(*titles), rows, hidden, note)


def problems_table(metrics: Json) -> Table:
    """Returns what went wrong, by round and partner."""
    rows = []
    for record in tables(metrics, "rounds"):
        number_of_round = whole(record.get("round"))
        if error := text(record.get("error")):
            rows.append(Row(number_of_round, ("the round", error)))
        rows += [
            Row(number_of_round, (name, text(reason) or f"reason {NOT_RECORDED}"))
            for name, reason in table(record, "failures").items()
        ]
    heads = prose("Round", "Who", "What happened")
    shown = tuple(rows[:MOST_PROBLEMS])
    return Table("Rounds with failures", heads, shown, left_out(len(shown), len(rows), "failures"))
