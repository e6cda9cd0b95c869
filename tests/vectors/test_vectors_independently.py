"""The vectors against a second implementation that shares no code with the first (second_implementation.py)."""

import ast
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from vectors import second_implementation as second
from vectors.second_implementation import H, numbers

FOLDER = Path(__file__).parent
ROUNDS = ("secagg_three_clients.json", "secagg_dropout.json")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


class Round:
    """A vector with its hashes worked out anew."""

    def __init__(self, name: str) -> None:
        self.vector = vector = read(name)
        self.people = {int(number): each for number, each in vector["participants"].items()}
        self.identities = {int(number): raw(seed) for number, seed in vector["identities"].items()}
        self.names = {number: vector["roster"][number - 1]["name"] for number in self.people}
        roster = [(each["name"], each["public_key"], each["weight"]) for each in vector["roster"]]
        self.roster = second.roster_hash(roster)
        where = vector["session"]
        self.session = second.session_hash(where["run_id"], where["round"], where["attempt"], self.roster)
        self.advertisements = b"".join(self.advertisement(number) for number in self.people)
        self.first = H("first", self.session, self.advertisements)
        self.second = H("second", self.session, numbers(vector["result"]["second"]))
        self.third = H("third", self.session, numbers(vector["result"]["survivors"]))
        self.threshold = (len(self.people) + vector["policy"]["colluders"]) // 2 + 1
        grid = vector["grid"]
        self.context = second.context_hash(
            self.session,
            list(self.people),
            self.first,
            raw(grid["model_hash"]),
            raw(grid["config_hash"]),
            self.threshold,
            grid["length"],
            grid["bits"],
            grid["clip"],
        )

    def secrets(self, number: int) -> tuple[bytes, bytes, bytes]:
        """Mask secret, channel secret and coin: the 96 bytes drawn at ADVERTISE."""
        drawn = raw(self.people[number]["random"]["advertise"])
        return drawn[:32], drawn[32:64], drawn[64:]

    def advertisement(self, number: int) -> bytes:
        mask_secret, channel_secret, coin = self.secrets(number)
        keys = second.point(mask_secret), second.point(channel_secret), H("coin", self.session, number, coin)
        signed = second.signature(self.identities[number], "advertise", self.session, number, *keys)
        return second.le(number, 4) + b"".join(keys) + signed

    def shared(self, number: int) -> tuple[bytes, dict[int, bytes], dict[int, bytes]]:
        """The seed b and the shares of b and of s, from what was drawn at SHARE: the last 32 + 2 * 48 * (t - 1) bytes.

        Before them come the draws that choose whom to share with; with everyone, they change nothing.
        """
        drawn = raw(self.people[number]["random"]["share"])
        part = 48 * (self.threshold - 1)
        seed, of_b, of_s = drawn[-2 * part - 32 : -2 * part], drawn[-2 * part : -part], drawn[-part:]
        cut = [[each[at : at + 48] for at in range(0, part, 48)] for each in (of_b, of_s)]
        holders = list(self.people)
        return seed, second.shares(seed, holders, cut[0]), second.shares(self.secrets(number)[0], holders, cut[1])

    def mask_keys(self, number: int, peer: int) -> tuple[bytes, bytes]:
        secret = second.agreed(self.secrets(number)[0], second.point(self.secrets(peer)[0]))
        pair = min(number, peer), max(number, peer)
        return tuple(second.hkdf(secret, self.context, f"mask {part}", *pair) for part in ("body", "slots"))  # type: ignore[return-value]

    def self_keys(self, number: int, seed: bytes) -> tuple[bytes, bytes]:
        return tuple(second.hkdf(seed, self.context, f"self {part}", number) for part in ("body", "slots"))  # type: ignore[return-value]


@pytest.fixture(scope="module", params=ROUNDS)
def played(request: pytest.FixtureRequest) -> Round:
    return Round(request.param)


def test_all_randomness_is_the_labels(played: Round) -> None:
    people = played.people.values()
    drawn = b"".join(raw(each["random"].get(stage, "")) for stage in ("advertise", "share", "mask") for each in people)
    assert hashlib.shake_256(played.vector["random"]["label"].encode()).digest(len(drawn)) == drawn


