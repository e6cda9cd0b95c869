"""The hostile server's code in a partner's shim: it tries what it can think of, and reports what it got.

It has what a hostile server has: the run's configuration, the roster, the installed package, and, more than any policy
grants to colluders, the identity keys of all partners but this one.
"""

import ctypes
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.rpc.asking import ask
from client.rpc.worker_pb2 import Field, Head, Piece, Section
from client.rpc.worker_pb2_grpc import PartnerWorkerStub
from common.message_types import (
    QUERY_ADVERTISE,
    QUERY_JOIN,
    QUERY_SHARE,
    QUERY_STATISTICS,
    QUERY_UNMASK,
    TRAIN_MASK,
    TRAIN_UPDATE,
)
from common.messages import JoinReply, JoinTask, StatisticsTask, TrainingPlan, TrainTask
from common.secagg import client_role
from common.secagg.checks import Member
from common.secagg.parameters import Policy, bits_for
from common.secagg.roster import load_roster
from common.secagg.server_role import Gathering, Grid, Tally
from common.secagg.wire import SessionId, ShareTask
from common.stage_messages import Advertised, AdvertiseTask, MaskTask, Shares, UnmaskTask, stage_of, stage_record

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17

app = ClientApp()


@app.query("attack")
def attack(message: Message, context: Context) -> Message:
    known = json.loads(str(message.content["known"]["json"]))
    report = {
        "user": os.getuid(),
        "files": files(known) | worker_process(known),
        "asked": asked(known, str(context.node_config["worker"]), str(context.node_config["worker-owner"])),
    }
    return Message(RecordDict({"report": ConfigRecord({"json": json.dumps(report)})}), reply_to=message)


def tried(act: Callable[[], object]) -> str:
    """Returns "got", or how it failed."""
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "got"


def files(known: dict[str, Any]) -> dict[str, str]:
    def read(path: Path) -> None:
        list(path.iterdir()) if path.is_dir() else path.read_bytes()

    def write(path: Path) -> None:
        (path / "planted").touch() if path.is_dir() else path.open("ab").close()

    paths = {name: Path(path) for name, path in known["paths"].items()}
    found = {f"read {name}": tried(lambda path=path: read(path)) for name, path in paths.items()}
    found |= {f"write {name}": tried(lambda path=path: write(path)) for name, path in paths.items()}
    return found | {"read own node key": tried(lambda: read(Path(os.environ["FLWR_HOME"]) / "node.key"))}


def worker_process(known: dict[str, Any]) -> dict[str, str]:
    """Tries the worker's process: command lines are everybody's to read, so that it is found."""
    number = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().split(b"\0")[-3:-1] == [b"worker", known["paths"]["worker.toml"].encode()]
    )
    proc = Path("/proc") / str(number)
    acts: dict[str, Callable[[], object]] = {
        "environ": lambda: (proc / "environ").read_bytes(),
        "mem": lambda: (proc / "mem").open("rb").close(),
        "maps": lambda: (proc / "maps").read_bytes(),
        "descriptors": lambda: list((proc / "fd").iterdir()),
        "working folder": lambda: list((proc / "cwd").iterdir()),
        "root": lambda: list((proc / "root").iterdir()),
        "ptrace": lambda: ptrace(number),
        "signal": lambda: os.kill(number, 0),
    }
    return {f"worker's {name}": tried(act) for name, act in acts.items()}


