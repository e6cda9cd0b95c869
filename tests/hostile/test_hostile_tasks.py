"""Stage 2: what a client is asked to contribute: nothing that differs from its peers or lies outside its policy."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.hostile_round import BOUND, Round, refused, sums_up
from hostile.hostile_server import HostileServer, Refused, partners

import client.worker
from common.errors import ProtocolError
from common.message_types import QUERY_CATALOGUE
from common.messages import CatalogueTask, StatisticsTask, TrainingPlan, TrainTask, counts_hash
from common.secagg.wire import MaskTask

DIFFER = "run, round, attempt, weight, length or update_bound differ between masking and work"
HASHES = "the round's model or configuration hash is not that of the task beside it"
ITEMS = tuple(f"i{number}" for number in range(12))


@pytest.fixture
def server(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder) as found:
        yield found


@pytest.fixture
def open_server(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Partners without differential privacy, with exact item rates."""
    privacy = {"mode": "none", "sampling_rate": 1.0}
    with partners(tmp_path, tiny_encoder, privacy=privacy, model={"item_rates": "exact"}) as found:
        yield found


def work(round_: Round, **change: Any) -> TrainTask:
    honest = round_.work_of(1)
    assert isinstance(honest, TrainTask)
    return replace(honest, **change)


# --- one model and one configuration for everyone ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["model", "plan"])
def test_another_model_or_config_for_one_client_is_refused(what: str, server: HostileServer) -> None:
    """A task beside a hash that is not its own: the victim sees it at once, before its data is touched."""
    round_ = Round(server).until("mask")
    lie = {"model_D": server.model(2)} if what == "model" else {"plan": TrainingPlan(2, "sgd", 0.05, 0.0)}
    refused(round_, 1, round_.tasks("mask")[1], HASHES, work=work(round_, **lie))
    sums_up(round_, start="mask")


@pytest.mark.parametrize("what", ["model", "learning_rate", "local_steps", "optimiser", "weight_decay"])
def test_a_consistent_difference_for_one_client_leaves_no_sum(what: str, server: HostileServer) -> None:
    """Hash and task agree, and differ from the peers': no share leaves against signatures of two contexts."""
    plans = {
        "learning_rate": TrainingPlan(2, "adam", 0.06, 0.0),
        "local_steps": TrainingPlan(1, "adam", 0.05, 0.0),
        "optimiser": TrainingPlan(2, "sgd", 0.05, 0.0),
        "weight_decay": TrainingPlan(2, "adam", 0.05, 0.01),
    }
    round_ = Round(server).until("mask")
    lie = {"model_D": server.model(2)} if what == "model" else {"plan": plans[what]}
    other = work(round_, **lie)
    model_hash, config_hash = other.hashes(b"")
    for number, task in round_.tasks("mask").items():
        if number == 1:  # the server adds the body without a look at the signature, which is over another context
            pieces, upload = server.tell(1, replace(task, model_hash=model_hash, config_hash=config_hash), other)
            round_.tallies[0]._uploads[1] = upload.masked
            round_.tallies[0]._sum_D += np.concatenate(pieces)
            round_.tallies[0]._slots += np.frombuffer(upload.slots, "<u8")
        else:
            round_.take("mask", number, round_.tell(number, task))
    signatures = {number: server.tell(number, task).signature for number, task in round_.tasks("confirm").items()}
    round_.tallies[0]._signatures |= signatures
    for number in (2, 3, 4):
        with_victim = replace(
            round_.tallies[0].unmask_task(number),
            signers=(1, 2, 3),
            signatures=b"".join(signatures[signer] for signer in (1, 2, 3)),
        )
        refused(round_, number, with_victim, "consistency of partner-0000: its signature is not that")
    victims = replace(round_.tallies[0].unmask_task(1), signers=(1, 2, 3))
    refused(round_, 1, victims, "consistency of partner-000[12]: its signature is not that")
    # The three others alone can open what they confirmed: the masks between them and the victim stay in the sum.
    round_.unmaskings = [round_.tallies[0].unmasking()]
    for number in (2, 3, 4):
        task = replace(
            round_.tallies[0].unmask_task(number),
            signers=(2, 3, 4),
            signatures=b"".join(signatures[signer] for signer in (2, 3, 4)),
        )
        round_.take("unmask", number, server.tell(number, task))
    with pytest.raises(ProtocolError, match="weight and count of the sum are not those of its 4 survivors"):
        round_.unmaskings[0].finish()


