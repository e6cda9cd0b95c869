"""More than a hundred participants: shares and masks along chosen neighbours, and the attack that this opens.

Legend: D coordinates.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from vectors.play import Play, Source, play

from common.errors import ProtocolError, TooFewPartners
from common.secagg import client_role as client
from common.secagg.keys import sign
from common.secagg.masking import Masker, MaskKeys, self_mask
from common.secagg.states import Opened
from common.secagg.transcript import digest, pack_numbers, participants_hash
from common.secagg.wire import ConfirmTask, MaskTask, advertisements_of

NUM, VICTIM = 110, 7


@pytest.fixture(scope="module")
def shared() -> Play:
    """Up to the shares of all but participants 1 and 2."""
    return play(NUM, "neighbours", length=2).until("mask", advertise=[1], share=[2])


@pytest.fixture(scope="module")
def masked(shared: Play) -> Play:
    """Up to the masked bodies of all but participants 3, 4 and 5 besides."""
    played = deepcopy_of(shared)
    played.mask([3, 4, 5])
    return played


def deepcopy_of(played: Play) -> Play:
    """A copy that goes on by itself; keys cannot be copied and need not be."""
    again = Play(played.cast, played.values, played.source, played.clip, played.session)
    again.steps = {stage: dict(steps) for stage, steps in played.steps.items()}
    again.silent, again.server, again.tally = set(played.silent), played.server, deepcopy(played.tally)
    if hasattr(played, "grid"):
        again.grid = played.grid
    return again


def test_everyone_shares_with_its_own_neighbours(shared: Play) -> None:
    shape = shared.tally.shape
    assert not shape.complete
    chosen = {number: step.reply.recipients for number, step in shared.steps["share"].items()}
    assert {len(recipients) for recipients in chosen.values()} == {shape.num_holders - 1}
    assert all(number not in recipients for number, recipients in chosen.items())
    assert len(set(chosen.values())) == len(chosen)
    assert not any(1 in recipients for recipients in chosen.values())


def test_the_sum_is_the_plain_sum_with_dropouts_at_every_stage(masked: Play) -> None:
    played = deepcopy_of(masked)
    played.confirm([6])
    played.unmask([8, 9])
    found_D = played.unmasking.finish()
    assert np.array_equal(found_D, played.plain_sum())
    assert len(played.tally.third) == NUM - 5
    assert played.unmasking.slots.tolist() == [(NUM - 5) * 2**32, NUM - 5]
    assert not played.unmasking.faults


def test_masks_run_along_choices_of_either_side(masked: Play) -> None:
    task: MaskTask = masked.steps["mask"][VICTIM].task
    opened = masked.steps["mask"][VICTIM].opened
    assert opened is not None
    peers = (set(masked.steps["share"][VICTIM].reply.recipients) & set(masked.tally.second)) | set(task.senders)
    assert len(opened.masks) == 1 + len(peers)
    assert len(peers) < NUM - 10
    assert sorted(opened.held) == sorted({VICTIM, *task.senders})


def test_too_few_holders_left_at_unmask(masked: Play) -> None:
    played = deepcopy_of(masked)
    played.confirm()
    played.unmask(range(40, NUM + 1))
    with pytest.raises(TooFewPartners, match=r"shares of participant \d+'s secret, \d+ are needed: \d+ too few"):
        played.unmasking.finish()


def test_signatures_of_peers_are_checked_before_masking_with_them(shared: Play) -> None:
    """Not all of U1 is verified at SHARE, so that whoever is masked with must be: here one who chose the victim."""
    played = deepcopy_of(shared)
    played.tally.fix_second(play(4, "grid").until("confirm").grid, dict.fromkeys(played.members, 1.0))
    state = played.steps["share"][VICTIM].after
    task = replace(played.tally.mask_task(VICTIM), bits=23, length=2)
    stranger = next(sender for sender in task.senders if sender not in state.holders)
    first = advertisements_of(state.first)
    swapped = [replace(each, coin=bytes(32)) if each.number == stranger else each for each in first]
    doubtful = replace(state, first=b"".join([each.to_bytes() for each in swapped]))
    client.open_boxes(played.members[VICTIM], state, task)
    name = played.cast.roster.member(stranger).name
    with pytest.raises(ProtocolError, match=f"advertisement of {name}: its signature"):
        client.open_boxes(played.members[VICTIM], doubtful, task)


def test_signatures_of_the_chosen_are_checked_before_sharing_with_them(shared: Play) -> None:
    """Whoever is drawn must have signed; a box to a key of the server's would be the server's to open."""
    state, task = shared.steps["advertise"][VICTIM].after, shared.tally.share_task
    first = advertisements_of(task.advertisements)
    unsigned = [each if each.number == VICTIM else replace(each, signature=bytes(64)) for each in first]
    blob = b"".join([each.to_bytes() for each in unsigned])
    with pytest.raises(ProtocolError, match=r"advertisement of p\d+: its signature"):
        client.share(shared.members[VICTIM], state, replace(task, advertisements=blob), Source("unsigned"))


def lonely_task(played: Play) -> MaskTask:
    """A U2 for the victim alone, large enough, with none of those who hold its shares or whose shares it holds."""
    neighbours = set(played.steps["share"][VICTIM].reply.recipients)
    others = [number for number in played.tally.second if number not in neighbours]
    least = played.tally.shape.least_survivors
    assert len(others) >= least
    task = played.tally.mask_task(VICTIM)
    return replace(task, second=tuple(others), senders=(), boxes=b"", commitments=b"")


def test_a_lie_about_u2_to_one_participant_opens_nothing(masked: Play) -> None:
    """The victim masks with its seed alone. Whoever holds a share of that seed must not give it away.

    Without the holders' third rule (graph.py), t of them would, and the last line would show the victim's words.
    """
    played = deepcopy_of(masked)
    step = played.steps["mask"][VICTIM]
    try:
        opened = client.open_boxes(played.members[VICTIM], step.before, lonely_task(played))
    except ProtocolError:
        return  # it does not even mask
    assert len(opened.masks) == 1
    masking = client.Masking(played.members[VICTIM], opened)
    assert step.coded is not None
    (body_D,) = masking.pieces(iter([step.coded.copy()]))
    _, upload = masking.finish()
    # The lying server counts the victim among the survivors, with the only signature that it has.
    played.tally._uploads[VICTIM] = upload.masked
    played.confirm([VICTIM])
    shares, refusals = {}, 0
    for number in played.tally.confirmed():
        state, task = played.steps["confirm"][number].after, played.tally.unmask_task(number)
        try:
            revealed = client.unmask(played.members[number], state, task)
        except ProtocolError as error:
            refusals += "masked body of" in str(error)
            continue
        if VICTIM in revealed.owners:
            shares[number] = revealed
    assert not shares
    assert refusals >= played.tally.shape.threshold
    # What was at stake: with the seed, the victim's words lie open.
    mask = self_mask(step.before.seed, opened.context, VICTIM)
    Masker([MaskKeys(mask.body, mask.slots, subtract=True)]).apply(body_D)
    assert np.array_equal(body_D, step.coded)


def test_no_share_leaves_without_every_survivors_word(masked: Play) -> None:
    """`UnmaskTask.masked` must be there, complete, in order, and of this context."""
    played = deepcopy_of(masked)
    played.confirm()
    number = played.tally.confirmed()[0]
    state, task = played.steps["confirm"][number].after, played.tally.unmask_task(number)
    client.unmask(played.members[number], state, task)
    owner = next(owner for owner in sorted(state.held) if owner != number and owner in played.tally.third)
    elsewhere = sign(played.cast.identities[owner], "masked", digest("other"), state.first_hash, bytes(32), owner)
    for wrong in (b"", task.masked[64:], task.masked[64:] + task.masked[:64], elsewhere + task.masked[64:]):
        with pytest.raises(ProtocolError, match="masked"):
            client.unmask(played.members[number], state, replace(task, masked=wrong))


def test_an_upload_that_masked_within_another_u2_does_not_count(masked: Play) -> None:
    played = deepcopy_of(masked)
    step = played.steps["mask"][VICTIM]
    opened = client.open_boxes(played.members[VICTIM], step.before, lonely_task(played))
    _, upload = _upload(played, opened)
    del played.tally._uploads[VICTIM]
    with pytest.raises(ProtocolError, match="masked body of p0007: its signature"):
        played.tally.add_upload(VICTIM, [step.body], replace(step.reply, masked=upload.masked))  # type: ignore[list-item]


def _upload(played: Play, opened: Opened):  # type: ignore[no-untyped-def]
    masking = client.Masking(played.members[VICTIM], opened)
    list(masking.pieces(iter([np.zeros(2, np.uint32)])))
    return masking.finish()


def test_neighbours_are_drawn_from_the_participants_own_source() -> None:
    """After U1 is fixed, and by nothing that the server says: another source, other neighbours."""
    played = play(102, "draws", length=1).until("share")
    (tally,) = played.server.tallies()
    state = played.steps["advertise"][1].after
    chosen = {
        client.share(played.members[1], state, tally.share_task, Source(label))[1].recipients
        for label in ("one", "two")
    }
    assert len(chosen) == 2


def test_no_share_leaves_together_with_the_survivors(masked: Play) -> None:
    """With everyone's word, and all of U2 alive: that who reveals is final needs the complete graph."""
    played, state = deepcopy_of(masked), masked.steps["mask"][VICTIM].after
    second = participants_hash("second", state.session, pack_numbers(state.second))
    bound = state.context, state.first_hash, second
    words = [sign(played.cast.identities[number], "masked", *bound, number) for number in state.second]
    task = ConfirmTask(played.session, state.second, (), b"".join(words))
    client.confirm(played.members[VICTIM], state, task)
    with pytest.raises(ProtocolError, match="shares together with the survivors"):
        client.confirm_all(played.members[VICTIM], state, task)
    played.tally.third = played.tally.second
    assert not played.tally.everyone
    assert played.tally.confirm_task().masked == b""
