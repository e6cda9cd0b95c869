"""Evaluation at the partners under a hostile server: one noisy histogram of scores a round, charged once, few a run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.hostile_round import Round, refused
from hostile.hostile_server import HostileServer, Refused, partners
from scipy.stats import norm

import client.charging
from common.errors import TooFewPartners
from common.histogram_messages import EvaluationTask, score_terms_hash
from common.message_types import BUDGET_EXHAUSTED
from common.messages import JoinTask
from common.privacy.accounting import epsilon
from common.stage_messages import AdvertiseTask, MaskTask

SINCE = 1_700_000_000 + 20 * 1800  # about half of a partner's rows
RULE = {"at": "partners", "from_time": SINCE, "bins": 8, "max_rows": 6}
NOISE = {"evaluation_noise_multiplier": 1.5, "evaluation_clip": 2.0}


def local_partners(root: Path, encoder: Path, **change: Any) -> Any:
    rule, privacy = RULE | change.pop("evaluation", {}), {"epsilon": 12.0} | NOISE | change.pop("privacy", {})
    return partners(root, encoder, change.pop("num", 4), evaluation=rule, privacy=privacy, **change)


@pytest.fixture
def local(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with local_partners(tmp_path, tiny_encoder) as found:
        yield joined(found)


@pytest.fixture
def shared(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    privacy = {"mode": "distributed", "epsilon": 100.0}
    with local_partners(tmp_path, tiny_encoder, num=5, privacy=privacy, least_participants=3) as found:
        yield joined(found)


@pytest.fixture
def tight(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Epsilon 5 at delta 1e-4 holds three releases with noise multiplier 1.5, and not a fourth; five may be asked."""
    with local_partners(tmp_path, tiny_encoder, privacy={"epsilon": 5.0}, evaluation={"releases": 5}) as found:
        yield joined(found)


def joined(server: HostileServer) -> HostileServer:
    for number in range(1, len(server.roster) + 1):
        server.worker(number).join(JoinTask("run"))
    return server


def asked(server: HostileServer, after: int = 1, attempt: int = 0, **change: Any) -> Round:
    config, numbers = server.worker(1).config, change.pop("numbers", ())
    task = EvaluationTask(f"run-e{after}", 16, 8, server.layout(), server.model())
    task = replace(task, **change)
    terms = score_terms_hash(config.model, config.privacy, config.evaluation, config.noise_shares, b"")
    return Round(server, round=0, attempt=attempt, run_id=task.run_id, histogram=task, shared=terms, numbers=numbers)


def events(server: HostileServer, number: int) -> list[Any]:
    return list(server.worker(number)._budget._ledger.events())


def no_rows(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(server.worker(1)), "_log", lambda _: pytest.fail("data was touched"))


def test_an_evaluation_is_the_sum_of_the_noisy_vectors_and_charged_as_what_it_is(local: HostileServer) -> None:
    round_ = asked(local)
    (total_D,) = round_.run()
    assert np.array_equal(total_D, sum(local.contribution(number, "run-e1") for number in round_.numbers))
    (event,) = events(local, 1)
    assert (event.purpose, event.mechanism, event.mode, event.shares) == ("evaluation", "poisson_skellam", "local", 1)
    assert (event.noise_multiplier, event.clip, event.sampling_rate, event.steps) == (1.5, 2.0, 1.0, 1)
    assert (event.run_id, event.unit, event.adjacency) == ("run-e1", "user", "add_remove")
    found, noise = epsilon([event], 1e-4), 1.5  # of one Gaussian: Balle and Wang 2018, theorem 8
    delta = norm.cdf(0.5 / noise - found * noise) - np.exp(found) * norm.cdf(-0.5 / noise - found * noise)
    assert delta == pytest.approx(1e-4, rel=0.01)


def test_a_retry_of_an_evaluation_gets_the_same_bytes_and_is_charged_once(local: HostileServer) -> None:
    """Also of another attempt, over other partners, and after a restart: what differs is the masks."""
    asked(local).until("confirm")
    first_D = local.contribution(1, "run-e1")
    local.restart()  # which forgets who joined: the ledger knows the run only by training, so all join again
    joined(local)
    asked(local, attempt=1, numbers=(1, 2, 3)).run()
    assert np.array_equal(local.contribution(1, "run-e1"), first_D)
    assert [local.charged(number) for number in (1, 2, 4)] == [1, 1, 1]


