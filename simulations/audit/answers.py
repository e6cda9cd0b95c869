"""What anybody who sees a partner's answers can read of them: every number, and the size of all else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from client.app import app as client_app


@dataclass(frozen=True)
class Answer:
    """One answer of one partner without its secrets: the numbers and texts that are in the clear, and all sizes."""

    node: int
    message_type: str
    clear: tuple[tuple[str, Any], ...]


def listening(heard: Callable[[Answer], None]) -> Callable[[Message, Context], Message]:
    """Returns the deployed ClientApp, every answer of which is handed on to `heard` as well."""

    def answer(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        meta = message.metadata
        heard(Answer(meta.dst_node_id, meta.message_type, tuple(in_the_clear(reply))))
        return reply

    return answer


def in_the_clear(reply: Message) -> list[tuple[str, Any]]:
    """Returns what can be read of a reply.

    Texts and bytes are keys, seals, signatures, anchors and masked words, random in every run; an error's text is
    none of these.
    """
    if reply.has_error():
        error: Error = reply.error
        return [("error", (error.code, error.reason))]
    return sorted(_numbers(reply.content))


def _numbers(content: RecordDict) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, record in content.items():
        if isinstance(record, ConfigRecord | MetricRecord):
            found += [(f"{name}/{key}", _shown(value)) for key, value in record.items()]
        else:
            found += [(f"{name}/{key}", _size(array)) for key, array in record.items()]
    return found


def _size(array: Any) -> str:
    """Returns all that an array shows but its bytes."""
    return f"{array.dtype} {tuple(array.shape)} {len(array.data)} bytes"


def _shown(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} of {len(value)}"
    return tuple(_shown(one) for one in value)
