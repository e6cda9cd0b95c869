"""The two files of a count: a request and its response, signed by the partner that wrote them.

    magic | Ed25519 signature, 64 bytes | length of the header, 4 bytes | header, JSON | points, 32 bytes each

The signature is over the header and the points, under a label of its own. A response names the hash of the request that
it answers. Integers are little-endian.
"""

import hashlib
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field
from pydantic.dataclasses import dataclass

from client.overlap.composition import Stated
from client.overlap.points import POINT_BYTES
from common.config import STRICT, parse_table
from common.errors import ConfigError, ProtocolError, UsageError
from common.secagg.keys import SIGNATURE_BYTES, sign, verify
from common.secagg.roster import Roster

OVERLAP_VERSION = 1
FEWEST_POINTS, MOST_POINTS = 2**10, 2**22

_MAGIC = b"hushclick-overlap\n"
_LENGTH_BYTES = 4
_MOST_HEADER_BYTES = 4096
_MOST_BYTES = len(_MAGIC) + SIGNATURE_BYTES + _LENGTH_BYTES + _MOST_HEADER_BYTES + 2 * MOST_POINTS * POINT_BYTES

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Session = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Points = Annotated[int, Field(ge=FEWEST_POINTS, le=MOST_POINTS)]
_Seconds = Annotated[int, Field(ge=0, lt=2**40)]


@dataclass(frozen=True, config=STRICT)
class Request:
    """What the header of a request says; the points are the asker's users, masked once, among random ones."""

    session: _Session  # fresh
    asker: _Name
    answerer: _Name
    roster: _Hash
    time: _Seconds  # Unix, UTC
    points: _Points
    least_users: Annotated[int, Field(ge=1)]  # the asker has at least so many, it says
    fold_case: bool
    key_check: _Hash  # tells that both have the same overlap.secret, and nothing of it
    kind: Literal["request"] = "request"
    version: Literal[1] = 1

    @property
    def num_points(self) -> int:
        """Points in the file."""
        return self.points


@dataclass(frozen=True, config=STRICT)
class Response:
    """What the header of a response says; first come the asker's points, masked twice, then the answerer's own."""

    session: _Session
    asker: _Name
    answerer: _Name
    roster: _Hash
    time: _Seconds
    request: _Hash  # of the request's whole file
    points: _Points
    own_points: _Points
    stated: Stated  # what the answerer's policy bounds, for the sum of both
    kind: Literal["response"] = "response"
    version: Literal[1] = 1

    @property
    def num_points(self) -> int:
        """Points in the file."""
        return self.points + self.own_points


Header = TypeVar("Header", Request, Response)


def bucket(users: int) -> int:
    """Returns to how many points so many users are filled up: a power of two, so that the size says no more.

    Raises:
        UsageError: for more users than a file may hold.
    """
    if users > MOST_POINTS:
        raise UsageError(f"{users} identifiers: overlaps are counted among at most {MOST_POINTS}")
    return max(FEWEST_POINTS, 1 << (users - 1).bit_length())


def write_file(header: Request | Response, points: list[bytes], identity: Ed25519PrivateKey) -> bytes:
    """Returns the bytes of a signed file."""
    text = json.dumps(asdict(header), separators=(",", ":")).encode()
    body = b"".join(points)
    signature = sign(identity, _label(header.kind), text, body)
    return _MAGIC + signature + len(text).to_bytes(_LENGTH_BYTES, "little") + text + body


def read_file(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        UsageError: where there is no such file.
        ProtocolError: for one that is too large to be one of these.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the one that the other partner sent")
    if path.stat().st_size > _MOST_BYTES:
        raise ProtocolError(f"{path}: over {_MOST_BYTES} bytes, which no overlap file has")
    return path.read_bytes()


def parse_file(data: bytes, kind: type[Header], sender: str, roster: Roster) -> tuple[Header, list[bytes]]:
    """Returns header and points of a file, checked as far as the file itself goes.

    Args:
        data: the file's bytes.
        kind: of header.
        sender: the role that signed: "asker" or "answerer".
        roster: this partner's own.

    Raises:
        ProtocolError: for another kind or version of file, another roster, a partner outside the roster, a signature
            that is not the sender's, or a length that is not what the header says.
    """
    signature, text, body = _parts(data)
    header = _header(text, kind)
    name = getattr(header, sender)
    if header.roster != roster.hash.hex():
        raise ProtocolError(
            f"written under the roster {header.roster[:12]}, and this partner's is {roster.hash.hex()[:12]}:"
            " both need the same roster file"
        )
    key = roster.public_key(roster.number(name))
    try:
        verify(key, signature, name, _label(header.kind), text, body)
    except ProtocolError:
        raise ProtocolError(
            f"not signed by {name} with its key of the roster: altered, or written by another"
        ) from None
    if len(body) != header.num_points * POINT_BYTES:
        raise ProtocolError(f"holds {len(body)} bytes of points, and its header says {header.num_points} points")
    return header, [body[start : start + POINT_BYTES] for start in range(0, len(body), POINT_BYTES)]


def require_distinct(points: list[bytes]) -> None:
    """Raises `ProtocolError` unless the points ascend, each once: one that is there twice would count twice."""
    if any(first >= second for first, second in pairwise(points)):
        raise ProtocolError("its points are not in ascending order, each once")


def hash_of(data: bytes) -> str:
    """Returns the SHA-256 of a whole file, hex."""
    return hashlib.sha256(data).hexdigest()


def _label(kind: str) -> str:
    return f"overlap {kind}"


def _parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns signature, header and points as bytes."""
    start = len(_MAGIC) + SIGNATURE_BYTES + _LENGTH_BYTES
    if len(data) < start or not data.startswith(_MAGIC):
        raise ProtocolError("not a file of `check --overlap`")
    length = int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
    if not length <= min(_MOST_HEADER_BYTES, len(data) - start):
        raise ProtocolError("cut short, or not a file of `check --overlap`")
    signature = data[len(_MAGIC) : len(_MAGIC) + SIGNATURE_BYTES]
    return signature, data[start : start + length], data[start + length :]


def _header(text: bytes, kind: type[Header]) -> Header:
    try:
        table: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("its header is not JSON") from None
    wanted = kind.kind
    if not isinstance(table, dict) or table.get("kind") != wanted:
        raise ProtocolError(f"not a {wanted} of version {OVERLAP_VERSION}; this step needs one")
    if table.get("version") != OVERLAP_VERSION:
        raise ProtocolError(
            f"a {wanted} of version {table.get('version')!r:.20}, and this release reads {OVERLAP_VERSION}: both"
            " partners need releases of one version; ask anew then"
        )
    try:
        return parse_table(kind, table)
    except ConfigError as error:
        raise ProtocolError(f"its header is not one of a {wanted}: {error}") from None
