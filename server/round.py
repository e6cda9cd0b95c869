"""One exchange with a cohort: send, poll, take replies as they come, name who failed.

Every stage of a round is one exchange (server/secure.py puts them in order). `collect_sum` is method "plain": the
server sees each contribution for the moment in which it is added.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.contribution import LocalDelta, RunningSum
from common.errors import ProtocolError
from common.message_types import BUDGET_EXHAUSTED, NOT_READY
from common.messages import TrainReply, TrainTask

_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.1


@dataclass
class Exchange:
    """What became of one exchange: bytes both ways, and why some partners gave nothing."""

    bytes_down: int = 0
    bytes_up: int = 0
    failures: dict[int, str] = field(default_factory=dict)  # node id -> reason
    exhausted: set[int] = field(default_factory=set)  # node ids whose budget refused
    not_ready: set[int] = field(default_factory=set)  # node ids whose worker does not run, or not yet
    anchors: dict[int, str] = field(default_factory=dict)  # node id -> what it gave of its ledger


def exchange(
    grid: Grid,
    message_type: str,
    contents: Mapping[int, RecordDict],
    group: str,
    timeout_seconds: float,
    take: Callable[[int, RecordDict], None],
) -> Exchange:
    """Sends one message of a type to each node, as `exchange_letters` does."""
    letters = {node: (message_type, content) for node, content in contents.items()}
    return exchange_letters(grid, letters, group, timeout_seconds, take)


def exchange_letters(
    grid: Grid,
    letters: Mapping[int, tuple[str, RecordDict]],
    group: str,
    timeout_seconds: float,
    take: Callable[[int, RecordDict], None],
) -> Exchange:
    """Sends one message (type, content) per node and hands each reply to `take` as it arrives; replies are not kept.

    A node that answers with an error, answers nonsense (`take` raises `ProtocolError`) or does not answer in time is
    a failure with its reason; the others go on.
    """
    outcome = Exchange()
    messages = [
        Message(content, node, kind, ttl=timeout_seconds, group_id=group) for node, (kind, content) in letters.items()
    ]
    outcome.bytes_down = sum(_num_bytes(content) for _, content in letters.values())
    deadline = time.monotonic() + timeout_seconds
    node_of = _push(grid, messages, outcome)
    pause = _FIRST_PAUSE_SECONDS
    while node_of and time.monotonic() < deadline:
        replies = list(grid.pull_messages(list(node_of)))
        for reply in replies:
            node = node_of.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                _take_reply(outcome, node, reply, take)
        pause = _FIRST_PAUSE_SECONDS if replies else min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if node_of and not replies:
            time.sleep(pause)
    for node in node_of.values():
        outcome.failures[node] = f"no answer within {timeout_seconds:g} seconds"
    return outcome


def _push(grid: Grid, messages: list[Message], outcome: Exchange) -> dict[str, int]:
    """Sends the messages and returns message id -> node; a message that Flower did not take is a failure.

    Flower gives an empty id for a message that it refuses, and no ids at all where the whole push is too large.
    """
    nodes = [message.metadata.dst_node_id for message in messages]
    ids = list(grid.push_messages(messages)) if messages else []
    if len(ids) != len(nodes):
        ids = [""] * len(nodes)
    node_of = {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}
    outcome.failures |= dict.fromkeys(set(nodes) - set(node_of.values()), "its message could not be sent")
    return node_of


def collect_sum(
    grid: Grid,
    message_type: str,
    tasks: Mapping[int, TrainTask],
    round_number: int,
    total: RunningSum,
    timeout_seconds: float,
) -> Exchange:
    """Adds the cohort's contributions to `total` as they arrive: memory does not grow with partners."""
    anchors: dict[int, str] = {}

    def take(node: int, content: RecordDict) -> None:
        reply = TrainReply.from_record(content)
        if reply.round != round_number:
            raise ProtocolError(f"a reply to round {reply.round} in round {round_number}")
        if isinstance(reply.contribution, LocalDelta) and reply.contribution.weight != tasks[node].weight:
            raise ProtocolError("a reply with another weight than the roster's")
        total.add(reply.contribution)
        anchors[node] = reply.anchor

    contents = {node: task.to_record() for node, task in tasks.items()}
    outcome = exchange(grid, message_type, contents, f"round-{round_number}", timeout_seconds, take)
    outcome.anchors = anchors
    return outcome


def _take_reply(outcome: Exchange, node: int, reply: Message, take: Callable[[int, RecordDict], None]) -> None:
    if reply.has_error():
        outcome.failures[node] = reply.error.reason or f"error {reply.error.code}"
        if reply.error.code == BUDGET_EXHAUSTED:
            outcome.exhausted.add(node)
        if reply.error.code == NOT_READY:
            outcome.not_ready.add(node)
        return
    outcome.bytes_up += _num_bytes(reply.content)
    try:
        take(node, reply.content)
    except ProtocolError as error:
        outcome.failures[node] = f"its reply was refused: {error}"


def _num_bytes(content: RecordDict) -> int:
    """Returns the bytes of a record's arrays and strings, without framing."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    texts = sum(_config_bytes(value) for record in content.config_records.values() for value in record.values())
    return arrays + texts


def _config_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Iterable):
        return sum(_config_bytes(item) for item in value)
    return 8
