"""Hushclick's own secure aggregation: the steps of `common.secagg` in the order of `run_secagg`, one role counted.

The other roles run in another process, so that neither their CPU time nor their memory is counted. Everyone shares
with everyone, signs and verifies; bodies of all clients are really masked, and the sum must come out right.

Legend: D coordinates of the body.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray

from benchmarks.secagg_cell import COLLUDERS, NUM_MASKS, Cell, Elsewhere, Meter, check_close, update
from common.secagg import client_role as client_steps
from common.secagg.checks import Member
from common.secagg.coding import Coding, decode, encode, require_codable
from common.secagg.keys import KEY_BYTES, sign
from common.secagg.masking import _BLOCK_WORDS, Masker, MaskKeys, _Keystream
from common.secagg.parameters import Policy, bits_for
from common.secagg.roster import Member as RosterMember
from common.secagg.roster import Roster
from common.secagg.server_role import Gathering, Grid, Tally
from common.secagg.states import Advertised, Masked, Shared
from common.secagg.transcript import pack_numbers, participants_hash
from common.secagg.wire import ConfirmTask, MaskTask, SessionId, UnmaskTask, Upload
from common.stage_messages import Advertised as AdvertisedMessage
from common.stage_messages import Confirmation, stage_record, upload_record

_CLIP = 1.0
_SESSION = SessionId("benchmark", 1, 0)
Send = Callable[[Iterable[NDArray[np.uint32]]], list[bytes]]
_HASH = bytes(32)  # in the place of the model's and the configuration's


def generator(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts making the keystreams of ten masks block by block, which are dropped."""
    streams = [_Keystream(os.urandom(KEY_BYTES)) for _ in range(NUM_MASKS)]
    buffer = np.ones(4 * _BLOCK_WORDS + 16, np.uint8)
    meter.start()
    with meter.counting():
        for start in range(0, cell.length, _BLOCK_WORDS):
            for stream in streams:
                stream.fill(buffer, 4 * min(_BLOCK_WORDS, cell.length - start))
    return {}


