"""The bad vectors: one message (or a few) of a good round replaced, and the step that must refuse it.

A vector names its base, who receives what instead, at which stage the refusal is due, the function that refuses and a
part of its text. Everything before that stage must be accepted.
"""

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from vectors.bad_server import server_cases
from vectors.play import Play, Source
from vectors.records import plain

from common.secagg import client_role as client
from common.secagg.checks import Member
from common.secagg.keys import SIGNATURE_BYTES, public_key, sign
from common.secagg.roster import Roster
from common.secagg.wire import (
    BOX_BYTES,
    Advertisement,
    ShareTask,
    advertisements_of,
    parts_of,
)

THREE, DROPOUT = "secagg_three_clients.json", "secagg_dropout.json"
STRANGER = Ed25519PrivateKey.from_private_bytes(b"stranger" * 4)


def bad_vectors(three: Play, dropout: Play) -> dict[str, dict[str, Any]]:
    """Returns file name -> vector."""
    found = {}
    for base, cases in (
        (THREE, _share_cases(three)),
        (THREE, _low_order_mask_key(three)),
        (DROPOUT, _grid_cases(dropout)),
        (DROPOUT, _participant_cases(dropout)),
        (DROPOUT, _box_cases(dropout)),
        (DROPOUT, _confirm_cases(dropout)),
        (DROPOUT, _unmask_cases(dropout)),
        (DROPOUT, _split_cases(dropout)),
        (DROPOUT, server_cases(dropout)),
    ):
        for name, case in cases.items():
            receiver = {"base": base, "receiver": "participant", "participant": 1}
            found[f"secagg_bad_{name}.json"] = {"about": name.replace("_", " ")} | receiver | case
    return found


def _case(
    stage: str, refused_by: str, text: str, policy: Any = None, skips: Any = (), **messages: Any
) -> dict[str, Any]:
    return {
        "policy": policy or {},
        "skips": list(skips),
        "messages": {name: plain(message) for name, message in messages.items()},
        "stage": stage,
        "refused_by": refused_by,
        "text": text,
    }


def _with(task: ShareTask, *advertisements: Advertisement, **changes: Any) -> ShareTask:
    return replace(task, advertisements=b"".join([each.to_bytes() for each in advertisements]), **changes)


def _signed(played: Play, advertisement: Advertisement, identity: Ed25519PrivateKey) -> Advertisement:
    hashed = played.steps["advertise"][1].after.session
    number, keys = advertisement.number, (advertisement.mask_key, advertisement.channel_key, advertisement.coin)
    return replace(advertisement, signature=sign(identity, "advertise", hashed, number, *keys))


def _share_cases(played: Play) -> dict[str, dict[str, Any]]:
    """U1 as a lying server shows it to participant 1."""
    task = played.tally.share_task
    one, two, three = advertisements_of(task.advertisements)
    attackers = public_key(bytes(range(32)))
    swapped = replace(two, mask_key=attackers)
    stranger = _signed(played, replace(swapped, channel_key=attackers), STRANGER)
    own_other = _signed(played, replace(one, mask_key=attackers), played.cast.identities[1])
    low_order = _signed(played, replace(two, channel_key=bytes(32)), played.cast.identities[2])
    signature, own = "its signature is not that of the roster's key over this round", "missing or replaced"

    def share(refused_by: str, text: str, message: ShareTask, policy: Any = None) -> dict[str, Any]:
        return _case("share", refused_by, text, policy, share=message)

    cases = {
        "key_swapped": share("check_signature", signature, _with(task, one, swapped, three)),
        "signed_by_a_stranger": share("check_signature", signature, _with(task, one, stranger, three)),
        "identity_outside_the_roster": share(
            "require_ascending",
            "advertisements: a participant outside the roster of 3",
            _with(task, one, two, three, replace(stranger, number=4)),
        ),
        "cohort_outside_the_roster": share(
            "require_ascending", "cohort: a participant outside the roster of 3", replace(task, cohort=(1, 2, 3, 4))
        ),
        "cohort_twice": share("require_ascending", "cohort: participants must be", replace(task, cohort=(1, 2, 2, 3))),
        "identity_outside_the_cohort": share("checked_first", "not in the cohort", replace(task, cohort=(1, 2))),
        "own_entry_replaced": share("checked_first", own, _with(task, own_other, two, three)),
        "own_entry_missing": share("checked_first", own, _with(task, two, three)),
        "duplicate_participant": share("require_ascending", "named once each", _with(task, one, two, two, three)),
        "unordered_participants": share("require_ascending", "in ascending order", _with(task, two, one, three)),
        "half_an_advertisement": share(
            "parts_of", "expected whole parts of 164", replace(task, advertisements=task.advertisements[:-1])
        ),
        "threshold_too_low": share(
            "checked_shape", "threshold = 2: this partner needs 3 of 3", replace(task, threshold=2)
        ),
        "threshold_too_high": share("checked_shape", "threshold = 4: this partner needs 3", replace(task, threshold=4)),
        "threshold_under_the_policys": share(
            "checked_shape", "at least aggregation.least_threshold = 4", task, {"least_threshold": 4}
        ),
        "two_participants": share("shape", "at least 3 (colluders = 1)", _with(task, one, two, threshold=2)),
        "fewer_than_the_policys_participants": share(
            "checked_shape", "aggregation.least_participants is 4", task, {"least_participants": 4}
        ),
        "too_few_for_the_policys_colluders": share("shape", "at least 4 (colluders = 2)", task, {"colluders": 2}),
        "low_order_channel_key": share("agree", "low order", _with(task, one, low_order, three)),
        "coins_without_groups": share("group_of", "coins without groups", replace(task, coins=bytes(32))),
        "groups_without_coins": share("group_of", "than the coin was revealed for", replace(task, num_groups=2)),
    }
    for what, replayed in _replayed(played).items():
        cases[f"replayed_from_another_{what}"] = share("check_signature", signature, _with(task, one, replayed, three))
    return cases


