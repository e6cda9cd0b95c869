"""Every message there and back, over Flower's own bytes too, and what a peer may not send."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common.config import PrivacyConfig
from common.contribution import LocalDelta, NoisedStep
from common.errors import ProtocolError
from common.lineage import MODEL_FILES, STATISTICS
from common.message_types import BUDGET_EXHAUSTED, REFUSED
from common.messages import (
    AnchorTask,
    CatalogueTask,
    JoinReply,
    JoinTask,
    ModelTask,
    StatisticsReply,
    StatisticsTask,
    TrainingPlan,
    TrainReply,
    TrainTask,
)

PLAN = TrainingPlan(4, "adam", 0.01, 0.0)
COUNTS = np.array([[1.0, 0.0, 2.0], [4.0, 0.0, 2.0]])
TASK = TrainTask("run", 3, 0, 0.5, "f" * 64, PLAN, np.array([1.5, -2.25, 0.0], np.float32))
MESSAGES = [
    JoinTask("run-e_1"),
    JoinReply("shop", 120, "a" * 64, True, "b" * 64, "c" * 64, "d" * 64),
    AnchorTask("run", "0123456789abcdef" * 4),
    StatisticsTask("run", ("i1", "")),
    StatisticsReply(COUNTS),
    CatalogueTask("run", ("a", "b", "c"), COUNTS),
    TASK,
    TrainReply(3, LocalDelta(np.array([0.1, -1e-30, 3e38], np.float32), 0.25)),
    TrainReply(2**40, NoisedStep(np.array([2**62, -5], np.int64), 2**53), "c" * 64),
    ModelTask("run", {name: name.encode() for name in MODEL_FILES}),
    ModelTask("run", {name: name.encode() for name in (*MODEL_FILES, STATISTICS)}),
]
IDS = [type(message).__name__ for message in MESSAGES]


def flat(message: Any) -> list[Any]:
    """Returns a message's scalars, and its arrays as (dtype, shape, bytes)."""
    if isinstance(message, np.ndarray):
        return [(message.dtype, message.shape, message.tobytes())]
    if dataclasses.is_dataclass(message):
        return [part for field in dataclasses.fields(message) for part in flat(getattr(message, field.name))]
    return [(type(message), message)]


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_there_and_back(message: Any) -> None:
    assert flat(type(message).from_record(message.to_record())) == flat(message)


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_there_and_back_over_flowers_bytes(message: Any) -> None:
    data = recorddict_to_proto(message.to_record()).SerializeToString()
    record = recorddict_from_proto(type(recorddict_to_proto(RecordDict())).FromString(data))
    assert flat(type(message).from_record(record)) == flat(message)


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_each_message_is_no_other(message: Any) -> None:
    for other in MESSAGES:
        if type(other) is not type(message):
            with pytest.raises(ProtocolError):
                type(other).from_record(message.to_record())


def test_arrays_are_copies_of_their_own() -> None:
    record = TASK.to_record()
    one, other = TrainTask.from_record(record), TrainTask.from_record(record)
    one.model_D[0] = 99.0
    assert other.model_D[0] == 1.5
    assert TASK.model_D[0] == 1.5


def test_a_sliced_array_crosses_by_its_values() -> None:
    counts_2I = np.arange(12.0).reshape(6, 2).T[:, ::2]
    assert not counts_2I.flags.c_contiguous
    back_2I = StatisticsReply.from_record(StatisticsReply(counts_2I).to_record()).counts_2I
    np.testing.assert_array_equal(back_2I, counts_2I)


def test_an_empty_catalogue_crosses() -> None:
    task = CatalogueTask("run", (), np.zeros((2, 0)))
    back = CatalogueTask.from_record(task.to_record())
    assert back.catalogue == ()
    assert back.counts_2I.shape == (2, 0)


# --- what is refused ----------------------------------------------------------------------------------------------


def array_record(**change: Any) -> ArrayRecord:
    facts: dict[str, Any] = {"dtype": "<f8", "shape": (2, 3), "stype": "numpy.raw", "data": COUNTS.tobytes()} | change
    return ArrayRecord({"counts": Array(**facts)})


