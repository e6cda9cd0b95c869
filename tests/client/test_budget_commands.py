"""`budget show` and `budget forecast`: what ledgers say, how they are checked, what is left."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from dp_events import ledger_at, release, unprotected

import common
from client.anchors import HeadFile
from client.partner import PartnerAggregation, PartnerConfig, dump_partner
from common.anchors import AnchorFile
from common.cli import main
from common.config import ModelConfig, PrivacyConfig, parse_config, to_table
from common.privacy.accounting import composed_epsilon, epsilon
from common.privacy.events import DpEvent
from common.privacy.views import as_seen

POLICY = PrivacyConfig(epsilon=8.0, delta=1e-5, sampling_rate=0.25, noise_multiplier=2.0)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(common.__file__).parent.parent)}


def training(round_number: int, run_id: str = "run-a", **changes: Any) -> DpEvent:
    facts = {"noise_multiplier": 2.0, "sampling_rate": 0.25, "steps": 2} | changes
    return release(round=round_number, run_id=run_id, **facts)


def write_run(root: Path, events: dict[str, list[DpEvent]], policy: PrivacyConfig = POLICY, rounds: int = 10) -> Path:
    """Writes a run folder as `simulate` leaves it, as far as budgets go."""
    for name, spent in events.items():
        home = root / "partners" / name
        home.mkdir(parents=True)
        partner = PartnerConfig(
            name=name,
            clicks="clicks.parquet",
            card="card.toml",
            ledger=str(Path("..", "..", "ledgers", f"{name}.jsonl")),
            state="state",
            declared_users=100,
            model=ModelConfig(),
            privacy=policy,
            aggregation=PartnerAggregation(method="plain"),
        )
        (home / "partner.toml").write_text(dump_partner(partner), encoding="utf-8")
        ledger = ledger_at(root / "ledgers" / f"{name}.jsonl", name)
        for event in spent:
            ledger.commit(ledger.reserve(event))
    table = to_table(parse_config({"round": {"num_rounds": rounds}}))
    (root / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return root


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["budget", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    more = training(9, "run-b", noise_multiplier=3.0)
    counts = training(0, purpose="statistics", steps=1, noise_multiplier=20.0, sampling_rate=1.0)
    return write_run(
        tmp_path / "run",
        {"shop": [counts, *map(training, (1, 2, 3, 4)), more], "bank": [training(1), training(3)]},
    )


# --- show ---------------------------------------------------------------------------------------------------------


def test_a_ledger_says_what_is_spent_and_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop,) = answer(capsys, "show", run / "ledgers" / "shop.jsonl")["ledgers"]
    groups = ((0.25, 2.0, 8), (0.25, 3.0, 2), (1.0, 20.0, 1))
    assert shop["spent"]["server"] == composed_epsilon(groups, 1e-5)
    assert shop["left"]["server"] == pytest.approx(8.0 - shop["spent"]["server"])
    assert (shop["partner"], shop["releases"], shop["steps"], shop["rounds"]) == ("shop", 6, 11, 6)
    assert (shop["delta"], shop["delta_from"], shop["budget"]) == (1e-5, "the partner's policy", {"server": 8.0})


def test_parts_are_per_purpose_and_per_run_and_each_is_accounted_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop,) = answer(capsys, "show", run / "ledgers" / "shop.jsonl")["ledgers"]
    assert shop["by_purpose"] == {
        "statistics": {"releases": 1, "steps": 1, "epsilon": composed_epsilon(((1.0, 20.0, 1),), 1e-5)},
        "training": {
            "releases": 5,
            "steps": 10,
            "epsilon": composed_epsilon(((0.25, 2.0, 8), (0.25, 3.0, 2)), 1e-5),
        },
    }
    assert {name: part["steps"] for name, part in shop["by_run"].items()} == {"run-a": 9, "run-b": 2}
    assert sum(part["epsilon"] for part in shop["by_run"].values()) > shop["spent"]["server"]


def test_a_run_folder_shows_every_ledger(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["partner"] for one in answer(capsys, "show", run)["ledgers"]] == ["bank", "shop"]


def test_what_is_reserved_and_not_committed_counts_and_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "bank.jsonl"
    before = answer(capsys, "show", path)["ledgers"][0]
    ledger_at(path, "bank").reserve(training(5))
    after = answer(capsys, "show", path)["ledgers"][0]
    assert (before["uncommitted"], after["uncommitted"]) == (0, 1)
    assert after["spent"]["server"] > before["spent"]["server"]
    assert after["rounds_left"] == before["rounds_left"] - 1


def test_the_head_that_is_printed_is_an_anchor_that_holds_until_the_ledger_is_cut(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "ledgers" / "bank.jsonl"
    older = path.read_bytes()
    ledger = ledger_at(path, "bank")
    ledger.commit(ledger.reserve(training(5)))
    head = answer(capsys, "show", path)["ledgers"][0]
    anchor = f"{head['length']}:{head['sha256']}"
    assert (head["length"], head["sha256"]) == (7, ledger.head().sha256)
    assert main(["budget", "show", str(path), "--anchor", anchor]) == 0
    assert anchor in capsys.readouterr().out  # whole, so that it can be copied
    ledger.commit(ledger.reserve(training(6)))
    assert main(["budget", "show", str(path), "--anchor", anchor]) == 0  # it went on from there
    path.write_bytes(older)  # a restored backup, whole in itself
    assert main(["budget", "show", str(path)]) == 0
    capsys.readouterr()
    assert main(["budget", "show", str(path), "--anchor", anchor]) == 1
    assert "bank.jsonl does not contain the known record 7" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_damaged_ledger_ends_with_1_and_is_named(run: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "shop.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps":2', b'"steps":1', 1))
    assert main(["budget", "show", str(path if where == "file" else run)]) == 1
    error = capsys.readouterr().err
    assert "shop.jsonl line 4: altered or damaged" in error
    assert "Traceback" not in error
    assert ("the other 1 ledgers are whole" in error) == (where == "folder")


def test_a_torn_end_is_no_damage_and_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "bank.jsonl"
    path.write_bytes(path.read_bytes() + b'{"version":1,"seq')
    before = path.read_bytes()
    assert answer(capsys, "show", path)["ledgers"][0]["torn_bytes"] == 17
    assert main(["budget", "show", str(path)]) == 0
    assert "17 bytes of an unfinished record were ignored" in capsys.readouterr().out
    assert path.read_bytes() == before  # reading mends nothing


def test_a_bare_ledger_has_an_assumed_delta_that_is_said_and_no_budget(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Path(shutil.copy(run / "ledgers" / "bank.jsonl", tmp_path / "bare.jsonl"))
    (found,) = answer(capsys, "show", bare)["ledgers"]
    assert (found["partner"], found["delta_from"], found["budget"], found["left"]) == ("bank", "assumed", {}, {})
    assert found["spent"]["server"] == composed_epsilon(((0.25, 2.0, 4),), 1e-5)
    assert main(["budget", "show", str(bare)]) == 0
    assert "delta 1e-05 is assumed" in capsys.readouterr().out


def test_epsilon_and_delta_may_be_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "bank.jsonl"
    (found,) = answer(capsys, "show", path, "--epsilon", 3, "--delta", 1e-7)["ledgers"]
    assert found["spent"]["server"] == composed_epsilon(((0.25, 2.0, 4),), 1e-7)
    assert (found["budget"], found["delta_from"], found["rounds_left"]) == ({"server": 3.0}, "given", None)


def test_shared_noise_has_a_column_per_adversary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [
        training(number, mechanism="poisson_skellam", mode="distributed", shares=5, steps=1) for number in (1, 2, 3)
    ]
    policy = replace(POLICY, epsilon_broken=30.0)
    run = write_run(tmp_path / "run", {"shop": shared}, policy)
    (found,) = answer(capsys, "show", run)["ledgers"]
    assert found["spent"] == {view: epsilon(as_seen(shared, view), 1e-5) for view in ("server", "partner", "broken")}
    assert found["spent"]["server"] < found["spent"]["partner"] < found["spent"]["broken"]
    assert found["budget"] == {"server": 8.0, "broken": 30.0}
    assert main(["budget", "show", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "another partner" in printed
    assert "whoever breaks secure aggregation" in printed


def test_a_release_without_noise_and_a_fixed_seed_are_shouted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"shop": [unprotected(), training(1, fixed_seed=True)]})
    (found,) = answer(capsys, "show", run)["ledgers"]
    assert found["spent"]["server"] is None  # JSON has no infinity
    assert found["left"]["server"] == 0.0
    assert main(["budget", "show", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "infinite" in printed
    assert "no epsilon holds" in printed
    assert "FIXED SEED" in printed


def test_a_spend_is_rounded_up_and_what_is_left_is_rounded_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"shop": [training(1)]})
    (found,) = answer(capsys, "show", run)["ledgers"]
    assert main(["budget", "show", str(run)]) == 0
    spent, budget, left = capsys.readouterr().out.splitlines()[2].split()[6:9]
    assert budget == "8"
    assert found["spent"]["server"] <= float(spent) < found["spent"]["server"] + 0.01
    assert found["left"]["server"] - 0.01 < float(left) <= found["left"]["server"]


def test_the_second_opinion_is_the_whole_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer(capsys, "show", run / "ledgers" / "bank.jsonl", "--second-opinion")["ledgers"]
    assert "(PLD; PRV " in found["sentence"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "privacy.epsilon=9"], "neither --set nor --out"),
        (["--anchor", "3"], "expected LENGTH:SHA256"),
        (["--anchor", "x:" + 64 * "a"], "expected LENGTH:SHA256"),
        (["--anchor", "3:" + 64 * "g"], "expected LENGTH:SHA256"),
        (["--anchor", "3:" + 64 * "a"], "belongs to one ledger"),
        (["--epsilon", "0"], "--epsilon 0: over 0"),
        (["--epsilon", "nan"], "--epsilon nan: over 0"),
        (["--delta", "1"], "--delta 1: at least"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["budget", "show", str(run), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_without_ledgers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "show", str(tmp_path)]) == 2
    assert "holds no ledgers" in capsys.readouterr().err


# --- periods, heads and anchors -----------------------------------------------------------------------------------

PERIOD = replace(POLICY, period_days=30)


def long_ago(root: Path, *ages: int) -> Path:
    """Writes a run of one partner whose releases are so many days old."""
    run = write_run(root, {"shop": []}, PERIOD)
    now = datetime.now(UTC)
    for number, age in enumerate(ages, 1):
        moment = now - timedelta(days=age)
        own = ledger_at(run / "ledgers" / "shop.jsonl", clock=lambda moment=moment: moment)  # type: ignore[misc]
        own.commit(own.reserve(training(number)))
    return run


def test_with_a_period_left_is_of_the_period_and_spent_of_all_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = long_ago(tmp_path / "run", 40, 20, 10)
    (shop,) = answer(capsys, "show", run)["ledgers"]
    three, two = composed_epsilon(((0.25, 2.0, 6),), 1e-5), composed_epsilon(((0.25, 2.0, 4),), 1e-5)
    assert (shop["spent"]["server"], shop["spent_in_period"]["server"], shop["period_days"]) == (three, two, 30)
    assert shop["left"]["server"] == 8.0 - two
    (coming,) = answer(capsys, "forecast", run)["partners"]
    assert coming["rounds_left"] == shop["rounds_left"]
    assert composed_epsilon(((0.25, 2.0, 4 + 2 * shop["rounds_left"]),), 1e-5) <= 8.0
    assert composed_epsilon(((0.25, 2.0, 6 + 2 * shop["rounds_left"]),), 1e-5) > 8.0
    assert main(["budget", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf" {math.ceil(three * 100) / 100:.2f} .* {math.ceil(two * 100) / 100:.2f} in 30 d", shown)
    assert "Spent is of all time: what a user who stayed that long has." in " ".join(shown.split())
    assert main(["budget", "forecast", str(run)]) == 0
    assert "8 in 30 d" in capsys.readouterr().out


def test_a_clock_that_is_behind_is_said_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = long_ago(tmp_path / "run", 20, -2)  # two days from now
    (shop,) = answer(capsys, "show", run)["ledgers"]
    assert (shop["rounds_left"], shop["spent_in_period"]) == (0, shop["spent"])
    for action in ("show", "forecast"):
        assert main(["budget", action, str(run)]) == 0
        assert "shop: nothing is granted: the clock says" in " ".join(capsys.readouterr().out.split())


def test_the_head_in_the_state_folder_is_checked_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "bank.jsonl"
    HeadFile(run / "partners" / "bank" / "state").keep(ledger_at(path, "bank").head())
    assert main(["budget", "show", str(path)]) == 0
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert main(["budget", "show", str(path)]) == 1
    assert "bank.jsonl does not contain the known record 5: it holds 4" in capsys.readouterr().err


def test_a_ledger_in_another_partners_place_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "ledgers" / "bank.jsonl", run / "ledgers" / "shop.jsonl")
    assert main(["budget", "show", str(run)]) == 1
    assert "shop.jsonl is the ledger of 'bank' and not of 'shop'" in capsys.readouterr().err


def test_a_servers_anchors_are_held_against_one_ledger_or_all(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, bank = tmp_path / "anchors.jsonl", ledger_at(run / "ledgers" / "bank.jsonl", "bank")
    shop = ledger_at(run / "ledgers" / "shop.jsonl")
    older = (run / "ledgers" / "bank.jsonl").read_bytes()
    AnchorFile(file).append("run-a", 1, {"bank": bank.anchor(), "shop": shop.anchor()})
    bank.commit(bank.reserve(training(5)))
    AnchorFile(file).append("run-a", 2, {"bank": bank.anchor()})
    for target in (run, run / "ledgers" / "bank.jsonl"):
        assert all(
            one["clock_ahead_seconds"] <= 0 for one in answer(capsys, "show", target, "--anchor", file)["ledgers"]
        )
    (run / "ledgers" / "bank.jsonl").write_bytes(older)
    for target in (run, run / "ledgers" / "bank.jsonl"):
        assert main(["budget", "show", str(target), "--anchor", str(file)]) == 1
        assert f"bank's ledger never had anchor 2 that {file} keeps of it" in capsys.readouterr().err
    assert main(["budget", "show", str(run / "ledgers" / "shop.jsonl"), "--anchor", str(file)]) == 0


def test_a_server_without_an_anchor_of_the_one_ledger_asked_about_is_no_proof(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "anchors.jsonl"
    AnchorFile(file).append("run-a", 1, {"bank": ledger_at(run / "ledgers" / "bank.jsonl", "bank").anchor()})
    assert main(["budget", "show", str(run / "ledgers" / "shop.jsonl"), "--anchor", str(file)]) == 2
    assert f"--anchor: {file} keeps no anchor of shop" in capsys.readouterr().err
    assert [one["clock_ahead_seconds"] is None for one in answer(capsys, "show", run, "--anchor", file)["ledgers"]] == [
        False,
        True,
    ]


def test_a_clock_ahead_of_the_servers_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = long_ago(tmp_path / "run", 20, -2)
    AnchorFile(tmp_path / "anchors.jsonl").append(
        "run-a", 2, {"shop": ledger_at(run / "ledgers" / "shop.jsonl").anchor()}
    )
    (shop,) = answer(capsys, "show", run, "--anchor", tmp_path / "anchors.jsonl")["ledgers"]
    assert shop["clock_ahead_seconds"] == pytest.approx(2 * 86_400, abs=60)
    assert main(["budget", "show", str(run), "--anchor", str(tmp_path / "anchors.jsonl")]) == 0
    assert re.search(r"shop: its clock was 17\d{4} s ahead of the server's", capsys.readouterr().out)


# --- forecast -----------------------------------------------------------------------------------------------------


def test_rounds_left_are_those_that_the_budget_then_grants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"shop": [training(1), training(2)]}, rounds=400)
    found = answer(capsys, "forecast", run)
    (shop,) = found["partners"]
    assert (found["rounds_planned"], found["rounds_done"], found["rounds_to_come"]) == (400, 2, 398)
    left = shop["rounds_left"]
    spent = composed_epsilon(((0.25, 2.0, 4 + 2 * left),), 1e-5)
    assert spent <= 8.0 < composed_epsilon(((0.25, 2.0, 6 + 2 * left),), 1e-5)
    assert shop["run_rounds_left"] == left
    assert shop["enough"] is (left >= 398)


def test_a_partner_that_sits_rounds_out_lasts_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = {"every": [training(number) for number in range(1, 9)], "half": [training(n) for n in (1, 3, 5, 7)]}
    run = write_run(tmp_path / "run", events, rounds=1000)
    every, half = answer(capsys, "forecast", run)["partners"]
    assert every["run_rounds_left"] == every["rounds_left"]
    assert half["rounds_left"] == every["rounds_left"] + 4
    assert half["run_rounds_left"] == 2 * half["rounds_left"]


def test_the_rate_is_that_of_the_last_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"slow": [training(1)], "fast": [training(1, steps=8)]})
    fast, slow = answer(capsys, "forecast", run)["partners"]
    assert fast["rounds_left"] < slow["rounds_left"] / 3


def test_a_spent_budget_has_none_left_and_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"shop": [training(1, steps=64)]}, replace(POLICY, epsilon=4.0))
    (shop,) = answer(capsys, "forecast", run)["partners"]
    assert (shop["rounds_left"], shop["enough"]) == (0, False)
    assert main(["budget", "forecast", str(run)]) == 0
    assert " NO" in capsys.readouterr().out


def test_a_bound_on_a_broken_aggregation_limits_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [training(1, mechanism="poisson_skellam", mode="distributed", shares=4, steps=1)]
    free = write_run(tmp_path / "free", {"shop": shared})
    bounded = write_run(tmp_path / "bounded", {"shop": shared}, replace(POLICY, epsilon_broken=8.0))
    (one,), (other,) = (answer(capsys, "forecast", folder)["partners"] for folder in (free, bounded))
    assert other["rounds_left"] < one["rounds_left"] / 2


def test_before_the_first_round_there_is_no_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"shop": [training(1)], "late": []})
    (run / "ledgers" / "late.jsonl").touch()
    late, shop = answer(capsys, "forecast", run)["partners"]
    assert late["rounds_left"] == shop["rounds_left"] + 1  # at the others' rate, under its own policy
    nobody = write_run(tmp_path / "nobody", {"shop": []})
    (nobody / "ledgers").mkdir()
    (nobody / "ledgers" / "shop.jsonl").touch()
    (found,) = answer(capsys, "forecast", nobody)["partners"]
    assert (found["rounds_left"], found["enough"]) == (None, None)
    assert main(["budget", "forecast", str(nobody)]) == 0
    assert "no round yet" in capsys.readouterr().out


def test_without_privacy_there_is_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"shop": [unprotected()]}, PrivacyConfig(mode="none"))
    (shop,) = answer(capsys, "forecast", run)["partners"]
    assert (shop["rounds_left"], shop["enough"]) == (None, None)
    assert main(["budget", "forecast", str(run)]) == 0
    assert "no budget" in capsys.readouterr().out


def test_practically_free_rounds_are_at_least_so_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"shop": [training(1, noise_multiplier=1e6)]})
    assert answer(capsys, "forecast", run)["partners"][0]["or_more"] is True
    assert main(["budget", "forecast", str(run)]) == 0
    assert "at least 5000000" in capsys.readouterr().out


def test_neither_show_nor_forecast_loads_torch(run: Path) -> None:
    program = (
        "import sys; from common.cli import main\n"
        f"assert main(['budget', 'show', {str(run)!r}, '--json']) == 0\n"
        f"assert main(['budget', 'forecast', {str(run)!r}, '--json']) == 0\n"
        "heavy = {'torch', 'flwr', 'transformers', 'opacus', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
