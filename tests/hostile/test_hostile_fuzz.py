"""Whatever Flower can carry, at every stage: refused with a text of the project's own, or answered as it should be.

One partner is brought to a stage and is then sent thousands of messages of every kind: honest ones with a few things
changed, and records of anything. Every refusal must leave all that it remembers as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hostile.hostile_round import Round
from hostile.hostile_server import HostileServer, Refused, over_the_wire, partners
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.message_types import (
    BUDGET_EXHAUSTED,
    QUERY_ADVERTISE,
    QUERY_ANCHOR,
    QUERY_CATALOGUE,
    QUERY_CONFIRM,
    QUERY_JOIN,
    QUERY_MASK,
    QUERY_MODEL,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_STATISTICS,
    QUERY_UNMASK,
    REFUSED,
    TRAIN_MASK,
    TRAIN_UPDATE,
)
from common.messages import AnchorTask, CatalogueTask, JoinTask, StatisticsTask
from common.stage_messages import AdvertiseTask, stage_record, with_ahead

STATES = ("advertise", "share", "mask", "confirm", "unmask")
STAGE = "hushclick.stage"
KINDS = (
    *(QUERY_JOIN, QUERY_ANCHOR, QUERY_STATISTICS, QUERY_CATALOGUE, TRAIN_UPDATE, QUERY_ADVERTISE, QUERY_REVEAL),
    *(QUERY_SHARE, TRAIN_MASK, QUERY_MASK, QUERY_CONFIRM, QUERY_UNMASK, QUERY_MODEL),
)
AT_ONCE = QUERY_CONFIRM + "  "  # the letter of that kind that asks for shares
ONE = 1  # the partner that is fuzzed

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-1, 0, 1, 2, 3, 4, 2**31, 2**32, 2**63 - 1, 2**64 - 1]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 4.0, 5e-324, 1e308, float("nan"), float("inf")]),
    st.text(max_size=5),
    st.binary(max_size=40),
    st.sampled_from(["run", "adam", "sgd", "AdvertiseTask", "ShareTask", "Advertised", "RevealTask"]),
)
anything = st.one_of(scalars, st.lists(st.text(max_size=3), max_size=3), st.lists(st.integers(-5, 5), max_size=4))
arrays = st.builds(
    Array,
    dtype=st.sampled_from(["<f4", "<f8", "<i8", "|O", "<U1", ""]),
    shape=st.lists(st.one_of(st.integers(-3, 5), st.sampled_from([2**31, 2**62, -(2**63)])), max_size=3).map(tuple),
    stype=st.sampled_from(["numpy.raw", "numpy.ndarray", ""]),
    data=st.binary(max_size=48),
)
some_records = st.one_of(
    st.dictionaries(st.text(max_size=5), anything, max_size=4).map(ConfigRecord),
    st.dictionaries(st.sampled_from(["model", "counts", "x"]), arrays, max_size=2).map(ArrayRecord),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2).map(MetricRecord),
)
names = st.sampled_from(
    [STAGE, "hushclick.ahead", "hushclick.fields", "hushclick.arrays", "hushclick.body", "other", ""]
)


@dataclass
class Stand:
    """A partner at one stage, and the honest messages of every kind for it."""

    server: HostileServer
    letters: dict[str, RecordDict]  # kind -> what an honest server would send now, or did before
    before: dict[str, Any]
    due: str  # the kind of message that comes next
    answered: int = 0
    refused: int = 0

    def hit(self, kind: str, record: RecordDict) -> None:
        """Sends a record, and holds the answer against what may come back."""
        try:
            over_the_wire(record)
        except (ValueError, TypeError, OverflowError, UnicodeError, KeyError):
            return  # what Flower cannot carry never arrives
        try:
            content = self.server.ask(ONE, kind, record)
        except Refused as refusal:
            self.check(refusal)
        else:
            self.answered += 1
            if kind == QUERY_CONFIRM and content.config_records[STAGE]["shares"]:
                assert dict(record.config_records[STAGE]) == dict(self.letters[AT_ONCE].config_records[STAGE])
            if kind == QUERY_UNMASK:
                assert over_the_wire(record)[1] == over_the_wire(self.letters[QUERY_UNMASK])[1]
            self.reset()

    def check(self, refusal: Refused) -> None:
        """A refusal is one of the project's own errors, names no path, and changed nothing."""
        self.refused += 1
        assert refusal.code in (REFUSED, BUDGET_EXHAUSTED)
        assert "internal error" not in refusal.reason
        assert str(self.server.root) not in refusal.reason
        assert self.server.facts(ONE) == self.before
        self.server.worker(ONE)._budget._lacks = ""  # a false anchor stops a partner until it is started again

    def reset(self) -> None:
        """Brings the partner back to where it was: its files and its secrets."""
        home = self.server.folder(ONE)
        for name in self.server.facts(ONE)["files"].keys() - self.before["files"].keys():
            if "ledger" not in name:
                (home / name).unlink()
        for name, content in self.before["files"].items():
            if "ledger" not in name:
                (home / name).write_bytes(content)
        participant: Any = self.server.worker(ONE)._participant
        participant._store._blobs = dict(self.before["secrets"])
        self.before = self.server.facts(ONE)


