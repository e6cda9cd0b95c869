"""A participant's steps where no vector reaches: groups, dealers that lie, bodies in pieces, one answer per stage.

Legend: D coordinates.
"""

from dataclasses import replace

import numpy as np
import pytest
from vectors.play import SESSION, Play, Source, cast, play

from common.errors import ProtocolError
from common.secagg import client_role as client
from common.secagg.keys import sign
from common.secagg.server_role import Gathering, Tally
from common.secagg.wire import ConfirmTask, RevealTask, ShareTask


@pytest.fixture(scope="module")
def played() -> Play:
    return play(5, "client role").run(mask=[5])


def test_a_body_may_come_in_any_pieces(played: Play) -> None:
    step = played.steps["mask"][1]
    assert step.opened is not None
    assert step.coded is not None
    assert step.body is not None
    masking = client.Masking(played.members[1], step.opened)
    pieces = [piece_D.copy() for piece_D in masking.pieces(iter(np.split(step.coded.copy(), [1, 1, 4])))]
    assert [len(piece_D) for piece_D in pieces] == [1, 0, 3, 1]
    assert np.array_equal(np.concatenate(pieces), step.body)
    assert masking.finish() == (step.after, step.reply)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_a_body_of_another_length_is_not_signed(played: Play, length: int) -> None:
    opened = played.steps["mask"][1].opened
    assert opened is not None
    masking = client.Masking(played.members[1], opened)
    list(masking.pieces(iter([np.zeros(length, np.uint32)])))
    with pytest.raises(ProtocolError, match=f"a body of {length} coordinates, the round has 5"):
        masking.finish()


def test_a_state_after_masking_holds_none_of_the_secrets_before(played: Play) -> None:
    before, after = played.steps["mask"][1].before, played.steps["mask"][1].after
    kept = repr(vars(after)).encode()
    for secret in (before.mask_secret, before.channel_secret, before.seed):
        assert repr(secret)[2:-1].encode() not in kept
    assert repr(after.held[1])[2:-1].encode() in kept  # what looks for them would find them


def test_survivors_are_confirmed_once(played: Play) -> None:
    step = played.steps["confirm"][1]
    other = ConfirmTask(SESSION, (1, 2, 3, 4, 5), ())
    client.confirm(played.members[1], step.before, other)
    for task in (step.task, other):
        with pytest.raises(ProtocolError, match="confirmed already"):
            client.confirm(played.members[1], step.after, task)


def test_one_kind_of_share_per_owner_leaves(played: Play) -> None:
    """Of b for the living, of s for the dead; never the other one, never both."""
    step = played.steps["unmask"][1]
    shares = [step.reply.shares[at : at + 33] for at in range(0, len(step.reply.shares), 33)]
    assert step.reply.owners == (1, 2, 3, 4, 5)
    for owner, share in zip(step.reply.owners, shares, strict=True):
        pair = step.before.held[owner]
        assert share == (pair[33:] if owner == 5 else pair[:33])
        assert pair[:33] != pair[33:]


def test_a_dealer_that_lies_is_named_and_left_out(played: Play) -> None:
    """Its box opens, but its share is not what it committed to: the round goes on without that share."""
    step = played.steps["mask"][1]
    wrong = bytearray(step.task.commitments)
    wrong[64] ^= 1  # of participant 3, the second sender, to its share of b
    opened = client.open_boxes(played.members[1], step.before, replace(step.task, commitments=bytes(wrong)))
    assert opened.bad_dealers == (3,)
    assert sorted(opened.held) == [1, 2, 4, 5]
    assert opened.masks == step.opened.masks  # type: ignore[union-attr]  # and masks as before


def test_a_dealer_that_lies_is_told_of_at_the_end(played: Play) -> None:
    step = played.steps["confirm"][1]
    state = replace(step.after, held={o: p for o, p in step.after.held.items() if o != 3}, bad_dealers=(3,))
    revealed = client.unmask(played.members[1], state, played.steps["unmask"][1].task)
    assert revealed.owners == (1, 2, 4, 5)
    assert revealed.bad_dealers == (3,)


def test_own_signature_counts_once_among_the_confirmations(played: Play) -> None:
    """t confirmations with its own one: n = 5, c = 1, t = 4."""
    task = played.steps["unmask"][1].task
    assert task.signers == (1, 2, 3, 4)
    cut = replace(task, signers=(2, 3, 4), signatures=task.signatures[64:])
    with pytest.raises(ProtocolError, match="3 consistency signatures: at least 4 are needed"):
        client.unmask(played.members[1], played.steps["confirm"][1].after, cut)


def test_shares_of_one_round_differ_from_those_of_the_next() -> None:
    """Same keys, same source read on: no byte of a reply comes twice, but for who it is to."""
    source = Source("two rounds")
    said = []
    for number in (1, 2):
        round_ = Play(
            cast([1.0] * 3),
            {i: np.ones(4, np.float32) for i in (1, 2, 3)},
            source,
            session=replace(SESSION, round=number),
        ).run()
        said.append([round_.steps["share"][1].reply.boxes, round_.steps["mask"][1].reply.slots])
        said[-1] += [round_.steps["advertise"][1].reply.mask_key, round_.steps["mask"][1].body.tobytes()]  # type: ignore[union-attr]
    assert all(one != other for one, other in zip(*said, strict=True))


