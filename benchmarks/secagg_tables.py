"""The tables of the secure-aggregation benchmark: figures, and what was aimed at beside what was seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.measuring import spread_text
from benchmarks.secagg_cell import NUM_MASKS

TITLES = {"ours": "Hushclick", "flower": "Flower SecAgg+", "ckks": "TenSEAL CKKS"}
MASKS = {"generator": "made", "masks": "made and added"}
_WORD_BYTES = 4
_LEAST_LENGTH = 100_000  # of the targets

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One line of the target table: what, how much, and what was seen of it (None: that cell was not measured)."""

    what: str
    bound: str
    seen: Callable[[Sequence[Entry]], str | None]


def entry(entries: Sequence[Entry], engine: str, kind: str, length: int, partners: int, dropped: int) -> Entry | None:
    """Returns the cell of that place, if it was measured."""
    place = {"engine": engine, "kind": kind, "length": length, "partners": partners, "dropped": dropped}
    return next((found for found in entries if all(found[name] == value for name, value in place.items())), None)


def _ratio(engine: str, kind: str, length: int, partners: int = 0, dropped: int = 0) -> Callable[..., str | None]:
    def seen(entries: Sequence[Entry]) -> str | None:
        found = entry(entries, engine, kind, length, partners, dropped)
        return f"{spread_text(found['times_ours'], 1)} x" if found and found["times_ours"] else None

    return seen


def _speed(kind: str, length: int) -> Callable[..., str | None]:
    def seen(entries: Sequence[Entry]) -> str | None:
        found = entry(entries, "ours", kind, length, 0, 0)
        return f"{spread_text(gigabytes_per_second(found), 1)} GB/s" if found else None

    return seen


def _bytes_up(entries: Sequence[Entry]) -> str | None:
    """Returns the most that is left over 4.01 per parameter, per partner."""
    over = [
        (found["bytes_up"] - 4.01 * found["length"]) / found["partners"]
        for found in entries
        if found["engine"] == "ours" and found["bytes_up"] and found["length"] >= _LEAST_LENGTH
    ]
    return f"4.01 per parameter and {max(over):.0f} per partner" if over else None


def _memory(length: int, partners: int) -> Callable[..., str | None]:
    def seen(entries: Sequence[Entry]) -> str | None:
        found = entry(entries, "ours", "client", length, partners, 0)
        return f"{spread_text(per_parameter(found), 1)} B" if found and found["peak_bytes"] else None

    return seen


