"""A partner's answers in the process of a simulation: the same desk, without a socket in between."""

from pathlib import Path

from flwr.app import RecordDict

from client.desk import reply, worker_at
from client.rpc.refused import Refused
from common.runfolder import RunFolder


def simulated_answer(run_folder: Path, number: int, message_type: str, content: RecordDict) -> RecordDict | Refused:
    """Returns the answer of one simulated partner of a run folder to a message."""
    return reply(lambda: worker_at(RunFolder(run_folder).partner(number)), message_type, content)
