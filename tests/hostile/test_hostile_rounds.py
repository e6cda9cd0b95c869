"""Rounds, attempts and stages: what was answered once is not answered again, whatever was restarted in between."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.hostile_round import Round, refused, sums_up
from hostile.hostile_server import HostileServer, Refused, partners
from numpy.typing import NDArray

import client.desk
from client.participant import MOST_ATTEMPTS, Participant
from client.roundstore import SealedRoundStore
from common.message_types import QUERY_STATISTICS, TRAIN_UPDATE
from common.messages import StatisticsTask, TrainingPlan
from common.secagg import client_role
from common.secagg.coding import Coding
from common.secagg.masking import Masker, MaskKeys
from common.secagg.states import Shared, load_state
from common.secagg.wire import SessionId
from common.stage_messages import AdvertiseTask


@pytest.fixture(params=["memory", "disk"])
def server(request: pytest.FixtureRequest, tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, round_secrets=request.param) as found:
        yield found


@pytest.fixture
def disk(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, round_secrets="disk") as found:
        yield found


def begin(server: HostileServer, round_number: int, attempt: int, run_id: str = "run") -> AdvertiseTask:
    return AdvertiseTask(SessionId(run_id, round_number, attempt), 2)


def test_the_same_attempt_twice_is_refused_also_after_a_restart(server: HostileServer) -> None:
    """Fresh keys for the same session could be set against the first ones."""
    round_ = Round(server).until("share")
    for _ in range(2):
        refused(round_, 1, begin(server, 1, 0), "round 1, attempt 0: attempt 0 was begun already")
        server.restart()
    Round(server, attempt=5).until("share")
    refused(round_, 1, begin(server, 1, 4), "round 1, attempt 4: attempt 5 was begun already")
    sums_up(Round(server, attempt=6))


def test_a_retry_after_unmask_is_refused_also_after_a_restart(server: HostileServer) -> None:
    """A sum over one partner less, of the same round, would leave that partner's contribution."""
    sums_up(Round(server))
    round_ = Round(server, attempt=1, numbers=(1, 2, 3))
    for _ in range(2):
        refused(round_, 1, begin(server, 1, 1), "round 1: round 1 was unmasked already; it is final")
        refused(round_, 1, begin(server, 0, 0), "round 0: round 1 was unmasked already; it is final")
        server.restart()
    sums_up(Round(server, round=2))


def test_the_round_is_final_where_one_was_asked_to_unmask_whatever_became_of_the_sum(server: HostileServer) -> None:
    round_ = Round(server).until("unmask")
    round_.tell(2, round_.tasks("unmask")[2])
    refused(round_, 2, begin(server, 1, 1), "it is final")
    rest = Round(server, attempt=1)
    rest.play("advertise")
    assert set(rest.refusals) == {2}


def test_a_second_unmask_is_refused_also_after_a_restart(server: HostileServer) -> None:
    round_ = Round(server)
    round_.run()
    task = round_.tasks("unmask")[1]
    for _ in range(2):
        refused(round_, 1, task, "round 1, attempt 0: not under way here")
        server.restart()
    assert server.shares_left() == [1, 2, 3, 4]


def test_a_state_that_a_disk_brings_back_is_not_answered_from(disk: HostileServer) -> None:
    """After a power cut an erased file may be there again: what is on the register decides."""
    round_ = Round(disk).until("unmask")
    task, secrets = round_.tasks("unmask")[1], disk.folder(1) / "state" / "secrets"
    shutil.copytree(secrets, disk.root / "kept")
    round_.run("unmask")
    assert not list(secrets.iterdir())
    disk.restart()
    shutil.copytree(disk.root / "kept", secrets, dirs_exist_ok=True)
    refused(round_, 1, task, "not under way here")
    refused(round_, 1, round_.tallies[0].confirm_task(), "not under way here")


def test_a_second_upload_is_refused_also_after_a_restart(server: HostileServer) -> None:
    """The same masks over two bodies would give their difference."""
    round_ = Round(server).until("mask")
    task = round_.tasks("mask")[1]
    round_.take("mask", 1, round_.tell(1, task))
    refused(round_, 1, task, "out of order: this attempt is after MASK, not SHARE")
    server.restart()
    refused(round_, 1, task, "out of order|not under way here")


