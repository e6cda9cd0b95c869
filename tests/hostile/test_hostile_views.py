"""Stages 2 to 4: who is said to be there. Everyone is shown the same, or no share leaves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile.hostile_round import Round, refused, sums_up
from hostile.hostile_server import HostileServer, Refused, identity, partners

from common.secagg.client_role import commitment
from common.secagg.keys import sign
from common.secagg.shamir import SHARE_BYTES
from common.secagg.transcript import pack_numbers, participants_hash
from common.secagg.wire import BOX_BYTES, ConfirmTask, MaskTask, UnmaskTask

COLLUDER = 4


@pytest.fixture
def server(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder) as found:
        yield found


@pytest.fixture
def five(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, 5) as found:
        yield found


def confirmation(round_: Round, signer: int, survivors: tuple[int, ...], second: tuple[int, ...] = ()) -> bytes:
    """Returns what a colluder signs for the server: any U2 and U3."""
    tally = round_.tallies[0]
    hashes = [participants_hash("second", tally._hash, pack_numbers(second or tally.second))]
    hashes.append(participants_hash("third", tally._hash, pack_numbers(survivors)))
    return sign(identity(signer), "confirm", tally.context, tally._first_hash, *hashes)


def unmask_task(round_: Round, signatures: dict[int, bytes]) -> UnmaskTask:
    blob = b"".join(signatures[signer] for signer in sorted(signatures))
    return UnmaskTask(round_.session, tuple(sorted(signatures)), blob, b"")


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 7, 8 * SHARE_BYTES, 8 * 65, 8 * 66, 8 * BOX_BYTES - 1])
def test_a_bit_flipped_box_is_refused(bit: int, server: HostileServer) -> None:
    """In the share of b, in that of s, in the tag."""
    round_ = Round(server).until("mask")
    honest: MaskTask = round_.tasks("mask")[1]
    flipped = bytearray(honest.boxes)
    flipped[BOX_BYTES + bit // 8] ^= 1 << bit % 8
    refused(round_, 1, replace(honest, boxes=bytes(flipped)), "box from partner-0002: does not open")
    sums_up(round_, start="mask")


def test_a_re_routed_box_is_refused(server: HostileServer) -> None:
    round_ = Round(server).until("mask")
    tasks = round_.tasks("mask")
    boxes = [tasks[1].boxes[start : start + BOX_BYTES] for start in range(0, 3 * BOX_BYTES, BOX_BYTES)]
    lies = {
        "of another sender": boxes[1] + boxes[0] + boxes[2],
        "of one sender twice": boxes[0] + boxes[0] + boxes[2],
        "for another recipient": tasks[3].boxes[:BOX_BYTES] + boxes[1] + boxes[2],
        "zeros": bytes(BOX_BYTES) + boxes[1] + boxes[2],
    }
    for blob in lies.values():
        refused(round_, 1, replace(tasks[1], boxes=blob), "box from partner-000[12]: does not open")
    for blob in (boxes[0] + boxes[1], b"".join(boxes) + boxes[0], b"", b"".join(boxes)[:-1]):
        refused(round_, 1, replace(tasks[1], boxes=blob), "boxes: .* bytes, expected 3 parts")
    sums_up(round_, start="mask")


def test_a_box_of_another_round_or_attempt_is_refused(server: HostileServer) -> None:
    """The sender's old box, from the same sender to the same recipient."""
    before = Round(server).until("mask").tasks("mask")[1]
    for later in (Round(server, attempt=1), Round(server, round=2)):
        task = later.until("mask").tasks("mask")[1]
        refused(later, 1, replace(task, boxes=before.boxes[:BOX_BYTES] + task.boxes[BOX_BYTES:]), "does not open")
    sums_up(later, start="mask")


