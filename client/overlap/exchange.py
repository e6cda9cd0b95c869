"""The count of shared users in three steps and two files: A asks, B answers, A counts.

1. A sends a H(x) of its users, among random points, in ascending order.
2. B sends a b H(x) of those, and b H(y) of its own users among random points, each in ascending order, and forgets b.
3. A makes a b H(y) of B's and counts how many are among the first.

A learns the number of shared users and the power of two above B's users; B the power of two above A's. This holds where
both follow the steps; docs/PRIVACY.md says what one that does not can learn, and why B answers so seldom.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.overlap.answers import Answer, AnswerLog
from client.overlap.composition import Stated, stated
from client.overlap.files import (
    OVERLAP_VERSION,
    Request,
    Response,
    bucket,
    hash_of,
    parse_file,
    read_file,
    require_distinct,
    write_file,
)
from client.overlap.identifiers import read_identifiers, session_key
from client.overlap.points import masked, masked_again, new_secret, padded
from client.participant import own_membership
from client.partner import PartnerConfig
from client.roundstore import SealedRoundStore
from client.sent import exclusive
from common.errors import HushclickError, ProtocolError, UsageError
from common.runfolder import write_atomically
from common.secagg.keys import Random
from common.secagg.roster import Roster
from common.secagg.transcript import digest

_SESSION_BYTES = 16
_MOST_DAYS = 30  # that a request may lie before it is answered
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Counted:
    """What the asker learnt."""

    shared: int
    own_users: int
    answerer: str
    answerer_points: int  # a power of two that is at least its users
    session: str
    stated: Stated


@dataclass(frozen=True)
class Overlap:
    """One partner's side of counts of shared users.

    Formal guarantees:
        - nothing of an identifier is in a file but its masked point, and no file says which users are shared;
        - a request is answered once, a partner at most every `overlap.days_between_answers`, and each answer is on this
          partner's disk before it leaves;
        - a response is counted by the partner that asked, only where it answers that very request, and until `close`.

    Args:
        config: the partner's own.
        random: source of all randomness.
        now: Unix seconds.
    """

    config: PartnerConfig
    random: Random = os.urandom
    now: Callable[[], float] = time.time
    identity: Ed25519PrivateKey = field(init=False, repr=False)
    roster: Roster = field(init=False, repr=False)

    def __post_init__(self) -> None:
        identity, roster = own_membership(self.config)
        object.__setattr__(self, "identity", identity)
        object.__setattr__(self, "roster", roster)

    def ask(self, peer: str, out: Path) -> Path:
        """Step 1: writes a request to another partner and returns its path.

        Raises:
            UsageError: where `overlap.partners` does not name it, or this partner has too few users.
        """
        self._require_partner(peer)
        with self._alone():  # so that whoever is erased meanwhile is in no request that stays open
            users = self._users()
            session = self.random(_SESSION_BYTES).hex()
            key = session_key(self.config.overlap, session, self.config.name, peer)
            secret, size = new_secret(self.random), bucket(len(users))
            header = Request(
                session=session,
                asker=self.config.name,
                answerer=peer,
                roster=self.roster.hash.hex(),
                time=int(self.now()),
                points=size,
                least_users=self.config.overlap.least_users,
                fold_case=self.config.overlap.fold_case,
                key_check=_key_check(key),
            )
            data = write_file(header, padded(masked(secret, key, users), size, self.random), self.identity)
            kept = {
                "version": OVERLAP_VERSION,
                "secret": secret.hex(),
                "answerer": peer,
                "request": hash_of(data),
                "users": len(users),
                "points": size,
            }
            self._store.put(session, json.dumps(kept).encode())
            return _written(out / f"{_stem(header)}.request", data)

    def answer(self, path: Path, out: Path) -> Path:
        """Step 2: writes the response to a request and returns its path.

        Raises:
            ProtocolError: for a request that is not for this partner, was altered or answered, or that this partner's
                own `[overlap]` does not allow.
            LedgerError: where the log of answers is damaged.
        """
        data = read_file(path)
        header, points = parse_file(data, Request, "asker", self.roster)
        log = AnswerLog(self._folder / "answers.jsonl")
        with self._alone():
            self._require_allowed(header)
            log.require_new(header.session, header.asker, int(self.now()), self.config.overlap.days_between_answers)
            require_distinct(points)
            key = session_key(self.config.overlap, header.session, header.asker, header.answerer)
            if header.key_check != _key_check(key):
                raise ProtocolError(f"{header.asker} has another overlap.secret, or only one of the two has one")
            answered, own_size = self._answered(header, points, key, hash_of(data))
            log.append(
                Answer(
                    time=int(self.now()),
                    session=header.session,
                    asker=header.asker,
                    request=hash_of(data),
                    response=hash_of(answered),
                    points=header.points,
                    own_points=own_size,
                )
            )
            return _written(out / f"{_stem(header)}.response", answered)

    def count(self, path: Path) -> Counted:
        """Step 3: returns what a response says; `close` its session once that is written down.

        Raises:
            ProtocolError: for a response that was altered, is of another pair, or answers no open request.
        """
        header, points = parse_file(read_file(path), Response, "answerer", self.roster)
        if header.asker != self.config.name:
            raise ProtocolError(f"answers {header.asker}, and this partner is {self.config.name}")
        with self._alone():
            blob = self._store.get(header.session)
            if blob is None:
                raise ProtocolError("answers no open request of this partner: counted already, or asked elsewhere")
            kept = json.loads(blob)
            if (version := kept.get("version")) != OVERLAP_VERSION:
                raise ProtocolError(
                    f"answers a request that a release of version {version!r:.20} kept, this one reads"
                    f" {OVERLAP_VERSION}: ask anew"
                )
            if (header.answerer, header.request, header.points) != (kept["answerer"], kept["request"], kept["points"]):
                raise ProtocolError(f"does not answer the request that was sent to {kept['answerer']} in this session")
            theirs, own = points[header.points :], points[: header.points]
            require_distinct(own)
            require_distinct(theirs)
            shared = len(set(own).intersection(masked_again(bytes.fromhex(kept["secret"]), theirs)))
        return Counted(shared, kept["users"], header.answerer, header.own_points, header.session, header.stated)

    def close(self, session: str) -> None:
        """Forgets the secret of a session: its response is refused from now on."""
        with self._alone():
            self._store.erase(session)

    def _answered(self, header: Request, points: list[bytes], key: bytes, request: str) -> tuple[bytes, int]:
        """Returns the bytes of a response, and how many points of this partner are in it."""
        users, secret = self._users(), new_secret(self.random)
        size = bucket(len(users))
        response = Response(
            session=header.session,
            asker=header.asker,
            answerer=header.answerer,
            roster=header.roster,
            time=int(self.now()),
            request=request,
            points=header.points,
            own_points=size,
            stated=stated(self.config.privacy),
        )
        own = padded(masked(secret, key, users), size, self.random)
        return write_file(response, masked_again(secret, points) + own, self.identity), size

    def _require_allowed(self, header: Request) -> None:
        """Raises `ProtocolError` for a request to another partner, or one that this partner's policy refuses."""
        policy = self.config.overlap
        if header.answerer != self.config.name or header.asker == self.config.name:
            raise ProtocolError(f"asks {header.answerer} for {header.asker}, and this partner is {self.config.name}")
        if header.asker not in policy.partners:
            raise ProtocolError(
                f"{header.asker} asks, and overlap.partners of this partner does not name it; nothing was read for it"
            )
        age = (self.now() - header.time) / _DAY_SECONDS
        if not -1 <= age <= _MOST_DAYS:
            raise ProtocolError(f"written {age:.0f} days ago: at most {_MOST_DAYS} (and not in the future); ask anew")
        if header.fold_case != policy.fold_case:
            raise ProtocolError(f"{header.asker} has overlap.fold_case = {str(header.fold_case).lower()}; agree on one")
        if header.least_users < policy.least_users:
            raise ProtocolError(
                f"{header.asker} asks for {header.least_users} users or more, and overlap.least_users ="
                f" {policy.least_users} here: a count among few tells who they are"
            )

    def _require_partner(self, peer: str) -> None:
        if peer == self.config.name or peer not in self.config.overlap.partners:
            named = ", ".join(self.config.overlap.partners) or "nobody"
            raise UsageError(
                f"--with {peer}: overlap.partners of this partner names {named}; both must name each other"
            )
        self.roster.number(peer)

    def _users(self) -> list[str]:
        """Returns this partner's identifiers, each once."""
        users = read_identifiers(self.config)
        if len(users) < self.config.overlap.least_users:
            raise ProtocolError(
                f"{len(users)} users here, and overlap.least_users = {self.config.overlap.least_users}: a count among"
                " few tells who they are"
            )
        return users

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the counts of this partner against its other processes; training goes on."""
        with exclusive(self._folder):
            yield

    @property
    def _store(self) -> SealedRoundStore:
        return SealedRoundStore(self._folder, self.identity)

    @property
    def _folder(self) -> Path:
        return Path(self.config.state) / "overlap"


def _key_check(key: bytes) -> str:
    return digest("overlap key check", key).hex()


def _stem(header: Request) -> str:
    return f"overlap-{header.asker}-{header.answerer}-{header.session[:8]}"


def _written(path: Path, data: bytes) -> Path:
    """Writes a new file and returns its path; one that is there is not overwritten."""
    if path.exists():
        raise HushclickError(f"{path}: is there already; move it away first")
    write_atomically(path, data)
    return path
