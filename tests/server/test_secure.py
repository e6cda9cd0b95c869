"""A secure round at real clients: how many exchanges it takes, and what a server that dies within one can still finish.

Legend: D parameters.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hostile.hostile_round import BOUND
from hostile.hostile_server import HostileServer, Refused, partners

from common.config import AggregationConfig
from common.messages import TrainingPlan, TrainTask
from common.runfolder import partner_name
from common.secagg.wire import ConfirmTask
from common.stage_messages import stage_of
from server.journal import Journal
from server.secure import SecureAggregator
from server.sums import Collected

CONFIRM, UNMASK, MASK = "query.confirm", "query.unmask", "train.mask"


class Died(BaseException):
    """The server's process ends."""


@dataclass
class Live:
    """A grid that asks real clients at once, and hands their answers over one by one.

    Attributes:
        server: the wire to them.
        folder: of the run.
        lost: (participant, round's place) whose masked body never arrives; how often MASK was asked counts the rounds.
        dies_after: answers to one kind of message -> how many are taken before the server dies.
        exchanges: kinds of messages of each exchange.
        written_down: for each exchange, whether the journal was on disk when the messages left.
    """

    server: HostileServer
    folder: Path
    lost: set[tuple[int, int]] = field(default_factory=set)
    dies_after: dict[str, int] = field(default_factory=dict)
    exchanges: list[set[str]] = field(default_factory=list)
    written_down: list[bool] = field(default_factory=list)
    _waiting: dict[str, tuple[str, Any]] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        ids = []
        asked = list(messages)
        self.exchanges.append({message.metadata.message_type for message in asked})
        self.written_down.append((self.folder / "unmask.safetensors").exists())
        rounds = sum(MASK in kinds for kinds in self.exchanges)
        for message in asked:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            ids.append(f"message {next(self._ids)}")
            answer = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=ids[-1]), has_error=lambda: False)
            try:
                answer.content = self.server.ask(node, kind, message.content)
            except Refused as refusal:
                answer.has_error = lambda: True
                answer.error = refusal
            if kind == MASK and (node, rounds) in self.lost:
                answer.has_error = lambda: True
                answer.error = SimpleNamespace(code=5, reason="lost")
            self._waiting[ids[-1]] = kind, answer
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        kind, answer = self._waiting.pop(next(iter(ids)))
        left = self.dies_after.get(kind)
        if left == 0:
            raise Died
        if left is not None:
            self.dies_after[kind] = left - 1
        return [answer]


@dataclass
class Run:
    """One run of a server in front of real clients."""

    grid: Live
    names: list[str]
    groups: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        server, self.journal = self.grid.server, Journal(self.grid.folder)
        config = AggregationConfig(update_bound=BOUND, groups=self.groups)
        nodes = {number: number for number in range(1, len(self.names) + 1)}
        grid: Any = self.grid
        self.aggregator = SecureAggregator(
            grid, config, server.roster, nodes, "run", self.start, self.journal, b"", integers=False
        )

    def round(self, number: int, last: bool = True) -> Collected:
        server, plan = self.grid.server, TrainingPlan(1, "adam", 0.05, 0.0)

        def work_for(_: str, attempt: int) -> TrainTask:
            return TrainTask("run", number, attempt, 1.0, server.layout(), plan, server.model())

        following = [] if last else self.names
        return self.aggregator.collect(
            number, self.names, work_for, len(server.model()), local_steps=1, following=following
        )

    def again(self) -> "Run":
        """The server starts again on the same folder."""
        self.grid.dies_after.clear()
        return Run(self.grid, self.names, self.groups, self.start + 1)


@contextmanager
def run_of(root: Path, encoder: Path, num: int, groups: int = 1, **grid: Any) -> Iterator[Run]:
    with partners(root / "partners", encoder, num) as server:
        folder = root / "run"
        folder.mkdir()
        yield Run(Live(server, folder, **grid), [partner_name(place) for place in range(num)], groups)


def assert_sums(run: Run, collected: Collected, *groups: set[str]) -> None:
    """One sum for each set of partners, and it is that of what they contributed, up to the grid."""
    assert {frozenset(group.partners) for group in collected.sums} == {frozenset(group) for group in groups}
    for group in collected.sums:
        numbers = [run.names.index(name) + 1 for name in group.partners]
        expected_D = sum(run.grid.server.contribution(number).astype(np.float64) for number in numbers)
        assert np.abs(group.sum_D - expected_D).max() <= len(numbers) * 1e-6


