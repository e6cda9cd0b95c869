"""Promise 1 over a whole run: weight and count travel in masked slots only, and nothing else tells of the data.

The same run twice, with two quite different logs at one partner; all protocol randomness and all noise are fixed, so
that whatever differs, differs because of the data.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_rows
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from hostile.hostile_round import Round
from hostile.hostile_server import HostileServer, Refused, Sent, partners
from simulated_runs import run, small_config

from common.message_types import QUERY_CATALOGUE, QUERY_JOIN, QUERY_STATISTICS, TRAIN_UPDATE
from common.messages import CatalogueTask, JoinTask, StatisticsTask, TrainingPlan
from common.stage_messages import AdvertiseTask, ConfirmTask, Upload, upload_of, with_ahead

VICTIM = 1
ITEMS = tuple(f"i{number}" for number in range(12))


def small(_: int) -> pd.DataFrame:
    """Three users with a row or two."""
    return random_rows(3, seed=1, most_rows=2)


def large(number: int) -> pd.DataFrame:
    """At the victim: sixty others with many rows, who clicked on everything."""
    if number != VICTIM:
        return small(number)
    return random_rows(60, seed=9, most_rows=9).assign(clicked=np.int8(1))


class Stream:
    """The same bytes in every run: SHAKE-256 of a label, read on and on."""

    def __init__(self, label: str) -> None:
        self._label, self._draws = label, 0

    def __call__(self, count: int) -> bytes:
        self._draws += 1
        return hashlib.shake_256(f"{self._label} {self._draws}".encode()).digest(count)


def with_rows(
    root: Path,
    encoder: Path,
    rows: Callable[[int], pd.DataFrame],
    play: Callable[[HostileServer], None],
    **options: Any,
) -> list[Sent]:
    """Returns all that left all clients in a play, the protocol's randomness being fixed."""
    privacy = {"fixed_seed": 7} | options.pop("privacy", {})
    with partners(root, encoder, rows=rows, privacy=privacy, **options) as server:
        for number in range(1, 1 + len(server.roster)):
            participant = server.worker(number)._participant
            assert participant is not None
            participant._random = Stream(f"participant {number}")
            ledger = server.worker(
                number
            )._budget._ledger  # whose anchors leave: blinded by a nonce, and times are in them
            ledger._random, ledger._clock = Stream(f"ledger {number}"), lambda: datetime(2027, 1, 1, tzinfo=UTC)
        play(server)
        return server.traffic


def assert_differ_in_the_body_alone(one: list[Sent], other: list[Sent], masked: int) -> None:
    """Same messages, kinds, sizes and texts; only the victim's masked bodies and the signatures over them differ."""
    assert [(sent.number, sent.kind, len(sent.body), sent.error) for sent in one] == [
        (sent.number, sent.kind, len(sent.body), sent.error) for sent in other
    ]
    differing = [(ours, theirs) for ours, theirs in zip(one, other, strict=True) if ours.body != theirs.body]
    assert len(differing) == masked
    for ours, theirs in differing:
        assert ours.number == VICTIM
        assert ours.kind.endswith(".mask")
        (our_pieces, our_upload), (their_pieces, their_upload) = (upload_of(record_of(sent)) for sent in (ours, theirs))
        assert [len(piece_D) for piece_D in our_pieces] == [len(piece_D) for piece_D in their_pieces]
        assert our_upload == Upload(their_upload.slots, our_upload.signature, their_upload.masked)


def record_of(sent: Sent) -> Any:
    return recorddict_from_proto(Proto.FromString(sent.body))


def test_promise_1_only_the_masked_body_depends_on_the_data(tmp_path: Path, tiny_encoder: Path) -> None:
    """Join, two good rounds, one with a dropout, one given up and tried again: every message of a private run."""

    def play(server: HostileServer) -> None:
        for number in range(1, 5):
            server.ask(number, QUERY_JOIN, JoinTask("run").to_record())
        plan = TrainingPlan(1, "adam", 0.05, 0.0)
        for number in (1, 2):
            Round(server, round=number, plan=plan).run()
        Round(server, round=3, plan=plan).until("confirm", mask=(4,))
        Round(server, round=3, attempt=1, plan=plan).run()

    logs = [small, large]
    (one, other) = (
        with_rows(tmp_path / rows.__name__, tiny_encoder, rows, play, privacy={"epsilon": 100.0}) for rows in logs
    )
    assert not [sent.error for sent in one if sent.error]
    assert_differ_in_the_body_alone(one, other, masked=4)
    assert {sent.kind for sent in one} >= {"query.join", "train.mask", "query.confirm", "query.unmask"}