def test_item_counts_for_one_client_leave_no_sum(open_server: HostileServer) -> None:
    """Features of one partner alone would give it coordinates of the sum of its own."""
    real, nothing = np.tile([[5.0], [20.0]], (1, 12)), np.zeros((2, 12))
    for number in (1, 2, 3, 4):
        told = real if number == 1 else nothing
        open_server.ask(number, QUERY_CATALOGUE, CatalogueTask("run", ITEMS, told).to_record())
    others = counts_hash(dict.fromkeys(ITEMS, (0.0, 0.0)))
    round_ = Round(open_server, shared=others).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], HASHES)
    for number in (2, 3, 4):
        round_.take("mask", number, round_.tell(number, round_.tasks("mask")[number]))
    assert not open_server.shares_left()


# --- the grid ---------------------------------------------------------------------------------------------------------


GRID: list[tuple[dict[str, Any], str]] = [
    ({"clip": 2.0}, "update_bound = 2.0: this partner's aggregation.update_bound is 4"),
    ({"clip": 4.1}, "update_bound = 4.1: this partner's aggregation.update_bound is 4"),
    ({"clip": 5e-324}, "update_bound = 5e-324"),
    ({"clip": 0.0}, DIFFER),
    ({"clip": -0.0}, DIFFER),
    ({"clip": -4.0}, DIFFER),
    ({"clip": math.nan}, DIFFER),
    ({"clip": math.inf}, "update_bound = inf: must be finite"),
    ({"bits": 26}, "bits = 26: 4 participants use 27"),
    ({"bits": 28}, "bits = 28: 4 participants use 27"),
    ({"bits": 1}, "bits = 1: must be from 2 to 30"),
    ({"bits": -1}, "bits = -1: must be from 2 to 30"),
    ({"bits": 2**62}, "must be from 2 to 30"),
    ({"ring": 2}, "ring = 2: must be 4294967296"),
    ({"ring": 0}, "ring = 0: must be"),
    ({"ring": -1}, "ring = -1: must be"),
    ({"ring": 2**31}, "ring = 2147483648: must be"),
    ({"ring": 2**63}, "ring = 9223372036854775808: must be"),
    ({"length": 1}, DIFFER),
    ({"length": 0}, DIFFER),
    ({"length": -1}, DIFFER),
    ({"length": 2**62}, DIFFER),
    ({"weight": 0.5}, DIFFER),
    ({"weight": math.nan}, DIFFER),
    ({"threshold": 2}, "threshold = 2: the shares were made for 3"),
    ({"threshold": 4}, "threshold = 4: the shares were made for 3"),
    ({"model_hash": b""}, HASHES),
    ({"config_hash": bytes(31)}, HASHES),
]


@pytest.mark.parametrize(
    ("change", "match"), GRID, ids=[f"{name}={value}" for change, _ in GRID for name, value in change.items()]
)
def test_a_ring_grid_weight_or_length_of_the_servers_choice_is_refused(
    change: dict[str, Any], match: str, server: HostileServer
) -> None:
    round_ = Round(server).until("mask")
    honest: MaskTask = round_.tasks("mask")[1]
    with pytest.raises(Refused, match=match.replace("(", r"\(")):
        server.tell(1, replace(honest, **change), work(round_))
    refused(round_, 1, replace(honest, **change), ".", work=work(round_))
    assert server.charged(1) == 0


@pytest.mark.parametrize("weight", [0.25, 1.0, 2**-32])
def test_a_weight_other_than_the_rosters_is_refused(weight: float, tmp_path: Path, tiny_encoder: Path) -> None:
    """Less than its own would do as well: the others' could be made next to nothing."""
    with partners(tmp_path, tiny_encoder, weights=(0.5, 1.0, 0.75, 0.25)) as server:
        round_ = Round(server).until("mask")
        task = replace(round_.tasks("mask")[1], weight=weight)
        refused(
            round_,
            1,
            task,
            f"weight = {weight}: this partner's weight in the roster is 0.5",
            work=work(round_, weight=weight),
        )
        sums_up(round_, start="mask")


@pytest.mark.parametrize(
    "change",
    [{"run_id": "other"}, {"round": 2}, {"attempt": 1}, {"weight": 0.5}, {"model_D": np.zeros(3, np.float32)}],
    ids=str,
)  # fmt: skip
def test_masking_and_work_of_two_rounds_are_refused(change: dict[str, Any], server: HostileServer) -> None:
    round_ = Round(server).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], DIFFER, work=work(round_, **change))
    sums_up(round_, start="mask")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fingerprint": "0" * 64}, "model layout 000000000000, this partner has"),
        ({"model_D": np.zeros(5, np.float32)}, "a vector of shape"),
        ({"model_D": np.array([np.nan], np.float32)}, "model"),
        ({"model_D": np.array([np.inf], np.float32)}, "model"),
        ({"model_D": np.array([101.0], np.float32)}, "a model with weights that are not finite or over 100"),
        ({"plan": TrainingPlan(5, "adam", 0.05, 0.0)}, "local_steps = 5: this partner allows at most 4"),
    ],
    ids=str,
)  # fmt: skip
def test_work_that_this_partner_does_not_do_is_refused_before_the_budget(
    change: dict[str, Any], match: str, server: HostileServer
) -> None:
    """Consistent for all, and still not a thing that this partner trains."""
    model_D = change.pop("model_D", None)
    round_ = Round(server)
    if model_D is not None:
        round_.model_D = (
            np.where(np.arange(len(server.model())) == 0, model_D[0], server.model()) if len(model_D) == 1 else model_D
        )
    round_.until("mask")
    task = work(round_, **change)
    model_hash, config_hash = task.hashes(b"")
    asked = replace(round_.tasks("mask")[1], model_hash=model_hash, config_hash=config_hash)
    refused(round_, 1, asked, match, work=task)