@pytest.mark.parametrize("what", ["model", "grid"])
def test_another_model_after_the_same_round_is_refused(what: str, local: HostileServer) -> None:
    """Two histograms of one session with one charge would be two looks at the same users."""
    asked(local).until("confirm")
    change = {"model_D": local.model(seed=2)} if what == "model" else {"grid_bits": 20}
    again = asked(local, attempt=1, **change).until("mask")
    refused(again, 1, again.tasks("mask")[1], "round 0 was answered for another model")


def test_a_run_has_no_more_evaluations_than_the_partner_allows(
    local: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, by `evaluation.releases`; asked for after another round, also of a preparation that was made before."""
    second = asked(local, after=2).until("mask")
    asked(local).run()
    no_rows(local, monkeypatch)
    refused(second, 1, second.tasks("mask")[1], "this partner gives 1 a run")
    third = asked(local, after=3)
    refused(third, 1, AdvertiseTask(third.session, 0), "this partner gives 1 a run")
    assert local.charged(1) == 1


def test_more_bins_than_the_partner_allows_are_refused(local: HostileServer) -> None:
    round_ = asked(local, bins=16).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "16 bins: this partner gives 8")


OF_NO_RUN = "of no run that this partner took part in"


@pytest.mark.parametrize("run_id", ["run", "run-e", "run-s1"])
def test_an_evaluation_that_names_no_round_is_refused(run_id: str, local: HostileServer) -> None:
    round_ = asked(local, run_id=run_id).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], OF_NO_RUN)


@pytest.mark.parametrize("run_id", ["other-e1", "run-e1-e2"])
def test_an_evaluation_of_a_run_that_it_took_no_part_in_is_refused_at_once(run_id: str, local: HostileServer) -> None:
    round_ = asked(local, run_id=run_id)
    refused(round_, 1, AdvertiseTask(round_.session, 0), OF_NO_RUN)


def test_every_evaluation_is_charged_and_one_too_many_refused_before_data_is_touched(
    tight: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in range(1, 4):
        asked(tight, after).run()
    fourth = asked(tight, 4)
    no_rows(tight, monkeypatch)
    with pytest.raises(Refused) as refusal:
        fourth.tell(1, AdvertiseTask(fourth.session, 0))
    assert refusal.value.code == BUDGET_EXHAUSTED
    assert tight.charged(1) == 3


def test_a_budget_that_went_meanwhile_refuses_an_evaluation_before_data_is_touched(
    tight: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in (1, 2):
        asked(tight, after).run()
    third, fourth = asked(tight, 3).until("mask"), asked(tight, 4).until("mask")
    third.run("mask")
    no_rows(tight, monkeypatch)
    with pytest.raises(Refused) as refusal:
        fourth.tell(1, fourth.tasks("mask")[1])
    assert refusal.value.code == BUDGET_EXHAUSTED


def test_a_kill_between_charge_and_answer_leaves_it_charged_and_nothing_sent(
    local: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is ahead of the data: what a partner cannot prove unsent counts as spent."""
    round_ = asked(local).until("mask")
    with monkeypatch.context() as patch:
        patch.setattr(client.charging.SentFile, "keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            local.tell(1, round_.tasks("mask")[1], round_.work_of(1))
    assert local.charged(1) == 1
    assert not list((local.folder(1) / "state").glob("sent-*"))
    local.restart()
    joined(local)
    asked(local, attempt=1).run()
    assert [local.charged(number) for number in (1, 2)] == [2, 1]  # a fresh draw is a release of its own


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"evaluation_noise_multiplier": 1.0}},
        {"privacy": {"evaluation_clip": 3.0}},
        {"evaluation": {"from_time": SINCE + 1}},
        {"evaluation": {"user_share": 0.5}},
        {"evaluation": {"max_rows": 7}},
        {"evaluation": {"key": "another"}},
    ],
)
def test_other_terms_of_an_evaluation_for_one_client_are_refused(
    change: dict[str, dict[str, Any]], local: HostileServer
) -> None:
    """Noise, clip and what is held out are one for all: a sum of other people's rows has another scale and meaning."""
    config = local.worker(1).config
    tables = {name: replace(getattr(config, name), **values) for name, values in change.items()}
    privacy, evaluation = tables.get("privacy", config.privacy), tables.get("evaluation", config.evaluation)
    round_ = asked(local)
    round_.shared = score_terms_hash(config.model, privacy, evaluation, config.noise_shares, b"")
    round_.until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "configuration hash is not that of the task beside it")
    assert local.charged(1) == 0


