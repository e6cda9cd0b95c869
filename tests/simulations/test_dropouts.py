"""Partners fall silent at every stage: the sum stays that of the survivors to the bit, or the round is skipped.

Legend: D parameters.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulated_runs import SumSpy, run, small_config

import client.worker
import simulations.faults
from common.cli import main
from common.config import Config, dump_config
from common.runfolder import partner_name
from common.secagg.parameters import majority
from simulations.faults import STAGES, silent_from

NAMES = [partner_name(number) for number in range(10)]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> SumSpy:
    return SumSpy(monkeypatch)


def silence(patch: pytest.MonkeyPatch, schedule: Mapping[tuple[str, int], str]) -> None:
    """Lets exactly these (partner, round) fall silent, from a stage on."""
    patch.setattr(simulations.faults, "silent_from", lambda _, partner, number: schedule.get((partner, number)))


def faulty(encoder: Path, partners: int, rounds: int, **tables: dict[str, Any]) -> Config:
    """Returns a small run through the faulty app; who falls silent is then up to `silence`."""
    return small_config(encoder, partners, rounds, simulation={"dropout_rate": 0.3}, **tables)


def sent(spy: SumSpy, number: int, silent: Mapping[str, str | None]) -> frozenset[str]:
    """Returns whose masked body reached the server in a round: who coded one and did not lose it on the way."""
    return frozenset(name for name in NAMES if (name, number) in spy.coded and silent.get(name) != "upload")


def assert_exact(spy: SumSpy, number: int, survivors: frozenset[str]) -> None:
    """The round has one sum, and it is the plain sum of what these partners coded, to the bit."""
    ((third, words_D, decoded_D),) = spy.sums[number]  # decoded, in grid steps
    assert third == survivors
    assert np.array_equal(words_D, spy.plain_sum(survivors, number))
    assert np.array_equal(np.rint(decoded_D), words_D.view(np.int32))


def numbers_in(error: str) -> tuple[int, int, int]:
    """Returns how many there were, were needed and were missing, as the text of an error says."""
    found = re.search(r"(\d+) (?:of \d+ participants|shares).* (\d+) are needed: (\d+) too few", error)
    assert found, error
    return int(found[1]), int(found[2]), int(found[3])


# --- the acceptance test ------------------------------------------------------------------------------------------


def test_promise_1_with_three_in_ten_silent_every_sum_is_the_survivors_to_the_bit_or_skipped(
    tiny_encoder: Path, tmp_path: Path, spy: SumSpy, capsys: pytest.CaptureFixture[str]
) -> None:
    config = faulty(tiny_encoder, 10, 14, round={"num_rounds": 14, "local_steps": 1, "learning_rate": 0.05, "seed": 1})
    toml, out = tmp_path / "run.toml", tmp_path / "run"
    toml.write_text(dump_config(config), encoding="utf-8")
    assert main(["simulate", str(toml), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)
    assert [record["round"] for record in metrics["rounds"]] == list(range(1, 15))
    kinds = dict.fromkeys(("summed", "summed with losses", "masked body", "confirmed", "shares of"), 0)
    auc = None
    for record in metrics["rounds"]:
        kinds[check_round(config, spy, record)] += 1
        if "error" in record and auc is not None:
            assert record["auc"] == auc  # the model is as the round before left it
        auc = record["auc"]
    # The seed is chosen so that each of these comes up.
    assert kinds["summed with losses"] >= 3
    assert kinds["masked body"] >= 1
    assert kinds["confirmed"] >= 1
    assert kinds["shares of"] >= 1
    skipped = sum("error" in record for record in metrics["rounds"])
    assert f"{skipped} of 14 rounds were not aggregated; round " in captured.err
    assert "too few" in captured.err


def check_round(config: Config, spy: SumSpy, record: dict[str, Any]) -> str:
    """Checks one round against who fell silent when; returns what kind of round it was."""
    number, stages = record["round"], record["stages"]
    silent = {name: silent_from(config, name, number) for name in NAMES}
    masked = sent(spy, number, silent)
    confirmed = {name for name in masked if silent[name] != "confirm"}
    # Where every body came nobody is asked to unmask: the shares came with the confirmations.
    at_once = stages["masked"] == stages["shared"]
    unmasked = confirmed if at_once else {name for name in confirmed if silent[name] != "unmask"}
    threshold = majority(stages["advertised"], config.aggregation.colluders)
    # Whoever failed once asked to train is named with the stage; nobody else is.
    failed = {name: text.split(":")[0] for name, text in record.get("failures", {}).items()}
    assert {name for name, stage in failed.items() if stage == "confirm"} <= masked - confirmed
    assert {name for name, stage in failed.items() if stage in ("prepare", "mask")}.isdisjoint(masked)
    assert {name for name in NAMES if (name, number) in spy.coded} - masked <= failed.keys()
    if "error" not in record:
        assert_exact(spy, number, masked)
        assert record["contributed"] == stages["masked"] == len(masked)
        assert (stages["confirmed"], stages["unmasked"]) == (len(confirmed), len(unmasked))
        assert len(unmasked) >= threshold
        return "summed" if len(masked) == len(NAMES) else "summed with losses"
    assert number not in spy.sums
    assert record["contributed"] == 0
    left = {"masked body": masked, "confirmed": confirmed, "shares of": unmasked}
    kind = next(kind for kind in left if kind in record["error"])
    assert numbers_in(record["error"]) == (len(left[kind]), threshold, threshold - len(left[kind]))
    return kind


def test_the_same_silences_give_the_same_model_to_the_bit_however_many_jobs(tiny_encoder: Path, tmp_path: Path) -> None:
    config = faulty(tiny_encoder, 10, 5)
    found = {}
    for jobs in (1, 4):
        metrics = run(replace(config, output=replace(config.output, jobs=jobs)), tmp_path / str(jobs))
        for record in metrics["rounds"]:
            del record["timings"]
        found[jobs] = metrics["rounds"], load_file(tmp_path / str(jobs) / "model" / "model.safetensors")
    assert found[1][0] == found[4][0]
    assert any(record.get("failures") for record in found[1][0])
    assert all(np.array_equal(found[1][1][name], found[4][1][name]) for name in found[1][1])


# --- stage by stage -----------------------------------------------------------------------------------------------

# Rounds, of four, whose sum holds a partner that falls silent in round 2 from a stage on. The keys and shares of round
# 3 are asked for beside MASK and CONSISTENCY of round 2: whoever loses such a message misses round 3 too.
TAKES_PART = {
    "advertise": [1, 3, 4],
    "share": [1, 3, 4],
    "train": [1, 4],
    "upload": [1, 4],
    "confirm": [1, 2, 4],
    "unmask": [1, 2, 3, 4],
}


@pytest.mark.parametrize("stage", STAGES)
def test_one_partner_falls_silent_and_comes_back(
    stage: str, tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(monkeypatch, {("partner-0001", 2): stage})
    metrics = run(faulty(tiny_encoder, 5, 4), tmp_path / "run")
    everyone = frozenset(NAMES[:5])
    for number in range(1, 5):
        lost = frozenset() if number in TAKES_PART[stage] else frozenset({"partner-0001"})
        assert_exact(spy, number, everyone - lost)
    trained = [number for number in range(1, 5) if ("partner-0001", number) in spy.coded]
    assert trained == ([1, 2, 4] if stage == "upload" else TAKES_PART[stage])
    assert not any("error" in record for record in metrics["rounds"])


@pytest.mark.parametrize("stage", STAGES[1:])
def test_all_but_the_threshold_may_fall_silent_at_a_stage_and_not_one_more(
    stage: str, tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n = 10, t = 6: four losses are borne in round 1, five are not in round 3.

    Nobody is asked to unmask where every masked body came: there one of the losses is that of a body.
    """
    schedule = {(name, 1): stage for name in NAMES[:4]} | {(name, 3): stage for name in NAMES[5:]}
    if stage == "unmask":
        schedule |= {(NAMES[0], 1): "upload", (NAMES[5], 3): "upload"}
    silence(monkeypatch, schedule)
    metrics = run(faulty(tiny_encoder, 10, 5), tmp_path / "run")
    records = {record["round"]: record for record in metrics["rounds"]}
    early = stage in ("share", "train", "upload")
    assert_exact(spy, 1, frozenset(NAMES[4:] if early else NAMES[1:] if stage == "unmask" else NAMES))
    assert records[3]["stages"]["advertised"] == 10
    assert numbers_in(records[3]["error"]) == (5, 6, 1)
    assert 3 not in spy.sums
    assert records[5]["contributed"] == 10  # round 4 may miss those whose keys were lost with round 3's messages


