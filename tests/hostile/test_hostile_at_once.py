"""Stages 3 and 4 at once: shares leave with the signature only where everyone in U2 masked within this very U2.

The server lies about who is there, asks for both, asks twice, or asks one half for the one and the other for the other.

Legend: D parameters.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile.hostile_round import Round, refused, sums_up
from hostile.hostile_server import HostileServer, Refused, identity, partners
from hostile.test_hostile_views import confirmation, unmask_task
from numpy.typing import NDArray

from common.errors import TooFewPartners
from common.secagg import client_role
from common.secagg.coding import decode
from common.secagg.commitments import commitment
from common.secagg.keys import SIGNATURE_BYTES, sign
from common.secagg.server_role import Tally
from common.secagg.shamir import SHARE_BYTES
from common.secagg.transcript import pack_numbers, participants_hash
from common.secagg.wire import ConfirmTask, MaskTask, Revealed, SessionId
from common.stage_messages import AdvertiseTask

COLLUDER = 4
EVERYONE = (1, 2, 3, 4, 5)


@pytest.fixture(params=["memory", "disk"])
def server(request: pytest.FixtureRequest, tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, round_secrets=request.param) as found:
        yield found


@pytest.fixture
def five(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, 5) as found:
        yield found


def words_of(round_: Round) -> bytes:
    """Returns what everyone who sent a masked body said that it masked within."""
    uploads = round_.tallies[0]._uploads
    return b"".join(uploads[number] for number in sorted(uploads))


def forged_word(round_: Round, number: int, signer: int, second: tuple[int, ...] = ()) -> bytes:
    """Returns a word about a participant's masked body, by whoever's key the server has."""
    tally = round_.tallies[0]
    hashed = participants_hash("second", tally._hash, pack_numbers(second or tally.second))
    return sign(identity(signer), "masked", tally.context, tally._first_hash, hashed, number)


# --- everyone is there ------------------------------------------------------------------------------------------------


def test_who_confirms_reveals_with_it_and_the_sum_is_everyones(server: HostileServer) -> None:
    sums_up(Round(server, at_once=True))
    assert server.shares_left() == [1, 2, 3, 4]
    assert {sent.kind for sent in server.traffic if sent.shares} == {"query.confirm"}


def test_the_threshold_may_answer_and_no_fewer(server: HostileServer) -> None:
    round_ = Round(server, at_once=True).until("confirm")
    round_.play("confirm", silent=(COLLUDER,))
    expected_D, tolerance = round_.expected(round_.numbers)
    assert np.abs(round_.sums()[0] - expected_D).max() <= tolerance
    again = Round(server, round=2, at_once=True).until("confirm")
    again.play("confirm", silent=(1, COLLUDER))
    with pytest.raises(TooFewPartners, match="2 shares of participant 1's secret, 3 are needed"):
        again.sums()


def test_no_share_of_a_key_leaves_with_a_signature(five: HostileServer) -> None:
    round_ = Round(five, at_once=True).until("confirm")
    tally = round_.tallies[0]
    for number, task in round_.tasks("confirm").items():
        told = round_.tell(number, task)
        assert told.owners == EVERYONE
        for place, owner in enumerate(told.owners):
            share = told.shares[place * SHARE_BYTES : (place + 1) * SHARE_BYTES]
            promised = tally._sealed[owner].commitments[number]
            pair = commitment(tally._hash, owner, number, share + share)
            assert (pair[:32] == promised[:32], pair[32:] == promised[32:]) == (True, False)


def test_groups_reveal_each_by_itself(tmp_path: Path, tiny_encoder: Path) -> None:
    """One group is whole and reveals at once; in the other somebody fell silent, and it goes on to UNMASK."""
    with partners(tmp_path, tiny_encoder, 8) as server:
        round_ = Round(server, num_groups=2, at_once=True).until("mask")
        lost = min(round_.tallies[1].first)
        round_.play("mask", silent=(lost,))
        round_.play("confirm")
        assert server.shares_left() == sorted(round_.tallies[0].first)
        round_.play("unmask")
        left = tuple(number for number in sorted(round_.tallies[1].first) if number != lost)
        for total_D, members in zip(round_.sums(), (tuple(round_.tallies[0].first), left), strict=True):
            expected_D, tolerance = round_.expected(members)
            assert np.abs(total_D - expected_D).max() <= tolerance


# --- lies about who is there ------------------------------------------------------------------------------------------


def test_not_everyone_said_that_it_masked(five: HostileServer) -> None:
    """5 never sent a masked body, and its later one would lose its own mask: nobody believes that it is there."""
    round_ = Round(five).until("confirm", mask=(5,))
    task, words = ConfirmTask(round_.session, EVERYONE, ()), words_of(round_)
    cut = "masked: 256 bytes, expected 5 parts of 64 bytes"
    refused(round_, 1, replace(task, masked=words), cut)
    for last in (forged_word(round_, 5, COLLUDER), words[-SIGNATURE_BYTES:], bytes(SIGNATURE_BYTES)):
        refused(round_, 1, replace(task, masked=words + last), "masked body of partner-0004: its signature is not that")
    assert not five.shares_left()
    sums_up(round_, (1, 2, 3, 4), start="confirm")


def test_a_u3_that_is_not_u2_opens_nothing_with_the_signature(five: HostileServer) -> None:
    """All of them masked, and the server has everyone's word: of whoever it calls dropped no share leaves."""
    round_ = Round(five).until("confirm")
    words = words_of(round_)
    for survivors, dropped in (((1, 2, 3, 4), (5,)), ((1, 3, 4, 5), (2,))):
        task = ConfirmTask(round_.session, survivors, dropped, words)
        refused(round_, 1, task, "shares together with the survivors: only where")
        refused(round_, 1, replace(task, masked=words[: 4 * SIGNATURE_BYTES]), "shares together with the survivors")
    fewer = ConfirmTask(round_.session, (1, 2, 3, 4), (), words[: 4 * SIGNATURE_BYTES])
    refused(round_, 1, fewer, "survivors and dropped do not make up U2")
    refused(round_, 1, ConfirmTask(round_.session, (2, 3, 4, 5), (1,), words), "is not among the survivors")
    sums_up(round_, start="confirm")


