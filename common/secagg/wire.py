"""What participants and server tell each other, as frozen dataclasses of numbers and bytes, without any framework.

| stage | server -> participant | participant -> server |
|---|---|---|
| 0 ADVERTISE | (run, round, attempt) | `Advertisement` |
| 0b REVEAL, with groups only | `RevealTask` | the coin |
| 1 SHARE | `ShareTask` | `Shares` |
| 2 MASK | `MaskTask` | pieces of the body, `Upload` |
| 3 CONSISTENCY | `ConfirmTask` | a signature; where all of U2 survive, `Revealed` with it, and there is no stage 4 |
| 4 UNMASK | `UnmaskTask` | `Revealed` |

Blobs are concatenations of parts of fixed size, so that their length tells the number of parts and nothing else.
"""

from dataclasses import dataclass, field

from common.errors import ProtocolError
from common.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from common.secagg.shamir import SHARE_BYTES
from common.secagg.transcript import HASH_BYTES

NUMBER_BYTES = 4
BOX_BYTES = 2 * SHARE_BYTES + TAG_BYTES
COMMITMENT_BYTES = 2 * HASH_BYTES
NUM_SLOTS = 2  # weight, count
SLOTS_BYTES = 8 * NUM_SLOTS


@dataclass(frozen=True)
class SessionId:
    """Which attempt at which round of which run; round 0 is for what comes before the first round."""

    run_id: str
    round: int
    attempt: int


@dataclass(frozen=True)
class Advertisement:
    """The fresh keys of one participant for one session.

    Attributes:
        number: in the roster.
        mask_key, channel_key: X25519 public keys.
        coin: commitment to this participant's coin for drawing groups.
        signature: of its identity over (session, number, keys, coin).
    """

    number: int
    mask_key: bytes
    channel_key: bytes
    coin: bytes
    signature: bytes

    SIZE = NUMBER_BYTES + 2 * KEY_BYTES + HASH_BYTES + SIGNATURE_BYTES

    def to_bytes(self) -> bytes:
        """Returns 164 bytes."""
        number = self.number.to_bytes(NUMBER_BYTES, "little")
        return number + self.mask_key + self.channel_key + self.coin + self.signature

    @classmethod
    def from_bytes(cls, blob: bytes) -> "Advertisement":
        """Returns the advertisement in exactly 164 bytes, or raises `ProtocolError`."""
        if len(blob) != cls.SIZE:
            raise ProtocolError(f"an advertisement of {len(blob)} bytes, expected {cls.SIZE}")
        at = NUMBER_BYTES
        keys = [blob[at + 32 * place : at + 32 * (place + 1)] for place in range(3)]
        return cls(int.from_bytes(blob[:at], "little"), keys[0], keys[1], keys[2], blob[at + 96 :])


def parts_of(blob: bytes, size: int, what: str, count: int | None = None) -> list[bytes]:
    """Returns the parts of a blob, each `size` bytes, or raises `ProtocolError` for another length or count."""
    if type(blob) is not bytes or len(blob) % size or (count is not None and len(blob) != size * count):
        expected = f"{count} parts" if count is not None else "whole parts"
        raise ProtocolError(f"{what}: {len(blob)} bytes, expected {expected} of {size} bytes")
    return [blob[start : start + size] for start in range(0, len(blob), size)]


def advertisements_of(blob: bytes) -> list[Advertisement]:
    """Returns the advertisements in a blob, or raises `ProtocolError`."""
    return [Advertisement.from_bytes(part) for part in parts_of(blob, Advertisement.SIZE, "advertisements")]


@dataclass(frozen=True)
class RevealTask:
    """Asks for the coins after all commitments to them are fixed (only with groups).

    Attributes:
        advertisements: U1, in ascending order.
        num_groups: into which the coins are to draw U1.
    """

    session: SessionId
    cohort: tuple[int, ...]
    advertisements: bytes
    num_groups: int


@dataclass(frozen=True)
class ShareTask:
    """Asks for shares of this participant's two secrets.

    Attributes:
        cohort: who was asked for advertisements, ascending.
        advertisements: U1, in ascending order.
        threshold: shares that reconstruct a secret.
        num_groups: 1 = one sum over all.
        coins: with groups, the 32-byte coins of U1 in the same order; else empty.
    """

    session: SessionId
    cohort: tuple[int, ...]
    advertisements: bytes
    threshold: int
    num_groups: int = 1
    coins: bytes = b""


@dataclass(frozen=True)
class Shares:
    """One participant's shares, sealed for their holders.

    Attributes:
        recipients: holders of the boxes, ascending; the owner keeps its own shares.
        boxes: one per recipient, 82 bytes each.
        commitments: of recipients and owner in ascending order, 64 bytes each: to the share of b and to that of s.
        seed_commitment: to b itself.
        signature: over (session, H(U1), number, all of the above).
    """

    recipients: tuple[int, ...]
    boxes: bytes
    commitments: bytes
    seed_commitment: bytes
    signature: bytes


@dataclass(frozen=True)
class MaskTask:
    """Asks for the masked contribution.

    Attributes:
        second: U2, who sent shares, ascending.
        senders: whose boxes for this participant follow, ascending.
        boxes: one per sender.
        commitments: to the shares in the boxes, 64 bytes each.
        ring: modulus of the body; 2^32 and nothing else.
        length: coordinates of the body.
        bits, clip: the grid (`Coding`).
        weight: this participant's public weight.
        threshold: as in `ShareTask`.
        model_hash, config_hash: of what the contribution is made from, see `context_hash`.
    """

    session: SessionId
    second: tuple[int, ...]
    senders: tuple[int, ...]
    boxes: bytes
    commitments: bytes
    ring: int
    length: int
    bits: int
    clip: float
    weight: float
    threshold: int
    model_hash: bytes
    config_hash: bytes


@dataclass(frozen=True)
class Upload:
    """What ends a masked body.

    Attributes:
        slots: masked weight and count, two little-endian uint64.
        signature: over (context, H(U1), H(U2), number, H(y), slots).
        masked: signature over (context, H(U1), H(U2), number): what this participant masked within. Holders ask for it
            before they reveal b, where not everyone masks with everyone, or nobody signed the survivors yet.
    """

    slots: bytes
    signature: bytes
    masked: bytes


@dataclass(frozen=True)
class ConfirmTask:
    """Asks for a signature over the survivors: U3, and U2 without U3.

    Attributes:
        masked: where all of U2 survive in the complete graph, `Upload.masked` of each, ascending: asks for the shares
            of stage 4 together with the signature. Else empty.
    """

    session: SessionId
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    masked: bytes = b""


@dataclass(frozen=True)
class UnmaskTask:
    """Asks for one share per participant of U2, against the signatures of others over the same survivors.

    Attributes:
        signers: ascending.
        signatures: of the signers, in `ConfirmTask`'s sense, 64 bytes each.
        masked: with neighbours, `Upload.masked` of every other survivor whose share this participant holds, ascending;
            else empty.
    """

    session: SessionId
    signers: tuple[int, ...]
    signatures: bytes
    masked: bytes


@dataclass(frozen=True)
class Revealed:
    """Shares that a participant gives out: of b for survivors, of s for the dropped, never both of one owner.

    Attributes:
        owners: ascending.
        shares: 33 bytes each.
        bad_dealers: whose share did not match the commitment to it.
    """

    owners: tuple[int, ...]
    shares: bytes = field(repr=False)
    bad_dealers: tuple[int, ...] = ()
