"""Private statistics under a hostile server: one noisy vector a release, charged once, on a partner's own terms."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.hostile_round import Round, refused
from hostile.hostile_server import HostileServer, Refused, partners

from common.features import UserRows
from common.histogram import Catalogue, Terms
from common.histogram_messages import HistogramTask, ReleaseTask, terms_hash
from common.itemrates import Release, parse_release
from common.message_types import BUDGET_EXHAUSTED, QUERY_RELEASE, REFUSED
from common.stage_messages import AdvertiseTask, MaskTask

CATALOGUE = Catalogue(tuple(f"i{number}" for number in range(10)), ("news", "video") * 5)  # i10 and i11 are strangers
MODEL = {"item_rates": "private"}
NOISE = {"statistics_noise_multiplier": 1.5, "statistics_clip": 1.0}


@pytest.fixture
def local(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder, model=MODEL, privacy={"epsilon": 12.0, **NOISE}) as found:
        yield found


@pytest.fixture
def tight(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Epsilon 5 at delta 1e-4 holds three releases with noise multiplier 1.5, and not a fourth."""
    with partners(tmp_path, tiny_encoder, model=MODEL, privacy={"epsilon": 5.0, **NOISE}) as found:
        yield found


@pytest.fixture
def shared(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    privacy = {"mode": "distributed", "epsilon": 100.0, **NOISE}
    with partners(tmp_path, tiny_encoder, 5, model=MODEL, privacy=privacy, least_participants=3) as found:
        yield found


def asked(server: HostileServer, release: int = 0, attempt: int = 0, **change: Any) -> Round:
    config, numbers = server.worker(1).config, change.pop("numbers", ())
    task = replace(HistogramTask(f"run-s{release}", release, 16, CATALOGUE), **change)
    terms = terms_hash(config.model, config.privacy, config.noise_shares)
    return Round(server, round=0, attempt=attempt, run_id=task.run_id, histogram=task, shared=terms, numbers=numbers)


def events(server: HostileServer, number: int) -> list[Any]:
    return list(server.worker(number)._budget._ledger.events())


def test_a_release_is_the_sum_of_the_noisy_vectors_and_charged_as_what_it_is(local: HostileServer) -> None:
    round_ = asked(local)
    (total_D,) = round_.run()
    assert np.array_equal(total_D, sum(local.contribution(number, "run-s0") for number in round_.numbers))
    (event,) = events(local, 1)
    assert (event.purpose, event.mechanism, event.mode, event.shares) == ("statistics", "poisson_skellam", "local", 1)
    assert (event.noise_multiplier, event.clip, event.sampling_rate, event.steps) == (1.5, 1.0, 1.0, 1)
    assert (event.run_id, event.unit) == ("run-s0", "user")


def test_a_retry_gets_the_same_noisy_vector_and_is_charged_once(local: HostileServer) -> None:
    """Also of another attempt, over other partners, and after a restart: what differs is the masks."""
    asked(local).until("confirm")
    first_D = local.contribution(1, "run-s0")
    local.restart()
    asked(local, attempt=1, numbers=(1, 2, 3)).run()
    assert np.array_equal(local.contribution(1, "run-s0"), first_D)
    assert [local.charged(number) for number in (1, 2, 4)] == [1, 1, 1]


@pytest.mark.parametrize(
    "change", [{"number": 1}, {"grid_bits": 20}, {"catalogue": replace(CATALOGUE, items=("x",), categories=("y",))}]
)
def test_another_release_under_the_same_session_is_refused(change: dict[str, Any], local: HostileServer) -> None:
    """Two vectors of one session with one charge would be two looks at the same users."""
    asked(local).until("confirm")
    again = asked(local, attempt=1, **change).until("mask")
    refused(again, 1, again.tasks("mask")[1], "round 0 was answered for another model")


def test_every_release_is_charged_and_one_too_many_refused_before_data_is_touched(
    tight: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        asked(tight, number).run()
    fourth = asked(tight, 3)
    monkeypatch.setattr(type(tight.worker(1)), "_rows", lambda _: pytest.fail("data was touched"))
    with pytest.raises(Refused) as refusal:
        fourth.tell(1, AdvertiseTask(fourth.session, 0))
    assert refusal.value.code == BUDGET_EXHAUSTED
    assert tight.charged(1) == 3


def test_a_budget_that_went_meanwhile_refuses_before_data_is_touched(
    tight: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions prepared while one fits: the second is refused at its last stage."""
    for number in range(2):
        asked(tight, number).run()
    third, fourth = asked(tight, 2).until("mask"), asked(tight, 3).until("mask")
    third.run("mask")
    monkeypatch.setattr(type(tight.worker(1)), "_rows", lambda _: pytest.fail("data was touched"))
    with pytest.raises(Refused) as refusal:
        fourth.tell(1, fourth.tasks("mask")[1])
    assert refusal.value.code == BUDGET_EXHAUSTED


def test_other_terms_for_one_client_are_refused(local: HostileServer) -> None:
    """Noise, clip or centre of a partner's own are in the hash: the sum's scale and noise are the same for all."""
    config = local.worker(1).config
    for privacy in (
        replace(config.privacy, statistics_noise_multiplier=1.0),
        replace(config.privacy, statistics_clip=2.0),
    ):
        round_ = asked(local, attempt=int(privacy.statistics_clip))
        round_.shared = terms_hash(config.model, privacy, config.noise_shares)
        round_.until("mask")
        refused(round_, 1, round_.tasks("mask")[1], "configuration hash is not that of the task beside it")
    assert local.charged(1) == 0


@pytest.mark.parametrize("lie", [{"clip": 4.0}, {"length": 24}])
def test_a_masking_task_of_another_shape_is_refused(lie: dict[str, Any], local: HostileServer) -> None:
    round_ = asked(local).until("mask")
    task: MaskTask = replace(round_.tasks("mask")[1], **lie)
    refused(round_, 1, task, "differ between masking and histogram")


def test_partners_may_be_lost_where_there_is_noise(local: HostileServer) -> None:
    """Unlike exact counts, which are summed over the whole roster or not at all."""
    (total_D,) = asked(local).run(mask=(4,))
    assert np.array_equal(total_D, sum(local.contribution(number, "run-s0") for number in (1, 2, 3)))


def test_a_part_of_the_statistics_noise_is_in_one_sum_only(shared: HostileServer) -> None:
    """With one part of the noise in two sums, their difference would hide less than the ledger counts on."""
    first = asked(shared, numbers=(1, 2, 3)).until("confirm")
    again = AdvertiseTask(asked(shared, attempt=1, numbers=(1, 4, 5)).session, 0)
    refused(first, 1, again, "sent its part of the noise; there is no other attempt")
    (event,) = events(shared, 1)
    assert (event.mode, event.shares) == ("distributed", 2)


def test_a_partner_without_private_statistics_gives_none(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder) as server:
        round_ = asked(server).until("mask")
        round_.shared = terms_hash(server.worker(1).config.model, server.worker(1).config.privacy, 1)
        refused(round_, 1, round_.tasks("mask")[1], "gives no statistics")


# --- what partners are told -------------------------------------------------------------------------------------------


def told(server: HostileServer, **change: Any) -> bytes:
    (total_D,) = asked(server).run()
    terms = server.worker(1)._histograms.step(HistogramTask("run-s0", 0, 16, CATALOGUE)).terms
    release = Release(0, CATALOGUE, terms, 2**16, total_D.astype(np.int64).reshape(2, -1), 3.0)
    return replace(release, **change).to_bytes()


def tell(server: HostileServer, number: int, data: bytes) -> None:
    server.ask(number, QUERY_RELEASE, ReleaseTask("run", data).to_record())


def features(server: HostileServer, number: int) -> UserRows:
    return server.worker(number)._data()


def test_a_release_makes_the_features_of_the_coming_rounds(local: HostileServer) -> None:
    before_N2 = features(local, 1).dense_NF[:, -2:]
    assert not before_N2.any()  # nothing is known yet
    data = told(local)
    tell(local, 1, data)
    assert features(local, 1).dense_NF[:, -1].any()
    local.restart()
    assert (local.folder(1) / "state/statistics.json").read_bytes() == data
    assert features(local, 1).dense_NF[:, -1].any()


def test_statistics_for_one_client_leave_no_sum(local: HostileServer) -> None:
    """A partner whose features were made with other statistics would stand out from the sum of an honest round."""
    data = told(local)
    for number in (1, 2, 3, 4):
        tell(local, number, data)
    other = parse_release(data)
    tell(local, 1, replace(other, sums_2B=other.sums_2B + 1).to_bytes())
    round_ = Round(local, shared=local.worker(2)._shared_hash()).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "configuration hash is not that of the task beside it")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"deviation": 1.4}, "this partner alone adds more"),
        ({"terms": None}, "clip or prior_click_rate is another"),
        ({"data": b"{}"}, "damaged"),
        ({"data": b'{"version": 2}'}, "version 2, and this release of hushclick reads 1"),
    ],
)
def test_a_release_on_other_terms_is_not_taken(change: dict[str, Any], match: str, local: HostileServer) -> None:
    data = change.pop("data", None)
    if "terms" in change:
        change["terms"] = Terms(0.5, 2.0)
    data = data or told(local, **change)
    with pytest.raises(Refused, match=match) as refusal:
        tell(local, 1, data)
    assert refusal.value.code == REFUSED
    assert not (local.folder(1) / "state/statistics.json").exists()
