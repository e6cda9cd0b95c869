"""The stages of a round that come before its model is known: ADVERTISE, with groups REVEAL, and SHARE.

In steady state they ride along with the messages of the round before, so that they cost no round trip of their own.
"""

from collections.abc import Mapping, Sequence

from common.config import AggregationConfig
from common.errors import ProtocolError, TooFewPartners
from common.secagg.roster import Roster
from common.secagg.server_role import Gathering, Tally
from common.secagg.wire import SessionId
from common.stage_messages import Advertised, AdvertiseTask, Ahead, Coin, RevealTask, Shares, ShareTask


class Preparation:
    """One attempt at preparing one round: ask with `tasks`, hand answers to `take`, then `advance`.

    Args:
        roster: the server's copy.
        session: which attempt at which round.
        cohort: participant numbers that are asked.
        local_steps: of the round to come; 0 where none.
        config: colluders and groups.
        num_groups: 1 for what is no training.
    """

    def __init__(
        self,
        roster: Roster,
        session: SessionId,
        cohort: Sequence[int],
        local_steps: int,
        config: AggregationConfig,
        num_groups: int,
    ) -> None:
        self.session, self.cohort = session, tuple(sorted(cohort))
        self._gathering = Gathering(roster, session, cohort, config.colluders, num_groups)
        self._local_steps, self._num_groups = local_steps, num_groups
        self._stage: type[Ahead] | None = AdvertiseTask
        self.tallies: list[Tally] = []
        self.failed = ""  # why this preparation cannot be used

    @property
    def open(self) -> bool:
        """Whether there is a stage left to ask for."""
        return self._stage is not None and not self.failed

    def tasks(self) -> Mapping[int, Ahead]:
        """Returns participant -> what it is asked in this stage."""
        if not self.open:
            return {}
        if self._stage is AdvertiseTask:
            return dict.fromkeys(self.cohort, AdvertiseTask(self.session, self._local_steps))
        if self._stage is RevealTask:
            return dict.fromkeys([each.number for each in self._gathering.first], self._gathering.reveal_task())
        return {number: tally.share_task for tally in self.tallies for number in tally.first}

    def take(self, number: int, answer: Ahead) -> None:
        """Takes one participant's answer to this stage; raises `ProtocolError` for a wrong one."""
        if isinstance(answer, Advertised) and self._stage is AdvertiseTask:
            self._gathering.add(number, answer.parsed())
        elif isinstance(answer, Coin) and self._stage is RevealTask:
            self._gathering.add_coin(number, answer.coin)
        elif isinstance(answer, Shares) and self._stage is ShareTask:
            self.tally_of(number).add_shares(number, answer)
        else:
            raise ProtocolError(f"a {type(answer).__name__} that was not asked for")

    def advance(self) -> None:
        """Goes on to the next stage with whoever answered; `failed` says why that cannot be."""
        if not self.open:
            return
        try:
            if self._stage is AdvertiseTask:
                self._stage = RevealTask if self._num_groups > 1 else ShareTask
            else:
                self._stage = ShareTask if self._stage is RevealTask else None
            if self._stage is ShareTask:
                self.tallies = self._gathering.tallies()
            if self._stage is None:
                self._require_shares()
        except (TooFewPartners, ProtocolError) as error:
            self.failed = str(error)

    @property
    def num_advertised(self) -> int:
        """How many gave keys."""
        return len(self._gathering.first)

    @property
    def kept_back(self) -> frozenset[int]:
        """Who advertised and did not reveal its coin, where coins were asked for."""
        return self._gathering.without_coin if self._num_groups > 1 else frozenset()

    def _require_shares(self) -> None:
        """Raises `TooFewPartners` when no sum can come out: nobody trains then, and the round can be prepared anew."""
        problems = []
        for tally in self.tallies:
            try:
                tally.require_shares()
            except TooFewPartners as error:
                problems.append(str(error))
        if len(problems) == len(self.tallies):
            raise TooFewPartners("; ".join(sorted(set(problems))))

    def tally_of(self, number: int) -> Tally:
        """Returns the sum that a participant belongs to; raises `ProtocolError` for one that belongs to none."""
        for tally in self.tallies:
            if number in tally.first:
                return tally
        raise ProtocolError(f"participant {number} did not advertise")