def counts_record(**change: Any) -> RecordDict:
    return RecordDict({"hushclick.fields": ConfigRecord({}), "hushclick.arrays": array_record(**change)})


def test_the_honest_array_passes() -> None:
    np.testing.assert_array_equal(StatisticsReply.from_record(counts_record()).counts_2I, COUNTS)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "<f4"},
        {"dtype": ">f8"},
        {"dtype": "float64"},
        {"dtype": "|O"},
        {"dtype": "nonsense"},
        {"stype": "numpy.ndarray"},
        {"shape": (6,)},
        {"shape": (2, 3, 1)},
        {"shape": ()},
        {"shape": (3, 2)},
        {"shape": (2, 4)},
        {"shape": (-2, -3)},
        {"shape": (2**32, 2**32), "data": b""},  # 2^64: no bytes, if the product wraps
        {"shape": (0, 2**62), "data": b""},
        {"shape": (2**62, 0), "data": b""},
        {"data": COUNTS.tobytes()[:-1]},
        {"data": COUNTS.tobytes() + b"\0"},
        {"data": b""},
        {"data": np.full((2, 3), np.nan).tobytes()},
        {"data": np.array([[0.0, 0.0, 0.0], [1.0, np.inf, 1.0]]).tobytes()},
        {"data": np.array([[-1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).tobytes()},
        {"data": np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).tobytes()},  # more clicks than impressions
    ],
    ids=str,
)
def test_a_dishonest_array_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        StatisticsReply.from_record(counts_record(**change))


def test_promise_1_a_reply_with_anything_beside_is_refused() -> None:
    """An update's sender cannot be made to add a loss, a count or a second array unnoticed."""
    honest = TrainReply(1, LocalDelta(np.zeros(2, np.float32), 1.0))
    extra_record = honest.to_record()
    extra_record["metrics"] = MetricRecord({"loss": 0.5})
    extra_array = honest.to_record()
    extra_array["hushclick.arrays"]["count"] = Array("<i8", (1,), "numpy.raw", b"\0" * 8)
    extra_field = honest.to_record()
    extra_field["hushclick.fields"]["num_examples"] = 12
    for record in (extra_record, extra_array, extra_field):
        with pytest.raises(ProtocolError, match="expected"):
            TrainReply.from_record(record)


def test_a_scalar_message_with_an_array_is_refused() -> None:
    record = JoinReply("shop", 1, "f", False, "").to_record()
    record["hushclick.arrays"] = array_record()
    with pytest.raises(ProtocolError, match="records"):
        JoinReply.from_record(record)


@pytest.mark.parametrize("items", [[1, 2], [1.0], [b"i1"], [True, False]], ids=str)
@pytest.mark.parametrize("kind", [StatisticsTask, CatalogueTask])
def test_a_catalogue_of_anything_but_texts_is_refused(kind: Any, items: list[Any]) -> None:
    record = next(message for message in MESSAGES if type(message) is kind).to_record()
    record["hushclick.fields"]["catalogue"] = items
    with pytest.raises(ProtocolError, match="catalogue: expected a list of str"):
        kind.from_record(record)


def test_a_catalogue_of_another_length_than_its_counts_is_refused() -> None:
    record = CatalogueTask("run", ("a", "b", "c"), COUNTS).to_record()
    record["hushclick.fields"]["catalogue"] = ["a", "b"]
    with pytest.raises(ProtocolError, match=r"counts of shape \(2, 3\) for 2 items"):
        CatalogueTask.from_record(record)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("round", 0, "rounds start at 1"),
        ("attempt", -1, "attempts at 0"),
        ("round", True, "field round: bool, expected int"),
        ("round", 1.0, "field round: float, expected int"),
        ("weight", 1, "field weight: int, expected float"),
        ("weight", 0.0, "weight = 0.0"),
        ("weight", 1.5, "weight = 1.5"),
        ("weight", float("nan"), "weight = nan"),
        ("run_id", b"run", "field run_id: bytes, expected str"),
        ("local_steps", 0, "local_steps = 0: must be at least 1"),
        ("client_optimiser", "lbfgs", "must be sgd or adam"),
        ("learning_rate", float("nan"), "learning_rate"),
        ("learning_rate", float("inf"), "learning_rate"),
        ("learning_rate", 0.0, "learning_rate"),
        ("weight_decay", 1.0, "weight_decay"),
        ("weight_decay", -0.1, "weight_decay"),
        ("weight_decay", float("nan"), "weight_decay"),
    ],
)
def test_a_task_out_of_range_is_refused_before_it_reaches_a_worker(field: str, value: Any, text: str) -> None:
    record = TASK.to_record()
    record["hushclick.fields"][field] = value
    with pytest.raises(ProtocolError, match=text.replace("(", r"\(")):
        TrainTask.from_record(record)


