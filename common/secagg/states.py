"""What a participant keeps between the steps of a round; all of it is secret, none of it shows in a repr.

U1 advertised, U2 sent shares, U3 sent a masked body.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from common.errors import ProtocolError
from common.secagg.masking import MaskKeys
from common.secagg.wire import MaskTask


@dataclass(frozen=True)
class Advertised:
    """State after stage 0."""

    session: bytes
    mask_secret: bytes = field(repr=False)
    channel_secret: bytes = field(repr=False)
    coin: bytes = field(repr=False)
    own: bytes  # the advertisement as sent
    revealed: bytes = b""  # for which cohort, U1 and number of groups the coin was revealed


@dataclass(frozen=True)
class Shared:
    """State after stage 1."""

    session: bytes
    mask_secret: bytes = field(repr=False)
    channel_secret: bytes = field(repr=False)
    cohort: tuple[int, ...]
    first: bytes  # U1 of this participant's group: advertisements, ascending
    holders: tuple[int, ...]  # of its own shares, itself among them
    threshold: int
    seed: bytes = field(repr=False)
    own_shares: bytes = field(repr=False)  # of b and of s, its own


@dataclass(frozen=True)
class Opened:
    """State between opening the boxes of stage 2 and masking: all checks are done, nothing has left."""

    shared: Shared
    task: MaskTask
    context: bytes
    held: Mapping[int, bytes] = field(repr=False)  # owner -> share of b and share of s
    bad_dealers: tuple[int, ...]
    masks: tuple[MaskKeys, ...] = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """State after stage 2; the secrets of stages 0 and 1 are gone."""

    session: bytes
    context: bytes
    first_hash: bytes
    second: tuple[int, ...]
    holders: tuple[int, ...]
    threshold: int
    least_survivors: int
    complete: bool  # whether everyone masks with everyone
    held: Mapping[int, bytes] = field(repr=False)
    bad_dealers: tuple[int, ...]
    survivors: tuple[int, ...] = ()  # after stage 3


STATE_VERSION = 1

State = Advertised | Shared | Masked
_KINDS: dict[str, type[State]] = {kind.__name__: kind for kind in (Advertised, Shared, Masked)}


def dump_state(state: State) -> bytes:
    """Returns a state as JSON; whoever stores it seals it."""
    return json.dumps(
        {"version": STATE_VERSION, "kind": type(state).__name__}
        | {f.name: _plain(getattr(state, f.name)) for f in fields(state)}
    ).encode()


def load_state(blob: bytes) -> State:
    """Returns the state in what `dump_state` returned; raises `ProtocolError` for anything else."""
    try:
        table = json.loads(blob)
        if (version := table.pop("version")) != STATE_VERSION:
            raise ProtocolError(
                f"a round's stored state of version {version!r:.20}, and this release reads {STATE_VERSION}; the round"
                " is over for this participant, the next one begins anew"
            )
        kind = _KINDS[table.pop("kind")]
        return kind(**{name: _rich(value) for name, value in table.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProtocolError("a round's stored state is damaged; the round is over for this participant") from None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, Mapping):
        return {"held": [[key, item.hex()] for key, item in value.items()]}
    return list(value) if isinstance(value, tuple) else value


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        return {key: bytes.fromhex(item) for key, item in value["held"]}
    return tuple(value) if isinstance(value, list) else value
