"""A partner's process killed at each of its writes in turn, and power cuts there: nothing spent is forgotten.

`killed_worker.py` plays a real round (Worker, Budget, Ledger, SentFile, register, sealed secrets) in a process of its
own, and forks for every kill (`killing.py`). Here its facts are held against what must hold.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import KILLED

import common

PLAYER = Path(__file__).with_name("killed_worker.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(common.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
HOLDS_AT_LEAST = {  # writes that a round makes: were one of them missed, it would be killed at too few places
    "plain": ["write ledger.jsonl"] * 3 + ["fsync ledger.jsonl"] * 3 + ["replace ledger-head.json"],
    "secure": ["write ledger.jsonl"] * 3 + ["fsync ledger.jsonl"] * 3 + ["fsync secrets"] * 4 + ["fsync state"] * 3,
}

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


def play(kind: str, encoder: Path, root: Path, powers: list[str], *words: str) -> list[dict[str, Any]]:
    """Returns what became of each scenario; the first one is not killed at all."""
    command = [sys.executable, str(PLAYER), kind, str(encoder), str(root), json.dumps(powers), *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *found = [json.loads(line) for line in done.stdout.splitlines()]
    steps = whole["all"]
    assert whole["codes"] == [0, 0], whole
    assert whole["missed"] == []
    for step in HOLDS_AT_LEAST[kind]:
        assert steps.count(step) >= HOLDS_AT_LEAST[kind].count(step), (step, steps)
    writes = sum(step.startswith("write") for step in steps)
    assert len(found) == len(powers) * (len(steps) + writes)  # after each, and in the middle of each write
    return found


def assert_nothing_is_forgotten(found: list[dict[str, Any]]) -> None:
    for facts in found:
        assert facts["codes"] == [KILLED, 0], facts  # killed there; and whatever came after ended well
        after, then, end = facts["after"], facts["then"], facts["end"]
        # Every reservation that returned is on the disk, and there is no contribution without one.
        if "reserved" in facts:
            assert facts["reserved"] in after["numbers"], facts
        assert not after["kept"] or after["charged"], facts
        # What left before the kill is what was kept.
        if facts.get("left"):
            assert facts["left"] == after["kept"], facts
        # The same asked again: the same bytes for one charge, or a charge of its own, or nothing.
        if facts["again"] in ("exhausted", "refused"):
            assert then["charged"] == after["charged"], facts
        elif after["kept"]:
            assert (facts["again"], then["charged"]) == (after["kept"], after["charged"]), facts
        else:
            assert then["charged"] == after["charged"] + 1, facts
            assert facts["again"] == then["kept"], facts
        # It goes on: the next round is another contribution, for a charge of its own.
        if facts["next"] not in ("exhausted", "refused"):
            assert end["charged"] == then["charged"] + 1, facts
            assert facts["next"] not in (facts["again"], facts.get("left")), facts
        assert end["numbers"][: len(after["numbers"])] == after["numbers"], facts


def assert_all_of_it_happened(found: list[dict[str, Any]]) -> None:
    """The kills fell before the charge, between charge and contribution, and behind both."""
    seen = {(bool(facts["after"]["charged"]), bool(facts["after"]["kept"])) for facts in found}
    assert seen == {(False, False), (True, False), (True, True)}
    assert any(facts["then"]["charged"] == 2 for facts in found)  # charged again: the first one never left


def test_promise_2_cannot_overspend_by_being_killed_at_any_write_of_a_round(tmp_path: Path, tiny_encoder: Path) -> None:
    found = play("plain", tiny_encoder, tmp_path, [""])
    assert_nothing_is_forgotten(found)
    assert_all_of_it_happened(found)
    assert all(facts["next"] not in ("exhausted", "refused") for facts in found)


@pytest.mark.slow
def test_promise_2_cannot_overspend_by_a_kill_where_one_round_is_all_that_fits(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """Who was killed between charge and contribution has nothing left: refused, not released for nothing."""
    found = play("plain", tiny_encoder, tmp_path, [""], "one")
    assert_nothing_is_forgotten(found)
    for facts in found:
        assert facts["end"]["charged"] == 1, facts
        assert facts["next"] == "exhausted", facts
    assert any(facts["again"] == "exhausted" for facts in found)


@pytest.mark.slow
def test_promise_2_cannot_overspend_by_a_power_cut_at_any_write_over_a_torn_ledger(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    found = play("plain", tiny_encoder, tmp_path, ["all", "data"], "torn")
    assert_nothing_is_forgotten(found)
    assert_all_of_it_happened(found)


@pytest.mark.slow
@pytest.mark.parametrize("power", ["", "all", "data"])
def test_promise_2_cannot_overspend_by_being_killed_at_any_write_of_a_secure_round(
    power: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    found = play("secure", tiny_encoder, tmp_path, [power])
    assert_nothing_is_forgotten(found)
    assert_all_of_it_happened(found)
    # A partner that is left out costs no one else the round, unless it was final at all of them already.
    assert all(facts["sums"] == 1 or facts["again"] == "refused" for facts in found)
