"""The other side: a partner that answers anything, at any stage, neither stops the server nor blames another.

Two honest rounds are recorded at real clients and then played back, with one partner's answers changed; the server has
no randomness of its own. In one all are there, and shares come with CONSISTENCY; in the other a body is lost, and they
come with UNMASK.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hostile.hostile_round import BOUND
from hostile.hostile_server import HostileServer, over_the_wire, partners
from hostile.test_hostile_fuzz import change, fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import AggregationConfig
from common.messages import TrainingPlan, TrainTask
from common.runfolder import partner_name
from server.journal import Journal
from server.secure import SecureAggregator
from server.sums import Collected

LIAR = 3
NAMES = [partner_name(number) for number in range(4)]
LOST = 4  # whose body never comes in the second of the two
STAGES = ("query.advertise", "query.share", "train.mask", "query.confirm")
TOLD = [*((False, kind) for kind in STAGES), (True, "query.confirm"), (True, "query.unmask")]


class Tape:
    """A grid that asks real clients and remembers their answers, or plays them back with one of them changed."""

    def __init__(self, server: HostileServer) -> None:
        self._server, self._ids = server, itertools.count()
        self.answers: dict[tuple[int, str], RecordDict] = {}
        self.lies: dict[tuple[int, str], RecordDict] = {}
        self._waiting: dict[str, RecordDict] = {}

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        ids = []
        for message in messages:
            key = message.metadata.dst_node_id, message.metadata.message_type
            if key not in self.answers:
                self.answers[key] = self._server.ask(*key, message.content)
            ids.append(f"message {next(self._ids)}")
            self._waiting[ids[-1]] = self.lies.get(key, self.answers[key])
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=name),
                has_error=lambda: False,
                content=self._waiting.pop(name),
            )
            for name in ids
        ]


class Played:
    """The tape of one round, and the server in front of it."""

    def __init__(self, server: HostileServer, folder: Path, *, lost: bool) -> None:
        self.server, self.folder, self.tape = server, folder, Tape(server)
        self.lost = {NAMES[LOST - 1]} if lost else set()
        self.lies = {(LOST, "train.mask"): RecordDict()} if lost else {}
        self.tape.lies = self.lies
        self.model_D, self.layout = server.model(), server.layout()
        self.honest = self.collect()

    def collect(self) -> Collected:
        """Returns what a server makes of the round on the tape, the next one's preparation riding along."""
        config = AggregationConfig(update_bound=BOUND)
        nodes = {number: number for number in range(1, 5)}
        grid: Any = self.tape
        journal = Journal(self.folder)
        aggregator = SecureAggregator(grid, config, self.server.roster, nodes, "run", 0, journal, b"", False)
        plan = TrainingPlan(1, "adam", 0.05, 0.0)

        def work_for(_: str, attempt: int) -> TrainTask:
            return TrainTask("run", 1, attempt, 1.0, self.layout, plan, self.model_D)

        return aggregator.collect(1, NAMES, work_for, len(self.model_D), local_steps=1, following=NAMES)

    def lie(self, kind: str, record: RecordDict) -> Collected:
        """Returns what a server makes of the round when the liar's answer to one stage is another."""
        self.tape.lies = self.lies | {(LIAR, kind): over_the_wire(record)[0]}
        return self.collect()


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> dict[bool, Played]:
    """Whether a body is lost -> the tape of such a round."""
    found = {}
    for lost in (False, True):
        folder = tmp_path_factory.mktemp("tape")
        with partners(folder, tiny_encoder) as server:
            found[lost] = Played(server, folder, lost=lost)
    return found


@pytest.fixture(scope="module")
def played(tapes: dict[bool, Played]) -> Played:
    return tapes[False]


def assert_only_the_liar_is_named(played: Played, collected: Collected, kind: str) -> None:
    """Up to the stage of the lie nobody else is at fault; what comes after stands on the tape for another U2 or U3."""
    if kind in ("query.confirm", "query.unmask"):
        assert set(collected.failures) - played.lost <= {NAMES[LIAR - 1]}


@pytest.mark.parametrize("lost", [False, True])
def test_the_tape_is_a_good_round(lost: bool, tapes: dict[bool, Played]) -> None:
    played = tapes[lost]
    assert set(played.honest.failures) == played.lost
    assert played.honest.contributed == 4 - len(played.lost)
    again = played.lie("none", RecordDict())
    assert np.array_equal(again.sums[0].sum_D, played.honest.sums[0].sum_D)
    assert {kind for _, kind in played.tape.answers} == set(STAGES) | ({"query.unmask"} if lost else set())


@pytest.mark.parametrize(("lost", "kind"), TOLD)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_answer_of_a_partner_stops_the_server(
    lost: bool, kind: str, tapes: dict[bool, Played], data: st.DataObject
) -> None:
    played = tapes[lost]
    record = fresh(played.tape.answers[LIAR, kind])
    for _ in range(data.draw(st.integers(1, 2))):
        change(data, record)
    try:
        over_the_wire(record)
    except (ValueError, TypeError, OverflowError, UnicodeError, KeyError):
        return  # what Flower cannot carry never arrives
    assert_only_the_liar_is_named(played, played.lie(kind, record), kind)


@pytest.mark.parametrize(("lost", "kind"), TOLD)
def test_an_answer_of_another_partner_or_stage_is_refused_and_names_its_sender(
    lost: bool, kind: str, tapes: dict[bool, Played]
) -> None:
    played = tapes[lost]
    own = {other: answer for (number, other), answer in played.tape.answers.items() if number == LIAR}
    for record in (played.tape.answers[1, kind], *(answer for other, answer in own.items() if other != kind)):
        collected = played.lie(kind, record)
        assert NAMES[LIAR - 1] in collected.failures
        assert_only_the_liar_is_named(played, collected, kind)


def test_a_body_of_many_small_or_empty_pieces_is_refused_or_the_same_sum(played: Played) -> None:
    """Pieces are the sender's choice; their number must not be a way to other words."""
    record = fresh(played.tape.answers[LIAR, "train.mask"])
    body = record["hushclick.body"]
    assert isinstance(body, ArrayRecord)
    (array,) = body.values()
    words = np.frombuffer(array.data, "<u4")
    for pieces in (np.array_split(words, 5), [words[:0], words], [words, words[:0]]):
        split = type(array)
        body.clear()
        for place, piece in enumerate(pieces):
            body[f"{place:06d}"] = split(dtype="<u4", shape=(len(piece),), stype="numpy.raw", data=piece.tobytes())
        collected = played.lie("train.mask", record)
        assert not collected.failures
        assert np.array_equal(collected.sums[0].sum_D, played.honest.sums[0].sum_D)


def test_a_text_of_a_partner_does_not_reach_the_record_as_more_than_text(played: Played) -> None:
    """What the server keeps of a refused answer is its own text about it."""
    record = RecordDict({"<script>": ConfigRecord({"x": 1})})
    collected = played.lie("query.confirm", record)
    (reason,) = collected.failures.values()
    assert reason.startswith("confirm: its reply was refused: a message with the records")
