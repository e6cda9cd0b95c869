"""One attempt at a round, driven stage by stage as an honest server would, until a test makes it lie.

`Round.tell` sends whatever a test wants, `lies` change every message of a kind; `forge` signs as a colluder; `refused`
and `sums_up` are what is asserted of every lie.

Legend: D parameters.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pytest
from hostile.hostile_server import RUN, HostileServer, Refused, identity
from numpy.typing import NDArray
from partner_folder import PLAN

from client.work import Work
from common.histogram_messages import EvaluationTask, HistogramTask
from common.message_types import REFUSED
from common.messages import StatisticsTask, TrainingPlan, TrainTask
from common.secagg import client_role
from common.secagg.checks import Member
from common.secagg.coding import Coding, decode
from common.secagg.grouping import commit_coin
from common.secagg.keys import public_key, sign
from common.secagg.parameters import Policy, bits_for
from common.secagg.roster import WEIGHT_UNIT, Roster
from common.secagg.server_role import Gathering, Grid, Tally
from common.secagg.states import Advertised, Shared
from common.secagg.transcript import session_hash
from common.secagg.unmasking import Unmasking
from common.secagg.wire import Advertisement, SessionId, Shares, ShareTask
from common.stage_messages import AdvertiseTask, MaskTask

BOUND = 4.0  # aggregation.update_bound of everyone
Lie = Callable[[int, Any], Any]

STAGES = ("advertise", "reveal", "share", "mask", "confirm", "unmask")


@dataclass
class Round:
    """One attempt at one round, driven as an honest server would, with `lies` in between.

    Attributes:
        numbers: participants that are asked, all of the roster by default.
        lies: message type -> (participant, honest message) -> what is sent instead.
        model_D: of everyone; `work_of` may be lied about too (as `TrainTask`).
        grid: bits and clip.
        at_once: whether shares are asked for with the survivors where nobody fell silent, as a server does.
    """

    server: HostileServer
    round: int = 1
    attempt: int = 0
    run_id: str = RUN
    numbers: Collection[int] = ()
    num_groups: int = 1
    colluders: int = 1
    catalogue: tuple[str, ...] = ()
    histogram: HistogramTask | EvaluationTask | None = None
    shared: bytes = b""
    model_D: NDArray[np.float32] | None = None
    clip: float = BOUND
    bits: int = 0
    plan: TrainingPlan = PLAN
    at_once: bool = False
    lies: dict[type, Lie] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = tuple(self.numbers or range(1, len(self.server.roster) + 1))
        self.session = SessionId(self.run_id, self.round, self.attempt)
        self.gathering = Gathering(self.server.roster, self.session, self.numbers, self.colluders, self.num_groups)
        self.model_D = self.server.model() if self.model_D is None else self.model_D
        self.tallies: list[Tally] = []
        self.unmaskings: list[Unmasking] = []

    def work_of(self, number: int) -> Work:
        """Returns what a participant is asked to contribute."""
        if self.histogram:
            return self.histogram
        if self.catalogue:
            return StatisticsTask(self.run_id, self.catalogue)
        weight, model_D = self.server.roster.member(number).weight, np.asarray(self.model_D, np.float32)
        return TrainTask(self.run_id, self.round, self.attempt, weight, self.server.layout(), self.plan, model_D)

    def tell(self, number: int, task: Any, work: Any = None) -> Any:
        """Sends a message, lied about where `lies` says so; notes a refusal, and raises it."""
        task = self.lies.get(type(task), lambda _, honest: honest)(number, task)
        if isinstance(task, MaskTask):
            work = self.lies.get(TrainTask, lambda _, honest: honest)(number, work or self.work_of(number))
        try:
            return self.server.tell(number, task, work)
        except Refused as refusal:
            self.refusals[number] = refusal.reason
            raise

    def until(self, stage: str, **silent: Collection[int]) -> Self:
        """Plays the stages before `stage`; `silent` maps a stage to who does not answer from there on."""
        done = [name for name in STAGES if self.num_groups > 1 or name != "reveal"]
        for name in done[: done.index(stage)]:
            self.play(name, silent.get(name, ()))
        return self

    def run(self, start: str = "advertise", **silent: Collection[int]) -> list[NDArray[np.float64]]:
        """Plays all stages from `start` on and returns the sums that come out."""
        done = [name for name in STAGES if self.num_groups > 1 or name != "reveal"]
        for name in done[done.index(start) :]:
            self.play(name, silent.get(name, ()))
        return self.sums()

    def play(self, stage: str, silent: Collection[int] = ()) -> None:
        """Plays one stage; whoever refuses is left out from there on, and noted in `refusals`."""
        for number, task in self.tasks(stage).items():
            if number in silent:
                continue
            try:
                self.take(stage, number, self.tell(number, task))
            except Refused:
                continue
        if stage == "unmask":
            return
        if (stage == "advertise" and self.num_groups == 1) or stage == "reveal":
            self.tallies = self.gathering.tallies()

    def tasks(self, stage: str) -> dict[int, Any]:
        """Returns what an honest server would ask whom in a stage."""
        if stage == "advertise":
            steps = 0 if self.catalogue or self.histogram else self.plan.local_steps
            return dict.fromkeys(self.numbers, AdvertiseTask(self.session, steps))
        if stage == "reveal":
            return dict.fromkeys([entry.number for entry in self.gathering.first], self.gathering.reveal_task())
        if stage == "share":
            return {number: tally.share_task for tally in self.tallies for number in tally.first}
        if stage == "mask":
            return {number: self.fixed(tally).mask_task(number) for tally in self.tallies for number in tally._sealed}
        for tally in self.tallies if stage == "confirm" else ():
            tally.fix_third()
        if stage == "confirm":
            self.unmaskings = [tally.unmasking() for tally in self.tallies]
            tasks = {number: tally.confirm_task() for tally in self.tallies for number in tally.third}
            return tasks if self.at_once else {number: replace(task, masked=b"") for number, task in tasks.items()}
        able = {number: tally for tally in self.tallies for number in tally.confirmed()}
        left = {number: tally for number, tally in able.items() if not (self.at_once and tally.everyone)}
        return {number: tally.unmask_task(number) for number, tally in left.items()}

    def take(self, stage: str, number: int, answer: Any) -> None:
        """Takes an answer as an honest server does."""
        if stage == "advertise":
            self.gathering.add(number, answer.parsed())
        elif stage == "reveal":
            self.gathering.add_coin(number, answer.coin)
        elif stage == "share":
            self.tally(number).add_shares(number, answer)
        elif stage == "mask":
            self.tally(number).add_upload(number, *answer)
        elif stage == "confirm":
            self.tally(number).add_confirmation(number, answer.signature)
            if answer.shares:
                self.unmaskings[self.tallies.index(self.tally(number))].add(number, answer.revealed)
        else:
            self.unmaskings[self.tallies.index(self.tally(number))].add(number, answer)

    def fixed(self, tally: Tally) -> Tally:
        """Returns a tally with U2 and grid fixed."""
        if not tally.second:
            work = self.work_of(self.numbers[0])  # type: ignore[index]
            length = 2 * len(self.catalogue) if self.catalogue else len(np.asarray(self.model_D))
            length = self.histogram.length if self.histogram else length
            whole = self.catalogue or self.histogram
            bits, clip = self.bits or bits_for(len(tally.first)), 0.0 if whole else self.clip
            weights = {number: self.server.roster.member(number).weight for number in tally.first}
            tally.fix_second(Grid(length, bits, clip, *work.hashes(self.shared)), weights)
        return tally

    def tally(self, number: int = 1) -> Tally:
        return next(tally for tally in self.tallies if number in tally.first)

    def sums(self) -> list[NDArray[np.float64]]:
        """Returns the unmasked sums, float64 [D] each."""
        return [decode(unmasking.finish(), len(unmasking.third), unmasking.coding) for unmasking in self.unmaskings]

    def expected(self, numbers: Collection[int]) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of what participants contributed, off their disks, and how far rounding may take it."""
        total_D = np.zeros(len(np.asarray(self.model_D)))
        for number in numbers:
            member = self.server.roster.member(number)
            total_D += self.server.contribution(number, self.run_id).astype(np.float64) * member.units / WEIGHT_UNIT
        coding: Coding = self.unmaskings[0].coding
        return total_D, (len(numbers) + 1e-3) / coding.scale


