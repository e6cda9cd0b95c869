"""The server's side of a round: it routes, counts and sums; it holds no secret of its own.

`Gathering` is stage 0; it ends in one `Tally` per group (usually one), which is stages 1 to 4. What a participant sends
is checked before it counts, so that whoever is at fault is named. None of these checks protects a participant: those
are the participant's own (client_role.py). Comments name the step of docs/SECAGG.md.

Legend: D coordinates of the body. U1 advertised, U2 sent shares, U3 sent a masked body.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError, TooFewPartners
from common.secagg.checks import check_signature
from common.secagg.coding import Coding
from common.secagg.grouping import draw_groups, require_coins
from common.secagg.keys import KEY_BYTES, require_good_key, verify
from common.secagg.parameters import RING, Shape, shape
from common.secagg.roster import Roster
from common.secagg.transcript import context_hash, pack_numbers, participants_hash, session_hash
from common.secagg.unmasking import Sealed, Unmasking
from common.secagg.wire import (
    BOX_BYTES,
    COMMITMENT_BYTES,
    SLOTS_BYTES,
    Advertisement,
    ConfirmTask,
    MaskTask,
    RevealTask,
    SessionId,
    Shares,
    ShareTask,
    UnmaskTask,
    Upload,
    parts_of,
)


@dataclass(frozen=True)
class Grid:
    """What all participants of a round code their contribution for.

    Attributes:
        length: coordinates of the body.
        bits, clip: see `Coding`.
        model_hash, config_hash: see `context_hash`.
    """

    length: int
    bits: int
    clip: float
    model_hash: bytes
    config_hash: bytes


class Gathering:
    """Stage 0: collects advertisements, and with groups the coins.

    Args:
        roster: the server's copy; participants trust only their own.
        session: which attempt at which round.
        cohort: participant numbers that are asked.
        colluders: assumed; every participant must assume the same.
        num_groups: 1 = one sum over all.
    """

    def __init__(
        self, roster: Roster, session: SessionId, cohort: Sequence[int], colluders: int, num_groups: int = 1
    ) -> None:
        self.session, self.cohort = session, tuple(sorted(cohort))
        self._roster, self._colluders, self._num_groups = roster, colluders, num_groups
        self._hash = session_hash(session.run_id, session.round, session.attempt, roster.hash)
        self._found: dict[int, Advertisement] = {}
        self._coins: dict[int, bytes] = {}

    def add(self, number: int, advertisement: Advertisement) -> None:
        """Takes one participant's advertisement; raises `ProtocolError` for one that peers would refuse."""
        if advertisement.number != number or number not in self.cohort:
            raise ProtocolError(f"an advertisement of participant {advertisement.number} from participant {number}")
        check_signature(self._roster, self._hash, advertisement)
        for key in (advertisement.mask_key, advertisement.channel_key):
            require_good_key(key, f"advertisement of {self._roster.member(number).name}")
        self._found[number] = advertisement

    @property
    def first(self) -> list[Advertisement]:
        """U1 so far, ascending."""
        return [self._found[number] for number in sorted(self._found)]

    def reveal_task(self) -> RevealTask:
        """Returns what asks for the coins; no advertisement may be added after it was sent."""
        return RevealTask(self.session, self.cohort, _blob(self.first), self._num_groups)

    def add_coin(self, number: int, coin: bytes) -> None:
        """Takes one participant's coin; raises `ProtocolError` for another than it committed to."""
        if len(coin) != KEY_BYTES:
            raise ProtocolError(f"a coin of {len(coin)} bytes, expected {KEY_BYTES}")
        require_coins(self._hash, [self._found[number]], [coin])
        self._coins[number] = coin

    @property
    def without_coin(self) -> frozenset[int]:
        """Who advertised and has not revealed its coin."""
        return frozenset(self._found.keys() - self._coins.keys())

    def tallies(self) -> list["Tally"]:
        """Returns one tally per group, stage 1 being next.

        Raises:
            TooFewPartners: when too few advertised, or a coin is missing.
        """
        first = self.first
        if self._num_groups == 1:
            return [
                Tally(self._roster, self.session, self.cohort, first, self._share_task(first, b""), self._colluders)
            ]
        missing = len(first) - len(self._coins)
        if missing:
            raise TooFewPartners(f"{missing} of {len(first)} participants did not reveal their coin: no groups")
        numbers = [advertisement.number for advertisement in first]
        coins = [self._coins[number] for number in numbers]
        first_hash = participants_hash("first", self._hash, _blob(first))
        found = []
        for group in draw_groups(first_hash, numbers, coins, self._num_groups):
            members = [self._found[number] for number in group]
            task = self._share_task(members, b"".join(coins))
            found.append(Tally(self._roster, self.session, self.cohort, members, task, self._colluders))
        return found

    def _share_task(self, members: list[Advertisement], coins: bytes) -> ShareTask:
        threshold = _shape(len(members), len(self.cohort), self._colluders).threshold
        return ShareTask(self.session, self.cohort, _blob(self.first), threshold, self._num_groups, coins)