def masks(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts making ten masks and adding them to a body."""
    keys = [MaskKeys(os.urandom(KEY_BYTES), b"", subtract=bool(number % 2)) for number in range(NUM_MASKS)]
    body_D = np.ones(cell.length, np.uint32)
    meter.start()
    with meter.counting():
        Masker(keys).apply(body_D)
    return {}


class _Party:
    """What all in a round know, and one member's way through its stages."""

    def __init__(self, partners: int) -> None:
        identities = {f"partner-{number:05d}": Ed25519PrivateKey.generate() for number in range(1, partners + 1)}
        self.roster = Roster(
            tuple(RosterMember(name, key.public_key().public_bytes_raw().hex()) for name, key in identities.items())
        )
        policy = Policy(colluders=COLLUDERS, update_bound=_CLIP)
        self.members = {
            number: Member(number, key, self.roster, policy) for number, key in enumerate(identities.values(), start=1)
        }
        self.coding = Coding(bits_for(partners), _CLIP)

    def masked(
        self, member: Member, state: Shared, task: MaskTask, update_D: NDArray[np.float32], send: Send
    ) -> tuple[Masked, Upload, list[bytes]]:
        """Returns stage 2 of one member: its next state, what ends the body, and what `send` made of the pieces."""
        opened = client_steps.open_boxes(member, state, task)
        require_codable(update_D, task.weight, self.coding)
        masking = client_steps.Masking(member, opened)
        pieces = send(masking.pieces(encode(update_D, task.weight, self.coding, os.urandom(KEY_BYTES))))
        return *masking.finish(), pieces

    def grid(self, length: int) -> Grid:
        """Returns what all code their contribution for."""
        return Grid(length, self.coding.bits, _CLIP, _HASH, _HASH)


def client(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts all stages of one client that keeps its masked body until it is sent, as a Flower message is."""
    return {"bytes_up": _client(cell, meter, _kept)}


def stream(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts the same, of a client that sends its masked body piece by piece and keeps none."""
    _client(cell, meter, _gone)
    return {}


def _kept(pieces: Iterable[NDArray[np.uint32]]) -> list[bytes]:
    return [piece_D.astype("<u4", copy=False).tobytes() for piece_D in pieces]


def _gone(pieces: Iterable[NDArray[np.uint32]]) -> list[bytes]:
    deque(pieces, maxlen=0)
    return []


def _client(cell: Cell, meter: Meter, send: Send) -> int:
    """Returns the bytes of the records that the client sent."""
    round_ = _Party(cell.partners)
    number = cell.partners // 2 + 1  # adds half of its masks and subtracts the others
    member = round_.members[number]
    update_D = update(cell.length, seed=1)
    with Elsewhere(_Others(cell, round_, number)) as others:
        meter.start()
        with meter.counting():
            advertised, advertisement = client_steps.advertise(member, _SESSION, os.urandom)
        task = others(advertisement)
        with meter.counting():
            shared, shares = client_steps.share(member, advertised, task, os.urandom)
        task = others(shares)
        with meter.counting():
            masked, upload, pieces = round_.masked(member, shared, task, update_D, send)
        body_bytes = _wire_bytes(upload_record(pieces, upload))
        del pieces
        task = others((masked, upload))
        if cell.dropped:
            with meter.counting():
                masked, signature = client_steps.confirm(member, masked, task)
            task = others((masked, signature))
            with meter.counting():
                revealed = client_steps.unmask(member, masked, task)
            last: tuple[Any, ...] = Confirmation(signature), revealed
        else:  # nobody fell silent: both at once
            with meter.counting():
                signature, revealed = client_steps.confirm_all(member, masked, task)
            last = (Confirmation(signature, "", revealed.owners, revealed.shares),)
    if len(revealed.owners) != cell.partners:
        raise RuntimeError("our client did not answer with a share for every partner")
    small = AdvertisedMessage(advertisement.to_bytes()), shares, *last
    return body_bytes + sum(_wire_bytes(stage_record(message)) for message in small)


def _wire_bytes(record: RecordDict) -> int:
    return len(recorddict_to_proto(record).SerializeToString())


class _Others:
    """The server and all peers of one client: each call takes what that client sends and returns the next task."""

    def __init__(self, cell: Cell, round_: _Party, number: int) -> None:
        self._cell, self._round, self._number = cell, round_, number
        self._peers = {other: member for other, member in round_.members.items() if other != number}
        self._stages = iter((self._share_task, self._mask_task, self._confirm_task, self._unmask_task))

    def __call__(self, message: Any) -> Any:
        return next(self._stages)(message)

    def _share_task(self, advertisement: Any) -> Any:
        server = Gathering(self._round.roster, _SESSION, list(self._round.members), COLLUDERS)
        server.add(self._number, advertisement)
        self._advertised: dict[int, Advertised] = {}
        for number, member in self._peers.items():
            self._advertised[number], peers_advertisement = client_steps.advertise(member, _SESSION, os.urandom)
            server.add(number, peers_advertisement)
        (self._tally,) = server.tallies()
        return self._tally.share_task

    def _mask_task(self, shares: Any) -> MaskTask:
        self._tally.add_shares(self._number, shares)
        for number, member in self._peers.items():
            _, peers_shares = client_steps.share(member, self._advertised[number], self._tally.share_task, os.urandom)
            self._tally.add_shares(number, peers_shares)
        self._tally.fix_second(self._round.grid(self._cell.length), dict.fromkeys(self._round.members, 1.0))
        return self._tally.mask_task(self._number)

    def _confirm_task(self, sent: tuple[Masked, Upload]) -> ConfirmTask:
        silent = set(list(self._peers)[len(self._peers) - self._cell.dropped :])
        alive = tuple(number for number in self._round.members if number not in silent)
        words = b"" if silent else b"".join(self._word(number, *sent) for number in alive)
        self._task = ConfirmTask(_SESSION, alive, tuple(sorted(silent)), words)
        return self._task

    def _word(self, number: int, masked: Masked, upload: Upload) -> bytes:
        """Returns what a participant says that it masked within: the same as the client for all of them."""
        if number == self._number:
            return upload.masked
        second = participants_hash("second", masked.session, pack_numbers(masked.second))
        return sign(self._peers[number].identity, "masked", masked.context, masked.first_hash, second, number)

    def _unmask_task(self, sent: tuple[Masked, bytes]) -> UnmaskTask:
        # All sign the same: a peer's signature needs nothing of its state that is not in the client's too.
        unconfirmed = replace(sent[0], survivors=())
        signatures = {self._number: sent[1]}
        for number in self._task.survivors:
            if number != self._number:
                _, signatures[number] = client_steps.confirm(self._peers[number], unconfirmed, self._task)
        signers = tuple(sorted(signatures))[: self._tally.shape.threshold]
        confirmations = b"".join([signatures[signer] for signer in signers])
        return UnmaskTask(_SESSION, signers, confirmations, masked=b"")  # everyone holds a share of everyone


def server(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts the server from the first advertisement to the decoded sum, except while clients answer."""
    round_ = _Party(cell.partners)
    silent = set(list(round_.members)[cell.partners - cell.dropped :])
    with Elsewhere(_Clients(cell, round_, silent)) as clients:
        meter.start()
        sum_D = _serve_round(cell, round_, _Uncounted(clients, meter), meter)
        expected_D = clients(("expected", None))
    step = 1 / round_.coding.scale
    check_close(sum_D, expected_D, 2 * step * (cell.partners - cell.dropped), "our sum")
    return {}


class _Uncounted:
    """Asks the clients while the meter pauses."""

    def __init__(self, clients: Elsewhere, meter: Meter) -> None:
        self._clients, self._meter = clients, meter

    def __call__(self, stage: str, task: Any) -> Any:
        self._meter.pause()
        answer = self._clients((stage, task))
        self._meter.resume()
        return answer


def _serve_round(cell: Cell, round_: _Party, ask: _Uncounted, meter: Meter) -> NDArray[np.float64]:
    with meter.counting():
        gathering = Gathering(round_.roster, _SESSION, list(round_.members), COLLUDERS)
        for number, advertisement in ask("advertise", None):
            gathering.add(number, advertisement)
        (tally,) = gathering.tallies()
        for number, shares in ask("share", tally.share_task):
            tally.add_shares(number, shares)
        tally.fix_second(round_.grid(cell.length), dict.fromkeys(round_.members, 1.0))
        _take_uploads(tally, ask)
        tally.fix_third()
        unmasking = tally.unmasking()
        for number, (signature, revealed) in ask("confirm", tally.confirm_task()):
            tally.add_confirmation(number, signature)
            if revealed is not None:
                unmasking.add(number, revealed)
        able = tally.confirmed()
        if not tally.everyone:
            for number, revealed in ask("unmask", {number: tally.unmask_task(number) for number in able}):
                unmasking.add(number, revealed)
        return decode(unmasking.finish(), len(tally.third), round_.coding)


def _take_uploads(tally: Tally, ask: _Uncounted) -> None:
    """Adds masked bodies as they arrive; none is kept."""
    for number in tally.second:
        answer: tuple[list[bytes], Upload] | None = ask("mask", (number, tally.mask_task(number)))
        if answer is not None:
            tally.add_upload(number, [np.frombuffer(piece, "<u4") for piece in answer[0]], answer[1])


class _Clients:
    """All clients of a round; those that fall silent do so when masked bodies are due."""

    def __init__(self, cell: Cell, round_: _Party, silent: set[int]) -> None:
        self._cell, self._round, self._silent = cell, round_, silent
        self._states: dict[int, Any] = {}
        self._expected_D = np.zeros(cell.length)

    def __call__(self, request: tuple[str, Any]) -> Any:
        stage, task = request
        if stage == "expected":
            return self._expected_D
        if stage == "mask":
            return self._mask(*task)
        return [(number, self._step(stage, number, task)) for number in self._asked(stage)]

    def _asked(self, stage: str) -> list[int]:
        early = stage in ("advertise", "share")
        return [number for number in self._round.members if early or number not in self._silent]

    def _step(self, stage: str, number: int, task: Any) -> Any:
        member = self._round.members[number]
        if stage == "unmask":
            return client_steps.unmask(member, self._states[number], task[number])
        if stage == "confirm" and task.masked:
            return client_steps.confirm_all(member, self._states[number], task)
        if stage == "advertise":
            after: tuple[Any, Any] = client_steps.advertise(member, _SESSION, os.urandom)
        elif stage == "share":
            after = client_steps.share(member, self._states[number], task, os.urandom)
        else:
            after = client_steps.confirm(member, self._states[number], task)
        self._states[number], message = after
        return (message, None) if stage == "confirm" else message

    def _mask(self, number: int, task: MaskTask) -> tuple[list[bytes], Upload] | None:
        if number in self._silent:
            return None
        update_D = update(self._cell.length, seed=number)
        self._expected_D += update_D
        member = self._round.members[number]
        state = self._states[number]
        self._states[number], upload, pieces = self._round.masked(member, state, task, update_D, _kept)
        return pieces, upload


KINDS: dict[str, Callable[[Cell, Meter], dict[str, float]]] = {
    "generator": generator,
    "masks": masks,
    "client": client,
    "stream": stream,
    "server": server,
}