def test_promise_1_groups_and_disks_do_not_depend_on_the_data(tmp_path: Path, tiny_encoder: Path) -> None:
    """With coins, and with the next round's stages riding along; secrets on the disk."""

    def play(server: HostileServer) -> None:
        assert len(Round(server, plan=TrainingPlan(1, "adam", 0.05, 0.0), num_groups=2).run()) == 2
        riding = with_ahead(JoinTask("run").to_record(), AdvertiseTask(Round(server, round=2).session, 1))
        server.ask(VICTIM, QUERY_JOIN, riding)

    one, other = (
        with_rows(tmp_path / rows.__name__, tiny_encoder, rows, play, num=8, round_secrets="disk")
        for rows in (small, large)
    )
    assert_differ_in_the_body_alone(one, other, masked=1)


def test_promise_1_exact_counts_without_privacy_travel_masked(tmp_path: Path, tiny_encoder: Path) -> None:
    def play(server: HostileServer) -> None:
        Round(server, round=0, catalogue=ITEMS).run()
        told = CatalogueTask("run", ITEMS, np.tile([[1.0], [9.0]], (1, 12)))
        for number in range(1, 5):
            server.ask(number, QUERY_CATALOGUE, told.to_record())

    options: dict[str, Any] = {"privacy": {"mode": "none"}, "model": {"item_rates": "exact"}}
    one, other = (with_rows(tmp_path / rows.__name__, tiny_encoder, rows, play, **options) for rows in (small, large))
    assert_differ_in_the_body_alone(one, other, masked=1)


def test_promise_1_refusals_say_the_same_whatever_the_data(tmp_path: Path, tiny_encoder: Path) -> None:
    """Every refusal of a private partner: too many steps, an exhausted budget, plain questions, stages out of order."""

    def attempts(server: HostileServer) -> Iterator[Callable[[], Any]]:
        round_ = Round(server)
        yield lambda: server.ask(VICTIM, TRAIN_UPDATE, round_.work_of(VICTIM).to_record())
        yield lambda: server.ask(VICTIM, QUERY_STATISTICS, StatisticsTask("run", ITEMS).to_record())
        yield lambda: server.ask(VICTIM, QUERY_CATALOGUE, CatalogueTask("run", ("i1",), np.ones((2, 1))).to_record())
        yield lambda: server.tell(VICTIM, AdvertiseTask(round_.session, 5))
        yield lambda: server.tell(VICTIM, ConfirmTask(round_.session, (1, 2, 3), ()))
        yield lambda: Round(server, plan=TrainingPlan(2, "adam", 0.05, 0.0)).run()
        yield lambda: server.tell(VICTIM, AdvertiseTask(round_.session, 2))
        yield lambda: server.tell(VICTIM, AdvertiseTask(Round(server, round=2).session, 4))

    def play(server: HostileServer) -> None:
        for attempt in attempts(server):
            try:
                attempt()
            except Refused:
                continue

    one, other = (
        with_rows(tmp_path / rows.__name__, tiny_encoder, rows, play, privacy={"epsilon": 6.0})
        for rows in (small, large)
    )
    texts = [sent.error for sent in one if sent.error]
    assert len(texts) == 7
    assert texts[-1] == (103, "this partner's privacy budget is exhausted")
    assert_differ_in_the_body_alone(one, other, masked=1)


def test_promise_1_the_recorder_would_see_a_count(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that holds the number of users is found out by what the tests above assert."""
    from client.worker import Worker

    join = Worker.join

    def telling(worker: Worker, task: JoinTask) -> Any:
        reply = join(worker, task)
        object.__setattr__(reply, "declared_users", worker._data().num_users)
        return reply

    monkeypatch.setattr(Worker, "join", telling)

    def play(server: HostileServer) -> None:
        server.ask(VICTIM, QUERY_JOIN, JoinTask("run").to_record())

    one, other = (with_rows(tmp_path / rows.__name__, tiny_encoder, rows, play) for rows in (small, large))
    with pytest.raises(AssertionError):
        assert_differ_in_the_body_alone(one, other, masked=0)


# --- what the server writes down --------------------------------------------------------------------------------------

TOTALS = {"round", "cohort", "contributed", "stages", "round_trips", "bytes", "timings", "epsilon"}
CENTRAL = {"auc", "gauc", "log_loss", "ne"}  # on the server's own held-out log


def test_promise_1_the_servers_metrics_of_rounds_hold_no_figure_of_one_partner(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """Partners' names appear beside failures only, with nothing but a stage and a reason; all else are totals."""
    config = small_config(tiny_encoder, 5, 4, simulation={"dropout_rate": 0.3})
    run(config, tmp_path)
    rounds = json.loads((tmp_path / "metrics.json").read_text())["rounds"]
    assert len(rounds) == 4
    assert any("failures" in record for record in rounds)
    for record in rounds:
        assert set(record) - {"failures", "error"} <= TOTALS | CENTRAL
        assert all(type(reason) is str for reason in record.get("failures", {}).values())
        rest = {name: value for name, value in record.items() if name != "failures"}
        assert "partner-" not in json.dumps(rest)
        assert set(record["bytes"]) == {"down", "up"}
        assert set(record["timings"]) == {"train_seconds", "evaluate_seconds"}
        assert all(type(count) is int for count in [*record["stages"].values(), *record["bytes"].values()])
        assert type(record["epsilon"]) in (float, type(None))
