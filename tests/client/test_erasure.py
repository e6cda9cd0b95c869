"""Users who ask to be erased: gone from everything from the next question on, and from no file by their name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_rows
from overlap_pair import write_pair
from partner_folder import task_for, write_partner

from client.erasure import Erased
from client.overlap.exchange import Overlap
from client.overlap.identifiers import read_identifiers
from client.partner import PartnerConfig
from client.preflight import preflight
from client.sent import SentFile
from client.worker import Worker
from common.cli import main
from common.clicks import write_clicks
from common.errors import DataError, ProtocolError
from common.messages import StatisticsTask

ROWS = random_rows(12)
USERS = sorted(ROWS["user"].unique())
GONE, STAYS = USERS[3], USERS[4]


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> PartnerConfig:
    return write_partner(tmp_path, tiny_encoder, ROWS)


def erase(config: PartnerConfig, *users: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    words = [word for user in users for word in ("--user", user)]
    assert main(["erase", str(Path(config.state).parent / "partner.toml"), *words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_running_worker_trains_on_nobody_who_was_erased(
    shop: PartnerConfig, tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit what a partner gives that never had the user; and another thing than before."""
    rest = ROWS[ROWS["user"] != GONE].reset_index(drop=True)
    never = Worker(write_partner(tmp_path / "never", tiny_encoder, rest, fixed_seed=5))
    config = write_partner(tmp_path / "had", tiny_encoder, ROWS, fixed_seed=5)
    worker = Worker(config)
    first = worker.train(task_for(worker, 1)).contribution
    assert not np.array_equal(first.delta_D, never.train(task_for(never, 1)).contribution.delta_D)
    result = erase(config, GONE, capsys=capsys)
    assert (result["added"], result["users_found"], result["users_left"]) == (1, 1, 11)
    task = task_for(worker, 2)
    assert np.array_equal(worker.train(task).contribution.delta_D, never.train(task).contribution.delta_D)
    assert worker._data().num_users == 11


