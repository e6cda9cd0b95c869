"""Every way to drop out, of four and of five participants: a walk over the tree of who is left after each stage.

What a participant answers depends on what it is told alone, so each answer is worked out once and told to a copy of the
server; that is what makes 6^5 ways affordable. `test_run_secagg.py` plays a part of them from end to end.

Legend: D coordinates.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from vectors.play import SESSION, Cast, Source, cast

from common.errors import TooFewPartners
from common.secagg import client_role as client
from common.secagg.parameters import Policy, bits_for
from common.secagg.server_role import Gathering, Grid, Tally

WEIGHTS = (1.0, 0.5, 0.25, 0.75, 0.125)
OPTIONS = (6, 5, 4, 3, 2, 1)  # from here on: stages that are left to fall silent before, and staying


def subsets(numbers: Collection[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain(*(itertools.combinations(sorted(numbers), size) for size in range(len(numbers) + 1)))


class Walk:
    """Counts the ways, by the stage at which they end; `done` is 6^n."""

    def __init__(self, players: Cast) -> None:
        self.players, self.members, self.colluders = players, players.members, players.policy.colluders
        self.least = max(3, self.colluders + 2)
        self.ended: Counter[str] = Counter()
        self.coded = {
            number: np.random.default_rng(number).integers(0, 2**12, 2).astype(np.uint32) for number in self.members
        }
        source = Source("every way")
        self.advertised = {i: client.advertise(member, SESSION, source) for i, member in self.members.items()}
        for first in subsets(self.members):
            self.first(first)

    def first(self, first: tuple[int, ...]) -> None:
        """Those who advertise."""
        server = Gathering(self.players.roster, SESSION, list(self.members), self.colluders)
        for number in first:
            server.add(number, self.advertised[number][1])
        if len(first) < self.least:
            with pytest.raises(TooFewPartners, match=f"{len(first)} of {len(self.members)} advertised"):
                server.tallies()
            return self.end("advertise", len(first), 1)
        (tally,) = server.tallies()
        self.threshold, source = (len(first) + self.colluders) // 2 + 1, Source("shares")
        assert tally.shape.threshold == self.threshold
        shared = {i: client.share(self.members[i], self.advertised[i][0], tally.share_task, source) for i in first}
        for second in subsets(first):
            self.second(deepcopy(tally), second, shared)
        return None

    def second(self, tally: Tally, second: tuple[int, ...], shared: dict[int, Any]) -> None:
        """Those who send shares."""
        for number in second:
            tally.add_shares(number, shared[number][1])
        grid = Grid(2, bits_for(len(tally.first)), 0.0, bytes(32), bytes(32))
        weights = {number: WEIGHTS[number - 1] for number in self.members}
        least = max(self.least, self.threshold)
        if len(second) < least:
            self.refused(tally.fix_second, "sent shares", least - len(second), grid, weights)
            return self.end("share", len(second), 2)
        tally.fix_second(grid, weights)
        masked = {}
        for number in second:
            opened = client.open_boxes(self.members[number], shared[number][0], tally.mask_task(number))
            masking = client.Masking(self.members[number], opened)
            body = list(masking.pieces(iter([self.coded[number].copy()])))
            masked[number] = (body, *masking.finish())
        for third in subsets(second):
            self.third(deepcopy(tally), third, masked)
        return None

    def third(self, tally: Tally, third: tuple[int, ...], masked: dict[int, Any]) -> None:
        """Those who send a masked body."""
        for number in third:
            tally.add_upload(number, masked[number][0], masked[number][2])
        least = max(self.least, self.threshold)
        if len(third) < least:
            self.refused(tally.fix_third, "sent a masked body", least - len(third))
            return self.end("mask", len(third), 3)
        tally.fix_third()
        assert tally.everyone == (third == tally.second)
        if tally.everyone:
            self.at_once(tally, masked)
        confirmed = {i: client.confirm(self.members[i], masked[i][1], tally.confirm_task()) for i in third}
        for fourth in subsets(third):
            self.fourth(deepcopy(tally), fourth, confirmed)
        return None

    def at_once(self, tally: Tally, masked: dict[int, Any]) -> None:
        """Where nobody fell silent so far: whoever confirms reveals with it, and that is all."""
        told = {i: client.confirm_all(self.members[i], masked[i][1], tally.confirm_task()) for i in tally.third}
        for fourth in subsets(tally.third):
            copy = deepcopy(tally)
            for number in fourth:
                copy.add_confirmation(number, told[number][0])
            if len(fourth) < self.threshold:
                self.refused(copy.confirmed, "confirmed the survivors", self.threshold - len(fourth))
            else:
                self.sums_up(copy, fourth, {number: revealed for number, (_, revealed) in told.items()})

    def fourth(self, tally: Tally, fourth: tuple[int, ...], confirmed: dict[int, Any]) -> None:
        """Those who confirm."""
        for number in fourth:
            tally.add_confirmation(number, confirmed[number][1])
        if len(fourth) < self.threshold:
            self.refused(tally.confirmed, "confirmed the survivors", self.threshold - len(fourth))
            return self.end("confirm", len(fourth), 4)
        assert tally.confirmed() == fourth
        revealed = {i: client.unmask(self.members[i], confirmed[i][0], tally.unmask_task(i)) for i in fourth}
        for fifth in subsets(fourth):
            self.fifth(tally, fifth, revealed)
        return None

    def fifth(self, tally: Tally, fifth: tuple[int, ...], revealed: dict[int, Any]) -> None:
        """Those who reveal their shares."""
        if len(fifth) < self.threshold:
            unmasking = deepcopy(tally.unmasking())
            for number in fifth:
                unmasking.add(number, revealed[number])
            self.refused(unmasking.finish, "shares of participant", self.threshold - len(fifth))
            return self.end("unmask", len(fifth), 5)
        self.sums_up(tally, fifth, revealed)
        return self.end("sum", len(fifth), 5)

    def sums_up(self, tally: Tally, holders: tuple[int, ...], revealed: dict[int, Any]) -> None:
        """The shares of these holders give the plain sum of U3."""
        unmasking = deepcopy(tally.unmasking())
        for number in holders:
            unmasking.add(number, revealed[number])
        plain_D = sum((self.coded[number] for number in tally.third), np.zeros(2, np.uint32))
        assert unmasking.finish().tolist() == plain_D.tolist()
        units = sum(int(WEIGHTS[number - 1] * 2**32) for number in tally.third)
        assert unmasking.slots.tolist() == [units, len(tally.third)]
        assert not unmasking.faults

    def refused(self, call: Any, did: str, missing: int, *arguments: Any) -> None:
        """Refused for too few, and the text says how many are missing."""
        with pytest.raises(TooFewPartners, match=f"{did}.*: {missing} too few; nothing is unmasked"):
            call(*arguments)

    def end(self, stage: str, left: int, place: int) -> None:
        """Of those who are left, each may fall silent at any later stage, or never: as many ways end here."""
        self.ended[stage] += OPTIONS[place] ** left


@pytest.mark.parametrize(("num", "colluders"), [(4, 0), (4, 1), (4, 2), (5, 0), (5, 1), (5, 3)])
def test_every_way_to_drop_out_ends_in_the_plain_sum_or_says_how_many_are_missing(num: int, colluders: int) -> None:
    walk = Walk(cast(WEIGHTS[:num], Policy(colluders=colluders, update_bound=1.0), "every way"))
    assert walk.ended.total() == 6**num
    assert set(walk.ended) == {"advertise", "share", "mask", "confirm", "unmask", "sum"}
    assert walk.ended["sum"] == by_counting(num, colluders)


def by_counting(num: int, colluders: int) -> int:
    """Ways that end in a sum: of everyone's last stage, each of the numbers that are left is large enough."""
    ways = 0
    for leaves in itertools.product(range(6), repeat=num):
        left = [sum(at > place for at in leaves) for place in range(5)]
        threshold = (left[0] + colluders) // 2 + 1
        ways += left[0] >= max(3, colluders + 2) and left[2] >= max(3, colluders + 2) and min(left) >= threshold
    return ways
