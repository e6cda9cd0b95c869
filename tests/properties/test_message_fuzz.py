"""A peer may send anything that Flower can carry: it decodes, or it is a `ProtocolError`, and never anything else."""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.contribution import LocalDelta, NoisedStep
from common.errors import ProtocolError
from common.histogram import Catalogue
from common.histogram_messages import EvaluationTask, HistogramTask, ReleaseTask
from common.lineage import MODEL_FILES
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

COUNTS = np.array([[1.0, 0.0], [4.0, 0.0]])
MESSAGES = [
    JoinTask("run"),
    JoinReply("shop", 120, "a" * 64, True, "b" * 64, "c" * 64, "d" * 64),
    AnchorTask("run", "c" * 64),
    StatisticsTask("run", ("i1", "i2")),
    StatisticsReply(COUNTS),
    CatalogueTask("run", ("a", "b"), COUNTS),
    TrainTask("run", 3, 0, 0.5, "f" * 64, TrainingPlan(4, "adam", 0.01, 0.0), np.ones(3, np.float32)),
    TrainReply(3, LocalDelta(np.ones(3, np.float32), 0.25)),
    TrainReply(3, NoisedStep(np.ones(3, np.int64), 7), "d" * 64),
    ModelTask("run", {name: name.encode() for name in MODEL_FILES}),
    HistogramTask("run-s1", 1, 16, Catalogue(("a", "b"), ("x", ""))),
    ReleaseTask("run", b"{}"),
    EvaluationTask("run-e3", 16, 32, "f" * 64, np.ones(3, np.float32)),
]

KINDS = sorted({type(message) for message in MESSAGES}, key=lambda kind: kind.__name__)
NAMES = sorted({name for message in MESSAGES for name in message.to_record()["hushclick.fields"]})

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(["local_delta", "noised_step", "adam", "sgd", "", "e" * 64]),
)
lists = st.one_of(
    st.lists(st.text(max_size=3), max_size=4),
    st.lists(st.integers(-5, 5), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.lists(st.binary(max_size=3), max_size=4),
    st.lists(st.booleans(), max_size=4),
)
anything = st.one_of(scalars, lists)
arrays = st.builds(
    Array,
    dtype=st.sampled_from(["<f4", "<f8", "<i8", ">f4", "|O", "|V8", "<U1", "<M8[s]", "float32", "|u1", ""]),
    shape=st.lists(
        st.one_of(st.integers(-3, 5), st.booleans(), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**70, -(2**63)])),
        max_size=4,
    ).map(tuple),
    stype=st.sampled_from(["numpy.raw", "numpy.ndarray", ""]),
    data=st.one_of(st.binary(max_size=64), st.integers(0, 6).map(lambda count: b"\0" * 8 * count)),
)
record_names = st.sampled_from(["hushclick.fields", "hushclick.arrays", "other", ""])
some_records = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), anything, max_size=6).map(ConfigRecord),
    st.dictionaries(st.sampled_from(["model", "body", "lineage.sig", "x"]), arrays, max_size=2).map(ArrayRecord),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2).map(MetricRecord),
)


def decodes_or_is_refused(record: RecordDict) -> None:
    for kind in KINDS:
        try:
            message: Any = kind.from_record(record)
        except ProtocolError:
            continue
        # What decodes is well formed: it can be sent on, and decodes again.
        kind.from_record(message.to_record())


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(record_names, some_records, max_size=3).map(RecordDict))
def test_records_of_anything(record: RecordDict) -> None:
    decodes_or_is_refused(record)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_messages_with_one_thing_changed(message: Any, data: st.DataObject) -> None:
    record = message.to_record()
    fields = record["hushclick.fields"]
    change = data.draw(
        st.sampled_from(["value", "missing", "extra", "array", "extra array", "no arrays", "no fields", "more"])
    )
    if change == "value" and fields:
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(anything)
    elif change == "missing" and fields:
        del fields[data.draw(st.sampled_from(sorted(fields)))]
    elif change == "extra":
        fields[data.draw(st.text(max_size=5))] = data.draw(anything)
    elif change == "array" and "hushclick.arrays" in record:
        for name in list(record["hushclick.arrays"]):
            record["hushclick.arrays"][name] = data.draw(arrays)
    elif change == "extra array" and "hushclick.arrays" in record:
        record["hushclick.arrays"][data.draw(st.text(max_size=4))] = data.draw(arrays)
    elif change == "no arrays" and "hushclick.arrays" in record:
        del record["hushclick.arrays"]
    elif change == "no fields":
        del record["hushclick.fields"]
    elif change == "more":
        record[data.draw(st.text(max_size=5))] = data.draw(some_records)
    decodes_or_is_refused(record)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["body", "counts", "model", "config.json"]), arrays)
@example("counts", Array("<f8", (2**32, 2**32), "numpy.raw", b""))
@example("counts", Array("<f8", (0, 2**63), "numpy.raw", b""))
@example("body", Array("<f4", (True,), "numpy.raw", b"\0" * 4))
def test_arrays_of_anything(name: str, array: Array) -> None:
    for message in MESSAGES:
        record = message.to_record()
        if "hushclick.arrays" in record:
            record["hushclick.arrays"] = ArrayRecord({name: array})
            decodes_or_is_refused(record)


def test_the_fuzz_meets_both_ends() -> None:
    """Untouched messages decode, so that a refusal above is due to the change."""
    for message in MESSAGES:
        type(message).from_record(message.to_record())
    assert np.isfinite(MESSAGES[6].model_D).all()
