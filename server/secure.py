"""A securely aggregated round over Flower: MASK, CONSISTENCY, UNMASK, the next round's preparation riding along.

Where all who sent shares sent a masked body too, CONSISTENCY asks for the shares of UNMASK with it: one exchange less.
Replies are aggregated as they arrive, into one running sum per group; whoever fails at a stage is left out from there
on. Comments name the step of docs/SECAGG.md.

Legend: D parameters, G groups.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.config import AggregationConfig
from common.errors import ProtocolError, TooFewPartners
from common.histogram_messages import EvaluationTask, HistogramTask
from common.message_types import QUERY_CONFIRM, QUERY_EVALUATE, QUERY_HISTOGRAM, QUERY_MASK, QUERY_UNMASK, TRAIN_MASK
from common.messages import StatisticsTask
from common.secagg.coding import decode
from common.secagg.parameters import bits_for
from common.secagg.roster import WEIGHT_UNIT, Roster
from common.secagg.server_role import Grid as SumGrid
from common.secagg.server_role import Tally
from common.secagg.unmasking import Unmasking
from common.secagg.wire import SessionId
from common.stage_messages import (
    ANSWER_TO,
    TYPE_OF,
    Confirmation,
    Revealed,
    stage_of,
    stage_record,
    take_ahead,
    upload_of,
    with_ahead,
)
from server.journal import Journal
from server.preparation import Preparation
from server.round import Exchange, exchange_letters
from server.sums import Collected, GroupSum

_TRIES_A_ROUND = 2**16  # attempts that one start of the server may make at one round


Opening = dict[Tally, Unmasking]


class Work(Protocol):
    """What a partner is asked to contribute: a `TrainTask`, a `StatisticsTask`, or a histogram's task."""

    def to_record(self) -> RecordDict:
        """Returns it as a record."""

    def hashes(self, shared: bytes) -> tuple[bytes, bytes]:
        """Returns model hash and configuration hash."""


