"""The committed vectors: what the generator writes, what the roles answer, and what they refuse and where."""

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from vectors.generate import vectors
from vectors.play import STAGES, Source
from vectors.records import FOLDER, cast_of, plain, read, session_of
from vectors.replay import Participant, Server, body_of

from common.errors import ProtocolError
from common.secagg.protocol import Dropouts, run_secagg

GOOD = ("secagg_three_clients.json", "secagg_dropout.json")
BAD = sorted(path.name for path in FOLDER.glob("secagg_bad_*.json"))


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return vectors()


def test_the_committed_files_are_what_the_generator_writes(written: dict[str, str]) -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert committed.keys() == written.keys()
    for name, text in written.items():
        assert committed[name] == text, f"{name}: run PYTHONPATH=tests python -m vectors.generate"


@pytest.mark.parametrize("name", GOOD)
def test_run_secagg_gives_the_transcript(name: str) -> None:
    """The whole protocol in one call, from the label's bytes alone."""
    vector = read(name)
    cast, participants = cast_of(vector, {}), vector["participants"]
    silent = {
        stage: [int(number) for number, each in participants.items() if stage not in each and _before(stage) in each]
        for stage in STAGES[1:]
    }
    outcome = run_secagg(
        {int(number): np.array(each["value"], np.float32) for number, each in participants.items()},
        cast.identities,
        cast.roster,
        session_of(vector),
        clip=vector["grid"]["clip"],
        policy=cast.policy,
        model_hash=bytes.fromhex(vector["grid"]["model_hash"]),
        config_hash=bytes.fromhex(vector["grid"]["config_hash"]),
        dropouts=Dropouts(**silent),
        random=Source(vector["random"]["label"]),
    )
    assert outcome.sum_D.tolist() == vector["result"]["sum_words"]
    assert list(outcome.survivors) == vector["result"]["survivors"]
    said: dict[tuple[str, int], Any] = {(stage, number): message for stage, number, message in outcome.transcript}
    for stage in STAGES:
        for number, each in participants.items():
            if stage in each:
                assert plain(said.pop((stage, int(number)))) == each[stage]["reply"]
                if stage == "mask":
                    assert np.concatenate(said.pop(("mask body", int(number)))).tolist() == each["body"]
                if "revealed" in each[stage]:
                    assert plain(said.pop(("reveal", int(number)))) == each[stage]["revealed"]
    assert not said


def _before(stage: str) -> str:
    return STAGES[STAGES.index(stage) - 1]


@pytest.mark.parametrize("name", GOOD)
def test_every_participant_answers_as_recorded(name: str) -> None:
    vector = read(name)
    for number, each in vector["participants"].items():
        participant = Participant(vector, int(number), {}, {})
        for stage in STAGES:
            if stage in each:
                assert plain(participant.play(stage)) == each[stage]["reply"]
                assert "revealed" not in each[stage] or plain(participant.revealed) == each[stage]["revealed"]
        if "body" in each:
            assert [words.tolist() for words in participant.body] == [each["body"]]


@pytest.mark.parametrize("name", GOOD)
def test_the_server_sums_as_recorded(name: str) -> None:
    vector = read(name)
    server = Server(vector).until("unmask")
    for number, each in vector["participants"].items():
        if "unmask" in each:
            assert plain(server.tally.unmask_task(int(number))) == each["unmask"]["task"]
    server.take_all("unmask")
    assert server.unmasking.finish().tolist() == vector["result"]["sum_words"]
    assert server.unmasking.slots.tolist() == [vector["result"]["weight_units"], vector["result"]["count"]]
    assert not server.unmasking.faults


@pytest.mark.parametrize("name", BAD)
def test_what_must_be_refused_is_refused_there(name: str) -> None:
    bad = read(name)
    vector = read(bad["base"])
    with pytest.raises(ProtocolError) as caught:  # noqa: PT012 - what comes before the stage is told apart below
        stage = "begin"
        if bad["receiver"] == "server":
            server = Server(vector).until(bad["stage"])
            server.begin(bad["stage"])
            if bad.get("after_all"):
                server.take_all(bad["stage"])
            stage = bad["stage"]
            server.take(stage, bad["participant"], bad["message"], body_of(vector, bad) if stage == "mask" else None)
        else:
            participant = Participant(vector, bad["participant"], bad["policy"], bad["messages"])
            for stage in STAGES[: STAGES.index(bad["stage"]) + 1]:
                if stage not in bad["skips"]:
                    participant.play(stage)
    assert stage == bad["stage"], f"refused at {stage}: {caught.value}"
    assert bad["text"] in str(caught.value)
    frames = [
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if "secagg" in Path(frame.filename).parts
    ]
    assert bad["refused_by"] in [frame.name for frame in frames], [frame.name for frame in frames]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_vector_is_not_the_truth(name: str) -> None:
    """What it replaces is another message; a server's vector sends another one, or a good one where none is due."""
    bad = read(name)
    own = read(bad["base"])["participants"][str(bad["participant"])]
    if bad["receiver"] == "server":
        truth = own.get(bad["stage"], {}).get("reply")
        assert bad["message"] != truth or bad.get("after_all") or {"body", "dtype"} & bad.keys()
    else:
        changed = [stage for stage, message in bad["messages"].items() if message != own[stage]["task"]]
        assert changed or bad["policy"] or bad["skips"]


def test_every_item_of_the_refusal_list_has_a_vector() -> None:
    """The list of docs/SECAGG.md, as far as single steps can hold it."""
    wanted = """
        key_swapped signed_by_a_stranger identity_outside_the_roster own_entry_replaced duplicate_participant
        replayed_from_another_round replayed_from_another_run replayed_from_another_roster another_model
        another_configuration threshold_too_low two_participants fewer_than_the_policys_participants split_first
        split_second split_third signatures_too_few alive_and_dead box_flipped box_for_another boxes_swapped
        low_order_mask_key low_order_channel_key server_second_upload server_upload_of_float32 server_upload_too_long
        ring_of_2 ring_of_0 ring_negative ring_of_2_to_63 weight_over_its_cap bits_that_wrap bits_above_the_policys
        clip_over_the_policys clip_negative
    """
    assert {f"secagg_bad_{name}.json" for name in wanted.split()} <= set(BAD)


def test_no_vector_holds_a_key_that_anyone_uses() -> None:
    """Identities come from labels in this folder."""
    for name in GOOD:
        vector = read(name)
        for number, seed in vector["identities"].items():
            key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)).public_key().public_bytes_raw().hex()
            assert key == vector["roster"][int(number) - 1]["public_key"]
