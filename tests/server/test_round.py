"""One exchange against a scripted grid: replies that are late, foreign, doubled, broken or missing."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.contribution import LocalDelta, RunningSum
from common.errors import ProtocolError, TooFewPartners
from common.message_types import BUDGET_EXHAUSTED, REFUSED, TRAIN_UPDATE
from common.messages import JoinTask, TrainingPlan, TrainReply, TrainTask
from server.round import Exchange, collect_sum, exchange

Reply = RecordDict | Error
Pull = Callable[["FakeGrid"], list[Message]]


@pytest.fixture(autouse=True)
def server_identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class FakeGrid:
    """Answers pull after pull as the script says; afterwards nothing more comes."""

    def __init__(self, *script: Pull, ids: Callable[[list[str]], list[Any]] = list) -> None:
        self.script = list(script)
        self.ids = ids
        self.sent: dict[int, Message] = {}
        self.asked: list[set[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        found = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"to-{node}"
            self.sent[node] = message
            found.append(f"to-{node}")
        return self.ids(found)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.asked.append(set(message_ids))
        return self.script.pop(0)(self) if self.script else []

    def reply(self, node: int, body: Reply) -> Message:
        return Message(body, reply_to=self.sent[node])


def replies(*pairs: tuple[int, Reply]) -> Pull:
    return lambda grid: [grid.reply(node, body) for node, body in pairs]


def update(*values: float, weight: float = 1.0, round_number: int = 3) -> RecordDict:
    return TrainReply(round_number, LocalDelta(np.array(values, np.float32), weight)).to_record()


def train_task(weight: float = 1.0) -> TrainTask:
    plan = TrainingPlan(4, "adam", 0.01, 0.0)
    return TrainTask("run", 3, 0, weight, "f" * 64, plan, np.zeros(2, np.float32))


def collect(
    grid: FakeGrid,
    nodes: Iterable[int] = (2, 3, 4),
    timeout: float = 0.05,
    weights: Mapping[int, float] = MappingProxyType({}),
) -> tuple[Exchange, RunningSum]:
    total = RunningSum(2, LocalDelta)
    tasks = {node: train_task(weights.get(node, 1.0)) for node in nodes}
    return collect_sum(grid, TRAIN_UPDATE, tasks, 3, total, timeout), total  # type: ignore[arg-type]


def test_all_answers_are_summed_in_whatever_order_they_come() -> None:
    a, b, c = update(1, 2), update(10, 20, weight=0.5), update(100, 200, weight=0.25)
    grids = [
        FakeGrid(replies((2, a), (3, b), (4, c))),
        FakeGrid(replies((4, c)), replies(), replies((3, b)), replies((2, a))),
    ]
    sums = []
    for grid in grids:
        outcome, total = collect(grid, timeout=5, weights={3: 0.5, 4: 0.25})
        assert not outcome.failures
        assert not outcome.exhausted
        assert total.count == 3
        sums.append(total.total(3).tolist())
    assert sums == [[31, 62], [31, 62]]


@pytest.mark.parametrize("weight", [1e-300, 0.2, 1.0])
def test_a_partner_cannot_choose_its_own_weight(weight: float) -> None:
    honest, greedy = update(1, 2, weight=0.5), update(100, 200, weight=weight)
    outcome, total = collect(
        FakeGrid(replies((2, honest), (3, greedy))), nodes=(2, 3), timeout=5, weights={2: 0.5, 3: 0.5}
    )
    assert "another weight than the roster's" in outcome.failures[3]
    assert total.total(1).tolist() == [0.5, 1.0]


def test_only_what_is_missing_is_asked_for() -> None:
    grid = FakeGrid(replies((3, update(1, 1))), replies((2, update(1, 1))), replies((4, update(1, 1))))
    collect(grid, timeout=5)
    assert grid.asked == [{"to-2", "to-3", "to-4"}, {"to-2", "to-4"}, {"to-4"}]


def test_messages_are_made_as_flower_wants_them() -> None:
    grid = FakeGrid()
    collect(grid, timeout=0.01)
    for node, message in grid.sent.items():
        facts = message.metadata
        assert (facts.dst_node_id, facts.message_type, facts.group_id, facts.ttl) == (
            node,
            TRAIN_UPDATE,
            "round-3",
            0.01,
        )


def test_errors_are_failures_and_the_others_go_on() -> None:
    grid = FakeGrid(
        replies((2, Error(REFUSED, "no such layout")), (3, Error(BUDGET_EXHAUSTED, "spent")), (4, update(1, 2)))
    )
    outcome, total = collect(grid, timeout=5)
    assert outcome.failures == {2: "no such layout", 3: "spent"}
    assert outcome.exhausted == {3}
    assert (total.count, total.total(1).tolist()) == (1, [1, 2])
    with pytest.raises(TooFewPartners):
        total.mean(3)


def test_an_error_without_words_is_told_by_its_code() -> None:
    outcome, _ = collect(FakeGrid(replies((2, Error(7)))), nodes=[2], timeout=5)
    assert outcome.failures == {2: "error 7"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (RecordDict(), "a message with the records"),
        (RecordDict({"hushclick.fields": ConfigRecord({"round": 3})}), "a message with the records"),
        (update(1, 2, round_number=2), "a reply to round 2 in round 3"),
        (update(1, 2, round_number=4), "a reply to round 4 in round 3"),
        (update(1, 2, 3), "a contribution of 3 parameters, expected 2"),
        (update(1, np.nan), "not finite"),
        (update(1, 1e30), "32768 or more"),
    ],
    ids=["empty", "half", "earlier", "later", "long", "nan", "huge"],
)
def test_nonsense_is_refused_and_leaves_the_sum_alone(body: RecordDict, reason: str) -> None:
    outcome, total = collect(FakeGrid(replies((2, body), (3, update(5, 6)))), nodes=[2, 3], timeout=5)
    assert list(outcome.failures) == [2]
    assert outcome.failures[2].startswith("its reply was refused: ")
    assert reason in outcome.failures[2]
    assert (total.count, total.total(1).tolist()) == (1, [5, 6])


def test_a_reply_counts_once_however_often_it_comes() -> None:
    twice = replies((2, update(1, 2)), (2, update(1, 2)))
    grid = FakeGrid(twice, twice, replies((3, update(5, 6))), replies((4, update(0, 0))))
    outcome, total = collect(grid, timeout=5)
    assert not outcome.failures
    assert (total.count, total.total(3).tolist()) == (3, [6, 8])


def test_a_second_answer_does_not_undo_a_failure() -> None:
    grid = FakeGrid(replies((2, Error(REFUSED, "no"))), replies((2, update(1, 2))), replies((3, update(5, 6))))
    outcome, total = collect(grid, nodes=[2, 3], timeout=5)
    assert outcome.failures == {2: "no"}
    assert total.count == 1


def test_foreign_replies_are_ignored() -> None:
    """An answer to a message of another round is nobody's here, and its bytes are not counted."""

    def foreign(grid: FakeGrid) -> list[Message]:
        other = Message(RecordDict(), 2, TRAIN_UPDATE)
        other.metadata.__dict__["_message_id"] = "of another round"
        return [Message(update(9, 9), reply_to=other)]

    grid = FakeGrid(foreign, replies((2, update(1, 2))))
    outcome, total = collect(grid, nodes=[2], timeout=5)
    assert not outcome.failures
    assert total.total(1).tolist() == [1, 2]
    assert outcome.bytes_up == 8 + 8 + len("local_delta") + 8