def _replayed(played: Play) -> dict[str, Advertisement]:
    """Participant 2's own, genuine advertisements for other sessions."""
    session, member = played.session, played.members[2]
    lighter = Roster(tuple(replace(each, weight=each.weight / 2) for each in played.cast.roster.members))
    other = replace(member, roster=lighter)
    pairs: dict[str, tuple[Member, Any]] = {
        "round": (member, replace(session, round=session.round - 1)),
        "run": (member, replace(session, run_id="another run")),
        "attempt": (member, replace(session, attempt=1)),
        "roster": (other, session),
    }
    return {what: client.advertise(who, where, Source(f"replayed {what}"))[1] for what, (who, where) in pairs.items()}


def _low_order_mask_key(played: Play) -> dict[str, dict[str, Any]]:
    """Participant 2 signs a mask key of low order: everyone would know its pairwise masks."""
    again = Play(
        played.cast,
        played.values,
        Source("hushclick test vector: three clients"),
        played.clip,
        played.session,
        played.model_hash,
        played.config_hash,
    )
    again.advertise()
    step = again.steps["advertise"][2]
    bad = _signed(played, replace(step.reply, mask_key=bytes(32)), played.cast.identities[2])
    step.after = replace(step.after, own=bad.to_bytes())
    again.server._found[2] = bad  # an honest server refuses it
    again.share()
    again.tally.fix_second(played.grid, again.weights)
    messages = {"share": again.tally.share_task, "mask": again.tally.mask_task(1)}
    return {"low_order_mask_key": _case("mask", "pair_mask", "low order", **messages)}


def _grid_cases(played: Play) -> dict[str, dict[str, Any]]:
    """What participant 1 is to code for."""
    task = played.steps["mask"][1].task

    def mask(refused_by: str, text: str, policy: Any = None, **changes: Any) -> dict[str, Any]:
        return _case("mask", refused_by, text, policy, mask=replace(task, **changes))

    rings = {"of_2": 2, "of_0": 0, "negative": -(2**32), "of_2_to_63": 2**63, "of_2_to_31": 2**31}
    cases = {
        f"ring_{name}": mask("check_grid", f"ring = {ring}: must be 4294967296", ring=ring)
        for name, ring in rings.items()
    }
    for name, length in {"of_0": 0, "negative": -1, "of_2_to_40": 2**40}.items():
        cases[f"length_{name}"] = mask("check_grid", f"length = {length}: must be from 1", length=length)
    return cases | {
        "length_of_another_model": mask("finish", "a body of 2 coordinates, the round has 3", length=3),
        "bits_fewer": mask("check_grid", "bits = 26: 5 participants use 27", bits=26),
        "bits_that_wrap": mask("check_grid", "bits = 28: 5 participants use 27", bits=28),
        "bits_of_no_grid": mask("check_grid", "bits = 0: 5 participants use 27", bits=0),
        "bits_above_the_policys": mask("check_grid", "this partner allows 12 to 20", {"most_bits": 20}),
        "bits_below_the_policys": mask("check_grid", "this partner allows 28 to 28", {"least_bits": 28}),
        "clip_negative": mask("check_grid", "update_bound = -1.0: this partner's", clip=-1.0),
        "clip_over_the_policys": mask("check_grid", "update_bound = 2.0: this partner's aggregation", clip=2.0),
        "clip_under_the_policys": mask("check_grid", "aggregation.update_bound is 4", {"update_bound": 4.0}),
        "weight_over_its_cap": mask("check_grid", "weight = 1.5: this partner's weight in the roster is 1", weight=1.5),
        "weight_under_the_rosters": mask("check_grid", "weight = 0.001: this partner's weight", weight=0.001),
        "weight_of_zero": mask("check_grid", "weight = 0.0: this partner's weight", weight=0.0),
        "weight_negative": mask("check_grid", "weight = -1.0: this partner's weight", weight=-1.0),
        "model_hash_cut": mask("check_grid", "must have 32 bytes", model_hash=bytes(31)),
        "config_hash_missing": mask("check_grid", "must have 32 bytes", config_hash=b""),
        "threshold_changed": mask("open_boxes", "threshold = 2: the shares were made for 3", threshold=2),
    }


