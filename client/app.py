"""The ClientApp that Flower starts at a partner: a shim, which passes a message on and sends the answer back.

It holds no data, no model, no key, and imports neither torch nor opacus. In a deployment the partner's worker is
another process, of another user, behind the socket that the node's own configuration names (`worker`); nothing that the
server sends can name one. In a simulation the same answers are given in this process.
"""

from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.rpc.asking import ask
from client.rpc.refused import Refused
from common.errors import HushclickError
from common.message_types import MESSAGE_TYPES, NOT_READY

_TIMEOUT_SECONDS = 3600.0  # beyond any stage's own, which the server keeps

app = ClientApp()


def answer(message: Message, context: Context) -> Message:
    """Returns the partner's answer to a message of any type, or an error reply that holds no data."""
    found = _answered(message, context)
    if isinstance(found, Refused):
        return Message(Error(found.code, found.text), reply_to=message)
    return Message(found, reply_to=message)


def _answered(message: Message, context: Context) -> RecordDict | Refused:
    message_type, node = message.metadata.message_type, context.node_config
    if "worker" not in node:
        from client.simulated import simulated_answer  # which needs torch

        run_folder, number = Path(str(context.run_config["run-folder"])), int(node["partition-id"])
        return simulated_answer(run_folder, number, message_type, message.content)
    try:
        owner = str(node.get("worker-owner", ""))
        head, found = ask(str(node["worker"]), owner, message_type, message.content, _TIMEOUT_SECONDS)
    except HushclickError as error:
        return Refused(NOT_READY, str(error))
    return Refused(head.refusal.code, head.refusal.text) if head.HasField("refusal") else found


for _type in MESSAGE_TYPES:
    _category, _, _action = _type.partition(".")
    getattr(app, _category)(_action)(answer)
