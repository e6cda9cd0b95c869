"""What a partner answers to each type of message: decoded, put to the worker, encoded.

In a simulation the ClientApp calls this in its own process; in a deployment the worker's process does, behind its
socket. Errors that leave are the project's own texts, which hold no data; those about the click log, which hold its
counts and bounds, stay in the partner's own log of `hushclick.partner`; anything else leaves only as its type's name.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from flwr.app import RecordDict

from client.partner import PartnerConfig, load_partner
from client.rpc.refused import Refused
from client.work import Work
from client.worker import Worker
from common.errors import BudgetExhausted, HushclickError, ProtocolError
from common.histogram_messages import EvaluationTask, HistogramTask, ReleaseTask
from common.message_types import (
    BUDGET_EXHAUSTED,
    QUERY_ADVERTISE,
    QUERY_ANCHOR,
    QUERY_CATALOGUE,
    QUERY_CONFIRM,
    QUERY_EVALUATE,
    QUERY_HISTOGRAM,
    QUERY_JOIN,
    QUERY_MASK,
    QUERY_MODEL,
    QUERY_RELEASE,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_STATISTICS,
    QUERY_UNMASK,
    REFUSED,
    TRAIN_MASK,
    TRAIN_UPDATE,
)
from common.messages import AnchorTask, CatalogueTask, JoinTask, ModelTask, StatisticsTask, TrainTask
from common.stage_messages import (
    AdvertiseTask,
    Ahead,
    ConfirmTask,
    MaskTask,
    RevealTask,
    ShareTask,
    UnmaskTask,
    stage_of,
    stage_record,
    take_ahead,
    upload_record,
    with_ahead,
    without_stage,
)

log = logging.getLogger("hushclick.partner")

Handler = Callable[[Worker, RecordDict], RecordDict]

_workers: dict[Path, Worker] = {}
_workers_lock = threading.Lock()


def worker_at(folder: Path) -> Worker:
    """Returns the worker of the partner whose `partner.toml` is in this folder; one per process."""
    return _worker(folder, Worker)


def place_worker(folder: Path, make: Callable[[PartnerConfig], Worker]) -> None:
    """Makes the worker of a partner another one than `Worker`, where there is none yet (simulated attackers)."""
    _worker(folder, make)


def _worker(folder: Path, make: Callable[[PartnerConfig], Worker]) -> Worker:
    with _workers_lock:
        if folder not in _workers:
            _workers[folder] = make(load_partner(folder / "partner.toml"))
        return _workers[folder]


def forget_workers() -> None:
    """Drops every worker of this process, with its data (a simulation is over)."""
    with _workers_lock:
        _workers.clear()


def reply(worker: Callable[[], Worker], message_type: str, content: RecordDict) -> RecordDict | Refused:
    """Returns the worker's answer to a message of one type, or a refusal that holds no data; raises nothing."""
    try:
        if message_type not in _HANDLERS:
            raise ProtocolError(f"a message of type {message_type!r:.80}: this partner answers none such")
        task, ahead = take_ahead(content)
        answer = _HANDLERS[message_type](worker(), task)
        return answer if ahead is None else _with_next(worker(), answer, ahead)
    except BudgetExhausted as error:
        log.warning("%s", error)  # what is spent and what is allowed is the partner's own business
        return Refused(BUDGET_EXHAUSTED, "this partner's privacy budget is exhausted")
    except ProtocolError as error:  # about the message that the server itself sent
        return Refused(REFUSED, str(error))
    except HushclickError as error:  # paths, bounds and counts of this partner stay in its own log
        log.error("%s", error)
        return Refused(REFUSED, f"refused ({type(error).__name__}); this partner's own log says why")
    except Exception as error:  # whatever it says may hold data: only its kind leaves
        return Refused(REFUSED, f"internal error: {type(error).__name__}")


def _with_next(worker: Worker, answer: RecordDict, ahead: Ahead) -> RecordDict:
    """Returns the answer with that to the next round's stage; a refusal of the next round does not touch this one."""
    try:
        return with_ahead(answer, worker.prepare(ahead))
    except HushclickError as error:
        log.warning("next round: %s", error)
    except Exception as error:  # what it says may hold data, and this round's answer must not be lost over the next's
        log.warning("next round: %s", type(error).__name__)
    return answer


def _join(worker: Worker, body: RecordDict) -> RecordDict:
    return worker.join(JoinTask.from_record(body)).to_record()


def _anchor(worker: Worker, body: RecordDict) -> RecordDict:
    worker.anchor(AnchorTask.from_record(body))
    return RecordDict()


def _statistics(worker: Worker, body: RecordDict) -> RecordDict:
    return worker.statistics(StatisticsTask.from_record(body)).to_record()


def _catalogue(worker: Worker, body: RecordDict) -> RecordDict:
    worker.catalogue(CatalogueTask.from_record(body))
    return RecordDict()


def _release(worker: Worker, body: RecordDict) -> RecordDict:
    worker.release(ReleaseTask.from_record(body))
    return RecordDict()


def _update(worker: Worker, body: RecordDict) -> RecordDict:
    return worker.train(TrainTask.from_record(body)).to_record()


def _prepare(kind: type[AdvertiseTask | RevealTask | ShareTask]) -> Handler:
    """Answers a stage before MASK."""
    return lambda worker, body: stage_record(worker.prepare(stage_of(kind, body)))


def _mask(kind: type[Work]) -> Handler:
    """Answers MASK with a contribution to one kind of work."""

    def give(worker: Worker, body: RecordDict) -> RecordDict:
        task, work = stage_of(MaskTask, body, alone=False), kind.from_record(without_stage(body))
        return upload_record(*worker.mask(task, work))

    return give


def _confirm(worker: Worker, body: RecordDict) -> RecordDict:
    return stage_record(worker.confirm(stage_of(ConfirmTask, body)))


def _unmask(worker: Worker, body: RecordDict) -> RecordDict:
    return stage_record(worker.unmask(stage_of(UnmaskTask, body)))


def _model(worker: Worker, body: RecordDict) -> RecordDict:
    worker.receive(ModelTask.from_record(body))
    return RecordDict()


_HANDLERS: dict[str, Handler] = {
    QUERY_JOIN: _join,  # who this partner is
    QUERY_ANCHOR: _anchor,  # what the server last saw of this partner's ledger
    QUERY_STATISTICS: _statistics,  # exact item counts, where privacy is off
    QUERY_CATALOGUE: _catalogue,  # the summed item counts
    QUERY_RELEASE: _release,  # the summed private statistics
    TRAIN_UPDATE: _update,  # a contribution, unmasked: only for partners whose method is plain
    QUERY_ADVERTISE: _prepare(AdvertiseTask),  # stage 0 of secure aggregation
    QUERY_REVEAL: _prepare(RevealTask),  # stage 0b
    QUERY_SHARE: _prepare(ShareTask),  # stage 1
    TRAIN_MASK: _mask(TrainTask),  # stage 2
    QUERY_MASK: _mask(StatisticsTask),  # stage 2, of exact item counts
    QUERY_HISTOGRAM: _mask(HistogramTask),  # stage 2, of private statistics
    QUERY_EVALUATE: _mask(EvaluationTask),  # stage 2, of scores
    QUERY_CONFIRM: _confirm,  # stage 3
    QUERY_UNMASK: _unmask,  # stage 4
    QUERY_MODEL: _model,  # the run's signed model
}
