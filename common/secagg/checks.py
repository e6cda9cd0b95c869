"""What a participant checks before it goes on: the server is not trusted, and nothing it sends loosens the policy.

Every function raises `ProtocolError`; the text names the field, the value and the bound, and holds no data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ProtocolError
from common.secagg.grouping import own_group, require_coins
from common.secagg.keys import KEY_BYTES, verify
from common.secagg.parameters import RING, Policy, Shape, bits_for, shape
from common.secagg.roster import Roster
from common.secagg.states import Advertised, Shared
from common.secagg.transcript import HASH_BYTES, digest, pack_numbers, participants_hash, require_ascending
from common.secagg.wire import Advertisement, MaskTask, ShareTask, advertisements_of, parts_of


@dataclass(frozen=True)
class Member:
    """Who a participant is: its number, its signing key, the roster that it pinned, what it allows."""

    number: int
    identity: Ed25519PrivateKey = field(repr=False)
    roster: Roster
    policy: Policy


def checked_first(member: Member, state: Advertised, cohort: tuple[int, ...], blob: bytes) -> list[Advertisement]:
    """Returns U1, after checking all but its signatures."""
    require_ascending(cohort, "cohort", len(member.roster))
    first = advertisements_of(blob)
    numbers = [advertisement.number for advertisement in first]
    require_ascending(numbers, "advertisements", len(member.roster))
    if not set(numbers) <= set(cohort):
        raise ProtocolError("an advertisement by one who is not in the cohort")
    own = [advertisement for advertisement in first if advertisement.number == member.number]
    if not own or own[0].to_bytes() != state.own:
        raise ProtocolError("this participant's own advertisement is missing or replaced")
    return first


def group_of(member: Member, state: Advertised, task: ShareTask, first: list[Advertisement]) -> list[Advertisement]:
    """Returns U1 itself, or this participant's group of it, drawn by everyone's coins."""
    if task.num_groups == 1:
        if task.coins or state.revealed:
            raise ProtocolError("coins without groups")
        return first
    first_hash = participants_hash("first", state.session, task.advertisements)
    if state.revealed != revealed_for(state.session, task.cohort, task.advertisements, task.num_groups):
        raise ProtocolError("groups over another cohort, U1 or number of groups than the coin was revealed for")
    for advertisement in first:  # a coin counts only where its commitment is signed
        check_signature(member.roster, state.session, advertisement)
    coins = parts_of(task.coins, KEY_BYTES, "coins", len(first))
    require_coins(state.session, first, coins)
    group = set(own_group(first_hash, [a.number for a in first], coins, task.num_groups, member.number))
    return [advertisement for advertisement in first if advertisement.number in group]


def revealed_for(session: bytes, cohort: tuple[int, ...], advertisements: bytes, num_groups: int) -> bytes:
    """Returns the hash of all that, with the coins, decides the groups: fixed before a coin is shown."""
    return digest("revealed", session, pack_numbers(cohort), advertisements, num_groups)


def checked_shape(member: Member, num_participants: int, threshold: int) -> Shape:
    """Returns how U1 shares its secrets, after checking its size and the stated threshold against the policy."""
    policy = member.policy
    found = shape(num_participants, policy.colluders)
    if num_participants < policy.least_participants:
        raise ProtocolError(
            f"{num_participants} participants: this partner's aggregation.least_participants is"
            f" {policy.least_participants}"
        )
    if threshold != found.threshold or threshold < policy.least_threshold:
        raise ProtocolError(
            f"threshold = {threshold}: this partner needs {found.threshold} of {num_participants} (colluders ="
            f" {policy.colluders}), and at least aggregation.least_threshold = {policy.least_threshold}"
        )
    return found


def check_signature(roster: Roster, session: bytes, advertisement: Advertisement) -> None:
    """Checks that an advertisement is of this session and by the roster's key of its number."""
    number = advertisement.number
    what = f"advertisement of {roster.member(number).name}"
    keys = advertisement.mask_key, advertisement.channel_key, advertisement.coin
    verify(roster.public_key(number), advertisement.signature, what, "advertise", session, number, *keys)


def check_grid(member: Member, task: MaskTask, num_participants: int) -> None:
    """Refuses a ring, grid, weight or hash outside this partner's policy."""
    policy = member.policy
    if task.ring != RING:
        raise ProtocolError(f"ring = {task.ring}: must be {RING}")
    if not 1 <= task.length < 2**40:
        raise ProtocolError(f"length = {task.length}: must be from 1 to 2^40")
    bits = bits_for(num_participants)
    if task.bits != bits or not policy.least_bits <= bits <= policy.most_bits:
        raise ProtocolError(
            f"bits = {task.bits}: {num_participants} participants use {bits}, and this partner allows"
            f" {policy.least_bits} to {policy.most_bits}"
        )
    if task.clip not in (0.0, policy.update_bound):  # 0: whole numbers, which statistics are
        raise ProtocolError(
            f"update_bound = {task.clip}: this partner's aggregation.update_bound is {policy.update_bound:g}"
        )
    # Neither more nor less: where others would weigh next to nothing, the sum would be one partner's contribution.
    pinned = member.roster.member(member.number).weight
    if task.weight != pinned:
        raise ProtocolError(f"weight = {task.weight}: this partner's weight in the roster is {pinned:g}")
    if len(task.model_hash) != HASH_BYTES or len(task.config_hash) != HASH_BYTES:
        raise ProtocolError(f"model_hash and config_hash must have {HASH_BYTES} bytes")


def check_second(member: Member, second: tuple[int, ...], first: Mapping[int, Advertisement], own_shape: Shape) -> None:
    """Checks that U2 is within U1, holds this participant, and is large enough."""
    require_ascending(second, "U2", len(member.roster))
    if not set(second) <= set(first):
        raise ProtocolError("U2 names one who is not in U1")
    if member.number not in second:
        raise ProtocolError("this participant sent its shares and is not in U2")
    least = max(own_shape.least_survivors, member.policy.least_participants)
    if len(second) < least:
        raise ProtocolError(f"{len(second)} participants sent shares: at least {least} are needed")


def peers_of(member: Member, state: Shared, task: MaskTask, own_shape: Shape) -> tuple[int, ...]:
    """Returns with whom this participant masks: whoever holds its shares, and whoever's shares it holds, in U2."""
    require_ascending(task.senders, "senders", len(member.roster))
    others = set(task.second) - {member.number}
    senders = set(task.senders)
    if not senders <= others or (own_shape.complete and senders != others):
        raise ProtocolError("boxes of others than U2")
    return tuple(sorted((set(state.holders) & others) | senders))
