"""A privacy event is a fact: complete, in range, and the same after a trip through JSON."""

import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from dp_events import release, unprotected
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.privacy.events import MAX_STEPS, DpEvent

TRAINED = release(run_id="demo", round=3, noise_multiplier=1.25)
UNPROTECTED = unprotected(clip=0.0)


@pytest.mark.parametrize("event", [TRAINED, UNPROTECTED], ids=["noised", "none"])
def test_an_event_survives_json(event: DpEvent) -> None:
    assert DpEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_the_dictionary_is_every_field_and_a_version() -> None:
    record = TRAINED.to_dict()
    assert record["version"] == 5
    assert set(record) == {"version"} | {field.name for field in fields(DpEvent)}
    assert not any("epsilon" in name or "delta" in name for name in record)


@given(
    noise=st.floats(min_value=1e-6, max_value=1e6),
    rate=st.floats(min_value=1e-9, max_value=1.0),
    steps=st.integers(min_value=1, max_value=MAX_STEPS),
    clip=st.floats(min_value=1e-9, max_value=1e9),
)
@settings(max_examples=50, database=None)
def test_no_number_changes_on_its_way_through_json(noise: float, rate: float, steps: int, clip: float) -> None:
    event = replace(TRAINED, noise_multiplier=noise, sampling_rate=rate, steps=steps, clip=clip)
    assert DpEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TRAINED.steps = 1  # type: ignore[misc]


def test_whole_numbers_become_floats_so_that_equal_facts_are_equal_bytes() -> None:
    whole = replace(TRAINED, clip=1, sampling_rate=1, noise_multiplier=2)
    assert json.dumps(whole.to_dict()) == json.dumps(
        replace(TRAINED, clip=1.0, sampling_rate=1.0, noise_multiplier=2.0).to_dict()
    )
    assert '"noise_multiplier": 0.0' in json.dumps(replace(UNPROTECTED, noise_multiplier=-0.0).to_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", "1"),
        ("noise_multiplier", True),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.0001),
        ("sampling_rate", math.nan),
        ("steps", 0),
        ("steps", 1.0),
        ("steps", True),
        ("steps", MAX_STEPS + 1),
        ("round", -1),
        ("attempt", -1),
        ("clip", 0.0),
        ("clip", math.inf),
        ("fixed_seed", 1),
        ("fixed_seed", None),
        ("run_id", ""),
        ("run_id", "two\nlines"),
        ("run_id", "x" * 201),
        ("run_id", 7),
        ("purpose", "fun"),
        ("mechanism", "laplace"),
        ("mechanism", ["none"]),
        ("unit", "household"),
        ("adjacency", "replace_one"),
        ("mode", "distributed"),
        ("mode", "none"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"event\.{name} = "):
        replace(TRAINED, **{name: value})
    with pytest.raises(ConfigError, match=rf"event\.{name} = "):
        DpEvent.from_dict({**TRAINED.to_dict(), name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("noise_multiplier", 1.0), ("mode", "local"), ("sampling_rate", 0.0), ("clip", -1.0)]
)
def test_a_release_without_noise_cannot_claim_noise(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"event\.{name} = "):
        replace(UNPROTECTED, **{name: value})


def test_every_wrong_field_has_its_own_line() -> None:
    with pytest.raises(ConfigError) as refused:
        replace(TRAINED, steps=0, clip=math.nan)
    assert [line.split(" = ")[0] for line in str(refused.value).splitlines()] == ["event.steps", "event.clip"]


@pytest.mark.parametrize("version", [0, 6, "1", True, None])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ConfigError, match="event version"):
        DpEvent.from_dict({**TRAINED.to_dict(), "version": version})


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    record = TRAINED.to_dict()
    with pytest.raises(ConfigError, match=r"unknown \['epsilon'\]"):
        DpEvent.from_dict({**record, "epsilon": 1.0})
    del record["fixed_seed"]
    with pytest.raises(ConfigError, match=r"missing \['fixed_seed'\]"):
        DpEvent.from_dict(record)