@pytest.mark.parametrize("weight", [0.5, 0.0, -1.0, 1e300, float("nan"), float("inf")])
def test_a_noised_step_declares_whole_units_in_range(weight: float) -> None:
    record = TrainReply(1, NoisedStep(np.zeros(2, np.int64), 5)).to_record()
    record["hushclick.fields"]["weight"] = weight
    with pytest.raises(ProtocolError):
        TrainReply.from_record(record)


def test_a_kind_and_the_body_of_another_are_refused() -> None:
    record = TrainReply(1, NoisedStep(np.zeros(2, np.int64), 1)).to_record()
    record["hushclick.fields"]["kind"] = "local_delta"
    with pytest.raises(ProtocolError, match="array body: <i8"):
        TrainReply.from_record(record)
    record["hushclick.fields"]["kind"] = "gradient"
    with pytest.raises(ProtocolError, match="kind 'gradient'"):
        TrainReply.from_record(record)


@pytest.mark.parametrize("anchor", ["a", "A" * 64, "a" * 65, "a" * 63 + "\n", "f" * 63 + "\u0663"])
@pytest.mark.parametrize(
    "message", [message for message in MESSAGES if "anchor" in message.to_record()["hushclick.fields"]], ids=str
)
def test_an_anchor_is_64_hex_digits_or_none(message: Any, anchor: str) -> None:
    record = message.to_record()
    record["hushclick.fields"]["anchor"] = anchor
    with pytest.raises(ProtocolError, match="anchor ="):
        type(message).from_record(record)


@pytest.mark.parametrize("users", [0, -3])
def test_a_partner_declares_at_least_one_user(users: int) -> None:
    record = JoinReply("shop", users, "f", False, "").to_record()
    with pytest.raises(ProtocolError, match="declared_users"):
        JoinReply.from_record(record)


# --- what messages cannot say -------------------------------------------------------------------------------------


def test_promise_2_a_task_has_no_word_for_privacy() -> None:
    """Noise, clip, sampling and budget are the partner's own: there is no field in which a server could send them."""
    said = set(TASK.to_record()["hushclick.fields"])
    assert said == {
        "run_id",
        "round",
        "attempt",
        "weight",
        "fingerprint",
        "local_steps",
        "client_optimiser",
        "learning_rate",
        "weight_decay",
    }
    assert not said & {field.name for field in dataclasses.fields(PrivacyConfig)}
    for word in ("noise", "clip", "sampling_rate", "epsilon", "mode", "fixed_seed"):
        record = TASK.to_record()
        record["hushclick.fields"][word] = 0.0
        with pytest.raises(ProtocolError, match=word):
            TrainTask.from_record(record)


def test_promise_1_a_reply_says_round_kind_public_weight_and_body() -> None:
    record = TrainReply(7, LocalDelta(np.zeros(3, np.float32), 0.5)).to_record()
    assert set(record) == {"hushclick.fields", "hushclick.arrays"}
    assert dict(record["hushclick.fields"]) == {
        "round": 7,
        "kind": "local_delta",
        "weight": 0.5,
        "anchor": "",  # of its ledger: blinded
    }
    assert set(record["hushclick.arrays"]) == {"body"}


def test_error_codes_are_not_flowers_own() -> None:
    from flwr.common.constant import ErrorCode

    flowers = {value for name, value in vars(ErrorCode).items() if isinstance(value, int) and not name.startswith("_")}
    assert len(flowers) >= 3
    assert not {REFUSED, BUDGET_EXHAUSTED} & flowers
