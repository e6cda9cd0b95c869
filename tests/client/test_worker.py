"""The worker: reserves before it trains, answers a round once, and lets nobody else set its privacy."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_rows
from partner_folder import PLAN, start_model, task_for, write_partner

import client.sent
import client.worker
from client.budget import Budget
from client.partner import PartnerConfig
from client.worker import Worker, thread_model
from common.errors import BudgetExhausted, DataError, HushclickError, LedgerError, ProtocolError
from common.features import count_items
from common.messages import CatalogueTask, JoinTask, StatisticsTask, TrainTask
from common.model.click_model import build_model
from common.privacy.ledger import Ledger
from common.vector import layout_fingerprint, read_vector

Make = Callable[..., PartnerConfig]


@pytest.fixture
def make(tmp_path: Path, tiny_encoder: Path) -> Make:
    """Writes a partner of a name into a folder of its own."""
    return lambda name="shop", rows=None, **privacy: write_partner(tmp_path / name, tiny_encoder, rows, **privacy)


def events(config: PartnerConfig) -> tuple[Any, ...]:
    return Ledger(Path(config.ledger)).events()


def update_of(worker: Worker, task: TrainTask) -> bytes:
    return worker.train(task).contribution.delta_D.tobytes()  # type: ignore[union-attr]


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("trained, although it must not")

    monkeypatch.setattr(client.worker, "train_privately", train)


# --- joining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purchases", [False, True])
def test_a_partner_joins_with_what_it_publishes(purchases: bool, make: Make) -> None:
    config = make(rows=random_rows(12, purchases=purchases))
    worker = Worker(config)
    reply = worker.join(JoinTask("run"))
    assert (reply.partner, reply.declared_users, reply.has_purchases) == ("shop", 12, purchases)
    model = build_model(config.model, worker._pretrained.width, 1 + purchases, seed=77)
    assert reply.fingerprint == layout_fingerprint(model, worker._pretrained.fingerprint, worker.config.model)
    assert events(config) == ()


def test_promise_1_what_is_declared_is_not_read_off_the_data(make: Make) -> None:
    few, many = make("few", random_rows(3)), make("many", random_rows(40))
    one, other = (Worker(config).join(JoinTask("run")) for config in (few, many))
    assert one == other


def test_a_log_that_cannot_be_read_is_said_when_joining(make: Make) -> None:
    config = make()
    Path(config.clicks).unlink()
    with pytest.raises(DataError, match="no such file"):
        Worker(config).join(JoinTask("run"))


def test_a_log_of_one_class_is_trained_on(make: Make) -> None:
    worker = Worker(make(rows=random_rows(12).assign(clicked=np.int8(0))))
    assert np.isfinite(worker.train(task_for(worker)).contribution.delta_D).all()  # type: ignore[union-attr]


# --- one round ----------------------------------------------------------------------------------------------------


def test_a_round_gives_a_contribution_and_is_charged_as_the_partner_says(make: Make) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker, weight=0.25)
    reply = worker.train(task)
    assert reply.round == 1
    assert reply.contribution.weight == 0.25  # type: ignore[union-attr]
    update_D = reply.contribution.delta_D  # type: ignore[union-attr]
    assert update_D.dtype == np.float32
    assert update_D.shape == task.model_D.shape
    assert np.isfinite(update_D).all()
    assert np.abs(update_D).max() > 0.01
    (event,) = events(config)
    assert (event.run_id, event.round, event.attempt, event.purpose) == ("run", 1, 0, "training")
    assert (event.mechanism, event.unit, event.mode) == ("poisson_gaussian", "user", "local")
    assert (event.noise_multiplier, event.sampling_rate, event.steps, event.clip) == (0.8, 0.5, 2, 0.7)
    assert event.fixed_seed is False
    assert Ledger(Path(config.ledger)).uncommitted() == ()


def test_promise_2_noise_clip_and_rate_are_the_partners_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = client.worker.train_privately

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(client.worker, "train_privately", spy)
    worker = Worker(make(max_impressions_per_user=5))
    worker.train(task_for(worker, plan=replace(PLAN, learning_rate=1e3, weight_decay=0.9)))
    (step,) = seen
    assert dataclasses.asdict(step) == {
        "sampling_rate": 0.5,
        "noise_multiplier": 0.8,
        "clip": 0.7,
        "max_rows": 5,
        "expected_units": 0.5 * 12,  # declared, not counted
        "unit": "user",
    }


def test_without_privacy_it_is_charged_as_such(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = client.worker.train_privately
    monkeypatch.setattr(client.worker, "train_privately", lambda *a: (seen.append(a[4]), original(*a))[1])
    config = make(mode="none")
    worker = Worker(config)
    worker.train(task_for(worker, plan=replace(PLAN, local_steps=9)))  # over max_local_steps, which is privacy's
    assert (seen[0].noise_multiplier, seen[0].clip) == (0.0, None)
    (event,) = events(config)
    assert (event.mechanism, event.mode, event.noise_multiplier) == ("none", "none", 0.0)


def test_unseeded_workers_draw_fresh_noise(make: Make) -> None:
    one, other = Worker(make("a")), Worker(make("b"))
    assert update_of(one, task_for(one)) != update_of(other, task_for(other))


def test_seeded_workers_are_equal_and_rounds_and_names_are_not(make: Make) -> None:
    one, other = (Worker(make(name, fixed_seed=5)) for name in ("a", "b"))
    first = update_of(one, task_for(one))
    assert update_of(other, task_for(other)) == first
    assert update_of(one, task_for(one, 2)) != first
    (event, _) = events(one.config)
    assert event.fixed_seed is True
    named = Worker(replace(make("c", fixed_seed=5), name="club"))
    assert update_of(named, task_for(named)) != first
    seeded = Worker(make("d", fixed_seed=6))
    assert update_of(seeded, task_for(seeded)) != first


# --- a round is answered once -------------------------------------------------------------------------------------


def test_promise_2_the_same_task_again_gives_the_same_bytes_for_one_charge(make: Make) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker)
    first = update_of(worker, task)
    assert update_of(worker, task) == first
    assert update_of(Worker(config), task) == first  # after a restart
    assert update_of(worker, replace(task, attempt=1, weight=0.5)) == first
    assert len(events(config)) == 1


def test_a_retry_is_answered_even_with_nothing_left(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make(epsilon=6.0))
    task = task_for(worker)
    first = update_of(worker, task)
    with pytest.raises(BudgetExhausted):
        worker.train(task_for(worker, 2))
    forbid_training(monkeypatch)
    assert update_of(worker, task) == first


@pytest.mark.parametrize("change", ["model", "plan"])
def test_promise_2_another_model_for_an_answered_round_is_refused(
    change: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers to one round, from two models, would show more than one charge pays for."""
    config = make()
    worker = Worker(config)
    task = task_for(worker)
    worker.train(task)
    forbid_training(monkeypatch)
    other_D = task.model_D.copy()
    other_D[-1] = np.nextafter(other_D[-1], np.float32(1))
    other = replace(task, model_D=other_D) if change == "model" else replace(task, plan=replace(PLAN, local_steps=1))
    with pytest.raises(ProtocolError, match="round 1 was answered for another model"):
        worker.train(other)
    assert len(events(config)) == 1


