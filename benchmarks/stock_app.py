"""Stock Flower's empty round: four exchanges of empty messages, as SecAgg+ has stages. Shipped as a bundle with code.

The ServerApp reads `plan.json` (`nodes`, `rounds`, `exchanges`) in the run folder and leaves `answer.json`.
"""

import json
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@client.query("echo")
def echo(message: Message, _context: Context) -> Message:
    """Answers an empty message with an empty message."""
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Does so many rounds of exchanges as Flower's own strategies do, and writes down how long each round took."""
    folder = Path(str(context.run_config["run-folder"]))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
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
    answer = folder / "answer.json"
    answer.with_suffix(".part").write_text(json.dumps({"round_seconds": seconds}), encoding="utf-8")
    answer.with_suffix(".part").rename(answer)