def test_hashes(played: Round) -> None:
    for name, found in played.vector["hashes"].items():
        assert getattr(played, name).hex() == found, name
    assert played.vector["threshold"] == played.threshold
    assert [each["units"] for each in played.vector["roster"]] == [
        int(each["weight"] * 2**32) for each in played.vector["roster"]
    ]


def test_advertisements(played: Round) -> None:
    for number, each in played.people.items():
        reply = each["advertise"]["reply"]
        keys = raw(reply["mask_key"]) + raw(reply["channel_key"]) + raw(reply["coin"]) + raw(reply["signature"])
        assert second.le(reply["number"], 4) + keys == played.advertisement(number)
        task = each["share"]["task"]
        assert raw(task["advertisements"]) == played.advertisements
        assert (task["cohort"], task["threshold"]) == (list(played.people), played.threshold)
        assert (task["num_groups"], task["coins"]) == (1, "")


def test_shares_and_boxes(played: Round) -> None:
    for number, each in played.people.items():
        seed, of_b, of_s = played.shared(number)
        assert {int(peer): raw(pair) for peer, pair in each["secrets"]["share_pairs"].items()}.items() <= {
            holder: of_b[holder] + of_s[holder] for holder in played.people
        }.items()
        recipients = [peer for peer in played.people if peer != number]
        boxes = b""
        for peer in recipients:
            channel = second.agreed(played.secrets(number)[1], second.point(played.secrets(peer)[1]))
            key = second.hkdf(channel, played.session, "channel", number, peer)
            assert key.hex() == each["secrets"]["box_keys"][str(peer)]
            associated = H("box", played.session, played.first, number, peer)
            boxes += second.box(key, of_b[peer] + of_s[peer], associated)
        commitments = b"".join(
            H("share b", played.session, number, holder, of_b[holder])
            + H("share s", played.session, number, holder, of_s[holder])
            for holder in played.people
        )
        committed = H("seed", played.session, number, seed)
        parts = numbers(recipients), boxes, commitments, committed
        signed = second.signature(played.identities[number], "share", played.session, played.first, number, *parts)
        assert each["share"]["reply"] == {
            "recipients": recipients,
            "boxes": boxes.hex(),
            "commitments": commitments.hex(),
            "seed_commitment": committed.hex(),
            "signature": signed.hex(),
        }


def test_routed_boxes(played: Round) -> None:
    """What the server asks a participant for: the boxes to it, and its own part of everyone's commitments."""
    grid = played.vector["grid"]
    for number, each in played.people.items():
        if "mask" not in each:
            continue
        senders = [peer for peer in played.vector["result"]["second"] if peer != number]
        boxes = commitments = ""
        for sender in senders:
            shares = played.people[sender]["share"]["reply"]
            at = shares["recipients"].index(number)
            boxes += shares["boxes"][164 * at : 164 * (at + 1)]
            at = list(played.people).index(number)
            commitments += shares["commitments"][128 * at : 128 * (at + 1)]
        assert each["mask"]["task"] == {
            "session": played.vector["session"],
            "second": played.vector["result"]["second"],
            "senders": senders,
            "boxes": boxes,
            "commitments": commitments,
            "ring": 2**32,
            "length": grid["length"],
            "bits": grid["bits"],
            "clip": grid["clip"],
            "weight": played.vector["roster"][number - 1]["weight"],
            "threshold": played.threshold,
            "model_hash": grid["model_hash"],
            "config_hash": grid["config_hash"],
        }