def test_an_earlier_round_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    worker = Worker(config)
    worker.train(task_for(worker, 3))
    forbid_training(monkeypatch)
    with pytest.raises(ProtocolError, match="round 2 after round 3: a round is answered once"):
        worker.train(task_for(worker, 2))
    assert len(events(config)) == 1


def test_another_run_starts_over_and_is_charged(make: Make) -> None:
    config = make()
    worker = Worker(config)
    worker.train(task_for(worker, 3))
    worker.train(task_for(worker, 1, run_id="another"))
    assert [(event.run_id, event.round) for event in events(config)] == [("run", 3), ("another", 1)]


def test_promise_2_a_run_in_between_does_not_make_a_round_answerable_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker, 3)
    first = update_of(worker, task)
    worker.train(task_for(worker, 1, run_id="another"))
    forbid_training(monkeypatch)
    assert update_of(Worker(config), task) == first
    for again in (replace(task, model_D=task.model_D + 1), task_for(worker, 2)):
        with pytest.raises(ProtocolError, match="answered"):
            worker.train(again)
    assert len(events(config)) == 2


def test_two_requests_at_once_give_one_answer_for_one_charge(make: Make) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker)
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(update_of(worker, task))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert len(events(config)) == 1


# --- refused before anything is spent -----------------------------------------------------------------------------


def test_promise_2_the_server_cannot_raise_local_steps_over_the_policy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    worker = Worker(config)
    forbid_training(monkeypatch)
    with pytest.raises(ProtocolError, match="local_steps = 5: this partner allows at most 4"):
        worker.train(task_for(worker, plan=replace(PLAN, local_steps=5)))
    assert events(config) == ()