@pytest.mark.parametrize("lie", [{"clip": 4.0}, {"length": 24}])
def test_a_masking_task_of_another_shape_than_the_scores_is_refused(lie: dict[str, Any], local: HostileServer) -> None:
    round_ = asked(local).until("mask")
    task: MaskTask = replace(round_.tasks("mask")[1], **lie)
    refused(round_, 1, task, "differ between masking and histogram")


def test_a_model_of_another_layout_or_out_of_bounds_is_refused_and_costs_nothing(local: HostileServer) -> None:
    round_ = asked(local, fingerprint="f" * 64).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "model layout ffffffffffff")
    wild_D = local.model()
    wild_D[3] = np.nan
    round_ = asked(local, attempt=1, model_D=wild_D).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "values that are not finite")
    wild_D[3] = 1e4
    round_ = asked(local, attempt=2, model_D=wild_D).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "over 100: it is not trained from")
    assert local.charged(1) == 0


def test_partners_may_be_lost_from_an_evaluation_with_noise(local: HostileServer) -> None:
    (total_D,) = asked(local).run(mask=(4,))
    assert np.array_equal(total_D, sum(local.contribution(number, "run-e1") for number in (1, 2, 3)))


def test_a_part_of_the_evaluations_noise_is_in_one_sum_only(shared: HostileServer) -> None:
    first = asked(shared, numbers=(1, 2, 3)).until("confirm")
    again = AdvertiseTask(asked(shared, attempt=1, numbers=(1, 4, 5)).session, 0)
    refused(first, 1, again, "sent its part of the noise; there is no other attempt")
    (event,) = events(shared, 1)
    assert (event.mode, event.shares) == ("distributed", 2)


def test_a_partner_that_holds_nothing_out_evaluates_nothing(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder) as server:
        joined(server)
        round_ = asked(server).until("mask")
        config = server.worker(1).config
        round_.shared = score_terms_hash(config.model, config.privacy, config.evaluation, 1, b"")
        refused(round_, 1, round_.tasks("mask")[1], "this partner evaluates nothing")


def rounds_of(server: HostileServer) -> int:
    """Returns how many rounds of training the partners' budgets let through."""
    for number in range(1, 10):
        try:
            Round(server, round=number).run()
        except TooFewPartners:
            return number - 1
    return 9


def test_training_leaves_room_for_the_evaluation(tmp_path: Path, tiny_encoder: Path) -> None:
    """Epsilon 12 holds four rounds by themselves (`partner_folder.PRIVACY`), and fewer beside one evaluation."""
    with partners(tmp_path / "without", tiny_encoder) as server:
        assert rounds_of(joined(server)) == 4
    with local_partners(tmp_path / "with", tiny_encoder, privacy={"evaluation_noise_multiplier": 0.7}) as server:
        done = rounds_of(joined(server))
        assert 0 < done < 4
        asked(server).run()
        assert [event.purpose for event in events(server, 1)] == ["training"] * done + ["evaluation"]
        assert epsilon(events(server, 1), 1e-4) <= 12.0


def test_without_noise_all_of_the_roster_must_be_in_the_sum(tmp_path: Path, tiny_encoder: Path) -> None:
    """Exact counts, of modes "none" and "label": two sums that differ by one partner would show its own."""
    with partners(tmp_path, tiny_encoder, evaluation=RULE, privacy={"mode": "none"}) as server:
        joined(server)
        round_ = asked(server)
        (total_D,) = round_.run()
        assert np.array_equal(total_D, sum(server.contribution(number, "run-e1") for number in round_.numbers))
        assert [event.mechanism for event in events(server, 1)] == ["none"]
    with partners(tmp_path / "again", tiny_encoder, evaluation=RULE, privacy={"mode": "none"}) as server:
        joined(server)
        round_ = asked(server).until("confirm", mask=(4,))
        refused(round_, 1, round_.tasks("confirm")[1], "all 4 of the roster must take part")