def test_a_commitment_that_was_changed_names_a_dealer_and_never_opens_another_share(server: HostileServer) -> None:
    """Commitments only say which shares are kept; the others complete the round."""
    round_ = Round(server).until("mask")
    honest: MaskTask = round_.tasks("mask")[1]
    lied = commitment(round_.tallies[0]._hash, 2, 1, bytes(2 * SHARE_BYTES)) + honest.commitments[64:]
    for number, task in round_.tasks("mask").items():
        told = replace(task, commitments=lied) if number == 1 else task
        round_.take("mask", number, round_.tell(number, told))
    round_.play("confirm")
    revealed = round_.tell(1, round_.tasks("unmask")[1])
    assert (revealed.owners, revealed.bad_dealers) == ((1, 3, 4), (2,))
    round_.tasks("unmask")
    assert len(revealed.shares) == 3 * SHARE_BYTES


# --- split views ------------------------------------------------------------------------------------------------------


def test_a_split_view_of_u1_ends_at_the_boxes(five: HostileServer) -> None:
    """The same session, two lists: associated data of every box holds H(U1)."""
    round_ = Round(five).until("share")
    entries = {entry.number: entry.to_bytes() for entry in round_.gathering.first}
    task = round_.tasks("share")[1]
    fewer = replace(task, advertisements=b"".join(entries[number] for number in (1, 2, 3, 4)), threshold=3)
    for number in (1, 3, 4, 5):
        round_.take("share", number, round_.tell(number, task))
    other = round_.tell(2, fewer)
    box_for_1 = other.boxes[:BOX_BYTES]
    mask_task = round_.tasks("mask")[1]
    assert mask_task.second == (1, 3, 4, 5)
    lied = replace(
        mask_task,
        second=(1, 2, 3, 4, 5),
        senders=(2, 3, 4, 5),
        boxes=box_for_1 + mask_task.boxes,
        commitments=other.commitments[:64] + mask_task.commitments,
    )
    refused(round_, 1, lied, "box from partner-0001: does not open")
    sums_up(round_, (1, 3, 4, 5), start="mask")


def test_a_split_view_of_u2_leaves_no_share(five: HostileServer) -> None:
    """The victim is shown a U2 without 5; the others sign another one, a colluder signs both."""
    round_ = Round(five).until("mask")
    for number, task in round_.tasks("mask").items():
        if number == 1:
            fewer = replace(
                task,
                second=(1, 2, 3, 4),
                senders=(2, 3, 4),
                boxes=task.boxes[: 3 * BOX_BYTES],
                commitments=task.commitments[: 3 * 64],
            )
            pieces, upload = round_.tell(1, fewer)
            round_.tallies[0]._uploads[1] = upload.masked
            assert sum(map(len, pieces)) == task.length
        else:
            round_.take("mask", number, round_.tell(number, task))
    round_.tallies[0].fix_third()
    everyone, four = (1, 2, 3, 4, 5), (1, 2, 3, 4)
    signed = {1: five.tell(1, ConfirmTask(round_.session, four, ())).signature}
    signed |= {number: five.tell(number, ConfirmTask(round_.session, everyone, ())).signature for number in (2, 3, 5)}
    theirs = signed | {COLLUDER: confirmation(round_, COLLUDER, everyone)}
    for number in (2, 3, 5):
        mixed = {signer: theirs[signer] for signer in (1, 2, 3, 4)}
        refused(round_, number, unmask_task(round_, mixed), "consistency of partner-0000: its signature is not that")
    victims = {signer: theirs[signer] for signer in four} | {COLLUDER: confirmation(round_, COLLUDER, four, four)}
    refused(round_, 1, unmask_task(round_, victims), "consistency of partner-0001: its signature is not that")
    few = {signer: victims[signer] for signer in (1, COLLUDER)}
    refused(round_, 1, unmask_task(round_, few), "2 consistency signatures: at least 4 are needed")


