"""Played by `test_kills.py` in a process of its own: one round, killed at each write in turn, and what follows.

Every scenario is two forks: the first plays a round until it is killed, the second starts anew on the same disk and is
asked for the same again, and for the round after it. Prints one JSON object a line.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile.hostile_round import Round
from hostile.hostile_server import HostileServer, partners
from killing import Killer
from partner_folder import task_for, write_partner

from client.anchors import HeadFile
from client.budget import Budget
from client.desk import forget_workers
from client.partner import PartnerConfig, load_partner
from client.sent import SentFile
from client.worker import Worker
from common.errors import BudgetExhausted, TooFewPartners
from common.messages import JoinTask, TrainTask
from common.privacy.ledger import Ledger

VICTIM = 1
_write, _exit = os.write, os._exit


class Report:
    """What a child says before it dies: lines through a pipe, past every instrument."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, **facts: Any) -> None:
        _write(self._descriptor, json.dumps(facts).encode() + b"\n")


def in_child(act: Callable[[Report], None]) -> tuple[int, dict[str, Any]]:
    """Runs an act in a fork and returns its exit code and all that it reported, later facts over earlier ones."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            act(Report(writer))
        except BaseException as error:
            Report(writer)(error=f"{type(error).__name__}: {error}")
            _exit(1)
        _exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        facts: dict[str, Any] = {}
        for line in lines:
            facts |= json.loads(line)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), facts


def watch(report: Report, ledger: Path) -> None:
    """Reports each reservation of one ledger that returns."""
    reserve = Budget.reserve

    def watched(budget: Budget, event: Any, room: Any = ()) -> int:
        number = reserve(budget, event, room)
        if budget._ledger._path == ledger:
            report(reserved=number)
        return number

    Budget.reserve = watched  # type: ignore[method-assign]


def state_of(config: PartnerConfig) -> dict[str, Any]:
    """Returns what a partner's disk says; raises where the ledger is damaged or lacks its head."""
    ledger = Ledger(Path(config.ledger), config.name)
    head = HeadFile(Path(config.state)).read()
    ledger.verify(head)
    sent = SentFile(Path(config.state), "run")
    found = sent._read()
    return {
        "charged": len(ledger.events()),
        "numbers": sorted(ledger._chain.reserved),
        "uncommitted": len(ledger.uncommitted()),
        "kept": hashlib.sha256(found.delta_D.tobytes()).hexdigest() if found and found.delta_D is not None else None,
    }


# --- a plain round ------------------------------------------------------------------------------------------------


def train(worker: Worker, task: TrainTask) -> str:
    try:
        contribution: Any = worker.train(task).contribution
    except BudgetExhausted:
        return "exhausted"
    return hashlib.sha256(contribution.delta_D.tobytes()).hexdigest()


def plain(encoder: Path, root: Path, scenario: Callable[..., None], torn: bool) -> None:
    """A round of a partner whose method is plain: the ledger may hold a torn end already."""
    template = root / "template"
    write_partner(template, encoder, epsilon=6.0 if "one" in sys.argv else 200.0)  # one: a single round fits
    warm = Worker(load_partner(template / "partner.toml"))
    task = task_for(warm)
    warm.train(task)  # what is imported and worked out once is not repeated in every fork
    shutil.rmtree(template / "state")
    (template / "ledger.jsonl").unlink()
    if torn:
        (template / "ledger.jsonl").write_bytes(b'{"version":2,"sequ')

    def first(home: Path, killer: Killer, report: Report) -> None:
        config = load_partner(home / "partner.toml")
        watch(report, Path(config.ledger))
        killer.install()
        worker = Worker(config)
        worker.join(JoinTask("run"))
        report(left=train(worker, task))

    def second(home: Path, report: Report) -> None:
        config = load_partner(home / "partner.toml")
        report(after=state_of(config))
        report(again=train(Worker(config), task))
        report(then=state_of(config))
        report(next=train(Worker(config), replace(task, round=2)), end=state_of(config))

    scenario(template, first, second)


# --- a secure round -----------------------------------------------------------------------------------------------


def secure(encoder: Path, root: Path, scenario: Callable[..., None], _torn: bool) -> None:
    """A securely aggregated round of four partners, secrets on the disk; one of the four is killed."""
    template = root / "template"
    with partners(template, encoder, privacy={"epsilon": 200.0}, round_secrets="disk") as server:
        roster = server.roster
        Round(server).run()  # as above
    for leftover in template.glob("partners/*/state"):
        shutil.rmtree(leftover)
    for leftover in template.glob("partners/*/ledger.jsonl"):
        leftover.unlink()

    def victim(home: Path) -> PartnerConfig:
        return load_partner(HostileServer(home, roster).folder(VICTIM) / "partner.toml")

    def play(home: Path, round_number: int, attempt: int) -> tuple[bool, int]:
        """Plays a round with whoever answers; returns whether the victim's contribution left, and how many sums."""
        server = HostileServer(home, roster)
        try:
            sums = Round(server, round=round_number, attempt=attempt).run()
        except TooFewPartners:  # the round is final at all of them
            sums = []
        left = any(sent.number == VICTIM and sent.kind == "train.mask" and not sent.error for sent in server.traffic)
        return left, len(sums)

    def first(home: Path, killer: Killer, report: Report) -> None:
        watch(report, Path(victim(home).ledger))
        killer.install()
        server = HostileServer(home, roster)
        tell = server.tell

        def told(number: int, task: Any, work: Any = None) -> Any:
            answer = tell(number, task, work)
            if number == VICTIM and work is not None:
                report(left=state_of(victim(home))["kept"])
            return answer

        server.tell = told  # type: ignore[method-assign]
        Round(server).run()

    def second(home: Path, report: Report) -> None:
        forget_workers()
        config = victim(home)
        report(after=state_of(config))
        left, sums = play(home, 1, 1)
        report(again=state_of(config)["kept"] if left else "refused", sums=sums, then=state_of(config))
        left, sums = play(home, 2, 0)
        report(next=state_of(config)["kept"] if left else "refused", end=state_of(config))

    scenario(template, first, second, lambda home: HostileServer(home, roster).folder(VICTIM))


def main(kind: str, encoder: Path, root: Path, powers: list[str], torn: bool) -> None:
    def scenario(
        template: Path,
        first: Callable[[Path, Killer, Report], None],
        second: Callable[[Path, Report], None],
        folder_of: Callable[[Path], Path] = lambda home: home,
    ) -> None:
        def play(at: int, middle: bool, power: str) -> list[str]:
            home = root / "home"
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(template, home)
            steps: list[str] = []

            def act(report: Report) -> None:
                killer = Killer(folder_of(home), at, middle=middle, power=power)
                first(home, killer, report)
                report(steps=killer.steps, missed=killer.missed)

            code, facts = in_child(act)
            steps = facts.pop("steps", [])
            code_after, facts_after = in_child(lambda report: second(home, report))
            facts |= facts_after | {"at": at, "middle": middle, "power": power, "codes": [code, code_after]}
            print(json.dumps(facts | {"all": steps}), flush=True)
            return steps

        steps = play(0, False, "")
        for power in powers:
            for at, step in enumerate(steps, 1):
                play(at, False, power)
                if step.startswith("write"):
                    play(at, True, power)

    {"plain": plain, "secure": secure}[kind](encoder, root, scenario, torn)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]), "torn" in sys.argv)
