"""Flower's own SecAgg+: the client mod `secaggplus_mod` and the server's `SecAggPlusWorkflow`, with real messages.

Both are the functions that Flower deploys, called in their own order: the mod once per stage and client, the workflow
once. Only what is around them is ours: a grid that hands messages over, and a strategy that averages nothing. Left out
of the count, in Flower's favour: the network and protobuf, the model sent to clients, the strategy's own arithmetic.
Every partner shares with every other (`num_shares` = partners), with the threshold that Hushclick would use.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.secagg_cell import COLLUDERS, NUM_MASKS, Cell, Elsewhere, Meter, check_close, update
from common.secagg.parameters import majority

_RING = 2**32
_LEVELS = 2**22  # Flower's default quantisation, as are the clip and the weight below
_CLIP = 8.0
_MAX_WEIGHT = 1000.0
_FIRST_NODE = 2
_CHUNK_BYTES = 16  # of a secret, padded, that Flower shares at a time
_SEED_SHARE_BYTES, _KEY_SHARE_BYTES = 52, 324  # of a 32-byte seed and of a PEM key, as Flower's create_shares pads them


def generator(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts making ten masks, which are dropped."""
    seeds = [os.urandom(32) for _ in range(NUM_MASKS)]
    meter.start()
    with meter.counting():
        for seed in seeds:
            pseudo_rand_gen(seed, _RING, [(cell.length,)])
    return {}


