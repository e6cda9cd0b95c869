"""The whole protocol on one page: `run_secagg` is every role, in order.

It is the figure of docs/SECAGG.md, the harness of the test vectors and the reference that the networked round
(server/round.py) is held against.

Legend: D coordinates of the body.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from common.secagg import client_role as client
from common.secagg.checks import Member
from common.secagg.coding import Coding, encode, require_codable
from common.secagg.keys import Random
from common.secagg.parameters import Policy, bits_for
from common.secagg.roster import Roster
from common.secagg.server_role import Gathering, Grid
from common.secagg.wire import SessionId


@dataclass(frozen=True)
class Dropouts:
    """Participant numbers that fall silent before a stage, and stay silent."""

    advertise: Collection[int] = ()
    share: Collection[int] = ()
    mask: Collection[int] = ()
    confirm: Collection[int] = ()
    unmask: Collection[int] = ()


@dataclass(frozen=True)
class Outcome:
    """What the server knows in the end.

    Attributes:
        sum_D: sum of the survivors' coded contributions in the ring, uint32.
        survivors: U3.
        weight: sum of the survivors' public weights.
        transcript: (stage, participant, message) in the order sent, replies of participants only.
    """

    sum_D: NDArray[np.uint32]
    survivors: tuple[int, ...]
    weight: float
    transcript: list[tuple[str, int, Any]] = field(repr=False)


def run_secagg(
    values: Mapping[int, NDArray[np.float32]],
    identities: Mapping[int, Ed25519PrivateKey],
    roster: Roster,
    session: SessionId,
    *,
    clip: float,
    policy: Policy | None = None,
    model_hash: bytes = bytes(32),
    config_hash: bytes = bytes(32),
    dropouts: Dropouts | None = None,
    random: Random = os.urandom,
) -> Outcome:
    """Returns the sum over all who stay to the end of stage 2.

    Args:
        values: participant number -> contribution, float32 [D], all of one length.
        identities: participant number -> its Ed25519 key, the roster's.
        roster: pinned by everyone.
        session: which round.
        clip: bound on a coordinate.
        policy: of every participant.
        model_hash, config_hash: what the contributions were made from.
        dropouts: who falls silent when.
        random: source of all randomness, asked in a fixed order: participants ascending, stage by stage.

    Raises:
        TooFewPartners: when too few are left at a stage.
        ProtocolError: when a participant or the server refuses a message.
    """
    policy, gone = policy or Policy(update_bound=clip), dropouts or Dropouts()
    silent: set[int] = set()
    transcript: list[tuple[str, int, Any]] = []
    members = {number: Member(number, identities[number], roster, policy) for number in sorted(values)}
    length = len(next(iter(values.values())))

    def left(among: Sequence[int], leaving: Collection[int]) -> list[int]:
        silent.update(leaving)
        return [number for number in among if number not in silent]

    def say(stage: str, number: int, message: Any) -> Any:
        transcript.append((stage, number, message))
        return message

    # 0 ADVERTISE: fresh keys, signed.
    server = Gathering(roster, session, list(members), policy.colluders)
    advertised = {}
    for number in left(list(members), gone.advertise):
        advertised[number], advertisement = client.advertise(members[number], session, random)
        server.add(number, say("advertise", number, advertisement))

    # 1 SHARE: everyone sees U1, and seals shares of its two secrets for its holders.
    (tally,) = server.tallies()
    shared = {}
    for number in left(list(advertised), gone.share):
        shared[number], shares = client.share(members[number], advertised[number], tally.share_task, random)
        tally.add_shares(number, say("share", number, shares))

    # 2 MASK: everyone opens its boxes, then codes, masks and sends.
    coding = Coding(bits_for(len(tally.first)), clip)
    weights = {number: roster.member(number).weight for number in members}
    tally.fix_second(Grid(length, coding.bits, clip, model_hash, config_hash), weights)
    masked = {}
    for number in left(list(tally.second), gone.mask):
        opened = client.open_boxes(members[number], shared[number], tally.mask_task(number))
        require_codable(values[number], weights[number], coding)
        masking = client.Masking(members[number], opened)
        coded = encode(values[number], weights[number], coding, random(32))
        pieces = [piece_D.copy() for piece_D in masking.pieces(coded)]
        masked[number], upload = masking.finish()
        tally.add_upload(number, pieces, say("mask", number, upload))
        transcript[-1:] = [("mask body", number, pieces), transcript[-1]]

    # 3 CONSISTENCY: the survivors sign who survives; where all do, with a share of everyone's b.
    tally.fix_third()
    unmasking = tally.unmasking()
    for number in left(list(tally.third), gone.confirm):
        if tally.everyone:
            signature, revealed = client.confirm_all(members[number], masked[number], tally.confirm_task())
            unmasking.add(number, say("reveal", number, revealed))
        else:
            masked[number], signature = client.confirm(members[number], masked[number], tally.confirm_task())
        tally.add_confirmation(number, say("confirm", number, signature))

    # 4 UNMASK: against enough of those signatures, a share of b for the living and of s for the dead.
    able = list(tally.confirmed())
    for number in left([] if tally.everyone else able, gone.unmask):
        revealed = client.unmask(members[number], masked[number], tally.unmask_task(number))
        unmasking.add(number, say("unmask", number, revealed))
    return Outcome(unmasking.finish(), tally.third, sum(weights[number] for number in tally.third), transcript)