def test_a_round_at_full_attendance_takes_two_exchanges(tmp_path: Path, tiny_encoder: Path) -> None:
    with run_of(tmp_path, tiny_encoder, 4) as run:
        first, second = run.round(1, last=False), run.round(2)
        assert (first.round_trips, second.round_trips) == (4, 2)
        assert run.grid.exchanges == [{"query.advertise"}, {"query.share"}, {MASK}, {CONFIRM}, {MASK}, {CONFIRM}]
        assert run.grid.written_down == [False, False, False, True, True, True]
        assert second.stages == dict.fromkeys(("asked", "advertised", "shared", "masked", "confirmed", "unmasked"), 4)
        assert not first.failures | second.failures
        assert_sums(run, second, set(run.names))


def test_who_is_lost_before_its_body_came_costs_one_exchange_and_not_the_round(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    with run_of(tmp_path, tiny_encoder, 4, lost={(4, 2)}) as run:
        run.round(1, last=False)
        second, third = run.round(2, last=False), run.round(3)
        assert (second.round_trips, third.round_trips) == (3, 2)
        assert run.grid.exchanges[4:7] == [{MASK}, {CONFIRM}, {UNMASK}]
        assert second.stages["unmasked"] == 3
        assert run.names[3] in second.failures


@pytest.mark.parametrize("taken", [0, 2, 3, 4])
def test_a_server_that_dies_while_everyone_reveals_finishes_from_its_journal(
    taken: int, tmp_path: Path, tiny_encoder: Path
) -> None:
    """n = 4, t = 3: from three answers on there is a sum; with fewer the round is given up, and nobody asked again."""
    with run_of(tmp_path, tiny_encoder, 4, dies_after={CONFIRM: taken}) as run:
        if taken < 4:
            with pytest.raises(Died):
                run.round(1)
        else:
            run.round(1)
        before, again = len(run.grid.exchanges), run.again()
        collected = again.aggregator.finish_journal(1)
        assert collected is not None
        assert len(run.grid.exchanges) == before
        if taken < 3:
            assert not collected.sums
            assert f"{taken} shares of participant 1's secret, 3 are needed" in collected.errors[0]
        else:
            assert_sums(run, collected, set(run.names))
        again.journal.end()
        assert again.aggregator.finish_journal(1) is None


def test_groups_that_revealed_are_in_the_journal_of_those_that_are_asked_after_them(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """One of eight is lost before its body came: its group goes on to UNMASK. The journal then gives both sums."""
    with run_of(tmp_path, tiny_encoder, 8, groups=2, lost={(1, 1)}) as run:
        collected = run.round(1)
        whole, other = sorted((set(group.partners) for group in collected.sums), key=len, reverse=True)
        assert (len(whole), len(other), collected.stages["unmasked"]) == (4, 3, 7)
        assert_sums(run, collected, whole, other)
        assert run.grid.exchanges[-2:] == [{CONFIRM}, {UNMASK}]
        finished = run.again().aggregator.finish_journal(1)
        assert finished is not None
        assert_sums(run, finished, whole, other)


def test_a_share_that_was_changed_on_the_way_names_its_sender(tmp_path: Path, tiny_encoder: Path) -> None:
    with run_of(tmp_path, tiny_encoder, 4) as run:
        honest = run.grid.server.ask

        def ask(number: int, kind: str, record: Any) -> Any:
            content = honest(number, kind, record)
            if (number, kind) == (2, CONFIRM):
                assert stage_of(ConfirmTask, record).masked
                shares = content["hushclick.stage"]["shares"]
                content["hushclick.stage"]["shares"] = bytes([shares[0] ^ 1]) + shares[1:]
            return content

        run.grid.server.ask = ask  # type: ignore[method-assign]
        collected = run.round(1)
        assert_sums(run, collected, set(run.names))
        assert "it revealed a share that its dealer had not committed to" in collected.failures[run.names[1]]


def test_shares_that_were_not_asked_for_do_not_count(tmp_path: Path, tiny_encoder: Path) -> None:
    with run_of(tmp_path, tiny_encoder, 5, lost={(5, 1)}) as run:
        honest = run.grid.server.ask

        def ask(number: int, kind: str, record: Any) -> Any:
            content = honest(number, kind, record)
            if (number, kind) == (2, CONFIRM):
                content["hushclick.stage"]["shares"] = bytes(33)
            return content

        run.grid.server.ask = ask  # type: ignore[method-assign]
        collected = run.round(1)
        assert collected.failures[run.names[1]] == "confirm: its reply was refused: shares that were not asked for"
        assert_sums(run, collected, set(run.names[:4]))