def forge(
    server: HostileServer,
    number: int,
    session: SessionId,
    signer: int = 0,
    *,
    roster: Roster | None = None,
    **keys: bytes,
) -> Advertisement:
    """Returns an advertisement of a participant with keys that the server knows, signed by `signer` (itself: 0)."""
    hashed = session_hash(session.run_id, session.round, session.attempt, (roster or server.roster).hash)
    mask_key, channel_key = (keys.get(name) or public_key(own_secret(number, name)) for name in ("mask", "channel"))
    parts = mask_key, channel_key, keys.get("coin") or commit_coin(hashed, number, own_secret(number, "coin"))
    signature = sign(identity(signer or number), "advertise", hashed, number, *parts)
    return Advertisement(number, *parts, signature)


def colluder_shares(round_: Round, entry: Advertisement, task: ShareTask) -> tuple[Shared, Shares]:
    """Returns what a colluder that sent this advertisement sends in stage 1, and what it keeps."""
    number, server = entry.number, round_.server
    mask_secret, channel_secret, coin = (own_secret(number, name) for name in ("mask", "channel", "coin"))
    hashed = session_hash(round_.run_id, round_.round, round_.attempt, server.roster.hash)
    member = Member(number, identity(number), server.roster, Policy(round_.colluders, update_bound=BOUND))
    state = Advertised(hashed, mask_secret, channel_secret, coin, entry.to_bytes())
    return client_role.share(member, state, task, os.urandom)


def own_secret(number: int, name: str) -> bytes:
    """Returns what a colluder, or a server in its name, draws instead of random bytes."""
    return hashlib.sha256(f"{name} {number}".encode()).digest()


def refused(round_: Round, number: int, task: Any, match: str, *, work: Any = None, charged: int = 0) -> str:
    """Sends a message that must be refused, and changes nothing at the partner; returns the text of the refusal.

    Args:
        charged: releases that the partner may have charged for it, because its data was rightly touched before.
    """
    server = round_.server
    before, spent, shares = server.facts(number), server.charged(number), server.shares_left()
    with pytest.raises(Refused, match=match) as caught:
        server.tell(number, task, work or (round_.work_of(number) if isinstance(task, MaskTask) else None))
    assert caught.value.code == REFUSED
    assert "internal error" not in caught.value.reason
    assert server.shares_left() == shares
    assert server.charged(number) == spent + charged
    if not charged:
        assert server.facts(number) == before
    return caught.value.reason


def sums_up(round_: Round, numbers: Collection[int] = (), start: str = "advertise") -> None:
    """Plays the rest of a round and checks its one sum against what the partners really contributed."""
    (total_D,) = round_.run(start)
    expected_D, tolerance = round_.expected(numbers or round_.numbers)
    assert np.abs(total_D - expected_D).max() <= tolerance