def test_a_word_within_another_round_or_u2_does_not_count(five: HostileServer) -> None:
    before = Round(five).until("confirm")
    old = words_of(before)
    round_ = Round(five, attempt=1).until("confirm")
    task, words = ConfirmTask(round_.session, EVERYONE, ()), words_of(round_)
    colluders = 3 * SIGNATURE_BYTES
    fewer = forged_word(round_, COLLUDER, COLLUDER, (1, 2, 3, 4))
    for blob, name in (
        (words[:SIGNATURE_BYTES] + old[SIGNATURE_BYTES : 2 * SIGNATURE_BYTES] + words[2 * SIGNATURE_BYTES :], 1),
        (words[:colluders] + fewer + words[colluders + SIGNATURE_BYTES :], 3),
    ):
        refused(round_, 1, replace(task, masked=blob), f"masked body of partner-000{name}: its signature is not that")
    sums_up(round_, start="confirm")


def test_statistics_reveal_at_once_over_the_whole_roster_or_not_at_all(tmp_path: Path, tiny_encoder: Path) -> None:
    items, privacy = ("i1", "i2", "i3"), {"mode": "none", "sampling_rate": 1.0}
    with partners(tmp_path, tiny_encoder, privacy=privacy, model={"item_rates": "exact"}) as server:
        fewer = Round(server, round=0, run_id="fewer", catalogue=items, numbers=(1, 2, 3), at_once=True)
        task = fewer.until("confirm").tasks("confirm")[1]
        assert task.masked
        refused(fewer, 1, task, "statistics of 3 partners: all 4 of the roster must take part")
        whole = Round(server, round=0, catalogue=items, at_once=True)
        assert len(whole.run()) == 1
        assert server.shares_left() == [1, 2, 3, 4]


# --- both, and twice --------------------------------------------------------------------------------------------------


def test_after_shares_left_with_the_signature_the_round_is_final_also_after_a_restart(server: HostileServer) -> None:
    round_ = Round(server, at_once=True).until("confirm")
    task = round_.tasks("confirm")[1]
    told = round_.tell(1, task)
    signed = {1: told.signature} | {number: confirmation(round_, number, (1, 2, 3, 4)) for number in (2, 3)}
    again = AdvertiseTask(SessionId("run", 1, 1), 2)
    over = "round 1, attempt 0: not under way here"
    for _ in range(2):
        refused(round_, 1, task, over)
        refused(round_, 1, replace(task, masked=b""), over)
        refused(round_, 1, ConfirmTask(round_.session, (1, 2, 3), (4,)), over)
        refused(round_, 1, unmask_task(round_, signed), over)
        refused(round_, 1, again, "round 1: round 1 was unmasked already; it is final")
        server.restart()
    assert server.shares_left() == [1]
    assert not list((server.folder(1) / "state").glob("secrets/*"))


def test_who_signed_other_survivors_reveals_nothing_at_once(five: HostileServer) -> None:
    round_ = Round(five).until("confirm")
    words = words_of(round_)
    round_.tell(1, ConfirmTask(round_.session, (1, 2, 3, 4), (5,)))
    round_.tell(2, ConfirmTask(round_.session, EVERYONE, ()))
    for number in (1, 2):
        both = ConfirmTask(round_.session, EVERYONE, (), words)
        refused(round_, number, both, "the survivors of this attempt were confirmed already")
    assert not five.shares_left()