@pytest.mark.parametrize("how", ["layout", "short", "nan", "infinite"])
def test_a_model_that_cannot_be_trained_costs_nothing(how: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker)
    forbid_training(monkeypatch)
    bad_D = task.model_D.copy()
    bad_D[0] = np.nan if how == "nan" else np.inf
    bad = {
        "layout": replace(task, fingerprint="0" * 64),
        "short": replace(task, model_D=task.model_D[:-1]),
        "nan": replace(task, model_D=bad_D),
        "infinite": replace(task, model_D=bad_D),
    }[how]
    with pytest.raises(ProtocolError):
        worker.train(bad)
    assert events(config) == ()
    assert not list(Path(config.state).glob("*"))


def exhaust(worker: Worker) -> int:
    """Trains until the budget refuses, and returns the refused round."""
    for number in range(1, 50):
        try:
            worker.train(task_for(worker, number))
        except BudgetExhausted:
            return number
    raise AssertionError("the budget never refused")


def test_promise_2_a_round_over_budget_is_refused_before_training(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    worker = Worker(config)
    number = exhaust(worker)
    assert number > 2
    forbid_training(monkeypatch)
    before = Path(config.ledger).read_bytes()
    for ask in (number, number + 7):
        with pytest.raises(BudgetExhausted, match=r"refused before any data was touched.*privacy.epsilon = 12"):
            worker.train(task_for(worker, ask))
    assert Path(config.ledger).read_bytes() == before


def test_promise_2_a_round_over_budget_is_refused_before_the_data_is_touched(make: Make) -> None:
    """The click log is gone, and a fresh worker does not miss it when it refuses."""
    config = make()
    worker = Worker(config)
    number = exhaust(worker)
    task = task_for(worker, number)
    Path(config.clicks).unlink()
    with pytest.raises(BudgetExhausted):
        Worker(config).train(task)
    # The same task on a fresh ledger is affordable, and then the log is missed, after the reservation.
    richer = replace(config, ledger=config.ledger + ".fresh", state=config.state + ".fresh")
    with pytest.raises(DataError, match="no such file"):
        Worker(richer).train(task)
    assert len(events(richer)) == 1


def test_promise_2_a_server_that_splits_rounds_gains_nothing(make: Make) -> None:
    """As many steps fit in many small rounds, or many runs, as in few large ones."""
    steps = []
    for name, plan in (("large", replace(PLAN, local_steps=2)), ("small", replace(PLAN, local_steps=1))):
        config = make(name)
        worker = Worker(config)
        with contextlib.suppress(BudgetExhausted):
            for number in range(60):
                worker.train(task_for(worker, 1, run_id=f"run {number}", plan=plan))
        steps.append(sum(event.steps for event in events(config)))
    large, small = steps
    assert 4 <= large < 60
    assert 0 <= small - large < 2


# --- crashes ------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


def test_promise_2_a_crash_while_training_stays_charged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    worker = Worker(config)
    task = task_for(worker)

    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(client.worker, "train_privately", crash)
        with pytest.raises(Crash):
            worker.train(task)
    assert len(events(config)) == 1
    Worker(config).train(task)  # nothing had left: trained anew, and charged anew
    assert len(events(config)) == 2


def test_an_update_that_cannot_be_kept_does_not_leave(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a retry would draw fresh noise for a round that was released before."""
    worker = Worker(make())
    task = task_for(worker)

    def refuse(*_: Any) -> None:
        raise HushclickError("disk full")

    monkeypatch.setattr(client.sent, "write_atomically", refuse)
    with pytest.raises(HushclickError, match="disk full"):
        worker.train(task)


def sent_file(config: PartnerConfig) -> Path:
    (path,) = Path(config.state).glob("sent-*.safetensors")
    return path


def test_a_crash_before_the_commit_is_answered_with_the_same_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(fixed_seed=None)
    worker = Worker(config)
    task = task_for(worker)
    kept: list[bytes] = []

    def crash(*_: Any) -> None:
        kept.append(sent_file(config).read_bytes())
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "commit", crash)
        with pytest.raises(Crash):
            worker.train(task)
    forbid_training(monkeypatch)
    assert update_of(Worker(config), task) in kept[0]
    assert len(events(config)) == 1


@pytest.mark.parametrize("how", ["empty", "garbage", "cut", "header", "no facts", "no task", "folder"])
def test_a_damaged_sent_file_stops_everything(how: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save

    config = make()
    worker = Worker(config)
    task = task_for(worker)
    worker.train(task)
    path = sent_file(config)
    whole, delta_D = path.read_bytes(), np.zeros(len(task.model_D), np.float32)
    if how == "folder":
        path.unlink()
        path.mkdir()
    else:
        damaged = {
            "empty": b"",
            "garbage": bytes(range(256)) * 4,
            "cut": whole[:-3],
            "header": b"\xff" * 8 + whole[8:],
            "no facts": save({"delta": delta_D}),
            "no task": save({"delta": delta_D}, {"run_id": "run", "round": "1"}),
        }
        path.write_bytes(damaged[how])
    forbid_training(monkeypatch)
    for ask in (task, task_for(worker, 2)):
        with pytest.raises(LedgerError, match="damaged; what was sent last is unknown, so nothing more is sent"):
            worker.train(ask)
    assert len(events(config)) == 1


def test_a_damaged_ledger_stops_everything(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    worker = Worker(config)
    worker.train(task_for(worker))
    path = Path(config.ledger)
    path.write_bytes(path.read_bytes().replace(b'"steps":2', b'"steps":1'))
    forbid_training(monkeypatch)
    with pytest.raises(LedgerError):
        Worker(config).train(task_for(worker, 2))


# --- exact counts, only without privacy ---------------------------------------------------------------------------

EXACT: dict[str, Any] = {"model": {"item_rates": "exact"}, "mode": "none"}


@pytest.mark.parametrize("options", [{}, {"mode": "none"}])
def test_promise_1_exact_counts_are_refused_where_they_are_not_agreed(options: dict[str, Any], make: Make) -> None:
    config = make(**options)
    worker = Worker(config)
    with pytest.raises(ProtocolError, match="not private"):
        worker.statistics(StatisticsTask("run", ("i1",)))
    with pytest.raises(ProtocolError, match="no item rates"):
        worker.catalogue(CatalogueTask("run", ("i1",), np.zeros((2, 1))))
    assert not list(Path(config.state).glob("*"))


def test_exact_counts_by_hand_in_the_order_of_the_catalogue(make: Make) -> None:
    rows = random_rows(12)
    worker = Worker(make(rows=rows, **EXACT))
    counts_2I = worker.statistics(StatisticsTask("run", ("i3", "unknown", "i1"))).counts_2I
    expected = [
        [(rows["clicked"] * (rows["item"] == item)).sum() for item in ("i3", "unknown", "i1")],
        [(rows["item"] == item).sum() for item in ("i3", "unknown", "i1")],
    ]
    assert counts_2I.tolist() == expected
    assert counts_2I.flags.c_contiguous
    assert worker.statistics(StatisticsTask("run", ())).counts_2I.shape == (2, 0)


def test_the_summed_counts_become_features_and_survive_a_restart(make: Make) -> None:
    rows = random_rows(12)
    config = make(rows=rows, **EXACT)
    worker = Worker(config)
    before = worker._data().dense_NF[:, -2:].copy()
    own = count_items(rows)
    catalogue = tuple(sorted(own))
    counts_2I = 10 * np.array([own[item] for item in catalogue]).T
    worker.catalogue(CatalogueTask("run", catalogue, counts_2I))
    after = worker._data().dense_NF[:, -2:]
    assert not before.any()
    shown = np.array([10 * own[item][1] - 1 for item in rows["item"]])
    clicks = np.array([10 * own[item][0] for item in rows["item"]]) - rows["clicked"]
    clicks = np.clip(clicks, 0, shown)
    rate = (clicks + 2.5) / (shown + 5)
    np.testing.assert_allclose(after[:, 0], np.log(rate / (1 - rate)), atol=1e-5)
    np.testing.assert_array_equal(Worker(config)._data().dense_NF, worker._data().dense_NF)


# --- memory -------------------------------------------------------------------------------------------------------


def test_partners_of_one_process_share_a_model_per_thread_and_layout(make: Make) -> None:
    one, other = Worker(make("a")), Worker(make("b"))
    assert one._model() is other._model()
    assert thread_model(one.config.model, one._pretrained, 2) is not one._model()
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(one._model()))
    thread.start()
    thread.join()
    assert elsewhere[0] is not one._model()


def test_what_another_partner_left_in_the_shared_model_does_not_matter(make: Make) -> None:
    alone = Worker(make("a", fixed_seed=5))
    expected = update_of(alone, task_for(alone))
    noisy, again = Worker(make("b")), Worker(make("c", fixed_seed=5))
    noisy.train(task_for(noisy, plan=replace(PLAN, learning_rate=100.0)))
    assert update_of(again, task_for(again)) == expected
    assert len(read_vector(again._model())) == len(start_model(again))
