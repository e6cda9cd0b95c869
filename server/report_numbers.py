"""What the report reads, and how it writes numbers: any figure of a run may be missing, null or of another type.

Reading never fails: what is not there reads as None, an empty table or an empty list. Writing never hides it either:
None is written as `MISSING`, which the report explains.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Json = Mapping[str, Any]

MISSING = "–"  # written wherever a figure is not recorded
NOT_RECORDED = "not recorded"
NO_BREAK = "\N{NO-BREAK SPACE}"


# --- reading -----------------------------------------------------------------------------------------------------


def table(record: Any, *names: str) -> Json:
    """Returns the table under these names, one inside the other; empty where there is none."""
    for name in names:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record if isinstance(record, Mapping) else {}


def tables(record: Json, name: str) -> list[Json]:
    """Returns the tables in a list, in order; what is no table is left out."""
    return [item for item in values(record, name) if isinstance(item, Mapping)]


def values(record: Json, name: str) -> list[Any]:
    """Returns a list; empty where there is none."""
    found = record.get(name)
    return list(found) if isinstance(found, list | tuple) else []


def number(value: Any) -> float | None:
    """Returns a finite number, or None for whatever else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def numbers(record: Json, name: str) -> list[float]:
    """Returns the finite numbers in a list, in order."""
    return [found for value in values(record, name) if (found := number(value)) is not None]


def text(value: Any) -> str:
    """Returns text, a number or a list of these as one line of text; empty for whatever else."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(text, value)))
    if isinstance(value, bool):
        return yes_or_no(value)
    found = number(value)
    return "" if found is None else f"{found:,.10g}"


def interval(record: Json, name: str) -> tuple[float, float] | None:
    """Returns the bounds of a figure's interval, both finite and in order, or None."""
    pair = [number(bound) for bound in values(table(record, "intervals"), name)]
    if len(pair) != 2 or pair[0] is None or pair[1] is None or pair[0] > pair[1]:
        return None
    return pair[0], pair[1]


def difference(floor: Json) -> tuple[float, float | None, float | None] | None:
    """Returns model AUC minus floor AUC with the bounds of its interval, which may be None."""
    read: list[float | None] = [number(value) for value in values(floor, "difference")]
    value, low, high = [*read, None, None, None][:3]
    return None if value is None else (value, low, high)


# --- writing -----------------------------------------------------------------------------------------------------


def figure(value: Any, places: int = 3) -> str:
    """Returns a metric with a fixed number of decimals."""
    found = number(value)
    return MISSING if found is None else _minus(f"{found:.{places}f}")


def bounds(pair: Sequence[float | None] | None, places: int = 3, signed: bool = False) -> str:
    """Returns `0.770 to 0.794`, which does not break over lines; empty where a bound is missing."""
    if pair is None or any(bound is None for bound in pair):
        return ""
    return f"{NO_BREAK}to{NO_BREAK}".join(_minus(f"{bound:{'+' if signed else ''}.{places}f}") for bound in pair)


def with_bounds(record: Json, name: str, places: int = 3) -> str:
    """Returns a metric with its interval in brackets, as far as they are recorded."""
    return bracketed(figure(record.get(name), places), bounds(interval(record, name), places))


def bracketed(value: str, pair: str) -> str:
    """Returns a written value and its written bounds in brackets, if there are any."""
    return f"{value} [{pair}]" if pair else value


def signed(value: float | None, places: int = 3) -> str:
    """Returns a difference with its sign."""
    return MISSING if value is None else _minus(f"{value:+.{places}f}")


def significant(value: Any, digits: int = 4) -> str:
    """Returns a setting such as delta or clip to so many significant digits."""
    found = number(value)
    return MISSING if found is None else _minus(f"{found:.{digits}g}")


def whole(value: Any) -> str:
    """Returns a count with thousands apart."""
    found = number(value)
    return MISSING if found is None else _minus(f"{found:,.0f}")


def percent(value: Any) -> str:
    """Returns a rate in percent."""
    found = number(value)
    return MISSING if found is None else f"{_minus(f'{100 * found:.1f}')}{NO_BREAK}%"


def epsilon(value: Any) -> str:
    """Returns an epsilon to two decimals, rounded up and never down; infinity says so."""
    if isinstance(value, float) and value == math.inf:
        return "infinite"
    found = number(value)
    if found is None:
        return MISSING
    return f"{math.ceil(found * 100 - 1e-4) / 100:.2f}" if abs(found) < 1e12 else "infinite"


def duration(value: Any) -> str:
    """Returns seconds as people say them: `0.52 s`, `48.3 s`, `3 min 05 s`, `2 h 04 min`."""
    found = number(value)
    if found is None:
        return MISSING
    if abs(found) < 99.95:
        return _unit(f"{found:.2f} s" if abs(found) < 9.995 else f"{found:.1f} s")
    if found < 7170:
        return _unit(f"{round(found) // 60} min {round(found) % 60:02d} s")
    return _unit(f"{round(found / 60) // 60:,} h {round(found / 60) % 60:02d} min")


def size(value: Any) -> str:
    """Returns bytes in decimal units: `185.4 kB`."""
    found = number(value)
    if found is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < 999.95:
            return _unit(f"{found:.0f} B" if unit == "B" else f"{found:.1f} {unit}")
        found /= 1000
    return _unit(f"{found:,.1f} TB")


def moment(value: Any) -> str:
    """Returns Unix seconds as a date and time in UTC."""
    found = number(value)
    try:
        return MISSING if found is None else f"{datetime.fromtimestamp(found, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return MISSING


def yes_or_no(value: Any) -> str:
    """Returns `yes`, `no`, or that it is missing."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else MISSING


def words(name: str) -> str:
    """Returns a key as words: `logistic_regression` -> `Logistic regression`."""
    spaced = name.replace("_", " ").strip()
    return spaced[:1].upper() + spaced[1:]


def count(value: Any, noun: str) -> str:
    """Returns `1 partner`, `6 partners`, or that their number is not recorded."""
    found = number(value)
    if found is None:
        return f"an unrecorded number of {noun}s"
    return f"{whole(found)} {noun}" if found == 1 else f"{whole(found)} {noun}s"


def _unit(written: str) -> str:
    return _minus(written).replace(" ", NO_BREAK)


def _minus(written: str) -> str:
    return written.replace("-", "−") if "e" not in written else written