def _participant_cases(played: Play) -> dict[str, dict[str, Any]]:
    """U2 as it cannot be."""
    task = played.steps["mask"][1].task
    ads = advertisements_of(played.tally.share_task.advertisements)
    smaller = _with(played.tally.share_task, *ads[:4])

    def mask(refused_by: str, text: str, share: Any = None, **changes: Any) -> dict[str, Any]:
        messages = {"share": share} if share else {}
        return _case("mask", refused_by, text, **messages, mask=replace(task, **changes))

    return {
        "second_outside_the_first": mask("check_second", "U2 names one who is not in U1", smaller),
        "second_without_itself": mask("check_second", "is not in U2", second=(2, 3, 4, 5)),
        "second_too_few": mask("check_second", "2 participants sent shares: at least 3", second=(1, 2)),
        "second_twice": mask("require_ascending", "U2: participants must be named once", second=(1, 2, 2, 3, 4, 5)),
        "sender_left_out": mask("peers_of", "boxes of others than U2", senders=(2, 3, 4)),
        "sender_outside_the_second": mask("peers_of", "boxes of others than U2", second=(1, 2, 3, 4)),
        "sender_twice": mask("require_ascending", "senders: participants must be named once", senders=(2, 2, 3, 4, 5)),
    }


def _box_cases(played: Play) -> dict[str, dict[str, Any]]:
    """Boxes that are not what their sender sealed for participant 1 in this round."""
    task = played.steps["mask"][1].task
    boxes = parts_of(task.boxes, BOX_BYTES, "boxes")
    of_three = parts_of(played.steps["share"][3].reply.boxes, BOX_BYTES, "boxes")  # to 1, 2, 4, 5
    flipped = bytes([boxes[0][0] ^ 1]) + boxes[0][1:]
    tag = boxes[0][:-1] + bytes([boxes[0][-1] ^ 0x80])
    later = replace(played.session, round=played.session.round + 1)
    other = Play(played.cast, played.values, Source("another round"), session=later).run()
    (old, *_) = parts_of(other.steps["mask"][1].task.boxes, BOX_BYTES, "boxes")

    def mask(refused_by: str, text: str, *parts: bytes) -> dict[str, Any]:
        return _case("mask", refused_by, text, mask=replace(task, boxes=b"".join(parts)))

    closed = "box from birch: does not open"
    return {
        "box_flipped": mask("open_box", closed, flipped, *boxes[1:]),
        "box_tag_flipped": mask("open_box", closed, tag, *boxes[1:]),
        "box_for_another": mask("open_box", "box from cedar: does not open", boxes[0], of_three[1], *boxes[2:]),
        "boxes_swapped": mask("open_box", closed, boxes[1], boxes[0], *boxes[2:]),
        "box_of_another_round": mask("open_box", closed, old, *boxes[1:]),
        "box_missing": mask("parts_of", "boxes: 246 bytes, expected 4 parts of 82", *boxes[:3]),
        "box_cut": mask("parts_of", "boxes: 327 bytes, expected 4 parts of 82", *boxes[:3], boxes[3][:-1]),
    }


def _confirm_cases(played: Play) -> dict[str, dict[str, Any]]:
    """U3 as it cannot be; the truth is (1, 2, 4, 5) of (1, 2, 3, 4, 5)."""
    task = played.steps["confirm"][1].task

    def confirm(refused_by: str, text: str, survivors: Any, dropped: Any, policy: Any = None) -> dict[str, Any]:
        return _case("confirm", refused_by, text, policy, confirm=replace(task, survivors=survivors, dropped=dropped))

    return {
        "alive_and_dead": confirm("confirm", "both alive and dead", (1, 2, 4, 5), (2, 3)),
        "neither_alive_nor_dead": confirm("confirm", "do not make up U2", (1, 2, 4, 5), ()),
        "survivor_outside_the_roster": confirm("require_ascending", "survivors: a participant", (1, 2, 4, 5, 6), (3,)),
        "survivor_twice": confirm("require_ascending", "survivors: participants", (1, 2, 2, 4, 5), (3,)),
        "declared_dead_itself": confirm("confirm", "not among the survivors", (2, 4, 5), (1, 3)),
        "survivors_too_few": confirm("confirm", "2 survivors: at least 3 are needed", (1, 2), (3, 4, 5)),
        "survivors_under_the_policys": confirm(
            "confirm", "4 survivors: at least 5 are needed", (1, 2, 4, 5), (3,), {"least_participants": 5}
        ),
    }


