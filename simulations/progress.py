"""Live progress of a run: a bar with rounds, AUC, epsilon and time left on a terminal, silence elsewhere."""

import logging
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.config import Config
from common.privacy.accounting import rounded_up
from simulations.spending import planned_epsilon

RUN_LOGGER = "hushclick.run"


def new_bar(console: Console) -> Progress:
    """Returns a bar of tasks with their `facts`, drawn on a terminal only."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class LiveProgress(logging.Handler):
    """Draws what the server says of its rounds; a context manager that leaves the terminal as it found it."""

    def __init__(self, console: Console, config: Config) -> None:
        super().__init__(logging.INFO)
        self.config = config  # replaced once noise is calibrated
        self._console = console
        self._bar = new_bar(console)
        self._encode: TaskID | None = None
        self._rounds: TaskID | None = None
        self._floors: TaskID | None = None
        self._previous_level, self._propagated = logging.NOTSET, True

    def __enter__(self) -> Self:
        logger = logging.getLogger(RUN_LOGGER)
        self._previous_level, self._propagated = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        logger = logging.getLogger(RUN_LOGGER)
        logger.removeHandler(self)
        logger.setLevel(self._previous_level)
        logger.propagate = self._propagated

    def encoding(self, done: int, total: int) -> None:
        """Shows how many distinct texts are encoded."""
        if self._encode is None:
            self._encode = self._bar.add_task("encoding texts", total=total, facts="")
        self._bar.update(self._encode, completed=done, total=total)

    def floor(self, text: str) -> None:
        """Shows which floor is being computed."""
        if self._floors is None:
            self._floors = self._bar.add_task("floors", total=None, facts=text)
        self._bar.update(self._floors, facts=text)

    def say(self, text: str) -> None:
        """Prints one line above the bar, on a terminal."""
        if self._console.is_terminal:
            self._bar.print(f"  {text}", style="dim", highlight=False, markup=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one fact from the server's log."""
        fact: dict[str, Any] = getattr(record, "fact", {})
        if fact.get("fact") == "begun":
            self._rounds = self._bar.add_task(
                "rounds",
                total=self.config.round.num_rounds,
                completed=fact["round"],
                facts=f"{fact['partners']} partners",
            )
        elif fact.get("fact") == "round" and self._rounds is not None:
            self._bar.update(self._rounds, completed=fact["round"], facts=self._facts(fact))
            if fact.get("error"):
                self.say(f"round {fact['round']}: {fact['error']}")
        elif fact.get("fact") == "left_out":
            self.say(record.getMessage())

    def _facts(self, fact: dict[str, Any]) -> str:
        parts = []
        if "auc" in fact:
            low, high = fact.get("intervals", {}).get("auc", (None, None))
            parts.append(f"AUC {fact['auc']:.4f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else ""))
        if "auc" in fact.get("partners", {}) and fact["partners"]["auc"] is not None:
            parts.append(f"at the partners {fact['partners']['auc']:.4f}")
        epsilon, privacy = planned_epsilon(self.config, fact["round"]), self.config.privacy
        unit = "label" if privacy.mode == "label" else privacy.unit
        parts.append(
            "no privacy" if epsilon is None else f"epsilon {rounded_up(epsilon)} per {unit}, delta {privacy.delta:g}"
        )
        return "  ".join(parts)
