"""Replays a vector's messages at one role, some of them replaced; used with good and bad vectors alike."""

from typing import Any

import numpy as np
from vectors.play import STAGES, Reader
from vectors.records import REPLIES, TASKS, cast_of, rich, session_of, words

from common.secagg import client_role as client
from common.secagg.server_role import Gathering, Grid, Tally


class Participant:
    """One participant of a vector, fed with the server's messages and with the randomness that it drew then."""

    def __init__(self, vector: dict[str, Any], number: int, policy: dict[str, Any], replaced: dict[str, Any]) -> None:
        self._own = vector["participants"][str(number)]
        self._member = cast_of(vector, policy).members[number]
        self._session = session_of(vector)
        self._replaced = replaced
        self._state: Any = None

    def play(self, stage: str) -> Any:
        """Returns the answer to one stage; stages come in order."""
        random = Reader(bytes.fromhex(self._own["random"].get(stage, "")))
        if stage == "advertise":
            self._state, reply = client.advertise(self._member, self._session, random)
            return reply
        message = self._replaced.get(stage) or self._own[stage]["task"]
        task = rich(TASKS[stage], message)
        if stage == "share":
            self._state, shares = client.share(self._member, self._state, task, random)
            return shares
        if stage == "mask":
            opened = client.open_boxes(self._member, self._state, task)
            masking = client.Masking(self._member, opened)
            self.body = list(masking.pieces(iter([words(self._own["coded"])])))
            self._state, upload = masking.finish()
            return upload
        if stage == "confirm" and task.masked:
            signature, self.revealed = client.confirm_all(self._member, self._state, task)
            return signature
        if stage == "confirm":
            self._state, signature = client.confirm(self._member, self._state, task)
            return signature
        return client.unmask(self._member, self._state, task)


class Server:
    """The server of a vector, fed with the participants' messages up to a stage."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self._vector = vector
        self._participants = vector["participants"]
        cast, grid = cast_of(vector, {}), vector["grid"]
        self._weights = {number: cast.roster.member(number).weight for number in cast.identities}
        hashes = bytes.fromhex(grid["model_hash"]), bytes.fromhex(grid["config_hash"])
        self._grid = Grid(grid["length"], grid["bits"], grid["clip"], *hashes)
        self.gathering = Gathering(
            cast.roster, session_of(vector), [int(number) for number in self._participants], cast.policy.colluders
        )
        self.tally: Tally

    def begin(self, stage: str) -> None:
        """Does what the server does before a stage's first answer."""
        if stage == "share":
            (self.tally,) = self.gathering.tallies()
        elif stage == "mask":
            self.tally.fix_second(self._grid, self._weights)
        elif stage == "confirm":
            self.tally.fix_third()
            self.unmasking = self.tally.unmasking()

    def take(self, stage: str, number: int, message: Any, body: Any = None) -> None:
        """Takes one answer, a JSON object."""
        reply = rich(REPLIES[stage], message)
        if stage == "advertise":
            self.gathering.add(number, reply)
        elif stage == "share":
            self.tally.add_shares(number, reply)
        elif stage == "mask":
            self.tally.add_upload(number, body, reply)
        elif stage == "confirm":
            self.tally.add_confirmation(number, reply)
        else:
            self.unmasking.add(number, reply)

    def take_all(self, stage: str) -> None:
        """Takes every answer of the vector at a stage."""
        self.begin(stage)
        for number, each in self._participants.items():
            if "reply" in each.get(stage, {}):
                body = [words(each["body"])] if stage == "mask" else None
                self.take(stage, int(number), each[stage]["reply"], body)
            if "revealed" in each.get(stage, {}):
                self.unmasking.add(int(number), rich(REPLIES["revealed"], each[stage]["revealed"]))

    def until(self, stage: str) -> "Server":
        """Takes every answer of the stages before one, and begins it."""
        for earlier in STAGES[: STAGES.index(stage)]:
            self.take_all(earlier)
        return self


def body_of(vector: dict[str, Any], bad: dict[str, Any]) -> list[Any]:
    """Returns the pieces of the body in a bad upload: another list, or the vector's, of another type."""
    values = bad.get("body", vector["participants"][str(bad["participant"])]["body"])
    return [np.array(values, bad.get("dtype", "uint32"))]