def test_who_does_not_answer_in_time_is_named_and_not_waited_for() -> None:
    started = time.monotonic()
    outcome, total = collect(FakeGrid(replies((3, update(1, 2)))), timeout=0.1)
    assert 0.1 <= time.monotonic() - started < 2
    assert outcome.failures == {2: "no answer within 0.1 seconds", 4: "no answer within 0.1 seconds"}
    assert total.count == 1


def test_it_ends_when_the_last_answer_is_there() -> None:
    started = time.monotonic()
    collect(FakeGrid(replies((2, update(1, 2)))), nodes=[2], timeout=60)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("ids", "lost"),
    [
        (lambda ids: ["", *ids[1:]], [2]),
        (lambda ids: [None, None, ids[2]], [2, 3]),
        (lambda ids: ["", "", ids[2]], [2, 3]),
        (lambda ids: [], [2, 3, 4]),
    ],
    ids=["one", "two as None", "two as empty", "all"],
)
def test_messages_that_flower_does_not_take_are_failures(
    ids: Callable[[list[str]], list[Any]], lost: list[int]
) -> None:
    """Flower gives an empty id for a refused message, and none at all where the push is too large."""
    rest = [node for node in (2, 3, 4) if node not in lost]
    grid = FakeGrid(replies(*((node, update(1, 1)) for node in rest)), ids=ids)
    outcome, total = collect(grid, timeout=5)
    assert outcome.failures == dict.fromkeys(lost, "its message could not be sent")
    assert total.count == len(rest)


