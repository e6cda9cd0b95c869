"""Plays a round of secure aggregation step by step and keeps what every step was given, drew and answered.

It asks for randomness in the order of `common.secagg.protocol.run_secagg`, so that both give the same transcript.

Legend: D coordinates.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from common.secagg import client_role as client
from common.secagg.checks import Member
from common.secagg.coding import Coding, encode
from common.secagg.parameters import Policy, bits_for
from common.secagg.roster import Member as RosterMember
from common.secagg.roster import Roster
from common.secagg.server_role import Gathering, Grid, Tally
from common.secagg.states import Opened
from common.secagg.unmasking import Unmasking
from common.secagg.wire import Revealed, SessionId

STAGES = ("advertise", "share", "mask", "confirm", "unmask")
NAMES = ("alder", "birch", "cedar", "damson", "elm", "fir", "gorse", "hazel", "ivy", "juniper")
SESSION = SessionId("run of test vectors", 7, 0)


class Source:
    """The bytes of SHAKE-256 of a label, read from the start; remembers every draw."""

    def __init__(self, label: str) -> None:
        self._shake = hashlib.shake_256(label.encode())
        self._bytes, self._at = b"", 0
        self.draws: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._bytes):
            self._bytes = self._shake.digest(max(2 * end, 4096))
        drawn = self._bytes[self._at : end]
        self._at = end
        self.draws.append(drawn)
        return drawn


class Reader:
    """Bytes that were drawn before, drawn again."""

    def __init__(self, drawn: bytes) -> None:
        self._left = drawn

    def __call__(self, count: int) -> bytes:
        taken, self._left = self._left[:count], self._left[count:]
        if len(taken) < count:
            raise ValueError("the recorded randomness ends here")
        return taken


@dataclass(frozen=True)
class Cast:
    """Who plays: numbers from 1, their keys, the roster that all pinned, the policy of all."""

    identities: dict[int, Ed25519PrivateKey]
    roster: Roster
    policy: Policy

    @property
    def members(self) -> dict[int, Member]:
        return {number: Member(number, key, self.roster, self.policy) for number, key in self.identities.items()}


def cast(weights: Sequence[float], policy: Policy | None = None, label: str = "cast") -> Cast:
    """Returns one participant per weight, with fixed identities."""
    seeds = [hashlib.sha256(f"{label} {number}".encode()).digest() for number in range(1, len(weights) + 1)]
    keys = [Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds]
    names = NAMES if len(weights) <= len(NAMES) else [f"p{number:04d}" for number in range(1, len(weights) + 1)]
    members = [
        RosterMember(name, key.public_key().public_bytes_raw().hex(), weight)
        for name, key, weight in zip(names, keys, weights, strict=False)
    ]
    return Cast(dict(enumerate(keys, start=1)), Roster(tuple(members)), policy or Policy(update_bound=1.0))


@dataclass
class Step:
    """One participant at one stage."""

    before: Any  # its state; None at the first stage
    task: Any  # the server's message; the session at the first stage
    random: bytes  # drawn in this step
    reply: Any
    after: Any
    body: NDArray[np.uint32] | None = None  # as masked
    coded: NDArray[np.uint32] | None = None
    opened: Opened | None = None


@dataclass
class Play:
    """A round under way; `run` plays it to the end, the stages one by one as far as a test wants.

    Attributes:
        values: participant -> contribution, [D].
        steps: stage -> participant -> step.
        at_once: whether shares are asked for with the survivors where nobody fell silent, as a server does.
        revealed: participant -> shares that it gave with its signature.
    """

    cast: Cast
    values: Mapping[int, NDArray[Any]]
    source: Source
    clip: float = 1.0
    session: SessionId = SESSION
    model_hash: bytes = bytes(32)
    config_hash: bytes = bytes(32)
    steps: dict[str, dict[int, Step]] = field(default_factory=lambda: {stage: {} for stage in STAGES})
    at_once: bool = False
    revealed: dict[int, Revealed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = {number: self.cast.members[number] for number in sorted(self.values)}
        self.silent: set[int] = set()
        self.server = Gathering(self.cast.roster, self.session, list(self.members), self.cast.policy.colluders)
        self.tally: Tally
        self.unmasking: Unmasking
        self.grid: Grid

    @property
    def weights(self) -> dict[int, float]:
        return {number: self.cast.roster.member(number).weight for number in self.members}

    def run(self, **leaving: Collection[int]) -> "Play":
        """Plays all stages; `leaving` maps a stage to those who fall silent before it."""
        for stage in STAGES:
            getattr(self, stage)(leaving.get(stage, ()))
        self.sum_D = self.unmasking.finish()
        return self

    def until(self, stage: str, **leaving: Collection[int]) -> "Play":
        """Plays the stages before `stage`."""
        for earlier in STAGES[: STAGES.index(stage)]:
            getattr(self, earlier)(leaving.get(earlier, ()))
        return self

    def advertise(self, leaving: Collection[int] = ()) -> None:
        for number in self._left(self.members, leaving):
            start = len(self.source.draws)
            after, advertisement = client.advertise(self.members[number], self.session, self.source)
            self.server.add(number, advertisement)
            self._keep("advertise", number, Step(None, self.session, self._drawn(start), advertisement, after))

    def share(self, leaving: Collection[int] = ()) -> None:
        (self.tally,) = self.server.tallies()
        task = self.tally.share_task
        for number in self._left(self.steps["advertise"], leaving):
            before, start = self.steps["advertise"][number].after, len(self.source.draws)
            after, shares = client.share(self.members[number], before, task, self.source)
            self.tally.add_shares(number, shares)
            self._keep("share", number, Step(before, task, self._drawn(start), shares, after))

    def mask(self, leaving: Collection[int] = ()) -> None:
        length, bits = len(next(iter(self.values.values()))), bits_for(len(self.tally.first))
        self.grid = Grid(length, bits, self.clip, self.model_hash, self.config_hash)
        self.tally.fix_second(self.grid, self.weights)
        for number in self._left(self.tally.second, leaving):
            before, start = self.steps["share"][number].after, len(self.source.draws)
            task = self.tally.mask_task(number)
            opened = client.open_boxes(self.members[number], before, task)
            coded_D = self.coded(number, self.source(32))
            masking = client.Masking(self.members[number], opened)
            body_D = np.concatenate(list(masking.pieces(iter([coded_D.copy()]))))
            after, upload = masking.finish()
            self.tally.add_upload(number, [body_D], upload)
            step = Step(before, task, self._drawn(start), upload, after, body_D, coded_D, opened)
            self._keep("mask", number, step)

    def coded(self, number: int, rounding_key: bytes) -> NDArray[np.uint32]:
        """Returns the words of one participant's weighted contribution."""
        coding = Coding(self.grid.bits, self.grid.clip)
        return np.concatenate(list(encode(self.values[number], self.weights[number], coding, rounding_key)))

    def confirm(self, leaving: Collection[int] = ()) -> None:
        self.tally.fix_third()
        self.unmasking = self.tally.unmasking()
        at_once = self.at_once and self.tally.everyone
        for number in self._left(self.tally.third, leaving):
            before, task = self.steps["mask"][number].after, self.tally.confirm_task()
            after = None
            if at_once:
                signature, self.revealed[number] = client.confirm_all(self.members[number], before, task)
                self.unmasking.add(number, self.revealed[number])
            else:
                task = replace(task, masked=b"")
                after, signature = client.confirm(self.members[number], before, task)
            self.tally.add_confirmation(number, signature)
            self._keep("confirm", number, Step(before, task, b"", signature, after))

    def unmask(self, leaving: Collection[int] = ()) -> None:
        if self.at_once and self.tally.everyone:
            return
        for number in self._left(self.tally.confirmed(), leaving):
            before, task = self.steps["confirm"][number].after, self.tally.unmask_task(number)
            revealed = client.unmask(self.members[number], before, task)
            self.unmasking.add(number, revealed)
            self._keep("unmask", number, Step(before, task, b"", revealed, None))

    def plain_sum(self) -> NDArray[np.uint32]:
        """Returns the sum of the survivors' coded contributions as plain uint32 addition gives it."""
        total_D = np.zeros(self.grid.length, np.uint32)
        for number in self.tally.third:
            coded_D = self.steps["mask"][number].coded
            total_D += coded_D if coded_D is not None else 0
        return total_D

    def _left(self, among: Collection[int], leaving: Collection[int]) -> Iterator[int]:
        self.silent.update(leaving)
        return (number for number in sorted(among) if number not in self.silent)

    def _drawn(self, start: int) -> bytes:
        return b"".join(self.source.draws[start:])

    def _keep(self, stage: str, number: int, step: Step) -> None:
        self.steps[stage][number] = step


def play(
    num: int, label: str, policy: Policy | None = None, length: int = 5, weights: Sequence[float] | None = None
) -> Play:
    """Returns a round of `num` participants, not yet begun, over small values that differ by participant."""
    players = cast(weights or [1.0] * num, policy)
    draw = np.random.default_rng(num)
    values = {number: draw.uniform(-1, 1, length).astype(np.float32) for number in players.identities}
    return Play(players, values, Source(label))
