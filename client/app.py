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

from client.partner import load_partner
from client.worker import Worker
from common.errors import BudgetExhausted, HushclickError, ProtocolError
from common.messages import BUDGET_EXHAUSTED, REFUSED, CatalogueTask, JoinTask, StatisticsTask, TrainTask
from common.runfolder import RunFolder

app = ClientApp()
log = logging.getLogger("hushclick.partner")

_workers: dict[Path, Worker] = {}
_workers_lock = threading.Lock()


def worker_at(folder: Path) -> Worker:
    """Returns the worker of the partner whose `partner.toml` is in this folder; one per process."""
    with _workers_lock:
        if folder not in _workers:
            _workers[folder] = Worker(load_partner(folder / "partner.toml"))
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
    """Trains for one round and gives the contribution."""
    return _answer(message, context, lambda worker, body: worker.train(TrainTask.from_record(body)).to_record())


def _answer(message: Message, context: Context, ask: Callable[[Worker, RecordDict], RecordDict]) -> Message:
    """Returns the worker's answer, or an error reply that holds no data."""
    try:
        run_folder, number = context.run_config["run-folder"], context.node_config["partition-id"]
        worker = worker_at(RunFolder(Path(str(run_folder))).partner(int(number)))
        return Message(ask(worker, message.content), reply_to=message)
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
