"""Stages 3 and 4 at once beside stage 4 by itself: whatever a server asks whom, one sum of one attempt comes out.

The server shows everyone the U3 that it likes, asks some for shares with their signature and others after it, holds all
masked bodies, and has the shares and the signing keys of the colluders.

Legend: D coordinates.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from vectors.play import Play, play

from common.errors import ProtocolError, TooFewPartners
from common.secagg import client_role as client
from common.secagg.keys import sign
from common.secagg.parameters import Policy, majority
from common.secagg.shamir import SHARE_BYTES
from common.secagg.states import Masked
from common.secagg.transcript import pack_numbers, participants_hash
from common.secagg.unmasking import Unmasking
from common.secagg.wire import ConfirmTask, Revealed, UnmaskTask

U3 = tuple[int, ...]
Asked = tuple[str, U3]  # "at once", "confirm" or "" (nothing), and which U3 was shown


class Served:
    """A round after MASK, everybody's body there; `sums` is what a server makes of one way to ask."""

    def __init__(self, num: int, colluders: int) -> None:
        policy = Policy(colluders=colluders, update_bound=1.0)
        self.played: Play = play(num, "at once", policy, length=2).until("confirm")
        self.played.tally.fix_third()
        self.whole = self.played.tally.confirm_task()
        self.everyone, self.threshold = tuple(range(1, num + 1)), majority(num, colluders)
        self.honest, self.colluders = self.everyone[: num - colluders], self.everyone[num - colluders :]
        self.confirmed = cache(self._confirmed)

    def ways(self, number: int) -> list[Asked]:
        """Returns all that can be asked of one participant and is not refused at once."""
        sizes = range(self.threshold, len(self.everyone) + 1)
        shown = [u3 for size in sizes for u3 in itertools.combinations(self.everyone, size) if number in u3]
        return [("", ()), ("at once", self.everyone), *(("confirm", u3) for u3 in shown)]

    def state(self, number: int) -> Masked:
        state = self.played.steps["mask"][number].after
        assert isinstance(state, Masked)
        return state

    def _confirmed(self, number: int, asked: Asked) -> tuple[bytes, Revealed | None]:
        how, u3 = asked
        if how == "at once":
            return client.confirm_all(self.played.members[number], self.state(number), self.whole)
        dropped = tuple(each for each in self.everyone if each not in u3)
        task = ConfirmTask(self.played.session, u3, dropped)
        _, signature = client.confirm(self.played.members[number], self.state(number), task)
        return signature, None

    def forged(self, u3: U3) -> dict[int, bytes]:
        """Returns what colluders sign: any U3."""
        state = self.state(1)
        second, third = (
            participants_hash(label, state.session, pack_numbers(numbers))
            for label, numbers in (("second", state.second), ("third", u3))
        )
        bound = state.context, state.first_hash, second, third
        keys = {number: self.played.cast.identities[number] for number in self.colluders}
        return {number: sign(key, "confirm", *bound) for number, key in keys.items()}

    def given(self, asked: Sequence[Asked]) -> dict[int, Revealed]:
        """Returns honest participant -> the shares that it gives, with its signature or in UNMASK after it."""
        ways = {number: way for number, way in zip(self.honest, asked, strict=True) if way[0]}
        found = {}
        for number, (how, u3) in ways.items():
            signature, revealed = self.confirmed(number, (how, u3))
            signed = {other: self.confirmed(other, way)[0] for other, way in ways.items() if way[1] == u3}
            signed |= self.forged(u3) | {number: signature}
            signers = tuple(sorted(signed.keys() & set(u3)))
            task = UnmaskTask(self.played.session, signers, b"".join([signed[signer] for signer in signers]), b"")
            if revealed is None:
                state = replace(self.state(number), survivors=u3)
                try:
                    revealed = client.unmask(self.played.members[number], state, task)
                except ProtocolError:
                    assert len(signers) < self.threshold
                    continue
            found[number] = revealed
        return found

    def sums(self, asked: Sequence[Asked]) -> dict[U3, list[int]]:
        """Returns U3 -> the words of the sum over it, for every U3 of which a sum comes out."""
        given, found = self.given(asked), {}
        for size in range(1, len(self.everyone) + 1):
            for u3 in itertools.combinations(self.everyone, size):
                unmasking = self.unmasking(u3)
                for number, revealed in given.items():
                    unmasking.add(number, revealed)
                for number in self.colluders:
                    unmasking.add(number, self.colluders_shares(number, u3))
                try:
                    found[u3] = unmasking.finish().tolist()
                except TooFewPartners:
                    continue
        return found

    def colluders_shares(self, number: int, u3: U3) -> Revealed:
        held = self.state(number).held
        halves = [held[owner][:SHARE_BYTES] if owner in u3 else held[owner][SHARE_BYTES:] for owner in self.everyone]
        return Revealed(self.everyone, b"".join(halves))

    def unmasking(self, u3: U3) -> Unmasking:
        steps = [self.played.steps["mask"][number] for number in u3]
        slots = sum((np.frombuffer(step.reply.slots, "<u8") for step in steps), np.zeros(2, np.uint64))
        units = dict.fromkeys(u3, 2**32)
        return replace(
            self.played.tally.unmasking(),
            third=u3,
            expected_units=units,
            sum_D=self.total(u3, masked=True),
            slots=slots,
            faults={},
            shares={},
        )

    def total(self, u3: U3, *, masked: bool) -> np.ndarray:
        """Returns the plain sum of bodies, as masked or as coded, uint32 [D]."""
        steps = [self.played.steps["mask"][number] for number in u3]
        bodies = [step.body if masked else step.coded for step in steps]
        total_D = np.zeros(2, np.uint32)
        for body_D in bodies:
            assert body_D is not None
            total_D += body_D
        return total_D

    def check(self, asked: Sequence[Asked]) -> str:
        """At most one sum, it is what it should be, and enough of those who gave shares for it are in it."""
        found = self.sums(asked)
        assert len(found) <= 1, (asked, list(found))
        for u3, words in found.items():
            assert words == self.total(u3, masked=False).tolist()
            assert len(u3) >= self.threshold
            final = set(self.given(asked)) & set(u3)
            assert len(final) >= self.threshold - len(self.colluders)
        kinds = {how for how, _ in asked if how}
        return f"{'a sum' if found else 'nothing'} of {' and '.join(sorted(kinds)) or 'nobody'}"


