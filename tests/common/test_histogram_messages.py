"""The messages of private statistics: the same after a trip, refused where they do not hold, bound by their hashes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import EvaluationConfig, ModelConfig, PrivacyConfig
from common.errors import ProtocolError
from common.histogram import Catalogue
from common.histogram_messages import EvaluationTask, HistogramTask, ReleaseTask, score_terms_hash, terms_hash

TASK = HistogramTask("run-s2", 2, 16, Catalogue(("a", "b", "ü"), ("x", "", "x")))
PRIVACY = PrivacyConfig(statistics_noise_multiplier=2.0, noise_multiplier=1.0)


def test_messages_survive_the_trip() -> None:
    assert HistogramTask.from_record(TASK.to_record()) == TASK
    release = ReleaseTask("run", b"\x00bytes\xff")
    assert ReleaseTask.from_record(release.to_record()) == release


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"number": -1}, "number = -1"),
        ({"number": 2**31}, "number = "),
        ({"grid_bits": 11}, "grid_bits = 11 of a histogram: must be from 12 to 24"),
        ({"grid_bits": 25}, "grid_bits = 25"),
        ({"items": ["a", "a", "b"]}, "an item comes twice"),
        ({"categories": ["x"]}, "3 items and 1 categories"),
        ({"items": [], "categories": []}, "0 items"),
        ({"items": [1, 2, 3]}, "a list of str"),
        ({"number": "2"}, "number"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], match: str) -> None:
    record = TASK.to_record()
    for name, value in change.items():
        record["hushclick.fields"][name] = value
    with pytest.raises(ProtocolError, match=match):
        HistogramTask.from_record(record)


def test_hashes_bind_all_of_the_task() -> None:
    shared = terms_hash(ModelConfig(), PRIVACY, 1)
    catalogue, plan = TASK.hashes(shared)
    assert replace(TASK, run_id="other").hashes(shared) == (catalogue, plan)  # the session binds the run
    for other in (
        replace(TASK, number=3),
        replace(TASK, grid_bits=17),
        replace(TASK, catalogue=Catalogue(("a", "b", "ü"), ("x", "x", ""))),
        replace(TASK, catalogue=Catalogue(("a", "b"), ("x", ""))),
    ):
        assert other.hashes(shared) != (catalogue, plan)
    # Items and categories cannot be shifted into each other.
    one = replace(TASK, catalogue=Catalogue(("a", "b"), ("c", "d")))
    two = replace(TASK, catalogue=Catalogue(("a",), ("b",)))
    assert one.hashes(shared)[0] != two.hashes(shared)[0]


def test_terms_bind_noise_clip_centre_mode_and_parts() -> None:
    own = terms_hash(ModelConfig(), PRIVACY, 1)
    others = [
        terms_hash(ModelConfig(), replace(PRIVACY, statistics_noise_multiplier=2.1), 1),
        terms_hash(ModelConfig(), replace(PRIVACY, statistics_clip=2.0), 1),
        terms_hash(ModelConfig(), replace(PRIVACY, mode="distributed"), 1),
        terms_hash(ModelConfig(), PRIVACY, 2),
        terms_hash(ModelConfig(prior_click_rate=0.2), PRIVACY, 1),
    ]
    assert len({own, *others}) == 6
    # What training's noise is, is no affair of the statistics.
    assert terms_hash(ModelConfig(), replace(PRIVACY, noise_multiplier=9.0, clip=3.0), 1) == own


# --- scores -----------------------------------------------------------------------------------------------------------

SCORES = EvaluationTask("run-e3", 16, 32, "f" * 64, np.arange(4, dtype=np.float32))
HELD_OUT = EvaluationConfig(at="partners", from_time=100)


def test_an_evaluation_survives_the_trip() -> None:
    found = EvaluationTask.from_record(SCORES.to_record())
    assert np.array_equal(found.model_D, SCORES.model_D)
    assert [getattr(found, name) for name in ("run_id", "grid_bits", "bins", "fingerprint", "length", "round")] == [
        *("run-e3", 16, 32, "f" * 64, 64, 0)
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bins": 0}, "bins = 0 of a histogram"),
        ({"bins": 2**16}, "bins = 65536"),
        ({"grid_bits": 11}, "grid_bits = 11 of a histogram: must be from 12 to 24"),
        ({"grid_bits": 25}, "grid_bits = 25"),
        ({"bins": "32"}, "bins"),
    ],
)
def test_values_of_an_evaluation_out_of_range_are_refused(change: dict[str, Any], match: str) -> None:
    record = SCORES.to_record()
    for name, value in change.items():
        record["hushclick.fields"][name] = value
    with pytest.raises(ProtocolError, match=match):
        EvaluationTask.from_record(record)


def test_hashes_bind_all_of_an_evaluation() -> None:
    shared = score_terms_hash(ModelConfig(), PRIVACY, HELD_OUT, 1, b"")
    model, rest = SCORES.hashes(shared)
    other = replace(SCORES, model_D=SCORES.model_D + 1).hashes(shared)
    assert (other[0] != model, other[1] == rest) == (True, True)
    for change in ({"bins": 33}, {"grid_bits": 17}, {"fingerprint": "e" * 64}):
        assert replace(SCORES, **change).hashes(shared)[1] != rest
    assert SCORES.hashes(b"other")[1] != rest


def test_terms_of_an_evaluation_bind_noise_clip_rule_and_what_was_told() -> None:
    def terms(model: Any = ModelConfig(), privacy: Any = PRIVACY, held_out: Any = HELD_OUT, *rest: Any) -> bytes:  # noqa: B008
        return score_terms_hash(model, privacy, held_out, *(rest or (1, b"")))

    others = [
        terms(privacy=replace(PRIVACY, evaluation_noise_multiplier=2.1)),
        terms(privacy=replace(PRIVACY, evaluation_clip=3.0)),
        terms(privacy=replace(PRIVACY, mode="distributed")),
        terms(privacy=replace(PRIVACY, unit="impression")),
        terms(privacy=replace(PRIVACY, mode="label", epsilon=1.0)),
        terms(privacy=replace(PRIVACY, mode="label", epsilon=2.0)),
        terms(ModelConfig(prior_click_rate=0.2)),
        terms(held_out=replace(HELD_OUT, from_time=101)),
        terms(held_out=replace(HELD_OUT, from_time=None, user_share=0.5)),
        terms(held_out=replace(HELD_OUT, user_share=0.5)),
        terms(held_out=replace(HELD_OUT, key="k")),
        terms(held_out=replace(HELD_OUT, bins=16)),
        terms(held_out=replace(HELD_OUT, max_rows=3)),
        score_terms_hash(ModelConfig(), PRIVACY, HELD_OUT, 2, b""),
        score_terms_hash(ModelConfig(), PRIVACY, HELD_OUT, 1, b"told"),
    ]
    assert len({terms(), *others}) == len(others) + 1
    # How often, and what training's noise is, is no affair of one histogram.
    assert terms(held_out=replace(HELD_OUT, releases=7)) == terms()
    assert terms(privacy=replace(PRIVACY, noise_multiplier=9.0, clip=3.0)) == terms()
