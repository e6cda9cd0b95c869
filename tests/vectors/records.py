"""Rounds as JSON and back: bytes are hex, tuples are lists, messages are objects with the field names of `wire.py`."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from vectors.play import Cast

from common.secagg.parameters import Policy
from common.secagg.roster import Member, Roster
from common.secagg.wire import (
    Advertisement,
    ConfirmTask,
    MaskTask,
    Revealed,
    SessionId,
    Shares,
    ShareTask,
    UnmaskTask,
    Upload,
)

FOLDER = Path(__file__).parent
TASKS: dict[str, type] = {"share": ShareTask, "mask": MaskTask, "confirm": ConfirmTask, "unmask": UnmaskTask}
REPLIES: dict[str, type] = {
    "advertise": Advertisement,
    "share": Shares,
    "mask": Upload,
    "confirm": bytes,
    "unmask": Revealed,
    "revealed": Revealed,  # with "confirm", where all of U2 survive
}


def plain(value: Any) -> Any:
    """Returns a message, array or bytes as JSON holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def rich(kind: Any, value: Any) -> Any:
    """Returns the message of a kind that `plain` made a JSON object of."""
    if kind is bytes:
        return bytes.fromhex(value)
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**{field.name: rich(field.type, value[field.name]) for field in fields(kind)})
    return tuple(value) if isinstance(value, list) else value


def words(values: list[int]) -> NDArray[np.uint32]:
    """Returns a body as the ring holds it."""
    return np.array(values, np.uint32)


def read(name: str) -> dict[str, Any]:
    """Returns a vector file."""
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def text_of(vector: dict[str, Any]) -> str:
    """Returns the text of a vector file: one field a line, short lists on one line."""
    return _text(vector, 0) + "\n"


def _text(value: Any, depth: int) -> str:
    flat = json.dumps(value)
    if not isinstance(value, dict) or len(flat) < 100 - depth:
        return flat
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(key)}: {_text(item, depth + 1)}" for key, item in value.items())
    return f"{{\n{inner}\n{' ' * depth}}}"


def cast_of(vector: dict[str, Any], policy: dict[str, Any]) -> Cast:
    """Returns the participants of a vector, with what `policy` changes of theirs."""
    roster = Roster(tuple(Member(each["name"], each["public_key"], each["weight"]) for each in vector["roster"]))
    identities = {
        int(number): Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        for number, seed in vector["identities"].items()
    }
    return Cast(identities, roster, Policy(**(vector["policy"] | policy)))


def session_of(vector: dict[str, Any]) -> SessionId:
    """Returns which round a vector is of."""
    found: SessionId = rich(SessionId, vector["session"])
    return found
