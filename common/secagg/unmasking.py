"""Stage 4 at the server: shares in, masks off, the sum out.

Legend: D coordinates of the body, S slots.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError, TooFewPartners
from common.secagg import shamir
from common.secagg.coding import Coding
from common.secagg.commitments import commit_seed, commit_share
from common.secagg.keys import load_secret, public_key
from common.secagg.masking import Masker, MaskKeys, mask_slots, pair_mask, self_mask
from common.secagg.transcript import HASH_BYTES
from common.secagg.wire import Revealed, parts_of

_MASKS_AT_A_TIME = 256  # keystreams that are open at once


@dataclass(frozen=True)
class Sealed:
    """What one participant sent in stage 1, as the server routes it."""

    boxes: Mapping[int, bytes]  # recipient -> box
    commitments: Mapping[int, bytes]  # holder -> commitments to its share of b and of s
    seed_commitment: bytes


@dataclass
class Unmasking:
    """Takes shares until every secret that is needed can be reconstructed.

    Attributes:
        session, context: hashes that the masks are bound to.
        threshold: shares per secret.
        coding: what the sum is to be decoded with.
        mask_keys: number -> X25519 public key, of U2.
        sealed: number -> what it sent in stage 1, of U2.
        third: U3.
        expected_units: survivor -> public weight in units of 2^-32.
        sum_D: sum of the masked bodies; stripped in place by `finish`.
        slots: sum of the masked slots; stripped in place too.
        faults: number -> what it did wrong.
    """

    session: bytes
    context: bytes
    threshold: int
    coding: Coding
    mask_keys: Mapping[int, bytes]
    sealed: Mapping[int, Sealed]
    third: tuple[int, ...]
    expected_units: Mapping[int, int]
    sum_D: NDArray[np.uint32] = field(repr=False)
    slots: NDArray[np.uint64] = field(repr=False)
    faults: dict[int, str] = field(default_factory=dict)
    shares: dict[int, dict[int, bytes]] = field(default_factory=dict, repr=False)  # owner -> holder -> share

    def add(self, number: int, revealed: Revealed) -> None:
        """Takes one participant's shares; one that its dealer did not commit to is left out, and its sender named.

        Raises:
            ProtocolError: for shapes that are wrong, or owners that it holds no share of.
        """
        shares = parts_of(revealed.shares, shamir.SHARE_BYTES, "shares", len(revealed.owners))
        allowed = {owner for owner, sealed in self.sealed.items() if number in sealed.commitments}
        if len(set(revealed.owners)) < len(revealed.owners) or not set(revealed.owners) <= allowed:
            raise ProtocolError("shares of others than this participant's owners")
        alive = set(self.third)
        for owner, share in zip(revealed.owners, shares, strict=True):
            if len(self.shares.get(owner, ())) >= self.threshold:
                continue  # enough of this one; what is not used is not checked either
            promised = self.sealed[owner].commitments[number]
            expected = promised[:HASH_BYTES] if owner in alive else promised[HASH_BYTES:]
            if commit_share(self.session, owner, number, share, of_seed=owner in alive) == expected:
                self.shares.setdefault(owner, {})[number] = share
            else:
                self.faults[number] = "it revealed a share that its dealer had not committed to"
        for dealer in set(revealed.bad_dealers) & allowed:
            self.faults.setdefault(dealer, f"its share for participant {number} does not match its commitment")

    def finish(self) -> NDArray[np.uint32]:
        """Returns the sum of the bodies of U3, uint32 [D], and checks the slots.

        Raises:
            TooFewPartners: when shares of an owner are missing.
            ProtocolError: when a dealer's shares give no secret of its own, or weight and count are not what the roster
                says of the survivors.
        """
        masks = list(self._masks())
        for start in range(0, len(masks), _MASKS_AT_A_TIME):
            Masker(masks[start : start + _MASKS_AT_A_TIME]).apply(self.sum_D)
        mask_slots(self.slots, masks)
        expected = sum(self.expected_units.values()), len(self.third)
        if tuple(self.slots.tolist()) != expected:
            raise ProtocolError(
                f"weight and count of the sum are not those of its {len(self.third)} survivors: one of the"
                " contributions was malformed"
            )
        return self.sum_D

    def _masks(self) -> Iterator[MaskKeys]:
        """Yields what undoes every mask that is left in the sum."""
        alive = set(self.third)
        for owner in self.third:
            seed = self._secret(owner)
            if commit_seed(self.session, owner, seed) != self.sealed[owner].seed_commitment:
                raise ProtocolError(f"participant {owner}: its shares do not give the seed that it committed to")
            mask = self_mask(seed, self.context, owner)
            yield MaskKeys(mask.body, mask.slots, subtract=True)
        for owner in sorted(self.sealed.keys() - alive):
            peers = [peer for peer in self.third if self._masked(owner, peer)]
            if not peers:
                continue
            secret = self._secret(owner)
            if public_key(secret) != self.mask_keys[owner]:
                raise ProtocolError(f"participant {owner}: its shares do not give the secret of its mask key")
            loaded = load_secret(secret)
            for peer in peers:
                # The dropped one's side of the pair: what it would have added cancels what its peer did.
                yield pair_mask(loaded, self.mask_keys[peer], self.context, owner, peer)

    def _masked(self, one: int, other: int) -> bool:
        return other in self.sealed[one].boxes or one in self.sealed[other].boxes

    def _secret(self, owner: int) -> bytes:
        found = self.shares.get(owner, {})
        if len(found) < self.threshold:
            raise TooFewPartners(
                f"{len(found)} shares of participant {owner}'s secret, {self.threshold} are needed:"
                f" {self.threshold - len(found)} too few; nothing is unmasked"
            )
        holders: Sequence[int] = sorted(found)[: self.threshold]
        return shamir.combine(tuple(holders), [found[holder] for holder in holders])