def test_a_split_view_of_u3_opens_one_of_the_two_at_most(five: HostileServer) -> None:
    """Two U3 that differ by the victim: t honest and colluding signatures are there for one of them only."""
    round_ = Round(five).until("confirm")
    round_.tallies[0].fix_third()
    everyone, without_5 = (1, 2, 3, 4, 5), (1, 2, 3, 4)
    signed = {number: five.tell(number, ConfirmTask(round_.session, everyone, ())).signature for number in (1, 2, 5)}
    signed |= {3: five.tell(3, ConfirmTask(round_.session, without_5, (5,))).signature}
    refused(round_, 3, ConfirmTask(round_.session, everyone, ()), "survivors of this attempt were confirmed already")
    refused(round_, 1, ConfirmTask(round_.session, without_5, (5,)), "survivors of this attempt were confirmed already")
    few = {3: signed[3], COLLUDER: confirmation(round_, COLLUDER, without_5)}
    refused(round_, 3, unmask_task(round_, few), "2 consistency signatures: at least 4 are needed")
    mixed = {signer: signed[signer] for signer in (1, 2, 3)} | {COLLUDER: few[COLLUDER]}
    refused(round_, 3, unmask_task(round_, mixed), "consistency of partner-0000: its signature is not that")
    for_everyone = mixed | {COLLUDER: confirmation(round_, COLLUDER, everyone)}
    refused(round_, 1, unmask_task(round_, for_everyone), "consistency of partner-0002: its signature is not that")
    good = {signer: signed[signer] for signer in (1, 2, 5)} | {COLLUDER: for_everyone[COLLUDER]}
    assert round_.tell(1, unmask_task(round_, good)).owners == everyone  # one U3 it is; the other can never follow
    assert five.shares_left() == [1]


# --- U2 and U3 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "senders", "match"),
    [
        ((1, 2, 3, 4, 5), (2, 3, 4), "U2 names one who is not in U1"),
        ((1, 2, 3, 4, 6), (2, 3, 4), "U2: a participant outside the roster of 5"),
        ((0, 1, 2, 3, 4), (2, 3, 4), "U2: a participant outside the roster"),
        ((1, 2, 2, 3, 4), (2, 3, 4), "U2: participants must be named once each"),
        ((2, 3, 4), (2, 3, 4), "this participant sent its shares and is not in U2"),
        ((1, 2), (2,), "2 participants sent shares: at least 3 are needed"),
        ((), (), "this participant sent its shares and is not in U2"),
        ((1, 2, 3, 4), (2, 3), "boxes of others than U2"),
        ((1, 2, 3), (2, 3, 4), "boxes of others than U2"),
        ((1, 2, 3, 4), (1, 2, 3), "boxes of others than U2"),
        ((1, 2, 3, 4), (3, 2, 4), "senders: participants must be named once each"),
    ],
)
def test_a_u2_that_cannot_be_is_refused(
    second: tuple[int, ...], senders: tuple[int, ...], match: str, five: HostileServer
) -> None:
    round_ = Round(five, numbers=(1, 2, 3, 4)).until("mask")
    task = replace(round_.tasks("mask")[1], second=second, senders=senders)
    refused(round_, 1, task, match)
    sums_up(round_, start="mask")


@pytest.mark.parametrize(
    ("survivors", "dropped", "match"),
    [
        ((1, 2, 3, 4), (4, 5), "a participant that is both alive and dead"),
        ((1, 2, 3, 4, 5), (5,), "a participant that is both alive and dead"),
        ((1, 2, 3, 4), (), "survivors and dropped do not make up U2"),
        ((1, 2, 3, 4, 5, 6), (), "survivors: a participant outside the roster of 5"),
        ((2, 3, 4, 5), (1,), "this participant sent its masked body and is not among the survivors"),
        ((1, 2, 3), (4, 5), "3 survivors: at least 4 are needed"),
        ((1,), (2, 3, 4, 5), "1 survivors: at least 4 are needed"),
        ((), (1, 2, 3, 4, 5), "not among the survivors"),
        ((5, 4, 3, 2, 1), (), "survivors: participants must be named once each"),
        ((1, 2, 3, 4), (5, 5), "dropped: participants must be named once each"),
        ((0, 1, 2, 3, 4), (5,), "survivors: a participant outside"),
    ],
)
def test_one_both_alive_and_dead_and_other_u3_that_cannot_be_are_refused(
    survivors: tuple[int, ...], dropped: tuple[int, ...], match: str, five: HostileServer
) -> None:
    round_ = Round(five).until("confirm")
    refused(round_, 1, ConfirmTask(round_.session, survivors, dropped), match)
    sums_up(round_, start="confirm")