def test_masked_bodies(played: Round) -> None:
    grid = played.vector["grid"]
    for number, each in played.people.items():
        if "mask" not in each:
            continue
        words = second.coded(each["value"], each["weight"], grid["bits"], grid["clip"], raw(each["random"]["mask"]))
        assert words == each["coded"]
        slots = [round(each["weight"] * 2**32), 1]
        own = played.self_keys(number, played.shared(number)[0])
        masks = [(1, own), *_pairs(played, number)]
        assert [key.hex() for key in own] == [each["keys"]["self"]["body"], each["keys"]["self"]["slots"]]
        for sign, (body_key, slots_key) in masks:
            words = [
                (word + sign * key) % 2**32
                for word, key in zip(words, second.stream(body_key, len(words), 4), strict=True)
            ]
            slots = [
                (slot + sign * key) % 2**64 for slot, key in zip(slots, second.stream(slots_key, 2, 8), strict=True)
            ]
        assert words == each["body"]
        packed, hashed = struct.pack("<2Q", *slots), hashlib.sha256(struct.pack(f"<{len(words)}I", *words)).digest()
        bound = played.context, played.first, played.second, number
        assert each["mask"]["reply"] == {
            "slots": packed.hex(),
            "signature": second.signature(played.identities[number], "upload", *bound, hashed, packed).hex(),
            "masked": second.signature(played.identities[number], "masked", *bound).hex(),
        }


def _pairs(played: Round, number: int) -> list[tuple[int, tuple[bytes, bytes]]]:
    found = []
    for peer in played.vector["result"]["second"]:
        if peer != number:
            keys, recorded = played.mask_keys(number, peer), played.people[number]["keys"][str(peer)]
            assert [key.hex() for key in keys] == [recorded["body"], recorded["slots"]]
            assert recorded["subtract"] == (number > peer)
            found.append((-1 if number > peer else 1, keys))
    return found


def test_confirmations_and_revealed_shares(played: Round) -> None:
    result = played.vector["result"]
    alive, dead = result["survivors"], [number for number in result["second"] if number not in result["survivors"]]
    signed = {
        number: second.signature(seed, "confirm", played.context, played.first, played.second, played.third).hex()
        for number, seed in played.identities.items()
    }
    signers = [number for number in alive if "confirm" in played.people[number]][: played.threshold]
    for number in alive:
        each = played.people[number]
        # Where nobody fell silent, everyone is shown whom it masked with, and reveals at once.
        words = b"" if dead else b"".join(raw(played.people[peer]["mask"]["reply"]["masked"]) for peer in alive)
        told = {"survivors": alive, "dropped": dead, "masked": words.hex()}
        assert each["confirm"]["task"] == {"session": played.vector["session"]} | told
        assert each["confirm"]["reply"] == signed[number]
        shares = b"".join(played.shared(owner)[1 if owner in alive else 2][number] for owner in result["second"])
        revealed = {"owners": result["second"], "shares": shares.hex(), "bad_dealers": []}
        assert each["confirm"].get("revealed") == (None if dead else revealed)
        if "unmask" not in each:
            continue
        assert dead
        assert each["unmask"]["task"] == {
            "session": played.vector["session"],
            "signers": signers,
            "signatures": "".join(signed[signer] for signer in signers),
            "masked": "",
        }
        assert each["unmask"]["reply"] == revealed


def test_the_sum_from_messages_alone(played: Round) -> None:
    """What a server can do with what it was sent: reconstruct, strip, add; and it is the plain sum."""
    result, length = played.vector["result"], played.vector["grid"]["length"]
    alive = result["survivors"]
    bodies = [played.people[number]["body"] for number in alive]
    slots = [struct.unpack("<2Q", raw(played.people[number]["mask"]["reply"]["slots"])) for number in alive]
    totals, counts = (
        [sum(words) for words in zip(*bodies, strict=True)],
        [sum(each) for each in zip(*slots, strict=True)],
    )
    for sign, (body_key, slots_key) in _left_in(played):
        stream = second.stream(body_key, length, 4)
        totals = [total - sign * key for total, key in zip(totals, stream, strict=True)]
        counts = [count - sign * key for count, key in zip(counts, second.stream(slots_key, 2, 8), strict=True)]
    words = [total % 2**32 for total in totals]
    assert words == result["sum_words"]
    coded = [played.people[number]["coded"] for number in alive]
    assert words == [sum(each) % 2**32 for each in zip(*coded, strict=True)]
    assert [count % 2**64 for count in counts] == [result["weight_units"], result["count"]]
    assert result["weight_units"] == sum(round(played.people[number]["weight"] * 2**32) for number in alive)
    grid = played.vector["grid"]
    assert [second.decoded(word, grid["bits"], grid["clip"]) for word in words] == result["sum"]
    for at, value in enumerate(result["sum"]):
        plain = sum(played.people[number]["value"][at] * played.people[number]["weight"] for number in alive)
        assert abs(value - plain) <= len(alive) * grid["clip"] / (2 ** (grid["bits"] - 1) - 1)


