"""Public numbers of a round: thresholds, bits, and what a partner's own policy allows.

Legend: n participants (|U1|), c colluders, t threshold.
"""

from dataclasses import dataclass

from common.errors import ProtocolError
from common.secagg.graph import MOST_COMPLETE, neighbourhood

RING = 2**32
HEADROOM_BITS = 2
LEAST_PARTICIPANTS = 3  # of two, each knows the other's contribution: the sum minus its own
MOST_PARTICIPANTS = 2**16
MOST_BITS = 28  # what three participants leave in the ring


@dataclass(frozen=True)
class Policy:
    """What one participant allows; nothing that a server sends can loosen it.

    Attributes:
        colluders: partners that may collude with the server and still learn no single contribution.
        least_participants: fewest advertisements (|U1|) that it shares secrets with, and fewest survivors of a sum.
        least_threshold: smallest threshold on top of what `colluders` asks for.
        least_bits, most_bits: range of bits per coordinate, which otherwise follow from the participants' number.
        update_bound: the bound on a coordinate, neither more nor less: a server that could choose it would learn, from
            whether an update without privacy is refused, how large the update is.
    """

    colluders: int = 1
    least_participants: int = LEAST_PARTICIPANTS
    least_threshold: int = 2
    least_bits: int = 12
    most_bits: int = MOST_BITS
    update_bound: float = 4.0


@dataclass(frozen=True)
class Shape:
    """How secrets are shared among n participants.

    Attributes:
        num_holders: participants that hold a share of an owner's secrets, the owner among them.
        threshold: shares that reconstruct a secret, and confirmations that a participant must see.
        least_survivors: smallest U2 and U3.
        complete: whether everyone holds a share of everyone.
    """

    num_holders: int
    threshold: int
    least_survivors: int
    complete: bool


def majority(num_participants: int, colluders: int) -> int:
    """Returns t = floor((n + c) / 2) + 1: two sets of t participants share an honest one."""
    return (num_participants + colluders) // 2 + 1


def least_contributors(colluders: int) -> int:
    """Returns the fewest contributions of a sum, so that at least two of them are honest: max(3, c + 2)."""
    return max(LEAST_PARTICIPANTS, colluders + 2)


def shape(num_participants: int, colluders: int) -> Shape:
    """Returns how n participants share their secrets: everyone with everyone up to 100, else with neighbours.

    Raises:
        ProtocolError: for fewer participants than `least_contributors`, more than the ring is made for, or colluders
            below 0.
    """
    if colluders < 0:
        raise ProtocolError(f"colluders = {colluders}: must be at least 0")
    least = least_contributors(colluders)
    if not least <= num_participants <= MOST_PARTICIPANTS:
        raise ProtocolError(
            f"{num_participants} participants: secure aggregation needs at least {least} (colluders = {colluders})"
            f" and at most {MOST_PARTICIPANTS}"
        )
    survivors = max(majority(num_participants, colluders), least)
    if num_participants <= MOST_COMPLETE:
        return Shape(num_participants, majority(num_participants, colluders), survivors, complete=True)
    found = neighbourhood(num_participants, colluders)
    return Shape(found.size + 1, found.threshold, survivors, complete=False)


def bits_for(num_participants: int) -> int:
    """Returns the most bits per coordinate with which n contributions cannot wrap: n * 2^(bits - 1) < 2^29."""
    if not 1 <= num_participants <= MOST_PARTICIPANTS:
        raise ProtocolError(f"{num_participants} participants: must be from 1 to {MOST_PARTICIPANTS}")
    limit = RING >> (1 + HEADROOM_BITS)
    return min(((limit - 1) // num_participants).bit_length(), MOST_BITS)
