"""A ServerApp and a ClientApp that do nothing but exchange messages: what an engine costs, and no more.

The ServerApp reads `plan.json` (`nodes`, `rounds`) in the run folder and leaves `answer.json`. As a program,
`python -m benchmarks.empty_apps RUN_FOLDER`, it runs both on the in-process grid: a fresh process, start-up included.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

PLAN, ANSWER = "plan.json", "answer.json"
_TIMEOUT_SECONDS = 600.0
_PAUSE_SECONDS = 0.002

server = ServerApp()
stock = ServerApp()  # as Flower's own strategies exchange: `exchanges` a round, with `Grid.send_and_receive`
client = ClientApp()


@client.query("echo")
def echo(message: Message, _context: Context) -> Message:
    """Answers an empty message with an empty message."""
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Sends an empty message to every node in every round, waits for all answers, and writes down how many came."""
    folder = Path(str(context.run_config["run-folder"]))
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    started = time.monotonic()
    while len(nodes := list(grid.get_node_ids())) < plan["nodes"]:
        if time.monotonic() - started > _TIMEOUT_SECONDS:
            raise TimeoutError(f"{len(nodes)} of {plan['nodes']} nodes after {_TIMEOUT_SECONDS:g} seconds")
        time.sleep(_PAUSE_SECONDS)
    begun = time.monotonic()
    seconds = []
    for number in range(plan["rounds"]):
        round_started = time.monotonic()
        _exchange(grid, nodes, f"round-{number}")
        seconds.append(time.monotonic() - round_started)
    answer = {
        "exchanges": plan["rounds"] * len(nodes),
        "wait_seconds": begun - started,
        "round_seconds": seconds,
    }
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


@stock.main()
def stock_main(grid: Grid, context: Context) -> None:
    """Does the plan's rounds of so many exchanges each, and writes down how long each round took."""
    folder = Path(str(context.run_config["run-folder"]))
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    while len(nodes := list(grid.get_node_ids())) < plan["nodes"]:
        time.sleep(0.1)
    seconds = []
    for number in range(plan["rounds"]):
        started = time.monotonic()
        for _ in range(plan["exchanges"]):
            messages = [Message(RecordDict(), node, "query.echo", group_id=str(number)) for node in nodes]
            replies = list(grid.send_and_receive(messages))
            if len(replies) < len(nodes) or any(reply.has_error() for reply in replies):
                raise RuntimeError("a node did not answer")
        seconds.append(time.monotonic() - started)
    part = (folder / ANSWER).with_suffix(".part")
    part.write_text(json.dumps({"round_seconds": seconds}), encoding="utf-8")
    part.rename(folder / ANSWER)


def _exchange(grid: Grid, nodes: Sequence[int], group: str) -> None:
    """Waits for one answer of every node; raises when one is an error or does not come."""
    waiting = set(grid.push_messages([grid.create_message(RecordDict(), "query.echo", node, group) for node in nodes]))
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while waiting and time.monotonic() < deadline:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"an empty client failed: {reply.error.reason}")
            waiting.discard(reply.metadata.reply_to_message_id)
        if not replies:
            time.sleep(_PAUSE_SECONDS)
    if waiting:
        raise TimeoutError(f"{len(waiting)} of {len(nodes)} answers missing after {_TIMEOUT_SECONDS:g} seconds")


def run_in_process(folder: Path, nodes: int) -> None:
    """Runs both apps on the in-process grid."""
    from simulations.grid import InProcessGrid

    run_config = {"run-folder": str(folder)}
    with InProcessGrid(client, nodes, run_config) as grid:
        grid.run_server(server, run_config)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    run_in_process(given, json.loads((given / PLAN).read_text(encoding="utf-8"))["nodes"])