@dataclass
class SecureAggregator:
    """Runs the rounds of one start of the server, and remembers what was prepared ahead.

    Args:
        grid: Flower's.
        config: the `[aggregation]` table.
        roster: the server's copy of what the partners pinned.
        nodes: participant number -> Flower's node id.
        run_id: of the run.
        start: how many times this run's server was started before; makes every attempt a new one.
        journal: where the last stage of a round is written down.
        shared: `shared_hash` of what must be the same at all partners.
        integers: whether contributions are whole numbers, wrapping modulo 2^32, as in mode "distributed".
    """

    grid: Grid
    config: AggregationConfig
    roster: Roster
    nodes: Mapping[int, int]
    run_id: str
    start: int
    journal: Journal
    shared: bytes
    integers: bool
    _next: Preparation | None = None
    _tries: dict[int, int] = field(default_factory=dict)

    def collect(
        self,
        round_number: int,
        cohort: Collection[str],
        work_for: Callable[[str, int], Work],
        length: int,
        *,
        local_steps: int,
        following: Collection[str] = (),
    ) -> Collected:
        """Returns the sums of one round.

        Args:
            round_number: from 1; 0 for statistics, which are whole numbers and one group.
            cohort: partners of this round; those of a preparation made ahead go first.
            work_for: (partner, attempt) -> what it is asked.
            length: coordinates of a contribution.
            local_steps: of this round and the next, so that a budget can refuse early; 0 = none.
            following: partners of the next round, prepared while this one runs; empty = none.
        """
        outcome = Collected()
        ready = self._prepared(round_number, [self.roster.number(name) for name in cohort], local_steps, outcome)
        if ready is None:
            return outcome
        ahead = self._begin(round_number + 1, [self.roster.number(name) for name in following], local_steps)
        self._next = ahead
        works = {number: work_for(self.roster.member(number).name, ready.session.attempt) for number in ready.cohort}
        tallies = self._fix_second(ready.tallies, works, length, round_number, outcome)
        self._mask(tallies, works, round_number, ahead, outcome)
        tallies = _those(tallies, lambda tally: tally.fix_third(), outcome)
        outcome.stages["masked"] = sum(len(tally.third) for tally in tallies)
        opening = {tally: tally.unmasking() for tally in tallies}
        if tallies:
            self._confirm(opening, round_number, ahead, outcome)
            tallies = _those(tallies, lambda tally: tally.confirmed(), outcome)
        if tallies:
            outcome.stages["confirmed"] = sum(len(tally.confirmed()) for tally in tallies)
            outcome.stages.setdefault("unmasked", 0)
            opening = {tally: opening[tally] for tally in tallies}
            if not all(tally.everyone for tally in tallies):
                self._unmask(opening, round_number, ahead, outcome)
        for unmasking in opening.values() if tallies else ():
            self._strip(unmasking, outcome)
        return outcome

    def finish_journal(self, round_number: int) -> Collected | None:
        """Returns the sums of a round whose last stage a server before this one began, or None where there is none."""
        unmaskings = self.journal.load(round_number)
        if unmaskings is None:
            return None
        outcome = Collected()
        outcome.stages["asked"] = sum(len(unmasking.sealed) for unmasking in unmaskings)
        for unmasking in unmaskings:
            self._strip(unmasking, outcome)
        return outcome

    def _begin(self, round_number: int, cohort: Sequence[int], local_steps: int) -> Preparation | None:
        if not cohort:
            return None
        tries = self._tries.get(round_number, 0)
        self._tries[round_number] = tries + 1
        session = SessionId(self.run_id, round_number, self.start * _TRIES_A_ROUND + tries)
        groups = self.config.groups if round_number else 1
        return Preparation(self.roster, session, cohort, local_steps, self.config, groups)

    def _prepared(
        self, round_number: int, cohort: Sequence[int], local_steps: int, outcome: Collected
    ) -> Preparation | None:
        """Returns this round's preparation: the one made ahead, or one made now, in round trips of its own."""
        ready = self._next if self._next and self._next.session.round == round_number else None
        self._next = None
        if ready is None or ready.failed:
            # Who advertised and kept back its coin would end every preparation: it is not asked again for this round.
            kept_back = ready.kept_back if ready else frozenset()
            ready = self._begin(round_number, [number for number in cohort if number not in kept_back], local_steps)
        while ready and ready.open:
            self._exchange({}, "prepare", round_number, ready, outcome)
        if ready is not None:
            outcome.stages["asked"] = len(ready.cohort)
            outcome.stages["advertised"] = ready.num_advertised
        if ready is None or ready.failed:
            outcome.errors.append(ready.failed if ready else "nobody to ask")
            return None
        return ready

    def _fix_second(
        self, tallies: list[Tally], works: Mapping[int, Work], length: int, round_number: int, outcome: Collected
    ) -> list[Tally]:
        """Fixes U2 and the grid of every group; groups that are too small are left out."""
        weights = {number: self.roster.member(number).weight for number in works}
        clip = 0.0 if self.integers or round_number == 0 else self.config.update_bound
        model_hash, config_hash = next(iter(works.values())).hashes(self.shared)

        def fix(tally: Tally) -> None:
            grid = SumGrid(length, bits_for(len(tally.first)), clip, model_hash, config_hash)
            tally.fix_second(grid, weights)

        found = _those(tallies, fix, outcome)
        outcome.stages["shared"] = sum(len(tally.second) for tally in found)
        return found

    def _mask(
        self,
        tallies: list[Tally],
        works: Mapping[int, Work],
        round_number: int,
        ahead: Preparation | None,
        outcome: Collected,
    ) -> None:
        """2 MASK: everyone in U2 trains, masks and sends; each body is added as it comes."""
        tally_of = {number: tally for tally in tallies for number in tally.second}
        letters = {
            number: (_type_of(works[number]), stage_record(tally.mask_task(number), works[number].to_record()))
            for number, tally in tally_of.items()
        }

        def take(number: int, content: RecordDict) -> None:
            pieces, upload = upload_of(content)
            tally_of[number].add_upload(number, pieces, upload)

        self._exchange(letters, "mask", round_number, ahead, outcome, take)

    def _confirm(self, opening: Opening, round_number: int, ahead: Preparation | None, outcome: Collected) -> None:
        """3 CONSISTENCY: the survivors sign who survives; where all do, their shares come in with it."""
        tally_of = {number: tally for tally in opening for number in tally.third}
        letters = {number: (QUERY_CONFIRM, stage_record(tally.confirm_task())) for number, tally in tally_of.items()}
        at_once = [unmasking for tally, unmasking in opening.items() if tally.everyone]
        if at_once:
            self.journal.begin(round_number, at_once)

        def take(number: int, content: RecordDict) -> None:
            confirmation, tally = stage_of(Confirmation, content), tally_of[number]
            tally.add_confirmation(number, confirmation.signature)
            outcome.anchors[self.roster.member(number).name] = confirmation.anchor
            if tally.everyone:
                self._take_shares(number, confirmation.revealed, opening[tally], outcome)
            elif confirmation.shares:
                raise ProtocolError("shares that were not asked for")

        self._exchange(letters, "confirm", round_number, ahead, outcome, take)

    def _unmask(self, opening: Opening, round_number: int, ahead: Preparation | None, outcome: Collected) -> None:
        """4 UNMASK: shares come in, of the groups in which somebody fell silent."""
        tally_of = {number: tally for tally in opening if not tally.everyone for number in tally.confirmed()}
        letters = {
            number: (QUERY_UNMASK, stage_record(tally.unmask_task(number))) for number, tally in tally_of.items()
        }
        self.journal.begin(round_number, list(opening.values()), after=any(tally.everyone for tally in opening))

        def take(number: int, content: RecordDict) -> None:
            self._take_shares(number, stage_of(Revealed, content), opening[tally_of[number]], outcome)

        self._exchange(letters, "unmask", round_number, ahead, outcome, take)

    def _take_shares(self, number: int, revealed: Revealed, unmasking: Unmasking, outcome: Collected) -> None:
        unmasking.add(number, revealed)
        self.journal.add(number, revealed)
        outcome.stages["unmasked"] = outcome.stages.get("unmasked", 0) + 1

    def _strip(self, unmasking: Unmasking, outcome: Collected) -> None:
        try:
            sum_D = decode(unmasking.finish(), len(unmasking.third), unmasking.coding)
        except (ProtocolError, TooFewPartners) as error:
            outcome.errors.append(str(error))
        else:
            weight = sum(unmasking.expected_units.values()) / WEIGHT_UNIT
            names = tuple(self.roster.member(number).name for number in unmasking.third)
            outcome.sums.append(GroupSum(sum_D, names, weight))
        for number, fault in unmasking.faults.items():
            outcome.failures.setdefault(self.roster.member(number).name, f"unmask: {fault}")

    def _exchange(
        self,
        letters: dict[int, tuple[str, RecordDict]],
        stage: str,
        round_number: int,
        ahead: Preparation | None,
        outcome: Collected,
        take: Callable[[int, RecordDict], None] | None = None,
    ) -> None:
        """One round trip: this round's stage, and the next round's stage on top of it or beside it."""
        tasks = ahead.tasks() if ahead else {}
        combined: dict[int, tuple[str, RecordDict]] = {}
        for number in sorted(letters.keys() | tasks.keys()):
            kind, record = letters.get(number, ("", RecordDict()))
            if number not in tasks:
                combined[number] = kind, record
            elif number in letters:
                combined[number] = kind, with_ahead(record, tasks[number])
            else:
                combined[number] = TYPE_OF[type(tasks[number])], stage_record(tasks[number])
        number_of = {self.nodes[number]: number for number in combined}

        def take_both(node: int, content: RecordDict) -> None:
            number = number_of[node]
            rest, answer = take_ahead(content)
            if number not in letters:
                rest, answer = RecordDict(), stage_of(ANSWER_TO[type(tasks[number])], content)
            elif take is not None:
                take(number, rest)
            if answer is not None and ahead is not None and number in tasks:
                try:
                    ahead.take(number, answer)
                except ProtocolError as error:  # what it gave to this round still counts
                    outcome.failures.setdefault(self.roster.member(number).name, f"next round: {error}")

        trains = stage == "mask"
        timeout = self.config.timeout_seconds if trains else self.config.stage_timeout_seconds
        by_node = {self.nodes[number]: letter for number, letter in combined.items()}
        result = exchange_letters(self.grid, by_node, f"round-{round_number}-{stage}", timeout, take_both)
        self._account(result, number_of, letters, stage, outcome)
        if ahead:
            ahead.advance()

    def _account(
        self,
        result: Exchange,
        number_of: Mapping[int, int],
        letters: Mapping[int, Any],
        stage: str,
        outcome: Collected,
    ) -> None:
        outcome.round_trips += 1
        outcome.bytes_down += result.bytes_down
        outcome.bytes_up += result.bytes_up
        outcome.exhausted |= {self.roster.member(number_of[node]).name for node in result.exhausted}
        for node, reason in result.failures.items():
            number = number_of[node]
            where = stage if stage == "prepare" or number in letters else "next round"
            outcome.failures.setdefault(self.roster.member(number).name, f"{where}: {reason}")


def _type_of(work: Work) -> str:
    """Returns the type of message that asks for a masked contribution of a kind."""
    if isinstance(work, HistogramTask):
        return QUERY_HISTOGRAM
    if isinstance(work, EvaluationTask):
        return QUERY_EVALUATE
    return QUERY_MASK if isinstance(work, StatisticsTask) else TRAIN_MASK


def _those(tallies: list[Tally], act: Callable[[Tally], object], outcome: Collected) -> list[Tally]:
    """Returns the tallies for which an act does not find too few participants; says why of the others."""
    left = []
    for tally in tallies:
        try:
            act(tally)
        except TooFewPartners as error:
            outcome.errors.append(str(error))
        else:
            left.append(tally)
    return left
