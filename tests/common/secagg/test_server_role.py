"""The server's side: order, counts, what it routes; and that one liar does not end everyone's round.

Legend: D coordinates.
"""

from dataclasses import replace

import numpy as np
import pytest
from vectors.play import SESSION, Play, Source, cast, play

from common.errors import ProtocolError, TooFewPartners
from common.secagg import client_role as client
from common.secagg.keys import sign
from common.secagg.server_role import Gathering, Tally
from common.secagg.transcript import pack_numbers
from common.secagg.wire import Shares


@pytest.fixture
def masked() -> Play:
    """Up to the uploads of five, of whom all are still there."""
    return play(5, "server role").until("confirm")


def test_a_second_upload_adds_nothing(masked: Play) -> None:
    before_D = masked.tally._sum_D.copy()
    step = masked.steps["mask"][2]
    with pytest.raises(ProtocolError, match="or a second one"):
        masked.tally.add_upload(2, [step.body], step.reply)  # type: ignore[list-item]
    assert np.array_equal(masked.tally._sum_D, before_D)


def test_a_refused_upload_adds_nothing() -> None:
    played = play(4, "refused upload").until("confirm", mask=[4])
    before_D, slots = played.tally._sum_D.copy(), played.tally._slots.copy()
    opened = client.open_boxes(played.members[4], played.steps["share"][4].after, played.tally.mask_task(4))
    masking = client.Masking(played.members[4], opened)
    pieces = list(masking.pieces(iter([np.ones(5, np.uint32)])))
    _, upload = masking.finish()
    tampered = pieces[0].copy()
    tampered[0] += 1
    for body, said in (([tampered], upload), (pieces, replace(upload, slots=bytes(16))), ([pieces[0][:4]], upload)):
        with pytest.raises(ProtocolError):
            played.tally.add_upload(4, body, said)
    assert np.array_equal(played.tally._sum_D, before_D)
    assert np.array_equal(played.tally._slots, slots)
    played.tally.add_upload(4, pieces, upload)
    assert np.array_equal(played.tally._sum_D, before_D + pieces[0])


def test_an_upload_after_the_survivors_are_fixed_is_late() -> None:
    played = play(4, "late upload").until("confirm", mask=[4])
    opened = client.open_boxes(played.members[4], played.steps["share"][4].after, played.tally.mask_task(4))
    masking = client.Masking(played.members[4], opened)
    pieces = list(masking.pieces(iter([np.ones(5, np.uint32)])))
    _, upload = masking.finish()
    played.tally.fix_third()
    with pytest.raises(ProtocolError, match="not asked for"):
        played.tally.add_upload(4, pieces, upload)


def test_an_upload_may_come_in_any_pieces() -> None:
    played = play(4, "pieces").until("confirm")
    again = play(4, "pieces").until("mask")
    again.tally.fix_second(played.grid, played.weights)
    for number, step in played.steps["mask"].items():
        assert step.body is not None
        again.tally.add_upload(number, np.split(step.body, [2, 2, 3]), step.reply)
    assert np.array_equal(again.tally._sum_D, played.tally._sum_D)


@pytest.mark.parametrize("shaped", [np.zeros((5, 1), np.uint32), np.zeros((1, 5), np.uint32), np.zeros(5, ">u4")])
def test_bodies_of_another_shape_or_byte_order(masked: Play, shaped: np.ndarray) -> None:
    masked.tally._uploads.pop(2)
    with pytest.raises(ProtocolError, match="another type than uint32"):
        masked.tally.add_upload(2, [shaped], masked.steps["mask"][2].reply)


def test_shares_of_one_who_did_not_advertise_do_not_count() -> None:
    """It would be in U2 and not in U1: every honest participant would refuse the round."""
    played = play(5, "not in U1").until("share", advertise=[5])
    (tally,) = played.server.tallies()
    own = client.advertise(played.members[5], SESSION, Source("late"))[0].session
    parts = pack_numbers((1, 2, 3)), bytes(3 * 82), bytes(4 * 64), bytes(32)
    signature = sign(played.cast.identities[5], "share", own, tally._first_hash, 5, *parts)
    with pytest.raises(ProtocolError, match="participant"):
        tally.add_shares(5, Shares((1, 2, 3), *parts[1:], signature))


def test_an_advertisement_by_one_outside_the_cohort() -> None:
    players = cast([1.0] * 4)
    server = Gathering(players.roster, SESSION, (1, 2, 3), 1)
    _, advertisement = client.advertise(players.members[4], SESSION, Source("outside"))
    with pytest.raises(ProtocolError, match="an advertisement of participant 4 from participant 4"):
        server.add(4, advertisement)


