"""Stripping the masks: corrupted shares, lying dealers, missing shares, and sums that are not what they say.

Legend: D coordinates.
"""

from dataclasses import replace

import numpy as np
import pytest
from vectors.play import Play, play

from common.errors import ProtocolError, TooFewPartners
from common.secagg import client_role as client
from common.secagg import shamir
from common.secagg.unmasking import Unmasking
from common.secagg.wire import Revealed

DEAD = 6


@pytest.fixture
def played() -> Play:
    """Six participants, t = 4; the sixth sent shares and no body. Nothing is revealed yet."""
    played = play(6, "unmasking").until("unmask", mask=[DEAD])
    played.unmasking = played.tally.unmasking()
    return played


def revealed_by(played: Play, number: int) -> Revealed:
    state = played.steps["confirm"][number].after
    return client.unmask(played.members[number], state, played.tally.unmask_task(number))


def flipped(revealed: Revealed, owner: int) -> Revealed:
    """One bit of one owner's share is another."""
    at = 33 * revealed.owners.index(owner)
    shares = bytearray(revealed.shares)
    shares[at] ^= 1
    return replace(revealed, shares=bytes(shares))


def finish(unmasking: Unmasking, played: Play) -> None:
    assert np.array_equal(unmasking.finish(), played.plain_sum())
    assert unmasking.slots.tolist() == [5 * 2**32, 5]


@pytest.mark.parametrize("owner", [1, 3, DEAD])
def test_a_corrupted_share_names_its_sender_and_the_round_completes(played: Play, owner: int) -> None:
    played.unmasking.add(3, flipped(revealed_by(played, 3), owner))
    for number in (1, 2, 4, 5):
        played.unmasking.add(number, revealed_by(played, number))
    assert played.unmasking.faults == {3: "it revealed a share that its dealer had not committed to"}
    finish(played.unmasking, played)


def test_a_share_of_the_other_secret_is_a_corrupted_one(played: Play) -> None:
    """Of a living owner the share of s, which nobody may see: not taken, not even by mistake."""
    state = played.steps["confirm"][2].after
    revealed = revealed_by(played, 2)
    at = 33 * revealed.owners.index(1)
    swapped = revealed.shares[:at] + state.held[1][33:] + revealed.shares[at + 33 :]
    played.unmasking.add(2, replace(revealed, shares=swapped))
    assert list(played.unmasking.faults) == [2]
    assert 2 not in played.unmasking.shares.get(1, {})


def test_too_many_corrupted_shares_are_too_few_good_ones(played: Play) -> None:
    for number in (1, 2):
        played.unmasking.add(number, flipped(revealed_by(played, number), 4))
    for number in (3, 4, 5):
        played.unmasking.add(number, revealed_by(played, number))
    assert sorted(played.unmasking.faults) == [1, 2]
    before_D = played.unmasking.sum_D.copy()
    with pytest.raises(TooFewPartners, match="3 shares of participant 4's secret, 4 are needed: 1 too few; nothing is"):
        played.unmasking.finish()
    assert np.array_equal(played.unmasking.sum_D, before_D)  # still masked, and can be finished with what comes late
    played.unmasking.add(2, revealed_by(played, 2))
    finish(played.unmasking, played)


def test_shares_that_come_late_finish_the_round(played: Play) -> None:
    for number in (1, 2, 3):
        played.unmasking.add(number, revealed_by(played, number))
    with pytest.raises(TooFewPartners, match="1 too few"):
        played.unmasking.finish()
    played.unmasking.add(5, revealed_by(played, 5))
    finish(played.unmasking, played)


@pytest.mark.parametrize("responders", [(1, 2, 3, 4), (2, 3, 4, 5), (5, 4, 2, 1), (5, 3, 1, 2, 4)])
def test_any_threshold_of_responders_in_any_order(played: Play, responders: tuple[int, ...]) -> None:
    for number in responders:
        played.unmasking.add(number, revealed_by(played, number))
    finish(played.unmasking, played)


def test_one_lagrange_vector_serves_every_owner(played: Play) -> None:
    for number in (1, 2, 4, 5):
        played.unmasking.add(number, revealed_by(played, number))
    shamir.lagrange_at_zero.cache_clear()
    finish(played.unmasking, played)
    assert shamir.lagrange_at_zero.cache_info().misses == 1


