"""Live progress of a sweep: cells and the rounds of the one that runs, on a terminal; elsewhere a line per cell."""

import logging
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from simulations.progress import RUN_LOGGER, new_bar
from simulations.sweep_grid import Cell


class SweepProgress(logging.Handler):
    """Draws what cells and rounds are done; a context manager."""

    def __init__(self, console: Console, num_cells: int) -> None:
        super().__init__(logging.INFO)
        self._console, self._total, self._finished = console, num_cells, 0
        self._bar = new_bar(console)
        self._cells = self._bar.add_task("cells", total=num_cells, facts="")
        self._rounds = self._bar.add_task("rounds", total=None, facts="")
        self._cell: Cell | None = None

    def __enter__(self) -> Self:
        logging.getLogger(RUN_LOGGER).addHandler(self)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        logging.getLogger(RUN_LOGGER).removeHandler(self)

    def begin(self, cell: Cell) -> None:
        """Shows which cell runs."""
        self._cell = cell
        self._bar.update(self._cells, facts=cell.name)
        self._bar.reset(self._rounds, total=cell.config.round.num_rounds, facts="")

    def done(self, record: dict[str, Any]) -> None:
        """Shows what a cell came to."""
        self._finished += 1
        figures = f"AUC {record['auc']:.4f}" if record["state"] == "done" else f"{record['state']}: {record['error']}"
        self._bar.update(self._cells, completed=self._finished, facts=f"{record['cell']}: {figures}")
        if not self._console.is_terminal:
            text = f"{self._finished} of {self._total}  {record['cell']}  {figures}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def encoding(self, done: int, total: int) -> None:
        """Shows how many distinct texts are encoded."""
        self._bar.update(self._rounds, completed=done, total=total, facts="encoding texts")

    def say(self, text: str) -> None:
        """Shows which floor is being computed."""
        self._bar.update(self._rounds, facts=f"floor: {text}")

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one fact from the server's log."""
        fact: dict[str, Any] = getattr(record, "fact", {})
        if fact.get("fact") == "round" and self._cell is not None:
            self._bar.update(self._rounds, completed=fact["round"], total=self._cell.config.round.num_rounds, facts="")
