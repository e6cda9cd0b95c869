"""The ClientApp that Flower starts at a partner: it decodes a message, passes it on, and sends the answer back.

It holds no data, no model, no key. Errors that leave it are the project's own texts, which hold no data; those about
the click log, which hold its counts and bounds, stay in the partner's own log of `hushclick.partner`; anything else
leaves only as its type's name.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.partner import PartnerConfig, load_partner
from client.worker import Worker
from common.errors import BudgetExhausted, HushclickError, ProtocolError
from common.messages import BUDGET_EXHAUSTED, REFUSED, CatalogueTask, JoinTask, StatisticsTask, TrainTask
from common.runfolder import RunFolder
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

app = ClientApp()
log = logging.getLogger("hushclick.partner")

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


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Says who this partner is."""
    return _answer(message, context, lambda worker, body: worker.join(JoinTask.from_record(body)).to_record())


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Gives exact item counts, where privacy is off."""
    return _answer(
        message, context, lambda worker, body: worker.statistics(StatisticsTask.from_record(body)).to_record()
    )


@app.query("catalogue")
def catalogue(message: Message, context: Context) -> Message:
    """Takes the summed item counts."""

    def take(worker: Worker, body: RecordDict) -> RecordDict:
        worker.catalogue(CatalogueTask.from_record(body))
        return RecordDict()

    return _answer(message, context, take)


@app.train("update")
def update(message: Message, context: Context) -> Message:
    """Trains for one round and gives the contribution, unmasked: only for partners whose method is plain."""
    return _answer(message, context, lambda worker, body: worker.train(TrainTask.from_record(body)).to_record())


@app.query("advertise")
def advertise(message: Message, context: Context) -> Message:
    """Stage 0 of secure aggregation: gives fresh keys."""
    return _prepare(message, context, AdvertiseTask)


@app.query("reveal")
def reveal(message: Message, context: Context) -> Message:
    """Stage 0b: gives the coin."""
    return _prepare(message, context, RevealTask)


@app.query("share")
def share(message: Message, context: Context) -> Message:
    """Stage 1: gives sealed shares."""
    return _prepare(message, context, ShareTask)


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """Stage 2: trains for one round and gives the contribution, masked."""
    return _mask(message, context, TrainTask)


@app.query("mask")
def mask_statistics(message: Message, context: Context) -> Message:
    """Stage 2: gives exact item counts, masked, where privacy is off."""
    return _mask(message, context, StatisticsTask)


@app.query("confirm")
def confirm(message: Message, context: Context) -> Message:
    """Stage 3: signs who survives."""
    return _answer(message, context, lambda worker, body: stage_record(worker.confirm(stage_of(ConfirmTask, body))))


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Stage 4: gives shares of what is needed to strip the masks of the sum."""
    return _answer(message, context, lambda worker, body: stage_record(worker.unmask(stage_of(UnmaskTask, body))))


def _prepare(message: Message, context: Context, kind: type[AdvertiseTask | RevealTask | ShareTask]) -> Message:
    """Answers a stage before MASK."""
    return _answer(message, context, lambda worker, body: stage_record(worker.prepare(stage_of(kind, body))))


def _mask(message: Message, context: Context, kind: type[TrainTask | StatisticsTask]) -> Message:
    """Answers MASK with a contribution to one kind of work."""

    def give(worker: Worker, body: RecordDict) -> RecordDict:
        task, work = stage_of(MaskTask, body, alone=False), kind.from_record(without_stage(body))
        return upload_record(*worker.mask(task, work))

    return _answer(message, context, give)


def _answer(message: Message, context: Context, ask: Callable[[Worker, RecordDict], RecordDict]) -> Message:
    """Returns the worker's answer, or an error reply that holds no data."""
    try:
        run_folder, number = context.run_config["run-folder"], context.node_config["partition-id"]
        worker = worker_at(RunFolder(Path(str(run_folder))).partner(int(number)))
        task, ahead = take_ahead(message.content)
        answer = ask(worker, task)
        return Message(answer if ahead is None else _with_next(worker, answer, ahead), reply_to=message)
    except BudgetExhausted as error:
        log.warning("%s", error)  # what is spent and what is allowed is the partner's own business
        return Message(Error(BUDGET_EXHAUSTED, "this partner's privacy budget is exhausted"), reply_to=message)
    except ProtocolError as error:  # about the message that the server itself sent
        return Message(Error(REFUSED, str(error)), reply_to=message)
    except HushclickError as error:  # paths, bounds and counts of this partner stay in its own log
        log.error("%s", error)
        text = f"refused ({type(error).__name__}); this partner's own log says why"
        return Message(Error(REFUSED, text), reply_to=message)
    except Exception as error:  # whatever it says may hold data: only its kind leaves
        return Message(Error(REFUSED, f"internal error: {type(error).__name__}"), reply_to=message)


def _with_next(worker: Worker, answer: RecordDict, ahead: Ahead) -> RecordDict:
    """Returns the answer with that to the next round's stage; a refusal of the next round does not touch this one."""
    try:
        return with_ahead(answer, worker.prepare(ahead))
    except HushclickError as error:
        log.warning("next round: %s", error)
    except Exception as error:  # what it says may hold data, and this round's answer must not be lost over the next's
        log.warning("next round: %s", type(error).__name__)
    return answer
