"""A Flower `Grid` in one process: the deployed ServerApp and ClientApp, the same messages, without the network.

Messages are handed to the ClientApp on a pool of threads, several clients at a time. Contents cross as Flower's own
records, so what a message cannot carry over a network it cannot carry here.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from flwr.app import DEFAULT_TTL, Context, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_APP_RAISED = 2  # Flower's code for an exception in a handler
SUPERLINK_NODE_ID = 1  # Flower's number for the server itself
_WAIT_SECONDS = 0.5

ClientCall = Callable[[Message, Context], Message]


class InProcessGrid(Grid):
    """Delivers messages to `client_app` on threads; replies wait, by the id of what they answer, until pulled.

    Args:
        client_app: the ClientApp (or anything called the same way).
        num_nodes: nodes exist from the start, with ids from 2; node n is partition n - 2.
        run_config: what every client's context holds as `run_config`.
        jobs: clients that run at a time; 0 = one per core.
        run_id: Flower's number of the run.
    """

    def __init__(
        self,
        client_app: ClientCall,
        num_nodes: int,
        run_config: Mapping[str, Any],
        jobs: int = 0,
        run_id: int = 1,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, 1
        self._run = Run.create_empty(run_id)
        self._client_app = client_app
        first = SUPERLINK_NODE_ID + 1
        self._contexts = {
            first + number: self._context(first + number, number, num_nodes, dict(run_config))
            for number in range(num_nodes)
        }
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._closed = self._interrupted = False
        self._pool = ThreadPoolExecutor(jobs or os.cpu_count() or 1, thread_name_prefix="client")

    def _context(self, node: int, number: int, num_nodes: int, run_config: dict[str, Any]) -> Context:
        place: dict[str, Any] = {"partition-id": number, "num-partitions": num_nodes}
        return Context(self._run.run_id, node, place, RecordDict(), run_config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the clients that are running finish, drops the others, and gives the threads back."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def interrupt(self) -> None:
        """Makes the server stop at its next exchange with a KeyboardInterrupt; safe to call from a signal handler.

        A KeyboardInterrupt that Python raises wherever the main thread happens to be can be swallowed (in a finaliser,
        in a library's own `except`), and the run would go on.
        """
        self._interrupted = True

    def raise_if_interrupted(self) -> None:
        """Raises the KeyboardInterrupt that `interrupt` asked for."""
        if self._interrupted:
            raise KeyboardInterrupt

    def run_server(self, server_app: ServerApp, run_config: Mapping[str, Any]) -> None:
        """Calls the ServerApp as Flower does, in this thread, and returns when it is done."""
        self.raise_if_interrupted()
        server_app(self, Context(self._run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))

    def set_run(self, run: Run) -> None:
        """Takes the run that messages belong to."""
        self._run = run
        TaskIdentity.run_id = run.run_id

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl or DEFAULT_TTL, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues messages for their clients and returns their ids, in the same order."""
        self.raise_if_interrupted()
        ids = []
        for message in messages:
            sent = _with_id(message, f"message-{next(self._numbers)}")
            self._pool.submit(self._deliver, sent)
            ids.append(sent.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns, and forgets, the replies that are there; waits a moment for the first one."""
        self.raise_if_interrupted()
        wanted = set(message_ids)
        with self._arrived:
            self._arrived.wait_for(lambda: not wanted.isdisjoint(self._replies), _WAIT_SECONDS)
            return [self._replies.pop(message_id) for message_id in wanted & self._replies.keys()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes messages and returns the replies that arrive within `timeout` seconds (None = wait for all)."""
        waiting = set(self.push_messages(messages))
        with self._arrived:
            self._arrived.wait_for(lambda: waiting <= self._replies.keys(), timeout)
            return [self._replies.pop(message_id) for message_id in waiting & self._replies.keys()]

    def _deliver(self, message: Message) -> None:
        if self._closed or _expired(message):  # nobody waits for it any more: no client works, or spends, for it
            return
        reply = self._ask(message)
        if _expired(message):  # nobody would ever pull it
            return
        with self._arrived:
            self._replies[message.metadata.message_id] = reply
            self._arrived.notify_all()

    def _ask(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(CLIENT_APP_RAISED, "no such node"), reply_to=message)
        try:
            return self._client_app(message, context)
        except Exception as error:  # as Flower does: the server sees an error, the other clients go on
            return Message(Error(CLIENT_APP_RAISED, type(error).__name__), reply_to=message)


def _expired(message: Message) -> bool:
    """Whether a message's time to live is over, after which Flower too drops it and its reply."""
    return time.time() > message.metadata.created_at + message.metadata.ttl


def _with_id(message: Message, message_id: str) -> Message:
    """Returns the message under an id, which a SuperLink would give it."""
    meta = message.metadata
    metadata = Metadata(
        run_id=meta.run_id,
        message_id=message_id,
        src_node_id=meta.src_node_id,
        dst_node_id=meta.dst_node_id,
        reply_to_message_id="",
        group_id=meta.group_id,
        created_at=meta.created_at,
        ttl=meta.ttl,
        message_type=meta.message_type,
        src_task_id=meta.src_task_id,
        dst_task_id=meta.dst_task_id,
    )
    return Message(metadata=metadata, content=message.content)  # type: ignore[call-overload,no-any-return]
