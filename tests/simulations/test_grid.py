"""The in-process grid: Flower's behaviour without its network, on threads, without anything left behind."""

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.contribution import LocalDelta, RunningSum
from common.message_types import TRAIN_UPDATE
from common.messages import TrainingPlan, TrainReply, TrainTask
from server.round import collect_sum, exchange
from simulations.grid import InProcessGrid

Client = Callable[[Message, Context], Message]


def echo(message: Message, context: Context) -> Message:
    """Answers with where it runs."""
    facts = {
        "node": context.node_id,
        "partition": int(context.node_config["partition-id"]),
        "partitions": int(context.node_config["num-partitions"]),
        "said": str(message.content["in"]["text"]) if "in" in message.content else "",
    }
    return Message(RecordDict({"out": ConfigRecord(facts)}), reply_to=message)


def grid_of(client: Client = echo, nodes: int = 3, jobs: int = 2) -> InProcessGrid:
    return InProcessGrid(client, nodes, {"run-folder": "somewhere"}, jobs)


def message_to(grid: InProcessGrid, node: int, text: str = "", ttl: float | None = None) -> Message:
    return grid.create_message(RecordDict({"in": ConfigRecord({"text": text})}), "query.join", node, "g", ttl)


def facts_of(reply: Message) -> dict[str, Any]:
    return dict(reply.content["out"])


def pull_all(grid: InProcessGrid, ids: list[str], seconds: float = 10) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + seconds
    while len(found) < len(ids) and time.monotonic() < deadline:
        found += grid.pull_messages(ids)
    return found


def test_nodes_are_partitions_in_order() -> None:
    with grid_of(nodes=4) as grid:
        nodes = list(grid.get_node_ids())
        assert isinstance(grid, Grid)
        replies = pull_all(grid, list(grid.push_messages([message_to(grid, node) for node in nodes])))
    assert nodes == [2, 3, 4, 5]
    found = {facts_of(reply)["node"]: facts_of(reply) for reply in replies}
    assert {node: facts["partition"] for node, facts in found.items()} == {2: 0, 3: 1, 4: 2, 5: 3}
    assert {facts["partitions"] for facts in found.values()} == {4}


def test_replies_are_found_by_what_they_answer() -> None:
    with grid_of() as grid:
        ids = list(grid.push_messages([message_to(grid, node, f"to {node}") for node in (4, 2, 3)]))
        assert len(set(ids)) == 3
        replies = {reply.metadata.reply_to_message_id: reply for reply in pull_all(grid, ids)}
        for message_id, node in zip(ids, (4, 2, 3), strict=True):
            reply = replies[message_id]
            assert facts_of(reply)["said"] == f"to {node}"
            assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (node, 1)
            assert (reply.metadata.group_id, reply.metadata.message_type) == ("g", "query.join")


def test_a_reply_is_pulled_once_and_only_by_who_asks_for_it() -> None:
    with grid_of() as grid:
        one, other = grid.push_messages([message_to(grid, 2), message_to(grid, 3)])
        assert len(pull_all(grid, [one])) == 1
        started = time.monotonic()
        assert list(grid.pull_messages([one])) == []  # waits a moment, and gives up
        assert time.monotonic() - started < 5
        assert list(grid.pull_messages(["never sent"])) == []
        assert len(pull_all(grid, [other])) == 1
        assert not grid._replies


def test_contexts_carry_the_run_and_keep_each_nodes_state() -> None:
    seen: list[tuple[int, str, int]] = []

    def count(message: Message, context: Context) -> Message:
        if "n" not in context.state:
            context.state["n"] = ConfigRecord({"calls": 0})
        calls = int(context.state.config_records["n"]["calls"]) + 1  # type: ignore[arg-type]
        context.state["n"] = ConfigRecord({"calls": calls})
        seen.append((context.node_id, str(context.run_config["run-folder"]), calls))
        context.run_config["run-folder"] = "changed by one node"
        return Message(RecordDict(), reply_to=message)

    with grid_of(count, nodes=2, jobs=1) as grid:
        for node in (2, 3, 2):
            pull_all(grid, list(grid.push_messages([message_to(grid, node)])))
    assert seen == [(2, "somewhere", 1), (3, "somewhere", 1), (2, "changed by one node", 2)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_clients_run_at_a_time(jobs: int) -> None:
    lock, running, most = threading.Lock(), 0, 0
    meeting = threading.Barrier(jobs)

    def work(message: Message, _context: Context) -> Message:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(10)  # only if `jobs` of them are here at once does any go on
        with lock:
            running -= 1
        return Message(RecordDict(), reply_to=message)

    with grid_of(work, nodes=6, jobs=jobs) as grid:
        ids = list(grid.push_messages([message_to(grid, node) for node in grid.get_node_ids()]))
        replies = pull_all(grid, ids)
    assert not any(reply.has_error() for reply in replies)
    assert len(replies) == 6
    assert most == jobs


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ValueError])
def test_an_exception_in_a_client_is_an_error_of_that_client(kind: type[Exception]) -> None:
    """Its text stays behind: it may hold data. A KeyError inside is not taken for a node that is not there."""

    def fail(message: Message, context: Context) -> Message:
        if context.node_id == 3:
            raise kind("user u0001")
        return echo(message, context)

    with grid_of(fail) as grid:
        replies = pull_all(grid, list(grid.push_messages([message_to(grid, node) for node in (2, 3, 4)])))
    errors = {reply.metadata.src_node_id: reply.error for reply in replies if reply.has_error()}
    assert list(errors) == [3]
    assert (errors[3].code, errors[3].reason) == (2, kind.__name__)