def test_at_full_attendance_a_round_takes_two_exchanges_and_nobody_is_asked_to_unmask(
    tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who would not answer UNMASK is no loss then, not even where all would not."""
    silence(monkeypatch, {(name, 2): "unmask" for name in NAMES} | {(NAMES[1], 3): "upload"})
    metrics = run(faulty(tiny_encoder, 5, 4), tmp_path / "run")
    assert [record["round_trips"] for record in metrics["rounds"]] == [4, 2, 3, 2]
    assert [record["stages"]["unmasked"] for record in metrics["rounds"]] == [5, 5, 4, 4]  # it missed keys for round 4
    assert_exact(spy, 2, frozenset(NAMES[:5]))


def test_losses_at_several_stages_of_one_round_add_up(
    tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = dict(zip(NAMES, ("share", "train", "confirm", "unmask"), strict=False))
    more = dict(zip(NAMES, ("upload", "train", "confirm", "unmask", "share"), strict=False))
    silence(monkeypatch, {(name, 1): stage for name, stage in stages.items()} | {(n, 3): s for n, s in more.items()})
    metrics = run(faulty(tiny_encoder, 10, 3), tmp_path / "run")
    assert_exact(spy, 1, frozenset(NAMES[2:]))
    first, _, third = metrics["rounds"]
    assert first["stages"] == {
        "asked": 10,
        "advertised": 10,
        "shared": 9,
        "masked": 8,
        "confirmed": 7,
        "unmasked": 6,
    }
    assert numbers_in(third["error"]) == (5, 6, 1)
    assert "shares of participant" in third["error"]


def test_when_nearly_nobody_advertises_it_says_how_many_did_and_the_next_round_is_whole(
    tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(monkeypatch, {(name, 2): "advertise" for name in NAMES[2:]})
    metrics = run(faulty(tiny_encoder, 10, 3), tmp_path / "run")
    assert "2 of 10 advertised" in metrics["rounds"][1]["error"]
    assert "at least 3" in metrics["rounds"][1]["error"]
    assert [record["contributed"] for record in metrics["rounds"]] == [10, 0, 10]


def test_who_advertises_in_small_numbers_still_sums_among_themselves(
    tiny_encoder: Path, tmp_path: Path, spy: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold counts those who advertised, not those who were asked."""
    silence(monkeypatch, {(name, 2): "advertise" for name in NAMES[4:]})
    metrics = run(faulty(tiny_encoder, 10, 2), tmp_path / "run")
    assert metrics["rounds"][1]["stages"]["advertised"] == 4
    assert_exact(spy, 2, frozenset(NAMES[:4]))


# --- slow is not broken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "timeouts", "takes_part"),
    [
        ("confirm", {"stage_timeout_seconds": 2.0}, [1, 2, 4]),
        ("mask", {"timeout_seconds": 4.0}, [1, 4]),
    ],
)
def test_a_client_that_answers_after_its_stages_timeout_is_only_left_out(
    method: str,
    timeouts: dict[str, float],
    takes_part: list[int],
    tiny_encoder: Path,
    tmp_path: Path,
    spy: SumSpy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest, limit = getattr(client.worker.Worker, method), next(iter(timeouts.values()))

    def slow(worker: Any, task: Any, *more: Any) -> Any:
        if (worker.config.name, task.session.round) == ("partner-0001", 2):
            time.sleep(1.2 * limit)
        return honest(worker, task, *more)

    monkeypatch.setattr(client.worker.Worker, method, slow)
    config = small_config(tiny_encoder, 5, 4, aggregation=timeouts, output={"jobs": 5, "report": False})
    metrics = run(config, tmp_path / "run")
    for number in range(1, 5):
        lost = frozenset() if number in takes_part else frozenset({"partner-0001"})
        assert_exact(spy, number, frozenset(NAMES[:5]) - lost)
    text = f"{method}: no answer within {limit:g} seconds"
    assert metrics["rounds"][1]["failures"] == {"partner-0001": text}
    assert not any("failures" in record for record in metrics["rounds"][2:])


# --- both engines -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_flowers_own_engine_loses_the_same_messages_and_gives_the_same_model(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    faults = {"dropout_rate": 0.15, "attack": "sign_flip", "attackers": 1}
    config = small_config(tiny_encoder, 6, 3, simulation=faults)
    found = {}
    for engine in ("in-process", "flower"):
        metrics = run(config, tmp_path / engine, engine=engine)
        for record in metrics["rounds"]:
            del record["timings"]
        found[engine] = metrics["rounds"], load_file(tmp_path / engine / "model" / "model.safetensors")
    (own, own_model), (flower, flower_model) = found.values()
    assert own == flower
    assert any("silent from" in text for record in own for text in record.get("failures", {}).values())
    assert all(np.array_equal(own_model[name], flower_model[name]) for name in own_model)