def test_nobody_to_ask_is_no_error() -> None:
    outcome, total = collect(FakeGrid(), nodes=[], timeout=60)
    assert outcome == Exchange()
    assert total.count == 0


def test_bytes_are_those_of_arrays_texts_and_numbers() -> None:
    task = TrainTask("run", 3, 0, 1.0, "f" * 64, TrainingPlan(4, "adam", 0.01, 0.0), np.zeros(5, np.float32))
    grid = FakeGrid(replies((2, update(1, 2)), (3, update(3, 4))))
    total = RunningSum(2, LocalDelta)
    tasks = dict.fromkeys((2, 3), task)
    outcome = collect_sum(grid, TRAIN_UPDATE, tasks, 3, total, 5)  # type: ignore[arg-type]
    numbers = 6  # round, attempt, weight, local steps, learning rate, weight decay
    assert outcome.bytes_down == 2 * (5 * 4 + len("run") + 64 + len("adam") + numbers * 8)
    assert outcome.bytes_up == 2 * (2 * 4 + len("local_delta") + 2 * 8)


def test_bytes_of_lists_and_blobs() -> None:
    content = RecordDict({"x": ConfigRecord({"a": ["é", "bc"], "b": b"12345", "c": [1.0, 2.0], "d": [b"1", b"23"]})})
    outcome = exchange(FakeGrid(), "query.join", {2: content}, "g", 0.01, lambda *_: None)  # type: ignore[arg-type]
    assert outcome.bytes_down == (2 + 2) + 5 + 16 + 3


def test_take_hears_which_node_said_what() -> None:
    heard: dict[int, str] = {}

    def take(node: int, content: RecordDict) -> None:
        heard[node] = JoinTask.from_record(content).run_id
        if node == 3:
            raise ProtocolError("two nodes of one name")

    grid = FakeGrid(replies((3, JoinTask("c").to_record()), (2, JoinTask("b").to_record())))
    tasks = {node: JoinTask("run").to_record() for node in (2, 3)}
    outcome = exchange(grid, "query.join", tasks, "join", 5, take)  # type: ignore[arg-type]
    assert heard == {2: "b", 3: "c"}
    assert outcome.failures == {3: "its reply was refused: two nodes of one name"}


def test_promise_1_no_reply_is_kept() -> None:
    """Once it is added, an update is gone: the sum is all that the server holds."""
    alive: list[weakref.ref[RecordDict]] = []

    def answer(grid: FakeGrid) -> list[Message]:
        bodies = [update(1, 2) for _ in (2, 3, 4)]
        alive.extend(weakref.ref(body) for body in bodies)
        return [grid.reply(node, body) for node, body in zip((2, 3, 4), bodies, strict=True)]

    outcome, total = collect(FakeGrid(answer), timeout=5)
    gc.collect()
    assert len(alive) == 3
    assert [each() for each in alive] == [None, None, None]
    assert total.count == 3
    assert "1." not in repr(outcome)
