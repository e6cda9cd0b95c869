"""The deployed ClientApp behind a bad line: partners that fall silent, and partners that attack.

Who falls silent, when and at which stage is a public draw of (round.seed, partner, round) alone, so that a run can be
repeated, on either engine. A lost message is answered at once with the error that Flower gives for a node that is not
there: the server need not wait out its timeout. What rides along in a lost message is lost with it: whoever falls
silent while the next round is being prepared beside this one misses that one too.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

import client.app
import client.desk
from common.config import Config, load_config
from common.errors import ProtocolError
from common.message_types import (
    QUERY_ADVERTISE,
    QUERY_CONFIRM,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_UNMASK,
    TRAIN_MASK,
    TRAIN_UPDATE,
)
from common.messages import TrainTask
from common.runfolder import RunFolder, partner_name
from common.stage_messages import (
    AdvertiseTask,
    ConfirmTask,
    MaskTask,
    RevealTask,
    ShareTask,
    UnmaskTask,
    stage_of,
    take_ahead,
)
from simulations.attackers import AttackingWorker, attackers_of

NODE_UNAVAILABLE = 5  # Flower's code
UPLOAD = "upload"  # the partner trains and masks, and its answer is lost
STAGES = ("advertise", "share", "train", UPLOAD, "confirm", "unmask")  # where a partner can fall silent, if it is asked
_PLAIN_STAGES = ("train", UPLOAD)
_ORDER = ("advertise", "reveal", *STAGES[1:])

_ASKED_BY = {
    QUERY_ADVERTISE: (AdvertiseTask, "advertise"),
    QUERY_REVEAL: (RevealTask, "reveal"),
    QUERY_SHARE: (ShareTask, "share"),
    TRAIN_MASK: (MaskTask, "train"),
    QUERY_CONFIRM: (ConfirmTask, "confirm"),
    QUERY_UNMASK: (UnmaskTask, "unmask"),
}
_AHEAD_STAGES = {AdvertiseTask: "advertise", RevealTask: "reveal", ShareTask: "share"}


def silent_from(config: Config, partner: str, round_number: int) -> str | None:
    """Returns the stage from which on a partner is silent in a round, or None where it answers throughout."""
    label = repr(("silence", config.round.seed, partner, round_number)).encode()
    draw = hashlib.sha256(label).digest()
    if int.from_bytes(draw[:8], "little") >= config.simulation.dropout_rate * 2**64:
        return None
    stages = STAGES if config.aggregation.method == "secure" else _PLAIN_STAGES
    return stages[int.from_bytes(draw[8:16], "little") % len(stages)]


class FaultyClientApp(ClientApp):
    """Hands messages to the deployed ClientApp, unless they, or their answers, are lost on the way."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Returns the deployed app's answer, or an error for a message that is lost."""
        folder, number = (
            RunFolder(Path(str(context.run_config["run-folder"]))),
            int(context.node_config["partition-id"]),
        )
        config = _config_at(folder.config, folder.config.stat().st_mtime_ns)
        name = partner_name(number)
        if name in _attackers(config):
            _place_attacker(folder.partner(number), config)
        return _carry(message, context, config, name)


app = FaultyClientApp()

_attackers = lru_cache(maxsize=8)(attackers_of)


@lru_cache(maxsize=8)
def _config_at(path: Path, _changed: int) -> Config:
    return load_config(path)


def _place_attacker(folder: Path, config: Config) -> None:
    """Makes the process's worker of one partner an attacking one; where it is one already, nothing changes."""
    client.desk.place_worker(folder, lambda partner: AttackingWorker(partner, config))


def _carry(message: Message, context: Context, config: Config, partner: str) -> Message:
    try:
        (stage, round_number), (rest, ahead) = _asked(message), take_ahead(message.content)
    except ProtocolError:
        return client.app.app(message, context)  # the deployed app says what is wrong with it
    silent = silent_from(config, partner, round_number) if round_number else None
    if _lost(stage, silent):
        return _no_answer(message, silent)
    if isinstance(ahead, AdvertiseTask | RevealTask | ShareTask):
        session, next_stage = ahead.session, _AHEAD_STAGES[type(ahead)]
        if _lost(next_stage, silent_from(config, partner, session.round)):
            message.content = rest
    answer = client.app.app(message, context)
    return _no_answer(message, silent) if stage == "train" and silent == UPLOAD else answer


def _asked(message: Message) -> tuple[str, int]:
    """Returns which stage of which round a message asks for; round 0 for what is no round of training."""
    kind = message.metadata.message_type
    if kind == TRAIN_UPDATE:
        return "train", TrainTask.from_record(message.content).round
    if kind not in _ASKED_BY:
        return "", 0
    task, stage = _ASKED_BY[kind]
    return stage, stage_of(task, message.content, alone=False).session.round


def _lost(stage: str, silent: str | None) -> bool:
    return silent is not None and _ORDER.index(stage) >= _ORDER.index(silent)


def _no_answer(message: Message, silent: str | None) -> Message:
    return Message(Error(NODE_UNAVAILABLE, f"silent from {silent} on (simulated)"), reply_to=message)
