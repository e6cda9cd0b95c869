"""A participant's five steps, as pure functions of its state, the server's message and randomness.

Each takes the state that the step before returned, checks all that the server says, and returns the next state with
what to send. That a step runs once, also across restarts, is for the caller to hold (client/participant.py). Comments
name the step of docs/SECAGG.md.

Legend: D coordinates of the body. U1 advertised, U2 sent shares, U3 sent a masked body.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.secagg import shamir
from common.secagg.checks import (
    Member,
    check_grid,
    check_second,
    check_signature,
    checked_first,
    checked_shape,
    group_of,
    peers_of,
    revealed_for,
)
from common.secagg.commitments import commit_seed, commitment
from common.secagg.graph import choose
from common.secagg.grouping import commit_coin
from common.secagg.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Random,
    agree,
    derive,
    load_secret,
    open_box,
    public_key,
    seal,
    sign,
    verify,
)
from common.secagg.masking import Masker, mask_slots, pair_mask, self_mask
from common.secagg.parameters import shape
from common.secagg.roster import WEIGHT_UNIT
from common.secagg.states import Advertised, Masked, Opened, Shared
from common.secagg.transcript import (
    context_hash,
    digest,
    pack_numbers,
    participants_hash,
    require_ascending,
    session_hash,
)
from common.secagg.wire import (
    BOX_BYTES,
    COMMITMENT_BYTES,
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
    advertisements_of,
    parts_of,
)


def advertise(member: Member, session: SessionId, random: Random) -> tuple[Advertised, Advertisement]:
    """Stage 0: fresh keys for one session."""
    hashed = session_hash(session.run_id, session.round, session.attempt, member.roster.hash)
    mask_secret, channel_secret, coin = random(KEY_BYTES), random(KEY_BYTES), random(KEY_BYTES)
    keys = public_key(mask_secret), public_key(channel_secret), commit_coin(hashed, member.number, coin)
    signature = sign(member.identity, "advertise", hashed, member.number, *keys)
    advertisement = Advertisement(member.number, *keys, signature)
    return Advertised(hashed, mask_secret, channel_secret, coin, advertisement.to_bytes()), advertisement


def reveal(member: Member, state: Advertised, task: RevealTask) -> tuple[Advertised, bytes]:
    """Stage 0b, with groups only: the coin, once all commitments are fixed."""
    checked_first(member, state, task.cohort, task.advertisements)
    drawn_for = revealed_for(state.session, task.cohort, task.advertisements, task.num_groups)
    return replace(state, revealed=drawn_for), state.coin


def share(member: Member, state: Advertised, task: ShareTask, random: Random) -> tuple[Shared, Shares]:
    """Stage 1: shares of the self-mask seed b and of the mask secret s, on separate polynomials.

    Raises:
        ProtocolError: for whatever docs/SECAGG.md says is refused here; nothing is shared then.
    """
    first = checked_first(member, state, task.cohort, task.advertisements)
    first = group_of(member, state, task, first)
    numbers = tuple(advertisement.number for advertisement in first)
    own_shape = checked_shape(member, len(numbers), task.threshold)
    for advertisement in first if own_shape.complete else ():
        check_signature(member.roster, state.session, advertisement)
    # U1 is fixed: only now are neighbours drawn, so that nobody can choose them.
    chosen = set(choose(numbers, member.number, own_shape.num_holders - 1, random))
    recipients = [advertisement for advertisement in first if advertisement.number in chosen]
    for advertisement in () if own_shape.complete else recipients:
        check_signature(member.roster, state.session, advertisement)
    holders = tuple(sorted(chosen | {member.number}))
    seed = random(KEY_BYTES)
    pairs = [
        part_b + part_s
        for part_b, part_s in zip(
            shamir.split(seed, holders, own_shape.threshold, random),
            shamir.split(state.mask_secret, holders, own_shape.threshold, random),
            strict=True,
        )
    ]
    blob = b"".join([advertisement.to_bytes() for advertisement in first])
    own_shares = pairs[holders.index(member.number)]
    after = Shared(
        state.session,
        state.mask_secret,
        state.channel_secret,
        task.cohort,
        blob,
        holders,
        own_shape.threshold,
        seed,
        own_shares,
    )
    return after, _sealed(member, after, recipients, pairs)


def _sealed(member: Member, state: Shared, recipients: list[Advertisement], pairs: list[bytes]) -> Shares:
    """Returns one box per recipient, commitments to every share and to the seed, and a signature over all."""
    first_hash = participants_hash("first", state.session, state.first)
    boxes, secret = [], load_secret(state.channel_secret)
    for advertisement in recipients:
        peer = advertisement.number
        key = derive(agree(secret, advertisement.channel_key), state.session, "channel", member.number, peer)
        associated = digest("box", state.session, first_hash, member.number, peer)
        boxes.append(seal(key, pairs[state.holders.index(peer)], associated))
    commitments = [
        commitment(state.session, member.number, holder, pair)
        for holder, pair in zip(state.holders, pairs, strict=True)
    ]
    numbers = tuple(advertisement.number for advertisement in recipients)
    seed_commitment = commit_seed(state.session, member.number, state.seed)
    parts = pack_numbers(numbers), b"".join(boxes), b"".join(commitments), seed_commitment
    signature = sign(member.identity, "share", state.session, first_hash, member.number, *parts)
    return Shares(numbers, parts[1], parts[2], seed_commitment, signature)


def open_boxes(member: Member, state: Shared, task: MaskTask) -> Opened:
    """Stage 2, before any data is touched: checks the whole task, opens the boxes, fixes the context.

    Raises:
        ProtocolError: for whatever docs/SECAGG.md says is refused here.
    """
    first = {advertisement.number: advertisement for advertisement in advertisements_of(state.first)}
    own_shape = shape(len(first), member.policy.colluders)
    check_grid(member, task, len(first))
    if task.threshold != state.threshold:
        raise ProtocolError(f"threshold = {task.threshold}: the shares were made for {state.threshold}")
    check_second(member, task.second, first, own_shape)
    peers = peers_of(member, state, task, own_shape)
    for number in peers if not own_shape.complete else ():
        check_signature(member.roster, state.session, first[number])
    held, bad = _open_all(member, state, task, first)
    context = context_hash(
        state.session,
        state.cohort,
        participants_hash("first", state.session, state.first),
        task.model_hash,
        task.config_hash,
        task.threshold,
        task.length,
        task.ring,
        task.bits,
        task.clip,
    )
    masks = [self_mask(state.seed, context, member.number)]
    secret = load_secret(state.mask_secret)
    masks += [pair_mask(secret, first[peer].mask_key, context, member.number, peer) for peer in peers]
    return Opened(state, task, context, held, bad, tuple(masks))


class Masking:
    """Stage 2, the masked body piece by piece, then what ends it; no piece is kept."""

    _length = 0

    def __init__(self, member: Member, opened: Opened) -> None:
        self._member, self._opened, self._hash = member, opened, hashlib.sha256()

    def pieces(self, coded: Iterator[NDArray[np.uint32]]) -> Iterator[NDArray[np.uint32]]:
        """Returns the pieces of the coded body, masked in place, in order."""
        masker = Masker(self._opened.masks)
        for piece_D in coded:
            masker.apply(piece_D)
            self._hash.update(piece_D.astype("<u4", copy=False).data)
            self._length += len(piece_D)
            yield piece_D

    def finish(self) -> tuple[Masked, Upload]:
        """Returns the state after the body, and the masked slots with the signature over it all.

        Raises:
            ProtocolError: when the body is not as long as the task says.
        """
        member, opened = self._member, self._opened
        state, task = opened.shared, opened.task
        if self._length != task.length:
            raise ProtocolError(f"a body of {self._length} coordinates, the round has {task.length}")
        slots = np.array([round(task.weight * WEIGHT_UNIT), 1], np.uint64)
        mask_slots(slots, self._opened.masks)
        slot_bytes = slots.astype("<u8").tobytes()
        first_hash = participants_hash("first", state.session, state.first)
        second_hash = participants_hash("second", state.session, pack_numbers(task.second))
        bound = opened.context, first_hash, second_hash, member.number
        signature = sign(member.identity, "upload", *bound, self._hash.digest(), slot_bytes)
        own_shape = shape(len(state.first) // Advertisement.SIZE, member.policy.colluders)
        after = Masked(
            state.session,
            opened.context,
            first_hash,
            task.second,
            state.holders,
            state.threshold,
            max(own_shape.least_survivors, member.policy.least_participants),
            own_shape.complete,
            opened.held,
            opened.bad_dealers,
        )
        return after, Upload(slot_bytes, signature, sign(member.identity, "masked", *bound))


def confirm(member: Member, state: Masked, task: ConfirmTask) -> tuple[Masked, bytes]:
    """Stage 3: a signature over the survivors, after which this participant accepts no others.

    Raises:
        ProtocolError: unless survivors and dropped make up U2, this participant survives, and enough do.
    """
    if state.survivors:
        raise ProtocolError("the survivors of this attempt were confirmed already")
    for numbers, what in ((task.survivors, "survivors"), (task.dropped, "dropped")):
        require_ascending(numbers, what, len(member.roster))
    if set(task.survivors) & set(task.dropped):
        raise ProtocolError("a participant that is both alive and dead")
    if tuple(sorted((*task.survivors, *task.dropped))) != state.second:
        raise ProtocolError("survivors and dropped do not make up U2")
    if member.number not in task.survivors:
        raise ProtocolError("this participant sent its masked body and is not among the survivors")
    if len(task.survivors) < state.least_survivors:
        raise ProtocolError(f"{len(task.survivors)} survivors: at least {state.least_survivors} are needed")
    signature = sign(member.identity, "confirm", *_confirmed(state, task.survivors))
    return replace(state, survivors=task.survivors), signature


def confirm_all(member: Member, state: Masked, task: ConfirmTask) -> tuple[bytes, Revealed]:
    """Stages 3 and 4 at once, where all of U2 survive: the signature, and a share of everyone's b; of no s, ever.

    Nobody else's signature over U3 is needed for that, but everyone's word that it masked within this very context, U1
    and U2: else those who reveal need not be among those who are summed, and these could be summed again without one.

    Raises:
        ProtocolError: as `confirm`, with neighbours, when somebody dropped out, or for one good signature less.
    """
    _, signature = confirm(member, state, task)
    if not state.complete or task.dropped:
        raise ProtocolError(
            "shares together with the survivors: only where everyone holds shares of everyone and stays"
        )
    _check_masked(member, state, state.second, task.masked)
    owners = tuple(sorted(state.held))
    shares = [state.held[owner][: shamir.SHARE_BYTES] for owner in owners]
    return signature, Revealed(owners, b"".join(shares), state.bad_dealers)


def unmask(member: Member, state: Masked, task: UnmaskTask) -> Revealed:
    """Stage 4: one share per owner, against signatures of at least `threshold` of its holders over the same survivors.

    Raises:
        ProtocolError: before stage 3, or for fewer good signatures; no share leaves then.
    """
    if not state.survivors:
        raise ProtocolError("UNMASK before CONSISTENCY")
    require_ascending(task.signers, "signers", len(member.roster))
    signatures = parts_of(task.signatures, SIGNATURE_BYTES, "signatures", len(task.signers))
    if not set(task.signers) <= set(state.holders) & set(state.survivors):
        raise ProtocolError("a consistency signature by one who is not a surviving holder of this participant's shares")
    if len(task.signers) < state.threshold:
        raise ProtocolError(f"{len(task.signers)} consistency signatures: at least {state.threshold} are needed")
    for signer, signature in zip(task.signers, signatures, strict=True):
        key, what = member.roster.public_key(signer), f"consistency of {member.roster.member(signer).name}"
        verify(key, signature, what, "confirm", *_confirmed(state, state.survivors))
    owners, alive = tuple(sorted(state.held)), set(state.survivors)
    others = [] if state.complete else [owner for owner in owners if owner in alive and owner != member.number]
    _check_masked(member, state, others, task.masked)
    shares = [
        state.held[owner][: shamir.SHARE_BYTES] if owner in alive else state.held[owner][shamir.SHARE_BYTES :]
        for owner in owners
    ]
    return Revealed(owners, b"".join(shares), state.bad_dealers)


def _check_masked(member: Member, state: Masked, owners: Sequence[int], blob: bytes) -> None:
    """Checks that every owner masked within this very context, U1 and U2.

    With neighbours a survivor to whom another U2 was shown, one without its honest neighbours, would otherwise lose its
    only mask. In a complete graph any two U2 that are large enough share honest participants, whose pairwise masks
    stay: there stage 4 does not ask for this, only `confirm_all` does.
    """
    second = participants_hash("second", state.session, pack_numbers(state.second))
    for owner, signature in zip(owners, parts_of(blob, SIGNATURE_BYTES, "masked", len(owners)), strict=True):
        what = f"masked body of {member.roster.member(owner).name}"
        bound = state.context, state.first_hash, second, owner
        verify(member.roster.public_key(owner), signature, what, "masked", *bound)


def _confirmed(state: Masked, survivors: tuple[int, ...]) -> tuple[bytes, bytes, bytes, bytes]:
    """Returns what a consistency signature is over: (context, H(U1), H(U2), H(U3))."""
    second = participants_hash("second", state.session, pack_numbers(state.second))
    third = participants_hash("third", state.session, pack_numbers(survivors))
    return state.context, state.first_hash, second, third


def _open_all(
    member: Member, state: Shared, task: MaskTask, first: Mapping[int, Advertisement]
) -> tuple[dict[int, bytes], tuple[int, ...]]:
    """Returns owner -> shares held, and the dealers whose shares do not match the commitments to them."""
    boxes = parts_of(task.boxes, BOX_BYTES, "boxes", len(task.senders))
    commitments = parts_of(task.commitments, COMMITMENT_BYTES, "commitments", len(task.senders))
    first_hash = participants_hash("first", state.session, state.first)
    held, bad, secret = {member.number: state.own_shares}, [], load_secret(state.channel_secret)
    for sender, box, promised in zip(task.senders, boxes, commitments, strict=True):
        key = derive(agree(secret, first[sender].channel_key), state.session, "channel", sender, member.number)
        associated = digest("box", state.session, first_hash, sender, member.number)
        pair = open_box(key, box, associated, f"box from {member.roster.member(sender).name}")
        if commitment(state.session, sender, member.number, pair) == promised:
            held[sender] = pair
        else:
            bad.append(sender)  # its dealer lied, or the server did: other shares may still do
    return held, tuple(bad)