def stand_at(server: HostileServer, state: str) -> Stand:
    """Returns the partner before a stage, its own messages of it at hand."""
    played = Round(server)
    played.run()
    letters = {
        QUERY_JOIN: JoinTask("run").to_record(),
        QUERY_ANCHOR: AnchorTask("run", server.worker(ONE)._budget.anchor()).to_record(),
        QUERY_STATISTICS: StatisticsTask("run", ("i1",)).to_record(),
        QUERY_CATALOGUE: CatalogueTask("run", ("i1",), np.ones((2, 1))).to_record(),
        TRAIN_UPDATE: played.work_of(ONE).to_record(),
    }
    at, then = STATES.index(state), Round(server, round=2).until(state)
    stages = {"advertise": QUERY_ADVERTISE, "share": QUERY_SHARE, "mask": TRAIN_MASK}
    stages |= {"confirm": QUERY_CONFIRM, "unmask": QUERY_UNMASK}
    for stage, kind in stages.items():
        source = then if STATES.index(stage) <= at else played  # of the round before, where there is none yet
        task = source.tallies[0].confirm_task() if source is played and stage == "confirm" else source.tasks(stage)[ONE]
        base = source.work_of(ONE).to_record() if stage == "mask" else None
        letters[kind] = stage_record(task, base)
        if stage == "confirm":
            letters[AT_ONCE] = stage_record(source.tallies[0].confirm_task())
    source = then if at > 0 else played
    letters[QUERY_REVEAL] = stage_record(source.gathering.reveal_task())
    letters[QUERY_MASK] = stage_record(played.tasks("mask")[ONE], letters[QUERY_STATISTICS])
    ahead = AdvertiseTask(Round(server, round=3).session, 2)
    letters[QUERY_JOIN + " "] = with_ahead(letters[QUERY_JOIN], ahead)
    letters[QUERY_CONFIRM + " "] = with_ahead(letters[QUERY_CONFIRM], ahead)
    return Stand(server, letters, server.facts(ONE), stages[state])


@pytest.fixture(scope="module", params=STATES)
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path
) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("fuzz")
    with partners(folder, tiny_encoder, privacy={"epsilon": 900.0}) as server:
        yield stand_at(server, request.param)


def fresh(record: RecordDict) -> RecordDict:
    """Returns a copy that shares nothing."""
    return over_the_wire(record)[0]


def put(record: RecordDict, name: str, part: Any) -> None:
    record.pop(name, None)  # Flower warns of a record that another kind of record replaces
    record[name] = part


def change(data: st.DataObject, record: RecordDict) -> None:
    """Changes one thing in a record: a bit, a length, a value, a name, an array, a record."""
    if not record:
        put(record, data.draw(names), data.draw(some_records))
        return
    name = data.draw(st.sampled_from(sorted(record)))
    part = record[name]
    what = data.draw(st.sampled_from(["bits", "length", "value", "swap", "missing", "extra", "record", "away", "more"]))
    if what == "record":
        put(record, name, data.draw(some_records))
    elif what == "away":
        del record[name]
    elif what == "more":
        put(record, data.draw(names), data.draw(some_records))
    elif isinstance(part, ArrayRecord):
        if part:
            part[sorted(part)[0]] = data.draw(arrays)
    elif part and isinstance(part, ConfigRecord):
        change_field(data, part, what)


def change_field(data: st.DataObject, part: Any, what: str) -> None:
    key = data.draw(st.sampled_from(sorted(part)))
    value = part[key]
    if what == "missing":
        del part[key]
    elif what == "extra":
        part[data.draw(st.text(max_size=5))] = data.draw(anything)
    elif what == "swap":
        other = data.draw(st.sampled_from(sorted(part)))
        part[key], part[other] = part[other], value
    elif isinstance(value, bytes) and what == "bits" and value:
        place = data.draw(st.integers(0, 8 * len(value) - 1))
        flipped = bytearray(value)
        flipped[place // 8] ^= 1 << place % 8
        part[key] = bytes(flipped)
    elif isinstance(value, bytes) and what == "length":
        cut = data.draw(st.integers(0, len(value)))
        part[key] = data.draw(st.sampled_from([value[:cut], value[cut:], value + value, value + b"\0"]))
    else:
        part[key] = data.draw(anything)


quick = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(data=st.data())
def test_honest_messages_with_a_few_things_changed(stand: Stand, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(stand.letters)))
    record = fresh(stand.letters[name])
    for _ in range(data.draw(st.integers(1, 3))):
        change(data, record)
    kind = name.strip() if data.draw(st.integers(0, 4)) else data.draw(st.sampled_from(KINDS))
    stand.hit(kind, record)


@quick
@given(data=st.data())
def test_shares_leave_for_exactly_what_is_valid(stand: Stand, data: st.DataObject) -> None:
    """One thing changed in UNMASK, or in CONSISTENCY that asks for shares: they leave for the very message of an honest
    server, and no other."""
    name = data.draw(st.sampled_from([QUERY_UNMASK, AT_ONCE]))
    record = fresh(stand.letters[name])
    change_field(
        data, record[STAGE], data.draw(st.sampled_from(["bits", "length", "value", "swap", "missing", "extra"]))
    )
    stand.hit(name.strip(), record)


@quick
@given(kind=st.sampled_from(KINDS), record=st.dictionaries(names, some_records, max_size=3).map(RecordDict))
def test_records_of_anything(stand: Stand, kind: str, record: RecordDict) -> None:
    stand.hit(kind, record)


def test_the_fuzz_meets_both_ends(stand: Stand) -> None:
    if stand.due == QUERY_CONFIRM:
        answered = stand.answered
        stand.hit(stand.due, fresh(stand.letters[AT_ONCE]))
        assert stand.answered == answered + 1
    """What is due at this stage is answered unchanged, so that the refusals above are due to the changes."""
    answered = stand.answered
    stand.hit(stand.due, fresh(stand.letters[stand.due]))
    assert stand.answered == answered + 1
    for kind in (TRAIN_UPDATE, QUERY_STATISTICS, QUERY_CATALOGUE, QUERY_MASK):  # never answered by such a partner
        refused = stand.refused
        stand.hit(kind, fresh(stand.letters[kind]))
        assert stand.refused == refused + 1