def test_a_complaint_about_a_dealer_is_kept(played: Play) -> None:
    played.unmasking.add(1, replace(revealed_by(played, 1), bad_dealers=(3, 99)))
    assert played.unmasking.faults == {3: "its share for participant 1 does not match its commitment"}


@pytest.mark.parametrize(("number", "dealer"), [(1, 2), (4, DEAD)])
def test_responders_without_a_bad_dealers_share_do_not_matter(played: Play, number: int, dealer: int) -> None:
    revealed = revealed_by(played, number)
    at = revealed.owners.index(dealer)
    less = Revealed(
        tuple(owner for owner in revealed.owners if owner != dealer),
        revealed.shares[: 33 * at] + revealed.shares[33 * (at + 1) :],
        (dealer,),
    )
    played.unmasking.add(number, less)
    for other in {1, 2, 3, 4, 5} - {number}:
        played.unmasking.add(other, revealed_by(played, other))
    assert list(played.unmasking.faults) == [dealer]
    finish(played.unmasking, played)


def _dealt(played: Play, owner: int, secret: bytes, kind: int) -> None:
    """Replaces an owner's shares of b (0) or s (1) by good shares of another secret, and commits to them."""
    unmasking = played.unmasking
    holders = tuple(range(1, 7))
    shares = shamir.split(secret, holders, 4, played.source)
    commitments = {}
    for holder, share in zip(holders, shares, strict=True):
        pair = share + bytes(33) if kind == 0 else bytes(33) + share
        commitments[holder] = client.commitment(unmasking.session, owner, holder, pair)
    unmasking.sealed = dict(unmasking.sealed) | {owner: replace(unmasking.sealed[owner], commitments=commitments)}
    unmasking.shares[owner] = dict(zip(holders, shares, strict=True))


@pytest.mark.parametrize(
    ("owner", "kind", "text"),
    [
        (2, 0, "participant 2: its shares do not give the seed that it committed to"),
        (DEAD, 1, "participant 6: its shares do not give the secret of its mask key"),
    ],
)
def test_a_dealer_of_another_secret_is_named(played: Play, owner: int, kind: int, text: str) -> None:
    """Its shares are good, and of another secret than its masks are made of."""
    _dealt(played, owner, bytes(range(32)), kind)
    for number in (1, 2, 3, 4):
        played.unmasking.add(number, revealed_by(played, number))
    with pytest.raises(ProtocolError, match=text):
        played.unmasking.finish()


def test_a_dealer_whose_shares_are_of_no_secret_is_named(played: Play) -> None:
    """Points on no polynomial of degree t - 1: which secret comes out depends on who responds, and none is right."""
    unmasking = played.unmasking
    unmasking.shares[2] = {holder: holder.to_bytes(33, "little") for holder in (1, 3, 4, 5)}
    for number in (1, 3, 4, 5):
        unmasking.add(number, revealed_by(played, number))
    with pytest.raises(ProtocolError, match="participant 2: its shares do not give"):
        unmasking.finish()


@pytest.mark.parametrize("slot", [0, 1])
def test_slots_that_are_not_the_rosters_tell_of_a_malformed_contribution(played: Play, slot: int) -> None:
    """One of the contributions claims a weight, or to be two."""
    played.unmasking.slots[slot] += np.uint64(1)
    for number in (1, 2, 3, 4):
        played.unmasking.add(number, revealed_by(played, number))
    with pytest.raises(ProtocolError, match="weight and count of the sum are not those of its 5 survivors"):
        played.unmasking.finish()


def test_without_the_dead_ones_secret_its_masks_stay_in(played: Play) -> None:
    """The sum of the living alone is masked still: only shares of its secret open it."""
    masked_D = played.tally._sum_D.copy()
    assert not np.array_equal(masked_D, played.plain_sum())
    for number in (1, 2, 3, 4):
        played.unmasking.add(number, revealed_by(played, number))
    del played.unmasking.shares[DEAD]
    with pytest.raises(TooFewPartners, match="0 shares of participant 6's secret, 4 are needed: 4 too few"):
        played.unmasking.finish()


def test_where_nobody_dropped_only_shares_of_b_leave() -> None:
    """Nobody dropped: no share of s is asked for, and none is needed."""
    played = play(4, "all there").run()
    for step in played.steps["unmask"].values():
        state = step.before
        for owner, at in zip(step.reply.owners, range(0, 400, 33), strict=False):
            assert step.reply.shares[at : at + 33] == state.held[owner][:33]
    assert np.array_equal(played.sum_D, played.plain_sum())
