"""Groups drawn by all participants' coins, so that nobody chooses who sums with whom.

Every advertisement commits to a coin; the coins are revealed once all commitments are fixed; the groups are a function
of U1 and all coins. Whoever withholds a coin ends the preparation, and so can have the groups drawn again, visibly:
docs/SECAGG.md says what that is worth.

Source: Blum 1983, "Coin flipping by telephone" (commit, then reveal).
"""

from collections.abc import Sequence

from common.errors import ProtocolError
from common.secagg.masking import keystream_words
from common.secagg.transcript import digest
from common.secagg.wire import Advertisement


def commit_coin(session: bytes, number: int, coin: bytes) -> bytes:
    """Returns the commitment to a participant's coin."""
    return digest("coin", session, number, coin)


def require_coins(session: bytes, first: Sequence[Advertisement], coins: Sequence[bytes]) -> None:
    """Raises `ProtocolError` unless every coin is the one that its advertisement commits to."""
    for advertisement, coin in zip(first, coins, strict=True):
        if commit_coin(session, advertisement.number, coin) != advertisement.coin:
            raise ProtocolError(f"participant {advertisement.number}: another coin than it committed to")


def draw_groups(
    first_hash: bytes, numbers: Sequence[int], coins: Sequence[bytes], num_groups: int
) -> list[tuple[int, ...]]:
    """Returns the groups, each ascending: sizes differ by at most one.

    Raises:
        ProtocolError: for fewer than one group or more groups than participants.
    """
    if not 1 <= num_groups <= len(numbers):
        raise ProtocolError(f"num_groups = {num_groups}: must be from 1 to the {len(numbers)} participants")
    # Sorted by 64 random bits each: a tie, one in 2^44 for a thousand participants, goes to the lower number.
    words = keystream_words(digest("groups", first_hash, *coins), 2 * len(numbers))
    keys = words[0::2].astype("u8") << 32 | words[1::2]
    ordered = [number for _, number in sorted(zip(keys.tolist(), numbers, strict=True))]
    return [tuple(sorted(ordered[start::num_groups])) for start in range(num_groups)]


def own_group(
    first_hash: bytes, numbers: Sequence[int], coins: Sequence[bytes], num_groups: int, own: int
) -> tuple[int, ...]:
    """Returns the group of one participant."""
    groups = draw_groups(first_hash, numbers, coins, num_groups)
    return next(group for group in groups if own in group)