def ptrace(number: int) -> None:
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    if trace(_PTRACE_ATTACH, number, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(number, 0x40000000)  # __WALL
    trace(_PTRACE_DETACH, number, None, None)


def asked(known: dict[str, Any], address: str, owner: str) -> dict[str, str]:
    """Asks the worker what its policy and its order of stages forbid, and one round that they allow."""

    def told(kind: str, record: RecordDict) -> RecordDict:
        head, content = ask(address, owner, kind, record, 300)
        if head.HasField("refusal"):
            raise RefusedError(f"{head.refusal.code} {head.refusal.text}")
        return content

    return {**Asking(known, told).all(), **Garbage(address.removeprefix("unix:"), told).all()}


class RefusedError(Exception):
    """What the worker says instead of an answer."""


class Asking:
    """Rounds with the victim over its socket and everybody else played here."""

    def __init__(self, known: dict[str, Any], told: Callable[[str, RecordDict], RecordDict]) -> None:
        self.known, self.told, self.run = known, told, known["run"]
        own = Path(os.environ["FLWR_HOME"]) / "roster.toml"
        own.write_text(known["roster"], encoding="utf-8")
        self.roster = load_roster(own)
        self.victim = self.roster.number(known["victim"])
        self.weight = self.roster.member(self.victim).weight
        self.plan = TrainingPlan(**known["plan"])
        self.fingerprint = JoinReply.from_record(told(QUERY_JOIN, JoinTask(self.run).to_record())).fingerprint
        self.report: dict[str, str] = {}

    def all(self) -> dict[str, str]:
        first = self.prepared(SessionId(self.run, 1, 0))
        mask = self.mask_task(first, self.work(1, 0))
        later = SessionId(self.run, 9, 0)
        self.attempt("mask before advertise", TRAIN_MASK, stage_record(replace(mask, session=later), self.record(9, 0)))
        self.attempt("unmask before consistency", QUERY_UNMASK, stage_record(UnmaskTask(first.session, (), b"", b"")))
        self.attempt("a plain update", TRAIN_UPDATE, self.record(1, 0))
        self.attempt("exact counts", QUERY_STATISTICS, StatisticsTask(self.run, ("i1",)).to_record())
        self.attempt("its key", "query.identity", RecordDict())
        self.attempt("a cohort of one", self.cohort_of_one)
        self.lie(first, "another model layout", fingerprint="0" * 64)
        self.lie(first, "a model of another length", model_D=np.zeros(self.known["length"] + 1, np.float32))
        self.lie(first, "more steps", plan=replace(self.plan, local_steps=10**6))
        self.lie(first, "a larger weight", weight=min(1.0, self.weight * 2))
        self.lie(first, "another run", run_id="other")
        self.attempt("a larger clip", TRAIN_MASK, stage_record(replace(mask, clip=mask.clip * 2), self.record(1, 0)))
        self.attempt("fewer bits", TRAIN_MASK, stage_record(replace(mask, bits=8), self.record(1, 0)))
        for name in ("noise_multiplier", "epsilon", "clip"):
            task = self.record(1, 0)
            next(iter(task.config_records.values()))[name] = 0.0
            self.attempt(f"{name} of the server's", TRAIN_MASK, stage_record(mask, task))
        self.attempt("a round that is allowed", TRAIN_MASK, stage_record(mask, self.record(1, 0)))
        self.attempt("the same round again", TRAIN_MASK, stage_record(mask, self.record(1, 0)))
        self.attempt("unmask after mask", QUERY_UNMASK, stage_record(UnmaskTask(first.session, (), b"", b"")))
        self.attempt("the same attempt again", lambda: self.prepared(SessionId(self.run, 1, 0)))
        second = self.prepared(SessionId(self.run, 1, 1))
        other = np.full(self.known["length"], 0.5, np.float32)
        self.lie(second, "the round again for another model", attempt=1, model_D=other)
        return self.report

    def attempt(self, name: str, kind: Any, record: RecordDict | None = None) -> None:
        try:
            kind() if record is None else self.told(kind, record)
        except Exception as error:
            self.report[name] = str(error) or type(error).__name__
        else:
            self.report[name] = "got"

    def lie(self, tally: Tally, name: str, attempt: int = 0, **change: Any) -> None:
        """Asks for a contribution with a change that the hashes beside it agree with."""
        work = replace(self.work(1, attempt), **change)
        task = replace(self.mask_task(tally, work), weight=work.weight)
        self.attempt(name, TRAIN_MASK, stage_record(task, work.to_record()))

    def work(self, round_number: int, attempt: int) -> TrainTask:
        model_D = np.zeros(self.known["length"], np.float32)
        return TrainTask(self.run, round_number, attempt, self.weight, self.fingerprint, self.plan, model_D)

    def record(self, round_number: int, attempt: int) -> RecordDict:
        return self.work(round_number, attempt).to_record()

    def mask_task(self, tally: Tally, work: TrainTask) -> MaskTask:
        length, model, config = len(work.model_D), *work.hashes(b"")
        if not tally.second:
            weights = {number: self.roster.member(number).weight for number in tally.first}
            tally.fix_second(Grid(length, bits_for(len(weights)), self.known["bound"], model, config), weights)
        return replace(tally.mask_task(self.victim), length=length, model_hash=model, config_hash=config)

    def prepared(self, session: SessionId) -> Tally:
        """Plays the stages before MASK."""
        numbers = range(1, len(self.roster) + 1)
        gathering = Gathering(self.roster, session, numbers, self.known["colluders"], 1)
        task = stage_record(AdvertiseTask(session, self.plan.local_steps))
        gathering.add(self.victim, stage_of(Advertised, self.told(QUERY_ADVERTISE, task)).parsed())
        states = {}
        for number in (number for number in numbers if number != self.victim):
            states[number], sent = client_role.advertise(self.member(number), session, os.urandom)
            gathering.add(number, sent)
        (tally,) = gathering.tallies()
        tally.add_shares(self.victim, stage_of(Shares, self.told(QUERY_SHARE, stage_record(tally.share_task))))
        for number, state in states.items():
            _, shares = client_role.share(self.member(number), state, tally.share_task, os.urandom)
            tally.add_shares(number, shares)
        return tally

    def cohort_of_one(self) -> None:
        session = SessionId(self.run, 2, 0)
        record = self.told(QUERY_ADVERTISE, stage_record(AdvertiseTask(session, self.plan.local_steps)))
        mine = stage_of(Advertised, record).parsed()
        self.told(QUERY_SHARE, stage_record(ShareTask(session, (self.victim,), mine.to_bytes(), 1)))

    def member(self, number: int) -> Member:
        key: Any = load_pem_private_key(self.known["identities"][self.roster.member(number).name].encode(), None)
        return Member(number, key, self.roster, Policy(self.known["colluders"], update_bound=self.known["bound"]))


class Garbage:
    """What is not of the contract: noise, halves, and heads that promise more than anyone holds."""

    def __init__(self, path: str, told: Callable[[str, RecordDict], RecordDict]) -> None:
        self.path, self.told = path, told

    def all(self) -> dict[str, str]:
        report = {"noise": self.answered_after(self.noise), "oversized": self.oversized()}
        report["halves"] = self.answered_after(self.halves)
        return report

    def answered_after(self, act: Callable[[], object]) -> str:
        act()
        return tried(lambda: self.told(QUERY_JOIN, JoinTask("garbage").to_record()))

    def noise(self) -> None:
        for start in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(self.path)
                try:
                    wire.sendall(start + os.urandom(2**16))
                except OSError:
                    continue

    def oversized(self) -> str:
        with grpc.insecure_channel(f"unix:{self.path}") as channel:
            head = Head(version=1, type=QUERY_JOIN, sections=[Section(name="f", fields=[_field(2**40)])])
            answer = list(PartnerWorkerStub(channel).Answer(iter([Piece(head=head)]), timeout=60))
        return str(answer[0].head.refusal.text)

    def halves(self) -> None:
        """Leaves more half questions than the worker reads at a time, for as long as this process lives."""

        def half() -> Iterator[Piece]:
            yield Piece(head=Head(version=1, type=QUERY_JOIN, sections=[Section(name="f", fields=[_field(4)])]))
            threading.Event().wait(120)

        channel = grpc.insecure_channel(f"unix:{self.path}")
        self.left = [PartnerWorkerStub(channel).Answer(half()) for _ in range(3)]


def _field(num_bytes: int) -> Field:
    return Field(name="b", num_bytes=num_bytes)