def test_fewer_survivors_than_the_policys_participants_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, 5, least_participants=5) as server:
        round_ = Round(server).until("mask")
        task = round_.tasks("mask")[1]
        cut = replace(task, second=(1, 2, 3, 4), senders=(2, 3, 4), boxes=task.boxes[: 3 * BOX_BYTES])
        refused(round_, 1, cut, "4 participants sent shares: at least 5 are needed")
        round_.play("mask")
        refused(round_, 1, ConfirmTask(round_.session, (1, 2, 3, 4), (5,)), "4 survivors: at least 5 are needed")
        sums_up(round_, start="confirm")


# --- UNMASK -----------------------------------------------------------------------------------------------------------


def lies_about_signatures(round_: Round) -> dict[str, tuple[UnmaskTask, str]]:
    """Returns name -> what is sent, and what it is refused with; the victim is 1, n = 4 and t = 3."""
    honest: UnmaskTask = round_.tasks("unmask")[1]
    one, two, three = (honest.signatures[start : start + 64] for start in (0, 64, 128))
    uploads = round_.tallies[0]._uploads
    return {
        "none": (replace(honest, signers=(), signatures=b""), "0 consistency signatures: at least 3"),
        "too few": (replace(honest, signers=(1, 2), signatures=one + two), "2 consistency signatures: at least 3"),
        "one twice": (replace(honest, signers=(1, 2, 2), signatures=one + two + two), "signers: participants must be"),
        "a stranger": (replace(honest, signers=(1, 2, 5)), "signers: a participant outside the roster"),
        "of another": (replace(honest, signatures=one + one + three), "consistency of partner-0001: its signature"),
        "flipped": (replace(honest, signatures=one + two + three[:-1] + bytes([three[-1] ^ 1])), "partner-0002"),
        "of a body": (replace(honest, signatures=one + two + uploads[3]), "consistency of partner-0002"),
        "missing": (replace(honest, signatures=one + two), "signatures: 128 bytes, expected 3 parts"),
        "of nothing": (replace(honest, signatures=bytes(3 * 64)), "consistency of partner-0000"),
        "masked": (replace(honest, masked=uploads[2]), "masked: 64 bytes, expected 0 parts"),
    }


LIES = (
    "none",
    "too few",
    "one twice",
    "a stranger",
    "of another",
    "flipped",
    "of a body",
    "missing",
    "of nothing",
    "masked",
)


@pytest.mark.parametrize("lie", LIES)
def test_fewer_than_t_good_consistency_signatures_are_refused(lie: str, server: HostileServer) -> None:
    round_ = Round(server).until("unmask")
    task, match = lies_about_signatures(round_)[lie]
    refused(round_, 1, task, match)
    sums_up(round_, start="unmask")


def test_a_signature_of_a_dropped_one_does_not_count(server: HostileServer) -> None:
    round_ = Round(server).until("confirm", mask=(COLLUDER,))
    survivors = (1, 2, 3)
    round_.play("confirm")
    honest: UnmaskTask = round_.tasks("unmask")[1]
    dead = confirmation(round_, COLLUDER, survivors)
    task = replace(honest, signers=(1, 2, COLLUDER), signatures=honest.signatures[:128] + dead)
    refused(round_, 1, task, "by one who is not a surviving holder of this participant's shares")
    sums_up(round_, survivors, start="unmask")


@pytest.mark.parametrize("dropped", [(), (COLLUDER,), (5,)], ids=str)
def test_one_kind_of_share_per_owner_leaves(dropped: tuple[int, ...], five: HostileServer) -> None:
    """b of the living, the mask secret of the dead, never both: checked against what each of them dealt."""
    round_ = Round(five).until("unmask", mask=dropped)
    for number, task in round_.tasks("unmask").items():
        revealed: Any = round_.tell(number, task)
        for place, owner in enumerate(revealed.owners):
            share = revealed.shares[place * SHARE_BYTES : (place + 1) * SHARE_BYTES]
            sealed = round_.tallies[0]._sealed[owner].commitments[number]
            pair = commitment(round_.tallies[0]._hash, owner, number, share + share)
            kinds = [pair[:32] == sealed[:32], pair[32:] == sealed[32:]]
            assert kinds == [owner not in dropped, owner in dropped]
        with pytest.raises(Refused):
            round_.tell(number, task)
