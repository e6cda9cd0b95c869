"""What is kept between steps: there and back, nothing secret shown, and damage is an end, not a crash."""

import json
from dataclasses import fields, replace

import pytest
from vectors.play import Play, play

from common.errors import ProtocolError
from common.secagg import client_role as client
from common.secagg.states import Advertised, Masked, Shared, State, dump_state, load_state


@pytest.fixture(scope="module")
def played() -> Play:
    return play(4, "states").run(mask=[4])


def states_of(played: Play) -> list[State]:
    steps = played.steps
    advertised = steps["advertise"][1].after
    return [
        advertised,
        replace(advertised, revealed=b"r" * 32),
        steps["share"][2].after,
        steps["mask"][1].after,
        replace(steps["mask"][1].after, bad_dealers=(2, 3)),
        steps["confirm"][3].after,
    ]


def test_every_state_comes_back_as_it_was(played: Play) -> None:
    kinds = set()
    for state in states_of(played):
        again = load_state(dump_state(state))
        assert again == state
        assert type(again) is type(state)
        for each in fields(state):
            assert type(getattr(again, each.name)) is type(getattr(state, each.name))
        kinds.add(type(state))
    assert kinds == {Advertised, Shared, Masked}


def test_a_restarted_participant_goes_on(played: Play) -> None:
    """Every step from the dumped state gives what the step from the live one gave."""
    step = played.steps["confirm"][1]
    after, signature = client.confirm(played.members[1], load_state(dump_state(step.before)), step.task)  # type: ignore[arg-type]
    assert (after, signature) == (step.after, step.reply)
    step = played.steps["unmask"][1]
    assert client.unmask(played.members[1], load_state(dump_state(step.before)), step.task) == step.reply  # type: ignore[arg-type]


def test_damaged_states_end_the_round(played: Play) -> None:
    good = dump_state(states_of(played)[2])
    table = json.loads(good)
    damaged = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe\xfd",
        good[:-1],
        good[1:],
        json.dumps(table | {"kind": "Opened"}).encode(),
        json.dumps(table | {"kind": ["Shared"]}).encode(),
        json.dumps(table | {"extra": 1}).encode(),
        json.dumps({key: value for key, value in table.items() if key != "seed"}).encode(),
        json.dumps(table | {"seed": {"hex": "zz"}}).encode(),
        json.dumps(table | {"seed": {"hax": "00"}}).encode(),
        json.dumps(table | {"seed": {"held": 3}}).encode(),
    ]
    for blob in damaged:
        with pytest.raises(ProtocolError, match="stored state is damaged; the round is over for this participant"):
            load_state(blob)