def every_way(served: Served) -> Iterator[tuple[Asked, ...]]:
    return itertools.product(*(served.ways(number) for number in served.honest))


def some_ways(served: Served, count: int) -> Iterator[list[Asked]]:
    """Ways drawn at random, half of them from few U3, so that quorums come up."""
    draw = np.random.default_rng(len(served.honest))
    for place in range(count):
        few = served.ways(1)[2:]
        liked = {few[index][1] for index in draw.integers(0, len(few), 2)} | {served.everyone}
        asked = []
        for number in served.honest:
            ways = served.ways(number)
            if place % 2:
                ways = [way for way in ways if way[0] != "confirm" or way[1] in liked]
            asked.append(ways[int(draw.integers(len(ways)))])
        yield asked


MIXED = "at once and confirm"


def test_whatever_mixture_of_paths_a_server_asks_for_one_sum_comes_out() -> None:
    """n = 4, one colludes, t = 3: all ways to ask the other three."""
    served = Served(4, 1)
    found = [served.check(asked) for asked in every_way(served)]
    assert len(found) == 6**3
    assert {"a sum of at once", "a sum of confirm", f"a sum of {MIXED}", f"nothing of {MIXED}"} <= set(found)


@pytest.mark.parametrize(("num", "colluders", "threshold"), [(5, 0, 3), (5, 1, 4), (6, 2, 5)])
def test_and_of_more_participants_whatever_is_drawn(num: int, colluders: int, threshold: int) -> None:
    served = Served(num, colluders)
    assert served.threshold == threshold
    found = {served.check(asked) for asked in some_ways(served, 150)}
    assert {f"a sum of {MIXED}", f"nothing of {MIXED}"} <= found


def test_the_two_paths_never_give_both_kinds_of_share_of_one_owner() -> None:
    """Two at once and two after a U3 without the first: with the colluder's, three shares of either kind, of t = 4."""
    served = Served(5, 1)
    without_1 = (2, 3, 4, 5)
    asked: list[Asked] = [("at once", served.everyone), ("at once", served.everyone), ("confirm", without_1)]
    given = served.given([*asked, ("confirm", without_1)])
    assert sorted(given) == [1, 2]  # three of four signatures: nobody answers UNMASK
    assert served.sums([*asked, ("confirm", without_1)]) == {}