def _revealed(each: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (
        each["unmask"]["reply"] if "unmask" in each else each.get("confirm", {}).get("revealed")
    )
    return found


def _left_in(played: Round) -> list[tuple[int, tuple[bytes, bytes]]]:
    """The masks that the sum of the survivors still holds, each with its sign, from revealed shares."""
    result, found = played.vector["result"], []
    for place, owner in enumerate(result["second"]):
        replies = {number: _revealed(each) for number, each in played.people.items()}
        revealed = {
            number: raw(reply["shares"])[33 * place : 33 * (place + 1)] for number, reply in replies.items() if reply
        }
        secret = second.secret_of(dict(list(revealed.items())[: played.threshold]))
        if owner in result["survivors"]:
            found.append((1, played.self_keys(owner, secret)))
            continue
        for peer in result["survivors"]:
            public = raw(played.people[peer]["advertise"]["reply"]["mask_key"])
            pair = min(owner, peer), max(owner, peer)
            shared = second.agreed(secret, public)
            body, slots = (second.hkdf(shared, played.context, f"mask {part}", *pair) for part in ("body", "slots"))
            found.append((-1 if peer > owner else 1, (body, slots)))
    return found


def test_small_vectors() -> None:
    for case in read("secagg_digest.json")["cases"]:
        kinds: dict[str, Any] = {"bytes": raw, "text": str, "integer": int}
        parts = [kinds[kind](value) for part in case["parts"] for kind, value in part.items()]
        assert H(case["label"], *parts).hex() == case["digest"]
    for case in read("secagg_shamir.json")["cases"]:
        found = second.shares(raw(case["secret"]), case["holders"], [raw(draw) for draw in case["draws"]])
        assert [share.hex() for share in found.values()] == case["shares"]
        some = dict(list(found.items())[-case["threshold"] :])
        assert second.secret_of(some).hex() == case["secret"]
        first = dict(list(found.items())[: case["threshold"]])
        weights = [int(weight) for weight in case["lagrange_of_the_first"]]
        total = sum(
            weight * int.from_bytes(share, "little") for weight, share in zip(weights, first.values(), strict=True)
        )
        assert second.le(total % second.PRIME, 32).hex() == case["secret"]
    for case in read("secagg_keystream.json")["cases"]:
        assert second.stream(raw(case["key"]), case["count"], 4)[-6:] == case["last_words"]
    for case in read("secagg_coding.json")["cases"]:
        key = raw(case["rounding_key"])
        assert second.coded(case["values"], case["weight"], case["bits"], case["clip"], key) == case["words"]


def test_context_vectors() -> None:
    for case in read("secagg_context.json")["cases"]:
        session = second.session_hash(case["run_id"], case["round"], case["attempt"], raw(case["roster_hash"]))
        assert session.hex() == case["session"]
        hashes = [raw(case[name]) for name in ("first_hash", "model_hash", "config_hash")]
        grid = [case[name] for name in ("threshold", "length", "bits", "clip")]
        assert second.context_hash(session, case["cohort"], *hashes, *grid).hex() == case["context"]  # type: ignore[arg-type]


def test_the_second_implementation_is_independent() -> None:
    for name in ("second_implementation.py", Path(__file__).name):
        tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not [each for each in imported if each and each.split(".")[0] in {"common", "client", "server", "numpy"}]
        assert {each for each in imported if each and each.startswith("vectors")} <= {
            "vectors",
            "vectors.second_implementation",
        }
