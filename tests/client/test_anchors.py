"""Heads and anchors: a ledger that was cut, restored or written anew is refused, also before a process has read it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dp_events import ledger_at, release, unprotected
from partner_folder import task_for, write_partner

import common
from client.anchors import HeadFile
from client.budget import Budget
from client.partner import PartnerConfig
from client.worker import Worker
from common.config import PrivacyConfig
from common.errors import LedgerError, ProtocolError
from common.messages import AnchorTask, JoinTask
from common.privacy.chain import LedgerHead
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

POLICY = PrivacyConfig(epsilon=500.0, delta=1e-5)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(common.__file__).parent.parent)}


def nth(number: int) -> DpEvent:
    return release(round=number)


class Place:
    """A partner's ledger and state folder, and budgets over them as processes have them."""

    def __init__(self, root: Path) -> None:
        self.ledger, self.state = root / "shop.jsonl", root / "state"
        self.head = self.state / "ledger-head.json"

    def budget(self, policy: PrivacyConfig = POLICY) -> Budget:
        return Budget(ledger_at(self.ledger), policy, HeadFile(self.state))

    def spend(self, rounds: int, budget: Budget | None = None) -> Budget:
        budget = budget or self.budget()
        for number in range(rounds):
            budget.commit(budget.reserve(nth(number)))
        return budget


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- the partner's own head ---------------------------------------------------------------------------------------


def test_the_head_is_kept_at_every_reservation_in_the_state_folder(place: Place) -> None:
    budget = place.budget()
    budget.reserve(nth(0))
    head = Ledger(place.ledger).head()
    assert json.loads(place.head.read_bytes()) == {"version": 1, "num_records": 2, "sha256": head.sha256}
    assert HeadFile(place.state).read() == LedgerHead(2, head.sha256) == head
    budget.reserve(nth(1))
    assert HeadFile(place.state).read() == Ledger(place.ledger).head()
    assert [path.name for path in place.state.iterdir()] == ["ledger-head.json"]


@pytest.mark.parametrize("mode", ["local", "none"])
@pytest.mark.parametrize("loss", ["cut", "older copy", "deleted", "written anew"])
def test_promise_2_cannot_overspend_by_a_ledger_that_lost_its_end_before_the_start(
    place: Place, loss: str, mode: str
) -> None:
    policy = PrivacyConfig(mode="none") if mode == "none" else POLICY
    budget = place.budget(policy)
    event = unprotected() if mode == "none" else nth(0)
    budget.reserve(event)
    older = place.ledger.read_bytes()
    budget.commit(budget.reserve(event))
    if loss == "cut":
        place.ledger.write_bytes(b"".join(place.ledger.read_bytes().splitlines(keepends=True)[:2]))
    elif loss == "older copy":
        place.ledger.write_bytes(older)
    else:
        place.ledger.unlink()
        if loss == "written anew":
            for _ in range(9):
                ledger_at(place.ledger).reserve(event)
    before = place.ledger.read_bytes() if place.ledger.exists() else None
    for use in (lambda: place.budget(policy).reserve(event), place.budget(policy).anchor):
        with pytest.raises(LedgerError, match=r"^shop\.jsonl does not contain the known record 3: it holds \d"):
            use()
    assert (place.ledger.read_bytes() if place.ledger.exists() else None) == before


def test_without_the_state_folder_the_same_is_seen_by_nobody(place: Place) -> None:
    """Without the head, or with it restored too, an older copy passes; but for the server's anchor."""
    place.spend(1)
    older, head = place.ledger.read_bytes(), place.head.read_bytes()
    anchor = place.spend(2).anchor()
    place.ledger.write_bytes(older)
    place.head.unlink()
    place.budget().reserve(nth(9))
    place.ledger.write_bytes(older)
    place.head.write_bytes(head)
    restored = place.budget()
    restored.reserve(nth(9))
    with pytest.raises(LedgerError, match=f"an anchor of this ledger, {anchor[:12]}, that the ledger never had"):
        restored.require_anchor(anchor)


def test_an_older_copy_under_a_running_process_is_refused(place: Place) -> None:
    budget = place.spend(1)
    older = place.ledger.read_bytes()
    place.spend(2, budget)
    place.ledger.write_bytes(older)  # the same file, shorter
    with pytest.raises(LedgerError, match="cut or replaced while in use"):
        budget.reserve(nth(9))
    shutil.copy(place.ledger, place.ledger.with_suffix(".copy"))
    place.ledger.with_suffix(".copy").replace(place.ledger)  # another file
    with pytest.raises(LedgerError, match="cut or replaced while in use"):
        budget.reserve(nth(9))


def test_an_older_copy_is_refused_by_a_process_that_had_read_no_more_than_it_holds(place: Place) -> None:
    """An idle process knows only of the first record; another one went on, and then a backup was restored."""
    idle = place.spend(1)
    place.spend(1)
    older = place.ledger.read_bytes()
    place.spend(3)
    place.ledger.write_bytes(older)
    with pytest.raises(LedgerError, match="does not contain the known record"):
        idle.reserve(nth(9))


