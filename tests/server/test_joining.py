"""Who joins a run: partners whose worker is up, and those whose worker comes up while the server waits."""

from collections import Counter
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from common.config import Config, parse_config
from common.errors import TooFewPartners
from common.message_types import NOT_READY, REFUSED
from common.messages import JoinReply
from server import joining
from simulations.grid import InProcessGrid


class Nodes:
    """Three nodes; one answers with an error so many times before it joins."""

    def __init__(self, times: int, code: int = NOT_READY) -> None:
        self.app, self.asked = ClientApp(), Counter[int]()

        @self.app.query("join")
        def join(message: Message, context: Context) -> Message:
            number = int(context.node_config["partition-id"])
            self.asked[number] += 1
            if number == 1 and self.asked[1] <= times:
                return Message(Error(code, "this partner's worker is not running"), reply_to=message)
            reply = JoinReply(f"partner-{number}", 100, "a" * 64, False, "", "", "")
            return Message(reply.to_record(), reply_to=message)

    def join(self, timeout_seconds: float = 30.0) -> list[str]:
        table = {"data": {"partners": 3}, "aggregation": {"timeout_seconds": timeout_seconds, "min_partners": 2}}
        config: Config = parse_config(table | {"aggregation": table["aggregation"] | {"method": "plain"}})
        with InProcessGrid(self.app, 3, {"run-folder": str(Path())}) as grid:
            nodes, replies = joining.join(grid, config, "run")
        assert sorted(nodes) == sorted(replies)
        return sorted(nodes)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_AGAIN_SECONDS", 0.01)


def test_a_partner_whose_worker_is_not_ready_is_asked_again() -> None:
    nodes = Nodes(times=3)
    assert nodes.join() == ["partner-0", "partner-1", "partner-2"]
    assert nodes.asked == {0: 1, 1: 4, 2: 1}  # the others are asked once


def test_the_server_waits_no_longer_than_its_timeout() -> None:
    assert Nodes(times=10**9).join(timeout_seconds=1.0) == ["partner-0", "partner-2"]


def test_a_refusal_is_not_asked_again() -> None:
    nodes = Nodes(times=1, code=REFUSED)
    assert nodes.join() == ["partner-0", "partner-2"]
    assert nodes.asked[1] == 1


def test_too_few_is_said_with_the_reason() -> None:
    nodes = Nodes(times=10**9)
    table = {"data": {"partners": 3}, "aggregation": {"timeout_seconds": 1.0, "min_partners": 3, "method": "plain"}}
    with InProcessGrid(nodes.app, 3, {"run-folder": ""}) as grid, pytest.raises(TooFewPartners) as error:
        joining.join(grid, parse_config(table), "run")
    assert "2 of at least 3 partners joined: this partner's worker is not running" in str(error.value)
