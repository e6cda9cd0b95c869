"""What a count of shared users costs: CPU seconds of each of its three steps, and the bytes of its two files.

Two partners of equally many users share a quarter of them, and the count is checked against that. Padding is in the
figures: points are the power of two above the users.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from benchmarks.measuring import Options, spread, spread_text
from client.identity import new_identity
from client.overlap.exchange import Overlap
from client.overlap.files import bucket
from client.partner import PartnerConfig, PartnerOverlap
from common.config import PrivacyConfig
from common.errors import HushclickError
from common.secagg.roster import Member, Roster, dump_roster

_SIZES = {10_000: 3, 100_000: 1}  # users -> repeats
_QUICK = {500: 1}
_NAMES = ("asker", "answerer")
_STEPS = ("ask", "answer", "count")

T = TypeVar("T")


def measure(options: Options) -> dict[str, Any]:
    """Returns one cell per size."""
    sizes = _QUICK if options.quick else _SIZES
    return {"cells": [_cell(options.scratch / str(users), users, repeats) for users, repeats in sizes.items()]}


def _cell(folder: Path, users: int, repeats: int) -> dict[str, Any]:
    """Returns the figures of one size; raises `HushclickError` where a count is wrong."""
    seconds: dict[str, list[float]] = {step: [] for step in _STEPS}
    sizes: dict[str, int] = {}
    for repeat in range(repeats):
        home = folder / str(repeat)
        asker, answerer = (Overlap(config) for config in partners(home, users))
        request, took = _timed(lambda one=asker, out=home: one.ask("answerer", out))
        seconds["ask"].append(took)
        response, took = _timed(lambda one=answerer, path=request, out=home: one.answer(path, out))
        seconds["answer"].append(took)
        counted, took = _timed(lambda one=asker, path=response: one.count(path))
        seconds["count"].append(took)
        if counted.shared != users // 4:
            raise HushclickError(f"{counted.shared} shared users counted, and {users // 4} were planted")
        sizes = {"request_bytes": request.stat().st_size, "response_bytes": response.stat().st_size}
    spreads = {step: spread(values) for step, values in seconds.items()}
    return {"users": users, "points": bucket(users), "shared": users // 4, "seconds": spreads, **sizes}


def partners(folder: Path, users: int) -> tuple[PartnerConfig, PartnerConfig]:
    """Returns two partners of so many users, of which they share a quarter, with their identifiers on disk."""
    folder.mkdir(parents=True)
    keys = {name: new_identity(folder / f"{name}.pem") for name in _NAMES}
    roster = dump_roster(Roster(tuple(Member(name, key) for name, key in keys.items())))
    (folder / "roster.toml").write_text(roster, encoding="utf-8")
    first = {"asker": 0, "answerer": users - users // 4}
    for name in _NAMES:
        lines = [f"person-{number}@mail.example" for number in range(first[name], first[name] + users)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    asker, answerer = (_partner(folder, name, users) for name in _NAMES)
    return asker, answerer


def _partner(folder: Path, name: str, users: int) -> PartnerConfig:
    others = tuple(other for other in _NAMES if other != name)
    return PartnerConfig(
        name=name,
        clicks="",
        card="",
        ledger="",
        state=str(folder / name),
        declared_users=users,
        identity=str(folder / f"{name}.pem"),
        roster=str(folder / "roster.toml"),
        privacy=PrivacyConfig(noise_multiplier=1.0),
        overlap=PartnerOverlap(partners=others, identifiers=str(folder / f"{name}.txt"), least_users=100),
    )


def _timed(step: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return step(), time.process_time() - started


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns the figures as one table."""
    table = Table(title="a count of shared users: CPU seconds, one process (median, min to max)")
    for column in ("users of each", "points", *_STEPS, "request", "response"):
        table.add_column(column, justify="right")
    for cell in result["cells"]:
        megabytes = [f"{cell[name] / 1e6:.2f} MB" for name in ("request_bytes", "response_bytes")]
        steps = [spread_text(cell["seconds"][step], 1) for step in _STEPS]
        table.add_row(f"{cell['users']:,}", f"{cell['points']:,}", *steps, *megabytes)
    return [table]