def test_an_unknown_node_is_an_error() -> None:
    with grid_of() as grid:
        (reply,) = pull_all(grid, list(grid.push_messages([message_to(grid, 99)])))
    assert (reply.error.code, reply.error.reason) == (2, "no such node")


def test_closing_waits_for_who_is_running_and_drops_who_is_not() -> None:
    started, release, done = threading.Event(), threading.Event(), []

    def work(message: Message, context: Context) -> Message:
        started.set()
        release.wait(10)
        done.append(context.node_id)
        return Message(RecordDict(), reply_to=message)

    grid = grid_of(work, nodes=5, jobs=1)
    grid.push_messages([message_to(grid, node) for node in grid.get_node_ids()])
    assert started.wait(10)
    closing = threading.Thread(target=grid.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    release.set()
    closing.join(10)
    assert not closing.is_alive()
    assert done == [2]
    grid.close()  # a second time changes nothing


def test_threads_end_with_the_grid_also_when_the_server_fails() -> None:
    before = threading.active_count()

    def fail() -> None:
        with grid_of() as grid:
            pull_all(grid, list(grid.push_messages([message_to(grid, 2)])))
            raise RuntimeError("server")

    with pytest.raises(RuntimeError, match="server"):
        fail()
    assert threading.active_count() == before


def test_send_and_receive_waits_for_all() -> None:
    with grid_of() as grid:
        replies = list(grid.send_and_receive([message_to(grid, node) for node in (2, 3, 4)]))
    assert {facts_of(reply)["node"] for reply in replies} == {2, 3, 4}


def test_send_and_receive_gives_up_in_time() -> None:
    release = threading.Event()

    def slow(message: Message, context: Context) -> Message:
        if context.node_id == 3:
            release.wait(10)
        return echo(message, context)

    with grid_of(slow) as grid:
        replies = list(grid.send_and_receive([message_to(grid, node) for node in (2, 3)], timeout=0.2))
        release.set()
    assert [facts_of(reply)["node"] for reply in replies] == [2]


def test_promise_2_nobody_works_for_a_message_whose_time_is_over() -> None:
    """Queued behind a slow client until nobody waits any more: it would spend budget for nothing."""
    worked: list[int] = []
    release = threading.Event()

    def slow(message: Message, context: Context) -> Message:
        worked.append(context.node_id)
        release.wait(10)
        return echo(message, context)

    with grid_of(slow, nodes=4, jobs=1) as grid:
        outcome = exchange(grid, "query.join", {node: RecordDict() for node in (2, 3, 4)}, "g", 0.5, lambda *_: None)
        release.set()
        replies = pull_all(grid, list(grid.push_messages([message_to(grid, 5)])))  # last in the queue
        assert facts_of(replies[0])["node"] == 5
        assert not grid._replies  # nor is a late answer kept that nobody pulls
    assert worked == [2, 5]
    assert set(outcome.failures) == {2, 3, 4}


def test_the_server_app_runs_here_with_its_own_context() -> None:
    seen: dict[str, Any] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen["folder"], seen["node"] = context.run_config["run-folder"], context.node_id
        seen["nodes"], seen["thread"] = list(grid.get_node_ids()), threading.current_thread()

    with grid_of() as grid:
        grid.run_server(server, {"run-folder": "there"})
    assert seen == {"folder": "there", "node": 1, "nodes": [2, 3, 4], "thread": threading.current_thread()}


def test_what_the_server_raises_reaches_the_caller() -> None:
    server = ServerApp()

    @server.main()
    def main(_grid: Grid, _context: Context) -> None:
        raise KeyboardInterrupt

    with grid_of() as grid, pytest.raises(KeyboardInterrupt):
        grid.run_server(server, {})


def test_a_thousand_nodes_leave_nothing_behind_from_round_to_round() -> None:
    size = 2_000

    def train(message: Message, context: Context) -> Message:
        update_D = np.full(size, context.node_id, np.float32)
        return Message(TrainReply(1, LocalDelta(update_D, 1.0)).to_record(), reply_to=message)

    def one_round(grid: InProcessGrid) -> int:
        total = RunningSum(size, LocalDelta)
        plan = TrainingPlan(1, "sgd", 0.1, 0.0)
        task = TrainTask("run", 1, 0, 1.0, "f" * 64, plan, np.zeros(size, np.float32))
        tasks = dict.fromkeys(grid.get_node_ids(), task)
        outcome = collect_sum(grid, TRAIN_UPDATE, tasks, 1, total, 60)
        assert not outcome.failures
        assert total.total(1000)[0] == sum(range(2, 1002))
        assert not grid._replies
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with grid_of(train, nodes=1000, jobs=2) as grid:
        one_round(grid)
        tracemalloc.start()
        held = [one_round(grid) for _ in range(2)]
        tracemalloc.stop()
    # One round's replies are 8 MB; what may grow is less than one of them per hundred.
    assert held[-1] - held[0] < 80_000
