"""The hostile server's half: it sends one partner's node what it knows, and writes down what comes back."""

import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

_SECONDS = 900.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    deadline = time.monotonic() + _SECONDS
    while not (nodes := list(grid.get_node_ids())) and time.monotonic() < deadline:
        time.sleep(0.5)
    known = Path(str(context.run_config["known"])).read_text(encoding="utf-8")
    message = Message(RecordDict({"known": ConfigRecord({"json": known})}), nodes[0], "query.attack")
    (sent,) = grid.push_messages([message])
    while not (replies := list(grid.pull_messages([sent]))) and time.monotonic() < deadline:
        time.sleep(0.5)
    reply = replies[0]
    said = f"ERROR {reply.error.reason}" if reply.has_error() else str(reply.content["report"]["json"])
    beside = Path(str(context.run_config["out"]) + ".part")
    beside.write_text(said, encoding="utf-8")
    beside.rename(str(context.run_config["out"]))