def test_two_paths_over_two_halves_give_nothing(five: HostileServer) -> None:
    """1 and 2 are told that all are there, 3 and 5 that 2 fell silent; the colluder signs both. t = 4."""
    round_ = Round(five, at_once=True).until("confirm")
    whole = round_.tasks("confirm")
    without_2, tally = (1, 3, 4, 5), round_.tallies[0]
    for number in (1, 2):
        round_.take("confirm", number, round_.tell(number, whole[number]))
    signed = {
        number: five.tell(number, ConfirmTask(round_.session, without_2, (2,))).signature for number in (3, 5)
    } | {COLLUDER: confirmation(round_, COLLUDER, without_2)}
    few = unmask_task(round_, signed)
    told = unmask_task(round_, signed | {1: tally._signatures[1]})
    for number in (3, 5):
        refused(round_, number, few, "3 consistency signatures: at least 4 are needed")
        refused(round_, number, told, "consistency of partner-0000: its signature is not that")
        refused(round_, number, whole[number], "the survivors of this attempt were confirmed already")
    # What the colluder holds is all that comes on top: of everyone's b three shares, of nobody's key more than one.
    assert all(len(round_.unmaskings[0].shares[owner]) == 2 for owner in EVERYONE)
    with pytest.raises(TooFewPartners, match="2 shares of participant 1's secret, 4 are needed"):
        round_.sums()
    assert five.shares_left() == [1, 2]


# --- two views of U2 --------------------------------------------------------------------------------------------------

FEW, REST, TWICE = (1, 2, 3, 4), (5, 6, 7), (1, 2, 3)


def two_views(server: HostileServer) -> tuple[Round, Tally]:
    """Returns a round in which 1 to 4 masked among themselves, 5 to 7 with everyone, and the tally of the former."""
    round_ = Round(server, colluders=0, at_once=True).until("mask")
    small: Tally = deepcopy(round_.tallies[0])
    for number in REST:
        del small._sealed[number]
    round_.fixed(round_.tallies[0])
    round_.fixed(small)
    for number in FEW:
        task: MaskTask = small.mask_task(number)
        assert task.second == FEW
        small.add_upload(number, *round_.tell(number, task))
    for number in REST:
        round_.take("mask", number, round_.tell(number, round_.tallies[0].mask_task(number)))
    small.fix_third()
    round_.tallies[0]._uploads |= small._uploads
    return round_, small


def whole_for_the_rest(round_: Round) -> ConfirmTask:
    return ConfirmTask(round_.session, (*FEW, *REST), (), words_of(round_))


def test_who_was_shown_another_u2_is_not_revealed_by_those_who_are_not_in_it(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """n = 7, t = 4, nobody colludes. Shares by 5, 6 and 7 would open the sum over 1 to 4, final for 4 alone."""
    with partners(tmp_path, tiny_encoder, 7, colluders=0) as server:
        round_, small = two_views(server)
        for number in REST:
            refused(
                round_, number, whole_for_the_rest(round_), "masked body of partner-0000: its signature is not that"
            )
        round_.tell(4, small.confirm_task())
        assert server.shares_left() == [4]


def test_without_everyones_word_one_contribution_would_come_out(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at stake, with that check taken out: two sums of one round that differ by one participant, to the bit."""
    with partners(tmp_path, tiny_encoder, 7, colluders=0) as server:
        with monkeypatch.context() as patch:
            patch.setattr(client_role, "_check_masked", lambda *_: None)
            round_, small = two_views(server)
            unmasking = small.unmasking()
            told = [(4, round_.tell(4, small.confirm_task()))]
            told += [(number, round_.tell(number, whole_for_the_rest(round_))) for number in REST]
        for number, answer in told:
            shares = answer.shares[: len(FEW) * SHARE_BYTES]
            unmasking.add(number, Revealed(FEW, shares))
        four_D = decode(unmasking.finish(), len(FEW), unmasking.coding)
        three_D = sum_over(Round(server, attempt=1, numbers=TWICE, colluders=0, at_once=True))
        victims_D = server.contribution(4)
        assert np.abs(victims_D).max() > 0.01
        assert np.abs(four_D - three_D - victims_D).max() <= 8 / unmasking.coding.scale
        with pytest.raises(Refused, match="it is final"):
            server.tell(4, AdvertiseTask(SessionId("run", 1, 2), 2))


def sum_over(round_: Round) -> NDArray[np.float64]:
    (total_D,) = round_.run()
    return total_D