def _unmask_cases(played: Play) -> dict[str, dict[str, Any]]:
    """Consistency signatures that are too few, or not what they should be; the truth is those of 1, 2 and 4."""
    task = played.steps["unmask"][1].task
    signatures = parts_of(task.signatures, SIGNATURE_BYTES, "signatures")
    flipped = bytes([signatures[1][0] ^ 1]) + signatures[1][1:]
    uploads = [played.steps["mask"][number].reply.signature for number in task.signers]

    def unmask(refused_by: str, text: str, *parts: bytes, skips: Any = (), **changes: Any) -> dict[str, Any]:
        message = replace(task, signatures=b"".join(parts or signatures), **changes)
        return _case("unmask", refused_by, text, skips=skips, unmask=message)

    consistency = "consistency of birch: its signature is not"
    return {
        "signatures_too_few": unmask(
            "unmask", "2 consistency signatures: at least 3 are needed", *signatures[:2], signers=(1, 2)
        ),
        "signatures_none": unmask("parts_of", "signatures: 192 bytes, expected 0 parts", signers=()),
        "signature_flipped": unmask("verify", consistency, signatures[0], flipped, signatures[2]),
        "signature_of_another": unmask("verify", consistency, signatures[0], signatures[0], signatures[2]),
        "signature_counted_twice": unmask(
            "require_ascending", "signers: participants must be named", signers=(1, 2, 2)
        ),
        "signature_of_a_dropped_one": unmask("unmask", "not a surviving holder", signers=(1, 2, 3)),
        "signature_of_a_stranger": unmask("require_ascending", "signers: a participant outside", signers=(1, 2, 6)),
        "signatures_of_uploads": unmask("verify", "consistency of alder: its signature is not", *uploads),
        "unmask_before_consistency": unmask("unmask", "UNMASK before CONSISTENCY", skips=["confirm"]),
        "masked_signatures_without_neighbours": unmask(
            "_check_masked", "masked: 64 bytes, expected 0 parts", masked=bytes(64)
        ),
    }


def _split_cases(played: Play) -> dict[str, dict[str, Any]]:
    """What participant 1 alone is shown; each message by itself is as good as the truth."""
    share, mask = played.tally.share_task, played.steps["mask"][1].task
    confirm, unmask = played.steps["confirm"][1].task, played.steps["unmask"][1].task
    ads = advertisements_of(share.advertisements)
    without_five = replace(mask, second=(1, 2, 3, 4), senders=(2, 3, 4), boxes=mask.boxes[:-82])
    without_three = replace(
        mask,
        second=(1, 2, 4, 5),
        senders=(2, 4, 5),
        boxes=mask.boxes[:82] + mask.boxes[164:],
        commitments=mask.commitments[:64] + mask.commitments[128:],
    )

    def late(**messages: Any) -> dict[str, Any]:
        return _case("unmask", "verify", "consistency of birch: its signature is not", **messages)

    # The first signer is participant 1 itself: its own signature over its own view would be good.
    others = replace(unmask, signers=(2, 4, 5), signatures=_signatures(played, (2, 4, 5)))
    return {
        "split_first": _case(
            "mask",
            "open_box",
            "box from birch: does not open",
            share=_with(share, *ads[:4]),
            mask=replace(without_five, commitments=mask.commitments[:-64]),
        ),
        "split_second": late(mask=without_three, confirm=replace(confirm, dropped=()), unmask=others),
        "split_third": late(confirm=replace(confirm, survivors=(1, 2, 3, 4, 5), dropped=()), unmask=others),
        "another_model": late(mask=replace(mask, model_hash=bytes(32)), unmask=others),
        "another_configuration": late(mask=replace(mask, config_hash=bytes(32)), unmask=others),
        "another_clip": late(mask=replace(mask, clip=0.0), unmask=others),
    }


def _signatures(played: Play, signers: tuple[int, ...]) -> bytes:
    return b"".join([played.steps["confirm"][signer].reply for signer in signers])