def test_what_was_persisted_but_not_sent_is_lost_and_never_made_again(
    disk: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between writing down the masked state and sending: MASK is not answered a second time."""
    round_ = Round(disk).until("mask")
    task = round_.tasks("mask")[1]
    with monkeypatch.context() as patch:
        patch.setattr(client.desk, "upload_record", _die)
        with pytest.raises(Refused):
            round_.tell(1, task)
    contributed_D = disk.contribution(1)
    disk.restart()
    refused(round_, 1, task, "out of order: this attempt is after MASK, not SHARE")
    sums_up(Round(disk, attempt=1))
    assert np.array_equal(disk.contribution(1), contributed_D)
    assert disk.charged(1) == 1


def test_what_was_contributed_but_not_masked_is_masked_after_a_restart(
    disk: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = Round(disk).until("mask")
    with monkeypatch.context() as patch:
        patch.setattr(Participant, "upload", _die)
        with pytest.raises(Refused):
            round_.tell(1, round_.tasks("mask")[1])
    contributed_D = disk.contribution(1)
    disk.restart()
    sums_up(round_, start="mask")
    assert np.array_equal(disk.contribution(1), contributed_D)
    assert disk.charged(1) == 1


def test_shares_that_were_not_sent_are_not_asked_for_twice(
    disk: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after the round became final and before the secrets were erased."""
    round_ = Round(disk).until("unmask")
    task = round_.tasks("unmask")[1]
    with monkeypatch.context() as patch:
        patch.setattr(SealedRoundStore, "erase", _die)
        with pytest.raises(Refused):
            round_.tell(1, task)
    assert list((disk.folder(1) / "state" / "secrets").iterdir())
    disk.restart()
    refused(round_, 1, task, "not under way here")


def _die(*_: Any) -> None:
    raise MemoryError


def test_a_restart_without_a_disk_ends_the_attempt_and_the_next_one_works(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, round_secrets="memory") as server:
        round_ = Round(server).until("confirm")
        contributed_D = server.contribution(1)
        server.restart()
        refused(round_, 1, round_.tasks("confirm")[1], "not under way here")
        sums_up(Round(server, attempt=1))
        assert np.array_equal(server.contribution(1), contributed_D)


def test_a_restart_with_a_disk_between_all_stages_changes_nothing(disk: HostileServer) -> None:
    round_ = Round(disk)
    for stage in ("advertise", "share", "mask", "confirm", "unmask"):
        round_.play(stage)
        disk.restart()
    (total_D,) = round_.sums()
    expected_D, tolerance = round_.expected(round_.numbers)
    assert np.abs(total_D - expected_D).max() <= tolerance


# --- fresh noise ------------------------------------------------------------------------------------------------------


def test_a_round_asked_for_another_model_or_plan_is_refused(server: HostileServer) -> None:
    """Two answers to one round would halve the noise."""
    Round(server).until("confirm")
    lies: list[dict[str, Any]] = [{"model_D": server.model(2)}, {"plan": TrainingPlan(2, "adam", 0.06, 0.0)}]
    for attempt, lie in enumerate(lies, start=1):
        round_ = Round(server, attempt=attempt, **lie).until("mask")
        refused(round_, 1, round_.tasks("mask")[1], "round 1 was answered for another model; it is not answered again")
        assert server.charged(1) == 1
    sums_up(Round(server, attempt=3))


def test_the_next_attempt_at_a_round_gives_the_same_contribution(tmp_path: Path, tiny_encoder: Path) -> None:
    """Unmasked with the secrets of this test: equal but for the rounding to the grid, which is not noise."""
    with partners(tmp_path, tiny_encoder) as server:
        bare = [unmasked_body(Round(server, attempt=attempt), 1) for attempt in range(3)]
        assert len(set(server.contribution(1))) > 10
        for words_D in bare[1:]:
            assert np.abs(words_D.astype(np.int64) - bare[0]).max() <= 1
        scale = Coding(28 - 1, 4.0).scale  # bits_for(4) = 27
        assert np.abs(bare[0] / scale - server.contribution(1)).max() <= 1.01 / scale
        assert server.charged(1) == 1


def unmasked_body(round_: Round, number: int) -> NDArray[np.int32]:
    """Plays a round up to one participant's masked body, and takes its masks off with the secrets out of its store."""
    round_.until("mask")
    participant = round_.server.worker(number)._participant
    assert participant is not None
    hashed = round_.tally(number)._hash.hex()
    state, task = load_state(participant._store.get(hashed) or b""), round_.tasks("mask")[number]
    assert isinstance(state, Shared)
    masks = client_role.open_boxes(participant._member, state, task).masks
    pieces, _ = round_.tell(number, task)
    body_D = np.concatenate(pieces)
    Masker([MaskKeys(mask.body, mask.slots, not mask.subtract) for mask in masks]).apply(body_D)
    return body_D.view(np.int32)


def test_an_older_round_is_not_answered_after_a_newer_one(server: HostileServer) -> None:
    """Two rounds may be under way, but a contribution to the older one after the newer is refused."""
    older, newer = Round(server, round=1).until("mask"), Round(server, round=2).until("mask")
    newer.run("mask")
    refused(older, 1, older.tasks("mask")[1], "not under way here")
    assert server.charged(1) == 1


def test_a_round_that_is_two_ahead_ends_the_one_that_is_under_way(server: HostileServer) -> None:
    round_ = Round(server).until("unmask")
    round_.tell(1, begin(server, 3, 0))
    refused(round_, 1, round_.tasks("unmask")[1], "not under way here")
    refused(round_, 1, begin(server, 1, 1), "round 1: round 1 was unmasked already; it is final")
    assert not server.shares_left()


def test_secrets_of_a_round_that_was_left_open_are_erased_with_the_next(disk: HostileServer) -> None:
    Round(disk, round=1).until("unmask")
    sums_up(Round(disk, round=2))
    assert not list((disk.folder(1) / "state" / "secrets").iterdir())


def test_secrets_of_an_attempt_that_was_given_up_are_erased_with_the_next(server: HostileServer) -> None:
    Round(server).until("unmask")
    for attempt in (1, 2):
        Round(server, attempt=attempt).until("share")
        kept = list((server.folder(1) / "state").glob("secrets/*")), server.facts(1)["secrets"]
        assert sum(map(len, kept)) == 1


def test_attempts_at_one_round_are_numbered(server: HostileServer) -> None:
    """Each shows the server other groups, or another graph; it may not try for long."""
    for attempt in range(MOST_ATTEMPTS):
        server.tell(1, begin(server, 1, attempt))
    for _ in range(2):
        refused(Round(server), 1, begin(server, 1, 99), f"round 1: {MOST_ATTEMPTS} attempts were begun")
        server.restart()


# --- order and kind ---------------------------------------------------------------------------------------------------


def test_stages_out_of_order_are_refused(server: HostileServer) -> None:
    done = Round(server, round=1)
    done.run()
    template = {stage: done.tasks(stage)[1] for stage in ("share", "mask", "unmask")}
    template["confirm"] = done.tallies[0].confirm_task()
    round_ = Round(server, round=2)
    now = {stage: replace(task, session=round_.session) for stage, task in template.items()}
    for stage in now:
        refused(round_, 1, now[stage], "round 2, attempt 0: not under way here")
    round_.until("share")
    for stage in ("mask", "confirm", "unmask"):
        refused(round_, 1, now[stage], "out of order: this attempt is after ADVERTISE, not (SHARE|MASK)")
    round_.play("share")
    refused(round_, 1, round_.tallies[0].share_task, "out of order: this attempt is after SHARE, not ADVERTISE")
    for stage in ("confirm", "unmask"):
        refused(round_, 1, now[stage], "out of order: this attempt is after SHARE, not MASK")
    round_.play("mask")
    refused(round_, 1, now["unmask"], "UNMASK before CONSISTENCY")
    sums_up(round_, start="confirm")


def test_a_plain_contribution_never_leaves_a_partner_whose_method_is_secure(server: HostileServer) -> None:
    before = server.facts(1)
    round_ = Round(server)
    for kind, record in (
        (TRAIN_UPDATE, round_.work_of(1).to_record()),
        (QUERY_STATISTICS, StatisticsTask("run", ("i1", "i2")).to_record()),
    ):
        with pytest.raises(Refused, match=r"gives nothing unmasked \(its aggregation.method is secure\)"):
            server.ask(1, kind, record)
    assert server.facts(1) == before
    sums_up(round_)


@pytest.mark.parametrize("session", [SessionId("run", -1, 0), SessionId("run", 1, -1), SessionId("run", 2**32, 0)])
def test_rounds_and_attempts_that_no_run_has_are_refused(session: SessionId, server: HostileServer) -> None:
    refused(Round(server), 1, AdvertiseTask(session, 0), "round -1|must be from 0 to")


def test_a_damaged_register_answers_nothing_any_more(server: HostileServer) -> None:
    """Which rounds were answered is unknown then."""
    round_ = Round(server).until("unmask")
    (register,) = (server.folder(1) / "state").glob("rounds-*.json")
    for text in ("", "{}", '{"final": 0, "begun": {"1": [0, "x"]}}', '{"final": -1, "begun": {"1": ["0", "x", 1]}}'):
        register.write_text(text)
        refused(round_, 1, round_.tasks("unmask")[1], r"refused \(LedgerError\)")
        refused(round_, 1, begin(server, 5, 0), r"refused \(LedgerError\)")


def test_a_damaged_state_on_the_disk_ends_the_round(disk: HostileServer) -> None:
    round_ = Round(disk).until("unmask")
    (path,) = (disk.folder(1) / "state" / "secrets").iterdir()
    sealed = path.read_bytes()
    for damaged in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:11], b""):
        path.write_bytes(damaged)
        refused(round_, 1, round_.tasks("unmask")[1], "stored state is damaged; the round is over")
