"""The good vectors: whole rounds with every message and intermediate value, and small ones for single functions."""

from dataclasses import asdict
from typing import Any

import numpy as np
from vectors.play import Play, Source, Step, cast
from vectors.records import plain

from common.secagg import shamir
from common.secagg.coding import Coding, decode, encode
from common.secagg.keys import agree, derive
from common.secagg.masking import keystream_words, pair_mask, self_mask
from common.secagg.parameters import Policy
from common.secagg.transcript import context_hash, digest, pack_numbers, participants_hash, session_hash
from common.secagg.wire import advertisements_of

MODEL_HASH, CONFIG_HASH = bytes(range(32)), bytes(range(32, 64))
VALUES_3 = ([0.5, -0.25, 0.001, -1.0, 1.0], [0.125, 0.3, -0.7, 0.0, 1.0], [-0.5, 0.9, 0.9, -0.9, 1.0])
VALUES_5 = ([0.5, -0.25], [0.1, 0.2], [0.99, -0.99], [0.0, 0.3], [-0.75, 0.6])


def three_clients() -> Play:
    """Three participants of different weights, of whom none drops out; one colluder, so that all three are needed."""
    label, weights = "hushclick test vector: three clients", (1.0, 0.5, 0.25)
    return _play(label, VALUES_3, weights, Policy(update_bound=1.0), at_once=True)


def dropout() -> Play:
    """Five participants: the third falls silent before MASK, the fifth before UNMASK."""
    policy = Policy(colluders=0, update_bound=1.0)
    return _play("hushclick test vector: dropout", VALUES_5, (1.0, 0.5, 0.25, 1.0, 0.75), policy, mask=[3], unmask=[5])


def _play(
    label: str, values: Any, weights: tuple[float, ...], policy: Policy, *, at_once: bool = False, **leaving: list[int]
) -> Play:
    arrays = {number: np.array(each, np.float32) for number, each in enumerate(values, start=1)}
    players = cast(weights, policy, label)
    hashes = {"model_hash": MODEL_HASH, "config_hash": CONFIG_HASH}
    return Play(players, arrays, Source(label), 1.0, **hashes, at_once=at_once).run(**leaving)


def transcript(played: Play, about: str, label: str) -> dict[str, Any]:
    """Returns a whole round as JSON."""
    identities = {number: key.private_bytes_raw() for number, key in played.cast.identities.items()}
    weight, count = played.unmasking.slots.tolist()
    sum_D = played.sum_D
    return {
        "about": about,
        "random": {
            "label": label,
            "how": "SHAKE-256 of the label, read from the start; participants ascending, stage by stage",
        },
        "identities": plain(identities),
        "roster": [plain(asdict(member) | {"units": member.units}) for member in played.cast.roster.members],
        "policy": asdict(played.cast.policy),
        "session": plain(played.session),
        "grid": plain(played.grid),
        "cohort": list(played.members),
        "threshold": played.tally.shape.threshold,
        "hashes": plain(_hashes(played)),
        "participants": {str(number): _participant(played, number) for number in played.members},
        "result": {
            "second": list(played.tally.second),
            "survivors": list(played.tally.third),
            "sum_words": plain(sum_D),
            "sum": decode(sum_D, count, Coding(played.grid.bits, played.grid.clip)).tolist(),
            "weight_units": weight,
            "count": count,
        },
    }


def _hashes(played: Play) -> dict[str, bytes]:
    session, tally = played.session, played.tally
    roster = played.cast.roster.hash
    hashed = session_hash(session.run_id, session.round, session.attempt, roster)
    return {
        "roster": roster,
        "session": hashed,
        "first": participants_hash("first", hashed, tally.share_task.advertisements),
        "second": participants_hash("second", hashed, pack_numbers(tally.second)),
        "third": participants_hash("third", hashed, pack_numbers(tally.third)),
        "context": tally.context,
    }


def _participant(played: Play, number: int) -> dict[str, Any]:
    steps: dict[str, Step] = {stage: each[number] for stage, each in played.steps.items() if number in each}
    found: dict[str, Any] = {
        "value": plain(played.values[number]),
        "weight": played.weights[number],
        "random": {stage: plain(step.random) for stage, step in steps.items() if step.random},
        "secrets": plain(_secrets(played, number)),
    }
    if "mask" in steps:
        found |= {"keys": plain(_keys(played, number)), "coded": plain(steps["mask"].coded)}
        found |= {"body": plain(steps["mask"].body)}
    for stage, step in steps.items():
        found[stage] = {"reply": plain(step.reply)} if stage == "advertise" else _exchange(step)
    if number in played.revealed:
        found["confirm"]["revealed"] = plain(played.revealed[number])
    return found


def _exchange(step: Step) -> dict[str, Any]:
    return {"task": plain(step.task), "reply": plain(step.reply)}


def _secrets(played: Play, number: int) -> dict[str, Any]:
    """Returns what no message holds: the secrets, and the share pairs (of b, of s) that its boxes carry."""
    state = played.steps["share"][number].after
    first = {advertisement.number: advertisement for advertisement in advertisements_of(state.first)}
    pairs = {number: state.own_shares}
    for other, step in played.steps["mask"].items():
        if other != number and step.opened is not None:
            pairs[other] = step.opened.held[number]
    return {
        "mask_secret": state.mask_secret,
        "channel_secret": state.channel_secret,
        "coin": played.steps["advertise"][number].after.coin,
        "seed": state.seed,
        "share_pairs": dict(sorted(pairs.items())),
        "box_keys": {
            peer: derive(agree(state.channel_secret, advertisement.channel_key), state.session, "channel", number, peer)
            for peer, advertisement in first.items()
            if peer != number
        },
    }