def masks(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts making ten masks and adding them to a body, as the mod does."""
    seeds = [os.urandom(32) for _ in range(NUM_MASKS)]
    body = [np.ones(cell.length, np.int64)]
    meter.start()
    with meter.counting():
        for number, seed in enumerate(seeds):
            mask = pseudo_rand_gen(seed, _RING, [(cell.length,)])
            body = (parameters_subtraction if number % 2 else parameters_addition)(body, mask)
        parameters_mod(body, _RING)
    return {}


class Client:
    """One client: Flower's mod around a ClientApp whose training is done already."""

    def __init__(self, node: int, length: int) -> None:
        self.node = node
        self.update_D = update(length, node)
        self._context = Context(1, node, {}, RecordDict(), {})
        self._trained: RecordDict | None = None

    def train(self) -> None:
        """Puts the update where the mod finds it, as a ClientApp would."""
        parameters = ndarrays_to_parameters([self.update_D])
        result = FitRes(Status(Code.OK, ""), parameters, round(_MAX_WEIGHT), {})
        self._trained = compat.fitres_to_recorddict(result, keep_input=False)

    def answer(self, message: Message) -> Message:
        """Returns the mod's reply to one stage."""
        return secaggplus_mod(message, self._context, self._app)

    def _app(self, message: Message, _context: Context) -> Message:
        if self._trained is None:
            raise RuntimeError("train() comes before the third stage")
        trained, self._trained = self._trained, None
        return Message(trained, reply_to=message)


def client(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts all four stages of one client; its peers are keys and boxes made outside the count."""
    _become_server()
    party = Client(_FIRST_NODE, cell.length)
    party.train()
    peers = {_FIRST_NODE + 1 + number: _Peer() for number in range(cell.partners - 1)}
    uploads: list[int] = []

    def ask(stage: str, configs: dict[str, Any]) -> Any:
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({Key.STAGE: stage, **configs})})
        message = _over_the_wire(Message(content, dst_node_id=party.node, message_type="train"))
        with meter.counting():
            reply = party.answer(message)
        uploads.append(len(recorddict_to_proto(reply.content).SerializeToString()))
        return reply.content.config_records[RECORD_KEY_CONFIGS]

    meter.start()
    keys = ask(Stage.SETUP, _setup(cell.partners))
    own = (cast(bytes, keys[Key.PUBLIC_KEY_1]), cast(bytes, keys[Key.PUBLIC_KEY_2]))
    published = {party.node: own, **{node: peer.public for node, peer in peers.items()}}
    ask(Stage.SHARE_KEYS, {str(node): list(pair) for node, pair in published.items()})
    boxes = [peer.box(node, party.node, own[1]) for node, peer in peers.items()]
    ask(Stage.COLLECT_MASKED_VECTORS, {Key.CIPHERTEXT_LIST: boxes, Key.SOURCE_LIST: list(peers)})
    nodes = list(published)
    alive, dead = nodes[: len(nodes) - cell.dropped], nodes[len(nodes) - cell.dropped :]
    answer = ask(Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: dead})
    if len(answer[Key.SHARE_LIST]) != cell.partners:
        raise RuntimeError("Flower's client did not answer with a share for every partner")
    return {"bytes_up": sum(uploads)}


class _Peer:
    """What the measured client sees of another: two public keys and one box, as long as a real one."""

    def __init__(self) -> None:
        (_, mask_key), (self._channel_key, channel_public) = generate_key_pairs(), generate_key_pairs()
        self.public = (public_key_to_bytes(mask_key), public_key_to_bytes(channel_public))

    def box(self, own: int, other: int, others_channel_key: bytes) -> bytes:
        key = generate_shared_key(self._channel_key, bytes_to_public_key(others_channel_key))
        shares = os.urandom(_SEED_SHARE_BYTES), os.urandom(_KEY_SHARE_BYTES)
        return encrypt(key, share_keys_plaintext_concat(own, other, *shares))


def _setup(partners: int) -> dict[str, Any]:
    """Returns what the workflow sends in its first stage."""
    return {
        Key.SAMPLE_NUMBER: partners,
        Key.SHARE_NUMBER: partners,
        Key.THRESHOLD: majority(partners, COLLUDERS),
        Key.CLIPPING_RANGE: _CLIP,
        Key.TARGET_RANGE: _LEVELS,
        Key.MOD_RANGE: _RING,
        Key.MAX_WEIGHT: _MAX_WEIGHT,
    }


def server(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts the workflow, except while clients answer (in another process)."""
    _become_server()
    clients = {_FIRST_NODE + number: Client(_FIRST_NODE + number, cell.length) for number in range(cell.partners)}
    silent = set(list(clients)[cell.partners - cell.dropped :])
    strategy = _Strategy(list(clients))
    workflow = SecAggPlusWorkflow(cell.partners, majority(cell.partners, COLLUDERS), max_weight=_MAX_WEIGHT)
    context = _server_context(strategy)
    expected_D = np.mean([party.update_D for node, party in clients.items() if node not in silent], axis=0)
    with Elsewhere(_Clients(clients, silent)) as others:
        grid = SimpleNamespace(send_and_receive=_delivery(others, meter))
        meter.start()
        with meter.counting():
            workflow(cast(Any, grid), context)
    if strategy.averaged is None:
        raise RuntimeError("Flower's workflow halted before its end")
    (mean_D,) = parameters_to_ndarrays(strategy.averaged)
    check_close(mean_D, expected_D, 2 * (2 * _CLIP / _LEVELS), "Flower's mean")
    return {}


def _delivery(others: Elsewhere, meter: Meter) -> Callable[..., list[Message]]:
    """Returns a grid's `send_and_receive` that does not count: bytes there, bytes back."""

    def send_and_receive(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        meter.pause()
        replies = [_from_wire(reply) for reply in others([_to_wire(message) for message in messages])]
        meter.resume()
        return replies

    return send_and_receive


class _Clients:
    """All clients of a round, one after another; those that fall silent do so at the third stage."""

    def __init__(self, clients: dict[int, Client], silent: set[int]) -> None:
        self._clients, self._silent = clients, silent

    def __call__(self, requests: Sequence[bytes]) -> list[bytes]:
        _share_quickly()
        replies = []
        for message in map(_from_wire, requests):
            stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            party = self._clients[message.metadata.dst_node_id]
            if stage == Stage.COLLECT_MASKED_VECTORS:
                if party.node in self._silent:
                    continue
                party.train()
            replies.append(_to_wire(party.answer(message)))
        return replies


def _share_quickly() -> None:
    """Makes the clients of a server's cell, in their own process, share by `flat_shares`.

    Flower's `create_shares` would take minutes for a hundred clients that nobody measures. To the server these shares
    are as any others: it does the same arithmetic on them and finds the same secrets.
    """
    module: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    module.create_shares = flat_shares


def flat_shares(secret: bytes, _threshold: int, num: int) -> list[bytes]:
    """Returns shares in Flower's format, on polynomials of degree 0."""
    missing = _CHUNK_BYTES - len(secret) % _CHUNK_BYTES
    padded = secret + bytes([missing]) * missing
    return [(number + 1).to_bytes(4, "little") + padded for number in range(num)]


class _Strategy:
    """Stands in for strategy and client manager: takes every client, keeps what the workflow made, averages nothing."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = nodes
        self.averaged: Parameters | None = None

    def num_available(self) -> int:
        return len(self._nodes)

    def configure_fit(self, _round: int, parameters: Parameters, _manager: Any) -> list[tuple[Any, FitIns]]:
        return [(SimpleNamespace(node_id=node), FitIns(parameters, {})) for node in self._nodes]

    def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[Parameters, dict[str, Any]]:
        self.averaged = cast(Parameters, results[0][1].parameters)
        return self.averaged, {}


def _server_context(strategy: _Strategy) -> LegacyContext:
    context = LegacyContext(
        Context(1, 1, {}, RecordDict(), {}), strategy=cast(Any, strategy), client_manager=cast(Any, strategy)
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    return context


def _become_server() -> None:
    """Gives this process the numbers that Flower writes into messages."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _to_wire(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


def _from_wire(message: bytes) -> Message:
    return message_from_proto(MessageProto.FromString(message))


def _over_the_wire(message: Message) -> Message:
    return _from_wire(_to_wire(message))


KINDS: dict[str, Callable[[Cell, Meter], dict[str, float]]] = {
    "generator": generator,
    "masks": masks,
    "client": client,
    "server": server,
}