# --- what depends on data ---------------------------------------------------------------------------------------------

BAD = {
    "nan": (np.nan, "values that are not finite"),
    "inf": (np.inf, "values that are not finite"),
    "over": (1.01 * BOUND, "an update with values over aggregation.update_bound = 4"),
    "minus": (-1.01 * BOUND, "an update with values over aggregation.update_bound = 4"),
}


def trains_to(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Every partner's update is small, but for one coordinate."""

    def train(_model: Any, start_D: Any, *_: Any) -> Any:
        update_D = np.full(len(start_D), 0.5, np.float32)
        update_D[3] = value
        return update_D

    monkeypatch.setattr(client.worker, "train_privately", train)


@pytest.mark.parametrize("name", BAD)
def test_without_privacy_a_bad_update_is_refused_naming_field_and_bound(
    name: str, open_server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, match = BAD[name]
    trains_to(monkeypatch, value)
    round_ = Round(open_server).until("mask")
    reason = refused(round_, 1, round_.tasks("mask")[1], match, charged=1)
    assert "4.04" not in reason
    assert "lower round.learning_rate" in reason
    assert not [sent for sent in open_server.traffic if sent.kind == "train.mask" and sent.body]


@pytest.mark.parametrize("name", BAD)
def test_under_privacy_nothing_that_depends_on_data_refuses(
    name: str, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would be a release that nobody paid for: NaN counts 0, what is over the bound counts as the bound."""
    value, _ = BAD[name]
    trains_to(monkeypatch, value)
    round_ = Round(server)
    (total_D,) = round_.run()
    assert not round_.refusals
    expected = 4 * (0.0 if math.isnan(value) else math.copysign(BOUND, value))
    assert total_D[3] == pytest.approx(expected, abs=1e-5)
    assert total_D[4] == pytest.approx(2.0, abs=1e-5)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_summed_over_the_whole_roster_or_not_at_all(open_server: HostileServer) -> None:
    """Two sums over sets that differ by one would show that one's exact counts; also of another run."""
    for number, others in enumerate([(1, 2, 3), (1, 2, 4)]):
        fewer = Round(open_server, round=0, run_id=f"run {number}", catalogue=ITEMS, numbers=others).until("confirm")
        refused(fewer, 1, fewer.tasks("confirm")[1], "statistics of 3 partners: all 4 of the roster must take part")
    dropped = Round(open_server, round=0, run_id="dropout", catalogue=ITEMS).until("confirm", mask=(4,))
    refused(dropped, 1, dropped.tasks("confirm")[1], "statistics of 3 partners: all 4")
    whole = Round(open_server, round=0, catalogue=ITEMS)
    (total_D,) = whole.run()
    counts = [open_server.worker(number)._item_counts(StatisticsTask("run", ITEMS)) for number in (1, 2, 3, 4)]
    assert np.array_equal(total_D, sum(counts).reshape(-1))  # type: ignore[union-attr]


def test_statistics_are_refused_where_privacy_is_on(server: HostileServer) -> None:
    round_ = Round(server, round=0, catalogue=ITEMS).until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "exact item counts are not private")


@pytest.mark.parametrize(
    "lie",
    [
        lambda task: replace(task, clip=BOUND),
        lambda task: replace(task, length=2),
        lambda task: replace(task, bits=20),
        lambda task: replace(task, model_hash=bytes(32)),
    ],
    ids=["update", "length", "bits", "catalogue"],
)
def test_statistics_of_another_shape_are_refused(
    lie: Callable[[MaskTask], MaskTask], open_server: HostileServer
) -> None:
    round_ = Round(open_server, round=0, catalogue=ITEMS).until("mask")
    task = lie(round_.tasks("mask")[1])
    kind_of_work = work(Round(open_server)) if task.clip else None
    refused(round_, 1, task, ".", work=kind_of_work)
    assert len(round_.run("mask")) == 1
