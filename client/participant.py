"""One partner in secure aggregation: the pure steps of `common.secagg`, each run once, also across restarts.

What must never happen twice is written down before anything leaves: which (run, round, attempt) was advertised, and
which round of a run was unmasked. The round's secrets lie in a `RoundStore` and are erased with the round.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.identity import load_identity
from client.partner import PartnerConfig
from client.roundstore import MemoryRoundStore, RoundStore, SealedRoundStore
from common.errors import ConfigError, LedgerError, ProtocolError
from common.runfolder import write_atomically
from common.secagg import client_role
from common.secagg.checks import Member
from common.secagg.graph import MOST_COMPLETE
from common.secagg.keys import Random
from common.secagg.roster import Roster, load_roster
from common.secagg.states import Advertised, Masked, Opened, Shared, State, dump_state, load_state
from common.secagg.transcript import session_hash
from common.secagg.wire import (
    Advertisement,
    ConfirmTask,
    MaskTask,
    Revealed,
    RevealTask,
    SessionId,
    Shares,
    ShareTask,
    UnmaskTask,
    Upload,
)

# Every attempt shows the server a new graph of neighbours, or new groups; it may not try for long (docs/SECAGG.md).
MOST_ATTEMPTS = 16

REGISTER_VERSION = 1  # a register that says none is of version 1

_AFTER = {Advertised: "ADVERTISE", Shared: "SHARE", Masked: "MASK"}
S = TypeVar("S", Advertised, Shared, Masked)


class Participant:
    """A partner's side of every round; a call that refuses changes nothing.

    Formal guarantees:
        - an attempt at a round is advertised once, and no later attempt follows once the round was unmasked;
        - each stage of an attempt answers once, and in order; shares of one attempt leave once;
        - a participant that restarted refuses what it answered before.

    Args:
        member: number, identity, roster and policy.
        folder: the partner's state folder.
        store: of the round's secrets.
        random: source of all randomness.
        noised: whether all that this partner contributes carries noise.
    """

    def __init__(
        self, member: Member, folder: Path, store: RoundStore, random: Random = os.urandom, *, noised: bool = False
    ) -> None:
        self._member, self._folder, self._store, self._random = member, folder, store, random
        self._noised = noised

    def advertise(self, session: SessionId) -> Advertisement:
        """Stage 0: writes down that this attempt begins, then returns fresh keys."""
        register = _Register(self._folder, session.run_id)
        register.require_new(session)
        state, advertisement = client_role.advertise(self._member, session, self._random)
        for name in register.begin(session, state.session.hex()):
            self._store.erase(name)
        self._keep(state)
        return advertisement

    def reveal(self, task: RevealTask) -> bytes:
        """Stage 0b: returns the coin, once."""
        state = self._state(task.session, Advertised)
        if state.revealed:
            raise ProtocolError("the coin of this attempt was revealed already")
        after, coin = client_role.reveal(self._member, state, task)
        self._keep(after)
        return coin

    def share(self, task: ShareTask) -> Shares:
        """Stage 1: returns sealed shares.

        A refusal where neighbours were drawn ends the attempt: a server that could have them drawn again would choose
        among draws.
        """
        state = self._state(task.session, Advertised)
        try:
            after, shares = client_role.share(self._member, state, task, self._random)
        except ProtocolError:
            if len(task.advertisements) > MOST_COMPLETE * Advertisement.SIZE:
                self._store.erase(state.session.hex())
            raise
        self._keep(after)
        return shares

    def open(self, task: MaskTask, model_hash: bytes, config_hash: bytes) -> Opened:
        """Stage 2, first half: checks the task and opens the boxes; nothing is kept and nothing leaves.

        Args:
            task: the server's.
            model_hash, config_hash: of the work that this participant was really given.
        """
        if (task.model_hash, task.config_hash) != (model_hash, config_hash):
            raise ProtocolError("the round's model or configuration hash is not that of the task beside it")
        return client_role.open_boxes(self._member, self._state(task.session, Shared), task)

    def upload(self, opened: Opened, coded: Iterator[NDArray[np.uint32]], *, once: bool) -> tuple[list[bytes], Upload]:
        """Stage 2, second half: returns the masked pieces, little-endian uint32, and what ends them.

        Args:
            opened: what `open` returned.
            coded: the contribution.
            once: no other attempt at this round after this one: where the noise is shared, a part of it must not be in
                two sums.
        """
        if once:
            _Register(self._folder, opened.task.session.run_id).close(opened.task.session.round)
        masking = client_role.Masking(self._member, opened)
        pieces = [piece_D.astype("<u4", copy=False).tobytes() for piece_D in masking.pieces(coded)]
        after, upload = masking.finish()
        self._keep(after)
        return pieces, upload

    def confirm(self, task: ConfirmTask) -> tuple[bytes, Revealed | None]:
        """Stage 3: returns the consistency signature, and where all of U2 survive the shares of stage 4, if asked to.

        The round is final here before a share leaves, as in stage 4: who reveals at once signs no other survivors.

        Round 0 of exact statistics is summed over the whole roster or not at all: two sums over sets that differ by one
        partner would show that partner's counts. Where there is noise, it is what hides them, and partners may be lost
        like in any round.
        """
        exact = task.session.round == 0 and not self._noised
        if exact and len(task.survivors) != len(self._member.roster):
            raise ProtocolError(
                f"statistics of {len(task.survivors)} partners: all {len(self._member.roster)} of the roster must take"
                " part"
            )
        if task.masked:
            signature, revealed = client_role.confirm_all(self._member, self._state(task.session, Masked), task)
            self._finish(task.session)
            return signature, revealed
        after, signature = client_role.confirm(self._member, self._state(task.session, Masked), task)
        self._keep(after)
        return signature, None

    def unmask(self, task: UnmaskTask) -> Revealed:
        """Stage 4: the round is final here before a share leaves, and its secrets are gone."""
        state = self._state(task.session, Masked)
        revealed = client_role.unmask(self._member, state, task)
        self._finish(task.session)
        return revealed

    def expire(self, before: float) -> int:
        """Forgets secrets that were kept before a Unix time: a run that died ends no round; returns how many."""
        return self._store.expire(before)

    def _finish(self, session: SessionId) -> None:
        for name in _Register(self._folder, session.run_id).finish(session.round):
            self._store.erase(name)

    def _keep(self, state: State) -> None:
        self._store.put(state.session.hex(), dump_state(state))

    def _state(self, session: SessionId, kind: type[S]) -> S:
        hashed = session_hash(session.run_id, session.round, session.attempt, self._member.roster.hash)
        # The register decides, not the store: what a disk brings back after a power cut is not answered again.
        under_way = _Register(self._folder, session.run_id).is_under_way(session, hashed.hex())
        blob = self._store.get(hashed.hex()) if under_way else None
        if blob is None:
            raise ProtocolError(
                f"round {session.round}, attempt {session.attempt}: not under way here (never begun, already unmasked,"
                " or another roster)"
            )
        state = load_state(blob)
        if not isinstance(state, kind):
            raise ProtocolError(f"out of order: this attempt is after {_AFTER[type(state)]}, not {_AFTER[kind]}")
        return state


def participant_of(config: PartnerConfig) -> tuple[Participant | None, str]:
    """Returns this partner's side of secure aggregation, and its roster's hash; none where the method is plain.

    Raises:
        ConfigError: for a key or a roster that cannot be read, or do not belong together.
    """
    if config.aggregation.method == "plain":
        return None, ""
    identity, roster = own_membership(config)
    member = Member(roster.number(config.name), identity, roster, config.aggregation.policy())
    state, store = Path(config.state), MemoryRoundStore()
    disk = SealedRoundStore(state / "secrets", identity)
    kept, noised = disk if config.aggregation.round_secrets == "disk" else store, config.privacy.noised
    return Participant(member, state, kept, noised=noised), roster.hash.hex()


def own_membership(config: PartnerConfig) -> tuple[Ed25519PrivateKey, Roster]:
    """Returns this partner's identity and its roster, of which it is a member under that key.

    Raises:
        ConfigError: for a key or a roster that is not set, cannot be read, or do not belong together.
    """
    if not (config.identity and config.roster):
        raise ConfigError(f"{config.name}: identity or roster is unset; partners know each other by both")
    identity, roster = load_identity(Path(config.identity)), load_roster(Path(config.roster))
    public, names = identity.public_key().public_bytes_raw().hex(), [member.name for member in roster.members]
    if config.name not in names or roster.member(roster.number(config.name)).public_key != public:
        raise ConfigError(
            f"{config.roster}: has no member {config.name} with the public key {public} of {config.identity}"
        )
    return identity, roster


class _Register:
    """Which attempts of one run were begun, and which round is final; on disk before anything leaves."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._path = folder / f"rounds-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.json"
        try:
            found = json.loads(self._path.read_bytes())
            _require_version(found.get("version", REGISTER_VERSION), self._path)
            self._final, self._closed = int(found["final"]), int(found["closed"])
            self._begun = {int(key): _Begun(*value) for key, value in found["begun"].items()}
        except FileNotFoundError:
            self._final, self._closed, self._begun = -1, -1, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise LedgerError(
                f"{self._path.name}: damaged; which rounds were answered is unknown, so none is answered any more"
            ) from None

    def require_new(self, session: SessionId) -> None:
        """Raises `ProtocolError` for an attempt that was begun before, one too many, or at a round that is final."""
        if session.round <= self._final:
            raise ProtocolError(f"round {session.round}: round {self._final} was unmasked already; it is final")
        if session.round <= self._closed:
            raise ProtocolError(
                f"round {session.round}: this partner sent its part of the noise; there is no other attempt"
            )
        last = self._begun.get(session.round)
        if last is None:
            return
        if session.attempt <= last.attempt:
            raise ProtocolError(
                f"round {session.round}, attempt {session.attempt}: attempt {last.attempt} was begun already"
            )
        if last.tries >= MOST_ATTEMPTS:
            raise ProtocolError(f"round {session.round}: {last.tries} attempts were begun, there is no other")

    def begin(self, session: SessionId, name: str) -> list[str]:
        """Writes down an attempt; returns the names of what earlier ones left behind."""
        tries = self._begun[session.round].tries if session.round in self._begun else 0
        # A round ahead may be under way beside this one; what is older is over.
        self._final = max(self._final, session.round - 2)
        left = self._drop(lambda number: number <= self._final or number == session.round)
        self._begun[session.round] = _Begun(session.attempt, name, tries + 1)
        self._write()
        return left

    def close(self, round_number: int) -> None:
        """Writes down that no other attempt at a round may begin; the one under way goes on."""
        self._closed = max(self._closed, round_number)
        self._write()

    def finish(self, round_number: int) -> list[str]:
        """Writes down that a round is final; returns the names of what it and those before it leave behind."""
        self._final = max(self._final, round_number)
        left = self._drop(lambda number: number <= self._final)
        self._write()
        return left

    def is_under_way(self, session: SessionId, name: str) -> bool:
        """Whether this very attempt is the last one begun at a round that is not final."""
        begun = self._begun.get(session.round)
        return begun is not None and (begun.attempt, begun.name) == (session.attempt, name)

    def _drop(self, over: Callable[[int], bool]) -> list[str]:
        left = [begun.name for number, begun in self._begun.items() if over(number)]
        self._begun = {number: begun for number, begun in self._begun.items() if not over(number)}
        return left

    def _write(self) -> None:
        facts = {
            "version": REGISTER_VERSION,
            "final": self._final,
            "closed": self._closed,
            "begun": {number: astuple(begun) for number, begun in self._begun.items()},
        }
        write_atomically(self._path, json.dumps(facts).encode())


def final_rounds(folder: Path) -> dict[str, int]:
    """Returns hash of a run's id -> its last round that was unmasked, of every register that can be read."""
    found: dict[str, int] = {}
    for path in folder.glob("rounds-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found[path.stem.removeprefix("rounds-")] = int(json.loads(path.read_bytes())["final"])
    return found


def _require_version(version: object, path: Path) -> None:
    if version != REGISTER_VERSION:
        raise LedgerError(
            f"{path.name}: version {version!r:.20}, and this release reads {REGISTER_VERSION}; go on with the release"
            " that wrote it, or a later one"
        )


@dataclass(frozen=True)
class _Begun:
    attempt: int
    name: str  # of its state in the round store
    tries: int  # attempts at this round so far

    def __post_init__(self) -> None:
        if not (type(self.attempt) is int and type(self.name) is str and type(self.tries) is int):
            raise ValueError