TARGETS = (
    *(
        Target(f"10 masks {done}, 1e{power}, against Flower", f">= {least} x", _ratio("flower", kind, 10**power))
        for kind, done in MASKS.items()
        for power, least in ((6, 6), (7, 8))
    ),
    *(
        Target(f"10 masks {done}, 1e{power}", ">= 5.5 GB/s", _speed(kind, 10**power))
        for kind, done in MASKS.items()
        for power in (6, 7)
    ),
    Target("client, n = 10, 1e6, against Flower", ">= 4 x", _ratio("flower", "client", 10**6, 10)),
    Target("client, n = 10, 1e6, against CKKS", ">= 30 x", _ratio("ckks", "client", 10**6, 10)),
    Target("server, n = 10, 1e6, none dropped, against Flower", ">= 12 x", _ratio("flower", "server", 10**6, 10)),
    Target("server, n = 10, 1e6, 20 % dropped, against Flower", ">= 10 x", _ratio("flower", "server", 10**6, 10, 2)),
    Target("client, n = 100, 1e5, against Flower", ">= 20 x", _ratio("flower", "client", 10**5, 100)),
    Target("server, n = 100, 1e5, against Flower", ">= 500 x", _ratio("flower", "server", 10**5, 100)),
    Target("bytes up, the most over all sizes", "<= 4.01 per parameter and 256 per partner", _bytes_up),
    Target("extra client memory a parameter, n = 10, 1e6", "<= 6 B", _memory(10**6, 10)),
    Target("extra client memory a parameter, n = 10, 1e7", "<= 6 B", _memory(10**7, 10)),
    Target("extra client memory a parameter, n = 10, 1e8", "<= 6 B", _memory(10**8, 10)),
)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns masks, clients, servers, and targets with what was seen of them."""
    entries = result["cells"]
    found = [_masks_table(entries), _party_table(entries, "client"), _party_table(entries, "server")]
    found[0].caption = "\n".join(result["skipped"]) or None
    targets = Table(title="Targets: median (min to max)")
    for column in ("", "target", "seen"):
        targets.add_column(column, no_wrap=True)
    for target in TARGETS:
        seen = target.seen(entries)
        if seen:
            targets.add_row(target.what, target.bound, seen)
    return [*found, targets] if targets.row_count else found


def _masks_table(entries: Sequence[Entry]) -> Table:
    table = Table(title="Ten masks, CPU: median (min to max)")
    for column in ("parameters", "", "engine", "ms", "GB/s", "x ours"):
        table.add_column(column, justify="left" if column in ("", "engine") else "right", no_wrap=True)
    for found in entries:
        if found["kind"] in MASKS:
            speed = spread_text(gigabytes_per_second(found), 1)
            table.add_row(
                f"{found['length']:,}",
                MASKS[found["kind"]],
                TITLES[found["engine"]],
                spread_text(scaled(found["cpu_seconds"], 1000), 1),
                speed,
                _times(found),
            )
    return table


def _party_table(entries: Sequence[Entry], party: str) -> Table:
    table = Table(title=f"One {party}, all stages of a round: median (min to max)")
    columns = ["parameters", "partners", "dropped", "engine", "CPU ms", "x ours", "peak MiB", "peak B / parameter"]
    for column in [*columns, *(["bytes up", "B up / parameter"] if party == "client" else [])]:
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    kinds = ("client", "stream") if party == "client" else (party,)
    chosen = [found for found in entries if found["kind"] in kinds]
    for found in sorted(chosen, key=lambda one: (one["length"], one["partners"], one["dropped"])):
        peak = found["peak_bytes"]
        streams = ", body not kept" if found["kind"] == "stream" else ""
        cells = [
            f"{found['length']:,}",
            str(found["partners"]),
            str(found["dropped"]),
            TITLES[found["engine"]] + streams,
            spread_text(scaled(found["cpu_seconds"], 1000), 1),
            _times(found),
            spread_text(scaled(peak, 2**-20), 1) if peak else "",
            f"{per_parameter(found)['median']:.1f}" if peak else "",
        ]
        table.add_row(*cells, *(_sent(found) if party == "client" else ()))
    return table


def _sent(found: Entry) -> tuple[str, str]:
    up = found["bytes_up"]
    return (f"{up:,}", f"{up / found['length']:.2f}") if up else ("", "")


def _times(found: Entry) -> str:
    return spread_text(found["times_ours"], 1) if found["times_ours"] else ""


def scaled(figures: Mapping[str, float], factor: float) -> dict[str, float]:
    """Returns a spread in another unit."""
    return {name: value if name == "repeats" else value * factor for name, value in figures.items()}


def per_parameter(found: Entry) -> dict[str, float]:
    """Returns the spread of peak memory in bytes a parameter."""
    return scaled(found["peak_bytes"], 1 / found["length"])


def gigabytes_per_second(found: Entry) -> dict[str, float]:
    """Returns how fast ten masks of 4-byte words are made."""
    num_bytes = NUM_MASKS * _WORD_BYTES * found["length"]
    seconds = found["cpu_seconds"]
    return {
        "min": num_bytes / seconds["max"] / 1e9,
        "median": num_bytes / seconds["median"] / 1e9,
        "max": num_bytes / seconds["min"] / 1e9,
        "repeats": seconds["repeats"],
    }