class Groups:
    """Eight participants of a roster of nine in two groups, up to the tallies."""

    def __init__(self) -> None:
        self.cast = cast([1.0] * 9)
        source = Source("groups")
        self.members = {number: self.cast.members[number] for number in range(1, 9)}
        self.server = Gathering(self.cast.roster, SESSION, list(self.members), 1, num_groups=2)
        self.states = {}
        for number, member in self.members.items():
            self.states[number], advertisement = client.advertise(member, SESSION, source)
            self.server.add(number, advertisement)
        self.task: RevealTask = self.server.reveal_task()
        for number, member in self.members.items():
            self.states[number], coin = client.reveal(member, self.states[number], self.task)
            self.server.add_coin(number, coin)
        self.tallies: list[Tally] = self.server.tallies()
        self.share_task: ShareTask = self.tallies[0].share_task
        self.source = source


@pytest.fixture(scope="module")
def groups() -> Groups:
    return Groups()


def test_everyone_shares_within_its_own_group(groups: Groups) -> None:
    assert sorted(number for tally in groups.tallies for number in tally.first) == list(range(1, 9))
    assert [len(tally.first) for tally in groups.tallies] == [4, 4]
    for tally in groups.tallies:
        for number in tally.first:
            _, shares = client.share(groups.members[number], groups.states[number], tally.share_task, groups.source)
            assert {*shares.recipients, number} == set(tally.first)
            tally.add_shares(number, shares)


def test_groups_want_every_coin_as_it_was_committed_to(groups: Groups) -> None:
    coins = groups.share_task.coins
    for wrong, text in (
        (bytes(32) + coins[32:], "participant 1: another coin than it committed to"),
        (coins[32:64] + coins[:32] + coins[64:], "participant 1: another coin"),
        (coins[:-32], "coins: 224 bytes, expected 8 parts of 32"),
        (b"", "coins: 0 bytes, expected 8 parts"),
    ):
        with pytest.raises(ProtocolError, match=text):
            client.share(groups.members[1], groups.states[1], replace(groups.share_task, coins=wrong), groups.source)


def test_groups_are_drawn_for_what_the_coin_was_revealed_for(groups: Groups) -> None:
    """Another number of groups, another U1 or another cohort would be another draw, with the coins on the table."""
    text = "than the coin was revealed for"
    first = groups.server.first
    tasks = [
        replace(groups.share_task, num_groups=3),
        replace(groups.share_task, advertisements=b"".join([a.to_bytes() for a in first[:7]])),
        replace(groups.share_task, cohort=tuple(range(1, 10))),
    ]
    for task in tasks:
        with pytest.raises(ProtocolError, match=text):
            client.share(groups.members[1], groups.states[1], task, groups.source)
    never = replace(groups.states[1], revealed=b"")
    with pytest.raises(ProtocolError, match=text):
        client.share(groups.members[1], never, groups.share_task, groups.source)


def test_a_coin_that_was_revealed_is_of_no_use_without_groups(groups: Groups) -> None:
    """One sum over all, once the coins are on the table, would be a choice that the server makes with them in view."""
    task = replace(groups.share_task, num_groups=1, coins=b"", threshold=5)
    with pytest.raises(ProtocolError, match="coins without groups"):
        client.share(groups.members[1], groups.states[1], task, groups.source)
    client.share(groups.members[1], replace(groups.states[1], revealed=b""), task, groups.source)


def test_a_coin_counts_only_where_its_commitment_is_signed(groups: Groups) -> None:
    """A server that swaps in coins of its own for a stranger's advertisement is found by its signature."""
    first = groups.server.first
    unsigned = replace(first[7], signature=bytes(64))
    blob = b"".join([a.to_bytes() for a in (*first[:7], unsigned)])
    state, _ = client.reveal(groups.members[1], groups.states[1], replace(groups.task, advertisements=blob))
    with pytest.raises(ProtocolError, match="advertisement of hazel: its signature"):
        client.share(groups.members[1], state, replace(groups.share_task, advertisements=blob), groups.source)


def test_a_group_is_held_against_the_policy_and_not_the_whole_of_u1(groups: Groups) -> None:
    policy = replace(groups.cast.policy, least_participants=5)
    with pytest.raises(ProtocolError, match=r"4 participants: this partner's aggregation.least_participants is 5"):
        client.share(replace(groups.members[1], policy=policy), groups.states[1], groups.share_task, groups.source)


def test_a_coin_is_not_revealed_to_a_u1_without_oneself(groups: Groups) -> None:
    blob = b"".join([a.to_bytes() for a in groups.server.first[1:]])
    with pytest.raises(ProtocolError, match="own advertisement is missing or replaced"):
        client.reveal(groups.members[1], groups.states[1], replace(groups.task, advertisements=blob))


def test_sessions_of_a_group_do_not_open_in_another(groups: Groups) -> None:
    """H(U1) is that of the group: a consistency signature of one group is none in the other."""
    contexts = set()
    for tally in groups.tallies:
        contexts.add(tally._first_hash)
    assert len(contexts) == 2


def test_a_confirmation_of_another_label_does_not_count(played: Play) -> None:
    """The same hashes under the label of another stage are another statement."""
    state = played.steps["confirm"][1].after
    task = played.steps["unmask"][1].task
    forged = [
        sign(played.cast.identities[number], "upload", *client._confirmed(state, state.survivors))
        for number in task.signers
    ]
    with pytest.raises(ProtocolError, match="consistency of alder: its signature"):
        client.unmask(played.members[1], state, replace(task, signatures=b"".join(forged)))
