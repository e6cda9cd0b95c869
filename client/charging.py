"""The order in which a contribution comes about: charged, made, kept, and only then counted as given.

Legend: D parameters, or entries of a histogram.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from client.budget import Budget
from client.sent import SentFile
from common.errors import BudgetExhausted
from common.histogram_messages import EvaluationTask, HistogramTask
from common.messages import TrainTask
from common.privacy.events import DpEvent
from common.secagg.wire import SessionId


def require_affordable(
    what: str, sent: SentFile, session: SessionId, budget: Budget, event: Callable[[], DpEvent]
) -> None:
    """Refuses to begin a histogram that the budget does not hold: better now than after others have sent theirs.

    Raises:
        BudgetExhausted: with what it would be for; never for one that was answered, which costs nothing again.
    """
    if not sent.answered(session.round) and budget.affordable_rounds(event()) == 0:
        raise BudgetExhausted(f"another {what} does not fit the budget")


def charged_once(
    task: TrainTask | HistogramTask | EvaluationTask,
    shared: bytes,
    sent: SentFile,
    budget: Budget,
    event: Callable[[], DpEvent],
    make: Callable[[], NDArray[Any]],
    room: Sequence[DpEvent] = (),
) -> NDArray[Any]:
    """Returns what was sent for this very task, or a reserved, made and persisted new contribution [D].

    Formal guarantees:
        - `make` is called only after the ledger holds the event: a crash later leaves it charged;
        - a task that was answered gets the same numbers, and nothing is charged or made.

    Args:
        task: what is asked.
        shared: hash of what else must be the same at all partners.
        sent: the file of the run.
        budget: the partner's own.
        event: what making it costs.
        make: makes it.
        room: what the budget must still hold after it.

    Raises:
        BudgetExhausted: before anything is made, where it would exceed the partner's budget.
        ProtocolError: for a replay, or another task than was answered.
    """
    earlier_D = sent.reuse(task, shared)
    if earlier_D is not None:
        return earlier_D
    reservation = budget.reserve(event(), room)
    value_D = make()
    sent.keep(task, shared, value_D)
    budget.commit(reservation)
    return value_D
