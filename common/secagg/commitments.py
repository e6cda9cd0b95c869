"""Commitments to shares and seeds: what a dealer promises to its holders, and what the server checks them against.

Shares and seeds are uniform on 256 bits, so that a plain hash hides them.
"""

from common.secagg.shamir import SHARE_BYTES
from common.secagg.transcript import digest


def commit_share(session: bytes, owner: int, holder: int, share: bytes, *, of_seed: bool) -> bytes:
    """Returns the commitment to a holder's share of an owner's b (its seed), or else of its s."""
    return digest("share b" if of_seed else "share s", session, owner, holder, share)


def commitment(session: bytes, owner: int, holder: int, pair: bytes) -> bytes:
    """Returns the commitments to a holder's share of b and of s, 64 bytes."""
    part_b, part_s = pair[:SHARE_BYTES], pair[SHARE_BYTES:]
    first = commit_share(session, owner, holder, part_b, of_seed=True)
    return first + commit_share(session, owner, holder, part_s, of_seed=False)


def commit_seed(session: bytes, owner: int, seed: bytes) -> bytes:
    """Returns the commitment to an owner's self-mask seed."""
    return digest("seed", session, owner, seed)