class Tally:
    """Stages 1 to 4 of one sum; keeps a running sum and no masked body.

    The order of calls is that of the stages: `add_shares`, `mask_task`, `add_upload`, `confirm_task`,
    `add_confirmation`, unless it is `everyone` `unmask_task`, then `unmasking()` takes what is revealed.
    """

    def __init__(
        self,
        roster: Roster,
        session: SessionId,
        cohort: tuple[int, ...],
        first: list[Advertisement],
        share_task: ShareTask,
        colluders: int,
    ) -> None:
        self.session, self.share_task = session, share_task
        self.first = {advertisement.number: advertisement for advertisement in first}
        self.shape: Shape = _shape(len(first), len(cohort), colluders)
        self._roster, self._cohort = roster, cohort
        self._hash = session_hash(session.run_id, session.round, session.attempt, roster.hash)
        self._first_hash = participants_hash("first", self._hash, _blob(first))
        self._sealed: dict[int, Sealed] = {}
        self._uploads: dict[int, bytes] = {}  # number -> signature over what it masked within
        self._signatures: dict[int, bytes] = {}
        self.second: tuple[int, ...] = ()
        self.third: tuple[int, ...] = ()

    def add_shares(self, number: int, shares: Shares) -> None:
        """Takes one participant's boxes; raises `ProtocolError` for shapes or a signature that are wrong."""
        holders = tuple(sorted({*shares.recipients, number}))
        allowed = set(self.first) - {number}
        if number not in self.first or not set(shares.recipients) <= allowed or len(holders) != self.shape.num_holders:
            raise ProtocolError("shares for others than the round's participants")
        parts = pack_numbers(shares.recipients), shares.boxes, shares.commitments, shares.seed_commitment
        self._verify(number, shares.signature, "shares", "share", self._hash, self._first_hash, number, *parts)
        boxes = parts_of(shares.boxes, BOX_BYTES, "boxes", len(shares.recipients))
        commitments = parts_of(shares.commitments, COMMITMENT_BYTES, "commitments", len(holders))
        self._sealed[number] = Sealed(
            dict(zip(shares.recipients, boxes, strict=True)),
            dict(zip(holders, commitments, strict=True)),
            shares.seed_commitment,
        )

    def require_shares(self) -> None:
        """Raises `TooFewPartners` when fewer sent shares than a sum needs."""
        self._require(len(self._sealed), "sent shares")

    def fix_second(self, grid: Grid, weights: Mapping[int, float]) -> None:
        """Fixes U2 and the round's context.

        Args:
            grid: of the contributions to come.
            weights: participant -> public weight.

        Raises:
            TooFewPartners: when fewer sent shares than a sum needs.
        """
        self.require_shares()
        self.second = tuple(sorted(self._sealed))
        self._grid, self._weights = grid, weights
        self._second_hash = participants_hash("second", self._hash, pack_numbers(self.second))
        self.context = context_hash(
            *(self._hash, self._cohort, self._first_hash, grid.model_hash, grid.config_hash),
            *(self.shape.threshold, grid.length, RING, grid.bits, grid.clip),
        )
        self._sum_D = np.zeros(grid.length, np.uint32)
        self._slots = np.zeros(SLOTS_BYTES // 8, np.uint64)

    def mask_task(self, number: int) -> MaskTask:
        """Returns what asks one participant for its masked body."""
        senders = tuple(sender for sender in self.second if sender != number and number in self._sealed[sender].boxes)
        return MaskTask(
            self.session,
            self.second,
            senders,
            b"".join([self._sealed[sender].boxes[number] for sender in senders]),
            b"".join([self._sealed[sender].commitments[number] for sender in senders]),
            RING,
            self._grid.length,
            self._grid.bits,
            self._grid.clip,
            self._weights[number],
            self.shape.threshold,
            self._grid.model_hash,
            self._grid.config_hash,
        )

    def add_upload(self, number: int, pieces: Sequence[NDArray[np.uint32]], upload: Upload) -> None:
        """Adds one masked body to the running sum; raises `ProtocolError`, and adds nothing, for one that is wrong."""
        if number not in self.second or number in self._uploads or self.third:
            raise ProtocolError("a masked body that is not asked for, or a second one")
        if any(piece_D.dtype != np.uint32 or piece_D.ndim != 1 for piece_D in pieces):
            raise ProtocolError("a masked body of another type than uint32")
        if sum(map(len, pieces)) != self._grid.length or len(upload.slots) != SLOTS_BYTES:
            raise ProtocolError(
                f"a masked body of {sum(map(len, pieces))} coordinates, the round has {self._grid.length}"
            )
        hashed = hashlib.sha256()
        for piece_D in pieces:
            hashed.update(np.ascontiguousarray(piece_D, "<u4").data)
        bound = self.context, self._first_hash, self._second_hash, number, hashed.digest(), upload.slots
        self._verify(number, upload.signature, "masked body", "upload", *bound)
        self._verify(number, upload.masked, "masked body", "masked", *bound[:4])
        start = 0
        for piece_D in pieces:
            self._sum_D[start : start + len(piece_D)] += piece_D
            start += len(piece_D)
        self._slots += np.frombuffer(upload.slots, "<u8")
        self._uploads[number] = upload.masked

    def fix_third(self) -> None:
        """Fixes U3; raises `TooFewPartners` when fewer sent a masked body than a sum needs."""
        self._require(len(self._uploads), "sent a masked body")
        self.third = tuple(sorted(self._uploads))
        self._third_hash = participants_hash("third", self._hash, pack_numbers(self.third))

    @property
    def everyone(self) -> bool:
        """Whether all of U2 survive, each a holder of all: who confirms reveals at once then, without stage 4."""
        return self.shape.complete and self.third == self.second

    def confirm_task(self) -> ConfirmTask:
        """Returns what asks every survivor to sign who survives, and for its shares where it is `everyone`."""
        alive = set(self.third)
        masked = b"".join([self._uploads[number] for number in self.third]) if self.everyone else b""
        dropped = tuple(number for number in self.second if number not in alive)
        return ConfirmTask(self.session, self.third, dropped, masked)

    def add_confirmation(self, number: int, signature: bytes) -> None:
        """Takes one survivor's signature; raises `ProtocolError` for a bad one."""
        bound = self.context, self._first_hash, self._second_hash, self._third_hash
        self._verify(number, signature, "consistency", "confirm", *bound)
        if number not in self.third:
            raise ProtocolError("a consistency signature by one who does not survive")
        self._signatures[number] = signature

    def confirmed(self) -> tuple[int, ...]:
        """Returns who can be asked to unmask: those who confirmed, and for whom enough of their holders did.

        Raises:
            TooFewPartners: when they are fewer than a sum needs.
        """
        able = tuple(
            number for number in sorted(self._signatures) if len(self._signers(number)) >= self.shape.threshold
        )
        # Where everyone holds shares of everyone, all who confirmed are able, or none: then it is these that lack.
        count = len(self._signatures) if self.shape.complete else len(able)
        self._require(count, "confirmed the survivors", self.shape.threshold)
        return able

    def unmask_task(self, number: int) -> UnmaskTask:
        """Returns what asks one participant for its shares: no more signatures than it needs."""
        signers = self._signers(number)[: self.shape.threshold]
        others = () if self.shape.complete else self._survivors_held(number)
        return UnmaskTask(
            self.session,
            signers,
            b"".join([self._signatures[signer] for signer in signers]),
            b"".join([self._uploads[owner] for owner in others]),
        )

    def _survivors_held(self, number: int) -> tuple[int, ...]:
        """Returns the other survivors of whose secrets one participant holds shares."""
        return tuple(owner for owner in self.third if number in self._sealed[owner].boxes)

    def unmasking(self) -> Unmasking:
        """Returns what takes the shares and strips the masks: all that a restarted server needs to finish."""
        return Unmasking(
            session=self._hash,
            context=self.context,
            threshold=self.shape.threshold,
            coding=Coding(self._grid.bits, self._grid.clip),
            mask_keys={number: self.first[number].mask_key for number in self.second},
            sealed={number: self._sealed[number] for number in self.second},
            third=self.third,
            expected_units={number: self._roster.member(number).units for number in self.third},
            sum_D=self._sum_D,
            slots=self._slots,
        )

    def _signers(self, number: int) -> tuple[int, ...]:
        """Returns who signed, among the surviving holders of one participant's shares."""
        return tuple(sorted(self._sealed[number].commitments.keys() & self._signatures.keys()))

    def _verify(self, number: int, signature: bytes, what: str, label: str, *parts: bytes | int) -> None:
        who = f"{what} of {self._roster.member(number).name}"
        verify(self._roster.public_key(number), signature, who, label, *parts)

    def _require(self, count: int, did: str, least: int | None = None) -> None:
        least = least or self.shape.least_survivors
        if count < least:
            raise TooFewPartners(
                f"{count} of {len(self.first)} participants {did}, {least} are needed:"
                f" {least - count} too few; nothing is unmasked"
            )


def _shape(num_participants: int, num_asked: int, colluders: int) -> Shape:
    try:
        return shape(num_participants, colluders)
    except ProtocolError as error:
        raise TooFewPartners(f"{num_participants} of {num_asked} advertised: {error}") from None


def _blob(first: Sequence[Advertisement]) -> bytes:
    return b"".join([advertisement.to_bytes() for advertisement in first])