def _keys(played: Play, number: int) -> dict[str, Any]:
    opened = played.steps["mask"][number].opened
    if opened is None:
        return {}
    first = {advertisement.number: advertisement for advertisement in advertisements_of(opened.shared.first)}
    own = self_mask(opened.shared.seed, opened.context, number)
    found: dict[str, Any] = {"self": {"body": own.body, "slots": own.slots}}
    for peer in opened.task.senders:
        mask = pair_mask(opened.shared.mask_secret, first[peer].mask_key, opened.context, number, peer)
        found[str(peer)] = {"body": mask.body, "slots": mask.slots, "subtract": mask.subtract}
    return found


def digests() -> dict[str, Any]:
    """Returns hashes of labelled parts, among them pairs that are easily confused."""
    cases: list[tuple[str, tuple[bytes | str | int, ...]]] = [
        ("label", ()),
        ("label", ("",)),
        ("label", (b"",)),
        ("label", (0,)),
        ("label", ("ab",)),
        ("label", ("a", "b")),
        ("label", (b"ab",)),
        ("label", (2**64 - 1, "é", b"\xff")),
        ("label", (1, 256)),
        ("box", (bytes(32), bytes(range(32)), 1, 2)),
    ]
    return {
        "about": "digest(label, parts): a part is {type: value}; bytes are hex",
        "cases": [
            {
                "label": label,
                "parts": [{_kind(part): plain(part)} for part in parts],
                "digest": digest(label, *parts).hex(),
            }
            for label, parts in cases
        ],
    }


def _kind(part: bytes | str | int) -> str:
    return "bytes" if isinstance(part, bytes) else "text" if isinstance(part, str) else "integer"


def shares() -> dict[str, Any]:
    """Returns shares of fixed secrets; the drawn bytes are listed as the source gave them."""
    cases = []
    for number, (secret, holders, threshold) in enumerate(
        [
            (bytes(range(32)), (1, 2, 3), 2),
            (b"\xff" * 32, (1, 3, 4, 7, 65_536), 4),
            (bytes(32), (2, 9), 2),
        ]
    ):
        source = Source(f"hushclick test vector: shares {number}")
        found = shamir.split(secret, holders, threshold, source)
        cases.append(
            {
                "secret": secret.hex(),
                "holders": list(holders),
                "threshold": threshold,
                "draws": [draw.hex() for draw in source.draws],
                "shares": [share.hex() for share in found],
                "lagrange_of_the_first": [str(each) for each in shamir.lagrange_at_zero(holders[:threshold])],
            }
        )
    return {"about": "Shamir's scheme over 2^256 + 297; the highest coefficient is drawn first", "cases": cases}


def keystreams() -> dict[str, Any]:
    """Returns words of masks' keystreams, also behind the first block of 2^15 words."""
    cases = []
    for key, count in ((bytes(32), 6), (bytes(range(32)), 2**15 + 6)):
        words_D = keystream_words(key, count)
        cases.append({"key": key.hex(), "count": count, "last_words": words_D[-6:].tolist()})
    return {
        "about": "AES-256-CTR from a zero counter block, little-endian words; the last six of `count`",
        "cases": cases,
    }


def codings() -> dict[str, Any]:
    """Returns coded words."""
    key = bytes(range(32))
    cases = []
    for bits, clip, weight, values in (
        (8, 1.0, 1.0, [0.0, 1.0, -1.0, 0.3, -0.3, 0.5]),
        (26, 0.25, 0.5, [0.1, -0.1, 0.3, 0.5, -0.5, 0.7]),
        (23, 4.0, 1.0, [4.0, 4.1, -1e30, 0.001, 0.0, 3.9999]),
        (12, 0.0, 0.5, [0, 1, -1, 2047, -2047, 2**33 + 5]),
    ):
        value_D = np.array(values, np.float64 if clip else np.int64)
        words_D = np.concatenate(list(encode(value_D, weight, Coding(bits, clip), key)))
        cases.append(
            {
                "bits": bits,
                "clip": clip,
                "weight": weight,
                "rounding_key": key.hex(),
                "values": values,
                "words": words_D.tolist(),
            }
        )
    return {
        "about": "floor(clamp(weight * value) * scale + draw / 2^32), scale = (2^(bits - 1) - 1) / clip",
        "cases": cases,
    }


def contexts() -> dict[str, Any]:
    """Returns session and context hashes."""
    cases = []
    for run_id, round_number, attempt, cohort, threshold, length, bits, clip in (
        ("run", 0, 0, (1, 2, 3), 3, 5, 28, 1.0),
        ("lauf é", 2**32 - 1, 3, (1, 4, 65_536), 2, 2**33, 13, 0.0),
    ):
        hashed = session_hash(run_id, round_number, attempt, bytes(range(32)))
        fields: dict[str, Any] = {"threshold": threshold, "length": length, "ring": 2**32, "bits": bits, "clip": clip}
        hashes: dict[str, Any] = {
            "first_hash": bytes([1]) * 32,
            "model_hash": bytes([2]) * 32,
            "config_hash": bytes([3]) * 32,
        }
        found = context_hash(session=hashed, cohort=cohort, **hashes, **fields)
        cases.append(
            {
                "run_id": run_id,
                "round": round_number,
                "attempt": attempt,
                "roster_hash": bytes(range(32)).hex(),
                "session": hashed.hex(),
                "cohort": list(cohort),
                **plain(hashes),
                **fields,
                "context": found.hex(),
            }
        )
    return {"about": "session = digest(session, ...), context = digest(context, ...): see PROTOCOL.md", "cases": cases}