def test_it_holds_for_statistics_and_for_a_log_that_is_exported_again(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_partner(tmp_path, tiny_encoder, ROWS, mode="none", model={"item_rates": "exact"})
    worker = Worker(config)
    task = StatisticsTask("run", tuple(sorted(ROWS["item"].unique())))
    before_2I = worker.statistics(task).counts_2I
    erase(config, GONE, capsys=capsys)
    theirs = ROWS[ROWS["user"] == GONE].groupby("item")["clicked"].agg(["sum", "count"])
    expected_2I = before_2I - np.array([theirs.T.get(item, [0, 0]) for item in task.catalogue], float).T
    assert np.array_equal(worker.statistics(task).counts_2I, expected_2I)
    later = ROWS.assign(time=ROWS["time"] + 86_400)
    write_clicks(pd.concat([ROWS, later], ignore_index=True), Path(config.clicks))
    assert GONE not in set(worker._rows()["user"])
    assert worker._rows()["user"].nunique() == Worker(config)._data().num_users == 11


def test_overlaps_are_counted_without_them(tmp_path: Path, tiny_encoder: Path) -> None:
    users = [f"User-{number}" for number in range(120)]
    pair = write_pair(tmp_path, tiny_encoder, {"shop-a": users, "shop-b": users})
    request = Overlap(pair["shop-a"]).ask("shop-b", tmp_path)
    Erased(Path(pair["shop-b"].state)).add(["  User-7", "user-9", "User-11"])  # user-9 is nobody: case counts here
    response = Overlap(pair["shop-b"]).answer(request, tmp_path)
    assert Overlap(pair["shop-a"]).count(response).shared == 118


@pytest.mark.parametrize(("fold_case", "left"), [(True, 118), (False, 119)])
def test_identifiers_of_a_file_are_left_out_in_the_spelling_that_counts(
    fold_case: bool, left: int, tmp_path: Path, tiny_encoder: Path
) -> None:
    config = write_pair(tmp_path, tiny_encoder, {"shop-a": ["u"] * 1}, identifiers="people.txt", fold_case=fold_case)[
        "shop-a"
    ]
    Path(config.overlap.identifiers).write_text("\n".join(f"P{n}@x.example" for n in range(120)), encoding="utf-8")
    Erased(Path(config.state)).add(["P5@X.example".replace("X", "x"), "p6@x.example"])
    assert len(read_identifiers(config)) == left


def test_an_open_count_of_shared_users_is_closed(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = [f"user-{number}" for number in range(120)]
    pair = write_pair(tmp_path, tiny_encoder, {"shop-a": users, "shop-b": users})
    request = Overlap(pair["shop-a"]).ask("shop-b", tmp_path)
    response = Overlap(pair["shop-b"]).answer(request, tmp_path)
    assert erase(pair["shop-a"], "user-7", capsys=capsys)["counts_closed"] == 1
    with pytest.raises(ProtocolError, match="no open request"):
        Overlap(pair["shop-a"]).count(response)


def test_a_contribution_that_counts_the_user_is_dropped_and_its_round_not_answered_again(
    shop: PartnerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(shop)
    task = task_for(worker)
    sent = worker.train(task).contribution.delta_D.tobytes()
    assert any(sent in data for data in files_of(Path(shop.state)).values())
    assert erase(shop, GONE, capsys=capsys)["contributions_deleted"] == 1
    assert not any(sent[:64] in data for data in files_of(Path(shop.state)).values())
    for again in (worker, Worker(shop)):
        with pytest.raises(ProtocolError, match="round 1 was answered, and what was sent is deleted by now"):
            again.train(task)
    assert SentFile(Path(shop.state), "run").last_round == 1
    assert worker.train(task_for(worker, 2)).round == 2


def test_no_file_of_the_partner_but_its_log_names_a_user(
    shop: PartnerConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The ledger and the state folder never held one; the list of the erased does not either."""
    worker = Worker(shop)
    for number in (1, 2):
        worker.train(task_for(worker, number))
    erase(shop, GONE, STAYS, capsys=capsys)
    worker.tidy()
    held = files_of(tmp_path)
    assert {"ledger.jsonl", "state/erased/users.json", "state/erased/key"} <= set(held)
    named = {name for name, data in held.items() if any(user.encode() in data for user in (GONE, STAYS))}
    assert named <= {"clicks.parquet"}
    assert "clicks.parquet" in held


def test_the_list_is_bound_to_its_key_and_private(shop: PartnerConfig) -> None:
    state = Path(shop.state)
    Erased(state).add([GONE])
    other = Erased(state.with_name("other"))
    other.add([GONE])
    one, two = (json.loads((folder / "erased/users.json").read_bytes()) for folder in (state, state.with_name("other")))
    assert one["users"] != two["users"]
    assert {path.stat().st_mode & 0o777 for path in (state / "erased/users.json", state / "erased/key")} == {0o600}


DAMAGE = {
    "list gone": lambda folder: (folder / "users.json").unlink(),
    "key gone": lambda folder: (folder / "key").unlink(),
    "another key": lambda folder: (folder / "key").write_bytes(os.urandom(32)),
    "short key": lambda folder: (folder / "key").write_bytes(b"x"),
    "cut": lambda folder: (folder / "users.json").write_bytes((folder / "users.json").read_bytes()[:-5]),
    "not hashes": lambda folder: (folder / "users.json").write_text(
        json.dumps(json.loads((folder / "users.json").read_bytes()) | {"users": ["u1"]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_list_that_cannot_be_relied_on_stops_all_use_of_data(damage: str, shop: PartnerConfig) -> None:
    worker = Worker(shop)
    task = task_for(worker)
    Erased(Path(shop.state)).add([GONE])
    DAMAGE[damage](Path(shop.state) / "erased")
    for use in (lambda: worker.train(task), worker.ready, lambda: len(Erased(Path(shop.state)))):
        with pytest.raises(DataError, match="no row of anybody is used until it is mended"):
            use()
    assert not next(one for one in preflight(shop) if one.what == "card and clicks").ok


def test_a_folder_that_goes_under_a_running_worker_is_missed(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    Erased(Path(shop.state)).add([GONE])
    worker.ready()
    shutil.rmtree(Path(shop.state) / "erased")
    with pytest.raises(DataError, match="is gone, and was there before"):
        worker.ready()


def test_a_first_call_that_was_killed_leaves_an_empty_list(
    shop: PartnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client.erasure

    real, calls = client.erasure.write_atomically, []

    def dies(path: Path, data: bytes, **how: int) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(path, data, **how)

    monkeypatch.setattr(client.erasure, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        Erased(Path(shop.state)).add([GONE])
    monkeypatch.undo()
    assert len(Erased(Path(shop.state))) == 0
    assert Erased(Path(shop.state)).add([GONE]) == 1


def test_everybody_may_leave(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    task = task_for(worker)
    Erased(Path(shop.state)).add(USERS)
    assert worker._data().num_users == 0
    assert np.isfinite(worker.train(task).contribution.delta_D).all()  # noise alone


def test_what_the_command_says(shop: PartnerConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(Path(shop.state).parent / "partner.toml")
    assert main(["erase", path, "--user", GONE, "--user", "nobody"]) == 0
    said = capsys.readouterr().out
    rows = int((ROWS["user"] == GONE).sum())
    assert "2 named, 2 of them new to the list of 2; they take part in nothing from now on" in said
    assert "1 of them are no user of the click log as it is now" in said
    assert f"the click log holds {rows} rows of those listed, read no more" in said
    assert "11 users are left, and declared_users = 12: it is published and does not change by itself" in said
    assert GONE not in said
    finding = next(one for one in preflight(shop) if one.what == "card and clicks")
    assert finding.ok
    assert "2 erased, 11 users left, fewer than declared" in finding.says
    Path(shop.clicks).unlink()
    assert main(["erase", path, "--user", STAYS]) == 0
    assert "the click log was not looked at" in capsys.readouterr().out
    assert len(Erased(Path(shop.state))) == 3


def test_ids_may_come_on_standard_input(shop: PartnerConfig) -> None:
    words = [sys.executable, "-m", "common.cli", "erase", str(Path(shop.state).parent / "partner.toml"), "--user", "-"]
    done = subprocess.run(words, input=f"{GONE}\n\n{STAYS}\n", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 named" in done.stdout


def test_nobody_else_reads_clicks_at_a_partner() -> None:
    """Whoever reads the log past `UserData` and `read_identifiers` would read the erased too."""
    client = Path(__file__).parents[2] / "client"
    found = {path.name for path in client.rglob("*.py") if "read_clicks(" in path.read_text(encoding="utf-8")}
    assert found == {"userdata.py", "identifiers.py", "preflight.py", "erase_command.py", "predicting.py"}


def test_the_list_is_looked_at_for_each_question_and_not_only_by_its_size(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    for number, user in enumerate(USERS[:3], 1):
        Erased(Path(shop.state)).add([user])
        assert worker._data().num_users == 12 - number
