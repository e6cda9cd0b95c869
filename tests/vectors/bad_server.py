"""The bad vectors whose receiver is the server: none of these protects a participant, all of them the sum."""

from dataclasses import replace
from typing import Any

from vectors.play import Play
from vectors.records import plain

from common.secagg.keys import sign
from common.secagg.transcript import pack_numbers, participants_hash
from common.secagg.wire import Advertisement


def server_cases(played: Play) -> dict[str, dict[str, Any]]:
    """Returns name -> vector; the sender is participant 1 unless another is named."""
    return _advertisements(played) | _shares(played) | _uploads(played) | _confirmations(played) | _revealed(played)


def _case(stage: str, refused_by: str, text: str, message: Any, **more: Any) -> dict[str, Any]:
    return {
        "receiver": "server",
        "stage": stage,
        "message": plain(message),
        "refused_by": refused_by,
        "text": text,
    } | more


def _advertisements(played: Play) -> dict[str, dict[str, Any]]:
    one, two = (played.steps["advertise"][number].reply for number in (1, 2))
    low = {name: _signed(played, replace(one, **{name: bytes(32)})) for name in ("mask_key", "channel_key")}
    return {
        "server_advertisement_of_another": _case(
            "advertise", "add", "an advertisement of participant 2 from participant 1", two
        ),
        "server_advertisement_renumbered": _case(
            "advertise", "verify", "advertisement of alder: its signature", replace(two, number=1)
        ),
        "server_low_order_mask_key": _case(
            "advertise", "require_good_key", "advertisement of alder: a public key of low order", low["mask_key"]
        ),
        "server_low_order_channel_key": _case(
            "advertise", "require_good_key", "advertisement of alder: a public key of low order", low["channel_key"]
        ),
        "server_advertisement_altered": _case(
            "advertise", "verify", "advertisement of alder: its signature", replace(one, coin=bytes(32))
        ),
    }


def _signed(played: Play, advertisement: Advertisement) -> Advertisement:
    hashed = played.steps["advertise"][1].after.session
    keys = advertisement.mask_key, advertisement.channel_key, advertisement.coin
    return replace(advertisement, signature=sign(played.cast.identities[1], "advertise", hashed, 1, *keys))


def _shares(played: Play) -> dict[str, dict[str, Any]]:
    shares = played.steps["share"][1].reply
    fewer = replace(shares, recipients=(2, 3, 4), boxes=shares.boxes[:-82], commitments=shares.commitments[:-64])
    return {
        "server_shares_for_fewer": _case("share", "add_shares", "shares for others", fewer),
        "server_shares_for_itself": _case(
            "share", "add_shares", "shares for others", replace(shares, recipients=(1, 2, 3, 4))
        ),
        "server_shares_for_a_stranger": _case(
            "share", "add_shares", "shares for others", replace(shares, recipients=(2, 3, 4, 6))
        ),
        "server_shares_altered": _case(
            "share", "verify", "shares of alder: its signature", replace(shares, seed_commitment=bytes(32))
        ),
        "server_shares_of_another": _case(
            "share", "verify", "shares of birch: its signature", replace(shares, recipients=(1, 3, 4, 5)), participant=2
        ),
    }


def _uploads(played: Play) -> dict[str, dict[str, Any]]:
    upload, body = (lambda step: (step.reply, plain(step.body)))(played.steps["mask"][1])
    short = "a masked body of 3 coordinates, the round has 2"

    def mask(refused_by: str, text: str, message: Any = upload, **more: Any) -> dict[str, Any]:
        return _case("mask", refused_by, text, message, **more)

    cases = {
        f"server_upload_of_{dtype}": mask("add_upload", "another type than uint32", dtype=dtype)
        for dtype in ("int32", "uint64", "float32")
    }
    cases["server_upload_of_int32"]["body"] = [1, 2]
    return cases | {
        "server_second_upload": mask("add_upload", "or a second one", after_all=True),
        "server_upload_too_long": mask("add_upload", short, body=[*body, 0]),
        "server_upload_too_short": mask("add_upload", "a masked body of 1 coordinates", body=body[:1]),
        "server_upload_altered": mask("verify", "masked body of alder: its signature", body=[body[0] ^ 1, body[1]]),
        "server_upload_swapped_words": mask("verify", "masked body of alder: its signature", body=body[::-1]),
        "server_slots_altered": mask(
            "verify", "masked body of alder", replace(upload, slots=bytes([upload.slots[0] ^ 1]) + upload.slots[1:])
        ),
        "server_slots_cut": mask("add_upload", "the round has 2", replace(upload, slots=upload.slots[:8])),
        "server_upload_of_another": mask("verify", "masked body of birch", participant=2, body=body),
    }


def _confirmations(played: Play) -> dict[str, dict[str, Any]]:
    hashed, tally = played.steps["advertise"][1].after.session, played.tally
    views = [participants_hash("first", hashed, tally.share_task.advertisements)]
    views += [
        participants_hash(label, hashed, pack_numbers(who))
        for label, who in (("second", tally.second), ("third", tally.third))
    ]
    dropped = sign(played.cast.identities[3], "confirm", tally.context, *views)
    two = played.steps["confirm"][2].reply
    return {
        "server_confirmation_of_another": _case("confirm", "verify", "consistency of alder: its signature", two),
        "server_confirmation_by_a_dropped_one": _case(
            "confirm", "add_confirmation", "one who does not survive", dropped, participant=3
        ),
    }


def _revealed(played: Play) -> dict[str, dict[str, Any]]:
    revealed = played.steps["unmask"][1].reply
    others = "shares of others than this participant's owners"
    return {
        "server_revealed_twice": _case("unmask", "add", others, replace(revealed, owners=(1, 2, 3, 4, 4))),
        "server_revealed_of_a_stranger": _case("unmask", "add", others, replace(revealed, owners=(1, 2, 3, 4, 6))),
        "server_revealed_cut": _case(
            "unmask", "parts_of", "shares: 164 bytes, expected 5 parts", replace(revealed, shares=revealed.shares[:-1])
        ),
    }