def test_a_head_older_than_the_ledger_is_no_alarm(place: Place) -> None:
    """A crash between the ledger's record and the head: the ledger is ahead."""
    place.spend(1)
    head = place.head.read_bytes()
    place.spend(2)
    place.head.write_bytes(head)
    place.budget().reserve(nth(9))
    place.head.unlink()  # the first start of this release, or a state folder that was lost
    place.budget().reserve(nth(10))
    assert HeadFile(place.state).read() == Ledger(place.ledger).head()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"{}", "damaged"),
        (b"[]", "damaged"),
        (b'{"version":1,"num_records":"2","sha256":"' + b"a" * 64 + b'"}', "damaged"),
        (b'{"version":1,"num_records":2,"sha256":"' + b"A" * 64 + b'"}', "damaged"),
        (b'{"version":2,"num_records":2,"sha256":"' + b"a" * 64 + b'"}', "version 2, and this release reads 1"),
    ],
)
def test_a_damaged_head_is_refused_with_its_mend(place: Place, content: bytes, says: str) -> None:
    place.spend(1)
    place.head.write_bytes(content)
    with pytest.raises(LedgerError, match=rf"^ledger-head\.json: {says}.*remove the file if it is whole"):
        place.budget().reserve(nth(9))


def test_a_head_that_cannot_be_written_releases_nothing_and_stays_charged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = place.spend(1)
    head = place.head.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LedgerError, match=r"head\.json: cannot be written \(No space left.*\), so nothing may"):
        budget.reserve(nth(9))
    monkeypatch.undo()
    assert len(Ledger(place.ledger).events()) == 2
    assert place.head.read_bytes() == head
    place.budget().reserve(nth(10))


SPEND = """
import sys
from pathlib import Path
from client.anchors import HeadFile
from client.budget import Budget
from common.config import PrivacyConfig
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
policy = PrivacyConfig(epsilon=500.0, delta=1e-5)
budget = Budget(Ledger(Path(sys.argv[1]), "shop", durable=False), policy, HeadFile(Path(sys.argv[2])))
event = DpEvent.from_dict(eval(sys.argv[3]))
for _ in range(40):
    budget.commit(budget.reserve(event))
"""


def test_two_processes_that_reserve_at_once_never_raise_a_false_alarm(place: Place) -> None:
    command = [sys.executable, "-c", SPEND, str(place.ledger), str(place.state), repr(nth(0).to_dict())]
    workers = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [worker.communicate(timeout=120)[1] for worker in workers] == [b"", b""]
    assert Ledger(place.ledger).verify().num_records == 1 + 2 * 40 * 2
    kept = HeadFile(place.state).read()
    assert kept is not None
    assert kept.num_records >= 160  # the last reservation, with at most both commits behind it
    assert Ledger(place.ledger).verify(kept)


# --- what the server keeps ----------------------------------------------------------------------------------------


def test_an_anchor_that_the_ledger_has_changes_nothing_and_a_false_one_stops_until_a_restart(place: Place) -> None:
    budget = place.spend(1)
    anchor = budget.anchor()
    place.spend(2, budget)
    budget.require_anchor(anchor)
    budget.require_anchor(budget.anchor())
    budget.reserve(nth(7))
    with pytest.raises(LedgerError, match="that the ledger never had"):
        budget.require_anchor("f" * 64)
    before = place.ledger.read_bytes()
    for use in (lambda: budget.reserve(nth(8)), lambda: budget.affordable_rounds(nth(8)), budget.anchor):
        with pytest.raises(LedgerError, match="that the ledger never had"):
            use()
    assert place.ledger.read_bytes() == before
    place.budget().reserve(nth(8))  # where the server was wrong


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> PartnerConfig:
    return write_partner(tmp_path / "shop", tiny_encoder)


def test_a_partner_gives_its_anchor_when_it_joins_and_with_its_contribution(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    assert worker.join(JoinTask("run")).anchor == ""
    reply = worker.train(task_for(worker))
    assert reply.anchor == Ledger(Path(shop.ledger)).anchor() != ""
    assert worker.join(JoinTask("run")).anchor == reply.anchor
    assert worker.train(task_for(worker)).anchor == reply.anchor  # a retry: nothing new was written


def test_a_worker_refuses_to_go_on_without_the_servers_anchor(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    older = {path: path.read_bytes() for path in (Path(shop.ledger), Path(shop.state) / "ledger-head.json")}
    anchor = worker.train(task_for(worker, 2)).anchor
    for path, content in older.items():  # both restored: the partner alone cannot see it
        path.write_bytes(content)
    (Path(shop.state) / next(p.name for p in Path(shop.state).glob("sent-*"))).unlink()
    restored = Worker(shop)
    assert restored.join(JoinTask("run")).anchor not in ("", anchor)
    with pytest.raises(LedgerError, match="the ledger never had"):
        restored.anchor(AnchorTask("run", anchor))
    for use in (lambda: restored.train(task_for(Worker(shop), 2)), lambda: restored.join(JoinTask("run"))):
        with pytest.raises(LedgerError, match="the ledger never had"):
            use()
    assert len(Ledger(Path(shop.ledger)).events()) == 1


def test_a_worker_says_at_the_start_that_its_ledger_was_cut(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    Path(shop.ledger).unlink()
    with pytest.raises(LedgerError, match="does not contain the known record 2: it holds 0"):
        Worker(shop).join(JoinTask("run"))


def test_a_ledger_of_another_partner_is_refused_when_joining(shop: PartnerConfig, tmp_path: Path) -> None:
    ledger_at(Path(shop.ledger), "bank").reserve(nth(0))
    with pytest.raises(LedgerError, match="is the ledger of 'bank' and not of 'shop'"):
        Worker(shop).join(JoinTask("run"))


@pytest.mark.parametrize("anchor", ["", "f" * 63, "F" * 64, "f" * 65, "g" * 64, "f" * 64 + "\n"])
def test_what_is_no_anchor_is_not_taken(anchor: str) -> None:
    with pytest.raises(ProtocolError, match="anchor"):
        AnchorTask("run", anchor)