def test_everyone_is_asked_for_what_concerns_it_alone(masked: Play) -> None:
    for number in range(1, 6):
        task = masked.steps["mask"][number].task
        assert task.senders == tuple(other for other in range(1, 6) if other != number)
        assert task.weight == 1.0
        for place, sender in enumerate(task.senders):
            sealed = masked.steps["share"][sender].reply
            at = sealed.recipients.index(number)
            assert task.boxes[82 * place : 82 * (place + 1)] == sealed.boxes[82 * at : 82 * (at + 1)]


def test_no_more_signatures_are_shown_than_are_needed(masked: Play) -> None:
    masked.confirm()
    assert masked.tally.shape.threshold == 4
    assert masked.tally.unmask_task(5).signers == (1, 2, 3, 4)
    assert len(masked.tally.unmask_task(5).signatures) == 4 * 64
    assert masked.tally.unmask_task(5).masked == b""


def test_too_few_that_advertised_are_counted() -> None:
    played = play(5, "few").until("share", advertise=[1, 2, 3])
    with pytest.raises(TooFewPartners, match="2 of 5 advertised: 2 participants: secure aggregation needs at least 3"):
        played.server.tallies()


def test_a_missing_coin_ends_the_preparation() -> None:
    players = cast([1.0] * 8)
    server = Gathering(players.roster, SESSION, range(1, 9), 1, num_groups=2)
    states, source = {}, Source("coins")
    for number, member in players.members.items():
        states[number], advertisement = client.advertise(member, SESSION, source)
        server.add(number, advertisement)
    for number in range(1, 7):
        server.add_coin(number, client.reveal(players.members[number], states[number], server.reveal_task())[1])
    with pytest.raises(TooFewPartners, match="2 of 8 participants did not reveal their coin"):
        server.tallies()
    with pytest.raises(ProtocolError, match="participant 7: another coin than it committed to"):
        server.add_coin(7, bytes(32))
    with pytest.raises(ProtocolError, match="a coin of 31 bytes, expected 32"):
        server.add_coin(7, bytes(31))


def test_groups_too_small_for_a_sum_are_too_few_partners() -> None:
    players = cast([1.0] * 5)
    server = Gathering(players.roster, SESSION, range(1, 6), 1, num_groups=2)
    states, source = {}, Source("small groups")
    for number, member in players.members.items():
        states[number], advertisement = client.advertise(member, SESSION, source)
        server.add(number, advertisement)
    for number, member in players.members.items():
        server.add_coin(number, client.reveal(member, states[number], server.reveal_task())[1])
    with pytest.raises(TooFewPartners, match="2 participants: secure aggregation needs at least 3"):
        server.tallies()


def test_two_groups_each_give_their_own_sum() -> None:
    players, source = cast([1.0, 0.5] * 4), Source("two sums")
    server = Gathering(players.roster, SESSION, range(1, 9), 1, num_groups=2)
    states = {}
    for number, member in players.members.items():
        states[number], advertisement = client.advertise(member, SESSION, source)
        server.add(number, advertisement)
    for number, member in players.members.items():
        states[number], coin = client.reveal(member, states[number], server.reveal_task())
        server.add_coin(number, coin)
    totals: list[int] = []
    for tally in server.tallies():
        (found,) = _sum_of(players.members, states, tally, source)
        assert found == sum(10**number for number in tally.first) % 2**32
        totals.append(found)
    assert sum(totals) % 2**32 == sum(10**number for number in range(1, 9)) % 2**32


def _sum_of(members, states, tally: Tally, source: Source) -> list[int]:  # type: ignore[no-untyped-def]
    """Plays stages 1 to 4 with one coordinate, 10 to the participant's number."""
    group = sorted(tally.first)
    shared, masked = {}, {}
    for i in group:
        shared[i], shares = client.share(members[i], states[i], tally.share_task, source)
        tally.add_shares(i, shares)
    grid = play(4, "grid").until("confirm").grid
    weights = {i: members[i].roster.member(i).weight for i in group}
    tally.fix_second(replace(grid, length=1), weights)
    for i in group:
        masking = client.Masking(members[i], client.open_boxes(members[i], shared[i], tally.mask_task(i)))
        pieces = list(masking.pieces(iter([np.array([10**i % 2**32], np.uint32)])))
        masked[i], upload = masking.finish()
        tally.add_upload(i, pieces, upload)
    tally.fix_third()
    for i in group:
        masked[i], signature = client.confirm(members[i], masked[i], tally.confirm_task())
        tally.add_confirmation(i, signature)
    unmasking = tally.unmasking()
    for i in tally.confirmed():
        unmasking.add(i, client.unmask(members[i], masked[i], tally.unmask_task(i)))
    found: list[int] = unmasking.finish().tolist()
    return found
